"""Types of the content of language models' files, against which files are validated, and from which the schema is made."""

from typing import Annotated, Any, Literal, NotRequired, Required, TypeAlias, TypedDict

from msgspec import Meta

from fflm.arguments import Count, Size, Workers
from fflm.network.config import NetworkConfig
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import VocabularyAbout
from fflm.training.log import Logged
from fflm.training.settings import Scheme, TeacherWeight, TrainingSettings

LARGEST_ORDER = 20
"""Maximum order of an n-gram model."""

COMPONENTS = 100
"""Maximum number of components of a mixture."""

Theta: TypeAlias = Annotated[float, Meta(gt=0, le=100)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]+$")]


class Counts(TypedDict):
    """The counts of a part of a corpus."""

    tokens: Annotated[int, Meta(ge=1, le=2**53)]
    unknown: Count
    ends: Count
    characters: Count
    bytes: NotRequired[Count]
    words: NotRequired[Count]


class Parts(TypedDict):
    """The parts of a corpus."""

    train: Counts
    valid: NotRequired[Counts]
    test: NotRequired[Counts]


class CorpusReference(TypedDict):
    """The corpus of a model: its folder (relative to that of the model, and absolute), fingerprint and counts."""

    path: Name
    absolute: NotRequired[Name]
    fingerprint: str
    parts: NotRequired[Parts]


class Common(TypedDict, total=False):
    """The fields of all kinds of models."""

    format: Required[Literal["fflm model"]]
    version: Required[Literal[1]]
    vocabulary: Required[VocabularyAbout]
    versions: Required[dict[str, str]]
    created: str


class TrainedFile(Common, total=False):
    """The fields of models that are trained by gradient descent."""

    network: Required[NetworkConfig]
    training: TrainingSettings
    processes: Workers
    parallel: Scheme
    threads: Workers
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "tf32", "mixed"]


class TeacherReference(TypedDict):
    """The teacher of a network: its folder, relative to that of the network, its fingerprint, and its share of the target."""

    path: Name
    fingerprint: str
    weight: TeacherWeight


class NetworkFile(TrainedFile, total=False):
    """A neural language model."""

    text: Required[TextSettings]
    corpus: CorpusReference
    vectors: Count
    bits: Literal[8]
    teacher: TeacherReference


class Ngram(TypedDict):
    """The description of an n-gram model: its order, the number and discounts of the n-grams of each order, notes, pruning."""

    order: Annotated[int, Meta(ge=1, le=LARGEST_ORDER)]
    counts: Annotated[list[Count], Meta(min_length=1, max_length=LARGEST_ORDER)]
    discounts: Annotated[list[Annotated[list[float], Meta(max_length=3)]], Meta(max_length=LARGEST_ORDER)] | None
    notes: list[str]
    source: NotRequired[str]
    prune: NotRequired[Annotated[list[Count], Meta(max_length=LARGEST_ORDER)]]
    prune_entropy: NotRequired[float]
    bits: NotRequired[Literal[8]]


class NgramFile(Common, total=False):
    """An n-gram model."""

    kind: Required[Literal["ngram"]]
    ngram: Required[Ngram]
    text: Required[TextSettings]
    corpus: CorpusReference


class Component(TypedDict, total=False):
    """A component of a mixture: a model in a folder, a unigram cache or a neural cache of a number of words.

    A member of an ensemble has a fingerprint when it is trained.
    """

    path: Name
    fingerprint: str
    cache: Size
    neural_cache: Size
    theta: Theta


class Components(TypedDict):
    """The components of a mixture."""

    components: Annotated[list[Component], Meta(min_length=1, max_length=COMPONENTS)]


class MixtureFile(Common, total=False):
    """A mixture of language models; if it is an ensemble, with the settings that its members share."""

    kind: Required[Literal["mixture"]]
    mixture: Required[Components]
    text: Required[TextSettings]
    corpus: CorpusReference
    network: NetworkConfig
    training: TrainingSettings
    threads: Workers
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "tf32", "mixed"]


class Other(Common, total=False):
    """A model of another kind, of which only the common fields are validated."""

    kind: Required[str]


LANGUAGE_MODELS: dict[str, Any] = {"network": NetworkFile, "ngram": NgramFile, "mixture": MixtureFile}
"""The type of config.json for each kind of language model."""


class Figures(TypedDict):
    """A `fflm.models.scoring.Score` as JSON; None stands for a number that is not finite."""

    perplexity: float | None
    perplexity_known: float | None
    bits_per_character: float | None
    unknown_share: float | None
    tokens: Count
    vocabulary: Count
    rule: str
    policy: str


class NetworkFigures(TypedDict, total=False):
    """The figures that are stored with the weights of a neural language model."""

    step: Count
    epoch: float
    valid: Figures
    test: Figures


class NgramFigures(TypedDict, total=False):
    """The figures that are stored with the tables of an n-gram model."""

    valid: Figures
    test: Figures


class Compared(Figures):
    """The score of a mixture and of each of its components on a text."""

    components: list[Figures]


class Tuning(Compared):
    """The scores on the text that the weights of a mixture were tuned on."""

    source: str


class MixtureFigures(TypedDict, total=False):
    """The figures that are stored with the weights of a mixture: of a tuned one, or of an ensemble."""

    tuning: Tuning
    valid: Compared
    test: Compared


class Text(TypedDict):
    """The evaluation conditions of a corpus."""

    vocabulary: Count
    rule: str
    policy: str
    parts: Parts


class Start(TypedDict):
    """The event at the start of training."""

    text: Text


class Evaluation(Logged):
    """An evaluation of a neural language model."""

    valid: Figures | None


EVENTS = {"start": Start, "evaluation": Evaluation}
"""The type of each kind of event in the log of a neural language model."""
