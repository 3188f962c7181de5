"""Claim: the n-gram model has the perplexities of interpolated modified Kneser-Ney on Brown and WikiText-2.

Brown is read as in Bengio et al. (2003), with orders 3 to 5. WikiText-2 is read as published, with order 5, as a stream
whose line ends are counted, with all the words of its training part. The script verifies that the parts have as many tokens
as published, and that the probabilities of all words sum to one after contexts of each text.

With --large, the script also measures the time and the peak memory of estimating a model of order 5 on 100 million words,
with each of the bounds of memory, and records them in a file of their own. The words are random pieces of WikiText-2 of 3
words on average. Such a text has about as many distinct n-grams as a natural text of its length, and time and memory depend
on their number. The models must be the same, bit for bit. Beside it stands the rate that Heafield et al. (2013,
https://aclanthology.org/P13-2121) published for KenLM's lmplz, on another machine: 126 billion tokens in 2.8 days, with 140 GB.

With --lmplz PATH, which is that program, the script runs it and `fflm ngram train` on the sentences of WikiText-2 and, with
--large, of the large text, with the same order and bound of memory. Both read the same file, in which <unk> has another name,
because lmplz refuses this word. lmplz writes an ARPA file; the folder that fflm writes also has the index, so that the model can
be used at once. Both run in turns, and their processor time is compared, which other programs affect less. The models must have
as many n-grams of each order, and the same probabilities and back-off weights in a sample. <unk> is in the sample: it does not
occur, so both give it what is left to each word when unigrams are interpolated.

With --nltk PYTHON, a Python that has nltk (`python3 -m venv nltk; nltk/bin/pip install nltk`), the script also trains and
scores with nltk.lm.KneserNeyInterpolated, on the beginning of WikiText-2 with order 3, and records the rates beside fflm's.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import FFLM, brown, check_sizes, machine, parse, quartiles, record, resident, show_verdict, wikitext

from fflm.cli.report import describe_perplexity
from fflm.errors import FflmError
from fflm.models.ngram.counting import Work
from fflm.models.ngram.estimate import estimate, estimate_on_disk
from fflm.models.ngram.indexing import build_index
from fflm.models.ngram.kernels import find_contexts
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.settings import ORDER, memory_bytes
from fflm.models.ngram.tables import Tables
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

LMPLZ_BOUND = "2G"
"""The bound of memory with which lmplz and fflm estimate the same model."""

ROUNDS = [11, 3]
"""How often each program estimates a model of WikiText-2, so that the noise has a margin, and of the large text."""

SAMPLES, DIFFERENCE = 20_000, 1e-4
"""How many n-grams are compared with lmplz's, and the largest difference of their base-10 logarithms."""

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

MEASURED = """
import json, os, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds, processor = time.monotonic() - started, usage.ru_utime + usage.ru_stime
print(json.dumps({"seconds": seconds, "processor_seconds": processor, "memory": usage.ru_maxrss * 1024}))
process.returncode = status
sys.exit(status != 0)
"""
"""Runs a command from a small process, because Linux counts the memory of the process that starts a command as the command's."""


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
    before = resident()[1]
    started, processor = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(dir=work) as name:
        place = Work(Path(name), memory_bytes(memory))
        estimated = estimate_on_disk(place, ids, corpus.vocabulary, corpus.settings, ORDER)
        counted = time.monotonic() - started
        _, rows = build_index(place, estimated.levels, words)
        seconds, processor = time.monotonic() - started, time.process_time() - processor
        peak = resident()[1]
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


def measure_lmplz(lmplz: Path, name: str, ids: np.ndarray, words: Sequence[str], folder: Path, rounds: int) -> dict[str, Any]:
    """Estimate a model of a text with lmplz and with fflm, in turns, and compare both models.

    Returns the medians of what they took, quartiles of the ratio of fflm's processor time to lmplz's, and how far they differ.
    """
    text, arpa, model = folder / "sentences.txt", folder / "sentences.arpa", folder / "sentences.ngram"
    write_sentences(ids, words, text)
    reading = ["--tokenizer", "space", "--mode", "sentence", "--min-count", 1, "--valid", 0]
    shared = ["--order", ORDER, "--memory", LMPLZ_BOUND, "--overwrite", "-q"]
    commands = {
        "lmplz": [lmplz, "-o", ORDER, "-S", LMPLZ_BOUND, "-T", f"{folder}/", "--text", text, "--arpa", arpa],
        "fflm": [*FFLM, "ngram", "train", text, "-o", model, *reading, *shared],
    }
    runs: dict[str, list[dict[str, float]]] = {program: [] for program in commands}
    for turn in range(rounds):
        for program in sorted(commands, reverse=bool(turn % 2)):
            runs[program].append(run_measured(*commands[program]))
    took = {
        program: {figure: statistics.median(each[figure] for each in own) for figure in own[0]} for program, own in runs.items()
    }
    pairs = zip(runs["fflm"], runs["lmplz"], strict=True)
    ratio = quartiles([own["processor_seconds"] / other["processor_seconds"] for own, other in pairs])
    for program, figures in took.items():
        print(
            f"{name}, {len(ids):,} tokens, order {ORDER}, bound {LMPLZ_BOUND}, {program}: {figures['seconds']:.1f} s, "
            f"of processors {figures['processor_seconds']:.1f} s, peak memory {figures['memory'] / 1e9:.2f} GB"
        )
    print(f"fflm takes {ratio['median']:.2f} times lmplz's processor time ({ratio['low']:.2f} to {ratio['high']:.2f})")
    about = {"corpus": name, "tokens": len(ids), "order": ORDER, "bound": LMPLZ_BOUND, "rounds": rounds}
    return {**about, **took, "processor_seconds_relative_to_lmplz": ratio, **compare(arpa, model)}


