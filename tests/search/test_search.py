"""Hyperparameter searches: which trials are run, pruned and recorded, and that interruptions do not change the result."""

import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from command import FFLM, PERPLEXITY, SMALL, STORIES, fflm, snapshot
from processes import exit_status_of_fork, mpiexec, needs_mpi
from rich.console import Console

import fflm as library
from fflm.arrays import CHECKPOINT, WEIGHTS, load_arrays
from fflm.cli import main
from fflm.cli.tune import _watch
from fflm.errors import FflmError, SettingsError
from fflm.models.neural.train import PRESETS, TrainingSession
from fflm.search.search import TABLE, Search, Waiting, start_search
from fflm.search.space import DEFAULT_SPACE, Choices, Range, show
from fflm.search.study import STARTUP, Trial, ranking
from fflm.text.holdout import Share
from fflm.training.events import Evaluation, Step

pytest.importorskip("optuna")

TINY = {"embedding": 6, "hidden": (8,), "batch_size": 64, "window": 3, "epochs": 3, "test": Share(0.1)}
SPACE = {
    "rate": Range(1e-4, 3e-2),
    "window": Range(1, 5),
    "dropout": Range(0.0, 0.5),
    "hidden": Choices(((), (8,), (8, 6))),
    "tied": Choices((False, True)),
}
RATES = {"rate": Range(1e-4, 3e-2)}
GRID = {"rate": Choices((1e-5, 0.01, 0.02)), "hidden": Choices(((), (8,), (8, 6)))}


def finish(search):
    return [event for event in search.events() if isinstance(event, Trial)]


def search_result(search):
    """Return the trials of a search without times, and the weights and figures of the best model."""
    trials = [dataclasses.replace(trial, seconds=0) for trial in search.trials]
    weights, figures = load_arrays(search.folder(search.best) / WEIGHTS)
    return trials, {name: array.tobytes() for name, array in weights.items()}, figures


# Trials, and what is kept and recorded of them.


@pytest.mark.parametrize("sampler", ["bayesian", pytest.param("random", marks=pytest.mark.slow), "grid"])
def test_search_tries_values_of_space_and_keeps_best_model(text, sampler):
    space = GRID if sampler == "grid" else SPACE
    search = start_search([text], Path("text.tune"), space, sampler=sampler, trials=None if sampler == "grid" else 8, **TINY)
    ended = finish(search)
    trials = Search.open(Path("text.tune")).trials
    assert trials == ended
    assert [trial.number for trial in trials] == list(range(1, len(trials) + 1))
    assert len(trials) == (9 if sampler == "grid" else 8)
    for trial in trials:
        assert trial.values.keys() == space.keys()
        for name, value in trial.values.items():
            part = space[name]
            assert value in part.values if isinstance(part, Choices) else part.low <= value <= part.high
            assert not isinstance(value, float) or float(f"{value:.3g}") == value
    assert len({str(trial.values) for trial in trials}) == len(trials)
    complete = [trial for trial in trials if trial.state == "complete"]
    best = min(complete, key=lambda trial: trial.loss)
    assert search.best == best == ranking(trials)[0]
    assert sorted(path.name for path in search.path.iterdir()) == sorted(
        ["corpus", "search.json", "study.db", TABLE, f"trial-{best.number}"]
    )
    model = library.load(search.folder(best))
    assert model.about["figures"]["valid"]["loss"] == best.loss
    config, settings = search.configure(best.values)
    assert (model.config, model.about["training"]) == (config, settings.to_dict())
    head, *rows = [line.split("\t") for line in (search.path / TABLE).read_text().splitlines()]
    assert head == ["trial", "state", "perplexity", "loss", "epochs", "seconds", *space]
    assert [int(row[0]) for row in rows] == [trial.number for trial in ranking(trials)]
    assert rows[0][6:] == [show(value) for value in best.values.values()]
    assert float(rows[0][2]) == pytest.approx(best.perplexity)


def test_grid_search_tries_all_combinations(text):
    search = start_search([text], Path("text.tune"), GRID, sampler="grid", **{**TINY, "epochs": 1})
    trials = finish(search)
    assert {trial.state for trial in trials} == {"complete"}  # with a single epoch no trial can be pruned
    tried = {tuple(trial.values.values()) for trial in trials}
    assert tried == set(itertools.product(*(part.values for part in GRID.values())))


