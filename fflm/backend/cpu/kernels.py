"""The kernels of the CPU backend, in Numba.

Matrix products are left to BLAS; everything else is one pass over a row, which LLVM vectorizes. `launching` says how kernels are
cut into shares, whose number is the last argument of each: ``threads``. `protocol` says what the kernels compute, and what the
letters of the shapes mean.
"""

import numpy as np
from numba import njit, prange

from fflm.backend.cpu.blas import gemm
from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import REORDER, activate_row, clear, inner_product, larger
from fflm.backend.formulas import (
    RELU,
    TANH,
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
from fflm.compiling import compiled

TILE = 512
"""Vocabulary entries in a tile of the output layer: for a usual batch a tile of logits stays in the cache of a core."""

FEW_ROWS = 32
"""Rows up to which BLAS, which copies the weights into an order of its own first, is slower than `multiply_few`."""

MASK = 2048
"""Number of random words of a dropout mask that are drawn at a time."""

# It is inlined into the loops, because a call that returns several numbers keeps LLVM from vectorizing the loop around it.
philox_words = njit(inline="always")(philox)


@njit
def portion(array, parts, part):
    """Return one of ``parts`` contiguous shares of an array.

    LLVM vectorizes a loop over all of the share, but not one over ``range(low, high)``, whose index might be negative.
    """
    low, high = share(len(array), parts, part)
    return array[low:high]


@njit
def multiply(inputs, weight, outputs):
    """Compute outputs (B, O) = inputs (B, I) weight^T (O, I)."""
    if inputs.shape[0] > FEW_ROWS:
        gemm(inputs, weight, outputs, False, True, 0.0)
    else:
        multiply_few(inputs, weight, outputs)


@njit(fastmath=REORDER)
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


@kernel()
def gather(embeddings, contexts, borders, inputs, threads):
    """Fill inputs (B, K m) from embeddings (V + 1, m), contexts (B, n) and borders (K + 1,), as `Backend.gather` says."""
    size = embeddings.shape[1]
    for t in prange(threads):
        low, high = share(contexts.shape[0], threads, t)
        for i in range(low, high):
            for k in range(len(borders) - 1):
                block = inputs[i, k * size : (k + 1) * size]
                if borders[k + 1] - borders[k] == 1:
                    word = contexts[i, borders[k]]
                    for j in range(size):
                        block[j] = embeddings[word, j] if word >= 0 else block.dtype.type(0)
                    continue
                clear(block)
                for place in range(borders[k], borders[k + 1]):
                    word = contexts[i, place]
                    if word >= 0:
                        for j in range(size):
                            block[j] += embeddings[word, j]
                factor = block.dtype.type((borders[k + 1] - borders[k]) ** -0.5)
                for j in range(size):
                    block[j] *= factor


@kernel()
def scatter_add(contexts, borders, d_inputs, d_embeddings, threads):
    """Add d_inputs (B, K m) to d_embeddings (V + 1, m) at the words of contexts (B, n), whose blocks have borders (K + 1,)."""
    size = d_embeddings.shape[1]
    for t in prange(threads):
        # Each thread adds to its own words only, in the order of the batch. Frequent words have low ids, so the threads take
        # words in turn.
        for i in range(contexts.shape[0]):
            for k in range(len(borders) - 1):
                factor = d_inputs.dtype.type((borders[k + 1] - borders[k]) ** -0.5)
                for place in range(borders[k], borders[k + 1]):
                    word = contexts[i, place]
                    if word >= 0 and word % threads == t:
                        for j in range(size):
                            d_embeddings[word, j] += factor * d_inputs[i, k * size + j]


@njit
def text_length(words):
    """Return how many of the numbers of a row are words: all of them before the first -1."""
    length = 0
    while length < len(words) and words[length] >= 0:
        length += 1
    return length


@kernel()
def mean_pool(embeddings, words, pooled, threads):
    """Fill pooled (B, m) with the mean of the embeddings (V + 1, m) of each row of words (B, L)."""
    for t in prange(threads):
        low, high = share(len(words), threads, t)
        for i in range(low, high):
            row, length = pooled[i], text_length(words[i])
            clear(row)
            for place in range(length):
                embedding = embeddings[words[i, place]]
                for j in range(len(row)):
                    row[j] += embedding[j]
            factor = row.dtype.type(1 / max(length, 1))
            for j in range(len(row)):
                row[j] *= factor


@kernel()
def mean_pool_backward(words, d_pooled, d_embeddings, threads):
    """Add d_pooled (B, m), over the number of words, to d_embeddings (V + 1, m) at the words (B, L)."""
    for t in prange(threads):  # a thread adds to its own words only, as in scatter_add
        for i in range(len(words)):
            d_row, length = d_pooled[i], text_length(words[i])
            factor = d_row.dtype.type(1 / max(length, 1))
            for place in range(length):
                if words[i, place] % threads == t:
                    d_embedding = d_embeddings[words[i, place]]
                    for j in range(len(d_row)):
                        d_embedding[j] += factor * d_row[j]


@kernel()
def max_pool(embeddings, words, pooled, sources, threads):
    """Fill pooled (B, m) with the largest numbers of embeddings (V + 1, m) among words (B, L), sources (B, m) with the words."""
    for t in prange(threads):
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
def max_pool_backward(sources, d_pooled, d_embeddings, threads):
    """Add d_pooled (B, m) to d_embeddings (V + 1, m) at the words in sources (B, m)."""
    for t in prange(threads):
        for i in range(len(sources)):
            for j in range(d_pooled.shape[1]):
                word = sources[i, j]
                if word >= 0 and word % threads == t:
                    d_embeddings[word, j] += d_pooled[i, j]


@kernel()
def put_rows(values, rows, array, threads):
    """Write values (R, m) to the rows (R,) of array (N, m)."""
    for t in prange(threads):
        low, high = share(len(rows), threads, t)
        for i in range(low, high):
            for j in range(array.shape[1]):
                array[rows[i], j] = values[i, j]


@kernel()
def dropout(values, factor, threshold, layer, step_low, step_high, seed_low, seed_high, first, dropped, in_place, threads):
    """Fill dropped (N,) with values (N,) times factor, or 0 where a random word is below the threshold."""
    # The random words are drawn in pieces of MASK, four at a time, which vectorizes. `first` is the index of the first element.
    begin, end = first >> 2, (first + values.size + 3) >> 2
    for t in prange(threads):
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
            # All arrays are indexed by i: words[i - shift] would not vectorize. Nor would one array under two names.
            if in_place:
                for i in range(len(dropped_part)):
                    dropped_part[i] = dropped_part[i] * factor if chances[i] >= threshold else values.dtype.type(0)
            else:
                for i in range(len(dropped_part)):
                    dropped_part[i] = part[i] * factor if chances[i] >= threshold else values.dtype.type(0)


@njit
def slope_row(code, gamma, outputs, d_row):
    """Multiply a row of gradients (O,) by the slopes of ``ACTIVATIONS[code]`` at its outputs (O,)."""
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
def affine(inputs, weight, bias, code, gamma, outputs, threads):
    """Fill outputs (B, O) with the activation of inputs (B, I) weight^T (O, I) + bias (O,)."""
    for t in prange(threads):
        low, high = share(outputs.shape[0], threads, t)
        multiply(inputs[low:high], weight, outputs[low:high])
        for i in range(low, high):
            for j in range(outputs.shape[1]):
                outputs[i, j] += bias[j]
            activate_row(code, gamma, outputs[i])


@kernel(blas=True)
def affine_backward(inputs, weight, outputs, code, gamma, d_outputs, beta, d_weight, d_bias, d_inputs, threads):
    """Go back through `affine`: outputs, d_outputs (B, O) -> d_weight (O, I) and d_bias (O,) by beta, d_inputs (B, I)."""
    # Forward computed y = f(x W^T + b), so with dz = dy * f'(z): dW = dz^T x, db = sum dz, dx = dz W.
    for t in prange(threads):
        low, high = share(outputs.shape[0], threads, t)
        for i in range(low, high):
            slope_row(code, gamma, outputs[i], d_outputs[i])
        gemm(d_outputs[low:high], weight, d_inputs[low:high], False, False, 0.0)
    for t in prange(threads):
        low, high = share(outputs.shape[1], threads, t)
        part, d_bias_part = d_outputs[:, low:high], d_bias[low:high]
        gemm(part, inputs, d_weight[low:high], True, False, beta)
        if beta == 0:
            clear(d_bias_part)
        for i in range(len(part)):
            for j in range(len(d_bias_part)):
                d_bias_part[j] += part[i, j]


@kernel()
def add(values, total, threads):
    """Add values (B, I) to total (B, I)."""
    for t in prange(threads):
        low, high = share(values.shape[0], threads, t)
        for i in range(low, high):
            for j in range(values.shape[1]):
                total[i, j] += values[i, j]


@njit(fastmath=REORDER)
def mean_and_scale(row):
    """Return a row's mean and the reciprocal of its deviation."""
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
def normalize(values, normalized, threads):
    """Fill normalized (B, I) with the rows of values (B, I) less their means, over their deviations."""
    for t in prange(threads):
        low, high = share(values.shape[0], threads, t)
        for i in range(low, high):
            mean, scale = mean_and_scale(values[i])
            for j in range(values.shape[1]):
                normalized[i, j] = (values[i, j] - mean) * scale


@njit(fastmath=REORDER)
def normalize_row_backward(row, d_normalized, d_row):
    """Add to d_row (I,) the gradient of a row (I,), from the gradient of its normalized numbers (I,)."""
    # Forward computed y = (x - mean) s, so dx = s (dy - mean(dy) - y mean(dy y)).
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
def normalize_backward(values, d_normalized, d_values, threads):
    """Add to d_values (B, I) the gradients of values (B, I), from d_normalized (B, I)."""
    for t in prange(threads):
        low, high = share(values.shape[0], threads, t)
        for i in range(low, high):
            normalize_row_backward(values[i], d_normalized[i], d_values[i])


@njit
def add_bias_and_max(row, bias, width):
    """Add the bias (V,) to a row of logits (V,) and return its maximum (any number if one is NaN)."""
    highest = row[0] + bias[0]
    for j in range(width):
        row[j] += bias[j]
        highest = larger(highest, row[j])
    return highest


@njit(fastmath={"contract"})
def subtract_and_exp(row, highest, width):
    """Replace a row of logits by exp(logit - highest)."""
    for j in range(width):
        row[j] = exp(row[j] - highest)


@njit(fastmath=REORDER)
def sum_row(row, width):
    """Return the sum of the first numbers of a row."""
    total = row.dtype.type(0)
    for j in range(width):
        total += row[j]
    return total


@kernel(blas=True)
def softmax_tiles(hidden, weight, bias, tiles, highest, totals, threads):
    """Compute the output layer, a tile at a time.

    On return ``highest`` and ``totals`` (tiles, B) hold the maximum of each row of logits and its sum of exp(logit - highest),
    and ``tiles`` (tiles, B, TILE) the exponentials, unless there are only ``threads`` of them, which are overwritten.
    """
    count, words = highest.shape[0], weight.shape[0]
    for t in prange(threads):
        first, last = share(count, threads, t)
        for k in range(first, last):
            low, high = k * TILE, min((k + 1) * TILE, words)
            width = high - low
            tile = tiles[k] if len(tiles) == count else tiles[t]
            multiply(hidden, weight[low:high], tile[:, :width])
            for i in range(hidden.shape[0]):
                highest[k, i] = add_bias_and_max(tile[i], bias[low:high], width)
                subtract_and_exp(tile[i], highest[k, i], width)
                totals[k, i] = sum_row(tile[i], width)


@njit
def combine_tiles(highest, totals, row):
    """Return a row's log-sum-exp over all tiles, from the tiles' maxima and sums (tiles, B)."""
    top = highest[0, row]
    for k in range(1, highest.shape[0]):
        top = max(top, highest[k, row])
    total = 0.0
    for k in range(highest.shape[0]):
        total += totals[k, row] * np.exp(highest[k, row] - top)
    return top + np.log(total)


@compiled()
def combine_losses(hidden, weight, bias, rows, targets, highest, totals, normalizers, losses):
    """Fill normalizers (B,) with each row's log-sum-exp, and losses (T,) of the targets (T,) after contexts rows (T,).

    hidden (B, H), weight (V, H), bias (V,); highest and totals (tiles, B) are those of `softmax_tiles`.
    """
    for i in range(len(normalizers)):
        normalizers[i] = combine_tiles(highest, totals, i)
    for i in range(len(targets)):
        row, word = rows[i], targets[i]
        losses[i] = normalizers[row] - bias[word] - inner_product(hidden[row], weight[word])


@njit
def tile_gradients(
    hidden,
    weight,
    targets,
    low,
    high,
    tile,
    factors,
    hit,
    spread,
    beta,
    product,
    d_hidden,
    d_weight,
    d_bias,
):
    """Go back through one tile of the output layer: the words low to high.

    With p the softmax and q the smoothed target, dz = scale ((1 + 2 penalty log Z) p - q), dU = dz^T f, df = dz U. The softmax's
    part goes through the matrix products, ``tile`` (B, TILE) being the exponentials and ``factors`` (B,) what turns them into
    dz's first term, applied to small matrices only; q is a sparse correction (``hit`` at the target) and a uniform one
    (``spread`` everywhere).
    Adds to ``d_hidden`` (B, H) the softmax's part only.
    """
    rows, size = hidden.shape
    width = high - low
    gemm(tile[:, :width], weight[low:high], product, False, False, 0.0)
    for i in range(rows):
        for j in range(size):
            d_hidden[i, j] += factors[i] * product[i, j]
    for i in range(rows):
        for j in range(size):
            product[i, j] = factors[i] * hidden[i, j]
    gemm(tile[:, :width], product, d_weight[low:high], True, False, beta)
    if beta == 0:
        clear(d_bias[low:high])
    for i in range(rows):
        factor = factors[i]
        for j in range(width):
            d_bias[low + j] += factor * tile[i, j]
    for i in range(rows):
        word = targets[i]
        if low <= word < high:
            d_bias[word] -= hit
            for j in range(size):
                d_weight[word, j] -= hit * hidden[i, j]
    if spread > 0:
        hidden_sum = product[0]
        clear(hidden_sum)
        for i in range(rows):
            for j in range(size):
                hidden_sum[j] += spread * hidden[i, j]
        for word in range(low, high):
            d_bias[word] -= spread * rows
            for j in range(size):
                d_weight[word, j] -= hidden_sum[j]


@njit
def finish_softmax(hidden, weight, bias, targets, highest, totals, penalty, scale, losses):
    """Fill losses (B,), and replace totals (tiles, B) by factors that make exponentials the first term of gradients of logits.

    hidden (B, H), weight (V, H), bias (V,), targets (B,); highest and totals (tiles, B) are those of `softmax_tiles`.
    """
    for i in range(len(targets)):
        normalizer = combine_tiles(highest, totals, i)
        losses[i] = normalizer - bias[targets[i]] - inner_product(hidden[i], weight[targets[i]])
        slope = scale * (1 + 2 * penalty * normalizer)
        for k in range(len(totals)):
            totals[k, i] = slope * np.exp(highest[k, i] - normalizer)


@njit
def sum_of_shares(partial, i, j):
    """Return number (i, j) of the sum of partial (threads, B, H), always added in the same order."""
    total = partial[0, i, j]
    for other in range(1, len(partial)):
        total += partial[other, i, j]
    return total


# A kernel's arguments are arrays and numbers, however many, because Numba compiles a loop over `prange` for nothing else.
@kernel(blas=True)
def output_gradients(
    hidden,
    weight,
    bias,
    targets,
    weight_sum,
    smoothing,
    penalty,
    scale,
    beta,
    tiles,
    highest,
    totals,
    products,
    partial,
    losses,
    d_hidden,
    d_weight,
    d_bias,
    threads,
):
    """Fill losses (B,) and the gradients of the output layer, from what `softmax_tiles` has computed.

    hidden (B, H), weight (V, H), bias (V,), targets (B,), weight_sum (H,), tiles (tiles, B, TILE), highest, totals (tiles, B);
    products and partial (threads, B, H) are scratch memory -> losses (B,), d_hidden (B, H), d_weight (V, H), d_bias (V,).
    """
    count, rows = highest.shape
    words, size = weight.shape
    hit = scale * (1 - smoothing)
    spread = scale * smoothing / words
    finish_softmax(hidden, weight, bias, targets, highest, totals, penalty, scale, losses)
    for t in prange(threads):
        first, last = share(count, threads, t)
        for i in range(rows):
            clear(partial[t, i])
        for k in range(first, last):
            low, high = k * TILE, min((k + 1) * TILE, words)
            tile_gradients(
                hidden,
                weight,
                targets,
                low,
                high,
                tiles[k],
                totals[k],
                hit,
                spread,
                beta,
                products[t],
                partial[t],
                d_weight,
                d_bias,
            )
    for t in prange(threads):
        low, high = share(rows, threads, t)
        for i in range(low, high):
            for j in range(size):
                d_hidden[i, j] = sum_of_shares(partial, i, j) - hit * weight[targets[i], j] - spread * weight_sum[j]


@njit(fastmath={"contract"})
def noise_row(row, bias, noise, losses, width):
    """Replace a row of products by noise sigmoid(s), s being product + bias, and fill ``losses`` with noise log(1 + e^s)."""
    one = row.dtype.type(1)
    for j in range(width):
        s = row[j] + bias[j]
        e = exp(-abs(s))
        row[j] = noise[j] * (one if s > 0 else e) / (one + e)
        losses[j] = noise[j] * ((s if s > 0 else row.dtype.type(0)) + log1p(e))


@njit
def noise_tile(tile, bias, targets, noise, low, scale, losses, d_bias):
    """Turn a tile of scores (B, TILE), without bias, into the gradients of noise contrast, and add these to d_bias (W,).

    bias and noise (W,) are those of the tile's words, of which ``low`` is the first, targets (B,) -> losses (B,), added to.
    """
    # With s the scores, a the draws of a word and t a row's target, ds = scale (a sigmoid(s) - [word = t] sigmoid(-s)).
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
    products,
    partial,
    losses,
    d_hidden,
    d_weight,
    d_bias,
    threads,
):
    """Fill losses (B,) and the gradients of noise-contrastive estimation.

    hidden (B, H), weight (V, H), bias (V,), targets (B,), noise (V,); tiles (threads, B, TILE), products and partial
    (threads, B, H) are scratch memory -> losses (B,), d_hidden (B, H), d_weight (V, H), d_bias (V,).
    """
    rows, size = hidden.shape
    words = weight.shape[0]
    summed = np.zeros((threads, rows))
    for t in prange(threads):
        tile, product = tiles[t], products[t]
        for i in range(rows):
            clear(partial[t, i])
        first, last = share((words + TILE - 1) // TILE, threads, t)
        for k in range(first, last):
            low, high = k * TILE, min((k + 1) * TILE, words)
            width = high - low
            gemm(hidden, weight[low:high], tile[:, :width], False, True, 0.0)
            if beta == 0:
                clear(d_bias[low:high])
            noise_tile(tile, bias[low:high], targets, noise[low:high], low, scale, summed[t], d_bias[low:high])
            gemm(tile[:, :width], weight[low:high], product, False, False, 0.0)
            for i in range(rows):
                for j in range(size):
                    partial[t, i, j] += product[i, j]
            gemm(tile[:, :width], hidden, d_weight[low:high], True, False, beta)
    for t in prange(threads):
        low, high = share(rows, threads, t)
        for i in range(low, high):
            loss = summed[0, i]
            for other in range(1, threads):
                loss += summed[other, i]
            losses[i] = loss
            for j in range(size):
                d_hidden[i, j] = sum_of_shares(partial, i, j)


@kernel()
def unit_losses(code, scores, targets, scale, losses, d_scores, threads):
    """Fill losses (B,) and d_scores (B, O) of scores and targets (B, O), with the loss ``UNIT_LOSSES[code]``."""
    for t in prange(threads):
        low, high = share(len(scores), threads, t)
        for i in range(low, high):
            total = 0.0
            for j in range(scores.shape[1]):
                total += unit_loss(code, scores[i, j], targets[i, j])
                d_scores[i, j] = scale * unit_loss_slope(code, scores[i, j], targets[i, j])
            losses[i] = total


@njit
def normalize_logits(row, bias, piece):
    """Turn a row of products (V,) into log-probabilities; ``piece`` (TILE,) is scratch."""
    words = len(row)
    highest = add_bias_and_max(row, bias, words)
    total = 0.0
    for low in range(0, words, TILE):
        width = min(TILE, words - low)
        piece[:width] = row[low : low + width]
        subtract_and_exp(piece, highest, width)
        total += sum_row(piece, width)
    normalizer = highest + row.dtype.type(np.log(total))
    for j in range(words):
        row[j] -= normalizer


@kernel(blas=True)
def log_probabilities(hidden, weight, bias, results, threads):
    """Fill results (B, V) with the log-probabilities of hidden (B, H), weight (V, H), bias (V,)."""
    words = weight.shape[0]
    for t in prange(threads):
        low, high = share(words, threads, t)
        multiply(hidden, weight[low:high], results[:, low:high])
    for t in prange(threads):
        low, high = share(hidden.shape[0], threads, t)
        piece = np.empty(TILE, bias.dtype)
        for i in range(low, high):
            normalize_logits(results[i], bias, piece)


@kernel(fastmath=REORDER)
def sum_of_squares(values, totals, threads):
    """Fill totals (threads,) with the sums of squares of the shares of values (N,)."""
    for t in prange(threads):
        part = portion(values, threads, t)
        total = 0.0
        for i in range(len(part)):
            total += part[i] * part[i]
        totals[t] = total


@kernel()
def add_penalty(weight, gradient, l1, l2, threads):
    """Add `penalty_slope` of weight (N,) to gradient (N,)."""
    for t in prange(threads):
        w, g = portion(weight, threads, t), portion(gradient, threads, t)
        for i in range(len(w)):
            g[i] += penalty_slope(w[i], l1, l2)


@kernel()
def momentum_step(weight, gradient, velocity, scale, l2, rate, momentum, nesterov, threads):
    """Update weight and velocity (N,) by `momentum_update` with gradient (N,)."""
    for t in prange(threads):
        w, g, v = portion(weight, threads, t), portion(gradient, threads, t), portion(velocity, threads, t)
        for i in range(len(w)):
            w[i], v[i] = momentum_update(w[i], scale * g[i] + l2 * w[i], v[i], rate, momentum, nesterov)


@kernel()
def adagrad_step(weight, gradient, total, scale, l2, rate, epsilon, threads):
    """Update weight and total (N,) by `adagrad_update` with gradient (N,)."""
    for t in prange(threads):
        w, g, v = portion(weight, threads, t), portion(gradient, threads, t), portion(total, threads, t)
        for i in range(len(w)):
            w[i], v[i] = adagrad_update(w[i], scale * g[i] + l2 * w[i], v[i], rate, epsilon)


@kernel()
def rmsprop_step(weight, gradient, mean, scale, l2, rate, decay, epsilon, threads):
    """Update weight and mean (N,) by `rmsprop_update` with gradient (N,)."""
    for t in prange(threads):
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
):
    """Update weight and the moments first and second (N,) by `adam_update` with gradient (N,)."""
    for t in prange(threads):
        w, g = portion(weight, threads, t), portion(gradient, threads, t)
        m, v = portion(first, threads, t), portion(second, threads, t)
        for i in range(len(w)):
            w[i], m[i], v[i] = adam_update(
                keep * w[i], scale * g[i] + l2 * w[i], m[i], v[i], rate, beta1, beta2, epsilon, correction1, correction2
            )


@kernel()
def adam_catch_up(weight, first, second, idle, keeps, rate, beta1, beta2, epsilon, correction1, correction2, threads):
    """Move weight, first and second (R, m) by the steps idle (R,) that rows have missed; keeps (R,) is their decay."""
    one = weight.dtype.type(1)
    for t in prange(threads):
        low, high = share(weight.shape[0], threads, t)
        for i in range(low, high):
            if idle[i] > 0:
                kept1, kept2 = beta1 ** idle[i], beta2 ** idle[i]
                scale = rate * correction1 * beta1 * (one - kept1) / (one - beta1)
                for j in range(weight.shape[1]):
                    move = scale * first[i, j] / (np.sqrt(second[i, j] * correction2) + epsilon)
                    weight[i, j] = keeps[i] * weight[i, j] - move
                    first[i, j] *= kept1
                    second[i, j] *= kept2
