/* Moving values: copying into a tensor in place, between devices, and filling. */
#include "ops/transfer.h"

#include <string.h>

#include "core/half.h"
#include "ops/backend.h"
#include "ops/run.h"

/* One element of `value`, rounded to the dtype, as bytes. */
static void encode(asen_dtype dtype, double value, void *out)
{
    switch (dtype) {
    case ASEN_BOOL: *(uint8_t *)out = value != 0; break;
    case ASEN_U8: *(uint8_t *)out = (uint8_t)value; break;
    case ASEN_I32: *(int32_t *)out = (int32_t)value; break;
    case ASEN_I64: *(int64_t *)out = (int64_t)value; break;
    case ASEN_F16: *(uint16_t *)out = asen_half_from_float((float)value); break;
    case ASEN_BF16: *(uint16_t *)out = asen_bfloat_from_float((float)value); break;
    case ASEN_F32: *(float *)out = (float)value; break;
    default: *(double *)out = value; break;
    }
}

/* Whether `value` is one that an element of `dtype` can hold. */
static bool fits(asen_dtype dtype, double value)
{
    switch (dtype) {
    case ASEN_U8: return value >= 0 && value <= UINT8_MAX && value == (uint8_t)value;
    case ASEN_I32: return value >= INT32_MIN && value <= INT32_MAX && value == (int32_t)value;
    case ASEN_I64: return value >= -0x1p63 && value < 0x1p63 && value == (double)(int64_t)value;
    default: return true;
    }
}

/* `element`: the value's bytes. */
static int filled(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, const void *element,
                  asen_tensor **out)
{
    const asen_memory *m = device->memory;
    int status = asen_tensor_new(device, dtype, ndim, shape, out);
    if (status != ASEN_OK)
        return status;
    status = m->fill(m->self, asen_tensor_data(*out), element, asen_dtype_size(dtype), asen_tensor_count(*out));
    if (status != ASEN_OK) {
        asen_tensor_release(*out);
        *out = NULL;
    }
    return status;
}

int asen_tensor_full(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, double value,
                     asen_tensor **out)
{
    uint64_t element = 0;
    *out = NULL;
    if (!fits(dtype, value))
        return asen_fail(ASEN_ERR_VALUE, "%.17g is not a value of %s", value, asen_dtype_name(dtype));
    encode(dtype, value, &element);
    return filled(device, dtype, ndim, shape, &element, out);
}

int asen_tensor_full_integer(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, int64_t value,
                             asen_tensor **out)
{
    uint64_t element = 0;
    *out = NULL;
    if ((dtype == ASEN_U8 && (value < 0 || value > UINT8_MAX)) ||
        (dtype == ASEN_I32 && (value < INT32_MIN || value > INT32_MAX)))
        return asen_fail(ASEN_ERR_VALUE, "%lld is not a value of %s", (long long)value, asen_dtype_name(dtype));
    if (dtype == ASEN_I64) {
        memcpy(&element, &value, sizeof value);
    } else if (dtype == ASEN_F32) { /* not through a double: one rounding */
        float rounded = (float)value;
        memcpy(&element, &rounded, sizeof rounded);
    } else {
        encode(dtype, (double)value, &element);
    }
    return filled(device, dtype, ndim, shape, &element, out);
}

int asen_tensor_to_dense(asen_tensor *tensor, asen_tensor **out)
{
    if (asen_tensor_is_dense(tensor)) {
        *out = asen_tensor_retain(tensor);
        return ASEN_OK;
    }
    asen_attrs attrs = {.copy = {.dtype = tensor->dtype}};
    return asen_op_run1(ASEN_OP_copy, &tensor, 1, &attrs, out);
}

/* Dense, of the target's dtype and shape, on the source's device. */
static int prepare(asen_tensor *target, asen_tensor *source, asen_tensor **out)
{
    asen_tensor *wide = NULL;
    asen_attrs expand = {.expand = {.shape = {.count = target->ndim}}};
    asen_attrs copy = {.copy = {.dtype = target->dtype}};
    memcpy(expand.expand.shape.item, target->shape, sizeof target->shape);
    *out = NULL;
    int status = ASEN_OK;
    if (asen_tensor_same_shape(target, source))
        wide = asen_tensor_retain(source);
    else
        status = asen_op_run1(ASEN_OP_expand, &source, 1, &expand, &wide);
    if (status == ASEN_OK && wide->dtype == target->dtype)
        status = asen_tensor_to_dense(wide, out);
    else if (status == ASEN_OK)
        status = asen_op_run1(ASEN_OP_copy, &wide, 1, &copy, out);
    asen_tensor_release(wide);
    return status;
}

