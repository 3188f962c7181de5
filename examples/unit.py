"""A neural unit: the sigmoid of a weighted sum of its inputs and a bias.

    z = w . x + b
    y = sigmoid(z) = 1 / (1 + e^-z)

The numbers are those of Jurafsky & Martin, Speech and Language Processing, 3rd ed., chapter "Neural Networks", section "Units":
z = 0.87, y = 0.70. A network with one sigmoid output and no hidden layer is such a unit.

    python examples/unit.py
"""

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

W = np.array([0.2, 0.3, 0.9])
B = 0.5
X = np.array([0.5, 0.6, 0.1])


def by_hand(w: np.ndarray, b: float, x: np.ndarray) -> tuple[float, float]:
    """Return z and y of a unit for an input x (3,)."""
    z = w @ x + b  # z = w . x + b
    y = 1 / (1 + np.exp(-z))  # y = sigmoid(z)
    return float(z), float(y)


def by_the_library(w: np.ndarray, b: float, x: np.ndarray) -> float:
    """Return y, computed by a network of the library with len(x) inputs, no hidden layer and one sigmoid output."""
    config = NetworkConfig.feedforward(len(x), (), 1, output="sigmoid")
    parameters = Parameters.from_arrays(config, {"output.weight": w.reshape(1, -1), "output.bias": np.array([b])})
    return float(Network(config, CpuBackend()).predict(parameters, x.reshape(1, -1))[0, 0])  # a batch of one example


def main() -> None:
    z, y = by_hand(W, B, X)
    products = " + ".join(f"{w} * {x}" for w, x in zip(W, X, strict=True))
    print(f"w = {W.tolist()}, b = {B}, x = {X.tolist()}")
    print(f"z = w . x + b  = {products} + {B} = {z:.2f}")
    print(f"y = sigmoid(z) = 1 / (1 + e^-{z:.2f}) = {y:.2f}")
    print()
    print(f"y by hand         {y:.15f}")
    print(f"y by the library  {by_the_library(W, B, X):.15f}")


if __name__ == "__main__":
    main()
