"""Affixes: the beginnings and the ends that words have in common. The shape of a word counts as one of them."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fflm.text.vocabulary import SYMBOLS, Vocabulary

LENGTHS = 2, 3, 4
"""Numbers of characters of beginnings and ends."""

LONG = 4
"""Number of characters from which on words are divided. Shorter ones, such as *the* and *then*, have too little in common."""

COMMON = 10
"""Number of words that have a beginning, an end or a shape in common, at least."""

MOST = 2**14
"""Number of affixes at most, of a large vocabulary the most common, so that the time of a training step does not grow with it."""


def affixes_of(vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """Return the affixes of each word of a vocabulary, and of the padding ``<s>``.

    An affix is a proper beginning or end of at least `COMMON` words, the shape of as many words, or a whole word that at least
    two words are if case does not matter, such as *The* and *the*. Only words that begin with a letter or a digit, and have at
    least `LONG` characters, have beginnings and ends. These do not distinguish case, but shapes do.

    Returns
    -------
    affixes
        (V + 1, K) int32: the numbers of the affixes of each word, from 0, that of the most words, to A - 1, with -1 after the
        last. K is 0 if no words have an affix in common.
    """
    found = [list(_affixes(word)) for word in vocabulary.words]
    words = Counter(affix for own in found for affix in own).most_common()
    common = [affix for affix, count in words if count >= (2 if _is_whole(affix) else COMMON)][:MOST]
    numbers = {affix: number for number, affix in enumerate(common)}
    rows = [[numbers[affix] for affix in own if affix in numbers] for own in found]
    affixes = np.full((len(rows) + 1, max(map(len, rows))), -1, np.int32)
    for row, own in zip(affixes, rows, strict=False):
        row[: len(own)] = own
    return affixes


def _affixes(word: str) -> Iterator[str]:
    """Yield the affixes of a word: its shape after ``=``, and others with ``<`` at its beginning and ``>`` at its end."""
    if word in SYMBOLS:
        return
    shape = _shape(word)
    if shape != "a":  # as most words are
        yield f"={shape}"
    word = word.lower()
    yield f"<{word}>"
    if len(word) >= LONG and word[0].isalnum():
        for length in LENGTHS:
            if length < len(word):
                yield f"<{word[:length]}"
                yield f"{word[-length:]}>"


def _shape(word: str) -> str:
    """Return the kinds of characters that follow each other in a word, such as ``Aa`` for *The* and ``0,0`` for *19,000*."""
    kinds = ("A" if each.isupper() else "0" if each.isdigit() else "a" if each.isalpha() else each for each in word)
    return "".join(kind for kind, _ in itertools.groupby(kinds))


def _is_whole(affix: str) -> bool:
    """Return whether an affix is a whole word."""
    return affix[0] == "<" and affix[-1] == ">"
