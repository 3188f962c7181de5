"""The scalar mathematics that the kernels of all devices share.

These are functions of scalars that every target of Numba can compile into its kernels. Their arguments are all float32 or all
float64, except where a docstring says otherwise. Constants are cast to the type of the arguments, because an expression such as
``1.0 - y`` would be computed in float64 even if y is a float32.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from fflm.backend.protocol import ACTIVATIONS, UNIT_LOSSES

TANH, SIGMOID, RELU, LEAKY_RELU, ELU, SOFTPLUS, IDENTITY = range(len(ACTIVATIONS))

BINARY, SQUARED, ABSOLUTE, HINGE, EXPONENTIAL, POISSON, SIGMOID_SQUARED, SIGMOID_ABSOLUTE = range(len(UNIT_LOSSES))


@intrinsic
def _as_float32(context, bits):  # type: ignore[no-untyped-def]
    """Reinterpret the 32 bits of an int32 as a float32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def exp(x):  # type: ignore[no-untyped-def]
    """Return e^x.

    In float32, the result is computed by a polynomial, because LLVM can vectorize it, whereas ``math.exp`` would remain a call
    for each number. It is 2^k e^r with k = round(x / ln 2) and |r| <= ln 2 / 2, where e^r is the polynomial of the function expf
    in the Cephes library (S. Moshier); the relative error is below 2e-7. Arguments are clamped to the range in which float32 can
    represent the result. NaN remains NaN.
    """
    return np.exp(x)


@overload(exp)
def _exp(x):  # type: ignore[no-untyped-def]
    if x is not types.float32:
        return lambda x: np.exp(x)

    def exp_float32(x):  # type: ignore[no-untyped-def]
        x = np.float32(-87.0) if x < np.float32(-87.0) else x
        x = np.float32(88.0) if x > np.float32(88.0) else x
        k = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
        r = x - k * np.float32(0.693359375)
        r = r + k * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        p = p * r * r + r + np.float32(1.0)
        return p * _as_float32((np.int32(k) + np.int32(127)) << np.int32(23))

    return exp_float32


def log1p(x):  # type: ignore[no-untyped-def]
    """Return log(1 + x) for x in [0, 1].

    In float32, the result is computed by a polynomial, because LLVM can vectorize it. It is the series of 2 artanh(y) with
    y = x / (2 + x), which is at most 1/3; the relative error is below 2e-7.
    """
    return np.log1p(x)


@overload(log1p)
def _log1p(x):  # type: ignore[no-untyped-def]
    if x is not types.float32:
        return lambda x: np.log1p(x)

    def log1p_float32(x):  # type: ignore[no-untyped-def]
        y = x / (np.float32(2) + x)
        z = y * y
        p = np.float32(2 / 13)
        p = p * z + np.float32(2 / 11)
        p = p * z + np.float32(2 / 9)
        p = p * z + np.float32(2 / 7)
        p = p * z + np.float32(2 / 5)
        p = p * z + np.float32(2 / 3)
        p = p * z + np.float32(2)
        return p * y

    return log1p_float32


@register_jitable
def sigmoid(x):  # type: ignore[no-untyped-def]
    """Return 1 / (1 + e^-x)."""
    one = type(x)(1)
    return one / (one + exp(-x))


@register_jitable
def softplus(x):  # type: ignore[no-untyped-def]
    """Return log(1 + e^x), without overflow."""
    return (x if x > 0 else type(x)(0)) + log1p(exp(-abs(x)))


@register_jitable
def activate(code, gamma, x):  # type: ignore[no-untyped-def]
    """Return the activation function ``ACTIVATIONS[code]`` of a pre-activation x.

    ``code`` is an integer. ``gamma`` has the type of x and is the factor of leaky ReLU and ELU; other functions ignore it.
    """
    one = type(x)(1)
    if code == TANH:
        return one - type(x)(2) / (exp(x + x) + one)
    if code == SIGMOID:
        return sigmoid(x)
    if code == RELU:
        return x if not x < 0 else type(x)(0)
    if code == LEAKY_RELU:
        return x if not x < 0 else x * gamma
    if code == ELU:
        return x if not x < 0 else gamma * (exp(x) - one)
    if code == SOFTPLUS:
        return softplus(x)
    return x


@register_jitable
def activation_slope(code, gamma, y):  # type: ignore[no-untyped-def]
    """Return the derivative of the activation function ``ACTIVATIONS[code]`` where its output is y.

    It is computed from the output, so that the pre-activations need not be stored for the backward pass.
    """
    one = type(y)(1)
    if code == TANH:
        return one - y * y
    if code == SIGMOID:
        return y * (one - y)
    if code == RELU:
        return one if y > 0 else type(y)(0)
    if code == LEAKY_RELU:
        return one if y > 0 else gamma
    if code == ELU:  # y = gamma (e^x - 1), so gamma e^x = y + gamma
        return one if y > 0 else y + gamma
    if code == SOFTPLUS:  # y = log(1 + e^x), so sigmoid(x) = 1 - e^-y
        return one - exp(-y)
    return one


