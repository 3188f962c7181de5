"""The abstract base class of language models, with the methods that all kinds of models share."""

import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.arguments import Encoding, Many, PathLike, Positive, Seed, Size, checked, to_texts
from fflm.errors import FflmError
from fflm.given import Text
from fflm.models import generation, scoring
from fflm.models.base import Predictor, Temperature, TopP
from fflm.models.scoring import Score
from fflm.models.vectors import TOP, Vectors
from fflm.text.prefixes import Prefix


class LanguageModel(Predictor):
    """The base class of all kinds of language models.

    Attributes
    ----------
    vocabulary, text
        The words and their ids, and the settings with which the model tokenizes text.
    about
        The other metadata of the model: its corpus, the figures of its evaluation, versions of libraries.
    """

    about: dict[str, Any]

    def __repr__(self) -> str:
        details = [*self._details(), f"vocabulary {len(self.vocabulary):,}"]
        if valid := self.about.get("figures", {}).get("valid"):
            details.append(f"valid perplexity {valid['perplexity']:.2f}")
        return f"{type(self).__name__}({', '.join(details)})"

    @abstractmethod
    def _details(self) -> list[str]:
        """Return details of this kind of model for its `repr`."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Number of context words [n]."""

    @abstractmethod
    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats.

        Raises
        ------
        FflmError
            If an array has another shape, or contains numbers that are not ids.
        """

    @abstractmethod
    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats.

        Raises
        ------
        FflmError
            If an array has another shape, or contains numbers that are not ids.
        """

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
            Number of continuations to return; beam search returns the best ones, at most ``beams``.
        greedy
            Whether to always take the most probable word.
        beams
            Number of beams. If given, beam search for the most probable continuations replaces sampling.
        length, temperature, top_k, top_p, seed, unknown, stop_at_end
            As for `fflm.models.generation.sample`; beam search ignores ``temperature``, ``top_k``, ``top_p`` and ``seed``.

        Returns
        -------
        list of str
            The continuations, each preceded by the prefix.

        Warns
        -----
        UserWarning
            If a word of the prefix is not in the vocabulary.

        Raises
        ------
        FflmError
            If a value is out of range.
        """
        start = self._read_prefix(prefix)
        shared: dict[str, Any] = {"length": length, "unknown": unknown, "stop_at_end": stop_at_end}
        if beams is not None:
            found = generation.beam_search(self, start, beams=beams, **shared)[:samples]
        else:
            temperature = 0.0 if greedy else temperature
            sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
            found = generation.sample(self, start, samples=samples, **sampling, **shared)
        return [generation.render(self, start, each) for each in found]

    @checked
    def next_words(self, prefix: str = "", top: Positive = 20) -> list[tuple[str, float]]:
        """Return the most probable words after a prefix with their probabilities, in descending order.

        ``<unk>`` and ``</s>`` are among the words. The probabilities of the whole vocabulary (``top=len(model.vocabulary)``) sum
        to one.

        Warns
        -----
        UserWarning
            If a word of the prefix is not in the vocabulary.
        """
        return generation.next_words(self, self._read_prefix(prefix), top)

    @checked
    def score(self, text: str) -> Score:
        """Return the score of a text: its log-probability, perplexity and more. A newline after the last line is optional.

        Raises
        ------
        FflmError
            If the text contains no words.
        """
        return scoring.score(self, text)

    @checked
    def perplexity(self, *paths: PathLike | Text, encoding: Encoding = "utf-8") -> Score:
        """Return the score of files, folders and texts in memory (`fflm.Text`) as one text: its perplexity and conditions.

        It takes bounded memory.

        Raises
        ------
        FflmError
            If a file cannot be read, or the files contain no words.
        """
        return scoring.score_files(self, to_texts("paths", paths), encoding)

    def shares(self) -> list[tuple[float, Predictor]]:
        """Return the predictors of which the model is a mixture, with their weights, which sum to one: by default itself."""
        return [(1.0, self)]

    @property
    def folders(self) -> list[Path]:
        """The folders of the models of which it is a mixture, without which it cannot be loaded; by default none."""
        return []

    @property
    def vectors(self) -> Vectors:
        """The word embeddings, as in ``model.vectors["cat"]``, (m,), or ``model.vectors.analogy("man", "woman", "king")``.

        Raises
        ------
        FflmError
            If this kind of model has no embeddings.
        """
        raise FflmError("only a network has word vectors: train one with `fflm.train`")

    @checked
    def neighbours(self, word: str, top: Positive = TOP) -> list[tuple[str, float]]:
        """Return the words whose embeddings are nearest to a word's, with their cosine similarities in descending order.

        Raises
        ------
        FflmError
            If the word is not in the vocabulary, or the model has no embeddings.
        """
        return self.vectors.neighbours(word, top)

    def _read_prefix(self, prefix: str) -> Prefix:
        """Return a prefix as the model reads it, after a warning about words that are not in the vocabulary."""
        result = generation.read_prefix(self, prefix)
        if result.unknown:
            message = f"not in the vocabulary, read as <unk>: {' '.join(result.unknown)}"
            warnings.warn(message, stacklevel=4)  # the caller of a public method, which is wrapped by `checked`
        return result
