/* The runtime as Python sees it: gradient mode, threads, memory, devices, dispatch counts, and
 * optimizer steps. */
#include "core/threads.h"
#include "cpu/cpu.h"
#include "python/tensor.h"

static PyObject *set_grad_enabled(PyObject *module, PyObject *on)
{
    int enabled = PyObject_IsTrue(on);
    return enabled < 0 ? NULL : PyBool_FromLong(asen_grad_set_enabled(enabled));
}

static PyObject *is_grad_enabled(PyObject *module, PyObject *unused) { return PyBool_FromLong(asen_grad_enabled()); }

static PyObject *set_num_threads(PyObject *module, PyObject *value)
{
    long n = PyLong_AsLong(value);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    if (n < 0 || n > 4096) {
        PyErr_Format(PyExc_ValueError, "the number of threads is 0 (the machine's budget) to 4096, not %ld", n);
        return NULL;
    }
    asen_threads_set((int)n);
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *module, PyObject *unused) { return PyLong_FromLong(asen_threads_get()); }

/* asenpp.cuda finds the plugin, loads it, or raises what is missing. */
static int load_cuda(void)
{
    PyObject *cuda = PyImport_ImportModule("asenpp.cuda");
    PyObject *done = cuda == NULL ? NULL : PyObject_CallMethod(cuda, "require", NULL);
    Py_XDECREF(cuda);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

int asen_py_device(const char *name, asen_device **out)
{
    int status = asen_device_get(name, out);
    if (status != ASEN_OK && strcmp(name, "cuda") == 0) {
        if (load_cuda() < 0)
            return -1;
        status = asen_device_get(name, out);
    }
    if (status == ASEN_OK)
        return 0;
    asen_py_raise(status);
    return -1;
}

static asen_device *device_arg(PyObject *args)
{
    const char *name = "cpu";
    asen_device *device = NULL;
    if (!PyArg_ParseTuple(args, "|s", &name))
        return NULL;
    return asen_py_device(name, &device) < 0 ? NULL : device;
}

static PyObject *memory_stats(PyObject *module, PyObject *args)
{
    asen_memory_stats s;
    asen_device *device = device_arg(args);
    if (device == NULL)
        return NULL;
    asen_memory_get_stats(device, &s);
    return Py_BuildValue("{s:K,s:K,s:K,s:K}", "current", (unsigned long long)s.current, "peak",
                         (unsigned long long)s.peak, "cached", (unsigned long long)s.cached, "system_requests",
                         (unsigned long long)s.system_requests);
}

static PyObject *reset_peak_memory(PyObject *module, PyObject *args)
{
    asen_device *device = device_arg(args);
    if (device == NULL)
        return NULL;
    asen_memory_reset_peak(device);
    Py_RETURN_NONE;
}

static PyObject *empty_cache(PyObject *module, PyObject *args)
{
    asen_device *device = device_arg(args);
    if (device == NULL)
        return NULL;
    asen_memory_empty_cache(device);
    Py_RETURN_NONE;
}

static PyObject *synchronize(PyObject *module, PyObject *args)
{
    asen_device *device = device_arg(args);
    int status;
    if (device == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = device->memory->synchronize(device->memory->self);
    Py_END_ALLOW_THREADS
    if (status != ASEN_OK)
        return asen_py_raise(status);
    Py_RETURN_NONE;
}

static PyObject *load_plugin(PyObject *module, PyObject *args)
{
    PyObject *path;
    if (!PyArg_ParseTuple(args, "O&:load_plugin", PyUnicode_FSConverter, &path))
        return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_plugin_load(PyBytes_AS_STRING(path)); /* opening a GPU takes seconds */
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (status != ASEN_OK)
        return asen_py_raise(status);
    Py_RETURN_NONE;
}

static PyObject *set_kernel_paths(PyObject *module, PyObject *args)
{
    static const char *const names[] = {"fast", "onednn", "reference", "all"};
    static const unsigned masks[] = {ASEN_PATH_FAST, ASEN_PATH_ONEDNN, ASEN_PATH_REFERENCE, ASEN_PATH_ALL};
    unsigned mask = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++) {
        unsigned found = 0;
        PyObject *item = PyTuple_GET_ITEM(args, i);
        for (int k = 0; k < 4; k++)
            if (PyUnicode_Check(item) && PyUnicode_CompareWithASCIIString(item, names[k]) == 0)
                found = masks[k];
        if (found == 0) {
            PyErr_Format(PyExc_ValueError, "kernel paths are 'fast', 'onednn', 'reference' or 'all', not %R", item);
            return NULL;
        }
        mask |= found;
    }
    asen_cpu_set_paths(mask);
    Py_RETURN_NONE;
}

static PyObject *dispatch_counts(PyObject *module, PyObject *args)
{
    uint64_t counts[ASEN_OP_COUNT][3];
    int reset = 0;
    PyObject *dict = PyArg_ParseTuple(args, "|p:dispatch_counts", &reset) ? PyDict_New() : NULL;
    asen_cpu_get_counts(counts);
    for (int op = 0; op < ASEN_OP_COUNT && dict != NULL; op++) {
        if (counts[op][0] + counts[op][1] + counts[op][2] == 0)
            continue;
        PyObject *row = Py_BuildValue("{s:K,s:K,s:K}", "fast", (unsigned long long)counts[op][0], "onednn",
                                      (unsigned long long)counts[op][1], "reference", (unsigned long long)counts[op][2]);
        if (row == NULL || PyDict_SetItemString(dict, asen_op_get((asen_op)op)->name, row) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(row);
    }
    if (reset)
        asen_cpu_reset_counts();
    return dict;
}

/* ---- optimizers ---- */

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

static PyObject *optim_step(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"kind", "params", "grads", "state1", "state2", "step", "lr", "momentum", "dampening",
                            "beta1", "beta2", "eps", "weight_decay", "nesterov", NULL};
    asen_py_state *state = PyModule_GetState(module);
    const char *kind;
    PyObject *lists[4] = {NULL, NULL, Py_None, Py_None}, *result = NULL;
    tensor_list taken[4] = {0};
    int64_t *length = NULL;
    long long step = 1;
    asen_optim_call call = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    static const char *const what[4] = {"parameter", "gradient", "state1", "state2"};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!O!OOLd|ddddddp:optim_step", names, &kind, &PyList_Type, &lists[0],
                                     &PyList_Type, &lists[1], &lists[2], &lists[3], &step, &call.lr, &call.momentum,
                                     &call.dampening, &call.beta1, &call.beta2, &call.eps, &call.weight_decay,
                                     &call.nesterov))
        return NULL;
    if (strcmp(kind, "sgd") == 0)
        call.kind = ASEN_SGD;
    else if (strcmp(kind, "adam") == 0)
        call.kind = ASEN_ADAM;
    else if (strcmp(kind, "adamw") == 0)
        call.kind = ASEN_ADAMW;
    else
        return PyErr_Format(PyExc_ValueError, "an optimizer is 'sgd', 'adam' or 'adamw', not '%s'", kind);
    if (step < 1)
        return PyErr_Format(PyExc_ValueError, "optimizer steps count from 1, not %lld", step);
    if (PyList_GET_SIZE(lists[0]) == 0)
        Py_RETURN_NONE;
    if ((call.kind != ASEN_SGD && (lists[2] == Py_None || lists[3] == Py_None)) ||
        (call.kind == ASEN_SGD && call.momentum != 0 && lists[2] == Py_None))
        return PyErr_Format(PyExc_TypeError, "%s needs its state tensors", kind);
    length = PyMem_Calloc((size_t)PyList_GET_SIZE(lists[0]), sizeof *length);
    if (length == NULL)
        return PyErr_NoMemory();
    for (int l = 0; l < 4; l++)
        if (lists[l] != Py_None &&
            take_list(state, lists[l], l ? lists[0] : NULL, what[l], &taken[l], l ? NULL : length) < 0)
            goto done;
    asen_tensor *first = taken[0].held[0];
    call.dtype = first->dtype;
    call.device = first->storage->device;
    call.count = taken[0].count;
    call.param = taken[0].data;
    call.grad = (const void *const *)taken[1].data;
    call.state1 = taken[2].data;
    call.state2 = taken[3].data;
    call.length = length;
    call.step = step;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = call.device->backend->optim_step(call.device->backend->self, &call);
    for (int l = 0; l < 4; l++)
        if (l != 1) /* gradients are only read */
            list_written(&taken[l]);
    Py_END_ALLOW_THREADS
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

