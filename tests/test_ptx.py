"""The executor of PTX: it computes what it should, and notices what it should."""

import math

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from devices import compiled
from numba import cuda, float32, int32, int64, typeof, uint32
from ptx import Ptx, PtxError

LANES = 64
"""Threads of a block here."""

N = 4 * LANES


def launch(kernel, blocks, *arguments):
    """Execute a kernel, a Python function."""
    Ptx(compiled(cuda.jit(kernel), tuple(map(typeof, arguments)))).launch((blocks,), LANES, list(arguments))


def per_number(function):
    """Return a kernel that applies a function of two numbers to each pair of elements."""
    device = cuda.jit(device=True, inline="always")(function)

    def kernel(x, y, z):
        i = uint32(cuda.grid(1))
        if i < uint32(z.size):
            z[i] = device(x[i], y[i])

    return kernel


def swap_sign(x, y):
    return x if y > float32(0) else -x


def loop(x, y):
    total = x
    while total < y:
        total += float32(1)
    return total


FLOATS = {
    "sum": lambda x, y: x + y,
    "fused": lambda x, y: x * y + x,
    "quotient": lambda x, y: x / y,
    "exp": lambda x, y: math.exp(x),
    "log": lambda x, y: math.log(abs(x)),
    "tanh": lambda x, y: math.tanh(x),
    "root": lambda x, y: math.sqrt(abs(y)),
    "branch": swap_sign,
    "loop of different lengths": loop,
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name):
    x, y = np.random.default_rng(0).normal(0, 3, (2, N - 3)).astype(np.float32)
    z = np.full(N - 3, np.nan, np.float32)
    launch(per_number(FLOATS[name]), 4, x, y, z)
    expected = [FLOATS[name](float(a), float(b)) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(z, expected, rtol=2e-6, atol=1e-6)


INTEGERS = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: x * y,
    "quotient": lambda x, y: x // (y | 1),
    "remainder": lambda x, y: x % (y | 1),
    "bits": lambda x, y: (x & y) ^ (x | 5),
    "shifts": lambda x, y: (x << 3) + (y >> 7),
    "order": lambda x, y: max(x, y) - min(x, y),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    x, y = np.random.default_rng(0).integers(-(2**30), 2**30, (2, N))
    z = np.zeros(N, np.int64)
    launch(per_number(INTEGERS[name]), 4, x, y, z)
    assert z.tolist() == [INTEGERS[name](a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def test_barriers_and_shared_memory():
    def reverse(x, z):
        shared = cuda.shared.array(LANES, float32)
        thread = uint32(cuda.threadIdx.x)
        shared[thread] = x[uint32(cuda.grid(1))]
        cuda.syncthreads()
        z[uint32(cuda.grid(1))] = shared[uint32(LANES - 1) - thread]

    x, z = np.arange(N, dtype=np.float32), np.zeros(N, np.float32)
    launch(reverse, 4, x, z)
    assert np.array_equal(z.reshape(4, LANES), x.reshape(4, LANES)[:, ::-1])


def test_atomic_sums():
    def count(words, counts):
        cuda.atomic.add(counts, uint32(words[uint32(cuda.grid(1))]), int64(1))

    words, counts = np.random.default_rng(0).integers(0, 9, N, np.int32), np.zeros(9, np.int64)
    launch(count, 4, words, counts)
    assert np.array_equal(counts, np.bincount(words, minlength=9))


def test_slices_share_their_memory():
    def add_one(x, y):
        i = uint32(cuda.grid(1))
        if i < uint32(x.size):
            x[i] += float32(1)
            y[i] = x[i]

    whole = np.arange(100, dtype=np.float32)
    launch(add_one, 1, whole[10:20], whole[20:30])
    assert whole[10:30].tolist() == 2 * list(range(11, 21))
    assert whole[:10].tolist() == list(range(10))
    assert whole[30:].tolist() == list(range(30, 100))


# Planted bugs


def no_barrier(x, z):
    shared = cuda.shared.array(LANES, float32)
    thread = uint32(cuda.threadIdx.x)
    shared[thread] = x[thread]
    z[thread] = shared[uint32(LANES - 1) - thread]


def two_writers(x, z):
    shared = cuda.shared.array(LANES, float32)
    thread = uint32(cuda.threadIdx.x)
    shared[thread // uint32(2)] = x[thread]
    cuda.syncthreads()
    z[thread] = shared[thread // uint32(2)]


def read_before_written(x, z):
    shared = cuda.shared.array(LANES, float32)
    thread = uint32(cuda.threadIdx.x)
    shared[thread] = x[thread]
    cuda.syncthreads()
    z[thread] = shared[uint32(LANES - 1) - thread]
    shared[thread] = float32(0)
    cuda.syncthreads()
    z[thread] += shared[uint32(0)]


def beyond_the_end(x, z):
    z[uint32(cuda.threadIdx.x) + uint32(1)] = x[uint32(cuda.threadIdx.x)]


def beyond_shared_memory(x, z):
    shared = cuda.shared.array(LANES, float32)
    shared[uint32(cuda.threadIdx.x) + uint32(int32(x[0]))] = x[0]
    cuda.syncthreads()
    z[uint32(cuda.threadIdx.x)] = shared[uint32(cuda.threadIdx.x)]


def barrier_for_half(x, z):
    thread = uint32(cuda.threadIdx.x)
    if thread < uint32(LANES // 2):
        cuda.syncthreads()
    z[thread] = x[thread]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (no_barrier, "a race"),
        (two_writers, "a race"),
        (read_before_written, "a race"),
        (beyond_the_end, "out of bounds"),
        (beyond_shared_memory, "out of bounds of shared"),
        (barrier_for_half, "a barrier that only some"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bugs_are_noticed(kernel, message):
    x, z = np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
    with pytest.raises(PtxError, match=message):
        launch(kernel, 1, x, z)


def test_what_was_never_written_is_nan():
    def forgotten(z):
        shared = cuda.shared.array(LANES, float32)
        if uint32(cuda.threadIdx.x) < uint32(3):
            shared[uint32(cuda.threadIdx.x)] = float32(1)
        cuda.syncthreads()
        z[uint32(cuda.threadIdx.x)] = shared[uint32(cuda.threadIdx.x)]

    z = np.zeros(LANES, np.float32)
    launch(forgotten, 1, z)
    assert np.isnan(z).tolist() == 3 * [False] + (LANES - 3) * [True]


def test_an_unknown_instruction_is_refused():
    source = compiled(cuda.jit(lambda z: None), (typeof(np.zeros(1, np.float32)),))
    with pytest.raises(PtxError, match=r"unknown instruction wmma\.load"):
        Ptx(source.replace("ret;", "wmma.load 	%f1, [%rd1];\n	ret;"))
