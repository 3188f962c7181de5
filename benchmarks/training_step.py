"""Claim: a training step takes less time than PyTorch's, at every size, and spends it in matrix products.

A step goes from the embeddings to the update: dropout 0.2, Adam, no clipping, float32, window 4, word frequencies as in text.
PyTorch runs the same network eagerly (if it is installed), with its usual Adam and with its fused one.

Verified first, at every size and without dropout, whose masks differ: the loss and all gradients, then two updates, of both
against the float64 NumPy network below. The script stops when they differ.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

try:  # before fflm, which asks OpenMP for waiting threads that sleep: PyTorch's are to wait in their own way
    import torch
except ImportError:
    torch = None

import numba
import numpy as np
import scipy.linalg.blas
from common import in_turns, machine, parse, quartiles, record
from threadpoolctl import threadpool_limits

from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.training.optimizers import ADAM_BETA1, ADAM_BETA2, EPSILON, Optimizer
from fflm.training.settings import TrainingSettings

WINDOW = 4
DROPOUT = 0.2
RATE = 1e-3
LOSS_TOLERANCE = 1e-5  # relative
GRADIENT_TOLERANCE = 3e-5  # of the array's largest gradient: sums of up to 100,000 products, in another order
UPDATE_TOLERANCE = 2e-3  # of the rate: a weight near 2 is rounded to 1e-7


@dataclass(frozen=True)
class Size:
    """V, m, h and B."""

    vocabulary: int
    embedding: int
    hidden: int
    batch: int

    def __str__(self) -> str:
        return f"V={self.vocabulary // 1000}k m={self.embedding} h={self.hidden} B={self.batch}"

    @property
    def flops(self) -> int:
        """Operations of the matrix products: two layers, each forward, to its weights and to its inputs."""
        return 6 * self.batch * self.hidden * (WINDOW * self.embedding + self.vocabulary)

    def config(self, dropout: float) -> NetworkConfig:
        """Return the network's shape."""
        return NetworkConfig(
            self.vocabulary, WINDOW, self.embedding, (self.hidden,), "tanh", averages=(), tied=False,
            dropout=dropout, embedding_dropout=0.0,
        )  # fmt: skip

    def examples(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return contexts (B, n) and targets (B,); a word's probability falls with its rank, as in text (Zipf)."""
        shares = 1 / np.arange(1, self.vocabulary + 1)
        words = generator.choice(self.vocabulary, (self.batch, WINDOW + 1), p=shares / shares.sum()).astype(np.int32)
        return np.ascontiguousarray(words[:, :-1]), np.ascontiguousarray(words[:, -1])


SIZES = (
    Size(10_000, 60, 100, 256),
    Size(18_000, 128, 256, 512),
    Size(33_000, 128, 256, 512),
    Size(10_000, 100, 500, 1024),
    Size(100_000, 128, 256, 512),
)


class Fflm:
    """The network of this project. ``weights`` and ``gradients`` are its arrays by name."""

    def __init__(self, size: Size, start: Parameters, dropout: float) -> None:
        config = size.config(dropout)
        self.network = Network(config)
        self._weights = Parameters.from_arrays(config, {name: array.copy() for name, array in start.items()})
        self._gradients = Parameters.zeros(config)
        self.optimizer = Optimizer(TrainingSettings(optimizer="adam", weight_decay=0.0), config, np.float32)
        self.updates = 0
        self.weights, self.gradients = dict(self._weights.items()), dict(self._gradients.items())

    def loss(self, contexts: np.ndarray, targets: np.ndarray) -> float:
        """Go forward and back."""
        losses = np.empty(len(targets), np.float32)
        self.network.gradients(self._weights, contexts, targets, self._gradients, losses, step=self.updates)
        return float(losses.mean())

    def update(self) -> None:
        """Make Adam's step."""
        self.updates += 1
        self.optimizer.update(
            self.network.backend, self._weights, self._gradients, self.optimizer.moments, scale=1.0, rate=RATE, step=self.updates
        )  # fmt: skip


class Torch:
    """The same in PyTorch."""

    fused = False

    def __init__(self, size: Size, start: Parameters, dropout: float) -> None:
        self.embeddings = torch.nn.Embedding(size.vocabulary + 1, size.embedding)
        self.hidden = torch.nn.Linear(WINDOW * size.embedding, size.hidden)
        self.output = torch.nn.Linear(size.hidden, size.vocabulary)
        self.dropout = torch.nn.Dropout(dropout)
        parameters = [p for part in (self.embeddings, self.hidden, self.output) for p in part.parameters()]
        self.weights = {name: p.detach().numpy() for (name, _), p in zip(start.items(), parameters, strict=True)}
        for name, array in start.items():
            self.weights[name][...] = array
        self._parameters = dict(zip(self.weights, parameters, strict=True))
        self.optimizer = torch.optim.Adam(parameters, RATE, (ADAM_BETA1, ADAM_BETA2), EPSILON, fused=self.fused)

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients by the names of the weights."""
        return {name: p.grad.numpy() for name, p in self._parameters.items()}

    def loss(self, contexts: np.ndarray, targets: np.ndarray) -> float:
        """Go forward and back."""
        self.optimizer.zero_grad()
        inputs = self.embeddings(torch.from_numpy(contexts)).flatten(1)
        logits = self.output(self.dropout(torch.tanh(self.hidden(inputs))))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long())
        loss.backward()
        return loss.item()

    def update(self) -> None:
        """Make Adam's step."""
        self.optimizer.step()


class TorchFused(Torch):
    """The same, with the update in one kernel."""

    fused = True


CONTENDERS = {"fflm": Fflm} | ({"torch": Torch, "torch, fused Adam": TorchFused} if torch else {})


def exact_gradients(
    weights: dict[str, np.ndarray], contexts: np.ndarray, targets: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss and all gradients without dropout, in the precision of the weights; Bengio's letters."""
    C, H, d, U, b = weights.values()
    rows = np.arange(len(targets))
    x = C[contexts].reshape(len(targets), -1)  # (B, n m)
    y = np.tanh(x @ H.T + d)  # (B, h)
    p = y @ U.T + b  # (B, V)
    p = np.exp(p - p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[rows, targets]).mean()
    p[rows, targets] -= 1
    d_scores = p / len(targets)
    d_hidden = d_scores @ U * (1 - y**2)
    d_embeddings = np.zeros_like(C)
    np.add.at(d_embeddings, contexts, (d_hidden @ H).reshape(*contexts.shape, -1))
    gradients = (d_embeddings, d_hidden.T @ x, d_hidden.sum(0), d_scores.T @ y, d_scores.sum(0))
    return loss, dict(zip(weights, gradients, strict=True))


def exact_updates(weight: np.ndarray, gradient: np.ndarray, updates: int) -> np.ndarray:
    """Return the weight after updates by Adam with the same gradient (Kingma & Ba 2015, algorithm 1)."""
    first = second = 0.0
    for step in range(1, updates + 1):
        first = ADAM_BETA1 * first + (1 - ADAM_BETA1) * gradient
        second = ADAM_BETA2 * second + (1 - ADAM_BETA2) * gradient**2
        weight = weight - RATE * first / (1 - ADAM_BETA1**step) / (np.sqrt(second / (1 - ADAM_BETA2**step)) + EPSILON)
    return weight


def verify(size: Size, start: Parameters, contexts: np.ndarray, targets: np.ndarray) -> None:
    """Stop unless loss, gradients and updates of all contenders are those of the float64 network."""
    weights = {name: array.astype(np.float64) for name, array in start.items()}
    loss, gradients = exact_gradients(weights, contexts, targets)
    for contender, build in CONTENDERS.items():
        network = build(size, start, 0.0)
        _demand(network.loss(contexts, targets), loss, LOSS_TOLERANCE * loss, f"{contender}, {size}: the loss")
        for name, gradient in gradients.items():
            tolerance = GRADIENT_TOLERANCE * np.abs(gradient).max()
            _demand(network.gradients[name], gradient, tolerance, f"{contender}, {size}: the gradient of {name}")
        for name, gradient in gradients.items():  # so that the update is judged by itself
            network.gradients[name][...] = gradient
        network.update()
        network.update()
        for name, gradient in gradients.items():
            expected = exact_updates(weights[name], gradient, 2)
            _demand(network.weights[name], expected, UPDATE_TOLERANCE * RATE, f"{contender}, {size}: the update of {name}")


def _demand(actual: np.ndarray | float, expected: np.ndarray | float, tolerance: float, what: str) -> None:
    off = np.abs(actual - expected).max()
    if not off <= tolerance:
        sys.exit(f"{what} is off by {off:.2g}, allowed is {tolerance:.2g}: nothing was timed")


def step(network: Fflm | Torch, examples: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    """Make the step that is timed."""
    network.loss(*next(examples))
    network.update()


def product_rates(threads: int, repeats: int) -> dict[str, float]:
    """Return the fastest single-precision matrix product found with each library's BLAS, in operations a second.

    How far the two are apart says how much of a step's time is the choice of the BLAS and not of the kernels.
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
    numba.set_num_threads(threads)
    if torch:
        torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=range(1, len(SIZES) + 1), help="only these, by number")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and 2")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    options = parse(parser)
    rounds = 3 if options.quick else options.rounds
    sizes = [SIZES[number - 1] for number in options.sizes or range(1, 3 if options.quick else len(SIZES) + 1)]
    about = machine()
    if not torch:
        print("torch is not installed: no comparison")
    rates = {}
    for threads in options.threads or [t for t in (1, 2) if t <= about["cores"]]:
        set_threads(threads)
        rates[threads] = product_rates(threads, 5 if options.quick else 20)
        shown = ", ".join(f"{rate / 1e9:.0f} ({name}'s BLAS)" for name, rate in rates[threads].items())
        print(f"matrix products, {_threads(threads)}, billion operations a second: {shown}")
    rows = []
    for size in sizes:
        start = Parameters.random(size.config(DROPOUT), seed=1)
        generator = np.random.default_rng(1)
        verify(size, start, *size.examples(generator))
        print(f"\n{size}: loss, gradients and updates verified")
        examples = [size.examples(generator) for _ in range(8)]
        for threads, by_library in rates.items():
            rate = max(by_library.values())
            set_threads(threads)
            steps = {}
            for name, build in CONTENDERS.items():
                steps[name] = functools.partial(step, build(size, start, DROPOUT), itertools.cycle(examples))
            times = in_turns(steps, rounds)
            for name, seconds in times.items():
                figures = quartiles(seconds)
                ratio = quartiles([theirs / ours for theirs, ours in zip(seconds, times["fflm"], strict=True)])
                share = size.flops / figures["median"] / rate
                rows.append(
                    {
                        **dataclasses.asdict(size), "threads": threads, "contender": name, "seconds": figures,
                        "words_per_second": size.batch / figures["median"], "share_of_product_rate": share,
                        "time_relative_to_fflm": ratio,
                    }
                )  # fmt: skip
                print(
                    f"  {_threads(threads):9}  {name:17}  {1000 * figures['median']:8.2f} ms "
                    f"({1000 * figures['low']:.2f} to {1000 * figures['high']:.2f})  {share:4.0%} of the product rate  "
                    f"{ratio['median']:.2f} times fflm's ({ratio['low']:.2f} to {ratio['high']:.2f})"
                )
    record("training_step", options.quick, about, product_rates=rates, steps=rows)


if __name__ == "__main__":
    main()
