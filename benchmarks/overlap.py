"""Claim: it does not pay to sum gradients over processes during the backward pass: no step gets 5% faster.

The gradients of the output layer are known before those of the hidden layers and the embeddings. Their sum over the processes
could be on its way while the rest is computed, with the same bits, as each number is still added up in the order of the ranks.
The script trains the same networks in two processes over MPI with one thread each, step by step in turns:

- ``after``: all sums come after the backward pass, as fflm does it.
- ``thread``: a second thread sums the gradients of the output layer, and then of the hidden layers, as soon as they are known.
- ``non-blocking``: non-blocking operations exchange the gradients of the output layer; MPI works on them only when called.
- ``separate``: as ``after``, but in two sums, to measure what can be saved at most: the time of the sum that could come early, or
  the processor time of the remaining backward pass if that is less. The least times count, which other programs disturb least.

This is done between processes of this machine, and, for root on Linux, between two hosts in network namespaces with links of
several rates (`two_hosts`). It needs the extra ``mpi``. An output layer that is tied to the embeddings has its gradients at the
very end, so only its biases, its projection and the hidden layers can come early.

The way ``non-blocking`` also differs from the others in that it exchanges the arrays in one piece, and not in pieces of
`fflm.parallel.mpi.CHUNK` numbers. What it saves may come from that.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from bengio import WINDOW, random_text
from common import machine, parse, quartiles, record, show_verdict
from distributed import BATCH, MPIEXEC, RATES, in_processes
from mpi4py import MPI
from two_hosts import two_hosts, why_no_hosts

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import Array
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.parallel.mpi import MpiCommunicator
from fflm.training.events import Step
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

WAYS = ("after", "thread", "non-blocking", "separate")

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


class EarlySums(MpiCommunicator):
    """Processes that can begin to sum some arrays before others, in one of the `WAYS`.

    Attributes
    ----------
    way
        The way.
    remaining, early
        In the way ``separate``: the processor times in seconds of the backward pass after the first arrays were known, and the
        times of the sum of these arrays, for each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.way = "after"
        self.remaining: list[float] = []
        self.early: list[float] = []
        self._known: list[Array] = []
        self._known_at = 0.0
        self._thread = ThreadPoolExecutor(1)
        self._sums: list[Future[None]] = []
        self._exchange: tuple[MPI.Request, Array, Array] | None = None

    def known(self, arrays: Sequence[Array]) -> None:
        """Take notice of arrays that will not change any more until `sum_arrays` is called for these and others."""
        if self.way == "after":
            return
        if not self._known:
            self._known_at = time.thread_time()
        elif self.way == "non-blocking":
            return
        self._known.extend(arrays)
        if self.way == "thread":
            self._sums.append(self._thread.submit(super().sum_arrays, arrays))
        elif self.way == "non-blocking":
            self._start(arrays)

    def sum_arrays(self, arrays: Sequence[Array]) -> None:
        """Replace arrays by their sums."""
        known, self._known = self._known, []
        remaining, started = time.thread_time() - self._known_at, time.perf_counter()
        if self._exchange:
            self._finish(known)
        elif self._sums:
            for sums in self._sums:
                sums.result()
            self._sums.clear()
        elif known:
            super().sum_arrays(known)
            self.early.append(time.perf_counter() - started)
            self.remaining.append(remaining)
        super().sum_arrays([array for array in arrays if all(array is not each for each in known)])

    def _start(self, arrays: Sequence[Array]) -> None:
        """Begin to exchange the parts of arrays: the first half of what `MpiCommunicator.sum_arrays` does."""
        flat = np.concatenate([array.reshape(-1) for array in arrays])
        borders = np.arange(self.size + 1) * flat.size // self.size
        own = borders[self.rank + 1] - borders[self.rank]
        parts = np.empty((self.size, own), flat.dtype)
        sent = [flat, (np.diff(borders), borders[:-1])]
        request = self._comm.Ialltoallv(sent, [parts, ([own] * self.size, np.arange(self.size) * own)])
        self._exchange = request, flat, parts

    def _finish(self, arrays: Sequence[Array]) -> None:
        """Add up the parts in the order of ranks, and exchange the sums: the second half."""
        assert self._exchange
        request, flat, parts = self._exchange
        self._exchange = None
        request.Wait()
        borders = np.arange(self.size + 1) * flat.size // self.size
        total = flat[borders[self.rank] : borders[self.rank + 1]]
        total[...] = parts[0]
        for part in parts[1:]:
            total += part
        self._comm.Allgatherv(MPI.IN_PLACE, [flat, (np.diff(borders), borders[:-1])])
        for array in arrays:
            array[...], flat = flat[: array.size].reshape(array.shape), flat[array.size :]


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


def time_steps(case: str, rounds: int) -> dict[str, Any] | None:
    """Train in all ways in turns; in the first process, return the times in seconds, and whether the weights are the same."""
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
    for _ in range(rounds):
        for communicator.way in WAYS:
            communicator.barrier()
            started = time.perf_counter()
            next(events)
            times[communicator.way].append(time.perf_counter() - started)
    if not communicator.first:
        return None
    return {"same": same, "remaining": min(communicator.remaining), "early": min(communicator.early), "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parse(parser)
    if options.work:
        case, rounds = options.work
        found = time_steps(case, int(rounds))
        if found:
            print(json.dumps(found))
        return
    about, rounds = machine(), 3 if options.quick else 40
    if options.quick:
        del CASES["exact loss, 10,000 words"]
    links: dict[str, float | None] = {"this machine": None}
    if reason := why_no_hosts() or ("--quick" if options.quick else ""):
        print(f"links between hosts are skipped: {reason}")
    else:
        links |= RATES
    results: dict[str, dict[str, Any]] = {}
    missed = []
    for link, rate in links.items():
        hosts = contextlib.nullcontext([str(MPIEXEC)]) if link == "this machine" else two_hosts(rate, MPIEXEC)
        results[link] = {}
        with hosts as launcher:
            print(f"\n{link}")
            for case in CASES:
                found = in_processes(2, case, rounds, launcher=launcher, script=__file__)
                if not found["same"]:
                    missed.append(f"{link}, {case}: the weights differ")
                times = found["times"]
                most = min(found["remaining"], found["early"]) / min(times["after"])
                ratios = {way: np.array(times[way]) / times["after"] for way in ("thread", "non-blocking")}
                saved = {way: 1 - statistics.median(each) for way, each in ratios.items()}
                results[link][case] = {
                    **{way: quartiles(each) | {"fastest": min(each)} for way, each in times.items()},
                    **{name: found[name] for name in ("remaining", "early")},
                    "saved": saved,
                    "most": most,
                }
                print(
                    f"  {case:66}"
                    + ", ".join(
                        f"{way} {statistics.median(times[way]) * 1e3:.1f} ({min(times[way]) * 1e3:.1f})" for way in WAYS[:3]
                    )
                    + f" ms per step (fastest); saved {', '.join(f'{way} {each:.1%}' for way, each in saved.items())}; "
                    f"at most {most:.1%} (sum {found['early'] * 1e3:.1f} ms, remaining {found['remaining'] * 1e3:.1f} ms)"
                )
                missed += [f"{link}, {case}: {way} saves {each:.0%}" for way, each in saved.items() if each > TARGET]
    show_verdict(missed)
    record("overlap", options.quick, about, passed=not missed, results=results)
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    main()
