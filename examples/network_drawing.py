"""Drawings of networks: layers, units and weights.

`fflm.drawing.draw_network` draws any network of the library. Each unit is a circle, and each weight is a line between two units;
a bias is the weight of a unit whose output is always +1. If weights are given, positive ones are blue and negative ones red, and
larger weights have thicker lines; otherwise all lines are gray. Only some units of large layers are drawn. The networks here are

    two-layer    3 inputs, 4 hidden units, 2 outputs, as in any textbook; the input layer is not counted
    xor          the network of perceptrons.py that computes XOR, with its weights
    iris         the network of iris_weights.py, with its weights
    language     the language model of sliding_window.py: three words in, 1,501 probabilities out
    deep         twenty residual layers

    python examples/network_drawing.py [two-layer|xor|iris|language|deep] [--plot FILE.png]
"""

import argparse
from pathlib import Path

import iris_weights
import perceptrons

from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters, shapes

NAMES = ("two-layer", "xor", "iris", "language", "deep")


def build(name: str) -> tuple[NetworkConfig, Parameters | None]:
    """Return the configuration of a network, and its weights, or None for a network without weights."""
    if name == "xor":
        network, parameters = perceptrons.xor_network()
        return network.config, parameters
    if name == "iris":
        network, parameters = iris_weights.network()
        return network.config, parameters
    if name == "language":
        return NetworkConfig(1501, window=3, embedding=16, hidden=(32,), activation="tanh", tied=False), None
    if name == "deep":
        return NetworkConfig.feedforward(64, (64,) * 20, 10, residual=True), None
    return NetworkConfig.feedforward(3, (4,), 2), None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Drawings of networks.")
    parser.add_argument("network", nargs="?", choices=NAMES, default="two-layer", help="which network")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it; a name may end in .svg or .pdf, too")
    options = parser.parse_args(arguments)

    config, parameters = build(options.network)
    total = 0
    for name, shape in shapes(config).items():
        rows, columns = shape[0], shape[1] if len(shape) > 1 else 1
        total += rows * columns
        print(f"{name:>20s}  {' x '.join(f'{size:,}' for size in shape)}")
    print(f"{total:,} parameters")

    if options.plot:
        from fflm.drawing import draw_network

        draw_network(config, options.plot, parameters)


if __name__ == "__main__":
    main()
