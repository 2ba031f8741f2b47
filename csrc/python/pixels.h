/* Arrays of pixels and maps as Python passes them: what the functions over images take. Each function
 * returns 0, or -1 with an exception that names the argument. */
#ifndef ASEN_PY_PIXELS_H
#define ASEN_PY_PIXELS_H

#include "python/module.h"

#include "image/image.h"

/* A list of images, as buffers. */
typedef struct {
    Py_ssize_t count;
    Py_buffer *views;
} asen_py_images;

/* Takes a C-contiguous buffer of `ndim` axes of `kind` ('B' uint8, 'f' float32, 'd' float64). The caller releases it. */
int asen_py_take_buffer(PyObject *object, char kind, int ndim, int writable, const char *name, Py_buffer *view);

/* Whether the last axis of a buffer of three axes has the three channels. */
int asen_py_check_pixels(const Py_buffer *view, const char *name);

/* Borrows from the view. */
asen_image asen_py_image_of(const Py_buffer *view);

/* A sequence of uint8 (height, width, 3). The caller releases the list. */
int asen_py_take_images(PyObject *object, asen_py_images *list);
void asen_py_release_images(asen_py_images *list);

/* The outputs: float32 or uint8 (count, size, size, 3). The caller releases the view. */
int asen_py_take_output(PyObject *object, Py_buffer *view);

/* A sequence of `count` integers (`what`, for messages) as a new array, for PyMem_Free; NULL with an exception. */
int64_t *asen_py_take_integers(PyObject *object, Py_ssize_t count, const char *what);

/* Whether all slots lie in [0, places). */
int asen_py_check_slots(const int64_t *slots, Py_ssize_t count, Py_ssize_t places);

#endif
