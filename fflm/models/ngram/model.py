"""The n-gram model: back-off tables, and the folder in which they are stored."""

import math
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import Device, PathLike, checked, to_path
from fflm.arrays import CONFIG, WEIGHTS, load_arrays, meaning, save_arrays
from fflm.backend.cpu.launching import shares_of
from fflm.compiling import pack
from fflm.errors import FflmError
from fflm.models.base import TableScorer
from fflm.models.description import NgramFigures
from fflm.models.folder import read_config, read_text, save_description
from fflm.models.language_model import LanguageModel
from fflm.models.ngram import kernels
from fflm.network.parameters import is_finite
from fflm.stored import REMEDY
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary

ROUNDING = 1e-5
"""The largest log-probability that is accepted, nats, because the logarithm of 1 may be rounded up."""

Integers = npt.NDArray[np.integer[Any]]

Floats = npt.NDArray[np.floating[Any]]


class Tables(NamedTuple):
    """All n-grams of a model, as flat arrays.

    The M contexts are the nodes of a tree: the root is the empty context, and a child extends its parent by one older word. They
    are numbered by depth, then by parent, then by word, so that the children of a node have consecutive numbers. The n-grams of a
    context are also consecutive, in the order of their last words; the n-grams of the root are the whole vocabulary.

    Attributes
    ----------
    children
        (M + 1,), uint32: the children of context i are the contexts ``children[i]`` to ``children[i + 1]``, exclusive.
    words
        (M,), uint32: the oldest word of each context; that of the root is not used.
    back_offs
        (M,), float32: the logarithm of the weight of the parent's distribution, for words without an n-gram in the context; nats.
        That of the root is not used.
    starts
        (M + 1,), uint32: the n-grams of context i are ``starts[i]`` to ``starts[i + 1]``, exclusive.
    targets
        (G,), uint32: the last word of each n-gram.
    log_probabilities
        (G,), float32: log p(last word | context) of each n-gram, nats.
    """

    children: npt.NDArray[np.uint32]
    words: npt.NDArray[np.uint32]
    back_offs: npt.NDArray[np.float32]
    starts: npt.NDArray[np.uint32]
    targets: npt.NDArray[np.uint32]
    log_probabilities: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls, parents: Integers, words: Integers, back_offs: Floats, starts: Integers, targets: Integers, log_p: Floats
    ) -> Self:
        """Return the tables of a model whose contexts are given by their parents.

        Parameters
        ----------
        parents, words
            (M - 1,): the parent and the oldest word of each context except for the root, in the order of their numbers.
        back_offs, starts
            As in the tables.
        targets, log_p
            (G,): the last word and the log-probability of each n-gram, in the order of contexts and words; nats.

        Raises
        ------
        FflmError
            If there are too many n-grams to be numbered by 32 bits.
        """
        if len(targets) >= 2**32:
            raise FflmError(f"{len(targets):,} n-grams are too many: choose a smaller `order`, or less text")
        return cls(
            borders(parents, len(back_offs)).astype(np.uint32) + np.uint32(1),
            np.concatenate([np.zeros(1, np.uint32), words.astype(np.uint32, copy=False)]),
            back_offs.astype(np.float32, copy=False),
            starts.astype(np.uint32, copy=False),
            targets.astype(np.uint32, copy=False),
            log_p.astype(np.float32, copy=False),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name."""
        return self._asdict()

    def levels(self) -> list[tuple[int, int]]:
        """Return the range of the numbers of the contexts of 0, 1, 2, ... words: first, and last exclusive."""
        levels = [(0, 1)]
        while (border := levels[-1][1]) < len(self.words):
            levels.append((border, int(self.children[border])))
        return levels


class NgramModel(TableScorer, LanguageModel):
    """An n-gram model with back-off tables.

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

    def __init__(self, tables: Tables, vocabulary: Vocabulary, text: TextSettings, about: Mapping[str, Any]) -> None:
        self.tables = tables
        self.vocabulary = vocabulary
        self.text = text
        self.about = dict(about)

    _line_kernel = staticmethod(kernels.ngram_score_lines)

    @cached_property
    def _index(self) -> kernels.Index:
        """The n-grams in a hash table."""
        return make_index(self.tables, len(self.vocabulary) + 1)

    @cached_property
    def packed(self) -> Any:
        """The tables, as the kernels that score lines and words take them."""
        return pack(kernels.LineTables(self._index, *self.context_limits, self.order, self.start_log10 * math.log(10)))

    def _details(self) -> list[str]:
        return [f"order {self.order}", f"{len(self.tables.targets):,} n-grams"]

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
        results = np.empty((len(contexts), len(self.vocabulary)), np.float32)
        shares = shares_of(results.size)
        kernels.ngram_distributions(self.tables, contexts, results, shares)
        return results

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""
        contexts, targets = self._check_examples(contexts, targets)
        losses = np.empty(len(targets), np.float32)
        shares = shares_of(contexts.size * kernels.LOOKUP_COST)
        kernels.ngram_losses(self._index, contexts, targets, losses, shares)
        return losses

    def _line_losses(self, ids: npt.NDArray[np.int32], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return -log p of the words of lines (N,), nats, of which `LineEncoder` made ids (N,) and borders (L + 1,)."""
        losses: npt.NDArray[np.floating] = kernels.ngram_losses_of_lines(ids, borders, self.packed)
        return losses

    def save(self, path: Path) -> None:
        """Write the model to an existing folder; ``about["figures"]`` are stored with the tables.

        Raises
        ------
        FflmError
            If a file cannot be written.
        """
        about = {name: value for name, value in self.about.items() if name != "figures"}
        about.setdefault("created", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        config = save_description(path, {"kind": "ngram"}, self.text, self.vocabulary, about)
        save_arrays(path / WEIGHTS, self.tables.arrays(), self.about.get("figures", {}), config)

    @classmethod
    @checked
    def load(cls, path: PathLike, device: Device = "cpu") -> Self:
        """Load the model in a folder.

        Parameters
        ----------
        path
            The model's folder.
        device
            Ignored: n-gram models always run on the CPU.

        Raises
        ------
        FflmError
            If the folder is not an n-gram model, or is of a later version, incomplete or damaged.
        """
        path = to_path("path", path)
        about = read_config(path, "ngram")
        text, vocabulary = read_text(path, about)
        arrays, figures = load_arrays(path / WEIGHTS, (np.uint32, np.float32), NgramFigures, meaning(about))
        if arrays.keys() != set(Tables._fields):
            raise FflmError(f"{path / WEIGHTS} is damaged (it has no n-grams): {REMEDY}")
        tables, ngram = Tables(**arrays), about["ngram"]
        described = len(ngram["counts"]) <= ngram["order"] and len(ngram["discounts"] or ()) in (0, len(ngram["counts"]))
        if not described or not _is_consistent(tables, len(vocabulary), ngram["order"]):
            raise FflmError(f"{path} is damaged ({CONFIG} and {WEIGHTS} do not fit together): {REMEDY}")
        return cls(tables, vocabulary, text, {**about, "figures": figures})


def make_index(tables: Tables, words: int, room: float = 1.5) -> kernels.Index:
    """Return an index of the n-grams of a model.

    Parameters
    ----------
    tables
        The n-grams.
    words
        V + 1.
    room
        The number of slots per n-gram; there will be more, if these are too few.

    Raises
    ------
    FflmError
        If there are too many n-grams to be numbered by 32 bits.
    """
    parents = np.repeat(np.arange(len(tables.words), dtype=np.uint32), np.diff(tables.children))
    parents = np.concatenate([np.zeros(1, np.uint32), parents])
    slots, beyond = int(room * len(tables.targets)) + 1, 64
    _, *arrays = tables
    while True:
        if words + slots + beyond > 2**32:
            raise FflmError(f"{len(tables.targets):,} n-grams are too many to be scored: prune the model")
        index = kernels.Index(np.zeros(words + slots + beyond, kernels.ENTRY), words, slots)
        if kernels.fill_index(parents, *arrays, index):
            return index
        slots, beyond = slots + slots // 2, 2 * beyond


def borders(ascending: Integers, count: int) -> npt.NDArray[np.int64]:
    """Return the index at which each of 0 to ``count`` starts, or would start, in sorted numbers: (N,) -> (count + 1,)."""
    return np.concatenate([[0], np.bincount(ascending, minlength=count).cumsum()])


def _is_consistent(tables: Tables, vocabulary: int, order: int) -> bool:
    """Return whether the tables of a model are consistent, so that all indices are in range, and contain log-probabilities."""
    contexts, grams = len(tables.words), len(tables.targets)
    return (
        all(array.ndim == 1 for array in tables.arrays().values())
        and all(
            (array.dtype == np.float32) == (name in ("back_offs", "log_probabilities")) for name, array in tables.arrays().items()
        )
        and 0 < contexts == len(tables.back_offs)
        and all(
            len(border) == contexts + 1 and bool(np.all(border[1:] >= border[:-1])) for border in (tables.children, tables.starts)
        )
        and (tables.children[0], tables.children[-1], tables.starts[0], tables.starts[-1]) == (1, contexts, 0, grams)
        and bool(np.all(tables.children[:-1] > np.arange(contexts)))
        and grams == len(tables.log_probabilities)
        and np.array_equal(tables.targets[: tables.starts[1]], np.arange(vocabulary))
        and int(tables.targets.max()) < vocabulary
        and len(tables.levels()) <= order
        and bool(tables.words.max() <= vocabulary)
        and is_finite(tables.back_offs)
        and is_finite(tables.log_probabilities)
        and bool(tables.log_probabilities.max() <= ROUNDING)
    )
