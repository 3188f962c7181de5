"""The learning rate over time."""

import math

from fflm.training.settings import TrainingSettings


def rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    Parameters
    ----------
    settings
        Name the schedule. ``plateau`` is constant here: halving depends on validation, so the loop does it.
    step, steps
        Number of the step, from 0, and of all steps of the run.
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
