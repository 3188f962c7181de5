"""Gradient descent: on a curve with one parameter, and for a line through three points.

Near x0, a smooth function is almost a straight line, the first two terms of its Taylor series:

    h(x) = h(x0) + h'(x0) (x - x0) + ...

So h becomes smaller if h'(x0) (x - x0) is negative. This is so for a short step against the derivative,

    x <- x - eta h'(x)        h'(x0) (x - x0) = -eta h'(x0)^2 <= 0

which goes to the right where the curve falls, and to the left where it rises, until h'(x) = 0. The step must be so short that the
other terms of the series do not matter. The curve here is h(x) = (x - 2)^2 / 2 + 1 with the derivative x - 2, so that a step
multiplies the distance from the minimum by 1 - eta. With eta = 0.05, the distance shrinks slowly, and with 0.5 quickly; with 1.9,
x jumps from side to side; with eta = 2 or more, x does not converge.

The same rule fits y = a x + b to three points. A linear unit of the library computes the gradient of the mean squared error,

    C(a, b) = 1/3 sum_i (a x_i + b - y_i)^2        a <- a - eta dC/da,  b <- b - eta dC/db

With two unknowns, one could also solve two equations, but this is not possible for a network with millions of weights.

    python examples/gradient_descent.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

MINIMUM = 2.0
RATES = {"too small": 0.05, "right": 0.5, "almost too large": 1.9, "too large": 2.1}
LINES = {"y = 2x + 1": [(1, 3), (2, 5), (3, 7)], "y = x/2 - 1": [(2, 0), (4, 1), (6, 2)]}
BLUE, RED = "#0072B2", "#D55E00"


def h(x: np.ndarray | float) -> np.ndarray | float:
    """Return the height of the curve at x."""
    return (x - MINIMUM) ** 2 / 2 + 1


def slope(x: float) -> float:
    """Return the derivative h'(x)."""
    return x - MINIMUM


def descend_curve(x: float, rate: float, steps: int) -> np.ndarray:
    """Return x before the first step and after each step, (steps + 1,)."""
    path = [x]
    for _ in range(steps):
        path.append(path[-1] - rate * slope(path[-1]))  # x <- x - eta h'(x)
    return np.array(path)


def descend(
    network: Network, parameters: Parameters, inputs: np.ndarray, targets: np.ndarray, rate: float, steps: int
) -> np.ndarray:
    """Train by batch gradient descent, which changes the parameters in place; return the mean loss before each step, (steps,)."""
    gradients, losses = Parameters.zeros(network.config, np.float64), np.empty(len(inputs))
    history = []
    for _ in range(steps):
        network.gradients(parameters, inputs, targets, gradients, losses)  # the gradients of the mean loss
        history.append(losses.mean())
        for array, gradient in zip(parameters, gradients, strict=True):
            array -= rate * gradient  # theta <- theta - eta dC/dtheta
    return np.array(history)


def fit_line(points: list[tuple[int, int]], rate: float, steps: int) -> tuple[float, float]:
    """Return a and b of the line that a linear unit learns, starting from a = b = 0."""
    config = NetworkConfig.feedforward(1, (), 1, output="squared")
    parameters = Parameters.zeros(config, np.float64)
    x, y = np.array(points, float).T.copy().reshape(2, -1, 1)
    descend(Network(config, CpuBackend()), parameters, x, y, rate, steps)
    return float(parameters.output_weight[0, 0]), float(parameters.output_bias[0])


def draw(path: Path) -> None:
    """Draw tangents of the curve, and the steps with four learning rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), dpi=150, layout="constrained")
    first, *panels = figure.subplots(1, 1 + len(RATES), sharey=True)
    x = np.linspace(-3, 7, 201)
    for axes in (first, *panels):
        axes.plot(x, h(x), color="0.6")
        axes.set(xlabel="$x$", xlim=(-3.5, 7.5), ylim=(0, 13), xticks=(-2, 0, 2, 4, 6))
        axes.spines[["top", "right"]].set_visible(False)
    for start, color, label in ((-1.0, BLUE, "falls:\ngo right"), (5.0, RED, "rises:\ngo left")):
        near = start + np.array([-1.2, 1.2])
        first.plot(near, h(start) + slope(start) * (near - start), color=color, lw=2)
        first.plot(start, h(start), "o", color=color)
        move = -0.5 * slope(start)
        first.annotate("", (start + move, h(start)), (start, h(start)), arrowprops={"arrowstyle": "->", "color": color, "lw": 2})
        first.text(start, 10.2, label, color=color, ha="center")
    first.set(title="against the derivative", ylabel="$h(x)$")
    for axes, (name, rate) in zip(panels, RATES.items(), strict=True):
        places = descend_curve(-1.0, rate, 10)
        axes.plot(places, h(places), "-o", color=BLUE, ms=4, lw=1)
        axes.plot(places[0], h(places[0]), "o", color=RED, ms=7)
        axes.set_title(f"{name}: $\\eta = {rate}$")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Gradient descent with one parameter and with two.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the steps on the curve")
    options = parser.parse_args(arguments)

    print("h(x) = (x - 2)^2 / 2 + 1 from x = -1: x after so many steps")
    steps = (0, 1, 2, 3, 10, 50)
    print(f"{'eta':>23s}" + "".join(f"{step:10d}" for step in steps))
    for name, rate in RATES.items():
        path = descend_curve(-1.0, rate, steps[-1])
        print(f"{name:>17s}{rate:6.2f}" + "".join(f"{path[step]:10.4f}" for step in steps))

    print("\ny = a x + b from three points, from a = b = 0")
    for name, points in LINES.items():
        print(f"  {name}: points " + ", ".join(f"({x}, {y})" for x, y in points))
        for count in (1, 10, 100, 1000):
            a, b = fit_line(points, 0.05, count)
            print(f"    after {count:5d} steps  a = {a:7.4f}, b = {b:7.4f}")

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
