"""The text's kernels, in Numba: pieces of a text told apart by their bytes, and exchanged for the numbers of their tokens."""

import numpy as np
from numba import njit

from fflm.compiling import compiled

SPACE, NEWLINE = 32, 10

BEYOND = 8
"""Bytes that `number_pieces` may read, but not heed, beyond the end of a text."""

# Constants are unsigned, as indices are: Numba lets a signed index count from the end, which costs more than all the rest.
_ONE, _EIGHT, _TOP = np.uint64(1), np.uint64(8), np.uint64(56)
_LONG = np.uint64(255) << _TOP
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio


@compiled()
def number_pieces(text, begin, end, known, distinct, starts, keys, table, pieces):
    """Cut a text at spaces and newlines and number its pieces, new ones as they come; a newline is the piece 0.

    text       (N,)     in, uint8, UTF-8, with `BEYOND` bytes more than are heeded
    begin, end          in, what is heeded: text[begin:end]
    known               in, how many pieces there are, the piece 0 included
    distinct   (D,)     in and out, uint8, the pieces from 1 on, a newline after each; room for N + 1 more bytes
    starts     (K + 1,) in and out, int64, where each begins in ``distinct``, and where the next one will; room for N / 2 + 1 more
    keys       (S,)     in and out, uint64, an open-addressing table: the key of the piece in a slot, 0 if none; S a power of two
    table      (S,)     in and out, int32, the piece in a slot
    pieces     (P,)     out, int32, the numbers; room for N

    Returns how many there are in ``pieces``, ``known``, and where the next call must begin, which is before ``end`` if more than
    half the table is taken: then it must grow first.
    """
    blanks = np.empty(end - begin + 1, np.int32)
    found = np.uint64(0)
    for place in range(begin, end):  # without a branch, which no processor could foresee
        blanks[found] = place
        found += np.uint64((text[np.uint64(place)] == SPACE) | (text[np.uint64(place)] == NEWLINE))
    blanks[found] = end
    last = np.uint64(len(table) - 1)
    count = np.uint64(0)
    start = begin
    for i in range(found + _ONE):
        place = blanks[i]
        length = place - start
        if length > 0:
            key = _key(text, start, length)
            slot = _slot(key, last)
            while keys[slot] and not (
                keys[slot] == key and (length < 8 or _same(text[start:place], distinct, starts, table[slot]))
            ):
                slot = (slot + _ONE) & last
            if not keys[slot]:
                if 2 * known > len(table):
                    return count, known, start
                keys[slot], table[slot] = key, known
                new = starts[known]
                for k in range(length):
                    distinct[new + k] = text[start + k]
                distinct[new + length] = NEWLINE
                known += 1
                starts[known] = new + length + 1
            pieces[count] = table[slot]
            count += _ONE
        if place < end and text[place] == NEWLINE:
            pieces[count] = 0
            count += _ONE
        start = place + 1
    return count, known, end


@compiled()
def larger(keys, table):
    """Return the keys and pieces of `number_pieces` in twice as many slots."""
    new_keys, new_table = np.zeros(2 * len(keys), np.uint64), np.zeros(2 * len(table), np.int32)
    last = np.uint64(len(new_keys) - 1)
    for old in range(len(keys)):
        if keys[old]:
            slot = _slot(keys[old], last)
            while new_keys[slot]:
                slot = (slot + _ONE) & last
            new_keys[slot], new_table[slot] = keys[old], table[old]
    return new_keys, new_table


@njit
def _key(text, start, length):
    """Return what tells a piece from all others if it has fewer than 8 bytes, and from most others if not."""
    key = np.uint64(0)
    for k in range(_EIGHT):
        key |= np.uint64(text[np.uint64(start) + k]) << (_EIGHT * k)
    if length < 8:
        return (key & ((_ONE << np.uint64(8 * length)) - _ONE)) | (np.uint64(length) << _TOP)
    for place in range(start + 8, start + length):
        key = (key ^ text[place]) * _FACTOR
    return key | _LONG


@njit
def _slot(key, last):
    """Return where to look for a key first, of the slots 0 to ``last``."""
    key *= _FACTOR
    return (key ^ (key >> np.uint64(32))) & last


@njit
def _same(text, distinct, starts, piece):
    """Whether a text is the same as a known piece."""
    begin = starts[piece]
    same, k = len(text) == starts[piece + 1] - begin - 1, 0
    while same and k < len(text):
        same = text[k] == distinct[begin + k]
        k += 1
    return same


@compiled()
def tokens_of(pieces, starts, tokens):
    """Exchange pieces for their tokens.

    pieces (P,); starts (K + 1,), where each piece's tokens begin in ``tokens``, and where the next one's will
    -> (N,), of the type of ``tokens``.
    """
    total = 0
    for piece in pieces:
        total += starts[piece + 1] - starts[piece]
    result = np.empty(total, tokens.dtype)
    count = 0
    for piece in pieces:
        for i in range(starts[piece], starts[piece + 1]):
            result[count] = tokens[i]
            count += 1
    return result
