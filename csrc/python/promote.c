/* Operands of ops that broadcast: tensors and numbers brought to one dtype.
 *
 * Tensors have one dtype: nothing is converted behind the user's back, but for bools, which become whatever
 * stands beside them (a mask times x). A number becomes of the tensor's dtype; beside bools a whole number
 * makes int64 and a fraction float32, PyTorch's defaults. An integer tensor takes no fractions. Integers stay
 * exact: they never pass through a double; one that the dtype lacks is an error. */
#include "python/tensor.h"

/* bool, int or float as Python's own, from NumPy's scalars and 0-d arrays and whatever has __index__ or
 * __float__; NULL without an exception where `object` is no number, with one where converting failed. */
PyObject *asen_py_as_number(PyObject *object)
{
    if (PyFloat_Check(object) || PyLong_Check(object))
        return Py_NewRef(object);
    PyObject *item = asen_py_numpy_item(object);
    if (item != NULL || PyErr_Occurred()) {
        if (item != NULL && !PyFloat_Check(item) && !PyLong_Check(item))
            Py_CLEAR(item); /* complex, strings */
        return item;
    }
    if (PySequence_Check(object) || PyObject_HasAttrString(object, "requires_grad"))
        return NULL;
    if (PyIndex_Check(object))
        return PyNumber_Index(object);
    PyNumberMethods *number = Py_TYPE(object)->tp_as_number;
    return number != NULL && number->nb_float != NULL ? PyNumber_Float(object) : NULL;
}

/* A tensor of one value. `number` is what asen_py_as_number gave. */
int asen_py_full(asen_device *device, asen_dtype dtype, PyObject *number, asen_tensor **out)
{
    int overflow = 0, status;
    if (PyLong_Check(number)) {
        int64_t value = PyLong_AsLongLongAndOverflow(number, &overflow);
        if (value == -1 && PyErr_Occurred())
            return -1;
        if (overflow == 0) {
            status = asen_tensor_full_integer(device, dtype, 0, NULL, value, out);
            goto made;
        }
        if (!asen_dtype_is_float(dtype)) {
            PyErr_Format(PyExc_ValueError, "%R is not a value of %s", number, asen_dtype_name(dtype));
            return -1;
        }
    } else if (!asen_dtype_is_float(dtype) && dtype != ASEN_BOOL) {
        PyObject *whole = PyNumber_Long(number); /* NaN and infinity: none */
        int equal = whole != NULL && PyObject_RichCompareBool(whole, number, Py_EQ) == 1;
        int failed = equal ? asen_py_full(device, dtype, whole, out) : -1;
        if (!equal)
            PyErr_Format(PyExc_ValueError, "%R is not a value of %s", number, asen_dtype_name(dtype));
        Py_XDECREF(whole);
        return failed;
    }
    double value = PyFloat_AsDouble(number);
    if (value == -1 && PyErr_Occurred())
        return -1;
    status = asen_tensor_full(device, dtype, 0, NULL, value, out);
made:
    if (status == ASEN_OK)
        return 0;
    asen_py_raise(status);
    return -1;
}

/* ---- which dtype ---- */

typedef struct {
    PyObject *number;    /* owned; or NULL: a tensor */
    asen_tensor *tensor; /* owned; or NULL: a number */
} operand;

static int operand_of(asen_py_state *state, PyObject *object, operand *out)
{
    if (asen_py_is_tensor(state, object)) {
        out->tensor = asen_tensor_retain(((asen_py_tensor *)object)->tensor);
        return 0;
    }
    out->number = asen_py_as_number(object);
    if (out->number != NULL || PyErr_Occurred())
        return out->number != NULL ? 0 : -1;
    if (!asen_py_is_array(object))
        return 1;
    PyErr_SetString(PyExc_TypeError, "an array beside a tensor: make it a tensor with from_numpy() first");
    return -1;
}

bool asen_py_is_number(PyObject *object)
{
    PyObject *number = asen_py_as_number(object);
    PyErr_Clear();
    Py_XDECREF(number);
    return number != NULL;
}

static asen_dtype dtype_of_number(PyObject *number)
{
    return PyBool_Check(number) ? ASEN_BOOL : PyFloat_Check(number) ? ASEN_F32 : ASEN_I64;
}

