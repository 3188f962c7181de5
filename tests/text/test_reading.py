"""Reading of texts: chunks join to the whole text, every file ends with a line end, and errors name the file."""

import bz2
import contextlib
import encodings
import gzip
import io
import lzma
import pkgutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from fflm.errors import FflmError
from fflm.text.reading import read_chunks, read_lines, whole_lines

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXTS = st.lists(
    st.sampled_from(["\n", "\r\n", "\r", " ", "a", "é", "猫", "👩‍👧", "\u0301", "\u2028"]) | st.text(max_size=3)
).map("".join)


def read(*sources, **options):
    return "".join(read_chunks(sources, **options))


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=3),
    size=st.integers(1, 40),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]),
)
def test_chunks_join_to_normalized_text(tmp_path_factory, texts, size, encoding):
    folder = tmp_path_factory.mktemp("texts")
    expected = ""
    for number, text in enumerate(texts):
        text = text.replace("\0", "").removeprefix("\ufeff")
        (folder / f"{number}.txt").write_bytes(text.encode(encoding))
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        expected += text if text.endswith("\n") or not text else text + "\n"
    chunks = list(read_chunks([folder], encoding, size=size))
    assert "".join(chunks) == expected
    assert all(0 < len(chunk) <= size + 1 for chunk in chunks)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), parts=st.integers(1, 5), compressed=st.booleans())
def test_shares_join_to_the_whole_text(tmp_path_factory, texts, parts, compressed):
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(texts):
        content = text.replace("\0", "").encode()
        (folder / f"{number}.txt").write_bytes(gzip.compress(content) if compressed and number % 2 else content)
    shares = [read(folder, share=(part, parts)) for part in range(parts)]
    assert "".join(shares) == read(folder)
    large = "".join(f"line {number}\n" for number in range(1000))
    (folder / "0.txt").write_text(large)
    shares = [read(folder / "0.txt", share=(part, parts)) for part in range(parts)]
    assert "".join(shares) == large
    assert max(map(len, shares)) <= len(large) // parts + 20


def test_chunks_end_at_lines_then_words_then_graphemes(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\ntwo three four five\n" + "e\u0301" * 10, encoding="utf-8")
    chunks = list(read_chunks([path], size=13))
    assert chunks[:3] == ["one\n", "two three ", "four five\n"]
    assert [chunk for chunk in chunks[3:] if not regex.fullmatch("(e\u0301)+\n?", chunk)] == []
    assert len(chunks) > 4


def test_long_lines_are_cut_only_at_ascii_blanks(tmp_path):
    """Other white space may be part of a word, and the remainder of a line must not be taken for a blank one."""
    path = tmp_path / "text"
    path.write_text("a 10\u00a0000 b c\u2028d\u200f\n cd ab \u200f\u200f\u200f\n", encoding="utf-8")
    chunks = list(read_chunks([path], size=8))
    assert chunks == ["a ", "10\u00a0000 ", "b c\u2028d\u200f\n", " cd ", "ab \u200f\u200f\u200f\n"]


def test_whole_lines_joins_chunks():
    assert list(whole_lines(["a", "b", "\n\nc\n", "d", "", "e\nf"])) == ["ab", "", "c", "de", "f"]
    assert list(whole_lines(["a\n", "\n"])) == ["a", ""]
    assert list(whole_lines([])) == list(whole_lines([""])) == []


def test_read_lines_decodes_and_decompresses(tmp_path):
    path = tmp_path / "words"
    path.write_bytes(lzma.compress("\ufeffa\r\nb\u2028c\rd\x0b".encode()))
    assert read_lines(path) == ["a", "b\u2028c", "d\x0b"]
    path.write_bytes(b"a\n\xe9")
    with pytest.raises(FflmError, match="words is not UTF-8 \\(byte 2\\): save it as UTF-8"):
        read_lines(path)


def test_read_folder_in_sorted_order_without_hidden_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("z.txt", "b/c.txt", ".hidden", ".git/config"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"compressed\r\nline", mtime=0))
    assert read(tmp_path) == "compressed\nline\nz.txt\nb/c.txt\n"
    assert read(tmp_path / ".hidden", str(tmp_path / "z.txt")) == ".hidden\nz.txt\n"


def test_read_standard_input(tmp_path):
    program = "from fflm.text.reading import read_chunks; print(list(read_chunks(['-'])))"
    done = subprocess.run([sys.executable, "-c", program], input="a\r\né".encode(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == repr(["a\né\n"])


@pytest.mark.parametrize("size", [3, 64, 1 << 18])
@pytest.mark.parametrize(
    ("encoding", "good", "bad"),
    [
        ("utf-8", "é猫\n" * 20, b"\xff"),
        ("utf-8", "é猫" * 20, b"\xe7\x8c"),
        ("gb18030", "猫a" * 20, b"\xff"),
        ("utf-16-le", "é\n", b"\x00\xd8a\x00"),
    ],
)
def test_undecodable_bytes_are_refused_or_replaced(tmp_path, encoding, good, bad, size):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(good.encode(encoding) + bad, mtime=0))
    with pytest.raises(FflmError, match=rf"text\.gz .*byte {len(good.encode(encoding))} .*`encoding`.*`errors='replace'`"):
        read(path, encoding=encoding, size=size)
    assert "\ufffd" in read(path, encoding=encoding, errors="replace", size=size)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("binary", b"\x7fELF\0\0", "NUL bytes"),
        ("utf16", "héllo\n".encode("utf-16"), "UTF-16"),
        ("short.gz", gzip.compress(b"some text" * 100, mtime=0)[:-9], "truncated gzip"),
        ("garbled.gz", gzip.compress(b"some text", mtime=0)[:10] + b"\xff" * 30, "gzip"),
    ],
)
def test_binary_or_damaged_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FflmError, match=rf"{name}.*{message}|{message}.*{name}"):
        read(tmp_path / name)


