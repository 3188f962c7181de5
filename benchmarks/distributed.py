"""Claim: two processes have the losses of one, and with a sampled loss they send less than twice as much for ten times the words.

The script trains the same networks in one process with one thread, in one process with two threads, and in two processes over
MPI with one thread each, in turns. The processes divide the rows of batches or, in a case of its own, the vocabulary. It
measures the time of a step, what a process sends in it, and the memory of a process. It also measures how long the sum of an
array over two processes takes by its size, from which follow the cost of a message and that of a byte: between processes of
this machine, and, for root on Linux, between two hosts in network namespaces with links of several rates (`two_hosts`). It
needs the extra ``mpi``.

From these, and from steps of half the rows, follows a model of the time of a step on n hosts:

    divided / n + whole + messages * (n - 1) * message + bytes * 2 (n - 1) / n * byte

If processes divide the rows, ``divided`` is the time that grows with the rows of a batch, and ``whole`` the one that does not,
that of the update. If they divide the vocabulary, ``divided`` is the share of the output layer in all weights, and ``whole``
the rest. ``messages`` and ``bytes`` are those of two processes. The model is compared with the steps of two processes on this
machine and over the links. It then predicts steps of up to 1,024 processes, each on a host like this machine with one thread,
over faster links: a byte takes the time that it takes over a link without a limit, and that of the link's rate; NVLink is taken
for a link of 450 GB/s, whose other costs are those between processes of one machine. For an exact loss, the work of the output
layer grows with the vocabulary, and so do the bytes, unless the vocabulary is divided.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bengio import WINDOW, random_text
from common import machine, parse, quartiles, record, resident, show_verdict
from two_hosts import two_hosts, why_no_hosts

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.network.partition import Partition
from fflm.parallel.communicator import Communicator
from fflm.parallel.world import world
from fflm.training.events import Step
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

MPIEXEC = Path(sysconfig.get_path("scripts")) / "mpiexec"

BATCH = 512

EXACT, DIVIDED = "exact loss, 10,000 words", "exact loss, 10,000 words, divided"

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    EXACT: (10_000, {"loss": "exact"}),
    DIVIDED: (10_000, {"loss": "exact"}),
    "sampled loss, 10,000 words": (10_000, {"loss": "sampled"}),
    "sampled loss, 100,000 words": (100_000, {"loss": "sampled"}),
    "sampled loss, 1,000,000 words": (1_000_000, {"loss": "sampled"}),
}
"""The vocabulary and the settings of each network. With an exact loss, the output layer has weights of its own."""

ONE, HALF, TWO = "one process, one thread", "one process, one thread, half the rows", "two processes"

WAYS = {ONE: (1, 1, BATCH), HALF: (1, 1, BATCH // 2), "one process, two threads": (1, 2, BATCH), TWO: (2, 1, BATCH)}
"""The numbers of processes, of threads of each one, and of rows in a batch."""

LOSSES = 100
"""Steps of which the losses are compared."""

ROUNDING = 1e-4
"""Relative difference that losses in float32 may have after some steps."""

SIZES = (1, 1_000, 10_000, 100_000, 1_000_000, 4_000_000)
"""Numbers (float32) that are summed over two processes."""

RATES = {"two hosts": None, "two hosts, 1 Gbit/s": 1e9, "two hosts, 100 Mbit/s": 1e8}
"""The links between hosts in network namespaces, and their rates in bits per second."""

BANDWIDTHS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 1e10 / 8, "100 Gbit/s": 1e11 / 8, "NVLink": 450e9}
"""Bytes per second of the links for which steps are predicted."""

PROCESSES = tuple(2**power for power in range(11))


@dataclass(frozen=True)
class StepCosts:
    """What a step costs: seconds that are divided and that are not, and the operations and bytes of each of two processes."""

    divided: float
    whole: float
    messages: float
    bytes: float

    def times(self, factor: float, vocabulary: bool) -> "StepCosts":
        """Return the costs of an exact loss over so many times the words, which the processes divide, or not."""
        common = 1 if vocabulary else factor
        return StepCosts(self.divided * factor, self.whole * common, self.messages, self.bytes * common)


@dataclass(frozen=True)
class Link:
    """What communication costs: seconds per operation with one other process, and per byte that a process sends."""

    message: float
    byte: float

    def step(self, costs: StepCosts, n: int) -> float:
        """Return the seconds of a step in n processes."""
        traffic = costs.messages * (n - 1) * self.message + costs.bytes * 2 * (n - 1) / n * self.byte
        return costs.divided / n + costs.whole + traffic


def network(case: str) -> NetworkConfig:
    """Return the network of a case."""
    vocabulary, fields = CASES[case]
    tied = fields["loss"] != "exact"
    return NetworkConfig(vocabulary, WINDOW, 128, (256,), averages=(), tied=tied, dropout=0.2, embedding_dropout=0.1)


def trainer(case: str, threads: int, batch: int, communicator: Communicator) -> Trainer:
    """Return a training run on random text."""
    (vocabulary, fields), config = CASES[case], network(case)
    partition = Partition(config, communicator) if case == DIVIDED and communicator.size > 1 else None
    settings = TrainingSettings(epochs=1000, batch_size=batch, samples=512, rate=1e-3, schedule="constant", patience=0, **fields)
    parameters, text = Parameters.random(config, 1), random_text(vocabulary, 200_000, 1)
    if partition:
        parameters = partition.own_part(parameters)
    return Trainer(Network(config, CpuBackend(threads), partition), parameters, text, None, settings, communicator)


def time_steps(case: str, threads: int, batch: int, losses: int, steps: int) -> dict[str, Any]:
    """Train, and return the losses of the first steps, and the times, messages, sent bytes and memory of those that follow."""
    communicator, times = world(), []
    run = trainer(case, threads, batch, communicator)
    events = (event for event in run.run() if isinstance(event, Step))
    found = [next(events).loss for _ in range(losses)]
    before = np.array([communicator.messages, communicator.bytes_sent])
    for _ in range(steps):
        communicator.barrier()
        started = time.perf_counter()
        next(events)
        times.append(time.perf_counter() - started)
    messages, sent = ((communicator.messages, communicator.bytes_sent) - before) / steps
    messages -= communicator.size > 1  # the barrier
    return {"losses": found, "times": times, "messages": messages, "bytes": sent, "memory": resident()[1]}


def time_messages(rounds: int) -> dict[int, float]:
    """Return the median time in seconds of a sum over all processes, by the size of the array."""
    communicator, result = world(), {}
    for size in SIZES:
        array, times = np.full(size, 0, np.float32), []
        for _ in range(rounds):
            communicator.barrier()
            started = time.perf_counter()
            communicator.sum_arrays([array])
            times.append(time.perf_counter() - started)
        result[size] = statistics.median(times)
    return result


def in_processes(size: int, *arguments: object, launcher: Sequence[str] = (str(MPIEXEC),), script: str = __file__) -> Any:
    """Run a function of this script, or of another one, in several processes; return what the first one prints."""
    prefix = [*launcher, "-n", str(size)] if size > 1 else []
    process = subprocess.run(
        [*prefix, sys.executable, script, "--work", *map(str, arguments)], stdout=subprocess.PIPE, check=True
    )
    return json.loads(process.stdout)


def work(name: str, *arguments: str) -> None:
    """Do what `in_processes` asks for."""
    result: Any
    if name == "steps":
        case, *numbers = arguments
        result = time_steps(case, *map(int, numbers))
    else:
        result = time_messages(int(arguments[0]))
    if world().first:
        print(json.dumps(result))


def compare(case: str, rounds: int, losses: int, steps: int) -> dict[str, dict[str, Any]]:
    """Measure a case in all ways, in turns."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in random.sample(list(WAYS), len(WAYS)):
            size, threads, batch = WAYS[way]
            found[way].append(in_processes(size, "steps", case, threads, batch, losses, steps))
    return {
        way: {
            "seconds": quartiles([each for turn in turns for each in turn["times"]]),
            "fastest": min(each for turn in turns for each in turn["times"]),
            **{name: turns[0][name] for name in ("messages", "bytes", "losses")},
            "memory": max(turn["memory"] for turn in turns),
        }
        for way, turns in found.items()
    }


