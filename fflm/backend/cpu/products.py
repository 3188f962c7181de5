"""Matrix products that read both matrices where they are, or copy a panel of one of them at a time.

BLAS first copies both matrices into another order. In the products of a network this takes a large share of the time, because
one side of each matrix is short, so that each number of the copy is used only a few times.
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

TERMS = 512
"""Largest number of terms that are added to a block at a time. A panel has room for as many: 64 KiB, on the thread's stack."""

LONGEST_STEP = 2048
"""Longest distance between two rows, in bytes, at which vectors are read where they are; see `_Blocks._source`."""

_LINE = VECTORS * CACHE_LINE  # bytes of a term in the panel
_INT, _BIT = ir.IntType(32), ir.IntType(1)


@intrinsic
def gemm_nn(context, a, b, c, beta):  # type: ignore[no-untyped-def]
    """Compute ``c = a @ b + beta * c``: a (M, K), b (K, N), c (M, N), all float32 or all float64.

    The numbers of a row must be adjacent in memory, but rows may be slices of longer rows. A ``beta`` of 0 overwrites ``c``, even
    if it contains NaN; otherwise the terms of each sum are added to ``beta * c`` in their order. BLAS computes matrices that are
    smaller than a block, and all on processors without AVX-512, which have too few registers.
    """
    return types.void(a, b, c, c.dtype), partial(_multiply, False, False)


@intrinsic
def gemm_tn(context, a, b, c, beta):  # type: ignore[no-untyped-def]
    """Compute ``c = a^T @ b + beta * c``: a (K, M), b (K, N), c (M, N), as `gemm_nn` does."""
    return types.void(a, b, c, c.dtype), partial(_multiply, True, False)


@intrinsic
def gemm_nt(context, a, b, c, beta):  # type: ignore[no-untyped-def]
    """Compute ``c = a @ b^T + beta * c``: a (M, K), b (N, K), c (M, N), as `gemm_nn` does."""
    return types.void(a, b, c, c.dtype), partial(_multiply, False, True)


def _multiply(turned_a, turned_b, context, builder, signature, arguments):  # type: ignore[no-untyped-def]
    """Emit the choice between the two ways to compute a product; ``turned_a`` and ``turned_b`` say what is transposed."""
    a, b, c, beta = arguments
    shapes = [
        cgutils.unpack_tuple(builder, context.make_array(kind)(context, builder, value).shape)
        for kind, value in zip(signature.args[1:3], (b, c), strict=True)
    ]
    terms, sizes = shapes[0][turned_b], shapes[1]
    by_blas = a, b, c, _BIT(turned_a), _BIT(turned_b), beta
    if "+avx512f" not in context.codegen().magic_tuple()[2].split(","):
        return call_gemm(context, builder, signature, by_blas)
    lanes = CACHE_LINE * 8 // signature.args[2].dtype.bitwidth
    least = zip((*sizes, terms), (ROWS, VECTORS * lanes, lanes if turned_b else 1), strict=True)
    rows, columns, few = (builder.icmp_signed("<", size, size.type(number)) for size, number in least)
    with builder.if_else(builder.or_(builder.or_(rows, columns), few)) as (small, large):
        with small:
            call_gemm(context, builder, signature, by_blas)
        with large:
            _Blocks(turned_a, turned_b, context, builder, signature, arguments).emit()
    return context.get_dummy_value()


