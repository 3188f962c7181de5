"""Mixtures: linear interpolations of language models."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import Device, Overwrite, PathLike, checked, to_path
from fflm.arrays import CONFIG, WEIGHTS, load_arrays, meaning, save_arrays
from fflm.clock import local_time
from fflm.errors import FflmError
from fflm.files import os_errors_as_fflm_error, replacing_folder
from fflm.models.base import LineScorer, Predictor
from fflm.models.corpora import corpus_path, corpus_paths, relative_path, resolve_relative
from fflm.models.creation import check_free
from fflm.models.description import COMPONENTS, MixtureFigures
from fflm.models.folder import fingerprint, has_fingerprint, read_config, read_text, save_description
from fflm.models.language_model import LanguageModel
from fflm.models.load import load_language_model
from fflm.models.mixture.cache import Cache, NeuralCache, UnigramCache, network_of
from fflm.models.scoring import Score
from fflm.parallel.communicator import Communicator

REMEDY = "restore it from a copy, or tune again with `fflm.mix`"

DEPTH, MODELS = 10, 100
"""Mixtures within each other, and models in all of them together, at most."""

SMALLEST = 1e-290
"""Probabilities below it may have lost precision, or be 0, because the terms of their sum underflow."""

Floats = npt.NDArray[np.float64]


class Mixture(LanguageModel):
    """A linear interpolation of predictors: p(w) = sum_k weight_k p_k(w).

    Letters: K components, B contexts, n context words, V vocabulary.

    Parameters
    ----------
    components
        The predictors by their names; those that are models by their folders. Each sees as many words as it can.
    weights
        (K,), at least 0; they sum to one.
    about
        What else is known of it: under ``"figures"``, how well mixture and components predict the text that the weights were
        tuned on (``"tuning"``), or if it is an ensemble, the parts of the corpus; of a saved one, the corpus of its first model,
        and versions. A mixture with weights that were chosen otherwise has no figures.

    Raises
    ------
    FflmError
        If there are no components or too many, if they differ in vocabulary or in how they read text, or if the weights are not
        as above.
    """

    def __init__(
        self, components: Mapping[str, Predictor], weights: npt.ArrayLike, about: Mapping[str, Any] | None = None
    ) -> None:
        self.components = dict(components)
        if not 1 <= len(self.components) <= COMPONENTS:
            raise FflmError(f"a mixture of {len(self.components)} models: mix at least one, and at most {COMPONENTS}")
        self.weights = np.array(weights, np.float64)
        if not _are_weights(self.weights, len(self.components)):
            raise FflmError("the weights of a mixture are at least 0 and sum to one: give one for each model")
        self.about: dict[str, Any] = {"figures": {}, **(about or {})}
        (first, model), *others = self.components.items()
        self.vocabulary = model.vocabulary
        self.text = model.text
        for name, other in others:
            for what, same in (
                ("has another vocabulary", other.vocabulary.has_words_of(model.vocabulary)),
                ("reads text in another way", other.text == model.text),
            ):
                if not same:
                    raise FflmError(f"{name} {what} than {first}: mix models that were trained on one tokenized text")

    def _details(self) -> list[str]:
        return [f"{name} {weight:.4f}" for name, weight in zip(self.components, self.weights, strict=True)]

    @property
    def window(self) -> int:
        """Context words [n]: the most that a component sees."""
        return max(component.window for component in self.components.values())

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> Floats:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""
        contexts = self._check_contexts(contexts)
        totals = self._weighted_sum(contexts)
        small = totals.min(axis=1) < SMALLEST
        with np.errstate(divide="ignore"):
            np.log(totals, out=totals)
        if small.any():
            parts = [(math.log(weight), part) for weight, part in self.shares() if weight]
            logs = [weight + part.log_probabilities(_visible(contexts[small], part)) for weight, part in parts]
            totals[small] = np.logaddexp.reduce(logs)
        return totals

    def probabilities(self, contexts: npt.NDArray[np.int32]) -> Floats:
        """Return p(word | context) of every word, which sum to one: contexts (B, n), oldest word first -> (B, V)."""
        totals = self._weighted_sum(self._check_contexts(contexts))
        totals /= totals.sum(axis=1, keepdims=True)
        return totals

    def _weighted_sum(self, contexts: npt.NDArray[np.int32]) -> Floats:
        """Return p(word | context) of every word up to rounding: contexts (B, n), valid ids -> (B, V)."""
        from fflm.models.mixture.kernels import add_exponentials  # here, because it imports Numba

        totals = np.zeros((len(contexts), len(self.vocabulary)))
        for weight, part in self.shares():
            own = np.ascontiguousarray(_visible(contexts, part))
            if weight and isinstance(part, Cache):
                part.add_probabilities(own, weight, totals)
            elif weight:
                add_exponentials(part.log_probabilities(own), weight, totals)
        return totals

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> Floats:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""
        contexts, targets = self._check_examples(contexts, targets)
        losses = [each.losses(_visible(contexts, each), targets).astype(float) for each in self.components.values()]
        return interpolate_losses(np.stack(losses), self.weights)

    def losses_of_text(self, ids: npt.NDArray[np.int32], start: int = 0) -> Floats:
        """Return -log p of the words of a text: ids (N,) -> (N - start,), nats. Words before ``start`` are only context."""
        return interpolate_losses(self.component_losses(ids, start), self.weights)

    def losses_of_texts(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `losses_of_text` of each text."""
        return [interpolate_losses(losses, self.weights) for losses in self.component_losses_of_texts(texts)]

    def shares(self) -> list[tuple[float, Predictor]]:
        """Return the predictors of which it and the mixtures in it are a mixture, with their weights, which sum to one."""
        shares = []
        for component, weight in zip(self.components.values(), self.weights.tolist(), strict=True):
            parts = component.shares() if isinstance(component, LanguageModel) else [(1.0, component)]
            shares += [(weight * share, part) for share, part in parts]
        return shares

    def component_losses(self, ids: npt.NDArray[np.int32], start: int = 0) -> Floats:
        """Return `losses_of_text` of each component alone: ids (N,) -> (K, N - start), nats."""
        return np.stack([each.losses_of_text(ids, start).astype(float) for each in self.components.values()])

    def component_losses_of_texts(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[Floats]:
        """Return `component_losses` of each text."""
        losses = zip(*(each.losses_of_texts(texts) for each in self.components.values()), strict=True)
        return [np.stack(of_text).astype(float) for of_text in losses]

    def _line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> Floats:
        """Return -log p of the words of lines (N,), nats, of which `Encoder` made ids (N,) and borders (L + 1,)."""
        return interpolate_losses(self.component_line_losses(ids, borders), self.weights)

    def component_line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> Floats:
        """Return `_line_losses` of each component alone: (K, N), nats."""
        return np.stack([each._line_losses(ids, borders).astype(float) for each in self.components.values()])

    @property
    def tuning(self) -> dict[str, Any]:
        """How well it and its components predict the text that the weights were tuned on, and ``"source"``, that text's name.

        Raises
        ------
        FflmError
            If the weights were not tuned.
        """
        if "tuning" not in self.about["figures"]:
            raise FflmError("the weights of this mixture were not tuned: tune them with `fflm.mix`")
        return self.figures["tuning"]

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """How well it and its components predict texts: ``"tuning"``, or of an ensemble, ``"valid"`` and ``"test"``."""
        return {name: self.compared(each, each["components"]) for name, each in self.about["figures"].items()}

    def compared(self, score: Mapping[str, Any], alone: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return its score as plain values with those of its components alone, (K,), under their names and with their weights."""
        described = zip(self.components, self.weights.tolist(), alone, strict=True)
        return {**score, "components": [{"name": name, "weight": weight, **each} for name, weight, each in described]}

    @checked
    def save(self, path: PathLike, *, overwrite: Overwrite = False) -> None:
        """Write a folder that holds weights and vocabulary, and refers to the folders of the components.

        Raises
        ------
        FflmError
            If the folder exists and may not be replaced, is a component, or cannot be written.
        """
        path = to_path("path", path)
        check_free(path, overwrite)
        self.check_apart(path)
        components: list[dict[str, Any]] = []
        for name, component in self.components.items():
            if isinstance(component, Cache):
                components.append(component.to_dict())
                continue
            components.append({"path": relative_path(Path(name), path), "fingerprint": fingerprint(Path(name))})
        first = Path(next(iter(self.components)))
        about: dict[str, Any] = {"created": local_time()}
        if "corpus" in (config := read_config(first)):
            about["corpus"] = {**config["corpus"], **corpus_paths(corpus_path(first), path)}
        with replacing_folder(path, lambda: check_free(path, overwrite)) as folder:
            kind = {"kind": "mixture", "mixture": {"components": components}}
            known = save_description(folder, kind, self.text, self.vocabulary, about)
            save_arrays(folder / WEIGHTS, {"weights": self.weights}, self.about["figures"], known)

    @property
    def folders(self) -> list[Path]:
        """The folders of its components, and of the components of these."""
        models = [(Path(name), each) for name, each in self.components.items() if isinstance(each, LanguageModel)]
        return [folder for path, model in models for folder in (path, *model.folders)]

    def check_apart(self, path: Path) -> None:
        """Raise an FflmError if a folder is that of a component, or a component of one, which the mixture must not replace."""
        if path.resolve() in [folder.resolve() for folder in self.folders]:
            raise FflmError(f"{path} is a part of the mixture: choose another folder")

    @classmethod
    @checked
    def load(cls, path: PathLike, device: Device = "cpu", *, verify: bool = False) -> Self:
        """Load a mixture's folder, and the models to which it refers, to predict on a device; ``verify`` is as for `fflm.load`.

        Raises
        ------
        FflmError
            If it is not a mixture, of a later version, incomplete or damaged; if a model is gone or is not the one that it was.
        """
        path = to_path("path", path)
        _check_parts(path)
        about = read_config(path, "mixture")
        text, vocabulary = read_text(path, about, verify=verify)
        arrays, figures = load_arrays(path / WEIGHTS, (np.float64,), MixtureFigures, meaning(about))
        components: dict[str, Predictor] = {}
        for each in _components(path, about):
            if "path" in each:
                place = resolve_relative(each["path"], path)
                _check_component(path, place, each["fingerprint"])
                components[str(place)] = load_language_model(place, device, verify=verify)
                continue
            if "cache" in each:
                cache: Cache = UnigramCache(each["cache"], vocabulary, text)
            else:
                cache = NeuralCache(each["neural_cache"], each["theta"], network_of(components.values()))
            components[cache.name] = cache
        weights = arrays.get("weights", np.empty(0))
        counts = {len(components), *(len(each["components"]) for each in figures.values())}
        if weights.shape != (len(components),) or len(counts) > 1:
            raise FflmError(f"{path} is damaged ({CONFIG} and {WEIGHTS} do not fit together): {REMEDY}")
        if not _are_weights(weights, len(components)):
            raise FflmError(f"{path / WEIGHTS} is damaged (the weights of a mixture are at least 0 and sum to one): {REMEDY}")
        return cls(components, weights, {**about, "figures": figures})


def _are_weights(weights: Floats, count: int) -> bool:
    """Return whether these are the weights of a mixture of ``count`` components."""
    return weights.shape == (count,) and bool(weights.min() >= 0 and abs(weights.sum() - 1) < 1e-6)


class ComponentScorer(LineScorer):
    """A mixture that also records how well each component alone predicts the texts that it scores.

    Parameters
    ----------
    mixture
        The mixture.
    keep
        Whether to keep the losses of all words, and not only their sums.

    Attributes
    ----------
    kept
        For every B words that were scored, a pair of (K, B) losses, nats, and (B,) whether the word is ``<unk>``.
    """

    def __init__(self, mixture: Mixture, *, keep: bool = False) -> None:
        self.vocabulary = mixture.vocabulary
        self.text = mixture.text
        self.mixture = mixture
        self._sums = np.zeros((2, len(mixture.components)))
        self._keep = keep
        self.kept: list[tuple[Floats, npt.NDArray[np.bool_]]] = []

    @property
    def window(self) -> int:
        """Number of context words [n]."""
        return self.mixture.window

    def losses_of_text(self, ids: npt.NDArray[np.int32], start: int = 0) -> Floats:
        """Return -log p of the words of a text: ids (N,) -> (N - start,), nats. Words before ``start`` are only context."""
        return self._recorded(ids[start:], self.mixture.component_losses(ids, start))

    def losses_of_texts(self, texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.floating]]:
        """Return `losses_of_text` of each text."""
        return list(map(self._recorded, texts, self.mixture.component_losses_of_texts(texts)))

    def _line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> Floats:
        """Return -log p of the words of lines (N,), nats, of which `Encoder` made ids (N,) and borders (L + 1,)."""
        return self._recorded(ids, self.mixture.component_line_losses(ids, borders))

    def _recorded(self, targets: npt.NDArray[np.int32], losses: Floats) -> Floats:
        """Record the losses of the components (K, B), nats, and return those of the mixture (B,)."""
        unknown = targets == self.vocabulary.unknown_id
        self._sums += losses.sum(axis=1), losses[:, unknown].sum(axis=1)
        if self._keep:
            self.kept.append((losses, unknown))
        return interpolate_losses(losses, self.mixture.weights)

    def sum_over(self, communicator: Communicator) -> None:
        """Add up what several processes have recorded, each for a part of the text."""
        communicator.sum_arrays([self._sums])

    def component_scores(self, score: Score) -> list[Score]:
        """Return the score (K,) of each component alone, given the mixture's score of the same text."""
        return [replace(score, loss_sum=all_, unknown_loss_sum=unknown) for all_, unknown in self._sums.T.tolist()]


def interpolate_losses(losses: Floats, weights: Floats) -> Floats:
    """Return the losses (B,) of a mixture, given its weights (K,) and the losses of its components (K, B); nats."""
    with np.errstate(divide="ignore"):
        result: Floats = -np.logaddexp.reduce(np.log(weights)[:, None] - losses, axis=0)
    return result


def _check_parts(path: Path) -> None:
    """Follow all paths that lead from a mixture to its parts, and to theirs, before anything of them is loaded.

    Raises
    ------
    FflmError
        If a mixture is a part of itself, or there are too many of them.
    """
    models = 0
    pending: list[tuple[Path, tuple[str, ...]]] = [(path, ())]
    while pending:
        place, around = pending.pop()
        models += 1
        if os.path.realpath(place) in around:
            raise FflmError(f"{place} is a mixture that is a part of itself: {REMEDY}")
        if models > MODELS or len(around) > DEPTH:
            raise FflmError(f"{path} has more than {MODELS} models, or more than {DEPTH} mixtures within each other: mix fewer")
        with os_errors_as_fflm_error(f"read {place}"):
            known = (place / CONFIG).is_file()
        if known and (about := read_config(place)).get("kind") == "mixture":
            inside = (*around, os.path.realpath(place))
            pending += [(resolve_relative(each["path"], place), inside) for each in _components(place, about) if "path" in each]


def _components(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what config.json says of a mixture's components, each of them a model or a cache (`description.Component`)."""
    components: list[dict[str, Any]] = about["mixture"]["components"]
    if "training" in about and not (path / WEIGHTS).is_file():
        trained = sum("fingerprint" in each for each in components)
        resume = f"`fflm.resume('{path}')` completes it"
        raise FflmError(f"{path} is not complete, {trained} of its {len(components)} members are trained: {resume}")
    kinds = ({"path", "fingerprint"}, {"cache"}, {"neural_cache", "theta"})
    if any(sum(kind <= each.keys() for kind in kinds) != 1 for each in components):
        raise FflmError(f"{path / CONFIG} is damaged (a component is a path with a fingerprint, or a cache): {REMEDY}")
    return components


def _check_component(mixture: Path, place: Path, expected: str) -> None:
    if not (place / CONFIG).is_file():
        raise FflmError(f"{place}, a component of {mixture}, is missing: put it back, or mix others with `fflm.mix`")
    if not has_fingerprint(place, expected):
        raise FflmError(f"{place} has changed since {mixture} was tuned: tune again with `fflm.mix`")


def _visible(contexts: npt.NDArray[np.int32], predictor: Predictor) -> npt.NDArray[np.int32]:
    """Return the last columns of contexts (B, n), those in a predictor's window."""
    return contexts[:, contexts.shape[1] - predictor.window :]