def fit(times: dict[int, float]) -> Link:
    """Return the cost of an operation, two of which a sum of nothing takes, and of a byte: the line to the largest array."""
    small, large = min(times), max(times)
    byte = (times[large] - times[small]) / (4 * (large - small))  # in two processes, each sends as many bytes as the array has
    return Link(times[small] / 2, byte)


def costs(case: str, ways: dict[str, dict[str, Any]]) -> StepCosts:
    """Return the costs of a step, given the measurements of a case."""
    step, half = (ways[way]["seconds"]["median"] for way in (ONE, HALF))
    divided = min(step, 2 * (step - half))
    if case == DIVIDED:
        output, hidden = (rows * 256 for rows in (CASES[case][0], WINDOW * 128))
        divided = step * output / (output + hidden)
    return StepCosts(divided, step - divided, ways[TWO]["messages"], ways[TWO]["bytes"])


def measure_links(quick: bool, steps: int) -> tuple[dict[str, Link], dict[str, dict[str, float]]]:
    """Return the costs of this machine's links, and by link and case the median seconds of a step of two processes."""
    found = {"this machine": fit(_times(quick, (str(MPIEXEC),)))}
    seconds: dict[str, dict[str, float]] = {}
    if reason := why_no_hosts() or ("--quick" if quick else ""):
        print(f"links between hosts are skipped: {reason}")
        return found, seconds
    for name, rate in RATES.items():
        with two_hosts(rate, MPIEXEC) as launcher:
            found[name] = fit(_times(True, launcher))
            seconds[name] = {
                case: statistics.median(in_processes(2, "steps", case, 1, BATCH, 5, steps, launcher=launcher)["times"])
                for case in CASES
            }
    return found, seconds


