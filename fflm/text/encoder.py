"""Encoding of long texts, chunk by chunk."""

import numpy as np
import numpy.typing as npt

from fflm.text.extent import Extent
from fflm.text.numbering import Numbering, Numbers
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary

MAX_TYPES = 1 << 20
"""Number of distinct tokens that an encoder or a worker process remembers before it forgets them all."""


class Encoder:
    """Turns a text that comes in chunks into ids, as `TextSettings.encode_text` does, but faster if the text is long.

    Parameters
    ----------
    settings
        How text becomes tokens.
    vocabulary
        The words that have ids.
    """

    def __init__(self, settings: TextSettings, vocabulary: Vocabulary) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self._numbering = Numbering(settings.tokenizer, MAX_TYPES)
        self._ids = np.empty(0, np.int32)  # (K,): the id of each token that has a number

    def encode(self, chunk: str) -> tuple[npt.NDArray[np.int32], Extent]:
        """Return the ids of the next chunk, (N,), and its extent."""
        start, numbers, extent = number_chunk(chunk, self.settings, self._numbering)
        self._ids = np.append(self._ids[:start], self.vocabulary.encode(self._numbering.types(start)))
        return self._ids[numbers], extent


def number_chunk(chunk: str, settings: TextSettings, numbering: Numbering) -> tuple[int, Numbers, Extent]:
    """Normalize and tokenize a chunk.

    Returns
    -------
    start : int
        The numbers from ``start`` on are new, as `Numbering.number` returns it.
    numbers : numpy.ndarray
        The numbers of the tokens, (N,), uint32.
    extent : Extent
        The extent of the chunk.
    """
    text = settings.tokenizer.normalize(chunk)
    start, numbers = numbering.number(text)
    return start, settings.keep_predicted_ends(numbers), Extent.of(chunk, text)
