/* The module `asenpp._asen`: multi-phase initialisation, the module state, and the mapping of
 * status codes to exceptions. What the module offers is added by the other files of this
 * folder. */
#include "python/module.h"

#include "autograd/tape.h"
#include "cpu/cpu.h"
#include "ops/schema.h"

PyObject *asen_py_raise(int status)
{
    PyObject *type = PyExc_RuntimeError;
    switch (status) {
    case ASEN_ERR_VALUE: type = PyExc_ValueError; break;
    case ASEN_ERR_TYPE: type = PyExc_TypeError; break;
    case ASEN_ERR_INDEX: type = PyExc_IndexError; break;
    case ASEN_ERR_MEMORY: type = PyExc_MemoryError; break;
    case ASEN_ERR_IO: type = PyExc_OSError; break;
    case ASEN_ERR_UNSUPPORTED: type = PyExc_NotImplementedError; break;
    }
    /* File names in messages may be any bytes. */
    PyObject *text = PyUnicode_DecodeUTF8(asen_fail_message(), (Py_ssize_t)strlen(asen_fail_message()),
                                          "surrogateescape");
    if (text != NULL) {
        PyErr_SetObject(type, text);
        Py_DECREF(text);
    }
    return NULL;
}

PyObject *asen_py_items(PyObject *sequence, const char *message)
{
    PyObject *items = PySequence_Fast(sequence, message); /* a tuple or a list */
    if (items != NULL && !PyTuple_CheckExact(items))
        Py_SETREF(items, PyList_AsTuple(items));
    return items;
}

static int module_exec(PyObject *module)
{
    static int (*const add[])(PyObject *) = {
        asen_py_add_config, asen_py_add_numpy,   asen_py_add_tensor, asen_py_add_ops,  asen_py_add_operators,
        asen_py_add_copying, asen_py_add_dlpack, asen_py_add_optim,  asen_py_add_runtime, asen_py_add_modes,
        asen_py_add_warn,   asen_py_add_metrics, asen_py_add_image, asen_py_add_augment,
    };
    asen_schema_get((asen_op)0); /* reads all rows, while no other thread can fork in the middle of it */
    int status = asen_cpu_open();
    if (status == ASEN_OK)
        status = asen_tape_open();
    if (status != ASEN_OK) {
        asen_py_raise(status);
        return -1;
    }
    for (size_t i = 0; i < sizeof add / sizeof *add; i++)
        if (add[i](module) < 0)
            return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    asen_py_state *state = PyModule_GetState(module);
    Py_VISIT(state->tensor_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    asen_py_state *state = PyModule_GetState(module);
    Py_CLEAR(state->tensor_type);
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

PyModuleDef asen_py_module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "asenpp._asen",
    .m_doc = "The C core of asenpp: tensors, ops, autograd, optimizers, images, configuration.",
    .m_size = sizeof(asen_py_state),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__asen(void)
{
    return PyModuleDef_Init(&asen_py_module_def);
}
