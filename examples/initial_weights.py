"""Why initial weights are random, and why they matter.

1. Symmetry. Hidden units with equal weights have equal outputs and equal gradients, so they always remain equal: six such units
   can do no more than one. Random weights break the symmetry. A network without a hidden layer, which is logistic regression, has
   no such symmetry, so its weights may start at 0.

2. Several minima. The loss of logistic regression is convex, so gradient descent reaches the same minimum from any initial
   weights. The loss of a network with a hidden layer is not convex, as the smallest one shows, yhat = u tanh(w x). Its loss has
   two minima, (w, u) and (-w, -u), which are the same function. Between them, at (0, 0), the loss is higher, which is impossible
   for a convex function. The initial weights determine which minimum gradient descent finds.

3. Minima that are not equally good. Two hidden units can compute XOR, but from some initial weights, training ends with an output
   of 1/2 for several inputs.

    python examples/initial_weights.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np
from gradient_descent import descend
from sklearn.datasets import load_iris

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

IRIS = NetworkConfig.feedforward(4, (6,), 3, activation="sigmoid")
LINEAR = NetworkConfig.feedforward(4, (), 3)  # multinomial logistic regression
SMALLEST = NetworkConfig.feedforward(1, (1,), 1, activation="tanh", output="squared")
XOR = NetworkConfig.feedforward(2, (2,), 1, activation="tanh", output="sigmoid")
X = np.linspace(-2, 2, 9).reshape(-1, 1)
Y = 0.8 * np.tanh(1.5 * X)
STARTS = ((0.3, -0.1), (-0.1, -0.4))  # initial w and u


def flowers() -> tuple[np.ndarray, np.ndarray]:
    """Return the features of the iris data (150, 4), scaled to mean 0 and standard deviation 1, and the classes (150,)."""
    features, classes = load_iris(return_X_y=True)
    return np.ascontiguousarray((features - features.mean(0)) / features.std(0)), classes.astype(np.int32)


def train(parameters: Parameters, config: NetworkConfig, steps: int) -> float:
    """Train parameters by batch gradient descent on the iris data; return the loss after ``steps`` steps."""
    return float(descend(Network(config, CpuBackend()), parameters, *flowers(), 1.0, steps + 1)[-1])


def equal(value: float) -> Parameters:
    """Return weights and biases of the iris network that are all equal to ``value``."""
    return Parameters.zeros(IRIS, np.float64).mapped(lambda array: array + value)


def spread(parameters: Parameters) -> float:
    """Return the largest difference between two hidden units in a weight, either of their inputs or of their outputs."""
    (into,), out = parameters.hidden_weights, parameters.output_weight
    return float(max(np.ptp(into, axis=0).max(), np.ptp(out, axis=1).max()))


def surface(w: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the mean squared errors of yhat = u tanh(w x) for weights w and u, arrays of the same shape."""
    return ((u[..., None] * np.tanh(w[..., None] * X[:, 0]) - Y[:, 0]) ** 2).mean(-1)


def descend_smallest(w: float, u: float, steps: int = 300) -> np.ndarray:
    """Train yhat = u tanh(w x) with the library; return (w, u) before the first step and after each step, (steps + 1, 2)."""
    arrays = {"hidden.0.weight": [[w]], "hidden.0.bias": [0.0], "output.weight": [[u]], "output.bias": [0.0]}
    parameters = Parameters.from_arrays(SMALLEST, {name: np.array(array) for name, array in arrays.items()})
    network, path = Network(SMALLEST, CpuBackend()), [(w, u)]
    for _ in range(steps):
        descend(network, parameters, X, Y, 0.2, 1)
        path.append((float(parameters.hidden_weights[0][0, 0]), float(parameters.output_weight[0, 0])))
    return np.array(path)


