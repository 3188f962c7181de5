"""The arithmetic of matrix products in mixed precision: operands are halves (float16), products and sums are float32.

The products are computed on tensor cores. `intrinsics` explains matrices of halves, and `fragments` the tile's numbers.

Halves represent magnitudes from 6e-8 to 65,504, so operands are scaled to this range. Exponentials are at most 1 and need no
scale. The gradients of logits (probabilities minus targets) are multiplied by `SLOPE`; the scale of the loss, which might be too
small, is applied to the sums, in float32. Other gradients are multiplied by a power of two that makes the largest about 2^14.
Weights and activations are not scaled.
"""

import math
from typing import Any

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.fragments import clear, first, make_store_softmax, offset, store, store_with_bias
from fflm.backend.cuda.intrinsics import fragments, halves, load_four, multiply_add, pair, store_four, transposed_fragments
from fflm.backend.cuda.kernels import adversarial_margin, block_sum
from fflm.backend.cuda.launching import BLOCK, kernel
from fflm.backend.cuda.products import COLUMNS, FOUR, OUTSIDE, ROWS, Arithmetic, flat_index, is_inside, make_product, read_four

DEPTH = 32
"""Number of positions of the inner dimension that are read in a step."""

WIDTH = 8
"""Number of halves in a piece."""

SLOPE = 2.0**10
"""Factor by which gradients of logits are multiplied before they are rounded to halves.

Halves could represent gradients up to 64 after this. Without the penalty on normalizers they are at most 1.
"""

# Operands in shared memory, measured in pairs. A line is part of a row of the matrix as it is stored, so it lies along the inner
# dimension or across it. `place_piece` says where the pieces of a line are.
_ALONG = DEPTH // 2
_ACROSS = ROWS // 2  # ROWS and COLUMNS are equal
_OPERAND = ROWS * _ALONG  # an operand has ROWS lines of this length or DEPTH lines of the other, which is the same


