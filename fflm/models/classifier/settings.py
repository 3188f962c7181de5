"""What a network reads of a text, and what is another default than elsewhere; light enough for a help text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from fflm.arguments import PathLike, Paths, Settings, Size, show
from fflm.errors import FflmError
from fflm.text.holdout import HeldOut
from fflm.text.tokenizer import Tokenizer

InputName = Literal["mean", "max", "window", "features"]

CATEGORIES = 10_000
"""Features of a kind, at most."""

MAX_WORDS = 200_000
"""Words and bigrams of the largest vocabulary, if nobody says."""


@dataclass(frozen=True)
class TextInput(Settings):
    """How a text becomes what a network reads.

    Raises
    ------
    FflmError
        If a value is out of range, or values contradict each other.

    Notes
    -----
    ``input``: ``mean`` or ``max``, the embeddings of its words, pooled; ``window``, those of its first ``length`` words,
    concatenated, with padding after a shorter text; ``features``, numbers, which ``counts``, ``lexicon``, ``present`` and
    ``log_length`` name.
    ``bigrams``: Joulin et al. 2017, section 2.1.
    """

    input: Annotated[
        InputName,
        Meta(description="Input of the network: mean or maximum of the word embeddings, a window of words, or features."),
    ] = "mean"
    tokenizer: Annotated[Tokenizer, Meta(description="The rule that splits text into tokens.")] = field(default_factory=Tokenizer)
    length: Annotated[
        Size | None,
        Meta(description="Number of words read from the start of each text; by default all, or 50 for a window."),
    ] = None
    bigrams: Annotated[bool, Meta(description="Also use pairs of adjacent words as words.")] = False
    counts: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)],
        Meta(description="Feature: counts of the N most frequent words; 0 for none."),
    ] = 0
    lexicon: Annotated[
        Mapping[str, Sequence[str]],
        Meta(max_length=CATEGORIES, description="Feature: number of the text's words in each category."),
    ] = field(default_factory=dict)
    present: Annotated[tuple[str, ...], Meta(max_length=CATEGORIES, description="Feature: whether this word occurs.")] = ()
    log_length: Annotated[bool, Meta(description="Feature: log(1 + number of words).")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.counts or self.lexicon or self.present or self.log_length
        if self.input == "features" and not given:
            raise FflmError("the input is features, but none is given: give `counts`, `lexicons`, `present` or `log_length`")
        if self.input != "features" and given:
            raise FflmError(
                f"counts, lexicons, presence and length are features, the input is {self.input}: give `input='features'`"
            )
        for word in (*chain.from_iterable(self.lexicon.values()), *self.present):
            if len(self.tokenizer.tokens(word)) != 1:
                raise FflmError(f"{show(word)} is not a word as the tokenizer splits them: give single words as features")
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


DEFAULTS: dict[str, Any] = {
    "embedding": 64,
    "hidden": (),
    "dropout": 0.0,
    "embedding_dropout": 0.2,
    "optimizer": "adagrad",
    "rate": 0.05,
    "weight_decay": 0.0,
    "clip": 0.0,
    "min_count": 1,
    "max_size": MAX_WORDS,
}
"""What is another default than that of `NetworkConfig`, `TrainingSettings` and `VocabularyRule`."""

Valid: TypeAlias = Annotated[
    HeldOut | None,
    Meta(
        description="Validation texts: files, or the amount to draw at random: a share (10%), a number of texts, or 0 for none."
    ),
]
Test: TypeAlias = Annotated[HeldOut | None, Meta(description="Test texts, in the same forms.")]
Vectors: TypeAlias = Annotated[
    PathLike | None,
    Meta(description="Initial embeddings: a language model, or a text file of word2vec, GloVe or fastText vectors."),
]
Lexicons: TypeAlias = Annotated[
    Paths, Meta(description="Feature: number of words in each category of a lexicon; files with word, tab, category per line.")
]
Balanced: TypeAlias = Annotated[
    bool, Meta(description="Predict as if all classes were equally frequent, whatever their frequencies in training.")
]
