"""The optimizers: which moments they keep, and how they update parameters."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fflm.backend.common import adam_corrections
from fflm.backend.protocol import Array, Backend, StepNumbers
from fflm.network.parameters import Parameters
from fflm.network.subset import matrices
from fflm.training.settings import TrainingSettings

ADAM_BETA1, ADAM_BETA2 = 0.9, 0.999
RMSPROP_DECAY = 0.99


def decay_of(settings: TrainingSettings, weight: Array) -> float:
    """Return the weight decay of an array of parameters; biases do not decay."""
    return settings.weight_decay if weight.ndim > 1 else 0.0


def adam_constants(settings: TrainingSettings, decay: float) -> dict[str, Any]:
    """Return the arguments of `Backend.adam_step` that are the same in all steps, for arrays with this weight decay."""
    decoupled = settings.decoupled
    l2, shrinks = 0.0 if decoupled else decay, decoupled and decay != 0
    return {"l2": l2, "shrinks": shrinks, "beta1": ADAM_BETA1, "beta2": ADAM_BETA2, "epsilon": settings.epsilon}


class Optimizer:
    """An optimizer and its moments.

    Parameters
    ----------
    settings
        The settings of training, which choose the optimizer and its constants.
    parameters
        The parameters to train.
    backend
        The backend of the network.

    Attributes
    ----------
    moments
        The state of the optimizer: none, one or two sets of arrays with the shapes of the parameters. They are the velocity of
        sgd with momentum, the (mean of the) squared gradients of adagrad and rmsprop, and the two moments of adam and adamw.
    """

    def __init__(self, settings: TrainingSettings, parameters: Parameters, backend: Backend) -> None:
        self.settings = settings
        self._backend = backend
        count = {"sgd": 1 if settings.momentum else 0, "adam": 2, "adamw": 2}.get(settings.optimizer, 1)
        self.moments = tuple(parameters.zeros_like().mapped(backend.upload) for _ in range(count))

    def numbers(self, rate: float, step: int) -> StepNumbers:
        """Return the numbers of step number ``step``, counted from 0, with the learning rate ``rate``."""
        shrink = rate * self.settings.weight_decay if self.settings.decoupled else 0.0
        return StepNumbers(step, rate, shrink, adam_corrections(ADAM_BETA1, ADAM_BETA2, step + 1))

    def add_penalties(self, parameters: Parameters, gradients: Parameters) -> None:
        """Add the gradients of the L1 and L2 penalties on weights (not on biases) to the gradients of the loss."""
        l1, l2 = self.settings.l1, self.settings.l2
        if not (l1 or l2):
            return
        for (name, weight), gradient in zip(parameters.items(), gradients, strict=True):
            if weight.ndim > 1 and not (self.settings.frozen and name == "embeddings"):
                self._backend.add_penalty(weight, gradient, l1, l2)

    def update(
        self,
        parameters: Parameters,
        gradients: Parameters,
        moments: Sequence[Parameters],
        *,
        scale: Array,
        numbers: Any,
        left_out: Collection[str] = (),
    ) -> None:
        """Update parameters and moments by one step.

        Parameters
        ----------
        parameters, gradients
            The parameters, which are changed in place, and the gradients of the objective.
        moments
            `moments`, or, if the parameters are those of a subset, the same rows of the moments; changed in place.
        scale
            Factor on the gradients from clipping, (1,), on the device.
        numbers
            The result of `numbers`, as `Backend.place` returns it.
        left_out
            The names of arrays that are not updated.
        """
        groups: dict[float, list[list[Array]]] = {}  # arrays that are updated in the same way, by their weight decay
        for (name, weight), *others in zip(parameters.items(), gradients, *moments, strict=True):
            if name in left_out or (self.settings.frozen and name == "embeddings"):
                continue
            decay = decay_of(self.settings, weight)
            groups.setdefault(decay, []).append([weight, *others])
        for decay, arrays in groups.items():
            weights, slopes, *states = map(list, zip(*arrays, strict=True))
            self._update_arrays(weights, slopes, states, decay, scale, numbers)

    @property
    def updates_rows(self) -> bool:
        """Whether `update_rows` can update the rows of a subset where they are."""
        return self.settings.optimizer == "adagrad"

    def update_rows(
        self, parameters: Parameters, gradients: Parameters, places: Mapping[str, Array], *, scale: Array, numbers: Any
    ) -> None:
        """Update the rows of a subset in ``parameters``, which are those of all words, and in the moments.

        ``gradients`` are those of the subset and ``places`` its `fflm.network.subset.Subset.places`; the others as for `update`.
        """
        for name, rows in places.items():
            if not (self.settings.frozen and name == "embeddings"):
                decay = decay_of(self.settings, dict(parameters.items())[name])
                gradient, *wholes = matrices(name, gradients, parameters, *self.moments)
                numeric = {"scale": scale, "l2": decay, "numbers": numbers, "epsilon": self.settings.epsilon}
                self._backend.adagrad_step_rows(gradient, rows, *wholes, **numeric)

    def _update_arrays(
        self,
        weights: list[Array],
        gradients: list[Array],
        moments: list[list[Array]],
        decay: float,
        scale: Array,
        numbers: Any,
    ) -> None:
        """Update arrays and their moments, lists of arrays with the same weight decay."""
        name, backend = self.settings.optimizer, self._backend
        if name == "sgd":
            velocities = moments[0] if moments else gradients  # without momentum, gradients are overwritten as scratch memory
            backend.momentum_step(
                weights,
                gradients,
                velocities,
                scale=scale,
                l2=decay,
                numbers=numbers,
                momentum=self.settings.momentum,
                nesterov=self.settings.nesterov,
            )
        elif name == "adagrad":
            backend.adagrad_step(
                weights, gradients, moments[0], scale=scale, l2=decay, numbers=numbers, epsilon=self.settings.epsilon
            )
        elif name == "rmsprop":
            backend.rmsprop_step(
                weights,
                gradients,
                moments[0],
                scale=scale,
                l2=decay,
                numbers=numbers,
                decay=RMSPROP_DECAY,
                epsilon=self.settings.epsilon,
            )
        else:
            constants = adam_constants(self.settings, decay)
            backend.adam_step(weights, gradients, moments[0], moments[1], scale=scale, numbers=numbers, **constants)
