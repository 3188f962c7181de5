"""What commands that train show: progress, a table of evaluations, and how they are interrupted."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from fflm.cli.loading import use_device
from fflm.cli.tables import Column, LiveTable
from fflm.signals import interruption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fflm.training.events import Event, Step
    from fflm.training.session import Session

AnySession = TypeVar("AnySession", bound="Session")

SIGN_SECONDS = 60.0
"""Where no terminal shows the progress, such as in a log file, a row without evaluation comes this often."""


@dataclass(frozen=True)
class View:
    """How a kind of run is shown.

    Attributes
    ----------
    kind
        What is trained.
    command
        What trains it.
    columns
        Of the table of evaluations, but for the last one, the speed; in all no wider than a terminal of 80 columns.
    unit
        Of the speed.
    row
        Returns a row of the table: of the run, the training loss (None where it is not exact), the validation figures, a mark.
    loss
        Returns what the progress says of the loss of a step.
    describe
        Returns a line that says the figures of a part.
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
    """Resume the training in a folder by a class's ``resume``, after refusing what a resumed run cannot change.

    ``given`` is from `given_options`.
    """
    fixed = [name for key, name in given.items() if key not in {"resume", "epochs", "device", "quiet", "as_json", "save_every"}]
    if fixed:
        raise click.UsageError(
            f"a resumed run keeps its data and settings: leave out {', '.join(fixed)} (only --epochs and --device may change)"
        )
    device = use_device(options["device"], quiet) if "device" in given else None
    return resume(path, epochs=options["epochs"] if "epochs" in given else None, device=device)


def describe_resumed(run: "Session") -> str:
    """Return a line that says where a resumed run stands."""
    state = run.trainer.state
    return f"resuming {run.path} at step {state.step:,}, in epoch {min(state.epoch + 1, run.trainer.settings.epochs)}"


def end_or_stop(context: click.Context, work: Callable[[], bool], stopped: Callable[[], str]) -> None:
    """Do work, which returns whether it came to its end; leave with a line that says how to resume if it did not."""
    try:
        ended = work()
    except KeyboardInterrupt:  # before the first step, or again before it could be saved: the last checkpoint serves
        ended = False
    if not ended:
        click.echo(stopped(), err=True)
        context.exit(130)


def train(context: click.Context, run: "Session", console: "Console", view: View, save_every: float, as_json: bool) -> None:
    """Train to the end and show the figures, or leave with a line that says how to resume, after an interruption."""

    def stopped() -> str:
        if run.published:
            return f"stopped and saved; resume with: {view.command} --resume {run.path}"
        return f"stopped before there were new weights; {run.path} is as it was"

    run.save_seconds = save_every
    end_or_stop(context, lambda: watch(run, console, view), stopped)
    figures = run.figures
    if as_json:
        click.echo(json.dumps({"model": str(run.path), **figures}, ensure_ascii=False))
        return
    click.echo(f"{view.kind} {run.path}, from epoch {figures['epoch']:g}")
    for name in ("valid", "test"):
        if name in figures:
            click.echo(f"{name:5} {view.describe(figures[name])}")


def watch(run: "Session", console: "Console", view: View) -> bool:
    """Train, showing progress, until the end (True) or an interruption (False), after which the run is saved.

    A second interruption does not wait for that: it is a KeyboardInterrupt. So is one during the first step, for which kernels
    may have to be compiled; what the folder holds is where the run stood. If that is lost in the compiler, the run ends after
    the first step.
    """
    with interruption(), _Display(run, console, view) as display:
        return run.finish(display.show)


class _Display:
    """A progress bar, below a table of evaluations. It appears with the first event, after kernels have been compiled."""

    def __init__(self, run: "Session", console: "Console", view: View) -> None:
        self._run, self._console, self._view = run, console, view
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
        """Show an event."""
        progress = self._progress = self._progress or self._begin()
        _show(event, run, self._view, self._table, progress, self._task)
        if progress.disable and time.monotonic() - self._shown > SIGN_SECONDS:
            state = run.trainer.state
            row = self._view.row(run, state.loss_mean if state.loss_exact else None, None, "")
            self._console.print(self._table.row(row))
            self._shown = time.monotonic()

    def _begin(self) -> "Progress":
        """Start the bar, and print the head of the table."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[speed]:,.0f} {task.fields[unit]}, {task.fields[loss]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        progress = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        progress.start()
        trainer = self._run.trainer
        state, epochs = trainer.state, trainer.settings.epochs
        if not state.finished:
            progress.console.print(self._table.head)
        fields: dict[str, Any] = {"epoch": state.epoch + 1, "epochs": epochs, "speed": 0.0, "unit": self._view.unit, "loss": ""}
        self._task = progress.add_task("", total=len(trainer.train) * epochs, completed=state.words, **fields)
        return progress


def row_start(run: "Session") -> tuple[str, str]:
    """Return the first cells of a row, where the run stands: epochs and steps."""
    state = run.trainer.state
    return f"{round(state.words / len(run.trainer.train), 2):g}", f"{state.step:,}"


def row_end(run: "Session") -> tuple[str, str]:
    """Return the last cells of a row: learning rate and speed."""
    state = run.trainer.state
    return f"{run.trainer.rate:.2g}", f"{state.words / max(state.seconds, 1e-9):,.0f}"


def _show(event: "Event", run: "Session", view: View, table: LiveTable, progress: "Progress", task: Any) -> None:
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
