"""The inputs that a classifier's network reads of texts: ids of words, or numeric features."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError
from fflm.files import split_compression
from fflm.models.classifier.settings import TextInput
from fflm.text.extent import as_bytes
from fflm.text.numbering import Numbering
from fflm.text.reading import read_lines
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import ASCII_BLANKS, Tokenizer
from fflm.text.vocabulary import Vocabulary
from fflm.training.examples import Scale

if TYPE_CHECKING:
    from fflm.text.encoder import Encoder

CHUNK = 4096
"""Number of texts that are tokenized at a time."""

BIGRAM = re.compile("( |[^ ]+) ( |[^ ]+)")
"""A bigram in a vocabulary: two words and a space between them. A space is a word if the words are characters."""

SHORT = 1 << 20
"""Number of characters that a reader encodes without the kernels that read text, in less time than it takes to load these."""


class NumberedTexts(NamedTuple):
    """Tokens of texts as numbers.

    Attributes
    ----------
    numbers
        The numbers of all tokens, (T,) int32, one text after another. A 0 follows each text.
    types
        The distinct tokens; ``types[number]`` is the token with a number.
    """

    numbers: npt.NDArray[np.int32]
    types: list[str]


def number_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> NumberedTexts:
    """Tokenize texts."""
    numbering = Numbering(TextSettings(tokenizer))
    pieces = [np.empty(0, np.int32)]
    for low in range(0, len(texts), CHUNK):
        chunk = "\n".join([*texts[low : low + CHUNK], ""])
        pieces.append(numbering.number(as_bytes(chunk))[1])
    return NumberedTexts(np.concatenate(pieces), numbering.types())


def count_words(input: TextInput, texts: NumberedTexts, min_count: int, max_size: int | None) -> Vocabulary:
    """Return the vocabulary of a classifier: the words of texts, and the words that features need.

    Parameters
    ----------
    input
        How texts are read.
    texts
        The training texts.
    min_count, max_size
        As for `Vocabulary.from_counts`; words that features need are always included.

    Raises
    ------
    FflmError
        If the texts contain no words.
    """
    numbers, types = texts
    counts = dict(zip(types, np.bincount(numbers, minlength=len(types)).tolist(), strict=True))
    del counts[types[0]]  # the newline, which is not a word
    if not counts:
        raise FflmError("the texts have no words: give a text after each label")
    if input.bigrams:
        pairs, pair_counts = np.unique(_pairs(numbers, len(types)), return_counts=True)
        frequent = pair_counts >= max(min_count, 2)  # most bigrams occur only once, and nothing can be learned of them
        for pair, count in zip(pairs[frequent].tolist(), pair_counts[frequent].tolist(), strict=True):
            if pair >= 0:
                counts[f"{types[pair // len(types)]} {types[pair % len(types)]}"] = count
    found = Vocabulary.from_counts(counts, ends=False, min_count=min_count, max_size=max_size)
    named = [input.tokenizer.normalize(word) for words in (*input.lexicon.values(), input.present) for word in words]
    missing = [word for word in dict.fromkeys(named) if word not in found]
    if not missing:
        return found
    rule = f"{found.rule}, and {len(missing)} that features name"
    return Vocabulary(
        [*found.words, *missing], [*found.counts, *(counts.get(word, 0) for word in missing)], ends=False, rule=rule
    )


class Texts:
    """Texts as examples, for training and prediction. For tagging, the words of the texts are the examples.

    Parameters
    ----------
    reader
        The reader that computes the inputs of the network.
    ids, starts
        The T words of the S texts, (T,) int32 and (S + 1,) int64, as `Reader.encode` returns them.
    labels
        The classes of the N examples, (N,) int32. The examples are the S texts, or for tagging the T words.
    """

    def __init__(
        self, reader: "Reader", ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]
    ) -> None:
        self.reader = reader
        self.ids = ids
        self.starts = starts
        self.labels = labels

    def __len__(self) -> int:
        return len(self.ids) if self.reader.input.tagging else len(self.starts) - 1

    def counts(self, classes: int) -> npt.NDArray[np.int64]:
        """Return how often each class occurs, (classes,)."""
        return np.bincount(self.labels, minlength=classes)

    def batch(self, positions: npt.NDArray[np.integer]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Return the inputs of the network for the examples at positions (B,), as `Reader.rows` does, and their labels (B,)."""
        if self.reader.input.tagging:
            return self.reader.windows(self.ids, self.starts, positions), self.labels[positions]
        return self.reader.rows(self.ids, self.starts[positions], self.starts[positions + 1]), self.labels[positions]

    def in_order(self, size: int = 256) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int32]]]:
        """Yield the results of `batch` for all examples in their order, ``size`` at a time."""
        for low in range(0, len(self), size):
            yield self.batch(np.arange(low, min(low + size, len(self))))


