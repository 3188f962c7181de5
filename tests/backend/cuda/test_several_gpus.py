"""Several processes that train on GPUs, which are fake here. The kernels were compiled by the tests in the files before."""

import mpi_checks
import pytest
from processes import mpiexec, needs_mpi

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")
pytestmark = needs_mpi


def test_training_on_several_gpus_equals_training_on_one(tmp_path):
    """Copies through the hosts and the calls of NCCL have the same result; NCCL itself has not run."""
    result = mpiexec(3, mpi_checks.__file__, "gpus", folder=tmp_path)
    assert result.returncode == 0, result.stderr
