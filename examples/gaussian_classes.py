"""Where the softmax comes from: it is the posterior of classes that have normal distributions with the same covariance.

Bayes' rule gives the probability of a class from the density of x in each class and the frequencies of the classes:

    P(C_k | x) = p(x | C_k) P(C_k) / sum_j p(x | C_j) P(C_j) = e^a_k / sum_j e^a_j,    a_k = log p(x | C_k) P(C_k)

This already is a softmax. If the classes have normal distributions with means mu_k and the same covariance Sigma, then the
quadratic term -x' Sigma^-1 x / 2 is the same in all a_k, and a softmax does not change if the same number is added to all scores.
What remains is linear:

    a_k = w_k . x + w_k0,    w_k = Sigma^-1 mu_k,    w_k0 = -mu_k' Sigma^-1 mu_k / 2 + log P(C_k)

These are the weights and the bias of a layer. Such a layer can also be learned from points, without knowing the means and the
covariance. Because only the differences between scores matter, the weights of the first class are subtracted before the weights
of two layers are compared.

    python examples/gaussian_classes.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np

from fflm import FeedforwardClassifier
from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

MEANS = np.array([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]])
COVARIANCE = np.array([[1.0, 0.4], [0.4, 0.7]])
PRIORS = np.array([0.5, 0.3, 0.2])
COLORS = ("#0072B2", "#D55E00", "#009E73")
CONFIG = NetworkConfig.feedforward(2, (), 3)


def bayes(x: np.ndarray) -> np.ndarray:
    """Return P(C_k | x) of points x (N, 2) by Bayes' rule, (N, 3)."""
    away = x[:, None] - MEANS  # (N, 3, 2)
    squares = np.einsum("nki,ij,nkj->nk", away, np.linalg.inv(COVARIANCE), away)
    densities = np.exp(-squares / 2) / (2 * np.pi * np.sqrt(np.linalg.det(COVARIANCE)))
    joint = densities * PRIORS
    return joint / joint.sum(1, keepdims=True)


def layer() -> Parameters:
    """Return a layer with the weights w_k and the biases w_k0 of the formulas."""
    weight = MEANS @ np.linalg.inv(COVARIANCE)  # rows w_k = Sigma^-1 mu_k
    bias = -(weight * MEANS).sum(1) / 2 + np.log(PRIORS)
    return Parameters.from_arrays(CONFIG, {"output.weight": weight, "output.bias": bias})


def predict(parameters: Parameters, x: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, 3) of a softmax layer for points x (N, 2)."""
    return Network(CONFIG, CpuBackend()).predict(parameters, x)


def sample(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random points (N, 2) and their classes (N,)."""
    generator = np.random.default_rng(seed)
    classes = generator.choice(3, size=count, p=PRIORS).astype(np.int32)
    return MEANS[classes] + generator.multivariate_normal((0, 0), COVARIANCE, size=count), classes


def learn(count: int, random_state: int = 0) -> Parameters:
    """Return the weights and biases that a layer learns from ``count`` random points."""
    layer = FeedforwardClassifier(
        (), normalize=False, epochs=max(20, 200_000 // count), batch_size=200, rate=0.1, weight_decay=0, random_state=random_state
    )
    return layer.fit(*sample(count, seed=0)).parameters_


def differences(parameters: Parameters) -> np.ndarray:
    """Return the weights and the bias of the second and of the third class minus those of the first class, (2, 3)."""
    rows = np.column_stack([parameters.output_weight, parameters.output_bias])
    return rows[1:] - rows[0]


def draw(path: Path) -> None:
    """Draw points of each class and the borders between the most probable classes: by the formulas, and as learned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    x, classes = sample(600, seed=1)
    for number, color in enumerate(COLORS):
        axes.plot(*x[classes == number].T, ".", color=color, ms=4, label=f"class {number + 1}")
        axes.plot(*MEANS[number], "P", color=color, ms=13, mec="white")
    ticks = np.linspace(-5, 5, 401)
    grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    lines = (layer(), "-", 3.5, "0.75", "by the formulas"), (learn(20_000), "--", 1.5, "black", "learned from 20,000 points")
    for parameters, style, width, color, label in lines:
        likeliest = predict(parameters, grid).argmax(1).reshape(401, 401)
        axes.contour(ticks, ticks, likeliest, levels=[0.5, 1.5], colors=color, linestyles=style, linewidths=width)
        axes.plot([], [], style, color=color, lw=width, label=label)
    axes.set(
        aspect="equal", xlim=(-5, 5), ylim=(-5, 5), xlabel="$x_1$", ylabel="$x_2$", title="Where the likeliest class changes"
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Gaussian classes and the softmax.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the classes and the borders between them")
    options = parser.parse_args(arguments)

    exact, x = layer(), np.array([[0.0, 0.0], [1.0, 0.5], [-1.0, 2.0]])
    print("w_k = Sigma^-1 mu_k and w_k0 = -mu_k' Sigma^-1 mu_k / 2 + log P(C_k)")
    for number, (weight, bias) in enumerate(zip(exact.output_weight, exact.output_bias, strict=True), 1):
        print(f"  class {number}  w = ({weight[0]:7.4f}, {weight[1]:7.4f})   w_0 = {bias:7.4f}")
    print("\n           x     P(C | x) by Bayes' rule       by the softmax layer")
    for point, posterior, p in zip(x, bayes(x), predict(exact, x), strict=True):
        numbers = ("".join(f"{each:8.4f}" for each in row) for row in (posterior, p))
        print(f"  ({point[0]:4.1f}, {point[1]:3.1f})" + "    ".join(numbers))
    points, _ = sample(1000, seed=1)
    print(f"  largest difference over 1,000 points  {np.abs(bayes(points) - predict(exact, points)).max():.0e}")

    print("\nweights and bias less those of class 1    class 2                      class 3")
    rows = {"by the formulas": exact, **{f"learned from {count:,} points": learn(count) for count in (200, 2_000, 20_000)}}
    for name, parameters in rows.items():
        own = "   ".join("".join(f"{each:8.4f}" for each in row) for row in differences(parameters))
        far = np.abs(predict(parameters, points) - bayes(points)).mean()
        print(f"{name:>28s}    {own}   mean error of P {far:.4f}")

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
