"""The kernels of fast scoring."""

import numpy as np
from numba import njit, prange

from fflm.backend.cpu import REORDER, activate_row, kernel, share


@njit(fastmath=REORDER)
def inner_product(hidden, row):
    """Return the inner product of hidden units (H,) and a row of integers (H,)."""
    total = hidden.dtype.type(0)
    for j in range(len(hidden)):
        total += hidden[j] * hidden.dtype.type(row[j])
    return total


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


@kernel()
def score_words(
    ids, start, padding, end, borders, tables, begun, units, average_units, bias, code, output_units, output_bias, losses,
    threads
):  # fmt: skip
    """Score a text; a context's word is ``padding`` before the text and, if ``end`` is a word, up to the last one before it."""
    averages, window, size = len(borders) - 1, len(begun), len(bias)
    context = borders[-1] + window
    for t in prange(threads):
        low, high = share(len(losses), threads, t)
        low, high = start + low, start + high
        # What the words before a place contribute to it: those of its window, a row of `sums` for each of the places next
        # (`place` is the row of the present one, after the last row comes the first), and those of the averages together.
        sums, total, hidden = np.empty_like(begun), np.empty(size, np.int32), np.empty(size, bias.dtype)
        first = max(0, low - context)  # of the words that a context may see
        begins = True
        for i in range(first, high):
            if begins:
                sums[:] = begun
                total[:] = 0
                for k in range(averages):
                    for j in range(size):
                        total[j] += (borders[k + 1] - borders[k]) * tables[padding, k, j]
                place, begins = 0, False
            word = tables[ids[i]]
            if i >= low:
                for j in range(size):
                    window_sum, average_sum = bias.dtype.type(sums[place, j]), bias.dtype.type(total[j])
                    hidden[j] = window_sum * units[j] + average_sum * average_units[j] + bias[j]
                activate_row(code, hidden)
                for j in range(size):
                    hidden[j] *= output_units[j]
                losses[i - start] = -inner_product(hidden, word[-1]) - output_bias[ids[i]]
            if ids[i] == end:
                first, begins = i + 1, True
                continue
            sums[place] = 0
            for k in range(1, window + 1):  # the word stands k before the place k ahead; the last before it is the window's last
                place = place + 1 if place + 1 < window else 0
                add(word[averages + window - k], sums[place])
            place = place + 1 if place + 1 < window else 0
            for k in range(averages):
                leaving, entering = i - context + borders[k], i - context + borders[k + 1]
                subtract(tables[ids[leaving] if leaving >= first else padding, k], total)
                add(tables[ids[entering] if entering >= first else padding, k], total)
