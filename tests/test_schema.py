"""The JSON schema of config.json describes every kind of model, and refuses what models refuse."""

import json
from pathlib import Path

import jsonschema
import pytest
from command import STORIES

import fflm
import fflm.cli
from fflm.lm import ngram
from fflm.lm.mixture import mix
from fflm.schema import config_schema


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Return the config.json of a model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    (folder / "lines.tsv").write_text("\n".join(f"{'ab'[row % 2]}\tthe cat {row}" for row in range(40)), encoding="utf-8")
    network = folder / "network"
    fflm.train(folder / "text.txt", network, window=2, embedding=3, hidden=4, averages=2, epochs=1)
    ngram.train([network], folder / "ngram", 2)
    mix([network, folder / "ngram"]).save(folder / "mixture")
    fflm.train_classifier(folder / "lines.tsv", folder / "classifier", epochs=1, embedding=3)
    return {
        kind: json.loads((folder / kind / "config.json").read_text()) for kind in ("network", "ngram", "mixture", "classifier")
    }


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(config_schema())


@pytest.mark.parametrize("kind", ["network", "ngram", "mixture", "classifier"])
def test_it_describes_models_of_every_kind(configs, kind):
    jsonschema.validate(configs[kind], config_schema())
    assert configs[kind].get("kind", "network") == kind


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("network", "window", 0), ("network", "dropout", 1), ("training", "optimizer", "adm"), ("training", "epochs", 1.5),
     ("text", "mode", "lines"), ("vocabulary", "sha256", "")],
)  # fmt: skip
def test_it_refuses_what_is_out_of_range(configs, part, name, value):
    config = configs["network"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, part: {**config[part], name: value}}, config_schema())


def test_settings_have_descriptions():
    for name, definition in config_schema()["$defs"].items():
        for field, about in definition["properties"].items():
            assert about.get("description") or "$ref" in about, (name, field)


def test_the_command_prints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        fflm.cli.main(["info", "--schema"])
    assert json.loads(capsys.readouterr().out) == config_schema()
    assert list(Path().iterdir()) == []
