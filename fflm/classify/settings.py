"""What a network reads of a text, and what is another default than elsewhere; light enough for a help text."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Self, get_args

from fflm.errors import FflmError
from fflm.text.tokenizer import Tokenizer

InputName = Literal["mean", "max", "window", "features"]

LONGEST = 1_000_000
"""Words of a text that are read, at most, if a length is given."""

MAX_WORDS = 200_000
"""Words and bigrams of the largest vocabulary, if nobody says."""


@dataclass(frozen=True)
class TextInput:
    """How a text becomes what a network reads.

    Attributes
    ----------
    input
        ``mean`` or ``max``: the embeddings of its words, pooled. ``window``: those of its first ``length`` words, concatenated,
        with padding after a shorter text. ``features``: numbers, which the other attributes name.
    tokenizer
        What splits the text.
    length
        Words that are read, from the beginning; None for all, or for the first 50 of ``window``.
    bigrams
        Whether two words that follow each other are a word, too (Joulin et al. 2017, section 2.1).
    counts
        So many of the most frequent words are counted, a feature each.
    lexicon
        Categories, and the words of each: a feature is how many of a text's words are in a category.
    present
        Words whose presence is a feature, 1 or 0.
    log_length
        Whether the logarithm of one more than the number of words is a feature.

    Raises
    ------
    FflmError
        If they make no sense together.
    """

    input: InputName = "mean"
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    length: int | None = None
    bigrams: bool = False
    counts: int = 0
    lexicon: Mapping[str, Sequence[str]] = field(default_factory=dict)
    present: tuple[str, ...] = ()
    log_length: bool = False

    def __post_init__(self) -> None:
        if self.input not in get_args(InputName):
            raise FflmError(f"unknown input {self.input!r}: choose one of {', '.join(get_args(InputName))}")
        if self.length is not None and not 1 <= self.length <= LONGEST:
            raise FflmError(f"length {self.length} is out of range: give 1 to {LONGEST:,} words")
        if self.counts < 0:
            raise FflmError(f"counts {self.counts} is too small: give a number of words, or 0")
        given = self.counts or self.lexicon or self.present or self.log_length
        if self.input == "features" and not given:
            raise FflmError("the input is features, but none is given: give --counts, --lexicon, --present or --log-length")
        if self.input != "features" and given:
            raise FflmError(
                f"counts, lexicons, presence and length are features, the input is {self.input}: give --input features"
            )
        for word in (*chain.from_iterable(self.lexicon.values()), *self.present):
            if len(self.tokenizer.tokens(word)) != 1:
                raise FflmError(f"{word!r} is not a word as the tokenizer splits them: give single words as features")
        if self.input == "window" and self.bigrams:
            raise FflmError("bigrams have no place in a window of words: leave them out, or choose another input")

    @property
    def window(self) -> int:
        """Words of the input ``window``."""
        return self.length or 50

    @property
    def names(self) -> list[str]:
        """What the features are but for the counts, in their order, which follow them."""
        return [*self.lexicon, *(f"has {word}" for word in self.present), *(["log length"] if self.log_length else [])]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {**dataclasses.asdict(self), "lexicon": {name: list(words) for name, words in self.lexicon.items()}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Make an input from `to_dict`'s result."""
        return cls(**{**fields, "tokenizer": Tokenizer(**fields["tokenizer"]), "present": tuple(fields["present"])})


DEFAULTS: dict[str, Any] = {
    "embedding": 64, "hidden": (), "dropout": 0.0, "embedding_dropout": 0.2, "optimizer": "adagrad", "rate": 0.05,
    "weight_decay": 0.0, "clip": 0.0,
}  # fmt: skip
"""What is another default than that of `NetworkConfig` and `TrainingSettings`."""
