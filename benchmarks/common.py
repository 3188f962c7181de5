"""What the benchmarks share: a description of the machine, timing in turns, running commands, and recording results."""

import argparse
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numba

from fflm import bench as speed
from fflm.files import write_json
from fflm.text.corpus import Corpus
from fflm.text.holdout import Count
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STORIES = ROOT / "corpora" / "stories.txt"
FFLM = [sys.executable, str(ROOT / "cli.py")]
"""The command ``fflm`` of this checkout, run by this Python."""

SIZES = {  # number of words in the vocabulary, and of tokens in each part
    "Brown": (17_905, {"train": 800_000, "valid": 200_000, "test": 161_192}),
    "WikiText-2": (33_278, {"train": 2_088_628, "valid": 217_646, "test": 245_569}),
}

MEMORY_STEPS = 4
"""The number of steps in which memory is measured; from the second step on, all memory is allocated."""

TUNING = ("MALLOC_", "MKL_", "NUMBA_OPT", "OMP_", "OPENBLAS_")
"""Prefixes of the environment variables that change how fast the same code runs."""


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the option ``--quick`` and parse the command line."""
    parser.add_argument("--quick", action="store_true", help="only test whether the script works; the result is not recorded")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Describe the machine, the libraries and the settings that a figure depends on.

    Call this first, because it also records how busy the machine is.
    """
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"warning: the machine is busy (load {load:.1f}), speeds will be too low", file=sys.stderr)
    return {
        **speed.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "load_before": round(load, 2),
        **speed.versions(),
        "torch": _version("torch"),
        "numba_threads": numba.config.NUMBA_NUM_THREADS,
        "environment": {name: value for name, value in os.environ.items() if name.startswith(TUNING)},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def record(name: str, quick: bool, about: Mapping[str, Any], **result: Any) -> None:
    """Write results/NAME.json: the machine, then the result. A quick run is not recorded."""
    if quick:
        print("quick run: not recorded")
        return
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "machine": about, **result})
    print(f"recorded in {path.relative_to(ROOT)}")


@dataclass(frozen=True)
class Interval:
    """A median, and the interval in which the true one is; formatted as ``f"{interval:.1%}"``."""

    median: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def median_interval(values: Sequence[float], error: float = 0.001) -> Interval:
    """Return the median of independent measurements and the margin of its noise, whatever their distribution.

    The true median is outside of the interval with at most the probability ``error``, which is small because scripts make many
    comparisons: each measurement is below it with probability 1/2, so the interval is between two of the sorted measurements.
    With fewer than eleven, it has no bounds.
    """
    ordered, count = sorted(map(float, values)), len(values)
    rank = tail = 0
    while (tail := tail + math.comb(count, rank)) <= 2**count // round(2 / error):
        rank += 1
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (-math.inf, math.inf)
    return Interval(statistics.median(ordered), low, high)


def show_verdict(missed: Sequence[str], undecided: Sequence[str] = ()) -> bool | None:
    """Print and return whether a claim holds, given the parts of it that do not, and those that the noise leaves open.

    There is no verdict, and the result is None, if a part is open and none is missed.
    """
    if missed:
        print(f"The claim does NOT hold: {'; '.join(missed)}")
        return False
    if undecided:
        print(f"No verdict, as the noise is larger than the distance to the target: {'; '.join(undecided)}")
        return None
    print("The claim holds.")
    return True


def brown(text: Path, folder: Path, valid: int = 200_000, test: int = 161_192) -> Corpus:
    """Return Brown as Bengio et al. (2003) read it; it is tokenized into a folder, unless the folder has it already.

    800,000 tokens are for training, 200,000 for validation and the remaining 161,192 for the test. The text is one stream without
    line ends, and the vocabulary has the words that occur more than 3 times in the whole corpus.
    """
    if not (folder / "corpus.json").is_file():
        settings, rule = TextSettings(Tokenizer("space"), line_ends=False), VocabularyRule(4, source="all")
        tokenize(TextSource([text], settings, rule, Count(valid), Count(test)), folder)
    return Corpus.open(folder)


def wikitext(source: Path, folder: Path) -> Corpus:
    """Return WikiText-2 as published; it is tokenized into a folder, unless the folder has it already.

    The text is one stream whose line ends are counted, and the vocabulary has all words of the training part.
    """
    if not (folder / "corpus.json").is_file():
        settings, rule = TextSettings(Tokenizer("space")), VocabularyRule(1)
        tokenize(TextSource([source / "train.txt"], settings, rule, [source / "valid.txt"], [source / "test.txt"]), folder)
    return Corpus.open(folder)


