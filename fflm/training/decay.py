"""Weight decay of rows that a step does not touch."""

import numpy as np

from fflm.backend.protocol import Array, Backend
from fflm.network.parameters import Parameters
from fflm.network.subset import Subset


class DeferredDecay:
    """Decoupled weight decay of the arrays that have a row a word, where steps touch the rows of a few words only.

    A step takes its share from all rows. Those that it does not touch are owed it, and pay when they are touched, or all at once
    when the network is to be used. Without that rare words would hardly decay, which costs several percent of perplexity.

    Parameters
    ----------
    parameters
        Of the network.

    Attributes
    ----------
    paid
        For each such array by its name, (rows,) float64: the log of the factor that each row has got so far, of all steps'.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._arrays = {"embeddings": parameters.embeddings}
        if parameters.output_weight is not None and not parameters.bands:  # which every step touches whole
            self._arrays["output.weight"] = parameters.output_weight
        self.paid = {name: np.zeros(len(array)) for name, array in self._arrays.items()}
        self._due = 0.0

    def restore(self, paid: dict[str, Array]) -> None:
        """Go on from `paid` as it was after a step, which has left some row with nothing to pay."""
        self.paid = paid
        self._due = min(float(logs.min()) for logs in paid.values())

    def settle(self, backend: Backend, part: Parameters, subset: Subset) -> None:
        """Let the rows of a subset, which ``part`` holds, pay what they owe."""
        arrays = dict(part.items())
        for name, logs in self.paid.items():
            backend.scale_rows(np.exp(self._due - logs[subset.rows[name]]).astype(arrays[name].dtype), arrays[name])

    def settle_all(self, backend: Backend) -> None:
        """Let all rows pay what they owe."""
        for name, array in self._arrays.items():
            if (self.paid[name] != self._due).any():
                backend.scale_rows(np.exp(self._due - self.paid[name]).astype(array.dtype), array)
                self.paid[name][:] = self._due

    def step(self, shrink: float, subset: Subset | None) -> None:
        """Take note of a step that has multiplied the rows of a subset that had paid, or all rows, by 1 - ``shrink``."""
        self._due += float(np.log1p(-shrink))
        for name, logs in self.paid.items():
            logs[slice(None) if subset is None else subset.rows[name]] = self._due
