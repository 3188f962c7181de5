"""The arithmetic of matrix products in mixed precision: operands of halves (float16) on tensor cores, sums in float32.

`intrinsics` says what a matrix of halves is, and what a fragment. Each of the eight warps of a block computes 64 x 32 numbers of
its tile, as 4 x 4 products of fragments. A thread has 4 x 4 x 4 numbers of them: fragments down, fragments across, registers.

Halves reach from 6e-8 to 65,504. Exponentials are at most 1. Probabilities less the target are multiplied by `SLOPE` and not by
the scale of the loss, which is applied to the sums, in float32. Other gradients are multiplied by a power of two that brings the
largest to 2^14. Weights and activations are taken as they are.
"""

import math
from typing import Any

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.intrinsics import fragments, halves, load_four, multiply_add, pair, store_four, transposed_fragments
from fflm.backend.cuda.kernels import ALL_LANES, larger
from fflm.backend.cuda.launching import BLOCK, kernel
from fflm.backend.cuda.products import FOUR, OUTSIDE, ROWS, Arithmetic, is_inside, make_product

DEPTH = 32
"""Numbers of the inner dimension that are read in a step."""

WIDTH = 8
"""Halves in a piece."""

SLOPE = 2.0**10
"""The unit of the gradients of logits is 1 / SLOPE: by the penalty on normalizers they may be 64 times a probability's 1."""

# Shared memory, in pairs, of which `FOUR` are read together. A line goes along the inner dimension or across it, as the matrix is
# stored. It is padded so that the eight lines of a fragment's matrix lie in different banks.
_ALONG = DEPTH // 2 + FOUR
_ACROSS = ROWS // 2 + FOUR  # ROWS is COLUMNS
_OPERAND = ROWS * _ALONG  # the larger of ROWS such lines and DEPTH of the others


