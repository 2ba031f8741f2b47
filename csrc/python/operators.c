/* Operators of Tensor, comparisons among them, and the methods that differ from a row of ops.def.
 *
 * Operands are brought to one dtype by promote.c. `==` compares element by element, while tensors hash by
 * identity: dicts and sets ask for identity first, so a tensor is a key for what it is, not for what it holds. */
#include "python/tensor.h"

/* The state, from whichever of a and b is a tensor. */
static asen_py_state *state_of(PyObject *a, PyObject *b)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(a), &asen_py_module_def);
    if (module == NULL) {
        PyErr_Clear();
        module = PyType_GetModuleByDef(Py_TYPE(b), &asen_py_module_def);
    }
    return module == NULL ? NULL : PyModule_GetState(module);
}

/* Applies op to two operands of any kind; NotImplemented where one is none. */
static PyObject *binary(asen_op op, const asen_attrs *attrs, int how, PyObject *a, PyObject *b)
{
    asen_py_state *state = state_of(a, b);
    asen_tensor *operand[2];
    PyObject *const object[2] = {a, b};
    if (state == NULL)
        return NULL;
    int failed = asen_py_promote(state, asen_op_get(op)->name, how, object, 2, NULL, operand);
    if (failed > 0)
        Py_RETURN_NOTIMPLEMENTED;
    PyObject *result = failed < 0 ? NULL : asen_py_apply1(state, op, operand, 2, attrs);
    if (failed == 0) {
        asen_tensor_release(operand[0]);
        asen_tensor_release(operand[1]);
    }
    return result;
}

PyObject *asen_py_nb_add(PyObject *a, PyObject *b) { return binary(ASEN_OP_add, NULL, ASEN_PY_ADDS, a, b); }
PyObject *asen_py_nb_subtract(PyObject *a, PyObject *b) { return binary(ASEN_OP_sub, NULL, ASEN_PY_ADDS, a, b); }
PyObject *asen_py_nb_multiply(PyObject *a, PyObject *b) { return binary(ASEN_OP_mul, NULL, ASEN_PY_ADDS, a, b); }
PyObject *asen_py_nb_true_divide(PyObject *a, PyObject *b) { return binary(ASEN_OP_div, NULL, ASEN_PY_DIVIDES, a, b); }

/* Integers alone: the row div rounds down. */
PyObject *asen_py_nb_floor_divide(PyObject *a, PyObject *b)
{
    asen_py_state *state = state_of(a, b);
    asen_tensor *operand[2];
    PyObject *const object[2] = {a, b}, *result = NULL;
    if (state == NULL)
        return NULL;
    int failed = asen_py_promote(state, "//", ASEN_PY_ADDS, object, 2, NULL, operand);
    if (failed > 0)
        Py_RETURN_NOTIMPLEMENTED;
    if (failed < 0)
        return NULL;
    if (asen_dtype_is_float(operand[0]->dtype) || operand[0]->dtype == ASEN_BOOL)
        PyErr_Format(PyExc_TypeError, "// is for integers, not for %s", asen_dtype_name(operand[0]->dtype));
    else
        result = asen_py_apply1(state, ASEN_OP_div, operand, 2, NULL);
    asen_tensor_release(operand[0]);
    asen_tensor_release(operand[1]);
    return result;
}

PyObject *asen_py_nb_matrix_multiply(PyObject *a, PyObject *b)
{
    asen_py_state *state = state_of(a, b);
    if (state == NULL)
        return NULL;
    PyObject *args[2] = {a, b};
    for (int i = 0; i < 2; i++) /* arrays are refused here: NumPy would multiply */
        if (!asen_py_is_tensor(state, args[i]) && !PyNumber_Check(args[i]))
            Py_RETURN_NOTIMPLEMENTED;
    return asen_py_call_op(state, ASEN_OP_matmul, NULL, args, 2, NULL);
}

PyObject *asen_py_nb_negative(PyObject *a)
{
    return asen_py_call_op(asen_py_state_of_tensor(a), ASEN_OP_neg, a, NULL, 0, NULL);
}

PyObject *asen_py_nb_power(PyObject *a, PyObject *b, PyObject *modulus)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(a), &asen_py_module_def);
    PyObject *number = NULL;
    if (module == NULL)
        PyErr_Clear(); /* number ** tensor */
    else
        number = asen_py_as_number(b);
    if (number == NULL) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NOTIMPLEMENTED;
    }
    PyObject *result = asen_py_call_op(PyModule_GetState(module), ASEN_OP_pow, a, &number, 1, NULL);
    Py_DECREF(number);
    return result;
}

