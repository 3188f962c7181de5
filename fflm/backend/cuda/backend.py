"""The CUDA backend: the operations of `protocol.Backend` on arrays in a GPU's memory, in float32, TF32 or mixed precision."""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from ctypes import c_bool, c_float, c_int32, c_uint32
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from fflm.backend.common import Scratch, activation_code, dropout_threshold, flat, low_and_high
from fflm.backend.cuda import kernels
from fflm.backend.cuda.communication import connect_gpus
from fflm.backend.cuda.graphs import GraphRecording, PlacedNumbers, packed
from fflm.backend.cuda.kernels import SUMMED
from fflm.backend.cuda.launching import BLOCK, launch_kernel
from fflm.backend.cuda.memory import DeviceArray, PinnedCopies, Reserve, memory_size
from fflm.backend.cuda.mixed import MIXED, SLOPE, lower_halves, make_mixed_product, pairs_for, to_halves
from fflm.backend.cuda.products import COLUMNS, FORMS, FOUR, ROWS, STORE, make_float_product
from fflm.backend.cuda.single import SINGLE
from fflm.backend.cuda.tf32 import TF32
from fflm.backend.cuda.wgmma import WGMMA
from fflm.backend.protocol import UNIT_LOSSES, ActivationFunction, Array, Dropout, Recording, SoftmaxPart, StepNumbers, UnitLoss
from fflm.errors import FflmError

if TYPE_CHECKING:
    from fflm.parallel.communicator import Communicator

PARTS = 1024
"""Maximum number of blocks that reduce an array, each of which has one result, or that process several arrays."""

TABLES = 64
"""Maximum number of tables of addresses that are kept. A step needs up to three, and if they are dropped, its graph is, too."""

PRODUCTS = {
    "fp32": {form: make_float_product(SINGLE, "fp32", form) for form in FORMS},
    "tf32": {form: make_float_product(TF32, "tf32", form) for form in FORMS},
    "mixed": {form: make_mixed_product(MIXED, "mixed", form) for form in FORMS},
    "wgmma": {form: make_mixed_product(WGMMA, "wgmma", form) for form in FORMS},
}
"""The kernels of matrix products by their precision and form; ``wgmma`` is mixed precision with this instruction."""

WAVE = 264
"""Number of blocks of a product that run at the same time on an H200: two on each of its 132 multiprocessors.

The number is the same for all GPUs, so that all of them add numbers in the same order.
"""

SPAN = 128
"""If the inner dimension of a product, or the rows of a sum, are divided into parts, these are multiples of this number long."""


