"""Worker processes return results in order, share what one of them has prepared, and report how they end."""

import errno
import functools
import itertools
import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fflm import workers
from fflm.errors import FflmError
from fflm.workers import map_in_order

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="workers are only forked on Linux")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Start workers after the first piece, and wait for them."""
    monkeypatch.setattr(workers, "SERIAL_SECONDS", -1)
    monkeypatch.setattr(workers, "PATIENCE", 60)


def prepare(folder):
    Path(folder, str(os.getpid())).touch()
    return slowly


def prepare_without_forks():
    def fork():
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    os.fork = fork
    return abs


def slowly(piece):
    time.sleep(0.05 if piece % 3 == 1 else 0.01)
    return piece, os.getpid()


def test_results_come_in_order_from_workers_that_share_their_preparation(tmp_path):
    results = list(map_in_order(slowly, range(30), 3, prepare, (tmp_path,)))
    assert [piece for piece, _ in results] == list(range(30))
    assert results[0][1] == os.getpid()
    assert len({process for _, process in results[1:]} - {os.getpid()}) == 3
    assert len(list(tmp_path.iterdir())) == (1 if sys.platform == "linux" else 3)


@pytest.mark.parametrize("pieces", [30, 1000], ids=["all pieces", "the first pieces"])
def test_workers_end_when_the_results_do(tmp_path, pieces):
    """They end by themselves, and are not left running by the process that has forked them."""
    results = map_in_order(slowly, range(pieces), 3, prepare, (tmp_path,))
    found = {process for _, process in itertools.islice(results, 30)} - {os.getpid()}
    results.close()
    assert found
    for process in found:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


ON_STANDARD_INPUT = """
import operator
from fflm import workers
workers.SERIAL_SECONDS, workers.PATIENCE = -1, 60
print(list(workers.map_in_order(abs, range(-3, 0), 2, operator.attrgetter, ("real",))))
"""


def test_script_on_standard_input_works_alone():
    result = subprocess.run([sys.executable, "-"], input=ON_STANDARD_INPUT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[3, 2, 1]\n", "")


def test_pieces_are_read_a_few_ahead():
    read = itertools.count()
    pieces = (next(read) for _ in range(50))
    for result in map_in_order(operator.pos, pieces, 2, operator.attrgetter, ("real",)):
        assert int(repr(read)[6:-1]) <= result + 10
    assert result == 49


@pytest.mark.parametrize(
    ("prepare", "arguments", "error", "message"),
    [
        (functools.partial, (operator.truediv, 1), ZeroDivisionError, "division by zero"),
        (functools.partial, (os._exit,), FflmError, "a worker process was killed: free some memory or use fewer processes$"),
        (os._exit, (1,), FflmError, "or use fewer processes, and call fflm under `if __name__ == '__main__':` in a script"),
        pytest.param(prepare_without_forks, (), FflmError, "cannot start a worker process: no more processes", marks=LINUX),
        (int, ("seven",), ValueError, "invalid literal"),
    ],
)
def test_error_in_worker_is_raised(prepare, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        list(map_in_order(abs, [0] * 5, 2, prepare, arguments))
    assert error is FflmError or "in a worker process:\nTraceback" in caught.value.__notes__[0]


def test_pieces_end_before_workers_are_ready(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0)
    started = time.perf_counter()
    assert list(map_in_order(abs, [1, 2], 2, time.sleep, (1000,))) == [1, 2]
    assert time.perf_counter() - started < 100
