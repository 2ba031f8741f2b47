/* Reductions of which the innermost dim of x is kept: columns of a matrix, NHWC over H, W or over N, H, W. A vector
 * belongs to neighbouring outputs, and so do neighbouring threads; the lanes of an output are a row of the block
 * apart. See reduce.cuh. */
#include "reduce.cuh"

namespace {

/* x: r.outputs x r.length positions, the outputs being vectors of V; y: the outputs' elements, or (slices, outputs)
 * partial results; target (EQUAL alone): lies as y does. Grid: tiles of columns x slices. */
template <typename T, int V>
__global__ void __launch_bounds__(REDUCE_BLOCK)
reduce_columns_kernel(const T *x, const T *target, void *y, reduce_arguments<accumulator<T>> r)
{
    typedef accumulator<T> A;
    ASEN_SHARED(A, shared, [REDUCE_BLOCK * V]);
    int columns = REDUCE_BLOCK / r.lanes, lane = threadIdx.x / columns, own = threadIdx.x % columns;
    for (int64_t tile = (int64_t)blockIdx.x * columns; tile < r.outputs; tile += (int64_t)gridDim.x * columns) {
        int64_t column = tile + own, offset[2] = {0, 0};
        A result[V], wanted[V];
        bool inside = column < r.outputs;
#pragma unroll
        for (int e = 0; e < V; e++) {
            result[e] = reduce_begin<A>(r.op);
            wanted[e] = 0;
        }
        if (inside) {
            r.kept.at(column, offset);
            if (r.op == REDUCE_EQUAL)
#pragma unroll
                for (int e = 0; e < V; e++)
                    wanted[e] = widen(target[offset[1] + e * r.y_step]);
            reduce_lane<T, V>(x + offset[0], r, lane, wanted, result);
        }
        block_tree<REDUCE_BLOCK>(result, shared, lane, r.lanes, columns, reduce_combine{r.op});
        if (lane == 0 && inside)
#pragma unroll
            for (int e = 0; e < V; e++)
                reduce_store<A>(y, r, r.outputs * V, column * V + e, offset[1] + e * r.y_step, result[e]);
        __syncthreads(); /* `shared` is free for the next column */
    }
}

/* 8 lanes (fewer for short columns), and more, as long as a row of the tile has `segment` bytes, where the tiles would
 * leave multiprocessors idle. */
int lanes_of(int64_t outputs, int64_t length, int vector_bytes, int segment)
{
    int lanes = reduce_power_of_two(ceil_div(length, REDUCE_UNROLL));
    lanes = lanes < 8 ? lanes : 8;
    int columns = reduce_power_of_two(outputs);
    if (columns < REDUCE_BLOCK / lanes)
        lanes = REDUCE_BLOCK / columns;
    while (lanes < REDUCE_BLOCK && REDUCE_BLOCK / lanes * vector_bytes > segment &&
           reduce_tiles(outputs, lanes) < cuda.multiprocessors && length >= (int64_t)lanes * 2)
        lanes *= 2;
    return lanes;
}

template <typename T, int V>
int launch(const reduction *n, const reduce_plan *p, const T *x, const T *target, void *y)
{
    reduce_arguments<accumulator<T>> r = reduce_arguments_of<accumulator<T>>(n, p, V, 1);
    return ASEN_LAUNCH((reduce_columns_kernel<T, V>), reduce_grid(p), REDUCE_BLOCK, 0, x, target, y, r);
}

} // namespace

reduce_plan reduce_columns_plan(const reduction *n, int width, int bytes, int segment)
{
    reduce_plan p = {};
    p.width = width;
    p.outputs = space_count(&n->kept) / width;
    p.length = space_count(&n->reduced);
    p.lanes = lanes_of(p.outputs, p.length, width * bytes, segment);
    p.tiles = reduce_tiles(p.outputs, p.lanes);
    p.slices = 1;
    return p;
}

int reduce_columns(const reduction *n, const reduce_plan *p, asen_dtype from, const void *x, const void *target, void *y)
{
    CUDA_FLOAT_SWITCH(from, T, {
        const T *source = static_cast<const T *>(x), *equal_to = static_cast<const T *>(target);
        return p->width > 1 ? launch<T, vector_size<T>>(n, p, source, equal_to, y) : launch<T, 1>(n, p, source, equal_to, y);
    })
    return ASEN_DECLINED;
}
