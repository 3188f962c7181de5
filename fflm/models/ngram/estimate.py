"""Interpolated modified Kneser-Ney estimation (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu.launching import shares_of
from fflm.errors import FflmError
from fflm.models.ngram import kernels
from fflm.models.ngram.model import Integers, Tables, borders
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows

FIXED_DISCOUNTS = (0.5, 1.0, 1.5)
"""Discounts of counts of 1, 2, and 3 or more where none can be estimated, as in KenLM."""


class _Contexts(NamedTuple):
    """The distinct contexts of a text, of 0 to K words, as a trie: item k of each list is about those of k words.

    Attributes
    ----------
    parents
        (C_k,) uint32, for each context the index of the context without its oldest word.
    words
        (C_k,) uint32, the oldest word of each context; (0,) for k = 0.
    """

    parents: list[npt.NDArray[np.uint32]]
    words: list[npt.NDArray[np.uint32]]


class _Counts(NamedTuple):
    """The n-grams of one order, as sorted numbers: context * V + word.

    Attributes
    ----------
    keys
        (M,) int64, the numbers.
    counts
        (M,) uint32, the count of each.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]


def estimate(ids: Integers, vocabulary: Vocabulary, settings: TextSettings, order: int) -> tuple[Tables, dict[str, Any]]:
    """Estimate an interpolated modified Kneser-Ney model from a text.

    The positions in the text are sorted once, by their contexts from the newest word to the oldest, so that positions with the
    same context of any length are next to each other. The n-grams of the highest order have their counts; a shorter n-gram has
    the number of n-grams that have one word more in front. N-grams that begin with ``<s>``, or with the beginning of the text,
    have nothing in front and count as often as they occur, as in KenLM. Single words are interpolated with the uniform
    distribution.

    Parameters
    ----------
    ids
        (N,), the text.
    vocabulary, settings
        The vocabulary and the settings of the text.
    order
        The length of the longest n-grams, at least 1.

    Returns
    -------
    tables : Tables
        The model.
    details : dict
        ``counts``, the number of n-grams of each order; ``discounts``, three of each order; ``notes``.
    """
    contexts, ending = _find_contexts(ids, vocabulary, settings, order)
    counts = _count_ngrams(contexts, ending, len(vocabulary))
    sizes = [int(np.count_nonzero(each.counts)) for each in counts]
    estimated = [estimate_discounts(_counts_of_counts(each.counts), k) for k, each in enumerate(counts, 1)]
    discounts = [values for values, _ in estimated]
    notes = [note for _, note in estimated if note]
    tables = _interpolate(contexts, counts, discounts, len(vocabulary))
    return tables, {"counts": sizes, "discounts": discounts, "notes": notes}


def _find_contexts(
    ids: Integers, vocabulary: Vocabulary, settings: TextSettings, order: int
) -> tuple[_Contexts, list[npt.NDArray[np.int64]]]:
    """Find the distinct contexts of a text of ids (N,).

    Returns
    -------
    contexts : _Contexts
        The contexts of 0 to ``order`` - 1 words.
    ending : list of numpy.ndarray
        For each length of contexts the n-grams, as numbers with repetitions, of the positions whose context has that length: the
        greatest, where they are sorted, or less at the beginning of the text or of a sentence.
    """
    V, longest = len(vocabulary), order - 1
    windows = Windows.of(ids, vocabulary, settings, 1)
    text, places = _with_starts(ids, windows.padding, windows.sentence_end)
    lengths = kernels.context_lengths(text, vocabulary.start_id, longest)
    places = _sorted(text, lengths, places, longest, V + 1)
    shared = np.empty(len(places), np.uint8)
    kernels.shared_words(text, lengths, places, shared, shares_of(len(places) * kernels.LOOKUP_COST))
    lengths = lengths[places]

    contexts = _Contexts([np.zeros(1, np.uint32)], [np.empty(0, np.uint32)])
    ending: list[npt.NDArray[np.int64]] = []
    nodes = np.zeros(len(places), np.uint32)  # of each place, the index of its context of k words
    for k in range(order):
        if k:
            new = (shared < k) & (lengths >= k)
            contexts.parents.append(nodes[new])
            contexts.words.append(text[places[new] - np.uint32(k)])
            np.cumsum(new, dtype=np.uint32, out=nodes)
            nodes -= 1
        here = lengths == k
        ending.append(_numbers(nodes[here], text[places[here]], V))
    return contexts, ending


