"""The matrix products of mixed precision: operands of halves (float16) on tensor cores, sums in float32.

The forms and their ends are those of `kernels.make_product`, and so are the rules for indices and constants. What is a
matrix of halves, and what a fragment, `intrinsics` says.

A block's tile is 128 x 128 as there; its eight warps compute 64 x 32 of it each, as 4 x 4 products of fragments. While a step of
32 along the inner dimension is multiplied, the next is read into registers, and then written to the other half of shared memory.

Halves reach from 6e-8 to 65,504. Exponentials are at most 1. Probabilities less the target are multiplied by `SLOPE`, not by
the loss's scale, which is applied to the sums, in float32. Other gradients are multiplied by a power of two that brings the
largest to 2^14. Weights and activations are taken as they are.
"""

import math
from typing import Any

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.intrinsics import fragments, halves, load_four, multiply_add, pair, store_four, transposed_fragments
from fflm.backend.cuda.kernels import (
    ACTIVATE,
    ALL_LANES,
    BLOCK,
    COLUMNS,
    FOUR,
    OUTSIDE,
    PLAIN,
    ROWS,
    SLOPES,
    SLOPES_TRANSPOSED,
    SOFTMAX,
    STATISTICS,
    STORE,
    TRANSPOSED,
    kernel,
    larger,
)
from fflm.backend.formulas import activate

DEPTH = 32
"""How much of the inner dimension is read at a time."""

SLOPE = 2.0**10
"""The unit of logits' gradients is 1 / SLOPE: they may be 64 times a probability's 1, by the penalty on normalisers."""

# Shared memory, in pairs, of which `FOUR` are read together. A line goes along the inner dimension or across it, as the matrix is
# stored, and is padded so that the eight lines of a fragment's matrix lie in different banks.
_ALONG = DEPTH // 2 + FOUR
_ACROSS = ROWS // 2 + FOUR  # ROWS is COLUMNS
_OPERAND = ROWS * _ALONG  # the larger of ROWS such lines and DEPTH of the others
_STEP = 2 * _OPERAND
_SHARED = 2 * _STEP
_READS = ROWS * DEPTH // (2 * FOUR) // BLOCK  # pieces of eight halves that a thread reads of each operand in a step
_STATISTICS = 16 * ROWS  # of the ends; the sums of op(a)'s rows take all of it


