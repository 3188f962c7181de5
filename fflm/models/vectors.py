"""The embeddings as word vectors: exchange in word2vec's text format, neighbours and analogies."""

import itertools
import string
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import Positive, check, checked
from fflm.errors import FflmError, FflmWarning
from fflm.models.generation import top_indices
from fflm.text.reading import byte_lines
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import END, START, UNKNOWN, Vocabulary

TOP = 10
"""Words that are shown, by default."""

_FORMATS = "give a text file of vectors, as word2vec (not its binary format), GloVe and fastText write it"
_HOPELESS = 1000  # more lines to skip than others, and a file is not read to its end


@dataclass(frozen=True, repr=False)
class Vectors:
    """The vectors of a vocabulary's words: ``vectors["cat"]`` is that of a word, (m,).

    Attributes
    ----------
    vocabulary, tokenizer
        Words and ids; how words were normalized.
    array
        (V + 1, m), the last row that of ``<s>``.
    """

    vocabulary: Vocabulary
    tokenizer: Tokenizer
    array: npt.NDArray[np.floating[Any]]

    def __repr__(self) -> str:
        return f"Vectors({len(self):,} words, {self.array.shape[1]} dimensions)"

    def __len__(self) -> int:
        return len(self.array)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.tokenizer.normalize(word) in self.vocabulary

    def __getitem__(self, word: str) -> npt.NDArray[np.floating[Any]]:
        vector: npt.NDArray[np.floating[Any]] = self.array[self._id(word)]
        return vector

    @checked
    def neighbours(self, word: str, top: Positive = TOP) -> list[tuple[str, float]]:
        """Return the words nearest to a word, with the cosine of the angle between them, the nearest first.

        Raises
        ------
        FflmError
            If the word is not in the vocabulary.
        """
        id_ = self._id(word)
        unit = self._unit()
        return self._nearest(unit, unit[id_], [id_], top)

    @checked
    def analogy(self, a: str, b: str, c: str, top: Positive = TOP) -> list[tuple[str, float]]:
        """Answer "a is to b as c is to ...": the words nearest to b - a + c, without these three, and the cosines.

        The method is 3CosAdd on vectors of length one (Mikolov, Yih and Zweig 2013, https://aclanthology.org/N13-1090).

        Raises
        ------
        FflmError
            If a word is not in the vocabulary.
        """
        ids = [self._id(word) for word in (a, b, c)]
        unit = self._unit()
        return self._nearest(unit, unit[ids[1]] - unit[ids[0]] + unit[ids[2]], ids, top)

    def write(self, file: IO[str]) -> list[str]:
        """Write the vectors in word2vec's text format, so that `read_vectors` gives exactly the same float32 numbers.

        Returns
        -------
        list of str
            The words that the format cannot hold and that were left out: those with a space or other white space of ASCII.
        """
        names = [*self.vocabulary.words, START]
        fits = [set(string.whitespace).isdisjoint(name) for name in names]
        file.write(f"{sum(fits)} {self.array.shape[1]}\n")
        for name, vector in itertools.compress(zip(names, self.array, strict=True), fits):
            file.write(f"{name} {' '.join(f'{number:.9g}' for number in vector.tolist())}\n")
        return [name for name, fit in zip(names, fits, strict=True) if not fit]

    def _id(self, word: str) -> int:
        word = self.tokenizer.normalize(check("word", str, word))
        if word not in self.vocabulary:
            raise FflmError(f"{word!r} is not in the vocabulary of {len(self.vocabulary):,} words: try another spelling or word")
        return self.vocabulary.id(word)

    def _unit(self) -> npt.NDArray[np.float64]:
        """Return the words' vectors divided by their lengths, (V, m)."""
        words = self.array[:-1].astype(np.float64)
        lengths = np.linalg.norm(words, axis=1, keepdims=True)
        unit: npt.NDArray[np.float64] = np.divide(words, lengths, out=np.zeros_like(words), where=lengths > 0)
        return unit

    def _nearest(
        self, unit: npt.NDArray[np.float64], target: npt.NDArray[np.float64], without: Sequence[int], top: int
    ) -> list[tuple[str, float]]:
        length = float(np.linalg.norm(target))
        cosines = unit @ target / (length or 1.0)
        words = np.ones(len(unit), bool)
        words[[*without, *range(1 + self.vocabulary.ends)]] = False
        candidates = np.flatnonzero(words)
        if not candidates.size:
            return []
        found = candidates[top_indices(cosines[candidates], top)]
        return [(self.vocabulary.words[id_], float(cosines[id_])) for id_ in found]


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> npt.NDArray[np.float32]:
    """Read the vectors of a vocabulary's words from a text file as word2vec, GloVe and fastText write it.

    Such files often have a few odd lines: words with a space (GloVe), words cut in the middle of a character (word2vec), blank
    lines. Lines that do not hold a word and a vector are skipped, as are repetitions of a word.

    Parameters
    ----------
    path
        UTF-8, compressed or not; a line "number-of-words size", which GloVe's files lack, then a line "word number number ..." a
        word, separated by spaces or tabs.
    vocabulary
        Whose words to read; the symbols are known by their names.
    size
        Numbers a vector [m].

    Returns
    -------
    numpy.ndarray
        (V + 1, m), NaN in the rows of words that the file does not hold.

    Warns
    -----
    FflmWarning
        If lines were skipped, or the first line announces something else than there is.

    Raises
    ------
    FflmError
        If the file cannot be read, most of its lines hold no vector of this size, or it knows none of the words.
    """
    rows = {word: row for row, word in enumerate([*vocabulary.words, START])}
    array = np.full((len(rows), size), np.nan, np.float32)
    announced: tuple[int, int] | None = None
    lines = words = 0
    faults: list[tuple[int, str]] = []
    for number, fields in _lines(path):
        if number == 1 and (header := _header(fields)):
            announced = header
            continue
        lines += 1
        words += bool(fields)
        if fault := _take(fields, rows, array):
            faults.append((number, fault))
            if 2 * len(faults) > lines + _HOPELESS:
                break
    if 2 * len(faults) > lines or not lines:
        found = vector_size(path)
        if found != size:
            raise FflmError(f"{path} has vectors of {found} numbers, not {size}: set the embedding size to {found}")
        line, fault = faults[0]
        raise FflmError(f"{path} holds no vector in {len(faults):,} of {lines:,} lines (line {line:,} {fault}): {_FORMATS}")
    if np.isnan(array[1 + vocabulary.ends : -1]).all():
        raise FflmError(f"{path} has none of the vocabulary's words, {UNKNOWN} and {END} aside: give vectors of this language")
    messages = []
    if faults:
        line, fault = faults[0]
        were = "line was" if len(faults) == 1 else "lines were"
        messages.append(f"{len(faults):,} {were} skipped (line {line:,} {fault})")
    if announced and announced != (words, size):
        counts = "{:,} vectors of {} numbers, but there are {:,} of {}".format(*announced, words, size)
        messages.append(f"the first line announces {counts}, so the file may be incomplete")
    if messages:
        warnings.warn(f"{path}: {'; '.join(messages)}", FflmWarning, stacklevel=2)
    return array


