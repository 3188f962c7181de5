"""The kernels of the CPU backend, in Numba.

Matrix products are computed by BLAS; everything else is a loop over a row, which LLVM vectorizes. The last arguments of each
kernel are ``threads``, the number of shares into which its work is divided, and ``t``, the share to compute (see `launching`).

`protocol` says what the kernels compute, and what the letters of the shapes mean. All arrays and scalars of numbers in a call are
float32, or all are float64; ids (contexts, words, sources, rows, targets) are int32. Docstrings say where a dtype differs.
"""

import numpy as np
from numba import njit

from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.products import gemm_nn, gemm_nt, gemm_tn
from fflm.backend.cpu.rows import REORDER, activate_row, clear, inner_product, larger
from fflm.backend.formulas import (
    RELU,
    TANH,
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
from fflm.compiling import compiled, inner
from fflm.instructions import CACHE_LINE, prefetch

TILE = 512
"""Largest number of words in a tile of the output layer. A tile of logits of a usual batch stays in the cache of a core."""

FEW_ROWS = 32
"""Largest number of rows for which `multiply_few` is faster than BLAS, which first copies the weights into another order."""

AHEAD = 8
"""Number of rows of a large array that are fetched from memory ahead of their use."""

WORD_COST = 6
"""Cost of a word in `scatter_add`, relative to that of one of its places."""

MASK = 2048
"""Number of random numbers of a dropout mask that are drawn at a time."""

# The function is inlined, because LLVM does not vectorize a loop around a call that returns several numbers.
philox_words = njit(inline="always")(philox)


@inner()
def portion(array, parts, part):
    """Return share number ``part`` of an array (N,) that is divided into ``parts`` contiguous shares.

    LLVM vectorizes a loop over all elements of this slice, but not a loop over ``range(low, high)`` of the whole array, because
    Numba must expect negative indices there.
    """
    low, high = share(len(array), parts, part)
    return array[low:high]


@inner()
def multiply(inputs, weight, outputs):
    """Compute outputs = inputs weight^T: inputs (B, I), weight (O, I) -> outputs (B, O)."""
    if inputs.shape[0] > FEW_ROWS:
        gemm_nt(inputs, weight, outputs, 0.0)
    else:
        multiply_few(inputs, weight, outputs)


@inner(fastmath=REORDER)
def multiply_few(inputs, weight, outputs):
    """Compute as `multiply` does, without BLAS: four rows of weights at a time, which are read once, by two rows of inputs."""
    zero, fours, pairs = inputs.dtype.type(0), weight.shape[0] // 4 * 4, inputs.shape[0] // 2 * 2
    for o in range(0, fours, 4):  # all in one function, because a view of a row takes as long as a short inner product
        for i in range(0, pairs, 2):
            xa = xb = xc = xd = ya = yb = yc = yd = zero
            for j in range(inputs.shape[1]):
                x, y = inputs[i, j], inputs[i + 1, j]
                a, b, c, d = weight[o, j], weight[o + 1, j], weight[o + 2, j], weight[o + 3, j]
                xa, xb, xc, xd = xa + x * a, xb + x * b, xc + x * c, xd + x * d
                ya, yb, yc, yd = ya + y * a, yb + y * b, yc + y * c, yd + y * d
            outputs[i, o], outputs[i, o + 1], outputs[i, o + 2], outputs[i, o + 3] = xa, xb, xc, xd
            outputs[i + 1, o], outputs[i + 1, o + 1], outputs[i + 1, o + 2], outputs[i + 1, o + 3] = ya, yb, yc, yd
        for i in range(pairs, inputs.shape[0]):
            xa = xb = xc = xd = zero
            for j in range(inputs.shape[1]):
                x = inputs[i, j]
                xa, xb = xa + x * weight[o, j], xb + x * weight[o + 1, j]
                xc, xd = xc + x * weight[o + 2, j], xd + x * weight[o + 3, j]
            outputs[i, o], outputs[i, o + 1], outputs[i, o + 2], outputs[i, o + 3] = xa, xb, xc, xd
    for o in range(fours, weight.shape[0]):
        for i in range(inputs.shape[0]):
            outputs[i, o] = inner_product(inputs[i], weight[o])


@inner()
def fetch_row(table, row):
    """Let the processor fetch a row of a contiguous table (N, m)."""
    size = table.shape[1] * table.itemsize
    for offset in range(row * size, (row + 1) * size, CACHE_LINE):
        prefetch(table, np.uint64(offset))


@inner()
def add_rows(table, rows, total):
    """Add rows of a contiguous table (N, m) to total (m,), one after another: those with the numbers rows (R,).

    Eight rows are added at a time, while the next eight come from memory, so that the total is read and written less often.
    """
    eights = len(rows) // 8 * 8
    for p in range(0, eights, 8):
        for later in range(p + 8, min(p + 16, len(rows))):
            fetch_row(table, rows[later])
        a, b, c, d = table[rows[p]], table[rows[p + 1]], table[rows[p + 2]], table[rows[p + 3]]
        e, f, g, h = table[rows[p + 4]], table[rows[p + 5]], table[rows[p + 6]], table[rows[p + 7]]
        for j in range(len(total)):
            total[j] = total[j] + a[j] + b[j] + c[j] + d[j] + e[j] + f[j] + g[j] + h[j]
    for p in range(eights, len(rows)):
        row = table[rows[p]]
        for j in range(len(total)):
            total[j] += row[j]


@inner()
def add_weighted_rows(table, rows, weights, total):
    """Add rows of a contiguous table (N, m), times the weights (N,) of the rows, to total (m,), as `add_rows` does."""
    fours = len(rows) // 4 * 4
    for p in range(0, fours, 4):
        for later in range(p + 4, min(p + 12, len(rows))):
            fetch_row(table, rows[later])
        a, b, c, d = table[rows[p]], table[rows[p + 1]], table[rows[p + 2]], table[rows[p + 3]]
        u, v, w, x = weights[rows[p]], weights[rows[p + 1]], weights[rows[p + 2]], weights[rows[p + 3]]
        for j in range(len(total)):
            total[j] = total[j] + u * a[j] + v * b[j] + w * c[j] + x * d[j]
    for p in range(fours, len(rows)):
        row, weight = table[rows[p]], weights[rows[p]]
        for j in range(len(total)):
            total[j] += weight * row[j]


@kernel()
def gather(embeddings, contexts, borders, weights, inputs, threads, t):
    """Compute `Backend.gather`: embeddings (V + 1, m), contexts (B, n), borders of blocks (K + 1,) int64 -> inputs (B, K m).

    ``weights`` (V + 1,) are those of words in blocks of several words; None if all are 1.
    """
    size = embeddings.shape[1]
    low, high = share(contexts.shape[0], threads, t)
    words = np.empty(contexts.shape[1], np.int32)
    for i in range(low, high):
        later = min(i + AHEAD, high - 1)
        for k in range(len(borders) - 1):
            block = inputs[i, k * size : (k + 1) * size]
            if borders[k + 1] - borders[k] == 1:
                word = contexts[i, borders[k]]
                fetch_row(embeddings, max(0, contexts[later, borders[k]]))
                for j in range(size):
                    block[j] = embeddings[word, j] if word >= 0 else block.dtype.type(0)
                continue
            count = 0
            for place in range(borders[k], borders[k + 1]):
                if contexts[i, place] >= 0:
                    words[count] = contexts[i, place]
                    count += 1
            clear(block)
            if weights is None:  # Numba compiles only the branch for the type of ``weights``
                add_rows(embeddings, words[:count], block)
            else:
                add_weighted_rows(embeddings, words[:count], weights, block)
            factor = block.dtype.type((borders[k + 1] - borders[k]) ** -0.5)
            for j in range(size):
                block[j] *= factor


@kernel()
def scatter_add(contexts, borders, d_inputs, weighted, d_embeddings, threads, t):
    """Add d_inputs (B, K m) to the rows of d_embeddings (V + 1, m) that belong to the words of contexts (B, n).

    borders (K + 1,) int64 are the borders of the blocks. ``weighted`` is None, or if there are weights of words in blocks of
    several words: embeddings (V + 1, m), weights (V + 1,), and d_weights (V + 1,), to which their gradients are added.
    """
    # The places of the words are sorted by word, in the order of the batch (counting sort), so that a row of d_embeddings, which
    # is not in the cache, is read and written once. Each share sorts all of them, because branches that leave out the words of
    # other shares cannot be predicted, and take longer. Shares add to different words, with about equal costs. If there are
    # weights, the places of a word in blocks of several words come before the others.
    words, blocks, size = len(d_embeddings), len(borders) - 1, d_embeddings.shape[1]
    kinds = 1 if weighted is None else 2
    ends = np.zeros(words * kinds + 1, np.int32)
    for i in range(contexts.shape[0]):
        for k in range(blocks):
            single = kinds - 1 if borders[k + 1] - borders[k] == 1 else 0
            for place in range(borders[k], borders[k + 1]):
                if contexts[i, place] >= 0:
                    ends[contexts[i, place] * kinds + single + 1] += 1
    occurring = 0
    for word in range(words):
        for place in range(word * kinds, (word + 1) * kinds):
            ends[place + 1] += ends[place]
        occurring += ends[(word + 1) * kinds] > ends[word * kinds]
    low, high = share(ends[words * kinds] + WORD_COST * occurring, threads, t)
    rows, scaled = np.empty(ends[words * kinds], np.int32), np.empty((contexts.shape[0] * blocks, size), d_inputs.dtype)
    for i in range(contexts.shape[0]):
        for k in range(blocks):
            row, block = i * blocks + k, d_inputs[i, k * size : (k + 1) * size]
            single = kinds - 1 if borders[k + 1] - borders[k] == 1 else 0
            factor = block.dtype.type((borders[k + 1] - borders[k]) ** -0.5)
            for j in range(size):
                scaled[row, j] = factor * block[j]
            for place in range(borders[k], borders[k + 1]):
                word = contexts[i, place]
                if word >= 0:
                    rows[ends[word * kinds + single]] = row
                    ends[word * kinds + single] += 1
    cost, total = 0, np.empty(size, d_inputs.dtype)
    start = 0  # of the places of a word, which now end at ends[(word + 1) * kinds - 1]
    for word in range(words):
        end = ends[(word + 1) * kinds - 1]
        if start == end:
            continue
        cost += end - start + WORD_COST
        if low < cost <= high:
            singles = start
            if weighted is not None:
                embeddings, weights, d_weights = weighted
                singles = ends[word * kinds]
                clear(total)
                add_rows(scaled, rows[start:singles], total)
                d_weights[word] += inner_product(total, embeddings[word])
                for j in range(size):
                    d_embeddings[word, j] += weights[word] * total[j]
            add_rows(scaled, rows[singles:end], d_embeddings[word])
        start = end


@inner()
def text_length(words):
    """Return the number of words in a row (L,): those before the first -1."""
    length = 0
    while length < len(words) and words[length] >= 0:
        length += 1
    return length


@inner()
def fetch_words(table, words):
    """Let the processor fetch the rows of a contiguous table (N, m) that belong to the first eight words of a row (L,)."""
    for place in range(min(text_length(words), 8)):
        fetch_row(table, words[place])


@kernel()
def mean_pool(embeddings, words, pooled, threads, t):
    """Compute `Backend.mean_pool`: embeddings (V + 1, m), words (B, L) -> pooled (B, m)."""
    low, high = share(len(words), threads, t)
    for i in range(low, high):
        if i + 1 < high:
            fetch_words(embeddings, words[i + 1])
        row, length = pooled[i], text_length(words[i])
        clear(row)
        add_rows(embeddings, words[i, :length], row)
        factor = row.dtype.type(1 / max(length, 1))
        for j in range(len(row)):
            row[j] *= factor


@kernel()
def mean_pool_backward(words, d_pooled, d_embeddings, threads, t):
    """Add d_pooled (B, m), divided by the number of words of each row, to the rows of d_embeddings (V + 1, m) of words (B, L)."""
    # A share adds to certain words only, so that no two write to the same number.
    for i in range(len(words)):
        if i + 1 < len(words):
            fetch_words(d_embeddings, words[i + 1])
        d_row, length = d_pooled[i], text_length(words[i])
        factor = d_row.dtype.type(1 / max(length, 1))
        for place in range(length):
            word = words[i, place]
            if threads == 1 or word % threads == t:
                for j in range(len(d_row)):
                    d_embeddings[word, j] += factor * d_row[j]


@kernel()
def max_pool(embeddings, words, pooled, sources, threads, t):
    """Compute `Backend.max_pool`: embeddings (V + 1, m), words (B, L) -> pooled (B, m) and sources (B, m) int32."""
    low, high = share(len(words), threads, t)
    for i in range(low, high):
        row, own, length = pooled[i], sources[i], text_length(words[i])
        first = words[i, 0] if length else -1
        for j in range(len(row)):
            row[j] = embeddings[first, j] if length else row.dtype.type(0)
            own[j] = first
        for place in range(1, length):
            word = words[i, place]
            embedding = embeddings[word]
            for j in range(len(row)):
                if embedding[j] > row[j] or embedding[j] != embedding[j]:
                    row[j], own[j] = embedding[j], word


@kernel()
def max_pool_backward(sources, d_pooled, d_embeddings, threads, t):
    """Add d_pooled (B, m) to the rows of d_embeddings (V + 1, m) that sources (B, m) int32 names; -1 names none."""
    # A share adds to certain words only, as in `mean_pool_backward`.
    for i in range(len(sources)):
        for j in range(d_pooled.shape[1]):
            word = sources[i, j]
            if word >= 0 and word % threads == t:
                d_embeddings[word, j] += d_pooled[i, j]


@kernel()
def put_rows(values, rows, array, threads, t):
    """Write values (R, m) to the rows with the indices rows (R,) of array (N, m), except where the index is -1."""
    low, high = share(len(rows), threads, t)
    for i in range(low, high):
        if rows[i] >= 0:
            for j in range(array.shape[1]):
                array[rows[i], j] = values[i, j]


@kernel()
def dropout(values, factor, threshold, layer, step_low, step_high, seed_low, seed_high, first, dropped, in_place, threads, t):
    """Fill dropped (N,) with values (N,) times ``factor``, or with 0 where a random number is below ``threshold``.

    ``threshold`` to ``seed_high`` are uint32, as for `Dropout`. ``first`` is the index of the first element
    in the whole batch. ``in_place`` says that values and dropped are the same array.
    """
    # MASK random numbers are drawn at a time, by a loop that makes four of them in an iteration and that LLVM can vectorize.
    begin, end = first >> 2, (first + values.size + 3) >> 2
    low, high = share(end - begin, threads, t)
    words = np.empty(MASK, np.uint32)
    for start in range(begin + low, begin + high, MASK >> 2):
        blocks = min(MASK >> 2, begin + high - start)
        for k in range(blocks):
            words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3] = philox_words(
                np.uint32(start + k), layer, step_low, step_high, seed_low, seed_high
            )
        shift = 4 * start - first
        below, above = max(0, shift), min(values.size, shift + 4 * blocks)
        chances, part, dropped_part = words[below - shift :], values[below:above], dropped[below:above]
        # LLVM vectorizes these loops because all arrays are indexed by i, and because no array has two names in a loop.
        if in_place:
            for i in range(len(dropped_part)):
                dropped_part[i] = dropped_part[i] * factor if chances[i] >= threshold else values.dtype.type(0)
        else:
            for i in range(len(dropped_part)):
                dropped_part[i] = part[i] * factor if chances[i] >= threshold else values.dtype.type(0)


