/* The types that every layer of the core knows, and nothing else.
 *
 * A tensor is a view of a storage; a storage is a buffer on a device; a device is memory with a
 * caching allocator (device.h) and a backend that computes (ops/backend.h). Ops (ops/ops.def) make
 * tensors from tensors; the tape (autograd/tape.h) remembers how. */
#ifndef ASEN_H
#define ASEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

/* C++ reads these headers too (the plugin's .cu files); it has no _Atomic, and touches no atomic member. */
#ifdef __cplusplus
#define ASEN_ATOMIC(type) type
#define ASEN_C_BEGIN extern "C" {
#define ASEN_C_END }
#else
#define ASEN_ATOMIC(type) _Atomic(type)
#define ASEN_C_BEGIN
#define ASEN_C_END
#endif

#define ASEN_MAX_DIMS 8

typedef enum asen_dtype {
    ASEN_BOOL,
    ASEN_U8,
    ASEN_I32,
    ASEN_I64,
    ASEN_F16,
    ASEN_BF16,
    ASEN_F32,
    ASEN_F64,
    ASEN_DTYPE_COUNT
} asen_dtype;

typedef struct asen_device asen_device;
typedef struct asen_storage asen_storage;
typedef struct asen_tensor asen_tensor;
typedef struct asen_history asen_history;

ASEN_C_BEGIN

static inline size_t asen_dtype_size(asen_dtype dtype)
{
    static const unsigned char size[ASEN_DTYPE_COUNT] = {1, 1, 4, 8, 2, 2, 4, 8};
    return size[dtype];
}
const char *asen_dtype_name(asen_dtype dtype);
static inline bool asen_dtype_is_float(asen_dtype dtype) { return dtype >= ASEN_F16; }

ASEN_C_END

#endif
