"""Claim: it does not pay to sum gradients over processes during the backward pass: no step gets 5% faster.

The gradients of the output layer are known before those of the hidden layers and the embeddings. Their sum over the processes
could be on its way while the rest is computed, with the same bits, as each number is still added up in the order of the ranks.
The script trains the same networks in two processes over MPI with one thread each, step by step in turns:

- ``after``: after the backward pass, the gradients of the output layer, those of the hidden layers and the others are summed.
- ``thread``: a second thread sums the gradients of the output layer, and then of the hidden layers, as soon as they are known.
- ``non-blocking``: their exchange begins as soon as they are known; MPI works on it only when it is called.

All ways send the same numbers in the same pieces, of at most `fflm.parallel.mpi.CHUNK` numbers, so that only the overlap differs.
What can be saved at most is the time of the sums that could come early, or the processor time of the remaining backward pass if
that is less. The least times count for it, which other programs disturb least.

For each network and link, the script states an interval for the time that is saved: the median over the rounds, in each of which
all ways make a step, with its noise (`common.median_interval`). The claim is missed if one of these intervals is above 5%. It
holds for a network and link if the intervals are below 5%, or if what can be saved at most is: over a slow link nearly the whole
step is communication, which varies by more than 5%, and the backward pass is too short to hide any of it. Otherwise there is no
verdict, and the script exits with an error, too.

This is done between processes of this machine, and, for root on Linux, between two hosts in network namespaces with links of
several rates (`two_hosts`). It needs the extra ``mpi``. An output layer that is tied to the embeddings has its gradients at the
very end, so only its biases, its projection and the hidden layers can come early.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from bengio import WINDOW, random_text
from common import machine, median_interval, parse, quartiles, record, show_verdict
from distributed import BATCH, MPIEXEC, RATES, in_processes
from mpi4py import MPI
from two_hosts import two_hosts, why_no_hosts

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import Array
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.parallel.mpi import MpiCommunicator, _chunks
from fflm.training.events import Step
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

WAYS = ("after", "thread", "non-blocking")

CASES: dict[str, tuple[int, bool, tuple[int, ...], str]] = {
    "exact loss, 10,000 words": (10_000, False, (256,), "exact"),
    "sampled loss, 100,000 words": (100_000, True, (256,), "sampled"),
    "sampled loss, 100,000 words, not tied": (100_000, False, (256,), "sampled"),
    "sampled loss, 100,000 words, not tied, three hidden layers of 512": (100_000, False, (512, 512, 512), "sampled"),
}
"""The number of words, whether the output layer is tied to the embeddings, the hidden layers, and the loss of each network."""

CHECKED = 5
"""Steps after which the weights of all ways are compared."""

TARGET = 0.05
"""The share of a step's time that overlapping would have to save."""

SECONDS, ROUNDS = 5.0, 12
"""The time for the rounds of a network over a link, and the smallest number of them."""


