"""Claim: the n-gram model has the perplexities of interpolated modified Kneser-Ney on Brown and WikiText-2.

Brown is read as in Bengio et al. (2003), with orders 3 to 5. WikiText-2 is read as published, with order 5, as a stream
whose line ends are counted, with all the words of its training part. The script verifies that the parts have as many tokens
as published, and that the probabilities of all words sum to one after contexts of each text.

With --large, the script also measures the time and the peak memory of estimating a model of order 5 on 100 million words,
with each of the bounds of memory, and records them in a file of their own. The words are random pieces of WikiText-2 of 3
words on average. Such a text has about as many distinct n-grams as a natural text of its length, and time and memory depend
on their number. The models must be the same, bit for bit. Beside it stands the rate that Heafield et al. (2013,
https://aclanthology.org/P13-2121) published for KenLM's lmplz, on another machine: 126 billion tokens in 2.8 days, with 140 GB.

With --nltk PYTHON, a Python that has nltk (`python3 -m venv nltk; nltk/bin/pip install nltk`), the script also trains and
scores with nltk.lm.KneserNeyInterpolated, on the beginning of WikiText-2 with order 3, and records the rates beside fflm's.
"""

import argparse
import hashlib
import json
import resource
import subprocess
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
from fflm.models.ngram.counting import Work
from fflm.models.ngram.estimate import estimate, estimate_on_disk
from fflm.models.ngram.indexing import build_index
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.settings import ORDER, memory_bytes
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

BOUNDS = "8G", "2G", "256M"
"""The bounds of memory with which a model of the large text is estimated."""

LMPLZ = {"tokens": 126e9, "seconds": 2.8 * 24 * 3600, "memory": 140e9, "source": "https://aclanthology.org/P13-2121"}
"""What Heafield et al. (2013) published for lmplz, order 5, on one machine."""

NLTK = 20_000, 100
"""Tokens on which nltk.lm is trained, and which it scores."""

NLTK_PROGRAM = """
import json, sys, time
from nltk.lm import KneserNeyInterpolated
from nltk.lm.preprocessing import padded_everygram_pipeline
train, test, order = json.load(sys.stdin)
started = time.process_time()
model = KneserNeyInterpolated(order)
model.fit(*padded_everygram_pipeline(order, train))
trained = time.process_time() - started
words = ["<s>"] * (order - 1) + test
started = time.process_time()
scores = [model.logscore(word, words[i : i + order - 1]) for i, word in enumerate(test)]
infinite = sum(score == float("-inf") for score in scores)
print(json.dumps({"train": trained, "score": time.process_time() - started, "infinite": infinite}))
"""


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


def measure_large(folder: Path, tokens: int, memory: str, work: Path) -> dict[str, Any]:
    """Estimate a model on pieces of a corpus, and make its index, on disk.

    Returns the time in seconds, the peak memory of this process in bytes, and a checksum of the model.
    """
    corpus = Corpus.open(folder)
    source, words = corpus.parts["train"].ids[:], len(corpus.vocabulary) + 1
    with tempfile.TemporaryDirectory(dir=work) as name:  # compiles the kernels
        small = Work(Path(name), 0)
        build_index(small, estimate_on_disk(small, source[:10_000], corpus.vocabulary, corpus.settings, ORDER).levels, words)
    ids = pieces(source, tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started, processor = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(dir=work) as name:
        place = Work(Path(name), memory_bytes(memory))
        estimated = estimate_on_disk(place, ids, corpus.vocabulary, corpus.settings, ORDER)
        counted = time.monotonic() - started
        _, rows = build_index(place, estimated.levels, words)
        seconds, processor = time.monotonic() - started, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        checksum = hashlib.sha256()
        for array in (*estimated.arrays.values(), rows):
            for part in array:
                checksum.update(np.ascontiguousarray(part))
    return {
        "tokens": tokens,
        "order": ORDER,
        "bound": memory,
        "seconds": seconds,
        "seconds_without_index": counted,
        "processor_seconds": processor,
        "memory_before": before,
        "memory": peak,
        "checksum": checksum.hexdigest(),
        **estimated.details,
    }


def measure_nltk(python: Path, corpus: Corpus) -> dict[str, Any]:
    """Train and score with nltk.lm and with fflm, on the same few words; return the processor time of both in seconds."""
    count, scored = NLTK
    ids, words = corpus.parts["train"].ids[:count], corpus.vocabulary.words
    test = corpus.parts["test"].ids[:scored]
    sentences = [[words[id_] for id_ in ids.tolist()]]
    given = json.dumps([sentences, [words[id_] for id_ in test.tolist()], 3])
    found = subprocess.run([python, "-c", NLTK_PROGRAM], input=given, capture_output=True, text=True, check=True).stdout
    fits, losses = [], []
    for _ in range(5):
        started = time.process_time()
        tables, details = estimate(ids, corpus.vocabulary, corpus.settings, 3)
        model = NgramModel(tables, corpus.vocabulary, corpus.settings, {"ngram": {"order": 3, **details}})
        model.losses_of_text(test[:1].astype(np.int32))  # makes the index
        fits.append(time.process_time() - started)
        whole = corpus.parts["test"].ids[:].astype(np.int32)
        started = time.process_time()
        model.losses_of_text(whole)
        losses.append((time.process_time() - started) / len(whole))
    theirs = json.loads(found)
    return {
        "order": 3,
        "train_tokens": count,
        "scored_tokens": scored,
        "nltk": {"train_rate": count / theirs["train"], "score_rate": scored / theirs["score"], "infinite": theirs["infinite"]},
        "fflm": {"train_rate": count / min(fits), "score_rate": 1 / min(losses)},
    }


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
    parser.add_argument("--nltk", type=Path, metavar="PYTHON", help="also train and score with nltk.lm of this Python")
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
        if options.nltk:
            beside = measure_nltk(options.nltk, corpora["WikiText-2"])
            for name_ in ("nltk", "fflm"):
                rates = beside[name_]
                print(f"{name_}: {rates['train_rate']:,.0f} tokens/s trained, {rates['score_rate']:,.1f} tokens/s scored")
            record("ngram_nltk", options.quick, about, **beside)
        if options.large:
            large = []
            for bound in BOUNDS:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so that its peak memory is that of the estimation
                    tokens = 10**6 if options.quick else options.tokens
                    each = pool.submit(measure_large, corpora["WikiText-2"].path, tokens, bound, Path(name)).result()
                large.append(each)
                print(
                    f"{tokens:,} words, order {ORDER}, bound {bound}: {each['seconds']:.1f} s, "
                    f"{sum(each['counts']):,} n-grams, peak memory {each['memory'] / 1e9:.2f} GB, "
                    f"of which {each['memory_before'] / 1e9:.2f} GB before"
                )
            if len({each["checksum"] for each in large}) > 1:
                sys.exit("the models differ: nothing is recorded")
            print(f"lmplz, published: {LMPLZ['tokens'] / LMPLZ['seconds']:,.0f} tokens/s, {LMPLZ['memory'] / 1e9:.0f} GB")
            record("ngram_large", options.quick, about, results=large, lmplz=LMPLZ)
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
