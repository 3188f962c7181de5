"""Where a training run stands."""

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
    """Where a run stands, besides its arrays. Everything that a resumed run needs to go on as if never interrupted."""

    step: Count = 0  # updates made
    epoch: Count = 0  # epochs finished
    batch: Count = 0  # batches done in the current epoch
    words: Count = 0  # predicted so far, over all epochs
    loss_sum: Finite = 0.0  # nats, since the last evaluation
    loss_words: Count = 0  # words they are summed over
    loss_exact: bool = True  # whether all of them are of the exact loss
    loss_mean: Finite = 0.0  # moving average of the batches' mean loss
    mean_exact: bool = True  # whether that is the exact loss; where another loss begins, the average begins again
    mean_steps: Count = 0  # batches since then
    rate_factor: Annotated[float, Meta(gt=0, le=1)] = 1.0  # halved on plateaus and after divergence
    best: float = math.inf  # lowest validation loss, nats per word
    bad: Count = 0  # evaluations since then
    divergences: Count = 0
    seconds: Annotated[float, Meta(ge=0, le=1e300)] = 0.0  # spent training so far
    log_bytes: Count = 0  # length of the log that goes with this state
    finished: str = ""  # why the run ended, if it did


def state_from_dict(fields: dict[str, object]) -> State:
    """Make a state from ``dataclasses.asdict``'s result; unknown fields are ignored."""
    known = {field.name for field in dataclasses.fields(State)}
    return State(**{name: value for name, value in fields.items() if name in known})  # type: ignore[arg-type]


class StateDict(TypedDict):
    """Everything that a `fflm.training.trainer.Trainer` needs to continue, as plain values.

    ``state`` holds the fields of `State`. ``arrays`` holds NumPy arrays by name: ``parameters.*``, a ``moment0.*`` for each
    parameter and moment of the optimizer, and ``done.*``, (rows, 2) float64, of lazy Adam updates.
    """

    state: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
