"""The events of training, which `Trainer.run` and `Session.events` yield."""

from dataclasses import dataclass
from typing import Any

MAX_LOSS = 700.0
"""Loss, in nats per decision, above which training counts as diverged. exp(MAX_LOSS) is near the largest float64."""


@dataclass(frozen=True)
class Losses:
    """The losses of a network on a text.

    Attributes
    ----------
    words
        Number of words (or other examples).
    total
        Sum of the losses, nats.
    unknown
        Sum of the losses of out-of-vocabulary words, nats.
    """

    words: int
    total: float
    unknown: float

    @property
    def mean(self) -> float:
        """Mean loss over all words, in nats per word."""
        return self.total / self.words


@dataclass(frozen=True)
class Step:
    """A training step was made.

    Attributes
    ----------
    step
        Number of the step, counted from 1.
    epoch
        Number of the current epoch, counted from 1.
    words
        Number of words (or other examples) of this epoch so far.
    loss
        Mean loss of the batch. It is in nats per word if ``exact``, and otherwise a sampled loss.
    exact
        Whether the loss is exact: over all words, and not over a sample.
    rate
        Learning rate of the step.
    """

    step: int
    epoch: int
    words: int
    loss: float
    exact: bool
    rate: float


@dataclass(frozen=True)
class Evaluation:
    """The network was evaluated.

    Attributes
    ----------
    step
        Number of steps so far.
    epoch
        Number of completed epochs.
    words
        Number of words (or other examples) so far, in all epochs.
    train_loss
        Mean training loss since the last evaluation, in nats per word if ``exact``. The network was learning meanwhile, and
        dropout was applied.
    exact
        Whether all training losses since the last evaluation were exact, and not over samples. Otherwise ``train_loss`` cannot be
        compared with other losses.
    valid
        The losses on the validation data; None if there is none.
    best
        Whether these weights are the best so far.
    rate
        Learning rate of the last step.
    seconds
        Training time so far, without evaluations.
    words_per_second
        Training speed so far.
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
        """Mean loss on the validation data, in nats per word; None if there is none."""
        return None if self.valid is None else self.valid.mean


@dataclass(frozen=True)
class Finished:
    """Training has ended after ``step`` steps; ``reason`` says why."""

    step: int
    reason: str


class DivergedError(Exception):
    """The loss is not finite or has exploded, so that the weights are of no use. The message names the cause."""


@dataclass(frozen=True)
class RolledBack:
    """Training has diverged, and continues from the last checkpoint with a lower learning rate.

    Attributes
    ----------
    step
        Number of steps at the checkpoint.
    cause
        The message of the `DivergedError`.
    factor
        Factor by which the configured learning rate is multiplied from now on.
    """

    step: int
    cause: str
    factor: float


@dataclass(frozen=True)
class Tested:
    """The best weights were evaluated on the test data, after the end of training. ``figures`` is from `Session.measure`."""

    figures: dict[str, Any]


Event = Step | Evaluation | RolledBack | Finished | Tested