def vector_size(path: Path) -> int:
    """Return how many numbers a vector has in a file that `read_vectors` reads: what most of the first lines have.

    Raises
    ------
    FflmError
        If the file cannot be read, or has no vectors.
    """
    sizes: Counter[int] = Counter()
    for number, fields in itertools.islice(_lines(path), _HOPELESS):
        if len(fields) > 1 and not (number == 1 and _header(fields)) and _numbers(fields[1:]) is not None:
            sizes[len(fields) - 1] += 1
    if not sizes:
        raise FflmError(f"{path} has no vectors: {_FORMATS}")
    return sizes.most_common(1)[0][0]


def _lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the numbers of a file's lines and their fields."""
    for number, line in enumerate(byte_lines(path), 1):
        yield number, line.split()


def _header(fields: Sequence[bytes]) -> tuple[int, int] | None:
    """Return the number of words and the size of vectors if a first line says them."""
    numbers = len(fields) == 2 and all(field.isdigit() and len(field) < 19 for field in fields)
    return (int(fields[0]), int(fields[1])) if numbers else None


def _take(fields: Sequence[bytes], rows: Mapping[str, int], array: npt.NDArray[np.float32]) -> str:
    """Put the vector of a line into its word's row, if it has one; return what is wrong with the line, or nothing."""
    if not fields:
        return "is blank"
    if len(fields) != 1 + array.shape[1]:
        return f"has {len(fields) - 1:,} numbers, not {array.shape[1]}"
    try:
        row = rows.get(fields[0].decode("utf-8"))
    except UnicodeDecodeError:
        return "is not UTF-8"
    if row is None:
        return ""
    vector = _numbers(fields[1:])
    if vector is None:
        return "has something else than numbers"
    if not np.isfinite(vector).all():
        return "has a number that is not finite"
    if not np.isnan(array[row, 0]):
        return "repeats a word"
    array[row] = vector
    return ""


def _numbers(fields: Sequence[bytes]) -> npt.NDArray[np.float32] | None:
    """Return fields as numbers, or None if they are something else."""
    try:
        with np.errstate(over="ignore"):
            return np.fromiter(map(float, fields), np.float64, len(fields)).astype(np.float32)
    except ValueError:
        return None
