"""The optimizers: which moments they keep, and how they update parameters."""

from collections.abc import Sequence

from fflm.backend.protocol import Array, Backend
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.training.settings import TrainingSettings

ADAM_BETA1, ADAM_BETA2 = 0.9, 0.999
RMSPROP_DECAY = 0.99


class Optimizer:
    """An optimizer and its moments.

    Parameters
    ----------
    settings
        The settings of training, which choose the optimizer and its constants.
    config, dtype, backend
        The configuration, the dtype and the backend of the network.

    Attributes
    ----------
    moments
        The state of the optimizer: none, one or two sets of arrays with the shapes of the parameters. They are the velocity of
        sgd with momentum, the (mean of the) squared gradients of adagrad and rmsprop, and the two moments of adam and adamw.
    """

    def __init__(self, settings: TrainingSettings, config: NetworkConfig, dtype: type, backend: Backend) -> None:
        self.settings = settings
        self._backend = backend
        count = {"sgd": 1 if settings.momentum else 0, "adam": 2, "adamw": 2}.get(settings.optimizer, 1)
        self.moments = tuple(Parameters.zeros(config, dtype).mapped(backend.upload) for _ in range(count))

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
        rate: float,
        step: int,
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
        rate
            Learning rate of this step.
        step
            Number of this step, counted from 1.
        """
        groups: dict[float, list[list[Array]]] = {}  # arrays that are updated in the same way, by their weight decay
        for (name, weight), *others in zip(parameters.items(), gradients, *moments, strict=True):
            if self.settings.frozen and name == "embeddings":
                continue
            decay = self.settings.weight_decay if weight.ndim > 1 else 0.0  # biases do not decay
            groups.setdefault(decay, []).append([weight, *others])
        for decay, arrays in groups.items():
            weights, slopes, *states = map(list, zip(*arrays, strict=True))
            self._update_arrays(weights, slopes, states, decay, scale, rate, step)

    def _update_arrays(
        self,
        weights: list[Array],
        gradients: list[Array],
        moments: list[list[Array]],
        decay: float,
        scale: Array,
        rate: float,
        step: int,
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
                rate=rate,
                momentum=self.settings.momentum,
                nesterov=self.settings.nesterov,
            )
        elif name == "adagrad":
            backend.adagrad_step(weights, gradients, moments[0], scale=scale, l2=decay, rate=rate, epsilon=self.settings.epsilon)
        elif name == "rmsprop":
            backend.rmsprop_step(
                weights,
                gradients,
                moments[0],
                scale=scale,
                l2=decay,
                rate=rate,
                decay=RMSPROP_DECAY,
                epsilon=self.settings.epsilon,
            )
        else:
            decoupled = name == "adamw"
            backend.adam_step(
                weights,
                gradients,
                moments[0],
                moments[1],
                scale=scale,
                l2=0.0 if decoupled else decay,
                shrink=rate * decay if decoupled else 0.0,
                rate=rate,
                beta1=ADAM_BETA1,
                beta2=ADAM_BETA2,
                epsilon=self.settings.epsilon,
                step=step,
            )
