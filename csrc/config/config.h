/* Configuration files: YAML text into a tree of scalars that know their line and style.
 *
 * What a scalar means (number, boolean, string) is not decided here: the caller gets its text,
 * whether it was plain or quoted, and its line. Aliases are expanded into copies, so the tree
 * has no sharing; what they may expand to is bounded. */
#ifndef ASEN_CONFIG_H
#define ASEN_CONFIG_H

#include <stddef.h>

enum {
    ASEN_YAML_MAX_BYTES = 4 << 20,   /* of input, and of all texts with aliases expanded */
    ASEN_YAML_MAX_NODES = 100000,    /* with aliases expanded */
    ASEN_YAML_MAX_DEPTH = 64,
    ASEN_YAML_MAX_ANCHORS = 1000
};

typedef enum { ASEN_YAML_SCALAR, ASEN_YAML_LIST, ASEN_YAML_MAP } asen_yaml_kind;

/* Children are a linked list of node numbers that ends with -1; a map's alternate between
 * key (always a scalar) and value. */
typedef struct {
    asen_yaml_kind kind;
    int plain;              /* a scalar without quotes, block style or string tag */
    int line;               /* from 1 */
    size_t text, length;    /* a scalar's UTF-8 bytes in the document's `texts`; may hold NUL */
    int first, last, next;
    int count;              /* children */
} asen_yaml_node;

typedef struct {
    asen_yaml_node *nodes;
    int count, capacity;
    char *texts;
    size_t texts_used, texts_capacity;
    size_t texts_expanded;  /* bytes of all scalars, counting each alias again */
    int root;               /* -1: the file holds no document */
} asen_yaml_document;

/* Parses one YAML 1.1 document (UTF-8 or UTF-16). Errors (ASEN_ERR_VALUE) begin with
 * "name:line:": bad syntax, a duplicate key, a key that is no scalar, an unknown alias, an
 * alias of a collection in itself, a tag that asks for a type, a second document, or a limit
 * of the enum above. On success *out is new: free it with asen_yaml_free. */
int asen_yaml_parse(const char *bytes, size_t size, const char *name, asen_yaml_document **out);

/* Reads a whole file of at most ASEN_YAML_MAX_BYTES. *bytes is new: free() it. On
 * ASEN_ERR_IO errno says why. */
int asen_yaml_read(const char *path, char **bytes, size_t *size);

void asen_yaml_free(asen_yaml_document *document);

#endif
