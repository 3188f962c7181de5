"""The PTX interpreter computes correct results, and detects races, invalid accesses and unknown instructions."""

import math
import re

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from devices import compiled
from numba import cuda, float32, int32, int64, typeof, uint32
from numba.cuda.compiler import compile_cuda
from ptx_interpreter import PtxError
from ptx_kernel import PtxKernel
from ptx_memory import Memory

from fflm.backend.cuda.intrinsics import (
    commit_copies,
    copy_four,
    fragments,
    halves,
    load_four,
    make_wait,
    multiply_add,
    pair,
    store_four,
    transposed_fragments,
)

LANES = 64
"""Number of threads of a block in these tests."""

N = 4 * LANES


def launch(kernel, blocks, *arguments):
    """Compile a Python function as a kernel, and run it in the interpreter."""
    PtxKernel(compiled(cuda.jit(kernel), tuple(map(typeof, arguments)))).launch((blocks,), LANES, list(arguments))


def elementwise(function):
    """Return a kernel that applies a function of two numbers to corresponding elements of two arrays."""
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
def test_float_operations(name):
    x, y = np.random.default_rng(0).normal(0, 3, (2, N - 3)).astype(np.float32)
    z = np.full(N - 3, np.nan, np.float32)
    launch(elementwise(FLOATS[name]), 4, x, y, z)
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
def test_integer_operations(name):
    x, y = np.random.default_rng(0).integers(-(2**30), 2**30, (2, N))
    z = np.zeros(N, np.int64)
    launch(elementwise(INTEGERS[name]), 4, x, y, z)
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


def test_atomic_add():
    def count(words, counts):
        cuda.atomic.add(counts, uint32(words[uint32(cuda.grid(1))]), int64(1))

    words, counts = np.random.default_rng(0).integers(0, 9, N, np.int32), np.zeros(9, np.int64)
    launch(count, 4, words, counts)
    assert np.array_equal(counts, np.bincount(words, minlength=9))


def test_kernel_writes_into_slices_of_array():
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


# Products of matrices.


def product_kernel(left=fragments, right=fragments, a=(0, 1, 2, 3), b=(0, 1), down=0, lower=2):
    """Return a kernel in which a warp multiplies two matrices, (16, 16) and (16, 8), and adds 1 to some of the results.

    Parameters
    ----------
    left, right
        The functions that load the factors. `fragments` expects the first as it is, and the second as its transpose (8, 16).
        `transposed_fragments` expects the transpose of the first and the second as it is, both with lines of 16 elements.
    a, b
        The order of the registers of the two factors.
    down
        The number of lines by which the first factor is loaded too low; 0 is correct.
    lower
        The first register that is stored in the lower half of the result; 2 is correct.
    """
    left_along, right_along = left is fragments, right is fragments
    a0, a1, a2, a3 = a
    b0, b1 = b

    def kernel(x, y, z):
        shared = cuda.shared.array(256, uint32, alignment=16)
        lane = uint32(cuda.threadIdx.x)
        for q in range(4):
            shared[lane + uint32(32 * q)] = x[lane + uint32(32 * q)]
            shared[lane + uint32(128 + 32 * q)] = y[lane + uint32(32 * q)]
        cuda.syncthreads()
        line, odd, high = lane % uint32(8), lane // uint32(8) % uint32(2), lane // uint32(16)
        if left_along:
            place = (line + uint32(8) * odd + uint32(down)) % uint32(16) * uint32(8) + uint32(4) * high
        else:
            place = (line + uint32(8) * high) * uint32(8) + uint32(4) * odd
        four = left(shared, place)
        place = line * uint32(8) + uint32(4) * odd if right_along else (line + uint32(8) * odd) * uint32(8)
        two = right(shared, uint32(128) + place)
        zero = float32(0)
        sums = multiply_add((four[a0], four[a1], four[a2], four[a3]), (two[b0], two[b1]), (zero, zero, zero, float32(1)))
        place = lane // uint32(4) * uint32(8) + lane % uint32(4) * uint32(2)
        z[place], z[place + uint32(1)] = sums[0], sums[1]
        z[place + uint32(64)], z[place + uint32(65)] = sums[lower], sums[3]

    return kernel


