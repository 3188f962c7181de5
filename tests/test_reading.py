"""Reading: nothing is lost between chunks, files never fuse, and every bad file is named."""

import gzip
import subprocess
import sys

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from fflm.errors import FflmError
from fflm.text.reading import read_chunks

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
def test_chunks_join_to_the_text(tmp_path_factory, texts, size, encoding):
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


def test_cuts_at_lines_then_words_then_graphemes(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\ntwo three four five\n" + "e\u0301" * 10, encoding="utf-8")
    chunks = list(read_chunks([path], size=13))
    assert chunks[:3] == ["one\n", "two three ", "four five\n"]
    assert [chunk for chunk in chunks[3:] if not regex.fullmatch("(e\u0301)+\n?", chunk)] == []
    assert len(chunks) > 4


def test_folders_compression_and_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("z.txt", "b/c.txt", ".hidden", ".git/config"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"compressed\r\nline"))
    assert read(tmp_path) == "compressed\nline\nz.txt\nb/c.txt\n"
    assert read(tmp_path / ".hidden", str(tmp_path / "z.txt")) == ".hidden\nz.txt\n"


def test_standard_input(tmp_path):
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
def test_undecodable_bytes(tmp_path, encoding, good, bad, size):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(good.encode(encoding) + bad))
    with pytest.raises(FflmError, match=rf"text\.gz .*byte {len(good.encode(encoding))} .*`encoding`.*`errors='replace'`"):
        read(path, encoding=encoding, size=size)
    assert "\ufffd" in read(path, encoding=encoding, errors="replace", size=size)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("binary", b"\x7fELF\0\0", "NUL bytes"),
        ("utf16", "héllo\n".encode("utf-16"), "UTF-16"),
        ("short.gz", gzip.compress(b"some text" * 100)[:-9], "truncated gzip"),
        ("wrong.gz", b"no gzip at all", "cannot read"),
        ("garbled.gz", gzip.compress(b"some text")[:10] + b"\xff" * 30, "gzip"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FflmError, match=rf"{name}.*{message}|{message}.*{name}"):
        read(tmp_path / name)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(FflmError, match="absent: No such file"):
        read(tmp_path / "absent")
    with pytest.raises(FflmError, match="no files"):
        read(tmp_path)
    for encoding in ("klingon", "hex", "a\0b"):
        with pytest.raises(FflmError, match="no encoding"):
            read(tmp_path, encoding=encoding)