/* The first byte of a tensor's elements, and the first after them. */
static void extent(const asen_tensor *t, const char **begin, const char **end)
{
    int64_t low = 0, high = 0;
    for (int d = 0; d < t->ndim; d++) {
        int64_t reach = (t->shape[d] - 1) * t->stride[d];
        low += reach < 0 ? reach : 0;
        high += reach > 0 ? reach : 0;
    }
    *begin = (const char *)asen_tensor_data(t) + low * (int64_t)asen_dtype_size(t->dtype);
    *end = (const char *)asen_tensor_data(t) + (high + 1) * (int64_t)asen_dtype_size(t->dtype);
}

/* By address: two storages may wrap one array. */
static bool may_overlap(const asen_tensor *a, const asen_tensor *b)
{
    const char *a_begin, *a_end, *b_begin, *b_end;
    if (a->storage->device != b->storage->device || asen_tensor_count(a) == 0 || asen_tensor_count(b) == 0)
        return false;
    extent(a, &a_begin, &a_end);
    extent(b, &b_begin, &b_end);
    return a_begin < b_end && b_begin < a_end;
}

static int clone(asen_tensor *x, asen_tensor **out)
{
    const asen_attrs same = {.copy = {.dtype = x->dtype}};
    return asen_op_run1(ASEN_OP_copy, &x, 1, &same, out);
}

/* `dense` becomes a copy of itself on another device. */
static int move(asen_tensor **dense, asen_device *to)
{
    asen_tensor *moved;
    int status = asen_tensor_new(to, (*dense)->dtype, (*dense)->ndim, (*dense)->shape, &moved);
    if (status != ASEN_OK)
        return status;
    status = asen_tensor_copy_into(moved, *dense);
    asen_tensor_release(status == ASEN_OK ? *dense : moved);
    if (status == ASEN_OK)
        *dense = moved;
    return status;
}

/* Between dense tensors of one shape and dtype. */
static int copy_dense(asen_tensor *target, asen_tensor *dense)
{
    asen_device *to = target->storage->device, *from = dense->storage->device;
    const asen_memory *m = from->memory->host_memory ? to->memory : from->memory;
    asen_copy_kind kind = to == from || (to->memory->host_memory && from->memory->host_memory) ? ASEN_DEVICE_TO_DEVICE
                          : from->memory->host_memory                                          ? ASEN_HOST_TO_DEVICE
                                                                                               : ASEN_DEVICE_TO_HOST;
    if (to != from && !to->memory->host_memory && !from->memory->host_memory) { /* through the host */
        asen_tensor *here = asen_tensor_retain(dense);
        int status = move(&here, asen_device_cpu());
        if (status == ASEN_OK)
            status = copy_dense(target, here);
        asen_tensor_release(here);
        return status;
    }
    return m->copy(m->self, asen_tensor_data(target), asen_tensor_data(dense), asen_tensor_bytes(target), kind);
}

static int copy_strided(asen_tensor *target, asen_tensor *dense)
{
    asen_device *to = target->storage->device;
    if (to->backend->write_strided == NULL)
        return asen_fail(ASEN_ERR_UNSUPPORTED, "cannot write into a strided view on %s", to->name);
    return to->backend->write_strided(to->backend->self, target, dense);
}

static int write_into(asen_tensor *target, asen_tensor *source)
{
    asen_tensor *dense = NULL, *own;
    bool whole = asen_tensor_is_dense(target);
    int status = prepare(target, source, &dense);
    if (status == ASEN_OK && !whole && dense->storage->device != target->storage->device)
        status = move(&dense, target->storage->device);
    if (status == ASEN_OK && may_overlap(target, dense)) {
        status = clone(dense, &own);
        if (status == ASEN_OK) {
            asen_tensor_release(dense);
            dense = own;
        }
    }
    if (status == ASEN_OK) {
        status = whole ? copy_dense(target, dense) : copy_strided(target, dense);
        asen_storage_written(target->storage);
    }
    asen_tensor_release(dense);
    return status;
}

int asen_tensor_copy_into(asen_tensor *target, asen_tensor *source)
{
    if (asen_tensor_overlaps_itself(target))
        return asen_fail(ASEN_ERR_VALUE, "the elements of this view of shape %s lie on one another (it was expanded), so "
                         "what a write leaves would depend on its order: clone() it first", ASEN_SHAPE_TEXT(target));
    return write_into(target, source);
}

int asen_tensor_fill_with(asen_tensor *target, asen_tensor *value)
{
    asen_tensor *once;
    int64_t shape[ASEN_MAX_DIMS];
    for (int d = 0; d < target->ndim; d++)
        shape[d] = target->stride[d] == 0 && target->shape[d] > 1 ? 1 : target->shape[d];
    int status = asen_tensor_view(target->storage, target->dtype, target->ndim, shape, target->stride, target->offset, &once);
    if (status != ASEN_OK)
        return status;
    status = write_into(once, value);
    asen_tensor_release(once);
    return status;
}
