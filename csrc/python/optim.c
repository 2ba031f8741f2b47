/* Optimizer steps and the scaling of gradients, over lists of tensors. */
#include "python/tensor.h"

typedef struct {
    Py_ssize_t count;
    void **data;        /* device pointers */
    asen_tensor **held; /* owned: the list may change while the step runs without the GIL */
} tensor_list;

static void list_release(tensor_list *list)
{
    for (Py_ssize_t i = 0; i < list->count && list->held != NULL; i++)
        asen_tensor_release(list->held[i]);
    PyMem_Free(list->data);
    PyMem_Free(list->held);
}

/* The tensors were written, wholly or up to an error. */
static void list_written(const tensor_list *list)
{
    for (Py_ssize_t i = 0; i < list->count; i++)
        asen_storage_written(list->held[i]->storage);
}

/* A list of tensors like `model` (or of any, for the first): dense, of equal lengths. */
static int take_list(asen_py_state *state, PyObject *list, PyObject *model, const char *what, tensor_list *out,
                     int64_t *length)
{
    if (!PyList_Check(list) || (model != NULL && PyList_GET_SIZE(list) != PyList_GET_SIZE(model))) {
        PyErr_Format(PyExc_TypeError, "%s must be a list of tensors, one for each parameter", what);
        return -1;
    }
    out->count = PyList_GET_SIZE(list);
    out->data = PyMem_Calloc((size_t)out->count + 1, sizeof(void *));
    out->held = PyMem_Calloc((size_t)out->count + 1, sizeof(asen_tensor *));
    if (out->data == NULL || out->held == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < out->count; i++) {
        asen_tensor *t = asen_py_unwrap(state, PyList_GET_ITEM(list, i), what);
        if (t == NULL)
            return -1;
        out->held[i] = asen_tensor_retain(t);
        asen_tensor *like = model == NULL ? t : ((asen_py_tensor *)PyList_GET_ITEM(model, i))->tensor;
        asen_tensor *first = model == NULL ? out->held[0] : like;
        if (!asen_tensor_is_dense(t) || !asen_tensor_same_shape(t, like) || t->dtype != first->dtype ||
            t->storage->device != first->storage->device) {
            PyErr_Format(PyExc_ValueError, "%s %zd is %s %s: it must be contiguous and of its parameter's shape, dtype and device",
                         what, i, ASEN_SHAPE_TEXT(t), asen_dtype_name(t->dtype));
            return -1;
        }
        out->data[i] = asen_tensor_data(t);
        if (length != NULL)
            length[i] = asen_tensor_count(t);
    }
    return 0;
}

static int set_kind(asen_optim_call *call, const char *kind)
{
    if (strcmp(kind, "sgd") == 0)
        call->kind = ASEN_SGD;
    else if (strcmp(kind, "adam") == 0)
        call->kind = ASEN_ADAM;
    else if (strcmp(kind, "adamw") == 0)
        call->kind = ASEN_ADAMW;
    else {
        PyErr_Format(PyExc_ValueError, "an optimizer is 'sgd', 'adam' or 'adamw', not '%s'", kind);
        return -1;
    }
    return 0;
}

static bool lacks_states(const asen_optim_call *call, PyObject *const *lists)
{
    bool two = call->kind != ASEN_SGD, one = two || call->momentum != 0;
    return (one && lists[2] == Py_None) || (two && lists[3] == Py_None);
}

/* The step over lists that fit together, without the GIL. */
static int run(asen_optim_call *call, const tensor_list *taken, const int64_t *length)
{
    const asen_tensor *first = taken[0].held[0];
    call->dtype = first->dtype;
    call->device = first->storage->device;
    call->count = taken[0].count;
    call->param = taken[0].data;
    call->grad = (const void *const *)taken[1].data;
    call->state1 = taken[2].data;
    call->state2 = taken[3].data;
    call->length = length;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = call->device->backend->optim_step(call->device->backend->self, call);
    for (int l = 0; l < 4; l++)
        if (l != 1) /* gradients are only read */
            list_written(&taken[l]);
    Py_END_ALLOW_THREADS
    return status;
}

