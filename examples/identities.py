"""Three identities of neural networks, with numerical examples.

1. The sigmoid is a softmax over two scores, of which the second is 0:

       softmax([z, 0])_1 = e^z / (e^z + e^0) = 1 / (1 + e^-z) = sigmoid(z)

   So a sigmoid output with the weights w is a softmax of two classes with the weights w and 0. Both have the cross-entropy
   L = -log p(right class) with dL/dz = p - y, and therefore the same gradient with respect to w.

2. A bias is the weight of an input that is always 1:

       W x + b = W' x',  W' = [b W],  x' = (1, x)          dL/dW' = [dL/db dL/dW]

3. Layers without an activation function (or with the identity) are equivalent to a single layer:

       W3 (W2 (W1 x + b1) + b2) + b3 = W x + b,  W = W3 W2 W1,  b = W3 (W2 b1 + b2) + b3

   With a ReLU between the layers they are not. This is why a network needs nonlinear activation functions.

The second and the third are in Jurafsky & Martin, Speech and Language Processing, 3rd ed., chapter "Neural Networks", section
"Feedforward Neural Networks".

    python examples/identities.py
"""

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

Arrays = dict[str, np.ndarray]


def outputs(config: NetworkConfig, weights: Arrays, x: np.ndarray) -> np.ndarray:
    """Return the outputs (B, O) of a network for inputs x (B, I)."""
    return Network(config, CpuBackend()).predict(Parameters.from_arrays(config, weights), x)


def gradients(config: NetworkConfig, weights: Arrays, x: np.ndarray, targets: np.ndarray) -> Arrays:
    """Return the gradients of the mean loss with respect to all weights and biases, by their names."""
    found, losses = Parameters.zeros(config, np.float64), np.empty(len(x))
    Network(config, CpuBackend()).gradients(Parameters.from_arrays(config, weights), x, targets, found, losses)
    return dict(found.items())


def sigmoid_as_softmax(seed: int = 1) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return p(y = 1 | x) of five examples (5,) and the gradient of w (3,), computed with a sigmoid and with a softmax."""
    draw = np.random.default_rng(seed).normal
    x, y = draw(size=(5, 4)), np.array([1, 0, 0, 1, 1])
    hidden = {"hidden.0.weight": draw(size=(3, 4)), "hidden.0.bias": draw(size=3)}  # both networks have this hidden layer
    w, b = draw(size=(1, 3)), draw(size=1)

    one = NetworkConfig.feedforward(4, (3,), 1, activation="tanh", output="sigmoid")
    sigmoid = {**hidden, "output.weight": w, "output.bias": b}
    d_sigmoid = gradients(one, sigmoid, x, y.reshape(-1, 1).astype(np.float64))

    two = NetworkConfig.feedforward(4, (3,), 2, activation="tanh", output="softmax")
    softmax = {**hidden, "output.weight": np.vstack([w, np.zeros_like(w)]), "output.bias": np.append(b, 0)}
    d_softmax = gradients(two, softmax, x, (1 - y).astype(np.int32))  # y = 1 is the first class, which has the number 0
    return {
        "sigmoid": (outputs(one, sigmoid, x)[:, 0], d_sigmoid["output.weight"][0]),
        "softmax": (outputs(two, softmax, x)[:, 0], d_softmax["output.weight"][0]),
    }


def bias_as_weight(seed: int = 2) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the probabilities (5, 3) and the gradients (3, 5) of [b W] and of W', of a layer with a bias and of one without."""
    generator = np.random.default_rng(seed)
    x, classes = generator.normal(size=(5, 4)), generator.integers(3, size=5, dtype=np.int32)
    W, b = generator.normal(size=(3, 4)), generator.normal(size=3)

    config = NetworkConfig.feedforward(4, (), 3)
    weights = {"output.weight": W, "output.bias": b}
    d = gradients(config, weights, x, classes)

    longer = NetworkConfig.feedforward(5, (), 3)
    x_ = np.column_stack([np.ones(5), x])  # x' = (1, x)
    weights_ = {"output.weight": np.column_stack([b, W]), "output.bias": np.zeros(3)}  # W' = [b W], and no other bias
    d_ = gradients(longer, weights_, x_, classes)
    return {
        "W x + b": (outputs(config, weights, x), np.column_stack([d["output.bias"], d["output.weight"]])),
        "W' x'": (outputs(longer, weights_, x_), d_["output.weight"]),
    }


def collapse(seed: int = 3) -> dict[str, np.ndarray]:
    """Return the outputs (5, 2) of three layers without activation functions, of the equivalent layer, and of three with ReLU."""
    draw = np.random.default_rng(seed).normal
    x = draw(size=(5, 4))
    W1, b1, W2, b2, W3, b3 = draw(size=(5, 4)), draw(size=5), draw(size=(6, 5)), draw(size=6), draw(size=(2, 6)), draw(size=2)

    three = {
        "hidden.0.weight": W1,
        "hidden.0.bias": b1,
        "hidden.1.weight": W2,
        "hidden.1.bias": b2,
        "output.weight": W3,
        "output.bias": b3,
    }
    one = {"output.weight": W3 @ W2 @ W1, "output.bias": W3 @ (W2 @ b1 + b2) + b3}
    linear = NetworkConfig.feedforward(4, (5, 6), 2, activation="identity", output="squared")  # the outputs are numbers
    single = NetworkConfig.feedforward(4, (), 2, output="squared")
    relu = NetworkConfig.feedforward(4, (5, 6), 2, activation="relu", output="squared")
    return {
        "three layers": outputs(linear, three, x),
        "one layer": outputs(single, one, x),
        "three with ReLU": outputs(relu, three, x),
    }


def main() -> None:
    print("1. sigmoid(z) = softmax([z, 0])_1")
    found = sigmoid_as_softmax()
    for name, (p, d_w) in found.items():
        print(f"   {name}  p(y = 1 | x) {p.round(4)}   dL/dw {d_w.round(4)}")
    p_difference, d_difference = (np.abs(one - other).max() for one, other in zip(*found.values(), strict=True))
    print(f"   largest difference  {p_difference:.0e} of p, {d_difference:.0e} of dL/dw")

    print("\n2. W x + b = W' x' with W' = [b W], x' = (1, x)")
    found = bias_as_weight()
    for name, (p, d_W) in found.items():
        column = "dL/db" if name == "W x + b" else "dL/dW', first column"
        print(f"   {name:7s}  p(class | first x) {p[0].round(4)}   {column} {d_W[:, 0].round(4)}")
    p_difference, d_difference = (np.abs(one - other).max() for one, other in zip(*found.values(), strict=True))
    print(f"   largest difference  {p_difference:.0e} of p, {d_difference:.0e} of the gradients of all weights")

    print("\n3. W3 (W2 (W1 x + b1) + b2) + b3 = W x + b with W = W3 W2 W1, b = W3 (W2 b1 + b2) + b3")
    three, one, relu = collapse().values()
    for name, y in collapse().items():
        print(f"   {name:15s}  y of the first x {y[0].round(4)}")
    print(f"   largest difference from one layer  {np.abs(three - one).max():.0e}, with ReLU {np.abs(relu - one).max():.1f}")


if __name__ == "__main__":
    main()
