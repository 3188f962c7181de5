"""A corpus: text as ids on disk, with its vocabulary, in parts for training, validation and test."""

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, NotRequired, TypeAlias, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from fflm.arguments import (
    Encoding,
    Errors,
    Overwrite,
    PathLike,
    Paths,
    Positive,
    Processes,
    Progress,
    Settings,
    checked,
    plain,
    to_path,
    to_paths,
)
from fflm.errors import FflmError
from fflm.files import check_own, replacing_folder, restore, write_json
from fflm.processors import usable_processors
from fflm.stored import from_json, read_whole
from fflm.text.ids import Ids, Tally, id_type
from fflm.text.numbering import Numbering, Numbers
from fflm.text.reading import read_chunks
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.text.vocabulary import Vocabulary, VocabularyAbout, read_words

if TYPE_CHECKING:
    from concurrent.futures import Future

FORMAT, VERSION = "fflm corpus", 1
ABOUT = "corpus.json"
REMEDY = "tokenise again"
PARTS = ("train", "valid", "test")
FILES = (ABOUT, "vocabulary.tsv", *(f"{name}.npy" for name in PARTS))
"""Of a corpus's folder."""

TextMode = Literal["stream", "sentence"]

_BLOCK = 1 << 20  # ids in memory at a time
_FEW_SECONDS = 2.0  # that the processor spends on tokenising before worker processes are started
_TYPES = 1 << 20  # distinct tokens that are remembered beside those of a vocabulary or a corpus


