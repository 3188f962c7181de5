"""What the training of every kind of model begins with: a text that becomes a corpus, in the folder of a model that is new."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fflm.arguments import Encoding, Errors, Paths, Processes, Progress, check, parameters, to_paths
from fflm.errors import FflmError
from fflm.files import NewFolder, check_own, clear_errors, restore
from fflm.lm.model import CORPUS, VOCABULARY, read_config, train_command
from fflm.text import corpus as corpora
from fflm.text.corpus import Corpus, Test, TextSettings, Valid, VocabularyRule, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.training.checkpoints import CHECKPOINT, CONFIG, EXAMPLES, LOG, WEIGHTS

TEXT_OPTIONS = {
    "tokenizer": parameters(Tokenizer)["mode"].replace(name="tokenizer"),
    **parameters(Tokenizer, "mode"),
    **parameters(TextSettings, "tokenizer"),
    **parameters(VocabularyRule),
}
"""What `text_settings` takes."""

FILES = (CONFIG, VOCABULARY, WEIGHTS, CHECKPOINT, LOG, EXAMPLES, CORPUS, *(f"{CORPUS}/{name}" for name in corpora.FILES))
"""Of the folder of a model of any kind."""


@contextlib.contextmanager
def new_model(
    inputs: Sequence[Path],
    path: Path,
    text: TextSettings,
    rule: VocabularyRule,
    *,
    check: Callable[[], None],
    valid: Valid,
    test: Test,
    encoding: Encoding,
    errors: Errors,
    processes: Processes,
    progress: Progress,
) -> Iterator[tuple[NewFolder, Corpus]]:
    """Yield the folder of a new model, for the block to publish or keep, and the corpus to train on.

    If the block fails, the folder is discarded. A corpus in it has the path that it will have when the folder is published.

    Parameters
    ----------
    inputs
        Files, folders or ``"-"``, which are tokenised into the folder; or what `corpus_folder` understands.
    path
        The model's folder.
    text, rule, valid, test, encoding, errors, processes, progress
        As `fflm.text.corpus.tokenize` takes them; without effect on a text that is tokenised already.
    check
        As `fflm.files.NewFolder` takes it.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    place = corpus_folder(inputs)
    with clear_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with NewFolder(path, check) as new, clear_errors(f"write {path}"):
        if place is None:
            corpus = tokenize(
                inputs, new.folder / CORPUS, text, rule, valid, test,
                encoding=encoding, errors=errors, processes=processes, progress=progress,
            )  # fmt: skip
            corpus = corpus.moved(path / CORPUS)
        else:
            if path.resolve() in place.resolve().parents:
                raise FflmError(f"{place} lies in {path}, which is to be replaced: choose another folder")
            corpus = Corpus.open(place)
            corpus.verify()
        yield new, corpus


def default_path(inputs: Paths, kind: str = "model") -> Path:
    """Return where the model of some text goes if nobody says: ``stories.model`` for ``corpora/stories.txt``."""
    first = to_paths("inputs", inputs)[0]
    with clear_errors(f"read {first}"):
        name = "stdin" if str(first) == "-" else first.resolve().name
    return Path(f"{name.split('.')[0] or name}.{kind}")


def check_free(path: Path, overwrite: bool) -> None:
    """Raise an FflmError if a model cannot be put at a path, because something is there that may not be replaced."""
    restore(path)
    if path.exists() and not (path / CONFIG).is_file():
        raise FflmError(f"{path} exists and is no model: choose another folder")
    if path.exists() and not overwrite:
        command = train_command(read_config(path).get("kind"))
        resume = f"`{command} --resume {path}` goes on with it, " if (path / CHECKPOINT).is_file() else ""
        raise FflmError(f"{path} exists: {resume}`overwrite=True` replaces it, or choose another folder")
    check_own(path, FILES)


def corpus_folder(inputs: Sequence[Path]) -> Path | None:
    """Return the tokenised corpus that the inputs name, as a folder of its own or as a model's, or None if they are text."""
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
        raise FflmError(f"{path} is a model without a corpus: name a text, or a folder made by `fflm tokenize`")
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
    with clear_errors(f"find the corpus of {path}"):  # such as a name that no file can have
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
    with clear_errors(f"read {place}"):
        found = (place / "corpus.json").is_file()
    if not found:
        raise FflmError(f"{place}, on which {path} was trained, is gone: name a text instead")
    corpus = Corpus.open(place)
    if not is_described(corpus, read_config(path)["corpus"]):
        raise FflmError(f"{place} is not what it was when {path} was trained on it: name a text instead")
    return corpus


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


def text_settings(fields: dict[str, Any]) -> tuple[TextSettings, VocabularyRule]:
    """Take out of ``fields`` those of `Tokenizer` (its ``mode`` as ``tokenizer``), `TextSettings` and `VocabularyRule`."""
    return TextSettings(take_tokenizer(fields), **take(fields, TextSettings, "tokenizer")), VocabularyRule(
        **take(fields, VocabularyRule)
    )


def take_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Take a tokenizer out of ``fields``, in which its ``mode`` is called ``tokenizer``."""
    check("tokenizer", TEXT_OPTIONS["tokenizer"].annotation, fields.get("tokenizer", Tokenizer.mode))
    return Tokenizer(mode=fields.pop("tokenizer", Tokenizer.mode), **take(fields, Tokenizer, "mode"))


def take(fields: dict[str, Any], of: type, *but: str) -> dict[str, Any]:
    """Take those out of ``fields`` that a dataclass has, but some."""
    names = {field.name for field in dataclasses.fields(of)}.difference(but)
    return {name: fields.pop(name) for name in names.intersection(fields)}
