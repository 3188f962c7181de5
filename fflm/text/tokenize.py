"""Tokenization of a text into a corpus on disk, in worker processes if the text is long."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fflm.arguments import Encoding, Errors, Overwrite, PathLike, Processes, Progress, check, checked, to_path, to_paths
from fflm.errors import FflmError
from fflm.files import check_own, replacing_folder, write_json
from fflm.parallel.communicator import SINGLE_PROCESS, Communicator
from fflm.parallel.world import threads_per_process
from fflm.processors import usable_processors
from fflm.text.corpus import ABOUT, FILES, FORMAT, PARTS, VERSION, Corpus, checksum
from fflm.text.holdout import Count, Share, Test, Valid, parse_held_out
from fflm.text.ids import Tally, id_type
from fflm.text.numbering import MAX_TYPES, Numbering, Numbers
from fflm.text.pieces import as_bytes
from fflm.text.reading import read_chunks
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary, VocabularyRule, read_words
from fflm.workers import map_in_order

_BLOCK = 1 << 20  # number of ids in memory at a time


@dataclass(frozen=True)
class TextSource:
    """A text, and how it is read: where it comes from, how it becomes ids, and which parts of it are held out.

    Parameters
    ----------
    inputs
        Files, folders or ``"-"``, as `read_chunks` takes them; one or several paths, of which a tuple is made.
    settings, rule
        How the text becomes tokens, and which of them are words of the vocabulary.
    valid, test
        The parts to hold out, as `parse_held_out` takes them.
    encoding, errors
        As `read_chunks` takes them.
    base
        A vocabulary whose words keep their ids, in place of the one that ``rule`` would give.
    extended
        Whether the words of the text that ``rule`` chooses are added to ``base``.

    Raises
    ------
    FflmError
        If the inputs are not paths, or ``encoding`` or ``errors`` is not what its annotation allows.
    """

    inputs: tuple[Path, ...]
    settings: TextSettings = field(default_factory=TextSettings)
    rule: VocabularyRule = field(default_factory=VocabularyRule)
    valid: Valid = "5%"
    test: Test = None
    encoding: Encoding = "utf-8"
    errors: Errors = "strict"
    base: Vocabulary | None = None
    extended: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", to_paths("inputs", self.inputs))
        check("encoding", Encoding, self.encoding)
        check("errors", Errors, self.errors)

    def parts(self) -> tuple[dict[str, tuple[Path, ...]], dict[str, Share | Count]]:
        """Return the files of each part that has files of its own, and the size of each part to cut off the training text.

        Raises
        ------
        FflmError
            If a held-out part is given as something that `parse_held_out` refuses.
        """
        files, sizes = {"train": self.inputs}, {}
        for name, given in (("valid", self.valid), ("test", self.test)):
            held_out = parse_held_out(name, given)
            if isinstance(held_out, Share | Count):
                sizes[name] = held_out
            elif held_out:
                files[name] = held_out
        return files, sizes


@checked
def tokenize(
    source: TextSource,
    out: PathLike,
    *,
    overwrite: Overwrite = False,
    processes: Processes = None,
    progress: Progress = None,
    communicator: Communicator = SINGLE_PROCESS,
) -> Corpus:
    """Turn text into ids on disk, in two streaming passes; neither the text nor its ids are ever held in memory.

    The first pass gives every distinct token a provisional id, in the order of their first occurrence. Then the tokens are
    counted and the vocabulary is built, and the second pass replaces the provisional ids. The parts cut off the end of the text
    are contiguous, in the order train, valid, test; in sentence mode each of them begins after the next sentence end.

    Parameters
    ----------
    source
        The text, and how it is read.
    out
        The folder to make. It appears when the corpus is complete, or not at all.
    overwrite
        Whether to replace a corpus that exists.
    processes
        Number of worker processes, by default one for each processor that this process may use. They are started only if the
        text takes more than a few seconds. They are spawned, so a script that calls this function needs the usual
        ``if __name__ == "__main__"``.
    progress
        Called with the number of characters of each chunk that was tokenized.
    communicator
        The processes that tokenize together, on one host or several with the same file system: each a share of each part's
        files, which the first process puts together. The ids and the vocabulary do not depend on their number, unless lines are
        longer than a chunk; the characters of a part that is cut off may differ a little.

    Raises
    ------
    FflmError
        If the text cannot be read, has no words or is too short for its parts, or the folder cannot be written.
    """
    out = to_path("out", out)
    files, sizes = source.parts()
    given_words = _given_words(source)
    with contextlib.ExitStack() as stack:
        making = replacing_folder(out, lambda: _check_free(out, overwrite), "writing to")
        folder = Path(communicator.on_first(lambda: str(stack.enter_context(making))))
        workers = processes or threads_per_process(usable_processors())
        numberer = _Numberer(files, source, folder.parent, workers, progress)
        if communicator.size > 1:
            numberer.number_share(communicator)

        def write() -> None:
            numbering = Numbering(source.settings)
            alone = communicator.size == 1
            texts = numberer.number(numbering) if alone else numberer.merge(numbering, communicator.size)
            cut = _cut(texts.pop("train"), sizes, 0 if source.settings.mode == "sentence" else None)
            parts = {name: part for name in PARTS if (part := (cut | texts).get(name))}
            _write_corpus(folder, files, source, parts, numbering.types(), given_words)

        communicator.on_first(write)
    communicator.barrier()  # the first process has published the folder
    return Corpus.open(out)


def _write_corpus(
    folder: Path,
    files: Mapping[str, Sequence[Path]],
    source: TextSource,
    parts: Mapping[str, "_ProvisionalIds"],
    types: Sequence[str],
    given_words: list[str] | None,
) -> None:
    """Build the vocabulary from the types (K,) that have provisional ids, and write all files of a corpus."""
    vocabulary = _build_vocabulary(parts, types, source, given_words)
    table = vocabulary.encode(types).astype(id_type(len(vocabulary)))
    about = {
        "format": FORMAT,
        "version": VERSION,
        "settings": source.settings.to_dict(),
        "sources": {name: [str(path) for path in paths] for name, paths in files.items()},
        "vocabulary": vocabulary.to_dict(),
        "parts": {name: _write_part(folder / f"{name}.npy", ids, table, vocabulary.end_id) for name, ids in parts.items()},
    }
    vocabulary.save(folder / "vocabulary.tsv")
    write_json(folder / ABOUT, {**about, "sha256": checksum(about)})


def _given_words(source: TextSource) -> list[str] | None:
    """Return the normalized words of the file that the vocabulary rule names, or None if it names no file."""
    if source.rule.words is None:
        return None
    return [source.settings.tokenizer.normalize(word) for word in read_words(source.rule.words)]


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise an FflmError if a corpus must not be written to a path."""
    if out.exists() and not overwrite:
        raise FflmError(f"{out} exists: choose another folder, or replace it with `overwrite=True`")
    if out.exists() and not (out / ABOUT).is_file():
        raise FflmError(f"{out} exists and is not a tokenized corpus: choose another folder")
    check_own(out, FILES)


