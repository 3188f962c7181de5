"""A filter of texts in memory, which can be sent to other processes, where it loads its model when it is first used."""

import functools
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import PathLike, parameters, refuse_unknown
from fflm.errors import FflmError
from fflm.filtering.quality import BROKEN, MEASURES, DocumentScorer, Measures, chosen, figures
from fflm.filtering.records import FIELDS, Record, as_fields, rounded
from fflm.filtering.settings import Selection
from fflm.models.folder import fingerprint

CONDITIONS = parameters(Selection, "keep")
"""The conditions of a filter that sees a part of the collection."""

ROWS = 512
"""Number of records that are scored at a time."""


class TextFilter:
    """Keeps the texts that a model predicts well.

    Parameters
    ----------
    model
        The folder of the model, which all processes must be able to read.
    fast
        Whether to score without normalizing the softmax, like `fflm score --fast`.
    conditions
        ``max_perplexity``, ``min_perplexity`` and ``max_oov``, as `fflm.filter` takes them.

    Raises
    ------
    FflmError
        If the model is not a model, or a condition is not valid. The share ``keep`` needs the scores of the whole collection:
        `fflm.filter` reports the perplexity that it found for a share of a sample.
    """

    def __init__(self, model: PathLike, *, fast: bool = False, **conditions: Any) -> None:
        if "keep" in conditions:
            raise FflmError("a share to `keep` needs the whole collection: give the `max_perplexity` that `fflm.filter` reports")
        refuse_unknown(conditions.keys() - CONDITIONS.keys(), CONDITIONS)
        self.model = os.path.abspath(model)  # noqa: PTH100, which would not resolve `..`
        self.fast = fast
        self.selection = Selection(**conditions)
        self.fingerprint = fingerprint(Path(self.model))

    def measure(self, texts: Sequence[Any]) -> Measures:
        """Return the `MEASURES` of texts, (D,); what is not a string is a broken record."""
        result = np.zeros(len(texts), MEASURES)
        readable = np.array([isinstance(text, str) for text in texts], np.bool)
        result["tokens"][~readable] = BROKEN
        if readable.any():
            scorer = _load(self.model, self.fast, self.fingerprint)
            result[readable] = scorer.measure([text for text in texts if isinstance(text, str)])
        return result

    def judge(self, texts: Sequence[Any]) -> tuple[npt.NDArray[np.bool], list[Record]]:
        """Return which texts are kept, (D,), and the scores of each by names such as ``fflm_perplexity``."""
        measures = self.measure(texts)
        scores = rounded(figures(measures), np.arange(len(texts)))
        return chosen(self.selection, measures), list(map(as_fields, scores))


@functools.lru_cache(maxsize=4)
def _load(model: str, fast: bool, expected: str) -> DocumentScorer:
    """Load a model, once per process."""
    if fingerprint(Path(model)) != expected:
        raise FflmError(f"{model} has changed since the filter was made: make the filter again")
    return DocumentScorer.load(model, fast)


class BatchFilter(TextFilter):
    """Keeps rows of tables: for Ray Data, Dask bags, Hugging Face datasets, and plain iterables.

    Parameters
    ----------
    model, conditions
        As `TextFilter` takes them.
    field
        The name of the column, or field, with the text.
    """

    def __init__(self, model: PathLike, *, field: str = "text", **conditions: Any) -> None:
        super().__init__(model, **conditions)
        self.field = field

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rows that are kept of a batch of columns, with a column for each score."""
        kept, scores = self.judge(list(batch[self.field]))
        rows = np.flatnonzero(kept)
        columns = {name: _take(values, rows) for name, values in batch.items()}
        return columns | {name: np.array([scores[row][name] for row in rows], float) for name in FIELDS.values()}

    def records(self, records: Iterable[Mapping[str, Any]]) -> list[Record]:
        """Return the records that are kept, with a field for each score."""
        result: list[Record] = []
        rest = iter(records)
        while batch := list(itertools.islice(rest, ROWS)):
            kept, scores = self.judge([record.get(self.field) for record in batch])
            result += [{**record, **own} for record, own, keep in zip(batch, scores, kept.tolist(), strict=True) if keep]
        return result


def _take(values: Any, rows: npt.NDArray[np.intp]) -> Any:
    """Return the rows of a column."""
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
