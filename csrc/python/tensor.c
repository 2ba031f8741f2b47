/* The type asenpp.Tensor: its making, properties, writes in place, autograd, and what Python asks of any object. */

#include "python/tensor.h"

#include <structmember.h>

#if PY_VERSION_HEX < 0x030B0000
#define PyType_GetModuleByDef _PyType_GetModuleByDef
#endif

asen_py_state *asen_py_state_of_module(PyObject *module) { return PyModule_GetState(module); }

asen_py_state *asen_py_state_of_tensor(PyObject *tensor)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(tensor), &asen_py_module_def);
    return module == NULL ? NULL : PyModule_GetState(module);
}

static PyObject *wrap_as(PyTypeObject *type, asen_tensor *tensor)
{
    asen_py_tensor *object = (asen_py_tensor *)type->tp_alloc(type, 0);
    if (object == NULL) {
        asen_tensor_release(tensor);
        return NULL;
    }
    object->tensor = tensor;
    return (PyObject *)object;
}

PyObject *asen_py_wrap(asen_py_state *state, asen_tensor *tensor) { return wrap_as(state->tensor_type, tensor); }

bool asen_py_is_tensor(asen_py_state *state, PyObject *object)
{
    return PyObject_TypeCheck(object, state->tensor_type);
}

asen_tensor *asen_py_unwrap(asen_py_state *state, PyObject *object, const char *what)
{
    if (asen_py_is_tensor(state, object))
        return self_tensor(object);
    PyErr_Format(PyExc_TypeError, "%s must be a Tensor, not %.100s", what, Py_TYPE(object)->tp_name);
    return NULL;
}

int asen_py_dtype(PyObject *object, asen_dtype *out)
{
    static const struct { const char *name; asen_dtype dtype; } aliases[] = {
        {"float", ASEN_F32}, {"double", ASEN_F64}, {"half", ASEN_F16}, {"int", ASEN_I32}, {"long", ASEN_I64}};
    const char *name = PyUnicode_Check(object) ? PyUnicode_AsUTF8(object) : NULL;
    if (name == NULL) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "a dtype is a name such as 'float32', not %.100s", Py_TYPE(object)->tp_name);
        return -1;
    }
    for (int d = 0; d < ASEN_DTYPE_COUNT; d++)
        if (strcmp(name, asen_dtype_name((asen_dtype)d)) == 0) {
            *out = (asen_dtype)d;
            return 0;
        }
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (strcmp(name, aliases[i].name) == 0) {
            *out = aliases[i].dtype;
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "unknown dtype '%s'", name);
    return -1;
}

/* ---- life ---- */

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", NULL};
    PyObject *data;
    asen_tensor *tensor;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Tensor", names, &data))
        return NULL;
    PyObject *module = PyType_GetModuleByDef(type, &asen_py_module_def);
    if (module == NULL)
        return NULL;
    PyObject *source = asen_py_from_any(PyModule_GetState(module), data, false);
    if (source == NULL)
        return NULL;
    int status = asen_tensor_detach(self_tensor(source), &tensor);
    Py_DECREF(source);
    return status == ASEN_OK ? wrap_as(type, tensor) : asen_py_raise(status);
}

static void tensor_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    asen_py_tensor *object = (asen_py_tensor *)self;
    if (object->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
    asen_tensor_release(object->tensor);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- properties ---- */

static PyObject *ints(const int64_t *values, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; i < n && tuple != NULL; i++) {
        PyObject *item = PyLong_FromLongLong(values[i]);
        if (item == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, item);
    }
    return tuple;
}

static PyObject *get_shape(PyObject *self, void *closure) { return ints(self_tensor(self)->shape, self_tensor(self)->ndim); }
static PyObject *get_ndim(PyObject *self, void *closure) { return PyLong_FromLong(self_tensor(self)->ndim); }
static PyObject *get_dtype(PyObject *self, void *closure)
{
    return PyUnicode_FromString(asen_dtype_name(self_tensor(self)->dtype));
}
static PyObject *get_device(PyObject *self, void *closure)
{
    return PyUnicode_FromString(self_tensor(self)->storage->device->name);
}
static PyObject *get_requires_grad(PyObject *self, void *closure) { return PyBool_FromLong(asen_tape_wants_grad(self_tensor(self))); }
static PyObject *get_is_leaf(PyObject *self, void *closure)
{
    return PyBool_FromLong(asen_tape_is_leaf(self_tensor(self)));
}

