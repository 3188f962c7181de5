"""The matrix products of the CUDA backend: one frame, which is completed by the arithmetic of a precision.

A product is c = op(a) op(b), where op is the identity, the transpose, or the gradients of logits. A block of threads computes a
tile of `ROWS` x `COLUMNS` numbers of c, in steps along the inner dimension. While the operands of one step are multiplied, those
of the next are read into registers; they are then written to the other half of shared memory.

Operands are read in pieces of `FOUR` words of four bytes: four float32, or eight halves (float16). A line of an operand is a row
as it is stored in memory. Lines go along the inner dimension, or across it.

`single` and `mixed` have the arithmetic of the two precisions. The rules for indices and constants are those of `kernels`.

Parameters of the device function of a product, which are those of its kernels:

a, b
    Operands: op(a) (M, K), op(b) (K, N), read as the form says.
c
    Out, but not for STATISTICS: (M, N) float32. For SOFTMAX (M, at least N) exp(logit - maximum of the tile's row), which are
    words of operands; the rows are filled up with zeros to whole pieces.
inner, span
    K, and how much of it a block sums. With STORE, but not for SLOPES_TRANSPOSED, c may be (parts M, N); blocks with the
    index z then sum from z span on.
alpha
    Factor on op(a) op(b), and on the sums of op(a)'s rows.
beta
    Factor on what was there before.
bias
    In: (N,), but not for STORE. Out for SLOPES_TRANSPOSED: (M,) the sums of op(a)'s rows.
code, gamma
    For ACTIVATE: the activation function, and its slope below 0 where that is a parameter.
highest, totals
    Out for SOFTMAX and STATISTICS: (tiles, M) the maximum of each row of a tile, and the sum of its exponentials.
factors, targets, hit, spread
    In for SLOPES and SLOPES_TRANSPOSED, whose matrix (B, V) holds exponentials: (tiles, B), (B,), and two numbers. The
    gradient of a logit is its exponential times the factor, less ``spread``, and less ``hit`` if it is the target's.
"""

from dataclasses import dataclass
from typing import Any

from numba import cuda, float32, uint32

from fflm.backend.cuda.launching import BLOCK
from fflm.backend.formulas import activate

ROWS, COLUMNS = 128, 128
"""The tile of a matrix product that a block computes. Other modules rely on ROWS being COLUMNS."""

FOUR = 4
"""Words that are read together."""

OUTSIDE = 2**31
"""Stands for the place of a target where a piece is outside of the matrix."""

PLAIN, TRANSPOSED, SLOPES, SLOPES_TRANSPOSED = range(4)
"""How a product reads an operand: as it is stored, or transposed; with SLOPES the matrix holds exponentials of logits, and the
operand is the gradients of the logits, which are computed as they are read."""

STORE, ACTIVATE, SOFTMAX, STATISTICS = range(4)
"""What a product does with its result: STORE adds it to ``beta`` times what was there; ACTIVATE adds a bias and applies an
activation function; SOFTMAX stores exp(logit - maximum), and the maximum and the sum of each row of a tile; STATISTICS stores
maxima and sums only."""

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
"""What matrix products are for, and how each reads its two operands and ends."""


@dataclass(frozen=True)
class Arithmetic:
    """The part of a product that depends on the precision: sizes, and device functions.

    Attributes
    ----------
    width
        Numbers in a piece.
    depth
        Numbers of the inner dimension in a step.
    word
        Numba's type of a word of the operands.
    operand_words
        Words of shared memory that an operand takes in a step.
    sums
        Shape of the array that holds a thread's numbers of the tile.
    clear
        ``(sums)``: set the sums to 0.
    read
        ``(matrix, line, piece)``: return the four words of a piece, 0 outside of the matrix.
    compute_slopes
        ``(words, q, factor, place, hit, spread, own)``: replace exponentials, the words number q (reads, 4), by the gradients of
        logits, and add these to own (width,). ``place`` says which number is the target's, or is `OUTSIDE`.
    write
        ``(shared, start, line, piece, words, along)``: write a piece of an operand to shared memory.
    locate
        ``(thread, left_along, right_along)``: return where in shared memory the thread's parts of both operands begin.
    multiply
        ``(sums, shared, left, right, left_along, right_along)``: add the products of a step.
    first
        ``(thread)``: return row and column in the tile of a thread's first number.
    offset
        ``(number)``: return how many rows and columns a thread's number with that index is from its first.
    store
        ``(sums, c, rows, row, column, alpha, beta)``: store alpha times the sums plus beta times what was there.
    store_with_bias
        ``(sums, c, bias, rows, row, column)``: store the sums plus the bias of their columns.
    store_softmax
        ``(sums, statistics, bias, c, stored, highest, totals, row0, row, column)``: end a product with `SOFTMAX`, or if not
        ``stored`` with `STATISTICS`; ``statistics`` is shared memory, float32.
    """

    width: int
    depth: int
    word: Any
    operand_words: int
    sums: tuple[int, ...]
    clear: Any
    read: Any
    compute_slopes: Any
    write: Any
    locate: Any
    multiply: Any
    first: Any
    offset: Any
    store: Any
    store_with_bias: Any
    store_softmax: Any


