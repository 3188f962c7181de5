"""numba-cuda and the CUDA backend on the fake driver of `libcuda.py`.

``python tests/support/fake_cuda.py PROGRAM.py ARGUMENTS`` runs a program on it.
"""

import functools
import runpy
import secrets
import sys
from pathlib import Path
from typing import Any

from fflm.backend.cuda import memory as cuda_memory  # first, because this package adapts NumPy to numba.cuda

# isort: split

from cuda.core import ObjectCode
from libcuda import FakeDriver, load_driver
from numba.cuda import cudaimpl
from numba.cuda.codegen import CUDACodeLibrary
from numba.cuda.cudadrv.driver import driver

from fflm.backend.cuda.memory import Memory, Pool, size_class, use_gpu
from fflm.backend.devices import why_no_gpu

NAME = "Fake GPU"


class TrackedPool(Pool):
    """The pool of memory of the CUDA backend, which tells the driver the exact size of each array."""

    def take(self, size: int) -> Memory:
        """Return memory for an array."""
        memory, gpu = super().take(size), load_driver()
        stream = use_gpu()  # not while the driver's lock is held, because it takes a lock of its own
        address = memory.address
        with gpu.lock:
            gpu.enqueue(lambda: gpu.memory.lend(address, size, size_class(size)), stream)
        return memory


def without_linking(library: CUDACodeLibrary, cc: Any = None) -> ObjectCode:
    """Return the PTX of a kernel as its module; this replaces the linking of its machine code, which takes seconds."""
    return ObjectCode.from_ptx(library.get_asm_str().encode())


@functools.cache
def install_fake_driver() -> FakeDriver:
    """Let numba.cuda use the fake driver; return it.

    Tests that do not ask for it find no GPU.
    """
    gpu = load_driver()
    why_no_gpu()
    gpu.present = True
    driver.__init__()  # it has found no GPU before
    assert driver.get_device().name == NAME, "a real driver was loaded before the fake one"
    cuda_memory.POOL, CUDACodeLibrary.get_cubin = TrackedPool(), without_linking
    # Each process numbers shared arrays from 1, and kernels that several processes compiled and cached are linked in one test.
    cudaimpl._unique_smem_id = secrets.randbits(48)
    return gpu


if __name__ == "__main__":
    sys.modules["fake_cuda"] = sys.modules[__name__]  # which other modules import by this name
    install_fake_driver()
    why_no_gpu.cache_clear()
    sys.argv, sys.path[0] = sys.argv[1:], str(Path(sys.argv[1]).parent)
    sys.path.append(str(Path(__file__).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