def pairs_for(columns: int) -> int:
    """Return how many pairs a row of a matrix of halves has."""
    return FOUR * -(-columns // (2 * FOUR))


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
def is_inside(matrix, line, piece):
    """Whether a matrix of halves has a piece of eight."""
    return line < uint32(matrix.shape[0]) and uint32(FOUR) * piece < uint32(matrix.shape[1])


@cuda.jit(device=True, forceinline=True)
def read_piece(matrix, line, piece):
    """Read eight halves of a line; zeros outside of the matrix."""
    if is_inside(matrix, line, piece):
        return load_four(matrix, uint32(line * uint32(matrix.shape[1]) + uint32(FOUR) * piece))
    return uint32(0), uint32(0), uint32(0), uint32(0)


@cuda.jit(device=True, forceinline=True)
def slope_pair(exponentials, number, factor, place, hit, spread, own):
    """Compute the gradients of two logits, numbers ``number`` and the next of eight, of which number ``place`` is the target's.

    As `kernels.slope` does; they are also added to ``own`` (8,).
    """
    first, second = halves(exponentials)
    first = first * factor - spread - (hit if place == uint32(number) else float32(0))
    second = second * factor - spread - (hit if place == uint32(number + 1) else float32(0))
    own[number] += first
    own[number + 1] += second
    return pair(first, second)


@cuda.jit(device=True, forceinline=True)
def slope_piece(lefts, q, factor, place, hit, spread, own):
    """Compute the gradients of eight logits from the exponentials in piece q, in their place."""
    lefts[q, 0] = slope_pair(lefts[q, 0], 0, factor, place, hit, spread, own)
    lefts[q, 1] = slope_pair(lefts[q, 1], 2, factor, place, hit, spread, own)
    lefts[q, 2] = slope_pair(lefts[q, 2], 4, factor, place, hit, spread, own)
    lefts[q, 3] = slope_pair(lefts[q, 3], 6, factor, place, hit, spread, own)


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
    top = larger(larger(statistics[place], statistics[place + uint32(1)]),
                 larger(statistics[place + uint32(2)], statistics[place + uint32(3)]))  # fmt: skip
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
def store_fragments(sums, i, c, rows, row, column, alpha, beta):
    """Add a thread's two rows of fragments number i, which is written out as for `kernels.softmax_row`, to what is there."""
    for j in range(4):
        for q in range(4):
            y, x = uint32(row + uint32(16 * i + 8 * (q // 2))), uint32(column + uint32(8 * j + q % 2))
            if y < rows and x < uint32(c.shape[1]):
                y = uint32(y + uint32(cuda.blockIdx.z) * rows)
                c[y, x] = alpha * sums[i, j, q] + (beta * c[y, x] if beta != float32(0) else float32(0))


@cuda.jit(device=True, forceinline=True)
def store_with_bias(sums, i, c, bias, row, column):
    """End a thread's two rows of fragments number i with the bias."""
    for j in range(4):
        for q in range(4):
            y, x = uint32(row + uint32(16 * i + 8 * (q // 2))), uint32(column + uint32(8 * j + q % 2))
            if y < uint32(c.shape[0]) and x < uint32(c.shape[1]):
                c[y, x] = sums[i, j, q] + bias[x]


def make_mixed_product(left: int, right: int, end: int) -> Any:
    """Return the kernel of one form of the product c = op(a) op(b), as `kernels.make_product` does.

    a, b        of halves; op(a) (M, K), op(b) (K, N)
    c (M, N)    out, but for STATISTICS, float32; for SOFTMAX exp(logit - the part's row maximum), of halves
    alpha, unit (2,)
                op(a) op(b) is multiplied by alpha and unit[1]
    """
    slopes = left in (SLOPES, SLOPES_TRANSPOSED)
    left_along, right_along = left in (PLAIN, SLOPES), right == TRANSPOSED  # whether lines go along the inner dimension
    left_line, left_pieces = (_ALONG, DEPTH // 8) if left_along else (_ACROSS, ROWS // 8)
    right_line, right_pieces = (_ALONG, DEPTH // 8) if right_along else (_ACROSS, COLUMNS // 8)
    # From one fragment to the next, and from the first half of a step's inner dimension to the second.
    left_next, left_half = (16 * _ALONG, 8) if left_along else (8, 16 * _ACROSS)
    right_next, right_half = (16 * _ALONG, 8) if right_along else (8, 16 * _ACROSS)

    @kernel(launch_bounds=(BLOCK, 2))
    def product(a, b, c, inner, span, alpha, unit, beta, bias, code, highest, totals, factors, targets, hit, spread):
        shared = cuda.shared.array(_SHARED, uint32, alignment=16)
        statistics = cuda.shared.array(_STATISTICS, float32)
        sums = cuda.local.array((4, 4, 4), float32)
        lefts, rights = cuda.local.array((_READS, 4), uint32), cuda.local.array((_READS, 4), uint32)  # of the next step
        factor, place = cuda.local.array(_READS, float32), cuda.local.array(_READS, uint32)
        own = cuda.local.array(8, float32)  # sums of eight rows of op(a)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
        down, across = uint32(warp // uint32(4) * uint32(64)), uint32(warp % uint32(4) * uint32(32))  # where the warp's part is
        row0, column0 = uint32(uint32(cuda.blockIdx.y) * uint32(ROWS)), uint32(uint32(cuda.blockIdx.x) * uint32(COLUMNS))
        # When fragments are loaded, a lane points to line lane % 8 of matrix lane // 8. Of op(a) they are upper, lower, and their
        # right neighbours; of op(b) the first and the second along the inner dimension, and the same of the next eight columns.
        first, second = uint32(lane // uint32(8) % uint32(2) * uint32(8)), uint32(lane // uint32(16) * uint32(8))
        if left_along:
            left_place = uint32((down + first + lane % uint32(8)) * uint32(_ALONG) + second // uint32(2))
        else:
            left_place = uint32((second + lane % uint32(8)) * uint32(_ACROSS) + (down + first) // uint32(2))
        if right_along:
            right_place = uint32((across + second + lane % uint32(8)) * uint32(_ALONG) + first // uint32(2))
        else:
            right_place = uint32((first + lane % uint32(8)) * uint32(_ACROSS) + (across + second) // uint32(2))
        for i in range(4):
            for j in range(4):
                for q in range(4):
                    sums[i, j, q] = float32(0)
        for q in range(8):
            own[q] = float32(0)
        begin = uint32(uint32(cuda.blockIdx.z) * span)
        stop = min(inner, uint32(begin + span))
        steps = (stop - begin + uint32(DEPTH - 1)) // uint32(DEPTH)
        for step in range(steps + uint32(1)):  # reads one, multiplies the one before
            k0 = uint32(begin + uint32(step) * uint32(DEPTH))
            for q in range(_READS):  # neighbouring threads read neighbouring pieces
                number = uint32(thread + uint32(q * BLOCK))
                line, piece = number // uint32(left_pieces), number % uint32(left_pieces)
                if left_along:
                    line, piece = uint32(row0 + line), uint32(k0 // uint32(8) + piece)
                else:
                    line, piece = uint32(k0 + line), uint32(row0 // uint32(8) + piece)
                lefts[q, 0], lefts[q, 1], lefts[q, 2], lefts[q, 3] = read_piece(a, line, piece)
                if slopes:
                    place[q] = uint32(OUTSIDE)
                    if is_inside(a, line, piece):
                        factor[q] = factors[piece // uint32(COLUMNS // 8), line]
                        place[q] = uint32(uint32(targets[line]) - uint32(8) * piece)  # below 8 if the target is among them
                line, piece = number // uint32(right_pieces), number % uint32(right_pieces)
                if right_along:
                    line, piece = uint32(column0 + line), uint32(k0 // uint32(8) + piece)
                else:
                    line, piece = uint32(k0 + line), uint32(column0 // uint32(8) + piece)
                rights[q, 0], rights[q, 1], rights[q, 2], rights[q, 3] = read_piece(b, line, piece)
            if step > 0:
                buffer = uint32((uint32(step) + uint32(1)) % uint32(2) * uint32(_STEP))
                for half in range(2):
                    multiply_fragments(
                        sums, shared, uint64(uint32(buffer + left_place)) + uint64(half * left_half), left_along, left_next,
                        uint64(uint32(buffer + right_place)) + uint64(_OPERAND + half * right_half), right_along, right_next,
                    )  # fmt: skip
            buffer = uint32(uint32(step) % uint32(2) * uint32(_STEP))
            for q in range(_READS):
                number = uint32(thread + uint32(q * BLOCK))
                if slopes and place[q] < uint32(8):
                    slope_piece(lefts, q, factor[q], place[q], hit, spread, own)
                elif slopes and place[q] != uint32(OUTSIDE):  # nearly always: nothing to compare
                    slope_piece(lefts, q, factor[q], uint32(OUTSIDE), hit, spread, own)
                at = number // uint32(left_pieces) * uint32(left_line) + number % uint32(left_pieces) * uint32(FOUR)
                store_four(shared, uint32(buffer + at), (lefts[q, 0], lefts[q, 1], lefts[q, 2], lefts[q, 3]))
                at = number // uint32(right_pieces) * uint32(right_line) + number % uint32(right_pieces) * uint32(FOUR)
                store_four(
                    shared, uint32(buffer + uint32(_OPERAND) + at), (rights[q, 0], rights[q, 1], rights[q, 2], rights[q, 3])
                )
            cuda.syncthreads()
        rows, columns = uint32(c.shape[0]) // uint32(cuda.gridDim.z), uint32(c.shape[1])
        row, column = uint32(row0 + down + lane // uint32(4)), uint32(column0 + across + lane % uint32(4) * uint32(2))
        if left == SLOPES_TRANSPOSED and column0 == uint32(0):  # sixteen threads have read of the same eight rows of op(a)
            for q in range(8):
                statistics[thread // uint32(16) * uint32(ROWS) + thread % uint32(16) * uint32(8) + uint32(q)] = own[q]
            cuda.syncthreads()
            if thread < uint32(ROWS) and row0 + thread < rows:
                total = float32(0)
                for k in range(16):
                    total += statistics[uint32(k) * uint32(ROWS) + thread]
                bias[row0 + thread] = alpha * total + (beta * bias[row0 + thread] if beta != float32(0) else float32(0))
        if end == STORE:
            alpha *= unit[1]
            store_fragments(sums, 0, c, rows, row, column, alpha, beta)
            store_fragments(sums, 1, c, rows, row, column, alpha, beta)
            store_fragments(sums, 2, c, rows, row, column, alpha, beta)
            store_fragments(sums, 3, c, rows, row, column, alpha, beta)
        if end == ACTIVATE:
            store_with_bias(sums, 0, c, bias, row, column)
            store_with_bias(sums, 1, c, bias, row, column)
            store_with_bias(sums, 2, c, bias, row, column)
            store_with_bias(sums, 3, c, bias, row, column)
            for number in range(64):  # once more, for all activations unrolled would be too much code
                y = row + uint32(number) // uint32(16) * uint32(16) + uint32(number) // uint32(2) % uint32(2) * uint32(8)
                x = column + uint32(number) // uint32(4) % uint32(4) * uint32(8) + uint32(number) % uint32(2)
                if y < rows and x < columns:
                    c[y, x] = activate(code, c[y, x])
        if end in (SOFTMAX, STATISTICS):
            for i in range(4):
                for h in range(2):
                    top = row_top(sums, i, h, bias, column)
                    if lane % uint32(4) == uint32(0):
                        statistics[uint32(4) * (down + lane // uint32(4) + uint32(16 * i + 8 * h)) + warp % uint32(4)] = top
            cuda.syncthreads()
            for i in range(4):
                for h in range(2):
                    where = uint32(uint32(4) * (down + lane // uint32(4) + uint32(16 * i + 8 * h)))
                    y = uint32(row + uint32(16 * i + 8 * h))
                    total = row_exponentials(sums, i, h, statistics, where, c, end == SOFTMAX, y, column)
                    if lane % uint32(4) == uint32(0):
                        statistics[uint32(4 * ROWS) + where + warp % uint32(4)] = total
            cuda.syncthreads()
            if thread < uint32(ROWS) and row0 + thread < uint32(highest.shape[1]):  # a row each
                top, total = float32(-math.inf), float32(0)
                for k in range(4):
                    top = larger(top, statistics[uint32(4) * thread + uint32(k)])
                    total += statistics[uint32(4 * ROWS) + uint32(4) * thread + uint32(k)]
                highest[uint32(cuda.blockIdx.x), row0 + thread] = top
                totals[uint32(cuda.blockIdx.x), row0 + thread] = total

    return product
