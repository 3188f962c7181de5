"""The n-gram model: back-off tables, and the folder in which they are stored."""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from fflm.arguments import Device, PathLike, checked, to_path
from fflm.arrays import CONFIG, WEIGHTS, Arrays, Divided, MappedArrays, map_arrays, meaning, save_arrays
from fflm.backend.cpu.launching import shares_of
from fflm.clock import local_time
from fflm.errors import FflmError
from fflm.models.base import TableScorer, check_text
from fflm.models.description import NgramFigures
from fflm.models.folder import read_config, read_text, save_description
from fflm.models.language_model import LanguageModel
from fflm.models.ngram import kernels
from fflm.models.ngram.index import make_index, map_index, save_index
from fflm.models.ngram.tables import TABLE_TYPES, Tables, is_consistent
from fflm.models.ngram.trie import TRIE_TYPES, make_trie, mapped_trie, trie_arrays
from fflm.models.ngram.trie_kernels import Trie
from fflm.packing import Packed
from fflm.stored import REMEDY
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary


class NgramModel(TableScorer, LanguageModel):
    """An n-gram model with back-off tables.

    Parameters
    ----------
    tables
        The n-grams; or, of a model with a stored index, the arrays in its file, which are verified when they are needed, because
        scoring only needs the index; or the index alone, or the trie of a quantized model, which has nothing else.
    vocabulary, text, about
        As the attributes.

    Attributes
    ----------
    tables
        The n-grams.
    vocabulary, text
        The words and their ids, and the settings with which the model tokenizes text.
    about
        The other metadata of the model: under ``"ngram"`` the order, the number of n-grams and the discounts of each order, and
        the notes; the corpus, the figures of its evaluation, versions of libraries.
    start_log10
        Base-10 logarithm of the probability of ``<s>``, as an ARPA file gives it, although ``<s>`` is never predicted.
    """

    start_log10 = -99.0  # stands for the probability 0, as in SRILM

    def __init__(
        self,
        tables: Tables | MappedArrays | Trie | kernels.Index,
        vocabulary: Vocabulary,
        text: TextSettings,
        about: Mapping[str, Any],
    ) -> None:
        self._stored = tables if isinstance(tables, MappedArrays) else None
        if isinstance(tables, Tables):
            self.tables = tables
        if isinstance(tables, kernels.Index | Trie):
            self._index = tables
        self.vocabulary = vocabulary
        self.text = text
        self.about = dict(about)

    _line_kernel = staticmethod(kernels.ngram_score_lines)

    @cached_property
    def tables(self) -> Tables:
        """The n-grams.

        Raises
        ------
        FflmError
            If the model was loaded with its index, and its file turns out to be damaged; or if the model is quantized.
        """
        if self.quantized:
            raise FflmError("the model is quantized, and can only predict: use the model that it was made of")
        assert self._stored is not None
        return _verified(self._stored, len(self.vocabulary), self.order)

    @cached_property
    def _index(self) -> kernels.Index | Trie:
        """The n-grams as they are looked up."""
        return make_index(self.tables, len(self.vocabulary) + 1)

    @cached_property
    def packed(self) -> Any:
        """The tables, as the kernels that score lines and words take them."""
        start, words = self.start_log10 * math.log(10), len(self.vocabulary) + 1
        return Packed(kernels.LineTables(self._index, words, *self.context_limits, self.order, start))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the index, which is made again unless the model has nothing else."""
        return {name: value for name, value in super().__getstate__().items() if self.quantized or name != "_index"}

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle a model with a stored index by its path, so that processes share one mapped copy."""
        if self._stored is None:
            return super().__reduce_ex__(protocol)
        return _reopen, (type(self), self._stored.path.parent.absolute(), self._stored.checksum)

    def _details(self) -> list[str]:
        details = [f"order {self.order}", f"{sum(self.about['ngram']['counts']):,} n-grams"]
        return [*details, "quantized"] if self.quantized else details

    @property
    def quantized(self) -> bool:
        """Whether the model has numbers of 8 bits for log-probabilities and back-off weights; then it has no ``tables``."""
        return "bits" in self.about["ngram"]

    def quantize(self) -> "NgramModel":
        """Return a model with 8 bits for each log-probability and each back-off weight of n-grams of two words or more.

        It has a trie of n-grams, of which each takes as many bits as the number of a word, 8 for each number, and some 3 more.
        It predicts as this one does, up to the rounding, and cannot be written as an ARPA file.

        Raises
        ------
        FflmError
            If the model is quantized already.
        """
        trie = make_trie(self.tables, len(self.vocabulary) + 1, self.order)
        about = {name: value for name, value in self.about.items() if name != "figures"}
        model = NgramModel(trie, self.vocabulary, self.text, {**about, "ngram": {**about["ngram"], "bits": 8}})
        model.start_log10 = self.start_log10
        return model

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays in the file of the model's n-grams."""
        return trie_arrays(self._index) if isinstance(self._index, Trie) else self.tables.arrays()

    @property
    def order(self) -> int:
        """The length of the longest n-grams."""
        order: int = self.about["ngram"]["order"]
        return order

    @property
    def window(self) -> int:
        """Number of context words [n]."""
        return self.order - 1

    @property
    def notes(self) -> list[str]:
        """Messages about discounts that could not be estimated, or symbols that were missing, and what was used instead."""
        return list(self.about["ngram"]["notes"])

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""
        contexts = self._check_contexts(contexts)
        if self.quantized:
            return self._look_up(contexts, np.tile(np.arange(len(self.vocabulary), dtype=np.int32), (len(contexts), 1)))
        results = np.empty((len(contexts), len(self.vocabulary)), np.float32)
        kernels.ngram_distributions(self.tables, contexts, results, shares_of(results.size))
        return results

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""
        contexts, targets = self._check_examples(contexts, targets)
        return -self._look_up(contexts, targets[:, None])[:, 0]

    def _look_up(self, contexts: npt.NDArray[np.int32], words: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return log p(word | context): contexts (B, n), words (B, W) -> (B, W), nats."""
        results = np.empty(words.shape, np.float32)
        shares = shares_of(words.size * max(self.window, 1) * kernels.LOOKUP_COST)
        kernels.ngram_log_probabilities(self._index, contexts, words, results, shares)
        return results

    def losses_of_text(self, ids: npt.NDArray[np.int32], start: int = 0) -> npt.NDArray[np.float32]:
        """Return -log p of the words of a text: ids (N,) -> (N - start,), nats. Words before ``start`` are only context."""
        ids = check_text(ids, start, self.vocabulary)
        losses = np.empty(len(ids) - start, np.float32)
        shares = shares_of(len(losses) * self.order * kernels.LOOKUP_COST)
        kernels.ngram_losses_of_text(ids, start, self.packed, losses, shares)
        return losses

    def _line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return -log p of the words of lines (N,), nats, of which `Encoder` made ids (N,) and borders (L + 1,)."""
        losses: npt.NDArray[np.floating] = kernels.ngram_losses_of_lines(ids, borders, self.packed)
        return losses

    def save(self, path: Path, arrays: Arrays | None = None) -> None:
        """Write the model to an existing folder; ``about["figures"]`` are stored with the tables.

        Parameters
        ----------
        path
            The folder.
        arrays
            The arrays of the tables, if they are not in memory.

        Raises
        ------
        FflmError
            If a file cannot be written.
        """
        about = {name: value for name, value in self.about.items() if name != "figures"}
        about.setdefault("created", local_time())
        config = save_description(path, {"kind": "ngram"}, self.text, self.vocabulary, about)
        save_arrays(path / WEIGHTS, self.arrays if arrays is None else arrays, self.about.get("figures", {}), config)

    def save_index(self, path: Path, entries: Divided | None = None) -> None:
        """Write the index beside the model that was saved in a folder, so that `load` need not make it.

        Parameters
        ----------
        path
            The folder.
        entries
            As for `fflm.models.ngram.index.save_index`.

        Raises
        ------
        FflmError
            If the file cannot be written.
        """
        assert isinstance(self._index, kernels.Index)
        save_index(path, self._index, entries)

    @classmethod
    @checked
    def load(cls, path: PathLike, device: Device = "cpu", *, verify: bool = False) -> Self:
        """Load the model in a folder.

        Parameters
        ----------
        path
            The model's folder.
        device
            Ignored: n-gram models always run on the CPU.
        verify
            As for `fflm.load`.

        Raises
        ------
        FflmError
            If the folder is not an n-gram model, or is of a later version, incomplete or damaged.
        """
        path = to_path("path", path)
        about = read_config(path, "ngram")
        text, vocabulary = read_text(path, about, verify=verify)
        ngram = about["ngram"]
        types = TRIE_TYPES if "bits" in ngram else TABLE_TYPES
        mapped, figures = map_arrays(path / WEIGHTS, types, NgramFigures, meaning(about), verify=verify)
        about = {**about, "figures": figures}
        if "bits" in ngram:
            model = cls(mapped_trie(mapped, len(vocabulary) + 1, ngram["order"]), vocabulary, text, about)
            model._stored = mapped
            return model
        index = map_index(path, mapped.checksum, len(vocabulary) + 1, verify=verify)
        if not (len(ngram["counts"]) <= ngram["order"] and len(ngram["discounts"] or ()) in (0, len(ngram["counts"]))):
            raise FflmError(f"{path} is damaged (its {CONFIG} contradicts itself): {REMEDY}")
        stored = _verified(mapped, len(vocabulary), ngram["order"]) if verify or index is None else mapped
        model = cls(stored, vocabulary, text, about)
        if index is not None:
            model._index = index
        return model


def _verified(mapped: MappedArrays, words: int, order: int) -> Tables:
    """Return the tables in a model's file after they have been verified.

    Raises
    ------
    FflmError
        If the file is damaged.
    """
    mapped.verify()
    if mapped.arrays.keys() != set(Tables._fields):
        raise FflmError(f"{mapped.path} is damaged (it has no n-grams): {REMEDY}")
    tables = Tables(**mapped.arrays)
    if not is_consistent(tables, words, order):
        raise FflmError(f"{mapped.path.parent} is damaged ({CONFIG} and {WEIGHTS} do not fit together): {REMEDY}")
    return tables


def _reopen(class_: type[NgramModel], path: Path, checksum: str) -> NgramModel:
    """Load a model that was pickled by its path, and compare its checksum."""
    model = class_.load(path)
    if model._stored is None or model._stored.checksum != checksum:
        raise FflmError(f"{path} has changed since the model was loaded: load it again")
    return model
