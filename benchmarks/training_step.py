"""Claim: PyTorch's training step takes at least twice as long as fflm's, its compiled step 1.6 times, and both need more memory.

These are the medians over all sizes and numbers of threads; at no size is it less than 1.5 times and 1.3 times. The eager
step is the faster of those with PyTorch's usual and its fused Adam; the compiled one is torch.compile in the default mode,
with fused Adam. A ratio within the margin of noise of its target gives no verdict. JAX's compiled step (donated buffers) is
also measured, if it is installed. Memory is the peak of a process minus its memory before there was a network. The
comparison needs PyTorch.

A step goes from the embeddings to the update, in float32, with word frequencies as in text. The first sizes are Bengio's
network with dropout 0.2 and Adam, without clipping. The last two are what `fflm train` trains by default: averages, tied
embeddings, rectified units, dropout, AdamW, clipping. For each number of threads, all steps run in a process that may use
as many processors, because JAX takes all that it finds.

At every size, the script first verifies the loss and all gradients, and then two updates, of all programs against a float64
NumPy network. This is done without dropout, because the programs draw different masks. The script stops if they differ. It
also prints which share of the machine's matrix-product rate a step reaches, and the share of its processor time that is not
divided among threads: with a serial share s, n threads are at most 1 / (s + (1 - s) / n) times as fast as one (Amdahl 1967).
"""

import argparse
import dataclasses
import functools
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

try:  # before fflm, which sets OpenMP's waiting threads to sleep: PyTorch keeps its default
    import torch
except ImportError:
    torch = None

import numba
import numpy as np
import scipy.linalg.blas
from common import in_turns, machine, memory_of, parse, quartiles, record, shortfalls, show_verdict
from exact import demand, demand_gradients, exact_gradients, exact_updates
from threadpoolctl import threadpool_limits

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.cpu.launching import Kernel
from fflm.backend.protocol import StepNumbers
from fflm.models.neural.train import default_averages, default_window
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.training.optimizers import ADAM_BETA1, ADAM_BETA2, Optimizer
from fflm.training.settings import TrainingSettings

SPEED = {"eager": (2.0, 1.5), "compiled": (1.6, 1.3)}  # the smallest ratios of PyTorch's time to fflm's: median, each size
GRADIENT_FACTOR = 100.0  # the gradients are scaled before the updates are verified, so that clipping is verified, too
UPDATE_TOLERANCE = 2e-3  # relative to the learning rate: a weight near 2 is rounded to 1e-7

