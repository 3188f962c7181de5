"""Learning rate schedules."""

import math

from fflm.training.settings import TrainingSettings


def rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step. With the schedule ``cosine``, that of the last step is 0.

    Parameters
    ----------
    settings
        The settings of training, which choose the schedule. Here ``plateau`` is constant, because the training loop halves the
        rate.
    step, steps
        Number of the step, counted from 0, and the total number of steps of the training run.
    """
    if settings.schedule == "inverse":
        return settings.rate / (1 + settings.decay * step * settings.batch_size)
    if settings.schedule == "cosine":
        warmup = settings.warmup * steps
        if step + 1 < warmup:
            return settings.rate * (step + 1) / warmup
        progress = (step + 1 - warmup) / max(steps - warmup, 1)
        return settings.rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    return settings.rate
