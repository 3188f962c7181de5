"""Parquet files: a row per document, of which one column is the text."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from fflm.errors import FflmError, install
from fflm.filtering.quality import Floats
from fflm.filtering.records import FIELDS, Batch, BrokenRecordError, Parsed, Part, Rows, rounded

ROWS = 512
"""Number of rows of a batch."""

_ROW_GROUP = 1 << 26  # number of bytes of the rows that are written at a time


@dataclass(frozen=True)
class Parquet:
    """The format Parquet. A file is written in one go, because its end says where everything is.

    Attributes
    ----------
    field
        The name of the column with the text.
    """

    field: str
    resumable: ClassVar[bool] = False

    def read(self, file: IO[bytes], name: str, start: int) -> Iterator[Batch]:
        """Yield batches of rows; ``start`` is a number of rows."""
        end = 0
        for table in _batches(file, name):
            end += table.num_rows
            if end > start:
                yield Batch(table, table.num_rows, end)

    def parse(self, payload: Any) -> Parsed:
        """Return the records of a batch of rows."""
        rows = payload.num_rows
        if self.field not in payload.schema.names:
            return Parsed(payload, [None] * rows, [], dict.fromkeys(range(rows), f"no column {self.field!r}"))
        parsed = Parsed(payload, [None] * rows, [], {})
        for index, value in enumerate(_values(payload.column(self.field))):
            try:
                text = value.decode() if isinstance(value, bytes) else value
                if not isinstance(text, str):
                    raise BrokenRecordError(f"the column {self.field!r} is not a string")
                parsed.texts[index] = text
            except UnicodeDecodeError as error:
                parsed.broken[index] = f"not UTF-8 at byte {error.start}"
            except BrokenRecordError as error:
                parsed.broken[index] = str(error)
        return parsed

    def select(self, parsed: Parsed, rows: Rows, scores: dict[str, Floats] | None) -> Any:
        """Return the chosen rows."""
        import pyarrow

        table = pyarrow.Table.from_batches([parsed.payload]).take(pyarrow.array(rows))
        if scores is None:
            return table
        schema, own = _with_scores(table.schema), rounded(scores, rows)
        kept = [table.column(name) for name in schema.names[: -len(FIELDS)]]
        added = [pyarrow.array([each[figure] for each in own], schema.field(name).type) for figure, name in FIELDS.items()]
        return pyarrow.Table.from_arrays([*kept, *added], schema=schema)

    def part(self, path: Path, size: int, source: IO[bytes], scored: bool) -> Part:
        """Open a file to write, with the columns and the compression of the source."""
        return _ParquetPart(path, source, scored)


def _module() -> Any:
    """Return the module that reads and writes Parquet."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise FflmError(f"Parquet files need pyarrow: {install('filter')}") from error
    return pyarrow.parquet


def _batches(file: IO[bytes], name: str) -> Iterator[Any]:
    """Yield the rows of a file in batches of at most `ROWS`."""
    module = _module()
    try:
        yield from module.ParquetFile(file).iter_batches(ROWS)
    except (OSError, ValueError) as error:  # what pyarrow raises
        raise FflmError(f"cannot read {name}: {' '.join(str(error).split())}") from error


def _values(column: Any) -> list[Any]:
    """Return the values of a column; strings that are not UTF-8 make it one of bytes."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast("binary").to_pylist()
    return values


def _with_scores(schema: Any) -> Any:
    """Return a schema with a column for each score at its end, in place of columns of these names."""
    import pyarrow

    fields = [field for field in schema if field.name not in FIELDS.values()]
    types = [pyarrow.int64() if figure == "tokens" else pyarrow.float64() for figure in FIELDS]
    return pyarrow.schema([*fields, *map(pyarrow.field, FIELDS.values(), types)], schema.metadata)


class _ParquetPart:
    """A Parquet file that is being written, in groups of rows of at least `_ROW_GROUP` bytes, except for the last."""

    def __init__(self, path: Path, source: IO[bytes], scored: bool) -> None:
        module = _module()
        before = module.ParquetFile(source)
        codec = before.metadata.row_group(0).column(0).compression if before.metadata.num_row_groups else "SNAPPY"
        schema = _with_scores(before.schema_arrow) if scored else before.schema_arrow
        self._path = path
        self._writer = module.ParquetWriter(path, schema, compression={"UNCOMPRESSED": "none"}.get(codec, codec))
        self._tables: list[Any] = []
        self.size = 0

    def write(self, content: Any) -> None:
        """Append rows."""
        self._tables.append(content)
        if sum(table.nbytes for table in self._tables) > _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._tables:
            self._writer.write_table(pyarrow.concat_tables(self._tables))
            self._tables = []

    def sync(self) -> None:
        """Do nothing, because the file is of no use before it is complete."""

    def close(self) -> None:
        """Complete the file, and write it to disk."""
        self._flush()
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close the file as it is."""
        self._writer.close()
