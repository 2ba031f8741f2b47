/* The schemas: see schema.h. Attributes are tables that the compiler makes of ops.def; the names of tensors are
 * parsed once. Those strings are ours and constant, so what does not parse is a mistake in a row; the op tests
 * run over every row. */
#include "ops/schema.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

/* ---- the sets of attributes ---- */

/* The text; sets have a space in front. */
#define LETTER_int "i"
#define LETTER_int2 "i2"
#define LETTER_flag "b"
#define LETTER_float "f"
#define LETTER_list "l"
#define LETTER_shape "s"
#define LETTER_dtype "t"
#define ATTR(kind, name, value) " " #name ":" LETTER_##kind "=" #value
#define REQUIRED(kind, name) " " #name ":" LETTER_##kind
#define OPTIONAL(kind, name) " " #name ":" LETTER_##kind "=None"
#define ATTRIBUTES(set, ...) static const char text_##set[] = __VA_ARGS__;
#include "ops/ops.def"

/* The defaults; attributes without one are zero, or "no dtype". */
#define VALUE_int(value) value
#define VALUE_int2(value) {value, value}
#define VALUE_flag(value) value
#define VALUE_float(value) value
#define ABSENT_int 0
#define ABSENT_int2 {0}
#define ABSENT_flag 0
#define ABSENT_float 0
#define ABSENT_list {0}
#define ABSENT_shape {0}
#define ABSENT_dtype -1
#define ATTR(kind, name, value) .name = VALUE_##kind(value),
#define REQUIRED(kind, name) .name = ABSENT_##kind,
#define OPTIONAL(kind, name) .name = ABSENT_##kind,
#define ATTRIBUTES(set, ...) static const asen_attrs_##set defaults_##set = {__VA_ARGS__};
#include "ops/ops.def"

/* The fields. A function each, for the name `self`; it gives the whole set. */
#define LENGTH(array) (int)(sizeof(array) / sizeof *(array))
#define FIELD(kind, name, required) {#name, ASEN_ATTR_##kind, offsetof(self, name), required},
#define ATTR(kind, name, value) FIELD(kind, name, false)
#define REQUIRED(kind, name) FIELD(kind, name, true)
#define OPTIONAL(kind, name) FIELD(kind, name, false)
#define ATTRIBUTES(set, ...)                                                                                  \
    static const asen_attr_set *set_##set(void)                                                               \
    {                                                                                                         \
        typedef asen_attrs_##set self;                                                                        \
        static const asen_attr_field field[] = {__VA_ARGS__};                                                 \
        _Static_assert(LENGTH(field) <= ASEN_SCHEMA_MAX, #set ": more attributes than ASEN_SCHEMA_MAX");      \
        static const asen_attr_set all = {field, LENGTH(field), sizeof(self), &defaults_##set, text_##set + 1}; \
        return &all;                                                                                          \
    }
#include "ops/ops.def"

/* No padding: the sizes of the fields add up. */
#define ATTR(kind, name, value) +sizeof(asen_attr_##kind)
#define REQUIRED(kind, name) +sizeof(asen_attr_##kind)
#define OPTIONAL(kind, name) +sizeof(asen_attr_##kind)
#define ATTRIBUTES(set, ...) _Static_assert(sizeof(asen_attrs_##set) == 0 __VA_ARGS__, #set ": padded");
#include "ops/ops.def"

static const asen_attr_set *set_none(void)
{
    static const asen_attr_set all = {.text = ""};
    return &all;
}

/* ---- the rows ---- */

static const asen_attr_set *(*const set_of[ASEN_OP_COUNT])(void) = {
#define OP(name, inputs, outputs, attributes, ...) [ASEN_OP_##name] = set_##attributes,
#define VIEW OP
#include "ops/ops.def"
};

static asen_schema schemas[ASEN_OP_COUNT];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The next word of *text into `word`; false at the end. */
static bool next_word(const char **text, char *word, size_t size)
{
    const char *s = *text + strspn(*text, " ");
    size_t n = strcspn(s, " ");
    *text = s + n;
    if (n == 0 || n >= size)
        return false;
    memcpy(word, s, n);
    word[n] = '\0';
    return true;
}

static int input_of(const asen_schema *s, const char *name)
{
    for (int i = 0; i < s->n_in; i++)
        if (strcmp(name, s->in_name[i]) == 0)
            return i;
    return -1;
}

/* "x", "x/w" or "y?relu". */
static void parse_saved(asen_schema *s, char *word)
{
    char *other = strchr(word, '/'), *flag = strchr(word, '?');
    if (other != NULL)
        *other++ = '\0';
    if (flag != NULL)
        *flag++ = '\0';
    int in = input_of(s, word);
    if (in >= 0) {
        s->saved_in |= 1u << in;
        s->saved_for[in] = other != NULL ? 1u << input_of(s, other) : ~0u;
    }
    for (int k = 0; k < s->n_out; k++)
        if (strcmp(word, s->out_name[k]) == 0) {
            s->saved_out |= 1u << k;
            for (int a = 0; flag != NULL && a < s->attrs->count; a++)
                if (strcmp(flag, s->attrs->field[a].name) == 0)
                    s->saved_if[k] = &s->attrs->field[a];
        }
}

static void parse_row(asen_op op)
{
    const asen_op_info *info = asen_op_get(op);
    asen_schema *s = &schemas[op];
    char word[64];
    for (const char *text = info->inputs; next_word(&text, word, sizeof word);) {
        size_t n = strlen(word) - 1;
        s->optional[s->n_in] = word[n] == '?';
        s->variadic |= word[n] == '*';
        if (word[n] == '?' || word[n] == '*')
            word[n] = '\0';
        memcpy(s->in_name[s->n_in++], word, ASEN_NAME_MAX - 1);
    }
    for (const char *text = info->outputs; next_word(&text, word, sizeof word);)
        memcpy(s->out_name[s->n_out++], word, ASEN_NAME_MAX - 1);
    s->attrs = set_of[op]();
    for (const char *text = info->saves; next_word(&text, word, sizeof word);)
        parse_saved(s, word);
}

static void parse_all(void)
{
    for (int op = 0; op < ASEN_OP_COUNT; op++)
        parse_row((asen_op)op);
}

const asen_schema *asen_schema_get(asen_op op)
{
    pthread_once(&once, parse_all);
    return &schemas[op];
}

void asen_schema_defaults(asen_op op, asen_attrs *attrs)
{
    const asen_attr_set *set = asen_schema_get(op)->attrs;
    memset(attrs, 0, sizeof *attrs);
    if (set->count > 0)
        memcpy(attrs, set->defaults, set->size);
}
