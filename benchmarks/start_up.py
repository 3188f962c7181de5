"""Claim: the help of every command appears in less than 0.3 s, and a first training compiles for less than 15 s.

The script starts new processes in turns, as a user would, with and without kernels in the cache: every
``--help``, and the commands that use a model. It compares them with Python itself, with ``import numba``, with that and
reading a model, and with that and a first kernel, which takes Numba long to prepare. A training is timed from its start to
its first step; the time of compiling is the difference between an empty cache and a full one. At the end the script says
what takes most of the time.
"""

import argparse
import functools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from common import FFLM, STORIES, in_turns, machine, parse, quartiles, record
from numba.core import event

from fflm.cli import main as fflm
from fflm.models.neural.train import start_session

HELP_SECONDS, COMPILE_SECONDS = 0.3, 15.0

KERNEL = """
import numba
import numpy

@numba.njit(cache=True, parallel=True)
def fill(array):
    for i in numba.prange(len(array)):
        array[i] = i
"""

READ = "from fflm.models.neural.model import NeuralModel; NeuralModel.load('stories.model')"

PROGRAMS = {
    "python -c pass": "pass",
    "import numpy": "import numpy",
    "import numba": "import numba",
    "import numba, read the model": f"import numba; {READ}",
    "import numba, read the model, a cached kernel": f"import kernel; {READ}; kernel.fill(kernel.numpy.empty(9))",
}
COMMANDS = {
    "fflm info": ["info", "stories.model"],
    "fflm neighbours": ["neighbours", "-m", "stories.model", "cat"],
    "fflm next": ["next", "-m", "stories.model", "--prefix", "The cat"],
    "fflm generate": ["generate", "-m", "stories.model", "--prefix", "The cat", "--length", "20", "--seed", "1"],
    "fflm score": ["score", "-m", "stories.model", "text.txt"],
}
FLOOR = "import numba, read the model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.parts:
        print(json.dumps(compiling()))
        return
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernel.py").write_text(KERNEL, encoding="utf-8")
        (folder / "text.txt").write_text("The cat sat on the wall.\n", encoding="utf-8")
        run(
            [*FFLM, "train", str(STORIES), "--epochs", "1", "--preset", "quick", "-q"], folder
        )  # makes the model, fills the cache
        first_step(folder)
        turns = in_turns(contenders(folder), 3 if options.quick else 15, turn_seconds=0)
        first: dict[str, list[float]] = {"empty": [], "full": []}
        for turn in range(2 if options.quick else 5):
            for kind in ("empty", "full") if turn % 2 else ("full", "empty"):
                first[kind].append(first_step(folder, kind))
        first["compiling"] = [empty - full for empty, full in zip(first["empty"], first["full"], strict=True)]
        shutil.rmtree(folder / "empty")
        generate = timed([*FFLM, *COMMANDS["fflm generate"]], folder, "empty")
        parts = json.loads(run([sys.executable, __file__, "--parts"], folder, "parts"))

    seconds = {name: quartiles(times) for name, times in turns.items()}
    first_steps = {name: quartiles(times) for name, times in first.items()}
    print("seconds from start to end")
    show(seconds)
    ratio = statistics.median(a / b for a, b in zip(turns["fflm generate"], turns[FLOOR], strict=True))
    print(f"fflm generate takes {ratio:.2f} times as long as to {FLOOR}; without kernels in the cache {generate:.1f} s\n")
    print("fflm train, seconds to its first step")
    show(first_steps)
    print("compiling, by part and by kernel (one run, slowed by being watched)")
    for name, figure in (part for kind in parts.values() for part in kind.items()):
        print(f"  {name:55} {figure:7.2f}")
    slowest = max((name for name in seconds if name.endswith("--help")), key=lambda name: seconds[name]["median"])
    figures = {
        slowest: (seconds[slowest]["median"], HELP_SECONDS),
        "compiling": (first_steps["compiling"]["median"], COMPILE_SECONDS),
    }
    print()
    for name, (median, limit) in figures.items():
        print(f"{name} takes {median:.2f} s, {'' if median < limit else 'NOT '}under {limit:g} s")
    passed = all(median < limit for median, limit in figures.values())
    record(
        "start_up",
        options.quick,
        about,
        seconds=seconds,
        generate_relative_to_floor=ratio,
        generate_with_empty_cache=generate,
        first_step=first_steps,
        compiling=parts,
        passed=passed,
    )
    sys.exit(not passed)


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print medians and quartiles."""
    for name, figures in rows.items():
        print(f"  {name:55} {figures['median']:7.3f} ({figures['low']:.3f} to {figures['high']:.3f})")


def contenders(folder: Path) -> dict[str, Any]:
    """Return what is timed with a full cache: functions that start a process and wait for its end."""
    programs = {name: [sys.executable, "-c", program] for name, program in PROGRAMS.items()}
    commands = {name: [*FFLM, *arguments] for name, arguments in COMMANDS.items()}
    helps = {" ".join(("fflm", *path, "--help")): [*FFLM, *path, "--help"] for path in paths(fflm)}
    return {name: functools.partial(run, command, folder) for name, command in {**programs, **helps, **commands}.items()}


def paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words that name a command, and those of all below it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below
            yield from paths(below, (*path, name))


def environment(folder: Path, cache: str) -> dict[str, str]:
    """Return the environment of a process that keeps its kernels in ``folder / cache``, and finds our fflm."""
    return {**os.environ, "NUMBA_CACHE_DIR": str(folder / cache), "PYTHONPATH": str(Path(FFLM[-1]).parent)}


def run(command: list[str], folder: Path, cache: str = "full") -> str:
    """Run a command in a folder and return what it prints."""
    return subprocess.run(
        command, cwd=folder, env=environment(folder, cache), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def timed(command: list[str], folder: Path, cache: str) -> float:
    """Return how long a command takes, in seconds."""
    started = perf_counter()
    run(command, folder, cache)
    return perf_counter() - started


def first_step(folder: Path, cache: str = "full") -> float:
    """Begin a training and return the seconds until it makes its first step; ``"empty"`` caches are emptied before."""
    if cache == "empty":
        shutil.rmtree(folder / cache, ignore_errors=True)
    command = [*FFLM, "train", str(STORIES), "-o", "first.model", "--overwrite"]
    started = perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder, cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        started = any(re.match("epoch", line) for line in process.stderr)  # the head of the table stands where training begins
        seconds = perf_counter() - started
        process.kill()
    if not started:
        sys.exit("fflm train failed")
    return seconds


class Stopwatch(event.Listener):
    """Adds up the seconds in which each of Numba's events was the innermost one."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self._open: list[tuple[str, str | None]] = []
        self._since = perf_counter()

    def on_start(self, event: event.Event) -> None:
        """Name what begins."""
        self._add()
        self._open.append(_name(event))

    def on_end(self, event: event.Event | None) -> None:
        """Go back to what is around it."""
        self._add()
        if event:
            self._open.pop()

    def _add(self) -> None:
        now = perf_counter()
        self.parts[self._open[-1][0] if self._open else "cache, calls"] += now - self._since
        if kernel := next((kernel for _, kernel in self._open if kernel), None):
            self.kernels[kernel] += now - self._since
        self._since = now


def _name(event: event.Event) -> tuple[str, str | None]:
    """Return which part of compiling an event belongs to, and which kernel it compiles."""
    if event.kind == "numba:llvm_lock":
        return "LLVM", None
    if event.kind == "numba:compile":
        return "other passes", event.data["dispatcher"].py_func.__name__
    name = event.data["name"]
    words = {"parfor": "parallel loops", "type_inference": "types", "lowering": "lowering"}
    return next((part for word, part in words.items() if word in name.split()[0]), "other passes"), None


def compiling() -> dict[str, dict[str, float]]:
    """Make a training's first step with an empty cache; return the seconds of each part of the work, and of each kernel."""
    training = start_session([STORIES], Path("parts.model"))
    stopwatch = Stopwatch()
    for kind in ("numba:compile", "numba:run_pass", "numba:llvm_lock"):
        event.register(kind, stopwatch)
    next(training.events())
    stopwatch.on_end(None)
    return {"parts": dict(stopwatch.parts.most_common()), "kernels": dict(stopwatch.kernels.most_common())}


if __name__ == "__main__":
    main()
