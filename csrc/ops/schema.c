/* Parsing the strings of ops.def: see schema.h. They are ours and constant, so what does not
 * parse is a mistake in a row; the op tests run over every row. */
#include "ops/schema.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

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

static void parse_attr(const char *word, asen_attr_field *field, int *offset)
{
    size_t n = strcspn(word, ":");
    memset(field, 0, sizeof *field);
    memcpy(field->name, word, n < ASEN_NAME_MAX ? n : ASEN_NAME_MAX - 1);
    const char *kind = word + n + (word[n] == ':');
    const char *equals = strchr(kind, '=');
    field->kind = *kind;
    field->repeat = kind[0] == 'i' && kind[1] == '2' ? 2 : 1;
    field->word = *offset;
    field->required = equals == NULL && strchr("lt", field->kind) == NULL;
    field->value = equals ? strtod(equals + 1, NULL) : field->kind == 't' ? -1 : 0;
    *offset += field->kind == 'l' || field->kind == 's' ? 1 + ASEN_MAX_DIMS : field->repeat;
}

static void parse_row(asen_op op)
{
    const asen_op_info *info = asen_op_get(op);
    asen_schema *s = &schemas[op];
    char word[64];
    int offset = 0;
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
    for (const char *text = info->saves; next_word(&text, word, sizeof word);) {
        for (int i = 0; i < s->n_in; i++)
            if (strcmp(word, s->in_name[i]) == 0)
                s->saved_in |= 1u << i;
        for (int k = 0; k < s->n_out; k++)
            if (strcmp(word, s->out_name[k]) == 0)
                s->saved_out |= 1u << k;
    }
    for (const char *text = info->attrs; next_word(&text, word, sizeof word);)
        parse_attr(word, &s->attr[s->n_attrs++], &offset);
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
    const asen_schema *s = asen_schema_get(op);
    int64_t *word = (int64_t *)attrs;
    memset(attrs, 0, sizeof *attrs);
    for (int a = 0; a < s->n_attrs; a++) {
        const asen_attr_field *f = &s->attr[a];
        for (int r = 0; r < f->repeat; r++) {
            if (f->kind == 'f')
                memcpy(&word[f->word + r], &f->value, sizeof f->value);
            else
                word[f->word + r] = (int64_t)f->value;
        }
    }
}
