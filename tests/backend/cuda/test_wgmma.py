"""wgmma in the PTX interpreter equals NumPy for descriptors that are written by hand, and products with it round as others."""

import numpy as np
import pytest
from devices import gpu_backend
from ptx_interpreter import PtxError
from ptx_kernel import PtxKernel
from ptx_memory import Memory
from rounding import RoundingBackend
from tolerances import SAME_ROUNDING, assert_close

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from numba import cuda
from test_mixed import operations

from fflm.errors import FflmError

COLUMNS, COUNT = 136, 68
"""Columns of the product, beyond two atoms of 64, and numbers of a thread."""

BYTES, B = 2**15, 2**13
"""Size of the matrices in shared memory, and where the second one begins."""

FENCE, PUBLISH = "wgmma.fence.sync.aligned;", "fence.proxy.async.shared::cta;"
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"


def source(transposed=(0, 0)):
    """Return a kernel for 128 threads that copies bytes to shared memory, multiplies matrices there, and stores all sums."""
    sums = [f"%f{i}" for i in range(COUNT)]
    clear = "\n".join(f"mov.f32 {each}, 0f00000000;" for each in sums)
    operands = f"{{{','.join(sums)}}}, %rd2, %rd3, %p1, 1, 1, {transposed[0]}, {transposed[1]}"
    store = "\n".join(f"st.global.f32 [%rd9+{4 * i}], {each};" for i, each in enumerate(sums))
    return f"""
.visible .entry multiply(.param .u64 x, .param .u64 z, .param .u64 a, .param .u64 b)
{{
.reg .pred %p<2>;
.reg .b32 %r<6>;
.reg .b64 %rd<10>;
.reg .f32 %f<{COUNT}>;
.shared .align 1024 .b8 matrices[{BYTES}];
ld.param.u64 %rd0, [x];
ld.param.u64 %rd1, [z];
ld.param.u64 %rd2, [a];
ld.param.u64 %rd3, [b];
mov.u32 %r0, %tid.x;
mov.u32 %r1, matrices;
shl.b32 %r2, %r0, 2;
$copy:
cvt.u64.u32 %rd4, %r2;
add.s64 %rd5, %rd0, %rd4;
ld.global.u32 %r3, [%rd5];
add.s32 %r4, %r1, %r2;
st.shared.u32 [%r4], %r3;
add.s32 %r2, %r2, 512;
setp.lt.u32 %p0, %r2, {BYTES};
@%p0 bra $copy;
{PUBLISH}
bar.sync 0;
cvt.u64.u32 %rd6, %r1;
shr.u64 %rd6, %rd6, 4;
add.s64 %rd2, %rd2, %rd6;
add.s64 %rd3, %rd3, %rd6;
setp.eq.b32 %p1, 0, 0;
{clear}
{FENCE}
wgmma.mma_async.sync.aligned.m64n{COLUMNS}k16.f32.f16.f16 {operands};
{COMMIT}
{WAIT}
bar.sync 0;
mul.lo.u32 %r5, %r0, {4 * COUNT};
cvt.u64.u32 %rd8, %r5;
add.s64 %rd9, %rd1, %rd8;
{store}
ret;
}}
"""


