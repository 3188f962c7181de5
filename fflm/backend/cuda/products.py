"""The matrix products of the CUDA backend: the algorithm, which does not depend on the precision.

A product is c = op(a) op(b), where op is the identity, the transpose, or the computation of gradients of logits. A block of
threads computes a tile of `ROWS` x `COLUMNS` numbers of c, in steps along the inner dimension. While the operands of one step are
multiplied, those of later steps are read: by `single` into registers, and by `pipeline`, for tensor cores, into shared memory.

A *word* has four bytes: a float32, or a pair of halves (float16). Threads read operands in *pieces* of `FOUR` adjacent words. A
*line* is a row of an operand as it is stored in memory. Depending on the form of the product, lines lie along the inner dimension
or across it.

`single`, `tf32` and `mixed` have the arithmetic of the three precisions. The rules for indices and constants are those of
`kernels`.

The kernels of products, and the device function that they call, have these parameters:

a, b
    The operands, from which op(a) (M, K) and op(b) (K, N) are read, as the form says: float32, or in mixed precision uint32 pairs
    of halves.
c
    Output (M, N) float32. For SOFTMAX, it is (M, at least N) and has the type of the operands, because it becomes one: it
    contains exp(logit - maximum of the row in the tile), and the rest of each row is filled with zeros to whole pieces. For
    STATISTICS, it is not used.
inner, span
    K, and how many positions of the inner dimension a block adds up, uint32. They differ only for STORE without
    SLOPES_TRANSPOSED: then c is (parts M, N), and the blocks whose index in dimension z of the grid is z add up the positions
    from z span on, for part z.
alpha
    Factor on op(a) op(b), and on the sums of the rows of op(a).
beta
    Factor on the old content of the results that are added to.
bias
    Input (N,), except for STORE. For SLOPES_TRANSPOSED it is an output (M,): the sums of the rows of op(a).
code, gamma
    For ACTIVATE: the activation function ``ACTIVATIONS[code]`` and its factor gamma.
highest, totals
    Outputs for SOFTMAX and STATISTICS, (M, tiles): the maximum of the logits of each row of a tile, and the sum of
    exp(logit - maximum).
factors, targets, hit, spread
    Inputs for SLOPES and SLOPES_TRANSPOSED, where a (B, V) contains exponentials: factors (B, tiles), targets (B,), and two
    float32. The gradient of a logit is its exponential times the factor, minus ``spread``, and minus ``hit`` if the logit is that
    of the target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.intrinsics import as_floats, load_four
from fflm.backend.cuda.launching import kernel
from fflm.backend.formulas import activate

ROWS, COLUMNS = 128, 128
"""Size of the tile of a matrix product that a block computes. Other modules rely on both numbers being equal."""

FOUR = 4
"""Number of words in a piece, which are read by one instruction."""

OUTSIDE = 2**31
"""Used in place of the number of the target in a piece if the piece is outside of the matrix."""

PLAIN, TRANSPOSED, SLOPES, SLOPES_TRANSPOSED = range(4)
"""How a product reads an operand: as it is stored (PLAIN) or transposed. With SLOPES and SLOPES_TRANSPOSED, the matrix contains
exponentials of logits, and the operand is the matrix of the gradients of the logits, which are computed when they are read."""

STORE, ACTIVATE, SOFTMAX, STATISTICS = range(4)
"""What a product does with its result: STORE adds it to ``beta`` times the old content. ACTIVATE adds a bias and applies an
activation function. SOFTMAX adds a bias and stores exp(logit - maximum), and the maximum and the sum of each row of a tile.
STATISTICS does the same, but stores only the maxima and the sums."""

FORMS = {
    "layer": (PLAIN, TRANSPOSED, ACTIVATE),
    "logits": (PLAIN, TRANSPOSED, SOFTMAX),
    "normalizers": (PLAIN, TRANSPOSED, STATISTICS),
    "scores": (PLAIN, TRANSPOSED, STORE),
    "to inputs": (PLAIN, PLAIN, STORE),
    "to weights": (TRANSPOSED, PLAIN, STORE),
    "slopes to inputs": (SLOPES, PLAIN, STORE),
    "slopes to weights": (SLOPES_TRANSPOSED, PLAIN, STORE),
}
"""The forms of products by their names, which say what they are for: how each reads its two operands, and how it ends."""


@dataclass(frozen=True)
class Arithmetic:
    """The part of a product that depends on the precision: sizes, and device functions.

    Attributes
    ----------
    threads
        Number of threads in a block.
    columns
        Number of columns of the tile, a multiple of `COLUMNS`. The maxima and sums of a softmax are those of `COLUMNS` columns.
    width
        Number of numbers in a piece.
    word
        The type of a word of the operands, for Numba.
    shared_words
        Number of words of shared memory. All of it is free for other use when the products are added.
    dynamic
        Whether the launch provides the shared memory, which is more than 48 KiB. It is then aligned to 1,024 bytes.
    sums
        Shape of the float32 array of a thread's numbers of the tile.
    make_loop
        ``(form)``: return the device function ``(sums, own, shared, a, b, row0, column0, begin, stop, factors, targets, hit,
        spread)``, which adds op(a) op(b), from position ``begin`` of the inner dimension to ``stop``, to the sums, and for
        `SLOPES_TRANSPOSED` the pieces of op(a) that the thread reads to own (width,). ``row0`` and ``column0`` are the first row
        and column of the tile. All threads have passed a barrier at the end.
    first
        ``(thread)``: return the row and the column, in the tile, of the first number of a thread.
    offset
        ``(number)``: return the distance, in rows and in columns, of a thread's number with this index from its first number.
    store
        ``(sums, c, rows, row, column, alpha, beta)``: store ``alpha`` times the sums plus ``beta`` times the old content.
    store_with_bias
        ``(sums, c, bias, rows, row, column)``: store the sums plus the bias of their columns.
    store_softmax
        ``(sums, statistics, bias, c, stored, highest, totals, row0, row, column)``: finish a product with `SOFTMAX`, or if not
        ``stored``, with `STATISTICS`. ``statistics`` is the shared memory, as float32.
    """

    threads: int
    columns: int
    width: int
    word: Any
    shared_words: int
    sums: tuple[int, ...]
    make_loop: Callable[[str], Any]
    first: Any
    offset: Any
    store: Any
    store_with_bias: Any
    store_softmax: Any
    dynamic: bool = False


@cuda.jit(device=True, forceinline=True)
def is_inside(matrix, line, place):
    """Return whether a matrix (lines, words) has word number ``place`` of line number ``line``."""
    return line < uint32(matrix.shape[0]) and place < uint32(matrix.shape[1])


@cuda.jit(device=True, forceinline=True)
def flat_index(matrix, line, place):
    """Return the index (uint64) of word number ``place`` of a line in a flattened matrix, which may have more than 2^32 words."""
    return uint32(line) * uint32(matrix.shape[1]) + uint64(place)  # the product of two uint32 is a uint64


@cuda.jit(device=True, forceinline=True)
def read_four(matrix, line, place):
    """Return four float32 of a line of a matrix (lines, columns), from ``place`` on, a multiple of four; zeros outside of it."""
    zero, columns = float32(0), uint32(matrix.shape[1])
    if not is_inside(matrix, line, place):
        return zero, zero, zero, zero
    if columns % uint32(FOUR) == uint32(0):
        return load_four(matrix, flat_index(matrix, line, place))
    return (
        matrix[line, place],
        matrix[line, place + uint32(1)] if place + uint32(1) < columns else zero,
        matrix[line, place + uint32(2)] if place + uint32(2) < columns else zero,
        matrix[line, place + uint32(3)] if place + uint32(3) < columns else zero,
    )


@cuda.jit(device=True, forceinline=True)
def locate_piece(number, pieces, along, origin, inner, width):
    """Return the line and the piece, in the matrix, of piece number ``number`` of a step.

    ``pieces`` is the number of pieces in a line, ``origin`` the first row (for op(b), column) of the tile, and ``inner`` the
    position of the inner dimension where the step begins.
    """
    line, piece = number // uint32(pieces), number % uint32(pieces)
    if along:
        return uint32(origin + line), uint32(inner // uint32(width) + piece)
    return uint32(inner + line), uint32(origin // uint32(width) + piece)


@cuda.jit(device=True, forceinline=True)
def read_factor(a, line, piece, factors, targets, width):
    """Return what the gradients of the logits of a piece of a (B, V) need: the factor, and the number of the target in the piece.

    The number is at least ``width`` if the piece does not contain the target, and `OUTSIDE` if it is outside of the matrix.
    """
    if is_inside(a, line, uint32(FOUR) * piece):
        return factors[line, piece // uint32(COLUMNS // width)], uint32(uint32(targets[line]) - uint32(width) * piece)
    return float32(0), uint32(OUTSIDE)


def lines_along(form: str) -> tuple[bool, bool]:
    """Return for op(a) and for op(b) whether their lines lie along the inner dimension."""
    left, right, _ = FORMS[form]
    return left in (PLAIN, SLOPES), right == TRANSPOSED


def make_row_sums(arithmetic: Arithmetic) -> Any:
    """Return the device function that adds up the rows of op(a); each thread has a part of the sums of ``width`` rows."""
    width = arithmetic.width
    across = ROWS // width
    readers = arithmetic.threads // across  # threads that read the same rows of op(a), whose lines lie across the inner dimension

    @cuda.jit(device=True, forceinline=True)
    def store_row_sums(own, statistics, bias, row0, rows, alpha, beta):
        """Store ``alpha`` times the sums of own (width,) over the threads, plus ``beta`` times the old content, in bias (M,).

        statistics (threads width,) is shared memory, ``row0`` the first row of the tile, and ``rows`` is M.
        """
        thread = uint32(cuda.threadIdx.x)
        for q in range(width):
            at = thread // uint32(across) * uint32(ROWS) + thread % uint32(across) * uint32(width) + uint32(q)
            statistics[at] = own[q]
        cuda.syncthreads()
        if thread < uint32(ROWS) and row0 + thread < rows:
            total = float32(0)
            for k in range(readers):
                total += statistics[uint32(k) * uint32(ROWS) + thread]
            bias[row0 + thread] = alpha * total + (beta * bias[row0 + thread] if beta != float32(0) else float32(0))

    return store_row_sums


def make_activation(arithmetic: Arithmetic) -> Any:
    """Return the device function that stores a tile of the outputs of a layer."""
    store_with_bias, offset = arithmetic.store_with_bias, arithmetic.offset
    numbers = ROWS * arithmetic.columns // arithmetic.threads

    @cuda.jit(device=True, forceinline=True)
    def store_activated(sums, c, bias, code, gamma, rows, columns, row, column):
        """Store the activations of a thread's sums plus bias (N,) in c (M, N); ``row``, ``column`` is the place of its first."""
        store_with_bias(sums, c, bias, rows, row, column)
        # This loop reads the sums from c again, so that it need not be unrolled: all activation functions are too much code.
        for number in range(numbers):
            down, right_of = offset(uint32(number))
            y, x = uint32(row + down), uint32(column + right_of)
            if y < rows and x < columns:
                c[y, x] = activate(code, gamma, c[y, x])

    return store_activated


