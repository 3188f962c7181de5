"""Text generation: the distribution of the next word, sampling, and beam search."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import Many, Positive, Seed, Size, checked
from fflm.errors import FflmError
from fflm.models.base import NOT_NUMBERS, Predictor, Temperature, TopP
from fflm.text.prefixes import Prefix
from fflm.text.tokenizer import LINE_END, Tokenizer

LENGTH = 100
"""Default maximum number of tokens of a continuation."""

_BATCH = 32
"""Number of samples that are drawn at a time."""

_BLOCK = 64  # number of values whose largest, or whose sum, is found first

_MAX_QUOTES = 2
"""Maximum number of closing quotes that are added after the end of a sentence."""

_SENTENCE_ENDS = frozenset(".!?。！？")
_STRAIGHT_QUOTES = frozenset("\"'")
_CLOSING_QUOTES = frozenset("\"'”’」』»") | {"''"}

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Continuation:
    """Words that follow a prefix.

    Attributes
    ----------
    ids
        The ids of the words, including a final ``</s>``.
    log_probability
        The log-probability of the words after the prefix under the model, whatever the temperature, ``top_k`` and ``top_p``;
        nats.
    ended
        Whether the continuation stopped at the end of a sentence, rather than at the maximum length.
    """

    ids: list[int]
    log_probability: float
    ended: bool


@checked
def read_prefix(model: Predictor, text: str) -> Prefix:
    """Return a text as a model reads it; an empty text stands for the start of a new one.

    Spaces at the end are not read if tokens are subwords, because that of the next word begins with a space.
    """
    return model._prefixes.read(text)


def probabilities(model: Predictor, prefix: Prefix) -> npt.NDArray[np.float64]:
    """Return p(word | prefix) of every word of the vocabulary, (V,); the probabilities sum to one.

    Raises
    ------
    FflmError
        If they are NaN.
    """
    found: npt.NDArray[np.float64] = model.probabilities(_last_context(model, prefix.ids))[0]
    _check_numbers(found)
    return found


@checked
def next_words(model: Predictor, prefix: Prefix, top: Positive) -> list[tuple[str, float]]:
    """Return the most probable next words, symbols such as ``</s>`` included, with their probabilities, in descending order."""
    distribution = probabilities(model, prefix)
    return [(model.vocabulary.words[id_], float(distribution[id_])) for id_ in top_indices(distribution, top)]


def stops_by_default(model: Predictor) -> bool:
    """Return whether a continuation stops at the end of a sentence by default: it does for models in sentence mode."""
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
    """Draw continuations from the model's distribution.

    Each sample has a random generator of its own, so that, apart from rounding errors, it does not depend on the number of
    samples.

    Parameters
    ----------
    model, prefix
        The model, and the prefix to continue.
    samples
        Number of continuations to draw.
    length
        Maximum number of tokens of a continuation.
    temperature
        The log-probabilities are divided by it; 0 always takes the most probable word.
    top_k
        Draw only from the k most probable words.
    top_p
        Draw only from the smallest set of most probable words whose share of the probability is at least this; applied after
        ``top_k`` (nucleus sampling: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
    seed
        Random seed; by default the samples are different ones each time.
    unknown
        Whether ``<unk>`` may be generated.
    stop_at_end
        Whether to stop at the end of a sentence: after ``</s>``, or, where the vocabulary has none, after ``.!?。！？`` and the
        closing quotes that the model predicts there. By default only models in sentence mode stop.

    Raises
    ------
    FflmError
        If a value is out of range, or the model predicts NaN.
    """
    decoder = _Decoder(model, prefix, length, unknown, _stop_words(model, stop_at_end))
    draw = functools.partial(_draw, temperature=temperature, top_k=top_k, top_p=top_p)
    seeds = np.random.SeedSequence(seed).spawn(samples)
    rows = model._rows(_BATCH)
    results = []
    for low in range(0, samples, rows):
        results += decoder.sample([np.random.default_rng(each) for each in seeds[low : low + rows]], draw)
    return [decoder.close_quotes(each) for each in results]


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
    """Search for the most probable continuations.

    Parameters
    ----------
    model, prefix
        The model, and the prefix to continue.
    beams
        Number of hypotheses that are kept after each word; finished hypotheses count, too.
    length, unknown, stop_at_end
        As for `sample`.
    normalize
        Whether to rank the final hypotheses by log-probability per token, which favors longer ones, rather than by
        log-probability.

    Returns
    -------
    list of Continuation
        At most ``beams`` continuations, the best first.

    Raises
    ------
    FflmError
        If a value is out of range, or the model predicts NaN.
    """
    decoder = _Decoder(model, prefix, length, unknown, _stop_words(model, stop_at_end))
    hypotheses = decoder.beam_search(beams)
    if normalize:
        hypotheses.sort(key=lambda each: -each.log_probability / len(each.ids))
    return [decoder.close_quotes(each) for each in hypotheses]


def render(model: Predictor, prefix: Prefix, continuation: Continuation) -> str:
    """Return the text of a prefix, unchanged, followed by its detokenized continuation without a final ``</s>``."""
    tokens = model.vocabulary.decode(continuation.ids)
    if continuation.ended and continuation.ids[-1] == model.vocabulary.end_id:
        tokens.pop()
    tokenizer = model.text.tokenizer
    before = _ending(tokenizer, prefix.tokens)
    added = tokenizer.detokenize(before + tokens)[len(tokenizer.detokenize(before)) :]
    if tokenizer.mode == "subword":
        return prefix.text.rstrip(" ") + added.rstrip("\ufffd")  # which stand for a character that was not completed
    if prefix.text and tokenizer.is_blank(prefix.text[-1]):
        added = added.removeprefix(" ")
    return prefix.text + added


def _ending(tokenizer: Tokenizer, tokens: list[str]) -> list[str]:
    """Return those of a text's tokens on which the spacing of later ones depends, because a prefix may be long.

    They are the last token, and in the last line, straight quotes and the tokens before these.
    """
    if not tokenizer.is_blank(" "):
        return tokens
    kept: list[str] = []
    later_is_kept = True
    for token in reversed(tokens):
        if token == LINE_END:
            break
        is_quote = token[0] in _STRAIGHT_QUOTES
        if is_quote or later_is_kept:
            kept.append(token)
        later_is_kept = is_quote
    return kept[::-1]


def top_indices(values: Floats, count: int) -> npt.NDArray[np.intp]:
    """Return the indices of the ``count`` largest values (N,), in descending order of the values; ties go to the lower index."""
    count = min(count, len(values))
    # The largest of each block are partitioned sooner than all, and of all values at least as many are as large.
    largest = values[: len(values) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(axis=1)
    largest = largest if len(largest) >= count else values
    threshold = np.partition(largest, len(largest) - count)[len(largest) - count]
    found = np.flatnonzero(values >= threshold)
    return found[np.argsort(-values[found], kind="stable")][:count]


@dataclass(frozen=True)
class _Decoder:
    """A model with the prefix that it continues, and the constraints on the continuations.

    Attributes
    ----------
    model, prefix
        The model, and the prefix to continue.
    length
        Maximum number of tokens of a continuation.
    unknown
        Whether ``<unk>`` may be generated.
    stop_words
        Ids of the words that end a continuation.
    """

    model: Predictor
    prefix: Prefix
    length: int
    unknown: bool
    stop_words: frozenset[int]

    def sample(
        self, generators: Sequence[np.random.Generator], draw: Callable[[Floats, np.random.Generator], int]
    ) -> list[Continuation]:
        """Draw a continuation with each random generator; ``draw`` draws a word, given log-probabilities (V,)."""
        drawn = [Continuation([], 0.0, ended=False) for _ in generators]
        contexts = np.repeat(_last_context(self.model, self.prefix.ids), len(drawn), axis=0)
        for _ in range(self.length):
            if all(each.ended for each in drawn):
                break
            scores = self.model.log_probabilities(contexts)
            words = np.zeros(len(drawn), np.int32)
            for row, (before, generator) in enumerate(zip(drawn, generators, strict=True)):
                if not before.ended:
                    words[row] = word = draw(self._allowed(scores[row]), generator)
                    drawn[row] = self._append(before, word, float(scores[row, word]))
            contexts = _next_contexts(self.model, contexts, words)
        return drawn

    def beam_search(self, beams: int) -> list[Continuation]:
        """Return the best hypotheses, at most ``beams``, in descending order of their log-probability."""
        hypotheses = [Continuation([], 0.0, ended=False)]
        contexts, V = _last_context(self.model, self.prefix.ids), len(self.model.vocabulary)
        for _ in range(self.length):
            live = np.array([not each.ended for each in hypotheses])
            if not live.any():
                break
            scores = np.full((len(hypotheses), V + 1), -np.inf)  # the last column keeps a finished hypothesis as it is
            scores[~live, V] = 0
            scores[live, :V] = self._allowed(self.model.log_probabilities(contexts[live]))
            totals = (scores + np.array([[each.log_probability] for each in hypotheses])).ravel()
            best = top_indices(totals, beams)
            rows, words = np.divmod(best[np.isfinite(totals[best])], V + 1)
            # The contexts of finished hypotheses are never used, so any word may be appended to them.
            contexts = _next_contexts(self.model, contexts[rows], np.minimum(words, V - 1))
            hypotheses = [
                hypotheses[row] if word == V else self._append(hypotheses[row], int(word), scores[row, word])
                for row, word in zip(rows, words, strict=True)
            ]
        return hypotheses

    def close_quotes(self, continuation: Continuation) -> Continuation:
        """Append the closing quotes that the model predicts after a sentence that ended without ``</s>``.

        A quote is appended if it is the most probable word, and at most `_MAX_QUOTES` are.
        """
        vocabulary = self.model.vocabulary
        if not continuation.ended or vocabulary.end_id is not None:
            return continuation
        ids, total = list(continuation.ids), continuation.log_probability
        for _ in range(min(_MAX_QUOTES, self.length - len(ids))):
            context = _last_context(self.model, np.append(self.prefix.ids, ids).astype(np.int32))
            scores = self.model.log_probabilities(context)[0]
            best = int(scores.argmax())
            if not _closes_quotation(vocabulary.words[best], self.prefix.tokens + vocabulary.decode(ids)):
                break
            ids.append(best)
            total += float(scores[best])
        return Continuation(ids, total, ended=True)

    def _allowed(self, scores: Floats) -> Floats:
        """Return log-probabilities (..., V), with minus infinity for words that must not be generated."""
        _check_numbers(scores)
        allowed = scores.copy()
        if not self.unknown:
            allowed[..., self.model.vocabulary.unknown_id] = -np.inf
        return allowed

    def _append(self, before: Continuation, word: int, log_probability: float) -> Continuation:
        """Return a continuation with one more word."""
        return Continuation([*before.ids, word], before.log_probability + log_probability, word in self.stop_words)


def _last_context(model: Predictor, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the context (1, n) of the word that follows a text (N,)."""
    padding, end = model.context_limits
    recent = ids[max(0, len(ids) - model.window) :]
    recent = recent[np.flatnonzero(recent == end)[-1] + 1 :] if end in recent else recent
    context = np.full((1, model.window), padding, np.int32)
    context[0, model.window - len(recent) :] = recent
    return context


def _check_numbers(values: Floats) -> None:
    """Raise an FflmError if any of some values (...) is NaN."""
    if np.isnan(values.max()):
        raise FflmError(NOT_NUMBERS)


def _next_contexts(model: Predictor, contexts: npt.NDArray[np.int32], words: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the contexts (B, n) after a word (B,) was appended to each of the contexts (B, n)."""
    padding, end = model.context_limits
    contexts = np.concatenate([contexts[:, 1:], words[:, None]], axis=1, dtype=np.int32)
    contexts[words == end] = padding
    return contexts


def _draw(scores: Floats, generator: np.random.Generator, temperature: float, top_k: int | None, top_p: float | None) -> int:
    """Draw a word, given log-probabilities (V,), by inverting the cumulative distribution at a uniform random number."""
    if temperature == 0:
        return int(scores.argmax())
    words = None  # stands for the whole vocabulary
    if top_k is not None:
        words = top_indices(scores, top_k)
        scores = scores[words]
    scores = scores - scores.max()
    if temperature != 1:
        with np.errstate(over="ignore"):  # with a tiny temperature, the quotient may be minus infinity, and the weight is 0
            scores = scores.astype(np.float64) / temperature
    weights = np.exp(scores)
    if top_p is not None:
        kept = _nucleus(weights, top_p)
        words = kept if words is None else words[kept]
        weights = weights[kept]
    place = _place(weights, generator.random())
    return place if words is None else int(words[place])


def _place(weights: Floats, share: float) -> int:
    """Return the first index where the cumulative sum of weights (N,) exceeds ``share`` times their sum; ``share`` is below 1."""
    whole = len(weights) // _BLOCK * _BLOCK  # summing blocks is much faster than the cumulative sum of all
    ends = np.append(weights[:whole].reshape(-1, _BLOCK).sum(axis=1), weights[whole:].sum()).cumsum(dtype=np.float64)
    goal = share * ends[-1]
    block = int(np.searchsorted(ends, goal, side="right"))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    rest = goal - ends[block - 1] if block else goal
    # The sums are rounded differently. A word whose weight is 0 must not be drawn.
    return block * _BLOCK + int(np.searchsorted(inside, min(rest, np.nextafter(inside[-1], 0)), side="right"))


def _nucleus(weights: Floats, top_p: float) -> npt.NDArray[np.intp]:
    """Return the indices of the smallest set of weights (N,) that have a share ``top_p`` of their sum, in descending order."""
    goal, count = top_p * weights.sum(), 64
    while True:  # a few words usually suffice, and finding them is much faster than sorting all
        words = top_indices(weights, count)
        cumulative = weights[words].cumsum(dtype=np.float64)
        if cumulative[-1] >= goal or count >= len(weights):
            return words[: np.searchsorted(cumulative, goal) + 1]
        count *= 8


def _stop_words(model: Predictor, stop_at_end: bool | None) -> frozenset[int]:
    """Return the ids of the words that end a continuation; ``stop_at_end`` as for `sample`."""
    vocabulary = model.vocabulary
    if not (stops_by_default(model) if stop_at_end is None else stop_at_end):
        return frozenset()
    if vocabulary.end_id is not None:
        return frozenset([vocabulary.end_id])
    return frozenset(vocabulary.id(word) for word in _SENTENCE_ENDS if word in vocabulary)


def _closes_quotation(word: str, before: Sequence[str]) -> bool:
    """Return whether a word closes a quotation in the text ``before`` it.

    A quote that is spelled the same at both ends closes a quotation that is open; any other must only not be repeated.
    """
    if word in {'"', "'"}:
        return list(before).count(word) % 2 == 1
    return word in _CLOSING_QUOTES and word != before[-1]
