"""KenLM's Python module on models of fflm, to be used in its place: ``import fflm.kenlm as kenlm``.

It has the names of the package ``kenlm``, with the same arguments and results: log-probabilities are to base 10, and sentences
are cut into words at ASCII white space. A model is an ARPA file, or the folder of a language model that was trained on a sentence
per line. For ARPA files and n-gram models, all numbers are those of KenLM (Heafield 2011). A network trained to normalize itself
answers from the tables of fast scoring; other networks compute their softmax. A word may be several tokens to the model's
tokenizer, such as ``wall.``: then its probability is the product of theirs.
"""

import copy
import enum
import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import total_ordering
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.arguments import PathLike
from fflm.arrays import WEIGHTS, meaning, stored_checksum
from fflm.compiling import direct
from fflm.errors import FflmError
from fflm.files import os_errors_as_fflm_error
from fflm.models.base import LineScorer
from fflm.models.folder import read_config
from fflm.models.language_model import LanguageModel as _LanguageModel
from fflm.models.load import load_language_model
from fflm.models.neural.fast import FastScorer, is_self_normalized
from fflm.models.neural.kernels import score_after
from fflm.models.neural.model import NeuralModel
from fflm.models.ngram.arpa import read_arpa
from fflm.models.ngram.kernels import ngram_score_after
from fflm.models.ngram.model import NgramModel
from fflm.text.vocabulary import END, START, UNKNOWN

LN10 = math.log(10)

_BLANKS = " \t\n\r\v\f"
_WORDS = re.compile(f"[^{_BLANKS}]+")
_BINARY = b"mmap lm http://kheafield.com/code"  # how the binary files of KenLM begin

Ids = npt.NDArray[np.int32]


class LoadMethod(enum.IntEnum):
    """KenLM's ways of reading its binary files. They have no effect: models are always read as a whole."""

    LAZY = 0
    POPULATE_OR_LAZY = 1
    POPULATE_OR_READ = 2
    READ = 3
    PARALLEL_READ = 4


class ARPALoadComplain(enum.IntEnum):
    """KenLM's levels of warnings about ARPA files. They have no effect."""

    ALL = 0
    EXPENSIVE = 1
    NONE = 2


@dataclass
class Config:
    """How to load a model. Only ``exact`` has an effect, which KenLM does not have.

    Attributes
    ----------
    exact
        Whether a network computes its softmax for every word, although it was trained to score without.
    """

    load_method: LoadMethod = LoadMethod.POPULATE_OR_READ
    show_progress: bool = True
    arpa_complain: ARPALoadComplain = ARPALoadComplain.ALL
    exact: bool = False


class FullScoreReturn(NamedTuple):
    """The score of a word: its log-probability to base 10, the length of the n-gram it was found in, whether it is unknown."""

    log_prob: float
    ngram_length: int
    oov: bool


@total_ordering
class State:
    """The words before a word that its probability depends on. A model writes it; states of one model can be compared.

    Attributes
    ----------
    words
        The words, as the model writes them; empty if no model has written it.
    kind
        What distinguishes the states of other models: the length of ``words``, whether the model is one of n-grams, and the size
        of its vocabulary.
    """

    __slots__ = ("kind", "words")

    def __init__(self) -> None:
        self.words: Ids = np.empty(0, np.int32)
        self.kind: tuple[Any, ...] = ()

    def __eq__(self, other: object) -> bool:
        return self.words.tobytes() == other.words.tobytes() if isinstance(other, State) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self.words.tobytes() < other.words.tobytes() if isinstance(other, State) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.words.tobytes())

    def __copy__(self) -> "State":
        result = State()
        result.words, result.kind = self.words.copy(), self.kind
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        return copy.copy(self)


