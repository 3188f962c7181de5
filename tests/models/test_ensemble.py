"""Ensembles: members that are networks of their seeds, their mixture, interruptions, several processes, and the commands."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command import FFLM, PERPLEXITY, SMALL, STORIES, fflm, snapshot
from processes import mpiexec, needs_mpi

import fflm as library
from fflm.arrays import CONFIG, WEIGHTS
from fflm.errors import FflmError, SettingsError
from fflm.models.corpora import trained_part
from fflm.models.ensemble import Ensemble, start_ensemble
from fflm.models.folder import VOCABULARY, WORDS
from fflm.models.mixture.model import Mixture
from fflm.models.scoring import score_part
from fflm.search.search import start_search
from fflm.text.holdout import Share
from fflm.training import events
from fflm.training.events import Step

TINY = {"embedding": 6, "hidden": (8,), "batch_size": 64, "window": 3, "epochs": 2, "test": Share(0.1), "dropout": 0.1}


class CrashError(BaseException):
    """What ends the program as suddenly as a kill: nothing is saved."""


def stop_at(label, step, stop):
    """Return a callback that calls ``stop`` at a step of a member."""

    def callback(session, event):
        if isinstance(event, Step) and (session.label, event.step) == (label, step):
            stop()

    return callback


def crash():
    """Raise an exception that nobody handles."""
    raise CrashError


def weights_of(path):
    """Return the content of the weights of an ensemble and of its members."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob(WEIGHTS))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train an ensemble of two members on a text; return the folder of both."""
    folder = tmp_path_factory.mktemp("ensemble")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    (folder / "text.ids").mkdir()
    library.train(folder / "text.txt", folder / "two.model", members=2, **TINY)
    return folder


def test_members_equal_networks_trained_with_their_seeds(trained, tmp_path):
    alone = library.train(
        trained / "two.model", tmp_path / "one.model", seed=2, **{name: value for name, value in TINY.items() if name != "test"}
    )
    second = library.load(trained / "two.model" / "member-2")
    assert second.about["training"] == alone.about["training"]
    assert [each.tobytes() for each in second.parameters] == [each.tobytes() for each in alone.parameters]
    first = library.load(trained / "two.model" / "member-1")
    assert (first.parameters.embeddings != second.parameters.embeddings).any()


def test_preset_best_with_one_member_trains_a_default_network(trained, tmp_path):
    given = {"members": 1, "embedding": 6, "hidden": (8,), "epochs": 1}
    model = library.train(trained / "two.model", tmp_path / "one.model", preset="best", **given)
    default = library.train(trained / "two.model", tmp_path / "default.model", **given)
    assert model.about["training"] == default.about["training"]
    assert model.config == default.config


def test_teacher_weight_without_teacher_is_refused(text):
    with pytest.raises(SettingsError, match="leave out `teacher_weight`, or train one network"):
        library.train(text, "new.model", members=2, teacher_weight=0.5)


def test_ensemble_predicts_the_mean_of_its_members(trained):
    model = library.load(trained / "two.model")
    assert isinstance(model, Mixture)
    assert {path.name for path in (trained / "two.model").iterdir()} == {
        *("member-1", "member-2", CONFIG, WEIGHTS, VOCABULARY, WORDS, "corpus"),
    }
    contexts = np.random.default_rng(0).integers(0, len(model.vocabulary), (5, 3), np.int32)
    members = [library.load(trained / "two.model" / name) for name in ("member-1", "member-2")]
    mean = np.mean([np.exp(each.log_probabilities(contexts).astype(float)) for each in members], axis=0)
    np.testing.assert_allclose(np.exp(model.log_probabilities(contexts)), mean, rtol=1e-6)
    for name in ("valid", "test"):
        part = trained_part(trained / "two.model", name, "")
        figures = model.figures[name]
        assert figures["loss"] == pytest.approx(score_part(model, part).loss)
        assert [each["loss"] for each in figures["components"]] == pytest.approx([score_part(m, part).loss for m in members])
        assert [each["loss"] for each in figures["components"]] == pytest.approx(
            [each.about["figures"][name]["loss"] for each in members], rel=1e-6
        )


