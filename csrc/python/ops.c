/* Ops as Python sees them: a function for each row of ops.def, and a method for those that Tensor has as they stand
 * (asen_py_is_method); `apply` and `apply_` by name, and op_specs() for the tests.
 *
 * A call takes the row's tensors first, then its attributes, by position or by name; numbers
 * stand for 0-d tensors of the first tensor's dtype; a list attribute that comes last swallows
 * the remaining integers (`x.reshape(2, 3)`); "dim" is accepted for "dims". */
#include "autograd/rules.h"
#include "ops/schema.h"
#include "python/tensor.h"

/* ---- attributes ---- */

static int set_list(asen_list *list, PyObject *value, const char *name)
{
    PyObject *sequence;
    if (PyIndex_Check(value) && !PySequence_Check(value)) {
        int64_t item = PyLong_AsLongLong(value);
        if (item == -1 && PyErr_Occurred())
            return -1;
        *list = (asen_list){.count = 1, .item = {item}};
        return 0;
    }
    sequence = asen_py_items(value, "an integer or a sequence of integers is wanted");
    if (sequence == NULL)
        return -1;
    Py_ssize_t n = PyTuple_GET_SIZE(sequence);
    if (n > ASEN_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s: more than %d items", name, ASEN_MAX_DIMS);
        goto fail;
    }
    list->count = n;
    for (Py_ssize_t i = 0; i < n; i++) {
        list->item[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sequence, i));
        if (list->item[i] == -1 && PyErr_Occurred())
            goto fail;
    }
    Py_DECREF(sequence);
    return 0;
fail:
    Py_DECREF(sequence);
    return -1;
}

static int set_attr(const asen_attr_field *field, asen_attrs *attrs, PyObject *value)
{
    void *at = (char *)attrs + field->offset;
    int64_t *word = at;
    asen_dtype dtype;
    asen_list pair;
    switch (field->kind) {
    case ASEN_ATTR_float: {
        double x = PyFloat_AsDouble(value);
        if (x == -1 && PyErr_Occurred())
            return -1;
        memcpy(at, &x, sizeof x);
        return 0;
    }
    case ASEN_ATTR_flag:
        *word = PyObject_IsTrue(value);
        return *word < 0 ? -1 : 0;
    case ASEN_ATTR_dtype:
        if (asen_py_dtype(value, &dtype) < 0)
            return -1;
        *word = dtype;
        return 0;
    case ASEN_ATTR_list:
    case ASEN_ATTR_shape:
        return set_list(at, value, field->name);
    case ASEN_ATTR_int2:
        if (set_list(&pair, value, field->name) < 0)
            return -1;
        if (pair.count < 1 || pair.count > 2) {
            PyErr_Format(PyExc_ValueError, "%s: one or two integers, not %lld", field->name, (long long)pair.count);
            return -1;
        }
        word[0] = pair.item[0];
        word[1] = pair.item[pair.count - 1];
        return 0;
    case ASEN_ATTR_int:
        *word = PyLong_AsLongLong(value);
        return *word == -1 && PyErr_Occurred() ? -1 : 0;
    }
    Py_UNREACHABLE();
}

/* ---- calls ---- */

/* FEW holds the inputs of any row with a fixed number of them; longer lists of tensors get memory. */
enum { MAX_TENSORS = 1024, FEW = ASEN_SCHEMA_MAX };

typedef struct {
    asen_op op;
    const asen_schema *schema;
    int n;
    PyObject **object;    /* [n] borrowed: tensors, numbers or None */
    asen_tensor **tensor; /* [n] */
    asen_tensor **made;   /* [n] owned: numbers made tensors */
    PyObject *held;       /* owned: the tuple that some of them come from, or NULL */
    asen_attrs attrs;
    bool given[ASEN_SCHEMA_MAX];
    bool in_place; /* the first tensor becomes the result */
    PyObject *few_objects[FEW];
    asen_tensor *few_tensors[2 * FEW];
    void *memory; /* owned: of the arrays, where FEW is not enough */
} call_state;

static int call_error(const call_state *call, const char *format, const char *name)
{
    PyErr_Format(PyExc_TypeError, format, asen_op_get(call->op)->name, name);
    return -1;
}

