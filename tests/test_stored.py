"""Files of models with any content are used or refused in one line: JSON of any shape, arrays, and other kinds of files."""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
from click.testing import CliRunner

import fflm
from fflm.arguments import convert
from fflm.arrays import CHECKPOINT, CONFIG, LOG, WEIGHTS, load_arrays, save_arrays
from fflm.cli import info, main, plot
from fflm.cli.tables import printable
from fflm.errors import FflmError
from fflm.files import check_regular, open_regular
from fflm.models.classifier.train import ClassifierSession
from fflm.models.mixture.cache import UnigramCache
from fflm.models.mixture.model import fingerprint
from fflm.models.mixture.train import mix
from fflm.models.neural.train import TrainingSession
from fflm.network.config import NetworkConfig
from fflm.stored import from_json
from fflm.text.catalogue import bundled

TEXT = (bundled() / "stories.txt").read_text(encoding="utf-8")[:4000]
SMALL = {"embedding": 2, "hidden": (3,), "epochs": 1, "threads": 1}
TYPES = (np.uint8, np.uint32, np.int32, np.int64, np.float32, np.float64)

REMOVED = object()
REPLACEMENTS = (REMOVED, None, [], {}, "x", -1, 0, 1.5, 2**70, 1e300, True, "\ud800", "a\0b", [1] * 300, {"a": {}})
"""The values that replace a part of a JSON value; the first one removes the part."""


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small trained model of each kind."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    labeled = "".join(f"{'long' if len(line) > 60 else 'short'}\t{line}\n" for line in TEXT.splitlines() if line.strip())
    (folder / "lines.tsv").write_text(labeled, encoding="utf-8")
    fflm.train(folder / "text.txt", folder / "net.model", window=2, tied=False, **SMALL)
    fflm.train_ngram(folder / "net.model", folder / "n.ngram", order=2)
    mixture = mix([folder / "net.model", folder / "n.ngram"], cache=5)
    mixture.save(folder / "m.mix")
    features = {"input": "features", "counts": 3, "lexicons": (), "log_length": True, "balanced": True}
    fflm.train_classifier(folder / "lines.tsv", folder / "words.classifier", **{**SMALL, "hidden": ()})
    fflm.train_classifier(folder / "lines.tsv", folder / "features.classifier", **features, epochs=1, hidden=(), threads=1)
    return folder


