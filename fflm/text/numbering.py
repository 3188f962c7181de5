"""Numbering of the tokens of long texts, in which each distinct piece is tokenized and looked up only once."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.text.tokenizer import LINE_END, Tokenizer

Numbers: TypeAlias = npt.NDArray[np.uint32]

_SHORT = 1 << 20  # number of characters that are tokenized without the kernels, in less time than it takes to load these
MAX_BYTES = 1 << 24
"""Number of bytes of distinct pieces that are remembered."""


class Numbering:
    """Numbers the distinct tokens of a text in the order of their first occurrence; `LINE_END` is 0.

    The beginning of a text is tokenized directly. A kernel cuts the rest into pieces at spaces and newlines, and only new pieces
    are tokenized. This is exact if `Tokenizer.cuts_at_blanks`; otherwise a text is tokenized as a whole.

    Parameters
    ----------
    tokenizer
        The rule that splits text into tokens.
    limit
        The number of distinct tokens after which the numbering starts again from 0, or None for no limit.
    """

    _index: defaultdict[str, int]
    _pieces: "Pieces"

    def __init__(self, tokenizer: Tokenizer, limit: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self._seen = 0  # number of characters
        self._clear()

    def __len__(self) -> int:
        """Return the number of tokens that have numbers."""
        return len(self._index)

    def types(self, start: int = 0) -> list[str]:
        """Return the tokens that have numbers from ``start`` on, in order."""
        return list(itertools.islice(reversed(self._index), len(self) - start))[::-1]

    def numbers(self, tokens: list[str]) -> Numbers:
        """Return the numbers of tokens, (N,), uint32; a token without a number gets the next one."""
        return np.fromiter(map(self._index.__getitem__, tokens), np.uint32, len(tokens))

    def number(self, text: str) -> tuple[int, Numbers]:
        """Tokenize a normalized text, or the next chunk of one.

        Returns
        -------
        start : int
            The numbers from ``start`` on are new; those below are as before.
        numbers : numpy.ndarray
            The numbers of the tokens of `Tokenizer.split`, (N,), uint32.
        """
        if self.limit is not None and len(self) > self.limit:
            self._clear()
        start = len(self)
        self.numbers([LINE_END])
        self._seen += len(text)
        if self._seen <= _SHORT or not self.tokenizer.cuts_at_blanks:
            return start, self._split(text)
        if self._pieces.size > MAX_BYTES:
            self._pieces = Pieces()
        return start, self._pieces.number(text, self._split)

    def _split(self, text: str) -> Numbers:
        """Return the numbers of a text's tokens, (N,), without the kernels."""
        return self.numbers(self.tokenizer.split(text))

    def _clear(self) -> None:
        """Forget all tokens and pieces."""
        self._index = defaultdict()
        self._index.default_factory = self._index.__len__  # looking up a token without a number gives it the next one
        self._pieces = Pieces()


class Pieces:
    """The distinct pieces of a text, as `kernels.number_pieces` keeps them, and the numbers of their tokens.

    Parameters
    ----------
    expected
        The number of pieces for which there is room in the hash table from the start; it grows with more.
    """

    def __init__(self, expected: int = 0) -> None:
        self.known = 1  # the piece 0 is the newline
        self.distinct = np.empty(0, np.uint8)
        self.starts = np.zeros(2, np.int64)
        self.slots = np.zeros((1 << max(12, (2 * expected).bit_length()), 2), np.uint64)
        self.tokens = np.zeros(1, np.uint32)
        self.single = np.zeros(1, np.uint32)  # the token of each piece that is one token, otherwise 0
        self.token_starts = np.array([0, 1])

    @property
    def size(self) -> int:
        """The number of bytes of the pieces."""
        return int(self.starts[self.known])

    def number(self, text: str, split: Callable[[str], Numbers]) -> Numbers:
        """Return the numbers of a text's tokens, (N,), uint32; ``split`` tokenizes the pieces that are new."""
        from fflm.text.kernels import BEYOND, expand_pieces, grow_table, number_pieces

        content = np.frombuffer(text.encode("utf-8", "surrogatepass") + bytes(BEYOND), np.uint8)
        pieces, end = np.empty(len(content), np.int32), len(content) - BEYOND
        self.distinct = _with_room(self.distinct, self.size + len(content) + 1)
        self.starts = _with_room(self.starts, self.known + len(content) // 2 + 2)
        first, before, count, place = self.known, self.size, 0, 0
        while True:
            found, self.known, place = number_pieces(
                content, place, end, self.known, self.distinct, self.starts, self.slots, pieces[count:]
            )
            count += found
            if place == end:
                break
            self.slots = grow_table(self.slots)
        if self.known > first:
            new = split(str(self.distinct[before : self.size].data, "utf-8", "surrogatepass"))
            ends = np.flatnonzero(new == 0)  # a newline follows every piece
            tokens = new[new != 0]
            known = int(self.token_starts[first])
            self.tokens = _with_room(self.tokens, known + len(tokens))
            self.tokens[known : known + len(tokens)] = tokens
            self.token_starts = _with_room(self.token_starts, self.known + 1)
            self.token_starts[first + 1 : self.known + 1] = known + ends - np.arange(len(ends))
            starts, ends = self.token_starts[first : self.known], self.token_starts[first + 1 : self.known + 1]
            self.single = _with_room(self.single, self.known)
            own = self.tokens[np.minimum(starts, len(self.tokens) - 1)]
            self.single[first : self.known] = np.where(ends - starts == 1, own, 0)
        numbers: Numbers = expand_pieces(pieces[:count], self.token_starts, self.tokens)
        return numbers


def _with_room(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Return an array of at least ``size`` values that begins with those of ``array``, (N,)."""
    if len(array) >= size:
        return array
    return np.concatenate((array, np.empty(max(size, 2 * len(array)) - len(array), array.dtype)))