def multiply(kernel, left_along, right_along):
    """Run a kernel of `product_kernel`; return its result and the expected one, for numbers with which both are exact."""
    x, y = (np.random.default_rng(0).integers(-9, 10, (2, 16, 16)) / 2).astype(np.float16)
    y[:, 8:] = 0
    z = np.full(16 * 8, np.nan, np.float32)
    given = x if left_along else x.T, y.T if right_along else y
    pairs = [np.ascontiguousarray(each).reshape(-1).view(np.uint32) for each in given]
    PtxKernel(compiled(cuda.jit(kernel), tuple(map(typeof, (*pairs, z))))).launch((1,), 32, [*pairs, z])
    expected = x.astype(np.float32) @ y[:, :8].astype(np.float32)
    expected[8:, 1::2] += 1
    return z.reshape(16, 8), expected


@pytest.mark.parametrize("left", [fragments, transposed_fragments], ids=["left", "left transposed"])
@pytest.mark.parametrize("right", [fragments, transposed_fragments], ids=["right", "right transposed"])
def test_multiply_add_of_fragments(left, right):
    found, expected = multiply(product_kernel(left, right), left is fragments, right is fragments)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "bug",
    [
        {"a": (0, 2, 1, 3)},
        {"a": (1, 0, 3, 2)},
        {"b": (1, 0)},
        {"down": 1},
        {"lower": 1},
        {"left": transposed_fragments},
        {"right": transposed_fragments},
    ],
    ids=lambda bug: next(iter(bug)),
)
def test_wrong_fragment_layouts_give_wrong_products(bug):
    found, expected = multiply(product_kernel(**bug), True, True)
    assert (found != expected).mean() > 0.2


def test_float16_conversion_rounds_as_numpy():
    def kernel(x, pairs, y):
        i = uint32(cuda.threadIdx.x)
        pairs[i] = pair(x[uint32(2) * i], x[uint32(2) * i + uint32(1)])
        y[uint32(2) * i], y[uint32(2) * i + uint32(1)] = halves(pairs[i])

    generator = np.random.default_rng(0)
    x = (generator.normal(size=2 * LANES) * 2.0 ** generator.integers(-28, 18, 2 * LANES)).astype(np.float32)
    x[:6] = 65519, 65520, -np.inf, np.nan, 1 + 2.0**-11, 1 + 3 * 2.0**-11
    pairs, y = np.zeros(LANES, np.uint32), np.zeros(2 * LANES, np.float32)
    launch(kernel, 1, x, pairs, y)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    assert np.array_equal(pairs.view(np.float16), expected, equal_nan=True)
    assert np.array_equal(y, expected.astype(np.float32), equal_nan=True)


def test_load_and_store_of_four_words():
    def kernel(x, y):
        i = uint32(4) * uint32(cuda.threadIdx.x)
        a, b, c, d = load_four(x, i)
        store_four(y, i, (d, c, b, a))

    x, y = np.arange(4 * LANES, dtype=np.uint32), np.zeros(4 * LANES, np.uint32)
    launch(kernel, 1, x, y)
    assert np.array_equal(y.reshape(-1, 4), x.reshape(-1, 4)[:, ::-1])


WAIT_FOR_ALL, WAIT_FOR_FIRST = make_wait(0), make_wait(1)

COPIED = 8 * LANES
"""Number of words that are copied."""


def copying_kernel(wait, commit=True, barrier=True, other=32, shift=0):
    """Return a kernel that copies four words per thread to shared memory, in two groups, zeros in the last thread of a warp.

    Parameters
    ----------
    wait
        What waits for the copies of the first group.
    commit, barrier
        Whether copies become groups, and whether threads wait for each other.
    other
        A thread reads what the thread with its number, exclusive or this, has copied.
    shift
        Number of words by which the copies begin too late.
    """

    def kernel(x, z):
        shared = cuda.shared.array(COPIED, uint32, alignment=16)
        thread = uint32(cuda.threadIdx.x)
        at = uint32(4) * thread
        copy_four(shared, uint32(at + uint32(shift)), x, at, thread % uint32(32) != uint32(31))
        if commit:
            commit_copies()
        copy_four(shared, uint32(at + uint32(4 * LANES)), x, at, True)
        commit_copies()
        wait()
        if barrier:
            cuda.syncthreads()
        for q in range(4):
            z[at + uint32(q)] = shared[uint32(4) * (thread ^ uint32(other)) + uint32(q)]

    return kernel