def write_sentences(ids: np.ndarray, words: Sequence[str], file: Path) -> None:
    """Write a text (N,), in which line ends are tokens, as the lines that are not empty; lmplz needs an end of the last one."""
    end = words.index("</s>")
    names = np.array([{"</s>": "\n", "<unk>": "[unknown] "}.get(word, f"{word} ") for word in words], object)
    ids = np.append(ids, np.uint32(end))
    ids = ids[(ids != end) | (np.append(np.uint32(end), ids[:-1]) != end)]
    with file.open("w", encoding="utf-8") as output:
        for low in range(0, len(ids), 1 << 20):
            output.write("".join(names[ids[low : low + (1 << 20)]]))


def run_measured(*command: Any) -> dict[str, float]:
    """Run a command; return its time and its processor time, in seconds, and the peak memory of its largest process, in bytes."""
    words = list(map(str, command))
    found = subprocess.run([sys.executable, "-c", MEASURED, *words], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(f"failed: {' '.join(words)}")
    figures: dict[str, float] = json.loads(found.stdout)
    return figures


def compare(arpa: Path, folder: Path) -> dict[str, Any]:
    """Compare n-grams at random places of lmplz's file with those of a model; exit if the models differ.

    Returns the number of n-grams of each order, that of those that were compared, and the largest difference.
    """
    model = NgramModel.load(folder)
    numbers, rows = {word: number for number, word in enumerate([*model.vocabulary.words, "<s>"])}, defaultdict(list)
    with arpa.open("rb") as file:
        file.readline()
        counts = [int(file.readline().partition(b"=")[2]) for _ in range(ORDER)]
        places = np.random.default_rng(1).integers(arpa.stat().st_size, size=SAMPLES).tolist()
        for place in (file.tell() + 1, *places):  # the first is that of <unk>
            file.seek(place)
            file.readline()
            log_p, *rest = file.readline().decode().split("\t")
            words = [numbers[word] for word in rest[0].split()] if rest else []
            if words and words != [numbers["<s>"]]:  # lmplz gives <s> a probability
                rows[len(words)].append((words, float(log_p), float(rest[1]) if len(rest) > 1 else 0.0))
    differences = np.concatenate([_differences(model.tables, *map(np.array, zip(*some, strict=True))) for some in rows.values()])
    compared, largest = len(differences), float(differences.max())
    print(f"compared {compared:,} of {sum(counts):,} n-grams: log10 p and back-off weights differ by at most {largest:.1e}")
    if counts[1:] != model.about["ngram"]["counts"][1:] or largest > DIFFERENCE:
        sys.exit(f"the models differ, nothing is recorded: lmplz has {counts} n-grams, fflm {model.about['ngram']['counts']}")
    return {"counts": counts, "compared": compared, "largest_difference": largest}


def _differences(tables: Tables, words: np.ndarray, log_p: np.ndarray, back_offs: np.ndarray) -> np.ndarray:
    """Return how much the base-10 logarithms of n-grams (B, n) differ from those of tables, (B,)."""
    contexts, own = np.full((2, len(words)), -1), np.full((2, len(words)), -np.inf)
    for found, length in zip(contexts, (words.shape[1] - 1, words.shape[1]), strict=True):
        find_contexts(tables.children, tables.words, words[:, :length].astype(np.int32), found, 1)
    for i, (node, longer) in enumerate(contexts.T.tolist()):
        low, high = tables.starts[node : node + 2].tolist()
        gram = low + int(np.searchsorted(tables.targets[low:high], words[i, -1]))
        if node >= 0 and gram < high and tables.targets[gram] == words[i, -1]:
            own[0, i] = tables.log_probabilities[gram]
        own[1, i] = tables.back_offs[longer] if longer >= 0 else 0
    return np.abs(own / np.log(10) - [log_p, back_offs]).max(axis=0)


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
    parser.add_argument("--lmplz", type=Path, metavar="PATH", help="also estimate with this program of KenLM")
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
        tokens = 10**6 if options.quick else options.tokens
        if options.lmplz:
            corpus = corpora["WikiText-2"]
            texts = {"WikiText-2": corpus.parts["train"].ids[:]}
            if options.large:
                texts["pieces of WikiText-2"] = pieces(texts["WikiText-2"], tokens)
            words, rounds = corpus.vocabulary.words, [2, 2] if options.quick else ROUNDS
            beside = [
                measure_lmplz(options.lmplz, *text, words, Path(name), many)
                for text, many in zip(texts.items(), rounds, strict=False)
            ]
            record("ngram_lmplz", options.quick, about, results=beside)
        if options.large:
            large = []
            for bound in BOUNDS:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so that its peak memory is that of the estimation
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
