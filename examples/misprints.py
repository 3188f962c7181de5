"""Misprints in five lectures, verified by computation.

Each line of the output has a formula as it is printed, its value, the value of the correct formula, and the value by central
differences, (f(w + e) - f(w - e)) / 2e, or by the library. docs/notation.md quotes the formulas and says where they are.

Lecture 5 also prints its algorithm with the update inside the loop over the N examples, although the update adds up the gradients
of all N examples. As it is printed, an iteration makes N steps instead of one. Lecture 3 updates the last layer before it
computes the errors of the hidden layer, so that these errors belong to other weights. The third part of the output shows the
effect of both.

Lecture 4 says that raising the probability of the right class lowers those of all others. In fact it lowers their sum; a step of
gradient descent may raise one of them, as the fourth part shows.

    python examples/misprints.py
"""

from collections.abc import Callable

import backpropagation
import numpy as np
from iris_weights import PRINTED, probabilities
from losses import loss

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

X = np.array([0.5, 2.0])
WEIGHTS = np.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]])  # one row for each of three classes
RIGHT, CLASS, INPUT = 2, 0, 1  # RIGHT is the class of X; the derivative is that with respect to WEIGHTS[CLASS, INPUT]
SCORES = np.log([0.98, 0.01, 0.01])
"""Scores of a softmax. The last class is right, and a step of gradient descent raises the probability of the second class."""


def derivative(function: Callable[[float], float], at: float, e: float = 1e-6) -> float:
    """Return the derivative of a function by central differences."""
    return (function(at + e) - function(at - e)) / (2 * e)


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the softmax of scores (C,)."""
    exponentials = np.exp(z - z.max())
    return exponentials / exponentials.sum()


def sigmoid(z: float) -> float:
    """Return the sigmoid of a score."""
    return float(1 / (1 + np.exp(-z)))


def softmax_loss(weight: float) -> float:
    """Return -log p of the right class, computed by the library, with this weight instead of WEIGHTS[CLASS, INPUT]."""
    config = NetworkConfig.feedforward(2, (), 3)
    weights = WEIGHTS.copy()
    weights[CLASS, INPUT] = weight
    parameters = Parameters.from_arrays(config, {"output.weight": weights, "output.bias": np.zeros(3)})
    return float(-np.log(Network(config, CpuBackend()).predict(parameters, X[None])[0, RIGHT]))


def gradients() -> dict[str, tuple[float, float, float]]:
    """Return, for each formula, the value as printed, the correct value, and the value by central differences."""
    p, y = softmax(WEIGHTS @ X), np.eye(3)[RIGHT]
    by_differences = derivative(softmax_loss, WEIGHTS[CLASS, INPUT])
    x, target, z = X[INPUT], 0.25, 1.0
    return {
        "1: dL/dw = -(y_k yhat_k) x_i": (-(y[CLASS] * p[CLASS]) * x + 0.0, -(y[CLASS] - p[CLASS]) * x, by_differences),
        "3: dL/dw = 1{y = k} - p_k x_i": (y[CLASS] - p[CLASS] * x, -(y[CLASS] - p[CLASS]) * x, by_differences),
        "5: dC/dY = |t - Y|, with t = 1/4": (
            abs(target - sigmoid(z)),
            float(np.sign(sigmoid(z) - target)),
            derivative(lambda output: abs(target - output), sigmoid(z)),
        ),
        "5: ReLU'(z) = 0, at z = 1": (0.0, 1.0, derivative(lambda score: max(0.0, score), z)),
        "5: d/dx h(g(x)) = h'(g(x)), sin(x^2) at 1": (
            float(np.cos(z**2)),
            float(np.cos(z**2) * 2 * z),
            derivative(lambda x: float(np.sin(x**2)), z),
        ),
    }


def losses() -> dict[str, tuple[float, float, float]]:
    """Return, for each loss where y = 0, the value as printed, the correct value, and the value of the library."""
    a = sigmoid(0.5)
    library, _ = loss("sigmoid", 0.5, 0)
    return {
        "3: L = log p": (np.log(1 - a), -np.log(1 - a), library),
        "3: L = -(y log a - (1 - y) log(1 - a))": (np.log(1 - a), -np.log(1 - a), library),
    }


def distances(examples: int = 20) -> tuple[float, float]:
    """Return how far W and b move in an iteration of the algorithm, as it is printed and with a single update at the end."""
    moved = []
    for iterations in (examples, 1):  # each of the N updates of the printed loop adds up the gradients of all N examples
        W, b, inputs, targets = backpropagation.example((3, 4, 1), examples)
        start = [array.copy() for array in (*W, *b)]
        backpropagation.train(W, b, inputs, targets, 0.01, iterations)
        moved.append(float(np.sqrt(sum(((new - old) ** 2).sum() for new, old in zip((*W, *b), start, strict=True)))))
    return moved[0], moved[1]


def hidden_errors(rate: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return delta^1 (4,) of an example, computed after the update of the last layer's weights, and before it."""
    W, b, inputs, targets = backpropagation.example((3, 4, 1), 1)
    a = backpropagation.forward(W, b, inputs[0])
    errors = backpropagation.backward(W, a, targets[0])
    updated = [W[0], W[1] - rate * np.outer(errors[1], a[1])]
    return backpropagation.backward(updated, a, targets[0])[0], errors[0]


def step(rate: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities (3,) before and after a step of gradient descent on the scores, where the last class is right."""
    before = softmax(SCORES)
    return before, softmax(SCORES - rate * (before - np.eye(3)[-1]))


def main() -> None:
    print(f"{'lecture and formula as printed':42s}{'printed':>10s}{'right':>10s}   central differences")
    for name, values in gradients().items():
        print(f"{name:42s}" + "".join(f"{value:10.4f}" for value in values[:2]) + f"{values[2]:14.4f}")

    print(f"\n{'lecture and loss as printed, y = 0':42s}{'printed':>10s}{'right':>10s}   library")
    for name, values in losses().items():
        print(f"{name:42s}" + "".join(f"{value:10.4f}" for value in values))

    printed, right = distances()
    print(f"\n5: the algorithm, N = 20: W and b move by {printed:.4f} in an iteration as printed, by {right:.4f} with one update")

    late, early = hidden_errors()
    print(f"3: delta^1 of an example: {late.round(4)} after the update of the last layer, {early.round(4)} before")

    before, after = step()
    print("\n4: a step of gradient descent where the third class is right")
    print(f"   before {before.round(5)}\n   after  {after.round(5)}")

    row = ", ".join(f"{value:.8e}" for value in PRINTED[0])
    print(f"\n5: first row of the iris predictions: {row}; sum {PRINTED[0].sum():.6f}")
    print(f"   by the library: {', '.join(f'{value:.8e}' for value in probabilities()[0])}; sum {probabilities()[0].sum():.6f}")


if __name__ == "__main__":
    main()
