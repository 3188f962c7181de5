"""An operator for data-juicer: ``fflm_perplexity_filter`` in recipes whose ``custom_operator_paths`` name this file."""

from typing import Any

from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields

from fflm.arguments import PathLike
from fflm.integrations.texts import TextFilter

NAME = "fflm_perplexity_filter"
KEPT = "fflm_kept"
"""The statistic that says whether a sample is kept; the others are its scores."""


@OPERATORS.register_module(NAME)
class FflmPerplexityFilter(Filter):  # type: ignore[misc]
    """Keeps the samples that a model predicts well, and adds their scores to their statistics.

    Parameters
    ----------
    model, max_perplexity, min_perplexity, max_oov, fast
        As `TextFilter` takes them.
    options
        As every operator takes them.
    """

    _batched_op = True

    def __init__(
        self,
        model: PathLike,
        max_perplexity: float | None = None,
        min_perplexity: float | None = None,
        max_oov: float | None = None,
        fast: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        conditions = {"max_perplexity": max_perplexity, "min_perplexity": min_perplexity, "max_oov": max_oov}
        self._texts = TextFilter(model, fast=fast, **conditions)

    def compute_stats_batched(self, samples: dict[str, Any], context: bool = False) -> dict[str, Any]:
        """Add the scores to the statistics of a batch of samples."""
        kept, scores = self._texts.judge(samples[self.text_key])
        for stats, own, keep in zip(samples[Fields.stats], scores, kept.tolist(), strict=True):
            stats.update(own, **{KEPT: keep})
        return samples

    def process_batched(self, samples: dict[str, Any]) -> list[bool]:
        """Return which samples are kept."""
        return [bool(stats[KEPT]) for stats in samples[Fields.stats]]
