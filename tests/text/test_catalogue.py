"""The catalogue of corpora, and downloads from a real server on the loopback interface."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import re
import shutil
import socket
import ssl
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
from fflm.text import catalogue, downloading
from fflm.text.catalogue import Download, Entry, fetch

# The text is longer than one chunk of a transfer.
TEXT = b"".join(b"line %d of a text\n" % number for number in range(20_000))


class Server(ThreadingHTTPServer):
    """An HTTP server whose responses are set by path.

    It sends `bodies` with the right length, but only the first bytes of those in `cut`. Responses in `raw` are sent unchanged.
    So are those in `endless`, whose second part is repeated until the client closes the connection.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.raw: dict[str, bytes] = {}
        self.endless: dict[str, tuple[bytes, bytes]] = {}
        self.pause = threading.Event()  # never set: waiting for it slows a response down
        self.stalled, self.resume = threading.Event(), threading.Event()

    def url(self, path: str, scheme: str = "http") -> str:
        """Return the address of ``path`` on this server."""
        return f"{scheme}://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: object) -> None:
        """Print nothing when a client closes the connection."""


class Handler(BaseHTTPRequestHandler):
    """Answer GET requests from the server's tables; the first response to `/stalled` stops after half of the body."""

    server: Server

    def do_GET(self) -> None:
        """Send a body, its beginning, an invalid response, or 404."""
        if self.path in self.server.raw:
            self.wfile.write(self.server.raw[self.path])
            return
        if self.path in self.server.endless:
            first, again = self.server.endless[self.path]
            self.wfile.write(first)
            while True:
                self.wfile.write(again)
                if len(again) < 100:
                    self.server.pause.wait(0.01)
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
        """Print nothing."""


@contextlib.contextmanager
def serving(running: Server) -> Iterator[Server]:
    """Run a server in a thread, and stop it in the end."""
    running.bodies = {"/good": TEXT, "/truncated": TEXT, "/stalled": TEXT, "/zip": archive()}
    running.cut = {"/truncated": len(TEXT) // 3}
    with running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.resume.set()
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, serving(Server()) as running:
        patch.setenv("no_proxy", "127.0.0.1")
        yield running


@functools.cache  # because a zip file stores the time, so that another archive would have another checksum
def archive() -> bytes:
    """Return a zip with two tagged texts out of order, a plain one, and members whose names lead out of the folder."""
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


def files_in(folder: Path) -> dict[str, bytes | None]:
    paths = folder.rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def test_catalogue_entries_have_all_fields() -> None:
    known = catalogue.entries()
    assert {"stories", "gushi", "brown", "penn-treebank", "wikitext-2", "wikitext-103"} <= set(known)
    assert {"text8", "tiny-shakespeare"} <= set(known)
    for name, item in known.items():
        assert item.name == name
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert item.title
        assert item.license
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


def test_find_unknown_name_suggests_similar_one() -> None:
    with pytest.raises(FflmError, match=r"'browne'.*brown"):
        catalogue.find("browne")


def test_fetch_saves_file_and_reports_progress(server: Server, tmp_path: Path) -> None:
    counts: list[int] = []
    files = fetch(entry(TEXT, server.url("/good")), tmp_path / "new", counts.append)
    assert files == [tmp_path / "new" / "sample" / "text.txt"]
    assert files_in(tmp_path / "new") == {"sample": None, "sample/text.txt": TEXT}
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == len(TEXT)


def test_progress_adds_up_over_several_downloads(server: Server, tmp_path: Path) -> None:
    one, two = (entry(TEXT, server.url("/good"), file=name).downloads[0] for name in ("a.txt", "b.txt"))
    counts: list[int] = []
    both = dataclasses.replace(entry(TEXT), downloads=(one, two))
    assert [file.name for file in fetch(both, tmp_path, counts.append)] == ["a.txt", "b.txt"]
    assert counts == sorted(counts)
    assert counts[-1] == both.size == 2 * len(TEXT)


def test_fetch_tries_next_url_when_one_fails(server: Server, tmp_path: Path) -> None:
    urls = map(server.url, ("/absent", "/truncated", "/zip", "/good"))
    assert fetch(entry(TEXT, *urls), tmp_path)[0].read_bytes() == TEXT


def test_unpacking_writes_only_inside_target_folder(server: Server, tmp_path: Path) -> None:
    item = entry(archive(), server.url("/zip"), file="", unpack={"all.txt": "*evil*", "text.txt": "plain"})
    fetch(item, tmp_path / "in")
    expected = {"sample": None, "sample/all.txt": b"evilevil", "sample/text.txt": TEXT}
    assert files_in(tmp_path) == {"in": None, **{f"in/{name}": content for name, content in expected.items()}}


def test_part_of_speech_tags_are_removed(server: Server, tmp_path: Path) -> None:
    item = entry(archive(), server.url("/zip"), file="", unpack={"text.txt": "b/c[0-9][0-9]"}, tagged=True)
    assert fetch(item, tmp_path)[0].read_text() == "Either/or/ x\n.\n\nThe end .\n\n"


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/absent", {}, "answered: 404 Not Found;"),
        ("/truncated", {}, "broke off"),
        ("/zip", {}, "announces another file"),
        ("/good", {"file": "", "unpack": {"text.txt": "plain"}}, "announces another file"),
        ("/zip", {"file": "", "unpack": {"text.txt": "absent"}}, "has no file absent"),
    ],
)
def test_failed_fetch_leaves_no_files(
    server: Server,
    tmp_path: Path,
    path: str,
    fields: dict[str, object],
    message: str,
) -> None:
    (tmp_path / "other").write_text("untouched")
    before = files_in(tmp_path)
    body = {"/truncated": TEXT, "/zip": archive() if "absent" in message else b""}.get(path, TEXT[1:])
    with pytest.raises(FflmError, match=message) as caught:
        fetch(entry(body, server.url(path), **fields), tmp_path)
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == before


