"""The tile of a product whose numbers are in fragments, as the instructions for tensor cores of all precisions leave them.

Each of the four warps of a block computes 64 x 64 numbers of the tile, as 4 x 8 fragments of 16 x 8 numbers. Each thread has
four numbers of every fragment, which `intrinsics` explains; its array of sums (4, 8, 4) is indexed by the fragment's row, the
fragment's column, and the register.
"""

import math
from dataclasses import dataclass
from typing import Any

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.intrinsics import fragments
from fflm.backend.cuda.kernels import ALL_LANES, larger
from fflm.backend.cuda.pipeline import Layout, Pipeline, make_loop
from fflm.backend.cuda.products import COLUMNS, FOUR, ROWS, Arithmetic, lines_along

THREADS = 128
"""Number of threads in a block."""

STAGES = 3
"""Number of stages of the pipeline, which take 48 KiB of shared memory."""

PIECES = 4
"""Number of pieces of a step in a line that lies along the inner dimension. Such a line has 64 bytes in shared memory."""

OPERAND = ROWS * PIECES * FOUR
"""Number of words of an operand in a step."""


@cuda.jit(device=True, forceinline=True)
def clear(sums):
    """Set the sums (4, 8, 4) to 0."""
    for i in range(4):
        for j in range(8):
            for q in range(4):
                sums[i, j, q] = float32(0)


