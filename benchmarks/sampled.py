"""Claim: a sampled loss reaches the perplexity of the exact loss, within 1%, in a third of its time.

On Brown, split as in Bengio et al. (2003), and on WikiText-2 as published, the same network is trained three times: with the
exact loss, with a sampled softmax, and by noise-contrastive estimation whose last steps are exact. The three runs take turns
of a few steps, so that other load on the machine affects all of them; the minutes of a run are those of its own steps and
evaluations. The perplexities are exact, on the validation text, and the best epoch of each run counts. `sampled_step.py`
measures single steps.

The script verifies that the texts have as many tokens and words as published.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
from common import brown, check_sizes, machine, parse, record, show_verdict, wikitext

from fflm.backend.cpu.backend import CpuBackend
from fflm.models.neural.train import PRESETS, network_settings, resolve_settings
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.corpus import Corpus
from fflm.text.windows import Windows
from fflm.training.events import Evaluation
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

LOSSES: dict[str, dict[str, Any]] = {
    "exact": {"loss": "exact"},
    "sampled": {"loss": "sampled"},
    "nce, then exact": {"loss": "nce", "exact_end": 0.1},
}
TURN = 50  # number of steps
DEMANDED = {"perplexity": 1.01, "time": 1 / 3}
"""The largest ratios, sampled to exact."""


def trainer(config: NetworkConfig, settings: TrainingSettings, train: Windows, valid: Windows | None) -> Trainer:
    """Return a trainer with the initial weights and settings of `fflm train`."""
    parameters = Parameters.random(config, settings.seed)
    parameters.start_from(train.counts(config.vocabulary))
    network = Network(config, CpuBackend(numba.get_num_threads()))
    return Trainer(network, parameters, train, valid, settings)


def turn(run: Trainer, events: Iterator[Any], courses: list[dict[str, float]], seconds: list[float]) -> bool:
    """Make some steps and record evaluations and time; return whether there are more steps."""
    for _ in range(TURN):
        started = time.perf_counter()
        event = next(events, None)
        seconds[0] += time.perf_counter() - started
        if isinstance(event, Evaluation) and event.valid is not None:
            courses.append({"epoch": event.epoch, "minutes": seconds[0] / 60, "perplexity": math.exp(event.valid.mean)})
        if event is None:
            return False
    return True


def compare(name: str, corpus: Corpus, preset: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Train with each loss, in turns."""
    config, settings = resolve_settings(*network_settings({**PRESETS[preset], **fields}), corpus)
    windows = {
        part: Windows.of(each.ids, corpus.vocabulary, corpus.settings, config.context) for part, each in corpus.parts.items()
    }
    runs = {
        loss: trainer(config, dataclasses.replace(settings, **changes), windows["train"], windows["valid"])
        for loss, changes in LOSSES.items()
    }
    courses: dict[str, list[dict[str, float]]] = {loss: [] for loss in runs}
    seconds = {loss: [0.0] for loss in runs}
    events = {loss: run.run() for loss, run in runs.items()}
    going = set(runs)
    while going:
        for loss in list(going):
            before = len(courses[loss])
            if not turn(runs[loss], events[loss], courses[loss], seconds[loss]):
                going.remove(loss)
            for each in courses[loss][before:]:
                print(
                    f"  {loss:16} epoch {each['epoch']:.0f}: validation perplexity {each['perplexity']:.2f} "
                    f"after {each['minutes']:.2f} minutes"
                )
    rows = {}
    for loss, course in courses.items():
        best = min(course, key=lambda each: each["perplexity"])
        rows[loss] = {
            "perplexity": best["perplexity"],
            "best_epoch": best["epoch"],
            "minutes": seconds[loss][0] / 60,
            "course": course,
        }
    exact = rows["exact"]
    for row in rows.values():
        row["perplexity_relative_to_exact"] = row["perplexity"] / exact["perplexity"]
        row["time_relative_to_exact"] = row["minutes"] / exact["minutes"]
    print(f"{name}, preset {preset}")
    for loss, row in rows.items():
        perplexity = f"{row['perplexity']:.2f} ({row['perplexity_relative_to_exact']:.3f} of exact)"
        minutes = f"{row['minutes']:.2f} minutes ({row['time_relative_to_exact']:.3f} of exact)"
        print(f"  {loss:16} best validation perplexity {perplexity}, {minutes}")
    text = corpus.conditions
    return {"preset": preset, "network": config.to_dict(), "training": settings.to_dict(), "text": text, "losses": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt, as `fflm corpus get brown` makes it")
    parser.add_argument("wikitext", type=Path, nargs="?", help="the folder that `fflm corpus get wikitext-2` makes")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="default", help="the network [default: %(default)s]")
    parser.add_argument("--work", type=Path, default=Path("sampled.work"), help="folder for the texts [default: %(default)s]")
    options = parse(parser)
    about = machine()
    missed: list[str] = []
    results = {}
    for name, (tokenized, source) in {"Brown": (brown, options.brown), "WikiText-2": (wikitext, options.wikitext)}.items():
        if source:
            options.work.mkdir(parents=True, exist_ok=True)
            corpus = tokenized(source, options.work / name)
            check_sizes(name, corpus)
            result = results[name] = compare(name, corpus, options.preset, {"epochs": 1} if options.quick else {})
            sampled = result["losses"]["sampled"]
            missed += [f"{name}, {of}" for of in ("perplexity", "time") if sampled[f"{of}_relative_to_exact"] > DEMANDED[of]]
    show_verdict(missed)
    partial = options.quick or len(results) < 2
    record(f"sampled_{options.preset}", partial, about, demanded=DEMANDED, passed=not missed, texts=results)
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    main()
