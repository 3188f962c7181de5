"""Claim: the first use of a model takes 5 s of processor time, that of training 8 s; a help, or what Numba adds to it, 0.3 s.

The script starts new processes in turns, as a user would, with and without kernels in the cache, and measures the time that
processors work for them, which other programs affect less than the time from start to end. It runs every ``--help``, which must
take less than 0.3 s, and the commands that use a network, an n-gram model, and a mixture of both: less than 5 s without kernels;
with them `fflm generate` within 0.3 s of ``import numba``. They are compared with Python itself, with ``import numba``, with
that and reading a model, and with that and a first kernel, which takes Numba long to prepare. A training is timed from its start
to its first step, which must take less than 8 s without kernels; the time of compiling is the difference between an empty cache
and a full one. At the end the script says what takes most of the time, in seconds that pass.
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

HELP_SECONDS, GENERATE_SECONDS, FIRST_USE_SECONDS, FIRST_STEP_SECONDS = 0.3, 0.3, 5.0, 8.0

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
MODELS = {"": "stories.model", ", n-grams": "stories.ngram", ", mixture": "stories.mix"}
FIRST_USES = {
    f"fflm {command}{kind}": [command, "-m", model, *arguments]
    for command, arguments in {
        "next": ["--prefix", "The cat"],
        "generate": ["--prefix", "The cat", "--length", "20", "--seed", "1"],
        "score": ["text.txt"],
    }.items()
    for kind, model in MODELS.items()
}
COMMANDS = {
    "fflm info": ["info", "stories.model"],
    "fflm neighbours": ["neighbours", "-m", "stories.model", "cat"],
    **FIRST_USES,
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
        result = measure(Path(name), quick=options.quick)
    show(result)
    helps = [each["median"] for name, each in result["seconds"].items() if name.endswith("--help")]
    figures = {
        "the slowest help": (max(helps), HELP_SECONDS),
        "fflm generate beyond import numba": (result["generate_beyond_numba"], GENERATE_SECONDS),
        **{f"{name}, first use,": (each["median"], FIRST_USE_SECONDS) for name, each in result["first_use"].items()},
        "the first step of the first training": (result["first_step"]["empty"]["median"], FIRST_STEP_SECONDS),
    }
    print()
    for name, (median, limit) in figures.items():
        print(f"{name} takes {median:.2f} s, {'' if median < limit else 'NOT '}under {limit:g} s")
    missed = [f"{name} takes {median:.2f} s" for name, (median, limit) in figures.items() if median >= limit]
    record("start_up", options.quick, about, **result, passed=not missed, missed=missed)
    sys.exit(bool(missed))


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Time all programs in a folder; return quartiles of processor time in seconds, and the parts of the time of compiling."""
    (folder / "kernel.py").write_text(KERNEL, encoding="utf-8")
    (folder / "text.txt").write_text("The cat sat on the wall.\n", encoding="utf-8")
    # This trains the models that the commands use, and fills the cache.
    run([*FFLM, "train", str(STORIES), "--epochs", "1", "--preset", "quick", "-q"], folder)
    run([*FFLM, "ngram", "train", str(STORIES), "-o", "stories.ngram", "-q"], folder)
    run([*FFLM, "mix", "stories.model", "stories.ngram", "-o", "stories.mix", "-q"], folder)
    first_step(folder)
    turns = in_turns(contenders(folder), 3 if quick else 15, turn_seconds=0, clock=processor_time)
    ratio = statistics.median(a / b for a, b in zip(turns["fflm generate"], turns[FLOOR], strict=True))
    beyond = statistics.median(a - b for a, b in zip(turns["fflm generate"], turns["import numba"], strict=True))
    uses: dict[str, list[float]] = {name: [] for name in FIRST_USES}
    for _ in range(1 if quick else 3):
        for name, command in FIRST_USES.items():
            shutil.rmtree(folder / "empty", ignore_errors=True)
            uses[name].append(timed([*FFLM, *command], folder, "empty"))
    first: dict[str, list[float]] = {"empty": [], "full": []}
    for turn in range(2 if quick else 5):
        for kind in ("empty", "full") if turn % 2 else ("full", "empty"):
            first[kind].append(first_step(folder, kind))
    first["compiling"] = [empty - full for empty, full in zip(first["empty"], first["full"], strict=True)]
    shutil.rmtree(folder / "empty")
    return {
        "seconds": {name: quartiles(times) for name, times in turns.items()},
        "generate_relative_to_floor": ratio,
        "generate_beyond_numba": beyond,
        "first_use": {name: quartiles(times) for name, times in uses.items()},
        "first_step": {name: quartiles(times) for name, times in first.items()},
        "compiling": json.loads(run([sys.executable, __file__, "--parts"], folder, "parts")),
    }


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    print("seconds of processor time from start to end")
    show_rows(result["seconds"])
    print(f"fflm generate takes {result['generate_relative_to_floor']:.2f} times as long as to {FLOOR}\n")
    print("the same without kernels in the cache")
    show_rows(result["first_use"])
    print("fflm train, seconds of processor time to its first step")
    show_rows(result["first_step"])
    print("seconds of compiling, by part and by kernel (in one run, which the measurement slows down)")
    for name, figure in (part for kind in result["compiling"].values() for part in kind.items()):
        print(f"  {name:55} {figure:7.2f}")


