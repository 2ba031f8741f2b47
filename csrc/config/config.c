/* libyaml events into a tree (config.h).
 *
 * Invariants: node numbers are stable and a node is linked into its parent when it is
 * complete, so an alias never copies an unfinished collection; the stack of open collections
 * is at most ASEN_YAML_MAX_DEPTH deep, which also bounds every recursion over the tree. */
#include "config/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/status.h"

typedef struct {
    char *name;
    int node;
    int open;      /* its collection has not ended */
} anchor;

typedef struct {
    asen_yaml_document *document;
    const char *name;              /* of the file, for messages */
    anchor *anchors;
    int anchors_count;
    int stack[ASEN_YAML_MAX_DEPTH];
    int depth;
    int documents;
} builder;

static int line_of(const yaml_event_t *event)
{
    return (int)event->start_mark.line + 1;
}

static int add_node(builder *b, asen_yaml_kind kind, int line, int *out)
{
    asen_yaml_document *d = b->document;
    *out = -1;
    if (d->count == ASEN_YAML_MAX_NODES)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: more than %d values (aliases count as often as they are used)",
                         b->name, line, ASEN_YAML_MAX_NODES);
    if (d->count == d->capacity) {
        int capacity = d->capacity ? 2 * d->capacity : 64;
        asen_yaml_node *nodes = realloc(d->nodes, (size_t)capacity * sizeof *nodes);
        if (nodes == NULL)
            return asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", b->name);
        d->nodes = nodes;
        d->capacity = capacity;
    }
    d->nodes[d->count] = (asen_yaml_node){.kind = kind, .line = line, .first = -1, .last = -1, .next = -1};
    *out = d->count++;
    return ASEN_OK;
}

static void link_child(asen_yaml_document *d, int parent, int child)
{
    asen_yaml_node *p = &d->nodes[parent];
    if (p->last < 0)
        p->first = child;
    else
        d->nodes[p->last].next = child;
    p->last = child;
    p->count++;
}

/* Links a complete node into the innermost open collection, or makes it the root. */
static int place(builder *b, int node)
{
    asen_yaml_document *d = b->document;
    if (b->depth == 0) {
        d->root = node;
        return ASEN_OK;
    }
    int parent = b->stack[b->depth - 1];
    int is_key = d->nodes[parent].kind == ASEN_YAML_MAP && d->nodes[parent].count % 2 == 0;
    if (is_key && d->nodes[node].kind != ASEN_YAML_SCALAR)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: a key must be a word, not a list or a mapping",
                         b->name, d->nodes[node].line);
    link_child(d, parent, node);
    return ASEN_OK;
}

static int count_text(builder *b, size_t length, int line)
{
    b->document->texts_expanded += length;
    if (b->document->texts_expanded > ASEN_YAML_MAX_BYTES)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: more than %d bytes of text (aliases count as often as they are used)",
                         b->name, line, ASEN_YAML_MAX_BYTES);
    return ASEN_OK;
}

static int set_text(builder *b, int node, const void *text, size_t length)
{
    asen_yaml_document *d = b->document;
    int status = count_text(b, length, d->nodes[node].line);
    if (status)
        return status;
    if (d->texts_used + length > d->texts_capacity) {
        size_t capacity = 2 * d->texts_capacity + length + 256;
        char *texts = realloc(d->texts, capacity);
        if (texts == NULL)
            return asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", b->name);
        d->texts = texts;
        d->texts_capacity = capacity;
    }
    if (length)
        memcpy(d->texts + d->texts_used, text, length);
    d->nodes[node].text = d->texts_used;
    d->nodes[node].length = length;
    d->texts_used += length;
    return ASEN_OK;
}

/* A later anchor of the same name hides the earlier one (YAML 1.1, 3.2.2.2). */
static int add_anchor(builder *b, const yaml_char_t *name, int node, int open, int line)
{
    if (name == NULL)
        return ASEN_OK;
    if (b->anchors_count == ASEN_YAML_MAX_ANCHORS)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: more than %d anchors", b->name, line, ASEN_YAML_MAX_ANCHORS);
    if (b->anchors == NULL) {
        b->anchors = calloc(ASEN_YAML_MAX_ANCHORS, sizeof *b->anchors);
        if (b->anchors == NULL)
            return asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", b->name);
    }
    char *copy = strdup((const char *)name);
    if (copy == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", b->name);
    b->anchors[b->anchors_count++] = (anchor){.name = copy, .node = node, .open = open};
    return ASEN_OK;
}

/* Copies the tree under `source`. Children keep their own lines, the top takes the alias's. */
static int copy_node(builder *b, int source, int line, int depth, int *out)
{
    asen_yaml_document *d = b->document;
    *out = -1;
    if (d->nodes[source].kind != ASEN_YAML_SCALAR && depth >= ASEN_YAML_MAX_DEPTH)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: nested deeper than %d levels", b->name, line, ASEN_YAML_MAX_DEPTH);
    int copy;
    int status = add_node(b, d->nodes[source].kind, line, &copy);
    if (status)
        return status;
    d->nodes[copy].plain = d->nodes[source].plain;
    d->nodes[copy].text = d->nodes[source].text;
    d->nodes[copy].length = d->nodes[source].length;
    status = count_text(b, d->nodes[source].length, line);
    for (int child = d->nodes[source].first; status == ASEN_OK && child >= 0; child = d->nodes[child].next) {
        int child_copy;
        status = copy_node(b, child, d->nodes[child].line, depth + 1, &child_copy);
        if (status == ASEN_OK)
            link_child(d, copy, child_copy);
    }
    if (status == ASEN_OK)
        *out = copy;
    return status;
}

static int on_alias(builder *b, const yaml_event_t *event)
{
    const char *name = (const char *)event->data.alias.anchor;
    int line = line_of(event), found = -1;
    for (int i = b->anchors_count - 1; i >= 0 && found < 0; i--)
        if (strcmp(b->anchors[i].name, name) == 0)
            found = i;
    if (found < 0)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: the alias *%s has no anchor &%s before it",
                         b->name, line, name, name);
    if (b->anchors[found].open)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: the alias *%s lies within its own anchor", b->name, line, name);
    int node;
    int status = copy_node(b, b->anchors[found].node, line, b->depth, &node);
    return status ? status : place(b, node);
}

