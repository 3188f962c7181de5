"""Every backend operation is compared with the reference, for all dtypes, odd sizes, numbers of threads, NaN and infinity."""

import inspect
from typing import Any

import numba
import numpy as np
import pytest
import reference
from devices import NumpyBackend, backend_under_test, device, mixed, precision, tile
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import ACTIVATION, FLOAT32, NORMALIZE, PRODUCT, SOFTMAX, UPDATE, assert_close

from fflm.backend.common import adam_corrections
from fflm.backend.cpu import backend as cpu_backend
from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import (
    ACTIVATIONS,
    UNIT_LOSSES,
    Activation,
    ActivationFunction,
    Backend,
    Dropout,
    StepNumbers,
    UnitLoss,
)

TILE = tile()

BACKEND = backend_under_test()
"""One backend is shared by all tests, so that its scratch memory holds the results of earlier ones."""

# (rows, words, hidden): they are 1; they are below, at and above the size of a tile, or no multiple of it; there are fewer rows
# or tiles than threads; an inner dimension has several parts.
OUTPUT_SIZES = [
    (1, 1, 1),
    (1, TILE + 1, 5),
    (2, 3, 4),
    (3, TILE - 1, 7),
    (17, TILE, 16),
    (5, TILE + 1, 3),
    (33, 3 * TILE + 7, 10),
]
LAYER_SIZES = [(1, 1, 1), (1, 7, 3), (3, 5, 2), (2, 1, 9), (17, 33, 70), (300, 5, 6)]

same_kernels_in_fp32 = pytest.mark.skipif(mixed, reason="--precision fp32 tests the same kernels")
"""Marks tests of operations that are not matrix products."""


def normal(generator: np.random.Generator, *shape: int, dtype: np.dtype, size: float = 1.0) -> np.ndarray:
    return (size * generator.normal(size=shape)).astype(dtype)


def as_float64(*arrays: np.ndarray) -> list[np.ndarray]:
    """Return the arrays in float64, for the reference."""
    return [array.astype(np.float64) for array in arrays]


def previous_contents(like: np.ndarray, beta: float, generator: np.random.Generator) -> np.ndarray:
    """Return what a result's array holds before: NaN if it is overwritten (``beta`` is 0), random numbers if it is added to."""
    return np.full_like(like, np.nan) if beta == 0 else normal(generator, *like.shape, dtype=like.dtype)


def test_backend_has_signatures_of_protocol() -> None:
    """The backend has all operations of the protocol, with the same signatures."""
    assert isinstance(BACKEND.name, str)
    tested = type(BACKEND.backend if isinstance(BACKEND, NumpyBackend) else BACKEND)
    for name, method in inspect.getmembers(Backend, inspect.isfunction):
        if name.startswith("_"):
            continue
        wanted, offered = (inspect.signature(function) for function in (method, getattr(tested, name)))
        assert len(wanted.parameters) == len(offered.parameters), name
        for left, right in zip(wanted.parameters.values(), offered.parameters.values(), strict=True):
            assert left == right, name
        assert wanted.return_annotation == offered.return_annotation, name


# Embeddings.


