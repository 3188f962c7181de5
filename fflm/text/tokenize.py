"""Tokenization: text in, a corpus on disk out, with worker processes if it takes long."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fflm.arguments import Encoding, Errors, Overwrite, PathLike, Paths, Processes, Progress, checked, to_path, to_paths
from fflm.errors import FflmError
from fflm.files import check_own, replacing_folder, write_json
from fflm.processors import usable_processors
from fflm.text.corpus import ABOUT, FILES, FORMAT, PARTS, VERSION, Corpus, checksum
from fflm.text.encoder import MAX_TYPES, number_chunk
from fflm.text.holdout import Count, Share, Test, Valid, parse_held_out
from fflm.text.ids import Tally, id_type
from fflm.text.numbering import Numbering, Numbers
from fflm.text.reading import read_chunks
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary, VocabularyRule, read_words

if TYPE_CHECKING:
    from concurrent.futures import Future

_BLOCK = 1 << 20  # ids in memory at a time
_FEW_SECONDS = 2.0  # that the processor spends on tokenising before worker processes are started


@checked
def tokenize(
    sources: Paths,
    out: PathLike,
    settings: TextSettings,
    rule: VocabularyRule,
    valid: Valid = None,
    test: Test = None,
    *,
    encoding: Encoding = "utf-8",
    errors: Errors = "strict",
    overwrite: Overwrite = False,
    processes: Processes = None,
    progress: Progress = None,
) -> Corpus:
    """Turn text into ids on disk, in two streaming passes; neither the text nor its ids are ever held in memory.

    The first pass numbers the distinct tokens as they come. Then they are counted, the vocabulary is built, and the
    second pass replaces the provisional numbers. The parts cut off the end of the text are contiguous, in the order
    train, valid, test; in sentence mode they begin after the next sentence end.

    Parameters
    ----------
    sources
        Files, folders or ``"-"``, as ``read_chunks`` takes them.
    out
        The folder to make; it appears when all is done, or not at all.
    settings, rule
        How text becomes tokens, and which of them are words of the vocabulary.
    valid, test
        The parts to hold out, as `parse_held_out` takes them.
    encoding, errors
        As ``read_chunks`` takes them.
    overwrite
        Whether to replace a corpus that exists.
    processes
        Worker processes, by default one for each processor that this process may use; a text that takes a few seconds needs
        none. They are spawned, so a script that calls this needs the usual ``if __name__ == "__main__"``.
    progress
        Is called with the number of characters of each chunk that was tokenised.

    Raises
    ------
    FflmError
        If the text cannot be read, has no words or is too short for its parts, or the folder cannot be written.
    """
    out = to_path("out", out)
    texts = {"train": to_paths("inputs", sources)}
    cuts: dict[str, Share | Count] = {}
    for name, value in (("valid", valid), ("test", test)):
        held_out = parse_held_out(name, value)
        if isinstance(held_out, Share | Count):
            cuts[name] = held_out
        elif held_out:
            texts[name] = held_out
    words = None if rule.words is None else [settings.tokenizer.normalize(word) for word in read_words(rule.words)]
    workers = processes or usable_processors()
    with replacing_folder(out, lambda: _check_free(out, overwrite), "writing to") as folder:
        work = folder.parent
        numbering = Numbering(settings.tokenizer)
        passes = {}
        with (work / "provisional").open("wb") as file:
            for name, paths in texts.items():
                chunks = _numbered(read_chunks(paths, encoding, errors), settings, numbering, workers)
                passes[name] = _first_pass(chunks, file, progress)
                if not passes[name].tokens or len(numbering) == 1:  # the one token is the line end
                    files = ", ".join("standard input" if str(path) == "-" else str(path) for path in paths)
                    raise FflmError(f"there are no words in {files}: give a text that is not empty or blank")
        parts = _cut(passes.pop("train"), cuts, 0 if settings.mode == "sentence" else None)
        parts = {name: run for name in PARTS if (run := (parts | passes).get(name))}
        types = numbering.types()
        vocabulary = _vocabulary(parts, types, settings, rule, words)
        table = vocabulary.encode(types).astype(id_type(len(vocabulary)))
        about = {
            "format": FORMAT,
            "version": VERSION,
            "settings": settings.to_dict(),
            "sources": {name: [str(path) for path in paths] for name, paths in texts.items()},
            "vocabulary": vocabulary.to_dict(),
            "parts": {name: _write_part(folder / f"{name}.npy", run, table, vocabulary.end_id) for name, run in parts.items()},
        }
        vocabulary.save(folder / "vocabulary.tsv")
        write_json(folder / ABOUT, {**about, "sha256": checksum(about)})
    return Corpus.open(out)


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise an FflmError if a corpus cannot be put at a path."""
    if out.exists() and not overwrite:
        raise FflmError(f"{out} exists: choose another folder, or replace it with `overwrite=True`")
    if out.exists() and not (out / ABOUT).is_file():
        raise FflmError(f"{out} exists and is no tokenised corpus: choose another folder")
    check_own(out, FILES)


