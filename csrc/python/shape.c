/* Methods of Tensor that change its shape and are more than a row of ops.def: built from the
 * view rows. */
#include "python/tensor.h"

static PyObject *reshaped(PyObject *self, int ndim, const int64_t *shape)
{
    asen_tensor *tensor = self_tensor(self);
    asen_attrs attrs = {.reshape = {.shape = {.count = ndim}}};
    if (ndim > ASEN_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "a tensor has at most %d dims", ASEN_MAX_DIMS);
        return NULL;
    }
    memcpy(attrs.reshape.shape.item, shape, (size_t)ndim * sizeof *shape);
    return asen_py_apply1(asen_py_state_of_tensor(self), ASEN_OP_reshape, &tensor, 1, &attrs);
}

static int wrap_dim(int dim, int ndim)
{
    if (dim >= -ndim && dim < ndim)
        return dim < 0 ? dim + ndim : dim;
    PyErr_Format(PyExc_IndexError, "dim %d of a tensor of %d dims", dim, ndim);
    return -1;
}

static PyObject *method_flatten(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"start_dim", "end_dim", NULL};
    asen_tensor *t = self_tensor(self);
    int start = 0, end = -1, dims = t->ndim > 0 ? t->ndim : 1, n = 0;
    int64_t shape[ASEN_MAX_DIMS + 1];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|ii:flatten", names, &start, &end) ||
        (start = wrap_dim(start, dims)) < 0 || (end = wrap_dim(end, dims)) < 0)
        return NULL;
    if (start > end) {
        PyErr_Format(PyExc_ValueError, "flatten: start_dim %d lies behind end_dim %d", start, end);
        return NULL;
    }
    for (int d = 0; d < start; d++)
        shape[n++] = t->shape[d];
    shape[n++] = t->ndim == 0 ? 1 : asen_shape_count(end - start + 1, t->shape + start);
    for (int d = end + 1; d < t->ndim; d++)
        shape[n++] = t->shape[d];
    return reshaped(self, n, shape);
}

static PyObject *method_unsqueeze(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dim", NULL};
    asen_tensor *t = self_tensor(self);
    int dim, n = 0;
    int64_t shape[ASEN_MAX_DIMS + 1];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:unsqueeze", names, &dim) || (dim = wrap_dim(dim, t->ndim + 1)) < 0)
        return NULL;
    for (int d = 0; d <= t->ndim; d++)
        shape[d] = d == dim ? 1 : t->shape[n++];
    return reshaped(self, t->ndim + 1, shape);
}

/* A bit for each dim of an int or a tuple of ints. */
static int dims_given(PyObject *given, int ndim, unsigned *bits)
{
    PyObject *tuple = PyIndex_Check(given) ? PyTuple_Pack(1, given) : PySequence_Tuple(given);
    int failed = tuple == NULL ? -1 : 0;
    *bits = 0;
    for (Py_ssize_t i = 0; failed == 0 && i < PyTuple_GET_SIZE(tuple); i++) {
        long dim = PyLong_AsLong(PyTuple_GET_ITEM(tuple, i));
        int wrapped = dim == -1 && PyErr_Occurred() ? -1 : wrap_dim(dim < INT_MIN || dim > INT_MAX ? INT_MAX : (int)dim, ndim);
        failed = wrapped < 0 ? -1 : 0;
        *bits |= failed ? 0 : 1u << wrapped;
    }
    Py_XDECREF(tuple);
    return failed;
}

static PyObject *method_squeeze(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dim", NULL};
    asen_tensor *t = self_tensor(self);
    PyObject *given = Py_None;
    int n = 0;
    unsigned bits = ~0u;
    int64_t shape[ASEN_MAX_DIMS];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:squeeze", names, &given) ||
        (given != Py_None && dims_given(given, t->ndim > 0 ? t->ndim : 1, &bits) < 0))
        return NULL;
    for (int d = 0; d < t->ndim; d++)
        if (t->shape[d] != 1 || !(bits >> d & 1))
            shape[n++] = t->shape[d];
    return reshaped(self, n, shape);
}

static PyObject *swapped(PyObject *self, int a, int b)
{
    asen_tensor *t = self_tensor(self);
    asen_attrs attrs = {.permute = {.dims = {.count = t->ndim}}};
    for (int d = 0; d < t->ndim; d++)
        attrs.permute.dims.item[d] = d == a ? b : d == b ? a : d;
    return asen_py_apply1(asen_py_state_of_tensor(self), ASEN_OP_permute, &t, 1, &attrs);
}

static PyObject *method_transpose(PyObject *self, PyObject *args)
{
    int a, b, ndim = self_tensor(self)->ndim;
    if (!PyArg_ParseTuple(args, "ii:transpose", &a, &b) || (a = wrap_dim(a, ndim)) < 0 || (b = wrap_dim(b, ndim)) < 0)
        return NULL;
    return swapped(self, a, b);
}

static PyObject *method_t(PyObject *self, PyObject *unused)
{
    if (self_tensor(self)->ndim == 2)
        return swapped(self, 0, 1);
    PyErr_Format(PyExc_ValueError, "t() wants two dims, this tensor has %d", self_tensor(self)->ndim);
    return NULL;
}

static PyObject *method_view(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    PyObject *result = asen_py_call_op(asen_py_state_of_tensor(self), ASEN_OP_reshape, self, args, n, NULL);
    if (result != NULL && self_tensor(result)->storage != self_tensor(self)->storage)
        self_tensor(result)->unwritable = true;
    return result;
}

PyMethodDef asen_py_shape_methods[] = {
    {"view", (PyCFunction)(void (*)(void))method_view, METH_FASTCALL, "reshape(); a copy that the layout asks for cannot be written in place, since the write would not reach this tensor."},
    {"flatten", (PyCFunction)(void (*)(void))method_flatten, METH_VARARGS | METH_KEYWORDS,
     "flatten(start_dim=0, end_dim=-1): the dims from start_dim to end_dim as one."},
    {"unsqueeze", (PyCFunction)(void (*)(void))method_unsqueeze, METH_VARARGS | METH_KEYWORDS,
     "unsqueeze(dim): with a dim of size 1 inserted."},
    {"squeeze", (PyCFunction)(void (*)(void))method_squeeze, METH_VARARGS | METH_KEYWORDS,
     "squeeze(dim=None): without the dims of size 1, or without those of the given ones that have size 1."},
    {"transpose", method_transpose, METH_VARARGS, "transpose(a, b): two dims swapped."},
    {"t", method_t, METH_NOARGS, "A matrix transposed."},
    {0},
};
