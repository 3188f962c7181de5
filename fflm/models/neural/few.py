"""Predictions after a few contexts, such as those of lines or of the next word, by one or two compiled functions each."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.backend.common import activation_code
from fflm.backend.cpu.kernels import FEW_ROWS
from fflm.backend.cpu.launching import shares_of
from fflm.compiling import direct
from fflm.instructions import PANEL, aligned_zeros
from fflm.models.neural import exact_kernels as kernels
from fflm.models.neural.exact_kernels import NetworkTables, pack_weights
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.packing import Packed

__all__ = ["FEW_ROWS", "FewContexts"]

_PIECE = 1 << 13  # number of words of lines that a kernel is given at a time


class FewContexts:
    """A network with a single softmax on the CPU, which predicts after few contexts, or scores lines.

    For few contexts, calling the operations of the backend one by one takes longer than the operations. Any number of threads may
    use it. It has a copy of all weights but the embeddings, in the order in which kernels read them.

    Parameters
    ----------
    config, parameters
        The network.
    context_limits
        As `fflm.models.base.Predictor.context_limits`.
    """

    def __init__(self, config: NetworkConfig, parameters: Parameters, context_limits: tuple[int, int]) -> None:
        number = parameters.dtype
        codes = [activation_code(config.activation_of(layer)) for layer in range(1, len(config.hidden) + 1)]
        layers = [_packed_layer(*each) for each in zip(parameters.hidden_weights, parameters.hidden_biases, strict=True)]
        together = aligned_zeros((sum(map(len, layers)),), number)
        np.concatenate([np.empty(0, number), *layers], out=together)
        projection = parameters.projection
        self._network = Packed(
            NetworkTables(
                parameters.embeddings,
                parameters.word_weights,
                np.cumsum((0, *config.blocks)),
                np.array(config.hidden, np.int64),
                np.array([code for code, _ in codes], np.int64),
                np.array([slope for _, slope in codes], number),
                together,
                config.residual or None,
                config.direct or None,
                pack_weights(np.empty((0, config.hidden_width), number) if projection is None else projection),
                pack_weights(parameters.softmax_weight),
                parameters.output_bias,
            )
        )
        self._limits, self._window, self._type, self._cost = context_limits, config.context, number, parameters.count

    @cached_property
    def _softmax_inputs(self) -> Callable[..., Any]:
        return direct(kernels.few_softmax_inputs, np.empty((1, 1), np.int32), self._network)

    @cached_property
    def _losses(self) -> Callable[..., Any]:
        return direct(kernels.few_losses, np.empty((1, 1), self._type), np.empty(1, np.int32), self._network)

    @cached_property
    def _losses_of_lines(self) -> Callable[..., Any]:
        ids, borders = np.empty(1, np.int32), np.empty(1, np.int64)
        return direct(kernels.few_losses_of_lines, ids, borders, *self._limits, self._window, self._network)

    @cached_property
    def _log_probabilities(self) -> Callable[..., Any]:
        return direct(kernels.few_log_probabilities, np.empty((1, 1), self._type), self._network)

    def softmax_inputs(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return what the output layer reads after at most `FEW_ROWS` contexts (B, n), valid ids -> (B, H)."""
        values: npt.NDArray[np.floating] = self._softmax_inputs(contexts, self._network)
        return values

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): at most `FEW_ROWS` contexts (B, n), targets (B,), all valid ids -> (B,), nats."""
        losses: npt.NDArray[np.floating] = self._losses(self.softmax_inputs(contexts), targets, self._network)
        return losses

    def losses_of_lines(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return -log p of the words of lines (N,), nats, of which `Encoder` made ids (N,) and borders (L + 1,).

        The result for a word depends on its line alone, not on the others.
        """
        if len(ids) <= FEW_ROWS:
            losses: npt.NDArray[np.floating] = self._losses_of_lines(ids, borders, *self._limits, self._window, self._network)
            return losses
        padding, end = self._limits
        begins, losses = kernels.begins_of_words(ids, borders, end), np.empty(len(ids), self._type)
        for low in range(0, len(ids), _PIECE):  # a kernel cannot be interrupted
            high = min(low + _PIECE, len(ids))
            shares = shares_of((high - low) * self._cost)
            kernels.losses_of_words(ids, begins, low, high, padding, self._window, self._network, losses, shares)
        return losses

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: at most `FEW_ROWS` contexts (B, n), oldest word first -> (B, V), nats."""
        results: npt.NDArray[np.floating] = self._log_probabilities(self.softmax_inputs(contexts), self._network)
        return results


def _packed_layer(weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the weights (O, I) and biases (O,) of a hidden layer as `NetworkTables.layers` has them, (N,)."""
    packed = pack_weights(weight)
    return np.concatenate([packed.ravel(), bias, np.zeros(len(packed) * PANEL - len(bias), bias.dtype)])
