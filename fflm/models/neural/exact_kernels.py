"""The forward pass of a network on a few contexts, compiled as one function of kernels of the CPU backend.

Everything runs on the calling thread: for at most `FEW_ROWS` contexts, neither BLAS nor several threads would save time.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu import kernels
from fflm.backend.cpu.kernels import TILE, combine_losses, multiply_few
from fflm.compiling import compiled, inner

_gather, _affine, _normalize, _add = (kernel.share for kernel in (kernels.gather, kernels.affine, kernels.normalize, kernels.add))
_softmax_tiles, _multiply, _log_softmax = (
    kernel.share for kernel in (kernels.softmax_tiles, kernels.logits_without_bias, kernels.log_softmax)
)


class NetworkTables(NamedTuple):
    """A network as these kernels read it: V words, m embedding size, K blocks, L hidden layers, H hidden outputs.

    Attributes
    ----------
    embeddings
        (V + 1, m).
    borders
        (K + 1,), int64: where the blocks begin that a context is cut into, the oldest words first, and where the last one ends.
    sizes, activations, slopes
        (L,): the size of each hidden layer, the code of its activation, and the parameter of the activation.
    layers
        (N,): weights (outputs, inputs) and biases (outputs,) of the hidden layers, one after another.
    residual, direct
        As in `fflm.network.config.NetworkConfig`.
    projection
        (m, H), or (0, H) if there is none.
    weight, bias
        (V, m) or (V, H), and (V,): the output layer.
    """

    embeddings: npt.NDArray[np.floating]
    borders: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    activations: npt.NDArray[np.int64]
    slopes: npt.NDArray[np.floating]
    layers: npt.NDArray[np.floating]
    residual: bool
    direct: bool
    projection: npt.NDArray[np.floating]
    weight: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating]


@inner()
def normalized(values):
    """Return the rows of values (B, I) with mean 0 and deviation 1."""
    result = np.empty_like(values)
    _normalize(values, result, 1, 0)
    return result


@inner()
def side_by_side(left, right):
    """Return the columns of left (B, I) and right (B, J) as one array, (B, I + J)."""
    result = np.empty((len(left), left.shape[1] + right.shape[1]), left.dtype)
    for i in range(len(left)):
        for j in range(left.shape[1]):
            result[i, j] = left[i, j]
        for j in range(right.shape[1]):
            result[i, left.shape[1] + j] = right[i, j]
    return result


@inner()
def softmax_inputs(contexts, network):
    """Return what the output layer reads, (B, H) or (B, m), after contexts (B, n), given `NetworkTables`."""
    embeddings, layers, rows = network.embeddings, network.layers, len(contexts)
    inputs = np.empty((rows, (len(network.borders) - 1) * embeddings.shape[1]), embeddings.dtype)
    _gather(embeddings, contexts, network.borders, inputs, 1, 0)
    values, place = inputs, 0
    for layer in range(len(network.sizes)):
        residual = network.residual and layer > 0
        read = normalized(values) if residual else values
        size, width = network.sizes[layer], read.shape[1]
        weight = layers[place : place + size * width].reshape(size, width)
        place += (width + 1) * size
        outputs = np.empty((rows, size), embeddings.dtype)
        activation = network.activations[layer], network.slopes[layer]
        _affine(read, weight, layers[place - size : place], *activation, outputs, 1, 0)
        if residual:
            _add(values, outputs, 1, 0)
        values = outputs
    if len(network.sizes):
        values = normalized(values) if network.residual else values
        values = side_by_side(values, inputs) if network.direct else values
    if not len(network.projection):
        return values
    projected = np.empty((rows, len(network.projection)), embeddings.dtype)
    multiply_few(values, network.projection, projected[:, :])
    return projected


@compiled()
def few_losses(contexts, targets, network):
    """Return -log p(target | context) of a few contexts (B, n) and targets (B,): (B,), nats; `NetworkTables`, packed."""
    tables, rows = network.content, len(contexts)
    weight, bias = tables.weight, tables.bias
    read = softmax_inputs(contexts, tables)
    statistics = np.empty((2, (len(bias) - 1) // TILE + 1, rows), bias.dtype)
    tiles, normalizers, losses = np.empty((1, rows, TILE), bias.dtype), np.empty(rows, bias.dtype), np.empty(rows, bias.dtype)
    _softmax_tiles(read, weight, bias, tiles, statistics[0], statistics[1], 1, 0)
    each = np.empty(rows, np.int32)
    for row in range(rows):
        each[row] = row
    combine_losses(read, weight, bias, each, targets, statistics[0], statistics[1], normalizers, losses)
    return losses


@compiled()
def few_log_probabilities(contexts, network):
    """Return log p(word | context) of every word after a few contexts (B, n): (B, V), nats; `NetworkTables`, packed."""
    tables = network.content
    results = np.empty((len(contexts), len(tables.bias)), tables.bias.dtype)
    _multiply(softmax_inputs(contexts, tables), tables.weight, results, 1, 0)
    _log_softmax(results, tables.bias, 1, 0)
    return results


@compiled()
def few_losses_of_lines(ids, borders, padding, end, window, network):
    """Return -log p of the words of lines (N,), nats, as `few_losses` does: ids (N,), where each line begins (L + 1,).

    A context has ``window`` words: ``padding`` before the line and, if ``end`` is a word, up to the last one before.
    """
    contexts = np.empty((len(ids), window), np.int32)
    for line in range(len(borders) - 1):
        first = borders[line]
        for i in range(borders[line], borders[line + 1]):
            for k in range(1, window + 1):
                contexts[i, window - k] = ids[i - k] if i - k >= first else padding
            if ids[i] == end:
                first = i + 1
    return few_losses(contexts, ids, network)
