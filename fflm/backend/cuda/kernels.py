"""The kernels of the CUDA backend, in numba.cuda, except those of matrix products, which are in `products`.

They compute the same as the kernels of `cpu`, with the same scalar formulas. `protocol` says what they compute, and what the
letters of the shapes mean. Arrays are C-contiguous and aligned to 16 bytes. Numbers are float32, and ids (contexts, words,
sources, rows, targets, borders) are int32; docstrings say where a dtype differs. A block has `BLOCK` threads. "Grid" in a
docstring says how many blocks a kernel is launched with.

Indices are unsigned, because Numba would let a signed index count from the end if it is negative. Constants have an explicit
type, because Numba computes with other constants in float64 or int64.
"""

import math
from typing import Any

from numba import cuda, float32, int32, int64, uint32
from numba.cuda.extending import overload

from fflm.backend.cuda.intrinsics import read_float, write_float
from fflm.backend.cuda.launching import BLOCK, kernel
from fflm.backend.cuda.products import COLUMNS
from fflm.backend.formulas import (
    activation_slope,
    adagrad_update,
    adam_update,
    catch_up_rate,
    caught_up,
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


RATE, KEEP, CORRECTION1, CORRECTION2 = range(4)
"""The indices of the numbers of a training step in ``reals`` (4,), the numbers of `graphs.PlacedNumbers`."""

SUMMED = 32
"""Number of columns that a block of `column_sums` adds up. They are adjacent, so that a warp reads those of a row together."""

ALL_LANES = 0xFFFFFFFF
"""The mask of all 32 lanes of a warp."""


@cuda.jit(device=True, forceinline=True)
def larger(x, y):
    """Return the larger of two float32, or NaN if one of them is NaN."""
    return x if x > y or x != x else y


@cuda.jit(device=True, forceinline=True)
def plus(x, y):
    """Return the sum of two float32."""
    return x + y


def make_reduction(combine: Any, left: int) -> Any:
    """Return a device function that reduces the values of all threads of a block.

    Parameters
    ----------
    combine
        Device function that combines two values.
    left
        Number of results, a power of two. Thread i receives the combination of the values of all threads whose number is equal
        to i modulo ``left``.
    """

    @cuda.jit(device=True)
    def reduction(value, shared):
        """Reduce the float32 ``value`` of each thread. All threads of the block call it; shared (BLOCK,) is shared memory.

        The values are combined in a tree, so that their order, and therefore the rounding, is always the same.
        """
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
block_max = make_reduction(larger, 1)  # NaN if a value is NaN
column_sum = make_reduction(plus, SUMMED)


@kernel()
def copy(values, source, copied, target):
    """Copy the columns of values (B, I) from ``source`` on to the columns of copied (B, J) from ``target`` on.

    ``source`` and ``target`` are uint32. Grid: one block per row.
    """
    row = uint32(cuda.blockIdx.x)
    columns = min(uint32(uint32(values.shape[1]) - source), uint32(uint32(copied.shape[1]) - target))
    for j in range(uint32(cuda.threadIdx.x), columns, uint32(BLOCK)):
        copied[row, target + j] = values[row, source + j]


@kernel()
def add(values, total):
    """Add values (N,) to total (N,). Grid: one thread per number."""
    i = cuda.grid(1)
    if i < total.size:
        total[uint32(i)] += values[uint32(i)]


@kernel()
def add_parts(parts, beta, total):
    """Add the rows of parts (P, N), in their order, to ``beta`` times total (N,). Grid: one thread per number of total."""
    i = uint32(cuda.grid(1))
    if i < uint32(total.size):
        value = beta * total[i] if beta != float32(0) else float32(0)
        for part in range(uint32(parts.shape[0])):
            value += parts[part, i]
        total[i] = value


@kernel()
def multiply_slopes(code, gamma, outputs, d_outputs):
    """Multiply gradients d_outputs (N,) by the derivatives of ``ACTIVATIONS[code]`` where its outputs are outputs (N,).

    Grid: one thread per number.
    """
    i = cuda.grid(1)
    if i < outputs.size:
        d_outputs[uint32(i)] *= activation_slope(code, gamma, outputs[uint32(i)])


@kernel()
def column_sums(values, span, beta, sums):
    """Add the sums of the columns of values (B, O) to ``beta`` times sums (P, O), in P parts of ``span`` (uint32) rows of values.

    Grid: (one block per `SUMMED` columns, P). The threads of a block share the rows.
    """
    shared = cuda.shared.array(BLOCK, float32)
    thread, part = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.y)
    j = uint32(cuda.blockIdx.x) * uint32(SUMMED) + thread % uint32(SUMMED)
    stop = min(uint32(values.shape[0]), uint32((part + uint32(1)) * span))
    total = float32(0)
    if j < uint32(values.shape[1]):
        for i in range(uint32(part * span + thread // uint32(SUMMED)), stop, uint32(BLOCK // SUMMED)):
            total += values[i, j]
    total = column_sum(total, shared)
    if thread < uint32(SUMMED) and j < uint32(values.shape[1]):
        sums[part, j] = total + (beta * sums[part, j] if beta != float32(0) else float32(0))


@kernel()
def gather(embeddings, contexts, borders, weights, inputs):
    """Compute `Backend.gather`: embeddings (V + 1, m), contexts (B, n), borders of blocks of words (K + 1,) -> inputs (B, K m).

    ``weights`` (V + 1,) are those of words in blocks of several words; (0,) if all are 1. Grid: one thread per number of inputs.
    """
    number = uint32(cuda.grid(1))
    if number < uint32(inputs.size):
        row, column = number // uint32(inputs.shape[1]), number % uint32(inputs.shape[1])
        k, j = column // uint32(embeddings.shape[1]), column % uint32(embeddings.shape[1])
        first, last = uint32(borders[k]), uint32(borders[k + uint32(1)])
        total = float32(0)
        for place in range(first, last):
            word = contexts[row, place]
            value = embeddings[uint32(word), j] if word >= int32(0) else float32(0)
            if weights.size > 0 and last - first > uint32(1) and word >= int32(0):
                value *= weights[uint32(word)]
            total += value
        if last - first > uint32(1):
            total *= float32(1) / math.sqrt(float32(last - first))
        inputs[row, column] = total


@kernel()
def largest_magnitudes(values, largest):
    """Fill largest (P,) with the largest magnitude in each block's part of values (N,), or NaN if there is a NaN. Grid: (P,)."""
    shared = cuda.shared.array(BLOCK, float32)
    highest = float32(0)
    for i in range(uint32(cuda.grid(1)), uint32(values.size), uint32(cuda.gridsize(1))):
        highest = larger(highest, abs(values[i]))
    highest = block_max(highest, shared)
    if cuda.threadIdx.x == 0:
        largest[uint32(cuda.blockIdx.x)] = highest


@kernel()
def fixed_point(largest, bits, scales):
    """Choose the scale in which numbers are represented, given their largest magnitudes (P,) from `largest_magnitudes`.

    scales[0] becomes the power of two by which the largest magnitude is multiplied to be at least 2^bits and below twice that;
    scales[1] becomes its inverse, or NaN if one of the numbers is not finite. If all magnitudes are below 2^(bits - 126),
    scales[0] is 2^126, the largest power of two whose inverse is a normal number. Grid: one block.
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
        exponent = max(exponent, bits - float32(126))
        scales[0] = math.pow(float32(2), bits - exponent)
        scales[1] = math.pow(float32(2), exponent - bits) if finite else float32(math.nan)


@kernel()
def scatter_add(contexts, borders, d_inputs, scales, sums, averaged):
    """Add d_inputs (B, K m) to the rows of sums (V + 1, m) int64 that belong to the words of contexts (B, n).

    borders (K + 1,) are the borders of the blocks of words, and scales (2,) those of `fixed_point`. Numbers are added as
    integers, whose sum does not depend on the order in which threads add. What belongs to words in blocks of several words is
    added to averaged (V + 1, m) int64 instead, unless that is (0, m). Grid: one thread per number of d_inputs.
    """
    number = uint32(cuda.grid(1))
    if number < uint32(d_inputs.size):
        row, column = number // uint32(d_inputs.shape[1]), number % uint32(d_inputs.shape[1])
        k, j = column // uint32(sums.shape[1]), column % uint32(sums.shape[1])
        first, last = uint32(borders[k]), uint32(borders[k + uint32(1)])
        factor = scales[0]
        if last - first > uint32(1):
            factor *= float32(1) / math.sqrt(float32(last - first))
        value = fixed(d_inputs[row, column], factor)
        for place in range(first, last):
            word = contexts[row, place]
            if word >= int32(0):
                if averaged.size > 0 and last - first > uint32(1):
                    cuda.atomic.add(averaged, (uint32(word), j), value)
                else:
                    cuda.atomic.add(sums, (uint32(word), j), value)


@kernel()
def add_averaged(averaged, scales, embeddings, weights, d_embeddings, d_weights):
    """Backpropagate averaged (V + 1, m) int64 of `scatter_add`, times scales[1], through weighted embeddings, and set it to 0.

    scales (2,) of `fixed_point`, embeddings (V + 1, m), weights (V + 1,) -> d_embeddings (V + 1, m) and d_weights (V + 1,), added
    to. Grid: one block per word.
    """
    shared = cuda.shared.array(BLOCK, float32)
    word, total = uint32(cuda.blockIdx.x), float32(0)
    for j in range(uint32(cuda.threadIdx.x), uint32(averaged.shape[1]), uint32(BLOCK)):
        value = float32(averaged[word, j]) * scales[1]
        averaged[word, j] = int64(0)
        d_embeddings[word, j] += weights[word] * value
        total += value * embeddings[word, j]
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        d_weights[word] += total


@cuda.jit(device=True, forceinline=True)
def text_length(words, row):
    """Return the number of words in row number ``row`` of words (B, L): those before the first -1."""
    length = uint32(0)
    while length < uint32(words.shape[1]) and words[row, length] >= int32(0):
        length += uint32(1)
    return length


@cuda.jit(device=True, forceinline=True)
def fixed(value, scale):
    """Return a float32 times ``scale`` as an int64.

    A number that is not finite becomes 0; the inverse scale of `fixed_point` is NaN then, and makes the sums NaN.
    """
    scaled = value * scale
    return int64(scaled) if abs(scaled) < float32(2**62) else int64(0)


@kernel()
def mean_pool(embeddings, words, pooled):
    """Compute `Backend.mean_pool`: embeddings (V + 1, m), words (B, L) -> pooled (B, m). Grid: one block per row."""
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
    """Add d_pooled (B, m), divided by the number of words of each row, to the rows of sums (V + 1, m) int64 of words (B, L).

    scales (2,) are those of `fixed_point`. Grid: one block per row.
    """
    row = uint32(cuda.blockIdx.x)
    length = text_length(words, row)
    factor = scales[0] / float32(max(length, uint32(1)))
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        value = fixed(d_pooled[row, j], factor)
        for place in range(length):
            cuda.atomic.add(sums, (uint32(words[row, place]), j), value)


@kernel()
def max_pool(embeddings, words, pooled, sources):
    """Compute `Backend.max_pool`: embeddings (V + 1, m), words (B, L) -> pooled (B, m) and sources (B, m) int32.

    Grid: one block per row.
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
    """Add d_pooled (B, m) to the rows of sums (V + 1, m) int64 that sources (B, m) int32 names; -1 names none.

    scales (2,) are those of `fixed_point`. Grid: one block per row.
    """
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(sums.shape[1]), uint32(BLOCK)):
        if sources[row, j] >= int32(0):
            cuda.atomic.add(sums, (uint32(sources[row, j]), j), fixed(d_pooled[row, j], scales[0]))


@kernel()
def add_fixed_point(sums, scales, total):
    """Add sums (N,) int64, times scales[1], to total (N,), and set the sums to 0.

    scales (2,) are those of `fixed_point`. Grid: one thread per number.
    """
    i = cuda.grid(1)
    if i < sums.size:
        total[uint32(i)] += float32(sums[uint32(i)]) * scales[1]
        sums[uint32(i)] = int64(0)


@kernel()
def put_rows(values, rows, array):
    """Write values (R, m) to the rows with the indices rows (R,) of array (N, m), except where the index is -1.

    Grid: one block per row of values.
    """
    row = uint32(cuda.blockIdx.x)
    if rows[row] >= int32(0):
        for j in range(uint32(cuda.threadIdx.x), uint32(values.shape[1]), uint32(BLOCK)):
            array[uint32(rows[row]), j] = values[row, j]


@kernel()
def dropout(values, factor, step, threshold, layer, seed_low, seed_high, first, dropped):
    """Fill dropped (N,) with values (N,) times ``factor``, or with 0 where a random number is below ``threshold``.

    step (2,) uint32 is the number of the step. ``threshold`` to ``seed_high`` are uint32, as for `Dropout`. ``first`` (uint32)
    is the index of the first element in the whole batch. Grid: one thread per four elements, 4 i to 4 i + 3 of the whole batch.
    """
    i = uint32(uint32(cuda.grid(1)) + (uint32(first) >> uint32(2)))
    words = philox_words(i, layer, step[uint32(0)], step[uint32(1)], seed_low, seed_high)
    for k in range(4):
        place = (i << uint32(2)) + uint32(k)
        if uint32(first) <= place < uint32(first) + uint32(values.size):
            at = place - uint32(first)
            dropped[at] = float32(0) if words[k] < threshold else values[at] * factor


@kernel()
def normalize(values, normalized):
    """Compute `Backend.normalize`: values (B, I) -> normalized (B, I). Grid: one block per row."""
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
    """Add to d_values (B, I) the gradients of values (B, I), given the gradients d_normalized (B, I) of the normalized values.

    Grid: one block per row.
    """
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
    """Return the maximum of the logits of a row, and the sum of exp(logit - maximum), to all threads of a block.

    highest and totals (B, tiles) are the maxima and the sums of the tiles of a softmax; shared (BLOCK,) is shared memory.
    """
    thread = uint32(cuda.threadIdx.x)
    top = float32(-math.inf)
    for k in range(thread, uint32(highest.shape[1]), uint32(BLOCK)):
        top = larger(top, highest[row, k])
    top = block_max(top, shared)
    total = float32(0)
    for k in range(thread, uint32(highest.shape[1]), uint32(BLOCK)):
        total += totals[row, k] * math.exp(highest[row, k] - top)
    return top, block_sum(total, shared)


@cuda.jit(device=True)
def word_score(hidden, row, weight, word, bias, shared):
    """Return the score of a word after a row of hidden outputs, hidden[row] weight[word] + bias[word], to all threads of a block.

    hidden (B, H), weight (V, H), bias (V,); shared (BLOCK,) is shared memory.
    """
    score = float32(0)
    for j in range(uint32(cuda.threadIdx.x), uint32(hidden.shape[1]), uint32(BLOCK)):
        score += hidden[row, j] * weight[word, j]
    return block_sum(score, shared) + bias[word]


@kernel()
def normalize_rows(highest, totals, normalizers):
    """Fill normalizers (B,) with the log-sum-exp of each row, given highest and totals (B, tiles). Grid: one block per row."""
    shared = cuda.shared.array(BLOCK, float32)
    row = uint32(cuda.blockIdx.x)
    top, total = combine_tiles(highest, totals, row, shared)
    if cuda.threadIdx.x == 0:
        normalizers[row] = top + math.log(total)


@kernel()
def output_losses(hidden, weight, bias, rows, targets, normalizers, losses):
    """Fill losses (T,) with the difference of log Z and the score of each target.

    hidden (B, H), weight (V, H), bias (V,), rows (T,), targets (T,), normalizers log Z (B,). Grid: one block per target.
    """
    shared = cuda.shared.array(BLOCK, float32)
    i = uint32(cuda.blockIdx.x)
    row = uint32(rows[i])
    score = word_score(hidden, row, weight, uint32(targets[i]), bias, shared)
    if cuda.threadIdx.x == 0:
        losses[i] = normalizers[row] - score


@kernel()
def finish_softmax(hidden, weight, bias, targets, highest, totals, penalty, scale, losses):
    """Fill losses (B,), and replace totals (B, tiles) by factors that turn exponentials into gradients of logits.

    The gradient of a logit is scale ((1 + 2 penalty log Z) p - q), with the probability p and the smoothed target q. An
    exponential times its factor is the term with p. The factors are computed from maxima and sums, and not from log Z, because
    the rounding error of log Z would affect all probabilities of a row.

    hidden (B, H), weight (V, H), bias (V,), targets (B,), highest (B, tiles). Grid: one block per row.
    """
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    top, total = combine_tiles(highest, totals, row, shared)
    normalizer = top + math.log(total)
    score = word_score(hidden, row, weight, uint32(targets[row]), bias, shared)
    if thread == uint32(0):
        losses[row] = normalizer - score
    slope = scale * (float32(1) + float32(2) * penalty * normalizer)
    for k in range(thread, uint32(highest.shape[1]), uint32(BLOCK)):
        totals[row, k] = slope * math.exp(highest[row, k] - top) / total


@cuda.jit(device=True)
def adversarial_margin(hidden, weight, row, word, adversarial, shared):
    """Return by how much adversarial noise lowers the score of a word, and this over |hidden|^2, to all threads of a block.

    hidden (B, H), weight (V, H); shared (BLOCK,) is shared memory.
    """
    length, square = float32(0), float32(0)
    for j in range(uint32(cuda.threadIdx.x), uint32(hidden.shape[1]), uint32(BLOCK)):
        length += weight[word, j] * weight[word, j]
        square += hidden[row, j] * hidden[row, j]
    length, square = block_sum(length, shared), block_sum(square, shared)
    margin = adversarial * math.sqrt(length) * math.sqrt(square)
    return margin, margin / square if square > float32(0) else float32(0)


@kernel()
def lower_targets(hidden, weight, targets, adversarial, exponentials, totals, noise):
    """Lower the scores of targets by the adversarial noise of `Backend.output_gradients`, before `finish_softmax`.

    hidden (B, H), weight (V, H), targets (B,), exponentials (B, at least V) and totals (B, tiles), changed -> noise (3, B): by
    how much each score is lowered, this over |hidden|^2, and the exponential of the lowered score. Grid: one block per row.
    """
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    word = uint32(targets[row])
    margin, share = adversarial_margin(hidden, weight, row, word, adversarial, shared)
    tile = word // uint32(COLUMNS)
    first = tile * uint32(COLUMNS)
    total = float32(0)
    for j in range(first + thread, min(first + uint32(COLUMNS), uint32(weight.shape[0])), uint32(BLOCK)):
        exponential = exponentials[row, j]
        if j == word:
            exponential *= math.exp(-margin)
            exponentials[row, j] = exponential
            noise[2, row] = exponential
        total += exponential
    total = block_sum(total, shared)
    if thread == uint32(0):
        totals[row, tile] = total
        noise[0, row], noise[1, row] = margin, share


@kernel()
def finish_noise(hidden, targets, subtracted, scale, factors, noise, losses, d_hidden):
    """Add to d_hidden (B, H) the gradient of the noise of `lower_targets`, and take the noise out of losses (B,).

    hidden (B, H), targets (B,), factors (B, tiles) of `finish_softmax`, noise (3, B). The gradient of the score of a target is
    ``scale`` times the difference of exponential times factor and ``subtracted``. Grid: one block per row.
    """
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    factor = factors[row, uint32(targets[row]) // uint32(COLUMNS)]
    pull = scale * (noise[2, row] * factor - subtracted) * noise[1, row]
    for j in range(thread, uint32(hidden.shape[1]), uint32(BLOCK)):
        d_hidden[row, j] -= pull * hidden[row, j]
    if thread == uint32(0) and noise[0, row] != float32(0):
        # The loss is log Z' - s with the score s, where Z' lacks e^s (1 - e^-margin).
        loss, lacking = losses[row], math.log(-math.expm1(-noise[0, row]))
        losses[row] = larger(loss, lacking) + math.log1p(math.exp(-abs(loss - lacking)))


@kernel()
def nce_slopes(scores, bias, targets, noise, scale, losses):
    """Replace the products hidden weight^T, scores (B, V), by the gradients of the scores in noise-contrastive estimation.

    bias (V,), targets (B,), noise (V,) -> losses (B,). Grid: one block per row.
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
def replace_targets(log_probabilities, targets, factor, beta, d_scores):
    """Compute `Backend.replace_targets`: log_probabilities (B, V), targets (B,) -> d_scores (B, V), added to.

    Grid: one block per row.
    """
    row = uint32(cuda.blockIdx.x)
    for j in range(uint32(cuda.threadIdx.x), uint32(d_scores.shape[1]), uint32(BLOCK)):
        change = -factor * math.exp(log_probabilities[row, j])
        if j == uint32(targets[row]):
            change += factor
        if beta != float32(0):  # otherwise the memory may contain NaN
            change += beta * d_scores[row, j]
        d_scores[row, j] = change


@kernel()
def unit_losses(code, scores, targets, scale, losses, d_scores):
    """Compute `Backend.unit_losses` for ``UNIT_LOSSES[code]``: scores, targets (B, O) -> losses (B,), d_scores (B, O).

    Grid: one block per row.
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
    """Replace the products hidden weight^T, logits (B, V), by log-probabilities: bias (V,). Grid: one block per row."""
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
def sums_of_squares(table, totals):
    """Fill totals (P,) with the sums of squares of each block's part of several arrays.

    table (K, 2) int64 has the size and the address of each array. Grid: (P,).
    """
    shared = cuda.shared.array(BLOCK, float32)
    total = float32(0)
    for k in range(uint32(table.shape[0])):
        for i in range(uint32(cuda.grid(1)), uint32(table[k, 0]), uint32(cuda.gridsize(1))):
            value = read_float(table[k, 1], i)
            total += value * value
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        totals[uint32(cuda.blockIdx.x)] = total


@kernel()
def clip_factor(totals, limit, factor):
    """Compute factor (1,) of `Backend.clip_factor` from totals (P,), parts of the sum of all squares. Grid: one block."""
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
    """Add the derivative of the penalty on weight (N,), `penalty_slope`, to gradient (N,). Grid: one thread per number."""
    i = uint32(cuda.grid(1))
    if i < uint32(weight.size):
        gradient[i] += penalty_slope(weight[i], l1, l2)


@kernel()
def momentum_step(table, scale, reals, l2, momentum, nesterov):
    """Update weights and velocities by `momentum_update` with gradients, scale (1,), and reals[RATE].

    table (K, 4) int64 has the size of each array, and the addresses of its weights, gradients and velocities. Grid: any.
    """
    for k in range(uint32(table.shape[0])):
        for i in range(uint32(cuda.grid(1)), uint32(table[k, 0]), uint32(cuda.gridsize(1))):
            weight, velocity = read_float(table[k, 1], i), read_float(table[k, 3], i)
            g = scale[0] * read_float(table[k, 2], i) + l2 * weight
            weight, velocity = momentum_update(weight, g, velocity, reals[uint32(RATE)], momentum, nesterov)
            write_float(table[k, 1], i, weight)
            write_float(table[k, 3], i, velocity)


@kernel()
def adagrad_step(table, scale, reals, l2, epsilon):
    """Update weights and totals by `adagrad_update` with gradients, scale (1,), and reals[RATE].

    table (K, 4) int64 has the size of each array, and the addresses of its weights, gradients and totals. Grid: any.
    """
    for k in range(uint32(table.shape[0])):
        for i in range(uint32(cuda.grid(1)), uint32(table[k, 0]), uint32(cuda.gridsize(1))):
            weight, total = read_float(table[k, 1], i), read_float(table[k, 3], i)
            g = scale[0] * read_float(table[k, 2], i) + l2 * weight
            weight, total = adagrad_update(weight, g, total, reals[uint32(RATE)], epsilon)
            write_float(table[k, 1], i, weight)
            write_float(table[k, 3], i, total)


@kernel()
def adagrad_step_rows(gradient, rows, scale, reals, l2, epsilon, weight, total):
    """Compute `Backend.adagrad_step_rows`: gradient (R, m), rows (R,) -> rows of weight and total (N, m).

    scale (1,) and reals (4,) are as for `adagrad_step`. Grid: one block per row of gradient.
    """
    i = uint32(cuda.blockIdx.x)
    if rows[i] >= int32(0):
        row = uint32(rows[i])
        for j in range(uint32(cuda.threadIdx.x), uint32(gradient.shape[1]), uint32(BLOCK)):
            g = scale[0] * gradient[i, j] + l2 * weight[row, j]
            weight[row, j], total[row, j] = adagrad_update(weight[row, j], g, total[row, j], reals[uint32(RATE)], epsilon)


@kernel()
def rmsprop_step(table, scale, reals, l2, decay, epsilon):
    """Update weights and means by `rmsprop_update` with gradients, scale (1,), and reals[RATE].

    table (K, 4) int64 has the size of each array, and the addresses of its weights, gradients and means. Grid: any.
    """
    for k in range(uint32(table.shape[0])):
        for i in range(uint32(cuda.grid(1)), uint32(table[k, 0]), uint32(cuda.gridsize(1))):
            weight, mean = read_float(table[k, 1], i), read_float(table[k, 3], i)
            g = scale[0] * read_float(table[k, 2], i) + l2 * weight
            weight, mean = rmsprop_update(weight, g, mean, reals[uint32(RATE)], decay, epsilon)
            write_float(table[k, 1], i, weight)
            write_float(table[k, 3], i, mean)


@kernel()
def adam_step(table, scale, reals, shrinks, l2, beta1, beta2, epsilon):
    """Update weights and their two moments by `adam_update` with gradients, scale (1,) and reals (4,), the numbers of the step.

    table (K, 5) int64 has the size of each array, and the addresses of its weights, gradients, first and second moments. With
    ``shrinks``, weights are first multiplied by reals[KEEP], the factor of decoupled weight decay. Grid: any.
    """
    rate, keep = reals[uint32(RATE)], reals[uint32(KEEP)] if shrinks else float32(1)
    correction1, correction2 = reals[uint32(CORRECTION1)], reals[uint32(CORRECTION2)]
    for k in range(uint32(table.shape[0])):
        for i in range(uint32(cuda.grid(1)), uint32(table[k, 0]), uint32(cuda.gridsize(1))):
            weight, first, second = read_float(table[k, 1], i), read_float(table[k, 3], i), read_float(table[k, 4], i)
            g = scale[0] * read_float(table[k, 2], i) + l2 * weight
            weight, first, second = adam_update(
                keep * weight, g, first, second, rate, beta1, beta2, epsilon, correction1, correction2
            )
            write_float(table[k, 1], i, weight)
            write_float(table[k, 3], i, first)
            write_float(table[k, 4], i, second)


@kernel()
def adam_take_rows(weight, first, second, rows, idle, keeps, reals, beta1, beta2, epsilon, taken):
    """Compute `Backend.adam_take_rows`: weight, first, second (N, m), rows (R,), idle (R,), keeps (R,) -> taken (R, m).

    reals (4,) are the numbers of the last step. Grid: one block per row of taken.
    """
    i = uint32(cuda.blockIdx.x)
    row, steps = rows[i], idle[i]
    rate, correction1, correction2 = reals[uint32(RATE)], reals[uint32(CORRECTION1)], reals[uint32(CORRECTION2)]
    skipped = catch_up_rate(rate, beta1, beta1**steps, correction1)
    for j in range(uint32(cuda.threadIdx.x), uint32(taken.shape[1]), uint32(BLOCK)):
        if row < int32(0):
            taken[i, j] = float32(0)
        else:
            w, m, v = weight[uint32(row), j], first[uint32(row), j], second[uint32(row), j]
            taken[i, j] = caught_up(w, m, v, keeps[i], skipped, epsilon, correction2) if steps > float32(0) else w


@kernel()
def adam_step_rows(taken, gradient, rows, idle, scale, reals, shrinks, l2, beta1, beta2, epsilon, weight, first, second):
    """Compute `Backend.adam_step_rows`: taken, gradient (R, m), rows (R,), idle (R,) -> rows of weight, first, second (N, m).

    scale (1,), reals (4,) and ``shrinks`` are as for `adam_step`. Grid: one block per row of taken.
    """
    i = uint32(cuda.blockIdx.x)
    rate, keep = reals[uint32(RATE)], reals[uint32(KEEP)] if shrinks else float32(1)
    correction1, correction2 = reals[uint32(CORRECTION1)], reals[uint32(CORRECTION2)]
    if rows[i] >= int32(0):
        row, kept1, kept2 = uint32(rows[i]), beta1 ** idle[i], beta2 ** idle[i]
        for j in range(uint32(cuda.threadIdx.x), uint32(taken.shape[1]), uint32(BLOCK)):
            g = scale[0] * gradient[i, j] + l2 * taken[i, j]
            weight[row, j], first[row, j], second[row, j] = adam_update(
                keep * taken[i, j],
                g,
                kept1 * first[row, j],
                kept2 * second[row, j],
                rate,
                beta1,
                beta2,
                epsilon,
                correction1,
                correction2,
            )


@kernel()
def adam_catch_up(weight, first, second, idle, keeps, reals, beta1, beta2, epsilon):
    """Compute `Backend.adam_catch_up`: idle (R,), keeps (R,), reals (4,) of the last step -> weight, first and second (R, m).

    Grid: one block per row.
    """
    row = uint32(cuda.blockIdx.x)
    steps = idle[row]
    rate, correction1, correction2 = reals[uint32(RATE)], reals[uint32(CORRECTION1)], reals[uint32(CORRECTION2)]
    if steps > float32(0):
        kept1, kept2 = beta1**steps, beta2**steps
        skipped = catch_up_rate(rate, beta1, kept1, correction1)
        for j in range(uint32(cuda.threadIdx.x), uint32(weight.shape[1]), uint32(BLOCK)):
            w, m, v = weight[row, j], first[row, j], second[row, j]
            weight[row, j] = caught_up(w, m, v, keeps[row], skipped, epsilon, correction2)
            first[row, j] *= kept1
            second[row, j] *= kept2
