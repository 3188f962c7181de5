"""The arithmetic of matrix products in single precision: operands, products and sums are float32.

A thread computes 8 x 8 numbers of the tile of its block: four adjacent rows and four more half a tile below, and likewise eight
columns. The sums stay in registers only if their indices are constants. Therefore loops over them are written out where the
compiler would not unroll them.
"""

import math
from typing import Any

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.intrinsics import load_four, store_four
from fflm.backend.cuda.kernels import ALL_LANES, larger
from fflm.backend.cuda.launching import BLOCK
from fflm.backend.cuda.products import (
    COLUMNS,
    FORMS,
    FOUR,
    OUTSIDE,
    ROWS,
    SLOPES,
    SLOPES_TRANSPOSED,
    Arithmetic,
    flat_index,
    is_inside,
    lines_along,
    locate_piece,
    read_factor,
    read_four,
)

DEPTH = 8
"""Number of positions of the inner dimension that are read in a step."""

EACH = 8
"""Number of rows, and of columns, of the tile that a thread computes."""

# A line in shared memory has the numbers of an operand at one position of the inner dimension. It is padded, so that threads that
# write a column access different banks.
_LINE = ROWS + FOUR
_OPERAND = DEPTH * _LINE
_ACROSS = COLUMNS // EACH  # number of threads that share a row of the tile, which is half a warp


@cuda.jit(device=True, forceinline=True)
def slope(exponential, number, factor, place, hit, spread):
    """Return the gradient of a logit, given its exponential.

    It is exponential * factor - spread, and - hit if the logit is that of the target. The logit is number ``number`` of a piece,
    and ``place`` is the number of the target.
    """
    value = exponential * factor - spread
    return value - hit if place == uint32(number) else value


@cuda.jit(device=True, forceinline=True)
def compute_slopes(words, q, factor, place, hit, spread, own):
    """Replace the exponentials of a piece, words[q] of words (reads, 4), by gradients of logits; also add these to own (4,)."""
    if place != uint32(OUTSIDE):
        for number in range(FOUR):
            words[q, number] = slope(words[q, number], number, factor, place, hit, spread)
            own[number] += words[q, number]


@cuda.jit(device=True, forceinline=True)
def write_piece(shared, start, line, piece, numbers, along):
    """Write the four numbers of a piece to shared memory (float32), where the operand begins at ``start``.

    Lines in shared memory always lie across the inner dimension. If ``along``, the piece was read along it, and is transposed.
    """
    if along:
        at = uint32(start + piece * uint32(FOUR * _LINE) + line)
        shared[at], shared[at + uint32(_LINE)] = numbers[0], numbers[1]
        shared[at + uint32(2 * _LINE)], shared[at + uint32(3 * _LINE)] = numbers[2], numbers[3]
    else:
        store_four(shared, uint32(start + line * uint32(_LINE) + piece * uint32(FOUR)), numbers)


@cuda.jit(device=True, forceinline=True)
def locate(thread):
    """Return the indices in shared memory where a thread's numbers of op(a) and of op(b) begin."""
    return thread // uint32(_ACROSS) * uint32(FOUR), uint32(_OPERAND) + thread % uint32(_ACROSS) * uint32(FOUR)


