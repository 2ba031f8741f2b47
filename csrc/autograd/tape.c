/* Recording and running back: see tape.h. */
#include "autograd/tape.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "autograd/rules.h"
#include "ops/run.h"
#include "ops/schema.h"
#include "ops/transfer.h"

static _Thread_local bool grad_disabled;
static _Atomic uint64_t sequence;

bool asen_grad_enabled(void) { return !grad_disabled; }

bool asen_grad_set_enabled(bool enabled)
{
    bool before = !grad_disabled;
    grad_disabled = !enabled;
    return before;
}

static void release_saved(asen_node *node)
{
    for (int i = 0; i < node->n_in; i++) {
        asen_tensor_release(node->saved_in[i]);
        node->saved_in[i] = NULL;
    }
    for (int k = 0; k < node->n_out; k++) {
        asen_tensor_release(node->saved_out[k]);
        node->saved_out[k] = NULL;
    }
}

/* Frees a node, and those that only it held: a deep graph must not recurse. */
static void node_free(asen_history *history)
{
    asen_node *dead = (asen_node *)history;
    dead->next = NULL;
    while (dead != NULL) {
        asen_node *node = dead;
        dead = node->next;
        for (int i = 0; i < node->n_in; i++) {
            asen_node *edge = node->edge[i];
            if (edge != NULL && atomic_fetch_sub(&edge->history.refs, 1) == 1) {
                edge->next = dead;
                dead = edge;
            }
        }
        asen_tensor_release(node->grad);
        if (!node->leaf)
            release_saved(node);
        free(node);
    }
}

static void node_release(asen_node *node) { asen_history_release(&node->history); }

static asen_node *node_retain(asen_node *node) { return (asen_node *)asen_history_retain(&node->history); }

/* `bytes` from *at on, which moves behind them, aligned for anything. */
static void *carve(char **at, size_t bytes)
{
    void *start = *at;
    *at += (bytes + 7) / 8 * 8;
    return start;
}

/* A node and its arrays, in one block. */
static asen_node *node_new(int n_in)
{
    size_t n = (size_t)n_in, each = sizeof(asen_input_meta) + 2 * sizeof(void *) + sizeof(uint64_t) + sizeof(int) + sizeof(bool);
    size_t bytes = sizeof(asen_node) + n * each + 2 * 8;
    asen_node *node = malloc(bytes);
    if (node == NULL)
        return NULL;
    memset(node, 0, bytes);
    node->history.refs = 1;
    node->history.free = node_free;
    node->sequence = atomic_fetch_add(&sequence, 1) + 1;
    node->n_in = n_in;
    char *at = (char *)(node + 1);
    node->meta = carve(&at, n * sizeof *node->meta);
    node->edge = carve(&at, n * sizeof *node->edge);
    node->saved_in = carve(&at, n * sizeof *node->saved_in);
    node->saved_in_version = carve(&at, n * sizeof *node->saved_in_version);
    node->edge_slot = carve(&at, n * sizeof *node->edge_slot);
    node->needs = carve(&at, n * sizeof *node->needs);
    return node;
}

static void meta_set(asen_input_meta *meta, const asen_tensor *t)
{
    meta->ndim = t == NULL ? -1 : t->ndim;
    if (t == NULL)
        return;
    meta->device = t->storage->device;
    meta->dtype = t->dtype;
    memcpy(meta->shape, t->shape, sizeof meta->shape);
}

