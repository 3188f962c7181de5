"""The forward and the backward pass of a network, in terms of the operations of a backend.

Letters in the shapes: B rows of a batch, n context words in K blocks, m embedding dimension, I and h inputs and outputs of a
hidden layer, V vocabulary size, H hidden outputs that enter the output layer. ``d_x`` is the gradient of the loss with respect to
``x``.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fflm.backend.protocol import Activation, Array, Backend, Dropout, StepNumbers
from fflm.network import inputs as input_layer
from fflm.network import output
from fflm.network.config import NetworkConfig
from fflm.network.output import CROSS_ENTROPY, Objective, project, project_backward
from fflm.network.parameters import Parameters
from fflm.network.partition import Partition


@dataclass(frozen=True)
class _Pass:
    """The intermediate results of a forward pass that the backward pass needs.

    Attributes
    ----------
    sources
        Of max pooling, the words whose embeddings have the maxima (`inputs.read`); otherwise None.
    values
        The inputs of the network (B, I) after dropout, and then the result of each hidden layer (B, h), after dropout and after
        the addition of a residual connection.
    reads
        The input of each hidden layer: the values before it, which are normalized if the layer is residual.
    outputs
        The output of the activation function of each hidden layer, (B, h).
    hidden
        The hidden outputs, (B, `NetworkConfig.hidden_width`).
    softmax_inputs
        The input of the output layer, (B, H): the hidden outputs or their projection.
    """

    sources: Array | None
    values: list[Array]
    reads: list[Array]
    outputs: list[Array]
    hidden: Array
    softmax_inputs: Array


@dataclass(frozen=True)
class _Masks:
    """The dropout masks of a part of a batch: those of a seed and a step's numbers, from row number ``row`` of the batch on."""

    seed: int
    numbers: Any
    row: int


@dataclass(frozen=True)
class _Part:
    """The part of a batch that goes through the network at a time, its ``rows``, with the array for its losses.

    ``beta`` is 0 if the part overwrites gradients, and 1 if it adds to them.
    """

    rows: slice
    contexts: Array
    targets: Array
    losses: Array
    masks: _Masks
    beta: float


