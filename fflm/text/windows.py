"""Windows: the examples that a text gives, each a context of words and the word that follows."""

import numpy as np
import numpy.typing as npt

from fflm.shuffling import BLOCK
from fflm.text.corpus import TextSettings
from fflm.text.vocabulary import Vocabulary


class Windows:
    """The examples of an array of ids: every token once, after its context.

    Parameters
    ----------
    ids
        (N,), any integer type, may be memory-mapped.
    window
        Number of context words, at least 1.
    padding
        The id that fills a context before the start of the text.
    sentence_end
        In sentence mode the id of the sentence's end: it and all before it in a context become ``padding``. None in
        stream mode, where contexts cross lines.
    """

    def __init__(self, ids: npt.NDArray[np.integer], window: int, *, padding: int, sentence_end: int | None = None) -> None:
        self.ids = ids
        self.window = window
        self.padding = padding
        self.sentence_end = sentence_end

    @classmethod
    def of(cls, ids: npt.NDArray[np.integer], vocabulary: Vocabulary, settings: TextSettings, window: int) -> "Windows":
        """Make the windows of a text that was encoded with a vocabulary and settings.

        Before the start stands ``<s>``, except in streams with line ends: the beginning of such a text is like the
        beginning of any line, so it is ``</s>``.
        """
        sentence = settings.mode == "sentence"
        padding = vocabulary.start_id if sentence or vocabulary.end_id is None else vocabulary.end_id
        return cls(ids, window, padding=padding, sentence_end=vocabulary.end_id if sentence else None)

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
        contexts = np.full((len(positions), self.window), self.padding, np.int32)
        whole = positions >= self.window
        if whole.any():
            contexts[whole] = np.lib.stride_tricks.sliding_window_view(self.ids, self.window)[positions[whole] - self.window]
        for row in np.flatnonzero(~whole):
            length = positions[row]
            contexts[row, self.window - length :] = self.ids[:length]
        if self.sentence_end is not None:
            ends = contexts[:, ::-1] == self.sentence_end
            contexts[np.logical_or.accumulate(ends, axis=1)[:, ::-1]] = self.padding
        return contexts

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
        return self.contexts(positions), self.ids[positions].astype(np.int32)
