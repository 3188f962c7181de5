"""`fflm train`: from text to a model, and on from where a run stopped."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fflm.cli.options import (
    EVALUATIONS,
    HeadedCommand,
    describe_perplexity,
    describe_text,
    given_options,
    json_option,
    network_options,
    overwrite_option,
    quiet_option,
    refuse_text_options,
    show_training,
    text_options,
    tokenizing,
    training_options,
    use_device,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fflm.lm.train import TrainingRun
    from fflm.training.loop import Step
    from fflm.training.run import Event, Run

COMPILING_SECONDS = 1.0
"""Kernels that take longer than this to get ready are being compiled, not read from the cache."""


SIGN_SECONDS = 60.0
"""Where no terminal shows the progress, such as in a log file, a row without evaluation comes this often."""


def _use_preset(context: click.Context, parameter: click.Parameter, value: str) -> None:
    """Make a preset's settings the defaults of the options that are read after this one."""
    if value != "default":
        from fflm.lm.train import PRESETS

        context.default_map = PRESETS[value]


@click.command(cls=HeadedCommand)
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER", help="The model. [default: INPUT.model]")
@overwrite_option
@click.option("--resume", type=click.Path(path_type=Path), metavar="FOLDER", help="Go on with the run of this model.")
@click.option(
    "--preset",
    type=click.Choice(["default", "quick"]),
    default="default",
    show_default=True,
    is_eager=True,
    expose_value=False,
    callback=_use_preset,
    help="What the options of network and training are if they are not given; quick is a small network.",
)
@network_options
@click.option("--vectors", type=click.Path(path_type=Path), metavar="FILE", help="Start from vectors in word2vec text format.")
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
    """Train a model on INPUTS: files, folders, .gz files, - for standard input, a folder made by `fflm tokenize`, or a model.

    Another model lends its text and its vocabulary, so that the two can be compared. The model is a folder. Progress goes to
    standard error; Ctrl-C saves, and --resume goes on as if nothing had happened.

    \b
    Example:
      fflm train corpora/stories.txt
      fflm train --resume stories.model
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    given = given_options(context)
    if resume:
        run = _resume(resume, given, options, console)
    elif inputs:
        run = _begin(inputs, output, given, options, console)
    else:
        raise click.UsageError("give a text to train on, or --resume a model")
    run.save_seconds = save_every
    try:
        with announce_compiling(run, console):
            run.prepare()
        ended = watch(run, console, VIEW)
    except KeyboardInterrupt:  # before the first step, or again before it could be saved: the last checkpoint serves
        ended = False
    if not ended:
        stop(context, f"fflm train --resume {run.path}")
    figures = run.figures
    if as_json:
        click.echo(json.dumps({"model": str(run.path), **figures}, ensure_ascii=False))
    else:
        click.echo(f"model {run.path}, from epoch {figures['epoch']:g}")
        for name in ("valid", "test"):
            if name in figures:
                click.echo(f"{name:5} {describe_perplexity(figures[name])}")


def _begin(
    inputs: tuple[Path, ...], output: Path | None, given: dict[str, str], options: dict[str, Any], console: "Console"
) -> "TrainingRun":
    from fflm.lm.train import begin, default_path
    from fflm.text.corpus import parse_held_out

    refuse_text_options(inputs, given)
    options["device"] = use_device(options["device"], console.quiet)
    for name in ("valid", "test"):
        options[name] = parse_held_out(options[name])
    with tokenizing(console) as progress:
        run = begin(inputs, output or default_path(inputs), progress=progress, **options)
    console.print("\n".join(describe_text(**run.corpus.conditions)))
    settings = run.trainer.settings
    sampled = "" if settings.loss == "exact" else f"; loss: {settings.loss}, {settings.samples:,} words drawn a batch"
    console.print(
        f"network: {run.trainer.parameters.count:,} parameters, "
        f"batches of {settings.batch_size}, {run.trainer.batches:,} an epoch{sampled}"
    )
    if options["vectors"]:
        console.print(f"vectors: {run.vectors:,} words start from {options['vectors']}")
    return run


def _resume(path: Path, given: dict[str, str], options: dict[str, Any], console: "Console") -> "TrainingRun":
    from fflm.lm.train import TrainingRun

    fixed = [name for key, name in given.items() if key not in {"resume", "epochs", "device", "quiet", "as_json", "save_every"}]
    if fixed:
        raise click.UsageError(
            f"a resumed run keeps its data and settings: leave out {', '.join(fixed)} (only --epochs and --device may change)"
        )
    device = use_device(options["device"], console.quiet) if "device" in given else None
    run = TrainingRun.resume(path, epochs=options["epochs"] if "epochs" in given else None, device=device)
    state = run.trainer.state
    console.print("\n".join(describe_text(**run.corpus.conditions)))
    console.print(f"resuming {path} at step {state.step:,}, in epoch {min(state.epoch + 1, run.trainer.settings.epochs)}")
    return run


@contextlib.contextmanager
def announce_compiling(run: "Run", console: "Console") -> Iterator[None]:
    """Say that a run's kernels are being compiled if the block takes long."""
    once = ", once for this machine" if run.device == "cpu" else ""
    timer = threading.Timer(COMPILING_SECONDS, console.print, [f"compiling the kernels{once} ..."])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def stop(context: click.Context, resume: str) -> NoReturn:
    """Leave after an interruption, with the line that goes on."""
    click.echo(f"stopped and saved; go on with: {resume}", err=True)
    context.exit(130)


