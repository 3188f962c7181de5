"""The log of a run: a JSON object a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from fflm.arguments import Count
from fflm.errors import FflmError
from fflm.files import open_regular, os_errors_as_fflm_error
from fflm.stored import check_json, from_json, read_whole
from fflm.training.events import USELESS


class Event(TypedDict):
    """Any event."""

    event: str


class Finished(TypedDict):
    """The end of a run."""

    reason: str


class Logged(TypedDict):
    """An evaluation; what was measured on the validation part depends on what was trained."""

    step: Count
    words: Count
    train_loss: Annotated[float, Meta(ge=0)]
    exact: NotRequired[bool]
    best: bool
    rate: float
    seconds: float


def append_log(path: Path, event: str, **fields: Any) -> int:
    """Append a line to a log, which need not exist yet, and return the log's length in bytes.

    Raises
    ------
    FflmError
        If it cannot be written.
    """
    with os_errors_as_fflm_error(f"write {path}"), open_regular(path, "ab") as file:
        file.write(json.dumps({"event": event, **fields}, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        return file.tell()


def truncate_log(path: Path, length: int) -> None:
    """Cut a log to ``length`` bytes: a resumed run drops what was logged after its checkpoint, because it will be logged again.

    Raises
    ------
    FflmError
        If it cannot be written.
    """
    with os_errors_as_fflm_error(f"write {path}"), open_regular(path, "ab") as file:
        file.truncate(min(length, file.tell()))


def read_log(path: Path, kinds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a log, of which the first is the start, unless there is none at all.

    A last line that is not whole is left out, for a kill has cut it off.

    Parameters
    ----------
    path
        The file.
    kinds
        Types of the events ``start`` and ``evaluation``.

    Raises
    ------
    FflmError
        If it cannot be read or is damaged.
    """
    lines = read_whole(path).split(b"\n")
    if not _whole(lines[-1]):
        lines.pop()
    events: list[dict[str, Any]] = []
    types = {"finished": Finished, **kinds}
    for number, line in enumerate(lines, 1):
        source = f"{path}, line {number},"
        event = from_json(line, Event, source)
        if (event["event"] == "start") != (number == 1):
            raise FflmError(f"{source} is damaged (a log begins with its start, once): restore it from a copy, or train again")
        if event["event"] in types:
            check_json(event, types[event["event"]], source)
        if event["event"] == "evaluation" and event.get("exact", True) and not event["train_loss"] < USELESS:
            raise FflmError(f"{source} is damaged (no run has a loss of {event['train_loss']}): restore it, or train again")
        events.append(event)
    return events


def _whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