class _Blocks:
    """Emits a product of matrices that are not smaller than a block; the other arguments are those of `_multiply`.

    The last blocks may begin before the end of those before them. What these have computed is then not stored again.
    """

    def __init__(self, turned_a, turned_b, context, builder, signature, arguments) -> None:  # type: ignore[no-untyped-def]
        kind = signature.args[2].dtype
        arrays = (
            context.make_array(each)(context, builder, value)
            for each, value in zip(signature.args[:3], arguments[:3], strict=True)
        )
        self.builder, self.a, self.b, self.c = builder, *arrays
        self.beta, self.size, self.item = arguments[3], cgutils.intp_t, kind.bitwidth // 8
        self.number, self.lanes, self.turned = context.get_data_type(kind), CACHE_LINE // self.item, turned_b
        self.vector = ir.VectorType(self.number, self.lanes)
        a_step, self.b_step, self.c_step = (builder.extract_value(each.strides, 0) for each in (self.a, self.b, self.c))
        own = self.size(self.item)
        self.row_step, self.term_step = (own, a_step) if turned_a else (a_step, own)
        self.rows, self.columns = cgutils.unpack_tuple(builder, self.c.shape)
        self.terms = cgutils.unpack_tuple(builder, self.b.shape)[turned_b]
        memory = cgutils.alloca_once(builder, self.vector, size=VECTORS * (TERMS + self.lanes))
        memory.align = CACHE_LINE
        # Before the terms of a panel there is room for those that the last vectors to be transposed may begin with.
        self.panel = cgutils.pointer_add(builder, builder.bitcast(memory, cgutils.voidptr_t), self.size(self.lanes * _LINE))

    def emit(self) -> None:
        """Emit the loops over the blocks: the vectors of up to `TERMS` terms stay in the cache for all rows."""
        builder, size, wide = self.builder, self.size, VECTORS * self.lanes
        with (
            cgutils.for_range_slice(builder, size(0), self.terms, size(TERMS)) as (term, _),
            cgutils.for_range_slice(builder, size(0), self.columns, size(wide)) as (column, _),
        ):
            after = builder.add(term, size(TERMS))
            after = builder.select(builder.icmp_signed("<", after, self.terms), after, self.terms)
            beta = builder.select(builder.icmp_signed("==", term, size(0)), self.beta, self.beta.type(1))
            narrow = builder.icmp_signed("<=", builder.sub(self.columns, column), size(self.lanes))
            left = builder.select(narrow, self._least(column, self.columns, self.lanes), self._least(column, self.columns, wide))
            source = self._source(term, after, left, builder.select(narrow, size(1), size(VECTORS)))
            with builder.if_else(narrow) as (last, others):
                for vectors, branch in ((1, last), (VECTORS, others)):
                    with branch, cgutils.for_range_slice(builder, size(0), self.rows, size(ROWS)) as (row, _):
                        self._block(row, column, left, vectors, term, after, beta, *source)

    def _source(self, term, after, left, vectors):  # type: ignore[no-untyped-def]
        """Return where the vectors of the first term are, and the bytes from one term to the next.

        The vectors are copied to the panel if they are columns of ``b^T``, or if the rows of ``b`` are so long that the vectors
        would map to few sets of the L1 cache.
        """
        builder, size, step = self.builder, self.size, self.size(_LINE)
        if self.turned:
            with cgutils.for_range(builder, vectors) as loop:
                self._transpose(term, after, builder.add(left, builder.mul(loop.index, size(self.lanes))), loop.index)
            return self.panel, step
        begin = builder.add(builder.mul(term, self.b_step), builder.mul(left, size(self.item)))
        first, far = cgutils.pointer_add(builder, self.b.data, begin), builder.icmp_signed(">", self.b_step, size(LONGEST_STEP))
        with builder.if_then(far), cgutils.for_range(builder, builder.sub(after, term)) as loop:
            own, there = builder.mul(loop.index, step), builder.mul(loop.index, self.b_step)
            with cgutils.for_range(builder, vectors) as each:
                part = builder.mul(each.index, size(CACHE_LINE))
                value = self._load(first, builder.add(there, part), self.vector)
                self._keep(value, builder.add(own, part))
        return builder.select(far, self.panel, builder.bitcast(first, self.panel.type)), builder.select(far, step, self.b_step)

    def _transpose(self, term, after, place, number) -> None:  # type: ignore[no-untyped-def]
        """Emit the copy of rows of ``b``, as many as a vector has numbers, to vectors ``number`` of the panel."""
        builder, size, lanes = self.builder, self.size, self.lanes
        half, rounds = lanes // 2, lanes.bit_length() - 1
        masks = [
            ir.Constant(ir.VectorType(_INT, lanes), [lane + side for lane in part for side in (0, lanes)])
            for part in (range(half), range(half, lanes))
        ]
        with cgutils.for_range_slice(builder, term, after, size(lanes)) as (first, _):
            first = self._least(first, after, lanes)
            begin = builder.add(builder.mul(place, self.b_step), builder.mul(first, size(self.item)))
            offsets = [builder.add(begin, builder.mul(self.b_step, size(lane))) for lane in range(lanes)]
            vectors = [self._load(self.b.data, offset, self.vector) for offset in offsets]
            for _ in range(rounds):  # each interleaves the first half of the vectors with the second one
                pairs = [(vectors[k // 2], vectors[k // 2 + half], masks[k % 2]) for k in range(lanes)]
                vectors = [builder.shuffle_vector(*pair) for pair in pairs]
            part = builder.mul(number, size(CACHE_LINE))
            for k, vector in enumerate(vectors):
                own = builder.mul(builder.sub(builder.add(first, size(k)), term), size(_LINE))
                self._keep(vector, builder.add(own, part))

    def _keep(self, vector, offset) -> None:  # type: ignore[no-untyped-def]
        """Store a vector in the panel."""
        self.builder.store(vector, self._address(self.panel, offset, self.vector), align=CACHE_LINE)

    def _block(self, row, column, left, vectors, begin, end, beta, source, step) -> None:  # type: ignore[no-untyped-def]
        """Emit the computation of a block that has so many vectors from ``left`` on in each row, for some terms.

        ``source`` and ``step`` are from `_source`.
        """
        builder, size, vector = self.builder, self.size, self.vector
        top = self._least(row, self.rows, ROWS)
        places = [builder.add(left, size(self.lanes * each)) for each in range(vectors)]
        offsets = [builder.mul(place, size(self.item)) for place in places]
        origin = cgutils.pointer_add(builder, self.a.data, builder.mul(top, self.row_step))
        sources = [builder.mul(size(each), self.row_step) for each in range(ROWS)]
        rows_of_c = [builder.mul(builder.add(top, size(each)), self.c_step) for each in range(ROWS)]
        targets = [cgutils.pointer_add(builder, self.c.data, each) for each in rows_of_c]
        before, adds, body, after = builder.block, *(builder.append_basic_block(name) for name in ("adds", "terms", "sums"))
        builder.cbranch(builder.fcmp_unordered("!=", beta, beta.type(0)), adds, body)
        builder.position_at_end(adds)
        factor = self._spread(beta)
        old = [builder.fmul(factor, self._load(target, offset, vector)) for target in targets for offset in offsets]
        builder.branch(body)
        builder.position_at_end(body)
        term = builder.phi(size)
        sums = [builder.phi(vector) for _ in range(ROWS * vectors)]
        there = builder.mul(builder.sub(term, begin), step)
        values = [self._load(source, builder.add(there, size(each * CACHE_LINE)), vector) for each in range(vectors)]
        own = cgutils.pointer_add(builder, origin, builder.mul(term, self.term_step))
        factors = [self._spread(self._load(own, each, self.number)) for each in sources]
        fma = self._routine("fma", "", vector, vector, vector, vector)
        pairs = [(factor, value) for factor in factors for value in values]
        results = [builder.call(fma, [*pair, total]) for pair, total in zip(pairs, sums, strict=True)]
        following = builder.add(term, size(1))
        zero = ir.Constant(vector, [0.0] * self.lanes)
        term.add_incoming(begin, adds)
        for phi, first, then in ((term, begin, following), *((s, zero, r) for s, r in zip(sums, results, strict=True))):
            phi.add_incoming(first, before)
            phi.add_incoming(then, body)
        for phi, first in zip(sums, old, strict=True):
            phi.add_incoming(first, adds)
        builder.cbranch(builder.icmp_signed("<", following, end), body, after)
        builder.position_at_end(after)
        lane = ir.Constant(ir.VectorType(size, self.lanes), list(range(self.lanes)))
        masks = [builder.icmp_signed(">=", lane, self._spread(builder.sub(column, place))) for place in places]
        for each, target in enumerate(targets):
            with builder.if_then(builder.icmp_signed(">=", builder.add(top, size(each)), row)):
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
        """Store a vector of sums where the mask is set."""
        vector, flags = self.vector, ir.VectorType(_BIT, self.lanes)
        address = self._address(target, offset, vector)
        store = self._routine("masked.store", ".p0", ir.VoidType(), vector, address.type, _INT, flags)
        self.builder.call(store, [total, address, _INT(self.item), mask])

    def _spread(self, value):  # type: ignore[no-untyped-def]
        """Return a vector of equal numbers."""
        kind = ir.VectorType(value.type, self.lanes)
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT(0))
        return self.builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_INT, self.lanes), [0] * self.lanes))

    def _routine(self, name, suffix, result, *kinds):  # type: ignore[no-untyped-def]
        """Return a function of LLVM for vectors."""
        full = f"llvm.{name}.v{self.lanes}f{8 * self.item}{suffix}"
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, kinds), full)