def lay_out(memory, matrix, transposed):
    """Write a matrix (lines, 16) of halves to bytes as the PTX ISA says (9.7.15.5.1.2); return its descriptor (9.7.15.5.1.2.2).

    If K is contiguous, eight lines of 128 bytes each are an atom, of which these are the bytes 32 to 63. Otherwise an atom has 64
    lines, which are contiguous, at eight places along K. The atoms lie apart, in an order of their own. Within 1,024 bytes, the
    bits 4 to 6 of an address are changed by an exclusive or with the bits 7 to 9.
    """
    lines = np.arange(len(matrix))[:, None]
    inner = np.arange(16)[None, :]
    if transposed:
        start, leading, stride = 0, 5 * 1024, 2 * 1024
        address = lines // 64 * leading + lines % 64 * 2 + inner // 8 * stride + inner % 8 * 128
    else:
        start, leading, stride = 32, 16, 1024
        address = start + lines // 8 * stride + lines % 8 * 128 + inner * 2
    memory.view(np.float16)[(address ^ (address >> 7 & 7) << 4) // 2] = matrix
    return start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | 1 << 62


def multiply(text, transposed=(0, 0), change=0):
    """Run a kernel of `source`; return its product and the expected one. ``change`` is added to the descriptor of B."""
    generator = np.random.default_rng(0)
    left, right = ((generator.integers(-9, 10, (lines, 16)) / 2).astype(np.float16) for lines in (64, COLUMNS))
    content = np.full(BYTES // 2, np.nan, np.float16).view(np.uint8)
    a, b = lay_out(content[:B], left, transposed[0]), lay_out(content[B:], right, transposed[1]) + (B >> 4)
    memory = Memory()
    x, z = memory.take(BYTES), memory.take(128 * 4 * COUNT)
    memory.write(x, content)
    PtxKernel(text).run(memory, (1,), 128, [np.uint64(each) for each in (x, z, a, b + change)])
    found = (
        memory.read(z, 128 * 4 * COUNT).view(np.float32).reshape(4, 8, 4, COLUMNS // 8, 2, 2)
    )  # warp, g, t, piece, half, number
    product = found.transpose(0, 4, 1, 3, 2, 5).reshape(64, COLUMNS)
    return product, left.astype(np.float64) @ right.astype(np.float64).T


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_product_of_descriptors_equals_numpy(transposed):
    found, expected = multiply(source(transposed), transposed)
    assert np.array_equal(found, expected)


def test_wrong_descriptors_give_wrong_products():
    with pytest.raises(PtxError, match="out of bounds of shared"):  # the atoms of eight columns seem to be as far as those of 64
        multiply(source((0, 0)), (0, 1))
    for change in (1, 1 << 16, 1 << 32):  # the address, and the distances of atoms
        assert not np.array_equal(*multiply(source((0, 1)), (0, 1), change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FENCE, "wgmma without a fence"),
        (PUBLISH, "without a fence of the asynchronous proxy"),
        (COMMIT, "not waited for"),
        (WAIT, "not waited for"),
        ("bar.sync 0;\ncvt", "a race in shared memory"),
    ],
)
def test_missing_synchronization_is_detected(text, message):
    with pytest.raises(PtxError, match=message):
        multiply(source().replace(text, "cvt" if "cvt" in text else ""))
    with pytest.raises(PtxError, match="an unknown descriptor"):
        multiply(source(), change=1 << 62)  # the swizzle of 64 bytes


def test_products_in_progress_read_shared_memory_and_have_no_sums_yet():
    """A product reads its operands until it is waited for, after a barrier, too; then the sums contain all products."""
    other = "wgmma.wait_group.sync.aligned 1;"
    written = "bar.sync 0;\nsetp.eq.u32 %p0, %r0, 5;\n@%p0 st.shared.u32 [%r1+32], %r0;\n"
    once = source()
    product = once[once.index("wgmma.mma_async") : once.index(COMMIT)] + COMMIT
    twice = once.replace(WAIT, f"{FENCE}\n{product}\n{other}\n{WAIT}")
    found, expected = multiply(twice)
    assert np.array_equal(found, 2 * expected)
    assert np.isnan(multiply(twice.replace(WAIT, "").replace("ret;", f"{WAIT}\nret;"))[0]).all()  # the first product is done
    with pytest.raises(PtxError, match="a race in shared memory"):
        multiply(twice.replace(other, written))
    with pytest.raises(PtxError, match="a race in shared memory"):
        multiply(twice.replace(other, other + written))
    assert np.array_equal(*multiply(once.replace(WAIT, f"{WAIT}\n{written}")))


@pytest.mark.parametrize(("rows", "words", "size"), [(3, 127, 7), (140, 300, 330)])
def test_operations_with_wgmma_round_in_same_places_as_numpy(rows, words, size):
    """The larger size has more than a tile in each dimension, and more steps than stages."""
    gpu_backend()
    if cuda.get_current_device().compute_capability != (9, 0):
        pytest.skip("the GPU has no wgmma")
    backend = gpu_backend("mixed", wgmma=True)
    sizes = rows, words, size
    for (found, unit), (expected, _) in zip(operations(backend, *sizes), operations(RoundingBackend(), *sizes), strict=True):
        assert_close(found, expected, SAME_ROUNDING, unit=unit)


def test_wgmma_needs_compute_capability_9_0(monkeypatch):
    gpu_backend()
    monkeypatch.setattr(cuda.get_current_device(), "compute_capability", (8, 0))
    with pytest.raises(FflmError, match=r"wgmma needs a GPU with compute capability 9\.0"):
        gpu_backend("mixed", wgmma=True)
