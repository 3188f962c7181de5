"""Samples of the vocabulary, for losses whose cost does not grow with it."""

from dataclasses import dataclass

import numpy as np

from fflm.backend.protocol import Array


@dataclass(frozen=True)
class Sample:
    """Words that a batch's targets are to be told from.

    Attributes
    ----------
    words
        (R,) int32, ascending: those drawn, and the targets.
    draws
        (R,) how often each was drawn.
    log_draws
        (R,) log of how often that was to be expected: log k q(word).
    log_chances
        (R,) log of the chance that the word is among them; the targets of other rows are draws, too.
    """

    words: Array
    draws: Array
    log_draws: Array
    log_chances: Array


class Sampler:
    """Draws words as often as they occur in the training text, the same for all rows of a batch.

    Parameters
    ----------
    counts
        (V,) of the words in the training text.
    samples
        Draws a batch [k].
    seed
        Of the draws, which are a function of it and the step.
    """

    def __init__(self, counts: Array, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        frequencies = counts + 1.0  # no word is without noise
        self._frequencies = frequencies / frequencies.sum()
        self._cumulative = np.cumsum(self._frequencies)

    def draw(self, targets: Array, step: int) -> Sample:
        """Return the sample for the targets (B,) of a step."""
        numbers = np.random.default_rng((self.seed, step)).random(self.samples)
        drawn = np.searchsorted(self._cumulative, numbers * self._cumulative[-1], side="right")
        words, places = np.unique(np.concatenate([targets, drawn]), return_inverse=True)
        draws = np.bincount(places[len(targets) :], minlength=len(words))
        frequencies = self._frequencies[words]
        others = self.samples + len(targets) - 1
        return Sample(
            words.astype(np.int32), draws, np.log(self.samples * frequencies), np.log(-np.expm1(others * np.log1p(-frequencies)))
        )
