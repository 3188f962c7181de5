"""Training runs on real text: files, interruption and resumption, from Python and through the installed command."""

import contextlib
import dataclasses
import fcntl
import gzip
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from command import FFLM, SMALL, STORIES, fflm, snapshot
from rich.console import Console

import fflm as library
from fflm.arrays import CHECKPOINT, CONFIG, LOG, WEIGHTS, load_arrays, meaning, save_arrays
from fflm.backend.protocol import ACTIVATIONS
from fflm.cli.progress import watch
from fflm.cli.train import VIEW
from fflm.errors import FflmError, FflmWarning
from fflm.files import LOCK, write_json
from fflm.models.corpora import trained_corpus
from fflm.models.creation import model_path
from fflm.models.description import EVENTS
from fflm.models.folder import VOCABULARY, latest_model
from fflm.models.neural import model as neural_model
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.train import (
    PRESETS,
    TrainingSession,
    default_averages,
    default_batch_size,
    default_epochs,
    default_loss,
    start_session,
)
from fflm.models.scoring import score_part
from fflm.signals import interruption
from fflm.text.corpus import Corpus
from fflm.text.holdout import Count, Share
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.vocabulary import VocabularyRule
from fflm.training import events as training_events
from fflm.training import progress, session
from fflm.training.checkpoints import Checkpoint
from fflm.training.events import Evaluation, RolledBack, Step
from fflm.training.log import read_log

TINY = {"embedding": 6, "hidden": (8,), "batch_size": 64, "window": 3, "epochs": 3, "rate": 0.02}
SETTINGS = {**TINY, "test": Share(0.1), "embedding_dropout": 0.1}


def finish(run):
    return list(run.events())


def outcome(path):
    """Return all that a run left behind, but times: weights, figures, checkpoint and log."""
    weights, figures = load_arrays(path / WEIGHTS)
    checkpoint, about = load_arrays(path / CHECKPOINT)
    state = {name: value for name, value in about["state"].items() if name not in ("seconds", "log_bytes")}
    log = [{k: v for k, v in event.items() if k not in ("seconds", "words_per_second")} for event in read_log(path / LOG, EVENTS)]
    arrays = {name: array.tobytes() for name, array in [*weights.items(), *checkpoint.items()]}
    assert not list(path.glob("*.tmp")) + list(path.glob(".*.tmp"))
    return arrays, figures, state, log


# From text to a model


def test_a_run_leaves_a_model_with_its_figures(text):
    run = start_session([text], Path("text.model"), **SETTINGS)
    events = finish(run)
    assert {path.name for path in run.path.iterdir()} == {CONFIG, WEIGHTS, VOCABULARY, LOG, CHECKPOINT, "corpus"}
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    best = min(evaluations, key=lambda event: event.valid_loss)
    model = library.load("text.model")
    figures = model.about["figures"]
    assert figures["step"] == best.step
    for name in ("valid", "test"):
        part = run.corpus.parts[name]
        contexts, targets = model.windows(part.ids).batch(np.arange(part.tokens))
        loss = model.losses(contexts, targets).mean(dtype=np.float64)
        assert figures[name]["loss"] == pytest.approx(loss, rel=1e-6)
        assert figures[name]["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
        assert figures[name]["bits_per_character"] == pytest.approx(loss * part.tokens / np.log(2) / part.characters, rel=1e-6)
        scored = score_part(model, part).to_dict()
        assert list(figures[name]) == list(scored)
        assert figures[name] == {
            key: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value for key, value in scored.items()
        }
    log = [event for event in read_log(run.path / LOG, EVENTS) if event["event"] == "evaluation"]
    assert [event["valid"]["loss"] for event in log] == [event.valid_loss for event in evaluations]
    assert figures["valid"] == next(event["valid"] for event in log if event["step"] == best.step)
    assert events[-1] == training_events.Tested(figures["test"])
    assert figures["valid"]["loss"] < 0.98 * np.log(len(model.vocabulary))


def test_from_python_in_two_lines(text):
    model = library.train(text, **TINY)
    assert isinstance(model, NeuralModel)
    again = library.load("text.model")
    contexts = np.zeros((2, model.window), np.int32)
    np.testing.assert_array_equal(model.log_probabilities(contexts), again.log_probabilities(contexts))
    np.testing.assert_allclose(np.exp(again.log_probabilities(contexts)).sum(1), 1, rtol=1e-5)
    with pytest.raises(FflmError, match="unknown setting 'nonsense'"):
        library.train(text, "other.model", nonsense=1)


def test_the_same_seed_gives_the_same_model_and_another_another(text):
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finish(start_session([text], Path(f"{name}.model"), **SETTINGS, seed=seed))
        results.append(outcome(Path(f"{name}.model")))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]


@pytest.mark.parametrize(
    "fields",
    [
        *({"activation": name} for name in ACTIVATIONS),
        *({"optimizer": name} for name in ("sgd", "adagrad", "rmsprop", "adam", "adamw")),
        *({"schedule": name} for name in ("constant", "inverse", "plateau", "cosine")),
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
        {"hidden": ()},
        {"hidden": (8, 4)},
        {"direct": True},
        {"tied": False},
        {"averages": ()},
        {"averages": (2, 5)},
        {"residual": True, "hidden": (8, 8)},
        {"smoothing": 0.1},
        {"self_normalise": 0.1},
        {"loss": "sampled", "samples": 9},
        {"loss": "nce", "samples": 50},
        {"loss": "sampled", "tied": False, "exact_end": 0.0},
        {"bands": (5, 9), "tied": False},
        {"bands": (7,), "tied": False, "averages": (), "direct": True, "optimizer": "sgd"},
        {"dropout": 0.0},
        {"batch_size": None},
        {"clip": 0},
        {"evaluate_every": 3},
        {"mode": "sentence"},
        {"line_ends": False},
        {"tokenizer": "char"},
        {"tokenizer": "space", "lowercase": True},
        {"min_count": 1},
        {"max_size": 10},
        {"source": "all"},
        {"valid": Count(50)},
        {"valid": ["text.txt"]},
        {"threads": 1},
    ],
    ids=lambda fields: ",".join(f"{name}={value}" for name, value in fields.items()),
)
def test_every_choice_trains(text, fields):
    finish(start_session([text], Path("text.model"), **{**TINY, "epochs": 1, **fields}))
    model = library.load("text.model")
    assert all(np.isfinite(array).all() for array in model.parameters)
    assert model.about["figures"]["valid"]["loss"] < 1.3 * np.log(len(model.vocabulary))


