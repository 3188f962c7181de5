"""References from models to the corpora that they were trained on."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fflm.arrays import CONFIG
from fflm.errors import FflmError
from fflm.files import os_errors_as_fflm_error, restore
from fflm.given import Text
from fflm.models.folder import CORPUS, read_config
from fflm.text.corpus import Corpus, Part


def corpus_folder(inputs: Sequence[Path | Text]) -> Path | None:
    """Return the folder of the tokenized corpus that the inputs refer to, or None if the inputs are text.

    The only input may be the folder of a corpus, or the folder of a model, which refers to its corpus.
    """
    if len(inputs) != 1 or isinstance(inputs[0], Text):
        return None
    folder = inputs[0]
    restore(folder)
    if (folder / "corpus.json").is_file():
        return folder
    return corpus_path(folder) if (folder / CONFIG).is_file() else None


def corpus_path(path: Path) -> Path:
    """Return the folder of the corpus that a model was trained on; for a mixture, that of its first component.

    Raises
    ------
    FflmError
        If the model does not refer to a corpus.
    """
    reference = read_config(path).get("corpus")
    if reference is None:
        raise FflmError(f"{path} is a model without a corpus: give a text, or a folder made by `fflm.text.tokenize.tokenize`")
    return find_corpus(path, reference)


def find_corpus(path: Path, reference: Mapping[str, Any]) -> Path:
    """Return the folder of the corpus that a model or a search refers to.

    The relative path is tried first, so that a model and its corpus can be moved together, and then the absolute path, for a
    model that was moved without its corpus. If there are different corpora at the two, the one with the right fingerprint is
    returned. If there is none, the path is returned at which it should be.

    Parameters
    ----------
    path
        The folder of the model or search.
    reference
        The reference, as made by `describe_corpus`.

    Raises
    ------
    FflmError
        If a path is not valid.
    """
    if reference["path"] == CORPUS:
        return path / CORPUS
    with os_errors_as_fflm_error(f"find the corpus of {path}"):
        places = [resolve_relative(reference[name], path) for name in ("path", "absolute") if name in reference]
        found = [place for place in places if (place / "corpus.json").is_file()]
    if len({place.resolve() for place in found}) > 1:
        found.sort(key=lambda place: Corpus.open(place).fingerprint != reference.get("fingerprint"))
    return (found or places)[0]


def trained_corpus(path: Path) -> Corpus:
    """Open the corpus that a model was trained on; for a mixture, that of its first component.

    Raises
    ------
    FflmError
        If the model does not refer to a corpus, or the corpus is missing, damaged or has changed.
    """
    place = corpus_path(path)
    with os_errors_as_fflm_error(f"read {place}"):
        found = (place / "corpus.json").is_file()
    if not found:
        raise FflmError(f"{place}, on which {path} was trained, is missing: give a text instead")
    corpus = Corpus.open(place)
    if not is_described(corpus, read_config(path)["corpus"]):
        raise FflmError(f"{place} has changed since {path} was trained on it: give a text instead")
    return corpus


def trained_part(path: Path, name: str, remedy: str) -> Part:
    """Return a part of the corpus that a model was trained on; for a mixture, its first model.

    Parameters
    ----------
    path
        The model's folder.
    name
        ``train``, ``valid`` or ``test``.
    remedy
        What the user should do if there is no such part.

    Raises
    ------
    FflmError
        As `trained_corpus`, or if there is no such part.
    """
    parts = trained_corpus(path).parts
    if name not in parts:
        raise FflmError(f"{path} was trained without a {'validation' if name == 'valid' else name} part: {remedy}")
    return parts[name]


def describe_corpus(corpus: Corpus, path: Path) -> dict[str, Any]:
    """Return the description of a corpus for the config.json of a model whose folder is ``path``: a `CorpusReference`."""
    return {
        **corpus_paths(corpus.path, path),
        "fingerprint": corpus.fingerprint,
        "parts": {name: part.counts for name, part in corpus.parts.items()},
    }


def corpus_paths(corpus: Path, path: Path) -> dict[str, str]:
    """Return the paths of a corpus for a description in a folder: the relative one, and for a corpus elsewhere the absolute one.

    Parameters
    ----------
    corpus
        The folder of the corpus.
    path
        The folder of the model or search.
    """
    if corpus == path / CORPUS:
        return {"path": CORPUS}
    return {"path": relative_path(corpus, path), "absolute": str(corpus.resolve())}


def relative_path(target: Path, folder: Path) -> str:
    """Return the path of a target relative to a folder, with ``/``."""
    return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()


def resolve_relative(path: str, folder: Path) -> Path:
    """Return a path that is relative to a folder as one that is relative to the current folder; an absolute path is unchanged."""
    return Path(path) if Path(path).is_absolute() else Path(os.path.relpath((folder / path).resolve()))


def is_described(corpus: Corpus, about: Mapping[str, Any]) -> bool:
    """Return whether a corpus, wherever it is now, is the one that a description from `describe_corpus` is about."""
    parts = {name: part.counts for name, part in corpus.parts.items()}
    return about.get("fingerprint") == corpus.fingerprint and about.get("parts", parts) == parts
