"""fflm's networks in PyTorch, written for speed, for the comparisons of the benchmarks."""

from typing import Self

import numpy as np
import torch
from torch.nn import functional

from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters


class TorchNetwork:
    """A network without residual and direct connections.

    Parameters
    ----------
    config
        The shape.
    start
        Its initial weights, which are copied. The attribute ``weights`` has PyTorch's tensors by the same names.
    """

    def __init__(self, config: NetworkConfig, start: Parameters) -> None:
        self.config = config
        self.weights = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
        blocks = np.array(config.blocks)
        self._borders = torch.from_numpy(np.cumsum(blocks) - blocks).int()
        self._factors = torch.from_numpy(blocks**-0.5).float()[:, None]
        self._activation = getattr(torch, config.activation)

    def to(self, device: str) -> Self:
        """Move everything to a device."""
        self.weights = {name: torch.nn.Parameter(weight.detach().to(device)) for name, weight in self.weights.items()}
        self._borders, self._factors = self._borders.to(device), self._factors.to(device)
        return self

    def logits(self, contexts: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """Return the logits (B, V) for contexts (B, n) int32, with dropout in training."""
        values = functional.dropout(self._gather(contexts), self.config.embedding_dropout, training)
        for layer in range(len(self.config.hidden)):
            weight, bias = self.weights[f"hidden.{layer}.weight"], self.weights[f"hidden.{layer}.bias"]
            values = self._activation(functional.linear(values, weight, bias))
            values = functional.dropout(values, self.config.dropout, training)
        if self.config.projected:
            values = functional.linear(values, self.weights["projection"])
        weight = self.weights["embeddings"][:-1] if self.config.tied else self.weights["output.weight"]
        return functional.linear(values, weight, self.weights["output.bias"])

    def _gather(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return the embeddings and averages of embeddings, concatenated (B, K m).

        One call computes all blocks, including those of one word, as bags of words. This was the fastest of the variants tried.
        """
        embeddings = self.weights["embeddings"]
        if not self.config.averages:
            return functional.embedding(contexts, embeddings).flatten(1)
        rows, words = contexts.shape
        offsets = torch.arange(rows, dtype=torch.int32, device=contexts.device)[:, None] * words + self._borders
        sums = functional.embedding_bag(contexts.flatten(), embeddings, offsets.flatten(), mode="sum")
        return (sums.view(rows, *self._factors.shape[:1], -1) * self._factors).flatten(1)
