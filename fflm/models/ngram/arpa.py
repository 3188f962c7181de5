"""N-gram models in the ARPA format, which KenLM, SRILM and others share: probabilities and back-off weights to base 10."""

import math
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu.launching import shares_of
from fflm.errors import FflmError
from fflm.files import os_errors_as_fflm_error, replacing_folder, writing_text
from fflm.models.creation import check_free
from fflm.models.description import LARGEST_ORDER
from fflm.models.ngram import kernels
from fflm.models.ngram.model import NgramModel, Tables, borders
from fflm.text.reading import byte_lines
from fflm.text.settings import TextMode, TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import END, START, UNKNOWN, Vocabulary, escape, unescape

ZERO = NgramModel.start_log10
"""Logarithm of the probability 0, to base 10: that of ``<s>``, which is never predicted; SRILM's."""

MISSING_UNKNOWN = -100.0
"""Logarithm of the probability of ``<unk>``, to base 10, if a file has none; KenLM's."""

_BLANKS = " \t\r\n"  # what separates words, as in KenLM; vertical tabs and no-break spaces belong to them
_FIELD = re.compile(f"[^{_BLANKS}]+".encode())

_SIZE = re.compile(rb"ngram\s+([0-9]{1,4})\s*=\s*([0-9]{1,18})")

_ESCAPED = r"# fflm: \uXXXX is white space that a word of this format cannot hold, or a backslash"

_BLOCK = 1 << 16  # n-grams written at a time


def write_arpa(model: NgramModel, path: Path, *, overwrite: bool = True) -> None:
    r"""Write a model, with 9 digits, which are all that float32 has.

    Words are written as they are. The format cannot hold a word with a blank, such as the space in a model of characters: where
    there is one, white space and backslashes become ``\uXXXX``, and a comment at the top, which `read_arpa` understands, says so.
    Where line ends are not predicted the file has no ``</s>``.

    Raises
    ------
    FflmError
        If the file cannot be written, or exists and may not be replaced.
    """
    tables, vocabulary = model.tables, model.vocabulary
    escaped = not set(_BLANKS).isdisjoint("".join(vocabulary.words))
    names = np.array([*(map(escape, vocabulary.words) if escaped else vocabulary.words), START], object)
    levels = tables.levels()[: model.order]
    sizes = [int(tables.starts[high]) - int(tables.starts[low]) for low, high in levels]
    sizes[0] += 1  # <s>
    parents = np.repeat(np.arange(len(tables.words)), tables.children[1:] - tables.children[:-1])
    parents = np.concatenate([[0], parents])
    with writing_text(path, overwrite=overwrite) as file:
        file.write(f"{_ESCAPED}\n\n" if escaped else "")
        file.write("\\data\\\n" + "".join(f"ngram {k}={size}\n" for k, size in enumerate(sizes, 1)))
        for order, (low, high) in enumerate(levels, 1):
            file.write(f"\n\\{order}-grams:\n")
            first, last = int(tables.starts[low]), int(tables.starts[high])
            for start in range(first, last, _BLOCK):
                grams = np.arange(start, min(start + _BLOCK, last))
                columns = []
                node = np.searchsorted(tables.starts, grams, side="right") - 1
                for _ in range(order - 1):
                    columns.append(tables.words[node])
                    node = parents[node]
                words = np.column_stack([*columns, tables.targets[grams]]).astype(np.int32)
                values = tables.log_probabilities[grams].astype(np.float64) / math.log(10)
                _write_lines(file, tables, names, words, values)
            if order == 1:
                _write_lines(file, tables, names, np.array([[vocabulary.start_id]], np.int32), np.array([ZERO]))
        file.write("\n\\end\\\n")


def _write_lines(
    file: IO[str], tables: Tables, names: npt.NDArray[Any], words: npt.NDArray[np.int32], values: npt.NDArray[np.floating[Any]]
) -> None:
    """Write n-grams (B, k) with their logarithms (B,) and, where longer ones begin with them, their back-off weights."""
    nodes = np.empty(len(words), np.int64)
    kernels.find_contexts(tables.children, tables.words, words, nodes, shares_of(words.size * kernels.LOOK_UP))
    back_offs = tables.back_offs[nodes].astype(np.float64) / math.log(10)
    for row, value, node, back_off in zip(names[words].tolist(), values.tolist(), nodes, back_offs.tolist(), strict=True):
        file.write(f"{value:.9g}\t{' '.join(row)}{f'{chr(9)}{back_off:.9g}' if node >= 0 else ''}\n")