/* ---- in place: self becomes the result, as part of the graph (autograd/inplace.h) ---- */

static PyObject *in_place(const char *name, asen_op op, const asen_attrs *attrs, int how, PyObject *a, PyObject *b)
{
    asen_py_state *state = asen_py_state_of_tensor(a);
    asen_tensor *self = self_tensor(a), *operand[2];
    PyObject *const object[2] = {a, b};
    if (state == NULL)
        return NULL;
    int failed = asen_py_promote(state, name, how, object, 2, NULL, operand);
    if (failed > 0)
        Py_RETURN_NOTIMPLEMENTED;
    if (failed < 0)
        return NULL;
    int status = ASEN_OK;
    if (operand[0]->dtype == self->dtype) {
        asen_tensor *in[2] = {self, operand[1]};
        asen_tensor_retain(self);
        Py_BEGIN_ALLOW_THREADS
        status = asen_inplace_apply(op, in, 2, attrs);
        asen_tensor_release(self);
        Py_END_ALLOW_THREADS
        if (status != ASEN_OK)
            asen_py_raise(status);
    } else {
        PyErr_Format(PyExc_TypeError, "%s: the result is %s, but x is %s and keeps its dtype", name,
                     asen_dtype_name(operand[0]->dtype), asen_dtype_name(self->dtype));
        failed = -1;
    }
    asen_tensor_release(operand[0]);
    asen_tensor_release(operand[1]);
    return failed == 0 && status == ASEN_OK ? Py_NewRef(a) : NULL;
}

PyObject *asen_py_nb_inplace_add(PyObject *a, PyObject *b) { return in_place("+=", ASEN_OP_add, NULL, ASEN_PY_ADDS, a, b); }
PyObject *asen_py_nb_inplace_subtract(PyObject *a, PyObject *b) { return in_place("-=", ASEN_OP_sub, NULL, ASEN_PY_ADDS, a, b); }
PyObject *asen_py_nb_inplace_multiply(PyObject *a, PyObject *b) { return in_place("*=", ASEN_OP_mul, NULL, ASEN_PY_ADDS, a, b); }
PyObject *asen_py_nb_inplace_true_divide(PyObject *a, PyObject *b)
{
    return in_place("/=", ASEN_OP_div, NULL, ASEN_PY_DIVIDES, a, b);
}

static bool is_of_kind(PyObject *a, bool bools, const char *name)
{
    asen_dtype dtype = self_tensor(a)->dtype;
    if (bools ? dtype == ASEN_BOOL : dtype != ASEN_BOOL && !asen_dtype_is_float(dtype))
        return true;
    PyErr_Format(PyExc_TypeError, "%s is for %s, not for %s", name, bools ? "bool tensors" : "integers", asen_dtype_name(dtype));
    return false;
}

PyObject *asen_py_nb_inplace_floor_divide(PyObject *a, PyObject *b)
{
    return is_of_kind(a, false, "//=") ? in_place("//=", ASEN_OP_div, NULL, ASEN_PY_ADDS, a, b) : NULL;
}
PyObject *asen_py_nb_inplace_and(PyObject *a, PyObject *b)
{
    return is_of_kind(a, true, "&=") ? in_place("&=", ASEN_OP_mul, NULL, ASEN_PY_ADDS, a, b) : NULL;
}
PyObject *asen_py_nb_inplace_or(PyObject *a, PyObject *b)
{
    return is_of_kind(a, true, "|=") ? in_place("|=", ASEN_OP_add, NULL, ASEN_PY_ADDS, a, b) : NULL;
}
PyObject *asen_py_nb_inplace_xor(PyObject *a, PyObject *b)
{
    const asen_attrs attrs = {.compare = {.relation = Py_NE}};
    return is_of_kind(a, true, "^=") ? in_place("^=", ASEN_OP_compare, &attrs, ASEN_PY_ADDS, a, b) : NULL;
}

/* ---- comparisons ---- */

