"""Kernels of the neural cache."""

import numpy as np
from numba import njit, prange

from fflm.backend.cpu.kernels import multiply, subtract_and_exp, sum_row
from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import REORDER, larger

QUERIES = 64
"""Number of queries whose products with keys are computed at a time."""

KEYS = 256
"""Number of keys in a tile of products, which stays in the cache of a core."""


@njit
def maximum(row):
    """Return the maximum of a row (N,)."""
    highest = row[0]
    for j in range(len(row)):
        highest = larger(highest, row[j])
    return highest


@njit(fastmath=REORDER)
def sum_of_word(row, words, word):
    """Return the sum of those numbers of a row (N,) that stand for a word, given the word of each number (N,)."""
    total = row.dtype.type(0)
    for j in range(len(row)):
        total += row[j] if words[j] == word else row.dtype.type(0)
    return total


@kernel(blas=True)
def sum_weights(queries, keys, words, first, last, targets, theta, tiles, found, totals, threads):
    """Sum the weights exp(query . key - theta) of the keys that each query sees, and those of the keys of its target.

    queries (B, H), keys (M, H), their words (M,) int32, and targets (B,) int32. Query i sees the keys first[i] ... last[i] - 1,
    (B,) int64 both, which must not descend -> found and totals (B,) float64, the sums over the keys of the target and over all
    keys. tiles (threads, QUERIES, KEYS) is scratch memory. Products are computed in blocks of queries and keys; in each row of a
    block, the largest product is subtracted before the exponential, so that nothing overflows or vanishes.
    """
    for t in prange(threads):
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
                        highest = maximum(row)
                        subtract_and_exp(row, highest, len(row))
                        scale = np.exp(np.float64(highest) - theta)
                        found[i] += scale * sum_of_word(row, words[left:right], targets[i])
                        totals[i] += scale * sum_row(row, len(row))
