"""A part of a network's vocabulary as a smaller network: the rows that a training step uses, for example with a sampled loss."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fflm.backend.protocol import Array, Backend
from fflm.network.config import NetworkConfig
from fflm.network.kernels import number_words
from fflm.network.parameters import Parameters


def padded(array: Array, size: int, number: Any) -> Array:
    """Return a NumPy array (N,) with the number behind it, as often as needed to make it (size,)."""
    return np.concatenate([array, np.full(size - len(array), number, array.dtype)]) if size > len(array) else array


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
    rows_for
        The function `Backend.padded`, so that subsets have few different sizes; by default an array has the rows that it needs.

    Raises
    ------
    IndexError
        If a word is not in the vocabulary.

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
    places
        The same words (size,), padded with -1 to the number of rows that the arrays of the subset have. The rows of -1 are zeros.
    """

    def __init__(
        self,
        config: NetworkConfig,
        contexts: Array,
        targets: Array,
        outputs: Array | None,
        rows_for: Callable[[int], int] = int,
    ) -> None:
        words, first = (np.ascontiguousarray(ids, np.int32) for ids in (contexts, outputs if config.tied else ()))
        self.inputs, numbers = number_words(words.reshape(-1), config.vocabulary + 1, first)
        if not len(self.inputs):  # the batch has only empty texts; use any word, so that no array is empty
            self.inputs = np.zeros(1, np.int32)
        self.outputs = outputs
        self.rows = {"embeddings": self.inputs}
        if config.word_weights:
            self.rows["word_weights"] = self.inputs
        if outputs is not None:
            self.rows |= {"output.bias": outputs} if config.tied else {"output.weight": outputs, "output.bias": outputs}
        sizes = dict.fromkeys(("embeddings", "word_weights"), min(rows_for(len(self.inputs)), config.vocabulary + 1))
        if outputs is not None:
            sizes["output.weight"] = sizes["output.bias"] = min(rows_for(len(outputs)), config.classes)
        self.places = {name: padded(rows, sizes[name], -1) for name, rows in self.rows.items()}
        self.contexts: Array = numbers.reshape(contexts.shape)
        self.targets: Array = targets if outputs is None else np.searchsorted(outputs, targets).astype(np.int32)


def frame(parameters: Parameters, memory: Parameters, places: Mapping[str, Array]) -> Parameters:
    """Return the parameters of the smaller network, where arrays with one row per word are in other memory.

    They are the first rows of the arrays of ``memory``, whose content is not changed. All other arrays are those of
    ``parameters``. ``places`` are `Subset.places`, here and below on the device.
    """
    words = len(places["embeddings"])
    weights = None if memory.word_weights is None else memory.word_weights[:words]
    part = dataclasses.replace(parameters, embeddings=memory.embeddings[:words], word_weights=weights)
    if "output.bias" not in places:
        return part
    size = len(places["output.bias"])
    weight = None if memory.output_weight is None else memory.output_weight[:size]
    return dataclasses.replace(part, output_weight=weight, output_bias=memory.output_bias[:size])


def take(backend: Backend, parameters: Parameters, memory: Parameters, places: Mapping[str, Array]) -> Parameters:
    """Copy the rows of the subset to the beginning of the arrays of ``memory``, and return the result of `frame`."""
    part = frame(parameters, memory, places)
    for array, rows, copy in _arrays(parameters, part, places):
        backend.gather(array, rows.reshape(-1, 1), (1,), copy)
    return part


def put(backend: Backend, part: Parameters, parameters: Parameters, places: Mapping[str, Array]) -> None:
    """Copy the rows of the subset from ``part``, the result of `take`, back to the parameters."""
    for array, rows, copy in _arrays(parameters, part, places):
        backend.put_rows(copy, rows, array)


def _arrays(parameters: Parameters, part: Parameters, places: Mapping[str, Array]) -> Iterator[tuple[Array, Array, Array]]:
    """Yield, for each array with one row per word: the whole array as a matrix, the indices of its rows, and these rows."""
    wholes, parts = dict(parameters.items()), dict(part.items())
    for name, rows in places.items():
        yield wholes[name].reshape(len(wholes[name]), -1), rows, parts[name].reshape(len(rows), -1)


def matrices(name: str, *parts: Parameters) -> list[Array]:
    """Return the array with a name of each of some parameters as a matrix with one row per word."""
    arrays = [dict(part.items())[name] for part in parts]
    return [array.reshape(len(array), -1) for array in arrays]
