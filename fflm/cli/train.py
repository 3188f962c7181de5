"""`fflm train`: from text to a model, and on from where a run stopped."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from fflm.backend.protocol import ACTIVATIONS
from fflm.cli.options import (
    EVALUATIONS,
    describe_perplexity,
    describe_text,
    field_option,
    json_option,
    overwrite_option,
    quiet_option,
    text_options,
    tokenizing,
)
from fflm.network.config import NetworkConfig
from fflm.training.settings import OptimizerName, ScheduleName, TrainingSettings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fflm.lm.scoring import Score
    from fflm.lm.train import Event, TrainingRun

COMPILING_SECONDS = 1.0
"""Kernels that take longer than this to get ready are being compiled, not read from the cache."""


SIGN_SECONDS = 60.0
"""Where no terminal shows the progress, such as in a log file, a row without evaluation comes this often."""

TABLE = f"{EVALUATIONS} {'tokens/s':>9}"
"""Head of the table of evaluations; no wider than a terminal of 80 columns."""


HEADINGS = {
    "inputs": "Options",
    "window": "Network",
    "epochs": "Training",
    "tokenizer": "Text",
    "quiet": "Messages",
}
"""First parameters of the parts of the help, and their headings."""


class _Sizes(click.ParamType[tuple[int, ...]]):
    """Sizes of layers: ``100``, ``256,256``, or ``0`` for none."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(size) for size in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of sizes: write 100, or 256,128 for two layers, or 0 for none", param, ctx)
        return () if sizes == (0,) else sizes


class _Train(click.Command):
    """A command whose many options are listed under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Start a list at each of the parameters that `HEADINGS` names."""
        lists: list[tuple[str, list[tuple[str, str]]]] = []
        for param in self.get_params(ctx):
            if param.name in HEADINGS:
                lists.append((HEADINGS[param.name], []))
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                lists[-1][1].append(record)
        for heading, records in lists:
            with formatter.section(heading):
                formatter.write_dl(records)


@click.command(cls=_Train)
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER", help="The model. [default: INPUT.model]")
@overwrite_option
@click.option("--resume", type=click.Path(path_type=Path), metavar="FOLDER", help="Go on with the run of this model.")
@field_option(NetworkConfig, "window", "Context words (Bengio's n - 1).")
@field_option(
    NetworkConfig,
    "averages",
    "Sizes of blocks of words before the window that are seen as averages, such as 10,30; 0 for none.",
    type=_Sizes(),
)
@field_option(NetworkConfig, "embedding", "Size of the embeddings.")
@field_option(
    NetworkConfig,
    "hidden",
    "Sizes of the hidden layers, such as 256,128; 0 for none.",
    type=_Sizes(),
)
@field_option(NetworkConfig, "activation", "Of the hidden layers.", type=click.Choice(ACTIVATIONS))
@field_option(NetworkConfig, "residual", "Let each hidden layer add to the one before, normalised; equal sizes.")
@field_option(NetworkConfig, "direct", "Connect the embeddings directly with the output, too.")
@field_option(NetworkConfig, "tied", "Use the embeddings as output weights.")
@field_option(NetworkConfig, "dropout", "Share of the hidden units that is dropped in training.")
@field_option(NetworkConfig, "embedding_dropout", "Share of the concatenated embeddings that is dropped.")
@click.option("--vectors", type=click.Path(path_type=Path), metavar="FILE", help="Start from vectors in word2vec text format.")
@field_option(TrainingSettings, "epochs", "Passes over the text, at most.")
@click.option("--batch-size", type=int, help="Words per update. [default: by the size of the text]")
@field_option(TrainingSettings, "optimizer", "The update rule.", type=click.Choice(get_args(OptimizerName)))
@field_option(TrainingSettings, "rate", "Learning rate, at its peak.")
@field_option(TrainingSettings, "momentum", "Of sgd.")
@field_option(TrainingSettings, "nesterov", "Nesterov's momentum.")
@field_option(TrainingSettings, "weight_decay", "Pull of weights, not of biases, to zero.")
@field_option(
    TrainingSettings,
    "schedule",
    "Of the rate; inverse is Bengio's rate / (1 + decay t), plateau halves it when validation stalls.",
    type=click.Choice(get_args(ScheduleName)),
)
@field_option(TrainingSettings, "decay", "Of the schedule inverse, per word.")
@field_option(TrainingSettings, "warmup", "Share of all steps in which cosine rises.")
@field_option(TrainingSettings, "clip", "Largest norm of the gradient; 0 for any.")
@field_option(TrainingSettings, "smoothing", "Label smoothing.")
@field_option(TrainingSettings, "patience", "Evaluations without gain before training stops; 0 for any.")
@field_option(TrainingSettings, "evaluate_every", "Steps between evaluations; 0 for once an epoch.")
@click.option("--save-every", type=click.FloatRange(0), default=60, show_default=True, help="Seconds between checkpoints.")
@field_option(TrainingSettings, "seed", "Of all randomness.")
@click.option("--threads", type=click.IntRange(1), help="Of the kernels. [default: all cores]")
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
    if math.isnan(save_every):
        raise click.BadParameter("give a number of seconds", param_hint="--save-every")
    given = {
        param.name: param.opts[0] if isinstance(param, click.Option) else "INPUTS"
        for param in context.command.params
        if param.name and context.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
    }
    if resume:
        run = _resume(resume, given, options, console)
    elif inputs:
        run = _begin(inputs, output, given, options, console)
    else:
        raise click.UsageError("give a text to train on, or --resume a model")
    run.save_seconds = save_every
    try:
        with _announce("compiling the kernels, once for this machine ...", console):
            run.prepare()
        ended = _watch(run, console)
    except KeyboardInterrupt:  # before the first step, or again before it could be saved: the last checkpoint serves
        ended = False
    if not ended:
        click.echo(f"stopped and saved; go on with: fflm train --resume {run.path}", err=True)
        context.exit(130)
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
    from fflm.cli import tokenize
    from fflm.lm.setup import corpus_folder
    from fflm.lm.train import begin, default_path
    from fflm.text.corpus import parse_held_out

    of_tokenize = {param.name for param in tokenize.command.params}
    fixed = [name for key, name in given.items() if key in of_tokenize - {"inputs", "output", "overwrite", "quiet", "as_json"}]
    if fixed and corpus_folder(inputs):
        raise click.UsageError(f"the text is tokenised already: leave out {', '.join(fixed)}, or give them to `fflm tokenize`")

    for name in ("valid", "test"):
        options[name] = parse_held_out(options[name])
    with tokenizing(console) as progress:
        run = begin(inputs, output or default_path(inputs), progress=progress, **options)
    console.print("\n".join(describe_text(**run.conditions)))
    console.print(
        f"network: {run.trainer.parameters.count:,} parameters, "
        f"batches of {run.trainer.settings.batch_size}, {run.trainer.batches:,} an epoch"
    )
    if options["vectors"]:
        console.print(f"vectors: {run.vectors:,} words start from {options['vectors']}")
    return run


