"""Prefixes: texts that a model continues. One that extends the last one is read from where that ends."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import UNKNOWN, Vocabulary

_BLANK = " "


@dataclass(frozen=True)
class Prefix:
    """A text to be continued, as a model reads it.

    Attributes
    ----------
    text
        The text as the caller gave it.
    tokens, ids
        The tokens of the text, and their ids (N,), int32.
    unknown
        The distinct tokens that the model reads as ``<unk>``.
    """

    text: str
    tokens: list[str]
    ids: npt.NDArray[np.int32]
    unknown: list[str]


class PrefixReader:
    """Reads prefixes as `TextSettings.encode_text` does.

    It remembers the last one up to its last blank, so that a text need not be read again whenever words are added to it. Any
    number of threads may use it.

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
        self._known = Prefix("", [], np.empty(0, np.int32), [])

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixReader, (self.settings, self.vocabulary)

    def read(self, text: str) -> Prefix:
        """Return a text with its tokens and ids."""
        end = text.rfind(_BLANK) + 1
        if LINE_END in text[end:] or not self.settings.tokenizer.is_blank(_BLANK):
            return self._extended(Prefix("", [], self._known.ids[:0], []), text)
        known = self._known
        if not text.startswith(known.text) or LINE_END in text[len(known.text) :]:
            known = Prefix("", [], known.ids[:0], [])
        if end > len(known.text):
            known = self._known = self._extended(known, text[:end])
        return self._extended(known, text)

    def _extended(self, known: Prefix, text: str) -> Prefix:
        """Return a text that begins with one that was read, which is empty, or ends with a blank after which no line ends."""
        new = self.settings.tokens(self.settings.tokenizer.normalize(text[len(known.text) :]))
        if not new:
            return Prefix(text, known.tokens, known.ids, known.unknown)
        ids = self.vocabulary.encode(new)
        unknown = [new[place] for place in np.flatnonzero(ids == self.vocabulary.unknown_id) if new[place] != UNKNOWN]
        every = list(dict.fromkeys([*known.unknown, *unknown]))
        return Prefix(text, [*known.tokens, *new], np.concatenate([known.ids, ids]), every)
