"""Progress of a training session in Python: lines of text, or in a notebook one output that is updated."""

import html
import time
from collections import deque
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fflm.training.events import Evaluation, Event, Finished, RolledBack, Step
from fflm.training.session import Callback, Session

SECONDS = 60.0
"""Time between two lines if there is no evaluation meanwhile."""

NOTEBOOK_SECONDS = 0.5
"""Time between two updates of the output in a notebook."""

NOTEBOOK_LINES = 20
"""Number of lines that are shown in a notebook, the last ones; the log of the model has all evaluations."""


def progress_display() -> Callback:
    """Return the callback that shows the progress where the program runs."""
    from rich.console import Console

    return NotebookProgress() if Console().is_jupyter else ProgressPrinter()


class ProgressPrinter:
    """Prints a line for each evaluation, and one per minute between evaluations: a callback for `Session.finish`."""

    def __init__(self) -> None:
        self._printed = time.monotonic()

    def __call__(self, session: Session, event: Event) -> None:
        """Print what is worth a line."""
        if isinstance(event, Step) and time.monotonic() - self._printed < SECONDS:
            return
        print(describe_event(session, event), flush=True)
        self._printed = time.monotonic()


class NotebookProgress:
    """Shows the progress in one output of a Jupyter notebook: a bar and the last step, below the last evaluations.

    It needs no widgets, so that what it shows is also in the stored notebook. It is a callback for `Session.finish`.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=NOTEBOOK_LINES)
        self._output: Any = None
        self._shown = -NOTEBOOK_SECONDS

    def __call__(self, session: Session, event: Event) -> None:
        """Update the output, for steps only now and then."""
        if isinstance(event, Step):
            if time.monotonic() - self._shown >= NOTEBOOK_SECONDS:
                self._show(session, describe_event(session, event))
            return
        self._lines.append(describe_event(session, event))
        self._show(session)

    def _show(self, session: Session, step: str = "") -> None:
        """Show the lines, and below them the bar and the last step until training has ended."""
        trainer = session.trainer
        lines = [*self._lines, *([step] if step else [])]
        rich_text = f"<pre>{html.escape(chr(10).join(lines))}</pre>"
        if not trainer.state.finished:
            words = len(trainer.train) * trainer.settings.epochs
            rich_text += f'<progress value="{trainer.state.words}" max="{words}"></progress>'
        content = {"text/plain": "\n".join(lines), "text/html": rich_text}
        if self._output is None:
            self._output = import_module("IPython.display").display(content, raw=True, display_id=True)  # Jupyter has it
        else:
            self._output.update(content, raw=True)
        self._shown = time.monotonic()


def describe_event(session: Session, event: Event) -> str:
    """Return a line that says what happened in training, and in which of several runs."""
    return f"{session.label}, {_describe(session, event)}" if session.label else _describe(session, event)


def _describe(session: Session, event: Event) -> str:
    """Return a line that says what happened in a run."""
    if isinstance(event, RolledBack):
        return f"{event.cause}: back to step {event.step:,}, with {event.factor:g} times the learning rate"
    if isinstance(event, Finished):
        return f"finished at step {event.step:,}: {event.reason}"
    if not isinstance(event, Step | Evaluation):
        return f"test: {_describe_figures(session, event.figures)}"
    settings, state = session.trainer.settings, session.trainer.state
    loss = event.train_loss if isinstance(event, Evaluation) else state.loss_mean
    details = [f"{'train' if event.exact else settings.loss} loss {loss:.4f}"]
    if isinstance(event, Evaluation) and session.valid:
        details.append(f"valid: {_describe_figures(session, session.valid)}{' (best so far)' if event.best else ''}")
    details.append(f"{state.words / max(state.seconds, 1e-9):,.0f} examples/s")
    return f"epoch {event.epoch}/{settings.epochs}, step {event.step:,}: {'; '.join(details)}"


def _describe_figures(session: Session, figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {float(figures[name]):,.4f}" for name in session.headlines)
