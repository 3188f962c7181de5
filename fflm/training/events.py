"""What happens during training, as values."""

from dataclasses import dataclass
from typing import Any

USELESS = 700.0
"""Loss in nats per decision from which training counts as diverged: exp(USELESS) hardly fits into a float64."""


@dataclass(frozen=True)
class Losses:
    """What a network loses on a text: -log p summed over its words, and over those of them that are unknown; nats."""

    words: int
    total: float
    unknown: float

    @property
    def mean(self) -> float:
        """Mean loss, nats per word: averaged over words, never over batches."""
        return self.total / self.words


@dataclass(frozen=True)
class Step:
    """An update was made. ``loss``: nats per word in this batch, if it was ``exact``; ``words``: of this epoch, done so far."""

    step: int
    epoch: int
    words: int
    loss: float
    exact: bool
    rate: float


@dataclass(frozen=True)
class Evaluation:
    """The network was evaluated: ``words`` so far, ``valid`` None without validation text.

    ``train_loss``, nats per word, is the mean since the last evaluation, of a network that learns and drops units meanwhile; only
    where all of it is ``exact`` can it be compared with other losses.
    """

    step: int
    epoch: int
    words: int
    train_loss: float
    exact: bool
    valid: Losses | None
    best: bool
    rate: float
    seconds: float
    words_per_second: float

    @property
    def valid_loss(self) -> float | None:
        """Mean loss on the validation text, nats per word; None without it."""
        return None if self.valid is None else self.valid.mean


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    step: int
    reason: str


class DivergedError(Exception):
    """The loss is no longer a number, or has exploded; the parameters are useless. The text names the cause."""


@dataclass(frozen=True)
class RolledBack:
    """Training had diverged; it goes on from the last checkpoint, with ``factor`` times the configured rate."""

    step: int
    cause: str
    factor: float


@dataclass(frozen=True)
class Tested:
    """The best weights were evaluated on the test part, after the end of training; the figures are those of `Session.measure`."""

    figures: dict[str, Any]


Event = Step | Evaluation | RolledBack | Finished | Tested
