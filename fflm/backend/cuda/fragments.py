"""The tile of a product whose numbers are in fragments, as the instructions for tensor cores of all precisions leave them.

Each of the eight warps of a block computes 64 x 32 numbers of the tile, as 4 x 4 fragments of 16 x 8 numbers. Each thread has
four numbers of every fragment, which `intrinsics` explains; its array of sums (4, 4, 4) is indexed by the fragment's row, the
fragment's column, and the register.
"""

import math
from typing import Any

from numba import cuda, float32, uint32

from fflm.backend.cuda.kernels import ALL_LANES, larger
from fflm.backend.cuda.products import ROWS


@cuda.jit(device=True, forceinline=True)
def clear(sums):
    """Set the sums (4, 4, 4) to 0."""
    for i in range(4):
        for j in range(4):
            for q in range(4):
                sums[i, j, q] = float32(0)


@cuda.jit(device=True, forceinline=True)
def first(thread):
    """Return the row and the column, in the tile, of the first number of a thread."""
    lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
    down, across = uint32(warp // uint32(4) * uint32(64)), uint32(warp % uint32(4) * uint32(32))
    return uint32(down + lane // uint32(4)), uint32(across + lane % uint32(4) * uint32(2))


@cuda.jit(device=True, forceinline=True)
def offset(number):
    """Return the distance, in rows and in columns, of number ``number`` of a thread's 64 numbers from its first number."""
    down = number // uint32(16) * uint32(16) + number // uint32(2) % uint32(2) * uint32(8)
    return down, number // uint32(4) % uint32(4) * uint32(8) + number % uint32(2)


@cuda.jit(device=True, forceinline=True)
def store_fragments(sums, i, c, rows, row, column, alpha, beta):
    """Store the sums[i] of a thread, as `store` says. The callers pass i as a constant, so that the sums stay in registers."""
    for j in range(4):
        for q in range(4):
            y, x = uint32(row + uint32(16 * i + 8 * (q // 2))), uint32(column + uint32(8 * j + q % 2))
            if y < rows and x < uint32(c.shape[1]):
                y = uint32(y + uint32(cuda.blockIdx.z) * rows)
                c[y, x] = alpha * sums[i, j, q] + (beta * c[y, x] if beta != float32(0) else float32(0))


@cuda.jit(device=True, forceinline=True)
def store_fragments_with_bias(sums, i, c, bias, rows, row, column):
    """Store sums[i] of a thread, of sums (4, 4, 4), plus bias (N,) in c (M, N). The callers pass i as a constant."""
    for j in range(4):
        for q in range(4):
            y, x = uint32(row + uint32(16 * i + 8 * (q // 2))), uint32(column + uint32(8 * j + q % 2))
            if y < rows and x < uint32(c.shape[1]):
                c[y, x] = sums[i, j, q] + bias[x]


@cuda.jit(device=True, forceinline=True)
def store(sums, c, rows, row, column, alpha, beta):
    """Store alpha times a thread's sums (4, 4, 4), plus ``beta`` times the old content, in c (parts M, N).

    The rows of c are those of part number ``blockIdx.z``; each part has ``rows`` (M) rows. ``row`` and ``column`` are the place
    of the thread's first number.
    """
    store_fragments(sums, 0, c, rows, row, column, alpha, beta)
    store_fragments(sums, 1, c, rows, row, column, alpha, beta)
    store_fragments(sums, 2, c, rows, row, column, alpha, beta)
    store_fragments(sums, 3, c, rows, row, column, alpha, beta)


@cuda.jit(device=True, forceinline=True)
def store_with_bias(sums, c, bias, rows, row, column):
    """Store a thread's sums (4, 4, 4) plus bias (N,) in c (M, N); ``row``, ``column`` is the place of its first number."""
    store_fragments_with_bias(sums, 0, c, bias, rows, row, column)
    store_fragments_with_bias(sums, 1, c, bias, rows, row, column)
    store_fragments_with_bias(sums, 2, c, bias, rows, row, column)
    store_fragments_with_bias(sums, 3, c, bias, rows, row, column)


@cuda.jit(device=True, forceinline=True)
def row_top(sums, i, h, bias, column):
    """Add bias (V,) to a thread's eight logits of a row, and return the maximum of the 32 logits of the row in its warp.

    The logits are sums[i, :, 2 h] and sums[i, :, 2 h + 1]. They become -infinity outside of the matrix.
    """
    top = float32(-math.inf)
    for j in range(4):
        for q in range(2):
            place = uint32(column + uint32(8 * j + q))
            sums[i, j, 2 * h + q] = sums[i, j, 2 * h + q] + bias[place] if place < uint32(bias.size) else float32(-math.inf)
            top = larger(top, sums[i, j, 2 * h + q])
    top = larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 1))
    return larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 2))


def make_store_softmax(store_two: Any) -> Any:
    """Return the device function that finishes a tile of logits, as `Arithmetic.store_softmax`.

    ``store_two(c, row, column, first, second)`` stores two adjacent exponentials in c, except outside of the matrix.
    """

    @cuda.jit(device=True, forceinline=True)
    def row_exponentials(sums, i, h, statistics, place, c, stored, row, column):
        """Return the sum of exp(logit - maximum of the row) over the 32 logits of a row in a warp.

        If ``stored``, the eight exponentials of the thread are written to row ``row`` of c. The maxima of the row in its four
        warps are in statistics (8 ROWS,), from ``place`` on.
        """
        first_two = larger(statistics[place], statistics[place + uint32(1)])
        top = larger(first_two, larger(statistics[place + uint32(2)], statistics[place + uint32(3)]))
        total = float32(0)
        for j in range(4):
            first, second = math.exp(sums[i, j, 2 * h] - top), math.exp(sums[i, j, 2 * h + 1] - top)
            total += first + second
            if stored:
                store_two(c, row, uint32(column + uint32(8 * j)), first, second)
        total += cuda.shfl_xor_sync(ALL_LANES, total, 1)
        return total + cuda.shfl_xor_sync(ALL_LANES, total, 2)

    @cuda.jit(device=True, forceinline=True)
    def store_softmax(sums, statistics, bias, c, stored, highest, totals, row0, row, column):
        """Finish a tile of logits: add bias (V,) to the sums (4, 4, 4), and compute the statistics of the softmax.

        The maximum of each row and the sum of exp(logit - maximum) are stored in highest and totals (B, tiles), and if
        ``stored``, these exponentials in c. statistics (8 ROWS,) is shared memory: for each row the maxima of four warps, and
        after those of all rows, the sums of four warps. ``row0`` is the first row of the tile, and ``row``, ``column`` is the
        place of the thread's first number.
        """
        thread, (down, _) = uint32(cuda.threadIdx.x), first(uint32(cuda.threadIdx.x))
        lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
        for i in range(4):
            for h in range(2):
                top = row_top(sums, i, h, bias, column)
                if lane % uint32(4) == uint32(0):
                    statistics[uint32(4) * (down + uint32(16 * i + 8 * h)) + warp % uint32(4)] = top
        cuda.syncthreads()
        for i in range(4):
            for h in range(2):
                where = uint32(uint32(4) * (down + uint32(16 * i + 8 * h)))
                y = uint32(row + uint32(16 * i + 8 * h))
                total = row_exponentials(sums, i, h, statistics, where, c, stored, y, column)
                if lane % uint32(4) == uint32(0):
                    statistics[uint32(4 * ROWS) + where + warp % uint32(4)] = total
        cuda.syncthreads()
        if thread < uint32(ROWS) and row0 + thread < uint32(highest.shape[0]):  # one thread per row
            top, total = float32(-math.inf), float32(0)
            for k in range(4):
                top = larger(top, statistics[uint32(4) * thread + uint32(k)])
                total += statistics[uint32(4 * ROWS) + uint32(4) * thread + uint32(k)]
            highest[row0 + thread, uint32(cuda.blockIdx.x)] = top
            totals[row0 + thread, uint32(cuda.blockIdx.x)] = total

    return store_softmax
