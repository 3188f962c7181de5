"""Reading text from files, folders, compressed files and standard input, in chunks."""

import codecs
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import regex

from fflm.errors import FflmError
from fflm.files import COMPRESSIONS, os_errors_as_fflm_error
from fflm.given import Text
from fflm.text.tokenizer import GRAPHEMES

CHUNK = 1 << 18
"""The number of characters in a chunk, and of bytes in a read."""

LONGEST = 1 << 24
"""The largest number of characters, or bytes, of a line where lines are read whole."""

_LARGEST = 1 << 26  # the largest number of bytes of a list of words, which is read whole
_MOST_COMPRESSED = 200  # the largest factor by which decompression may enlarge a file, after the first 64 MiB

# The first bytes of compressed files, which are decompressed, and of other files that are not text.
_MAGIC = {
    "gzip": rb"\x1f\x8b\x08",
    "bzip2": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",
    "xz": rb"\xfd7zXZ\0|\]\0\0",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
}
_UNREADABLE = {
    "zip": rb"PK(?:\x03\x04|\x05\x06)",
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "RAR": rb"Rar!\x1a\x07",
    "tar": rb"(?s:.{257})ustar",
    "lz4": rb"\x04\x22\x4d\x18",
    "lzip": rb"LZIP\x01",
    "compress (.Z)": rb"\x1f\x9d",
}
_KINDS = {kind: re.compile(magic) for kind, magic in (_MAGIC | _UNREADABLE).items()}

_DECOMPRESSORS = {"bzip2": (".bz2", "BZ2Decompressor"), "xz": (".xz", "LZMADecompressor"), "zstd": (".zst", "ZstdDecompressor")}

# Spaces and tabs separate words in every mode of the tokenizer, other white space only in some.
_LAST_GAPS = [regex.compile(rf"(?r)(?<=[{blank}])(?=[^\s\p{{Cf}}])") for blank in (r" \t", r"\s")]
_SURROGATE = regex.compile(r"[\ud800-\udfff]")
_LAST_VISIBLE = regex.compile(r"(?r)[^\s\p{Cf}]")

# Common encodings in which the byte of a newline is never part of another character, and no state crosses a line end.
_CUT_AT_NEWLINES = frozenset({"ascii", "utf-8", "utf-8-sig", "iso8859-1", "iso8859-15", "cp1252", "gb18030", "gbk"})

_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, "\ufeff".encode("gb18030"))

# Python lists these as text encodings, but they are notations for host names and for strings in programs.
_NOTATIONS = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape"})


def read_chunks(
    sources: Sequence[str | Path | Text],
    encoding: str = "utf-8",
    errors: Literal["strict", "replace"] = "strict",
    size: int = CHUNK,
    share: tuple[int, int] = (0, 1),
) -> Iterator[str]:
    """Read text in chunks.

    Parameters
    ----------
    sources
        Files, folders (all files below them that are not hidden, in the order of their names) and ``"-"`` for standard
        input. Files compressed with gzip, bzip2, xz or zstd are decompressed, whatever their names are. Or texts in memory.
    encoding
        The name of the character encoding. A byte-order mark is removed.
    errors
        Whether bytes that cannot be decoded are an error (``"strict"``) or replaced by U+FFFD (``"replace"``).
    size
        The largest number of characters in a chunk, not counting a newline added at its end, and the bytes read at a time.
    share
        Which of how many contiguous shares of the text to read, (0, 1) for the whole text. Files are cut at line ends, into
        shares of about as many bytes; a compressed file, or one in an encoding in which other bytes may be a newline's, belongs
        to one share as a whole. Standard input and texts in memory have no shares.

    Yields
    ------
    str
        Text with a newline at the end of every line, including the last line of a file. A chunk ends at the end of a line; a
        line that is longer than a chunk is cut between words or, if it has no spaces, between graphemes.

    Raises
    ------
    FflmError
        If the encoding does not exist, or a file cannot be read, is binary or is not in the encoding.
    """
    codec = _Codec.find(encoding, errors)
    for pieces in _whole(sources, codec, size) if share == (0, 1) else _share(sources, codec, size, *share):
        yield from _cut(pieces, size)


