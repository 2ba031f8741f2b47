/* What the oneDNN files share: cached primitives ("plans"), cached packed filters, and the call
 * that runs a plan over tensors' memory.
 *
 * A plan is everything oneDNN makes for one (op, shapes, attributes, threads): a primitive with a
 * scratchpad of ours, the memory descriptors of its arguments, and, where one argument lies
 * otherwise in the primitive's preferred layout than in our tensors (the filter), the reorder
 * between the two. Plans are found in a bounded table; after the first step none is created.
 *
 * A packed filter is keyed by (storage id, offset, descriptor) and valid for one edition of the
 * storage: it is packed again when the parameter changed. Storage ids are never reused, so a dead
 * parameter's pack can never be mistaken for another's; it is freed when it was long unused. */
#ifndef ASEN_CPU_ONEDNN_H
#define ASEN_CPU_ONEDNN_H

#include "core/threads.h"
#include "cpu/cpu.h"

#ifdef ASEN_ONEDNN
#include <dnnl.h>

#define ASEN_ONEDNN_ARGS 5
#define ASEN_ONEDNN_KEY 24

typedef struct asen_onednn_key {
    int64_t word[ASEN_ONEDNN_KEY];
    int count;
} asen_onednn_key;

typedef struct asen_onednn_plan {
    dnnl_primitive_t primitive; /* NULL: oneDNN has no implementation; the op declines */
    struct {
        int id;                  /* DNNL_ARG_… */
        dnnl_memory_desc_t desc; /* owned */
    } arg[ASEN_ONEDNN_ARGS];
    int n_args;
    dnnl_memory_desc_t scratch_desc; /* owned; NULL: none wanted */
    size_t scratch_bytes;
    bool multiplies; /* by matrix products, in whatever threads: see cpu/onednn/signals.c */

    /* The argument that is packed: `arg[packed]`, or -1 where all lie as in our tensors. The
     * reorder goes from plain to packed, or from packed to plain where it is an output. */
    int packed;
    bool packed_is_output;
    dnnl_memory_desc_t plain_desc; /* owned */
    dnnl_primitive_t reorder;
    size_t packed_bytes;
    dnnl_memory_desc_t reorder_scratch_desc; /* owned; NULL: none wanted */
    size_t reorder_scratch_bytes;

    /* The table's. */
    asen_onednn_key key;
    uint64_t hash, used_at;
    int users;
    struct asen_onednn_plan *next;
} asen_onednn_plan;

/* Makes a new plan's primitive with asen_onednn_plan_set and _add. dnnl_unimplemented: declines. */
typedef dnnl_status_t (*asen_onednn_build)(dnnl_engine_t engine, asen_onednn_plan *plan, const void *context);

static inline void asen_onednn_key_add(asen_onednn_key *key, int64_t word)
{
    if (key->count < ASEN_ONEDNN_KEY) key->word[key->count] = word;
    key->count++; /* a key that is too long is refused by plan_get */
}

/* Finds or makes the plan of `key` (thread count and op are added to it). Each success is paired
 * with one asen_onednn_plan_put. ASEN_DECLINED where oneDNN has no implementation. */
int asen_onednn_plan_get(const asen_call *call, asen_onednn_key *key, asen_onednn_build build, const void *context,
                         asen_onednn_plan **out);
void asen_onednn_plan_put(asen_onednn_plan *plan);

/* For builders: takes the primitive from `pd` (which is destroyed in every case). */
dnnl_status_t asen_onednn_plan_set(asen_onednn_plan *plan, dnnl_primitive_desc_t pd);
/* The next argument, with a descriptor that the plan copies. */
dnnl_status_t asen_onednn_plan_add(asen_onednn_plan *plan, int id, const_dnnl_memory_desc_t desc);
/* The same, for an argument that our tensors hold as `plain`: makes the reorder if they differ. */
dnnl_status_t asen_onednn_plan_add_packed(asen_onednn_plan *plan, dnnl_engine_t engine, int id,
                                          const_dnnl_memory_desc_t desc, const_dnnl_memory_desc_t plain,
                                          bool is_output);
/* Attributes with a scratchpad of ours; to be destroyed by the caller. */
dnnl_status_t asen_onednn_attr(dnnl_primitive_attr_t *out);

/* Runs the plan; tensors[i] is argument i. The packed one is taken from the cache, or unpacked
 * into its tensor after. */
int asen_onednn_run(const asen_call *call, asen_onednn_plan *plan, asen_tensor *const *tensors);

/* Around everything that calls oneDNN (plan_get and plan_put do it for plans): no fork() happens between. Does not
 * nest, and nothing between may wait for the GIL. */
void asen_onednn_enter(void);
void asen_onednn_leave(void);

/* Makes signals harmless to what the thread computes with oneDNN (cpu/onednn/signals.c). asen_onednn_enter does it for
 * the thread that calls; every other thread in which products run needs it too. */
void asen_onednn_signal_stack(void);
/* The same for a team of OpenMP's, of which the calling thread is the first. */
void asen_onednn_signal_stacks(int threads);

/* Sets OpenMP's thread count to the budget, and returns it. */
int asen_onednn_threads(void);
/* "oneDNN: conv2d of (…), (…): out of memory" as the thread's message; returns the code. */
int asen_onednn_fail(const asen_call *call, dnnl_status_t status);

/* The packed form of a filter (cpu/onednn/pack.c). */
typedef struct asen_onednn_pack asen_onednn_pack;
/* Fills a new pack's `memory`; what `fill` returns is returned by pack_get. */
typedef int (*asen_onednn_fill)(const asen_call *call, asen_onednn_plan *plan, const asen_tensor *tensor,
                                void *memory);
/* The tensor packed as the plan wants it: packs where it is not there or stale. *data is valid
 * until asen_onednn_pack_put. */
int asen_onednn_pack_get(const asen_call *call, asen_onednn_plan *plan, const asen_tensor *tensor,
                         asen_onednn_fill fill, asen_onednn_pack **out, void **data);
void asen_onednn_pack_put(asen_onednn_pack *pack);

int onednn_conv2d(const asen_call *call);
int onednn_conv2d_grad_input(const asen_call *call);
int onednn_conv2d_grad_weight(const asen_call *call);
int onednn_conv2d_fused(const asen_call *call);
int onednn_matmul(const asen_call *call);
int onednn_linear(const asen_call *call);

static inline bool asen_onednn_all_f32(const asen_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && (call->in[i]->dtype != ASEN_F32 || asen_tensor_count(call->in[i]) == 0)) return false;
    for (int i = 0; i < call->n_out; i++)
        if (call->out[i]->dtype != ASEN_F32 || asen_tensor_count(call->out[i]) == 0) return false;
    return true;
}

#endif
#endif
