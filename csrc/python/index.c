/* Indexing. Integers, slices, None and ... make views here (a slice, then a reshape); tensors, arrays, lists
 * and bools among the items are for asenpp/indexing.py, which composes them of ops. */
#include "python/tensor.h"

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
        PyErr_Format(PyExc_TypeError, "tensors are indexed by integers, slices, None, ..., bools, and tensors or lists of "
                     "integers or bools, not %.100s", Py_TYPE(item)->tp_name);
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

/* Whether an item is for asenpp/indexing.py. */
static bool is_advanced(asen_py_state *state, PyObject *item)
{
    return asen_py_is_tensor(state, item) || PyBool_Check(item) || PyList_Check(item) || asen_py_is_array(item) ||
           PyTuple_Check(item) || asen_py_is_numpy_bool(item);
}

static bool key_is_advanced(asen_py_state *state, PyObject *key)
{
    if (!PyTuple_Check(key))
        return is_advanced(state, key);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
        if (is_advanced(state, PyTuple_GET_ITEM(key, i)))
            return true;
    return false;
}

/* asenpp.indexing.<name>(self, key, value); value may be NULL. */
static PyObject *call_advanced(const char *name, PyObject *self, PyObject *key, PyObject *value)
{
    PyObject *indexing = PyImport_ImportModule("asenpp.indexing");
    PyObject *function = indexing == NULL ? NULL : PyObject_GetAttrString(indexing, name);
    PyObject *result = function == NULL ? NULL : PyObject_CallFunctionObjArgs(function, self, key, value, NULL);
    Py_XDECREF(function);
    Py_XDECREF(indexing);
    return result;
}

/* The view that the key's slices make, dims of integers kept with size 1; the plan says the shape asked for. */
static PyObject *sliced(PyObject *self, PyObject *key, index_plan *plan)
{
    asen_tensor *t = self_tensor(self);
    *plan = (index_plan){0};
    plan->slice.slice.start.count = plan->slice.slice.stop.count = plan->slice.slice.step.count = t->ndim;
    for (int d = 0; d < t->ndim; d++) {
        plan->slice.slice.stop.item[d] = t->shape[d];
        plan->slice.slice.step.item[d] = 1;
    }
    bool tuple = PyTuple_Check(key);
    Py_ssize_t n = tuple ? PyTuple_GET_SIZE(key) : 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t rest = 0; /* dims that the items after this one use */
        for (Py_ssize_t j = i + 1; j < n; j++)
            rest += PyTuple_GET_ITEM(key, j) != Py_None && PyTuple_GET_ITEM(key, j) != Py_Ellipsis;
        if (plan_item(plan, t, tuple ? PyTuple_GET_ITEM(key, i) : key, rest) < 0)
            return NULL;
    }
    for (; plan->in < t->ndim; plan->in++)
        if (plan_dim(plan, t->shape[plan->in]) < 0)
            return NULL;
    return asen_py_apply1(asen_py_state_of_tensor(self), ASEN_OP_slice, &t, 1, &plan->slice);
}

static PyObject *reshaped(PyObject *self, int ndim, const int64_t *shape)
{
    asen_tensor *t = self_tensor(self);
    asen_attrs attrs = {.reshape = {.shape = {.count = ndim}}};
    memcpy(attrs.reshape.shape.item, shape, (size_t)ndim * sizeof *shape);
    return asen_py_apply1(asen_py_state_of_tensor(self), ASEN_OP_reshape, &t, 1, &attrs);
}

PyObject *asen_py_index(PyObject *self, PyObject *key)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    index_plan plan;
    if (state == NULL)
        return NULL;
    if (key_is_advanced(state, key))
        return call_advanced("get", self, key, NULL);
    PyObject *view = sliced(self, key, &plan);
    PyObject *result = view == NULL ? NULL : reshaped(view, plan.out, plan.shape);
    Py_XDECREF(view);
    return result;
}

/* ---- assignment: self[key] = value, which is broadcast ---- */

/* `value` as a tensor that can be expanded to `ndim` dims: leading dims of size 1 beyond that are dropped. */
static PyObject *value_of(PyObject *self, PyObject *value, int ndim)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *t = self_tensor(self), *full;
    PyObject *number = asen_py_is_tensor(state, value) ? NULL : asen_py_as_number(value), *tensor;
    if (number == NULL && PyErr_Occurred())
        return NULL;
    if (number != NULL) {
        int failed = asen_py_full(t->storage->device, t->dtype, number, &full);
        Py_DECREF(number);
        return failed ? NULL : asen_py_wrap(state, full);
    }
    tensor = asen_py_from_any(state, value, false);
    while (tensor != NULL && self_tensor(tensor)->ndim > ndim && self_tensor(tensor)->shape[0] == 1)
        Py_SETREF(tensor, reshaped(tensor, self_tensor(tensor)->ndim - 1, self_tensor(tensor)->shape + 1));
    return tensor;
}

static PyObject *expanded(PyObject *value, const index_plan *plan)
{
    asen_tensor *t = self_tensor(value);
    asen_attrs attrs = {.expand = {.shape = {.count = plan->out}}};
    memcpy(attrs.expand.shape.item, plan->shape, sizeof plan->shape);
    return asen_py_apply1(asen_py_state_of_tensor(value), ASEN_OP_expand, &t, 1, &attrs);
}

int asen_py_set_index(PyObject *self, PyObject *key, PyObject *value)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    index_plan plan;
    if (state == NULL)
        return -1;
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "elements of a tensor cannot be deleted");
        return -1;
    }
    if (key_is_advanced(state, key)) {
        PyObject *done = call_advanced("put", self, key, value);
        Py_XDECREF(done);
        return done == NULL ? -1 : 0;
    }
    PyObject *view = sliced(self, key, &plan), *wide = NULL, *shaped = NULL, *done = NULL;
    PyObject *given = view == NULL ? NULL : value_of(self, value, plan.out);
    if (given != NULL)
        wide = expanded(given, &plan);
    if (wide != NULL)
        shaped = reshaped(wide, self_tensor(view)->ndim, self_tensor(view)->shape);
    if (shaped != NULL)
        done = PyObject_CallMethod(view, "copy_", "O", shaped);
    Py_XDECREF(view);
    Py_XDECREF(given);
    Py_XDECREF(wide);
    Py_XDECREF(shaped);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}
