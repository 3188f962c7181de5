"""Encoding of single lines, in microseconds each: for programs that ask for the score of one line after another."""

import copy
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.text.numbering import MAX_BYTES, Numbers, Pieces
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import Vocabulary

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
        tokenizer = settings.tokenizer
        # Of words as they stand in the text, the table holds all that are not <unk> from the start.
        self._as_they_stand = tokenizer.mode == "space" and not tokenizer.lowercase and tokenizer.normalization is None
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
        if self.settings.tokenizer.mode == "char":
            return self._encode_characters([_with_newlines(line) for line in lines])
        contents = [line.encode("utf-8", "surrogatepass") for line in lines]
        content = b"\n".join(contents)
        if b"\r" in content:
            return self.encode([_with_newlines(line) for line in lines])
        from fflm.text.kernels import BEYOND, LINE_ENDS, NO_ENDS, SENTENCE_ENDS, encode_lines

        settings = self.settings
        ends = SENTENCE_ENDS if settings.mode == "sentence" else LINE_ENDS if settings.line_ends else NO_ENDS
        borders = np.fromiter(itertools.accumulate((len(each) + 1 for each in contents), initial=0), np.int64, len(lines) + 1)
        text = np.frombuffer(content + bytes(BEYOND), np.uint8)
        while True:
            known = self._table()
            ids, places, complete = encode_lines(
                text,
                borders,
                known.distinct,
                known.starts,
                known.keys,
                known.table,
                known.token_starts,
                known.tokens,
                ends,
                self._as_they_stand,
            )
            if complete:
                return ids, places
            if known.size > self._words.size + MAX_BYTES:
                known = self._own.table = copy.deepcopy(self._words)
            known.number(content.decode("utf-8", "surrogatepass").replace("\t", " "), self._split)

    def _table(self) -> Pieces:
        """Return the table of the calling thread."""
        try:
            table: Pieces = self._own.table
        except AttributeError:
            if self._words is None:  # several threads may make it at once, which costs time and nothing else
                words = Pieces()
                words.number("\n".join(self.vocabulary.words[1 + self.vocabulary.ends :]), self._split)
                self._words = words
            table = self._own.table = copy.deepcopy(self._words)
        return table

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
