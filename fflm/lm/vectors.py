"""The embeddings as word vectors: exchange in word2vec's text format, neighbours and analogies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import Positive, check, checked
from fflm.errors import FflmError
from fflm.lm.generation import largest
from fflm.text.reading import open_bytes, readable
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import END, START, UNKNOWN, Vocabulary

TOP = 10
"""Words that are shown, by default."""


@dataclass(frozen=True, repr=False)
class Vectors:
    """The vectors of a vocabulary's words: ``vectors["cat"]`` is that of a word, (m,).

    Attributes
    ----------
    vocabulary, tokenizer
        Words and ids; how words were normalised.
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
            The words that the format cannot hold and that were left out: those with white space.
        """
        names = [*self.vocabulary.words, START]
        rows = [row for row, name in enumerate(names) if not any(map(str.isspace, name))]
        file.write(f"{len(rows)} {self.array.shape[1]}\n")
        for row in rows:
            file.write(f"{names[row]} {' '.join(f'{number:.9g}' for number in self.array[row].tolist())}\n")
        return [name for name in names if any(map(str.isspace, name))]

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
        found = candidates[largest(cosines[candidates], top)]
        return [(self.vocabulary.words[id_], float(cosines[id_])) for id_ in found]


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> npt.NDArray[np.float32]:
    """Read the vectors of a vocabulary's words from a file in word2vec's text format.

    Parameters
    ----------
    path
        UTF-8, unpacked if its name ends in .gz; a line "number-of-words size", which GloVe's files lack, then a line
        "word number number ..." a word.
    vocabulary
        Whose words to read; the symbols are known by their names.
    size
        Numbers a vector [m].

    Returns
    -------
    numpy.ndarray
        (V + 1, m), NaN in the rows of words that the file does not hold.

    Raises
    ------
    FflmError
        If the file cannot be read, is of another format or size, or knows none of the words.
    """
    rows = {word: row for row, word in enumerate([*vocabulary.words, START])}
    array = np.full((len(rows), size), np.nan, np.float32)
    announced, number = None, 0
    with readable(str(path)), open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                word, *numbers = line.decode("utf-8").rstrip("\r\n ").split(" ")
            except UnicodeDecodeError as error:
                raise FflmError(f"{path}, line {number} is not UTF-8: give vectors in word2vec's text format") from error
            if number == 1 and len(numbers) == 1 and word.isdecimal() and numbers[0].isdecimal():
                announced = int(word)
                _check_size(path, number, int(numbers[0]), size)
                continue
            _check_size(path, number, len(numbers), size)
            if word in rows:
                array[rows[word]] = _parse(path, number, numbers)
    if announced is not None and announced != number - 1:
        raise FflmError(
            f"{path} has {number - 1} vectors, not {announced} as its first line says: it is incomplete, fetch it again"
        )
    if np.isnan(array[1 + vocabulary.ends : -1]).all():
        raise FflmError(f"{path} has none of the vocabulary's words, {UNKNOWN} and {END} aside: give vectors of this language")
    return array


def vector_size(path: Path) -> int:
    """Return how many numbers a vector has in a file in word2vec's text format.

    Raises
    ------
    FflmError
        If the file cannot be read.
    """
    with readable(str(path)), open_bytes(path) as file:
        numbers = file.readline().rstrip(b"\r\n ").split(b" ")[1:]
    return int(numbers[0]) if len(numbers) == 1 and numbers[0].isdigit() else len(numbers)


def _check_size(path: Path, line: int, found: int, size: int) -> None:
    if found != size:
        raise FflmError(
            f"{path}, line {line} is for vectors of {found} numbers, not {size}: give the same embedding size to both"
        )


def _parse(path: Path, line: int, numbers: Sequence[str]) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            vector = np.array(numbers, np.float64).astype(np.float32)
    except ValueError as error:
        raise FflmError(f"{path}, line {line} has something else than numbers ({error}): mend or remove it") from error
    if not np.isfinite(vector).all():
        raise FflmError(f"{path}, line {line} has a number that is not finite: mend or remove it")
    return vector
