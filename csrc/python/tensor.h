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

/* The tensor inside an object of the type, borrowed. */
static inline asen_tensor *self_tensor(PyObject *self) { return ((asen_py_tensor *)self)->tensor; }

/* The module's state, from the module or from any object of the Tensor type or a subclass. */
asen_py_state *asen_py_state_of_module(PyObject *module);
asen_py_state *asen_py_state_of_tensor(PyObject *tensor);

/* A new Python tensor; steals `tensor`, also when it fails. */
PyObject *asen_py_wrap(asen_py_state *state, asen_tensor *tensor);
/* The tensor inside, borrowed; NULL with a TypeError that names `what`. */
asen_tensor *asen_py_unwrap(asen_py_state *state, PyObject *object, const char *what);
bool asen_py_is_tensor(asen_py_state *state, PyObject *object);

/* New (python/convert.c): a read-only array of the values, bfloat16, which NumPy lacks, in float32, which holds all of
 * them; the one element as a Python number. */
PyObject *asen_py_values(PyObject *self);
PyObject *asen_py_item(PyObject *self);

/* Names of dtypes and devices; -1 with an exception set. "cuda" loads its plugin when it is first named. */
int asen_py_dtype(PyObject *object, asen_dtype *out);
int asen_py_device(const char *name, asen_device **out);

/* Applies op to tensors and attributes as Python gives them: see python/ops.c. */
PyObject *asen_py_call_op(asen_py_state *state, asen_op op, PyObject *self, PyObject *const *args, Py_ssize_t n_args,
                          PyObject *kwnames);
/* The same from C: borrowed inputs; a new Python tensor (the first output) or NULL. */
PyObject *asen_py_apply1(asen_py_state *state, asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs);

/* Operands of ops that broadcast (python/promote.c). A number is a Python, NumPy or 0-d array number. */
enum { ASEN_PY_OPERANDS = 2 };
enum { ASEN_PY_ADDS, ASEN_PY_DIVIDES, ASEN_PY_COMPARES }; /* division wants floats; a comparison widens for large numbers */
PyObject *asen_py_as_number(PyObject *object); /* new: bool, int or float; NULL: none, or an exception */
bool asen_py_is_number(PyObject *object);
/* A 0-d tensor of what asen_py_as_number gave, exactly; -1 with an exception. */
int asen_py_full(asen_device *device, asen_dtype dtype, PyObject *number, asen_tensor **out);
/* out[n]: new references of one dtype. 0; -1 with an exception that names `name`; 1 where an object is no operand.
 * `device`: where numbers go if no operand is a tensor, or NULL. */
int asen_py_promote(asen_py_state *state, const char *name, int how, PyObject *const *object, int n, asen_device *device,
                    asen_tensor **out);

/* NumPy's side (python/numpy.c). */
bool asen_py_is_array(PyObject *object);
bool asen_py_is_numpy_bool(PyObject *object);
PyObject *asen_py_numpy_item(PyObject *object); /* new: the value of a NumPy scalar or 0-d array; NULL: it is neither */
PyObject *asen_py_to_numpy(PyObject *tensor, bool writable); /* shares memory; writable: an export until it is gone */
PyObject *asen_py_from_any(asen_py_state *state, PyObject *object, bool always_copy); /* Tensor */

/* The tables of methods and operators of the type. */
extern PyMethodDef asen_py_tensor_methods[];   /* python/tensor.c */
extern PyMethodDef asen_py_convert_methods[];  /* python/convert.c */
extern PyMethodDef asen_py_dlpack_methods[];   /* python/dlpack.c */
extern PyMethodDef asen_py_shape_methods[];    /* python/shape.c */
extern PyMethodDef asen_py_operator_methods[]; /* python/operators.c */
bool asen_py_is_method(const char *op);        /* whether a row of ops.def is a method of Tensor as it stands */
PyMethodDef *asen_py_op_methods(void);         /* python/ops.c, from ops.def */
PyObject *asen_py_index(PyObject *self, PyObject *key); /* python/index.c */
int asen_py_set_index(PyObject *self, PyObject *key, PyObject *value);

/* The operators (python/operators.c). */
#define ASEN_PY_BINARY_OPERATORS(SLOT)                                                                                 \
    SLOT(nb_add) SLOT(nb_subtract) SLOT(nb_multiply) SLOT(nb_true_divide) SLOT(nb_floor_divide)                        \
    SLOT(nb_matrix_multiply) SLOT(nb_and) SLOT(nb_or) SLOT(nb_xor)                                                     \
    SLOT(nb_inplace_add) SLOT(nb_inplace_subtract) SLOT(nb_inplace_multiply) SLOT(nb_inplace_true_divide)              \
    SLOT(nb_inplace_floor_divide) SLOT(nb_inplace_and) SLOT(nb_inplace_or) SLOT(nb_inplace_xor)
#define SLOT(name) PyObject *asen_py_##name(PyObject *a, PyObject *b);
ASEN_PY_BINARY_OPERATORS(SLOT)
#undef SLOT
PyObject *asen_py_nb_negative(PyObject *a);
PyObject *asen_py_nb_invert(PyObject *a);
PyObject *asen_py_nb_power(PyObject *a, PyObject *b, PyObject *modulus);
PyObject *asen_py_compare(PyObject *a, PyObject *b, int relation);
Py_hash_t asen_py_hash(PyObject *self);
#define ASEN_PY_SLOT(name) {Py_##name, asen_py_##name},
#define ASEN_PY_OPERATORS                                                                                              \
    ASEN_PY_BINARY_OPERATORS(ASEN_PY_SLOT)                                                                             \
    {Py_nb_negative, asen_py_nb_negative}, {Py_nb_invert, asen_py_nb_invert}, {Py_nb_power, asen_py_nb_power},         \
    {Py_tp_richcompare, asen_py_compare}, {Py_tp_hash, asen_py_hash}

#endif