@dataclass(frozen=True)
class TextSettings(Settings):
    """How a text becomes a sequence of ids.

    Raises
    ------
    FflmError
        If the mode does not exist.

    Notes
    -----
    Mode ``"stream"``: one long text, contexts cross lines. ``"sentence"``: each line that is not blank is a sentence whose end is
    predicted; nothing crosses it.
    """

    tokenizer: Annotated[Tokenizer, Meta(description="The rule that splits text into tokens.")] = field(default_factory=Tokenizer)
    mode: Annotated[TextMode, Meta(description="Read one long text, or one sentence a line that no context crosses.")] = "stream"
    line_ends: Annotated[
        bool, Meta(description="In a stream, take each line end for the word </s>, not for mere white space.")
    ] = True

    @property
    def ends(self) -> bool:
        """Whether ``</s>`` is predicted."""
        return self.mode == "sentence" or self.line_ends

    @property
    def policy(self) -> str:
        """Which ends are predicted, and what contexts cross, as a phrase to read."""
        if self.mode == "sentence":
            return "sentence ends predicted, no context crosses them"
        return "line ends predicted, contexts cross them" if self.line_ends else "line ends not predicted"

    def tokens(self, text: str) -> list[str]:
        """Split normalised text into tokens, with ``LINE_END`` exactly where an end is predicted."""
        tokens = self.tokenizer.split(text)
        if not self.ends:
            return [token for token in tokens if token != LINE_END]
        if self.mode == "stream":
            return tokens
        pairs = zip([LINE_END, *tokens], tokens, strict=False)
        return [token for before, token in pairs if not before == token == LINE_END]

    def encode_text(self, text: str, vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
        """Return the ids of a text, (N,), as a corpus holds them.

        An end is a newline of the text and nothing else: a prefix to be continued has none at its end, a text to be
        scored has one.
        """
        return vocabulary.encode(self.tokens(self.tokenizer.normalize(text)))

    def ends_only(self, numbers: Numbers) -> Numbers:
        """Leave out of the numbers that a `Numbering` gives the line ends where no end is predicted."""
        if self.mode == "stream" and self.line_ends:
            return numbers
        kept: npt.NDArray[np.bool] = numbers != 0
        if self.mode == "sentence":
            kept[1:] |= kept[:-1].copy()
        return numbers[kept]


class Encoder:
    """Turns a text that comes in chunks into ids: what `TextSettings.encode_text` does, faster if it is long.

    Parameters
    ----------
    settings
        How text becomes tokens.
    vocabulary
        The words that have ids.
    """

    def __init__(self, settings: TextSettings, vocabulary: Vocabulary) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self._numbering = Numbering(settings.tokenizer, _TYPES)
        self._ids = np.empty(0, np.int32)  # of the tokens that have numbers

    def encode(self, chunk: str) -> tuple[npt.NDArray[np.int32], int]:
        """Return the ids of the next chunk, (N,), and the characters that it has when it is normalised."""
        start, numbers, characters = _number(chunk, self.settings, self._numbering)
        self._ids = np.append(self._ids[:start], self.vocabulary.encode(self._numbering.types(start)))
        return self._ids[numbers], characters


MinCount: TypeAlias = Annotated[Positive, Meta(description="Words seen less often are unknown, <unk>.")]
MaxSize: TypeAlias = Annotated[
    Annotated[int, Meta(ge=3)] | None, Meta(description="Largest vocabulary, symbols included: the most frequent words.")
]


@dataclass(frozen=True)
class VocabularyRule(Settings):
    """Which words a vocabulary holds.

    Raises
    ------
    FflmError
        If a number is out of range.
    """

    min_count: MinCount = 2
    max_size: MaxSize = 50_000
    words: Annotated[Path | None, Meta(description="File whose words, one a line, are the vocabulary.")] = None
    source: Annotated[
        Literal["train", "all"],
        Meta(description="Count words in the training text only, or in held-out text too (as Bengio et al. did)."),
    ] = "train"


@dataclass(frozen=True)
class Share:
    """A part held out by its share of the tokens, in (0, 1)."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < 1:
            raise FflmError(f"cannot hold out {self.value:.0%} of the text: give a share such as 5%")


@dataclass(frozen=True)
class Count:
    """A part held out by its number of tokens, at least 1."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise FflmError(f"cannot hold out {self.tokens} tokens: give at least 1")


HeldOut: TypeAlias = Share | Count | float | Paths
"""A part for validation or test, as `parse_held_out` takes it."""

Valid: TypeAlias = Annotated[
    HeldOut | None,
    Meta(
        description="Validation text: files or folders, or what to cut off the end of the text: a share (5%), a number of tokens "
        "(200000), or 0 for none."
    ),
]
Test: TypeAlias = Annotated[HeldOut | None, Meta(description="Test text, likewise.")]


def parse_held_out(name: str, given: HeldOut | None) -> Share | Count | tuple[Path, ...] | None:
    """Understand a held-out part: to be cut off the end of the text, or read from files of its own.

    Parameters
    ----------
    name
        Of the argument.
    given
        ``0.05`` or ``"5%"`` is a share, ``200000`` or ``"200000"`` a number of tokens, another string, or several, are paths,
        ``0`` or nothing is None.

    Raises
    ------
    FflmError
        If the share or number makes no sense, or it is none of these.
    """
    value: Any = plain(given)
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    if value is None or isinstance(value, Share | Count):
        return value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value.removesuffix("%"))
            value = number / 100 if value.endswith("%") else int(value) if value.isdecimal() else number
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Share(value) if isinstance(value, float) else Count(value) if value else None
    return to_paths(name, value)


