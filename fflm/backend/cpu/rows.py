"""Functions on one row of numbers, which are compiled into the kernels of this backend and of models that call them."""

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from fflm.backend.formulas import RELU, TANH, activate
from fflm.compiling import inner

REORDER = {"reassoc", "contract", "nsz"}
"""Options of `numba.njit` that let LLVM reorder the terms of a sum, because it could not vectorize the sum otherwise.

Other options of ``fastmath`` are not set, because they assume that there is no NaN or infinity, and these must be noticed.
Functions that compute `exp` must not use these options, because the reduction of its argument depends on the order.
"""


@intrinsic
def larger(context, a, b):  # type: ignore[no-untyped-def]
    """Return the larger of two floats of one type, any number if one is NaN.

    LLVM vectorizes the maximum of a row in this form only: Numba's comparisons lose the flag that says that NaN does not matter.
    """

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = arguments[0].type
        name = f"llvm.maxnum.{'f32' if isinstance(number, ir.FloatType) else 'f64'}"
        routine = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number, number]), name)
        return builder.call(routine, arguments, fastmath=("nnan", "nsz"))

    return a(a, a), call


@inner()
def clear(row):
    """Set a row (N,) to 0. Every ``row[:] = 0`` would take Numba nearly a second to compile."""
    for j in range(len(row)):
        row[j] = 0


@inner(fastmath=REORDER)
def inner_product(values, row):
    """Return the inner product of values (H,) and a row (H,) in the dtype of the values. The row may contain integers."""
    total = values.dtype.type(0)
    for j in range(len(values)):
        total += values[j] * values.dtype.type(row[j])
    return total


@inner()
def activate_row(code, gamma, row):
    """Apply the activation function ``ACTIVATIONS[code]`` to a row of pre-activations (O,) in place.

    The most frequent functions have loops of their own, because LLVM vectorizes a loop only if the code is a constant.
    """
    if code == RELU:
        for j in range(len(row)):
            row[j] = activate(RELU, gamma, row[j])
    elif code == TANH:
        for j in range(len(row)):
            row[j] = activate(TANH, gamma, row[j])
    else:
        for j in range(len(row)):
            row[j] = activate(code, gamma, row[j])
