"""A filter for pipelines of datatrove."""

from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from fflm.arguments import PathLike
from fflm.integrations.texts import TextFilter


class PerplexityFilter(BaseFilter):  # type: ignore[misc]
    """Keeps the documents that a model predicts well, and adds their scores to their metadata.

    Parameters
    ----------
    model, conditions
        As `TextFilter` takes them.
    exclusion_writer, batch_size
        As `BaseFilter` takes them.
    """

    name = "fflm perplexity"

    def __init__(
        self, model: PathLike, *, exclusion_writer: DiskWriter | None = None, batch_size: int = 512, **conditions: Any
    ) -> None:
        super().__init__(exclusion_writer, batch_size)
        self.texts = TextFilter(model, **conditions)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return whether a document is kept, and otherwise why it is not."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """Return whether each document is kept, and otherwise why it is not."""
        kept, scores = self.texts.judge([doc.text for doc in batch])
        for doc, own in zip(batch, scores, strict=True):
            doc.metadata.update(own)
        return [True if keep else (False, "perplexity") for keep in kept.tolist()]
