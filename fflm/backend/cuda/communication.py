"""Communication between processes that train one model, each on a GPU of its own.

The arrays of GPUs are exchanged by NCCL, or through the memory of the hosts where NCCL is missing. Everything else is small, and
goes from host to host over the communicator of the processes. In both ways, sums are added up in the order of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from ctypes import c_float
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fflm.backend.cuda import kernels
from fflm.backend.cuda.launching import BLOCK, launch_kernel
from fflm.backend.cuda.memory import DeviceArray, use_gpu
from fflm.errors import FflmError, install
from fflm.parallel.communicator import Communicator

if TYPE_CHECKING:
    from fflm.backend.cuda.backend import CudaBackend


def connect_gpus(processes: Communicator, backend: CudaBackend) -> Communicator:
    """Return a communicator that also takes arrays of GPUs. All processes must call this.

    Raises
    ------
    FflmError
        If NCCL is installed in some processes only, or cannot connect the GPUs.
    """
    try:
        from nccl import core as nccl
    except ImportError:
        nccl = None
    processes.check_same([str(nccl is not None)], "NCCL is installed for some of the processes only: install it for all or none")
    if nccl is not None:
        return NcclCommunicator(processes, backend, nccl)
    if processes.first:
        logging.getLogger("fflm").info("the GPUs exchange gradients through main memory; NCCL is faster: %s", install("nccl13"))
    return HostCopies(processes, backend)


class HostCopies(Communicator):
    """Processes with a GPU each, which exchange the arrays of GPUs through the memory of their hosts.

    Parameters
    ----------
    processes
        The communicator of the processes.
    backend
        The backend of this process.
    """

    def __init__(self, processes: Communicator, backend: CudaBackend) -> None:
        self.rank, self.size, self.local_rank = processes.rank, processes.size, processes.local_rank
        self.processes, self.backend = processes, backend

    @property
    def messages(self) -> int:  # type: ignore[override]
        """How many collective operations there were, as `Communicator` counts them."""
        return self.processes.messages

    @property
    def bytes_sent(self) -> int:  # type: ignore[override]
        """How many bytes this process has sent, as `Communicator` counts them."""
        return self.processes.bytes_sent

    def gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return the numbers (k,) of all processes, (n, k)."""
        return self.processes.gather(values)

    def broadcast(self, content: bytes) -> bytes:
        """Return the content that the first process has given."""
        return self.processes.broadcast(content)

    def broadcast_array(self, array: npt.NDArray[Any]) -> None:
        """Overwrite an array of the host with that of the first process."""
        self.processes.broadcast_array(array)

    def sum_arrays(self, arrays: Sequence[Any]) -> None:
        """Replace arrays, all of the host or all of the GPU, by their sums."""
        if not any(isinstance(array, DeviceArray) for array in arrays):
            self.processes.sum_arrays(arrays)
        else:
            self._sum_on_device(arrays)

    def _sum_on_device(self, arrays: Sequence[DeviceArray]) -> None:
        """Replace arrays of the GPU by their sums."""
        received = [self.backend.download(array) for array in arrays]
        self.processes.sum_arrays(received)
        for array, total in zip(arrays, received, strict=True):
            self.backend.copy(self.backend.upload(total).reshape(len(total), -1), array.reshape(len(total), -1))

    def check_same(self, contents: Sequence[Any], message: str) -> None:
        """Raise an FflmError in all processes if not all give the same contents: arrays of the host or the GPU, or strings."""
        download = self.backend.download
        self.processes.check_same([download(each) if isinstance(each, DeviceArray) else each for each in contents], message)

    def abort(self, status: int) -> None:
        """End all processes at once."""
        self.processes.abort(status)

    def all_arrive(self, seconds: float) -> bool:
        """Wait until all processes are here, at most for a time; return whether they are."""
        return self.processes.all_arrive(seconds)

    def processors(self, usable: int, affinity: Collection[int]) -> int:
        """Return how many processors there are for each process."""
        return self.processes.processors(usable, affinity)


class NcclCommunicator(HostCopies):
    """Processes with a GPU each, which exchange the arrays of GPUs by NCCL (https://docs.nvidia.com/deeplearning/nccl).

    An all-reduce of NCCL adds numbers in an order that depends on the topology of the GPUs. Therefore each process adds up a part
    of the numbers in the order of ranks, as `fflm.parallel.mpi.MpiCommunicator` does, and NCCL only sends and receives. The
    traffic of both ways is the same.

    Parameters
    ----------
    processes, backend
        As for `HostCopies`.
    nccl
        The module ``nccl.core`` of nccl4py.

    Raises
    ------
    FflmError
        If NCCL cannot connect the GPUs, for example because two processes use the same one.
    """

    def __init__(self, processes: Communicator, backend: CudaBackend, nccl: Any) -> None:
        super().__init__(processes, backend)
        self._nccl = nccl
        own = nccl.get_unique_id().as_bytes if self.first else b""
        identifier = nccl.UniqueId.from_bytes(processes.broadcast(bytes(own)))
        try:
            self._gpus = nccl.Communicator.init(self.size, self.rank, identifier)
        except Exception as error:  # nccl4py has classes of its own for errors of the library
            reason = " ".join(str(error).split())
            raise FflmError(f"NCCL cannot connect the GPUs ({reason}): start one process for each GPU of a host") from error

    def _sum_on_device(self, arrays: Sequence[DeviceArray]) -> None:
        """Replace arrays of the GPU by their sums: exchange the parts of all arrays, add up one's own, and exchange the sums."""
        flat = [array.reshape(-1) for array in arrays if array.size]
        own = [self._part(array, self.rank) for array in flat]
        received = [self.backend.empty((self.size, part.size), part.dtype) for part in own]
        with self._nccl.group():
            for array, parts in zip(flat, received, strict=True):
                for rank in range(self.size):  # also to itself, so that all parts are in the order of ranks
                    self._exchange(self._part(array, rank), parts[rank : rank + 1].reshape(-1), rank)
        for total, parts in zip(own, received, strict=True):
            if total.size:
                launch_kernel(kernels.add_parts, (-(-total.size // BLOCK),), (parts, c_float(0), total))
        with self._nccl.group():
            for array, total in zip(flat, own, strict=True):
                for rank in range(self.size):
                    if rank != self.rank:
                        self._exchange(total, self._part(array, rank), rank)

    def _part(self, array: DeviceArray, rank: int) -> DeviceArray:
        """Return the part of a flat array that a process adds up."""
        return array[rank * array.size // self.size : (rank + 1) * array.size // self.size]

    def _exchange(self, sent: DeviceArray, received: DeviceArray, rank: int) -> None:
        """Send an array to a process, and receive one from it, in the stream of all work."""
        stream = use_gpu()
        if sent.size:
            self._gpus.send(sent, rank, stream=stream)
        if received.size:
            self._gpus.recv(received, rank, stream=stream)