def _count_ngrams(contexts: _Contexts, ending: list[npt.NDArray[np.int64]], V: int) -> list[_Counts]:
    """Return the counts of the n-grams of each order; ``ending``, from `_find_contexts`, is emptied to save memory.

    An n-gram of a lower order counts once for each n-gram that has one word more in front, and once for each position
    where nothing is in front of it.
    """
    counts: list[_Counts] = []
    for k in range(len(ending) - 1, -1, -1):
        found = ending.pop()
        if counts:
            longer = counts[-1].keys
            found = np.concatenate([found, _numbers(contexts.parents[k + 1][longer // V], longer % V, V)])
            found.sort()
        if k:
            counts.append(_Counts(*_distinct(found)))
        else:  # all words, also those that do not occur
            counts.append(_Counts(np.arange(V), np.bincount(found, minlength=V).astype(np.uint32)))
    return counts[::-1]


def _interpolate(contexts: _Contexts, counts: list[_Counts], discounts: list[list[float]], V: int) -> Tables:
    """Return the model: each order is interpolated with the one below, that of single words with the uniform distribution.

    The counts are removed from their list as they are used, to save memory.
    """
    starts: list[Integers] = []
    targets: list[npt.NDArray[np.uint32]] = []
    log_probabilities, back_offs, ngrams = [], [], 0
    lower = np.array([0, V]), np.arange(V, dtype=np.uint32), np.full(V, 1 / V)
    for parents, values in zip(contexts.parents, discounts, strict=True):
        keys, own = counts.pop(0)
        first = borders(keys // V, len(parents))
        words = (keys % V).astype(np.uint32)
        del keys
        probabilities, back_off = np.empty(len(words)), np.empty(len(parents))
        shares = shares_of(len(words) * kernels.LOOKUP_COST)
        kernels.interpolate(first, words, own, parents, *lower, np.array([0.0, *values]), probabilities, back_off, shares)
        starts.append(first[:-1] + ngrams)
        ngrams += len(words)
        targets.append(words)
        log_probabilities.append(np.log(probabilities).astype(np.float32))
        back_offs.append(np.log(back_off).astype(np.float32))
        lower = first, words, probabilities

    depths = np.cumsum([0, *map(len, contexts.parents)])
    shifted = (parents + depth for parents, depth in zip(contexts.parents[1:], depths, strict=False))
    return Tables.of(
        np.concatenate([np.empty(0, np.int64), *shifted]),
        np.concatenate(contexts.words),
        np.concatenate(back_offs),
        np.concatenate([*starts, [ngrams]]),
        np.concatenate(targets),
        np.concatenate(log_probabilities),
    )


def _counts_of_counts(counts: npt.NDArray[np.uint32]) -> list[int]:
    """Return the number of n-grams whose count is 1, 2, 3, 4, given the counts of all (M,)."""
    numbers: list[int] = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    return numbers


def estimate_discounts(seen: Sequence[int], order: int) -> tuple[list[float], str]:
    """Return the discounts of counts of 1, 2, and 3 or more, and a note if they could not be estimated by the formula.

    D(k) = k - (k + 1) Y n(k + 1) / n(k) with Y = n(1) / (n(1) + 2 n(2)) (Chen and Goodman 1999, equation 26). Small or regular
    texts have no n-grams of some count; then all counts have the discount Y, as in the original Kneser-Ney smoothing, and if Y
    cannot be estimated either, the discounts are `FIXED_DISCOUNTS`.

    Parameters
    ----------
    seen
        Number of n-grams that were seen exactly 1, 2, 3, 4 times.
    order
        Order of the n-grams, for the note.
    """
    n1, n2, n3, _ = seen
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    if n1 and n2 and n3:
        discounts = [k - (k + 1) * y * seen[k] / seen[k - 1] for k in (1, 2, 3)]
        if all(0 < discount <= k for k, discount in enumerate(discounts, 1)):
            return discounts, ""
    cause = f"order {order}: {n1:,}, {n2:,}, {n3:,}, {seen[3]:,} n-grams with counts of 1, 2, 3, 4 give no discounts"
    if n1 and n2:
        return [y] * 3, f"{cause}; took the single discount {y:.3f}"
    return list(FIXED_DISCOUNTS), f"{cause}; took {', '.join(f'{discount:g}' for discount in FIXED_DISCOUNTS)}"


def _with_starts(ids: Integers, padding: int, sentence_end: int | None) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return a text with a start symbol before it or before each of its sentences, and the positions that are predicted."""
    if len(ids) >= 2**31:
        raise FflmError(f"a text of {len(ids):,} tokens is too long for an n-gram model: give less")
    if sentence_end is None:
        text = np.empty(len(ids) + 1, np.uint32)
        text[0], text[1:] = padding, ids
        return text, np.arange(1, len(text), dtype=np.uint32)
    starts = np.concatenate([[0], 1 + np.flatnonzero(ids[:-1] == sentence_end)])
    text = np.insert(ids.astype(np.uint32), starts, padding)
    return text, np.flatnonzero(text != padding).astype(np.uint32)


def _sorted(
    text: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint8], places: npt.NDArray[np.uint32], longest: int, absent: int
) -> npt.NDArray[np.uint32]:
    """Sort positions (P,) by context, newest word first, then by word; missing words come last."""
    keys, other = np.empty_like(places), np.empty_like(places)
    for distance in (0, *range(longest, 0, -1)):
        kernels.sort_by_column(text, lengths, distance, absent, places, keys, other)
        places, other = other, places
    return places


def _numbers(contexts: Integers, words: Integers, V: int) -> npt.NDArray[np.int64]:
    """Return n-grams (M,) as numbers, context * V + word, which sort by context, then by word."""
    numbers = contexts.astype(np.int64)
    numbers *= V
    numbers += words
    return numbers


def _distinct(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Return the distinct values of sorted numbers (N,), and the count of each."""
    new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    firsts = np.flatnonzero(new)
    return numbers[firsts], np.diff(firsts, append=len(numbers)).astype(np.uint32)
