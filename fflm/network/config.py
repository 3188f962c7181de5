"""The shape of a network."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from fflm.backend.protocol import ACTIVATIONS, Activation
from fflm.errors import FflmError


@dataclass(frozen=True)
class NetworkConfig:
    """A feedforward neural language model (Bengio et al. 2003, section 2; his letters in brackets).

    Attributes
    ----------
    vocabulary
        Words that can be predicted [|V|]. The input knows one more, the padding ``<s>``.
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
        Share of the hidden layers' outputs, and of the concatenated embeddings, that is dropped in training.

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

    def __post_init__(self) -> None:
        sizes = {"vocabulary": self.vocabulary, "window": self.window, "embedding": self.embedding}
        lists = {"averages": self.averages, "hidden": self.hidden}
        for name, size in [*sizes.items(), *((name, size) for name, several in lists.items() for size in several)]:
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
            if not 0 <= rate < 1:
                raise FflmError(f"{name} {rate} is out of range: give a share from 0 up to, not including, 1")

    @property
    def context(self) -> int:
        """Context words in all, those of the averages included."""
        return self.window + sum(self.averages)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the blocks that a context is cut into, the oldest first: `Backend.gather` adds the embeddings of each."""
        return *reversed(self.averages), *(1,) * self.window

    @property
    def inputs(self) -> int:
        """Width of the concatenated embeddings, and averages of embeddings [(n - 1) m]."""
        return len(self.blocks) * self.embedding

    @property
    def features(self) -> int:
        """Width of what the hidden layers, and the direct connections if any, offer to the softmax."""
        if not self.hidden:
            return self.inputs
        return self.hidden[-1] + (self.inputs if self.direct else 0)

    @property
    def softmaxes(self) -> tuple[int, ...]:
        """Words of the softmax, or of each of the adaptive one: the first has the most frequent words and the bands.

        Bands that begin beyond the vocabulary do not exist.
        """
        borders = (*(first for first in self.bands if first < self.vocabulary), self.vocabulary)
        sizes = [high - low for low, high in pairwise(borders)]
        return borders[0] + len(sizes), *sizes

    @property
    def projected(self) -> bool:
        """Whether a linear projection leads from the features to the tied softmax."""
        return self.tied and self.features != self.embedding

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **dataclasses.asdict(self),
            "averages": list(self.averages),
            "hidden": list(self.hidden),
            "bands": list(self.bands),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Make a configuration from `to_dict`'s result."""
        fields = {"bands": (), **fields}  # which models from before them lack
        return cls(**{**fields, **{name: tuple(fields[name]) for name in ("averages", "hidden", "bands")}})
