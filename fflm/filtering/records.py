"""What all formats of collections share: batches of records, their texts, and files that are being written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fflm.filtering.quality import FIGURES, Floats

FIELDS = {figure: f"fflm_{figure}" for figure in FIGURES}
"""The names of the fields in which records get their scores."""

Rows = npt.NDArray[np.intp]
Record = dict[str, Any]


class BrokenRecordError(Exception):
    """A record that has no text; the message says why."""


class Batch(NamedTuple):
    """Consecutive records of a file: what a worker is given, their number, and the position in the file after them."""

    payload: Any
    records: int
    end: int


@dataclass
class Parsed:
    """The records of a batch.

    Attributes
    ----------
    payload
        The lines, or the table.
    texts
        The text of each record, None if it has none.
    records
        The fields of each record, where they are not in the payload.
    broken
        Why a record has no text, by its index in the batch. What has neither is a blank line, which is not a record.
    """

    payload: Any
    texts: list[str | None]
    records: list[Record | None]
    broken: dict[int, str]

    @property
    def readable(self) -> tuple[Rows, Sequence[str]]:
        """The indices of the records that have a text, (D,), and their texts."""
        found = [(index, text) for index, text in enumerate(self.texts) if text is not None]
        return np.array([index for index, _ in found], np.intp), [text for _, text in found]


class Part(Protocol):
    """A file that is being written."""

    size: int

    def write(self, content: Any) -> None:
        """Append what `Format.select` has made."""

    def sync(self) -> None:
        """Write everything to disk."""

    def close(self) -> None:
        """Complete the file, and close it."""

    def abandon(self) -> None:
        """Close the file as it is."""


class Format(Protocol):
    """A format of collections, in which a file is read in batches of records.

    The same batches are read whenever a file is read, so that a position between two of them is enough to continue.

    Attributes
    ----------
    resumable
        Whether a file can be continued between two batches.
    """

    resumable: ClassVar[bool]

    def read(self, file: IO[bytes], name: str, start: int) -> Iterator[Batch]:
        """Yield the batches of an open file from a position on; ``name`` is for error messages."""

    def parse(self, payload: Any) -> Parsed:
        """Return the records of a batch."""

    def select(self, parsed: Parsed, rows: Rows, scores: dict[str, Floats] | None) -> Any:
        """Return the chosen records, with scores in them if given, as a `Part` takes them."""

    def part(self, path: Path, size: int, source: IO[bytes], scored: bool) -> Part:
        """Open a file to write, whose first ``size`` bytes are kept; ``source`` is what is filtered, maybe with added scores."""


def as_fields(scores: Record) -> Record:
    """Return the scores of a document, which are named as in `FIGURES`, as the fields of a record."""
    return {FIELDS[figure]: value for figure, value in scores.items()}


def rounded(scores: dict[str, Floats], rows: Rows) -> list[Record]:
    """Return the scores of the chosen documents as JSON values, rounded to four decimals; None for a number that is not finite.

    A document without words has such numbers.
    """

    def value(name: str, number: float) -> float | int | None:
        return int(number) if name == "tokens" else number if np.isfinite(number) else None

    columns = [scores[name][rows].round(4).tolist() for name in FIGURES]
    return [{name: value(name, number) for name, number in zip(FIGURES, row, strict=True)} for row in zip(*columns, strict=True)]
