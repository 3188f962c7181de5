"""Numba kernels that find the bigrams of texts, and that arrange the words of texts in rows."""

import numpy as np

from fflm.compiling import compiled, inner

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio
_HALF = np.uint64(32)
_ONE = np.uint64(1)


@inner()
def _key(left, right):
    """Return the key of the bigram of two words, uint64; 0 only for a bigram of unknown words."""
    return (np.uint64(left) << _HALF) | np.uint64(right)


@inner()
def _find(key, slots):
    """Return the slot of a key, or the free slot in which the search for it ends."""
    last = np.uint64(len(slots) - 1)
    hashed = key * _FACTOR
    slot = (hashed ^ (hashed >> _HALF)) & last
    while slots[slot, 0] and slots[slot, 0] != key:
        slot = (slot + _ONE) & last
    return slot


@compiled()
def bigram_table(lefts, rights, ids):
    """Return a hash table of bigrams (S, 2) uint64: in each slot the key of a bigram, 0 if the slot is free, and its id.

    lefts, rights, ids  (N,), in, int32, the ids of the words of each bigram, which are not 0, and its own
    """
    size = 2
    while size < 2 * len(ids):
        size *= 2
    slots = np.zeros((size, 2), np.uint64)
    for i in range(len(ids)):
        key = _key(lefts[i], rights[i])
        slot = _find(key, slots)
        slots[slot, 0], slots[slot, 1] = key, ids[i]
    return slots


@compiled()
def with_bigrams(ids, starts, length, slots):
    """Return the first words of texts and their bigrams, each behind its first word; unknown words, 0, have no bigrams.

    ids     (T,), in, int32, the words of all texts
    starts  (S + 1,), in, int64, where each text begins in them, and T
    length  number of words that are read from the start of each text, at most
    slots   (N, 2), in, uint64, the result of `bigram_table`

    Returns words and bigrams, and where each text begins in them, as ``ids`` and ``starts``.
    """
    result, borders = np.empty(2 * len(ids), np.int32), np.zeros(len(starts), np.int64)
    count = 0
    for text in range(len(starts) - 1):
        end = min(starts[text + 1], starts[text] + length)
        for place in range(starts[text], end):
            result[count] = ids[place]
            count += 1
            if place + 1 < end and ids[place] > 0 and ids[place + 1] > 0:
                slot = _find(_key(ids[place], ids[place + 1]), slots)
                if slots[slot, 0]:
                    result[count] = slots[slot, 1]
                    count += 1
        borders[text + 1] = count
    return result[:count].copy(), borders


@compiled()
def padded_rows(ids, starts, lengths, width, padding):
    """Return the words of texts in rows (B, width), int32, with ``padding`` after shorter texts.

    ids              (T,), in, int32, the words of all texts
    starts, lengths  (B,), in, int64, where each row begins in them, and how many words it has, at most ``width``
    """
    rows = np.empty((len(starts), width), np.int32)
    for i in range(len(starts)):
        words, rest = ids[starts[i] : starts[i] + lengths[i]], rows[i, lengths[i] :]
        for j in range(len(words)):
            rows[i, j] = words[j]
        for j in range(len(rest)):
            rest[j] = padding
    return rows
