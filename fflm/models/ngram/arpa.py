"""N-gram models in the ARPA format of SRILM, KenLM and others: log-probabilities and back-off weights to base 10."""

import math
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from fflm.arguments import show
from fflm.backend.cpu.launching import shares_of
from fflm.errors import FflmError
from fflm.files import replacing_folder, writing_text
from fflm.models.creation import check_free
from fflm.models.description import LARGEST_ORDER
from fflm.models.ngram import kernels
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.tables import Integers, Tables, borders
from fflm.text.reading import byte_lines, to_float
from fflm.text.settings import TextMode, TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import END, START, UNKNOWN, Vocabulary, escape, unescape

MISSING_UNKNOWN = -100.0
"""Base-10 log-probability of ``<unk>`` in a model whose file has no ``<unk>``, as in KenLM."""

_LN10 = math.log(10)

_BLANKS = " \t\r\n"  # the separators of words, as in KenLM; vertical tabs and no-break spaces are part of a word
_FIELD = re.compile(f"[^{_BLANKS}]+".encode())
_SIZE = re.compile(rb"ngram\s+([0-9]{1,4})\s*=\s*([0-9]{1,18})")
_MAX_BACK_OFF = 1e30  # the largest base-10 back-off weight that is accepted, so that float32 can represent it
_MAX_LOG = 1e-6  # the largest base-10 log-probability that is accepted, because 0 may be rounded up
_ESCAPED = r"# fflm: \uXXXX is white space that a word of this format cannot hold, or a backslash"
_BLOCK = 1 << 16  # number of n-grams that are written at a time


def write_arpa(model: NgramModel, path: Path, *, overwrite: bool = True) -> None:
    r"""Write a model in the ARPA format, with 9 significant digits, which represent float32 numbers exactly.

    Words are written unchanged, unless one of them contains a separator of the format, such as the space in a model of
    characters. In that case, white space and backslashes are written as ``\uXXXX`` in all words, and a comment at the top of the
    file, which `read_arpa` recognizes, says so. A model that does not predict line ends has no ``</s>`` in its file.

    Raises
    ------
    FflmError
        If the file cannot be written, or exists and ``overwrite`` is false.
    """
    tables, vocabulary = model.tables, model.vocabulary
    escaped = not set(_BLANKS).isdisjoint("".join(vocabulary.words))
    names = np.array([*(map(escape, vocabulary.words) if escaped else vocabulary.words), START], object)
    levels = [(int(tables.starts[low]), int(tables.starts[high])) for low, high in tables.levels()[: model.order]]
    parents = tables.parents()
    with writing_text(path, overwrite=overwrite) as file:
        file.write(f"{_ESCAPED}\n\n" if escaped else "")
        file.write("\\data\\\n")
        for order, (first, last) in enumerate(levels, 1):
            file.write(f"ngram {order}={last - first + (order == 1)}\n")  # <s> is one of the 1-grams
        for order, (first, last) in enumerate(levels, 1):
            file.write(f"\n\\{order}-grams:\n")
            for start in range(first, last, _BLOCK):
                grams = np.arange(start, min(start + _BLOCK, last))
                values = tables.log_probabilities[grams].astype(np.float64) / _LN10
                _write_lines(file, tables, names, _words_of(tables, parents, grams, order), values)
            if order == 1:
                _write_lines(file, tables, names, np.array([[vocabulary.start_id]], np.int32), np.array([NgramModel.start_log10]))
        file.write("\n\\end\\\n")


def _words_of(tables: Tables, parents: Integers, grams: Integers, order: int) -> npt.NDArray[np.int32]:
    """Return the ids of the words of n-grams of an order, oldest word first: grams (B,) -> (B, order).

    ``parents`` (M,) has the index of each context without its oldest word.
    """
    columns = []
    node: Integers = np.searchsorted(tables.starts, grams, side="right") - 1
    for _ in range(order - 1):
        columns.append(tables.words[node])
        node = parents[node]
    return np.column_stack([*columns, tables.targets[grams]]).astype(np.int32)


