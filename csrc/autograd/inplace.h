/* Writes in place as part of the graph: PyTorch's rules.
 *
 * While recording, what is written in place goes on with a new node: z.copy_(b) sends z's gradient to b and
 * zeros to what z was before; z.mul_(b) is z = z * b. A leaf that requires a gradient, and any view of one, is
 * refused; so is what has no well-defined result (elements that lie on one another), and a copy that stands for a
 * view (Tensor.view where the layout made it copy). What was saved for
 * backward and is overwritten is an error there, found by the storage's version (tape.h). While nothing is
 * recorded, or where nothing has a gradient, a write is only a write.
 *
 * Views. The tensors made from one another by ops that share memory (reshape, permute, slice, expand; not
 * detach) are aliases, and know their base, the one that was not made so. A write into one of them is a write
 * into a region of the base: the base's node becomes one that takes the region's gradient from the values
 * written and the rest from the base before, and all aliases (the written one too) are views of that from here
 * on. They notice when they are used next: each remembers how many rewrites it has seen. That a region of the
 * gradient lies as the region of the base does, the base must be dense. */
#ifndef ASEN_INPLACE_H
#define ASEN_INPLACE_H

#include "autograd/tape.h"

/* in[0] becomes op(in, attrs), in place. The op's (first) result must have in[0]'s shape, dtype and device; it is
 * computed beside and written back, so that in[0] may be among the other inputs and overlap with them. The tensor
 * in[0] itself goes on as the result: the caller returns it. For add_, mul_, clamp_, relu_, `+=` … */
int asen_inplace_apply(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs);

/* `self` takes the values of `source` (broadcast, converted and moved), in place: copy_. */
int asen_inplace_copy(asen_tensor *self, asen_tensor *source);

/* Every element of `self` becomes the one element of `value`, which has no gradient: fill_, zero_. */
int asen_inplace_fill(asen_tensor *self, asen_tensor *value);

/* ---- for the tape ---- */

typedef struct asen_aliases {
    asen_history counted;            /* first, so that one is the other */
    ASEN_ATOMIC(uint64_t) rewrites;  /* recorded writes in place; changes together with node and slot, locked */
    asen_node *node;                 /* the base's, owned, or NULL; and its output */
    int slot;
    bool dense;                      /* the base is */
    asen_input_meta base;
    int64_t stride[ASEN_MAX_DIMS], offset;
} asen_aliases;

/* `view` was made from `x` by an op that shares memory. */
int asen_aliases_join(asen_tensor *x, asen_tensor *view);
/* Whether the tensor was rewritten, through itself or an alias, since its node was made. */
static inline bool asen_aliases_stale(const asen_tensor *t)
{
    const asen_aliases *aliases = (const asen_aliases *)t->aliases;
    return aliases != NULL && aliases->rewrites != t->aliases_seen;
}
/* Gives it the node of what it is a view of by now. */
int asen_aliases_refresh(asen_tensor *t);
/* The tensor became a leaf or ceased to be one: its aliases hear of it if it is their base. */
void asen_aliases_base_is(const asen_tensor *t, asen_node *node);

#endif
