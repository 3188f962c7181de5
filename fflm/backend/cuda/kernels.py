"""The kernels of the CUDA backend, in numba.cuda, but for the matrix products, which are in `products`.

They compute what the kernels of `cpu` compute, with the formulas that both share. Indices are unsigned, because Numba lets a
signed one count from the end, and constants are wrapped, because a bare one is a float64. Arrays are C-contiguous and begin at
multiples of 16 bytes; numbers are float32, ids int32. A block has `BLOCK` threads. `protocol` says what the letters of the shapes
mean.
"""

import math
from typing import Any

from numba import cuda, float32, int32, int64, uint32
from numba.cuda.extending import overload

from fflm.backend.cuda.launching import BLOCK, kernel
from fflm.backend.formulas import (
    activation_slope,
    adagrad_update,
    adam_update,
    exp,
    log1p,
    momentum_update,
    penalty_slope,
    philox,
    rmsprop_update,
    sigmoid,
    softplus,
    unit_loss,
    unit_loss_slope,
)
from fflm.backend.protocol import NORMALIZE_EPSILON


@overload(exp, target="cuda")
def _exp(x):
    return lambda x: math.exp(x)


@overload(log1p, target="cuda")
def _log1p(x):
    return lambda x: math.log1p(x)


philox_words = cuda.jit(device=True)(philox)


SUMMED = 8
"""Columns that a block sums: neighboring numbers, which are read together, of many rows at a time."""

ALL_LANES = 0xFFFFFFFF
"""The mask of a whole warp."""


@cuda.jit(device=True, forceinline=True)
def larger(x, y):
    """Return the larger of two numbers, NaN if one is."""
    return x if x > y or x != x else y


@cuda.jit(device=True, forceinline=True)
def plus(x, y):
    """Return the sum of two numbers."""
    return x + y


def make_reduction(combine: Any, left: int) -> Any:
    """Return a function that combines the values of a block's threads: thread i gets that of the threads like i modulo ``left``.

    The values are combined in a tree, so that their order is always the same; ``left`` is a power of two.
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
    """Copy columns of values (B, I) from ``source`` on to columns of copied (B, J) from ``target`` on: a block for each row."""
    row = uint32(cuda.blockIdx.x)
    columns = min(uint32(uint32(values.shape[1]) - source), uint32(uint32(copied.shape[1]) - target))
    for j in range(uint32(cuda.threadIdx.x), columns, uint32(BLOCK)):
        copied[row, target + j] = values[row, source + j]


@kernel()
def add(values, total):
    """Add values (N,) to total (N,): a thread for each number."""
    i = cuda.grid(1)
    if i < total.size:
        total[uint32(i)] += values[uint32(i)]


@kernel()
def add_parts(parts, beta, total):
    """Add parts (P, N) in their order to beta times total (N,): a thread for each number."""
    i = uint32(cuda.grid(1))
    if i < uint32(total.size):
        value = beta * total[i] if beta != float32(0) else float32(0)
        for part in range(uint32(parts.shape[0])):
            value += parts[part, i]
        total[i] = value


@kernel()
def multiply_slopes(code, gamma, outputs, d_outputs):
    """Multiply d_outputs (N,), gradients of outputs (N,), by the slopes of the activation: a thread for each number."""
    i = cuda.grid(1)
    if i < outputs.size:
        d_outputs[uint32(i)] *= activation_slope(code, gamma, outputs[uint32(i)])


@kernel()
def column_sums(values, beta, sums):
    """Add the sums of the columns of values (B, O) to beta times sums (O,).

    A block sums `SUMMED` columns, and its threads share the rows.
    """
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
    """Fill inputs (B, K m) from embeddings (V + 1, m), contexts (B, n) and borders (K + 1,): blocks (B, K)."""
    row, k = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
    size = uint32(embeddings.shape[1])
    first, last = uint32(borders[k]), uint32(borders[k + uint32(1)])
    factor = float32(1) / math.sqrt(float32(last - first))
    for j in range(uint32(cuda.threadIdx.x), size, uint32(BLOCK)):
        total = float32(0)
        for place in range(first, last):
            word = contexts[row, place]
            total += embeddings[uint32(word), j] if word >= int32(0) else float32(0)
        inputs[row, k * size + j] = total * factor if last - first > uint32(1) else total


@kernel()
def largest_magnitudes(values, largest):
    """Fill largest (blocks,) with the largest magnitude in each block's part of values (N,), or NaN if there is one."""
    shared = cuda.shared.array(BLOCK, float32)
    highest = float32(0)
    for i in range(uint32(cuda.grid(1)), uint32(values.size), uint32(cuda.gridsize(1))):
        highest = larger(highest, abs(values[i]))
    highest = block_max(highest, shared)
    if cuda.threadIdx.x == 0:
        largest[uint32(cuda.blockIdx.x)] = highest


