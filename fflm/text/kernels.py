"""Numba kernels that cut texts into the pieces between blanks, and replace pieces by the numbers or ids of their tokens."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.compiling import compiled, inner
from fflm.instructions import BYTES, blanks_at, characters_at, ones, prefetch, trailing_zeros, word_at

SPACE, TAB, NEWLINE = 32, 9, 10

BEYOND = 64
"""Number of bytes beyond the end of a text that kernels may read, but that do not affect their results."""

NO_ENDS, LINE_ENDS, SENTENCE_ENDS = 0, 1, 2
"""Which line ends are tokens: none, each, or each that ends a sentence, which is a line that is not blank."""

LINE_END_PIECE, TEXT_END_PIECE, SYMBOLS = 0, 1, 2
"""The pieces that stand for the end of a line and for that of a text, and the number of pieces before all others."""

_BLOCK = 64 * BYTES  # number of bytes of text whose pieces are looked up together, so that the processor waits for memory once

# Constants are unsigned, as indices are: a signed index may count from the end, and Numba's check for it would cost more than
# the rest of the kernel.
_ZERO, _ONE, _EIGHT, _TOP = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(56)
_LONG = np.uint64(255) << _TOP
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio


class PieceTable(NamedTuple):
    """The K pieces that kernels know, `SYMBOLS` included; the arrays have room for more.

    Attributes
    ----------
    counts
        (2,) int64: K, which a kernel increases when it finds a new piece, and how many pieces have tokens.
    distinct
        (D,) uint8: the bytes of the pieces, a newline after each.
    starts
        (K + 1,) int64: where each piece begins in ``distinct``, and where the next one will.
    slots
        (S, 2) uint64, a hash table with open addressing: the key of the piece in each slot, 0 if the slot is free, and the
        number of the piece; S is a power of two.
    single
        (K,) uint32: the token of each piece that is one token, otherwise 0.
    token_starts, tokens
        (K + 1,) int64, (T,) uint32: where the tokens of each piece begin, and those of all pieces. A token is an id (or another
        number) + 1.
    ends, end
        `NO_ENDS`, `LINE_ENDS` or `SENTENCE_ENDS`, and the id of these ends.
    unknown
        The piece as which those that are not known are read, -1 if they are to be added.
    """

    counts: npt.NDArray[np.int64]
    distinct: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    slots: npt.NDArray[np.uint64]
    single: npt.NDArray[np.uint32]
    token_starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.uint32]
    ends: int
    end: int
    unknown: int


@compiled()
def cut_text(text, lines, table):
    """Cut a text into its pieces; new ones are added to the table.

    text    (N,)  in, bytes, UTF-8, with a separator after it or, if ``lines`` is not 0, after each of so many lines, and `BEYOND`
                  separators in the end, which do not count. The separator is any byte that the text does not have.
    lines         in, the number of lines, each of which is a text of its own that ends with a line end
    table         in, `PieceTable`, packed; ``counts``, ``distinct``, ``starts`` and ``slots`` change

    Returns the numbers of the pieces, with `TEXT_END_PIECE` for each separator, (P,), int32, the number of characters with the
    separators, and whether the table had room for all new pieces; if not, the others mean nothing.
    """
    pieces = np.empty(len(text) - BEYOND + lines, np.int32)
    count, characters, complete = find_pieces(text, lines > 0, table.content, pieces)
    return pieces[:count], characters, complete


@compiled()
def tokens_of_pieces(pieces, lines, table):
    """Replace pieces (P,) by the ids of their tokens; `PieceTable`, packed. All pieces have tokens.

    Returns the ids, (M,), int32, and where each of some lines begins in them, (L + 1,), int64; a line ends with `TEXT_END_PIECE`.
    """
    return replace_pieces(pieces, lines, table.content)


@inner()
def encode_lines(text, table):
    """Encode L lines, each as a text of its own that ends with a line end; a line without words is an empty sentence.

    It takes a text and a table as `cut_text` does.

    Returns the ids of all lines, (M,), int32, where each line begins in them, (L + 1,), int64, and whether the tokens of all
    pieces are known; if not, ids and borders mean nothing.
    """
    content, end, lines = table.content, len(text) - BEYOND, 0
    separator = text[np.uint64(end)]
    for place in range(end):
        lines += text[np.uint64(place)] == separator
    pieces = np.empty(end + lines, np.int32)
    count, _, complete = find_pieces(text, True, content, pieces)
    known = complete and content.counts[0] == content.counts[1]
    ids, borders = replace_pieces(pieces[: count if known else _ZERO], lines, content)
    return ids, borders, known


@inner()
def find_pieces(text, closing, table, pieces):
    """Cut a text into pieces (P,), as `cut_text` does; ``closing`` is whether separators end lines, unless a line end is before.

    Returns the number of pieces, that of characters, and whether the table had room for all new pieces.
    """
    counts, distinct, starts, slots = table.counts, table.distinct, table.starts, table.slots
    end = len(text) - BEYOND
    separator = text[np.uint64(end)]
    places, keys = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.uint64)
    last, count, characters = np.uint64(len(slots) - 1), _ZERO, _ZERO
    start, newline = 0, False  # where the next piece may begin; whether a newline is right before it
    for low in range(0, end, _BLOCK):
        found, more = _find_blanks(text, low, min(low + _BLOCK, end), separator, places)
        characters += more
        _find_keys(text, start, places[:found], slots, keys)
        for i in range(found):
            place = places[i]
            if place > start:
                newline = False
                slot = _find_slot(text, start, place - start, keys[i], distinct, starts, slots, last)
                if slots[slot, 0]:
                    pieces[count] = slots[slot, 1]
                elif table.unknown >= 0:
                    pieces[count] = table.unknown
                elif _add_piece(text, start, place, keys[i], slot, counts, distinct, starts, slots):
                    pieces[count] = slots[slot, 1]
                else:
                    return count, characters, False
                count += _ONE
            byte = text[np.uint64(place)]
            if byte == NEWLINE:
                pieces[count] = LINE_END_PIECE
                count += _ONE
            elif byte == separator:
                if closing and not newline:
                    pieces[count] = LINE_END_PIECE
                    count += _ONE
                pieces[count] = TEXT_END_PIECE
                count += _ONE
            start, newline = place + 1, byte == NEWLINE
    return count, characters, True


@inner()
def _add_piece(text, start, place, key, slot, counts, distinct, starts, slots):
    """Put the piece text[start:place] into a free slot; return whether there was room."""
    known, length = counts[0], place - start
    begin = starts[known]
    if 2 * known > len(slots) or known + 2 > len(starts) or begin + length + 1 > len(distinct):
        return False
    slots[slot, 0], slots[slot, 1] = key, known
    for k in range(length):
        distinct[begin + k] = text[start + k]
    distinct[begin + length] = NEWLINE
    starts[known + 1] = begin + length + 1
    counts[0] = known + 1
    return True


@inner()
def replace_pieces(pieces, lines, table):
    """Return what `tokens_of_pieces` does."""
    single, token_starts, tokens, ends, end = table.single, table.token_starts, table.tokens, table.ends, table.end
    ids, borders = np.empty(len(pieces), np.int32), np.zeros(lines + 1, np.int64)
    count, line = _ZERO, 0
    ended = ends != LINE_ENDS  # whether no end may come here
    for i in range(len(pieces)):
        piece = np.uint64(pieces[i])
        token = single[piece]
        if token:
            ids[count] = token - 1
            count += _ONE
            ended = ends == NO_ENDS
        elif piece >= SYMBOLS:
            first, after = np.uint64(token_starts[piece]), np.uint64(token_starts[piece + _ONE])
            left = np.uint64(len(pieces) - i)
            if count + after - first + left > len(ids):
                ids = _with_room(ids, np.int64(count), np.int64(2 * (count + after - first + left)))
            for k in range(first, after):
                ids[count] = tokens[k] - 1
                count += _ONE
                ended = ends == NO_ENDS
        elif piece == LINE_END_PIECE:
            if not ended:
                ids[count] = end
                count += _ONE
                ended = ends != LINE_ENDS
        else:
            if ends == SENTENCE_ENDS and count == np.uint64(borders[line]):
                ids[count] = end
                count += _ONE
            line += 1
            borders[line] = count
            ended = ends != LINE_ENDS
    return ids[:count], borders


@compiled()
def grow_table(slots):
    """Return a hash table of pieces (S, 2) with twice as many slots, (2 S, 2)."""
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
    key, last = _mixed(np.uint64(length), key), np.uint64(start + length - 8)
    place += _EIGHT
    while place < last:
        key = _mixed(key, word_at(text, place))
        place += _EIGHT
    return _mixed(key, word_at(text, last)) | _LONG  # of 8 bytes, these are mixed twice


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


@inner()
def _find_blanks(text, low, high, separator, places):
    """Fill ``places`` with the places of the blanks in text[low:high]; return their number, and that of the characters."""
    found, characters = _ZERO, _ZERO
    for first in range(low, high, BYTES):
        mask, begins = blanks_at(text, np.uint64(first), separator), characters_at(text, np.uint64(first))
        if high - first < BYTES:
            inside = (_ONE << np.uint64(high - first)) - _ONE
            mask, begins = mask & inside, begins & inside
        characters += ones(begins)
        while mask:
            places[found] = first + np.int64(trailing_zeros(mask))
            mask &= mask - _ONE
            found += _ONE
    return found, characters


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
    for i in range(count):  # a slice set to another takes Numba longer to compile than the kernel
        result[i] = ids[i]
    return result
