"""Zero-centered activations: sigmoid and tanh in the same network.

    sigmoid(z) is always positive, so its mean over examples is far from 0        tanh(z) = 2 sigmoid(2z) - 1 has both signs

For each example, the gradient of the weights of a unit is dL/dz times the outputs of the layer before. If these outputs are all
positive, the components of the gradient have the same sign, so all weights of the unit increase, or all decrease. If some should
increase and others decrease, gradient descent must zigzag. In addition, the mean of the outputs of a layer shifts the scores z of
the next layer, like a bias that changes during training. Both effects slow down gradient descent.

The network is a 4-6-6-3 network for the iris data, with the same random initial weights for both activation functions, and batch
gradient descent. At 0, the slope of tanh is four times that of the sigmoid, which has the effect of a larger learning rate.
Therefore several learning rates are tried for both.

    python examples/zero_centered.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np
from gradient_descent import descend
from initial_weights import flowers

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import Activation
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

ACTIVATIONS: dict[Activation, str] = {"sigmoid": "#0072B2", "tanh": "#D55E00"}
RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
STEPS = 300


def start(activation: Activation) -> tuple[Network, Parameters]:
    """Return the network and its random initial weights, which are the same for both activation functions."""
    config = NetworkConfig.feedforward(4, (6, 6), 3, activation=activation)
    return Network(config, CpuBackend()), Parameters.random(config, 1, np.float64)


def train(activation: Activation, rate: float) -> np.ndarray:
    """Train the network; return the loss before each step and after the last, (STEPS + 1,)."""
    network, parameters = start(activation)
    return descend(network, parameters, *flowers(), rate, STEPS + 1)


def first_layer(activation: Activation) -> np.ndarray:
    """Return the outputs of the first hidden layer before training, (150, 6)."""
    _, parameters = start(activation)
    z = flowers()[0] @ parameters.hidden_weights[0].T + parameters.hidden_biases[0]
    return np.tanh(z) if activation == "tanh" else 1 / (1 + np.exp(-z))


def one_sign(activation: Activation) -> float:
    """Return the share of pairs of an example and a unit of the second layer where the gradient of the weights has one sign."""
    network, parameters = start(activation)
    gradients, losses = Parameters.zeros(network.config, np.float64), np.empty(1)
    shares = []
    for x, y in zip(*flowers(), strict=True):
        network.gradients(parameters, x[None], y[None], gradients, losses)  # the gradients of a batch of one example
        signs = np.sign(gradients.hidden_weights[1])
        shares.append((signs == signs[:, :1]).all(1).mean())
    return float(np.mean(shares))


def draw(losses: dict[Activation, dict[float, np.ndarray]], path: Path) -> None:
    """Draw the outputs of the first layer of both networks, and their losses with two learning rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for activation, color in ACTIVATIONS.items():
        outputs = first_layer(activation).ravel()
        style = {"color": color, "lw": 2, "label": f"{activation}, mean {outputs.mean():.2f}"}
        left.hist(outputs, bins=np.linspace(-1, 1, 21), histtype="step", **style)
        for rate, line in ((0.3, "-"), (1.0, "--")):
            right.plot(losses[activation][rate], line, color=color, lw=2, label=f"{activation}, rate {rate:g}")
    left.set(title="outputs of the first hidden layer, at the start", xlabel="output", ylabel="how many", ylim=(0, 200))
    right.set(title="batch gradient descent on iris", xlabel="step", ylabel="loss (log scale)", xlim=(0, STEPS), yscale="log")
    right.set_yticks((0.05, 0.1, 0.2, 0.5, 1), ("0.05", "0.1", "0.2", "0.5", "1"))
    right.minorticks_off()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sigmoid and tanh in one network.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the losses")
    options = parser.parse_args(arguments)

    print("at the start   mean output of layer 1   gradients of one sign into a unit of layer 2")
    for activation in ACTIVATIONS:
        print(f"{activation:>12s}{first_layer(activation).mean():25.3f}{one_sign(activation):47.0%}")

    print(f"\nloss after {STEPS} steps of batch gradient descent\n{'rate':>12s}" + "".join(f"{rate:10g}" for rate in RATES))
    losses = {activation: {rate: train(activation, rate) for rate in RATES} for activation in ACTIVATIONS}
    for activation, own in losses.items():
        best = min(RATES, key=lambda rate: own[rate][-1])
        print(f"{activation:>12s}" + "".join(f"{each[-1]:10.4f}" for each in own.values()) + f"   best with rate {best:g}")

    if options.plot:
        draw(losses, options.plot)


if __name__ == "__main__":
    main()
