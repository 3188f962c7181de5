"""Communication over MPI, with mpi4py. Importing this module initializes MPI."""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from fflm.parallel.communicator import Communicator

CHUNK = 2**20
"""Numbers of arrays that are summed at a time. This bounds the memory for communication, and fits into caches."""

SPIN_SECONDS = 0.005
"""Time for which a waiting process asks again and again whether others have arrived, before it sleeps in between."""

LONGEST_SLEEP = 0.01
"""Longest time in seconds for which a waiting process sleeps."""


class MpiCommunicator(Communicator):
    """The processes of an MPI communicator.

    Parameters
    ----------
    comm
        The communicator. It is duplicated, so that messages of other libraries cannot be taken for those of fflm.
    """

    def __init__(self, comm: MPI.Intracomm = MPI.COMM_WORLD) -> None:
        self._comm = comm.Dup()
        self._ending = comm.Dup()  # for `all_arrive`, which comes when operations on the other one may be unfinished
        self.rank, self.size = self._comm.rank, self._comm.size
        host = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = host.rank
        host.Free()
        self._buffers: dict[np.dtype[Any], npt.NDArray[Any]] = {}  # (2, chunk), what is sent and what is received

    def gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return the numbers (k,) of all processes, (n, k), by one allgather."""
        own = np.array(values, np.float64)
        result = np.empty((self.size, len(own)))
        self._count(own.nbytes * (self.size - 1))
        _wait(self._comm.Iallgather(own, result))
        return result

    def broadcast(self, content: bytes) -> bytes:
        """Return the content that the first process has given, after one broadcast of its length and one of the content."""
        length = np.array(len(content), np.int64)
        _wait(self._comm.Ibcast(length))
        data = np.frombuffer(content, np.uint8).copy() if self.first else np.empty(int(length), np.uint8)
        _wait(self._comm.Ibcast(data))
        self._count((length.nbytes + data.nbytes) * (self.size - 1) if self.first else 0)
        return data.tobytes()

    def broadcast_array(self, array: npt.NDArray[Any]) -> None:
        """Overwrite an array with that of the first process, a chunk at a time."""
        flat = array.reshape(-1)
        for low in range(0, flat.size, CHUNK):
            self._comm.Bcast(flat[low : low + CHUNK])
        self._count(array.nbytes * (self.size - 1) if self.first else 0)

    def sum_arrays(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Replace arrays by their sums, each added up in the order of ranks.

        Each process adds up a part of the numbers, of which all others send it theirs (alltoall), and sends the sums to all
        others (allgather). So a process sends and receives 2 (n - 1) / n times the size of the arrays, whatever n is, and as each
        number is added up by one process only, all processes have the same sums.
        """
        for pieces in _chunks([array.reshape(-1) for array in arrays]):
            self._sum_chunk(pieces)

    def _sum_chunk(self, pieces: list[npt.NDArray[Any]]) -> None:
        """Sum flat arrays, which have at most `CHUNK` numbers together."""
        dtype, size = pieces[0].dtype, sum(piece.size for piece in pieces)
        if dtype not in self._buffers:
            self._buffers[dtype] = np.empty((2, CHUNK + self.size), dtype)
        flat, received = self._buffers[dtype][:, :size], self._buffers[dtype][1]
        flat = np.concatenate(pieces, out=flat[0])
        borders = np.arange(self.size + 1) * size // self.size
        counts, total = np.diff(borders), flat[borders[self.rank] : borders[self.rank + 1]]
        parts = received[: total.size * self.size].reshape(self.size, total.size)
        every = [flat, (counts, borders[:-1])]
        self._comm.Alltoallv(every, [parts, ([total.size] * self.size, np.arange(self.size) * total.size)])
        total[...] = parts[0]
        for part in parts[1:]:
            total += part
        self._comm.Allgatherv(MPI.IN_PLACE, every)
        self._count(flat.nbytes - total.nbytes + total.nbytes * (self.size - 1), messages=2)
        for piece in pieces:
            piece[...], flat = flat[: piece.size], flat[piece.size :]

    def abort(self, status: int) -> None:
        """End all processes at once."""
        self._comm.Abort(status)

    def all_arrive(self, seconds: float) -> bool:
        """Wait until all processes are here, at most for a time; return whether they are."""
        return _wait(self._ending.Ibarrier(), seconds)

    def processors(self, usable: int, affinity: Collection[int]) -> int:
        """Return how many processors there are for each process, on the host that has the fewest for each."""
        host = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        together = len(set().union(*host.allgather(set(affinity))))
        shared = usable * together // len(affinity) // host.size
        host.Free()
        return int(self.gather([max(1, min(usable, shared))]).min())

    def _count(self, sent: int, messages: int = 1) -> None:
        self.messages += messages
        self.bytes_sent += sent


def _wait(request: MPI.Request, seconds: float = math.inf) -> bool:
    """Wait for an operation, at most for a time; return whether it is complete.

    MPI's own waiting would take all the time of a processor, and Python would handle no signals meanwhile.
    """
    started, pause = time.monotonic(), LONGEST_SLEEP / 100
    while not request.Test():
        waited = time.monotonic() - started
        if waited > seconds:
            return False
        if waited > SPIN_SECONDS:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_SLEEP)
    return True


def _chunks(arrays: Sequence[npt.NDArray[Any]]) -> Iterator[list[npt.NDArray[Any]]]:
    """Cut flat arrays into lists of consecutive pieces, each list with `CHUNK` numbers, except for the last one."""
    pieces: list[npt.NDArray[Any]] = []
    room = CHUNK
    for array in arrays:
        while array.size:
            piece, array = array[:room], array[room:]
            pieces.append(piece)
            room -= piece.size
            if not room:
                yield pieces
                pieces, room = [], CHUNK
    if pieces:
        yield pieces
