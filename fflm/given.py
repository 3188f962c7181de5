"""Text in memory, which a program gives in place of the path of a file."""

import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest

from fflm.errors import FflmError


class Text:
    """Text in memory, in place of the path of a file of text.

    Parameters
    ----------
    lines
        A string, or the lines of the text, each with or without a line end. They are read once, one after another, so that the
        lines of an iterator need not fit in memory.

    Raises
    ------
    FflmError
        If it is neither a string nor an iterable; or, when the text is read, if a line is not a string.
    """

    def __init__(self, lines: str | Iterable[str]) -> None:
        if isinstance(lines, bytes | Mapping) or not isinstance(lines, str | Iterable):
            raise FflmError(f"`lines` must be a string or an iterable of strings, not of the type {type(lines).__name__}")
        self._lines = lines
        self._once = isinstance(lines, Iterator)
        self._read = False

    @classmethod
    def labeled(cls, texts: Iterable[str], labels: Iterable[str]) -> "Text":
        """Return labeled text for `fflm.train_classifier`: a label, a tab and a text on each line.

        Single spaces stand for the line ends of a text.

        Parameters
        ----------
        texts, labels
            The texts, and the label of each.

        Raises
        ------
        FflmError
            When it is read, if a text or a label is not a string, or there are more of one than of the other.
        """
        labeled = cls(_LabeledLines(texts, labels))
        labeled._once = isinstance(texts, Iterator) or isinstance(labels, Iterator)
        return labeled

    def __str__(self) -> str:
        return "the text in memory"

    def __repr__(self) -> str:
        return "Text(...)"

    def pieces(self, size: int) -> Iterator[str]:
        """Yield the text in pieces, in which every line end is a newline; only a string is cut, at every ``size`` characters.

        Raises
        ------
        FflmError
            If a line is not a string or has characters that no file of text has, or if this is an iterator that was read before.
        """
        if self._once and self._read:
            raise FflmError("the lines of this text came from an iterator, which was read before: give a list instead")
        lines, self._read = self._lines, True
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        if isinstance(lines, str):
            pieces: Iterable[str] = (lines[start : start + size] for start in range(0, len(lines), size))
        else:
            pieces = (_line(line, number) for number, line in enumerate(lines, 1))
        for piece in pieces:
            if "\0" in piece or not (piece.isascii() or _encodable(piece)):
                raise FflmError("the text in memory has NUL characters or unpaired surrogates: remove them")
            yield newlines.decode(piece)
        yield newlines.decode("", final=True)


def _line(line: object, number: int) -> str:
    """Return a line with its end."""
    if not isinstance(line, str):
        raise FflmError(f"line {number} of the text in memory must be a string, not of the type {type(line).__name__}")
    return line if line.endswith("\n") else line + "\n"


class _LabeledLines:
    """The lines of labeled texts."""

    def __init__(self, texts: Iterable[str], labels: Iterable[str]) -> None:
        self._texts, self._labels = texts, labels

    def __iter__(self) -> Iterator[str]:
        missing = object()
        for number, pair in enumerate(zip_longest(self._labels, self._texts, fillvalue=missing), 1):
            if missing in pair:
                raise FflmError("there must be a label for each text: `texts` and `labels` have different lengths")
            for name, each in zip(("label", "text"), pair, strict=True):
                if not isinstance(each, str):
                    raise FflmError(f"{name} {number} must be a string, not of the type {type(each).__name__}")
            label, text = map(str, pair)
            yield f"{' '.join(label.split())}\t{' '.join(text.splitlines())}"


def _encodable(text: str) -> bool:
    """Return whether a string has no unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