def test_connection_refused_is_reported(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening, so that no other process gets the port and none answers
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/good"
        with pytest.raises(FflmError, match=r"127\.0\.0\.1:\d+ cannot be reached"):
            fetch(entry(TEXT, url), tmp_path)
    assert files_in(tmp_path) == {}


def http_response(*headers: bytes, status: bytes = b"200 OK", body: bytes = TEXT) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


def redirect(address: bytes) -> bytes:
    return http_response(b"Location: " + address, b"Content-Length: 0", status=b"302 Found", body=b"")


CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (http_response(b"Content-Length: abc"), "announces another file"),
        (http_response(b"Content-Length: -5"), "announces another file"),
        (http_response(b"Content-Length: " + b"9" * 5000), "announces another file"),
        (http_response(b"Content-Length: 5", b"Content-Length: 7"), "no valid HTTP"),
        (http_response(b"Content-Length: %d" % (len(TEXT) + 1)), "announces another file"),
        (http_response(body=TEXT[:-1]), "broke off the transfer after"),
        (http_response(body=TEXT + b"x"), "sends another file, of more than"),
        (http_response(body=TEXT[:-1] + b"x"), "wrong checksum"),
        (http_response(b"Content-Encoding: gzip"), None),  # the body is not decoded, so only its checksum counts
        (http_response(CHUNKED, body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(TEXT), TEXT)), None),
        (http_response(CHUNKED, body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(TEXT) - 1, TEXT[1:])), "broke off"),
        (http_response(CHUNKED, body=b"zz\r\nabc\r\n"), "broke off"),
        (http_response(CHUNKED, body=b"%s\r\n" % (b"f" * 20) + TEXT + b"x"), "of more than"),
        (http_response(CHUNKED, body=b"f" * 100_000), "broke off"),
        (http_response(CHUNKED, body=b"-1\r\n" + TEXT + b"x"), "of more than"),
        (http_response(*(b"X-%d: a" % number for number in range(500))), "no valid HTTP"),
        (http_response(b"X: " + b"a" * 200_000), "no valid HTTP"),
        (http_response(status=b"404 \x1b[31mgone\xff\x07"), "answered: 404 Not Found;"),
        (http_response(status=b"799 \x1b]0;title\x07"), "answered: 799;"),
        (http_response(status=b"200 \x1b[31m\xff", body=b""), "broke off the transfer after 0"),
        (http_response(status=b"206 Partial Content"), "answered: 206 Partial Content"),
        (http_response(status=b"204 No Content", body=b""), "answered: 204 No Content"),
        (http_response(b"Content-Length: 0", status=b"302 Found", body=b""), "answered: 302 Found"),
        (b"", "no valid HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no valid HTTP"),
        (bytes(range(256)) * 10, "no valid HTTP"),
        (redirect(b"/good"), None),
        (redirect(b"file:///etc/passwd"), "redirects to an address that is not http: 'file:///etc/passwd'"),
        (redirect(b"ftp://127.0.0.1/x"), "redirects to an address that is not http"),
        (redirect(b"//127.0.0.1:0/"), "'127.0.0.1:0', to which 127.0.0.1:.* redirects, cannot be reached"),
        (redirect(b"http://127.0.0.1:99999/"), "no valid HTTP"),
        (redirect(b"http://[::1"), "no valid HTTP"),
        (redirect(b"http://.example.invalid/"), "no valid HTTP"),
        (redirect(b"http://%s.invalid/" % (b"a" * 300)), "'a{80}', to which"),
        (redirect(b"http://\xff\xfe/"), "no valid HTTP"),
        (redirect(b"http://\x1b[31mred/"), r"no valid HTTP|\\x1b\[31mred"),
        (redirect(b"x\x1b:red"), r"not http: 'x\\x1b:red|answered: 404"),
        (redirect(b"/odd"), "redirects more than 5 times"),
    ],
)
def test_malformed_response_gives_one_line_error(server: Server, tmp_path: Path, raw: bytes, message: str | None) -> None:
    server.raw["/odd"] = raw
    if message is None:
        assert fetch(entry(TEXT, server.url("/odd")), tmp_path)[0].read_bytes() == TEXT
        return
    with pytest.raises(FflmError, match=message) as caught:
        fetch(entry(TEXT, server.url("/odd")), tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (http_response(body=b""), bytes(1 << 16)),
        (http_response(CHUNKED, body=b""), b"10000\r\n%s\r\n" % bytes(1 << 16)),
        (http_response(CHUNKED, body=b"-1\r\n"), bytes(1 << 16)),
    ],
)
def test_endless_response_is_cut_at_expected_size(server: Server, tmp_path: Path, first: bytes, again: bytes) -> None:
    server.endless["/endless"] = first, again
    counts: list[int] = []
    with pytest.raises(FflmError, match="sends another file, of more than"):
        fetch(entry(TEXT, server.url("/endless")), tmp_path, counts.append)
    assert counts[-1] <= len(TEXT)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (http_response(b"Content-Length: %d" % len(TEXT), body=b""), b"x"),
        (http_response(body=b""), b"x"),
        (http_response(CHUNKED, body=b""), b"1\r\nx\r\n"),
        (http_response(CHUNKED, body=b"1;"), b"x"),
        (http_response(CHUNKED, body=b"0\r\n"), b"x: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_slow_response_times_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, again: bytes
) -> None:
    monkeypatch.setattr(downloading, "_GRACE", 0.2)
    server.endless["/drip"] = first, again
    with pytest.raises(FflmError, match=r"127.0.0.1:\d+ is too slow: [\d,]+ bytes in"):
        fetch(entry(TEXT, server.url("/drip")), tmp_path)
    assert files_in(tmp_path) == {}


