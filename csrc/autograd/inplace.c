/* Writes in place, and the aliases they reach: see inplace.h. */
#include "autograd/inplace.h"

#include <stdlib.h>
#include <string.h>

#include "autograd/record.h"
#include "ops/run.h"
#include "ops/schema.h"
#include "ops/transfer.h"

/* ---- gradients by regions ---- */

/* The part of `whole` (dense, like the base) that the node's region names; dims that were expanded have size 1. */
static int region_of(const asen_node *node, const asen_tensor *whole, asen_tensor **out)
{
    const asen_region *r = node->region;
    int64_t shape[ASEN_MAX_DIMS];
    for (int d = 0; d < r->ndim; d++)
        shape[d] = r->stride[d] == 0 && r->shape[d] > 1 ? 1 : r->shape[d];
    return asen_tensor_view(whole->storage, whole->dtype, r->ndim, shape, r->stride, whole->offset + r->offset, out);
}

static int zeros_like(const asen_input_meta *meta, asen_tensor **out)
{
    return asen_tensor_full(meta->device, meta->dtype, meta->ndim, meta->shape, 0, out);
}

static int dense_copy(asen_tensor *x, asen_tensor **out)
{
    const asen_attrs same = {.copy = {.dtype = x->dtype}};
    return asen_op_run1(ASEN_OP_copy, &x, 1, &same, out);
}

static int zero(asen_tensor *x)
{
    asen_tensor *value;
    int status = asen_tensor_full(x->storage->device, x->dtype, 0, NULL, 0, &value);
    if (status != ASEN_OK)
        return status;
    status = asen_tensor_fill_with(x, value);
    asen_tensor_release(value);
    return status;
}

/* view = base[region]: dbase = zeros with dview in the region, summed over expanded dims. */
static int grad_region(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx)
{
    const asen_region *r = node->region;
    asen_tensor *sum = NULL, *part = NULL, *whole = NULL;
    asen_attrs attrs = {.sum = {.keepdim = true}};
    for (int d = 0; d < r->ndim; d++)
        if (r->stride[d] == 0 && r->shape[d] > 1)
            attrs.sum.dims.item[attrs.sum.dims.count++] = d;
    int status = ASEN_OK;
    if (attrs.sum.dims.count > 0)
        status = asen_op_run1(ASEN_OP_sum, &dy[0], 1, &attrs, &sum);
    else
        sum = asen_tensor_retain(dy[0]);
    if (status == ASEN_OK)
        status = zeros_like(&node->meta[0], &whole);
    if (status == ASEN_OK)
        status = region_of(node, whole, &part);
    if (status == ASEN_OK)
        status = asen_tensor_copy_into(part, sum);
    if (status == ASEN_OK)
        dx[0] = asen_tensor_retain(whole);
    asen_tensor_release(sum);
    asen_tensor_release(part);
    asen_tensor_release(whole);
    return status;
}

/* base[region] = value: dbase = dy with zeros in the region, dvalue = dy[region]. */
static int grad_overwrite(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx)
{
    asen_tensor *dense = NULL, *part = NULL, *rest = NULL;
    int status = ASEN_OK;
    if (node->needs[1]) {
        status = asen_tensor_to_dense(dy[0], &dense);
        if (status == ASEN_OK)
            status = region_of(node, dense, &part);
        if (status == ASEN_OK)
            status = dense_copy(part, &dx[1]);
        asen_tensor_release(part);
        part = NULL;
    }
    if (status == ASEN_OK && node->needs[0]) {
        status = dense_copy(dy[0], &rest);
        if (status == ASEN_OK)
            status = region_of(node, rest, &part);
        if (status == ASEN_OK)
            status = zero(part);
        if (status == ASEN_OK)
            dx[0] = asen_tensor_retain(rest);
    }
    asen_tensor_release(dense);
    asen_tensor_release(part);
    asen_tensor_release(rest);
    return status;
}

/* The same where the region is all: zeros, and dy. */
static int grad_replace(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx)
{
    if (node->needs[1])
        dx[1] = asen_tensor_retain(dy[0]);
    return node->needs[0] ? zeros_like(&node->meta[0], &dx[0]) : ASEN_OK;
}

/* ---- aliases ---- */

static void aliases_free(asen_history *counted)
{
    asen_aliases *aliases = (asen_aliases *)counted;
    asen_node_release(aliases->node);
    free(aliases);
}

/* Whether `t` is all of the base, as the base lies. */
static bool is_whole(const asen_aliases *a, const asen_tensor *t)
{
    if (t->ndim != a->base.ndim || t->offset != a->offset)
        return false;
    for (int d = 0; d < t->ndim; d++)
        if (t->shape[d] != a->base.shape[d] || (t->shape[d] != 1 && t->stride[d] != a->stride[d]))
            return false;
    return true;
}

