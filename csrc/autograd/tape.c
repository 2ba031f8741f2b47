/* Recording and running back: see tape.h. */
#include "autograd/tape.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "autograd/inplace.h"
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
        free(node->region);
        free(node);
    }
}

void asen_node_release(asen_node *node) { asen_history_release((asen_history *)node); }

/* `bytes` from *at on, which moves behind them, aligned for anything. */
static void *carve(char **at, size_t bytes)
{
    void *start = *at;
    *at += (bytes + 7) / 8 * 8;
    return start;
}

/* A node and its arrays, in one block. */
asen_node *asen_node_new(int n_in)
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

void asen_node_describe(asen_input_meta *meta, const asen_tensor *t)
{
    meta->ndim = t == NULL ? -1 : t->ndim;
    if (t == NULL)
        return;
    meta->device = t->storage->device;
    meta->dtype = t->dtype;
    memcpy(meta->shape, t->shape, sizeof meta->shape);
}

/* Input i of `node` comes from a node (or NULL), whose reference it takes over. */
static void take_edge(asen_node *node, int i, asen_node *from, int slot)
{
    node->edge[i] = from;
    node->edge_slot[i] = slot;
    node->needs[i] = from != NULL;
    if (from != NULL && from->sequence > node->sequence) /* a node is later than those that it reads */
        node->sequence = atomic_fetch_add(&sequence, 1) + 1;
}

void asen_node_set_input(asen_node *node, int i, asen_node *from, int slot, const asen_tensor *like)
{
    asen_node_describe(&node->meta[i], like);
    take_edge(node, i, from == NULL ? NULL : asen_node_retain(from), slot);
}

int asen_tape_node(asen_tensor *tensor, asen_node **node, int *slot)
{
    *node = NULL;
    while (asen_aliases_stale(tensor)) {
        int status = asen_aliases_refresh(tensor);
        if (status != ASEN_OK)
            return status;
    }
    *node = asen_tensor_node(tensor, slot);
    return ASEN_OK;
}

bool asen_tape_wants_grad(const asen_tensor *tensor) { return asen_tensor_has_history(tensor) || asen_aliases_stale(tensor); }

bool asen_tape_is_leaf(const asen_tensor *tensor)
{
    if (asen_aliases_stale(tensor))
        return false;
    asen_node *node = asen_tensor_node(tensor, NULL);
    bool leaf = node == NULL || node->leaf;
    asen_node_release(node);
    return leaf;
}

/* Whether the gradient rule of a node reads its input i, and its output k. */
static bool reads_input(const asen_schema *schema, const asen_node *node, int i)
{
    if (schema->variadic)
        return schema->saved_in != 0;
    for (int k = 0; k < node->n_in; k++)
        if (node->needs[k] && schema->saved_for[i] >> k & 1)
            return true;
    return false;
}

static bool reads_output(const asen_schema *schema, const asen_attrs *attrs, int k)
{
    const asen_attr_field *flag = schema->saved_if[k];
    int64_t value = 1;
    if (flag != NULL)
        memcpy(&value, (const char *)attrs + flag->offset, sizeof value);
    return (schema->saved_out >> k & 1) && value != 0;
}

