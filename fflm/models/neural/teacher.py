"""Loading of the teacher of a language model: a trained network, or a mixture of networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fflm.errors import FflmError
from fflm.models.corpora import relative_path, resolve_relative
from fflm.models.folder import fingerprint, has_fingerprint
from fflm.models.load import load_language_model
from fflm.models.neural.model import NeuralModel
from fflm.text.corpus import Corpus
from fflm.training.teacher import TeacherModel, TeacherNetwork


def load_teacher(path: Path, weight: float, corpus: Corpus, student: Path) -> TeacherModel:
    """Load the model in a folder as the teacher of a network.

    Parameters
    ----------
    path
        The folder of the model.
    weight
        The share of the target's probability that its distribution replaces.
    corpus
        The text on which the student is trained.
    student
        The folder of the student.

    Raises
    ------
    FflmError
        If it is not a model, consists of anything but networks with one softmax over the words of the corpus, or would be
        replaced by the student.
    """
    model = load_language_model(path)
    if student.resolve() in [folder.resolve() for folder in (path, *model.folders)]:
        raise FflmError(f"{student} is needed to resume training, as the teacher or a part of it: choose another folder")
    if not model.vocabulary.has_words_of(corpus.vocabulary) or model.text != corpus.settings:
        raise FflmError(f"{path} has another vocabulary than the text, or reads it in another way: train on the text of {path}")
    networks = []
    for share, network in model.shares():
        if not isinstance(network, NeuralModel) or network.config.bands:
            raise FflmError(f"{path} cannot teach: a teacher is a network without `bands`, or a mixture of such networks")
        networks.append(TeacherNetwork(weight * share, network.config, network.parameters))
    about = {"path": relative_path(path, student), "fingerprint": fingerprint(path), "weight": weight}
    return TeacherModel(about, tuple(networks))


def reload_teacher(about: Mapping[str, Any], corpus: Corpus, student: Path) -> TeacherModel:
    """Load a teacher again, of which ``about`` is what the config.json of the student says.

    Raises
    ------
    FflmError
        As `load_teacher`, or if the model has changed.
    """
    path = resolve_relative(about["path"], student)
    teacher = load_teacher(path, about["weight"], corpus, student)
    if not has_fingerprint(path, about["fingerprint"]):
        raise FflmError(f"{path}, the teacher of {student}, has changed: restore it, or train again with `overwrite=True`")
    return teacher