static PyObject *optim_step(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"kind", "params", "grads", "state1", "state2", "step", "lr", "momentum", "dampening",
                            "beta1", "beta2", "eps", "weight_decay", "nesterov", NULL};
    static const char *const what[4] = {"parameter", "gradient", "state1", "state2"};
    const char *kind;
    PyObject *lists[4] = {NULL, NULL, Py_None, Py_None}, *result = NULL;
    tensor_list taken[4] = {0};
    long long step = 1;
    asen_optim_call call = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!O!OOLd|ddddddp:optim_step", names, &kind, &PyList_Type, &lists[0],
                                     &PyList_Type, &lists[1], &lists[2], &lists[3], &step, &call.lr, &call.momentum,
                                     &call.dampening, &call.beta1, &call.beta2, &call.eps, &call.weight_decay,
                                     &call.nesterov) ||
        set_kind(&call, kind) < 0)
        return NULL;
    if (step < 1)
        return PyErr_Format(PyExc_ValueError, "optimizer steps count from 1, not %lld", step);
    call.step = step;
    if (PyList_GET_SIZE(lists[0]) == 0)
        Py_RETURN_NONE;
    if (lacks_states(&call, lists))
        return PyErr_Format(PyExc_TypeError, "%s needs its state tensors", kind);
    int64_t *length = PyMem_Calloc((size_t)PyList_GET_SIZE(lists[0]), sizeof *length);
    if (length == NULL)
        return PyErr_NoMemory();
    for (int l = 0; l < 4; l++)
        if (lists[l] != Py_None &&
            take_list(PyModule_GetState(module), lists[l], l ? lists[0] : NULL, what[l], &taken[l], l ? NULL : length) < 0)
            goto done;
    int status = run(&call, taken, length);
    result = status == ASEN_OK ? Py_NewRef(Py_None) : asen_py_raise(status);
done:
    for (int l = 0; l < 4; l++)
        list_release(&taken[l]);
    PyMem_Free(length);
    return result;
}

static PyObject *unscale(PyObject *module, PyObject *args)
{
    PyObject *list, *result = NULL;
    double factor;
    tensor_list taken = {0};
    bool finite = true;
    if (!PyArg_ParseTuple(args, "O!d:unscale", &PyList_Type, &list, &factor))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(list);
    if (count == 0)
        Py_RETURN_TRUE;
    int64_t *length = PyMem_Calloc((size_t)count, sizeof *length);
    if (length == NULL)
        return PyErr_NoMemory();
    if (take_list(PyModule_GetState(module), list, NULL, "gradient", &taken, length) == 0) {
        int status;
        asen_tensor *first = taken.held[0];
        const asen_backend *b = first->storage->device->backend;
        Py_BEGIN_ALLOW_THREADS
        status = b->unscale == NULL
                     ? asen_fail(ASEN_ERR_UNSUPPORTED, "%s cannot scale gradients", b->name)
                     : b->unscale(b->self, first->dtype, count, taken.data, length, factor, &finite);
        list_written(&taken);
        Py_END_ALLOW_THREADS
        result = status == ASEN_OK ? PyBool_FromLong(finite) : asen_py_raise(status);
    }
    list_release(&taken);
    PyMem_Free(length);
    return result;
}

static PyMethodDef functions[] = {
    {"optim_step", (PyCFunction)(void (*)(void))optim_step, METH_VARARGS | METH_KEYWORDS,
     "One optimizer step over lists of tensors, in place: see asenpp.optim."},
    {"unscale", unscale, METH_VARARGS, "unscale(tensors, factor): multiplies them in place; whether all elements were finite."},
    {0},
};

int asen_py_add_optim(PyObject *module) { return PyModule_AddFunctions(module, functions); }
