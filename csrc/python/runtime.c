/* The runtime as Python sees it: gradient mode, threads, memory and its editions, devices, dispatch counts. */
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
    {"memory_stats", memory_stats, METH_VARARGS,
     "memory_stats(device='cpu'): bytes current, peak, cached, and system_requests (blocks)."},
    {"reset_peak_memory", reset_peak_memory, METH_VARARGS, "Sets the peak of memory_stats to the current use."},
    {"empty_cache", empty_cache, METH_VARARGS, "Gives cached blocks back to the system."},
    {"synchronize", synchronize, METH_VARARGS, "synchronize(device='cpu'): waits until its queue is empty."},
    {"load_plugin", load_plugin, METH_VARARGS, "Loads a device from a shared library built for this core."},
    {"set_kernel_paths", set_kernel_paths, METH_VARARGS,
     "Which CPU kernels may run: any of 'fast', 'onednn', 'reference'; or 'all'. For tests."},
    {"dispatch_counts", dispatch_counts, METH_VARARGS, "dispatch_counts(reset=False): how often each path ran each op."},
    {"edition", (PyCFunction)(void (*)(void))edition, METH_FASTCALL,
     "edition(*tensors): bytes that are equal as long as the tensors are the same and nothing wrote into their memory; ask "
     "before reading what is to be kept under them. None where something outside may write at any time (memory of a NumPy "
     "array, a numpy() or DLPack view that is alive): then nothing can be kept. An argument may be None."},
    {"packed_filters", packed_filters, METH_NOARGS, "How often a filter was brought into oneDNN's layout. For tests."},
    {"memory_info", memory_info, METH_VARARGS, "memory_info(device='cpu'): bytes (free, total) of a device's own memory, or None."},
    {"set_option", set_option, METH_VARARGS, "set_option(device, name, value): a switch of a device, such as 'tf32' of cuda."},
    {0},
};

int asen_py_add_runtime(PyObject *module) { return PyModule_AddFunctions(module, methods); }
