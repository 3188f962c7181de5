"""The kernels of fast scoring."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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
from fflm.models.line_kernels import line_scorer

_LINE = np.uint64(CACHE_LINE)  # an unsigned step of a range of offsets
_LANES = np.uint64(2 * LANES)  # bytes
_ONE = np.uint64(1)
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
        (V + 1, K + n + 1, H), int16 or int8.
    integers
        Whether hidden units are computed in integers: then the activation is ReLU, sums over the window and over the averages
        have the same units, and the bias is one of them.
    bias_sum
        (H,), int16: the bias if ``integers``, otherwise 0.
    padding_total, padding_sums
        (H,), int32 and int16: the sums over the averages of a context that is all padding, and these plus ``bias_sum``. The sums
        are 0, except in tables that earlier versions have stored.
    units, average_units, output_units
        (H,): unless ``integers``, the values of the integer 1 in sums over the window, in sums over the averages, and in output
        weights.
    bias
        (H,), used unless ``integers``.
    activation, slope
        The code of the activation, and its parameter.
    outputs
        (V, 2): of each word the value of the integer 1 in products of hidden units and its output weights, and its output bias.
    """

    padding: int
    end: int
    borders: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int16] | npt.NDArray[np.int8]
    integers: bool
    bias_sum: npt.NDArray[np.int16]
    padding_total: npt.NDArray[np.int32]
    padding_sums: npt.NDArray[np.int16]
    units: npt.NDArray[np.floating]
    average_units: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating]
    activation: int
    slope: float
    output_units: npt.NDArray[np.floating]
    outputs: npt.NDArray[np.floating]


@inner()
def score_ids(ids, begin, borders, model, losses):
    """Score lines of ids (N,) as texts: model `FastTables` -> losses (N,), nats, of the words of lines.

    ``borders`` (L + 1,) are where each line begins, and where the last ends. The words from ``begin`` to the first line are only
    context.
    """
    tables, averages, outputs = model.tables, model.borders, model.outputs
    context = averages[-1] + tables.shape[1] - len(averages)
    places = np.zeros(context + _PIECE + 1, np.uint64)
    padding_sums, padding_total = model.padding_sums, model.padding_total
    sums, total = np.empty_like(padding_sums), np.empty_like(padding_total)
    for line in range(len(borders) - 1):
        low, high = borders[line], borders[line + 1]
        while low < high:
            first = low  # of the words that the next word's context may have
            while first > begin and first > low - context and ids[first - 1] != model.end:
                first -= 1
            for i in range(low - context, low):
                places[i - low + context] = place_of(ids[i] if i >= first else model.padding, tables)
            stop = low
            while stop < min(low + _PIECE, high) and (stop == low or ids[stop - 1] != model.end):
                places[stop - low + context] = place_of(ids[stop], tables)
                stop += 1
            if stop < len(ids):  # the word after these is only prefetched
                places[stop - low + context] = place_of(ids[stop], tables)
            if first < low:
                sum_averages(places, model, sums, total)
            else:
                for j in range(len(sums)):
                    sums[j], total[j] = padding_sums[j], padding_total[j]
            if model.integers:
                score_relu(places, ids, low, stop, tables, averages, outputs, sums, losses)
            else:
                score_activations(places, ids, low, stop, model, sums, total, losses)
            low = stop
        begin = high


@inner()
def place_of(word, tables):
    """Return where the rows of a word begin in tables (V + 1, K + n + 1, H), as an offset in bytes."""
    return np.uint64(word) * np.uint64(tables.itemsize * tables.shape[1] * tables.shape[2])


@inner()
def prefetch_rows(tables, place):
    """Prefetch the rows of a word from tables (V + 1, K + n + 1, H)."""
    for offset in range(place, place + place_of(1, tables), _LINE):
        prefetch(tables, offset)


