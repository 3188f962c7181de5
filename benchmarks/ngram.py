"""Claim: the n-gram model has the perplexities of interpolated modified Kneser-Ney on Brown and WikiText-2.

Brown is read as in Bengio et al. (2003), with orders 3 to 5. WikiText-2 is read as published, with order 5, as a stream
whose line ends are counted, with all the words of its training part. The script verifies that the parts have as many tokens
as published, and that the probabilities of all words sum to one after contexts of each text.

With --large, the script also measures the time and the peak memory of estimating a model of order 5 on 100 million words,
and records them in a file of their own. The words are random pieces of WikiText-2 of 3 words on average. Such a text has
about as many distinct n-grams as a natural text of its length, and time and memory depend on their number. This needs about
15 GB (Linux only).
"""

import argparse
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import brown, check_sizes, machine, parse, record, show_verdict, wikitext

from fflm.cli.report import describe_perplexity
from fflm.errors import FflmError
from fflm.models.ngram.estimate import estimate
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.settings import ORDER
from fflm.models.ngram.train import estimate_model
from fflm.models.scoring import score_part
from fflm.text.corpus import Corpus

EXPECTED = {  # test perplexity, and on WikiText-2 also the validation perplexity
    ("Brown", 3): {"test": 332.6},
    ("Brown", 4): {"test": 330.4},
    ("Brown", 5): {"test": 329.8},
    ("WikiText-2", 5): {"valid": 232.5, "test": 217.8},
}
TOLERANCE = 0.001
PIECE = 3
"""Words of a piece of the large text, on average."""


def check_sums(model: NgramModel, corpus: Corpus) -> None:
    """Exit if the probabilities of all words do not sum to one after some contexts."""
    for part in corpus.parts.values():
        windows = model.windows(part.ids)
        contexts = windows.contexts(np.linspace(0, len(windows), 50, dtype=int))
        sums = np.exp(model.log_probabilities(contexts).astype(np.float64)).sum(axis=1)
        if np.abs(sums - 1).max() > 1e-4:
            sys.exit(f"the probabilities of order {model.order} sum to {sums.min()} ... {sums.max()}")


def measure(name: str, order: int, corpus: Corpus) -> dict[str, Any]:
    """Train a model, score it and print its perplexities."""
    started = time.monotonic()
    model = estimate_model(corpus, order)
    seconds = time.monotonic() - started
    check_sums(model, corpus)
    figures = {part: score_part(model, corpus.parts[part]).to_dict() for part in ("valid", "test")}
    print(f"{name}, order {order}, trained in {seconds:.2f} s")
    for part, each in figures.items():
        expected = EXPECTED[name, order].get(part)
        print(f"  {part:5} {describe_perplexity(each)}" + (f" (expected {expected})" if expected else ""))
    return {"corpus": name, "order": order, "seconds": seconds, "figures": figures, **model.about["ngram"]}


def measure_large(folder: Path, tokens: int) -> dict[str, Any]:
    """Estimate a model on pieces of a corpus; return the time in seconds and the peak memory of this process in bytes."""
    corpus = Corpus.open(folder)
    source = corpus.parts["train"].ids[:]
    estimate(source[:1000], corpus.vocabulary, corpus.settings, ORDER)  # compiles the kernels
    ids = pieces(source, tokens)
    started = time.monotonic()
    _, details = estimate(ids, corpus.vocabulary, corpus.settings, ORDER)
    seconds = time.monotonic() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens": tokens, "order": ORDER, "seconds": seconds, "memory": memory, **details}


def pieces(source: np.ndarray, count: int) -> np.ndarray:
    """Return ids (count,) of random pieces of a text, `PIECE` words long on average."""
    generator = np.random.default_rng(1)
    ids = np.empty(count, np.uint32)
    for low in range(0, count, 1 << 20):
        places = np.arange(min(1 << 20, count - low))
        starts = np.flatnonzero((generator.random(len(places)) < 1 / PIECE) | (places == 0))
        shifts = generator.integers(len(source), size=len(starts))
        ids[low : low + len(places)] = source[(places + np.repeat(shifts, np.diff(starts, append=len(places)))) % len(source)]
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt, as `fflm corpus get brown` makes it")
    parser.add_argument("wikitext", type=Path, help="the folder that `fflm corpus get wikitext-2` makes")
    parser.add_argument("--large", action="store_true", help="also measure time and memory on a large text")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="length of the large text [default: %(default)s]")
    options = parse(parser)
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        corpora = {
            "Brown": brown(options.brown, Path(name) / "brown"),
            "WikiText-2": wikitext(options.wikitext, Path(name) / "wikitext"),
        }
        for corpus_name, corpus in corpora.items():
            check_sizes(corpus_name, corpus)
        estimate_model(corpora["Brown"], 2)  # compiles the kernels
        results = [measure(*each, corpora[each[0]]) for each in EXPECTED]
        if options.large:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so that its peak memory is that of the estimation
                large = pool.submit(
                    measure_large, corpora["WikiText-2"].path, 10**6 if options.quick else options.tokens
                ).result()
            print(
                f"{large['tokens']:,} words, order {ORDER}: {large['seconds']:.1f} s, {sum(large['counts']):,} n-grams, "
                f"peak memory {large['memory'] / 1e9:.2f} GB, {large['memory'] / sum(large['counts']):.0f} bytes per n-gram"
            )
            record("ngram_large", options.quick, about, **large)
    wrong = [
        f"{result['corpus']} order {result['order']} {part}"
        for result in results
        for part, expected in EXPECTED[result["corpus"], result["order"]].items()
        if abs(result["figures"][part]["perplexity"] / expected - 1) > TOLERANCE
    ]
    show_verdict(wrong)
    record(
        "ngram",
        options.quick,
        about,
        results=results,
        tolerance=TOLERANCE,
        passed=not wrong,
        expected=[{"corpus": name, "order": order, **parts} for (name, order), parts in EXPECTED.items()],
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    try:
        main()
    except FflmError as error:
        sys.exit(f"error: {error}")
