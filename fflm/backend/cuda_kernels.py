"""The kernels of the CUDA backend, in numba.cuda: what `cpu` computes, with the formulas that both share.

Indices are unsigned, because Numba lets a signed one count from the end, and constants are wrapped, because a bare one is a
float64. Arrays are C-contiguous float32, ids int32. A block has `BLOCK` threads, a power of two.
"""

import math
from typing import Any

from numba import cuda, float32, int32, int64, uint32
from numba.cuda.extending import overload

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


@overload(exp, target="cuda")
def _exp(x):
    return lambda x: math.exp(x)


@overload(log1p, target="cuda")
def _log1p(x):
    return lambda x: math.log1p(x)


philox_words = cuda.jit(device=True)(philox)

BLOCK = 256
"""Threads of a block."""

SUMMED = 8
"""Columns that a block sums: neighbouring numbers that are read together, and many rows at a time."""

ROWS, COLUMNS, DEPTH = 128, 128, 16
"""The part of a matrix product that a block computes, and how much of the inner dimension it reads at a time."""

EACH = 8
"""Rows and columns of it that a thread computes."""

_LINE = ROWS + 4  # so that of those who write a column no more than two meet in a bank of shared memory
_LINES = DEPTH * _LINE
_ACROSS = COLUMNS // EACH  # threads that share a row
_READS = ROWS * DEPTH // BLOCK  # numbers of each matrix that a thread reads at a time

PLAIN, TRANSPOSED, SLOPES, SLOPES_TRANSPOSED = range(4)
"""How a product reads a matrix: as it is stored, or transposed; or it is the gradients of logits, computed as they are read."""

STORE, ACTIVATE, SOFTMAX = range(3)
"""What a product does with its result: adds to what was there by ``beta``; adds the bias and activates; softmax tiles."""


