"""The choice of a device, and of the precision of training."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, Self

from fflm.arguments import Device, Precision, Threads, check, checked
from fflm.backend.protocol import Backend
from fflm.errors import FflmError, SettingsError, install
from fflm.parallel.world import threads_per_process, world

_NAMES = {"tf32": "TF32", "mixed": "mixed precision"}

_REMEDY = f"run {install('cuda13')}, with cuda12 if the driver is older than 580"


def choose_device(device: str) -> Literal["cpu", "cuda"]:
    """Return the device for a name: ``cpu``, ``cuda``, or ``auto``, which is a GPU if one can be used, and else the CPU.

    The name ``cuda:1`` is that of the second GPU, which this process uses from then on.

    Raises
    ------
    FflmError
        If the name is unknown, if it is that of a GPU and none can be used, if there is no GPU with this number, or if this
        process uses another one.
    """
    check("device", Device, device)
    if device == "cpu":
        return "cpu"
    reason = why_no_gpu()
    if reason and device != "auto":
        raise FflmError(f"no GPU can be used: {reason}; without one, use the device cpu")
    if reason:
        return "cpu"
    if number := device.partition(":")[2]:
        from fflm.backend.cuda.memory import choose_gpu

        choose_gpu(int(number))
    return "cuda"


def device_backend(device: str, precision: str = "fp32", threads: int | None = None) -> Backend:
    """Return a backend for a device.

    For a GPU, every call with the same precision returns the same backend, so that its scratch memory exists only once.

    Parameters
    ----------
    device
        Name of the device, as for `choose_device`.
    precision
        ``fp32``, or on a GPU also ``tf32`` or ``mixed``.
    threads
        Number of threads on the CPU; by default one for each processor, of which connected processes have a part each. A GPU
        ignores it.

    Raises
    ------
    FflmError
        If the device cannot be used, or does not support the precision.
    """
    chosen = choose_device(device)
    check_precision(precision, chosen)
    if chosen == "cuda":
        return _cuda_backend(precision)
    from fflm.backend.cpu.backend import CpuBackend
    from fflm.backend.cpu.launching import default_threads

    return CpuBackend(threads or threads_per_process(default_threads()))


def check_precision(precision: str, device: str) -> None:
    """Raise an FflmError if the precision is unknown, or if the device (``cpu`` or ``cuda``) does not support it."""
    check("precision", Precision, precision)
    if precision != "fp32" and device != "cuda":
        raise SettingsError(f"{_NAMES[precision]} needs the device cuda: on the CPU, train in fp32")


@dataclass(frozen=True)
class Compute:
    """The device, the number of threads and the precision of training. Create it with `choose`.

    Attributes
    ----------
    threads
        Number of CPU threads of each process. The results of training depend on it, so a resumed session keeps it.
    device
        The device: ``cpu`` or ``cuda``.
    precision
        Precision of training: ``fp32``, ``tf32`` or ``mixed``.
    """

    threads: int
    device: Literal["cpu", "cuda"]
    precision: str

    @classmethod
    @checked
    def choose(cls, threads: Threads = None, device: Device = "cpu", precision: Precision = "fp32") -> Self:
        """Choose the device, and the number of threads if it is None. Of several processes, all must call this.

        Parameters
        ----------
        threads
            Number of CPU threads. By default `fflm.backend.cpu.launching.default_threads`.
        device
            Name of the device, as for `choose_device`.
        precision
            ``fp32``, or on a GPU also ``tf32`` or ``mixed``.

        Raises
        ------
        FflmError
            If a value is out of range, or the device cannot be used or does not support the precision.
        """
        from fflm.backend.cpu.launching import default_threads

        world()  # decides which processors and which GPU this process uses
        chosen = choose_device(device)
        check_precision(precision, chosen)
        return cls(threads or threads_per_process(default_threads()), chosen, precision)

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> Self:
        """Return the fields of a description, in which the files of early versions have the number of threads only."""
        return cls(about["threads"], about.get("device", "cpu"), about.get("precision", "fp32"))

    def backend(self) -> Backend:
        """Return the backend of the device, as `device_backend` does."""
        return device_backend(self.device, self.precision, self.threads)


@cache
def _cuda_backend(precision: str) -> Backend:
    """Return the only CUDA backend of this process for a precision."""
    from fflm.backend.cuda.backend import CudaBackend
    from fflm.backend.cuda.memory import gpu

    if precision != "fp32" and gpu().compute_capability < (8, 0):
        raise FflmError(f"{_NAMES[precision]} needs a GPU of compute capability 8.0 or more: train in fp32")
    return CudaBackend(precision)


def describe_device(device: str) -> str:
    """Return the name of a device (``cpu`` or ``cuda``) for reports; for a GPU with its model and compute capability."""
    if device == "cpu":
        return "cpu"
    from fflm.backend.cuda.memory import gpu

    found = gpu()
    name = found.name.decode() if isinstance(found.name, bytes) else found.name
    number = f":{found.id}" if found.id else ""
    return f"cuda{number} ({name}, compute capability {'.'.join(map(str, found.compute_capability))})"


@cache
def why_no_gpu() -> str:
    """Return the reason why no GPU can be used, with a remedy; an empty string if a GPU can be used."""
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
    """Import and return numba.cuda."""
    from numba import cuda

    return cuda
