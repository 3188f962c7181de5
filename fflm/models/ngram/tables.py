"""The n-grams of a model as flat arrays, in which its folder stores them."""

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError
from fflm.network.parameters import is_finite

ROUNDING = 1e-5
"""The largest log-probability that is accepted, nats, because the logarithm of 1 may be rounded up."""

TABLE_TYPES = (np.uint32, np.float32)
"""The types of the arrays of `Tables`."""

TOO_MANY = "{:,} n-grams are too many: choose a smaller `order`, or less text"
"""The error of a model whose n-grams cannot be numbered by 32 bits."""

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
            raise FflmError(TOO_MANY.format(len(targets)))
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

    def parents(self, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
        """Return the number of each context's parent (M,), integers of a dtype; that of the root, which has none, is 0."""
        return np.concatenate([np.zeros(1, dtype), np.repeat(np.arange(len(self.words), dtype=dtype), np.diff(self.children))])


def borders(ascending: Integers, count: int) -> npt.NDArray[np.int64]:
    """Return the index at which each of 0 to ``count`` starts, or would start, in sorted numbers: (N,) -> (count + 1,)."""
    return np.concatenate([[0], np.bincount(ascending, minlength=count).cumsum()])


def is_consistent(tables: Tables, vocabulary: int, order: int) -> bool:
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
