"""Caches: predictors that know the last words of a text only."""

import threading
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import Size, checked
from fflm.errors import FflmError
from fflm.models.base import ROWS, Predictor, TrainedNetwork, check_text
from fflm.models.description import Theta
from fflm.models.language_model import LanguageModel
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary

Floats = npt.NDArray[np.float64]

DECAY = 4
"""Logarithm of the ratio between the weights of the newest and the oldest word, if nothing else distinguishes them."""

THETAS = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0)
"""The values among which theta is chosen on held-out text."""

_PIECE = 1 << 15
"""Number of words whose keys are in memory at a time, besides those that the cache remembers."""


@dataclass
class _Known:
    """The contexts whose keys have been computed, at most M.

    Attributes
    ----------
    contexts, slots, count
        As for `fflm.models.mixture.kernels.find_contexts`.
    keys
        The key of each context, (M, H), float32; without columns before the first is computed.
    """

    contexts: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    keys: npt.NDArray[np.float32]
    count: int = 0

    @classmethod
    def with_room(cls, size: int, width: int) -> Self:
        """Return room for contexts of ``width`` words."""
        slots = np.zeros(1 << (2 * size - 1).bit_length(), np.int32)
        return cls(np.empty((size, width), np.int32), slots, np.empty((size, 0), np.float32))


class Cache(Predictor):
    """Base class of predictors that know nothing but the last words: words that have occurred recently occur again.

        p(w) = (c/V + sum_i d_i s_i [w_i = w]) / (c + sum_i d_i s_i),   d_i = exp(-4 i / N),   i = 1 ... N

    The word w_i was i words ago. The weights d_i decay as those of Clarkson and Robinson 1997
    (https://doi.org/10.1109/ICASSP.1997.596049); s_i distinguishes the kinds of caches. An imaginary word of the weight c is
    spread over the vocabulary: at the beginning of a text there is nothing else, and no word is impossible. ``<s>`` and ``</s>``
    are left out, because they also pad the beginning of a text.

    Attributes
    ----------
    size
        Number of words that it remembers [N].
    base_weight
        The weight of the imaginary word [c].
    name
        The name of the cache among the components of a mixture.
    """

    base_weight: float
    name: str

    def __init__(self, size: int, vocabulary: Vocabulary, text: TextSettings) -> None:
        self.size = size
        self.vocabulary = vocabulary
        self.text = text
        self._decay = np.exp(-DECAY * np.arange(size, 0, -1) / size)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what config.json says of the cache."""

    @abstractmethod
    def _weights(self, contexts: npt.NDArray[np.int32]) -> Floats:
        """Return d_i s_i of the last N words of contexts (B, n), 0 for those that are left out: (B, N)."""

    def variants(self) -> Sequence["Cache"]:
        """Return the caches among which one is chosen on held-out text when a mixture is tuned."""
        return [self]

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> Floats:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""
        contexts = self._check_contexts(contexts)
        totals = np.zeros((len(contexts), len(self.vocabulary)))
        self.add_probabilities(contexts, 1.0, totals)
        return np.log(totals, out=totals)

    def add_probabilities(self, contexts: npt.NDArray[np.int32], weight: float, totals: Floats) -> None:
        """Add weight p(word | context) of every word to totals (B, V): contexts (B, n), valid ids, oldest word first."""
        from fflm.models.mixture.kernels import add_remembered  # here, because it imports Numba

        add_remembered(contexts, self._weights(contexts), self.base_weight, weight, totals)

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> Floats:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""
        contexts, targets = self._check_examples(contexts, targets)
        words, weights = contexts[:, contexts.shape[1] - self.size :], self._weights(contexts)
        return self._losses(np.where(words == targets[:, None], weights, 0).sum(axis=1), weights.sum(axis=1))

    def _losses(self, found: Floats, totals: Floats) -> Floats:
        """Return -log p of words (B,), nats, given the sums of the weights of their occurrences and of all words, (B,) each."""
        result: Floats = np.log(self.base_weight + totals) - np.log(self.base_weight / len(self.vocabulary) + found)
        return result

    def _is_used(self, words: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Return which words (...) are not left out."""
        used: npt.NDArray[np.bool_] = words != self.vocabulary.start_id
        return used if self.vocabulary.end_id is None else used & (words != self.vocabulary.end_id)


