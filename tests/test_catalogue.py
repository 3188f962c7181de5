"""The catalogue of corpora, and fetching from a real server on loopback."""

import dataclasses
import functools
import gc
import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fflm.cli.corpus import command
from fflm.errors import FflmError
from fflm.text import catalogue
from fflm.text.catalogue import Download, Entry, fetch

# pooch leaves the connections of failed transfers to the garbage collector, which warns of them at any later moment: here it is
# made to do so at once, and not heeded.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def collect() -> Iterator[None]:
    """Collect a test's garbage before the next one."""
    yield
    gc.collect()


# More than one chunk of the transfer.
TEXT = b"".join(b"line %d of a text\n" % number for number in range(20_000))


class Server(ThreadingHTTPServer):
    """Serves `bodies`; of the paths in `cut` only so many bytes, though it announces them all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.stalled, self.resume = threading.Event(), threading.Event()

    def url(self, path: str) -> str:
        """Return the address of ``path`` on this server."""
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    """Answers GET from the server's tables; `/stalled` sends half a body and waits."""

    server: Server

    def do_GET(self) -> None:
        """Send a body, its beginning, or 404."""
        body = self.server.bodies.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/stalled" and not self.server.stalled.is_set():
            self.wfile.write(body[: len(body) // 2])
            self.server.stalled.set()
            self.server.resume.wait()
        else:
            self.wfile.write(body[: self.server.cut.get(self.path)])

    def log_message(self, format: str, *args: object) -> None:
        """Keep standard error clean."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, Server() as running:
        patch.setenv("no_proxy", "127.0.0.1")
        running.bodies = {"/good": TEXT, "/truncated": TEXT, "/stalled": TEXT, "/zip": archive()}
        running.cut = {"/truncated": len(TEXT) // 3}
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.resume.set()
        running.shutdown()
        thread.join()


@functools.cache  # an archive made a second later has another checksum
def archive() -> bytes:
    """Return a zip with two tagged texts out of order, a plain one, and members that would climb out."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as writer:
        writer.writestr("b/c02", "\n\tThe/at end/nn ./.\n")
        writer.writestr("b/c01", "\n\n\tEither/or//cc-hl x/y\n\n\n./.\n")
        writer.writestr("../evil.txt", "evil")
        writer.writestr("/tmp/evil.txt", "evil")
        writer.writestr("plain", TEXT)
    return file.getvalue()


def entry(body: bytes, *urls: str, **fields: object) -> Entry:
    arguments = {"file": "text.txt", **fields}
    download = Download(urls, hashlib.sha256(body).hexdigest(), len(body), **arguments)  # type: ignore[arg-type]
    return Entry("sample", "A sample", "MIT", "none", "fflm train {folder}/text.txt", (download,))


def tree(folder: Path) -> dict[str, bytes | None]:
    paths = folder.rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def test_every_entry_is_complete() -> None:
    known = catalogue.entries()
    assert {"stories", "gushi", "brown", "penn-treebank", "wikitext-2", "wikitext-103"} <= set(known)
    assert {"text8", "tiny-shakespeare"} <= set(known)
    for name, item in known.items():
        assert item.name == name
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert item.title
        assert item.licence
        assert item.split
        assert item.size > 20_000
        written = [item.bundled] if item.bundled else []
        for download in item.downloads:
            assert download.urls
            assert all(url.startswith(("https://", "http://")) for url in download.urls)
            assert re.fullmatch("[0-9a-f]{64}", download.sha256)
            assert bool(download.file) != bool(download.unpack)
            written += [download.file] if download.file else download.unpack
        assert written
        assert all(Path(file).name == file and file.endswith(".txt") for file in written)
        trained = re.findall(r"\{folder\}/(\S+)", item.train)
        assert item.train.startswith("fflm train {folder}/")
        assert sorted(trained) == sorted(written)


def test_unknown_name() -> None:
    with pytest.raises(FflmError, match=r"'browne'.*brown"):
        catalogue.find("browne")


def test_good_file_with_progress(server: Server, tmp_path: Path) -> None:
    counts: list[int] = []
    files = fetch(entry(TEXT, server.url("/good")), tmp_path / "new", counts.append)
    assert files == [tmp_path / "new" / "sample" / "text.txt"]
    assert tree(tmp_path / "new") == {"sample": None, "sample/text.txt": TEXT}
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == len(TEXT)


def test_several_downloads_count_on(server: Server, tmp_path: Path) -> None:
    one, two = (entry(TEXT, server.url("/good"), file=name).downloads[0] for name in ("a.txt", "b.txt"))
    counts: list[int] = []
    both = dataclasses.replace(entry(TEXT), downloads=(one, two))
    assert [file.name for file in fetch(both, tmp_path, counts.append)] == ["a.txt", "b.txt"]
    assert counts == sorted(counts)
    assert counts[-1] == both.size == 2 * len(TEXT)


def test_next_address_when_one_fails(server: Server, tmp_path: Path) -> None:
    urls = map(server.url, ("/absent", "/truncated", "/zip", "/good"))
    assert fetch(entry(TEXT, *urls), tmp_path)[0].read_bytes() == TEXT


def test_unpacking_stays_inside(server: Server, tmp_path: Path) -> None:
    item = entry(archive(), server.url("/zip"), file="", unpack={"all.txt": "*evil*", "text.txt": "plain"})
    fetch(item, tmp_path / "in")
    expected = {"sample": None, "sample/all.txt": b"evilevil", "sample/text.txt": TEXT}
    assert tree(tmp_path) == {"in": None, **{f"in/{name}": content for name, content in expected.items()}}


def test_tags_are_removed(server: Server, tmp_path: Path) -> None:
    item = entry(archive(), server.url("/zip"), file="", unpack={"text.txt": "b/c[0-9][0-9]"}, tagged=True)
    assert fetch(item, tmp_path)[0].read_text() == "Either/or/ x\n.\n\nThe end .\n\n"


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/absent", {}, "404 Client Error: Not Found"),
        ("/truncated", {}, "broke off"),
        ("/zip", {}, "wrong checksum"),
        ("/good", {"file": "", "unpack": {"text.txt": "plain"}}, "wrong checksum"),
        ("/zip", {"file": "", "unpack": {"text.txt": "absent"}}, "is called absent"),
    ],
)
def test_failure_leaves_nothing(
    server: Server,
    tmp_path: Path,
    path: str,
    fields: dict[str, object],
    message: str,
) -> None:
    (tmp_path / "other").write_text("untouched")
    before = tree(tmp_path)
    body = archive() if "absent" in message else TEXT[1:]
    with pytest.raises(FflmError, match=message) as caught:
        fetch(entry(body, server.url(path), **fields), tmp_path)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_connection_refused(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else gets the port, nobody answers
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/good"
        with pytest.raises(FflmError, match=r"no connection to 127\.0\.0\.1"):
            fetch(entry(TEXT, url), tmp_path)
    assert tree(tmp_path) == {}


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(0, len(TEXT) - 1), flip=st.none() | st.integers(0, len(TEXT) - 1))
def test_only_the_exact_bytes_are_kept(server: Server, cut: int, flip: int | None) -> None:
    body = bytearray(TEXT)
    if flip is not None:
        body[flip] ^= 1
    server.bodies["/any"] = bytes(body)
    server.cut["/any"] = cut if flip is None else len(TEXT)
    with tempfile.TemporaryDirectory() as name:
        with pytest.raises(FflmError, match="broke off" if flip is None else "wrong checksum"):
            fetch(entry(TEXT, server.url("/any")), Path(name))
        assert tree(Path(name)) == {}


