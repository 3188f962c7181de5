"""What a training run does, in one value that is stored with the model."""

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args

from fflm.errors import FflmError

OptimizerName = Literal["sgd", "adagrad", "rmsprop", "adam", "adamw"]
LossName = Literal["exact", "sampled", "nce"]
ScheduleName = Literal["constant", "inverse", "plateau", "cosine"]


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a run.

    Attributes
    ----------
    epochs
        Passes over the training text, at most.
    batch_size
        Predicted words per update: 1 is stochastic, the size of the text is batch gradient descent.
    optimizer, rate
        The update rule and its (peak) learning rate.
    momentum, nesterov
        Of ``sgd``.
    epsilon
        What Adam, RMSProp and AdaGrad add to the root of the mean square by which they divide. A rare word's gradient through the
        softmax is tiny and nearly the same in every batch; with an epsilon far below it, each such step is as long as a
        frequent word's.
    weight_decay
        Strength of the pull of weights, not of biases, towards zero: added to the gradient (L2, as in Bengio 2003, equation 4);
        with ``adamw`` decoupled from it. Added to the gradient, it pulls at the rows that the step touches only.
    schedule
        How the rate changes: ``constant``; ``inverse``, rate / (1 + decay t) after t examples (Bengio 2003, section 3.1);
        ``plateau``, halved whenever validation does not improve; ``cosine``, down to zero over all epochs.
    decay
        Of the schedule ``inverse``, per example.
    warmup
        Share of all steps over which ``cosine`` first rises to the rate.
    clip
        Largest norm of the gradient, longer ones are scaled down to it; 0 for no limit.
    smoothing
        Label smoothing: share of the target's probability that is spread over the vocabulary.
    loss
        ``exact``: cross-entropy over the whole vocabulary. ``sampled``: over the batch's targets and a sample, each score less
        the log of the word's chance to be among them (Bengio & Senécal 2008; Jean et al. 2015, section 3.2). ``nce``:
        noise-contrastive estimation (Mnih & Teh 2012). The cost of these two does not grow with the vocabulary.
    samples
        Words drawn a batch by ``sampled`` and ``nce``, as often as they occur in the text.
    exact_end
        Share of all steps, the last ones, that are exact all the same.
    self_normalise
        Strength of the penalty (log Z)^2 on the softmax's normaliser, so that probabilities can be had without it (Devlin et al.
        2014); not with ``nce``, which normalises by itself.
    patience
        Evaluations without improvement after which training stops; 0 for never.
    evaluate_every
        Steps between evaluations; 0 for once an epoch.
    frozen
        Whether the embeddings stay as they are.
    seed
        Of initial weights, order of examples and dropout.
    """

    epochs: int = 6
    batch_size: int = 256
    optimizer: OptimizerName = "adamw"
    rate: float = 3e-3
    momentum: float = 0.0
    nesterov: bool = False
    epsilon: float = 1e-5
    weight_decay: float = 0.2
    schedule: ScheduleName = "cosine"
    decay: float = 1e-8
    warmup: float = 0.05
    clip: float = 1.0
    smoothing: float = 0.0
    loss: LossName = "exact"
    samples: int = 512
    exact_end: float = 0.0
    self_normalise: float = 0.0
    patience: int = 3
    evaluate_every: int = 0
    frozen: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", OptimizerName), ("loss", LossName), ("schedule", ScheduleName)):
            if getattr(self, name) not in get_args(choices):
                raise FflmError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}")
        limits = {
            "epochs": (1, math.inf), "batch_size": (1, math.inf), "momentum": (0, 1), "weight_decay": (0, math.inf),
            "decay": (0, math.inf), "warmup": (0, 1), "clip": (0, math.inf), "smoothing": (0, 1), "samples": (1, 2**31),
            "exact_end": (0, 1), "self_normalise": (0, math.inf), "patience": (0, math.inf), "evaluate_every": (0, math.inf),
            "seed": (0, 2**63),
        }  # fmt: skip
        whole = {field.name for field in dataclasses.fields(self) if field.type in ("int", int)}
        for name in (*limits, "rate", "epsilon"):
            value = getattr(self, name)
            if not isinstance(value, Integral if name in whole else Real):
                raise FflmError(f"{name.replace('_', ' ')} {value!r} is no {'whole ' if name in whole else ''}number: give one")
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value < high:
                bounds = f"at least {low}" + (f" and below {high}" if high < math.inf else "")
                raise FflmError(f"{name.replace('_', ' ')} {value} is out of range: give {bounds}")
        for name in ("rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise FflmError(f"{name} {getattr(self, name)} is out of range: give a positive number")

    @property
    def decoupled(self) -> bool:
        """Whether weights decay apart from their gradients."""
        return self.optimizer == "adamw" and self.weight_decay > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Make settings from `to_dict`'s result."""
        return cls(**fields)
