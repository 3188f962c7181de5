"""The loop of matrix products on tensor cores: operands are copied to shared memory asynchronously, several steps ahead.

Shared memory has a number of *stages*, each for the operands of a step along the inner dimension. While a step is multiplied, the
next ones are being copied; a thread waits for its own copies of the next step, and then for the other threads, once per step. An
arithmetic that multiplies asynchronously continues with a step meanwhile, so that tensor cores need not wait for threads.
Operands are copied as they are. Gradients of logits are computed in shared memory, where the exponentials are, by the thread that
has copied them, before the others read them.
"""

from dataclasses import dataclass
from typing import Any

from numba import cuda, float32, uint32, uint64

from fflm.backend.cuda.intrinsics import commit_copies, copy_four, load_four, make_wait, store_four
from fflm.backend.cuda.products import (
    FORMS,
    FOUR,
    ROWS,
    SLOPES,
    SLOPES_TRANSPOSED,
    flat_index,
    is_inside,
    lines_along,
    locate_piece,
    read_factor,
)


@dataclass(frozen=True)
class Layout:
    """How an operand lies in shared memory.

    Attributes
    ----------
    place
        ``(line, piece)``: return the index of a piece of a line, relative to where the operand begins.
    distance
        Number of words between the same piece of two lines whose numbers differ by a multiple of eight, divided by this
        difference.
    """

    place: Any
    distance: int


@dataclass(frozen=True)
class Pipeline:
    """What the loop of a precision consists of.

    Attributes
    ----------
    threads
        Number of threads in a block.
    stages
        Number of stages.
    pieces
        Number of pieces of a step in a line that lies along the inner dimension.
    width
        Number of numbers in a piece.
    columns
        Number of columns of the tile.
    word
        The type of a word of the operands, for Numba.
    left, right
        The layouts of op(a) and op(b).
    compute_slopes
        ``(words, factor, place, hit, spread, own)``: replace the exponentials of words (4,) by gradients of logits, and add these
        to own (width,). ``factor`` and ``place`` are results of `products.read_factor`.
    publish
        ``()``: called by a thread that has written to shared memory, before the barrier after which tensor cores read it.
    clear
        ``(sums)``: set the sums to 0.
    locate
        ``(thread)``: return the indices in a stage where the thread's parts of both operands begin.
    multiply
        ``(sums, shared, left, right)``: add the products of a step to the sums; ``left`` and ``right`` are indices in ``shared``.
    unfinished
        Number of steps that may be unfinished at the barrier after a step: 1 if steps are multiplied asynchronously, or 0.
    await_products
        ``()``: called before the barrier: wait until all steps but the last ``unfinished`` ones are multiplied.
    finish
        ``(sums)``: called after the last step: wait until all steps are multiplied by all threads.
    """

    threads: int
    stages: int
    pieces: int
    width: int
    columns: int
    word: Any
    left: Layout
    right: Layout
    compute_slopes: Any
    publish: Any
    clear: Any
    locate: Any
    multiply: Any
    unfinished: int
    await_products: Any
    finish: Any

    @property
    def left_words(self) -> int:
        """Number of words of op(a) in a stage; those of op(b) follow."""
        return ROWS * self.pieces * FOUR

    @property
    def stage_words(self) -> int:
        """Number of words of a stage."""
        return (ROWS + self.columns) * self.pieces * FOUR


