"""`fflm train`: training of neural language models."""

import functools
import math
from collections.abc import Callable
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
    refuse_fixed,
    refuse_text_options,
    text_options,
    training_options,
)
from fflm.cli.progress import (
    View,
    describe_resumed,
    end_or_stop,
    in_all_processes,
    resume_run,
    row_end,
    row_start,
    train,
    watch_members,
)
from fflm.cli.report import (
    EVALUATIONS,
    describe_perplexity,
    describe_text,
    echo_json,
    message_console,
    show_training,
    show_valid,
    tokenizing,
)
from fflm.training.settings import (
    TEACHER_WEIGHT,
    Extend,
    Initial,
    Members,
    Parallel,
    Preset,
    TeacherPath,
    TeacherWeight,
    Vectors,
)

if TYPE_CHECKING:
    from rich.console import Console

    from fflm.models.ensemble import Ensemble
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
@click.option("--teacher", type=PATH, metavar="FOLDER", help=description(TeacherPath))
@annotated_option("teacher_weight", TeacherWeight, TEACHER_WEIGHT)
@annotated_option("members", Members, 1)
@preset_option(Preset)
@network_options
@click.option("--vectors", type=PATH, metavar="FILE", help=description(Vectors))
@training_options
@annotated_option("parallel", Parallel, default="auto")
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
    members: int,
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

    With --members, several networks are trained, one after the other, and the model is their mixture. To train some of them at
    the same time, start --resume in other processes.

    \b
    Example:
      fflm train corpora/stories.txt
      fflm train --resume stories.model
      fflm train corpora/stories.txt --members 5 -o five.model
    """
    from fflm.models.ensemble import is_ensemble

    console = message_console(quiet)
    given = given_options(context)
    if (resume and is_ensemble(resume)) or (inputs and not resume and members > 1):
        begin = functools.partial(_begin_members, inputs, output, resume, members, given, options, console)
        _train_members(context, begin, console, save_every, as_json)
        return
    if resume:
        run = _resume(resume, given, options, console)
    elif inputs:
        run = _start(inputs, output, given, options, console)
    else:
        raise click.UsageError("give a text to train on, or --resume a model")
    train(context, run, console, VIEW, save_every, as_json)


def _begin_members(
    inputs: tuple[Path, ...],
    output: Path | None,
    resume: Path | None,
    members: int,
    given: dict[str, str],
    options: dict[str, Any],
    console: "Console",
) -> "Ensemble":
    """Start or resume the training of an ensemble, and print its text and how far it is."""
    from fflm.models.ensemble import Ensemble, start_ensemble

    if resume:
        refuse_fixed(given, {"resume", "quiet", "as_json", "save_every"}, "members of an ensemble keep their data and settings")
        ensemble = Ensemble.resume(resume)
        console.print(f"resuming {resume}, {ensemble.trained} of its {ensemble.members} members are trained")
        return ensemble
    refuse_text_options(inputs, given)
    options["device"] = use_device(options["device"], console.quiet)
    with tokenizing(console) as progress:
        ensemble = start_ensemble(inputs, output, members=members, progress=progress, **options)
    console.print("\n".join(describe_text(**ensemble.corpus.conditions)))
    return ensemble


def _train_members(
    context: click.Context, begin: "Callable[[], Ensemble]", console: "Console", save_every: float, as_json: bool
) -> None:
    """Train the members of an ensemble and print the figures of their mixture; after an interruption, how to resume."""
    from fflm.cli.mix import describe_members
    from fflm.models.ensemble import Ensemble

    ensemble = in_all_processes(begin, Ensemble.resume)
    ensemble.save_seconds = save_every
    stopped = f"stopped and saved; resume with: fflm train --resume {ensemble.path}"
    end_or_stop(context, lambda: watch_members(ensemble, console, VIEW), lambda: stopped)
    figures = ensemble.figures
    if as_json:
        echo_json({"model": str(ensemble.path), **figures})
    else:
        click.echo("\n".join([f"model {ensemble.path}, a mixture of {ensemble.members} networks", *describe_members(figures)]))


def _start(
    inputs: tuple[Path, ...], output: Path | None, given: dict[str, str], options: dict[str, Any], console: "Console"
) -> "TrainingSession":
    """Start a training run, and print its text and network."""
    from fflm.models.neural.initial import settings_of_model
    from fflm.models.neural.train import start_session
    from fflm.network.parameters import parameter_count

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
        f"network: {parameter_count(run.trainer.network.config):,} parameters, "
        f"batches of {settings.batch_size}, {run.trainer.batches:,} per epoch{sampled}"
    )
    if options["vectors"]:
        console.print(f"vectors: {run.vectors:,} words start from {options['vectors']}")
    if options["teacher"]:
        console.print(f"teacher: {options['teacher']}, weight {options['teacher_weight']:g}")
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