@inner()
def slope_row(code, gamma, outputs, d_row):
    """Multiply a row of gradients d_row (O,) by the derivatives of ``ACTIVATIONS[code]`` where its outputs are outputs (O,).

    As in `activate_row`, there is a loop for each frequent code, so that LLVM vectorizes it.
    """
    if code == RELU:
        for j in range(len(d_row)):
            d_row[j] *= activation_slope(RELU, gamma, outputs[j])
    elif code == TANH:
        for j in range(len(d_row)):
            d_row[j] *= activation_slope(TANH, gamma, outputs[j])
    else:
        for j in range(len(d_row)):
            d_row[j] *= activation_slope(code, gamma, outputs[j])


@kernel(blas=True)
def affine(inputs, weight, bias, code, gamma, outputs, threads, t):
    """Compute `Backend.affine`: inputs (B, I), weight (O, I), bias (O,) -> outputs (B, O).

    The activation function is ``ACTIVATIONS[code]`` with the factor ``gamma``.
    """
    low, high = share(outputs.shape[0], threads, t)
    multiply(inputs[low:high], weight, outputs[low:high, :])  # a type of array that other kernels also pass to `multiply`
    for i in range(low, high):
        for j in range(outputs.shape[1]):
            outputs[i, j] += bias[j]
        activate_row(code, gamma, outputs[i])


