"""Scoring text with a model: perplexities, and log-probabilities of words, lines and hypotheses."""

import io
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError
from fflm.given import Text
from fflm.models.base import NOT_NUMBERS, LineScorer, TextScorer
from fflm.parallel.communicator import SINGLE_PROCESS, Communicator
from fflm.text.corpus import Part
from fflm.text.extent import Extent, as_bytes, extent_of
from fflm.text.reading import read_chunks, whole_lines
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import ASCII_BLANKS, LINE_END
from fflm.text.vocabulary import Vocabulary

_BLOCK = 1 << 16  # number of tokens of a corpus that are scored at a time
_HYPOTHESES = 256  # number of lines of an n-best list that are scored at a time
_MAX_EXPONENT = 709.0  # about the largest number whose exponential is finite

_NO_WORDS = "the text contains no words: give a text that is not empty or blank"

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Score:
    """The score of a text under a model, with its evaluation conditions. Scores of different texts can be added.

    Attributes
    ----------
    vocabulary, rule
        Size of the vocabulary [V], and the rule by which its words were chosen.
    policy
        Whether ends of lines or sentences are predicted, in words.
    tokens
        Number of predicted tokens, including ``</s>``. All averages are over these tokens.
    unknown, ends
        Number of tokens that are ``<unk>``, and that are ``</s>``.
    characters
        Number of characters of the normalized text, including newlines.
    bytes, words
        Number of bytes of the text in UTF-8, including newlines, and of words with white space between them, whatever tokens the
        model splits it into; 0 if they are not known, for a corpus that was tokenized by an early version.
    loss_sum, unknown_loss_sum
        Sum of -log p over all tokens, and over the tokens that are ``<unk>``; nats.

    Raises
    ------
    FflmError
        If ``loss_sum`` is NaN.
    """

    vocabulary: int
    rule: str
    policy: str
    tokens: int = 0
    unknown: int = 0
    ends: int = 0
    characters: int = 0
    bytes: int = 0
    words: int = 0
    loss_sum: float = 0.0
    unknown_loss_sum: float = 0.0

    def __post_init__(self) -> None:
        if math.isnan(self.loss_sum):
            raise FflmError(NOT_NUMBERS)

    def __repr__(self) -> str:
        return (
            f"Score(perplexity {self.perplexity:.4f}, {self.tokens:,} tokens, {self.oov_rate:.2%} OOV, "
            f"{self.bits_per_character:.4f} bits per character)"
        )

    @property
    def log_probability(self) -> float:
        """Log-probability of the whole text, nats; 0 if it has no tokens."""
        return 0.0 - self.loss_sum

    @property
    def log10_probability(self) -> float:
        """Base-10 logarithm of the probability of the whole text; 0 if it has no tokens."""
        return self.log_probability / math.log(10)

    @property
    def loss(self) -> float:
        """Mean of -log p over all tokens, nats; NaN if there are none."""
        return self.loss_sum / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """Perplexity of all tokens; NaN if there are none."""
        return _exp(self.loss)

    @property
    def perplexity_known(self) -> float:
        """Perplexity of the tokens that are in the vocabulary; NaN if there are none."""
        known = self.tokens - self.unknown
        return _exp((self.loss_sum - self.unknown_loss_sum) / known) if known else math.nan

    @property
    def bits_per_character(self) -> float:
        """Mean of -log2 p per character of the text; NaN if there are no characters."""
        return self.loss_sum / math.log(2) / self.characters if self.characters else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Mean of -log2 p per byte of the text; NaN if their number is not known."""
        return self.loss_sum / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def byte_perplexity(self) -> float:
        """Perplexity per byte of the text; NaN if their number is not known."""
        return _exp(self.loss_sum / self.bytes) if self.bytes else math.nan

    @property
    def word_perplexity(self) -> float:
        """Perplexity per word between white space, whatever the tokens are; NaN if their number is not known."""
        return _exp(self.loss_sum / self.words) if self.words else math.nan

    @property
    def oov_rate(self) -> float:
        """Out-of-vocabulary rate, in [0, 1]: the fraction of the tokens that are ``<unk>``; NaN if there are no tokens."""
        return self.unknown / self.tokens if self.tokens else math.nan

    def __add__(self, other: "Score") -> "Score":
        """Return the score of two texts together. The numbers of bytes and words are 0 if those of one text are not known.

        Raises
        ------
        ValueError
            If the evaluation conditions differ.
        """
        if (self.vocabulary, self.rule, self.policy) != (other.vocabulary, other.rule, other.policy):
            raise ValueError("scores of different vocabularies or policies cannot be added")
        names = ["tokens", "unknown", "ends", "characters", "bytes", "words", "loss_sum", "unknown_loss_sum"]
        total = replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})
        known = all(each.bytes or not each.characters for each in (self, other))
        return total if known else replace(total, bytes=0, words=0)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values, with None in place of numbers that are not finite."""
        names = (
            "perplexity",
            "perplexity_known",
            "loss",
            "log_probability",
            "log10_probability",
            "bits_per_character",
            "bits_per_byte",
            "byte_perplexity",
            "word_perplexity",
            "tokens",
            "ends",
            "unknown",
            "oov_rate",
            "characters",
            "bytes",
            "words",
            "vocabulary",
            "rule",
            "policy",
        )
        keys = {"oov_rate": "unknown_share"}  # the key in files since version 0.1.0
        values = {keys.get(name, name): getattr(self, name) for name in names}
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class ScoredLine:
    """The score of a line of a text, or of a piece of a very long line.

    Attributes
    ----------
    number
        Line number, from 1.
    text
        The normalized text, including a newline at its end.
    tokens, ids
        The tokens of the line, and their ids (N,), int32.
    losses
        (N,) -log p of each token, nats.
    score
        The score of the line.
    """

    number: int
    text: str
    tokens: list[str]
    ids: npt.NDArray[np.int32]
    losses: Losses
    score: Score


