"""Hyperparameter searches for text classifiers: trials, files, interruption, the command; and searches that Python resumes."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command import STORIES, snapshot

import fflm
from fflm.arrays import CHECKPOINT, EXAMPLES, WEIGHTS, load_arrays
from fflm.cli import main
from fflm.errors import FflmError
from fflm.models.classifier.train import ClassifierSession
from fflm.search.search import TABLE, Search, start_classifier_search, start_search
from fflm.search.space import CLASSIFIER_SPACE, Choices, Range, searchable
from fflm.search.study import Trial
from fflm.training.events import Step
from fflm.training.session import Session

pytest.importorskip("optuna")

SPACE = {"rate": Range(1e-3, 0.5), "hidden": Choices(((), (6,))), "embedding_dropout": Range(0.0, 0.5)}
TINY = {"embedding": 5, "epochs": 3, "batch_size": 16, "test": "10%"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with labeled text, in which one word of each text says its label."""
    folder = tmp_path_factory.mktemp("labeled")
    generator = np.random.default_rng(0)
    rows = [("ab"[place], " ".join(generator.choice(list("uvwxyz"), 4)) + " " + "pq"[place]) for place in [0, 1, 1] * 50]
    (folder / "texts.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in rows))
    return folder


@pytest.fixture
def data(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(folder / "texts.tsv", "texts.tsv"))


def finish(search: Search) -> list[Trial]:
    return [event for event in search.events() if isinstance(event, Trial)]


def search_result(search: Search) -> tuple:
    """Return the trials of a search without times, and the weights and figures of the best model."""
    trials = [(trial.values, trial.state, trial.loss, trial.epochs) for trial in search.trials]
    weights, figures = load_arrays(search.folder(search.best) / WEIGHTS)
    return trials, {name: array.tobytes() for name, array in weights.items()}, figures


@pytest.mark.parametrize("options", [{}, {"input": "features", "counts": 5}, {"balanced": True, "input": "max"}], ids=str)
def test_search_keeps_classifier_with_lowest_loss(data: Path, options: dict) -> None:
    search = start_classifier_search(data, None, SPACE, trials=6, **TINY, **options)
    trials = finish(search)
    assert (len(trials), search.path) == (6, Path("texts.tune"))
    complete = [trial for trial in trials if trial.state == "complete"]
    best = min(complete, key=lambda trial: trial.loss)
    assert search.best == best
    assert sorted(path.name for path in search.path.iterdir()) == sorted(
        [EXAMPLES, "search.json", "study.db", TABLE, f"trial-{best.number}", "vocabulary.tsv"]
    )
    model = fflm.load(search.folder(best))
    config, settings = search.configure(best.values)
    assert (model.config, model.about["training"]) == (config, settings.to_dict())
    if not options.get("balanced"):  # the figures of balanced predictions are not those of the training loss
        assert model.about["figures"]["valid"]["loss"] == pytest.approx(best.loss, rel=1e-5)
    assert search.figures(best) == model.about["figures"]["valid"]
    assert "test" not in model.about["figures"]
    assert (search.path / TABLE).read_text().startswith("trial\tstate\tloss\tepochs\tseconds\trate\thidden\tembedding_dropout\n")
    alone = fflm.train_classifier(data, "alone", **{**TINY, **best.values}, **options)  # the same texts are held out
    assert alone.about["figures"]["valid"] == model.about["figures"]["valid"]


def test_interrupted_search_has_same_result(data: Path) -> None:
    whole = start_classifier_search(data, "whole.tune", SPACE, trials=4, **TINY)
    finish(whole)
    search = start_classifier_search(data, "broken.tune", SPACE, trials=2, **TINY)
    for stop in (3, 11, 40):
        for number, event in enumerate(search.events()):
            if number >= stop and isinstance(event, Step):
                search.save()
                break
        search = Search.resume(search.path)
    finish(search)
    search = Search.resume(search.path, trials=4)
    finish(search)
    assert search_result(search) == search_result(whole)


def test_python_resumes_searches(data: Path) -> None:
    """`fflm.resume` runs the remaining trials of a search for either kind of model, and can be interrupted, too."""

    def interrupt(session: Session, event: object) -> None:
        if isinstance(event, Step) and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    def fail(session: Session, event: object) -> None:
        if isinstance(event, Step) and event.step == 7:
            raise ValueError("a fault of the program")

    whole = start_classifier_search(data, "whole.tune", SPACE, trials=2, **TINY)
    finish(whole)
    search = start_classifier_search(data, "broken.tune", SPACE, trials=2, **TINY)
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved: `fflm\.resume\('broken\.tune'\)` resumes the search"):
        fflm.resume("broken.tune", callback=interrupt)
    with pytest.raises(ValueError, match="a fault of the program"):
        fflm.resume("broken.tune", callback=fail)
    (trial,) = search.trials
    assert trial.state == "running"
    assert load_arrays(search.folder(trial) / CHECKPOINT)[1]["state"]["step"] == 7
    seen: list[Session] = []
    model = fflm.resume("broken.tune", callback=lambda session, event: seen.append(session))
    assert isinstance(model, fflm.TextClassifier)
    assert all(isinstance(session, ClassifierSession) for session in seen)
    assert search_result(Search.open(Path("broken.tune"))) == search_result(whole)
    assert isinstance(fflm.resume("whole.tune"), fflm.TextClassifier)  # there is nothing left to do
    with pytest.raises(FflmError, match=r"whole\.tune is a search, whose trials keep their settings: leave out `epochs`"):
        fflm.resume("whole.tune", epochs=3)

    Path("text.txt").write_text(STORIES, encoding="utf-8")
    start_search("text.txt", "text.tune", {"rate": Range(1e-3, 1e-2)}, trials=1, embedding=4, hidden=(4,), window=2, epochs=1)
    assert isinstance(fflm.resume("text.tune"), fflm.NeuralModel)


def test_commands_tune_and_resume(data: Path) -> None:
    invoke = CliRunner().invoke
    options = ["--epochs", "1", "--trials", "2", "--test", "10%", "--embedding", "4"]
    result = invoke(main, ["classify", "tune", "texts.tsv", *options])
    assert result.exit_code == 0, result.stderr
    head = r"^trial +loss +epochs +rate +embedding_dropout +weight_decay +hidden$"
    assert re.search(head, result.stdout, re.MULTILINE)
    assert set(Search.open(Path("texts.tune")).space) == set(CLASSIFIER_SPACE)
    assert re.search(r"^train: 120 texts, 600 words$", result.stderr, re.MULTILINE)
    assert re.search(r"^model texts.tune/trial-\d\nvalid accuracy .*, loss .* nats per text, over 15 texts$", result.stdout, re.M)
    assert result.stdout.splitlines()[-1].startswith(
        "on the test text, once you have chosen: fflm classify train --resume texts.tu"
    )
    again = invoke(main, ["classify", "tune", "--resume", "texts.tune", "--trials", "3"])
    assert (again.exit_code, len(Search.open(Path("texts.tune")).trials)) == (0, 3)
    about = json.loads(invoke(main, ["tune", "--resume", "texts.tune", "--json", "-q"]).stdout)
    assert about["trials"][0]["loss"] == min(trial["loss"] for trial in about["trials"])
    assert about["valid"]["zero_one_loss"] == pytest.approx(1 - about["valid"]["accuracy"])
    pytest.importorskip("matplotlib")
    assert invoke(main, ["plot", "texts.tune", "-o", "trials.svg"]).exit_code == 0
    assert "validation loss" in Path("trials.svg").read_text()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "give labeled text to train on, or --resume a search"),
        ("texts.tsv --search window=1|2", "cannot search over 'window'"),
        ("texts.tsv --search rte=0.1..0.2", r"cannot search over 'rte' \(did you mean 'rate'\?\): choose from embedding, hidden"),
        ("texts.tsv --search input=mean|window", "only the inputs mean and max can be compared: give these as choices"),
        ("texts.tsv --search input=features|tagging", "only the inputs mean and max can be compared"),
        ("texts.tsv --search vectors=a|b", "cannot search over 'vectors'"),
        ("texts.tsv --search rate=0.1..0.2 --rate 0.1", "--rate: give one value, or --search for it"),
        ("texts.tsv --vectors x", "No such option '--vectors'"),
        ("texts.tsv --valid 0", "without validation texts nothing tells a good setting from a bad one: give some with --valid"),
        ("texts.tsv --counts 5", "give --input features"),
        ("texts.tsv --sampler grid", "a grid needs choices"),
        ("nowhere.tsv", "cannot read nowhere.tsv"),
        ("--resume texts.tsv", "texts.tsv is not a search"),
        ("--resume x.tune --rate 0.1", "leave out --rate"),
    ],
)
def test_command_refuses_invalid_arguments(data: Path, line: str, reason: str) -> None:
    before = snapshot(Path())
    result = CliRunner().invoke(main, ["classify", "tune", *line.split()])
    assert result.exit_code in (1, 2)
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert re.search(reason, result.stderr), result.stderr
    assert snapshot(Path()) == before


@pytest.mark.parametrize("name", ["search.json", "vocabulary.tsv", EXAMPLES])
def test_damaged_files_are_refused(data: Path, name: str) -> None:
    start_classifier_search(data, None, SPACE, trials=1, **TINY)
    path = Path("texts.tune") / name
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content.replace(b"0", b"1")):
        path.write_bytes(damaged)
        with pytest.raises(FflmError, match=r"texts\.tune"):
            finish(Search.resume(Path("texts.tune")))


def test_settings_of_classifiers_are_searchable() -> None:
    names = searchable("classifier")
    assert {"rate", "hidden", "embedding", "smoothing", "residual"} <= set(names)
    assert not {"window", "tied", "loss", "samples", "frozen", "vocabulary", "averages"} & set(names)
