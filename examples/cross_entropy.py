"""Why the loss of probabilities is -log p, and not the squared error.

-log p is 0 if the right class has the probability p = 1, and grows without bound as p approaches 0. If the probabilities of three
classes are [0.3, 0.3, 0.4] and the third class is right, the loss is -log 0.4 = 0.916. Because probabilities add up to 1, raising
that of the right class lowers the sum of the others: the gradient of the loss with respect to the scores z of a softmax is p - y,
which is negative for the right class only.

After a sigmoid, a = sigmoid(z), the derivatives of the two losses are

    cross-entropy   -(y log a + (1 - y) log(1 - a))      dL/dz = a - y
    squared error   (a - y)^2                            dL/dz = 2 (a - y) a (1 - a)

If the unit is wrong and saturated, such as z = -8 where y = 1, then a (1 - a) is almost 0. The squared error should correct such
a mistake most, but its gradient is almost 0, so the unit hardly changes. With the cross-entropy, this factor cancels out.

    python examples/cross_entropy.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

PROBABILITIES, RIGHT = np.array([0.3, 0.3, 0.4]), 2
BLUE, RED = "#0072B2", "#D55E00"


def sigmoid(z: np.ndarray | float) -> np.ndarray | float:
    """Return the sigmoid."""
    return 1 / (1 + np.exp(-z))


def softmax_loss(p: np.ndarray, right: int) -> tuple[float, np.ndarray]:
    """Return the loss of a softmax whose output is p (C,), and its gradient with respect to the scores (C,), by the library."""
    config = NetworkConfig.feedforward(1, (), len(p))
    arrays = {"output.weight": np.zeros((len(p), 1)), "output.bias": np.log(p)}  # the scores are log p for any input
    gradients, losses = Parameters.zeros(config, np.float64), np.empty(1)
    network = Network(config, CpuBackend())
    network.gradients(Parameters.from_arrays(config, arrays), np.zeros((1, 1)), np.array([right], np.int32), gradients, losses)
    return float(losses[0]), gradients.output_bias


def slopes(z: float, y: float = 1.0) -> tuple[float, float]:
    """Return dL/dz of the cross-entropy and of the squared error after a sigmoid, computed by the library."""
    found = []
    for output in ("sigmoid", "sigmoid_squared"):
        config = NetworkConfig.feedforward(1, (), 1, output=output)
        parameters = Parameters.from_arrays(config, {"output.weight": np.zeros((1, 1)), "output.bias": np.array([z])})
        gradients, losses = Parameters.zeros(config, np.float64), np.empty(1)
        Network(config, CpuBackend()).gradients(parameters, np.zeros((1, 1)), np.array([[y]]), gradients, losses)
        found.append(float(gradients.output_bias[0]))
    return found[0], found[1]


def descend(z: float, rate: float, steps: int, squared: bool) -> np.ndarray:
    """Return z before the first step of gradient descent and after each step, (steps + 1,), for the target y = 1."""
    path = [z]
    for _ in range(steps):
        path.append(path[-1] - rate * slopes(path[-1])[squared])
    return np.array(path)


def draw(path: Path) -> None:
    """Draw -log p, the derivatives of both losses, and how a saturated unit learns with either."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    p = np.linspace(0.005, 1, 400)
    left.plot(p, -np.log(p), color=BLUE, lw=2.5)
    for place, text in ((0.4, "$-\\log 0.4 = 0.916$"), (1.0, "$-\\log 1 = 0$")):
        left.plot(place, -np.log(place), "o", color=RED, clip_on=False)
        left.annotate(text, (place, -np.log(place)), (-8, 14), textcoords="offset points", ha="right" if place == 1 else "left")
    left.annotate("without bound\ntowards $p = 0$", (0.03, 4.6), (0.15, 4.2), arrowprops={"arrowstyle": "->"})
    left.set(title="$-\\log p$ of the right class", xlabel="$p$", ylabel="loss", xlim=(0, 1), ylim=(0, 5))
    z = np.linspace(-8, 8, 161)
    both = np.array([slopes(each) for each in z])
    paths = [descend(-8.0, 1.0, 60, squared) for squared in (False, True)]
    for column, (name, color, style) in enumerate((("cross-entropy", BLUE, "-"), ("squared error", RED, "--"))):
        middle.plot(z, both[:, column], style, color=color, lw=2.5, label=name)
        right.plot(sigmoid(paths[column]), style, color=color, lw=2.5, label=name)
    middle.set(title="slope $dL/dz$ after a sigmoid, $y = 1$", xlabel="$z$", ylabel="$dL/dz$")
    right.set(title="learning from $z = -8$, rate 1", xlabel="step", ylabel="output $a$ (1 is right)", ylim=(-0.02, 1.02))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    middle.legend(frameon=False)
    right.legend(frameon=False, loc="center right")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cross-entropy, and the squared error after a sigmoid.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the losses and their slopes")
    options = parser.parse_args(arguments)

    loss, gradient = softmax_loss(PROBABILITIES, RIGHT)
    print(f"p = {PROBABILITIES}, class {RIGHT + 1} is right: -log {PROBABILITIES[RIGHT]} = {loss:.4f}")
    print(f"  gradient by the scores, p - y = {gradient.round(4)}")
    print("\n         p    -log p")
    for p in (1.0, 0.9, 0.5, 0.4, 0.1, 0.01, 0.0001):
        print(f"{p:10.4f}{-np.log(p) + 0:10.3f}")

    print("\nslope dL/dz after a sigmoid, where y = 1\n       z   a = sigmoid(z)   cross-entropy   squared error")
    for z in (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0):
        print(f"{z:8.0f}{sigmoid(z):17.4f}{slopes(z)[0]:16.4f}{slopes(z)[1]:16.4f}")

    print("\na after so many steps of rate 1 from z = -8\n     steps   cross-entropy   squared error")
    paths = [descend(-8.0, 1.0, 1000, squared) for squared in (False, True)]
    for steps in (0, 10, 100, 1000):
        print(f"{steps:10d}{sigmoid(paths[0][steps]):16.4f}{sigmoid(paths[1][steps]):16.4f}")

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
