"""Instructions of processors that Numba has no functions for.

None of these functions checks bounds, not even with ``NUMBA_BOUNDSCHECK=1``.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

CACHE_LINE = 64
"""Number of bytes that come into the cache together, on most processors."""

BYTES = 64
"""Number of bytes that `blanks_at` looks at."""

LANES = 128
"""Number of integers of 16 bits that `lanes_at` reads."""

PRODUCTS = 32
"""Number of sums of 32 bits to which `add_relu_products` adds."""

PANEL = 16
"""Number of rows of a matrix that are adjacent in panels, as `panel_products` reads them; in single precision, a cache line."""

_BYTE, _WORD, _FLAG = ir.IntType(8), ir.IntType(64), ir.IntType(32)


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Return the address of a byte of an array: the first two arguments."""
    values = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(builder.bitcast(values.data, cgutils.voidptr_t), [arguments[1]], source_etype=_BYTE)


@intrinsic
def prefetch(context, array, offset):  # type: ignore[no-untyped-def]
    """Let the processor fetch what is ``offset`` bytes into a contiguous array, while it does something else."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _FLAG, _FLAG, _FLAG])
        routine = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = _address(context, builder, signature, arguments)
        builder.call(routine, [address, _FLAG(0), _FLAG(3), _FLAG(1)])  # to read, to be kept, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), call


@intrinsic
def word_at(context, text, place):  # type: ignore[no-untyped-def]
    """Return the 8 bytes from a place on, which need not be aligned, as a uint64 (on all of Numba's targets, little-endian)."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = builder.bitcast(_address(context, builder, signature, arguments), _WORD.as_pointer())
        return builder.load(address, align=1, typ=_WORD)

    return types.uint64(text, types.uint64), call


@intrinsic
def blanks_at(context, text, place, separator):  # type: ignore[no-untyped-def]
    """Return which of the 64 bytes from a place on are blanks: the bits of a uint64, that of the first byte is the lowest.

    Blanks are spaces, tabs, newlines, and the separator, a uint8.
    """

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(_BYTE, BYTES)
        address = builder.bitcast(_address(context, builder, signature, arguments), vector.as_pointer())
        content, found = builder.load(address, align=1, typ=vector), None
        for blank in (_BYTE(32), _BYTE(9), _BYTE(10), arguments[2]):
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), blank, _FLAG(0))
            everywhere = builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_FLAG, BYTES), [0] * BYTES))
            equal = builder.icmp_unsigned("==", content, everywhere)
            found = equal if found is None else builder.or_(found, equal)
        return builder.bitcast(found, _WORD)

    return types.uint64(text, types.uint64, types.uint8), call


@intrinsic
def characters_at(context, text, place):  # type: ignore[no-untyped-def]
    """Return at which of the 64 bytes from a place on a character of UTF-8 begins: the bits of a uint64, as of `blanks_at`."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(_BYTE, BYTES)
        address = builder.bitcast(_address(context, builder, signature, arguments), vector.as_pointer())
        continuations = ir.Constant(vector, [-64] * BYTES)  # as signed numbers, the bytes that continue one are less than these
        return builder.bitcast(builder.icmp_signed(">=", builder.load(address, align=1, typ=vector), continuations), _WORD)

    return types.uint64(text, types.uint64), call


@intrinsic
def ones(context, value):  # type: ignore[no-untyped-def]
    """Return the number of one bits of a uint64."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), call


@intrinsic
def trailing_zeros(context, value):  # type: ignore[no-untyped-def]
    """Return the number of zero bits below the lowest one bit of a uint64, which must not be 0."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), call


class Lanes(types.Type):  # type: ignore[misc]
    """Numba's type of `LANES` integers of 16 bits, which are added at once, in registers."""


class Products(types.Type):  # type: ignore[misc]
    """Numba's type of `PRODUCTS` integers of 32 bits, sums of products of `Lanes`."""


_LANES, _PRODUCTS = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(ir.IntType(32), PRODUCTS)
_lanes, _products = Lanes(f"{LANES} x int16"), Products(f"{PRODUCTS} x int32")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """How a value of the type `Lanes` is represented."""

    def __init__(self, manager: Any, type_: Lanes) -> None:
        super().__init__(manager, type_, _LANES)


@register_model(Products)
class ProductsModel(models.PrimitiveModel):  # type: ignore[misc]
    """How a value of the type `Products` is represented."""

    def __init__(self, manager: Any, type_: Products) -> None:
        super().__init__(manager, type_, _PRODUCTS)


