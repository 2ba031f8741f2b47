/* Methods of Tensor that change its shape and are more than a row of ops.def: built from the
 * view rows. */
#include "python/tensor.h"

static asen_tensor *self_tensor(PyObject *self) { return ((asen_py_tensor *)self)->tensor; }

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

static PyObject *method_flatten(PyObject *self, PyObject *args)
{
    asen_tensor *t = self_tensor(self);
    int start = 0;
    int64_t shape[ASEN_MAX_DIMS + 1];
    if (!PyArg_ParseTuple(args, "|i:flatten", &start) || (start = wrap_dim(start, t->ndim > 0 ? t->ndim : 1)) < 0)
        return NULL;
    memcpy(shape, t->shape, sizeof t->shape);
    shape[start] = asen_shape_count(t->ndim - start, t->shape + start);
    return reshaped(self, start + 1, shape);
}

static PyObject *method_unsqueeze(PyObject *self, PyObject *args)
{
    asen_tensor *t = self_tensor(self);
    int dim, n = 0;
    int64_t shape[ASEN_MAX_DIMS + 1];
    if (!PyArg_ParseTuple(args, "i:unsqueeze", &dim) || (dim = wrap_dim(dim, t->ndim + 1)) < 0)
        return NULL;
    for (int d = 0; d <= t->ndim; d++)
        shape[d] = d == dim ? 1 : t->shape[n++];
    return reshaped(self, t->ndim + 1, shape);
}

static PyObject *method_squeeze(PyObject *self, PyObject *args)
{
    asen_tensor *t = self_tensor(self);
    int dim = INT_MIN, n = 0;
    int64_t shape[ASEN_MAX_DIMS];
    if (!PyArg_ParseTuple(args, "|i:squeeze", &dim) || (dim != INT_MIN && (dim = wrap_dim(dim, t->ndim)) < 0))
        return NULL;
    for (int d = 0; d < t->ndim; d++)
        if (t->shape[d] != 1 || (dim != INT_MIN && d != dim))
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
    return asen_py_call_op(asen_py_state_of_tensor(self), ASEN_OP_reshape, self, args, n, NULL);
}

PyMethodDef asen_py_shape_methods[] = {
    {"view", (PyCFunction)(void (*)(void))method_view, METH_FASTCALL, "The same as reshape."},
    {"flatten", method_flatten, METH_VARARGS, "flatten(start_dim=0): the dims from start_dim on as one."},
    {"unsqueeze", method_unsqueeze, METH_VARARGS, "unsqueeze(dim): with a dim of size 1 inserted."},
    {"squeeze", method_squeeze, METH_VARARGS, "squeeze(dim=None): without the dims of size 1 (or that one)."},
    {"transpose", method_transpose, METH_VARARGS, "transpose(a, b): two dims swapped."},
    {"t", method_t, METH_NOARGS, "A matrix transposed."},
    {NULL},
};

/* ---- indexing: integers, slices, None, Ellipsis; or one int64 tensor that picks rows ---- */

typedef struct {
    asen_attrs slice;
    int64_t shape[ASEN_MAX_DIMS]; /* of the result: kept and inserted dims */
    int in, out;                  /* dims of the tensor used, of the result made */
    bool ellipsis;
} index_plan;

static int plan_dim(index_plan *plan, int64_t size)
{
    if (plan->out == ASEN_MAX_DIMS) {
        PyErr_Format(PyExc_IndexError, "the result would have more than %d dims", ASEN_MAX_DIMS);
        return -1;
    }
    plan->shape[plan->out++] = size;
    return 0;
}

static int plan_item(index_plan *plan, const asen_tensor *t, PyObject *item, Py_ssize_t rest)
{
    asen_list *start = &plan->slice.slice.start, *stop = &plan->slice.slice.stop, *step = &plan->slice.slice.step;
    if (item == Py_None)
        return plan_dim(plan, 1);
    if (item == Py_Ellipsis) {
        if (plan->ellipsis) {
            PyErr_SetString(PyExc_IndexError, "an index can have only one ...");
            return -1;
        }
        plan->ellipsis = true;
        for (; plan->in < t->ndim - rest; plan->in++)
            if (plan_dim(plan, t->shape[plan->in]) < 0)
                return -1;
        return 0;
    }
    if (plan->in >= t->ndim) {
        PyErr_Format(PyExc_IndexError, "too many indices for a tensor of %d dims", t->ndim);
        return -1;
    }
    int d = plan->in++;
    if (PySlice_Check(item)) {
        Py_ssize_t from, to, by;
        if (PySlice_Unpack(item, &from, &to, &by) < 0)
            return -1;
        if (by < 1) {
            PyErr_SetString(PyExc_ValueError, "slices of tensors need a positive step");
            return -1;
        }
        Py_ssize_t size = PySlice_AdjustIndices((Py_ssize_t)t->shape[d], &from, &to, by);
        start->item[d] = from;
        stop->item[d] = to;
        step->item[d] = by;
        return plan_dim(plan, size);
    }
    if (!PyIndex_Check(item) || PyBool_Check(item)) { /* elsewhere, True is a mask */
        PyErr_Format(PyExc_TypeError, "tensors are indexed by integers, slices, None, ... or an int64 tensor, not %.100s",
                     Py_TYPE(item)->tp_name);
        return -1;
    }
    Py_ssize_t i = PyNumber_AsSsize_t(item, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred())
        return -1;
    if (i < -t->shape[d] || i >= t->shape[d]) {
        PyErr_Format(PyExc_IndexError, "index %zd in dim %d of size %lld", i, d, (long long)t->shape[d]);
        return -1;
    }
    start->item[d] = i < 0 ? i + t->shape[d] : i;
    stop->item[d] = start->item[d] + 1;
    step->item[d] = 1;
    return 0;
}

PyObject *asen_py_index(PyObject *self, PyObject *key)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *t = self_tensor(self);
    if (state == NULL)
        return NULL;
    if (asen_py_is_tensor(state, key)) {
        asen_tensor *const in[2] = {t, self_tensor(key)};
        return asen_py_apply1(state, ASEN_OP_embedding, in, 2, NULL);
    }
    index_plan plan = {0};
    plan.slice.slice.start.count = plan.slice.slice.stop.count = plan.slice.slice.step.count = t->ndim;
    for (int d = 0; d < t->ndim; d++) {
        plan.slice.slice.stop.item[d] = t->shape[d];
        plan.slice.slice.step.item[d] = 1;
    }
    bool tuple = PyTuple_Check(key);
    Py_ssize_t n = tuple ? PyTuple_GET_SIZE(key) : 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t rest = 0; /* dims that the items after this one use */
        for (Py_ssize_t j = i + 1; j < n; j++)
            rest += PyTuple_GET_ITEM(key, j) != Py_None && PyTuple_GET_ITEM(key, j) != Py_Ellipsis;
        if (plan_item(&plan, t, tuple ? PyTuple_GET_ITEM(key, i) : key, rest) < 0)
            return NULL;
    }
    for (; plan.in < t->ndim; plan.in++)
        if (plan_dim(&plan, t->shape[plan.in]) < 0)
            return NULL;
    PyObject *view = asen_py_apply1(state, ASEN_OP_slice, &t, 1, &plan.slice);
    if (view == NULL)
        return NULL;
    PyObject *result = reshaped(view, plan.out, plan.shape);
    Py_DECREF(view);
    return result;
}