@cuda.jit(device=True, inline="always")
def element(kind, matrix, row, column, factors, targets, hit, spread):
    """Return what a product reads at a place of op(matrix), 0 outside of it.

    For SLOPES the matrix (B, V) holds exponentials, ``factors`` (tiles, B) what makes them probabilities times the scale, and
    the gradient of a logit is that, less ``spread`` and at the target less ``hit``.
    """
    i, j = row, column
    if kind == TRANSPOSED or kind == SLOPES_TRANSPOSED:
        i, j = column, row
    if i >= uint32(matrix.shape[0]) or j >= uint32(matrix.shape[1]):
        return float32(0)
    value = matrix[i, j]
    if kind == SLOPES or kind == SLOPES_TRANSPOSED:
        value = value * factors[j // uint32(COLUMNS), i] - spread
        if uint32(targets[i]) == j:
            value -= hit
    return value


@cuda.jit(device=True, inline="always")
def larger(x, y):
    """Return the larger of two numbers, NaN if one is."""
    return x if x > y or x != x else y


@cuda.jit(device=True, inline="always")
def row_top(sums, i, bias, column, columns):
    """Add the bias to a thread's row number i, -infinity where there is no column, and return the largest.

    The number of the row is to be written out, so that the sums are registers: a loop so large would not be unrolled.
    """
    top = float32(-math.inf)
    for j in range(EACH):
        place = column + uint32(j)
        sums[i, j] = sums[i, j] + bias[place] if place < columns else float32(-math.inf)
        top = larger(top, sums[i, j])
    return top


@cuda.jit(device=True, inline="always")
def row_exponentials(sums, i, tops, line, c, row, column):
    """Store exp(logit - the row's maximum) of a thread's row number i, written out as in `row_top`, and return their sum.

    tops (ROWS * threads that share a row,), whose row begins at ``line`` + i * that
    """
    top = float32(-math.inf)
    for k in range(_ACROSS):
        top = larger(top, tops[line + uint32(i * _ACROSS) + uint32(k)])
    total = float32(0)
    for j in range(EACH):
        if row + uint32(i) < uint32(c.shape[0]) and column + uint32(j) < uint32(c.shape[1]):
            value = math.exp(sums[i, j] - top)
            c[row + uint32(i), column + uint32(j)] = value
            total += value
    return total


def make_product(left: int, right: int, end: int) -> Any:
    """Return the kernel of one form of the product c = op(a) op(b), whose blocks (x, y) compute a part each.

    a, b        op(a) (M, K), op(b) (K, N), read as ``left`` and ``right`` say
    c (M, N)    out; for SOFTMAX exp(logit - the part's row maximum)
    bias (N,)   in, for ACTIVATE and SOFTMAX; out for SLOPES_TRANSPOSED: the sums of op(a)'s rows (M,), by ``beta``
    highest, totals (tiles, M)
                out, for SOFTMAX: each part's row maximum, and the sum of its exponentials
    """

    @cuda.jit
    def product(a, b, c, inner, beta, bias, code, highest, totals, factors, targets, hit, spread):
        left_tile = cuda.shared.array(_LINES, float32)
        right_tile = cuda.shared.array(_LINES, float32)
        sums = cuda.local.array((EACH, EACH), float32)
        lefts = cuda.local.array(EACH, float32)
        rights = cuda.local.array(EACH, float32)
        thread = uint32(cuda.threadIdx.x)
        across, down = thread % uint32(_ACROSS), thread // uint32(_ACROSS)
        row0, column0 = uint32(cuda.blockIdx.y) * uint32(ROWS), uint32(cuda.blockIdx.x) * uint32(COLUMNS)
        own = float32(0)  # the sum of a row of op(a)
        for i in range(EACH):
            for j in range(EACH):
                sums[i, j] = float32(0)
        for step in range((inner + uint32(DEPTH - 1)) // uint32(DEPTH)):
            k0 = uint32(step) * uint32(DEPTH)
            for q in range(_READS):  # neighbouring threads read neighbouring numbers
                place = thread + uint32(q) * uint32(BLOCK)
                if left == PLAIN or left == SLOPES:
                    r, k = place // uint32(DEPTH), place % uint32(DEPTH)
                else:
                    r, k = place % uint32(ROWS), place // uint32(ROWS)
                left_tile[k * uint32(_LINE) + r] = element(left, a, row0 + r, k0 + k, factors, targets, hit, spread)
                if right == PLAIN:
                    r, k = place % uint32(COLUMNS), place // uint32(COLUMNS)
                else:
                    r, k = place // uint32(DEPTH), place % uint32(DEPTH)
                right_tile[k * uint32(_LINE) + r] = element(right, b, k0 + k, column0 + r, factors, targets, hit, spread)
            cuda.syncthreads()
            for k in range(DEPTH):
                line = uint32(k) * uint32(_LINE)
                for i in range(EACH):
                    lefts[i] = left_tile[line + down * uint32(EACH) + uint32(i)]
                    rights[i] = right_tile[line + across * uint32(EACH) + uint32(i)]
                for i in range(EACH):
                    for j in range(EACH):
                        sums[i, j] += lefts[i] * rights[j]
                if left == SLOPES_TRANSPOSED and thread < uint32(ROWS):
                    own += left_tile[line + thread]
            cuda.syncthreads()
        rows, columns = uint32(c.shape[0]), uint32(c.shape[1])
        if left == SLOPES_TRANSPOSED and column0 == uint32(0) and thread < uint32(ROWS) and row0 + thread < rows:
            bias[row0 + thread] = own + (beta * bias[row0 + thread] if beta != float32(0) else float32(0))
        row, column = row0 + down * uint32(EACH), column0 + across * uint32(EACH)
        if end == STORE:
            for i in range(EACH):
                for j in range(EACH):
                    if row + uint32(i) < rows and column + uint32(j) < columns:
                        before = beta * c[row + uint32(i), column + uint32(j)] if beta != float32(0) else float32(0)
                        c[row + uint32(i), column + uint32(j)] = sums[i, j] + before
        if end == ACTIVATE:
            for i in range(EACH):
                for j in range(EACH):
                    if row + uint32(i) < rows and column + uint32(j) < columns:
                        c[row + uint32(i), column + uint32(j)] = sums[i, j] + bias[column + uint32(j)]
            for place in range(EACH * EACH):  # once more, for all activations unrolled would be too much code
                i, j = row + uint32(place) // uint32(EACH), column + uint32(place) % uint32(EACH)
                if i < rows and j < columns:
                    c[i, j] = activate(code, c[i, j])
        if end == SOFTMAX:
            line = down * uint32(EACH * _ACROSS) + across
            left_tile[line] = row_top(sums, 0, bias, column, columns)
            left_tile[line + uint32(_ACROSS)] = row_top(sums, 1, bias, column, columns)
            left_tile[line + uint32(2 * _ACROSS)] = row_top(sums, 2, bias, column, columns)
            left_tile[line + uint32(3 * _ACROSS)] = row_top(sums, 3, bias, column, columns)
            left_tile[line + uint32(4 * _ACROSS)] = row_top(sums, 4, bias, column, columns)
            left_tile[line + uint32(5 * _ACROSS)] = row_top(sums, 5, bias, column, columns)
            left_tile[line + uint32(6 * _ACROSS)] = row_top(sums, 6, bias, column, columns)
            left_tile[line + uint32(7 * _ACROSS)] = row_top(sums, 7, bias, column, columns)
            cuda.syncthreads()
            right_tile[line] = row_exponentials(sums, 0, left_tile, line - across, c, row, column)
            right_tile[line + uint32(_ACROSS)] = row_exponentials(sums, 1, left_tile, line - across, c, row, column)
            right_tile[line + uint32(2 * _ACROSS)] = row_exponentials(sums, 2, left_tile, line - across, c, row, column)
            right_tile[line + uint32(3 * _ACROSS)] = row_exponentials(sums, 3, left_tile, line - across, c, row, column)
            right_tile[line + uint32(4 * _ACROSS)] = row_exponentials(sums, 4, left_tile, line - across, c, row, column)
            right_tile[line + uint32(5 * _ACROSS)] = row_exponentials(sums, 5, left_tile, line - across, c, row, column)
            right_tile[line + uint32(6 * _ACROSS)] = row_exponentials(sums, 6, left_tile, line - across, c, row, column)
            right_tile[line + uint32(7 * _ACROSS)] = row_exponentials(sums, 7, left_tile, line - across, c, row, column)
            cuda.syncthreads()
            if thread < uint32(ROWS) and row0 + thread < rows:  # a row each
                top, total = float32(-math.inf), float32(0)
                for k in range(_ACROSS):
                    top = larger(top, left_tile[thread * uint32(_ACROSS) + uint32(k)])
                    total += right_tile[thread * uint32(_ACROSS) + uint32(k)]
                highest[uint32(cuda.blockIdx.x), row0 + thread] = top
                totals[uint32(cuda.blockIdx.x), row0 + thread] = total

    return product


@cuda.jit(device=True, inline="always")
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


@cuda.jit
def copy(values, copied):
    """Copy a matrix, whose rows may be slices of longer ones: a block a row."""
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(values.shape[1]), uint32(BLOCK)):
        copied[row, j] = values[row, j]


@cuda.jit
def fill(array, value):
    i = cuda.grid(1)
    if i < array.size:
        array[uint32(i)] = value


@cuda.jit
def add(values, total):
    i = cuda.grid(1)
    if i < total.size:
        total[uint32(i)] += values[uint32(i)]


@cuda.jit
def multiply_slopes(code, outputs, d_outputs):
    """Turn the gradient of a layer's outputs into that of its sums."""
    i = cuda.grid(1)
    if i < outputs.size:
        d_outputs[uint32(i)] *= activation_slope(code, outputs[uint32(i)])


@cuda.jit
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


@cuda.jit
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


@cuda.jit
def largest_magnitudes(values, largest):
    """Find the largest magnitude in each block's part of an array; NaN if there is one."""
    shared = cuda.shared.array(BLOCK, float32)
    highest = float32(0)
    for i in range(uint32(cuda.grid(1)), uint32(values.size), uint32(cuda.gridsize(1))):
        highest = larger(highest, abs(values[i]))
    highest = block_max(highest, shared)
    if cuda.threadIdx.x == 0:
        largest[uint32(cuda.blockIdx.x)] = highest


@cuda.jit
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


@cuda.jit
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


@cuda.jit(device=True, inline="always")
def text_length(words, row):
    """Return how many of the numbers of a row are words, which -1 may follow."""
    length = uint32(0)
    while length < uint32(words.shape[1]) and words[row, length] >= int32(0):
        length += uint32(1)
    return length


@cuda.jit(device=True, inline="always")
def fixed(value, scale):
    """Return a number as an integer in a scale; 0 for what is not finite, which the scale tells."""
    scaled = value * scale
    return int64(scaled) if abs(scaled) < float32(2**62) else int64(0)


@cuda.jit
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


@cuda.jit
def mean_pool_backward(words, d_pooled, scales, sums):
    """Add to sums of integers (V + 1, m), a block a text."""
    row = uint32(cuda.blockIdx.x)
    length = text_length(words, row)
    factor = scales[0] / float32(max(length, uint32(1)))
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        value = fixed(d_pooled[row, j], factor)
        for place in range(length):
            cuda.atomic.add(sums, (uint32(words[row, place]), j), value)


@cuda.jit
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


@cuda.jit
def max_pool_backward(sources, d_pooled, scales, sums):
    """Add to sums of integers (V + 1, m), a block a text."""
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        if sources[row, j] >= int32(0):
            cuda.atomic.add(sums, (uint32(sources[row, j]), j), fixed(d_pooled[row, j], scales[0]))


@cuda.jit
def add_fixed_point(sums, scales, total):
    """Add sums of integers to numbers, and clear them for the next time."""
    i = cuda.grid(1)
    if i < sums.size:
        total[uint32(i)] += float32(sums[uint32(i)]) * scales[1]
        sums[uint32(i)] = int64(0)


@cuda.jit
def put_rows(values, rows, array):
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(values.shape[1]), uint32(BLOCK)):
        array[uint32(rows[row]), j] = values[row, j]


