"""Claim: networks that `fflm train` trains without further settings reach the perplexities in `DEMANDED`, alone and in mixtures.

The script trains the presets "default", "quick" and "best" on Brown, split as in Bengio et al. (2003), and on WikiText-2 as
published (a stream whose line ends are counted), and a default network, the student, that learns from "best", an ensemble. It
compares them with Kneser-Ney of order 5, and measures their mixtures with it and with caches of the last words. It prints which
share of the ensemble's gain over one network the student keeps. All choices are made on the validation text: the best epoch, the
weights of mixtures, and theta of neural caches. A cache learns from the text that is scored, up to the previous word. The script
verifies that the parts have as many tokens as published.

It also draws the validation perplexity over the minutes of training of single networks. The default network and "quick" come
first, on both corpora, then the ensemble and the student; each is recorded when it has been measured. ``--corpus`` and ``--only``
limit a run to one corpus and to some of the models, and what is recorded of the others stays as it is. The folder WORK keeps the
models. An interrupted run continues when the same command is run again.
"""

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numba
from common import RESULTS, brown, check_sizes, machine, parse, record, run_json, show_verdict, wikitext

from fflm.arrays import LOG
from fflm.cli.report import describe_perplexity
from fflm.errors import FflmError
from fflm.models.description import EVENTS
from fflm.models.load import load_language_model as load
from fflm.models.mixture.train import mix
from fflm.models.scoring import score_part
from fflm.text.corpus import Corpus
from fflm.training.log import read_log

RECORDED = RESULTS / "recipe.json"
CACHE = 2000
DEMANDED = {  # the largest test perplexities allowed
    "Brown": {"default": 180.0, "student": 180.0, "best": 165.0, "best + Kneser-Ney + both caches": 140.0},
    "WikiText-2": {"default": 112.0, "student": 112.0, "best": 102.0, "best + Kneser-Ney + both caches": 85.0},
}


def trained(corpus: Corpus, folder: Path, name: str, *settings: str | int | Path, quick: bool) -> Path:
    """Train a network or an ensemble on a corpus with the command line, or resume its training; return its folder."""
    path = folder / f"{name}.model"
    if path.is_dir():
        run_json("train", "--resume", path)
    else:
        options = list(settings)
        options += ["--epochs", 1, "--window", 2, "--averages", 0, "--hidden", 32, "--embedding", 32] if quick else []
        run_json("train", corpus.path, "-o", path, *options)
    return path


def kneser_ney(corpus: Corpus, folder: Path) -> Path:
    """Train a Kneser-Ney model of order 5 on a corpus, unless it is in the folder; return its path."""
    path = folder / "kneser-ney.model"
    if not path.is_dir():
        run_json("ngram", "train", corpus.path, "-o", path)
    return path


def course(path: Path) -> list[dict[str, float]]:
    """Return the minutes of training and the validation perplexity at each evaluation of a model."""
    evaluations = [event for event in read_log(path / LOG, EVENTS) if event["event"] == "evaluation"]
    return [{"minutes": event["seconds"] / 60, "perplexity": event["valid"]["perplexity"]} for event in evaluations]


def add(
    result: dict[str, Any], corpus: Corpus, row: str, paths: list[Path], cache: int | None = None, neural_cache: int | None = None
) -> None:
    """Measure a model, or the mixture of several and of caches, on the validation and the test text; add a row to ``result``."""
    mixture = mix(paths, cache=cache, neural_cache=neural_cache) if len(paths) > 1 or cache or neural_cache else None
    model = mixture or load(paths[0])
    found = result["rows"][row] = {part: score_part(model, corpus.parts[part]).to_dict() for part in ("valid", "test")}
    print(row)
    for part, score in found.items():
        print(f"  {part:5} {describe_perplexity(score)}")
    if mixture:
        found["weights"] = dict(zip([Path(each).stem for each in mixture.components], mixture.weights.tolist(), strict=True))


def measure_single(result: dict[str, Any], corpus: Corpus, folder: Path, *, quick: bool) -> None:
    """Train the default network, the preset "quick" and Kneser-Ney, and measure them, alone and in mixtures."""
    default, small = (trained(corpus, folder, preset, "--preset", preset, quick=quick) for preset in ("default", "quick"))
    ngram = kneser_ney(corpus, folder)
    result["courses"] = {path.stem: course(path) for path in (default, small)}
    add(result, corpus, "Kneser-Ney", [ngram])
    add(result, corpus, "Kneser-Ney + cache", [ngram], CACHE)
    for path in (default, small):
        add(result, corpus, path.stem, [path])
        add(result, corpus, f"{path.stem} + Kneser-Ney", [path, ngram])
    add(result, corpus, "default + cache", [default], CACHE)
    add(result, corpus, "default + neural cache", [default], neural_cache=CACHE)
    add(result, corpus, "default + Kneser-Ney + cache", [default, ngram], CACHE)
    add(result, corpus, "default + Kneser-Ney + neural cache", [default, ngram], neural_cache=CACHE)
    add(result, corpus, "default + Kneser-Ney + both caches", [default, ngram], CACHE, CACHE)


