"""Download a file whose size and checksum are known, from a server that is not trusted."""

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from fflm.errors import FflmError

if TYPE_CHECKING:
    import requests

# `identity`, because the bytes on the wire are then those of the file.
_HEADERS = {"User-Agent": "fflm", "Accept-Encoding": "identity"}
_REDIRECTS = 5
_CHUNK = 1 << 16  # bytes
_SILENCE = 20.0  # seconds that a server may take to accept a connection, or to send something
_GRACE = 20.0  # seconds after which a transfer must have been as fast as
_SLOWEST = 10_000  # bytes a second, on average


def download(url: str, path: Path, size: int, sha256: str, progress: Callable[[int], object]) -> None:
    """Download a file, and accept it only if it is the one that is expected.

    Parameters
    ----------
    url
        Its address. From ``https`` no redirect leads to anything else.
    path
        Where to put it; an existing file is replaced. After an error the file is incomplete or wrong.
    size
        Its bytes. No more are ever received.
    sha256
        Its checksum, 64 hexadecimal digits.
    progress
        Called with the number of bytes received so far.

    Raises
    ------
    FflmError
        If the server cannot be reached, sends anything else than this file, or takes longer than ``20 + size / 10,000`` seconds.
        The line quotes nothing that the server has sent, except for the address of a redirect, escaped and shortened.
    OSError
        If the file cannot be written.
    """
    host = urlsplit(url).netloc
    digest = hashlib.sha256()
    with path.open("wb") as file, _Watch() as watch, contextlib.ExitStack() as stack:
        response = _open(url, watch, stack)
        announced = response.headers.get("Content-Length")
        if announced is not None and announced != str(size):
            raise FflmError(f"{host} announces another file, not one of {size:,} bytes")
        while True:
            with _clear_errors(host, watch, f"broke off the transfer after {watch.received:,} of {size:,} bytes"):
                # What has arrived, at most a chunk; it is not decompressed. Unlike `read`, `read1` stays bounded whatever
                # lengths a chunked transfer claims.
                data = response.raw.read1(_CHUNK, decode_content=False)
                if not data and watch.received < size:
                    raise EOFError
            if not data:
                break
            watch.received += len(data)
            if watch.received > size:
                raise FflmError(f"{host} sends another file, of more than {size:,} bytes")
            digest.update(data)
            file.write(data)
            progress(watch.received)
    if digest.hexdigest() != sha256:
        raise FflmError(f"{host} sent a file with the wrong checksum, sha256 {digest.hexdigest()}")


def _open(url: str, watch: "_Watch", stack: contextlib.ExitStack) -> "requests.Response":
    """Send the request, follow redirects, and return an answer whose body has still to be read.

    The library would follow them, too, but it reads the body of each redirect, whatever its length.
    """
    import requests

    who = host = urlsplit(url).netloc
    session = stack.enter_context(requests.Session())
    for _ in range(_REDIRECTS + 1):
        with _clear_errors(who, watch, "gave no valid HTTP answer"):
            adapter = stack.enter_context(contextlib.closing(_adapter(watch)))
            request = requests.Request("GET", url, _HEADERS).prepare()
            settings = session.merge_environment_settings(url, {}, stream=True, verify=None, cert=None)
            response = stack.enter_context(contextlib.closing(adapter.send(request, timeout=_SILENCE, **settings)))
            target = session.get_redirect_target(response)
            if target is None:
                if response.status_code != HTTPStatus.OK:
                    raise FflmError(f"{who} answered: {_status(response.status_code)}")
                return response
            secure = urlsplit(url).scheme == "https"
            url = urljoin(url, requests.utils.requote_uri(target))
            if urlsplit(url).scheme not in ({"https"} if secure else {"http", "https"}):
                raise FflmError(f"{who} redirects to an address that is not {'https' if secure else 'http'}: {url[:80]!a}")
            who = f"{urlsplit(url).netloc[:80]!a}, to which {host} redirects,"
    raise FflmError(f"{host} redirects more than {_REDIRECTS} times")


def _status(code: int) -> str:
    """Return a status with its standard phrase, not with the one that the server sent."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


@contextlib.contextmanager
def _clear_errors(who: str, watch: "_Watch", otherwise: str) -> Iterator[None]:
    """Turn whatever goes wrong with the network, or in the libraries when they read odd answers, into one line."""
    from requests import exceptions
    from urllib3.exceptions import MaxRetryError, ReadTimeoutError

    try:
        yield
    except FflmError:
        raise
    # The libraries let through ValueError, UnicodeError and more, depending on what is wrong with an answer.
    except Exception as error:
        if watch.too_slow:
            problem = f"{who} is too slow: {watch.received:,} bytes in {watch.seconds:.0f} s"
        elif isinstance(error, exceptions.Timeout | ReadTimeoutError):
            problem = f"{who} did not answer within {_SILENCE:.0f} s"
        elif isinstance(error, exceptions.SSLError):
            problem = f"{who} gave no valid certificate, perhaps because a proxy or a portal answered in its place"
        elif isinstance(error, exceptions.ConnectionError) and isinstance(error.args[0], MaxRetryError):
            problem = f"{who} cannot be reached"
        else:
            problem = f"{who} {otherwise}"
        raise FflmError(problem) from error


class _Watch:
    """Watches a transfer in a thread, and ends its connections when it is too slow.

    Timeouts do not suffice: they bound the time until something arrives, and a server can send a byte at a time, also of the
    headers.

    Attributes
    ----------
    received
        Bytes of the file so far.
    too_slow
        Whether the connections were ended.
    """

    def __init__(self) -> None:
        self.received = 0
        self.too_slow = False
        self._began = time.monotonic()
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for each in self._sockets:
            each.close()

    def add(self, connection: socket.socket) -> None:
        """Watch a connection."""
        self._sockets.append(connection.dup())  # TLS takes the original over

    @property
    def seconds(self) -> float:
        """How long the transfer has taken so far."""
        return time.monotonic() - self._began

    def _run(self) -> None:
        while not self._over.wait(min(1.0, _GRACE)):
            if self.seconds > _GRACE + self.received / _SLOWEST:
                self.too_slow = True
                for each in self._sockets:
                    with contextlib.suppress(OSError):  # it has ended by itself
                        each.shutdown(socket.SHUT_RDWR)


def _adapter(watch: _Watch) -> "requests.adapters.HTTPAdapter":
    """Return what makes the connections of a session, so that they are watched from the first byte on."""
    import requests

    class Adapter(requests.adapters.HTTPAdapter):
        def get_connection_with_tls_context(self, *arguments: Any, **settings: Any) -> Any:
            pool = super().get_connection_with_tls_context(*arguments, **settings)

            class Connection(pool.ConnectionCls):  # type: ignore[misc, name-defined]
                def _new_conn(self) -> socket.socket:
                    connection: socket.socket = super()._new_conn()
                    watch.add(connection)
                    return connection

            pool.ConnectionCls = Connection
            return pool

    return Adapter()
