"""Formats with a record per line: JSON lines, and plain text with a document per line.

Compressed files are written as one member, or frame, per batch, so that they can be cut off between two.
"""

import codecs
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, ClassVar

import msgspec

from fflm.errors import FflmError
from fflm.files import COMPRESSIONS, split_compression
from fflm.filtering.quality import Floats
from fflm.filtering.records import Batch, BrokenRecordError, Parsed, Record, Rows, as_fields, rounded
from fflm.text.reading import LONGEST, decompressed

BLOCK = 1 << 20
"""Number of bytes of a batch, not counting the rest of its last line."""

_OBJECTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRINGS = msgspec.json.Decoder(str)


def compressor(suffix: str) -> Callable[[bytes], bytes]:
    """Return the function that compresses bytes for files with a suffix such as ``.gz``; others are not compressed.

    Raises
    ------
    FflmError
        If this Python has no module for it.
    """
    if suffix not in COMPRESSIONS:
        return bytes
    try:
        compress: Callable[..., bytes] = import_module(COMPRESSIONS[suffix]).compress
    except ImportError as error:
        raise FflmError(f"this Python cannot write {suffix} files: decompress them first") from error
    return (lambda data: compress(data, mtime=0)) if suffix == ".gz" else compress


class BytesPart:
    """A file to which bytes are appended.

    Parameters
    ----------
    path
        The file.
    size
        Number of bytes of an existing file to keep.
    empty
        The content of a file to which nothing was appended.
    """

    def __init__(self, path: Path, size: int, empty: bytes = b"") -> None:
        path.touch()
        self._file = path.open("r+b")
        self._file.truncate(size)
        self._file.seek(size)
        self._empty = empty
        self.size = size

    def write(self, content: bytes) -> None:
        """Append bytes."""
        self._file.write(content)
        self.size += len(content)

    def sync(self) -> None:
        """Write everything to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Complete the file, and close it."""
        if not self.size:
            self.write(self._empty)
        self.sync()
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()


@dataclass(frozen=True)
class Lines:
    """A format with a record per line.

    Attributes
    ----------
    field
        The name of the field with the text.
    suffix
        The suffix of the compression of the file that is written.
    """

    field: str
    suffix: str
    resumable: ClassVar[bool] = True

    def read(self, file: IO[bytes], name: str, start: int) -> Iterator[Batch]:
        """Yield batches of whole lines; of a line that is longer than `LONGEST`, only the beginning, as the last of a batch."""
        lines = decompressed(file, name)
        _skip(lines, start)
        end = start
        while data := lines.read(BLOCK):
            if not data.endswith(b"\n"):
                data += lines.readline(LONGEST)
            end += len(data)
            count = data.count(b"\n") + (not data.endswith(b"\n"))
            if not data.endswith(b"\n"):  # the rest of a line that is too long, or the end of the file
                while rest := lines.readline(LONGEST):
                    end += len(rest)
                    if rest.endswith(b"\n"):
                        break
            yield Batch(data, count, end)

    def parse(self, payload: bytes) -> Parsed:
        """Return the records of a batch of lines."""
        lines = payload.removesuffix(b"\n").split(b"\n")
        parsed = Parsed(lines, [None] * len(lines), [None] * len(lines), {})
        for index, line in enumerate(lines):
            try:
                if len(line) >= LONGEST:
                    raise BrokenRecordError(f"longer than {LONGEST:,} bytes")
                if line and not line.isspace():
                    parsed.texts[index], parsed.records[index] = self._read(line)
            except BrokenRecordError as error:
                parsed.broken[index] = str(error)
        return parsed

    def _read(self, line: bytes) -> tuple[str, Record | None]:
        """Return the text of a line, and its fields; raise a `BrokenRecordError` that says what is wrong with it."""
        raise NotImplementedError

    def select(self, parsed: Parsed, rows: Rows, scores: dict[str, Floats] | None) -> bytes:
        """Return the chosen lines, compressed; without added scores, they are unchanged."""
        if scores is None:
            lines = [parsed.payload[row] for row in rows]
        else:
            lines = [
                _with_scores(parsed.payload[row], parsed.records[row] or {}, as_fields(own))
                for row, own in zip(rows, rounded(scores, rows), strict=True)
            ]
        return join_lines(lines, self.suffix)

    def part(self, path: Path, size: int, source: IO[bytes], scored: bool) -> BytesPart:
        """Open a file to write, whose first ``size`` bytes are kept."""
        return BytesPart(path, size, compressor(self.suffix)(b""))


