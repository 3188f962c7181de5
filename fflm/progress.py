"""Progress of a training session as lines of text, for programs that have no display of their own."""

import time
from collections.abc import Mapping
from typing import Any

from fflm.training.events import Evaluation, Event, Finished, RolledBack, Step
from fflm.training.session import Session

SECONDS = 60.0
"""Time between two lines if there is no evaluation meanwhile."""


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
