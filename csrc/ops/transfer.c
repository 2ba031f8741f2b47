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

int asen_tensor_full(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, double value,
                     asen_tensor **out)
{
    const asen_memory *m = device->memory;
    *out = NULL;
    if (!fits(dtype, value))
        return asen_fail(ASEN_ERR_VALUE, "%.17g is not a value of %s", value, asen_dtype_name(dtype));
    int status = asen_tensor_new(device, dtype, ndim, shape, out);
    if (status != ASEN_OK)
        return status;
    uint64_t element = 0;
    encode(dtype, value, &element);
    status = m->fill(m->self, asen_tensor_data(*out), &element, asen_dtype_size(dtype), asen_tensor_count(*out));
    if (status != ASEN_OK) {
        asen_tensor_release(*out);
        *out = NULL;
    }
    return status;
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

int asen_tensor_copy_into(asen_tensor *target, asen_tensor *source)
{
    asen_device *to = target->storage->device, *from = source->storage->device;
    asen_tensor *dense = NULL, *moved = NULL;
    int status = prepare(target, source, &dense);
    if (status != ASEN_OK)
        goto done;
    size_t bytes = asen_tensor_bytes(target);
    if (!asen_tensor_is_dense(target)) {
        if (to != from) {
            status = asen_tensor_new(to, dense->dtype, dense->ndim, dense->shape, &moved);
            if (status == ASEN_OK)
                status = asen_tensor_copy_into(moved, dense);
            if (status != ASEN_OK)
                goto done;
            asen_tensor_release(dense);
            dense = moved;
            moved = NULL;
        }
        if (dense->storage == target->storage) { /* they may overlap */
            asen_attrs same = {.copy = {.dtype = dense->dtype}};
            status = asen_op_run1(ASEN_OP_copy, &dense, 1, &same, &moved);
            if (status != ASEN_OK)
                goto done;
            asen_tensor_release(dense);
            dense = moved;
            moved = NULL;
        }
        status = to->backend->write_strided == NULL
                     ? asen_fail(ASEN_ERR_UNSUPPORTED, "cannot write into a strided view on %s", to->name)
                     : to->backend->write_strided(to->backend->self, target, dense);
    } else if (to == from || (to->memory->host_memory && from->memory->host_memory)) {
        status = to->memory->copy(to->memory->self, asen_tensor_data(target), asen_tensor_data(dense), bytes,
                                   ASEN_DEVICE_TO_DEVICE);
    } else if (from->memory->host_memory) {
        status = to->memory->copy(to->memory->self, asen_tensor_data(target), asen_tensor_data(dense), bytes,
                                   ASEN_HOST_TO_DEVICE);
    } else if (to->memory->host_memory) {
        status = from->memory->copy(from->memory->self, asen_tensor_data(target), asen_tensor_data(dense), bytes,
                                     ASEN_DEVICE_TO_HOST);
    } else { /* between two devices: through the host */
        status = asen_tensor_new(asen_device_cpu(), target->dtype, target->ndim, target->shape, &moved);
        if (status == ASEN_OK)
            status = asen_tensor_copy_into(moved, dense);
        if (status == ASEN_OK)
            status = asen_tensor_copy_into(target, moved);
    }
    asen_storage_written(target->storage);
done:
    asen_tensor_release(dense);
    asen_tensor_release(moved);
    return status;
}
