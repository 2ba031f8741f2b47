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

/* The base of a writable array, a capsule of this name: the export ends with the last array over the memory. */
static const char lent[] = "asenpp.memory";

static void export_end(PyObject *capsule)
{
    asen_tensor *tensor = PyCapsule_GetPointer(capsule, lent);
    asen_storage_export_end(tensor->storage);
    asen_tensor_release(tensor);
}

static PyObject *export_begin(asen_tensor *tensor)
{
    PyObject *capsule = PyCapsule_New(tensor, lent, export_end);
    if (capsule == NULL)
        return NULL;
    asen_tensor_retain(tensor);
    asen_storage_export_begin(tensor->storage);
    return capsule;
}

PyObject *asen_py_to_numpy(PyObject *self, bool writable)
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
                                  writable ? NPY_ARRAY_WRITEABLE : 0, NULL);
    if (array == NULL)
        return NULL;
    PyObject *base = writable ? export_begin(t) : Py_NewRef(self);
    if (base == NULL || PyArray_SetBaseObject((PyArrayObject *)array, base) < 0) { /* steals, also when it fails */
        Py_DECREF(array);
        return NULL;
    }
    PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_ALIGNED | NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS);
    return array;
}

bool asen_py_is_array(PyObject *object) { return PyArray_Check(object); }
bool asen_py_is_numpy_bool(PyObject *object) { return PyArray_IsScalar(object, Bool); }

PyObject *asen_py_numpy_item(PyObject *object)
{
    bool value = PyArray_IsScalar(object, Generic) || (PyArray_Check(object) && PyArray_NDIM((PyArrayObject *)object) == 0);
    return value ? PyObject_CallMethod(object, "item", NULL) : NULL;
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

/* The storage that an array was lent the memory of, borrowed, and where the array begins in it; NULL where the memory is
 * somebody else's. */
static asen_storage *lender(PyArrayObject *array, int64_t *offset)
{
    PyObject *base = (PyObject *)array;
    while (base != NULL && PyArray_Check(base))
        base = PyArray_BASE((PyArrayObject *)base);
    if (base == NULL || !PyCapsule_IsValid(base, lent))
        return NULL;
    asen_storage *storage = ((asen_tensor *)PyCapsule_GetPointer(base, lent))->storage;
    *offset = ((char *)PyArray_DATA(array) - (char *)storage->data) / PyArray_ITEMSIZE(array);
    bool whole = (char *)storage->data + *offset * PyArray_ITEMSIZE(array) == (char *)PyArray_DATA(array);
    return whole ? storage : NULL;
}

/* Whether nobody else can reach the array or its memory: our reference is the only one, and a weak reference could be
 * made one. */
static bool is_unshared(PyArrayObject *array)
{
    return Py_REFCNT((PyObject *)array) == 1 && PyArray_BASE(array) == NULL && PyArray_CHKFLAGS(array, NPY_ARRAY_OWNDATA) &&
           *PyObject_GET_WEAKREFS_LISTPTR((PyObject *)array) == NULL;
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
    bool unshared = is_unshared(array);
    for (int d = 0; d < PyArray_NDIM(array); d++) {
        shape[d] = PyArray_DIM(array, d);
        stride[d] = PyArray_STRIDE(array, d) / size;
        empty |= shape[d] == 0;
        reach += (shape[d] - 1) * PyArray_STRIDE(array, d);
    }
    int64_t offset = 0;
    storage = lender(array, &offset);
    if (storage != NULL) { /* our own memory again, with its version */
        int status = asen_tensor_view(storage, dtype, PyArray_NDIM(array), shape, stride, offset, &tensor);
        Py_DECREF(array);
        return status == ASEN_OK ? asen_py_wrap(state, tensor) : asen_py_raise(status);
    }
    int status = asen_storage_wrap(asen_device_cpu(), PyArray_DATA(array), empty ? 0 : (size_t)reach, release_array,
                                   array, &storage);
    if (status != ASEN_OK) {
        asen_py_raise(status);
        goto fail;
    }
    if (unshared)
        storage->foreign = false;
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

static PyObject *to_numpy_readonly(PyObject *module, PyObject *object)
{
    asen_tensor *t = asen_py_unwrap(PyModule_GetState(module), object, "the argument");
    if (t == NULL)
        return NULL;
    if (!t->storage->device->memory->host_memory) {
        PyErr_Format(PyExc_ValueError, "NumPy reads memory of the CPU, not of %s: call .to('cpu') first",
                     t->storage->device->name);
        return NULL;
    }
    return asen_py_to_numpy(object, false);
}

static PyObject *owned(PyObject *module, PyObject *object)
{
    asen_py_state *state = PyModule_GetState(module);
    PyObject *given = asen_py_from_any(state, object, false);
    if (given == NULL)
        return NULL;
    asen_tensor *t = ((asen_py_tensor *)given)->tensor, *result = NULL;
    int status;
    if (!t->storage->foreign && asen_tensor_is_dense(t))
        status = asen_tensor_detach(t, &result);
    else
        status = asen_tensor_new(t->storage->device, t->dtype, t->ndim, t->shape, &result);
    if (status == ASEN_OK && result->storage != t->storage) {
        Py_BEGIN_ALLOW_THREADS
        status = asen_tensor_copy_into(result, t);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(given);
    if (status == ASEN_OK) {
        result->unwritable = false; /* whoever owns it writes it */
        return asen_py_wrap(state, result);
    }
    asen_tensor_release(result);
    return asen_py_raise(status);
}

static PyMethodDef methods[] = {
    {"from_numpy", from_numpy, METH_O,
     "A tensor over a NumPy array's memory; a copy where the array is read-only or has odd strides."},
    {"to_numpy_readonly", to_numpy_readonly, METH_O,
     "The values of a tensor on the CPU as an array that cannot be written: numpy() lends the memory for writing, after "
     "which nothing made from the values can be kept until the array is gone."},
    {"owned", owned, METH_O,
     "A tensor, an array or what NumPy makes an array of as a dense tensor, without gradient, of memory that is ours: "
     "a copy where others could write there."},
    {0},
};

int asen_py_add_numpy(PyObject *module)
{
    import_array1(-1);
    return PyModule_AddFunctions(module, methods);
}