static int aliases_new(asen_tensor *base)
{
    asen_history *none = NULL;
    asen_aliases *aliases = calloc(1, sizeof *aliases);
    if (aliases == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    aliases->counted.refs = 1;
    aliases->counted.free = aliases_free;
    aliases->dense = asen_tensor_is_dense(base);
    asen_node_describe(&aliases->base, base);
    memcpy(aliases->stride, base->stride, sizeof aliases->stride);
    aliases->offset = base->offset;
    aliases->node = asen_tensor_node(base, &aliases->slot);
    if (atomic_compare_exchange_strong(&base->aliases, &none, &aliases->counted))
        base->aliases_base = true;
    else /* another thread was faster */
        aliases_free(&aliases->counted);
    return ASEN_OK;
}

/* The base's node by now: a new reference, or NULL. */
static asen_node *base_node(asen_aliases *a, int *slot, uint64_t *rewrites)
{
    asen_history_lock(a);
    asen_node *node = a->node == NULL ? NULL : asen_node_retain(a->node);
    *slot = a->slot;
    *rewrites = a->rewrites;
    asen_history_unlock(a);
    return node;
}

/* Gives the base a node (or NULL), of which a reference is taken; returns the rewrites so far. */
static uint64_t base_set(asen_aliases *a, asen_node *node, int slot, bool rewrite)
{
    asen_history_lock(a);
    asen_node *old = a->node;
    a->node = node == NULL ? NULL : asen_node_retain(node);
    a->slot = slot;
    uint64_t rewrites = atomic_fetch_add(&a->rewrites, rewrite) + rewrite;
    asen_history_unlock(a);
    asen_node_release(old);
    return rewrites;
}

int asen_aliases_join(asen_tensor *x, asen_tensor *view)
{
    if (!asen_dtype_is_float(x->dtype))
        return ASEN_OK;
    if (x->aliases == NULL) {
        int status = aliases_new(x);
        if (status != ASEN_OK)
            return status;
    }
    view->aliases_seen = ((asen_aliases *)x->aliases)->rewrites;
    view->unrecorded_view = x->unrecorded_view || !asen_grad_enabled();
    view->aliases = asen_history_retain(x->aliases);
    return ASEN_OK;
}

void asen_aliases_base_is(const asen_tensor *t, asen_node *node)
{
    asen_aliases *aliases = (asen_aliases *)t->aliases;
    if (aliases != NULL && t->aliases_base)
        base_set(aliases, node, 0, false);
}

/* A node with one output like `view`, whose gradient rule is `rule`; its region is where `view` lies in the base of `a`
 * (NULL: none). Inputs are still to be set. */
static asen_node *write_node(int n_in, asen_grad_rule rule, const asen_aliases *a, const asen_tensor *view)
{
    asen_node *node = asen_node_new(n_in);
    if (node == NULL)
        return NULL;
    node->op = ASEN_OP_copy;
    node->rule = rule;
    node->n_out = 1;
    node->device = view->storage->device;
    asen_node_describe(&node->out_meta[0], view);
    if (a == NULL)
        return node;
    node->region = calloc(1, sizeof *node->region);
    if (node->region == NULL) {
        asen_node_release(node);
        return NULL;
    }
    node->region->ndim = view->ndim;
    node->region->offset = view->offset - a->offset;
    memcpy(node->region->shape, view->shape, sizeof view->shape);
    memcpy(node->region->stride, view->stride, sizeof view->stride);
    return node;
}

int asen_aliases_refresh(asen_tensor *t)
{
    asen_aliases *a = (asen_aliases *)t->aliases;
    uint64_t seen;
    int slot, status = ASEN_OK;
    asen_node *node = NULL, *before = asen_tensor_node(t, NULL), *base = base_node(a, &slot, &seen);
    if (t->unrecorded_view)
        status = asen_fail(ASEN_ERR_VALUE, "this view was made under no_grad(), and then its base was written in place while "
                           "recording: take the view again");
    else if (before != NULL && before->leaf)
        status = asen_fail(ASEN_ERR_VALUE, "this view was made a leaf that requires a gradient, and then its base was "
                           "written by what has a gradient: clone() the view before");
    else if (is_whole(a, t))
        node = base == NULL ? NULL : asen_node_retain(base);
    else if (!a->dense)
        status = asen_fail(ASEN_ERR_VALUE, "this is a view of a tensor that is not contiguous, and that was written in place "
                           "while recording: take the view again, of its clone()");
    else {
        node = write_node(1, grad_region, a, t);
        if (node == NULL)
            status = asen_fail(ASEN_ERR_MEMORY, "out of memory");
        else {
            asen_node_set_input(node, 0, base, slot, t);
            node->meta[0] = a->base;
        }
        slot = 0;
    }
    if (status == ASEN_OK && asen_tensor_replace_history(t, (asen_history *)before, (asen_history *)node, slot))
        t->aliases_seen = seen;
    asen_node_release(before);
    asen_node_release(base);
    asen_node_release(node);
    return status;
}

/* ---- what may be written ---- */

#define HOW "use no_grad() to change its values apart from the graph, or write into a clone()"

/* Whether a write is to be recorded, with `other` (may be NULL) written into `self`; refuses what cannot be. */
static int check_write(asen_tensor *self, bool other_wants, bool *recorded)
{
    asen_aliases *a = (asen_aliases *)self->aliases;
    asen_node *node = NULL, *base = NULL;
    uint64_t rewrites;
    int slot;
    *recorded = false;
    if (self->unwritable)
        return asen_fail(ASEN_ERR_VALUE, "view() had to copy here (four dims lie channels-last), so a write in place would not "
                         "reach what was viewed: write into that, or into a clone() or reshape()");
    if (!asen_grad_enabled() || !asen_dtype_is_float(self->dtype))
        return ASEN_OK;
    int status = asen_tape_node(self, &node, &slot);
    if (status != ASEN_OK)
        return status;
    *recorded = node != NULL || other_wants;
    if (a != NULL)
        base = base_node(a, &slot, &rewrites);
    bool leaf = node != NULL && node->leaf, leaf_base = base != NULL && base->leaf, base_wants = base != NULL;
    asen_node_release(node);
    asen_node_release(base);
    if (leaf)
        return asen_fail(ASEN_ERR_VALUE, "a leaf that requires a gradient is written in place while recording: " HOW);
    if (leaf_base && *recorded)
        return asen_fail(ASEN_ERR_VALUE, "a view of a leaf that requires a gradient is written in place while recording: " HOW);
    if ((*recorded || base_wants) && self->unrecorded_view)
        return asen_fail(ASEN_ERR_VALUE, "a view that was made under no_grad() is written in place while recording: take "
                         "the view again, or write under no_grad(), too");
    if (*recorded && a != NULL && !a->dense && !is_whole(a, self))
        return asen_fail(ASEN_ERR_VALUE, "a view of a tensor that is not contiguous is written in place while recording: "
                         "view and write its clone()");
    return ASEN_OK;
}

/* `self` holds the values of `value` by now: makes it, and its aliases, go on with value's node. `instead`: what
 * self was before has no part in value. */
static int rebase(asen_tensor *self, asen_tensor *value, bool instead)
{
    asen_aliases *a = (asen_aliases *)self->aliases;
    bool whole = a == NULL || is_whole(a, self);
    uint64_t rewrites;
    int from_slot = 0, slot = 0;
    asen_node *from, *before, *node = NULL;
    int status = asen_tape_node(value, &from, &from_slot);
    if (status != ASEN_OK)
        return status;
    before = whole ? asen_tensor_node(self, &slot) : base_node(a, &slot, &rewrites);
    if (whole && from != NULL && !from->leaf && (before == NULL || !instead)) {
        node = asen_node_retain(from);
    } else {
        node = write_node(2, whole ? grad_replace : grad_overwrite, whole ? NULL : a, self);
        if (node == NULL) {
            status = asen_fail(ASEN_ERR_MEMORY, "out of memory");
            goto done;
        }
        asen_node_set_input(node, 0, before, slot, self);
        asen_node_set_input(node, 1, from, from_slot, self);
        if (!whole)
            node->meta[0] = node->out_meta[0] = a->base;
        from_slot = 0;
    }
    if (a != NULL) /* the aliases, self too where it is one of several, notice when they are used next */
        base_set(a, node, from_slot, true);
    else
        for (bool done = false; !done;) { /* again where another thread writes, too: the last one counts */
            asen_node *old = asen_tensor_node(self, NULL);
            done = asen_tensor_replace_history(self, (asen_history *)old, (asen_history *)node, from_slot);
            asen_node_release(old);
        }
done:
    asen_node_release(from);
    asen_node_release(before);
    asen_node_release(node);
    return status;
}

/* ---- the writes ---- */

int asen_inplace_fill(asen_tensor *self, asen_tensor *value)
{
    bool recorded;
    int status = check_write(self, false, &recorded);
    if (status == ASEN_OK)
        status = asen_tensor_fill_with(self, value);
    return status == ASEN_OK && recorded ? rebase(self, value, true) : status;
}

/* `source` as a tensor of self's shape, dtype and device, recorded. */
static int as_value(const asen_tensor *self, asen_tensor *source, asen_tensor **out)
{
    asen_tensor *wide = NULL, *here = NULL;
    asen_attrs expand = {.expand = {.shape = {.count = self->ndim}}};
    asen_attrs copy = {.copy = {.dtype = self->dtype}};
    memcpy(expand.expand.shape.item, self->shape, sizeof self->shape);
    *out = NULL;
    int status = ASEN_OK;
    if (asen_tensor_same_shape(self, source))
        wide = asen_tensor_retain(source);
    else
        status = asen_op_apply1(ASEN_OP_expand, &source, 1, &expand, &wide);
    if (status == ASEN_OK && wide->storage->device != self->storage->device) {
        status = asen_tensor_new(self->storage->device, self->dtype, self->ndim, self->shape, &here);
        if (status == ASEN_OK)
            status = asen_tensor_copy_into(here, wide);
        if (status == ASEN_OK)
            status = asen_tape_record(ASEN_OP_copy, &wide, &wide, NULL, 1, &copy, &here, 1);
        *out = here;
    } else if (status == ASEN_OK && wide->dtype != self->dtype) {
        status = asen_op_apply1(ASEN_OP_copy, &wide, 1, &copy, out);
    } else {
        *out = wide;
        return status;
    }
    asen_tensor_release(wide);
    return status;
}

int asen_inplace_copy(asen_tensor *self, asen_tensor *source)
{
    bool recorded;
    asen_tensor *value = NULL;
    int status = check_write(self, asen_tape_wants_grad(source), &recorded);
    if (status == ASEN_OK && self == source && asen_tensor_overlaps_itself(self)) {
        asen_storage_written(self->storage); /* nothing to do, and a write all the same */
        return ASEN_OK;
    }
    if (status == ASEN_OK && !recorded)
        return asen_tensor_copy_into(self, source);
    if (status == ASEN_OK)
        status = as_value(self, source, &value);
    if (status == ASEN_OK)
        status = asen_tensor_copy_into(self, value);
    if (status == ASEN_OK)
        status = rebase(self, value, true);
    asen_tensor_release(value);
    return status;
}

/* The values of `self` beside it, with its node. */
static int keep_before(asen_tensor *self, asen_tensor **out)
{
    asen_node *node = NULL;
    int slot = 0, status = asen_tape_node(self, &node, &slot);
    if (status == ASEN_OK)
        status = dense_copy(self, out);
    if (status == ASEN_OK)
        asen_tensor_replace_history(*out, NULL, (asen_history *)node, slot);
    asen_node_release(node);
    return status;
}

/* `result` fits into `self`; says what does not. */
static int check_result(asen_op op, const asen_tensor *self, const asen_tensor *result)
{
    if (asen_tensor_same_shape(self, result) && self->dtype == result->dtype &&
        self->storage->device == result->storage->device)
        return ASEN_OK;
    return asen_fail(ASEN_ERR_VALUE, "%s in place: the result is %s %s, the tensor %s %s", asen_op_get(op)->name,
                     ASEN_SHAPE_TEXT(result), asen_dtype_name(result->dtype), ASEN_SHAPE_TEXT(self),
                     asen_dtype_name(self->dtype));
}

int asen_inplace_apply(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs)
{
    asen_tensor *self = in[0], *before = NULL, *result = NULL, *few[ASEN_FEW_INPUTS], **given = NULL;
    bool recorded, wants = false;
    for (int i = 1; i < n_in; i++)
        wants |= in[i] != NULL && asen_tape_wants_grad(in[i]);
    int status = check_write(self, wants, &recorded);
    if (status == ASEN_OK && asen_tensor_overlaps_itself(self)) /* before anything is computed */
        status = asen_tensor_copy_into(self, self);
    if (status != ASEN_OK)
        return status;
    given = asen_inputs_new(few, n_in);
    if (given == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    /* What the rule reads of self must outlive the write. */
    if (recorded && asen_schema_get(op)->saved_in != 0)
        status = keep_before(self, &before);
    for (int i = 0; i < n_in; i++) {
        asen_tensor *input = before != NULL && in[i] == self ? before : in[i];
        given[i] = input == NULL ? NULL : asen_tensor_retain(input);
    }
    if (status == ASEN_OK)
        status = asen_op_apply1(op, given, n_in, attrs, &result);
    if (status == ASEN_OK)
        status = check_result(op, self, result);
    if (status == ASEN_OK)
        status = asen_tensor_copy_into(self, result);
    if (status == ASEN_OK && recorded)
        status = rebase(self, result, false);
    asen_inputs_free(given, few, n_in);
    asen_tensor_release(before);
    asen_tensor_release(result);
    return status;
}
