"""Interpolated modified Kneser-Ney estimation (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128)."""

from collections.abc import Sequence
from typing import Any

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
"""Of counts of 1, 2 and more, where none can be estimated; KenLM's."""


def estimate(ids: Integers, vocabulary: Vocabulary, settings: TextSettings, order: int) -> tuple[Tables, dict[str, Any]]:
    """Estimate an interpolated modified Kneser-Ney model from a text.

    The places of the text are sorted once, by their contexts from the newest word to the oldest: the contexts of every length are
    then runs of neighbours. The n-grams of the highest order have their counts, the shorter ones the number of n-grams that have
    one word more in front; those that begin with ``<s>``, or with the beginning of the text, have nothing in front and
    count as often as they occur (so does KenLM). Single words are interpolated with the uniform distribution.

    Parameters
    ----------
    ids
        (N,)
    vocabulary, settings
        Of the text.
    order
        The length of the longest n-grams, at least 1.

    Returns
    -------
    tables : Tables
        The model.
    details : dict
        ``counts``, the number of n-grams of each order; ``discounts``, three of each order; ``notes``.
    """
    V, longest = len(vocabulary), order - 1
    windows = Windows.of(ids, vocabulary, settings, 1)
    text, places = _with_starts(ids, windows.padding, windows.sentence_end)
    lengths = kernels.context_lengths(text, vocabulary.start_id, longest)
    places = _sorted(text, lengths, places, longest, V + 1)
    shared = np.empty(len(places), np.uint8)
    kernels.shared_words(text, lengths, places, shared, shares_of(len(places) * kernels.LOOK_UP))
    lengths = lengths[places]

    # Of the contexts of k words, in the order of the sorted places: the index of each one's parent among those of k - 1 words,
    # and its oldest word. N-grams are numbers, context * V + word; at first those of the places whose context ends there.
    parents, context_words = [np.zeros(1, np.uint32)], [np.empty(0, np.uint32)]
    ending: list[npt.NDArray[np.int64]] = []
    nodes = np.zeros(len(places), np.uint32)
    for k in range(order):
        if k:
            new = (shared < k) & (lengths >= k)
            parents.append(nodes[new])
            context_words.append(text[places[new] - np.uint32(k)])
            np.cumsum(new, dtype=np.uint32, out=nodes)
            nodes -= 1
        here = lengths == k
        ending.append(_numbers(nodes[here], text[places[here]], V))
    del shared, lengths, nodes, text, places

    keys, counts = [np.empty(0, np.int64)] * order, [np.empty(0, np.uint32)] * order
    for k in range(longest, -1, -1):
        found = ending.pop()
        if k < longest:
            found = np.concatenate([found, _numbers(parents[k + 1][keys[k + 1] // V], keys[k + 1] % V, V)])
            found.sort()
        if k:
            keys[k], counts[k] = _distinct(found)
        else:
            keys[0], counts[0] = np.arange(V), np.bincount(found, minlength=V).astype(np.uint32)
        del found
    sizes = [int(np.count_nonzero(each)) for each in counts]

    discounts, notes = [], []
    starts: list[Integers] = []
    targets: list[npt.NDArray[np.uint32]] = []
    log_probabilities, back_offs, grams = [], [], 0
    lower = np.array([0, V]), np.arange(V, dtype=np.uint32), np.full(V, 1 / V)
    for k in range(order):
        found_discounts, note = estimate_discounts(np.bincount(np.minimum(counts[k], 5), minlength=6)[1:5].tolist(), k + 1)
        discounts.append(found_discounts)
        notes += [note] if note else []
        first = borders(keys[k] // V, len(parents[k]))
        words = (keys[k] % V).astype(np.uint32)
        keys[k] = keys[k][:0]
        probabilities, back_off = np.empty(len(words)), np.empty(len(parents[k]))
        kernels.interpolate(
            first,
            words,
            counts[k],
            parents[k],
            *lower,
            np.array([0.0, *found_discounts]),
            probabilities,
            back_off,
            shares_of(len(words) * kernels.LOOK_UP),
        )
        starts.append(first[:-1] + grams)
        grams += len(words)
        targets.append(words)
        log_probabilities.append(np.log(probabilities).astype(np.float32))
        back_offs.append(np.log(back_off).astype(np.float32))
        counts[k] = counts[k][:0]
        lower = first, words, probabilities

    depths = np.cumsum([0, *map(len, parents)])
    tables = Tables.of(
        np.concatenate([np.empty(0, np.int64), *(parents[k] + depths[k - 1] for k in range(1, order))]),
        np.concatenate(context_words),
        np.concatenate(back_offs),
        np.concatenate([*starts, [grams]]),
        np.concatenate(targets),
        np.concatenate(log_probabilities),
    )
    return tables, {"counts": sizes, "discounts": discounts, "notes": notes}


def estimate_discounts(seen: Sequence[int], order: int) -> tuple[list[float], str]:
    """Return what is taken off counts of 1, 2, and 3 or more, and a note if that could not be estimated as usual.

    D(k) = k - (k + 1) Y n(k + 1) / n(k) with Y = n(1) / (n(1) + 2 n(2)) (Chen and Goodman 1999, equation 26). Small or regular
    texts have no n-grams of some count; then Y is taken off all counts, the original Kneser and Ney's discount, and if
    nothing is known of that either, fixed numbers.

    Parameters
    ----------
    seen
        How many n-grams were seen exactly 1, 2, 3, 4 times.
    order
        Of the n-grams, for the note.
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
    """Return a text with a start before it, or before each of its sentences, and the places in it that are predicted."""
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
    """Sort places by context, newest word first, then by word; missing words come last."""
    keys, other = np.empty_like(places), np.empty_like(places)
    for distance in (0, *range(longest, 0, -1)):
        kernels.sort_by_column(text, lengths, distance, absent, places, keys, other)
        places, other = other, places
    return places


def _numbers(contexts: Integers, words: Integers, V: int) -> npt.NDArray[np.int64]:
    """Return n-grams as numbers that sort by context, then by word."""
    numbers = contexts.astype(np.int64)
    numbers *= V
    numbers += words
    return numbers


def _distinct(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Return the distinct ones of sorted numbers, and how often each occurs."""
    new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    firsts = np.flatnonzero(new)
    return numbers[firsts], np.diff(firsts, append=len(numbers)).astype(np.uint32)
