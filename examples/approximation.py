"""A network with one hidden layer can approximate any continuous function on an interval; more units give a better approximation.

1. By construction (the idea of the proof of Cybenko 1989): a sigmoid with a large weight is almost a step function. Steps at c_1,
   ..., c_n, whose heights are the differences of the function between adjacent intervals, add up to a staircase that follows the
   function. The network is

       yhat = f(m_0) + sum_i (f(m_i) - f(m_(i-1))) sigmoid(k (x - c_i))        m_i is the middle of interval i

   Nothing is learned, and the error decreases with the width of the steps.

2. By learning: tanh units whose positions are learned need far fewer units. That good weights exist does not mean that training
   finds them, but it finds them more easily if there are more units.

    python examples/approximation.py [--plot FILE.png]
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np

from fflm import FeedforwardRegressor
from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

STAIRS, LEARNED = (4, 16, 64, 256), (1, 2, 4, 8)
LOW, HIGH = 0.0, 3.0
X = np.linspace(LOW, HIGH, 301).reshape(-1, 1)


def curve(x: np.ndarray) -> np.ndarray:
    """Return the function to approximate."""
    return np.sin(2 * x) * np.exp(-x / 3) + 0.2 * x


def staircase(units: int) -> np.ndarray:
    """Return yhat (301,) of the network whose hidden units are this number of steps, computed by the library."""
    edges = np.linspace(LOW, HIGH, units + 2)
    middles = curve((edges[:-1] + edges[1:]) / 2)
    steepness = 20 / (edges[1] - edges[0])
    config = NetworkConfig.feedforward(1, (units,), 1, activation="sigmoid", output="squared")
    arrays = {
        "hidden.0.weight": np.full((units, 1), steepness),
        "hidden.0.bias": -steepness * edges[1:-1],
        "output.weight": np.diff(middles).reshape(1, -1),
        "output.bias": middles[:1],
    }
    return Network(config, CpuBackend()).predict(Parameters.from_arrays(config, arrays), X)[:, 0]


@cache
def learned(units: int, random_state: int = 0) -> np.ndarray:
    """Return yhat (301,) of a network with this number of tanh units, trained on the curve."""
    model = FeedforwardRegressor(
        (units,), "tanh", epochs=400, batch_size=32, rate=0.05, weight_decay=0, random_state=random_state
    )
    return model.fit(X, curve(X)[:, 0]).predict(X)


def largest_error(outputs: np.ndarray) -> float:
    """Return the largest distance of the outputs (301,) from the curve."""
    return float(np.abs(outputs - curve(X)[:, 0]).max())


def draw(path: Path) -> None:
    """Draw the curve with its approximations by both kinds of networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    for column, (units, others) in enumerate(zip(STAIRS, LEARNED, strict=True)):
        networks = (f"{units} steps", staircase(units)), (f"{others} tanh unit{'s' * (others > 1)}, learned", learned(others))
        for axes, (title, outputs) in zip(panels[:, column], networks, strict=True):
            axes.plot(X, curve(X), color="0.7", lw=4, label="the curve")
            axes.plot(X, outputs, color="#D55E00", lw=1.5, label="the network")
            axes.set_title(title)
            axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Approximation of a curve by one hidden layer.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curve and its approximations")
    options = parser.parse_args(arguments)

    print("hidden units   largest error")
    print("steps, by construction")
    for units in STAIRS:
        print(f"{units:12d}{largest_error(staircase(units)):16.4f}")
    print("tanh units, learned")
    for units in LEARNED:
        print(f"{units:12d}{largest_error(learned(units)):16.4f}")

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
