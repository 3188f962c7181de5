"""Continuing a text: the distribution of the next word, sampling, and beam search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import Many, Positive, Seed, Size, checked
from fflm.models.base import Predictor, Temperature, TopP
from fflm.text.vocabulary import UNKNOWN
from fflm.text.windows import Windows

LENGTH = 100
"""Tokens that a continuation may have, by default."""

_ROWS = 16
"""Contexts that sampling predicts from at a time."""

_SENTENCE_ENDS = frozenset(".!?。！？")
_CLOSING_QUOTES = frozenset("\"'”’」』»") | {"''"}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prefix:
    """A text to be continued, as a model reads it.

    Attributes
    ----------
    text
        As it was given.
    tokens, ids
        Its tokens, and their ids (N,).
    unknown
        Those of its tokens that the model reads as ``<unk>``, each once.
    """

    text: str
    tokens: list[str]
    ids: npt.NDArray[np.int32]
    unknown: list[str]


@dataclass(frozen=True)
class Continuation:
    """Words that follow a prefix.

    Attributes
    ----------
    ids
        The words, with the ``</s>`` that ended them.
    log_probability
        Of these words after the prefix under the model itself, whatever way they were chosen; nats.
    ended
        Whether they stop at the end of a sentence, and not for their number.
    """

    ids: list[int]
    log_probability: float
    ended: bool


@checked
def read_prefix(model: Predictor, text: str) -> Prefix:
    """Return a text as a model reads it; empty, it is the beginning of a text."""
    tokens = model.text.tokens(model.text.tokenizer.normalize(text))
    ids = model.vocabulary.encode(tokens)
    unknown = [token for token, id_ in zip(tokens, ids, strict=True) if id_ == model.vocabulary.unknown_id and token != UNKNOWN]
    return Prefix(text, tokens, ids, list(dict.fromkeys(unknown)))


def probabilities(model: Predictor, prefix: Prefix) -> Floats:
    """Return the probability of every word after a prefix, (V,), which sum to one."""
    scores = model.log_probabilities(_context(model, prefix.ids))[0].astype(np.float64)
    weights = np.exp(scores - scores.max())
    distribution: Floats = weights / weights.sum()
    return distribution


@checked
def next_words(model: Predictor, prefix: Prefix, top: Positive) -> list[tuple[str, float]]:
    """Return the likeliest next words, by name (the symbols too), with their probabilities among the whole vocabulary."""
    distribution = probabilities(model, prefix)
    return [(model.vocabulary.words[id_], float(distribution[id_])) for id_ in largest(distribution, top)]


def stops_by_default(model: Predictor) -> bool:
    """Whether a continuation stops at the end of a sentence unless told otherwise: yes if the model knows sentences."""
    return model.text.mode == "sentence"


@checked
def sample(
    model: Predictor,
    prefix: Prefix,
    *,
    samples: Size = 1,
    length: Many = LENGTH,
    temperature: Temperature = 1.0,
    top_k: Positive | None = None,
    top_p: TopP | None = None,
    seed: Seed | None = None,
    unknown: bool = False,
    stop_at_end: bool | None = None,
) -> list[Continuation]:
    """Draw continuations, each from random numbers of its own: but for rounding, it does not depend on how many are drawn.

    Parameters
    ----------
    model, prefix
        What predicts, and after what.
    samples
        How many to draw.
    length
        Tokens that each may have, at least 1.
    temperature
        What log-probabilities are divided by; 0 takes the likeliest word always.
    top_k
        Draw from the k likeliest words only.
    top_p
        Then, from the fewest of them that together have this share of their probability (Holtzman et al. 2020,
        https://arxiv.org/abs/1904.09751).
    seed
        The same seed gives the same samples; None different ones each time.
    unknown
        Whether ``<unk>`` may be drawn.
    stop_at_end
        Whether to stop at the end of a sentence: at ``</s>``, or without it after ``.!?。！？`` and the closing quotes that the
        model puts there. By default so in sentence mode only.

    Raises
    ------
    FflmError
        If a value is out of range.
    """
    stops = _stops(model, stop_at_end)
    seeds = np.random.SeedSequence(seed).spawn(samples)
    results = []
    rows = model._rows(_ROWS)
    for low in range(0, samples, rows):
        generators = [np.random.default_rng(each) for each in seeds[low : low + rows]]
        drawn = [Continuation([], 0.0, ended=False) for _ in generators]
        contexts = np.repeat(_context(model, prefix.ids), len(drawn), axis=0)
        for _ in range(length):
            if all(each.ended for each in drawn):
                break
            scores = model.log_probabilities(contexts)
            words = np.zeros(len(drawn), np.int32)
            for row, (before, generator) in enumerate(zip(drawn, generators, strict=True)):
                if not before.ended:
                    word = _draw(_allowed(model, scores[row], unknown), generator, temperature, top_k, top_p)
                    drawn[row] = _extended(before, word, float(scores[row, word]), stops)
                    words[row] = word
            contexts = _advanced(model, contexts, words)
        results += drawn
    return [_closed(model, prefix, each, length) for each in results]


@checked
def beam_search(
    model: Predictor,
    prefix: Prefix,
    *,
    beams: Size = 5,
    length: Many = LENGTH,
    normalize: bool = False,
    unknown: bool = False,
    stop_at_end: bool | None = None,
) -> list[Continuation]:
    """Search for the likeliest continuations.

    Parameters
    ----------
    model, prefix
        What predicts, and after what.
    beams
        Hypotheses that are kept after each word, those at the end of a sentence among them.
    length, unknown, stop_at_end
        As for `sample`.
    normalize
        Whether to order the final hypotheses by log-probability per token, which favours long ones, and not in all.

    Returns
    -------
    list of Continuation
        At most ``beams``, the best first.

    Raises
    ------
    FflmError
        If a value is out of range.
    """
    stops = _stops(model, stop_at_end)
    words = len(model.vocabulary)
    hypotheses = [Continuation([], 0.0, ended=False)]
    contexts = _context(model, prefix.ids)
    for _ in range(length):
        live = np.array([not each.ended for each in hypotheses])
        if not live.any():
            break
        scores = np.full((len(hypotheses), words + 1), -np.inf)  # the last column leaves a hypothesis as it is
        scores[~live, words] = 0
        scores[live, :words] = _allowed(model, model.log_probabilities(contexts[live]), unknown)
        totals = scores + np.array([[each.log_probability] for each in hypotheses])
        best = largest(totals.ravel(), beams)
        rows, chosen = np.divmod(best[np.isfinite(totals.ravel()[best])], words + 1)
        contexts = _advanced(model, contexts[rows], np.minimum(chosen, words - 1))  # of ended ones, contexts do not matter
        hypotheses = [
            hypotheses[row] if word == words else _extended(hypotheses[row], int(word), scores[row, word], stops)
            for row, word in zip(rows, chosen, strict=True)
        ]
    if normalize:
        hypotheses.sort(key=lambda each: -each.log_probability / len(each.ids))
    return [_closed(model, prefix, each, length) for each in hypotheses]


def render(model: Predictor, prefix: Prefix, continuation: Continuation) -> str:
    """Return a prefix as it was given with its continuation as readable text; the ``</s>`` at which that stopped is not shown."""
    tokens = model.vocabulary.decode(continuation.ids)
    if continuation.ended and continuation.ids[-1] == model.vocabulary.end_id:
        tokens.pop()
    tokenizer = model.text.tokenizer
    before = tokenizer.detokenize(prefix.tokens)
    added = tokenizer.detokenize(prefix.tokens + tokens)[len(before) :]
    if prefix.text and tokenizer.is_blank(prefix.text[-1]):
        added = added.removeprefix(" ")
    return prefix.text + added


def largest(values: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.intp]:
    """Return the indices of the ``count`` largest values (N,), the largest first, of equal ones the lower index first."""
    count = min(count, len(values))
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    found = np.flatnonzero(values >= threshold)
    return found[np.argsort(-values[found], kind="stable")][:count]


def _context(model: Predictor, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the context (1, n) of the word after a text (N,)."""
    return Windows.of(ids, model.vocabulary, model.text, model.window).contexts(np.array([len(ids)]))


def _advanced(model: Predictor, contexts: npt.NDArray[np.int32], words: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the contexts (B, n) of the words after ``words`` (B,)."""
    contexts = np.column_stack([contexts[:, 1:], words]).astype(np.int32)
    if model.text.mode == "sentence":
        contexts[words == model.vocabulary.end_id] = model.vocabulary.start_id
    return contexts


def _allowed(model: Predictor, scores: npt.NDArray[np.floating[Any]], unknown: bool) -> Floats:
    """Return log-probabilities (..., V) in float64, those of words that are not to be generated minus infinity."""
    allowed = scores.astype(np.float64)
    if not unknown:
        allowed[..., model.vocabulary.unknown_id] = -np.inf
    return allowed


def _draw(scores: Floats, generator: np.random.Generator, temperature: float, top_k: int | None, top_p: float | None) -> int:
    """Draw a word by log-probabilities (V,), the inverse of the cumulative distribution at one random number."""
    if temperature == 0:
        return int(scores.argmax())
    with np.errstate(over="ignore"):  # of tiny temperatures
        weights = np.exp((scores - scores.max()) / temperature)
    words = None  # all
    if top_k is not None:
        words = largest(weights, top_k)
        weights = weights[words]
    if top_p is not None:
        kept = _nucleus(weights, top_p)
        words = kept if words is None else words[kept]
        weights = weights[kept]
    cumulative = weights.cumsum()
    place = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
    return int(place if words is None else words[place])


def _nucleus(weights: Floats, top_p: float) -> npt.NDArray[np.intp]:
    """Return the indices of the fewest weights (N,) that together have a share of their sum, the largest first."""
    goal, count = top_p * weights.sum(), 64
    while True:  # few are enough as a rule, and to find these is much faster than to sort all
        words = largest(weights, count)
        cumulative = weights[words].cumsum()
        if cumulative[-1] >= goal or count >= len(weights):
            return words[: np.searchsorted(cumulative, goal) + 1]
        count *= 8


def _stops(model: Predictor, stop_at_end: bool | None) -> frozenset[int]:
    """Return the words at which a continuation stops."""
    vocabulary = model.vocabulary
    if not (stops_by_default(model) if stop_at_end is None else stop_at_end):
        return frozenset()
    if vocabulary.end_id is not None:
        return frozenset([vocabulary.end_id])
    return frozenset(vocabulary.id(word) for word in _SENTENCE_ENDS if word in vocabulary)


def _extended(before: Continuation, word: int, score: float, stops: frozenset[int]) -> Continuation:
    return Continuation([*before.ids, word], before.log_probability + score, word in stops)


def _closed(model: Predictor, prefix: Prefix, continuation: Continuation, length: int) -> Continuation:
    """Add the closing quotes, two at most, that are the likeliest words after a sentence that ends without ``</s>``."""
    if not continuation.ended or model.vocabulary.end_id is not None:
        return continuation
    ids, total = list(continuation.ids), continuation.log_probability
    for _ in range(min(2, length - len(ids))):
        scores = model.log_probabilities(_context(model, np.append(prefix.ids, ids).astype(np.int32)))[0]
        likeliest = int(scores.argmax())
        if not _closes(model.vocabulary.words[likeliest], prefix.tokens + model.vocabulary.decode(ids)):
            break
        ids.append(likeliest)
        total += float(scores[likeliest])
    return Continuation(ids, total, ended=True)


def _closes(word: str, before: Sequence[str]) -> bool:
    """Whether a word closes a quotation; one that looks as it did when it opened must be open, others only not be repeated."""
    if word in {'"', "'"}:
        return list(before).count(word) % 2 == 1
    return word in _CLOSING_QUOTES and word != before[-1]
