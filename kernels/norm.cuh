/* Batch norm's walk over x, shared by norm.cu and norm_grad.cu.
 *
 * x (N, C, H, W) lies N, H, W, C: group g's rows of C values are the consecutive [g R, (g + 1) R).
 * A block takes a tile of channels (`across` threads, a vector each) and a chunk of a group's rows
 * (its other threads, 64 rows each at most, so that float sums stay short); partial sums go to
 * scratch memory, and a small kernel adds them up in the order of the chunks. */
#ifndef ASEN_NORM_CUH
#define ASEN_NORM_CUH

#include "block.cuh"
#include "channels.cuh"

enum { NORM_THREADS = 256, NORM_MAX_ROWS = 64, NORM_MIN_ROWS = 4 };

typedef struct norm_grid {
    int64_t rows; /* R, of one group */
    int C, groups;
    int across;     /* threads along C: a power of two */
    int down, down_log2; /* threads along rows: NORM_THREADS / across */
    int tiles;      /* of channels */
    int chunk_rows; /* rows of a chunk; the last may have fewer */
    int chunks;     /* of a group */
    bool whole;     /* vectors may be used (channels.cuh) */
} norm_grid;

/* The blocks of one pass. */
static inline dim3 norm_blocks(const norm_grid *g) { return dim3((unsigned)(g->tiles * g->chunks), (unsigned)g->groups); }

template <typename T> static int norm_grid_make(const asen_tensor *x, int64_t groups, bool whole, norm_grid *out)
{
    norm_grid g;
    int64_t C = x->shape[1], rows = x->shape[0] / groups * x->shape[2] * x->shape[3];
    int64_t vectors = ceil_div(C, vector_size<T>);
    if (groups > 65535 || groups * C > INT32_MAX / 8)
        return ASEN_DECLINED;
    g.rows = rows;
    g.C = (int)C;
    g.groups = (int)groups;
    g.whole = whole;
    g.across = channels_threads(vectors);
    g.tiles = (int)ceil_div(vectors, g.across);
    /* Enough blocks to fill the device twice, then as many rows a thread as that leaves. */
    g.down = NORM_THREADS / g.across;
    for (g.down_log2 = 0; 1 << g.down_log2 < g.down; g.down_log2++)
        ;
    int64_t each = rows * groups * g.tiles / ((int64_t)cuda.multiprocessors * 16 * g.down);
    if (each < NORM_MIN_ROWS)
        each = NORM_MIN_ROWS;
    if (each > NORM_MAX_ROWS)
        each = NORM_MAX_ROWS;
    g.chunk_rows = (int)(each * g.down);
    int64_t chunks = ceil_div(rows, g.chunk_rows);
    if (chunks * g.tiles > INT32_MAX)
        return ASEN_DECLINED;
    g.chunks = (int)chunks;
    *out = g;
    return ASEN_OK;
}

/* Parameters, statistics and their gradients have x's dtype, float32 where x has half of that. */
static inline asen_dtype norm_parameter_dtype(const asen_tensor *x) { return x->dtype == ASEN_F64 ? ASEN_F64 : ASEN_F32; }

/* Where a thread stands. */
typedef struct norm_place {
    int chunk, group;
    int channel; /* the first of its vector */
    int left;    /* channels from there on; none or less: the thread has nothing to do */
    int row;     /* its first row in the chunk; the next is g.down further */
    int rows;    /* in this chunk */
    int64_t at;  /* element offset of (the chunk's row 0, channel) */
} norm_place;

/* The first pass of a call walks backwards and the second forwards: each begins where the kernel
 * before it ended, with what is still in the cache. */
template <typename T> __device__ __forceinline__ norm_place norm_place_of(const norm_grid &g, bool backwards)
{
    norm_place p;
    unsigned block = backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    unsigned tile = block % (unsigned)g.tiles;
    p.chunk = (int)(block / (unsigned)g.tiles);
    p.group = (int)(backwards ? gridDim.y - 1 - blockIdx.y : blockIdx.y);
    p.channel = (int)(tile * g.across + (threadIdx.x & (g.across - 1))) * vector_size<T>;
    p.left = g.C - p.channel;
    p.row = (int)threadIdx.x / g.across;
    int64_t first = (int64_t)p.chunk * g.chunk_rows, rest = g.rows - first;
    p.rows = rest < g.chunk_rows ? (int)rest : g.chunk_rows;
    p.at = (p.group * g.rows + first) * g.C + p.channel;
    return p;
}

/* How many rows of the thread's, from `row` on, lie in the chunk. */
__device__ __forceinline__ int norm_rows_left(const norm_grid &g, const norm_place &p, int row)
{
    return (p.rows - row + g.down - 1) >> g.down_log2;
}

/* Offset of the partial sum `kind` of a chunk: scratch[kind][group][chunk][C]. */
__host__ __device__ __forceinline__ int64_t norm_partial_at(const norm_grid &g, int kind, int group, int chunk)
{
    return (((int64_t)kind * g.groups + group) * g.chunks + chunk) * g.C;
}

/* The kernels that add up partial sums: a block takes 8 channels (a sector of memory) and, side by side,
 * up to 128 chunks of them. Few blocks with much to wait for: hence as many threads as there is work. */
enum { JOIN_CHANNELS = 8, JOIN_MAX_THREADS = 1024 };

static inline unsigned norm_join_blocks(const norm_grid *g) { return (unsigned)ceil_div(g->C, JOIN_CHANNELS); }
static inline unsigned norm_join_threads(const norm_grid *g)
{
    unsigned threads = 32;
    while (threads < JOIN_MAX_THREADS && (int)(threads / JOIN_CHANNELS) < g->chunks)
        threads *= 2;
    return threads;
}

/* The sum over the threads of a channel, in all of them; partial: shared memory for 256 values. */
template <typename A> __device__ __forceinline__ A norm_join_sum(A v, A *partial)
{
    int channel = threadIdx.x % JOIN_CHANNELS, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v += __shfl_xor_sync(0xffffffffu, v, 8);
    v += __shfl_xor_sync(0xffffffffu, v, 16);
    __syncthreads(); /* partial may still be read from the call before */
    if (threadIdx.x % 32 < JOIN_CHANNELS)
        partial[warp * JOIN_CHANNELS + channel] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < warps; w++)
        v += partial[w * JOIN_CHANNELS + channel];
    return v;
}

#endif
