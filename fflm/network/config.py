"""The configuration of a network: its type of input and output, its layers and their sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeAlias

from msgspec import Meta

from fflm.arguments import Fraction, Many, Settings, Size
from fflm.backend.protocol import Activation, ActivationFunction, UnitLoss
from fflm.errors import FflmError, SettingsError

Input = Literal["window", "mean", "max", "numbers"]
Output = Literal["softmax", UnitLoss]

WORDS = 2**31 - 2
"""Maximum size of a vocabulary. Ids are int32, and the padding also has one."""

CELLS = 2**26
"""Maximum size of an evaluation batch: the numbers in its examples and in their activations together."""

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
    In the notation of Bengio et al., the vocabulary size is |V|, the window n - 1, the embedding dimension m, the size of the
    hidden layer h, and the weights of the direct connections are W. The embeddings have one row more than the vocabulary, for the
    padding ``<s>``.

    ``averages`` are those of Sun and Iyyer 2021, section 3. With ``word_weights``, they are weighted: the network learns which
    words say much about what follows, where Arora et al. 2017 take a function of their frequency.

    ``bands`` make the softmax adaptive (Grave et al. 2017): words before the first cutoff are predicted directly; for all other
    words, first their band is predicted, and then the word within the band.

    ``residual``: a layer computes h + f(d + H norm(h)) (He et al. 2016), where norm is layer normalization (Ba et al. 2016) and
    comes before the weights, as in Xiong et al. 2020.

    ``tied``: if the number of hidden outputs differs from the embedding dimension, a linear projection is inserted.

    ``negative_slope`` is the factor gamma of leaky_relu, which is gamma z below 0, and of elu, which is gamma (e^z - 1) below 0.

    ``input``: with ``window``, the embeddings of the context words are concatenated, together with averages of the embeddings of
    earlier words. With ``mean`` and ``max``, the embeddings of the words of a text are averaged (Iyyer et al. 2015; Joulin et al.
    2017), or pooled by the maximum of each dimension (Collobert et al. 2011). With ``numbers``, the input are numeric features.

    ``output``: the outputs of ``softmax`` are the probabilities of classes, and the loss is the cross-entropy. Those of
    ``sigmoid`` are independent probabilities, with the binary cross-entropy. ``squared`` and ``absolute`` predict numbers, with
    the error of this name. ``hinge`` and ``exponential`` predict scores for targets of -1 or 1, with the loss of this name.
    ``poisson`` predicts the means e^z of counts, with their negative log-likelihood. ``sigmoid_squared`` and
    ``sigmoid_absolute`` have sigmoid outputs, with the squared or the absolute error.
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
    word_weights: Annotated[bool, Meta(description="Multiply embeddings in averages by a learned weight of each word.")] = False
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
            raise SettingsError(f"`activation` must be one, or one for each hidden layer, not {count}")
        if self.outputs is None and (self.input != "window" or self.output != "softmax"):
            raise SettingsError("only a window and a softmax make a language model: give the number of outputs")
        for name in ("tied", "bands", "averages"):
            if self.outputs is not None and getattr(self, name):
                raise SettingsError(f"{name} is for language models only: leave it out")
        name = "numbers" if self.input == "numbers" else "vocabulary"
        if getattr(self, name) < 1:
            raise FflmError(f"`{name}` must be an integer of at least 1, not {getattr(self, name)}")
        if self.word_weights and not self.averages:
            raise SettingsError("weights of words are for averages: leave out `word_weights`, or give `averages`")
        if self.bands and self.tied:
            raise SettingsError("an adaptive softmax has weights of its own: leave out `bands`, or give `tied=False`")
        if list(self.bands) != sorted(set(self.bands)):
            raise SettingsError(f"`bands` must ascend, such as 2000, 10000, not {', '.join(map(str, self.bands))}")
        if self.residual and len(set(self.hidden)) > 1:
            raise SettingsError(
                f"residual layers must be of one size, not {self.hidden}: give equal sizes, or no residual layers"
            )

    @property
    def context(self) -> int:
        """Number of context words, including those of the averages."""
        return self.window + sum(self.averages)

    @property
    def classes(self) -> int:
        """Number of units of the output layer; of a language model, its vocabulary size."""
        return self.vocabulary if self.outputs is None else self.outputs

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The names of the activation functions of the hidden layers, one for each layer."""
        return self.activation if isinstance(self.activation, tuple) else (self.activation,) * len(self.hidden)

    def activation_of(self, layer: int) -> ActivationFunction:
        """Return the activation function of hidden layer number ``layer``, counted from 1."""
        name = self.activations[layer - 1]
        return name if self.negative_slope is None else (name, self.negative_slope)

    @property
    def sparse(self) -> bool:
        """Whether a training step with the exact loss uses only a few rows of the embeddings.

        This is so with an adaptive softmax, and in a classifier that reads words.
        """
        return bool(self.bands) or (self.outputs is not None and self.input != "numbers")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the blocks of context words, the oldest first, as for `Backend.gather`: averages, then single words."""
        return *reversed(self.averages), *(1,) * self.window

    @property
    def inputs(self) -> int:
        """Number of inputs of the first layer: the width of concatenated embeddings [(n - 1) m], or of another type of input."""
        if self.input == "window":
            return (len(self.averages) + self.window) * self.embedding
        return self.numbers if self.input == "numbers" else self.embedding

    def rows(self, most: int) -> int:
        """Return how many examples to evaluate at a time: ``most``, or fewer if the network is very wide."""
        return max(1, min(most, CELLS // (self.context + self.inputs + sum(self.hidden))))

    @property
    def hidden_width(self) -> int:
        """Number of hidden outputs: those of the last hidden layer, and the inputs of direct connections, if there are any."""
        if not self.hidden:
            return self.inputs
        return self.hidden[-1] + (self.inputs if self.direct else 0)

    @property
    def softmaxes(self) -> tuple[int, ...]:
        """Number of units of each softmax: there is one, or, in an adaptive softmax, one more for each band.

        The units of the first softmax are the most frequent words, and then the bands. Bands that would begin beyond the end of
        the vocabulary do not exist.
        """
        borders = (*(first for first in self.bands if first < self.vocabulary), self.classes)
        sizes = [high - low for low, high in pairwise(borders)]
        return borders[0] + len(sizes), *sizes

    @property
    def projected(self) -> bool:
        """Whether there is a linear projection between the hidden outputs and a tied output layer."""
        return self.tied and self.hidden_width != self.embedding

    @classmethod
    def feedforward(cls, numbers: int, hidden: Sequence[int] | int, outputs: int, **fields: Any) -> Self:
        """Return the configuration of a plain feedforward network over numeric features, without dropout.

        Parameters
        ----------
        numbers
            Number of features.
        hidden
            Sizes of the hidden layers.
        outputs
            Number of output units.
        fields
            Other fields, and those that differ from a plain network.
        """
        plain = {"hidden": hidden, "tied": False, "dropout": 0.0, "embedding_dropout": 0.0, "input": "numbers"}
        return cls(0, numbers=numbers, outputs=outputs, **{**plain, **fields})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        For a language model, the fields about input and output are left out, because files of early versions do not have them.
        """
        others = ("input", "numbers", "outputs", "output") if self.outputs is None else ()
        return {name: value for name, value in super().to_dict().items() if name not in others}
