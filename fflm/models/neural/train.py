"""Training a neural language model: a session in the model's folder, which saves checkpoints and can be resumed."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from fflm.arguments import (
    Device,
    Overwrite,
    PathLike,
    Paths,
    Precision,
    Processes,
    Progress,
    Threads,
    checked,
    parameters,
    refuse_unknown,
    to_path,
    to_paths,
)
from fflm.arrays import CHECKPOINT, CONFIG, meaning
from fflm.backend.cpu.launching import default_threads
from fflm.backend.devices import check_precision, choose_device, device_backend
from fflm.errors import FflmError
from fflm.files import NewFolder
from fflm.models.corpora import describe_corpus, find_corpus, is_described
from fflm.models.creation import TEXT_OPTIONS, check_free, default_path, new_model, pop_fields, text_source
from fflm.models.folder import opening_run
from fflm.models.neural.model import save_config
from fflm.models.scoring import Score, part_score
from fflm.models.vectors import read_vectors
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.stored import REMEDY
from fflm.text.corpus import Corpus
from fflm.text.windows import Windows
from fflm.training.checkpoints import Checkpoint, check_shapes
from fflm.training.events import Losses
from fflm.training.session import Session, check_size
from fflm.training.settings import AUTOMATIC, LossName, Preset, TrainingSettings, Vectors
from fflm.training.trainer import Trainer

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "window": 5,
        "averages": (20,),
        "embedding": 64,
        "hidden": (128,),
        "dropout": 0.1,
        "embedding_dropout": 0.1,
        "epochs": 3,
        "rate": 4e-3,
    },
}
"""The settings of each preset that differ from the defaults of `NetworkConfig` and `TrainingSettings`."""


def default_batch_size(words: int, vocabulary: int) -> int:
    """Return a batch size for a text: some thousand updates an epoch, within what is efficient and fits in memory."""
    largest = min(words // 300, 128 * 2**20 // (4 * vocabulary))
    return next((size for size in (512, 256, 128) if size <= largest), 64)


def default_loss(vocabulary: int) -> LossName:
    """Return the loss to train with: over a sample where a vocabulary is so large that the sample saves much."""
    return "sampled" if vocabulary > 16 * TrainingSettings.samples else "exact"


def default_averages(words: int) -> tuple[int, ...]:
    """Return the averages that a network for a text sees: a small text is learned by heart through them, a larger one gains."""
    return (10, 30, 90, 270) if words > 300_000 else ()


def default_epochs(words: int) -> int:
    """Return how many passes over a text are worth their time: the larger it is, the fewer."""
    return next((epochs for epochs, most in ((10, 300_000), (6, 1_000_000), (4, 3_000_000), (2, 30_000_000)) if words <= most), 1)


@checked
def start_session(
    inputs: Paths,
    path: PathLike | None = None,
    *,
    overwrite: Overwrite = False,
    processes: Processes = None,
    progress: Progress = None,
    threads: Threads = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
    vectors: Vectors = None,
    preset: Preset = "default",
    **fields: Any,
) -> "TrainingSession":
    """Start a training run: tokenize the text unless that was done, and set up network and folder.

    Parameters
    ----------
    inputs
        Files, folders or ``"-"``; or one folder made by `fflm.text.tokenize.tokenize`; or that of another model, for the same
        text with the same vocabulary.
    path
        The model's folder; by default that of `default_path`.
    overwrite, ..., fields
        As `fflm.train` takes them, which lists them all.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    paths = to_paths("inputs", inputs)
    place = default_path(paths) if path is None else to_path("path", path)
    start = None if vectors is None else to_path("vectors", vectors)
    fields = PRESETS[preset] | fields
    check_precision(precision, choose_device(device))
    source = text_source(paths, fields)
    shape, settings, automatic = network_settings(fields)
    refuse_unknown(fields, OPTIONS)
    with new_model(source, place, lambda: check_free(place, overwrite), processes=processes, progress=progress) as (new, corpus):
        config, settings = resolve_settings(shape, settings, automatic, corpus)
        embeddings = read_vectors(start, corpus.vocabulary, config.embedding) if start else None
        return TrainingSession.start(
            new, corpus, config, settings, threads=threads, device=device, precision=precision, embeddings=embeddings
        )