@pytest.fixture
def models(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the folder of trained models, and make the copy the current folder."""
    shutil.copytree(trained_folder, tmp_path / "models")
    monkeypatch.chdir(tmp_path / "models")
    return tmp_path / "models"


def remove_config_checksum(path: Path) -> None:
    """Rewrite a file of arrays without the checksum of config.json, as early versions wrote it."""
    arrays, about = load_arrays(path, TYPES)
    save_arrays(path, arrays, about)


def run_info(path: Path) -> None:
    json.dumps(about := info._read(path))
    info._lines(path, about)


def score(path: Path) -> None:
    fflm.load(path).score("The cat sat.")


def predict(path: Path) -> None:
    fflm.TextClassifier.load(path).predict_proba(["The cat sat."])


MODELS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "net.model": (run_info, score, TrainingSession.resume),
    "n.ngram": (run_info, score),
    "m.mix": (run_info, score),
    "words.classifier": (run_info, predict, ClassifierSession.resume),
    "features.classifier": (run_info, predict),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all parts of a JSON value; of a list only the first item has one."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places(part, (*path, name))


def mutants(value: Any, step: int = 1) -> Iterator[Any]:
    """Yield copies of a JSON value with one part replaced; only every ``step``-th of all such values."""
    for number, (path, junk) in enumerate((path, junk) for path in places(value) for junk in REPLACEMENTS):
        if number % step:
            continue
        result = part = copy.deepcopy(value)
        for name in path[:-1]:
            part = part[name]
        if junk is REMOVED:
            del part[path[-1]]
        else:
            part[path[-1]] = junk
        yield result


def check_used_or_refused(use: Callable[[Path], Any], path: Path) -> None:
    """Check that the use of a possibly damaged model raises no exception but `FflmError`."""
    with contextlib.suppress(FflmError):
        use(path)


@pytest.mark.parametrize("name", MODELS)
def test_any_config_json_is_used_or_refused(models: Path, name: str) -> None:
    path = Path(name)
    for file in path.glob("*.safetensors"):
        remove_config_checksum(file)
    for changed in mutants(json.loads((path / CONFIG).read_text(encoding="utf-8")), step=29):
        (path / CONFIG).write_text(json.dumps(changed), encoding="utf-8")
        for use in MODELS[name]:
            check_used_or_refused(use, path)


@pytest.mark.parametrize("name", ["net.model", "words.classifier"])
def test_any_log_is_shown_or_refused(models: Path, name: str) -> None:
    path = Path(name)
    lines = [json.loads(line) for line in (path / LOG).read_text(encoding="utf-8").splitlines()]
    for place in (0, 1):
        for changed in mutants(lines[place], step=23):
            log = [*lines[:place], changed, *lines[place + 1 :]]
            (path / LOG).write_text("".join(f"{json.dumps(each)}\n" for each in log), encoding="utf-8")
            check_used_or_refused(run_info, path)
            check_used_or_refused(plot._read, path)


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("net.model/" + WEIGHTS, score),
        ("net.model/" + CHECKPOINT, TrainingSession.resume),
        ("n.ngram/" + WEIGHTS, score),
        ("m.mix/" + WEIGHTS, run_info),
        ("words.classifier/" + WEIGHTS, run_info),
        ("words.classifier/examples.safetensors", ClassifierSession.resume),
    ],
)
def test_any_metadata_of_arrays_is_used_or_refused(models: Path, file: str, use: Callable[[Path], Any]) -> None:
    path = Path(file)
    arrays, about = load_arrays(path, TYPES)
    for changed in (*mutants(about, step=19), None, [], 5, float("nan")):
        save_arrays(path, arrays, changed)
        check_used_or_refused(use, path.parent)


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "of another type": lambda array: array.astype(np.float64 if array.dtype != np.float64 else np.float32),
    "shorter": lambda array: array[:-1].copy(),
    "empty": lambda array: array[:0].copy(),
    "of another shape": lambda array: array[None].copy(),
}


@pytest.mark.parametrize("change", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("net.model/" + WEIGHTS, score),
        ("net.model/" + CHECKPOINT, TrainingSession.resume),
        ("n.ngram/" + WEIGHTS, score),
        ("m.mix/" + WEIGHTS, score),
        ("words.classifier/examples.safetensors", ClassifierSession.resume),
    ],
)
def test_arrays_of_wrong_shape_or_dtype_are_refused(
    models: Path, file: str, use: Callable[[Path], Any], change: Callable[[Any], Any]
) -> None:
    path = Path(file)
    arrays, about = load_arrays(path, TYPES)
    for name, array in arrays.items():
        save_arrays(path, {**arrays, name: change(array)}, about)
        with pytest.raises(FflmError):
            use(path.parent)


@pytest.mark.parametrize(
    ("file", "use", "values"),
    [
        ("net.model/" + WEIGHTS, score, (np.nan, np.inf, -np.inf)),
        ("net.model/" + CHECKPOINT, TrainingSession.resume, (np.nan, np.inf)),
        ("n.ngram/" + WEIGHTS, score, (np.nan, np.inf, 2**32 - 1)),
        ("m.mix/" + WEIGHTS, score, (np.nan, -1, 2)),
        ("words.classifier/" + WEIGHTS, predict, (np.nan,)),
        ("words.classifier/examples.safetensors", ClassifierSession.resume, (-3, 10**9)),
    ],
)
def test_invalid_numbers_in_arrays_are_refused(
    models: Path, file: str, use: Callable[[Path], Any], values: tuple[float, ...]
) -> None:
    path = Path(file)
    arrays, about = load_arrays(path, TYPES)
    for name, array in arrays.items():
        for value in values:
            if (array.dtype.kind == "f") != (not np.isfinite(value) or abs(value) < 3):
                continue
            changed = array.copy()
            changed.flat[array.size // 2] = value
            save_arrays(path, {**arrays, name: changed}, about)
            with pytest.raises(FflmError):
                use(path.parent)


# The checksum of config.json that is stored with the weights.


@pytest.mark.parametrize(
    ("name", "use", "change"),
    [
        ("net.model", score, {"network": {"activation": "tanh"}}),
        ("net.model", score, {"text": {"tokenizer": {"lowercase": True}}}),
        ("net.model", run_info, {"vocabulary": {"rule": "all words"}}),
        ("net.model", TrainingSession.resume, {"network": {"dropout": 0.1}}),
        ("net.model", TrainingSession.resume, {"training": {"rate": 0.5}}),
        ("net.model", TrainingSession.resume, {"threads": 2}),
        ("n.ngram", score, {"ngram": {"notes": ["another"]}}),
        ("m.mix", score, {"vocabulary": {"rule": "all words"}}),
        ("words.classifier", predict, {"labels": ["short", "long"]}),
        ("features.classifier", predict, {"shares": [0.5, 0.5]}),
    ],
)
def test_changed_config_json_is_detected(models: Path, name: str, use: Callable[[Path], Any], change: dict[str, Any]) -> None:
    def merged(old: Any, new: Any) -> Any:
        return {**old, **{key: merged(old.get(key), new[key]) for key in new}} if isinstance(new, dict) else new

    use(Path(name))
    path = Path(name) / CONFIG
    path.write_text(json.dumps(merged(json.loads(path.read_text(encoding="utf-8")), change)), encoding="utf-8")
    with pytest.raises(FflmError, match=r"config\.json was changed after .* was written: restore it"):
        use(Path(name))


def test_config_fields_unrelated_to_weights_may_be_changed(models: Path) -> None:
    path = Path("net.model") / CONFIG
    about = json.loads(path.read_text(encoding="utf-8"))
    about |= {"created": "long ago", "versions": {}, "training": {**about["training"], "epochs": 2}, "a newer field": 1}
    path.write_text(json.dumps(about), encoding="utf-8")
    score(Path("net.model"))
    list(TrainingSession.resume(Path("net.model")).events())
    score(Path("net.model"))


@pytest.mark.parametrize("name", MODELS)
def test_weights_without_config_checksum_are_used(models: Path, name: str) -> None:
    for path in Path(name).glob("*.safetensors"):
        remove_config_checksum(path)
    for use in MODELS[name]:
        use(Path(name))


# Mixtures.


def test_mixture_containing_itself_is_refused(models: Path) -> None:
    about = json.loads(Path("m.mix", CONFIG).read_text(encoding="utf-8"))
    for place, other in (("m.mix", "m.mix"), ("m.mix", "o.mix"), ("o.mix", "m.mix")):
        Path(place).mkdir(exist_ok=True)
        for name in ("vocabulary.tsv", WEIGHTS):
            if not Path(place, name).exists():
                shutil.copy(Path("m.mix", name), place)
        about["mixture"]["components"][0] = {"path": f"../{other}", "fingerprint": fingerprint(Path("m.mix"))}
        Path(place, CONFIG).write_text(json.dumps(about), encoding="utf-8")
        if other != "o.mix":
            with pytest.raises(FflmError, match="a part of itself"):
                fflm.load(place)


def test_mixture_of_too_many_models_is_refused(models: Path) -> None:
    about = json.loads(Path("m.mix", CONFIG).read_text(encoding="utf-8"))
    for number in range(9):
        Path(f"{number}.mix").mkdir()
        parts = [{"path": f"../{number + 1}.mix/{'.' * place}", "fingerprint": "x"} for place in (0, 1)]
        content = {**about, "mixture": {"components": parts}}
        Path(f"{number}.mix", CONFIG).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(FflmError, match="more than 100 models"):
        fflm.load("0.mix")


def test_largest_cache_takes_little_memory(models: Path) -> None:
    model = fflm.load("n.ngram")
    cache = UnigramCache(1_000_000, model.vocabulary, model.text)
    small = UnigramCache(1000, model.vocabulary, model.text)
    assert cache._rows(1024) == 67
    ids = model.text.encode_text("The cat sat. The cat ran.\n" * 20, model.vocabulary)
    assert np.concatenate(small.losses_of_texts([ids, ids[:0], ids[:7]])).shape == (len(ids) + 7,)
    assert small.losses_of_texts([ids])[0] == pytest.approx(small.losses_of_text(ids))


# Pipes, links and devices in place of files.


@pytest.mark.parametrize("file", [CONFIG, "vocabulary.tsv", WEIGHTS, LOG, CHECKPOINT])
def test_pipes_in_model_folder_do_not_block(models: Path, file: str) -> None:
    path = Path("net.model", file)
    path.unlink()
    os.mkfifo(path)
    for use in (run_info, TrainingSession.resume):
        check_used_or_refused(use, Path("net.model"))


def test_corpus_with_invalid_path_is_refused(models: Path) -> None:
    config = Path("net.model", CONFIG)
    about = json.loads(config.read_text())
    about["corpus"]["path"] = "[" * 3000
    config.write_text(json.dumps(about))
    with pytest.raises(FflmError, match=r"cannot find the corpus of net\.model"):
        TrainingSession.resume(Path("net.model"), epochs=9)


def test_log_that_is_a_symbolic_link_is_refused(models: Path, tmp_path: Path) -> None:
    outside, log = tmp_path / "outside", Path("net.model", LOG)
    outside.write_bytes(before := log.read_bytes() + b"something else\n")
    log.unlink()
    log.symlink_to(outside)
    with pytest.raises(FflmError, match="symbolic link"):
        TrainingSession.resume(Path("net.model"), epochs=9)
    assert outside.read_bytes() == before


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(FflmError, match=r"not a regular file|Is a directory"):
            check_regular(path)
    with pytest.raises(FflmError, match="cannot write"):
        open_regular(tmp_path / "pipe", "ab")


# JSON.


class _Example(TypedDict):
    network: NetworkConfig
    name: str


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "expected object, got array"),
        ('{"network": {"vocabulary": 5}}', "missing required field name"),
        ('{"network": {"vocabulary": 5, "window": 0}, "name": ""}', r"at \$\.network\.window: expected int >= 1"),
        ('{"network": {"vocabulary": 5, "window": 8e8}, "name": ""}', r"\$\.network\.window"),
        ('{"network": {"vocabulary": 5, "dropout": NaN}, "name": ""}', "NaN is not a number"),
        ('{"network": {"vocabulary": 5, "dropout": 1e999}, "name": ""}', "not valid JSON"),
        ('{"network": {"vocabulary": 5, "bands": [3]}, "name": ""}', "leave out bands"),
        ('{"network": {"vocabulary": 5, "gates": 1}, "name": ""}', "unknown setting 'gates'"),
        ('{"network": {"vocabulary": 5}, "name": "\\ud800"}', "half of a surrogate pair"),
        (b'{"name": "\xff"}', "not valid JSON"),
    ],
)
def test_json_of_wrong_type_is_refused_with_its_place(text: str | bytes, wrong: str) -> None:
    with pytest.raises(FflmError, match=rf"^file is damaged \(.*{wrong}.*\): restore"):
        from_json(text, _Example, "file")


def test_unknown_json_fields_and_surrogates_are_read() -> None:
    value = {"network": {"vocabulary": 5}, "name": "\udcff", "newer": [None]}
    assert from_json(json.dumps(value), _Example, "file") == value
    assert convert(value, _Example)["network"] == NetworkConfig(5)


# Output.


def test_escape_sequences_in_config_json_are_printed_escaped(models: Path) -> None:
    path = Path("net.model") / CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    for change in ({"created": "\x1b[2Jx\x9b1m"}, {"version": "\x1b]0;x\x07"}, {"device": "\x1b[31mcpu"}):
        path.write_text(json.dumps({**content, **change}), encoding="utf-8")
        result = CliRunner().invoke(main, ["info", "net.model"], prog_name="fflm")
        assert not set(result.output) & set(map(chr, (*range(10), *range(11, 32), *range(127, 160))))
        assert "1b" in result.output  # escaped
    assert printable("a\x1b[0m\tb\x9c") == "a\\u001b[0m\\u0009b\\u009c"
