"""The processes with which this program was started, and how they end."""

import os
import sys
from collections.abc import Collection, MutableMapping
from functools import cache
from types import TracebackType

from fflm.errors import FflmError, install
from fflm.parallel.communicator import SINGLE_PROCESS, Communicator, SingleProcess
from fflm.parallel.launch import launched_as
from fflm.processors import usable_processors

_separated: list[Communicator] = []
"""What `world` returns after `separate`."""

ENDING_SECONDS = 5.0
"""How long a process with an error waits for the others to end with an error, too, before it ends them."""


@cache
def world() -> Communicator:
    """Return the communicator of all processes with which this program was started.

    The first call creates it. From then on, an exception that is not handled in one of several processes ends all of them,
    because the others would wait for it.

    Raises
    ------
    FflmError
        If there are several processes, but mpi4py is missing, or uses another MPI than the launcher.
    """
    _, size = launched_as()
    if size == 1:
        return SINGLE_PROCESS
    if _separated:
        return _separated[0]
    try:
        from fflm.parallel.mpi import MpiCommunicator
    except (ImportError, RuntimeError) as error:  # mpi4py raises a RuntimeError if it finds no MPI library
        remedy = f"run {install('mpi')}, or start one process"
        raise FflmError(f"{size} processes were started, but mpi4py cannot be used ({error}): {remedy}") from error
    communicator = MpiCommunicator()
    if communicator.size != size:
        remedy = "use the launcher of the MPI that mpi4py uses, or install mpi4py for the MPI of this launcher"
        raise FflmError(f"{size} processes were started, but MPI connects {communicator.size} of them: {remedy}")
    _processors(communicator)
    _choose_gpu(communicator.local_rank)
    sys.excepthook = _end_after_exception
    return communicator


class _Separated(SingleProcess):
    """A process that works by itself, and still shares its host, and its end after an error, with others: ``together``."""

    def __init__(self, together: Communicator) -> None:
        self.together = together

    def processors(self, usable: int, affinity: Collection[int]) -> int:
        """Return the process's part of the processors."""
        return _processors(self.together)


def separate() -> Communicator:
    """Let each process go on as a program by itself: from now on, `world` is a single process. All processes must call this.

    Returns
    -------
    Communicator
        That of all processes.
    """
    together = world()
    if together.size > 1:
        _separated.append(_Separated(together))
        world.cache_clear()
    return together


def _choose_gpu(local_rank: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let CUDA see only one GPU, that of this process, unless the launcher has given each process one: by the local rank.

    CUDA reads the variable when it is first used, and then the GPU has the number 0 in all threads.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        environment["CUDA_VISIBLE_DEVICES"] = str(local_rank)
    elif len(devices := visible.split(",")) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[local_rank : local_rank + 1])


@cache
def _processors(communicator: Communicator) -> int:
    """Return how many processors there are for each process, on the host that has the fewest for each."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return communicator.processors(usable_processors(), affinity)


def threads_per_process(most: int) -> int:
    """Return how many threads a process should use: ``most``, or its part of the host's processors if it shares the host.

    A process shares the host with those to which `world` has connected it, also after `separate`.
    """
    shared = world.cache_info().currsize and world() is not SINGLE_PROCESS
    return min(most, _processors(world())) if shared else most


def end_all(status: int, message: str) -> None:
    """End this process and all others with an error, unless all have one and end by themselves, as if it is wrong usage.

    Parameters
    ----------
    status
        The exit status.
    message
        What happened in this process. The first process has printed its own message.
    """
    if not world.cache_info().currsize:  # this process has no connection to others
        return
    communicator = _together()
    if communicator.all_arrive(ENDING_SECONDS):
        return
    if message and not communicator.first:
        print(f"error: process {communicator.rank} of {communicator.size}: {message}", file=sys.__stderr__, flush=True)
    communicator.abort(status)


def _together() -> Communicator:
    """Return the communicator of all processes, also after `separate`."""
    communicator = world()
    return communicator.together if isinstance(communicator, _Separated) else communicator


def _end_after_exception(type_: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print an exception that nobody has handled, and end all processes."""
    sys.stderr = sys.__stderr__  # commands replace it in all processes but the first one
    sys.__excepthook__(type_, error, traceback)
    _together().abort(1)