def show_rows(rows: dict[str, dict[str, float]]) -> None:
    """Print medians and quartiles."""
    for name, figures in rows.items():
        print(f"  {name:55} {figures['median']:7.3f} ({figures['low']:.3f} to {figures['high']:.3f})")


def contenders(folder: Path) -> dict[str, Any]:
    """Return the functions that are timed with a full cache; each starts a process and waits for its end."""
    programs = {name: [sys.executable, "-c", program] for name, program in PROGRAMS.items()}
    commands = {name: [*FFLM, *arguments] for name, arguments in COMMANDS.items()}
    helps = {" ".join(("fflm", *path, "--help")): [*FFLM, *path, "--help"] for path in paths(fflm)}
    return {name: functools.partial(run, command, folder) for name, command in {**programs, **helps, **commands}.items()}


def paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the names of a command and of all its subcommands, each as the words after ``fflm``."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below
            yield from paths(below, (*path, name))


def environment(folder: Path, cache: str) -> dict[str, str]:
    """Return the environment of a process that keeps its kernels in ``folder / cache`` and imports this fflm.

    It also keeps bytecode in the folder, because installed packages have bytecode, and a checkout need not have any.
    """
    own = {"NUMBA_CACHE_DIR": str(folder / cache), "PYTHONPATH": str(Path(FFLM[-1]).parent), "PYTHONDONTWRITEBYTECODE": ""}
    return {**os.environ, **own, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def run(command: list[str], folder: Path, cache: str = "full") -> str:
    """Run a command in a folder and return what it prints."""
    return subprocess.run(
        command, cwd=folder, env=environment(folder, cache), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def processor_time() -> float:
    """Return how long processors have worked for the processes that this one has started and that have ended, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def timed(command: list[str], folder: Path, cache: str) -> float:
    """Return how long processors work for a command, in seconds."""
    started = processor_time()
    run(command, folder, cache)
    return processor_time() - started


def first_step(folder: Path, cache: str = "full") -> float:
    """Start a training; return the seconds of processor time until its first step. The cache ``"empty"`` is deleted before."""
    if cache == "empty":
        shutil.rmtree(folder / cache, ignore_errors=True)
    command = [*FFLM, "train", str(STORIES), "-o", "first.model", "--overwrite"]
    started = processor_time()
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder, cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        begun = any(re.match("epoch", line) for line in process.stderr)  # the table's head is printed when training starts
        process.kill()
    seconds = processor_time() - started
    if not begun:
        sys.exit("fflm train failed")
    return seconds


class Stopwatch(event.Listener):
    """Sums the seconds in which each of Numba's events was the innermost one."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self._open: list[tuple[str, str | None]] = []
        self._since = perf_counter()

    def on_start(self, event: event.Event) -> None:
        """Note that an event has started."""
        self._add()
        self._open.append(_name(event))

    def on_end(self, event: event.Event | None) -> None:
        """Note that the innermost event has ended."""
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
    """Make a training's first step with an empty cache; return the seconds of each part of compiling, and of each kernel."""
    training = start_session([STORIES], Path("parts.model"))
    stopwatch = Stopwatch()
    for kind in ("numba:compile", "numba:run_pass", "numba:llvm_lock"):
        event.register(kind, stopwatch)
    next(training.events())
    stopwatch.on_end(None)
    return {"parts": dict(stopwatch.parts.most_common()), "kernels": dict(stopwatch.kernels.most_common())}


if __name__ == "__main__":
    main()
