"""The operations that every device implements.

Letters in the shapes: B rows of a batch (predicted positions), n context words, K blocks of them, m embedding size, V vocabulary,
I and O inputs and outputs of a layer, H hidden outputs that enter the output layer. Inputs come first and outputs last; results
go into given arrays, which are either overwritten (``beta`` 0) or added to (``beta`` 1). Arrays are float32 or
float64, ids are int32.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

Array: TypeAlias = Any
"""An array of the backend's device (``numpy.ndarray`` on the CPU)."""

Activation = Literal["tanh", "sigmoid", "relu", "leaky_relu", "elu", "softplus", "identity"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

NEGATIVE_SLOPES: dict[Activation, float] = {"leaky_relu": 0.01, "elu": 1.0}
"""The usual factor gamma of these activations, which is their slope (just) below 0."""

ActivationFunction: TypeAlias = Activation | tuple[Activation, float]
"""An activation with its usual slope below 0, or with another one."""

UnitLoss = Literal["sigmoid", "squared", "absolute", "hinge", "exponential", "poisson", "sigmoid_squared", "sigmoid_absolute"]
UNIT_LOSSES: tuple[UnitLoss, ...] = get_args(UnitLoss)

NORMALIZE_EPSILON = 1e-5
"""Added to the variance by `Backend.normalize`, so that a constant row becomes zero."""


@dataclass(frozen=True)
class Dropout:
    """One use of dropout: its mask is a pure function of these numbers and the element's place.

    An element with index i in its (B, width) array is dropped when word ``i % 4`` of Philox4x32-10 with counter
    ``(i // 4, layer, step, step >> 32)`` and key ``(seed, seed >> 32)`` is below ``rate * 2^32``; the others are divided
    by ``1 - rate`` (Srivastava et al. 2014, inverted).
    """

    rate: float
    seed: int
    step: int
    layer: int


class Backend(Protocol):
    """The operations of a device."""

    name: str
    softmax_bytes: int
    """Bytes that the B x V numbers of a softmax may take; a larger batch goes through the network in equal parts."""

    @property
    def full_precision(self) -> "Backend":
        """The full-precision backend, for evaluation: this one, unless it computes in mixed precision."""

    def release(self) -> None:
        """Free the memory that is kept between calls."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialized array of the device."""

    def upload(self, array: Any) -> Array:
        """Return a copy of a NumPy array on the device; an array of the device is returned as it is."""

    def download(self, array: Array) -> Any:
        """Return an array of the device as a NumPy array; on the CPU it is the same array."""

    def copy(self, values: Array, copied: Array, *, source: int = 0, target: int = 0) -> None:
        """Copy columns from number ``source`` on to columns from number ``target`` on, as many as both arrays have from there.

        values (B, I) -> copied (B, J).
        """

    def clear(self, array: Array) -> None:
        """Set a contiguous array to 0."""

    def gather(self, embeddings: Array, contexts: Array, blocks: tuple[int, ...], inputs: Array) -> None:
        """Look up the context words' embeddings, add those of each block, and concatenate: x = (x_1, ..., x_K).

        A context is cut into blocks of consecutive words; x_k is the sum of the block's embeddings over the square root of
        their number, which keeps the variance. A block of one word is its embedding (Bengio 2003, section 2), a longer one an
        average of words farther back (Sun & Iyyer 2021, section 3). The number -1 is no word: zeros stand for its embedding.

        embeddings (V + 1, m), contexts (B, n), K sizes of blocks with the sum n -> inputs (B, K m).
        """

    def scatter_add(self, contexts: Array, blocks: tuple[int, ...], d_inputs: Array, d_embeddings: Array) -> None:
        """Add each context word's gradient to its embedding's: the reverse of `gather`, always in the same order.

        The number -1 is no word and gets no gradient.

        contexts (B, n), K sizes of blocks, d_inputs (B, K m) -> d_embeddings (V + 1, m), added to.
        """

    def mean_pool(self, embeddings: Array, words: Array, pooled: Array) -> None:
        """Average the embeddings of each text's words (Iyyer et al. 2015, equation 1; 0 for a text without words).

        embeddings (V + 1, m), words (B, L), a text's words and then -1 -> pooled (B, m).
        """

    def mean_pool_backward(self, words: Array, d_pooled: Array, d_embeddings: Array) -> None:
        """Go back through `mean_pool`, always in the same order.

        words (B, L), d_pooled (B, m) -> d_embeddings (V + 1, m), added to.
        """

    def max_pool(self, embeddings: Array, words: Array, pooled: Array, sources: Array) -> None:
        """Take the largest number of each dimension among a text's words (Collobert et al. 2011, section 3.2.3; 0 without words).

        embeddings (V + 1, m), words (B, L), a text's words and then -1 -> pooled (B, m), sources (B, m), the words of which the
        numbers are, of equal ones the first, -1 where there is none.
        """

    def max_pool_backward(self, sources: Array, d_pooled: Array, d_embeddings: Array) -> None:
        """Go back through `max_pool`, always in the same order.

        sources (B, m), d_pooled (B, m) -> d_embeddings (V + 1, m), added to.
        """

    def put_rows(self, values: Array, rows: Array, array: Array) -> None:
        """Write rows: array[rows] = values. The reverse of `gather` with blocks of one.

        values (R, m), rows (R,), all different -> array (N, m).
        """

    def dropout(self, values: Array, dropout: Dropout, row: int, dropped: Array) -> None:
        """Apply dropout, forward to activations or backward to their gradients (the same mask).

        values (B, I), whose first row is row number ``row`` of the batch -> dropped (B, I), which may be ``values``.
        """

    def affine(self, inputs: Array, weight: Array, bias: Array, activation: ActivationFunction, outputs: Array) -> None:
        """Compute a layer: outputs = activation(inputs weight^T + bias).

        inputs (B, I), weight (O, I), bias (O,) -> outputs (B, O).
        """

    def affine_backward(
        self,
        inputs: Array,
        weight: Array,
        outputs: Array,
        activation: ActivationFunction,
        d_outputs: Array,
        beta: float,
        d_weight: Array,
        d_bias: Array,
        d_inputs: Array,
    ) -> None:
        """Go back through `affine`.

        inputs (B, I), weight (O, I), outputs (B, O), d_outputs (B, O; overwritten) -> d_weight (O, I) and d_bias (O,), by
        ``beta``, and d_inputs (B, I), overwritten.
        """

    def add(self, values: Array, total: Array) -> None:
        """Add ``values`` to ``total``, both (B, I)."""

    def normalize(self, values: Array, normalized: Array) -> None:
        """Subtract the mean of each row, and divide by its standard deviation: layer normalization (Ba et al. 2016, equation 4).

        There is no gain and no bias, because the layer that follows has them (Xu et al. 2019 find them superfluous). The
        deviation is sqrt(variance + `NORMALIZE_EPSILON`).

        values (B, I) -> normalized (B, I).
        """

    def normalize_backward(self, values: Array, d_normalized: Array, d_values: Array) -> None:
        """Go back through `normalize`.

        values (B, I), d_normalized (B, I) -> d_values (B, I), added to.
        """

    def output_losses(self, hidden: Array, weight: Array, bias: Array, rows: Array, targets: Array, losses: Array) -> None:
        """Compute -log softmax(hidden[row] weight^T + bias)[target], on the CPU without ever holding the B x V matrix.

        The normalizer is computed only once for all targets after the same context.

        hidden (B, H), weight (V, H), bias (V,), rows (T,) in [0, B), targets (T,) in [0, V) -> losses (T,), nats, not averaged.
        """

    def output_gradients(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        targets: Array,
        smoothing: float,
        penalty: float,
        scale: float,
        beta: float,
        losses: Array,
        d_hidden: Array,
        d_weight: Array,
        d_bias: Array,
    ) -> None:
        """Compute the whole output layer in one operation: logits, softmax, losses, and all gradients.

        The gradients are those of ``scale`` times the sum over rows of the cross-entropy with the smoothed target
        (1 - smoothing) onehot + smoothing / V (Szegedy et al. 2016, section 7), plus penalty (log Z)^2, where Z is the sum
        of the exponentials (Devlin et al. 2014, section 2.4); the losses are plain -log p(target).

        hidden (B, H), weight (V, H), bias (V,), targets (B,) -> losses (B,), nats; d_hidden (B, H), overwritten;
        d_weight (V, H) and d_bias (V,), by ``beta``.
        """

    def nce_gradients(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        targets: Array,
        noise: Array,
        scale: float,
        beta: float,
        losses: Array,
        d_hidden: Array,
        d_weight: Array,
        d_bias: Array,
    ) -> None:
        """Compute noise-contrastive estimation as an output layer: scores, losses, and all gradients.

        With s = hidden weight^T + bias a row's loss is softplus(-s_target) + sum over words of noise softplus(s): the target
        is to be told apart from the noise (Mnih & Teh 2012, equation 8; noise shared by the rows as in Zoph et al. 2016). The
        caller has subtracted log(k q(word)) from the bias. The gradients are those of ``scale`` times the sum over rows.

        hidden (B, H), weight (V, H), bias (V,), targets (B,), noise (V,), how often each word was drawn -> losses (B,), nats;
        d_hidden (B, H), overwritten; d_weight (V, H) and d_bias (V,), by ``beta``.
        """

    def unit_losses(self, scores: Array, targets: Array, loss: UnitLoss, scale: float, losses: Array, d_scores: Array) -> None:
        """Compute the losses of single output units, and their gradients.

        With z a score and y its target, ``sigmoid`` is the binary cross-entropy log(1 + e^z) - y z of the probability sigmoid(z),
        whose derivative is sigmoid(z) - y; ``squared`` is (z - y)^2; ``absolute`` is |z - y|; ``hinge`` is max(0, 1 - y z);
        ``exponential`` is e^(-y z) (Freund & Schapire 1997). ``poisson`` is e^z - y z, minus the log-likelihood of a count y with
        the mean e^z, but for log y!, which no weight changes; its derivative is e^z - y. ``sigmoid_squared`` and
        ``sigmoid_absolute`` are (s - y)^2 and |s - y| of s = sigmoid(z); the chain rule gives their derivatives s'(z) = s (1 - s)
        as a factor.

        scores (B, O), targets (B, O) -> losses (B,), summed over units, and d_scores (B, O), ``scale`` times the derivatives.
        """

    def log_probabilities(self, hidden: Array, weight: Array, bias: Array, log_probabilities: Array) -> None:
        """Compute log softmax(hidden weight^T + bias) in full.

        hidden (B, H), weight (V, H), bias (V,) -> log_probabilities (B, V), nats.
        """

    def clip_factor(self, gradients: Iterable[Array], limit: float, factor: Array) -> None:
        """Compute the factor that limits the norm of all gradients together: min(1, limit / norm), NaN if one is not finite.

        factor (1,), of the gradients' type.
        """

    def add_penalty(self, weight: Array, gradient: Array, l1: float, l2: float) -> None:
        """Add to a gradient that of the penalty l1 |w| + l2 w^2 / 2, summed over the numbers of a weight.

        That is l1 sign(w) + l2 w, where sign(0) is 0. weight, gradient of any shape, the same.
        """

    def momentum_step(
        self,
        weight: Array,
        gradient: Array,
        velocity: Array,
        *,
        scale: Array,
        l2: float,
        rate: float,
        momentum: float,
        nesterov: bool,
    ) -> None:
        """Update ``weight`` and ``velocity`` by gradient descent with momentum.

        Here and below the gradient is g = scale gradient + l2 weight, with ``scale`` (1,), as `clip_factor` has computed it.
        """

    def adagrad_step(
        self,
        weight: Array,
        gradient: Array,
        total: Array,
        *,
        scale: Array,
        l2: float,
        rate: float,
        epsilon: float,
    ) -> None:
        """Update ``weight`` and the sum of squares ``total`` by AdaGrad."""

    def rmsprop_step(
        self,
        weight: Array,
        gradient: Array,
        mean: Array,
        *,
        scale: Array,
        l2: float,
        rate: float,
        decay: float,
        epsilon: float,
    ) -> None:
        """Update ``weight`` and the mean square ``mean`` by RMSProp."""

    def adam_step(
        self,
        weight: Array,
        gradient: Array,
        first: Array,
        second: Array,
        *,
        scale: Array,
        l2: float,
        shrink: float,
        rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        step: int,
    ) -> None:
        """Update ``weight`` and both moments by Adam's step number ``step`` (from 1).

        ``shrink`` is AdamW's decoupled decay: the weight is first multiplied by 1 - shrink (Loshchilov & Hutter 2019).
        """

    def adam_catch_up(
        self,
        weight: Array,
        first: Array,
        second: Array,
        idle: Array,
        keeps: Array,
        *,
        rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        step: int,
    ) -> None:
        """Let rows catch up on the steps of Adam, up to number ``step``, in which they had no gradient: lazy Adam updates.

        In k such steps the first moment m moves a weight by beta1 m + ... + beta1^k m, times the rate and over the root of the
        second moment, which is taken as constant: it falls by beta2 in a step, far more slowly. ``keeps`` is the product of
        1 - shrink over the steps.

        weight, first, second (R, m), all changed; idle (R,), each row's k >= 0; keeps (R,).
        """
