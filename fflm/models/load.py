"""Loading a model of any kind.

The class of a model is imported when it is needed, so that loading one kind does not import the others, and a mixture can load
its components.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fflm.arguments import Device, PathLike, checked, to_path
from fflm.errors import FflmError
from fflm.files import reading_folder
from fflm.models.folder import KINDS, QUANTIZED, read_config
from fflm.models.language_model import LanguageModel

if TYPE_CHECKING:
    from fflm.models.classifier.model import TextClassifier


@checked
def load(path: PathLike, device: Device = "cpu", *, verify: bool = False) -> "LanguageModel | TextClassifier":
    """Load the model in a folder, whatever its kind.

    Parameters
    ----------
    path
        The model's folder.
    device
        The device that computes the predictions of networks.
    verify
        Whether to read all files to their ends and verify their checksums. Otherwise, headers, sizes and shapes are checked.

    Raises
    ------
    FflmError
        If the folder is not a model, or is of a later version, incomplete or damaged.
    """
    path = to_path("path", path)
    with reading_folder(path):
        model: LanguageModel | TextClassifier = _class_of(path).load(path, device, verify=verify)
    return model


@checked
def load_language_model(path: PathLike, device: Device = "cpu", *, verify: bool = False) -> LanguageModel:
    """Load the language model in a folder, as `load` does.

    Raises
    ------
    FflmError
        As `load`, or if the model is a text classifier.
    """
    path = to_path("path", path)
    with reading_folder(path):
        class_ = _class_of(path)
        if not issubclass(class_, LanguageModel):
            raise FflmError(f"{path} is a text classifier, not a language model: use it with `fflm.TextClassifier`")
        model: LanguageModel = class_.load(path, device, verify=verify)
    return model


def _class_of(path: Path) -> Any:
    """Return the class of the model in a folder."""
    about = read_config(path)
    kind = about.get("kind", "network")
    if kind not in KINDS:
        raise FflmError(f"{path} is a model of the kind {kind!r}, which this fflm does not know: update fflm")
    return import_class(QUANTIZED if kind == "network" and "bits" in about else KINDS[kind].model)


def import_class(name: str) -> Any:
    """Import the class with a name such as ``fflm.models.ngram.model.NgramModel``."""
    module, _, own = name.rpartition(".")
    return getattr(importlib.import_module(module), own)
