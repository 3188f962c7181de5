"""Windows: the examples that a text gives, each a context of words and the word that follows."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.shuffling import BLOCK
from fflm.text.ids import Ids
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary


class Windows:
    """The examples of an array of ids: every token once, after its context.

    Parameters
    ----------
    ids
        (N,), an array of integers, or the `Ids` of a part of a corpus, of which some blocks are held in memory.
    window
        Number of context words, at least 1.
    padding
        The id that fills a context before the start of the text.
    sentence_end
        In sentence mode the id of the sentence's end: it and all before it in a context become ``padding``. None in
        stream mode, where contexts cross lines.
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

        Before the start stands ``<s>``, except in streams with line ends: the beginning of such a text is like the
        beginning of any line, so it is ``</s>``.
        """
        sentence = settings.mode == "sentence"
        padding = vocabulary.start_id if sentence or vocabulary.end_id is None else vocabulary.end_id
        return cls(ids, window, padding=padding, sentence_end=vocabulary.end_id if sentence else None)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: not the blocks that happen to be in memory."""
        return {**vars(self), "_blocks": ()}

    def __repr__(self) -> str:
        return f"Windows({len(self):,} examples, window {self.window})"

    def __len__(self) -> int:
        """Return the number of examples: N, one a token."""
        return len(self.ids)

    def counts(self, words: int) -> npt.NDArray[np.int64]:
        """Return how often each of the words 0 to ``words`` - 1 occurs, (words,)."""
        result = np.zeros(words, np.int64)
        for low in range(0, len(self.ids), BLOCK):
            result += np.bincount(self.ids[low : low + BLOCK], minlength=words)
        return result

    def contexts(self, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Return the words before positions.

        Parameters
        ----------
        positions
            (B,), in [0, N]; N asks for the context of the word after the text.

        Returns
        -------
        numpy.ndarray
            (B, window), int32, the oldest word first, ids in [0, V].
        """
        return self._contexts(self._found(positions))

    def batch(self, positions: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the examples at positions.

        Parameters
        ----------
        positions
            (B,), in [0, N).

        Returns
        -------
        contexts : numpy.ndarray
            (B, window), int32, the oldest word first, ids in [0, V].
        targets : numpy.ndarray
            (B,), int32, ids in [0, V).
        """
        found = self._found(positions)
        return self._contexts(found), _joined([(rows, block.ids[places + self.window]) for block, rows, places in found])

    def _contexts(self, found: "_Found") -> npt.NDArray[np.int32]:
        contexts = _joined([(rows, block.contexts[places]) for block, rows, places in found])
        if self.sentence_end is not None:
            ends = contexts[:, ::-1] == self.sentence_end
            contexts[np.logical_or.accumulate(ends, axis=1)[:, ::-1]] = self.padding
        return contexts

    def _found(self, positions: npt.NDArray[np.integer]) -> "_Found":
        """Return the blocks of positions (B,), and for each which of them lie in it, and where in it."""
        if isinstance(self.ids, Ids):
            self.ids.verify()  # to go on with what only memory still has would make a run that cannot be resumed
        numbers = positions // BLOCK
        lowest, highest = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
        if lowest == highest:
            return [(self._block(lowest), None, positions - lowest * BLOCK)]
        found: _Found = []
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            found.append((self._block(number), rows, positions[rows] - number * BLOCK))
        return found

    def _block(self, number: int) -> "_Block":
        """Return a block; the latest two are kept, because a batch may go over their border."""
        for block in self._blocks:
            if block.number == number:
                return block
        low, high = number * BLOCK, min((number + 1) * BLOCK, len(self.ids))
        before = min(low, self.window)
        ids = np.full(self.window + high - low, self.padding, np.int32)
        ids[self.window - before :] = self.ids[low - before : high]
        block = _Block(number, ids, np.lib.stride_tricks.sliding_window_view(ids, self.window))
        self._blocks = (block, *self._blocks[:1])  # in one step, for several threads may be here
        return block


class _Block(NamedTuple):
    """Ids in memory, in the order of the text.

    Attributes
    ----------
    number
        Of the block: its first position is ``number * BLOCK``.
    ids
        (window + L,) int32, the words before it and its own.
    contexts
        (L + 1, window), a view of them: those of its positions, and of the next one.
    """

    number: int
    ids: npt.NDArray[np.int32]
    contexts: npt.NDArray[np.int32]


_Found: TypeAlias = list[tuple[_Block, npt.NDArray[np.intp] | None, npt.NDArray[np.integer]]]


def _joined(parts: Sequence[tuple[npt.NDArray[np.intp] | None, npt.NDArray[np.int32]]]) -> npt.NDArray[np.int32]:
    """Return an array of which some rows each are given; a single part is all of it."""
    (_, first), *others = parts
    if not others:
        return first
    result = np.empty((sum(len(values) for _, values in parts), *first.shape[1:]), first.dtype)
    for rows, values in parts:
        result[rows] = values
    return result
