/* Metrics for Python: buffers in, the loop over blocks of queries with progress and Ctrl-C. */
#include <string.h>

#include "metrics/metrics.h"
#include "python/module.h"

/* Queries in one call without the GIL: tenths of a second for tens of thousands of candidates. */
enum { BLOCK = 768 };

/* A C-contiguous buffer of `code` ('f', 'd', 'B'; 'q' for any 64-bit signed integer) with `ndim`
 * axes in *view; -1 with an exception that names the argument. */
static int get_buffer(PyObject *object, const char *name, char code, int ndim, int writable, Py_buffer *view)
{
    view->obj = NULL;
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) < 0)
        return -1;
    const char *format = view->format ? view->format : "B";
    char is = format[0] == '@' || format[0] == '=' || format[0] == '<' ? format[1] : format[0];
    if (is == 'l' && view->itemsize == 8)
        is = 'q';
    if (is == '?')
        is = 'B';
    if (is != code) {
        PyErr_Format(PyExc_TypeError, "%s: buffer format '%s', expected '%c'", name, format, code);
    } else if (view->ndim != ndim) {
        PyErr_Format(PyExc_ValueError, "%s: %d axes, expected %d", name, view->ndim, ndim);
    } else {
        return 0;
    }
    PyBuffer_Release(view);
    view->obj = NULL;
    return -1;
}

PyDoc_STRVAR(rank_doc, "metrics_rank(scores, order, /)\n--\n\n"
                       "order (n,) int64 := indices of scores (n,) float64 by falling score, ties by index.");

static PyObject *metrics_rank(PyObject *module, PyObject *args)
{
    Py_buffer scores = {0}, order = {0};
    PyObject *in[2], *result = NULL;
    if (!PyArg_ParseTuple(args, "OO:metrics_rank", &in[0], &in[1])
        || get_buffer(in[0], "scores", 'd', 1, 0, &scores) < 0
        || get_buffer(in[1], "order", 'q', 1, 1, &order) < 0)
        goto done;
    if (order.shape[0] != scores.shape[0]) {
        PyErr_SetString(PyExc_ValueError, "metrics_rank: scores and order differ in length");
        goto done;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_metrics_rank(scores.buf, (size_t)scores.shape[0], order.buf);
    Py_END_ALLOW_THREADS
    result = status == ASEN_OK ? Py_NewRef(Py_None) : asen_py_raise(status);
done:
    PyBuffer_Release(&scores);
    PyBuffer_Release(&order);
    return result;
}

PyDoc_STRVAR(ap_doc, "metrics_average_precision(scores, relevant, /)\n--\n\n"
                     "AP of scores (n,) float64 with relevant (n,) bool.");

static PyObject *metrics_average_precision(PyObject *module, PyObject *args)
{
    Py_buffer scores = {0}, relevant = {0};
    PyObject *in[2], *result = NULL;
    if (!PyArg_ParseTuple(args, "OO:metrics_average_precision", &in[0], &in[1])
        || get_buffer(in[0], "scores", 'd', 1, 0, &scores) < 0
        || get_buffer(in[1], "relevant", 'B', 1, 0, &relevant) < 0)
        goto done;
    if (relevant.shape[0] != scores.shape[0]) {
        PyErr_SetString(PyExc_ValueError, "average_precision: scores and relevant differ in length");
        goto done;
    }
    int status;
    double ap = 0;
    Py_BEGIN_ALLOW_THREADS
    status = asen_metrics_average_precision(scores.buf, relevant.buf, (size_t)scores.shape[0], &ap);
    Py_END_ALLOW_THREADS
    result = status == ASEN_OK ? PyFloat_FromDouble(ap) : asen_py_raise(status);
done:
    PyBuffer_Release(&scores);
    PyBuffer_Release(&relevant);
    return result;
}

/* Block by block: work without the GIL, then Ctrl-C, then the caller's progress. 0, or -1. */
static int rank_blocks(const Py_buffer *queries, const Py_buffer *candidates, const Py_buffer *q_values,
                       const Py_buffer *c_values, const Py_buffer *table, int threads, PyObject *progress)
{
    size_t total = (size_t)queries->shape[0], dim = (size_t)queries->shape[1];
    asen_ranker *ranker;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_ranker_create(candidates->buf, c_values->buf, (size_t)candidates->shape[0], dim, &ranker);
    Py_END_ALLOW_THREADS
    for (size_t start = 0; status == ASEN_OK && start < total; start += BLOCK) {
        size_t count = total - start < BLOCK ? total - start : BLOCK;
        Py_BEGIN_ALLOW_THREADS
        status = asen_ranker_measure(ranker, (const float *)queries->buf + start * dim,
                                     (const int64_t *)q_values->buf + start, count, start, threads,
                                     (double *)table->buf + start * ASEN_METRICS);
        Py_END_ALLOW_THREADS
        if (status != ASEN_OK)
            break;
        if (PyErr_CheckSignals() < 0)
            goto raised;
        if (progress != Py_None) {
            PyObject *answer = PyObject_CallFunction(progress, "nn", (Py_ssize_t)(start + count),
                                                     (Py_ssize_t)total);
            if (answer == NULL)
                goto raised;
            Py_DECREF(answer);
        }
    }
    asen_ranker_free(ranker);
    if (status != ASEN_OK)
        asen_py_raise(status);
    return status == ASEN_OK ? 0 : -1;
raised:
    asen_ranker_free(ranker);
    return -1;
}

PyDoc_STRVAR(retrieval_doc, "metrics_retrieval(queries, candidates, q_values, c_values, table, threads, "
                            "progress, /)\n--\n\n"
                            "table (Q, 6) float64 := AP, recall@1, recall@5, recall@10, precision@10 and MAP@R of\n"
                            "each of queries (Q, D) float32 over candidates (C, D) float32; relevant are the\n"
                            "candidates with c_values (C,) int64 equal to q_values (Q,) int64.\n"
                            "progress(done, total) is called after each block of queries, unless None.");

static PyObject *metrics_retrieval(PyObject *module, PyObject *args)
{
    Py_buffer queries = {0}, candidates = {0}, q_values = {0}, c_values = {0}, table = {0};
    PyObject *result = NULL;
    PyObject *in[5], *progress;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOOiO:metrics_retrieval", &in[0], &in[1], &in[2], &in[3], &in[4],
                          &threads, &progress)
        || get_buffer(in[0], "queries", 'f', 2, 0, &queries) < 0
        || get_buffer(in[1], "candidates", 'f', 2, 0, &candidates) < 0
        || get_buffer(in[2], "q_values", 'q', 1, 0, &q_values) < 0
        || get_buffer(in[3], "c_values", 'q', 1, 0, &c_values) < 0
        || get_buffer(in[4], "table", 'd', 2, 1, &table) < 0)
        goto done;
    if (queries.shape[1] != candidates.shape[1]) {
        PyErr_Format(PyExc_ValueError, "ranking: queries have %zd dimensions, candidates %zd",
                     queries.shape[1], candidates.shape[1]);
    } else if (q_values.shape[0] != queries.shape[0]) {
        PyErr_Format(PyExc_ValueError, "ranking: %zd queries, but %zd q_values",
                     queries.shape[0], q_values.shape[0]);
    } else if (c_values.shape[0] != candidates.shape[0]) {
        PyErr_Format(PyExc_ValueError, "ranking: %zd candidates, but %zd c_values",
                     candidates.shape[0], c_values.shape[0]);
    } else if (table.shape[0] != queries.shape[0] || table.shape[1] != ASEN_METRICS) {
        PyErr_Format(PyExc_ValueError, "ranking: table of shape (%zd, %zd), expected (%zd, %d)", table.shape[0],
                     table.shape[1], queries.shape[0], ASEN_METRICS);
    } else if (rank_blocks(&queries, &candidates, &q_values, &c_values, &table, threads, progress) == 0) {
        result = Py_NewRef(Py_None);
    }
