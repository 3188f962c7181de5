"""The folder of a model of any kind: config.json, vocabulary and weights."""

import contextlib
import hashlib
import json
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fflm.arrays import CHECKPOINT, CONFIG, WEIGHTS, map_arrays, meaning, stored_header
from fflm.errors import FflmError, FflmWarning
from fflm.files import locked_folder, open_regular, os_errors_as_fflm_error, restore, restore_all, write_json
from fflm.models import description
from fflm.parallel.world import world
from fflm.stored import REMEDY, check_json, read_json
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary, table_path

FORMAT, VERSION = "fflm model", 1

VOCABULARY, CORPUS = "vocabulary.tsv", "corpus"
WORDS = table_path(Path(VOCABULARY)).name

Kind = Literal["network", "ngram", "mixture", "classifier"]


class KindOfModel(NamedTuple):
    """What other modules need to know of a kind of model without importing it.

    Attributes
    ----------
    article, name
        What messages call a model of this kind.
    train
        The function that trains one.
    model
        The class, whose ``load`` takes a folder and a device.
    session
        The class of its training sessions, or of those of its members, whose ``resume`` takes a folder; None if its training
        cannot be resumed.
    """

    article: str
    name: str
    train: str
    model: str
    session: str | None = None


KINDS: dict[Kind, KindOfModel] = {
    "network": KindOfModel(
        "a",
        "network",
        "fflm.train",
        "fflm.models.neural.model.NeuralModel",
        "fflm.models.neural.train.TrainingSession",
    ),
    "ngram": KindOfModel("an", "n-gram model", "fflm.train_ngram", "fflm.models.ngram.model.NgramModel"),
    "mixture": KindOfModel("a", "mixture", "fflm.train", "fflm.models.mixture.model.Mixture", "fflm.models.ensemble.Ensemble"),
    "classifier": KindOfModel(
        "a",
        "text classifier",
        "fflm.train_classifier",
        "fflm.models.classifier.model.TextClassifier",
        "fflm.models.classifier.train.ClassifierSession",
    ),
}

QUANTIZED = "fflm.models.neural.quantized.QuantizedNetwork"
"""The class of networks whose config.json has ``"bits"``."""

LANGUAGE_MODELS: tuple[Kind, ...] = ("network", "ngram", "mixture")

Result = TypeVar("Result")


def read_text(path: Path, about: Mapping[str, Any], *, verify: bool) -> tuple[TextSettings, Vocabulary]:
    """Return how the model in a folder, of which ``about`` is the config.json, reads text, and its vocabulary.

    ``verify`` is whether to read its words to their end, as for `Vocabulary.load`.

    Raises
    ------
    FflmError
        If the vocabulary is damaged, or does not fit.
    """
    text = TextSettings.load(path, about["text"])
    vocabulary = Vocabulary.load(path / VOCABULARY, about["vocabulary"], verify=verify)
    if vocabulary.ends != text.ends:
        raise FflmError(f"{path} is damaged: its {VOCABULARY} does not fit its {CONFIG}; restore it, or train again")
    return text, vocabulary


def save_description(
    path: Path, kind: Mapping[str, Any], text: TextSettings, vocabulary: Vocabulary, about: Mapping[str, Any]
) -> str:
    """Write a model's vocabulary and config.json, in which ``kind`` says what model it is: ``{"network": ...}`` is one.

    Returns
    -------
    str
        The `meaning` of config.json, for `save_arrays`.
    """
    save_vocabulary(path, vocabulary)
    text.save_subwords(path)
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


def save_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write a model's vocabulary to its folder, as text, and as arrays from which it is loaded."""
    vocabulary.save(path / VOCABULARY)
    vocabulary.save_table(path / VOCABULARY)


def read_config(path: Path, kind: Kind | None = None, of: Any = None) -> dict[str, Any]:
    """Read a model's config.json.

    Parameters
    ----------
    path
        The model's folder.
    kind
        The kind that the model must have; None for any kind.
    of
        The type that the content must have, as `fflm.arguments.convert` takes it; by default that of the language model's kind,
        and for other kinds the fields that all models have.

    Raises
    ------
    FflmError
        If the folder is not a model, of a later version, of another kind than the one that is asked for, or damaged.
    """
    restore(path)
    if not (path / CONFIG).is_file():
        train = KINDS[kind or "network"].train
        raise FflmError(f"{path} is not a model: train one with `{train}`, or name another folder")
    about: dict[str, Any] = read_json(path / CONFIG, Any)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FflmError(f"{path} is not an fflm model: its {CONFIG} is something else's")
    if about.get("version") != VERSION:
        raise FflmError(f"{path} is of version {about.get('version')}, this fflm reads {VERSION}: update fflm, or train again")
    if kind and kind != about.get("kind", "network"):
        raise FflmError(f"{path} is not {KINDS[kind].article} {KINDS[kind].name}: name another folder")
    of = of or description.LANGUAGE_MODELS.get(str(about.get("kind", "network")), description.Other)
    check_json(about, of, str(path / CONFIG))
    return about


