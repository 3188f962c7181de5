"""Worker processes that share the work on a sequence of pieces, whose results come in the order of the pieces.

A worker takes seconds to start, because it imports fflm and may load a model. Therefore this process works alone at first, and
continues to work while workers start. On Linux, one worker prepares itself, and the others are forked from it when it is ready:
they start at once and share its memory, so that a model is in memory once for all of them. Elsewhere each prepares itself.

Each worker has a connection to this process. A piece is sent only to a worker that waits for one, so that no two processes ever
wait for each other. A worker that waits notices when this process ends, even if it is killed.
"""

import contextlib
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fflm.errors import FflmError
from fflm.files import os_errors_as_fflm_error

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SERIAL_SECONDS = 2.0
"""Processor time that this process works before it starts workers."""

PATIENCE = 0.0
"""Seconds for which this process waits for a worker, while workers start, before it does another piece itself."""

_AHEAD = 4  # number of pieces per worker that are sent before the result of the first of them is used

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def map_in_order(
    work: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    processes: int,
    prepare: Callable[..., Callable[[Piece], Result]],
    arguments: tuple[Any, ...] = (),
) -> Generator[Result, None, None]:
    """Yield the results of some work on each piece, in the order of the pieces.

    Parameters
    ----------
    work
        The function that does the work in this process, until a worker is ready.
    pieces
        The pieces, which are read at most a few per worker ahead, because pieces that wait take memory.
    processes
        Number of workers. With more than one, they are started if the work takes more than a few seconds. They are spawned, and
        end when this process does. In a script that Python reads from standard input, this process does all the work.
    prepare, arguments
        A function that prepares a worker and returns the function that does the work there, and its arguments.

    Raises
    ------
    FflmError
        If a worker cannot start or was killed, or if one of the functions raises it.
    """
    pieces = iter(pieces)
    started = time.process_time()
    with contextlib.ExitStack() as stack:
        workers: _Workers[Piece, Result] | None = None
        for piece in pieces:
            yield work(piece)
            if workers is None and processes > 1 and time.process_time() - started > SERIAL_SECONDS and _can_start():
                workers = _Workers(processes, prepare, arguments)
                stack.callback(workers.end)
            if workers and workers.wait(PATIENCE):
                yield from workers.map(pieces)


def _can_start() -> bool:
    """Return whether workers can be started. They import the main module, which a script on standard input is not."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    return path is None or getattr(main, "__spec__", None) is not None or Path(path).exists()


class _Workers(Generic[Piece, Result]):
    """Workers, which are started.

    Parameters
    ----------
    count, prepare, arguments
        As `map_in_order` takes them.
    """

    def __init__(self, count: int, prepare: Callable[..., Callable[[Piece], Result]], arguments: tuple[Any, ...]) -> None:
        from multiprocessing import get_context

        context = get_context("spawn")
        pairs = [context.Pipe() for _ in range(count)]
        self._connections = [ours for ours, _ in pairs]
        self._ready = False  # whether one has said that it is ready
        ends = [theirs for _, theirs in pairs]
        groups = [ends] if sys.platform == "linux" else [[end] for end in ends]
        self._processes = [context.Process(target=_serve, args=(group, prepare, arguments), daemon=True) for group in groups]
        try:
            with os_errors_as_fflm_error("start a worker process"):
                for process in self._processes:
                    process.start()
        except BaseException:
            self.end()
            raise
        finally:
            for end in ends:
                end.close()

    def wait(self, seconds: float) -> bool:
        """Wait until a worker is ready; return whether one is."""
        self._ready = self._ready or bool(_wait(self._connections, seconds))
        return self._ready

    def map(self, pieces: Iterator[Piece]) -> Iterator[Result]:
        """Yield the results of pieces, in their order."""
        most = _AHEAD * len(self._connections)
        idle: list[Connection] = []
        busy: dict[Connection, int | None] = dict.fromkeys(self._connections)  # the number of its piece, None while it starts
        results: dict[int, Result] = {}
        sent = yielded = 0
        exhausted = False
        while not exhausted or sent > yielded:
            for connection in _wait(busy) if busy else ():
                number = busy.pop(connection)
                result = _receive(connection, number is None)
                idle.append(connection)
                if number is not None:
                    results[number] = result
            room = min(len(idle), most - (sent - yielded))
            for piece in itertools.islice(pieces, room):
                connection = idle.pop()
                with _worker_errors():
                    connection.send(piece)
                busy[connection] = sent
                sent += 1
                room -= 1
            exhausted = exhausted or room > 0
            while yielded in results:
                yield results.pop(yielded)
                yielded += 1

    def end(self) -> None:
        """End the workers; one that is working ends after its piece."""
        ready = self.wait(0)  # a worker that is not ready does not notice that its connection is closed
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            if process.pid:
                if not ready:
                    process.terminate()
                process.join()


def _wait(connections: "Iterable[Connection]", seconds: float | None = None) -> "list[Connection]":
    """Wait until workers have sent something, and return their connections."""
    from multiprocessing.connection import wait

    ready: list[Any] = wait(connections, seconds)
    return ready


def _receive(connection: "Connection", starts: bool) -> Any:
    """Return what a worker has sent, or raise the error that it has sent."""
    with _worker_errors(", and call fflm under `if __name__ == '__main__':` in a script" if starts else ""):
        done, value = connection.recv()
    if not done:
        raise value
    return value


@contextlib.contextmanager
def _worker_errors(hint: str = "") -> Iterator[None]:
    """Raise the error of a connection whose worker has ended as an FflmError."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise FflmError(f"a worker process was killed: free some memory or use fewer processes{hint}") from error


def _serve(connections: "list[Connection]", prepare: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    """Do the work of a worker for each connection, until the parent closes it or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and ends the workers
    done, value = _attempt(_start, connections, prepare, arguments)
    if not done:
        connections[0].send((False, value))
        return
    work, own, forked = value
    with contextlib.suppress(EOFError, OSError):
        own.send((True, None))
        while True:
            own.send(_attempt(work, own.recv()))
    for process in forked:
        os.waitpid(process, 0)
    os._exit(0)  # a forked process must not continue in the code that started its parent


def _start(connections: "list[Connection]", prepare: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> Any:
    """Prepare a worker, and fork it into one for each connection.

    Returns
    -------
    tuple
        The function that does the work, the connection of the calling process, and the processes that were forked from it.
    """
    work = prepare(*arguments)
    forked: list[int] = []
    for connection in connections[1:]:
        with os_errors_as_fflm_error("start a worker process"):
            process = os.fork()
        if not process:
            for other in connections:
                if other is not connection:
                    other.close()
            return work, connection, []
        forked.append(process)
        connection.close()
    return work, connections[0], forked


def _attempt(function: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    """Return whether a function succeeds, and its result or its error."""
    try:
        return True, function(*arguments)
    except Exception as error:
        if not isinstance(error, FflmError):
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return False, error