static int give_attr(call_state *call, int a, PyObject *value)
{
    const asen_attr_field *field = &call->schema->attrs->field[a];
    if (call->given[a])
        return call_error(call, "%s: %s is given twice", field->name);
    call->given[a] = true;
    if (value == Py_None && !field->required) /* the default */
        return 0;
    return set_attr(field, &call->attrs, value);
}

static int give_named(call_state *call, PyObject *name, PyObject *value)
{
    const asen_schema *s = call->schema;
    for (int i = 0; i < s->n_in && !s->variadic; i++)
        if (PyUnicode_CompareWithASCIIString(name, s->in_name[i]) == 0) {
            if (call->object[i] != NULL)
                return call_error(call, "%s: %s is given twice", s->in_name[i]);
            call->object[i] = value;
            call->n = call->n > i + 1 ? call->n : i + 1;
            return 0;
        }
    for (int a = 0; a < s->attrs->count; a++)
        if (PyUnicode_CompareWithASCIIString(name, s->attrs->field[a].name) == 0 ||
            (strcmp(s->attrs->field[a].name, "dims") == 0 && PyUnicode_CompareWithASCIIString(name, "dim") == 0))
            return give_attr(call, a, value);
    const char *text = PyUnicode_AsUTF8(name);
    return text == NULL ? -1 : call_error(call, "%s: there is no argument '%s'", text);
}

/* Positional arguments from `at` on are attributes. */
static int give_positional(call_state *call, PyObject *const *args, Py_ssize_t at, Py_ssize_t n)
{
    const asen_schema *s = call->schema;
    for (int a = 0; at < n; a++) {
        if (a >= s->attrs->count)
            return call_error(call, "%s: too many arguments%s", "");
        bool list = s->attrs->field[a].kind == ASEN_ATTR_list || s->attrs->field[a].kind == ASEN_ATTR_shape;
        if (list && PyIndex_Check(args[at]) && a == s->attrs->count - 1) {
            PyObject *rest = PyTuple_New(n - at);
            if (rest == NULL)
                return -1;
            for (Py_ssize_t i = at; i < n; i++)
                PyTuple_SET_ITEM(rest, i - at, Py_NewRef(args[i]));
            int failed = give_attr(call, a, rest);
            Py_DECREF(rest);
            return failed;
        }
        if (give_attr(call, a, args[at++]) < 0)
            return -1;
    }
    return 0;
}

static bool is_number(asen_py_state *state, PyObject *object)
{
    return !asen_py_is_tensor(state, object) && asen_py_is_number(object);
}

static int not_a_tensor(const call_state *call, int i, PyObject *object)
{
    PyErr_Format(PyExc_TypeError, "%s: %s must be a Tensor or a number, not %.100s", asen_op_get(call->op)->name,
                 call->schema->in_name[call->schema->variadic ? 0 : i], Py_TYPE(object)->tp_name);
    return -1;
}

/* A 0-d tensor of a Python or NumPy number, exactly: integers take no fractions. */
static int number_to_tensor(call_state *call, int i, const asen_tensor *model)
{
    PyObject *number = asen_py_as_number(call->object[i]);
    if (number == NULL)
        return PyErr_Occurred() ? -1 : not_a_tensor(call, i, call->object[i]);
    int failed = 0;
    if (!asen_dtype_is_float(model->dtype) && !PyLong_Check(number)) {
        PyErr_Format(PyExc_TypeError, "%s: %R with a tensor of %s: convert the tensor with .float() first",
                     asen_op_get(call->op)->name, number, asen_dtype_name(model->dtype));
        failed = -1;
    } else {
        failed = asen_py_full(model->storage->device, model->dtype, number, &call->made[i]);
    }
    Py_DECREF(number);
    call->tensor[i] = call->made[i];
    return failed;
}