@register_jitable
def unit_loss(code, z, y):  # type: ignore[no-untyped-def]
    """Return the loss ``UNIT_LOSSES[code]`` of a score z with the target y; `Backend.unit_losses` has the formulas."""
    if code == BINARY:
        return softplus(z) - y * z
    if code == EXPONENTIAL:
        return exp(-y * z)
    if code == POISSON:
        return exp(z) - y * z
    if code == HINGE:
        margin = type(z)(1) - y * z
        return margin if not margin < 0 else type(z)(0)
    error = (sigmoid(z) if code >= SIGMOID_SQUARED else z) - y
    return error * error if code in (SQUARED, SIGMOID_SQUARED) else abs(error)


@register_jitable
def unit_loss_slope(code, z, y):  # type: ignore[no-untyped-def]
    """Return the derivative of `unit_loss` with respect to z, or 0 where the loss has a kink."""
    one, zero = type(z)(1), type(z)(0)
    if code == BINARY:
        return sigmoid(z) - y
    if code == EXPONENTIAL:
        return -y * exp(-y * z)
    if code == POISSON:
        return exp(z) - y
    if code == HINGE:
        return -y if not one - y * z <= 0 else zero
    output, slope = z, one
    if code >= SIGMOID_SQUARED:  # the two losses of sigmoid outputs have the highest codes
        output = sigmoid(z)
        slope = output * (one - output)
    error = output - y
    if code in (SQUARED, SIGMOID_SQUARED):
        return (error + error) * slope
    return zero if error == 0 else (slope if error > 0 else (-slope if error < 0 else error))  # the last case is NaN


def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Return four random uint32 for a counter and a key, by Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers").

    This is a pure function. Therefore dropout masks need not be stored: every device can recompute them when they are needed.
    The function is not decorated, because each backend compiles it with options of its own.

    Parameters
    ----------
    c0, c1, c2, c3
        The counter, four uint32.
    k0, k1
        The key, two uint32.
    """
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    # The numbers are kept in 64 bits, of which only the lower 32 count, because vector instructions multiply such numbers.
    c0, c1, c2, c3, k0, k1 = np.uint64(c0), np.uint64(c1), np.uint64(c2), np.uint64(c3), np.uint64(k0), np.uint64(k1)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * (c0 & low)
        p1 = np.uint64(0xCD9E8D57) * (c2 & low)
        c0, c1, c2, c3 = (p1 >> shift) ^ (c1 & low) ^ k0, p1, (p0 >> shift) ^ (c3 & low) ^ k1, p0
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.uint32(c0), np.uint32(c1 & low), np.uint32(c2), np.uint32(c3 & low)


@register_jitable
def penalty_slope(w, l1, l2):  # type: ignore[no-untyped-def]
    """Return the derivative of the penalty l1 |w| + l2 w^2 / 2 with respect to w; the derivative of |w| at 0 is taken as 0."""
    return l2 * w + (l1 if w > 0 else (-l1 if w < 0 else type(w)(0)))


@register_jitable
def momentum_update(w, g, velocity, rate, momentum, nesterov):  # type: ignore[no-untyped-def]
    """Return the weight and the velocity after a step of gradient descent with momentum, for a weight w and its gradient g.

    The formulas are those of `torch.optim.SGD`. Sutskever et al. 2013 multiply the gradient, and not the velocity, by the rate.
    """
    velocity = momentum * velocity + g
    step = g + momentum * velocity if nesterov else velocity
    return w - rate * step, velocity


@register_jitable
def adagrad_update(w, g, total, rate, epsilon):  # type: ignore[no-untyped-def]
    """Return the weight and the sum of its squared gradients after a step of AdaGrad (Duchi et al. 2011)."""
    total = total + g * g
    return w - rate * g / (math.sqrt(total) + epsilon), total


@register_jitable
def rmsprop_update(w, g, mean, rate, decay, epsilon):  # type: ignore[no-untyped-def]
    """Return the weight and the moving average of its squared gradients after a step of RMSProp.

    Source: Tieleman & Hinton 2012, "Neural Networks for Machine Learning", lecture 6.5.
    """
    mean = decay * mean + (type(w)(1) - decay) * g * g
    return w - rate * g / (math.sqrt(mean) + epsilon), mean


@register_jitable
def adam_update(w, g, m, v, rate, beta1, beta2, epsilon, correction1, correction2):  # type: ignore[no-untyped-def]
    """Return the weight and both moments m and v after a step of Adam (Kingma & Ba 2015, algorithm 1).

    ``correction1`` and ``correction2`` are those of `fflm.backend.common.adam_corrections`.
    """
    m = beta1 * m + (type(w)(1) - beta1) * g
    v = beta2 * v + (type(w)(1) - beta2) * g * g
    return w - rate * (m * correction1) / (math.sqrt(v * correction2) + epsilon), m, v


@register_jitable
def catch_up_rate(rate, beta1, kept1, correction1):  # type: ignore[no-untyped-def]
    """Return the learning rate of all steps of Adam that a row has skipped together, of which `Backend.adam_catch_up` speaks.

    It is rate (beta1 + ... + beta1^k) correction1, a geometric series, where ``kept1`` is beta1^k for k steps.
    """
    one = type(rate)(1)
    return rate * correction1 * beta1 * (one - kept1) / (one - beta1)


@register_jitable
def caught_up(w, m, v, keep, rate, epsilon, correction2):  # type: ignore[no-untyped-def]
    """Return a weight after the skipped steps: ``keep`` is the product of 1 - shrink, and ``rate`` that of `catch_up_rate`."""
    return keep * w - rate * m / (math.sqrt(v * correction2) + epsilon)
