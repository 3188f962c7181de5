"""Names, character by character: window models beside those of a well-known course, at equal size.

makemore (https://github.com/karpathy/makemore) is a course that builds language models of 32,000 given names, one character after
another. Its networks read a window of characters, as those of Bengio et al. (2003) do. For each size that the course publishes,
this script trains a network with at most as many parameters that sees as many characters, and compares the losses on the
validation text: the mean of -log p(next character), in nats, where the end of a name is a character, too.

    characters  parameters  makemore
             3      12,000     2.105   one hidden layer of 200 tanh units
             8      22,000     2.027   the same layer over a wider window
             8      76,000     1.993   a WaveNet, which joins neighboring characters in a tree of layers

The networks here have residual layers instead (He et al. 2016), and are trained by AdamW with a cosine schedule.

FILE has a name in each line, such as names.txt of makemore. Its lines are shuffled and split as in the course: 80% for training,
10% each for validation and test. The test names are not used. At the end, the script makes up some names.

    python examples/makemore.py FILE
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fflm

SIZES: list[tuple[int, int, float, dict[str, Any]]] = [
    (3, 12_000, 2.105, {"embedding": 24, "hidden": (64, 64), "weight_decay": 0.1, "rate": 0.005}),
    (8, 22_000, 2.027, {"embedding": 12, "hidden": (96, 96), "weight_decay": 0.1, "rate": 0.01}),
    (8, 76_000, 1.993, {"embedding": 16, "hidden": (150, 150, 150), "weight_decay": 0.2, "rate": 0.005, "dropout": 0.1}),
]
"""The characters that a network sees, the most parameters that it may have, makemore's loss, and the settings of a network."""

COMMON: dict[str, Any] = {
    "tokenizer": "char",
    "mode": "sentence",
    "min_count": 1,
    "averages": (),
    "tied": False,
    "residual": True,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "adversarial": 0.0,
    "batch_size": 256,
    "epochs": 30,
    "patience": 0,
}
"""The settings that all networks share. Each line is a sentence, and each character is a word."""


def split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names for training and those for validation, shuffled and divided as in the course."""
    shuffled = list(names)
    random.Random(42).shuffle(shuffled)
    return shuffled[: len(names) * 8 // 10], shuffled[len(names) * 8 // 10 : len(names) * 9 // 10]


def train(names: Sequence[str], folder: Path, window: int, **settings: Any) -> tuple[fflm.NeuralModel, fflm.Score]:
    """Train a network on names, and return it with its score on the validation names."""
    parts = {"train": folder / "train.txt", "valid": folder / "valid.txt"}
    for path, lines in zip(parts.values(), split(names), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    model = fflm.train(parts["train"], folder / "model", valid=parts["valid"], window=window, overwrite=True, **COMMON | settings)
    return model, model.perplexity(parts["valid"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Names, character by character, beside the networks of makemore.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a name in each line, such as names.txt of makemore")
    path = parser.parse_args(arguments).file

    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    print(f"{len(names):,} names\n\ncharacters  parameters  makemore  here")
    with tempfile.TemporaryDirectory() as folder:
        for window, _, published, settings in SIZES:
            model, score = train(names, Path(folder), window, **settings)
            print(f"{window:10}  {model.parameters.count:10,}  {published:8.3f}  {score.loss:.3f}")
        print("\n" + " ".join(model.generate(samples=10, seed=1)))


if __name__ == "__main__":
    main()