def test_an_adaptive_softmax_is_trained_exactly(text):
    with pytest.raises(FflmError, match="leave out `bands`"):
        start_session([text], Path("text.model"), **TINY, bands=(5,), tied=False, loss="sampled")


def test_the_first_step_of_batch_size_one_to_the_whole_text(text):
    for size, steps in ((1, None), (10**6, 1)):
        run = start_session([text], Path("text.model"), overwrite=True, **{**TINY, "batch_size": size, "epochs": 1})
        assert run.trainer.batches == (steps or len(run.trainer.train))
        finish(run)


def test_batches_are_chosen_by_the_size_of_the_text():
    sizes = [default_batch_size(words, 1000) for words in range(1, 10**6, 9999)]
    assert sizes == sorted(sizes)
    assert default_batch_size(800_000, 300_000) < default_batch_size(800_000, 18_000) <= sizes[-1]
    assert all(size & (size - 1) == 0 for size in sizes)


def test_epochs_are_chosen_by_the_size_of_the_text(text):
    epochs = [default_epochs(words) for words in (1, 10**5, 10**6, 10**7, 10**9)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[-1] >= 1
    fields = {name: value for name, value in TINY.items() if name not in ("epochs", "batch_size")}
    chosen = start_session([text], Path("chosen.model"), **fields).trainer.settings
    assert (chosen.epochs, chosen.batch_size) == (epochs[0], 64)


def test_a_large_vocabulary_is_sampled(text):
    assert [default_loss(words) for words in (10, 3000, 18_000)] == ["exact", "exact", "sampled"]
    for given, wanted in ((None, "exact"), ("nce", "nce")):
        run = start_session([text], Path("text.model"), overwrite=True, loss=given, **TINY)
        assert run.trainer.settings.loss == wanted


def test_large_texts_are_seen_farther_back(text):
    assert default_averages(10**5) == ()
    assert default_averages(10**6) > ()
    for given, wanted in ((None, ()), ((2, 5), (2, 5))):
        run = start_session([text], Path("text.model"), overwrite=True, averages=given, **TINY)
        assert run.trainer.network.config.averages == wanted


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset, text):
    run = start_session([text], Path("own.model"), preset=preset, hidden=(7,))
    wanted = {"hidden": (7,), **{name: value for name, value in PRESETS[preset].items() if name != "hidden"}}
    found = vars(run.trainer.network.config) | vars(run.trainer.settings)
    assert {name: found[name] for name in wanted} == wanted
    result = fflm("train", text, "-o", "other.model", "-q", "--preset", preset, "--hidden", 7, folder=Path())
    assert result.returncode == 0, result.stderr
    stored = [json.loads((Path(name) / CONFIG).read_text()) for name in ("own.model", "other.model")]
    assert [each["network"] for each in stored] == [stored[0]["network"]] * 2
    assert [each["training"] for each in stored] == [stored[0]["training"]] * 2


def test_unknown_preset(text):
    with pytest.raises(FflmError, match="`preset` must be one of default, quick, not 'fast'"):
        start_session([text], Path("own.model"), preset="fast")


def test_models_are_named_after_their_text():
    assert model_path(None, (Path("corpora/stories.txt"), Path("x"))) == Path("stories.model")
    assert model_path(None, (Path("-"),)) == Path("stdin.model")
    assert model_path(None, (Path("a/.hidden"),)) == Path(".hidden.model")


# Through the command


def test_sources_of_text(text):
    Path("text.txt.gz").write_bytes(gzip.compress(text.read_bytes(), mtime=0))
    Path("folder").mkdir()
    shutil.copy(text, "folder")
    options = [*SMALL, "--epochs", 1, "--json", "-q"]
    runs = [
        fflm("train", "text.txt", "-o", "0.model", *options, folder="."),
        fflm("train", "text.txt.gz", "-o", "1.model", *options, folder="."),
        fflm("train", "folder", "-o", "2.model", *options, folder="."),
        fflm("train", "-", *options, folder=".", input=STORIES),
        fflm("tokenize", "text.txt", "-o", "text.ids", folder="."),
        fflm("train", "text.ids", "-o", "4.model", *options, folder="."),
    ]
    assert [run.returncode for run in runs] == [0] * 6, [run.stderr for run in runs]
    assert [run.stderr for run in runs] == [""] * 6
    models = [json.loads(run.stdout) for run in (*runs[:4], runs[5])]
    assert models[3]["model"] == "stdin.model"
    assert len({json.dumps(model["valid"]) for model in models}) == 1
    assert not Path("4.model/corpus").exists()


def test_a_model_lends_its_text_and_its_words(text):
    finish(start_session([text], Path("text.model"), **TINY, min_count=3))
    run = start_session([Path("text.model")], Path("other.model"), **TINY, seed=2)
    assert run.corpus.path.resolve() == Path("text.model/corpus").resolve()
    assert run.corpus.fingerprint == library.load("text.model").about["corpus"]["fingerprint"]
    with pytest.raises(FflmError, match=r"fflm\.resume\('text\.model'\)"):
        start_session([Path("text.model")], Path("text.model"), **TINY)
    result = fflm("train", "text.model", "-o", "third.model", "--min-count", 1, folder=".")
    assert "leave out --min-count" in result.stderr