@dataclass(frozen=True)
class Part:
    """One part of a corpus.

    Parameters
    ----------
    ids
        (N,) in [0, V), in their file: ``ids[low:high]`` is an array, uint16 or uint32.
    tokens
        N, ends included.
    unknown
        How many of them are ``<unk>``.
    ends
        How many of them are ``</s>``.
    characters
        Characters of the normalised text, newlines included. Where two parts share a chunk of the text (at most
        262,144 characters), its characters are shared in proportion to the tokens.
    sha256
        Of the bytes of the ids, in hexadecimal digits.
    """

    ids: Ids = field(repr=False)
    tokens: int
    unknown: int
    ends: int
    characters: int
    sha256: str = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers that a perplexity on this part must be read with."""
        return {"tokens": self.tokens, "unknown": self.unknown, "ends": self.ends, "characters": self.characters}


@dataclass(frozen=True, repr=False)
class Corpus:
    """A tokenised text on disk.

    Parameters
    ----------
    path
        Its folder.
    settings
        How the text became ids.
    vocabulary
        The words of the ids.
    parts
        ``"train"`` and, where held out, ``"valid"`` and ``"test"``.
    """

    path: Path
    settings: TextSettings
    vocabulary: Vocabulary
    parts: Mapping[str, Part]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {part.tokens:,} tokens" for name, part in self.parts.items())
        return f"Corpus({str(self.path)!r}: {parts}; vocabulary {len(self.vocabulary):,})"

    @classmethod
    def open(cls, path: PathLike) -> "Corpus":
        """Open a folder that ``tokenize`` wrote, without reading the ids.

        Raises
        ------
        FflmError
            If the folder is no corpus, of a later version, or damaged.
        """
        path = to_path("path", path)
        restore(path)
        if not (path / ABOUT).is_file():
            raise FflmError(f"{path} is no tokenised corpus: make one with `fflm tokenize`")
        content, source = read_whole(path / ABOUT, REMEDY), str(path / ABOUT)
        if from_json(content, _Head, source, REMEDY)["version"] != VERSION:
            raise FflmError(f"{path} is of another version of fflm: update fflm, or tokenise again")
        about = from_json(content, _About, source, REMEDY)
        if about.get("sha256") not in (None, _sha256(about)):
            raise FflmError(f"{path / ABOUT} is damaged (wrong sha256, what it says has changed): {REMEDY}")
        settings = msgspec.convert(about["settings"], TextSettings)
        vocabulary = Vocabulary.load(path / "vocabulary.tsv", about["vocabulary"])
        if "train" not in about["parts"] or vocabulary.ends != settings.ends:
            raise FflmError(f"{path} is damaged (its files do not fit together): {REMEDY}")
        parts = {}
        for name in PARTS:
            if part := about["parts"].get(name):
                counts = {key: part[key] for key in ("tokens", "unknown", "ends", "sha256")}
                ids = Ids(path / f"{name}.npy", len(vocabulary), vocabulary.end_id, **counts)
                parts[name] = Part(ids, characters=part["characters"], **counts)
        return cls(path, settings, vocabulary, parts)

    def moved(self, path: Path) -> "Corpus":
        """Return this corpus after its folder was renamed, with the same ids, verified or not."""
        for name, part in self.parts.items():
            part.ids.path = path / f"{name}.npy"
        return replace(self, path=path)

    @property
    def fingerprint(self) -> str:
        """A sha256 that tells corpora apart: of the settings, the words and the ids of every part."""
        parts = {name: part.sha256 for name, part in self.parts.items()}
        content = [self.settings.to_dict(), self.vocabulary.words, parts]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def conditions(self) -> dict[str, Any]:
        """What perplexities mean nothing without: vocabulary, its rule, the policy on ends, and the counts of every part."""
        return {
            "vocabulary": len(self.vocabulary),
            "rule": self.vocabulary.rule,
            "policy": self.settings.policy,
            "parts": {name: part.counts for name, part in self.parts.items()},
        }

    def verify(self) -> None:
        """Make sure now, and not only when ids are first used, that all of them are those that were written.

        Raises
        ------
        FflmError
            If they are not.
        """
        for part in self.parts.values():
            part.ids.verify()


Amount: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Head(TypedDict):
    """What every version of corpus.json has."""

    format: Literal["fflm corpus"]
    version: int


class _PartAbout(TypedDict):
    """What corpus.json says of a part."""

    tokens: Annotated[int, Meta(ge=1, le=2**48)]
    unknown: Amount
    ends: Amount
    characters: Amount
    sha256: str


class _About(_Head):
    """What corpus.json says; without a sha256 of all the rest of it, it is an older one."""

    settings: TextSettings
    vocabulary: VocabularyAbout
    parts: dict[Literal["train", "valid", "test"], _PartAbout]
    sha256: NotRequired[str]


def _sha256(about: Mapping[str, Any]) -> str:
    """Return a sha256 of all that corpus.json says, but for itself."""
    content = {name: value for name, value in about.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        write_json(folder / ABOUT, {**about, "sha256": _sha256(about)})
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
        yield _number(chunk, settings, numbering)[1:]
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


def _number(chunk: str, settings: TextSettings, numbering: Numbering) -> tuple[int, Numbers, int]:
    """Return the first new number, the numbers of a chunk's tokens, and how many characters it has."""
    text = settings.tokenizer.normalize(chunk)
    start, numbers = numbering.number(text)
    return start, settings.ends_only(numbers), len(text)


_worker: tuple[TextSettings, Numbering]  # in a worker process


def _start_worker(settings: TextSettings) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = settings, Numbering(settings.tokenizer, _TYPES)


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
    start, numbers, characters = _number(chunk, settings, numbering)
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
