"""Scores at the speed of an n-gram model: of words, from tables, without the softmax's normalizer."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu.launching import shares_of
from fflm.backend.protocol import ACTIVATIONS
from fflm.errors import FflmError
from fflm.models.base import check_text
from fflm.models.language_model import LanguageModel
from fflm.models.neural.kernels import score_words
from fflm.models.neural.model import NeuralModel

LARGEST = 32000
"""The largest sum of 16-bit integers, but for their rounding."""

CHECKED = 20
"""One word in this number is also scored exactly, to estimate the normalizers; after a hundred, far fewer, to save time."""

_NOTING = threading.Lock()
"""Held while a scorer changes what it knows of normalizers."""


@dataclass(frozen=True)
class Normalizers:
    """What the normalizers were that fast scoring took for 1. Those of two texts can be added.

    Attributes
    ----------
    contexts
        How many are known.
    total, absolute
        Sums of log Z and of |log Z|, nats.
    worst
        The largest |log Z|.
    """

    contexts: int = 0
    total: float = 0.0
    absolute: float = 0.0
    worst: float = 0.0

    def __add__(self, other: "Normalizers") -> "Normalizers":
        """Return those of both texts."""
        return Normalizers(
            self.contexts + other.contexts,
            self.total + other.total,
            self.absolute + other.absolute,
            max(self.worst, other.worst),
        )

    @property
    def mean(self) -> float:
        """Of log Z, nats; NaN of none."""
        return self.total / self.contexts if self.contexts else math.nan

    @property
    def mean_absolute(self) -> float:
        """Of |log Z|, nats; NaN of none."""
        return self.absolute / self.contexts if self.contexts else math.nan

    def perplexity(self, loss: float) -> float:
        """Return about what perplexity a text has whose words' unnormalized loss is known, nats per token."""
        return math.exp(loss + self.mean)

    def to_dict(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        names = ("contexts", "mean", "mean_absolute", "worst")
        return {name: getattr(self, name) for name in names} if self.contexts else {"contexts": 0}


class FastScorer:
    """Scores the words of a text by a network with one hidden layer, taking the softmax's normalizer for 1.

    The hidden layer's weighted sums are read from a table, which has for each word and each place of a context what the word
    contributes from there (Devlin et al. 2014, section 4.2), as 16-bit integers with a unit a hidden unit. A word's row, which
    also has its output weights, is read once, when the word comes, and added to the sums of all places that will see it. Sums
    of integers are exact, so those over the words of an average are kept from one word of the text to the next.

    How far it is from probabilities depends on the model, which must have been trained with ``self_normalise`` or by ``nce``.

    Parameters
    ----------
    model
        The network.

    Raises
    ------
    FflmError
        If the network has another number of hidden layers, direct connections, or an adaptive softmax.
    """

    def __init__(self, model: NeuralModel) -> None:
        config, parameters = model.config, model.parameters
        if len(config.hidden) != 1 or config.direct or config.residual or parameters.bands:
            raise FflmError(
                "fast scoring needs a network with one hidden layer, no direct connections and no bands, not residual"
            )
        self.model = model
        self.vocabulary, self.text, self.window = model.vocabulary, model.text, model.window
        self._normalisers = Normalizers()
        self._unnoted = 0  # words before the next one that is to be scored exactly
        self._noted = 0  # words that are, now or later, those of which these are kept:
        self._pending: list[tuple[npt.NDArray[Any], ...]] = []  # contexts, words and losses
        outputs = parameters.softmax_weight
        if parameters.projection is not None:
            outputs = outputs @ parameters.projection
        embeddings, averages = parameters.embeddings, len(config.averages)
        blocks = np.split(parameters.hidden_weights[0], len(config.blocks), axis=1)
        blocks = [block.T * block.dtype.type(size**-0.5) for block, size in zip(blocks, config.blocks, strict=True)]
        # Each product is made twice, here and for the table, for together they would take twice the memory that the table does.
        largest = np.array([np.abs(embeddings @ block).max(axis=0) for block in blocks])
        # Sums over the words of a window have 16 bits, too, and sums over averages 32.
        self._units = _units(largest[averages:].sum(axis=0))
        self._average_units = _units(largest[:averages].max(axis=0, initial=0))
        self._output_units = _units(np.abs(outputs).max(axis=0))
        self._tables = np.zeros((len(embeddings), len(blocks) + 1, config.hidden[0]), np.int16)
        for k, block in enumerate(blocks):
            units = self._average_units if k < averages else self._units
            np.rint(embeddings @ (block / units), out=self._tables[:, k], casting="unsafe")
        np.rint(outputs / self._output_units, out=self._tables[: len(outputs), -1], casting="unsafe")
        self._borders = np.cumsum((0, *config.blocks[:averages]))
        # What padding contributes to the first places of a text: all of a window's words, and one fewer from each to the next.
        padding = self._tables[model.windows(np.empty(0, np.int32)).padding, averages:-1]
        self._begun = np.ascontiguousarray(padding.cumsum(axis=0, dtype=np.int16)[::-1])

    @property
    def memory(self) -> int:
        """Of the table, bytes."""
        return self._tables.nbytes

    @property
    def normalizers(self) -> Normalizers:
        """Those of one of `CHECKED` words of all texts that were scored, and from the hundredth on of one of 1000 `CHECKED`."""
        with _NOTING:
            if self._pending:
                contexts, words, losses = map(np.concatenate, zip(*self._pending, strict=True))
                logs = self.model.losses(contexts, words).astype(np.float64) - losses
                known = Normalizers(len(logs), float(logs.sum()), float(np.abs(logs).sum()), float(np.abs(logs).max()))
                self._normalisers, self._pending = self._normalisers + known, []
            return self._normalisers

    def text_losses(self, ids: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.floating]:
        """Return -log of each word's unnormalized probability, nats, and take notes of some normalizers.

        Parameters
        ----------
        ids
            (N,) int32, a text as the model's corpus holds it.
        start
            The first word to score; those before it are its context.

        Returns
        -------
        numpy.ndarray
            (N - start,), float32.
        """
        model = self.model
        ids = check_text(ids, start, self.vocabulary)
        windows = model.windows(ids)
        losses = np.empty(len(ids) - start, np.float32)
        score_words(
            ids,
            start,
            windows.padding,
            -1 if windows.sentence_end is None else windows.sentence_end,
            self._borders,
            self._tables,
            self._begun,
            self._units,
            self._average_units,
            model.parameters.hidden_biases[0],
            ACTIVATIONS.index(model.config.activation),
            self._output_units,
            model.parameters.output_bias,
            losses,
            shares_of(losses.size * self._tables[0].size),
        )
        with _NOTING:
            stride = max(CHECKED, len(losses) // 100) if self._noted < 100 else 1000 * CHECKED
            positions = np.arange(start + self._unnoted, len(ids), stride)
            self._unnoted += len(positions) * stride - len(losses)
            if len(positions):
                self._noted += len(positions)
                self._pending.append((*windows.batch(positions), losses[positions - start]))
        return losses

    def each_losses(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `text_losses` of many texts, each by itself."""
        return [self.text_losses(ids) for ids in texts]


def _units(largest: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the units (H,) in which numbers up to the largest (H,) are integers up to `LARGEST`."""
    units: npt.NDArray[np.floating] = np.maximum(largest, np.finfo(np.float32).tiny) / LARGEST
    return units


def fast_scorer(model: LanguageModel) -> FastScorer:
    """Return the fast scorer of a model.

    Raises
    ------
    FflmError
        If it is not a network, or not of the shape that can be fast.
    """
    if not isinstance(model, NeuralModel):
        raise FflmError("only a network can score fast: train one with `fflm.train` and `self_normalise=0.1`")
    return FastScorer(model)
