"""What the benchmarks share: a description of the machine, timing in turns, running commands, and recording results."""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
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
STORIES = ROOT / "corpora" / "stories.txt"
FFLM = [sys.executable, str(ROOT / "cli.py")]
"""The command ``fflm``, of this checkout and this Python."""


SIZES = {  # words in the vocabulary, tokens of each part
    "Brown": (17_905, {"train": 800_000, "valid": 200_000, "test": 161_192}),
    "WikiText-2": (33_278, {"train": 2_088_628, "valid": 217_646, "test": 245_569}),
}

MEMORY_STEPS = 4
"""Steps in which memory is measured: from the second on everything is there."""

TUNING = ("MALLOC_", "MKL_", "NUMBA_OPT", "OMP_", "OPENBLAS_")
"""Beginnings of the environment variables that change how fast the same code is."""


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, to which ``--quick`` is added."""
    parser.add_argument("--quick", action="store_true", help="only see whether it works: a small run that is not recorded")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return what a figure depends on besides the code. Call it first: it notes how busy the machine is."""
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"warning: the machine is busy (load {load:.1f}), figures will be too low", file=sys.stderr)
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
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "machine": about, **result})
    print(f"recorded in {path.relative_to(ROOT)}")


def brown(text: Path, folder: Path, valid: int = 200_000, test: int = 161_192) -> Corpus:
    """Return Brown as Bengio et al. 2003 read it, tokenized in a folder, or from there if that was done.

    800,000 tokens to train, 200,000 and the remaining 161,192 held out, one stream without line ends, the words that are seen
    more than 3 times in the whole corpus.
    """
    if not (folder / "corpus.json").is_file():
        settings, rule = TextSettings(Tokenizer("space"), line_ends=False), VocabularyRule(4, source="all")
        tokenize(TextSource([text], settings, rule, Count(valid), Count(test)), folder)
    return Corpus.open(folder)


def wikitext(source: Path, folder: Path) -> Corpus:
    """Return WikiText-2 as published, tokenized in a folder, or from there if that was done.

    One stream whose line ends are counted, with all the words of the training part.
    """
    if not (folder / "corpus.json").is_file():
        settings, rule = TextSettings(Tokenizer("space")), VocabularyRule(1)
        tokenize(TextSource([source / "train.txt"], settings, rule, [source / "valid.txt"], [source / "test.txt"]), folder)
    return Corpus.open(folder)


def check_sizes(name: str, corpus: Corpus) -> None:
    """Exit if a corpus has not the `SIZES` that it should have."""
    found = len(corpus.vocabulary), {part: each.tokens for part, each in corpus.parts.items()}
    if found != SIZES[name]:
        sys.exit(f"{name} should have {SIZES[name]} words and tokens, not {found}: fetch it with `fflm corpus get`")


def in_turns(steps: Mapping[Any, Callable[[], Any]], rounds: int, turn_seconds: float = 0.3) -> dict[Any, list[float]]:
    """Time several ways of doing the same in turns, so that whatever else the machine does meets all of them.

    Parameters
    ----------
    steps
        The contenders, by their names.
    rounds
        Turns of each, in a new random order every round.
    turn_seconds
        How long a turn takes at least.

    Returns
    -------
    dict
        Seconds a step in each turn, of each contender.
    """
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            time.sleep(0.05)  # threads of the contender before spin for a while before they sleep
            steps[name]()
            count, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < turn_seconds or not count:
                steps[name]()
                count += 1
            times[name].append(elapsed / count)
    return times


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the two quartiles around it."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def resident(process: int | str = "self") -> tuple[int, int]:
    """Return the resident memory of a process, now and at its peak, in bytes (Linux only)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def memory_of(prepare: Callable[..., Callable[[], Any]], small: tuple[Any, ...], large: tuple[Any, ...]) -> int:
    """Measure the memory that some steps need, in a process of its own (Linux only).

    Parameters
    ----------
    prepare
        Returns a step, when called with some arguments.
    small
        Arguments of a step that only loads and compiles what both need.
    large
        Arguments of the step that is measured.

    Returns
    -------
    int
        Bytes: the largest resident memory in `MEMORY_STEPS` steps, less that before ``prepare(*large)``. The first of them is
        not counted, in which more may be compiled.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_memory, prepare, small, large).result()


def _memory(prepare: Callable[..., Callable[[], Any]], small: tuple[Any, ...], large: tuple[Any, ...]) -> int:
    prepare(*small)()
    gc.collect()
    before, _ = resident()
    step = prepare(*large)
    step()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    for _ in range(MEMORY_STEPS - 1):
        step()
    return resident()[1] - before


def run_json(*arguments: str | Path) -> Any:
    """Run ``fflm ... --json``, its progress shown, and return what it prints."""
    process = subprocess.run([*FFLM, *map(str, arguments), "--json"], stdout=subprocess.PIPE)
    if process.returncode:
        sys.exit(f"fflm {arguments[0]} failed")
    return json.loads(process.stdout)