PyObject *asen_py_compare(PyObject *a, PyObject *b, int relation)
{
    _Static_assert(Py_LT == 0 && Py_LE == 1 && Py_EQ == 2 && Py_NE == 3 && Py_GT == 4 && Py_GE == 5,
                   "the row compare counts its relations as Python does");
    const asen_attrs attrs = {.compare = {.relation = relation}};
    return binary(ASEN_OP_compare, &attrs, ASEN_PY_COMPARES, a, b);
}

Py_hash_t asen_py_hash(PyObject *self) { return PyBaseObject_Type.tp_hash(self); }

/* ---- of bools: and is the product, or and xor are comparisons of the operands ---- */

static PyObject *logical(PyObject *a, PyObject *b, const char *name, asen_op op, int relation)
{
    asen_py_state *state = state_of(a, b);
    asen_tensor *operand[2];
    PyObject *const object[2] = {a, b};
    const asen_attrs attrs = {.compare = {.relation = relation}};
    if (state == NULL)
        return NULL;
    int failed = asen_py_promote(state, name, ASEN_PY_ADDS, object, 2, NULL, operand);
    if (failed > 0)
        Py_RETURN_NOTIMPLEMENTED;
    if (failed < 0)
        return NULL;
    PyObject *result = NULL;
    if (operand[0]->dtype != ASEN_BOOL)
        PyErr_Format(PyExc_TypeError, "%s is for bool tensors, not for %s: compare first, as in (x != 0) %s mask", name,
                     asen_dtype_name(operand[0]->dtype), name);
    else
        result = asen_py_apply1(state, op, operand, 2, op == ASEN_OP_compare ? &attrs : NULL);
    asen_tensor_release(operand[0]);
    asen_tensor_release(operand[1]);
    return result;
}

PyObject *asen_py_nb_and(PyObject *a, PyObject *b) { return logical(a, b, "&", ASEN_OP_mul, 0); }
PyObject *asen_py_nb_or(PyObject *a, PyObject *b) { return logical(a, b, "|", ASEN_OP_add, 0); }
PyObject *asen_py_nb_xor(PyObject *a, PyObject *b) { return logical(a, b, "^", ASEN_OP_compare, Py_NE); }

PyObject *asen_py_nb_invert(PyObject *a)
{
    PyObject *no = Py_False;
    if (self_tensor(a)->dtype == ASEN_BOOL)
        return asen_py_compare(a, no, Py_EQ);
    PyErr_Format(PyExc_TypeError, "~ is for bool tensors, not for %s", asen_dtype_name(self_tensor(a)->dtype));
    return NULL;
}

/* ---- methods ---- */

bool asen_py_is_method(const char *op)
{
    static const char *const not[] = {"normalize_pixels", "conv2d_fused", "compare", "where", "sort", "gather",
                                      "max", "div", "sub", "add", "mul"};
    for (size_t i = 0; i < sizeof not / sizeof *not; i++)
        if (strcmp(op, not[i]) == 0)
            return false;
    return strstr(op, "_grad") == NULL;
}

/* The row keeps the dtype; sums of bools and small integers are int64 here, so that they count. */
static PyObject *method_sum(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)
{
    asen_py_state *state = asen_py_state_of_tensor(self);
    asen_tensor *tensor = self_tensor(self);
    if (state == NULL)
        return NULL;
    if (asen_dtype_is_float(tensor->dtype) || tensor->dtype == ASEN_I64)
        return asen_py_call_op(state, ASEN_OP_sum, self, args, n, kwnames);
    const asen_attrs attrs = {.copy = {.dtype = ASEN_I64}};
    PyObject *wide = asen_py_apply1(state, ASEN_OP_copy, &tensor, 1, &attrs);
    PyObject *result = wide == NULL ? NULL : asen_py_call_op(state, ASEN_OP_sum, wide, args, n, kwnames);
    Py_XDECREF(wide);
    return result;
}

PyMethodDef asen_py_operator_methods[] = {
    {"sum", (PyCFunction)(void (*)(void))method_sum, METH_FASTCALL | METH_KEYWORDS,
     "Sum over dims (all where none are given); of bools and integers in int64."},
    {0},
};

/* ---- functions ---- */