def pairs_for(columns: int) -> int:
    """Return how many pairs a row of a matrix of halves has."""
    return FOUR * -(-columns // WIDTH)


@kernel()
def to_halves(values, unit, pairs):
    """Round a matrix, times ``unit[0]``, to one of halves: a block a row."""
    row, count = uint32(cuda.blockIdx.x), uint32(values.shape[1])
    for j in range(uint32(cuda.threadIdx.x), uint32(pairs.shape[1]), uint32(BLOCK)):
        i = uint32(2) * j
        first = values[row, i] * unit[0] if i < count else float32(0)
        second = values[row, i + uint32(1)] * unit[0] if i + uint32(1) < count else float32(0)
        pairs[row, j] = pair(first, second)


@cuda.jit(device=True, forceinline=True)
def read_piece(matrix, line, piece):
    """Return the four pairs of a piece of a line; zeros outside of the matrix (lines, pairs)."""
    if is_inside(matrix, line, uint32(FOUR) * piece):
        return load_four(matrix, uint32(line * uint32(matrix.shape[1]) + uint32(FOUR) * piece))
    return uint32(0), uint32(0), uint32(0), uint32(0)


@cuda.jit(device=True, forceinline=True)
def slope_pair(exponentials, number, factor, place, hit, spread, own):
    """Compute the gradients of two logits, numbers ``number`` and the next of eight, of which number ``place`` is the target's.

    They are those of `single.slope`, and also added to ``own`` (8,).
    """
    first, second = halves(exponentials)
    first = first * factor - spread - (hit if place == uint32(number) else float32(0))
    second = second * factor - spread - (hit if place == uint32(number + 1) else float32(0))
    own[number] += first
    own[number + 1] += second
    return pair(first, second)


@cuda.jit(device=True, forceinline=True)
def slope_piece(words, q, factor, place, hit, spread, own):
    """Replace the exponentials of a piece, words (reads, 4) number q, by the gradients of eight logits."""
    words[q, 0] = slope_pair(words[q, 0], 0, factor, place, hit, spread, own)
    words[q, 1] = slope_pair(words[q, 1], 2, factor, place, hit, spread, own)
    words[q, 2] = slope_pair(words[q, 2], 4, factor, place, hit, spread, own)
    words[q, 3] = slope_pair(words[q, 3], 6, factor, place, hit, spread, own)


@cuda.jit(device=True, forceinline=True)
def compute_slopes(words, q, factor, place, hit, spread, own):
    """Replace exponentials as `slope_piece` does, with a path of its own for the many pieces without a target."""
    if place < uint32(WIDTH):
        slope_piece(words, q, factor, place, hit, spread, own)
    elif place != uint32(OUTSIDE):  # nearly always: there is nothing to compare
        slope_piece(words, q, factor, uint32(OUTSIDE), hit, spread, own)


@cuda.jit(device=True, forceinline=True)
def write_piece(shared, start, line, piece, pairs, along):
    """Write four pairs to shared memory, in lines as they were read."""
    length = uint32(_ALONG) if along else uint32(_ACROSS)
    store_four(shared, uint32(start + line * length + piece * uint32(FOUR)), pairs)


@cuda.jit(device=True, forceinline=True)
def locate(thread, left_along, right_along):
    """Return where the lines that a thread points to, when fragments are loaded, begin in op(a) and in op(b).

    A lane points to line lane % 8 of matrix lane // 8. Of op(a) the four matrices are upper, lower, and their right neighbors;
    of op(b) the first and the second along the inner dimension, and the same of the next eight columns.
    """
    lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
    down, across = uint32(warp // uint32(4) * uint32(64)), uint32(warp % uint32(4) * uint32(32))
    odd, high = uint32(lane // uint32(8) % uint32(2) * uint32(8)), uint32(lane // uint32(16) * uint32(8))
    if left_along:
        left = uint32((down + odd + lane % uint32(8)) * uint32(_ALONG) + high // uint32(2))
    else:
        left = uint32((high + lane % uint32(8)) * uint32(_ACROSS) + (down + odd) // uint32(2))
    if right_along:
        right = uint32((across + high + lane % uint32(8)) * uint32(_ALONG) + odd // uint32(2))
    else:
        right = uint32((odd + lane % uint32(8)) * uint32(_ACROSS) + (across + high) // uint32(2))
    return left, right


@cuda.jit(device=True, forceinline=True)
def multiply_fragments(sums, shared, left, left_along, left_next, right, right_along, right_next):
    """Add to a warp's sums the products of 4 x 4 fragments, which begin at two places of shared memory and lie so far apart."""
    rights = cuda.local.array((4, 2), uint32)
    for j in range(2):
        if right_along:
            four = fragments(shared, right + uint64(j * right_next))
        else:
            four = transposed_fragments(shared, right + uint64(j * right_next))
        rights[2 * j, 0], rights[2 * j, 1], rights[2 * j + 1, 0], rights[2 * j + 1, 1] = four
    for i in range(4):
        if left_along:
            a = fragments(shared, left + uint64(i * left_next))
        else:
            a = transposed_fragments(shared, left + uint64(i * left_next))
        for j in range(4):
            c = multiply_add(a, (rights[j, 0], rights[j, 1]), (sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]))
            sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = c


@cuda.jit(device=True, forceinline=True)
def multiply_step(sums, shared, left, right, left_along, right_along):
    """Add to sums (4, 4, 4) the products of a step, in two halves of the inner dimension."""
    # From one fragment to the next, and from the first half of the inner dimension to the second.
    left_next, left_half = (16 * _ALONG, 8) if left_along else (8, 16 * _ACROSS)
    right_next, right_half = (16 * _ALONG, 8) if right_along else (8, 16 * _ACROSS)
    for half in range(2):
        multiply_fragments(
            sums,
            shared,
            uint64(left) + uint64(half * left_half),
            left_along,
            left_next,
            uint64(right) + uint64(_OPERAND + half * right_half),
            right_along,
            right_next,
        )


@cuda.jit(device=True, forceinline=True)
def clear(sums):
    """Set the sums (4, 4, 4) to 0."""
    for i in range(4):
        for j in range(4):
            for q in range(4):
                sums[i, j, q] = float32(0)


@cuda.jit(device=True, forceinline=True)
def first(thread):
    """Return row and column in the tile of a thread's first number."""
    lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
    down, across = uint32(warp // uint32(4) * uint32(64)), uint32(warp % uint32(4) * uint32(32))
    return uint32(down + lane // uint32(4)), uint32(across + lane % uint32(4) * uint32(2))


@cuda.jit(device=True, forceinline=True)
def offset(number):
    """Return how many rows and columns number ``number`` of a thread's 64 is from its first."""
    down = number // uint32(16) * uint32(16) + number // uint32(2) % uint32(2) * uint32(8)
    return down, number // uint32(4) % uint32(4) * uint32(8) + number % uint32(2)


@cuda.jit(device=True, forceinline=True)
def store_fragments(sums, i, c, rows, row, column, alpha, beta):
    """Add a thread's two rows of fragments number i, which is a constant, so that the sums are registers, to what is there."""
    for j in range(4):
        for q in range(4):
            y, x = uint32(row + uint32(16 * i + 8 * (q // 2))), uint32(column + uint32(8 * j + q % 2))
            if y < rows and x < uint32(c.shape[1]):
                y = uint32(y + uint32(cuda.blockIdx.z) * rows)
                c[y, x] = alpha * sums[i, j, q] + (beta * c[y, x] if beta != float32(0) else float32(0))


@cuda.jit(device=True, forceinline=True)
def store_fragments_with_bias(sums, i, c, bias, rows, row, column):
    """Store a thread's two rows of fragments number i of sums (4, 4, 4) plus bias (N,) in c (M, N)."""
    for j in range(4):
        for q in range(4):
            y, x = uint32(row + uint32(16 * i + 8 * (q // 2))), uint32(column + uint32(8 * j + q % 2))
            if y < rows and x < uint32(c.shape[1]):
                c[y, x] = sums[i, j, q] + bias[x]


@cuda.jit(device=True, forceinline=True)
def store(sums, c, rows, row, column, alpha, beta):
    """Add alpha times a thread's sums (4, 4, 4) to beta times what is in c (parts M, N)."""
    store_fragments(sums, 0, c, rows, row, column, alpha, beta)
    store_fragments(sums, 1, c, rows, row, column, alpha, beta)
    store_fragments(sums, 2, c, rows, row, column, alpha, beta)
    store_fragments(sums, 3, c, rows, row, column, alpha, beta)


@cuda.jit(device=True, forceinline=True)
def store_with_bias(sums, c, bias, rows, row, column):
    """Store a thread's sums (4, 4, 4) plus bias (N,) in c (M, N)."""
    store_fragments_with_bias(sums, 0, c, bias, rows, row, column)
    store_fragments_with_bias(sums, 1, c, bias, rows, row, column)
    store_fragments_with_bias(sums, 2, c, bias, rows, row, column)
    store_fragments_with_bias(sums, 3, c, bias, rows, row, column)


@cuda.jit(device=True, forceinline=True)
def row_top(sums, i, h, bias, column):
    """Add the bias to a thread's eight numbers of a row, -infinity where no column is; return the largest of its warp's 32."""
    top = float32(-math.inf)
    for j in range(4):
        for q in range(2):
            place = uint32(column + uint32(8 * j + q))
            sums[i, j, 2 * h + q] = sums[i, j, 2 * h + q] + bias[place] if place < uint32(bias.size) else float32(-math.inf)
            top = larger(top, sums[i, j, 2 * h + q])
    top = larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 1))
    return larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 2))


@cuda.jit(device=True, forceinline=True)
def row_exponentials(sums, i, h, statistics, place, c, stored, row, column):
    """Return the sum of exp(logit - the row's maximum) of a warp's 32 numbers of a row; store the thread's eight if ``stored``.

    statistics (4 * ROWS,), the maxima of four warps, whose row begins at ``place``
    """
    first_two = larger(statistics[place], statistics[place + uint32(1)])
    top = larger(first_two, larger(statistics[place + uint32(2)], statistics[place + uint32(3)]))
    total = float32(0)
    for j in range(4):
        first, second = math.exp(sums[i, j, 2 * h] - top), math.exp(sums[i, j, 2 * h + 1] - top)
        total += first + second
        at = uint32(column // uint32(2) + uint32(4 * j))
        if stored and row < uint32(c.shape[0]) and at < uint32(c.shape[1]):
            c[row, at] = pair(first, second)
    total += cuda.shfl_xor_sync(ALL_LANES, total, 1)
    return total + cuda.shfl_xor_sync(ALL_LANES, total, 2)


@cuda.jit(device=True, forceinline=True)
def store_softmax(sums, statistics, bias, c, stored, highest, totals, row0, row, column):
    """End a tile of logits: store maxima and sums in highest and totals (tiles, B).

    Adds bias (V,) to the sums (4, 4, 4), and stores exp(logit - maximum) in c (B, pairs) if it is to be ``stored``. In statistics
    each row has the maxima of its four warps, and 4 ROWS farther on their sums.
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
    if thread < uint32(ROWS) and row0 + thread < uint32(highest.shape[1]):  # a thread for each row
        top, total = float32(-math.inf), float32(0)
        for k in range(4):
            top = larger(top, statistics[uint32(4) * thread + uint32(k)])
            total += statistics[uint32(4 * ROWS) + uint32(4) * thread + uint32(k)]
        highest[uint32(cuda.blockIdx.x), row0 + thread] = top
        totals[uint32(cuda.blockIdx.x), row0 + thread] = total


MIXED = Arithmetic(
    width=WIDTH,
    depth=DEPTH,
    word=uint32,
    operand_words=_OPERAND,
    sums=(4, 4, 4),
    clear=clear,
    read=read_piece,
    compute_slopes=compute_slopes,
    write=write_piece,
    locate=locate,
    multiply=multiply_step,
    first=first,
    offset=offset,
    store=store,
    store_with_bias=store_with_bias,
    store_softmax=store_softmax,
)


def make_mixed_product(form: str) -> Any:
    """Return the kernel of products of a form in mixed precision; `products` describes its parameters.

    ``unit`` (2,) is additional: its second number is another factor on op(a) op(b), which is known on the device only.
    """
    compute = make_product(MIXED, form)

    @kernel(form, launch_bounds=(BLOCK, 2))
    def product(a, b, c, inner, span, alpha, unit, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread):
        alpha *= unit[1]
        compute(a, b, c, inner, span, alpha, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread)

    return product