def softmax_bytes(memory: int, mixed: bool) -> int:
    """Return `Backend.softmax_bytes` for a GPU with this many bytes of memory.

    The numbers of a softmax take an eighth of the memory, but always up to 1 GiB. There are at most 2^31 of them, because kernels
    count the numbers of an array in 32 bits. The limit depends on all memory and not on what is free, so that the batches of a
    training session are always divided in the same way.

    Parameters
    ----------
    memory
        Size of the GPU's memory in bytes.
    mixed
        Whether the numbers are stored as halves, in 2 bytes; callers count 4 bytes per number nevertheless.
    """
    return min(2**33, max(2**30, memory // 8) * (2 if mixed else 1))


class Slopes(NamedTuple):
    """How gradients of logits are computed from their exponentials (B, V): exponential times factor - spread, - hit at targets.

    Attributes
    ----------
    factors
        The factor of each row in each tile, (B, tiles).
    targets
        The target of each row, (B,) int32.
    hit, spread
        The numbers that are subtracted at the target, and everywhere.
    """

    factors: Array
    targets: Array
    hit: float
    spread: float


def divide(blocks: int, inner: int) -> tuple[int, int]:
    """Return into how many parts to divide the inner dimension of a product, or the rows of a sum, and the length of a part.

    A product with few tiles would occupy only some of the GPU's multiprocessors, so that several blocks then share a tile.

    Parameters
    ----------
    blocks
        Number of tiles of the product, or of blocks of columns that are added up.
    inner
        Length of the inner dimension, or number of rows.
    """
    parts = max(1, min(WAVE // max(1, blocks), inner // SPAN))
    span = SPAN * max(1, -(-inner // (parts * SPAN)))
    return max(1, -(-inner // span)), span


def _refuse_part(part: SoftmaxPart | None) -> None:
    """Raise an error if a part of a softmax is to be computed. Training refuses this before."""
    if part is not None:
        raise NotImplementedError("only the CPU computes parts of a softmax")


def blocks_for(arrays: Sequence[Array]) -> int:
    """Return the number of blocks that process several arrays, one after another: one thread per number, up to `PARTS` blocks."""
    return min(PARTS, max((-(-array.size // BLOCK) for array in arrays), default=0))


class CudaBackend:
    """The operations of `protocol.Backend` on a GPU's arrays (`memory.DeviceArray`), float32.

    A backend can be used from several threads at once; the GPU does their work one after the other. Each thread keeps scratch
    memory between calls: B x V numbers for the largest batch that it has seen, (V + 1) x m integers of 64 bits, parts of
    products, and in mixed precision the operands as halves (float16). `release` frees it.

    Parameters
    ----------
    precision
        The precision of matrix products: ``fp32``; ``tf32``, where tensor cores multiply operands that are rounded to TF32; or
        ``mixed``, where they are rounded to float16 (Micikevicius et al. 2018). All add in float32, and all arrays that outlive
        an operation are float32.
    wgmma
        Whether products in mixed precision use wgmma, an instruction of GPUs with compute capability 9.0. No GPU has confirmed
        that the results are right, so that only the benchmarks ask for it.

    Raises
    ------
    FflmError
        If the GPU has no wgmma.
    """

    name = "cuda"

    def __init__(self, precision: str = "fp32", *, wgmma: bool = False) -> None:
        if wgmma and cuda.get_current_device().compute_capability != (9, 0):
            raise FflmError("wgmma needs a GPU with compute capability 9.0")
        self.precision, self._memory = precision, memory_size()
        self._products, self._columns = PRODUCTS["wgmma" if wgmma else precision], WGMMA.columns if wgmma else COLUMNS
        self.softmax_bytes = softmax_bytes(self._memory, self.mixed)
        self._scratch, self._copies = Scratch(self.empty), PinnedCopies()
        self._borrow = self._scratch.borrow
        self._unused = self.upload(np.zeros(1, np.float32))
        self._unused_matrix, self._unused_id = self._unused.reshape(1, 1), self.upload(np.zeros(1, np.int32))
        self._unit_scales = self.upload(np.ones(2, np.float32))

    @property
    def mixed(self) -> bool:
        """Whether operands are halves."""
        return self.precision == "mixed"

    @property
    def full_precision(self) -> "CudaBackend":
        """The backend in single precision, with the same scratch memory as this one."""
        if self.precision == "fp32":
            return self
        single = copy(self)
        single.precision, single.softmax_bytes = "fp32", softmax_bytes(self._memory, mixed=False)
        single._products, single._columns = PRODUCTS["fp32"], COLUMNS
        return single

    def _launch(self, kernel: Any, grid: int | tuple[int, ...], *arguments: Any) -> None:
        """Launch a kernel with a grid of blocks. If the grid is empty, do nothing, because a GPU would refuse the launch."""
        blocks = grid if isinstance(grid, tuple) else (grid,)
        if all(blocks):
            self._run(kernel, blocks, arguments)

    def _run(self, kernel: Any, blocks: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        """Launch a kernel with a grid that is not empty. Tests replace this method."""
        launch_kernel(kernel, blocks, arguments)

    def _each(self, kernel: Any, size: int, *arguments: Any) -> None:
        """Launch a kernel with (at least) one thread for each of ``size`` numbers."""
        self._launch(kernel, -(-size // BLOCK), *arguments)

    def _product(
        self,
        form: str,
        a: Array,
        b: Array,
        c: Array,
        inner: int,
        *,
        beta: float = 0.0,
        bias: Array = None,
        activation: ActivationFunction = "identity",
        statistics: tuple[Array, Array] | None = None,
        slopes: Slopes | None = None,
        scale: float = 1.0,
        unit: Array = None,
    ) -> None:
        """Compute a product c = op(a) op(b) of one of the `FORMS`.

        `products` describes the arguments; ``statistics`` are ``highest`` and ``totals``. The operands a and b are results of
        `_operand`. In mixed precision, ``scale`` is alpha, and ``unit`` is as for `mixed.make_mixed_product`; otherwise both are
        ignored. For arguments that the form does not use, the kernel gets arrays of one number.
        """
        rows, columns = c.shape if statistics is None else (len(a), len(b))
        grid = -(-columns // self._columns), -(-rows // ROWS)
        parts, span = 1, inner
        if FORMS[form][2] == STORE and bias is None:  # with a bias, the kernel also adds up the rows of op(a), all by one block
            parts, span = divide(grid[0] * grid[1], inner)
        sums = c if parts == 1 else self._borrow("parts of a product", (parts * rows, columns))
        highest, totals = statistics or (self._unused_matrix, self._unused_matrix)
        code, gamma = activation_code(activation)
        slopes = slopes or Slopes(self._unused_matrix, self._unused_id, 0.0, 0.0)
        units = (c_float(scale), self._unit_scales if unit is None else unit) if self.mixed else ()
        self._launch(
            self._products[form],
            (*grid, parts),
            a,
            b,
            sums,
            c_uint32(inner),
            c_uint32(span),
            *units,
            c_float(beta if parts == 1 else 0),
            self._unused if bias is None else bias,
            c_int32(code),
            c_float(gamma),
            highest,
            totals,
            slopes.factors,
            slopes.targets,
            c_float(slopes.hit),
            c_float(slopes.spread),
        )
        if parts > 1:
            self._each(kernels.add_parts, c.size, sums.reshape(parts, -1), c_float(beta), *flat(c))

    def _operand(self, name: str, values: Array, unit: Array = None) -> Array:
        """Return a matrix (M, N) as an operand of products.

        In mixed precision, this is the matrix times ``unit[0]``, rounded to halves, in the scratch memory with this name;
        otherwise it is the matrix itself. For TF32 it is a copy if the rows of the matrix are no whole pieces.
        """
        if self.precision == "tf32" and values.shape[1] % FOUR:
            padded = self._borrow(f"pieces of {name}", (len(values), FOUR * -(-values.shape[1] // FOUR)))
            self.clear(padded)
            self.copy(values, padded)
            return padded
        if not self.mixed:
            return values
        shape = len(values), pairs_for(values.shape[1])
        halves = self._borrow(f"halves of {name}", shape, np.uint32)
        self._each(to_halves, halves.size // FOUR, values, self._unit_scales if unit is None else unit, halves)
        return halves

    def _gradient_scales(self, values: Array) -> Array:
        """Return the power of two that makes the largest of gradients about 2^14, and its inverse: (2,); None if not mixed."""
        if not self.mixed:
            return None
        scales = self._borrow("unit", (2,))
        self._choose_scales(values, 14, scales)
        return scales

    def _choose_scales(self, values: Array, bits: int, scales: Array) -> None:
        """Fill scales (2,) with the power of two that makes the largest of some values about 2^bits, and its inverse."""
        parts = min(PARTS, -(-values.size // BLOCK))
        largest = self._borrow("parts", (parts,))
        self._launch(kernels.largest_magnitudes, parts, *flat(values), largest)
        self._launch(kernels.fixed_point, 1, largest, c_float(bits), scales)

    def release(self) -> None:
        self._scratch.clear()

    def connect(self, processes: "Communicator") -> "Communicator":
        return connect_gpus(processes, self) if processes.size > 1 else processes

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return DeviceArray(shape, dtype)

    def upload(self, array: Any) -> Array:
        if isinstance(array, DeviceArray):
            return array
        array = np.ascontiguousarray(array)
        uploaded = self.empty(array.shape, array.dtype)
        self._copies.send(array, uploaded)
        return uploaded

    def download(self, array: Array) -> Any:
        return self._copies.receive(array)

    def place(self, numbers: StepNumbers) -> Any:
        return PlacedNumbers.of(self.upload(packed(numbers)))

    def recording(self) -> Recording:
        return GraphRecording(self)

    def padded(self, rows: int) -> int:
        unit = max(COLUMNS, 1 << max(0, rows.bit_length() - 4))  # from COLUMNS on, at most one eighth is added
        return -(-rows // unit) * unit

    @contextmanager
    def own_memory(self, reserve: Reserve, buffers: dict[Hashable, Array]) -> Iterator[None]:
        """Let operations of the calling thread take memory from a reserve, and keep it in other buffers, within a block."""
        with reserve.used(), self._scratch.replaced(buffers):
            yield

    def send(self, array: Any, copied: Array) -> None:
        """Copy a contiguous NumPy array to an array of the same shape and dtype on the GPU."""
        self._copies.send(array, copied)

    def copy(self, values: Array, copied: Array, *, source: int = 0, target: int = 0) -> None:
        self._launch(kernels.copy, len(values), values, c_uint32(source), copied, c_uint32(target))

    def clear(self, array: Array) -> None:
        array.clear()

    def gather(
        self, embeddings: Array, contexts: Array, blocks: tuple[int, ...], inputs: Array, weights: Array | None = None
    ) -> None:
        weights = self._unit_scales[:0] if weights is None else weights
        self._each(kernels.gather, inputs.size, embeddings, contexts, self._borders(blocks), weights, inputs)

    def scatter_add(
        self,
        contexts: Array,
        blocks: tuple[int, ...],
        d_inputs: Array,
        d_embeddings: Array,
        weighted: tuple[Array, Array, Array] | None = None,
    ) -> None:
        with self._sums(d_inputs, d_embeddings) as (scales, sums):
            averaged = sums[:0]
            if weighted is not None:
                averaged = self._borrow("averaged", (d_embeddings.size,), np.int64, self._zeros).reshape(d_embeddings.shape)
            self._each(kernels.scatter_add, d_inputs.size, contexts, self._borders(blocks), d_inputs, scales, sums, averaged)
            if weighted is not None:
                embeddings, weights, d_weights = weighted
                arrays = averaged, scales, embeddings, weights, d_embeddings, d_weights
                self._launch(kernels.add_averaged, len(embeddings), *arrays)

    @contextmanager
    def _sums(self, values: Array, total: Array) -> Iterator[tuple[Array, Array]]:
        """Let a kernel add values of float32 to a total in any order without a difference in rounding.

        The context yields scales (2,) for the values, as `kernels.fixed_point` defines them, and sums, zeros (int64) of the shape
        of ``total``. The kernel adds the scaled values to the sums; at the end of the context, these are added to the total.
        """
        scales, sums = self._borrow("scales", (2,)), self._borrow("sums", (total.size,), np.int64, self._zeros)
        try:
            self._choose_scales(values, 40, scales)  # values are below 2^41, so that the sum of 2^22 of them fits into 63 bits
            yield scales, sums.reshape(total.shape)
            self._each(kernels.add_fixed_point, total.size, sums, scales, *flat(total))
        except BaseException:
            self._scratch.drop("sums", "averaged")  # they may not be zeros again
            raise

    def _zeros(self, size: int) -> Array:
        """Return zeros (size,) int64."""
        zeros = self.empty((size,), np.int64)
        self.clear(zeros)
        return zeros

    def mean_pool(self, embeddings: Array, words: Array, pooled: Array) -> None:
        self._launch(kernels.mean_pool, len(words), embeddings, words, pooled)

    def mean_pool_backward(self, words: Array, d_pooled: Array, d_embeddings: Array) -> None:
        with self._sums(d_pooled, d_embeddings) as (scales, sums):
            self._launch(kernels.mean_pool_backward, len(words), words, d_pooled, scales, sums)

    def max_pool(self, embeddings: Array, words: Array, pooled: Array, sources: Array) -> None:
        self._launch(kernels.max_pool, len(words), embeddings, words, pooled, sources)

    def max_pool_backward(self, sources: Array, d_pooled: Array, d_embeddings: Array) -> None:
        with self._sums(d_pooled, d_embeddings) as (scales, sums):
            self._launch(kernels.max_pool_backward, len(sources), sources, d_pooled, scales, sums)

    def _borders(self, blocks: tuple[int, ...]) -> Array:
        """Return the borders (K + 1,) int32 of blocks with these sizes, as an array that is kept on the device."""
        borders = np.cumsum((0, *blocks)).astype(np.int32)
        return self._borrow(f"borders {blocks}", borders.shape, np.int32, lambda size: self.upload(borders))

    def put_rows(self, values: Array, rows: Array, array: Array) -> None:
        self._launch(kernels.put_rows, len(rows), values, rows, array)

    def dropout(self, values: Array, dropout: Dropout, row: int, dropped: Array) -> None:
        first = row * values.shape[1]
        threads = -(-(first % 4 + values.size) // 4)
        values, dropped = flat(values, dropped)
        self._each(
            kernels.dropout,
            threads,
            values,
            c_float(1 / (1 - dropout.rate)),
            dropout.numbers.step,
            *(c_uint32(int(word)) for word in (dropout_threshold(dropout), dropout.layer, *low_and_high(dropout.seed))),
            c_uint32(first),
            dropped,
        )

    def affine(self, inputs: Array, weight: Array, bias: Array, activation: ActivationFunction, outputs: Array) -> None:
        a, b = self._operand("inputs", inputs), self._operand("weight", weight)
        self._product("layer", a, b, outputs, inputs.shape[1], bias=bias, activation=activation)

    def affine_backward(
        self,
        inputs: Array,
        weight: Array,
        outputs: Array,
        activation: ActivationFunction,
        d_outputs: Array,
        beta: float,
        d_weight: Array,
        d_bias: Array,
        d_inputs: Array,
    ) -> None:
        if activation != "identity":
            code, gamma = activation_code(activation)
            self._each(kernels.multiply_slopes, outputs.size, c_int32(code), c_float(gamma), *flat(outputs, d_outputs))
        self._column_sums(d_outputs, beta, d_bias)
        operands = self._operand("inputs", inputs), self._operand("weight", weight)
        self._products_backward(d_outputs, *operands, beta, d_weight, d_inputs)

    def _column_sums(self, values: Array, beta: float, sums: Array) -> None:
        """Add the sums of the columns of values (B, O) to ``beta`` times sums (O,)."""
        blocks = -(-len(sums) // SUMMED)
        parts, span = divide(blocks, len(values))
        own = self._borrow("parts of sums", (parts, len(sums))) if parts > 1 else sums.reshape(1, -1)
        self._launch(kernels.column_sums, (blocks, parts), values, c_uint32(span), c_float(beta if parts == 1 else 0), own)
        if parts > 1:
            self._each(kernels.add_parts, sums.size, own, c_float(beta), sums)

    def _products_backward(
        self, d_sums: Array, inputs: Array, weight: Array, beta: float, d_weight: Array, d_inputs: Array
    ) -> None:
        """Backpropagate through the product inputs weight^T.

        d_sums (B, O), and the operands inputs (B, I) and weight (O, I) -> d_weight (O, I), added to ``beta`` times its content,
        and d_inputs (B, I), overwritten.
        """
        unit = self._gradient_scales(d_sums)
        slopes = self._operand("gradients", d_sums, unit)
        self._product("to weights", slopes, inputs, d_weight, len(inputs), beta=beta, unit=unit)
        self._product("to inputs", slopes, weight, d_inputs, len(weight), unit=unit)

    def add(self, values: Array, total: Array) -> None:
        self._each(kernels.add, total.size, *flat(values, total))

    def normalize(self, values: Array, normalized: Array) -> None:
        self._launch(kernels.normalize, len(values), values, normalized)

    def normalize_backward(self, values: Array, d_normalized: Array, d_values: Array) -> None:
        self._launch(kernels.normalize_backward, len(values), values, d_normalized, d_values)

    def _statistics(
        self, form: str, hidden: Array, weight: Array, bias: Array, size: int, exponentials: Array
    ) -> tuple[Array, Array]:
        """Compute logits and their exponentials; return the maxima and the sums of the tiles, both (B, tiles).

        The exponentials are stored in ``exponentials`` (B, at least V) if the form is "logits", but not if it is "normalizers".
        hidden (B, H) and weight (V, H) are operands, and ``size`` is H.
        """
        shape = len(hidden), -(-len(weight) // COLUMNS)
        statistics = self._borrow("highest", shape), self._borrow("totals", shape)
        self._product(form, hidden, weight, exponentials, size, bias=bias, statistics=statistics)
        return statistics

    def output_losses(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        rows: Array,
        targets: Array,
        losses: Array,
        part: SoftmaxPart | None = None,
    ) -> None:
        _refuse_part(part)
        operands = self._operand("hidden", hidden), self._operand("weight", weight)
        statistics = self._statistics("normalizers", *operands, bias, hidden.shape[1], self._unused_matrix)
        normalizers = self._borrow("normalizers", (len(hidden),))
        self._launch(kernels.normalize_rows, len(hidden), *statistics, normalizers)
        self._launch(kernels.output_losses, len(targets), hidden, weight, bias, rows, targets, normalizers, losses)

    def output_gradients(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        targets: Array,
        smoothing: float,
        penalty: float,
        scale: float,
        beta: float,
        losses: Array,
        d_hidden: Array,
        d_weight: Array,
        d_bias: Array,
        part: SoftmaxPart | None = None,
        *,
        adversarial: float = 0.0,
    ) -> None:
        _refuse_part(part)
        words, operands = len(weight), (self._operand("hidden", hidden), self._operand("weight", weight))
        size = hidden.shape[1]
        if self.mixed:  # pairs of halves
            exponentials = self._borrow("halves of exponentials", (len(hidden), pairs_for(words)), np.uint32)
        else:
            exponentials = self._borrow("exponentials", (len(hidden), FOUR * -(-words // FOUR)))
        highest, totals = self._statistics("logits", *operands, bias, size, exponentials)
        if adversarial:
            noise, lower = self._borrow("noise", (3, len(hidden))), lower_halves if self.mixed else kernels.lower_targets
            self._launch(lower, len(hidden), hidden, weight, targets, c_float(adversarial), exponentials, totals, noise)
        # In mixed precision, the scale is applied to the sums, because numbers as small as the scale do not fit into halves.
        unit = SLOPE if self.mixed else scale
        self._launch(
            kernels.finish_softmax,
            len(hidden),
            hidden,
            weight,
            bias,
            targets,
            highest,
            totals,
            c_float(penalty),
            c_float(unit),
            losses,
        )
        slopes = Slopes(totals, targets, unit * (1 - smoothing), unit * smoothing / words)
        rest = scale / unit
        self._product("slopes to inputs", exponentials, operands[1], d_hidden, words, slopes=slopes, scale=rest)
        self._product(
            "slopes to weights",
            exponentials,
            operands[0],
            d_weight,
            len(hidden),
            beta=beta,
            bias=d_bias,
            slopes=slopes,
            scale=rest,
        )
        if adversarial:
            subtracted = c_float(slopes.hit + slopes.spread)
            self._launch(
                kernels.finish_noise, len(hidden), hidden, targets, subtracted, c_float(rest), totals, noise, losses, d_hidden
            )

    def nce_gradients(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        targets: Array,
        noise: Array,
        scale: float,
        beta: float,
        losses: Array,
        d_hidden: Array,
        d_weight: Array,
        d_bias: Array,
    ) -> None:
        operands = self._operand("hidden", hidden), self._operand("weight", weight)
        slopes = self._borrow("exponentials", (len(hidden), len(weight)))
        self._product("scores", *operands, slopes, hidden.shape[1])
        self._launch(kernels.nce_slopes, len(hidden), slopes, bias, targets, noise, c_float(scale), losses)
        self._column_sums(slopes, beta, d_bias)
        self._products_backward(slopes, *operands, beta, d_weight, d_hidden)

    def replace_targets(self, log_probabilities: Array, targets: Array, factor: float, beta: float, d_scores: Array) -> None:
        factors = c_float(factor), c_float(beta)
        self._launch(kernels.replace_targets, len(targets), log_probabilities, targets, *factors, d_scores)

    def unit_losses(self, scores: Array, targets: Array, loss: UnitLoss, scale: float, losses: Array, d_scores: Array) -> None:
        code = c_int32(UNIT_LOSSES.index(loss))
        self._launch(kernels.unit_losses, len(scores), code, scores, targets, c_float(scale), losses, d_scores)

    def log_probabilities(self, hidden: Array, weight: Array, bias: Array, log_probabilities: Array) -> None:
        operands = self._operand("hidden", hidden), self._operand("weight", weight)
        self._product("scores", *operands, log_probabilities, hidden.shape[1])
        self._launch(kernels.normalize_logits, len(hidden), log_probabilities, bias)

    def norm(self, gradients: Iterable[Array]) -> float:
        return math.sqrt(self.download(self._sums_of_squares(gradients)).sum(dtype=np.float64))

    def clip_factor(self, gradients: Iterable[Array], limit: float, factor: Array) -> None:
        self._launch(kernels.clip_factor, 1, self._sums_of_squares(gradients), c_float(limit), factor)

    def _sums_of_squares(self, gradients: Iterable[Array]) -> Array:
        """Return numbers whose sum is the sum of the squares of all gradients."""
        arrays = list(gradients)
        totals = self._borrow("parts", (blocks_for(arrays),))
        self._on_table(kernels.sums_of_squares, (arrays,), totals)
        return totals

    def _on_table(self, kernel: Any, lists: tuple[Sequence[Array], ...], *arguments: Any) -> None:
        """Launch a kernel that processes several arrays, given by a table of their addresses.

        The first argument of the kernel is the table (K, 1 + lists) int64: for each array of the first list the number of its
        elements, its address, and the addresses of the arrays of the other lists at the same place, which have the same size.
        Tables are kept, because most steps of training use the same arrays.
        """
        rows = tuple((own[0].size, *(array.address for array in own)) for own in zip(*lists, strict=True))
        if rows not in self._scratch.names:
            tables = [name for name in self._scratch.names if isinstance(name, tuple)]
            if len(tables) >= TABLES:
                self._scratch.drop(*tables)
        shape = len(rows), 1 + len(lists)
        table = self._borrow(rows, shape, np.int64, lambda _: self.upload(np.array(rows, np.int64).reshape(-1)))
        self._launch(kernel, blocks_for(lists[0]), table, *arguments)

    def add_penalty(self, weight: Array, gradient: Array, l1: float, l2: float) -> None:
        self._each(kernels.add_penalty, weight.size, *flat(weight, gradient), c_float(l1), c_float(l2))

    def momentum_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        velocities: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        momentum: float,
        nesterov: bool,
    ) -> None:
        constants = *map(c_float, (l2, momentum)), c_bool(nesterov)
        self._on_table(kernels.momentum_step, (weights, gradients, velocities), scale, numbers.reals, *constants)

    def adagrad_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        totals: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        epsilon: float,
    ) -> None:
        constants = map(c_float, (l2, epsilon))
        self._on_table(kernels.adagrad_step, (weights, gradients, totals), scale, numbers.reals, *constants)

    def adagrad_step_rows(
        self,
        gradient: Array,
        rows: Array,
        weight: Array,
        total: Array,
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        epsilon: float,
    ) -> None:
        constants = map(c_float, (l2, epsilon))
        self._launch(kernels.adagrad_step_rows, len(rows), gradient, rows, scale, numbers.reals, *constants, weight, total)

    def rmsprop_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        means: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        decay: float,
        epsilon: float,
    ) -> None:
        constants = map(c_float, (l2, decay, epsilon))
        self._on_table(kernels.rmsprop_step, (weights, gradients, means), scale, numbers.reals, *constants)

    def adam_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        firsts: Sequence[Array],
        seconds: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        shrinks: bool,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        constants = c_bool(shrinks), *map(c_float, (l2, beta1, beta2, epsilon))
        self._on_table(kernels.adam_step, (weights, gradients, firsts, seconds), scale, numbers.reals, *constants)

    def adam_take_rows(
        self,
        weight: Array,
        first: Array,
        second: Array,
        rows: Array,
        idle: Array,
        keeps: Array,
        taken: Array,
        *,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        constants = map(c_float, (beta1, beta2, epsilon))
        arrays = weight, first, second, rows, idle, keeps, numbers.reals
        self._launch(kernels.adam_take_rows, len(rows), *arrays, *constants, taken)

    def adam_step_rows(
        self,
        taken: Array,
        gradient: Array,
        rows: Array,
        idle: Array,
        weight: Array,
        first: Array,
        second: Array,
        *,
        scale: Array,
        l2: float,
        shrinks: bool,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        constants = c_bool(shrinks), *map(c_float, (l2, beta1, beta2, epsilon))
        arrays = taken, gradient, rows, idle, scale, numbers.reals
        self._launch(kernels.adam_step_rows, len(rows), *arrays, *constants, weight, first, second)

    def adam_catch_up(
        self,
        weight: Array,
        first: Array,
        second: Array,
        idle: Array,
        keeps: Array,
        *,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        constants = map(c_float, (beta1, beta2, epsilon))
        self._launch(kernels.adam_catch_up, len(weight), weight, first, second, idle, keeps, numbers.reals, *constants)