@same_kernels_in_fp32
@pytest.mark.parametrize("blocks", [(1,), (1, 1, 1), (2,), (19, 1, 9, 1)], ids=str)
@pytest.mark.parametrize(("rows", "words", "size"), [(1, 1, 1), (1, 4, 5), (2, 3, 1), (33, 50, 7)])
def test_gather_and_scatter_add(rows: int, words: int, size: int, blocks: tuple[int, ...], dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    contexts = generator.integers(-1, words + 1, (rows, sum(blocks)), np.int32)
    contexts[0], contexts[-1, -1] = 0, words
    contexts[rows // 2, 0] = -1  # no word
    embeddings = normal(generator, words + 1, size, dtype=dtype)
    inputs = np.full((rows, len(blocks) * size), np.nan, dtype)
    BACKEND.gather(embeddings, contexts, blocks, inputs)
    assert_close(inputs, reference.gather(embeddings.astype(np.float64), contexts, blocks), PRODUCT[dtype])
    if set(blocks) == {1}:
        assert np.array_equal(inputs.reshape(rows, -1, size), np.where(contexts[:, :, None] < 0, 0, embeddings[contexts]))

    d_inputs, d_embeddings = normal(generator, *inputs.shape, dtype=dtype), normal(generator, words + 1, size, dtype=dtype)
    expected = reference.scatter_add(contexts, blocks, *as_float64(d_inputs, d_embeddings))
    BACKEND.scatter_add(contexts, blocks, d_inputs, d_embeddings)
    assert_close(d_embeddings, expected, PRODUCT[dtype])


@same_kernels_in_fp32
@pytest.mark.parametrize("blocks", [(1, 1), (3,), (19, 1, 9, 1)], ids=str)
@pytest.mark.parametrize(("rows", "words", "size"), [(1, 1, 1), (33, 50, 7)])
def test_weighted_averages(rows: int, words: int, size: int, blocks: tuple[int, ...], dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    contexts = generator.integers(-1, words + 1, (rows, sum(blocks)), np.int32)
    contexts[0], contexts[-1, -1] = 0, words
    embeddings, d_embeddings = normal(generator, 2, words + 1, size, dtype=dtype)
    weights, d_weights = normal(generator, 2, words + 1, dtype=dtype)
    inputs, d_inputs = (
        np.full((rows, len(blocks) * size), np.nan, dtype),
        normal(generator, rows, len(blocks) * size, dtype=dtype),
    )
    BACKEND.gather(embeddings, contexts, blocks, inputs, weights)
    assert_close(inputs, reference.gather(embeddings.astype(np.float64), contexts, blocks, weights), PRODUCT[dtype])

    expected = reference.scatter_add(contexts, blocks, *as_float64(d_inputs, d_embeddings), weights)
    of_weights = reference.add_weight_gradients(contexts, blocks, *as_float64(d_inputs, embeddings, d_weights))
    BACKEND.scatter_add(contexts, blocks, d_inputs, d_embeddings, (embeddings, weights, d_weights))
    assert_close(d_embeddings, expected, PRODUCT[dtype])
    assert_close(d_weights, of_weights, PRODUCT[dtype])


def random_texts(generator: np.random.Generator, rows: int, longest: int, words: int) -> np.ndarray:
    """Return the words (rows, longest) of texts of random lengths, padded with -1; the first text has the greatest length."""
    result = generator.integers(0, words + 1, (rows, longest), np.int32)
    lengths = generator.integers(0, longest + 1, rows)
    lengths[0] = longest
    result[np.arange(longest) >= lengths[:, None]] = -1
    return result


@same_kernels_in_fp32
@pytest.mark.parametrize(
    ("rows", "longest", "words", "size"), [(1, 1, 1, 1), (1, 4, 5, 3), (2, 1, 3, 1), (33, 9, 20, 7), (70, 3, 2, 300)]
)
def test_mean_pool_and_max_pool(rows: int, longest: int, words: int, size: int, dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    text, embeddings = random_texts(generator, rows, longest, words), normal(generator, words + 1, size, dtype=dtype)
    embeddings[words] = embeddings[0]  # so that a maximum may be reached by two words
    pooled, d_pooled = np.full((rows, size), np.nan, dtype), normal(generator, rows, size, dtype=dtype)
    d_embeddings = normal(generator, words + 1, size, dtype=dtype)

    BACKEND.mean_pool(embeddings, text, pooled)
    assert_close(pooled, reference.mean_pool(embeddings.astype(np.float64), text), PRODUCT[dtype], unit=1.0)
    expected = reference.mean_pool_backward(text, *as_float64(d_pooled, d_embeddings))
    total = d_embeddings.copy()
    BACKEND.mean_pool_backward(text, d_pooled, total)
    assert_close(total, expected, PRODUCT[dtype])

    sources = np.full((rows, size), 77, np.int32)
    BACKEND.max_pool(embeddings, text, pooled, sources)
    expected, expected_sources = reference.max_pool(embeddings, text)
    assert np.array_equal(pooled, expected)
    assert np.array_equal(sources, expected_sources)
    expected = reference.max_pool_backward(sources, *as_float64(d_pooled, d_embeddings))
    BACKEND.max_pool_backward(sources, d_pooled, d_embeddings)
    assert_close(d_embeddings, expected, PRODUCT[dtype])


@same_kernels_in_fp32
@pytest.mark.parametrize("place", [0, 1, 2])
def test_pools_propagate_nan(place: int, dtype: np.dtype) -> None:
    embeddings, text = np.arange(12, dtype=dtype).reshape(4, 3), np.array([[0, 1, 2], [3, 3, -1]], np.int32)
    embeddings[place, 1] = np.nan
    for pool in (BACKEND.mean_pool, lambda *arrays: BACKEND.max_pool(*arrays, np.zeros((2, 3), np.int32))):
        pooled = np.zeros((2, 3), dtype)
        pool(embeddings, text, pooled)
        assert np.array_equal(np.isnan(pooled), [[False, True, False], [False] * 3])


@same_kernels_in_fp32
def test_put_rows(dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    array, values = normal(generator, 50, 7, dtype=dtype), normal(generator, 33, 7, dtype=dtype)
    rows = generator.permutation(50)[:33].astype(np.int32)
    rows[[0, 7, 32]] = -1
    expected = reference.put_rows(values[rows >= 0], rows[rows >= 0], array)
    BACKEND.put_rows(values, rows, array)
    assert np.array_equal(array, expected)


# Dropout.


@same_kernels_in_fp32
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 6), (3, 5), (33, 31), (70, 129)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.97])
def test_dropout(rows: int, width: int, rate: float, dtype: np.dtype, threads: int) -> None:
    numbers = {"rate": rate, "seed": 3 * 2**32 + 1, "step": 2**40 + 2**32 - 1, "layer": 2}
    values = normal(np.random.default_rng(0), rows, width, dtype=dtype)
    expected = reference.dropout(values.astype(np.float64), **numbers)
    dropped = np.full_like(values, np.nan)
    dropout = Dropout(numbers["rate"], numbers["seed"], BACKEND.place(StepNumbers(numbers["step"])), numbers["layer"])
    BACKEND.dropout(values, dropout, 0, dropped)
    assert np.array_equal(dropped == 0, expected == 0)
    assert_close(dropped, expected, PRODUCT[dtype], unit=1.0)
    for row in range(0, rows, 4):  # the result is the same in parts, and in place
        part = values[row : row + 4].copy()
        BACKEND.dropout(part, dropout, row, part)
        assert np.array_equal(part, dropped[row : row + 4])


# Layers.


FUNCTIONS = (*ACTIVATIONS, ("leaky_relu", 0.2), ("leaky_relu", 0.0), ("elu", 0.3), ("tanh", 0.3))


@pytest.mark.parametrize("activation", FUNCTIONS, ids=str)
def test_activations(activation: ActivationFunction, dtype: np.dtype) -> None:
    points = 3001 if device != "ptx" else 301  # the PTX interpreter computes a whole tile of columns for this one
    z = np.concatenate([np.linspace(-30, 30, points), [-1e4, -1e2, -90, -1e-3, -1e-7, 1e-7, 1e-3, 90, 1e2, 1e4]])
    z = z.astype(dtype)[:, None]
    outputs, one, nothing = np.empty_like(z), np.ones((1, 1), dtype), np.zeros(1, dtype)
    BACKEND.affine(z, one, nothing, activation, outputs)
    expected = reference.activate(activation, z.astype(np.float64))
    assert (np.abs(outputs - expected) <= ACTIVATION[dtype] * np.maximum(1, np.abs(expected))).all()

    slopes, weight_sum, bias_sum = np.empty_like(z), np.empty_like(one), np.empty_like(nothing)
    BACKEND.affine_backward(z, one, outputs, activation, np.ones_like(z), 0.0, weight_sum, bias_sum, slopes)
    assert_close(slopes, reference.slope(activation, z.astype(np.float64)), 2 * ACTIVATION[dtype])


@pytest.mark.parametrize("activation", FUNCTIONS, ids=str)
@pytest.mark.parametrize("sizes", LAYER_SIZES, ids=str)
def test_affine(sizes: tuple[int, int, int], activation: ActivationFunction, dtype: np.dtype, threads: int) -> None:
    rows, width, outputs_width = sizes
    generator = np.random.default_rng(0)
    inputs, weight = normal(generator, rows, width, dtype=dtype), normal(generator, outputs_width, width, dtype=dtype)
    bias = normal(generator, outputs_width, dtype=dtype)
    outputs = np.full((rows, outputs_width), np.nan, dtype)
    BACKEND.affine(inputs, weight, bias, activation, outputs)
    assert_close(outputs, reference.affine(*as_float64(inputs, weight, bias), activation), PRODUCT[dtype], unit=1.0)

    d_outputs = normal(generator, rows, outputs_width, dtype=dtype)
    expected = reference.affine_backward(*as_float64(inputs, weight, bias), activation, d_outputs.astype(np.float64))
    for beta in (0.0, 1.0):
        d_weight, d_bias = previous_contents(weight, beta, generator), previous_contents(bias, beta, generator)
        before = as_float64(d_weight, d_bias) if beta else (0, 0)
        d_inputs = np.full_like(inputs, np.nan)
        BACKEND.affine_backward(inputs, weight, outputs, activation, d_outputs.copy(), beta, d_weight, d_bias, d_inputs)
        assert_close(d_weight, before[0] + expected[0], PRODUCT[dtype], unit=1.0)
        assert_close(d_bias, before[1] + expected[1], PRODUCT[dtype], unit=1.0)
        assert_close(d_inputs, expected[2], PRODUCT[dtype], unit=1.0)


def test_affine_of_single_row_with_zero_stride(dtype: np.dtype) -> None:
    generator = np.random.default_rng(0)
    inputs, d_outputs = normal(generator, 5, dtype=dtype)[None], normal(generator, 7, dtype=dtype)[None]
    weight, bias = normal(generator, 7, 5, dtype=dtype), np.zeros(7, dtype)
    outputs = np.empty((1, 7), dtype)
    BACKEND.affine(inputs, weight, bias, "tanh", outputs)
    expected = reference.affine_backward(*as_float64(inputs, weight, bias), "tanh", d_outputs.astype(np.float64))
    found = np.empty_like(weight), np.empty_like(bias), np.empty_like(inputs)
    assert inputs.strides[0] == 0
    BACKEND.affine_backward(inputs, weight, outputs, "tanh", d_outputs, 0.0, *found)
    for left, right in zip(found, expected, strict=True):
        assert_close(left, right, PRODUCT[dtype], unit=1.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_affine_propagates_nan(activation: Activation, dtype: np.dtype) -> None:
    inputs = np.ones((9, 5), dtype)
    inputs[4, 2] = np.nan
    outputs = np.empty((9, 6), dtype)
    BACKEND.affine(inputs, np.ones((6, 5), dtype), np.zeros(6, dtype), activation, outputs)
    assert np.array_equal(np.isnan(outputs).all(1), np.arange(9) == 4)
    assert np.isfinite(np.delete(outputs, 4, 0)).all()


# Sums and normalization.


@same_kernels_in_fp32
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 6), (3, 5), (33, 70)])
def test_add(rows: int, width: int, dtype: np.dtype, threads: int) -> None:
    values, total = normal(np.random.default_rng(0), 2, rows, width, dtype=dtype)
    expected = values + total
    BACKEND.add(values, total)
    assert np.array_equal(total, expected)


