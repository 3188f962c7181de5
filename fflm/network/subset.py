"""A part of a network's vocabulary as a smaller network: the rows that a training step with a sampled loss uses."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from fflm.backend.protocol import Array, Backend
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters


class Subset:
    """The rows of a network's arrays that belong to some words, which are sufficient for a forward and backward pass of a batch.

    Parameters
    ----------
    config
        The configuration of the network.
    contexts, targets
        The batch: context words (B, n) and targets (B,), int32.
    outputs
        The words over which the softmax is computed, (R,) int32 in ascending order, which include all targets; None for all
        words.

    Attributes
    ----------
    inputs
        The words whose embeddings are used, (E,) int32. If the output layer is tied, ``inputs`` begins with ``outputs``.
    outputs
        As above.
    contexts, targets
        The batch, (B, n) and (B,) int32, where each word is replaced by its index in ``inputs`` or in ``outputs``.
    rows
        The words whose rows the subset has, by the name of each array that has one row per word.
    """

    def __init__(self, config: NetworkConfig, contexts: Array, targets: Array, outputs: Array | None) -> None:
        places = np.zeros(config.vocabulary + 2, np.int32)
        places[contexts] = 1
        places[-1] = 0  # this is the place of the id -1, which follows the last word of a text, and is not a word
        if config.tied:
            places[outputs] = 0
        inputs = np.flatnonzero(places).astype(np.int32)
        if not (len(inputs) or config.tied):  # the batch has only empty texts; use any word, so that no array is empty
            inputs = np.zeros(1, np.int32)
        self.inputs = np.concatenate([outputs, inputs]) if config.tied else inputs
        self.outputs = outputs
        self.rows = {"embeddings": self.inputs}
        if outputs is not None:
            self.rows |= {"output.bias": outputs} if config.tied else {"output.weight": outputs, "output.bias": outputs}
        places[self.inputs] = np.arange(len(self.inputs), dtype=np.int32)
        places[-1] = -1
        self.contexts: Array = places[contexts]
        self.targets: Array = targets if outputs is None else np.searchsorted(outputs, targets).astype(np.int32)

    def frame(self, parameters: Parameters, memory: Parameters) -> Parameters:
        """Return the parameters of the smaller network, where arrays with one row per word are in other memory.

        They are the first rows of the arrays of ``memory``, whose content is not changed. All other arrays are those of
        ``parameters``.
        """
        part = dataclasses.replace(parameters, embeddings=memory.embeddings[: len(self.inputs)])
        if self.outputs is None:
            return part
        size = len(self.outputs)
        weight = None if memory.output_weight is None else memory.output_weight[:size]
        return dataclasses.replace(part, output_weight=weight, output_bias=memory.output_bias[:size])

    def take(self, backend: Backend, parameters: Parameters, memory: Parameters) -> Parameters:
        """Copy the rows of the subset to the beginning of the arrays of ``memory``, and return the result of `frame`."""
        part = self.frame(parameters, memory)
        for array, rows, copy in self._arrays(parameters, part):
            backend.gather(array, backend.upload(rows[:, None]), (1,), copy)
        return part

    def put(self, backend: Backend, part: Parameters, parameters: Parameters) -> None:
        """Copy the rows of the subset from ``part``, the result of `take`, back to the parameters."""
        for array, rows, copy in self._arrays(parameters, part):
            backend.put_rows(copy, backend.upload(rows), array)

    def _arrays(self, parameters: Parameters, part: Parameters) -> Iterator[tuple[Array, Array, Array]]:
        """Yield, for each array in `rows`: the whole array as a matrix, the indices of the subset's rows, and these rows."""
        wholes, parts = dict(parameters.items()), dict(part.items())
        for name, rows in self.rows.items():
            yield wholes[name].reshape(len(wholes[name]), -1), rows, parts[name].reshape(len(rows), -1)
