"""Samples of the vocabulary, for the sampled losses, whose cost does not grow with the size of the vocabulary."""

from dataclasses import dataclass

import numpy as np

from fflm.backend.protocol import Array


@dataclass(frozen=True)
class Sample:
    """The words over which a sampled loss of a batch is computed: negative samples and the targets, R different words.

    Attributes
    ----------
    words
        The different words that were drawn or are targets, (R,) int32, in ascending order.
    draws
        How often each word was drawn, (R,) int64. It is 0 for targets that were not drawn.
    log_draws
        Logarithm of the expected number of draws, log(k q(word)), (R,) float64.
    log_chances
        Logarithm of the probability that the word is in the sample, (R,) float64. The targets of the other rows
        of the batch are negative samples, too, and are counted as draws.
    """

    words: Array
    draws: Array
    log_draws: Array
    log_chances: Array


class Sampler:
    """Draws negative samples from the unigram distribution q of the training text, the same for all rows of a batch.

    Parameters
    ----------
    counts
        How often each word of the vocabulary occurs in the training text, (V,).
    samples
        Number of draws for a batch, k.
    seed
        Random seed. The draws are a function of the seed and the step.
    """

    def __init__(self, counts: Array, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        frequencies = counts + 1.0  # every word can be drawn, also one that does not occur
        self._frequencies = frequencies / frequencies.sum()
        self._cumulative = np.cumsum(self._frequencies)

    def draw(self, targets: Array, step: int) -> Sample:
        """Return the sample of a training step for the targets of its batch, (B,) integers."""
        numbers = np.random.default_rng((self.seed, step)).random(self.samples)
        drawn = np.searchsorted(self._cumulative, numbers * self._cumulative[-1], side="right")
        words, places = np.unique(np.concatenate([targets, drawn]), return_inverse=True)
        draws = np.bincount(places[len(targets) :], minlength=len(words))
        frequencies = self._frequencies[words]
        others = self.samples + len(targets) - 1
        return Sample(
            words.astype(np.int32), draws, np.log(self.samples * frequencies), np.log(-np.expm1(others * np.log1p(-frequencies)))
        )
