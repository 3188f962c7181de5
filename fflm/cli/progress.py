"""Output of the commands that train: a progress bar, a table of evaluations, and the final figures."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from fflm.cli.loading import use_device
from fflm.cli.options import refuse_fixed
from fflm.cli.report import echo_json
from fflm.cli.tables import Column, LiveTable
from fflm.signals import interruption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fflm.models.ensemble import Ensemble
    from fflm.search.search import Search
    from fflm.training.events import Event, Step
    from fflm.training.session import Session

AnySession = TypeVar("AnySession", bound="Session")
Shared = TypeVar("Shared", bound="Search | Ensemble")

LOG_SECONDS = 60.0
"""Seconds between rows without an evaluation where there is no terminal to show progress, for example in a log file."""


@dataclass(frozen=True)
class View:
    """How the training of a kind of model is displayed.

    Attributes
    ----------
    kind
        Name of the kind of model.
    command
        The command that trains such models.
    columns
        The columns of the table of evaluations, except for the last one, the speed. The table fits 80 columns.
    unit
        Unit of the speed.
    row
        A function that returns a row of the table, given the session, the training loss (None if it is a sampled loss), the
        validation figures, and a mark.
    loss
        A function that returns a phrase about the loss of a step for the progress bar.
    describe
        A function that returns the figures of a part as a line.
    """

    kind: str
    command: str
    columns: tuple[Column, ...]
    unit: str
    row: Callable[["Session", float | None, dict[str, Any] | None, str], tuple[str, ...]]
    loss: Callable[["Session", "Step"], str]
    describe: Callable[[dict[str, Any]], str]


def resume_run(
    resume: Callable[..., AnySession], path: Path, given: Mapping[str, str], options: Mapping[str, Any], quiet: bool
) -> AnySession:
    """Resume the training in a folder after refusing options that a resumed run cannot change.

    Parameters
    ----------
    resume
        The method ``resume`` of a class of sessions.
    path
        The model's folder.
    given
        The given options, from `fflm.cli.options.given_options`.
    options
        The values of all options.
    quiet
        Whether to print nothing about the device.
    """
    free = {"resume", "epochs", "device", "quiet", "as_json", "save_every"}
    refuse_fixed(given, free, "a resumed run keeps its data and settings", " (only --epochs and --device may change)")
    device = use_device(options["device"], quiet) if "device" in given else None
    return resume(path, epochs=options["epochs"] if "epochs" in given else None, device=device)


def describe_resumed(run: "Session") -> str:
    """Return a line about the state of a resumed run."""
    state = run.trainer.state
    return f"resuming {run.path} at step {state.step:,}, in epoch {min(state.epoch + 1, run.trainer.settings.epochs)}"


def end_or_stop(context: click.Context, work: Callable[[], bool], stopped: Callable[[], str]) -> None:
    """Do work, and if it is interrupted, print a line about how to resume it, and exit with status 130.

    Parameters
    ----------
    context
        The context of the command.
    work
        A function that does the work, and returns whether it finished.
    stopped
        A function that returns the line about how to resume.
    """
    try:
        ended = work()
    except KeyboardInterrupt:  # before the first step, or a second time; the last checkpoint can be resumed
        ended = False
    if not ended:
        click.echo(stopped(), err=True)
        context.exit(130)


def in_all_processes(begin: Callable[[], Shared], resume: Callable[[Path], Shared]) -> Shared:
    """Begin a search or an ensemble in the first of several processes; all of them then take part in it, each by itself.

    Parameters
    ----------
    begin
        A function that starts or resumes it.
    resume
        A function that resumes what is in a folder.
    """
    from fflm.parallel.world import separate

    begun: list[Shared] = []

    def first() -> str:
        begun.append(begin())
        return str(begun[0].path)

    path = separate().on_first(first)
    return begun[0] if begun else resume(Path(path))


def train(context: click.Context, run: "Session", console: "Console", view: View, save_every: float, as_json: bool) -> None:
    """Train to the end and print the figures; after an interruption, print how to resume, and exit with status 130."""

    def stopped() -> str:
        if run.published:
            return f"stopped and saved; resume with: {view.command} --resume {run.path}"
        return f"stopped before there were new weights; {run.path} is unchanged"

    run.save_seconds = save_every
    end_or_stop(context, lambda: watch(run, console, view), stopped)
    figures = run.figures
    if as_json:
        echo_json({"model": str(run.path), **figures})
        return
    click.echo(f"{view.kind} {run.path}, from epoch {figures['epoch']:g}")
    for name in ("valid", "test"):
        if name in figures:
            click.echo(f"{name:5} {view.describe(figures[name])}")


def watch(run: "Session", console: "Console", view: View) -> bool:
    """Train and display the progress; return True at the end of training, or False after an interruption and a checkpoint.

    A second interruption raises KeyboardInterrupt at once, and so does an interruption during the first step, which may have to
    compile kernels; training can then be resumed from the previous checkpoint.
    """
    with interruption(), _Display(console, view) as display:
        return run.finish(display.show)


def watch_members(ensemble: "Ensemble", console: "Console", view: View) -> bool:
    """Train the members of an ensemble and display the progress of each, as `watch` does."""
    with interruption(), _Display(console, view) as display:
        return ensemble.finish(display.show, waiting=display.wait)


class _Display:
    """A progress bar below a table of evaluations; it appears with the first event, after kernels have been compiled.

    The events may be those of several runs, one after the other: each has a table of its own, below its label.
    """

    def __init__(self, console: "Console", view: View) -> None:
        self._console, self._view = console, view
        self._run: Session | None = None
        self._waiting = False
        width = console.width if console.is_terminal else None
        self._table = LiveTable((*view.columns, Column(view.unit, 9, optional=True)), width)
        self._progress: Progress | None = None
        self._task: Any = None
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, run: "Session", event: "Event") -> None:
        """Display an event of the session; without a terminal, also a row for a step if there was none for a minute."""
        from fflm.training.events import Evaluation, Step

        if run is not self._run:
            self.__exit__()
            self._run, self._progress, self._waiting = run, self._start(run), False
        progress = self._progress
        assert progress
        _show(event, run, self._view, self._table, progress, self._task)
        if isinstance(event, Evaluation):
            self._shown = time.monotonic()
        elif isinstance(event, Step) and progress.disable and time.monotonic() - self._shown > LOG_SECONDS:
            state = run.trainer.state
            row = self._view.row(run, state.loss_mean if state.loss_exact else None, None, "")
            self._console.print(self._table.row(row))
            self._shown = time.monotonic()

    def wait(self) -> None:
        """Say once that other processes train what is left."""
        if not self._waiting:
            self._console.print("waiting for the members that other processes train")
        self._waiting = True

    def _start(self, run: "Session") -> "Progress":
        """Start the progress bar, and print the label of the run and the head of the table."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[speed]:,.0f} {task.fields[unit]}, {task.fields[loss]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        progress = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        progress.start()
        self._shown = time.monotonic()  # kernels may have been compiled for minutes
        trainer = run.trainer
        if run.label:
            progress.console.print(run.label)
        state, epochs = trainer.state, trainer.settings.epochs
        if not state.finished:
            progress.console.print(self._table.head)
        fields: dict[str, Any] = {"epoch": state.epoch + 1, "epochs": epochs, "speed": 0.0, "unit": self._view.unit, "loss": ""}
        self._task = progress.add_task("", total=len(trainer.train) * epochs, completed=state.words, **fields)
        return progress