class TextLines(Lines):
    """Plain text: a document per line."""

    def _read(self, line: bytes) -> tuple[str, None]:
        try:
            return line.removeprefix(codecs.BOM_UTF8).decode(), None
        except UnicodeDecodeError as error:
            raise BrokenRecordError(f"not UTF-8 at byte {error.start}") from error


class JsonLines(Lines):
    """JSON lines: an object per line, of which one field is the text."""

    def _read(self, line: bytes) -> tuple[str, Record]:
        try:
            line.decode()  # because msgspec only checks what it decodes
            record: Record = _OBJECTS.decode(line.removeprefix(codecs.BOM_UTF8))
            return _STRINGS.decode(record[self.field]), record
        except (msgspec.DecodeError, KeyError, UnicodeDecodeError, RecursionError):
            return self._read_leniently(line)

    def _read_leniently(self, line: bytes) -> tuple[str, Record]:
        """Read JSON that may contain NaN and halves of surrogate pairs, which Python's module writes, or find what is wrong."""
        try:
            record = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
        except UnicodeDecodeError as error:
            raise BrokenRecordError(f"not UTF-8 at byte {error.start}") from error
        except RecursionError as error:
            raise BrokenRecordError("nested too deeply") from error
        except ValueError as error:
            raise BrokenRecordError(f"not JSON: {error}") from error
        wrong = (
            "not a JSON object" if not isinstance(record, dict) else "" if self.field in record else f"no field {self.field!r}"
        )
        if not wrong and not isinstance(record[self.field], str):
            wrong = f"the field {self.field!r} is not a string"
        if wrong:
            raise BrokenRecordError(wrong)
        return record[self.field], record


def _with_scores(line: bytes, record: Record, scores: Record) -> bytes:
    """Return a line of JSON with scores as further fields of its record; the others remain as they are written.

    Only if the record has such fields already, it is written anew.
    """
    if scores.keys().isdisjoint(record):
        return line.removeprefix(codecs.BOM_UTF8).strip().removesuffix(b"}") + b"," + msgspec.json.encode(scores)[1:]
    together = {**record, **scores}
    if all(isinstance(value, msgspec.Raw) for value in record.values()):
        return msgspec.json.encode(together)
    try:
        return json.dumps(together, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, which are escaped
        return json.dumps(together, separators=(",", ":")).encode()


def score_lines(first: int, rows: Rows, scores: dict[str, Floats], suffix: str) -> bytes:
    """Return the scores of the chosen records as compressed JSON lines, with the numbers of the records in the file.

    Parameters
    ----------
    first
        The number of the first record of the batch, from 1.
    rows
        The indices of the chosen records in the batch.
    scores
        The scores of all records of the batch.
    suffix
        The suffix of the compression.
    """
    records = [{"record": first + int(row), **own} for row, own in zip(rows, rounded(scores, rows), strict=True)]
    return join_lines([msgspec.json.encode(record) for record in records], suffix)


def join_lines(lines: list[bytes], suffix: str) -> bytes:
    """Return lines as a compressed member of a file, which is empty if there are none."""
    return compressor(suffix)(b"".join(line + b"\n" for line in lines)) if lines else b""


def _skip(file: IO[bytes], count: int) -> None:
    """Skip bytes at the beginning of a file."""
    while count and (data := file.read(min(count, BLOCK))):
        count -= len(data)


def scores_target(target: str) -> str:
    """Return the path of the file with the scores beside a file: ``a.scores.jsonl.gz`` for ``a.jsonl.gz``."""
    path, suffix = split_compression(target)
    return path.with_name(f"{path.stem}.scores.jsonl{suffix}").as_posix()
