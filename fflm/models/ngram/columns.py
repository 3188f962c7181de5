"""Arrays on disk that are written and read a part at a time, so that they take no memory."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PART = 1 << 18
"""Rows of a column that are read at a time."""


class Column:
    """An array in a file, to which rows are appended.

    Parameters
    ----------
    path
        The file, which need not exist; then the array is empty.
    dtype
        The type of the numbers.
    width
        The numbers of a row, for arrays of two dimensions.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike = np.uint32, width: int = 0) -> None:
        self.path, self.dtype, self.width = path, np.dtype(dtype), width
        self._row = self.dtype.itemsize * max(width, 1)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.path.stat().st_size // self._row if self.path.exists() else 0

    def append(self, rows: Array) -> None:
        """Append rows, (N,) or (N, width), of the column's dtype."""
        assert rows.dtype == self.dtype
        if len(rows):
            with self.path.open("ab") as file:
                file.write(np.ascontiguousarray(rows).data)

    def read(self, low: int, high: int) -> Array:
        """Return the rows from ``low`` to ``high``, exclusive, as an array in memory."""
        if low >= high:
            return np.empty((0, self.width) if self.width else 0, self.dtype)
        numbers = max(self.width, 1)
        found = np.fromfile(self.path, self.dtype, (high - low) * numbers, offset=low * self._row)
        return found.reshape(-1, self.width) if self.width else found

    def extend(self, rows: int) -> None:
        """Append rows of zeros."""
        with self.path.open("ab") as file:
            file.truncate((len(self) + rows) * self._row)

    def mapped(self, low: int, high: int) -> Array:
        """Return the rows from ``low`` to ``high``, exclusive, as an array that writes to the file; they must exist."""
        return np.memmap(self.path, self.dtype, "r+", low * self._row, (high - low,)) if low < high else self.read(low, high)

    def parts(self, size: int = PART) -> Iterator[Array]:
        """Yield all rows, at most ``size`` at a time."""
        count = len(self)
        for low in range(0, count, size):
            yield self.read(low, min(low + size, count))

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


class Piece(NamedTuple):
    """A column, or an array, and a number to add to each of its rows."""

    rows: Column | Array
    shift: int = 0


class Joined:
    """Pieces of an array, one after the other: a `fflm.arrays.Divided`.

    Attributes
    ----------
    shape, dtype
        Those of the whole array.
    """

    def __init__(self, pieces: Sequence[Piece], dtype: npt.DTypeLike) -> None:
        self._pieces, self.dtype = pieces, np.dtype(dtype)
        width = max((piece.rows.width for piece in pieces if isinstance(piece.rows, Column)), default=0)
        self.shape: tuple[int, ...] = (sum(len(piece.rows) for piece in pieces), *([width] if width else []))

    def __iter__(self) -> Iterator[Array]:
        """Yield the whole array, some rows at a time."""
        for rows, shift in self._pieces:
            for part in rows.parts() if isinstance(rows, Column) else (rows,):
                yield (part + self.dtype.type(shift) if shift else part).astype(self.dtype, copy=False)

    def crc32(self, checksum: int) -> int:
        """Return the CRC-32 of the whole array, which continues a checksum."""
        for part in self:
            checksum = zlib.crc32(np.ascontiguousarray(part).data, checksum)
        return checksum

    def read(self) -> Array:
        """Return the whole array in memory."""
        return np.concatenate(list(self))
