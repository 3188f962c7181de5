"""Interpolated modified Kneser-Ney estimation (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu.launching import shares_of
from fflm.errors import FflmError
from fflm.models.ngram import kernels
from fflm.models.ngram.pruning import prune_by_entropy, subset
from fflm.models.ngram.settings import largest_pruned
from fflm.models.ngram.tables import Integers, Tables, borders
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows

FIXED_DISCOUNTS = (0.5, 1.0, 1.5)
"""Discounts of the counts 1, 2, and 3 or more where they cannot be estimated, as in KenLM."""


class _Contexts(NamedTuple):
    """The distinct contexts of a text, of 0 to K words, as a trie: item k of each list describes the contexts of k words.

    Attributes
    ----------
    parents
        (C_k,), uint32: the index of each context without its oldest word, among the contexts of k - 1 words.
    words
        (C_k,), uint32: the oldest word of each context; (0,) for k = 0.
    """

    parents: list[npt.NDArray[np.uint32]]
    words: list[npt.NDArray[np.uint32]]


class _Counts(NamedTuple):
    """The counts of the n-grams of one order.

    Attributes
    ----------
    keys
        (G,), int64: the n-grams as numbers in ascending order, context * V + word.
    counts
        (G,), uint32: the count of each n-gram.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]


def estimate(
    ids: Integers,
    vocabulary: Vocabulary,
    settings: TextSettings,
    order: int,
    prune: Sequence[int] = (),
    prune_entropy: float = 0.0,
) -> tuple[Tables, dict[str, Any]]:
    """Estimate an interpolated modified Kneser-Ney model from a text.

    The positions in the text are sorted once, by their contexts from the newest word to the oldest, so that positions with the
    same context of any length are next to each other. The adjusted count of an n-gram of the highest order is the number of its
    occurrences. The adjusted count of a shorter n-gram is the number of distinct words that precede it; if it starts at ``<s>``
    or at the start of the text, where no word precedes it, it is the number of its occurrences, as in KenLM. Unigrams are
    interpolated with the uniform distribution.

    Parameters
    ----------
    ids
        (N,), the text.
    vocabulary, settings
        The vocabulary and the settings of the text.
    order
        The length of the longest n-grams, at least 1.
    prune, prune_entropy
        How to prune the model, as `fflm.models.ngram.pruning` describes it; discounts are estimated before.

    Returns
    -------
    tables : Tables
        The model.
    details : dict
        ``counts``, the number of n-grams of each order; ``discounts``, three numbers for each order; ``notes``, messages about
        discounts that could not be estimated.

    Raises
    ------
    FflmError
        If the text is too long, or ``prune`` is not in ascending order from 0, or longer than ``order``.
    """
    limits, V = largest_pruned(prune, order), len(vocabulary)
    contexts, ending = _find_contexts(ids, vocabulary, settings, order)
    counts = _count_ngrams(contexts, ending, V)
    words = int(np.count_nonzero(counts[0].counts))
    estimated = [estimate_discounts(_counts_of_counts(each.counts), k) for k, each in enumerate(counts, 1)]
    discounts = [values for values, _ in estimated]
    details: dict[str, Any] = {"discounts": discounts, "notes": [note for _, note in estimated if note]}
    if not (any(limits) or prune_entropy):
        tables = _interpolate(contexts, counts, [np.ones(len(each.keys), bool) for each in counts], discounts, V)
    else:
        occurrences = _occurrences(contexts, counts, V)
        kept = [each > limit for each, limit in zip(occurrences, limits, strict=True)]
        kept[0][:] = True
        frequencies = _frequencies(contexts, counts, occurrences, V)
        del occurrences
        tables, remaining = subset(_interpolate(contexts, counts, kept, discounts, V), np.concatenate(kept))
        if prune_entropy:
            tables = prune_by_entropy(tables, frequencies[remaining], prune_entropy)
        details |= {"prune": list(prune), "prune_entropy": prune_entropy}
    longer = [int(tables.starts[high] - tables.starts[low]) for low, high in tables.levels()[1:]]
    return tables, {"counts": [words, *longer, *[0] * (order - 1 - len(longer))], **details}


def _find_contexts(
    ids: Integers, vocabulary: Vocabulary, settings: TextSettings, order: int
) -> tuple[_Contexts, list[npt.NDArray[np.int64]]]:
    """Find the distinct contexts of a text of ids (N,).

    Returns
    -------
    contexts : _Contexts
        The contexts of 0 to ``order`` - 1 words.
    ending : list of numpy.ndarray
        For each context length k, the n-grams, as numbers with repetitions, of the positions whose longest context has k words.
        These are all positions for the greatest k, where the numbers are sorted, except for those near the start of the text or
        of a sentence.
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
    nodes = np.zeros(len(places), np.uint32)  # for each position, the index of its context of k words
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
    """Return the adjusted counts of the n-grams of each order.

    An n-gram of a lower order counts once for each distinct word that precedes it, and once for each of its occurrences at the
    start of the text or of a sentence. ``ending`` is from `_find_contexts`, and is emptied to save memory.
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
        else:  # the unigrams are all words of the vocabulary, whether or not they occur
            counts.append(_Counts(np.arange(V), np.bincount(found, minlength=V).astype(np.uint32)))
    return counts[::-1]


