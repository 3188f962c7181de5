"""The kernels of fast scoring."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import prange

from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import activate_row, clear, inner_product
from fflm.compiling import compiled, inner
from fflm.instructions import (
    CACHE_LINE,
    LANES,
    add_lanes,
    add_relu_products,
    lanes_at,
    prefetch,
    store_lanes,
    subtract_lanes,
    sum_products,
    zero_products,
)
from fflm.text.kernels import encode_lines

_LINE = np.uint64(CACHE_LINE)  # an unsigned step of a range of offsets
_LANES = np.uint64(2 * LANES)  # bytes
_PIECE = 256  # number of words of a text that are scored together


class FastTables(NamedTuple):
    """What the kernels of fast scoring read, as `FastScorer` describes it: K averages, n words of a window, H hidden units.

    H is rounded up to a multiple of `LANES`; numbers of units that do not exist are 0.

    Attributes
    ----------
    padding, end
        The word that fills contexts before a text and, if ``end`` is a word and not -1, up to the last one before.
    borders
        (K + 1,), int64: the averages are of the words ``borders[k]`` to ``borders[k + 1]`` of a context, the oldest first.
    tables
        (V + 1, K + n + 1, H), int16.
    integers
        Whether hidden units are computed in integers: then the activation is ReLU, sums over the window and over the averages
        have the same units, and the bias is one of them.
    bias_sum
        (H,), int16: the bias if ``integers``, otherwise 0.
    units, average_units, output_units
        (H,): unless ``integers``, the values of the integer 1 in sums over the window, in sums over the averages, and in output
        weights.
    bias
        (H,), used unless ``integers``.
    activation, slope
        The code of the activation, and its parameter.
    output_scales
        (V,): if ``integers``, the value of the integer 1 in products of hidden units and a word's output weights.
    output_bias
        (V,).
    """

    padding: int
    end: int
    borders: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int16]
    integers: bool
    bias_sum: npt.NDArray[np.int16]
    units: npt.NDArray[np.floating]
    average_units: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating]
    activation: int
    slope: float
    output_units: npt.NDArray[np.floating]
    output_scales: npt.NDArray[np.floating]
    output_bias: npt.NDArray[np.floating]


class Scratch(NamedTuple):
    """Memory of `score_piece`.

    Attributes
    ----------
    total, padding_total
        (H,) int32: the sum over the averages of a context, and of one that is all padding.
    sums, padding_sums
        (H,) int16: if hidden units are computed in integers, the same with the bias, otherwise the sum over the window.
    hidden
        (H,): the hidden units.
    """

    total: npt.NDArray[np.int32]
    padding_total: npt.NDArray[np.int32]
    sums: npt.NDArray[np.int16]
    padding_sums: npt.NDArray[np.int16]
    hidden: npt.NDArray[np.floating]


@inner()
def make_scratch(model, beginnings):
    """Return `Scratch` memory for a model; the sums over contexts that are all padding are valid if ``beginnings`` is true."""
    size, borders = model.tables.shape[2], model.borders
    padding_total, padding_sums = np.zeros(size, np.int32), model.bias_sum.copy()
    for k in range(len(borders) - 1 if beginnings else 0):
        for j in range(size):
            padding_total[j] += (borders[k + 1] - borders[k]) * model.tables[model.padding, k, j]
    for j in range(size):
        padding_sums[j] += padding_total[j]
    return Scratch(
        np.empty(size, np.int32), padding_total, np.empty(size, np.int16), padding_sums, np.empty(size, model.bias.dtype)
    )


@inner()
def score_range(ids, start, low, high, model, losses, scratch):
    """Score the words ``low`` to ``high`` of a text (N,): model `FastTables` -> losses (N - start,).

    Words before ``low`` are only context; ``start`` is the word of the first loss.
    """
    context = model.borders[-1] + model.tables.shape[1] - len(model.borders)
    words = np.empty(context + _PIECE, np.int32)
    while low < high:
        first = low  # of the words that the next word's context may have
        while first > 0 and first > low - context and ids[first - 1] != model.end:
            first -= 1
        for i in range(low - context, first):
            words[i - low + context] = model.padding
        stop = min(low + _PIECE, high)
        for i in range(first, stop):
            words[i - low + context] = ids[i]
            if i >= low and ids[i] == model.end:
                stop = i + 1
                break
        score_piece(words[: stop - low + context], first < low, model, scratch, losses[low - start :])
        low = stop


@inner()
def score_piece(words, known, model, scratch, losses):
    """Score words (C + M,), the first C of which are the context of the first that is scored: losses (M,).

    The words of that context are all padding unless ``known``.
    """
    tables, borders, total, sums = model.tables, model.borders, scratch.total, scratch.sums
    averages, window = len(borders) - 1, tables.shape[1] - len(borders)
    context = borders[-1] + window
    begin_averages(words, known, model, scratch)
    for i in range(context, len(words)):
        if i + 1 < len(words):  # the next word's row is somewhere else, and mostly not in a cache
            size = np.uint64(2 * tables.shape[1] * tables.shape[2])
            row = np.uint64(words[i + 1]) * size
            for offset in range(row, row + size, _LINE):
                prefetch(tables, offset)
        if model.integers:
            losses[i - context] = relu_loss(words[i - window : i + 1], sums, model)
        else:
            add_window(words[i - window : i], model, sums)
            losses[i - context] = loss_of(words[i], sums, total, model, scratch.hidden)
        for k in range(averages if i + 1 < len(words) else 0):
            leaving, entering = words[i - context + borders[k]], words[i - context + borders[k + 1]]
            if leaving != entering and model.integers:
                exchange_lanes(tables, row_of(leaving, k, tables), row_of(entering, k, tables), sums)
            elif leaving != entering:
                exchange(tables[leaving, k], tables[entering, k], total)


@inner()
def begin_averages(words, known, model, scratch):
    """Set the sum over the averages (H,) of the first context in words (C + M,); it is all padding unless ``known``."""
    tables, borders, total, sums = model.tables, model.borders, scratch.total, scratch.sums
    averages = len(borders) - 1
    if not known:
        for j in range(len(sums)):
            sums[j], total[j] = scratch.padding_sums[j], scratch.padding_total[j]
    elif model.integers:
        for j in range(np.uint64(0), np.uint64(sums.nbytes), _LANES):
            lanes = lanes_at(model.bias_sum, j)
            for k in range(averages):
                for i in range(borders[k], borders[k + 1]):
                    lanes = add_lanes(lanes, lanes_at(tables, row_of(words[i], k, tables) + j))
            store_lanes(sums, j, lanes)
    else:
        clear(total)
        for k in range(averages):
            for i in range(borders[k], borders[k + 1]):
                add(tables[words[i], k], total)


@inner()
def add(row, total):
    """Add a row of a table (H,) to sums (H,)."""
    for j in range(len(total)):
        total[j] += row[j]


@inner()
def exchange(leaving, entering, total):
    """Take a row of a table (H,) from sums (H,), and add another."""
    for j in range(len(total)):
        total[j] += np.int32(entering[j]) - np.int32(leaving[j])


@inner()
def exchange_lanes(tables, leaving, entering, sums):
    """Take a row of tables from sums (H,), int16, and add another; the rows are given by their offsets in bytes."""
    for j in range(np.uint64(0), np.uint64(sums.nbytes), _LANES):
        lanes = subtract_lanes(lanes_at(sums, j), lanes_at(tables, leaving + j))
        store_lanes(sums, j, add_lanes(lanes, lanes_at(tables, entering + j)))


@inner()
def row_of(word, k, tables):
    """Return the offset of row k of a word in tables (V + 1, K + n + 1, H), bytes."""
    return (np.uint64(word) * np.uint64(tables.shape[1]) + np.uint64(k)) * np.uint64(2 * tables.shape[2])


@inner()
def window_lanes(words, tables, averages, window, lanes, j):
    """Return `Lanes` plus the contributions of a window's words (n,), the oldest first, j bytes into a row."""
    block = np.uint64(2 * tables.shape[2])  # bytes
    offset = np.uint64(averages) * block + j
    for k in range(window):
        row = np.uint64(words[np.uint64(k)]) * (block * np.uint64(tables.shape[1]))
        lanes = add_lanes(lanes, lanes_at(tables, row + offset))
        offset += block
    return lanes