class Model:
    """A language model, as KenLM's class of this name: see the module.

    Parameters
    ----------
    path
        An ARPA file, compressed or not, or a model's folder.
    config
        How to load it.

    Raises
    ------
    FflmError
        If it is neither, or the model does not read a sentence a line.
    """

    def __init__(self, path: PathLike | bytes, config: Config | None = None) -> None:
        place = Path(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100, which would not resolve `..`
        self.path = os.fsencode(place)
        self.config = config or Config()
        self._fingerprint = _fingerprint(place)
        self._states = _load(place, self.config.exact)
        self._ids = _Ids(self._states.model)
        self._counts_spaces = self._states.model.text.tokenizer.mode == "subword"
        self._size = len(self._states.begin)
        self._kind = self._size, isinstance(self._states, _NgramStates), len(self._states.model.vocabulary)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.path, self.config, self._fingerprint)

    def __repr__(self) -> str:
        return f"<Model from {os.path.basename(os.fsdecode(self.path))}>"  # noqa: PTH119, as KenLM writes it

    def __contains__(self, word: str | bytes) -> bool:
        return self._states.model.vocabulary.unknown_id not in self._ids[_text(word)]

    @property
    def order(self) -> int:
        """The length of the longest n-grams; of a network, its window plus 1."""
        return self._states.model.window + 1

    def score(self, sentence: str | bytes, bos: bool = True, eos: bool = True) -> float:
        """Return log10 p of a sentence, after ``<s>`` if ``bos``, with ``</s>`` after it if ``eos``."""
        text = _text(sentence)
        if bos and eos and self._is_plain(text):
            return float(self._states.model.scores([text])[0]) / LN10
        return math.fsum(each.log_prob for each in self._walk(text, bos, eos))

    def scores(self, sentences: list[str]) -> npt.NDArray[np.float64]:
        """Return log10 p of sentences (L,), each after ``<s>`` and with ``</s>``. KenLM has no such function."""
        if isinstance(sentences, str | bytes):
            raise TypeError("sentences must be a list of strings")
        texts = list(map(_text, sentences))
        if all(map(self._is_plain, texts)):
            return self._states.model.scores(texts) / LN10
        return np.fromiter(map(self.score, texts), np.float64, len(texts))

    def _is_plain(self, text: str) -> bool:
        """Return whether the model cuts a text into words as KenLM does: all its blanks are spaces, and there are no symbols."""
        return text.isprintable() and ">" not in text and not (self._counts_spaces and "  " in f" {text} ")

    def perplexity(self, sentence: str | bytes) -> float:
        """Return the perplexity of a sentence, ``</s>`` included, per word between blanks."""
        words = len(_WORDS.findall(_text(sentence))) + 1
        return float(10.0 ** (-self.score(sentence) / words))

    def full_scores(self, sentence: str | bytes, bos: bool = True, eos: bool = True) -> Iterator[tuple[float, int, bool]]:
        """Yield log10 p of each word, the length of the n-gram it was found in, and whether it is unknown."""
        for each in self._walk(_text(sentence), bos, eos):
            yield each.log_prob, each.ngram_length, each.oov

    def BeginSentenceWrite(self, state: State) -> None:  # noqa: N802
        """Write the state at the beginning of a sentence."""
        state.words, state.kind = self._states.begin.copy(), self._kind

    def NullContextWrite(self, state: State) -> None:  # noqa: N802
        """Write the state without any words before; a network always has words before, and takes ``<s>`` for them."""
        state.words, state.kind = self._states.null.copy(), self._kind

    def BaseScore(self, in_state: State, word: str | bytes, out_state: State) -> float:  # noqa: N802
        """Return log10 p of a word after ``in_state``, and write the state after it."""
        return -self._advance(in_state, self._ids[word], out_state)[0] / LN10

    def BaseFullScore(self, in_state: State, word: str | bytes, out_state: State) -> FullScoreReturn:  # noqa: N802
        """Return what `full_scores` yields of a word after ``in_state``, and write the state after it."""
        ids = self._ids[word]
        loss, length = self._advance(in_state, ids, out_state)
        return FullScoreReturn(-loss / LN10, length, self._states.model.vocabulary.unknown_id in ids)

    def _advance(self, in_state: State, ids: tuple[int, ...], out_state: State) -> tuple[float, int]:
        """Return -log p of a word's tokens (at least one), nats, and the length of the last n-gram; write the state after them.

        Raises
        ------
        FflmError
            If another model has written ``in_state``; kernels would read beyond the ends of arrays with it.
        """
        before = in_state.words
        if in_state.kind != self._kind and len(before):
            raise FflmError("the state was written by another model: give one that this model has written")
        if out_state.kind != self._kind:
            out_state.words, out_state.kind = np.empty(self._size, np.int32), self._kind
        loss, length = 0.0, 1
        for id_ in ids:
            own, length = self._states.after(before, id_, out_state.words)
            loss += own
            before = out_state.words
        return loss, length

    def _walk(self, text: str, bos: bool, eos: bool) -> Iterator[FullScoreReturn]:
        """Yield the score of each word."""
        state = State()
        (self.BeginSentenceWrite if bos else self.NullContextWrite)(state)
        for word in _WORDS.findall(text) + [END] * eos:
            yield self.BaseFullScore(state, word, state)


class LanguageModel(Model):
    """The former name of `Model`, which KenLM keeps, too."""


class _Ids(dict[str | bytes, tuple[int, ...]]):
    """A cache of the ids of the tokens of words, which is cleared when it has more than `_MOST` words."""

    _MOST = 1 << 20

    def __init__(self, model: LineScorer) -> None:
        self._model = model
        self._fill()

    def _fill(self) -> None:
        vocabulary = self._model.vocabulary
        unknown = vocabulary.unknown_id
        self.update({START: (vocabulary.start_id,), END: (vocabulary.end_id or unknown,), UNKNOWN: (unknown,)})

    def __missing__(self, word: str | bytes) -> tuple[int, ...]:
        if len(self) > self._MOST:
            self.clear()
            self._fill()
        if isinstance(word, bytes):
            ids = self[_text(word)]
        else:
            vocabulary = self._model.vocabulary
            tokens = self._model.text.tokenizer.tokens(word) if _WORDS.fullmatch(_text(word)) else []
            # An empty word, several words, and a word that is white space to the tokenizer only, are unknown.
            ids = tuple(vocabulary.encode(tokens).tolist()) or (vocabulary.unknown_id,)
        self[word] = ids
        return ids


