"""The arithmetic of matrix products in TF32: operands are float32 rounded to 10 bits after the point, sums are float32.

The products are computed on tensor cores. `intrinsics` explains the fragments, and `fragments` the tile's numbers. Operands have
the range of float32, and are rounded when they are written to shared memory. Nothing is scaled.
"""

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.fragments import clear, first, make_store_softmax, offset, store, store_with_bias
from fflm.backend.cuda.intrinsics import multiply_add_tf32, store_four, to_tf32
from fflm.backend.cuda.products import FOUR, ROWS, Arithmetic
from fflm.backend.cuda.single import compute_slopes, read_piece

DEPTH = 16
"""Number of positions of the inner dimension that are read in a step, which is twice the depth of a fragment."""

# A line in shared memory has the numbers of an operand at one position of the inner dimension.
_LINE = ROWS
_OPERAND = DEPTH * _LINE


@cuda.jit(device=True, forceinline=True)
def place_number(line, number):
    """Return the index in shared memory of a number of a line, relative to where the operand begins.

    Shared memory has 32 banks. The threads of a warp read eight adjacent numbers of each of four adjacent lines at the same time.
    Eight threads write four adjacent numbers of the same line each; or, if the operand is transposed, all write eight adjacent
    numbers of every fourth line. Groups of eight numbers are permuted (by an exclusive or with the number of the line), so that
    all of these use all banks.
    """
    return uint32(line * uint32(_LINE) + (number ^ (line ^ line // uint32(4)) % uint32(4) * uint32(8)))


@cuda.jit(device=True, forceinline=True)
def write_piece(shared, start, line, piece, numbers, along):
    """Round the four numbers of a piece, and write them to shared memory (float32), where the operand begins at ``start``.

    Lines in shared memory always lie across the inner dimension. If ``along``, the piece was read along it, and is transposed.
    """
    a, b, c, d = to_tf32(numbers[0]), to_tf32(numbers[1]), to_tf32(numbers[2]), to_tf32(numbers[3])
    if along:
        at = uint32(piece * uint32(FOUR))
        shared[start + place_number(at, line)] = a
        shared[start + place_number(uint32(at + uint32(1)), line)] = b
        shared[start + place_number(uint32(at + uint32(2)), line)] = c
        shared[start + place_number(uint32(at + uint32(3)), line)] = d
    else:
        store_four(shared, uint32(start + place_number(line, piece * uint32(FOUR))), (a, b, c, d))


@cuda.jit(device=True, forceinline=True)
def locate(thread, left_along, right_along):
    """Return the indices in shared memory of the first number of op(a) and of op(b) that a thread reads."""
    lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
    line, number = lane % uint32(4), lane // uint32(4)
    down, across = uint32(warp // uint32(4) * uint32(64)), uint32(warp % uint32(4) * uint32(32))
    return place_number(line, uint32(down + number)), uint32(uint32(_OPERAND) + place_number(line, uint32(across + number)))


@cuda.jit(device=True, forceinline=True)
def other(index, fours, eights):
    """Return the index in shared memory of the number that is 4 ``fours`` lines below and 8 ``eights`` numbers to the right.

    ``index`` is that of a thread's first number; both numbers must be constants. The warp's numbers begin at a multiple of 32.
    """
    return (index ^ uint64(8 * ((eights ^ fours) % 4))) + uint64(4 * fours * _LINE + 32 * (eights // 4))


@cuda.jit(device=True, forceinline=True)
def multiply_fragments(sums, shared, left, right, fours):
    """Add the products of 4 fragments of op(a) and 4 fragments of op(b) to the sums (4, 4, 4) of each thread of a warp.

    shared (float32) is the shared memory. ``left`` and ``right`` are the indices of the thread's first numbers. The fragments
    begin 4 ``fours`` lines below; the callers pass a constant.
    """
    rights = cuda.local.array((4, 2), float32)
    for j in range(4):
        rights[j, 0], rights[j, 1] = shared[other(right, fours, j)], shared[other(right, fours + 1, j)]
    for i in range(4):
        upper, lower = shared[other(left, fours, 2 * i)], shared[other(left, fours, 2 * i + 1)]
        a = upper, lower, shared[other(left, fours + 1, 2 * i)], shared[other(left, fours + 1, 2 * i + 1)]
        for j in range(4):
            c = sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]
            c = multiply_add_tf32(a, (rights[j, 0], rights[j, 1]), c)
            sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = c


@cuda.jit(device=True, forceinline=True)
def multiply_step(sums, shared, left, right, left_along, right_along):
    """Add the products of a step, which has twice the depth of a fragment, to sums (4, 4, 4)."""
    left, right = uint64(left), uint64(right)
    multiply_fragments(sums, shared, left, right, 0)
    multiply_fragments(sums, shared, left, right, 2)


@cuda.jit(device=True, forceinline=True)
def store_two(c, row, column, first, second):
    """Store two exponentials in c (B, columns), from an even column on, except outside of the matrix."""
    if row < uint32(c.shape[0]) and column < uint32(c.shape[1]):
        c[row, column], c[row, uint32(column + uint32(1))] = first, second


TF32 = Arithmetic(
    width=FOUR,
    depth=DEPTH,
    word=float32,
    operand_words=_OPERAND,
    sums=(4, 4, 4),
    clear=clear,
    read=read_piece,
    compute_slopes=compute_slopes,
    write=write_piece,
    locate=locate,
    multiply=multiply_step,
    first=first,
    offset=offset,
    store=store,
    store_with_bias=store_with_bias,
    store_softmax=make_store_softmax(store_two),
)
