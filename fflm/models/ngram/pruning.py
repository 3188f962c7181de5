"""Pruning n-gram models: by count, as in KenLM, and by relative entropy (Stolcke 1998, https://arxiv.org/abs/cs/0006025)."""

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu.launching import shares_of
from fflm.models.ngram import kernels
from fflm.models.ngram.tables import Floats, Integers, Tables


def subset(tables: Tables, kept: npt.NDArray[np.bool_]) -> tuple[Tables, npt.NDArray[np.int64]]:
    """Return tables with some of the n-grams, and with the contexts of these; back-off weights stay as they are.

    Parameters
    ----------
    tables
        The tables of G n-grams.
    kept
        (G,): whether to keep each n-gram. Those of one word are all kept.

    Returns
    -------
    tables : Tables
        The tables of N contexts.
    contexts : numpy.ndarray
        (N,): the numbers that these contexts had before.
    """
    parents = tables.parents()
    before = _before(tables.starts, kept)
    needed = np.diff(before) > 0
    for low, high in reversed(tables.levels()[1:]):
        own = np.arange(low, high)[needed[low:high]]
        needed[parents[own]] = True
    numbers = np.cumsum(needed) - 1
    contexts = np.flatnonzero(needed)
    smaller = Tables.of(
        numbers[parents[contexts[1:]]],
        tables.words[contexts[1:]],
        tables.back_offs[contexts],
        np.append(before[contexts], before[-1]),
        tables.targets[kept],
        tables.log_probabilities[kept],
    )
    return smaller, contexts


def prune_by_entropy(tables: Tables, frequencies: Floats, threshold: float) -> Tables:
    """Remove the n-grams that change the model least, and normalize the distributions that are left.

    Removing the n-gram (h, w) changes log p(w | h), and the back-off weight a(h) with it. By this, the relative entropy of the
    model to the one before grows by (Stolcke 1998, equation 4)::

        D = -p(h) (p(w | h) (log p(w | h') + log a'(h) - log p(w | h)) + (log a'(h) - log a(h)) (1 - sum over v of p(v | h)))

    where h' is h without its oldest word, and v each word with an n-gram (h, v). The n-gram is removed if the perplexity rises by
    the ratio exp(D) - 1 < threshold; but not if a longer n-gram that is kept begins with it, nor if it is a single word.
    Stolcke takes p(h) from the model. The lower orders of Kneser-Ney models do not estimate it (Chelba et al. 2010,
    https://doi.org/10.21437/Interspeech.2010-658), so that the relative frequency of h in the training text is used here.

    Parameters
    ----------
    tables
        The tables of a model with M contexts.
    frequencies
        (M,): p(h) of each context h.
    threshold
        The ratio, at least 0.
    """
    parents, starts = tables.parents(), tables.starts
    changes = np.zeros(len(tables.targets))
    shares = shares_of(len(changes) * kernels.LOOKUP_COST)
    kernels.entropy_changes(
        parents, tables.back_offs, starts, tables.targets, tables.log_probabilities, frequencies, changes, shares
    )
    kept = changes >= np.log1p(threshold)
    kept[: starts[1]] = True
    ngrams = np.empty(len(parents), np.int64)
    kernels.ngrams_of_contexts(parents, tables.children, tables.words, starts, tables.targets, ngrams)
    for low, high in reversed(tables.levels()[1:]):  # an n-gram that a context consists of belongs to a shorter context
        used = np.diff(_before(starts[low : high + 1], kept)) > 0
        prefixes = ngrams[low:high][used]
        kept[prefixes[prefixes >= 0]] = True
    return normalized(subset(tables, kept)[0])


def normalized(tables: Tables) -> Tables:
    """Return tables with the back-off weights for which each context's distribution sums to 1, shorter contexts first."""
    back_offs, parents, starts = tables.back_offs.copy(), tables.parents(), tables.starts
    for low, high in tables.levels()[1:]:
        shares = shares_of(int(starts[high] - starts[low]) * kernels.LOOKUP_COST)
        kernels.normalize_back_offs(parents, back_offs, starts, tables.targets, tables.log_probabilities, low, high, shares)
    return tables._replace(back_offs=back_offs)


def _before(starts: Integers, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the number of n-grams that are kept before each of the numbers in ``starts`` (K,), of all (G,) -> (K,)."""
    first = int(starts[0])
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(kept[first : int(starts[-1])])])[starts.astype(np.int64) - first]
