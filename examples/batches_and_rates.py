"""Batch, stochastic and mini-batch gradient descent on the same problem, and learning rates from too small to too large.

    batch         one step per epoch, along the gradient of the mean loss of all N examples
    stochastic    N steps per epoch, each along the gradient of one example, in a new random order every epoch
    mini-batch    N / B steps per epoch, each along the gradient of the mean loss of B examples

An epoch costs the same in all three: the gradients of N examples. The steps of smaller batches are less accurate, but there are
more of them. With a learning rate that is too small, learning is slow; with one that is too large, the steps jump over the
minimum, and the loss rises.

The problem is to classify all 150 flowers of the iris data, with a 4-6-3 sigmoid network, plain gradient descent, and the same
random initial weights.

    python examples/batches_and_rates.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris

from fflm import FeedforwardClassifier

BATCHES = {"stochastic, 1": 1, "mini-batch, 15": 15, "batch, 150": 150}
RATES = {"too small": 0.1, "small": 1.0, "right": 5.0, "too large": 100.0}
EPOCHS = 100
COLORS = ("#0072B2", "#009E73", "#E69F00", "#D55E00")


def losses(batch_size: int, rate: float) -> np.ndarray:
    """Return the mean training loss of each epoch, (EPOCHS,)."""
    plain = {"optimizer": "sgd", "schedule": "constant", "clip": 0, "weight_decay": 0, "random_state": 0}
    model = FeedforwardClassifier((6,), "sigmoid", batch_size=batch_size, rate=rate, epochs=EPOCHS, **plain)
    model.fit(*load_iris(return_X_y=True))
    return np.array([evaluation.train_loss for evaluation in model.evaluations_])


def draw(batches: dict[str, np.ndarray], rates: dict[str, np.ndarray], path: Path) -> None:
    """Draw the losses over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    both = (left, batches, "batch sizes, with rate 0.1"), (right, rates, "learning rates, with all 150 in a batch")
    for axes, curves, title in both:
        for (name, curve), color in zip(curves.items(), COLORS, strict=False):
            axes.plot(np.arange(1, EPOCHS + 1), curve, color=color, lw=2, label=name)
        axes.set(title=title, xlabel="epoch", yscale="log", ylim=(0.03, 200), xlim=(1, EPOCHS))
        axes.set_yticks((0.05, 0.1, 0.2, 0.5, 1, 5, 20), ("0.05", "0.1", "0.2", "0.5", "1", "5", "20"))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=2)
    left.set_ylabel("loss (log scale)")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Batch sizes and learning rates.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the losses")
    options = parser.parse_args(arguments)

    batches = {name: losses(size, 0.1) for name, size in BATCHES.items()}
    rates = {f"{name}, {rate:g}": losses(150, rate) for name, rate in RATES.items()}
    shown = (1, 5, 10, 50, 100)
    for heading, curves in (("batch size, with rate 0.1", batches), ("learning rate, with all 150 in a batch", rates)):
        print(f"{heading}\n{'loss in epoch':>20s}" + "".join(f"{epoch:9d}" for epoch in shown))
        for name, curve in curves.items():
            print(f"{name:>20s}" + "".join(f"{curve[epoch - 1]:9.3f}" for epoch in shown))
        print()

    if options.plot:
        draw(batches, rates, options.plot)


if __name__ == "__main__":
    main()