def test_existing_target_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "mine").write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(FflmError, match="exists already"):
        fetch(entry(TEXT, server.url("/good")), tmp_path)
    assert tree(tmp_path) == before


def test_folder_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FflmError, match=r"cannot write .*sample"):
        fetch(entry(TEXT, server.url("/good")), tmp_path / "file")
    assert tree(tmp_path) == {"file": b"precious"}


def test_disk_error(server: Server, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(TEXT) // 2, hard))  # writing more fails as on a full disk
    try:
        with pytest.raises(FflmError, match=r"cannot write .*sample"):
            fetch(entry(TEXT, server.url("/good")), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {}


def test_killed_then_run_again(server: Server, tmp_path: Path) -> None:
    item = entry(TEXT, server.url("/stalled"))
    program = f"""
from pathlib import Path
from fflm.text.catalogue import *
fetch({item!r}, Path({str(tmp_path)!r}))
"""
    root = Path(catalogue.__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", program], cwd=root) as process:
        assert server.stalled.wait(60)
        with pytest.raises(FflmError, match=rf"another process \({process.pid} on .*\) is downloading to .*sample"):
            fetch(item, tmp_path)
        process.kill()
    assert not (tmp_path / "sample").exists()
    fetch(item, tmp_path)
    assert tree(tmp_path) == {"sample": None, "sample/text.txt": TEXT}


def test_commands(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    (corpora / "own.txt").write_text("a text of our own\n")
    (corpora / "catalogue.toml").write_text(
        f"""
        [own]
        title = "Our own"
        licence = "MIT"
        split = "none"
        train = "fflm train {{folder}}/own.txt"
        bundled = "own.txt"
        [far]
        title = "From afar"
        licence = "CC0"
        split = "none"
        train = "fflm train {{folder}}/far.txt"
        [[far.downloads]]
        urls = ["{server.url("/good")}"]
        sha256 = "{hashlib.sha256(TEXT).hexdigest()}"
        size = {len(TEXT)}
        file = "far.txt"
        """
    )
    monkeypatch.setattr(catalogue, "bundled", lambda: corpora)
    runner = CliRunner()

    listed = runner.invoke(command, ["list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["NAME", "own", "far"]
    table = json.loads(runner.invoke(command, ["list", "--json"]).stdout)
    assert [(row["name"], row["size"]) for row in table] == [("own", 18), ("far", len(TEXT))]

    folder = tmp_path / "my data"
    got = runner.invoke(command, ["get", "own", "-o", str(folder)])
    assert got.exit_code == 0
    assert got.stdout == f"{folder / 'own' / 'own.txt'}\n"
    assert (folder / "own" / "own.txt").read_text() == "a text of our own\n"
    assert f"fflm train '{folder / 'own'}'/own.txt" in got.stderr
    got = runner.invoke(command, ["get", "far", "-o", str(folder), "--json"])
    assert json.loads(got.stdout)["files"] == [str(folder / "far" / "far.txt")]
    assert isinstance(runner.invoke(command, ["get", "far", "-o", str(folder)]).exception, FflmError)
    assert isinstance(runner.invoke(command, ["get", "none"]).exception, FflmError)


def test_help_has_examples() -> None:
    for arguments in ([], ["list"], ["get"]):
        result = CliRunner().invoke(command, [*arguments, "--help"])
        assert "Example:\n" in result.stdout
