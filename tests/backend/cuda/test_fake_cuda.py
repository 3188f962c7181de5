"""The fake CUDA driver delays and fails as a real one does; arrays of the backend act like NumPy's and never share memory."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_uint32

import devices
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")
if devices.device == "cuda":
    pytest.skip("a real GPU is tested", allow_module_level=True)

from cuda.core import LaunchConfig, launch
from cuda.core._utils.cuda_utils import CUDAError
from libcuda import NON_BLOCKING, SHARED
from numba import cuda, uint32
from numba.cuda.cudadrv.driver import CudaAPIError, binding, driver

from fflm.backend.cuda import launching as cuda_launching
from fflm.backend.cuda import memory as cuda_memory
from fflm.backend.cuda.launching import BLOCK, kernel, launch_kernel, signature
from fflm.backend.cuda.memory import DeviceArray, PinnedCopies, Pool, size_class, use_gpu
from fflm.backend.devices import choose_device, describe_device
from fflm.errors import FflmError

GPU = devices.fake_driver()

pytestmark = pytest.mark.usefixtures("new_pool")


@kernel()
def add_one(values, beyond):
    i = uint32(cuda.grid(1))
    if i < uint32(values.size) + beyond:
        values[i] += uint32(1)


@kernel()
def copy_all(values, copied):
    i = uint32(cuda.grid(1))
    if i < uint32(values.size):
        copied[i] = values[i]


def increment(values, beyond=0):
    """Add one to the numbers of an array, and to ``beyond`` numbers after its end."""
    launch_kernel(add_one, (1,), (values, c_uint32(beyond)))


def loaded(kernel, *arguments):
    """Return a kernel that is compiled for arguments and loaded, as cuda.core launches it."""
    return kernel.compile(signature(arguments)).library.get_cufunc().kernel


def on_gpu(numbers):
    """Return an array on the GPU with these numbers; the memory allocated for it is larger."""
    array = DeviceArray((len(numbers),), np.uint32)
    PinnedCopies().send(np.array(numbers, np.uint32), array)
    driver.cuStreamSynchronize(use_gpu())
    return array


def new_stream(flags=NON_BLOCKING):
    """Return a stream of the driver."""
    return int(driver.cuStreamCreate(flags))


def later(address, number, stream):
    """Set the byte at an address to a number, in a stream."""
    driver.cuMemsetD8Async(address, number, 1, stream)


def byte(address):
    """Return the byte at an address, without waiting for anything."""
    return int(GPU.memory.read(address, 1)[0])


def download(array):
    """Return the numbers of an array."""
    return PinnedCopies().receive(array).tolist()


# The fake driver.


def test_launches_run_only_when_host_waits():
    array = on_gpu([1, 2, 3])
    increment(array)
    assert GPU.memory.read(array.address, 4).view(np.uint32) == 1
    assert download(array) == [2, 3, 4]
    increment(array)
    driver.cuCtxSynchronize()
    assert GPU.memory.read(array.address, 4).view(np.uint32) == 3


def test_asynchronous_copies_read_pinned_memory_only_when_host_waits():
    array, pinned = on_gpu([0, 0, 0]), cuda.pinned_array(3, np.uint32)
    pinned[:] = 1
    driver.cuMemcpyHtoDAsync(array.address, pinned.ctypes.data, array.nbytes, use_gpu())
    pinned[:] = 5
    assert download(array) == [5, 5, 5]


def test_asynchronous_copies_read_other_memory_at_once():
    array, numbers = on_gpu([0, 0, 0]), np.ones(3, np.uint32)
    driver.cuMemcpyHtoDAsync(array.address, numbers.ctypes.data, array.nbytes, use_gpu())
    numbers[:] = 5
    assert download(array) == [1, 1, 1]


def test_asynchronous_copies_to_pinned_memory_arrive_when_host_waits():
    array, pinned, numbers = on_gpu([1, 2, 3]), cuda.pinned_array(3, np.uint32), np.zeros(3, np.uint32)
    pinned[:] = 0
    driver.cuMemcpyDtoHAsync(pinned.ctypes.data, array.address, array.nbytes, use_gpu())
    driver.cuMemcpyDtoHAsync(numbers.ctypes.data, array.address, array.nbytes, new_stream())
    assert (pinned.tolist(), numbers.tolist()) == ([0, 0, 0], [1, 2, 3])
    driver.cuStreamSynchronize(use_gpu())
    assert pinned.tolist() == [1, 2, 3]


def test_streams_wait_for_each_other_only_through_events():
    address, (first, second) = on_gpu([0]).address, (new_stream() for _ in range(2))
    event = driver.cuEventCreate(0)
    later(address, 1, first)
    driver.cuEventRecord(event, first)
    later(address, 2, first)
    driver.cuStreamSynchronize(second)
    assert byte(address) == 0
    with pytest.raises(CudaAPIError, match="NOT_READY"):
        driver.cuEventQuery(event)
    driver.cuStreamWaitEvent(second, event, 0)
    driver.cuStreamSynchronize(second)
    assert byte(address) == 1
    driver.cuEventQuery(event)
    later(address + 1, 1, second)
    driver.cuStreamSynchronize(first)
    assert (byte(address), byte(address + 1)) == (2, 0)
    driver.cuCtxSynchronize()
    assert byte(address + 1) == 1


class FreedWithGarbage:
    """Pinned memory that is freed when garbage is collected, which waits for all work."""

    def __init__(self):
        self.pointer, self.itself = driver.cuMemHostAlloc(9, 0), self

    def __del__(self):
        driver.cuMemFreeHost(self.pointer)


def test_order_of_work_does_not_depend_on_garbage():
    address = on_gpu([0]).address

    def first():
        FreedWithGarbage()
        [[] for _ in range(10 * gc.get_threshold()[0])]  # garbage is collected after some new lists
        GPU.memory.write(address, np.ones(1, np.uint8))

    GPU.enqueue(first, use_gpu())
    later(address, 2, use_gpu())
    driver.cuStreamSynchronize(use_gpu())
    assert byte(address) == 2
    gc.collect()


def test_default_stream_waits_for_others_unless_they_are_non_blocking():
    address, blocking, other, host = on_gpu([0]).address, new_stream(flags=0), new_stream(), np.zeros(4, np.uint8)
    for place, stream in enumerate((0, blocking, other)):
        later(address + place, 1, stream)
    driver.cuMemcpyDtoH(host.ctypes.data, address, 4)  # in the default stream
    assert host.tolist() == [1, 1, 0, 0]
    later(address + 3, 1, 0)
    driver.cuStreamSynchronize(other)
    assert [byte(address + place) for place in range(4)] == [1, 1, 1, 0]
    later(address, 2, blocking)
    driver.cuStreamSynchronize(blocking)  # whose work comes after that of the default stream
    assert [byte(address + place) for place in range(4)] == [2, 1, 1, 1]


def test_write_beyond_end_of_array_is_detected(capsys):
    array = on_gpu([1, 2, 3])
    increment(array, beyond=1)
    with pytest.raises(CudaAPIError, match="ILLEGAL_ADDRESS"):
        driver.cuCtxSynchronize()
    assert "PtxError: out of bounds" in capsys.readouterr().err
    driver.cuCtxSynchronize()  # the error has discarded the pending work
    assert download(on_gpu([4])) == [4]


def test_other_libraries_share_memory_of_arrays():
    array = on_gpu([1, 2, 3, 4, 5, 6]).reshape(3, 2)[1:]
    shared = cuda.as_cuda_array(array)
    assert (shared.shape, shared.dtype, int(shared.device_ctypes_pointer.value)) == (array.shape, array.dtype, array.address)
    assert shared.copy_to_host().tolist() == [[3, 4], [5, 6]]
    assert cuda.as_cuda_array(DeviceArray((0, 2), np.float32)).shape == (0, 2)
    assert DeviceArray((0, 2), np.float32).__cuda_array_interface__["data"] == (0, False)


def test_reused_memory_is_filled_with_nan():
    first = on_gpu(range(1000))
    address = first.address
    del first
    again = DeviceArray((999,), np.float32)
    assert again.address == address
    assert np.isnan(download(again)).all()


def test_reused_memory_does_not_affect_pending_launches():
    first, total = on_gpu(range(700)), on_gpu([0] * 700)
    address = first.address
    increment(first)
    launch_kernel(copy_all, (3,), (first, total))
    gc.collect()  # when numba.cuda compiled the kernels, it left cycles that refer to their arguments
    del first
    second = DeviceArray((700,), np.uint32)
    assert second.address == address
    increment(second)
    assert download(total) == [*range(1, BLOCK + 1), *range(BLOCK, 700)]


def test_thread_without_context_is_refused():
    array = on_gpu([1])
    arguments = (
        cuda_launching._stream(use_gpu()),
        LaunchConfig(grid=1, block=1),
        loaded(add_one, array, c_uint32(0)),
        *array.words,
        c_uint32(0),
    )
    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(CudaAPIError, match="INVALID_CONTEXT"):
            thread.submit(driver.cuCtxSynchronize).result()
        with pytest.raises(CUDAError, match="error 201"):
            thread.submit(launch, *arguments).result()
    assert download(array) == [1]


RELAXED = binding.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
THREAD_LOCAL = binding.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
GLOBAL = binding.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL


def test_work_of_a_captured_stream_is_recorded_as_a_graph():
    array, stream, config = on_gpu([1, 2, 3]), new_stream(), LaunchConfig(grid=1, block=BLOCK)
    kernel, pinned = loaded(add_one, array, c_uint32(0)), cuda.pinned_array(3, np.uint32)
    driver.cuStreamBeginCapture(stream, THREAD_LOCAL)
    driver.cuMemcpyHtoDAsync(array.address, pinned.ctypes.data, array.nbytes, stream)
    for _ in range(2):
        launch(cuda_launching._stream(stream), config, kernel, *array.words, c_uint32(0))
    driver.cuMemsetD8Async(array.address + 8, 9, 1, stream)
    graph = driver.cuStreamEndCapture(stream)
    run = driver.cuGraphInstantiate(graph, 0)
    driver.cuGraphDestroy(graph)
    driver.cuCtxSynchronize()
    assert download(array) == [1, 2, 3]
    for number in (10, 20):
        pinned[:] = number
        driver.cuGraphLaunch(run, use_gpu())
        assert download(array) == [number + 2, number + 2, 9]


def free_and_allocate():
    """Allocate memory on the GPU, and give it back."""
    driver.cuMemFree(driver.cuMemAlloc(256))


UNSAFE = {
    "allocation": free_and_allocate,
    "pinned memory": lambda: driver.cuMemFreeHost(driver.cuMemHostAlloc(9, 0)),
    "copy": lambda: driver.cuMemcpyHtoD(on_gpu([1]).address, np.zeros(4, np.uint8).ctypes.data, 4),
    "module": lambda: driver.cuLibraryLoadData(b".visible .entry f()\n{\nret;\n}", [], [], 0, [], [], 0),
}
"""Calls that may wait for the GPU."""


@pytest.fixture
def captured():
    """Return a function that begins to capture a new stream, and returns it; all captures end with the test."""
    streams = []

    def begin(mode, flags=NON_BLOCKING):
        streams.append(new_stream(flags))
        driver.cuStreamBeginCapture(streams[-1], mode)
        return streams[-1]

    yield begin
    for stream in streams:
        GPU._streams[stream].capture = None


def assert_invalid(stream):
    """Check that the capture of a stream is invalid, and end it."""
    with pytest.raises(CudaAPIError, match="CAPTURE_INVALIDATED"):
        later(0, 0, stream)
    with pytest.raises(CudaAPIError, match="CAPTURE_INVALIDATED"):
        driver.cuStreamEndCapture(stream)


@pytest.mark.parametrize("call", UNSAFE)
def test_capture_forbids_calls_that_may_wait(call, captured):
    on_gpu([1])  # the call finds memory for such an array
    stream = captured(THREAD_LOCAL)
    with ThreadPoolExecutor(1) as thread:  # it forbids them to its own thread only
        thread.submit(lambda: (use_gpu(), UNSAFE[call]())).result()
    with pytest.raises(CudaAPIError, match="CAPTURE_UNSUPPORTED"):
        UNSAFE[call]()
    assert_invalid(stream)
    stream = captured(RELAXED)
    UNSAFE[call]()
    driver.cuStreamEndCapture(stream)


def test_global_capture_forbids_calls_that_may_wait_to_all_threads(captured):
    stream = captured(GLOBAL)
    with ThreadPoolExecutor(1) as thread, pytest.raises(CudaAPIError, match="CAPTURE_UNSUPPORTED"):
        thread.submit(lambda: (use_gpu(), free_and_allocate())).result()
    assert_invalid(stream)


MISTAKES = {
    "wait for stream": (lambda stream: driver.cuStreamSynchronize(stream), "CAPTURE_UNSUPPORTED"),
    "wait for all": (lambda stream: driver.cuCtxSynchronize(), "CAPTURE_UNSUPPORTED"),
    "unpinned": (lambda stream: driver.cuMemcpyHtoDAsync(0, np.ones(4).ctypes.data, 4, stream), "CAPTURE_UNSUPPORTED"),
    "download": (lambda stream: driver.cuMemcpyDtoHAsync(np.ones(4).ctypes.data, 0, 4, stream), "CAPTURE_UNSUPPORTED"),
    "event": (lambda stream: driver.cuStreamWaitEvent(stream, driver.cuEventCreate(0), 0), "CAPTURE_ISOLATION"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_captured_stream_can_neither_be_waited_for_nor_wait(mistake, captured):
    stream, (call, error) = captured(RELAXED), MISTAKES[mistake]
    with pytest.raises(CudaAPIError, match=error):
        call(stream)
    assert_invalid(stream)


def test_default_stream_cannot_be_used_while_a_blocking_stream_is_captured(captured):
    later(on_gpu([1]).address, 1, 0)
    captured(RELAXED)
    later(on_gpu([1]).address, 1, 0)
    stream = captured(RELAXED, flags=0)
    with pytest.raises(CudaAPIError, match="CAPTURE_IMPLICIT"):
        later(on_gpu([1]).address, 1, 0)
    assert_invalid(stream)


def test_capture_begins_once_and_ends_in_its_thread(captured):
    with pytest.raises(CudaAPIError, match="CAPTURE_UNSUPPORTED"):
        driver.cuStreamBeginCapture(0, RELAXED)
    stream = captured(THREAD_LOCAL)
    with pytest.raises(CudaAPIError, match="ILLEGAL_STATE"):
        driver.cuStreamBeginCapture(stream, RELAXED)
    with ThreadPoolExecutor(1) as thread, pytest.raises(CudaAPIError, match="WRONG_THREAD"):
        thread.submit(lambda: (use_gpu(), driver.cuStreamEndCapture(stream))).result()
    driver.cuStreamEndCapture(stream)
    with pytest.raises(CudaAPIError, match="ILLEGAL_STATE"):
        driver.cuStreamEndCapture(stream)


def test_large_shared_memory_must_be_requested():
    array = on_gpu([1])
    kernel, stream = loaded(add_one, array, c_uint32(0)), cuda_launching._stream(use_gpu())
    config = LaunchConfig(grid=1, block=1, shmem_size=SHARED + 1)
    with pytest.raises(CUDAError, match="error 1:"):
        launch(stream, config, kernel, *array.words, c_uint32(0))
    driver.cuKernelSetAttribute(
        binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, SHARED + 1, kernel.handle, 0
    )
    launch(stream, config, kernel, *array.words, c_uint32(0))
    assert download(array) == [2]


# Memory of the backend.


def test_new_threads_can_use_gpu():
    array = on_gpu([1, 2, 3])
    for task in (increment, download, PinnedCopies().receive, DeviceArray.clear, upload_another):
        with ThreadPoolExecutor(1) as thread:  # a new thread, which has not used the GPU yet
            thread.submit(task, array).result()
    assert download(array) == [0, 0, 0]


def upload_another(array):
    """Send another array of the same shape to the GPU."""
    PinnedCopies().send(np.ones(array.shape, array.dtype), DeviceArray(array.shape, array.dtype))


@pytest.fixture
def new_process(monkeypatch):
    """Return a function that calls others in a new thread, as if this process had not used the GPU before."""
    for name, value in {"_own_stream": 0, "_number": 0, "_thread": threading.local()}.items():
        monkeypatch.setattr(cuda_memory, name, value)
    monkeypatch.setattr("fflm.backend.devices.why_no_gpu", lambda: "")
    monkeypatch.setattr(cuda_launching, "_compiled", {})
    GPU.used.clear()
    with ThreadPoolExecutor(1) as thread:
        yield lambda *task: thread.submit(*task).result()


def test_second_gpu_is_used_by_all_threads(new_process):
    def work():
        array = on_gpu([1, 2])
        increment(array)
        upload_another(array)
        return download(array)

    assert choose_device("cuda:1") == "cuda"
    assert new_process(work) == [2, 3]
    assert new_process(describe_device, "cuda").startswith("cuda:1 (Fake GPU, ")
    with ThreadPoolExecutor(1) as another:
        assert another.submit(work).result() == [2, 3]
    assert GPU.used == {1}
    assert choose_device("cuda") == choose_device("cuda:1") == "cuda"
    with pytest.raises(FflmError, match="this process uses the GPU cuda:1: use cuda:0 in another process"):
        choose_device("cuda:0")


@pytest.mark.usefixtures("new_process")
def test_gpu_that_does_not_exist_is_refused(monkeypatch):
    with pytest.raises(FflmError, match="there is no GPU cuda:2: this process sees 2 GPUs, cuda:0 to cuda:1"):
        choose_device("cuda:2")
    with pytest.raises(FflmError, match="`device` must be a string such as cpu, cuda, cuda:1 or auto, not 'cuda:-1'"):
        choose_device("cuda:-1")
    monkeypatch.setattr(cuda_memory.cuda, "gpus", cuda.gpus[:1])
    with pytest.raises(FflmError, match="there is no GPU cuda:1: this process sees one GPU, cuda:0"):
        choose_device("cuda:1")


@pytest.fixture
def pool(monkeypatch):
    """Return an empty pool of memory, and the fake driver with a GPU that has 10,000 bytes for it."""
    use_gpu()
    monkeypatch.setattr(GPU, "held", {})
    monkeypatch.setattr(GPU, "capacity", 10_000)
    return Pool(), GPU


def test_pool_reuses_memory_of_deleted_arrays(pool, monkeypatch):
    pool, gpu = pool
    monkeypatch.setattr(cuda_memory, "POOL", pool)
    first, second = (DeviceArray((250,), np.float32) for _ in range(2))
    address = first.address
    assert address != second.address
    part = first[64:128].reshape(8, 8)
    del first
    third = DeviceArray((249,), np.float32)
    assert third.address != address  # a slice still uses the memory
    assert part.address == address + 256
    del part
    assert DeviceArray((251,), np.float32).address == address
    assert len(gpu.held) == 3


def test_pool_frees_unused_memory_before_running_out(pool):
    pool, gpu = pool
    for size in (3000, 4000):
        pool.take(size)
    large = pool.take(9000)
    assert list(gpu.held.values()) == [size_class(9000)]
    with pytest.raises(MemoryError, match=r"of the GPU's 0\.0 GB .* use a smaller network"):
        pool.take(5000)
    del large
    pool.take(9000)
    assert list(gpu.held.values()) == [size_class(9000)]


@pytest.mark.parametrize(("size", "taken"), [(1, 256), (256, 256), (257, 512), (4096, 4096), (4097, 4608), (10**9, 1006632960)])
def test_size_classes(size, taken):
    assert size_class(size) == taken


@pytest.fixture
def copies(monkeypatch):
    """Return pinned copies, a list of all pinned arrays, and a list that grows by an element whenever the host waits to send."""
    pinned, waited, pinned_array = [], [], cuda.pinned_array

    class CountedCopies(PinnedCopies):
        def _reserve(self, size):
            with monkeypatch.context() as patch:
                patch.setattr(self, "_wait", lambda: (waited.append(None), super(CountedCopies, self)._wait()))
                return super()._reserve(size)

    def counted_array(*arguments):
        pinned.append(pinned_array(*arguments))
        return pinned[-1]

    monkeypatch.setattr(cuda_memory.cuda, "pinned_array", counted_array)
    return CountedCopies(), pinned, waited


def send_number(copies, number, size=100):
    """Send an array filled with a number, then overwrite it on the host; return the array on the GPU."""
    array = np.full((size, 2), number, np.int32)
    target = DeviceArray(array.shape, array.dtype)
    copies.send(array, target)
    array[...] = -1
    return target


def numbers(targets):
    """Return the number that fills each array on the GPU."""
    found = [PinnedCopies().receive(target) for target in targets]
    assert all((each == each[0, 0]).all() for each in found)
    return [int(each[0, 0]) for each in found]


def test_sent_array_may_be_overwritten_before_it_arrives(copies):
    copies, pinned, waited = copies
    targets = [send_number(copies, number) for number in range(5)]
    assert numbers(targets) == [0, 1, 2, 3, 4]
    assert len(pinned) == 5
    copies.receive(targets[0])
    again = [send_number(copies, number) for number in range(5, 8)]
    assert numbers(targets + again) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert len(pinned) == 5
    assert not waited


def test_pinned_memory_is_limited(copies, monkeypatch):
    copies, pinned, waited = copies
    monkeypatch.setattr(cuda_memory, "PINNED", 4096)
    targets = [send_number(copies, number) for number in range(4)]  # each takes 1,024 bytes
    assert not waited
    targets.append(send_number(copies, 4))
    assert len(waited) == 1
    assert len(pinned) == 4
    targets.append(send_number(copies, 5, size=1000))  # larger than the limit, so sent without pinned memory
    assert len(pinned) == 4
    assert numbers(targets) == [0, 1, 2, 3, 4, 5]


def test_pinned_memory_is_limited_for_all_threads_together(copies, monkeypatch):
    """A thread sends while another one is between its look at the limit and its request of a copy."""
    copies, pinned, _ = copies
    monkeypatch.setattr(cuda_memory, "PINNED", 2048)
    numbers_of_others, targets, pinned_array = iter((1, 2, 3)), [], cuda_memory.cuda.pinned_array

    def interrupted_by_another_thread(*arguments):
        for number in numbers_of_others:  # threads, each of which is interrupted by the next one
            with ThreadPoolExecutor(1) as thread:
                targets.append((number, thread.submit(send_number, copies, number).result()))
        return pinned_array(*arguments)

    monkeypatch.setattr(cuda_memory.cuda, "pinned_array", interrupted_by_another_thread)
    targets.append((0, send_number(copies, 0)))
    assert len(pinned) == 2
    assert sorted(number for number, _ in targets) == [0, 1, 2, 3]
    assert numbers([target for _, target in targets]) == [number for number, _ in targets]


def test_interruptions_leave_pinned_memory_for_later_copies(copies, monkeypatch):
    copies, _, waited = copies
    monkeypatch.setattr(cuda_memory, "PINNED", 1024)

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("cuMemcpyHtoDAsync", "cuStreamSynchronize"):
        with monkeypatch.context() as patch:
            patch.setitem(vars(driver), name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                copies.receive(send_number(copies, 0))
    assert numbers([send_number(copies, 7)]) == [7]
    assert not waited


def test_interruption_does_not_share_pinned_memory(copies, monkeypatch):
    copies, _, _ = copies
    send_number(copies, 0)

    class Interrupted(dict):
        def __getitem__(self, size):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(copies, "_free", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            copies._give_back(copies._take_sent())
    copies._give_back(copies._take_sent())
    assert numbers([send_number(copies, 7), send_number(copies, 8)]) == [7, 8]


def test_empty_array_is_not_sent(copies):
    copies, pinned, _ = copies
    empty = send_number(copies, 1, size=0)
    assert not pinned
    assert copies.receive(empty).shape == (0, 2)


# Arrays of the backend.


@pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 12), (12, 1), (-1, 6), (2, -1)])
def test_device_array_has_same_shapes_and_strides_as_numpy(shape):
    there, here = DeviceArray((6, 2), np.int32).reshape(shape), np.zeros((6, 2), np.int32).reshape(shape)
    for rows in (slice(None), slice(1, 2), slice(1, None), slice(3, 99), slice(2, 2), slice(-1, None)):
        part, expected = there[rows], here[rows]
        assert (part.shape, part.size, part.ndim, part.nbytes) == (expected.shape, expected.size, expected.ndim, expected.nbytes)
        assert part.dtype == expected.dtype
        assert len(part) == len(expected)
        assert part.words[2:4] == (expected.size, expected.itemsize)
        assert part.words[5:] == (*expected.shape, *expected.strides)
        if part.size:
            assert part.address - there.address == expected.ctypes.data - here.ctypes.data


def test_slice_with_step_is_refused():
    with pytest.raises(ValueError, match="consecutive rows"):
        DeviceArray((6, 2), np.int32)[::2]


def test_reshape_to_other_size_is_refused():
    with pytest.raises(ValueError, match=r"an array of shape \(6, 2\) has none of shape \(5, 2\)"):
        DeviceArray((6, 2), np.int32).reshape(5, 2)
