/* What the files of this folder share: the module state, what each adds to the module, and the way from a
 * status code to a Python exception. */
#ifndef ASEN_PY_MODULE_H
#define ASEN_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/status.h"

/* One of each module object. What is owned here is visited and cleared in module.c. */
typedef struct {
    PyTypeObject *tensor_type;
} asen_py_state;

/* What each file adds to the module: 0, or -1 with an exception set. */
int asen_py_add_config(PyObject *module);
int asen_py_add_numpy(PyObject *module);
int asen_py_add_tensor(PyObject *module);
int asen_py_add_ops(PyObject *module);
int asen_py_add_operators(PyObject *module);
int asen_py_add_copying(PyObject *module);
int asen_py_add_dlpack(PyObject *module);
int asen_py_add_optim(PyObject *module);
int asen_py_add_runtime(PyObject *module);
int asen_py_add_modes(PyObject *module);
int asen_py_add_warn(PyObject *module);
int asen_py_add_metrics(PyObject *module);
int asen_py_add_image(PyObject *module);
int asen_py_add_augment(PyObject *module);

extern PyModuleDef asen_py_module_def;

/* Raises the exception that belongs to `status`, with the thread's message. Returns NULL. */
PyObject *asen_py_raise(int status);

/* The items of a sequence as a tuple, a new reference; a TypeError with the message where it is none. A list might change
 * while its items run code of their own (__index__, __float__, buffers): nothing reads one item by item. */
PyObject *asen_py_items(PyObject *sequence, const char *message);

#endif
