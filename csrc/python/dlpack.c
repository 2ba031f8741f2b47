/* DLPack: tensors lent to and from other libraries without copying (dmlc.github.io/dlpack). */
#include "python/tensor.h"

/* The protocol's structs, version 0.8 (unversioned capsules). */
typedef struct { int32_t device_type, device_id; } dl_device;
typedef struct { uint8_t code, bits; uint16_t lanes; } dl_dtype;
typedef struct {
    void *data;
    dl_device device;
    int32_t ndim;
    dl_dtype dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;
typedef struct dl_managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *self);
} dl_managed;

enum { DL_CPU = 1, DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_BOOL = 6 };

static const dl_dtype dl_types[ASEN_DTYPE_COUNT] = {
    [ASEN_BOOL] = {DL_BOOL, 8, 1},   [ASEN_U8] = {DL_UINT, 8, 1},     [ASEN_I32] = {DL_INT, 32, 1},
    [ASEN_I64] = {DL_INT, 64, 1},    [ASEN_F16] = {DL_FLOAT, 16, 1},  [ASEN_BF16] = {DL_BFLOAT, 16, 1},
    [ASEN_F32] = {DL_FLOAT, 32, 1},  [ASEN_F64] = {DL_FLOAT, 64, 1},
};

typedef struct {
    dl_managed managed;
    asen_tensor *tensor;
} export_block;

static void export_delete(dl_managed *self)
{
    export_block *block = (export_block *)self;
    asen_storage_export_end(block->tensor->storage);
    asen_tensor_release(block->tensor);
    free(block);
}

static void capsule_delete(PyObject *capsule)
{
    if (!PyCapsule_IsValid(capsule, "dltensor"))
        return; /* taken: its new owner frees it */
    dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
    managed->deleter(managed);
}

static PyObject *dlpack(PyObject *self)
{
    asen_tensor *t = ((asen_py_tensor *)self)->tensor, *detached;
    if (asen_tape_wants_grad(t)) {
        PyErr_SetString(PyExc_BufferError, "DLPack: a tensor that requires a gradient: call detach() first");
        return NULL;
    }
    if (!t->storage->device->memory->host_memory) {
        PyErr_SetString(PyExc_BufferError, "DLPack: only tensors on the CPU can be exported");
        return NULL;
    }
    int status = asen_tensor_detach(t, &detached);
    if (status != ASEN_OK)
        return asen_py_raise(status);
    export_block *block = malloc(sizeof *block);
    if (block == NULL) {
        asen_tensor_release(detached);
        return PyErr_NoMemory();
    }
    block->tensor = detached;
    asen_storage_export_begin(t->storage);
    block->managed = (dl_managed){
        .tensor = {asen_tensor_data(detached), {DL_CPU, 0}, detached->ndim, dl_types[detached->dtype],
                   detached->shape, detached->stride, 0},
        .context = block,
        .deleter = export_delete,
    };
    PyObject *capsule = PyCapsule_New(&block->managed, "dltensor", capsule_delete);
    if (capsule == NULL)
        export_delete(&block->managed);
    return capsule;
}

/* What consumers ask for: `stream` and `max_version` change nothing on the CPU (the capsule is of the
 * unversioned kind, which every version takes), `copy` asks for memory of its own. */
static PyObject *method_dlpack(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None;
    int type = DL_CPU, id = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream, &version, &device, &copy))
        return NULL;
    if (device != Py_None && !PyArg_Parse(device, "(ii)", &type, &id))
        return NULL;
    if (type != DL_CPU || id != 0) {
        PyErr_SetString(PyExc_BufferError, "DLPack: only the CPU, device (1, 0), is offered");
        return NULL;
    }
    if (copy != Py_True || asen_tape_wants_grad(self_tensor(self))) /* a gradient is refused there */
        return dlpack(self);
    asen_tensor *tensor = self_tensor(self);
    const asen_attrs same = {.copy = {.dtype = tensor->dtype}};
    PyObject *clone = asen_py_apply1(asen_py_state_of_tensor(self), ASEN_OP_copy, &tensor, 1, &same);
    PyObject *capsule = clone == NULL ? NULL : dlpack(clone);
    Py_XDECREF(clone);
    return capsule;
}

