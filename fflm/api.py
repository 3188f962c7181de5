"""The library in a few functions: train and load models. What they can do are their methods."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fflm.arguments import (
    Device,
    PathLike,
    Paths,
    Processes,
    Size,
    Texts,
    checked,
    parameters,
    refuse_unknown,
    to_path,
    with_options,
)
from fflm.backend.devices import choose_device
from fflm.errors import FflmError
from fflm.filtering.job import Progress, Report, resume_job, start_job
from fflm.filtering.settings import FilterSettings, Selection
from fflm.filtering.sources import is_url
from fflm.models.classifier import train as classifier_train
from fflm.models.classifier.model import TextClassifier
from fflm.models.ensemble import Ensemble, start_ensemble
from fflm.models.folder import KINDS, read_config
from fflm.models.language_model import LanguageModel
from fflm.models.load import import_class
from fflm.models.load import load as load_model
from fflm.models.mixture.model import Mixture
from fflm.models.neural import train as neural_train
from fflm.models.neural.model import NeuralModel
from fflm.models.ngram import train as ngram_train
from fflm.models.ngram.model import NgramModel
from fflm.parallel.world import world
from fflm.progress import progress_display
from fflm.search.search import Search
from fflm.search.study import SEARCH
from fflm.signals import ctrl_c
from fflm.training.events import Event
from fflm.training.session import Callback, Session
from fflm.training.settings import Members, Preset


@checked
def load(path: PathLike, device: Device = "cpu", *, verify: bool = False) -> LanguageModel | TextClassifier:
    """Load the model in a folder, to predict on a device: ``cpu``, ``cuda``, or ``auto`` for a GPU if one works.

    Weights and vocabulary are mapped into memory, so that loading takes the same time whatever the model's size. Of the files of
    weights, of n-grams and of words, only headers, sizes and shapes are checked, unless ``verify`` is true: then all are read to
    their ends and compared with their checksums.

    Raises
    ------
    FflmError
        If it is not a model, incomplete or damaged, or the device cannot be used.
    """
    return load_model(path, choose_device(device), verify=verify)


@with_options({**neural_train.OPTIONS, "preset": neural_train.OPTIONS["preset"].replace(annotation=Preset)})
@checked
def train(
    inputs: Texts,
    path: PathLike | None = None,
    *,
    members: Members | None = None,
    preset: Preset = "default",
    verbose: bool = False,
    callback: Callback | None = None,
    **options: Any,
) -> NeuralModel | Mixture:
    """Train a neural language model on text and return the best one, or an ensemble: a mixture of several.

    Parameters
    ----------
    inputs
        Files and folders of text, and texts in memory (`fflm.Text`), one or several; or a folder made by
        `fflm.text.tokenize.tokenize`, or that of another model.
    path
        The folder of the model; by default ``INPUT.model`` in the current one. A text in memory needs it.
    members
        Number of networks to train, with the seeds ``seed``, ``seed + 1``, and so on; by default one, or five with the preset
        ``best``. If there are several, the model is their mixture in equal shares. Other processes may train some of them at the
        same time, with `resume`.
    verbose
        Whether to print a line for each evaluation, and one per minute between evaluations; in a notebook, they are in one output
        that is updated, with a progress bar.
    callback
        A function that is called with the session (`fflm.training.session.Session`) and each event of it, such as a
        `fflm.training.events.Step` or an `fflm.training.events.Evaluation`. It may call ``session.stop()``, which ends training
        as early stopping does. What it raises ends training after a checkpoint, and `resume` continues.

    Raises
    ------
    FflmError
        If anything is wrong with text, options or folder, or training does not converge.
    KeyboardInterrupt
        After Ctrl-C, which saves; `resume` continues. A model that is to be replaced is kept until the new one is evaluated.

    Notes
    -----
    ``window``, ``averages``, ``direct``, ``batch_size``, ``epochs``, ``loss``, ``dropout``, ``embedding_dropout`` and
    ``weight_decay`` are chosen by the size of the text if they are None, but there are no direct connections to output weights
    that are not tied. ``word_weights`` is then whether there are averages, ``adversarial`` is 0.01, but 0 for the loss ``nce``,
    and vocabularies of more than 2,000 words are trained with ``affixes`` if the output weights are tied. One value stands for a
    list of one, as in ``hidden=100``.
    """
    members = members or neural_train.PRESETS[preset].get("members", 1)
    options["preset"] = "default" if preset == "best" else preset  # a member of "best" has the default settings
    if members > 1:
        ensemble = start_ensemble(inputs, path, members=members, **options)
        _finish(ensemble, verbose, callback)
        return Mixture.load(ensemble.path, ensemble.compute.device)
    session = neural_train.start_session(inputs, path, **options)
    _finish(session, verbose, callback)
    return NeuralModel.load(session.path, session.compute.device)


@checked
def resume(
    path: PathLike,
    *,
    epochs: Size | None = None,
    device: Device | None = None,
    verbose: bool = False,
    callback: Callback | None = None,
) -> NeuralModel | Mixture | TextClassifier:
    """Resume the training of a neural language model, an ensemble or a text classifier, or a search; return the best model.

    The result is bit for bit that of training that was never interrupted, on the same machine with the same libraries.

    Parameters
    ----------
    path
        The folder of the model; or of an ensemble or a search (`fflm tune`), whose remaining members or trials are trained.
    epochs
        A new number of epochs, to train for longer; not for ensembles and searches.
    device
        The device to continue on, if not the one that trained so far; not for ensembles and searches. Results differ by rounding.
    verbose, callback
        As `train` takes them.

    Raises
    ------
    FflmError
        If there is no such model, its files are damaged, its training runs in another process, or the data has changed; if
        training does not converge, or is complete already; if a search has no complete trial; or if ``epochs`` or ``device`` is
        given for an ensemble or a search.
    KeyboardInterrupt
        After Ctrl-C, as `train`.
    """
    path = to_path("path", path)
    if (path / SEARCH).is_file():
        if epochs is not None or device is not None:
            raise FflmError(f"{path} is a search, whose trials keep their settings: leave out `epochs` and `device`")
        return _resume_search(path, verbose, callback)
    kind = KINDS.get(read_config(path).get("kind", "network"))
    if kind is None or kind.session is None:
        raise FflmError(f"{path} is not a network or a text classifier: only their training can be resumed")
    session: Session | Ensemble = import_class(kind.session).resume(path, epochs=epochs, device=device)
    _finish(session, verbose, callback)
    model = load_model(session.path, session.compute.device)
    assert isinstance(model, NeuralModel | Mixture | TextClassifier)
    return model


def _resume_search(path: Path, verbose: bool, callback: Callback | None) -> NeuralModel | TextClassifier:
    """Run the remaining trials of a search, and return the best model; raise a KeyboardInterrupt as `_finish`."""
    search = Search.resume(path)
    callbacks = _callbacks(verbose, callback)
    with ctrl_c() as interrupted:
        for event in search.events():
            stop = interrupted.received
            if stop:
                search.save()
            elif search.run and isinstance(event, Event):
                interrupted.deferred = True
                try:
                    for each in callbacks:
                        each(search.run, event)
                except BaseException:
                    search.save()
                    raise
            if stop:
                raise KeyboardInterrupt(f"stopped and saved: `fflm.resume('{path}')` resumes the search")
    if search.best is None:
        raise FflmError(f"{path} has no complete trial: start another search, over other settings")
    model = load_model(search.folder(search.best), search.compute.device)
    assert isinstance(model, NeuralModel | TextClassifier)
    return model


def _callbacks(verbose: bool, callback: Callback | None) -> list[Callback]:
    """Return the callbacks of a session; of several processes, only the first one prints the progress."""
    return [*([progress_display()] if verbose and world().first else []), *([callback] if callback else [])]


def _finish(session: Session | Ensemble, verbose: bool, callback: Callback | None) -> None:
    """Train to the end; raise a KeyboardInterrupt that says how to resume if Ctrl-C comes."""
    callbacks = _callbacks(verbose, callback)
    ended = False
    with ctrl_c() as interrupted, contextlib.suppress(KeyboardInterrupt):
        ended = session.finish(*callbacks)
    if not ended or interrupted.received:
        if not session.published:
            raise KeyboardInterrupt(f"stopped before there were new weights: {session.path} is unchanged")
        raise KeyboardInterrupt(f"stopped and saved: `fflm.resume('{session.path}')` resumes training")


@with_options(ngram_train.OPTIONS)
def train_ngram(inputs: Texts, path: PathLike | None = None, **options: Any) -> NgramModel:
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
@checked
def train_classifier(
    inputs: Texts, path: PathLike | None = None, *, verbose: bool = False, callback: Callback | None = None, **options: Any
) -> TextClassifier:
    """Train a text classifier on labeled text and return the best one.

    Parameters
    ----------
    inputs
        A file of labeled text, compressed or not, a folder, a text in memory (`fflm.Text.labeled`), or several of them.
    path
        The folder of the classifier; by default ``INPUT.classifier`` in the current one.
    verbose, callback
        As `train` takes them.

    Raises
    ------
    FflmError
        If anything is wrong with text, options or folder, or training does not converge.
    KeyboardInterrupt
        After Ctrl-C, as `train`.

    Notes
    -----
    ``batch_size`` and ``epochs`` are chosen by the number of texts if they are None.
    """
    session = classifier_train.start_session(inputs, path, **options)
    _finish(session, verbose, callback)
    return TextClassifier.load(session.path, session.compute.device)


SELECTION = parameters(Selection)
"""The options of `filter` that are conditions."""

FILTER = {**SELECTION, **parameters(FilterSettings, "selection")}
"""The options of `filter`."""


@with_options(FILTER)
@checked
def filter(
    inputs: Paths,
    output: PathLike,
    model: PathLike,
    *,
    processes: Processes = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Report:
    """Keep the documents of a collection that a model predicts well, and score each document.

    Each file has its filtered file of the same name, format and order in the output folder. Without a condition, all documents
    are kept, so that they are only scored.

    Parameters
    ----------
    inputs
        Files and folders, one or several, as paths or as URLs that fsspec opens: JSON lines, Parquet, or plain text with a
        document per line.
    output
        The folder, or URL, for the filtered files.
    model
        The folder of the model.
    processes
        Number of worker processes, by default one for each processor that this process may use. They are started only if a pass
        takes more than a few seconds. They are spawned, so a script that calls this function needs the usual
        ``if __name__ == "__main__"``.
    progress
        A function that is called after each batch of documents.

    Raises
    ------
    FflmError
        If an option is not valid, a file cannot be read or written, or the output exists. `resume_filter` continues a filter that
        was interrupted or killed, without losing or repeating a document.
    """
    refuse_unknown(options.keys() - FILTER.keys(), FILTER)
    selection = Selection(**{name: value for name, value in options.items() if name in SELECTION})
    settings = FilterSettings(selection, **{name: value for name, value in options.items() if name not in SELECTION})
    several = inputs if isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes | Mapping) else [inputs]
    places = [_location("inputs", each) for each in several]
    return start_job(places, _location("output", output), model, settings).run(processes, progress)


def _location(name: str, value: Any) -> str:
    """Return the path or URL that an argument names, as text; raise an FflmError if it is neither."""
    return value if isinstance(value, str) and is_url(value) else str(to_path(name, value))


@checked
def resume_filter(output: PathLike, *, processes: Processes = None, progress: Callable[[Progress], None] | None = None) -> Report:
    """Continue a filter that was interrupted or killed; the files are those of a filter that was not.

    Parameters
    ----------
    output
        The output of `filter`.
    processes, progress
        As `filter` takes them.

    Raises
    ------
    FflmError
        If there is no such output, its files are damaged, or the model has changed.
    """
    return resume_job(_location("output", output)).run(processes, progress)