def _occurrences(contexts: _Contexts, counts: list[_Counts], V: int) -> list[npt.NDArray[np.int64]]:
    """Return how often each n-gram of each order occurs, (G,) for each order.

    An n-gram of a lower order was counted once for each n-gram that is one word longer and ends with it. It occurs as often as
    all of these together, and at the start of the text or of a sentence.
    """
    occurrences: list[npt.NDArray[np.int64]] = [counts[-1].counts.astype(np.int64)]
    for k in range(len(counts) - 1, 0, -1):
        longer, (keys, own) = counts[k].keys, counts[k - 1]
        places = np.searchsorted(keys, _numbers(contexts.parents[k][longer // V], longer % V, V))
        repeated = np.bincount(places, weights=occurrences[-1] - 1, minlength=len(keys))
        occurrences.append(np.add(own, repeated, dtype=np.int64, casting="unsafe"))
    return occurrences[::-1]


def _frequencies(
    contexts: _Contexts, counts: list[_Counts], occurrences: list[npt.NDArray[np.int64]], V: int
) -> npt.NDArray[np.float64]:
    """Return the share of the text's positions that come after each context, (M,), in the order of `Tables`."""
    sums = [
        np.bincount(own.keys // V, weights=each, minlength=len(parents))
        for parents, own, each in zip(contexts.parents, counts, occurrences, strict=True)
    ]
    frequencies: npt.NDArray[np.float64] = np.concatenate(sums) / sums[0][0]
    return frequencies


def _interpolate(
    contexts: _Contexts, counts: list[_Counts], kept: list[npt.NDArray[np.bool_]], discounts: list[list[float]], V: int
) -> Tables:
    """Return the tables of the model: each order is interpolated with the next lower one, unigrams with the uniform distribution.

    The counts are removed from their list once they are used, to save memory. The n-grams of each order that are not kept (G,)
    are still in the tables, with the probability that they have without an entry.
    """
    starts: list[Integers] = []
    targets: list[npt.NDArray[np.uint32]] = []
    log_probabilities, back_offs, ngrams = [], [], 0
    lower = np.array([0, V]), np.arange(V, dtype=np.uint32), np.full(V, 1 / V)
    for parents, own_kept, values in zip(contexts.parents, kept, discounts, strict=True):
        keys, own = counts.pop(0)
        first = borders(keys // V, len(parents))
        words = (keys % V).astype(np.uint32)
        del keys
        probabilities, back_off = np.empty(len(words)), np.empty(len(parents))
        shares = shares_of(len(words) * kernels.LOOKUP_COST)
        kernels.interpolate(
            first, words, own, own_kept, parents, *lower, np.array([0.0, *values]), probabilities, back_off, shares
        )
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
    """Return the numbers of n-grams whose counts are exactly 1, 2, 3 and 4, given the counts of all n-grams (G,)."""
    numbers: list[int] = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    return numbers


def estimate_discounts(seen: Sequence[int], order: int) -> tuple[list[float], str]:
    """Return the discounts of the counts 1, 2, and 3 or more, and a note if they could not be estimated by the formula.

    D(k) = k - (k + 1) Y n(k + 1) / n(k) with Y = n(1) / (n(1) + 2 n(2)) (Chen and Goodman 1999, equation 26). In small or
    repetitive texts, some n(k) is 0, or a discount is not between 0 and k. In this case, all discounts are Y, as in the original
    Kneser-Ney smoothing; if Y cannot be estimated either, they are `FIXED_DISCOUNTS`.

    Parameters
    ----------
    seen
        n(1) to n(4), the numbers of n-grams whose counts are exactly 1, 2, 3 and 4.
    order
        The order of the n-grams, for the note.
    """
    n1, n2, n3, _ = seen
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    if n1 and n2 and n3:
        discounts = [k - (k + 1) * y * seen[k] / seen[k - 1] for k in (1, 2, 3)]
        if all(0 < discount <= k for k, discount in enumerate(discounts, 1)):
            return discounts, ""
    counts = f"{n1:,}, {n2:,}, {n3:,}, {seen[3]:,} n-grams with counts 1, 2, 3, 4"
    cause = f"order {order}: discounts cannot be estimated from {counts}"
    if n1 and n2:
        return [y] * 3, f"{cause}; used the single discount {y:.3f}"
    return list(FIXED_DISCOUNTS), f"{cause}; used {', '.join(f'{discount:g}' for discount in FIXED_DISCOUNTS)}"


def _with_starts(ids: Integers, padding: int, sentence_end: int | None) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return a text (N,) with padding before it, or before each of its sentences, and the predicted positions (P,)."""
    if len(ids) >= 2**31:
        raise FflmError(f"a text of {len(ids):,} tokens is too long for an n-gram model: give less text")
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
    """Return positions (P,) sorted by their contexts, newest word first, then by their words.

    ``absent`` is the sort key of a context word that does not exist; it is larger than all ids.
    """
    keys, other = np.empty_like(places), np.empty_like(places)
    for distance in (0, *range(longest, 0, -1)):
        kernels.sort_by_column(text, lengths, distance, absent, places, keys, other)
        places, other = other, places
    return places


def _numbers(contexts: Integers, words: Integers, V: int) -> npt.NDArray[np.int64]:
    """Return n-grams as numbers, context * V + word, whose order is by context, then by word: (G,), (G,) -> (G,), int64."""
    numbers = contexts.astype(np.int64)
    numbers *= V
    numbers += words
    return numbers


def _distinct(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Return the distinct values of sorted numbers (N,), and the number of occurrences of each."""
    new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    firsts = np.flatnonzero(new)
    return numbers[firsts], np.diff(firsts, append=len(numbers)).astype(np.uint32)
