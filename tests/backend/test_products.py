"""The matrix products of kernels, compared with NumPy in double precision at sizes around those of a block."""

import itertools

import numpy as np
import pytest
from numba import njit
from tolerances import PRODUCT, assert_close

from fflm.backend.cpu.products import LONGEST_STEP, ROWS, TERMS, gemm_nn, gemm_nt, gemm_tn

SIZES = [
    (1, 1, 1),
    (ROWS, 5, 32),
    (ROWS, 0, 32),
    (ROWS + 1, 3, 33),
    (17, 90, 100),
    (3 * ROWS - 1, 2, 16),
    (19, 4, 15),
    (ROWS - 1, 7, 70),
    (ROWS + 3, 16, 48),
    (2 * ROWS + 1, 17, 49),
    (ROWS, 15, 64),
    (ROWS + 1, TERMS, 37),
    (ROWS + 1, TERMS + 1, 83),
    (9, 2 * TERMS + 17, LONGEST_STEP // 4 + 1),
]


@njit
def multiply_nn(a, b, c, beta):
    gemm_nn(a, b, c, beta)


@njit
def multiply_tn(a, b, c, beta):
    gemm_tn(a, b, c, beta)


@njit
def multiply_nt(a, b, c, beta):
    gemm_nt(a, b, c, beta)


@pytest.mark.parametrize(
    ("multiply", "beta"),
    list(itertools.product((multiply_nn, multiply_tn, multiply_nt), (0.0, 1.0, 0.5))),
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_product(sizes, multiply, beta, dtype):
    """All matrices are slices of wider ones, and numbers beside the result do not change."""
    (rows, terms, columns), generator = sizes, np.random.default_rng(1)
    turned_a, turned_b = multiply is multiply_tn, multiply is multiply_nt
    a = generator.standard_normal((terms, rows + 3) if turned_a else (rows, terms + 3)).astype(dtype)[:, 1:-2]
    b = generator.standard_normal((columns, terms + 3) if turned_b else (terms, columns + 3)).astype(dtype)[:, :-3]
    whole = np.full((rows + 2, columns + 4), np.nan, dtype)
    c = whole[1:-1, 2:-2]
    if beta:
        c[:] = generator.standard_normal(c.shape)
    left, right = (each.astype(np.float64) for each in (a.T if turned_a else a, b.T if turned_b else b))
    expected = left @ right + beta * np.nan_to_num(c.astype(np.float64))
    multiply(a, b, c, dtype.type(beta))
    assert_close(c, expected, PRODUCT[dtype], unit=1.0)
    assert np.isnan(whole).sum() == whole.size - c.size


def test_product_keeps_nan(dtype):
    a, b, c = np.ones((9, 4), dtype), np.ones((4, 40), dtype), np.empty((9, 40), dtype)
    a[8, 3] = np.nan
    multiply_nn(a, b, c, dtype.type(0))
    assert np.isnan(c[8]).all()
    assert not np.isnan(c[:8]).any()
