"""Worker processes that do the pieces of some work, whose results come in the order of the pieces."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fflm.errors import FflmError

if TYPE_CHECKING:
    from concurrent.futures import Future

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def map_in_order(
    work: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    processes: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yield the results of a function for each piece, in the order of the pieces.

    Parameters
    ----------
    work
        The function, which is called in worker processes.
    pieces
        The pieces, which are read at most a few per process ahead, because pieces that wait take memory.
    processes
        Number of worker processes. They are spawned, and end when this process does.
    start, arguments
        A function that prepares a worker process, and its arguments.

    Raises
    ------
    FflmError
        If a worker process was killed, or if the function raises it.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, get_context("spawn"), _start, (start, arguments)) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                pending.append(pool.submit(work, piece))
                if len(pending) > 4 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise FflmError("a worker process was killed: free some memory or use fewer processes") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and ends the workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    start(*arguments)


def _exit_with_parent() -> None:
    """Exit when the parent process has ended; a parent that is killed cannot end its workers itself."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
