"""The folder of a new model, with the corpus that it is trained on."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fflm.arguments import PathLike, Paths, Processes, Progress, check, parameters, to_path, to_paths
from fflm.arrays import CHECKPOINT, CONFIG, EXAMPLES, LOG, WEIGHTS
from fflm.errors import FflmError
from fflm.files import NewFolder, check_own, os_errors_as_fflm_error, restore
from fflm.models.corpora import corpus_folder
from fflm.models.folder import CORPUS, VOCABULARY, read_config
from fflm.text.corpus import FILES as CORPUS_FILES
from fflm.text.corpus import Corpus
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule

TEXT_OPTIONS = {
    "tokenizer": parameters(Tokenizer)["mode"].replace(name="tokenizer"),
    **parameters(Tokenizer, "mode"),
    **parameters(TextSettings, "tokenizer"),
    **parameters(VocabularyRule),
    **parameters(TextSource, "settings", "rule"),
}
"""The options that `text_source` takes."""

FILES = (CONFIG, VOCABULARY, WEIGHTS, CHECKPOINT, LOG, EXAMPLES, CORPUS, *(f"{CORPUS}/{name}" for name in CORPUS_FILES))
"""Files that the folder of a model, of any kind, may contain."""


@contextlib.contextmanager
def new_model(
    source: TextSource, path: Path, check: Callable[[], None], *, processes: Processes, progress: Progress
) -> Iterator[tuple[NewFolder, Corpus]]:
    """Yield the folder of a new model, for the block to publish or keep, and the corpus to train on.

    If the block fails, the folder is discarded. A corpus in it has the path that it will have when the folder is published.

    Parameters
    ----------
    source
        The text, which is tokenized into the folder. If its inputs are what `corpus_folder` understands, the text is tokenized
        already, and the other fields have no effect.
    path
        The model's folder.
    check
        As `fflm.files.NewFolder` takes it.
    processes, progress
        As `fflm.text.tokenize.tokenize` takes them.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    place = corpus_folder(source.inputs)
    with os_errors_as_fflm_error(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with NewFolder(path, check) as new, os_errors_as_fflm_error(f"write {path}"):
        if place is None:
            corpus = tokenize(source, new.folder / CORPUS, processes=processes, progress=progress).moved(path / CORPUS)
        else:
            if path.resolve() in place.resolve().parents:
                raise FflmError(f"{place} lies in {path}, which is to be replaced: choose another folder")
            corpus = Corpus.open(place)
            corpus.verify()
        yield new, corpus


def model_path(path: PathLike | None, inputs: tuple[Path, ...], suffix: str = "model") -> Path:
    """Return the folder of a new model: the path that is given, or by default ``stories.model`` for ``corpora/stories.txt``."""
    if path is not None:
        return to_path("path", path)
    first = inputs[0]
    with os_errors_as_fflm_error(f"read {first}"):
        name = "stdin" if str(first) == "-" else first.resolve().name
    return Path(f"{name.split('.')[0] or name}.{suffix}")


def check_free(path: Path, overwrite: bool) -> None:
    """Raise an FflmError if a model cannot be put at a path, because something is there that may not be replaced."""
    restore(path)
    if path.exists() and not (path / CONFIG).is_file():
        raise FflmError(f"{path} exists and is not a model: choose another folder")
    if path.exists() and not overwrite:
        read_config(path)  # what is not a model cannot be replaced by one
        resume = f"`fflm.resume('{path}')` resumes its training, " if (path / CHECKPOINT).is_file() else ""
        raise FflmError(f"{path} exists: {resume}`overwrite=True` replaces it, or choose another folder")
    check_own(path, FILES)


def text_source(inputs: Paths, fields: dict[str, Any]) -> TextSource:
    """Make a source of the inputs and of those of ``fields`` that `TEXT_OPTIONS` lists, which are removed from ``fields``."""
    paths = to_paths("inputs", inputs)
    settings = TextSettings(pop_tokenizer(fields), **pop_fields(fields, TextSettings, "tokenizer"))
    rule = VocabularyRule(**pop_fields(fields, VocabularyRule))
    return TextSource(paths, settings, rule, **pop_fields(fields, TextSource, "inputs", "settings", "rule"))


def pop_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Remove the fields of a tokenizer from ``fields``, where its ``mode`` is called ``tokenizer``; return the tokenizer."""
    check("tokenizer", TEXT_OPTIONS["tokenizer"].annotation, fields.get("tokenizer", Tokenizer.mode))
    return Tokenizer(mode=fields.pop("tokenizer", Tokenizer.mode), **pop_fields(fields, Tokenizer, "mode"))


def pop_fields(fields: dict[str, Any], of: type, *but: str) -> dict[str, Any]:
    """Remove the fields of a dataclass from ``fields`` and return them; those named in ``but`` stay."""
    names = {field.name for field in dataclasses.fields(of)}.difference(but)
    return {name: fields.pop(name) for name in names.intersection(fields)}