static PyObject *get_version(PyObject *self, void *closure)
{
    uint64_t edition;
    asen_storage_edition(self_tensor(self)->storage, &edition);
    return PyLong_FromUnsignedLongLong(edition);
}
static PyObject *get_memory(PyObject *self, void *closure)
{
    asen_tensor *tensor = self_tensor(self);
    return Py_BuildValue("(KL)", (unsigned long long)tensor->storage->id, (long long)tensor->offset);
}

static int set_requires_grad(PyObject *self, PyObject *value, void *closure)
{
    int on = value == NULL ? -1 : PyObject_IsTrue(value);
    if (on < 0) {
        if (value == NULL)
            PyErr_SetString(PyExc_TypeError, "requires_grad cannot be deleted");
        return -1;
    }
    int status = asen_tape_set_leaf(self_tensor(self), on);
    if (status != ASEN_OK)
        asen_py_raise(status);
    return status == ASEN_OK ? 0 : -1;
}

static PyObject *get_grad(PyObject *self, void *closure)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    if (state == NULL)
        return NULL;
    asen_node *leaf = asen_tape_leaf(self_tensor(self));
    asen_tensor *grad = leaf == NULL ? NULL : asen_tape_grad_get(leaf);
    asen_node_release(leaf);
    if (grad == NULL)
        Py_RETURN_NONE;
    return asen_py_wrap(state, grad);
}

static int set_grad(PyObject *self, PyObject *value, void *closure)
{
    asen_tensor *tensor = self_tensor(self), *grad = NULL;
    asen_node *leaf;
    if (value != NULL && value != Py_None) {
        asen_py_state *state = asen_py_state_of_tensor(self);
        asen_tensor *given = state == NULL ? NULL : asen_py_unwrap(state, value, "grad");
        if (given == NULL)
            return -1;
        leaf = asen_tape_leaf(tensor);
        if (leaf == NULL || !asen_tensor_same_shape(given, tensor) || given->dtype != tensor->dtype) {
            asen_node_release(leaf);
            PyErr_SetString(PyExc_ValueError, "grad: a leaf that requires a gradient takes one of its shape and dtype");
            return -1;
        }
        int status = asen_tensor_detach(given, &grad);
        if (status != ASEN_OK) {
            asen_node_release(leaf);
            asen_py_raise(status);
            return -1;
        }
    } else {
        leaf = asen_tape_leaf(tensor);
    }
    if (leaf != NULL)
        asen_tape_grad_set(leaf, grad);
    asen_node_release(leaf);
    return 0;
}

static PyGetSetDef getset[] = {
    {"shape", get_shape, NULL, "Sizes of the dims, a tuple of int.", NULL},
    {"ndim", get_ndim, NULL, "Number of dims.", NULL},
    {"dtype", get_dtype, NULL, "Name of the element type: 'float32', 'float64', 'int64', 'uint8', ...", NULL},
    {"device", get_device, NULL, "Name of the device: 'cpu' or 'cuda'.", NULL},
    {"requires_grad", get_requires_grad, set_requires_grad,
     "Whether backward computes a gradient for or through this tensor.", NULL},
    {"is_leaf", get_is_leaf, NULL, "Whether this tensor is not the recorded result of an op.", NULL},
    {"_version", get_version, NULL,
     "A number that moves after every write into this memory; all views share it. A NumPy or DLPack view that could write "
     "counts as one write when it ends.", NULL},
    {"_memory", get_memory, NULL,
     "(storage, offset): equal where two tensors begin at the same element of the same memory.", NULL},
    {"grad", get_grad, set_grad, "The gradient that backward accumulated here, or None. Assign None to clear it.", NULL},
    {0},
};

/* ---- writes in place ---- */

static PyObject *method_copy_(PyObject *self, PyObject *source)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    PyObject *given = state == NULL ? NULL : asen_py_from_any(state, source, false);
    if (given == NULL)
        return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_inplace_copy(self_tensor(self), self_tensor(given));
    Py_END_ALLOW_THREADS
    Py_DECREF(given);
    return status == ASEN_OK ? Py_NewRef(self) : asen_py_raise(status);
}

static PyObject *method_fill_(PyObject *self, PyObject *value)
{
    asen_tensor *tensor = self_tensor(self), *full;
    PyObject *number = asen_py_as_number(value);
    if (number == NULL) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "fill_ wants a number, not %.100s", Py_TYPE(value)->tp_name);
        return NULL;
    }
    int failed = asen_py_full(tensor->storage->device, tensor->dtype, number, &full);
    Py_DECREF(number);
    if (failed)
        return NULL;
    int status = asen_inplace_fill(tensor, full);
    asen_tensor_release(full);
    return status == ASEN_OK ? Py_NewRef(self) : asen_py_raise(status);
}