@intrinsic
def lanes_at(context, table, offset):  # type: ignore[no-untyped-def]
    """Return the `LANES` integers that are ``offset`` bytes into an array of int16, or of int8."""
    bits = table.dtype.bitwidth
    stored = ir.VectorType(ir.IntType(bits), LANES)

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = builder.bitcast(_address(context, builder, signature, arguments), stored.as_pointer())
        lanes = builder.load(address, align=bits // 8, typ=stored)
        return builder.sext(lanes, _LANES) if bits < 16 else lanes

    return _lanes(table, types.uint64), call


@intrinsic
def add_lanes(context, one, other):  # type: ignore[no-untyped-def]
    """Return the sums of two `Lanes`."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.add(*arguments)

    return _lanes(_lanes, _lanes), call


@intrinsic
def subtract_lanes(context, one, other):  # type: ignore[no-untyped-def]
    """Return the differences of two `Lanes`."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.sub(*arguments)

    return _lanes(_lanes, _lanes), call


@intrinsic
def store_lanes(context, row, offset, lanes):  # type: ignore[no-untyped-def]
    """Write `Lanes` to an int16 array, ``offset`` bytes from its beginning."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = builder.bitcast(_address(context, builder, signature, arguments), _LANES.as_pointer())
        builder.store(arguments[2], address, align=2)
        return context.get_dummy_value()

    return types.void(row, types.uint64, _lanes), call


@intrinsic
def zero_products(context):  # type: ignore[no-untyped-def]
    """Return `Products` that are 0."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return ir.Constant(_PRODUCTS, None)

    return _products(), call


@intrinsic
def add_relu_products(context, products, values, weights):  # type: ignore[no-untyped-def]
    """Return `Products` plus ReLU(values) times weights, both `Lanes`; ``LANES / PRODUCTS`` products are added to each sum."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        products, values, weights = arguments
        zero = ir.Constant(_LANES, None)
        values = builder.select(builder.icmp_signed(">", values, zero), values, zero)
        wide = ir.VectorType(ir.IntType(32), LANES)
        every = builder.mul(builder.sext(values, wide), builder.sext(weights, wide))
        pairs = _sum_of_two(builder, builder.add, every, *(range(first, LANES, 2) for first in (0, 1)))  # one instruction
        return builder.add(products, _halved(builder, builder.add, pairs, PRODUCTS))

    return _products(_products, _lanes, _lanes), call


@intrinsic
def sum_products(context, products):  # type: ignore[no-untyped-def]
    """Return the sum of `Products` as a float32."""

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = builder.sitofp(arguments[0], ir.VectorType(ir.FloatType(), PRODUCTS))
        return builder.extract_element(_halved(builder, builder.fadd, vector, 1), _FLAG(0))

    return types.float32(_products), call


def _halved(builder: Any, add: Any, vector: Any, size: int) -> Any:
    """Return a vector of ``size`` numbers, by adding the second half of a vector to the first again and again."""
    while (half := vector.type.count // 2) >= size:
        vector = _sum_of_two(builder, add, vector, range(half), range(half, 2 * half))
    return vector


def _sum_of_two(builder: Any, add: Any, vector: Any, one: range, other: range) -> Any:
    """Return the sum of two parts of a vector, which consist of the numbers with these indices."""
    masks = [ir.Constant(ir.VectorType(_FLAG, len(part)), list(part)) for part in (one, other)]
    unused = ir.Constant(vector.type, ir.Undefined)
    return add(*(builder.shuffle_vector(vector, unused, mask) for mask in masks))


def panel_products(rows: int, panels: int) -> Callable[..., Any]:
    """Return a function for kernels that multiplies rows of inputs by panels of weights, with all sums in registers.

    The function takes inputs (B, I), the first of ``rows`` rows of them, weights (P, I, PANEL), of which each panel has the
    transpose of `PANEL` rows of a matrix, the first of ``panels`` panels, outputs (B, O), and the first of the ``panels * PANEL``
    columns of these that it overwrites. The numbers of a row of inputs and of outputs must be adjacent. A product is added up in
    the order of the inputs, whatever ``rows`` and ``panels`` are, so that the sums do not depend on them.
    """

    @intrinsic
    def multiply(context, inputs, row, weight, panel, outputs, column):  # type: ignore[no-untyped-def]
        def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            size = signature.args[0].dtype.bitwidth // 8
            number = context.get_value_type(signature.args[0].dtype)
            vector, everywhere = ir.VectorType(number, PANEL), ir.Constant(ir.VectorType(_FLAG, PANEL), [0] * PANEL)
            matrix, packed, result = (
                context.make_array(signature.args[place])(context, builder, arguments[place]) for place in (0, 2, 4)
            )
            own_inputs = [_row_of(builder, matrix, arguments[1], k) for k in range(rows)]
            own_weights = [_row_of(builder, packed, arguments[3], k) for k in range(panels)]
            own_outputs = [_row_of(builder, result, arguments[1], k) for k in range(rows)]
            zero = ir.Constant(vector, None)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(panels)] for _ in range(rows)]
            width = cgutils.unpack_tuple(builder, matrix.shape)[1]
            with cgutils.for_range(builder, width) as loop:
                place = builder.mul(loop.index, loop.index.type(size))
                first = builder.mul(place, place.type(PANEL))
                weights = [builder.load(_at(builder, base, first, vector), align=size, typ=vector) for base in own_weights]
                for base, own_sums in zip(own_inputs, sums, strict=True):
                    value = builder.load(_at(builder, base, place, number), typ=number)
                    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _FLAG(0))
                    values = builder.shuffle_vector(single, single, everywhere)
                    for total, each in zip(own_sums, weights, strict=True):
                        product = builder.fmul(values, each, flags=("contract",))
                        added = builder.fadd(builder.load(total, typ=vector), product, flags=("contract",))
                        builder.store(added, total)
            for base, own_sums in zip(own_outputs, sums, strict=True):
                for k, total in enumerate(own_sums):
                    place = builder.mul(builder.add(arguments[5], arguments[5].type(k * PANEL)), arguments[5].type(size))
                    builder.store(builder.load(total, typ=vector), _at(builder, base, place, vector), align=size)
            return context.get_dummy_value()

        return types.void(inputs, types.intp, weight, types.intp, outputs, types.intp), call

    multiplied: Callable[..., Any] = multiply
    return multiplied


def _row_of(builder: Any, array: Any, index: Any, offset: int) -> Any:
    """Return the address of the row ``index + offset`` of an array, as one of bytes."""
    begin = builder.mul(builder.add(index, index.type(offset)), cgutils.unpack_tuple(builder, array.strides)[0])
    return builder.gep(builder.bitcast(array.data, cgutils.voidptr_t), [begin], source_etype=_BYTE)


def _at(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    """Return the address of a value of a kind, ``offset`` bytes from another address."""
    return builder.bitcast(builder.gep(base, [offset], source_etype=_BYTE), kind.as_pointer())


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array of zeros that begins with a line of the cache, so that no read takes two lines where one is enough."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)
