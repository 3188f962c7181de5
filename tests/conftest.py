"""What every test runs under, and the fixtures of the numerical tests."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import devices
import numpy as np
import pytest
from command import STORIES
from hypothesis import settings

import fflm.backend

# Read by Numba when it is first imported. Two threads can be tested on one core.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

settings.register_profile("fflm", deadline=None)
settings.load_profile("fflm")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the numerical tests run on another device: ``pytest --device ptx tests/test_backend.py tests/test_network.py``."""
    parser.addoption("--device", choices=("cpu", "ptx", "cuda"), default="cpu", help="ptx: the CUDA kernels, without a GPU")
    parser.addoption("--precision", choices=("fp32", "mixed"), default="fp32", help="mixed: as a GPU may train")


def pytest_configure(config: pytest.Config) -> None:
    """Give each state of the kernels' sources a cache of its own.

    Numba compiles a kernel anew when the file changes that holds it, but not when another does from which it calls a function.
    """
    devices.device, devices.mixed = config.getoption("device"), config.getoption("precision") == "mixed"
    if devices.mixed and devices.device == "cpu":
        raise pytest.UsageError("--precision mixed needs --device ptx or cuda")
    sources = sorted(Path(fflm.backend.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    os.environ.setdefault("NUMBA_CACHE_DIR", str(config.cache.mkdir(f"numba-{digest}")))


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder with a text to train on."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(STORIES, encoding="utf-8")
    return Path("text.txt")


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    if devices.device != "cpu" and request.param == "float64":
        pytest.skip("a GPU computes in single precision")
    return np.dtype(request.param)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Run the test with so many threads, however small its arrays."""
    import numba

    from fflm.backend import cpu

    monkeypatch.setattr(cpu, "WORTH_WAKING", 0)
    if devices.device != "cpu" and request.param > 1:
        pytest.skip("only the CPU's threads can be counted")
    before = numba.get_num_threads()
    numba.set_num_threads(request.param)
    yield request.param
    numba.set_num_threads(before)
