/* Reductions over dims: sum, mean, max and its gradient.
 *
 * Bound by memory: x is read once. This file describes a reduction and cuts it into slices; reduce_rows.cu and
 * reduce_columns.cu have the kernels (reduce.cuh says which is which). */
#include "reduce.cuh"

namespace {

enum { LINE = 128, SECTOR = 32 }; /* bytes that are read together at least */

/* ---- vectors, slices ---- */

bool strides_are_multiples(const space *s, int n)
{
    for (int d = 0; d < s->ndim; d++)
        if (s->size[d] > 1 && s->stride[0][d] % n != 0)
            return false;
    return true;
}

/* Whether x can be read V elements at a time along `inner`, which holds its innermost dim. */
bool vectors_fit(const space *inner, const space *other, const void *x, int V, size_t bytes)
{
    return inner->size[inner->ndim - 1] % V == 0 && space_aligned(inner, 0, x, V, bytes) && strides_are_multiples(other, V);
}

/* As many as fill the multiprocessors that the tiles leave idle, of two turns of all lanes at least. */
int64_t slices_of(const reduce_plan *p)
{
    if (p->tiles >= cuda.multiprocessors)
        return 1;
    int64_t wanted = ceil_div((int64_t)cuda.multiprocessors * 4, p->tiles), limit = p->length / (p->lanes * 2 * REDUCE_UNROLL);
    int64_t slices = wanted < limit ? wanted : limit;
    return slices < 1 ? 1 : slices;
}

/* What is left of `n` after its slices: (slices, outputs) partial results. */
reduction second_stage(const reduction *n, int64_t slices)
{
    reduction second = *n;
    second.op = n->op == REDUCE_EQUAL ? REDUCE_SUM : n->op;
    space kept = n->kept;
    kept.operands = 0;
    space_add_dense(&kept);
    for (int d = 0; d < kept.ndim; d++)
        kept.stride[1][d] = n->kept.stride[1][d];
    kept.operands = 2;
    space_collapse(&kept);
    space reduced = {};
    reduced.ndim = reduced.operands = 1;
    reduced.size[0] = slices;
    reduced.stride[0][0] = space_count(&kept);
    second.kept = kept;
    second.reduced = reduced;
    return second;
}

/* x of dtype `from` to y. whole: without slices. */
int run(const asen_call *call, const reduction *n, asen_dtype from, const void *x, const void *target, void *y, bool whole)
{
    int bytes = (int)asen_dtype_size(from);
    asen_dtype sums = from == ASEN_F64 ? ASEN_F64 : ASEN_F32;
    bool by_rows = space_count(&n->kept) == 1 || n->kept.stride[0][n->kept.ndim - 1] != 1;
    const space *inner = by_rows ? &n->reduced : &n->kept, *other = by_rows ? &n->kept : &n->reduced;
    int width = vectors_fit(inner, other, x, 16 / bytes, (size_t)bytes) ? 16 / bytes : 1;
    if (space_too_large(&n->kept) || space_too_large(&n->reduced))
        return cuda_host.fail(ASEN_ERR_UNSUPPORTED, "more than 2^31 elements in dims that do not lie together");
    reduce_plan p = by_rows ? reduce_rows_plan(n, width) : reduce_columns_plan(n, width, bytes, whole ? SECTOR : LINE);
    p.slices = whole ? 1 : slices_of(&p);
    if (p.slices == 1)
        return by_rows ? reduce_rows(n, &p, from, x, target, y) : reduce_columns(n, &p, from, x, target, y);
    void *partial;
    size_t partial_bytes = (size_t)(p.slices * space_count(&n->kept)) * asen_dtype_size(sums);
    CUDA_OK(cuda_scratch_new(call, partial_bytes, &partial));
    reduction second = second_stage(n, p.slices);
    int status;
    CUDA_STEP(by_rows ? reduce_rows(n, &p, from, x, target, partial) : reduce_columns(n, &p, from, x, target, partial));
    CUDA_STEP(run(call, &second, sums, partial, nullptr, y, true));
done:
    cuda_scratch_free(call, partial, partial_bytes);
    return status;
}

/* ---- describing ---- */

/* Which dims of x are reduced, and the strides that y has for the dims of x (0: reduced). */
void find_kept(const asen_tensor *x, const asen_attrs_reduce *attrs, bool *reduced, int64_t *y_stride)
{
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    int ndim = 0;
    for (int d = 0; d < x->ndim; d++)
        reduced[d] = false;
    for (int64_t j = 0; j < attrs->dims.count; j++)
        reduced[attrs->dims.item[j]] = true;
    for (int d = 0; d < x->ndim; d++)
        if (!reduced[d] || attrs->keepdim)
            shape[ndim++] = reduced[d] ? 1 : x->shape[d];
    dense_strides(ndim, shape, stride);
    ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        y_stride[d] = reduced[d] ? 0 : stride[ndim];
        ndim += !reduced[d] || attrs->keepdim;
    }
}