def import_arpa(
    source: Path,
    path: Path,
    *,
    tokenizer: Tokenizer | None = None,
    mode: TextMode | None = None,
    overwrite: bool = False,
) -> NgramModel:
    """Make a model's folder from an ARPA file, as `read_arpa` reads it.

    Raises
    ------
    FflmError
        If the file is not of the format, or the folder cannot be written.
    """
    with os_errors_as_fflm_error(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(path, lambda: check_free(path, overwrite)) as folder:
        read_arpa(source, tokenizer=tokenizer, mode=mode).save(folder)
    return NgramModel.load(path)


def read_arpa(source: Path, *, tokenizer: Tokenizer | None = None, mode: TextMode | None = None) -> NgramModel:
    """Read a model from a file, compressed or not.

    Words are taken as they stand between spaces and tabs, unless the file begins with the comment of `write_arpa`.

    Parameters
    ----------
    source
        The file. Where it lacks ``<unk>``, unknown words are all but impossible, and a note says so.
    tokenizer
        How text becomes the words of the file; by default it is split at blanks.
    mode
        Whether ``</s>`` ends sentences, one a line, or the lines of one long text; by default sentences if there is one. Without
        it the text is one that has no line ends.

    Raises
    ------
    FflmError
        If the file cannot be read or is not of the format; the message names the line.
    """
    reader = _Reader(source)
    reader.read()
    words = reader.vocabulary_words
    ends = len(words) > 1 and words[1] == END
    if mode == "sentence" and not ends:
        raise FflmError(f"{source} has no {END}, so it is not a model of sentences: leave out `mode`")
    settings = TextSettings(tokenizer or Tokenizer(mode="space"), mode or ("sentence" if ends else "stream"), line_ends=ends)
    vocabulary = Vocabulary(words, [0] * len(words), ends=ends, rule=f"words of {source.name}")
    tables = _assemble(reader)
    about = {
        "ngram": {
            "order": len(reader.grams),
            "counts": [len(order) for order in reader.values],
            "discounts": None,
            "notes": reader.notes,
            "source": source.name,
        }
    }
    model = NgramModel(tables, vocabulary, settings, about)
    for value in reader.values[0][reader.grams[0][:, 0] == vocabulary.start_id]:
        model.start_log10 = float(value)
    return model


class _Reader:
    """An ARPA file line by line, to arrays.

    Attributes
    ----------
    vocabulary_words
        The words by id.
    grams, values, back_offs
        A list of (G, k) ids, (G,) logarithms and (G,) back-off weights for each order k, to base 10.
    notes
        What was missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = self._stripped()
        self._number = 0
        self._escaped = False
        self.vocabulary_words: list[str] = []
        self.grams: list[npt.NDArray[np.uint32]] = []
        self.values: list[npt.NDArray[np.float64]] = []
        self.back_offs: list[npt.NDArray[np.float64]] = []
        self.notes: list[str] = []

    def read(self) -> None:
        """Read it all."""
        for line in self._lines:  # any text may stand before the data
            if line == b"\\data\\":
                break
            self._escaped = self._escaped or line == _ESCAPED.encode()
        else:
            raise FflmError(
                f"{self._path} has no line \\data\\, so it is not an ARPA file: give an n-gram model in the ARPA format"
            )
        sizes: list[int] = []
        while (line := self._next("\\1-grams:")).startswith(b"ngram "):
            found = _SIZE.fullmatch(line)
            if not found or int(found[1]) != len(sizes) + 1:
                self._fail(f"is not `ngram {len(sizes) + 1}=NUMBER`")
            sizes.append(int(found[2]))
        if not 1 <= len(sizes) <= LARGEST_ORDER:
            self._fail(f"ends the list of orders, which are not 1 to {LARGEST_ORDER}")
        ids: dict[bytes, int] = {}
        for k, count in enumerate(sizes, 1):
            if line != b"\\%d-grams:" % k:
                self._fail(f"is not \\{k}-grams:")
            line = self._section(k, count, ids, last=k == len(sizes))
            if k == 1:
                self._name(ids)
        if line != b"\\end\\":
            self._fail("is not \\end\\")

    def _stripped(self) -> Iterator[bytes]:
        """Yield the lines that are not blank."""
        for number, line in enumerate(byte_lines(self._path), 1):
            self._number = number
            if stripped := line.strip(_BLANKS.encode()):
                yield stripped

    def _next(self, expected: str) -> bytes:
        line = next(self._lines, None)
        if line is None:
            raise FflmError(
                f"{self._path} ends where {expected} should come: it is incomplete or not an ARPA file, fetch it again"
            )
        return line

    def _fail(self, reason: str) -> NoReturn:
        raise FflmError(f"{self._path}, line {self._number} {reason}")

    def _section(self, order: int, size: int, ids: dict[bytes, int], *, last: bool) -> bytes:
        """Read the n-grams of an order; return the line after them."""
        numbers, values, back_offs = array("I"), array("d"), array("d")
        while not (line := self._next("\\end\\")).startswith(b"\\"):
            fields = _FIELD.findall(line)
            if len(fields) - order not in (1, 2):
                words = "1 word" if order == 1 else f"{order} words"
                self._fail(f"is not a logarithm, {words}{'' if last else ' and perhaps a back-off weight'}")
            try:
                value = float(fields[0])
                back_off = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
                if math.isnan(value) or value > 1e-6 or math.isnan(back_off) or back_off == math.inf:
                    raise ValueError
            except ValueError:
                self._fail("has something else than the logarithm of a probability, and of a weight")
            if last and back_off:
                self._fail("has a back-off weight, which n-grams of the highest order have no use for")
            if order == 1:
                if fields[1] in ids:
                    self._fail("repeats a word")
                ids[fields[1]] = len(ids)
                numbers.append(ids[fields[1]])
            else:
                try:
                    numbers.extend([ids[word] for word in fields[1 : order + 1]])
                except KeyError as error:
                    self._fail(f"has the word {error.args[0].decode(errors='replace')!r}, which is none of the 1-grams")
            values.append(max(value, MISSING_UNKNOWN))
            back_offs.append(max(back_off, MISSING_UNKNOWN))
        if len(values) != size:
            self._fail(f"comes after {len(values):,} {order}-grams, not {size:,} as the head of the file says: it is damaged")
        self.grams.append(np.array(numbers, np.uint32).reshape(size, order))
        self.values.append(np.array(values))
        self.back_offs.append(np.array(back_offs))
        return line

    def _name(self, ids: dict[bytes, int]) -> None:
        """Give the words of the 1-grams the ids of a vocabulary, and ``<unk>`` a place if it has none."""
        unknown = next((name for name in (b"<unk>", b"<UNK>") if name in ids), None)
        symbols = [name for name in (unknown, b"</s>" if b"</s>" in ids else None) if name is not None]
        words = [name for name in ids if name not in {*symbols, b"<s>"}]
        try:
            decoded = [word.decode("utf-8") for word in words]
        except UnicodeDecodeError as error:
            raise FflmError(f"{self._path} is not UTF-8 ({error.object!r}): convert it") from error
        if self._escaped:
            decoded = list(map(unescape, decoded))
        self.vocabulary_words = [UNKNOWN, *([END] if b"</s>" in ids else []), *decoded]
        table = np.empty(len(ids) + 1, np.uint32)
        first = len(self.vocabulary_words) - len(words)
        for id_, name in enumerate(words, first):
            table[ids[name]] = id_
        if unknown:
            table[ids[unknown]] = 0
        if b"</s>" in ids:
            table[ids[b"</s>"]] = 1
        if b"<s>" in ids:
            table[ids[b"<s>"]] = len(self.vocabulary_words)
        for name in ids:
            ids[name] = int(table[ids[name]])
        self.grams[0] = table[self.grams[0]]
        if unknown is None:
            self.grams[0] = np.concatenate([self.grams[0], np.zeros((1, 1), np.uint32)])
            self.values[0] = np.append(self.values[0], MISSING_UNKNOWN)
            self.back_offs[0] = np.append(self.back_offs[0], 0.0)
            self.notes.append(
                f"the file has no {UNKNOWN}: words that it does not know have the probability 1e{MISSING_UNKNOWN:g}"
            )


def _assemble(reader: _Reader) -> Tables:
    """Sort what was read into tables."""
    V = len(reader.vocabulary_words)
    # The contexts that must be found: those of n-grams, and n-grams with a weight; in trees, so all that they end in too.
    paths = [grams[:, -2::-1] if grams.shape[1] > 1 else grams[:, :0] for grams in reader.grams]
    paths += [grams[back_offs != 0][:, ::-1] for grams, back_offs in zip(reader.grams, reader.back_offs, strict=True)]
    nodes = [np.zeros(len(path), np.int64) for path in paths]
    parents, words, count = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 1
    for depth in range(len(reader.grams)):
        longer = [i for i, path in enumerate(paths) if path.shape[1] > depth]
        keys = {i: nodes[i] * (V + 1) + paths[i][:, depth] for i in longer}
        distinct = np.unique(np.concatenate([np.empty(0, np.int64), *keys.values()]))
        for i in longer:
            nodes[i] = count + np.searchsorted(distinct, keys[i])
        parents.append(distinct // (V + 1))
        words.append(distinct % (V + 1))
        count += len(distinct)
    back_offs = np.zeros(count)
    orders = len(reader.grams)
    for own, weights in zip(nodes[orders:], reader.back_offs, strict=True):
        back_offs[own] = weights[weights != 0]
    contexts = np.concatenate(nodes[:orders])
    targets = np.concatenate([grams[:, -1] for grams in reader.grams])
    values = np.concatenate(reader.values)
    predicted = targets < V
    contexts, targets, values = contexts[predicted], targets[predicted], values[predicted]
    keys_of_grams = contexts * V + targets
    order = np.argsort(keys_of_grams, kind="stable")
    if len(order) > 1 and not np.diff(keys_of_grams[order]).all():
        raise FflmError(f"{reader._path} has an n-gram twice: it is damaged, fetch it again")
    ln10 = math.log(10)
    return Tables.of(
        np.concatenate(parents),
        np.concatenate(words),
        back_offs * ln10,
        borders(contexts[order], count),
        targets[order],
        values[order] * ln10,
    )
