"""The operations that the backend of every device implements.

Letters in the shapes: B rows of a batch (examples, such as predicted words), n context words, K blocks of context words, L words
of the longest text of a batch, m embedding dimension, V vocabulary size, I and O inputs and outputs of a layer, H hidden outputs
that the output layer reads, N any number of elements.

The last arguments of an operation are the arrays that its results are written to. "inputs (B, I) -> outputs (B, O)" in a
docstring means that the operation reads ``inputs`` and overwrites ``outputs``. Where an operation has an argument ``beta``, the
old content of some results is multiplied by beta first: 0 overwrites them, whatever they contain, and 1 adds to them. ``d_x`` is
the gradient of the loss with respect to ``x``, and has the shape of ``x``.

The numbers of all arrays in a call are of one type: float32 or float64 on the CPU, float32 on a GPU. Words, rows, classes and
other ids are int32. Arrays are contiguous in row-major order.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

if TYPE_CHECKING:
    from fflm.parallel.communicator import Communicator

Array: TypeAlias = Any
"""An array of the backend's device (``numpy.ndarray`` on the CPU)."""

Activation = Literal["tanh", "sigmoid", "relu", "leaky_relu", "elu", "softplus", "identity"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

NEGATIVE_SLOPES: dict[Activation, float] = {"leaky_relu": 0.01, "elu": 1.0}
"""The default of gamma: in PyTorch's terms the ``negative_slope`` of leaky ReLU and the ``alpha`` of ELU."""

ActivationFunction: TypeAlias = Activation | tuple[Activation, float]
"""The name of an activation function; or its name and its gamma, if that is not the default (see `NEGATIVE_SLOPES`)."""

UnitLoss = Literal["sigmoid", "squared", "absolute", "hinge", "exponential", "poisson", "sigmoid_squared", "sigmoid_absolute"]
UNIT_LOSSES: tuple[UnitLoss, ...] = get_args(UnitLoss)

NORMALIZE_EPSILON = 1e-5
"""Constant that `Backend.normalize` adds to the variance, so that a row of equal numbers becomes zeros."""


@dataclass(frozen=True)
class StepNumbers:
    """The numbers that differ from one training step to the next. Operations take them as `Backend.place` returns them.

    Attributes
    ----------
    step
        Number of the step, an integer of at most 64 bits, which determines the dropout masks.
    rate
        Learning rate.
    shrink
        Decoupled weight decay of AdamW: the share by which weights shrink (Loshchilov & Hutter 2019).
    corrections
        The factors that correct the bias of Adam's two moments, from `common.adam_corrections`.
    """

    step: int = 0
    rate: float = 0.0
    shrink: float = 0.0
    corrections: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Dropout:
    """An application of dropout (Srivastava et al. 2014), whose mask is a pure function of these numbers.

    Let i be the index of an element in the flattened array (B, I) of a whole batch. The element is set to 0 if number ``i % 4``
    of the four uint32 of Philox4x32-10, with the counter ``(i // 4, layer, step, step >> 32)`` and the key
    ``(seed, seed >> 32)``, is below ``rate * 2^32``. All other elements are divided by ``1 - rate`` (inverted dropout).

    Attributes
    ----------
    rate
        Probability that an element is dropped, in [0, 1).
    seed
        Random seed, an integer of at most 64 bits.
    numbers
        The numbers of the training step, from `Backend.place`, of which the mask depends on ``step``.
    layer
        Number of the layer whose outputs are dropped; 0 for the input.
    """

    rate: float
    seed: int
    numbers: Any
    layer: int


class SoftmaxPart(Protocol):
    """A share of the vocabulary in a softmax that several processes compute (tensor parallelism), as its operations see it.

    Attributes
    ----------
    words
        The number of words of the whole softmax.
    parts
        The number of parts [n].
    """

    words: int
    parts: int

    def others(self, normalizers: Any) -> Any:
        """Exchange the logarithms of the normalizers: those of this part (B,) -> those of the others (n - 1, B), float64."""


class Recording(Protocol):
    """Training steps that a device does again and again."""

    def __call__(self, step: Callable[..., None], **arguments: Any) -> None:
        """Do a step: call ``step`` with the arguments on the device, or repeat what it did when it was last called.

        Parameters
        ----------
        step
            The function. With arguments of the same names and shapes it must always do the same operations on the same arrays,
            apart from those that it creates itself and does not keep. It must not wait for the device.
        arguments
            NumPy arrays and `StepNumbers`, whose content may change from call to call.
        """


class Backend(Protocol):
    """The operations of a device."""

    name: str
    softmax_bytes: int
    """Largest size in bytes of the B x V numbers of a softmax. Larger batches are divided into equal parts, one after another."""

    @property
    def full_precision(self) -> "Backend":
        """The full-precision backend, for evaluation: this one, unless it rounds the operands of products."""

    def release(self) -> None:
        """Free the memory that is kept between calls; on the CPU, that of the calling thread."""

    def connect(self, processes: "Communicator") -> "Communicator":
        """Return a communicator of the same processes that also takes arrays on the device. All processes must call this."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialized array on the device."""

    def upload(self, array: Any) -> Array:
        """Return a NumPy array on the device: on a GPU a copy, on the CPU the same array, of which later changes are visible.

        An array that is already on the device is returned itself.
        """

    def download(self, array: Array) -> Any:
        """Return an array of the device as a NumPy array. On the CPU this is the same array, on a GPU it is a copy."""

    def place(self, numbers: StepNumbers) -> Any:
        """Return the numbers of a training step as operations take them: on the device."""

    def recording(self) -> Recording:
        """Return a new recording, which has no steps yet."""

    def padded(self, rows: int) -> int:
        """Return how many rows to give an array that needs so many, so that the steps of a recording have few shapes."""

    def copy(self, values: Array, copied: Array, *, source: int = 0, target: int = 0) -> None:
        """Copy columns of ``values``, from column ``source`` on, to ``copied``, from column ``target`` on.

        The number of columns that are copied is the smaller of the numbers that both arrays have from there on.

        values (B, I) -> copied (B, J).
        """

    def clear(self, array: Array) -> None:
        """Set all elements of a contiguous array to 0."""

    def gather(
        self, embeddings: Array, contexts: Array, blocks: tuple[int, ...], inputs: Array, weights: Array | None = None
    ) -> None:
        """Look up the embeddings of context words, add up those of each block, and concatenate the sums: x = (x_1, ..., x_K).

        A context is divided into blocks of consecutive words. x_k is the sum of the embeddings of a block, divided by the square
        root of their number, which keeps the variance. A block of one word gives its embedding (Bengio 2003, section 2); a
        longer block gives a scaled average of words that are farther back (Sun & Iyyer 2021, section 3). With ``weights``, an
        embedding in a block of several words is first multiplied by the weight of its word. The id -1 means that there is no
        word; it counts as an embedding of zeros.

        embeddings (V + 1, m), contexts (B, n), ``blocks`` the K sizes of the blocks, whose sum is n, weights (V + 1,) ->
        inputs (B, K m).
        """

    def scatter_add(
        self,
        contexts: Array,
        blocks: tuple[int, ...],
        d_inputs: Array,
        d_embeddings: Array,
        weighted: tuple[Array, Array, Array] | None = None,
    ) -> None:
        """Backpropagate through `gather`: add the gradient of each context word to that of its embedding.

        With weights, ``weighted`` is the embeddings (V + 1, m), the weights (V + 1,), and the gradients of the weights, d_weights
        (V + 1,), which are added to, too. The id -1 gets no gradient. The result does not depend on the order in which threads
        run.

        contexts (B, n), ``blocks`` the K sizes of the blocks, d_inputs (B, K m) -> d_embeddings (V + 1, m), added to.
        """

    def mean_pool(self, embeddings: Array, words: Array, pooled: Array) -> None:
        """Average the embeddings of the words of each text (Iyyer et al. 2015, equation 1). A text without words gives zeros.

        embeddings (V + 1, m), words (B, L), where -1 follows the last word of a text -> pooled (B, m).
        """

    def mean_pool_backward(self, words: Array, d_pooled: Array, d_embeddings: Array) -> None:
        """Backpropagate through `mean_pool`. The result does not depend on the order in which threads run.

        words (B, L), d_pooled (B, m) -> d_embeddings (V + 1, m), added to.
        """

    def max_pool(self, embeddings: Array, words: Array, pooled: Array, sources: Array) -> None:
        """Take the maximum of each embedding dimension over the words of each text (Collobert et al. 2011, section 3.2.3).

        A text without words gives zeros. ``sources`` are the words whose embeddings have the maxima (the first of several words
        with the same number), or -1 for a text without words.

        embeddings (V + 1, m), words (B, L), where -1 follows the last word of a text -> pooled (B, m), sources (B, m) int32.
        """

    def max_pool_backward(self, sources: Array, d_pooled: Array, d_embeddings: Array) -> None:
        """Backpropagate through `max_pool`. The result does not depend on the order in which threads run.

        sources (B, m) int32, d_pooled (B, m) -> d_embeddings (V + 1, m), added to.
        """

    def put_rows(self, values: Array, rows: Array, array: Array) -> None:
        """Write rows of a matrix: array[rows] = values. `gather` with blocks of one word reads them.

        values (R, m), rows (R,) int32, all different but for -1, where the values are not written -> array (N, m).
        """

    def dropout(self, values: Array, dropout: Dropout, row: int, dropped: Array) -> None:
        """Apply dropout to activations in the forward pass, or, with the same mask, to their gradients in the backward pass.

        values (B, I), whose first row is row number ``row`` of the whole batch -> dropped (B, I), which may be ``values`` itself.
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
        """Backpropagate through `affine`.

        inputs (B, I), weight (O, I), outputs (B, O), d_outputs (B, O), which is used as scratch memory -> d_weight (O, I) and
        d_bias (O,), added to ``beta`` times their content, and d_inputs (B, I), overwritten.
        """

    def add(self, values: Array, total: Array) -> None:
        """Add ``values`` to ``total``, both (B, I)."""

    def normalize(self, values: Array, normalized: Array) -> None:
        """Normalize each row to mean 0 and standard deviation 1: layer normalization (Ba et al. 2016, equation 4).

        There is no gain and no bias, because the weights and biases of the next layer have the same effect (Xu et al. 2019 find
        no benefit in them). The standard deviation is computed as sqrt(variance + `NORMALIZE_EPSILON`).

        values (B, I) -> normalized (B, I).
        """

    def normalize_backward(self, values: Array, d_normalized: Array, d_values: Array) -> None:
        """Backpropagate through `normalize`.

        values (B, I), d_normalized (B, I) -> d_values (B, I), added to.
        """

    def output_losses(
        self,
        hidden: Array,
        weight: Array,
        bias: Array,
        rows: Array,
        targets: Array,
        losses: Array,
        part: SoftmaxPart | None = None,
    ) -> None:
        """Compute the loss -log softmax(hidden[row] weight^T + bias)[target] of each pair of a row and a target.

        Several targets may follow the same context; its normalizer is then computed only once. The B x V matrix of all logits
        is never stored.

        If the words are a ``part`` of those of a softmax, the normalizer is that of all words. A target in another part is -1,
        and its loss is 0. Only the CPU computes parts.

        hidden (B, H), weight (V, H), bias (V,), rows (T,) int32 in [0, B), targets (T,) int32 in [0, V) -> losses (T,), nats.
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
        part: SoftmaxPart | None = None,
        *,
        adversarial: float = 0.0,
    ) -> None:
        """Compute the forward and the backward pass of a softmax output layer in one operation.

        The gradients are those of ``scale`` times the sum over all rows of: the cross-entropy with the smoothed target
        (1 - smoothing) onehot + smoothing / V (Szegedy et al. 2016, section 7), plus penalty (log Z)^2, where Z is the sum of
        the exponentials of the logits (Devlin et al. 2014, section 2.4). The losses are -log p(target), without smoothing,
        penalty and scale. If the words are a ``part`` of those of a softmax, as for `output_losses`, d_hidden is a part of the
        sum, too.

        The objective is that with adversarial noise on the weights of the target (Wang et al. 2019, section 3): the noise of the
        norm r = ``adversarial`` |weight_target| that makes the objective largest has the direction of -hidden, so that it lowers
        the score of the target by r |hidden|. The gradients are those with r constant. The losses are without noise.

        hidden (B, H), weight (V, H), bias (V,), targets (B,) int32 -> losses (B,), nats, and d_hidden (B, H), both overwritten;
        d_weight (V, H) and d_bias (V,), added to ``beta`` times their content.
        """

    def replace_targets(self, log_probabilities: Array, targets: Array, factor: float, beta: float, d_scores: Array) -> None:
        """Compute how the gradient of a cross-entropy changes if a teacher's distribution replaces a share of the targets.

        The gradient by the scores of a softmax is its distribution less the target's. Replacing the share ``factor`` of a target
        by the teacher's distribution adds factor (onehot(target) - exp(log_probabilities)), which sums to 0 in each row.

        log_probabilities (B, V), of the teacher, targets (B,) int32 -> d_scores (B, V), added to ``beta`` times their content.
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
        """Compute the forward and the backward pass of an output layer with the loss of noise-contrastive estimation (NCE).

        With the scores s = hidden weight^T + bias, the loss of a row is softplus(-s_target) + sum over all words of
        noise softplus(s), so that the network learns to tell the target from the noise samples (Mnih & Teh 2012, equation 8).
        All rows share the noise samples (Zoph et al. 2016). The caller has subtracted log(k q(word)) from the bias, where k is
        the number of samples and q their distribution. The gradients are those of ``scale`` times the sum over all rows.

        hidden (B, H), weight (V, H), bias (V,), targets (B,) int32, noise (V,), which says how often each word was drawn ->
        losses (B,), nats, and d_hidden (B, H), both overwritten; d_weight (V, H) and d_bias (V,), added to ``beta`` times their
        content.
        """

    def unit_losses(self, scores: Array, targets: Array, loss: UnitLoss, scale: float, losses: Array, d_scores: Array) -> None:
        """Compute the losses of independent output units, and their gradients.

        For a score z with the target y, the losses are

        ``sigmoid``
            log(1 + e^z) - y z, the binary cross-entropy of the probability sigmoid(z); the derivative is sigmoid(z) - y.
        ``squared``, ``absolute``
            (z - y)^2 and |z - y|.
        ``hinge``
            max(0, 1 - y z), for y = -1 or 1.
        ``exponential``
            e^(-y z), for y = -1 or 1 (Freund & Schapire 1997).
        ``poisson``
            e^z - y z, the negative log-likelihood of a count y with the mean e^z, without the term log y!, which does not depend
            on the weights; the derivative is e^z - y.
        ``sigmoid_squared``, ``sigmoid_absolute``
            (s - y)^2 and |s - y| with s = sigmoid(z); by the chain rule, their derivatives have the factor s (1 - s).

        scores (B, O), targets (B, O) -> losses (B,), each the sum over the units, and d_scores (B, O), the derivatives times
        ``scale``.
        """

    def log_probabilities(self, hidden: Array, weight: Array, bias: Array, log_probabilities: Array) -> None:
        """Compute log softmax(hidden weight^T + bias) of all words.

        hidden (B, H), weight (V, H), bias (V,) -> log_probabilities (B, V), nats.
        """

    def norm(self, gradients: Iterable[Array]) -> float:
        """Return the L2 norm of all gradients, arrays of any shapes, together; NaN or infinity if one is not finite.

        Squares have the dtype of the gradients. Those of float32 are infinite from 1.9e19 on.
        """

    def clip_factor(self, gradients: Iterable[Array], limit: float, factor: Array) -> None:
        """Compute the factor that clips the gradients: min(1, limit / norm), where ``norm`` is the L2 norm of all of them.

        The factor is NaN if a gradient is not finite.

        gradients, arrays of any shapes -> factor (1,).
        """

    def add_penalty(self, weight: Array, gradient: Array, l1: float, l2: float) -> None:
        """Add the gradient of the penalty l1 |w| + l2 w^2 / 2, summed over all weights w of an array.

        The gradient is l1 sign(w) + l2 w, where sign(0) is 0.

        weight of any shape -> gradient of the same shape, added to.
        """

    def momentum_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        velocities: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        momentum: float,
        nesterov: bool,
    ) -> None:
        """Update ``weights`` and ``velocities`` by a step of gradient descent with momentum.

        This and the next three operations update several arrays of weights in the same way. They minimize along
        g = scale gradient + l2 weight, where ``scale`` (1,) is the factor of `clip_factor`. The gradient and the state of the
        optimizer have the shape of their weights, which may be any shape. ``numbers`` are those of the step, from `place`. The
        formulas are in `fflm.backend.formulas`.
        """

    def adagrad_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        totals: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        epsilon: float,
    ) -> None:
        """Update ``weights`` and the sums of squared gradients ``totals`` by a step of AdaGrad; see `momentum_step`."""

    def adagrad_step_rows(
        self,
        gradient: Array,
        rows: Array,
        weight: Array,
        total: Array,
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        epsilon: float,
    ) -> None:
        """Make a step of AdaGrad, as `adagrad_step` does, for some rows of an array.

        gradient (R, m), rows (R,) int32, all different but for -1, which is skipped -> weight and total (N, m), of which these
        rows are updated.
        """

    def rmsprop_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        means: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        numbers: Any,
        decay: float,
        epsilon: float,
    ) -> None:
        """Update ``weights`` and the moving averages of squared gradients ``means`` by a step of RMSProp; see `momentum_step`."""

    def adam_step(
        self,
        weights: Sequence[Array],
        gradients: Sequence[Array],
        firsts: Sequence[Array],
        seconds: Sequence[Array],
        *,
        scale: Array,
        l2: float,
        shrinks: bool,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        """Update ``weights`` and the moments ``firsts`` and ``seconds`` by a step of Adam; see `momentum_step`.

        With ``shrinks``, a weight is first multiplied by 1 - `StepNumbers.shrink`.
        """

    def adam_take_rows(
        self,
        weight: Array,
        first: Array,
        second: Array,
        rows: Array,
        idle: Array,
        keeps: Array,
        taken: Array,
        *,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        """Copy rows of ``weight`` as they are after `adam_catch_up`, without changing the weights and the moments.

        weight, first and second (N, m), rows (R,) int32; idle (R,), keeps (R,) and the other numbers are those of `adam_catch_up`
        -> taken (R, m), where a row number of -1 gives zeros.
        """

    def adam_step_rows(
        self,
        taken: Array,
        gradient: Array,
        rows: Array,
        idle: Array,
        weight: Array,
        first: Array,
        second: Array,
        *,
        scale: Array,
        l2: float,
        shrinks: bool,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        """Make a step of Adam, as `adam_step` does, for the rows of ``weight`` that `adam_take_rows` has copied.

        taken (R, m), gradient (R, m), rows (R,) int32, all different but for -1, which is skipped; idle (R,) as for that one
        -> weight, first and second (N, m), of which these rows are updated.
        """

    def adam_catch_up(
        self,
        weight: Array,
        first: Array,
        second: Array,
        idle: Array,
        keeps: Array,
        *,
        numbers: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
    ) -> None:
        """Apply the last steps of Adam, which were skipped because a row had no gradient in them.

        In k steps without a gradient, the first moment m moves a weight by beta1 m + ... + beta1^k m, multiplied by the learning
        rate and divided by the square root of the second moment. The latter is treated as constant during these steps, because
        it only shrinks by the factor beta2 in each. `fflm.training.lazy_adam` says why this is done. ``numbers`` are those of the
        last of these steps, from `place`.

        idle (R,) floats, the number k >= 0 of skipped steps of each row, and keeps (R,), the product of 1 - shrink over these
        steps -> weight, first and second (R, m), all updated.
        """
