"""The settings of classifiers: how texts are read, and defaults that differ from those of language models.

The command line imports this module for its help, so it must not import anything that takes long to load.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from fflm.arguments import PathLike, Paths, Settings, Size, show
from fflm.errors import FflmError, SettingsError
from fflm.network.config import Input
from fflm.text.holdout import HeldOut
from fflm.text.tokenizer import Tokenizer

InputName = Literal["mean", "max", "window", "features", "tagging"]
Padding = Literal["trained", "zeros"]
TokenizerMode: TypeAlias = Annotated[
    Literal["word", "char", "space", "chinese"],
    Meta(
        description="Split text into words and punctuation, into characters, only at spaces, tabs and line ends, or into words "
        "and Chinese words."
    ),
]

CATEGORIES = 10_000
"""Maximum number of categories in the lexicon, and maximum number of words whose presence is a feature."""

MAX_WORDS = 200_000
"""Default of the maximum vocabulary size, including bigrams."""


@dataclass(frozen=True)
class TextInput(Settings):
    """How the inputs of a network are computed from a text.

    Raises
    ------
    FflmError
        If a value is out of range, or values contradict each other.

    Notes
    -----
    ``input``: with ``mean`` and ``max``, the embeddings of all words are pooled. With ``window``, the embeddings of the first
    ``length`` words are concatenated, with padding after a shorter text. With ``features``, the inputs are numbers, which
    ``counts``, ``lexicon``, ``present``, ``word_count`` and ``log_length`` choose. With ``tagging``, a text is a sentence, and
    each of its words is an example: the embeddings of ``length`` words, with this word in the middle, are concatenated, with
    padding beyond the ends of the sentence (Collobert et al. 2011, section 3.3.1).

    ``bigrams`` are those of Joulin et al. 2017, section 2.1.
    """

    input: Annotated[
        InputName,
        Meta(
            description="Input of the network: mean or maximum of the word embeddings, a window of words, features; or, for "
            "tagging, a window around each word."
        ),
    ] = "mean"
    tokenizer: Annotated[Tokenizer, Meta(description="The rule that splits text into tokens.")] = field(default_factory=Tokenizer)
    length: Annotated[
        Size | None,
        Meta(
            description="Number of words read from the start of each text; by default all, or 50 for a window. For tagging, the "
            "size of the window around each word; by default 5."
        ),
    ] = None
    padding: Annotated[
        Padding,
        Meta(description="Embedding in the places of a window that have no word: trained, as that of a word, or zeros."),
    ] = "trained"
    bigrams: Annotated[bool, Meta(description="Also use pairs of adjacent words as words; for the inputs mean and max.")] = False
    counts: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)],
        Meta(description="Feature: counts of the N most frequent words; 0 for none."),
    ] = 0
    lexicon: Annotated[
        Mapping[str, Sequence[str]],
        Meta(max_length=CATEGORIES, description="Feature: number of the text's words in each category."),
    ] = field(default_factory=dict)
    present: Annotated[tuple[str, ...], Meta(max_length=CATEGORIES, description="Feature: whether this word occurs.")] = ()
    word_count: Annotated[bool, Meta(description="Feature: number of words.")] = False
    log_length: Annotated[bool, Meta(description="Feature: log(1 + number of words).")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer.mode == "subword":
            raise FflmError(
                "text classifiers read words or characters: give another `tokenizer`; subwords are for language models"
            )
        given = self.counts or self.lexicon or self.present or self.word_count or self.log_length
        if self.input == "features" and not given:
            names = "`counts`, `lexicons`, `present`, `word_count` or `log_length`"
            raise FflmError(f"the input is features, but none is given: give {names}")
        if self.input != "features" and given:
            raise FflmError(
                f"counts, lexicons, presence and length are features, the input is {self.input}: give `input='features'`"
            )
        for word in (*chain.from_iterable(self.lexicon.values()), *self.present):
            if len(self.tokenizer.tokens(word)) != 1:
                remedy = "give single words as features"
                if self.tokenizer.mode != "space":
                    remedy += ", or texts with spaces between words, and `tokenizer='space'`"
                raise FflmError(f"{show(word)} is not a word as the tokenizer splits them: {remedy}")
        if self.bigrams and self.input not in ("mean", "max"):
            raise SettingsError(f"bigrams are for the inputs mean and max, the input is {self.input}: leave out `bigrams`")
        if self.padding != "trained" and not self.windowed:
            raise SettingsError(f"only windows of words have padding, the input is {self.input}: leave out `padding`")
        if self.tagging:
            self._check_tagging()

    def _check_tagging(self) -> None:
        """Raise an FflmError if the settings are not suitable for tagging."""
        if self.tokenizer.mode != "space":
            raise FflmError("tagging takes the words as its files have them: give `tokenizer='space'`")
        if self.window % 2 == 0:
            raise FflmError(f"a window around a word has the word in its middle: give an odd `length`, not {self.window}")

    @property
    def tagging(self) -> bool:
        """Whether the examples are words, and not texts."""
        return self.input == "tagging"

    @property
    def windowed(self) -> bool:
        """Whether the input of the network is a window of words."""
        return self.input in ("window", "tagging")

    @property
    def network(self) -> Input:
        """The type of the network's input, as `fflm.network.config.NetworkConfig` has it."""
        inputs: dict[InputName, Input] = {"mean": "mean", "max": "max", "features": "numbers"}
        return inputs.get(self.input, "window")

    @property
    def unit(self) -> str:
        """The noun for an example in messages: ``word`` or ``text``."""
        return "word" if self.tagging else "text"

    @property
    def window(self) -> int:
        """Number of words in a window."""
        return self.length or (5 if self.tagging else 50)

    @property
    def names(self) -> list[str]:
        """The names of the features after the counts, in their order."""
        lengths = {"number of words": self.word_count, "log length": self.log_length}
        return [
            *self.lexicon,
            *(f"has {word}" for word in self.present),
            *(name for name, given in lengths.items() if given),
        ]


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
"""Defaults that differ from those of `NetworkConfig`, `TrainingSettings` and `VocabularyRule`."""

TAGGING: dict[str, Any] = {"tokenizer": "space", "length": 5, "min_count": 2, "hidden": (100,)}
"""Defaults that differ for ``input="tagging"``. Words that occur once count as unknown, so that their embedding is trained."""

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
