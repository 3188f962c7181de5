"""The corpus that a model was trained on: where it is, and whether it is still the same."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fflm.arrays import CONFIG
from fflm.errors import FflmError
from fflm.files import os_errors_as_fflm_error, restore
from fflm.models.folder import CORPUS, read_config
from fflm.text.corpus import Corpus, Part


def corpus_folder(inputs: Sequence[Path]) -> Path | None:
    """Return the tokenized corpus that the inputs name, as a folder of its own or as a model's, or None if they are text."""
    if len(inputs) != 1:
        return None
    folder = inputs[0]
    restore(folder)
    if (folder / "corpus.json").is_file():
        return folder
    return corpus_path(folder) if (folder / CONFIG).is_file() else None


def corpus_path(path: Path) -> Path:
    """Return the folder of the corpus that a model was trained on; for a mixture, its first model.

    Raises
    ------
    FflmError
        If that is not known.
    """
    reference = read_config(path).get("corpus")
    if reference is None:
        raise FflmError(f"{path} is a model without a corpus: name a text, or a folder made by `fflm.text.tokenize.tokenize`")
    return find_corpus(path, reference)


def find_corpus(path: Path, reference: Mapping[str, Any]) -> Path:
    """Return the folder of a corpus, as the description in a folder refers to it.

    Parameters
    ----------
    path
        The folder of a model or a search.
    reference
        From `describe_corpus`. The relative path goes first, so that a model and its corpus can be moved together. The absolute
        path is for a model that was moved alone.
    """
    if reference["path"] == CORPUS:
        return path / CORPUS
    with os_errors_as_fflm_error(f"find the corpus of {path}"):  # such as a name that no file can have
        places = [locate(reference[name], path) for name in ("path", "absolute") if name in reference]
        found = [place for place in places if (place / "corpus.json").is_file()]
    if len({place.resolve() for place in found}) > 1:  # two corpora: the one that it was, if one is
        found.sort(key=lambda place: Corpus.open(place).fingerprint != reference.get("fingerprint"))
    return (found or places)[0]


def trained_corpus(path: Path) -> Corpus:
    """Open the corpus that a model was trained on; for a mixture, its first model.

    Raises
    ------
    FflmError
        If it is not known, gone, damaged, or not what it was.
    """
    place = corpus_path(path)
    with os_errors_as_fflm_error(f"read {place}"):
        found = (place / "corpus.json").is_file()
    if not found:
        raise FflmError(f"{place}, on which {path} was trained, is gone: name a text instead")
    corpus = Corpus.open(place)
    if not is_described(corpus, read_config(path)["corpus"]):
        raise FflmError(f"{place} is not what it was when {path} was trained on it: name a text instead")
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
    """Return what the config.json of a model at a path says of its corpus, which lies in its folder or is referred to."""
    return {
        **refer(corpus.path, path),
        "fingerprint": corpus.fingerprint,
        "parts": {name: part.counts for name, part in corpus.parts.items()},
    }


def refer(corpus: Path, path: Path) -> dict[str, str]:
    """Return how a description in a folder refers to a corpus: by a relative path and, if it lies elsewhere, an absolute one."""
    if corpus == path / CORPUS:
        return {"path": CORPUS}
    return {"path": relate(corpus, path), "absolute": str(corpus.resolve())}


def relate(target: Path, folder: Path) -> str:
    """Return the path that leads from a folder to another one."""
    return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()


def locate(path: str, folder: Path) -> Path:
    """Return, relative to the current folder, what a path from `relate` leads to; an absolute path as it is."""
    return Path(path) if Path(path).is_absolute() else Path(os.path.relpath((folder / path).resolve()))


def is_described(corpus: Corpus, about: Mapping[str, Any]) -> bool:
    """Return whether a corpus is the one of which `describe_corpus` made a description, wherever it lies now."""
    parts = {name: part.counts for name, part in corpus.parts.items()}
    return about.get("fingerprint") == corpus.fingerprint and about.get("parts", parts) == parts
