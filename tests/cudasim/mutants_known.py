"""What is known of the mutants of kernels/ (mutants.py): those that must be there, and those that nothing can kill.

An entry that fits no line of the sources any more is an error: change it with them.
"""

# (file, function, kind, line): each of these lived once.
NAMED: list[tuple[str, str, str, str]] = [
    ("reduce_rows.cu", "reduce_rows_kernel", "barrier", "__syncthreads();"),
    ("reduce_columns.cu", "reduce_columns_kernel", "barrier", "__syncthreads();"),
    ("reduce_integers.cu", "reduce_integers_kernel", "barrier", "__syncthreads();"),
    ("move.cu", "transpose_kernel", "barrier", "__syncthreads();"),
    ("lookup.cu", "embedding_grad_kernel", "barrier", "__syncthreads();"),
    ("channels.cuh", "channels_whole", "alignment", "return C % vector_size<T> == 0 && vector_aligned(pointer...);"),
    ("vector.cuh", "vector_aligned", "alignment", "return ((uintptr_t)pointer | ...) % 16 == 0;"),
]

SHARING = "how many threads or blocks share the work: any number gives the same result"

# (file, function, kind or *, line or *, why no test can tell it from the original).
EQUIVALENT: list[tuple[str, str, str, str, str]] = [
    ("kernels.cuh", "grid_for", "bound", "*", SHARING),
    ("channels.cuh", "channels_threads", "bound", "*", SHARING),
    ("reduce.cuh", "reduce_power_of_two", "bound", "*", SHARING),
    ("reduce_rows.cu", "lanes_of", "bound", "*", SHARING),
    ("reduce_columns.cu", "lanes_of", "bound", "*", SHARING),
    ("reduce.cu", "slices_of", "bound", "*", SHARING),
    ("softmax.cu", "power_of_two", "bound", "*", SHARING),
    ("softmax.cu", "arguments_of", "bound", "*", SHARING),
    ("norm.cuh", "norm_grid_make", "bound", "if (each < NORM_MIN_ROWS)", SHARING),
    ("norm.cuh", "norm_grid_make", "bound", "if (each > NORM_MAX_ROWS)", SHARING),
    ("norm.cuh", "norm_join_threads", "bound", "*", SHARING),
    ("pool.cu", "pool_blocks", "bound", "*", SHARING),
    ("lookup.cu", "pixel_blocks", "bound", "*", SHARING),
    ("reduce.cu", "strides_are_multiples", "alignment", "if (s->size[d] > 1 && s->stride[0][d] % n != 0)",
     "x is dense: where the innermost size is a multiple, so are all strides around it"),
    ("reduce.cu", "run", "alignment", "bool by_rows = space_count(&n->kept) == 1 || n->kept.stride[0][n->kept.ndim - 1] != 1;",
     "rows reduced as columns, without vectors, have the same result up to rounding"),
    ("move.cu", "widen_units", "alignment",
     "if (s->size[last] % n != 0 || !space_aligned(s, 0, x, n, bytes) || !space_aligned(s, 1, y, n, bytes))",
     "one side of every copy is dense: its next stride is a multiple of this size, and space_aligned asks for that"),
    ("move.cu", "transposed_dim", "alignment", "if (s->stride[0][last] == 1 || s->stride[1][last] != 1 || s->size[last] < FEW)",
     "copies through tiles and those without have the same result; y is dense, so its last stride is 1"),
]