Examples = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Size:
    """A network of one hidden layer, and how it is trained."""

    config: NetworkConfig
    settings: TrainingSettings

    def __str__(self) -> str:
        config = self.config
        shape = f"V={config.vocabulary // 1000}k m={config.embedding} h={config.hidden[0]} B={self.settings.batch_size}"
        return f"{shape} default" if config.averages else shape

    @property
    def flops(self) -> int:
        """The operations of the matrix products: forward, gradient of the weights, gradient of the inputs."""
        return self.flops_of(self.config.vocabulary)

    def flops_of(self, words: int) -> int:
        """Return the operations of the matrix products if the softmax is over a sample of so many words."""
        config = self.config
        products = config.inputs * config.hidden[0] + words * (config.embedding if config.tied else config.hidden[0])
        if config.projected:
            products += config.hidden[0] * config.embedding
        return 6 * self.settings.batch_size * products

    def start(self) -> Parameters:
        """Return random weights. The biases are not zero, so that their use is verified, too."""
        result, generator = Parameters.random(self.config, seed=1), np.random.default_rng(1)
        for array in result:
            if array.ndim == 1:
                array[:] = generator.normal(0, 0.1, len(array))
        return result

    def examples(self, generator: np.random.Generator) -> Examples:
        """Return contexts (B, n) and targets (B,); a word's probability falls with its rank, as in text (Zipf)."""
        shares = 1 / np.arange(1, self.config.vocabulary + 1)
        shape = self.settings.batch_size, self.config.context + 1
        words = generator.choice(self.config.vocabulary, shape, p=shares / shares.sum()).astype(np.int32)
        return np.ascontiguousarray(words[:, :-1]), np.ascontiguousarray(words[:, -1])

    def without_dropout(self) -> "Size":
        """Return the size without dropout, so that all programs compute the same step."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, dropout=0.0, embedding_dropout=0.0))

    def small(self) -> "Size":
        """Return a size that needs hardly any memory and runs the same code."""
        return Size(dataclasses.replace(self.config, vocabulary=100), dataclasses.replace(self.settings, batch_size=8))


def bengio(vocabulary: int, embedding: int, hidden: int, batch: int) -> Size:
    """Return the network of Bengio et al. (2003), without direct connections, for some V, m, h and B."""
    config = NetworkConfig(vocabulary, 4, embedding, (hidden,), "tanh", tied=False, dropout=0.2, embedding_dropout=0.0)
    return Size(config, TrainingSettings(batch_size=batch, optimizer="adam", rate=1e-3, weight_decay=0.0, clip=0.0))


def default(vocabulary: int) -> Size:
    """Return the default network for a text of a million words with a vocabulary of some size."""
    averages = default_averages(10**6)
    config = NetworkConfig(vocabulary, default_window(averages), averages=averages)
    return Size(config, TrainingSettings(batch_size=512))


SIZES = (
    bengio(10_000, 60, 100, 256),
    bengio(18_000, 128, 256, 512),
    bengio(33_000, 128, 256, 512),
    bengio(10_000, 100, 500, 1024),
    bengio(100_000, 128, 256, 512),
    default(18_000),
    default(33_000),
)


class Fflm:
    """fflm's step. ``weights`` and ``gradients`` are its arrays by name."""

    def __init__(self, size: Size, start: Parameters, threads: int | None = None) -> None:
        self.settings = size.settings
        self.network = Network(size.config, CpuBackend(threads or numba.get_num_threads()))
        self._weights = Parameters.from_arrays(size.config, {name: array.copy() for name, array in start.items()})
        self._gradients = Parameters.zeros(size.config)
        self.optimizer = Optimizer(size.settings, start, self.network.backend)
        self.updates, self._scale = 0, np.ones(1, np.float32)
        self.weights, self.gradients = dict(self._weights.items()), dict(self._gradients.items())

    def loss(self, contexts: np.ndarray, targets: np.ndarray) -> float:
        """Go forward and back."""
        losses = np.empty(len(targets), np.float32)
        self.network.gradients(self._weights, contexts, targets, self._gradients, losses, numbers=self._numbers())
        return float(losses.mean())

    def _numbers(self) -> StepNumbers:
        """Return the numbers of this step."""
        return self.optimizer.numbers(self.settings.rate, self.updates)

    def update(self) -> None:
        """Clip, and make the optimizer's step."""
        backend = self.network.backend
        if self.settings.clip:
            backend.clip_factor(self._gradients, self.settings.clip, self._scale)
        self.optimizer.update(
            self._weights,
            self._gradients,
            self.optimizer.moments,
            scale=self._scale,
            numbers=self._numbers(),
        )
        self.updates += 1

    def step(self, contexts: np.ndarray, targets: np.ndarray) -> None:
        """Make one training step."""
        self.loss(contexts, targets)
        self.update()


