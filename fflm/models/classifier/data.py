"""The labeled texts that a classifier is trained on: from files to examples, and in the classifier's folder."""

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import Encoding, Errors, check, to_texts
from fflm.arrays import EXAMPLES, load_arrays, save_arrays
from fflm.errors import FflmError, FflmWarning, SettingsError
from fflm.given import Text
from fflm.models.classifier.features import Reader, Texts, count_words, each_label, number_texts
from fflm.models.classifier.model import read_description
from fflm.models.classifier.reading import Format, LabelColumn, Labeled, TextColumn, read_labeled, read_tagged
from fflm.models.classifier.settings import Test, TextInput, Valid
from fflm.stored import REMEDY
from fflm.text.holdout import Share, parse_held_out
from fflm.text.vocabulary import VocabularyRule
from fflm.training.examples import Scale

ARRAYS = ("ids", "starts", "labels")
"""The arrays of `Texts`, as they are stored."""


@dataclass(frozen=True)
class LabeledSource:
    """Labeled texts: where they come from, how they are read, and which of them are held out.

    Parameters
    ----------
    inputs
        Files, folders, ``"-"`` or texts in memory, as `read_labeled` takes them; one or several, of which a tuple is made.
    valid, test
        The parts to hold out, as `parse_held_out` takes them; a number counts texts.
    format, text_column, label_column, encoding, errors
        As `read_labeled` takes them.

    Raises
    ------
    FflmError
        If the inputs are not paths, or a value is not what its annotation allows.
    """

    inputs: tuple[Path | Text, ...]
    valid: Valid = "10%"
    test: Test = None
    format: Format = "auto"
    text_column: TextColumn = "text"
    label_column: LabelColumn = "label"
    encoding: Encoding = "utf-8"
    errors: Errors = "strict"

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", to_texts("inputs", self.inputs))
        for name in ("valid", "test"):
            parse_held_out(name, getattr(self, name))
        for field in dataclasses.fields(self):
            if field.name not in ("inputs", "valid", "test"):
                check(field.name, field.type, getattr(self, field.name))

    def read(self, seed: int, *, tagged: bool = False) -> dict[str, Labeled]:
        """Read all parts. Those without files of their own are drawn at random: texts of each class in proportion, or sentences.

        Parameters
        ----------
        seed
            Random seed of the drawing.
        tagged
            Whether the files are tagged text.

        Raises
        ------
        FflmError
            As `read_labeled` or `read_tagged`, or if there are too few texts to hold some out.
        """
        if tagged and self.format != "auto":
            raise SettingsError(f"tagged text has a word, a tab and a tag on each line: leave out `format='{self.format}'`")
        everything = self._read(self.inputs, tagged)
        held_out = {name: part for name in ("valid", "test") if (part := parse_held_out(name, getattr(self, name))) is not None}
        files = {name: part for name, part in held_out.items() if isinstance(part, tuple)}
        if len(files) == len(held_out):  # nothing is drawn
            return {"train": everything, **{name: self._read(part, tagged) for name, part in files.items()}}
        order = _sentence_order(everything.labels, seed) if tagged else _drawing_order(everything.labels, seed)
        parts = {}
        for name, part in held_out.items():
            if isinstance(part, tuple):
                parts[name] = self._read(part, tagged)
                continue
            count = round(part.value * len(everything)) if isinstance(part, Share) else part.tokens
            if not 0 < count < len(order):
                texts = f"{len(everything)} {'sentences' if tagged else 'texts'}"
                raise FflmError(f"there are {texts}, {count} of them cannot be held out for {name}: give more, or `{name}=0`")
            chosen, order = order[:count], order[count:]
            parts[name] = everything.take(np.sort(chosen))
        return {"train": everything.take(np.sort(order)), **parts}

    def _read(self, paths: tuple[Path | Text, ...], tagged: bool) -> Labeled:
        if tagged:
            return read_tagged(paths, encoding=self.encoding, errors=self.errors)
        return read_labeled(
            paths,
            self.format,
            text_column=self.text_column,
            label_column=self.label_column,
            encoding=self.encoding,
            errors=self.errors,
        )