def test_tokenised_text_has_its_settings(text):
    assert fflm("tokenize", text, "-o", "text.ids", folder=".").returncode == 0
    result = fflm("train", "text.ids", "--min-count", 1, "--vocabulary", "words.txt", folder=".")
    assert result.returncode == 2
    assert "tokenized already: leave out --min-count, --vocabulary" in result.stderr


@pytest.mark.parametrize("options", [("--valid", "0"), ("--valid", "0", "--test", "10%")], ids=" ".join)
def test_without_validation(text, options):
    result = fflm("train", text, *SMALL, "--epochs", 2, "--patience", 1, *options, folder=".")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stderr.splitlines() if line.strip()[:1].isdigit()]
    assert [row[3] for row in rows] == ["-", "-"]  # in the place of the validation perplexity
    about = library.load("text.model").about
    assert about["corpus"]["parts"].keys() == {"train"} | ({"test"} if "--test" in options else set())
    assert about["figures"]["epoch"] == 2
    assert fflm("info", folder=".").returncode == 0


def test_a_run_stopped_in_its_first_epoch_leaves_a_model_to_use(text):
    run = start_session([text], Path("text.model"), epochs=1, embedding=6, hidden=(8,), window=3, batch_size=64)
    event = next(run.events())
    run.save()
    assert isinstance(event, Step)
    with pytest.warns(FflmWarning, match=r"text\.model is hardly trained, .* resume it with `fflm\.resume\('text\.model'\)`"):
        model = library.load("text.model")
    assert model.about["figures"].keys() == {"step", "epoch"}
    assert 0 < model.about["figures"]["epoch"] < 1
    shown = fflm("generate", "--length", 2, folder=".")
    assert shown.returncode == 0
    assert shown.stderr.count("warning: text.model is hardly trained") == 1
    assert "resume it with `fflm train --resume text.model`\n" in shown.stderr
    for _ in run.events():
        pass
    assert "valid" in library.load("text.model").about["figures"]


def test_a_model_is_replaced_only_if_asked(text):
    options = ("train", text, *SMALL, "--epochs", 1)
    assert fflm(*options, folder=".").returncode == 0
    before = outcome(Path("text.model"))
    refused = fflm(*options, folder=".")
    assert refused.returncode == 1
    assert "--overwrite replaces it" in refused.stderr
    assert outcome(Path("text.model")) == before
    assert fflm(*options, "--overwrite", "--seed", 2, folder=".").returncode == 0
    assert outcome(Path("text.model"))[0] != before[0]
    assert sorted(path.name for path in Path().iterdir()) == ["text.model", "text.txt"]


def test_the_old_model_stays_until_the_new_one_has_weights(text):
    finish(start_session([text], Path("text.model"), **TINY))
    before, place = outcome(Path("text.model")), Path("text.model").stat().st_ino
    run = start_session([text], Path("text.model"), overwrite=True, **TINY, seed=2)
    run.save()  # there is nothing to be used yet
    assert not run.published
    assert run.path == Path("text.model")
    assert outcome(run.path) == before
    with pytest.raises(FflmError, match=r"already training in text\.model"):
        start_session([text], Path("text.model"), overwrite=True, **TINY)
    events = run.events()
    next(events)
    assert (run.published, outcome(run.path)) == (False, before)
    run.save()
    assert run.published
    assert library.load("text.model").about["figures"] == {"step": 1, "epoch": pytest.approx(0.1, abs=0.09)}
    list(events)
    assert Path("text.model").stat().st_ino != place
    assert sorted(path.name for path in Path().iterdir()) == ["text.model", "text.txt"]
    finish(start_session([text], Path("alone.model"), **TINY, seed=2))
    assert outcome(Path("text.model")) == outcome(Path("alone.model"))
    assert {path.name for path in Path("text.model").iterdir()} == {path.name for path in Path("alone.model").iterdir()}


@pytest.mark.parametrize("reason", ["an evaluation", "time"])
def test_the_first_weights_of_whatever_kind_replace_the_old_model(text, reason):
    finish(start_session([text], Path("text.model"), **TINY))
    run = start_session([text], Path("text.model"), overwrite=True, **TINY)
    run.save_seconds = 0 if reason == "time" else 600
    event = next(event for event in run.events() if run.published)
    assert isinstance(event, Step if reason == "time" else Evaluation)
    assert library.load("text.model").about["figures"]["step"] == event.step
    state = TrainingSession.resume(Path("text.model")).trainer.state
    assert state.step == event.step


