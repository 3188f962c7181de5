"""The losses of single outputs, the distributions that they come from, and what a network learns by minimizing them.

A network computes a score z. The loss follows from the kind of target y: choose a distribution of y whose mean depends on z, and
use the negative logarithm of the probability of the observed y as the loss. Terms that do not depend on z can be left out.

    y                        distribution of y                 a, the mean of y    loss
    0 or 1                   Bernoulli                         sigmoid(z)          -(y log a + (1 - y) log(1 - a))
    a real number            normal, with the variance 1/2     z                   (z - y)^2
    the same, with outliers  Laplace, with the scale 1         z                   |z - y|
    0, 1, 2, 3, ...          Poisson                           e^z, positive       e^z - y z

Another variance or scale multiplies the loss by a constant, which does not change its minimum. The hinge loss max(0, 1 - y z) and
the exponential loss e^(-y z) are for two classes, y = -1 or 1. They require a margin, and do not come from a distribution of y.

If the score is the same for all examples, it becomes the mean of the targets with the squared error and with Poisson, and their
median with the absolute error. The derivative of the absolute error is 1 or -1, however small the error is. Therefore steps of a
constant size always jump over the minimum, and the learning rate must decrease.

    python examples/losses.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np
from gradient_descent import LINES, descend
from scipy import stats

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import UnitLoss
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

TARGETS: dict[UnitLoss, tuple[float, ...]] = {  # the targets in the tables
    "sigmoid": (0, 1),
    "squared": (1,),
    "absolute": (1,),
    "poisson": (0, 3),
    "hinge": (-1, 1),
    "exponential": (-1, 1),
}
SCORES = (-1.0, 0.0, 0.5, 2.0)
OUTLIER = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
X = np.arange(-3.0, 4.0).reshape(-1, 1)
COUNTS = np.array([[0.0, 0, 0, 1, 3, 7, 20]]).T  # e^x, rounded


def loss(output: UnitLoss, z: float, y: float) -> tuple[float, float]:
    """Return the loss of a score z with the target y, and its derivative dL/dz, computed by the library."""
    losses, slopes = np.empty(1), np.empty((1, 1))
    CpuBackend().unit_losses(np.array([[z]]), np.array([[float(y)]]), output, 1.0, losses, slopes)
    return float(losses[0]), float(slopes[0, 0])


def surprise(output: UnitLoss, z: float, y: float) -> float:
    """Return the negative logarithm of the probability (or of the density) of y, computed by SciPy."""
    if output == "sigmoid":
        return -float(stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-z))))
    if output == "poisson":
        return -float(stats.poisson.logpmf(y, np.exp(z)))
    if output == "squared":
        return -float(stats.norm.logpdf(y, z, np.sqrt(1 / 2)))
    return -float(stats.laplace.logpdf(y, z))


def linear(output: UnitLoss, x: np.ndarray, y: np.ndarray, rate: float, steps: int) -> tuple[Network, Parameters]:
    """Return a unit z = a x + b, trained by batch gradient descent from a = b = 0 on inputs x (B, 1) and targets y (B, 1)."""
    config = NetworkConfig.feedforward(1, (), 1, output=output)
    network, parameters = Network(config, CpuBackend()), Parameters.zeros(config, np.float64)
    descend(network, parameters, x, y, rate, steps)
    return network, parameters


def constant(output: UnitLoss, targets: np.ndarray, rate: float, steps: int) -> float:
    """Return the output that is learned for targets (B,) if all inputs are 0, so that it is the same for all examples."""
    network, parameters = linear(output, np.zeros((len(targets), 1)), targets.reshape(-1, 1), rate, steps)
    return float(network.predict(parameters, np.zeros((1, 1)))[0, 0])


def draw(path: Path) -> None:
    """Draw the losses, and a line and a Poisson unit that were fitted to counts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), dpi=150, layout="constrained")
    numbers, classes, counts = figure.subplots(1, 3)
    z = np.linspace(-3, 3, 241)
    panels = (numbers, ("squared", "absolute", "poisson")), (classes, ("sigmoid", "hinge", "exponential"))
    for axes, outputs in panels:
        for output, style in zip(outputs, ("-", "--", "-."), strict=True):
            axes.plot(z, [loss(output, each, 1)[0] for each in z], style, lw=2.5, label=output)
    classes.step(z, z <= 0, color="0.6", lw=1.5, label="0-1 loss")
    for output, name, style in (("squared", "a line, squared error", "--"), ("poisson", "$e^z$, Poisson", "-")):
        network, parameters = linear(output, X, COUNTS, 0.05, 4000)
        x = np.linspace(-3.2, 3.2, 101).reshape(-1, 1)
        counts.plot(x, network.predict(parameters, x), style, lw=2.5, label=name)
    counts.plot(X, COUNTS, "o", color="black", label="counts")
    counts.axhline(0, color="0.7", lw=1)
    numbers.set(title="losses of the number or count $y = 1$", xlabel="score $z$", ylabel="loss", ylim=(0, 6))
    classes.set(title="losses of the class $y = 1$", xlabel="score $z$", ylim=(0, 6))
    counts.set(title="counts are never negative", xlabel="$x$", ylabel="count")
    for axes in (numbers, classes, counts):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper center" if axes is numbers else "best")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Losses of single outputs.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the losses, and two units that predict counts")
    options = parser.parse_args(arguments)

    print("loss and slope dL/dz" + " " * 5 + "".join(f"{f'z = {z:g}':>18s}" for z in SCORES))
    for output, targets in TARGETS.items():
        for y in targets:
            pairs = (loss(output, z, y) for z in SCORES)
            print(f"{output:>14s}, y = {y:2d}    " + "".join(f"{value:9.4f} {slope:8.4f}" for value, slope in pairs))

    print("\nloss less -log p(y), which must not depend on z")
    for output in ("sigmoid", "squared", "absolute", "poisson"):
        y = TARGETS[output][-1]
        rests = [loss(output, z, y)[0] - surprise(output, z, y) for z in SCORES]
        print(f"{output:>14s}, y = {y:2d}    " + "".join(f"{rest + 0.0:18.4f}" for rest in rests))

    print("\noutput learned from y = 1, 2, 3, 4, 100: the mean is 22, the median 3")
    for output, rate, steps in (("squared", 0.1, 200), ("absolute", 0.01, 2000), ("poisson", 0.01, 1000)):
        print(f"{output:>14s}{constant(output, OUTLIER, rate, steps):10.3f}")

    print("\ncounts and what a unit predicts")
    for name, row in (("x", X), ("y", COUNTS)):
        print(f"{name:>14s}" + "".join(f"{each:8.0f}" for each in row[:, 0]))
    for output in ("squared", "poisson"):
        network, parameters = linear(output, X, COUNTS, 0.05, 4000)
        print(f"{output:>14s}" + "".join(f"{each:8.2f}" for each in network.predict(parameters, X)[:, 0]))

    print("\ny = a x + b through (1, 3), (2, 5), (3, 7), rate 0.1: a and b after 1000, 1001 and 1002 steps")
    inputs, numbers = np.array(LINES["y = 2x + 1"], float).T.reshape(2, -1, 1)
    for output in ("squared", "absolute"):
        found = (linear(output, inputs, numbers, 0.1, steps)[1] for steps in (1000, 1001, 1002))
        print(f"{output:>14s}" + "".join(f"{each.output_weight[0, 0]:12.4f},{each.output_bias[0]:8.4f}" for each in found))

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