def make_product(arithmetic: Arithmetic, form: str) -> Any:
    """Return the device function that computes a product of one of the `FORMS`, which is all that a kernel of products calls."""
    left, _, end = FORMS[form]
    width, word, sums_shape, columns_of_tile = arithmetic.width, arithmetic.word, arithmetic.sums, arithmetic.columns
    shared_words, alignment = (0, 1024) if arithmetic.dynamic else (arithmetic.shared_words, 16)
    add_products = arithmetic.make_loop(form)
    store_row_sums, store_activated = make_row_sums(arithmetic), make_activation(arithmetic)
    first, store, store_softmax = arithmetic.first, arithmetic.store, arithmetic.store_softmax

    @cuda.jit(device=True, forceinline=True)
    def product(a, b, c, inner, span, alpha, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread):
        """Compute c (M, N) = op(a) (M, K) op(b) (K, N), or what else the form says; the module's docstring has the parameters."""
        shared = cuda.shared.array(shared_words, word, alignment=alignment)
        sums = cuda.local.array(sums_shape, float32)
        own = cuda.local.array(width, float32)  # the thread's part of the sums of the rows of op(a) that it reads
        row0 = uint32(uint32(cuda.blockIdx.y) * uint32(ROWS))
        column0 = uint32(uint32(cuda.blockIdx.x) * uint32(columns_of_tile))
        for q in range(width):
            own[q] = float32(0)
        begin = uint32(uint32(cuda.blockIdx.z) * span)
        stop = min(inner, uint32(begin + span))
        add_products(sums, own, shared, a, b, row0, column0, begin, stop, factors, targets, hit, spread)
        statistics = as_floats(shared)
        rows, columns = uint32(c.shape[0]) // uint32(cuda.gridDim.z), uint32(c.shape[1])
        down, right_of = first(uint32(cuda.threadIdx.x))
        row, column = uint32(row0 + down), uint32(column0 + right_of)
        if left == SLOPES_TRANSPOSED and column0 == uint32(0):
            store_row_sums(own, statistics, bias, row0, rows, alpha, beta)
        if end == STORE:
            store(sums, c, rows, row, column, alpha, beta)
        if end == ACTIVATE:
            store_activated(sums, c, bias, code, gamma, rows, columns, row, column)
        if end in (SOFTMAX, STATISTICS):
            store_softmax(sums, statistics, bias, c, end == SOFTMAX, highest, totals, row0, row, column)

    return product


def make_float_product(arithmetic: Arithmetic, precision: str, form: str) -> Any:
    """Return the kernel of matrix products of a form (one of `FORMS`), with an arithmetic for operands of float32.

    The name of the precision keeps it apart from the other arithmetics in the cache and in profilers.
    """
    compute = make_product(arithmetic, form)

    @kernel(f"{precision} {form}", threads=arithmetic.threads, launch_bounds=(arithmetic.threads, 2))
    def product(a, b, c, inner, span, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread):
        """Compute c (M, N) = op(a) (M, K) op(b) (K, N); all arrays are float32, and the module's docstring has the parameters."""
        compute(a, b, c, inner, span, float32(1), beta, bias, code, gamma, highest, totals, factors, targets, hit, spread)

    return product