/* where(condition, a, b) with operands of any kind; they go to the condition's device where they are numbers. */
static PyObject *choose(PyObject *module, PyObject *args)
{
    asen_py_state *state = PyModule_GetState(module);
    PyObject *condition, *object[2], *result = NULL;
    asen_tensor *in[3];
    if (!PyArg_ParseTuple(args, "OOO:where", &condition, &object[0], &object[1]))
        return NULL;
    in[0] = asen_py_unwrap(state, condition, "where: condition");
    if (in[0] == NULL)
        return NULL;
    int failed = asen_py_promote(state, "where", ASEN_PY_ADDS, object, 2, in[0]->storage->device, in + 1);
    if (failed > 0)
        PyErr_Format(PyExc_TypeError, "where: tensors or numbers are wanted, not %.100s and %.100s",
                     Py_TYPE(object[0])->tp_name, Py_TYPE(object[1])->tp_name);
    if (failed != 0)
        return NULL;
    result = asen_py_apply1(state, ASEN_OP_where, in, 3, NULL);
    asen_tensor_release(in[1]);
    asen_tensor_release(in[2]);
    return result;
}

static PyObject *promote(PyObject *module, PyObject *args)
{
    asen_py_state *state = PyModule_GetState(module);
    PyObject *object[2];
    asen_tensor *operand[2];
    if (!PyArg_ParseTuple(args, "OO:promote", &object[0], &object[1]))
        return NULL;
    int failed = asen_py_promote(state, "promote", ASEN_PY_ADDS, object, 2, NULL, operand);
    if (failed > 0)
        PyErr_Format(PyExc_TypeError, "tensors or numbers are wanted, not %.100s and %.100s",
                     Py_TYPE(object[0])->tp_name, Py_TYPE(object[1])->tp_name);
    if (failed != 0)
        return NULL;
    PyObject *a = asen_py_wrap(state, operand[0]), *b = asen_py_wrap(state, operand[1]), *pair = NULL;
    if (a != NULL && b != NULL)
        pair = PyTuple_Pack(2, a, b);
    Py_XDECREF(a);
    Py_XDECREF(b);
    return pair;
}

static PyObject *full(PyObject *module, PyObject *args)
{
    asen_py_state *state = PyModule_GetState(module);
    PyObject *sizes, *value, *dtype_name;
    const char *device_name = "cpu";
    asen_device *device;
    asen_dtype dtype;
    asen_tensor *scalar, *wide = NULL, *out = NULL;
    asen_attrs attrs = {0};
    if (!PyArg_ParseTuple(args, "O!OO|s:full", &PyTuple_Type, &sizes, &value, &dtype_name, &device_name) ||
        asen_py_dtype(dtype_name, &dtype) < 0 || asen_py_device(device_name, &device) < 0)
        return NULL;
    attrs.expand.shape.count = PyTuple_GET_SIZE(sizes);
    if (attrs.expand.shape.count > ASEN_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "full: a shape has at most %d dims", ASEN_MAX_DIMS);
        return NULL;
    }
    for (Py_ssize_t d = 0; d < PyTuple_GET_SIZE(sizes); d++) {
        int64_t size = attrs.expand.shape.item[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, d));
        if (size == -1 && PyErr_Occurred())
            return NULL;
        if (size < 0) {
            PyErr_Format(PyExc_ValueError, "full: size %lld in dim %zd", (long long)size, d);
            return NULL;
        }
    }
    PyObject *number = asen_py_as_number(value);
    if (number == NULL && !PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "full: the value is a number, not %.100s", Py_TYPE(value)->tp_name);
    int failed = number == NULL || asen_py_full(device, dtype, number, &scalar) < 0;
    Py_XDECREF(number);
    if (failed)
        return NULL;
    int status = asen_op_apply1(ASEN_OP_expand, &scalar, 1, &attrs, &wide);
    if (status == ASEN_OK)
        status = asen_tensor_to_dense(wide, &out);
    asen_tensor_release(scalar);
    asen_tensor_release(wide);
    return status == ASEN_OK ? asen_py_wrap(state, out) : asen_py_raise(status);
}

static PyMethodDef functions[] = {
    {"choose", choose, METH_VARARGS,
     "choose(condition, a, b): where() of tensors or numbers, of which a and b are brought to one dtype."},
    {"promote", promote, METH_VARARGS, "promote(a, b): both as tensors of the dtype that a + b has."},
    {"full", full, METH_VARARGS, "full(shape, value, dtype, device='cpu'): a tensor of one value; integers are exact."},
    {0},
};

int asen_py_add_operators(PyObject *module) { return PyModule_AddFunctions(module, functions); }
