"""Scores at the speed of an n-gram model: of words, from tables, without the softmax's normalizer."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.backend.common import activation_code
from fflm.backend.cpu.launching import shares_of
from fflm.errors import FflmError
from fflm.instructions import LANES, PRODUCTS, aligned_zeros
from fflm.models.base import TableScorer, check_text
from fflm.models.language_model import LanguageModel
from fflm.models.neural import kernels
from fflm.models.neural.kernels import FastTables
from fflm.models.neural.model import NeuralModel
from fflm.network.config import NetworkConfig
from fflm.network.parameters import is_finite
from fflm.packing import Packed
from fflm.stored import REMEDY

INTEGER_LIMIT = 32000
"""The largest sum of 16-bit integers before they are rounded, less than 2**15 so that rounding cannot overflow."""

SMALL_LIMIT = 127
"""The largest integer in tables of 8 bits."""

_STORED: dict[str, type[np.generic]] = {
    "tables": np.int8,
    "bias_sum": np.int16,
    "padding_total": np.int32,
    "padding_sums": np.int16,
    "units": np.float32,
    "average_units": np.float32,
    "bias": np.float32,
    "output_units": np.float32,
    "outputs": np.float32,
}
"""The arrays of `FastTables` that are stored, and their types."""

MOST_AVERAGED = 128
"""The largest number of words of averages whose sums have 16 bits; those of more words would be rounded too much."""

NORMALIZER_INTERVAL = 20
"""Of every 20 words one is also scored exactly, to know its normalizer; after the first hundred one of 20,000, to save time."""

_SAMPLING = threading.Lock()
"""Held while a scorer updates its sample of normalizers."""


@dataclass(frozen=True)
class Normalizers:
    """Statistics of the softmax normalizers Z that fast scoring assumes to be 1. Those of two texts can be added.

    Attributes
    ----------
    contexts
        Number of contexts whose normalizer was computed.
    total, absolute
        Sums of log Z and of |log Z|, nats.
    worst
        The largest |log Z|.
    """

    contexts: int = 0
    total: float = 0.0
    absolute: float = 0.0
    worst: float = 0.0

    def __add__(self, other: "Normalizers") -> "Normalizers":
        """Return the statistics of both texts together."""
        return Normalizers(
            self.contexts + other.contexts,
            self.total + other.total,
            self.absolute + other.absolute,
            max(self.worst, other.worst),
        )

    @property
    def mean(self) -> float:
        """Mean of log Z, nats; NaN if no context is known."""
        return self.total / self.contexts if self.contexts else math.nan

    @property
    def mean_absolute(self) -> float:
        """Mean of |log Z|, nats; NaN if no context is known."""
        return self.absolute / self.contexts if self.contexts else math.nan

    def perplexity(self, loss: float) -> float:
        """Return an estimate of the perplexity of a text from the unnormalized loss of its words, nats per token."""
        return math.exp(loss + self.mean)

    def to_dict(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        names = ("contexts", "mean", "mean_absolute", "worst")
        return {name: getattr(self, name) for name in names} if self.contexts else {"contexts": 0}


class FastScorer(TableScorer):
    """Scores the words of a text by a network with one hidden layer, assuming that the softmax's normalizer is 1.

    The hidden layer's weighted sums are read from a table, which has for each word and each place of a context what the word
    contributes from there (Devlin et al. 2014, section 4.2), as 16-bit integers with one quantization scale per hidden unit. A
    word's row, which also has its output weights, is read once, when the word comes, and added to the sums of all places that
    will see it. Sums of integers are exact, so those over the words of an average are kept from one word to the next.

    How close the scores are to log-probabilities depends on the model, which must have been trained with ``self_normalise`` or
    with the loss ``nce``.

    Parameters
    ----------
    model
        The network.

    Raises
    ------
    FflmError
        If the network has another number of hidden layers, direct connections in another way, or an adaptive softmax.
    """

    def __init__(self, model: NeuralModel) -> None:
        if not has_tables(model):
            raise FflmError(
                "fast scoring needs a network with one hidden layer, no bands, not residual; with direct connections, "
                "it needs the activation relu and tied output weights"
            )
        self.model = model
        self.vocabulary, self.text = model.vocabulary, model.text
        self._normalizers = Normalizers()
        self._until_sample = 0  # words before the next one that is scored exactly
        self._sampled = 0  # words that were chosen to be scored exactly
        self._pending: list[tuple[npt.NDArray[Any], ...]] = []  # of those not yet scored exactly: contexts, words, losses
        self._tables = stored_tables(model) if model.fast_arrays else make_tables(model)

    _line_kernel = staticmethod(kernels.score_lines)

    @cached_property
    def packed(self) -> Any:
        """The tables, as the kernels that score lines and words take them."""
        return Packed(self._tables)

    @property
    def window(self) -> int:
        """Context words [n]."""
        return self.model.window

    @property
    def memory(self) -> int:
        """Memory of the table, bytes."""
        return self._tables.tables.nbytes

    @property
    def normalizers(self) -> Normalizers:
        """Statistics of the normalizers of the words that were also scored exactly: see `NORMALIZER_INTERVAL`."""
        with _SAMPLING:
            if self._pending:
                contexts, words, losses = map(np.concatenate, zip(*self._pending, strict=True))
                logs = self.model.losses(contexts, words).astype(np.float64) - losses
                known = Normalizers(len(logs), float(logs.sum()), float(np.abs(logs).sum()), float(np.abs(logs).max()))
                self._normalizers, self._pending = self._normalizers + known, []
            return self._normalizers

    def losses_of_text(self, ids: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.floating]:
        """Return -log of each word's unnormalized probability, nats, and choose some words to compute their normalizers.

        Parameters
        ----------
        ids
            (N,) int32, the ids of a text.
        start
            Index of the first word to score; the words before it are only context.

        Returns
        -------
        numpy.ndarray
            (N - start,), float32.
        """
        model = self.model
        ids = check_text(ids, start, self.vocabulary)
        losses = np.empty(len(ids), np.float32)
        kernels.score_words(ids, start, losses, self._tables, shares_of((len(ids) - start) * self._tables.tables[0].size))
        losses = losses[start:]
        with _SAMPLING:
            stride = max(NORMALIZER_INTERVAL, len(losses) // 100) if self._sampled < 100 else 1000 * NORMALIZER_INTERVAL
            positions = np.arange(start + self._until_sample, len(ids), stride)
            self._until_sample += len(positions) * stride - len(losses)
            if len(positions):
                self._sampled += len(positions)
                self._pending.append((*model.windows(ids).batch(positions), losses[positions - start]))
        return losses

    def _line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return -log of the unnormalized probabilities of the words of lines (N,), nats; no normalizers are computed."""
        losses: npt.NDArray[np.floating] = kernels.losses_of_lines(ids, borders, self.packed)
        return losses

    def losses_of_texts(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `losses_of_text` of each text separately."""
        return [self.losses_of_text(ids) for ids in texts]


def make_tables(model: NeuralModel, dtype: type[np.int16 | np.int8] = np.int16) -> FastTables:
    """Return the tables of a network that `has_tables`.

    The hidden units of a network with ReLU, and averages of few words, are computed in integers of 16 bits, and their products
    with a word's output weights are added in 32 bits, in `PRODUCTS` sums.

    The numbers of words are what they contribute beyond the padding, whose own contribution is a part of the bias. So the padding
    is not rounded once for each of its places, which would add up at the beginning of a text or line.

    Direct connections to a tied output layer are linear hidden units, one for each embedding dimension, whose output weights are
    the embedding. Their biases are so large that ReLU changes nothing; each word's output bias takes their effect out.

    Parameters
    ----------
    model
        The network.
    dtype
        The type of the numbers of words. Those of 8 bits are rounded to 1/127 of the largest contribution of a word, not of the
        largest sum, and a word's output weights to 1/127 of the largest of them.
    """
    config, parameters = model.config, model.finite_parameters
    integers, small = _in_integers(config), dtype is np.int8
    outputs, weights, bias = parameters.softmax_weight, parameters.hidden_weights[0], parameters.hidden_biases[0]
    if parameters.projection is not None:
        projection, direct = np.split(parameters.projection, [len(bias)], axis=1)
        outputs = outputs @ projection
    if config.direct:
        outputs, weights = np.hstack([outputs, parameters.softmax_weight]), np.vstack([weights, direct])
    embeddings, sizes = parameters.embeddings, config.blocks[: len(config.averages)]
    weighted = embeddings if parameters.word_weights is None else embeddings * parameters.word_weights[:, None]
    averages, linear, hidden, width = len(sizes), len(bias), len(weights), _width(config)
    blocks = np.split(weights, len(config.blocks), axis=1)
    blocks = [block.T * block.dtype.type(size**-0.5) for block, size in zip(blocks, config.blocks, strict=True)]
    padding, end = model.context_limits
    at_padding = [weighted[padding] if size > 1 else embeddings[padding] for size in config.blocks]
    of_padding = sum(size * (row @ block) for size, row, block in zip(config.blocks, at_padding, blocks, strict=True))
    embeddings, weighted = embeddings - embeddings[padding], weighted - weighted[padding]
    reads = [weighted if size > 1 else embeddings for size in config.blocks]
    # Each product is computed twice, here and for the table: to keep all of them would take twice the memory of the table.
    largest = np.array([np.abs(read @ block).max(axis=0) for read, block in zip(reads, blocks, strict=True)])
    window, average = largest[averages:].sum(axis=0), largest[:averages].max(axis=0, initial=0)
    reached = window + np.array(sizes, bias.dtype) @ largest[:averages]
    bias = np.concatenate([bias + of_padding[:linear], reached[linear:]])
    if integers:
        window = average = reached + np.abs(bias)
    if small:
        window = np.maximum(window, _reached(largest if integers else largest[averages:]))
        average = np.maximum(average, _reached(largest if integers else largest[:averages]))
    units, average_units, output_units = _units(window), _units(average), np.ones_like(bias)
    scales, bias_sum = np.ones_like(parameters.output_bias), np.zeros(hidden, np.int16)
    if integers:
        outputs, bias_sum = outputs * units, np.rint(bias / units).astype(np.int16)
    if integers or small:
        largest_weight = SMALL_LIMIT if small else min(INTEGER_LIMIT, 2**31 // (1 << 15) // (width // PRODUCTS))
        scales = np.maximum(np.abs(outputs).max(axis=1), np.finfo(np.float32).tiny) / largest_weight
    else:
        output_units = _units(np.abs(outputs).max(axis=0))
    tables = aligned_zeros((len(embeddings), len(blocks) + 1, width), dtype)
    for k, (read, block) in enumerate(zip(reads, blocks, strict=True)):
        unit = average_units if k < averages else units
        np.rint(read @ (block / unit), out=tables[:, k, :hidden], casting="unsafe")
    np.rint(outputs / output_units / scales[:, None], out=tables[: len(outputs), -1, :hidden], casting="unsafe")
    shift = bias_sum - of_padding / units if integers else (bias - of_padding) * output_units
    output_bias = parameters.output_bias - scales * (tables[: len(outputs), -1, linear:hidden] @ shift[linear:])
    bias_sum, units, average_units, bias, output_units = (
        np.pad(row, (0, width - hidden)) for row in (bias_sum, units, average_units, bias, output_units)
    )
    code, slope = activation_code(config.activation_of(1))
    return FastTables(
        padding,
        end,
        np.cumsum((0, *sizes)),
        tables,
        integers,
        bias_sum,
        np.zeros(width, np.int32),
        bias_sum,
        units,
        average_units,
        bias,
        code,
        slope,
        output_units,
        np.column_stack([scales, output_bias]),
    )


def _width(config: NetworkConfig) -> int:
    """Return the number of hidden units in a row of tables, those of direct connections included."""
    hidden = config.hidden[0] + (config.embedding if config.direct else 0)
    return -(-hidden // LANES) * LANES


def _in_integers(config: NetworkConfig) -> bool:
    """Return whether hidden units are computed in integers."""
    return config.activation_of(1) == "relu" and sum(config.averages) <= MOST_AVERAGED


def stored_arrays(tables: FastTables) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of tables by their names in `FastTables`; `stored_tables` computes the rest."""
    return {name: value for name, value in tables._asdict().items() if name in _STORED}


def stored_tables(model: NeuralModel) -> FastTables:
    """Return the tables of a network that has stored ones.

    Raises
    ------
    FflmError
        If they do not fit the network.
    """
    arrays, config = model.fast_arrays, model.config
    if not has_tables(model):
        raise FflmError(f"{model.source} are damaged (such a network has no tables): {REMEDY}")
    sizes, width, vocabulary = config.blocks[: len(config.averages)], _width(config), config.vocabulary
    shapes = dict.fromkeys(_STORED, (width,)) | {
        "tables": (vocabulary + 1, len(config.blocks) + 1, width),
        "outputs": (vocabulary, 2),
    }
    for name, type_ in _STORED.items():
        if name not in arrays or arrays[name].shape != shapes[name] or arrays[name].dtype != type_:
            raise FflmError(f"{model.source} are damaged (the table {name!r} does not fit the network): {REMEDY}")
        if issubclass(type_, np.floating) and not is_finite(arrays[name]):
            raise FflmError(f"{model.source} are damaged (the table {name!r} has a number that is not finite): {REMEDY}")
    padding, end = model.context_limits
    code, slope = activation_code(config.activation_of(1))
    return FastTables(
        padding=padding,
        end=end,
        borders=np.cumsum((0, *sizes)),
        integers=_in_integers(config),
        activation=code,
        slope=slope,
        **{name: arrays[name] for name in _STORED},
    )


def _reached(largest: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the numbers (H,) of which `_units` makes scales in which the largest contributions (K, H) are `SMALL_LIMIT`."""
    reached: npt.NDArray[np.floating] = largest.max(axis=0, initial=0) * largest.dtype.type(INTEGER_LIMIT / SMALL_LIMIT)
    return reached


def _units(largest: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the quantization scales (H,): numbers up to ``largest`` (H,) divided by them are at most `INTEGER_LIMIT`."""
    units: npt.NDArray[np.floating] = np.maximum(largest, np.finfo(np.float32).tiny) / INTEGER_LIMIT
    return units


def is_self_normalized(model: NeuralModel) -> bool:
    """Return whether a network was trained so that its softmax's normalizers are about 1, and has a shape with tables."""
    training = model.about.get("training", {})
    return bool(training.get("self_normalise") or training.get("loss") == "nce") and has_tables(model)


def has_tables(model: NeuralModel) -> bool:
    """Return whether a network has a shape that `FastScorer` supports."""
    config = model.config
    if config.direct and not (config.tied and config.activations == ("relu",)):
        return False
    return len(config.hidden) == 1 and not (config.residual or len(config.softmaxes) > 1)


def make_fast_scorer(model: LanguageModel) -> FastScorer:
    """Return the fast scorer of a model.

    Raises
    ------
    FflmError
        If the model is not a network, or has a shape that `FastScorer` does not support.
    """
    if not isinstance(model, NeuralModel):
        raise FflmError("only a network can score fast: train one with `fflm.train` and `self_normalise=0.1`")
    return FastScorer(model)
