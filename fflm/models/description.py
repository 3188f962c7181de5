"""What the files of language models say, as types: what is read is checked against them, and the schema is made of them."""

from typing import Annotated, Any, Literal, NotRequired, Required, TypeAlias, TypedDict

from msgspec import Meta

from fflm.arguments import Count, Size, Workers
from fflm.network.config import NetworkConfig
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import VocabularyAbout
from fflm.training.log import Logged
from fflm.training.settings import TrainingSettings

LARGEST_ORDER = 20
"""Words of the longest n-grams of any model."""

COMPONENTS = 100
"""Models of the largest mixture."""

Name: TypeAlias = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]+$")]


class Counts(TypedDict):
    """What a part of a corpus holds."""

    tokens: Annotated[int, Meta(ge=1, le=2**53)]
    unknown: Count
    ends: Count
    characters: Count


class Parts(TypedDict):
    """The parts of a corpus."""

    train: Counts
    valid: NotRequired[Counts]
    test: NotRequired[Counts]


class CorpusReference(TypedDict):
    """The corpus of a model: its folder, relative to the model's and, if it lies elsewhere, absolute; and what it held."""

    path: Name
    absolute: NotRequired[Name]
    fingerprint: str
    parts: NotRequired[Parts]


class Common(TypedDict, total=False):
    """What all kinds of models have."""

    format: Required[Literal["fflm model"]]
    version: Required[Literal[1]]
    vocabulary: Required[VocabularyAbout]
    versions: Required[dict[str, str]]
    created: str


class TrainedFile(Common, total=False):
    """What a training run adds."""

    network: Required[NetworkConfig]
    training: TrainingSettings
    threads: Workers
    device: Literal["cpu", "cuda"]


class NetworkFile(TrainedFile, total=False):
    """A neural language model."""

    text: Required[TextSettings]
    corpus: CorpusReference
    precision: Literal["fp32", "mixed"]
    vectors: Count


class Ngram(TypedDict):
    """The n-grams of a model."""

    order: Annotated[int, Meta(ge=1, le=LARGEST_ORDER)]
    counts: Annotated[list[Count], Meta(min_length=1, max_length=LARGEST_ORDER)]
    discounts: Annotated[list[Annotated[list[float], Meta(max_length=3)]], Meta(max_length=LARGEST_ORDER)] | None
    notes: list[str]
    source: NotRequired[str]


class NgramFile(Common, total=False):
    """An n-gram model."""

    kind: Required[Literal["ngram"]]
    ngram: Required[Ngram]
    text: Required[TextSettings]
    corpus: CorpusReference


class Component(TypedDict, total=False):
    """A component of a mixture: a model in a folder, or a cache with its number of words."""

    path: Name
    fingerprint: str
    cache: Size


class Components(TypedDict):
    """The components of a mixture."""

    components: Annotated[list[Component], Meta(min_length=1, max_length=COMPONENTS)]


class MixtureFile(Common, total=False):
    """A mixture of models."""

    kind: Required[Literal["mixture"]]
    mixture: Required[Components]
    text: Required[TextSettings]
    corpus: CorpusReference


class Other(Common, total=False):
    """A model of which only the kind is known here."""

    kind: Required[str]


LANGUAGE_MODELS: dict[str, Any] = {"network": NetworkFile, "ngram": NgramFile, "mixture": MixtureFile}
"""What config.json holds, by the kind of model."""


class Figures(TypedDict):
    """A `fflm.models.scoring.Score`; None stands for what is no finite number."""

    perplexity: float | None
    perplexity_known: float | None
    bits_per_character: float | None
    unknown_share: float | None
    tokens: Count
    vocabulary: Count
    rule: str
    policy: str


class NetworkFigures(TypedDict, total=False):
    """What stands with the weights of a neural language model."""

    step: Count
    epoch: float
    valid: Figures
    test: Figures


class NgramFigures(TypedDict, total=False):
    """What stands with the tables of an n-gram model."""

    valid: Figures
    test: Figures


class Tuning(Figures):
    """How well a mixture, and each of its components alone, predicts the text that its weights were tuned on."""

    source: str
    components: list[Figures]


class MixtureFigures(TypedDict):
    """What stands with the weights of a mixture."""

    tuning: Tuning


class Text(TypedDict):
    """The conditions of a corpus."""

    vocabulary: Count
    rule: str
    policy: str
    parts: Parts


class Start(TypedDict):
    """The first event of a run on text."""

    text: Text


class Evaluation(Logged):
    """An evaluation of a neural language model."""

    valid: Figures | None


EVENTS = {"start": Start, "evaluation": Evaluation}
"""What the log of a neural language model holds, by the kind of event."""