/* Tags that only repeat what the syntax says pass; those that ask for a type do not. */
static int check_tag(builder *b, const yaml_event_t *event, const yaml_char_t *tag, const char *allowed)
{
    if (tag == NULL || strcmp((const char *)tag, "!") == 0 || strcmp((const char *)tag, allowed) == 0)
        return ASEN_OK;
    return asen_fail(ASEN_ERR_VALUE, "%s:%d: the tag %.80s is not supported here: write the value without it",
                     b->name, line_of(event), (const char *)tag);
}

static int on_scalar(builder *b, const yaml_event_t *event)
{
    int line = line_of(event), node;
    const yaml_char_t *tag = event->data.scalar.tag;
    int status = check_tag(b, event, tag, YAML_STR_TAG);
    if (status == ASEN_OK)
        status = add_node(b, ASEN_YAML_SCALAR, line, &node);
    if (status)
        return status;
    b->document->nodes[node].plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && tag == NULL;
    status = set_text(b, node, event->data.scalar.value, event->data.scalar.length);
    if (status == ASEN_OK)
        status = add_anchor(b, event->data.scalar.anchor, node, 0, line);
    return status ? status : place(b, node);
}

static int on_start(builder *b, const yaml_event_t *event, asen_yaml_kind kind,
                    const yaml_char_t *anchor_name, const yaml_char_t *tag, const char *allowed_tag)
{
    int line = line_of(event), node;
    if (b->depth == ASEN_YAML_MAX_DEPTH)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: nested deeper than %d levels", b->name, line, ASEN_YAML_MAX_DEPTH);
    int status = check_tag(b, event, tag, allowed_tag);
    if (status == ASEN_OK)
        status = add_node(b, kind, line, &node);
    if (status == ASEN_OK)
        status = add_anchor(b, anchor_name, node, 1, line);
    if (status)
        return status;
    b->stack[b->depth++] = node;
    return ASEN_OK;
}

typedef struct {
    const char *text;
    size_t length;
    int line;
} key;

static int compare_keys(const void *left, const void *right)
{
    const key *a = left, *b = right;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return a->length ? memcmp(a->text, b->text, a->length) : 0;
}

static int check_duplicates(builder *b, int map)
{
    const asen_yaml_document *d = b->document;
    int count = d->nodes[map].count / 2, i = 0, status = ASEN_OK;
    if (count < 2)
        return ASEN_OK;
    key *keys = malloc((size_t)count * sizeof *keys);
    if (keys == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", b->name);
    for (int child = d->nodes[map].first; child >= 0; child = d->nodes[d->nodes[child].next].next) {
        const asen_yaml_node *n = &d->nodes[child];
        keys[i++] = (key){n->length ? d->texts + n->text : "", n->length, n->line};
    }
    qsort(keys, (size_t)count, sizeof *keys, compare_keys);
    for (i = 1; i < count && status == ASEN_OK; i++)
        if (compare_keys(&keys[i - 1], &keys[i]) == 0) {
            int first = keys[i - 1].line, second = keys[i].line;
            status = asen_fail(ASEN_ERR_VALUE, "%s:%d: the key %.*s stands twice in one mapping (first on line %d)",
                               b->name, first > second ? first : second,
                               keys[i].length > 80 ? 80 : (int)keys[i].length, keys[i].text,
                               first > second ? second : first);
        }
    free(keys);
    return status;
}

static int on_end(builder *b)
{
    int node = b->stack[--b->depth];
    for (int i = 0; i < b->anchors_count; i++)
        if (b->anchors[i].node == node)
            b->anchors[i].open = 0;
    int status = b->document->nodes[node].kind == ASEN_YAML_MAP ? check_duplicates(b, node) : ASEN_OK;
    return status ? status : place(b, node);
}

static int on_event(builder *b, const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (b->documents++)
            return asen_fail(ASEN_ERR_VALUE, "%s:%d: a second document starts here; one file holds one configuration",
                             b->name, line_of(event));
        return ASEN_OK;
    case YAML_ALIAS_EVENT:
        return on_alias(b, event);
    case YAML_SCALAR_EVENT:
        return on_scalar(b, event);
    case YAML_SEQUENCE_START_EVENT:
        return on_start(b, event, ASEN_YAML_LIST, event->data.sequence_start.anchor,
                        event->data.sequence_start.tag, YAML_SEQ_TAG);
    case YAML_MAPPING_START_EVENT:
        return on_start(b, event, ASEN_YAML_MAP, event->data.mapping_start.anchor,
                        event->data.mapping_start.tag, YAML_MAP_TAG);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        return on_end(b);
    default:
        return ASEN_OK;
    }
}

