"""The extent of a text: numbers of characters, bytes and words that do not depend on how a model splits it into tokens."""

from typing import NamedTuple

import numpy as np

_BLANKS = np.array([chr(code).isspace() for code in range(0x3002)])  # beyond U+3000, no character is white space
_SHORT = 2000  # number of characters up to which `str.split` is faster


class Extent(NamedTuple):
    """The extent of a text.

    Attributes
    ----------
    characters
        The number of characters of the normalized text.
    bytes
        The number of bytes of the text in UTF-8, with a newline as the end of each line.
    words
        The number of words with white space between them, as `str.split` counts them.
    """

    characters: int = 0
    bytes: int = 0
    words: int = 0

    @classmethod
    def of(cls, text: str, normalized: str) -> "Extent":
        """Return the extent of a text, given also the text as a tokenizer normalizes it."""
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return cls(len(normalized), size, count_words(text))


def count_words(text: str) -> int:
    """Return the number of words with white space between them, ``len(text.split())``, which takes longer for a long text."""
    if len(text) <= _SHORT:
        return len(text.split())
    if text.isascii():
        blank = _BLANKS[np.frombuffer(text.encode(), np.uint8)]
    else:
        blank = _BLANKS[np.minimum(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), len(_BLANKS) - 1)]
    return int(not blank[0]) + int(np.count_nonzero(blank[:-1] & ~blank[1:]))
