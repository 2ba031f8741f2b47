/* The autograd tape: a graph of reference-counted nodes whose edges point only towards the leaves.
 *
 * Ownership: a tensor owns its node; a node owns the nodes of its inputs and the tensors its
 * gradient rule reads, which are stored without their nodes. So there are no cycles, and a
 * forward pass without `backward` frees its memory when its result goes out of sight. Nodes are
 * freed iteratively. A saved tensor remembers its storage's version; a write in place between
 * forward and backward is an error. Writes in place that are part of the graph: inplace.h.
 *
 * Threads: a recorded node does not change, but for a leaf's `grad` and for its saved tensors, which the first
 * backward that does not retain them lets go when no other reads them any more. What a backward adds up is its own.
 * So any number of them run at once, also over one graph, also one inside another (a finalizer may run when memory
 * is let go), and none waits for another. */
#ifndef ASEN_TAPE_H
#define ASEN_TAPE_H

#include "ops/op.h"

typedef struct asen_input_meta {
    asen_device *device;
    asen_dtype dtype;
    int ndim;
    int64_t shape[ASEN_MAX_DIMS];
} asen_input_meta;

typedef struct asen_node asen_node;

/* Gradient rule: from the gradients dy of the outputs (NULL: zero) to those of the inputs, new
 * references in dx, only where node->needs[i] says so. Built from ops that are run, not recorded. */
typedef int (*asen_grad_rule)(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx);

/* Where a view lies in its dense base: for the nodes of writes in place. */
typedef struct asen_region {
    int ndim;
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS], offset; /* in elements, from the base's first */
} asen_region;

struct asen_node {
    asen_history history;  /* what a tensor holds: first, so that one is the other */
    bool leaf;             /* a leaf holds `grad`; all below is for the others */
    asen_tensor *grad;     /* leaf: the accumulated gradient or NULL (owned) */
    uint64_t sequence;     /* later nodes have larger numbers */
    asen_op op;
    asen_grad_rule rule;
    asen_attrs attrs;
    asen_region *region;   /* owned; NULL but for writes in place */
    asen_device *device;
    int n_in, n_out;
    _Atomic int readers;   /* of the saved tensors: twice the backwards that read them, odd once they are consumed */
    bool *needs;           /* [n_in] this input wants a gradient */
    asen_node **edge;      /* [n_in] owned; NULL where none is wanted */
    int *edge_slot;        /* [n_in] which output of that node */
    asen_input_meta *meta; /* [n_in] device, dtype and shape of each input; ndim -1 where absent */
    asen_tensor **saved_in;            /* [n_in] data without node, or NULL */
    uint64_t *saved_in_version;
    asen_tensor *saved_out[ASEN_MAX_OUT];
    uint64_t saved_out_version[ASEN_MAX_OUT];
    asen_input_meta out_meta[ASEN_MAX_OUT];
    asen_node *next;       /* of the dead nodes that are being freed */
};

/* The node of a tensor, a new reference, and which of its outputs the tensor is (`slot` may be NULL); NULL where no
 * gradient is wanted. */
static inline asen_node *asen_tensor_node(const asen_tensor *t, int *slot)
{
    return (asen_node *)asen_tensor_history(t, slot);
}
/* The same for whoever records or runs back: up to date with all writes in place. An error where a write left the
 * tensor no node that would be right. */
int asen_tape_node(asen_tensor *tensor, asen_node **node, int *slot);
/* What users see: whether a gradient is wanted, and whether the tensor is no result of an op. */
bool asen_tape_wants_grad(const asen_tensor *tensor);
bool asen_tape_is_leaf(const asen_tensor *tensor);
void asen_node_release(asen_node *node); /* NULL is fine */

/* To be called once, before anything is recorded. */
int asen_tape_open(void);

bool asen_grad_enabled(void);              /* of this thread */
bool asen_grad_set_enabled(bool enabled);  /* returns the previous state */

/* Records an op that was run: gives out[0 .. n_out) a node if an input has one. `used` are the inputs
 * as the kernel saw them (laid out): those are what is saved. `versions` are those of the inputs' storages before the op
 * ran, so that what another thread wrote meanwhile is noticed; NULL: as they are now, for ops that save nothing. */
int asen_tape_record(asen_op op, asen_tensor *const *in, asen_tensor *const *used, const uint64_t *versions, int n_in,
                     const asen_attrs *attrs, asen_tensor *const *out, int n_out);

/* Gives `tensor` a leaf node (or takes it away). An error for the result of an op. */
int asen_tape_set_leaf(asen_tensor *tensor, bool requires_grad);

/* The node of a leaf, a new reference; NULL for results and where no gradient is wanted. */
asen_node *asen_tape_leaf(const asen_tensor *tensor);
/* The gradient of a leaf: a new reference, or NULL; and its replacement, which steals `grad` (NULL
 * clears). Any thread may ask while another runs backward. */
asen_tensor *asen_tape_grad_get(asen_node *leaf);
void asen_tape_grad_set(asen_node *leaf, asen_tensor *grad);

/* Runs the gradients back from `root`. `seed`: dy of root (NULL: ones, for one element).
 * Saved tensors are released on the way unless `retain`. */
int asen_tape_backward(asen_tensor *root, asen_tensor *seed, bool retain);

/* For inplace.c: a new node of one reference with n_in inputs that want nothing yet, or NULL; its input i, which takes
 * a reference on `from` (NULL: wants no gradient); what it says of a tensor. */
asen_node *asen_node_new(int n_in);
void asen_node_set_input(asen_node *node, int i, asen_node *from, int slot, const asen_tensor *like);
void asen_node_describe(asen_input_meta *meta, const asen_tensor *tensor);
static inline asen_node *asen_node_retain(asen_node *node) { return (asen_node *)asen_history_retain(&node->history); }

/* For gradient rules: sum `dy` down to the shape of input i (undoes broadcasting). New reference. */
int asen_grad_reduce_to(const asen_node *node, int i, asen_tensor *dy, asen_tensor **out);

#endif
