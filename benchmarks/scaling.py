"""Claim: a training step's time and memory grow at most in proportion to each size, and hardly with the corpus.

Starting from the default network, one value changes at a time: the number of words in the vocabulary, the hidden units, the
words of the window, the batch, the tokens of the corpus (memory-mapped, word frequencies as in text), or the threads. A step
goes from the ids on disk to the update, with the exact softmax. Its memory is the peak of the process minus its memory
before there was a network, and includes mapped pages of the corpus. All points take turns. The exponents are least-squares
fits in logarithms, over the range that is printed with them. The exponents of the time may be up to 1.1, that of the corpus
0.1, that of threads -0.75; those of memory may be up to 1.

The script first verifies, at every point, the loss and all gradients without dropout against a float64 network.
"""

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from common import RESULTS, in_turns, machine, memory_of, parse, quartiles, record, show_verdict
from exact import demand_gradients, exact_gradients

from fflm.backend.cpu.backend import CpuBackend
from fflm.models.neural.train import default_averages
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.plots import COLORS
from fflm.shuffling import shuffled
from fflm.text.windows import Windows
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

PROPORTIONAL = {"time": 1.1, "memory": 1.0}  # the largest exponents allowed
LARGEST = {("time", "corpus"): 0.1, ("time", "threads"): -0.75}  # exceptions, which are smaller


@dataclass(frozen=True)
class Point:
    """The sizes with which a step is measured: V, h, words of the window, B, tokens, threads."""

    vocabulary: int = 20_000
    hidden: int = 512
    window: int = 8
    batch: int = 256
    corpus: int = 1_000_000
    threads: int = numba.config.NUMBA_NUM_THREADS

    def changed(self, variable: str, value: int) -> "Point":
        """Return the point with one value changed."""
        return dataclasses.replace(self, **{variable: value})

    @property
    def config(self) -> NetworkConfig:
        """The network's shape."""
        return NetworkConfig(self.vocabulary, self.window, hidden=(self.hidden,), averages=default_averages(10**6))


MIDDLE = Point()
SMALL = Point(vocabulary=100, hidden=10, batch=8, corpus=1000)
VALUES = {
    "vocabulary": (5_000, 10_000, 20_000, 40_000, 80_000),
    "hidden": (128, 256, 512, 1024, 2048),
    "window": (2, 4, 8, 16, 32),
    "batch": (64, 128, 256, 512, 1024),
    "corpus": (100_000, 1_000_000, 10_000_000, 100_000_000),
    "threads": tuple(2**power for power in range(MIDDLE.threads.bit_length())),
}
NAMES = {
    "vocabulary": "words of the vocabulary",
    "hidden": "hidden units",
    "window": "words of the window",
    "batch": "words of a batch",
    "corpus": "tokens of the corpus",
    "threads": "threads",
}


def corpus(point: Point, folder: Path) -> Path:
    """Return a file of ids (tokens,), whose probabilities fall with their rank. Create it if it does not exist."""
    path = folder / f"{point.vocabulary}-{point.corpus}.npy"
    if not path.is_file():
        shares = 1 / np.arange(1, point.vocabulary + 1)
        once = np.random.default_rng(1).choice(point.vocabulary, min(point.corpus, 10**6), p=shares / shares.sum())
        np.save(path, np.resize(once.astype(np.uint32), point.corpus))
    return path


def trainer(point: Point, folder: Path) -> Trainer:
    """Return a training run that does not end."""
    parameters = Parameters.zeros(point.config)
    generator = np.random.default_rng(1)
    for array in parameters:
        generator.standard_normal(out=array, dtype=np.float32)
        array *= 0.05
    ids = np.load(corpus(point, folder), mmap_mode="r")
    windows = Windows(ids, point.config.context, padding=point.vocabulary)
    settings = TrainingSettings(epochs=1_000_000, batch_size=point.batch, rate=1e-4, schedule="constant", patience=0)
    network = Network(point.config, CpuBackend(point.threads))
    return Trainer(network, parameters, windows, None, settings)


def step(point: Point, folder: Path) -> Callable[[], Any]:
    """Return the step that is measured."""
    events = trainer(point, folder).run()
    return lambda: next(events)


def verify(point: Point, folder: Path) -> None:
    """Exit unless loss and gradients of a batch are those of a float64 network.

    This is done without dropout, because the float64 network does not draw the same masks.
    """
    run, config = trainer(point, folder), dataclasses.replace(point.config, dropout=0.0, embedding_dropout=0.0)
    contexts, targets = run.train.batch(next(shuffled(len(run.train), point.batch, 1, 0)))
    losses = np.empty(len(targets), np.float32)
    Network(config, CpuBackend(point.threads)).gradients(run.parameters, contexts, targets, run.gradients, losses)
    weights = {name: array.astype(np.float64) for name, array in run.parameters.items()}
    exact = exact_gradients(config, weights, contexts, targets)
    demand_gradients(losses.mean(dtype=np.float64), dict(run.gradients.items()), exact, str(point))


