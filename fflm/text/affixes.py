"""Affixes: prefixes and suffixes that words have in common. The shape and the lowercase form of a word count as affixes, too."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fflm.text.vocabulary import SYMBOLS, Vocabulary

LENGTHS = 2, 3, 4
"""Lengths of prefixes and suffixes, in characters."""

LONG = 4
"""Minimum length of words that have prefixes and suffixes. Shorter words, such as *the* and *thy*, have too little in common."""

COMMON = 10
"""Minimum number of words that share a prefix, a suffix or a shape."""

MOST = 2**12
"""Maximum number of affixes: those of the most words are kept, so that a training step does not slow down with the vocabulary."""


def affixes_of(vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """Return the affixes of each word of a vocabulary, and of the padding ``<s>``.

    An affix is a proper prefix or suffix of at least `COMMON` words, the shape of as many words, or the lowercase form of at
    least two words, such as *The* and *the*. Only words that begin with a letter or a digit, and have at least `LONG` characters,
    have prefixes and suffixes, which are those of the lowercase form.

    Returns
    -------
    affixes
        (V + 1, K) int32: the numbers of the affixes of each word, with -1 after the last. The A affixes are numbered from 0, by
        decreasing number of words. K is 0 if no words have an affix in common.
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
    """Yield the affixes of a word: its shape after ``=``; others have ``<`` at the beginning of the word and ``>`` at its end."""
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
    """Return whether an affix is the lowercase form of a word."""
    return affix[0] == "<" and affix[-1] == ">"
