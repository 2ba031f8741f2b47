/* Switches of a thread that are on within a block (asenpp.modes), entered and left in one C call each: between
 * reading a switch and noting what it was, or before it is put back, no signal handler can raise. What was before is kept
 * in a dict of lists, the latest last, by the number of the thread. */
#include "python/module.h"

static PyObject *thread_number(void) { return PyLong_FromUnsignedLong(PyThread_get_thread_ident()); }

/* Removes the last item, and the list with it when that was all. Keeps the exception that is set, if one is. */
static int drop_last(PyObject *before, PyObject *thread, PyObject *list)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_ssize_t count = PyList_GET_SIZE(list);
    int failed = count > 0 && (PyList_SetSlice(list, count - 1, count, NULL) < 0 ||
                               (count == 1 && PyDict_DelItem(before, thread) < 0));
    if (type != NULL)
        PyErr_Restore(type, value, trace);
    return failed ? -1 : 0;
}

static PyObject *enter_mode(PyObject *module, PyObject *args)
{
    PyObject *before, *read, *write, *value = NULL, *result = NULL;
    if (!PyArg_ParseTuple(args, "O!OO|O:enter_mode", &PyDict_Type, &before, &read, &write, &value))
        return NULL;
    PyObject *thread = thread_number(), *was = PyObject_CallNoArgs(read), *list = NULL, *done;
    if (thread == NULL || was == NULL)
        goto end;
    list = PyDict_GetItemWithError(before, thread);
    Py_XINCREF(list);
    if (list == NULL && !PyErr_Occurred()) {
        list = PyList_New(0);
        if (list == NULL || PyDict_SetItem(before, thread, list) < 0)
            goto end;
    }
    if (list == NULL || PyList_Append(list, was) < 0)
        goto end;
    done = PyObject_CallOneArg(write, value == NULL ? was : value);
    if (done == NULL) {
        drop_last(before, thread, list);
        goto end;
    }
    Py_DECREF(done);
    result = Py_NewRef(Py_None);
end:
    Py_XDECREF(thread);
    Py_XDECREF(was);
    Py_XDECREF(list);
    return result;
}

/* What follows `write` is what __exit__ is called with, and not looked at. */
static PyObject *leave_mode(PyObject *module, PyObject *args)
{
    if (PyTuple_GET_SIZE(args) < 2 || !PyDict_CheckExact(PyTuple_GET_ITEM(args, 0))) {
        PyErr_SetString(PyExc_TypeError, "leave_mode(before, write, *exception): what was before is a dict");
        return NULL;
    }
    PyObject *before = PyTuple_GET_ITEM(args, 0), *write = PyTuple_GET_ITEM(args, 1), *thread = thread_number();
    PyObject *list, *was, *result = NULL;
    if (thread == NULL)
        return NULL;
    list = PyDict_GetItemWithError(before, thread);
    /* Empty where a generator that was suspended within a block is closed by another thread. */
    if (list == NULL || !PyList_CheckExact(list) || PyList_GET_SIZE(list) == 0) {
        result = PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
        goto end;
    }
    Py_INCREF(list);
    was = Py_NewRef(PyList_GET_ITEM(list, PyList_GET_SIZE(list) - 1));
    if (drop_last(before, thread, list) == 0)
        result = PyObject_CallOneArg(write, was);
    if (result != NULL)
        Py_SETREF(result, Py_NewRef(Py_None));
    Py_DECREF(was);
    Py_DECREF(list);
end:
    Py_DECREF(thread);
    return result;
}

static PyMethodDef methods[] = {
    {"enter_mode", enter_mode, METH_VARARGS,
     "enter_mode(before, read, write[, value]): keeps what read() gives for this thread, then write(value)."},
    {"leave_mode", leave_mode, METH_VARARGS, "leave_mode(before, write, *exception): writes what enter_mode kept last."},
    {0},
};

int asen_py_add_modes(PyObject *module) { return PyModule_AddFunctions(module, methods); }
