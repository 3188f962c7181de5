"""A filter for NeMo Curator, whose ``ScoreFilter`` runs it."""

from typing import Any

import numpy as np
from nemo_curator.stages.text.filters.doc_filter import DocumentFilter

from fflm.arguments import PathLike
from fflm.filtering.quality import figures, in_range
from fflm.filtering.records import FIELDS
from fflm.integrations.texts import TextFilter


class PerplexityFilter(DocumentFilter):  # type: ignore[misc]
    """Keeps the documents that a model predicts well; the score of a document is its perplexity, NaN without words.

    Parameters
    ----------
    model
        As `TextFilter` takes it.
    max_perplexity, min_perplexity
        The range of perplexities to keep.
    fast
        As `TextFilter` takes it.
    """

    def __init__(
        self, model: PathLike, *, max_perplexity: float | None = None, min_perplexity: float | None = None, fast: bool = False
    ) -> None:
        super().__init__()
        self._name = FIELDS["perplexity"]
        self._texts = TextFilter(model, fast=fast, max_perplexity=max_perplexity, min_perplexity=min_perplexity)

    def load_model(self) -> None:
        """Load the model; a worker calls this once."""
        self._texts.measure([""])

    def score_document(self, text: str) -> float:
        """Return the perplexity of a document."""
        return float(figures(self._texts.measure([text]))["perplexity"][0])

    def keep_document(self, scores: Any) -> bool:
        """Return whether a document with this perplexity is kept."""
        return bool(in_range(self._texts.selection, np.float64(scores)))
