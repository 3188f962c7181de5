"""Claim: two processes have the losses of one, and with a sampled loss they send less than twice as much for ten times the words.

The script trains the same networks in one process with one thread, in one process with two threads, and in two processes over
MPI with one thread each, in turns. It measures the time of a step, what a process sends in it, and the memory of a process. It
also measures how long the sum of an array over two processes takes by its size, from which follow the cost of a message and
that of a byte. It needs the extra ``mpi``.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
from bengio import WINDOW, random_text
from common import machine, parse, quartiles, record, resident, show_verdict

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.parallel.communicator import Communicator
from fflm.parallel.world import world
from fflm.training.events import Step
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

MPIEXEC = Path(sysconfig.get_path("scripts")) / "mpiexec"

BATCH = 512

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "exact loss, 10,000 words": (10_000, {"loss": "exact"}),
    "sampled loss, 10,000 words": (10_000, {"loss": "sampled"}),
    "sampled loss, 100,000 words": (100_000, {"loss": "sampled"}),
}
"""The vocabulary and the settings of each network."""

WAYS = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes": (2, 1)}
"""The numbers of processes, and of threads of each one."""

LOSSES = 100
"""Steps of which the losses are compared."""

ROUNDING = 1e-4
"""Relative difference that losses in float32 may have after some steps."""

SIZES = (1, 1_000, 10_000, 100_000, 1_000_000, 4_000_000)
"""Numbers (float32) that are summed over two processes."""


def trainer(case: str, threads: int, communicator: Communicator) -> Trainer:
    """Return a training run on random text."""
    vocabulary, fields = CASES[case]
    config = NetworkConfig(vocabulary, WINDOW, 128, (256,), averages=(), dropout=0.2, embedding_dropout=0.1)
    settings = TrainingSettings(epochs=1000, batch_size=BATCH, samples=512, rate=1e-3, schedule="constant", patience=0, **fields)
    network, text = Network(config, CpuBackend(threads)), random_text(vocabulary, 200_000, 1)
    return Trainer(network, Parameters.random(config, 1), text, None, settings, communicator)


def time_steps(case: str, threads: int, losses: int, steps: int) -> dict[str, Any]:
    """Train, and return the losses of the first steps, and the times, sent bytes and memory of those that follow."""
    communicator, times = world(), []
    run = trainer(case, threads, communicator)
    events = (event for event in run.run() if isinstance(event, Step))
    found = [next(events).loss for _ in range(losses)]
    sent = communicator.bytes_sent
    for _ in range(steps):
        communicator.barrier()
        started = time.perf_counter()
        next(events)
        times.append(time.perf_counter() - started)
    return {"losses": found, "times": times, "bytes": (communicator.bytes_sent - sent) / steps, "memory": resident()[1]}


def time_messages(rounds: int) -> dict[int, float]:
    """Return the median time in seconds of a sum over all processes, by the size of the array."""
    communicator, result = world(), {}
    for size in SIZES:
        array, times = np.ones(size, np.float32), []
        for _ in range(rounds):
            communicator.barrier()
            started = time.perf_counter()
            communicator.sum_arrays([array])
            times.append(time.perf_counter() - started)
        result[size] = statistics.median(times)
    return result


def in_processes(size: int, *arguments: object) -> Any:
    """Run a function of this script in several processes; return what the first one prints."""
    launcher = [str(MPIEXEC), "-n", str(size)] if size > 1 else []
    command = [*launcher, sys.executable, __file__, "--work", *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True)
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
            size, threads = WAYS[way]
            found[way].append(in_processes(size, "steps", case, threads, losses, steps))
    return {
        way: {
            "seconds": quartiles([each for turn in turns for each in turn["times"]]),
            "fastest": min(each for turn in turns for each in turn["times"]),
            "bytes": turns[0]["bytes"],
            "memory": max(turn["memory"] for turn in turns),
            "losses": turns[0]["losses"],
        }
        for way, turns in found.items()
    }


def fit(times: dict[int, float]) -> tuple[float, float]:
    """Return the seconds of a sum of nothing, and of a sent byte: the line through the smallest and the largest array."""
    small, large = min(times), max(times)
    byte = (times[large] - times[small]) / (4 * (large - small))  # in two processes, each sends as many bytes as the array has
    return times[small], byte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.work:
        return work(*options.work)
    about = machine()
    rounds, losses, steps = (1, 5, 3) if options.quick else (3, LOSSES, 50)
    results, missed = {}, []
    for case in CASES:
        results[case] = ways = compare(case, rounds, losses, steps)
        expected = ways["one process, one thread"]["losses"]
        print(f"\n{case}, {BATCH} rows per batch")
        for way, result in ways.items():
            seconds = result["seconds"]
            print(
                f"  {way:24} {seconds['median'] * 1e3:7.1f} ms per step (fastest {result['fastest'] * 1e3:.1f}), "
                f"{result['bytes'] / 1e6:6.2f} MB sent, {result['memory'] / 1e6:5.0f} MB of memory"
            )
            if not np.allclose(result.pop("losses"), expected, rtol=ROUNDING, atol=0):
                missed.append(f"{case}, {way}: other losses")
    times = {int(size): seconds for size, seconds in in_processes(2, "messages", 20 if options.quick else 200).items()}
    message, byte = fit(times)
    print(f"\na sum over two processes takes {message * 1e6:.0f} microseconds, and a second per {1 / byte / 1e9:.2f} GB sent")
    small, large = (results[f"sampled loss, {size} words"]["two processes"]["bytes"] for size in ("10,000", "100,000"))
    if large > 2 * small:
        missed.append(f"with 100,000 words {large / small:.2f} times as much is sent as with 10,000")
    show_verdict(missed)
    record("distributed", options.quick, about, cases=results, sums=times, message_seconds=message, byte_seconds=byte)
    return None


if __name__ == "__main__":
    main()
