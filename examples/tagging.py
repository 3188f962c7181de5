"""Part-of-speech tagging: which of 17 classes a word has, from a window of words around it.

Many words belong to several classes. In "we can open the can", "can" is an auxiliary verb and then a noun, and "open" may be a
verb or an adjective. A network that reads the embeddings of the word and of its neighbors, concatenated, and that ends in a
softmax over the K classes, can tell (Collobert et al. 2011, "Natural Language Processing (Almost) from Scratch", section 3.3.1).
The classes are the 17 universal parts of speech (https://universaldependencies.org/u/pos). Places before and after the sentence
are padding.

The sentences here are written by a small grammar, with a tag for each word. We compare

    the most frequent tag     of each word, without a look at its neighbors
    windows of 1, 3, 5 words  the word alone; with one neighbor on each side; with two

FILE is tagged text of your own, which is split into 80% for training and 20% for the test: a line is a word, a tab and its tag,
or CoNLL-U, as the treebanks of https://universaldependencies.org have it, and a blank line ends a sentence.

    python examples/tagging.py [FILE]
"""

import argparse
import random
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import fflm
from fflm.models.classifier.reading import read_tagged

Sentences = list[tuple[list[str], list[str]]]

WORDS = {
    "ADJ": "light open clean old small green",
    "ADP": "in on with after like",
    "ADV": "back well often home fast",
    "AUX": "can will may must",
    "CCONJ": "and or but",
    "DET": "the a that every",
    "INTJ": "oh well yes",
    "NOUN": "can will light walk book water play hand dog street back home",
    "NUM": "two three ten",
    "PART": "not",
    "PRON": "she we they that it",
    "PROPN": "Ann Ben May Will London",
    "PUNCT": ". ! ?",
    "SCONJ": "that because after if",
    "SYM": "% $ +",
    "VERB": "light open clean walk book water play hand see like",
    "X": "etc bla vroom",
}
"""The words of each class: some are in two or three."""


def noun_phrase(generator: random.Random) -> list[str]:
    """Return the tags of a phrase such as "the old dog", "she" or "two books"."""
    kinds = [["PRON"], ["PROPN"], ["DET", "NOUN"], ["DET", "ADJ", "NOUN"], ["NUM", "NOUN"], ["NUM", "SYM"], ["NOUN", "X"]]
    return generator.choices(kinds, [6, 4, 10, 6, 2, 1, 1])[0]


def clause(generator: random.Random) -> list[str]:
    """Return the tags of a clause such as "she will not open the book on the street"."""
    auxiliary = generator.choices([[], ["AUX"], ["AUX", "PART"], ["AUX", "ADV"]], [5, 4, 2, 1])[0]
    place = ["ADP", *noun_phrase(generator)] if generator.random() < 0.4 else ["ADV"] if generator.random() < 0.3 else []
    return [*noun_phrase(generator), *auxiliary, "VERB", *noun_phrase(generator), *place]


def write_sentence(generator: random.Random) -> tuple[list[str], list[str]]:
    """Return the words and the tags of a random sentence."""
    tags = clause(generator)
    if generator.random() < 0.4:
        tags += [generator.choice(["CCONJ", "SCONJ"]), *clause(generator)]
    if generator.random() < 0.1:
        tags.insert(0, "INTJ")
    tags.append("PUNCT")
    return [generator.choice(WORDS[tag].split()) for tag in tags], tags


def write_sentences(count: int, seed: int = 1) -> Sentences:
    """Return random sentences."""
    generator = random.Random(seed)
    return [write_sentence(generator) for _ in range(count)]


def read_sentences(path: Path) -> Sentences:
    """Return the sentences of a file, in random order."""
    found = read_tagged([path])
    sentences = [(text.split(" "), label.split(" ")) for text, label in zip(found.texts, found.labels, strict=True)]
    random.Random(1).shuffle(sentences)
    return sentences


def save(sentences: Sentences, path: Path) -> None:
    """Write sentences as `fflm classify train --input tagging` reads them."""
    pairs = (zip(*sentence, strict=True) for sentence in sentences)
    path.write_text("\n".join("".join(f"{word}\t{tag}\n" for word, tag in each) for each in pairs), encoding="utf-8")


def most_frequent(train: Sentences, test: Sentences) -> float:
    """Return the accuracy of the tag that each word has most often in training, and unknown words the most frequent of all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in train:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    default = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {word: each.most_common(1)[0][0] for word, each in counts.items()}
    right = [best.get(word, default) == tag for words, tags in test for word, tag in zip(words, tags, strict=True)]
    return sum(right) / len(right)


def train_tagger(train: Sentences, length: int, folder: Path) -> fflm.TextClassifier:
    """Return a network that reads a window of so many words around each word."""
    save(train, folder / "train.tsv")
    epochs = 10 if len(train) < 5000 else 3
    return fflm.train_classifier(folder / "train.tsv", folder / f"window-{length}", input="tagging", length=length, epochs=epochs)


def measure(train: Sentences, test: Sentences, folder: Path) -> tuple[dict[str, float], fflm.TextClassifier]:
    """Return the accuracy of each way on test sentences, and the network with the widest window."""
    accuracies = {"the most frequent tag": most_frequent(train, test)}
    texts, labels = zip(*((" ".join(words), " ".join(tags)) for words, tags in test), strict=True)
    for length in (1, 3, 5):
        tagger = train_tagger(train, length, folder)
        accuracies[f"a window of {length}"] = tagger.evaluate(texts, labels)[0].accuracy
    return accuracies, tagger


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Part-of-speech tagging with a window of words.")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="tagged text (default: sentences of a small grammar)")
    path = parser.parse_args(arguments).file

    sentences = write_sentences(2500) if path is None else read_sentences(path)
    border = len(sentences) * 4 // 5
    train, test = sentences[:border], sentences[border:]
    classes = {tag for _, tags in train for tag in tags}
    test = [(words, tags) for words, tags in test if classes.issuperset(tags)]
    words = sum(len(words) for words, _ in test)
    print(f"{len(train):,} sentences for training, {len(test):,} with {words:,} words for the test, {len(classes)} classes\n")
    with tempfile.TemporaryDirectory() as folder:
        accuracies, tagger = measure(train, test, Path(folder))
    print(f"{'':22s} accuracy  0-1 loss")
    for title, accuracy in accuracies.items():
        print(f"{title:22s} {accuracy:8.1%} {1 - accuracy:9.3f}")
    print()
    for text in ("we can open the can .", "Will will light the light .") if path is None else [" ".join(test[0][0])]:
        print(" ".join(f"{word}/{tag}" for word, tag in zip(text.split(), tagger.predict([text])[0].split(), strict=True)))


if __name__ == "__main__":
    main()
