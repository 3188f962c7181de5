"""Forward and backward through the network, once, for every backend.

Letters: B rows, n context words in K blocks, m embedding size, V vocabulary, H hidden outputs that enter the output layer;
``d_x`` is the gradient of ``x``.
"""

import math
from dataclasses import dataclass

import numpy as np

from fflm.backend.protocol import Activation, Array, Backend, Dropout
from fflm.network import inputs as input_layer
from fflm.network import output
from fflm.network.config import NetworkConfig
from fflm.network.output import CROSS_ENTROPY, Objective, project, project_backward
from fflm.network.parameters import Parameters


@dataclass(frozen=True)
class _Pass:
    """The intermediate results of one forward pass, which backward needs."""

    sources: Array | None  # the words of which a pooled maximum is
    values: list[Array]  # what the first layer reads (B, I) after dropout, then what each hidden layer leaves behind (B, h)
    reads: list[Array]  # what each hidden layer reads: the values before it, normalized if it is residual
    outputs: list[Array]  # (B, h) what each hidden layer computes from it, before dropout and sum
    hidden: Array  # (B, hidden + direct) what is offered to the softmax
    softmax_inputs: Array  # (B, H) the same, projected where the softmax is tied


class Network:
    """A network of a given shape on a given backend. Holds no parameters: they are passed in.

    Parameters
    ----------
    config
        The shape.
    backend
        Computes the operations, on its device.
    """

    def __init__(self, config: NetworkConfig, backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self._softmax_bytes = math.inf  # the backend's bound, but where there was too little memory

    def rows_at_once(self, parameters: Parameters, batch: int) -> int:
        """Return how many rows of a batch go through the network at a time, by the memory their softmax takes."""
        most = min(self.backend.softmax_bytes, self._softmax_bytes)
        parts = -(-batch // max(1, int(most // self._row_bytes(parameters))))
        return -(-batch // parts)

    def _row_bytes(self, parameters: Parameters) -> int:
        return int(parameters.output_bias.dtype.itemsize * parameters.words)

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
        step: int = 0,
    ) -> None:
        """Compute losses and gradients of a batch in training mode (with dropout).

        Parameters
        ----------
        parameters
            The network's weights, or those of some of its words (`Subset`).
        contexts
            (B, n) int32 word ids, oldest first; or what else the network reads, as for `inputs.read`.
        targets
            (B,) int32 ids of words or classes; for all outputs but a softmax (B, outputs), of the network's type.
        gradients
            Overwritten with the gradients of the objective.
        losses
            (B,) overwritten with -log p(target), nats, without smoothing and penalty; or with the loss of noise contrast, or that
            of the outputs, summed over them.
        objective
            What is to be lowered.
        seed, step
            Name the dropout masks: the same numbers give the same masks.

        Raises
        ------
        ValueError
            If contexts or targets are not what the network has.
        MemoryError
            If there is not enough for a single row. Where there is too little for the rows that `rows_at_once` says, the batch is
            started again with half of them, and so are this network's batches from then on.
        """
        backend, batch = self.backend, len(targets)
        if self.config.output == "softmax":
            input_layer.check_range("targets", targets, parameters.words)
        while True:
            at_once = self.rows_at_once(parameters, batch)
            try:
                for low in range(0, batch, at_once):
                    part = slice(low, min(low + at_once, batch))
                    words = backend.upload(contexts[part])
                    self._part_gradients(
                        parameters, words, targets[part], gradients, losses[part], low, batch, objective, seed, step
                    )
                return
            except MemoryError:
                if at_once == 1:
                    self._softmax_bytes = math.inf
                    raise
            # Not earlier, for the exception holds what its part has made.
            backend.release()
            self._softmax_bytes = at_once // 2 * self._row_bytes(parameters)

    def losses(
        self, parameters: Parameters, contexts: Array, targets: Array, losses: Array, *, rows: Array | None = None
    ) -> None:
        """Compute -log p(target | context), nats, or another output's loss: contexts (B, n), targets (T,) -> losses (T,).

        Nothing is dropped.

        ``rows`` (T,), int32, says which context each target follows; without, each has its own. Only of a softmax.
        """
        backend, forward = self.backend.full_precision, self._forward(parameters, self.backend.upload(contexts))
        if self.config.output != "softmax":
            output.unit_losses(backend, parameters, self.config.output, forward.softmax_inputs, targets, losses)
            return
        rows = output.each_row(targets) if rows is None else rows
        input_layer.check_range("rows", rows, len(contexts))
        input_layer.check_range("targets", targets, parameters.words)
        output.output_losses(backend, parameters, forward.softmax_inputs, rows, targets, losses)

    def log_probabilities(self, parameters: Parameters, contexts: Array) -> Array:
        """Return log p(word | context) of every word, (B, V) in nats, as a NumPy array, in evaluation mode."""
        forward = self._forward(parameters, self.backend.upload(contexts))
        return output.log_probabilities(self.backend.full_precision, parameters, forward.softmax_inputs)

    def predict(self, parameters: Parameters, contexts: Array) -> Array:
        """Return the outputs, (B, outputs), as a NumPy array: probabilities, or numbers, as `NetworkConfig.output` says."""
        if self.config.output == "softmax":
            return np.exp(self.log_probabilities(parameters, contexts))
        forward = self._forward(parameters, self.backend.upload(contexts))
        activation: Activation = "sigmoid" if self.config.output == "sigmoid" else "identity"
        return self.backend.download(output.units(self.backend.full_precision, parameters, activation, forward.softmax_inputs))

    def _dropout(self, layer: int, seed: int, step: int) -> Dropout | None:
        """Return layer 0's (the embeddings') or a hidden layer's dropout, None where nothing is dropped."""
        rate = self.config.dropout if layer else self.config.embedding_dropout
        return Dropout(rate, seed, step, layer) if rate else None

    def _residual(self, layer: int) -> bool:
        """Whether hidden layer number ``layer``, from 1, adds to what the one before it has given."""
        return self.config.residual and layer > 1

    def _copied(self, values: Array, first: int = 0, end: int | None = None) -> Array:
        """Return a copy of columns."""
        columns = (values.shape[1] if end is None else end) - first
        copied = self.backend.empty((len(values), columns), values.dtype)
        self.backend.copy(values, copied, source=first)
        return copied

    def _normalized(self, values: Array) -> Array:
        normalized = self.backend.empty(values.shape, values.dtype)
        self.backend.normalize(values, normalized)
        return normalized

    def _forward(
        self, parameters: Parameters, contexts: Array, *, training: bool = False, row: int = 0, seed: int = 0, step: int = 0
    ) -> _Pass:
        backend = self.backend if training else self.backend.full_precision
        config, rows, dtype = self.config, len(contexts), parameters.dtype
        input_layer.check(config, contexts, 0 if parameters.embeddings is None else len(parameters.embeddings))
        inputs, sources = input_layer.read(backend, config, parameters.embeddings, contexts)
        if training and (dropout := self._dropout(0, seed, step)):
            kept = inputs  # the caller's numbers
            inputs = backend.empty(kept.shape, dtype) if config.input == "numbers" else kept
            backend.dropout(kept, dropout, row, inputs)
        values, reads, outputs = [inputs], [], []
        for layer, (weight, bias) in enumerate(zip(parameters.hidden_weights, parameters.hidden_biases, strict=True), 1):
            reads.append(self._normalized(values[-1]) if self._residual(layer) else values[-1])
            output = backend.empty((rows, len(bias)), dtype)
            backend.affine(reads[-1], weight, bias, config.activation, output)
            outputs.append(output)
            if training and (dropout := self._dropout(layer, seed, step)):
                output = backend.empty(output.shape, dtype)
                backend.dropout(outputs[-1], dropout, row, output)
            if self._residual(layer):
                total = self._copied(values[-1])
                backend.add(output, total)
                output = total
            values.append(output)
        hidden = self._normalized(values[-1]) if config.residual and config.hidden else values[-1]
        if config.direct and config.hidden:
            together = backend.empty((rows, config.hidden[-1] + config.inputs), dtype)
            backend.copy(hidden, together)
            backend.copy(inputs, together, target=config.hidden[-1])
            hidden = together
        softmax_inputs = hidden
        if parameters.projection is not None:
            softmax_inputs = project(backend, parameters.projection, hidden)
        return _Pass(sources, values, reads, outputs, hidden, softmax_inputs)

    def _part_gradients(
        self,
        parameters: Parameters,
        contexts: Array,
        targets: Array,
        gradients: Parameters,
        losses: Array,
        row: int,
        batch: int,
        objective: Objective,
        seed: int,
        step: int,
    ) -> None:
        """Go forward and back with the rows from number ``row`` of a batch; all parts but the first add to the gradients."""
        backend, config = self.backend, self.config
        beta = 0.0 if row == 0 else 1.0
        forward = self._forward(parameters, contexts, training=True, row=row, seed=seed, step=step)
        if row == 0 and config.input != "numbers":  # where it is tied, the softmax overwrites the rows of the words that it has
            backend.clear(gradients.embeddings[len(gradients.output_bias) if config.tied else 0 :])
        d_values = backend.empty(forward.softmax_inputs.shape, forward.softmax_inputs.dtype)
        ends = forward.softmax_inputs, targets
        if config.output == "softmax":
            output.output_gradients(backend, parameters, *ends, objective, 1 / batch, beta, losses, d_values, gradients)
        else:
            output.unit_gradients(backend, parameters, config.output, *ends, 1 / batch, beta, losses, d_values, gradients)
        if parameters.projection is not None:
            d_values = project_backward(
                backend, parameters.projection, forward.hidden, forward.softmax_inputs, d_values, beta, gradients.projection
            )
        d_direct = None
        if config.direct and config.hidden:
            d_direct = self._copied(d_values, config.hidden[-1])
            d_values = self._copied(d_values, end=config.hidden[-1])
        if config.residual and config.hidden:
            d_normalized, d_values = d_values, backend.empty(d_values.shape, d_values.dtype)
            backend.clear(d_values)
            backend.normalize_backward(forward.values[-1], d_normalized, d_values)
        for layer in range(len(config.hidden), 0, -1):
            d_output = self._copied(d_values) if self._residual(layer) else d_values
            if dropout := self._dropout(layer, seed, step):
                backend.dropout(d_output, dropout, row, d_output)
            d_below = backend.empty(forward.reads[layer - 1].shape, d_output.dtype)
            backend.affine_backward(
                forward.reads[layer - 1],
                parameters.hidden_weights[layer - 1],
                forward.outputs[layer - 1],
                config.activation,
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
        if config.input != "numbers":
            if dropout := self._dropout(0, seed, step):
                backend.dropout(d_values, dropout, row, d_values)
            input_layer.read_backward(backend, config, contexts, forward.sources, d_values, gradients.embeddings)
