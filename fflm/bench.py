"""Benchmarks of single operations and of whole training steps on the devices of a machine, which must agree on the results."""

import contextlib
import importlib.metadata
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fflm.backend.common import adam_corrections
from fflm.backend.protocol import Array, Backend, Dropout, StepNumbers
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.processors import usable_processors
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

ROUNDS = 5
"""Number of rounds in which each operation is timed; devices take turns, and the result is the median."""

TOLERANCE = 1e-3
"""Maximum difference between the results of two devices, relative to the largest number: float32, with sums of V products."""


@dataclass(frozen=True)
class Size:
    """The size of a network and of a batch.

    Attributes
    ----------
    vocabulary
        Number of words [V].
    embedding
        Embedding dimension [m].
    window
        Number of context words [n].
    hidden
        Number of hidden units [h].
    batch
        Number of examples in a batch [B].
    """

    vocabulary: int
    embedding: int
    window: int
    hidden: int
    batch: int


@dataclass(frozen=True)
class Timing:
    """The time that an operation takes on a device.

    Attributes
    ----------
    size, operation, device
        The size, the name of the operation, and the device.
    rounds
        Mean seconds per call in each round; a call processes a batch.
    calls
        Number of calls in each round.
    products
        Number of floating-point operations in the matrix products of a call; 0 if there are none.
    """

    size: Size
    operation: str
    device: str
    rounds: tuple[float, ...]
    calls: int
    products: int

    @property
    def seconds(self) -> float:
        """Seconds per call, the median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def tokens_per_second(self) -> float:
        """Number of predicted words per second."""
        return self.size.batch / self.seconds

    @property
    def gflops(self) -> float | None:
        """Billions of floating-point operations in matrix products per second; None if there are none."""
        return self.products / self.seconds / 1e9 if self.products else None


@dataclass(frozen=True)
class _Task:
    """An operation to time on a device.

    Attributes
    ----------
    products
        As for `Timing`.
    run
        Starts the operation.
    results
        Waits for the operation, and returns its results.
    """

    products: int
    run: Callable[[], Any]
    results: Callable[[], list[Array]]


def machine() -> dict[str, Any]:
    """Return a description of the machine: everything besides the code and the versions of libraries on which timings depend.

    ``cores`` is the number of logical cores that this process may use; ``physical_cores``, the number of cores of the machine, is
    None if it is unknown.
    """
    from fflm.backend.cpu import blas

    cpuinfo = Path("/proc/cpuinfo")  # on Linux, platform.processor() is empty
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    physical = set(re.findall(r"^physical id\s*: (\d+)$.*?^core id\s*: (\d+)$", text, re.MULTILINE | re.DOTALL))
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "cores": usable_processors(),
        "physical_cores": len(physical) or None,
        "system": platform.platform(),
        "blas": blas.description(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of fflm, and of the installed libraries on which its speed depends."""
    installed = {"python": platform.python_version()}
    for name in ("fflm", "numba", "llvmlite", "numpy", "scipy", "numba-cuda", "cuda-core"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def measure(sizes: list[Size], backends: Mapping[str, Backend], seconds: float = 0.1) -> Iterator[Timing]:
    """Time every operation and the whole training step (with dropout, clipping and AdamW, as by default) for each size.

    Parameters
    ----------
    sizes
        The sizes.
    backends
        The backends by the names of their devices.
    seconds
        Minimum duration of each of the `ROUNDS`, seconds.

    Yields
    ------
    Timing
        The timing of each operation on each device, in turn.

    Raises
    ------
    FflmError
        If the results of two devices differ.
    """
    for size in sizes:
        tasks = {device: _operations(size, backend) | _step(size, backend) for device, backend in backends.items()}
        first = next(iter(tasks.values()))
        for name in first:
            _verify(size, name, {device: own[name] for device, own in tasks.items()})
            rounds: dict[str, list[float]] = {device: [] for device in tasks}
            repeats = {device: _repeats(own[name], seconds) for device, own in tasks.items()}
            for _ in range(ROUNDS):
                for device, own in tasks.items():
                    rounds[device].append(_time(own[name], repeats[device]) / repeats[device])
            for device, times in rounds.items():
                yield Timing(size, name, device, tuple(times), repeats[device], first[name].products)


def _verify(size: Size, name: str, tasks: Mapping[str, _Task]) -> None:
    """Raise an FflmError if the devices do not agree on the results of an operation."""
    results = {}
    for device, task in tasks.items():
        task.run()
        results[device] = task.results()
    (one, expected), *others = results.items()
    for other, found in others:
        for left, right in zip(expected, found, strict=True):
            error = np.abs(left - right).max() / max(np.abs(left).max(), 1e-30)
            if not error <= TOLERANCE:
                raise FflmError(
                    f"{one} and {other} do not agree on {name}, {size}: the relative error is {error:.1e}; nothing was timed"
                )


def _repeats(task: _Task, seconds: float) -> int:
    """Return the number of calls that take a number of seconds, after a first call in which kernels may be compiled."""
    _time(task, 1)
    repeats = 1
    while (taken := _time(task, repeats)) < seconds:
        repeats = max(2 * repeats, min(100 * repeats, int(repeats * seconds / max(taken, 1e-9)) + 1))
    return repeats


def _time(task: _Task, repeats: int) -> float:
    """Return the seconds that a number of calls take until their results are available."""
    started = time.perf_counter()
    for _ in range(repeats):
        task.run()
    task.results()
    return time.perf_counter() - started


def _operations(size: Size, backend: Backend) -> dict[str, _Task]:
    """Return the operations of a training step and of evaluation by name, on random numbers that are the same on all devices."""
    generator, dtype = np.random.default_rng(0), np.float32
    rows, words, inputs = size.batch, size.vocabulary, size.window * size.embedding

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return backend.upload((scale * generator.standard_normal(shape)).astype(dtype))

    blocks = (1,) * size.window
    contexts = backend.upload(generator.integers(0, words, (rows, size.window), np.int32))
    targets = backend.upload(generator.integers(0, words, rows, np.int32))
    all_rows = backend.upload(np.arange(rows, dtype=np.int32))
    embeddings, x, d_x = normal(words + 1, size.embedding), normal(rows, inputs), normal(rows, inputs)
    layer = normal(size.hidden, inputs, scale=inputs**-0.5), normal(size.hidden)
    d_layer = normal(size.hidden, inputs), normal(size.hidden)
    hidden, d_hidden = normal(rows, size.hidden), normal(rows, size.hidden)
    output = normal(words, size.hidden, scale=size.hidden**-0.5), normal(words)
    d_output, moments = (normal(words, size.hidden), normal(words)), (normal(words, size.hidden), normal(words, size.hidden))
    losses, factor = normal(rows), backend.upload(np.ones(1, dtype))
    gradient = backend.empty((rows, size.hidden), dtype)  # a copy of d_hidden, which `affine_backward` overwrites
    backend.clear(moments[1])  # the second moments must not be negative
    dropped = backend.empty((rows, inputs), dtype)
    numbers = backend.place(StepNumbers(1, rate=1e-9, corrections=adam_corrections(0.9, 0.999, 1)))
    adam: dict[str, Any] = {"l2": 0.0, "shrinks": False, "numbers": numbers, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-5}

    def task(products: int, run: Callable[[], Any], *results: Array) -> _Task:
        starts = [array.reshape(-1)[:4096] for array in results]  # enough to verify, and fast to copy
        return _Task(products, run, lambda: [np.asarray(backend.download(array)) for array in starts])

    def affine_backward() -> None:
        backend.copy(d_hidden, gradient)
        backend.affine_backward(x, layer[0], hidden, "tanh", gradient, 0.0, *d_layer, d_x)

    updated = [output[0]], [d_output[0]], *([moment] for moment in moments)
    one_layer, whole = 2 * rows * inputs * size.hidden, 2 * rows * size.hidden * words
    return {
        "gather": task(0, lambda: backend.gather(embeddings, contexts, blocks, x), x),
        "dropout": task(0, lambda: backend.dropout(x, Dropout(0.1, 1, numbers, 0), 0, dropped), dropped),
        "affine": task(one_layer, lambda: backend.affine(x, *layer, "tanh", hidden), hidden),
        "softmax losses": task(whole, lambda: backend.output_losses(hidden, *output, all_rows, targets, losses), losses),
        "softmax gradients": task(
            3 * whole,
            lambda: backend.output_gradients(hidden, *output, targets, 0.0, 0.0, 1 / rows, 0.0, losses, d_hidden, *d_output),
            losses,
            d_hidden,
            *d_output,
        ),
        "affine backward": task(2 * one_layer, affine_backward, *d_layer, d_x),
        "scatter-add": task(0, lambda: backend.scatter_add(contexts, blocks, d_x, embeddings), embeddings),
        "clip": task(0, lambda: backend.clip_factor((*d_output, *d_layer), 1.0, factor), factor),
        "adamw": task(0, lambda: backend.adam_step(*updated, scale=factor, **adam), output[0], *moments),
        "log-probabilities": task(
            whole, lambda: backend.log_probabilities(hidden, *output, logs), logs := backend.empty((rows, words), dtype)
        ),
    }


class _RandomText:
    """Examples of random words, whose frequencies are as in a text: inversely proportional to their ranks (Zipf's law)."""

    def __init__(self, size: Size) -> None:
        generator = np.random.default_rng(0)
        frequencies = 1 / np.arange(1, size.vocabulary + 1)
        count = size.batch * 8 + size.window
        self._ids = generator.choice(size.vocabulary, count, p=frequencies / frequencies.sum()).astype(np.int32)
        self._size = size

    def __len__(self) -> int:
        return len(self._ids) - self._size.window

    def counts(self, words: int) -> Array:
        return np.bincount(self._ids, minlength=words)

    def batch(self, positions: Array) -> tuple[Array, Array]:
        return self._ids[positions[:, None] + np.arange(self._size.window)], self._ids[positions + self._size.window]


def _step(size: Size, backend: Backend) -> dict[str, _Task]:
    """Return a whole training step, from the positions of a batch to the updated parameters."""
    config = NetworkConfig(
        size.vocabulary, size.window, size.embedding, (size.hidden,), averages=(), tied=False, dropout=0.3, embedding_dropout=0.1
    )
    settings = TrainingSettings(epochs=1_000_000, batch_size=size.batch, rate=1e-5)
    trainer = Trainer(Network(config, backend), Parameters.random(config, 1), _RandomText(size), None, settings)
    events = trainer.run()
    first = [next(events).loss for _ in range(3)]  # type: ignore[union-attr]
    products = 6 * size.batch * size.hidden * (size.window * size.embedding + size.vocabulary)
    return {"training step": _Task(products, lambda: next(events), lambda: [np.array(first)])}
