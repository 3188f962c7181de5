"""The device of the numerical tests, from ``pytest --device``: ``cpu``; ``ptx``, the fake CUDA driver; ``cuda``, a real GPU.

With ``--precision mixed``, ``ptx`` and ``cuda`` train in mixed precision.
"""

from collections.abc import Callable
from importlib.util import find_spec
from shutil import which
from typing import Any

import numpy as np
import pytest
from ptx_memory import unwritten

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.cpu.kernels import TILE
from fflm.backend.protocol import Backend
from fflm.network.parameters import Parameters

device = "cpu"
"""The value of the option ``--device``."""

mixed = False
"""Whether the option ``--precision`` is ``mixed``."""


def backend_under_test() -> Backend:
    """Return the backend of the device; its operations take NumPy arrays on every device."""
    return CpuBackend() if device == "cpu" else NumpyBackend(gpu_backend("mixed" if mixed else "fp32"))


def precision() -> np.dtype:
    """Return the dtype of the highest precision of the device."""
    return np.dtype(np.float64 if device == "cpu" else np.float32)


def tile() -> int:
    """Return the number of words in a tile of the output layer."""
    if device == "cpu":
        return TILE
    from fflm.backend.cuda.products import COLUMNS

    return COLUMNS


def fake_driver() -> Any:
    """Let numba.cuda use the fake CUDA driver; return it. If there is no C compiler to build it, skip the test or module."""
    if not which("cc"):
        pytest.skip("the fake CUDA driver needs a C compiler, cc", allow_module_level=True)
    from fake_cuda import install_fake_driver

    return install_fake_driver()


def gpu_backend(precision: str = "fp32", **options: Any) -> Backend:
    """Return the backend of the real GPU with ``--device cuda``, otherwise of the fake CUDA driver, with options."""
    from fflm.backend.devices import why_no_gpu

    if device != "cuda" and find_spec("numba_cuda"):
        fake_driver()
    elif reason := why_no_gpu():
        pytest.exit(reason, 1)
    from fflm.backend.cuda.backend import CudaBackend

    return CudaBackend(precision, **options)


class NumpyBackend:
    """A backend of a GPU whose operations take NumPy arrays, which are copied to the GPU and, if they change, back."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name, self.softmax_bytes = backend.name, backend.softmax_bytes

    @property
    def full_precision(self) -> "NumpyBackend":
        """The full-precision backend, which takes NumPy arrays, too."""
        return NumpyBackend(self.backend.full_precision)

    def connect(self, processes: Any) -> Any:
        """Return the communicator, which takes NumPy arrays."""
        return processes

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an uninitialized array."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = unwritten(array.nbytes)
        return array

    def upload(self, array: Any) -> np.ndarray:
        """Return a copy."""
        return np.array(array, order="C")

    def download(self, array: np.ndarray) -> np.ndarray:
        """Return a copy."""
        return array.copy()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self.backend, name)

        def on_numpy(*arguments: Any, **named: Any) -> Any:
            sent: dict[Any, tuple[np.ndarray, np.ndarray, Any]] = {}  # an array that is passed twice is one array on the GPU, too

            def send(argument: Any) -> Any:
                if isinstance(argument, np.ndarray):
                    key = argument.ctypes.data, argument.shape, argument.dtype
                    if key not in sent:
                        before = np.array(argument, order="C")
                        sent[key] = argument, before, self.backend.upload(before)
                    return sent[key][2]
                arrays = isinstance(argument, tuple) and all(isinstance(each, np.ndarray) for each in argument)
                return [send(each) for each in argument] if arrays or isinstance(argument, list | Parameters) else argument

            result = operation(*map(send, arguments), **{key: send(argument) for key, argument in named.items()})
            for argument, before, there in sent.values():
                after = self.backend.download(there)
                if not np.array_equal(after.view(np.uint8), before.view(np.uint8)):
                    argument[...] = after
            return result

        return on_numpy


def compiled(kernel: Any, types: tuple[Any, ...]) -> str:
    """Compile a kernel for arguments of these types, also on a machine without a GPU; return the PTX."""
    from types import SimpleNamespace

    from numba import cuda
    from numba.cuda import dispatcher

    found, capability = dispatcher.get_current_device, (9, 0)
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)  # for device functions
    try:
        ptx: str = cuda.compile(kernel.py_func, types, cc=capability, device=False, abi="numba", output="ptx")[0]
        return ptx
    finally:
        dispatcher.get_current_device = found
