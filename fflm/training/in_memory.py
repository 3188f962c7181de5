"""Training from start to end in memory, for models that have no folder."""

from fflm.errors import FflmError
from fflm.network.parameters import Parameters
from fflm.training.events import DivergedError, Evaluation
from fflm.training.trainer import Trainer


def train_in_memory(trainer: Trainer) -> tuple[Parameters, list[Evaluation]]:
    """Train to the end.

    Parameters
    ----------
    trainer
        The trainer.

    Returns
    -------
    parameters
        The best weights, as NumPy arrays: those with the lowest validation loss, or the last ones if there is no validation data.
    evaluations
        All evaluations; by default there is one per epoch.

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
