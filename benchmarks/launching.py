"""Claim: the host's work before the driver launches a kernel takes at most a fifth of the time of numba.cuda's own launch.

With small batches, a GPU needs less time than the host takes to launch the kernels, so this work limits the speed. The
script also measures the host's part of whole training steps of Bengio's network (dropout, AdamW, clipping), which is
everything but waiting: of steps that are launched as a graph, and of the same steps whose kernels are launched one by one.

It needs numba-cuda, but no GPU: a fake driver (`libcuda.py` in tests/support) accepts the launches and does nothing. The
time of a real driver is not included.
"""

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from ctypes import c_float, c_int32, c_uint32, memset
from typing import Any

import numpy as np
from bengio import WINDOW, bengio_network, launch_directly, random_text
from common import ROOT, in_turns, machine, parse, record
from cuda.core._kernel_arg_handler import ParamHolder
from numba import cuda
from numba.cuda import dispatcher
from numba.cuda.core.errors import NumbaPerformanceWarning
from numba.cuda.cudadrv.driver import driver

from fflm.backend.cuda import kernels as cuda_kernels
from fflm.backend.cuda import launching as cuda_launching
from fflm.backend.cuda.backend import PRODUCTS, CudaBackend
from fflm.backend.cuda.launching import launch_kernel
from fflm.backend.cuda.memory import DeviceArray
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

sys.path.insert(0, str(ROOT / "tests" / "support"))

from fake_cuda import install_fake_driver

DEMANDED = 5.0

LAUNCHES = 100
"""Launches in a turn."""

RUNS: dict[str, tuple[bool, str, dict[str, Any]]] = {
    "exact loss, float32, graph": (True, "fp32", {}),
    "exact loss, float32": (False, "fp32", {}),
    "exact loss, mixed, graph": (True, "mixed", {}),
    "exact loss, mixed": (False, "mixed", {}),
    "sampled loss, float32, graph": (True, "fp32", {"loss": "sampled", "samples": 512}),
    "sampled loss, float32": (False, "fp32", {"loss": "sampled", "samples": 512}),
}
"""The training steps: whether graphs are used, the precision, and settings."""


def idle_gpu() -> list[None]:
    """Install a fake driver that accepts launches and copies without executing them.

    Returns a list to which each launch adds an element.
    """
    gpu, launched = install_fake_driver(), []
    warnings.simplefilter("ignore", NumbaPerformanceWarning)

    def launch(stream: Any, config: Any, kernel: Any, *words: Any) -> None:
        ParamHolder(words)  # cuda.core does this, too
        launched.append(None)

    cuda_launching.launch = dispatcher.launch = launch
    gpu.enqueue = lambda action, stream=None: None
    vars(driver)["cuMemcpyDtoHAsync"] = lambda target, source, size, stream: memset(target, 0, size)
    return launched


def launches() -> dict[str, dict[str, Callable[[], Any]]]:
    """Return functions that launch a kernel with few arguments and one with many, repeatedly."""
    shapes = [(64,)] * 2, [(8, 8)] * 3 + [(8,)] + [(8, 8)] * 3
    few, many = ([DeviceArray(shape, np.float32) for shape in each] for each in shapes)
    few_theirs, many_theirs = ([cuda.device_array(shape, np.float32) for shape in each] for each in shapes)
    targets, targets_theirs = DeviceArray((8,), np.int32), cuda.device_array(8, np.int32)

    def product(arrays: list[Any], ids: Any, real: Any, signed: Any, unsigned: Any) -> tuple[Any, ...]:
        a, b, c, bias, highest, totals, factors = arrays
        sizes = unsigned(8), unsigned(8), real(0)
        return a, b, c, *sizes, bias, signed(0), real(0), highest, totals, factors, ids, real(0), real(0)

    ours = product(many, targets, c_float, c_int32, c_uint32)
    theirs = product(many_theirs, targets_theirs, np.float32, np.int32, np.uint32)

    def own(kernel: Any, arguments: tuple[Any, ...]) -> Callable[[], None]:
        return lambda: [launch_kernel(kernel, (1,), arguments) for _ in range(LAUNCHES)] and None

    def numba_cuda(kernel: Any, arguments: tuple[Any, ...]) -> Callable[[], None]:
        return lambda: [kernel[(1,), cuda_launching.BLOCK](*arguments) for _ in range(LAUNCHES)] and None

    add, layer = cuda_kernels.add, PRODUCTS["fp32"]["layer"]
    return {
        "2 arrays": {"fflm": own(add, tuple(few)), "numba.cuda": numba_cuda(add, tuple(few_theirs))},
        "8 arrays, 7 numbers": {"fflm": own(layer, ours), "numba.cuda": numba_cuda(layer, theirs)},
    }


class IdleTrainer(Trainer):
    """A trainer that ignores losses, because the fake driver computes none, and does not evaluate."""

    def _check(self, loss: float, exact: bool) -> None:
        pass

    def _evaluate(self, rate: float, stop: bool) -> Any:
        self.state.loss_sum = 0.0


def steps(launched: list[None]) -> dict[str, dict[str, float]]:
    """Time the host's part of training steps, and count the kernels that they launch without a graph."""
    trainings = {}
    for name, (graphs, precision, settings) in RUNS.items():
        config = bengio_network(10_000)
        chosen = TrainingSettings(epochs=10**6, batch_size=1024, **settings)
        backend = CudaBackend(precision) if graphs else launch_directly(CudaBackend(precision))
        network, windows = Network(config, backend), random_text(10_000, 4 * 1024 + WINDOW, seed=1)
        trainings[name] = IdleTrainer(network, Parameters.random(config, 1), windows, None, chosen).run()
    found = {}
    for name, training in trainings.items():
        for _ in range(20):  # until the graphs of all sizes of batches are recorded
            next(training)
        launched.clear()
        for _ in range(8):
            next(training)
        found[name] = {"launches": len(launched) / 8}
    times = in_turns({name: lambda t=training: next(t) for name, training in trainings.items()}, rounds=15)
    for name, each in times.items():
        found[name]["seconds"] = statistics.median(each)
    return found


def time_launches(rounds: int) -> dict[str, dict[str, float]]:
    """Return the seconds per launch with fflm and with numba.cuda, and the median of their ratios."""
    found = {}
    for name, ways in launches().items():
        times = in_turns(ways, rounds, turn_seconds=0.1)
        ratio = statistics.median(theirs / ours for ours, theirs in zip(times["fflm"], times["numba.cuda"], strict=True))
        found[name] = {**{way: statistics.median(each) / LAUNCHES for way, each in times.items()}, "ratio": ratio}
        figures = ", ".join(f"{way} {1e6 * found[name][way]:.1f} us" for way in ways)
        print(f"{name}: {figures}, {ratio:.1f} times")
    return found


def main() -> None:
    options = parse(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    about = machine()
    launched, rounds = idle_gpu(), 3 if options.quick else 25
    for ways in launches().values():
        for way in ways.values():
            launched.clear()
            way()
            assert len(launched) == LAUNCHES
    found = time_launches(rounds)
    whole = steps(launched)
    for name, each in whole.items():
        print(f"a step, {name}: {each['launches']:.0f} launches, host {1000 * each['seconds']:.2f} ms")
    record("launching", options.quick, about, driver="left out", launches=found, steps=whole)
    if min(each["ratio"] for each in found.values()) < DEMANDED:
        sys.exit(f"The claim does NOT hold: numba.cuda's launch should take {DEMANDED} times as long")


if __name__ == "__main__":
    main()
