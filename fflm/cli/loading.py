"""Loading of what several commands need: the given or the latest model, the device, and the text to continue."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from fflm.cli.report import show_word
from fflm.cli.tables import printable

if TYPE_CHECKING:
    from fflm.models.folder import Kind
    from fflm.models.language_model import LanguageModel
    from fflm.models.vectors import Vectors
    from fflm.text.prefixes import Prefix

Result = TypeVar("Result")


def use_device(device: str, quiet: bool) -> Literal["cpu", "cuda"]:
    """Return the device that ``--device`` selects, after printing its name, and why it is not a GPU."""
    from fflm.backend.devices import choose_device, describe_device, why_no_gpu

    chosen = choose_device(device)
    if device != "cpu" and not quiet:
        reason = f" ({why_no_gpu()})" if chosen == "cpu" else ""
        click.echo(f"device: {describe_device(chosen)}{reason}", err=True)
    return chosen


def find_model(path: Path | None, quiet: bool, use: Callable[[Path], Result], *kinds: "Kind") -> tuple[Path, Result]:
    """Return the given model, or the latest usable one in the current folder, and the result of ``use``.

    The name of the latest model is printed on standard error; see `fflm.models.folder.latest_model` for how it is chosen.
    """
    from fflm.models.folder import latest_model

    if path is not None:
        return path, use(path)
    path, result = latest_model(Path(), use, *kinds)
    if not quiet:
        click.echo(f"model: {printable(str(path))}", err=True)
    return path, result


def load_model(path: Path | None, quiet: bool, device: str = "cpu") -> "tuple[Path, LanguageModel]":
    """Load the given model, or the latest language model in the current folder, on a device; return its folder, too."""
    from fflm.models.folder import LANGUAGE_MODELS
    from fflm.models.load import load_language_model

    chosen = use_device(device, quiet)
    return find_model(path, quiet, lambda path: load_language_model(path, chosen), *LANGUAGE_MODELS)


def load_vectors(path: Path | None, quiet: bool) -> "tuple[Path, Vectors]":
    """Load the embeddings of the given model, or of the latest network in the current folder; return its folder, too."""
    from fflm.models.load import load_language_model

    return find_model(path, quiet, lambda path: load_language_model(path).vectors, "network")


def read_prefix(model: "LanguageModel", prefix: str | None, prefix_file: Path | None, quiet: bool) -> "Prefix":
    """Return the given prefix, after printing the words that are not in the model's vocabulary."""
    from fflm.models import generation
    from fflm.text.reading import read_chunks

    if prefix is not None and prefix_file is not None:
        raise click.UsageError("give --prefix or --prefix-file, not both")
    if prefix_file is not None:
        prefix = "".join(read_chunks([prefix_file])).removesuffix("\n")
    result = generation.read_prefix(model, prefix or "")
    if result.unknown and not quiet:
        click.echo(f"not in the vocabulary, read as <unk>: {' '.join(map(show_word, result.unknown))}", err=True)
    return result


def announce_stdin(inputs: Iterable[Path], quiet: bool) -> None:
    """Print that standard input is read if it is a terminal, where the command would otherwise seem to hang."""
    if not quiet and Path("-") in inputs and sys.stdin.isatty():
        click.echo("reading standard input; end with Ctrl-D", err=True)