def _numbered(
    chunks: Iterator[str], settings: TextSettings, numbering: Numbering, processes: int
) -> Iterator[tuple[Numbers, int]]:
    """Tokenise chunks, in worker processes if it takes long; yield the tokens' numbers and the characters of each in order."""
    started = time.process_time()
    for chunk in chunks:
        yield number_chunk(chunk, settings, numbering)[1:]
        if processes > 1 and time.process_time() - started > _FEW_SECONDS:
            break
    else:
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    tables: dict[int, Numbers] = {}  # the numbers that each worker gives -> those of `numbering`
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (settings,)) as pool:
        pending: deque[Future[tuple[int, int, list[str], Numbers, int]]] = deque()

        def finished() -> tuple[Numbers, int]:
            worker, start, types, numbers, characters = pending.popleft().result()
            known = tables.get(worker, np.empty(0, np.uint32))[:start]
            tables[worker] = np.append(known, numbering.numbers(types))
            return tables[worker][numbers], characters

        try:
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                if len(pending) > 4 * processes:  # the reader must not run ahead of the workers
                    yield finished()
            while pending:
                yield finished()
        except BrokenProcessPool as error:
            raise FflmError("a worker process was killed: free some memory or use fewer processes") from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[TextSettings, Numbering]  # in a worker process


def _start_worker(settings: TextSettings) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = settings, Numbering(settings.tokenizer, MAX_TYPES)


def _end_with_parent() -> None:
    """End a worker process when its parent has ended in whatever way; a parent that is killed ends nobody."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: str) -> tuple[int, int, list[str], Numbers, int]:
    """Do ``_number`` in a worker process; return its id and the types from the first new one on, too."""
    settings, numbering = _worker
    start, numbers, characters = number_chunk(chunk, settings, numbering)
    return os.getpid(), start, numbering.types(start), numbers, characters


@dataclass(frozen=True)
class _Run:
    """Consecutive provisional ids in the temporary file.

    ``marks`` (2, M) are the tokens and characters read at the end of each chunk, beginning with zeros.
    """

    path: Path
    start: int
    marks: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return int(self.marks[0, -1])

    def blocks(self, first: int = 0) -> Iterator[npt.NDArray[np.uint32]]:
        for start in range(first, self.tokens, _BLOCK):
            count = min(_BLOCK, self.tokens - start)
            yield np.fromfile(self.path, np.uint32, count, offset=4 * (self.start + start))

    def slice(self, start: int, stop: int) -> "_Run":
        characters = self._characters(stop) - self._characters(start)
        return _Run(self.path, self.start + start, np.array([[0, stop - start], [0, characters]]))

    def _characters(self, position: int) -> int:
        return round(np.interp(position, *self.marks)) if position else 0


def _first_pass(chunks: Iterator[tuple[Numbers, int]], file: BinaryIO, progress: Callable[[int], None] | None) -> _Run:
    """Append the provisional ids of a text to a file."""
    start = file.tell() // 4
    marks = [(0, 0)]
    for numbers, characters in chunks:
        file.write(numbers.tobytes())
        marks.append((marks[-1][0] + len(numbers), marks[-1][1] + characters))
        if progress:
            progress(characters)
    return _Run(Path(file.name), start, np.array(marks).T)


def _cut(text: _Run, sizes: Mapping[str, Share | Count], end: int | None) -> dict[str, _Run]:
    """Cut held-out parts off the end of a text, in sentence mode after the next ``end``."""
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


def _after_end(text: _Run, position: int, end: int) -> int:
    """Return the first position, from ``position`` on, that follows a sentence end."""
    start = position - 1
    for ids in text.blocks(start):
        found = np.flatnonzero(ids == end)
        if found.size:
            return start + int(found[0]) + 1
        start += len(ids)
    return text.tokens


def _vocabulary(
    parts: Mapping[str, _Run],
    types: Sequence[str],
    settings: TextSettings,
    rule: VocabularyRule,
    words: list[str] | None,
) -> Vocabulary:
    """Count the types in the parts that the rule names, and build the vocabulary."""
    counted = parts if rule.source == "all" else {"train": parts["train"]}
    totals = np.zeros(len(types), np.int64)
    for run in counted.values():
        for ids in run.blocks():
            totals += np.bincount(ids, minlength=len(types))
    counts = {type_: count for type_, count in zip(types, totals.tolist(), strict=True) if count}
    source = " and ".join(", ".join(counted).rsplit(", ", 1))
    if words is not None:
        if not any(word in counts for word in words):
            raise FflmError(
                f"none of the words in {rule.words} is in {source}: give the words of this text, spelled as it has them"
            )
        return Vocabulary.from_words(words, counts, ends=settings.ends, source=source)
    return Vocabulary.from_counts(counts, ends=settings.ends, min_count=rule.min_count, max_size=rule.max_size, source=source)


def _write_part(path: Path, run: _Run, table: npt.NDArray[np.unsignedinteger], end: int | None) -> dict[str, Any]:
    """Write a part's ids through the table from provisional ones, and return what corpus.json says of it."""
    tally = Tally(end)
    header = {"descr": table.dtype.str, "fortran_order": False, "shape": (run.tokens,)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in run.blocks():
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
        "characters": int(run.marks[1, -1]),
        "sha256": tally.sha256,
    }
