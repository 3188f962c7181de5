"""The CPU backend: the operations of `protocol.Backend` on NumPy arrays."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fflm.backend.common import Scratch, activation_code, dropout_threshold, flat, low_and_high
from fflm.backend.cpu import kernels
from fflm.backend.cpu.launching import shares_of
from fflm.backend.protocol import UNIT_LOSSES, ActivationFunction, Array, Dropout, Recording, SoftmaxPart, StepNumbers, UnitLoss
from fflm.instructions import CACHE_LINE

if TYPE_CHECKING:
    from fflm.parallel.communicator import Communicator

PRODUCTS, HIDDEN_PRODUCTS = 1 / 32, 1 / 16
"""Cost of a multiply-add in BLAS, relative to that of a number that another kernel processes.

The second is for hidden layers, whose matrices are smaller than those of the output layer.
"""

RANDOM = 4
"""Cost of a random number, relative to that of a number that another kernel processes."""

SCATTERED = 4
"""Cost of a number in a row that is anywhere in memory, relative to that of a number that another kernel processes."""

LINE = CACHE_LINE // 4
"""Number of single-precision numbers in a line of the cache, where rows of tiles begin."""


class CpuBackend:
    """The operations of `protocol.Backend` on NumPy arrays, in several threads if there is enough work.

    A backend can be used from several threads at once. Each thread keeps scratch memory for the output layer between calls: B x V
    numbers for the largest batch that it has seen. `release` frees it.

    Parameters
    ----------
    threads
        Number of threads, by default `launching.default_threads`. More precisely, it is the number of shares into which large
        work is divided, and results depend on it by rounding; `numba.set_num_threads` may limit how many threads compute them.
    """

    name = "cpu"
    softmax_bytes = 128 * 2**20

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._scratch = Scratch(np.empty)
        self._borrow = self._scratch.borrow

    @property
    def full_precision(self) -> "CpuBackend":
        """The backend itself, which always computes in full precision."""
        return self

    def release(self) -> None:
        self._scratch.clear()

    def _shares(self, work: float) -> int:
        """Return into how many shares to divide work of this size, as `launching.shares_of` does."""
        return shares_of(work, self._threads)

    def connect(self, processes: "Communicator") -> "Communicator":
        return processes

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def upload(self, array: Array) -> Array:
        return array

    def download(self, array: Array) -> Array:
        return array

    def place(self, numbers: StepNumbers) -> Any:
        return numbers

    def recording(self) -> Recording:
        return lambda step, **arguments: step(**arguments)

    def padded(self, rows: int) -> int:
        return rows

    def copy(self, values: Array, copied: Array, *, source: int = 0, target: int = 0) -> None:
        columns = min(values.shape[1] - source, copied.shape[1] - target)
        copied[:, target : target + columns] = values[:, source : source + columns]

    def clear(self, array: Array) -> None:
        array[...] = 0

    def gather(
        self, embeddings: Array, contexts: Array, blocks: tuple[int, ...], inputs: Array, weights: Array | None = None
    ) -> None:
        threads = self._shares(contexts.size * embeddings.shape[1])
        kernels.gather(embeddings, contexts, _borders(blocks), weights, inputs, threads)

    def scatter_add(
        self,
        contexts: Array,
        blocks: tuple[int, ...],
        d_inputs: Array,
        d_embeddings: Array,
        weighted: tuple[Array, Array, Array] | None = None,
    ) -> None:
        threads = self._shares(contexts.size * d_embeddings.shape[1])
        kernels.scatter_add(contexts, _borders(blocks), d_inputs, weighted, d_embeddings, threads)

    def mean_pool(self, embeddings: Array, words: Array, pooled: Array) -> None:
        threads = self._shares(words.size * embeddings.shape[1])
        kernels.mean_pool(embeddings, words, pooled, threads)

    def mean_pool_backward(self, words: Array, d_pooled: Array, d_embeddings: Array) -> None:
        threads = self._shares(words.size * d_embeddings.shape[1])
        kernels.mean_pool_backward(words, d_pooled, d_embeddings, threads)

    def max_pool(self, embeddings: Array, words: Array, pooled: Array, sources: Array) -> None:
        threads = self._shares(words.size * embeddings.shape[1])
        kernels.max_pool(embeddings, words, pooled, sources, threads)

    def max_pool_backward(self, sources: Array, d_pooled: Array, d_embeddings: Array) -> None:
        threads = self._shares(sources.size)
        kernels.max_pool_backward(sources, d_pooled, d_embeddings, threads)

    def put_rows(self, values: Array, rows: Array, array: Array) -> None:
        threads = self._shares(values.size)
        kernels.put_rows(values, rows, array, threads)

    def dropout(self, values: Array, dropout: Dropout, row: int, dropped: Array) -> None:
        factor, first = values.dtype.type(1 / (1 - dropout.rate)), row * values.shape[1]
        threads = self._shares(RANDOM * values.size)
        words = (
            dropout_threshold(dropout),
            np.uint32(dropout.layer),
            *low_and_high(dropout.numbers.step),
            *low_and_high(dropout.seed),
        )
        kernels.dropout(*flat(values), factor, *words, first, *flat(dropped), values is dropped, threads)

    def affine(self, inputs: Array, weight: Array, bias: Array, activation: ActivationFunction, outputs: Array) -> None:
        code, gamma = activation_code(activation)
        threads = self._shares(outputs.size * inputs.shape[1] * HIDDEN_PRODUCTS)
        kernels.affine(inputs, weight, bias, code, inputs.dtype.type(gamma), outputs, threads)

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
        code, gamma = activation_code(activation)
        slopes = code, inputs.dtype.type(gamma)
        threads = self._shares(2 * outputs.size * inputs.shape[1] * HIDDEN_PRODUCTS)
        kernels.affine_backward_inputs(weight, outputs, *slopes, d_outputs, d_inputs, threads)
        kernels.affine_backward_weights(inputs, d_outputs, beta, d_weight, d_bias, threads)

    def add(self, values: Array, total: Array) -> None:
        threads = self._shares(values.size)
        kernels.add(values, total, threads)

    def normalize(self, values: Array, normalized: Array) -> None:
        threads = self._shares(values.size)
        kernels.normalize(values, normalized, threads)

    def normalize_backward(self, values: Array, d_normalized: Array, d_values: Array) -> None:
        threads = self._shares(2 * values.size)
        kernels.normalize_backward(values, d_normalized, d_values, threads)

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
        contexts, threads = len(hidden), self._shares(len(weight) * hidden.size * PRODUCTS)
        most, count = _tiles(len(weight), threads)
        statistics = self._statistics(count, contexts, hidden.dtype, part)
        normalizers = self._borrow("normalizers", (contexts,), hidden.dtype)
        tiles = self._borrow("tiles", (threads, contexts, most), hidden.dtype)
        kernels.softmax_tiles(hidden, weight, bias, tiles, *statistics[:, :count], threads)
        _add_other_parts(statistics, count, part)
        kernels.combine_losses(hidden, weight, bias, rows, targets, *statistics, normalizers, losses)

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
        rows, number, threads = len(hidden), hidden.dtype.type, self._shares(3 * len(weight) * hidden.size * PRODUCTS)
        most, count = _tiles(len(weight), threads)
        statistics = self._statistics(count, rows, hidden.dtype, part)
        tiles = self._borrow("tiles", (count, rows, most), hidden.dtype)
        partial = self._borrow("partial", (threads, *hidden.shape), hidden.dtype)
        kernels.softmax_tiles(hidden, weight, bias, tiles, *statistics[:, :count], threads)
        if adversarial:
            noise, few = self._borrow("noise", (3, rows), hidden.dtype), self._shares(hidden.size)
            kernels.lower_targets(hidden, weight, targets, number(adversarial), tiles, statistics[1], noise, few)
        _add_other_parts(statistics, count, part)
        kernels.finish_softmax(hidden, weight, bias, targets, *statistics, number(penalty), number(scale), losses)
        hit, spread = scale * (1 - smoothing), scale * smoothing / (len(weight) if part is None else part.words)
        kernels.output_gradients(
            hidden, weight, targets, number(hit), number(spread), beta, tiles, statistics[1], partial, d_weight, d_bias, threads
        )
        kernels.add_shares(partial, d_hidden, threads)
        if adversarial:
            kernels.finish_noise(hidden, targets, number(hit + spread), most, statistics[1], noise, losses, d_hidden, few)

    def _statistics(self, count: int, rows: int, dtype: Any, part: SoftmaxPart | None) -> Array:
        """Return memory (2, N, B) for the results of `kernels.softmax_tiles`: N is one for each tile, and for each other part."""
        return self._borrow("statistics", (2, count + (0 if part is None else part.parts - 1), rows), dtype)

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
        threads = self._shares(3 * len(weight) * hidden.size * PRODUCTS)
        tiles = self._borrow("tiles", (threads, len(hidden), _tiles(len(weight), threads)[0]), hidden.dtype)
        partial = self._borrow("partial", (threads, *hidden.shape), hidden.dtype)
        summed, number = np.zeros((threads, len(hidden))), hidden.dtype.type(scale)
        kernels.nce_gradients(
            hidden, weight, bias, targets, noise, number, beta, tiles, partial, summed, d_weight, d_bias, threads
        )
        kernels.sum_nce_parts(partial, summed, losses, d_hidden, threads)

    def replace_targets(self, log_probabilities: Array, targets: Array, factor: float, beta: float, d_scores: Array) -> None:
        factors = map(d_scores.dtype.type, (factor, beta))
        kernels.replace_targets(log_probabilities, targets, *factors, d_scores, self._shares(d_scores.size))

    def unit_losses(self, scores: Array, targets: Array, loss: UnitLoss, scale: float, losses: Array, d_scores: Array) -> None:
        threads = self._shares(scores.size)
        kernels.unit_losses(UNIT_LOSSES.index(loss), scores, targets, scores.dtype.type(scale), losses, d_scores, threads)

    def log_probabilities(self, hidden: Array, weight: Array, bias: Array, log_probabilities: Array) -> None:
        threads = self._shares(len(weight) * hidden.size * PRODUCTS)
        kernels.logits_without_bias(hidden, weight, log_probabilities, threads)
        kernels.log_softmax(log_probabilities, bias, threads)

    def norm(self, gradients: Iterable[Array]) -> float:
        total = 0.0
        for gradient in gradients:
            threads = self._shares(gradient.size)
            totals = np.empty(threads)
            kernels.sum_of_squares(*flat(gradient), totals, threads)
            total += float(totals.sum())
        return math.sqrt(total)

    def clip_factor(self, gradients: Iterable[Array], limit: float, factor: Array) -> None:
        norm = self.norm(gradients)
        factor[0] = (min(1.0, limit / norm) if norm else 1.0) if math.isfinite(norm) else math.nan

    def add_penalty(self, weight: Array, gradient: Array, l1: float, l2: float) -> None:
        threads = self._shares(weight.size)
        kernels.add_penalty(*flat(weight, gradient), *map(weight.dtype.type, (l1, l2)), threads)

    def _update(self, kernel: Any, numbers: tuple[Any, ...], weights: Sequence[Array], *others: Sequence[Array]) -> None:
        """Update weights, one array after another, by a kernel; ``others`` are the gradients and the state of the optimizer."""
        for weight, *own in zip(weights, *others, strict=True):
            kernel(*flat(weight, *own), *numbers, self._shares((1 + len(own)) * weight.size))

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
        constants = *map(scale.dtype.type, (scale[0], l2, numbers.rate, momentum)), nesterov
        self._update(kernels.momentum_step, constants, weights, gradients, velocities)

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
        constants = tuple(map(scale.dtype.type, (scale[0], l2, numbers.rate, epsilon)))
        self._update(kernels.adagrad_step, constants, weights, gradients, totals)

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
        constants = map(scale.dtype.type, (scale[0], l2, numbers.rate, epsilon))
        kernels.adagrad_step_rows(gradient, rows, *constants, weight, total, self._shares(SCATTERED * gradient.size))

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
        constants = tuple(map(scale.dtype.type, (scale[0], l2, numbers.rate, decay, epsilon)))
        self._update(kernels.rmsprop_step, constants, weights, gradients, means)

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
        keep = 1 - numbers.shrink if shrinks else 1
        constants = map(scale.dtype.type, (scale[0], l2, keep, numbers.rate, beta1, beta2, epsilon, *numbers.corrections))
        self._update(kernels.adam_step, tuple(constants), weights, gradients, firsts, seconds)

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
        constants = map(weight.dtype.type, (numbers.rate, beta1, beta2, epsilon, *numbers.corrections))
        kernels.adam_take_rows(weight, first, second, rows, idle, keeps, *constants, taken, self._shares(SCATTERED * taken.size))

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
        keep = 1 - numbers.shrink if shrinks else 1
        constants = map(scale.dtype.type, (scale[0], l2, keep, numbers.rate, beta1, beta2, epsilon, *numbers.corrections))
        threads = self._shares(2 * SCATTERED * taken.size)
        kernels.adam_step_rows(taken, gradient, rows, idle, *constants, weight, first, second, threads)

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
        constants = map(weight.dtype.type, (numbers.rate, beta1, beta2, epsilon, *numbers.corrections))
        kernels.adam_catch_up(weight, first, second, idle, keeps, *constants, self._shares(2 * weight.size))


def _add_other_parts(statistics: Array, count: int, part: SoftmaxPart | None) -> None:
    """Add the other parts of a softmax to the statistics of its tiles, as if each part were a tile.

    statistics (2, N, B): the maxima of the logits of the first ``count`` tiles, and the sums of their exponentials; those of the
    other parts are written after them.
    """
    if part is None:
        return
    highest, totals = statistics[:, :count].astype(np.float64)
    top = highest.max(axis=0)
    others = part.others(top + np.log((totals * np.exp(highest - top)).sum(axis=0)))
    statistics[0, count:] = others
    statistics[1, count:] = np.exp(others - statistics[0, count:])  # 1, but for the rounding of the numbers above


def _borders(blocks: tuple[int, ...]) -> Array:
    """Return the borders (K + 1,) of K blocks: block k of a context is ``context[borders[k] : borders[k + 1]]``."""
    return np.cumsum((0, *blocks))


def _tiles(words: int, threads: int) -> tuple[int, int]:
    """Return how many words a tile of the output layer has, the last perhaps fewer, and how many tiles there are.

    Threads get about equally many words: tiles are as large as possible, and there is a multiple of ``threads`` of them. Their
    size is also a multiple of `LINE`.
    """
    if threads == 1:
        return kernels.TILE, -(-words // kernels.TILE)
    count = threads * -(-words // (threads * kernels.TILE))
    most = LINE * -(-words // (LINE * count))
    return most, -(-words // most)
