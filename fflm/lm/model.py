"""Language models: what all kinds of them offer, the network among them, and the folder they live in."""

import contextlib
import platform
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from fflm.arguments import (
    Device,
    Encoding,
    Many,
    Natural,
    PathLike,
    Positive,
    Seed,
    Size,
    check,
    check_ids,
    checked,
    to_path,
    to_paths,
)
from fflm.backend.devices import device_backend
from fflm.errors import FflmError
from fflm.files import clear_errors, locked_folder, reading_folder, restore, restore_all, write_json
from fflm.lm import description
from fflm.network.config import CELLS, NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.stored import REMEDY, check_json, read_json
from fflm.text.corpus import TextSettings
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows
from fflm.training.checkpoints import CHECKPOINT, CONFIG, WEIGHTS, load_arrays, meaning

if TYPE_CHECKING:
    from fflm.lm.generation import Prefix
    from fflm.lm.scoring import Score
    from fflm.lm.vectors import Vectors

Temperature: TypeAlias = Annotated[float, Meta(ge=0)]
TopP: TypeAlias = Annotated[float, Meta(gt=0, le=1)]

FORMAT, VERSION = "fflm model", 1
VOCABULARY, CORPUS = "vocabulary.tsv", "corpus"

_ROWS = 1024  # predictions at a time

Kind = Literal["network", "ngram", "mixture", "classifier"]
_KINDS: dict[Kind, str] = {"network": "network", "ngram": "n-gram model", "mixture": "mixture", "classifier": "text classifier"}

LANGUAGE_MODELS: tuple[Kind, ...] = ("network", "ngram", "mixture")

Result = TypeVar("Result")


class Trained:
    """A network with its weights, both on their device from when they are first used: who only looks waits for no compiler."""

    config: NetworkConfig
    parameters: Parameters
    device: Device

    @cached_property
    def network(self) -> Network:
        """The network on its device."""
        return Network(self.config, device_backend(self.device))

    @cached_property
    def _weights(self) -> Parameters:
        """The parameters on the device."""
        return self.parameters.mapped(self.network.backend.upload)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all but what belongs to this process and its device."""
        return {name: value for name, value in vars(self).items() if name not in ("network", "_weights")}


class TextScorer(Protocol):
    """Anything that scores the words of texts."""

    vocabulary: Vocabulary
    text: TextSettings

    @property
    def window(self) -> int:
        """Context words [n]."""

    def text_losses(self, ids: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.floating]:
        """Return -log p of the words of a text (N,) from the one at ``start`` on, (N - start,), nats; the others are context."""

    def each_losses(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `text_losses` of many texts, each by itself."""


