"""A trained text classifier."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, Self, TypedDict

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from fflm.arguments import Count, Device, PathLike, checked, to_path
from fflm.arrays import CONFIG, WEIGHTS
from fflm.errors import FflmError
from fflm.files import reading_folder, write_json
from fflm.models.base import TrainedNetwork
from fflm.models.classifier.features import Reader, Texts, each_label
from fflm.models.classifier.metrics import Report
from fflm.models.classifier.reading import single_line, single_spaced
from fflm.models.classifier.settings import TextInput
from fflm.models.description import TrainedFile
from fflm.models.folder import FORMAT, VERSION, VOCABULARY, load_weights, read_config, save_vocabulary, versions
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.stored import REMEDY
from fflm.text.vocabulary import Vocabulary, VocabularyAbout
from fflm.training.examples import Scale
from fflm.training.log import Logged


class ScaleFile(TypedDict):
    """The scale of features, with a number for each."""

    mean: list[float]
    deviation: list[Annotated[float, Meta(gt=0)]]


class PartFile(TypedDict):
    """The texts of a part; for tagging, ``texts`` is the number of words."""

    texts: Annotated[int, Meta(ge=1, le=2**53)]
    words: Count
    sentences: NotRequired[Count]


class TextsFile(TypedDict, total=False):
    """The parts of the labeled text."""

    train: Required[PartFile]
    valid: PartFile
    test: PartFile


class DataFile(TypedDict, total=False):
    """What a classifier's config.json says of its labels and of what its network reads."""

    kind: Required[Literal["classifier"]]
    labels: Required[Annotated[list[str], Meta(min_length=2)]]
    shares: Required[list[Annotated[float, Meta(gt=0, le=1)]] | None]
    input: Required[TextInput]
    scale: Required[ScaleFile | None]
    vocabulary: Required[VocabularyAbout]
    texts: TextsFile
    counts: list[Count]


class ClassifierFile(TrainedFile, DataFile, total=False):
    """A text classifier."""


class Figures(TypedDict):
    """Those of a `Report` that are shown."""

    examples: Count
    loss: float
    accuracy: float
    zero_one_loss: NotRequired[float]
    macro_f1: float


class ClassifierFigures(TypedDict, total=False):
    """What stands with the weights of a classifier."""

    step: Count
    epoch: float
    valid: Figures
    test: Figures


class Start(TypedDict):
    """The first event of a run on labeled text."""

    texts: TextsFile


class Evaluation(Logged):
    """An evaluation of a classifier."""

    valid: Figures | None


EVENTS = {"start": Start, "evaluation": Evaluation}
"""What the log of a classifier holds, by the kind of event."""


@dataclass(frozen=True)
class Mistake:
    """A text that was taken for another class than its own; for tagging a sentence, with brackets around the word in question."""

    probability: float
    predicted: str
    truth: str
    text: str


@dataclass(repr=False)
class TextClassifier(TrainedNetwork):
    """A network that tells classes of text apart.

    Attributes
    ----------
    labels
        Of the classes, in the order of the network's outputs.
    config, parameters
        The network's shape and weights.
    reader
        What turns texts into what the network reads.
    shares
        (C,) the classes' shares of the training set, where probabilities are to hold for classes that are equally frequent; else
        None.
    about
        What else is known of it: its training and figures, versions.
    device
        The device that computes its predictions.
    """

    labels: tuple[str, ...]
    config: NetworkConfig
    parameters: Parameters
    reader: Reader
    shares: npt.NDArray[np.float64] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    device: Device = "cpu"

    def __repr__(self) -> str:
        labels = ", ".join(self.labels[:5]) + (", ..." if len(self.labels) > 5 else "")
        details = [f"{len(self.labels)} classes: {labels}", f"{self.parameters.count:,} parameters"]
        if valid := self.about.get("figures", {}).get("valid"):
            details.append(f"valid accuracy {valid['accuracy']:.2%}")
        return f"TextClassifier({'; '.join(details)})"

    @checked
    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the likeliest label of each text: of a list, an array, a column of a table; not of one str.

        For tagging the label of a text is the tags of its words, with a space between them.
        """
        examples = self._examples(texts)
        chances = probabilities(self.network, self._weights, examples, self.shares)
        labels = [self.labels[place] for place in chances.argmax(1)]
        if not self.reader.input.tagging:
            return labels
        return [" ".join(labels[low:high]) for low, high in pairwise(examples.starts.tolist())]

    @checked
    def predict_proba(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the probability of each class, in the order of ``labels``: (N, C), of texts, or of all their words (tagging)."""
        return probabilities(self.network, self._weights, self._examples(texts), self.shares)

    def _examples(self, texts: Sequence[str]) -> Texts:
        """Return texts as examples, whose labels mean nothing."""
        ids, starts = self.reader.encode(list(map(single_line, texts)))
        return Texts(self.reader, ids, starts, np.zeros(len(ids) if self.reader.input.tagging else len(texts), np.int32))

    @checked
    def evaluate(self, texts: Sequence[str], labels: Sequence[str]) -> tuple[Report, list[Mistake]]:
        """Compare predictions with what is true; for tagging, the label of a text is the tags of its words.

        Returns
        -------
        report
            The figures.
        mistakes
            All of them, the most confident first.

        Raises
        ------
        FflmError
            If the classifier does not know a label, or there are not as many as texts (for tagging, as words).
        """
        if not texts or len(texts) != len(labels):
            raise FflmError(f"there are {len(texts)} texts and {len(labels)} labels: give each text one label")
        places = {label: place for place, label in enumerate(self.labels)}
        examples = self._examples(texts)
        labels = each_label(list(map(single_spaced, labels)), examples)
        if not labels:
            raise FflmError("the texts have no words: give sentences with a tag for each word")
        if unknown := sorted(set(labels).difference(places)):
            raise FflmError(
                f"the classifier does not know the label {unknown[0]!r}, only {', '.join(self.labels[:20])}: fix the labels"
            )
        truth = np.array([places[label] for label in labels], np.int32)
        chances = probabilities(self.network, self._weights, examples, self.shares)
        predicted = chances.argmax(1)
        wrong = np.flatnonzero(predicted != truth)
        wrong = wrong[np.argsort(-chances[wrong, predicted[wrong]], kind="stable")]
        mistakes = [
            Mistake(float(chances[row, class_]), self.labels[class_], labels[row], self._shown(texts, examples, row))
            for row, class_ in zip(wrong.tolist(), predicted[wrong].tolist(), strict=True)
        ]
        return Report.of(self.labels, chances, truth), mistakes

    def _shown(self, texts: Sequence[str], examples: Texts, row: int) -> str:
        """Return an example as a text: number ``row``, or for tagging that of the word, with brackets around it."""
        if not self.reader.input.tagging:
            return texts[row]
        sentence = int(np.searchsorted(examples.starts, row, "right")) - 1
        words = self.reader.input.tokenizer.tokens(texts[sentence])
        place = row - int(examples.starts[sentence])
        return " ".join([*words[:place], f"[{words[place]}]", *words[place + 1 :]])

    @classmethod
    @checked
    def load(cls, path: PathLike, device: Device = "cpu", *, verify: bool = False) -> Self:
        """Read a classifier's folder, to predict on a device; ``verify`` is as for `fflm.load`.

        Raises
        ------
        FflmError
            If it is not a classifier, of a later version, incomplete or damaged.
        """
        path = to_path("path", path)
        with reading_folder(path):
            about = read_config(path, "classifier", ClassifierFile)
            arrays, figures = load_weights(path, about, ClassifierFigures, verify=verify)
            config, labels, reader, shares = read_description(path, about, verify=verify)
        source = f"the weights in {path / WEIGHTS}"
        parameters = Parameters.from_arrays(config, arrays, source, verify=verify)
        model = cls(labels, config, parameters, reader, shares, {**about, "figures": figures}, device)
        model.source = source
        return model