def learn_xor(seed: int, steps: int = 3000) -> tuple[float, np.ndarray]:
    """Train a network with two hidden units on XOR, from random weights; return its loss and its outputs (4,)."""
    x, y = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), np.array([[0.0], [1.0], [1.0], [0.0]])
    network, generator = Network(XOR, CpuBackend()), np.random.default_rng(seed)
    parameters = Parameters.zeros(XOR, np.float64).mapped(lambda array: generator.normal(size=array.shape))
    losses = descend(network, parameters, x, y, 0.5, steps)
    return float(losses[-1]), network.predict(parameters, x)[:, 0]


def draw(path: Path) -> None:
    """Draw the loss of the smallest network over its two weights with two paths of training, and on a line between their ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    ticks = np.linspace(-2, 2, 201)
    w, u = np.meshgrid(ticks, ticks * 0.75)
    filled = left.contourf(w, u, surface(w, u), levels=np.linspace(0, 1.2, 13), cmap="Greys", extend="max")
    figure.colorbar(filled, ax=left, label="loss")
    paths = [descend_smallest(*start) for start in STARTS]
    share = np.linspace(-0.25, 1.25, 201)[:, None]
    line = (1 - share) * paths[1][-1] + share * paths[0][-1]
    right.plot(share, surface(line[:, 0], line[:, 1]), color="black")
    left.plot(*line.T, ":", color="black", lw=1)
    for steps, place, color in zip(paths, (1, 0), ("#0072B2", "#D55E00"), strict=True):
        left.plot(*steps.T, "-", color=color, lw=2)
        left.plot(*steps[0], "o", color=color, mec="white", ms=9, label=f"start, w = {steps[0, 0]}, u = {steps[0, 1]}")
        left.plot(*steps[-1], "*", color=color, mec="white", ms=18)
        right.plot(place, surface(*steps[-1][:, None])[0], "*", color=color, mec="white", ms=18, clip_on=False, zorder=3)
    left.set(title="loss of $\\hat y = u\\,\\tanh(w x)$, and two descents", xlabel="$w$", ylabel="$u$", xlim=(-2, 2))
    left.legend(loc="lower right", framealpha=1, fontsize="small")
    right.set(title="loss along the dotted line through both minima", ylabel="loss", ylim=(0, None), xlim=(-0.25, 1.25))
    right.set_xticks((0, 0.5, 1), ("one minimum", "halfway", "the other"))
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What initial weights do.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a loss with two minima")
    options = parser.parse_args(arguments)

    print("1. Iris, 4-6-3 sigmoid network, batch gradient descent with rate 1")
    print("   steps   all weights 0.1: loss  units differ by     random: loss  units differ by     no hidden layer, from 0: loss")
    for steps in (0, 10, 100, 300):
        same, random, linear = equal(0.1), Parameters.random(IRIS, 1, np.float64), Parameters.zeros(LINEAR, np.float64)
        losses = train(same, IRIS, steps), train(random, IRIS, steps), train(linear, LINEAR, steps)
        print(f"{steps:8d}{losses[0]:24.4f}{spread(same):17.0e}{losses[1]:17.4f}{spread(random):17.1f}{losses[2]:34.4f}")

    print("\n2. yhat = u tanh(w x), 300 steps with rate 0.2")
    ends = []
    for start in STARTS:
        path = descend_smallest(*start)
        ends.append(path[-1])
        losses = surface(path[[0, -1], 0], path[[0, -1], 1])
        (w, u), (first, last) = path[-1], losses
        print(
            f"   from w = {start[0]:4.1f}, u = {start[1]:4.1f}, loss {first:.4f}   to w = {w:7.4f}, u = {u:7.4f}, loss {last:.4f}"
        )
    print(f"   halfway between these two ends the loss is {surface(*np.mean(ends, axis=0)[:, None])[0]:.4f}")

    print("\n3. XOR with two hidden units: outputs for 00, 01, 10, 11 (0, 1, 1, 0 is right)")
    for seed in range(8):
        loss, outputs = learn_xor(seed)
        print(f"   random start {seed}: loss {loss:.4f}, outputs" + "".join(f"{each:7.3f}" for each in outputs))

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