@cuda.jit(device=True, forceinline=True)
def is_inside(matrix, line, place):
    """Return whether a matrix (lines, words) has a word at a place of a line."""
    return line < uint32(matrix.shape[0]) and place < uint32(matrix.shape[1])


@cuda.jit(device=True, forceinline=True)
def locate_piece(number, pieces, along, origin, inner, width):
    """Return line and piece in the matrix of a tile's piece with that number.

    ``pieces`` are those of a line in a step, ``origin`` is the tile's first row or column, ``inner`` where the step begins.
    """
    line, piece = number // uint32(pieces), number % uint32(pieces)
    if along:
        return uint32(origin + line), uint32(inner // uint32(width) + piece)
    return uint32(inner + line), uint32(origin // uint32(width) + piece)


def make_transfer(arithmetic: Arithmetic, form: str) -> tuple[Any, Any]:
    """Return two device functions: one reads the operands of a step into registers, the other writes them to shared memory."""
    slopes = FORMS[form][0] in (SLOPES, SLOPES_TRANSPOSED)
    left_along, right_along = lines_along(form)
    width, operand_words = arithmetic.width, arithmetic.operand_words
    along, across = arithmetic.depth // width, ROWS // width  # pieces of a line in a step
    left_pieces, right_pieces = along if left_along else across, along if right_along else across
    reads = pieces_of_thread(arithmetic)
    read, compute_slopes, write = arithmetic.read, arithmetic.compute_slopes, arithmetic.write

    @cuda.jit(device=True, forceinline=True)
    def read_step(a, b, row0, column0, k0, lefts, rights, factors, targets, factor, place):
        """Read the thread's pieces from k0 on into lefts and rights (reads, 4), and what slopes need to factor and place."""
        thread = uint32(cuda.threadIdx.x)
        for q in range(reads):  # neighboring threads read neighboring pieces
            number = uint32(thread + uint32(q * BLOCK))
            line, piece = locate_piece(number, left_pieces, left_along, row0, k0, width)
            lefts[q, 0], lefts[q, 1], lefts[q, 2], lefts[q, 3] = read(a, line, piece)
            if slopes:
                factor[q], place[q] = float32(0), uint32(OUTSIDE)
                if is_inside(a, line, uint32(FOUR) * piece):
                    factor[q] = factors[piece // uint32(COLUMNS // width), line]
                    place[q] = uint32(uint32(targets[line]) - uint32(width) * piece)  # below width if the target is here
            line, piece = locate_piece(number, right_pieces, right_along, column0, k0, width)
            rights[q, 0], rights[q, 1], rights[q, 2], rights[q, 3] = read(b, line, piece)

    @cuda.jit(device=True, forceinline=True)
    def write_step(shared, buffer, lefts, rights, factor, place, hit, spread, own):
        """Write the thread's pieces to shared memory from ``buffer`` on; slopes are computed first, and added to own (width,)."""
        thread = uint32(cuda.threadIdx.x)
        for q in range(reads):
            number = uint32(thread + uint32(q * BLOCK))
            if slopes:
                compute_slopes(lefts, q, factor[q], place[q], hit, spread, own)
            line, piece = number // uint32(left_pieces), number % uint32(left_pieces)
            write(shared, buffer, line, piece, (lefts[q, 0], lefts[q, 1], lefts[q, 2], lefts[q, 3]), left_along)
            line, piece = number // uint32(right_pieces), number % uint32(right_pieces)
            words = rights[q, 0], rights[q, 1], rights[q, 2], rights[q, 3]
            write(shared, uint32(buffer + uint32(operand_words)), line, piece, words, right_along)

    return read_step, write_step


def lines_along(form: str) -> tuple[bool, bool]:
    """Return of both operands whether their lines go along the inner dimension."""
    left, right, _ = FORMS[form]
    return left in (PLAIN, SLOPES), right == TRANSPOSED


def pieces_of_thread(arithmetic: Arithmetic) -> int:
    """Return how many pieces of each operand a thread reads in a step."""
    return ROWS * arithmetic.depth // arithmetic.width // BLOCK


def make_row_sums(arithmetic: Arithmetic) -> Any:
    """Return the device function that adds up the sums of op(a)'s rows, of which each thread has a part."""
    width = arithmetic.width
    across = ROWS // width
    readers = BLOCK // across  # threads that read of the same rows of op(a), where lines go across

    @cuda.jit(device=True, forceinline=True)
    def store_row_sums(own, statistics, bias, row0, rows, alpha, beta):
        """Store alpha times the sums of own (width,) over threads plus beta times what was in bias (M,); statistics is shared."""
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
    """Return the device function that stores a tile as a layer's outputs."""
    store_with_bias, offset = arithmetic.store_with_bias, arithmetic.offset

    @cuda.jit(device=True, forceinline=True)
    def store_activated(sums, c, bias, code, gamma, rows, columns, row, column):
        """Store activation(sums + bias (N,)) of a thread, whose numbers begin at row and column, in c (M, N)."""
        store_with_bias(sums, c, bias, rows, row, column)
        for number in range(ROWS * COLUMNS // BLOCK):  # in a loop of its own, for all activations unrolled are too much code
            down, right_of = offset(uint32(number))
            y, x = uint32(row + down), uint32(column + right_of)
            if y < rows and x < columns:
                c[y, x] = activate(code, gamma, c[y, x])

    return store_activated


def make_product(arithmetic: Arithmetic, form: str) -> Any:
    """Return the device function that computes a product of one of the `FORMS`; a kernel calls it with its own arguments."""
    left, _, end = FORMS[form]
    left_along, right_along = lines_along(form)
    width, depth, word, sums_shape = arithmetic.width, arithmetic.depth, arithmetic.word, arithmetic.sums
    reads = pieces_of_thread(arithmetic)
    step_words, shared_words = 2 * arithmetic.operand_words, 4 * arithmetic.operand_words
    statistics_size = BLOCK * width
    read_step, write_step = make_transfer(arithmetic, form)
    store_row_sums, store_activated = make_row_sums(arithmetic), make_activation(arithmetic)
    clear, locate, multiply, first = arithmetic.clear, arithmetic.locate, arithmetic.multiply, arithmetic.first
    store, store_softmax = arithmetic.store, arithmetic.store_softmax

    @cuda.jit(device=True, forceinline=True)
    def product(a, b, c, inner, span, alpha, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread):
        shared = cuda.shared.array(shared_words, word, alignment=16)
        statistics = cuda.shared.array(statistics_size, float32)
        sums = cuda.local.array(sums_shape, float32)
        lefts, rights = cuda.local.array((reads, FOUR), word), cuda.local.array((reads, FOUR), word)  # of the next step
        factor, place = cuda.local.array(reads, float32), cuda.local.array(reads, uint32)
        own = cuda.local.array(width, float32)  # sums of the rows of op(a) that the thread reads
        thread = uint32(cuda.threadIdx.x)
        row0, column0 = uint32(uint32(cuda.blockIdx.y) * uint32(ROWS)), uint32(uint32(cuda.blockIdx.x) * uint32(COLUMNS))
        left_place, right_place = locate(thread, left_along, right_along)
        clear(sums)
        for q in range(width):
            own[q] = float32(0)
        begin = uint32(uint32(cuda.blockIdx.z) * span)
        stop = min(inner, uint32(begin + span))
        steps = (stop - begin + uint32(depth - 1)) // uint32(depth)
        for step in range(steps + uint32(1)):  # reads one step, and multiplies the one before
            k0 = uint32(begin + uint32(step) * uint32(depth))
            read_step(a, b, row0, column0, k0, lefts, rights, factors, targets, factor, place)
            if step > 0:
                buffer = uint32((uint32(step) + uint32(1)) % uint32(2) * uint32(step_words))
                multiply(sums, shared, uint32(buffer + left_place), uint32(buffer + right_place), left_along, right_along)
            buffer = uint32(uint32(step) % uint32(2) * uint32(step_words))
            write_step(shared, buffer, lefts, rights, factor, place, hit, spread, own)
            cuda.syncthreads()
        rows, columns = uint32(c.shape[0]) // uint32(cuda.gridDim.z), uint32(c.shape[1])
        down, right_of = first(thread)
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
