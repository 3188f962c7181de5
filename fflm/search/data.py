"""What the trials of a search are trained on: a corpus for language models, or labeled texts for classifiers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from fflm.backend.devices import Compute
from fflm.errors import FflmError
from fflm.files import NewFolder
from fflm.models.classifier.data import ClassifierData
from fflm.models.classifier.model import ClassifierFigures
from fflm.models.classifier.train import ClassifierSession
from fflm.models.corpora import find_corpus, is_described
from fflm.models.description import NetworkFigures
from fflm.models.folder import load_weights, read_config
from fflm.models.neural.train import TrainingSession, check_length
from fflm.network.config import NetworkConfig
from fflm.search.space import Kind
from fflm.search.study import REMEDY
from fflm.text.corpus import Corpus
from fflm.training.session import Session
from fflm.training.settings import TrainingSettings


class SearchData(ABC):
    """The data of a search, and the sessions on it."""

    kind: ClassVar[Kind]
    """The kind of the models."""

    measure: ClassVar[Literal["perplexity", "loss"]]
    """The figure of a trial that is shown; the trial with the lowest one is the best."""

    figures_type: ClassVar[Any]
    """The type of the figures that are stored with a model's weights."""

    @abstractmethod
    def check(self, config: NetworkConfig) -> None:
        """Raise an FflmError if the data is too small for a network, or there is no validation part."""

    @abstractmethod
    def fits(self, config: NetworkConfig) -> bool:
        """Return whether a network has the vocabulary of the data."""

    @property
    @abstractmethod
    def has_test(self) -> bool:
        """Whether there is a test part."""

    @abstractmethod
    def verify(self) -> None:
        """Raise an FflmError if the data was changed."""

    @abstractmethod
    def start(self, new: NewFolder, config: NetworkConfig, settings: TrainingSettings, compute: Compute) -> Session:
        """Start the training session of a trial in a new folder."""

    @abstractmethod
    def resume(self, path: Path) -> Session:
        """Resume the training session in the folder of a trial."""

    def figures(self, path: Path) -> dict[str, Any]:
        """Return the figures of the model in a folder on the validation part."""
        _, figures = load_weights(path, read_config(path, self.kind), self.figures_type, verify=True)
        if "valid" not in figures:
            raise FflmError(f"{path} is damaged (it was not evaluated): {REMEDY}")
        valid: dict[str, Any] = figures["valid"]
        return valid


class CorpusData(SearchData):
    """The corpus that language models are trained on."""

    kind = "network"
    measure = "perplexity"
    figures_type = NetworkFigures

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def check(self, config: NetworkConfig) -> None:
        """Raise an FflmError if a part is too short for a network, or there is no validation text."""
        if "valid" not in self.corpus.parts:
            raise FflmError("without validation text nothing tells a good setting from a bad one: give some with `valid`")
        check_length(self.corpus, config)

    def fits(self, config: NetworkConfig) -> bool:
        """Return whether a network has the vocabulary of the corpus."""
        return config.vocabulary == len(self.corpus.vocabulary)

    @property
    def has_test(self) -> bool:
        """Whether there is a test text."""
        return "test" in self.corpus.parts

    def verify(self) -> None:
        """Raise an FflmError if the corpus was changed."""
        self.corpus.verify()

    def start(self, new: NewFolder, config: NetworkConfig, settings: TrainingSettings, compute: Compute) -> TrainingSession:
        """Start the training session of a language model."""
        return TrainingSession.start(new, self.corpus, config, settings, compute)

    def resume(self, path: Path) -> TrainingSession:
        """Resume the training session of a language model."""
        return TrainingSession.resume(path, self.corpus)


class LabeledData(SearchData):
    """The labeled texts that classifiers are trained on."""

    kind = "classifier"
    measure = "loss"
    figures_type = ClassifierFigures

    def __init__(self, data: ClassifierData) -> None:
        self.data = data

    def check(self, config: NetworkConfig) -> None:
        """Raise an FflmError if there are no validation texts."""
        if "valid" not in self.data.examples:
            raise FflmError("without validation texts nothing tells a good setting from a bad one: give some with `valid`")

    def fits(self, config: NetworkConfig) -> bool:
        """Return True."""
        return True  # `ClassifierData.load` has compared them

    @property
    def has_test(self) -> bool:
        """Whether there are test texts."""
        return "test" in self.data.examples

    def verify(self) -> None:
        """Do nothing: the file of the texts has a checksum."""

    def start(self, new: NewFolder, config: NetworkConfig, settings: TrainingSettings, compute: Compute) -> ClassifierSession:
        """Start the training session of a classifier."""
        return ClassifierSession.start(new, self.data, config, settings, compute)

    def resume(self, path: Path) -> ClassifierSession:
        """Resume the training session of a classifier, if its texts are those of the search."""
        session = ClassifierSession.resume(path)
        if session.fingerprint != self.data.fingerprint:
            raise FflmError(f"{path} was trained on other data than that of the search: {REMEDY}")
        return session


def open_data(path: Path, about: Mapping[str, Any]) -> SearchData:
    """Open the data of the search in a folder, of which ``about`` is the search.json.

    Raises
    ------
    FflmError
        If it is damaged, or not the data with which the search was started.
    """
    if about.get("kind") == "classifier":
        return LabeledData(ClassifierData.load(path, about))
    corpus = Corpus.open(find_corpus(path, about["corpus"]))
    if not is_described(corpus, about["corpus"]):
        raise FflmError(f"{path} was started on other data than {corpus.path} holds now: restore that, or start a new search")
    return CorpusData(corpus)