_Numbered = tuple[int | None, int, list[str], Numbers, int]
"""A chunk that was tokenized in a worker process: the id of the process, its first new number, the tokens that have the numbers
from there on, the numbers of the chunk's tokens, (N,), int32, and the number of characters of the normalized chunk. Without an
id, the chunk was tokenized in this process, and the numbers are its own."""


def _number_chunks(
    chunks: Iterator[bytes], settings: TextSettings, numbering: Numbering, processes: int
) -> Iterator[tuple[Numbers, int]]:
    """Tokenize chunks, in worker processes if it takes long; yield in order the numbers of each, (N,), and its characters."""

    def number(chunk: bytes) -> _Numbered:
        return None, 0, [], *numbering.number(chunk)[1:]

    tables: dict[int, Numbers] = {}  # for each worker: (K,), the number in `numbering` of each of the worker's numbers
    for worker, start, types, numbers, characters in map_in_order(number, chunks, processes, _prepare_worker, (settings,)):
        if worker is None:
            yield numbers, characters
            continue
        known = tables.get(worker, np.empty(0, np.int32))[:start]
        tables[worker] = np.append(known, numbering.numbers(types))
        yield tables[worker][numbers], characters


def _prepare_worker(settings: TextSettings) -> Callable[[bytes], _Numbered]:
    """Return the function that tokenizes a chunk in a worker process."""
    numbering = Numbering(settings, MAX_TYPES)

    def number(chunk: bytes) -> _Numbered:
        start, numbers, characters = numbering.number(chunk)
        return os.getpid(), start, numbering.types(start), numbers, characters

    return number


