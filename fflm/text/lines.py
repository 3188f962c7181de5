"""Encoding of single lines, in microseconds each: for programs that ask for the score of one line after another."""

import copy
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.text.numbering import MAX_BYTES, Numbers, Pieces
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import UNKNOWN, Vocabulary

EncodedLines = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


class LineEncoder:
    """Turns lines into ids, each as a text of its own, as `TextSettings.encode_text` does.

    A kernel looks up the pieces between blanks in a table, which holds the vocabulary's words and whatever pieces were seen;
    others are tokenized and added. Each thread has a table of its own, so that any number of threads may encode at once.

    Parameters
    ----------
    settings
        How text becomes tokens.
    vocabulary
        The words that have ids.
    """

    def __init__(self, settings: TextSettings, vocabulary: Vocabulary) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self._words: Pieces | None = None  # the table with the vocabulary's words alone
        self._own = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return LineEncoder, (self.settings, self.vocabulary)

    def encode(self, lines: Sequence[str]) -> EncodedLines:
        """Encode lines.

        A line ends like the last line of a text, whether or not it has a line end. In sentence mode a line without words is an
        empty sentence, which has an end.

        Returns
        -------
        ids : numpy.ndarray
            The ids of all lines, (N,), int32.
        borders : numpy.ndarray
            Where each line begins in them, and where the last ends, (L + 1,), int64.
        """
        if not lines:
            return np.empty(0, np.int32), np.zeros(1, np.int64)
        if self.settings.tokenizer.mode == "char":
            return self._encode_characters([_with_newlines(line) for line in lines])
        from fflm.text.kernels import encode_lines

        text = self._joined(lines)
        while True:
            ids, borders, complete = encode_lines(text, *self._known())
            if complete:
                return ids, borders
            self._learn(lines)

    @cached_property
    def _after(self) -> bytes:
        """What follows the lines in the text that a kernel is given."""
        from fflm.text.kernels import BEYOND

        return bytes(BEYOND)

    def _joined(self, lines: Sequence[str]) -> bytes:
        text = b"\xff".join([line.encode("utf-8", "surrogatepass") for line in lines]) + self._after
        return self._joined(list(map(_with_newlines, lines))) if b"\r" in text else text

    def _known(self) -> tuple[Any, ...]:
        """Return what the kernel is given besides a text: the table of the calling thread, and how it is read."""
        try:
            known: tuple[Any, ...] = self._own.known
        except AttributeError:
            if self._words is None:  # several threads may make it at once, which costs time and nothing else
                words = Pieces()
                words.number("\n".join([UNKNOWN, *self.vocabulary.words[1 + self.vocabulary.ends :]]), self._split)
                self._words = words
            self._own.pieces = copy.deepcopy(self._words)
            known = self._own.known = self._arguments(self._own.pieces)
        return known

    def _learn(self, lines: Sequence[str]) -> None:
        """Add the pieces of lines to the table of the calling thread."""
        if self._own.pieces.size > MAX_BYTES:
            self._own.pieces = Pieces()
            self._own.pieces.number(UNKNOWN, self._split)
        self._own.pieces.number("\n".join(map(_with_newlines, lines)).replace("\t", " "), self._split)
        self._own.known = self._arguments(self._own.pieces)

    def _arguments(self, pieces: Pieces) -> tuple[Any, ...]:
        from fflm.text.kernels import LINE_ENDS, NO_ENDS, SENTENCE_ENDS

        settings, tokenizer = self.settings, self.settings.tokenizer
        ends = SENTENCE_ENDS if settings.mode == "sentence" else LINE_ENDS if settings.line_ends else NO_ENDS
        # Of words as they stand in the text, the table holds all that are not <unk> from the start; <unk> is its first piece.
        as_they_stand = tokenizer.mode == "space" and not tokenizer.lowercase and tokenizer.normalization is None
        return (*pieces.arrays, ends, 1 if as_they_stand else -1)

    def _split(self, text: str) -> Numbers:
        """Return the tokens of pieces, a line each, as their ids + 1, (N,); 0 is the line end."""
        tokens = self.settings.tokenizer.split(self.settings.tokenizer.normalize(text))
        ids = self.vocabulary.encode(tokens).astype(np.uint32) + np.uint32(1)
        ids[[token == LINE_END for token in tokens]] = 0
        return ids

    def _encode_characters(self, lines: Sequence[str]) -> EncodedLines:
        """Encode lines of which spaces are tokens, too."""
        lines = [line if line.endswith("\n") or not line else f"{line}\n" for line in lines]
        ids = [self.settings.encode_text(line, self.vocabulary) for line in lines]
        if self.settings.ends:
            ids = [own if len(own) else np.ones(1, np.int32) for own in ids]
        return np.concatenate([np.empty(0, np.int32), *ids]), np.cumsum([0, *map(len, ids)])


def _with_newlines(line: str) -> str:
    """Return a line with all its line ends as newlines."""
    return line.replace("\r\n", "\n").replace("\r", "\n")