@same_kernels_in_fp32
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize(("wide", "narrow", "first"), [(1, 1, 0), (5, 2, 0), (5, 2, 3), (300, 270, 17)])
def test_copy(rows: int, wide: int, narrow: int, first: int, dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    values, together = normal(generator, rows, narrow, dtype=dtype), normal(generator, rows, wide, dtype=dtype)
    expected = together.copy()
    expected[:, first : first + narrow] = values
    BACKEND.copy(values, together, target=first)
    assert np.array_equal(together, expected)
    BACKEND.copy(together, values, source=wide - narrow)
    assert np.array_equal(values, expected[:, wide - narrow :])
    rest = (values.copy(), values[:, : (narrow + 1) // 2].copy())
    BACKEND.copy(*rest, source=narrow // 2)
    assert np.array_equal(rest[1], values[:, narrow // 2 :])


@same_kernels_in_fp32
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 2), (3, 5), (33, 70)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_normalize(rows: int, width: int, mean: float, dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    values = normal(generator, rows, width, dtype=dtype) + dtype.type(mean)
    normalized = np.full_like(values, np.nan)
    BACKEND.normalize(values, normalized)
    assert_close(normalized, reference.normalize(values.astype(np.float64)), NORMALIZE[dtype], unit=1.0)

    d_normalized, d_values = normal(generator, 2, rows, width, dtype=dtype)
    expected = d_values + reference.normalize_backward(*as_float64(values, d_normalized))
    BACKEND.normalize_backward(values, d_normalized, d_values)
    assert_close(d_values, expected, NORMALIZE[dtype], unit=1.0)


@same_kernels_in_fp32
def test_normalize_constant_rows(dtype: np.dtype) -> None:
    values, d_values = np.full((2, 5), 3, dtype), np.zeros((2, 5), dtype)
    normalized = np.empty_like(values)
    BACKEND.normalize(values, normalized)
    assert not normalized.any()
    BACKEND.normalize_backward(values, values, d_values)
    assert not d_values.any()


@same_kernels_in_fp32
def test_normalize_propagates_nan(dtype: np.dtype) -> None:
    values = np.arange(45, dtype=dtype).reshape(9, 5) ** 2
    values[4, 2] = np.nan
    normalized, d_values = np.empty_like(values), np.zeros_like(values)
    BACKEND.normalize(values, normalized)
    BACKEND.normalize_backward(values, np.ones_like(values), d_values)
    for array in (normalized, d_values):
        assert np.array_equal(np.isnan(array).all(1), np.arange(9) == 4)
        assert np.isfinite(np.delete(array, 4, 0)).all()


# The output layer.


def output_layer(generator: np.random.Generator, rows: int, words: int, size: int, dtype: np.dtype) -> list[np.ndarray]:
    """Return hidden outputs, weight and bias with scores up to about 10, and targets, some of them at the edges of tiles."""
    targets = generator.integers(0, words, rows, np.int32)
    edges = np.array([words - 1, 0, TILE - 1, TILE], np.int32)[:rows]
    targets[: len(edges)] = np.minimum(edges, words - 1)
    hidden, weight = normal(generator, rows, size, dtype=dtype), normal(generator, words, size, dtype=dtype)
    return [hidden, weight, normal(generator, words, dtype=dtype), targets]


def check_output_layer(
    layer: list[np.ndarray], smoothing: float, penalty: float, scale: float, beta: float, adversarial: float = 0.0
) -> None:
    """Compare the losses, log-probabilities and gradients of an output layer with the reference."""
    hidden, weight, bias, targets = layer
    dtype, generator = hidden.dtype, np.random.default_rng(1)
    exact = (*as_float64(hidden, weight, bias), targets)
    expected_losses = reference.output_losses(*exact)
    losses = np.full(len(targets), np.nan, dtype)
    BACKEND.output_losses(hidden, weight, bias, np.arange(len(targets), dtype=np.int32), targets, losses)
    assert_close(losses, expected_losses, SOFTMAX[dtype], unit=1.0)
    rows, many = generator.integers(0, len(hidden), 37, np.int32), generator.integers(0, len(weight), 37, np.int32)
    found = np.full(37, np.nan, dtype)
    BACKEND.output_losses(hidden, weight, bias, rows, many, found)
    assert_close(found, reference.output_losses(exact[0][rows], *exact[1:3], many), SOFTMAX[dtype], unit=1.0)

    logs = np.full((len(targets), len(weight)), np.nan, dtype)
    BACKEND.log_probabilities(hidden, weight, bias, logs)
    assert_close(logs, reference.log_probabilities(*exact[:3]), SOFTMAX[dtype], unit=1.0)

    expected = reference.output_gradients(*exact, smoothing, penalty, scale, adversarial=adversarial)
    losses, d_hidden = np.full_like(losses, np.nan), np.full_like(hidden, np.nan)
    d_weight, d_bias = previous_contents(weight, beta, generator), previous_contents(bias, beta, generator)
    before = as_float64(d_weight, d_bias) if beta else (0, 0)
    results = losses, d_hidden, d_weight, d_bias
    BACKEND.output_gradients(*layer, smoothing, penalty, scale, beta, *results, adversarial=adversarial)
    assert_close(losses, expected_losses, SOFTMAX[dtype], unit=1.0)
    assert_close(d_hidden, expected[0], SOFTMAX[dtype], unit=scale)
    assert_close(d_weight, before[0] + expected[1], SOFTMAX[dtype], unit=scale)
    assert_close(d_bias, before[1] + expected[2], SOFTMAX[dtype], unit=scale)


@pytest.mark.parametrize("sizes", OUTPUT_SIZES, ids=str)
@pytest.mark.parametrize(("smoothing", "penalty"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_output_layer(
    sizes: tuple[int, int, int], smoothing: float, penalty: float, beta: float, dtype: np.dtype, threads: int
) -> None:
    if device == "ptx" and ((smoothing > 0) + (penalty > 0) + (beta > 0)) % 2:
        pytest.skip("every pair of these numbers is tested, which is enough on a device on which each case takes long")
    check_output_layer(output_layer(np.random.default_rng(0), *sizes, dtype), smoothing, penalty, 1 / sizes[0], beta)


@pytest.mark.parametrize("sizes", OUTPUT_SIZES, ids=str)
def test_output_layer_with_adversarial_noise(sizes: tuple[int, int, int], dtype: np.dtype) -> None:
    check_output_layer(output_layer(np.random.default_rng(0), *sizes, dtype), 0.1, 0.2, 1 / sizes[0], 1.0, 0.1)


@pytest.mark.parametrize("size", [0.0, 80.0])
def test_adversarial_noise_with_large_scores_and_without_hidden_outputs(size: float, dtype: np.dtype) -> None:
    words = TILE + 6
    weight, targets = np.full((words, 1), -1, dtype), np.array([0, words - 1], np.int32)
    weight[targets] = 1
    hidden, bias = np.full((2, 1), size, dtype), np.zeros(words, dtype)
    check_output_layer([hidden, weight, bias, targets], 0.0, 0.0, 1.0, 0.0, 0.01)


@pytest.mark.slow
@settings(max_examples=50 if device == "cpu" else 10)
@given(
    rows=st.integers(1, 20),
    words=st.integers(1, 3 * TILE),
    size=st.integers(1, 12),
    smoothing=st.floats(0, 0.999),
    penalty=st.floats(0, 1),
    scale=st.floats(1e-3, 1e3),
    beta=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32),
    threads=st.integers(1, numba.config.NUMBA_NUM_THREADS + 1),
)
def test_output_layer_of_any_size(
    rows: int,
    words: int,
    size: int,
    smoothing: float,
    penalty: float,
    scale: float,
    beta: float,
    seed: int,
    threads: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_backend, "shares_of", lambda work, own=None: threads)
        layer = output_layer(np.random.default_rng(seed), rows, words, size, precision())
        check_output_layer(layer, smoothing, penalty, scale, beta)


@pytest.mark.parametrize("size", [80.0, 2000.0])
@pytest.mark.parametrize("words", [4, 2 * TILE + 6])
def test_large_scores_do_not_overflow(size: float, words: int, dtype: np.dtype, threads: int) -> None:
    weight = np.full((words, 1), -1, dtype)
    weight[words // 2 :] = 1  # so that all scores of some tiles are far below those of the others
    hidden, bias = np.array([[size], [-size], [size], [-size]], dtype), np.zeros(words, dtype)
    check_output_layer([hidden, weight, bias, np.array([0, 0, words - 1, words - 1], np.int32)], 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["hidden", "weight", "bias"])
def test_output_layer_propagates_nan_and_infinity(place: str, wrong: float, dtype: np.dtype, threads: int) -> None:
    rows, words = 9, 2 * TILE + 6
    hidden, weight, bias, targets = output_layer(np.random.default_rng(0), rows, words, 5, dtype)
    spoilt = {"hidden": hidden[6:7], "weight": weight[TILE + 1 : TILE + 2], "bias": bias[words - 1 :]}[place]
    spoilt[...] = wrong
    bad = np.arange(rows) == 6 if place == "hidden" else np.ones(rows, bool)
    if place == "weight" and wrong == np.inf:
        bad = (hidden > 0).any(1)  # for the others the word has probability 0
    losses, logs = np.zeros((2, rows), dtype), np.zeros((rows, words), dtype)
    BACKEND.output_losses(hidden, weight, bias, np.arange(rows, dtype=np.int32), targets, losses[0])
    BACKEND.output_gradients(
        hidden,
        weight,
        bias,
        targets,
        0.0,
        0.0,
        1.0,
        0.0,
        losses[1],
        np.empty_like(hidden),
        np.empty_like(weight),
        np.empty_like(bias),
    )
    BACKEND.log_probabilities(hidden, weight, bias, logs)
    assert np.array_equal(np.isfinite(losses), [~bad, ~bad])
    assert np.array_equal(np.isnan(logs).any(1), bad)


@pytest.mark.parametrize("sizes", OUTPUT_SIZES, ids=str)
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_nce_gradients(sizes: tuple[int, int, int], beta: float, dtype: np.dtype, threads: int) -> None:
    generator, scale = np.random.default_rng(0), 1 / sizes[0]
    layer = output_layer(generator, *sizes, dtype)
    hidden, weight, bias, _ = layer
    noise = generator.integers(0, 3, len(weight)).astype(dtype)
    exact = [*as_float64(*layer[:3]), layer[3], noise.astype(np.float64)]
    expected = reference.nce_gradients(*exact, scale)
    losses, d_hidden = np.full(len(hidden), np.nan, dtype), np.full_like(hidden, np.nan)
    d_weight, d_bias = previous_contents(weight, beta, generator), previous_contents(bias, beta, generator)
    before = as_float64(d_weight, d_bias) if beta else (0, 0)
    BACKEND.nce_gradients(*layer, noise, scale, beta, losses, d_hidden, d_weight, d_bias)
    assert_close(losses, reference.nce_losses(*exact), SOFTMAX[dtype], unit=1.0)
    assert_close(d_hidden, expected[0], SOFTMAX[dtype], unit=scale)
    assert_close(d_weight, before[0] + expected[1], SOFTMAX[dtype], unit=scale)
    assert_close(d_bias, before[1] + expected[2], SOFTMAX[dtype], unit=scale)


@same_kernels_in_fp32
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "words"), [(1, 1), (33, 3), (3, 600)])
def test_replace_targets(rows: int, words: int, beta: float, dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    logs, targets = normal(generator, rows, words, dtype=dtype, size=4.0), generator.integers(0, words, rows, np.int32)
    d_scores = previous_contents(logs, beta, generator)
    before = as_float64(d_scores)[0] if beta else 0
    BACKEND.replace_targets(logs, targets, 0.3, beta, d_scores)
    expected = 0.3 * (np.eye(words)[targets] - np.exp(as_float64(logs)[0]))
    assert_close(d_scores, before + expected, PRODUCT[dtype], unit=1.0)


@same_kernels_in_fp32
@pytest.mark.parametrize("loss", UNIT_LOSSES)
@pytest.mark.parametrize(("rows", "units"), [(1, 1), (1, 5), (33, 3), (3, 300)])
def test_unit_losses(rows: int, units: int, loss: UnitLoss, dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    scores = normal(generator, rows, units, dtype=dtype, size=4.0)
    targets = normal(generator, rows, units, dtype=dtype)
    if loss in ("sigmoid", "hinge", "exponential"):
        targets = np.where(targets > 0, 1, 0 if loss == "sigmoid" else -1).astype(dtype)
    scores[-1, -1] = targets[-1, -1]  # where the absolute error and the hinge have a kink
    if loss == "sigmoid_absolute":
        scores[-1, -1], targets[-1, -1] = 0, 0.5
    losses, d_scores = np.full(rows, np.nan, dtype), np.full_like(scores, np.nan)
    BACKEND.unit_losses(scores, targets, loss, 0.25, losses, d_scores)
    exact = as_float64(scores, targets)
    assert_close(losses, reference.unit_losses(loss, *exact).sum(1), PRODUCT[dtype], unit=1.0)
    assert_close(d_scores, 0.25 * reference.unit_slopes(loss, *exact), PRODUCT[dtype], unit=1.0)


@same_kernels_in_fp32
@pytest.mark.parametrize("loss", [loss for loss in UNIT_LOSSES if loss not in ("exponential", "poisson")])
@pytest.mark.parametrize("score", [-1e4, -100.0, 100.0, 1e4])
def test_unit_losses_of_large_scores(score: float, loss: UnitLoss, dtype: np.dtype) -> None:
    scores, targets = np.full((2, 1), score, dtype), np.array([[0 if loss.startswith("sigmoid") else -1], [1]], dtype)
    losses, d_scores = np.zeros(2, dtype), np.zeros_like(scores)
    BACKEND.unit_losses(scores, targets, loss, 1.0, losses, d_scores)
    assert_close(losses, reference.unit_losses(loss, *as_float64(scores, targets))[:, 0], PRODUCT[dtype])
    assert_close(d_scores, reference.unit_slopes(loss, *as_float64(scores, targets)), PRODUCT[dtype], unit=1.0)


@same_kernels_in_fp32
@pytest.mark.parametrize(("loss", "target"), [("exponential", -1), ("exponential", 1), ("poisson", 0), ("poisson", 3)])
@pytest.mark.parametrize("score", [-1e4, -100.0, 100.0, 1e4])
def test_exponentials_of_large_scores(score: float, loss: UnitLoss, target: int, dtype: np.dtype) -> None:
    """Results are exact, or infinite or the largest exponential if the dtype cannot hold them, but never NaN."""
    scores, targets = np.full((1, 1), score, dtype), np.full((1, 1), target, dtype)
    losses, d_scores = np.zeros(1, dtype), np.zeros_like(scores)
    BACKEND.unit_losses(scores, targets, loss, 1.0, losses, d_scores)
    expected = reference.unit_losses(loss, *as_float64(scores, targets))[0, 0]
    slope = reference.unit_slopes(loss, *as_float64(scores, targets))[0, 0]
    beyond = 1e38 if dtype == FLOAT32 else np.inf
    for found, wanted in ((losses[0], expected), (d_scores[0, 0], slope)):
        if abs(wanted) >= beyond:
            assert abs(found) >= 1e38
            assert np.sign(found) == np.sign(wanted)
        else:
            assert_close(found, wanted, 10 * PRODUCT[dtype], unit=1.0)


@same_kernels_in_fp32
@pytest.mark.parametrize("loss", UNIT_LOSSES)
def test_unit_losses_propagate_nan(loss: UnitLoss, dtype: np.dtype) -> None:
    scores = np.array([[1, 2], [np.nan, 1]], dtype)
    losses, d_scores = np.zeros(2, dtype), np.zeros_like(scores)
    BACKEND.unit_losses(scores, np.ones_like(scores), loss, 1.0, losses, d_scores)
    assert np.array_equal(np.isnan(losses), [False, True])
    assert loss == "hinge" or np.isnan(d_scores[1, 0])  # the slope of the hinge is the negated target or 0


# The norm of gradients, and updates of weights.


@same_kernels_in_fp32
@pytest.mark.parametrize("shapes", [[(1,)], [(3,), (1,)], [(7, 5), (1000, 101), (300,)]], ids=str)
@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
def test_clip_factor(shapes: list[tuple[int, ...]], limit: float, dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    gradients, factor = [normal(generator, *shape, dtype=dtype) for shape in shapes], np.full(1, np.nan, dtype)
    norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients))
    BACKEND.clip_factor(gradients, limit, factor)
    assert_close(factor[0], min(1, limit / norm), PRODUCT[dtype])
    assert_close(BACKEND.norm(gradients), norm, PRODUCT[dtype])
    for wrong in (np.inf, -np.inf, np.nan):
        gradients[-1].flat[-1] = wrong
        BACKEND.clip_factor(gradients, limit, factor)
        assert np.isnan(factor[0])
    BACKEND.clip_factor([np.zeros(5, dtype)], limit, factor)
    assert factor[0] == 1


@same_kernels_in_fp32
@pytest.mark.parametrize("shape", [(1,), (7, 5), (64, 33)], ids=str)
def test_add_penalty(shape: tuple[int, ...], dtype: np.dtype, threads: int) -> None:
    weight, gradient = normal(np.random.default_rng(0), 2, *shape, dtype=dtype)
    weight.flat[-1] = 0  # where |w| has no derivative
    expected = reference.add_penalty(*as_float64(weight, gradient), 0.3, 0.2)
    unchanged = weight.copy()
    BACKEND.add_penalty(weight, gradient, 0.3, 0.2)
    assert_close(gradient, expected, PRODUCT[dtype])
    assert np.array_equal(weight, unchanged)
    weight.flat[0] = np.nan
    BACKEND.add_penalty(weight, gradient, 0.3, 0.0)
    assert np.isnan(gradient.flat[0])


def device_numbers(backend: Backend, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an optimizer's step as a backend takes them; the rate, ``shrink`` and the step are placed."""
    given = {"step": 1, "shrink": 0.0, **numbers}
    constants = {name: value for name, value in numbers.items() if name not in ("rate", "shrink", "step")}
    corrections = (1.0, 1.0)
    if "beta1" in numbers:
        constants["shrinks"] = given["shrink"] != 0
        corrections = adam_corrections(numbers["beta1"], numbers["beta2"], given["step"])
    return {**constants, "numbers": backend.place(StepNumbers(0, given["rate"], given["shrink"], corrections))}


COMMON = {"scale": 0.5, "l2": 0.01, "rate": 0.1}
UPDATES = {
    "momentum": ("momentum_step", 1, {**COMMON, "momentum": 0.9, "nesterov": False}),
    "nesterov": ("momentum_step", 1, {**COMMON, "momentum": 0.9, "nesterov": True}),
    "plain descent": ("momentum_step", 1, {**COMMON, "momentum": 0.0, "nesterov": False}),
    "adagrad": ("adagrad_step", 1, {**COMMON, "epsilon": 1e-3}),
    "rmsprop": ("rmsprop_step", 1, {**COMMON, "decay": 0.99, "epsilon": 1e-3}),
    "adam": ("adam_step", 2, {**COMMON, "shrink": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-3}),
    "adamw": ("adam_step", 2, {**COMMON, "l2": 0.0, "shrink": 0.02, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-3}),
}


@same_kernels_in_fp32
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("shapes", [[(1,)], [(3,), (7, 5)], [(64, 33), (1,), (300,)]], ids=str)
def test_optimizer_steps(update: str, shapes: list[tuple[int, ...]], dtype: np.dtype, threads: int) -> None:
    operation, states, numbers = UPDATES[update]
    generator = np.random.default_rng(0)
    weights = [normal(generator, *shape, dtype=dtype) for shape in shapes]
    moments = [[np.zeros(shape, dtype) for shape in shapes] for _ in range(states)]
    expected = [as_float64(*own) for own in zip(weights, *moments, strict=True)]
    for step in range(1, 6):
        counted = {**numbers, "step": step} if operation == "adam_step" else numbers
        gradients = [normal(generator, *shape, dtype=dtype) for shape in shapes]
        unchanged = [gradient.copy() for gradient in gradients]
        scale = np.full(1, numbers["scale"], dtype)
        getattr(BACKEND, operation)(weights, gradients, *moments, **{**device_numbers(BACKEND, counted), "scale": scale})
        for k, (gradient, *arrays) in enumerate(zip(gradients, weights, *moments, strict=True)):
            weight, *own = expected[k]
            expected[k] = list(getattr(reference, operation)(weight, gradient.astype(np.float64), *own, **counted))
            assert np.array_equal(gradient, unchanged[k])
            for array, wanted in zip(arrays, expected[k], strict=True):
                assert_close(array, wanted, UPDATE[dtype])


@same_kernels_in_fp32
def test_adagrad_steps_of_rows_equal_steps_of_these_rows(dtype: np.dtype, threads: int) -> None:
    generator, rows = np.random.default_rng(0), np.array([3, 0, -1, 32, 17, 5], np.int32)
    arrays = [np.abs(normal(generator, 33, 19, dtype=dtype)) for _ in range(2)]
    gradient, found, before = normal(generator, 6, 19, dtype=dtype), rows >= 0, [array.copy() for array in arrays]
    numbers = {**COMMON, "epsilon": 1e-3}
    weight, total = (array[rows[found]] for array in as_float64(*arrays))
    expected = reference.adagrad_step(weight, gradient[found].astype(np.float64), total, **numbers)
    given = {**device_numbers(BACKEND, numbers), "scale": np.full(1, numbers["scale"], dtype)}
    BACKEND.adagrad_step_rows(gradient, rows, *arrays, **given)
    others = np.setdiff1d(np.arange(33), rows)
    for array, wanted, copy in zip(arrays, expected, before, strict=True):
        assert_close(array[rows[found]], wanted, UPDATE[dtype])
        assert np.array_equal(array[others], copy[others])


IDLE = {"rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-3}


def idle_numbers(backend: Backend, step: int) -> dict[str, Any]:
    """Return the arguments `IDLE` as a backend takes them, for skipped steps up to step number ``step``."""
    arguments = device_numbers(backend, {**IDLE, "step": step})
    return {name: argument for name, argument in arguments.items() if name != "shrinks"}


@same_kernels_in_fp32
def test_adam_catch_up(dtype: np.dtype, threads: int) -> None:
    generator = np.random.default_rng(0)
    arrays = [normal(generator, 33, 7, dtype=dtype) for _ in range(3)]
    arrays[2] **= 2
    idle, keeps = generator.integers(0, 40, 33).astype(dtype), generator.uniform(0.5, 1, 33).astype(dtype)
    keeps[idle == 0] = 1
    expected = reference.adam_catch_up(*as_float64(*arrays, idle, keeps), **IDLE, step=50)
    numbers = idle_numbers(BACKEND, 50)
    BACKEND.adam_catch_up(*arrays, idle, keeps, **numbers)
    for array, wanted in zip(arrays, expected, strict=True):
        assert_close(array, wanted, UPDATE[dtype])
    unchanged = [array.copy() for array in arrays]
    BACKEND.adam_catch_up(*arrays, 0 * idle, keeps, **numbers)
    assert all(np.array_equal(array, before) for array, before in zip(arrays, unchanged, strict=True))


@same_kernels_in_fp32
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_steps_of_rows_equal_catching_up_and_a_step(decoupled: bool, dtype: np.dtype, threads: int) -> None:
    generator, rows = np.random.default_rng(0), np.array([3, 0, -1, 32, 17, 5], np.int32)
    arrays = [normal(generator, 33, 19, dtype=dtype) for _ in range(3)]
    arrays[2] **= 2
    taken, gradient = normal(generator, 6, 19, dtype=dtype), normal(generator, 6, 19, dtype=dtype)
    idle, keeps = np.array([4, 0, 0, 1, 39, 2]).astype(dtype), np.array([0.9, 1, 1, 0.8, 0.7, 0.95]).astype(dtype)
    found, before = rows >= 0, [array.copy() for array in arrays]
    late = reference.adam_catch_up(
        *(array[rows[found]] for array in as_float64(*arrays)), *as_float64(idle[found], keeps[found]), **IDLE, step=50
    )
    BACKEND.adam_take_rows(*arrays, rows, idle, keeps, taken, **idle_numbers(BACKEND, 50))
    assert_close(taken[found], late[0], UPDATE[dtype])
    assert not taken[~found].any()
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, before, strict=True))
    numbers = {**IDLE, "scale": 0.5, **({"l2": 0.0, "shrink": 0.02} if decoupled else {"l2": 0.01, "shrink": 0.0})}
    expected = reference.adam_step(late[0], gradient[found].astype(np.float64), *late[1:], **numbers, step=51)
    given = {**device_numbers(BACKEND, {**numbers, "step": 51}), "scale": np.full(1, numbers["scale"], dtype)}
    BACKEND.adam_step_rows(taken, gradient, rows, idle, *arrays, **given)
    others = np.setdiff1d(np.arange(33), rows)
    for array, wanted, copy in zip(arrays, expected, before, strict=True):
        assert_close(array[rows[found]], wanted, UPDATE[dtype])
        assert np.array_equal(array[others], copy[others])


@same_kernels_in_fp32
def test_adam_catch_up_approximates_steps_without_gradient() -> None:
    """The approximation is good because first moments decay before second moments have changed much."""
    generator = np.random.default_rng(0)
    weight, first, second = generator.normal(size=(5, 7)), generator.normal(size=(5, 7)), generator.uniform(1, 4, (5, 7))
    start, numbers = [weight, first, second], {**IDLE, "scale": 1.0, "l2": 0.0, "shrink": 0.0}
    for steps in (1, 10, 100):
        arrays = [array.copy() for array in start]
        CpuBackend().adam_catch_up(*arrays, np.full(5, float(steps)), np.ones(5), **idle_numbers(CpuBackend(), 1000))
        expected = start
        for number in range(steps):
            expected = reference.adam_step(expected[0], 0 * weight, *expected[1:], **numbers, step=1001 + number)
        moved, wanted = arrays[0] - weight, expected[0] - weight
        assert np.abs(moved / wanted - 1).max() < 0.02
        np.testing.assert_allclose(arrays[1:], expected[1:], rtol=1e-9)


# All operations together.


def operations(backend: Backend, dtype: np.dtype) -> list[Any]:
    """Return the results of all operations, on arrays large enough for several threads."""
    generator = np.random.default_rng(0)
    rows, blocks, words, size, width = 96, (5, 1, 1, 1), 3 * TILE + 7, 16, 40
    contexts = generator.integers(0, 20, (rows, sum(blocks)), np.int32)
    embeddings = normal(generator, words + 1, size, dtype=dtype)
    weight = normal(generator, width, len(blocks) * size, dtype=dtype)
    inputs, outputs = np.empty((rows, len(blocks) * size), dtype), np.empty((rows, width), dtype)
    losses, logs = np.empty((2, rows), dtype), np.empty((rows, words), dtype)
    layer = [outputs, normal(generator, words, width, dtype=dtype), np.zeros(words, dtype), np.arange(rows, dtype=np.int32)]
    d_outputs, d_inputs = np.empty_like(outputs), np.empty_like(inputs)
    gradients = [np.zeros_like(array) for array in (embeddings, weight, weight[:, 0], layer[1], layer[2])]
    backend.gather(embeddings, contexts, blocks, inputs)
    backend.dropout(inputs, Dropout(0.5, 1, backend.place(StepNumbers(2)), 3), 0, inputs)
    backend.affine(inputs, weight, np.zeros(width, dtype), "tanh", outputs)
    backend.add(inputs[:, :width].copy(), outputs)
    backend.normalize(outputs.copy(), outputs)
    backend.output_losses(*layer[:3], layer[3], layer[3], losses[0])
    backend.log_probabilities(*layer[:3], logs)
    backend.output_gradients(*layer, 0.1, 0.2, 1.0, 0.0, losses[1], d_outputs, *gradients[3:])
    backend.normalize_backward(outputs, d_outputs.copy(), d_outputs)
    backend.affine_backward(inputs, weight, outputs, "tanh", d_outputs, 0.0, *gradients[1:3], d_inputs)
    backend.scatter_add(contexts, blocks, d_inputs, gradients[0])
    backend.scatter_add(
        contexts, blocks, d_inputs, gradients[0], (embeddings, embeddings[:, 0].copy(), np.zeros(words + 1, dtype))
    )
    pooled, sources = np.empty((2, rows, size), dtype), np.empty((rows, size), np.int32)
    backend.mean_pool(embeddings, contexts, pooled[0])
    backend.mean_pool_backward(contexts, pooled[0], gradients[0])
    backend.max_pool(embeddings, contexts, pooled[1], sources)
    backend.max_pool_backward(sources, pooled[1], gradients[0])
    backend.unit_losses(pooled[0], pooled[1], "squared", 0.1, losses[1], pooled[0].copy())
    factor = np.empty(1, dtype)
    backend.add_penalty(embeddings, gradients[0], 0.01, 0.02)
    backend.clip_factor(gradients, 1.0, factor)
    for operation, states, numbers in UPDATES.values():
        counted = {**numbers, "scale": factor, **({"step": 3} if operation == "adam_step" else {})}
        moments = [[np.zeros_like(embeddings)] for _ in range(states)]
        getattr(backend, operation)([embeddings], [gradients[0]], *moments, **device_numbers(backend, counted))
    return [inputs, pooled, outputs, losses, logs, d_outputs, d_inputs, *gradients, factor, embeddings]


def test_repeated_operations_give_same_bits(dtype: np.dtype, threads: int) -> None:
    first = operations(backend_under_test(), dtype)
    for _ in range(5 if device != "ptx" else 1):  # the PTX interpreter runs threads in a fixed order
        for left, right in zip(first, operations(BACKEND, dtype), strict=True):
            assert np.array_equal(left, right)