@dataclass(frozen=True)
class _ProvisionalIds:
    """Consecutive provisional ids in the temporary file.

    Parameters
    ----------
    path
        The file: int32, all texts one after another.
    start
        The position of the first of the ids in the file.
    marks
        (2, M), int64: the numbers of tokens and of characters read by the end of each chunk, beginning with zeros.
    """

    path: Path
    start: int
    marks: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """The number of ids."""
        return int(self.marks[0, -1])

    def blocks(self, first: int = 0) -> Iterator[npt.NDArray[np.int32]]:
        """Yield the ids from position ``first`` on, in arrays of at most ``_BLOCK``."""
        for start in range(first, self.tokens, _BLOCK):
            count = min(_BLOCK, self.tokens - start)
            yield np.fromfile(self.path, np.int32, count, offset=4 * (self.start + start))

    def slice(self, start: int, stop: int) -> "_ProvisionalIds":
        """Return the ids from position ``start`` to ``stop``."""
        characters = self._characters(stop) - self._characters(start)
        return _ProvisionalIds(self.path, self.start + start, np.array([[0, stop - start], [0, characters]]))

    def _characters(self, position: int) -> int:
        """Return the number of characters before a position, interpolated within a chunk."""
        return round(np.interp(position, *self.marks)) if position else 0


@dataclass(frozen=True)
class _Numberer:
    """Tokenizes the files of all parts of a corpus, and writes their provisional ids.

    Parameters
    ----------
    files
        The files of each part.
    source
        How they are read.
    folder
        The folder of temporary files.
    processes, progress
        As `tokenize` takes them.
    """

    files: Mapping[str, Sequence[Path]]
    source: TextSource
    folder: Path
    processes: int
    progress: Callable[[int], None] | None

    def number(self, numbering: Numbering) -> dict[str, _ProvisionalIds]:
        """Tokenize the files, and write the provisional ids of all parts to one file.

        Raises
        ------
        FflmError
            If files cannot be read, or those of a part have no words.
        """
        return self._write({name: self._chunks(paths, numbering) for name, paths in self.files.items()}, numbering, self.progress)

    def number_share(self, communicator: Communicator) -> None:
        """Tokenize this process's share of the files, for `merge`, and wait until all processes have done so.

        Raises
        ------
        FflmError
            If files cannot be read.
        """
        if any(str(path) == "-" for paths in self.files.values() for path in paths):
            raise FflmError("standard input has no shares for several processes: give a file, or start one process")
        numbering, found = Numbering(self.source.settings), {}
        share = (communicator.rank, communicator.size)
        with self._share_path(communicator.rank).open("wb") as file:
            for name, paths in self.files.items():
                start = len(numbering)
                ids = _append(self._chunks(paths, numbering, share), file, self.progress)
                found[name] = {"types": numbering.types(start), "marks": ids.marks.tolist()}
        write_json(self._share_path(communicator.rank).with_suffix(".json"), found)
        communicator.barrier()

    def merge(self, numbering: Numbering, size: int) -> dict[str, _ProvisionalIds]:
        """Put the shares of all processes together, in their order; the result is that of `number`.

        Raises
        ------
        FflmError
            If the files of a part have no words.
        """
        paths = [self._share_path(rank) for rank in range(size)]
        found = [json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in paths]
        read, tables = [0] * size, [np.empty(0, np.int32)] * size

        def chunks(name: str) -> Iterator[tuple[Numbers, int]]:
            for rank, (path, parts) in enumerate(zip(paths, found, strict=True)):
                tables[rank] = np.append(tables[rank], numbering.numbers(parts[name]["types"]))
                for count, characters in np.diff(parts[name]["marks"]).T.tolist():
                    yield tables[rank][np.fromfile(path, np.int32, count, offset=4 * read[rank])], characters
                    read[rank] += count

        return self._write({name: chunks(name) for name in self.files}, numbering, None)

    def _share_path(self, rank: int) -> Path:
        """Return the file of the provisional ids of a process."""
        return self.folder / f"share-{rank}"

    def _chunks(
        self, paths: Sequence[Path], numbering: Numbering, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Numbers, int]]:
        """Read a share of some files, and yield the numbers of each chunk, (N,), and its characters."""
        source = self.source
        chunks = map(as_bytes, read_chunks(paths, source.encoding, source.errors, share=share))
        return _number_chunks(chunks, source.settings, numbering, self.processes)

    def _write(
        self,
        texts: Mapping[str, Iterator[tuple[Numbers, int]]],
        numbering: Numbering,
        progress: Callable[[int], None] | None,
    ) -> dict[str, _ProvisionalIds]:
        """Write the provisional ids of all parts, which come in chunks that are numbered meanwhile, to one file."""
        result = {}
        with (self.folder / "provisional").open("wb") as file:
            for name, chunks in texts.items():
                result[name] = _append(chunks, file, progress)
                if not result[name].tokens or len(numbering) == 1:  # the only token is the line end
                    names = ", ".join("standard input" if str(path) == "-" else str(path) for path in self.files[name])
                    raise FflmError(f"there are no words in {names}: give a text that is not empty or blank")
        return result


