"""Loading a model of any kind."""

from pathlib import Path
from typing import TYPE_CHECKING

from fflm.arguments import Device, PathLike, checked, to_path
from fflm.errors import FflmError
from fflm.files import reading_folder
from fflm.models.folder import read_config
from fflm.models.language_model import LanguageModel
from fflm.models.neural.model import NeuralModel

if TYPE_CHECKING:
    from fflm.models.classifier.model import TextClassifier


@checked
def load(path: PathLike, device: Device = "cpu") -> "LanguageModel | TextClassifier":
    """Load the model in a folder, whatever its kind.

    Parameters
    ----------
    path
        The model's folder.
    device
        What computes the predictions of the networks in it.

    Raises
    ------
    FflmError
        If the folder is not a model, or is of a later version, incomplete or damaged.
    """
    path = to_path("path", path)
    with reading_folder(path):
        if read_config(path).get("kind") == "classifier":
            from fflm.models.classifier.model import TextClassifier

            return TextClassifier.load(path, device)
        return load_language_model(path, device)


@checked
def load_language_model(path: PathLike, device: Device = "cpu") -> LanguageModel:
    """Load the language model in a folder, as `load` does.

    Raises
    ------
    FflmError
        As `load`, or if the model is a text classifier.
    """
    path = to_path("path", path)
    with reading_folder(path):
        return _load(path, device)


def _load(path: Path, device: Device) -> LanguageModel:
    """Load a language model; the kinds that are rarer are imported only when they are needed."""
    kind = read_config(path).get("kind", "network")
    if kind == "network":
        return NeuralModel.load(path, device)
    if kind == "ngram":
        from fflm.models.ngram.model import NgramModel

        return NgramModel.load(path)
    if kind == "mixture":
        from fflm.models.mixture.model import Mixture

        return Mixture.load(path, lambda component: load_language_model(component, device))
    if kind == "classifier":
        raise FflmError(f"{path} is a text classifier, not a language model: use it with `fflm classify`, or `fflm.load`")
    raise FflmError(f"{path} is a model of the kind {kind!r}, which this fflm does not know: update fflm")
