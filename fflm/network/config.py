"""The shape of a network."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args

from fflm.backend.protocol import ACTIVATIONS, Activation
from fflm.errors import FflmError

Input = Literal["window", "mean", "max", "numbers"]
Output = Literal["softmax", "sigmoid", "squared", "absolute", "hinge"]


@dataclass(frozen=True)
class NetworkConfig:
    """A feedforward network, such as a language model (Bengio et al. 2003, section 2; his letters in brackets).

    Attributes
    ----------
    vocabulary
        Words of the input, and those that can be predicted [|V|]. The input knows one more, the padding ``<s>``. 0 if the input
        is numbers.
    window
        Context words that are seen one by one [n - 1].
    averages
        Sizes of the blocks of words before the window, from it backwards, of each of which the network sees an average. May be
        empty (Sun & Iyyer 2021, section 3).
    embedding
        Size of a word's embedding [m].
    hidden
        Sizes of the hidden layers [h]; may be empty.
    activation
        Of the hidden layers.
    residual
        Whether each hidden layer after the first adds its outputs to what the layer before it has given, and all that is read
        from such a sum is normalised: h + f(d + H norm(h)) (He et al. 2016; Ba et al. 2016; the order is that of Xiong et al.
        2020). The hidden layers must be of one size.
    direct
        Whether the embeddings also reach the softmax directly [W].
    tied
        Whether the softmax uses the embeddings as its weights. What reaches the softmax is then projected linearly to the
        embedding size, unless it has that size already.
    bands
        First words of the frequency bands of an adaptive softmax, such as (2000, 10000): the words before the first are predicted
        at once, the others after their band (Grave et al. 2017). Empty for one softmax. Not with ``tied``.
    dropout, embedding_dropout
        Share of the hidden layers' outputs, and of the inputs (the concatenated or pooled embeddings, or the numbers), that is
        dropped in training.
    input
        What the first layer reads: ``window``, the concatenated embeddings of so many words, and averages; ``mean`` or ``max``,
        the embeddings of a text's words, however many, averaged (Iyyer et al. 2015; Joulin et al. 2017), or the largest value of
        each dimension (Collobert et al. 2011); ``numbers``, plain features.
    numbers
        How many numbers an example has where they are the input.
    outputs
        Units of the output layer; None for a language model, which has one for each word.
    output
        What the outputs are, and the loss that goes with it: ``softmax``, probabilities of which one is right, cross-entropy;
        ``sigmoid``, each a probability of its own, binary cross-entropy; ``squared`` and ``absolute``, numbers, with that error;
        ``hinge``, scores whose signs are to be those of the targets, -1 or 1.

    Raises
    ------
    FflmError
        If a value makes no sense.
    """

    vocabulary: int
    window: int = 8
    embedding: int = 128
    hidden: tuple[int, ...] = (512,)
    activation: Activation = "relu"
    averages: tuple[int, ...] = ()
    residual: bool = False
    direct: bool = False
    tied: bool = True
    bands: tuple[int, ...] = ()
    dropout: float = 0.4
    embedding_dropout: float = 0.2
    input: Input = "window"
    numbers: int = 0
    outputs: int | None = None
    output: Output = "softmax"

    def __post_init__(self) -> None:
        for name, choices in (("input", Input), ("output", Output)):
            if getattr(self, name) not in get_args(choices):
                raise FflmError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}")
        sizes = {"vocabulary": self.vocabulary, "window": self.window, "embedding": self.embedding}
        if self.input == "numbers":
            sizes = {"numbers": self.numbers}
        if self.outputs is not None:
            sizes["outputs"] = self.outputs
        elif self.input != "window" or self.output != "softmax":
            raise FflmError("only a window and a softmax make a language model: give the number of outputs")
        for name in ("tied", "bands", "averages"):
            if self.outputs is not None and getattr(self, name):
                raise FflmError(f"{name} is for language models only: leave it out")
        lists = {"averages": self.averages, "hidden": self.hidden}
        for name, size in [*sizes.items(), *((name, size) for name, several in lists.items() for size in several)]:
            if not isinstance(size, Integral):
                raise FflmError(f"{name} {size!r} is no whole number: give one")
            if size < 1:
                raise FflmError(f"{name} {size} is too small: give at least 1")
        if self.bands and self.tied:
            raise FflmError("the bands of an adaptive softmax have weights of their own: leave them out, or give --no-tied")
        if list(self.bands) != sorted(set(self.bands)) or (self.bands and self.bands[0] < 1):
            raise FflmError(f"the first words of bands must ascend from at least 1, not {self.bands}: give such as 2000,10000")
        if self.residual and len(set(self.hidden)) > 1:
            raise FflmError(f"residual layers must be of one size, not {self.hidden}: give equal sizes, or no residual layers")
        if self.activation not in ACTIVATIONS:
            raise FflmError(f"unknown activation {self.activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        for name, rate in (("dropout", self.dropout), ("embedding dropout", self.embedding_dropout)):
            if not (isinstance(rate, Real) and 0 <= rate < 1):
                raise FflmError(f"{name} {rate} is out of range: give a share from 0 up to, not including, 1")

    @property
    def context(self) -> int:
        """Context words in all, those of the averages included."""
        return self.window + sum(self.averages)

    @property
    def classes(self) -> int:
        """Units of the output layer: classes, or words."""
        return self.vocabulary if self.outputs is None else self.outputs

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
            return len(self.blocks) * self.embedding
        return self.numbers if self.input == "numbers" else self.embedding

    @property
    def features(self) -> int:
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
        """Whether a linear projection leads from the features to the tied softmax."""
        return self.tied and self.features != self.embedding

    @classmethod
    def feedforward(cls, numbers: int, hidden: tuple[int, ...], outputs: int, **fields: Any) -> Self:
        """Return the network of the textbooks, from numbers to outputs; nothing is dropped unless ``fields`` say so."""
        plain = {"tied": False, "dropout": 0.0, "embedding_dropout": 0.0, "input": "numbers"}
        return cls(0, numbers=numbers, hidden=hidden, outputs=outputs, **{**plain, **fields})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        fields = dataclasses.asdict(self)
        if self.outputs is None:  # a language model, as every network was once
            fields = {name: value for name, value in fields.items() if name not in ("input", "numbers", "outputs", "output")}
        return {
            **fields,
            "averages": list(self.averages),
            "hidden": list(self.hidden),
            "bands": list(self.bands),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Make a configuration from `to_dict`'s result."""
        fields = {"bands": (), **fields}  # which models from before them lack
        return cls(**{**fields, **{name: tuple(fields[name]) for name in ("averages", "hidden", "bands")}})
