"""The index of a model whose n-grams are on disk, made in bounded memory.

Shorter n-grams are entered first, because the keys of longer ones depend on their entries; and those whose slots are in one part
of the table before those of the next part, so that only this part is in memory.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.models.ngram import indexing_kernels as kernels
from fflm.models.ngram.columns import PART, Column, Joined, Piece
from fflm.models.ngram.counting import Level, Work, chunks, ends
from fflm.models.ngram.estimate import Estimates
from fflm.models.ngram.index import table_sizes
from fflm.models.ngram.kernels import ENTRY, NO_CONTEXT, NO_NGRAM, Index


class _Part(NamedTuple):
    """The contexts of one length that one process has, and their n-grams.

    Attributes
    ----------
    level, estimates
        What was counted and estimated.
    keys
        (G,), uint64: the keys of the n-grams in the index.
    numbers, contexts
        (G,) and (C,), uint32: the entries of the n-grams, and of the contexts.
    """

    level: Level
    estimates: Estimates
    keys: Column
    numbers: Column
    contexts: Column


def build_index(work: Work, levels: Sequence[Sequence[tuple[Level, Estimates]]], words: int) -> tuple[Index, Joined]:
    """Make the index of a model, whose contexts are all n-grams, as `fflm.models.ngram.estimate` leaves them.

    Parameters
    ----------
    work
        Where, and the memory.
    levels
        For contexts of 0 to n - 1 words, what each process has of them.
    words
        V + 1.

    Returns
    -------
    index : Index
        The index, whose entries are mapped from a file in the folder.
    rows : Joined
        The same entries, as rows of bytes, of which only some are in memory at a time.

    Raises
    ------
    FflmError
        If there are too many n-grams to be numbered by 32 bits.
    """
    path, count = work.folder / "entries", sum(len(level.targets) for parts in levels for level, _ in parts)
    for slots, size in table_sizes(count, words):
        if _fill(work, levels, path, words, slots, size):
            break
    return Index(_mapped(path), words, slots), Joined([Piece(Column(path, np.uint8, ENTRY.itemsize))], np.uint8)


def _fill(work: Work, levels: Sequence[Sequence[tuple[Level, Estimates]]], path: Path, words: int, slots: int, size: int) -> bool:
    """Write a table of ``size`` entries to a file; return whether there was room for all n-grams."""
    with path.open("wb") as file:
        file.truncate(size * ENTRY.itemsize)
    single = _mapped(path)[:words]
    single["log_p"], single["back_off"] = NO_NGRAM, NO_CONTEXT
    single["log_p"][:-1] = levels[0][0][1].log_probabilities.read(0, words - 1)
    lower: list[_Part] = []
    for length, parts in enumerate(levels):
        own = []
        for rank, (level, estimates) in enumerate(parts):
            keys, numbers, contexts = (
                Column(work.folder / f"{name}-{rank}-{length}", dtype)
                for name, dtype in (("keys", np.uint64), ("numbers", np.uint32), ("contexts", np.uint32))
            )
            own.append(_Part(level, estimates, keys, numbers, contexts))
            for column in own[-1][2:]:
                column.remove()  # of an attempt with fewer slots
        work.show("making the index", length / len(levels))
        if length == 0:
            own[0].numbers.append(np.arange(words - 1, dtype=np.uint32))
            own[0].contexts.append(np.zeros(1, np.uint32))
        else:
            lower *= len(own) // len(lower)  # the empty context belongs to all processes
            _set_contexts(work, path, words, slots, own, lower, length)
            if not _enter(work, path, words, slots, own, lower, length):
                return False
        lower = own
    return True


def _set_contexts(work: Work, path: Path, words: int, slots: int, own: list[_Part], lower: list[_Part], length: int) -> None:
    """Set the back-off weights of contexts; those of n-grams of as many words are in the table already."""
    for part in own:
        part.contexts.extend(len(part.level.words))
    for first, last in _parts(work, words, slots):
        entries = _mapped(path)
        for part, below in zip(own, lower, strict=True):
            for chunk in chunks(part.level, below.level if length > 1 else None):
                oldest = part.level.words.read(chunk.low, chunk.high)
                back_offs = part.estimates.back_offs.read(chunk.low, chunk.high)
                if length == 1:
                    entries["back_off"][oldest] = back_offs + np.float32(0)  # -0 becomes 0
                    part.contexts.mapped(chunk.low, chunk.high)[:] = oldest
                    continue
                parents, numbers = chunk.parents - chunk.parents[0], part.contexts.mapped(chunk.low, chunk.high)
                above = below.contexts.read(int(chunk.parents[0]), int(chunk.parents[-1]) + 1)
                kernels.set_back_offs(entries, words, slots, first, last, above, parents, oldest, back_offs, numbers)


def _enter(work: Work, path: Path, words: int, slots: int, own: list[_Part], lower: list[_Part], length: int) -> bool:
    """Enter the n-grams of contexts; return whether there was room for all."""
    for part, below in zip(own, lower, strict=True):
        for chunk in chunks(part.level, below.level if length > 1 else None):
            lower_starts = ends(below.level.starts, int(chunk.parents[0]), int(chunk.parents[-1]) + 1)
            among = int(lower_starts[0]), int(lower_starts[-1])
            keys = np.empty(chunk.grams[1] - chunk.grams[0], np.uint64)
            kernels.make_keys(
                chunk.starts - chunk.starts[0],
                part.level.targets.read(*chunk.grams),
                chunk.parents - chunk.parents[0],
                part.level.words.read(chunk.low, chunk.high),
                lower_starts - among[0],
                below.level.targets.read(*among),
                below.numbers.read(*among),
                keys,
            )
            part.keys.append(keys)
        part.numbers.extend(len(part.keys))
    waiting: list[list[int]] = [[] for _ in own]
    for first, last in _parts(work, words, slots):
        entries = _mapped(path)
        for part, late in zip(own, waiting, strict=True):
            for low in range(0, len(part.keys), PART):
                high = min(len(part.keys), low + PART)
                keys, log_p = part.keys.read(low, high), part.estimates.log_probabilities.read(low, high)
                places = np.empty(len(keys), np.int64)
                count = kernels.enter(entries, words, slots, first, last, keys, log_p, part.numbers.mapped(low, high), places)
                late += (low + places[:count]).tolist()
    entries = _mapped(path)
    for part, late in zip(own, waiting, strict=True):
        for gram in sorted(late):
            one = gram, gram + 1
            keys, log_p = part.keys.read(*one), part.estimates.log_probabilities.read(*one)
            if not kernels.enter_waiting(entries, words, slots, keys, log_p, part.numbers.mapped(*one)):
                return False
    return True


def _parts(work: Work, words: int, slots: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of the table, as the first slot and that after the last one; about half of the memory has room for each."""
    regions = max(1, work.memory // (2 * kernels.REGION * ENTRY.itemsize))
    for first in range(0, slots, regions * kernels.REGION):
        yield words + first, words + first + regions * kernels.REGION


def _mapped(path: Path) -> npt.NDArray[np.void]:
    """Map the entries in a file into memory; what is written to them is written to the file."""
    return np.memmap(path, ENTRY, "r+")
