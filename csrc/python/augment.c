/* Augmentation over buffers, as image.c has the plain transforms. What was drawn for an image travels through Python
 * as a row of float64, in the order of `pack`. */
#include "python/pixels.h"

#include <math.h>

#include "image/augment.h"

#define FIELDS 13

static void pack(const asen_augment_draw *d, double row[FIELDS])
{
    const double values[FIELDS] = {
        d->mirrored,
        (double)d->shown.x, (double)d->shown.y, (double)d->shown.width, (double)d->shown.height,
        (double)d->erased.x, (double)d->erased.y, (double)d->erased.width, (double)d->erased.height,
        d->brightness, d->contrast, d->saturation, d->grey,
    };
    for (int i = 0; i < FIELDS; i++)
        row[i] = values[i];
}

static asen_image_window window_of(const double xywh[4])
{
    return (asen_image_window){(int64_t)xywh[1], (int64_t)xywh[0], (int64_t)xywh[3], (int64_t)xywh[2]};
}

/* ASEN_ERR_VALUE: not what `pack` writes. */
static int unpack(const double row[FIELDS], asen_augment_draw *d)
{
    int valid = 1;
    for (int i = 0; i < FIELDS; i++)
        valid = valid && isfinite(row[i]) && row[i] >= 0.0 && row[i] <= (i < 9 ? 0x1p28 : i < 12 ? 2.0 : 255.0);
    if (!valid)
        return asen_fail(ASEN_ERR_VALUE, "draws must be as the augmented batch left them");
    *d = (asen_augment_draw){row[0] != 0.0, window_of(row + 1), window_of(row + 5), row[9], row[10], row[11], row[12]};
    return ASEN_OK;
}

static int take_draws(PyObject *object, Py_ssize_t count, int writable, Py_buffer *view)
{
    if (asen_py_take_buffer(object, 'd', 2, writable, "draws", view) < 0)
        return -1;
    if (view->shape[0] == count && view->shape[1] == FIELDS)
        return 0;
    PyErr_Format(PyExc_ValueError, "draws must have the shape (%zd, %d), but has (%zd, %zd)", count, FIELDS,
                 view->shape[0], view->shape[1]);
    PyBuffer_Release(view);
    return -1;
}

PyDoc_STRVAR(augment_draw_doc, "augment_draw(image_id, height, width, size, settings, seed, epoch, /)\n--\n\n"
"What is drawn for an image of height x width pixels that is shown at size x size: (mirrored, x, y, width, height of\n"
"what is shown, x, y, width, height of what is erased from it, brightness, contrast, saturation, 0), floats.\n"
"settings: (flip, crop, erase, jitter).");

static PyObject *augment_draw(PyObject *module, PyObject *args)
{
    long long image_id, height, width, size;
    asen_augment s;
    unsigned long long seed, epoch;
    if (!PyArg_ParseTuple(args, "LLLL(dddd)KK:augment_draw", &image_id, &height, &width, &size, &s.flip, &s.crop,
                          &s.erase, &s.jitter, &seed, &epoch))
        return NULL;
    int status = asen_augment_check(&s);
    if (status)
        return asen_py_raise(status);
    if (height < 1 || width < 1 || size < 1 || size > ASEN_IMAGE_MAX_SIZE || height > ASEN_IMAGE_MAX_PIXELS / width)
        return PyErr_Format(PyExc_ValueError, "an image of %lld x %lld pixels cannot be shown at %lld x %lld", width,
                            height, size, size);
    asen_augment_draw draw;
    asen_augment_draw_init(&draw, &s, seed, epoch, image_id, height, width, size);
    double row[FIELDS];
    pack(&draw, row);
    PyObject *tuple = PyTuple_New(FIELDS);
    for (int i = 0; tuple != NULL && i < FIELDS; i++) {
        PyObject *value = PyFloat_FromDouble(row[i]);
        if (value == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, value);
    }
    return tuple;
}

/* The views of a batch: what augment_batch works on without the GIL. */
typedef struct {
    const asen_py_images *images;
    const int64_t *ids, *slots;
    const Py_buffer *out, *draws;
    asen_augment settings;
    uint64_t seed, epoch;
    float mean[3], std[3];
} augmented;