# A layer computes y = f(z) with z = x W^T + b. Therefore dz = dy * f'(z), dx = dz W, dW = dz^T x, db = sum dz.


@kernel(blas=True)
def affine_backward_inputs(weight, outputs, code, gamma, d_outputs, d_inputs, threads, t):
    """Compute the gradients of the inputs of `affine`, as `Backend.affine_backward` says.

    weight (O, I), outputs (B, O), d_outputs (B, O), which becomes the gradient of the pre-activations -> d_inputs (B, I).
    """
    low, high = share(outputs.shape[0], threads, t)
    for i in range(low, high):
        slope_row(code, gamma, outputs[i], d_outputs[i])
    gemm_nn(d_outputs[low:high], weight, d_inputs[low:high], 0.0)


@kernel(blas=True)
def affine_backward_weights(inputs, d_outputs, beta, d_weight, d_bias, threads, t):
    """Compute the gradients of the weights of `affine` from those of its pre-activations, d_outputs (B, O).

    inputs (B, I) -> d_weight (O, I) and d_bias (O,), added to ``beta`` times their content.
    """
    low, high = share(d_outputs.shape[1], threads, t)
    d_bias_part = d_bias[low:high]
    gemm_tn(d_outputs[:, low:high], inputs, d_weight[low:high], beta)
    if beta == 0:
        clear(d_bias_part)
    for i in range(len(d_outputs)):
        row = d_outputs[i, low:high]  # LLVM vectorizes a loop over it, but not over a row of a slice of columns
        for j in range(len(row)):
            d_bias_part[j] += row[j]