int asen_tape_record(asen_op op, asen_tensor *const *in, asen_tensor *const *used, const uint64_t *versions, int n_in,
                     const asen_attrs *attrs, asen_tensor *const *out, int n_out)
{
    const asen_schema *schema = asen_schema_get(op);
    bool wanted = false;
    for (int i = 0; i < n_in; i++)
        wanted |= in[i] != NULL && asen_tape_wants_grad(in[i]);
    if (!wanted || !asen_grad_enabled() || asen_grad_rules[op] == NULL)
        return ASEN_OK;

    int status = ASEN_OK;
    asen_node *node = asen_node_new(n_in), *from;
    int slot = 0;
    if (node == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    node->op = op;
    node->rule = asen_grad_rules[op];
    node->attrs = *attrs;
    node->n_out = n_out;
    node->device = out[0]->storage->device;
    for (int i = 0; i < n_in; i++) {
        asen_node_describe(&node->meta[i], in[i]);
        if (in[i] == NULL)
            continue;
        status = asen_tape_node(in[i], &from, &slot);
        if (status != ASEN_OK)
            goto fail;
        take_edge(node, i, from, slot);
    }
    for (int i = 0; i < n_in; i++) {
        if (in[i] == NULL || !reads_input(schema, node, i))
            continue;
        status = asen_tensor_detach(used[i], &node->saved_in[i]);
        if (status != ASEN_OK)
            goto fail;
        node->saved_in_version[i] = versions != NULL && used[i]->storage == in[i]->storage
                                        ? versions[i]
                                        : atomic_load(&used[i]->storage->version);
    }
    for (int k = 0; k < n_out; k++) {
        asen_node_describe(&node->out_meta[k], out[k]);
        if (!reads_output(schema, attrs, k))
            continue;
        status = asen_tensor_detach(out[k], &node->saved_out[k]);
        if (status != ASEN_OK)
            goto fail;
        node->saved_out_version[k] = atomic_load(&out[k]->storage->version);
    }
    for (int k = 0; k < n_out; k++)
        if (asen_dtype_is_float(out[k]->dtype))
            asen_tensor_replace_history(out[k], NULL, &node->history, k);
fail:
    asen_node_release(node);
    return status;
}

asen_node *asen_tape_leaf(const asen_tensor *tensor)
{
    asen_node *node = asen_aliases_stale(tensor) ? NULL : asen_tensor_node(tensor, NULL);
    if (node == NULL || node->leaf)
        return node;
    asen_node_release(node);
    return NULL;
}

int asen_tape_set_leaf(asen_tensor *tensor, bool requires_grad)
{
    int status = ASEN_OK;
    asen_node *leaf = NULL, *before = asen_tensor_node(tensor, NULL);
    if (requires_grad == asen_tape_wants_grad(tensor))
        goto done;
    if (!asen_tape_is_leaf(tensor)) {
        status = asen_fail(ASEN_ERR_VALUE, "requires_grad of a result cannot be changed: use detach()");
        goto done;
    }
    if (requires_grad && !asen_dtype_is_float(tensor->dtype)) {
        status = asen_fail(ASEN_ERR_TYPE, "only floating tensors have gradients, not %s", asen_dtype_name(tensor->dtype));
        goto done;
    }
    if (requires_grad) {
        leaf = asen_node_new(0);
        if (leaf == NULL) {
            status = asen_fail(ASEN_ERR_MEMORY, "out of memory");
            goto done;
        }
        leaf->leaf = true;
    }
    /* Where another thread was faster, its wish holds: it might as well have come later. */
    if (asen_tensor_replace_history(tensor, (asen_history *)before, (asen_history *)leaf, 0))
        asen_aliases_base_is(tensor, leaf);
done:
    asen_node_release(leaf);
    asen_node_release(before);
    return status;
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

/* ---- backward ---- */

/* A node as one backward sees it. */
typedef struct visit {
    asen_node *node;
    asen_tensor *pending[ASEN_MAX_OUT]; /* owned: the gradients that arrived so far */
} visit;

/* All nodes that the root reaches: an array, and the places of nodes in it by a hash of their addresses. */
typedef struct walk {
    visit *visits;
    size_t count, capacity;
    uint32_t *places; /* [2 * capacity] 1 + index into visits, or 0 */
} walk;

static size_t place_of(const walk *w, const asen_node *node)
{
    size_t mask = 2 * w->capacity - 1;
    size_t at = (size_t)((uint64_t)(uintptr_t)node * UINT64_C(0x9E3779B97F4A7C15) >> 24) & mask;
    while (w->places[at] != 0 && w->visits[w->places[at] - 1].node != node)
        at = (at + 1) & mask;
    return at;
}

static int walk_grow(walk *w)
{
    size_t capacity = w->capacity ? 2 * w->capacity : 256;
    visit *visits = capacity > UINT32_MAX ? NULL : realloc(w->visits, capacity * sizeof *visits);
    if (visits != NULL)
        w->visits = visits;
    uint32_t *places = visits == NULL ? NULL : calloc(2 * capacity, sizeof *places);
    if (places == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    free(w->places);
    w->places = places;
    w->capacity = capacity;
    for (size_t i = 0; i < w->count; i++)
        w->places[place_of(w, w->visits[i].node)] = (uint32_t)i + 1;
    return ASEN_OK;
}

static int walk_add(walk *w, asen_node *node)
{
    int status = w->count < w->capacity ? ASEN_OK : walk_grow(w);
    if (status != ASEN_OK)
        return status;
    size_t at = place_of(w, node);
    if (w->places[at] != 0)
        return ASEN_OK;
    w->visits[w->count] = (visit){.node = node};
    w->places[at] = (uint32_t)++w->count;
    return ASEN_OK;
}

static int by_sequence(const void *a, const void *b)
{
    uint64_t x = (*(visit *const *)a)->node->sequence, y = (*(visit *const *)b)->node->sequence;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Collects them, and orders them later ones first: so every gradient is complete before it is used. */
static int walk_collect(walk *w, asen_node *root, visit ***order)
{
    int status = walk_add(w, root);
    for (size_t i = 0; i < w->count && status == ASEN_OK; i++) {
        const asen_node *node = w->visits[i].node;
        for (int k = 0; k < node->n_in && status == ASEN_OK; k++)
            if (node->edge[k] != NULL)
                status = walk_add(w, node->edge[k]);
    }
    if (status != ASEN_OK)
        return status;
    *order = malloc(w->count * sizeof **order);
    if (*order == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    for (size_t i = 0; i < w->count; i++)
        (*order)[i] = &w->visits[i];
    qsort(*order, w->count, sizeof **order, by_sequence);
    return ASEN_OK;
}

static void walk_free(walk *w)
{
    for (size_t i = 0; i < w->count; i++)
        for (int k = 0; k < ASEN_MAX_OUT; k++)
            asen_tensor_release(w->visits[i].pending[k]);
    free(w->visits);
    free(w->places);
}

/* The saved tensors of a node are there until saved_leave. */
static int saved_enter(asen_node *node)
{
    int readers = atomic_load(&node->readers);
    do
        if (readers & 1)
            return asen_fail(ASEN_ERR_VALUE,
                             "the graph was freed by an earlier backward: pass retain_graph=True there");
    while (!atomic_compare_exchange_weak(&node->readers, &readers, readers + 2));
    return ASEN_OK;
}

static void saved_leave(asen_node *node, bool retain)
{
    if (!retain)
        atomic_fetch_or(&node->readers, 1);
    if (atomic_fetch_sub(&node->readers, 2) == 3) /* consumed, and nobody else reads */
        release_saved(node);
}

static int check_saved(const asen_node *node)
{
    const char *name = asen_op_get(node->op)->name;
    for (int i = 0; i < node->n_in; i++)
        if (node->saved_in[i] && atomic_load(&node->saved_in[i]->storage->version) != node->saved_in_version[i])
            return asen_fail(ASEN_ERR_VALUE, "%s: input %d was changed in place between forward and backward", name, i);
    for (int k = 0; k < node->n_out; k++)
        if (node->saved_out[k] && atomic_load(&node->saved_out[k]->storage->version) != node->saved_out_version[k])
            return asen_fail(ASEN_ERR_VALUE, "%s: its result was changed in place between forward and backward", name);
    return ASEN_OK;
}

/* One node: from its pending gradients to those of its inputs. */
static int node_backward(walk *w, const visit *at, bool retain)
{
    asen_node *node = at->node;
    asen_tensor *few[ASEN_FEW_INPUTS] = {0}, **dx = few;
    bool any = false;
    for (int k = 0; k < node->n_out; k++)
        any |= at->pending[k] != NULL;
    if (!any)
        return ASEN_OK;
    int status = saved_enter(node);
    if (status != ASEN_OK)
        return status;
    status = check_saved(node);
    if (status != ASEN_OK) {
        saved_leave(node, true);
        return status;
    }
    if (node->n_in > ASEN_FEW_INPUTS) {
        dx = calloc((size_t)node->n_in, sizeof *dx);
        if (dx == NULL) {
            saved_leave(node, true);
            return asen_fail(ASEN_ERR_MEMORY, "out of memory");
        }
    }
    status = node->rule(node, at->pending, dx);
    if (status != ASEN_OK)
        asen_fail_prefix("gradient of %s", asen_op_get(node->op)->name);
    for (int i = 0; i < node->n_in; i++) {
        if (dx[i] == NULL)
            continue;
        if (status == ASEN_OK && node->edge[i] != NULL)
            status = accumulate(&w->visits[w->places[place_of(w, node->edge[i])] - 1].pending[node->edge_slot[i]], dx[i]);
        else
            asen_tensor_release(dx[i]);
    }
    if (dx != few)
        free(dx);
    saved_leave(node, retain);
    return status;
}

static pthread_mutex_t grad_lock = PTHREAD_MUTEX_INITIALIZER; /* `grad` of all leaves: held for a swap */

static void grads_fork(asen_fork_phase phase)
{
    if (phase == ASEN_FORK_BEFORE)
        pthread_mutex_lock(&grad_lock);
    else
        pthread_mutex_unlock(&grad_lock);
}

int asen_tape_open(void)
{
    int status = asen_fork_protect(ASEN_FORK_GRADIENTS, grads_fork);
    return status == ASEN_OK ? asen_fork_protect(ASEN_FORK_HISTORIES, asen_histories_fork) : status;
}

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

/* Replaces `before` (borrowed, or NULL) by `grad`, which it steals; false where it is not there any more. */
static bool grad_replace(asen_node *leaf, asen_tensor *before, asen_tensor *grad)
{
    pthread_mutex_lock(&grad_lock);
    bool same = leaf->grad == before;
    if (same)
        leaf->grad = grad;
    pthread_mutex_unlock(&grad_lock);
    asen_tensor_release(same ? before : grad);
    return same;
}

/* A leaf: its gradient is complete. It is kept dense, for the optimizers, and in memory of its own:
 * what `pending` holds may be another input's gradient too, or the seed that the caller gave. */
static int leaf_backward(asen_node *leaf, asen_tensor *pending)
{
    asen_attrs same = {0};
    if (pending == NULL)
        return ASEN_OK;
    same.copy.dtype = pending->dtype;
    for (;;) { /* again where another backward added to it meanwhile */
        asen_tensor *before = asen_tape_grad_get(leaf), *total = NULL, *part;
        bool shared = atomic_load(&pending->refs) > 1 || atomic_load(&pending->storage->refs) > 1;
        int status = before == NULL && shared ? asen_op_run1(ASEN_OP_copy, &pending, 1, &same, &part)
                                              : asen_tensor_to_dense(pending, &part);
        if (status == ASEN_OK && before != NULL)
            total = asen_tensor_retain(before);
        if (status == ASEN_OK)
            status = accumulate(&total, part);
        bool done = status != ASEN_OK || grad_replace(leaf, before, total);
        if (status != ASEN_OK)
            asen_tensor_release(total);
        asen_tensor_release(before);
        if (done)
            return status;
    }
}

static int check_seed(const asen_tensor *root, const asen_tensor *seed)
{
    if (seed == NULL && asen_tensor_count(root) != 1)
        return asen_fail(ASEN_ERR_VALUE, "backward: a tensor of shape %s needs the gradient to start from",
                         ASEN_SHAPE_TEXT(root));
    if (seed != NULL && (!asen_tensor_same_shape(root, seed) || seed->dtype != root->dtype))
        return asen_fail(ASEN_ERR_VALUE, "backward: the gradient is %s %s, the tensor %s %s", ASEN_SHAPE_TEXT(seed),
                         asen_dtype_name(seed->dtype), ASEN_SHAPE_TEXT(root), asen_dtype_name(root->dtype));
    return ASEN_OK;
}

int asen_tape_backward(asen_tensor *root, asen_tensor *seed, bool retain)
{
    walk w = {0};
    visit **order = NULL;
    asen_tensor *first = NULL;
    int slot, status;
    asen_node *node; /* holds all others */

    status = asen_tape_node(root, &node, &slot);
    if (status != ASEN_OK)
        return status;
    if (node == NULL)
        return asen_fail(ASEN_ERR_VALUE, "backward: this tensor has no gradient: nothing it was made from requires one");
    status = check_seed(root, seed);
    if (status == ASEN_OK && seed != NULL)
        status = asen_tensor_detach(seed, &first);
    else if (status == ASEN_OK)
        status = asen_tensor_full(root->storage->device, root->dtype, root->ndim, root->shape, 1.0, &first);
    if (status == ASEN_OK)
        status = walk_collect(&w, node, &order);
    if (status != ASEN_OK)
        goto done;
    w.visits[0].pending[slot] = first;
    first = NULL;
    for (size_t i = 0; i < w.count && status == ASEN_OK; i++) {
        visit *at = order[i];
        status = at->node->leaf ? leaf_backward(at->node, at->pending[0]) : node_backward(&w, at, retain);
        for (int k = 0; k < ASEN_MAX_OUT; k++) {
            asen_tensor *used = at->pending[k];
            at->pending[k] = NULL;
            asen_tensor_release(used);
        }
    }
done:
    walk_free(&w);
    free(order);
    asen_tensor_release(first);
    asen_node_release(node);
    return status;
}
