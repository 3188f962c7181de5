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


@dataclass(frozen=True)
class _Masks:
    """Which dropout masks a part of a batch gets in training: those of the seed and the step, from the part's first row on."""

    seed: int
    step: int
    row: int


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
        first: int = 0,
        batch: int | None = None,
    ) -> None:
        """Compute losses and gradients of a batch, or of a share of its rows, in training mode (with dropout).

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
        first, batch
            If the B rows are a share of a batch: the number of its first row, and the number of rows of the batch. The gradients
            are those of the mean over the batch, so that those of all shares add up to it. A share may be empty.

        Raises
        ------
        ValueError
            If contexts or targets are not what the network has.
        MemoryError
            If there is not enough for a single row. Where there is too little for the rows that `rows_at_once` says, the batch is
            started again with half of them, and so are this network's batches from then on.
        """
        backend, rows = self.backend, len(targets)
        if not rows:
            for gradient in gradients:
                backend.clear(gradient)
            return
        if self.config.output == "softmax":
            input_layer.check_range("targets", targets, parameters.words)
        while True:
            at_once = self.rows_at_once(parameters, rows)
            try:
                for low in range(0, rows, at_once):
                    part = slice(low, min(low + at_once, rows))
                    ends, masks = (backend.upload(contexts[part]), targets[part]), _Masks(seed, step, first + low)
                    scales = 1 / (batch or rows), float(low > 0)
                    self._part_gradients(parameters, ends, gradients, losses[part], objective, scales, masks)
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
        activation: Activation = "sigmoid" if self.config.output.startswith("sigmoid") else "identity"
        units = output.units(self.backend.full_precision, parameters, activation, forward.softmax_inputs)
        return np.exp(self.backend.download(units)) if self.config.output == "poisson" else self.backend.download(units)

    def _dropout(self, layer: int, masks: _Masks) -> Dropout | None:
        """Return the dropout of layer 0 (the input) or of a hidden layer; None where nothing is dropped."""
        rate = self.config.dropout if layer else self.config.embedding_dropout
        return Dropout(rate, masks.seed, masks.step, layer) if rate else None

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

    def _forward(self, parameters: Parameters, contexts: Array, masks: _Masks | None = None) -> _Pass:
        """Go forward, in training mode with masks for dropout, without them in evaluation mode."""
        backend, config = self.backend if masks else self.backend.full_precision, self.config
        input_layer.check(config, contexts, 0 if parameters.embeddings is None else len(parameters.embeddings))
        inputs, sources = input_layer.read(backend, config, parameters.embeddings, contexts)
        if masks and (dropout := self._dropout(0, masks)):
            kept = inputs  # the caller's numbers
            inputs = backend.empty(kept.shape, parameters.dtype) if config.input == "numbers" else kept
            backend.dropout(kept, dropout, masks.row, inputs)
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
        """Return the hidden outputs (B, H): what the last layer leaves behind and, with direct connections, the inputs."""
        backend, config = self.backend, self.config
        hidden = self._normalized(values[-1]) if config.residual and config.hidden else values[-1]
        if not (config.direct and config.hidden):
            return hidden
        together = backend.empty((len(hidden), config.hidden_width), hidden.dtype)
        backend.copy(hidden, together)
        backend.copy(values[0], together, target=config.hidden[-1])
        return together

    def _part_gradients(
        self,
        parameters: Parameters,
        ends: tuple[Array, Array],
        gradients: Parameters,
        losses: Array,
        objective: Objective,
        scales: tuple[float, float],
        masks: _Masks,
    ) -> None:
        """Go forward and back with a part of a batch, ``ends`` its contexts and targets.

        ``scales`` are the factor of the gradients of the sum over the rows, and that of the gradients so far, to which they are
        added.
        """
        backend, config, (contexts, targets), (scale, beta) = self.backend, self.config, ends, scales
        forward = self._forward(parameters, contexts, masks)
        if beta == 0 and config.input != "numbers":  # where it is tied, the softmax overwrites the rows of the words that it has
            backend.clear(gradients.embeddings[len(gradients.output_bias) if config.tied else 0 :])
        layer = backend, parameters, forward.softmax_inputs, targets
        if config.output == "softmax":
            d_hidden = output.output_gradients(*layer, objective, scale, beta, losses, gradients)
        else:
            d_hidden = output.unit_gradients(*layer, config.output, scale, beta, losses, gradients)
        if parameters.projection is not None:
            d_hidden = project_backward(
                backend, parameters.projection, forward.hidden, forward.softmax_inputs, d_hidden, beta, gradients.projection
            )
        d_inputs = self._hidden_backward(parameters, forward, d_hidden, gradients, beta, masks)
        if config.input != "numbers":
            if dropout := self._dropout(0, masks):
                backend.dropout(d_inputs, dropout, masks.row, d_inputs)
            input_layer.read_backward(backend, config, contexts, forward.sources, d_inputs, gradients.embeddings)

    def _hidden_backward(
        self, parameters: Parameters, forward: _Pass, d_hidden: Array, gradients: Parameters, beta: float, masks: _Masks
    ) -> Array:
        """Go back from the hidden outputs to the inputs: d_hidden (B, H) -> d_inputs (B, I); gradients by ``beta``."""
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
