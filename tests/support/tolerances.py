"""All tolerances of the numerical tests, with reasons."""

import devices
import numpy as np

FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)

# fmt: off
FINITE_DIFFERENCES = 1e-7  # relative, in addition to the noise in `gradcheck`; finite differences have errors near 1e-8

EXP_FLOAT32 = 2e-7         # relative; the documented error of `formulas.exp`

ACTIVATION = {             # relative to the larger of 1 and the value, because near 0 tanh and elu are differences from 1
    FLOAT64: 1e-15,
    FLOAT32: 4e-7,
}
PRODUCT = {                # sums of up to 100 products in another order than NumPy's
    FLOAT64: 1e-14,
    FLOAT32: 2e-6,
}
NORMALIZE = {              # means of up to 30 are subtracted from numbers that differ by 1, and small deviations are divisors
    FLOAT64: 1e-12,
    FLOAT32: 3e-4,
}
SOFTMAX = {                # scores of 10 and more; their rounding errors become relative errors of probabilities
    FLOAT64: 1e-13,
    FLOAT32: 1e-5,
}
NETWORK = {                # scores are small, but there are up to four layers; BLAS adds in another order on other processors
    FLOAT64: 2e-14,
    FLOAT32: 5e-6,
}
UPDATE = {                 # float32: 1 - 0.999 with a rounded 0.999 is off by 1.3e-5
    FLOAT64: 1e-14,
    FLOAT32: 3e-5,
}
# fmt: on

NEURAL_CACHE = 1e-6  # relative error of a weight for each unit of theta, because a cosine in float32 is off by some 3e-7
SINGLE_SOFTMAX = SOFTMAX[FLOAT32]  # also of mixed precision if the operands are float16 values
HALF_SLOPES = 1e-3  # exponentials and the gradients of logits are each rounded to float16, a relative error of 2.4e-4
SAME_ROUNDING = (
    5e-4  # sums of up to 300 terms in another order; numbers halfway between float16 values may be rounded differently
)
TF32 = 2.0**-11  # largest relative error of a number that is rounded to TF32
SAME_TF32 = 1e-4  # as `SAME_ROUNDING`: numbers halfway between those of TF32 may be rounded differently
MIXED_STEPS = 3e-3  # relative error of the losses of ten steps in mixed precision
MIXED_WAY = 0.05  # relative to how far the weights have moved, because Adam makes full steps with the smallest gradients

if devices.mixed:  # operands of products are rounded to float16, each with a relative error of up to 2.4e-4
    ACTIVATION[FLOAT32] = 5e-4
    PRODUCT[FLOAT32] = 1e-2
    SOFTMAX[FLOAT32] = 2e-2  # scores of 10 and more have errors of 5e-3; terms of 80 cancel to 1
    NETWORK[FLOAT32] = 1e-2


def assert_close(actual, expected, tolerance, *, unit=0.0):
    """Check that no element has an error above ``tolerance`` times the largest expected element.

    Parameters
    ----------
    actual, expected
        Arrays or numbers of the same shape; the expected ones are finite.
    tolerance
        One of the tolerances above.
    unit
        The size of the terms whose difference is expected; it is used in place of the largest expected element if it is larger.
    """
    assert np.shape(actual) == np.shape(expected)
    size = max(np.abs(expected).max(), unit)
    off = np.abs(np.asarray(actual, FLOAT64) - expected).max()
    assert off <= tolerance * size, f"off by {off / size if size else off:.2g} of {size:.3g}, allowed is {tolerance:.2g} of it"
