/* JPEG decoding, resizing and the transforms, over buffers. Arrays come in as any
 * C-contiguous buffer of uint8 or float32; the caller allocates the outputs. The GIL is released
 * around all work, while the buffers are held. */
#include "python/pixels.h"

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
    if (asen_py_take_buffer(image_object, 'B', 3, 0, "image", &image) < 0)
        return NULL;
    if (asen_py_take_buffer(out_object, 'B', 3, 1, "out", &out) < 0) {
        PyBuffer_Release(&image);
        return NULL;
    }
    int status = -1;
    if (asen_py_check_pixels(&image, "image") < 0 || asen_py_check_pixels(&out, "out") < 0)
        goto done;
    asen_image in = asen_py_image_of(&image);
    asen_image_window window = {y, x, out.shape[0], out.shape[1]};
    Py_BEGIN_ALLOW_THREADS
    status = asen_image_resize(&in, height, width, window, 0, out.buf);
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
    if (asen_py_take_buffer(map_object, 'f', 2, 0, "map", &map) < 0)
        return NULL;
    if (asen_py_take_buffer(out_object, 'f', 2, 1, "out", &out) < 0) {
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
    if (asen_py_take_buffer(map_object, 'f', 2, 0, "map", &map) < 0)
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
    asen_py_images images;
    if (asen_py_take_images(images_object, &images) < 0)
        return NULL;
    Py_buffer out;
    if (asen_py_take_output(out_object, &out) < 0) {
        asen_py_release_images(&images);
        return NULL;
    }
    int status = -1;
    int64_t *slots = asen_py_take_integers(slots_object, images.count, "slots");
    if (slots == NULL || asen_py_check_slots(slots, images.count, out.shape[0]) < 0)
        goto done;
    status = 0;
    Py_BEGIN_ALLOW_THREADS
    asen_image_scale scale, *wanted = out.itemsize == 1 ? NULL : &scale;
    asen_image_scale_init(&scale, mean, std);
    int64_t size = out.shape[1];
    for (Py_ssize_t i = 0; i < images.count && status == 0; i++) {
        asen_image in = asen_py_image_of(&images.views[i]);
        status = asen_image_global(&in, size, wanted, (char *)out.buf + slots[i] * size * size * 3 * out.itemsize);
    }
    Py_END_ALLOW_THREADS
    if (status)
        asen_py_raise(status);
done:
    PyMem_Free(slots);
    PyBuffer_Release(&out);
    asen_py_release_images(&images);
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
    asen_py_images images;
    if (asen_py_take_images(images_object, &images) < 0)
        return NULL;
    Py_buffer out, maps;
    if (asen_py_take_output(out_object, &out) < 0) {
        asen_py_release_images(&images);
        return NULL;
    }
    if (asen_py_take_buffer(maps_object, 'f', 3, 0, "maps", &maps) < 0) {
        PyBuffer_Release(&out);
        asen_py_release_images(&images);
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
        asen_image in = asen_py_image_of(&images.views[i]);
        status = asen_map_box((const float *)maps.buf + i * map_height * map_width, map_height, map_width,
                              global_size, threshold, in.height, in.width, &boxes[i]);
        asen_image_window part = {boxes[i].y, boxes[i].x, boxes[i].d, boxes[i].d};
        if (status == 0)
            status = asen_image_local(&in, part, size, wanted, (char *)out.buf + i * size * size * 3 * out.itemsize);
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
    asen_py_release_images(&images);
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