/* Objects to tensors; numbers become 0-d tensors like the first tensor among the inputs. */
static int resolve_tensors(asen_py_state *state, call_state *call)
{
    asen_tensor *model = NULL;
    for (int i = 0; i < call->n && model == NULL; i++)
        if (call->object[i] != NULL && asen_py_is_tensor(state, call->object[i]))
            model = ((asen_py_tensor *)call->object[i])->tensor;
    if (model == NULL)
        return call_error(call, "%s: at least one argument must be a Tensor%s", "");
    for (int i = 0; i < call->n; i++) {
        PyObject *object = call->object[i];
        if (object == NULL || object == Py_None)
            continue;
        if (asen_py_is_tensor(state, object))
            call->tensor[i] = ((asen_py_tensor *)object)->tensor;
        else if (!is_number(state, object))
            return not_a_tensor(call, i, object);
        else if (number_to_tensor(call, i, model) < 0)
            return -1;
    }
    return 0;
}

/* Whether an op on these is done before another thread could make use of the GIL. On a device of its own nothing is:
 * its calls may wait. */
static bool is_short(asen_tensor *const *in, int n)
{
    enum { SHORT = 4096 };
    int64_t elements = 0;
    for (int i = 0; i < n; i++) {
        if (in[i] == NULL)
            continue;
        elements += asen_tensor_count(in[i]);
        if (!in[i]->storage->device->memory->host_memory || elements > SHORT)
            return false;
    }
    return true;
}

/* Runs the op, a long one without the GIL; the tensors are kept alive by references of our own. */
static PyObject *call_run(asen_py_state *state, call_state *call)
{
    asen_tensor *out[ASEN_MAX_OUT];
    int n_out, status;
    for (int a = 0; a < call->schema->attrs->count; a++)
        if (call->schema->attrs->field[a].required && !call->given[a]) {
            call_error(call, "%s: %s is missing", call->schema->attrs->field[a].name);
            return NULL;
        }
    for (int i = 0; i < call->n; i++)
        if (call->tensor[i] != NULL)
            asen_tensor_retain(call->tensor[i]);
    PyThreadState *thread = is_short(call->tensor, call->n) ? NULL : PyEval_SaveThread();
    if (call->in_place)
        status = asen_inplace_apply(call->op, call->tensor, call->n, &call->attrs);
    else
        status = asen_op_apply(call->op, call->tensor, call->n, &call->attrs, out, &n_out);
    for (int i = 0; i < call->n; i++)
        asen_tensor_release(call->tensor[i]);
    if (thread != NULL)
        PyEval_RestoreThread(thread);
    if (status != ASEN_OK)
        return asen_py_raise(status);
    if (call->in_place)
        return Py_NewRef(call->object[0]);
    if (n_out == 1)
        return asen_py_wrap(state, out[0]);
    PyObject *result = PyTuple_New(n_out);
    for (int k = 0; k < n_out; k++) {
        PyObject *item = result == NULL ? NULL : asen_py_wrap(state, out[k]);
        if (item == NULL) {
            if (result == NULL)
                asen_tensor_release(out[k]);
            Py_CLEAR(result);
        } else {
            PyTuple_SET_ITEM(result, k, item);
        }
    }
    return result;
}

static void call_init(call_state *call, asen_op op)
{
    memset(call, 0, sizeof *call);
    call->op = op;
    call->schema = asen_schema_get(op);
    call->object = call->few_objects;
    call->tensor = call->few_tensors;
    call->made = call->few_tensors + FEW;
    asen_schema_defaults(op, &call->attrs);
}

static void call_clear(call_state *call)
{
    for (int i = 0; i < call->n; i++)
        asen_tensor_release(call->made[i]);
    Py_XDECREF(call->held);
    PyMem_Free(call->memory);
}

