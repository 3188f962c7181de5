"""Training steps as CUDA graphs: what a step launches is recorded once, and then launched as a whole.

The host needs longer to launch the kernels of a small step one by one than the GPU needs to run them. A graph repeats the same
launches with the same arguments. Therefore the inputs of a step are at fixed places, and so is all memory that the step uses;
numbers that change from step to step are among the inputs. Source: the CUDA driver API, sections "Stream Management" and "Graph
Management". No graph has run on a GPU yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError, binding, driver

from fflm.backend.common import low_and_high
from fflm.backend.cuda import memory
from fflm.backend.cuda.memory import DeviceArray, Reserve, use_gpu, work_in
from fflm.backend.protocol import StepNumbers

if TYPE_CHECKING:
    from fflm.backend.cuda.backend import CudaBackend


class PlacedNumbers(NamedTuple):
    """The `StepNumbers` of a training step in the memory of a GPU.

    Attributes
    ----------
    step
        The low and the high half of the number of the step, (2,) uint32.
    reals
        The learning rate, 1 - shrink, and Adam's corrections, (4,) float32.
    """

    step: DeviceArray
    reals: DeviceArray

    @classmethod
    def of(cls, words: DeviceArray) -> PlacedNumbers:
        """Return the numbers that are packed in words (6,) uint32."""
        return cls(words[:2], words.part(8, (4,), np.float32))


def packed(numbers: StepNumbers) -> npt.NDArray[np.uint32]:
    """Return the numbers of a step as an array (6,) uint32: those of `PlacedNumbers` one after another."""
    reals = np.array([numbers.rate, 1 - numbers.shrink, *numbers.corrections], np.float32)
    return np.concatenate([low_and_high(numbers.step), reals.view(np.uint32)])


PLACE = 16
"""The arguments of a step begin at multiples of so many bytes, because kernels read four numbers at a time."""


class _Step:
    """A step for arguments of certain shapes: the memory of its arguments, and the graph once it is recorded.

    The arguments are packed one after another, so that they are sent in one copy.

    Parameters
    ----------
    backend
        The backend.
    arguments
        NumPy arrays and `StepNumbers` of the shapes, by their names.
    """

    def __init__(self, backend: CudaBackend, arguments: Mapping[str, Any]) -> None:
        arrays = {name: _as_array(each) for name, each in arguments.items()}
        ends = np.cumsum([-(-array.nbytes // PLACE) * PLACE for array in arrays.values()])
        self._packed = np.zeros(ends[-1], np.uint8)
        self._sent = backend.empty(self._packed.shape, np.uint8)
        self.places: dict[str, npt.NDArray[Any]] = {}
        self.arguments: dict[str, Any] = {}
        for (name, array), end in zip(arrays.items(), ends.tolist(), strict=True):
            begin = end - -(-array.nbytes // PLACE) * PLACE
            self.places[name] = self._packed[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
            there = self._sent.part(begin, array.shape, array.dtype)
            self.arguments[name] = PlacedNumbers.of(there) if isinstance(arguments[name], StepNumbers) else there
        self.rehearsed = False
        self.graph: Any = None

    def send(self, backend: CudaBackend, arguments: Mapping[str, Any]) -> None:
        """Copy arguments of these shapes to the GPU."""
        for name, each in arguments.items():
            self.places[name][...] = _as_array(each)
        backend.send(self._packed, self._sent)

    def __del__(self) -> None:
        if self.graph is not None:
            with contextlib.suppress(CudaAPIError):  # the driver may be shut down already, or this process may be a forked one
                driver.cuGraphExecDestroy(self.graph)


def _as_array(argument: Any) -> npt.NDArray[Any]:
    """Return an argument of a step as a NumPy array."""
    return packed(argument) if isinstance(argument, StepNumbers) else argument


class GraphRecording:
    """A `protocol.Recording` of a GPU: the steps become graphs, one for arguments of each combination of shapes.

    A step is first done without a graph, until it needs no new memory: kernels are compiled and loaded then, and all memory is
    there, because a capture allows neither. The next one is captured. All graphs use the same memory, which no other work uses.

    Parameters
    ----------
    backend
        The backend whose operations the steps call. It must not keep this object.
    """

    def __init__(self, backend: CudaBackend) -> None:
        self._backend, self._pool, self._reserve = backend, memory.POOL, Reserve()
        self._buffers: dict[Hashable, Any] = {}
        self._steps: dict[Hashable, _Step] = {}

    def __del__(self) -> None:
        self._steps.clear()
        self._buffers.clear()
        self._pool.take_over(self._reserve)

    def __call__(self, step: Callable[..., None], **arguments: Any) -> None:
        """Do a step, as `protocol.Recording` says.

        Raises
        ------
        CudaAPIError
            If the driver refuses to record the step.
        RuntimeError
            If the step sends arrays to the GPU when it is recorded.
        """
        key = tuple((name, getattr(each, "shape", None), getattr(each, "dtype", None)) for name, each in arguments.items())
        found = self._steps.get(key)
        if found is None:
            found = self._steps[key] = _Step(self._backend, arguments)
        found.send(self._backend, arguments)
        if found.graph is None and not found.rehearsed:
            self._rehearse(found, step)
            return
        if found.graph is None:
            found.graph = self._capture(found, step)
        driver.cuGraphLaunch(found.graph, use_gpu())

    def _rehearse(self, found: _Step, step: Callable[..., None]) -> None:
        """Do a step without a graph, and note whether all memory for it is there."""
        taken, buffers = self._reserve.taken, dict(self._buffers)
        with self._backend.own_memory(self._reserve, self._buffers):
            step(**found.arguments)
        found.rehearsed = self._reserve.taken == taken
        replaced = any(self._buffers.get(name) is not buffer for name, buffer in buffers.items())
        if replaced or self._reserve.lost:  # memory that graphs use, with the content of buffers, is not theirs any more
            self._reserve.lost = False
            self._steps.clear()

    def _capture(self, found: _Step, step: Callable[..., None]) -> Any:
        """Return the graph of a step, which is not run."""
        stream = int(driver.cuStreamCreate(binding.CUstream_flags.CU_STREAM_NON_BLOCKING.value))
        graph = None
        try:
            with cuda.defer_cleanup():  # numba.cuda must not free memory meanwhile
                driver.cuStreamBeginCapture(stream, binding.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
                try:
                    with work_in(stream), self._backend.own_memory(self._reserve, self._buffers):
                        step(**found.arguments)
                except BaseException:
                    with contextlib.suppress(CudaAPIError):  # the capture is invalid
                        graph = driver.cuStreamEndCapture(stream)
                    raise
                graph = driver.cuStreamEndCapture(stream)
            return driver.cuGraphInstantiate(graph, 0)
        finally:
            if graph is not None:
                driver.cuGraphDestroy(graph)
            driver.cuStreamDestroy(stream)