@kernel()
def fixed_point(largest, bits, scales):
    """Choose a unit for numbers whose largest magnitudes (blocks of `largest_magnitudes`,) are known: a single block.

    scales (2,), out: a power of two by which the largest becomes 2^bits up to twice that; its inverse, NaN if one is not finite.
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
    """Add d_inputs (B, K m) to sums (V + 1, m), integers, at the words of contexts (B, n): blocks (B, K).

    borders (K + 1,), scales (2,). Sums of integers are the same in every order.
    """
    row, k = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
    size = uint32(sums.shape[1])
    first, last = uint32(borders[k]), uint32(borders[k + uint32(1)])
    factor = scales[0]
    if last - first > uint32(1):
        factor *= float32(1) / math.sqrt(float32(last - first))
    for j in range(uint32(cuda.threadIdx.x), size, uint32(BLOCK)):
        value = fixed(d_inputs[row, k * size + j], factor)
        for place in range(first, last):
            word = contexts[row, place]
            if word >= int32(0):
                cuda.atomic.add(sums, (uint32(word), j), value)


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
    """Fill pooled (B, m) with the mean of the embeddings (V + 1, m) of each row of words (B, L): a block for each row."""
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
    """Add d_pooled (B, m), over the number of words, to sums (V + 1, m), integers, at the words (B, L): a block for each row."""
    row = uint32(cuda.blockIdx.x)
    length = text_length(words, row)
    factor = scales[0] / float32(max(length, uint32(1)))
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        value = fixed(d_pooled[row, j], factor)
        for place in range(length):
            cuda.atomic.add(sums, (uint32(words[row, place]), j), value)


@kernel()
def max_pool(embeddings, words, pooled, sources):
    """Fill pooled (B, m) with the largest numbers of embeddings (V + 1, m) among words (B, L): a block for each row.

    sources (B, m), out: the words of the numbers, -1 where there is none.
    """
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
    """Add d_pooled (B, m) to sums (V + 1, m), integers, at the words in sources (B, m): a block for each row."""
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        if sources[row, j] >= int32(0):
            cuda.atomic.add(sums, (uint32(sources[row, j]), j), fixed(d_pooled[row, j], scales[0]))


@kernel()
def add_fixed_point(sums, scales, total):
    """Add sums (N,), integers in units of scales[1], to total (N,), and clear them: a thread for each number."""
    i = cuda.grid(1)
    if i < sums.size:
        total[uint32(i)] += float32(sums[uint32(i)]) * scales[1]
        sums[uint32(i)] = int64(0)


@kernel()
def put_rows(values, rows, array):
    """Write values (R, m) to the rows (R,) of array (N, m): a block for each row."""
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(values.shape[1]), uint32(BLOCK)):
        array[uint32(rows[row]), j] = values[row, j]


@kernel()
def dropout(values, factor, threshold, layer, step_low, step_high, seed_low, seed_high, first, dropped):
    """Fill dropped (N,) with values (N,) times factor, or 0 where a random word is below the threshold.

    A thread draws four random words, for the elements 4 i to 4 i + 3 of the whole batch.
    """
    i = uint32(uint32(cuda.grid(1)) + (uint32(first) >> uint32(2)))
    words = philox_words(i, layer, step_low, step_high, seed_low, seed_high)
    for k in range(4):
        place = (i << uint32(2)) + uint32(k)
        if uint32(first) <= place < uint32(first) + uint32(values.size):
            at = place - uint32(first)
            dropped[at] = float32(0) if words[k] < threshold else values[at] * factor


@kernel()
def normalize(values, normalized):
    """Fill normalized (B, I) with the rows of values (B, I) less their means, over their deviations: a block for each row."""
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
    scale = float32(1) / math.sqrt(block_sum(total, shared) / float32(count) + float32(NORMALIZE_EPSILON))
    for j in range(thread, count, uint32(BLOCK)):
        normalized[row, j] = (values[row, j] - mean) * scale


@kernel()
def normalize_backward(values, d_normalized, d_values):
    """Add to d_values (B, I) the gradients of values (B, I), from d_normalized (B, I): a block for each row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, count = uint32(cuda.blockIdx.x), uint32(values.shape[1])
    thread = uint32(cuda.threadIdx.x)
    total = float32(0)
    for j in range(thread, count, uint32(BLOCK)):
        total += values[row, j]
    mean = block_sum(total, shared) / float32(count)
    total, plain, weighted = float32(0), float32(0), float32(0)
    for j in range(thread, count, uint32(BLOCK)):
        centered = values[row, j] - mean
        total += centered * centered
        plain += d_normalized[row, j]
        weighted += d_normalized[row, j] * centered
    scale = float32(1) / math.sqrt(block_sum(total, shared) / float32(count) + float32(NORMALIZE_EPSILON))
    plain = block_sum(plain, shared) / float32(count)
    weighted = block_sum(weighted, shared) * scale / float32(count)
    for j in range(thread, count, uint32(BLOCK)):
        normalized = (values[row, j] - mean) * scale
        d_values[row, j] += scale * (d_normalized[row, j] - plain - normalized * weighted)


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
def word_score(hidden, row, weight, word, bias, shared):
    """Return a word's score after a row of hidden outputs."""
    score = float32(0)
    for j in range(uint32(cuda.threadIdx.x), uint32(hidden.shape[1]), uint32(BLOCK)):
        score += hidden[row, j] * weight[word, j]
    return block_sum(score, shared) + bias[word]


