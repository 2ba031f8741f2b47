/* JPEG decoding, resizing and the transforms, over buffers. Arrays come in as any
 * C-contiguous buffer of uint8 or float32; the caller allocates the outputs. The GIL is released
 * around all work, while the buffers are held. */
#include "python/module.h"

#include <string.h>

#include "image/image.h"

/* Takes a C-contiguous buffer of `ndim` axes of `kind` ('B' uint8, 'f' float32); 0, or -1 with an
 * exception that names the argument. The caller releases it. */
static int take_buffer(PyObject *object, char kind, int ndim, int writable, const char *name, Py_buffer *view)
{
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0)
        return -1;
    const char *format = view->format == NULL ? "B" : view->format;
    if (*format == '@' || *format == '=')
        format++;
    if (format[0] != kind || format[1] != '\0' || view->ndim != ndim) {
        PyErr_Format(PyExc_TypeError, "%s must be a %s array of %d axes, but has format %s and %d axes", name,
                     kind == 'B' ? "uint8" : "float32", ndim, format, view->ndim);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

static int check_pixels(const Py_buffer *view, const char *name)
{
    if (view->shape[2] == 3)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s must have the shape (height, width, 3), but the last axis has %zd", name,
                 view->shape[2]);
    return -1;
}

static asen_image image_of(const Py_buffer *view)
{
    const uint8_t *pixels = view->buf;
    return (asen_image){pixels, view->shape[0], view->shape[1], 3 * (int64_t)view->shape[1], pixels + view->len};
}

/* A list of images, as buffers. */
typedef struct {
    Py_ssize_t count;
    Py_buffer *views;
} image_list;

static void release_images(image_list *list)
{
    for (Py_ssize_t i = 0; i < list->count; i++)
        PyBuffer_Release(&list->views[i]);
    PyMem_Free(list->views);
}

static int take_images(PyObject *object, image_list *list)
{
    *list = (image_list){0, NULL};
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
        if (take_buffer(PyTuple_GET_ITEM(items, i), 'B', 3, 0, "an image", view) < 0)
            goto fail;
        list->count = i + 1;
        if (check_pixels(view, "an image") < 0)
            goto fail;
    }
    Py_DECREF(items);
    return 0;
fail:
    Py_DECREF(items);
    release_images(list);
    return -1;
}

