"""The extent of a text: numbers of characters, bytes and words that do not depend on how a model splits it into tokens."""

from typing import NamedTuple

import numpy as np

_BLANKS = np.array([chr(code).isspace() for code in range(0x3002)])  # beyond U+3000, no character is white space
_SHORT = 2000  # number of bytes up to which `str.split` is faster


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


def extent_of(text: bytes, characters: int) -> Extent:
    """Return the extent of a text in UTF-8, given the number of its characters when a tokenizer normalizes it."""
    return Extent(characters, len(text), count_words(text))


def as_bytes(text: str) -> bytes:
    """Return a text in UTF-8; surrogates, which UTF-8 cannot encode, are encoded as if it could."""
    return text.encode("utf-8", "surrogatepass")


def count_words(text: bytes) -> int:
    """Return the number of words of a text in UTF-8 with white space between them, as `str.split` finds them."""
    if len(text) > _SHORT and text.isascii():
        blank = _BLANKS[np.frombuffer(text, np.uint8)]
    else:
        decoded = str(text, "utf-8", "surrogatepass")
        if len(text) <= _SHORT:
            return len(decoded.split())
        blank = _BLANKS[np.minimum(np.frombuffer(decoded.encode("utf-32-le", "surrogatepass"), np.uint32), len(_BLANKS) - 1)]
    return int(not blank[0]) + int(np.count_nonzero(blank[:-1] & ~blank[1:]))