def test_search_ends_when_all_combinations_are_tried(text):
    search = start_search([text], Path("text.tune"), {"window": Range(1, 3)}, sampler="random", **{**TINY, "epochs": 1})
    assert sorted(trial.values["window"] for trial in finish(search)) == [1, 2, 3]


def test_preset_sets_defaults_of_all_trials(text):
    quick = PRESETS["quick"]
    search = start_search([text], Path("text.tune"), GRID, sampler="grid", preset="quick", hidden=(8,))
    assert (search.config.window, search.config.embedding, search.config.hidden) == (quick["window"], quick["embedding"], (8,))
    assert (search.settings.epochs, search.settings.rate) == (quick["epochs"], quick["rate"])
    with pytest.raises(FflmError, match="`preset` must be one of bengio2003, default, quick, not 'fast'"):
        start_search([text], Path("other.tune"), GRID, sampler="grid", preset="fast")
    options = ["--preset", "quick", "--hidden", 8, "--epochs", 1, "--trials", 1, "-q"]
    result = fflm("tune", text, "-o", "command.tune", *options, folder=Path())
    assert result.returncode == 0, result.stderr
    search = Search.open(Path("command.tune"))
    assert (search.config.window, search.config.embedding, search.config.hidden) == (quick["window"], quick["embedding"], (8,))
    assert (search.settings.epochs, search.settings.rate) == (1, quick["rate"])
    assert set(search.space) == set(DEFAULT_SPACE)


def test_rate_is_searched_on_logarithmic_scale(text):
    search = start_search(
        [text], Path("text.tune"), {"rate": Range(1e-6, 1e-2)}, sampler="random", trials=12, **{**TINY, "epochs": 1}
    )
    assert sum(trial.values["rate"] < 1e-4 for trial in finish(search)) in range(3, 10)


def test_same_seed_gives_same_trials(text):
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        search = start_search([text], Path(f"{name}.tune"), SPACE, trials=3, seed=seed, **TINY)
        finish(search)
        results.append(search_result(search))
    assert results[0] == results[1]
    assert [trial.values for trial in results[0][0]] != [trial.values for trial in results[2][0]]


@pytest.mark.slow
def test_bayesian_search_finds_better_rates_than_random_search(text):
    """After the first random trials, the mean loss of Bayesian search is lower than that of random search."""
    means = {}
    for sampler in ("bayesian", "random"):
        space = {"rate": Range(1e-6, 3e-2)}
        search = start_search([text], Path(f"{sampler}.tune"), space, sampler=sampler, trials=12, **{**TINY, "epochs": 1})
        losses = sorted(trial.loss for trial in finish(search)[STARTUP:])
        means[sampler] = sum(losses) / len(losses)
    assert means["bayesian"] < means["random"]


def test_search_does_not_evaluate_on_test_part(text):
    search = start_search([text], Path("text.tune"), SPACE, trials=2, **TINY)
    finish(search)
    best = search.folder(search.best)
    assert "test" in search.corpus.parts
    assert "test" not in load_arrays(best / WEIGHTS)[1]
    result = fflm("train", "--resume", best, "--json", folder=".")
    assert json.loads(result.stdout)["test"]["perplexity"] > 1


def test_search_on_tokenized_text_refers_to_it(text):
    assert fflm("tokenize", text, "-o", "text.ids", folder=".").returncode == 0
    search = start_search([Path("text.ids")], Path("text.tune"), GRID, sampler="grid", trials=1, **TINY)
    finish(search)
    assert not (search.path / "corpus").exists()
    assert search.corpus.path.resolve() == Path("text.ids").resolve()


# Trials that end early.


