"""Teachers: their predictions, training that learns from them, resuming, and what is refused."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from command import STORIES, fflm, snapshot

import fflm as library
from fflm.arrays import CHECKPOINT, WEIGHTS
from fflm.backend.cpu.backend import CpuBackend
from fflm.errors import FflmError
from fflm.models.corpora import trained_corpus
from fflm.models.neural.teacher import load_teacher
from fflm.text.windows import Windows
from fflm.training.events import Step
from fflm.training.teacher import Teacher

TINY = {"embedding": 6, "hidden": (8,), "batch_size": 64, "window": 3, "epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Train teachers on a text: two networks with other windows, one of them with averages, and their mixture."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    library.train(folder / "text.txt", folder / "one.model", **TINY)
    library.train(folder / "one.model", folder / "two.model", **{**TINY, "averages": (4,), "tied": False, "epochs": 6})
    library.mix([folder / "one.model", folder / "two.model"]).save(folder / "both.mix")
    library.mix([folder / "both.mix"], cache=20).save(folder / "cache.mix")
    library.train_ngram(folder / "one.model", folder / "text.ngram", order=2)
    return folder


@pytest.mark.parametrize("sample", [False, True])
def test_predictions_of_teacher_are_those_of_its_networks(folder, sample):
    corpus = trained_corpus(folder / "one.model")
    text, models = corpus.parts["train"].ids, [library.load(folder / name) for name in ("one.model", "two.model")]
    weights = library.load(folder / "both.mix").weights
    networks = load_teacher(folder / "both.mix", 0.5, corpus, folder / "new.model").networks
    examples = [Windows.of(text, corpus.vocabulary, corpus.settings, each.config.context) for each in networks]
    positions = np.array([5, 0, 77, 3])
    words = np.array([0, 3, 4, 50, len(corpus.vocabulary) - 1], np.int32) if sample else None
    offsets = np.array([0.0, -1, -2, -0.5, -3], np.float32) if sample else None
    predict = Teacher(networks, examples, CpuBackend()).predictions(positions, words, offsets)
    for (share, logs), weight, model in zip(predict(slice(1, 4)), weights, models, strict=True):
        assert share == pytest.approx(0.5 * weight)
        contexts, _ = model.windows(text).batch(positions[1:])
        expected = model.log_probabilities(contexts).astype(float)
        if sample:
            expected = expected[:, words] + offsets
            expected -= np.logaddexp.reduce(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(logs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["exact", "sampled"])
@pytest.mark.parametrize("name", ["one.model", "two.model"])
def test_student_that_equals_its_teacher_has_nothing_to_learn_from_it(folder, tmp_path, loss, name):
    settings = {"optimizer": "sgd", "rate": 0.5, "weight_decay": 0.0, "loss": loss, "epochs": 1, "batch_size": 64}
    if loss == "sampled":
        settings["samples"] = 20
    start = {"initial": folder / name, "dropout": 0.0, "embedding_dropout": 0.0, "adversarial": 0.0}
    before = library.load(folder / name)
    for weight in (1.0, 0.5):
        taught = {"teacher": folder / name, "teacher_weight": weight}
        after = library.train(folder / "one.model", tmp_path / f"{weight}.model", **settings, **start, **taught)
        changes = [abs(new - old).max() for new, old in zip(after.parameters, before.parameters, strict=True)]
        assert max(changes) < 1e-5 if weight == 1 else max(changes) > 1e-3


def test_student_of_mixture_resumes_to_the_same_model(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**TINY, "teacher": folder / "both.mix", "loss": "sampled", "samples": 20, "exact_end": 0.4}

    def interrupt(session, event):
        if isinstance(event, Step) and event.step in (4, 19):
            signal.raise_signal(signal.SIGINT)

    whole = library.train(folder / "one.model", "whole.model", **settings)
    assert whole.about["teacher"]["weight"] == 0.8
    with pytest.raises(KeyboardInterrupt):
        library.train(folder / "one.model", "student.model", callback=interrupt, **settings)
    with pytest.raises(KeyboardInterrupt):
        library.resume("student.model", callback=interrupt)
    library.resume("student.model")
    assert Path("student.model", WEIGHTS).read_bytes() == Path("whole.model", WEIGHTS).read_bytes()
    assert Path("student.model", CHECKPOINT).stat().st_size > 0
    alone = library.train(folder / "one.model", "alone.model", **{**settings, "teacher": None})
    assert "teacher" not in alone.about
    assert (alone.parameters.embeddings != whole.parameters.embeddings).any()
    assert "teacher: weight" in fflm("info", "whole.model", folder=tmp_path).stdout


def test_resume_refuses_teacher_that_has_changed_or_is_gone(folder, tmp_path):
    shutil.copytree(folder / "two.model", tmp_path / "teacher.model")
    taught = {**TINY, "epochs": 1, "teacher": tmp_path / "teacher.model"}
    library.train(folder / "one.model", tmp_path / "student.model", **taught)
    library.train(folder / "one.model", tmp_path / "teacher.model", overwrite=True, **{**TINY, "epochs": 1})
    with pytest.raises(FflmError, match=r"teacher\.model, the teacher of .*student\.model, has changed: restore it, or train"):
        library.resume(tmp_path / "student.model", epochs=3)
    shutil.rmtree(tmp_path / "teacher.model")
    with pytest.raises(FflmError, match=r"teacher\.model is not a model"):
        library.resume(tmp_path / "student.model", epochs=3)


ERRORS = [
    ("one.model --teacher missing.model", "missing.model is not a model"),
    ("text.txt --lowercase --teacher one.model", "one.model has another vocabulary than the text, or reads it in another way"),
    ("one.model --teacher text.ngram", "text.ngram cannot teach: a teacher is a network without --bands, or a mixture of such"),
    ("one.model --teacher cache.mix", "cache.mix cannot teach"),
    ("one.model --teacher one.model --loss nce", "a teacher needs one softmax without smoothing: leave out --smoothing, --bands"),
    ("one.model --teacher one.model --smoothing 0.1", "a teacher needs one softmax without smoothing"),
    ("one.model --teacher one.model --bands 20 --no-tied --loss exact", "a teacher needs one softmax without smoothing"),
    ("one.model --teacher one.model --parallel vocabulary", "with a teacher, processes divide the rows of batches"),
    ("one.model --teacher one.model --teacher-weight 0", "0.0 is not in the range 0<x<=1"),
    ("one.model --teacher one.model --members 2", "leave out --teacher, or train one network"),
]


@pytest.mark.parametrize(("line", "reason"), ERRORS, ids=[line for line, _ in ERRORS])
def test_teachers_that_cannot_teach_are_refused(folder, line, reason):
    before = snapshot(folder)
    result = fflm("train", *line.split(), "-o", "new.model", "-q", folder=folder)
    assert (result.returncode in (1, 2), result.stdout) == (True, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert re.search(reason, result.stderr), result.stderr
    assert snapshot(folder) == before


def test_student_and_mixture_cannot_replace_what_they_are_made_of(folder):
    before = snapshot(folder)
    for teacher in ("two.model", "both.mix"):
        arguments = ("--teacher", teacher, "-o", "two.model", "--overwrite", "--epochs", 1, "-q")
        result = fflm("train", "one.model", *arguments, folder=folder)
        assert result.stderr == (
            "error: two.model is needed to resume training, as the teacher or a part of it: choose another folder\n"
        )
    with pytest.raises(FflmError, match=r"two\.model is a part of the mixture"):
        library.load(folder / "cache.mix").save(folder / "two.model", overwrite=True)
    assert snapshot(folder) == before