@inner()
def add_window(words, model, sums):
    """Set sums (H,) to the contributions of a window's words (n,), the oldest first."""
    clear(sums)
    for j in range(np.uint64(0), np.uint64(sums.nbytes), _LANES):
        store_lanes(sums, j, window_lanes(words, model.tables, len(model.borders) - 1, len(words), lanes_at(sums, j), j))


@inner()
def relu_loss(words, sums, model):
    """Return -log of a word's unnormalized probability, given a window and the word (n + 1,) and sums of averages (H,)."""
    tables, averages, window = model.tables, len(model.borders) - 1, len(words) - 1
    word, products = words[window], zero_products()
    weights = row_of(word, averages + window, tables)
    for j in range(np.uint64(0), np.uint64(sums.nbytes), _LANES):
        lanes = window_lanes(words, tables, averages, window, lanes_at(sums, j), j)
        products = add_relu_products(products, lanes, lanes_at(tables, weights + j))
    return -sum_products(products) * model.output_scales[word] - model.output_bias[word]


@inner()
def loss_of(word, window_sum, average_sum, model, hidden):
    """Return -log of a word's unnormalized probability, given the sums (H,) over its context; ``hidden`` (H,) is scratch."""
    units, average_units, bias, output_units = model.units, model.average_units, model.bias, model.output_units
    for j in range(len(hidden)):
        hidden[j] = bias.dtype.type(window_sum[j]) * units[j] + bias.dtype.type(average_sum[j]) * average_units[j] + bias[j]
    activate_row(model.activation, bias.dtype.type(model.slope), hidden)
    for j in range(len(hidden)):
        hidden[j] *= output_units[j]
    return -inner_product(hidden, model.tables[word, -1]) - model.output_bias[word]