def test_missing_response_times_out(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "_SILENCE", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(FflmError, match="did not answer within"):
            fetch(entry(TEXT, f"http://127.0.0.1:{silent.getsockname()[1]}/good"), tmp_path)


def test_redirect_body_is_not_read(server: Server, tmp_path: Path) -> None:
    server.endless["/moved"] = http_response(b"Location: /good", status=b"302 Found", body=b""), bytes(1 << 16)
    assert fetch(entry(TEXT, server.url("/moved")), tmp_path)[0].read_bytes() == TEXT


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is needed to make a certificate")
def test_https_certificate_is_verified_and_downgrade_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=test"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure = Server()
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    with serving(secure):
        secure.raw = {"/back": redirect(server.url("/good").encode()), "/along": redirect(b"/good")}
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        with pytest.raises(FflmError, match="gave no valid certificate"):
            fetch(entry(TEXT, secure.url("/good", "https")), tmp_path / "in")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with pytest.raises(FflmError, match="redirects to an address that is not https"):
            fetch(entry(TEXT, secure.url("/back", "https")), tmp_path / "in")
        server.raw["/up"] = redirect(secure.url("/along", "https").encode())
        assert fetch(entry(TEXT, server.url("/up")), tmp_path / "in")[0].read_bytes() == TEXT


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(0, len(TEXT) - 1), flip=st.none() | st.integers(0, len(TEXT) - 1))
def test_truncated_or_changed_download_is_not_saved(server: Server, cut: int, flip: int | None) -> None:
    body = bytearray(TEXT)
    if flip is not None:
        body[flip] ^= 1
    server.bodies["/any"] = bytes(body)
    server.cut["/any"] = cut if flip is None else len(TEXT)
    with tempfile.TemporaryDirectory() as name:
        with pytest.raises(FflmError, match="broke off" if flip is None else "wrong checksum"):
            fetch(entry(TEXT, server.url("/any")), Path(name))
        assert files_in(Path(name)) == {}


def test_fetch_does_not_overwrite_existing_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "mine").write_text("precious")
    before = files_in(tmp_path)
    with pytest.raises(FflmError, match="already exists"):
        fetch(entry(TEXT, server.url("/good")), tmp_path)
    assert files_in(tmp_path) == before


def test_fetch_into_path_that_is_a_file_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FflmError, match=r"cannot write .*sample"):
        fetch(entry(TEXT, server.url("/good")), tmp_path / "file")
    assert files_in(tmp_path) == {"file": b"precious"}


def test_full_disk_leaves_no_files(server: Server, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(TEXT) // 2, hard))  # writing more fails as on a full disk
    try:
        with pytest.raises(FflmError, match=r"cannot write .*sample"):
            fetch(entry(TEXT, server.url("/good")), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(tmp_path) == {}


def test_fetch_after_killed_download_succeeds(server: Server, tmp_path: Path) -> None:
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
    assert files_in(tmp_path) == {"sample": None, "sample/text.txt": TEXT}


def test_corpus_list_and_get_commands(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    (corpora / "own.txt").write_text("a text of our own\n")
    (corpora / "catalogue.toml").write_text(
        f"""
        [own]
        title = "Our own"
        license = "MIT"
        split = "none"
        train = "fflm train {{folder}}/own.txt"
        bundled = "own.txt"
        [far]
        title = "From afar"
        license = "CC0"
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