@cuda.jit(device=True, forceinline=True)
def corner(thread):
    """Return the row and the column, in the tile, where the numbers of a thread's warp begin."""
    warp = uint32(thread // uint32(32))
    return uint32(warp // uint32(2) * uint32(64)), uint32(warp % uint32(2) * uint32(64))


@cuda.jit(device=True, forceinline=True)
def first(thread):
    """Return the row and the column, in the tile, of the first number of a thread."""
    lane, (down, across) = uint32(thread % uint32(32)), corner(thread)
    return uint32(down + lane // uint32(4)), uint32(across + lane % uint32(4) * uint32(2))


@cuda.jit(device=True, forceinline=True)
def offset(number):
    """Return the distance, in rows and in columns, of number ``number`` of a thread's 128 numbers from its first."""
    down = number // uint32(32) * uint32(16) + number // uint32(2) % uint32(2) * uint32(8)
    return down, number // uint32(4) % uint32(8) * uint32(8) + number % uint32(2)


def make_stores(below: int, right: int) -> tuple[Any, Any]:
    """Return the device functions `Arithmetic.store` and `Arithmetic.store_with_bias` for sums (4, 8, 4).

    The numbers sums[i + 1] are ``below`` rows below those of sums[i], and ``right`` columns to their right.
    """

    @cuda.jit(device=True, forceinline=True)
    def store_fragments(sums, i, c, rows, row, column, alpha, beta):
        """Store the sums[i] of a thread, as `store` says. The callers pass a constant, so that the sums stay in registers."""
        for j in range(8):
            for q in range(4):
                y, x = uint32(row + uint32(below * i + 8 * (q // 2))), uint32(column + uint32(right * i + 8 * j + q % 2))
                if y < rows and x < uint32(c.shape[1]):
                    y = uint32(y + uint32(cuda.blockIdx.z) * rows)
                    c[y, x] = alpha * sums[i, j, q] + (beta * c[y, x] if beta != float32(0) else float32(0))

    @cuda.jit(device=True, forceinline=True)
    def store_fragments_with_bias(sums, i, c, bias, rows, row, column):
        """Store sums[i] of a thread, of sums (4, 8, 4), plus bias (N,) in c (M, N). The callers pass i as a constant."""
        for j in range(8):
            for q in range(4):
                y, x = uint32(row + uint32(below * i + 8 * (q // 2))), uint32(column + uint32(right * i + 8 * j + q % 2))
                if y < rows and x < uint32(c.shape[1]):
                    c[y, x] = sums[i, j, q] + bias[x]

    @cuda.jit(device=True, forceinline=True)
    def store(sums, c, rows, row, column, alpha, beta):
        """Store alpha times a thread's sums (4, 8, 4), plus ``beta`` times the old content, in c (parts M, N).

        The rows of c are those of part number ``blockIdx.z``; each part has ``rows`` (M) rows. ``row`` and ``column`` are the
        place of the thread's first number.
        """
        store_fragments(sums, 0, c, rows, row, column, alpha, beta)
        store_fragments(sums, 1, c, rows, row, column, alpha, beta)
        store_fragments(sums, 2, c, rows, row, column, alpha, beta)
        store_fragments(sums, 3, c, rows, row, column, alpha, beta)

    @cuda.jit(device=True, forceinline=True)
    def store_with_bias(sums, c, bias, rows, row, column):
        """Store a thread's sums (4, 8, 4) plus bias (N,) in c (M, N); ``row``, ``column`` is the place of its first number."""
        store_fragments_with_bias(sums, 0, c, bias, rows, row, column)
        store_fragments_with_bias(sums, 1, c, bias, rows, row, column)
        store_fragments_with_bias(sums, 2, c, bias, rows, row, column)
        store_fragments_with_bias(sums, 3, c, bias, rows, row, column)

    return store, store_with_bias


store, store_with_bias = make_stores(16, 0)


@cuda.jit(device=True, forceinline=True)
def add_bias_of(sums, j, bias, column):
    """Add bias (V,) to the sums of a thread's fragments in column j of fragments; the callers pass j as a constant.

    Outside of the matrix, sums become -infinity. The biases of few columns at a time leave registers for the sums.
    """
    for q in range(2):
        place = uint32(column + uint32(8 * j + q))
        added = bias[place] if place < uint32(bias.size) else float32(-math.inf)
        for i in range(4):
            sums[i, j, q] += added
            sums[i, j, 2 + q] += added


@cuda.jit(device=True, forceinline=True)
def add_bias(sums, bias, column):
    """Add bias (V,) to a thread's logits, sums (4, 8, 4), which become -infinity outside of the matrix."""
    add_bias_of(sums, 0, bias, column)
    add_bias_of(sums, 1, bias, column)
    add_bias_of(sums, 2, bias, column)
    add_bias_of(sums, 3, bias, column)
    add_bias_of(sums, 4, bias, column)
    add_bias_of(sums, 5, bias, column)
    add_bias_of(sums, 6, bias, column)
    add_bias_of(sums, 7, bias, column)


@cuda.jit(device=True, forceinline=True)
def row_top(sums, i, h):
    """Return the maximum of the 64 logits of a row in a warp: of sums[i, :, 2 h] and sums[i, :, 2 h + 1] of its threads."""
    top = float32(-math.inf)
    for j in range(8):
        top = larger(larger(top, sums[i, j, 2 * h]), sums[i, j, 2 * h + 1])
    top = larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 1))
    return larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 2))


@cuda.jit(device=True, forceinline=True)
def place_of_row(i, h):
    """Return where the two warps' maxima begin, in the shared memory of `store_softmax`, of row h of a thread in fragments i."""
    down, _ = first(uint32(cuda.threadIdx.x))
    return uint32(uint32(2) * (down + uint32(16 * i + 8 * h)))


@cuda.jit(device=True, forceinline=True)
def store_tops(sums, i, statistics):
    """Do what `row_top` does for the two rows of fragments i, and store the maxima in statistics; the callers pass a constant."""
    lane, warp = uint32(cuda.threadIdx.x) % uint32(32), uint32(cuda.threadIdx.x) // uint32(32)
    for h in range(2):
        top = row_top(sums, i, h)
        if lane % uint32(4) == uint32(0):
            statistics[place_of_row(i, h) + warp % uint32(2)] = top


def make_row_exponentials(store_two: Any) -> Any:
    """Return the device function that computes the exponentials of a row of logits in the tile.

    ``store_two(c, row, column, first, second)`` stores two adjacent exponentials in c, except outside of the matrix.
    """

    @cuda.jit(device=True, forceinline=True)
    def row_exponentials(sums, i, h, top, c, stored, row, column):
        """Return the sum of exp(logit - top) over the 64 logits of a row in a warp, of which a thread has 16.

        They are sums[i, :, 2 h] and sums[i, :, 2 h + 1]. If ``stored``, the exponentials are written to row ``row`` of c.
        """
        total = float32(0)
        for j in range(8):
            first, second = math.exp(sums[i, j, 2 * h] - top), math.exp(sums[i, j, 2 * h + 1] - top)
            total += first + second
            if stored:
                store_two(c, row, uint32(column + uint32(8 * j)), first, second)
        total += cuda.shfl_xor_sync(ALL_LANES, total, 1)
        return total + cuda.shfl_xor_sync(ALL_LANES, total, 2)

    return row_exponentials


def make_store_softmax(store_two: Any) -> Any:
    """Return the device function that finishes a tile of logits, as `Arithmetic.store_softmax`; ``store_two`` as above."""
    row_exponentials = make_row_exponentials(store_two)

    @cuda.jit(device=True, forceinline=True)
    def store_exponentials(sums, i, statistics, c, stored, row, column):
        """Do what `row_exponentials` does for the two rows of fragments i, a constant, and store the sums in statistics."""
        lane, warp = uint32(cuda.threadIdx.x) % uint32(32), uint32(cuda.threadIdx.x) // uint32(32)
        for h in range(2):
            place = place_of_row(i, h)
            top = larger(statistics[place], statistics[place + uint32(1)])
            total = row_exponentials(sums, i, h, top, c, stored, uint32(row + uint32(16 * i + 8 * h)), column)
            if lane % uint32(4) == uint32(0):
                statistics[uint32(2 * ROWS) + place + warp % uint32(2)] = total

    @cuda.jit(device=True, forceinline=True)
    def store_softmax(sums, statistics, bias, c, stored, highest, totals, row0, row, column):
        """Finish a tile of logits: add bias (V,) to the sums (4, 8, 4), and compute the statistics of the softmax.

        The maximum of each row and the sum of exp(logit - maximum) are stored in highest and totals (B, tiles), and if
        ``stored``, these exponentials in c. statistics (at least 4 ROWS,) is shared memory: for each row the maxima of two
        warps, and after those of all rows, the sums of two warps. ``row0`` is the first row of the tile, and ``row``, ``column``
        is the place of the thread's first number.
        """
        thread = uint32(cuda.threadIdx.x)
        add_bias(sums, bias, column)
        store_tops(sums, 0, statistics)
        store_tops(sums, 1, statistics)
        store_tops(sums, 2, statistics)
        store_tops(sums, 3, statistics)
        cuda.syncthreads()
        store_exponentials(sums, 0, statistics, c, stored, row, column)
        store_exponentials(sums, 1, statistics, c, stored, row, column)
        store_exponentials(sums, 2, statistics, c, stored, row, column)
        store_exponentials(sums, 3, statistics, c, stored, row, column)
        cuda.syncthreads()
        if thread < uint32(ROWS) and row0 + thread < uint32(highest.shape[0]):  # one thread per row
            top, total = float32(-math.inf), float32(0)
            for k in range(2):
                top = larger(top, statistics[uint32(2) * thread + uint32(k)])
                total += statistics[uint32(2 * ROWS) + uint32(2) * thread + uint32(k)]
            highest[row0 + thread, uint32(cuda.blockIdx.x)] = top
            totals[row0 + thread, uint32(cuda.blockIdx.x)] = total

    return store_softmax


@cuda.jit(device=True, forceinline=True)
def place_along(line, piece):
    """Return the index in shared memory of a piece of a line along the inner dimension, relative to where the operand begins.

    Shared memory has 32 banks, and a piece takes four of them, so that two lines take all. Eight threads write pieces at the same
    time, and later eight lines of the same piece are read at the same time. The pieces of a line are permuted (by an exclusive or
    with the number of the pair of lines), so that both use all banks.
    """
    return uint32(line * uint32(PIECES * FOUR) + (piece ^ line // uint32(2) % uint32(4)) * uint32(FOUR))


@cuda.jit(device=True, forceinline=True)
def locate_left(thread):
    """Return the index of the piece that a thread passes to `fragments` for the first fragment of op(a), relative to its begin.

    A lane passes line lane % 8 of matrix lane // 8 of the four matrices that are loaded together: the upper and the lower one of
    a fragment, and then those to their right.
    """
    lane, (down, _) = uint32(thread % uint32(32)), corner(thread)
    return place_along(down + lane // uint32(8) % uint32(2) * uint32(8) + lane % uint32(8), lane // uint32(16))


@cuda.jit(device=True, forceinline=True)
def locate_right(thread):
    """Return the index as `locate_left` does, for op(b).

    The four matrices are the first and the second one along the inner dimension, and then the same of the next eight columns.
    """
    lane, (_, across) = uint32(thread % uint32(32)), corner(thread)
    return place_along(across + lane // uint32(16) * uint32(8) + lane % uint32(8), lane // uint32(8) % uint32(2))


@cuda.jit(device=True, forceinline=True)
def load_along(shared, index, half, i):
    """Return the four words of fragment i of op(a), or of the fragments 2 i and 2 i + 1 of op(b), in a half of the step.

    ``index`` is that of the first fragment: the result of `locate_left` or `locate_right`, and where the operand begins.
    """
    return fragments(shared, (index ^ uint64(2 * FOUR * half)) + uint64(16 * PIECES * FOUR * i))


@dataclass(frozen=True)
class FragmentLayout(Layout):
    """How operands lie in shared memory whose lines lie along the inner dimension, or across it, and how fragments are read.

    Attributes
    ----------
    locate_left, locate_right, load_left, load_right
        As `locate_left`, `locate_right` and, for both operands, `load_along`.
    """

    locate_left: Any
    locate_right: Any
    load_left: Any
    load_right: Any


ALONG = FragmentLayout(place_along, PIECES * FOUR, locate_left, locate_right, load_along, load_along)
"""Lines along the inner dimension. Those across it differ between halves and TF32."""


@cuda.jit(device=True, forceinline=True)
def publish():
    """Do nothing: a warp reads fragments in the same way as it writes shared memory, so that the barrier is enough."""


@cuda.jit(device=True, forceinline=True)
def await_products():
    """Do nothing: the products of a step are done when a warp comes to the barrier."""


@cuda.jit(device=True, forceinline=True)
def finish(sums):
    """Do nothing: all products are done."""


def make_arithmetic(
    width: int, word: Any, across: FragmentLayout, compute_slopes: Any, rounded: Any, multiply_add: Any, store_two: Any
) -> Arithmetic:
    """Return the arithmetic of a precision on tensor cores.

    Parameters
    ----------
    width, word
        As for `Arithmetic`.
    across
        The layout of operands whose lines lie across the inner dimension.
    compute_slopes
        As for `Pipeline`.
    rounded
        ``(words)``: return the four words of fragments as ``multiply_add``, the instruction, expects them.
    store_two
        As for `make_store_softmax`.
    """

    def make_multiply(left: FragmentLayout, right: FragmentLayout) -> tuple[Any, Any]:
        locate_a, load_a, locate_b, load_b = left.locate_left, left.load_left, right.locate_right, right.load_right

        @cuda.jit(device=True, forceinline=True)
        def locate(thread):
            """Return the indices in a stage of the thread's first fragments of op(a) and op(b)."""
            return locate_a(thread), uint32(uint32(OPERAND) + locate_b(thread))

        @cuda.jit(device=True, forceinline=True)
        def multiply(sums, shared, left, right):
            """Add the products of a step, which has twice the depth of a fragment, to sums (4, 8, 4) of each thread."""
            left, right = uint64(left), uint64(right)
            rights = cuda.local.array((8, 2), word)
            for half in range(2):
                for j in range(4):
                    four = rounded(load_b(shared, right, half, j))
                    rights[2 * j, 0], rights[2 * j, 1], rights[2 * j + 1, 0], rights[2 * j + 1, 1] = four
                for i in range(4):
                    a = rounded(load_a(shared, left, half, i))
                    for j in range(8):
                        c = sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]
                        c = multiply_add(a, (rights[j, 0], rights[j, 1]), c)
                        sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = c

        return locate, multiply

    def make_own_loop(form: str) -> Any:
        left, right = (ALONG if along else across for along in lines_along(form))
        locate, multiply = make_multiply(left, right)
        pipeline = Pipeline(
            threads=THREADS,
            stages=STAGES,
            pieces=PIECES,
            width=width,
            columns=COLUMNS,
            word=word,
            left=left,
            right=right,
            compute_slopes=compute_slopes,
            publish=publish,
            clear=clear,
            locate=locate,
            multiply=multiply,
            unfinished=0,
            await_products=await_products,
            finish=finish,
        )
        return make_loop(pipeline, form)

    return Arithmetic(
        threads=THREADS,
        columns=COLUMNS,
        width=width,
        word=word,
        shared_words=STAGES * 2 * OPERAND,
        sums=(4, 8, 4),
        make_loop=make_own_loop,
        first=first,
        offset=offset,
        store=store,
        store_with_bias=store_with_bias,
        store_softmax=make_store_softmax(store_two),
    )
