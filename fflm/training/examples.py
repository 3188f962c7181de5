"""The examples to train on: the protocol, arrays in memory, and the standardization of features."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fflm.backend.protocol import Array


class Rows:
    """Examples in memory.

    Parameters
    ----------
    inputs
        The inputs of the network, (N, I): numbers, or int32 ids of words.
    targets
        The targets: classes (N,) int32 for a softmax, and numbers (N, O) for other outputs.
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
    """Standardization: scales columns to mean 0 and standard deviation 1 (LeCun et al. 1998, "Efficient BackProp", section 4.3).

    Attributes
    ----------
    mean, deviation
        Mean and standard deviation of each column, (I,) float64. A constant column has the deviation 1, so that it becomes 0.
    """

    def __init__(self, mean: npt.NDArray[Any], deviation: npt.NDArray[Any]) -> None:
        self.mean = mean
        self.deviation = deviation

    @classmethod
    def of(cls, batches: Iterable[npt.NDArray[Any]]) -> "Scale":
        """Compute mean and deviation of numbers that come in batches (B, I).

        The moments of the batches are combined as in Chan, Golub and LeVeque 1983.
        """
        count, mean, squares = 0, np.zeros(()), np.zeros(())
        for numbers in batches:
            own, total = numbers.mean(0, dtype=np.float64), count + len(numbers)
            squares = squares + ((numbers - own) ** 2).sum(0) + (own - mean) ** 2 * (count * len(numbers) / total)
            mean = mean + (own - mean) * (len(numbers) / total)
            count = total
        deviation = np.sqrt(squares / count)
        # Because means are rounded, the computed deviation of a constant column is not always 0.
        constant = deviation <= 1e-12 * np.maximum(np.abs(mean), np.finfo(np.float64).tiny)
        return cls(mean, np.where(constant, 1.0, deviation))

    def apply(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the scaled numbers (N, I) as a new contiguous array."""
        return np.ascontiguousarray((numbers - self.mean) / self.deviation, np.float64)

    def undo(self, scaled: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the inverse of `apply`: the original numbers (N, I) float64."""
        numbers: npt.NDArray[Any] = scaled * self.deviation + self.mean
        return numbers


class Examples(Protocol):
    """What the training loop needs of its data: of a text, the words to predict and their contexts.

    For other data, an example takes the place of a word. `State`, `Losses` and the events count them as words, too.
    """

    def __len__(self) -> int: ...

    def counts(self, words: int) -> Array:
        """Return how often each word (or class) occurs as a target, (words,) int64."""

    def batch(self, positions: Array) -> tuple[Array, Array]:
        """Return the inputs and the targets of the examples at positions (B,), as `Network.gradients` takes them.

        For a language model, these are contexts (B, n) and targets (B,), both int32.
        """
