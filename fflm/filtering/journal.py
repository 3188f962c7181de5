"""The folder of a job: its description, its journal, and the files in progress.

A line of the journal says up to where a file is done, and how large the files in progress were then. What was written later is
cut off when the job is resumed. The last line of a file says that what was made of it is complete, and that is then moved below
the output folder, if necessary by the job that is resumed.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from fflm.arguments import Count
from fflm.filtering.settings import FilterSettings
from fflm.stored import from_json

JOB, JOURNAL, REPORT = "job.json", "journal.jsonl", "report.json"
"""Names of the files in the folder of a job."""

REMEDY = "filter again into another folder"
"""What the user can do about damaged files of a job, for messages."""


class Description(TypedDict):
    """The content of ``job.json``."""

    format: Annotated[int, Meta(ge=1, le=1)]
    model: Annotated[str, Meta(max_length=4096)]
    fingerprint: str
    output: str
    sources: list[tuple[str, str]]
    settings: FilterSettings


class Entry(TypedDict):
    """A line of the journal; ``broken`` has what was found since the line before."""

    writes: bool
    file: Count
    version: list[str]
    end: Count
    records: Count
    kept: Count
    sizes: dict[str, Count]
    broken: dict[str, str]
    done: bool


@dataclass
class State:
    """How far a pass over a file has come.

    Attributes
    ----------
    version
        What `Source.version` returned when the pass began.
    end
        The position in the file.
    records, kept
        Number of records up to there, and of those that are kept.
    sizes
        Sizes of the files in progress, bytes, by the suffixes of their names.
    broken
        Why records are broken, by their numbers.
    done
        Whether the pass is complete.
    """

    version: list[str] = field(default_factory=list)
    end: int = 0
    records: int = 0
    kept: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    done: bool = False


class Journal:
    """The journal of a job.

    Parameters
    ----------
    folder
        The folder of the job.

    Attributes
    ----------
    file
        The path of the journal.
    states
        How far each pass over a file has come, by whether something is written of it, and its index.

    Raises
    ------
    FflmError
        If the journal is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / JOURNAL
        self.states: dict[tuple[bool, int], State] = {}
        content = self.file.read_bytes() if self.file.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):  # the process was killed while it wrote a line
            os.truncate(self.file, len(complete))
        for number, line in enumerate(complete.splitlines(), 1):
            entry: dict[str, Any] = from_json(line, Entry, f"{self.file}, line {number}", REMEDY)
            key = entry["writes"], entry["file"]
            before = self.states.get(key, State()).broken if entry["records"] else {}
            known = {each.name: entry[each.name] for each in fields(State)}
            self.states[key] = State(**{**known, "broken": {**before, **entry["broken"]}})

    def path(self, index: int, suffix: str) -> Path:
        """Return the path of a file in progress, of which there are several kinds, by their suffixes."""
        return self._folder / f"{index:06}.{suffix}"

    def begin(self, writes: bool, index: int, version: list[str], resumable: bool) -> State:
        """Return how far a pass over a file has come: to nowhere if the file, or what was made of it, is not as it was then."""
        state = self.states.get((writes, index), State())
        if not (resumable and state.version == version and all(self._has(index, *size) for size in state.sizes.items())):
            state = State(version)
        self.states[writes, index] = state
        return state

    def _has(self, index: int, suffix: str, size: int) -> bool:
        path = self.path(index, suffix)
        return path.exists() and path.stat().st_size >= size

    def write(self, writes: bool, index: int, broken: dict[str, str]) -> None:
        """Append a line about a file, of whose records these were found to be broken since the line before."""
        state = self.states[writes, index]
        state.broken.update(broken)
        line = json.dumps({"writes": writes, "file": index, **asdict(state), "broken": broken}, ensure_ascii=True)
        with self.file.open("ab") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
