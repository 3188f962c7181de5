"""The library in three functions: train a model, load a model, train a classifier. What they can do are their methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fflm.backend.devices import Device, choose_device
from fflm.classify.model import TextClassifier
from fflm.lm.model import LanguageModel, Model
from fflm.lm.model import load as load_model
from fflm.lm.train import begin, default_path


def load(path: str | Path, device: Device = "cpu") -> Model:
    """Load the model in a folder, to predict on a device: ``cpu``, ``cuda``, or ``auto`` for a GPU if one works.

    Raises
    ------
    FflmError
        If it is no model, incomplete or damaged, or the device cannot be used.
    """
    return load_model(path, choose_device(device))


def train_classifier(inputs: str | Path | Sequence[str | Path], path: str | Path | None = None, **options: Any) -> TextClassifier:
    """Train a text classifier on labelled text and return the best one.

    Parameters
    ----------
    inputs
        A file, compressed or not, a folder, or several of them.
    path
        The folder of the classifier; by default ``INPUT.classifier`` in the current one.
    options
        As `fflm.classify.train.begin` takes them, which are those of ``fflm classify train``.

    Raises
    ------
    FflmError
        If anything is wrong with text, options or folder, or training does not converge.
    """
    from fflm.classify import train

    sources = [inputs] if isinstance(inputs, str | Path) else inputs
    run = train.begin(sources, Path(path) if path else train.default_path(sources), **options)
    for _ in run.events():
        pass
    return TextClassifier.load(run.path, run.device)


def train(inputs: str | Path | Sequence[str | Path], path: str | Path | None = None, **options: Any) -> LanguageModel:
    """Train a model on text and return the best one.

    Parameters
    ----------
    inputs
        A file, compressed or not, a folder, a folder made by ``fflm tokenize``, or several of them.
    path
        The folder of the model; by default ``INPUT.model`` in the current one.
    options
        As `fflm.lm.train.begin` takes them, which are those of ``fflm train``: ``window=4, hidden=(100,), epochs=10, ...``.

    Raises
    ------
    FflmError
        If anything is wrong with text, options or folder, or training does not converge.
    """
    sources = [inputs] if isinstance(inputs, str | Path) else inputs
    run = begin(sources, Path(path) if path else default_path(sources), **options)
    for _ in run.events():
        pass
    return LanguageModel.load(run.path, run.device)
