"""How gradients vanish in deep networks, and how ReLU and residual connections prevent this.

    z_l = W_l h_(l-1) + b_l,  h_l = f(z_l)                forward pass, h_0 = x
    dL/dz_l = f'(z_l) * W_(l+1)^T dL/dz_(l+1)             backward pass, * is the elementwise product

The initial weights of sigmoid and tanh layers have the variance 1 / width, so that W^T, on average, keeps the norm of the
gradient. Therefore its change from layer to layer depends on f':

    sigmoid' = y (1 - y), at most 1/4, where y = 1/2      the first of 20 layers gets at most 4^-19 = 4e-12 of the last gradient
    tanh'    = 1 - y^2, at most 1, where y = 0            the gradient decreases slowly
    ReLU'    = 1 or 0, each for half of the units         the variance of the weights is 2 / width, to compensate for the zeros

A residual connection adds the input of a layer to its output, so that the gradient has a path around f':

    h_l = h_(l-1) + f(W_l norm(h_(l-1)) + b_l)            dL/dh_(l-1) = dL/dh_l + the gradient through the layer

The sum grows from layer to layer, and norm scales it back, so that the gradients of the later layers are a little smaller.
Jurafsky & Martin, Speech and Language Processing, 3rd ed., chapter "Neural Networks", section "Units", mention the problem;
Glorot & Bengio 2010 and He et al. 2015, 2016 have the analysis and the solutions. The networks are not trained, and have 64 units
per layer. The norm of dL/dz_l is the root of its mean square over 20 random examples. For one example, dL/dz_l is the gradient of
the bias b_l.

    python examples/vanishing_gradients.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import Activation
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

ACTIVATIONS: dict[Activation, str] = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU"}
DEPTHS = (2, 5, 10, 20)
WIDTH, CLASSES, EXAMPLES = 64, 10, 20


def gradient_norms(activation: Activation, depth: int, *, residual: bool = False, seed: int = 0) -> np.ndarray:
    """Return the norm of dL/dz_l for each hidden layer l, from the first to the last, (depth,)."""
    config = NetworkConfig.feedforward(WIDTH, (WIDTH,) * depth, CLASSES, activation=activation, residual=residual)
    network, parameters = Network(config, CpuBackend()), Parameters.random(config, seed, np.float64)
    gradients, losses = Parameters.zeros(config, np.float64), np.empty(1)
    generator = np.random.default_rng(seed)
    squares = np.zeros(depth)
    for _ in range(EXAMPLES):
        x, target = generator.normal(size=(1, WIDTH)), generator.integers(CLASSES, size=1, dtype=np.int32)
        network.gradients(parameters, x, target, gradients, losses)  # the gradients of a batch of one example
        squares += [(d_bias**2).sum() for d_bias in gradients.hidden_biases]  # dL/db_l = dL/dz_l, as z_l = ... + b_l
    return np.sqrt(squares / EXAMPLES)


def per_layer(norms: np.ndarray) -> float:
    """Return the factor by which the norm changes from a layer to the one below it (geometric mean over the layers)."""
    return float((norms[0] / norms[-1]) ** (1 / (len(norms) - 1)))


def draw(norms: dict[tuple[Activation, bool, int], np.ndarray], path: Path) -> None:
    """Draw the norms over the layers, for sigmoid networks of all depths, and for all networks of the largest depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for depth, marker in zip(DEPTHS, "^sDo", strict=True):
        found = norms["sigmoid", False, depth]
        left.plot(np.arange(1, depth + 1), found, color="#0072B2", marker=marker, ms=5, label=f"{depth} layers")
    most = 4.0 ** np.arange(1 - DEPTHS[-1], 1) * found[-1]
    left.plot(np.arange(1, DEPTHS[-1] + 1), most, color="black", ls=":", label="1/4 a layer")
    styles = {"sigmoid": ("#0072B2", "o"), "tanh": ("#E69F00", "s"), "relu": ("#D55E00", "^")}
    for residual, line, face in ((False, "-", None), (True, "--", "white")):
        for activation, (color, marker) in styles.items():
            label = ACTIVATIONS[activation] + (", residual" if residual else "")
            found = norms[activation, residual, DEPTHS[-1]]
            layers = np.arange(1, len(found) + 1)
            right.plot(layers, found, line, color=color, marker=marker, ms=5, mfc=face or color, label=label)
    left.set(title="sigmoid networks of several depths", ylabel="norm of $dL/dz_l$ (log scale)")
    right.set(title=f"networks of {DEPTHS[-1]} layers")
    for axes in (left, right):
        axes.set(xlabel="hidden layer $l$, from the input", yscale="log", xticks=(1, 5, 10, 15, 20))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=2 if axes is right else 1)
    right.set_ylim(0.009, 0.35)
    note = "sigmoid: falls out of\nthe picture, to 3e-14\n(left panel)"
    arrow = {"arrowstyle": "->", "color": styles["sigmoid"][0]}
    right.annotate(note, (19.35, 0.0093), (12.2, 0.0105), color=styles["sigmoid"][0], arrowprops=arrow, fontsize="small")
    right.set_yticks((0.01, 0.03, 0.1, 0.3), ("0.01", "0.03", "0.1", "0.3"))
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Gradients by layer in networks of growing depth.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the norms over the layers")
    options = parser.parse_args(arguments)

    variants = [(activation, residual) for residual in (False, True) for activation in ACTIVATIONS]
    norms = {(*each, depth): gradient_norms(each[0], depth, residual=each[1]) for each in variants for depth in DEPTHS}
    names = {each: ACTIVATIONS[each[0]] + (", residual" if each[1] else "") for each in variants}

    layers = (1, 5, 10, 15, 20)
    print("norm of dL/dz_l in a network of 20 hidden layers, and the factor from a layer to the one below")
    print(f"{'layer l =':>18s}" + "".join(f"{layer:10d}" for layer in layers) + "    factor")
    for each, name in names.items():
        found = norms[*each, 20]
        print(f"{name:>18s}" + "".join(f"{found[layer - 1]:10.1e}" for layer in layers) + f"{per_layer(found):10.3f}")

    print("\nnorm in the first hidden layer / norm in the last")
    print(f"{'hidden layers':>18s}" + "".join(f"{depth:10d}" for depth in DEPTHS))
    for each, name in names.items():
        ratios = (norms[*each, depth][0] / norms[*each, depth][-1] for depth in DEPTHS)
        print(f"{name:>18s}" + "".join(f"{ratio:10.1e}" for ratio in ratios))
    print(f"{'4^-(layers - 1)':>18s}" + "".join(f"{4.0 ** (1 - depth):10.1e}" for depth in DEPTHS))

    if options.plot:
        draw(norms, options.plot)


if __name__ == "__main__":
    main()