@dataclass(frozen=True)
class Hypothesis:
    """A scored line of an n-best list.

    Attributes
    ----------
    fields
        The fields of the line; empty for an empty line of a Moses list.
    text
        The normalized text of the hypothesis.
    score
        The score of the hypothesis.
    """

    fields: list[str]
    text: str
    score: Score


def score(model: LineScorer, text: str) -> Score:
    """Return the score of a text, which is read in the model's mode: one sentence per line, or one stream.

    A newline after the last line is optional. A line takes as long as with `LineScorer.scores`, and some microseconds more.

    Raises
    ------
    FflmError
        If the text contains no words.
    """
    from fflm.text.encoder import with_newlines  # here, because it imports Numba, which takes longer than inspecting a model

    text = with_newlines(text)
    ids, borders = model._encoder.encode([text])
    if not text or len(ids) == (model.text.mode == "sentence"):  # an empty sentence has an end
        raise FflmError(_NO_WORDS)
    text = text if text.endswith("\n") else text + "\n"
    return _score(
        model, extent_of(as_bytes(text), len(model.text.tokenizer.normalize(text))), ids, model._line_losses(ids, borders)
    )


def score_files(
    model: LineScorer,
    sources: Sequence[str | Path | Text],
    encoding: str = "utf-8",
    errors: Literal["strict", "replace"] = "strict",
    communicator: Communicator = SINGLE_PROCESS,
) -> Score:
    """Return the score of files, folders, ``"-"`` (standard input) and texts in memory as one text, in bounded memory.

    Parameters
    ----------
    model
        The model that scores.
    sources
        The files, folders, ``"-"`` and texts in memory.
    encoding, errors
        The encoding of the text, and what to do about bytes that cannot be decoded, as for `open`.
    communicator
        The processes that share the work, as for `score_chunks`.

    Raises
    ------
    FflmError
        If a file cannot be read, or the files contain no words.
    """
    return score_chunks(model, map(as_bytes, read_chunks(sources, encoding, errors)), communicator)


def score_part(model: TextScorer, part: Part, communicator: Communicator = SINGLE_PROCESS) -> Score:
    """Return the score of a part of a corpus whose vocabulary is that of the model.

    Each of several processes scores a share of the blocks. The sums of blocks are added up in their order, so that the result is
    the same for any number of processes.
    """
    starts = range(0, part.tokens, _BLOCK)
    sums, share = np.zeros((len(starts), 2)), communicator.share(len(starts))
    for low, own in zip(starts[share], sums[share], strict=True):
        before = min(low, model.window)
        ids = part.ids[low - before : low + _BLOCK].astype(np.int32)
        losses = model.losses_of_text(ids, before).astype(np.float64)
        own[:] = losses.sum(), losses[ids[before:] == model.vocabulary.unknown_id].sum()
    communicator.sum_arrays([sums])
    return part_score(part, model.vocabulary, model.text, *np.cumsum(sums, axis=0)[-1].tolist())


