"""Data augmentation for text: a test whether a classifier improves if its few training texts are varied.

Each training text is used several times, with a small random change each time:

    word dropout    each word is left out with a probability of 0.2
    swaps           two adjacent words change places, in two places

The label does not change. Longer training alone might help, so "copies" repeats each text equally often without a change, for a
fair comparison. The task is that of section 10 of the guide: to tell whether a sentence of the stories contained quotation marks
before they were removed.

We measured no improvement, neither with 50 texts nor with 200: the differences are smaller than those between two random choices
of the training texts. The classifier ignores the order of words, so swaps do not change its input; with bigrams, swaps produce
pairs of words that do not occur in real text. The labels of this task depend on a few words, such as "said", which word dropout
removes as often as any other word. Augmentation helps if new texts have the same kind of variation. Only a measurement like this
one shows whether this is so for a task.

    python examples/augmentation.py [--repeats N]
"""

import argparse
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fflm

STORIES = Path(__file__).parents[1] / "corpora" / "stories.txt"
COPIES = 8
Texts = list[tuple[str, list[str]]]


def read() -> tuple[Texts, Texts]:
    """Return the labeled sentences for training, and for the test those of every tenth story."""
    parts: tuple[Texts, Texts] = ([], [])
    for number, story in enumerate(STORIES.read_text(encoding="utf-8").split("\n\n")):
        for sentence in story.splitlines():
            words = re.findall("[a-z']+", sentence.lower())
            parts[number % 10 == 0].append(("speech" if '"' in sentence else "telling", words))
    return parts


def copy(words: list[str], generator: random.Random) -> list[str]:
    """Return a text without a change."""
    return words


def drop_words(words: list[str], generator: random.Random) -> list[str]:
    """Return a text without some of its words."""
    return [word for word in words if generator.random() >= 0.2] or words


def swap_words(words: list[str], generator: random.Random) -> list[str]:
    """Return a text in which two adjacent words have been swapped, twice."""
    words = list(words)
    for _ in range(2 * (len(words) > 1)):
        place = generator.randrange(len(words) - 1)
        words[place : place + 2] = words[place + 1], words[place]
    return words


CHANGES: dict[str, Callable[[list[str], random.Random], list[str]] | None] = {
    "as they are": None,
    "copies": copy,
    "word dropout": drop_words,
    "swaps": swap_words,
}


def augment(texts: Texts, name: str, seed: int) -> Texts:
    """Return texts together with `COPIES` - 1 changed copies of each, or without copies for the change "as they are"."""
    change, generator = CHANGES[name], random.Random(seed)
    if change is None:
        return texts
    return texts + [(label, change(words, generator)) for _ in range(COPIES - 1) for label, words in texts]


def accuracy(train: Texts, test: Texts, seed: int, bigrams: bool = False) -> float:
    """Train a classifier on texts, and return its accuracy on the test texts."""
    options = {"valid": None, "epochs": 30, "batch_size": 16, "bigrams": bigrams, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.tsv")
        path.write_text("".join(f"{label}\t{' '.join(words)}\n" for label, words in train), encoding="utf-8")
        model = fflm.train_classifier(path, Path(folder, "model"), **options)
    labels, texts = zip(*((label, " ".join(words)) for label, words in test), strict=True)
    report, _ = model.evaluate(texts, labels)
    return report.accuracy


def measure(size: int, repeats: int, bigrams: bool = False) -> dict[str, np.ndarray]:
    """Return the accuracies (repeats,) for each kind of change.

    For each repetition, ``size`` training texts are chosen at random, and training has a new seed.
    """
    texts, test = read()
    found: dict[str, list[float]] = {name: [] for name in CHANGES}
    for seed in range(1, repeats + 1):
        chosen = random.Random(seed).sample(texts, size)
        for name in CHANGES:
            found[name].append(accuracy(augment(chosen, name, seed), test, seed, bigrams))
    return {name: np.array(accuracies) for name, accuracies in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Data augmentation for text.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="drawings of the training texts (default: 5)")
    options = parser.parse_args(arguments)

    generator, sentence = random.Random(1), "said the dog i will stay here and wait for you"
    print("a text      ", sentence)
    for name, change in CHANGES.items():
        if change not in (None, copy):
            print(f"{name:12s} ", " ".join(change(sentence.split(), generator)), sep="")

    print(f"\ntest accuracy, mean and standard deviation over {options.repeats} drawings of the training texts")
    print(f"{'texts':>5s}  {'input':8s}" + "".join(f"{name:>16s}" for name in CHANGES))
    for size in (50, 200):
        for bigrams in (False, True):
            found = measure(size, options.repeats, bigrams)
            cells = "".join(f"{each.mean():9.1%} ± {each.std():4.1%}" for each in found.values())
            print(f"{size:5d}  {'bigrams' if bigrams else 'words':8s}{cells}")


if __name__ == "__main__":
    main()
