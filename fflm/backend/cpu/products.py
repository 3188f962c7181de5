"""Matrix products with tiles of the output layer, which read both matrices where they are.

BLAS first copies both matrices into another order. For a product with a tile this takes a large share of the time, because the
other matrix has few columns, so that each number of the copy is used only a few times.
"""

from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fflm.backend.cpu.blas import call_gemm
from fflm.instructions import CACHE_LINE

ROWS, VECTORS = 8, 2
"""Size of the blocks of the result, in rows and in vectors of a cache line, whose sums stay in registers."""

_INT, _BIT = ir.IntType(32), ir.IntType(1)


@intrinsic
def multiply_tile(context, a, b, c, beta):  # type: ignore[no-untyped-def]
    """Compute ``c = a @ b + beta * c``: a (M, K), b (K, N), c (M, N), as for `fflm.backend.cpu.blas.gemm`; K is at least 1.

    The terms of each sum are added in their order. BLAS computes matrices that are smaller than a block, and all on processors
    without AVX-512, which have too few registers.
    """
    return types.void(a, b, c, c.dtype), partial(_multiply, False)


@intrinsic
def multiply_turned_tile(context, a, b, c, beta):  # type: ignore[no-untyped-def]
    """Compute ``c = a^T @ b + beta * c``: a (K, M), b (K, N), c (M, N), as `multiply_tile` does."""
    return types.void(a, b, c, c.dtype), partial(_multiply, True)


def _multiply(turned, context, builder, signature, arguments):  # type: ignore[no-untyped-def]
    """Emit the choice between the two ways to compute a product; ``turned`` says that ``a`` is transposed."""
    a, b, c, beta = arguments
    rows, columns = cgutils.unpack_tuple(builder, context.make_array(signature.args[2])(context, builder, c).shape)
    small: ir.Value = cgutils.true_bit
    if "+avx512f" in context.codegen().magic_tuple()[2].split(","):
        width = CACHE_LINE * 8 // signature.args[2].dtype.bitwidth
        small = builder.icmp_signed("<", rows, rows.type(ROWS))
        small = builder.or_(small, builder.icmp_signed("<", columns, columns.type(VECTORS * width)))
    with builder.if_else(small) as (by_blas, in_blocks):
        with by_blas:
            call_gemm(context, builder, signature, (a, b, c, _BIT(turned), _BIT(False), beta))
        with in_blocks:
            _Blocks(turned, context, builder, signature, arguments).emit()
    return context.get_dummy_value()