@kernel()
def add(values, total, threads, t):
    """Add values (B, I) to total (B, I)."""
    low, high = share(values.shape[0], threads, t)
    for i in range(low, high):
        for j in range(values.shape[1]):
            total[i, j] += values[i, j]


@inner(fastmath=REORDER)
def mean_and_scale(row):
    """Return the mean of a row (I,), and the reciprocal of its standard deviation as `Backend.normalize` defines it."""
    number = row.dtype.type
    mean = number(0)
    for j in range(len(row)):
        mean += row[j]
    mean /= number(len(row))
    variance = number(0)
    for j in range(len(row)):
        variance += (row[j] - mean) * (row[j] - mean)
    return mean, number(1) / np.sqrt(variance / number(len(row)) + number(NORMALIZE_EPSILON))


@kernel()
def normalize(values, normalized, threads, t):
    """Compute `Backend.normalize`: values (B, I) -> normalized (B, I)."""
    low, high = share(values.shape[0], threads, t)
    for i in range(low, high):
        mean, scale = mean_and_scale(values[i])
        for j in range(values.shape[1]):
            normalized[i, j] = (values[i, j] - mean) * scale


@inner(fastmath=REORDER)
def normalize_row_backward(row, d_normalized, d_row):
    """Add to d_row (I,) the gradient of a row (I,), given the gradient d_normalized (I,) of its normalized numbers."""
    # The forward pass has computed y = (x - mean) s. Therefore dx = s (dy - mean(dy) - y mean(dy y)).
    mean, scale = mean_and_scale(row)
    number = row.dtype.type
    plain = weighted = number(0)
    for j in range(len(row)):
        plain += d_normalized[j]
        weighted += d_normalized[j] * ((row[j] - mean) * scale)
    plain /= number(len(row))
    weighted /= number(len(row))
    for j in range(len(row)):
        d_row[j] += scale * (d_normalized[j] - plain - (row[j] - mean) * scale * weighted)


@kernel()
def normalize_backward(values, d_normalized, d_values, threads, t):
    """Add to d_values (B, I) the gradients of values (B, I), given the gradients d_normalized (B, I) of the normalized values."""
    low, high = share(values.shape[0], threads, t)
    for i in range(low, high):
        normalize_row_backward(values[i], d_normalized[i], d_values[i])


@inner()
def add_bias_and_max(row, bias, width):
    """Add bias (V,) to the first ``width`` logits of a row (V,), and return their maximum.

    If there is a NaN, the returned number may be any; the sum of exponentials that is computed with it is NaN all the same.
    """
    highest = row[0] + bias[0]
    for j in range(width):
        row[j] += bias[j]
        highest = larger(highest, row[j])
    return highest


