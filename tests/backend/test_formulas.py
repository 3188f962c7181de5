"""The formulas of kernels, compiled for the CPU."""

from collections.abc import Callable

import numba
import numpy as np
import pytest
from tolerances import EXP_FLOAT32, FLOAT32

from fflm.backend import formulas


@pytest.fixture(scope="module")
def exponential() -> Callable[[np.ndarray], np.ndarray]:
    @numba.njit
    def exponential(x):
        results = np.empty_like(x)
        for i in range(len(x)):
            results[i] = formulas.exp(x[i])
        return results

    return exponential


def test_exp_float32(exponential: Callable[[np.ndarray], np.ndarray]) -> None:
    tiny = np.geomspace(1e-45, 1, 1000)
    halves = np.arange(-250, 252) * (np.log(2) / 2)  # where the reduction of the argument changes to the next integer
    x = np.concatenate([np.linspace(-87, 88, 2_000_001), -tiny, tiny, halves, halves + 1e-5, halves - 1e-5]).astype(FLOAT32)
    x = x[(x >= -87) & (x <= 88)]
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(exponential(x) - expected) <= EXP_FLOAT32 * expected).all()


def test_exp_float32_outside_its_range(exponential: Callable[[np.ndarray], np.ndarray]) -> None:
    low, high = exponential(np.array([-87, 88], FLOAT32))
    beyond = exponential(np.array([-87.5, -104, -1e30, -np.inf, 88.5, 104, 1e30, np.inf], FLOAT32))
    assert np.array_equal(beyond, [low] * 4 + [high] * 4)
    assert np.isnan(exponential(np.array([np.nan], FLOAT32))).all()


def test_exp_float64(exponential: Callable[[np.ndarray], np.ndarray]) -> None:
    x = np.linspace(-700, 700, 100_001)
    np.testing.assert_allclose(exponential(x), np.exp(x), rtol=1e-15)
