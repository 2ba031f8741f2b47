/* Tensors as arrays and numbers, in other dtypes, on other devices and in other memory. */
#include "python/tensor.h"

static PyObject *to_host(PyObject *self)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *tensor = self_tensor(self), *host;
    if (state == NULL)
        return NULL;
    if (tensor->storage->device->memory->host_memory)
        return Py_NewRef(self);
    int status = asen_tensor_new(asen_device_cpu(), tensor->dtype, tensor->ndim, tensor->shape, &host);
    if (status != ASEN_OK)
        return asen_py_raise(status);
    Py_BEGIN_ALLOW_THREADS
    status = asen_tensor_copy_into(host, tensor);
    Py_END_ALLOW_THREADS
    if (status != ASEN_OK) {
        asen_tensor_release(host);
        return asen_py_raise(status);
    }
    return asen_py_wrap(state, host);
}

static PyObject *to_numpy(PyObject *self, bool writable)
{
    if (asen_tape_wants_grad(self_tensor(self))) {
        PyErr_SetString(PyExc_RuntimeError, "numpy() of a tensor that requires a gradient: call detach() first");
        return NULL;
    }
    PyObject *host = to_host(self);
    PyObject *array = host == NULL ? NULL : asen_py_to_numpy(host, writable);
    Py_XDECREF(host);
    return array;
}

static PyObject *method_numpy(PyObject *self, PyObject *unused) { return to_numpy(self, true); }

static PyObject *method_array(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype", "copy", NULL};
    PyObject *dtype = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:__array__", names, &dtype, &copy))
        return NULL;
    PyObject *array = to_numpy(self, copy != Py_True);
    if (array != NULL && dtype != Py_None) /* astype(dtype, order, casting, subok, copy) */
        Py_SETREF(array, PyObject_CallMethod(array, "astype", "OssOO", dtype, "K", "unsafe", Py_True,
                                             copy == Py_True ? Py_True : Py_False));
    else if (array != NULL && copy == Py_True)
        Py_SETREF(array, PyObject_CallMethod(array, "copy", NULL));
    return array;
}

static PyObject *convert(PyObject *self, asen_dtype dtype);

PyObject *asen_py_values(PyObject *self)
{
    PyObject *known = self_tensor(self)->dtype == ASEN_BF16 ? convert(self, ASEN_F32) : Py_NewRef(self);
    PyObject *host = known == NULL ? NULL : to_host(known);
    PyObject *array = host == NULL ? NULL : asen_py_to_numpy(host, false);
    Py_XDECREF(known);
    Py_XDECREF(host);
    return array;
}

PyObject *asen_py_item(PyObject *self)
{
    if (asen_tensor_count(self_tensor(self)) != 1) {
        PyErr_Format(PyExc_ValueError, "item() wants one element, this tensor has shape %s",
                     ASEN_SHAPE_TEXT(self_tensor(self)));
        return NULL;
    }
    PyObject *array = asen_py_values(self);
    PyObject *value = array == NULL ? NULL : PyObject_CallMethod(array, "item", NULL);
    Py_XDECREF(array);
    return value;
}

static PyObject *method_item(PyObject *self, PyObject *unused) { return asen_py_item(self); }

static PyObject *method_tolist(PyObject *self, PyObject *unused)
{
    PyObject *array = asen_py_values(self);
    PyObject *value = array == NULL ? NULL : PyObject_CallMethod(array, "tolist", NULL);
    Py_XDECREF(array);
    return value;
}

/* What to() is called with. */
typedef struct {
    PyObject *target, *dtype_name, *device_name; /* borrowed; or None */
    int copy;
    asen_dtype dtype; /* what is meant */
    asen_device *device;
} to_call;

static int to_error(const char *message)
{
    PyErr_SetString(PyExc_TypeError, message);
    return -1;
}

/* A tensor says both; a name is a dtype if it is one, else a device. */
static int to_read_target(asen_py_state *state, to_call *call)
{
    if (call->target == Py_None)
        return 0;
    if (asen_py_is_tensor(state, call->target)) {
        if (call->dtype_name != Py_None || call->device_name != Py_None)
            return to_error("to: a tensor says both dtype and device: give it alone");
        call->dtype = self_tensor(call->target)->dtype;
        call->device = self_tensor(call->target)->storage->device;
        return 0;
    }
    if (asen_py_dtype(call->target, &call->dtype) == 0)
        return call->dtype_name == Py_None ? 0 : to_error("to: the dtype is given twice");
    if (!PyErr_ExceptionMatches(PyExc_ValueError))
        return -1;
    PyErr_Clear();
    if (call->device_name != Py_None)
        return to_error("to: the device is given twice");
    call->device_name = call->target;
    return 0;
}

static int to_read_names(to_call *call)
{
    if (call->dtype_name != Py_None && asen_py_dtype(call->dtype_name, &call->dtype) < 0)
        return -1;
    if (call->device_name == Py_None)
        return 0;
    const char *name = PyUnicode_Check(call->device_name) ? PyUnicode_AsUTF8(call->device_name) : NULL;
    if (name == NULL)
        return PyErr_Occurred() ? -1 : to_error("a device is a name such as 'cpu'");
    return asen_py_device(name, &call->device);
}

