"""A part of a network's vocabulary as a smaller network: what a step with a sampled loss touches."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from fflm.backend.protocol import Array, Backend
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters


class Subset:
    """The rows of a network's arrays that belong to some words. With them alone a batch can go through the network.

    Attributes
    ----------
    inputs, outputs
        (E,), (R,) int32: the rows of the embeddings, and the words that the softmax distinguishes, None for all that it has.
        Where it is tied, ``inputs`` begins with ``outputs``.
    contexts, targets
        (B, n), (B,) int32: a batch, not as words but as places in ``inputs`` and ``outputs``.
    rows
        The subset's rows of each array that has a row a word and of which it is a part, by the array's name.
    """

    def __init__(self, config: NetworkConfig, contexts: Array, targets: Array, outputs: Array | None) -> None:
        """Take all words of contexts (B, n) and ``outputs`` (R,), which ascend and hold all targets (B,)."""
        places = np.zeros(config.vocabulary + 2, np.int32)
        places[contexts] = 1
        places[-1] = 0  # -1, what follows the end of a text, is not a word and stays what it is
        if config.tied:
            places[outputs] = 0
        inputs = np.flatnonzero(places).astype(np.int32)
        if not (len(inputs) or config.tied):  # only empty texts: some word is touched, so that no array is empty
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
        """Return the parameters, but with the first rows of ``memory``'s arrays where an array has a row a word."""
        part = dataclasses.replace(parameters, embeddings=memory.embeddings[: len(self.inputs)])
        if self.outputs is None:
            return part
        size = len(self.outputs)
        weight = None if memory.output_weight is None else memory.output_weight[:size]
        return dataclasses.replace(part, output_weight=weight, output_bias=memory.output_bias[:size])

    def take(self, backend: Backend, parameters: Parameters, memory: Parameters) -> Parameters:
        """Copy the subset's rows to the beginning of ``memory``'s, and return the `frame` of it."""
        part = self.frame(parameters, memory)
        for array, rows, copy in self._arrays(parameters, part):
            backend.gather(array, backend.upload(rows[:, None]), (1,), copy)
        return part

    def put(self, backend: Backend, part: Parameters, parameters: Parameters) -> None:
        """Copy the rows back from what `take` returned."""
        for array, rows, copy in self._arrays(parameters, part):
            backend.put_rows(copy, backend.upload(rows), array)

    def _arrays(self, parameters: Parameters, part: Parameters) -> Iterator[tuple[Array, Array, Array]]:
        """Yield the arrays in `rows` as matrices: whole, the subset's rows, and these alone."""
        wholes, parts = dict(parameters.items()), dict(part.items())
        for name, rows in self.rows.items():
            yield wholes[name].reshape(len(wholes[name]), -1), rows, parts[name].reshape(len(rows), -1)
