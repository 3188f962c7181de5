"""Counting of n-grams in bounded memory and in several processes.

Sorted by their contexts, from the newest word to the oldest, the n-grams of a context of any length are next to each other, and
so are those of the context without its oldest word, which contains them. So one pass over the sorted n-grams of the highest
order counts those of all orders, and only the counts after one context of each length are in memory. The n-grams are sorted in
blocks of the text, which are then merged (Heafield et al. 2013, https://aclanthology.org/P13-2121). All contexts with the same
newest word belong to one process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError
from fflm.models.ngram import counting_kernels as kernels
from fflm.models.ngram.columns import Column
from fflm.models.ngram.settings import Stages
from fflm.models.ngram.tables import TOO_MANY
from fflm.parallel.communicator import SINGLE_PROCESS, Communicator
from fflm.text.ids import Ids
from fflm.text.windows import Windows

Text = Ids | npt.NDArray[np.integer[Any]]

POSITION_BYTES = 40
"""The most memory that a position of the text takes while a block of positions is sorted."""

SMALLEST_BLOCK = 1 << 12
"""The fewest positions of a block, and the fewest rows of a run in memory."""

_GRAMS = 1 << 18  # n-grams of a chunk
_ROWS = 1 << 16  # rows that are counted, or merged, at a time


@dataclass(frozen=True)
class Work:
    """Where and how a model is estimated.

    Parameters
    ----------
    folder
        The folder of temporary files; that of all processes, which may be on several hosts with the same file system.
    memory
        The memory of this process for n-grams, in bytes, besides arrays of the size of the vocabulary.
    communicator
        The processes that estimate together.
    stages
        As `Stages` describes it.
    """

    folder: Path
    memory: int
    communicator: Communicator = SINGLE_PROCESS
    stages: Stages = None

    def show(self, stage: str, share: float) -> None:
        """Tell ``stages`` what is done, and which share of it is complete."""
        if self.stages:
            self.stages(stage, share)


class Level(NamedTuple):
    """The contexts of one length that a process has, and their n-grams, on disk; see `counting_kernels.Levels`."""

    words: Column
    children: Column
    starts: Column
    targets: Column
    counts: Column
    occurrences: Column

    @classmethod
    def of(cls, folder: Path, rank: int, length: int) -> "Level":
        """Return the columns of the contexts of ``length`` words that a process has, or will have, in a folder."""
        return cls(*(Column(folder / f"{name}-{rank}-{length}") for name in cls._fields))


class Counted(NamedTuple):
    """What `count_ngrams` returns.

    Attributes
    ----------
    levels
        The contexts of 0 to n - 1 words that this process has.
    tallies
        (n, 4): the number of n-grams of each order whose adjusted counts are 1, 2, 3 and 4, of all processes together.
    words
        The number of words that occur.
    """

    levels: list[Level]
    tallies: npt.NDArray[np.int64]
    words: int


def count_ngrams(work: Work, text: Text, windows: Windows, V: int, order: int, *, occurrences: bool) -> Counted:
    """Count the n-grams of a text, as `counting_kernels.add_rows` describes it.

    Parameters
    ----------
    work
        Where and how.
    text
        (N,), the ids of the text.
    windows
        The windows of the text, which say where contexts begin.
    V
        The length of the vocabulary.
    order
        The length of the longest n-grams.
    occurrences
        Whether to count how often n-grams of lower orders occur, too.

    Raises
    ------
    FflmError
        If there are too many n-grams to be numbered by 32 bits.
    """
    communicator, wide = work.communicator, V if occurrences else 0
    levels = [Level.of(work.folder, communicator.rank, length) for length in range(order)]
    opened = kernels.Open(
        np.zeros(order, np.uint32),
        np.zeros(1, np.int64),
        np.zeros((order, V), np.uint32),
        np.zeros((order, wide), np.uint32),
        np.zeros((order, V), np.uint32),
        np.zeros(order, np.int64),
        np.array([[1] + [0] * (order - 1), [0] * order]),
        np.zeros((order, kernels.KNOWN), np.int64),
    )
    contexts, grams = (order, _ROWS + 1), (order, _ROWS + V)
    shapes = contexts, contexts, contexts, grams, grams, grams if occurrences else (order, 0)
    arrays: list[Any] = [*(np.empty(shape, np.uint32) for shape in shapes), np.zeros((3, order), np.int64)]
    buffers = kernels.Levels(*arrays)
    for rows in _sorted_rows(work, text, windows, V, order):
        kernels.add_rows(rows, V + 1, opened, buffers)
        _flush(buffers, levels, opened)
    kernels.close_all(order - 1, opened, buffers)
    _flush(buffers, levels, opened)

    counts = [array[0].astype(np.int64) for array in (opened.counts, opened.occurrences)]
    tallies = opened.tallies[:, 1:].copy()
    communicator.sum_arrays([*counts, tallies])  # from here on, all processes have read all files
    tallies[0] = np.bincount(np.minimum(counts[0], kernels.KNOWN), minlength=kernels.KNOWN + 1)[1:-1]
    for run in work.folder.glob(f"run-{communicator.rank}-*"):
        run.unlink()
    root: list[Any] = [[len(levels[1].words) if order > 1 else 0], [V], np.arange(V), *counts]
    for column, array in zip(levels[0][1:], root, strict=True):
        column.append(np.array(array, np.uint32))
    levels[0].words.append(np.zeros(1, np.uint32))
    return Counted(levels, tallies, int(np.count_nonzero(counts[0])))


def _flush(buffers: kernels.Levels, levels: Sequence[Level], opened: kernels.Open) -> None:
    """Append what is in buffers to the columns, and empty the buffers."""
    for length, level in enumerate(levels):
        new, closed, complete = buffers.used[:, length]
        for column, buffer, count in zip(level, buffers[:-1], [new, closed, closed, *[complete] * 3], strict=True):
            column.append(buffer[length, :count])
    buffers.used[:] = 0
    if opened.totals.max() >= 2**32:
        raise FflmError(TOO_MANY.format(opened.totals.max()))


def _sorted_rows(work: Work, text: Text, windows: Windows, V: int, order: int) -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the rows (L, n + 1) of the n-grams that belong to this process, which are distinct and sorted."""
    communicator = work.communicator
    share = communicator.share(len(text))
    count = share.stop - share.start
    blocks = max(1, -(-count // max(SMALLEST_BLOCK, work.memory // POSITION_BYTES)))
    borders = [share.start + count * block // blocks for block in range(blocks + 1)]
    if communicator.size == blocks == 1:
        work.show("sorting the n-grams", 0.0)
        yield from _rows_of_block(work, "counting the n-grams", text, 0, len(text), windows, V, order)
        return
    firsts = np.zeros(V + 2, np.int64)  # the number of rows that begin with each word
    for block in range(blocks):
        work.show("sorting the n-grams", block / blocks)
        column = Column(work.folder / f"run-{communicator.rank}-{block}", width=order + 1)
        for rows in _rows_of_block(work, "", text, borders[block], borders[block + 1], windows, V, order):
            column.append(rows)
            if communicator.size > 1:
                firsts += np.bincount(rows[:, 0], minlength=V + 2)
    communicator.sum_arrays([firsts])  # from here on, all processes have written all files
    until = np.cumsum(firsts)
    inner = [int(np.searchsorted(until, until[-1] * part // communicator.size)) for part in range(1, communicator.size)]
    low, high = [0, *inner, V + 2][communicator.rank : communicator.rank + 2]
    columns = [Column(path, width=order + 1) for path in sorted(work.folder.glob("run-*"))]
    yield from _merged(work, [(column, _first_from(column, low), _first_from(column, high)) for column in columns], order)


def _rows_of_block(
    work: Work, stage: str, text: Text, start: int, stop: int, windows: Windows, V: int, order: int
) -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the rows (L, n + 1) of the n-grams at the positions from ``start`` to ``stop``, distinct and sorted."""
    longest, absent, start_id = order - 1, V + 1, V
    words, places = _with_starts(text, start, stop, windows, longest)
    lengths = kernels.context_lengths(words, start_id, longest)
    keys, other = np.empty_like(places), np.empty_like(places)
    for distance in (0, *range(longest, 0, -1)):
        kernels.sort_by_column(words, lengths, distance, absent, places, keys, other)
        places, other = other, places
    del keys, other
    first, rows = 0, np.empty((_ROWS, order + 1), np.uint32)
    while first < len(places):
        first, count = kernels.collect(words, lengths, places, absent, first, rows)
        yield rows[:count]
        if stage:
            work.show(stage, first / len(places))


def _with_starts(
    text: Text, start: int, stop: int, windows: Windows, longest: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return a block of a text, with the words before it, and its positions (P,) there.

    Padding is inserted before the text, or before each of its sentences.
    """
    low = max(0, start - longest)
    words = np.asarray(text[low:stop]).astype(np.uint32)
    if windows.sentence_end is None:
        padding = 0 if low else 1
        words = np.concatenate([np.full(padding, windows.padding, np.uint32), words])
        return words, np.arange(start - low + padding, len(words), dtype=np.uint32)
    starts = 1 + np.flatnonzero(words[:-1] == windows.sentence_end)
    if low == 0 or int(text[low - 1 : low][0]) == windows.sentence_end:
        starts = np.concatenate([[0], starts])
    words = np.insert(words, starts, windows.padding)
    return words, np.flatnonzero(words != windows.padding)[start - low :].astype(np.uint32)


def _first_from(column: Column, word: int) -> int:
    """Return the number of the first row, of sorted ones, that begins with a word or a larger one."""
    low, high = 0, len(column)
    while low < high:
        middle = (low + high) // 2
        if column.read(middle, middle + 1)[0, 0] < word:
            low = middle + 1
        else:
            high = middle
    return low


def _merged(work: Work, runs: Sequence[tuple[Column, int, int]], order: int) -> Iterator[npt.NDArray[np.uint32]]:
    """Merge the rows of runs, each a column from one number to another, and yield distinct, sorted rows (L, n + 1)."""
    unread = np.array([[low, high] for _, low, high in runs])
    total, done = int(np.diff(unread).sum()), 0
    room = max(SMALLEST_BLOCK, work.memory // (2 * len(runs) * 4 * (order + 1)))
    rows = np.empty((len(runs), min(room, _ROWS), order + 1), np.uint32)
    at, filled = np.zeros(len(runs), np.int64), np.zeros(len(runs), np.int64)

    def refill(run: int) -> bool:
        """Read more rows of a run; return whether there are any."""
        low, high = unread[run]
        found = runs[run][0].read(low, min(high, low + rows.shape[1]))
        rows[run, : len(found)] = found
        unread[run, 0] += len(found)
        at[run], filled[run] = 0, len(found)
        return len(found) > 0

    heap = np.array([run for run in range(len(runs)) if refill(run)], np.int64)
    kernels.make_heap(rows, at, heap)
    merged, count, size = np.empty((_ROWS, order + 1), np.uint32), 0, len(heap)
    while size:
        count = kernels.merge(rows, at, filled, heap, size, count, merged)
        run = heap[0]
        if at[run] < filled[run]:
            yield merged
            count = 0
        elif not refill(run):
            size -= 1
            heap[0] = heap[size]
        else:
            done += int(filled[run])
            work.show("counting the n-grams", done / total)
    yield merged[:count]


class Chunk(NamedTuple):
    """Some contexts of a level, and their n-grams.

    Attributes
    ----------
    low, high
        The number of the first context, and of the first one after them.
    starts
        (C + 1,), int64: where the n-grams of each context start.
    parents
        (C,), int64: the number of each context without its oldest word, among those that are one word shorter.
    """

    low: int
    high: int
    starts: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]

    @property
    def grams(self) -> tuple[int, int]:
        """The number of the first n-gram, and of the first one after them."""
        return int(self.starts[0]), int(self.starts[-1])


def chunks(level: Level, lower: Level | None) -> Iterator[Chunk]:
    """Yield the contexts of a level in chunks of about `_GRAMS` n-grams; ``lower`` has the contexts that are one word shorter."""
    low, count, parent = 0, len(level.starts), 0
    while low < count:
        starts = ends(level.starts, low, min(count, low + _GRAMS))
        high = low + max(1, int(np.searchsorted(starts, starts[0] + _GRAMS, "right")) - 1)
        parents = np.zeros(high - low, np.int64)
        if lower:
            size = high - low
            while (until := lower.children.read(parent, min(len(lower.children), parent + size)))[-1] < high:
                size *= 2
            last = np.clip(until.astype(np.int64), low, high)
            counts = last - np.concatenate([[low], last[:-1]])  # of the contexts of each parent
            parents = np.repeat(np.arange(parent, parent + len(until)), counts)
            parent = int(parents[-1])
        yield Chunk(low, high, starts[: high - low + 1], parents)
        low = high


def ends(column: Column, low: int, high: int) -> npt.NDArray[np.int64]:
    """Return the ends (high - low + 1,) of the items of contexts from ``low`` on, beginning with that of the one before."""
    before = column.read(low - 1, low) if low else np.zeros(1, np.uint32)
    return np.concatenate([before, column.read(low, high)]).astype(np.int64)
