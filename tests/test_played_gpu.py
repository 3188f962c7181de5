"""The GPU that is played waits and fails as a GPU does; on it our memory is used again when it may be, and no sooner."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from numba import cuda, uint32
from numba.cuda.cudadrv.driver import driver
from played_gpu import PlayedGpu, play
from ptx import PtxError

from fflm.backend import cuda_memory
from fflm.backend.cuda import BLOCK
from fflm.backend.cuda_memory import PinnedCopies, PooledMemory, size_class

GPU = play()


@cuda.jit
def add_one(values, beyond):
    i = uint32(cuda.grid(1))
    if i < uint32(values.size) + beyond:
        values[i] += uint32(1)


def counted(values, beyond=0):
    """Add one to numbers of the GPU, and perhaps to some beyond their end."""
    add_one[1, BLOCK](values, np.uint32(beyond))


def on_gpu(numbers):
    """Return numbers there, of an array that does not fill its memory."""
    array = cuda.device_array(len(numbers), np.uint32)
    array.copy_to_device(np.array(numbers, np.uint32))
    return array


# The GPU


def test_launches_wait_until_the_host_does():
    array = on_gpu([1, 2, 3])
    address = array.device_ctypes_pointer.value
    counted(array)
    assert GPU.memory.read(address, 4).view(np.uint32) == 1
    assert array.copy_to_host().tolist() == [2, 3, 4]
    counted(array)
    cuda.synchronize()
    assert GPU.memory.read(address, 4).view(np.uint32) == 3


def test_a_copy_from_pinned_memory_takes_what_is_there_later():
    array, pinned = cuda.device_array(3, np.uint32), cuda.pinned_array(3, np.uint32)
    pinned[:] = 1
    array.copy_to_device(pinned, stream=cuda.legacy_default_stream())
    pinned[:] = 5
    assert array.copy_to_host().tolist() == [5, 5, 5]


def test_asynchronous_copies_are_from_pinned_memory():
    with pytest.raises(KeyError):
        cuda.device_array(3, np.uint32).copy_to_device(np.ones(3, np.uint32), stream=cuda.legacy_default_stream())


def test_memory_ends_where_its_array_does():
    array = on_gpu([1, 2, 3])
    counted(array, beyond=1)
    with pytest.raises(PtxError, match="out of bounds"):
        cuda.synchronize()
    cuda.synchronize()  # no more than that was promised
    assert on_gpu([4]).copy_to_host().tolist() == [4]


def test_memory_that_is_handed_out_again_holds_nothing():
    first = cuda.device_array(1000, np.float32)
    address = first.device_ctypes_pointer.value
    first.copy_to_device(np.ones(1000, np.float32))
    del first
    gc.collect()
    again = cuda.device_array(999, np.float32)
    assert again.device_ctypes_pointer.value == address
    assert np.isnan(again.copy_to_host()).all()


def test_memory_is_used_again_after_what_was_asked_of_it_before():
    first = on_gpu(range(700))
    address = first.device_ctypes_pointer.value
    total = on_gpu([0] * 700)
    counted(first)
    copy_all[3, BLOCK](first, total)
    del first
    gc.collect()
    second = cuda.device_array(700, np.uint32)
    assert second.device_ctypes_pointer.value == address
    counted(second)
    assert total.copy_to_host().tolist() == [*range(1, BLOCK + 1), *range(BLOCK, 700)]


@cuda.jit
def copy_all(values, copied):
    i = uint32(cuda.grid(1))
    if i < uint32(values.size):
        copied[i] = values[i]


# Our memory


@pytest.fixture
def memory(monkeypatch):
    """Return a memory manager and its GPU."""
    gpu, manager = PlayedGpu(capacity=10_000), PooledMemory(context=SimpleNamespace())
    manager.context = Context()
    manager.context.memory = manager
    for name, function in gpu.functions.items():
        monkeypatch.setitem(vars(driver), name, function)
    return manager, gpu


class Context:
    """Something that can be referred to weakly."""


def test_freed_memory_is_used_again(memory):
    manager, gpu = memory
    first, second = manager.memalloc(1000), manager.memalloc(1000)
    address = first.device_pointer_value
    assert address != second.device_pointer_value
    part = first.view(256, 512)
    del first
    assert manager.memalloc(1010).device_pointer_value != address  # a slice of it lives
    assert part.device_pointer_value == address + 256
    del part
    assert manager.memalloc(990).device_pointer_value == address
    assert len(gpu.held) == 3


def test_the_pool_is_given_back_before_memory_runs_out(memory):
    manager, gpu = memory
    for size in (3000, 4000):
        manager.memalloc(size)
    large = manager.memalloc(9000)
    assert list(gpu.held.values()) == [size_class(9000)]
    with pytest.raises(MemoryError, match=r"of the GPU's 0\.0 GB .* use a smaller network"):
        manager.memalloc(5000)
    del large
    manager.memalloc(9000)
    assert list(gpu.held.values()) == [size_class(9000)]


@pytest.mark.parametrize(("size", "taken"), [(1, 256), (256, 256), (257, 512), (4096, 4096), (4097, 4608), (10**9, 1006632960)])
def test_size_classes(size, taken):
    assert size_class(size) == taken


@pytest.fixture
def copies(monkeypatch):
    """Return copies by pinned memory, the arrays of it, and how often the host has waited."""
    pinned, waited, pinned_array = [], [], cuda.pinned_array

    def counted_array(*arguments):
        pinned.append(pinned_array(*arguments))
        return pinned[-1]

    monkeypatch.setattr(cuda_memory.cuda, "pinned_array", counted_array)
    monkeypatch.setitem(vars(driver), "cuCtxSynchronize", lambda: (waited.append(None), GPU.wait()))
    return PinnedCopies(), pinned, waited


def sent(copies, number, size=100):
    """Send an array of a number, which changes at once; return where it went."""
    array = np.full((size, 2), number, np.int32)
    target = cuda.device_array(array.shape, array.dtype)
    copies.send(array, target)
    array[...] = -1
    return target


def numbers(targets):
    """Return what has arrived."""
    found = [target.copy_to_host() for target in targets]
    assert all((each == each[0, 0]).all() for each in found)
    return [int(each[0, 0]) for each in found]


def test_what_was_sent_stays_until_it_has_arrived(copies):
    copies, pinned, waited = copies
    targets = [sent(copies, number) for number in range(5)]
    assert numbers(targets) == [0, 1, 2, 3, 4]
    assert len(pinned) == 5
    copies.done()
    again = [sent(copies, number) for number in range(5, 8)]
    assert numbers(targets + again) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert len(pinned) == 5
    assert not waited


def test_pinned_memory_has_a_limit(copies, monkeypatch):
    copies, pinned, waited = copies
    monkeypatch.setattr(cuda_memory, "PINNED", 4096)
    targets = [sent(copies, number) for number in range(4)]  # taking 1,024 bytes
    assert not waited
    targets.append(sent(copies, 4))
    assert len(waited) == 1
    assert len(pinned) == 4
    targets.append(sent(copies, 5, size=1000))  # from where it is
    assert len(pinned) == 4
    assert numbers(targets) == [0, 1, 2, 3, 4, 5]