class Predictor(TextScorer, Protocol):
    """Anything that predicts the next word from a window of words: what generation and scoring need of a model.

    Letters: B contexts, n context words, V vocabulary.
    """

    _together: ClassVar[int] = _ROWS  # contexts of many texts that are given to `losses` at a time

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""

    def _check_contexts(self, contexts: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Return contexts (B, n) as `check_ids` does; ``<s>`` may be among their words."""
        return check_ids("contexts", contexts, len(self.vocabulary) + 1, (None, self.window))

    def _check_examples(
        self, contexts: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return contexts (B, n) and the words that follow them (B,), likewise."""
        contexts = self._check_contexts(contexts)
        return contexts, check_ids("targets", targets, len(self.vocabulary), (len(contexts),))

    def windows(self, ids: npt.NDArray[np.integer[Any]]) -> Windows:
        """Return the examples of a text given as ids (N,)."""
        return Windows.of(ids, self.vocabulary, self.text, self.window)

    def text_losses(self, ids: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.floating]:
        """Return -log p of the words of a text (N,) from the one at ``start`` on, (N - start,), nats; the others are context."""
        ids = check_text(ids, start, self.vocabulary)
        windows, rows = self.windows(ids), self._rows(_ROWS)
        pieces = range(start, len(ids), rows)
        losses = [self.losses(*windows.batch(np.arange(low, min(low + rows, len(ids))))) for low in pieces]
        return np.concatenate([np.empty(0), *losses])

    def each_losses(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `text_losses` of many texts, each by itself."""
        texts = [check_text(ids, 0, self.vocabulary) for ids in texts]
        ends = np.cumsum([0, *map(len, texts)])
        rows = self._rows(self._together)
        losses: list[npt.NDArray[np.floating]] = [np.empty(0)]
        for low in range(0, int(ends[-1]), rows):
            high = min(low + rows, int(ends[-1]))
            batches = []
            for place in range(int(np.searchsorted(ends, low, side="right")) - 1, int(np.searchsorted(ends, high))):
                first, last = np.clip((low, high), ends[place], ends[place + 1]) - ends[place]
                batches.append(self.windows(texts[place]).batch(np.arange(first, last)))
            losses.append(self.losses(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True))))
        return np.split(np.concatenate(losses), ends[1:-1]) if texts else []

    def _rows(self, most: int) -> int:
        """Return how many contexts may be in memory at a time: fewer than ``most`` if they are very long."""
        return max(1, min(most, CELLS // max(1, self.window)))


def check_text(ids: npt.NDArray[Any], start: int, vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """Return the ids of a text (N,) of which a caller wants the words from ``start`` on scored, as `check_ids` does.

    Raises
    ------
    FflmError
        If they are no ids of the vocabulary's words, or the text has no such place.
    """
    ids = check_ids("ids", ids, len(vocabulary))
    if check("start", Natural, start) > len(ids):
        raise FflmError(f"`start` must be from 0 to {len(ids):,}, the length of the text, not {start:,}")
    return ids


class Model(Predictor):
    """A language model of any kind, with its vocabulary and its way of reading text.

    Attributes
    ----------
    vocabulary, text
        Words and ids; how text becomes words.
    about
        What else is known of it: the corpus, the figures of its training, versions.
    """

    about: dict[str, Any]

    def __repr__(self) -> str:
        details = [*self._details(), f"vocabulary {len(self.vocabulary):,}"]
        if valid := self.about.get("figures", {}).get("valid"):
            details.append(f"valid perplexity {valid['perplexity']:.2f}")
        return f"{type(self).__name__}({', '.join(details)})"

    @abstractmethod
    def _details(self) -> list[str]:
        """Return what to say of the model in its `repr`."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Context words [n]."""

    @abstractmethod
    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""

    @abstractmethod
    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""

    @checked
    def generate(
        self,
        prefix: str = "",
        *,
        samples: Size = 1,
        length: Many = 100,
        temperature: Temperature = 1.0,
        top_k: Positive | None = None,
        top_p: TopP | None = None,
        greedy: bool = False,
        beams: Size | None = None,
        seed: Seed | None = None,
        unknown: bool = False,
        stop_at_end: bool | None = None,
    ) -> list[str]:
        """Continue a text.

        Parameters
        ----------
        prefix
            The text; empty, it is a beginning.
        samples
            Continuations to return: of beam search the best ones, at most ``beams``.
        greedy
            Take the likeliest word always.
        beams
            Search for the likeliest continuations, keeping so many, instead of drawing them.
        length, temperature, top_k, top_p, seed, unknown, stop_at_end
            As for `fflm.lm.generation.sample`; the seed, the temperature and what follows it do not matter to beam search.

        Returns
        -------
        list of str
            The prefix with each continuation.

        Warns
        -----
        UserWarning
            If the model does not know a word of the prefix.

        Raises
        ------
        FflmError
            If a value is out of range.
        """
        from fflm.lm import generation

        start = self._read_prefix(prefix)
        if beams is not None:
            found = generation.beam_search(
                self, start, beams=beams, length=length, unknown=unknown, stop_at_end=stop_at_end
            )[:samples]  # fmt: skip
        else:
            found = generation.sample(
                self, start, samples=samples, length=length, temperature=0.0 if greedy else temperature,
                top_k=top_k, top_p=top_p, seed=seed, unknown=unknown, stop_at_end=stop_at_end,
            )  # fmt: skip
        return [generation.render(self, start, each) for each in found]

    @checked
    def next_words(self, prefix: str = "", top: Positive = 20) -> list[tuple[str, float]]:
        """Return the likeliest words after a prefix with their probabilities, the likeliest first.

        ``<unk>`` and ``</s>`` are words like others. The probabilities of the whole vocabulary (``top=len(model.vocabulary)``)
        sum to one. Warns if the model does not know a word of the prefix.
        """
        from fflm.lm import generation

        return generation.next_words(self, self._read_prefix(prefix), top)

    @checked
    def score(self, text: str) -> "Score":
        """Return the log-probability, the perplexity and more of a text, whose last line ends like all others.

        Raises
        ------
        FflmError
            If there is no word in it.
        """
        from fflm.lm import scoring

        return scoring.score(self, text)

    @checked
    def perplexity(self, *paths: PathLike, encoding: Encoding = "utf-8") -> "Score":
        """Return the perplexity, and all that belongs to it, of files and folders as one text, in bounded memory.

        Raises
        ------
        FflmError
            If one cannot be read, or there is no word in them.
        """
        from fflm.lm import scoring

        return scoring.score_files(self, to_paths("paths", paths), encoding)

    @property
    def vectors(self) -> "Vectors":
        """The words' embeddings: ``model.vectors["cat"]`` is (m,), ``model.vectors.analogy("man", "woman", "king")``.

        Raises
        ------
        FflmError
            If the model has none.
        """
        raise FflmError("only a network has word vectors: name one, made by `fflm train`")

    @checked
    def neighbours(self, word: str, top: Positive = 10) -> list[tuple[str, float]]:
        """Return the words whose embeddings are nearest to a word's, with the cosines, the nearest first.

        Raises
        ------
        FflmError
            If the word is not in the vocabulary, or the model has no embeddings.
        """
        return self.vectors.neighbours(word, top)

    def _read_prefix(self, prefix: str) -> "Prefix":
        from fflm.lm import generation

        result = generation.read_prefix(self, prefix)
        if result.unknown:
            warnings.warn(
                f"not in the vocabulary, read as <unk>: {' '.join(result.unknown)}", stacklevel=4
            )  # where a checked method was called
        return result


@dataclass(repr=False)
class LanguageModel(Trained, Model):
    """A trained network with its vocabulary and its way of reading text.

    Attributes
    ----------
    config, parameters
        The network's shape and weights.
    vocabulary, text
        Words and ids; how text becomes words.
    about
        What else is known of it: the corpus, the settings and the figures of its training, versions.
    device
        What computes its predictions.
    """

    _together: ClassVar[int] = 16 * _ROWS  # for equal ones cost nothing

    config: NetworkConfig
    parameters: Parameters
    vocabulary: Vocabulary
    text: TextSettings
    about: dict[str, Any] = field(default_factory=dict)
    device: Device = "cpu"

    def _details(self) -> list[str]:
        return [f"window {self.config.window}", f"{self.parameters.count:,} parameters"]

    @property
    def window(self) -> int:
        """Context words [n]."""
        return self.config.context

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""
        contexts = self._check_contexts(contexts)
        result: npt.NDArray[np.floating] = self.network.log_probabilities(self._weights, contexts)
        return result

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats. Equal contexts are looked at once."""
        contexts, targets = self._check_examples(contexts, targets)
        whole = contexts.view(f"V{contexts.shape[1] * contexts.itemsize}")[:, 0].tolist()
        numbers: dict[bytes, int] = {}  # of the distinct contexts: to sort these would take several times as long
        rows = np.array([numbers.setdefault(each, len(numbers)) for each in whole], np.int32)
        first = np.unique(rows, return_index=True)[1]
        order = np.argsort(rows, kind="stable")
        backend, losses = self.network.backend, np.empty(len(targets), self.parameters.dtype)
        size = self.config.rows(_ROWS)
        for low in range(0, len(first), size):
            some = order[slice(*np.searchsorted(rows, (low, low + size), sorter=order))]
            own = backend.empty((len(some),), losses.dtype)
            self.network.losses(self._weights, contexts[first[low : low + size]], targets[some], own, rows=rows[some] - low)
            losses[some] = backend.download(own)
        return losses

    @property
    def vectors(self) -> "Vectors":
        """The words' embeddings: ``model.vectors["cat"]`` is (m,), ``model.vectors.analogy("man", "woman", "king")``."""
        from fflm.lm.vectors import Vectors

        return Vectors(self.vocabulary, self.text.tokenizer, self.parameters.embeddings)

    @classmethod
    @checked
    def load(cls, path: PathLike, device: Device = "cpu") -> Self:
        """Read a model's folder, to predict on a device.

        Raises
        ------
        FflmError
            If it is no model, of a later version, incomplete or damaged.
        """
        path = to_path("path", path)
        about = read_config(path, "network")
        arrays, figures = load_weights(path, about, description.NetworkFigures)
        config = NetworkConfig.from_dict(about["network"])
        text, vocabulary = read_text(path, about)
        if len(vocabulary) != config.vocabulary:
            raise FflmError(f"{path} is damaged: its {VOCABULARY} does not fit its {CONFIG}; restore it, or train again")
        parameters = Parameters.from_arrays(config, arrays, f"the weights in {path / WEIGHTS}")
        return cls(config, parameters, vocabulary, text, {**about, "figures": figures}, device)


@checked
def load(path: PathLike, device: Device = "cpu") -> Model:
    """Load the model in a folder, of whatever kind it is; what networks it has predict on a device.

    Raises
    ------
    FflmError
        If it is no model, of a later version, incomplete or damaged.
    """
    path = to_path("path", path)
    with reading_folder(path):
        return _load(path, device)


def _load(path: Path, device: Device) -> Model:
    kind = read_config(path).get("kind", "network")
    if kind == "network":
        return LanguageModel.load(path, device)
    if kind == "ngram":
        from fflm.lm.ngram import NgramModel

        return NgramModel.load(path)
    if kind == "mixture":
        from fflm.lm.mixture import Mixture

        return Mixture.load(path, device)
    if kind == "classifier":
        raise FflmError(
            f"{path} is a text classifier, no language model: use it with `fflm classify`, or fflm.TextClassifier.load"
        )
    raise FflmError(f"{path} is a model of the kind {kind!r}, which this fflm does not know: update fflm")


def read_text(path: Path, about: Mapping[str, Any]) -> tuple[TextSettings, Vocabulary]:
    """Return how the model in a folder, of which ``about`` is the config.json, reads text, and its vocabulary.

    Raises
    ------
    FflmError
        If the vocabulary is damaged, or does not fit.
    """
    text, vocabulary = TextSettings.from_dict(about["text"]), Vocabulary.load(path / VOCABULARY, about["vocabulary"])
    if vocabulary.ends != text.ends:
        raise FflmError(f"{path} is damaged: its {VOCABULARY} does not fit its {CONFIG}; restore it, or train again")
    return text, vocabulary


def save_config(path: Path, config: NetworkConfig, text: TextSettings, vocabulary: Vocabulary, about: Mapping[str, Any]) -> None:
    """Write the parts of a network's folder that training does not change: configuration and vocabulary."""
    save_description(path, {"network": config.to_dict()}, text, vocabulary, about)


def save_description(
    path: Path, kind: Mapping[str, Any], text: TextSettings, vocabulary: Vocabulary, about: Mapping[str, Any]
) -> str:
    """Write a model's vocabulary and config.json, in which ``kind`` says what model it is: ``{"network": ...}`` is one.

    Returns
    -------
    str
        The `meaning` of config.json, for `save_arrays`.
    """
    vocabulary.save(path / VOCABULARY)
    content = {
        "format": FORMAT,
        "version": VERSION,
        **kind,
        "text": text.to_dict(),
        "vocabulary": vocabulary.to_dict(),
        **about,
        "versions": versions(),
    }
    write_json(path / CONFIG, content)
    return meaning(content)


def read_config(path: Path, kind: Kind | None = None, of: Any = None) -> dict[str, Any]:
    """Read a model's config.json.

    Parameters
    ----------
    path
        The model's folder.
    kind
        Of which it is to be, if that matters.
    of
        Type of the content, as `fflm.arguments.convert` takes it. By default that of language models; of others, what all have.

    Raises
    ------
    FflmError
        If the folder is no model, of a later version, of another kind than the one that is asked for, or damaged.
    """
    restore(path)
    if not (path / CONFIG).is_file():
        raise FflmError(f"{path} is no model: train one with `{train_command(kind)}`, or name another folder")
    about: dict[str, Any] = read_json(path / CONFIG, Any)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FflmError(f"{path} is no fflm model: its {CONFIG} is something else's")
    if about.get("version") != VERSION:
        raise FflmError(f"{path} is of version {about.get('version')}, this fflm reads {VERSION}: update fflm, or train again")
    if kind not in (None, about.get("kind", "network")):
        raise FflmError(f"{path} is no {_KINDS[kind]}: name another folder")
    of = of or description.LANGUAGE_MODELS.get(str(about.get("kind", "network")), description.Other)
    check_json(about, of, str(path / CONFIG))
    return about


def read_run(path: Path, kind: Kind, of: Any = None) -> dict[str, Any]:
    """Read the config.json of a training run that can be resumed.

    Raises
    ------
    FflmError
        As `read_config`, or if there is no checkpoint.
    """
    about = read_config(path, kind, of)
    if not (path / CHECKPOINT).is_file():
        raise FflmError(f"{path} has no {CHECKPOINT} to resume from: train anew with `overwrite=True`")
    require(path, about, "training", "threads", "texts" if kind == "classifier" else "corpus")
    return about


def require(path: Path, about: Mapping[str, Any], *names: str) -> None:
    """Raise an FflmError if the config.json in a folder, ``about``, lacks what it need not have to predict."""
    for name in names:
        if name not in about:
            raise FflmError(f"{path / CONFIG} is damaged (it lacks {name}): {REMEDY}")


@contextlib.contextmanager
def opening_run(path: Path, kind: Kind, of: Any = None) -> Iterator[dict[str, Any]]:
    """Lock the folder of a run inside the block, and yield its config.json.

    Raises
    ------
    FflmError
        As `read_run`, or if the run is going on elsewhere.
    """
    read_run(path, kind, of)
    with locked_folder(path):
        yield read_run(path, kind, of)  # again, for whoever had it locked may have changed it


def latest_model(folder: Path, use: Callable[[Path], Result], *kinds: Kind) -> tuple[Path, Result]:
    """Return the most recently trained model in a folder that can be used, and what it is used for.

    Parameters
    ----------
    folder
        Contains the folders of models.
    use
        Does with a model what it is needed for, such as `load`. If it raises an FflmError, the next older model is tried.
    *kinds
        Kinds of models to consider.

    Returns
    -------
    Path, Result
        The model's folder, and the result of ``use``. Of two models whose weights are equally old, the first by name.

    Raises
    ------
    FflmError
        If there is none; if ``use`` refused all that there are, the reason is that of the latest.
    """
    candidates = []
    restore_all(folder)
    with clear_errors(f"read {folder}"):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # removed in the meantime, or not readable
                if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
                    candidates.append((-(path / WEIGHTS).stat().st_mtime_ns, path))
    problem = None
    for _, path in sorted(candidates):
        try:
            about = read_json(path / CONFIG, Any)
            if isinstance(about, dict) and about.get("format") == FORMAT and about.get("kind", "network") in kinds:
                return path, use(path)
        except FflmError as error:
            problem = problem or error
    kind = kinds[0] if len(kinds) == 1 else None
    name = _KINDS[kind] if kind else "model"
    if problem:
        raise FflmError(f"no {name} in this folder can be used: {problem}") from problem
    raise FflmError(f"there is no {name} in this folder: train one with `{train_command(kind)}`, or name one with `model`")


def load_weights(path: Path, about: Mapping[str, Any], of: Any) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the best weights in a folder of `fflm train` or `fflm classify train`, and their figures.

    Parameters
    ----------
    path
        The folder.
    about
        Its config.json.
    of
        Type of the figures.

    Raises
    ------
    FflmError
        If there are none yet, they are damaged, or config.json was changed.
    """
    if not (path / WEIGHTS).is_file():
        hint = (
            f"go on with `{train_command(about.get('kind'))} --resume {path}`" if (path / CHECKPOINT).is_file() else "train again"
        )
        raise FflmError(f"{path} has no {WEIGHTS} yet, its training was stopped before the first evaluation: {hint}")
    return load_arrays(path / WEIGHTS, of=of, config=meaning(about))


def train_command(kind: str | None) -> str:
    """Return the command that trains a model of this kind."""
    return {"classifier": "fflm classify train", "ngram": "fflm ngram train"}.get(kind or "", "fflm train")


def versions() -> dict[str, str]:
    """Return the versions of what computes: Python, fflm, and the libraries beneath."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("fflm", "numba", "numpy")}}
