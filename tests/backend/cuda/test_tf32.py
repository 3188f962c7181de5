"""TF32: operands are rounded to the nearest number of TF32, once, and errors of products are within the bounds of this."""

from pathlib import Path

import devices
import numpy as np
import pytest
from devices import gpu_backend
from rounding import RoundingBackend, rounded_to_tf32
from tolerances import SAME_TF32, TF32, assert_close

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError
from test_mixed import module_from_source, operations

from fflm.backend.cuda import backend as cuda_backend
from fflm.backend.cuda import products, tf32
from fflm.backend.cuda.intrinsics import to_tf32
from fflm.backend.cuda.launching import kernel

GPU = gpu_backend("tf32")


@kernel()
def round_numbers(values, rounded):
    i = cuda.grid(1)
    if i < values.size:
        rounded[i] = to_tf32(values[i])


def test_numbers_are_rounded_to_nearest_and_ties_away_from_zero():
    """The expected numbers are computed in float64, which represents half of the last place."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal(100).astype(np.float32) * np.float32(2.0) ** generator.integers(-40, 40, 100)
    steps = np.float32(2.0**-10) * np.array([0, 0.5, 1, 1.5, -0.5, 0.499999, 0.500001], np.float32)
    values = np.concatenate([values, 1 + steps, -1 - steps, np.zeros(1)]).astype(np.float32)
    significand, exponent = np.frexp(values.astype(np.float64))
    scaled = np.abs(significand) * 2**11
    expected = np.copysign(np.floor(scaled + 0.5) * 2.0 ** (exponent - 11), values)
    there, found = GPU.upload(values), GPU.empty(values.shape, np.float32)
    GPU._each(round_numbers, values.size, there, found)
    assert np.array_equal(GPU.download(found), expected)
    assert np.array_equal(rounded_to_tf32(values), expected)
    GPU._each(round_numbers, 3, GPU.upload(np.float32([np.inf, -np.inf, np.nan])), found)
    np.testing.assert_array_equal(GPU.download(found)[:3], [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize(("rows", "words", "size"), [(3, 127, 7), (140, 300, 130)])
def test_tf32_operations_round_in_same_places_as_numpy(rows, words, size):
    exact = np.random.default_rng(0)
    x, w = exact.normal(size=(rows, size)).astype(np.float32), exact.normal(size=(words, size)).astype(np.float32)
    outputs = GPU.empty((rows, words), np.float32)
    GPU.affine(GPU.upload(x), GPU.upload(w), GPU.upload(np.zeros(words, np.float32)), "identity", outputs)
    error = np.abs(GPU.download(outputs) - x.astype(np.float64) @ w.astype(np.float64).T)
    largest = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    assert (error <= (2.01 * TF32 + size * 2.0**-24) * largest).all()
    assert error.max() > 2.0**-15  # float32 would be more exact
    sizes = rows, words, size
    for (found, unit), (expected, _) in zip(operations(GPU, *sizes), operations(RoundingBackend(True), *sizes), strict=True):
        assert_close(found, expected, SAME_TF32, unit=unit)


BUGS = {
    "no rounding": ("to_tf32(numbers[1])", "numbers[1]"),
    "another line": ("low, high = 2 * half, 2 * half + 1\n    upper", "low, high = 2 * half + 1, 2 * half\n    upper"),
}


@pytest.mark.skipif(devices.device == "cuda", reason="a real GPU does not check operands")
@pytest.mark.parametrize("bug", BUGS)
def test_bugs_in_tf32_kernels_are_detected(bug, tmp_path, monkeypatch):
    source, (text, replacement) = Path(tf32.__file__).read_text(encoding="utf-8"), BUGS[bug]
    assert source.count(text) == 1
    changed = module_from_source(source.replace(text, replacement), tmp_path / f"tf32, {bug}.py")
    product = products.make_float_product(changed.TF32, f"tf32, {bug},", "to weights")
    monkeypatch.setitem(cuda_backend.PRODUCTS["tf32"], "to weights", product)
    with pytest.raises((CudaAPIError, AssertionError)):
        test_tf32_operations_round_in_same_places_as_numpy(3, 127, 7)