def exponent(values: Sequence[int], measured: Sequence[float]) -> float:
    """Return the exponent of the power that fits best (least squares in logarithms), or NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return float(np.polyfit(np.log(values), np.log(measured), 1)[0])


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw milliseconds and megabytes over each variable, in logarithms."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for axes, (variable, result) in zip(panels.flat, results.items(), strict=True):
        for color, marker, kind, unit, values in (
            (COLORS[0], "o", "time", "ms", [1e3 * each["median"] for each in result["seconds"]]),
            (COLORS[1], "s", "memory", "MB", [each / 1e6 for each in result["bytes"]]),
        ):
            label = f"{unit}, exponent {result['exponents'][kind]:.2f}"
            axes.plot(result["values"], values, marker=marker, ms=4, color=color, label=label)
        axes.axvline(getattr(MIDDLE, variable), color="gray", ls=":", lw=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(result["values"], [_short(value) for value in result["values"]])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(NAMES[variable])
        axes.legend(frameon=False, fontsize="small")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("milliseconds, and megabytes, of a training step")
    figure.suptitle("A training step of the default network; dotted: the middle point")
    figure.savefig(path, dpi=100)


def _short(value: int) -> str:
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if value >= size and value % size == 0:
            return f"{value // size}{letter}"
    return str(value)


def growth(variable: str, values: tuple[int, ...], times: dict[Point, list[float]], memory: dict[Point, int]) -> dict[str, Any]:
    """Return the time and memory of a step at each value of a variable, their exponents, and the largest exponents allowed.

    Parameters
    ----------
    variable, values
        Name of the value of `MIDDLE` that changes, and the values that it takes.
    times, memory
        For each point, the seconds per step in each turn, and the bytes that a step needs.
    """
    points = [MIDDLE.changed(variable, value) for value in values]
    seconds, needed = [quartiles(times[point]) for point in points], [memory[point] for point in points]
    return {
        "values": values,
        "seconds": seconds,
        "bytes": needed,
        "exponents": {"time": exponent(values, [each["median"] for each in seconds]), "memory": exponent(values, needed)},
        "claimed": {kind: LARGEST.get((kind, variable), largest) for kind, largest in PROPORTIONAL.items()},
    }


def show(variable: str, result: dict[str, Any]) -> None:
    """Print the time and memory of a step at each value of a variable, and their exponents."""
    exponents = result["exponents"]
    print(f"\n{NAMES[variable]}: exponent of the time {exponents['time']:.2f}, of the memory {exponents['memory']:.2f}")
    for value, figures, size in zip(result["values"], result["seconds"], result["bytes"], strict=True):
        low, median, high = (1e3 * figures[name] for name in ("low", "median", "high"))
        print(f"  {value:11,}  {median:8.2f} ms ({low:.2f} to {high:.2f})  {size / 1e6:6.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="number of turns of each point")
    parser.add_argument("--plot", type=Path, help="the file of the plot [default: results/scaling.png, none for a quick run]")
    options = parse(parser)
    about = machine()
    chosen = {name: values[:2] if options.quick else values for name, values in VALUES.items()}
    points = dict.fromkeys(MIDDLE.changed(name, value) for name, values in chosen.items() for value in values)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for point in (SMALL, *points):
            verify(point, folder)
        print(f"{len(points)} points verified")
        times = in_turns({point: step(point, folder) for point in points}, 3 if options.quick else options.rounds)
        memory = {point: memory_of(step, (SMALL, folder), (point, folder)) for point in points}
    results = {variable: growth(variable, values, times, memory) for variable, values in chosen.items()}
    for variable, result in results.items():
        show(variable, result)
    missed = [
        f"{kind}, {NAMES[variable]}: {found:.2f} instead of {result['claimed'][kind]:g}"
        for variable, result in results.items()
        for kind, found in result["exponents"].items()
        if found > result["claimed"][kind]
    ]
    print()
    show_verdict(missed)
    if path := options.plot or (None if options.quick else RESULTS / "scaling.png"):
        draw(results, path)
    record(
        "scaling",
        options.quick,
        about,
        middle=dataclasses.asdict(MIDDLE),
        network=MIDDLE.config.to_dict(),
        results=results,
        missed=missed,
        passed=not missed,
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