@dataclass(frozen=True)
class View:
    """How a kind of run is shown.

    Attributes
    ----------
    head
        Of the table of evaluations; no wider than a terminal of 80 columns.
    unit
        Of the speed.
    row
        Returns a row of the table: of the run, the training loss (None where it is not exact), the validation figures, a mark.
    loss
        Returns what the progress says of the loss of a step.
    """

    head: str
    unit: str
    row: Callable[["Run", float | None, dict[str, Any] | None, str], str]
    loss: Callable[["Run", "Step"], str]


def watch(run: "Run", console: "Console", view: View) -> bool:
    """Train, showing progress, until the end (True) or an interruption (False), after which the run is saved.

    A second interruption does not wait for that: it is a KeyboardInterrupt.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[speed]:,.0f} {task.fields[unit]}, {task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    total = len(run.trainer.train)
    with (
        interruption() as interrupted,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        state = run.trainer.state
        if not state.finished:
            progress.console.print(view.head)
        task = progress.add_task(
            "", total=total * run.trainer.settings.epochs, completed=state.words,
            epoch=state.epoch + 1, epochs=run.trainer.settings.epochs, speed=0.0, unit=view.unit, loss="",
        )  # fmt: skip
        shown = time.monotonic()
        for event in run.events():
            _show(event, run, view, progress, task)
            if progress.disable and time.monotonic() - shown > SIGN_SECONDS:
                console.print(view.row(run, state.loss_mean if state.loss_exact else None, None, " "))
                shown = time.monotonic()
            if interrupted.is_set() and not run.trainer.state.finished:
                run.save()
                return False
    return True


@contextlib.contextmanager
def interruption() -> Iterator[threading.Event]:
    """Yield what is set when the first signal to end comes, so that the block can save; a second one is a KeyboardInterrupt."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        signal.signal(number, signal.default_int_handler)

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _row(run: "Run", train_loss: float | None, valid: dict[str, Any] | None, mark: str) -> str:
    validation = f"{valid['perplexity']:16,.2f} {valid['bits_per_character']:9.3f}" if valid else f"{'-':>16} {'-':>9}"
    return f"{row_start(run)} {show_training(train_loss)} {validation} {mark} {row_end(run)}"


def row_start(run: "Run") -> str:
    """Return the first columns of a row, where the run stands: epochs and steps."""
    state = run.trainer.state
    return f"{round(state.words / len(run.trainer.train), 2):5g} {state.step:9,}"


def row_end(run: "Run") -> str:
    """Return the last columns of a row: learning rate and speed."""
    state = run.trainer.state
    return f"{run.trainer.rate:7.2g} {state.words / max(state.seconds, 1e-9):9,.0f}"


def _loss(run: "Run", event: "Step") -> str:
    mean = run.trainer.state.loss_mean
    return (
        f"training perplexity {math.exp(min(mean, 700)):.1f}" if event.exact else f"{run.trainer.settings.loss} loss {mean:.2f}"
    )


VIEW = View(f"{EVALUATIONS} {'tokens/s':>9}", "tokens/s", _row, _loss)


def _show(event: "Event", run: "Run", view: View, progress: "Progress", task: Any) -> None:
    from fflm.training.loop import Evaluation, Finished, Step
    from fflm.training.run import RolledBack

    state = run.trainer.state
    speed = state.words / max(state.seconds, 1e-9)
    if isinstance(event, Step):
        progress.update(task, completed=state.words, epoch=event.epoch, speed=speed, loss=view.loss(run, event))
    elif isinstance(event, Evaluation):
        progress.console.print(view.row(run, event.train_loss if event.exact else None, run.valid, "*" if event.best else " "))
    elif isinstance(event, RolledBack):
        progress.console.print(f"{event.cause}: back to step {event.step:,}, with {event.factor:g} times the rate")
    elif isinstance(event, Finished):
        progress.console.print(f"done: {event.reason}")
