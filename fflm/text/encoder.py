"""Fast encoding of text into ids: of long texts, chunk by chunk, and of lines, each as a text of its own."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.text.extent import Extent, as_bytes, extent_of
from fflm.text.kernels import BEYOND
from fflm.text.pieces import MAX_BYTES, NO_UTF8, Pieces, Tokens
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import UNKNOWN, Vocabulary

ADDITIONS = 256
"""Number of times that new pieces were added, after which the table of a thread gets all words of the vocabulary."""

SHORT = 1 << 16
"""Number of bytes of texts that are encoded without kernels, in less time than it takes to load these."""

EncodedLines = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


class Encoder:
    """Turns text into ids, as `TextSettings.encode_text` does, but faster.

    Kernels look up the pieces between blanks in a table of those that were seen, to which new ones are added when they have been
    tokenized; after some time, all words of the vocabulary are added. Each thread has a table of its own, so that any number of
    threads may encode at once. The first `SHORT` bytes are tokenized directly.

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
        self._seen = 0  # number of bytes
        self._words: Pieces | None = None  # the table with the vocabulary's words alone
        self._own = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoder, (self.settings, self.vocabulary)

    def encode_chunk(self, chunk: bytes) -> tuple[npt.NDArray[np.int32], Extent]:
        """Return the ids of a chunk of a text, (N,), int32, and its extent.

        The chunk is UTF-8, and all its line ends are newlines.
        """
        if self._use_kernels(len(chunk)):
            ids, characters = self._pieces.encode(chunk)
            return ids, extent_of(chunk, characters)
        text = str(chunk, "utf-8", "surrogatepass")
        normalized = self.settings.tokenizer.normalize(text)
        return self.vocabulary.encode(self.settings.tokens(normalized)), extent_of(chunk, len(normalized))

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
        if self._use_kernels(sum(map(len, lines))):
            return self._pieces.encode_separated(_joined(lines), len(lines))[:2]
        return self._encode_directly([with_newlines(line) for line in lines])

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
        text, pieces = _joined(lines), self._pieces
        while True:
            result = kernel(text, pieces.table, *arguments)
            if result[-1]:
                return result
            pieces.learn(text)

    def _use_kernels(self, size: int) -> bool:
        """Return whether kernels encode the next text, of about ``size`` bytes."""
        self._seen += size
        return self.reads_pieces and self._seen > SHORT

    @property
    def known(self) -> Any:
        """The pieces that the calling thread knows: a `kernels.PieceTable`, packed."""
        return self._pieces.table

    @property
    def _pieces(self) -> Pieces:
        """The pieces that the calling thread knows: those that it has read, and after `ADDITIONS`, all words of the vocabulary.

        Adding these takes as long as adding the pieces of some hundred texts, and programs that score a few lines do not need it.
        """
        own = vars(self._own)
        pieces: Pieces | None = own.get("pieces")
        if pieces is None or (pieces.size > MAX_BYTES and not pieces.closed):
            pieces = own["pieces"] = Pieces(self.settings, self._tokenize, 1)
        elif pieces.additions > ADDITIONS and not own.get("knows_words"):
            if self._words is None:  # several threads may make it at once, which costs time and nothing else
                self._words = self._pieces_of_words()
            pieces = own["pieces"] = self._words.copy()
            own["knows_words"] = True
        return pieces

    def _pieces_of_words(self) -> Pieces:
        """Return the pieces <unk> and the vocabulary's words; if text is read as it stands, all others are <unk>."""
        pieces = Pieces(self.settings, self._tokenize_words, 1, len(self.vocabulary) + 1)
        pieces.encode(as_bytes(f"{UNKNOWN}\n{self.vocabulary.lines}"))
        pieces.tokenize = self._tokenize
        if self._as_they_stand:
            pieces.close()
        return pieces

    @property
    def _as_they_stand(self) -> bool:
        """Whether each piece of a text is a token."""
        tokenizer = self.settings.tokenizer
        return tokenizer.mode == "space" and not tokenizer.lowercase and tokenizer.normalization is None

    def _tokenize_words(self, lines: str) -> Tokens:
        """Return what `_tokenize` does of the vocabulary's words, without splitting them if none of them has a blank."""
        count = len(self.vocabulary) - self.vocabulary.ends
        if not (self._as_they_stand and lines.count("\n") == count and lines == f"{UNKNOWN}\n{self.vocabulary.lines}\n"):
            return self._tokenize(lines)
        numbers = np.zeros(2 * count, np.uint32)
        numbers[0], numbers[2::2] = 1, np.arange(2 + self.vocabulary.ends, len(self.vocabulary) + 1)
        return numbers, lines

    def _tokenize(self, lines: str) -> Tokens:
        """Return the tokens of pieces, a line each, as `Pieces` takes them."""
        text = self.settings.tokenizer.normalize(lines)
        tokens = self.settings.tokenizer.split(text)
        ids = self.vocabulary.encode(tokens).astype(np.uint32) + np.uint32(1)
        ids[[token == LINE_END for token in tokens]] = 0
        return ids, text

    def _encode_directly(self, lines: list[str]) -> EncodedLines:
        """Encode lines, whose line ends are newlines, without kernels."""
        lines = [line if line.endswith("\n") or not line else f"{line}\n" for line in lines]
        ids = [self.settings.encode_text(line, self.vocabulary) for line in lines]
        if self.settings.ends:
            ids = [own if len(own) else np.ones(1, np.int32) for own in ids]
        return np.concatenate([np.empty(0, np.int32), *ids]), np.cumsum([0, *map(len, ids)])


def with_newlines(line: str) -> str:
    """Return a line with all its line ends as newlines."""
    return line.replace("\r\n", "\n").replace("\r", "\n")


def _joined(lines: Sequence[str]) -> bytes:
    """Return lines as the text that kernels read."""
    text = as_bytes("\0".join([*lines, "\0" * BEYOND]))
    if text.count(b"\0") != len(lines) + BEYOND:  # a line has this character, and another byte must separate the lines
        text = NO_UTF8.join([*map(as_bytes, lines), NO_UTF8 * BEYOND])
    return _joined(list(map(with_newlines, lines))) if b"\r" in text else text
