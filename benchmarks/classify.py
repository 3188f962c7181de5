"""Claim: a text classifier is at least as accurate as fastText's on the same words, and trains and predicts at least as fast.

There are two data sets, neither of them part of the repository:

- The texts are paragraphs of the docstrings of installed packages, and the class is the package. Each file of a package is
  used either for training or for the test, so that the test texts are from files that were not seen in training.
- Given brown.txt and wikitext-2, the texts are sentences of Brown and of WikiText-2, and the class is the corpus.

Both classifiers split at white space, use all words (no minimum count, no held-out text), make five passes over the texts on
two threads, with words alone and with bigrams, and otherwise have their default settings: 64 dimensions in fflm, 100 in
fastText. They take turns. The training time is from the file of labeled text to a saved model that predicts; it does not include
the start of the process, the imports and the loading of compiled kernels. The prediction time is from the test texts to labels.
fastText's threads race, so its figures differ from run to run. The ratios of the two in each round are compared with 1, with
their margins of noise (`common.median_interval`); where a margin contains 1, there is no verdict, and the script exits with an
error, too.
"""

import argparse
import ast
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, parse, quartiles, record, shortfalls, show_verdict

import fflm
from fflm.models.classifier.metrics import Report
from fflm.models.classifier.reading import Labeled, read_labeled

try:
    import fasttext
except ImportError:
    fasttext = None

PACKAGES = ("matplotlib", "networkx", "numba", "numpy", "scipy", "sklearn", "sympy", "torch")
SHORTEST = 8
"""Words of the shortest paragraph."""

LONGEST = 100
"""Words at which a paragraph is cut."""

SENTENCES = 40_000
"""Of each of the two texts."""

EPOCHS, THREADS, ROUNDS = 5, 2, 11

FIGURES = {"accuracy": False, "macro_f1": False, "train_seconds": True, "texts_per_second": False}
"""What is compared, and whether less is better."""


def docstrings(package: str) -> Iterator[tuple[str, str]]:
    """Yield the paragraphs of a package's docstrings, each with its file."""
    found = find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
                    text := ast.get_docstring(node)
                ):
                    for paragraph in text.split("\n\n"):
                        if len(words := paragraph.split()) >= SHORTEST:
                            yield str(path.relative_to(folder)), " ".join(words[:LONGEST])


def packages() -> dict[str, list[tuple[str, str]]]:
    """Return labels and paragraphs; every fifth file is for the test. Duplicate paragraphs are removed."""
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    seen: set[str] = set()
    for package in PACKAGES:
        for number, (_, paragraphs) in enumerate(_by_file(docstrings(package))):
            for paragraph in paragraphs:
                if paragraph not in seen:
                    seen.add(paragraph)
                    parts["test" if number % 5 == 0 else "train"].append((package, paragraph))
    return parts


