"""The shape of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeAlias

from msgspec import Meta

from fflm.arguments import Fraction, Many, Settings, Size
from fflm.backend.protocol import Activation, ActivationFunction, UnitLoss
from fflm.errors import FflmError

Input = Literal["window", "mean", "max", "numbers"]
Output = Literal["softmax", UnitLoss]

WORDS = 2**31 - 2
"""Words of the largest vocabulary: ids, of which the padding has one, too, are int32."""

CELLS = 2**26
"""Maximum size of a part of a batch, if the user does not choose it: numbers in its examples and in their activations."""

LAYERS, BLOCKS = 1000, 100
"""Maximum number of hidden layers, and maximum number of averages and of bands."""

Words: TypeAlias = Annotated[int, Meta(ge=0, le=WORDS)]


@dataclass(frozen=True)
class NetworkConfig(Settings):
    """A feedforward network, such as a language model (Bengio et al. 2003, section 2).

    Raises
    ------
    FflmError
        If a value is out of range, or values contradict each other.

    Notes
    -----
    In Bengio's letters, the vocabulary is |V|, the window n - 1, the embedding m, a hidden layer h, the direct connections W. The
    input has one more word than the vocabulary, the padding ``<s>``.

    ``averages``: Sun and Iyyer 2021, section 3. ``bands``: Grave et al. 2017; words before the first cutoff are predicted
    directly, and the others given their band. ``residual``: h + f(d + H norm(h)) (He et al. 2016; Ba et al. 2016; pre-activation
    order as in Xiong et al. 2020). ``tied``: if the number of hidden outputs is not the embedding dimension, they are projected
    linearly to it.

    ``negative_slope``: the factor gamma of leaky_relu, gamma z below 0, and of elu, gamma (e^z - 1) below 0.

    ``input``: with ``window``, the embeddings of the context words are concatenated, with averages of earlier ones; with ``mean``
    and ``max``, the embeddings of the words of a text are averaged (Iyyer et al. 2015; Joulin et al. 2017), or pooled by the
    maximum of each dimension (Collobert et al. 2011); ``numbers`` are numeric features.

    ``output``: ``softmax`` has the probabilities of classes, and the loss is the cross-entropy; ``sigmoid`` has independent
    probabilities, with binary cross-entropy; ``squared`` and ``absolute`` have numbers, with the error of this name; ``hinge``
    and ``exponential`` have scores for targets of -1 or 1, with the loss of this name; ``poisson`` has means e^z of counts, with
    their negative log-likelihood; ``sigmoid_squared`` and ``sigmoid_absolute`` have the outputs of a sigmoid, with squared or
    absolute error.
    """

    vocabulary: Annotated[Words, Meta(description="Vocabulary size of the input, and of the output of a language model.")]
    window: Annotated[Size, Meta(description="Number of context words whose embeddings are concatenated (Bengio's n - 1).")] = 8
    embedding: Annotated[Size, Meta(description="Embedding dimension.")] = 128
    hidden: Annotated[tuple[Size, ...], Meta(max_length=LAYERS, description="Sizes of the hidden layers, such as 256,128.")] = (
        512,
    )
    activation: Annotated[
        Activation | Annotated[tuple[Activation, ...], Meta(max_length=LAYERS)],
        Meta(description="Activation function of the hidden layers, or of each of them, such as relu,tanh."),
    ] = "relu"
    negative_slope: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Slope of leaky_relu below 0, by default 0.01, or of elu just below 0, by default 1."),
    ] = None
    averages: Annotated[
        tuple[Size, ...],
        Meta(
            max_length=BLOCKS,
            description="Sizes of word blocks before the window, such as 10,30; the network sees the average embedding of each.",
        ),
    ] = ()
    residual: Annotated[
        bool,
        Meta(
            description="Residual connections: add each hidden layer's normalized input to its output; layers need equal sizes."
        ),
    ] = False
    direct: Annotated[bool, Meta(description="Also connect the embeddings directly to the output layer.")] = False
    tied: Annotated[bool, Meta(description="Tie the output weights to the embeddings.")] = True
    bands: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=WORDS)], ...],
        Meta(
            max_length=BLOCKS,
            description="Adaptive softmax: cutoffs between frequency bands, such as 2000,10000; not with tied weights.",
        ),
    ] = ()
    dropout: Annotated[Fraction, Meta(description="Dropout probability of the hidden layers.")] = 0.4
    embedding_dropout: Annotated[Fraction, Meta(description="Dropout probability of the input.")] = 0.2
    input: Annotated[Input, Meta(description="Type of the input layer.")] = "window"
    numbers: Annotated[
        int, Meta(ge=0, le=10_000_000), Meta(description="Number of features per example, if the input is numbers.")
    ] = 0
    outputs: Annotated[
        Many | None, Meta(description="Number of output units; null for a language model, which has one per word.")
    ] = None
    output: Annotated[Output, Meta(description="Type of the output layer, which determines the loss.")] = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.activation, tuple) and len(self.activation) == 1:
            object.__setattr__(self, "activation", self.activation[0])
        if isinstance(self.activation, tuple) and len(self.activation) != len(self.hidden):
            count = f"{len(self.activation)} for {len(self.hidden)} hidden layers"
            raise FflmError(f"`activation` must be one, or one for each hidden layer, not {count}")
        if self.outputs is None and (self.input != "window" or self.output != "softmax"):
            raise FflmError("only a window and a softmax make a language model: give the number of outputs")
        for name in ("tied", "bands", "averages"):
            if self.outputs is not None and getattr(self, name):
                raise FflmError(f"{name} is for language models only: leave it out")
        name = "numbers" if self.input == "numbers" else "vocabulary"
        if getattr(self, name) < 1:
            raise FflmError(f"`{name}` must be an integer of at least 1, not {getattr(self, name)}")
        if self.bands and self.tied:
            raise FflmError("an adaptive softmax has weights of its own: leave out `bands`, or give `tied=False`")
        if list(self.bands) != sorted(set(self.bands)):
            raise FflmError(f"`bands` must ascend, such as 2000, 10000, not {', '.join(map(str, self.bands))}")
        if self.residual and len(set(self.hidden)) > 1:
            raise FflmError(f"residual layers must be of one size, not {self.hidden}: give equal sizes, or no residual layers")

    @property
    def context(self) -> int:
        """Context words in all, those of the averages included."""
        return self.window + sum(self.averages)

    @property
    def classes(self) -> int:
        """Units of the output layer: classes, or words."""
        return self.vocabulary if self.outputs is None else self.outputs

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The name of each hidden layer's activation."""
        return self.activation if isinstance(self.activation, tuple) else (self.activation,) * len(self.hidden)

    def activation_of(self, layer: int) -> ActivationFunction:
        """Return the activation of hidden layer number ``layer``, from 1."""
        name = self.activations[layer - 1]
        return name if self.negative_slope is None else (name, self.negative_slope)

    @property
    def sparse(self) -> bool:
        """Whether a step with an exact loss touches few rows of the embeddings, which are input alone."""
        return bool(self.bands) or (self.outputs is not None and self.input != "numbers")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the blocks that a context is cut into, the oldest first: `Backend.gather` adds the embeddings of each."""
        return *reversed(self.averages), *(1,) * self.window

    @property
    def inputs(self) -> int:
        """Width of the concatenated embeddings, and averages of embeddings [(n - 1) m]; or of what else the first layer reads."""
        if self.input == "window":
            return (len(self.averages) + self.window) * self.embedding
        return self.numbers if self.input == "numbers" else self.embedding

    def rows(self, most: int) -> int:
        """Return how many examples may go through the network at a time: fewer than ``most`` if it is very wide."""
        return max(1, min(most, CELLS // (self.context + self.inputs + sum(self.hidden))))

    @property
    def hidden_width(self) -> int:
        """Width of what the hidden layers, and the direct connections if any, offer to the softmax."""
        if not self.hidden:
            return self.inputs
        return self.hidden[-1] + (self.inputs if self.direct else 0)

    @property
    def softmaxes(self) -> tuple[int, ...]:
        """Words, or classes, of the softmax, or of each of the adaptive one: the first has the most frequent words and the bands.

        Bands that begin beyond the vocabulary do not exist.
        """
        borders = (*(first for first in self.bands if first < self.vocabulary), self.classes)
        sizes = [high - low for low, high in pairwise(borders)]
        return borders[0] + len(sizes), *sizes

    @property
    def projected(self) -> bool:
        """Whether a linear projection leads from the hidden outputs to the tied softmax."""
        return self.tied and self.hidden_width != self.embedding

    @classmethod
    def feedforward(cls, numbers: int, hidden: Sequence[int] | int, outputs: int, **fields: Any) -> Self:
        """Return the network of the textbooks, from numbers to outputs; nothing is dropped unless ``fields`` say so."""
        plain = {"hidden": hidden, "tied": False, "dropout": 0.0, "embedding_dropout": 0.0, "input": "numbers"}
        return cls(0, numbers=numbers, outputs=outputs, **{**plain, **fields})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; of a language model, as every network was once, without those on input and output."""
        others = ("input", "numbers", "outputs", "output") if self.outputs is None else ()
        return {name: value for name, value in super().to_dict().items() if name not in others}