@kernel()
def normalize_rows(highest, totals, normalizers):
    """Fill normalizers (B,) with each row's log-sum-exp, from highest and totals (tiles, B): a block for each row."""
    shared = cuda.shared.array(BLOCK, float32)
    row = uint32(cuda.blockIdx.x)
    top, total = combine_tiles(highest, totals, row, shared)
    if cuda.threadIdx.x == 0:
        normalizers[row] = top + math.log(total)


@kernel()
def output_losses(hidden, weight, bias, rows, targets, normalizers, losses):
    """Fill losses (T,) with log Z less the score of the target: a block for each target.

    hidden (B, H), weight (V, H), bias (V,), rows (T,), targets (T,), normalizers (B,).
    """
    shared = cuda.shared.array(BLOCK, float32)
    i = uint32(cuda.blockIdx.x)
    row = uint32(rows[i])
    score = word_score(hidden, row, weight, uint32(targets[i]), bias, shared)
    if cuda.threadIdx.x == 0:
        losses[i] = normalizers[row] - score


@kernel()
def finish_softmax(hidden, weight, bias, targets, highest, totals, penalty, scale, losses):
    """Fill losses (B,), and replace totals (tiles, B) by factors that make exponentials the first term of gradients of logits.

    The factors are computed from the maxima and not from log Z, whose rounding would be a factor of all probabilities of a row. A
    block for each row. hidden (B, H), weight (V, H), bias (V,), targets (B,), highest (tiles, B).
    """
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    top, total = combine_tiles(highest, totals, row, shared)
    normalizer = top + math.log(total)
    score = word_score(hidden, row, weight, uint32(targets[row]), bias, shared)
    if thread == uint32(0):
        losses[row] = normalizer - score
    slope = scale * (float32(1) + float32(2) * penalty * normalizer)
    for k in range(thread, uint32(highest.shape[0]), uint32(BLOCK)):
        totals[k, row] = slope * math.exp(highest[k, row] - top) / total


