"""Options and settings of all tests, and fixtures that many tests share."""

import gc
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import devices
import numpy as np
import pytest
from command import STORIES
from hypothesis import settings
from libcuda import load_driver
from threadpoolctl import ThreadpoolController

from fflm.processors import usable_processors

# Numba reads this variable when it is imported. Two threads can be tested on one core.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, usable_processors())))

# NumPy uses one thread, because the matrices of the reference are so small that more threads only slow other processes down. The
# BLAS of SciPy, which kernels call, keeps its threads.
for library in ThreadpoolController().lib_controllers:
    if "numpy" in library.filepath:
        library.set_num_threads(1)

settings.register_profile("fflm", deadline=None)
settings.load_profile("fflm")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options that choose the device of numerical tests: ``pytest --device ptx tests/network/test_feedforward.py``."""
    parser.addoption("--device", choices=("cpu", "ptx", "cuda"), default="cpu", help="ptx: the CUDA kernels, without a GPU")
    parser.addoption("--precision", choices=("fp32", "mixed"), default="fp32", help="mixed: as a GPU may train")


def pytest_configure(config: pytest.Config) -> None:
    """Set the device, and cache compiled kernels in the cache folder of pytest, or where fflm does if pytest has none."""
    devices.device, devices.mixed = config.getoption("device"), config.getoption("precision") == "mixed"
    if devices.mixed and devices.device == "cpu":
        raise pytest.UsageError("--precision mixed needs --device ptx or cuda")
    if hasattr(config, "cache"):  # it is missing with `-p no:cacheprovider`
        os.environ.setdefault("NUMBA_CACHE_DIR", str(config.cache.mkdir("numba")))
    if devices.device != "cuda" and find_spec("numba_cuda") and which("cc"):
        load_driver()  # before numba.cuda is imported, which would load a real driver
    # Ctrl-C is ignored in background jobs of a shell, SIGHUP under `nohup`; all commands that tests start would inherit that.
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    if os.environ.get("NUMBA_BOUNDSCHECK") == "1":  # use one thread, because exceptions cannot leave others
        from fflm.backend.cpu import launching

        launching._threads_unusable = True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with two threads in single precision as slow, because how threads share work does not depend on the dtype."""
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if (values.get("dtype"), values.get("threads")) == ("float32", 2):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Let garbage collection ignore the imported modules and the collected tests, which it would search again and again."""
    gc.freeze()


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder with a text to train on, and return the path of the text."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(STORIES, encoding="utf-8")
    return Path("text.txt")


@pytest.fixture
def new_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a new pool of memory on the fake GPU, and free nothing that earlier tests have left while a test runs."""
    devices.fake_driver()
    from fake_cuda import TrackedPool
    from numba import cuda

    monkeypatch.setattr("fflm.backend.cuda.memory.POOL", TrackedPool())
    with cuda.defer_cleanup():
        yield


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    if devices.device != "cpu" and request.param == "float64":
        pytest.skip("a GPU computes in single precision")
    return np.dtype(request.param)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Divide the work of CPU kernels into this number of shares, even for small arrays."""
    from fflm.backend.cpu import backend as cpu_backend

    if devices.device != "cpu" and request.param > 1:
        pytest.skip("only the CPU's threads can be counted")
    monkeypatch.setattr(cpu_backend, "shares_of", lambda work, threads=None: request.param)
    return request.param
