"""The abstract language model, with the methods that all kinds share."""

import warnings
from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import (
    Encoding,
    Many,
    PathLike,
    Positive,
    Seed,
    Size,
    checked,
    to_paths,
)
from fflm.errors import FflmError
from fflm.models import generation, scoring
from fflm.models.base import Predictor, Temperature, TopP
from fflm.models.generation import Prefix
from fflm.models.scoring import Score
from fflm.models.vectors import Vectors


class LanguageModel(Predictor):
    """A language model of any kind, with its vocabulary and the settings with which it reads text.

    Attributes
    ----------
    vocabulary, text
        The words and their ids; how text is tokenized.
    about
        The rest of its metadata: the corpus, the figures of its training, versions.
    """

    about: dict[str, Any]

    def __repr__(self) -> str:
        details = [*self._details(), f"vocabulary {len(self.vocabulary):,}"]
        if valid := self.about.get("figures", {}).get("valid"):
            details.append(f"valid perplexity {valid['perplexity']:.2f}")
        return f"{type(self).__name__}({', '.join(details)})"

    @abstractmethod
    def _details(self) -> list[str]:
        """Return what to say of the model in its `repr`."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Context words [n]."""

    @abstractmethod
    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""

    @abstractmethod
    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""

    @checked
    def generate(
        self,
        prefix: str = "",
        *,
        samples: Size = 1,
        length: Many = 100,
        temperature: Temperature = 1.0,
        top_k: Positive | None = None,
        top_p: TopP | None = None,
        greedy: bool = False,
        beams: Size | None = None,
        seed: Seed | None = None,
        unknown: bool = False,
        stop_at_end: bool | None = None,
    ) -> list[str]:
        """Continue a text.

        Parameters
        ----------
        prefix
            The text to continue; if it is empty, a new text is generated.
        samples
            Number of continuations to return; of beam search the best ones, at most ``beams``.
        greedy
            Always take the likeliest word.
        beams
            Number of beams of a beam search for the most probable continuations, instead of sampling.
        length, temperature, top_k, top_p, seed, unknown, stop_at_end
            As for `fflm.models.generation.sample`; beam search ignores ``temperature``, ``top_k``, ``top_p`` and ``seed``.

        Returns
        -------
        list of str
            The prefix with each continuation.

        Warns
        -----
        UserWarning
            If the model does not know a word of the prefix.

        Raises
        ------
        FflmError
            If a value is out of range.
        """
        start = self._read_prefix(prefix)
        if beams is not None:
            found = generation.beam_search(self, start, beams=beams, length=length, unknown=unknown, stop_at_end=stop_at_end)[
                :samples
            ]
        else:
            found = generation.sample(
                self,
                start,
                samples=samples,
                length=length,
                temperature=0.0 if greedy else temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                unknown=unknown,
                stop_at_end=stop_at_end,
            )
        return [generation.render(self, start, each) for each in found]

    @checked
    def next_words(self, prefix: str = "", top: Positive = 20) -> list[tuple[str, float]]:
        """Return the likeliest words after a prefix with their probabilities, the likeliest first.

        ``<unk>`` and ``</s>`` are words like others. The probabilities of the whole vocabulary (``top=len(model.vocabulary)``)
        sum to one. Warns if the model does not know a word of the prefix.
        """
        return generation.next_words(self, self._read_prefix(prefix), top)

    @checked
    def score(self, text: str) -> Score:
        """Return the log-probability, the perplexity and more of a text, whose last line ends like all others.

        Raises
        ------
        FflmError
            If there is not a word in it.
        """
        return scoring.score(self, text)

    @checked
    def perplexity(self, *paths: PathLike, encoding: Encoding = "utf-8") -> Score:
        """Return the perplexity, with its evaluation conditions, of files and folders as one text, in bounded memory.

        Raises
        ------
        FflmError
            If one cannot be read, or there is not a word in them.
        """
        return scoring.score_files(self, to_paths("paths", paths), encoding)

    @property
    def vectors(self) -> Vectors:
        """The words' embeddings: ``model.vectors["cat"]`` is (m,), ``model.vectors.analogy("man", "woman", "king")``.

        Raises
        ------
        FflmError
            If the model has none.
        """
        raise FflmError("only a network has word vectors: train one with `fflm.train`")

    @checked
    def neighbours(self, word: str, top: Positive = 10) -> list[tuple[str, float]]:
        """Return the words whose embeddings are nearest to a word's, with the cosines, the nearest first.

        Raises
        ------
        FflmError
            If the word is not in the vocabulary, or the model has no embeddings.
        """
        return self.vectors.neighbours(word, top)

    def _read_prefix(self, prefix: str) -> Prefix:
        result = generation.read_prefix(self, prefix)
        if result.unknown:
            warnings.warn(
                f"not in the vocabulary, read as <unk>: {' '.join(result.unknown)}", stacklevel=4
            )  # where a checked method was called
        return result
