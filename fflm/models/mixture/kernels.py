"""Kernels of mixtures and caches."""

import numpy as np

from fflm.backend.cpu.kernels import TILE, multiply, subtract_and_exp, sum_row
from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import REORDER, inner_product, larger
from fflm.backend.formulas import exp
from fflm.compiling import compiled, inner

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


LOWEST = np.float32(-80)
"""Logarithms in float32 above this one have exponentials that `exp` computes without clamping."""

_ONE = np.uint64(1)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio


@inner()
def smallest_of(row, low, high):
    """Return the smallest of the numbers low to high - 1 of a row (N,)."""
    smallest = -row[low]
    for j in range(low, high):
        smallest = larger(smallest, -row[j])
    return -smallest


@compiled()
def add_exponentials(logs, weight, totals):
    """Add weight exp(log) to totals (B, V), float64, of log-probabilities (B, V), float32 or float64."""
    for i in range(len(logs)):
        own, sums = logs[i], totals[i]
        for low in range(0, len(own), TILE):
            high = min(low + TILE, len(own))
            if smallest_of(own, low, high) > LOWEST:
                for j in range(low, high):  # LLVM vectorizes this loop in float32
                    sums[j] += weight * exp(own[j])
            else:
                for j in range(low, high):
                    sums[j] += weight * np.exp(np.float64(own[j]))


@compiled()
def add_remembered(contexts, weights, base, weight, totals):
    """Add weight p(word) to totals (B, V), float64, of every word after each of the contexts (B, n), int32, by a cache.

    The cache remembers the last words of a context, which have weights (B, N), float64; 0 for words that do not count. A word of
    the weight ``base`` is spread over the vocabulary.
    """
    size = weights.shape[1]
    for i in range(len(totals)):
        words, own, sums, total = contexts[i, contexts.shape[1] - size :], weights[i], totals[i], base
        for k in range(size):
            total += own[k]
        scale = weight / total
        rest = weight * (base / total) / len(sums)
        for j in range(len(sums)):
            sums[j] += rest
        for k in range(size):
            if own[k] > 0:
                sums[words[k]] += scale * own[k]


@inner()
def _equal(words, first, others, row):
    """Return whether words[first : first + n] are others[row], one of the contexts (M, n)."""
    k = 0
    while k < others.shape[1] and words[first + k] == others[row, k]:
        k += 1
    return k == others.shape[1]


@compiled()
def find_contexts(contexts, size, start, end, slots, known, count, places):
    """Look up the contexts before the last words of texts, and before the next word, among those that are known, and add others.

    contexts  (B, n + size)  in, int32, the last words of texts
    size                     in, number of words whose contexts, of n words each, are looked up, besides the next one
    start, end               in, ids of words that do not count
    slots     (S,)           in and out, int32, a hash table with open addressing: the number of the context in each slot plus 1,
                             0 if the slot is free; S is a power of two, at least 2 M
    known     (M, n)         in and out, int32, the contexts that are known; room for all that may be added
    count                    in, how many are known
    places    (B, size + 1)  out, int32, the contexts before each word and the next one; -1 where a word does not count

    Returns how many are known afterwards.
    """
    width, last = known.shape[1], np.uint64(len(slots) - 1)
    place = -1
    for i in range(len(contexts)):
        words = contexts[i]
        for first in range(size + 1):
            if first < size and (words[first + width] == start or words[first + width] == end):
                places[i, first] = -1
                continue
            place += 1  # texts grow, and contexts that follow each other have successive numbers then
            if not (place < count and _equal(words, first, known, place)):
                key = np.uint64(0)
                for k in range(width):
                    key = (key ^ np.uint64(words[first + k])) * _FACTOR
                slot = (key ^ (key >> np.uint64(32))) & last
                while slots[slot] and not _equal(words, first, known, slots[slot] - 1):
                    slot = (slot + _ONE) & last
                if not slots[slot]:
                    for k in range(width):
                        known[count, k] = words[first + k]
                    count += 1
                    slots[slot] = count
                place = slots[slot] - 1
            places[i, first] = place
    return count


@compiled()
def weights_of_keys(keys, places, decay, theta, weights):
    """Compute the weights of the words that a neural cache remembers.

    keys     (M, H)      in, float32, of unit length
    places   (B, N + 1)  in, int32, the key before each word, and before the next one; -1 if the word does not count
    decay    (N,)        in, float64, the factor of each age
    theta                in, float64
    weights  (B, N)      out, float64, decay exp(theta (cosine - 1)), or 0
    """
    size = weights.shape[1]
    for i in range(len(weights)):
        query = keys[places[i, size]]
        for k in range(size):
            place = places[i, k]
            if place < 0:
                weights[i, k] = 0.0
            else:
                cosine = np.float64(inner_product(query, keys[place]))  # the smallest weights have no float32
                weights[i, k] = decay[k] * np.exp(theta * (cosine - 1.0))
