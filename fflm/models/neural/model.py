"""The neural language model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import (
    Device,
    PathLike,
    checked,
    to_path,
)
from fflm.arrays import CONFIG, WEIGHTS
from fflm.errors import FflmError
from fflm.models import description
from fflm.models.base import ROWS, TrainedNetwork
from fflm.models.folder import VOCABULARY, load_weights, read_config, read_text, save_description
from fflm.models.language_model import LanguageModel
from fflm.models.vectors import Vectors
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from fflm.models.neural.few import FewContexts


@dataclass(repr=False)
class NeuralModel(TrainedNetwork, LanguageModel):
    """A trained network with its vocabulary and the settings with which it reads text.

    Attributes
    ----------
    config, parameters
        The network's shape and weights.
    vocabulary, text
        The words and their ids; how text is tokenized.
    about
        The rest of its metadata: the corpus, the settings and the figures of its training, versions.
    device
        The device that computes its predictions.
    """

    _batch_rows: ClassVar[int] = 16 * ROWS  # more than of other models, because equal contexts are computed once

    config: NetworkConfig
    parameters: Parameters
    vocabulary: Vocabulary
    text: TextSettings
    about: dict[str, Any] = field(default_factory=dict)
    device: Device = "cpu"

    def _details(self) -> list[str]:
        return [f"window {self.config.window}", f"{self.parameters.count:,} parameters"]

    @property
    def window(self) -> int:
        """Context words [n]."""
        return self.config.context

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""
        contexts = self._check_contexts(contexts)
        if few := self._few(len(contexts)):
            return few.log_probabilities(contexts)
        result: npt.NDArray[np.floating] = self.network.log_probabilities(self._weights, contexts)
        return result

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats. Equal contexts are computed once."""
        contexts, targets = self._check_examples(contexts, targets)
        if few := self._few(len(contexts)):
            return few.losses(contexts, targets)
        whole = contexts.view(f"V{contexts.shape[1] * contexts.itemsize}")[:, 0].tolist()
        numbers: dict[bytes, int] = {}  # indices of the distinct contexts; sorting these would take several times as long
        rows = np.array([numbers.setdefault(each, len(numbers)) for each in whole], np.int32)
        first = np.unique(rows, return_index=True)[1]
        order = np.argsort(rows, kind="stable")
        backend, losses = self.network.backend, np.empty(len(targets), self.parameters.dtype)
        size = self.config.rows(ROWS)
        for low in range(0, len(first), size):
            some = order[slice(*np.searchsorted(rows, (low, low + size), sorter=order))]
            own = backend.empty((len(some),), losses.dtype)
            self.network.losses(self._weights, contexts[first[low : low + size]], targets[some], own, rows=rows[some] - low)
            losses[some] = backend.download(own)
        return losses

    def _line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return -log p of the words of lines (N,), nats, of which `Encoder` made ids (N,) and borders (L + 1,)."""
        if self._reads_packed:
            return self._few_contexts.losses_of_lines(ids, borders)
        return super()._line_losses(ids, borders)

    def softmax_inputs(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Return what the output layer reads after contexts (B, n), valid ids -> (B, H), in main memory."""
        if few := self._few(len(contexts)):
            return few.softmax_inputs(contexts)
        return super().softmax_inputs(contexts)

    def _few(self, count: int) -> "FewContexts | None":
        """Return what predicts after ``count`` contexts by one compiled function, or None if it cannot, or would be slower."""
        from fflm.backend.cpu.kernels import FEW_ROWS  # here, because it imports Numba

        return self._few_contexts if self._reads_packed and 0 < count <= FEW_ROWS else None

    @property
    def _reads_packed(self) -> bool:
        """Whether `FewContexts` can predict."""
        return self.device == "cpu" and not self.parameters.bands

    @cached_property
    def _few_contexts(self) -> "FewContexts":
        from fflm.models.neural.few import FewContexts  # here, because it imports Numba

        return FewContexts(self.config, self.finite_parameters, self.context_limits)

    @property
    def fast_arrays(self) -> "Mapping[str, npt.NDArray[Any]]":
        """The arrays of stored tables of fast scoring, by their names in `FastTables`; none if the tables have to be made."""
        return {}

    @property
    def vectors(self) -> Vectors:
        """The words' embeddings: ``model.vectors["cat"]`` is (m,), ``model.vectors.analogy("man", "woman", "king")``."""
        return Vectors(self.vocabulary, self.text.tokenizer, self.finite_parameters.embeddings)

    @classmethod
    @checked
    def load(cls, path: PathLike, device: Device = "cpu", *, verify: bool = False) -> Self:
        """Load a model's folder, to predict on a device; ``verify`` is as for `fflm.load`.

        Raises
        ------
        FflmError
            If the folder is not a model, or is of a later version, incomplete or damaged.
        """
        path = to_path("path", path)
        about = read_config(path, "network")
        if "bits" in about:
            raise FflmError(f"{path} is quantized, so that it can only predict: load it with `fflm.load`, or use the original")
        arrays, figures = load_weights(path, about, description.NetworkFigures, verify=verify)
        config = NetworkConfig.from_dict(about["network"])
        text, vocabulary = read_text(path, about, verify=verify)
        if len(vocabulary) != config.vocabulary:
            raise FflmError(f"{path} is damaged: its {VOCABULARY} does not fit its {CONFIG}; restore it, or train again")
        parameters = Parameters.from_arrays(config, arrays, f"the weights in {path / WEIGHTS}", verify=verify)
        return cls(config, parameters, vocabulary, text, {**about, "figures": figures}, device)


def save_config(path: Path, config: NetworkConfig, text: TextSettings, vocabulary: Vocabulary, about: Mapping[str, Any]) -> None:
    """Write the files in a network's folder that training does not change: config.json and the vocabulary."""
    save_description(path, {"network": config.to_dict()}, text, vocabulary, about)
