/* What the core and a plugin must have been built from alike, as data: compared when a plugin is loaded (backend.c),
 * before anything of it is opened.
 *
 * Each side compiles this header into a description of itself: every row of ops.def with its inputs, outputs,
 * attributes and flags, and the size and the offsets of every struct that both sides look into. The structs of
 * attributes follow from their rows (attrs.h), so of their union the size is enough. A member that is added to a struct
 * below wants a line here; one that is forgotten shows in the struct's size. */
#ifndef ASEN_ABI_H
#define ASEN_ABI_H

#include <stddef.h>

#include "ops/backend.h"

typedef struct asen_abi_word {
    const char *what; /* "asen_call.attrs" */
    uint64_t value;   /* an offset, a size or a constant */
} asen_abi_word;

struct asen_abi {
    const char *rows; /* a line a row */
    const asen_abi_word *words;
    uint64_t word_count;
};

#define ASEN_ABI_SIZE(type) {"sizeof(" #type ")", sizeof(type)}
#define ASEN_ABI_MEMBER(type, member) {#type "." #member, offsetof(type, member)}
#define ASEN_ABI_CONSTANT(name) {#name, (uint64_t)(name)}

/* The description of whoever includes this. */
static inline const asen_abi *asen_abi_here(void)
{
    static const char rows[] = ""
#define ATTRIBUTES(set, ...) "attributes " #set ": " #__VA_ARGS__ "\n"
#define OP(name, inputs, outputs, attributes, saves, layout, ...)                                                      \
    #name ": (" inputs ") -> (" outputs ") " #attributes " " #layout "\n"
#define VIEW(name, inputs, outputs, attributes, ...) #name ": (" inputs ") -> (" outputs ") " #attributes " VIEW\n"
#include "ops/ops.def"
        ;
    static const asen_abi_word words[] = {
        ASEN_ABI_CONSTANT(ASEN_OP_COUNT),
        ASEN_ABI_CONSTANT(ASEN_DTYPE_COUNT),
        ASEN_ABI_CONSTANT(ASEN_MAX_DIMS),
        ASEN_ABI_CONSTANT(ASEN_MAX_OUT),
        ASEN_ABI_CONSTANT(ASEN_ERR_INTERNAL),
        ASEN_ABI_CONSTANT(ASEN_DECLINED),
        ASEN_ABI_SIZE(asen_attrs),
        ASEN_ABI_SIZE(asen_list),
        ASEN_ABI_SIZE(asen_tensor),
        ASEN_ABI_MEMBER(asen_tensor, storage),
        ASEN_ABI_MEMBER(asen_tensor, dtype),
        ASEN_ABI_MEMBER(asen_tensor, ndim),
        ASEN_ABI_MEMBER(asen_tensor, shape),
        ASEN_ABI_MEMBER(asen_tensor, stride),
        ASEN_ABI_MEMBER(asen_tensor, offset),
        ASEN_ABI_SIZE(asen_storage),
        ASEN_ABI_MEMBER(asen_storage, device),
        ASEN_ABI_MEMBER(asen_storage, data),
        ASEN_ABI_MEMBER(asen_storage, bytes),
        ASEN_ABI_SIZE(asen_call),
        ASEN_ABI_MEMBER(asen_call, op),
        ASEN_ABI_MEMBER(asen_call, n_in),
        ASEN_ABI_MEMBER(asen_call, n_out),
        ASEN_ABI_MEMBER(asen_call, in),
        ASEN_ABI_MEMBER(asen_call, out),
        ASEN_ABI_MEMBER(asen_call, attrs),
        ASEN_ABI_MEMBER(asen_call, device),
        ASEN_ABI_SIZE(asen_optim_call),
        ASEN_ABI_MEMBER(asen_optim_call, kind),
        ASEN_ABI_MEMBER(asen_optim_call, dtype),
        ASEN_ABI_MEMBER(asen_optim_call, count),
        ASEN_ABI_MEMBER(asen_optim_call, param),
        ASEN_ABI_MEMBER(asen_optim_call, grad),
        ASEN_ABI_MEMBER(asen_optim_call, state1),
        ASEN_ABI_MEMBER(asen_optim_call, state2),
        ASEN_ABI_MEMBER(asen_optim_call, length),
        ASEN_ABI_MEMBER(asen_optim_call, step),
        ASEN_ABI_MEMBER(asen_optim_call, lr),
        ASEN_ABI_MEMBER(asen_optim_call, momentum),
        ASEN_ABI_MEMBER(asen_optim_call, dampening),
        ASEN_ABI_MEMBER(asen_optim_call, beta1),
        ASEN_ABI_MEMBER(asen_optim_call, beta2),
        ASEN_ABI_MEMBER(asen_optim_call, eps),
        ASEN_ABI_MEMBER(asen_optim_call, weight_decay),
        ASEN_ABI_MEMBER(asen_optim_call, nesterov),
        ASEN_ABI_MEMBER(asen_optim_call, device),
        ASEN_ABI_SIZE(asen_services),
        ASEN_ABI_MEMBER(asen_services, fail),
        ASEN_ABI_MEMBER(asen_services, fail_prefix),
        ASEN_ABI_MEMBER(asen_services, warning),
        ASEN_ABI_MEMBER(asen_services, scratch_new),
        ASEN_ABI_MEMBER(asen_services, scratch_free),
        ASEN_ABI_MEMBER(asen_services, memory_release),
        ASEN_ABI_MEMBER(asen_services, reference_kernel),
        ASEN_ABI_MEMBER(asen_services, cpu),
        ASEN_ABI_SIZE(asen_memory),
        ASEN_ABI_MEMBER(asen_memory, host_memory),
        ASEN_ABI_MEMBER(asen_memory, self),
        ASEN_ABI_MEMBER(asen_memory, alloc),
        ASEN_ABI_MEMBER(asen_memory, free),
        ASEN_ABI_MEMBER(asen_memory, discard),
        ASEN_ABI_MEMBER(asen_memory, copy),
        ASEN_ABI_MEMBER(asen_memory, fill),
        ASEN_ABI_MEMBER(asen_memory, synchronize),
        ASEN_ABI_MEMBER(asen_memory, info),
        ASEN_ABI_SIZE(asen_backend),
        ASEN_ABI_MEMBER(asen_backend, name),
        ASEN_ABI_MEMBER(asen_backend, memory),
        ASEN_ABI_MEMBER(asen_backend, self),
        ASEN_ABI_MEMBER(asen_backend, open),
        ASEN_ABI_MEMBER(asen_backend, close),
        ASEN_ABI_MEMBER(asen_backend, write_strided),
        ASEN_ABI_MEMBER(asen_backend, dispatch),
        ASEN_ABI_MEMBER(asen_backend, optim_step),
        ASEN_ABI_MEMBER(asen_backend, unscale),
        ASEN_ABI_MEMBER(asen_backend, set_option),
        ASEN_ABI_MEMBER(asen_backend, reference_kernel),
    };
    static const asen_abi here = {rows, words, sizeof words / sizeof *words};
    return &here;
}

#endif
