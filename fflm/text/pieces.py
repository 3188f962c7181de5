"""The pieces of texts between blanks, and the tokens of each, which are the same wherever the piece occurs."""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.text.settings import TextSettings

MAX_BYTES = 1 << 24
"""Number of bytes of distinct pieces that are remembered."""

NO_UTF8 = b"\xff"
"""A byte that UTF-8 does not have."""

Tokens: TypeAlias = tuple[npt.NDArray[np.uint32], str]


class Pieces:
    """The distinct pieces of texts, as kernels find them, and the tokens of each.

    This is exact if `fflm.text.tokenizer.Tokenizer.cuts_at_blanks`.

    Parameters
    ----------
    settings
        How text becomes tokens.
    tokenize
        Returns the tokens of pieces, a line each: the id of each + 1 (N,), 0 for each line end; and the lines when normalized.
    end
        The id of the end of a line or sentence.
    expected
        The number of pieces for which there is room in the hash table from the start; it grows with more.

    Attributes
    ----------
    tokenize
        The parameter.
    additions
        The number of times that pieces were added.
    closed
        Whether no pieces are added. Otherwise only one thread may use this object.
    """

    def __init__(self, settings: TextSettings, tokenize: Callable[[str], Tokens], end: int, expected: int = 0) -> None:
        from fflm.text.kernels import LINE_ENDS, NO_ENDS, SENTENCE_ENDS, SYMBOLS  # here, because it imports Numba

        self.tokenize, self._end, self.closed, self.additions = tokenize, end, False, 0
        self._ends = SENTENCE_ENDS if settings.mode == "sentence" else LINE_ENDS if settings.line_ends else NO_ENDS
        self._counts = np.array([SYMBOLS, SYMBOLS])
        self._distinct = np.empty(0, np.uint8)
        self._starts = np.zeros(SYMBOLS + 1, np.int64)
        self._slots = np.zeros((1 << max(12, (2 * expected).bit_length()), 2), np.uint64)
        self._single = np.zeros(SYMBOLS, np.uint32)
        self._token_starts = np.zeros(SYMBOLS + 1, np.int64)
        self._tokens = np.empty(0, np.uint32)
        self._longer = np.zeros(SYMBOLS, np.int32)  # by how many characters each piece is longer when it is normalized
        self._change = False  # whether any piece is another when it is normalized

    @property
    def known(self) -> int:
        """The number of pieces, without the symbols of kernels."""
        return int(self._counts[0]) - 2

    @property
    def size(self) -> int:
        """The number of bytes of the pieces."""
        return int(self._starts[self._counts[0]])

    @cached_property
    def table(self) -> Any:
        """The `fflm.text.kernels.PieceTable`, packed; it changes when pieces are added."""
        from fflm.packing import Packed
        from fflm.text.kernels import SYMBOLS, PieceTable

        arrays = self._counts, self._distinct, self._starts, self._slots, self._single, self._token_starts, self._tokens
        return Packed(PieceTable(*arrays, self._ends, self._end, SYMBOLS if self.closed else -1))

    def close(self) -> None:
        """Read all pieces that are not known as the first one, from now on."""
        self.closed = True
        vars(self).pop("table", None)

    def copy(self) -> "Pieces":
        """Return a copy for another thread; of a closed object, the object itself."""
        if self.closed:
            return self
        result = copy.copy(self)
        vars(result).pop("table", None)
        vars(result).update({name: each.copy() for name, each in vars(self).items() if isinstance(each, np.ndarray)})
        return result

    def encode(self, chunk: bytes) -> tuple[npt.NDArray[np.int32], int]:
        """Return the ids of the tokens of a chunk of a text in UTF-8, (N,), and the number of its characters when normalized."""
        from fflm.text.kernels import BEYOND

        ids, _, characters = self.encode_separated(chunk + NO_UTF8 * (1 + BEYOND))
        return ids, characters - 1

    def encode_separated(self, text: bytes, lines: int = 0) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int]:
        """Encode a text with separators, after adding its new pieces.

        Parameters
        ----------
        text
            UTF-8, with separators as for `fflm.text.kernels.cut_text`.
        lines
            The number of lines, each of which is a text of its own; 0 for a chunk of a text, which need not end with a line end.

        Returns
        -------
        ids : numpy.ndarray
            The ids, (N,), int32.
        borders : numpy.ndarray
            Where each line begins in them, (L + 1,), int64.
        characters : int
            The number of characters of the normalized text, separators included.
        """
        from fflm.text.kernels import cut_text, tokens_of_pieces

        while True:
            pieces, characters, complete = cut_text(text, lines, self.table)
            if not complete or self._counts[0] > self._counts[1]:
                self.learn(text)
            if complete:
                break
        ids, borders = tokens_of_pieces(pieces if lines else pieces[:-1], lines, self.table)
        if self._change:
            characters += self._longer[pieces].sum()
        return ids, borders, int(characters)

    def learn(self, text: bytes) -> None:
        """Tokenize the pieces that kernels have added, and make room for those of a text."""
        from fflm.text.kernels import grow_table

        vars(self).pop("table", None)  # first, so that it never has other arrays than this object, even after an interruption
        known, tokenized = self._counts.tolist()
        if known > tokenized:
            self.additions += 1
            lines = str(self._distinct[self._starts[tokenized] : self._starts[known]].data, "utf-8", "surrogatepass")
            new, normalized = self.tokenize(lines)
            ends = np.flatnonzero(new == 0)
            tokens, starts = new[new != 0], np.concatenate([[0], ends - np.arange(len(ends))])
            first = int(self._token_starts[tokenized])
            self._tokens = _with_room(self._tokens, first + len(tokens))
            self._tokens[first : first + len(tokens)] = tokens
            self._token_starts = _with_room(self._token_starts, known + 1)
            self._token_starts[tokenized : known + 1] = first + starts
            self._single, self._longer = _with_room(self._single, known), _with_room(self._longer, known)
            own = np.append(tokens, np.uint32(0))[starts[:-1]]  # the first token of each piece; any if it has none
            self._single[tokenized:known] = np.where(np.diff(starts) == 1, own, 0)
            if normalized != lines:
                self._change = True
                pairs = zip(normalized.split("\n"), lines.split("\n"), strict=True)
                self._longer[tokenized:known] = [len(one) - len(other) for one, other in pairs][:-1]
            self._counts[1] = known
        self._distinct = _with_room(self._distinct, self.size + len(text) + 1)
        self._starts = _with_room(self._starts, known + len(text) // 2 + 2)
        if 2 * known > len(self._slots):
            self._slots = grow_table(self._slots)


def _with_room(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Return an array of at least ``size`` values that begins with those of ``array``, (N,); the others are 0."""
    if len(array) >= size:
        return array
    return np.concatenate((array, np.zeros(max(size, 2 * len(array)) - len(array), array.dtype)))
