"""The kernels of fast scoring."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import activate_row, clear, inner_product
from fflm.compiling import compiled
from fflm.text.kernels import encode_lines

CACHE_LINE = np.uint64(64)
"""Bytes that come into the cache together, on most processors."""


@intrinsic
def prefetch(context, array, offset):  # type: ignore[no-untyped-def]
    """Let the processor fetch what is ``offset`` bytes into a contiguous array, while it does something else."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        values = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(builder.bitcast(values.data, cgutils.voidptr_t), [arguments[1]])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        routine = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(routine, [address, flag(0), flag(3), flag(1)])  # to read, to be kept, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), call


@njit
def add(row, total):
    """Add a row of a table (H,) to sums (H,)."""
    for j in range(len(total)):
        total[j] += row[j]


@njit
def subtract(row, total):
    """Take a row of a table (H,) from sums (H,)."""
    for j in range(len(total)):
        total[j] -= row[j]


class FastTables(NamedTuple):
    """What the kernels of fast scoring read, as `FastScorer` describes it: K averages, n words of a window, H hidden units.

    Attributes
    ----------
    padding, end
        The word that fills contexts before a text and, if ``end`` is a word and not -1, up to the last one before.
    borders
        (K + 1,), int64: the averages are of the words ``borders[k]`` to ``borders[k + 1]`` of a context, the oldest first.
    tables
        (V + 1, K + n + 1, H), int16.
    padding_sums
        (n, H), int16: what padding contributes to the first places of a text.
    units, average_units, output_units
        (H,): the values of the integer 1 in sums over the window, in sums over the averages, and in output weights.
    bias
        (H,).
    activation, slope
        The code of the activation, and its parameter.
    output_bias
        (V,).
    """

    padding: int
    end: int
    borders: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int16]
    padding_sums: npt.NDArray[np.int16]
    units: npt.NDArray[np.floating]
    average_units: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating]
    activation: int
    slope: float
    output_units: npt.NDArray[np.floating]
    output_bias: npt.NDArray[np.floating]


@njit
def score_range(ids, start, low, high, model, losses):
    """Score the words ``low`` to ``high`` of a text (N,): model `FastTables` -> losses (N - start,).

    Words before ``low`` are only context; ``start`` is the word of the first loss.
    """
    tables, borders, bias, started = model.tables, model.borders, model.bias, model.padding_sums
    averages, window, size = len(borders) - 1, len(started), len(bias)
    context = borders[-1] + window
    # What the words before a place contribute to it: those of its window, a row of `sums` for each of the places next
    # (`place` is the row of the present one, after the last row comes the first), and those of the averages together.
    sums, total, hidden = np.empty_like(started), np.empty(size, np.int32), np.empty(size, bias.dtype)
    first = max(0, low - context)  # of the words that a context may see
    begins = True
    place = 0
    for i in range(first, high):
        if begins:
            for d in range(window):  # `sums[:] = started` takes seconds to compile
                for j in range(size):
                    sums[d, j] = started[d, j]
            for j in range(size):
                total[j] = 0
                for k in range(averages):
                    total[j] += (borders[k + 1] - borders[k]) * tables[model.padding, k, j]
            place, begins = 0, False
        word = tables[ids[i]]
        if i + 1 < high:  # the next word's row is somewhere else, and mostly not in a cache
            for offset in range(np.uint64(0), np.uint64(word.nbytes), CACHE_LINE):
                prefetch(tables[ids[i + 1]], offset)
        if i >= low:
            losses[i - start] = loss_of(ids[i], sums[place], total, model, hidden)
        if ids[i] == model.end:
            first, begins = i + 1, True
            continue
        clear(sums[place])
        for k in range(1, window + 1):  # the word stands k before the place k ahead; the last before it is the window's last
            place = place + 1 if place + 1 < window else 0
            add(word[averages + window - k], sums[place])
        place = place + 1 if place + 1 < window else 0
        for k in range(averages):
            leaving, entering = i - context + borders[k], i - context + borders[k + 1]
            subtract(tables[ids[leaving] if leaving >= first else model.padding, k], total)
            add(tables[ids[entering] if entering >= first else model.padding, k], total)


@njit
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
    padding, end, borders, tables, sums, units, average_units, bias, activation, slope, output_units, output_bias = model
    for t in prange(threads):  # a parallel loop takes no tuple from outside
        own = FastTables(
            padding, end, borders, tables, sums, units, average_units, bias, activation, slope, output_units, output_bias
        )
        low, high = share(len(losses), threads, t)
        score_range(ids, start, start + low, start + high, own, losses)


@compiled()
def score_encoded(ids, line_borders, model):
    """Score lines as texts: ids (N,), where each begins (L + 1,), packed `FastTables` -> log p of lines (L,), nats."""
    tables, scores = model.content, np.empty(len(line_borders) - 1)
    losses = np.empty(len(ids), np.float32)
    for line in range(len(scores)):
        low, high = line_borders[line], line_borders[line + 1]
        own = losses[low:high]
        score_range(ids[low:high], 0, 0, high - low, tables, own)
        scores[line] = -total_of(own)
    return scores


@njit
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
    rows, borders = tables.tables, tables.borders
    averages, window, size = len(borders) - 1, len(tables.padding_sums), len(tables.bias)
    sums, total, hidden = np.zeros(size, np.int16), np.zeros(size, np.int32), np.empty(size, tables.bias.dtype)
    for k in range(window):
        add(rows[context[k], averages + window - 1 - k], sums)
    for k in range(averages):
        for i in range(borders[k], borders[k + 1]):  # the oldest words are those of the first average
            add(rows[context[len(context) - 1 - i], k], total)
    for k in range(len(context) - 1, 0, -1):
        after[k] = tables.padding if word == tables.end else context[k - 1]
    after[0] = tables.padding if word == tables.end else word
    return loss_of(word, sums, total, tables, hidden)