def each_label(labels: Sequence[str], examples: Texts) -> list[str]:
    """Return the label of each of the N examples.

    Parameters
    ----------
    labels
        The label of each of the S texts. For tagging, it consists of the tags of the words, with spaces between them.
    examples
        The texts.

    Raises
    ------
    FflmError
        If the number of tags of a sentence is not its number of words.
    """
    if not examples.reader.input.tagging:
        return list(labels)
    for number, (label, words) in enumerate(zip(labels, np.diff(examples.starts).tolist(), strict=True), 1):
        if len(label.split()) != words:
            raise FflmError(f"sentence {number} has {words} words and {len(label.split())} tags: give each word one tag")
    return [tag for label in labels for tag in label.split()]


class Reader:
    """Computes the inputs of a network from texts.

    Parameters
    ----------
    input
        How texts are read.
    vocabulary
        The words, and with ``input.bigrams`` also the bigrams, that have ids.
    scale
        The scale of the features, if the input is features; None if they are not scaled.
    """

    def __init__(self, input: TextInput, vocabulary: Vocabulary, scale: Scale | None = None) -> None:
        self.input = input
        self.vocabulary = vocabulary
        self.scale = scale
        normalize = input.tokenizer.normalize
        groups = (*input.lexicon.values(), *([word] for word in input.present))
        members = {(vocabulary.id(normalize(word)), column) for column, words in enumerate(groups) for word in words}
        known = sorted(member for member in members if member[0])  # id 0 stands for all unknown words
        # The groups are the categories of the lexicon and the words of `input.present`. Each row of this array has the id of a
        # word and the number of a group that the word belongs to.
        self._members = np.array(known, np.int64).reshape(-1, 2)
        self._counted = min(input.counts, len(vocabulary) - 1)  # number of words whose counts are features
        self._seen = 0  # number of characters that were encoded

    @property
    def width(self) -> int:
        """Number of features of a text; 0 if the input is not features."""
        if self.input.input != "features":
            return 0
        return self._counted + len(self.input.names)

    @property
    def constant_features(self) -> list[str]:
        """The names of features that are 0 in all training texts, because none of their words occurs there."""
        counts = np.array(self.vocabulary.counts)[self._members[:, 0]]
        occurring = set(self._members[counts > 0, 1].tolist())
        groups = len(self.input.lexicon) + len(self.input.present)
        return [name for column, name in enumerate(self.input.names[:groups]) if column not in occurring]

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the words of texts as ids.

        Returns
        -------
        ids
            The ids of all words of the S texts, or of the first ``input.length`` words of each and their bigrams, one text after
            another, (T,) int32.
        starts
            The index in ``ids`` where each text begins, and T, (S + 1,) int64.
        """
        self._seen += sum(map(len, texts))
        if self._seen <= SHORT:
            return self.encode_numbered(number_texts(self.input.tokenizer, texts))
        ids, counts = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
        for low in range(0, len(texts), CHUNK):
            own, borders = self._encoder.encode(texts[low : low + CHUNK])
            ids.append(own)
            counts.append(np.diff(borders))
        return self._with_bigrams(np.concatenate(ids), np.cumsum(np.concatenate(counts)))

    def encode_numbered(self, texts: NumberedTexts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the words of texts that are tokenized as ids, as `encode` does."""
        numbers, types = texts
        ends = np.flatnonzero(numbers == 0)
        starts = np.concatenate([np.zeros(1, np.int64), ends - np.arange(len(ends))])
        return self._with_bigrams(self.vocabulary.encode(types)[numbers[numbers > 0]], starts)

    def _with_bigrams(
        self, words: npt.NDArray[np.int32], starts: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the words of texts with their bigrams, if the input has bigrams."""
        if self.input.bigrams:
            from fflm.models.classifier.kernels import with_bigrams  # here, because it imports Numba

            words, starts = with_bigrams(words, starts, self.input.length or len(words), self._bigrams)
        return words, starts

    @cached_property
    def _bigrams(self) -> npt.NDArray[np.uint64]:
        """The bigrams of the vocabulary, for `kernels.with_bigrams`."""
        from fflm.models.classifier.kernels import bigram_table  # here, because it imports Numba

        words = self.vocabulary.words
        found = [(id_, match) for id_, word in enumerate(words) if (match := BIGRAM.fullmatch(word))]
        ids = np.array([id_ for id_, _ in found], np.int32)
        lefts, rights = self.vocabulary.encode([part for _, match in found for part in match.groups()]).reshape(-1, 2).T
        known = (lefts > 0) & (rights > 0)
        table: npt.NDArray[np.uint64] = bigram_table(lefts[known], rights[known], ids[known])
        return table

    @cached_property
    def _encoder(self) -> "Encoder":
        from fflm.text.encoder import Encoder  # here, because it imports Numba

        return Encoder(TextSettings(self.input.tokenizer, line_ends=False), self.vocabulary)

    def rows(self, ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the inputs of the network for texts.

        Parameters
        ----------
        ids
            The words of all texts, (T,) int32.
        starts, ends
            Where the B texts begin and end in ``ids``, (B,) int64.

        Returns
        -------
        rows
            The words of the texts, (B, L) int32, with padding after shorter texts; or their features, (B, `width`) float32.
        """
        lengths = ends - starts
        if (self.input.length is not None and not self.input.bigrams) or self.input.input == "window":
            lengths = np.minimum(lengths, self.input.window)
        if self.input.input == "features":
            return self._features(ids, starts, lengths)
        from fflm.models.classifier.kernels import padded_rows  # here, because it imports Numba

        width = self.input.window if self.input.input == "window" else max(1, int(lengths.max(initial=0)))
        rows: npt.NDArray[np.int32] = padded_rows(ids, starts, lengths, width, self._padding)
        return rows

    def windows(
        self, ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], positions: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int32]:
        """Return the inputs of the network for tagging: windows of words.

        Parameters
        ----------
        ids, starts
            The words of all sentences, as `encode` returns them.
        positions
            The indices in ``ids`` of the words in the middle of the windows, (B,).

        Returns
        -------
        rows
            The words of the windows, (B, L) int32, with padding beyond the ends of a sentence.
        """
        sentences = np.searchsorted(starts, positions, "right") - 1
        places = positions[:, None] + np.arange(self.input.window) - self.input.window // 2
        inside = (places >= starts[sentences, None]) & (places < starts[sentences + 1, None])
        rows = np.full(places.shape, self._padding, np.int32)
        rows[inside] = ids[places[inside]]
        return rows

    @property
    def _padding(self) -> int:
        """The id in places without a word: that of the trained padding, or -1, which has no embedding."""
        return self.vocabulary.start_id if self.input.windowed and self.input.padding == "trained" else -1

    def _features(
        self, ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Return the features (B, `width`) of texts that begin at starts (B,) in ids (T,) and have lengths (B,).

        The columns are: counts of the most frequent words, one for each category of the lexicon, one for each word of
        ``input.present``, and the lengths.
        """
        # `rows` is the text, and `words` the id, of each word of these texts.
        rows = np.repeat(np.arange(len(starts)), lengths)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(starts, lengths)
        words, counted, size = ids[places], self._counted, len(starts)
        features = np.zeros((size, self.width), np.float32)
        known = (words > 0) & (words <= counted)
        cells = np.bincount(rows[known] * max(counted, 1) + words[known] - 1, minlength=size * counted)
        features[:, :counted] = cells.reshape(size, counted)
        # Each word is found in rows low to high - 1 of `_members`, one for each of its groups.
        low, high = (np.searchsorted(self._members[:, 0], words, side) for side in ("left", "right"))
        found = high - low
        places = np.arange(found.sum()) - np.repeat(np.cumsum(found) - found, found) + np.repeat(low, found)
        groups = len(self.input.lexicon) + len(self.input.present)
        cells = np.bincount(np.repeat(rows, found) * groups + self._members[places, 1], minlength=size * groups)
        features[:, counted : counted + groups] = cells.reshape(size, groups)
        first = counted + len(self.input.lexicon)
        present = features[:, first : first + len(self.input.present)]
        np.minimum(present, 1, out=present)
        if self.input.word_count:
            features[:, counted + groups] = lengths
        if self.input.log_length:
            features[:, -1] = np.log1p(lengths)
        return features if self.scale is None else self.scale.apply(features).astype(np.float32)


def _pairs(numbers: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int64]:
    """Return each number and the next one as a single integer, number * size + next, (T,).

    It is -1 if one of them is 0, or if there is no next number.
    """
    following = np.append(numbers[1:], np.int32(0))
    return np.where((numbers > 0) & (following > 0), numbers * np.int64(size) + following, -1)


def read_lexicon(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Read a lexicon: files with a word, a tab and its category per line.

    The category of a line without a tab is the name of the file, without its extension.

    Returns
    -------
    lexicon
        The words of each category.

    Raises
    ------
    FflmError
        If a file cannot be read, is not UTF-8, or has no words.
    """
    lexicon: dict[str, list[str]] = {}
    for path in paths:
        lines = read_lines(path)
        for line in filter(str.strip, lines):
            word, _, category = line.partition("\t")
            lexicon.setdefault(category.strip() or split_compression(path)[0].stem, []).append(word.strip(ASCII_BLANKS))
        if not any(map(str.strip, lines)):
            raise FflmError(f"{path} has no words: write a word, a tab and its category a line")
    return lexicon
