"""Training steps as CUDA graphs: what a step launches is recorded once, and then launched as a whole.

The host needs longer to launch the kernels of a small step one by one than the GPU needs to run them. A graph repeats the same
launches with the same arguments. Therefore the inputs of a step are at fixed places, and so is all memory that the step uses;
numbers that change from step to step are among the inputs. Source: the CUDA driver API, sections "Stream Management" and "Graph
Management". No graph has run on a GPU yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError, binding, driver

from fflm.backend.common import halves
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
        return cls(words[:2], words[2:].reinterpreted(np.float32))


def packed(numbers: StepNumbers) -> npt.NDArray[np.uint32]:
    """Return the numbers of a step as an array (6,) uint32: those of `PlacedNumbers` one after another."""
    reals = np.array([numbers.rate, 1 - numbers.shrink, *numbers.corrections], np.float32)
    return np.concatenate([halves(numbers.step), reals.view(np.uint32)])


class _Step:
    """A step for arguments of certain shapes: the memory of its arguments, and the graph once it is recorded."""

    def __init__(self, arrays: list[DeviceArray], arguments: list[Any]) -> None:
        self.arrays, self.arguments = arrays, arguments
        self.rehearsed = False
        self.graph: Any = None

    def __del__(self) -> None:
        if self.graph is not None:
            with contextlib.suppress(CudaAPIError):  # the driver may be shut down already, or this process may be a forked one
                driver.cuGraphExecDestroy(self.graph)


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
        self._backend, self._reserve = backend, Reserve()
        self._buffers: dict[Hashable, Any] = {}
        self._steps: dict[Hashable, _Step] = {}

    def __del__(self) -> None:
        self._steps.clear()
        self._buffers.clear()
        memory.POOL.take_over(self._reserve)

    def __call__(self, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step, as `protocol.Recording` says.

        Raises
        ------
        CudaAPIError
            If the driver refuses to record the step.
        RuntimeError
            If the step sends arrays to the GPU when it is recorded.
        """
        arrays = [packed(each) if isinstance(each, StepNumbers) else np.ascontiguousarray(each) for each in arguments]
        key = tuple((array.shape, array.dtype) for array in arrays)
        found = self._steps.get(key)
        if found is None:
            there = [self._backend.empty(array.shape, array.dtype) for array in arrays]
            numbers = (isinstance(each, StepNumbers) for each in arguments)
            found = _Step(there, [PlacedNumbers.of(each) if is_ else each for each, is_ in zip(there, numbers, strict=True)])
            self._steps[key] = found
        for array, copied in zip(arrays, found.arrays, strict=True):
            self._backend.send(array, copied)
        if found.graph is None and not found.rehearsed:
            self._rehearse(found, step)
            return
        if found.graph is None:
            found.graph = self._capture(found, step)
        driver.cuGraphLaunch(found.graph, use_gpu())

    def _rehearse(self, found: _Step, step: Callable[..., None]) -> None:
        """Do a step without a graph, and note whether all memory for it is there."""
        taken = self._reserve.taken
        with self._backend.own_memory(self._reserve, self._buffers):
            step(*found.arguments)
        found.rehearsed = self._reserve.taken == taken
        if self._reserve.lost:  # memory that graphs use is not theirs any more
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
                        step(*found.arguments)
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