def _times(few: bool, launcher: Sequence[str]) -> dict[int, float]:
    """Return the times of sums over two processes, by size."""
    found = in_processes(2, "messages", 20 if few else 200, launcher=launcher)
    return {int(size): seconds for size, seconds in found.items()}


def predict(steps: dict[str, StepCosts], links: dict[str, Link]) -> dict[str, dict[str, list[float]]]:
    """Print and return the predicted seconds of a step, by network and link, for each number of `PROCESSES`."""
    own, networks = links["this machine"], dict(steps)
    for case in (EXACT, DIVIDED):
        for words in (100_000, 1_000_000):
            networks[case.replace("10,000", f"{words:,}")] = steps[case].times(words / 10_000, case == DIVIDED)
    hosts = links.get("two hosts", own)
    result: dict[str, dict[str, list[float]]] = {}
    for case, step in networks.items():
        print(f"\n{case}: predicted ms per step in {', '.join(map(str, PROCESSES))} processes")
        result[case] = {}
        for name, bandwidth in BANDWIDTHS.items():
            base = own if name == "NVLink" else hosts
            link = Link(base.message, 1 / bandwidth + (0 if name == "NVLink" else base.byte))
            times = [link.step(step, n) for n in PROCESSES]
            best = int(np.argmin(times))
            result[case][name] = times
            print(
                f"  {name:10} {' '.join(f'{each * 1e3:9,.1f}' for each in times)}   "
                f"fastest in {PROCESSES[best]:,} processes, {times[0] / times[best]:.1f} times as fast as in one"
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.work:
        return work(*options.work)
    about = machine()
    rounds, losses, steps = (1, 5, 3) if options.quick else (3, LOSSES, 50)
    if options.quick:
        del CASES["sampled loss, 1,000,000 words"]
    results, missed = {}, []
    for case in CASES:
        results[case] = ways = compare(case, rounds, losses, steps)
        expected = ways[ONE]["losses"]
        print(f"\n{case}, {BATCH} rows per batch")
        for way, result in ways.items():
            seconds = result["seconds"]
            print(
                f"  {way:38} {seconds['median'] * 1e3:7.1f} ms per step (fastest {result['fastest'] * 1e3:.1f}), "
                f"{result['bytes'] / 1e6:6.2f} MB sent, {result['memory'] / 1e6:5.0f} MB of memory"
            )
            if not np.allclose(result.pop("losses"), expected, rtol=ROUNDING, atol=0) and way != HALF:
                missed.append(f"{case}, {way}: other losses")
    links, over_links = measure_links(options.quick, steps)
    print()
    for name, link in links.items():
        rate = f"a second per {1 / link.byte / 1e9:.3f} GB sent"
        print(f"{name}: an operation takes {link.message * 1e6:.0f} microseconds, and {rate}")
    step_costs = {case: costs(case, ways) for case, ways in results.items()}
    over_links["this machine"] = {case: ways[TWO]["seconds"]["median"] for case, ways in results.items()}
    print("\nms per step of two processes: measured, and by the model")
    checks = {
        name: {case: (seconds, links[name].step(step_costs[case], 2)) for case, seconds in cases.items()}
        for name, cases in over_links.items()
    }
    for name, cases in checks.items():
        for case, (measured, modeled) in cases.items():
            print(f"  {name:22} {case:30} {measured * 1e3:9.1f} {modeled * 1e3:9.1f}")
    predicted = predict(step_costs, links)
    limited = {name: rate for name, rate in RATES.items() if rate and name in links}
    missed += [f"{name}: bytes took another way" for name, rate in limited.items() if links[name].byte < 7 / rate]
    small, large = (results[f"sampled loss, {size} words"][TWO]["bytes"] for size in ("10,000", "100,000"))
    if large > 2 * small:
        missed.append(f"with 100,000 words {large / small:.2f} times as much is sent as with 10,000")
    show_verdict(missed)
    about_links = {name: {"message_seconds": link.message, "byte_seconds": link.byte} for name, link in links.items()}
    figures = {"cases": results, "links": about_links, "checks": checks, "predicted": predicted}
    record("distributed", options.quick, about, passed=not missed, **figures)
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    main()