def row_start(run: "Session") -> tuple[str, str]:
    """Return the first cells of a row of the table: epochs and steps."""
    state = run.trainer.state
    return f"{round(state.words / len(run.trainer.train), 2):g}", f"{state.step:,}"


def row_end(run: "Session") -> tuple[str, str]:
    """Return the last cells of a row of the table: learning rate and speed."""
    state = run.trainer.state
    return f"{run.trainer.rate:.2g}", f"{state.words / max(state.seconds, 1e-9):,.0f}"


def _show(event: "Event", run: "Session", view: View, table: LiveTable, progress: "Progress", task: Any) -> None:
    """Update the progress bar, or print a row of the table or a message, for an event."""
    from fflm.training.events import Evaluation, Finished, RolledBack, Step

    state = run.trainer.state
    speed = state.words / max(state.seconds, 1e-9)
    if isinstance(event, Step):
        progress.update(task, completed=state.words, epoch=event.epoch, speed=speed, loss=view.loss(run, event))
    elif isinstance(event, Evaluation):
        row = view.row(run, event.train_loss if event.exact else None, run.valid, "*" if event.best else "")
        progress.console.print(table.row(row))
    elif isinstance(event, RolledBack):
        progress.console.print(f"{event.cause}: back to step {event.step:,}, with {event.factor:g} times the rate")
    elif isinstance(event, Finished):
        progress.console.print(f"done: {event.reason}")
