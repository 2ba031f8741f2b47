/* NumPy in and out: the only file that includes NumPy's headers. */
#include "python/tensor.h"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#include <numpy/arrayobject.h>

static const int numpy_type[ASEN_DTYPE_COUNT] = {
    [ASEN_BOOL] = NPY_BOOL,  [ASEN_U8] = NPY_UINT8, [ASEN_I32] = NPY_INT32, [ASEN_I64] = NPY_INT64,
    [ASEN_F16] = NPY_HALF,   [ASEN_BF16] = -1,      [ASEN_F32] = NPY_FLOAT, [ASEN_F64] = NPY_DOUBLE,
};

/* A storage may die in a thread without the GIL. */
static void release_array(void *owner)
{
    if (!Py_IsInitialized())
        return;
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF((PyObject *)owner);
    PyGILState_Release(gil);
}

PyObject *asen_py_to_numpy(PyObject *self)
{
    asen_tensor *t = ((asen_py_tensor *)self)->tensor;
    npy_intp shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    if (numpy_type[t->dtype] < 0) {
        PyErr_Format(PyExc_TypeError, "NumPy has no %s: convert with .float() first", asen_dtype_name(t->dtype));
        return NULL;
    }
    for (int d = 0; d < t->ndim; d++) {
        shape[d] = (npy_intp)t->shape[d];
        stride[d] = (npy_intp)(t->stride[d] * (int64_t)asen_dtype_size(t->dtype));
    }
    PyObject *array = PyArray_New(&PyArray_Type, t->ndim, shape, numpy_type[t->dtype], stride, asen_tensor_data(t), 0,
                                  NPY_ARRAY_WRITEABLE, NULL);
    if (array == NULL)
        return NULL;
    atomic_store(&t->storage->exported, true);
    Py_INCREF(self);
    if (PyArray_SetBaseObject((PyArrayObject *)array, self) < 0) { /* steals, also when it fails */
        Py_DECREF(array);
        return NULL;
    }
    PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_ALIGNED | NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS);
    return array;
}

static int dtype_of(PyArrayObject *array, asen_dtype *out)
{
    for (int d = 0; d < ASEN_DTYPE_COUNT; d++)
        if (numpy_type[d] >= 0 && PyArray_EquivTypenums(PyArray_TYPE(array), numpy_type[d])) {
            *out = (asen_dtype)d;
            return 0;
        }
    PyErr_Format(PyExc_TypeError, "no tensor of NumPy's %S: use bool, uint8, int32, int64, float16, float32 or float64",
                 (PyObject *)PyArray_DESCR(array));
    return -1;
}

/* Shares memory where strides are whole elements and the array can be written. Steals `array`. */
static PyObject *from_array(asen_py_state *state, PyArrayObject *array, bool always_copy)
{
    asen_dtype dtype;
    asen_storage *storage = NULL;
    asen_tensor *tensor = NULL;
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    bool shares = !always_copy && PyArray_ISBEHAVED(array);
    if (dtype_of(array, &dtype) < 0)
        goto fail;
    if (PyArray_NDIM(array) > ASEN_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "an array of %d dims; a tensor has at most %d", PyArray_NDIM(array), ASEN_MAX_DIMS);
        goto fail;
    }
    npy_intp size = (npy_intp)asen_dtype_size(dtype);
    for (int d = 0; d < PyArray_NDIM(array); d++)
        shares = shares && PyArray_STRIDE(array, d) >= 0 && PyArray_STRIDE(array, d) % size == 0;
    if (!shares) {
        PyArrayObject *copy = (PyArrayObject *)PyArray_FromArray(
            array, PyArray_DescrFromType(numpy_type[dtype]), NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY);
        Py_DECREF(array);
        array = copy;
        if (array == NULL)
            return NULL;
    }
    int64_t reach = size;
    bool empty = false;
    for (int d = 0; d < PyArray_NDIM(array); d++) {
        shape[d] = PyArray_DIM(array, d);
        stride[d] = PyArray_STRIDE(array, d) / size;
        empty |= shape[d] == 0;
        reach += (shape[d] - 1) * PyArray_STRIDE(array, d);
    }
    int status = asen_storage_wrap(asen_device_cpu(), PyArray_DATA(array), empty ? 0 : (size_t)reach, release_array,
                                   array, &storage);
    if (status != ASEN_OK) {
        asen_py_raise(status);
        goto fail;
    }
    status = asen_tensor_view(storage, dtype, PyArray_NDIM(array), shape, stride, 0, &tensor);
    asen_storage_release(storage); /* owns `array` */
    return status == ASEN_OK ? asen_py_wrap(state, tensor) : asen_py_raise(status);
fail:
    Py_DECREF(array);
    return NULL;
}

PyObject *asen_py_from_any(asen_py_state *state, PyObject *object, bool always_copy)
{
    if (asen_py_is_tensor(state, object) && !always_copy)
        return Py_NewRef(object);
    PyObject *array = PyArray_FROM_O(object);
    return array == NULL ? NULL : from_array(state, (PyArrayObject *)array, always_copy);
}

static PyObject *from_numpy(PyObject *module, PyObject *object)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "from_numpy wants a NumPy array, not %.100s", Py_TYPE(object)->tp_name);
        return NULL;
    }
    return from_array(PyModule_GetState(module), (PyArrayObject *)Py_NewRef(object), false);
}

static PyMethodDef methods[] = {
    {"from_numpy", from_numpy, METH_O,
     "A tensor over a NumPy array's memory; a copy where the array is read-only or has odd strides."},
    {NULL},
};

int asen_py_add_numpy(PyObject *module)
{
    import_array1(-1);
    return PyModule_AddFunctions(module, methods);
}