class Network:
    """A network with a given configuration on a given backend. The parameters are arguments of its methods.

    Parameters
    ----------
    config
        The configuration.
    backend
        The backend, which computes the operations on its device.
    partition
        The division of the words of a softmax among processes, all of which compute the same batches at the same time. The
        parameters then have only the own words. By default nothing is divided.
    """

    def __init__(self, config: NetworkConfig, backend: Backend, partition: Partition | None = None) -> None:
        self.config = config
        self.backend = backend
        self.partition = partition
        self._softmax_bytes = math.inf  # a bound that is lower than the backend's after the memory was too small

    def rows_at_once(self, parameters: Parameters, batch: int) -> int:
        """Return how many rows of a batch go through the network at a time, so that the memory for their softmax is bounded."""
        most = min(self.backend.softmax_bytes, self._softmax_bytes)
        parts = -(-batch // max(1, int(most // self._row_bytes(parameters))))
        return -(-batch // parts)

    def _row_bytes(self, parameters: Parameters) -> int:
        """Return the number of bytes that the softmax of one row takes."""
        words = self.partition.largest if self.partition else parameters.words  # all processes must divide a batch equally
        return int(parameters.output_bias.dtype.itemsize * words)

    def _own_targets(self, parameters: Parameters, targets: Array) -> Array:
        """Return targets (T,) as indices of the rows of the output layer; -1 for those in other processes."""
        if self.partition:
            return self.partition.own_targets(targets)
        input_layer.check_range("targets", targets, parameters.words)
        return targets

    def _check_contexts(self, parameters: Parameters, contexts: Array) -> None:
        """Raise a ValueError if contexts have the wrong shape, or ids that the network does not have."""
        input_layer.check(self.config, contexts, 0 if parameters.embeddings is None else len(parameters.embeddings))

    def check(self, parameters: Parameters, contexts: Array, targets: Array) -> None:
        """Raise a ValueError as `gradients` does, which cannot check arrays that are already on a GPU."""
        self._check_contexts(parameters, contexts)
        if self.config.output == "softmax":
            self._own_targets(parameters, targets)

    def gradients(
        self,
        parameters: Parameters,
        contexts: Array,
        targets: Array,
        gradients: Parameters,
        losses: Array,
        *,
        objective: Objective = CROSS_ENTROPY,
        seed: int = 0,
        numbers: Any = None,
        first: int = 0,
        batch: int | None = None,
    ) -> None:
        """Compute losses and gradients of a batch, or of a share of its rows, in training mode (with dropout).

        Parameters
        ----------
        parameters
            The parameters of the network, or those of some of its words (`Subset`).
        contexts
            The context words, (B, n) int32, oldest first; or another type of input, as for `inputs.read`.
        targets
            The words or classes to predict, (B,) int32. For all outputs but a softmax: (B, outputs), in the dtype of the network.
        gradients
            Overwritten with the gradients of the objective, averaged over the batch.
        losses
            Overwritten with the losses, (B,), nats: -log p(target) without smoothing and penalty, the loss of noise-contrastive
            estimation, or the sum of the losses of all output units. With a partition, they are 0 for the targets of others.
        objective
            The function to minimize.
        seed, numbers
            Random seed and numbers of the step, from `Backend.place`, which determine the dropout masks; by default those of
            step 0.
        first, batch
            If the B rows are a share of a batch: the number of its first row, and the number of rows of the batch. The gradients
            are those of the mean over the batch, so that those of all shares add up to it. A share may be empty.

        Raises
        ------
        ValueError
            If the contexts have the wrong shape, or contexts or targets contain ids that the network does not have.
        MemoryError
            If there is not enough memory for a single row. If there is too little for `rows_at_once`, the batch is started again
            with half as many rows at a time, and so are later batches; not with a partition, as others do not know of it.
        """
        backend, rows = self.backend, len(targets)
        if not rows:
            for gradient in gradients:
                backend.clear(gradient)
            return
        if self.config.output == "softmax":
            targets = self._own_targets(parameters, targets)
        numbers = backend.place(StepNumbers()) if numbers is None else numbers
        while True:
            at_once = self.rows_at_once(parameters, rows)
            try:
                for low in range(0, rows, at_once):
                    own = slice(low, min(low + at_once, rows))
                    arrays = self._uploaded(parameters, contexts[own]), targets[own], losses[own]
                    part = _Part(own, *arrays, _Masks(seed, numbers, first + low), beta=float(low > 0))
                    self._part_gradients(parameters, part, gradients, objective, 1 / (batch or rows))
                return
            except MemoryError:
                if at_once == 1 or self.partition:
                    self._softmax_bytes = math.inf
                    raise
            # This must come after the `except` block, because the exception refers to the arrays of the part.
            backend.release()
            self._softmax_bytes = at_once // 2 * self._row_bytes(parameters)

    def losses(
        self, parameters: Parameters, contexts: Array, targets: Array, losses: Array, *, rows: Array | None = None
    ) -> None:
        """Compute the losses of targets in evaluation mode (without dropout).

        Parameters
        ----------
        parameters, contexts
            As for `gradients`.
        targets
            The words or classes to predict, (T,) int32; or the targets of units, as for `gradients`.
        losses
            Overwritten with the losses, (T,), nats: -log p(target | context), or the sum of the losses of all output units.
        rows
            For a softmax only: the row of ``contexts`` that each target follows, (T,) int32. By default each target has a row of
            its own.

        Raises
        ------
        ValueError
            As for `gradients`.
        """
        backend, forward = self.backend.full_precision, self._forward(parameters, self._uploaded(parameters, contexts))
        if self.config.output != "softmax":
            output.unit_losses(backend, parameters, self.config.output, forward.softmax_inputs, targets, losses)
            return
        rows = output.each_row(targets) if rows is None else rows
        input_layer.check_range("rows", rows, len(contexts))
        own = self._own_targets(parameters, targets)
        output.output_losses(backend, parameters, forward.softmax_inputs, rows, own, losses, self.partition)

    def log_probabilities(self, parameters: Parameters, contexts: Array) -> Array:
        """Return log p(word | context) of all words, in evaluation mode, as a NumPy array (B, V), nats."""
        forward = self._forward(parameters, self._uploaded(parameters, contexts))
        return output.log_probabilities(self.backend.full_precision, parameters, forward.softmax_inputs)

    def softmax_inputs(self, parameters: Parameters, contexts: Array) -> Array:
        """Return the input of the output layer after contexts (B, n), in evaluation mode, as a NumPy array (B, H)."""
        return self.backend.download(self.read(parameters, contexts))

    def read(self, parameters: Parameters, contexts: Array) -> Array:
        """Return what `softmax_inputs` does as an array on the device, where the contexts may be already."""
        return self._forward(parameters, self._uploaded(parameters, contexts)).softmax_inputs

    def predict(self, parameters: Parameters, contexts: Array) -> Array:
        """Return the outputs for contexts (B, n), in evaluation mode, as a NumPy array (B, outputs).

        They are probabilities, means or scores, as `NetworkConfig.output` says.
        """
        if self.config.output == "softmax":
            return np.exp(self.log_probabilities(parameters, contexts))
        forward = self._forward(parameters, self._uploaded(parameters, contexts))
        activation: Activation = "sigmoid" if self.config.output.startswith("sigmoid") else "identity"
        units = output.units(self.backend.full_precision, parameters, activation, forward.softmax_inputs)
        return np.exp(self.backend.download(units)) if self.config.output == "poisson" else self.backend.download(units)

    def _dropout(self, layer: int, masks: _Masks) -> Dropout | None:
        """Return the dropout of layer 0 (the input) or of a hidden layer (from 1); None if its rate is 0."""
        rate = self.config.dropout if layer else self.config.embedding_dropout
        return Dropout(rate, masks.seed, masks.numbers, layer) if rate else None

    def _residual(self, layer: int) -> bool:
        """Return whether hidden layer number ``layer``, counted from 1, has a residual connection."""
        return self.config.residual and layer > 1

    def _copied(self, values: Array, first: int = 0, end: int | None = None) -> Array:
        """Return a copy of the columns of ``values`` (B, I) from ``first`` on, up to ``end``."""
        columns = (values.shape[1] if end is None else end) - first
        copied = self.backend.empty((len(values), columns), values.dtype)
        self.backend.copy(values, copied, source=first)
        return copied

    def _normalized(self, values: Array) -> Array:
        """Return the result of `Backend.normalize` as a new array."""
        normalized = self.backend.empty(values.shape, values.dtype)
        self.backend.normalize(values, normalized)
        return normalized

    def _uploaded(self, parameters: Parameters, contexts: Array) -> Array:
        """Check contexts, unless they are on a GPU already, and return them on the device of the network."""
        self._check_contexts(parameters, contexts)
        return self.backend.upload(contexts)

    def _forward(self, parameters: Parameters, contexts: Array, masks: _Masks | None = None) -> _Pass:
        """Compute the forward pass: in training mode with masks, in evaluation mode without masks."""
        backend, config = self.backend if masks else self.backend.full_precision, self.config
        inputs, sources = input_layer.read(backend, config, parameters.embeddings, contexts, parameters.word_weights)
        if masks and (dropout := self._dropout(0, masks)):
            read = inputs  # if the input is numbers, the array is the caller's and must not be changed
            inputs = backend.empty(read.shape, parameters.dtype) if config.input == "numbers" else read
            backend.dropout(read, dropout, masks.row, inputs)
        values, reads, outputs = [inputs], [], []
        for layer, (weight, bias) in enumerate(zip(parameters.hidden_weights, parameters.hidden_biases, strict=True), 1):
            reads.append(self._normalized(values[-1]) if self._residual(layer) else values[-1])
            output = backend.empty((len(contexts), len(bias)), parameters.dtype)
            backend.affine(reads[-1], weight, bias, config.activation_of(layer), output)
            outputs.append(output)
            if masks and (dropout := self._dropout(layer, masks)):
                output = backend.empty(output.shape, output.dtype)
                backend.dropout(outputs[-1], dropout, masks.row, output)
            if self._residual(layer):
                total = self._copied(values[-1])
                backend.add(output, total)
                output = total
            values.append(output)
        hidden = self._hidden_outputs(values)
        softmax_inputs = hidden
        if parameters.projection is not None:
            softmax_inputs = project(backend, parameters.projection, hidden)
        return _Pass(sources, values, reads, outputs, hidden, softmax_inputs)

    def _hidden_outputs(self, values: list[Array]) -> Array:
        """Return the hidden outputs (B, `NetworkConfig.hidden_width`).

        They are the values of the last hidden layer, normalized if layers are residual, and with direct connections the inputs.
        """
        backend, config = self.backend, self.config
        hidden = self._normalized(values[-1]) if config.residual and config.hidden else values[-1]
        if not (config.direct and config.hidden):
            return hidden
        together = backend.empty((len(hidden), config.hidden_width), hidden.dtype)
        backend.copy(hidden, together)
        backend.copy(values[0], together, target=config.hidden[-1])
        return together

    def _part_gradients(
        self, parameters: Parameters, part: _Part, gradients: Parameters, objective: Objective, scale: float
    ) -> None:
        """Compute the losses and the gradients of a part of a batch. The first part overwrites gradients, the others add to them.

        The gradients are those of ``scale`` times the sum over the rows.
        """
        backend, config, masks, beta = self.backend, self.config, part.masks, part.beta
        forward = self._forward(parameters, part.contexts, masks)
        if beta == 0 and config.input != "numbers":
            # If the output layer is tied, its gradients overwrite the rows of all its words, so these need not be cleared.
            backend.clear(gradients.embeddings[len(gradients.output_bias) if config.tied else 0 :])
            if gradients.word_weights is not None:
                backend.clear(gradients.word_weights)
        layer = backend, parameters, forward.softmax_inputs, part.targets
        if config.output == "softmax":
            d_hidden = output.output_gradients(*layer, objective, scale, beta, part.losses, gradients, self.partition)
            if objective.teacher:
                output.teacher_gradients(*layer, objective.teacher(part.rows), scale, d_hidden, gradients)
        else:
            d_hidden = output.unit_gradients(*layer, config.output, scale, beta, part.losses, gradients)
        if parameters.projection is not None:
            d_hidden = project_backward(
                backend, parameters.projection, forward.hidden, forward.softmax_inputs, d_hidden, beta, gradients.projection
            )
        d_inputs = self._hidden_backward(parameters, forward, d_hidden, gradients, beta, masks)
        if config.input != "numbers":
            if dropout := self._dropout(0, masks):
                backend.dropout(d_inputs, dropout, masks.row, d_inputs)
            weighted = None
            if parameters.word_weights is not None:
                weighted = parameters.embeddings, parameters.word_weights, gradients.word_weights
            input_layer.read_backward(backend, config, part.contexts, forward.sources, d_inputs, gradients.embeddings, weighted)

    def _hidden_backward(
        self, parameters: Parameters, forward: _Pass, d_hidden: Array, gradients: Parameters, beta: float, masks: _Masks
    ) -> Array:
        """Backpropagate from the hidden outputs to the inputs: d_hidden (B, `NetworkConfig.hidden_width`) -> d_inputs (B, I).

        The gradients of the hidden layers are added to ``beta`` times their content.
        """
        backend, config = self.backend, self.config
        d_values, d_direct = d_hidden, None
        if config.direct and config.hidden:
            d_values, d_direct = self._copied(d_hidden, end=config.hidden[-1]), self._copied(d_hidden, config.hidden[-1])
        if config.residual and config.hidden:
            d_normalized, d_values = d_values, backend.empty(d_values.shape, d_values.dtype)
            backend.clear(d_values)
            backend.normalize_backward(forward.values[-1], d_normalized, d_values)
        for layer in range(len(config.hidden), 0, -1):
            d_output = self._copied(d_values) if self._residual(layer) else d_values
            if dropout := self._dropout(layer, masks):
                backend.dropout(d_output, dropout, masks.row, d_output)
            d_below = backend.empty(forward.reads[layer - 1].shape, d_output.dtype)
            backend.affine_backward(
                forward.reads[layer - 1],
                parameters.hidden_weights[layer - 1],
                forward.outputs[layer - 1],
                config.activation_of(layer),
                d_output,
                beta,
                gradients.hidden_weights[layer - 1],
                gradients.hidden_biases[layer - 1],
                d_below,
            )
            if self._residual(layer):
                backend.normalize_backward(forward.values[layer - 1], d_below, d_values)
            else:
                d_values = d_below
        if d_direct is not None:
            backend.add(d_direct, d_values)
        return d_values
