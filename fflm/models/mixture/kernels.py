"""Kernels of the neural cache."""

import numpy as np

from fflm.backend.cpu.kernels import multiply, subtract_and_exp, sum_row
from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import REORDER, larger
from fflm.compiling import inner

QUERIES = 64
"""Number of queries whose products with keys are computed at a time."""

KEYS = 256
"""Number of keys in a tile of products, which stays in the cache of a core."""


@inner()
def subtract_ages_and_max(row, places, place, decay):
    """Subtract decay * age from each product of a row (N,), whose words have places (N,) before ``place``; return the maximum."""
    highest = row[0] - decay * np.float32(place - places[0])
    for j in range(len(row)):
        row[j] -= decay * np.float32(place - places[j])
        highest = larger(highest, row[j])
    return highest


@inner(fastmath=REORDER)
def sum_of_word(row, words, word):
    """Return the sum of those numbers of a row (N,) that stand for a word, given the word of each number (N,)."""
    total = row.dtype.type(0)
    for j in range(len(row)):
        total += row[j] if words[j] == word else row.dtype.type(0)
    return total


@kernel(blas=True)
def sum_weights(queries, keys, words, places, first, last, targets, theta, decay, tiles, found, totals, threads, t):
    """Sum the weights exp(query . key - decay age - theta) of the keys that each query sees, and those of its target's keys.

    queries (B, H), keys (M, H), their words (M,) int32 and places (M,) int32, targets (B,) int32, theta float64, decay float32.
    Query i has the place i, and sees the keys first[i] ... last[i] - 1, (B,) int64 both, which must not descend -> found and
    totals (B,) float64, the sums over the keys of the target and over all keys. tiles (threads, QUERIES, KEYS) is scratch memory.
    Products are computed in blocks of queries and keys; in each row of a block, the largest number is subtracted before the
    exponential, so that nothing overflows. Weights below 1e-38 of the largest in such a row count as 1e-38 of it.
    """
    low_block, high_block = share((len(queries) + QUERIES - 1) // QUERIES, threads, t)
    for block in range(low_block, high_block):
        top, bottom = block * QUERIES, min((block + 1) * QUERIES, len(queries))
        for i in range(top, bottom):
            found[i] = totals[i] = 0.0
        for low in range(first[top], last[bottom - 1], KEYS):
            high = min(low + KEYS, last[bottom - 1])
            tile = tiles[t, : bottom - top, : high - low]
            multiply(queries[top:bottom], keys[low:high], tile)
            for i in range(top, bottom):
                left, right = max(first[i], low), min(last[i], high)
                if left < right:
                    row = tile[i - top, left - low : right - low]
                    highest = subtract_ages_and_max(row, places[left:right], i, decay)
                    subtract_and_exp(row, highest, len(row))
                    scale = np.exp(highest - theta)
                    found[i] += scale * sum_of_word(row, words[left:right], targets[i])
                    totals[i] += scale * sum_row(row, len(row))
