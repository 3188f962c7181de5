"""The interfaces that scoring and generation need, and the base class of models that contain a network."""

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from fflm.arguments import Device, Natural, check, check_ids
from fflm.backend.devices import device_backend
from fflm.errors import FflmError
from fflm.network.config import CELLS, NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.signals import raise_cause
from fflm.stored import REMEDY
from fflm.text.prefixes import PrefixReader
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows

if TYPE_CHECKING:
    from fflm.text.encoder import Encoder

Temperature: TypeAlias = Annotated[float, Meta(ge=0)]
TopP: TypeAlias = Annotated[float, Meta(gt=0, le=1)]

NOT_NUMBERS = f"the model predicts NaN, because numbers in its weights are far too large: {REMEDY}"
"""What to say of a model that was loaded without verification, and is damaged in such a way."""

ROWS = 1024
"""Number of contexts that a model is given at a time."""


class TrainedNetwork:
    """Base class of models that contain a network; it is created lazily, so that inspecting a model compiles nothing.

    Attributes
    ----------
    config, parameters
        The architecture of the network, and its parameters in main memory.
    device
        The device that computes predictions.
    source
        What error messages call the parameters.
    """

    config: NetworkConfig
    parameters: Parameters
    device: Device
    source: str = "the weights"

    @cached_property
    def network(self) -> Network:
        """The network on its device."""
        return Network(self.config, device_backend(self.device))

    @cached_property
    def finite_parameters(self) -> Parameters:
        """The parameters, to predict with: when they are loaded, the file is mapped, and its numbers are not checked.

        Raises
        ------
        FflmError
            If a number is not finite.
        """
        self.parameters.check_finite(self.source)
        return self.parameters

    @cached_property
    def _weights(self) -> Parameters:
        """The parameters on the device."""
        return self.finite_parameters.mapped(self.network.backend.upload)

    def softmax_inputs(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return what the output layer reads after contexts (B, n), valid ids -> (B, H), in main memory."""
        size = self.config.rows(ROWS)
        batches = [contexts[low : low + size] for low in range(0, max(1, len(contexts)), size)]
        return np.concatenate([self.network.softmax_inputs(self._weights, batch) for batch in batches])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the network and the weights on the device, which belong to this process."""
        return {name: value for name, value in vars(self).items() if name not in ("network", "_weights", "_few_contexts")}


class TextScorer(Protocol):
    """An object that computes the log-probability of each word of a text.

    Attributes
    ----------
    vocabulary, text
        The words and their ids, and the settings with which text is tokenized.
    """

    vocabulary: Vocabulary
    text: TextSettings

    @property
    def window(self) -> int:
        """Number of context words [n]."""

    def losses_of_text(self, ids: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.floating]:
        """Return -log p of the words of a text: ids (N,) -> (N - start,), nats. Words before ``start`` are only context."""

    def losses_of_texts(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `losses_of_text` of each text."""


class LineScorer(TextScorer, Protocol):
    """A text scorer that scores lines in microseconds each."""

    def scores(self, lines: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the log-probabilities of lines (L,), nats; each is a text of its own, as for `score`.

        A line without words, which `score` refuses, has the probability of an empty sentence: that of ``</s>`` at the beginning,
        or 1 if line ends are not predicted. For a single line this takes some microseconds. Any number of threads may call it.

        Raises
        ------
        FflmError
            If it is not given a list of strings.
        """
        try:
            return self._scores(lines if isinstance(lines, list) else check("lines", list[str], lines))
        except (AttributeError, TypeError):
            check("lines", list[str], lines)
            raise
        except SystemError as error:
            raise_cause(error)

    def _scores(self, lines: list[str]) -> npt.NDArray[np.float64]:
        ids, borders = self._encoder.encode(lines)
        return -_sums_of_lines(self._line_losses(ids, borders), borders)

    @cached_property
    def _encoder(self) -> "Encoder":
        from fflm.text.encoder import Encoder  # here, because it imports Numba, which takes longer than inspecting a model

        return Encoder(self.text, self.vocabulary)

    def losses_of_lines(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return -log p of lines (L,), nats, as `line_losses` does of their words."""
        return _sums_of_lines(self.line_losses(ids, borders), borders)

    def line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return -log p of the words of lines (N,), nats, of which `Encoder` made ids (N,) and borders (L + 1,).

        Raises
        ------
        FflmError
            If the ids are not those of words, or the borders do not rise from 0 to N.
        """
        return self._line_losses(*_check_lines(ids, borders, self.vocabulary))

    def _line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return what `line_losses` does, without the check, which takes long for a single line."""
        losses = self.losses_of_texts([ids[low:high] for low, high in itertools.pairwise(borders)])
        return np.concatenate([np.empty(0), *losses])


class TableScorer(LineScorer, Protocol):
    """A line scorer that reads scores from tables, with kernels that take lines as they are."""

    _line_kernel: ClassVar[Any]  # for `Encoder.apply`: takes the packed tables, and returns log p of lines (L,), nats

    @cached_property
    def packed(self) -> Any:
        """The tables, as the kernels take them (`fflm.packing.Packed`)."""
        raise NotImplementedError

    @cached_property
    def _score_lines(self) -> Callable[..., Any]:
        from fflm.compiling import direct

        return direct(self._line_kernel, b"", self._encoder.known, self.packed)

    def _scores(self, lines: list[str]) -> npt.NDArray[np.float64]:
        if not self._encoder.reads_pieces:
            return super()._scores(lines)
        scores: npt.NDArray[np.float64] = self._encoder.apply(self._score_lines, lines, self.packed)[0]
        return scores

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without compiled functions and their arguments, which belong to this process."""
        return {name: value for name, value in vars(self).items() if name not in ("packed", "_score_lines")}


class Predictor(LineScorer, Protocol):
    """An object that predicts the next word from a window of context words.

    Shapes: B contexts, n context words, V words of the vocabulary.
    """

    _batch_rows: ClassVar[int] = ROWS  # number of contexts, from several texts, that `losses` is given at a time

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""

    def probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        """Return p(word | context) of every word, which sum to one: contexts (B, n), oldest word first -> (B, V)."""
        scores = self.log_probabilities(contexts).astype(np.float64)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        distribution: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return distribution

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""

    def _check_contexts(self, contexts: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Return contexts (B, n) as checked by `check_ids`; they may contain the id of ``<s>``, V."""
        return check_ids("contexts", contexts, len(self.vocabulary) + 1, (None, self.window))

    def _check_examples(
        self, contexts: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return contexts (B, n) and the words that follow them (B,) as checked by `check_ids`."""
        contexts = self._check_contexts(contexts)
        return contexts, check_ids("targets", targets, len(self.vocabulary), (len(contexts),))

    def windows(self, ids: npt.NDArray[np.integer[Any]]) -> Windows:
        """Return the training examples of a text of ids (N,): contexts and the words that follow them."""
        return Windows.of(ids, self.vocabulary, self.text, self.window)

    @cached_property
    def _prefixes(self) -> PrefixReader:
        return PrefixReader(self.text, self.vocabulary)

    @cached_property
    def context_limits(self) -> tuple[int, int]:
        """The id that fills contexts before a text, and the id after which contexts start anew, -1 if there is none."""
        windows = self.windows(np.empty(0, np.int32))
        return windows.padding, -1 if windows.sentence_end is None else windows.sentence_end

    def losses_of_text(self, ids: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.floating]:
        """Return -log p of the words of a text: ids (N,) -> (N - start,), nats. Words before ``start`` are only context."""
        ids = check_text(ids, start, self.vocabulary)
        windows, rows = self.windows(ids), self._rows(ROWS)
        pieces = range(start, len(ids), rows)
        losses = [self.losses(*windows.batch(np.arange(low, min(low + rows, len(ids))))) for low in pieces]
        return np.concatenate([np.empty(0), *losses])

    def losses_of_texts(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `losses_of_text` of each text; the contexts of several texts are predicted in one batch."""
        texts = [check_text(ids, 0, self.vocabulary) for ids in texts]
        ends = np.cumsum([0, *map(len, texts)])
        rows = self._rows(self._batch_rows)
        losses: list[npt.NDArray[np.floating]] = [np.empty(0)]
        for low in range(0, int(ends[-1]), rows):
            high = min(low + rows, int(ends[-1]))
            batches = []
            for place in range(int(np.searchsorted(ends, low, side="right")) - 1, int(np.searchsorted(ends, high))):
                first, last = np.clip((low, high), ends[place], ends[place + 1]) - ends[place]
                batches.append(self.windows(texts[place]).batch(np.arange(first, last)))
            losses.append(self.losses(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True))))
        return np.split(np.concatenate(losses), ends[1:-1]) if texts else []

    def _rows(self, most: int) -> int:
        """Return the number of contexts to have in memory at a time: ``most``, or fewer if the contexts are very long."""
        return max(1, min(most, CELLS // max(1, self.window)))


def check_text(ids: npt.NDArray[Any], start: int, vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """Return the ids of a text (N,) as checked by `check_ids`; also check ``start``, the index of the first word to score.

    Raises
    ------
    FflmError
        If the array does not contain ids of the vocabulary, or ``start`` is out of range.
    """
    ids = check_ids("ids", ids, len(vocabulary))
    if check("start", Natural, start) > len(ids):
        raise FflmError(f"`start` must be from 0 to {len(ids):,}, the length of the text, not {start:,}")
    return ids


def _check_lines(
    ids: npt.NDArray[Any], borders: npt.NDArray[Any], vocabulary: Vocabulary
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the ids of lines (N,), and where each begins and the last ends (L + 1,), after checking them.

    Raises
    ------
    FflmError
        If the ids are not of the vocabulary, or the borders do not rise from 0 to N.
    """
    ids, borders = check_ids("ids", ids, len(vocabulary)), np.ascontiguousarray(borders)
    if borders.dtype != np.int64 or borders.ndim != 1 or not len(borders):
        raise FflmError("`borders` must be an array of integers of 64 bits, one for each line and one more")
    if borders[0] or borders[-1] != len(ids) or (borders[1:] < borders[:-1]).any():
        raise FflmError(f"`borders` must rise from 0 to {len(ids):,}, the number of ids")
    return ids, borders


def _sums_of_lines(losses: npt.NDArray[np.floating], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the sums of the losses (N,) of the words of each line, (L,), given where lines begin (L + 1,)."""
    sums: npt.NDArray[np.float64] = np.zeros(len(borders) - 1)
    filled = borders[1:] > borders[:-1]
    sums[filled] = np.add.reduceat(losses, borders[:-1][filled], dtype=np.float64)
    return sums