static PyObject *method_zero_(PyObject *self, PyObject *unused)
{
    PyObject *zero = PyLong_FromLong(0), *result = zero == NULL ? NULL : method_fill_(self, zero);
    Py_XDECREF(zero);
    return result;
}

/* ---- autograd ---- */

static PyObject *method_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"gradient", "retain_graph", NULL};
    PyObject *gradient = Py_None;
    int retain = 0;
    asen_py_state *state = asen_py_state_of_tensor(self);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "|Op:backward", names, &gradient, &retain))
        return NULL;
    asen_tensor *seed = NULL;
    if (gradient != Py_None && (seed = asen_py_unwrap(state, gradient, "gradient")) == NULL)
        return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_tape_backward(self_tensor(self), seed, retain);
    Py_END_ALLOW_THREADS
    if (status != ASEN_OK)
        return asen_py_raise(status);
    Py_RETURN_NONE;
}

static PyObject *method_requires_grad_(PyObject *self, PyObject *args)
{
    int on = 1;
    if (!PyArg_ParseTuple(args, "|p:requires_grad_", &on))
        return NULL;
    int status = asen_tape_set_leaf(self_tensor(self), on);
    return status == ASEN_OK ? Py_NewRef(self) : asen_py_raise(status);
}

static PyObject *method_size(PyObject *self, PyObject *args)
{
    int dim = INT_MIN;
    asen_tensor *tensor = self_tensor(self);
    if (!PyArg_ParseTuple(args, "|i:size", &dim))
        return NULL;
    if (dim == INT_MIN)
        return get_shape(self, NULL);
    if (dim < -tensor->ndim || dim >= tensor->ndim) {
        PyErr_Format(PyExc_IndexError, "dim %d of a tensor of %d dims", dim, tensor->ndim);
        return NULL;
    }
    return PyLong_FromLongLong(tensor->shape[dim < 0 ? dim + tensor->ndim : dim]);
}

static PyObject *method_stride(PyObject *self, PyObject *unused) { return ints(self_tensor(self)->stride, self_tensor(self)->ndim); }
static PyObject *method_storage_offset(PyObject *self, PyObject *unused) { return PyLong_FromLongLong(self_tensor(self)->offset); }
static PyObject *method_numel(PyObject *self, PyObject *unused) { return PyLong_FromLongLong(asen_tensor_count(self_tensor(self))); }
static PyObject *method_data_ptr(PyObject *self, PyObject *unused)
{
    asen_storage_export_begin(self_tensor(self)->storage); /* without end: an address has none */
    return PyLong_FromVoidPtr(asen_tensor_data(self_tensor(self)));
}

PyMethodDef asen_py_tensor_methods[] = {
    {"copy_", method_copy_, METH_O, "Copies another tensor's or array's values into this one (broadcast)."},
    {"fill_", method_fill_, METH_O, "Sets every element to a number."},
    {"zero_", method_zero_, METH_NOARGS, "Sets every element to 0."},
    {"backward", (PyCFunction)(void (*)(void))method_backward, METH_VARARGS | METH_KEYWORDS,
     "backward(gradient=None, retain_graph=False): adds the gradients of this tensor to .grad of the leaves."},
    {"requires_grad_", method_requires_grad_, METH_VARARGS, "Sets requires_grad and returns the tensor."},
    {"size", method_size, METH_VARARGS, "size(): the shape; size(dim): the size of one dim."},
    {"stride", method_stride, METH_NOARGS, "Strides in elements."},
    {"storage_offset", method_storage_offset, METH_NOARGS, "Elements before the first one in the storage."},
    {"numel", method_numel, METH_NOARGS, "Number of elements."},
    {"data_ptr", method_data_ptr, METH_NOARGS,
     "Address of the first element. Who has it can write there: nothing is kept of this memory's values from here on."},
    {0},
};

/* ---- as a number, as a sequence, as text ---- */

static PyObject *nb_float(PyObject *a)
{
    PyObject *item = asen_py_item(a), *value = item == NULL ? NULL : PyNumber_Float(item);
    Py_XDECREF(item);
    return value;
}
static PyObject *nb_int(PyObject *a)
{
    PyObject *item = asen_py_item(a), *value = item == NULL ? NULL : PyNumber_Long(item);
    Py_XDECREF(item);
    return value;
}
static int nb_bool(PyObject *a)
{
    if (asen_tensor_count(self_tensor(a)) != 1) {
        PyErr_Format(PyExc_ValueError, "the truth of a tensor of shape %s is ambiguous: use any() or all()",
                     ASEN_SHAPE_TEXT(self_tensor(a)));
        return -1;
    }
    PyObject *item = asen_py_item(a);
    int value = item == NULL ? -1 : PyObject_IsTrue(item);
    Py_XDECREF(item);
    return value;
}