def test_asynchronous_copies():
    x, z = np.arange(1, 4 * LANES + 1, dtype=np.uint32), np.zeros(4 * LANES, np.uint32)
    expected = np.where(np.arange(LANES)[:, None] % 32 == 31, 0, x.reshape(LANES, 4))[np.arange(LANES) ^ 32]
    for wait in (WAIT_FOR_ALL, WAIT_FOR_FIRST):
        z.fill(0)
        launch(copying_kernel(wait), 1, x, z)
        assert np.array_equal(z.reshape(LANES, 4), expected)
    launch(copying_kernel(WAIT_FOR_FIRST, commit=False), 1, x, z)  # both copies are in one group, for which it does not wait
    assert (z.view(np.uint16) == 0x7FFF).all()


@pytest.mark.parametrize(
    ("bug", "message"),
    [({"barrier": False}, "a race"), ({"shift": 1}, "misaligned"), ({"shift": COPIED}, "out of bounds of shared")],
)
def test_invalid_asynchronous_copies_are_detected(bug, message):
    x, z = np.zeros(4 * LANES, np.uint32), np.zeros(4 * LANES, np.uint32)
    with pytest.raises(PtxError, match=message):
        launch(copying_kernel(WAIT_FOR_ALL, **bug), 1, x, z)


def test_asynchronous_copies_from_beyond_end_are_detected():
    x, z = np.zeros(4 * LANES - 4, np.uint32), np.zeros(4 * LANES, np.uint32)
    with pytest.raises(PtxError, match="out of bounds"):
        launch(copying_kernel(WAIT_FOR_ALL), 1, x, z)


def test_shuffle_between_lanes():
    def kernel(x, y):
        i = uint32(cuda.threadIdx.x)
        y[i] = cuda.shfl_xor_sync(0xFFFFFFFF, x[i], 3)

    x, y = np.arange(LANES, dtype=np.float32), np.zeros(LANES, np.float32)
    launch(kernel, 1, x, y)
    assert np.array_equal(y, np.arange(LANES) ^ 3)


# Kernels with bugs.


def missing_barrier(x, z):
    shared = cuda.shared.array(LANES, float32)
    thread = uint32(cuda.threadIdx.x)
    shared[thread] = x[thread]
    z[thread] = shared[uint32(LANES - 1) - thread]


