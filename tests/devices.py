"""The devices that numerical tests run on, by ``pytest --device``: ``cpu``; ``ptx``, the CUDA kernels without a GPU; ``cuda``.

With ``--precision mixed`` the last two train in mixed precision.
"""

from typing import Any

import numpy as np
import pytest
from numba import typeof

from fflm.backend import cpu
from fflm.backend.cpu import CpuBackend
from fflm.backend.protocol import Backend

device = "cpu"
"""What `--device` says."""

mixed = False
"""Whether `--precision` says so."""


def backend_under_test() -> Backend:
    """Return the backend, whose operations take NumPy arrays on every device."""
    return CpuBackend() if device == "cpu" else {"ptx": ptx_backend, "cuda": _cuda_backend}[device](mixed)


def precision() -> np.dtype:
    """Return the type of the device's most precise numbers."""
    return np.dtype(np.float64 if device == "cpu" else np.float32)


def tile() -> int:
    """Return how many words of the output layer are computed together."""
    if device == "cpu":
        return cpu.TILE
    from fflm.backend.cuda_kernels import COLUMNS

    return COLUMNS


def ptx_backend(mixed: bool = False) -> Backend:
    from fflm.backend.devices import why_no_gpu

    if "missing" in (reason := why_no_gpu()):
        pytest.exit(reason, 1)
    from ptx import Ptx

    from fflm.backend.cuda import BLOCK, CudaBackend

    modules: dict[Any, Ptx] = {}

    class PtxBackend(CudaBackend):
        """The CUDA backend on NumPy arrays: its kernels are compiled, and what they became is executed."""

        def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
            array = np.empty(shape, dtype)
            array.reshape(-1).view(np.uint8)[:] = 0xFF  # NaN, also where two halves are an integer
            return array

        def upload(self, array: Any) -> Any:
            return np.array(array, order="C")

        def download(self, array: Any) -> Any:
            return array.copy()

        def _run(self, kernel: Any, blocks: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            types = tuple(map(typeof, arguments))
            if (kernel, types) not in modules:
                modules[kernel, types] = Ptx(compiled(kernel, types))
            modules[kernel, types].launch(blocks, BLOCK, list(arguments))

    return PtxBackend(mixed)


def _cuda_backend(mixed: bool) -> Backend:
    from numba import config

    from fflm.backend.cuda import CudaBackend
    from fflm.backend.devices import why_no_gpu

    why_no_gpu()  # sets the memory manager

    config.CUDA_WARN_ON_IMPLICIT_COPY = 0  # which is meant here

    class NumpyBackend(CudaBackend):
        """The CUDA backend on NumPy arrays, which numba.cuda copies to the GPU and back at each launch."""

        def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
            return np.empty(shape, dtype)

        def upload(self, array: Any) -> Any:
            return np.ascontiguousarray(array)

        def download(self, array: Any) -> Any:
            return array

        def copy(self, values: Any, copied: Any) -> None:
            copied[...] = values  # slices of NumPy arrays cannot be sent as they lie

    return NumpyBackend(mixed)


def compiled(kernel: Any, types: tuple[Any, ...], capability: tuple[int, int] = (9, 0), output: str = "ptx") -> Any:
    """Return what a kernel becomes for arguments of these types, on a machine that need not have a GPU."""
    from types import SimpleNamespace

    from numba import cuda
    from numba.cuda import dispatcher

    found = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)  # of device functions in the kernel
    try:
        bounds = kernel.targetoptions.get("launch_bounds")
        return cuda.compile(kernel.py_func, types, cc=capability, device=False, abi="numba", output=output, launch_bounds=bounds)[
            0
        ]
    finally:
        dispatcher.get_current_device = found
