"""Numba kernels that number the pieces of a text between spaces, and replace pieces by the numbers or ids of their tokens."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from fflm.compiling import compiled

SPACE, TAB, NEWLINE = 32, 9, 10

BEYOND = 8
"""Number of bytes beyond the end of a text that `number_pieces` may read, but that do not affect its result."""

# Constants are unsigned, as indices are: a signed index may count from the end, and Numba's check for it would cost more than
# the rest of the kernel.
_ONE, _EIGHT, _TOP = np.uint64(1), np.uint64(8), np.uint64(56)
_LONG = np.uint64(255) << _TOP
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio


@compiled()
def number_pieces(text, begin, end, known, distinct, starts, keys, table, pieces):
    """Cut a text (N,) at spaces and newlines, and number its pieces (P,) in the order of their first occurrence; newline is 0.

    text       (N,)     in, uint8, UTF-8, followed by `BEYOND` bytes that do not count
    begin, end          in, the range to process: text[begin:end]
    known               in, the number of distinct pieces so far, piece 0 included
    distinct   (D,)     in and out, uint8, the bytes of the pieces from 1 on, a newline after each; room for N + 1 more bytes
    starts     (K + 1,) in and out, int64, where each piece begins in ``distinct``, and where the next one will; room for
                        N / 2 + 1 more
    keys       (S,)     in and out, uint64, a hash table with open addressing: the key of the piece in each slot, 0 if the slot is
                        free; S is a power of two
    table      (S,)     in and out, int32, the number of the piece in each slot
    pieces     (P,)     out, int32, the numbers of the text's pieces; room for N

    Returns the number of ``pieces``, the new ``known``, and the position at which the next call must begin. That is before
    ``end`` if more than half of the slots are taken: then `grow_table` must be called first.
    """
    blanks = np.empty(end - begin + 1, np.int32)
    found = np.uint64(0)
    for place in range(begin, end):  # without a branch, because no processor could predict it
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
                keys[slot] == key and (length < 8 or _is_piece(text[start:place], distinct, starts, table[slot]))
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
def grow_table(keys, table):
    """Return the hash table of `number_pieces`, keys (S,) and table (S,), with twice as many slots, (2 S,) each."""
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
    """Return the key of text[start : start + length], uint64: unique if it has fewer than 8 bytes, otherwise a hash."""
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
    """Return the first of the slots 0 to ``last`` in which to look for a key."""
    key *= _FACTOR
    return (key ^ (key >> np.uint64(32))) & last


@njit
def _is_piece(text, distinct, starts, piece):
    """Return whether a text (L,) is a known piece, whose bytes are in ``distinct`` (D,) from ``starts`` (K + 1,)[piece] on."""
    begin = starts[piece]
    same, k = len(text) == starts[piece + 1] - begin - 1, 0
    while same and k < len(text):
        same = text[k] == distinct[begin + k]
        k += 1
    return same


@compiled()
def expand_pieces(pieces, starts, tokens):
    """Replace each of the pieces (P,) by its tokens; return all of these, (N,).

    pieces     (P,)     in, int32, the numbers of pieces
    starts     (K + 1,) in, int64, where the tokens of each piece begin in ``tokens``, and where those of the next one will
    tokens     (T,)     in, the tokens of all pieces; the result has its type
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


NO_ENDS, LINE_ENDS, SENTENCE_ENDS = 0, 1, 2
"""Which line ends are words: none, each, or each that ends a sentence, which is a line that is not blank."""


SEPARATOR = 255
"""The byte after each line of `encode_lines`; UTF-8 does not have it."""


class PieceTable(NamedTuple):
    """The pieces that `encode_lines` knows.

    Attributes
    ----------
    distinct, starts, keys, table
        The pieces, as `number_pieces` makes them.
    token_starts, tokens
        (K + 1,) int64, (T,) uint32: the tokens of each piece, as for `expand_pieces`; as ids + 1, 0 for a line end.
    ends
        `NO_ENDS`, `LINE_ENDS` or `SENTENCE_ENDS`.
    unknown
        The piece as which those that are not known are read, -1 if none.
    """

    distinct: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    table: npt.NDArray[np.int32]
    token_starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.uint32]
    ends: int
    unknown: int


@compiled()
def encode_lines(text, pieces):
    """Encode L lines, each as a text of its own that ends with a line end; a line without words is an empty sentence.

    text    (N,)  in, bytes, UTF-8 with a `SEPARATOR` after each line, followed by `BEYOND` bytes that do not count
    pieces        in, `PieceTable`, packed

    Returns the ids of all lines, (M,), int32, where each line begins in them, (L + 1,), int64, and whether all pieces are known;
    if not, ids and borders mean nothing.
    """
    distinct, starts, keys, table, token_starts, tokens, ends, unknown = pieces.content
    end, lines = len(text) - BEYOND, 0
    for place in range(end):
        lines += text[np.uint64(place)] == SEPARATOR
    ids, borders = np.empty(end, np.int32), np.zeros(lines + 1, np.int64)
    last, count, line, start = np.uint64(len(table) - 1), 0, 0, 0
    ended, newline = ends != LINE_ENDS, False  # whether no end may come here; whether the blank before was a newline
    for place in range(end):
        byte = text[np.uint64(place)]
        if byte != SPACE and byte != TAB and byte != NEWLINE and byte != SEPARATOR:
            continue
        if place > start:
            piece = _find_piece(text, start, place, distinct, starts, keys, table, last)
            piece = unknown if piece < 0 else piece
            if piece < 0:
                return ids[:0], borders, False
            first, after = token_starts[piece], token_starts[piece + 1]
            if count + after - first + end - place > len(ids):  # more tokens than bytes, as some normalizations have it
                ids = _with_room(ids, count, 2 * (count + after - first + end - place))
            for k in range(first, after):
                ids[count] = tokens[k] - 1
                count += 1
                ended = ends == NO_ENDS
        if not ended and (byte == NEWLINE or (byte == SEPARATOR and not (newline and place == start))):
            ids[count] = 1
            count += 1
            ended = ends != LINE_ENDS
        start, newline = place + 1, byte == NEWLINE
        if byte == SEPARATOR:
            if ends == SENTENCE_ENDS and count == borders[line]:
                ids[count] = 1
                count += 1
            line += 1
            borders[line] = count
            ended = ends != LINE_ENDS
    return ids[:count], borders, True


@njit
def _with_room(ids, count, size):
    """Return an array of ids (size,) that begins with the first ``count`` of ids (N,)."""
    result = np.empty(size, ids.dtype)
    result[:count] = ids[:count]
    return result


@njit
def _find_piece(text, start, end, distinct, starts, keys, table, last):
    """Return the number of the piece text[start:end] in the table of `number_pieces`, -1 if it is not there."""
    key = _key(text, start, end - start)
    slot = _slot(key, last)
    while keys[slot] and not (
        keys[slot] == key and (end - start < 8 or _is_piece(text[start:end], distinct, starts, table[slot]))
    ):
        slot = (slot + _ONE) & last
    return table[slot] if keys[slot] else np.int32(-1)