@pytest.mark.slow
def test_pruning_stops_trials_worse_than_median(text):
    space = {"rate": Choices(tuple(1e-5 * 2**i for i in range(12)))}
    evaluated = {}
    search = start_search([text], Path("text.tune"), space, sampler="grid", **TINY)
    for event in search.events():
        if isinstance(event, Evaluation):
            evaluated.setdefault(search.run.path.name, []).append(event.valid_loss)
    pruned = [trial for trial in search.trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.number > STARTUP and trial.epochs < 3 for trial in pruned)
    for trial in pruned:
        losses = evaluated[f"trial-{trial.number}"]
        others = [
            evaluated[f"trial-{other.number}"][: len(losses)]
            for other in search.trials[: trial.number - 1]
            if other.state == "complete"
        ]
        median = sorted(min(other) for other in others)[len(others) // 2]
        assert trial.loss == min(losses) > median * (1 - 1e-9)
    whole = start_search([text], Path("whole.tune"), space, sampler="grid", trials=7, prune=False, **TINY)
    assert {(trial.state, trial.epochs) for trial in finish(whole)} == {("complete", 3.0)}


def test_diverged_trial_is_recorded_and_search_continues(text):
    space = {"rate": Choices((0.01, 1e9, 0.02))}
    search = start_search([text], Path("text.tune"), space, sampler="grid", optimizer="sgd", clip=0.0, **TINY)
    trials = {trial.values["rate"]: trial for trial in finish(search)}
    assert {rate: trial.state for rate, trial in trials.items()} == {0.01: "complete", 1e9: "diverged", 0.02: "complete"}
    assert "does not converge" in trials[1e9].reason
    assert not search.folder(trials[1e9]).exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hiden": 3}, "unknown setting 'hiden': did you mean 'hidden'?"),
        ({"vectors": "some.vec"}, "the setting 'vectors' has no use here: leave it out"),
        ({"teacher": "some.model"}, "the setting 'teacher' has no use here: leave it out"),
        ({"frozen": True}, "only embeddings that are given can be frozen: leave out `frozen`"),
        ({"bands": (5,), "tied": True}, "an adaptive softmax has weights of its own"),
    ],
)
def test_search_refuses_settings_that_it_has_no_use_for(text, setting, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        start_search([text], Path("text.tune"), SPACE, **{**TINY, **setting})
    assert not Path("text.tune").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [({}, "the search space is empty"), ({"seed": lambda: Choices(tuple(range(1001)))}, "1,001 choices are too many")],
)
def test_unusable_space_is_refused(text, space, message):
    with pytest.raises(SettingsError, match=message):
        start_search([text], Path("text.tune"), {name: make() for name, make in space.items()}, **TINY)
    assert not Path("text.tune").exists()


def test_choices_may_be_lists_of_names_and_none(text):
    space = {"activation": Choices((("tanh",), ("relu",))), "negative_slope": Choices((None, 0.2))}
    search = start_search([text], Path("text.tune"), space, sampler="grid", trials=1, **{**TINY, "epochs": 1})
    assert search.space == space
    assert Search.open("text.tune").space == space


def test_search_resumes_with_valid_number_of_trials_only(text):
    search = start_search([text], Path("text.tune"), RATES, trials=3, **TINY)
    with pytest.raises(FflmError, match="`trials` must be"):
        Search.resume("text.tune", trials=0)
    assert Search.resume("text.tune").limit == search.limit == 3


def test_refused_trial_is_recorded_and_search_continues(text):
    space = {"hidden": Choices(((8,), (8, 6))), "residual": Choices((False, True))}
    search = start_search([text], Path("text.tune"), space, sampler="grid", **{**TINY, "epochs": 1})
    refused = [trial for trial in finish(search) if trial.state == "refused"]
    assert [trial.values for trial in refused] == [{"hidden": (8, 6), "residual": True}]
    assert "must be of one size" in refused[0].reason
    assert len(search.trials) == 4


# Interruption and resumption.


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "saved"), [("bayesian", False), ("grid", True)])
def test_resumed_search_equals_uninterrupted(text, sampler, saved):
    space = GRID if sampler == "grid" else SPACE
    trials = None if sampler == "grid" else 8
    whole = start_search([text], Path("whole.tune"), space, sampler=sampler, trials=trials, **TINY)
    finish(whole)
    assert any(trial.state == "pruned" for trial in whole.trials)
    search = start_search([text], Path("pieces.tune"), space, sampler=sampler, trials=trials, **TINY)
    pieces = 0
    while len([trial for trial in search.trials if trial.state != "running"]) < search.limit:
        list(itertools.islice(search.events(), 17))
        if saved:
            search.save()  # otherwise the search resumes at the last evaluation, which Optuna has already stored
        search = Search.open(search.path)
        pieces += 1
    assert pieces > 8
    assert finish(search) == []
    assert search_result(search) == search_result(whole)