@kernel()
def nce_slopes(scores, bias, targets, noise, scale, losses):
    """Turn scores (B, V), without bias, into the gradients of noise contrast, and fill losses (B,): a block for each row.

    bias (V,), targets (B,), noise (V,).
    """
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    loss = float32(0)
    for j in range(thread, uint32(scores.shape[1]), uint32(BLOCK)):
        score = scores[row, j] + bias[j]
        slope = noise[j] * sigmoid(score)
        loss += noise[j] * softplus(score)
        if j == uint32(targets[row]):
            slope -= sigmoid(-score)
            loss += softplus(-score)
        scores[row, j] = slope * scale
    loss = block_sum(loss, shared)
    if thread == uint32(0):
        losses[row] = loss


@kernel()
def unit_losses(code, scores, targets, scale, losses, d_scores):
    """Fill losses (B,) and d_scores (B, O) of scores and targets (B, O), with the loss ``UNIT_LOSSES[code]``.

    A block for each row.
    """
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
def normalize_logits(logits, bias):
    """Turn logits (B, V), without bias (V,), into log-probabilities: a block for each row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    top = float32(-math.inf)
    for j in range(thread, uint32(logits.shape[1]), uint32(BLOCK)):
        top = larger(top, logits[row, j] + bias[j])
    top = block_max(top, shared)
    total = float32(0)
    for j in range(thread, uint32(logits.shape[1]), uint32(BLOCK)):
        total += math.exp(logits[row, j] + bias[j] - top)
    normalizer = top + math.log(block_sum(total, shared))
    for j in range(thread, uint32(logits.shape[1]), uint32(BLOCK)):
        logits[row, j] += bias[j] - normalizer


@kernel()
def sums_of_squares(values, totals):
    """Fill totals (blocks,) with the sums of squares of each block's part of values (N,)."""
    shared = cuda.shared.array(BLOCK, float32)
    total = float32(0)
    for i in range(uint32(cuda.grid(1)), uint32(values.size), uint32(cuda.gridsize(1))):
        total += values[i] * values[i]
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        totals[uint32(cuda.blockIdx.x)] = total


@kernel()
def clip_factor(totals, limit, factor):
    """Fill factor (1,) from totals (blocks of `sums_of_squares`,), parts of the sum of all squares: a single block."""
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
def add_penalty(weight, gradient, l1, l2):
    """Add `penalty_slope` of weight (N,) to gradient (N,): a thread for each number."""
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        gradient[i] += penalty_slope(weight[i], l1, l2)


@kernel()
def momentum_step(weight, gradient, velocity, scale, l2, rate, momentum, nesterov):
    """Update weight and velocity (N,) by `momentum_update` with gradient (N,)."""
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], velocity[i] = momentum_update(weight[i], g, velocity[i], rate, momentum, nesterov)


@kernel()
def adagrad_step(weight, gradient, total, scale, l2, rate, epsilon):
    """Update weight and total (N,) by `adagrad_update` with gradient (N,)."""
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], total[i] = adagrad_update(weight[i], g, total[i], rate, epsilon)


@kernel()
def rmsprop_step(weight, gradient, mean, scale, l2, rate, decay, epsilon):
    """Update weight and mean (N,) by `rmsprop_update` with gradient (N,)."""
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], mean[i] = rmsprop_update(weight[i], g, mean[i], rate, decay, epsilon)


@kernel()
def adam_step(weight, gradient, first, second, scale, l2, keep, rate, beta1, beta2, epsilon, correction1, correction2):
    """Update weight and the moments first and second (N,) by `adam_update` with gradient (N,)."""
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        g = scale[0] * gradient[i] + l2 * weight[i]
        weight[i], first[i], second[i] = adam_update(
            keep * weight[i], g, first[i], second[i], rate, beta1, beta2, epsilon, correction1, correction2
        )


@kernel()
def adam_catch_up(weight, first, second, idle, keeps, rate, beta1, beta2, epsilon, correction1, correction2):
    """Move weight, first, second (R, m) by the steps idle (R,) that rows have missed, keeps (R,) their decay: a block a row."""
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
