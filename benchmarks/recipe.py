"""Claim: the network that `fflm train` trains by default reaches the perplexities in `DEMANDED`, alone and in mixtures.

The script trains the default network and the preset "quick" on Brown, split as in Bengio et al. (2003), and on WikiText-2 as
published (a stream whose line ends are counted), an ensemble of default networks, and a default network, the student, that learns
from the ensemble. It compares them with Kneser-Ney of order 5, and measures their mixtures with it and with caches of the last
words. It prints which share of the ensemble's gain over one network the student keeps. All choices are made on the validation
text: the best epoch, the weights of mixtures, and theta of neural caches. A cache learns from the text that is scored, up to the
previous word. The script verifies that the parts have as many tokens as published.

It also draws the validation perplexity over the minutes of training. The folder WORK keeps all results that take time. An
interrupted run continues when the same command is run again.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numba
from common import ROOT, brown, check_sizes, machine, parse, record, run_json, show_verdict, wikitext

from fflm.arrays import LOG
from fflm.cli.report import describe_perplexity
from fflm.errors import FflmError
from fflm.models.description import EVENTS
from fflm.models.load import load_language_model as load
from fflm.models.mixture.train import mix
from fflm.models.scoring import score_part
from fflm.text.corpus import Corpus
from fflm.training.log import read_log

PRESETS = ("default", "quick")
CACHE = 2000
MEMBERS = 5
DEMANDED = {  # the largest test perplexities allowed
    "Brown": {"default": 250.0, "default + Kneser-Ney": 225.0},
    "WikiText-2": {"default": 140.0},
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


def course(path: Path) -> list[dict[str, float]]:
    """Return the minutes of training and the validation perplexity at each evaluation of a model."""
    evaluations = [event for event in read_log(path / LOG, EVENTS) if event["event"] == "evaluation"]
    return [{"minutes": event["seconds"] / 60, "perplexity": event["valid"]["perplexity"]} for event in evaluations]


def measure(name: str, corpus: Corpus, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Train all models on a corpus and measure them, alone and in mixtures."""
    networks = {preset: trained(corpus, folder, preset, "--preset", preset, quick=quick) for preset in PRESETS}
    members = 2 if quick else MEMBERS
    ensemble = trained(corpus, folder, "ensemble", "--members", members, quick=quick)
    student = trained(corpus, folder, "student", "--teacher", ensemble, quick=quick)
    ngram = folder / "kneser-ney.model"
    if not ngram.is_dir():
        run_json("ngram", "train", corpus.path, "-o", ngram)
    rows: dict[str, dict[str, Any]] = {}

    def add(row: str, paths: list[Path], cache: int | None = None, neural_cache: int | None = None) -> None:
        several = len(paths) > 1 or cache or neural_cache
        mixture = mix(paths, cache=cache, neural_cache=neural_cache) if several else None
        model = mixture or load(paths[0])
        rows[row] = {part: score_part(model, corpus.parts[part]).to_dict() for part in ("valid", "test")}
        if mixture:
            names = [Path(each).stem for each in mixture.components]
            rows[row]["weights"] = dict(zip(names, mixture.weights.tolist(), strict=True))
        print(f"{name}, {row}")
        for part in ("valid", "test"):
            print(f"  {part:5} {describe_perplexity(rows[row][part])}")

    add("Kneser-Ney", [ngram])
    add("Kneser-Ney + cache", [ngram], CACHE)
    for preset, path in networks.items():
        add(preset, [path])
        add(f"{preset} + Kneser-Ney", [path, ngram])
    together = f"{members} default networks"
    add(together, [ensemble])
    add("student", [student])
    add("student + Kneser-Ney + both caches", [student, ngram], CACHE, CACHE)
    add(f"{together} + Kneser-Ney + both caches", [ensemble, ngram], CACHE, CACHE)
    alone, best, taught = (math.log(rows[row]["test"]["perplexity"]) for row in ("default", together, "student"))
    kept = (alone - taught) / (alone - best)
    print(f"{name}: {members} networks gain {1 - math.exp(best - alone):.1%} over one, of which the student keeps {kept:.0%}")
    add("default + cache", [networks["default"]], CACHE)
    add("default + neural cache", [networks["default"]], neural_cache=CACHE)
    add("default + Kneser-Ney + cache", [networks["default"], ngram], CACHE)
    add("default + Kneser-Ney + neural cache", [networks["default"], ngram], neural_cache=CACHE)
    add("default + Kneser-Ney + both caches", [networks["default"], ngram], CACHE, CACHE)
    return {"rows": rows, "kept": kept, "courses": {preset: course(path) for preset, path in networks.items()}}


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
    parser.add_argument("wikitext", type=Path, nargs="?", help="the folder that `fflm corpus get wikitext-2` makes")
    parser.add_argument("--work", type=Path, default=Path("recipe.work"), help="folder for the models [default: %(default)s]")
    options = parse(parser)
    about = machine()
    sources = {"Brown": (brown, options.brown), "WikiText-2": (wikitext, options.wikitext)}
    results = {}
    for name, (tokenized, source) in sources.items():
        if source:
            folder = options.work / ("quick" if options.quick else "full") / name
            folder.mkdir(parents=True, exist_ok=True)
            corpus = tokenized(source, folder / "corpus")
            check_sizes(name, corpus)
            results[name] = measure(name, corpus, folder, quick=options.quick)
    missed = [
        f"{name}, {row}: {found:.1f} instead of {demanded:g}"
        for name, result in results.items()
        for row, demanded in DEMANDED[name].items()
        if not (found := result["rows"][row]["test"]["perplexity"]) <= demanded
    ]
    show_verdict(missed)
    partial = options.quick or len(results) < len(sources)
    if not partial:
        draw(results, ROOT / "benchmarks" / "results" / "recipe.png")
    record("recipe", partial, about, demanded=DEMANDED, passed=not missed, results=results)
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    try:
        main()
    except FflmError as error:
        sys.exit(f"error: {error}")
