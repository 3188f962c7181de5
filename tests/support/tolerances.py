"""Every tolerance of the numerical tests, with its reason."""

import devices
import numpy as np

FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)

# fmt: off
FINITE_DIFFERENCES = 1e-7  # relative, besides the noise of `gradcheck`; their own error is near 1e-8 with steps of 1e-3

EXP_FLOAT32 = 2e-7         # relative; what `formulas.exp` promises

ACTIVATION = {             # against the larger of 1 and the value: near 0, tanh and elu lose digits to a difference from 1
    FLOAT64: 1e-15,
    FLOAT32: 4e-7,
}
PRODUCT = {                # sums of up to 100 products, in another order than NumPy's
    FLOAT64: 1e-14,
    FLOAT32: 2e-6,
}
NORMALIZE = {              # means of up to 30 are taken off numbers of size 1, and small deviations divided by
    FLOAT64: 1e-12,
    FLOAT32: 3e-4,
}
SOFTMAX = {                # scores of 10 and more, whose rounding becomes a relative error of the probabilities
    FLOAT64: 1e-13,
    FLOAT32: 1e-5,
}
NETWORK = {                # small scores, but up to four layers one after another
    FLOAT64: 2e-14,
    FLOAT32: 3e-6,
}
UPDATE = {                 # float32: 1 - 0.999 with a rounded 0.999 is off by 1.3e-5
    FLOAT64: 1e-14,
    FLOAT32: 3e-5,
}
# fmt: on

SINGLE_SOFTMAX = SOFTMAX[FLOAT32]  # of mixed precision too, where halves hold the operands
HALF_SLOPES = 1e-3  # exponentials, and gradients of logits made of them, are rounded by up to 2.4e-4 of themselves each
SAME_ROUNDING = 5e-4  # sums of up to 300 in another order; a number between two halves may be rounded to the other
MIXED_STEPS = 3e-3  # relative; losses of twenty steps in mixed precision
MIXED_WAY = 0.05  # relative to how far the weights went in them: Adam takes full steps of the smallest gradients

if devices.mixed:  # operands of products are rounded to eleven binary digits, each by up to 2.4e-4 of itself
    ACTIVATION[FLOAT32] = 5e-4
    PRODUCT[FLOAT32] = 1e-2
    SOFTMAX[FLOAT32] = 2e-2  # scores of 10 and more are off by some 5e-3; terms of 80 cancel, but for 1
    NETWORK[FLOAT32] = 1e-2


def assert_close(actual, expected, tolerance, *, unit=0.0):
    """Demand that no element is off by more than ``tolerance`` times the largest expected one.

    Parameters
    ----------
    actual, expected
        Arrays or numbers of the same shape; those expected finite.
    tolerance
        One of this table.
    unit
        What to measure by where it is larger than everything expected: the size of the terms whose difference is expected.
    """
    assert np.shape(actual) == np.shape(expected)
    size = max(np.abs(expected).max(), unit)
    off = np.abs(np.asarray(actual, FLOAT64) - expected).max()
    assert off <= tolerance * size, f"off by {off / size if size else off:.2g} of {size:.3g}, allowed is {tolerance:.2g} of it"
