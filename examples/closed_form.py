"""The gradients of a network with one hidden layer in closed form, for one training example.

The vectors x (I,), a1 (H,), a2 (C,) and y (C,) are columns; y is 1 for the right class and 0 for the others. The network is

    a1 = sigmoid(W1 x + b1)        W1 (H, I)
    a2 = softmax(W2 a1 + b2)       W2 (C, H)
    J  = -sum_i y_i log a2_i       cross-entropy

The gradients have the shapes of their arrays. With D = diag(a1 (1 - a1)), the derivative of the sigmoid, they are

    dJ/db2 = a2 - y                dJ/dW2 = (a2 - y) a1^T
    dJ/db1 = D W2^T (a2 - y)       dJ/dW1 = D W2^T (a2 - y) x^T

These formulas are the chain rule, read from right to left: a2 - y is dJ/dz2; W2^T leads back from z2 to a1, and D from a1 to z1.
If vectors are rows and the layers compute x W1 and a1 W2, everything is transposed, as in dJ/db1 = (a2 - y) W2^T D. The gradient
of the output layer is that of multinomial logistic regression (Jurafsky & Martin, Speech and Language Processing, 3rd ed.,
chapter "Logistic Regression").

The script compares them with the gradients of the library, and with central differences, (J(w + e) - J(w - e)) / 2e for a small
e.

    python examples/closed_form.py
"""

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

FORMULAS = {"W1": "D W2^T (a2 - y) x^T", "b1": "D W2^T (a2 - y)", "W2": "(a2 - y) a1^T", "b2": "a2 - y"}
NAMES = {"W1": "hidden.0.weight", "b1": "hidden.0.bias", "W2": "output.weight", "b2": "output.bias"}  # in the library


def example(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Return random weights of a network with 4 inputs, 5 hidden units and 3 classes, a random input x (4,), and its class."""
    generator = np.random.default_rng(seed)
    shapes = {"W1": (5, 4), "b1": (5,), "W2": (3, 5), "b2": (3,)}
    weights = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    return weights, generator.normal(size=4), int(generator.integers(3))


def forward(weights: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the activations a1 (H,) and a2 (C,) for an input x (I,)."""
    a1 = 1 / (1 + np.exp(-(weights["W1"] @ x + weights["b1"])))
    exponentials = np.exp(weights["W2"] @ a1 + weights["b2"])
    return a1, exponentials / exponentials.sum()


def loss(weights: dict[str, np.ndarray], x: np.ndarray, label: int) -> float:
    """Return J = -log a2 of the right class."""
    return float(-np.log(forward(weights, x)[1][label]))


def closed_form(weights: dict[str, np.ndarray], x: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Return the gradients by the formulas above."""
    a1, a2 = forward(weights, x)
    y = np.eye(len(a2))[label]
    D = np.diag(a1 * (1 - a1))
    d_b1 = D @ weights["W2"].T @ (a2 - y)
    return {"W1": np.outer(d_b1, x), "b1": d_b1, "W2": np.outer(a2 - y, a1), "b2": a2 - y}


def by_the_library(weights: dict[str, np.ndarray], x: np.ndarray, label: int) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss and its gradients as `Network.gradients` computes them for a batch of one."""
    hidden, inputs = weights["W1"].shape
    config = NetworkConfig.feedforward(inputs, (hidden,), len(weights["b2"]), activation="sigmoid")
    parameters = Parameters.from_arrays(config, {NAMES[name]: array for name, array in weights.items()})
    gradients, losses = Parameters.zeros(config, np.float64), np.empty(1)
    Network(config, CpuBackend()).gradients(parameters, x.reshape(1, -1), np.array([label], np.int32), gradients, losses)
    found = dict(gradients.items())
    return float(losses[0]), {name: found[NAMES[name]] for name in weights}


def finite_differences(weights: dict[str, np.ndarray], x: np.ndarray, label: int, e: float = 1e-5) -> dict[str, np.ndarray]:
    """Return the gradients by central differences, which move one weight at a time by e in both directions."""
    gradients = {name: np.empty_like(array) for name, array in weights.items()}
    for name, array in weights.items():
        for place in np.ndindex(array.shape):
            w = array[place]
            array[place] = w + e
            above = loss(weights, x, label)
            array[place] = w - e
            below = loss(weights, x, label)
            array[place] = w
            gradients[name][place] = (above - below) / (2 * e)
    return gradients


def largest_difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the largest difference between two sets of gradients, for each array."""
    return {name: float(np.abs(first[name] - second[name]).max()) for name in first}


def main() -> None:
    weights, x, label = example(seed=1)
    formulas = closed_form(weights, x, label)
    library_loss, library = by_the_library(weights, x, label)
    _, a2 = forward(weights, x)
    print(f"a2 = {a2.round(4)}, the right class is number {label}")
    print(f"J = -log a2[{label}] = {loss(weights, x, label):.12f}, by the library {library_loss:.12f}")
    print(f"dJ/db2 = a2 - y = {formulas['b2'].round(4)}\n")
    differences = largest_difference(formulas, library), largest_difference(formulas, finite_differences(weights, x, label))
    print("largest difference of                 shape   to the library   to finite differences")
    for name in ("b2", "W2", "b1", "W1"):
        to_library, to_differences = (each[name] for each in differences)
        print(f"dJ/d{name} = {FORMULAS[name]:20s}{formulas[name].shape!s:>14s}{to_library:17.1e}{to_differences:24.1e}")


if __name__ == "__main__":
    main()
