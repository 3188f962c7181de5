"""Numba kernels that number the pieces of a text between spaces, and replace pieces by the numbers or ids of their tokens."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.compiling import compiled, inner
from fflm.instructions import BYTES, blanks_at, prefetch, trailing_zeros, word_at

SPACE, TAB, NEWLINE = 32, 9, 10

BEYOND = 64
"""Number of bytes beyond the end of a text that kernels may read, but that do not affect their results."""

# Constants are unsigned, as indices are: a signed index may count from the end, and Numba's check for it would cost more than
# the rest of the kernel.
_ONE, _EIGHT, _TOP = np.uint64(1), np.uint64(8), np.uint64(56)
_LONG = np.uint64(255) << _TOP
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio


@compiled()
def number_pieces(text, begin, end, known, distinct, starts, slots, pieces):
    """Cut a text (N,) at spaces and newlines, and number its pieces (P,) in the order of their first occurrence; newline is 0.

    text       (N,)     in, uint8, UTF-8, followed by `BEYOND` bytes that do not count
    begin, end          in, the range to process: text[begin:end]
    known               in, the number of distinct pieces so far, piece 0 included
    distinct   (D,)     in and out, uint8, the bytes of the pieces from 1 on, a newline after each; room for N + 1 more bytes
    starts     (K + 1,) in and out, int64, where each piece begins in ``distinct``, and where the next one will; room for
                        N / 2 + 1 more
    slots      (S, 2)   in and out, uint64, a hash table with open addressing: the key of the piece in each slot, 0 if the slot
                        is free, and the number of the piece; S is a power of two
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
    last = np.uint64(len(slots) - 1)
    count = np.uint64(0)
    start = begin
    for i in range(found + _ONE):
        place = blanks[i]
        length = place - start
        if length > 0:
            key = _key(text, start, length)
            slot = _find_slot(text, start, length, key, distinct, starts, slots, last)
            if not slots[slot, 0]:
                if 2 * known > len(slots):
                    return count, known, start
                slots[slot, 0], slots[slot, 1] = key, known
                new = starts[known]
                for k in range(length):
                    distinct[new + k] = text[start + k]
                distinct[new + length] = NEWLINE
                known += 1
                starts[known] = new + length + 1
            pieces[count] = slots[slot, 1]
            count += _ONE
        if place < end and text[place] == NEWLINE:
            pieces[count] = 0
            count += _ONE
        start = place + 1
    return count, known, end


@compiled()
def grow_table(slots):
    """Return the hash table of `number_pieces`, slots (S, 2), with twice as many slots, (2 S, 2)."""
    larger = np.zeros((2 * len(slots), 2), np.uint64)
    last = np.uint64(len(larger) - 1)
    for old in range(len(slots)):
        if slots[old, 0]:
            slot = _slot(slots[old, 0], last)
            while larger[slot, 0]:
                slot = (slot + _ONE) & last
            larger[slot, 0], larger[slot, 1] = slots[old, 0], slots[old, 1]
    return larger


@inner()
def _key(text, start, length):
    """Return the key of text[start : start + length], uint64: unique if it has fewer than 8 bytes, otherwise a hash."""
    place = np.uint64(start)
    key = word_at(text, place)
    if length < 8:
        return (key & ((_ONE << np.uint64(8 * length)) - _ONE)) | (np.uint64(length) << _TOP)
    last = np.uint64(start + length - 8)
    place += _EIGHT
    while place < last:
        key = _mixed(key, word_at(text, place))
        place += _EIGHT
    return (_mixed(key, word_at(text, last)) ^ np.uint64(length)) | _LONG


@inner()
def _mixed(key, word):
    """Return a hash of a hash and 8 more bytes."""
    key = (key ^ word) * _FACTOR
    return key ^ (key >> np.uint64(32))


@inner()
def _slot(key, last):
    """Return the first of the slots 0 to ``last`` in which to look for a key."""
    key *= _FACTOR
    return (key ^ (key >> np.uint64(32))) & last


@inner()
def _find_slot(text, start, length, key, distinct, starts, slots, last):
    """Return the slot of the piece text[start : start + length], or the free slot in which the search for it ends."""
    slot = _slot(key, last)
    while slots[slot, 0] and not (
        slots[slot, 0] == key and (length < 8 or _is_piece(text, start, length, distinct, starts, slots[slot, 1]))
    ):
        slot = (slot + _ONE) & last
    return slot


@inner()
def _is_piece(text, start, length, distinct, starts, piece):
    """Return whether text[start : start + length], 8 bytes or more, is a piece: the bytes in ``distinct`` from its start on."""
    begin = np.uint64(starts[piece])
    if starts[piece + _ONE] - starts[piece] - 1 != length:
        return False
    start, last = np.uint64(start), np.uint64(length - 8)
    for k in range(np.uint64(0), last, _EIGHT):
        if word_at(text, start + k) != word_at(distinct, begin + k):
            return False
    return word_at(text, start + last) == word_at(distinct, begin + last)


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