/* One tensor of an edition: what it reads, and the state of its memory. */
typedef struct {
    uint64_t storage, edition;
    int64_t offset, dtype, ndim;
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
} edition_row;

static PyObject *edition(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    asen_py_state *state = PyModule_GetState(module);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(edition_row));
    if (bytes == NULL)
        return NULL;
    char *end = PyBytes_AS_STRING(bytes);
    for (Py_ssize_t i = 0; i < n; i++) {
        edition_row row = {0};
        if (args[i] != Py_None) {
            const asen_tensor *t = asen_py_unwrap(state, args[i], "the argument");
            if (t == NULL)
                goto fail;
            row = (edition_row){.storage = t->storage->id, .offset = t->offset, .dtype = t->dtype, .ndim = t->ndim};
            memcpy(row.shape, t->shape, (size_t)t->ndim * sizeof *row.shape);
            memcpy(row.stride, t->stride, (size_t)t->ndim * sizeof *row.stride);
            if (!asen_storage_edition(t->storage, &row.edition)) {
                Py_DECREF(bytes);
                Py_RETURN_NONE;
            }
        }
        size_t used = offsetof(edition_row, stride) + (size_t)row.ndim * sizeof *row.stride;
        memcpy(end, &row, used);
        end += used;
    }
    if (_PyBytes_Resize(&bytes, end - PyBytes_AS_STRING(bytes)) < 0)
        return NULL;
    return bytes;
