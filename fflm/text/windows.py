"""Windows: the examples in a text, each of them a context of words and the word that follows."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.shuffling import BLOCK
from fflm.text.ids import Ids
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary


class Windows:
    """The examples in an array of ids: each token is the target of one example, after its context.

    Parameters
    ----------
    ids
        An array of integers, (N,), or the `Ids` of a part of a corpus, of which two blocks at most are held in memory.
    window
        The number of context words, at least 1.
    padding
        The id that fills a context before the start of the text.
    sentence_end
        In sentence mode, the id of the end of a sentence; in a context, it and all words before it are replaced by ``padding``.
        None in stream mode, where contexts cross lines.
    """

    def __init__(self, ids: Ids | npt.NDArray[np.integer], window: int, *, padding: int, sentence_end: int | None = None) -> None:
        self.ids = ids
        self.window = window
        self.padding = padding
        self.sentence_end = sentence_end
        self._blocks: tuple[_Block, ...] = ()

    @classmethod
    def of(cls, ids: Ids | npt.NDArray[np.integer], vocabulary: Vocabulary, settings: TextSettings, window: int) -> "Windows":
        """Make the windows of a text that was encoded with a vocabulary and settings.

        The padding before the start is ``<s>``, except in streams with line ends: the beginning of such a text is like the
        beginning of any other line, so the padding is ``</s>``.
        """
        sentence = settings.mode == "sentence"
        padding = vocabulary.start_id if sentence or vocabulary.end_id is None else vocabulary.end_id
        return cls(ids, window, padding=padding, sentence_end=vocabulary.end_id if sentence else None)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the blocks that are in memory."""
        return {**vars(self), "_blocks": ()}

    def __repr__(self) -> str:
        return f"Windows({len(self):,} examples, window {self.window})"

    def __len__(self) -> int:
        """Return the number of examples N, one per token."""
        return len(self.ids)

    def counts(self, words: int) -> npt.NDArray[np.int64]:
        """Return the number of occurrences of each of the ids 0 to ``words`` - 1, (words,), int64."""
        result = np.zeros(words, np.int64)
        for low in range(0, len(self.ids), BLOCK):
            result += np.bincount(self.ids[low : low + BLOCK], minlength=words)
        return result

    def contexts(self, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Return the words before positions.

        Parameters
        ----------
        positions
            Positions of targets, (B,), in [0, N]; N is that of the word after the text.

        Returns
        -------
        numpy.ndarray
            The ids of the context words, (B, window), int32, in [0, V], the oldest word first.
        """
        return self._contexts(self._locate(positions))

    def batch(self, positions: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the examples at positions.

        Parameters
        ----------
        positions
            Positions of targets, (B,), in [0, N).

        Returns
        -------
        contexts : numpy.ndarray
            The ids of the context words, (B, window), int32, in [0, V], the oldest word first.
        targets : numpy.ndarray
            The ids of the targets, (B,), int32, in [0, V).
        """
        found = self._locate(positions)
        return self._contexts(found), _assemble([(rows, block.ids[places + self.window]) for block, rows, places in found])

    def _contexts(self, found: "_Located") -> npt.NDArray[np.int32]:
        """Return the contexts of positions that `_locate` has located, (B, window)."""
        contexts = _assemble([(rows, block.contexts[places]) for block, rows, places in found])
        if self.sentence_end is not None:
            ends = contexts[:, ::-1] == self.sentence_end
            contexts[np.logical_or.accumulate(ends, axis=1)[:, ::-1]] = self.padding
        return contexts

    def _locate(self, positions: npt.NDArray[np.integer]) -> "_Located":
        """Return the blocks in which positions (B,) lie, and for each the indices of its positions, and their places in it."""
        if isinstance(self.ids, Ids):
            self.ids.verify()  # if the file is lost, training on the blocks in memory could not be resumed
        numbers = positions // BLOCK
        lowest, highest = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
        if lowest == highest:
            return [(self._block(lowest), None, positions - lowest * BLOCK)]
        found: _Located = []
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            found.append((self._block(number), rows, positions[rows] - number * BLOCK))
        return found

    def _block(self, number: int) -> "_Block":
        """Return a block; the last two are kept in memory, because a batch may cross the border between them."""
        for block in self._blocks:
            if block.number == number:
                return block
        low, high = number * BLOCK, min((number + 1) * BLOCK, len(self.ids))
        before = min(low, self.window)
        ids = np.full(self.window + high - low, self.padding, np.int32)
        ids[self.window - before :] = self.ids[low - before : high]
        block = _Block(number, ids, np.lib.stride_tricks.sliding_window_view(ids, self.window))
        self._blocks = (block, *self._blocks[:1])  # in one step, because several threads may be here
        return block


class _Block(NamedTuple):
    """Ids in memory, in the order of the text.

    Attributes
    ----------
    number
        The number of the block, whose first position is ``number * BLOCK``.
    ids
        The ids of the words before the block and of the block, (window + L,), int32.
    contexts
        The contexts of the block's positions and of the next position, (L + 1, window), a view of ``ids``.
    """

    number: int
    ids: npt.NDArray[np.int32]
    contexts: npt.NDArray[np.int32]


_Located: TypeAlias = list[tuple[_Block, npt.NDArray[np.intp] | None, npt.NDArray[np.integer]]]


def _assemble(parts: Sequence[tuple[npt.NDArray[np.intp] | None, npt.NDArray[np.int32]]]) -> npt.NDArray[np.int32]:
    """Put together an array from pairs of row indices and values; a single pair has all rows."""
    (_, first), *others = parts
    if not others:
        return first
    result = np.empty((sum(len(values) for _, values in parts), *first.shape[1:]), first.dtype)
    for rows, values in parts:
        result[rows] = values
    return result
