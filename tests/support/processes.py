"""Several processes that train together: as threads of this process, or started by `mpiexec`."""

import os
import subprocess
import sys
import sysconfig
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fflm.parallel.communicator import Communicator

MPIEXEC = Path(sysconfig.get_path("scripts")) / "mpiexec"

needs_mpi = pytest.mark.skipif(find_spec("mpi4py") is None or not MPIEXEC.exists(), reason="needs the extra mpi")


class ThreadCommunicator(Communicator):
    """A process of a group, of which each is a thread."""

    def __init__(self, rank, size, given, barrier):
        self.rank, self.size = rank, size
        self._given, self._barrier = given, barrier

    def _exchange(self, value):
        """Return the values of all threads."""
        self._given[self.rank] = value
        self._barrier.wait(300)
        values = list(self._given)
        self._barrier.wait(300)
        return values

    def gather(self, values):
        """Return the numbers of all processes."""
        return np.array(self._exchange(list(values)), np.float64)

    def broadcast(self, content):
        """Return the content of the first process."""
        return self._exchange(content)[0]

    def broadcast_array(self, array):
        """Overwrite an array with that of the first process."""
        array[...] = self._exchange(array.copy())[0]

    def sum_arrays(self, arrays):
        """Replace arrays by their sums."""
        for array in arrays:
            total, *others = self._exchange(array.copy())
            total = total.copy()
            for other in others:
                total += other
            array[...] = total

    def abort(self, status):
        """Let all threads that wait fail."""
        self._barrier.abort()

    def all_arrive(self, seconds):
        """Return True."""
        return True

    def processors(self, usable, affinity):
        """Return the processors for each process."""
        return max(1, usable // self.size)


def in_processes(size, work):
    """Call a function with the communicator of each of several processes, which are threads; return their results."""
    given, barrier = [None] * size, threading.Barrier(size)

    def run(rank):
        try:
            return work(ThreadCommunicator(rank, size, given, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [future.exception() for future in futures if future.exception()]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def exit_status_of_fork(work):
    """Call a function in a forked process, and return the exit status; an exception is printed, and the status is 1.

    A process that `os._exit` ends in the middle of its work leaves what a killed one leaves, but it has no imports to do.
    """
    process = os.fork()
    if not process:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def mpiexec(size, *command, folder, launcher=(MPIEXEC,)):
    """Run a command in several processes, which a launcher starts; return its output and exit status."""
    environment = os.environ | {
        "NUMBA_NUM_THREADS": "1",
        # The flags of Open MPI for containers, and for more processes than processors.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return subprocess.run(
        [*launcher, "-n", str(size), sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
