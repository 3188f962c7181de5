"""Reading text from files, folders, compressed files and standard input, in chunks."""

import contextlib
import gzip
import io
import os
import sys
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, NoReturn, cast

import regex

from fflm.errors import FflmError
from fflm.files import clear_errors

CHUNK = 1 << 18  # characters of a chunk, and bytes of a read

_LAST_GAP = regex.compile(r"(?r)(?<=\s)(?=\S)")
_GRAPHEMES = regex.compile(r"\X")


def read_chunks(
    sources: Sequence[str | Path],
    encoding: str = "utf-8",
    errors: Literal["strict", "replace"] = "strict",
    size: int = CHUNK,
) -> Iterator[str]:
    """Read text piece by piece.

    Parameters
    ----------
    sources
        Files, folders (all files below that are not hidden, in the order of their names) and ``"-"`` for standard
        input. Files that end in ``.gz`` are decompressed.
    encoding
        Name of the character encoding; a byte-order mark is removed.
    errors
        Whether undecodable bytes are an error or replaced by U+FFFD.
    size
        Characters that a chunk may have, besides a newline put at its end, and bytes read at a time.

    Yields
    ------
    str
        Text with a newline at the end of every line, also of a file's last one. A chunk ends where a line ends; a
        line that is longer than a chunk is cut between words or, if it has no spaces, between graphemes.

    Raises
    ------
    FflmError
        If a file cannot be read, is binary or is not in the encoding.
    """
    try:
        holds_nul = b"\0" in "a".encode(encoding)
    except (LookupError, ValueError) as error:
        raise FflmError(f"no encoding {encoding!r}: use a name such as utf-8, latin-1 or gb18030") from error
    for name, file in _open_all(sources):
        decoder = io.IncrementalNewlineDecoder(getincrementaldecoder(encoding)(errors), translate=True)
        pieces = _decode(name, file, decoder, encoding, holds_nul, size)
        yield from _cut(pieces, size)


def _open_all(sources: Sequence[str | Path]) -> Iterator[tuple[str, IO[bytes]]]:
    for source in sources:
        if str(source) == "-":
            yield "standard input", sys.stdin.buffer
            continue
        for path in files(Path(source)):
            with open_bytes(path) as file:
                yield str(path), file


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file to read, unpacked if its name ends in .gz."""
    with clear_errors(f"read {path}"):
        return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def files(source: Path) -> Iterator[Path]:
    """Yield a file itself, or the files of a folder as `read_chunks` reads them.

    Raises
    ------
    FflmError
        If the folder cannot be read, or has none.
    """
    count = 0
    with clear_errors(f"read {source}"):
        if not source.is_dir():
            yield source
            return
        for folder, folders, names in os.walk(source, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
            for path in filter(Path.is_file, paths):
                count += 1
                yield path
    if count == 0:
        raise FflmError(f"no files in the folder {source}: give a folder with text files")


def _raise(error: OSError) -> NoReturn:
    raise error


def _decode(
    name: str,
    file: IO[bytes],
    decoder: io.IncrementalNewlineDecoder,
    encoding: str,
    holds_nul: bool,
    size: int,
) -> Iterator[str]:
    read = 0
    while True:
        with readable(name):
            block = file.read(size)
        read += len(block)
        if b"\0" in block and not holds_nul:
            hint = "give a text file, or its `encoding` if it is UTF-16 or UTF-32"
            raise FflmError(f"{name} holds NUL bytes, so it is not {encoding} text: {hint}")
        try:
            piece = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            offset = read - len(error.object) + error.start
            hint = "name the right `encoding`, or use `errors='replace'`"
            raise FflmError(f"{name} is not {encoding} at byte {offset} ({error.reason}): {hint}") from error
        yield piece
        if not block:
            return


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what goes wrong in reading, and in unpacking, into an FflmError."""
    try:
        with clear_errors(f"read {name}"):
            yield
    except (EOFError, zlib.error) as error:
        raise FflmError(f"cannot read {name}: damaged or truncated gzip file ({error}); fetch it again") from error


def _cut(pieces: Iterable[str], size: int) -> Iterator[str]:
    held = ""
    first = True
    for piece in pieces:
        if first and piece:
            piece = piece.removeprefix("\ufeff")
            first = False
        held += piece
        while len(held) > size:
            cut = held.rfind("\n", 0, size) + 1 or _inside_line(held[:size])
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held if held.endswith("\n") else held + "\n"


def _inside_line(text: str) -> int:
    """Where to cut a long line. What remains begins with a token, so that its end is never taken for a blank line."""
    if gap := _LAST_GAP.search(text):
        return int(gap.start())
    start = 0
    for grapheme in _GRAPHEMES.finditer(text.rstrip()):
        start = grapheme.start()
    return start or len(text)
