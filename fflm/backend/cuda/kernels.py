"""The kernels of the CUDA backend, in numba.cuda: what `cpu` computes, with the formulas that both share.

Indices are unsigned, because Numba lets a signed one count from the end, and constants are wrapped, because a bare one is a
float64. Arrays are C-contiguous and begin at multiples of 16 bytes; numbers are float32, ids int32. A block has `BLOCK` threads,
a power of two.
"""

import math
from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, int64, uint32, uint64
from numba.cuda.dispatcher import _Kernel
from numba.cuda.extending import overload

from fflm.backend.cuda.intrinsics import load_four, store_four
from fflm.backend.formulas import (
    SIGMOID,
    SOFTPLUS,
    activate,
    activation_slope,
    adagrad_update,
    adam_update,
    exp,
    log1p,
    momentum_update,
    philox,
    rmsprop_update,
    unit_loss,
    unit_loss_slope,
)
from fflm.backend.protocol import NORMALISE_EPSILON
from fflm.compiling import KernelCache


@overload(exp, target="cuda")
def _exp(x):
    return lambda x: math.exp(x)


@overload(log1p, target="cuda")
def _log1p(x):
    return lambda x: math.log1p(x)


philox_words = cuda.jit(device=True)(philox)


def kernel(**options: Any) -> Any:
    """Return the decorator of a kernel, which is compiled once for a machine and then kept on disk; options as for `cuda.jit`."""

    def decorate(function: Callable[..., None]) -> Any:
        dispatcher = cuda.jit(**options)(function)
        dispatcher._cache = KernelCache(function, None, _Kernel._reduce_states, _rebuild)
        return dispatcher

    return decorate


def _rebuild(target_context: Any, fields: dict[str, Any]) -> Any:
    return _Kernel._rebuild(**fields)


BLOCK = 256
"""Threads of a block."""

SUMMED = 8
"""Columns that a block sums: neighbouring numbers that are read together, and many rows at a time."""

ROWS, COLUMNS, DEPTH = 128, 128, 8
"""The part of a matrix product that a block computes, and how much of the inner dimension it reads at a time."""

EACH = 8
"""Rows and columns of it that a thread computes: four, and four half the part farther on."""

FOUR = 4
"""Numbers that are read together."""

# Shared memory. A line has op(a)'s or op(b)'s numbers at one place of the inner dimension; it is padded so that threads that
# write down a column do not meet in a bank.
_LINE = ROWS + FOUR  # ROWS is COLUMNS
_OPERAND = DEPTH * _LINE
_STEP = 2 * _OPERAND
_SHARED = 2 * _STEP
_ACROSS = COLUMNS // EACH  # threads that share a row: half a warp

ALL_LANES = 0xFFFFFFFF
"""The mask of a whole warp."""

OUTSIDE = 2**31
"""In place of where a target is: outside of the matrix."""

PLAIN, TRANSPOSED, SLOPES, SLOPES_TRANSPOSED = range(4)
"""How a product reads a matrix: as it is stored, or transposed; or it is the gradients of logits, computed as they are read."""

STORE, ACTIVATE, SOFTMAX, STATISTICS = range(4)
"""What a product does with its result: adds to what was there by ``beta``; adds the bias and activates; softmax tiles, or only
their maxima and sums."""


@cuda.jit(device=True, forceinline=True)
def is_inside(matrix, line, place):
    """Whether a matrix has a place of a line."""
    return line < uint32(matrix.shape[0]) and place < uint32(matrix.shape[1])


@cuda.jit(device=True, forceinline=True)
def read_four(matrix, line, place):
    """Read four numbers of a line, from a place that four divides; zeros outside of the matrix."""
    zero, columns = float32(0), uint32(matrix.shape[1])
    if not is_inside(matrix, line, place):
        return zero, zero, zero, zero
    if columns % uint32(FOUR) == uint32(0):
        return load_four(matrix, uint32(line * columns + place))
    return (
        matrix[line, place],
        matrix[line, place + uint32(1)] if place + uint32(1) < columns else zero,
        matrix[line, place + uint32(2)] if place + uint32(2) < columns else zero,
        matrix[line, place + uint32(3)] if place + uint32(3) < columns else zero,
    )


@cuda.jit(device=True, forceinline=True)
def slope(exponential, number, factor, place, hit, spread):
    """Return the gradient of a logit, number ``number`` of four, of which number ``place`` is the target's.

    That is the probability times the scale, which ``factor`` makes of the exponential, less ``spread``, and at the target less
    ``hit``.
    """
    value = exponential * factor - spread
    return value - hit if place == uint32(number) else value


