"""Instructions of tensor cores and vector accesses, for which numba.cuda has no names. No other module has inline PTX.

Two halves (float16) are a pair, a uint32 whose low bits are the first. A matrix of halves is a uint32 array (rows, pairs), whose
rows hold a multiple of four pairs, filled up with zeros, so that they can be read four at a time.

The threads of a warp hold a matrix together, in fragments. With g = lane // 4 and t = lane % 4, and (i, j) meaning the pair of
the elements (i, j) and (i, j + 1), a lane's registers are

    A (16, 16)      (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
    B (16, 8)       of its transpose (8, 16): (g, 2t), (g, 2t + 8)
    C (16, 8)       float32: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)

Source: PTX ISA 9.0, sections 9.7.14.5.8 (fragments), 9.7.14.5.14 (mma), 9.7.14.5.15 (ldmatrix), 9.7.9.22 (cvt).
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.cuda import types
from numba.cuda.extending import intrinsic

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_KINDS = {types.uint32: _INT, types.float32: _FLOAT}
_SHARED = 3
"""The number of the shared memory's address space."""


def _assemble(builder: Any, code: str, results: list[Any], arguments: Any, *, memory: bool = False) -> list[Any]:
    """Insert an instruction whose results have one type; one that reads ``memory`` is not moved."""
    letters = {_FLOAT: "f", _INT: "r"}
    constraints = [f"={letters[kind]}" for kind in results] + [letters[value.type] for value in arguments]
    kinds = [value.type for value in arguments]
    kind = results[0] if len(results) == 1 else ir.LiteralStructType(results)
    asm = ir.InlineAsm(ir.FunctionType(kind, kinds), code, ",".join(constraints + ["~{memory}"] * memory), side_effect=memory)
    found = builder.call(asm, arguments)
    return [found] if len(results) == 1 else [builder.extract_value(found, i) for i in range(len(results))]


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the address of an element of an array, by its index in the flat array."""
    index = builder.zext(index, _LONG) if index.type.width < 64 else index
    return builder.gep(context.make_array(kind)(context, builder, value=array).data, [index])


def _contiguous(array: Any) -> Any:
    """Return the LLVM type of the elements of an array; raise a TypingError if it is not contiguous."""
    if array.layout != "C":
        raise TypingError("an array that is read in fours must be contiguous")
    return _KINDS[array.dtype]


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return A B + C for the fragments of a warp: 4 pairs of A, 2 pairs of B, 4 float32 of C and of the result."""
    pairs, floats = types.UniTuple(types.uint32, 4), types.UniTuple(types.float32, 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        registers = [each for argument in arguments for each in cgutils.unpack_tuple(builder, argument)]
        return cgutils.pack_array(builder, _assemble(builder, code, [_FLOAT] * 4, registers))

    return floats(pairs, types.UniTuple(types.uint32, 2), floats), generate


def _fragment_loader(name: str, transposed: str) -> Any:
    def load(typingctx: Any, shared: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _pointer(context, builder, signature.args[0], *arguments)
            address = builder.ptrtoint(builder.addrspacecast(place, ir.PointerType(_INT, _SHARED)), _INT)
            code = f"ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{$0,$1,$2,$3}}, [$4];"
            return cgutils.pack_array(builder, _assemble(builder, code, [_INT] * 4, [address], memory=True))

        return types.UniTuple(types.uint32, 4)(shared, index), generate

    load.__name__ = name
    return intrinsic(load)


fragments = _fragment_loader("fragments", "")
"""Load four matrices of 8 x 8 halves from shared memory, an array of pairs.

Lane l passes the index at which row l % 8 of matrix l // 8 begins, a multiple of four, and receives the pair (g, 2t) of each
matrix. The array must begin at a multiple of 16 bytes, as for `load_four` and `store_four`.
"""

transposed_fragments = _fragment_loader("transposed_fragments", ".trans")
"""Load four matrices as `fragments` does, and transpose each: a lane gets the elements (2t, g) and (2t + 1, g)."""


@intrinsic
def pair(typingctx: Any, first: Any, second: Any) -> Any:
    """Return two float32 as a pair of halves, rounded to the nearest with ties to even; from 65,520 on they become infinity."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _assemble(builder, "cvt.rn.f16x2.f32 $0, $1, $2;", [_INT], [arguments[1], arguments[0]])[0]

    return types.uint32(types.float32, types.float32), generate


@intrinsic
def halves(typingctx: Any, pair: Any) -> Any:
    """Return both halves of a pair as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        both = builder.bitcast(arguments[0], ir.VectorType(ir.HalfType(), 2))
        return cgutils.pack_array(
            builder, [builder.fpext(builder.extract_element(both, ir.Constant(_INT, i)), _FLOAT) for i in range(2)]
        )

    return types.UniTuple(types.float32, 2)(types.uint32), generate


@intrinsic
def load_four(typingctx: Any, array: Any, index: Any) -> Any:
    """Return four consecutive numbers of a contiguous array of uint32 or float32, read at once from a flat index.

    The index is a multiple of four, and the array begins at a multiple of 16 bytes.
    """
    kind = _contiguous(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *arguments)
        vector = builder.load(builder.bitcast(place, ir.VectorType(kind, 4).as_pointer()), align=16)
        return cgutils.pack_array(builder, [builder.extract_element(vector, ir.Constant(_INT, i)) for i in range(4)])

    return types.UniTuple(array.dtype, 4)(array, index), generate


@intrinsic
def store_four(typingctx: Any, array: Any, index: Any, numbers: Any) -> Any:
    """Write four consecutive numbers at once, where `load_four` reads them."""
    kind = _contiguous(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *arguments[:2])
        vector = ir.Constant(ir.VectorType(kind, 4), ir.Undefined)
        for i, each in enumerate(cgutils.unpack_tuple(builder, arguments[2])):
            vector = builder.insert_element(vector, each, ir.Constant(_INT, i))
        builder.store(vector, builder.bitcast(place, ir.VectorType(kind, 4).as_pointer()), align=16)
        return context.get_dummy_value()

    return types.void(array, index, types.UniTuple(array.dtype, 4)), generate
