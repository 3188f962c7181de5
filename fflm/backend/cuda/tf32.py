"""The arithmetic of matrix products in TF32: operands are float32 rounded to 10 bits after the point, sums are float32.

The products are computed on tensor cores. `intrinsics` explains the fragments, and `fragments` the tile's numbers. Operands have
the range of float32, and are rounded when they are read from shared memory. Nothing is scaled. The rows of operands have whole
pieces of four numbers; where those of a matrix do not, the backend makes a copy that is filled with zeros.
"""

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.fragments import FragmentLayout, corner, make_arithmetic
from fflm.backend.cuda.intrinsics import multiply_add_tf32, store_two, to_tf32
from fflm.backend.cuda.products import FOUR, OUTSIDE, ROWS, flat_index, is_inside
from fflm.backend.cuda.single import slope

_LINE = ROWS
"""Number of numbers in a line across the inner dimension, in shared memory."""


@cuda.jit(device=True, forceinline=True)
def compute_slopes(numbers, factor, place, hit, spread, own):
    """Replace the exponentials of a piece, numbers (4,), by gradients of logits; also add these to own (4,)."""
    if place != uint32(OUTSIDE):
        for number in range(FOUR):
            numbers[number] = slope(numbers[number], number, factor, place, hit, spread)
            own[number] += numbers[number]


@cuda.jit(device=True, forceinline=True)
def place_number(line, number):
    """Return the index in shared memory of a number of a line across the inner dimension, relative to where the operand begins.

    Shared memory has 32 banks. The threads of a warp read eight adjacent numbers of each of four adjacent lines at the same time;
    before, eight threads write four adjacent numbers of the same line each. Groups of eight numbers are permuted (by an exclusive
    or with the number of the line), so that both use all banks.
    """
    return uint32(line * uint32(_LINE) + (number ^ line % uint32(4) * uint32(8)))


@cuda.jit(device=True, forceinline=True)
def place_across(line, piece):
    """Return the index in shared memory of a piece of a line across the inner dimension, relative to where the operand begins."""
    return place_number(line, piece * uint32(FOUR))


@cuda.jit(device=True, forceinline=True)
def locate_left(thread):
    """Return the index of the first number that a thread reads of op(a), relative to where the operand begins."""
    lane, (down, _) = uint32(thread % uint32(32)), corner(thread)
    return place_number(lane % uint32(4), uint32(down + lane // uint32(4)))


@cuda.jit(device=True, forceinline=True)
def locate_right(thread):
    """Return the index of the first number that a thread reads of op(b), relative to where the operand begins."""
    lane, (_, across) = uint32(thread % uint32(32)), corner(thread)
    return place_number(lane % uint32(4), uint32(across + lane // uint32(4)))


@cuda.jit(device=True, forceinline=True)
def other(index, fours, eights):
    """Return the index in shared memory of the number that is 4 ``fours`` lines below and 8 ``eights`` numbers to the right.

    ``index`` is that of a thread's first number. The warp's numbers begin at a multiple of 64.
    """
    return (index ^ uint64(8 * eights)) + uint64(4 * _LINE * fours)


@cuda.jit(device=True, forceinline=True)
def load_left(shared, index, half, i):
    """Return fragment i of op(a) in a half of the step."""
    low, high = 2 * half, 2 * half + 1
    upper, lower = shared[other(index, low, 2 * i)], shared[other(index, low, 2 * i + 1)]
    return upper, lower, shared[other(index, high, 2 * i)], shared[other(index, high, 2 * i + 1)]


@cuda.jit(device=True, forceinline=True)
def load_right(shared, index, half, i):
    """Return the fragments 2 i and 2 i + 1 of op(b) in a half of the step, two numbers each."""
    low, high = 2 * half, 2 * half + 1
    left = shared[other(index, low, 2 * i)], shared[other(index, high, 2 * i)]
    return left[0], left[1], shared[other(index, low, 2 * i + 1)], shared[other(index, high, 2 * i + 1)]


@cuda.jit(device=True, forceinline=True)
def rounded(numbers):
    """Return four numbers rounded to TF32."""
    return to_tf32(numbers[0]), to_tf32(numbers[1]), to_tf32(numbers[2]), to_tf32(numbers[3])


@cuda.jit(device=True, forceinline=True)
def store_exponentials(c, row, column, first, second):
    """Store two exponentials in c (B, columns), from an even column on, except outside of the matrix."""
    if is_inside(c, row, column):
        store_two(c, flat_index(c, row, column), (first, second))


TF32 = make_arithmetic(
    width=FOUR,
    word=float32,
    across=FragmentLayout(place_across, _LINE, locate_left, locate_right, load_left, load_right),
    compute_slopes=compute_slopes,
    rounded=rounded,
    multiply_add=multiply_add_tf32,
    store_two=store_exponentials,
)
