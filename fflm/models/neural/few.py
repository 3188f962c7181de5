"""Predictions after a few contexts, such as those of a line or of the next word, by one compiled function each."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.backend.common import activation_code
from fflm.backend.cpu.kernels import FEW_ROWS
from fflm.compiling import direct, pack
from fflm.models.neural import exact_kernels as kernels
from fflm.models.neural.exact_kernels import NetworkTables
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters

__all__ = ["FEW_ROWS", "FewContexts"]


class FewContexts:
    """A network with a single softmax on the CPU, which predicts after at most `FEW_ROWS` contexts.

    For so few contexts, calling the operations of the backend one by one takes longer than the operations. Results are the same.
    Any number of threads may use it. It has a copy of the hidden layers.

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
        layers = zip(parameters.hidden_weights, parameters.hidden_biases, strict=True)
        projection = parameters.projection
        self._network = pack(
            NetworkTables(
                parameters.embeddings,
                np.cumsum((0, *config.blocks)),
                np.array(config.hidden, np.int64),
                np.array([code for code, _ in codes], np.int64),
                np.array([slope for _, slope in codes], number),
                np.concatenate([np.empty(0, number), *(array.ravel() for layer in layers for array in layer)]),
                config.residual,
                config.direct,
                np.empty((0, config.hidden_width), number) if projection is None else projection,
                parameters.softmax_weight,
                parameters.output_bias,
            )
        )
        self._contexts = *context_limits, config.context

    @cached_property
    def _losses(self) -> Callable[..., Any]:
        return direct(kernels.few_losses, np.empty((1, 1), np.int32), np.empty(1, np.int32), self._network)

    @cached_property
    def _losses_of_lines(self) -> Callable[..., Any]:
        ids, borders = np.empty(1, np.int32), np.empty(1, np.int64)
        return direct(kernels.few_losses_of_lines, ids, borders, *self._contexts, self._network)

    @cached_property
    def _log_probabilities(self) -> Callable[..., Any]:
        return direct(kernels.few_log_probabilities, np.empty((1, 1), np.int32), self._network)

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats; all of them valid ids."""
        losses: npt.NDArray[np.floating] = self._losses(contexts, targets, self._network)
        return losses

    def losses_of_lines(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return -log p of the words of lines (N,), nats, of which `LineEncoder` made ids (N,) and borders (L + 1,)."""
        losses: npt.NDArray[np.floating] = self._losses_of_lines(ids, borders, *self._contexts, self._network)
        return losses

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first, valid ids -> (B, V), nats."""
        results: npt.NDArray[np.floating] = self._log_probabilities(contexts, self._network)
        return results
