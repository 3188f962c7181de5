"""Recorded training steps: graphs give the same bits as single launches, own their memory, and refuse what cannot be recorded."""

import dataclasses
import functools

import devices
import numpy as np
import pytest
from devices import fake_driver, gpu_backend

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")
if devices.device == "cuda":
    pytest.skip("a real GPU does not count launches", allow_module_level=True)

from bengio import launch_directly
from numba.cuda.cudadrv.driver import CudaAPIError

from fflm.backend.protocol import StepNumbers
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.windows import Windows
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

GPU = fake_driver()

pytestmark = pytest.mark.usefixtures("new_pool")
NETWORK = NetworkConfig(vocabulary=20, window=2, averages=(2,), embedding=3, hidden=(5,), tied=False, dropout=0.3)
SETTINGS = TrainingSettings(epochs=3, batch_size=8, rate=0.02)


def train(backend, changes, settings):
    """Train on batches of 8, 8 and 5 examples, with an evaluation after each epoch.

    Returns the results as bytes, and the number of launches in the last epoch.
    """
    config = dataclasses.replace(NETWORK, **changes)
    ids = np.random.default_rng(0).integers(0, config.vocabulary, 21 + 4).astype(np.uint16)
    windows = Windows(ids, config.context, padding=config.vocabulary)
    trainer = Trainer(Network(config, backend), Parameters.random(config, 1), windows, windows, settings)
    events = trainer.run()
    before = [next(events) for _ in range(2 * trainer.batches)]
    start = len(GPU.launched)
    after = [next(events) for _ in range(trainer.batches - 1)]
    launched = len(GPU.launched) - start
    last = next(events)
    arrays = [*trainer.parameters, *(array for moment in trainer.optimizer.moments for array in moment)]
    figures = [getattr(event, "loss", None) or event.valid.total for event in (*before, *after, last)]
    return [backend.download(array).tobytes() for array in arrays], figures, launched


@pytest.mark.parametrize(
    ("precision", "changes", "settings"),
    [
        pytest.param("fp32", {}, {}, id="adamw"),
        pytest.param("mixed", {"tied": True, "embedding_dropout": 0.0}, {"optimizer": "sgd", "momentum": 0.9}, id="mixed, sgd"),
        pytest.param("fp32", {"vocabulary": 300}, {"loss": "sampled", "samples": 130, "exact_end": 0.0}, id="sampled"),
        pytest.param("fp32", {"tied": True}, {"loss": "nce", "samples": 4, "optimizer": "adagrad", "exact_end": 0.0}, id="nce"),
    ],
)
def test_graphs_give_same_bits_as_launches(precision, changes, settings):
    settings = dataclasses.replace(SETTINGS, **settings)
    *recorded, few = train(gpu_backend(precision), changes, settings)
    *direct, many = train(launch_directly(gpu_backend(precision)), changes, settings)
    assert recorded == direct
    assert few == 0
    assert many > 20


def test_step_with_work_of_the_host_is_not_recorded():
    settings = dataclasses.replace(SETTINGS, loss="sampled", samples=4, smoothing=0.1)
    assert train(gpu_backend(), {}, settings)[2] > 20


class Total:
    """A step that adds the first row of values (B, N) to a total, with the learning rate as the first number."""

    def __init__(self, backend, size):
        self.backend, self.total = backend, backend.upload(np.zeros((1, size), np.float32))
        self.recording, self.calls = backend.recording(), 0
        self.interrupt = lambda: None

    def step(self, values, numbers):
        """Do the step, and what ``interrupt`` does."""
        self.calls += 1
        copied = self.backend.empty(values.shape, np.float32)
        self.backend.copy(values, copied)
        self.backend.copy(numbers.reals[:1].reshape(1, 1), copied)
        self.interrupt()
        self.backend.add(copied, self.total)

    def add(self, *values, rate=0.0, rows=1):
        """Do the step with these values in each of some rows."""
        values = np.tile(np.array(values, np.float32), (rows, 1))
        self.recording(self.step, values=values, numbers=StepNumbers(rate=rate))

    def result(self):
        """Return the total as a list."""
        return self.backend.download(self.total)[0].tolist()