def _resume(path: Path, given: dict[str, str], options: dict[str, Any], console: "Console") -> "TrainingRun":
    from fflm.lm.train import TrainingRun

    fixed = [name for key, name in given.items() if key not in {"resume", "epochs", "quiet", "as_json", "save_every"}]
    if fixed:
        raise click.UsageError(
            f"a resumed run keeps its data and settings: leave out {', '.join(fixed)} (only --epochs may change)"
        )
    run = TrainingRun.resume(path, epochs=options["epochs"] if "epochs" in given else None)
    state = run.trainer.state
    console.print("\n".join(describe_text(**run.conditions)))
    console.print(f"resuming {path} at step {state.step:,}, in epoch {min(state.epoch + 1, run.trainer.settings.epochs)}")
    return run


@contextlib.contextmanager
def _announce(message: str, console: "Console") -> Iterator[None]:
    """Print a message if the block takes long."""
    timer = threading.Timer(COMPILING_SECONDS, console.print, [message])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _watch(run: "TrainingRun", console: "Console") -> bool:
    """Train, showing progress, until the end (True) or an interruption (False), after which the run is saved.

    A second interruption does not wait for that: it is a KeyboardInterrupt.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        signal.signal(number, signal.default_int_handler)

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[speed]:,.0f} tokens/s, {task.fields[perplexity]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    total = len(run.trainer.train)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            state = run.trainer.state
            if not state.finished:
                progress.console.print(TABLE)
            task = progress.add_task(
                "", total=total * run.trainer.settings.epochs, completed=state.words,
                epoch=state.epoch + 1, epochs=run.trainer.settings.epochs, speed=0.0, perplexity="",
            )  # fmt: skip
            shown = time.monotonic()
            for event in run.events():
                _show(event, run, progress, task)
                if progress.disable and time.monotonic() - shown > SIGN_SECONDS:
                    console.print(_row(run, state.loss_mean, None, " "))
                    shown = time.monotonic()
                if interrupted.is_set() and not run.trainer.state.finished:
                    run.save()
                    return False
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return True


def _row(run: "TrainingRun", train_loss: float, valid: "Score | None", mark: str) -> str:
    """Return a row of the table of evaluations."""
    state = run.trainer.state
    validation = f"{valid.perplexity:16,.2f} {valid.bits_per_character:9.3f}" if valid else f"{'-':>16} {'-':>9}"
    return (
        f"{round(state.words / len(run.trainer.train), 2):5g} {state.step:9,} {math.exp(train_loss):16,.2f} {validation} {mark} "
        f"{run.trainer.rate:7.2g} {state.words / max(state.seconds, 1e-9):9,.0f}"
    )


def _show(event: "Event", run: "TrainingRun", progress: "Progress", task: Any) -> None:
    from fflm.lm.train import RolledBack
    from fflm.training.loop import Evaluation, Finished, Step

    state = run.trainer.state
    speed = state.words / max(state.seconds, 1e-9)
    if isinstance(event, Step):
        perplexity = f"training perplexity {math.exp(min(state.loss_mean, 700)):.1f}"
        progress.update(task, completed=state.words, epoch=event.epoch, speed=speed, perplexity=perplexity)
    elif isinstance(event, Evaluation):
        valid = None if event.valid is None else run.score("valid", event.valid)
        progress.console.print(_row(run, event.train_loss, valid, "*" if event.best else " "))
    elif isinstance(event, RolledBack):
        progress.console.print(f"{event.cause}: back to step {event.step:,}, with {event.factor:g} times the rate")
    elif isinstance(event, Finished):
        progress.console.print(f"done: {event.reason}")
