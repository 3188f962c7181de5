"""Several processes that train on GPUs, which are fake here."""

import mpi_checks
from processes import mpiexec, needs_mpi

pytestmark = needs_mpi


def test_training_on_several_gpus_equals_training_on_one(tmp_path):
    """Copies through the hosts and the calls of NCCL have the same result; NCCL itself has not run."""
    result = mpiexec(2, mpi_checks.__file__, "gpus", folder=tmp_path)
    assert result.returncode == 0, result.stderr
