/* Reductions of which the innermost dim of x is reduced: rows of a matrix, everything. A vector belongs to one output,
 * and the lanes of an output are neighbours. See reduce.cuh. */
#include "reduce.cuh"

namespace {

/* x: r.outputs x r.length positions of V elements; y: the outputs, or (slices, outputs) partial results; target
 * (EQUAL alone): lies as y does. Grid: tiles of rows x slices. */
template <typename T, int V>
__global__ void __launch_bounds__(REDUCE_BLOCK)
reduce_rows_kernel(const T *x, const T *target, void *y, reduce_arguments<accumulator<T>> r)
{
    typedef accumulator<T> A;
    ASEN_SHARED(A, shared, [REDUCE_BLOCK]);
    int rows = REDUCE_BLOCK / r.lanes, lane = threadIdx.x % r.lanes, own = threadIdx.x / r.lanes;
    reduce_combine combine = {r.op};
    for (int64_t tile = (int64_t)blockIdx.x * rows; tile < r.outputs; tile += (int64_t)gridDim.x * rows) {
        int64_t row = tile + own, offset[2] = {0, 0};
        A result[V], wanted[V], total[1];
        bool inside = row < r.outputs;
#pragma unroll
        for (int e = 0; e < V; e++) {
            result[e] = reduce_begin<A>(r.op);
            wanted[e] = 0;
        }
        if (inside) {
            r.kept.at(row, offset);
            if (r.op == REDUCE_EQUAL) {
                A one = widen(target[offset[1]]);
#pragma unroll
                for (int e = 0; e < V; e++)
                    wanted[e] = one;
            }
            reduce_lane<T, V>(x + offset[0], r, lane, wanted, result);
        }
        total[0] = result[0];
#pragma unroll
        for (int e = 1; e < V; e++)
            total[0] = combine(total[0], result[e]);
        block_tree<REDUCE_BLOCK>(total, shared, lane, r.lanes, 1, combine);
        if (lane == 0 && inside)
            reduce_store<A>(y, r, r.outputs, row, offset[1], total[0]);
        __syncthreads(); /* `shared` is free for the next row */
    }
}

/* As many lanes as a row fills with UNROLL loads each, and more where rows are few. */
int lanes_of(int64_t outputs, int64_t length)
{
    int lanes = reduce_power_of_two(length);
    while (lanes > 8 && length < (int64_t)lanes * REDUCE_UNROLL && reduce_tiles(outputs, lanes / 2) >= 2 * cuda.multiprocessors)
        lanes /= 2;
    return lanes;
}

template <typename T, int V>
int launch(const reduction *n, const reduce_plan *p, const T *x, const T *target, void *y)
{
    reduce_arguments<accumulator<T>> r = reduce_arguments_of<accumulator<T>>(n, p, 1, V);
    return ASEN_LAUNCH((reduce_rows_kernel<T, V>), reduce_grid(p), REDUCE_BLOCK, 0, x, target, y, r);
}

} // namespace

reduce_plan reduce_rows_plan(const reduction *n, int width)
{
    reduce_plan p = {};
    p.width = width;
    p.outputs = space_count(&n->kept);
    p.length = space_count(&n->reduced) / width;
    p.lanes = lanes_of(p.outputs, p.length);
    p.tiles = reduce_tiles(p.outputs, p.lanes);
    p.slices = 1;
    return p;
}

int reduce_rows(const reduction *n, const reduce_plan *p, asen_dtype from, const void *x, const void *target, void *y)
{
    CUDA_FLOAT_SWITCH(from, T, {
        const T *source = static_cast<const T *>(x), *equal_to = static_cast<const T *>(target);
        return p->width > 1 ? launch<T, vector_size<T>>(n, p, source, equal_to, y) : launch<T, 1>(n, p, source, equal_to, y);
    })
    return ASEN_DECLINED;
}
