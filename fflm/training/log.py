"""The log of a training run, a file with one JSON object per line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from fflm.arguments import Count
from fflm.errors import FflmError
from fflm.files import open_regular, os_errors_as_fflm_error
from fflm.stored import check_json, from_json, read_whole
from fflm.training.events import MAX_LOSS


class LoggedEvent(TypedDict):
    """The field that all events have."""

    event: str


class LoggedEnd(TypedDict):
    """The event at the end of training."""

    reason: str


class Logged(TypedDict):
    """An evaluation. Subclasses add the figures of the validation data, which depend on the kind of model."""

    step: Count
    words: Count
    train_loss: Annotated[float, Meta(ge=0)]
    exact: NotRequired[bool]
    best: bool
    rate: float
    seconds: float


def append_log(path: Path, event: str, **fields: Any) -> int:
    """Append a line to a log, and return the length of the log in bytes.

    Parameters
    ----------
    path
        The file, which is created if it does not exist.
    event
        Name of the event.
    fields
        The other fields of the line, as JSON values.

    Raises
    ------
    FflmError
        If the file cannot be written.
    """
    with os_errors_as_fflm_error(f"write {path}"), open_regular(path, "ab") as file:
        file.write(json.dumps({"event": event, **fields}, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        return file.tell()


def truncate_log(path: Path, length: int) -> None:
    """Truncate a log to ``length`` bytes.

    A resumed run does this, because what was logged after its checkpoint will be logged again.

    Raises
    ------
    FflmError
        If the file cannot be written.
    """
    with os_errors_as_fflm_error(f"write {path}"), open_regular(path, "ab") as file:
        file.truncate(min(length, file.tell()))


def read_log(path: Path, kinds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a log, in order. If there are any, the first one is the event ``start``.

    An incomplete last line is ignored, because the process may have been killed while it wrote the line.

    Parameters
    ----------
    path
        The file.
    kinds
        The types of the events ``start`` and ``evaluation`` by these names, against which they are checked.

    Raises
    ------
    FflmError
        If the file cannot be read or is damaged.
    """
    lines = read_whole(path).split(b"\n")
    if not _is_json(lines[-1]):
        lines.pop()
    events: list[dict[str, Any]] = []
    types = {"finished": LoggedEnd, **kinds}
    for number, line in enumerate(lines, 1):
        source = f"{path}, line {number},"
        event = from_json(line, LoggedEvent, source)
        if (event["event"] == "start") != (number == 1):
            raise FflmError(f"{source} is damaged (a log begins with its start, once): restore it from a copy, or train again")
        if event["event"] in types:
            check_json(event, types[event["event"]], source)
        if event["event"] == "evaluation" and event.get("exact", True) and not event["train_loss"] < MAX_LOSS:
            raise FflmError(f"{source} is damaged (no run has a loss of {event['train_loss']}): restore it, or train again")
        events.append(event)
    return events


def _is_json(line: bytes) -> bool:
    """Return whether a line is a complete JSON value."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