def _by_file(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the files in random order, with their paragraphs."""
    files: dict[str, list[str]] = {}
    for file, paragraph in pairs:
        files.setdefault(file, []).append(paragraph)
    order = np.random.default_rng(0).permutation(len(files))
    names = list(files)
    return ((names[place], files[names[place]]) for place in order)


def corpora(brown: Path, wikitext: Path) -> dict[str, list[tuple[str, str]]]:
    """Return labels and sentences; every fifth sentence is for the test.

    Marks that would reveal the corpus are unified: quotes, <unk>, @-@.
    """
    sentences = {
        "brown": [line.replace("``", '"').replace("''", '"') for line in brown.read_text().splitlines()],
        "wikitext": [
            sentence.replace("<unk>", "").replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
            for line in (wikitext / "train.txt").read_text().splitlines()
            if not line.startswith(" =")
            for sentence in line.split(" . ")
        ],
    }
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for label, found in sentences.items():
        usable = [" ".join(sentence.rstrip(" .").split()) for sentence in found if len(sentence.split()) >= SHORTEST]
        for number, place in enumerate(np.random.default_rng(0).permutation(len(usable))[:SENTENCES]):
            parts["test" if number % 5 == 0 else "train"].append((label, usable[place]))
    return parts


def ours(folder: Path, bigrams: bool) -> Callable[[list[str]], list[str]]:
    """Train fflm's classifier and return its function for predictions."""
    classifier = fflm.train_classifier(
        folder / "train.tsv",
        folder / "ours",
        valid=None,
        tokenizer="space",
        epochs=EPOCHS,
        threads=THREADS,
        bigrams=bigrams,
    )
    return classifier.predict


def theirs(folder: Path, bigrams: bool) -> Callable[[list[str]], list[str]]:
    """Train fastText's classifier and return its function for predictions."""
    model = fasttext.train_supervised(
        str(folder / "train.fasttext"), epoch=EPOCHS, thread=THREADS, wordNgrams=2 if bigrams else 1, verbose=0
    )
    model.save_model(str(folder / "theirs.bin"))
    return lambda texts: [labels[0].removeprefix("__label__") for labels in model.predict(texts)[0]]


def compare(name: str, parts: dict[str, list[tuple[str, str]]], rounds: int) -> dict[str, Any]:
    """Train and test both classifiers on a data set, in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        order = np.random.default_rng(0).permutation(len(parts["train"]))
        rows = [parts["train"][place] for place in order]
        (folder / "train.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in rows))
        (folder / "train.fasttext").write_text("".join(f"__label__{label} {text}\n" for label, text in rows))
        (folder / "test.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in parts["test"]))
        test = read_labeled([folder / "test.tsv"])
        assert len(read_labeled([folder / "train.fasttext"])) == len(rows)
        counts = Counter(label for label, _ in rows)
        print(
            f"{name}: {len(rows):,} texts to train, {len(test):,} to test, " + ", ".join(f"{k} {v:,}" for k, v in counts.items())
        )
        contenders: dict[str, Callable[[Path, bool], Callable[[list[str]], list[str]]]] = {"fflm": ours}
        if fasttext:
            contenders["fastText"] = theirs
        runs: dict[tuple[str, bool], list[dict[str, float]]] = {}
        for turn in range(rounds + 1):  # the first round is not counted, because kernels are compiled or loaded in it
            for bigrams in (False, True):
                for contender, train in contenders.items():
                    figures = measure(train, folder, bigrams, test)
                    if turn:
                        runs.setdefault((contender, bigrams), []).append(figures)
    results = [
        {"contender": contender, "bigrams": bigrams, **{key: quartiles([run[key] for run in found]) for key in found[0]}}
        for (contender, bigrams), found in runs.items()
    ]
    for row in results:
        print(
            f"  {row['contender']:9} {'bigrams' if row['bigrams'] else 'words':8} accuracy {row['accuracy']['median']:.4f}, "
            f"macro F1 {row['macro_f1']['median']:.4f}, trained in {row['train_seconds']['median']:.2f} s, "
            f"{row['texts_per_second']['median']:,.0f} texts predicted per second"
        )
    ratios = {}
    for bigrams in (False, True) if fasttext else ():
        pairs = list(zip(runs["fflm", bigrams], runs["fastText", bigrams], strict=True))
        for figure, less in FIGURES.items():
            found = [theirs[figure] / ours[figure] if less else ours[figure] / theirs[figure] for ours, theirs in pairs]
            ratios[f"{name}, {'bigrams' if bigrams else 'words'}, {figure}"] = quartiles(found)
    return {
        "data": name,
        "texts": {part: len(found) for part, found in parts.items()},
        "classes": dict(counts),
        "results": results,
        "ratios": ratios,
    }


def measure(
    train: Callable[[Path, bool], Callable[[list[str]], list[str]]], folder: Path, bigrams: bool, test: Labeled
) -> dict[str, float]:
    """Train and test one classifier once; the model of the last turn is removed before."""
    shutil.rmtree(folder / "ours", ignore_errors=True)
    (folder / "theirs.bin").unlink(missing_ok=True)
    started = time.perf_counter()
    predict = train(folder, bigrams)
    trained = time.perf_counter()
    predict(test.texts[:1])  # the first prediction also loads code and is not timed
    asked = time.perf_counter()
    predicted = predict(test.texts)
    answered = time.perf_counter()
    labels = tuple(sorted(set(test.labels)))
    places = {label: place for place, label in enumerate(labels)}
    chances = np.eye(len(labels))[[places[label] for label in predicted]]
    report = Report.of(labels, chances, np.array([places[label] for label in test.labels]))
    return {
        "accuracy": report.accuracy,
        "macro_f1": report.macro_f1,
        "train_seconds": trained - started,
        "texts_per_second": len(test) / (answered - asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "texts",
        nargs="*",
        type=Path,
        metavar="brown.txt wikitext-2",
        help="the second data set",
    )
    options = parse(parser)
    if len(options.texts) not in (0, 2):
        parser.error("give both brown.txt and the folder wikitext-2, or neither")
    about = machine()
    data = {"docstrings": packages()}
    if options.texts:
        data["Brown or WikiText-2"] = corpora(*options.texts)
    if options.quick:
        data = {name: {part: rows[:: max(1, len(rows) // 2000)] for part, rows in parts.items()} for name, parts in data.items()}
    results = [compare(name, parts, 2 if options.quick else ROUNDS) for name, parts in data.items()]
    ratios = {name: row for result in results for name, row in result["ratios"].items()}
    missed, undecided = shortfalls(ratios, 1)
    passed = show_verdict(missed, undecided) if fasttext else None
    versions = {"fasttext": version("fasttext-wheel") if fasttext else None}
    record(
        "classify",
        options.quick,
        about,
        versions=versions,
        epochs=EPOCHS,
        threads=THREADS,
        results=results,
        missed=missed,
        undecided=undecided,
        passed=passed,
    )
    if not fasttext:
        print("fastText is not installed (pip install fasttext-wheel): no comparison")
    elif not passed and not options.quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
