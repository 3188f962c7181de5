"""The output layer: a softmax, full or adaptive; noise-contrastive estimation; or independent units.

An adaptive softmax (Grave et al. 2017, section 4) has two stages. The first softmax predicts one of the most frequent words, or
the frequency band of the word. Each band has a softmax of its own for the words in it: log p(w) = log p(band of w) +
log p(w | band of w). This is fast, because only a few rows of a batch have targets in the large bands, and because the bands of
rare words read a projection of the hidden outputs to fewer numbers.

Letters in the shapes: B rows of a batch, H hidden outputs, V vocabulary size, V_0 number of words before the first band, O output
units.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fflm.backend.protocol import Activation, Array, Backend, UnitLoss
from fflm.network.parameters import Band, Parameters
from fflm.network.partition import Partition


@dataclass(frozen=True)
class Objective:
    """The function that training minimizes, averaged over a batch.

    `Backend.output_gradients` and `Backend.nce_gradients` have the formulas.

    Attributes
    ----------
    smoothing
        Label smoothing: the share of the target's probability that is spread over the vocabulary. In an adaptive softmax, this is
        done in each band separately.
    penalty
        Strength of the penalty (log Z)^2, which makes the scores of the softmax usable without the normalizer Z (Devlin et al.
        2014).
    noise
        None for the cross-entropy of a softmax. For noise-contrastive estimation, which has neither smoothing nor penalty: how
        often each word was drawn as a noise sample, (V,) in the dtype of the network.
    offsets
        What is added to the scores of the words if these are a sample, (V,) in the dtype of the network; None for nothing.
    teacher
        A function that predicts a slice of the B rows of the batch by the networks of a teacher. It yields, for each of them, the
        share of the target's probability that its distribution takes, and log p of the words, (rows, V), on the device. None if
        the target keeps its probability. It is neither for smoothing, nor for `noise`, nor for an adaptive softmax.
    adversarial
        Norm of the adversarial noise on the weights of the target, relative to that of the weights (Wang et al. 2019). Not for
        `noise`. The change by a teacher is that of scores without this noise.
    """

    smoothing: float = 0.0
    penalty: float = 0.0
    noise: Array | None = None
    offsets: Array | None = None
    teacher: Callable[[slice], Iterable[tuple[float, Array]]] | None = None
    adversarial: float = 0.0

    def padded(self, words: int) -> "Objective":
        """Return the objective for a sample of more words, whose additional words have no effect: (V,) becomes (words,).

        Smoothing must be 0, because it gives all words a part of the target's probability.
        """
        if self.offsets is None or len(self.offsets) == words:
            return self
        more = words - len(self.offsets)
        noise = None if self.noise is None else np.pad(self.noise, (0, more))
        return replace(self, noise=noise, offsets=np.pad(self.offsets, (0, more), constant_values=IMPOSSIBLE))


IMPOSSIBLE = -1e30
"""An offset that makes the probability of a word 0 exactly. It is finite, so that it can be subtracted from itself."""

SAMPLE = "noise", "offsets"
"""The fields of an `Objective` that are arrays, which change from batch to batch."""

CROSS_ENTROPY = Objective()
"""The cross-entropy of the softmax over all words, without smoothing and penalty."""


def project(backend: Backend, projection: Array, hidden: Array) -> Array:
    """Return hidden projection^T (B, O), a linear projection of hidden (B, I) with the weights projection (O, I)."""
    projected = backend.empty((len(hidden), len(projection)), hidden.dtype)
    backend.affine(hidden, projection, _no_bias(backend, projection), "identity", projected)
    return projected


def project_backward(
    backend: Backend, projection: Array, hidden: Array, projected: Array, d_projected: Array, beta: float, d_projection: Array
) -> Array:
    """Backpropagate through `project`, and return d_hidden (B, I).

    d_projection (O, I) is added to ``beta`` times its content. d_projected (B, O) is used as scratch memory.
    """
    d_hidden, d_bias = backend.empty(hidden.shape, hidden.dtype), _no_bias(backend, projection)
    backend.affine_backward(hidden, projection, projected, "identity", d_projected, beta, d_projection, d_bias, d_hidden)
    return d_hidden


def _no_bias(backend: Backend, projection: Array) -> Array:
    """Return zeros (O,) for a projection (O, I)."""
    bias = backend.empty((len(projection),), projection.dtype)
    backend.clear(bias)
    return bias


def with_offsets(backend: Backend, bias: Array, offsets: Array) -> Array:
    """Return bias (V,) plus the offsets (V,) of the words of a sample: see `Objective`."""
    result = backend.empty(bias.shape, bias.dtype)
    backend.copy(bias.reshape(1, -1), result.reshape(1, -1))
    backend.add(backend.upload(offsets).reshape(1, -1), result.reshape(1, -1))
    return result


def each_row(values: Array) -> Array:
    """Return the indices 0, 1, ... of all rows of an array (B, ...): (B,) int32."""
    return np.arange(len(values), dtype=np.int32)


def output_losses(
    backend: Backend,
    parameters: Parameters,
    hidden: Array,
    rows: Array,
    targets: Array,
    losses: Array,
    partition: Partition | None = None,
) -> None:
    """Compute -log p(target) of a softmax.

    Parameters
    ----------
    backend, parameters
        The backend, and the parameters of the network.
    hidden
        The hidden outputs, (B, H).
    rows, targets
        The targets, (T,) int32, and for each target the row of the hidden outputs that it belongs to, (T,) int32.
    losses
        Overwritten with the losses, (T,), nats.
    partition
        The division of the words among processes. The targets are indices among the own words (`Partition.own_targets`), and the
        losses are those of all targets, in all processes.
    """
    first = backend.upload(_first_targets(parameters, targets))
    layer = hidden, parameters.softmax_weight, parameters.output_bias
    backend.output_losses(*layer, backend.upload(rows), first, losses, partition)
    if partition:
        partition.sum(losses)
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
    partition: Partition | None = None,
) -> Array:
    """Compute the losses of a softmax and the gradients of the output layer, and return d_hidden (B, H).

    Parameters
    ----------
    backend, parameters
        The backend, and the parameters of the network.
    hidden, targets
        The hidden outputs, (B, H), and the targets, (B,) int32.
    objective
        The function to minimize.
    scale, beta
        The gradients are those of ``scale`` times the sum of the objective over the rows. Those of the parameters are added to
        ``beta`` times their content.
    losses
        Overwritten with the losses, (B,), nats, without smoothing and penalty.
    gradients
        The gradients of the parameters, of which those of the output layer are changed.
    partition
        As for `output_losses`, but the losses of the targets of other processes are 0.
    """
    bias, d_hidden = parameters.output_bias, backend.empty(hidden.shape, hidden.dtype)
    if objective.offsets is not None:
        bias = with_offsets(backend, bias, objective.offsets)
    layer = hidden, parameters.softmax_weight, bias, backend.upload(_first_targets(parameters, targets))
    results = losses, d_hidden, gradients.softmax_weight, gradients.output_bias
    if objective.noise is not None:
        backend.nce_gradients(*layer, backend.upload(objective.noise), scale, beta, *results)
        return d_hidden
    numbers = objective.smoothing, objective.penalty, scale, beta
    backend.output_gradients(*layer, *numbers, *results, partition, adversarial=objective.adversarial)
    if partition:
        partition.sum(d_hidden)
    if beta == 0:
        for d_band in gradients.bands:  # the batch may have no word of the band
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


def teacher_gradients(
    backend: Backend,
    parameters: Parameters,
    hidden: Array,
    targets: Array,
    predictions: Iterable[tuple[float, Array]],
    scale: float,
    d_hidden: Array,
    gradients: Parameters,
) -> None:
    """Add to the gradients of `output_gradients` what changes them if a teacher's distribution replaces a share of the targets.

    The target is then (1 - w) onehot + w q, with the teacher's distribution q (Hinton et al. 2015, at temperature 1).

    Parameters
    ----------
    backend, parameters, hidden, targets, scale, gradients
        As for `output_gradients`.
    predictions
        Of the teacher's networks, as `Objective.teacher` yields them; their shares add up to w.
    d_hidden
        The result of `output_gradients`, (B, H), which is added to.
    """
    places = backend.upload(targets)
    logs = d_scores = backend.empty((0, 0), hidden.dtype)
    for number, (share, logs) in enumerate(predictions):
        if number == 0:
            d_scores = backend.empty(logs.shape, logs.dtype)
        backend.replace_targets(logs, places, scale * share, float(number > 0), d_scores)
    results = gradients.softmax_weight, gradients.output_bias, backend.empty(hidden.shape, hidden.dtype)
    backend.affine_backward(hidden, parameters.softmax_weight, logs, "identity", d_scores, 1.0, *results)
    backend.add(results[2], d_hidden)


def _band_gradients(
    backend: Backend, band: Band, layer: Sequence[Array], objective: Objective, scale: float, d_band: Band
) -> tuple[Array, Array]:
    """Compute the losses and the gradients for the R rows of a batch whose targets are in a band.

    ``layer`` contains the hidden outputs (R, H), their projections (R, H_band), and the indices of the targets in the band (R,).
    Gradients of the parameters are added to ``d_band``. Returns the losses (R, 1) and the gradients of the hidden outputs (R, H).
    """
    hidden, inputs, places = layer
    losses, d_inputs = backend.empty((len(hidden), 1), hidden.dtype), backend.empty(inputs.shape, inputs.dtype)
    results = losses.reshape(-1), d_inputs, d_band.weight, d_band.bias
    numbers = objective.smoothing, objective.penalty, scale, 1.0
    backend.output_gradients(inputs, band.weight, band.bias, places, *numbers, *results, adversarial=objective.adversarial)
    return losses, project_backward(backend, band.projection, hidden, inputs, d_inputs, 1.0, d_band.projection)


def log_probabilities(backend: Backend, parameters: Parameters, hidden: Array) -> Array:
    """Return log p of all words after the hidden outputs (B, H), as a NumPy array (B, V), nats."""
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
    """Return the outputs (B, O) of independent units with an activation function, for the hidden outputs (B, H)."""
    outputs = backend.empty((len(hidden), len(parameters.output_bias)), hidden.dtype)
    backend.affine(hidden, parameters.output_weight, parameters.output_bias, activation, outputs)
    return outputs


def unit_losses(backend: Backend, parameters: Parameters, loss: UnitLoss, hidden: Array, targets: Array, losses: Array) -> None:
    """Compute the losses of independent units: hidden (B, H), targets (B, O) -> losses (B,), each the sum over the units."""
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
    """Compute the losses and gradients of independent units, and return d_hidden (B, H).

    The arguments are those of `output_gradients`, except for targets (B, O), in the dtype of the network, and for the loss.
    """
    scores = units(backend, parameters, "identity", hidden)
    d_scores, d_hidden = backend.empty(scores.shape, scores.dtype), backend.empty(hidden.shape, hidden.dtype)
    backend.unit_losses(scores, backend.upload(targets), loss, scale, losses, d_scores)
    results = gradients.output_weight, gradients.output_bias, d_hidden
    backend.affine_backward(hidden, parameters.output_weight, scores, "identity", d_scores, beta, *results)
    return d_hidden


def _first_targets(parameters: Parameters, targets: Array) -> Array:
    """Return the targets of the first softmax, (B,) int32: the target itself, or V_0 + the number of its band, from 0."""
    if not parameters.bands:
        return targets
    borders = parameters.borders
    bands = np.searchsorted(borders, targets, side="right")
    return np.where(bands > 0, borders[0] + bands - 1, targets).astype(np.int32)


def _found_in_bands(
    backend: Backend, parameters: Parameters, hidden: Array, rows: Array, targets: Array
) -> Iterator[tuple[Band, Array, Array, Array, Array]]:
    """Yield, for each band, what its softmax needs of a batch.

    Yields
    ------
    band
        The parameters of the band.
    found
        The indices of the targets that are in the band, (R,) int32.
    read
        The hidden outputs that they follow, (R, H).
    projections
        The projections of these, (R, H_band).
    places
        The indices of these targets within the band, (R,) int32.
    """
    borders = parameters.borders
    for band, low, high in zip(parameters.bands, borders[:-1], borders[1:], strict=True):
        found = np.flatnonzero((targets >= low) & (targets < high)).astype(np.int32)
        read = backend.empty((len(found), hidden.shape[1]), hidden.dtype)
        backend.gather(hidden, backend.upload(rows[found, None]), (1,), read)
        places = backend.upload((targets[found] - low).astype(np.int32))
        yield band, found, read, project(backend, band.projection, read), places
