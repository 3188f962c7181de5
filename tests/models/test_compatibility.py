"""Models, classifiers and searches written by version 0.1.0 load, give the same figures, and can be resumed.

``data/version-1`` was made by fflm 0.1.0, before weights stored a checksum of their configuration; ``data/README.md`` has the
commands. The expected figures are those of that version.
"""

import re
import shutil
from pathlib import Path

import pytest
from command import fflm as run

import fflm
from fflm.models.classifier.train import ClassifierSession
from fflm.models.neural.train import TrainingSession
from fflm.search.search import Search
from fflm.text.corpus import Corpus

DATA = Path(__file__).parents[1] / "data" / "version-1"
SENTENCE = "The cat and the dog ran to the river.\n"
CLOSE = {"rel": 1e-4}  # another BLAS may add in another order


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the data, whose absolute paths lead to the copy."""
    copy = tmp_path / "models"
    shutil.copytree(DATA, copy)
    for path in copy.rglob("*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"/models/', f'"{copy.as_posix()}/'), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("name", "perplexity"),
    [("network.model", 17.50529277239266), ("ngram.ngram", 12.383437405370367), ("mixture.mix", 13.762730970721094)],
)
def test_version_1_language_models_give_same_perplexity(folder, name, perplexity):
    assert fflm.load(folder / name).score(SENTENCE).perplexity == pytest.approx(perplexity, **CLOSE)


def test_command_shows_no_figures_that_version_1_did_not_count(folder):
    shown = run("score", "-m", "ngram.ngram", "--part", "valid", folder=folder).stdout
    assert re.search(r"\ncharacters +[\d,]+\n", shown)
    assert not re.search("nan|byte|white space", shown)


@pytest.mark.parametrize(
    ("name", "probabilities"),
    [
        ("text.classifier", [[0.37118327617645264, 0.6288166642189026], [0.3741597533226013, 0.6258402466773987]]),
        ("features.classifier", [[0.443092405796051, 0.5569076538085938], [0.6382633447647095, 0.3617366850376129]]),
    ],
)
def test_version_1_classifiers_give_same_probabilities(folder, name, probabilities):
    found = fflm.TextClassifier.load(folder / name).predict_proba(["The cat sat.", '"Come," said the fox.'])
    assert found.tolist() == [pytest.approx(row, **CLOSE) for row in probabilities]


def test_version_1_network_resumes_training(folder):
    run = TrainingSession.resume(folder / "network.model", epochs=28)
    list(run.events())
    assert run.trainer.state.epoch == 28
    assert run.figures["valid"]["perplexity"] == pytest.approx(15.350983000534727, **CLOSE)
    assert run.figures["test"]["perplexity"] == pytest.approx(15.99153678835872, **CLOSE)


def test_version_1_classifier_resumes_training(folder):
    run = ClassifierSession.resume(folder / "features.classifier", epochs=3)
    list(run.events())
    assert run.figures["valid"]["loss"] == pytest.approx(0.5595888584431776, **CLOSE)


def test_version_1_search_resumes(folder):
    search = Search.resume(folder / "search.tune", trials=2)
    list(search.events())
    losses = [trial.loss for trial in search.trials]
    assert losses == [pytest.approx(3.20487109820048, **CLOSE), pytest.approx(3.2027417719364166, **CLOSE)]


def test_version_1_corpus_trains_ngram_model(folder):
    corpus = Corpus.open(folder / "network.model" / "corpus")
    corpus.verify()
    model = fflm.train_ngram(corpus.path, folder / "new.ngram", order=2)
    assert model.score(SENTENCE).perplexity == pytest.approx(12.383437405370367, **CLOSE)