static int line_at(const char *bytes, size_t size, size_t offset)
{
    int line = 1;
    for (size_t i = 0; i < size && i < offset; i++)
        line += bytes[i] == '\n';
    return line;
}

static int fail_syntax(const yaml_parser_t *parser, const char *bytes, size_t size, const char *name)
{
    const char *problem = parser->problem ? parser->problem : "unknown problem";
    if (parser->error == YAML_MEMORY_ERROR)
        return asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", name);
    if (parser->error == YAML_READER_ERROR) {
        int line = line_at(bytes, size, parser->problem_offset);
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: not valid YAML: %s (a configuration is UTF-8 text)",
                         name, line, problem);
    }
    int line = (int)parser->problem_mark.line + 1, column = (int)parser->problem_mark.column + 1;
    int last = line_at(bytes, size, size ? size - 1 : 0);
    if (line > last)    /* libyaml puts the end of the file on a line of its own */
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: not valid YAML: %s at the end of the file%s%s",
                         name, last, problem, parser->context ? ", " : "", parser->context ? parser->context : "");
    if (parser->context != NULL)
        return asen_fail(ASEN_ERR_VALUE, "%s:%d: not valid YAML: %s at column %d, %s that starts on line %d",
                         name, line, problem, column, parser->context, (int)parser->context_mark.line + 1);
    return asen_fail(ASEN_ERR_VALUE, "%s:%d: not valid YAML: %s at column %d", name, line, problem, column);
}

int asen_yaml_parse(const char *bytes, size_t size, const char *name, asen_yaml_document **out)
{
    *out = NULL;
    if (size > ASEN_YAML_MAX_BYTES)
        return asen_fail(ASEN_ERR_VALUE, "%s: larger than %d bytes: not a configuration", name, ASEN_YAML_MAX_BYTES);
    builder b = {.name = name};
    yaml_parser_t parser;
    yaml_event_t event;
    int status = ASEN_OK, done = 0;
    if (!yaml_parser_initialize(&parser))
        return asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", name);
    b.document = calloc(1, sizeof *b.document);
    if (b.document == NULL) {
        status = asen_fail(ASEN_ERR_MEMORY, "%s: out of memory", name);
        goto fail;
    }
    b.document->root = -1;
    yaml_parser_set_input_string(&parser, (const unsigned char *)(size ? bytes : ""), size);
    while (!done) {
        if (!yaml_parser_parse(&parser, &event)) {
            status = fail_syntax(&parser, bytes, size, name);
            goto fail;
        }
        status = on_event(&b, &event);
        done = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
        if (status)
            goto fail;
    }
    *out = b.document;
    b.document = NULL;
fail:
    yaml_parser_delete(&parser);
    asen_yaml_free(b.document);
    for (int i = 0; i < b.anchors_count; i++)
        free(b.anchors[i].name);
    free(b.anchors);
    return status;
}

int asen_yaml_read(const char *path, char **bytes, size_t *size)
{
    *bytes = NULL;
    *size = 0;
    int status = ASEN_OK, reason = 0;
    char *buffer = NULL;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        reason = errno;
        goto fail;
    }
    buffer = malloc(ASEN_YAML_MAX_BYTES + 1);
    if (buffer == NULL) {
        reason = ENOMEM;
        goto fail;
    }
    errno = 0;
    size_t count = fread(buffer, 1, ASEN_YAML_MAX_BYTES + 1, file);
    if (ferror(file)) {
        reason = errno ? errno : EIO;
        goto fail;
    }
    *bytes = buffer;
    *size = count;
    buffer = NULL;
fail:
    if (file != NULL)
        fclose(file);
    free(buffer);
    if (reason) {
        status = asen_fail(reason == ENOMEM ? ASEN_ERR_MEMORY : ASEN_ERR_IO, "%s: %s", path, strerror(reason));
        errno = reason;
    }
    return status;
}

void asen_yaml_free(asen_yaml_document *document)
{
    if (document == NULL)
        return;
    free(document->nodes);
    free(document->texts);
    free(document);
}