/* The outputs: float32 or uint8 (count, size, size, 3). */
static int take_output(PyObject *object, Py_buffer *view)
{
    if (take_buffer(object, 'B', 4, 1, "out", view) < 0) {
        PyErr_Clear();
        if (take_buffer(object, 'f', 4, 1, "out", view) < 0)
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

PyDoc_STRVAR(jpeg_size_doc, "jpeg_size(data, /)\n--\n\n"
"(height, width) from the header of a JPEG file in memory.\n\n"
"OSError: broken or far too large; NotImplementedError: a kind that Pillow has to decode.");

static PyObject *jpeg_size(PyObject *module, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int64_t height, width;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_jpeg_size(view.buf, (size_t)view.len, &height, &width);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (status)
        return asen_py_raise(status);
    return Py_BuildValue("LL", (long long)height, (long long)width);
}

PyDoc_STRVAR(jpeg_decode_doc, "jpeg_decode(data, /)\n--\n\n"
"(height, width, bytearray of RGB pixels) of a JPEG file in memory.\n\n"
"OSError: broken, truncated or far too large; NotImplementedError: a kind that Pillow has to decode.");

static PyObject *jpeg_decode(PyObject *module, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *pixels = NULL;
    int64_t height, width;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_jpeg_size(view.buf, (size_t)view.len, &height, &width);
    Py_END_ALLOW_THREADS
    if (status)
        goto fail;
    pixels = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(height * width * 3));
    if (pixels == NULL)
        goto fail;
    uint8_t *out = (uint8_t *)PyByteArray_AS_STRING(pixels);
    Py_BEGIN_ALLOW_THREADS
    status = asen_jpeg_decode(view.buf, (size_t)view.len, out, height, width);
    Py_END_ALLOW_THREADS
    if (status)
        goto fail;
    PyBuffer_Release(&view);
    return Py_BuildValue("LLN", (long long)height, (long long)width, pixels);
fail:
    PyBuffer_Release(&view);
    Py_XDECREF(pixels);
    return status ? asen_py_raise(status) : NULL;
}

PyDoc_STRVAR(image_resize_doc, "image_resize(image, out, height, width, y=0, x=0, /)\n--\n\n"
"Writes the window at (y, x) of the uint8 image resized to height x width as Pillow's BILINEAR\n"
"does; the window's size is that of out, uint8 (rows, columns, 3).");

static PyObject *image_resize(PyObject *module, PyObject *args)
{
    PyObject *image_object, *out_object;
    long long height, width, y = 0, x = 0;
    if (!PyArg_ParseTuple(args, "OOLL|LL:image_resize", &image_object, &out_object, &height, &width, &y, &x))
        return NULL;
    Py_buffer image, out;
    if (take_buffer(image_object, 'B', 3, 0, "image", &image) < 0)
        return NULL;
    if (take_buffer(out_object, 'B', 3, 1, "out", &out) < 0) {
        PyBuffer_Release(&image);
        return NULL;
    }
    int status = -1;
    if (check_pixels(&image, "image") < 0 || check_pixels(&out, "out") < 0)
        goto done;
    asen_image in = image_of(&image);
    asen_image_window window = {y, x, out.shape[0], out.shape[1]};
    Py_BEGIN_ALLOW_THREADS
    status = asen_image_resize(&in, height, width, window, out.buf);
    Py_END_ALLOW_THREADS
    if (status)
        asen_py_raise(status);
done:
    PyBuffer_Release(&image);
    PyBuffer_Release(&out);
    if (status)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(map_resize_doc, "map_resize(map, out, /)\n--\n\n"
"Resizes the float32 map (height, width) to the shape of out, as OpenCV's INTER_LINEAR in float32.");

static PyObject *map_resize(PyObject *module, PyObject *args)
{
    PyObject *map_object, *out_object;
    if (!PyArg_ParseTuple(args, "OO:map_resize", &map_object, &out_object))
        return NULL;
    Py_buffer map, out;
    if (take_buffer(map_object, 'f', 2, 0, "map", &map) < 0)
        return NULL;
    if (take_buffer(out_object, 'f', 2, 1, "out", &out) < 0) {
        PyBuffer_Release(&map);
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_map_resize(map.buf, map.shape[0], map.shape[1], out.buf, out.shape[0], out.shape[1]);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&map);
    PyBuffer_Release(&out);
    if (status)
        return asen_py_raise(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(local_box_doc, "local_box(map, global_size, threshold, height, width, /)\n--\n\n"
"(x, y, d): the square that the float32 attention map (rows, columns) marks in an image of\n"
"height x width pixels.");

static PyObject *local_box(PyObject *module, PyObject *args)
{
    PyObject *map_object;
    long long global_size, height, width;
    double threshold;
    if (!PyArg_ParseTuple(args, "OLdLL:local_box", &map_object, &global_size, &threshold, &height, &width))
        return NULL;
    Py_buffer map;
    if (take_buffer(map_object, 'f', 2, 0, "map", &map) < 0)
        return NULL;
    asen_image_box box;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = asen_map_box(map.buf, map.shape[0], map.shape[1], global_size, threshold, height, width, &box);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&map);
    if (status)
        return asen_py_raise(status);
    return Py_BuildValue("LLL", (long long)box.x, (long long)box.y, (long long)box.d);
}

PyDoc_STRVAR(global_batch_doc, "global_batch(images, slots, out, mean, std, /)\n--\n\n"
"The global transform of uint8 images (height, width, 3): image i goes to out[slots[i]], out being\n"
"(count, size, size, 3), float32, or uint8 for pixels that are not normalised. mean and std are tuples of three.");

static PyObject *global_batch(PyObject *module, PyObject *args)
{
    PyObject *images_object, *slots_object, *out_object;
    float mean[3], std[3];
    if (!PyArg_ParseTuple(args, "OOO(fff)(fff):global_batch", &images_object, &slots_object, &out_object, mean,
                          mean + 1, mean + 2, std, std + 1, std + 2))
        return NULL;
    image_list images;
    if (take_images(images_object, &images) < 0)
        return NULL;
    Py_buffer out;
    if (take_output(out_object, &out) < 0) {
        release_images(&images);
        return NULL;
    }
    int status = -1;
    Py_ssize_t *slots = NULL;
    PyObject *items = asen_py_items(slots_object, "slots must be a sequence of integers");
    if (items == NULL)
        goto done;
    if (PyTuple_GET_SIZE(items) != images.count) {
        PyErr_Format(PyExc_ValueError, "%zd slots for %zd images", PyTuple_GET_SIZE(items), images.count);
        goto done;
    }
    slots = PyMem_Malloc((size_t)(images.count + 1) * sizeof *slots);
    if (slots == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < images.count; i++) {
        slots[i] = PyNumber_AsSsize_t(PyTuple_GET_ITEM(items, i), PyExc_IndexError);
        if (slots[i] == -1 && PyErr_Occurred())
            goto done;
        if (slots[i] < 0 || slots[i] >= out.shape[0]) {
            PyErr_Format(PyExc_IndexError, "slot %zd of a batch of %zd", slots[i], out.shape[0]);
            goto done;
        }
    }
    status = 0;
    Py_BEGIN_ALLOW_THREADS
    asen_image_scale scale, *wanted = out.itemsize == 1 ? NULL : &scale;
    asen_image_scale_init(&scale, mean, std);
    int64_t size = out.shape[1];
    for (Py_ssize_t i = 0; i < images.count && status == 0; i++) {
        asen_image in = image_of(&images.views[i]);
        status = asen_image_global(&in, size, wanted, (char *)out.buf + slots[i] * size * size * 3 * out.itemsize);
    }
    Py_END_ALLOW_THREADS
    if (status)
        asen_py_raise(status);
done:
    PyMem_Free(slots);
    Py_XDECREF(items);
    PyBuffer_Release(&out);
    release_images(&images);
    if (status)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(local_batch_doc, "local_batch(images, maps, global_size, threshold, out, mean, std, /)\n--\n\n"
"The local transform of uint8 images (height, width, 3) with float32 maps (count, rows, columns),\n"
"into out, (count, size, size, 3) as for global_batch. Returns the squares as a list of (x, y, d).");

static PyObject *local_batch(PyObject *module, PyObject *args)
{
    PyObject *images_object, *maps_object, *out_object;
    long long global_size;
    double threshold;
    float mean[3], std[3];
    if (!PyArg_ParseTuple(args, "OOLdO(fff)(fff):local_batch", &images_object, &maps_object, &global_size,
                          &threshold, &out_object, mean, mean + 1, mean + 2, std, std + 1, std + 2))
        return NULL;
    image_list images;
    if (take_images(images_object, &images) < 0)
        return NULL;
    Py_buffer out, maps;
    if (take_output(out_object, &out) < 0) {
        release_images(&images);
        return NULL;
    }
    if (take_buffer(maps_object, 'f', 3, 0, "maps", &maps) < 0) {
        PyBuffer_Release(&out);
        release_images(&images);
        return NULL;
    }
    int status = -1;
    PyObject *list = NULL;
    asen_image_box *boxes = NULL;
    if (maps.shape[0] != images.count || out.shape[0] != images.count) {
        PyErr_Format(PyExc_ValueError, "%zd images, %zd maps and %zd outputs: they must be as many", images.count,
                     maps.shape[0], out.shape[0]);
        goto done;
    }
    boxes = PyMem_Calloc((size_t)images.count + 1, sizeof *boxes);
    if (boxes == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    status = 0;
    Py_BEGIN_ALLOW_THREADS
    asen_image_scale scale, *wanted = out.itemsize == 1 ? NULL : &scale;
    asen_image_scale_init(&scale, mean, std);
    int64_t size = out.shape[1], map_height = maps.shape[1], map_width = maps.shape[2];
    for (Py_ssize_t i = 0; i < images.count && status == 0; i++) {
        asen_image in = image_of(&images.views[i]);
        status = asen_map_box((const float *)maps.buf + i * map_height * map_width, map_height, map_width,
                              global_size, threshold, in.height, in.width, &boxes[i]);
        if (status == 0)
            status = asen_image_local(&in, boxes[i], size, wanted, (char *)out.buf + i * size * size * 3 * out.itemsize);
    }
    Py_END_ALLOW_THREADS
    if (status) {
        asen_py_raise(status);
        goto done;
    }
    list = PyList_New(images.count);
    for (Py_ssize_t i = 0; list != NULL && i < images.count; i++) {
        PyObject *box = Py_BuildValue("LLL", (long long)boxes[i].x, (long long)boxes[i].y, (long long)boxes[i].d);
        if (box == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, box);
    }
done:
    PyMem_Free(boxes);
    PyBuffer_Release(&maps);
    PyBuffer_Release(&out);
    release_images(&images);
    return list;
}

static PyMethodDef image_methods[] = {
    {"jpeg_size", jpeg_size, METH_O, jpeg_size_doc},
    {"jpeg_decode", jpeg_decode, METH_O, jpeg_decode_doc},
    {"image_resize", image_resize, METH_VARARGS, image_resize_doc},
    {"map_resize", map_resize, METH_VARARGS, map_resize_doc},
    {"local_box", local_box, METH_VARARGS, local_box_doc},
    {"global_batch", global_batch, METH_VARARGS, global_batch_doc},
    {"local_batch", local_batch, METH_VARARGS, local_batch_doc},
    {NULL, NULL, 0, NULL},
};

int asen_py_add_image(PyObject *module)
{
    return PyModule_AddFunctions(module, image_methods);
}