static PyObject *method_dlpack_device(PyObject *self, PyObject *unused)
{
    if (!self_tensor(self)->storage->device->memory->host_memory) {
        PyErr_SetString(PyExc_BufferError, "DLPack: only tensors on the CPU can be exported");
        return NULL;
    }
    return Py_BuildValue("(ii)", DL_CPU, 0);
}

PyMethodDef asen_py_dlpack_methods[] = {
    {"__dlpack__", (PyCFunction)(void (*)(void))method_dlpack, METH_VARARGS | METH_KEYWORDS,
     "A DLPack capsule that shares memory."},
    {"__dlpack_device__", method_dlpack_device, METH_NOARGS, NULL},
    {0},
};

static void import_release(void *owner)
{
    dl_managed *managed = owner;
    if (managed->deleter == NULL || !Py_IsInitialized())
        return;
    PyGILState_STATE gil = PyGILState_Ensure(); /* the other library may need it */
    managed->deleter(managed);
    PyGILState_Release(gil);
}

static PyObject *import_managed(asen_py_state *state, PyObject *capsule)
{
    dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
    int64_t stride[ASEN_MAX_DIMS], reach = 1;
    asen_storage *storage;
    asen_tensor *tensor;
    int dtype = 0;
    if (managed == NULL)
        return NULL;
    if (managed->deleter == export_delete) { /* our own memory again, with its version */
        int status = asen_tensor_detach(((export_block *)managed)->tensor, &tensor);
        if (status != ASEN_OK)
            return asen_py_raise(status);
        PyCapsule_SetName(capsule, "used_dltensor");
        managed->deleter(managed);
        return asen_py_wrap(state, tensor);
    }
    const dl_tensor *t = &managed->tensor;
    while (dtype < ASEN_DTYPE_COUNT && memcmp(&dl_types[dtype], &t->dtype, sizeof t->dtype) != 0)
        dtype++;
    if (t->device.device_type != DL_CPU || dtype == ASEN_DTYPE_COUNT || t->ndim < 0 || t->ndim > ASEN_MAX_DIMS) {
        PyErr_SetString(PyExc_BufferError, "DLPack: only CPU tensors of the usual dtypes and at most 8 dims are taken");
        return NULL;
    }
    int64_t step = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        stride[d] = t->strides ? t->strides[d] : step;
        step *= t->shape[d];
        if (stride[d] < 0) {
            PyErr_SetString(PyExc_BufferError, "DLPack: negative strides are not taken");
            return NULL;
        }
        reach += (t->shape[d] - 1) * stride[d];
    }
    size_t bytes = step == 0 ? 0 : (size_t)reach * asen_dtype_size((asen_dtype)dtype);
    int status = asen_storage_wrap(asen_device_cpu(), (char *)t->data + t->byte_offset, bytes, import_release, managed,
                                   &storage);
    if (status != ASEN_OK)
        return asen_py_raise(status);
    PyCapsule_SetName(capsule, "used_dltensor");
    status = asen_tensor_view(storage, (asen_dtype)dtype, t->ndim, t->shape, stride, 0, &tensor);
    asen_storage_release(storage);
    return status == ASEN_OK ? asen_py_wrap(state, tensor) : asen_py_raise(status);
}

static PyObject *from_dlpack(PyObject *module, PyObject *object)
{
    PyObject *capsule = PyCapsule_CheckExact(object) ? Py_NewRef(object) : PyObject_CallMethod(object, "__dlpack__", NULL);
    PyObject *result = capsule == NULL ? NULL : import_managed(PyModule_GetState(module), capsule);
    Py_XDECREF(capsule);
    return result;
}

static PyMethodDef methods[] = {
    {"from_dlpack", from_dlpack, METH_O, "A tensor over the memory of any object with __dlpack__ (CPU)."},
    {0},
};

int asen_py_add_dlpack(PyObject *module) { return PyModule_AddFunctions(module, methods); }
