"""`fflm ngram`: Kneser-Ney n-gram models, and files in the ARPA format."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fflm.cli.loading import find_model
from fflm.cli.options import (
    PATH,
    annotated_option,
    given_options,
    json_option,
    model_option,
    overwrite_option,
    quiet_option,
    refuse_text_options,
    text_options,
)
from fflm.cli.report import describe_perplexity, describe_text, echo_json, message_console
from fflm.models.ngram.settings import MEMORY, ORDER, Memory, Order, Prune, PruneEntropy

if TYPE_CHECKING:
    from rich.console import Console

    from fflm.models.ngram.model import NgramModel

_output = click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="The model.")


@click.group()
def command() -> None:
    """Train n-gram models (interpolated modified Kneser-Ney), and read and write them in the ARPA format.

    The model is a folder that `score`, `next` and `generate` accept like any other model.

    \b
    Example:
      fflm ngram train corpora/stories.txt -o stories.ngram
    """


@command.command("train")
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@_output
@overwrite_option
@annotated_option("order", Order, ORDER)
@annotated_option("prune", Prune, "0")
@annotated_option("prune_entropy", PruneEntropy, 0.0)
@annotated_option("memory", Memory, MEMORY)
@click.option("--arpa", type=PATH, metavar="FILE", help="Also write the model in the ARPA format.")
@text_options
@quiet_option
@json_option
@click.pass_context
def train(
    context: click.Context,
    /,
    inputs: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    arpa: Path | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on INPUTS: files (also compressed), folders, - for standard input, a folder of `fflm tokenize`, or a model.

    If the input is another model, such as a network, train on that model's text with its vocabulary, so that both are comparable.

    \b
    Example:
      fflm ngram train corpora/stories.txt -o stories.ngram
      fflm ngram train stories.model -o stories.ngram --order 3 --arpa stories.arpa
      fflm ngram train corpora/stories.txt -o small.ngram --prune 0,0,1
      fflm ngram train corpora/stories.txt -o large.ngram --memory 2G
    """
    from fflm.files import check_file
    from fflm.models.ngram.arpa import write_arpa
    from fflm.models.ngram.train import train
    from fflm.parallel.world import world

    console = message_console(quiet)
    refuse_text_options(inputs, given_options(context))
    if arpa:
        check_file(arpa, overwrite)
    with _progress(console) as (progress, stages):
        model = train(inputs, output, overwrite=overwrite, progress=progress, stages=stages, **options)
    if arpa:
        world().on_first(lambda: write_arpa(model, arpa, overwrite=overwrite))
    _report(model, output, as_json)


@command.command("export")
@model_option
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="The ARPA file.")
@overwrite_option
@quiet_option
def export(model_path: Path | None, output: Path, overwrite: bool, quiet: bool) -> None:
    """Write an n-gram model in the ARPA format, which KenLM, SRILM and others read.

    \b
    Example:
      fflm ngram export -m stories.ngram -o stories.arpa
    """
    from fflm.files import check_file
    from fflm.models.ngram.arpa import write_arpa
    from fflm.models.ngram.model import NgramModel

    check_file(output, overwrite)
    _, model = find_model(model_path, quiet, NgramModel.load, "ngram")
    write_arpa(model, output, overwrite=overwrite)


@command.command("import")
@click.argument("file", type=PATH)
@_output
@overwrite_option
@click.option(
    "--tokenizer",
    type=click.Choice(["word", "char", "space"]),
    default="space",
    show_default=True,
    help="How text is split into the words of the file.",
)
@click.option("--lowercase", is_flag=True, help="Convert text to lower case, because the words of the file are in lower case.")
@click.option(
    "--mode",
    type=click.Choice(["stream", "sentence"]),
    help="Whether </s> ends sentences or the lines of one long text. [default: sentence if the file has it]",
)
@json_option
def import_(
    file: Path,
    output: Path,
    overwrite: bool,
    tokenizer: Literal["word", "char", "space"],
    lowercase: bool,
    mode: Literal["stream", "sentence"] | None,
    as_json: bool,
) -> None:
    """Import FILE, an n-gram model in the ARPA format of KenLM, SRILM and others, which may be compressed.

    \b
    Example:
      fflm ngram import news.arpa.gz -o news.ngram
    """
    from fflm.models.ngram.arpa import import_arpa
    from fflm.text.tokenizer import Tokenizer

    words = Tokenizer(mode=tokenizer, lowercase=lowercase)
    model = import_arpa(file, output, tokenizer=words, mode=mode, overwrite=overwrite)
    _report(model, output, as_json)


@contextlib.contextmanager
def _progress(console: "Console") -> Iterator[tuple[Callable[[int], None], Callable[[str, float], None]]]:
    """Display how much text has been read, and then what is done to the n-grams; yield the functions that are told of both."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading text", total=None)

        def read(characters: int) -> None:
            progress.advance(task, characters)
            progress.update(task, description=f"reading text: {progress.tasks[task].completed:,.0f} characters")

        def show(stage: str, share: float) -> None:
            progress.update(task, description=f"{stage}: {share:.0%}")

        yield read, show


def describe(about: dict[str, Any]) -> list[str]:
    """Return the description of an n-gram model as lines: its n-grams, discounts, notes, text and perplexities."""
    from fflm.text.settings import TextSettings

    ngram, vocabulary, figures = about["ngram"], about["vocabulary"], about.get("figures", {})
    policy, parts = TextSettings.from_dict(about["text"]).policy, about.get("corpus", {}).get("parts", {})
    lines = ["order       n-grams   discounts of counts 1, 2, 3 and more"]
    for order, count in enumerate(ngram["counts"]):
        discounts = ngram["discounts"][order] if ngram["discounts"] else []
        lines.append(f"{order + 1:5} {count:13,}   {' '.join(f'{discount:.4f}' for discount in discounts)}".rstrip())
    if removed := _pruning(ngram):
        lines.append(f"pruned: {removed}")
    lines += [f"note: {note}" for note in ngram["notes"]]
    lines += describe_text(vocabulary["size"], vocabulary["rule"], policy, parts)
    return lines + [f"{name:5} {describe_perplexity(figures[name])}" for name in ("valid", "test") if name in figures]


def _pruning(ngram: dict[str, Any]) -> str:
    """Return what was removed from an n-gram model."""
    prune, entropy = ngram.get("prune", []), ngram.get("prune_entropy")
    counts = f"n-grams that occur at most {', '.join(map(str, prune))} times, by order" if any(prune) else ""
    ratio = f"n-grams without which the perplexity rises by less than {entropy:g} of it" if entropy else ""
    return "; ".join(filter(None, [counts, ratio]))


def _report(model: "NgramModel", path: Path, as_json: bool) -> None:
    """Print the description of an n-gram model."""
    about = {**model.about, "vocabulary": model.vocabulary.to_dict()}
    if as_json:
        result = {"model": str(path), **about["ngram"], "vocabulary": about["vocabulary"], **about["figures"]}
        echo_json(result)
    else:
        click.echo("\n".join([f"model {path}", *describe(about)]))
