"""A command for which no model is named uses the latest model that it can use, and names it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import MODES, tiny_model

import fflm
from fflm.arrays import CONFIG, LOG, WEIGHTS, meaning
from fflm.cli import main
from fflm.errors import FflmError
from fflm.models.folder import LANGUAGE_MODELS, VOCABULARY, fingerprint, has_fingerprint, latest_model, read_config
from fflm.models.load import load_language_model as load
from fflm.models.mixture.train import mix
from fflm.models.neural.model import save_config
from fflm.models.ngram.arpa import import_arpa
from fflm.training.checkpoints import save_weights

ARPA = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <s>\n-0.5 </s>\n-0.4 <unk>\n-0.6 the\n\n\\end\\\n"


def save(path, **options):
    """Save a small network."""
    model = tiny_model(MODES["line ends"], **options)
    path.mkdir()
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})


def add_evaluation_log(path):
    """Add a log with one evaluation to a saved network."""
    part = {"tokens": 100, "unknown": 1, "ends": 10, "characters": 400}
    text = {"vocabulary": 8, "rule": "all words", "policy": "line ends predicted", "parts": {"train": part}}
    started = {"event": "start", "text": text}
    evaluation = {
        "event": "evaluation",
        "step": 1,
        "words": 100,
        "train_loss": 2.0,
        "exact": True,
        "valid": None,
        "best": True,
        "rate": 0.1,
        "seconds": 1.0,
    }
    (path / LOG).write_text(f"{json.dumps(started)}\n{json.dumps(evaluation)}\n")


def set_age(path, hours):
    """Set the time at which a model was saved to this number of hours before a fixed time."""
    stat = (path / WEIGHTS).stat()
    os.utime(path / WEIGHTS, ns=(stat.st_atime_ns, 1_700_000_000_000_000_000 - hours * 3_600_000_000_000))


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """Make a folder with, from oldest to newest, two networks, two classifiers, an n-gram model and a mixture."""
    folder = tmp_path_factory.mktemp("kinds")
    save(folder / "old.model", seed=2)
    save(folder / "new.model")
    add_evaluation_log(folder / "new.model")
    rows = [f"{label}\t{word} it is\n" for label, word in (("good", "great"), ("bad", "dull")) for _ in range(20)]
    (folder / "texts.tsv").write_text("".join(rows))
    fflm.train_classifier(folder / "texts.tsv", folder / "old.classifier", epochs=1, valid=None)
    shutil.copytree(folder / "old.classifier", folder / "new.classifier")
    (folder / "words.arpa").write_text(ARPA)
    import_arpa(folder / "words.arpa", folder / "words.ngram")
    (folder / "held.txt").write_text("the cat sat on the dog .\n" * 3)
    before = Path.cwd()
    os.chdir(folder)
    mix(["old.model"], cache=5, tune=["held.txt"]).save(Path("both.mix"))
    os.chdir(before)
    names = ["both.mix", "words.ngram", "new.classifier", "old.classifier", "new.model", "old.model"]
    for hours, name in enumerate(names):
        set_age(folder / name, hours)
    return folder


@pytest.fixture
def folder(every_kind, monkeypatch):
    monkeypatch.chdir(every_kind)
    return every_kind


def run(line, **options):
    return CliRunner().invoke(main, line.split(), **options)


USES = {
    "generate --length 3 --seed 1": "both.mix",
    "next --top 3": "both.mix",
    "score held.txt": "both.mix",
    "score held.txt --fast": "new.model",
    "vectors": "new.model",
    "neighbours cat": "new.model",
    "analogy cat dog the": "new.model",
    "info": "both.mix",
    "plot -o curves.svg --overwrite": "new.classifier",
    "classify predict held.txt": "new.classifier",
    "classify eval texts.tsv": "new.classifier",
    "ngram export -o out.arpa --overwrite": "words.ngram",
}


@pytest.mark.parametrize(("line", "model"), USES.items(), ids=USES)
def test_command_without_model_uses_latest_usable_model(folder, line, model):
    if line.startswith("plot"):
        pytest.importorskip("matplotlib")
    result = run(line)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0] == f"model: {model}"
    for said in (f"{line} -m {model}", f"{line} -q"):
        other = run(said)
        assert (other.exit_code, other.stdout) == (0, result.stdout)
        assert "model:" not in other.stderr


@pytest.mark.parametrize(
    "line",
    ["generate --greedy", "next", "score held.txt", "neighbours cat", "analogy cat dog the", "info", "classify eval texts.tsv"],
)
def test_json_output_names_model(folder, line):
    result = run(f"{line} --json")
    assert json.loads(result.stdout)["model"] == run(line).stderr.splitlines()[0].removeprefix("model: ")


def test_model_is_given_as_argument_or_option(folder):
    assert run("info -m old.model").stdout == run("info old.model").stdout
    assert (run("info old.model -m new.model").exit_code, run("info nothing.model").exit_code) == (2, 1)
    pytest.importorskip("matplotlib")
    (folder / "more.model").exists() or shutil.copytree("new.model", "more.model")
    set_age(folder / "more.model", 100)
    result = run("plot -m new.model -m more.model -o both.svg --json")
    assert json.loads(result.stdout)["models"] == ["new.model", "more.model"]


def test_missing_model_error_names_train_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line, what, command in (
        ("next", "model", "fflm train"),
        ("neighbours cat", "network", "fflm train"),
        ("classify predict", "text classifier", "fflm classify train"),
        ("ngram export -o x.arpa", "n-gram model", "fflm ngram train"),
    ):
        result = run(line)
        expected = f"error: there is no {what} in this folder: train one with `{command}`, or name one with --model\n"
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", expected)


# Folders that cannot be used.


def overwrite_file(name, content):
    return lambda path: (path / name).write_bytes(content)


UNUSABLE = {
    "weights cut off": lambda path: os.truncate(path / WEIGHTS, 100),
    "no vocabulary": lambda path: (path / VOCABULARY).unlink(),
    "no weights yet": lambda path: (path / WEIGHTS).unlink(),
    "another tool's": overwrite_file(CONFIG, b'{"architectures": ["Bert"]}'),
    "half-written": overwrite_file(CONFIG, b'{"format": "fflm mo'),
    "not UTF-8": overwrite_file(CONFIG, b"\xff\xfe"),
    "a list": overwrite_file(CONFIG, b"[]"),
    "nested": overwrite_file(CONFIG, b"[" * 100_000),
    "of a later version": overwrite_file(CONFIG, b'{"format": "fflm model", "version": 99}'),
    "without a network": overwrite_file(CONFIG, b'{"format": "fflm model", "version": 1}'),
    "of an unknown kind": overwrite_file(CONFIG, b'{"format": "fflm model", "version": 1, "kind": ["x"]}'),
}


@pytest.mark.parametrize("damage", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_model_folder_is_skipped(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "good.model")
    save(tmp_path / "bad.model")
    set_age(tmp_path / "good.model", 1)
    set_age(tmp_path / "bad.model", 0)
    damage(tmp_path / "bad.model")
    if (tmp_path / "bad.model" / WEIGHTS).exists():
        set_age(tmp_path / "bad.model", 0)
    result = run("next --top 1")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (0, "model: good.model")  # kernels may be compiled
    shutil.rmtree("good.model")
    result = run("next --top 1")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "in this folder" in result.stderr


def test_error_gives_reason_for_latest_unusable_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for hours, name in enumerate(("b.model", "a.model")):
        save(tmp_path / name)
        os.truncate(tmp_path / name / WEIGHTS, 100)
        set_age(tmp_path / name, hours)
    assert run("next").stderr.startswith("error: no model in this folder can be used: b.model/model.safetensors is damaged")


def test_mixture_with_missing_component_is_skipped(folder, tmp_path, monkeypatch):
    for name in ("both.mix", "new.model"):  # but not old.model, which the mixture needs
        shutil.copytree(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert run("next").stderr == "model: new.model\n"


def test_model_without_corpus_or_fast_scoring_is_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the dog .\n" * 100)
    options = {"embedding": 4, "window": 2, "epochs": 1, "hidden": (4,)}
    fflm.train("text.txt", "whole.model", **options)
    shutil.copytree("whole.model", "without.model")
    shutil.rmtree("without.model/corpus")
    set_age(tmp_path / "whole.model", 2)
    set_age(tmp_path / "without.model", 1)
    assert run("score --part valid").stderr == "model: whole.model\n"
    assert run("score text.txt").stderr == "model: without.model\n"
    fflm.train("text.txt", "deep.model", **{**options, "hidden": (4, 4)})
    set_age(tmp_path / "deep.model", -1)
    assert run("score --fast text.txt").stderr.splitlines()[0] == "model: without.model"


def test_latest_model_with_equal_times_is_first_by_name(tmp_path):
    for name in ("b.model", "a.model", "c.model"):
        save(tmp_path / name)
        set_age(tmp_path / name, 0)
    assert latest_model(tmp_path, load, *LANGUAGE_MODELS)[0] == tmp_path / "a.model"


def test_model_that_disappears_during_loading_is_skipped(tmp_path):
    for hours, name in enumerate(("gone.model", "here.model")):
        save(tmp_path / name)
        set_age(tmp_path / name, hours)

    def use(path):
        if path.name == "gone.model":
            shutil.rmtree(path)
        return load(path)

    assert latest_model(tmp_path, use, *LANGUAGE_MODELS)[0] == tmp_path / "here.model"
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert latest_model(tmp_path, load, "network")[0] == tmp_path / "here.model"
    with pytest.raises(FflmError, match="cannot read"):
        latest_model(tmp_path / "nowhere", load, "network")


def test_fingerprint_of_early_versions_is_that_of_the_files(tmp_path):
    """They hashed the files; the earliest ones, of config.json no more than how text is read."""
    path = tmp_path / "a.model"
    save(path)
    about, files = read_config(path), [path / "vocabulary.tsv", path / WEIGHTS]
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    known = [
        fingerprint(path),
        hashlib.sha256(meaning(about).encode() + digests).hexdigest(),
        hashlib.sha256(json.dumps(about["text"], sort_keys=True).encode() + digests).hexdigest(),
    ]
    assert [has_fingerprint(path, each) for each in known] == [True, True, True]
    save_weights(path, tiny_model(seed=2).parameters, {})
    assert [has_fingerprint(path, each) for each in known] == [False, False, False]
