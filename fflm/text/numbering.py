"""Numbering of the tokens of long texts, in which each distinct piece is tokenized and looked up only once."""

import itertools
from collections import defaultdict
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.text.pieces import MAX_BYTES, Pieces, Tokens
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END

Numbers: TypeAlias = npt.NDArray[np.int32]

MAX_TYPES = 1 << 20
"""Number of distinct tokens that a worker process remembers before it forgets them all."""

_SHORT = 1 << 20  # number of bytes that are tokenized without the kernels, in less time than it takes to load these


class Numbering:
    """Numbers the distinct tokens of a text in the order of their first occurrence; `LINE_END` is 0.

    The beginning of a text is tokenized directly. Kernels cut the rest into pieces at blanks, and only new pieces are tokenized.

    Parameters
    ----------
    settings
        How text becomes tokens.
    limit
        The number of distinct tokens after which the numbering starts again from 0, or None for no limit.
    """

    _index: defaultdict[str, int]
    _pieces: Pieces | None

    def __init__(self, settings: TextSettings, limit: int | None = None) -> None:
        self.settings = settings
        self.limit = limit
        self._seen = 0  # number of bytes
        self._clear()

    def __len__(self) -> int:
        """Return the number of tokens that have numbers."""
        return len(self._index)

    def types(self, start: int = 0) -> list[str]:
        """Return the tokens that have numbers from ``start`` on, in order."""
        return list(itertools.islice(reversed(self._index), len(self) - start))[::-1]

    def numbers(self, tokens: list[str]) -> Numbers:
        """Return the numbers of tokens, (N,), int32; a token without a number gets the next one."""
        return np.fromiter(map(self._index.__getitem__, tokens), np.int32, len(tokens))

    def number(self, chunk: bytes) -> tuple[int, Numbers, int]:
        """Tokenize a text, or the next chunk of one, in UTF-8.

        Returns
        -------
        start : int
            The numbers from ``start`` on are new; those below are as before.
        numbers : numpy.ndarray
            The numbers of the tokens of `TextSettings.tokens`, (N,), int32.
        characters : int
            The number of characters of the normalized text.
        """
        if self.limit is not None and len(self) > self.limit:
            self._clear()
        start = len(self)
        self.numbers([LINE_END])
        self._seen += len(chunk)
        if self._seen <= _SHORT or self.settings.tokenizer.mode == "char":
            text = self.settings.tokenizer.normalize(str(chunk, "utf-8", "surrogatepass"))
            return start, self.numbers(self.settings.tokens(text)), len(text)
        if self._pieces is None or self._pieces.size > MAX_BYTES:
            self._pieces = Pieces(self.settings, self._tokenize, 0)
        numbers, characters = self._pieces.encode(chunk)
        return start, numbers, characters

    def _tokenize(self, lines: str) -> Tokens:
        """Return the tokens of pieces, a line each, as `Pieces` takes them."""
        text = self.settings.tokenizer.normalize(lines)
        tokens = self.settings.tokenizer.split(text)
        numbers = self.numbers(tokens).astype(np.uint32)
        return np.where(numbers == 0, numbers, numbers + np.uint32(1)), text

    def _clear(self) -> None:
        """Forget all tokens and pieces."""
        self._index = defaultdict()
        self._index.default_factory = self._index.__len__  # looking up a token without a number gives it the next one
        self._pieces = None