def pairs_for(columns: int) -> int:
    """Return the number of pairs in a row of a matrix of halves with this number of columns."""
    return FOUR * -(-columns // WIDTH)


@kernel()
def to_halves(values, unit, pairs):
    """Multiply values (M, N) by unit[0], round them to halves, and store these in pairs (M, `pairs_for` (N)) uint32.

    Grid: one thread per piece of `FOUR` pairs.
    """
    number, pieces, factor = uint32(cuda.grid(1)), uint32(pairs.shape[1]) // uint32(FOUR), unit[0]
    row, piece = number // pieces, number % pieces
    if row < uint32(values.shape[0]):
        a, b, c, d = read_four(values, row, uint32(uint32(WIDTH) * piece))
        e, f, g, h = read_four(values, row, uint32(uint32(WIDTH) * piece + uint32(FOUR)))
        left = pair(a * factor, b * factor), pair(c * factor, d * factor)
        right = pair(e * factor, f * factor), pair(g * factor, h * factor)
        store_four(pairs, flat_index(pairs, row, uint32(FOUR) * piece), left + right)


@kernel()
def lower_halves(hidden, weight, targets, adversarial, exponentials, totals, noise):
    """Do what `kernels.lower_targets` does to exponentials in pairs, (B, `pairs_for` (V)) uint32. Grid: one block per row."""
    shared = cuda.shared.array(BLOCK, float32)
    row, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    word, words = uint32(targets[row]), uint32(weight.shape[0])
    margin, share = adversarial_margin(hidden, weight, row, word, adversarial, shared)
    tile = word // uint32(COLUMNS)
    start = tile * uint32(COLUMNS // 2)
    total = float32(0)
    for p in range(start + thread, min(start + uint32(COLUMNS // 2), (words + uint32(1)) // uint32(2)), uint32(BLOCK)):
        left, right = halves(exponentials[row, p])
        if p == word // uint32(2):
            factor = math.exp(-margin)
            even = word % uint32(2) == uint32(0)
            exponentials[row, p] = pair(left * factor if even else left, right if even else right * factor)
            left, right = halves(exponentials[row, p])
            noise[2, row] = left if even else right
        total += left
        if uint32(2) * p + uint32(1) < words:
            total += right
    total = block_sum(total, shared)
    if thread == uint32(0):
        totals[row, tile] = total
        noise[0, row], noise[1, row] = margin, share


@cuda.jit(device=True, forceinline=True)
def read_piece(matrix, line, piece):
    """Return the four pairs of piece number ``piece`` of a line of a matrix (lines, pairs); zeros outside of the matrix."""
    if is_inside(matrix, line, uint32(FOUR) * piece):
        return load_four(matrix, flat_index(matrix, line, uint32(FOUR) * piece))
    return uint32(0), uint32(0), uint32(0), uint32(0)


@cuda.jit(device=True, forceinline=True)
def slope_pair(exponentials, number, factor, place, hit, spread, own):
    """Return the gradients of two logits as a pair, given their exponentials as a pair.

    The logits have the numbers ``number`` and ``number`` + 1 in a piece of eight, and ``place`` is the number of the target. The
    gradients are those of `single.slope`; they are also added to own (8,), in float32.
    """
    first, second = halves(exponentials)
    first = first * factor - spread - (hit if place == uint32(number) else float32(0))
    second = second * factor - spread - (hit if place == uint32(number + 1) else float32(0))
    own[number] += first
    own[number + 1] += second
    return pair(first, second)


@cuda.jit(device=True, forceinline=True)
def slope_piece(words, q, factor, place, hit, spread, own):
    """Replace the exponentials of eight logits, the four pairs words[q] of words (reads, 4), by the gradients of the logits."""
    words[q, 0] = slope_pair(words[q, 0], 0, factor, place, hit, spread, own)
    words[q, 1] = slope_pair(words[q, 1], 2, factor, place, hit, spread, own)
    words[q, 2] = slope_pair(words[q, 2], 4, factor, place, hit, spread, own)
    words[q, 3] = slope_pair(words[q, 3], 6, factor, place, hit, spread, own)


@cuda.jit(device=True, forceinline=True)
def compute_slopes(words, q, factor, place, hit, spread, own):
    """Replace exponentials by gradients as `slope_piece` does, but faster for pieces without a target, which most pieces are."""
    if place < uint32(WIDTH):
        slope_piece(words, q, factor, place, hit, spread, own)
    elif place != uint32(OUTSIDE):  # with this constant, the compiler removes the comparisons of places
        slope_piece(words, q, factor, uint32(OUTSIDE), hit, spread, own)


@cuda.jit(device=True, forceinline=True)
def place_piece(line, piece, along):
    """Return the index in shared memory of a piece of a line, relative to where the operand begins.

    ``along`` says whether lines lie along the inner dimension, as in `products`. Shared memory has 32 banks, and a piece takes
    four of them. Eight threads write pieces at the same time, and later the eight lines of a fragment's matrix are read at the
    same time. The pieces of a line are permuted (by an exclusive or with the number of the line), so that both use all banks.
    Two lines along the inner dimension take all banks, therefore both are permuted in the same way.
    """
    if along:
        return uint32(line * uint32(_ALONG) + (piece ^ line // uint32(2) % uint32(4)) * uint32(FOUR))
    return uint32(line * uint32(_ACROSS) + (piece ^ line % uint32(8)) * uint32(FOUR))


@cuda.jit(device=True, forceinline=True)
def write_piece(shared, start, line, piece, pairs, along):
    """Write the four pairs of a piece to shared memory (uint32), where the operand begins at ``start``."""
    store_four(shared, uint32(start + place_piece(line, piece, along)), pairs)


@cuda.jit(device=True, forceinline=True)
def locate(thread, left_along, right_along):
    """Return the indices in shared memory of the line of op(a) and of the line of op(b) that a thread passes to `fragments`.

    A lane passes line lane % 8 of matrix lane // 8 of the four matrices of 8 x 8 halves that are loaded together. For op(a),
    these are the upper and the lower matrix of a fragment, and then those to their right. For op(b), they are the first and the
    second matrix along the inner dimension, and then the same of the next eight columns.
    """
    lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
    down, across = uint32(warp // uint32(4) * uint32(64)), uint32(warp % uint32(4) * uint32(32))
    line, odd, high = lane % uint32(8), lane // uint32(8) % uint32(2), lane // uint32(16)
    if left_along:
        left = place_piece(down + odd * uint32(8) + line, high, True)
    else:
        left = place_piece(high * uint32(8) + line, down // uint32(8) + odd, False)
    if right_along:
        right = place_piece(across + high * uint32(8) + line, odd, True)
    else:
        right = place_piece(odd * uint32(8) + line, across // uint32(8) + high, False)
    return left, right


@cuda.jit(device=True, forceinline=True)
def sixteen_lines(index, number, along):
    """Return the index in shared memory of the same piece ``number`` times 16 lines below."""
    return index + uint64(16 * number * (_ALONG if along else _ACROSS))


@cuda.jit(device=True, forceinline=True)
def two_pieces(index, number):
    """Return the index in shared memory of the piece of the same line that is ``number`` times two pieces to the right.

    The number of the piece at ``index`` must have zeros where that of 2 ``number`` has ones, in binary.
    """
    return index ^ uint64(2 * FOUR * number)


@cuda.jit(device=True, forceinline=True)
def multiply_fragments(sums, shared, left, left_along, right, right_along):
    """Add the products of 4 fragments of op(a) and 4 fragments of op(b) to the sums (4, 4, 4) of each thread of a warp.

    shared (uint32) is the shared memory. ``left`` and ``right`` are the indices of the thread's lines of the first fragments.
    """
    rights = cuda.local.array((4, 2), uint32)
    for j in range(2):
        if right_along:
            four = fragments(shared, sixteen_lines(right, j, True))
        else:
            four = transposed_fragments(shared, two_pieces(right, j))
        rights[2 * j, 0], rights[2 * j, 1], rights[2 * j + 1, 0], rights[2 * j + 1, 1] = four
    for i in range(4):
        a = fragments(shared, sixteen_lines(left, i, True)) if left_along else transposed_fragments(shared, two_pieces(left, i))
        for j in range(4):
            c = multiply_add(a, (rights[j, 0], rights[j, 1]), (sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]))
            sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = c


@cuda.jit(device=True, forceinline=True)
def multiply_step(sums, shared, left, right, left_along, right_along):
    """Add the products of a step to sums (4, 4, 4). A step has 32 positions of the inner dimension, which is twice a fragment."""
    left, right = uint64(left), uint64(right) + uint64(_OPERAND)
    for half in range(2):
        a = two_pieces(left, half) if left_along else sixteen_lines(left, half, False)
        b = two_pieces(right, half) if right_along else sixteen_lines(right, half, False)
        multiply_fragments(sums, shared, a, left_along, b, right_along)


@cuda.jit(device=True, forceinline=True)
def store_two(c, row, column, first, second):
    """Store two exponentials as a pair in c (B, pairs), except outside of the matrix. ``column`` is that of the first number."""
    at = uint32(column // uint32(2))
    if row < uint32(c.shape[0]) and at < uint32(c.shape[1]):
        c[row, at] = pair(first, second)


MIXED = Arithmetic(
    width=WIDTH,
    depth=DEPTH,
    word=uint32,
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


def make_mixed_product(form: str) -> Any:
    """Return the kernel of matrix products of a form (one of `FORMS`) in mixed precision."""
    compute = make_product(MIXED, form)

    @kernel(form, launch_bounds=(BLOCK, 2))
    def product(a, b, c, inner, span, alpha, unit, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread):
        """Compute c (M, N) = op(a) (M, K) op(b) (K, N); a and b are uint32 pairs of halves, and `products` has the parameters.

        The additional parameter is unit (2,) float32. Its second number is a factor on op(a) op(b) that only the device knows.
        """
        alpha *= unit[1]
        compute(a, b, c, inner, span, alpha, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread)

    return product
