"""fflm's networks of one hidden layer in JAX, and their training step, for the comparisons of the benchmarks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.training.optimizers import ADAM_BETA1, ADAM_BETA2
from fflm.training.settings import TrainingSettings

Weights = dict[str, jax.Array]


class JaxStep:
    """A training step, compiled as a whole; the new weights and moments overwrite the old ones (donated buffers).

    Parameters
    ----------
    config, settings
        The shape, without residual and direct connections, and how it is trained.
    start
        The initial weights, which are copied.
    """

    def __init__(self, config: NetworkConfig, settings: TrainingSettings, start: Parameters) -> None:
        self.config, self.settings = config, settings
        weights = {name: jnp.array(array) for name, array in start.items()}
        moments = tuple({name: jnp.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
        self._state = weights, moments, jnp.zeros((), jnp.int32)
        self.gradients: dict[str, np.ndarray] = {}
        self._gradients = jax.jit(jax.value_and_grad(self._loss))
        self._update = jax.jit(self._updated)
        self._step = jax.jit(self._stepped, donate_argnums=0)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights, by their names."""
        return {name: np.asarray(weight) for name, weight in self._state[0].items()}

    def loss(self, contexts: np.ndarray, targets: np.ndarray) -> float:
        """Go forward and back, as the step does."""
        loss, gradients = self._gradients(self._state[0], contexts, targets, self._state[2])
        self.gradients = {name: np.array(gradient) for name, gradient in gradients.items()}
        return float(loss)

    def update(self) -> None:
        """Clip, and make the optimizer's step, as the step does."""
        self._state = self._update(self._state, self.gradients)

    def step(self, contexts: np.ndarray, targets: np.ndarray) -> None:
        """Make one training step."""
        self._state, loss = self._step(self._state, contexts, targets)
        jax.block_until_ready((self._state, loss))

    def _stepped(self, state: Any, contexts: Any, targets: Any) -> Any:
        loss, gradients = jax.value_and_grad(self._loss)(state[0], contexts, targets, state[2])
        return self._updated(state, gradients), loss

    def _loss(self, weights: Weights, contexts: Any, targets: Any, step: Any) -> Any:
        """Return the mean loss."""
        drop = partial(self._dropout, jax.random.fold_in(jax.random.key(0, impl="rbg"), step))
        values = drop(0, self._gather(weights["embeddings"], contexts), self.config.embedding_dropout)
        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[self.config.activation]
        values = activation(values @ weights["hidden.0.weight"].T + weights["hidden.0.bias"])
        values = drop(1, values, self.config.dropout)
        if self.config.projected:
            values = values @ weights["projection"].T
        weight = weights["embeddings"][:-1] if self.config.tied else weights["output.weight"]
        logits = values @ weight.T + weights["output.bias"]
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()

    def _gather(self, embeddings: Any, contexts: Any) -> Any:
        """Return the embeddings and averages of embeddings, concatenated (B, K m)."""
        blocks, borders = self.config.blocks, np.cumsum(self.config.blocks)[:-1]
        found = [embeddings[part].sum(1) * len(part[0]) ** -0.5 for part in jnp.split(contexts, borders, axis=1)]
        return jnp.concatenate(found, axis=1) if len(blocks) > 1 else found[0]

    def _dropout(self, key: Any, layer: int, values: Any, rate: float) -> Any:
        if not rate:
            return values
        kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, values.shape)
        return jnp.where(kept, values / (1 - rate), 0)

    def _updated(self, state: Any, gradients: Weights) -> Any:
        """Return the state after Adam or AdamW, with clipped gradients."""
        weights, (first, second), step = state
        settings, step = self.settings, step + 1
        scale = jnp.float32(1)
        if settings.clip:
            norm = jnp.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
            scale = jnp.minimum(1, settings.clip / norm)
        new: tuple[Weights, Weights, Weights] = {}, {}, {}
        for name, weight in weights.items():
            gradient = scale * gradients[name]
            m = ADAM_BETA1 * first[name] + (1 - ADAM_BETA1) * gradient
            v = ADAM_BETA2 * second[name] + (1 - ADAM_BETA2) * gradient**2
            deviation = jnp.sqrt(v / (1 - ADAM_BETA2**step)) + settings.epsilon
            keep = 1 - settings.rate * settings.weight_decay * (weight.ndim > 1)
            new[0][name] = keep * weight - settings.rate * m / (1 - ADAM_BETA1**step) / deviation
            new[1][name], new[2][name] = m, v
        return new[0], new[1:], step