int reduce(const asen_call *call, const asen_attrs_reduce *attrs, reduce_operation op, bool mean)
{
    const asen_tensor *x = call->in[0];
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    if (!asen_dtype_is_float(x->dtype))
        return mean ? ASEN_DECLINED : reduce_integers(call, attrs, op == REDUCE_MAX);
    reduction n = reduce_describe(x, attrs, op, x->dtype, mean);
    return run(call, &n, x->dtype, input<char>(call, 0), nullptr, output<char>(call, 0), false);
}

/* ---- the gradient of max ---- */

/* dx (count) = dy / equal where x equals y; dy, equal and y at the walk's offset. Reads x twice in all (the
 * counting was one launch) and writes dx. */
template <typename T>
__global__ void __launch_bounds__(REDUCE_BLOCK)
max_grad_kernel(const T *dy, const T *x, const T *y, const accumulator<T> *equal, T *dx, int64_t count, walk<1> at)
{
    int64_t step = (int64_t)gridDim.x * REDUCE_BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * REDUCE_BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[1];
        at.at(i, offset);
        bool largest = is_max(widen(x[i]), widen(y[offset[0]]));
        dx[i] = narrow<T>(largest ? widen(dy[offset[0]]) / equal[offset[0]] : accumulator<T>(0));
    }
}

template <typename T> int max_grad(const asen_call *call)
{
    typedef accumulator<T> A;
    const asen_tensor *tx = call->in[1];
    const asen_attrs_reduce *attrs = &call->attrs->max_grad;
    const T *dy = input<T>(call, 0), *x = input<T>(call, 1), *y = input<T>(call, 2);
    int64_t count = element_count(tx), y_stride[ASEN_MAX_DIMS];
    bool reduced[ASEN_MAX_DIMS];
    size_t bytes = (size_t)element_count(call->in[2]) * sizeof(A);
    void *equal;
    find_kept(tx, attrs, reduced, y_stride);
    space s = space_of(tx->ndim, tx->shape);
    space_add(&s, y_stride);
    space_collapse(&s);
    if (space_too_large(&s))
        return cuda_host.fail(ASEN_ERR_UNSUPPORTED, "more than 2^31 elements in dims that do not lie together");
    CUDA_OK(cuda_scratch_new(call, bytes, &equal));
    reduction n = reduce_describe(tx, attrs, REDUCE_EQUAL, sizeof(A) == 8 ? ASEN_F64 : ASEN_F32, false);
    int status;
    CUDA_STEP(run(call, &n, tx->dtype, x, y, equal, false));
    CUDA_STEP(ASEN_LAUNCH(max_grad_kernel<T>, grid_for(count, REDUCE_BLOCK), REDUCE_BLOCK, 0, dy, x, y,
                          static_cast<const A *>(equal), output<T>(call, 0), count, walk_over<1>(&s, 1)));
done:
    cuda_scratch_free(call, equal, bytes);
    return status;
}

} // namespace

reduction reduce_describe(const asen_tensor *x, const asen_attrs_reduce *attrs, reduce_operation op, asen_dtype to, bool mean)
{
    reduction n = {};
    bool reduced[ASEN_MAX_DIMS];
    int64_t x_stride[ASEN_MAX_DIMS], y_stride[ASEN_MAX_DIMS];
    find_kept(x, attrs, reduced, y_stride);
    dense_strides(x->ndim, x->shape, x_stride);
    n.kept.operands = 2;
    n.reduced.operands = 1;
    for (int i = 0; i < x->ndim; i++) {
        int d = memory_dim(x->ndim, i);
        space *s = reduced[d] ? &n.reduced : &n.kept;
        s->size[s->ndim] = x->shape[d];
        s->stride[0][s->ndim] = x_stride[d];
        s->stride[1][s->ndim] = y_stride[d];
        s->ndim++;
    }
    space_collapse(&n.kept);
    space_collapse(&n.reduced);
    n.op = op;
    n.to = to;
    n.divisor = mean ? (double)space_count(&n.reduced) : 1;
    return n;
}

ASEN_C_BEGIN

int cuda_sum(const asen_call *call) { return reduce(call, &call->attrs->sum, REDUCE_SUM, false); }
int cuda_mean(const asen_call *call) { return reduce(call, &call->attrs->mean, REDUCE_SUM, true); }
int cuda_max(const asen_call *call) { return reduce(call, &call->attrs->max, REDUCE_MAX, false); }

int cuda_max_grad(const asen_call *call)
{
    if (element_count(call->in[1]) == 0)
        return ASEN_OK;
    CUDA_FLOAT_SWITCH(call->in[1]->dtype, T, { return max_grad<T>(call); })
    return ASEN_DECLINED;
}

ASEN_C_END
