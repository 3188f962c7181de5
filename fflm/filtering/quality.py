"""The scores of documents, and the selection of documents by their scores."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fflm.arguments import PathLike
from fflm.filtering.settings import Selection
from fflm.models.base import LineScorer
from fflm.models.load import load_language_model
from fflm.models.neural.fast import make_fast_scorer
from fflm.text.encoder import Encoder, with_newlines

MEASURES = np.dtype([("loss", "f8"), ("tokens", "i8"), ("words", "i8"), ("unknown", "i8"), ("characters", "i8"), ("bytes", "i8")])
"""What is measured of a document: the sum of -log p, nats; the numbers of tokens, of those that are not ``</s>``, of those that
are ``<unk>``, of characters and of bytes."""

BROKEN, BLANK = -1, -2
"""In place of the number of tokens: a record that cannot be read, and a blank line, which is not a record."""

FIGURES = ("perplexity", "bits_per_character", "bits_per_byte", "oov_rate", "tokens")
"""The scores of a document."""

Measures = npt.NDArray[np.void]
Floats = npt.NDArray[np.float64]


class DocumentScorer:
    """Scores documents by a language model, each as a text of its own.

    Parameters
    ----------
    model
        The model.
    """

    def __init__(self, model: LineScorer) -> None:
        self.model = model
        self._encoder = Encoder(model.text, model.vocabulary)

    @classmethod
    def load(cls, path: PathLike, fast: bool = False) -> "DocumentScorer":
        """Load the language model in a folder; ``fast`` scores as `fflm score --fast` does.

        Raises
        ------
        FflmError
            If it is not a language model, or not one that can score fast.
        """
        model = load_language_model(path)
        return cls(make_fast_scorer(model) if fast else model)

    def measure(self, texts: Sequence[str]) -> Measures:
        """Return the `MEASURES` of documents, (D,).

        They are those of `fflm.models.language_model.LanguageModel.score`: characters are counted after normalization, and a
        newline is added to a text without one. A text without words has 0 words.
        """
        vocabulary, tokenizer = self.model.vocabulary, self.model.text.tokenizer
        texts = [text if text.endswith("\n") else text + "\n" for text in map(with_newlines, texts)]
        result = np.zeros(len(texts), MEASURES)
        ids, borders = self._encoder.encode(texts)
        result["loss"] = self.model.losses_of_lines(ids, borders)
        result["tokens"] = np.diff(borders)
        ends = _count(ids == vocabulary.end_id, borders) if vocabulary.ends else 0
        result["words"] = result["tokens"] - ends
        result["unknown"] = _count(ids == vocabulary.unknown_id, borders)
        result["characters"] = [len(tokenizer.normalize(text)) for text in texts]
        result["bytes"] = [len(text) if text.isascii() else len(text.encode(errors="surrogatepass")) for text in texts]
        return result


def _count(chosen: npt.NDArray[np.bool], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many tokens of each document are chosen: (N,) and borders (D + 1,) -> (D,)."""
    before = np.concatenate([[0], np.cumsum(chosen)])
    return np.diff(before[borders])


def figures(measures: Measures) -> dict[str, Floats]:
    """Return the `FIGURES` of documents, (D,) each; NaN for a document without words."""
    scored = measures["words"] > 0
    loss = np.where(scored, measures["loss"], np.nan)
    with np.errstate(over="ignore"):
        return {
            "perplexity": np.exp(loss / np.maximum(measures["tokens"], 1)),
            "bits_per_character": loss / np.log(2) / np.maximum(measures["characters"], 1),
            "bits_per_byte": loss / np.log(2) / np.maximum(measures["bytes"], 1),
            "oov_rate": np.where(scored, measures["unknown"], np.nan) / np.maximum(measures["tokens"], 1),
            "tokens": np.where(scored, measures["tokens"], 0).astype(np.float64),
        }


def chosen(selection: Selection, measures: Measures, threshold: float | None = None) -> npt.NDArray[np.bool]:
    """Return which documents are kept, (D,) -> (D,).

    Parameters
    ----------
    selection
        The conditions.
    measures
        The `MEASURES` of documents.
    threshold
        The highest perplexity to keep, from `keep_threshold`, or None.
    """
    scores = figures(measures)
    result: npt.NDArray[np.bool] = (measures["tokens"] >= 0) & in_range(selection, scores["perplexity"])
    if threshold is not None:
        result &= scores["perplexity"] <= threshold
    if selection.max_oov is not None:
        result &= scores["oov_rate"] <= selection.max_oov
    return result


def in_range(selection: Selection, perplexities: Floats | np.float64) -> npt.NDArray[np.bool]:
    """Return which perplexities are in the range to keep, (D,) -> (D,).

    NaN, that of a document without words, is in it only if there is no condition of any kind.
    """
    result = np.full(np.shape(perplexities), True)
    if selection.selects:
        result &= ~np.isnan(perplexities)
    if selection.max_perplexity is not None:
        result &= perplexities <= selection.max_perplexity
    if selection.min_perplexity is not None:
        result &= perplexities >= selection.min_perplexity
    return result


def keep_threshold(selection: Selection, measures: Measures) -> float | None:
    """Return the highest perplexity of the share of a collection to keep, or None if no share is given.

    Documents with exactly this perplexity are all kept.
    """
    if selection.keep is None:
        return None
    eligible = figures(measures[chosen(selection, measures)])["perplexity"]
    count = round(selection.keep * len(eligible))
    return float(np.partition(eligible, count - 1)[count - 1]) if count else 0.0
