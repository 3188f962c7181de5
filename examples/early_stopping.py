"""Early stopping: training ends when the loss on validation examples, which are not trained on, no longer falls.

The weights of the best epoch are kept. Here the network has far more weights than the task needs, and 60 training examples, of
which a fifth have wrong labels. It first learns the rule, and then memorizes the wrong labels. The training loss falls all the
time; the validation loss falls at first and then rises.

    python examples/early_stopping.py [--plot FILE.png]
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np

from fflm import FeedforwardClassifier

WRONG, EPOCHS, PATIENCE = 0.2, 200, 20


def sample(count: int, seed: int, wrong: float) -> tuple[np.ndarray, np.ndarray]:
    """Return random points (N, 2) and their labels (N,): the side of a line, which is wrong for a share of the points."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 2))
    return x, (x.sum(1) > 0) ^ (generator.random(count) < wrong)


@cache
def train(patience: int, validation: float = 0.5) -> FeedforwardClassifier:
    """Return a network that was trained on 60 examples, and unless ``validation`` is 0, evaluated on 60 others each epoch."""
    model = FeedforwardClassifier(
        (64, 64),
        "tanh",
        epochs=EPOCHS,
        batch_size=20,
        rate=0.003,
        weight_decay=0,
        schedule="constant",
        validation=validation,
        patience=patience,
        random_state=0,
    )
    return model.fit(*sample(120 if validation else 60, seed=0, wrong=WRONG))


def losses(model: FeedforwardClassifier) -> tuple[np.ndarray, np.ndarray]:
    """Return the training loss and the validation loss of each epoch."""
    evaluations = model.evaluations_
    return np.array([each.train_loss for each in evaluations]), np.array([each.valid_loss for each in evaluations])


def draw(path: Path) -> None:
    """Draw both losses of training for all epochs, and the epoch in which early stopping would end it."""
    from matplotlib.figure import Figure

    training, validation = losses(train(patience=0))
    best, end = validation.argmin() + 1, len(losses(train(PATIENCE))[0])
    figure = Figure(figsize=(8, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, EPOCHS + 1)
    axes.plot(epochs, training, "--", color="#0072B2", lw=2, label="training")
    axes.plot(epochs, validation, color="#D55E00", lw=2, label="validation")
    axes.plot(
        best, validation[best - 1], "*", color="#D55E00", mec="white", ms=18, label=f"best, epoch {best}; its weights are kept"
    )
    axes.axvline(end, color="black", ls=":", label=f"early stopping, after epoch {end}")
    axes.axvspan(end, EPOCHS, color="0.93", zorder=0)
    axes.set(title="60 examples, one in five with a wrong label", xlabel="epoch", ylabel="loss", xlim=(1, EPOCHS), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Early stopping.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw training and validation loss")
    options = parser.parse_args(arguments)

    training, validation = losses(train(patience=0))
    print("epoch   training loss   validation loss")
    best = int(validation.argmin()) + 1
    for epoch in sorted({1, best, 20, 50, 100, EPOCHS}):
        print(f"{epoch:5d}{training[epoch - 1]:16.4f}{validation[epoch - 1]:18.4f}" + "   <- best" * (epoch == best))

    stopped, x, y = train(PATIENCE), *sample(2000, seed=1, wrong=0.0)
    print(f"\nwith patience {PATIENCE}, training ends after epoch {len(stopped.evaluations_)}")
    print("accuracy on 2,000 new points with right labels")
    print(f"  {stopped.score(x, y):.1%} with early stopping")
    print(f"  {train(patience=0, validation=0.0).score(x, y):.1%} trained for {EPOCHS} epochs on 60 examples, without validation")

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