@cuda.jit
def dropout(values, factor, threshold, layer, step_low, step_high, seed_low, seed_high, first, dropped):
    """Keep an element or not: a thread draws four random words, for the elements 4 i to 4 i + 3 of the whole batch."""
    i = uint32(uint32(cuda.grid(1)) + (uint32(first) >> uint32(2)))
    words = philox_words(i, layer, step_low, step_high, seed_low, seed_high)
    for k in range(4):
        place = (i << uint32(2)) + uint32(k)
        if uint32(first) <= place < uint32(first) + uint32(values.size):
            at = place - uint32(first)
            dropped[at] = float32(0) if words[k] < threshold else values[at] * factor


@cuda.jit
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


@cuda.jit
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


@cuda.jit
def combine_tiles(highest, totals, tops, sums, normalisers):
    """Compute each row's maximum, sum and log-sum-exp (B,) from the tiles' maxima and sums (tiles, B): a block a row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    top = float32(-math.inf)
    for k in range(thread, uint32(highest.shape[0]), uint32(BLOCK)):
        top = larger(top, highest[k, row])
    top = block_max(top, shared)
    total = float32(0)
    for k in range(thread, uint32(highest.shape[0]), uint32(BLOCK)):
        total += totals[k, row] * math.exp(highest[k, row] - top)
    total = block_sum(total, shared)
    if thread == uint32(0):
        tops[row], sums[row], normalisers[row] = top, total, top + math.log(total)


@cuda.jit
def output_losses(features, weight, bias, rows, targets, normalisers, losses):
    """Compute log Z less the target's score: a block a target."""
    shared = cuda.shared.array(BLOCK, float32)
    i, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    row, word = uint32(rows[i]), uint32(targets[i])
    score = float32(0)
    for j in range(thread, uint32(features.shape[1]), uint32(BLOCK)):
        score += features[row, j] * weight[word, j]
    score = block_sum(score, shared)
    if thread == uint32(0):
        losses[i] = normalisers[row] - bias[word] - score


