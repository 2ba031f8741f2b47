/* The Python type around asen_tensor, for the files of this folder. */
#ifndef ASEN_PY_TENSOR_H
#define ASEN_PY_TENSOR_H

#include "autograd/inplace.h"
#include "autograd/record.h"
#include "autograd/tape.h"
#include "ops/backend.h"
#include "ops/transfer.h"
#include "python/module.h"

typedef struct {
    PyObject_HEAD
    asen_tensor *tensor;
    PyObject *weakrefs;
} asen_py_tensor;

/* The module's state, from the module or from any object of the Tensor type or a subclass. */
asen_py_state *asen_py_state_of_module(PyObject *module);
asen_py_state *asen_py_state_of_tensor(PyObject *tensor);

/* A new Python tensor; steals `tensor`, also when it fails. */
PyObject *asen_py_wrap(asen_py_state *state, asen_tensor *tensor);
/* The tensor inside, borrowed; NULL with a TypeError that names `what`. */
asen_tensor *asen_py_unwrap(asen_py_state *state, PyObject *object, const char *what);
bool asen_py_is_tensor(asen_py_state *state, PyObject *object);

/* Names of dtypes and devices; -1 with an exception set. "cuda" loads its plugin when it is first named. */
int asen_py_dtype(PyObject *object, asen_dtype *out);
int asen_py_device(const char *name, asen_device **out);

/* Applies op to tensors and attributes as Python gives them: see python/ops.c. */
PyObject *asen_py_call_op(asen_py_state *state, asen_op op, PyObject *self, PyObject *const *args, Py_ssize_t n_args,
                          PyObject *kwnames);
/* The same from C: borrowed inputs; a new Python tensor (the first output) or NULL. */
PyObject *asen_py_apply1(asen_py_state *state, asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs);

/* NumPy's side (python/numpy.c). */
PyObject *asen_py_to_numpy(PyObject *tensor, bool writable); /* shares memory; writable: an export until it is gone */
PyObject *asen_py_from_any(asen_py_state *state, PyObject *object, bool always_copy); /* Tensor */

/* The tables of methods and operators of the type. */
extern PyMethodDef asen_py_tensor_methods[];   /* python/tensor.c */
extern PyMethodDef asen_py_shape_methods[];    /* python/shape.c */
PyMethodDef *asen_py_op_methods(void);         /* python/ops.c, from ops.def */
PyObject *asen_py_index(PyObject *self, PyObject *key); /* python/shape.c */
PyObject *asen_py_dlpack(PyObject *self);      /* python/dlpack.c */

#endif
