"""Communication between the processes that train one model together.

Letters: n processes, numbered by their ranks from 0 to n - 1.
"""

import json
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError

Result = TypeVar("Result")

GATHERED = 2**20
"""Numbers of `DividedRows` that travel at a time."""


class Communicator(ABC):
    """A group of processes. Each operation is collective: all processes must call the same operations in the same order.

    All results are the same in every process, bit for bit, and do not depend on timing: sums are added up in the order of ranks.

    Attributes
    ----------
    rank
        The number of this process.
    size
        The number of processes [n].
    local_rank
        The number of this process among those on its host.
    messages, bytes_sent
        How many collective operations there were, and how many bytes this process has sent in them to other processes.
    """

    rank: int
    size: int
    local_rank: int = 0
    messages: int = 0
    bytes_sent: int = 0

    @abstractmethod
    def gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return the numbers (k,) of all processes, (n, k). Waiting for another process takes little processor time."""

    @abstractmethod
    def broadcast(self, content: bytes) -> bytes:
        """Return the content that the first process has given. Waiting for it takes little processor time."""

    @abstractmethod
    def broadcast_array(self, array: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array with that of the first process, which has the same shape and dtype."""

    @abstractmethod
    def sum_arrays(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Replace contiguous arrays of one dtype by their sums over all processes, each added up in the order of ranks."""

    @abstractmethod
    def abort(self, status: int) -> None:
        """End all processes at once; the launcher exits with ``status``, which is not 0."""

    @abstractmethod
    def all_arrive(self, seconds: float) -> bool:
        """Wait until all processes are here, at most for a time; return whether they are. No other operation may follow."""

    @abstractmethod
    def processors(self, usable: int, affinity: Collection[int]) -> int:
        """Return how many processors there are for each process, on the host that has the fewest for each.

        Launchers may give each process processors of its own, or let all processes on a host share all of them.

        Parameters
        ----------
        usable
            How many processors this process may use.
        affinity
            The numbers of the processors on which it may run, of which a quota may allow it fewer.
        """

    @property
    def first(self) -> bool:
        """Whether this is the first process, the only one that prints, and writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return the contiguous share of ``count`` items that is this process's: sizes differ by one at most, and may be 0."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def any(self, value: bool) -> bool:
        """Return whether any process gives a true value."""
        return bool(self.gather([value]).any())

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.gather([0.0])

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Let the first process do some work, for which the others wait; return its result, which is a JSON value.

        Raises
        ------
        FflmError
            In all processes, if the work raises it.
        """
        if not self.first:
            outcome = json.loads(self.broadcast(b""))
            if "error" in outcome:
                raise FflmError(outcome["error"])
            return outcome["result"]  # type: ignore[no-any-return]
        try:
            result = work()
        except FflmError as error:
            self.broadcast(json.dumps({"error": str(error)}).encode())
            raise
        self.broadcast(json.dumps({"result": result}).encode())
        return result

    def check_same(self, contents: Sequence[Any], message: str) -> None:
        """Raise an FflmError in all processes if not all give the same contents, which are arrays or strings."""
        checksum = 0
        for content in contents:
            data = content.encode() if isinstance(content, str) else np.ascontiguousarray(content).data
            checksum = zlib.crc32(data, checksum)
        if len(np.unique(self.gather([checksum]))) > 1:
            raise FflmError(message)


class DividedRows:
    """An array of which each process has its `Communicator.share` of the rows; a `fflm.arrays.Divided`.

    Parameters
    ----------
    communicator
        The processes. All must call the same methods in the same order.
    rows
        The rows of this process.
    count
        The number of all rows.

    Attributes
    ----------
    shape, dtype
        Those of the whole array.
    """

    def __init__(self, communicator: Communicator, rows: npt.NDArray[Any], count: int) -> None:
        self._communicator, self._rows = communicator, rows
        self.shape, self.dtype = (count, *rows.shape[1:]), rows.dtype

    def crc32(self, checksum: int) -> int:
        """Return the CRC-32 of all rows, which continues a checksum: each process in turn adds its rows."""
        communicator = self._communicator
        for rank in range(communicator.size):
            own = zlib.crc32(np.ascontiguousarray(self._rows).data, checksum) if rank == communicator.rank else 0
            checksum = int(communicator.gather([own])[rank, 0])
        return checksum

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Yield all rows in all processes, a few at a time: as a sum of bits, of which all processes but one give zeros."""
        count, *shape = self.shape
        own = self._communicator.share(count)
        at_once = max(1, GATHERED // math.prod(shape))
        for low in range(0, count, at_once):
            part = np.zeros((min(at_once, count - low), *shape), self.dtype)
            start, stop = max(low, own.start), min(low + len(part), own.stop)
            if start < stop:
                part[start - low : stop - low] = self._rows[start - own.start : stop - own.start]
            self._communicator.sum_arrays([part.view(f"u{part.itemsize}")])
            yield part


class SingleProcess(Communicator):
    """A process by itself, which has nobody to communicate with."""

    rank = 0
    size = 1

    def gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return the numbers, (1, k)."""
        return np.array([values], np.float64)

    def broadcast(self, content: bytes) -> bytes:
        """Return the content."""
        return content

    def broadcast_array(self, array: npt.NDArray[Any]) -> None:
        """Leave the array unchanged."""

    def sum_arrays(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Leave the arrays unchanged."""

    def abort(self, status: int) -> None:
        """Do nothing: the process ends by itself."""

    def all_arrive(self, seconds: float) -> bool:
        """Return True."""
        return True

    def processors(self, usable: int, affinity: Collection[int]) -> int:
        """Return all that are usable."""
        return usable

    def any(self, value: bool) -> bool:
        """Return the value."""
        return value

    def barrier(self) -> None:
        """Do nothing."""

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Return the result of the work."""
        return work()

    def check_same(self, contents: Sequence[Any], message: str) -> None:
        """Do nothing."""


SINGLE_PROCESS = SingleProcess()
"""The communicator of a program that was not started by an MPI launcher."""
