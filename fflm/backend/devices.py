"""The choice of a device, and of the precision that it trains in."""

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

from fflm.arguments import Device, Precision, check
from fflm.backend.protocol import Backend
from fflm.errors import FflmError, install

_REMEDY = f"run {install('cuda13')}, with cuda12 if the driver is older than 580"


def choose_device(device: str) -> Literal["cpu", "cuda"]:
    """Return the device that a name means: ``auto`` is a GPU if one works here, else the CPU.

    Raises
    ------
    FflmError
        If there is no such device, or it is the GPU and none works.
    """
    check("device", Device, device)
    if device == "cpu":
        return "cpu"
    reason = why_no_gpu()
    if device == "cuda" and reason:
        raise FflmError(f"no GPU can be used: {reason}; without one, use the device cpu")
    return "cpu" if reason else "cuda"


def device_backend(device: str, precision: str = "fp32", threads: int | None = None) -> Backend:
    """Return a backend of a device; those of the GPU are one of each precision, so that its scratch memory is there once.

    ``threads`` is of the CPU: as `CpuBackend` takes it.

    Raises
    ------
    FflmError
        As `choose_device`, or if it has no such precision.
    """
    chosen = choose_device(device)
    check_precision(precision, chosen)
    if chosen == "cuda":
        return _cuda_backend(precision == "mixed")
    from fflm.backend.cpu.backend import CpuBackend

    return CpuBackend(threads)


def check_precision(precision: str, device: str) -> None:
    """Raise an FflmError if there is no such precision, or not on this device."""
    check("precision", Precision, precision)
    if precision == "mixed" and device != "cuda":
        raise FflmError("mixed precision needs the device cuda: on the CPU, train in fp32")


@cache
def _cuda_backend(mixed: bool) -> Backend:
    from fflm.backend.cuda.backend import CudaBackend

    if mixed and _cuda().get_current_device().compute_capability < (8, 0):
        raise FflmError("mixed precision needs a GPU of compute capability 8.0 or more: train in fp32")
    return CudaBackend(mixed)


def describe_device(device: str) -> str:
    """Return a device's name, with the GPU's model."""
    if device == "cpu":
        return "cpu"
    gpu = _cuda().get_current_device()
    name = gpu.name.decode() if isinstance(gpu.name, bytes) else gpu.name
    return f"cuda ({name}, compute capability {'.'.join(map(str, gpu.compute_capability))})"


@cache
def why_no_gpu() -> str:
    """Return why no GPU can be used, and the line that installs what is missing; nothing if one can."""
    if find_spec("numba_cuda") is None:
        return f"numba-cuda is missing: {_REMEDY}"
    if _cuda().is_available():
        return ""
    from numba.cuda.cudadrv.driver import driver

    if driver.initialization_error:
        cause = " ".join(str(driver.initialization_error).split()).partition(". ")[0].rstrip(".")
        return f"no driver of an NVIDIA GPU works ({cause}); install one from https://www.nvidia.com/drivers"
    return f"the CUDA toolkit is missing: {_REMEDY}"


@cache
def _cuda() -> Any:
    """Return numba.cuda."""
    import numpy as np

    if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5, which only our extras keep out, has dropped it
        np.row_stack = np.vstack
    from numba import cuda

    return cuda