_BLOCK = 64 * BYTES  # number of bytes of lines whose pieces are looked up together, so that the processor waits for memory once


class PieceTable(NamedTuple):
    """The pieces that `encode_lines` knows.

    Attributes
    ----------
    distinct, starts, slots
        The pieces, as `number_pieces` makes them.
    single
        (K,) uint32: the token of each piece that is one token, otherwise 0.
    token_starts, tokens
        (K + 1,) int64, (T,) uint32: the tokens of each piece, as for `expand_pieces`; tokens are ids + 1.
    ends
        `NO_ENDS`, `LINE_ENDS` or `SENTENCE_ENDS`.
    unknown
        The piece as which those that are not known are read, -1 if none.
    """

    distinct: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    slots: npt.NDArray[np.uint64]
    single: npt.NDArray[np.uint32]
    token_starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.uint32]
    ends: int
    unknown: int


@compiled()
def encode_lines(text, pieces):
    """Encode L lines, each as a text of its own that ends with a line end; a line without words is an empty sentence.

    text    (N,)  in, bytes, UTF-8 with a separator after each line, and `BEYOND` separators in the end, which do not count. The
                  separator is any byte that no line has.
    pieces        in, `PieceTable`, packed

    Returns the ids of all lines, (M,), int32, where each line begins in them, (L + 1,), int64, and whether all pieces are known;
    if not, ids and borders mean nothing.
    """
    distinct, starts, slots, single, token_starts, tokens, ends, unknown = pieces.content
    end, lines = len(text) - BEYOND, 0
    separator = text[np.uint64(end)]
    for place in range(end):
        lines += text[np.uint64(place)] == separator
    ids, borders = np.empty(end, np.int32), np.zeros(lines + 1, np.int64)
    places, keys = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.uint64)
    last, count, line, start = np.uint64(len(slots) - 1), 0, 0, 0
    ended, newline = ends != LINE_ENDS, False  # whether no end may come here; whether the blank before was a newline
    for low in range(0, end, _BLOCK):
        found = _find_blanks(text, low, min(low + _BLOCK, end), separator, places)
        _find_keys(text, start, places[:found], slots, keys)
        for i in range(found):
            place = places[i]
            if place > start:
                slot = _find_slot(text, start, place - start, keys[i], distinct, starts, slots, last)
                piece = np.int64(slots[slot, 1]) if slots[slot, 0] else unknown
                if piece < 0:
                    return ids[:0], borders, False
                if single[piece]:
                    ids[count] = single[piece] - 1
                    count += 1
                    ended = ends == NO_ENDS
                else:
                    first, after = token_starts[piece], token_starts[piece + 1]
                    if count + after - first + end - place > len(ids):  # more tokens than bytes, as some normalizations have it
                        ids = _with_room(ids, count, 2 * (count + after - first + end - place))
                    for k in range(first, after):
                        ids[count] = tokens[k] - 1
                        count += 1
                        ended = ends == NO_ENDS
            ends_line, ends_text = text[np.uint64(place)] == NEWLINE, text[np.uint64(place)] == separator
            if ends_line or ends_text:
                if not ended and (ends_line or not (newline and place == start)):
                    ids[count] = 1
                    count += 1
                    ended = ends != LINE_ENDS
                if ends_text:
                    if ends == SENTENCE_ENDS and count == borders[line]:
                        ids[count] = 1
                        count += 1
                    line += 1
                    borders[line] = count
                    ended = ends != LINE_ENDS
            start, newline = place + 1, ends_line
    return ids[:count], borders, True


@inner()
def _find_blanks(text, low, high, separator, places):
    """Fill ``places`` with the places of the blanks in text[low:high], and return their number."""
    found = np.uint64(0)
    for first in range(low, high, BYTES):
        mask = blanks_at(text, np.uint64(first), separator)
        if high - first < BYTES:
            mask &= (_ONE << np.uint64(high - first)) - _ONE
        while mask:
            places[found] = first + np.int64(trailing_zeros(mask))
            mask &= mask - _ONE
            found += _ONE
    return found


@inner()
def _find_keys(text, start, places, slots, keys):
    """Set the keys of the pieces that end at places (P,), the first of which begins at ``start``, and prefetch their slots."""
    last = np.uint64(len(slots) - 1)
    for i in range(len(places)):
        length = places[i] - start
        if length > 0:
            keys[i] = _key(text, start, length)
            prefetch(slots, _slot(keys[i], last) * np.uint64(16))
        start = places[i] + 1


@inner()
def _with_room(ids, count, size):
    """Return an array of ids (size,) that begins with the first ``count`` of ids (N,)."""
    result = np.empty(size, ids.dtype)
    result[:count] = ids[:count]
    return result
