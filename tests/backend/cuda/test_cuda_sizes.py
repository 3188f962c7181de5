"""CUDA kernels at sizes beyond a block, a tile or 32 bits: where threads and blocks do more than one turn of a loop.

On the fake driver the sizes are the smallest that reach the second turn; on a real GPU they are those of large networks.
"""

import devices
import numpy as np
import pytest
import reference
from devices import gpu_backend
from tolerances import FLOAT32, HALF_SLOPES, PRODUCT, SINGLE_SOFTMAX, UPDATE, assert_close

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from numba import cuda, float32, typeof, uint32

from fflm.backend.cuda import backend as cuda_backend
from fflm.backend.cuda import kernels
from fflm.backend.cuda.backend import softmax_bytes
from fflm.backend.cuda.intrinsics import commit_copies, copy_four, make_wait
from fflm.backend.cuda.launching import BLOCK
from fflm.backend.cuda.products import flat_index, read_four
from fflm.backend.cuda.single import add_four
from fflm.backend.protocol import StepNumbers

BACKEND = gpu_backend("mixed" if devices.mixed else "fp32")

REAL = devices.device == "cuda"


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def on_gpu(*arrays):
    """Return the arrays on the device."""
    return [BACKEND.upload(array) for array in arrays]


def as_float64(*arrays):
    return [array.astype(np.float64) for array in arrays]


# The softmax.


def test_statistics_of_more_tiles_than_threads_are_combined():
    tiles, rows = BLOCK + 44, 2
    highest, totals, ones = normal(rows, tiles), 1 + np.abs(normal(rows, tiles)), np.ones((rows, 1), np.float32)
    highest[1, -1] = 200  # beyond the first turn of the loop; its exponential would overflow without the maximum
    log_z = np.log((totals * np.exp(highest.astype(np.float64))).sum(1))
    there, sums, normalizers, losses = on_gpu(highest, totals, np.zeros(rows, np.float32), np.zeros(rows, np.float32))
    BACKEND._launch(kernels.normalize_rows, rows, there, sums, normalizers)
    assert_close(BACKEND.download(normalizers), log_z, SINGLE_SOFTMAX)
    hidden, weight, bias, targets = on_gpu(ones, ones[:1], ones[0], np.zeros(rows, np.int32))
    numbers = map(cuda_backend.c_float, (0.0, 1.0))
    BACKEND._launch(kernels.finish_softmax, rows, hidden, weight, bias, targets, there, sums, *numbers, losses)
    assert_close(BACKEND.download(losses), log_z - 2, SINGLE_SOFTMAX)
    assert_close(BACKEND.download(sums), np.exp(highest - log_z[:, None]), SINGLE_SOFTMAX)


@pytest.mark.parametrize(("rows", "words", "size"), [(1000, 33_279, 200), (256, 131_075, 64)] if REAL else [(130, 131, 130)])
def test_softmax_of_several_tiles_of_rows_words_and_features(rows, words, size):
    """With a second tile of features, two blocks read the gradients whose sums are those of the bias, and one may write them."""
    features, weight, bias, targets = normal(rows, size), normal(words, size) / 8, normal(words), np.arange(rows) * 7 % words
    targets = targets.astype(np.int32)
    exact = *as_float64(features, weight, bias), targets
    arrays, results = on_gpu(features, weight, bias, targets), on_gpu(normal(rows), features, weight, bias)
    BACKEND.output_gradients(*arrays, 0.1, 0.05, 1 / rows, 0.5, *results)
    losses, *gradients = map(BACKEND.download, results)
    tolerance = 20 * HALF_SLOPES if devices.mixed else SINGLE_SOFTMAX
    assert_close(losses, reference.output_losses(*exact), tolerance)
    expected = reference.output_gradients(*exact, 0.1, 0.05, 1 / rows)
    for found, before, wanted in zip(gradients, (0, weight, bias), expected, strict=True):
        assert_close(found - 0.5 * np.asarray(before, np.float64), wanted, tolerance, unit=1 / rows)
    again = on_gpu(normal(rows), features, weight, bias)
    BACKEND.output_gradients(*arrays, 0.1, 0.05, 1 / rows, 0.5, *again)
    for found, wanted in zip(map(BACKEND.download, again), (losses, *gradients), strict=True):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("gigabytes", "mixed", "expected"),
    [(1, False, 1), (24, False, 3), (141, False, 8), (4, True, 2), (24, True, 6), (141, True, 8)],
)
def test_memory_of_softmax_grows_with_that_of_the_gpu(gigabytes, mixed, expected):
    assert softmax_bytes(gigabytes * 2**30, mixed) == expected * 2**30


def test_backend_asks_for_the_memory_of_the_gpu(monkeypatch):
    monkeypatch.setattr(cuda_backend, "memory_size", lambda: 32 * 2**30)
    mixed = gpu_backend("mixed")
    assert (mixed.softmax_bytes, mixed.full_precision.softmax_bytes) == (8 * 2**30, 4 * 2**30)


