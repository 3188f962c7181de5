"""Word vectors: nearest neighbors, analogies, and files in the text format of word2vec."""

import itertools
import string
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import Positive, check, checked, show
from fflm.errors import FflmError, FflmWarning
from fflm.models.generation import top_indices
from fflm.text.reading import byte_lines, to_float
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import END, START, UNKNOWN, Vocabulary

TOP = 10
"""Default number of words to return."""

_FORMATS = "give a text file of vectors in the format of word2vec (not its binary format), GloVe or fastText"
_PATIENCE = 1000  # once this many more lines of a file are skipped than read, the rest of the file is not read


@dataclass(frozen=True, repr=False)
class Vectors:
    """The vectors of a vocabulary's words: ``vectors["cat"]`` is the vector of a word, (m,).

    Attributes
    ----------
    vocabulary, tokenizer
        The words and their ids, and the tokenizer, which normalizes the words that are looked up.
    array
        (V + 1, m): row i is the vector of the word with the id i, row V that of ``<s>``, which cannot be looked up by name.
    """

    vocabulary: Vocabulary
    tokenizer: Tokenizer
    array: npt.NDArray[np.floating[Any]]

    def __repr__(self) -> str:
        return f"Vectors({len(self):,} words, {self.array.shape[1]} dimensions)"

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self._token(word) in self.vocabulary

    def __getitem__(self, word: str) -> npt.NDArray[np.floating[Any]]:
        vector: npt.NDArray[np.floating[Any]] = self.array[self._id(word)]
        return vector

    @checked
    def neighbours(self, word: str, top: Positive = TOP) -> list[tuple[str, float]]:
        """Return the words nearest to a word, with their cosine similarities in descending order.

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
        """Return the words d for which "a is to b as c is to d", with cosine similarities in descending order.

        These are the words nearest to b - a + c, except for a, b and c: the method 3CosAdd on vectors normalized to length one
        (Mikolov, Yih and Zweig 2013, https://aclanthology.org/N13-1090).

        Raises
        ------
        FflmError
            If a word is not in the vocabulary.
        """
        ids = [self._id(word) for word in (a, b, c)]
        unit = self._unit()
        return self._nearest(unit, unit[ids[1]] - unit[ids[0]] + unit[ids[2]], ids, top)

    def write(self, file: IO[str]) -> list[str]:
        """Write the vectors in the text format of word2vec; `read_vectors` restores the same float32 numbers.

        Returns
        -------
        list of str
            The words that were left out because they contain ASCII white space, which the format cannot represent.
        """
        names = [*self.vocabulary.words, START]
        fits = [set(string.whitespace).isdisjoint(name) for name in names]
        file.write(f"{sum(fits)} {self.array.shape[1]}\n")
        for name, vector in itertools.compress(zip(names, self.array, strict=True), fits):
            file.write(f"{name} {' '.join(f'{number:.9g}' for number in vector.tolist())}\n")
        return [name for name, fit in zip(names, fits, strict=True) if not fit]

    def _id(self, word: str) -> int:
        """Return the id of a word after normalizing it."""
        token = self._token(check("word", str, word))
        if token not in self.vocabulary:
            if self.tokenizer.mode == "subword" and len(parts := self.tokenizer.tokens(word)) > 1:
                raise FflmError(f"{show(word)} is {len(parts)} subwords, {' '.join(parts)}: give one of them")
            raise FflmError(
                f"{show(word)} is not in the vocabulary of {len(self.vocabulary):,} words: try another spelling or word"
            )
        return self.vocabulary.id(token)

    def _token(self, word: str) -> str:
        """Return the token that a word is: for subwords, the only one that it is split into, or one as it is spelled."""
        if self.tokenizer.mode == "subword" and len(tokens := self.tokenizer.tokens(word)) == 1:
            return tokens[0]
        return self.tokenizer.normalize(word)

    def _unit(self) -> npt.NDArray[np.float64]:
        """Return the vectors of the words, divided by their lengths, (V, m), float64; a vector of length 0 stays as it is."""
        words = self.array[:-1].astype(np.float64)
        lengths = np.linalg.norm(words, axis=1, keepdims=True)
        unit: npt.NDArray[np.float64] = np.divide(words, lengths, out=np.zeros_like(words), where=lengths > 0)
        return unit

    def _nearest(
        self, unit: npt.NDArray[np.float64], target: npt.NDArray[np.float64], without: Sequence[int], top: int
    ) -> list[tuple[str, float]]:
        """Return the words nearest to ``target`` (m,) with their cosine similarities, except for symbols and given ids.

        Parameters
        ----------
        unit
            (V, m), vectors of length one.
        target
            (m,), of any length.
        without
            Ids of the words to leave out.
        top
            Number of words to return.
        """
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
    """Read the vectors of a vocabulary's words from a text file in the format of word2vec, GloVe or fastText.

    Such files often contain a few malformed lines: words with a space (GloVe), words cut in the middle of a character (word2vec),
    blank lines. Lines that do not consist of a word and a vector are skipped, and so are repetitions of a word.

    Parameters
    ----------
    path
        The file: UTF-8, optionally compressed. The first line may be "number-of-words size", as in word2vec and fastText. Every
        other line is "word number number ...", separated by spaces or tabs.
    vocabulary
        The vocabulary of the words to read. Symbols such as ``<unk>`` are read like words.
    size
        Number of components of a vector [m].

    Returns
    -------
    numpy.ndarray
        (V + 1, m), float32: row V is the vector of ``<s>``; rows of words that are not in the file are NaN.

    Warns
    -----
    FflmWarning
        If lines were skipped, or the numbers in the first line are wrong.

    Raises
    ------
    FflmError
        If the file cannot be read, most of its lines are not vectors of this size, or it contains none of the words.
    """
    reader = _Reader(path, vocabulary, size)
    reader.read()
    reader.check()
    if problems := reader.problems():
        warnings.warn(f"{path}: {problems}", FflmWarning, stacklevel=2)
    return reader.array


def vector_size(path: Path) -> int:
    """Return the number of components of the vectors in a file that `read_vectors` reads: the most frequent one at its start.

    Raises
    ------
    FflmError
        If the file cannot be read, or contains no vectors.
    """
    sizes: Counter[int] = Counter()
    for number, fields in itertools.islice(_lines(path), _PATIENCE):
        if len(fields) > 1 and not (number == 1 and _header(fields)) and _numbers(fields[1:]) is not None:
            sizes[len(fields) - 1] += 1
    if not sizes:
        raise FflmError(f"{path} has no vectors: {_FORMATS}")
    return sizes.most_common(1)[0][0]


class _Reader:
    """Reads a text file of vectors into an array.

    Attributes
    ----------
    array
        (V + 1, m), float32: row V is the vector of ``<s>``; rows of words that are not in the file are NaN.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, size: int) -> None:
        self._path = path
        self._rows = {word: row for row, word in enumerate([*vocabulary.words, START])}
        self._symbols = 1 + vocabulary.ends
        self._size = size
        self._header: tuple[int, int] | None = None
        self._lines = self._blank = 0
        self._faults: list[tuple[int, str]] = []  # of the skipped lines: their numbers, and the reasons
        self.array = np.full((len(self._rows), size), np.nan, np.float32)

    def read(self) -> None:
        """Read the file, or only its start if most of the lines there are not vectors."""
        for number, fields in _lines(self._path):
            if number == 1 and (header := _header(fields)):
                self._header = header
                continue
            self._lines += 1
            self._blank += not fields
            if fault := self._store(fields):
                self._faults.append((number, fault))
                if 2 * len(self._faults) > self._lines + _PATIENCE:
                    break

    def check(self) -> None:
        """Raise an FflmError if most of the lines are not vectors of the size, or none of the words was found."""
        if 2 * len(self._faults) > self._lines or not self._lines:
            found = vector_size(self._path)
            if found != self._size:
                raise FflmError(f"{self._path} has vectors of size {found}, not {self._size}: give `embedding={found}`")
            line, fault = self._faults[0]
            counts = f"{len(self._faults):,} of {self._lines:,} lines"
            raise FflmError(f"{counts} of {self._path} are not vectors (line {line:,} {fault}): {_FORMATS}")
        if np.isnan(self.array[self._symbols : -1]).all():
            raise FflmError(
                f"{self._path} has none of the vocabulary's words except for {UNKNOWN} and {END}: give vectors of this language"
            )

    def problems(self) -> str:
        """Return a message about skipped lines and a wrong header; empty if there are no problems."""
        messages = []
        if self._faults:
            line, fault = self._faults[0]
            were = "line was" if len(self._faults) == 1 else "lines were"
            messages.append(f"{len(self._faults):,} {were} skipped (line {line:,} {fault})")
        found = self._lines - self._blank, self._size
        if self._header and self._header != found:
            counts = "{:,} vectors of size {}, but there are {:,} of size {}".format(*self._header, *found)
            messages.append(f"the first line announces {counts}, so the file may be incomplete")
        return "; ".join(messages)

    def _store(self, fields: Sequence[bytes]) -> str:
        """Store the vector of a line if its word is in the vocabulary; return the fault of a line to skip, or an empty string."""
        if not fields:
            return "is blank"
        if len(fields) != 1 + self._size:
            return f"has {len(fields) - 1:,} numbers, not {self._size}"
        try:
            row = self._rows.get(fields[0].decode("utf-8"))
        except UnicodeDecodeError:
            return "is not UTF-8"
        if row is None:
            return ""
        vector = _numbers(fields[1:])
        if vector is None:
            return "has a field that is not a number"
        if not np.isfinite(vector).all():
            return "has a number that is not finite"
        if not np.isnan(self.array[row, 0]):
            return "repeats a word"
        self.array[row] = vector
        return ""


def _lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of each line of a file, from 1, and its fields."""
    for number, line in enumerate(byte_lines(path), 1):
        yield number, line.split()


def _header(fields: Sequence[bytes]) -> tuple[int, int] | None:
    """Return the number of words and the size of the vectors if these are the fields of a first line, or None."""
    numbers = len(fields) == 2 and all(field.isdigit() and len(field) < 19 for field in fields)
    return (int(fields[0]), int(fields[1])) if numbers else None


def _numbers(fields: Sequence[bytes]) -> npt.NDArray[np.float32] | None:
    """Return fields as numbers (N,), or None if one of them is not a number."""
    try:
        with np.errstate(over="ignore"):
            return np.fromiter(map(to_float, fields), np.float64, len(fields)).astype(np.float32)
    except ValueError:
        return None
