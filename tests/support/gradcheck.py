"""Comparison of gradients with central finite differences, in float64.

The derivative is computed from four values of the function (the central difference of order four), whose truncation error falls
with STEP^4. If the function is smooth and of size one, the derivative is exact to about 1e-12, the rounding error of the values.
So a gradient is correct if its error is at most NOISE plus TOLERANCE times itself, and every coordinate is compared on its own.
"""

from collections.abc import Callable, Mapping

import numpy as np
from tolerances import FINITE_DIFFERENCES

STEP = 1e-3
NOISE = 1e-11
TOLERANCE = FINITE_DIFFERENCES


def derivative(function: Callable[[], float], array: np.ndarray, index: tuple[int, ...]) -> float:
    """Return the derivative of ``function`` by one element of ``array``, which is restored afterwards."""
    value = array[index]
    values = []
    for steps in (-2, -1, 1, 2):
        array[index] = value + steps * STEP
        values.append(function())
    array[index] = value
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * STEP)


def error(gradient: float, expected: float) -> float:
    """Return the relative error of a gradient, with NOISE / TOLERANCE added to the denominator because of rounding errors."""
    return abs(gradient - expected) / (max(abs(gradient), abs(expected)) + NOISE / TOLERANCE)


def check(function: Callable[[], float], arrays: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray]) -> None:
    """Compare every coordinate of every gradient with finite differences.

    Parameters
    ----------
    function
        A function that computes a scalar from the arrays.
    arrays
        The float64 arrays that the function reads, by name.
    gradients
        The gradients to be checked, by the same names.

    Raises
    ------
    AssertionError
        If a coordinate is wrong or not finite, or if names or shapes differ; it names the worst coordinate.
    """
    assert arrays.keys() == gradients.keys()
    worst, where = 0.0, ""
    for name, array in arrays.items():
        assert gradients[name].shape == array.shape, name
        assert np.isfinite(gradients[name]).all(), name
        for index in np.ndindex(array.shape):
            expected = derivative(function, array, index)
            off = error(gradients[name][index], expected)
            if off > worst:
                worst, where = off, f"{name}{list(index)}: gradient {gradients[name][index]:.9g}, differences {expected:.9g}"
    assert worst <= TOLERANCE, f"relative error {worst:.2g} at {where}"
