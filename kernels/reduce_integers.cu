/* Reductions of integers: sums wrap around in 64 bits, then in the dtype. See reduce.cuh. */
#include "reduce.cuh"

namespace {

struct wrapping_sum {
    __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const { return (int64_t)((uint64_t)a + (uint64_t)b); }
};

struct integer_combine {
    bool max;
    __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const { return max ? max_of()(a, b) : wrapping_sum()(a, b); }
};

/* A block an output. */
__global__ void __launch_bounds__(REDUCE_BLOCK)
reduce_integers_kernel(const void *x, void *y, int dtype, int64_t outputs, int64_t length, walk<2> kept, walk<1> reduced, bool max)
{
    ASEN_SHARED(int64_t, shared, [REDUCE_BLOCK]);
    int64_t begin = !max ? 0 : dtype == ASEN_I64 ? INT64_MIN : dtype == ASEN_I32 ? INT32_MIN : 0;
    integer_combine combine = {max};
    for (int64_t output = blockIdx.x; output < outputs; output += gridDim.x) {
        int64_t offset[2], at[1], result[1] = {begin};
        kept.at(output, offset);
        for (int64_t i = threadIdx.x; i < length; i += REDUCE_BLOCK) {
            reduced.at(i, at);
            result[0] = combine(result[0], load_integer(x, dtype, offset[0] + at[0]));
        }
        block_tree<REDUCE_BLOCK>(result, shared, threadIdx.x, REDUCE_BLOCK, 1, combine);
        if (threadIdx.x == 0)
            store_integer(y, dtype, offset[1], result[0]);
        __syncthreads(); /* `shared` is free for the next output */
    }
}

} // namespace

int reduce_integers(const asen_call *call, const asen_attrs_reduce *attrs, bool max)
{
    asen_dtype dtype = call->in[0]->dtype;
    reduction n = reduce_describe(call->in[0], attrs, REDUCE_SUM, dtype, false);
    int64_t outputs = space_count(&n.kept);
    if (space_too_large(&n.kept) || space_too_large(&n.reduced))
        return ASEN_DECLINED;
    return ASEN_LAUNCH(reduce_integers_kernel, grid_for(outputs, 1), REDUCE_BLOCK, 0, input<char>(call, 0), output<char>(call, 0),
                       (int)dtype, outputs, space_count(&n.reduced), walk_over<2>(&n.kept, 1), walk_over<1>(&n.reduced, 1), max);
}