def test_interrupted_ensemble_resumes_to_the_same_model_and_trains_no_member_twice(trained, text):
    with pytest.raises(CrashError):
        library.train(text, "two.model", members=2, callback=stop_at("member 2 of 2", 5, crash), **TINY)
    before = snapshot(Path("two.model/member-1"))
    message = "two.model is not complete, 1 of its 2 members are trained: `fflm.resume\\('two.model'\\)` completes it"
    with pytest.raises(FflmError, match=message):
        library.load("two.model")
    ctrl_c = stop_at("member 2 of 2", 7, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved: `fflm\.resume\('two\.model'\)` resumes training"):
        library.resume("two.model", callback=ctrl_c)
    steps = []
    model = library.resume("two.model", callback=lambda session, event: steps.append((session.label, event)))
    assert isinstance(model, Mixture)
    assert {label for label, _ in steps} == {"member 2 of 2"}
    assert next(event.step for _, event in steps if isinstance(event, Step)) == 9  # the signal was seen at the next step
    assert snapshot(Path("two.model/member-1")) == before
    assert weights_of(Path("two.model")) == weights_of(trained / "two.model")
    again = library.resume("two.model", callback=lambda session, event: steps.clear())
    assert again.figures == model.figures
    assert steps


def test_ensemble_without_validation_text_has_no_figures(text):
    model = library.train(text, "two.model", members=2, valid=0, **{**TINY, "test": 0, "epochs": 1})
    assert model.figures == {}
    assert library.load("two.model").weights.tolist() == [0.5, 0.5]
    result = fflm("info", "two.model", folder=Path())
    assert result.returncode == 0, result.stderr


def test_second_process_trains_the_other_member(text):
    """The second process is one that begins while the first is at a step of its member, and stops when it would wait for it."""
    ensemble, labels = start_ensemble([text], Path("two.model"), members=2, **TINY), []

    def join():
        second = Ensemble.resume(Path("two.model"))
        with pytest.raises(CrashError):
            second.finish(lambda session, event: isinstance(event, events.Tested) and labels.append(session.label), waiting=crash)
        assert second.trained == 1

    assert ensemble.finish(stop_at("member 1 of 2", 2, join), lambda session, event: labels.append(session.label))
    assert list(dict.fromkeys(labels)) == ["member 1 of 2", "member 2 of 2"]
    assert labels.count("member 2 of 2") == 1
    assert not list(Path("two.model").glob("*.lock"))
    assert library.load("two.model").figures.keys() == {"valid", "test"}


@pytest.mark.slow
def test_member_of_killed_process_is_resumed_by_another(trained, text):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "hidden": 8, "test": "10%"}.items()]
    command = [FFLM, "train", text, "--members", "2", *options, "-o", "two.model", "--save-every", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (log := Path("two.model/member-1/log.jsonl")).exists() or '"evaluation"' not in log.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    result = fflm("train", "--resume", "two.model", folder=Path())
    assert result.returncode == 0, result.stderr
    assert "resuming two.model, 0 of its 2 members are trained" in result.stderr
    assert weights_of(Path("two.model")) == weights_of(trained / "two.model")


@pytest.mark.slow
@needs_mpi
def test_mpiexec_trains_members_side_by_side(trained, text):
    result = mpiexec(2, "-m", "fflm", "train", text, *SMALL, "--members", 3, "--epochs", 1, folder=Path())
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("model text.model, a mixture of 3 networks") == 1
    assert len(library.load("text.model").components) == 3


def test_commands_use_an_ensemble(trained):
    options = ("--epochs", 1, "--members", 2, "-o", "new.model")
    result = fflm("train", "text.txt", *SMALL, *options, folder=trained)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(trained / "new.model")
    assert re.findall(r"member \d of \d", result.stderr) == ["member 1 of 2", "member 2 of 2"]
    row = r" +0\.5000( +[\d.,]+){3}\n"
    table = rf"\n +weight .*\nnew.model/member-1{row}new.model/member-2{row}mixture( +[\d.,]+){{3}}\nvalid {PERPLEXITY}\n"
    assert re.fullmatch(rf"model new.model, a mixture of 2 networks\n{table}", result.stdout), result.stdout
    result = fflm("train", "--resume", "two.model", "--json", folder=trained)
    figures = json.loads(result.stdout)
    assert figures.keys() == {"model", "valid", "test"}
    [score] = map(json.loads, fflm("score", "-m", "two.model", "--part", "test", "--json", folder=trained).stdout.splitlines())
    assert score["loss"] == pytest.approx(figures["test"]["loss"])
    assert "equal weights\n" in fflm("score", "-m", "two.model", "--part", "test", folder=trained).stdout
    about = fflm("info", "two.model", folder=trained).stdout
    assert "an ensemble: 2 networks, trained with the seeds from 1\n" in about
    assert about.count("two.model/member-2") == 2
    for command in ("next", "generate"):
        result = fflm(command, "-m", "two.model", "--prefix", "The cat", folder=trained)
        assert result.returncode == 0, result.stderr


def test_preset_best_trains_five_default_networks(trained, tmp_path):
    model = library.train(trained / "text.txt", tmp_path / "best.model", preset="best", **{**TINY, "epochs": 1})
    assert [Path(folder).name for folder in model.components] == [f"member-{number}" for number in range(1, 6)]
    settings = library.load(tmp_path / "best.model" / "member-5").about["training"]
    assert (settings["seed"], settings["rate"], settings["adversarial"]) == (5, 0.003, 0.01)
    with pytest.raises(FflmError, match="`preset` must be one of bengio2003, default, quick, not 'best'"):
        start_search([trained / "text.txt"], tmp_path / "text.tune", {}, preset="best")


ERRORS = [
    ("text.txt --members 0", "0 is not in the range"),
    ("text.txt --members 51", "51 is not in the range"),
    ("text.txt --members 2 --overwrite", "leave out --overwrite, or train one network"),
    ("text.txt --members 2 --vectors v.txt --parallel data", "leave out --vectors, --parallel, or train one network"),
    ("text.txt --members 2 --from two.model", "leave out --from, or train one network with --members 1"),
    ("text.txt --members 2 -o two.model", "two.model exists: `fflm train --resume two.model` resumes its training, or choose"),
    ("text.txt --preset best --overwrite", "leave out --overwrite, or train one network with --members 1"),
    ("text.txt --members 2 --window 3000 -o new.model", "too few for a window of 3000"),
    ("text.txt --members 2 --seed 9223372036854775807 -o new.model", "`?-?-?seed`? must be"),
    ("--resume two.model --members 3 --epochs 9", "leave out --members, --epochs"),
]


@pytest.mark.parametrize(("line", "reason"), ERRORS, ids=[line for line, _ in ERRORS])
def test_options_that_contradict_members_are_refused(trained, line, reason):
    before = snapshot(trained)
    result = fflm("train", *line.split(), folder=trained)
    assert (result.returncode in (1, 2), result.stdout) == (True, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert re.search(reason, result.stderr), result.stderr
    assert snapshot(trained) == before


def test_resume_refuses_settings_other_mixtures_and_changed_members(trained, tmp_path):
    with pytest.raises(FflmError, match="an ensemble, whose members keep their settings: leave out `epochs` and `device`"):
        library.resume(trained / "two.model", epochs=4)
    library.mix([trained / "two.model" / "member-1"], cache=10).save(tmp_path / "text.mix")
    with pytest.raises(FflmError, match="is a mixture of models that were trained before"):
        library.resume(tmp_path / "text.mix")
    shutil.copytree(trained / "two.model", tmp_path / "moved.model")
    assert library.load(tmp_path / "moved.model").figures == library.load(tmp_path / "moved.model").figures
    shutil.rmtree(tmp_path / "moved.model" / "member-2")
    with pytest.raises(FflmError, match=r"member-2, a component of .*, is missing"):
        library.load(tmp_path / "moved.model")
    config = tmp_path / "moved.model" / CONFIG
    config.write_text(config.read_text(encoding="utf-8").replace("member-1", "../member-1"), encoding="utf-8")
    with pytest.raises(FflmError, match=r"damaged \(it does not list the members\)"):
        library.resume(tmp_path / "moved.model")


def test_neural_cache_has_the_keys_of_the_first_member(trained):
    mixtures = [library.mix([path], neural_cache=50) for path in (trained / "two.model", trained / "two.model" / "member-1")]
    both, alone = (list(mixture.components.values())[1].network for mixture in mixtures)
    np.testing.assert_array_equal(both.parameters.embeddings, alone.parameters.embeddings)