# Reductions.


@pytest.mark.parametrize("shape", [(300, 40), (2, 33)])
def test_sums_of_columns_in_parts_of_rows(shape):
    values, before = normal(*shape), normal(shape[1])
    (sums,) = on_gpu(before)
    BACKEND._column_sums(*on_gpu(values), 0.5, sums)
    assert_close(BACKEND.download(sums), values.astype(np.float64).sum(0) + 0.5 * before, PRODUCT[FLOAT32])


@pytest.fixture(params=[1, 2, BLOCK + 44])
def parts(request, monkeypatch):
    """Let at most so many blocks reduce an array; return the size of an array for which each does several turns."""
    if REAL:
        return cuda_backend.PARTS * BLOCK * request.param + 9
    monkeypatch.setattr(cuda_backend, "PARTS", request.param)
    return request.param * BLOCK + 300


def test_norm_of_more_numbers_than_threads(parts):
    values, few, (factor,) = normal(parts), 100 * normal(3), on_gpu(np.zeros(1, np.float32))
    BACKEND.clip_factor(on_gpu(few, values, few), 1e-3, factor)
    norm = np.linalg.norm(np.concatenate(as_float64(few, values, few)))
    assert_close(BACKEND.download(factor), [1e-3 / norm], PRODUCT[FLOAT32])


def test_update_of_more_numbers_than_threads(parts):
    several = [normal(5), normal(parts), normal(3)]
    weights, gradients, firsts, (scale,) = on_gpu(*several), on_gpu(*several), on_gpu(*several), on_gpu(np.ones(1, np.float32))
    numbers = BACKEND.place(StepNumbers(rate=0.1))
    BACKEND.momentum_step(weights, gradients, firsts, scale=scale, l2=0.5, numbers=numbers, momentum=0.9, nesterov=False)
    for found, velocity, values in zip(weights, firsts, as_float64(*several), strict=True):
        expected = reference.momentum_step(values, values, values, scale=1, l2=0.5, rate=0.1, momentum=0.9, nesterov=False)
        assert_close(BACKEND.download(found), expected[0], UPDATE[FLOAT32])
        assert_close(BACKEND.download(velocity), expected[1], UPDATE[FLOAT32])


@pytest.mark.parametrize("place", [0, 300, -1])
def test_scale_is_that_of_the_largest_number_and_nan_if_one_is(parts, place):
    values, (scales,) = normal(parts), on_gpu(np.zeros(2, np.float32))
    for number, expected in ((-1000.0, [2.0**31, 2.0**-31]), (np.nan, [2.0**40, np.nan]), (np.inf, [2.0**40, np.nan])):
        values[place] = number
        BACKEND._choose_scales(*on_gpu(values), 40, scales)
        np.testing.assert_array_equal(BACKEND.download(scales), np.float32(expected))


# Rows that are longer than a block.


SIZE = BLOCK + 44


@pytest.mark.parametrize("blocks", [(1, 1), (2,)])
def test_embeddings_larger_than_a_block(blocks):
    contexts, embeddings = np.array([[0, 4], [3, -1], [4, 4]], np.int32), normal(5, SIZE)
    inputs, d_inputs = np.full((3, len(blocks) * SIZE), np.nan, np.float32), normal(3, len(blocks) * SIZE)
    words, table, gathered, gradients, total = on_gpu(contexts, embeddings, inputs, d_inputs, embeddings)
    BACKEND.gather(table, words, blocks, gathered)
    assert_close(BACKEND.download(gathered), reference.gather(embeddings.astype(np.float64), contexts, blocks), PRODUCT[FLOAT32])
    BACKEND.scatter_add(words, blocks, gradients, total)
    expected = reference.scatter_add(contexts, blocks, *as_float64(d_inputs, embeddings))
    assert_close(BACKEND.download(total), expected, PRODUCT[FLOAT32])
    weights, d_weights = normal(2, len(embeddings))
    there, of_weights, total = on_gpu(weights, d_weights, embeddings)
    BACKEND.gather(table, words, blocks, gathered, there)
    right = reference.gather(embeddings.astype(np.float64), contexts, blocks, weights)
    assert_close(BACKEND.download(gathered), right, PRODUCT[FLOAT32])
    BACKEND.scatter_add(words, blocks, gradients, total, (table, there, of_weights))
    expected = reference.scatter_add(contexts, blocks, *as_float64(d_inputs, embeddings), weights)
    assert_close(BACKEND.download(total), expected, PRODUCT[FLOAT32])
    expected = reference.add_weight_gradients(contexts, blocks, *as_float64(d_inputs, embeddings, d_weights))
    assert_close(BACKEND.download(of_weights), expected, PRODUCT[FLOAT32])


