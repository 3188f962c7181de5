"""Activation functions and their derivatives.

                   f(z)                              f'(z), in terms of y = f(z)
    sigmoid        1 / (1 + e^-z)                    y (1 - y), at most 1/4
    tanh           (e^z - e^-z) / (e^z + e^-z)       1 - y^2, at most 1
    ReLU           z where z > 0, else 0             1 where z > 0, else 0
    leaky ReLU     z where z > 0, else z / 100       1 where z > 0, else 1 / 100
    ELU            z where z > 0, else e^z - 1       1 where z > 0, else y + 1
    softplus       log(1 + e^z)                      1 - e^-y, which is sigmoid(z)

Sigmoid, tanh and ReLU are those of Jurafsky & Martin, Speech and Language Processing, 3rd ed., chapter "Neural Networks",
section "Units". ReLU and leaky ReLU have no derivative at 0. The library uses the derivative from the left, so that ReLU'(0) is
0, and not 1 as in that book. All derivatives can be computed from y alone, so a network need not store z for the backward pass.

A unit with the weight 1 and the bias 0 computes only the activation function: y = f(1 z + 0). If the loss is y itself, then
dL/dy = 1 and dL/dz = f'(z), which is what the backward pass of such a layer returns.

    python examples/activations.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import Activation

NAMES: dict[Activation, str] = {
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "ReLU",
    "leaky_relu": "leaky ReLU",
    "elu": "ELU",
    "softplus": "softplus",
}


def activation(name: Activation, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return f(z) and f'(z) for numbers z (N,), computed by a layer of one unit."""
    backend, inputs = CpuBackend(), z.reshape(-1, 1)  # a batch of N examples with one feature
    weight, bias = np.ones((1, 1)), np.zeros(1)
    y, d_y, d_z = np.empty_like(inputs), np.ones_like(inputs), np.empty_like(inputs)
    backend.affine(inputs, weight, bias, name, y)  # y = f(z w + b)
    d_weight, d_bias = np.empty_like(weight), np.empty_like(bias)  # these gradients are not used here
    backend.affine_backward(inputs, weight, y, name, d_y, 0.0, d_weight, d_bias, d_z)  # dL/dz = dL/dy f'(z)
    return y[:, 0], d_z[:, 0]


def draw(path: Path) -> None:
    """Draw each function with its derivative."""
    from matplotlib.figure import Figure

    z = np.linspace(-4, 4, 801)
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (name, title) in zip(panels.flat, NAMES.items(), strict=True):
        y, slope = activation(name, z)
        if name in ("relu", "leaky_relu"):
            slope[z == 0] = np.nan  # there is no derivative at 0, where it jumps
        axes.axhline(0, color="0.8", lw=1)
        axes.axvline(0, color="0.8", lw=1)
        axes.plot(z, y, color="#0072B2", lw=2.5, label="$f(z)$")
        axes.plot(z, slope, color="#D55E00", lw=2, ls="--", label="$f'(z)$")
        axes.set(title=title, xlim=(-4, 4), ylim=(-1.2, 2.2), xticks=range(-3, 4))
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("$z$")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Activation functions and their derivatives.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the functions")
    options = parser.parse_args(arguments)

    z = np.arange(-2.0, 3.0)
    values = {title: activation(name, z) for name, title in NAMES.items()}
    for column, heading in enumerate(("f(z)", "f'(z)")):
        print(f"{heading:>10s}" + "".join(f"{f'z = {each:.0f}':>10s}" for each in z))
        for title, pair in values.items():
            print(f"{title:>10s}" + "".join(f"{each:10.4f}" for each in pair[column]))
        print()

    e, away = 1e-6, np.array([-2.0, -1.0, 1.0, 2.0])  # points away from 0, where some functions have no derivative
    print("largest difference of f'(z) from (f(z + e) - f(z - e)) / 2e, besides z = 0")
    for name, title in NAMES.items():
        difference = (activation(name, away + e)[0] - activation(name, away - e)[0]) / (2 * e)
        print(f"{title:>10s}{np.abs(activation(name, away)[1] - difference).max():10.0e}")

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