@kernel()
def score_words(ids, start, losses, model, threads):
    """Score a text (N,) with `FastTables`: losses (N - start,), nats, of the words from ``start`` on."""
    padding, end, borders, tables, integers, bias_sum, units = model[:7]
    average_units, bias, code, slope, output_units, output_scales, output_bias = model[7:]
    for t in prange(threads):  # a parallel loop takes no tuple from outside
        sums = integers, bias_sum, units, average_units, bias
        outputs = output_units, output_scales, output_bias
        own = FastTables(padding, end, borders, tables, *sums, code, slope, *outputs)
        low, high = share(len(losses), threads, t)
        score_range(ids, start, start + low, start + high, own, losses, make_scratch(own, True))


@compiled()
def score_encoded(ids, line_borders, model):
    """Score lines as texts: ids (N,), where each begins (L + 1,), packed `FastTables` -> log p of lines (L,), nats."""
    tables, scores, scratch = model.content, np.empty(len(line_borders) - 1), make_scratch(model.content, True)
    losses = np.empty(len(ids), np.float32)
    for line in range(len(scores)):
        low, high = line_borders[line], line_borders[line + 1]
        own = losses[low:high]
        score_range(ids[low:high], 0, 0, high - low, tables, own, scratch)
        scores[line] = -total_of(own)
    return scores


@inner()
def total_of(losses):
    """Return the sum of losses (N,) in double precision."""
    total = 0.0
    for i in range(len(losses)):
        total += losses[i]
    return total


@compiled()
def score_lines(text, pieces, model):
    """Score lines: a text and pieces, as `encode_lines` takes them, and packed `FastTables`.

    Returns log p of lines (L,), nats, and whether all pieces are known; if not, the scores mean nothing.
    """
    ids, borders, known = encode_lines(text, pieces)
    return score_encoded(ids, borders if known else borders[:1], model), known


@compiled()
def score_after(context, word, after, model):
    """Return the loss of a word after a context (n,), the newest word first, as `score_words` computes it.

    ``after`` (n,), which may be ``context`` itself, becomes the context of the next word; so ``padding`` after the word ``end``.
    ``model`` is `FastTables`, packed.
    """
    tables = model.content
    words, losses = np.empty(len(context) + 1, np.int32), np.empty(1, np.float32)
    for k in range(len(context)):
        words[len(context) - 1 - k] = context[k]
    words[len(context)] = word
    score_piece(words, True, tables, make_scratch(tables, False), losses)
    for k in range(len(context) - 1, 0, -1):
        after[k] = tables.padding if word == tables.end else context[k - 1]
    after[0] = tables.padding if word == tables.end else word
    return losses[0]
