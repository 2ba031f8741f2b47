#include "python/pixels.h"

int asen_py_take_buffer(PyObject *object, char kind, int ndim, int writable, const char *name, Py_buffer *view)
{
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0)
        return -1;
    const char *format = view->format == NULL ? "B" : view->format;
    if (*format == '@' || *format == '=')
        format++;
    if (format[0] != kind || format[1] != '\0' || view->ndim != ndim) {
        PyErr_Format(PyExc_TypeError, "%s must be a %s array of %d axes, but has format %s and %d axes", name,
                     kind == 'B' ? "uint8" : kind == 'f' ? "float32" : "float64", ndim, format, view->ndim);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

int asen_py_check_pixels(const Py_buffer *view, const char *name)
{
    if (view->shape[2] == 3)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s must have the shape (height, width, 3), but the last axis has %zd", name,
                 view->shape[2]);
    return -1;
}

asen_image asen_py_image_of(const Py_buffer *view)
{
    const uint8_t *pixels = view->buf;
    return (asen_image){pixels, view->shape[0], view->shape[1], 3 * (int64_t)view->shape[1], pixels + view->len};
}

void asen_py_release_images(asen_py_images *list)
{
    for (Py_ssize_t i = 0; i < list->count; i++)
        PyBuffer_Release(&list->views[i]);
    PyMem_Free(list->views);
}

int asen_py_take_images(PyObject *object, asen_py_images *list)
{
    *list = (asen_py_images){0, NULL};
    PyObject *items = asen_py_items(object, "images must be a sequence of uint8 arrays");
    if (items == NULL)
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    list->views = PyMem_Calloc((size_t)(count > 0 ? count : 1), sizeof *list->views);
    if (list->views == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_buffer *view = &list->views[i];
        if (asen_py_take_buffer(PyTuple_GET_ITEM(items, i), 'B', 3, 0, "an image", view) < 0)
            goto fail;
        list->count = i + 1;
        if (asen_py_check_pixels(view, "an image") < 0)
            goto fail;
    }
    Py_DECREF(items);
    return 0;
fail:
    Py_DECREF(items);
    asen_py_release_images(list);
    return -1;
}

int asen_py_take_output(PyObject *object, Py_buffer *view)
{
    if (asen_py_take_buffer(object, 'B', 4, 1, "out", view) < 0) {
        PyErr_Clear();
        if (asen_py_take_buffer(object, 'f', 4, 1, "out", view) < 0)
            return -1;
    }
    if (view->shape[1] != view->shape[2] || view->shape[3] != 3) {
        PyErr_Format(PyExc_ValueError, "out must have the shape (count, size, size, 3), but has (%zd, %zd, %zd, %zd)",
                     view->shape[0], view->shape[1], view->shape[2], view->shape[3]);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

int64_t *asen_py_take_integers(PyObject *object, Py_ssize_t count, const char *what)
{
    int64_t *numbers = NULL;
    char message[64];
    PyOS_snprintf(message, sizeof message, "%s must be a sequence of integers", what);
    PyObject *items = asen_py_items(object, message);
    if (items == NULL)
        return NULL;
    if (PyTuple_GET_SIZE(items) != count) {
        PyErr_Format(PyExc_ValueError, "%zd %s for %zd images", PyTuple_GET_SIZE(items), what, count);
        goto fail;
    }
    numbers = PyMem_Malloc((size_t)(count + 1) * sizeof *numbers);
    if (numbers == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        numbers[i] = PyNumber_AsSsize_t(PyTuple_GET_ITEM(items, i), PyExc_IndexError);
        if (numbers[i] == -1 && PyErr_Occurred())
            goto fail;
    }
    Py_DECREF(items);
    return numbers;
fail:
    PyMem_Free(numbers);
    Py_DECREF(items);
    return NULL;
}

int asen_py_check_slots(const int64_t *slots, Py_ssize_t count, Py_ssize_t places)
{
    for (Py_ssize_t i = 0; i < count; i++)
        if (slots[i] < 0 || slots[i] >= places) {
            PyErr_Format(PyExc_IndexError, "slot %zd of a batch of %zd", (Py_ssize_t)slots[i], places);
            return -1;
        }
    return 0;
}
