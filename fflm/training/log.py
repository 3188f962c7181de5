"""The log of a run: a JSON object a line."""

import json
from pathlib import Path
from typing import Any

from fflm.errors import FflmError
from fflm.files import clear_errors


def append_log(path: Path, event: str, **fields: Any) -> int:
    """Append a line to a log, which need not exist yet, and return the log's length in bytes.

    Raises
    ------
    FflmError
        If it cannot be written.
    """
    with clear_errors(f"write {path}"), path.open("ab") as file:
        file.write(json.dumps({"event": event, **fields}, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        return file.tell()


def truncate_log(path: Path, length: int) -> None:
    """Keep so many bytes of a log: a resumed run forgets what was logged after its checkpoint, for it happens again.

    Raises
    ------
    FflmError
        If it cannot be written.
    """
    with clear_errors(f"write {path}"), path.open("ab") as file:
        file.truncate(min(length, file.tell()))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the events of a log.

    Raises
    ------
    FflmError
        If it cannot be read or is damaged.
    """
    with clear_errors(f"read {path}"):
        lines = path.read_bytes().splitlines()
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            if number == len(lines):  # a line that a kill cut off
                break
            event = None
        if not isinstance(event, dict) or "event" not in event:
            raise FflmError(f"{path} is damaged: line {number} is no event")
        events.append(event)
    return events
