"""Examples that lie in memory, and how their numbers are brought to a scale."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fflm.backend.protocol import Array


class Rows:
    """Rows of input and what is to come out.

    Parameters
    ----------
    inputs
        (N, I) numbers, or words.
    targets
        (N,) int32 classes; for outputs that are no softmax (N, O) numbers.
    """

    def __init__(self, inputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def counts(self, classes: int) -> npt.NDArray[np.int64]:
        """Return how often each class occurs, (classes,)."""
        return np.bincount(self.targets, minlength=classes)

    def batch(self, positions: npt.NDArray[np.integer]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the inputs (B, I) and targets, (B,) or (B, O), at positions (B,)."""
        return self.inputs[positions], self.targets[positions]


class Scale:
    """Brings columns of numbers to a mean of 0 and a deviation of 1 (LeCun et al. 1998, "Efficient BackProp", section 4.3).

    Attributes
    ----------
    mean, deviation
        (I,), of the numbers that it was fitted to; a column that is constant has the deviation 1.
    """

    def __init__(self, mean: npt.NDArray[Any], deviation: npt.NDArray[Any]) -> None:
        self.mean = mean
        self.deviation = deviation

    @classmethod
    def of(cls, batches: Iterable[npt.NDArray[Any]]) -> "Scale":
        """Fit to numbers, which come in batches (B, I); their moments are combined as in Chan, Golub and LeVeque 1983."""
        count, mean, squares = 0, np.zeros(()), np.zeros(())
        for numbers in batches:
            own, total = numbers.mean(0, dtype=np.float64), count + len(numbers)
            squares = squares + ((numbers - own) ** 2).sum(0) + (own - mean) ** 2 * (count * len(numbers) / total)
            mean = mean + (own - mean) * (len(numbers) / total)
            count = total
        deviation = np.sqrt(squares / count)
        # a constant's deviation is not always 0: its mean is rounded
        constant = deviation <= 1e-12 * np.maximum(np.abs(mean), np.finfo(np.float64).tiny)
        return cls(mean, np.where(constant, 1.0, deviation))

    def apply(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return numbers (N, I) in the scale, contiguous."""
        return np.ascontiguousarray((numbers - self.mean) / self.deviation, np.float64)

    def undo(self, scaled: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the numbers that `apply` was given, float64."""
        numbers: npt.NDArray[Any] = scaled * self.deviation + self.mean
        return numbers


class Examples(Protocol):
    """What the loop needs of a text: predicted positions and their contexts; or of what else there is to learn from.

    What a language model calls a word is an example elsewhere: `State`, `Losses` and the events count either.
    """

    def __len__(self) -> int: ...

    def counts(self, words: int) -> Array:
        """Return the number of occurrences of each word, (words,)."""

    def batch(self, positions: Array) -> tuple[Array, Array]:
        """Return contexts (B, n) and targets (B,), int32, of positions (B,); or what else `Network.gradients` takes."""