def part_score(part: Part, vocabulary: Vocabulary, text: TextSettings, loss_sum: float, unknown_loss_sum: float) -> Score:
    """Return the score of a part of a corpus, given the sums of -log p over its tokens and over its unknown words, nats."""
    return Score(
        len(vocabulary),
        vocabulary.rule,
        text.policy,
        part.tokens,
        part.unknown,
        part.ends,
        part.characters,
        part.bytes,
        part.words,
        loss_sum,
        unknown_loss_sum,
    )


def scored_lines(model: TextScorer, chunks: Iterable[str]) -> Iterator[ScoredLine]:
    """Yield the scored lines of a text that comes in chunks; contexts cross chunks, and lines if the model's mode is stream.

    Raises
    ------
    FflmError
        If the text contains no words.
    """
    reader, number = _Reader(model), 1
    for chunk in chunks:
        given = list(io.StringIO(chunk))
        lines = [model.text.tokenizer.normalize(line) for line in given]
        tokens = [model.text.tokens(line) for line in lines]
        borders = np.cumsum([0, *map(len, tokens)])
        ids = model.vocabulary.encode(list(itertools.chain.from_iterable(tokens)))
        losses = reader.losses(ids)
        for before, line, words, low, high in zip(given, lines, tokens, borders[:-1], borders[1:], strict=True):
            own = ids[low:high], losses[low:high]
            yield ScoredLine(number, line, words, *own, _score(model, extent_of(as_bytes(before), len(line)), *own))
            number += line.endswith("\n")
    reader.check()


def score_chunks(model: LineScorer, chunks: Iterable[bytes], communicator: Communicator = SINGLE_PROCESS) -> Score:
    """Return the score of a text in UTF-8 that comes in chunks; it is the sum of those of `scored_lines`, but computed faster.

    Of several processes, the first reads the chunks. All turn them into ids, and each scores one of as many chunks as there are
    processes. The sums of chunks are added up in their order, so that the result is the same for any number of processes.

    Raises
    ------
    FflmError
        If the text contains no words.
    """
    reader, chunks = _Reader(model), iter(chunks)
    result, held = _empty_score(model), [b""]

    def read() -> list[int]:
        held[:] = itertools.islice(chunks, communicator.size)
        return list(map(len, held))

    while sizes := communicator.on_first(read):
        text, scores = communicator.broadcast(b"".join(held)), []
        for rank, (size, end) in enumerate(zip(sizes, itertools.accumulate(sizes), strict=True)):
            ids, extent = model._encoder.encode_chunk(text[end - size : end])
            losses = reader.losses(ids, skip=rank != communicator.rank)
            scores.append(_score(model, extent, ids, losses))
        own = scores[communicator.rank] if communicator.rank < len(scores) else result
        sums = communicator.gather([own.loss_sum, own.unknown_loss_sum])[: len(scores)]
        for each, (loss_sum, unknown_loss_sum) in zip(scores, sums.tolist(), strict=True):
            result += replace(each, loss_sum=loss_sum, unknown_loss_sum=unknown_loss_sum)
    reader.check()
    return result


class _Reader:
    """Computes the losses of a text that comes in chunks, and keeps the context for the next chunk."""

    def __init__(self, model: TextScorer) -> None:
        self._model = model
        self._before = np.empty(0, np.int32)
        self._empty = True

    def losses(self, ids: npt.NDArray[np.int32], *, skip: bool = False) -> Losses:
        """Return -log p of the words of the next chunk: ids (N,) -> (N,), nats; zeros if the chunk is to be skipped."""
        before, window = len(self._before), self._model.window
        together = np.concatenate([self._before, ids])
        self._before = together[max(0, len(together) - window) :]
        self._empty = self._empty and not len(ids)
        if skip:
            return np.zeros(len(ids))
        return self._model.losses_of_text(together, before).astype(np.float64, copy=False)

    def check(self) -> None:
        """Raise an FflmError if no chunk contained a word."""
        if self._empty:
            raise FflmError(_NO_WORDS)


