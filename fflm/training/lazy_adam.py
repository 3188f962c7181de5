"""Lazy Adam updates: rows that a step does not touch are updated when they are next used."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fflm.backend.common import adam_corrections, placed
from fflm.backend.protocol import Array, Backend, StepNumbers
from fflm.errors import FflmError
from fflm.network.parameters import Parameters
from fflm.network.subset import Subset, frame, matrices, padded
from fflm.stored import REMEDY
from fflm.training.optimizers import ADAM_BETA1, ADAM_BETA2, adam_constants, decay_of
from fflm.training.settings import TrainingSettings


class LazyAdam:
    """Adam updates for arrays with one row per word, where each step has gradients for the rows of a few words only.

    Adam changes all rows in every step: rows without a gradient still move along their first moment, and AdamW decays them. Lazy
    updates skip these rows and catch up later, when a step uses the row, or for all rows at once before the network is evaluated.
    Leaving the skipped updates out would be wrong: without the moments, rare words would learn a tenth of what they learn with a
    full softmax, and without weight decay they would not be regularized. Both cost several percent of perplexity.

    Parameters
    ----------
    parameters, moments
        The parameters of the network, and the first and second moments of the optimizer.
    settings
        The settings of Adam or AdamW.

    Attributes
    ----------
    done
        By the name of each array that is updated lazily, an array (rows, 2) float64: the number of updates that each row has
        received, and the negative logarithm of the factor by which weight decay has shrunk the row in these updates.
    """

    def __init__(self, parameters: Parameters, moments: tuple[Parameters, ...], settings: TrainingSettings) -> None:
        self._settings = settings
        self._wholes = parameters, *moments
        names = {"embeddings", "word_weights"}
        if settings.loss != "exact":  # with the exact loss, every step uses all rows of the output layer
            names |= {"output.weight", "output.bias"}
        self.done = {name: np.zeros((len(array), 2)) for name, array in parameters.items() if name in names}
        self._due = np.zeros(2)  # what the numbers of a row are if it has received all updates so far

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Continue from the arrays of a checkpoint: ``done.NAME`` for each name of `done`, as it was after a step.

        The rows that the last step used have received all updates. Therefore the largest numbers of all rows say how many updates
        there were.

        Raises
        ------
        FflmError
            If an array is missing, or its shape, dtype or numbers do not fit the parameters.
        """
        if missing := [name for name in self.done if f"done.{name}" not in arrays]:
            raise FflmError(f"the state lacks the steps of {', '.join(missing)}; {REMEDY}")
        done = {name: arrays[f"done.{name}"].copy() for name in self.done}  # another trainer may still be using these arrays
        for name, rows in self.done.items():
            if done[name].shape != rows.shape or done[name].dtype != rows.dtype or not (done[name].min() >= 0):
                raise FflmError(f"the state has invalid step counts of {name}; {REMEDY}")
        self.done = done
        self._due = np.max([rows.max(axis=0) for rows in done.values()], axis=0)

    def skipped(self, rate: float, subset: Subset | None = None) -> dict[str, Any]:
        """Return what `take` must know of the skipped updates: NumPy arrays, and the `StepNumbers` of the last of them.

        Parameters
        ----------
        rate
            The learning rate of the updates.
        subset
            The subset whose rows are updated; None for all rows.
        """
        step = int(self._due[0])
        corrections = adam_corrections(ADAM_BETA1, ADAM_BETA2, step) if step else (1.0, 1.0)
        skipped: dict[str, Any] = {"last": StepNumbers(rate=rate, corrections=corrections)}
        for name, weight in self._wholes[0].items():
            if name in self.done:
                done, size = self.done[name], 0
                if subset:
                    done, size = done.take(subset.rows[name], axis=0), len(subset.places[name])
                steps, decay = ((due - own).astype(weight.dtype) for due, own in zip(self._due, done.T, strict=True))
                keeps = np.exp(-decay) if weight.ndim > 1 else np.ones_like(decay)  # biases do not decay
                skipped |= {f"idle.{name}": padded(steps, size, 0), f"keeps.{name}": padded(keeps, size, 1)}
        return skipped

    def take(self, backend: Backend, memory: Parameters, places: Mapping[str, Array], skipped: Mapping[str, Any]) -> Parameters:
        """Return the parameters of a subset after the skipped updates, which are made for good by `update`.

        Parameters
        ----------
        backend
            The backend.
        memory, places
            As for `fflm.network.subset.take`.
        skipped
            The result of `skipped` for the subset, on the device.
        """
        part = frame(self._wholes[0], memory, places)
        for name in self.done:
            (taken,) = matrices(name, part)
            own = skipped[f"idle.{name}"], skipped[f"keeps.{name}"]
            arrays = *matrices(name, *self._wholes), places[name], *own, taken
            backend.adam_take_rows(*arrays, **self._last(skipped))
        return part

    def update(
        self,
        backend: Backend,
        part: Parameters,
        gradients: Parameters,
        places: Mapping[str, Array],
        skipped: Mapping[str, Any],
        *,
        scale: Array,
        numbers: Any,
    ) -> None:
        """Update the rows of a subset: ``part`` is the result of `take`, other arguments are those of `Optimizer.update`."""
        for name in self.done:
            constants = adam_constants(self._settings, decay_of(self._settings, dict(part.items())[name]))
            arrays = *matrices(name, part, gradients), places[name], skipped[f"idle.{name}"], *matrices(name, *self._wholes)
            backend.adam_step_rows(*arrays, scale=scale, numbers=numbers, **constants)

    def catch_up_all(self, backend: Backend, rate: float) -> None:
        """Make the skipped updates of all rows, with the learning rate ``rate``."""
        if any((rows != self._due).any() for rows in self.done.values()):
            skipped = placed(backend, self.skipped(rate))
            for name, rows in self.done.items():
                arrays = *matrices(name, *self._wholes), skipped[f"idle.{name}"], skipped[f"keeps.{name}"]
                backend.adam_catch_up(*arrays, **self._last(skipped))
                rows[:] = self._due

    def _last(self, skipped: Mapping[str, Any]) -> dict[str, Any]:
        """Return the other arguments of an operation that makes skipped updates."""
        return {"numbers": skipped["last"], "beta1": ADAM_BETA1, "beta2": ADAM_BETA2, "epsilon": self._settings.epsilon}

    def step(self, rate: float, subset: Subset | None) -> None:
        """Record a training step with the learning rate ``rate``, which has used the rows of a subset, or all rows if it is None.

        These rows had received all skipped updates before the step.
        """
        shrink = rate * self._settings.weight_decay if self._settings.decoupled else 0.0
        # If shrink is 1 or more, the logarithm is not finite. The weights then become NaN, which the trainer reports.
        with np.errstate(divide="ignore", invalid="ignore"):
            self._due += 1, -np.log1p(-shrink)
        for name, done in self.done.items():
            for numbers, due in zip(done.T, self._due, strict=True):
                numbers[slice(None) if subset is None else subset.rows[name]] = due
