"""How a program finds out that a launcher has started it in several processes.

Launchers describe themselves in environment variables: ``PMI_*`` are those of MPICH and Intel MPI, ``OMPI_*`` those of Open MPI,
and ``SLURM_*`` those of ``srun``. This module imports nothing that takes long, as commands import it.
"""

import os
from collections.abc import Mapping

from fflm.errors import FflmError

VARIABLES = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
"""Names of the variables that have the rank of the process and the number of processes, for each launcher."""


def launched_as(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the rank of this process and the number of processes, as the launcher says; (0, 1) without a launcher."""
    for rank, size in VARIABLES:
        if environment.get(rank, "").isdecimal() and environment.get(size, "").isdecimal():
            return int(environment[rank]), int(environment[size])
    return 0, 1


def refuse_several_processes(what: str) -> None:
    """Raise an FflmError if this program was started in several processes; ``what`` is the subject of the message."""
    _, size = launched_as()
    if size > 1:
        raise FflmError(f"{what} uses one process, but {size} were started: start it without mpiexec or srun")