fail:
    Py_DECREF(bytes);
    return NULL;
}

static PyObject *packed_filters(PyObject *module, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(asen_onednn_pack_fills());
}

static PyObject *memory_info(PyObject *module, PyObject *args)
{
    size_t available = 0, total = 0;
    asen_device *device = device_arg(args);
    if (device == NULL)
        return NULL;
    if (device->memory->info == NULL)
        Py_RETURN_NONE;
    int status = device->memory->info(device->memory->self, &available, &total);
    return status == ASEN_OK ? Py_BuildValue("(KK)", (unsigned long long)available, (unsigned long long)total)
                             : asen_py_raise(status);
}

static PyObject *set_option(PyObject *module, PyObject *args)
{
    const char *device_name, *name;
    long long value;
    asen_device *device;
    if (!PyArg_ParseTuple(args, "ssL:set_option", &device_name, &name, &value))
        return NULL;
    if (asen_py_device(device_name, &device) < 0)
        return NULL;
    int status = device->backend->set_option == NULL
                     ? asen_fail(ASEN_ERR_VALUE, "%s has no option '%s'", device_name, name)
                     : device->backend->set_option(device->backend->self, name, value);
    if (status != ASEN_OK)
        return asen_py_raise(status);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"set_grad_enabled", set_grad_enabled, METH_O, "Turns recording on or off for this thread; returns what it was."},
    {"is_grad_enabled", is_grad_enabled, METH_NOARGS, "Whether this thread records ops for backward."},
    {"set_num_threads", set_num_threads, METH_O, "Threads for compute; 0: what affinity and the cgroup allow."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "Threads for compute."},
    {"memory_stats", memory_stats, METH_VARARGS, "memory_stats(device='cpu'): bytes current, peak, cached, and system_requests (blocks)."},
    {"reset_peak_memory", reset_peak_memory, METH_VARARGS, "Sets the peak of memory_stats to the current use."},
    {"empty_cache", empty_cache, METH_VARARGS, "Gives cached blocks back to the system."},
    {"synchronize", synchronize, METH_VARARGS, "synchronize(device='cpu'): waits until its queue is empty."},
    {"load_plugin", load_plugin, METH_VARARGS, "Loads a device from a shared library built for this core."},
    {"set_kernel_paths", set_kernel_paths, METH_VARARGS, "Which CPU kernels may run: any of 'fast', 'onednn', 'reference'; or 'all'. For tests."},
    {"dispatch_counts", dispatch_counts, METH_VARARGS, "dispatch_counts(reset=False): how often each path ran each op."},
    {"optim_step", (PyCFunction)(void (*)(void))optim_step, METH_VARARGS | METH_KEYWORDS,
     "One optimizer step over lists of tensors, in place: see asenpp.optim."},
    {"unscale", unscale, METH_VARARGS, "unscale(tensors, factor): multiplies them in place; whether all elements were finite."},
    {"edition", (PyCFunction)(void (*)(void))edition, METH_FASTCALL,
     "edition(*tensors): bytes that are equal as long as the tensors are the same and nothing wrote into their memory; ask "
     "before reading what is to be kept under them. None where something outside may write at any time (memory of a NumPy "
     "array, a numpy() or DLPack view that is alive): then nothing can be kept. An argument may be None."},
    {"packed_filters", packed_filters, METH_NOARGS, "How often a filter was brought into oneDNN's layout. For tests."},
    {"memory_info", memory_info, METH_VARARGS, "memory_info(device='cpu'): bytes (free, total) of a device's own memory, or None."},
    {"set_option", set_option, METH_VARARGS, "set_option(device, name, value): a switch of a device, such as 'tf32' of cuda."},
    {NULL},
};

int asen_py_add_runtime(PyObject *module) { return PyModule_AddFunctions(module, methods); }