static int make_views(const augmented *a)
{
    asen_image_scale scale, *wanted = a->out->itemsize == 1 ? NULL : &scale;
    asen_image_scale_init(&scale, a->mean, a->std);
    uint8_t mean[3];
    for (int c = 0; c < 3; c++) {
        double byte = floor(255.0 * (double)a->mean[c] + 0.5);
        mean[c] = (uint8_t)(byte > 0.0 ? byte < 255.0 ? byte : 255.0 : 0.0);
    }
    int64_t size = a->out->shape[1], bytes = size * size * 3 * a->out->itemsize;
    for (Py_ssize_t i = 0; i < a->images->count; i++) {
        asen_image in = asen_py_image_of(&a->images->views[i]);
        if (in.height < 1 || in.width < 1)
            return asen_fail(ASEN_ERR_VALUE, "an image of %lld x %lld pixels has nothing to show",
                             (long long)in.width, (long long)in.height);
        asen_augment_draw draw;
        asen_augment_draw_init(&draw, &a->settings, a->seed, a->epoch, a->ids[i], in.height, in.width, size);
        int status = asen_augment_global(&in, size, &a->settings, &draw, wanted, mean,
                                         (char *)a->out->buf + a->slots[i] * bytes);
        if (status)
            return status;
        pack(&draw, (double *)a->draws->buf + a->slots[i] * FIELDS);
    }
    return ASEN_OK;
}

PyDoc_STRVAR(augment_batch_doc,
"augment_batch(images, ids, slots, out, draws, settings, seed, epoch, mean, std, /)\n--\n\n"
"As global_batch, augmented: what is drawn depends on (seed, epoch, ids[i]) and the image's size. settings: (flip,\n"
"crop, erase, jitter). What was drawn goes to draws[slots[i]], float64 (count, 13): see augment_draw; the last is the\n"
"mean grey that contrast went by.");

static PyObject *augment_batch(PyObject *module, PyObject *args)
{
    PyObject *images_object, *ids_object, *slots_object, *out_object, *draws_object;
    augmented a;
    unsigned long long seed, epoch;
    if (!PyArg_ParseTuple(args, "OOOOO(dddd)KK(fff)(fff):augment_batch", &images_object, &ids_object, &slots_object,
                          &out_object, &draws_object, &a.settings.flip, &a.settings.crop, &a.settings.erase,
                          &a.settings.jitter, &seed, &epoch, a.mean, a.mean + 1, a.mean + 2, a.std, a.std + 1,
                          a.std + 2))
        return NULL;
    int status = asen_augment_check(&a.settings);
    if (status)
        return asen_py_raise(status);
    asen_py_images images;
    Py_buffer out, draws;
    if (asen_py_take_images(images_object, &images) < 0)
        return NULL;
    if (asen_py_take_output(out_object, &out) < 0) {
        asen_py_release_images(&images);
        return NULL;
    }
    if (take_draws(draws_object, out.shape[0], 1, &draws) < 0) {
        PyBuffer_Release(&out);
        asen_py_release_images(&images);
        return NULL;
    }
    status = -1;
    int64_t *slots = NULL, *ids = asen_py_take_integers(ids_object, images.count, "ids");
    if (ids == NULL)
        goto done;
    slots = asen_py_take_integers(slots_object, images.count, "slots");
    if (slots == NULL || asen_py_check_slots(slots, images.count, out.shape[0]) < 0)
        goto done;
    a.images = &images;
    a.ids = ids;
    a.slots = slots;
    a.out = &out;
    a.draws = &draws;
    a.seed = seed;
    a.epoch = epoch;
    Py_BEGIN_ALLOW_THREADS
    status = make_views(&a);
    Py_END_ALLOW_THREADS
    if (status)
        asen_py_raise(status);
done:
    PyMem_Free(slots);
    PyMem_Free(ids);
    PyBuffer_Release(&draws);
    PyBuffer_Release(&out);
    asen_py_release_images(&images);
    if (status)
        return NULL;
    Py_RETURN_NONE;
}

/* What augment_local_batch works on without the GIL. */
typedef struct {
    const asen_py_images *images;
    const Py_buffer *maps, *draws, *out;
    int64_t global_size;
    double threshold;
    float mean[3], std[3];
    asen_image_window *parts; /* (count): what was cut out */
} marked;