def sentences(lines: Iterable[ScoredLine]) -> Iterator[tuple[str, Score]]:
    """Yield every line of a text, without its newline, and its score, after joining the pieces of very long lines.

    A line without tokens, such as a blank line in sentence mode, has the log-probability 0 and the perplexity NaN.
    """
    text: list[str] = []
    together: Score | None = None
    for line in lines:
        text.append(line.text)
        together = line.score if together is None else together + line.score
        if line.text.endswith("\n"):
            yield "".join(text).removesuffix("\n"), together
            text, together = [], None
    if together is not None:
        yield "".join(text), together


def score_hypotheses(model: TextScorer, chunks: Iterable[str], *, moses: bool = False) -> Iterator[Hypothesis]:
    """Score the hypotheses of an n-best list, one per line, as independent texts, including ``</s>`` if the model predicts it.

    Parameters
    ----------
    model
        The model that scores.
    chunks
        The n-best list, as pieces of text; a newline after its last line is optional.
    moses
        Whether the lines are ``id ||| hypothesis ||| features ||| score``, the format of Moses, rather than hypotheses.

    Yields
    ------
    Hypothesis
        The hypothesis of each line. An empty line of a Moses list has no fields, and a score without tokens.

    Raises
    ------
    FflmError
        If a line does not have the format of Moses.
    """
    numbered = enumerate(whole_lines(chunks), 1)
    while block := list(itertools.islice(numbered, _HYPOTHESES)):
        parsed = [_parse(line, number, moses) for number, line in block]
        given = [fields[1 if moses else 0].strip(ASCII_BLANKS) if fields else "" for fields in parsed]
        texts = list(map(model.text.tokenizer.normalize, given))
        ids = [
            model.vocabulary.encode((model.text.tokens(text) + [LINE_END] * model.text.ends) if fields else [])
            for text, fields in zip(texts, parsed, strict=True)
        ]
        for fields, line, text, own, losses in zip(parsed, given, texts, ids, model.losses_of_texts(ids), strict=True):
            yield Hypothesis(fields, text, _score(model, extent_of(as_bytes(line), len(text)), own, losses))


def with_feature(fields: Sequence[str], name: str, value: float) -> str:
    """Return a line of a Moses n-best list, given its fields, with a feature appended to its features."""
    if not fields:
        return ""
    features = " ".join([*(fields[2].split() if len(fields) > 2 else []), f"{name}=", f"{value:.6f}"])
    return " ||| ".join(field.strip(ASCII_BLANKS) for field in [*fields[:2], features, *fields[3:]])


def _parse(line: str, number: int, moses: bool) -> list[str]:
    """Return the fields of a line of an n-best list."""
    if not moses:
        return [line]
    fields = line.split("|||")
    if not line.strip():
        return []
    if len(fields) < 2:
        raise FflmError(
            f"line {number} of the n-best list is not `id ||| hypothesis ||| ...`: fix it, or score it as a plain list"
        )
    return fields


def _score(model: TextScorer, extent: Extent, ids: npt.NDArray[np.int32], losses: npt.NDArray[np.floating]) -> Score:
    """Return the score of a text, given its extent, its ids (N,) and their losses (N,), nats."""
    vocabulary = model.vocabulary
    unknown = ids == vocabulary.unknown_id
    unknown_tokens = int(np.count_nonzero(unknown))
    return Score(
        len(vocabulary),
        vocabulary.rule,
        model.text.policy,
        len(ids),
        unknown_tokens,
        int(np.count_nonzero(ids == vocabulary.end_id)) if vocabulary.ends else 0,
        *extent,
        float(losses.sum(dtype=np.float64)),
        float(losses[unknown].sum(dtype=np.float64)) if unknown_tokens else 0.0,
    )


def _empty_score(model: TextScorer) -> Score:
    """Return the score of an empty text, to which others can be added."""
    return Score(len(model.vocabulary), model.vocabulary.rule, model.text.policy)


def _exp(value: float) -> float:
    """Return the exponential of a number, infinity where it overflows, NaN of NaN."""
    return math.inf if value >= _MAX_EXPONENT else math.exp(value)