def check_sizes(name: str, corpus: Corpus) -> None:
    """Exit unless a corpus has the `SIZES` that it should have."""
    found = len(corpus.vocabulary), {part: each.tokens for part, each in corpus.parts.items()}
    if found != SIZES[name]:
        sys.exit(f"{name} should have {SIZES[name]} words and tokens, not {found}: download it with `fflm corpus get`")


LONG = 0.3
"""Number of seconds from which a call takes so long that what was called before it hardly matters."""


def in_turns(
    steps: Mapping[Any, Callable[[], Any]],
    rounds: int,
    turn_seconds: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
    """Time several functions in turns, so that other load on the machine affects all of them.

    Parameters
    ----------
    steps
        The functions, by their names.
    rounds
        The number of turns of each function. The order is random in every round.
    turn_seconds
        The minimum duration of a turn. It begins with a call that is not timed, unless calls take longer than `LONG`.
    clock
        The time in seconds; `time.process_time` for work on one core, which other load then affects less.

    Returns
    -------
    dict
        For each function, the seconds per call in each turn.
    """
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            time.sleep(0.05)  # the threads of the previous function spin for a while before they sleep
            if not times[name] or times[name][-1] < LONG:
                steps[name]()  # so that memory and caches are its own again
            count, started = 0, clock()
            while (elapsed := clock() - started) < turn_seconds or not count:
                steps[name]()
                count += 1
            times[name].append(elapsed / count)
    return times


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the lower and upper quartile; with enough values, also the margin of noise (`median_interval`)."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    margin = median_interval(values)
    bounded = {"from": margin.low, "to": margin.high} if math.isfinite(margin.low) else {}
    return {"median": median, "low": low, "high": high, **bounded}


def shortfalls(
    rows: Mapping[str, Mapping[str, float]], least: float = -math.inf, most: float = math.inf
) -> tuple[list[str], list[str]]:
    """Return which medians miss a target, and of which the margin of noise contains it, for `show_verdict`.

    Parameters
    ----------
    rows
        The results of `quartiles`, by their names.
    least, most
        The target: what the medians must not be below, or not above.
    """
    missed, undecided = [], []
    for name, row in rows.items():
        low, high = row.get("from", -math.inf), row.get("to", math.inf)
        if low < least or high > most:
            target = f"at least {least:g}" if low < least else f"at most {most:g}"
            part = f"{name}: {row['median']:.2f} ({low:.2f} to {high:.2f}) instead of {target}"
            (missed if high < least or low > most else undecided).append(part)
    return missed, undecided


def joined(parts: Sequence[tuple[list[str], list[str]]]) -> tuple[list[str], list[str]]:
    """Return the results of `shortfalls` for several targets as one."""
    return [each for missed, _ in parts for each in missed], [each for _, undecided in parts for each in undecided]


def ratios(times: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return the `quartiles` of how many times as long others took, turn by turn."""
    return quartiles([theirs / own for own, theirs in zip(times, others, strict=True)])


def resident(process: int | str = "self") -> tuple[int, int]:
    """Return the current and the peak resident memory of a process, in bytes (Linux only)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def memory_of(prepare: Callable[..., Callable[[], Any]], small: tuple[Any, ...], large: tuple[Any, ...]) -> int:
    """Measure the memory that some steps need, in a process of its own (Linux only).

    Parameters
    ----------
    prepare
        A function that returns a step.
    small
        The arguments with which ``prepare`` returns a small step, which only loads and compiles what the large one needs.
    large
        The arguments with which ``prepare`` returns the step that is measured.

    Returns
    -------
    int
        The peak of the resident memory in `MEMORY_STEPS` steps minus the resident memory before ``prepare(*large)``, in bytes.
        The first step is not counted, because more may be compiled in it.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_memory, prepare, small, large).result()


def _memory(prepare: Callable[..., Callable[[], Any]], small: tuple[Any, ...], large: tuple[Any, ...]) -> int:
    prepare(*small)()
    gc.collect()
    before, _ = resident()
    step = prepare(*large)
    step()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(MEMORY_STEPS - 1):
        step()
    return resident()[1] - before


def run_json(*arguments: str | Path) -> Any:
    """Run ``fflm ... --json``, show its progress, and return its result."""
    process = subprocess.run([*FFLM, *map(str, arguments), "--json"], stdout=subprocess.PIPE)
    if process.returncode:
        sys.exit(f"fflm {arguments[0]} failed")
    return json.loads(process.stdout)