class _States:
    """How the states of a model are written, and what it predicts after them.

    Attributes
    ----------
    model
        Scores whole lines.
    begin, null
        The states at the beginning of a sentence, and without any words before.
    """

    model: LineScorer
    begin: Ids
    null: Ids

    def after(self, state: Ids, word: int, out: Ids) -> tuple[float, int]:
        """Return -log p of a word after a state, nats, and the length of the n-gram.

        The state after it is written to ``out``, which may be ``state``.
        """
        raise NotImplementedError


class _NgramStates(_States):
    def __init__(self, model: NgramModel) -> None:
        self.model = model
        self.null = np.zeros(model.window + 1, np.int32)
        self.begin = self.null.copy()
        self.begin[: 1 + min(1, model.window)] = 1, model.vocabulary.start_id
        self._packed = model.packed
        self._score_after = direct(ngram_score_after, self.null, 0, self.null, self._packed)

    def after(self, state: Ids, word: int, out: Ids) -> tuple[float, int]:
        result: tuple[float, int] = self._score_after(state if len(state) else self.null, word, out, self._packed)
        return result


class _ContextStates(_States):
    """The states of a model that always sees the same number of words: these, the newest first."""

    def __init__(self, model: _LanguageModel) -> None:
        self.model, self._predictor = model, model
        self._padding, self._end = model.vocabulary.start_id, model.vocabulary.end_id
        self.begin = self.null = np.full(model.window, self._padding, np.int32)

    def after(self, state: Ids, word: int, out: Ids) -> tuple[float, int]:
        state = state if len(state) else self.null
        loss = -NgramModel.start_log10 * LN10 if word == self._padding else self._loss(state, word)
        out[1:] = state[:-1].copy()
        out[0] = word
        if word in (self._padding, self._end):
            out[:] = self._padding
        return loss, self.model.window + 1

    def _loss(self, state: Ids, word: int) -> float:
        contexts = np.ascontiguousarray(state[None, ::-1])
        return float(self._predictor.losses(contexts, np.array([word], np.int32))[0])


class _FastStates(_ContextStates):
    """The states of a network whose scores are read from tables, by `FastScorer`."""

    def __init__(self, model: NeuralModel) -> None:
        super().__init__(model)
        scorer = FastScorer(model)
        self.model, self._packed, self._length = scorer, scorer.packed, model.window + 1
        self._score_after = direct(score_after, self.null, 0, self.null, self._packed)

    def after(self, state: Ids, word: int, out: Ids) -> tuple[float, int]:
        if word == self._padding:
            return super().after(state, word, out)
        return self._score_after(state if len(state) else self.null, word, out, self._packed), self._length


def _load(path: Path, exact: bool) -> _States:
    model: _LanguageModel
    if path.is_dir():
        model = load_language_model(path)
    else:
        with os_errors_as_fflm_error(f"read {path}"), path.open("rb") as file:
            if file.read(len(_BINARY)) == _BINARY:
                raise FflmError(f"{path} is a binary file of KenLM: give the ARPA file that it was made from")
        model = read_arpa(path)
    if model.text.mode != "sentence":
        raise FflmError(f"{path} reads a stream, not sentences: train it with `mode='sentence'`, or give an ARPA file with {END}")
    split = model.text.tokenizer
    if split.mode == "subword" and split.tokens("a a") != 2 * split.tokens("a"):
        raise FflmError(f"{path} has subwords of their own for beginnings of lines: train it with subwords of its text")
    if isinstance(model, NgramModel):
        return _NgramStates(model)
    if isinstance(model, NeuralModel) and is_self_normalized(model) and not exact:
        return _FastStates(model)
    return _ContextStates(model)


def _fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, or the checksums in the headers of a model's files."""
    if path.is_dir():
        return f"{meaning(read_config(path))} {stored_checksum(path / WEIGHTS)}"
    if not path.exists():
        raise FflmError(f"there is no model {path}: give an ARPA file or the folder of a language model")
    with os_errors_as_fflm_error(f"read {path}"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reopen(class_: type[Model], path: bytes, config: Config, expected: str) -> Model:
    """Load a model that was pickled by its path, in another process perhaps."""
    model = class_(path, config)
    if model._fingerprint != expected:
        raise FflmError(f"{os.fsdecode(path)} has changed since the model was loaded: load it again")
    return model


def _text(value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"Cannot convert {type(value)} to string")
