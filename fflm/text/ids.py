"""The ids of a part of a corpus, read from their file and always verified before use."""

import hashlib
import os
import re
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError
from fflm.files import open_regular, os_errors_as_fflm_error

Array = npt.NDArray[np.unsignedinteger[Any]]

_BLOCK = 1 << 20  # number of ids that are read at a time
_HEADER = re.compile(rb"\{'descr': '<u([24])', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n")
_SEEKING = threading.Lock()  # held while a file is read on systems where reading moves its position


def id_type(words: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the dtype of ids on disk for a vocabulary of ``words`` words; it has room for ``<s>``, the largest id."""
    return np.dtype("<u2" if words + 1 <= 1 << 16 else "<u4")


class Tally:
    """Counts the ids of a part, and computes their checksum, while they are written or read.

    Parameters
    ----------
    end
        The id of ``</s>``, or None if ends are not predicted.

    Attributes
    ----------
    tokens, unknown, ends
        The number of ids so far, and how many of them are ``<unk>`` and ``</s>``.
    """

    def __init__(self, end: int | None) -> None:
        self._end = end
        self._sha256 = hashlib.sha256()
        self.tokens = self.unknown = self.ends = 0

    def add(self, ids: Array) -> None:
        """Add ids, (N,), which follow those added before."""
        self._sha256.update(ids.tobytes())
        self.tokens += len(ids)
        self.unknown += int(np.count_nonzero(ids == 0))
        self.ends += int(np.count_nonzero(ids == self._end)) if self._end is not None else 0

    @property
    def sha256(self) -> str:
        """The checksum of the bytes of the ids, 64 hexadecimal digits."""
        return self._sha256.hexdigest()


class Ids:
    """The ids of a part of a corpus, read from their file as they are needed: ``ids[low:high]`` is an array.

    The whole file is verified when ids are first requested, and again if the file has changed since. The file stays open, so
    that its ids can still be read after its folder has been moved or replaced. Threads and forked processes may share this
    object; a pickled copy opens the file anew.

    Parameters
    ----------
    path
        The file, in NumPy's npy format.
    words
        The length of the vocabulary [V]: ids lie in [0, V).
    end
        The id of ``</s>``, or None if ends are not predicted.
    tokens, unknown, ends, sha256
        The counts and the checksum that `Tally` computed when the file was written.

    Raises
    ------
    FflmError
        If the file cannot be read, or does not hold ``tokens`` ids.
    """

    def __init__(self, path: Path, words: int, end: int | None, *, tokens: int, unknown: int, ends: int, sha256: str) -> None:
        self.path = path
        self._words = words
        self._end = end
        self._tokens = tokens
        self._expected: dict[str, Any] = {"unknown": unknown, "ends": ends, "sha256": sha256}
        self._verified: tuple[int, int] | None = None  # the state of the file that was verified
        self.dtype = id_type(words)
        with open_regular(path) as file:
            self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
            with os_errors_as_fflm_error(f"read {path}"):
                head = file.read(10)
                header = file.read(int.from_bytes(head[8:], "little"))
        self._offset = len(head) + len(header)
        found = _HEADER.fullmatch(header)
        if head[:8] != b"\x93NUMPY\x01\x00" or not found or (int(found[1]), int(found[2])) != (self.dtype.itemsize, tokens):
            self._damaged(f"it is not an array of {tokens} ids of {self.dtype.itemsize} bytes")
        if self._state()[0] != self._offset + tokens * self.dtype.itemsize:
            self._damaged("it has the wrong size")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Ids, tokens=self._tokens, **self._expected), (self.path, self._words, self._end)

    def __repr__(self) -> str:
        return f"Ids({str(self.path)!r}, {len(self):,} tokens)"

    def __len__(self) -> int:
        return self._tokens

    def __getitem__(self, key: slice) -> Array:
        """Return consecutive ids, (N,), uint16 or uint32, as a read-only array.

        Raises
        ------
        FflmError
            If the file cannot be read, is damaged, or was truncated or changed in the meantime.
        """
        rows = range(len(self))[key]
        if rows.step != 1:
            raise ValueError("ids are read in their order: ids[low:high]")
        self.verify()
        result = np.empty(len(rows), self.dtype)
        for low in range(0, len(rows), _BLOCK):
            count = min(_BLOCK, len(rows) - low)
            result[low : low + count] = self._read(rows.start + low, count)
        result.flags.writeable = False
        return result

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("ids must be read from their file, which makes a copy")
        return self[:] if dtype is None else self[:].astype(dtype)

    def verify(self) -> None:
        """Read the whole file, unless it is verified already, and check that its ids are those that were written.

        Raises
        ------
        FflmError
            If they are not, or the file cannot be read.
        """
        state = self._state()
        if state == self._verified:
            return
        tally = Tally(self._end)
        for low in range(0, len(self), _BLOCK):
            tally.add(self._read(low, min(_BLOCK, len(self) - low)))
        if tally.sha256 != self._expected["sha256"]:
            self._damaged("wrong sha256")
        for name, count in (("<unk>", "unknown"), ("</s>", "ends")):
            if (found := getattr(tally, count)) != self._expected[count]:
                self._damaged(f"it has {found} ids of {name}, but corpus.json says {self._expected[count]}")
        self._verified = state

    def _read(self, start: int, count: int) -> Array:
        """Read ``count`` ids from position ``start`` on, and check that they are in range."""
        size = self.dtype.itemsize
        place, length = self._offset + start * size, count * size
        with os_errors_as_fflm_error(f"read {self.path}"):
            if hasattr(os, "pread"):
                content = os.pread(self._file, length, place)
            else:  # Windows, where nothing forks
                with _SEEKING:
                    os.lseek(self._file, place, os.SEEK_SET)
                    content = os.read(self._file, length)
        if len(content) != length:
            raise FflmError(f"{self.path} was truncated or changed while it was read: tokenize the text again")
        ids: Array = np.frombuffer(content, self.dtype)
        if (largest := ids.max(initial=0)) >= self._words:
            self._damaged(f"it has the id {largest}, but the vocabulary has {self._words} words")
        return ids

    def _state(self) -> tuple[int, int]:
        """Return the size and the modification time of the file, which change when its content does."""
        about = os.fstat(self._file)
        return about.st_size, about.st_mtime_ns

    def _damaged(self, reason: str) -> NoReturn:
        """Raise the error that says why the file is damaged."""
        raise FflmError(f"{self.path} is damaged ({reason}): tokenize the text again")
