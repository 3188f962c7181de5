"""How right a classifier is."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Report:
    """Predictions beside what is true.

    Attributes
    ----------
    labels
        Of the C classes.
    confusion
        (C, C) how many texts of the class of the row were taken for that of the column.
    loss
        Mean cross-entropy, nats per text.
    """

    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64] = field(repr=False)
    loss: float

    @classmethod
    def of(cls, labels: tuple[str, ...], probabilities: npt.NDArray[Any], truth: npt.NDArray[np.integer]) -> "Report":
        """Compare probabilities (N, C) with the true classes (N,)."""
        size = len(labels)
        pairs = truth.astype(np.int64) * size + probabilities.argmax(1)
        chances = probabilities[np.arange(len(truth)), truth].astype(np.float64)
        loss = -np.log(np.maximum(chances, np.finfo(np.float64).tiny)).mean()
        return cls(labels, np.bincount(pairs, minlength=size * size).reshape(size, size), float(loss))

    @property
    def examples(self) -> int:
        """Texts."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the texts that is right; where each text has one label this is the micro-average of F1, too."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def zero_one_loss(self) -> float:
        """Mean 0-1 loss: the share that is wrong, 1 - accuracy."""
        return 1 - self.accuracy

    @property
    def support(self) -> npt.NDArray[np.int64]:
        """Texts of each class (C,)."""
        support: npt.NDArray[np.int64] = self.confusion.sum(1)
        return support

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Share of the texts taken for each class that are of it (C,), 0 where none was taken for it."""
        return self._share(self.confusion.sum(0))

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Share of the texts of each class that were found (C,), 0 where there is none."""
        return self._share(self.support)

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """The harmonic mean of precision and recall (C,), 0 where both are."""
        return self._share((self.confusion.sum(0) + self.support) / 2)

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over the classes that occur, in texts or predictions: a rare one counts as much as a frequent one."""
        there = (self.confusion.sum(0) + self.support) > 0
        return float(self.f1[there].mean())

    @property
    def micro_f1(self) -> float:
        """F1 of all decisions together: where each text has one label, the accuracy."""
        return self.accuracy

    def _share(self, of: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        right = np.diag(self.confusion).astype(np.float64)
        share: npt.NDArray[np.float64] = np.divide(right, of, out=np.zeros_like(right), where=of > 0)
        return share

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        columns = zip(self.labels, self.precision, self.recall, self.f1, self.support, strict=True)
        return {
            "examples": self.examples,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "zero_one_loss": self.zero_one_loss,
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
            "classes": {
                label: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
                for label, precision, recall, f1, support in columns
            },
            "confusion": self.confusion.tolist(),
        }
