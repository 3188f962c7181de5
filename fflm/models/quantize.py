"""Copies of models with 8 bits for each number of which a model has many."""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from fflm.arguments import Overwrite, PathLike, checked, to_path
from fflm.arrays import CONFIG, INDEX, LOG, WEIGHTS
from fflm.errors import FflmError
from fflm.files import replacing_folder
from fflm.models.corpora import corpus_path, corpus_paths, trained_corpus
from fflm.models.creation import check_free
from fflm.models.folder import VOCABULARY, WORDS
from fflm.models.load import load_language_model
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.quantized import QuantizedNetwork
from fflm.models.ngram.model import NgramModel
from fflm.models.scoring import score_part
from fflm.parallel.launch import refuse_several_processes
from fflm.text.corpus import Part
from fflm.text.subwords import FILE as SUBWORDS


@checked
def quantize(model: PathLike, path: PathLike, *, tables: bool = False, overwrite: Overwrite = False) -> NeuralModel | NgramModel:
    """Write a copy of a model with 8 bits a number, and evaluate it on the held-out text of the model.

    Of an n-gram model, each log-probability and each back-off weight of n-grams of two words or more gets 8 bits, and the copy
    has only the trie in which n-grams are looked up. Of a network, each weight gets 8 bits, and each row of a matrix a scale.

    Parameters
    ----------
    model
        The folder of a network or an n-gram model.
    path
        The folder of the copy.
    tables
        Whether to also store the tables of fast scoring of a network that normalizes itself, with 8 bits a number, so that they
        need not be made whenever it is loaded. They take more room than the weights, even those of the model itself.
    overwrite
        Whether to replace a model that is there.

    Returns
    -------
    NeuralModel or NgramModel
        The copy. Its ``about["figures"]`` are those of the copy on the validation and test text, as far as the model's corpus is
        where it was; those of the model itself are the original's.

    Raises
    ------
    FflmError
        If the model is neither, is quantized already, so small that the copy would not be smaller, or damaged; if ``tables`` are
        asked for and it has none; or if the folder may not be replaced or cannot be written.
    """
    refuse_several_processes("quantizing a model")
    source, place = to_path("model", model), to_path("path", path)
    check_free(place, overwrite)
    if place.resolve() == source.resolve():
        raise FflmError(f"{place} is the model itself: choose another folder")
    original = load_language_model(source, verify=True)
    if not isinstance(original, NeuralModel | NgramModel):
        raise FflmError(f"{source} has no numbers to quantize: quantize the models that it mixes")
    if tables and isinstance(original, NgramModel):
        raise FflmError(f"{source} has no tables of fast scoring, because it is an n-gram model: leave out `tables=True`")
    copy = original.quantize() if isinstance(original, NgramModel) else QuantizedNetwork.of(original, tables=tables)
    parts = _parts(source)
    figures = {name: value for name, value in original.about["figures"].items() if name not in ("valid", "test")}
    copy.about["figures"] = figures | {name: score_part(copy, part).to_dict() for name, part in parts.items() if name != "train"}
    if "corpus" in copy.about:
        copy.about["corpus"] = {**copy.about["corpus"], **corpus_paths(corpus_path(source), place)}
    with replacing_folder(place, lambda: check_free(place, overwrite), "quantizing a model in") as folder:
        copy.save(folder)
        if not tables and model_size(folder) >= model_size(source):
            sizes = f"{model_size(folder):,} bytes instead of {model_size(source):,}"
            raise FflmError(f"{source} is so small that the copy would not be smaller ({sizes}): use the model itself")
        if (source / LOG).is_file():
            shutil.copyfile(source / LOG, folder / LOG)
    return type(copy).load(place)


def model_size(path: Path) -> int:
    """Return the size of the files with which the model in a folder predicts, bytes."""
    files = [path / name for name in (CONFIG, VOCABULARY, WORDS, SUBWORDS, WEIGHTS, INDEX)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _parts(path: Path) -> Mapping[str, Part]:
    """Return the parts of the corpus of a model, none if it is not where it was."""
    with contextlib.suppress(FflmError):
        return trained_corpus(path).parts
    return {}
