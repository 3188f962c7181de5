"""Backpropagation as a loop over the layers, in NumPy, compared with the library.

Layer l = 1, ..., L of a network computes, from a^0 = x,

    z^l = W^l a^(l-1) + b^l,    a^l = f(z^l)

and the error of a layer is delta^l = dC/dz^l. For an example x with the target y,

    delta^L = a^L - y                                 for a sigmoid or a softmax with the cross-entropy
    delta^l = f'(z^l) * (W^(l+1))^T delta^(l+1)       from the last layer to the first; f' = a (1 - a) for a sigmoid
    dC/dW^l = delta^l (a^(l-1))^T,  dC/db^l = delta^l

where * is the elementwise product. A training step adds up the gradients of the N examples and moves against the sum:
W^l <- W^l - alpha sum_n dC/dW^l. The library uses the mean over a batch instead of the sum, which is the same with a learning
rate that is N times as large.

The network that is printed has three inputs, four hidden sigmoid units and one sigmoid output. The loop works for any number of
layers.

    python examples/backpropagation.py
"""

from itertools import pairwise

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

Matrices = list[np.ndarray]


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Return the sigmoid."""
    return 1 / (1 + np.exp(-z))


def forward(W: Matrices, b: Matrices, x: np.ndarray) -> Matrices:
    """Return the activations a^0, ..., a^L of all layers for an example x (I,). All layers have sigmoid units."""
    a = [x]
    for W_l, b_l in zip(W, b, strict=True):
        a.append(sigmoid(W_l @ a[-1] + b_l))
    return a


def backward(W: Matrices, a: Matrices, y: np.ndarray) -> Matrices:
    """Return the errors delta^1, ..., delta^L of all layers for an example with the target y (O,)."""
    deltas = [a[-1] - y]
    for layer in reversed(range(1, len(W))):
        deltas.insert(0, a[layer] * (1 - a[layer]) * (W[layer].T @ deltas[0]))
    return deltas


def gradients(W: Matrices, b: Matrices, x: np.ndarray, y: np.ndarray) -> tuple[Matrices, Matrices]:
    """Return dC/dW^l and dC/db^l of all layers for one example."""
    a = forward(W, b, x)
    deltas = backward(W, a, y)
    return [np.outer(delta, below) for delta, below in zip(deltas, a[:-1], strict=True)], deltas


def train(W: Matrices, b: Matrices, inputs: np.ndarray, targets: np.ndarray, alpha: float, iterations: int) -> None:
    """Train by batch gradient descent, the algorithm of the lecture; W and b are changed in place."""
    for _ in range(iterations):
        sums = [np.zeros_like(array) for array in (*W, *b)]
        for x, y in zip(inputs, targets, strict=True):
            d_W, d_b = gradients(W, b, x, y)
            for total, gradient in zip(sums, (*d_W, *d_b), strict=True):
                total += gradient
        for array, total in zip((*W, *b), sums, strict=True):
            array -= alpha * total


def example(sizes: tuple[int, ...], examples: int, seed: int = 0) -> tuple[Matrices, Matrices, np.ndarray, np.ndarray]:
    """Return random W and b of layers with these sizes, and N random examples: inputs (N, I), and targets (N, O) of 0 and 1."""
    generator = np.random.default_rng(seed)
    W = [generator.normal(size=(outputs, inputs)) for inputs, outputs in pairwise(sizes)]
    b = [generator.normal(size=size) for size in sizes[1:]]
    targets = generator.integers(2, size=(examples, sizes[-1])).astype(float)
    return W, b, generator.normal(size=(examples, sizes[0])), targets


def in_the_library(W: Matrices, b: Matrices) -> tuple[Network, Parameters]:
    """Return the library's network with these weights and biases."""
    hidden = tuple(len(each) for each in b[:-1])
    config = NetworkConfig.feedforward(W[0].shape[1], hidden, len(b[-1]), activation="sigmoid", output="sigmoid")
    arrays = {"output.weight": W[-1].copy(), "output.bias": b[-1].copy()}
    for layer, (W_l, b_l) in enumerate(zip(W[:-1], b[:-1], strict=True)):
        arrays |= {f"hidden.{layer}.weight": W_l.copy(), f"hidden.{layer}.bias": b_l.copy()}
    return Network(config, CpuBackend()), Parameters.from_arrays(config, arrays)


def library_gradients(
    network: Network, parameters: Parameters, inputs: np.ndarray, targets: np.ndarray
) -> tuple[Matrices, Matrices]:
    """Return the gradients of the mean loss with respect to each W^l and each b^l, computed by the library."""
    found, losses = Parameters.zeros(network.config, np.float64), np.empty(len(inputs))
    network.gradients(parameters, inputs, targets, found, losses)
    return [*found.hidden_weights, found.output_weight], [*found.hidden_biases, found.output_bias]


def library_train(
    W: Matrices, b: Matrices, inputs: np.ndarray, targets: np.ndarray, alpha: float, iterations: int
) -> tuple[Matrices, Matrices]:
    """Return W and b after the same training with the library's gradients."""
    network, parameters = in_the_library(W, b)
    arrays = [*parameters.hidden_weights, parameters.output_weight, *parameters.hidden_biases, parameters.output_bias]
    for _ in range(iterations):
        d_W, d_b = library_gradients(network, parameters, inputs, targets)
        for array, gradient in zip(arrays, (*d_W, *d_b), strict=True):
            array -= alpha * len(inputs) * gradient
    return arrays[: len(W)], arrays[len(W) :]


def largest_difference(first: Matrices, second: Matrices) -> float:
    """Return the largest difference between the elements of two lists of matrices."""
    return max(float(np.abs(one - other).max()) for one, other in zip(first, second, strict=True))


def main() -> None:
    W, b, inputs, targets = example((3, 4, 1), 20)
    own, library = gradients(W, b, inputs[0], targets[0]), library_gradients(*in_the_library(W, b), inputs[:1], targets[:1])
    print(f"3-4-1 network of sigmoids, one example, y = {targets[0, 0]:.0f}, a^2 = {forward(W, b, inputs[0])[-1][0]:.4f}")
    for name, loop, found in zip("Wb", own, library, strict=True):
        for layer, (one, other) in enumerate(zip(loop, found, strict=True), 1):
            print(f"\ndC/d{name}^{layer} {one.shape}: by the loop | by the library")
            for row, same in zip(np.atleast_2d(one), np.atleast_2d(other), strict=True):
                print("".join(f"{each:9.4f}" for each in row) + "   |" + "".join(f"{each:9.4f}" for each in same))

    print("\nlargest difference\n       network   gradients of one example   weights after 200 iterations over 20 examples")
    for sizes in ((3, 4, 1), (4, 6, 3), (4, 5, 6, 3), (3, 8, 8, 8, 8, 2)):
        W, b, inputs, targets = example(sizes, 20)
        network = in_the_library(W, b)
        own, library = gradients(W, b, inputs[0], targets[0]), library_gradients(*network, inputs[:1], targets[:1])
        of_gradients = max(map(largest_difference, own, library))
        library = library_train(W, b, inputs, targets, 0.05, 200)
        train(W, b, inputs, targets, 0.05, 200)
        of_weights = max(map(largest_difference, (W, b), library))
        print(f"{'-'.join(map(str, sizes)):>14s}{of_gradients:27.0e}{of_weights:33.0e}")


if __name__ == "__main__":
    main()