EIGHT_TRIALS = {"embedding": 6, "hidden": (8,), "batch_size": 64, "epochs": 2, "trials": 8}


def search_until_file_change(left):
    """Start or resume a search, and exit with status 9 before a file is changed for the n-th time."""

    def die(event, arguments):
        nonlocal left
        if event in ("os.rename", "sqlite3.connect", "shutil.rmtree"):
            left -= 1
            if left == 0:
                os._exit(9)

    path = Path("killed.tune")
    search = Search.open(path) if path.exists() else start_search([Path("text.txt")], path, RATES, **EIGHT_TRIALS)
    search.save_seconds = 0
    sys.addaudithook(die)
    finish(search)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_resume_after_kills_before_file_changes_gives_same_search(text):
    whole = start_search([text], Path("whole.tune"), RATES, **EIGHT_TRIALS)
    finish(whole)
    statuses = [exit_status_of_fork(partial(search_until_file_change, left)) for left in (9, 33, 1, 58, 10_000)]
    assert statuses == [9, 9, 9, 9, 0]
    assert search_result(Search.open(Path("killed.tune"))) == search_result(whole)
    assert sorted(path.name for path in Path("killed.tune").iterdir()) == sorted(
        path.name for path in Path("whole.tune").iterdir()
    )


LONG = [*SMALL, "--epochs", 30, "--patience", 0, "--trials", 3, "--search", "rate=0.001..0.01"]