@dataclass(frozen=True)
class _Codec:
    """A character encoding, and what to do with bytes that are not in it.

    Attributes
    ----------
    encoding, errors
        As `read_chunks` takes them.
    decoder
        Makes the decoder of a file.
    holds_nul
        Whether the encoding of text has NUL bytes.
    encodes_surrogates
        Whether the encoding may have surrogates that are not paired, as UTF-7 does.
    cut_at_newlines
        Whether a text can be cut after each byte of a newline, and its parts decoded apart from each other.
    """

    encoding: str
    errors: Literal["strict", "replace"]
    decoder: Callable[[str], codecs.IncrementalDecoder]
    holds_nul: bool
    encodes_surrogates: bool
    cut_at_newlines: bool

    @classmethod
    def find(cls, encoding: str, errors: Literal["strict", "replace"]) -> "_Codec":
        """Return the codec of an encoding.

        Raises
        ------
        FflmError
            If there is none of this name that decodes text.
        """
        try:
            holds_nul = b"\0" in "a".encode(encoding)
            codec = codecs.lookup(encoding)
            if codec.name in _NOTATIONS or codec.incrementaldecoder is None:
                raise LookupError(codec.name)
        except (LookupError, ValueError) as error:
            raise FflmError(f"there is no encoding {encoding!r}: use a name such as utf-8, latin-1 or gb18030") from error
        known = codec.name in _CUT_AT_NEWLINES
        return cls(encoding, errors, codec.incrementaldecoder, holds_nul, not known, known)