@inner(fastmath={"contract"})
def subtract_and_exp(row, highest, width):
    """Replace the first ``width`` logits of a row (V,) by exp(logit - highest)."""
    for j in range(width):
        row[j] = exp(row[j] - highest)


@inner(fastmath=REORDER)
def sum_row(row, width):
    """Return the sum of the first ``width`` numbers of a row (V,)."""
    total = row.dtype.type(0)
    for j in range(width):
        total += row[j]
    return total


@kernel(blas=True)
def softmax_tiles(hidden, weight, bias, tiles, highest, totals, threads, t):
    """Compute the logits of an output layer and their exponentials, one tile of W words after another.

    hidden (B, H), weight (V, H), bias (V,) -> highest (tiles, B), the maximum of the logits of each row of a tile; totals
    (tiles, B), the sums of exp(logit - highest); tiles (tiles, B, W), these exponentials. If ``tiles`` is only
    (threads, B, W), it is scratch memory, which each thread overwrites with its next tile.
    """
    count, words, most = highest.shape[0], weight.shape[0], tiles.shape[2]
    first, last = share(count, threads, t)
    for k in range(first, last):
        low, high = k * most, min((k + 1) * most, words)
        width = high - low
        tile = tiles[k] if len(tiles) == count else tiles[t]
        multiply(hidden, weight[low:high], tile[:, :width])
        for i in range(hidden.shape[0]):
            highest[k, i] = add_bias_and_max(tile[i], bias[low:high], width)
            subtract_and_exp(tile[i], highest[k, i], width)
            totals[k, i] = sum_row(tile[i], width)


@kernel()
def lower_targets(hidden, weight, targets, adversarial, tiles, totals, noise, threads, t):
    """Lower the scores of targets by the adversarial noise of `Backend.output_gradients`, after `softmax_tiles`.

    hidden (B, H), weight (V, H), targets (B,), tiles (tiles, B, W), totals (at least tiles, B), changed -> noise (3, B): by
    how much each score is lowered, this over |hidden|^2, and the exponential of the lowered score; 0 for targets of -1.
    """
    low, high = share(len(targets), threads, t)
    most = tiles.shape[2]
    for i in range(low, high):
        word, dtype = targets[i], hidden.dtype.type
        noise[:, i] = 0
        if word < 0:
            continue
        length, square = inner_product(weight[word], weight[word]), inner_product(hidden[i], hidden[i])
        margin = adversarial * np.sqrt(length) * np.sqrt(square)
        k, j = word // most, word % most
        tiles[k, i, j] *= exp(-margin)
        totals[k, i] = sum_row(tiles[k, i], min(most, len(weight) - k * most))
        noise[0, i], noise[2, i] = margin, tiles[k, i, j]
        noise[1, i] = margin / square if square > 0 else dtype(0)


