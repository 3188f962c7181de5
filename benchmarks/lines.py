"""Claim: called from Python, n-gram models and networks score a line in at most 10 microseconds, and a word in at most 2.

A second claim is for many lines in one call of `scores`: both score them on one core at 1.5 times the rate of KenLM, which has no
such call.

On stories.txt, a sentence a line, split at spaces: KenLM with an ARPA file, `fflm.kenlm` with the same file, and `fflm.kenlm`
with a network that normalizes itself score the same held-out lines, one call a line, words one call a word from a state, and
all lines in one call. The contenders take turns. Measured are the fastest and the median of many passes, microseconds per line
and per word, perplexity, memory, and the time to load. The claims are about medians.

Verified first: the numbers of `fflm.kenlm` are KenLM's, line by line. Needs `pip install kenlm`. WORK keeps the models.
"""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import kenlm
import numpy as np
from common import STORIES, joined, machine, parse, quartiles, ratios, record, resident, run_json, shortfalls, show_verdict

import fflm.kenlm as ours
from fflm.models.scoring import score_files

ROUNDED = 1e-5  # log10 p, relative
BULK_RATE = 1.5
LIMITS = {"line": 10, "word": 2}  # microseconds


def prepare(work: Path, *, quick: bool) -> dict[str, tuple[Any, Path]]:
    """Train the models, unless that was done; return of each contender the module and the model's path."""
    train, network, ngram, arpa = work / "train.txt", work / "network.model", work / "ngram.model", work / "ngram.arpa"
    work.mkdir(parents=True, exist_ok=True)
    lines = [line for line in STORIES.read_text(encoding="utf-8").splitlines() if line]
    held_out = len(lines) // 10
    train.write_text("\n".join(lines[:-held_out]) + "\n", encoding="utf-8")
    (work / "test.txt").write_text("\n".join(lines[-held_out:]) + "\n", encoding="utf-8")
    text = ["--tokenizer", "space", "--mode", "sentence"]
    if not arpa.is_file():
        run_json("ngram", "train", train, "-o", ngram, "--overwrite", "--arpa", arpa, *text)
    if not network.is_dir():
        epochs = ["--epochs", 1] if quick else []
        run_json("train", train, "-o", network, "--preset", "quick", "--self-normalise", 0.1, *text, *epochs)
    return {"KenLM": (kenlm, arpa), "fflm, the same ARPA file": (ours, arpa), "fflm, network": (ours, network)}


def times_of(steps: dict[tuple[str, str], Callable[[], Any]], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each step in each of some rounds, in which all steps take turns."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    return times


def walk(module: Any, model: Any, lines: list[list[str]]) -> float:
    """Score lines word by word from states, as a beam search does."""
    total, state, after = 0.0, module.State(), module.State()
    for words in lines:
        model.BeginSentenceWrite(state)
        for word in words:
            total += model.BaseScore(state, word, after)
            state, after = after, state
    return total


def load(name: str, path: Path, line: str) -> dict[str, float]:
    """Load a model in this process, and score a line; return the seconds of loading and the memory of the model, bytes."""
    module = kenlm if name == "KenLM" else ours
    before, _ = resident()
    started = time.perf_counter()
    model = module.Model(str(path))
    loaded = time.perf_counter() - started
    model.score(line)
    return {"load_seconds": loaded, "memory": resident()[0] - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("lines.work"), help="keeps the models [default: %(default)s]")
    options = parse(parser)
    about = machine()
    work = options.work / ("quick" if options.quick else "full")
    contenders = prepare(work, quick=options.quick)
    lines = (work / "test.txt").read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines]
    count = sum(map(len, words))
    models = {name: module.Model(str(path)) for name, (module, path) in contenders.items()}
    expected = np.array([models["KenLM"].score(line) for line in lines])
    if not np.allclose([models["fflm, the same ARPA file"].score(line) for line in lines], expected, rtol=ROUNDED):
        sys.exit("fflm does not give lines the probability that KenLM gives them: nothing was timed")
    steps: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, (module, _) in contenders.items():
        model = models[name]
        steps[name, "line"] = lambda model=model: [model.score(line) for line in lines]
        steps[name, "word"] = lambda model=model, module=module: walk(module, model, words)
        if name != "KenLM":
            steps[name, "bulk"] = lambda scorer=model._states.model: scorer.scores(lines)
    times, rows = times_of(steps, 5 if options.quick else 300), {}
    microseconds: dict[tuple[str, str], dict[str, float]] = {}
    for name, (_, path) in contenders.items():
        scores = [models[name].score(line) for line in lines]
        row = {"perplexity": 10 ** (-sum(scores) / (count + len(lines)))}
        for (contender, what), seconds in times.items():
            if contender == name:
                per = 1e6 / (count if what == "word" else len(lines))
                microseconds[name, what] = quartiles([per * each for each in seconds])
                row |= {f"{what}_microseconds": per * min(seconds), f"{what}_median": microseconds[name, what]["median"]}
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            row |= pool.submit(load, name, path, lines[0]).result()
        if name == "fflm, network":
            row["perplexity_exact"] = score_files(
                ours.Model(path, ours.Config(exact=True))._states.model, [work / "test.txt"]
            ).perplexity
        rows[name] = row
        print(f"{name:26}" + ", ".join(f"{key} {value:,.2f}" for key, value in row.items()))
    print(f"{len(lines)} lines of {count / len(lines):.1f} words")
    found = []
    for name in (each for each in rows if each != "KenLM"):
        rate = ratios(times[name, "bulk"], times["KenLM", "line"])
        rows[name]["bulk_rate"] = rate["median"]
        print(f"{name}, all lines in one call: {rate['median']:.2f} times KenLM's rate")
        found.append(shortfalls({f"{name}: rate in bulk, relative to KenLM's": rate}, BULK_RATE))
        for what, most in LIMITS.items():
            found.append(shortfalls({f"{name}: microseconds of a {what}": microseconds[name, what]}, most=most))
    passed = show_verdict(*joined(found))
    record("lines", options.quick, about, passed=passed, rows=rows, lines=len(lines), words=count)
    sys.exit(not passed and not options.quick)


if __name__ == "__main__":
    main()
