"""Mixing models, with weights that are tuned on held-out text."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fflm.arguments import Device, Encoding, Errors, Paths, Size, Texts, checked, to_paths, to_texts
from fflm.errors import FflmError
from fflm.models.base import Predictor
from fflm.models.corpora import trained_part
from fflm.models.load import load_language_model
from fflm.models.mixture.cache import THETAS, Cache, NeuralCache, UnigramCache, network_of
from fflm.models.mixture.model import ComponentScorer, Mixture, interpolate_losses
from fflm.models.scoring import score_files, score_part

Floats = npt.NDArray[np.float64]

GAP = 1e-9
"""Largest difference in loss between tuned and optimal weights, nats per word."""


@checked
def mix(
    paths: Paths,
    *,
    cache: Size | None = None,
    neural_cache: Size | None = None,
    tune: Texts = (),
    encoding: Encoding = "utf-8",
    errors: Errors = "strict",
    device: Device = "cpu",
) -> Mixture:
    """Interpolate language models linearly, with the weights that predict a held-out text best.

    Parameters
    ----------
    paths
        The models' folders.
    cache
        Size of a unigram cache to mix in, in words; None for no cache.
    neural_cache
        Size of a neural cache to mix in, in words, with the keys of the first network; None for no cache.
    tune
        Files, folders and texts in memory (`fflm.Text`) with the held-out text, or ``"-"`` for standard input; by default the
        validation part of the first model's corpus.
    encoding
        Character encoding of the held-out text.
    errors
        Whether to refuse bytes that cannot be decoded (``"strict"``) or to replace them (``"replace"``).
    device
        The device that computes the networks' predictions.

    Returns
    -------
    Mixture
        The mixture; `Mixture.save` writes it to a folder.

    Raises
    ------
    FflmError
        If a folder holds no model or is given twice, the models do not fit together, the text cannot be read, or none of its
        words is in the vocabulary.
    """
    return tune_weights(combine(paths, cache, neural_cache, device), tune, encoding, errors)


@checked
def combine(paths: Paths, cache: Size | None = None, neural_cache: Size | None = None, device: Device = "cpu") -> Mixture:
    """Load models as the components of a mixture with equal weights.

    Parameters
    ----------
    paths
        The models' folders.
    cache, neural_cache, device
        As for `mix`.

    Raises
    ------
    FflmError
        If a folder holds no model or is given twice, the models do not fit together, or a neural cache has no network.
    """
    folders = to_paths("paths", paths)
    for index, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:index]]:
            raise FflmError(f"{folder} is given twice: mix different models")
    models = [load_language_model(folder, device) for folder in folders]
    components: dict[str, Predictor] = {str(folder): model for folder, model in zip(folders, models, strict=True)}
    caches: list[Cache] = []
    if cache is not None:
        caches.append(UnigramCache(cache, models[0].vocabulary, models[0].text))
    if neural_cache is not None:
        caches.append(NeuralCache(neural_cache, THETAS[0], network_of(models)))
    components |= {each.name: each for each in caches}
    return Mixture(components, np.full(len(components), 1 / len(components)))


def tune_weights(mixture: Mixture, tune: Texts = (), encoding: Encoding = "utf-8", errors: Errors = "strict") -> Mixture:
    """Return a mixture of the same components, with the weights that predict a held-out text best.

    Of a neural cache, theta is chosen as well: weights are estimated with each of `THETAS`.

    Parameters
    ----------
    mixture
        From `combine`.
    tune
        As for `mix`.
    encoding, errors
        Of these, as `read_chunks` takes them.

    Raises
    ------
    FflmError
        If the text cannot be read, or none of its words is in the vocabulary.
    """
    groups = [_variants(name, component) for name, component in mixture.components.items()]
    components = {name: variant for group in groups for name, variant in group.items()}
    comparison = ComponentScorer(Mixture(components, np.full(len(components), 1 / len(components))), keep=True)
    if not isinstance(tune, tuple) or tune:
        texts = to_texts("tune", tune)
        source = ", ".join(map(str, texts))
        score = score_files(comparison, texts, encoding, errors)
        if score.tokens == score.unknown + score.ends:
            raise FflmError(f"no word of {source} is in the vocabulary: tune on text of the kind that the models know")
    else:
        first = next(iter(mixture.components))
        source = f"the validation part of {first}"
        score = score_part(comparison, trained_part(Path(first), "valid", "give a text with `tune`"))
    losses, unknown = (np.concatenate(arrays, axis=-1) for arrays in zip(*comparison.kept, strict=True))
    rows = dict(zip(components, losses, strict=True))
    tuned = []
    for names in itertools.product(*groups):
        chosen = np.stack([rows[name] for name in names])
        weights = estimate_weights(chosen)
        tuned.append((names, weights, interpolate_losses(chosen, weights)))
    names, weights, together = min(tuned, key=lambda each: float(each[2].mean()))
    score = replace(score, loss_sum=float(together.sum()), unknown_loss_sum=float(together[unknown].sum()))
    alone = dict(zip(components, comparison.component_scores(score), strict=True))
    figures = {"source": source, **score.to_dict(), "components": [alone[name].to_dict() for name in names]}
    return Mixture({name: components[name] for name in names}, weights, {"figures": {"tuning": figures}})


def _variants(name: str, component: Predictor) -> dict[str, Predictor]:
    """Return what a component of a mixture may be replaced by when it is tuned, by their names, itself included."""
    return {each.name: each for each in component.variants()} if isinstance(component, Cache) else {name: component}


def estimate_weights(losses: Floats) -> Floats:
    """Return the weights with which a mixture predicts a text best, by expectation maximization.

    A step multiplies each weight by the mean of p_k / p over the words, p being the mixture's probability. The likelihood never
    falls, and because it is concave, the largest of these means less one bounds what is still to be gained. Of components that
    are almost equal, the weights move by ever smaller steps: two at a time are extrapolated, if that makes the text likelier
    (Varadhan and Roland 2008, https://doi.org/10.1111/j.1467-9469.2007.00585.x, scheme S3, here of the weights' logarithms).

    Parameters
    ----------
    losses
        (K, N) -log p of each word by each component, nats; infinite where that is impossible. Words that are impossible to all
        do not count.

    Returns
    -------
    numpy.ndarray
        (K,), summing to one, within `GAP` nats per word of the best.
    """
    least = losses.min(axis=0)
    possible = np.isfinite(least)
    probabilities = np.exp(least[possible] - losses[:, possible])  # a factor common to all components does not matter
    weights = np.full(len(losses), 1 / len(losses))
    while probabilities.size:
        gains = _gains(weights, probabilities)
        once = weights * gains
        weights = once * _gains(once, probabilities)
        if gains.max() <= 1 + GAP:
            break
        further = _extrapolated(gains, once, weights)
        if _likelihood(further, probabilities) > _likelihood(weights, probabilities):
            weights = further
    weights /= weights.sum()
    return weights


def _gains(weights: Floats, probabilities: Floats) -> Floats:
    """Return by what a step multiplies weights (K,), of the components' probabilities (K, N)."""
    gains: Floats = (probabilities / (weights @ probabilities)).mean(axis=1)
    return gains


def _likelihood(weights: Floats, probabilities: Floats) -> float:
    """Return the mean log-probability of a word; NaN if the weights are not finite."""
    with np.errstate(divide="ignore"):
        return float(np.log(weights @ probabilities).mean())


def _extrapolated(gains: Floats, once: Floats, twice: Floats) -> Floats:
    """Return where weights lead to that a step multiplied by ``gains`` to ``once``, and another one turned into ``twice``."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        first, second = np.log(gains), np.log(twice / once)
        length = np.sqrt(np.sum(first**2) / np.sum((second - first) ** 2))
        logarithms = np.log(once) - first + 2 * length * first + length**2 * (second - first)
        weights = np.exp(logarithms - logarithms.max())
        result: Floats = weights / weights.sum()
    return result
