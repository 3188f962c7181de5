"""The matrix products of tiles, compared with NumPy in double precision at sizes around those of a block."""

import numpy as np
import pytest
from numba import njit
from tolerances import PRODUCT, assert_close

from fflm.backend.cpu.products import ROWS, multiply_tile, multiply_turned_tile

SIZES = [(1, 1, 1), (ROWS, 5, 32), (ROWS + 1, 3, 33), (17, 90, 100), (3 * ROWS - 1, 2, 16), (19, 4, 15), (ROWS - 1, 7, 70)]


@njit
def multiply(a, b, c, beta, turned):
    if turned:
        multiply_turned_tile(a, b, c, beta)
    else:
        multiply_tile(a, b, c, beta)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_product_of_tile(sizes, beta, turned, dtype):
    """All matrices are slices of wider ones, and numbers beside the result do not change."""
    (rows, terms, columns), generator = sizes, np.random.default_rng(1)
    a = generator.standard_normal((terms, rows + 3) if turned else (rows, terms + 3)).astype(dtype)[:, 1:-2]
    b = generator.standard_normal((terms, columns + 3)).astype(dtype)[:, :-3]
    whole = np.full((rows + 2, columns + 4), np.nan, dtype)
    c = whole[1:-1, 2:-2]
    if beta:
        c[:] = generator.standard_normal(c.shape)
    left, before = (a.T if turned else a).astype(np.float64), beta * np.nan_to_num(c.astype(np.float64))
    multiply(a, b, c, dtype.type(beta), turned)
    assert_close(c, left @ b.astype(np.float64) + before, PRODUCT[dtype], unit=1.0)
    assert np.isnan(whole).sum() == whole.size - c.size


def test_product_of_tile_keeps_nan(dtype):
    a, b, c = np.ones((9, 4), dtype), np.ones((4, 40), dtype), np.empty((9, 40), dtype)
    a[8, 3] = np.nan
    multiply(a, b, c, dtype.type(0), False)
    assert np.isnan(c[8]).all()
    assert not np.isnan(c[:8]).any()
