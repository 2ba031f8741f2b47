/* What copying and pickling in Python (asenpp/copying.py) need: the storage behind a tensor. */
#include "python/tensor.h"

static PyObject *storage_id(PyObject *module, PyObject *object)
{
    asen_tensor *tensor = asen_py_unwrap(PyModule_GetState(module), object, "storage_id: the argument");
    return tensor == NULL ? NULL : PyLong_FromUnsignedLongLong(tensor->storage->id);
}

static PyObject *storage_bytes(PyObject *module, PyObject *object)
{
    asen_py_state *state = PyModule_GetState(module);
    asen_tensor *tensor = asen_py_unwrap(state, object, "storage_bytes: the argument"), *bytes;
    if (tensor == NULL)
        return NULL;
    int64_t shape = (int64_t)tensor->storage->bytes, stride = 1;
    int status = asen_tensor_view(tensor->storage, ASEN_U8, 1, &shape, &stride, 0, &bytes);
    return status == ASEN_OK ? asen_py_wrap(state, bytes) : asen_py_raise(status);
}

static int take_ints(PyObject *tuple, const char *what, int64_t *out)
{
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    if (n > ASEN_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "storage_view: a %s of more than %d dims", what, ASEN_MAX_DIMS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
        if (out[i] == -1 && PyErr_Occurred())
            return -1;
        if (out[i] < 0) {
            PyErr_Format(PyExc_ValueError, "storage_view: %s %lld in dim %zd", what, (long long)out[i], i);
            return -1;
        }
    }
    return (int)n;
}

static PyObject *storage_view(PyObject *module, PyObject *args)
{
    asen_py_state *state = PyModule_GetState(module);
    PyObject *object, *name, *sizes, *strides = Py_None;
    long long offset = 0;
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    asen_dtype dtype;
    asen_tensor *view;
    if (!PyArg_ParseTuple(args, "OOO!|OL:storage_view", &object, &name, &PyTuple_Type, &sizes, &strides, &offset))
        return NULL;
    asen_tensor *tensor = asen_py_unwrap(state, object, "storage_view: the first argument");
    if (tensor == NULL || asen_py_dtype(name, &dtype) < 0)
        return NULL;
    int ndim = take_ints(sizes, "size", shape);
    if (ndim < 0)
        return NULL;
    if (strides == Py_None) {
        asen_dense_strides(ndim, shape, stride);
    } else if (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != ndim) {
        PyErr_Format(PyExc_TypeError, "storage_view: the strides are a tuple of %d integers", ndim);
        return NULL;
    } else if (take_ints(strides, "stride", stride) < 0) {
        return NULL;
    }
    int status = asen_tensor_view(tensor->storage, dtype, ndim, shape, stride, offset, &view);
    return status == ASEN_OK ? asen_py_wrap(state, view) : asen_py_raise(status);
}

static PyMethodDef functions[] = {
    {"storage_id", storage_id, METH_O, "A number that tells the tensor's storage from all others, past and present."},
    {"storage_bytes", storage_bytes, METH_O, "All bytes of the tensor's storage as a uint8 tensor that shares them."},
    {"storage_view", storage_view, METH_VARARGS,
     "storage_view(tensor, dtype, shape, stride=None, offset=0): another tensor over the storage of `tensor`, without "
     "gradient. Strides (default: of the dense layout) and offset are in elements of the dtype."},
    {0},
};

int asen_py_add_copying(PyObject *module) { return PyModule_AddFunctions(module, functions); }
