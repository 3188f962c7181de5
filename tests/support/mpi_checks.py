"""Checks in processes that `mpiexec` has started: `python mpi_checks.py NAME`. The first process prints what it has found."""

import functools
import json
import os
import signal
import sys

import numpy as np
import pytest

import fflm
from fflm.errors import FflmError
from fflm.parallel import mpi
from fflm.parallel.world import world
from fflm.training.events import Step

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


def operations(communicator):
    """Check the operations of a communicator."""
    rank, size = communicator.rank, communicator.size
    assert communicator.gather([rank, 1]).tolist() == [[each, 1] for each in range(size)]
    assert communicator.broadcast(f"rank {rank}".encode()) == b"rank 0"
    assert communicator.broadcast(b"") == b""
    array = np.full((3, 2), rank, np.float32)
    communicator.broadcast_array(array)
    assert not array.any()
    assert communicator.sum(0.1 * rank) == functools.reduce(float.__add__, [0.1 * each for each in range(size)], 0.0)
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


def training(communicator):
    """Train without interruption, and with one by Ctrl-C in the last process; return the figures and the weights."""
    fflm.train("text.txt", "whole.model", **TRAINING)
    stopped = None

    def interrupt(session, event):
        nonlocal stopped
        if isinstance(event, Step) and event.step == 5 and communicator.rank == communicator.size - 1:
            os.kill(os.getpid(), signal.SIGINT)
        stopped = session.trainer.state.step

    with pytest.raises(KeyboardInterrupt, match="stopped and saved"):
        fflm.train("text.txt", "resumed.model", **TRAINING, callback=interrupt)
    steps = communicator.gather([stopped])[:, 0]
    assert len(set(steps)) == 1, steps
    fflm.resume("resumed.model")
    return {"step": stopped}


def diverging(communicator):
    """Let training diverge once, so that it is rolled back; then let the last process fail."""

    def spoil(session, event):
        session.save_seconds = 0.0
        if communicator.rank == communicator.size - 1 and isinstance(event, Step):
            if event.step == 4:
                session.trainer.parameters.hidden_biases[0][:] = np.nan
            if event.step == 6:
                raise RuntimeError("a fault in the last process")

    fflm.train("text.txt", "diverging.model", **TRAINING, callback=spoil)


if __name__ == "__main__":
    group = world()
    found = {"operations": operations, "training": training, "diverging": diverging}[sys.argv[1]](group)
    if group.first:
        print(json.dumps(found))
