"""Creation of a new model's folder, with the corpus that the model is trained on."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fflm.arguments import PathLike, Processes, Progress, Texts, check, parameters, to_path, to_texts
from fflm.arrays import CHECKPOINT, CONFIG, EXAMPLES, INDEX, LOG, WEIGHTS
from fflm.errors import FflmError
from fflm.files import NewFolder, check_own, os_errors_as_fflm_error, restore
from fflm.given import Text
from fflm.models.corpora import corpus_folder
from fflm.models.folder import CORPUS, VOCABULARY, WORDS, read_config
from fflm.parallel.world import world
from fflm.text.corpus import FILES as CORPUS_FILES
from fflm.text.corpus import Corpus
from fflm.text.settings import TextSettings
from fflm.text.subwords import FILE as SUBWORDS
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule

_NOT_OPTIONS = "inputs", "settings", "rule", "base", "extended"

TEXT_OPTIONS = {
    "tokenizer": parameters(Tokenizer)["mode"].replace(name="tokenizer"),
    **parameters(Tokenizer, "mode", "subwords"),
    **parameters(TextSettings, "tokenizer"),
    **parameters(VocabularyRule),
    **parameters(TextSource, *_NOT_OPTIONS),
}
"""The options that `text_source` takes."""

FILES = (
    CONFIG,
    VOCABULARY,
    WORDS,
    SUBWORDS,
    WEIGHTS,
    CHECKPOINT,
    LOG,
    EXAMPLES,
    INDEX,
    CORPUS,
    *(f"{CORPUS}/{name}" for name in CORPUS_FILES),
)
"""Files that the folder of a model, of any kind, may contain."""


@contextlib.contextmanager
def new_model(
    source: TextSource, path: Path, check: Callable[[], None], *, processes: Processes, progress: Progress
) -> Iterator[tuple[NewFolder | Path, Corpus]]:
    """Yield a new folder for a model, which the block publishes or keeps, and the corpus to train on.

    Of several processes, only the first makes the folder and tokenizes the text. The others open the same corpus, and get the
    path of the model's folder instead of a new folder.

    If the block raises an exception, the folder is discarded. The path of a corpus in the folder is the one that it will have
    when the folder is published.

    Parameters
    ----------
    source
        The text, which is tokenized into the folder. If its input is a folder that `corpus_folder` recognizes, the text has been
        tokenized already, and the other fields of the source have no effect.
    path
        The model's folder.
    check
        A function that raises an FflmError if ``path`` must not be replaced, as for `fflm.files.NewFolder`.
    processes, progress
        As for `fflm.text.tokenize.tokenize`.

    Raises
    ------
    FflmError
        If an argument or the text is not valid, or the folder cannot be written. What was at ``path`` is unchanged.
    """
    with new_folder(path, check) as new, os_errors_as_fflm_error(f"write {path}"):
        opened: list[Corpus] = []

        def make() -> list[str]:
            """Make and open the corpus; return where it is now, and where it will be when the folder is published."""
            place = corpus_folder(source.inputs)
            if place is None:
                assert isinstance(new, NewFolder)
                place, final = new.folder / CORPUS, path / CORPUS
                opened.append(tokenize(source, place, processes=processes, progress=progress).moved(final))
                return [str(place), str(final)]
            if path.resolve() in place.resolve().parents:
                raise FflmError(f"{place} is in {path}, which would be replaced: choose another folder")
            opened.append(Corpus.open(place))
            opened[0].verify()
            return [str(place), str(place)]

        place, final = map(Path, world().on_first(make))
        yield new, opened[0] if opened else Corpus.open(place).moved(final)


@contextlib.contextmanager
def new_folder(path: Path, check: Callable[[], None]) -> Iterator[NewFolder | Path]:
    """Yield a `fflm.files.NewFolder`, which is discarded if the block raises an exception.

    Of several processes, only the first makes it. The others get its path.
    """
    made: list[NewFolder] = []
    with contextlib.ExitStack() as stack:
        world().on_first(lambda: made.append(stack.enter_context(NewFolder(path, check))))
        yield made[0] if made else path


def model_path(path: PathLike | None, inputs: tuple[Path | Text, ...], suffix: str = "model") -> Path:
    """Return the folder of a new model: the path that is given, or by default ``stories.model`` for ``corpora/stories.txt``."""
    if path is not None:
        return to_path("path", path)
    first = inputs[0]
    if isinstance(first, Text):
        raise FflmError("a text in memory has no name: give `path`, the folder of the model")
    with os_errors_as_fflm_error(f"read {first}"):
        name = "stdin" if str(first) == "-" else first.resolve().name
    return Path(f"{name.split('.')[0] or name}.{suffix}")


def check_free(path: Path, overwrite: bool) -> None:
    """Raise an FflmError if there is something at a path that a new model must not replace.

    A model may be replaced if ``overwrite`` is true and its folder contains nothing but the files of a model.
    """
    restore(path)
    if path.exists() and not (path / CONFIG).is_file():
        raise FflmError(f"{path} exists and is not a model: choose another folder")
    if path.exists() and not overwrite:
        read_config(path)  # what is not a model cannot be replaced by one
        resume = f"`fflm.resume('{path}')` resumes its training, " if (path / CHECKPOINT).is_file() else ""
        raise FflmError(f"{path} exists: {resume}`overwrite=True` replaces it, or choose another folder")
    check_own(path, FILES)


def text_source(inputs: Texts, fields: dict[str, Any]) -> TextSource:
    """Return the source for some inputs; the settings listed in `TEXT_OPTIONS` are removed from ``fields``."""
    texts = to_texts("inputs", inputs)
    settings = TextSettings(pop_tokenizer(fields), **pop_fields(fields, TextSettings, "tokenizer"))
    rule = VocabularyRule(**pop_fields(fields, VocabularyRule))
    return TextSource(texts, settings, rule, **pop_fields(fields, TextSource, *_NOT_OPTIONS))


def pop_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Remove the settings of a tokenizer, whose ``mode`` is named ``tokenizer``, from ``fields``; return the tokenizer."""
    check("tokenizer", TEXT_OPTIONS["tokenizer"].annotation, fields.get("tokenizer", Tokenizer.mode))
    return Tokenizer(mode=fields.pop("tokenizer", Tokenizer.mode), **pop_fields(fields, Tokenizer, "mode", "subwords"))


def pop_fields(fields: dict[str, Any], of: type, *but: str) -> dict[str, Any]:
    """Remove the fields of a dataclass, except for those named in ``but``, from ``fields``, and return them."""
    names = {field.name for field in dataclasses.fields(of)}.difference(but)
    return {name: fields.pop(name) for name in names.intersection(fields)}
