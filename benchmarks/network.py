"""Claim: none of the settings in `VARIANTS` lowers the validation perplexity of the default network at the same number of steps.

The script trains the default network on the first 400,000 tokens of Brown, of which 320,000 are for training and 60,000 for
validation, and again with each of the variants, which differ from it in a few settings. The text is a stream with the vocabulary
rule of Bengio et al. (2003). The test text is not used. With `--seeds 1,2`, every network is trained with both seeds.

A variant helps if its perplexity is lower by more than `MARGIN` with every seed.

The folder WORK keeps the models. An interrupted run continues when the same command is run again.
"""

import argparse
import math
import sys
from pathlib import Path

from common import brown, machine, parse, record, run_json, show_verdict

from fflm.arrays import LOG
from fflm.errors import FflmError
from fflm.models.description import EVENTS
from fflm.text.corpus import Corpus
from fflm.training.log import read_log

TOKENS, VALID, TEST = 400_000, 60_000, 20_000
MARGIN = 0.01
VARIANTS = {
    "default": "",
    "window 8, averages of 10, 30, 90 and 270": "--window 8 --averages 10,30,90,270",
    "window 3, averages of 2, 4, 8, ..., 256": "--window 3 --averages 2,4,8,16,32,64,128,256",
    "two residual layers of 512": "--hidden 512,512 --residual",
    "no direct connections": "--no-direct",
    "averages without weights of words": "--no-word-weights",
    "a normalized hidden layer": "--residual",
    "no adversarial noise": "--adversarial 0",
    "adversarial noise of 0.03": "--adversarial 0.03",
    "no vectors of affixes": "--no-affixes",
    "no dropout of hidden units": "--dropout 0",
    "dropout 0.4": "--dropout 0.4",
    "dropout of the input 0.2": "--embedding-dropout 0.2",
    "dropout of the input 0.4": "--embedding-dropout 0.4",
    "weight decay 0.4": "--weight-decay 0.4",
    "the exact loss in the last 15% of the steps": "--exact-end 0.15",
}
"""The options of ``fflm train`` for each variant."""


def cut(source: Path, folder: Path) -> Corpus:
    """Return the beginning of Brown, tokenized into a folder, unless the folder has it already."""
    text = folder / "text.txt"
    text.write_text(" ".join(source.read_text(encoding="utf-8").split()[:TOKENS]) + "\n", encoding="utf-8")
    return brown(text, folder / "corpus", VALID, TEST)


def best(corpus: Corpus, path: Path, seed: int, settings: str, *, quick: bool) -> float:
    """Train a network, or resume its training, and return its lowest validation perplexity."""
    if path.is_dir():
        run_json("train", "--resume", path)
    else:
        small = "--epochs 1 --embedding 8" if quick else ""
        run_json("train", corpus.path, "-o", path, "--seed", str(seed), *settings.split(), *small.split())
    evaluations = [event["valid"] for event in read_log(path / LOG, EVENTS) if event["event"] == "evaluation"]
    return min(float(valid["perplexity"]) for valid in evaluations)


def helps(own: list[float], default: list[float]) -> bool:
    """Return whether the perplexities of a variant are lower than those of the default network, by the margin with every seed."""
    return all(math.log(b / a) > MARGIN for a, b in zip(own, default, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt, as `fflm corpus get brown` makes it")
    parser.add_argument("--seeds", default="1", help="seeds, separated by commas [default: %(default)s]")
    parser.add_argument("--work", type=Path, default=Path("network.work"), help="folder for the models [default: %(default)s]")
    options = parse(parser)
    about, seeds = machine(), [int(seed) for seed in options.seeds.split(",")]
    folder = options.work / ("quick" if options.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    corpus = cut(options.brown, folder)
    found: dict[str, list[float]] = {}
    for name, settings in VARIANTS.items():
        paths = {seed: folder / f"{name.replace(' ', '-')}.{seed}.model" for seed in seeds}
        found[name] = [best(corpus, path, seed, settings, quick=options.quick) for seed, path in paths.items()]
        print(f"{name:45} " + "  ".join(f"{each:.1f}" for each in found[name]), flush=True)
    missed = [f"{name} helps" for name in VARIANTS if helps(found[name], found["default"])]
    show_verdict(missed)
    record("network", options.quick, about, seeds=seeds, margin=MARGIN, perplexities=found, passed=not missed)
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    try:
        main()
    except FflmError as error:
        sys.exit(f"error: {error}")
