"""Affixes: the beginnings and the ends that words have in common."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fflm.text.vocabulary import SYMBOLS, Vocabulary

LENGTHS = 2, 3, 4
"""Numbers of characters of beginnings and ends."""

LONG = 4
"""Number of characters from which on words are divided. Shorter ones, such as *the* and *then*, have too little in common."""

COMMON = 3
"""Number of words that have a beginning or an end in common, at least."""


def affixes_of(vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """Return the affixes of each word of a vocabulary, and of the padding ``<s>``.

    An affix is a proper beginning or end of at least `COMMON` words, or a whole word that at least two words are if case does not
    matter, such as *The* and *the*. Only words that begin with a letter or a digit, and have at least `LONG` characters, have
    beginnings and ends. All affixes are in lower case.

    Returns
    -------
    affixes
        (V + 1, K) int32: the numbers of the affixes of each word, from 0 to A - 1, with -1 after the last. K is 0 if no words
        have an affix in common.
    """
    found = [list(_affixes(word)) for word in vocabulary.words]
    words = Counter(affix for own in found for affix in own)
    numbers: dict[str, int] = {}
    rows = [
        [numbers.setdefault(affix, len(numbers)) for affix in own if words[affix] >= (2 if _is_whole(affix) else COMMON)]
        for own in found
    ]
    affixes = np.full((len(rows) + 1, max(map(len, rows))), -1, np.int32)
    for row, own in zip(affixes, rows, strict=False):
        row[: len(own)] = own
    return affixes


def _affixes(word: str) -> Iterator[str]:
    """Yield the affixes of a word, with ``<`` at its beginning and ``>`` at its end."""
    if word in SYMBOLS:
        return
    word = word.lower()
    yield f"<{word}>"
    if len(word) >= LONG and word[0].isalnum():
        for length in LENGTHS:
            if length < len(word):
                yield f"<{word[:length]}"
                yield f"{word[-length:]}>"


def _is_whole(affix: str) -> bool:
    """Return whether an affix is a whole word."""
    return affix.startswith("<") and affix.endswith(">")