@cuda.jit(device=True, forceinline=True)
def larger(x, y):
    """Return the larger of two numbers, NaN if one is."""
    return x if x > y or x != x else y


@cuda.jit(device=True, forceinline=True)
def place_of(number):
    """Return where a thread's row or column number ``number`` is, from its first on."""
    return uint32(number % FOUR + number // FOUR * (ROWS // 2))


@cuda.jit(device=True, forceinline=True)
def multiply_line(sums, shared, left, right):
    """Add the products of a line of op(a) and one of op(b), whose numbers of this thread begin at two places of shared memory."""
    lefts, rights = cuda.local.array(EACH, float32), cuda.local.array(EACH, float32)
    lefts[0], lefts[1], lefts[2], lefts[3] = load_four(shared, left)
    lefts[4], lefts[5], lefts[6], lefts[7] = load_four(shared, left + uint64(ROWS // 2))
    rights[0], rights[1], rights[2], rights[3] = load_four(shared, right)
    rights[4], rights[5], rights[6], rights[7] = load_four(shared, right + uint64(COLUMNS // 2))
    for i in range(EACH):
        for j in range(EACH):
            sums[i, j] += lefts[i] * rights[j]


@cuda.jit(device=True, forceinline=True)
def multiply_step(sums, shared, left, right):
    """Add the products of `DEPTH` lines, which are written out: a loop of them would not be unrolled."""
    multiply_line(sums, shared, left, right)
    multiply_line(sums, shared, left + uint64(_LINE), right + uint64(_LINE))
    multiply_line(sums, shared, left + uint64(2 * _LINE), right + uint64(2 * _LINE))
    multiply_line(sums, shared, left + uint64(3 * _LINE), right + uint64(3 * _LINE))
    multiply_line(sums, shared, left + uint64(4 * _LINE), right + uint64(4 * _LINE))
    multiply_line(sums, shared, left + uint64(5 * _LINE), right + uint64(5 * _LINE))
    multiply_line(sums, shared, left + uint64(6 * _LINE), right + uint64(6 * _LINE))
    multiply_line(sums, shared, left + uint64(7 * _LINE), right + uint64(7 * _LINE))


@cuda.jit(device=True, forceinline=True)
def add_four(matrix, line, place, numbers, beta):
    """Store four numbers where `read_four` reads them, plus ``beta`` times what was there; nothing outside of the matrix."""
    columns = uint32(matrix.shape[1])
    if is_inside(matrix, line, place):
        a, b, c, d = numbers
        if beta != float32(0):
            old = read_four(matrix, line, place)
            a, b, c, d = a + beta * old[0], b + beta * old[1], c + beta * old[2], d + beta * old[3]
        if columns % uint32(FOUR) == uint32(0):
            store_four(matrix, uint32(line * columns + place), (a, b, c, d))
        else:
            matrix[line, place] = a
            if place + uint32(1) < columns:
                matrix[line, place + uint32(1)] = b
            if place + uint32(2) < columns:
                matrix[line, place + uint32(2)] = c
            if place + uint32(3) < columns:
                matrix[line, place + uint32(3)] = d


@cuda.jit(device=True, forceinline=True)
def store_row(sums, i, c, rows, row, column, beta):
    """End a thread's row number i by adding it to what is there."""
    row = uint32(row + place_of(i))
    if row < rows:
        row = uint32(row + uint32(cuda.blockIdx.z) * rows)
        add_four(c, row, column, (sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]), beta)
        add_four(c, row, uint32(column + uint32(COLUMNS // 2)), (sums[i, 4], sums[i, 5], sums[i, 6], sums[i, 7]), beta)


@cuda.jit(device=True, forceinline=True)
def softmax_row(sums, i, bias, c, stored, highest, totals, row, column):
    """End a thread's row number i of logits: with its half warp, which has the whole row of the tile.

    Adds the bias, finds the maximum, stores exp(logit - maximum) if it is to be ``stored``, and stores maximum and sum. The
    number of the row is to be written out, so that the sums are registers: a loop so large would not be unrolled.
    """
    top, total, tile = float32(-math.inf), float32(0), uint32(cuda.blockIdx.x)
    row += place_of(i)
    for j in range(EACH):
        place = uint32(column + place_of(j))
        sums[i, j] = sums[i, j] + bias[place] if place < uint32(bias.size) else float32(-math.inf)
        top = larger(top, sums[i, j])
    for bit in range(4):
        top = larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 1 << bit))
    for j in range(EACH):
        sums[i, j] = math.exp(sums[i, j] - top)
        total += sums[i, j]
    for bit in range(4):
        total += cuda.shfl_xor_sync(ALL_LANES, total, 1 << bit)
    if row < uint32(highest.shape[1]):
        at = uint32(row * uint32(c.shape[1]) + column)
        if stored and column < uint32(c.shape[1]):
            store_four(c, at, (sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]))
        if stored and column + uint32(COLUMNS // 2) < uint32(c.shape[1]):
            store_four(c, uint32(at + uint32(COLUMNS // 2)), (sums[i, 4], sums[i, 5], sums[i, 6], sums[i, 7]))
        if cuda.threadIdx.x % _ACROSS == 0:
            highest[tile, row], totals[tile, row] = top, total


def make_product(left: int, right: int, end: int) -> Any:
    """Return the kernel of one form of the product c = op(a) op(b), whose blocks (x, y) compute a part of it each.

    While a step along the inner dimension is multiplied, the next is read into registers, and then written to the other half of
    shared memory.

    a, b        op(a) (M, K), op(b) (K, N), read as ``left`` and ``right`` say
    c (M, N)    out, but for STATISTICS; for SOFTMAX exp(logit - the part's row maximum), its rows filled up with zeros to a
                multiple of four
    inner, span K, and how much of it a block sums: with STORE, but not for SLOPES_TRANSPOSED, c may be (parts M, N), and blocks
                z sum from z span on
    bias (N,)   in, but for STORE; out for SLOPES_TRANSPOSED: the sums of op(a)'s rows (M,), by ``beta``
    highest, totals (tiles, M)
                out, for SOFTMAX and STATISTICS: each part's row maximum, and the sum of its exponentials
    factors (tiles, B), targets (B,), hit, spread
                in, for SLOPES and SLOPES_TRANSPOSED, whose matrix (B, V) holds exponentials; as for `slope`
    """
    slopes = left in (SLOPES, SLOPES_TRANSPOSED)
    left_along, right_along = left in (PLAIN, SLOPES), right == TRANSPOSED  # whether lines go along the inner dimension
    pieces_along, pieces_across = DEPTH // FOUR, ROWS // FOUR  # fours that a line has in a step; each thread reads one

    @kernel(launch_bounds=(BLOCK, 2))
    def product(a, b, c, inner, span, beta, bias, code, highest, totals, factors, targets, hit, spread):
        shared = cuda.shared.array(_SHARED, float32, alignment=16)
        sums = cuda.local.array((EACH, EACH), float32)
        own = cuda.local.array(FOUR, float32)  # sums of four rows of op(a)
        thread = uint32(cuda.threadIdx.x)
        across, down = thread % uint32(_ACROSS), thread // uint32(_ACROSS)
        row0, column0 = uint32(uint32(cuda.blockIdx.y) * uint32(ROWS)), uint32(uint32(cuda.blockIdx.x) * uint32(COLUMNS))
        line_along, piece_along = thread // uint32(pieces_along), thread % uint32(pieces_along)
        line_across, piece_across = thread // uint32(pieces_across), thread % uint32(pieces_across)
        put_along = uint32(piece_along * uint32(FOUR * _LINE) + line_along)
        put_across = uint32(line_across * uint32(_LINE) + piece_across * uint32(FOUR))
        for i in range(EACH):
            for j in range(EACH):
                sums[i, j] = float32(0)
        for q in range(FOUR):
            own[q] = float32(0)
        begin = uint32(uint32(cuda.blockIdx.z) * span)
        stop = min(inner, uint32(begin + span))
        steps = (stop - begin + uint32(DEPTH - 1)) // uint32(DEPTH)
        for step in range(steps + uint32(1)):  # reads one, multiplies the one before
            k0 = uint32(begin + uint32(step) * uint32(DEPTH))
            if left_along:
                line, place = uint32(row0 + line_along), uint32(k0 + uint32(FOUR) * piece_along)
            else:
                line, place = uint32(k0 + line_across), uint32(row0 + uint32(FOUR) * piece_across)
            l0, l1, l2, l3 = read_four(a, line, place)
            factor, hit_place = float32(0), uint32(OUTSIDE)
            if slopes and is_inside(a, line, place):
                factor = factors[place // uint32(COLUMNS), line]
                hit_place = uint32(uint32(targets[line]) - place)  # below 4 if the target is among them
            if right_along:
                line, place = uint32(column0 + line_along), uint32(k0 + uint32(FOUR) * piece_along)
            else:
                line, place = uint32(k0 + line_across), uint32(column0 + uint32(FOUR) * piece_across)
            r0, r1, r2, r3 = read_four(b, line, place)
            if step > 0:
                at = uint32((uint32(step) + uint32(1)) % uint32(2) * uint32(_STEP))
                left_at, right_at = uint32(at + down * uint32(FOUR)), uint32(at + uint32(_OPERAND) + across * uint32(FOUR))
                multiply_step(sums, shared, uint64(left_at), uint64(right_at))
            if slopes and hit_place != uint32(OUTSIDE):
                l0, l1 = slope(l0, 0, factor, hit_place, hit, spread), slope(l1, 1, factor, hit_place, hit, spread)
                l2, l3 = slope(l2, 2, factor, hit_place, hit, spread), slope(l3, 3, factor, hit_place, hit, spread)
                own[0], own[1], own[2], own[3] = own[0] + l0, own[1] + l1, own[2] + l2, own[3] + l3
            at = uint32(uint32(step) % uint32(2) * uint32(_STEP))
            if left_along:
                shared[at + put_along], shared[at + put_along + uint32(_LINE)] = l0, l1
                shared[at + put_along + uint32(2 * _LINE)], shared[at + put_along + uint32(3 * _LINE)] = l2, l3
            else:
                store_four(shared, uint32(at + put_across), (l0, l1, l2, l3))
            at = uint32(at + uint32(_OPERAND))
            if right_along:
                shared[at + put_along], shared[at + put_along + uint32(_LINE)] = r0, r1
                shared[at + put_along + uint32(2 * _LINE)], shared[at + put_along + uint32(3 * _LINE)] = r2, r3
            else:
                store_four(shared, uint32(at + put_across), (r0, r1, r2, r3))
            cuda.syncthreads()
        rows, columns = uint32(c.shape[0]) // uint32(cuda.gridDim.z), uint32(c.shape[1])
        row, column = uint32(row0 + down * uint32(FOUR)), uint32(column0 + across * uint32(FOUR))
        if left == SLOPES_TRANSPOSED and column0 == uint32(0):  # of each row of op(a) eight warps have summed a part
            at = uint32(line_across * uint32(ROWS) + piece_across * uint32(FOUR))
            store_four(shared, at, (own[0], own[1], own[2], own[3]))
            cuda.syncthreads()
            if thread < uint32(ROWS) and row0 + thread < rows:
                total = float32(0)
                for k in range(BLOCK * FOUR // ROWS):
                    total += shared[uint32(k * ROWS) + thread]
                bias[row0 + thread] = total + (beta * bias[row0 + thread] if beta != float32(0) else float32(0))
        if end == STORE:
            store_row(sums, 0, c, rows, row, column, beta)
            store_row(sums, 1, c, rows, row, column, beta)
            store_row(sums, 2, c, rows, row, column, beta)
            store_row(sums, 3, c, rows, row, column, beta)
            store_row(sums, 4, c, rows, row, column, beta)
            store_row(sums, 5, c, rows, row, column, beta)
            store_row(sums, 6, c, rows, row, column, beta)
            store_row(sums, 7, c, rows, row, column, beta)
        if end == ACTIVATE:
            for i in range(EACH):
                for j in range(EACH):
                    y, x = uint32(row + place_of(i)), uint32(column + place_of(j))
                    if y < rows and x < columns:
                        c[y, x] = sums[i, j] + bias[x]
            for number in range(EACH * EACH):  # once more, for all activations unrolled would be too much code
                y, x = uint32(row + place_of(number // EACH)), uint32(column + place_of(number % EACH))
                if y < rows and x < columns:
                    c[y, x] = activate(code, c[y, x])
        if end in (SOFTMAX, STATISTICS):
            softmax_row(sums, 0, bias, c, end == SOFTMAX, highest, totals, row, column)
            softmax_row(sums, 1, bias, c, end == SOFTMAX, highest, totals, row, column)
            softmax_row(sums, 2, bias, c, end == SOFTMAX, highest, totals, row, column)
            softmax_row(sums, 3, bias, c, end == SOFTMAX, highest, totals, row, column)
            softmax_row(sums, 4, bias, c, end == SOFTMAX, highest, totals, row, column)
            softmax_row(sums, 5, bias, c, end == SOFTMAX, highest, totals, row, column)
            softmax_row(sums, 6, bias, c, end == SOFTMAX, highest, totals, row, column)
            softmax_row(sums, 7, bias, c, end == SOFTMAX, highest, totals, row, column)

    return product


@cuda.jit(device=True, forceinline=True)
def plus(x, y):
    """Return the sum of two numbers."""
    return x + y


def make_reduction(combine: Any, left: int) -> Any:
    """Return a function that combines the values of a block's threads: thread i gets that of the threads like i modulo ``left``.

    By a tree, whose order is always the same; ``left`` is a power of two.
    """

    @cuda.jit(device=True)
    def reduction(value, shared):
        thread = uint32(cuda.threadIdx.x)
        shared[thread] = value
        cuda.syncthreads()
        half = uint32(BLOCK // 2)
        while half >= uint32(left):
            if thread < half:
                shared[thread] = combine(shared[thread], shared[thread + half])
            cuda.syncthreads()
            half >>= uint32(1)
        combined = shared[thread % uint32(left)]
        cuda.syncthreads()
        return combined

    return reduction


block_sum = make_reduction(plus, 1)
block_max = make_reduction(larger, 1)  # NaN if one is
column_sum = make_reduction(plus, SUMMED)


@kernel()
def copy(values, source, copied, target):
    """Copy a matrix's columns from number ``source`` on to another's from number ``target`` on: a block a row."""
    row = uint32(cuda.blockIdx.x)
    columns = min(uint32(uint32(values.shape[1]) - source), uint32(uint32(copied.shape[1]) - target))
    for j in range(uint32(cuda.threadIdx.x), columns, uint32(BLOCK)):
        copied[row, target + j] = values[row, source + j]


@kernel()
def add(values, total):
    i = cuda.grid(1)
    if i < total.size:
        total[uint32(i)] += values[uint32(i)]


@kernel()
def add_parts(parts, beta, total):
    """Add up parts (P, N) in their order, to total (N,) by ``beta``."""
    i = uint32(cuda.grid(1))
    if i < uint32(total.size):
        value = beta * total[i] if beta != float32(0) else float32(0)
        for part in range(uint32(parts.shape[0])):
            value += parts[part, i]
        total[i] = value


@kernel()
def multiply_slopes(code, outputs, d_outputs):
    """Turn the gradient of a layer's outputs into that of its sums."""
    i = cuda.grid(1)
    if i < outputs.size:
        d_outputs[uint32(i)] *= activation_slope(code, outputs[uint32(i)])


@kernel()
def column_sums(values, beta, sums):
    """Sum a matrix's rows: `SUMMED` columns a block, whose threads share the rows."""
    shared = cuda.shared.array(BLOCK, float32)
    thread = uint32(cuda.threadIdx.x)
    j = uint32(cuda.blockIdx.x) * uint32(SUMMED) + thread % uint32(SUMMED)
    total = float32(0)
    if j < uint32(values.shape[1]):
        for i in range(thread // uint32(SUMMED), uint32(values.shape[0]), uint32(BLOCK // SUMMED)):
            total += values[i, j]
    total = column_sum(total, shared)
    if thread < uint32(SUMMED) and j < uint32(values.shape[1]):
        sums[j] = total + (beta * sums[j] if beta != float32(0) else float32(0))


@kernel()
def gather(embeddings, contexts, borders, inputs):
    """A block a row of the batch (x) and block of its context (y)."""
    row, k = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
    size = uint32(embeddings.shape[1])
    first, last = uint32(borders[k]), uint32(borders[k + uint32(1)])
    factor = float32(1) / math.sqrt(float32(last - first))
    for j in range(uint32(cuda.threadIdx.x), size, uint32(BLOCK)):
        total = float32(0)
        for place in range(first, last):
            total += embeddings[uint32(contexts[row, place]), j]
        inputs[row, k * size + j] = total * factor if last - first > uint32(1) else total


@kernel()
def largest_magnitudes(values, largest):
    """Find the largest magnitude in each block's part of an array; NaN if there is one."""
    shared = cuda.shared.array(BLOCK, float32)
    highest = float32(0)
    for i in range(uint32(cuda.grid(1)), uint32(values.size), uint32(cuda.gridsize(1))):
        highest = larger(highest, abs(values[i]))
    highest = block_max(highest, shared)
    if cuda.threadIdx.x == 0:
        largest[uint32(cuda.blockIdx.x)] = highest


@kernel()
def fixed_point(largest, bits, scales):
    """Choose the unit for numbers whose largest magnitudes are known, one a block; a single block.

    scales (2,)  out: a power of two by which the largest becomes 2^bits up to twice that; its inverse, NaN if one is not finite
    """
    shared = cuda.shared.array(BLOCK, float32)
    thread = uint32(cuda.threadIdx.x)
    highest = float32(0)
    for i in range(thread, uint32(largest.size), uint32(BLOCK)):
        highest = larger(highest, largest[i])
    highest = block_max(highest, shared)
    if thread == uint32(0):
        finite = highest <= float32(3.4e38)
        exponent = float32(math.floor(math.log2(max(highest, float32(1e-30))))) if finite else float32(0)
        scales[0] = math.pow(float32(2), bits - exponent)
        scales[1] = math.pow(float32(2), exponent - bits) if finite else float32(math.nan)


@kernel()
def scatter_add(contexts, borders, d_inputs, scales, sums):
    """Add to sums of integers (V + 1, m), which are the same in every order; blocks as in `gather`."""
    row, k = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
    size = uint32(sums.shape[1])
    first, last = uint32(borders[k]), uint32(borders[k + uint32(1)])
    factor = scales[0]
    if last - first > uint32(1):
        factor *= float32(1) / math.sqrt(float32(last - first))
    for j in range(uint32(cuda.threadIdx.x), size, uint32(BLOCK)):
        value = fixed(d_inputs[row, k * size + j], factor)
        for place in range(first, last):
            cuda.atomic.add(sums, (uint32(contexts[row, place]), j), value)


@cuda.jit(device=True, forceinline=True)
def text_length(words, row):
    """Return how many of the numbers of a row are words, which -1 may follow."""
    length = uint32(0)
    while length < uint32(words.shape[1]) and words[row, length] >= int32(0):
        length += uint32(1)
    return length


@cuda.jit(device=True, forceinline=True)
def fixed(value, scale):
    """Return a number as an integer in a scale; 0 for what is not finite, which the scale tells."""
    scaled = value * scale
    return int64(scaled) if abs(scaled) < float32(2**62) else int64(0)


@kernel()
def mean_pool(embeddings, words, pooled):
    """A block a text."""
    row = uint32(cuda.blockIdx.x)
    length = text_length(words, row)
    factor = float32(1) / float32(max(length, uint32(1)))
    for j in range(uint32(cuda.threadIdx.x), uint32(pooled.shape[1]), uint32(BLOCK)):
        total = float32(0)
        for place in range(length):
            total += embeddings[uint32(words[row, place]), j]
        pooled[row, j] = total * factor


@kernel()
def mean_pool_backward(words, d_pooled, scales, sums):
    """Add to sums of integers (V + 1, m), a block a text."""
    row = uint32(cuda.blockIdx.x)
    length = text_length(words, row)
    factor = scales[0] / float32(max(length, uint32(1)))
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        value = fixed(d_pooled[row, j], factor)
        for place in range(length):
            cuda.atomic.add(sums, (uint32(words[row, place]), j), value)


@kernel()
def max_pool(embeddings, words, pooled, sources):
    """A block a text."""
    row = uint32(cuda.blockIdx.x)
    length = text_length(words, row)
    for j in range(uint32(cuda.threadIdx.x), uint32(pooled.shape[1]), uint32(BLOCK)):
        top, source = float32(0), int32(-1)
        for place in range(length):
            value = embeddings[uint32(words[row, place]), j]
            if source < int32(0) or value > top or value != value:
                top, source = value, words[row, place]
        pooled[row, j] = top
        sources[row, j] = source


@kernel()
def max_pool_backward(sources, d_pooled, scales, sums):
    """Add to sums of integers (V + 1, m), a block a text."""
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        if sources[row, j] >= int32(0):
            cuda.atomic.add(sums, (uint32(sources[row, j]), j), fixed(d_pooled[row, j], scales[0]))


@kernel()
def add_fixed_point(sums, scales, total):
    """Add sums of integers to numbers, and clear them for the next time."""
    i = cuda.grid(1)
    if i < sums.size:
        total[uint32(i)] += float32(sums[uint32(i)]) * scales[1]
        sums[uint32(i)] = int64(0)


@kernel()
def put_rows(values, rows, array):
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(values.shape[1]), uint32(BLOCK)):
        array[uint32(rows[row]), j] = values[row, j]


@kernel()
def dropout(values, factor, threshold, layer, step_low, step_high, seed_low, seed_high, first, dropped):
    """Keep an element or not: a thread draws four random words, for the elements 4 i to 4 i + 3 of the whole batch."""
    i = uint32(uint32(cuda.grid(1)) + (uint32(first) >> uint32(2)))
    words = philox_words(i, layer, step_low, step_high, seed_low, seed_high)
    for k in range(4):
        place = (i << uint32(2)) + uint32(k)
        if uint32(first) <= place < uint32(first) + uint32(values.size):
            at = place - uint32(first)
            dropped[at] = float32(0) if words[k] < threshold else values[at] * factor


@kernel()
def normalise(values, normalised):
    """A block a row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, count = uint32(cuda.blockIdx.x), uint32(values.shape[1])
    thread = uint32(cuda.threadIdx.x)
    total = float32(0)
    for j in range(thread, count, uint32(BLOCK)):
        total += values[row, j]
    mean = block_sum(total, shared) / float32(count)
    total = float32(0)
    for j in range(thread, count, uint32(BLOCK)):
        total += (values[row, j] - mean) * (values[row, j] - mean)
    scale = float32(1) / math.sqrt(block_sum(total, shared) / float32(count) + float32(NORMALISE_EPSILON))
    for j in range(thread, count, uint32(BLOCK)):
        normalised[row, j] = (values[row, j] - mean) * scale


@kernel()
def normalise_backward(values, d_normalised, d_values):
    """A block a row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, count = uint32(cuda.blockIdx.x), uint32(values.shape[1])
    thread = uint32(cuda.threadIdx.x)
    total = float32(0)
    for j in range(thread, count, uint32(BLOCK)):
        total += values[row, j]
    mean = block_sum(total, shared) / float32(count)
    total, plain, weighted = float32(0), float32(0), float32(0)
    for j in range(thread, count, uint32(BLOCK)):
        centred = values[row, j] - mean
        total += centred * centred
        plain += d_normalised[row, j]
        weighted += d_normalised[row, j] * centred
    scale = float32(1) / math.sqrt(block_sum(total, shared) / float32(count) + float32(NORMALISE_EPSILON))
    plain = block_sum(plain, shared) / float32(count)
    weighted = block_sum(weighted, shared) * scale / float32(count)
    for j in range(thread, count, uint32(BLOCK)):
        normalised = (values[row, j] - mean) * scale
        d_values[row, j] += scale * (d_normalised[row, j] - plain - normalised * weighted)


@cuda.jit(device=True)
def combine_tiles(highest, totals, row, shared):
    """Return a row's maximum, and the sum of exp(logit - maximum), from those of the tiles (tiles, B)."""
    thread = uint32(cuda.threadIdx.x)
    top = float32(-math.inf)
    for k in range(thread, uint32(highest.shape[0]), uint32(BLOCK)):
        top = larger(top, highest[k, row])
    top = block_max(top, shared)
    total = float32(0)
    for k in range(thread, uint32(highest.shape[0]), uint32(BLOCK)):
        total += totals[k, row] * math.exp(highest[k, row] - top)
    return top, block_sum(total, shared)


@cuda.jit(device=True)
def word_score(features, row, weight, word, bias, shared):
    """Return a word's score after a row of features."""
    score = float32(0)
    for j in range(uint32(cuda.threadIdx.x), uint32(features.shape[1]), uint32(BLOCK)):
        score += features[row, j] * weight[word, j]
    return block_sum(score, shared) + bias[word]


@kernel()
def normalise_rows(highest, totals, normalisers):
    """Compute each row's log-sum-exp (B,) from the tiles' maxima and sums: a block a row."""
    shared = cuda.shared.array(BLOCK, float32)
    row = uint32(cuda.blockIdx.x)
    top, total = combine_tiles(highest, totals, row, shared)
    if cuda.threadIdx.x == 0:
        normalisers[row] = top + math.log(total)


@kernel()
def output_losses(features, weight, bias, rows, targets, normalisers, losses):
    """Compute log Z less the target's score: a block a target."""
    shared = cuda.shared.array(BLOCK, float32)
    i = uint32(cuda.blockIdx.x)
    row = uint32(rows[i])
    score = word_score(features, row, weight, uint32(targets[i]), bias, shared)
    if cuda.threadIdx.x == 0:
        losses[i] = normalisers[row] - score


@kernel()
def finish_softmax(features, weight, bias, targets, highest, totals, penalty, scale, losses):
    """Compute losses, and in place of the tiles' sums what makes exponentials the gradients of logits, but for the target.

    The latter from the maxima, not from log Z, whose rounding would be a factor of all of a row's probabilities. A block a row.
    """
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    top, total = combine_tiles(highest, totals, row, shared)
    normaliser = top + math.log(total)
    score = word_score(features, row, weight, uint32(targets[row]), bias, shared)
    if thread == uint32(0):
        losses[row] = normaliser - score
    slope = scale * (float32(1) + float32(2) * penalty * normaliser)
    for k in range(thread, uint32(highest.shape[0]), uint32(BLOCK)):
        totals[k, row] = slope * math.exp(highest[k, row] - top) / total


@kernel()
def nce_slopes(scores, bias, targets, noise, scale, losses):
    """Turn scores (without bias) into the gradients of noise contrast, and compute the losses: a block a row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    loss = float32(0)
    for j in range(thread, uint32(scores.shape[1]), uint32(BLOCK)):
        score = scores[row, j] + bias[j]
        slope = noise[j] * activate(SIGMOID, score)
        loss += noise[j] * activate(SOFTPLUS, score)
        if j == uint32(targets[row]):
            slope -= activate(SIGMOID, -score)
            loss += activate(SOFTPLUS, -score)
        scores[row, j] = slope * scale
    loss = block_sum(loss, shared)
    if thread == uint32(0):
        losses[row] = loss


@kernel()
def unit_losses(code, scores, targets, scale, losses, d_scores):
    """A block a row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    total = float32(0)
    for j in range(thread, uint32(scores.shape[1]), uint32(BLOCK)):
        total += unit_loss(code, scores[row, j], targets[row, j])
        d_scores[row, j] = scale * unit_loss_slope(code, scores[row, j], targets[row, j])
    total = block_sum(total, shared)
    if thread == uint32(0):
        losses[row] = total


@kernel()
def normalise_logits(logits, bias):
    """Turn scores (without bias) into log-probabilities: a block a row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    top = float32(-math.inf)
    for j in range(thread, uint32(logits.shape[1]), uint32(BLOCK)):
        top = larger(top, logits[row, j] + bias[j])
    top = block_max(top, shared)
    total = float32(0)
    for j in range(thread, uint32(logits.shape[1]), uint32(BLOCK)):
        total += math.exp(logits[row, j] + bias[j] - top)
    normaliser = top + math.log(block_sum(total, shared))
    for j in range(thread, uint32(logits.shape[1]), uint32(BLOCK)):
        logits[row, j] += bias[j] - normaliser


@kernel()
def sums_of_squares(values, totals):
    """Sum the squares of each block's part of an array."""
    shared = cuda.shared.array(BLOCK, float32)
    total = float32(0)
    for i in range(uint32(cuda.grid(1)), uint32(values.size), uint32(cuda.gridsize(1))):
        total += values[i] * values[i]
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        totals[uint32(cuda.blockIdx.x)] = total


@kernel()
def clip_factor(totals, limit, factor):
    """Compute the factor on gradients from the parts of their squares' sum: a single block."""
    shared = cuda.shared.array(BLOCK, float32)
    thread = uint32(cuda.threadIdx.x)
    total = float32(0)
    for i in range(thread, uint32(totals.size), uint32(BLOCK)):
        total += totals[i]
    total = block_sum(total, shared)
    if thread == uint32(0):
        norm = math.sqrt(total)
        factor[0] = limit / norm if norm > limit else float32(1)
        if not norm <= float32(3.4e38):
            factor[0] = float32(math.nan)


@kernel()
def momentum_step(weight, gradient, velocity, scale, l2, rate, momentum, nesterov):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], velocity[i] = momentum_update(weight[i], g, velocity[i], rate, momentum, nesterov)


@kernel()
def adagrad_step(weight, gradient, total, scale, l2, rate, epsilon):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], total[i] = adagrad_update(weight[i], g, total[i], rate, epsilon)


@kernel()
def rmsprop_step(weight, gradient, mean, scale, l2, rate, decay, epsilon):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], mean[i] = rmsprop_update(weight[i], g, mean[i], rate, decay, epsilon)


@kernel()
def adam_step(weight, gradient, first, second, scale, l2, keep, rate, beta1, beta2, epsilon, correction1, correction2):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], first[i], second[i] = adam_update(
            keep * weight[i], g, first[i], second[i], rate, beta1, beta2, epsilon, correction1, correction2
        )


@kernel()
def adam_idle(weight, first, second, idle, keeps, rate, beta1, beta2, epsilon, correction1, correction2):
    """A block a row."""
    row = uint32(cuda.blockIdx.x)
    steps = idle[row]
    if steps > float32(0):
        kept1, kept2 = beta1**steps, beta2**steps
        scale = rate * correction1 * beta1 * (float32(1) - kept1) / (float32(1) - beta1)
        for j in range(uint32(cuda.threadIdx.x), uint32(weight.shape[1]), uint32(BLOCK)):
            move = scale * first[row, j] / (math.sqrt(second[row, j] * correction2) + epsilon)
            weight[row, j] = keeps[row] * weight[row, j] - move
            first[row, j] *= kept1
            second[row, j] *= kept2
