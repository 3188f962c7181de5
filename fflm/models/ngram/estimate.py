"""Interpolated modified Kneser-Ney estimation (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128).

The n-grams are on disk: they are counted in one pass (`fflm.models.ngram.counting`), and interpolated in another one, order by
order, in chunks of contexts. Each chunk needs only the contexts without the oldest word, which are next to each other as well.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fflm.arrays import Arrays
from fflm.backend.cpu.launching import shares_of
from fflm.errors import FflmError
from fflm.models.ngram import kernels
from fflm.models.ngram.columns import Column, Joined, Piece
from fflm.models.ngram.counting import Counted, Level, Text, Work, chunks, count_ngrams, ends
from fflm.models.ngram.pruning import prune_by_entropy
from fflm.models.ngram.settings import MEMORY, largest_pruned, memory_bytes
from fflm.models.ngram.tables import TOO_MANY, Tables
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows

FIXED_DISCOUNTS = (0.5, 1.0, 1.5)
"""Discounts of the counts 1, 2, and 3 or more where they cannot be estimated, as in KenLM."""


class Estimates(NamedTuple):
    """The estimates for the n-grams and contexts of a `Level`, on disk.

    Attributes
    ----------
    log_probabilities, back_offs
        As in `Tables`.
    probabilities
        (G,), float64: the probability of each n-gram.
    kept
        (G,), bool: whether the model will have each n-gram.
    frequencies
        (C,), int64: how often each context occurs; empty without pruning.
    """

    log_probabilities: Column
    back_offs: Column
    probabilities: Column
    kept: Column
    frequencies: Column

    @classmethod
    def of(cls, folder: Path, rank: int, length: int) -> "Estimates":
        """Return the columns for the contexts of ``length`` words that a process has, or will have, in a folder."""
        types = np.float32, np.float32, np.float64, bool, np.int64
        names = zip(cls._fields, types, strict=True)
        return cls(*(Column(folder / f"{name}-{rank}-{length}", dtype) for name, dtype in names))


class Estimated(NamedTuple):
    """A model, whose n-grams are on disk.

    Attributes
    ----------
    arrays
        The arrays of its `Tables`, which are `Joined`, unless it was pruned by entropy.
    details
        ``counts``, the number of n-grams of each order; ``discounts``, three numbers for each order; ``notes``, messages about
        discounts that could not be estimated.
    levels
        For contexts of 0 to n - 1 words, what each process has of them; empty if the model was pruned by entropy.
    """

    arrays: Arrays
    details: dict[str, Any]
    levels: list[list[tuple[Level, Estimates]]]


def estimate(
    text: Text,
    vocabulary: Vocabulary,
    settings: TextSettings,
    order: int,
    prune: Sequence[int] = (),
    prune_entropy: float = 0.0,
    memory: str = MEMORY,
) -> tuple[Tables, dict[str, Any]]:
    """Estimate a model as `estimate_on_disk` does, in a temporary folder of the system, and return its tables in memory."""
    with tempfile.TemporaryDirectory(prefix="fflm-") as folder:
        work = Work(Path(folder), memory_bytes(memory))
        estimated = estimate_on_disk(work, text, vocabulary, settings, order, prune, prune_entropy)
        return in_memory(estimated.arrays), estimated.details


def estimate_on_disk(
    work: Work,
    text: Text,
    vocabulary: Vocabulary,
    settings: TextSettings,
    order: int,
    prune: Sequence[int] = (),
    prune_entropy: float = 0.0,
) -> Estimated:
    """Estimate an interpolated modified Kneser-Ney model from a text.

    The adjusted count of an n-gram of the highest order is the number of its occurrences. The adjusted count of a shorter n-gram
    is the number of distinct words that precede it; if it starts at ``<s>`` or at the start of the text, where no word precedes
    it, it is the number of its occurrences, as in KenLM. Unigrams are interpolated with the uniform distribution. The result does
    not depend on the memory, nor on the number of processes.

    Parameters
    ----------
    work
        Where and how. All processes call this function, and get the same results.
    text
        (N,), the ids of the text.
    vocabulary, settings
        The vocabulary and the settings of the text.
    order
        The length of the longest n-grams, at least 1.
    prune, prune_entropy
        How to prune the model, as `fflm.models.ngram.pruning` describes it; discounts are estimated before. To prune by entropy
        takes memory for all n-grams that are not pruned by count.

    Raises
    ------
    FflmError
        If there are too many n-grams, or ``prune`` is not in ascending order from 0, or longer than ``order``.
    """
    limits, V, size = largest_pruned(prune, order), len(vocabulary), work.communicator.size
    pruned = bool(any(limits) or prune_entropy)
    counted = count_ngrams(work, text, Windows.of(text, vocabulary, settings, 1), V, order, occurrences=pruned)
    estimated = [estimate_discounts(seen, k) for k, seen in enumerate(counted.tallies.tolist(), 1)]
    details: dict[str, Any] = {
        "discounts": [values for values, _ in estimated],
        "notes": [note for _, note in estimated if note],
    }
    _interpolate(work, counted, limits if pruned else None, details["discounts"], V)
    if pruned:
        _drop(work, counted.levels)
    work.communicator.barrier()
    every = [
        [(Level.of(work.folder, rank, length), Estimates.of(work.folder, rank, length)) for rank in range(size if length else 1)]
        for length in range(order)
    ]
    arrays: Arrays = _joined(every)
    longer = [sum(len(level.targets) for level, _ in parts) for parts in every[1:]]
    if prune_entropy:
        frequencies = np.concatenate([part for parts in every for _, each in parts for part in each.frequencies.parts()])
        tables = prune_by_entropy(in_memory(arrays), frequencies / frequencies[0], prune_entropy)
        arrays, every = tables.arrays(), []
        longer = [int(tables.starts[high] - tables.starts[low]) for low, high in tables.levels()[1:]]
    if pruned:
        details |= {"prune": list(prune), "prune_entropy": prune_entropy}
    details = {"counts": [counted.words, *longer, *[0] * (order - 1 - len(longer))], **details}
    return Estimated(arrays, details, every)


def in_memory(arrays: Arrays) -> Tables:
    """Return the tables of a model, given their arrays, of which some may be on disk."""
    found: dict[str, Any] = {name: each.read() if isinstance(each, Joined) else each for name, each in arrays.items()}
    return Tables(**found)


def _interpolate(
    work: Work, counted: Counted, limits: Sequence[int] | None, discounts: Sequence[Sequence[float]], V: int
) -> None:
    """Interpolate each order with the next lower one, unigrams with the uniform distribution, and write the `Estimates`.

    N-grams that occur at most as often as the limit of their order are not kept, but have the probability that they have without
    an entry.
    """
    every, done = sum(len(level.targets) for level in counted.levels), 0
    lower, lower_probabilities = None, Column(work.folder / "none")
    for length, level in enumerate(counted.levels):
        estimates = Estimates.of(work.folder, work.communicator.rank, length)
        values = np.array([0.0, *discounts[length]])
        for chunk in chunks(level, lower):
            work.show("interpolating", done / every)
            counts, words = level.counts.read(*chunk.grams), level.targets.read(*chunk.grams)
            starts, parents = chunk.starts - chunk.starts[0], chunk.parents - chunk.parents[0]
            if lower:
                lower_starts = ends(lower.starts, int(chunk.parents[0]), int(chunk.parents[-1]) + 1)
                among = int(lower_starts[0]), int(lower_starts[-1])
                below = lower_starts - among[0], lower.targets.read(*among), lower_probabilities.read(*among)
            else:
                below = np.array([0, V]), words, np.full(V, 1 / V)
            kept = np.ones(len(words), bool)
            if limits:
                occurrences = level.occurrences.read(*chunk.grams)
                kept[:] = occurrences > limits[length] if length else True
                estimates.kept.append(kept)
                estimates.frequencies.append(np.add.reduceat(occurrences, starts[:-1], dtype=np.int64))
            probabilities, back_offs = np.empty(len(words)), np.empty(len(parents))
            shares = shares_of(len(words) * kernels.LOOKUP_COST)
            kernels.interpolate(starts, words, counts, kept, parents, *below, values, probabilities, back_offs, shares)
            estimates.log_probabilities.append(np.log(probabilities).astype(np.float32))
            estimates.back_offs.append(np.log(back_offs).astype(np.float32))
            if length + 1 < len(counted.levels):
                estimates.probabilities.append(probabilities)
            done += len(words)
        level.counts.remove()
        lower_probabilities.remove()
        lower, lower_probabilities = level, estimates.probabilities


def _drop(work: Work, levels: Sequence[Level]) -> None:
    """Remove the n-grams that are not kept, and the contexts that have no others, from the columns of a process.

    The contexts of an n-gram that is kept are kept without their oldest words, too, because limits ascend.
    """
    used = Column(work.folder / f"used-{work.communicator.rank}-{len(levels)}", bool)
    for length in range(len(levels) - 1, -1, -1):
        level, estimates = levels[length], Estimates.of(work.folder, work.communicator.rank, length)
        deeper, used = used, Column(work.folder / f"used-{work.communicator.rank}-{length}", bool)
        whole = [level.words, level.children, level.starts, level.targets, *estimates[:2], estimates.frequencies]
        fewer = [Column(each.path.with_name(f"fewer-{each.path.name}"), each.dtype) for each in whole]
        grams = children = 0
        for chunk in chunks(level, None):
            kept = estimates.kept.read(*chunk.grams)
            left = np.add.reduceat(kept, chunk.starts[:-1] - chunk.starts[0], dtype=np.int64)
            among = ends(level.children, chunk.low, chunk.high)
            before = np.concatenate([[0], np.cumsum(deeper.read(int(among[0]), int(among[-1])))])
            inner, own = np.diff(before[among - among[0]]), left > 0
            used.append(own)
            rows = [
                level.words.read(chunk.low, chunk.high)[own],
                (children + np.cumsum(inner[own])).astype(np.uint32),
                (grams + np.cumsum(left[own])).astype(np.uint32),
                level.targets.read(*chunk.grams)[kept],
                estimates.log_probabilities.read(*chunk.grams)[kept],
                estimates.back_offs.read(chunk.low, chunk.high)[own],
                estimates.frequencies.read(chunk.low, chunk.high)[own],
            ]
            for column, part in zip(fewer, rows, strict=True):
                column.append(part)
            grams, children = grams + int(left.sum()), children + int(inner.sum())
        for old, new in zip(whole, fewer, strict=True):
            old.remove()
            if new.path.exists():  # some are left
                new.path.rename(old.path)
        deeper.remove()


def _joined(every: Sequence[Sequence[tuple[Level, Estimates]]]) -> Arrays:
    """Return the arrays of the tables of a model, given for each length of context what each process has."""
    contexts = [[len(level.words) for level, _ in parts] for parts in every]
    grams = [[len(level.targets) for level, _ in parts] for parts in every]
    if sum(map(sum, grams)) >= 2**32:
        raise FflmError(TOO_MANY.format(sum(map(sum, grams))))
    numbers, places = (np.cumsum([0, *(count for counts in sizes for count in counts)]).tolist() for sizes in (contexts, grams))
    first = np.cumsum([0, *map(len, contexts)]).tolist()  # the place of the parts of each length in these lists
    children, starts = [Piece(np.ones(1, np.uint32))], [Piece(np.zeros(1, np.uint32))]
    for length, parts in enumerate(every):
        for rank, (level, _) in enumerate(parts):
            deeper = min(first[length + 1] + rank, len(numbers) - 1)
            children.append(Piece(level.children, numbers[deeper]))
            starts.append(Piece(level.starts, places[first[length] + rank]))
    children[1] = Piece(np.array([1 + (sum(contexts[1]) if len(contexts) > 1 else 0)], np.uint32))
    levels = [part for parts in every for part in parts]
    return {
        "children": Joined(children, np.uint32),
        "words": Joined([Piece(level.words) for level, _ in levels], np.uint32),
        "back_offs": Joined([Piece(each.back_offs) for _, each in levels], np.float32),
        "starts": Joined(starts, np.uint32),
        "targets": Joined([Piece(level.targets) for level, _ in levels], np.uint32),
        "log_probabilities": Joined([Piece(each.log_probabilities) for _, each in levels], np.float32),
    }


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