@kernel()
def finish_noise(hidden, targets, subtracted, most, factors, noise, losses, d_hidden, threads, t):
    """Add to d_hidden (B, H) the gradient of the noise of `lower_targets`, and take the noise out of losses (B,).

    hidden (B, H), targets (B,), factors (at least tiles, B) of `finish_softmax`, noise (3, B). The gradient of the score of a
    target is the difference of exponential times factor and ``subtracted``. ``most`` is the number of words in a tile.
    """
    low, high = share(len(targets), threads, t)
    for i in range(low, high):
        word = targets[i]
        if word < 0:
            continue
        pull = (factors[word // most, i] * noise[2, i] - subtracted) * noise[1, i]
        for j in range(hidden.shape[1]):
            d_hidden[i, j] -= pull * hidden[i, j]
        # The loss is log Z' - s with the score s, where Z' lacks e^s (1 - e^-margin).
        losses[i] = np.logaddexp(losses[i], np.log(-np.expm1(-noise[0, i])))


@inner()
def combine_tiles(highest, totals, row):
    """Return the log-sum-exp of the logits of a row, as float64, from highest and totals (tiles, B) of `softmax_tiles`."""
    top = highest[0, row]
    for k in range(1, highest.shape[0]):
        top = max(top, highest[k, row])
    total = 0.0
    for k in range(highest.shape[0]):
        total += totals[k, row] * np.exp(highest[k, row] - top)
    return top + np.log(total)


@compiled()
def combine_losses(hidden, weight, bias, rows, targets, highest, totals, normalizers, losses):
    """Compute the losses of `Backend.output_losses` from the results of `softmax_tiles`.

    hidden (B, H), weight (V, H), bias (V,), rows (T,) and targets (T,), highest and totals (tiles, B) -> normalizers (B,), the
    log-sum-exp of each row, and losses (T,), which are 0 for targets of -1.
    """
    for i in range(len(normalizers)):
        normalizers[i] = combine_tiles(highest, totals, i)
    for i in range(len(targets)):
        row, word = rows[i], targets[i]
        losses[i] = normalizers[row] - bias[word] - inner_product(hidden[row], weight[word]) if word >= 0 else 0


@inner()
def exp_to_slopes(row, factor, spread, d_bias):
    """Replace the exponentials e of W words, in a row (W,), by factor e - spread, and add these slopes to d_bias (W,)."""
    for j in range(len(d_bias)):
        row[j] = factor * row[j] - spread
        d_bias[j] += row[j]


@compiled()
def finish_softmax(hidden, weight, bias, targets, highest, totals, penalty, scale, losses):
    """Fill losses (B,), and replace totals (tiles, B) by the ``factors`` of `output_gradients`.

    hidden (B, H), weight (V, H), bias (V,), targets (B,); highest and totals (tiles, B) are those of `softmax_tiles`.
    """
    rows, tiles = len(targets), len(totals)
    top, total = np.empty(rows, highest.dtype), np.zeros(rows)
    for i in range(rows):
        top[i] = highest[0, i]
    for k in range(1, tiles):
        for i in range(rows):
            top[i] = larger(top[i], highest[k, i])
    for k in range(tiles):
        for i in range(rows):
            highest[k, i] = exp(highest[k, i] - top[i])
            total[i] += totals[k, i] * highest[k, i]
    for i in range(rows):
        normalizer, word = top[i] + np.log(total[i]), targets[i]
        losses[i] = normalizer - bias[word] - inner_product(hidden[i], weight[word]) if word >= 0 else 0
        top[i] = scale * (1 + 2 * penalty * normalizer) / total[i]
    for k in range(tiles):
        for i in range(rows):
            totals[k, i] = top[i] * highest[k, i]


@inner()
def sum_of_shares(partial, i, j):
    """Return the sum of partial[:, i, j] of partial (threads, B, H), always added in the same order."""
    total = partial[0, i, j]
    for other in range(1, len(partial)):
        total += partial[other, i, j]
    return total


@kernel(blas=True)
def output_gradients(hidden, weight, targets, hit, spread, beta, tiles, factors, partial, d_weight, d_bias, threads, t):
    """Compute the gradients of the output layer for `Backend.output_gradients`, and parts of those of the hidden outputs.

    With the softmax p and the smoothed target q, the gradient of the logits is dz = scale ((1 + 2 penalty log Z) p - q). With the
    weights U and the hidden outputs f, dU = dz^T f and df = dz U. The term with p is the exponentials of `softmax_tiles` times a
    factor for each row of a tile; that with q is ``spread`` at all words, and in addition ``hit`` at the target.

    hidden (B, H), weight (V, H), targets (B,), tiles (tiles, B, W) of `softmax_tiles`, overwritten by dz, factors (N, B) of
    `finish_softmax` -> d_weight (V, H) and d_bias (V,), added to ``beta`` times their content; partial (threads, B, H),
    overwritten.
    """
    first, last = share(len(tiles), threads, t)
    most = tiles.shape[2]
    if first == last:
        for i in range(len(hidden)):
            clear(partial[t, i])
    for k in range(first, last):
        low, high = k * most, min((k + 1) * most, len(weight))
        tile, d_bias_part = tiles[k], d_bias[low:high]
        if beta == 0:
            clear(d_bias_part)
        for i in range(len(hidden)):
            exp_to_slopes(tile[i], factors[k, i], spread, d_bias_part)
            word = targets[i]
            if low <= word < high:
                tile[i, word - low] -= hit
                d_bias[word] -= hit
        slopes = tile[:, : high - low]
        gemm_nn(slopes, weight[low:high], partial[t], 0.0 if k == first else 1.0)
        gemm_tn(slopes, hidden, d_weight[low:high], beta)


@kernel()
def add_shares(partial, total, threads, t):
    """Compute total (B, H), the sum of partial (parts, B, H) over its parts."""
    low, high = share(len(total), threads, t)
    for i in range(low, high):
        for j in range(total.shape[1]):
            total[i, j] = sum_of_shares(partial, i, j)


@kernel()
def replace_targets(log_probabilities, targets, factor, beta, d_scores, threads, t):
    """Compute `Backend.replace_targets`: log_probabilities (B, V), targets (B,) -> d_scores (B, V), added to."""
    low, high = share(len(targets), threads, t)
    for i in range(low, high):
        if beta == 0:  # the memory may contain NaN
            clear(d_scores[i])
        for j in range(d_scores.shape[1]):
            d_scores[i, j] = beta * d_scores[i, j] - factor * np.exp(log_probabilities[i, j])
        d_scores[i, targets[i]] += factor


@inner(fastmath={"contract"})
def noise_row(row, bias, noise, losses, width):
    """Replace the products hidden weight^T of a row by noise sigmoid(s), and fill ``losses`` with noise log(1 + e^s).

    row (W,), bias (W,), noise (W,), losses (W,), of which the first ``width`` numbers are used; s is product + bias.
    """
    one = row.dtype.type(1)
    for j in range(width):
        s = row[j] + bias[j]
        e = exp(-abs(s))
        row[j] = noise[j] * (one if s > 0 else e) / (one + e)
        losses[j] = noise[j] * ((s if s > 0 else row.dtype.type(0)) + log1p(e))


@inner()
def noise_tile(tile, bias, targets, noise, low, scale, losses, d_bias):
    """Replace the products hidden weight^T of a tile (B, W) by the gradients of the scores in noise-contrastive estimation.

    bias (W,), noise (W,), of the W words of the tile, whose first word is ``low``; targets (B,) -> losses (B,) float64 and
    d_bias (W,), both added to.
    """
    # If s is the score of a word that was drawn n times, and t the target of the row, then
    # ds = scale (n sigmoid(s) - [word = t] sigmoid(-s)).
    width = len(bias)
    own = np.empty(width, bias.dtype)
    for i in range(len(targets)):
        place = targets[i] - low
        s = tile[i, place] + bias[place] if 0 <= place < width else bias.dtype.type(0)
        noise_row(tile[i], bias, noise, own, width)
        losses[i] += sum_row(own, width)
        if 0 <= place < width:
            tile[i, place] -= sigmoid(-s)
            losses[i] += softplus(-s)
        for j in range(width):
            tile[i, j] *= scale
            d_bias[j] += tile[i, j]


@kernel(blas=True)
def nce_gradients(
    hidden,
    weight,
    bias,
    targets,
    noise,
    scale,
    beta,
    tiles,
    partial,
    summed,
    d_weight,
    d_bias,
    threads,
    t,
):
    """Compute the gradients of the output layer for `Backend.nce_gradients`, and parts of the other results.

    hidden (B, H), weight (V, H), bias (V,), targets (B,), noise (V,) -> d_weight (V, H) and d_bias (V,), added to ``beta`` times
    their content; partial (threads, B, H), overwritten, parts of the gradients of hidden; summed (threads, B) float64, zeros, to
    which parts of the losses are added. tiles (threads, B, W) is scratch memory.
    """
    words, most, tile = weight.shape[0], tiles.shape[2], tiles[t]
    for i in range(len(hidden)):
        clear(partial[t, i])
    first, last = share((words + most - 1) // most, threads, t)
    for k in range(first, last):
        low, high = k * most, min((k + 1) * most, words)
        width = high - low
        gemm_nt(hidden, weight[low:high], tile[:, :width], 0.0)
        if beta == 0:
            clear(d_bias[low:high])
        noise_tile(tile, bias[low:high], targets, noise[low:high], low, scale, summed[t], d_bias[low:high])
        gemm_nn(tile[:, :width], weight[low:high], partial[t], 1.0)
        gemm_tn(tile[:, :width], hidden, d_weight[low:high], beta)


@kernel()
def sum_nce_parts(partial, summed, losses, d_hidden, threads, t):
    """Add up the parts of `nce_gradients`: partial (parts, B, H), summed (parts, B) float64 -> losses (B,), d_hidden (B, H)."""
    low, high = share(len(losses), threads, t)
    for i in range(low, high):
        loss = summed[0, i]
        for other in range(1, len(summed)):
            loss += summed[other, i]
        losses[i] = loss
        for j in range(d_hidden.shape[1]):
            d_hidden[i, j] = sum_of_shares(partial, i, j)


@kernel()
def unit_losses(code, scores, targets, scale, losses, d_scores, threads, t):
    """Compute `Backend.unit_losses` for ``UNIT_LOSSES[code]``: scores, targets (B, O) -> losses (B,), d_scores (B, O)."""
    low, high = share(len(scores), threads, t)
    for i in range(low, high):
        total = 0.0
        for j in range(scores.shape[1]):
            total += unit_loss(code, scores[i, j], targets[i, j])
            d_scores[i, j] = scale * unit_loss_slope(code, scores[i, j], targets[i, j])
        losses[i] = total


@inner()
def normalize_logits(row, bias, piece):
    """Replace the products hidden weight^T of a row (V,) by log-probabilities: bias (V,); piece (TILE,) is scratch memory."""
    words = len(row)
    highest = add_bias_and_max(row, bias, words)
    total = 0.0
    for low in range(0, words, TILE):
        width = min(TILE, words - low)
        for j in range(width):
            piece[j] = row[low + j]
        subtract_and_exp(piece, highest, width)
        total += sum_row(piece, width)
    normalizer = highest + row.dtype.type(np.log(total))
    for j in range(words):
        row[j] -= normalizer


@kernel(blas=True)
def logits_without_bias(hidden, weight, results, threads, t):
    """Compute the products of `Backend.log_probabilities`: hidden (B, H), weight (V, H) -> results (B, V)."""
    low, high = share(weight.shape[0], threads, t)
    multiply(hidden, weight[low:high], results[:, low:high])


@kernel()
def log_softmax(results, bias, threads, t):
    """Replace the products of `logits_without_bias`, results (B, V), by log-probabilities: bias (V,)."""
    low, high = share(len(results), threads, t)
    piece = np.empty(TILE, bias.dtype)
    for i in range(low, high):
        normalize_logits(results[i], bias, piece)


@kernel(fastmath=REORDER)
def sum_of_squares(values, totals, threads, t):
    """Fill totals (threads,) float64 with the sums of squares of the shares of values (N,)."""
    part = portion(values, threads, t)
    total = 0.0
    for i in range(len(part)):
        total += part[i] * part[i]
    totals[t] = total


@kernel()
def add_penalty(weight, gradient, l1, l2, threads, t):
    """Add the derivative of the penalty on weight (N,), `penalty_slope`, to gradient (N,)."""
    w, g = portion(weight, threads, t), portion(gradient, threads, t)
    for i in range(len(w)):
        g[i] += penalty_slope(w[i], l1, l2)


@kernel()
def momentum_step(weight, gradient, velocity, scale, l2, rate, momentum, nesterov, threads, t):
    """Update weight and velocity (N,) by `momentum_update` with gradient (N,)."""
    w, g, v = portion(weight, threads, t), portion(gradient, threads, t), portion(velocity, threads, t)
    for i in range(len(w)):
        w[i], v[i] = momentum_update(w[i], scale * g[i] + l2 * w[i], v[i], rate, momentum, nesterov)


@kernel()
def adagrad_step(weight, gradient, total, scale, l2, rate, epsilon, threads, t):
    """Update weight and total (N,) by `adagrad_update` with gradient (N,)."""
    w, g, v = portion(weight, threads, t), portion(gradient, threads, t), portion(total, threads, t)
    for i in range(len(w)):
        w[i], v[i] = adagrad_update(w[i], scale * g[i] + l2 * w[i], v[i], rate, epsilon)


@kernel()
def adagrad_step_rows(gradient, rows, scale, l2, rate, epsilon, weight, total, threads, t):
    """Compute `Backend.adagrad_step_rows`: gradient (R, m), rows (R,) -> rows of weight and total (N, m)."""
    low, high = share(len(rows), threads, t)
    for i in range(low, high):
        later = max(0, rows[min(i + AHEAD, high - 1)])
        fetch_row(weight, later)
        fetch_row(total, later)
        if rows[i] >= 0:
            w, g, v = weight[rows[i]], gradient[i], total[rows[i]]
            for j in range(len(g)):
                w[j], v[j] = adagrad_update(w[j], scale * g[j] + l2 * w[j], v[j], rate, epsilon)


@kernel()
def rmsprop_step(weight, gradient, mean, scale, l2, rate, decay, epsilon, threads, t):
    """Update weight and mean (N,) by `rmsprop_update` with gradient (N,)."""
    w, g, v = portion(weight, threads, t), portion(gradient, threads, t), portion(mean, threads, t)
    for i in range(len(w)):
        w[i], v[i] = rmsprop_update(w[i], scale * g[i] + l2 * w[i], v[i], rate, decay, epsilon)


@kernel()
def adam_step(
    weight,
    gradient,
    first,
    second,
    scale,
    l2,
    keep,
    rate,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
    threads,
    t,
):
    """Update weight, first and second (N,), the moments, by `adam_update` with gradient (N,).

    ``keep`` is the factor of decoupled weight decay, 1 - shrink.
    """
    w, g = portion(weight, threads, t), portion(gradient, threads, t)
    m, v = portion(first, threads, t), portion(second, threads, t)
    for i in range(len(w)):
        w[i], m[i], v[i] = adam_update(
            keep * w[i], scale * g[i] + l2 * w[i], m[i], v[i], rate, beta1, beta2, epsilon, correction1, correction2
        )


@kernel()
def adam_catch_up(weight, first, second, idle, keeps, rate, beta1, beta2, epsilon, correction1, correction2, threads, t):
    """Compute `Backend.adam_catch_up`: idle (R,), keeps (R,) -> weight, first and second (R, m), all updated."""
    low, high = share(weight.shape[0], threads, t)
    for i in range(low, high):
        if idle[i] > 0:
            kept1, kept2 = beta1 ** idle[i], beta2 ** idle[i]
            skipped = catch_up_rate(rate, beta1, kept1, correction1)
            for j in range(weight.shape[1]):
                weight[i, j] = caught_up(weight[i, j], first[i, j], second[i, j], keeps[i], skipped, epsilon, correction2)
                first[i, j] *= kept1
                second[i, j] *= kept2


@kernel()
def adam_take_rows(
    weight,
    first,
    second,
    rows,
    idle,
    keeps,
    rate,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
    taken,
    threads,
    t,
):
    """Compute `Backend.adam_take_rows`: weight, first, second (N, m), rows (R,), idle (R,), keeps (R,) -> taken (R, m)."""
    low, high = share(len(rows), threads, t)
    for i in range(low, high):
        later = rows[min(i + AHEAD, high - 1)]
        fetch_row(weight, later)
        fetch_row(first, later)
        fetch_row(second, later)
        own = taken[i]
        if rows[i] < 0:
            clear(own)
            continue
        w, m, v = weight[rows[i]], first[rows[i]], second[rows[i]]
        if idle[i] > 0:
            skipped = catch_up_rate(rate, beta1, beta1 ** idle[i], correction1)
            for j in range(len(own)):
                own[j] = caught_up(w[j], m[j], v[j], keeps[i], skipped, epsilon, correction2)
        else:
            for j in range(len(own)):
                own[j] = w[j]


@kernel()
def adam_step_rows(
    taken,
    gradient,
    rows,
    idle,
    scale,
    l2,
    keep,
    rate,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
    weight,
    first,
    second,
    threads,
    t,
):
    """Compute `Backend.adam_step_rows`: taken, gradient (R, m), rows (R,), idle (R,) -> rows of weight, first, second (N, m).

    ``keep`` is the factor of decoupled weight decay, 1 - shrink.
    """
    low, high = share(len(rows), threads, t)
    w = np.empty(taken.shape[1], taken.dtype)  # LLVM vectorizes a loop only if it needs to tell few arrays apart
    for i in range(low, high):
        later = rows[min(i + AHEAD, high - 1)]
        fetch_row(weight, later)
        fetch_row(first, later)
        fetch_row(second, later)
        if rows[i] < 0:
            continue
        g, m, v, updated = gradient[i], first[rows[i]], second[rows[i]], weight[rows[i]]
        kept1, kept2 = beta1 ** idle[i], beta2 ** idle[i]
        for j in range(len(w)):
            w[j] = taken[i, j]
        for j in range(len(w)):
            w[j], m[j], v[j] = adam_update(
                keep * w[j],
                scale * g[j] + l2 * w[j],
                kept1 * m[j],
                kept2 * v[j],
                rate,
                beta1,
                beta2,
                epsilon,
                correction1,
                correction2,
            )
        for j in range(len(w)):
            updated[j] = w[j]
