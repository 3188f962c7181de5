"""The arithmetic of mixed precision with wgmma, which GPUs of compute capability 9.0 have. No GPU has confirmed it yet.

The instruction multiplies matrices that lie in shared memory, which are not loaded as fragments before. Each of the two groups
of four warps of a block computes 64 x 256 numbers of the tile. Each warp has 16 rows, and a thread has four numbers of each of
the 32 fragments of 16 x 8 numbers, as in `fragments`; its array of sums (4, 8, 4) is indexed by 64 columns, the fragment in
these, and the register.
"""

import math
from typing import Any

from numba import cuda, float32, uint32

from fflm.backend.cuda.fragments import clear, make_row_exponentials, make_stores, row_top
from fflm.backend.cuda.intrinsics import (
    GROUP_COLUMNS,
    GROUP_DEPTH,
    await_earlier_products,
    finish_products,
    make_group_product,
    publish_to_tensor_cores,
)
from fflm.backend.cuda.kernels import larger
from fflm.backend.cuda.mixed import WIDTH, compute_slopes, store_two
from fflm.backend.cuda.pipeline import Layout, Pipeline, make_loop
from fflm.backend.cuda.products import COLUMNS, FOUR, ROWS, Arithmetic, lines_along

THREADS = 256
"""Number of threads in a block."""

STAGES = 4
"""Number of stages of the pipeline, which take 192 KiB of shared memory."""

PIECES = GROUP_DEPTH // WIDTH
"""Number of pieces of a step in a line that lies along the inner dimension."""

_LINE = PIECES * FOUR
"""Number of words of a line in shared memory: 64 halves, which are a line along the inner dimension, or a part of others."""

_GROUP = ROWS // 2 * _LINE
"""Number of words of the rows of op(a) of a group of warps, in both layouts."""


@cuda.jit(device=True, forceinline=True)
def place_along(line, piece):
    """Return the index of a piece of a line along the inner dimension, in the layout of `intrinsics.make_group_product`."""
    return uint32(line * uint32(_LINE) + (piece ^ line % uint32(8)) * uint32(FOUR))


@cuda.jit(device=True, forceinline=True)
def place_across(line, piece):
    """Return the index of a piece of a line across the inner dimension, in the layout of `intrinsics.make_group_product`."""
    return uint32(piece // uint32(PIECES) * uint32(GROUP_DEPTH * _LINE) + place_along(line, piece % uint32(PIECES)))


ALONG, ACROSS = Layout(place_along, _LINE), Layout(place_across, _LINE)


@cuda.jit(device=True, forceinline=True)
def publish():
    """Let the tensor cores see what the thread has written to shared memory."""
    publish_to_tensor_cores()


@cuda.jit(device=True, forceinline=True)
def await_products():
    """Wait until all steps but the latest are multiplied."""
    await_earlier_products()


@cuda.jit(device=True, forceinline=True)
def finish(sums):
    """Wait until all steps are multiplied, those of the other threads, too: then shared memory can be written to."""
    finish_products(sums)
    cuda.syncthreads()


@cuda.jit(device=True, forceinline=True)
def locate(thread):
    """Return the indices in a stage where the rows of op(a) of a thread's group of warps begin, and where op(b) begins."""
    return thread // uint32(THREADS // 2) * uint32(_GROUP), uint32(2 * _GROUP)


@cuda.jit(device=True, forceinline=True)
def first(thread):
    """Return the row and the column, in the tile, of the first number of a thread."""
    lane, warp = uint32(thread % uint32(32)), uint32(thread // uint32(32))
    return uint32(warp * uint32(16) + lane // uint32(4)), lane % uint32(4) * uint32(2)


@cuda.jit(device=True, forceinline=True)
def offset(number):
    """Return the distance, in rows and in columns, of number ``number`` of a thread's 128 numbers from its first."""
    return number // uint32(2) % uint32(2) * uint32(8), number // uint32(4) * uint32(8) + number % uint32(2)


row_exponentials = make_row_exponentials(store_two)
store, store_with_bias = make_stores(0, 64)


@cuda.jit(device=True, forceinline=True)
def add_bias_of(sums, i, bias, column):
    """Add bias (V,) to sums[i] of a thread, from ``column`` on, which become -infinity outside of the matrix; i is a constant."""
    for j in range(8):
        for q in range(2):
            place = uint32(column + uint32(8 * j + q))
            added = bias[place] if place < uint32(bias.size) else float32(-math.inf)
            sums[i, j, q] += added
            sums[i, j, 2 + q] += added


@cuda.jit(device=True, forceinline=True)
def softmax_row(sums, i, h, c, stored, highest, totals, row, column):
    """Finish a row of `COLUMNS` logits, which are sums[i] and sums[i + 1]: the thread's row number h, of two.

    The caller passes constants. The logits of a row are in one warp.
    """
    row, column = uint32(row + uint32(8 * h)), uint32(column + uint32(64 * i))
    beside, tile = uint32(column + uint32(64)), column // uint32(COLUMNS)
    top = larger(row_top(sums, i, h), row_top(sums, i + 1, h))
    total = row_exponentials(sums, i, h, top, c, stored, row, column)
    total += row_exponentials(sums, i + 1, h, top, c, stored, row, beside)
    if cuda.threadIdx.x % 4 == 0 and row < uint32(highest.shape[0]) and tile < uint32(highest.shape[1]):
        highest[row, tile], totals[row, tile] = top, total


@cuda.jit(device=True, forceinline=True)
def store_softmax(sums, statistics, bias, c, stored, highest, totals, row0, row, column):
    """Finish a tile of logits, which has two tiles of `COLUMNS`; ``statistics`` is not used."""
    add_bias_of(sums, 0, bias, column)
    add_bias_of(sums, 1, bias, uint32(column + uint32(64)))
    add_bias_of(sums, 2, bias, uint32(column + uint32(128)))
    add_bias_of(sums, 3, bias, uint32(column + uint32(192)))
    softmax_row(sums, 0, 0, c, stored, highest, totals, row, column)
    softmax_row(sums, 0, 1, c, stored, highest, totals, row, column)
    softmax_row(sums, 2, 0, c, stored, highest, totals, row, column)
    softmax_row(sums, 2, 1, c, stored, highest, totals, row, column)


def make_own_loop(form: str) -> Any:
    """Return the loop of a product of a form, as `Arithmetic.make_loop`."""
    left_along, right_along = lines_along(form)
    pipeline = Pipeline(
        threads=THREADS,
        stages=STAGES,
        pieces=PIECES,
        width=WIDTH,
        columns=GROUP_COLUMNS,
        word=uint32,
        left=ALONG if left_along else ACROSS,
        right=ALONG if right_along else ACROSS,
        compute_slopes=compute_slopes,
        publish=publish,
        clear=clear,
        locate=locate,
        multiply=make_group_product(left_along, right_along),
        unfinished=1,
        await_products=await_products,
        finish=finish,
    )
    return make_loop(pipeline, form)


WGMMA = Arithmetic(
    threads=THREADS,
    columns=GROUP_COLUMNS,
    width=WIDTH,
    word=uint32,
    shared_words=STAGES * (ROWS + GROUP_COLUMNS) * _LINE,
    sums=(4, 8, 4),
    make_loop=make_own_loop,
    first=first,
    offset=offset,
    store=store,
    store_with_bias=store_with_bias,
    store_softmax=store_softmax,
    dynamic=True,
)
