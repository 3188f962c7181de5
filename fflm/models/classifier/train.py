"""The training of a text classifier, in its folder."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import (
    Device,
    Encoding,
    Errors,
    Overwrite,
    PathLike,
    Paths,
    Threads,
    checked,
    parameters,
    refuse_unknown,
    to_path,
    to_paths,
)
from fflm.arrays import CHECKPOINT, CONFIG, EXAMPLES, load_arrays, meaning, save_arrays
from fflm.backend.cpu.launching import default_threads
from fflm.backend.devices import choose_device, device_backend
from fflm.errors import FflmError
from fflm.files import NewFolder, os_errors_as_fflm_error
from fflm.models.classifier.features import Reader, Texts, count_words, read_lexicon
from fflm.models.classifier.metrics import Report
from fflm.models.classifier.model import ClassifierFile, probabilities, read_description, save_description
from fflm.models.classifier.reading import Format, LabelColumn, Labeled, TextColumn, read_labeled
from fflm.models.classifier.settings import DEFAULTS, MAX_WORDS, Balanced, Lexicons, Test, TextInput, Valid, Vectors
from fflm.models.creation import TEXT_OPTIONS, check_free, default_path, pop_fields, pop_tokenizer
from fflm.models.folder import opening_run
from fflm.models.neural.model import NeuralModel
from fflm.models.vectors import read_vectors, vector_size
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.stored import REMEDY
from fflm.text.holdout import Count, Share, parse_held_out
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import MaxSize, MinCount, Vocabulary
from fflm.training.checkpoints import Checkpoint, check_shapes
from fflm.training.events import Losses
from fflm.training.examples import Scale
from fflm.training.session import Session, check_size
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

START = 0.1
"""What embeddings are multiplied with before training: a word that was not seen in training should say nothing."""


def default_epochs(examples: int) -> int:
    """Return a default number of epochs for a number of texts."""
    return next((epochs for epochs, most in ((50, 2_000), (20, 20_000), (5, 2_000_000)) if examples <= most), 2)


def default_batch_size(examples: int) -> int:
    """Return a default batch size for a number of texts: at least a hundred updates per epoch."""
    return next((size for size in (256, 128, 64, 32) if examples >= 100 * size), 16)


@checked
def start_session(
    inputs: Paths,
    path: PathLike | None = None,
    *,
    overwrite: Overwrite = False,
    valid: Valid = "10%",
    test: Test = None,
    format: Format = "auto",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    encoding: Encoding = "utf-8",
    errors: Errors = "strict",
    threads: Threads = None,
    device: Device = "cpu",
    vectors: Vectors = None,
    lexicons: Lexicons = (),
    min_count: MinCount = 1,
    max_size: MaxSize = MAX_WORDS,
    balanced: Balanced = False,
    **fields: Any,
) -> "ClassifierSession":
    """Start to train a classifier: read the text, and set up network and folder.

    Parameters
    ----------
    inputs
        As `fflm.models.classifier.reading.read_labeled` takes them.
    path
        The classifier's folder; by default ``reviews.classifier`` for ``reviews.tsv``.
    overwrite, ..., fields
        As `fflm.train_classifier` takes them, which lists them all. Texts that are held out are drawn at random, of each class in
        proportion.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    sources = to_paths("inputs", inputs)
    path = default_path(sources, "classifier") if path is None else to_path("path", path)
    start = None if vectors is None else to_path("vectors", vectors)
    lexicon = read_lexicon(to_paths("lexicons", lexicons)) if lexicons else {}
    held_out = {name: parse_held_out(name, part) for name, part in (("valid", valid), ("test", test))}
    fields = {**DEFAULTS, **fields}
    input = TextInput(tokenizer=pop_tokenizer(fields), lexicon=lexicon, **pop_fields(fields, TextInput, "tokenizer", "lexicon"))
    automatic = [name for name in AUTOMATIC if fields.get(name) is None]
    for name in automatic:
        fields.pop(name, None)
    settings = TrainingSettings(**pop_fields(fields, TrainingSettings, *NO_TRAINING))
    shape = pop_fields(fields, NetworkConfig, *NO_NETWORK)
    refuse_unknown(fields, OPTIONS)
    NetworkConfig(1, tied=False, outputs=2, **shape)  # nonsense is refused before the text is read
    if start and input.input == "features":
        raise FflmError("features have no embeddings: leave out `vectors`, or choose another `input`")
    if settings.frozen and start is None:
        raise FflmError("only embeddings that are given can be frozen: give `vectors`")
    reading = {"format": format, "text_column": text_column, "label_column": label_column, "encoding": encoding, "errors": errors}
    with os_errors_as_fflm_error(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with NewFolder(path, lambda: check_free(path, overwrite)) as new:
        parts = _parts(sources, held_out, settings.seed, reading)
        train = parts["train"]
        labels = sorted(set(train.labels))
        if len(labels) < 2:
            raise FflmError(f"all texts have the label {labels[0]!r}: give texts of at least two classes")
        vocabulary = count_words(input, train.texts, min_count, max_size)
        reader = Reader(input, vocabulary)
        examples = {name: _encode(part, labels, reader, name) for name, part in parts.items()}
        if input.input == "features":
            reader.scale = Scale.of(rows for rows, _ in examples["train"].in_order())
        embeddings = None
        if start:
            embeddings = _embeddings(start, vocabulary)
            shape["embedding"] = embeddings.shape[1]
        if "batch_size" in automatic:
            settings = dataclasses.replace(settings, batch_size=default_batch_size(len(train)))
        if "epochs" in automatic:
            settings = dataclasses.replace(settings, epochs=default_epochs(len(train)))
        config = NetworkConfig(
            vocabulary=len(vocabulary),
            window=input.window,
            tied=False,
            outputs=len(labels),
            numbers=reader.width,
            input="numbers" if input.input == "features" else input.input,
            **shape,
        )
        return ClassifierSession.start(
            new,
            examples,
            config,
            settings,
            labels,
            reader,
            balanced=balanced,
            threads=threads,
            device=device,
            embeddings=embeddings,
        )


AUTOMATIC = ("batch_size", "epochs")
"""Settings that are chosen by the number of texts if they are None, or not given."""

NO_TRAINING = ("loss", "samples", "exact_end", "self_normalise")
NO_NETWORK = ("vocabulary", "input", "numbers", "outputs", "output", "window", "averages", "tied", "bands")

OPTIONS = {
    **parameters(TextInput, "tokenizer", "lexicon"),
    "tokenizer": TEXT_OPTIONS["tokenizer"],
    **parameters(Tokenizer, "mode"),
    **parameters(NetworkConfig, *NO_NETWORK),
    **parameters(TrainingSettings, *NO_TRAINING),
    **parameters(start_session, "path"),
}
"""What `start_session` takes."""
for _name, _default in (DEFAULTS | dict.fromkeys(AUTOMATIC)).items():
    OPTIONS[_name] = OPTIONS[_name].replace(default=_default)


class ClassifierSession(Session):
    """A run on labeled text. Made by `start` or `resume`.

    Attributes
    ----------
    labels
        Of the classes.
    reader
        What turns texts into what the network reads.
    examples
        The parts of the data.
    shares
        As `fflm.models.classifier.model.TextClassifier` has them.
    """

    def __init__(
        self,
        place: Path | NewFolder,
        examples: dict[str, Texts],
        config: NetworkConfig,
        settings: TrainingSettings,
        labels: Sequence[str],
        reader: Reader,
        shares: npt.NDArray[np.float64] | None,
        threads: int,
        device: str,
        embeddings: npt.NDArray[np.float32] | None = None,
    ) -> None:
        check_size(config)
        self.labels, self.reader, self.examples, self.shares = tuple(labels), reader, examples, shares
        parameters = Parameters.random(config, settings.seed)
        parameters.start_from(examples["train"].counts(config.classes))
        if parameters.embeddings is not None:
            parameters.embeddings[...] *= START
        if embeddings is not None:
            parameters.take_embeddings(embeddings)
        chosen = choose_device(device)
        network = Network(config, device_backend(chosen, threads=threads))
        trainer = Trainer(network, parameters, examples["train"], examples.get("valid"), settings)
        super().__init__(place, trainer, _fingerprint(examples), examples.get("test"), threads, chosen)

    @classmethod
    def start(
        cls,
        new: NewFolder,
        examples: dict[str, Texts],
        config: NetworkConfig,
        settings: TrainingSettings,
        labels: Sequence[str],
        reader: Reader,
        *,
        balanced: bool = False,
        threads: int | None = None,
        device: str = "cpu",
        embeddings: npt.NDArray[np.float32] | None = None,
    ) -> Self:
        """Start a run in a new folder, which is published at once, or when there are weights if it replaces a model."""
        counts = examples["train"].counts(config.classes)
        shares = counts / counts.sum() if balanced else None
        threads = threads or default_threads()
        run = cls(new, examples, config, settings, labels, reader, shares, threads, device, embeddings)
        texts = {name: {"texts": len(part), "words": len(part.ids)} for name, part in examples.items()}
        about = {
            "training": settings.to_dict(),
            "threads": run.threads,
            "device": run.device,
            "texts": texts,
            "counts": counts.tolist(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        arrays = {
            f"{name}.{array}": getattr(part, array) for name, part in examples.items() for array in ("ids", "starts", "labels")
        }
        save_arrays(run.folder / EXAMPLES, arrays, list(examples))
        save_description(run.folder, config, labels, reader, shares, about)
        run._write_first_files(texts=texts)
        return run

    @classmethod
    def resume(cls, path: Path, *, epochs: int | None = None, device: str | None = None) -> Self:
        """Resume the run in a folder, as if it had never been interrupted.

        With a new number of epochs, or on another device, if given.

        Raises
        ------
        FflmError
            If there is no such run, it is going on elsewhere, or its files are damaged.
        """
        with opening_run(path, "classifier", ClassifierFile) as about:
            config, labels, reader, shares = read_description(path, about)
            examples = _read_examples(path / EXAMPLES, reader, len(labels))
            check_shapes(path / CHECKPOINT, config)
            checkpoint = Checkpoint.load(path / CHECKPOINT, meaning(about, training=True))
            settings = TrainingSettings.from_dict(about["training"])
            used = device or checkpoint.device or about.get("device", "cpu")
            run = cls(path, examples, config, settings, labels, reader, shares, about["threads"], used)
            run._restore_from(checkpoint, about, epochs)
            return run

    def measure(self, name: str, losses: Losses, parameters: Parameters) -> dict[str, Any]:
        """Return the figures of a `Report`, as JSON values."""
        texts = self.examples[name]
        chances = probabilities(self.trainer.network, parameters, texts, self.shares)
        return Report.of(self.labels, chances, texts.labels).to_dict()


def _read_examples(path: Path, reader: Reader, classes: int) -> dict[str, Texts]:
    """Read the texts of a classifier's folder.

    Raises
    ------
    FflmError
        If they are damaged: a word outside the vocabulary, a label that is not a class, texts that do not follow each other.
    """
    arrays, names = load_arrays(path, (np.int32, np.int64), list[Literal["train", "valid", "test"]])
    examples = {}
    for name in names:
        parts = [arrays.get(f"{name}.{array}", np.empty(0, np.int32)) for array in ("ids", "starts", "labels")]
        ids, starts, labels = parts
        if not (
            (ids.ndim, starts.ndim, labels.ndim) == (1, 1, 1)
            and [each.dtype.type for each in parts] == [np.int32, np.int64, np.int32]
            and len(starts) == len(labels) + 1 > 1
            and (starts[0], starts[-1]) == (0, len(ids))
            and bool((starts[1:] >= starts[:-1]).all())
            and _all_below(ids, len(reader.vocabulary))
            and _all_below(labels, classes)
        ):
            raise FflmError(f"{path} is damaged (its {name} texts do not belong to this classifier): {REMEDY}")
        examples[name] = Texts(reader, ids, starts, labels)
    if "train" not in examples:
        raise FflmError(f"{path} is damaged (it has no texts to train on): {REMEDY}")
    return examples


def _all_below(numbers: npt.NDArray[np.int32], limit: int) -> bool:
    return not len(numbers) or bool(numbers.min() >= 0 and numbers.max() < limit)


def _parts(
    inputs: Sequence[Path], held_out: Mapping[str, Share | Count | tuple[Path, ...] | None], seed: int, reading: dict[str, Any]
) -> dict[str, Labeled]:
    """Read the parts; those that are no files of their own are drawn at random, of each class in proportion."""
    everything = read_labeled(inputs, **reading)
    generator = np.random.default_rng(seed)
    classes, places = np.unique(everything.labels, return_inverse=True)
    # in random order, and evenly: a text's rank is its place among those of its class, over their number
    order = generator.permutation(len(everything))
    ranks = np.empty(len(everything))
    for class_ in range(len(classes)):
        own = order[places[order] == class_]
        ranks[own] = (np.arange(len(own)) + generator.uniform()) / len(own)
        ranks[own[-1]] = 1  # one of each stays for training
    order = np.argsort(ranks, kind="stable")
    parts = {}
    for name, part in held_out.items():
        if part is None:
            continue
        if not isinstance(part, Share | Count):
            parts[name] = read_labeled(part, **reading)
            continue
        count = round(part.value * len(everything)) if isinstance(part, Share) else part.tokens
        if not 0 < count < len(order):
            raise FflmError(
                f"there are {len(everything)} texts, {count} of them cannot be held out for {name}: give more, or `{name}=0`"
            )
        chosen, order = order[:count], order[count:]
        parts[name] = everything.take(np.sort(chosen))
    return {"train": everything.take(np.sort(order)), **parts}


def _encode(part: Labeled, labels: Sequence[str], reader: Reader, name: str) -> Texts:
    places = {label: place for place, label in enumerate(labels)}
    if unknown := sorted(set(part.labels).difference(places)):
        raise FflmError(
            f"the label {unknown[0]!r} is in the {name} text, but not in that for training: give it examples there, too"
        )
    ids, starts = reader.encode(part.texts)
    return Texts(reader, ids, starts, np.array([places[label] for label in part.labels], np.int32))


def _embeddings(source: Path, vocabulary: Vocabulary) -> npt.NDArray[np.float32]:
    """Return a row a word of a vocabulary and one for the padding, NaN where the source has none: (V + 1, m)."""
    if not (source / CONFIG).is_file():
        return read_vectors(source, vocabulary, vector_size(source))
    model = NeuralModel.load(source)
    known = model.vocabulary
    rows = np.full((len(vocabulary) + 1, model.config.embedding), np.nan, np.float32)
    for row, word in enumerate(vocabulary.words):
        if word in known:
            rows[row] = model.parameters.embeddings[known.id(word)]
    rows[[0, -1]] = model.parameters.embeddings[[known.unknown_id, known.start_id]]
    if np.isnan(rows[1:-1]).any(1).all():
        raise FflmError(f"{source} knows none of the words of the texts: give a model of this language, with the same tokenizer")
    return rows


def _fingerprint(examples: dict[str, Texts]) -> str:
    sha256 = hashlib.sha256()
    for name, part in examples.items():
        sha256.update(name.encode())
        for array in (part.ids, part.starts, part.labels):
            sha256.update(array.tobytes())
    return sha256.hexdigest()