@cuda.jit
def tile_factors(highest, tops, sums, normalisers, penalty, scale, factors):
    """Compute what makes a tile's exponentials the gradients of logits, but for the targets: a thread a tile and row.

    From the maxima, not from normalisers, whose rounding would be a factor of all of a row's probabilities.
    """
    i = uint32(cuda.grid(1))
    rows = uint32(highest.shape[1])
    if i < uint32(highest.size):
        k, row = i // rows, i % rows
        slope = scale * (float32(1) + float32(2) * penalty * normalisers[row])
        factors[k, row] = slope * math.exp(highest[k, row] - tops[row]) / sums[row]


@cuda.jit
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


@cuda.jit
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


@cuda.jit
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


@cuda.jit
def sums_of_squares(values, totals):
    """Sum the squares of each block's part of an array."""
    shared = cuda.shared.array(BLOCK, float32)
    total = float32(0)
    for i in range(uint32(cuda.grid(1)), uint32(values.size), uint32(cuda.gridsize(1))):
        total += values[i] * values[i]
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        totals[uint32(cuda.blockIdx.x)] = total


@cuda.jit
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


@cuda.jit
def momentum_step(weight, gradient, velocity, scale, l2, rate, momentum, nesterov):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], velocity[i] = momentum_update(weight[i], g, velocity[i], rate, momentum, nesterov)


@cuda.jit
def adagrad_step(weight, gradient, total, scale, l2, rate, epsilon):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], total[i] = adagrad_update(weight[i], g, total[i], rate, epsilon)


@cuda.jit
def rmsprop_step(weight, gradient, mean, scale, l2, rate, decay, epsilon):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], mean[i] = rmsprop_update(weight[i], g, mean[i], rate, decay, epsilon)


@cuda.jit
def adam_step(weight, gradient, first, second, scale, l2, keep, rate, beta1, beta2, epsilon, correction1, correction2):
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], first[i], second[i] = adam_update(
            keep * weight[i], g, first[i], second[i], rate, beta1, beta2, epsilon, correction1, correction2
        )


@cuda.jit
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