class UnigramCache(Cache):
    """A unigram model of the last words (Kuhn and De Mori 1990, https://doi.org/10.1109/34.56193): s_i = c = 1.

    Decaying weights are 3% better than equal ones on the validation texts of Brown and WikiText-2.

    Parameters
    ----------
    size
        Number of words that it remembers [N], at least 1.
    vocabulary, text
        The words and their ids, and the settings with which text is tokenized.

    Raises
    ------
    FflmError
        If the size is out of range.
    """

    base_weight = 1.0

    @checked
    def __init__(self, size: Size, vocabulary: Vocabulary, text: TextSettings) -> None:
        super().__init__(size, vocabulary, text)
        self.name = f"cache of {size:,} words"

    @property
    def window(self) -> int:
        """Number of context words [N]."""
        return self.size

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json says of the cache."""
        return {"cache": self.size}

    def _weights(self, contexts: npt.NDArray[np.int32]) -> Floats:
        return np.where(self._is_used(contexts), self._decay, 0)


class KeyNetwork(Predictor, Protocol):
    """A network that computes the keys of a `NeuralCache`."""

    def softmax_inputs(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return what the output layer reads after contexts (B, n), valid ids -> (B, H), in main memory."""


class NeuralCache(Cache):
    """A cache that prefers the words that occurred in contexts like the current one: s_i = exp(theta (cosine_i - 1)).

    Grave, Joulin and Usunier 2017 (https://arxiv.org/abs/1612.04426). The key of a context is what the softmax of a network reads
    after it; cosine_i is that of the angle between the keys of the current context and of the context before w_i. The imaginary
    word has the weight of a word whose key is orthogonal, c = exp(-theta). Grave et al. do not have the decay.

    The network runs on its device, everything else on the CPU. The losses of a text do not depend on how it is divided into
    batches, except for rounding.

    Parameters
    ----------
    size
        Number of words that it remembers [N], at least 1.
    theta
        How much similar contexts are preferred to others, above 0.
    network
        The network that computes the keys.

    Raises
    ------
    FflmError
        If a number is out of range.
    """

    @checked
    def __init__(self, size: Size, theta: Theta, network: KeyNetwork) -> None:
        super().__init__(size, network.vocabulary, network.text)
        self.theta = theta
        self.network = network
        self.base_weight = float(np.exp(-theta))
        self._own = threading.local()  # of each thread what is ``known`` to it
        self.name = f"neural cache of {size:,} words, theta {theta:g}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size, self.theta, self.network)

    @property
    def window(self) -> int:
        """Number of context words [N + n], because the key of the oldest word depends on the n words before it."""
        return self.size + self.network.window

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json says of the cache."""
        return {"neural_cache": self.size, "theta": self.theta}

    def variants(self) -> Sequence[Self]:
        """Return caches with all `THETAS`."""
        return [type(self)(self.size, theta, self.network) for theta in THETAS]

    def losses_of_text(self, ids: npt.NDArray[np.int32], start: int = 0) -> Floats:
        """Return -log p of the words of a text: ids (N,) -> (N - start,), nats. Words before ``start`` are only context."""
        ids = check_text(ids, start, self.vocabulary)
        return self._losses_from(ids, np.zeros(len(ids), np.int64), start)

    def losses_of_texts(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `losses_of_text` of each text."""
        texts = [check_text(ids, 0, self.vocabulary) for ids in texts]
        ends = np.cumsum([0, *map(len, texts)])
        together = np.concatenate([np.empty(0, np.int32), *texts])
        return np.split(self._losses_from(together, np.repeat(ends[:-1], np.diff(ends)), 0), ends[1:-1]) if texts else []

    def _losses_from(self, ids: npt.NDArray[np.int32], begins: npt.NDArray[np.int64], start: int) -> Floats:
        """Return -log p of words of texts, ids (N,), from ``start`` on, given where the text of each begins, (N,)."""
        end = self.context_limits[1]
        after_end = np.flatnonzero(ids[:-1] == end) + 1
        begins = begins.copy()
        begins[after_end] = after_end
        begins = np.maximum.accumulate(begins)
        losses = [np.empty(0)]
        for low in range(start, len(ids), _PIECE):
            places = np.arange(max(int(begins[low]), low - self.size), min(low + _PIECE, len(ids)))
            losses.append(self._losses(*self._sums(ids, begins, places, low - places[0])))
        return np.concatenate(losses)

    def _sums(
        self, ids: npt.NDArray[np.int32], begins: npt.NDArray[np.int64], places: npt.NDArray[np.int64], start: int
    ) -> Floats:
        """Return the sums of the weights of the target's occurrences and of all words, (2, B), as `_losses` takes them.

        The targets are ids[places[start:]]; the words before them that they see are among ids[places].
        """
        from fflm.backend.cpu.launching import shares_of  # here, because these import Numba
        from fflm.models.mixture.kernels import KEYS, QUERIES, sum_weights

        batches = np.array_split(places, -(-len(places) // ROWS))
        keys = np.concatenate([self._keys(self._contexts(ids, begins, batch)) for batch in batches])
        words = ids[places]
        used = self._is_used(words)
        used_before = np.append(0, np.cumsum(used))
        oldest = np.maximum(begins[places], places - self.size)[start:] - places[0]
        first, last = used_before[np.maximum(oldest, 0)], used_before[start:-1]
        remembered = keys[used], words[used], np.flatnonzero(used).astype(np.int32) - np.int32(start)
        shares = shares_of(keys.shape[1] * float((last - first).sum()))
        tiles = np.empty((shares, QUERIES, KEYS), np.float32)
        found, totals = sums = np.empty((2, len(first)))
        scales = self.theta, np.float32(DECAY / self.size)
        queries = np.float32(self.theta) * keys[start:]
        sum_weights(queries, *remembered, first, last, words[start:], *scales, tiles, found, totals, shares)
        return sums

    def _contexts(
        self, ids: npt.NDArray[np.int32], begins: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """Return the network's contexts of the words of texts, ids (N,), at places (B,): (B, n)."""
        before = places[:, None] - np.arange(self.network.window, 0, -1)
        return np.where(before >= begins[places][:, None], ids[np.maximum(before, 0)], np.int32(self.context_limits[0]))

    def _keys(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return the keys of contexts (B, n): (B, H), of unit length."""
        values = self.network.softmax_inputs(contexts).astype(np.float32, copy=False)
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
        keys: npt.NDArray[np.float32] = values / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None].astype(np.float32)
        return keys

    def _weights(self, contexts: npt.NDArray[np.int32]) -> Floats:
        weights = np.empty((len(contexts), self.size))
        rows = max(1, _PIECE // (self.size + 1))
        for low in range(0, len(contexts), rows):
            self._weigh(contexts[low : low + rows], weights[low : low + rows])
        return weights

    def _weigh(self, contexts: npt.NDArray[np.int32], weights: Floats) -> None:
        """Set the weights (B, N), given contexts (B, n). Keys are kept, because most are the same for the next word of a text."""
        from fflm.models.mixture.kernels import find_contexts, weights_of_keys  # here, because these import Numba

        places = np.empty((len(contexts), self.size + 1), np.int32)
        known: _Known | None = vars(self._own).pop("known", None)  # Ctrl-C may come at any time, when not all of it fits together
        if known is None or known.count + places.size > len(known.contexts):
            known = _Known.with_room(max(_PIECE, 2 * places.size), self.network.window)
        before, end = known.count, -1 if self.vocabulary.end_id is None else self.vocabulary.end_id
        table = known.slots, known.contexts, known.count
        known.count = find_contexts(contexts, self.size, self.vocabulary.start_id, end, *table, places)
        if known.count > before:
            keys = self._keys(known.contexts[before : known.count])
            if not before:
                known.keys = np.empty((len(known.contexts), keys.shape[1]), np.float32)
            known.keys[before : known.count] = keys
        weights_of_keys(known.keys, places, self._decay, self.theta, weights)
        self._own.known = known


def network_of(components: Iterable[Predictor]) -> KeyNetwork:
    """Return the first network in the components of a mixture, which computes the keys of its neural cache.

    Raises
    ------
    FflmError
        If no component is a network.
    """
    for component in components:
        for _, part in component.shares() if isinstance(component, LanguageModel) else ():
            if isinstance(part, TrainedNetwork):
                return part
    raise FflmError("a neural cache needs the activations of a network: mix in a network that `fflm.train` has trained")
