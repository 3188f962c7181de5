"""Metrics of a text classifier."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Report:
    """The confusion matrix of a classifier, and the metrics that follow from it.

    Attributes
    ----------
    labels
        The labels of the C classes, in the order of the rows and columns of ``confusion``.
    confusion
        (C, C) int64, the number of examples of the class of the row that were predicted to be of that of the column. Examples are
        texts, or for tagging words.
    loss
        Mean cross-entropy, nats per example.
    """

    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64] = field(repr=False)
    loss: float

    @classmethod
    def of(cls, labels: tuple[str, ...], probabilities: npt.NDArray[Any], truth: npt.NDArray[np.integer]) -> "Report":
        """Return the report on predicted probabilities (N, C) of N examples with the true classes ``truth`` (N,)."""
        size = len(labels)
        pairs = truth.astype(np.int64) * size + probabilities.argmax(1)
        of_truth = probabilities[np.arange(len(truth)), truth].astype(np.float64)
        loss = -np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean()
        return cls(labels, np.bincount(pairs, minlength=size * size).reshape(size, size), float(loss))

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the examples that are classified correctly."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def zero_one_loss(self) -> float:
        """Mean 0-1 loss: 1 - accuracy."""
        return 1 - self.accuracy

    @property
    def support(self) -> npt.NDArray[np.int64]:
        """Number of examples of each class (C,)."""
        support: npt.NDArray[np.int64] = self.confusion.sum(1)
        return support

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Share of the examples predicted to be of each class that are of it (C,); 0 for a class that was never predicted."""
        return self._share(self.confusion.sum(0))

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Share of the examples of each class that were predicted to be of it (C,); 0 for a class without examples."""
        return self._share(self.support)

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """The harmonic mean of precision and recall (C,); 0 if both are 0."""
        return self._share((self.confusion.sum(0) + self.support) / 2)

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over the classes that occur in examples or predictions, without weights."""
        there = (self.confusion.sum(0) + self.support) > 0
        return float(self.f1[there].mean())

    @property
    def micro_f1(self) -> float:
        """F1 of all decisions together, which is the accuracy, because each example has one class."""
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
