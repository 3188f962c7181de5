"""Encoding of long texts, chunk by chunk."""

import numpy as np
import numpy.typing as npt

from fflm.text.numbering import Numbering, Numbers
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary

MAX_TYPES = 1 << 20
"""Number of distinct tokens that an encoder or a worker process remembers before it forgets them all."""


class Encoder:
    """Turns a text that comes in chunks into ids: what `TextSettings.encode_text` does, faster if it is long.

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
        self._ids = np.empty(0, np.int32)  # of the tokens that have numbers

    def encode(self, chunk: str) -> tuple[npt.NDArray[np.int32], int]:
        """Return the ids of the next chunk, (N,), and the characters that it has when it is normalised."""
        start, numbers, characters = number_chunk(chunk, self.settings, self._numbering)
        self._ids = np.append(self._ids[:start], self.vocabulary.encode(self._numbering.types(start)))
        return self._ids[numbers], characters


def number_chunk(chunk: str, settings: TextSettings, numbering: Numbering) -> tuple[int, Numbers, int]:
    """Return the first new number, the numbers of a chunk's tokens, and how many characters it has."""
    text = settings.tokenizer.normalize(chunk)
    start, numbers = numbering.number(text)
    return start, settings.ends_only(numbers), len(text)
