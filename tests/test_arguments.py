"""Arguments of public functions are converted to their types, or refused in one line that names the argument."""

import dataclasses
import inspect
import json
import math
from pathlib import Path

import click
import jsonschema
import numpy as np
import pytest
from command import STORIES
from tiny import tiny_model

import fflm
from fflm.arguments import check, description, plain, to_paths
from fflm.cli import _as_commands
from fflm.cli import classify as classify_command
from fflm.cli import train as train_command
from fflm.models.classifier.settings import TextInput
from fflm.models.classifier.train import OPTIONS as CLASSIFY_OPTIONS
from fflm.models.mixture.cache import UnigramCache
from fflm.models.mixture.model import Mixture
from fflm.models.neural.train import OPTIONS, start_session
from fflm.network.config import NetworkConfig
from fflm.schema import config_schema
from fflm.text.corpus import Corpus
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule
from fflm.text.windows import Windows
from fflm.training.settings import TrainingSettings

NAN = math.nan
SMALL = {"epochs": 1, "embedding": 4, "hidden": 4, "window": 3, "overwrite": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a text, labeled texts, and a small model of each kind, trained with the Python functions."""
    folder = tmp_path_factory.mktemp("arguments")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    (folder / "labeled.tsv").write_text("up\tone good day\ndown\ta bad night\n" * 20, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fflm.train("text.txt", "net.model", **{**SMALL, "hidden": np.array([4]), "rate": np.float32(0.01), "seed": np.int64(3)})
        fflm.train_ngram("text.txt", order=np.int64(2))
        fflm.mix(["net.model", "text.ngram"], cache=5, tune="text.txt").save("both.mix")
        fflm.train_classifier("labeled.tsv", epochs=1, embedding=4, valid=0.2)
        fflm.train_classifier(
            "labeled.tsv", "features.classifier", epochs=1, input="features", present="good", counts=3, valid=None
        )
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module", params=["network", "mixture"])
def model(request):
    network = tiny_model()
    if request.param == "network":
        return network
    return Mixture({"network": network, "cache": UnigramCache(3, network.vocabulary, network.text)}, [0.5, 0.5])


def check_refused(name, function):
    """Check that a call is refused in one line that names the Python argument; return the line."""
    with pytest.raises(fflm.FflmError) as caught:
        function()
    message = str(caught.value)
    assert f"`{name}`" in message
    assert "\n" not in message
    assert "--" not in message
    assert len(message) < 250
    return message


# Single values.


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, np.int64(4), 4),
        (int, np.array(4), 4),
        (float, 1, 1.0),
        (float, np.float32(0.5), 0.5),
        (bool, np.True_, True),
        (str, np.str_("a"), "a"),
        (tuple[int, ...], 4, (4,)),
        (tuple[int, ...], [4, np.int8(5)], (4, 5)),
        (tuple[int, ...], np.array([4, 5]), (4, 5)),
        (tuple[int, ...], range(2), (0, 1)),
        (tuple[int, ...] | None, None, None),
        (tuple[str, ...], "word", ("word",)),
        (Path | None, "words.txt", Path("words.txt")),
        (list[str], ("a", "b"), ["a", "b"]),
        (list[str], (each for each in "ab"), ["a", "b"]),
        (list[str], np.array(["a"], object), ["a"]),
    ],
)
def test_check_converts_equivalent_values(annotation, value, expected):
    result = check("x", annotation, value)
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 4.0),
        (int, True),
        (int, "4"),
        (int, None),
        (int, [4]),
        (int, np.float64(4)),
        (float, NAN),
        (float, math.inf),
        (float, "1"),
        (float, True),
        (bool, 1),
        (bool, "yes"),
        (bool, None),
        (str, b"a"),
        (str, 1),
        (str, Path("a")),
        (tuple[int, ...], "4"),
        (tuple[int, ...], [4.0]),
        (tuple[int, ...], {4}),
        (tuple[int, ...], None),
        (tuple[int, ...], np.ones((2, 2), int)),
        (Path, b"a"),
        (Path, 3),
        (Path, ""),
        (list[str], "abc"),
        (list[str], {"a": 1}),
    ],
    ids=repr,
)
def test_check_refuses_values_of_other_types(annotation, value):
    check_refused("x", lambda: check("x", annotation, value))


def test_check_error_names_expected_value_and_item():
    assert check_refused("rate", lambda: TrainingSettings(rate=0)) == "`rate` must be a number above 0, not 0"
    assert (
        check_refused("warmup", lambda: TrainingSettings(warmup=1))
        == "`warmup` must be a number of at least 0 and below 1, not 1"
    )
    assert check_refused("hidden", lambda: NetworkConfig(5, hidden=(3, 0))).endswith(
        "a list of at most 1,000 integers from 1 to 1,000,000; item 1 is 0"
    )


class Table:
    """A data frame like those of pandas and Polars, whose iterator yields the names of columns."""

    def __iter__(self):
        return iter(["column"])

    def to_numpy(self):
        """Return the values of the table."""
        return np.array([["a text"]], object)


def test_data_frame_is_converted_to_its_values():
    assert plain(Table()) == [["a text"]]


# Models.


CALLS = [
    *[("text", "score", (value,), {}) for value in (["a", "b"], b"the cat", None, 3, NAN, Path("x"))],
    *[
        ("paths", "perplexity", value, {})
        for value in ((), ("not a path",), (3,), (None,), (b"x",), ("",), ("\0",), ("x" * 300,))
    ],
    ("paths", "perplexity", ("\ud800",), {}),
    ("encoding", "perplexity", ("x",), {"encoding": None}),
    *[("prefix", "generate", (value,), {}) for value in (3, None, b"the", ["the"])],
    *[("samples", "generate", (), {"samples": value}) for value in (0, 1.5, "2", True, None)],
    *[("temperature", "generate", (), {"temperature": value}) for value in (-1, NAN, math.inf, "1", None)],
    *[("top_p", "generate", (), {"top_p": value}) for value in (0, 1.1, 2, NAN, "x")],
    *[("seed", "generate", (), {"seed": value}) for value in (-1, 1.0, "x", 2**64)],
    *[("length", "generate", (), {"length": value}) for value in (0, None, 2.0)],
    ("top_k", "generate", (), {"top_k": 0}),
    ("beams", "generate", (), {"beams": 0}),
    ("length", "generate", (), {"beams": 2, "length": 0}),
    ("greedy", "generate", (), {"greedy": 1}),
    ("unknown", "generate", (), {"unknown": "yes"}),
    ("stop_at_end", "generate", (), {"stop_at_end": 2}),
    *[("top", "next_words", ("the", value), {}) for value in (0, -1, 2.0, True)],
    ("prefix", "next_words", (3,), {}),
    ("word", "neighbours", (3,), {}),
    ("top", "neighbours", ("the", -1), {}),
]


@pytest.mark.parametrize(("name", "method", "arguments", "options"), CALLS, ids=repr)
def test_model_methods_refuse_invalid_arguments(model, name, method, arguments, options):
    check_refused(name, lambda: getattr(model, method)(*arguments, **options))


def test_model_methods_accept_numpy_scalars(model):
    options = {"samples": np.int64(2), "length": np.int32(3), "temperature": np.float32(0.5), "seed": np.uint64(5)}
    expected = model.generate("the", **{name: value.item() for name, value in options.items()})
    assert model.generate(np.str_("the"), **options) == expected
    assert model.next_words("the", np.int64(2)) == model.next_words("the", 2)


def test_vectors_refuse_invalid_arguments():
    vectors = tiny_model().vectors
    for word in (3, None, ["the"], b"the", slice(2)):
        check_refused("word", lambda word=word: vectors[word])
        assert word not in vectors
    check_refused("b", lambda: vectors.analogy("the", 3, "cat"))
    check_refused("top", lambda: vectors.analogy("the", "dog", "cat", 0))


@pytest.mark.parametrize(
    "load", [fflm.load, fflm.NeuralModel.load, fflm.NgramModel.load, fflm.Mixture.load, fflm.TextClassifier.load]
)
def test_load_refuses_paths_that_are_not_models(load, tmp_path):
    for path in (None, "", 3, b"x", ["x"], "\0", "x" * 5000):
        check_refused("path", lambda path=path: load(path))
    check_refused("device", lambda: load(tmp_path, "gpu"))
    with pytest.raises(fflm.FflmError, match="is not a model"):
        load(tmp_path)


# Classifiers.


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_predict_refuses_single_text_and_other_types(in_folder, method):
    classifier = fflm.TextClassifier.load("labeled.classifier")
    wrong = ("one text", b"x", None, 3, ["a", None], ["a", NAN], ["a", b"b"], [["a"]], {"a": 1}, {"a"}, Table(), [Path("x")])
    for texts in wrong:
        check_refused("texts", lambda texts=texts: getattr(classifier, method)(texts))
    assert check_refused("texts", lambda: getattr(classifier, method)("one text")).endswith("put it into a list")
    expected = getattr(classifier, method)(["a good day", "night"])
    for texts in (("a good day", "night"), np.array(["a good day", "night"]), iter(["a good day", "night"])):
        assert np.array_equal(getattr(classifier, method)(texts), expected)
    assert len(getattr(classifier, method)([])) == 0


def test_evaluate_refuses_texts_and_labels_of_different_lengths(in_folder):
    classifier = fflm.TextClassifier.load("labeled.classifier")
    check_refused("texts", lambda: classifier.evaluate("one", ["up"]))
    check_refused("labels", lambda: classifier.evaluate(["one", "two"], "up"))
    for texts, labels in ((["one"], ["up", "down"]), ([], [])):
        with pytest.raises(fflm.FflmError, match="give each text one label"):
            classifier.evaluate(texts, labels)


# Training.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", 0),
        ("hidden", "4"),
        ("hidden", 4.0),
        ("hidden", None),
        ("averages", "x"),
        ("epochs", True),
        ("epochs", 1.0),
        ("rate", math.inf),
        ("dropout", 1),
        ("seed", -1),
        ("threads", 0),
        ("device", "gpu"),
        ("precision", "fp16"),
        ("preset", "fast"),
        ("vectors", 3),
        ("vectors", ""),
        ("words", 3),
        ("words", ["the", "cat"]),
        ("source", "x"),
        ("min_count", 0),
        ("max_size", 2),
        ("tokenizer", "words"),
        ("tokenizer", None),
        ("mode", "x"),
        ("line_ends", 1),
        ("encoding", None),
        ("errors", "ignore"),
        ("processes", 0),
        ("progress", 3),
        ("overwrite", "yes"),
        ("optimizer", None),
        ("valid", True),
        ("valid", b"x"),
        ("valid", ""),
        ("test", {"a": 1}),
        ("valid", ["a cat sat", "on a mat"]),
        ("path", 3),
        ("members", 0),
    ],
    ids=repr,
)
def test_train_refuses_invalid_settings(in_folder, name, value):
    before = sorted(in_folder.iterdir())
    check_refused(name, lambda: fflm.train("text.txt", **{"path": "new.model", name: value}))
    assert sorted(in_folder.iterdir()) == before


@pytest.mark.parametrize("train", [fflm.train, fflm.train_ngram, fflm.train_classifier])
def test_train_functions_refuse_inputs_that_are_not_paths(in_folder, train):
    for inputs in (
        ["the cat sat", "on the mat"],
        "the cat sat. " * 50,
        3,
        None,
        b"text.txt",
        [],
        "",
        {"a": 1},
        ["text.txt", None],
    ):
        check_refused("inputs", lambda inputs=inputs: train(inputs))
    with pytest.raises(fflm.FflmError, match=r"there is no file 'the cat sat'.*a text without a file is given by `fflm.Text`"):
        train(["the cat sat", "on the mat"])
    assert to_paths("inputs", Path("text.txt")) == to_paths("inputs", iter(["text.txt"])) == (Path("text.txt"),)


def test_train_classifier_refuses_invalid_settings(in_folder):
    for name, value in {"lexicons": 3, "present": 3, "vectors": 3, "counts": -1, "text_column": 3, "max_size": 2}.items():
        check_refused(
            name, lambda name=name, value=value: fflm.train_classifier("labeled.tsv", "new.classifier", **{name: value})
        )


def test_resume_and_progress_options_refuse_invalid_values(in_folder):
    check_refused("epochs", lambda: fflm.resume("net.model", epochs=0))
    check_refused("device", lambda: fflm.resume("net.model", device="tpu"))
    check_refused("path", lambda: fflm.resume(3))
    for name, value in {"verbose": 2, "callback": "print"}.items():
        check_refused(name, lambda name=name, value=value: fflm.resume("net.model", **{name: value}))
        check_refused(name, lambda name=name, value=value: fflm.train("text.txt", "new.model", **{name: value}))
        check_refused(
            name, lambda name=name, value=value: fflm.train_classifier("labeled.tsv", "new.classifier", **{name: value})
        )


def test_unknown_setting_gets_suggestion():
    for train in (fflm.train, fflm.train_classifier):
        with pytest.raises(fflm.FflmError, match="unknown setting 'hiden': did you mean 'hidden'"):
            train("text.txt", hiden=4)
        with pytest.raises(fflm.FflmError, match="unknown setting 'vocabulary_source': did you mean 'source'"):
            fflm.train("text.txt", "text.model", vocabulary_source="all")
    with pytest.raises(fflm.FflmError, match="unknown setting 'window'"):
        fflm.train_ngram("text.txt", window=3)


def test_single_path_is_accepted_for_list_of_paths(in_folder):
    Path("words.txt").write_text("the\ncat\nand\n", encoding="utf-8")
    Path("some.vec").write_text("1 4\nthe 1 2 3 4\n", encoding="utf-8")
    run = start_session("text.txt", "paths.model", valid="./text.txt", test=0.1, words="words.txt", vectors="some.vec", **SMALL)
    assert run.vectors == 1
    assert set(run.corpus.vocabulary.words) == {"<unk>", "</s>", "the", "cat", "and"}
    assert {"train", "valid", "test"} == set(run.corpus.parts)
    assert run.trainer.network.config.hidden == (4,)


# Options, docstrings and schema from annotations.


FLAGS = {"lexicons", "present", "balanced", "overwrite", "vectors", "preset"}
"""Settings whose command options have no default."""

ONLY_PYTHON = {
    "progress",
    "frozen",
    "direct",
    "normalization",
    "nesterov",
    "epsilon",
    "decay",
    "warmup",
    "evaluate_every",
    "preset",
}
ONLY_COMMANDS = {"output", "resume", "save_every", "quiet", "as_json", "preset"}


TRAIN_OPTIONS = {**OPTIONS, "members": inspect.signature(fflm.train).parameters["members"]}


@pytest.mark.parametrize(
    ("settings", "command"), [(TRAIN_OPTIONS, train_command.command), (CLASSIFY_OPTIONS, classify_command.train)]
)
def test_command_options_equal_settings(settings, command):
    options = {param.name: param for param in command.params if isinstance(param, click.Option)}
    assert set(options) <= set(settings) | ONLY_COMMANDS
    assert set(settings) <= set(options) | ONLY_PYTHON
    for name in set(settings) & set(options):
        assert options[name].help.startswith(description(settings[name].annotation))
        if settings[name].default is not None and name not in FLAGS:
            assert options[name].default in (settings[name].default, [settings[name].default])


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (fflm.train, OPTIONS),
        (fflm.train_ngram, ["order", "valid", "tokenizer"]),
        (fflm.train_classifier, CLASSIFY_OPTIONS),
    ],
    ids=["train", "train_ngram", "train_classifier"],
)
def test_docstring_lists_every_setting_with_type_and_default(function, names):
    parameters = inspect.signature(function).parameters
    for name in names:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"\n{name} : " in function.__doc__
    assert "options" not in parameters
    if "hidden" in names:
        assert "hidden : a list of at most 1,000 integers from 1 to 1,000,000, default (" in function.__doc__


@pytest.mark.parametrize("of", [NetworkConfig, TrainingSettings, Tokenizer, TextSettings, VocabularyRule, TextInput])
def test_every_settings_field_has_description(of):
    for field in dataclasses.fields(of):
        assert description(field.type).endswith((".", ")")), field.name


def test_schema_is_current_and_accepts_every_kind_of_model(in_folder):
    schema = json.loads((Path(__file__).parents[1] / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    assert schema == json.loads(json.dumps(config_schema())), "run: python -m fflm.schema > docs/config.schema.json"
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    models = ("net.model", "text.ngram", "both.mix", "labeled.classifier", "features.classifier")
    for about in (json.loads(Path(name, "config.json").read_text(encoding="utf-8")) for name in models):
        validator.validate(about)
        assert not validator.is_valid({**about, "format": "another"})
        if "training" in about:
            assert not validator.is_valid({**about, "training": {**about["training"], "rate": -1}})


def test_invalid_setting_in_config_json_names_file_and_place(in_folder):
    path = in_folder / "net.model" / "config.json"
    content = path.read_text(encoding="utf-8")
    try:
        path.write_text(content.replace('"window": 3', '"window": 0'), encoding="utf-8")
        with pytest.raises(fflm.FflmError, match=r"config\.json is damaged \(at \$\.network\.window: expected int >= 1\)"):
            fflm.load("net.model")
    finally:
        path.write_text(content, encoding="utf-8")


def test_numpy_settings_are_stored_as_plain_numbers(in_folder):
    about = json.loads(Path("net.model/config.json").read_text(encoding="utf-8"))
    assert about["network"]["hidden"] == [4]
    assert (about["training"]["rate"], about["training"]["seed"]) == (pytest.approx(0.01), 3)


# Messages of the command line.


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("give `overwrite=True`", "give --overwrite"),
        ("give `tied=False`, or `bands`", "give --no-tied, or --bands"),
        ("`valid=0` or `errors='replace'`", "--valid 0 or --errors replace"),
        ("`min_count` must be", "--min-count must be"),
        ("`words` or `lexicons`", "--vocabulary or --lexicon"),
        ("`fflm train --resume x` goes on", "`fflm train --resume x` goes on"),
        ("train one with `fflm.train_ngram`", "train one with `fflm ngram train`"),
        ("`fflm.train` and `self_normalise=0.1`", "`fflm train` and --self-normalise 0.1"),
        ("`fflm.resume('a b.model')` resumes it", "`fflm train --resume a b.model` resumes it"),
        ("`fflm.load`", "`fflm.load`"),
    ],
)
def test_as_commands_replaces_python_names_by_options(message, shown):
    assert _as_commands(message) == shown


# Exported names and representations.


def test_package_exports_public_names():
    assert set(dir(fflm)) >= {
        "train",
        "train_ngram",
        "mix",
        "load",
        "resume",
        "LanguageModel",
        "NgramModel",
        "Mixture",
        "Score",
        "TextClassifier",
    }
    assert all(getattr(fflm, name) is not None for name in dir(fflm))
    assert Path(fflm.__file__).with_name("py.typed").is_file()
    with pytest.raises(AttributeError):
        _ = fflm.nothing


def test_repr_is_one_short_line(in_folder):
    models = [fflm.load(name) for name in ("net.model", "text.ngram", "both.mix")]
    network, corpus = models[0], Corpus.open("net.model/corpus")
    for each in (
        *models,
        *map(fflm.TextClassifier.load, ("labeled.classifier", "features.classifier")),
        network.vocabulary,
        network.parameters,
        network.vectors,
        network.score("the cat"),
        corpus,
        corpus.parts["train"],
        Windows(np.zeros(9), 2, padding=0),
    ):
        assert "\n" not in repr(each)
        assert len(repr(each)) < 200
        assert repr(each).startswith(type(each).__name__)
    assert repr(network) == (
        f"NeuralModel(window 3, {network.parameters.count:,} parameters, vocabulary {len(network.vocabulary)}, "
        f"valid perplexity {network.about['figures']['valid']['perplexity']:.2f})"
    )
