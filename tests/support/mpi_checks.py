"""Checks in processes that `mpiexec` has started: `python mpi_checks.py NAME`. The first process prints what it has found."""

import contextlib
import functools
import json
import os
import signal
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest

import fflm
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.parallel import mpi
from fflm.parallel.communicator import SINGLE_PROCESS, DividedRows
from fflm.parallel.world import world
from fflm.text.windows import Windows
from fflm.training.events import Evaluation, Step
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

TRAINING = {
    "embedding": 6,
    "hidden": (8,),
    "window": 3,
    "batch_size": 64,
    "epochs": 2,
    "patience": 0,
    "dropout": 0.2,
    "test": "5%",
    "threads": 1,
}


VOCABULARY = {**TRAINING, "tied": False, "loss": "exact", "parallel": "vocabulary"}


def operations(communicator):
    """Check the operations of a communicator."""
    rank, size = communicator.rank, communicator.size
    assert communicator.gather([rank, 1]).tolist() == [[each, 1] for each in range(size)]
    assert communicator.broadcast(f"rank {rank}".encode()) == b"rank 0"
    assert communicator.broadcast(b"") == b""
    array = np.full((3, 2), rank, np.float32)
    communicator.broadcast_array(array)
    assert not array.any()
    assert communicator.any(rank == size - 1)
    assert not communicator.any(False)
    mpi.CHUNK = 7  # arrays are longer, shorter, and cut at any place
    for dtype in (np.float32, np.float64):
        generator = np.random.default_rng(0)
        shapes = (5, 4), (1,), (0,), (3,)
        every = [[generator.normal(size=shape) for shape in shapes] for _ in range(size)]
        own = [array.astype(dtype) for array in every[rank]]
        communicator.sum_arrays(own)
        for index, array in enumerate(own):
            expected = functools.reduce(np.add, [each[index].astype(dtype) for each in every])
            assert np.array_equal(array, expected), (array, expected)  # bit for bit, so the order is that of ranks
    for shape in ((7,), (20, 3), (size, 2)):
        whole = np.random.default_rng(0).normal(size=shape)
        rows = DividedRows(communicator, whole[communicator.share(len(whole))], len(whole))
        assert rows.crc32(1) == zlib.crc32(whole.data, 1)
        assert np.array_equal(np.concatenate(list(rows)), whole)
    mpi.CHUNK = 2**20
    communicator._buffers.clear()
    sent = communicator.bytes_sent
    communicator.sum_arrays([np.ones(60 * size, np.float32)])
    assert communicator.bytes_sent - sent == 2 * (size - 1) * 60 * 4
    assert refused(lambda: communicator.on_first(fail)) == "no"
    assert communicator.on_first(lambda: ["result", rank]) == ["result", 0]
    communicator.check_same(["text", np.arange(3)], "never")
    assert refused(lambda: communicator.check_same([str(rank)], "different")) == "different"
    assert communicator.processors(8, range(8)) == 8 // size
    assert communicator.processors(2, range(2 * rank, 2 * rank + 2)) == 2
    assert communicator.processors(2, range(8)) == max(1, 2 // size)  # a quota, which all share
    assert communicator.all_arrive(30)


def refused(work):
    """Return the message of the FflmError that some work raises."""
    try:
        work()
    except FflmError as error:
        return str(error)
    raise AssertionError("no error")


def fail():
    """Raise an FflmError."""
    raise FflmError("no")


def training(communicator, settings=TRAINING):
    """Train without interruption, and with one by Ctrl-C in the last process.

    Return after which step it has stopped, and how many messages a step takes.
    """
    messages = []
    fflm.train("text.txt", "whole.model", **settings, callback=lambda *_: messages.append(communicator.messages))
    stopped = None

    def interrupt(session, event):
        nonlocal stopped
        if isinstance(event, Step) and event.step == 5 and communicator.rank == communicator.size - 1:
            os.kill(os.getpid(), signal.SIGINT)
        stopped = session.trainer.state.step

    with pytest.raises(KeyboardInterrupt, match="stopped and saved"):
        fflm.train("text.txt", "resumed.model", **settings, callback=interrupt)
    steps = communicator.gather([stopped])[:, 0]
    assert len(set(steps)) == 1, steps
    fflm.resume("resumed.model")
    fflm.train("text.txt", "stopped.model", **settings, callback=stop_in_last_process)
    return {"step": stopped, "messages": messages[2] - messages[1]}


def stop_in_last_process(session, event):
    """Stop training in the last process after step 3, which is within an epoch."""
    if session.communicator.rank == session.communicator.size - 1 and isinstance(event, Step) and event.step == 3:
        session.stop()


def hosts(communicator):
    """Train, and return how many bytes each process has received over the link between two hosts; see `two_hosts`."""
    fflm.train("text.txt", "text.model", **{**TRAINING, "epochs": 1})
    lines = [line.split() for line in Path("/proc/self/net/dev").read_text().splitlines()]
    received = sum(int(line[1]) for line in lines if line[0] == "fflm0:")
    return communicator.gather([received])[:, 0].tolist()


def vocabulary(communicator):
    """Do the same as `training` and `diverging`, where each process has a part of the words."""
    found = training(communicator, VOCABULARY)
    if communicator.first:
        print(json.dumps(found), flush=True)
    diverging(communicator, VOCABULARY)


def diverging(communicator, settings=TRAINING):
    """Let training diverge once, so that it is rolled back; then let the last process fail."""

    def spoil(session, event):
        session.save_seconds = 0.0
        if communicator.rank == communicator.size - 1 and isinstance(event, Step):
            if event.step == 4:
                session.trainer.parameters.hidden_biases[0][:] = np.nan
            if event.step == 6:
                raise RuntimeError("a fault in the last process")

    fflm.train("text.txt", "diverging.model", **settings, callback=spoil)


class NcclOverMpi:
    """Imitates the functions of ``nccl.core`` that fflm calls. Arrays of the fake GPU travel over MPI, when a group ends."""

    UniqueId = types.SimpleNamespace(from_bytes=bytes)

    def __init__(self, backend):
        self.Communicator = types.SimpleNamespace(init=self.connect)
        self.backend, self.queued = backend, []

    def get_unique_id(self):
        """Return an identifier, as the first process does."""
        return types.SimpleNamespace(as_bytes=b"identifier")

    def connect(self, size, rank, identifier):
        """Return the communicator, whose methods are those of this class."""
        assert (size, rank, identifier) == (world().size, world().rank, b"identifier")
        return self

    def send(self, array, peer, stream):
        """Send an array when the group ends."""
        assert stream  # not the default one
        self.queued.append(("send", array, peer))

    def recv(self, array, peer, stream):
        """Receive an array when the group ends."""
        assert stream  # not the default one
        self.queued.append(("recv", array, peer))

    @contextlib.contextmanager
    def group(self):
        """Do what was queued inside the block, as if at once."""
        yield
        received = [(array, np.empty(array.shape, array.dtype), peer) for call, array, peer in self.queued if call == "recv"]
        sent = [(self.backend.download(array), peer) for call, array, peer in self.queued if call == "send"]
        requests = [mpi.MPI.COMM_WORLD.Isend(array, peer) for array, peer in sent]
        requests += [mpi.MPI.COMM_WORLD.Irecv(array, peer) for _, array, peer in received]
        mpi.MPI.Request.Waitall(requests)
        for array, content, _ in received:
            self.backend.copy(self.backend.upload(content).reshape(1, -1), array.reshape(1, -1))
        self.queued.clear()


def gpus(communicator):
    """Train on fake GPUs, by copies through the hosts and by the calls of NCCL; weights are close to those of one process.

    Both ways add numbers in the same order, so they have the same weights.
    """
    from devices import gpu_backend

    from fflm.backend.cuda.communication import HostCopies, NcclCommunicator

    backend = gpu_backend()
    config = NetworkConfig(30, 3, 6, (7,), averages=(), tied=True, dropout=0.3)
    settings = TrainingSettings(epochs=1, batch_size=32, rate=0.01, loss="sampled", samples=8, evaluate_every=1, patience=0)
    examples = Windows(np.random.default_rng(0).zipf(1.3, 60).clip(1, 30).astype(np.uint16) - 1, 3, padding=30)

    def weights(connect, processes):
        backend.connect = connect
        trainer = Trainer(Network(config, backend), Parameters.random(config, 1), examples, examples, settings, processes)
        assert len([event for event in trainer.run() if isinstance(event, Evaluation)]) == 2
        return [backend.download(array) for array in trainer.parameters]

    single = weights(lambda processes: processes, SINGLE_PROCESS)
    copies = weights(lambda processes: HostCopies(processes, backend), communicator)
    nccl = weights(lambda processes: NcclCommunicator(processes, backend, NcclOverMpi(backend)), communicator)
    for one, two, three in zip(single, copies, nccl, strict=True):
        assert np.array_equal(two, three)
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    group = world()
    checks = operations, training, hosts, vocabulary, diverging, gpus
    found = {check.__name__: check for check in checks}[sys.argv[1]](group)
    if group.first:
        print(json.dumps(found))