OPTIONS = {
    **parameters(NetworkConfig, "input", "numbers", "outputs", "output"),
    **parameters(TrainingSettings),
    **TEXT_OPTIONS,
    **parameters(start_session, "path"),
}
"""What `start_session` takes."""
for _name in AUTOMATIC:
    OPTIONS[_name] = OPTIONS[_name].replace(annotation=OPTIONS[_name].annotation | None, default=None)


def network_settings(fields: dict[str, Any]) -> tuple[NetworkConfig, TrainingSettings, list[str]]:
    """Take out of ``fields`` those of `NetworkConfig` and `TrainingSettings`; nonsense is refused before the text is read.

    The vocabulary and the settings that the third value names depend on the text: `resolve_settings` fills them in.
    """
    automatic = [name for name in AUTOMATIC if fields.get(name) is None]
    for name in automatic:
        fields.pop(name, None)
    config = NetworkConfig(
        vocabulary=1, **pop_fields(fields, NetworkConfig, "vocabulary", "input", "numbers", "outputs", "output")
    )
    settings = TrainingSettings(**pop_fields(fields, TrainingSettings))
    if config.bands and settings.loss != "exact":
        raise FflmError(f"an adaptive softmax has no use for the loss {settings.loss}: leave out `bands`, or `loss`")
    return config, settings, automatic


def resolve_settings(
    config: NetworkConfig, settings: TrainingSettings, automatic: Sequence[str], corpus: Corpus
) -> tuple[NetworkConfig, TrainingSettings]:
    """Fill in what depends on the text, after `network_settings`."""
    words, vocabulary = corpus.parts["train"].tokens, len(corpus.vocabulary)
    config = dataclasses.replace(config, vocabulary=vocabulary)
    if "averages" in automatic:
        config = dataclasses.replace(config, averages=default_averages(words))
    if "batch_size" in automatic:
        settings = dataclasses.replace(settings, batch_size=default_batch_size(words, vocabulary))
    if "loss" in automatic and not config.bands:
        settings = dataclasses.replace(settings, loss=default_loss(vocabulary))
    if "epochs" in automatic:
        settings = dataclasses.replace(settings, epochs=default_epochs(words))
    return config, settings


def check_length(corpus: Corpus, config: NetworkConfig) -> None:
    """Raise an FflmError if a part of a corpus has not a single context of a network."""
    for name, part in corpus.parts.items():
        if part.tokens <= config.window:
            remedy = "give more text or a smaller `window`"
            if name != "train":
                remedy += f", or none with `{name}=0`"
            raise FflmError(f"the {name} text has {part.tokens} tokens, too few for a window of {config.window}: {remedy}")


