"""A column of perplexities for Spark."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from pyspark.sql.functions import pandas_udf

from fflm.arguments import PathLike
from fflm.filtering.quality import figures
from fflm.integrations.texts import TextFilter


def perplexity_column(model: PathLike, fast: bool = False) -> Any:
    """Return a function of a column of texts that returns their perplexities: ``frame.where(perplexity("text") <= 300)``.

    A text without words, or that is null, has the perplexity null.

    Parameters
    ----------
    model, fast
        As `TextFilter` takes them.
    """
    texts = TextFilter(model, fast=fast)

    def perplexities(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for batch in batches:
            yield pd.Series(figures(texts.measure(batch.tolist()))["perplexity"])

    return pandas_udf(perplexities, "double")
