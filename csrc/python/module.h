/* What the files of this folder share: the module state, the rooms that add themselves to the module,
 * and the way from a status code to a Python exception. */
#ifndef ASEN_PY_MODULE_H
#define ASEN_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/status.h"

/* Every file of this folder is a module. PY_ROOMS lists them in the order they are set up, and each
 * defines `int asen_py_add_<room>(PyObject *module)`: 0, or -1 with an exception set. */
#define PY_ROOMS(ROOM) \
    ROOM(config) \
    ROOM(numpy) \
    ROOM(tensor) \
    ROOM(ops) \
    ROOM(dlpack) \
    ROOM(runtime) \
    ROOM(warn) \
    ROOM(metrics) \
    ROOM(image)

/* One list makes the state struct, its traverse and its clear. */
#define PY_STATE(FIELD) \
    FIELD(PyTypeObject, tensor_type)

typedef struct {
#define FIELD(type, name) type *name;
    PY_STATE(FIELD)
#undef FIELD
} asen_py_state;

#define ROOM(name) int asen_py_add_##name(PyObject *module);
PY_ROOMS(ROOM)
#undef ROOM

extern PyModuleDef asen_py_module_def;

/* Raises the exception that belongs to `status`, with the thread's message. Returns NULL. */
PyObject *asen_py_raise(int status);

#endif