class TrainingSession(Session):
    """The training session of a network on text. Create it with `start` or `resume`.

    Attributes
    ----------
    corpus
        The data.
    vectors
        Words whose embeddings were given to start from.
    precision
        Precision of training: ``fp32`` or ``mixed``.
    """

    def __init__(
        self,
        place: Path | NewFolder,
        corpus: Corpus,
        config: NetworkConfig,
        settings: TrainingSettings,
        threads: int,
        device: str,
        precision: str,
        embeddings: np.ndarray | None = None,
    ) -> None:
        check_size(config)
        self.corpus = corpus
        self.precision = precision
        self.vectors = 0
        parts = {
            name: Windows.of(part.ids, corpus.vocabulary, corpus.settings, config.context) for name, part in corpus.parts.items()
        }
        parameters = Parameters.random(config, settings.seed)
        parameters.start_from(parts["train"].counts(config.vocabulary))
        if embeddings is not None:
            self.vectors = parameters.take_embeddings(embeddings)
        chosen = choose_device(device)
        network = Network(config, device_backend(chosen, precision, threads))
        trainer = Trainer(network, parameters, parts["train"], parts.get("valid"), settings)
        super().__init__(place, trainer, corpus.fingerprint, parts.get("test"), threads, chosen)

    @classmethod
    def start(
        cls,
        new: NewFolder,
        corpus: Corpus,
        config: NetworkConfig,
        settings: TrainingSettings,
        *,
        threads: int | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        embeddings: np.ndarray | None = None,
    ) -> Self:
        """Start a run in a new folder, which is published at once, or when there are weights if it replaces a model.

        Parameters
        ----------
        new
            The model's folder, which is empty, but for the corpus that may be there.
        corpus
            The data; in ``new.path / "corpus"`` as soon as that is published, or elsewhere and then referred to.
        config, settings
            The network and its training.
        threads
            Number of CPU threads; by default one per core.
        device
            ``cpu``, ``cuda`` or ``auto``.
        precision
            ``fp32``, or on ``cuda`` also ``mixed``.
        embeddings
            (V + 1, m) to start from, NaN in rows that are to be random.

        Raises
        ------
        FflmError
            If the text is too short for the window, or the folder cannot be written.
        """
        check_length(corpus, config)
        run = cls(new, corpus, config, settings, threads or default_threads(), device, precision, embeddings)
        about = {
            "training": settings.to_dict(),
            "threads": run.threads,
            "device": run.device,
            "precision": precision,
            "vectors": run.vectors,
            "corpus": describe_corpus(corpus, run.path),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        save_config(run.folder, config, corpus.settings, corpus.vocabulary, about)
        run._write_first_files(text=corpus.conditions)
        return run

    @classmethod
    def resume(cls, path: Path, corpus: Corpus | None = None, *, epochs: int | None = None, device: str | None = None) -> Self:
        """Resume the run in a folder, as if it had never been interrupted.

        Parameters
        ----------
        path
            The model's folder.
        corpus
            The data, if not the very folder that the run began with; must be the same.
        epochs
            A new number of epochs.
        device
            The device to continue on, if not the one that trained so far. Results differ by rounding. A run in mixed precision on
            the GPU continues in float32 on the CPU.

        Raises
        ------
        FflmError
            If there is no such run, it is going on elsewhere, its files are damaged, or the data is not what it began with.
        """
        with opening_run(path, "network") as about:
            config, settings = NetworkConfig.from_dict(about["network"]), TrainingSettings.from_dict(about["training"])
            if corpus is None:
                corpus = Corpus.open(find_corpus(path, about["corpus"]))
            corpus.verify()
            if not is_described(corpus, about["corpus"]):
                reason = _difference(path, corpus, about)
                raise FflmError(
                    f"{path} was trained on other data ({reason}): resume with that, or train again with `overwrite=True`"
                )
            if config.vocabulary != len(corpus.vocabulary) or corpus.settings.to_dict() != about["text"]:
                raise FflmError(f"{path / CONFIG} is damaged (it does not fit the text): {REMEDY}")
            check_shapes(path / CHECKPOINT, config)
            checkpoint = Checkpoint.load(path / CHECKPOINT, meaning(about, training=True))
            used = choose_device(device or checkpoint.device or about.get("device", "cpu"))
            precision = about.get("precision", "fp32") if used == "cuda" else "fp32"
            run = cls(path, corpus, config, settings, about["threads"], used, precision)
            run.vectors = about.get("vectors", 0)
            run._restore_from(checkpoint, about, epochs)
            return run

    def measure(self, name: str, losses: Losses, parameters: Parameters) -> dict[str, Any]:
        """Return the figures of a `Score`, as JSON values."""
        return self.score(name, losses).to_dict()

    def score(self, name: str, losses: Losses) -> Score:
        """Return the losses on a part of the corpus as a perplexity, with its evaluation conditions."""
        corpus = self.corpus
        return part_score(corpus.parts[name], corpus.vocabulary, corpus.settings, losses.total, losses.unknown)


def _difference(path: Path, corpus: Corpus, about: dict[str, Any]) -> str:
    """Say in what a corpus differs from the one that a run began with."""
    if corpus.settings.to_dict() != about["text"]:
        return "the text is read differently"
    if len(corpus.vocabulary) != about["vocabulary"]["size"]:
        return "another vocabulary"
    for name, counts in about["corpus"].get("parts", {}).items():
        if name not in corpus.parts or corpus.parts[name].counts != counts:
            return f"another {name} text"
    return "the text or the vocabulary has changed"