def _write_lines(
    file: IO[str], tables: Tables, names: npt.NDArray[Any], words: npt.NDArray[np.int32], values: npt.NDArray[np.floating[Any]]
) -> None:
    """Write the lines of n-grams; those that are contexts of longer n-grams have back-off weights.

    Parameters
    ----------
    file, tables
        The file, and the tables of the model.
    names
        (V + 1,), the words as they are written.
    words
        (B, k), the ids of the words of the n-grams.
    values
        (B,), the base-10 log-probabilities of the n-grams.
    """
    nodes = np.empty(len(words), np.int64)
    kernels.find_contexts(tables.children, tables.words, words, nodes, shares_of(words.size * kernels.LOOKUP_COST))
    back_offs = tables.back_offs[nodes].astype(np.float64) / _LN10
    for row, value, node, back_off in zip(names[words].tolist(), values.tolist(), nodes, back_offs.tolist(), strict=True):
        weight = f"\t{back_off:.9g}" if node >= 0 else ""
        file.write(f"{value:.9g}\t{' '.join(row)}{weight}\n")


def import_arpa(
    source: Path,
    path: Path,
    *,
    tokenizer: Tokenizer | None = None,
    mode: TextMode | None = None,
    overwrite: bool = False,
) -> NgramModel:
    """Read a model from an ARPA file and save it in a folder.

    Parameters
    ----------
    source, tokenizer, mode
        As for `read_arpa`.
    path
        The folder of the new model.
    overwrite
        Whether to replace an existing model.

    Raises
    ------
    FflmError
        If the file is not in the ARPA format, or the folder cannot be written.
    """
    with replacing_folder(path, lambda: check_free(path, overwrite)) as folder:
        model = read_arpa(source, tokenizer=tokenizer, mode=mode)
        model.save(folder)
        model.save_index(folder)
    return NgramModel.load(path)


def read_arpa(source: Path, *, tokenizer: Tokenizer | None = None, mode: TextMode | None = None) -> NgramModel:
    """Read a model from an ARPA file.

    Words are read unchanged, unless the file begins with the comment that `write_arpa` writes above escaped words.

    Parameters
    ----------
    source
        The file, optionally compressed. If it has no ``<unk>``, unknown words get the log-probability `MISSING_UNKNOWN`, and a
        note of the model says so.
    tokenizer
        The tokenizer that splits text into the words of the file; by default it splits at white space.
    mode
        Whether ``</s>`` ends sentences, one per line, or the lines of one stream; by default sentences. A model without ``</s>``
        reads text as a stream without line ends.

    Raises
    ------
    FflmError
        If the file cannot be read, or is not in the ARPA format; the message contains the number of the line.
    """
    reader = _Reader(source)
    reader.read()
    words = reader.words
    ends = len(words) > 1 and words[1] == END
    if mode == "sentence" and not ends:
        raise FflmError(f"{source} has no {END}, so it is not a model of sentences: leave out `mode`")
    settings = TextSettings(tokenizer or Tokenizer(mode="space"), mode or ("sentence" if ends else "stream"), line_ends=ends)
    vocabulary = Vocabulary(words, [0] * len(words), ends=ends, rule=f"words of {source.name}")
    about = {
        "ngram": {
            "order": len(reader.ngrams),
            "counts": [len(values) for values in reader.values],
            "discounts": None,
            "notes": reader.notes,
            "source": source.name,
        }
    }
    model = NgramModel(_build_tables(reader), vocabulary, settings, about)
    for value in reader.values[0][reader.ngrams[0][:, 0] == vocabulary.start_id]:
        model.start_log10 = float(value)
    return model