def _append(chunks: Iterator[tuple[Numbers, int]], file: BinaryIO, progress: Callable[[int], None] | None) -> _ProvisionalIds:
    """Append the provisional ids of a text, which come with the characters of each chunk, to a file."""
    start = file.tell() // 4
    marks = [(0, 0)]
    for numbers, characters in chunks:
        file.write(numbers.tobytes())
        marks.append((marks[-1][0] + len(numbers), marks[-1][1] + characters))
        if progress:
            progress(characters)
    return _ProvisionalIds(Path(file.name), start, np.array(marks).T)


def _cut(text: _ProvisionalIds, sizes: Mapping[str, Share | Count], end: int | None) -> dict[str, _ProvisionalIds]:
    """Cut held-out parts off the end of a text; each begins after an ``end`` unless that is None."""
    parts = {}
    start = stop = text.tokens
    for name in ("test", "valid"):
        if name in sizes:
            size = sizes[name]
            start -= size.tokens if isinstance(size, Count) else round(size.value * text.tokens)
            if start <= 0:
                raise FflmError(f"the parts to hold out take all {text.tokens} tokens of the text: hold out less")
            first = start if end is None else _after_end(text, start, end)
            if first == stop:
                raise FflmError(f"the part {name} would have no tokens: hold out more")
            parts[name] = text.slice(first, stop)
            stop = first
    parts["train"] = text.slice(0, stop)
    return parts


def _after_end(text: _ProvisionalIds, position: int, end: int) -> int:
    """Return the first position, from ``position`` on, that follows an ``end``."""
    start = position - 1
    for ids in text.blocks(start):
        found = np.flatnonzero(ids == end)
        if found.size:
            return start + int(found[0]) + 1
        start += len(ids)
    return text.tokens


def _build_vocabulary(
    parts: Mapping[str, _ProvisionalIds], types: Sequence[str], source: TextSource, given_words: list[str] | None
) -> Vocabulary:
    """Count the types in the parts that the vocabulary rule names, and build the vocabulary."""
    rule, ends = source.rule, source.settings.ends
    counted = parts if rule.source == "all" else {"train": parts["train"]}
    totals = np.zeros(len(types), np.int64)
    for part in counted.values():
        for ids in part.blocks():
            totals += np.bincount(ids, minlength=len(types))
    counts = {type_: count for type_, count in zip(types, totals.tolist(), strict=True) if count}
    names = " and ".join(", ".join(counted).rsplit(", ", 1))
    if source.base is not None:
        return source.base.extended(counts, rule, names) if source.extended else source.base.recounted(counts)
    if given_words is None:
        return Vocabulary.from_counts(counts, ends=ends, min_count=rule.min_count, max_size=rule.max_size, source=names)
    if not any(word in counts for word in given_words):
        raise FflmError(f"none of the words in {rule.words} is in {names}: give the words of this text, spelled as it has them")
    return Vocabulary.from_words(given_words, counts, ends=ends, source=names)


def _write_part(path: Path, part: _ProvisionalIds, table: npt.NDArray[np.unsignedinteger], end: int | None) -> dict[str, Any]:
    """Write the ids of a part, and return its description for corpus.json.

    Parameters
    ----------
    path
        The file to write.
    part
        The provisional ids.
    table
        The id of each provisional id, (K,).
    end
        The id of ``</s>``, or None if ends are not predicted.
    """
    tally = Tally(end)
    header = {"descr": table.dtype.str, "fortran_order": False, "shape": (part.tokens,)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in part.blocks():
            ids = table[block]
            file.write(ids.tobytes())
            tally.add(ids)
        file.flush()
        os.fsync(file.fileno())
    if tally.ends == tally.tokens:
        raise FflmError(f"the {path.stem} text has only line ends, no words: hold out more, or give another text")
    return {
        "tokens": tally.tokens,
        "unknown": tally.unknown,
        "ends": tally.ends,
        "characters": int(part.marks[1, -1]),
        "sha256": tally.sha256,
    }