int asen_tape_record(asen_op op, asen_tensor *const *in, asen_tensor *const *used, int n_in, const asen_attrs *attrs,
                     asen_tensor *const *out, int n_out)
{
    const asen_schema *schema = asen_schema_get(op);
    bool wanted = false;
    for (int i = 0; i < n_in; i++)
        wanted |= in[i] != NULL && asen_tensor_node(in[i]) != NULL;
    if (!wanted || !asen_grad_enabled() || asen_grad_rules[op] == NULL)
        return ASEN_OK;

    int status = ASEN_OK;
    asen_node *node = node_new(n_in);
    if (node == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    node->op = op;
    node->attrs = *attrs;
    node->n_out = n_out;
    node->device = out[0]->storage->device;
    for (int i = 0; i < n_in; i++) {
        meta_set(&node->meta[i], in[i]);
        if (in[i] == NULL)
            continue;
        if (asen_tensor_node(in[i]) != NULL) {
            node->needs[i] = true;
            node->edge[i] = node_retain(asen_tensor_node(in[i]));
            node->edge_slot[i] = in[i]->slot;
        }
        if (schema->saved_in & (schema->variadic ? 1u : 1u << i)) {
            status = asen_tensor_detach(used[i], &node->saved_in[i]);
            if (status != ASEN_OK)
                goto fail;
            node->saved_in_version[i] = atomic_load(&used[i]->storage->version);
        }
    }
    for (int k = 0; k < n_out; k++) {
        meta_set(&node->out_meta[k], out[k]);
        if (!(schema->saved_out >> k & 1))
            continue;
        status = asen_tensor_detach(out[k], &node->saved_out[k]);
        if (status != ASEN_OK)
            goto fail;
        node->saved_out_version[k] = atomic_load(&out[k]->storage->version);
    }
    for (int k = 0; k < n_out; k++)
        if (asen_dtype_is_float(out[k]->dtype)) {
            out[k]->history = asen_history_retain(&node->history);
            out[k]->slot = k;
        }
    node_release(node);
    return ASEN_OK;
fail:
    node_release(node);
    return status;
}

int asen_tape_set_leaf(asen_tensor *tensor, bool requires_grad)
{
    if (requires_grad == (asen_tensor_node(tensor) != NULL))
        return ASEN_OK;
    if (asen_tensor_node(tensor) != NULL && !asen_tensor_node(tensor)->leaf)
        return asen_fail(ASEN_ERR_VALUE, "requires_grad of a result cannot be changed: use detach()");
    if (!requires_grad) {
        asen_history_release(tensor->history);
        tensor->history = NULL;
        return ASEN_OK;
    }
    if (!asen_dtype_is_float(tensor->dtype))
        return asen_fail(ASEN_ERR_TYPE, "only floating tensors have gradients, not %s", asen_dtype_name(tensor->dtype));
    asen_node *leaf = node_new(0);
    if (leaf == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    leaf->leaf = true;
    tensor->history = &leaf->history;
    tensor->slot = 0;
    return ASEN_OK;
}

int asen_grad_reduce_to(const asen_node *node, int i, asen_tensor *dy, asen_tensor **out)
{
    const asen_input_meta *meta = &node->meta[i];
    asen_attrs attrs = {0};
    asen_tensor *sum = NULL;
    int skip = dy->ndim - meta->ndim;
    *out = NULL;
    for (int d = 0; d < dy->ndim; d++)
        if (d < skip || (meta->shape[d - skip] == 1 && dy->shape[d] != 1))
            attrs.sum.dims.item[attrs.sum.dims.count++] = d;
    if (attrs.sum.dims.count == 0 && skip == 0) {
        *out = asen_tensor_retain(dy);
        return ASEN_OK;
    }
    int status = ASEN_OK;
    if (attrs.sum.dims.count == 0)
        sum = asen_tensor_retain(dy);
    else
        status = asen_op_run1(ASEN_OP_sum, &dy, 1, &attrs, &sum);
    if (status == ASEN_OK) {
        asen_attrs reshape = {.reshape = {.shape = {.count = meta->ndim}}};
        memcpy(reshape.reshape.shape.item, meta->shape, sizeof meta->shape);
        status = asen_op_run1(ASEN_OP_reshape, &sum, 1, &reshape, out);
    }
    asen_tensor_release(sum);
    return status;
}

/* *total += part; steals `part`, also when it fails. */
static int accumulate(asen_tensor **total, asen_tensor *part)
{
    if (*total == NULL) {
        *total = part;
        return ASEN_OK;
    }
    asen_tensor *const in[2] = {*total, part};
    asen_tensor *sum;
    int status = asen_op_run1(ASEN_OP_add, in, 2, NULL, &sum);
    asen_tensor_release(part);
    if (status != ASEN_OK)
        return status;
    asen_tensor_release(*total);
    *total = sum;
    return ASEN_OK;
}

static int check_saved(const asen_node *node)
{
    const char *name = asen_op_get(node->op)->name;
    if (node->released)
        return asen_fail(ASEN_ERR_VALUE, "the graph was freed by an earlier backward: pass retain_graph=True there");
    for (int i = 0; i < node->n_in; i++)
        if (node->saved_in[i] && atomic_load(&node->saved_in[i]->storage->version) != node->saved_in_version[i])
            return asen_fail(ASEN_ERR_VALUE, "%s: input %d was changed in place between forward and backward", name, i);
    for (int k = 0; k < node->n_out; k++)
        if (node->saved_out[k] && atomic_load(&node->saved_out[k]->storage->version) != node->saved_out_version[k])
            return asen_fail(ASEN_ERR_VALUE, "%s: its result was changed in place between forward and backward", name);
    return ASEN_OK;
}

/* One node: from its pending gradients to those of its inputs. */
static int node_backward(asen_node *node, bool retain)
{
    asen_tensor *few[8] = {0}, **dx = few;
    bool any = false;
    for (int k = 0; k < node->n_out; k++)
        any |= node->pending[k] != NULL;
    if (!any)
        return ASEN_OK;
    int status = check_saved(node);
    if (status != ASEN_OK)
        return status;
    if (node->n_in > 8) {
        dx = calloc((size_t)node->n_in, sizeof *dx);
        if (dx == NULL)
            return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    }
    status = asen_grad_rules[node->op](node, node->pending, dx);
    if (status != ASEN_OK)
        asen_fail_prefix("gradient of %s", asen_op_get(node->op)->name);
    for (int i = 0; i < node->n_in; i++) {
        if (dx[i] == NULL)
            continue;
        if (status == ASEN_OK && node->edge[i] != NULL)
            status = accumulate(&node->edge[i]->pending[node->edge_slot[i]], dx[i]);
        else
            asen_tensor_release(dx[i]);
    }
    if (dx != few)
        free(dx);
    if (!retain) {
        release_saved(node);
        node->released = true;
    }
    return status;
}

static pthread_mutex_t grad_lock = PTHREAD_MUTEX_INITIALIZER; /* `grad` of all leaves: held for a swap */

asen_tensor *asen_tape_grad_get(asen_node *leaf)
{
    pthread_mutex_lock(&grad_lock);
    asen_tensor *grad = leaf->grad == NULL ? NULL : asen_tensor_retain(leaf->grad);
    pthread_mutex_unlock(&grad_lock);
    return grad;
}

void asen_tape_grad_set(asen_node *leaf, asen_tensor *grad)
{
    pthread_mutex_lock(&grad_lock);
    asen_tensor *old = leaf->grad;
    leaf->grad = grad;
    pthread_mutex_unlock(&grad_lock);
    asen_tensor_release(old);
}

/* A leaf: its gradient is complete. It is kept dense, for the optimizers, and in memory of its own:
 * what `pending` holds may be another input's gradient too, or the seed that the caller gave. */
static int leaf_backward(asen_node *leaf)
{
    asen_tensor *pending = leaf->pending[0], *total, *part;
    if (pending == NULL)
        return ASEN_OK;
    total = asen_tape_grad_get(leaf);
    bool shared = atomic_load(&pending->refs) > 1 || atomic_load(&pending->storage->refs) > 1;
    asen_attrs same = {.copy = {.dtype = pending->dtype}};
    int status = total == NULL && shared ? asen_op_run1(ASEN_OP_copy, &pending, 1, &same, &part)
                                         : asen_tensor_to_dense(pending, &part);
    if (status == ASEN_OK)
        status = accumulate(&total, part);
    if (status == ASEN_OK)
        asen_tape_grad_set(leaf, total);
    else
        asen_tensor_release(total);
    return status;
}

static int by_sequence(const void *a, const void *b)
{
    uint64_t x = (*(asen_node *const *)a)->sequence, y = (*(asen_node *const *)b)->sequence;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* All nodes that `root` reaches, later ones first: an order in which every gradient is complete
 * before it is used. */
static int collect(asen_node *root, asen_node ***out, size_t *count)
{
    static uint64_t visit; /* under backward's lock */
    asen_node *stack = root, **list = NULL;
    size_t n = 0, capacity = 0;
    visit++;
    root->visit = visit;
    root->next = NULL;
    while (stack != NULL) {
        asen_node *node = stack;
        stack = node->next;
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            asen_node **grown = realloc(list, capacity * sizeof *grown);
            if (grown == NULL) {
                free(list);
                return asen_fail(ASEN_ERR_MEMORY, "out of memory");
            }
            list = grown;
        }
        list[n++] = node;
        for (int i = 0; i < node->n_in; i++) {
            asen_node *edge = node->edge[i];
            if (edge == NULL || edge->visit == visit)
                continue;
            edge->visit = visit;
            edge->next = stack;
            stack = edge;
        }
    }
    qsort(list, n, sizeof *list, by_sequence);
    *out = list;
    *count = n;
    return ASEN_OK;
}

int asen_tape_backward(asen_tensor *root, asen_tensor *seed, bool retain)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* pending and visit live in the nodes */
    asen_node **list = NULL;
    size_t count = 0;
    asen_tensor *first = NULL;
    int status;

    if (asen_tensor_node(root) == NULL)
        return asen_fail(ASEN_ERR_VALUE, "backward: this tensor has no gradient: nothing it was made from requires one");
    if (seed == NULL && asen_tensor_count(root) != 1)
        return asen_fail(ASEN_ERR_VALUE, "backward: a tensor of shape %s needs the gradient to start from",
                         ASEN_SHAPE_TEXT(root));
    if (seed != NULL && (!asen_tensor_same_shape(root, seed) || seed->dtype != root->dtype))
        return asen_fail(ASEN_ERR_VALUE, "backward: the gradient is %s %s, the tensor %s %s", ASEN_SHAPE_TEXT(seed),
                         asen_dtype_name(seed->dtype), ASEN_SHAPE_TEXT(root), asen_dtype_name(root->dtype));
    if (seed != NULL)
        status = asen_tensor_detach(seed, &first);
    else
        status = asen_tensor_full(root->storage->device, root->dtype, root->ndim, root->shape, 1.0, &first);
    if (status != ASEN_OK)
        return status;

    pthread_mutex_lock(&lock);
    asen_node *keep = node_retain(asen_tensor_node(root));
    status = collect(asen_tensor_node(root), &list, &count);
    if (status == ASEN_OK) {
        asen_tensor_node(root)->pending[root->slot] = first;
        first = NULL;
    }
    for (size_t i = 0; i < count; i++) {
        asen_node *node = list[i];
        if (status == ASEN_OK)
            status = node->leaf ? leaf_backward(node) : node_backward(node, retain);
        for (int k = 0; k < ASEN_MAX_OUT; k++) {
            asen_tensor_release(node->pending[k]);
            node->pending[k] = NULL;
        }
    }
    free(list);
    node_release(keep);
    pthread_mutex_unlock(&lock);
    asen_tensor_release(first);
    return status;
}