@cuda.jit(device=True, forceinline=True)
def multiply_line(sums, shared, left, right):
    """Add the products of a line of op(a) and a line of op(b) to sums (8, 8).

    ``left`` and ``right`` are the indices in shared (float32) where the thread's numbers of the two lines begin.
    """
    lefts, rights = cuda.local.array(EACH, float32), cuda.local.array(EACH, float32)
    lefts[0], lefts[1], lefts[2], lefts[3] = load_four(shared, left)
    lefts[4], lefts[5], lefts[6], lefts[7] = load_four(shared, left + uint64(ROWS // 2))
    rights[0], rights[1], rights[2], rights[3] = load_four(shared, right)
    rights[4], rights[5], rights[6], rights[7] = load_four(shared, right + uint64(COLUMNS // 2))
    for i in range(EACH):
        for j in range(EACH):
            sums[i, j] += lefts[i] * rights[j]


@cuda.jit(device=True, forceinline=True)
def multiply_step(sums, shared, left, right):
    """Add the products of a step, which has `DEPTH` lines of each operand, to sums (8, 8)."""
    left, right = uint64(left), uint64(right)
    multiply_line(sums, shared, left, right)
    multiply_line(sums, shared, left + uint64(_LINE), right + uint64(_LINE))
    multiply_line(sums, shared, left + uint64(2 * _LINE), right + uint64(2 * _LINE))
    multiply_line(sums, shared, left + uint64(3 * _LINE), right + uint64(3 * _LINE))
    multiply_line(sums, shared, left + uint64(4 * _LINE), right + uint64(4 * _LINE))
    multiply_line(sums, shared, left + uint64(5 * _LINE), right + uint64(5 * _LINE))
    multiply_line(sums, shared, left + uint64(6 * _LINE), right + uint64(6 * _LINE))
    multiply_line(sums, shared, left + uint64(7 * _LINE), right + uint64(7 * _LINE))


@cuda.jit(device=True, forceinline=True)
def clear(sums):
    """Set the sums (8, 8) to 0."""
    for i in range(EACH):
        for j in range(EACH):
            sums[i, j] = float32(0)


def make_loop(form: str) -> Any:
    """Return the loop of a product of a form, as `Arithmetic.make_loop`; it has two buffers in shared memory."""
    slopes = FORMS[form][0] in (SLOPES, SLOPES_TRANSPOSED)
    left_along, right_along = lines_along(form)
    along, across = DEPTH // FOUR, ROWS // FOUR  # pieces per step in a line along the inner dimension, or across it
    left_pieces, right_pieces = along if left_along else across, along if right_along else across
    reads = ROWS * along // BLOCK  # number of pieces of each operand that a thread reads in a step

    @cuda.jit(device=True, forceinline=True)
    def read_step(a, b, row0, column0, k0, lefts, rights, factors, targets, factor, place):
        """Read the thread's pieces of the step that begins at position k0 of the inner dimension.

        The words are stored in lefts and rights (reads, 4), and what `compute_slopes` needs, in factor and place (reads,).
        ``row0`` and ``column0`` are the first row and column of the tile.
        """
        thread = uint32(cuda.threadIdx.x)
        for q in range(reads):  # adjacent threads read adjacent pieces
            number = uint32(thread + uint32(q * BLOCK))
            line, piece = locate_piece(number, left_pieces, left_along, row0, k0, FOUR)
            lefts[q, 0], lefts[q, 1], lefts[q, 2], lefts[q, 3] = read_four(a, line, uint32(FOUR) * piece)
            if slopes:
                factor[q], place[q] = read_factor(a, line, piece, factors, targets, FOUR)
            line, piece = locate_piece(number, right_pieces, right_along, column0, k0, FOUR)
            rights[q, 0], rights[q, 1], rights[q, 2], rights[q, 3] = read_four(b, line, uint32(FOUR) * piece)

    @cuda.jit(device=True, forceinline=True)
    def write_step(shared, buffer, lefts, rights, factor, place, hit, spread, own):
        """Write what `read_step` has read to shared memory, from index ``buffer`` on.

        If the form has slopes, they are computed first, and added to own (4,).
        """
        thread = uint32(cuda.threadIdx.x)
        for q in range(reads):
            number = uint32(thread + uint32(q * BLOCK))
            if slopes:
                compute_slopes(lefts, q, factor[q], place[q], hit, spread, own)
            line, piece = number // uint32(left_pieces), number % uint32(left_pieces)
            write_piece(shared, buffer, line, piece, (lefts[q, 0], lefts[q, 1], lefts[q, 2], lefts[q, 3]), left_along)
            line, piece = number // uint32(right_pieces), number % uint32(right_pieces)
            words = rights[q, 0], rights[q, 1], rights[q, 2], rights[q, 3]
            write_piece(shared, uint32(buffer + uint32(_OPERAND)), line, piece, words, right_along)

    @cuda.jit(device=True, forceinline=True)
    def add_products(sums, own, shared, a, b, row0, column0, begin, stop, factors, targets, hit, spread):
        """Add op(a) op(b) to sums (8, 8), which are cleared before, and if the form has slopes, these to own (4,)."""
        lefts, rights = cuda.local.array((reads, FOUR), float32), cuda.local.array((reads, FOUR), float32)  # of the next step
        factor, place = cuda.local.array(reads, float32), cuda.local.array(reads, uint32)
        left, right = locate(uint32(cuda.threadIdx.x))
        clear(sums)
        steps = (stop - begin + uint32(DEPTH - 1)) // uint32(DEPTH)
        for step in range(steps + uint32(1)):  # each iteration reads a step, and multiplies the step that was read before
            k0 = uint32(begin + uint32(step) * uint32(DEPTH))
            read_step(a, b, row0, column0, k0, lefts, rights, factors, targets, factor, place)
            if step > 0:
                buffer = uint32((uint32(step) + uint32(1)) % uint32(2) * uint32(2 * _OPERAND))
                multiply_step(sums, shared, uint32(buffer + left), uint32(buffer + right))
            buffer = uint32(uint32(step) % uint32(2) * uint32(2 * _OPERAND))
            write_step(shared, buffer, lefts, rights, factor, place, hit, spread, own)
            cuda.syncthreads()

    return add_products


@cuda.jit(device=True, forceinline=True)
def first(thread):
    """Return the row and the column, in the tile, of the first number of a thread."""
    return thread // uint32(_ACROSS) * uint32(FOUR), thread % uint32(_ACROSS) * uint32(FOUR)


@cuda.jit(device=True, forceinline=True)
def distance(number):
    """Return the distance of row (or column) number ``number`` of a thread's eight from its first one."""
    return uint32(number % FOUR + number // FOUR * (ROWS // 2))


@cuda.jit(device=True, forceinline=True)
def offset(number):
    """Return the distance, in rows and in columns, of number ``number`` of a thread's 64 numbers from its first number."""
    return distance(number // uint32(EACH)), distance(number % uint32(EACH))


@cuda.jit(device=True, forceinline=True)
def add_four(matrix, line, place, numbers, beta):
    """Store four numbers, plus ``beta`` times the old content, where `read_four` reads them, except outside of the matrix."""
    columns = uint32(matrix.shape[1])
    if is_inside(matrix, line, place):
        a, b, c, d = numbers
        if beta != float32(0):
            old = read_four(matrix, line, place)
            a, b, c, d = a + beta * old[0], b + beta * old[1], c + beta * old[2], d + beta * old[3]
        if columns % uint32(FOUR) == uint32(0):
            store_four(matrix, flat_index(matrix, line, place), (a, b, c, d))
        else:
            matrix[line, place] = a
            if place + uint32(1) < columns:
                matrix[line, place + uint32(1)] = b
            if place + uint32(2) < columns:
                matrix[line, place + uint32(2)] = c
            if place + uint32(3) < columns:
                matrix[line, place + uint32(3)] = d


@cuda.jit(device=True, forceinline=True)
def store_row(sums, i, c, rows, row, column, beta):
    """Store row i of a thread's sums (8, 8), as `store` says. The caller passes i as a constant."""
    row = uint32(row + distance(i))
    if row < rows:
        row = uint32(row + uint32(cuda.blockIdx.z) * rows)
        add_four(c, row, column, (sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]), beta)
        add_four(c, row, uint32(column + uint32(COLUMNS // 2)), (sums[i, 4], sums[i, 5], sums[i, 6], sums[i, 7]), beta)


@cuda.jit(device=True, forceinline=True)
def store(sums, c, rows, row, column, alpha, beta):
    """Store a thread's sums (8, 8), plus ``beta`` times the old content, in c (parts M, N); ``alpha`` is always 1.

    The rows of c are those of part number ``blockIdx.z``; each part has ``rows`` (M) rows. ``row`` and ``column`` are the place
    of the thread's first number.
    """
    store_row(sums, 0, c, rows, row, column, beta)
    store_row(sums, 1, c, rows, row, column, beta)
    store_row(sums, 2, c, rows, row, column, beta)
    store_row(sums, 3, c, rows, row, column, beta)
    store_row(sums, 4, c, rows, row, column, beta)
    store_row(sums, 5, c, rows, row, column, beta)
    store_row(sums, 6, c, rows, row, column, beta)
    store_row(sums, 7, c, rows, row, column, beta)


@cuda.jit(device=True, forceinline=True)
def store_with_bias(sums, c, bias, rows, row, column):
    """Store a thread's sums (8, 8) plus bias (N,) in c (M, N); ``row``, ``column`` is the place of its first number."""
    for i in range(EACH):
        for j in range(EACH):
            y, x = uint32(row + distance(i)), uint32(column + distance(j))
            if y < rows and x < uint32(c.shape[1]):
                c[y, x] = sums[i, j] + bias[x]


@cuda.jit(device=True, forceinline=True)
def softmax_row(sums, i, bias, c, stored, highest, totals, row, column):
    """Finish row i of a thread's logits, sums (8, 8), together with the other threads of its half warp, which share this row.

    bias (V,) is added. The maximum of the row and the sum of exp(logit - maximum) are stored in highest and totals (B, tiles),
    and if ``stored``, these exponentials in c (B, at least V). The caller passes i as a constant.
    """
    top, total, tile = float32(-math.inf), float32(0), uint32(cuda.blockIdx.x)
    row += distance(i)
    for j in range(EACH):
        place = uint32(column + distance(j))
        sums[i, j] = sums[i, j] + bias[place] if place < uint32(bias.size) else float32(-math.inf)
        top = larger(top, sums[i, j])
    for bit in range(4):
        top = larger(top, cuda.shfl_xor_sync(ALL_LANES, top, 1 << bit))
    for j in range(EACH):
        sums[i, j] = math.exp(sums[i, j] - top)
        total += sums[i, j]
    for bit in range(4):
        total += cuda.shfl_xor_sync(ALL_LANES, total, 1 << bit)
    if row < uint32(highest.shape[0]):
        at = flat_index(c, row, column)
        if stored and column < uint32(c.shape[1]):
            store_four(c, at, (sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]))
        if stored and column + uint32(COLUMNS // 2) < uint32(c.shape[1]):
            store_four(c, at + uint64(COLUMNS // 2), (sums[i, 4], sums[i, 5], sums[i, 6], sums[i, 7]))
        if cuda.threadIdx.x % _ACROSS == 0:
            highest[row, tile], totals[row, tile] = top, total


@cuda.jit(device=True, forceinline=True)
def store_softmax(sums, statistics, bias, c, stored, highest, totals, row0, row, column):
    """Finish a tile of logits: process each of a thread's eight rows as `softmax_row` does. ``statistics`` is not used."""
    softmax_row(sums, 0, bias, c, stored, highest, totals, row, column)
    softmax_row(sums, 1, bias, c, stored, highest, totals, row, column)
    softmax_row(sums, 2, bias, c, stored, highest, totals, row, column)
    softmax_row(sums, 3, bias, c, stored, highest, totals, row, column)
    softmax_row(sums, 4, bias, c, stored, highest, totals, row, column)
    softmax_row(sums, 5, bias, c, stored, highest, totals, row, column)
    softmax_row(sums, 6, bias, c, stored, highest, totals, row, column)
    softmax_row(sums, 7, bias, c, stored, highest, totals, row, column)


SINGLE = Arithmetic(
    threads=BLOCK,
    columns=COLUMNS,
    width=FOUR,
    word=float32,
    shared_words=4 * _OPERAND,
    sums=(EACH, EACH),
    make_loop=make_loop,
    first=first,
    offset=offset,
    store=store,
    store_with_bias=store_with_bias,
    store_softmax=store_softmax,
)