class _Blocks:
    """Emits a product of matrices that are not smaller than a block; the arguments are those of `_multiply`.

    The last blocks may begin before the end of those before them. What these have computed is then not stored again.
    """

    def __init__(self, turned, context, builder, signature, arguments) -> None:  # type: ignore[no-untyped-def]
        kind = signature.args[2].dtype
        arrays = (
            context.make_array(each)(context, builder, value)
            for each, value in zip(signature.args[:3], arguments[:3], strict=True)
        )
        self.builder, self.a, self.b, self.c = builder, *arrays
        self.beta, self.size, self.item = arguments[3], cgutils.intp_t, kind.bitwidth // 8
        self.number, self.lanes = context.get_data_type(kind), CACHE_LINE // self.item
        self.vector = ir.VectorType(self.number, self.lanes)
        a_step, self.b_step, self.c_step = (builder.extract_value(each.strides, 0) for each in (self.a, self.b, self.c))
        own = self.size(self.item)
        self.row_step, self.term_step = (own, a_step) if turned else (a_step, own)
        self.rows, self.columns = cgutils.unpack_tuple(builder, self.c.shape)
        self.terms = cgutils.unpack_tuple(builder, self.b.shape)[0]

    def emit(self) -> None:
        """Emit the loops over the blocks: the columns of ``b`` in a block stay in the cache for all rows."""
        builder, size = self.builder, self.size
        with cgutils.for_range_slice(builder, size(0), self.columns, size(VECTORS * self.lanes)) as (column, _):
            narrow = builder.icmp_signed("<=", builder.sub(self.columns, column), size(self.lanes))
            with builder.if_else(narrow) as (last, others):
                for vectors, branch in ((1, last), (VECTORS, others)):
                    with branch, cgutils.for_range_slice(builder, size(0), self.rows, size(ROWS)) as (row, _):
                        self._block(row, column, vectors)

    def _block(self, row, column, vectors) -> None:  # type: ignore[no-untyped-def]
        """Emit the computation of a block of so many vectors in each row."""
        builder, size, vector = self.builder, self.size, self.vector
        top, left = self._least(row, self.rows, ROWS), self._least(column, self.columns, vectors * self.lanes)
        places = [builder.add(left, size(self.lanes * each)) for each in range(vectors)]
        offsets = [builder.mul(place, size(self.item)) for place in places]
        origin = cgutils.pointer_add(builder, self.a.data, builder.mul(top, self.row_step))
        sources = [builder.mul(size(each), self.row_step) for each in range(ROWS)]
        before, body, after = builder.block, builder.append_basic_block("terms"), builder.append_basic_block("sums")
        builder.branch(body)
        builder.position_at_end(body)
        term = builder.phi(size)
        sums = [builder.phi(vector) for _ in range(ROWS * vectors)]
        begin = builder.mul(term, self.b_step)
        values = [self._load(self.b.data, builder.add(begin, offset), vector) for offset in offsets]
        own = cgutils.pointer_add(builder, origin, builder.mul(term, self.term_step))
        factors = [self._spread(self._load(own, source, self.number)) for source in sources]
        fma = self._routine("fma", "", vector, vector, vector, vector)
        pairs = [(factor, value) for factor in factors for value in values]
        results = [builder.call(fma, [*pair, total]) for pair, total in zip(pairs, sums, strict=True)]
        following = builder.add(term, size(1))
        zero = ir.Constant(vector, [0.0] * self.lanes)
        for phi, first, then in ((term, size(0), following), *((s, zero, r) for s, r in zip(sums, results, strict=True))):
            phi.add_incoming(first, before)
            phi.add_incoming(then, body)
        builder.cbranch(builder.icmp_signed("<", following, self.terms), body, after)
        builder.position_at_end(after)
        lane = ir.Constant(ir.VectorType(size, self.lanes), list(range(self.lanes)))
        masks = [builder.icmp_signed(">=", lane, self._spread(builder.sub(column, place))) for place in places]
        for each in range(ROWS):
            number = builder.add(top, size(each))
            with builder.if_then(builder.icmp_signed(">=", number, row)):
                target = cgutils.pointer_add(builder, self.c.data, builder.mul(number, self.c_step))
                for offset, mask, total in zip(offsets, masks, results[each * vectors :], strict=False):
                    self._store(total, target, offset, mask)

    def _least(self, place, count, length):  # type: ignore[no-untyped-def]
        """Return where a block of a length begins that does not go beyond ``count``."""
        last = self.builder.sub(count, self.size(length))
        return self.builder.select(self.builder.icmp_signed("<", place, last), place, last)

    def _address(self, data, offset, kind):  # type: ignore[no-untyped-def]
        return self.builder.bitcast(cgutils.pointer_add(self.builder, data, offset), kind.as_pointer())

    def _load(self, data, offset, kind):  # type: ignore[no-untyped-def]
        """Return the number or vector that is ``offset`` bytes after an address."""
        return self.builder.load(self._address(data, offset, kind), align=self.item, typ=kind)

    def _store(self, total, target, offset, mask) -> None:  # type: ignore[no-untyped-def]
        """Store a vector of sums, plus ``beta`` times the content, where the mask is set. If ``beta`` is 0, nothing is read."""
        vector, flags = self.vector, ir.VectorType(_BIT, self.lanes)
        address, item = self._address(target, offset, vector), _INT(self.item)
        load = self._routine("masked.load", ".p0", vector, address.type, _INT, flags, vector)
        store = self._routine("masked.store", ".p0", ir.VoidType(), vector, address.type, _INT, flags)
        fma = self._routine("fma", "", vector, vector, vector, vector)
        adds = self._spread(self.builder.fcmp_unordered("!=", self.beta, self.beta.type(0)))
        old = self.builder.call(load, [address, item, adds, ir.Constant(vector, [0.0] * self.lanes)])
        self.builder.call(store, [self.builder.call(fma, [self._spread(self.beta), old, total]), address, item, mask])

    def _spread(self, value):  # type: ignore[no-untyped-def]
        """Return a vector of equal numbers."""
        kind = ir.VectorType(value.type, self.lanes)
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT(0))
        return self.builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_INT, self.lanes), [0] * self.lanes))

    def _routine(self, name, suffix, result, *kinds):  # type: ignore[no-untyped-def]
        """Return a function of LLVM for vectors."""
        full = f"llvm.{name}.v{self.lanes}f{8 * self.item}{suffix}"
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, kinds), full)
