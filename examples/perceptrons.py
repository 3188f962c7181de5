"""Perceptrons can compute AND and OR, but not XOR, which a network with a hidden layer can compute.

A perceptron is a unit whose activation function is a step function. It learns by a correction after each example:

    yhat = 1 if w . x + b > 0, else 0          w += (y - yhat) x,  b += (y - yhat)

XOR would require b <= 0, w1 + b > 0, w2 + b > 0 and w1 + w2 + b <= 0. But the sum of the second and the third inequality is
w1 + w2 + 2b > 0, so that w1 + w2 + b > -b >= 0, which contradicts the fourth. So no line separates the inputs. A hidden layer of
two ReLU units moves the inputs to points that a line separates:

    h = ReLU(W x + c)     W = [[1, 1], [1, 1]], c = [0, -1]
    y = u . h + b         u = [1, -2], b = 0

The perceptrons and this network, which is that of Goodfellow, Bengio & Courville 2016, Deep Learning, section 6.1, are those of
Jurafsky & Martin, Speech and Language Processing, 3rd ed., chapter "Neural Networks", section "The XOR problem". Two hidden
units can compute XOR, but training often does not find suitable weights; with more units it succeeds.

    python examples/perceptrons.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np

from fflm import FeedforwardClassifier
from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

INPUTS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGETS = {"AND": np.array([0, 0, 0, 1]), "OR": np.array([0, 1, 1, 1]), "XOR": np.array([0, 1, 1, 0])}
PERCEPTRONS = {"AND": (np.array([1.0, 1.0]), -1.0), "OR": (np.array([1.0, 1.0]), 0.0)}
BORDERS = {"AND": 1.5, "OR": 0.5}  # x1 + x2 on the lines that are drawn, because those of PERCEPTRONS go through inputs
BLUE, RED, SHADE = "#0072B2", "#D55E00", "#d6e6f2"


def perceptron(w: np.ndarray, b: float, x: np.ndarray) -> np.ndarray:
    """Return the outputs (B,), 0 or 1, of a perceptron for inputs x (B, 2)."""
    return (x @ w + b > 0).astype(int)


def perceptron_rule(targets: np.ndarray) -> list[tuple[float, ...]]:
    """Apply the perceptron rule from w = b = 0; return (w1, w2, b) after each epoch until they repeat."""
    w, b = np.zeros(2), 0.0
    history: list[tuple[float, ...]] = []
    while len(set(history)) == len(history):
        for x, y in zip(INPUTS, targets, strict=True):
            error = y - (w @ x + b > 0)  # 0 if the output is right
            w, b = w + error * x, b + error
        history.append((*w.tolist(), float(b)))
    return history


def xor_network() -> tuple[Network, Parameters]:
    """Return the network with the weights above. Its output is a number, as for the squared error."""
    config = NetworkConfig.feedforward(2, (2,), 1, activation="relu", output="squared")
    arrays = {
        "hidden.0.weight": np.array([[1.0, 1.0], [1.0, 1.0]]),
        "hidden.0.bias": np.array([0.0, -1.0]),
        "output.weight": np.array([[1.0, -2.0]]),
        "output.bias": np.array([0.0]),
    }
    return Network(config, CpuBackend()), Parameters.from_arrays(config, arrays)


def hidden(x: np.ndarray) -> np.ndarray:
    """Return the hidden representation h (B, 2) of `xor_network` for inputs x (B, 2)."""
    _, parameters = xor_network()
    return np.maximum(0, x @ parameters.hidden_weights[0].T + parameters.hidden_biases[0])  # h = ReLU(W x + c)


def learned(units: int, seed: int) -> np.ndarray:
    """Train a network with this number of tanh units on XOR; return the probability that y = 1 for the four inputs, (4,)."""
    model = FeedforwardClassifier((units,), "tanh", output="sigmoid", rate=0.1, random_state=seed)
    return model.fit(INPUTS, TARGETS["XOR"]).predict_proba(INPUTS)[:, 1]


def draw(path: Path) -> None:
    """Draw where AND, OR and XOR are 1 among the inputs, and where y > 1/2 among the hidden representations of XOR."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    network, parameters = xor_network()
    figure = Figure(figsize=(14, 4.2), dpi=150, layout="constrained")
    panels = dict(zip(("AND", "OR", "XOR", "hidden"), figure.subplots(1, 4, width_ratios=(2, 2, 2, 3)), strict=True))
    ticks = np.linspace(-0.5, 2.5, 301)
    grid = np.stack(np.meshgrid(ticks, ticks), -1)
    values = {name: grid.sum(-1) - border for name, border in BORDERS.items()}
    values["XOR"] = network.predict(parameters, grid.reshape(-1, 2)).reshape(grid.shape[:2]) - 0.5
    values["hidden"] = grid @ parameters.output_weight[0] + parameters.output_bias[0] - 0.5  # y = u . h + b
    for panel, axes in panels.items():
        name, points = ("XOR", hidden(INPUTS)) if panel == "hidden" else (panel, INPUTS)
        axes.contourf(ticks, ticks, values[panel], levels=[0, np.inf], colors=[SHADE])
        axes.contour(ticks, ticks, values[panel], levels=[0], colors="black", linewidths=1.5)
        for wanted, marker, color, face, height in ((1, "o", BLUE, BLUE, -22), (0, "s", RED, "white", 12)):
            chosen = points[TARGETS[name] == wanted]
            axes.plot(*chosen.T, marker, ms=11, mfc=face, mec=color, mew=2.5, label=f"y = {wanted}")
            for point in np.unique(chosen, axis=0):
                names = [f"[{x1:.0f} {x2:.0f}]" for x1, x2 in INPUTS[(points == point).all(1)]]
                axes.annotate(" and ".join(names), point, (0, height), textcoords="offset points", ha="center")
        axes.set(aspect="equal", xticks=(0, 1), yticks=(0, 1), xlim=(-0.5, 1.5), ylim=(-0.5, 1.5), xlabel="$x_1$", ylabel="$x_2$")
        axes.spines[["top", "right"]].set_visible(False)
    panels["AND"].set(title="AND: the line $x_1 + x_2 = 3/2$")
    panels["OR"].set(title="OR: the line $x_1 + x_2 = 1/2$")
    panels["XOR"].set(title="XOR: no single line")
    panels["hidden"].set(
        title="XOR, hidden space: $h_1 - 2 h_2 = 1/2$", xlabel="$h_1$", ylabel="$h_2$", xticks=(0, 1, 2), xlim=(-0.5, 2.5)
    )
    handles = [
        *panels["AND"].get_legend_handles_labels()[0],
        Patch(fc=SHADE, ec="black", label="the output is 1, or more than 1/2"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="AND, OR and XOR.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the input spaces and the hidden space")
    options = parser.parse_args(arguments)

    for name, (w, b) in PERCEPTRONS.items():
        print(f"{name}: w = [{w[0]:.0f}, {w[1]:.0f}], b = {b:.0f}, y = 1 if w . x + b > 0\n  x1  x2  w . x + b   y")
        for x, y in zip(INPUTS, perceptron(w, b, INPUTS), strict=True):
            print(f"{x[0]:4.0f}{x[1]:4.0f}{w @ x + b:11.0f}{y:4d}")

    print("\nThe perceptron rule, from zero:\n     epoch  w1  w2   b  right of 4")
    for name, targets in TARGETS.items():
        history = perceptron_rule(targets)
        for epoch, (w1, w2, b) in enumerate(history, 1):
            right = (perceptron(np.array([w1, w2]), b, INPUTS) == targets).sum()
            print(f"{name:4s}{epoch:6d}{w1:4.0f}{w2:4.0f}{b:4.0f}{right:12d}")
        same = history.index(history[-1]) + 1
        print(f"    as after epoch {same}: " + ("learned" if right == 4 else "it goes round for ever, all four never right"))

    print("\nXOR with a hidden layer: h = ReLU(W x + c), y = u . h + b\n  x1  x2      h1  h2       y")
    network, parameters = xor_network()
    for x, h, y in zip(INPUTS, hidden(INPUTS), network.predict(parameters, INPUTS)[:, 0], strict=True):
        print(f"{x[0]:4.0f}{x[1]:4.0f}{h[0]:8.0f}{h[1]:4.0f}{y:8.0f}")

    print("\nXOR learned by a network with 8 hidden units\n  x1  x2  p(y = 1)   y")
    for x, p in zip(INPUTS, learned(8, seed=0), strict=True):
        print(f"{x[0]:4.0f}{x[1]:4.0f}{p:10.4f}{int(p > 0.5):4d}")

    print("\nHow many of 10 random starts learn all four")
    for units in (2, 4, 8):
        successes = sum(((learned(units, seed) > 0.5) == TARGETS["XOR"]).all() for seed in range(10))
        print(f"  {units} hidden units{successes:4d}")

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
