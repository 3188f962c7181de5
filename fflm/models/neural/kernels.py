"""The kernels of fast scoring."""

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import activate_row, clear, inner_product
from fflm.compiling import compiled

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


@njit
def score_range(
    ids,
    start,
    low,
    high,
    padding,
    end,
    borders,
    tables,
    started,
    units,
    average_units,
    bias,
    code,
    gamma,
    output_units,
    output_bias,
    losses,
):
    """Score the words ``low`` to ``high`` of a text (N,), as `score_words` does: losses (N - start,)."""
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
                    total[j] += (borders[k + 1] - borders[k]) * tables[padding, k, j]
            place, begins = 0, False
        word = tables[ids[i]]
        if i + 1 < high:  # the next word's row is somewhere else, and mostly not in a cache
            for offset in range(np.uint64(0), np.uint64(word.nbytes), CACHE_LINE):
                prefetch(tables[ids[i + 1]], offset)
        if i >= low:
            for j in range(size):
                window_sum, average_sum = bias.dtype.type(sums[place, j]), bias.dtype.type(total[j])
                hidden[j] = window_sum * units[j] + average_sum * average_units[j] + bias[j]
            losses[i - start] = output_loss(ids[i], hidden, tables, code, gamma, output_units, output_bias)
        if ids[i] == end:
            first, begins = i + 1, True
            continue
        clear(sums[place])
        for k in range(1, window + 1):  # the word stands k before the place k ahead; the last before it is the window's last
            place = place + 1 if place + 1 < window else 0
            add(word[averages + window - k], sums[place])
        place = place + 1 if place + 1 < window else 0
        for k in range(averages):
            leaving, entering = i - context + borders[k], i - context + borders[k + 1]
            subtract(tables[ids[leaving] if leaving >= first else padding, k], total)
            add(tables[ids[entering] if entering >= first else padding, k], total)


@njit
def output_loss(word, hidden, tables, code, gamma, output_units, output_bias):
    """Return -log of a word's unnormalized probability, given the pre-activations (H,) of its context, which are overwritten.

    gamma  (1,)  in, the activation's parameter; an array, because Numba takes microseconds to recognize a NumPy number
    """
    activate_row(code, gamma[0], hidden)
    for j in range(len(hidden)):
        hidden[j] *= output_units[j]
    return -inner_product(hidden, tables[word, -1]) - output_bias[word]


@kernel()
def score_words(
    ids,
    start,
    losses,
    padding,
    end,
    borders,
    tables,
    started,
    units,
    average_units,
    bias,
    code,
    gamma,
    output_units,
    output_bias,
    threads,
):
    """Score a text; a context's word is ``padding`` before the text and, if ``end`` is a word, up to the last one before it."""
    for t in prange(threads):
        low, high = share(len(losses), threads, t)
        score_range(
            ids,
            start,
            start + low,
            start + high,
            padding,
            end,
            borders,
            tables,
            started,
            units,
            average_units,
            bias,
            code,
            gamma,
            output_units,
            output_bias,
            losses,
        )


@compiled()
def score_lines(
    ids,
    line_borders,
    losses,
    totals,
    padding,
    end,
    borders,
    tables,
    started,
    units,
    average_units,
    bias,
    code,
    gamma,
    output_units,
    output_bias,
):
    """Score lines as `score_words` scores texts: ids (N,), where each line begins (L + 1,) -> losses (N,), their sums (L,)."""
    for line in range(len(totals)):
        low, high = line_borders[line], line_borders[line + 1]
        own = losses[low:high]
        score_range(
            ids[low:high],
            0,
            0,
            high - low,
            padding,
            end,
            borders,
            tables,
            started,
            units,
            average_units,
            bias,
            code,
            gamma,
            output_units,
            output_bias,
            own,
        )
        totals[line] = total_of(own)


@njit
def total_of(losses):
    """Return the sum of losses (N,) in double precision."""
    total = 0.0
    for i in range(len(losses)):
        total += losses[i]
    return total


@compiled()
def score_after(
    context,
    word,
    after,
    padding,
    end,
    borders,
    tables,
    started,
    units,
    average_units,
    bias,
    code,
    gamma,
    output_units,
    output_bias,
):
    """Return the loss of a word after a context (n,), the newest word first, as `score_words` computes it.

    ``after`` (n,), which may be ``context`` itself, becomes the context of the next word; so ``padding`` after the word ``end``.
    """
    averages, window, size = len(borders) - 1, len(started), len(bias)
    sums, total, hidden = np.zeros(size, np.int16), np.zeros(size, np.int32), np.empty(size, bias.dtype)
    for k in range(window):
        add(tables[context[k], averages + window - 1 - k], sums)
    for k in range(averages):
        for i in range(borders[k], borders[k + 1]):  # the oldest words are those of the first average
            add(tables[context[len(context) - 1 - i], k], total)
    for j in range(size):
        hidden[j] = bias.dtype.type(sums[j]) * units[j] + bias.dtype.type(total[j]) * average_units[j] + bias[j]
    for k in range(len(context) - 1, 0, -1):
        after[k] = padding if word == end else context[k - 1]
    after[0] = padding if word == end else word
    return output_loss(word, hidden, tables, code, gamma, output_units, output_bias)


@compiled()
def line_contexts(ids, borders, padding, end, contexts):
    """Fill contexts (N, n), the oldest word first, of the words (N,) of lines, of which each begins at its border (L + 1,).

    A context's word is ``padding`` before the line and, if ``end`` is a word, up to the last one before it.
    """
    window = contexts.shape[1]
    for line in range(len(borders) - 1):
        first = borders[line]
        for i in range(borders[line], borders[line + 1]):
            for k in range(1, window + 1):
                contexts[i, window - k] = ids[i - k] if i - k >= first else padding
            if ids[i] == end:
                first = i + 1