class EarlySums(MpiCommunicator):
    """Processes that can begin to sum some arrays before others, in one of the `WAYS`.

    Attributes
    ----------
    way
        The way.
    remaining, early
        In the way ``after``: the processor times in seconds of the backward pass after the first arrays were known, and the times
        of the sums of the arrays that were known early, for each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.way = "after"
        self.remaining: list[float] = []
        self.early: list[float] = []
        self._known: list[Sequence[Array]] = []
        self._known_at = 0.0
        self._thread = ThreadPoolExecutor(1)
        self._sums: list[Future[None]] = []
        self._exchanges: list[tuple[MPI.Request, list[Array], Array, Array]] = []
        self._free: dict[tuple[int, int], list[tuple[Array, Array]]] = {}

    def known(self, arrays: Sequence[Array]) -> None:
        """Take notice of arrays that will not change any more until `sum_arrays` is called for these and others."""
        if not self._known:
            self._known_at = time.thread_time()
        self._known.append(arrays)
        if self.way == "thread":
            self._sums.append(self._thread.submit(super().sum_arrays, arrays))
        elif self.way == "non-blocking":
            for pieces in _chunks([array.reshape(-1) for array in arrays]):
                self._start(pieces)

    def sum_arrays(self, arrays: Sequence[Array]) -> None:
        """Replace arrays by their sums."""
        known, self._known = self._known, []
        remaining, started = time.thread_time() - self._known_at, time.perf_counter()
        if self.way == "after":
            for each in known:
                super().sum_arrays(each)
            self.early.append(time.perf_counter() - started)
            self.remaining.append(remaining)
        for sums in self._sums:
            sums.result()
        for exchange in self._exchanges:
            self._finish(*exchange)
        self._sums.clear()
        self._exchanges.clear()
        early = {id(array) for each in known for array in each}
        super().sum_arrays([array for array in arrays if id(array) not in early])

    def _start(self, pieces: list[Array]) -> None:
        """Begin to exchange the parts of flat arrays: the first half of what `MpiCommunicator` does with a chunk."""
        size = sum(piece.size for piece in pieces)
        borders = np.arange(self.size + 1) * size // self.size
        own = borders[self.rank + 1] - borders[self.rank]
        free = self._free.setdefault((size, own), [])
        flat, parts = free.pop() if free else (np.empty(size, np.float32), np.empty((self.size, own), np.float32))
        np.concatenate(pieces, out=flat)
        sent = [flat, (np.diff(borders), borders[:-1])]
        request = self._comm.Ialltoallv(sent, [parts, ([own] * self.size, np.arange(self.size) * own)])
        self._exchanges.append((request, pieces, flat, parts))

    def _finish(self, request: MPI.Request, pieces: list[Array], flat: Array, parts: Array) -> None:
        """Add up the parts in the order of ranks, and exchange the sums: the second half."""
        request.Wait()
        borders = np.arange(self.size + 1) * flat.size // self.size
        total = flat[borders[self.rank] : borders[self.rank + 1]]
        total[...] = parts[0]
        for part in parts[1:]:
            total += part
        self._comm.Allgatherv(MPI.IN_PLACE, [flat, (np.diff(borders), borders[:-1])])
        self._free[flat.size, parts.shape[1]].append((flat, parts))
        for piece in pieces:
            piece[...], flat = flat[: piece.size], flat[piece.size :]


class EarlyNetwork(Network):
    """A network that says during the backward pass which gradients are known. A batch goes through it as a whole."""

    communicator: EarlySums

    def _hidden_backward(self, parameters: Parameters, *arguments: Any) -> Array:
        gradients: Parameters = arguments[2]
        assert self.rows_at_once(parameters, BATCH) == BATCH
        output = [gradients.projection, gradients.output_weight, gradients.output_bias]
        self.communicator.known([array for array in output if array is not None])
        d_inputs = super()._hidden_backward(parameters, *arguments)
        self.communicator.known([*gradients.hidden_weights, *gradients.hidden_biases])
        return d_inputs


def trainer(case: str, communicator: EarlySums) -> Trainer:
    """Return a training run on random text."""
    vocabulary, tied, hidden, loss = CASES[case]
    config = NetworkConfig(vocabulary, WINDOW, 128, hidden, averages=(), tied=tied, dropout=0.2, embedding_dropout=0.1)
    settings = TrainingSettings(epochs=1000, batch_size=BATCH, samples=512, rate=1e-3, schedule="constant", patience=0, loss=loss)
    network = EarlyNetwork(config, CpuBackend(1))
    network.communicator = communicator
    return Trainer(network, Parameters.random(config, 1), random_text(vocabulary, 200_000, 1), None, settings, communicator)


def time_steps(case: str, seconds: float, least: int) -> dict[str, Any] | None:
    """Train in all ways in turns; in the first process, return the times in seconds, and whether the weights are the same.

    There are at least as many rounds as ``least``, and as many as start within a time.
    """
    communicator, weights = EarlySums(), []
    for communicator.way in WAYS:
        run = trainer(case, communicator)
        events = (event for event in run.run() if isinstance(event, Step))
        for _ in range(CHECKED):
            next(events)
        weights.append([array.copy() for array in run.parameters])
    same = all(np.array_equal(one, two) for other in weights[1:] for one, two in zip(weights[0], other, strict=True))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    communicator.early.clear()
    communicator.remaining.clear()
    order, begun = random.Random(1), time.perf_counter()
    while len(times["after"]) < least or communicator.any(communicator.first and time.perf_counter() - begun < seconds):
        for communicator.way in order.sample(WAYS, len(WAYS)):  # the same order in both processes
            communicator.barrier()
            started = time.perf_counter()
            next(events)
            times[communicator.way].append(time.perf_counter() - started)
    if not communicator.first:
        return None
    return {"same": same, "remaining": min(communicator.remaining), "early": min(communicator.early), "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parse(parser)
    if options.work:
        case, seconds, least = options.work
        found = time_steps(case, float(seconds), int(least))
        if found:
            print(json.dumps(found))
        return
    about, seconds, least = machine(), *((0.0, 3) if options.quick else (SECONDS, ROUNDS))
    if options.quick:
        del CASES["exact loss, 10,000 words"]
    links: dict[str, float | None] = {"this machine": None}
    if reason := why_no_hosts() or ("--quick" if options.quick else ""):
        print(f"links between hosts are skipped: {reason}")
    else:
        links |= RATES
    results: dict[str, dict[str, Any]] = {}
    missed: list[str] = []
    undecided: list[str] = []
    for link, rate in links.items():
        hosts = contextlib.nullcontext([str(MPIEXEC)]) if link == "this machine" else two_hosts(rate, MPIEXEC)
        results[link] = {}
        with hosts as launcher:
            print(f"\n{link}")
            for case in CASES:
                found = in_processes(2, case, seconds, least, launcher=launcher, script=__file__)
                if not found["same"]:
                    missed.append(f"{link}, {case}: the weights differ")
                times = found["times"]
                most = min(found["remaining"], found["early"]) / min(times["after"])
                saved = {way: median_interval(1 - np.array(times[way]) / times["after"]) for way in WAYS[1:]}
                results[link][case] = {
                    **{way: quartiles(each) | {"fastest": min(each)} for way, each in times.items()},
                    **{name: found[name] for name in ("remaining", "early")},
                    "saved": {way: dataclasses.asdict(each) for way, each in saved.items()},
                    "most": most,
                }
                medians = ", ".join(f"{way} {statistics.median(times[way]) * 1e3:.1f}" for way in WAYS)
                print(
                    f"  {case:66}{medians} ms per step, {len(times['after'])} rounds; saved "
                    f"{', '.join(f'{way} {each:.1%}' for way, each in saved.items())}; at most {most:.1%} "
                    f"(sums {found['early'] * 1e3:.1f} ms, remaining {found['remaining'] * 1e3:.1f} ms)"
                )
                for way, each in saved.items():
                    part = f"{link}, {case}: {way} saves {each:.1%}"
                    if each.low > TARGET:
                        missed.append(part)
                    elif min(each.high, most) > TARGET:
                        undecided.append(part)
    passed = show_verdict(missed, undecided)
    record("overlap", options.quick, about, passed=passed, results=results)
    sys.exit(not passed and not options.quick)


if __name__ == "__main__":
    main()