def make_copy(layout: Layout, threads: int, pieces: int, reads: int) -> Any:
    """Return a device function that begins to copy a thread's pieces of an operand.

    ``pieces`` is the number of pieces in a line, and ``reads`` that of a thread's pieces, which are at the same place of lines.
    """
    lines, distance = threads // pieces, threads // pieces * layout.distance
    place_piece = layout.place

    @cuda.jit(device=True, forceinline=True)
    def copy(shared, start, matrix, line, piece):
        """Begin to copy pieces of a matrix (rows, words) to the operand in shared memory that begins at ``start``.

        The first piece is number ``piece`` of line ``line`` of the matrix. Outside of the matrix, whose rows have whole pieces,
        there are zeros.
        """
        thread = uint32(cuda.threadIdx.x)
        at = uint32(start + place_piece(thread // uint32(pieces), thread % uint32(pieces)))
        place, step = flat_index(matrix, line, uint32(FOUR) * piece), uint64(lines) * uint64(matrix.shape[1])
        for q in range(reads):
            present = is_inside(matrix, uint32(line + uint32(q * lines)), uint32(FOUR) * piece)
            copy_four(shared, uint32(at + uint32(q * distance)), matrix, place if present else uint64(0), present)
            place += step

    return copy


def make_loop(pipeline: Pipeline, form: str) -> Any:
    """Return the loop of a product of a form, as `Arithmetic.make_loop`."""
    slopes = FORMS[form][0] in (SLOPES, SLOPES_TRANSPOSED)
    left_along, right_along = lines_along(form)
    threads, stages, width, word = pipeline.threads, pipeline.stages, pipeline.width, pipeline.word
    columns, along, depth = pipeline.columns, pipeline.pieces, pipeline.pieces * pipeline.width
    left_pieces, right_pieces = along if left_along else ROWS // width, along if right_along else columns // width
    reads, left_lines = ROWS * along // threads, threads // left_pieces
    copy_left = make_copy(pipeline.left, threads, left_pieces, reads)
    copy_right = make_copy(pipeline.right, threads, right_pieces, columns * along // threads)
    place_left, distance, compute_slopes = pipeline.left.place, left_lines * pipeline.left.distance, pipeline.compute_slopes
    publish, clear, locate, multiply = pipeline.publish, pipeline.clear, pipeline.locate, pipeline.multiply
    await_products, finish = pipeline.await_products, pipeline.finish
    left_words, stage_words = pipeline.left_words, pipeline.stage_words
    steps_ahead = stages - 1 - pipeline.unfinished
    wait_for_copies = make_wait(steps_ahead - 1)

    @cuda.jit(device=True, forceinline=True)
    def copy_step(shared, stage, a, b, row0, column0, k0):
        """Begin to copy the thread's pieces of the step that begins at position k0 of the inner dimension to a stage."""
        thread = uint32(cuda.threadIdx.x)  # adjacent threads copy adjacent pieces
        line, piece = locate_piece(thread, left_pieces, left_along, row0, k0, width)
        copy_left(shared, stage, a, line, piece)
        line, piece = locate_piece(thread, right_pieces, right_along, column0, k0, width)
        copy_right(shared, uint32(stage + uint32(left_words)), b, line, piece)

    @cuda.jit(device=True, forceinline=True)
    def read_factors(a, row0, k0, factors, targets, factor, place):
        """Read what the slopes of the thread's pieces of a step need to factor and place (reads,)."""
        line, piece = locate_piece(uint32(cuda.threadIdx.x), left_pieces, left_along, row0, k0, width)
        for q in range(reads):
            factor[q], place[q] = read_factor(a, uint32(line + uint32(q * left_lines)), piece, factors, targets, width)

    @cuda.jit(device=True, forceinline=True)
    def compute_step(shared, stage, factor, place, hit, spread, own):
        """Replace exponentials by gradients of logits in the thread's pieces of op(a) in a stage."""
        words, thread = cuda.local.array(FOUR, word), uint32(cuda.threadIdx.x)
        first = stage + place_left(thread // uint32(left_pieces), thread % uint32(left_pieces))
        for q in range(reads):
            at = uint32(first + uint32(q * distance))
            words[0], words[1], words[2], words[3] = load_four(shared, at)
            compute_slopes(words, factor[q], place[q], hit, spread, own)
            store_four(shared, at, (words[0], words[1], words[2], words[3]))

    @cuda.jit(device=True, forceinline=True)
    def next_stage(stage):
        """Return where the stage after the one at ``stage`` begins, which is the first one after the last."""
        return uint32(stage + uint32(stage_words)) if stage != uint32((stages - 1) * stage_words) else uint32(0)

    @cuda.jit(device=True, forceinline=True)
    def add_products(sums, own, shared, a, b, row0, column0, begin, stop, factors, targets, hit, spread):
        """Add op(a) op(b) to the sums, which are cleared before, and if the form has slopes, these to own (width,)."""
        factor, place = cuda.local.array(reads, float32), cuda.local.array(reads, uint32)
        left, right = locate(uint32(cuda.threadIdx.x))
        clear(sums)
        for ahead in range(steps_ahead):
            k0 = uint32(begin + uint32(ahead * depth))
            if k0 < stop:
                copy_step(shared, uint32(ahead * stage_words), a, b, row0, column0, k0)
            commit_copies()
        if slopes:
            read_factors(a, row0, begin, factors, targets, factor, place)
        wait_for_copies()
        if slopes:
            compute_step(shared, uint32(0), factor, place, hit, spread, own)
        publish()
        cuda.syncthreads()
        stage, free, k0 = uint32(0), uint32(steps_ahead * stage_words), begin
        while k0 < stop:
            coming = uint32(k0 + uint32(steps_ahead * depth))
            if coming < stop:
                copy_step(shared, free, a, b, row0, column0, coming)
            commit_copies()  # an empty group, too, so that the number of groups is that of steps
            k0 = uint32(k0 + uint32(depth))
            if slopes and k0 < stop:
                read_factors(a, row0, k0, factors, targets, factor, place)
            multiply(sums, shared, uint32(stage + left), uint32(stage + right))
            free, stage = next_stage(free), next_stage(stage)
            wait_for_copies()
            if slopes and k0 < stop:
                compute_step(shared, stage, factor, place, hit, spread, own)
            publish()
            await_products()
            cuda.syncthreads()
        finish(sums)

    return add_products