def two_threads_write_one_place(x, z):
    shared = cuda.shared.array(LANES, float32)
    thread = uint32(cuda.threadIdx.x)
    shared[thread // uint32(2)] = x[thread]
    cuda.syncthreads()
    z[thread] = shared[thread // uint32(2)]


def write_while_others_read(x, z):
    shared = cuda.shared.array(LANES, float32)
    thread = uint32(cuda.threadIdx.x)
    shared[thread] = x[thread]
    cuda.syncthreads()
    z[thread] = shared[uint32(LANES - 1) - thread]
    shared[thread] = float32(0)
    cuda.syncthreads()
    z[thread] += shared[uint32(0)]


def write_beyond_end(x, z):
    z[uint32(cuda.threadIdx.x) + uint32(1)] = x[uint32(cuda.threadIdx.x)]


def write_beyond_shared_memory(x, z):
    shared = cuda.shared.array(LANES, float32)
    shared[uint32(cuda.threadIdx.x) + uint32(int32(x[0]))] = x[0]
    cuda.syncthreads()
    z[uint32(cuda.threadIdx.x)] = shared[uint32(cuda.threadIdx.x)]


def barrier_for_half_of_threads(x, z):
    thread = uint32(cuda.threadIdx.x)
    if thread < uint32(LANES // 2):
        cuda.syncthreads()
    z[thread] = x[thread]


def load_fragments_without_barrier(x, z):
    shared = cuda.shared.array(N, uint32, alignment=16)
    thread = uint32(cuda.threadIdx.x)
    for q in range(4):
        shared[uint32(4) * thread + uint32(q)] = thread
    z[thread] = float32(fragments(shared, uint32(4) * (thread ^ uint32(32)))[0])


def load_fragments_from_misaligned_place(x, z):
    shared = cuda.shared.array(N, uint32, alignment=16)
    thread = uint32(cuda.threadIdx.x)
    z[thread] = float32(fragments(shared, uint32(2) * thread)[0])


def load_fragments_from_unaligned_array(x, z):
    shared = cuda.shared.array(N, uint32)
    thread = uint32(cuda.threadIdx.x)
    z[thread] = float32(fragments(shared, uint32(4) * thread)[0])


def shuffle_by_some_lanes(x, z):
    thread = uint32(cuda.threadIdx.x)
    if thread % uint32(32) < uint32(int32(x[0])):
        z[thread] = cuda.shfl_xor_sync(0xFFFFFFFF, x[thread], 1)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (missing_barrier, "a race"),
        (two_threads_write_one_place, "a race"),
        (write_while_others_read, "a race"),
        (write_beyond_end, "out of bounds"),
        (write_beyond_shared_memory, "out of bounds of shared"),
        (barrier_for_half_of_threads, "a barrier that only some"),
        (load_fragments_without_barrier, "a race"),
        (load_fragments_from_misaligned_place, "misaligned"),
        (load_fragments_from_unaligned_array, "misaligned"),
        (shuffle_by_some_lanes, "only some threads of a warp"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_races_and_invalid_accesses_are_detected(kernel, message):
    x, z = np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
    with pytest.raises(PtxError, match=message):
        launch(kernel, 1, x, z)


def blocks_write_the_same(x, z):
    z[uint32(cuda.threadIdx.x)] = x[uint32(cuda.threadIdx.x)]


def first_block_writes_for_the_last(x, z):
    if cuda.blockIdx.x == 0:
        z[uint32(0)] = x[uint32(0)]
    if cuda.blockIdx.x == cuda.gridDim.x - 1:
        z[uint32(1)] = z[uint32(0)]


def first_block_reads_what_the_last_writes(x, z):
    if cuda.blockIdx.x == 0:
        z[uint32(1)] = z[uint32(0)]
    if cuda.blockIdx.x == cuda.gridDim.x - 1:
        z[uint32(0)] = x[uint32(0)]


def read_sum_before_all_blocks_added(x, z):
    cuda.atomic.add(z, 0, x[uint32(cuda.threadIdx.x)])
    cuda.syncthreads()
    if cuda.blockIdx.x == 0 and cuda.threadIdx.x == 0:
        z[uint32(1)] = z[uint32(0)]


def overwrite_sum_of_other_blocks(x, z):
    if cuda.blockIdx.x == cuda.gridDim.x - 1:
        z[uint32(0)] = float32(0)
    else:
        cuda.atomic.add(z, 0, x[uint32(cuda.threadIdx.x)])


@pytest.mark.parametrize("blocks", [2, 300], ids=["together", "one after the other"])
@pytest.mark.parametrize(
    "kernel",
    [
        blocks_write_the_same,
        first_block_writes_for_the_last,
        first_block_reads_what_the_last_writes,
        read_sum_before_all_blocks_added,
        overwrite_sum_of_other_blocks,
    ],
    ids=lambda kernel: kernel.__name__,
)
def test_races_between_blocks_are_detected(kernel, blocks):
    x, z = np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
    with pytest.raises(PtxError, match="a race in global memory"):
        launch(kernel, blocks, x, z)


def read_what_another_warp_writes(x, z):
    thread = uint32(cuda.threadIdx.x)
    z[thread] = x[thread]
    z[thread] += z[thread ^ uint32(32)]


def write_what_other_warps_read(x, z):
    thread = uint32(cuda.threadIdx.x)
    x[thread] = z[uint32(7)]
    if thread == uint32(7):
        z[uint32(7)] = float32(0)


def two_threads_write_one_element(x, z):
    z[uint32(cuda.threadIdx.x) // uint32(2)] = x[uint32(cuda.threadIdx.x)]


@pytest.mark.parametrize(
    "kernel",
    [read_what_another_warp_writes, write_what_other_warps_read, two_threads_write_one_element],
    ids=lambda kernel: kernel.__name__,
)
def test_races_between_threads_are_detected(kernel):
    x, z = np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
    with pytest.raises(PtxError, match="a race in global memory"):
        launch(kernel, 1, x, z)


def test_barriers_separate_accesses_of_threads():
    def kernel(x, z):
        thread = uint32(cuda.threadIdx.x)
        for _ in range(3):
            z[thread] += x[uint32(0)]
            cuda.syncthreads()
            other = z[thread ^ uint32(32)]
            cuda.syncthreads()
            z[thread] = other

    x, z = np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
    launch(kernel, 1, x, z)
    assert (z == 3).all()


def test_blocks_may_read_the_same_memory():
    def kernel(x, z):
        i = uint32(cuda.grid(1))
        z[i] = x[uint32(0)]
        z[i] += x[uint32(1)]

    x, z = np.ones(LANES, np.float32), np.zeros(300 * LANES, np.float32)
    launch(kernel, 300, x, z)
    assert (z == 2).all()


@pytest.mark.parametrize("grid", [(0,), (3, 0), (1, 65536)])
def test_invalid_grid_is_refused(grid):
    z = np.zeros(LANES, np.float32)
    with pytest.raises(PtxError, match="a grid of"):
        PtxKernel(compiled(cuda.jit(lambda z: None), (typeof(z),))).launch(grid, LANES, [z])


def test_uninitialized_shared_memory_is_nan():
    def write_three(z):
        shared = cuda.shared.array(LANES, float32)
        if uint32(cuda.threadIdx.x) < uint32(3):
            shared[uint32(cuda.threadIdx.x)] = float32(1)
        cuda.syncthreads()
        z[uint32(cuda.threadIdx.x)] = shared[uint32(cuda.threadIdx.x)]

    z = np.zeros(LANES, np.float32)
    launch(write_three, 1, z)
    assert np.isnan(z).tolist() == 3 * [False] + (LANES - 3) * [True]


PREDICATES = """
    mov.pred %p1, -1;
    not.pred %p2, %p1;
    setp.nan.f32 %p3, 0f7FC00000, 0f00000000;
    not.pred %p4, %p3;
    xor.pred %p5, %p1, %p3;
    or.pred %p6, %p2, %p4;
    or.pred %p6, %p6, %p5;
    selp.u32 %r1, 1, 2, %p6;
    mov.u32 %r2, 0x1FF;
    cvt.u8.u32 %rs1, %r2;
    cvt.u32.u16 %r3, %rs1;
    ld.param.u64 %rd1, [address];
    @%p2 st.global.u32 [%rd1], %r2;
    @!%p1 st.global.u32 [%rd1], %r2;
    st.global.u32 [%rd1+4], %r1;
    st.global.u32 [%rd1+8], %r3;
"""


def test_constant_predicates_and_narrow_conversions():
    registers = ".reg .pred %p<7>; .reg .b16 %rs<2>; .reg .b32 %r<4>; .reg .b64 %rd<2>;"
    memory = Memory()
    address = memory.take(12)
    memory.write(address, np.zeros(12, np.uint8))
    PtxKernel(f".entry k(.param .u64 address) {{ {registers} {PREDICATES} ret; }}").run(memory, (1,), 1, [np.uint64(address)])
    assert memory.read(address, 12).view(np.uint32).tolist() == [0, 2, 0xFF]


def test_unknown_instruction_is_refused():
    source = compiled(cuda.jit(lambda z: None), (typeof(np.zeros(1, np.float32)),))
    with pytest.raises(PtxError, match=r"unknown instruction wmma\.load"):
        PtxKernel(source.replace("ret;", "wmma.load 	%f1, [%rd1];\n	ret;"))


@pytest.mark.parametrize("conversion", ["cvt.rz.f16x2.f32 %r1, %f1, %f1", "cvt.rz.f32.s32 %f1, %r1", "cvt.rm.f32.u64 %f1, %rd1"])
def test_conversion_with_other_rounding_is_refused(conversion):
    registers = ".reg .b32 %r<2>; .reg .f32 %f<2>; .reg .b64 %rd<2>;"
    with pytest.raises(PtxError, match=r"unknown instruction cvt\.r"):
        PtxKernel(f".entry k() {{ {registers} {conversion}; ret; }}")


def load_and_multiply(pairs, values):
    shared = cuda.shared.array(256, uint32, alignment=16)
    a, b = fragments(shared, uint32(0)), transposed_fragments(shared, uint32(4))
    values[0] = multiply_add(a, (b[0], b[1]), (float32(0), float32(0), float32(0), float32(0)))[0]


def test_instructions_of_a_warp_are_convergent():
    """Without this mark, LLVM may move an instruction into a branch that only some lanes take."""
    types = typeof(np.zeros(2, np.uint32)), typeof(np.zeros(1, np.float32))
    code = compile_cuda(load_and_multiply, None, types, cc=(9, 0)).library.get_llvm_str()
    calls = [line for line in code.splitlines() if " asm " in line]
    assert [re.search(r"ldmatrix\S+x4(\.trans)?|mma", call)[0].count(".trans") for call in calls] == [0, 1, 0]
    assert all(call.endswith(" convergent") for call in calls)