def whole_lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in chunks, without their newlines; the pieces of a line that was cut are joined.

    Raises
    ------
    FflmError
        If a line has more than `LONGEST` characters.
    """
    held: list[str] = []
    number, length = 1, 0
    for chunk in chunks:
        first, *others = chunk.split("\n")
        held.append(first)
        length += len(first)
        if length > LONGEST:
            raise FflmError(f"line {number} is longer than {LONGEST:,} characters: give text with line ends")
        for line in others:
            yield "".join(held)
            held, length = [line], len(line)
        number += len(others)
    if any(held):
        yield "".join(held)


def arriving_lines(encoding: str = "utf-8", errors: Literal["strict", "replace"] = "strict") -> Iterator[str]:
    """Yield each line of standard input, without its end, as soon as it arrives.

    Parameters
    ----------
    encoding, errors
        As for `read_chunks`.

    Raises
    ------
    FflmError
        If the encoding does not exist, the input is not in it, or a line has more than `LONGEST` characters.
    """
    stdin: Any = sys.stdin.buffer  # its `read1` does not wait for more bytes than there are
    pieces = _decode("standard input", stdin.read1, _Codec.find(encoding, errors), CHUNK)
    for number, line in enumerate(whole_lines(pieces)):
        yield line if number else line.removeprefix("\ufeff")


def _whole(sources: Sequence[str | Path | Text], codec: _Codec, size: int) -> Iterator[Iterator[str]]:
    """Yield the text of one file of the sources after another, in pieces."""
    for source in itertools.chain.from_iterable(map(each_file, sources)):
        if isinstance(source, Text):
            yield source.pieces(size)
        elif str(source) == "-":
            yield _decode("standard input", decompressed(sys.stdin.buffer, "standard input").read, codec, size)
        else:
            with open_bytes(source) as file:
                yield _decode(str(source), file.read, codec, size)


def each_file(source: str | Path | Text) -> Iterator[Path | Text]:
    """Yield the files of a folder, or any other source itself; see `read_chunks`."""
    if isinstance(source, Text) or str(source) == "-":
        yield source if isinstance(source, Text) else Path(source)
    else:
        yield from files(Path(source))


def source_name(source: Path | Text) -> str:
    """Return how messages call a source."""
    return "standard input" if str(source) == "-" else str(source)


def _share(sources: Sequence[str | Path | Text], codec: _Codec, size: int, part: int, parts: int) -> Iterator[Iterator[str]]:
    """Yield the text of one file after another in share number ``part`` of ``parts`` of some files, in pieces."""
    for name, file in _open_share([source for source in sources if not isinstance(source, Text)], codec, part, parts):
        yield _decode(name, file.read, codec, size)


def _open_share(sources: Sequence[str | Path], codec: _Codec, part: int, parts: int) -> Iterator[tuple[str, IO[bytes]]]:
    """Open what is in share number ``part`` of ``parts`` of some files; yield its name, and a file that ends with the share."""
    paths = [path for source in sources for path in files(Path(source))]
    with os_errors_as_fflm_error("read the sizes of files"):
        ends = list(itertools.accumulate((path.stat().st_size for path in paths), initial=0))
    low, high = (ends[-1] * each // parts for each in (part, part + 1))
    for path, start, end in zip(paths, ends[:-1], ends[1:], strict=True):
        if end <= low or start >= high:
            continue
        with os_errors_as_fflm_error(f"read {path}"), path.open("rb") as file:
            if _kind(file.peek()) or not codec.cut_at_newlines:
                if start >= low:
                    file.seek(0)
                    yield str(path), decompressed(file, str(path))
                continue
            first, last = _next_line(file, low - start), _next_line(file, high - start)
            file.seek(first)
            name = f"{path}, from byte {first} on," if first else str(path)
            yield name, io.BufferedReader(_Blocks(_raw_blocks(file, name, last)), CHUNK)


def _next_line(file: IO[bytes], position: int) -> int:
    """Return the position of the first line that starts at a position or after it; that of the end of the file if none does.

    A line that begins like a file, with a byte-order mark, which would be removed, is taken for a part of the line before it.
    """
    if position <= 0:
        return 0
    file.seek(position - 1)
    while True:
        line, place = file.readline(CHUNK), file.tell()
        start = file.read(4)
        file.seek(place)
        if not line or (line.endswith(b"\n") and not start.startswith(_BYTE_ORDER_MARKS)):
            return place


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, which may be compressed, without their ends and without a byte-order mark.

    Raises
    ------
    FflmError
        If the file cannot be read, is too large for a list of words, or is not UTF-8.
    """
    with open_bytes(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise FflmError(f"{path} has more than {_LARGEST:,} bytes, too many for a list of words: give a shorter one")
    try:
        return io.StringIO(content.decode("utf-8-sig"), newline=None).read().split("\n")
    except UnicodeDecodeError as error:
        raise FflmError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error


def byte_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, which may be compressed, without a byte-order mark.

    Raises
    ------
    FflmError
        If the file cannot be read, or a line has more than `LONGEST` bytes.
    """
    with open_bytes(path) as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST + 1)
            if len(line) > LONGEST:
                raise FflmError(f"{path}, line {number} is longer than {LONGEST:,} bytes: give a text file with line ends")
            if not line:
                return
            yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def to_float(field: bytes) -> float:
    """Return a field of a text file as a number, without the underscores that Python allows between digits.

    Raises
    ------
    ValueError
        If the field is not a number.
    """
    if b"_" in field:
        raise ValueError(f"{field!r} is not a number")
    return float(field)


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, which are decompressed if they are in gzip, bzip2, xz or zstd, whatever its name is.

    Raises
    ------
    FflmError
        If the file cannot be read or is an archive, or, while it is read, if it is damaged.
    """
    with os_errors_as_fflm_error(f"read {path}"):
        file = path.open("rb")
    with file:
        yield decompressed(file, str(path))


def decompressed(file: IO[bytes], name: str) -> IO[bytes]:
    """Return a file-like object with the content of an open file, decompressed if it is compressed, as `open_bytes` does.

    Parameters
    ----------
    file
        The file.
    name
        Its name, for error messages.

    Raises
    ------
    FflmError
        As `open_bytes`.
    """
    source = _Blocks(_raw_blocks(file, name))
    result = io.BufferedReader(source, CHUNK)
    kind = _kind(result.peek())
    if kind in _MAGIC:
        blocks = _bounded(_decompressed_blocks(result, kind, name), source, name)
        result = io.BufferedReader(_Blocks(blocks), CHUNK)
        if (kind := _kind(result.peek())) in _MAGIC:
            raise FflmError(f"{name} is compressed twice: decompress it first")
    if kind:
        raise FflmError(f"{name} is in the format {kind}, which is not text: unpack it first")
    return result


def _kind(head: bytes) -> str:
    """Return the format, a key of ``_KINDS``, of a file that begins with these bytes, or "" if it may be text."""
    return next((kind for kind, magic in _KINDS.items() if magic.match(head)), "")


class _Blocks(io.RawIOBase):
    """A file-like object that reads from blocks of bytes, none of them empty; ``taken`` is the number of bytes read so far."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self.taken = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Copy bytes into a buffer; return how many, which is 0 at the end."""
        self._rest = self._rest or memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        self.taken += count
        return count


def _raw_blocks(file: IO[bytes], name: str, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file, up to a position, in blocks; the first one is long enough to recognize the format."""
    while True:
        with os_errors_as_fflm_error(f"read {name}"):
            block = file.read(CHUNK if end is None else min(CHUNK, max(0, end - file.tell())))
        if block:
            yield block
        if len(block) < CHUNK:  # reading again would make a terminal wait for a second end of input
            return


def _decompressed_blocks(file: IO[bytes], kind: str, name: str) -> Iterator[bytes]:
    """Yield the decompressed content of a file, in blocks: that of all its members, or frames, in order."""
    try:
        if kind == "gzip":
            member = import_module("gzip").GzipFile(fileobj=file)
            yield from iter(lambda: member.read(CHUNK), b"")
        else:
            ending, decompressor = _DECOMPRESSORS[kind]
            yield from _members(file, getattr(import_module(COMPRESSIONS[ending]), decompressor))
    except ImportError as error:
        raise FflmError(f"{name} is compressed with {kind}, which this Python has no module for: decompress it first") from error
    except (FflmError, MemoryError):
        raise
    except Exception as error:  # each of the modules raises errors of its own
        raise FflmError(f"cannot read {name}: damaged or truncated {kind} file ({error}); fetch it again") from error


def _bounded(blocks: Iterator[bytes], source: _Blocks, name: str) -> Iterator[bytes]:
    """Yield decompressed blocks, unless they are far larger than text gives: a small file may be made to exhaust memory."""
    size = 0
    for block in blocks:
        size += len(block)
        if size > _LARGEST and size > _MOST_COMPRESSED * source.taken:
            raise FflmError(
                f"{name} is more than {_MOST_COMPRESSED} times as large when it is decompressed, as no natural text is: "
                "decompress it first if you trust it"
            )
        yield block


def _members(file: IO[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress the members of a file; `bz2.open` and `lzma.open` would stop silently at the first damaged member."""
    decompressor, data = new(), file.read(CHUNK)
    while True:
        if block := decompressor.decompress(data, CHUNK):
            yield block
        data = b""
        if decompressor.eof:
            data = decompressor.unused_data.lstrip(b"\0")  # padding that xz may put between streams
            while not data:
                if not (more := file.read(CHUNK)):
                    return
                data = more.lstrip(b"\0")
            decompressor = new()
        elif decompressor.needs_input and not (data := file.read(CHUNK)):
            raise EOFError("its end is missing")


def files(source: Path) -> Iterator[Path]:
    """Yield a file itself, or the files of a folder in the order in which `read_chunks` reads them.

    Raises
    ------
    FflmError
        If the folder cannot be read, or has no files.
    """
    count = 0
    with os_errors_as_fflm_error(f"read {source}"):
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
        raise FflmError(f"there are no files in the folder {source}: give a folder with text files")


def _raise(error: OSError) -> NoReturn:
    """Raise an error; `os.walk` would ignore it."""
    raise error


def _decode(name: str, read_bytes: Callable[[int], bytes], codec: _Codec, size: int) -> Iterator[str]:
    """Yield the text of a file, whose ``name`` is for error messages, in pieces; every line end is a newline."""
    decoder = io.IncrementalNewlineDecoder(codec.decoder(codec.errors), translate=True)
    encoding = codec.encoding
    hint = "give the right `encoding`, or use `errors='replace'`"
    read = 0
    while True:
        block = read_bytes(size)
        read += len(block)
        if b"\0" in block and not codec.holds_nul:
            form = "give a text file, or its `encoding` if it is UTF-16 or UTF-32"
            raise FflmError(f"{name} holds NUL bytes, so it is not {encoding} text: {form}")
        try:
            piece = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            offset = read - len(error.object) + error.start
            raise FflmError(f"{name} is not {encoding} at byte {offset} ({error.reason}): {hint}") from error
        except UnicodeError as error:  # only the codecs utf-16 and utf-32 raise it
            order = "be" if block[::2].count(0) > block[1::2].count(0) else "le"
            likely = f"{codecs.lookup(encoding).name}-{order}"
            raise FflmError(
                f"{name} has no byte-order mark, so give the order in which it is written: `encoding='{likely}'`, most likely"
            ) from error
        try:
            if codec.encodes_surrogates:
                piece.encode()
        except UnicodeEncodeError as error:
            if codec.errors == "strict":
                raise FflmError(f"{name} is not {encoding} (it has an unpaired surrogate): {hint}") from error
            piece = _SURROGATE.sub("\ufffd", piece)
        yield piece
        if not block:
            return


def _cut(pieces: Iterable[str], size: int) -> Iterator[str]:
    """Cut the text of a file, which comes in pieces, into chunks of at most ``size`` characters, as `read_chunks` yields them."""
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
    """Return where to cut a long line. The rest begins with a token, so that it is never read as a blank line."""
    for gaps in _LAST_GAPS:
        if gap := gaps.search(text):
            return int(gap.start())
    visible = _LAST_VISIBLE.search(text)
    start = 0
    for grapheme in GRAPHEMES.finditer(text, 0, visible.end() if visible else 0):
        start = grapheme.start()
    return start or len(text)