def test_sum_of_many_large_numbers_does_not_overflow():
    """The sum of a word that is in all rows is an integer of 63 bits at most."""
    rows = 2**22 if REAL else 2**9
    largest = np.nextafter(np.float32(2), np.float32(0))
    contexts, values, total = on_gpu(*(np.full((rows, 1), x, t) for x, t in ((0, np.int32), (largest, np.float32))), normal(2, 1))
    BACKEND.scatter_add(contexts, (1,), values, total)
    assert_close(BACKEND.download(total)[0], normal(2, 1)[0] + rows * float(largest), PRODUCT[FLOAT32])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_maximum_of_numbers_with_nan_is_nan(place):
    embeddings, words = normal(3, 2), np.array([[0, 1, 2]], np.int32)
    embeddings[place, 1] = np.nan
    pooled, sources = on_gpu(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int32))
    BACKEND.max_pool(*on_gpu(embeddings, words), pooled, sources)
    assert np.isnan(BACKEND.download(pooled)).tolist() == [[False, True]]


# Halves.


def test_largest_gradients_stay_finite_as_halves():
    """The largest gradient is scaled to just below 2^15; at twice that, rounding would make it infinite."""
    backend, largest = gpu_backend("mixed"), np.nextafter(np.float32(2), np.float32(0))
    ones, d_outputs = np.ones((3, 2), np.float32), np.full((3, 2), largest)
    arrays = on_gpu(ones, np.ones((2, 2), np.float32), ones, d_outputs, normal(2, 2), normal(2), normal(3, 2))
    inputs, weight, outputs, d_outputs, d_weight, d_bias, d_inputs = arrays
    backend.affine_backward(inputs, weight, outputs, "identity", d_outputs, 0.0, d_weight, d_bias, d_inputs)
    np.testing.assert_array_equal(backend.download(d_weight), np.full((2, 2), 6))
    np.testing.assert_array_equal(backend.download(d_inputs), np.full((3, 2), 4))


@pytest.mark.parametrize(("penalty", "log_z"), [(0.0, 0.0), (1.0, 31.0)])
def test_largest_gradients_of_logits_stay_finite_as_halves(penalty, log_z):
    """The gradient is -1 at an improbable target; with the penalty on normalizers, it is up to 64 (`mixed.SLOPE`)."""
    backend = gpu_backend("mixed")
    features, weight, bias = np.ones((1, 1), np.float32), np.zeros((2, 1), np.float32), np.float32([log_z, log_z - 99])
    results = on_gpu(normal(1), features, weight, bias)
    targets = np.ones(1, np.int32)
    backend.output_gradients(*on_gpu(features, weight, bias, targets), 0.0, penalty, 1.0, 0.0, *results)
    slopes = np.float32([1 + 2 * penalty * log_z, -1])
    assert_close(backend.download(results[0]), [99.0], SINGLE_SOFTMAX)
    assert_close(backend.download(results[2])[:, 0], slopes, HALF_SLOPES)
    assert_close(backend.download(results[3]), slopes, HALF_SLOPES)


# Addresses beyond 32 bits.


wait_for_copies = make_wait(0)


@cuda.jit
def double_numbers(matrix, halves, line):
    """Double the numbers and the pairs 4 to 7 of a line of two matrices, read and written as products do."""
    shared = cuda.shared.array(4, uint32, alignment=16)
    add_four(matrix, line, uint32(4), read_four(matrix, line, uint32(4)), float32(1))
    copy_four(shared, uint32(0), halves, flat_index(halves, line, uint32(4)), True)
    commit_copies()
    wait_for_copies()
    for q in range(4):
        halves[line, uint32(4 + q)] = uint32(2) * shared[uint32(q)]


@pytest.mark.skipif(REAL, reason="the matrix takes 17 GB")
def test_products_access_matrices_of_more_than_2_to_the_32_numbers():
    """Only the last line of the matrices exists; the addresses at which they begin are far below zero."""
    from ptx_kernel import PtxKernel
    from ptx_memory import Memory

    memory, line, lines, arguments = Memory(), np.arange(8, dtype=np.uint32), 2**30, []
    addresses = []
    for numbers in (line.astype(np.float32), line):
        addresses.append(memory.take(numbers.nbytes))
        memory.write(addresses[-1], numbers.view(np.uint8))
        start = addresses[-1] - (lines - 1) * numbers.nbytes
        arguments += [0, 0, numbers.size * lines, 4, start, lines, numbers.size, numbers.nbytes, 4]
    types = tuple(map(typeof, (np.zeros((1, 1), np.float32), np.zeros((1, 1), np.uint32), np.uint32(0))))
    kernel = PtxKernel(devices.compiled(double_numbers, types))
    values = [*arguments, lines - 1]
    kernel.run(memory, (1,), 1, [dtype.type(value % 2**64) for dtype, value in zip(kernel.types, values, strict=True)])
    for address, dtype in zip(addresses, (np.float32, np.uint32), strict=True):
        assert memory.read(address, 32).view(dtype).tolist() == [0, 1, 2, 3, 8, 10, 12, 14]