@pytest.mark.slow
def test_search_resumes_after_signal_and_kill(text):
    whole = fflm("tune", text, *LONG, "-o", "whole.tune", folder=".")
    assert whole.returncode == 0, whole.stderr
    command = [FFLM, "tune", text, *map(str, LONG), "--save-every", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stderr.readline().startswith("    1"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "stopped and saved; resume with: fflm tune --resume text.tune"
    command = [FFLM, "tune", "--resume", "text.tune", "--save-every", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not process.stderr.readline().startswith("    2"):
            assert process.poll() is None
        process.kill()
    again = fflm("tune", "--resume", "text.tune", folder=".")
    assert again.returncode == 0, again.stderr
    assert again.stdout == whole.stdout.replace("whole.", "text.")
    assert search_result(Search.open(Path("text.tune"))) == search_result(Search.open(Path("whole.tune")))


def test_resume_continues_within_trial(text):
    search = start_search([text], Path("text.tune"), SPACE, trials=1, **TINY)
    steps = [event.step for event in itertools.islice(search.events(), 9) if isinstance(event, Step)]
    search.save()
    assert load_arrays(search.folder(search.trials[0]) / CHECKPOINT)[1]["state"]["step"] == 8
    assert steps[-1] == 8
    assert [trial.state for trial in search.trials] == ["running"]
    run, first, *_ = Search.open(search.path).events()
    assert isinstance(run, TrainingSession)
    assert first.step == 9


def test_second_process_joins_running_search(text):
    search = start_search([text], Path("text.tune"), SPACE, trials=2, **{**TINY, "epochs": 1})
    events = search.events()
    next(events)
    with pytest.raises(FflmError, match="trial-1"):
        TrainingSession.resume(search.folder(search.trials[0]))
    others = Search.resume(search.path).events()
    until_waiting = itertools.takewhile(lambda event: not isinstance(event, Waiting), others)
    assert [event.number for event in until_waiting if isinstance(event, Trial)] == [2]
    assert [trial.state == "running" for trial in search.trials] == [True, False]
    assert [event.number for event in events if isinstance(event, Trial)] == [1]
    assert not [event for event in others if isinstance(event, Trial)]


@pytest.mark.slow
def test_trial_of_killed_process_is_resumed_by_another(text):
    """Two processes run one search, each trial once. One of them is killed, and the other one resumes its trial."""
    options = [*SMALL, "--epochs", 6, "--patience", 0, "--trials", 4, "--search", "rate=0.001..0.01", "--no-prune"]
    command = [FFLM, "tune", text, *map(str, options), "--save-every", "0", "--storage", "journal"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        while not Path("text.tune/trial-1").exists():
            assert first.poll() is None
            time.sleep(0.01)
        with subprocess.Popen([*command[:2], "--resume", "text.tune", "--save-every", "0"], stderr=subprocess.DEVNULL) as second:
            while not any('"evaluation"' in log.read_text() for log in logs_but_first()):
                assert second.poll() is None
                time.sleep(0.01)
            second.kill()
        stdout, stderr = first.communicate(timeout=100)
    assert first.returncode == 0, stderr
    search = Search.open(Path("text.tune"))
    assert {trial.state for trial in search.trials} == {"complete"}
    assert len(stdout.splitlines()[1:5]) == len(search.trials) == 4
    rows = [int(row.split()[0]) for row in stderr.splitlines() if row.split()[0].isdecimal()]
    assert sorted(rows) == [1, 2, 3, 4]  # also the one that the killed process had begun


def logs_but_first():
    """Return the logs of the trials but the first."""
    return [path for path in Path("text.tune").glob("trial-*/log.jsonl") if path.parent.name != "trial-1"]


@pytest.mark.slow
@needs_mpi
def test_mpiexec_runs_one_search(text):
    trials = ["--epochs", 1, "--trials", 5, "--search", "rate=0.001..0.01"]
    result = mpiexec(2, "-m", "fflm", "tune", text, *SMALL, *trials, folder=Path())
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("to train the best model again") == 1
    search = Search.open(Path("text.tune"))
    assert [trial.number for trial in search.trials] == [1, 2, 3, 4, 5]
    assert all(trial.state in ("complete", "pruned") for trial in search.trials)
    assert not list(search.path.glob("*.lock"))
    result = mpiexec(2, "-m", "fflm", "tune", text, folder=Path())
    assert result.returncode in (1, 9)  # the status of any process: 9 of one that the launcher killed
    assert result.stderr.count("error: text.tune exists") == 1


@pytest.mark.parametrize(("last", "named"), [(TrainingSession, "trial-1"), (Trial, r"text\.tune")])
def test_search_whose_folder_was_moved_writes_nothing(text, last, named):
    search = start_search([text], Path("text.tune"), SPACE, trials=2, **{**TINY, "epochs": 1})
    events = search.events()
    while not isinstance(next(events), last):
        pass
    shutil.copytree("text.tune", "copy.tune")
    Path("text.tune").rename("moved.tune")
    Path("copy.tune").rename("text.tune")
    before = snapshot(Path("text.tune"))
    with pytest.raises(FflmError, match=f"{named} was moved, replaced or removed by another process"):
        list(events)
    assert snapshot(Path("text.tune")) == before


@pytest.mark.slow
def test_resume_with_more_trials_equals_uninterrupted(text):
    whole = start_search([text], Path("whole.tune"), SPACE, trials=7, **TINY)
    finish(whole)
    search = start_search([text], Path("text.tune"), SPACE, trials=3, **TINY)
    finish(search)
    search = Search.resume(search.path, trials=7)
    assert len(finish(search)) == 4
    assert search_result(search) == search_result(whole)
    assert Search.open(search.path).limit == 7


def test_resume_of_search_with_changed_corpus_is_refused(text):
    assert fflm("tokenize", text, "-o", "text.ids", folder=".").returncode == 0
    search = start_search([Path("text.ids")], Path("text.tune"), SPACE, trials=2, **TINY)
    list(itertools.islice(search.events(), 5))
    text.write_text(STORIES[:2500], encoding="utf-8")
    assert fflm("tokenize", text, "-o", "text.ids", "--overwrite", folder=".").returncode == 0
    before = snapshot(search.path)
    result = fflm("tune", "--resume", "text.tune", folder=".")
    assert result.returncode == 1
    assert re.fullmatch(r"error: text.tune was started on other data .*\n", result.stderr)
    assert snapshot(search.path) == before


# The command.


@pytest.fixture(scope="module")
def finished_search(tmp_path_factory):
    """Run a search in a new folder; return the folder and the result of the command."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    space = ["--search", "rate=0.0001..0.02", "--search", "hidden=8|0|8,6", "--search", "embedding-dropout=0..0.5"]
    result = fflm(
        "tune", "text.txt", *SMALL[:2], *SMALL[4:], "--epochs", 2, "--trials", 7, *space, "--test", "10%", folder=folder
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_tune_prints_trials_table_and_train_command(finished_search):
    folder, result = finished_search
    head = r"trial +perplexity +epochs +rate +hidden +embedding_dropout\n"
    assert re.search(head + r"    1 .*\n" + r"( +\d+ .*\n){6}$", result.stderr)
    table, rest = result.stdout.split("model text.tune/trial-")
    assert re.fullmatch(head + r"( +\d+ .*\n){7}", table)
    perplexities = [float(line.split()[1]) for line in table.splitlines()[1:] if not line.endswith("pruned")]
    assert perplexities == sorted(perplexities)
    assert re.search(rf"^valid {PERPLEXITY}$", rest, re.MULTILINE)
    (line,) = re.findall(r"^to train the best model again: (fflm train .*)$", rest, re.MULTILINE)
    again = fflm(*shlex.split(line)[1:], "--json", "-q", folder=folder)
    figures = json.loads(again.stdout)
    assert figures["model"] == "text.model"
    assert figures["valid"]["perplexity"] == Search.open(folder / "text.tune").best.perplexity
    assert "--resume text.tune/trial-" in rest.splitlines()[-1]
    shutil.rmtree(folder / "text.model")


def test_resume_of_finished_search_prints_it_again_also_as_json(finished_search):
    folder, result = finished_search
    assert fflm("tune", "--resume", "text.tune", folder=folder).stdout == result.stdout
    again = fflm("tune", "--resume", "text.tune", "-q", "--json", folder=folder)
    assert again.stderr == ""
    about = json.loads(again.stdout)
    best = about["trials"][0]
    assert about["model"] == f"text.tune/trial-{best['number']}"
    assert about["valid"]["perplexity"] == best["perplexity"]
    assert about["train"].startswith("fflm train text.tune/corpus -o text.model")
    assert len(about["trials"]) == 7


def test_plot_of_search_labels_all_settings(finished_search):
    pytest.importorskip("matplotlib")
    folder, _ = finished_search
    result = fflm("plot", "text.tune", "-o", "trials.svg", "--json", folder=folder)
    assert json.loads(result.stdout) == {"plot": "trials.svg", "search": "text.tune"}
    ElementTree.parse(folder / "trials.svg")
    words = re.findall(r"<!-- (.*?) -->", (folder / "trials.svg").read_text())
    for word in ("Search in text.tune", "trial", "best so far", "rate (log scale)", "hidden", "embedding dropout", "8,6"):
        assert word in words
    result = fflm("plot", "text.tune", "text.tune", folder=folder)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_progress_of_search_on_narrow_terminal(text):
    """On a narrow terminal, rows of trials leave settings out; the final table has all of them."""
    search = start_search(
        [text], Path("text.tune"), {"rate": Range(1e-3, 1e-2), "weight_decay": Range(0.0, 0.1)}, trials=2, **TINY
    )
    console = Console(file=io.StringIO(), force_terminal=True, width=40)
    assert _watch(search, None, console)
    shown = console.file.getvalue()
    assert "trial 2/2" in shown
    assert "trial perplexity   epochs    rate\n" in shown
    assert "weight_decay" not in shown


@pytest.mark.slow
def test_tune_stops_after_time_limit(text):
    result = fflm("tune", text, *SMALL, "--epochs", 1, "--trials", 2, "--minutes", 1e-9, folder=".")
    assert result.returncode == 0
    assert result.stderr.splitlines()[-1] == "the time is up, after 0 trials; resume with: fflm tune --resume text.tune"
    assert "running" in result.stdout
    pytest.importorskip("matplotlib")
    assert "no complete trial yet" in fflm("plot", "text.tune", folder=".").stderr
    result = fflm("tune", "--resume", "text.tune", folder=".")
    assert (result.returncode, result.stdout.count("\n")) == (0, 6)


def test_search_without_converging_trial_is_an_error(text):
    options = ("--search", "rate=1e8|1e9", "--optimizer", "sgd", "--clip", 0, "--epochs", 1)
    result = fflm("tune", text, *SMALL, *options, folder=".")
    assert result.returncode == 1
    assert re.fullmatch(r"error: no trial was completed \(training does not converge.*", result.stderr.splitlines()[-1])


ERRORS = [
    ("text.txt --search speed=1|2", "cannot search over 'speed' \\(did you mean 'seed'\\?\\): choose from window, "),
    ("text.txt --search vocabulary=1|2", "cannot search over 'vocabulary'"),
    ("text.txt --search input=mean|max", "cannot search over 'input'"),
    ("text.txt --search frozen=yes|no", "cannot search over 'frozen'"),
    ("text.txt --search rate", "'' is not a valid float"),
    ("text.txt --search rate=fast|slow", "'fast' is not a valid float"),
    ("text.txt --search rate=0.01..0.001", "the range 0.01..0.001 is empty"),
    ("text.txt --search rate=0.01..nan", "the range 0.01..nan is empty"),
    ("text.txt --search rate=0..0.01", "--rate': 0.0 is not in the range x>0"),
    ("text.txt --search window=2..3..4", "'2..3..4' is not a range of window"),
    ("text.txt --search window=1.5..3", "'1.5' is not a valid integer"),
    ("text.txt --search window=0..3", "--window': 0 is not in the range 1<=x<="),
    ("text.txt --search window=3..300", "too few for a window of 300"),
    ("text.txt --search hidden=8..16", "'8..16' is not a range of hidden: write LOW..HIGH for numbers, A|B|C for choices"),
    ("text.txt --search activation=tanh|swish", "'swish' is not one of"),
    ("text.txt --search rate=0.01", "0.01 is not a choice: give several different values"),
    ("text.txt --search rate=0.01|0.01|0.02", "is not a choice: give several different values"),
    ("text.txt --search rate=0.01|0.02 --search rate=0.03|0.04", "given twice"),
    ("text.txt --search rate=0.01|0.02 --rate 0.1", "--rate: give one value, or --search for it"),
    (
        "text.txt --search rate=0.001..0.01 --sampler grid",
        "a grid needs choices rather than the range 0.001..0.01: give several values of rate",
    ),
    ("text.txt --sampler grid", "a grid needs choices"),
    ("text.txt --valid 0", "give some with --valid"),
    ("text.txt --trials 0", "0 is not in the range"),
    ("text.txt --minutes nan", ""),
    ("text.txt --dropout 2", "--dropout': 2.0 is not in the range 0<=x<1"),
    ("text.txt -o text.txt", "text.txt exists"),
    ("missing.txt", "cannot read missing.txt"),
    ("", "give a text to train on, or --resume a search"),
    ("--resume missing.tune", "missing.tune is not a search"),
    ("--resume text.txt", "text.txt is not a search"),
    ("--resume text.tune --rate 0.1 --search window=1..2", "leave out --search, --rate"),
    ("text.ids --min-count 1", "tokenized already"),
]


@pytest.fixture(scope="module")
def folder_with_text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    (folder / "text.ids").mkdir()
    (folder / "text.ids" / "corpus.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("line", "reason"), ERRORS, ids=[line for line, _ in ERRORS])
def test_tune_refuses_invalid_arguments(folder_with_text, monkeypatch, line, reason):
    monkeypatch.chdir(folder_with_text)
    before = snapshot(folder_with_text)
    result = CliRunner().invoke(main, ["tune", *line.split()])
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code in (1, 2), result.stdout) == (True, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert re.search(reason, result.stderr), result.stderr
    assert snapshot(folder_with_text) == before


@pytest.mark.parametrize("name", ["search.json", "study.db"])
def test_damaged_files_of_search_are_refused(finished_search, tmp_path, name):
    folder, _ = finished_search
    shutil.copytree(folder / "text.tune", tmp_path / "text.tune")
    (tmp_path / "text.tune" / name).write_text("{}" if name == "search.json" else "no database" * 1000)
    result = fflm("tune", "--resume", "text.tune", folder=tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(rf"error: text.tune/{name} .*restore it from a copy, or start a new search\n", result.stderr), (
        result.stderr
    )


def test_tune_without_optuna_names_install_command(text):
    program = "import sys; sys.modules['optuna'] = None; from fflm.cli import main; main(['tune', 'text.txt'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: tuning needs optuna: run `pip install '.[tune]'` in a checkout of fflm\n"
