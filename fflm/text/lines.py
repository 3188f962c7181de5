"""Encoding of single lines, in microseconds each: for programs that ask for the score of one line after another."""

import copy
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.compiling import direct, pack
from fflm.text.kernels import BEYOND, LINE_ENDS, NO_ENDS, SENTENCE_ENDS, PieceTable, encode_lines
from fflm.text.numbering import MAX_BYTES, Numbers, Pieces
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import UNKNOWN, Vocabulary

_NO_UTF8 = b"\xff"  # a byte that UTF-8 does not have

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

    Attributes
    ----------
    reads_pieces
        Whether kernels can encode: not if spaces are tokens, because then text is not a sequence of pieces between blanks.
    """

    def __init__(self, settings: TextSettings, vocabulary: Vocabulary) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self.reads_pieces = settings.tokenizer.cuts_at_blanks
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
        if self.reads_pieces:
            ids, borders, _ = self.apply(self._encode_lines, lines)
            return ids, borders
        return self._encode_characters([with_newlines(line) for line in lines])

    def apply(self, kernel: Callable[..., Any], lines: Sequence[str], *arguments: Any) -> Any:
        """Return what a kernel returns that reads lines.

        Parameters
        ----------
        kernel
            Takes a text and pieces, as `kernels.encode_lines` does, and the other arguments. The last of the values that it
            returns is whether all pieces are known; if not, they are added, and it is called again.
        lines
            The lines.
        arguments
            The other arguments.
        """
        text = self._joined(lines)
        while True:
            result = kernel(text, self.known, *arguments)
            if result[-1]:
                return result
            self._learn(lines)

    @cached_property
    def _encode_lines(self) -> Callable[..., Any]:
        return direct(encode_lines, b"", self.known)

    def _joined(self, lines: Sequence[str]) -> bytes:
        """Return lines as the text that kernels read."""
        text = "\0".join([*lines, "\0" * BEYOND]).encode("utf-8", "surrogatepass")
        if text.count(b"\0") != len(lines) + BEYOND:  # a line has this character, and another byte must separate the lines
            encoded = [line.encode("utf-8", "surrogatepass") for line in lines]
            text = _NO_UTF8.join([*encoded, _NO_UTF8 * BEYOND])
        return self._joined(list(map(with_newlines, lines))) if b"\r" in text else text

    @property
    def known(self) -> Any:
        """The pieces that the calling thread knows: a `kernels.PieceTable`, packed."""
        try:
            known = self._own.known
        except AttributeError:
            if self._words is None:  # several threads may make it at once, which costs time and nothing else
                words = Pieces(len(self.vocabulary) + 1)
                words.number(f"{UNKNOWN}\n{self.vocabulary.lines}", self._split_words)
                self._words = words
            self._own.pieces = copy.deepcopy(self._words)
            known = self._own.known = self._packed(self._own.pieces)
        return known

    def _learn(self, lines: Sequence[str]) -> None:
        """Add the pieces of lines to the table of the calling thread."""
        if self._own.pieces.size > MAX_BYTES:
            self._own.pieces = Pieces()
            self._own.pieces.number(UNKNOWN, self._split)
        self._own.pieces.number("\n".join(map(with_newlines, lines)).replace("\t", " "), self._split)
        self._own.known = self._packed(self._own.pieces)

    def _packed(self, pieces: Pieces) -> Any:
        """Return pieces as kernels read them."""
        settings = self.settings
        ends = SENTENCE_ENDS if settings.mode == "sentence" else LINE_ENDS if settings.line_ends else NO_ENDS
        # Of words as they stand in the text, the table holds all that are not <unk> from the start; <unk> is its first piece.
        unknown = 1 if self._as_they_stand else -1
        tables = pieces.distinct, pieces.starts, pieces.slots, pieces.single, pieces.token_starts, pieces.tokens
        return pack(PieceTable(*tables, ends, unknown))

    @property
    def _as_they_stand(self) -> bool:
        """Whether each piece of a text is a token."""
        tokenizer = self.settings.tokenizer
        return tokenizer.mode == "space" and not tokenizer.lowercase and tokenizer.normalization is None

    def _split_words(self, text: str) -> Numbers:
        """Return what `_split` does of the vocabulary's words, without splitting them if none of them has a blank."""
        count = len(self.vocabulary) - self.vocabulary.ends
        if not (self._as_they_stand and text.count("\n") == count and text == f"{UNKNOWN}\n{self.vocabulary.lines}\n"):
            return self._split(text)
        numbers = np.zeros(2 * count, np.uint32)
        numbers[0], numbers[2::2] = 1, np.arange(2 + self.vocabulary.ends, len(self.vocabulary) + 1)
        return numbers

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


def with_newlines(line: str) -> str:
    """Return a line with all its line ends as newlines."""
    return line.replace("\r\n", "\n").replace("\r", "\n")
