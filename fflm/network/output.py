"""The output layer: the softmax over all words, in one piece or in frequency bands; noise contrast in its place; single units.

An adaptive softmax (Grave et al. 2017, section 4) predicts the most frequent words and the bands of the others at once, and
then, where it was a band, the word in it: log p(w) = log p(band of w) + log p(w | its band). Most rows of a batch never get to
the large bands, and a band of rare words reads few numbers. Letters: B rows, H hidden outputs, V vocabulary, V_0 words before
bands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fflm.backend.protocol import Activation, Array, Backend, UnitLoss
from fflm.network.parameters import Band, Parameters


@dataclass(frozen=True)
class Objective:
    """What training lowers, averaged over a batch.

    Attributes
    ----------
    smoothing
        Share of the target's probability that is spread over the vocabulary; over each band by itself.
    penalty
        Strength of (log Z)^2, which teaches the softmax to do without its normalizer Z (Devlin et al. 2014).
    noise
        None for the cross-entropy of a softmax; or (V,) how often each word was drawn as noise, for noise-contrastive estimation,
        which knows neither smoothing nor penalty. `Backend.output_gradients` and `Backend.nce_gradients` have the formulas.
    offsets
        (V,) what is taken from the words' scores, where the words are a sample; None for nothing.
    """

    smoothing: float = 0.0
    penalty: float = 0.0
    noise: Array | None = None
    offsets: Array | None = None


CROSS_ENTROPY = Objective()
"""Of the whole softmax, and nothing else."""


def project(backend: Backend, projection: Array, hidden: Array) -> Array:
    """Return the linear projection (B, O) of hidden (B, I): projection (O, I)."""
    projected = backend.empty((len(hidden), len(projection)), hidden.dtype)
    backend.affine(hidden, projection, _no_bias(backend, projection), "identity", projected)
    return projected


def project_backward(
    backend: Backend, projection: Array, hidden: Array, projected: Array, d_projected: Array, beta: float, d_projection: Array
) -> Array:
    """Go back through `project`: return d_hidden (B, I); d_projection (O, I) is changed by ``beta``, d_projected is spoilt."""
    d_hidden, d_bias = backend.empty(hidden.shape, hidden.dtype), _no_bias(backend, projection)
    backend.affine_backward(hidden, projection, projected, "identity", d_projected, beta, d_projection, d_bias, d_hidden)
    return d_hidden


def _no_bias(backend: Backend, projection: Array) -> Array:
    bias = backend.empty((len(projection),), projection.dtype)
    backend.clear(bias)
    return bias


def each_row(values: Array) -> Array:
    """Return the numbers of the rows of (B, ...): (B,)."""
    return np.arange(len(values), dtype=np.int32)


def output_losses(backend: Backend, parameters: Parameters, hidden: Array, rows: Array, targets: Array, losses: Array) -> None:
    """Compute -log p(target): hidden (B, H), rows (T,), which of them a target follows, targets (T,) -> losses (T,), nats."""
    first = backend.upload(_first_targets(parameters, targets))
    backend.output_losses(hidden, parameters.softmax_weight, parameters.output_bias, backend.upload(rows), first, losses)
    for band, found, _, inputs, places in _found_in_bands(backend, parameters, hidden, rows, targets):
        own, each = backend.empty((len(found), 1), losses.dtype), backend.upload(each_row(found))
        backend.output_losses(inputs, band.weight, band.bias, each, places, own.reshape(-1))
        backend.scatter_add(backend.upload(found[:, None]), (1,), own, losses.reshape(-1, 1))


def output_gradients(
    backend: Backend,
    parameters: Parameters,
    hidden: Array,
    targets: Array,
    objective: Objective,
    scale: float,
    beta: float,
    losses: Array,
    gradients: Parameters,
) -> Array:
    """Return d_hidden (B, H); compute losses (B,), overwritten, and the output layer's gradients, by ``beta``.

    All are of ``scale`` times the sum over rows of the objective; the losses lack smoothing and penalty.
    """
    bias, d_hidden = parameters.output_bias, backend.empty(hidden.shape, hidden.dtype)
    if objective.offsets is not None:
        bias = backend.upload(-objective.offsets)
        backend.add(parameters.output_bias.reshape(1, -1), bias.reshape(1, -1))
    layer = hidden, parameters.softmax_weight, bias, backend.upload(_first_targets(parameters, targets))
    results = losses, d_hidden, gradients.softmax_weight, gradients.output_bias
    if objective.noise is not None:
        backend.nce_gradients(*layer, backend.upload(objective.noise), scale, beta, *results)
        return d_hidden
    backend.output_gradients(*layer, objective.smoothing, objective.penalty, scale, beta, *results)
    if beta == 0:
        for d_band in gradients.bands:  # the batch may have no word of it
            for array in (d_band.projection, d_band.weight, d_band.bias):
                backend.clear(array)
    bands = _found_in_bands(backend, parameters, hidden, each_row(hidden), targets)
    for (band, found, *layer_of_band), d_band in zip(bands, gradients.bands, strict=True):
        if len(found):
            own, d_read = _band_gradients(backend, band, layer_of_band, objective, scale, d_band)
            rows = backend.upload(found[:, None])
            backend.scatter_add(rows, (1,), own, losses.reshape(-1, 1))
            backend.scatter_add(rows, (1,), d_read, d_hidden)
    return d_hidden


def _band_gradients(
    backend: Backend, band: Band, layer: Sequence[Array], objective: Objective, scale: float, d_band: Band
) -> tuple[Array, Array]:
    """Return the losses (R, 1) of a band's words and the gradients (R, H) of the hidden outputs, and add to d_band.

    ``layer`` are the hidden outputs (R, H), their projections (R, H_band), and the places of the targets in the band (R,).
    """
    hidden, inputs, places = layer
    losses, d_inputs = backend.empty((len(hidden), 1), hidden.dtype), backend.empty(inputs.shape, inputs.dtype)
    results = losses.reshape(-1), d_inputs, d_band.weight, d_band.bias
    backend.output_gradients(inputs, band.weight, band.bias, places, objective.smoothing, objective.penalty, scale, 1.0, *results)
    return losses, project_backward(backend, band.projection, hidden, inputs, d_inputs, 1.0, d_band.projection)


def log_probabilities(backend: Backend, parameters: Parameters, hidden: Array) -> Array:
    """Return log p of every word, (B, V) in nats, as a NumPy array: hidden (B, H)."""
    first = backend.empty((len(hidden), len(parameters.output_bias)), hidden.dtype)
    backend.log_probabilities(hidden, parameters.softmax_weight, parameters.output_bias, first)
    found = backend.download(first)
    if not parameters.bands:
        return found
    words = parameters.borders[0]
    pieces = [found[:, :words]]
    for number, band in enumerate(parameters.bands):
        logs = backend.empty((len(hidden), len(band.bias)), hidden.dtype)
        backend.log_probabilities(project(backend, band.projection, hidden), band.weight, band.bias, logs)
        pieces.append(backend.download(logs) + found[:, words + number, None])
    return np.hstack(pieces)


def units(backend: Backend, parameters: Parameters, activation: Activation, hidden: Array) -> Array:
    """Return the outputs of units that stand by themselves (B, O), of an activation: hidden (B, H)."""
    outputs = backend.empty((len(hidden), len(parameters.output_bias)), hidden.dtype)
    backend.affine(hidden, parameters.output_weight, parameters.output_bias, activation, outputs)
    return outputs


def unit_losses(backend: Backend, parameters: Parameters, loss: UnitLoss, hidden: Array, targets: Array, losses: Array) -> None:
    """Compute the losses (B,) of units, summed over them: hidden (B, H), targets (B, O)."""
    scores = units(backend, parameters, "identity", hidden)
    backend.unit_losses(scores, backend.upload(targets), loss, 0.0, losses, backend.empty(scores.shape, scores.dtype))


def unit_gradients(
    backend: Backend,
    parameters: Parameters,
    hidden: Array,
    targets: Array,
    loss: UnitLoss,
    scale: float,
    beta: float,
    losses: Array,
    gradients: Parameters,
) -> Array:
    """Compute as `output_gradients` does, for units that stand by themselves: targets (B, O)."""
    scores = units(backend, parameters, "identity", hidden)
    d_scores, d_hidden = backend.empty(scores.shape, scores.dtype), backend.empty(hidden.shape, hidden.dtype)
    backend.unit_losses(scores, backend.upload(targets), loss, scale, losses, d_scores)
    results = gradients.output_weight, gradients.output_bias, d_hidden
    backend.affine_backward(hidden, parameters.output_weight, scores, "identity", d_scores, beta, *results)
    return d_hidden


def _first_targets(parameters: Parameters, targets: Array) -> Array:
    """Return what is predicted first: the target (B,), or its band, V_0 and following."""
    if not parameters.bands:
        return targets
    borders = parameters.borders
    bands = np.searchsorted(borders, targets, side="right")
    return np.where(bands > 0, borders[0] + bands - 1, targets).astype(np.int32)


def _found_in_bands(
    backend: Backend, parameters: Parameters, hidden: Array, rows: Array, targets: Array
) -> Iterator[tuple[Band, Array, Array, Array, Array]]:
    """Yield each band, the targets in it (R,), the hidden outputs before them, their projections, and the targets' places."""
    borders = parameters.borders
    for band, low, high in zip(parameters.bands, borders[:-1], borders[1:], strict=True):
        found = np.flatnonzero((targets >= low) & (targets < high)).astype(np.int32)
        read = backend.empty((len(found), hidden.shape[1]), hidden.dtype)
        backend.gather(hidden, backend.upload(rows[found, None]), (1,), read)
        places = backend.upload((targets[found] - low).astype(np.int32))
        yield band, found, read, project(backend, band.projection, read), places
