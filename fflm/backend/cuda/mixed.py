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

from fflm.backend.cuda.fragments import FragmentLayout, corner, make_arithmetic
from fflm.backend.cuda.intrinsics import halves, multiply_add, pair, store_four, transposed_fragments
from fflm.backend.cuda.kernels import adversarial_margin, block_sum
from fflm.backend.cuda.launching import BLOCK, kernel
from fflm.backend.cuda.products import COLUMNS, FOUR, OUTSIDE, ROWS, Arithmetic, flat_index, make_product, read_four

WIDTH = 8
"""Number of halves in a piece."""

SLOPE = 2.0**10
"""Factor by which gradients of logits are multiplied before they are rounded to halves.

Halves could represent gradients up to 64 after this. Without the penalty on normalizers they are at most 1.
"""

_LINE = ROWS // 2
"""Number of pairs in a line across the inner dimension, in shared memory."""


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
def slope_piece(words, factor, place, hit, spread, own):
    """Replace the exponentials of eight logits, the four pairs words (4,), by the gradients of the logits."""
    words[0] = slope_pair(words[0], 0, factor, place, hit, spread, own)
    words[1] = slope_pair(words[1], 2, factor, place, hit, spread, own)
    words[2] = slope_pair(words[2], 4, factor, place, hit, spread, own)
    words[3] = slope_pair(words[3], 6, factor, place, hit, spread, own)


@cuda.jit(device=True, forceinline=True)
def compute_slopes(words, factor, place, hit, spread, own):
    """Replace exponentials by gradients as `slope_piece` does, but faster for pieces without a target, which most pieces are."""
    if place < uint32(WIDTH):
        slope_piece(words, factor, place, hit, spread, own)
    elif place != uint32(OUTSIDE):  # with this constant, the compiler removes the comparisons of places
        slope_piece(words, factor, uint32(OUTSIDE), hit, spread, own)


@cuda.jit(device=True, forceinline=True)
def place_across(line, piece):
    """Return the index in shared memory of a piece of a line across the inner dimension, relative to where the operand begins.

    The pieces of a line are permuted as by `fragments.place_along`, but a line takes all 32 banks twice.
    """
    return uint32(line * uint32(_LINE) + (piece ^ line % uint32(8)) * uint32(FOUR))


@cuda.jit(device=True, forceinline=True)
def locate_left(thread):
    """Return the index as `fragments.locate_left` does, for lines across the inner dimension."""
    lane, (down, _) = uint32(thread % uint32(32)), corner(thread)
    return place_across(lane // uint32(16) * uint32(8) + lane % uint32(8), down // uint32(8) + lane // uint32(8) % uint32(2))


@cuda.jit(device=True, forceinline=True)
def locate_right(thread):
    """Return the index as `fragments.locate_right` does, for lines across the inner dimension."""
    lane, (_, across) = uint32(thread % uint32(32)), corner(thread)
    return place_across(lane // uint32(8) % uint32(2) * uint32(8) + lane % uint32(8), across // uint32(8) + lane // uint32(16))


@cuda.jit(device=True, forceinline=True)
def load_across(shared, index, half, i):
    """Return the fragments as `fragments.load_along` does, for lines across the inner dimension."""
    return transposed_fragments(shared, (index ^ uint64(2 * FOUR * i)) + uint64(16 * _LINE * half))


@cuda.jit(device=True, forceinline=True)
def unchanged(words):
    """Return the words."""
    return words


@cuda.jit(device=True, forceinline=True)
def store_two(c, row, column, first, second):
    """Store two exponentials as a pair in c (B, pairs), except outside of the matrix. ``column`` is that of the first number."""
    at = uint32(column // uint32(2))
    if row < uint32(c.shape[0]) and at < uint32(c.shape[1]):
        c[row, at] = pair(first, second)


MIXED = make_arithmetic(
    width=WIDTH,
    word=uint32,
    across=FragmentLayout(place_across, _LINE, locate_left, locate_right, load_across, load_across),
    compute_slopes=compute_slopes,
    rounded=unchanged,
    multiply_add=multiply_add,
    store_two=store_two,
)


def make_mixed_product(arithmetic: Arithmetic, name: str, form: str) -> Any:
    """Return the kernel of matrix products of a form (one of `FORMS`) in mixed precision, with an arithmetic of this name."""
    compute, threads = make_product(arithmetic, form), arithmetic.threads
    shared_bytes = 4 * arithmetic.shared_words if arithmetic.dynamic else 0

    @kernel(f"{name} {form}", threads=threads, shared_bytes=shared_bytes, launch_bounds=(threads, 1 if shared_bytes else 2))
    def product(a, b, c, inner, span, alpha, unit, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread):
        """Compute c (M, N) = op(a) (M, K) op(b) (K, N); a and b are uint32 pairs of halves, and `products` has the parameters.

        The additional parameter is unit (2,) float32. Its second number is a factor on op(a) op(b) that only the device knows.
        """
        alpha *= unit[1]
        compute(a, b, c, inner, span, alpha, beta, bias, code, gamma, highest, totals, factors, targets, hit, spread)

    return product