def measure_best(result: dict[str, Any], corpus: Corpus, folder: Path, *, quick: bool) -> None:
    """Train the preset "best" and measure it."""
    fewer = ("--members", 2) if quick else ()
    best = trained(corpus, folder, "best", "--preset", "best", *fewer, quick=quick)
    add(result, corpus, "best", [best])
    add(result, corpus, "best + Kneser-Ney + both caches", [best, kneser_ney(corpus, folder)], CACHE, CACHE)


def measure_student(result: dict[str, Any], corpus: Corpus, folder: Path, *, quick: bool) -> None:
    """Train a student of the preset "best", after `measure_best`, and measure it against the default network."""
    student = trained(corpus, folder, "student", "--teacher", folder / "best.model", quick=quick)
    add(result, corpus, "student", [student])
    add(result, corpus, "student + Kneser-Ney + both caches", [student, kneser_ney(corpus, folder)], CACHE, CACHE)
    alone, five, taught = (math.log(result["rows"][row]["test"]["perplexity"]) for row in ("default", "best", "student"))
    result["kept"] = (alone - taught) / (alone - five)
    print(f"the ensemble gains {1 - math.exp(five - alone):.1%}, of which the student keeps {result['kept']:.0%}")


MEASURES = {"single": measure_single, "best": measure_best, "student": measure_student}


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the validation perplexity of each preset over the minutes of training, one panel per corpus."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(results), 4), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for preset, points in result["courses"].items():
            axes.plot([each["minutes"] for each in points], [each["perplexity"] for each in points], "o-", ms=3, label=preset)
        score = result["rows"]["Kneser-Ney"]["valid"]
        axes.axhline(score["perplexity"], color="gray", ls="--", label="Kneser-Ney, order 5")
        unknown = f"{score['unknown_share']:.1%} unknown"
        axes.set_title(f"{name}, vocabulary {score['vocabulary']:,}, {unknown},\n{score['policy']}", size="small")
        axes.set(xlabel=f"minutes of training, {numba.config.NUMBA_NUM_THREADS} threads", ylabel="validation perplexity")
        axes.set_xlim(left=0)
        axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt, as `fflm corpus get brown` makes it")
    parser.add_argument("wikitext", type=Path, help="the folder that `fflm corpus get wikitext-2` makes")
    parser.add_argument("--work", type=Path, default=Path("recipe.work"), help="folder for the models [default: %(default)s]")
    parser.add_argument("--corpus", choices=DEMANDED, help="measure models of this corpus only")
    parser.add_argument("--only", choices=MEASURES, nargs="+", default=list(MEASURES), help="measure these models only")
    options = parse(parser)
    about = machine()
    sources = {"Brown": (brown, options.brown), "WikiText-2": (wikitext, options.wikitext)}
    corpora = {}
    for name, (tokenized, source) in sources.items():
        if options.corpus in (None, name):
            folder = options.work / ("quick" if options.quick else "full") / name
            folder.mkdir(parents=True, exist_ok=True)
            corpora[name] = tokenized(source, folder / "corpus"), folder
            check_sizes(name, corpora[name][0])
    results: dict[str, dict[str, Any]] = {name: {"rows": {}, "measured": {}} for name in sources}
    if RECORDED.is_file() and not options.quick:
        results = json.loads(RECORDED.read_text(encoding="utf-8"))["results"]
    order = [*itertools.product(corpora, ["single"]), *itertools.product(corpora, ["best", "student"])]
    for name, measure in order:
        if measure not in options.only:
            continue
        print(f"{name}, {measure}")
        MEASURES[measure](results[name], *corpora[name], quick=options.quick)
        results[name]["measured"][measure] = {"date": time.strftime("%Y-%m-%d"), "machine": about}
        missed = [
            f"{name}, {row}: {found:.1f} instead of {demanded:g}"
            for name, result in results.items()
            for row, demanded in DEMANDED[name].items()
            if row in result["rows"] and not (found := result["rows"][row]["test"]["perplexity"]) <= demanded
        ]
        if measure == "single" and not options.quick and all(result["rows"] for result in results.values()):
            draw(results, RECORDED.with_suffix(".png"))
        record("recipe", options.quick, about, demanded=DEMANDED, passed=not missed, results=results)
    show_verdict(missed)
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    try:
        main()
    except FflmError as error:
        sys.exit(f"error: {error}")
