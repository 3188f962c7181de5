"""The text's kernels, in Numba: pieces of a text told apart by their bytes, and exchanged for the numbers of their tokens."""

import numpy as np
from numba import njit

SPACE, NEWLINE = 32, 10

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio


@njit(cache=True)
def number_pieces(text, known, distinct, starts, hashes, table, pieces):
    """Cut a text at spaces and newlines and number its pieces, new ones as they come; a newline is the piece 0.

    text     (N,)     in, uint8, UTF-8
    known             in, how many pieces there are, the piece 0 included
    distinct (D,)     in and out, uint8, the pieces from 1 on, a newline after each; room for N + 1 more bytes
    starts   (K + 1,) in and out, int64, where each begins in ``distinct``, and where the next one will; room for N / 2 + 1 more
    hashes   (K,)     in and out, uint64, likewise
    table    (S,)     in and out, int32, an open-addressing table of pieces, 0 where a slot is free; S is a power of two, and at
                      most half the slots are taken
    pieces   (N,)     out, int32, the numbers

    Returns how many there are in ``pieces``, ``known``, and the table, which is a larger one if there was need.
    """
    count = place = 0
    while place < len(text):
        if text[place] == SPACE:
            place += 1
            continue
        if text[place] == NEWLINE:
            pieces[count] = 0
            count += 1
            place += 1
            continue
        start, key = place, np.uint64(0)
        while place < len(text) and text[place] != SPACE and text[place] != NEWLINE:
            key = (key ^ text[place]) * _FACTOR
            place += 1
        key ^= key >> np.uint64(32)
        slot = key & np.uint64(len(table) - 1)
        while table[slot] != 0:
            other = table[slot]
            if starts[other + 1] - starts[other] == place - start + 1:
                i, k = start, starts[other]
                while i < place and text[i] == distinct[k]:
                    i += 1
                    k += 1
                if i == place:
                    break
            slot = (slot + np.uint64(1)) & np.uint64(len(table) - 1)
        pieces[count] = table[slot]
        if pieces[count] == 0:
            pieces[count] = known
            table[slot] = known
            hashes[known] = key
            end = starts[known]
            for i in range(start, place):
                distinct[end] = text[i]
                end += 1
            distinct[end] = NEWLINE
            known += 1
            starts[known] = end + 1
            if 2 * known > len(table):
                table = _larger(table, hashes, known)
        count += 1
    return count, known, table


@njit(cache=True)
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


@njit(cache=True)
def _larger(table, hashes, known):
    """Return a table of twice the size that holds the pieces 1 to ``known`` - 1."""
    larger = np.zeros(2 * len(table), np.int32)
    for piece in range(1, known):
        slot = hashes[piece] & np.uint64(len(larger) - 1)
        while larger[slot] != 0:
            slot = (slot + np.uint64(1)) & np.uint64(len(larger) - 1)
        larger[slot] = piece
    return larger
