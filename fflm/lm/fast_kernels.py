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
    ids, start, padding, end, borders, tables, units, bias, code, outputs, output_units, output_bias, losses, threads
):  # fmt: skip
    """Score a text; a context's word is ``padding`` before the text and, if ``end`` is a word, up to the last one before it."""
    blocks, context, size = len(borders) - 1, borders[-1], len(bias)
    for t in prange(threads):
        low, high = share(len(losses), threads, t)
        averages, sums, hidden = np.zeros(size, np.int32), np.empty(size, np.int32), np.empty(size, bias.dtype)
        first = 0  # of the words that a context may see
        for i in range(max(0, start + low - context), start + low):
            if ids[i] == end:
                first = i + 1
        for k in range(blocks):
            if borders[k + 1] - borders[k] > 1:
                for place in range(start + low - context + borders[k], start + low - context + borders[k + 1]):
                    add(tables[k, ids[place] if place >= first else padding], averages)
        for i in range(start + low, start + high):
            sums[:] = averages
            for k in range(blocks):
                if borders[k + 1] - borders[k] == 1:
                    place = i - context + borders[k]
                    add(tables[k, ids[place] if place >= first else padding], sums)
            for j in range(size):
                hidden[j] = bias.dtype.type(sums[j]) * units[j] + bias[j]
            activate_row(code, hidden)
            for j in range(size):
                hidden[j] *= output_units[j]
            losses[i - start] = -inner_product(hidden, outputs[ids[i]]) - output_bias[ids[i]]
            if ids[i] == end:
                first = i + 1
                averages[:] = 0
                for k in range(blocks):
                    if borders[k + 1] - borders[k] > 1:
                        for j in range(size):
                            averages[j] += (borders[k + 1] - borders[k]) * tables[k, padding, j]
                continue
            for k in range(blocks):
                if borders[k + 1] - borders[k] > 1:
                    leaving, entering = i - context + borders[k], i - context + borders[k + 1]
                    subtract(tables[k, ids[leaving] if leaving >= first else padding], averages)
                    add(tables[k, ids[entering] if entering >= first else padding], averages)