def read_run(path: Path, kind: Kind, of: Any = None) -> dict[str, Any]:
    """Read the config.json of a training run that can be resumed.

    Raises
    ------
    FflmError
        As `read_config`, or if there is not a checkpoint.
    """
    about = read_config(path, kind, of)
    if not (path / CHECKPOINT).is_file():
        raise FflmError(f"{path} has no {CHECKPOINT} to resume from: train again with `overwrite=True`")
    require(path, about, "training", "threads", "texts" if kind == "classifier" else "corpus")
    return about


def require(path: Path, about: Mapping[str, Any], *names: str) -> None:
    """Raise an FflmError if the config.json in a folder, ``about``, lacks what it need not have to predict."""
    for name in names:
        if name not in about:
            raise FflmError(f"{path / CONFIG} is damaged (it lacks {name}): {REMEDY}")


@contextlib.contextmanager
def opening_run(path: Path, kind: Kind, of: Any = None) -> Iterator[dict[str, Any]]:
    """Lock the folder of a run inside the block, and yield its config.json; of several processes, the first one does both.

    Raises
    ------
    FflmError
        As `read_run`, or if the run is going on elsewhere.
    """
    with contextlib.ExitStack() as stack:

        def read() -> dict[str, Any]:
            read_run(path, kind, of)
            stack.enter_context(locked_folder(path))
            return read_run(path, kind, of)  # again, for whoever had it locked may have changed it

        yield world().on_first(read)


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
    with os_errors_as_fflm_error(f"read {folder}"):
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
    kind = KINDS[kinds[0]]
    name = kind.name if len(kinds) == 1 else "model"
    if problem:
        raise FflmError(f"no {name} in this folder can be used: {problem}") from problem
    raise FflmError(f"there is no {name} in this folder: train one with `{kind.train}`, or name one with `model`")


def fingerprint(path: Path) -> str:
    """Return a hash of what a model's config.json and the header of its weights say, which changes when it is trained again.

    Among this are the checksums of its words and weights, which are not read.

    Raises
    ------
    FflmError
        If it is not a model, or cannot be read.
    """
    return hashlib.sha256(f"{meaning(read_config(path))} {stored_header(path / WEIGHTS)}".encode()).hexdigest()


def has_fingerprint(path: Path, expected: str) -> bool:
    """Return whether a model has a fingerprint, possibly one that an early version made, for which its files are read.

    Raises
    ------
    FflmError
        As `fingerprint`.
    """
    if fingerprint(path) == expected:
        return True
    about = read_config(path)
    files = b""
    for name in (VOCABULARY, WEIGHTS):
        with os_errors_as_fflm_error(f"read {path / name}"), open_regular(path / name) as file:
            files += hashlib.file_digest(file, "sha256").digest()
    settings = meaning(about), json.dumps(about.get("text"), sort_keys=True)
    return expected in [hashlib.sha256(each.encode() + files).hexdigest() for each in settings]


def load_weights(
    path: Path,
    about: Mapping[str, Any],
    of: Any,
    types: Sequence[type[np.generic]] = (np.float32, np.float64),
    *,
    verify: bool,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the best weights in the folder of a network or classifier, and their figures.

    An FflmWarning says so if they were saved before the first evaluation, so that they are hardly trained.

    Parameters
    ----------
    path
        The folder.
    about
        Its config.json.
    of
        Type of the figures.
    types
        The dtypes that the weights may have.
    verify
        Whether to verify the checksum, for which all weights are read.

    Raises
    ------
    FflmError
        If there are none yet, they are damaged, or config.json was changed.
    """
    if not (path / WEIGHTS).is_file():
        hint = f"resume it with `fflm.resume('{path}')`" if (path / CHECKPOINT).is_file() else "train again"
        raise FflmError(f"{path} has no {WEIGHTS} yet, its training was stopped before it had saved them: {hint}")
    mapped, figures = map_arrays(path / WEIGHTS, types, of, config=meaning(about), verify=verify)
    if "step" in figures and "train_loss" not in figures:
        reason = f"{path} is hardly trained, it was saved before its first evaluation"
        warnings.warn(FflmWarning(f"{reason}: resume its training with `fflm.resume('{path}')`"), stacklevel=2)
    return mapped.arrays, figures


def versions() -> dict[str, str]:
    """Return the versions of Python, fflm, and the libraries that compute."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("fflm", "numba", "numpy")}}
