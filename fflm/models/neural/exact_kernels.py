"""The forward pass of a network on a few contexts: one compiled function up to the output layer, and one for this layer.

For a few contexts, neither BLAS, which first copies the weights into another order, nor several threads would save time. The
weights are kept in the order in which they are read (`pack_weights`). The results of a context do not depend on the others.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu import kernels
from fflm.backend.cpu.kernels import (
    FEW_ROWS,
    TILE,
    add_bias_and_max,
    combine_tiles,
    normalize_logits,
    subtract_and_exp,
    sum_row,
)
from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import activate_row
from fflm.compiling import compiled, inner
from fflm.instructions import PANEL, aligned_zeros, panel_products

_gather, _normalize, _add = (each.share for each in (kernels.gather, kernels.normalize, kernels.add))

GROUP = 4
"""Number of panels to which the weights of a layer are rounded up, because a single row is multiplied by so many at a time."""

ZERO = np.int64(0)
"""The first panel. With 0, which has a type of its own, `multiply_packed` would be compiled once more."""

_MOST_ROWS = 6  # that are multiplied at a time, so that the sums are in the registers of processors with AVX2
_by_one, _by_two, _by_three = panel_products(1, 4), panel_products(2, 2), panel_products(3, 2)
_by_four, _by_five, _by_six = panel_products(4, 1), panel_products(5, 1), panel_products(6, 1)


def pack_weights(weight: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return weights (O, I) in panels (P, I, PANEL) for `multiply_packed`; zeros fill them up to a multiple of `GROUP` panels."""
    size, width = weight.shape
    panels = aligned_zeros((-(-size // (GROUP * PANEL)) * GROUP, width, PANEL), weight.dtype)
    whole = size // PANEL
    panels[:whole] = weight[: whole * PANEL].reshape(whole, PANEL, width).transpose(0, 2, 1)
    if whole * PANEL < size:
        panels[whole, :, : size - whole * PANEL] = weight[whole * PANEL :].T
    return panels


class NetworkTables(NamedTuple):
    """A network as these kernels read it: V words, m embedding size, K blocks, L hidden layers, H hidden outputs.

    Attributes
    ----------
    embeddings
        (V + 1, m).
    word_weights
        (V + 1,), or None if all are 1.
    borders
        (K + 1,), int64: where the blocks begin that a context is cut into, the oldest words first, and where the last one ends.
    sizes, activations, slopes
        (L,): the size of each hidden layer, the code of its activation, and the parameter of the activation.
    layers
        (N,): the weights of the hidden layers, packed, each followed by the biases, filled up to as many as the packed rows.
    residual, direct
        As in `fflm.network.config.NetworkConfig`, but None for False, so that Numba does not compile what the network lacks.
    projection
        (m, H), packed, or without panels if there is none.
    weight, bias
        (V, m) or (V, H), packed, and (V,): the output layer.
    """

    embeddings: npt.NDArray[np.floating]
    word_weights: npt.NDArray[np.floating] | None
    borders: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    activations: npt.NDArray[np.int64]
    slopes: npt.NDArray[np.floating]
    layers: npt.NDArray[np.floating]
    residual: Literal[True] | None
    direct: Literal[True] | None
    projection: npt.NDArray[np.floating]
    weight: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating]


@inner()
def multiply_packed(inputs, weight, first, last, outputs):
    """Multiply inputs (B, I) by the panels ``first`` to ``last`` - 1 of packed weights (P, I, PANEL) -> outputs (B, O).

    The panels are whole groups. The outputs are the first columns; there must be room for those of the zeros, too.
    """
    parts = (len(inputs) + _MOST_ROWS - 1) // _MOST_ROWS
    for group in range(first, last, GROUP):  # all rows read it while it is in the cache
        column = (group - first) * PANEL
        for part in range(parts):
            row, after = share(len(inputs), parts, part)
            rows = after - row
            if rows == 1:
                _by_one(inputs, row, weight, group, outputs, column)
            elif rows == 2:
                for k in range(0, GROUP, 2):
                    _by_two(inputs, row, weight, group + k, outputs, column + k * PANEL)
            elif rows == 3:
                for k in range(0, GROUP, 2):
                    _by_three(inputs, row, weight, group + k, outputs, column + k * PANEL)
            elif rows == 4:
                for k in range(GROUP):
                    _by_four(inputs, row, weight, group + k, outputs, column + k * PANEL)
            elif rows == 5:
                for k in range(GROUP):
                    _by_five(inputs, row, weight, group + k, outputs, column + k * PANEL)
            else:
                for k in range(GROUP):
                    _by_six(inputs, row, weight, group + k, outputs, column + k * PANEL)


@inner()
def layer_outputs(inputs, weight, bias, size, code, slope):
    """Return the outputs (B, O) of a hidden layer of ``size`` units: inputs (B, I), packed weights (P, I, PANEL), bias (N,)."""
    products = np.empty((len(inputs), len(weight) * PANEL), inputs.dtype)
    multiply_packed(inputs, weight, ZERO, len(weight), products)
    outputs = np.empty((len(inputs), size), inputs.dtype)
    for i in range(len(outputs)):
        for j in range(size):
            outputs[i, j] = products[i, j] + bias[j]
        activate_row(code, slope, outputs[i])
    return outputs


@inner()
def normalized(values, residual):
    """Return the rows of values (B, I) with mean 0 and deviation 1 if hidden layers are residual; otherwise the values."""
    if residual is None:
        return values
    result = np.empty(values.shape, values.dtype)
    _normalize(values, result, 1, 0)
    return result


@inner()
def add_residual(values, outputs, residual):
    """Add values (B, I) to outputs (B, I) if hidden layers are residual."""
    if residual is not None:
        _add(values, outputs, 1, 0)


@inner()
def with_inputs(left, right, direct):
    """Return left (B, I), and if there are direct connections, the columns of right (B, J) beside it, (B, I + J)."""
    if direct is None:
        return left
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
    _gather(embeddings, contexts, network.borders, network.word_weights, inputs, 1, 0)
    values, place = inputs, 0
    for layer in range(len(network.sizes)):
        read = normalized(values, network.residual) if layer > 0 else values
        size, width = network.sizes[layer], read.shape[1]
        panels = (size + GROUP * PANEL - 1) // (GROUP * PANEL) * GROUP
        bias = place + panels * width * PANEL
        weight, place = layers[place:bias].reshape(panels, width, PANEL), bias + panels * PANEL
        outputs = layer_outputs(read, weight, layers[bias:place], size, network.activations[layer], network.slopes[layer])
        if layer > 0:
            add_residual(values, outputs, network.residual)
        values = outputs
    if len(network.sizes):
        values = with_inputs(normalized(values, network.residual), inputs, network.direct)
    if not len(network.projection):
        return values
    products = np.empty((rows, len(network.projection) * PANEL), embeddings.dtype)
    multiply_packed(values, network.projection, ZERO, len(network.projection), products)
    projected = np.empty((rows, embeddings.shape[1]), embeddings.dtype)
    for i in range(rows):
        for j in range(embeddings.shape[1]):
            projected[i, j] = products[i, j]
    return projected


@inner()
def fill_losses(inputs, targets, network, losses):
    """Fill losses (B,) with -log p of targets (B,), nats, given what the output layer reads, (B, H), and `NetworkTables`."""
    weight, bias, rows = network.weight, network.bias, len(inputs)
    tiles = (len(bias) - 1) // TILE + 1
    tile, highest, totals = np.empty((rows, TILE), bias.dtype), np.empty((tiles, rows), bias.dtype), np.empty((tiles, rows))
    for k in range(tiles):
        low, high = k * TILE, min((k + 1) * TILE, len(bias))
        multiply_packed(inputs, weight, low // PANEL, min((k + 1) * (TILE // PANEL), len(weight)), tile)
        for i in range(rows):
            highest[k, i] = add_bias_and_max(tile[i], bias[low:high], high - low)
            if low <= targets[i] < high:
                losses[i] = tile[i, targets[i] - low]
            subtract_and_exp(tile[i], highest[k, i], high - low)
            totals[k, i] = sum_row(tile[i], high - low)
    for i in range(rows):
        losses[i] = combine_tiles(highest, totals, i) - losses[i]


@compiled()
def few_softmax_inputs(contexts, network):
    """Return what the output layer reads, (B, H) or (B, m), after a few contexts (B, n), given `NetworkTables`, packed."""
    return softmax_inputs(contexts, network.content)


@compiled()
def few_losses(inputs, targets, network):
    """Return -log p of targets (B,), (B,), nats, given what `few_softmax_inputs` returned for their contexts."""
    losses = np.empty(len(inputs), network.content.bias.dtype)
    fill_losses(inputs, targets, network.content, losses)
    return losses


@compiled()
def few_log_probabilities(inputs, network):
    """Return log p of every word, (B, V), nats, given what `few_softmax_inputs` returned for a few contexts."""
    tables = network.content
    weight, bias = tables.weight, tables.bias
    logits = np.empty((len(inputs), len(weight) * PANEL), bias.dtype)
    multiply_packed(inputs, weight, ZERO, len(weight), logits)
    results, piece = np.empty((len(inputs), len(bias)), bias.dtype), np.empty(TILE, bias.dtype)
    for i in range(len(results)):
        for j in range(len(bias)):
            results[i, j] = logits[i, j]
        normalize_logits(results[i], bias, piece)
    return results


@compiled()
def begins_of_words(ids, borders, end):
    """Return where the text of each word of lines begins, (N,): ids (N,), where each line begins (L + 1,).

    A text is a line, or what follows the word ``end`` in a line.
    """
    begins = np.empty(len(ids), np.int64)
    for line in range(len(borders) - 1):
        first = borders[line]
        for i in range(borders[line], borders[line + 1]):
            begins[i] = first
            if ids[i] == end:
                first = i + 1
    return begins


@kernel()
def losses_of_words(ids, begins, low, high, padding, window, network, losses, threads, t):
    """Fill losses[low:high] with -log p of these words of texts, nats: ids (N,), where the text of each begins (N,).

    ``padding`` fills contexts of ``window`` words before a text. ``network`` is `NetworkTables`, packed.
    """
    first, last = share(high - low, threads, t)
    for some in range(low + first, low + last, FEW_ROWS):
        after = min(some + FEW_ROWS, low + last)
        contexts = np.empty((after - some, window), np.int32)
        for i in range(some, after):
            for k in range(1, window + 1):
                contexts[i - some, window - k] = ids[i - k] if i - k >= begins[i] else padding
        fill_losses(softmax_inputs(contexts, network.content), ids[some:after], network.content, losses[some:after])


_losses_of_words = losses_of_words.share


@compiled()
def few_losses_of_lines(ids, borders, padding, end, window, network):
    """Return -log p of the words of a few lines (N,), nats: ids (N,), where each line begins (L + 1,).

    A context has ``window`` words: ``padding`` before the line and, if ``end`` is a word, up to the last one before.
    """
    losses = np.empty(len(ids), network.content.bias.dtype)
    _losses_of_words(ids, begins_of_words(ids, borders, end), 0, len(ids), padding, window, network, losses, 1, 0)
    return losses