done:
    PyBuffer_Release(&queries);
    PyBuffer_Release(&candidates);
    PyBuffer_Release(&q_values);
    PyBuffer_Release(&c_values);
    PyBuffer_Release(&table);
    return result;
}

PyDoc_STRVAR(confusion_doc, "metrics_confusion(truth, predicted, counts, /)\n--\n\n"
                            "counts (K, K) int64 := items by true class (row) and predicted class (column).");

static PyObject *metrics_confusion(PyObject *module, PyObject *args)
{
    Py_buffer truth = {0}, predicted = {0}, counts = {0};
    PyObject *in[3], *result = NULL;
    if (!PyArg_ParseTuple(args, "OOO:metrics_confusion", &in[0], &in[1], &in[2])
        || get_buffer(in[0], "truth", 'q', 1, 0, &truth) < 0
        || get_buffer(in[1], "predicted", 'q', 1, 0, &predicted) < 0
        || get_buffer(in[2], "counts", 'q', 2, 1, &counts) < 0)
        goto done;
    if (truth.shape[0] != predicted.shape[0] || counts.shape[0] != counts.shape[1]) {
        PyErr_SetString(PyExc_ValueError, "classification: truth and predictions differ in length");
        goto done;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_metrics_confusion(truth.buf, predicted.buf, (size_t)truth.shape[0],
                                    (size_t)counts.shape[0], counts.buf);
    Py_END_ALLOW_THREADS
    result = status == ASEN_OK ? Py_NewRef(Py_None) : asen_py_raise(status);
done:
    PyBuffer_Release(&truth);
    PyBuffer_Release(&predicted);
    PyBuffer_Release(&counts);
    return result;
}

static PyMethodDef methods[] = {
    {"metrics_rank", metrics_rank, METH_VARARGS, rank_doc},
    {"metrics_average_precision", metrics_average_precision, METH_VARARGS, ap_doc},
    {"metrics_retrieval", metrics_retrieval, METH_VARARGS, retrieval_doc},
    {"metrics_confusion", metrics_confusion, METH_VARARGS, confusion_doc},
    {NULL, NULL, 0, NULL},
};

int asen_py_add_metrics(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