def fill_the_disk(run):
    """Let the run meet a full disk at its first checkpoint."""
    run.save_seconds = 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        finish(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def interrupt(run):
    """Interrupt the run in its first step, as Ctrl-C does that nobody handles."""
    run.trainer.network.backend.clip_factor = lambda *arguments: signal.raise_signal(signal.SIGINT)
    run.finish()


@pytest.mark.parametrize(
    ("options", "train", "reason"),
    [
        ({"rate": 1e9, "optimizer": "sgd", "clip": 0.0}, finish, "training does not converge"),
        ({}, fill_the_disk, "cannot write .*File too large"),
        ({}, interrupt, None),
        ({"test": Share(0.999)}, finish, "take all|too few"),
    ],
    ids=["diverges", "full disk", "interrupted", "refused"],
)
def test_a_run_that_fails_leaves_the_model_that_it_was_to_replace(text, options, train, reason):
    finish(start_session([text], Path("text.model"), **TINY))
    before, runs = snapshot(Path()), []  # which would be discarded if nobody had them any more
    with pytest.raises((FflmError, KeyboardInterrupt), match=reason):  # noqa: PT012
        runs.append(start_session([text], Path("text.model"), overwrite=True, **{**TINY, **options}))
        train(runs[0])
    assert snapshot(Path()) == before


def test_a_kill_between_two_renames_is_put_right_by_whoever_comes_next(text):
    """Where folders cannot exchange their names, that leaves the old one and the new one beside the place."""
    finish(start_session([text], Path("text.model"), **TINY))
    assert fflm("tokenize", text, "-o", "text.ids", folder=".").returncode == 0
    uses = {
        "text.ids": [lambda: Corpus.open("text.ids"), lambda: start_session([Path("text.ids")], Path("other.model"), **TINY)],
        "text.model": [
            lambda: library.load("text.model"),
            lambda: latest_model(Path(), str, "network"),
            lambda: TrainingSession.resume(Path("text.model")),
            lambda: start_session([text], Path("text.model"), overwrite=True, **TINY).finish(),
        ],
    }
    before = snapshot(Path("text.model"))
    for name, each in uses.items():
        for use in each:
            workplace = Path(f".{name}.abcdefgh.tmp")
            (workplace / "new").mkdir(parents=True)
            Path(name).rename(workplace / "old")
            use()
            assert Path(name).is_dir()
            shutil.rmtree(workplace, ignore_errors=True)
    assert snapshot(Path("text.model")).keys() == before.keys()
    (Path(".text.model.abcdefgh.tmp") / "new").mkdir(parents=True)
    Path("text.model").rename(".text.model.abcdefgh.tmp/old")
    with pytest.raises(FflmError, match=r"exists: `fflm\.resume"):
        start_session([text], Path("text.model"), **TINY)


def test_a_model_is_not_replaced_by_one_from_its_own_corpus(text):
    finish(start_session([text], Path("text.model"), **TINY))
    before = outcome(Path("text.model"))
    with pytest.raises(FflmError, match="lies in text"):
        start_session([Path("text.model/corpus")], Path("text.model"), overwrite=True, **TINY)
    assert outcome(Path("text.model")) == before


def test_a_folder_is_not_replaced_if_something_else_lies_in_it(text):
    finish(start_session([text], Path("text.model"), **TINY))
    for place in (Path("text.model/other.model"), Path("text.model/corpus/notes.txt")):
        place.touch()
        with pytest.raises(FflmError, match=rf"^{place} would be lost if text\.model were replaced"):
            start_session([text], Path("text.model"), overwrite=True, **TINY)
        place.unlink()
    Path("text.model/.hidden").mkdir()
    Path("text.model/.hidden/file").touch()
    start_session([text], Path("text.model"), overwrite=True, **TINY).discard()
    tokenize(TextSource([text], TextSettings(), VocabularyRule(), "5%", None), "text.ids")
    Path("text.ids/text.model").mkdir()
    with pytest.raises(FflmError, match=r"^text\.ids/text\.model would be lost"):
        tokenize(TextSource([text], TextSettings(), VocabularyRule(), "5%", None), "text.ids", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_trainings_of_one_folder(text, overwrite):
    """One reads its text while the other begins to train; a thread is treated as a process is."""
    started, events = [], []

    def start_the_other(characters):
        if not started:
            started.append(start_session([text], Path("text.model"), **TINY, seed=2))
            events.append(started[0].events())
            next(events[0])

    with pytest.raises(FflmError, match=r"discarded.*(exists: `fflm\.resume|already training in)"):
        start_session([text], Path("text.model"), **{**TINY, "embedding": 9}, overwrite=overwrite, progress=start_the_other)
    refused = []

    def train():
        try:
            library.train(text, "text.model", overwrite=overwrite, **TINY)
        except FflmError as error:
            refused.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(refused) == 1
    with pytest.raises(FflmError, match=r"this process is already training in text\.model"):
        TrainingSession.resume(Path("text.model"), epochs=50)
    for _ in events[0]:
        pass
    finish(start_session([text], Path("alone.model"), **TINY, seed=2))
    assert outcome(Path("text.model")) == outcome(Path("alone.model"))
    assert {path.name for path in Path("text.model").iterdir()} == {path.name for path in Path("alone.model").iterdir()}
    assert sorted(path.name for path in Path().iterdir()) == ["alone.model", "text.model", "text.txt"]


def test_a_run_is_not_gone_on_with_where_another_has_been(text):
    run = start_session([text], Path("text.model"), **SETTINGS)
    list(itertools.islice(run.events(), 15))
    run.save()
    finish(TrainingSession.resume(run.path))
    before = outcome(run.path)
    for use in (run.save, lambda: next(run.events())):
        with pytest.raises(FflmError, match=r"text\.model has been changed by another run"):
            use()
    start_session([text], run.path, **SETTINGS, seed=2, overwrite=True)
    with pytest.raises(FflmError, match=r"text\.model has been changed by another run"):
        run.save()
    finish(start_session([text], run.path, **SETTINGS, overwrite=True))
    assert outcome(run.path) == before


@pytest.mark.parametrize("fate", ["moved", "removed", "replaced"])
def test_a_run_whose_folder_is_moved_away_writes_nothing_into_another(text, fate):
    run = start_session([text], Path("text.model"), **TINY, seed=2)
    events = run.events()
    next(events)
    shutil.rmtree("text.model") if fate == "removed" else Path("text.model").rename("old.model")
    if fate == "replaced":
        finish(start_session([text], Path("text.model"), **{**TINY, "embedding": 9}))
    before = snapshot(Path())
    for use in (run.save, lambda: list(events)):
        with pytest.raises(FflmError, match=r"text\.model was moved, replaced or removed by somebody else"):
            use()
    with pytest.raises(FflmError, match="has been changed by another run" if fate == "replaced" else "cannot write"):
        run.save()
    if fate == "removed":
        return
    assert {name: content for name, content in before.items() if not name.endswith(LOCK)} == snapshot(Path())
    finish(TrainingSession.resume(Path("old.model")))
    finish(start_session([text], Path("alone.model"), **TINY, seed=2))
    assert outcome(Path("old.model")) == outcome(Path("alone.model"))


def test_a_damaged_corpus_replaces_no_model(text):
    finish(start_session([text], Path("text.model"), **TINY))
    shutil.copytree("text.model/corpus", "text.ids")
    content = bytearray(Path("text.ids/train.npy").read_bytes())
    content[-2] ^= 1
    Path("text.ids/train.npy").write_bytes(content)
    before = outcome(Path("text.model"))
    with pytest.raises(FflmError, match="wrong sha256"):
        start_session([Path("text.ids")], Path("text.model"), overwrite=True, **TINY)
    assert outcome(Path("text.model")) == before


def test_a_model_that_is_replaced_while_it_is_loaded(text, monkeypatch):
    for name in ("text", "other"):
        finish(start_session([text], Path(f"{name}.model"), **{**TINY, "epochs": 1, "seed": len(name)}))
    real = neural_model.load_weights

    def load_weights(*arguments):
        Path("text.model").rename("old.model")
        Path("other.model").rename("text.model")
        return real(*arguments)

    monkeypatch.setattr(neural_model, "load_weights", load_weights)
    with pytest.raises(FflmError, match=r"text\.model was replaced while it was read: try again"):
        library.load("text.model")


def test_the_latest_model_is_found_while_another_is_replaced(text, monkeypatch):
    for name in ("a", "b"):
        finish(start_session([text], Path(f"{name}.model"), **{**TINY, "epochs": 1}))
    real, seen = Path.stat, []

    def stat(self, **options):
        if self == Path("b.model", WEIGHTS):
            if seen:
                raise FileNotFoundError(self)
            seen.append(self)
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert latest_model(Path(), str, "network") == (Path("a.model"), "a.model")
    assert seen


def test_the_latest_model_is_the_one_whose_weights_are(text):
    for name in ("b", "a"):
        finish(start_session([text], Path(f"{name}.model"), **{**TINY, "epochs": 1}))
    start_session([text], Path("unfinished.model"), **TINY)
    assert latest_model(Path(), str, "network") == (Path("a.model"), "a.model")
    os.utime("b.model/model.safetensors")
    assert latest_model(Path(), str, "network") == (Path("b.model"), "b.model")
    with pytest.raises(FflmError, match=r"before the first evaluation: resume it with .*resume\('unfinished\.model'\)`"):
        library.load("unfinished.model")


# Interruption and resumption


@pytest.mark.parametrize("pace", [1, 5, 12])
def test_a_run_in_pieces_is_the_whole_run(text, pace):
    finish(start_session([text], Path("whole.model"), **SETTINGS))
    run = start_session([text], Path("pieces.model"), **SETTINGS)
    pieces = 0
    while not run.trainer.state.finished:
        list(itertools.islice(run.events(), pace))
        run.save()
        run = TrainingSession.resume(run.path)
        pieces += 1
    finish(run)
    assert pieces > 2
    assert outcome(Path("pieces.model")) == outcome(Path("whole.model"))


def test_a_finished_run_stays_as_it_is(text):
    finish(start_session([text], Path("text.model"), **SETTINGS))
    before = outcome(Path("text.model"))
    finish(TrainingSession.resume(Path("text.model")))
    assert outcome(Path("text.model")) == before


def test_more_epochs(text):
    settings = {**SETTINGS, "schedule": "constant"}
    finish(start_session([text], Path("whole.model"), **{**settings, "epochs": 5}))
    run = start_session([text], Path("text.model"), **{**settings, "epochs": 2})
    finish(run)
    with pytest.raises(FflmError, match="2 epochs are done already"):
        TrainingSession.resume(run.path, epochs=1)
    assert TrainingSession.resume(run.path).trainer.state.finished
    finish(TrainingSession.resume(run.path, epochs=5))
    assert outcome(run.path) == outcome(Path("whole.model"))
    assert library.load(run.path).about["training"]["epochs"] == 5


@pytest.mark.parametrize("written", ["the checkpoint", "the checkpoint and config.json"])
def test_more_epochs_are_not_lost_by_a_kill(text, monkeypatch, written):
    settings = {**SETTINGS, "schedule": "constant"}
    finish(start_session([text], Path("whole.model"), **{**settings, "epochs": 5}))
    finish(start_session([text], Path("text.model"), **{**settings, "epochs": 2}))
    with monkeypatch.context() as patch:
        stage = "write_json" if written == "the checkpoint" else "remove_leftovers"  # what comes next

        def die(*arguments):
            raise KeyboardInterrupt

        patch.setattr(session, stage, die)
        with pytest.raises(KeyboardInterrupt):
            TrainingSession.resume(Path("text.model"), epochs=5)
    finish(TrainingSession.resume(Path("text.model")))
    assert outcome(Path("text.model")) == outcome(Path("whole.model"))
    assert library.load("text.model").about["training"]["epochs"] == 5


@pytest.mark.parametrize("again", [{}, {"epochs": 5}])
def test_a_run_of_an_early_version_goes_on_though_only_its_configuration_has_the_new_epochs(text, again):
    """Its checkpoint says neither how many epochs there are to be nor on what device, and it was killed before the next one."""
    settings = {**SETTINGS, "schedule": "constant"}
    finish(start_session([text], Path("whole.model"), **{**settings, "epochs": 5}))
    finish(start_session([text], Path("text.model"), **{**settings, "epochs": 2}))
    arrays, about = load_arrays(Path("text.model") / CHECKPOINT)
    save_arrays(Path("text.model") / CHECKPOINT, arrays, {name: about[name] for name in ("state", "corpus")})
    before = (Path("text.model") / CHECKPOINT).read_bytes()
    TrainingSession.resume(Path("text.model"))
    assert (Path("text.model") / CHECKPOINT).read_bytes() == before
    config = json.loads((Path("text.model") / CONFIG).read_text())
    write_json(Path("text.model") / CONFIG, {**config, "training": {**config["training"], "epochs": 5}})
    finish(TrainingSession.resume(Path("text.model"), **again))
    assert outcome(Path("text.model")) == outcome(Path("whole.model"))


def test_more_epochs_after_an_early_stop(text):
    run = start_session([text], Path("text.model"), **{**TINY, "epochs": 50, "patience": 2, "rate": 0.1, "schedule": "constant"})
    finish(run)
    stopped = run.trainer.state.epoch
    assert "no better for 2 evaluations" in run.trainer.state.finished
    finish(run := TrainingSession.resume(run.path, epochs=51))
    assert stopped + 2 <= run.trainer.state.epoch <= 51


LONG = [*SMALL, "--epochs", 150, "--patience", 0, "--embedding-dropout", 0.1, "--test", "10%"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what the long run leaves if nobody interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    result = fflm("train", "text.txt", *LONG, folder=folder)
    assert result.returncode == 0, result.stderr
    return outcome(folder / "text.model")


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGHUP, marks=pytest.mark.slow)],
)
def test_signals_save_and_say_how_to_go_on(text, whole, number):
    command = [FFLM, "train", text, *map(str, LONG)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stderr.readline().startswith("epoch"):  # the head of the table, above its first row
            assert process.poll() is None
        process.stderr.readline()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "stopped and saved; resume with: fflm train --resume text.model"
    assert "Traceback" not in stderr
    assert 0 < load_arrays(Path("text.model") / CHECKPOINT)[1]["state"]["epoch"] < 150
    result = fflm("train", "--resume", "text.model", folder=".")
    assert result.returncode == 0, result.stderr
    assert outcome(Path("text.model")) == whole


@pytest.mark.slow
def test_signals_that_were_ignored_when_the_process_began_stay_ignored(text):
    """SIGHUP as `nohup` has it, and SIGINT, which a shell has its scripts' background jobs ignore."""

    def ignore():
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    command = [FFLM, "train", text, *map(str, LONG)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=ignore) as process:
        while not process.stderr.readline().startswith("epoch"):
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1].splitlines()[-1].startswith("stopped and saved; ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a terminal is made as Linux does it")
def test_a_terminal_that_is_closed_saves(text):
    master, terminal = os.openpty()
    command = [FFLM, "train", text, *map(str, LONG), "-q"]
    with subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(terminal)
        while not Path("text.model", WEIGHTS).exists():
            assert process.poll() is None
        os.close(master)
        process.wait(60)
    state = load_arrays(Path("text.model") / CHECKPOINT)[1]["state"]
    assert 0 < state["epoch"] < 150
    evaluated = [event["step"] for event in read_log(Path("text.model") / LOG, EVENTS) if event["event"] == "evaluation"]
    assert state["step"] >= evaluated[-1]
    assert {path.name for path in Path("text.model").iterdir()} == {CONFIG, WEIGHTS, VOCABULARY, LOG, CHECKPOINT, "corpus"}