COMPRESS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "zstd": zstd.compress,
}
LINES = "".join(f"line {number} é\n" for number in range(50_000))


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
@pytest.mark.parametrize("name", ["-", "text", "text.txt", "text.gz"])
def test_compression_is_detected_whatever_the_file_name(tmp_path, monkeypatch, compress, name):
    """A compressed file may have several members, as `cat` and parallel compressors write them."""
    content = compress(LINES[:400_000].encode()) + compress(b"") + compress(LINES[400_000:].encode())
    path = tmp_path / name
    path.write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read("-" if name == "-" else path) == LINES


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_damaged_compressed_file_is_refused(tmp_path, compress):
    first, second = compress(LINES[:400_000].encode()), compress(LINES[400_000:].encode())
    garbled = bytearray(first + second)
    garbled[len(first) + 1] ^= 0xFF
    for content in (first[:60], first[:-1], first + second[:-9], first + b"garbage", bytes(garbled)):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(
            FflmError, match=r"cannot read .*text: damaged or truncated (gzip|bzip2|xz|zstd) file .*; fetch it again"
        ):
            read(tmp_path / "text")


def test_padding_between_compressed_streams_is_skipped(tmp_path):
    """Xz files may be padded with zeros, and pzstd writes empty frames before the others."""
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    for content in (
        lzma.compress(b"a\n") + bytes(8) + lzma.compress(b"b\n"),
        skipped + zstd.compress(b"a\n") + skipped + zstd.compress(b"b\n"),
    ):
        (tmp_path / "text").write_bytes(content)
        assert read(tmp_path / "text") == "a\nb\n"


def tar_archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("text.txt"))
    return file.getvalue()


def test_archives_are_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("text.txt", "text")
    others = {
        "zip": file.getvalue(),
        "tar": tar_archive(),
        "7z": b"7z\xbc\xaf\x27\x1c",
        "RAR": b"Rar!\x1a\x07\0",
        "lz4": b"\x04\x22\x4d\x18",
        "compress": b"\x1f\x9d\x90",
    }
    for name, content in others.items():
        for packed in (content, gzip.compress(content, mtime=0), zstd.compress(content)):
            (tmp_path / "text").write_bytes(packed)
            with pytest.raises(FflmError, match=f"text is in the format {name}.*: unpack it first"):
                read(tmp_path / "text")
    (tmp_path / "text").write_bytes(bz2.compress(gzip.compress(b"text", mtime=0)))
    with pytest.raises(FflmError, match="text is compressed twice: decompress it first"):
        read(tmp_path / "text")


def test_compression_without_python_module_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lzma", None)
    (tmp_path / "text").write_bytes(lzma.compress(b"text"))
    with pytest.raises(FflmError, match="text is compressed with xz, which this Python has no module for: decompress it first"):
        read(tmp_path / "text")


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize(("encoding", "order"), [("utf-16", "le"), ("U16", "be"), ("utf_32", "le")])
def test_utf_16_without_byte_order_mark_is_refused(tmp_path, encoding, order, errors):
    path = tmp_path / "text"
    proper = f"utf-{encoding[-2:]}-{order}"
    path.write_bytes("猫 and dog\n".encode(proper))
    with pytest.raises(
        FflmError,
        match=f"text has no byte-order mark, so give the order in which it is written: `encoding='{proper}'`, most likely",
    ):
        read(path, encoding=encoding, errors=errors)
    assert read(path, encoding=proper) == "猫 and dog\n"
    path.write_bytes(b"\0")
    with pytest.raises(FflmError) if errors == "strict" else contextlib.nullcontext():
        read(path, encoding=encoding, errors=errors)


ENCODINGS = sorted({module.name for module in pkgutil.iter_modules(encodings.__path__)})


@pytest.mark.parametrize("content", [b"\xff~{+2AA-x\x1b$B\\ud800\\p\n", bytes(range(1, 256))], ids=["escapes", "all bytes"])
def test_every_python_encoding_gives_text_or_error(tmp_path, content):
    """These include codecs that are not text encodings, that decode to surrogates, or that check the end of a text."""
    (tmp_path / "text").write_bytes(content)
    given = set()
    for encoding in ENCODINGS:
        for errors in ("strict", "replace"):
            for size in (3, 1 << 18):
                with contextlib.suppress(FflmError):
                    read(tmp_path / "text", encoding=encoding, errors=errors, size=size).encode("utf-8")
                    given.add(encoding)
    assert {"utf_7", "hz", "iso2022_jp", "cp037", "gb18030"} <= given
    assert given.isdisjoint({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "rot_13", "hex_codec", "undefined"})


def test_unpaired_surrogates_are_refused_or_replaced(tmp_path):
    (tmp_path / "text").write_bytes(b"a +2AA-")
    with pytest.raises(FflmError, match=r"text is not utf-7 .*an unpaired surrogate.*`errors='replace'`"):
        read(tmp_path / "text", encoding="utf-7")
    assert read(tmp_path / "text", encoding="utf-7", errors="replace") == "a \ufffd\n"


def test_missing_files_and_unknown_encodings_are_refused(tmp_path):
    with pytest.raises(FflmError, match="absent: No such file"):
        read(tmp_path / "absent")
    for name in ("\ud800", "a\0b"):
        with pytest.raises(FflmError, match=r"cannot read .*: no file can have such a name"):
            read(tmp_path / name)
    with pytest.raises(FflmError, match="no files"):
        read(tmp_path)
    for encoding in ("klingon", "hex", "a\0b", "", "\udcff", "idna", "unicode-escape"):
        with pytest.raises(FflmError, match="no encoding"):
            read(tmp_path, encoding=encoding)