def recorded(backend=None, size=3):
    """Return a `Total` that has a graph, and whose total is zero."""
    total = Total(backend or gpu_backend(), size)
    for _ in range(3):
        total.add(*[0] * size)
    assert total.calls == 3
    total.add(*[0] * size)
    assert total.calls == 3
    return total


def test_graph_reads_arguments_of_each_call():
    total = recorded()
    total.add(9, 1, 2, rate=0.5)
    total.add(9, 10, 20, rate=0.25)
    assert total.result() == [0.75, 11, 22]


def test_graph_does_not_write_to_memory_of_others():
    total = recorded()
    others = [total.backend.upload(np.full((1, 3), number, np.float32)) for number in range(20)]
    total.add(9, 1, 2)
    assert [total.backend.download(each)[0].tolist() for each in others] == [[number] * 3 for number in range(20)]
    total.add(9, 1, 2)
    assert total.result() == [0, 2, 4]


def test_graph_does_not_write_to_buffers_that_were_replaced():
    total = Total(gpu_backend(), 3)
    borrow = total.backend._borrow
    borrow("buffer", (500,))
    total.interrupt = lambda: total.backend.clear(borrow("buffer", (500,)))
    for _ in range(4):
        total.add(0, 0, 0)
    borrow("buffer", (5000,))
    other = total.backend.upload(np.ones(500, np.float32))
    total.add(0, 0, 0)
    assert total.calls == 3
    assert total.backend.download(other).all()


def test_graph_is_recorded_again_if_a_buffer_with_content_was_replaced():
    total = Total(gpu_backend(), 500)
    backend = total.backend

    def ones(size):
        return backend.upload(np.ones(size, np.float32))

    def add_buffer(rows):
        buffer = backend._borrow("ones", (500 * rows,), make=ones)
        backend.add(buffer[:500].reshape(1, -1), total.total)
        backend.clear(backend.empty((500,), np.float32))  # which may be the memory of a buffer that was replaced

    for rows in (1, 1, 1, 2, 2, 2, 1):
        total.interrupt = functools.partial(add_buffer, rows)
        total.add(*[0] * 500, rows=rows)
    assert total.result() == [7] * 500


def test_memory_of_graphs_returns_to_pool():
    backend = gpu_backend()
    for size in (300, 300):
        held = len(GPU.held)
        recorded(backend, size)
    assert len(GPU.held) == held


def refuse(call, error, message):
    """Check that a step with this call is refused when it is recorded, and that the next one is recorded without the call."""
    total = Total(gpu_backend(), 3)
    for _ in range(2):
        total.add(0, 0, 0)
    total.interrupt = lambda: call(total)
    with pytest.raises(error, match=message):
        total.add(0, 1, 0)
    total.interrupt = lambda: None
    for _ in range(2):
        total.add(0, 1, 2, rate=0.5)
    assert total.calls == 4
    assert total.result() == [1, 2, 4]


def test_step_that_sends_arrays_is_refused():
    refuse(lambda total: total.backend.send(np.ones((1, 3), np.float32), total.total), RuntimeError, "must not send arrays")


def test_step_that_waits_is_refused():
    refuse(lambda total: total.backend.download(total.total), CudaAPIError, "CAPTURE_UNSUPPORTED")


def test_step_that_needs_new_memory_when_recorded_is_refused():
    refuse(lambda total: total.backend.empty((12345,), np.float32), CudaAPIError, "CAPTURE_UNSUPPORTED")


def test_interrupted_step_is_recorded_by_the_next_call():
    def interrupted(total):
        raise KeyboardInterrupt

    refuse(interrupted, KeyboardInterrupt, None)


def test_graphs_are_recorded_again_after_their_memory_was_given_back(monkeypatch):
    total = Total(gpu_backend(), 3)
    total.interrupt = lambda: total.backend.empty((500,), np.float32)
    for _ in range(4):
        total.add(0, 1, 0)
    assert total.calls == 3
    total.interrupt = lambda: total.backend.empty((1000,), np.float32)
    monkeypatch.setattr(GPU, "capacity", sum(GPU.held.values()) + 512 + 2560)  # enough only without the array of 500 numbers
    total.add(0, 1, 0, rows=2)
    total.interrupt = lambda: None
    total.add(0, 1, 0)
    assert total.calls == 5
    assert total.result() == [0, 6, 0]
