"""Training in memory, from beginning to end, for what has no folder."""

from fflm.errors import FflmError
from fflm.network.parameters import Parameters
from fflm.training.events import DivergedError, Evaluation
from fflm.training.trainer import Trainer


def train_in_memory(trainer: Trainer) -> tuple[Parameters, list[Evaluation]]:
    """Train to the end.

    Returns
    -------
    parameters
        The best weights, NumPy arrays: those with the lowest validation loss, or the last where there is nothing to validate on.
    evaluations
        All evaluations, one per epoch.

    Raises
    ------
    FflmError
        If training does not converge.
    """
    backend, evaluations = trainer.network.backend, []
    best = trainer.parameters
    try:
        for event in trainer.run():
            if isinstance(event, Evaluation):
                evaluations.append(event)
                if event.best and trainer.valid is not None:
                    best = trainer.parameters.mapped(lambda array: backend.download(array).copy())
    except DivergedError as error:
        raise FflmError(f"training does not converge: {error}; try a lower rate, or inputs of a smaller scale") from error
    return best.mapped(backend.download), evaluations
