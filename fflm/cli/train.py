"""`fflm train`: training of neural language models."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.arguments import description
from fflm.cli.loading import use_device
from fflm.cli.options import (
    PATH,
    HeadedCommand,
    annotated_option,
    given_options,
    json_option,
    network_options,
    overwrite_option,
    preset_option,
    quiet_option,
    refuse_text_options,
    text_options,
    training_options,
)
from fflm.cli.progress import View, describe_resumed, resume_run, row_end, row_start, train
from fflm.cli.report import (
    EVALUATIONS,
    describe_perplexity,
    describe_text,
    message_console,
    show_training,
    show_valid,
    tokenizing,
)
from fflm.training.settings import Extend, Initial, Vectors

if TYPE_CHECKING:
    from rich.console import Console

    from fflm.models.neural.train import TrainingSession
    from fflm.training.events import Step
    from fflm.training.session import Session


@click.command(cls=HeadedCommand)
@click.argument("inputs", nargs=-1, type=PATH)
@click.option("-o", "--output", type=PATH, metavar="FOLDER", help="The model. [default: INPUT.model]")
@overwrite_option
@click.option("--resume", type=PATH, metavar="FOLDER", help="Resume training of this model.")
@click.option("--from", "initial", type=PATH, metavar="FOLDER", help=description(Initial))
@annotated_option("extend_vocabulary", Extend, False)
@preset_option
@network_options
@click.option("--vectors", type=PATH, metavar="FILE", help=description(Vectors))
@training_options
@text_options
@quiet_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    inputs: tuple[Path, ...],
    output: Path | None,
    resume: Path | None,
    save_every: float,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on INPUTS: files (also compressed), folders, - for standard input, a folder of `fflm tokenize`, or a model.

    If the input is another model, train on that model's text with its vocabulary, so that both are comparable. With --from,
    the training of another model is continued on INPUTS, in a new model. The model is a folder. Progress is printed on
    standard error: a row for each evaluation and, if it is not a terminal, a row without validation figures each minute.
    Ctrl-C saves, and --resume continues with the same result as without an interruption.

    \b
    Example:
      fflm train corpora/stories.txt
      fflm train --resume stories.model
    """
    console = message_console(quiet)
    given = given_options(context)
    if resume:
        run = _resume(resume, given, options, console)
    elif inputs:
        run = _start(inputs, output, given, options, console)
    else:
        raise click.UsageError("give a text to train on, or --resume a model")
    train(context, run, console, VIEW, save_every, as_json)


def _start(
    inputs: tuple[Path, ...], output: Path | None, given: dict[str, str], options: dict[str, Any], console: "Console"
) -> "TrainingSession":
    """Start a training run, and print its text and network."""
    from fflm.models.neural.initial import settings_of_model
    from fflm.models.neural.train import start_session

    refuse_text_options(inputs, given)
    if options["initial"]:
        defaults = settings_of_model(options["extend_vocabulary"]).difference(given)
        options = {name: value for name, value in options.items() if name not in defaults}
    options["device"] = use_device(options["device"], console.quiet)
    with tokenizing(console) as progress:
        run = start_session(inputs, output, progress=progress, **options)
    console.print("\n".join(describe_text(**run.corpus.conditions)))
    settings = run.trainer.settings
    sampled = "" if settings.loss == "exact" else f"; loss: {settings.loss}, {settings.samples:,} words sampled per batch"
    console.print(
        f"network: {run.trainer.parameters.count:,} parameters, "
        f"batches of {settings.batch_size}, {run.trainer.batches:,} per epoch{sampled}"
    )
    if options["vectors"]:
        console.print(f"vectors: {run.vectors:,} words start from {options['vectors']}")
    return run


def _resume(path: Path, given: dict[str, str], options: dict[str, Any], console: "Console") -> "TrainingSession":
    """Resume a training run, and print its text and state."""
    from fflm.models.neural.train import TrainingSession

    run = resume_run(TrainingSession.resume, path, given, options, console.quiet)
    console.print("\n".join(describe_text(**run.corpus.conditions)))
    console.print(describe_resumed(run))
    return run


def _row(run: "Session", train_loss: float | None, valid: dict[str, Any] | None, mark: str) -> tuple[str, ...]:
    """Return a row of the table of evaluations."""
    return (*row_start(run), show_training(train_loss), *show_valid(valid), mark, *row_end(run))


def _loss(run: "Session", event: "Step") -> str:
    """Return a phrase about the training loss for the progress bar."""
    mean = run.trainer.state.loss_mean
    return (
        f"training perplexity {math.exp(min(mean, 700)):.1f}" if event.exact else f"{run.trainer.settings.loss} loss {mean:.2f}"
    )


VIEW = View("model", "fflm train", EVALUATIONS, "tokens/s", _row, _loss, describe_perplexity)
