"""The state of a training run."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypedDict

import numpy.typing as npt
from msgspec import Meta

from fflm.arguments import Count

Finite: TypeAlias = Annotated[float, Meta(ge=-1e300, le=1e300)]


@dataclass
class State:
    """The state of a training run besides its arrays: everything that a resumed run needs to continue bit for bit.

    Attributes
    ----------
    step
        Number of training steps so far.
    epoch
        Number of completed epochs.
    batch
        Number of batches of the current epoch so far.
    words
        Number of predicted words so far, in all epochs.
    loss_sum, loss_words
        Sum of the training losses since the last evaluation, nats, and number of words that it is taken over.
    loss_exact
        Whether all these losses are exact, and not over samples.
    loss_mean
        Moving average of the mean losses of batches.
    mean_exact
        Whether this is an average of exact losses. When the kind of loss changes, the average starts again.
    mean_steps
        Number of batches since the average has started.
    rate_factor
        Factor on the learning rate, which is halved on plateaus and after divergence.
    best
        Lowest validation loss so far, in nats per word.
    bad
        Number of evaluations since then.
    divergences
        How often training has diverged.
    seconds
        Training time so far.
    log_bytes
        Length of the log, in bytes, that belongs to this state.
    finished
        Why training has ended; empty if it has not.
    """

    step: Count = 0
    epoch: Count = 0
    batch: Count = 0
    words: Count = 0
    loss_sum: Finite = 0.0
    loss_words: Count = 0
    loss_exact: bool = True
    loss_mean: Finite = 0.0
    mean_exact: bool = True
    mean_steps: Count = 0
    rate_factor: Annotated[float, Meta(gt=0, le=1)] = 1.0
    best: float = math.inf
    bad: Count = 0
    divergences: Count = 0
    seconds: Annotated[float, Meta(ge=0, le=1e300)] = 0.0
    log_bytes: Count = 0
    finished: str = ""


def state_from_dict(fields: dict[str, object]) -> State:
    """Return the state with these fields, as ``dataclasses.asdict`` returns them. Unknown fields are ignored."""
    known = {field.name for field in dataclasses.fields(State)}
    return State(**{name: value for name, value in fields.items() if name in known})  # type: ignore[arg-type]


class StateDict(TypedDict):
    """Everything that a `fflm.training.trainer.Trainer` needs to continue, as plain values.

    ``state`` has the fields of `State`. ``arrays`` has NumPy arrays by their names: ``parameters.NAME`` for each parameter,
    ``moment0.NAME``, ``moment1.NAME`` for each moment of the optimizer, and with lazy Adam updates ``done.NAME``, (rows, 2)
    float64, as in `LazyAdam.done`. Arrays of which each process has a part are `DividedRows` where they are to be saved.
    """

    state: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
