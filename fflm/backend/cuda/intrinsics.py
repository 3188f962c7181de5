"""Tensor core instructions and memory accesses that numba.cuda does not offer. No other module has inline PTX.

Half-precision numbers (float16, here "halves") are stored in pairs: a uint32 whose low 16 bits are the first number. A matrix of
halves is a uint32 array (rows, pairs). The number of pairs in a row is a multiple of four, so that four can be read at a time;
the rest of a row is filled with zeros.

The threads of a warp together hold a matrix in their registers; the part of one thread is called a fragment. Let g = lane // 4
and t = lane % 4, and let (i, j) denote the pair of the elements (i, j) and (i, j + 1). Then the registers of a lane are

    A (16, 16)      (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
    B (16, 8)       pairs of its transpose (8, 16): (g, 2t), (g, 2t + 8)
    C (16, 8)       float32: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)

For TF32, each register has one number, a float32 whose last 13 bits are zeros, and

    A (16, 8)       (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
    B (8, 8)        (t, g), (t + 4, g)

Source: PTX ISA 9.0, sections 9.7.9.25 (cp.async), 9.7.14.5.6 and 9.7.14.5.8 (fragments), 9.7.14.5.14 (mma), 9.7.14.5.15
(ldmatrix), 9.7.9.22 (cvt).
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.cuda import types
from numba.cuda.extending import intrinsic

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_KINDS = {types.uint32: _INT, types.float32: _FLOAT}
_GLOBAL, _SHARED = 1, 3
"""Numbers of the address spaces of global and of shared memory."""


def _assemble(
    builder: Any, code: str, results: list[Any], arguments: Any, *, memory: bool = False, convergent: bool = False
) -> list[Any]:
    """Insert an instruction in PTX, and return its results.

    Parameters
    ----------
    builder
        The LLVM builder.
    code
        The instruction; ``$0``, ``$1``, ... stand for its results, and then its arguments.
    results
        The LLVM types of the results, which are all the same.
    arguments
        The LLVM values of the arguments, float32, or integers of 32 or 64 bits.
    memory
        Whether the instruction reads or writes memory, so that the compiler must not move it past others that write memory.
    convergent
        Whether all lanes of a warp must execute the instruction together, so that the compiler must not move it into branches.
    """
    letters = {_FLOAT: "f", _INT: "r", _LONG: "l"}
    constraints = [f"={letters[kind]}" for kind in results] + [letters[value.type] for value in arguments]
    kinds = [value.type for value in arguments]
    kind = ir.VoidType() if not results else results[0] if len(results) == 1 else ir.LiteralStructType(results)
    asm = ir.InlineAsm(ir.FunctionType(kind, kinds), code, ",".join(constraints + ["~{memory}"] * memory), side_effect=memory)
    found = builder.call(asm, arguments, attrs=("convergent",) * convergent)
    return [found] if len(results) < 2 else [builder.extract_value(found, i) for i in range(len(results))]


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the address of an element of an array, given its index in the flattened array."""
    index = builder.zext(index, _LONG) if index.type.width < 64 else index
    return builder.gep(context.make_array(kind)(context, builder, value=array).data, [index])


