"""The library in a few functions: train and load models. What they can do are their methods."""

from typing import Any

from fflm.arguments import Device, PathLike, Paths, checked, with_options
from fflm.backend.devices import choose_device
from fflm.models.classifier import train as classifier_train
from fflm.models.classifier.model import TextClassifier
from fflm.models.language_model import LanguageModel
from fflm.models.load import load as load_model
from fflm.models.neural import train as neural_train
from fflm.models.neural.model import NeuralModel
from fflm.models.ngram import train as ngram_train
from fflm.models.ngram.model import NgramModel


@checked
def load(path: PathLike, device: Device = "cpu") -> LanguageModel | TextClassifier:
    """Load the model in a folder, to predict on a device: ``cpu``, ``cuda``, or ``auto`` for a GPU if one works.

    Raises
    ------
    FflmError
        If it is not a model, incomplete or damaged, or the device cannot be used.
    """
    return load_model(path, choose_device(device))


@with_options(neural_train.OPTIONS)
def train(inputs: Paths, path: PathLike | None = None, **options: Any) -> NeuralModel:
    """Train a neural language model on text and return the best one.

    Parameters
    ----------
    inputs
        Files and folders of text, one or several; or a folder made by `fflm.text.tokenize.tokenize`, or that of another model.
    path
        The folder of the model; by default ``INPUT.model`` in the current one.

    Raises
    ------
    FflmError
        If anything is wrong with text, options or folder, or training does not converge.

    Notes
    -----
    ``averages``, ``batch_size``, ``epochs`` and ``loss`` are chosen by the size of the text if they are None. One value stands
    for a list of one, as in ``hidden=100``.
    """
    run = neural_train.start_session(inputs, path, **options)
    run.finish()
    return NeuralModel.load(run.path, run.compute.device)


@with_options(ngram_train.OPTIONS)
def train_ngram(inputs: Paths, path: PathLike | None = None, **options: Any) -> NgramModel:
    """Train an n-gram model (interpolated modified Kneser-Ney) on text.

    Parameters
    ----------
    inputs
        As `train` takes them: the model of `train` lends its text and its vocabulary, so that the two can be compared.
    path
        The folder of the model; by default ``INPUT.ngram`` in the current one.

    Raises
    ------
    FflmError
        If anything is wrong with text, options or folder.
    """
    return ngram_train.train(inputs, path, **options)


@with_options(classifier_train.OPTIONS)
def train_classifier(inputs: Paths, path: PathLike | None = None, **options: Any) -> TextClassifier:
    """Train a text classifier on labeled text and return the best one.

    Parameters
    ----------
    inputs
        A file of labeled text, compressed or not, a folder, or several of them.
    path
        The folder of the classifier; by default ``INPUT.classifier`` in the current one.

    Raises
    ------
    FflmError
        If anything is wrong with text, options or folder, or training does not converge.

    Notes
    -----
    ``batch_size`` and ``epochs`` are chosen by the number of texts if they are None.
    """
    run = classifier_train.start_session(inputs, path, **options)
    run.finish()
    return TextClassifier.load(run.path, run.compute.device)
