"""The words of a vocabulary as arrays, which are mapped into memory, so that a vocabulary of any size is loaded at once."""

import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
import numpy.typing as npt

from fflm.arrays import map_arrays, save_arrays
from fflm.errors import FflmError
from fflm.stored import REMEDY

_TYPES: dict[str, type[np.generic]] = {
    "text": np.uint8,
    "starts": np.uint32,
    "counts": np.int64,
    "buckets": np.uint32,
    "members": np.uint32,
}


class TextFigures(TypedDict):
    """What the file of arrays says of the text file that it repeats: its checksum, and its size in bytes."""

    sha256: str
    bytes: int


class WordTable:
    """The V words of a vocabulary, their counts, and a hash table of B buckets, a power of two.

    Parameters
    ----------
    arrays
        ``text`` (D,) uint8, the words in UTF-8, a newline after each; ``starts`` (V + 1,) uint32, where each begins, and D;
        ``counts`` (V,) int64; ``buckets`` (B + 1,) uint32 and ``members`` (V,) uint32: the ids of the words whose CRC-32 is
        b modulo B are ``members[buckets[b] : buckets[b + 1]]``.
    path
        The file that they are from, for messages.

    Attributes
    ----------
    path
        As above.
    """

    def __init__(self, arrays: dict[str, npt.NDArray[Any]], path: Path) -> None:
        self._arrays = arrays
        self.path = path
        self._text, self._starts, self._counts, self._buckets, self._members = (arrays[name] for name in _TYPES)

    @classmethod
    def make(cls, words: Sequence[str], counts: Sequence[int], path: Path) -> Self:
        """Return the table of words, to be stored in a file.

        Raises
        ------
        FflmError
            If all words together have more than 2^32 bytes.
        """
        encoded = [word.encode() for word in words]
        starts = np.cumsum([0, *(len(word) + 1 for word in encoded)])
        if starts[-1] >= 2**32:
            raise FflmError("the words of the vocabulary are too long: choose a smaller `max_size`")
        size = 1 << max(0, len(words) - 1).bit_length()
        hashes = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(words)) % np.uint32(size)
        arrays: dict[str, npt.NDArray[Any]] = {
            "text": np.frombuffer(b"".join(word + b"\n" for word in encoded), np.uint8),
            "starts": starts.astype(np.uint32),
            "counts": np.array(counts, np.int64),
            "buckets": np.concatenate([[0], np.bincount(hashes, minlength=size).cumsum()]).astype(np.uint32),
            "members": np.argsort(hashes, kind="stable").astype(np.uint32),
        }
        return cls(arrays, path)

    def save(self, figures: TextFigures) -> None:
        """Write the file.

        Raises
        ------
        FflmError
            If it cannot be written.
        """
        save_arrays(self.path, self._arrays, figures)

    @classmethod
    def map(cls, path: Path) -> tuple[Self, TextFigures]:
        """Map a file that `save` wrote into memory.

        The header is checked, and that no look-up can leave the arrays; the words are not read.

        Raises
        ------
        FflmError
            If the file cannot be read or is damaged.
        """
        mapped, figures = map_arrays(path, tuple(_TYPES.values()), TextFigures, verify=False)
        table = cls({name: mapped.arrays.get(name, np.empty(0, type_)) for name, type_ in _TYPES.items()}, path)
        arrays, words, buckets = table._arrays, len(table._counts), len(table._buckets) - 1
        if (
            any(array.ndim != 1 or array.dtype != _TYPES[name] for name, array in arrays.items())
            or not (len(table._starts) == words + 1 > 1 and len(table._members) == words)
            or not (buckets > 0 and buckets & (buckets - 1) == 0)
            or (table._starts[0], table._starts[-1]) != (0, len(table._text))
        ):
            raise FflmError(f"{path} is damaged (its arrays do not fit together): {REMEDY}")
        return table, figures

    def __len__(self) -> int:
        return len(self._counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordTable) and all(np.array_equal(self._arrays[name], other._arrays[name]) for name in _TYPES)

    __hash__ = None  # type: ignore[assignment]

    def get(self, word: str, default: int) -> int:
        """Return the id of a word, or the default if the table does not contain it."""
        encoded = word.encode("utf-8", "surrogatepass")
        bucket = zlib.crc32(encoded) & (len(self._buckets) - 2)
        members: list[int] = self._members[self._buckets[bucket] : self._buckets[bucket + 1]].tolist()
        return next((id_ for id_ in members if id_ < len(self) and self._bytes(id_) == encoded), default)

    def ids(self, words: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the ids of words, (N,) int32, and -1 for those that the table does not contain."""
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        text, sizes = np.frombuffer(b"".join(encoded), np.uint8), np.fromiter(map(len, encoded), np.int64, len(words))
        begins = sizes.cumsum() - sizes
        buckets = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(words)) & np.uint32(len(self._buckets) - 2)
        places, ends = self._buckets[buckets], np.minimum(self._buckets[buckets + np.uint32(1)], np.uint32(len(self)))
        ids = np.full(len(words), -1, np.int32)
        left = np.flatnonzero(places < ends)
        while len(left):  # compare each word with the next member of its bucket
            members = self._members[places[left]]
            own = np.minimum(members, np.uint32(len(self) - 1))  # a damaged file may have any numbers
            starts, after = self._starts[own].astype(np.int64), self._starts[own + np.uint32(1)].astype(np.int64)
            alike = (after - starts == sizes[left] + 1) & (after <= len(self._text)) & (own == members)
            rows, starts = left[alike], starts[alike]
            row = np.repeat(np.arange(len(rows)), sizes[rows])
            offset = np.arange(len(row)) - np.repeat(sizes[rows].cumsum() - sizes[rows], sizes[rows])
            differs = text[begins[rows][row] + offset] != self._text[starts[row] + offset]
            equal = np.bincount(row[differs], minlength=len(rows)) == 0
            ids[rows[equal]] = members[alike][equal]
            places[left] += np.uint32(1)
            left = left[(ids[left] < 0) & (places[left] < ends[left])]
        return ids

    def word(self, id_: int) -> str:
        """Return the word of an id.

        Raises
        ------
        FflmError
            If the file turns out to be damaged.
        """
        return self._decoded(self._bytes(id_))

    def lines(self, first: int) -> str:
        """Return the words from the id ``first`` on, with newlines between them.

        Raises
        ------
        FflmError
            If the file turns out to be damaged.
        """
        return self._decoded(self._text[int(self._starts[first]) : -1].tobytes())

    @cached_property
    def words(self) -> list[str]:
        """All words, (V,).

        Raises
        ------
        FflmError
            If the file turns out to be damaged.
        """
        words = self.lines(0).split("\n")
        if len(words) != len(self):
            raise FflmError(f"{self.path} is damaged ({len(words)} words instead of {len(self)}): {REMEDY}")
        return words

    @property
    def counts(self) -> list[int]:
        """The counts of all words, (V,)."""
        counts: list[int] = self._counts.tolist()
        return counts

    def _bytes(self, id_: int) -> bytes:
        return self._text[int(self._starts[id_]) : max(0, int(self._starts[id_ + 1]) - 1)].tobytes()

    def _decoded(self, encoded: bytes) -> str:
        try:
            return encoded.decode()
        except UnicodeDecodeError as error:
            raise FflmError(f"{self.path} is damaged ({error}): {REMEDY}") from error
