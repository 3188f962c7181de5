"""The shape of a network."""

import dataclasses
from dataclasses import dataclass
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
        Context words [n - 1].
    embedding
        Size of a word's embedding [m].
    hidden
        Sizes of the hidden layers [h]; may be empty.
    activation
        Of the hidden layers.
    direct
        Whether the embeddings also reach the softmax directly [W].
    tied
        Whether the softmax uses the embeddings as its weights. What reaches the softmax is then projected linearly to the
        embedding size, unless it has that size already.
    dropout, embedding_dropout
        Share of the hidden layers' outputs, and of the concatenated embeddings, that is dropped in training.

    Raises
    ------
    FflmError
        If a value makes no sense.
    """

    vocabulary: int
    window: int = 5
    embedding: int = 128
    hidden: tuple[int, ...] = (256,)
    activation: Activation = "tanh"
    direct: bool = False
    tied: bool = False
    dropout: float = 0.3
    embedding_dropout: float = 0.1

    def __post_init__(self) -> None:
        sizes = {"vocabulary": self.vocabulary, "window": self.window, "embedding": self.embedding}
        for name, size in [*sizes.items(), *(("hidden", size) for size in self.hidden)]:
            if size < 1:
                raise FflmError(f"{name} {size} is too small: give at least 1")
        if self.activation not in ACTIVATIONS:
            raise FflmError(f"unknown activation {self.activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        for name, rate in (("dropout", self.dropout), ("embedding dropout", self.embedding_dropout)):
            if not 0 <= rate < 1:
                raise FflmError(f"{name} {rate} is out of range: give a share from 0 up to, not including, 1")

    @property
    def inputs(self) -> int:
        """Width of the concatenated embeddings [(n - 1) m]."""
        return self.window * self.embedding

    @property
    def features(self) -> int:
        """Width of what the hidden layers, and the direct connections if any, offer to the softmax."""
        if not self.hidden:
            return self.inputs
        return self.hidden[-1] + (self.inputs if self.direct else 0)

    @property
    def projected(self) -> bool:
        """Whether a linear projection leads from the features to the tied softmax."""
        return self.tied and self.features != self.embedding

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Make a configuration from `to_dict`'s result."""
        return cls(**{**fields, "hidden": tuple(fields["hidden"])})