def probabilities(
    network: Network, parameters: Parameters, texts: Texts, shares: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float32]:
    """Return the probability of each class for each text, (N, C).

    With the classes' ``shares`` of the training set (C,), those that would hold if all were equally frequent: by Bayes' rule each
    is divided by its share (Menon et al. 2021, "Long-tail learning via logit adjustment", section 4.1).
    """
    pieces = [np.empty((0, network.config.classes), np.float32)]
    pieces += [network.predict(parameters, rows) for rows, _ in texts.in_order(network.config.rows(256))]
    result = np.concatenate(pieces)
    if shares is not None:
        result /= shares
        result /= result.sum(1, keepdims=True)
    return result


def save_description(
    path: Path,
    config: NetworkConfig,
    labels: Sequence[str],
    reader: Reader,
    shares: npt.NDArray[Any] | None,
    about: Mapping[str, Any],
) -> None:
    """Write a classifier's vocabulary and config.json."""
    save_vocabulary(path, reader.vocabulary)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": "classifier",
        "network": config.to_dict(),
        **describe_data(labels, reader, shares),
        **about,
        "versions": versions(),
    }
    write_json(path / CONFIG, content)


def describe_data(labels: Sequence[str], reader: Reader, shares: npt.NDArray[Any] | None) -> dict[str, Any]:
    """Return what `read_description` needs besides the network, as JSON values."""
    scale = reader.scale and {"mean": reader.scale.mean.tolist(), "deviation": reader.scale.deviation.tolist()}
    return {
        "labels": list(labels),
        "shares": None if shares is None else shares.tolist(),
        "input": reader.input.to_dict(),
        "scale": scale,
        "vocabulary": reader.vocabulary.to_dict(),
    }


def read_description(
    path: Path, about: Mapping[str, Any], *, verify: bool = True
) -> tuple[NetworkConfig, tuple[str, ...], Reader, npt.NDArray[np.float64] | None]:
    """Return what `save_description` wrote, but for ``about``: network, labels, reader, shares.

    ``verify`` is whether to read the words to their end, as for `Vocabulary.load`.

    Raises
    ------
    FflmError
        If its parts do not fit together.
    """
    config, labels = NetworkConfig.from_dict(about["network"]), tuple(about["labels"])
    vocabulary = Vocabulary.load(path / VOCABULARY, about["vocabulary"], verify=verify)
    scale = about["scale"] and Scale(*(np.array(about["scale"][name], np.float64) for name in ("mean", "deviation")))
    reader = Reader(TextInput.from_dict(about["input"]), vocabulary, scale)
    shares = None if about["shares"] is None else np.array(about["shares"], np.float64)
    input = reader.input.network
    fits = (
        config.input == input and reader.width == config.numbers and config.output == "softmax",
        input == "numbers" or len(vocabulary) == config.vocabulary,
        input != "window" or reader.input.window == config.window,
        len(set(labels)) == len(labels) == len(about.get("counts", labels)) == config.classes,
        shares is None or (len(shares) == len(labels) and abs(shares.sum() - 1) < 1e-6),
        scale is None or len(scale.mean) == len(scale.deviation) == reader.width,
    )
    if not all(fits):
        raise FflmError(f"{path} is damaged (what {CONFIG} and {VOCABULARY} say does not fit together): {REMEDY}")
    return config, labels, reader, shares


def batches(texts: Iterator[str], size: int = 1024) -> Iterator[list[str]]:
    """Yield texts in batches of ``size``."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