@inner()
def sum_averages(places, model, sums, total):
    """Set sums (H,), 16 bits, if hidden units are computed in integers, to the bias plus the sums over the averages of a context.

    Otherwise set total (H,), 32 bits, to the sums over the averages. The context begins ``places``.
    """
    tables, borders = model.tables, model.borders
    for j in range(len(sums)):
        sums[j], total[j] = model.bias_sum[j], 0
    for k in range(len(borders) - 1):
        for i in range(borders[k], borders[k + 1]):
            row = tables[places[i] // place_of(1, tables), k]
            if model.integers:
                add(row, sums)
            else:
                add(row, total)


@inner()
def add(row, sums):
    """Add a row of a table (H,) to sums (H,), of 16 or 32 bits."""
    for j in range(len(sums)):
        sums[j] += row[j]


@inner()
def exchange(leaving, entering, total):
    """Take a row of a table (H,) from sums (H,), and add another."""
    for j in range(len(total)):
        total[j] += np.int32(entering[j]) - np.int32(leaving[j])


# This function has arrays as arguments and makes no views of them: to count references would take longer than to score a word.
@inner()
def score_relu(places, ids, low, high, tables, borders, outputs, sums, losses):
    """Score the words ``low`` to ``high`` of a text in integers, as `score_ids` does: ids (N,) -> losses (N,).

    places (C + high - low + 1,) are those of the C words before, of these words, and of the next one; sums (H,) are those over
    the averages of the first word's context.
    """
    size, averages = np.uint64(tables.itemsize), np.uint64(len(borders) - 1)
    block = size * np.uint64(tables.shape[2])
    window = np.uint64(tables.shape[1] - len(borders))
    context = np.uint64(borders[averages]) + window
    for i in range(np.uint64(high - low)):
        word = np.uint64(ids[np.uint64(low) + i])
        prefetch_rows(tables, places[context + i + _ONE])  # it is somewhere else, and mostly not in a cache
        products = zero_products()
        for j in range(np.uint64(0), np.uint64(sums.nbytes), _LANES):
            own = j * size >> _ONE  # the same numbers in a row of the table
            lanes, row = lanes_at(sums, j), own
            if i:  # the context moves on by a word
                for k in range(averages):
                    leaving, entering = places[i - _ONE + np.uint64(borders[k])], places[i - _ONE + np.uint64(borders[k + _ONE])]
                    if leaving != entering:
                        lanes = subtract_lanes(lanes, lanes_at(tables, leaving + row))
                        lanes = add_lanes(lanes, lanes_at(tables, entering + row))
                    row += block
                store_lanes(sums, j, lanes)
            row = averages * block + own
            for k in range(context + i - window, context + i):
                lanes = add_lanes(lanes, lanes_at(tables, places[k] + row))
                row += block
            products = add_relu_products(products, lanes, lanes_at(tables, places[context + i] + row))
        losses[np.uint64(low) + i] = -sum_products(products) * outputs[word, 0] - outputs[word, 1]


@inner()
def score_activations(places, ids, low, high, model, sums, total, losses):
    """Score words as `score_relu` does, with any activation function: sums (H,) is scratch, total (H,) over the averages."""
    tables, borders, hidden = model.tables, model.borders, np.empty(len(sums), model.bias.dtype)
    averages, window = len(borders) - 1, tables.shape[1] - len(borders)
    context, size = borders[-1] + window, place_of(1, tables)
    for i in range(high - low):
        prefetch_rows(tables, places[context + i + 1])
        sum_window(places[i : context + i], tables, averages, window, sums)
        losses[low + i] = loss_of(ids[low + i], sums, total, model, hidden)
        for k in range(averages):
            leaving, entering = places[i + borders[k]], places[i + borders[k + 1]]
            if leaving != entering:
                exchange(tables[leaving // size, k], tables[entering // size, k], total)


@inner()
def sum_window(places, tables, averages, window, sums):
    """Set sums (H,) to the contributions of a window, the last ``window`` of the words of a context at places (C,)."""
    clear(sums)
    for j in range(np.uint64(0), np.uint64(sums.nbytes), _LANES):
        size = np.uint64(tables.itemsize)
        lanes, row = lanes_at(sums, j), size * np.uint64(averages * tables.shape[2]) + (j * size >> _ONE)
        for k in range(np.uint64(len(places) - window), np.uint64(len(places))):
            lanes = add_lanes(lanes, lanes_at(tables, places[k] + row))
            row += size * np.uint64(tables.shape[2])
        store_lanes(sums, j, lanes)


@inner()
def loss_of(word, window_sum, average_sum, model, hidden):
    """Return -log of a word's unnormalized probability, given the sums (H,) over its context; ``hidden`` (H,) is scratch."""
    units, average_units, bias, output_units = model.units, model.average_units, model.bias, model.output_units
    for j in range(len(hidden)):
        hidden[j] = bias.dtype.type(window_sum[j]) * units[j] + bias.dtype.type(average_sum[j]) * average_units[j] + bias[j]
    activate_row(model.activation, bias.dtype.type(model.slope), hidden)
    for j in range(len(hidden)):
        hidden[j] *= output_units[j]
    return -inner_product(hidden, model.tables[word, -1]) * model.outputs[word, 0] - model.outputs[word, 1]


@kernel()
def score_words(ids, start, losses, model, threads, t):
    """Score a text (N,) with `FastTables`: losses (N,), nats, of the words from ``start`` on."""
    low, high = share(len(ids) - start, threads, t)
    score_ids(ids, 0, np.array([start + low, start + high]), model, losses)


@compiled()
def losses_of_lines(ids, borders, model):
    """Score lines as texts: ids (N,), where each begins (L + 1,), packed `FastTables` -> losses of their words (N,), nats."""
    losses = np.empty(len(ids), np.float32)
    score_ids(ids, 0, borders, model.content, losses)
    return losses


score_lines = line_scorer("fast_lines", losses_of_lines)


@compiled()
def score_after(context, word, after, model):
    """Return the loss of a word after a context (n,), the newest word first, as `score_words` computes it.

    ``after`` (n,), which may be ``context`` itself, becomes the context of the next word; so ``padding`` after the word ``end``.
    ``model`` is `FastTables`, packed.
    """
    tables = model.content
    words, losses = np.empty(len(context) + 1, np.int32), np.empty(len(context) + 1, np.float32)
    for k in range(len(context)):
        words[len(context) - 1 - k] = context[k]
    words[len(context)] = word
    score_ids(words, 0, np.array([len(context), len(words)]), tables, losses)
    for k in range(len(context) - 1, 0, -1):
        after[k] = tables.padding if word == tables.end else context[k - 1]
    after[0] = tables.padding if word == tables.end else word
    return losses[-1]
