"""The network in float64 NumPy, and the tolerances for the results of the programs that are timed."""

import math
import sys

import numpy as np

from fflm.network.config import NetworkConfig
from fflm.training.optimizers import ADAM_BETA1, ADAM_BETA2
from fflm.training.settings import TrainingSettings

LOSS_TOLERANCE = 1e-5  # largest relative error of the loss
GRADIENT_TOLERANCE = 1e-4  # relative to the array's largest gradient; a frequent word's is a sequential sum of 20,000 numbers


def exact_gradients(
    config: NetworkConfig, weights: dict[str, np.ndarray], contexts: np.ndarray, targets: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss and all gradients, without dropout, in the precision of the weights. The names are those of the paper."""
    C, H, d, b = (weights[name] for name in ("embeddings", "hidden.0.weight", "hidden.0.bias", "output.bias"))
    P = weights.get("projection", np.eye(config.hidden[0]))
    U = C[:-1] if config.tied else weights["output.weight"]
    blocks, rows = np.array(config.blocks), np.arange(len(targets))
    factors = np.repeat(blocks**-0.5, blocks)[:, None]  # (n, 1)
    x = np.add.reduceat(C[contexts] * factors, np.cumsum(blocks) - blocks, axis=1).reshape(len(targets), -1)  # (B, K m)
    y = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0)}[config.activation](x @ H.T + d)  # (B, h)
    p = y @ P.T @ U.T + b  # (B, V)
    p = np.exp(p - p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[rows, targets]).mean()
    p[rows, targets] -= 1
    p /= len(targets)
    d_projected = p @ U
    d_hidden = d_projected @ P * {"tanh": 1 - y**2, "relu": y > 0}[config.activation]
    d_words = np.repeat((d_hidden @ H).reshape(len(targets), len(blocks), -1), blocks, axis=1) * factors  # (B, n, m)
    d_output = p.T @ (y @ P.T)
    d_embeddings = np.zeros_like(C)
    np.add.at(d_embeddings, contexts, d_words)
    if config.tied:
        d_embeddings[:-1] += d_output
    gradients = {
        "embeddings": d_embeddings,
        "hidden.0.weight": d_hidden.T @ x,
        "hidden.0.bias": d_hidden.sum(0),
        "projection": d_projected.T @ y,
        "output.weight": d_output,
        "output.bias": p.sum(0),
    }
    return loss, {name: gradients[name] for name in weights}


def exact_updates(
    settings: TrainingSettings, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray], updates: int
) -> dict[str, np.ndarray]:
    """Return the weights after updates with the same gradients, clipped: Adam (Kingma & Ba 2015, algorithm 1) or AdamW.

    AdamW is Loshchilov & Hutter 2019, algorithm 2; biases do not decay.
    """
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    scale = min(1.0, settings.clip / norm) if settings.clip else 1.0
    result = {}
    for name, weight in weights.items():
        gradient, keep = scale * gradients[name], 1 - settings.rate * settings.weight_decay * (weight.ndim > 1)
        first = second = 0.0
        for step in range(1, updates + 1):
            first = ADAM_BETA1 * first + (1 - ADAM_BETA1) * gradient
            second = ADAM_BETA2 * second + (1 - ADAM_BETA2) * gradient**2
            deviation = np.sqrt(second / (1 - ADAM_BETA2**step)) + settings.epsilon
            weight = keep * weight - settings.rate * first / (1 - ADAM_BETA1**step) / deviation
        result[name] = weight
    return result


def demand_gradients(
    loss: float, gradients: dict[str, np.ndarray], exact: tuple[float, dict[str, np.ndarray]], what: str
) -> None:
    """Exit unless a loss and gradients are within the tolerances of the exact ones."""
    exact_loss, expected = exact
    demand(loss, exact_loss, LOSS_TOLERANCE * exact_loss, f"{what}: the loss")
    for name, gradient in expected.items():
        demand(gradients[name], gradient, GRADIENT_TOLERANCE * np.abs(gradient).max(), f"{what}: the gradient of {name}")


def demand(actual: np.ndarray | float, expected: np.ndarray | float, tolerance: float, what: str) -> None:
    """Exit unless numbers are within a tolerance of the expected ones."""
    off = np.abs(actual - expected).max()
    if not off <= tolerance:
        sys.exit(f"{what} has an error of {off:.2g}, more than {tolerance:.2g}: nothing was timed")