INTERRUPTED = """
import signal, sys
from fflm.cli import main
from fflm.training.trainer import Trainer

steps, last = Trainer.run, int(sys.argv[1])

def run(trainer):
    if not last:
        signal.raise_signal(signal.SIGTERM)
    for step, event in enumerate(steps(trainer), 1):
        if step == last:
            signal.raise_signal(signal.SIGTERM)
        yield event

Trainer.run = run
main(sys.argv[2:])
"""
"""Gets a signal after so many steps."""


@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_that_is_interrupted_before_its_first_evaluation_does_not_replace_a_model(text, steps):
    assert fflm("train", text, *SMALL, "--epochs", 1, folder=".").returncode == 0
    before = snapshot(Path())
    command = [sys.executable, "-c", INTERRUPTED, str(steps), "train", str(text), *SMALL, "--overwrite"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == "stopped before there were new weights; text.model is as it was"
    assert snapshot(Path()) == before


class Deaf(TrainingSession):
    """A run in which the exception that a signal raises before the first step is swallowed, as in a callback of the compiler."""

    def events(self):
        """Raise the signal."""
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        yield from super().events()


def test_a_signal_before_the_first_step_is_not_lost(text):
    start_session([text], Path("text.model"), **TINY)
    assert not watch(Deaf.resume(Path("text.model")), Console(quiet=True), VIEW)
    assert load_arrays(Path("text.model") / CHECKPOINT)[1]["state"]["step"] == 1


def test_a_signal_before_the_run_is_not_lost(text):
    start_session([text], Path("text.model"), **TINY)
    with interruption():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            watch(TrainingSession.resume(Path("text.model")), Console(quiet=True), VIEW)


class Signalled(TrainingSession):
    """A run that gets signals at its fifth step."""

    signals = 1

    def events(self):
        """Raise the signals before the event is seen."""
        for event in super().events():
            if event.step == 5:
                for _ in range(self.signals):
                    signal.raise_signal(signal.SIGINT)
            yield event


def test_a_signal_is_heeded_at_once(text):
    start_session([text], Path("text.model"), **TINY)
    assert not watch(Signalled.resume(Path("text.model")), Console(quiet=True), VIEW)
    assert load_arrays(Path("text.model") / CHECKPOINT)[1]["state"]["step"] == 5


def test_a_second_signal_does_not_wait(text):
    before = signal.getsignal(signal.SIGINT)
    start_session([text], Path("text.model"), **TINY)
    run = Signalled.resume(Path("text.model"))
    run.signals = 2
    with pytest.raises(KeyboardInterrupt):
        watch(run, Console(quiet=True), VIEW)
    assert signal.getsignal(signal.SIGINT) is before


class CtrlC:
    """A callback that gets Ctrl-C at a step, and counts the kinds of events."""

    def __init__(self, step):
        self.step, self.events = step, Counter()

    def __call__(self, session, event):
        """Count the event, and raise the signal if it is time."""
        self.events[type(event).__name__] += 1
        if isinstance(event, Step) and event.step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_python_saves_and_resuming_ends_with_the_same_bits(text):
    whole = CtrlC(None)
    library.train(text, "whole.model", callback=whole, **SETTINGS)
    before = signal.getsignal(signal.SIGINT)
    interrupted = CtrlC(5)
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved: `fflm\.resume\('text\.model'\)` resumes training"):
        library.train(text, "text.model", callback=interrupted, **SETTINGS)
    assert signal.getsignal(signal.SIGINT) is before
    resumed, last = CtrlC(whole.events["Step"] // 2), CtrlC(None)
    with pytest.raises(KeyboardInterrupt):
        library.resume("text.model", callback=resumed)
    model = library.resume("text.model", callback=last)
    assert model.about["figures"]["valid"] == library.load("whole.model").about["figures"]["valid"]
    assert outcome(Path("text.model")) == outcome(Path("whole.model"))
    assert interrupted.events == {"Step": 6}
    assert interrupted.events["Step"] + resumed.events["Step"] + last.events["Step"] == whole.events["Step"]
    assert last.events["Tested"] == whole.events["Tested"] == 1


def test_ctrl_c_in_python_keeps_the_model_that_is_to_be_replaced(text):
    library.train(text, "text.model", **TINY)
    before = snapshot(Path())
    with pytest.raises(KeyboardInterrupt, match=r"text\.model is as it was"):
        library.train(text, "text.model", overwrite=True, callback=CtrlC(2), **{**TINY, "seed": 2})
    assert snapshot(Path()) == before


def test_a_program_that_handles_ctrl_c_itself_keeps_its_handler(text):
    seen = []
    own = lambda *_: seen.append(signal.getsignal(signal.SIGINT))  # noqa: E731
    before = signal.signal(signal.SIGINT, own)
    try:
        library.train(text, "text.model", callback=CtrlC(2), **TINY)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [own]


def test_training_in_a_thread(text):
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(library.train, text, "text.model", **TINY).result()
    assert outcome(Path("text.model"))[1]["step"] == model.about["figures"]["step"]


def test_more_epochs_in_python(text):
    library.train(text, "text.model", **{**TINY, "epochs": 1, "patience": 0})
    assert library.resume("text.model", epochs=2).about["training"]["epochs"] == 2
    assert json.loads(Path("text.model", CONFIG).read_text())["training"]["epochs"] == 2


def test_verbose_training_prints_a_line_for_each_evaluation(text, capsys):
    library.train(text, "text.model", verbose=True, **SETTINGS)
    lines = capsys.readouterr().out.splitlines()
    number = r"[\d,.]+"
    evaluation = rf"train loss {number}; valid: loss {number}, perplexity {number}( \(best so far\))?; {number} examples/s"
    for epoch, line in enumerate(lines[:3], 1):
        assert re.fullmatch(rf"epoch {epoch}/3, step {number}: {evaluation}", line)
    figures = library.load("text.model").about["figures"]
    assert f"perplexity {figures['valid']['perplexity']:,.4f} (best so far)" in "".join(lines)
    assert re.fullmatch(rf"finished at step {number}: all 3 epochs done", lines[3])
    assert lines[4:] == [f"test: loss {figures['test']['loss']:.4f}, perplexity {figures['test']['perplexity']:,.4f}"]


def test_verbose_training_prints_a_line_a_minute(text, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    library.train(text, "text.model", verbose=True, **{**TINY, "epochs": 1})
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"epoch 1/1, step 1: train loss [\d.]+; [\d,]+ examples/s", lines[0])


def test_what_cannot_be_resumed(text):
    library.train_ngram(text, "text.ngram", order=2)
    with pytest.raises(FflmError, match=r"text\.ngram is not a network or a text classifier: only their training can be resumed"):
        library.resume("text.ngram")
    with pytest.raises(FflmError, match=r"none\.model is not a model"):
        library.resume("none.model")


def test_a_signal_before_the_run_leaves_nothing(text):
    with subprocess.Popen([FFLM, "train", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdin.write("some words\n" * 100_000)  # it reads, so it has started
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.strip()) == (130, "error: interrupted")
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


@pytest.mark.slow
def test_kills_at_random_moments(text, whole):
    generator = random.Random(5)
    start = ["train", str(text), *map(str, LONG), "--save-every", "0"]
    for _ in range(4):
        arguments = ["train", "--resume", "text.model", "--save-every", "0"] if Path("text.model").exists() else start
        with subprocess.Popen([FFLM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not Path("text.model").exists():
                assert process.poll() is None
                time.sleep(0.02)
            try:
                process.wait(generator.uniform(0, 1.5))
            except subprocess.TimeoutExpired:
                process.kill()
    result = fflm("train", "--resume", "text.model", folder=".")
    assert result.returncode == 0, result.stderr
    assert outcome(Path("text.model")) == whole


def test_a_checkpoint_of_other_data_is_refused(text):
    finish(start_session([text], Path("text.model"), **TINY))
    path, about = Path("text.model") / CHECKPOINT, json.loads((Path("text.model") / CONFIG).read_text())
    config = meaning(about, training=True)
    dataclasses.replace(Checkpoint.load(path, config), corpus="other").save(path, config)
    with pytest.raises(FflmError, match=r"text\.model was trained on other data: resume with that"):
        TrainingSession.resume(Path("text.model"), epochs=4)


KILLED = """
import os, sys
from pathlib import Path
from fflm.models.neural.train import TrainingSession, start_session
from fflm.text.holdout import Share

left = int(sys.argv[1])

def die_at_a_rename(event, arguments):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os._exit(9)

sys.addaudithook(die_at_a_rename)
path = Path("text.model")
settings = dict(embedding=6, hidden=(8,), batch_size=64, window=3, epochs=3, rate=0.02, test=Share(0.1), embedding_dropout=0.1)
run = TrainingSession.resume(path) if path.exists() else start_session([Path("text.txt")], path, **settings)
run.save_seconds = 0
for _ in run.events():
    pass
"""


@pytest.mark.slow
def test_kills_just_before_files_are_replaced(text):
    finish(start_session([text], Path("whole.model"), **SETTINGS))
    deaths = 0
    for left in (1, 3, 6, 2, 9, 4, 100):
        result = subprocess.run([sys.executable, "-c", KILLED, str(left)], capture_output=True, text=True, check=False)
        assert result.returncode in (0, 9), result.stderr
        deaths += result.returncode == 9
    assert deaths >= 5
    assert result.returncode == 0
    assert outcome(Path("text.model")) == outcome(Path("whole.model"))


def test_divergence_goes_back_with_half_the_rate(text):
    run = start_session([text], Path("text.model"), **{**TINY, "schedule": "constant", "patience": 0})
    back = []
    for event in run.events():
        if isinstance(event, Evaluation) and len(back) < 2:
            run.trainer.parameters.output_bias[0] = np.nan
        elif isinstance(event, RolledBack):
            back.append((event.step, event.factor))
    assert back[0][1] == 0.5
    assert back[1] == (2 * back[0][0], 0.25)
    model = library.load("text.model")
    assert all(np.isfinite(array).all() for array in model.parameters)
    log = read_log(run.path / LOG, EVENTS)
    assert [event["rate"] for event in log if event["event"] == "evaluation"] == [0.02, 0.01, 0.005]
    assert sum(event["event"] == "rolled back" for event in log) == 2


def test_divergence_in_the_end_gives_up(text):
    result = fflm("train", text, *SMALL, "--rate", 1e9, "--optimizer", "sgd", "--clip", 0, folder=".")
    assert result.returncode == 1
    assert result.stderr.count("back to step") == 5
    assert re.fullmatch(
        r"error: training does not converge: .*; try a lower --rate, or a smaller --clip", result.stderr.splitlines()[-1]
    )


# What is not resumed


@pytest.fixture
def stopped(text):
    """Begin a run on a tokenized folder and stop it after some events."""
    assert fflm("tokenize", text, "-o", "text.ids", folder=".").returncode == 0
    run = start_session([Path("text.ids")], Path("text.model"), **TINY)
    list(itertools.islice(run.events(), 15))
    run.save()
    return run.path


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (STORIES[:2500], (), "another vocabulary"),
        (STORIES, ("--lowercase",), "the text is read differently"),
        (STORIES, ("--valid", "10%", "--vocabulary", "words.txt"), "another train text"),
        (STORIES, ("--vocabulary-source", "all", "--max-size", "50"), "another vocabulary"),
        (STORIES.replace(" the ", " and "), ("--vocabulary", "words.txt"), "the text or the vocabulary has changed"),
    ],
)
def test_other_data_is_refused_with_the_reason(stopped, content, options, reason):
    words = [line.split("\t")[0] for line in Path("text.ids/vocabulary.tsv").read_text().splitlines()]
    Path("words.txt").write_text("\n".join(words))
    Path("text.txt").write_text(content, encoding="utf-8")
    assert fflm("tokenize", "text.txt", "-o", "text.ids", "--overwrite", *options, folder=".").returncode == 0
    before = outcome_files(stopped)
    result = fflm("train", "--resume", stopped, folder=".")
    assert result.returncode == 1
    assert re.search(rf"^error: text.model was trained on other data \({reason}", result.stderr)
    assert outcome_files(stopped) == before


def outcome_files(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def test_swapped_words_are_damage(stopped):
    path = Path("text.ids/vocabulary.tsv")
    lines = path.read_text().splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    path.write_text("".join(lines))
    with pytest.raises(FflmError, match="its words or their order have changed"):
        TrainingSession.resume(stopped)


def test_changed_ids_are_damage(stopped):
    path = Path("text.ids/train.npy")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FflmError, match="wrong sha256"):
        TrainingSession.resume(stopped)


def test_a_missing_corpus(stopped):
    shutil.rmtree("text.ids")
    with pytest.raises(FflmError, match=r"text\.ids is not a tokenized corpus"):
        TrainingSession.resume(stopped)


def test_a_model_and_its_corpus_are_moved_together(stopped):
    Path("one").mkdir()
    for name in ("text.ids", "text.model"):
        Path(name).rename(f"one/{name}")
    assert library.train_ngram("one/text.model", "one/text.ngram", order=2).about["corpus"]["path"] == "../text.ids"
    library.mix(["one/text.model", "one/text.ngram"]).save("one/text.mix")
    Path("one").rename("two")
    for name in ("text.model", "text.ngram", "text.mix"):
        assert trained_corpus(Path("two", name)).path == Path("two/text.ids")
    assert list(library.load("two/text.mix").components) == ["two/text.model", "two/text.ngram"]
    finish(TrainingSession.resume(Path("two/text.model")))


def test_a_model_that_is_moved_alone_finds_its_corpus(stopped):
    """Even where another corpus lies at the relative path."""
    Path("elsewhere").mkdir()
    stopped = stopped.rename("elsewhere/text.model")
    assert trained_corpus(stopped).path == Path("text.ids").resolve()
    assert fflm("tokenize", "text.txt", "-o", "elsewhere/text.ids", "--lowercase", folder=".").returncode == 0
    finish(TrainingSession.resume(stopped))


def test_a_corpus_that_only_an_absolute_path_leads_to(stopped):
    """As early versions wrote it."""
    config = json.loads((stopped / CONFIG).read_text())
    reference = {**config["corpus"], "path": config["corpus"].pop("absolute")}
    write_json(stopped / CONFIG, {**config, "corpus": reference})
    finish(TrainingSession.resume(stopped))
    assert trained_corpus(stopped).path == Path("text.ids").resolve()


def test_a_damaged_or_missing_checkpoint(stopped):
    path = stopped / CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(FflmError, match="damaged"):
        TrainingSession.resume(stopped)
    path.unlink()
    with pytest.raises(FflmError, match="to resume from: train again with `overwrite=True`"):
        TrainingSession.resume(stopped)


def test_a_run_that_is_whole_is_resumed(stopped):
    """The runs above are refused for what was done to them, not for anything else."""
    finish(TrainingSession.resume(stopped))
    assert library.load(stopped).about["figures"]["epoch"] == 3