def _drawing_order(labels: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """Return the order in which texts are held out, (N,): random, and evenly spread over the classes.

    A text's rank is its place among the texts of its class, divided by their number. The last text of each class comes at the
    end, so that training sees every class.
    """
    generator = np.random.default_rng(seed)
    classes, places = np.unique(labels, return_inverse=True)
    order = generator.permutation(len(labels))
    ranks = np.empty(len(labels))
    for class_ in range(len(classes)):
        own = order[places[order] == class_]
        ranks[own] = (np.arange(len(own)) + generator.uniform()) / len(own)
        ranks[own[-1]] = 1
    return np.argsort(ranks, kind="stable")


def _sentence_order(labels: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """Return the order in which sentences are held out, (S,), given their tags: random.

    The last sentence with each tag comes at the end, so that training sees every tag.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    last = {tag: place for place, sentence in enumerate(order.tolist()) for tag in labels[sentence].split()}
    kept = np.isin(np.arange(len(order)), list(last.values()))
    return np.concatenate([order[~kept], order[kept]])


@dataclass(frozen=True)
class ClassifierData:
    """The texts that a classifier is trained and evaluated on, as a network reads them.

    Attributes
    ----------
    examples
        The texts of each part: train, and perhaps valid and test.
    labels
        The labels of the classes, in the order of the network's outputs.
    reader
        What turns texts into what the network reads.
    shares
        As `fflm.models.classifier.model.TextClassifier` has them.
    """

    examples: dict[str, Texts]
    labels: tuple[str, ...]
    reader: Reader
    shares: npt.NDArray[np.float64] | None

    @classmethod
    def of(cls, parts: Mapping[str, Labeled], input: TextInput, rule: VocabularyRule, balanced: bool) -> Self:
        """Encode labeled texts, with the vocabulary, the scale and the class shares of the training part.

        Raises
        ------
        FflmError
            If the training texts have a single label or no words, or a held-out text has a label that they lack.
        """
        train = parts["train"]
        labels = tuple(sorted({tag for label in train.labels for tag in (label.split() if input.tagging else [label])}))
        if len(labels) < 2:
            raise FflmError(f"all {input.unit}s have the label {labels[0]!r}: give {input.unit}s of at least two classes")
        numbered = number_texts(input.tokenizer, train.texts)
        reader = Reader(input, count_words(input, numbered, rule.min_count, rule.max_size))
        if constant := reader.constant_features:
            named = ", ".join(constant[:5]) + (", ..." if len(constant) > 5 else "")
            remedy = "check the spelling of the words, and that texts have spaces between words"
            warnings.warn(
                f"no training text has a word of these features, which are always 0 there: {named}; {remedy}",
                FflmWarning,
                stacklevel=2,
            )
        examples = {}
        for name, part in parts.items():
            words = reader.encode_numbered(numbered) if name == "train" else reader.encode(part.texts)
            examples[name] = Texts(reader, *words, np.empty(0, np.int32))
            examples[name].labels = _class_numbers(part, labels, examples[name], name)
        if input.input == "features":
            reader.scale = Scale.of(rows for rows, _ in examples["train"].in_order())
        counts = examples["train"].counts(len(labels))
        return cls(examples, labels, reader, counts / counts.sum() if balanced else None)

    @classmethod
    def load(cls, path: Path, about: Mapping[str, Any]) -> Self:
        """Read the data in a classifier's folder, of which ``about`` is the config.json.

        Raises
        ------
        FflmError
            If it is damaged.
        """
        _, labels, reader, shares = read_description(path, about)
        return cls(_read_examples(path / EXAMPLES, reader, len(labels)), labels, reader, shares)

    def save_examples(self, path: Path) -> None:
        """Write the texts into a classifier's folder; the other fields are in its config.json."""
        arrays = {f"{name}.{array}": getattr(part, array) for name, part in self.examples.items() for array in ARRAYS}
        save_arrays(path / EXAMPLES, arrays, list(self.examples))

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Numbers of examples and words of each part, and of sentences if words are the examples."""
        sizes = {}
        for name, part in self.examples.items():
            sizes[name] = {"texts": len(part), "words": len(part.ids)}
            if self.reader.input.tagging:
                sizes[name]["sentences"] = len(part.starts) - 1
        return sizes

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of all texts and their labels."""
        sha256 = hashlib.sha256()
        for name, part in self.examples.items():
            sha256.update(name.encode())
            for array in ARRAYS:
                sha256.update(getattr(part, array).tobytes())
        return sha256.hexdigest()


def _class_numbers(part: Labeled, labels: Sequence[str], texts: Texts, name: str) -> npt.NDArray[np.int32]:
    """Return the classes of the N examples of a part, (N,)."""
    places, given = {label: place for place, label in enumerate(labels)}, each_label(part.labels, texts)
    if unknown := sorted(set(given).difference(places)):
        raise FflmError(
            f"the label {unknown[0]!r} is in the {name} text, but not in that for training: give it examples there, too"
        )
    return np.array([places[label] for label in given], np.int32)


def _read_examples(path: Path, reader: Reader, classes: int) -> dict[str, Texts]:
    """Read the texts of a classifier's folder.

    Raises
    ------
    FflmError
        If they are damaged: a word outside the vocabulary, a label that is not a class, texts that do not follow each other.
    """
    arrays, names = load_arrays(path, (np.int32, np.int64), list[Literal["train", "valid", "test"]])
    examples = {}
    for name in names:
        parts = [arrays.get(f"{name}.{array}", np.empty(0, np.int32)) for array in ARRAYS]
        ids, starts, labels = parts
        texts = Texts(reader, ids, starts, labels)
        if not (
            (ids.ndim, starts.ndim, labels.ndim) == (1, 1, 1)
            and [each.dtype.type for each in parts] == [np.int32, np.int64, np.int32]
            and len(starts) > 1
            and len(texts) == len(labels) > 0
            and (starts[0], starts[-1]) == (0, len(ids))
            and bool((starts[1:] >= starts[:-1]).all())
            and _all_below(ids, len(reader.vocabulary))
            and _all_below(labels, classes)
        ):
            raise FflmError(f"{path} is damaged (its {name} texts do not belong to this classifier): {REMEDY}")
        examples[name] = texts
    if "train" not in examples:
        raise FflmError(f"{path} is damaged (it has no texts to train on): {REMEDY}")
    return examples


def _all_below(numbers: npt.NDArray[np.int32], limit: int) -> bool:
    return not len(numbers) or bool(numbers.min() >= 0 and numbers.max() < limit)
