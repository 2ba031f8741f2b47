/* parse_yaml, the tree of config.c as Python objects.
 *
 * Recursion over the tree is bounded by ASEN_YAML_MAX_DEPTH. */
#include <errno.h>
#include <stdlib.h>

#include "config/config.h"
#include "python/module.h"

/* New reference: str. libyaml has checked that the text is UTF-8. */
static PyObject *text_object(const asen_yaml_document *d, const asen_yaml_node *node)
{
    return PyUnicode_DecodeUTF8(node->length ? d->texts + node->text : "", (Py_ssize_t)node->length, "strict");
}

/* New reference: (line, content, plain). */
static PyObject *node_object(const asen_yaml_document *d, int number)
{
    const asen_yaml_node *node = &d->nodes[number];
    PyObject *content = NULL, *key = NULL, *value = NULL;
    if (node->kind == ASEN_YAML_SCALAR) {
        content = text_object(d, node);
        if (content == NULL)
            goto fail;
    } else if (node->kind == ASEN_YAML_LIST) {
        content = PyList_New(0);
        if (content == NULL)
            goto fail;
        for (int child = node->first; child >= 0; child = d->nodes[child].next) {
            value = node_object(d, child);
            if (value == NULL || PyList_Append(content, value) < 0)
                goto fail;
            Py_CLEAR(value);
        }
    } else {
        content = PyDict_New();
        if (content == NULL)
            goto fail;
        for (int child = node->first; child >= 0; child = d->nodes[d->nodes[child].next].next) {
            key = text_object(d, &d->nodes[child]);
            PyObject *inner = key ? node_object(d, d->nodes[child].next) : NULL;
            value = inner ? Py_BuildValue("(iN)", d->nodes[child].line, inner) : NULL;
            if (value == NULL || PyDict_SetItem(content, key, value) < 0)
                goto fail;
            Py_CLEAR(key);
            Py_CLEAR(value);
        }
    }
    return Py_BuildValue("(iNN)", node->line, content, PyBool_FromLong(node->plain));
fail:
    Py_XDECREF(content);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return NULL;
}

PyDoc_STRVAR(parse_yaml_doc,
"parse_yaml(source, name=None)\n--\n\n"
"The one YAML document in `source`, a path or bytes, as (line, content, plain), or None where\n"
"there is none. `content` is a scalar's text (str; what it means is left to the caller), a list\n"
"of such triples, or a dict of key text -> (the key's line, triple). `plain` is true for a scalar\n"
"without quotes. Aliases are expanded. `name` stands in messages, for bytes '<bytes>' by default.\n\n"
"Raises ValueError, beginning with 'name:line:', for bad syntax, duplicate keys, tags that ask\n"
"for a type, or more than 4 MiB of text, 100,000 values, 64 levels, 1,000 anchors; OSError.");

static PyObject *parse_yaml(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"source", "name", NULL};
    PyObject *source, *path = NULL, *result = NULL;
    const char *name = NULL;
    char *bytes = NULL;
    size_t size = 0;
    int status, reason = 0;
    Py_buffer view = {0};
    asen_yaml_document *document = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|z:parse_yaml", names, &source, &name))
        return NULL;
    if (PyObject_CheckBuffer(source)) {
        if (PyObject_GetBuffer(source, &view, PyBUF_SIMPLE) < 0)
            return NULL;
        if (name == NULL)
            name = "<bytes>";
        Py_BEGIN_ALLOW_THREADS
        status = asen_yaml_parse(view.buf, (size_t)view.len, name, &document);
        Py_END_ALLOW_THREADS
    } else {
        if (!PyUnicode_FSConverter(source, &path))
            return NULL;
        const char *file = PyBytes_AS_STRING(path);
        if (name == NULL)
            name = file;
        Py_BEGIN_ALLOW_THREADS
        status = asen_yaml_read(file, &bytes, &size);
        reason = errno;
        if (status == ASEN_OK)
            status = asen_yaml_parse(bytes, size, name, &document);
        Py_END_ALLOW_THREADS
    }
    if (status == ASEN_ERR_IO) {
        errno = reason;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, source);
    } else if (status) {
        asen_py_raise(status);
    } else {
        result = document->root < 0 ? Py_NewRef(Py_None) : node_object(document, document->root);
    }
    asen_yaml_free(document);
    free(bytes);
    Py_XDECREF(path);
    if (view.obj != NULL)
        PyBuffer_Release(&view);
    return result;
}

static PyMethodDef methods[] = {
    {"parse_yaml", (PyCFunction)(void (*)(void))parse_yaml, METH_VARARGS | METH_KEYWORDS, parse_yaml_doc},
    {NULL, NULL, 0, NULL},
};

int asen_py_add_config(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