class Torch:
    """PyTorch's eager step."""

    fused = False

    def __init__(self, size: Size, start: Parameters) -> None:
        from torch_network import TorchNetwork

        self.settings = size.settings
        self.network = TorchNetwork(size.config, start)
        self.weights = {name: weight.detach().numpy() for name, weight in self.network.weights.items()}
        matrices, biases = ([p for p in self.network.weights.values() if (p.ndim > 1) is wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": self.settings.weight_decay}, {"params": biases, "weight_decay": 0.0}]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.settings.optimizer]
        self.optimizer = kind(groups, self.settings.rate, (ADAM_BETA1, ADAM_BETA2), self.settings.epsilon, fused=self.fused)

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients, by the names of the weights."""
        return {name: weight.grad.numpy() for name, weight in self.network.weights.items()}

    def loss(self, contexts: np.ndarray, targets: np.ndarray) -> float:
        """Go forward and back."""
        self.optimizer.zero_grad()
        loss = self.forward(torch.from_numpy(contexts), torch.from_numpy(targets).long())
        loss.backward()
        return loss.item()

    def forward(self, contexts: Any, targets: Any) -> Any:
        """Return the mean loss."""
        return torch.nn.functional.cross_entropy(self.network.logits(contexts, training=True), targets)

    def update(self) -> None:
        """Clip, and make the optimizer's step."""
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.network.weights.values(), self.settings.clip)
        self.optimizer.step()

    def step(self, contexts: np.ndarray, targets: np.ndarray) -> None:
        """Make one training step."""
        self.loss(contexts, targets)
        self.update()


class TorchFused(Torch):
    """PyTorch's eager step with the fused Adam."""

    fused = True


class TorchCompiled(TorchFused):
    """PyTorch's step with compiled forward and backward passes."""

    def __init__(self, size: Size, start: Parameters) -> None:
        super().__init__(size, start)
        torch.compiler.reset()  # earlier compilations count towards a limit
        self.forward = torch.compile(self.forward)


def jax(size: Size, start: Parameters) -> Any:
    """Return JAX's step."""
    from jax_network import JaxStep

    return JaxStep(size.config, size.settings, start)


EAGER = {"torch": Torch, "torch, fused Adam": TorchFused}
CONTENDERS: dict[str, Callable[..., Any]] = {
    "fflm": Fflm,
    **({**EAGER, "torch, compiled": TorchCompiled} if torch else {}),
    **({"jax": jax} if find_spec("jax") else {}),
}


def verify(size: Size, start: Parameters, contexts: np.ndarray, targets: np.ndarray) -> dict[str, str]:
    """Exit unless loss, gradients and updates of all programs are those of the float64 network.

    Returns
    -------
    dict
        For each program that cannot be compiled, the reason.
    """
    size = size.without_dropout()
    weights = {name: array.astype(np.float64) for name, array in start.items()}
    exact = exact_gradients(size.config, weights, contexts, targets)
    long = {name: GRADIENT_FACTOR * gradient for name, gradient in exact[1].items()}  # are clipped
    expected = exact_updates(size.settings, weights, long, 2)
    failures = {}
    for contender, build in CONTENDERS.items():
        network = build(size, start)
        try:
            loss = network.loss(contexts, targets)
        except Exception as error:  # the compiler may raise any exception
            if contender != "torch, compiled":
                raise
            failures[contender] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        demand_gradients(loss, network.gradients, exact, f"{contender}, {size}")
        for _ in range(2):
            for name, gradient in long.items():  # so that the update is judged by itself
                network.gradients[name][...] = gradient
            network.update()
        for name, weight in expected.items():
            demand(
                network.weights[name], weight, UPDATE_TOLERANCE * size.settings.rate, f"{contender}, {size}: the update of {name}"
            )
    return failures


def step(network: Any, examples: Iterator[Examples]) -> None:
    """Make one training step, which is timed."""
    network.step(*next(examples))


def prepared(contender: str, size: Size) -> Callable[[], None]:
    """Return the step of a program whose memory is measured."""
    examples = itertools.cycle([size.examples(np.random.default_rng(1))])
    return functools.partial(step, CONTENDERS[contender](size, Parameters.zeros(size.config)), examples)


def product_rates(threads: int, repeats: int) -> dict[str, float]:
    """Return the fastest single-precision matrix product found with each library's BLAS, in operations per second.

    The ratio of the two shows how much of the difference in a step's time is due to the BLAS and not to the kernels.
    """
    generator = np.random.default_rng(0)
    best = {"fflm": 0.0, "torch": 0.0} if torch else {"fflm": 0.0}
    for m, k, n in ((1024, 1024, 1024), (2048, 2048, 2048), (512, 256, 16384), (512, 16384, 256)):
        a, b = (np.asfortranarray(generator.random(shape, np.float32)) for shape in ((m, k), (k, n)))
        products = {"fflm": functools.partial(scipy.linalg.blas.sgemm, 1.0, a, b)}
        if torch:
            products["torch"] = functools.partial(torch.mm, torch.from_numpy(a), torch.from_numpy(b))
        for name, product in [*products.items()] * repeats:
            with threadpool_limits(threads):
                started = time.perf_counter()
                product()
                best[name] = max(best[name], 2 * m * k * n / (time.perf_counter() - started))
    return best


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def set_threads(threads: int) -> None:
    """Let all programs use some threads, in a process that has just started and is to have no more processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    numba.set_num_threads(threads)
    if torch:
        torch.set_num_threads(threads)


def time_steps(size: Size, start: Parameters, names: list[str], threads: int, rate: float, rounds: int) -> list[dict[str, Any]]:
    """Time the steps of all programs in turns; ``rate`` is that of matrix products, in operations per second."""
    generator = np.random.default_rng(1)
    examples = [size.examples(generator) for _ in range(8)]
    steps, first = {}, {}
    for name in names:
        steps[name] = functools.partial(step, CONTENDERS[name](size, start), itertools.cycle(examples))
        started = time.perf_counter()
        steps[name]()
        first[name] = time.perf_counter() - started
    times = in_turns(steps, rounds)
    rows = []
    for name, seconds in times.items():
        figures = quartiles(seconds)
        ratio = quartiles([theirs / ours for theirs, ours in zip(seconds, times["fflm"], strict=True)])
        share = size.flops / figures["median"] / rate
        rows.append(
            {
                "size": str(size),
                "threads": threads,
                "contender": name,
                "seconds": figures,
                "first_step_seconds": first[name],
                "words_per_second": size.settings.batch_size / figures["median"],
                "share_of_product_rate": share,
                "time_relative_to_fflm": ratio,
            }
        )
        compiled = f"; compiled in {first[name]:.0f} s" if name == "torch, compiled" else ""
        print(
            f"  {_threads(threads):9}  {name:17}  {1000 * figures['median']:8.2f} ms "
            f"({1000 * figures['low']:.2f} to {1000 * figures['high']:.2f})  {share:4.0%} of the product rate  "
            f"{ratio['median']:.2f} times fflm's ({ratio['low']:.2f} to {ratio['high']:.2f}){compiled}"
        )
    return rows


def serial_share(size: Size, start: Parameters, steps: int) -> float:
    """Return the share of fflm's processor time in which its work is not divided among threads, the median of some steps.

    The work is divided as for two threads, but one thread does all of it, so that neither other programs nor waking count.
    """
    network, examples = Fflm(size, start, threads=2), size.examples(np.random.default_rng(1))
    launch, divided, shares = Kernel.__call__, 0.0, []

    def timed(kernel: Kernel, *arguments: Any) -> None:
        nonlocal divided
        started = time.process_time()
        launch(kernel, *arguments)
        divided += (time.process_time() - started) * (arguments[-1] > 1)

    numba.set_num_threads(1)
    network.step(*examples)
    Kernel.__call__ = timed  # type: ignore[method-assign]
    try:
        for _ in range(steps):
            divided, started = 0.0, time.process_time()
            network.step(*examples)
            shares.append(1 - divided / (time.process_time() - started))
    finally:
        Kernel.__call__ = launch  # type: ignore[method-assign]
    share = statistics.median(shares)
    print(f"  {share:.1%} of the processor time is serial")
    return share


def measure_memory(size: Size, names: list[str]) -> list[dict[str, Any]]:
    """Measure the memory of each program's steps, beyond that of a process that has run some small steps."""
    rows = []
    for name in names:
        memory = memory_of(prepared, (name, size.small()), (name, size))
        print(f"  memory     {name:17}  {memory / 1e6:8.0f} MB")
        rows.append({"size": str(size), "contender": name, "bytes": memory})
    return rows


def judge(steps: list[dict[str, Any]], memory: list[dict[str, Any]]) -> dict[str, Any]:
    """Return whether the claim holds, and the parts of it that do not."""
    ratios = {kind: fastest(steps, names) for kind, names in (("eager", [*EAGER]), ("compiled", ["torch, compiled"]))}
    ours = {row["size"]: row["bytes"] for row in memory if row["contender"] == "fflm"}
    bytes_ratios = {
        f"{row['size']}, {row['contender']}": row["bytes"] / ours[row["size"]]
        for row in memory
        if row["contender"].startswith("torch")
    }
    missed = [f"memory, {case}: {ratio:.2f}" for case, ratio in bytes_ratios.items() if ratio <= 1]
    undecided, medians = [], {}
    for kind, cases in ratios.items():
        if not cases:  # nothing could be compiled
            continue
        median, least = SPEED[kind]
        medians[kind] = {name: statistics.median(row[name] for row in cases.values()) for name in ("median", "from", "to")}
        below, open_ = zip(
            shortfalls({f"time, {kind}, median": medians[kind]}, median),
            shortfalls({f"time, {kind}, {case}": row for case, row in cases.items()}, least),
            strict=True,
        )
        missed += itertools.chain(*below)
        undecided += itertools.chain(*open_)
        print(
            f"\nrelative to fflm's, the time of PyTorch's {kind} step is {medians[kind]['median']:.2f} in the median and "
            f"{min(row['median'] for row in cases.values()):.2f} at the least"
        )
    print(f"PyTorch's memory is {min(bytes_ratios.values()):.2f} times fflm's at the least")
    return {
        "median_time_ratio": medians["eager"]["median"],
        "median_time_ratios": medians,
        "time_ratios": {case: row["median"] for case, row in ratios["eager"].items()},
        "memory_ratios": bytes_ratios,
        "passed": show_verdict(missed, undecided),
        "missed": missed,
        "undecided": undecided,
        "claimed": {"time_ratios": SPEED, "memory_ratio_above": 1.0},
    }


def fastest(steps: list[dict[str, Any]], contenders: list[str]) -> dict[str, dict[str, float]]:
    """Return how long the fastest of some programs takes relative to fflm, with the margin of noise, for each case."""
    found: dict[str, dict[str, float]] = {}
    for row in steps:
        if row["contender"] in contenders:
            case, ratio = f"{row['size']}, {_threads(row['threads'])}", row["time_relative_to_fflm"]
            bounded = {"from": ratio.get("from", -math.inf), "median": ratio["median"], "to": ratio.get("to", math.inf)}
            if case not in found or ratio["median"] < found[case]["median"]:
                found[case] = bounded
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", choices=range(1, len(SIZES) + 1), help="numbers of the sizes [default: all]"
    )
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads [default: 1 and 2]")
    parser.add_argument("--rounds", type=int, default=11, help="number of turns of each program; with fewer, noise has no margin")
    options = parse(parser)
    rounds = 3 if options.quick else options.rounds
    sizes = [SIZES[number - 1] for number in options.sizes or ((1, 6) if options.quick else range(1, len(SIZES) + 1))]
    about = machine()
    if not torch:
        print("PyTorch is not installed: no comparison")
    rates: dict[int, dict[str, float]] = {}
    pools, steps, memory, failures, serial = {}, [], [], {}, {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # an empty cache, in which nothing has been compiled
        for threads in options.threads or [t for t in (1, 2) if t <= about["cores"]]:
            pool = ProcessPoolExecutor(1, get_context("spawn"), set_threads, (threads,))
            pools[threads] = running.enter_context(pool)
            rates[threads] = pool.submit(product_rates, threads, 5 if options.quick else 20).result()
            shown = ", ".join(f"{rate / 1e9:.0f} ({name}'s BLAS)" for name, rate in rates[threads].items())
            print(f"matrix products, {_threads(threads)}, billion operations per second: {shown}")
        for size in sizes:
            start = size.start()
            failed = verify(size, start, *size.examples(np.random.default_rng(2)))
            names = [name for name in CONTENDERS if name not in failed]
            print(f"\n{size}: loss, gradients and updates verified")
            for name, why in failed.items():
                print(f"  {name} failed: {why}")
            failures[str(size)] = failed
            for threads, by_library in rates.items():
                timing = pools[threads].submit(time_steps, size, start, names, threads, max(by_library.values()), rounds)
                steps += timing.result()
            serial[str(size)] = serial_share(size, start, rounds)
            memory += measure_memory(size, names)
    verdict = judge(steps, memory) if torch else {"passed": None}
    record(
        "training_step",
        options.quick,
        about,
        product_rates=rates,
        steps=steps,
        memory=memory,
        serial_shares=serial,
        failures=failures,
        sizes={str(size): {"network": size.config.to_dict(), "training": size.settings.to_dict()} for size in sizes},
        **verdict,
    )
    sys.exit(verdict["passed"] is False)


if __name__ == "__main__":
    main()
