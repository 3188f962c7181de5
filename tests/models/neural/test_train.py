"""Training sessions on real text: files, interruption and resumption, from Python and with the command."""

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
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command import FFLM, SMALL, STORIES, fflm, snapshot
from processes import exit_status_of_fork
from rich.console import Console

import fflm as library
from fflm import progress
from fflm.arrays import CHECKPOINT, CONFIG, LOG, WEIGHTS, load_arrays, meaning, save_arrays
from fflm.backend.protocol import ACTIVATIONS
from fflm.cli.progress import watch
from fflm.cli.train import VIEW
from fflm.errors import FflmError, FflmWarning
from fflm.files import LOCK, write_json
from fflm.models.corpora import trained_corpus
from fflm.models.creation import model_path
from fflm.models.description import EVENTS
from fflm.models.folder import VOCABULARY, WORDS, latest_model
from fflm.models.neural import model as neural_model
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.train import (
    PRESETS,
    TrainingSession,
    default_affixes,
    default_averages,
    default_batch_size,
    default_dropout,
    default_embedding_dropout,
    default_epochs,
    default_loss,
    default_weight_decay,
    default_window,
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
from fflm.training import session
from fflm.training.checkpoints import Checkpoint
from fflm.training.events import Evaluation, RolledBack, Step
from fflm.training.log import read_log

TINY = {"embedding": 6, "hidden": (8,), "batch_size": 64, "window": 3, "epochs": 3, "rate": 0.02}
SETTINGS = {**TINY, "test": Share(0.1), "embedding_dropout": 0.1}


def finish(run):
    return list(run.events())


def training_result(path):
    """Return the weights, figures, checkpoint and log that a session has saved, without times."""
    weights, figures = load_arrays(path / WEIGHTS)
    checkpoint, about = load_arrays(path / CHECKPOINT)
    state = {name: value for name, value in about["state"].items() if name not in ("seconds", "log_bytes")}
    log = [{k: v for k, v in event.items() if k not in ("seconds", "words_per_second")} for event in read_log(path / LOG, EVENTS)]
    arrays = {name: array.tobytes() for name, array in [*weights.items(), *checkpoint.items()]}
    assert not list(path.glob("*.tmp")) + list(path.glob(".*.tmp"))
    return arrays, figures, state, log


# From a text to a model.


def test_training_saves_model_with_its_figures(text):
    run = start_session([text], Path("text.model"), **SETTINGS)
    events = finish(run)
    assert {path.name for path in run.path.iterdir()} == {CONFIG, WEIGHTS, VOCABULARY, WORDS, LOG, CHECKPOINT, "corpus"}
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


def test_train_and_load_from_python(text):
    model = library.train(text, **TINY)
    assert isinstance(model, NeuralModel)
    again = library.load("text.model")
    contexts = np.zeros((2, model.window), np.int32)
    np.testing.assert_array_equal(model.log_probabilities(contexts), again.log_probabilities(contexts))
    np.testing.assert_allclose(np.exp(again.log_probabilities(contexts)).sum(1), 1, rtol=1e-5)
    with pytest.raises(FflmError, match="unknown setting 'nonsense'"):
        library.train(text, "other.model", nonsense=1)


def test_same_seed_gives_same_model(text):
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finish(start_session([text], Path(f"{name}.model"), **SETTINGS, seed=seed))
        results.append(training_result(Path(f"{name}.model")))
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
        {"affixes": True},
        {"affixes": True, "loss": "sampled", "samples": 9, "tied": False},
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
def test_every_setting_trains(text, fields):
    finish(start_session([text], Path("text.model"), **{**TINY, "epochs": 1, **fields}))
    model = library.load("text.model")
    assert all(np.isfinite(array).all() for array in model.parameters)
    assert model.about["figures"]["valid"]["loss"] < 1.3 * np.log(len(model.vocabulary))


def test_loss_nce_with_settings_of_other_losses_is_refused(text):
    settings = {**TINY, "loss": "nce", "samples": 4, "self_normalise": 0.1}
    with pytest.raises(FflmError, match="`self_normalise` has no effect without a loss other than nce, or `exact_end`: leave"):
        start_session([text], Path("text.model"), **settings)
    assert not Path("text.model").exists()
    start_session([text], Path("text.model"), exact_end=0.5, **settings)


@pytest.mark.parametrize(
    "setting",
    [
        {"momentum": 0.5},
        {"nesterov": True},
        {"optimizer": "sgd", "nesterov": True},
        {"decay": 0.3},
        {"schedule": "constant", "warmup": 0.1},
        {"loss": "exact", "samples": 100},
        {"loss": "exact", "exact_end": 0.5},
        {"negative_slope": 0.3},
        {"teacher_weight": 0.5},
    ],
    ids=str,
)
def test_setting_without_effect_is_refused(text, setting):
    *_, name = setting
    with pytest.raises(FflmError, match=f"`{name}` has no effect without"):
        library.train(text, "text.model", **TINY, **setting)
    assert not Path("text.model").exists()


def test_adaptive_softmax_with_sampled_loss_is_refused(text):
    with pytest.raises(FflmError, match="leave out `bands`"):
        start_session([text], Path("text.model"), **TINY, bands=(5,), tied=False, loss="sampled")


def test_smallest_and_largest_batch_size(text):
    for size, steps in ((1, None), (10**6, 1)):
        run = start_session([text], Path("text.model"), overwrite=True, **{**TINY, "batch_size": size, "epochs": 1})
        assert run.trainer.batches == (steps or len(run.trainer.train))
        finish(run)


def test_default_batch_size_depends_on_text_size():
    sizes = [default_batch_size(words, 1000) for words in range(1, 10**6, 9999)]
    assert sizes == sorted(sizes)
    assert default_batch_size(800_000, 300_000) < default_batch_size(800_000, 18_000) <= sizes[-1]
    assert all(size & (size - 1) == 0 for size in sizes)


def test_default_dropout_depends_on_text_size_and_on_adversarial_noise(text):
    cases = [(300_000, 0.01), (300_001, 0.01), (1_000_001, 0.01), (1_000_001, 0.0)]
    assert [default_dropout(*each) for each in cases] == [0.4, 0.1, 0.0, 0.4]
    assert [default_embedding_dropout(*each) for each in cases] == [0.2, 0.3, 0.1, 0.2]
    text.write_text("a b c d\n" * 70_000)
    for loss, dropout in (("sampled", 0.1), ("nce", 0.4)):
        assert start_session([text], Path(f"{loss}.model"), loss=loss, samples=2).trainer.network.config.dropout == dropout


def test_default_weight_decay_remembers_equally_many_epochs_of_large_texts(text):
    decays = np.array([default_weight_decay(words) for words in (1, 1_000_000, 2_000_000, 50_000_000)])
    np.testing.assert_allclose(decays, [0.2, 0.2, 0.1, 0.004])
    for given, wanted in ((None, 0.2), (0.3, 0.3)):
        run = start_session([text], Path("text.model"), overwrite=True, weight_decay=given, **TINY)
        assert run.trainer.settings.weight_decay == wanted


def test_affixes_are_shared_in_large_vocabularies_by_embeddings_that_are_trained_and_tied(text):
    cases = [(2000, True, False), (2001, True, False), (2001, False, False), (2001, True, True)]
    assert [default_affixes(*each) for each in cases] == [False, True, False, False]
    words = [chr(number) for number in range(0x4E00, 0x4E00 + 2500)]  # without case, and too short for affixes
    for name, more, count in (("text", "go Go", 1), ("other", "", 0)):
        text.write_text(f"{' '.join(words)} {more}\n" * 3, encoding="utf-8")
        trainer = start_session([text], Path(f"{name}.model"), **TINY).trainer
        assert trainer.settings.affixes
        assert (0 if trainer.parameters.affixes is None else len(trainer.parameters.affixes)) == count
    assert not start_session([text], Path("untied.model"), **TINY, tied=False).trainer.settings.affixes


def test_frozen_embeddings_have_no_affixes(text):
    finish(start_session([text], Path("first.model"), **TINY))
    with pytest.raises(FflmError, match="leave out `affixes`, or `frozen`"):
        start_session([text], Path("text.model"), initial=Path("first.model"), frozen=True, affixes=True)


def test_trained_network_with_affixes_is_one_without(text):
    """The sums of vectors are its embeddings, which predict the validation text as well as the trainer did."""
    run = start_session([text], Path("text.model"), **TINY, affixes=True)
    finish(run)
    model = library.load("text.model", verify=True)
    sums = run.trainer.network_parameters().embeddings
    assert not np.array_equal(sums, run.trainer.parameters.embeddings)
    assert np.array_equal(model.parameters.embeddings, sums)
    assert model.parameters.affixes is None
    score = score_part(model, Corpus.open(Path("text.model/corpus")).parts["valid"])
    assert score.loss == pytest.approx(model.about["figures"]["valid"]["loss"], rel=1e-5)
    again = start_session([text], Path("again.model"), initial=Path("text.model"), epochs=1)
    assert np.array_equal(again.trainer.network_parameters().embeddings, sums)


def test_default_epochs_depend_on_text_size(text):
    epochs = [default_epochs(words) for words in (1, 10**5, 10**6, 10**7, 10**9)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[-1] >= 1
    fields = {name: value for name, value in TINY.items() if name not in ("epochs", "batch_size")}
    chosen = start_session([text], Path("chosen.model"), **fields).trainer.settings
    assert (chosen.epochs, chosen.batch_size) == (epochs[0], 64)


def test_default_loss_depends_on_vocabulary_size(text):
    assert [default_loss(words) for words in (10, 3000, 18_000)] == ["exact", "exact", "sampled"]
    for given, wanted in ((None, "exact"), ("nce", "nce")):
        run = start_session([text], Path("text.model"), overwrite=True, loss=given, **TINY)
        assert run.trainer.settings.loss == wanted


def test_default_context_depends_on_text_size(text):
    assert default_averages(10**5) == ()
    assert default_averages(10**6) > ()
    assert default_window(default_averages(10**6)) < default_window(())
    small = {name: value for name, value in TINY.items() if name != "window"}
    Path("large.txt").write_text("a b c d\n" * 70_000, encoding="utf-8")
    cases = [(text, {}, 8, ()), (text, {"window": 5, "averages": (2, 5)}, 5, (2, 5)), ("large.txt", {}, 4, (4, 16, 64, 256))]
    cases.append(("large.txt", {"averages": (), "tied": False}, 8, ()))
    for source, given, window, averages in cases:
        config = start_session([source], Path("text.model"), overwrite=True, **given, **small).trainer.network.config
        assert (config.window, config.averages) == (window, averages)
        assert config.direct == (source == "large.txt" and config.tied)


def test_adversarial_noise_depends_on_the_loss(text):
    for given, adversarial in (({}, 0.01), ({"loss": "nce"}, 0.0), ({"adversarial": 0.2}, 0.2)):
        trainer = start_session([text], Path("text.model"), overwrite=True, **given, **TINY).trainer
        assert trainer.settings.adversarial == adversarial


@pytest.mark.parametrize("preset", ["default", "quick", "bengio2003"])
def test_presets_set_defaults(preset, text):
    run = start_session([text], Path("own.model"), preset=preset, hidden=(7,))
    wanted = {"hidden": (7,), **{name: value for name, value in PRESETS[preset].items() if name != "hidden"}}
    found = vars(run.trainer.network.config) | vars(run.trainer.settings)
    assert {name: found[name] for name in wanted} == wanted
    short = {} if preset == "quick" else {"epochs": 1}  # the others train for many epochs
    options = [each for name, value in short.items() for each in (f"--{name}", value)]
    result = fflm("train", text, "-o", "other.model", "-q", "--preset", preset, "--hidden", 7, *options, folder=Path())
    assert result.returncode == 0, result.stderr
    stored = [json.loads((Path(name) / CONFIG).read_text()) for name in ("own.model", "other.model")]
    assert [each["network"] for each in stored] == [stored[0]["network"]] * 2
    assert stored[1]["training"] == {**stored[0]["training"], **short}


def test_unknown_preset_is_refused(text):
    with pytest.raises(FflmError, match="`preset` must be one of bengio2003, default, quick, not 'fast'"):
        start_session([text], Path("own.model"), preset="fast")


def test_default_path_is_named_after_text():
    assert model_path(None, (Path("corpora/stories.txt"), Path("x"))) == Path("stories.model")
    assert model_path(None, (Path("-"),)) == Path("stdin.model")
    assert model_path(None, (Path("a/.hidden"),)) == Path(".hidden.model")


# With the command.


def test_all_sources_of_text_give_same_model(text):
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


def test_training_on_a_model_uses_its_corpus(text):
    finish(start_session([text], Path("text.model"), **TINY, min_count=3))
    run = start_session([Path("text.model")], Path("other.model"), **TINY, seed=2)
    assert run.corpus.path.resolve() == Path("text.model/corpus").resolve()
    assert run.corpus.fingerprint == library.load("text.model").about["corpus"]["fingerprint"]
    with pytest.raises(FflmError, match=r"fflm\.resume\('text\.model'\)"):
        start_session([Path("text.model")], Path("text.model"), **TINY)
    result = fflm("train", "text.model", "-o", "third.model", "--min-count", 1, folder=".")
    assert "leave out --min-count" in result.stderr


def test_text_options_with_tokenized_text_are_refused(text):
    assert fflm("tokenize", text, "-o", "text.ids", folder=".").returncode == 0
    result = fflm("train", "text.ids", "--min-count", 1, "--vocabulary", "words.txt", folder=".")
    assert result.returncode == 2
    assert "tokenized already: leave out --min-count, --vocabulary" in result.stderr


@pytest.mark.parametrize("options", [("--valid", "0"), ("--valid", "0", "--test", "10%")], ids=" ".join)
def test_training_without_validation(text, options):
    result = fflm("train", text, *SMALL, "--epochs", 2, "--patience", 1, *options, folder=".")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stderr.splitlines() if line.strip()[:1].isdigit()]
    assert [row[3] for row in rows] == ["-", "-"]  # in the column of validation perplexities
    about = library.load("text.model").about
    assert about["corpus"]["parts"].keys() == {"train"} | ({"test"} if "--test" in options else set())
    assert about["figures"]["epoch"] == 2
    assert fflm("info", folder=".").returncode == 0


def test_training_stopped_in_first_epoch_saves_usable_model(text):
    run = start_session([text], Path("text.model"), epochs=1, embedding=6, hidden=(8,), window=3, batch_size=64)
    event = next(run.events())
    run.save()
    assert isinstance(event, Step)
    with pytest.warns(
        FflmWarning, match=r"text\.model is hardly trained, .*: resume its training with `fflm\.resume\('text\.model'\)`"
    ):
        model = library.load("text.model")
    assert model.about["figures"].keys() == {"step", "epoch"}
    assert 0 < model.about["figures"]["epoch"] < 1
    shown = fflm("generate", "--length", 2, folder=".")
    assert shown.returncode == 0
    assert shown.stderr.count("warning: text.model is hardly trained") == 1
    assert "resume its training with `fflm train --resume text.model`\n" in shown.stderr
    for _ in run.events():
        pass
    assert "valid" in library.load("text.model").about["figures"]


def test_model_is_replaced_only_with_overwrite(text):
    options = ("train", text, *SMALL, "--epochs", 1)
    assert fflm(*options, folder=".").returncode == 0
    before = training_result(Path("text.model"))
    refused = fflm(*options, folder=".")
    assert refused.returncode == 1
    assert "--overwrite replaces it" in refused.stderr
    assert training_result(Path("text.model")) == before
    assert fflm(*options, "--overwrite", "--seed", 2, folder=".").returncode == 0
    assert training_result(Path("text.model"))[0] != before[0]
    assert sorted(path.name for path in Path().iterdir()) == ["text.model", "text.txt"]


def test_old_model_is_kept_until_new_one_has_weights(text):
    finish(start_session([text], Path("text.model"), **TINY))
    before, place = training_result(Path("text.model")), Path("text.model").stat().st_ino
    run = start_session([text], Path("text.model"), overwrite=True, **TINY, seed=2)
    run.save()  # there are no new weights yet
    assert not run.published
    assert run.path == Path("text.model")
    assert training_result(run.path) == before
    with pytest.raises(FflmError, match=r"already training in text\.model"):
        start_session([text], Path("text.model"), overwrite=True, **TINY)
    events = run.events()
    next(events)
    assert (run.published, training_result(run.path)) == (False, before)
    run.save()
    assert run.published
    with pytest.warns(FflmWarning, match="hardly trained"):
        model = library.load("text.model")
    assert model.about["figures"] == {"step": 1, "epoch": pytest.approx(0.1, abs=0.09)}
    list(events)
    assert Path("text.model").stat().st_ino != place
    assert sorted(path.name for path in Path().iterdir()) == ["text.model", "text.txt"]
    finish(start_session([text], Path("alone.model"), **TINY, seed=2))
    assert training_result(Path("text.model")) == training_result(Path("alone.model"))
    assert {path.name for path in Path("text.model").iterdir()} == {path.name for path in Path("alone.model").iterdir()}


@pytest.mark.filterwarnings("ignore:text.model is hardly trained:fflm.errors.FflmWarning")
@pytest.mark.parametrize("reason", ["an evaluation", "time"])
def test_first_saved_weights_replace_old_model(text, reason):
    finish(start_session([text], Path("text.model"), **TINY))
    run = start_session([text], Path("text.model"), overwrite=True, **TINY)
    run.save_seconds = 0 if reason == "time" else 600
    event = next(event for event in run.events() if run.published)
    assert isinstance(event, Step if reason == "time" else Evaluation)
    assert library.load("text.model").about["figures"]["step"] == event.step
    state = TrainingSession.resume(Path("text.model")).trainer.state
    assert state.step == event.step


def run_on_full_disk(run):
    """Run a session whose first checkpoint finds the disk full."""
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
    """Interrupt a session in its first step, as Ctrl-C does without a signal handler."""
    run.trainer.network.backend.clip_factor = lambda *arguments: signal.raise_signal(signal.SIGINT)
    run.finish()


@pytest.mark.parametrize(
    ("options", "train", "reason"),
    [
        ({"rate": 1e9, "optimizer": "sgd", "clip": 0.0}, finish, "training does not converge"),
        ({}, run_on_full_disk, "cannot write .*File too large"),
        ({}, interrupt, None),
        ({"test": Share(0.999)}, finish, "take all|too few"),
    ],
    ids=["diverges", "full disk", "interrupted", "refused"],
)
def test_failed_training_keeps_old_model(text, options, train, reason):
    finish(start_session([text], Path("text.model"), **TINY))
    before, runs = snapshot(Path()), []  # keep the sessions, which would be discarded without a reference
    with pytest.raises((FflmError, KeyboardInterrupt), match=reason):  # noqa: PT012
        runs.append(start_session([text], Path("text.model"), overwrite=True, **{**TINY, **options}))
        train(runs[0])
    assert snapshot(Path()) == before


def test_next_use_recovers_from_kill_between_renames(text):
    """On file systems that cannot exchange two folders, a kill leaves the old and the new folder under temporary names."""
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


def test_model_is_not_replaced_by_one_from_its_own_corpus(text):
    finish(start_session([text], Path("text.model"), **TINY))
    before = training_result(Path("text.model"))
    with pytest.raises(FflmError, match="is in text"):
        start_session([Path("text.model/corpus")], Path("text.model"), overwrite=True, **TINY)
    assert training_result(Path("text.model")) == before


def test_folder_with_foreign_files_is_not_replaced(text):
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
def test_concurrent_training_in_same_folder_is_refused(text, overwrite):
    """A session starts to train while another one reads its text; threads are treated like processes."""
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
    assert training_result(Path("text.model")) == training_result(Path("alone.model"))
    assert {path.name for path in Path("text.model").iterdir()} == {path.name for path in Path("alone.model").iterdir()}
    assert sorted(path.name for path in Path().iterdir()) == ["alone.model", "text.model", "text.txt"]


def test_session_is_refused_after_another_changed_its_folder(text):
    run = start_session([text], Path("text.model"), **SETTINGS)
    list(itertools.islice(run.events(), 15))
    run.save()
    finish(TrainingSession.resume(run.path))
    before = training_result(run.path)
    for use in (run.save, lambda: next(run.events())):
        with pytest.raises(FflmError, match=r"text\.model has been changed by another run"):
            use()
    start_session([text], run.path, **SETTINGS, seed=2, overwrite=True)
    with pytest.raises(FflmError, match=r"text\.model has been changed by another run"):
        run.save()
    finish(start_session([text], run.path, **SETTINGS, overwrite=True))
    assert training_result(run.path) == before


@pytest.mark.parametrize("fate", ["moved", "removed", "replaced"])
def test_session_whose_folder_was_moved_writes_nothing(text, fate):
    run = start_session([text], Path("text.model"), **TINY, seed=2)
    events = run.events()
    next(events)
    shutil.rmtree("text.model") if fate == "removed" else Path("text.model").rename("old.model")
    if fate == "replaced":
        finish(start_session([text], Path("text.model"), **{**TINY, "embedding": 9}))
    before = snapshot(Path())
    for use in (run.save, lambda: list(events)):
        with pytest.raises(FflmError, match=r"text\.model was moved, replaced or removed by another process"):
            use()
    with pytest.raises(FflmError, match="has been changed by another run" if fate == "replaced" else "cannot write"):
        run.save()
    if fate == "removed":
        return
    assert {name: content for name, content in before.items() if not name.endswith(LOCK)} == snapshot(Path())
    finish(TrainingSession.resume(Path("old.model")))
    finish(start_session([text], Path("alone.model"), **TINY, seed=2))
    assert training_result(Path("old.model")) == training_result(Path("alone.model"))


def test_damaged_corpus_keeps_old_model(text):
    finish(start_session([text], Path("text.model"), **TINY))
    shutil.copytree("text.model/corpus", "text.ids")
    content = bytearray(Path("text.ids/train.npy").read_bytes())
    content[-2] ^= 1
    Path("text.ids/train.npy").write_bytes(content)
    before = training_result(Path("text.model"))
    with pytest.raises(FflmError, match="wrong sha256"):
        start_session([Path("text.ids")], Path("text.model"), overwrite=True, **TINY)
    assert training_result(Path("text.model")) == before


def test_model_replaced_during_loading_is_refused(text, monkeypatch):
    for name in ("text", "other"):
        finish(start_session([text], Path(f"{name}.model"), **{**TINY, "epochs": 1, "seed": len(name)}))
    real = neural_model.load_weights

    def load_weights(*arguments, **options):
        Path("text.model").rename("old.model")
        Path("other.model").rename("text.model")
        return real(*arguments, **options)

    monkeypatch.setattr(neural_model, "load_weights", load_weights)
    with pytest.raises(FflmError, match=r"text\.model was replaced while it was read: try again"):
        library.load("text.model")


def test_latest_model_while_another_is_replaced(text, monkeypatch):
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


def test_latest_model_is_chosen_by_time_of_weights(text):
    for name in ("b", "a"):
        finish(start_session([text], Path(f"{name}.model"), **{**TINY, "epochs": 1}))
    start_session([text], Path("unfinished.model"), **TINY)
    assert latest_model(Path(), str, "network") == (Path("a.model"), "a.model")
    os.utime("b.model/model.safetensors")
    assert latest_model(Path(), str, "network") == (Path("b.model"), "b.model")
    with pytest.raises(FflmError, match=r"before it had saved them: resume it with .*resume\('unfinished\.model'\)`"):
        library.load("unfinished.model")


# Interruption and resumption.


@pytest.mark.parametrize("pace", [1, 5, 12])
def test_resumed_training_equals_uninterrupted(text, pace):
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
    assert training_result(Path("pieces.model")) == training_result(Path("whole.model"))


def test_resuming_finished_training_changes_nothing(text):
    finish(start_session([text], Path("text.model"), **SETTINGS))
    before = training_result(Path("text.model"))
    finish(TrainingSession.resume(Path("text.model")))
    assert training_result(Path("text.model")) == before


def test_resume_with_more_epochs_equals_uninterrupted(text):
    settings = {**SETTINGS, "schedule": "constant"}
    finish(start_session([text], Path("whole.model"), **{**settings, "epochs": 5}))
    run = start_session([text], Path("text.model"), **{**settings, "epochs": 2})
    finish(run)
    with pytest.raises(FflmError, match="2 epochs are done already"):
        TrainingSession.resume(run.path, epochs=1)
    assert TrainingSession.resume(run.path).trainer.state.finished
    finish(TrainingSession.resume(run.path, epochs=5))
    assert training_result(run.path) == training_result(Path("whole.model"))
    assert library.load(run.path).about["training"]["epochs"] == 5


@pytest.mark.parametrize("written", ["the checkpoint", "the checkpoint and config.json"])
def test_more_epochs_are_kept_after_kill(text, monkeypatch, written):
    settings = {**SETTINGS, "schedule": "constant"}
    finish(start_session([text], Path("whole.model"), **{**settings, "epochs": 5}))
    finish(start_session([text], Path("text.model"), **{**settings, "epochs": 2}))
    with monkeypatch.context() as patch:
        stage = "write_json" if written == "the checkpoint" else "remove_leftovers"  # the function that is called next

        def die(*arguments):
            raise KeyboardInterrupt

        patch.setattr(session, stage, die)
        with pytest.raises(KeyboardInterrupt):
            TrainingSession.resume(Path("text.model"), epochs=5)
    finish(TrainingSession.resume(Path("text.model")))
    assert training_result(Path("text.model")) == training_result(Path("whole.model"))
    assert library.load("text.model").about["training"]["epochs"] == 5


@pytest.mark.parametrize("again", [{}, {"epochs": 5}])
def test_resume_reads_epochs_from_config_of_early_version(text, again):
    """Checkpoints of early versions have neither epochs nor device; this session was killed before the next checkpoint."""
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
    assert training_result(Path("text.model")) == training_result(Path("whole.model"))


def test_resume_with_more_epochs_after_early_stopping(text):
    run = start_session([text], Path("text.model"), **{**TINY, "epochs": 50, "patience": 2, "rate": 0.1, "schedule": "constant"})
    finish(run)
    stopped = run.trainer.state.epoch
    assert "no better for 2 evaluations" in run.trainer.state.finished
    finish(run := TrainingSession.resume(run.path, epochs=51))
    assert stopped + 2 <= run.trainer.state.epoch <= 51


LONG = [*SMALL, "--epochs", 150, "--patience", 0, "--embedding-dropout", 0.1, "--test", "10%"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the result of the long session without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    result = fflm("train", "text.txt", *LONG, folder=folder)
    assert result.returncode == 0, result.stderr
    return training_result(folder / "text.model")


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGHUP, marks=pytest.mark.slow)],
)
def test_signal_saves_and_resumed_training_equals_uninterrupted(text, uninterrupted, number):
    command = [FFLM, "train", text, *map(str, LONG)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stderr.readline().startswith("epoch"):  # the heading of the table of epochs
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
    assert training_result(Path("text.model")) == uninterrupted


@pytest.mark.slow
def test_signals_ignored_at_start_stay_ignored(text):
    """`nohup` ignores SIGHUP, and shells ignore SIGINT for background jobs of scripts."""

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
@pytest.mark.skipif(sys.platform != "linux", reason="the terminal is made by system calls of Linux")
def test_closed_terminal_saves_checkpoint(text):
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
    assert {path.name for path in Path("text.model").iterdir()} == {CONFIG, WEIGHTS, VOCABULARY, WORDS, LOG, CHECKPOINT, "corpus"}


SIGNAL_AFTER_STEPS = """
import signal, sys
from fflm.cli import main
from fflm.training.trainer import Trainer

steps, last = Trainer.run, int(sys.argv[1])

def run(trainer, requests):
    if not last:
        signal.raise_signal(signal.SIGTERM)
    for step, event in enumerate(steps(trainer, requests), 1):
        if step == last:
            signal.raise_signal(signal.SIGTERM)
        yield event

Trainer.run = run
main(sys.argv[2:])
"""
"""A program that runs the command, and sends itself a signal after a number of steps."""


@pytest.mark.parametrize("steps", [0, 2])
def test_interruption_before_first_evaluation_keeps_old_model(text, steps):
    assert fflm("train", text, *SMALL, "--epochs", 1, folder=".").returncode == 0
    before = snapshot(Path())
    command = [sys.executable, "-c", SIGNAL_AFTER_STEPS, str(steps), "train", str(text), *SMALL, "--overwrite"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == "stopped before there were new weights; text.model is unchanged"
    assert snapshot(Path()) == before


class SwallowedSignal(TrainingSession):
    """A session that loses the exception of a signal before the first step, as a callback of the compiler does."""

    def events(self):
        """Raise the signal, and suppress its exception."""
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        yield from super().events()


def test_signal_before_first_step_stops_training(text):
    start_session([text], Path("text.model"), **TINY)
    assert not watch(SwallowedSignal.resume(Path("text.model")), Console(quiet=True), VIEW)
    assert load_arrays(Path("text.model") / CHECKPOINT)[1]["state"]["step"] == 1


def test_signal_before_training_raises_keyboard_interrupt(text):
    start_session([text], Path("text.model"), **TINY)
    with interruption():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            watch(TrainingSession.resume(Path("text.model")), Console(quiet=True), VIEW)


class SignalAtStepFive(TrainingSession):
    """A session that gets signals at its fifth step."""

    signals = 1

    def events(self):
        """Raise the signals before the event of the fifth step is yielded."""
        for event in super().events():
            if event.step == 5:
                for _ in range(self.signals):
                    signal.raise_signal(signal.SIGINT)
            yield event


def test_signal_stops_training_after_next_step(text):
    """The fifth step has told all processes already whether to stop when the signal comes."""
    start_session([text], Path("text.model"), **TINY)
    assert not watch(SignalAtStepFive.resume(Path("text.model")), Console(quiet=True), VIEW)
    assert load_arrays(Path("text.model") / CHECKPOINT)[1]["state"]["step"] == 6


def test_second_signal_stops_without_saving(text):
    before = signal.getsignal(signal.SIGINT)
    start_session([text], Path("text.model"), **TINY)
    run = SignalAtStepFive.resume(Path("text.model"))
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


def test_training_interrupted_in_python_resumes_with_same_result(text):
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
    assert training_result(Path("text.model")) == training_result(Path("whole.model"))
    assert interrupted.events == {"Step": 6}
    assert interrupted.events["Step"] + resumed.events["Step"] + last.events["Step"] == whole.events["Step"]
    assert last.events["Tested"] == whole.events["Tested"] == 1


def test_exception_of_callback_saves_and_training_resumes_with_same_result(text):
    library.train(text, "whole.model", **SETTINGS)

    def fail(session, event):
        if event.step == 5:
            raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program") as kept:  # what holds the traceback does not hold the lock
        library.train(text, "text.model", callback=fail, **SETTINGS)
    assert load_arrays(Path("text.model", CHECKPOINT))[1]["state"]["step"] == 5
    library.resume("text.model")
    assert training_result(Path("text.model")) == training_result(Path("whole.model"))
    assert kept.traceback
    before = snapshot(Path("text.model"))
    with pytest.raises(ValueError, match="a fault of the program"):
        library.train(text, "text.model", overwrite=True, callback=fail, **{**TINY, "batch_size": 10})
    assert snapshot(Path("text.model")) == before


def test_keyboard_interrupt_of_callback_saves(text):
    def fail(session, event):
        if event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.train(text, "text.model", callback=fail, **SETTINGS)
    assert load_arrays(Path("text.model", CHECKPOINT))[1]["state"]["step"] == 5


class Stop:
    """A callback that stops training at the first event of a kind, after a number of steps; it keeps the events after that."""

    def __init__(self, kind, step=1):
        self.kind, self.step, self.events = kind, step, []

    def __call__(self, session, event):
        """Stop, or keep the event."""
        if self.events or (isinstance(event, self.kind) and event.step >= self.step):
            self.events.append(event)
            session.stop()


def test_callback_stops_training_at_evaluation(text):
    stop = Stop(Evaluation)
    model = library.train(text, "text.model", callback=stop, **SETTINGS)
    assert [type(event).__name__ for event in stop.events] == ["Evaluation", "Finished", "Tested"]
    assert stop.events[1].reason == "stopped by the program"
    assert model.about["figures"]["epoch"] == 1
    library.train(text, "whole.model", **SETTINGS)
    library.resume("text.model", callback=stop)  # nothing is left to do
    assert read_log(Path("text.model", LOG), EVENTS)[-1]["event"] == "test"
    assert library.resume("text.model", epochs=4).about["training"]["epochs"] == 4
    first, second = (
        next(each for each in read_log(Path(path, LOG), EVENTS) if "epoch" in each) for path in ("text.model", "whole.model")
    )
    assert (first["step"], first["valid"]) == (second["step"], second["valid"])


def test_callback_stops_training_within_epoch_after_evaluation(text):
    """It follows the next step, and gives a new model that may replace another one."""
    library.train(text, "text.model", **{**TINY, "epochs": 1})
    stop = Stop(Step, 2)
    model = library.train(text, "text.model", overwrite=True, callback=stop, **{**SETTINGS, "seed": 2})
    assert [type(event).__name__ for event in stop.events] == ["Step", "Evaluation", "Finished", "Tested"]
    assert model.about["figures"]["step"] == stop.events[1].step == 3
    assert {"valid", "test"} <= model.about["figures"].keys()


def test_ctrl_c_in_python_before_first_evaluation_keeps_old_model(text):
    library.train(text, "text.model", **TINY)
    before = snapshot(Path())
    with pytest.raises(KeyboardInterrupt, match=r"text\.model is unchanged"):
        library.train(text, "text.model", overwrite=True, callback=CtrlC(2), **{**TINY, "seed": 2})
    assert snapshot(Path()) == before


def test_own_handler_of_ctrl_c_stays_in_place_during_training(text):
    seen = []
    own = lambda *_: seen.append(signal.getsignal(signal.SIGINT))  # noqa: E731
    before = signal.signal(signal.SIGINT, own)
    try:
        library.train(text, "text.model", callback=CtrlC(2), **TINY)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [own]


def test_training_works_in_another_thread(text):
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(library.train, text, "text.model", **TINY).result()
    assert training_result(Path("text.model"))[1]["step"] == model.about["figures"]["step"]


def test_resume_in_python_with_more_epochs(text):
    library.train(text, "text.model", **{**TINY, "epochs": 1, "patience": 0})
    assert library.resume("text.model", epochs=2).about["training"]["epochs"] == 2
    assert json.loads(Path("text.model", CONFIG).read_text())["training"]["epochs"] == 2


def test_verbose_training_prints_each_evaluation(text, capsys):
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


def test_verbose_training_prints_between_evaluations(text, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    library.train(text, "text.model", verbose=True, **{**TINY, "epochs": 1})
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"epoch 1/1, step 1: train loss [\d.]+; [\d,]+ examples/s", lines[0])


def test_resume_refuses_other_kinds_of_models(text):
    library.train_ngram(text, "text.ngram", order=2)
    with pytest.raises(FflmError, match=r"text\.ngram is not a network or a text classifier: only their training can be resumed"):
        library.resume("text.ngram")
    with pytest.raises(FflmError, match=r"none\.model is not a model"):
        library.resume("none.model")


def test_signal_while_text_is_read_leaves_no_files(text):
    with subprocess.Popen([FFLM, "train", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdin.write("some words\n" * 100_000)  # the process reads, so it has started
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.strip()) == (130, "error: interrupted")
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


@pytest.mark.slow
def test_resume_after_kills_at_random_moments_gives_same_model(text, uninterrupted):
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
    assert training_result(Path("text.model")) == uninterrupted


def test_resume_refuses_checkpoint_of_other_data(text):
    finish(start_session([text], Path("text.model"), **TINY))
    path, about = Path("text.model") / CHECKPOINT, json.loads((Path("text.model") / CONFIG).read_text())
    config = meaning(about, training=True)
    dataclasses.replace(Checkpoint.load(path, config), corpus="other").save(path, config)
    with pytest.raises(FflmError, match=r"text\.model was trained on other data: resume with that"):
        TrainingSession.resume(Path("text.model"), epochs=4)


def train_until_rename(left):
    """Start or resume a training session, and exit with status 9 before a file is renamed for the n-th time."""

    def die(event, arguments):
        nonlocal left
        if event == "os.rename":
            left -= 1
            if left == 0:
                os._exit(9)

    sys.addaudithook(die)
    path = Path("text.model")
    run = TrainingSession.resume(path) if path.exists() else start_session([Path("text.txt")], path, **SETTINGS)
    run.save_seconds = 0
    finish(run)


@pytest.mark.parametrize("seconds", [0, 1000])
def test_evaluations_within_some_seconds_have_one_checkpoint(text, seconds):
    run, steps = start_session([text], Path("text.model"), **SETTINGS), []
    run.evaluation_seconds = seconds
    for event in run.events():
        if isinstance(event, Evaluation):
            steps.append((event.step, Checkpoint.load(run.path / CHECKPOINT).state_dict["state"]["step"]))
            assert load_arrays(run.path / WEIGHTS, of=dict)[1]["step"] <= event.step  # those of the best evaluation
    assert len(steps) > 2
    assert steps[-1][0] == steps[-1][1]
    assert [saved for _, saved in steps[:-1]] == [0 if seconds else step for step, _ in steps[:-1]]


def stored_weights(run):
    """Return the figures of the stored weights, after checking that these are the weights of the checkpoint."""
    weights, figures = load_arrays(run.path / WEIGHTS, of=dict)
    checkpoint = Checkpoint.load(run.path / CHECKPOINT).state_dict
    assert figures["step"] == checkpoint["state"]["step"]
    for name, array in weights.items():
        np.testing.assert_array_equal(array, checkpoint["arrays"][f"parameters.{name}"])
    return figures


def test_without_validation_data_weights_are_stored_with_checkpoints(text):
    run = start_session([text], Path("text.model"), **TINY, valid=None)
    run.evaluation_seconds = run.save_seconds = 1000
    events = run.events()
    next(events)
    run.save()
    assert stored_weights(run) == {"step": 1, "epoch": 0.08}
    evaluation = next(event for event in events if isinstance(event, Evaluation))
    assert stored_weights(run)["step"] == 1
    next(events)
    run.save()
    assert stored_weights(run)["step"] == evaluation.step + 1
    assert stored_weights(run)["train_loss"] == run.trainer.state.loss_sum / run.trainer.state.loss_words
    evaluation = next(event for event in events if isinstance(event, Evaluation))
    run.save()
    assert stored_weights(run) == {"step": evaluation.step, "epoch": 2, "train_loss": evaluation.train_loss}
    next(event for event in events if isinstance(event, Evaluation))
    run.stop()
    list(events)
    assert stored_weights(run)["epoch"] == 3
    assert TrainingSession.resume(Path("text.model"), epochs=5).finish()
    assert stored_weights(run)["epoch"] == 5


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_resume_after_kills_before_renames_gives_same_model(text):
    finish(start_session([text], Path("whole.model"), **SETTINGS))
    *killed, last = (exit_status_of_fork(partial(train_until_rename, left)) for left in (1, 3, 6, 2, 9, 4, 100))
    assert set(killed) <= {0, 9}
    assert killed.count(9) >= 5
    assert last == 0
    assert training_result(Path("text.model")) == training_result(Path("whole.model"))


def test_divergence_rolls_back_and_halves_rate(text):
    run = start_session([text], Path("text.model"), **{**TINY, "schedule": "constant", "patience": 0})
    run.evaluation_seconds = 0.0
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


def test_repeated_divergence_ends_training(text):
    result = fflm("train", text, *SMALL, "--rate", 1e9, "--optimizer", "sgd", "--clip", 0, folder=".")
    assert result.returncode == 1
    assert result.stderr.count("back to step") == 5
    assert re.fullmatch(r"error: training does not converge: .*; try a lower --rate, or --clip", result.stderr.splitlines()[-1])


# Sessions that cannot be resumed.


@pytest.fixture
def stopped_model(text):
    """Train on a tokenized corpus, stop after some events, and return the path of the model."""
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
def test_resume_refuses_changed_corpus_with_reason(stopped_model, content, options, reason):
    words = [line.split("\t")[0] for line in Path("text.ids/vocabulary.tsv").read_text().splitlines()]
    Path("words.txt").write_text("\n".join(words))
    Path("text.txt").write_text(content, encoding="utf-8")
    assert fflm("tokenize", "text.txt", "-o", "text.ids", "--overwrite", *options, folder=".").returncode == 0
    before = file_contents(stopped_model)
    result = fflm("train", "--resume", stopped_model, folder=".")
    assert result.returncode == 1
    assert re.search(rf"^error: text.model was trained on other data \({reason}", result.stderr)
    assert file_contents(stopped_model) == before


def file_contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def test_resume_detects_swapped_words(stopped_model):
    path = Path("text.ids/vocabulary.tsv")
    lines = path.read_text().splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    path.write_text("".join(lines))
    with pytest.raises(FflmError, match="its words or their order have changed"):
        TrainingSession.resume(stopped_model)


def test_resume_detects_changed_ids(stopped_model):
    path = Path("text.ids/train.npy")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FflmError, match="wrong sha256"):
        TrainingSession.resume(stopped_model)


def test_resume_without_corpus_is_refused(stopped_model):
    shutil.rmtree("text.ids")
    with pytest.raises(FflmError, match=r"text\.ids is not a tokenized corpus"):
        TrainingSession.resume(stopped_model)


def test_model_moved_with_its_corpus_resumes(stopped_model):
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


def test_model_moved_without_its_corpus_resumes(stopped_model):
    """The corpus is found even if another one lies at the relative path."""
    Path("elsewhere").mkdir()
    stopped_model = stopped_model.rename("elsewhere/text.model")
    assert trained_corpus(stopped_model).path == Path("text.ids").resolve()
    assert fflm("tokenize", "text.txt", "-o", "elsewhere/text.ids", "--lowercase", folder=".").returncode == 0
    finish(TrainingSession.resume(stopped_model))


def test_resume_with_absolute_corpus_path_only(stopped_model):
    """Early versions stored only the absolute path."""
    config = json.loads((stopped_model / CONFIG).read_text())
    reference = {**config["corpus"], "path": config["corpus"].pop("absolute")}
    write_json(stopped_model / CONFIG, {**config, "corpus": reference})
    finish(TrainingSession.resume(stopped_model))
    assert trained_corpus(stopped_model).path == Path("text.ids").resolve()


def test_resume_refuses_damaged_or_missing_checkpoint(stopped_model):
    path = stopped_model / CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(FflmError, match="damaged"):
        TrainingSession.resume(stopped_model)
    path.unlink()
    with pytest.raises(FflmError, match="to resume from: train again with `overwrite=True`"):
        TrainingSession.resume(stopped_model)


def test_resume_of_unchanged_folder_succeeds(stopped_model):
    """The sessions above are refused only because of the changes made to them."""
    finish(TrainingSession.resume(stopped_model))
    assert library.load(stopped_model).about["figures"]["epoch"] == 3


def test_preset_of_bengio_is_network_of_his_paper(tmp_path):
    """MLP1 in table 1 of Bengio et al. 2003: n = 5, m = 60, h = 50, direct connections, trained as in section 4.2."""
    text = tmp_path / "text.txt"
    text.write_text(STORIES[:4000], encoding="utf-8")
    model = library.train(text, tmp_path / "m", preset="bengio2003", epochs=2, valid="20%")
    config, training = model.config, model.about["training"]
    assert (config.window, config.embedding, config.hidden, config.activation) == (4, 60, (50,), "tanh")
    assert (config.direct, config.tied, config.averages, config.bands, config.residual) == (True, False, (), (), False)
    assert (config.dropout, config.embedding_dropout) == (0, 0)
    assert (training["optimizer"], training["momentum"], training["batch_size"], training["loss"]) == ("sgd", 0, 1, "exact")
    assert (training["schedule"], training["rate"], training["decay"]) == ("inverse", 1e-3, 1e-8)
    assert (training["weight_decay"], training["l1"], training["l2"]) == (1e-4, 0, 0)
    assert (training["clip"], training["smoothing"], training["patience"]) == (0, 0, 3)

    arrays = {name: array.astype(np.float64) for name, array in model.parameters.items()}
    contexts = np.random.default_rng(0).integers(0, config.vocabulary + 1, (5, 4), np.int32)
    x = arrays["embeddings"][contexts].reshape(5, -1)  # y = b + W x + U tanh(d + H x), equation 1
    tanh = np.tanh(x @ arrays["hidden.0.weight"].T + arrays["hidden.0.bias"])
    u, w = np.split(arrays["output.weight"], [50], axis=1)
    scores = arrays["output.bias"] + x @ w.T + tanh @ u.T
    expected = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    found = model.network.log_probabilities(model.parameters, contexts)
    np.testing.assert_allclose(found, expected, rtol=1e-4)

    evaluations = [event for event in read_log(tmp_path / "m" / LOG, EVENTS) if event["event"] == "evaluation"]
    uniform = np.log(config.vocabulary)
    assert uniform > evaluations[0]["valid"]["loss"] > evaluations[1]["valid"]["loss"]