def _shared_address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the address, in shared memory, of an element of an array there, given its index in the flattened array."""
    place = _pointer(context, builder, kind, array, index)
    return builder.ptrtoint(builder.addrspacecast(place, ir.PointerType(_INT, _SHARED)), _INT)


def _contiguous(array: Any) -> Any:
    """Return the LLVM type of the elements of an array; raise a TypingError if it is not contiguous."""
    if array.layout != "C":
        raise TypingError("an array that is read in fours must be contiguous")
    return _KINDS[array.dtype]


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return the fragment of A B + C, given those of A (4 pairs), B (2 pairs) and C (4 float32); all lanes of a warp call it."""
    pairs, floats = types.UniTuple(types.uint32, 4), types.UniTuple(types.float32, 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        registers = [each for argument in arguments for each in cgutils.unpack_tuple(builder, argument)]
        return cgutils.pack_array(builder, _assemble(builder, code, [_FLOAT] * 4, registers, convergent=True))

    return floats(pairs, types.UniTuple(types.uint32, 2), floats), generate


@intrinsic
def multiply_add_tf32(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return the fragment of A B + C, given those of A (4), B (2) and C (4), all float32; all lanes of a warp call it."""
    floats, two = types.UniTuple(types.float32, 4), types.UniTuple(types.float32, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        left, right, added = (cgutils.unpack_tuple(builder, argument) for argument in arguments)
        registers = [*(builder.bitcast(each, _INT) for each in (*left, *right)), *added]
        return cgutils.pack_array(builder, _assemble(builder, code, [_FLOAT] * 4, registers, convergent=True))

    return floats(floats, two, floats), generate


@intrinsic
def to_tf32(typingctx: Any, number: Any) -> Any:
    """Return a float32 rounded to TF32, to the nearest number; of two equally near ones, that with the larger magnitude."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(_assemble(builder, "cvt.rna.tf32.f32 $0, $1;", [_INT], arguments)[0], _FLOAT)

    return types.float32(types.float32), generate


def _fragment_loader(name: str, transposed: str) -> Any:
    """Return an intrinsic that loads fragments by ldmatrix; ``transposed`` is ``.trans`` or an empty string."""

    def load(typingctx: Any, shared: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _shared_address(context, builder, signature.args[0], *arguments)
            code = f"ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{$0,$1,$2,$3}}, [$4];"
            loaded = _assemble(builder, code, [_INT] * 4, [address], memory=True, convergent=True)
            return cgutils.pack_array(builder, [builder.bitcast(each, _KINDS[shared.dtype]) for each in loaded])

        return types.UniTuple(shared.dtype, 4)(shared, index), generate

    load.__name__ = name
    return intrinsic(load)


fragments = _fragment_loader("fragments", "")
"""``fragments(shared, index)``: load four matrices of 8 x 8 halves from shared memory, a uint32 array of pairs.

Lane l passes the index where row l % 8 of matrix l // 8 begins, which must be a multiple of four, and receives the pair (g, 2t)
of each matrix, as a tuple of four uint32. The array must be aligned to 16 bytes, as for `load_four` and `store_four`. In a
float32 array, the matrices are 8 x 4 numbers, and a lane receives the number (g, t) of each.
"""

transposed_fragments = _fragment_loader("transposed_fragments", ".trans")
"""Load four matrices as `fragments` does, but transposed: a lane receives the elements (2t, g) and (2t + 1, g) of each."""


@intrinsic
def pair(typingctx: Any, first: Any, second: Any) -> Any:
    """Return two float32 as a pair of halves, a uint32.

    Numbers are rounded to the nearest half, ties to even; from 65,520 on they become infinity.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _assemble(builder, "cvt.rn.f16x2.f32 $0, $1, $2;", [_INT], [arguments[1], arguments[0]])[0]

    return types.uint32(types.float32, types.float32), generate


@intrinsic
def halves(typingctx: Any, pair: Any) -> Any:
    """Return the two halves of a pair (uint32) as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        both = builder.bitcast(arguments[0], ir.VectorType(ir.HalfType(), 2))
        return cgutils.pack_array(
            builder, [builder.fpext(builder.extract_element(both, ir.Constant(_INT, i)), _FLOAT) for i in range(2)]
        )

    return types.UniTuple(types.float32, 2)(types.uint32), generate


@intrinsic
def load_four(typingctx: Any, array: Any, index: Any) -> Any:
    """Return four consecutive numbers of a contiguous array of uint32 or float32, read by one instruction.

    ``index`` is that of the first number in the flattened array, a multiple of four. The array must be aligned to 16 bytes.
    """
    kind = _contiguous(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *arguments)
        vector = builder.load(builder.bitcast(place, ir.VectorType(kind, 4).as_pointer()), align=16)
        return cgutils.pack_array(builder, [builder.extract_element(vector, ir.Constant(_INT, i)) for i in range(4)])

    return types.UniTuple(array.dtype, 4)(array, index), generate


def _storer(name: str, count: int) -> Any:
    """Return an intrinsic that writes consecutive numbers of an array by one instruction."""

    def store(typingctx: Any, array: Any, index: Any, numbers: Any) -> Any:
        kind = _contiguous(array)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _pointer(context, builder, signature.args[0], *arguments[:2])
            vector = ir.Constant(ir.VectorType(kind, count), ir.Undefined)
            for i, each in enumerate(cgutils.unpack_tuple(builder, arguments[2])):
                vector = builder.insert_element(vector, each, ir.Constant(_INT, i))
            builder.store(vector, builder.bitcast(place, ir.VectorType(kind, count).as_pointer()), align=4 * count)
            return context.get_dummy_value()

        return types.void(array, index, types.UniTuple(array.dtype, count)), generate

    store.__name__ = name
    return intrinsic(store)


store_four = _storer("store_four", 4)
"""``store_four(array, index, numbers)``: write four numbers, a tuple, by one instruction to where `load_four` reads them."""

store_two = _storer("store_two", 2)
"""Write two numbers as `store_four` does; the index must be even, and the array aligned to eight bytes."""


@intrinsic
def as_floats(typingctx: Any, array: Any) -> Any:
    """Return a contiguous array of one dimension, of numbers with 32 bits, as an array of float32 in the same memory."""
    _contiguous(array)
    floats = types.Array(types.float32, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = context.make_array(array)(context, builder, value=arguments[0])
        target = context.make_array(floats)(context, builder)
        for name in ("nitems", "itemsize", "shape", "strides", "meminfo", "parent"):
            setattr(target, name, getattr(source, name))
        target.data = builder.bitcast(source.data, target.data.type)
        return target._getvalue()

    return floats(array), generate


@intrinsic
def copy_four(typingctx: Any, shared: Any, index: Any, array: Any, place: Any, present: Any) -> Any:
    """Begin to copy four consecutive words of a contiguous array to shared memory; if not ``present``, write zeros there.

    ``index`` and ``place`` are indices in the flattened arrays, multiples of four, and both arrays must be aligned to 16 bytes.
    The copies that a thread has begun since its last call of `commit_copies` become a group by that call, and `make_wait` waits
    for groups. Other threads see the copies after a barrier.
    """
    _contiguous(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = _shared_address(context, builder, signature.args[0], *arguments[:2])
        source = _pointer(context, builder, signature.args[2], *arguments[2:4])
        source = builder.ptrtoint(builder.addrspacecast(source, ir.PointerType(_INT, _GLOBAL)), _LONG)
        size = builder.select(arguments[4], ir.Constant(_INT, 16), ir.Constant(_INT, 0))
        _assemble(builder, "cp.async.cg.shared.global [$0], [$1], 16, $2;", [], [target, source, size], memory=True)
        return context.get_dummy_value()

    return types.void(shared, index, array, place, types.boolean), generate


def _statement(name: str, code: str) -> Any:
    """Return an intrinsic without arguments that is an instruction, over which memory accesses are not moved."""

    def state(typingctx: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _assemble(builder, code, [], [], memory=True)
            return context.get_dummy_value()

        return types.void(), generate

    state.__name__ = name
    return intrinsic(state)


commit_copies = _statement("commit_copies", "cp.async.commit_group;")
"""``commit_copies()``: make a group of the copies that the thread has begun since the last call."""


def make_wait(pending: int) -> Any:
    """Return an intrinsic that waits until at most ``pending`` groups of the thread's copies, the latest ones, are not done."""
    return _statement("wait_for_copies", f"cp.async.wait_group {pending};")


publish_to_tensor_cores = _statement("publish_to_tensor_cores", "fence.proxy.async.shared::cta;")
"""``publish_to_tensor_cores()``: let `make_group_product` see, after a barrier, what the thread has written to shared memory."""

GROUP_COLUMNS = 256
"""Number of columns of the product of `make_group_product`."""

GROUP_DEPTH = 64
"""Length of the inner dimension of the product of `make_group_product`."""


def _descriptor(builder: Any, address: Any, along: bool) -> Any:
    """Return the descriptor of an operand of wgmma in shared memory, for the layout of `make_group_product`, as LLVM value.

    Bits 0 to 13 are the address, 16 to 29 the leading dimension byte offset, and 32 to 45 the stride dimension byte offset, all
    in units of 16 bytes; bits 62 to 63 are 1 for the swizzle of 128 bytes. The stride leads to the next eight lines. The leading
    dimension, if lines lie across the inner dimension, leads from 64 rows or columns of the operand to the next 64.
    """
    leading = 1 if along else GROUP_DEPTH * 128 // 16
    start = builder.lshr(builder.and_(address, ir.Constant(_INT, 0x3FFFF)), ir.Constant(_INT, 4))
    return builder.or_(builder.zext(start, _LONG), ir.Constant(_LONG, leading << 16 | 1024 // 16 << 32 | 1 << 62))


def _update_sums(builder: Any, data: Any, code: str, operands: list[Any]) -> None:
    """Emit code that changes the 128 sums at a pointer: registers $0 to $127 in the code. Int64 operands are $256 and so on."""
    count = GROUP_COLUMNS // 2
    places = [builder.gep(data, [ir.Constant(_LONG, i)]) for i in range(count)]
    constraints = ["=f"] * count + [str(i) for i in range(count)] + ["l"] * len(operands) + ["~{memory}"]
    kind = ir.FunctionType(ir.LiteralStructType([_FLOAT] * count), [_FLOAT] * count + [_LONG] * len(operands))
    asm = ir.InlineAsm(kind, code, ",".join(constraints), side_effect=True)
    found = builder.call(asm, [*map(builder.load, places), *operands], attrs=("convergent",))
    for i, place in enumerate(places):
        builder.store(builder.extract_value(found, i), place)


def make_group_product(left_along: bool, right_along: bool) -> Any:
    """Return an intrinsic that multiplies matrices of halves in shared memory by wgmma, for GPUs with compute capability 9.0.

    ``(sums, shared, left, right)``: add the product of A (64, 64) and B (64, 256) to the sums, an array of 128 float32 for each
    thread of a group of four warps: for each piece of eight columns, the four numbers of a fragment (C above) of 16 rows, where
    the rows of the warps follow each other. All threads of the group call it. ``left`` and ``right`` are the indices in shared
    (uint32 pairs) where A and B begin, multiples of 256.

    A line has 64 halves: along the inner dimension, those of a row of A, or a column of B; or across it, those of 64 rows or
    columns at one position. Then the lines of further 64 columns of B follow after 64 lines. A line has eight pieces of 16 bytes,
    and number p of line l is where number p ^ l % 8 would be without this permutation.

    The call only begins the product, which takes place after those that were begun before. Until `finish_products`, the sums must
    not be used; until `await_earlier_products` or `finish_products`, the matrices must not change. Source: PTX ISA 9.0, section
    9.7.15 (wgmma), and for the meaning of the two offsets the canonical layouts in CUTLASS,
    ``cute/atom/mma_traits_sm90_gmma.hpp``.
    """
    count = GROUP_COLUMNS // 2
    registers = ",".join(f"${i}" for i in range(count))
    transposed = f"{int(not left_along)}, {int(not right_along)}"
    multiply = (
        f"wgmma.mma_async.sync.aligned.m64n{GROUP_COLUMNS}k16.f32.f16.f16 {{{registers}}}, a, b, p, 1, 1, {transposed};\n"
        f"add.s64 a, a, {2 if left_along else 128};\nadd.s64 b, b, {2 if right_along else 128};\n"  # 16 halves, or 16 lines
    )
    code = (
        f"{{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.eq.b32 p, 0, 0;\nmov.b64 a, ${2 * count};\nmov.b64 b, ${2 * count + 1};\n"
        f"wgmma.fence.sync.aligned;\n{multiply * (GROUP_DEPTH // 16)}"
        "wgmma.commit_group.sync.aligned;\n}"
    )

    def product(typingctx: Any, sums: Any, shared: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
            operands = [
                _descriptor(builder, _shared_address(context, builder, signature.args[1], arguments[1], index), along)
                for index, along in zip(arguments[2:], (left_along, right_along), strict=True)
            ]
            _update_sums(builder, data, code, operands)
            return context.get_dummy_value()

        return types.void(sums, shared, left, right), generate

    product.__name__ = f"group_product_{int(left_along)}{int(right_along)}"
    return intrinsic(product)


await_earlier_products = _statement("await_earlier_products", "wgmma.wait_group.sync.aligned 1;")
"""``await_earlier_products()``: wait for all products of `make_group_product` that the thread has begun, except the last one."""


@intrinsic
def finish_products(typingctx: Any, sums: Any) -> Any:
    """Wait for all products of `make_group_product` that the thread has begun; then the sums can be used."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        _update_sums(builder, data, "wgmma.wait_group.sync.aligned 0;", [])
        return context.get_dummy_value()

    return types.void(sums), generate


def _global(builder: Any, address: Any, index: Any) -> Any:
    """Return the pointer to a float32 of an array in global memory, given the address of the array as an integer."""
    start = builder.inttoptr(address, ir.PointerType(_FLOAT, _GLOBAL))
    return builder.gep(start, [builder.zext(index, _LONG) if index.type.width < 64 else index])


@intrinsic
def read_float(typingctx: Any, address: Any, index: Any) -> Any:
    """Return number ``index`` (unsigned) of a float32 array in global memory, given its address (int64)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_global(builder, *arguments), align=4)

    return types.float32(types.int64, index), generate


@intrinsic
def write_float(typingctx: Any, address: Any, index: Any, number: Any) -> Any:
    """Write number ``index`` (unsigned) of a float32 array in global memory, given its address (int64)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _global(builder, *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, index, types.float32), generate