/* Between devices, recorded. */
static PyObject *moved(asen_py_state *state, asen_tensor *tensor, asen_device *device, asen_dtype dtype)
{
    const asen_attrs attrs = {.copy = {.dtype = dtype}};
    asen_tensor *result;
    int status = asen_tensor_new(device, dtype, tensor->ndim, tensor->shape, &result);
    if (status != ASEN_OK)
        return asen_py_raise(status);
    Py_BEGIN_ALLOW_THREADS
    status = asen_tensor_copy_into(result, tensor);
    Py_END_ALLOW_THREADS
    if (status == ASEN_OK)
        status = asen_tape_record(ASEN_OP_copy, &tensor, &tensor, NULL, 1, &attrs, &result, 1);
    if (status == ASEN_OK)
        return asen_py_wrap(state, result);
    asen_tensor_release(result);
    return asen_py_raise(status);
}

/* to('float64'), to('cuda'), to(tensor), to(dtype=..., device=...). non_blocking is accepted, and nothing to do: copies
 * are ordered by the queue of the device. */
static PyObject *method_to(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"target", "dtype", "device", "non_blocking", "copy", NULL};
    int non_blocking = 0;
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *tensor = self_tensor(self);
    asen_device *own = tensor->storage->device;
    to_call call = {Py_None, Py_None, Py_None, 0, tensor->dtype, own};
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "|OOO$pp:to", names, &call.target, &call.dtype_name,
                                                      &call.device_name, &non_blocking, &call.copy) ||
        to_read_target(state, &call) < 0 || to_read_names(&call) < 0)
        return NULL;
    if (call.device != own)
        return moved(state, tensor, call.device, call.dtype);
    if (call.dtype == tensor->dtype && !call.copy)
        return Py_NewRef(self);
    const asen_attrs attrs = {.copy = {.dtype = call.dtype}};
    return asen_py_apply1(state, ASEN_OP_copy, &tensor, 1, &attrs);
}

static PyObject *convert(PyObject *self, asen_dtype dtype)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *tensor = self_tensor(self);
    asen_attrs attrs = {.copy = {.dtype = dtype}};
    if (state == NULL)
        return NULL;
    return tensor->dtype == dtype ? Py_NewRef(self) : asen_py_apply1(state, ASEN_OP_copy, &tensor, 1, &attrs);
}

static PyObject *method_float(PyObject *self, PyObject *unused) { return convert(self, ASEN_F32); }
static PyObject *method_double(PyObject *self, PyObject *unused) { return convert(self, ASEN_F64); }
static PyObject *method_half(PyObject *self, PyObject *unused) { return convert(self, ASEN_F16); }
static PyObject *method_bfloat16(PyObject *self, PyObject *unused) { return convert(self, ASEN_BF16); }
static PyObject *method_long(PyObject *self, PyObject *unused) { return convert(self, ASEN_I64); }
static PyObject *method_int(PyObject *self, PyObject *unused) { return convert(self, ASEN_I32); }
static PyObject *method_bool(PyObject *self, PyObject *unused) { return convert(self, ASEN_BOOL); }

static PyObject *method_clone(PyObject *self, PyObject *unused)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *tensor = self_tensor(self);
    asen_attrs attrs = {.copy = {.dtype = tensor->dtype}};
    return state == NULL ? NULL : asen_py_apply1(state, ASEN_OP_copy, &tensor, 1, &attrs);
}

static PyObject *method_contiguous(PyObject *self, PyObject *unused)
{
    return asen_tensor_is_dense(self_tensor(self)) ? Py_NewRef(self) : method_clone(self, NULL);
}

static PyObject *method_is_contiguous(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(asen_tensor_is_dense(self_tensor(self)));
}

static PyObject *method_detach(PyObject *self, PyObject *unused)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *tensor;
    if (state == NULL)
        return NULL;
    int status = asen_tensor_detach(self_tensor(self), &tensor);
    return status == ASEN_OK ? asen_py_wrap(state, tensor) : asen_py_raise(status);
}

PyMethodDef asen_py_convert_methods[] = {
    {"numpy", method_numpy, METH_NOARGS, "The values as a NumPy array that shares memory (on the CPU)."},
    {"__array__", (PyCFunction)(void (*)(void))method_array, METH_VARARGS | METH_KEYWORDS, NULL},
    {"item", method_item, METH_NOARGS, "The one element as a Python number."},
    {"tolist", method_tolist, METH_NOARGS, "The values as nested lists."},
    {"to", (PyCFunction)(void (*)(void))method_to, METH_VARARGS | METH_KEYWORDS,
     "to(dtype, device or tensor whose both are meant): the tensor converted or moved; itself where nothing changes, but for "
     "copy=True. Gradients flow back, also between devices."},
    {"float", method_float, METH_NOARGS, "to('float32')."},
    {"double", method_double, METH_NOARGS, "to('float64')."},
    {"half", method_half, METH_NOARGS, "to('float16')."},
    {"bfloat16", method_bfloat16, METH_NOARGS, "to('bfloat16')."},
    {"long", method_long, METH_NOARGS, "to('int64'): truncates."},
    {"int", method_int, METH_NOARGS, "to('int32'): truncates."},
    {"bool", method_bool, METH_NOARGS, "to('bool'): whether an element is not 0."},
    {"clone", method_clone, METH_NOARGS, "A dense copy; gradients flow through it."},
    {"contiguous", method_contiguous, METH_NOARGS, "The tensor in the dense layout (channels-last for 4 dims)."},
    {"is_contiguous", method_is_contiguous, METH_NOARGS, "Whether the tensor is in the dense layout."},
    {"detach", method_detach, METH_NOARGS, "The same values and memory, without gradient."},
    {0},
};