/* The dtype of the tensors, of which bools count least; -1 where there is none. */
static int dtype_of_tensors(const char *name, const operand *x, int n, int *out)
{
    *out = -1;
    for (int i = 0; i < n; i++) {
        if (x[i].tensor == NULL || (int)x[i].tensor->dtype == *out || (*out >= 0 && x[i].tensor->dtype == ASEN_BOOL))
            continue;
        if (*out > ASEN_BOOL) {
            PyErr_Format(PyExc_TypeError, "%s: one tensor is %s, the other %s: convert one of them", name,
                         asen_dtype_name((asen_dtype)*out), asen_dtype_name(x[i].tensor->dtype));
            return -1;
        }
        *out = x[i].tensor->dtype;
    }
    return 0;
}

/* Whether an integer lies outside the dtype: a comparison with it widens instead. */
static bool exceeds(PyObject *number, asen_dtype dtype)
{
    int overflow;
    if (number == NULL || !PyLong_Check(number) || (dtype != ASEN_U8 && dtype != ASEN_I32))
        return false;
    long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
    return dtype == ASEN_U8 ? value < 0 || value > UINT8_MAX : value < INT32_MIN || value > INT32_MAX;
}

static int result_dtype(const char *name, int how, const operand *x, int n, asen_dtype *out)
{
    int tensors;
    if (dtype_of_tensors(name, x, n, &tensors) < 0)
        return -1;
    asen_dtype dtype = tensors < 0 ? ASEN_BOOL : (asen_dtype)tensors;
    for (int i = 0; i < n; i++) {
        if (x[i].number == NULL)
            continue;
        asen_dtype own = dtype_of_number(x[i].number);
        if (tensors <= ASEN_BOOL) {
            dtype = own > dtype ? own : dtype;
        } else if (asen_dtype_is_float(own) && !asen_dtype_is_float(dtype)) {
            PyErr_Format(PyExc_TypeError, "%s: %R with a tensor of %s: convert the tensor with .float() first", name,
                         x[i].number, asen_dtype_name(dtype));
            return -1;
        } else if (how == ASEN_PY_COMPARES && exceeds(x[i].number, dtype)) {
            dtype = ASEN_I64;
        }
    }
    if (how == ASEN_PY_DIVIDES && !asen_dtype_is_float(dtype)) {
        PyErr_Format(PyExc_TypeError, "/ of %s: convert with .float() (// of integers rounds down)", asen_dtype_name(dtype));
        return -1;
    }
    *out = dtype;
    return 0;
}

static int converted(operand *x, asen_device *device, asen_dtype dtype, asen_tensor **out)
{
    if (x->tensor == NULL)
        return asen_py_full(device, dtype, x->number, out);
    if (x->tensor->dtype == dtype) {
        *out = asen_tensor_retain(x->tensor);
        return 0;
    }
    const asen_attrs attrs = {.copy = {.dtype = dtype}};
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_op_apply1(ASEN_OP_copy, &x->tensor, 1, &attrs, out);
    Py_END_ALLOW_THREADS
    if (status != ASEN_OK)
        asen_py_raise(status);
    return status == ASEN_OK ? 0 : -1;
}

int asen_py_promote(asen_py_state *state, const char *name, int how, PyObject *const *object, int n, asen_device *device,
                    asen_tensor **out)
{
    operand x[ASEN_PY_OPERANDS] = {{0}};
    asen_dtype dtype;
    int failed = 0;
    memset(out, 0, (size_t)n * sizeof *out);
    for (int i = 0; i < n && failed == 0; i++)
        failed = operand_of(state, object[i], &x[i]);
    for (int i = 0; i < n && device == NULL; i++)
        device = x[i].tensor != NULL ? x[i].tensor->storage->device : NULL;
    if (failed == 0 && device == NULL) {
        PyErr_Format(PyExc_TypeError, "%s: at least one argument must be a Tensor", name);
        failed = -1;
    }
    if (failed == 0)
        failed = result_dtype(name, how, x, n, &dtype);
    for (int i = 0; i < n && failed == 0; i++)
        failed = converted(&x[i], device, dtype, &out[i]);
    for (int i = 0; i < n; i++) {
        Py_XDECREF(x[i].number);
        asen_tensor_release(x[i].tensor);
        if (failed != 0) {
            asen_tensor_release(out[i]);
            out[i] = NULL;
        }
    }
    return failed;
}