/* Arrays for `count` more inputs, before any tensor is in them. */
static int call_reserve(call_state *call, Py_ssize_t count)
{
    if (count <= FEW - call->n)
        return 0;
    size_t all = (size_t)(call->n + count);
    call->memory = PyMem_Calloc(all, 3 * sizeof(void *));
    if (call->memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    call->object = call->memory;
    call->tensor = (asen_tensor **)call->memory + all;
    call->made = (asen_tensor **)call->memory + 2 * all;
    memcpy(call->object, call->few_objects, (size_t)call->n * sizeof(PyObject *));
    return 0;
}

/* Tensors from a sequence, after `self` where there is one. The call holds them: the list may
 * change while it runs. */
static int give_sequence(call_state *call, PyObject *sequence)
{
    if (!PyList_Check(sequence) && !PyTuple_Check(sequence))
        return call_error(call, "%s: a list or tuple of tensors is wanted%s", "");
    call->held = PySequence_Tuple(sequence);
    if (call->held == NULL)
        return -1;
    Py_ssize_t n = PyTuple_GET_SIZE(call->held);
    if (n > (call->schema->variadic ? MAX_TENSORS : call->schema->n_in) - call->n)
        return call_error(call, "%s: too many tensors%s", "");
    if (call_reserve(call, n) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < n; i++)
        call->object[call->n++] = PyTuple_GET_ITEM(call->held, i);
    return 0;
}

PyObject *asen_py_call_op(asen_py_state *state, asen_op op, PyObject *self, PyObject *const *args, Py_ssize_t n_args,
                          PyObject *kwnames)
{
    PyObject *result = NULL;
    call_state own, *call = &own;
    if (state == NULL)
        return NULL;
    call_init(call, op);
    const asen_schema *s = call->schema;
    Py_ssize_t at = 0;
    if (self != NULL)
        call->object[call->n++] = self;
    if (s->variadic) {
        if (n_args < 1) {
            call_error(call, "%s: a list or tuple of tensors is wanted%s", "");
            goto done;
        }
        if (give_sequence(call, args[at++]) < 0)
            goto done;
    } else {
        for (; at < n_args && call->n < s->n_in; at++) {
            bool tensor_like = asen_py_is_tensor(state, args[at]) || args[at] == Py_None;
            /* A number is a tensor only where one is required. */
            if (!tensor_like && s->optional[call->n])
                break;
            if (!tensor_like && !is_number(state, args[at])) {
                not_a_tensor(call, call->n, args[at]);
                goto done;
            }
            call->object[call->n++] = args[at];
        }
    }
    if (give_positional(call, args, at, n_args) < 0)
        goto done;
    for (Py_ssize_t k = 0; kwnames != NULL && k < PyTuple_GET_SIZE(kwnames); k++)
        if (give_named(call, PyTuple_GET_ITEM(kwnames, k), args[n_args + k]) < 0)
            goto done;
    if (resolve_tensors(state, call) == 0)
        result = call_run(state, call);
done:
    call_clear(call);
    return result;
}

PyObject *asen_py_apply1(asen_py_state *state, asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs)
{
    asen_tensor *out;
    int status;
    if (state == NULL)
        return NULL;
    PyThreadState *thread = is_short(in, n_in) ? NULL : PyEval_SaveThread();
    status = asen_op_apply1(op, in, n_in, attrs, &out);
    if (thread != NULL)
        PyEval_RestoreThread(thread);
    return status == ASEN_OK ? asen_py_wrap(state, out) : asen_py_raise(status);
}

/* ---- a function and a method a row ---- */

#define ROW_FUNCTION(name)                                                                                         \
    static PyObject *function_##name(PyObject *module, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)    \
    {                                                                                                              \
        return asen_py_call_op(asen_py_state_of_module(module), ASEN_OP_##name, NULL, args, n, kwnames);          \
    }                                                                                                              \
    static PyObject *method_##name(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)        \
    {                                                                                                              \
        return asen_py_call_op(asen_py_state_of_tensor(self), ASEN_OP_##name, self, args, n, kwnames);            \
    }
#define OP(name, ...) ROW_FUNCTION(name)
#define VIEW(name, ...) ROW_FUNCTION(name)
#include "ops/ops.def"

#define ENTRY(name, prefix, doc) \
    {#name, (PyCFunction)(void (*)(void))prefix##name, METH_FASTCALL | METH_KEYWORDS, doc},
static PyMethodDef functions[] = {
#define OP(name, inputs, outputs, attrs, saves, flags, grad, doc) ENTRY(name, function_, doc)
#define VIEW(name, inputs, outputs, attrs, grad, doc) ENTRY(name, function_, doc)
#include "ops/ops.def"
    {0},
};

static PyMethodDef methods[] = {
#define OP(name, inputs, outputs, attrs, saves, flags, grad, doc) ENTRY(name, method_, doc)
#define VIEW(name, inputs, outputs, attrs, grad, doc) ENTRY(name, method_, doc)
#include "ops/ops.def"
    {0},
};

PyMethodDef *asen_py_op_methods(void) { return methods; }

/* ---- by name, and the table itself ---- */

static int op_by_name(PyObject *name)
{
    for (int op = 0; op < ASEN_OP_COUNT; op++)
        if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, asen_op_get((asen_op)op)->name) == 0)
            return op;
    PyErr_Format(PyExc_ValueError, "there is no op %R", name);
    return -1;
}

static PyObject *apply_by_name(PyObject *module, PyObject *args, bool in_place)
{
    PyObject *name, *tensors, *attrs = NULL, *mine = NULL, *key, *value, *result = NULL;
    Py_ssize_t position = 0;
    asen_py_state *state = PyModule_GetState(module);
    if (!PyArg_ParseTuple(args, "OO|O!:apply", &name, &tensors, &PyDict_Type, &attrs))
        return NULL;
    int op = op_by_name(name);
    call_state own, *call = &own;
    if (op < 0)
        return NULL;
    call_init(call, (asen_op)op);
    call->in_place = in_place;
    if (give_sequence(call, tensors) < 0)
        goto done;
    if (in_place && (call->n == 0 || !asen_py_is_tensor(state, call->object[0]))) {
        call_error(call, "%s in place: the first argument must be a Tensor%s", "");
        goto done;
    }
    if (attrs != NULL && (mine = PyDict_Copy(attrs)) == NULL) /* a dict of our own: values run code of theirs */
        goto done;
    while (mine != NULL && PyDict_Next(mine, &position, &key, &value)) {
        if (!PyUnicode_Check(key)) {
            PyErr_Format(PyExc_TypeError, "apply: attributes have names, not %R", key);
            goto done;
        }
        if (give_named(call, key, value) < 0)
            goto done;
    }
    if (resolve_tensors(state, call) == 0)
        result = call_run(state, call);
done:
    call_clear(call);
    Py_XDECREF(mine);
    return result;
}

static PyObject *apply(PyObject *module, PyObject *args) { return apply_by_name(module, args, false); }
static PyObject *apply_(PyObject *module, PyObject *args) { return apply_by_name(module, args, true); }

static PyObject *op_specs(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    for (int op = 0; op < ASEN_OP_COUNT && list != NULL; op++) {
        const asen_op_info *info = asen_op_get((asen_op)op);
        PyObject *row = Py_BuildValue(
            "{s:s,s:s,s:s,s:s,s:s,s:s,s:O,s:O,s:O}", "name", info->name, "inputs", info->inputs, "outputs",
            info->outputs, "attrs", asen_schema_get((asen_op)op)->attrs->text, "saves", info->saves, "doc", info->doc,
            "differentiable", asen_grad_rules[op] ? Py_True : Py_False, "view", info->flags & ASEN_IS_VIEW ? Py_True : Py_False,
            "method", asen_py_is_method(info->name) ? Py_True : Py_False);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyMethodDef module_methods[] = {
    {"apply", apply, METH_VARARGS, "apply(name, tensors, attrs={}): any op of the table by name; absent inputs are None."},
    {"apply_", apply_, METH_VARARGS,
     "apply_(name, tensors, attrs={}): any op by name, in place: the first tensor becomes the (first) result, as part of "
     "the graph where that is recorded, and is returned."},
    {"op_specs", op_specs, METH_NOARGS, "The rows of the op table as dicts: what the tests run over."},
    {0},
};

/* What help() says of a function: the arguments, then the row's words. Made once, kept for good. */
static int write_docs(void)
{
    static bool written;
    for (int op = 0; op < ASEN_OP_COUNT && !written; op++) {
        const asen_op_info *info = asen_op_get((asen_op)op);
        const char *attrs = asen_schema_get((asen_op)op)->attrs->text;
        size_t size = strlen(info->inputs) + strlen(attrs) + strlen(info->outputs) + strlen(info->doc) + 16;
        char *doc = PyMem_RawMalloc(size);
        if (doc == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        snprintf(doc, size, "(%s; %s) -> %s\n\n%s", info->inputs, attrs, info->outputs, info->doc);
        functions[op].ml_doc = doc;
    }
    written = true;
    return 0;
}

int asen_py_add_ops(PyObject *module)
{
    if (write_docs() < 0)
        return -1;
    return PyModule_AddFunctions(module, functions) < 0 ? -1 : PyModule_AddFunctions(module, module_methods);
}