class _Reader:
    """Reads the lines of an ARPA file into arrays.

    Attributes
    ----------
    path
        The file.
    words
        The words of the vocabulary, in the order of their ids.
    ngrams, values, back_offs
        An array for each order k: the ids of the words of the n-grams (G, k), uint32, their log-probabilities (G,), and their
        back-off weights (G,), float64; logarithms to base 10.
    notes
        Notes about what the file lacks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = self._stripped_lines()
        self._number = 0
        self._escaped = False
        self.words: list[str] = []
        self.ngrams: list[npt.NDArray[np.uint32]] = []
        self.values: list[npt.NDArray[np.float64]] = []
        self.back_offs: list[npt.NDArray[np.float64]] = []
        self.notes: list[str] = []

    def read(self) -> None:
        """Read the whole file."""
        self._skip_comments()
        sizes: list[int] = []
        while (line := self._next("\\1-grams:")).startswith(b"ngram "):
            found = _SIZE.fullmatch(line)
            if not found or int(found[1]) != len(sizes) + 1:
                self._fail(f"is not `ngram {len(sizes) + 1}=NUMBER`")
            sizes.append(int(found[2]))
        if not 1 <= len(sizes) <= LARGEST_ORDER:
            self._fail(f"follows a list of {len(sizes)} orders, but there must be from 1 to {LARGEST_ORDER}")
        ids: dict[bytes, int] = {}
        for order, size in enumerate(sizes, 1):
            if line != b"\\%d-grams:" % order:
                self._fail(f"is not \\{order}-grams:")
            line = self._read_section(order, size, ids, last=order == len(sizes))
            if order == 1:
                self._assign_ids(ids)
        if line != b"\\end\\":
            self._fail("is not \\end\\")

    def _stripped_lines(self) -> Iterator[bytes]:
        """Yield the lines that are not blank, without separators at their ends."""
        for number, line in enumerate(byte_lines(self.path), 1):
            self._number = number
            if stripped := line.strip(_BLANKS.encode()):
                yield stripped

    def _skip_comments(self) -> None:
        r"""Read everything up to the line ``\data\``."""
        for line in self._lines:
            if line == b"\\data\\":
                return
            self._escaped = self._escaped or line == _ESCAPED.encode()
        raise FflmError(f"{self.path} has no line \\data\\, so it is not an ARPA file: give an n-gram model in the ARPA format")

    def _next(self, expected: str) -> bytes:
        """Return the next line; ``expected`` is a line that must still follow, for the message if there is none."""
        line = next(self._lines, None)
        if line is None:
            raise FflmError(f"{self.path} ends before the line {expected}: it is incomplete or not an ARPA file, fetch it again")
        return line

    def _fail(self, reason: str) -> NoReturn:
        raise FflmError(f"{self.path}, line {self._number} {reason}")

    def _read_section(self, order: int, size: int, ids: dict[bytes, int], *, last: bool) -> bytes:
        """Read the n-grams of an order, and return the line after them.

        ``ids`` maps the words to their ids; the 1-grams are added to it, with ids in the order of the file.
        """
        numbers, values, back_offs = array("I"), array("d"), array("d")
        while not (line := self._next("\\end\\")).startswith(b"\\"):
            fields = _FIELD.findall(line)
            value, back_off = self._parse_numbers(fields, order, last=last)
            if order == 1:
                if fields[1] in ids:
                    self._fail("repeats a word")
                ids[fields[1]] = len(ids)
            try:
                numbers.extend([ids[word] for word in fields[1 : order + 1]])
            except KeyError as error:
                self._fail(f"has the word {show(error.args[0].decode(errors='replace'))}, which is not among the 1-grams")
            values.append(max(value, MISSING_UNKNOWN))
            back_offs.append(max(back_off, MISSING_UNKNOWN))
        if len(values) != size:
            self._fail(f"follows {len(values):,} {order}-grams, but the header announces {size:,}: the file is damaged")
        self.ngrams.append(np.array(numbers, np.uint32).reshape(size, order))
        self.values.append(np.array(values))
        self.back_offs.append(np.array(back_offs))
        return line

    def _parse_numbers(self, fields: list[bytes], order: int, *, last: bool) -> tuple[float, float]:
        """Return the log-probability and the back-off weight, 0 if there is none, of the fields of a line."""
        if len(fields) - order not in (1, 2):
            words = "1 word" if order == 1 else f"{order} words"
            self._fail(f"is not a log-probability and {words}{'' if last else ', optionally with a back-off weight'}")
        try:
            value = to_float(fields[0])
            back_off = to_float(fields[order + 1]) if len(fields) == order + 2 else 0.0
        except ValueError:
            self._fail("has a log-probability or back-off weight that is not a number")
        if not (value <= _MAX_LOG and back_off <= _MAX_BACK_OFF):
            self._fail("has a log-probability above 0, or a number that is not finite or too large")
        if last and back_off:
            self._fail("has a back-off weight, but n-grams of the highest order have none")
        return value, back_off

    def _assign_ids(self, ids: dict[bytes, int]) -> None:
        """Replace the ids of the 1-grams by those of a `Vocabulary`, where symbols come first; add ``<unk>`` if it is missing."""
        unknown = next((name for name in (b"<unk>", b"<UNK>") if name in ids), None)
        ends = b"</s>" in ids
        words = [name for name in ids if name not in {unknown, b"<s>", b"</s>"}]
        try:
            decoded = [word.decode("utf-8") for word in words]
        except UnicodeDecodeError as error:
            raise FflmError(f"{self.path} is not UTF-8 ({show(error.object)}): convert it") from error
        self.words = [UNKNOWN, *([END] if ends else []), *(map(unescape, decoded) if self._escaped else decoded)]
        new = {name: id_ for id_, name in enumerate(words, 1 + ends)}
        new |= {b"</s>": 1, b"<s>": len(self.words)}
        if unknown:
            new[unknown] = 0
        table = np.array([new[name] for name in ids], np.uint32)  # the names are in the order of their old ids
        self.ngrams[0] = table[self.ngrams[0]]
        for name in ids:
            ids[name] = new[name]
        if unknown is None:
            self.ngrams[0] = np.concatenate([self.ngrams[0], np.zeros((1, 1), np.uint32)])
            self.values[0] = np.append(self.values[0], MISSING_UNKNOWN)
            self.back_offs[0] = np.append(self.back_offs[0], 0.0)
            self.notes.append(f"the file has no {UNKNOWN}: unknown words get the probability 1e{MISSING_UNKNOWN:g}")


def _build_tables(reader: _Reader) -> Tables:
    """Return the tables of the n-grams that were read."""
    V = len(reader.words)
    # The contexts of a model are those of its n-grams, and the n-grams that have a back-off weight.
    paths = [grams[:, -2::-1] if grams.shape[1] > 1 else grams[:, :0] for grams in reader.ngrams]
    paths += [grams[back_offs != 0][:, ::-1] for grams, back_offs in zip(reader.ngrams, reader.back_offs, strict=True)]
    parents, words, nodes = _build_tree(paths, V)
    orders, count = len(reader.ngrams), 1 + len(words)
    back_offs = np.zeros(count)
    for own, weights in zip(nodes[orders:], reader.back_offs, strict=True):
        back_offs[own] = weights[weights != 0]
    contexts = np.concatenate(nodes[:orders])
    targets = np.concatenate([grams[:, -1] for grams in reader.ngrams])
    values = np.concatenate(reader.values)
    predicted = targets < V  # <s> is never predicted
    contexts, targets, values = contexts[predicted], targets[predicted], values[predicted]
    keys = contexts * V + targets
    order = np.argsort(keys, kind="stable")
    if len(order) > 1 and not np.diff(keys[order]).all():
        raise FflmError(f"{reader.path} has an n-gram twice: it is damaged, fetch it again")
    starts = borders(contexts[order], count)
    return Tables.of(parents, words, back_offs * _LN10, starts, targets[order], values[order] * _LN10)


def _build_tree(paths: list[npt.NDArray[np.uint32]], V: int) -> tuple[Integers, Integers, list[npt.NDArray[np.int64]]]:
    """Return the tree of the contexts of a model, with the numbers that `Tables` describes.

    Parameters
    ----------
    paths
        Arrays (P, k) of the words of contexts, newest word first, with any k and repetitions. Everything that such a path begins
        with is a context, too.
    V
        Size of the vocabulary; V itself is the id of ``<s>``.

    Returns
    -------
    parents, words
        (M - 1,), the parent and the oldest word of each context except for the root.
    nodes
        For each array of paths, the numbers of the contexts (P,).
    """
    nodes = [np.zeros(len(path), np.int64) for path in paths]
    parents, words, count = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 1
    for depth in range(max(path.shape[1] for path in paths)):
        longer = [i for i, path in enumerate(paths) if path.shape[1] > depth]
        keys = {i: nodes[i] * (V + 1) + paths[i][:, depth] for i in longer}
        distinct = np.unique(np.concatenate(list(keys.values())))
        for i in longer:
            nodes[i] = count + np.searchsorted(distinct, keys[i])
        parents.append(distinct // (V + 1))
        words.append(distinct % (V + 1))
        count += len(distinct)
    return np.concatenate(parents), np.concatenate(words), nodes