static Py_ssize_t length(PyObject *self)
{
    if (self_tensor(self)->ndim == 0) {
        PyErr_SetString(PyExc_TypeError, "a tensor without dims has no length");
        return -1;
    }
    return (Py_ssize_t)self_tensor(self)->shape[0];
}

static PyObject *get_row(PyObject *self, Py_ssize_t i) /* iteration */
{
    if (length(self) < 0)
        return NULL;
    PyObject *key = PyLong_FromSsize_t(i), *row = key == NULL ? NULL : asen_py_index(self, key);
    Py_XDECREF(key);
    return row;
}

static PyObject *repr(PyObject *self)
{
    asen_tensor *t = self_tensor(self);
    const char *grad = !asen_tape_wants_grad(t) ? "" : asen_tape_is_leaf(t) ? ", requires_grad=True" : ", grad_fn";
    PyObject *array = asen_py_values(self), *result = NULL;
    PyErr_Clear();
    PyObject *text = array != NULL ? PyObject_Str(array) : PyUnicode_FromString("...");
    if (text != NULL)
        result = PyUnicode_FromFormat("tensor(%U, shape=%s, dtype=%s, device=%s%s)", text, ASEN_SHAPE_TEXT(t),
                                      asen_dtype_name(t->dtype), t->storage->device->name, grad);
    Py_XDECREF(array);
    Py_XDECREF(text);
    return result;
}

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(asen_py_tensor, weakrefs), READONLY, NULL},
    {0},
};

/* The methods that are written in Python: METHODS of asenpp/composed.py. */
static int add_python_methods(PyObject *type)
{
    PyObject *composed = PyImport_ImportModule("asenpp.composed"), *name, *method;
    PyObject *methods = composed == NULL ? NULL : PyObject_GetAttrString(composed, "METHODS");
    Py_ssize_t at = 0;
    int failed = methods == NULL || !PyDict_Check(methods);
    while (!failed && PyDict_Next(methods, &at, &name, &method))
        failed = PyObject_SetAttr(type, name, method) < 0;
    if (failed && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "asenpp.composed.METHODS must be a dict");
    Py_XDECREF(methods);
    Py_XDECREF(composed);
    return failed ? -1 : 0;
}

int asen_py_add_tensor(PyObject *module)
{
    static PyType_Slot slots[] = {
        {Py_tp_doc, "An array of one dtype on one device that can remember how it was made.\n\n"
                    "Tensor(data): from a tensor (shares memory), a NumPy array (shares memory where it can), or "
                    "anything NumPy makes an array of."},
        {Py_tp_new, tensor_new},
        {Py_tp_dealloc, tensor_dealloc},
        {Py_tp_repr, repr},
        {Py_tp_getset, getset},
        {Py_tp_members, members},
        {Py_nb_float, nb_float},
        {Py_nb_int, nb_int},
        {Py_nb_bool, nb_bool},
        {Py_mp_length, length},
        {Py_mp_subscript, asen_py_index},
        {Py_mp_ass_subscript, asen_py_set_index},
        {Py_sq_item, get_row},
        ASEN_PY_OPERATORS,
        {0, NULL},
    };
    static PyType_Spec spec = {"asenpp._asen.Tensor", sizeof(asen_py_tensor), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
    asen_py_state *state = PyModule_GetState(module);
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    state->tensor_type = (PyTypeObject *)type;
    PyMethodDef *tables[] = {asen_py_op_methods(),      asen_py_tensor_methods, asen_py_convert_methods,
                             asen_py_dlpack_methods, asen_py_shape_methods,  asen_py_operator_methods};
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (PyMethodDef *def = tables[t]; def->ml_name != NULL; def++) {
            if (tables[t] == asen_py_op_methods() && !asen_py_is_method(def->ml_name))
                continue;
            PyObject *method = PyDescr_NewMethod(state->tensor_type, def);
            int failed = method == NULL || PyObject_SetAttrString(type, def->ml_name, method) < 0;
            Py_XDECREF(method);
            if (failed)
                return -1;
        }
    /* NumPy's arrays and scalars leave operators with a tensor to the tensor: they would compute an
     * array, and lose the gradient. */
    PyObject *priority = PyFloat_FromDouble(1000);
    int failed = priority == NULL || PyObject_SetAttrString(type, "__array_priority__", priority) < 0;
    Py_XDECREF(priority);
    failed = failed || add_python_methods(type) < 0;
    return failed ? -1 : PyModule_AddObjectRef(module, "Tensor", type);
}
