"""Download of a file whose size and checksum are known, from a server that is not trusted."""

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

# With the encoding `identity`, the bytes that are transferred are those of the file.
_HEADERS = {"User-Agent": "fflm", "Accept-Encoding": "identity"}
_REDIRECTS = 5
_CHUNK = 1 << 16  # number of bytes read at a time
_SILENCE = 20.0  # seconds that a server may take to accept a connection, or to send something
_GRACE = 20.0  # seconds after which the average speed of a transfer is checked
_SLOWEST = 10_000  # bytes per second, the slowest average speed


def download(url: str, path: Path, size: int, sha256: str, progress: Callable[[int], object]) -> None:
    """Download a file, and check that it is the expected one.

    Parameters
    ----------
    url
        The address of the file. An ``https`` address may be redirected to ``https`` only.
    path
        The file to write; an existing file is replaced. After an error the file is incomplete or wrong.
    size
        The number of bytes of the file. No more than that are accepted.
    sha256
        The checksum of the file, 64 hexadecimal digits.
    progress
        Called with the number of bytes received so far.

    Raises
    ------
    FflmError
        If the server cannot be reached, sends anything but this file, or takes longer than ``20 + size / 10,000`` seconds.
        The message quotes nothing that the server has sent, except the address of a redirect, escaped and shortened.
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
            with _network_errors_as_fflm_error(host, watch, f"broke off the transfer after {watch.received:,} of {size:,} bytes"):
                # Read the bytes that have arrived, at most a chunk, without decompression. Unlike `read`, `read1` stays
                # bounded whatever lengths a chunked transfer claims.
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
    """Send the request, follow redirects, and return a response whose body has still to be read.

    Requests can follow redirects itself, but it reads the body of each, whatever its length.
    """
    import requests

    who = host = urlsplit(url).netloc
    session = stack.enter_context(requests.Session())
    for _ in range(_REDIRECTS + 1):
        with _network_errors_as_fflm_error(who, watch, "gave no valid HTTP answer"):
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
    """Return a status code with its standard phrase, not with the phrase that the server sent."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


@contextlib.contextmanager
def _network_errors_as_fflm_error(who: str, watch: "_Watch", otherwise: str) -> Iterator[None]:
    """Raise an FflmError instead of any error of the network, or of the libraries when they parse an invalid response.

    Parameters
    ----------
    who
        The name of the server, the subject of the message.
    watch
        The watch of the transfer.
    otherwise
        The predicate of the message if the error is of no known kind.
    """
    from requests import exceptions
    from urllib3.exceptions import MaxRetryError, ReadTimeoutError

    try:
        yield
    except FflmError:
        raise
    # Depending on how a response is invalid, the libraries raise ValueError, UnicodeError and others.
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

    Timeouts do not suffice, because they bound only the time until the next bytes arrive, and a server can send single bytes,
    even of the headers.

    Attributes
    ----------
    received
        The number of bytes of the file received so far.
    too_slow
        Whether the connections were ended because the transfer was too slow.
    """

    def __init__(self) -> None:
        self.received = 0
        self.too_slow = False
        self._started = time.monotonic()
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
        self._sockets.append(connection.dup())  # a duplicate, because TLS takes over the original

    @property
    def seconds(self) -> float:
        """The duration of the transfer so far."""
        return time.monotonic() - self._started

    def _run(self) -> None:
        """Check the speed every second until the transfer is over."""
        while not self._over.wait(min(1.0, _GRACE)):
            if self.seconds > _GRACE + self.received / _SLOWEST:
                self.too_slow = True
                for each in self._sockets:
                    with contextlib.suppress(OSError):  # it has ended by itself
                        each.shutdown(socket.SHUT_RDWR)


def _adapter(watch: _Watch) -> "requests.adapters.HTTPAdapter":
    """Return an adapter that makes the connections of a session, and has them watched from the first byte on."""
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
