"""No access to shared memory in products on tensor cores has bank conflicts; the addresses are those that the kernels compute."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from fflm.backend.cuda import fragments, mixed, tf32
from fflm.backend.cuda.products import ROWS


class Addresses:
    """Shared memory whose elements are their own indices."""

    def __getitem__(self, index):
        return int(index)


@pytest.fixture
def on_host(monkeypatch):
    """Let Python call the device functions of the modules; those that load fragments return indices."""
    for module in (fragments, mixed, tf32):
        for name, value in list(vars(module).items()):
            if hasattr(value, "py_func"):
                monkeypatch.setattr(module, name, value.py_func)
    monkeypatch.setattr(fragments, "fragments", lambda shared, index: (int(index),))
    monkeypatch.setattr(mixed, "transposed_fragments", lambda shared, index: (int(index),))


def conflicts(indices, words):
    """Return the largest number of accesses to the same bank at once: 32 banks of a word, ``words`` of them for each thread."""
    together = 32 // words
    groups = np.reshape(indices, (-1, together)) // words
    return max(np.bincount(group % together).max() for group in groups)


@pytest.mark.parametrize("along", [True, False], ids=["along", "across"])
@pytest.mark.parametrize("precision", ["mixed", "tf32"])
@pytest.mark.usefixtures("on_host")
def test_accesses_to_shared_memory_have_no_bank_conflicts(precision, along):
    """Eight threads at a time write 16 bytes each, or read them for fragments; or 32 threads read four bytes each."""
    module, width = (mixed, mixed.WIDTH) if precision == "mixed" else (tf32, 4)
    own = fragments if along else module
    place = fragments.place_along if along else module.place_across
    pieces = fragments.PIECES if along else ROWS // width
    written = [place(np.uint32(number // pieces), np.uint32(number % pieces)) for number in range(fragments.OPERAND // 4)]
    assert sorted(written) == list(range(0, fragments.OPERAND, 4))
    assert conflicts(written, 4) == 1
    loaders = (own.load_along,) * 2 if along else (mixed.load_across,) * 2 if own is mixed else (tf32.load_left, tf32.load_right)
    words = 4 if along or own is mixed else 1  # TF32 has no instruction that loads transposed fragments
    for locate, load in zip((own.locate_left, own.locate_right), loaders, strict=True):
        for warp in range(fragments.THREADS // 32):
            places = [np.uint64(locate(np.uint32(32 * warp + lane))) for lane in range(32)]
            for half in range(2):
                for i in range(4):
                    for indices in zip(*(load(Addresses(), place, half, i) for place in places), strict=True):
                        assert conflicts(indices, words) == 1
                        assert max(indices) < fragments.OPERAND


def test_conflicts_are_counted():
    lanes = np.arange(32)
    assert [conflicts(lanes * step, 1) for step in (1, 2, 3, 32)] == [1, 2, 1, 32]
    assert [conflicts(lanes * step, 4) for step in (4, 16, 20, 36)] == [1, 4, 1, 1]