static int make_crops(const marked *m)
{
    asen_image_scale scale, *wanted = m->out->itemsize == 1 ? NULL : &scale;
    asen_image_scale_init(&scale, m->mean, m->std);
    int64_t size = m->out->shape[1], bytes = size * size * 3 * m->out->itemsize;
    int64_t rows = m->maps->shape[1], columns = m->maps->shape[2];
    for (Py_ssize_t i = 0; i < m->images->count; i++) {
        asen_image in = asen_py_image_of(&m->images->views[i]);
        asen_augment_draw draw;
        asen_image_box square;
        int status = unpack((const double *)m->draws->buf + i * FIELDS, &draw);
        if (status == ASEN_OK)
            status = asen_map_square((const float *)m->maps->buf + i * rows * columns, rows, columns, m->global_size,
                                     m->threshold, &square);
        if (status)
            return status;
        m->parts[i] = asen_map_part(square, m->global_size, draw.shown, draw.mirrored);
        status = asen_augment_local(&in, m->parts[i], size, &draw, wanted, (char *)m->out->buf + i * bytes);
        if (status)
            return status;
    }
    return ASEN_OK;
}

static PyObject *list_of_parts(const asen_image_window *parts, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *part = Py_BuildValue("LLLL", (long long)parts[i].x, (long long)parts[i].y, (long long)parts[i].width,
                                       (long long)parts[i].height);
        if (part == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, part);
    }
    return list;
}

PyDoc_STRVAR(augment_local_batch_doc,
"augment_local_batch(images, maps, draws, global_size, threshold, out, mean, std, /)\n--\n\n"
"As local_batch, for maps of views that augment_batch made and of which it wrote `draws`: what a map marks is cut out\n"
"of the original image, mirrored and jittered as the view was. Returns the parts as a list of (x, y, width, height).");

static PyObject *augment_local_batch(PyObject *module, PyObject *args)
{
    PyObject *images_object, *maps_object, *draws_object, *out_object, *list = NULL;
    marked m;
    long long global_size;
    if (!PyArg_ParseTuple(args, "OOOLdO(fff)(fff):augment_local_batch", &images_object, &maps_object, &draws_object,
                          &global_size, &m.threshold, &out_object, m.mean, m.mean + 1, m.mean + 2, m.std, m.std + 1,
                          m.std + 2))
        return NULL;
    asen_py_images images;
    Py_buffer maps = {0}, draws = {0}, out = {0}; /* releasing what was not taken does nothing */
    m.parts = NULL;
    if (asen_py_take_images(images_object, &images) < 0)
        return NULL;
    if (asen_py_take_output(out_object, &out) < 0 ||
        asen_py_take_buffer(maps_object, 'f', 3, 0, "maps", &maps) < 0 ||
        take_draws(draws_object, images.count, 0, &draws) < 0)
        goto done;
    if (maps.shape[0] != images.count || out.shape[0] != images.count) {
        PyErr_Format(PyExc_ValueError, "%zd images, %zd maps and %zd outputs: they must be as many", images.count,
                     maps.shape[0], out.shape[0]);
        goto done;
    }
    m.parts = PyMem_Calloc((size_t)images.count + 1, sizeof *m.parts);
    if (m.parts == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    m.images = &images;
    m.maps = &maps;
    m.draws = &draws;
    m.out = &out;
    m.global_size = global_size;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = make_crops(&m);
    Py_END_ALLOW_THREADS
    if (status)
        asen_py_raise(status);
    else
        list = list_of_parts(m.parts, images.count);
done:
    PyMem_Free(m.parts);
    PyBuffer_Release(&maps);
    PyBuffer_Release(&draws);
    PyBuffer_Release(&out);
    asen_py_release_images(&images);
    return list;
}

static PyMethodDef augment_methods[] = {
    {"augment_draw", augment_draw, METH_VARARGS, augment_draw_doc},
    {"augment_batch", augment_batch, METH_VARARGS, augment_batch_doc},
    {"augment_local_batch", augment_local_batch, METH_VARARGS, augment_local_batch_doc},
    {NULL, NULL, 0, NULL},
};

int asen_py_add_augment(PyObject *module)
{
    return PyModule_AddFunctions(module, augment_methods);
}
