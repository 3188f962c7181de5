"""`fflm info`: the description of a model and of its training."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from fflm.cli.loading import find_model
from fflm.cli.options import PATH, json_option, model_option, quiet_option
from fflm.cli.report import (
    EVALUATIONS,
    describe_classification,
    describe_perplexity,
    describe_text,
    echo_json,
    show_training,
    show_valid,
)
from fflm.cli.tables import Column, printable, stdout_width, table
from fflm.errors import FflmError

UNUSED = {
    "window": {"numbers"},
    "mean": {"window", "averages", "word_weights", "numbers"},
    "max": {"window", "averages", "word_weights", "numbers"},
    "numbers": {"window", "averages", "word_weights", "embedding", "tied"},
}
"""Settings that have no effect on a network, by the type of its input."""


@click.command()
@click.argument("model", required=False, type=PATH)
@model_option
@quiet_option
@json_option
def command(model: Path | None, model_path: Path | None, quiet: bool, as_json: bool) -> None:
    """Show how MODEL is configured and how it was trained: network, sizes, text, history, figures, versions.

    MODEL may also be given with -m, as for other commands. Without it, the latest model in this folder is shown.

    \b
    Example:
      fflm info stories.model
    """
    from fflm.models.folder import LANGUAGE_MODELS

    if model and model_path:
        raise click.UsageError("give one model: either MODEL or --model")
    path, about = find_model(model or model_path, quiet, _read, *LANGUAGE_MODELS, "classifier")
    if as_json:
        echo_json(about, indent=2)
    else:
        click.echo("\n".join(map(printable, _lines(path, about))))


def _read(path: Path) -> dict[str, Any]:
    """Return the description of a model as JSON: config.json, sizes, evaluations, the figures of the best weights."""
    from fflm.arrays import CHECKPOINT, LOG, WEIGHTS, load_arrays, meaning
    from fflm.models import description
    from fflm.models.classifier import model as classifiers
    from fflm.models.folder import read_config, require
    from fflm.models.load import load as load_model
    from fflm.network.config import NetworkConfig
    from fflm.network.parameters import shapes
    from fflm.training.checkpoints import check_shapes
    from fflm.training.log import read_log

    about = read_config(path)
    require(path, about, "created")
    if about.get("kind") == "ngram":
        return _read_ngram(path)
    if about.get("kind") == "mixture":
        return _read_mixture(path)
    load: Callable[..., Any] = load_model
    events = description.EVENTS
    if about.get("kind") == "classifier":
        about = read_config(path, "classifier", classifiers.ClassifierFile)
        load, events = classifiers.TextClassifier.load, classifiers.EVENTS
        require(path, about, "texts", "counts")
    else:
        read_config(path, "network")  # raises an error if the kind is unknown
        require(path, about, "corpus")
        require(path, about["corpus"], "parts")
    require(path, about, "training", "threads")
    config = NetworkConfig.from_dict(about["network"])
    figures: dict[str, Any] | None = None
    if (path / WEIGHTS).is_file():
        figures = load(path, verify=True).about["figures"]
    elif (path / CHECKPOINT).is_file():  # raises an error if it is damaged, so that training cannot be resumed
        check_shapes(path / CHECKPOINT, config)
        load_arrays(path / CHECKPOINT, config=meaning(about, training=True))
    else:
        raise FflmError(f"{path} contains neither weights nor a checkpoint: train again")
    log = read_log(path / LOG, events) if (path / LOG).is_file() else []
    arrays = shapes(config)
    files = [path / name for name in (WEIGHTS, CHECKPOINT) if (path / name).is_file()]
    return {
        "model": str(path),
        **about,
        "parameters": {
            "count": sum(map(math.prod, arrays.values())),
            "arrays": {name: list(shape) for name, shape in arrays.items()},
            "bytes": {file.name: file.stat().st_size for file in files},
        },
        "finished": next((event["reason"] for event in reversed(log) if event.get("event") == "finished"), None),
        "history": [event for event in log if event.get("event") == "evaluation"],
        "figures": figures,
    }


def _read_ngram(path: Path) -> dict[str, Any]:
    """Return the description of an n-gram model as JSON: config.json, sizes and figures."""
    from fflm.arrays import INDEX, WEIGHTS
    from fflm.models.ngram.model import NgramModel

    model = NgramModel.load(path, verify=True)
    arrays = model.arrays
    numbers = sum(array.size for name, array in arrays.items() if name in ("log_probabilities", "back_offs"))
    return {
        "model": str(path),
        **model.about,
        "parameters": {
            "count": numbers,
            "arrays": {name: list(array.shape) for name, array in arrays.items()},
            "bytes": {name: (path / name).stat().st_size for name in (WEIGHTS, INDEX) if (path / name).is_file()},
        },
    }


def _read_mixture(path: Path) -> dict[str, Any]:
    """Return the description of a mixture as JSON: config.json, and the figures with the weights."""
    from fflm.models.mixture.model import Mixture

    mixture = Mixture.load(path, verify=True)
    return {"model": str(path), **mixture.about, "figures": mixture.figures}


def _lines(path: Path, about: dict[str, Any]) -> list[str]:
    """Return the description of a model, from `_read`, as lines of text."""
    from fflm.text.settings import TextSettings

    if about.get("kind") == "ngram":
        return _ngram_lines(path, about)
    if about.get("kind") == "mixture":
        return _mixture_lines(path, about)
    if about.get("kind") == "classifier":
        return _classifier_lines(path, about)
    text, vocabulary, parts = about["text"], about["vocabulary"], about["corpus"]["parts"]
    lines = [*_network(path, about), *_text(about)]
    policy = TextSettings.from_dict(text).policy
    lines += ["", *describe_text(vocabulary["size"], vocabulary["rule"], policy, parts)]
    lines += _training(about)
    tokens = parts["train"]["tokens"]

    def losses(event: dict[str, Any]) -> list[str]:
        return [show_training(event["train_loss"] if event.get("exact", True) else None), *show_valid(event["valid"])]

    return [*lines, *_history(about, EVALUATIONS, tokens, losses), *_best(about, describe_perplexity)]


def _history(
    about: dict[str, Any], columns: Sequence[Column], epoch: int, losses: Callable[[dict[str, Any]], list[str]]
) -> list[str]:
    """Return the table of the evaluations of a network as lines.

    Parameters
    ----------
    about
        The description of the model.
    columns
        The columns of the table.
    epoch
        Number of examples in an epoch.
    losses
        A function that returns the cells with the losses of an evaluation.
    """
    rows = []
    for event in about["history"]:
        start = [f"{round(event['words'] / epoch, 2):g}", f"{event['step']:,}"]
        end = ["*" if event["best"] else "", f"{event['rate']:.2g}", f"{event['seconds']:,.1f}"]
        rows.append([*start, *losses(event), *end])
    headings = [*(column.heading for column in columns), "seconds"]
    return ["", "history", *table("r" * len(headings), headings, rows, stdout_width(), indent="  ")]


def _network(path: Path, about: dict[str, Any]) -> list[str]:
    """Return the state of training and the configuration of the network as lines."""
    network = {
        name: value for name, value in about["network"].items() if name not in UNUSED[about["network"].get("input", "window")]
    }
    command = "fflm classify train" if about.get("kind") == "classifier" else "fflm train"
    finished = f"finished: {about['finished']}" if about["finished"] else f"unfinished: resume with `{command} --resume {path}`"
    lines = [f"{about.get('kind', 'model')} {path}, started {about['created']}", finished, "", "network", *_pairs(network)]
    lines += ["", f"parameters: {about['parameters']['count']:,}"]
    for name, shape in about["parameters"]["arrays"].items():
        lines.append(f"  {name:18} {' x '.join(f'{n:,}' for n in shape):>18} {math.prod(shape):>14,}")
    return [*lines, *_sizes(about)]


def _training(about: dict[str, Any]) -> list[str]:
    """Return the settings of training as lines."""
    several = {"processes": about["processes"]} if about.get("processes", 1) > 1 else {}
    machine = {
        **several,
        "threads": about["threads"],
        "device": about.get("device", "cpu"),
        "precision": about.get("precision", "fp32"),
    }
    teacher = {f"teacher: {name}": about["teacher"][name] for name in ("path", "weight")} if "teacher" in about else {}
    return ["", "training", *_pairs(about["training"]), *_pairs(teacher), *_pairs(machine)]


def _best(about: dict[str, Any], describe: Callable[[dict[str, Any]], str]) -> list[str]:
    """Return the figures of the best weights and the versions of libraries as lines."""
    lines = ["  not evaluated yet: there are no weights to use, only a checkpoint to resume from"]
    if about["figures"] is not None:
        epoch = about["figures"].get("epoch")
        lines = ["", "best weights" if epoch is None else f"best weights, from epoch {epoch:g}"]
        lines += [f"  {name:5} {describe(about['figures'][name])}" for name in ("valid", "test") if name in about["figures"]]
    return [*lines, "", "versions", *_pairs(about["versions"])]


def _classifier_lines(path: Path, about: dict[str, Any]) -> list[str]:
    """Return the description of a text classifier as lines."""
    from fflm.cli.classify import EVALUATIONS, describe_part, show_valid
    from fflm.models.classifier.settings import TextInput

    lines = _network(path, about)
    input = TextInput.from_dict(about["input"])
    text = input.to_dict()
    tokenizer, lexicon = text.pop("tokenizer"), text.pop("lexicon")
    lexicon = {f"lexicon: {name}": f"{len(words):,} words" for name, words in lexicon.items()}
    lines += ["", "text", *_pairs(tokenizer, mode="tokenizer"), *_pairs({**text, **lexicon})]
    lines += ["", *(f"{name}: {describe_part(part)}" for name, part in about["texts"].items())]
    lines.append(f"vocabulary: {about['vocabulary']['size']:,} ({about['vocabulary']['rule']})")
    lines += [
        "",
        f"classes, {input.unit}s of the training set",
        *_pairs(dict(zip(about["labels"], about["counts"], strict=True))),
    ]
    lines += _training(about)

    def losses(event: dict[str, Any]) -> list[str]:
        return [f"{event['train_loss']:.4f}", *show_valid(event["valid"])]

    best = _best(about, functools.partial(describe_classification, unit=input.unit))
    return [*lines, *_history(about, EVALUATIONS, about["texts"]["train"]["texts"], losses), *best]


def _mixture_lines(path: Path, about: dict[str, Any]) -> list[str]:
    """Return the description of a mixture as lines."""
    from fflm.cli.mix import describe_members, describe_tuning

    lines, figures = [f"mixture {path}, created {about['created']}"], about["figures"]
    if "training" in about:
        members = len(about["mixture"]["components"])
        lines += [f"an ensemble: {members} networks, trained with the seeds from {about['training']['seed']}"]
    lines += ["", *describe_tuning(figures["tuning"])] if "tuning" in figures else describe_members(figures)
    lines += _text(about)
    lines += ["", f"vocabulary: {about['vocabulary']['size']:,} ({about['vocabulary']['rule']})"]
    return [*lines, "", "versions", *_pairs(about["versions"])]


def _ngram_lines(path: Path, about: dict[str, Any]) -> list[str]:
    """Return the description of an n-gram model as lines."""
    from fflm.cli.ngram import describe

    source = about["ngram"].get("source")
    lines = [f"n-gram model {path}, created {about['created']}{f' from {source}' if source else ''}", "", *describe(about)]
    lines += ["", f"parameters: {about['parameters']['count']:,}", *_sizes(about), *_text(about)]
    return [*lines, "", "versions", *_pairs(about["versions"])]


def _sizes(about: dict[str, Any]) -> list[str]:
    """Return a line for each file of weights, with its size."""
    return [f"  {name}: {size / 1e6:,.2f} MB" for name, size in about["parameters"]["bytes"].items()]


def _text(about: dict[str, Any]) -> list[str]:
    """Return the settings with which a model reads text as lines."""
    from fflm.text.settings import TextSettings

    settings = TextSettings.from_dict(about["text"]).to_dict()
    tokenizer = settings.pop("tokenizer")
    return ["", "text", *_pairs(tokenizer, mode="tokenizer"), *_pairs(settings)]


def _pairs(values: dict[str, Any], **names: str) -> list[str]:
    """Return a line for each value, with its name, or the one given for it in ``names``."""
    from rich.cells import cell_len

    lines = []
    for name, value in values.items():
        if isinstance(value, bool):
            shown = "yes" if value else "no"
        elif isinstance(value, list):
            shown = ", ".join(map(str, value)) or "none"
        else:
            shown = "none" if value is None else str(value)
        label = names.get(name, name).replace("_", " ")
        lines.append(f"  {label}{' ' * (18 - cell_len(label))} {shown}")
    return lines
