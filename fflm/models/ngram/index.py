"""The index of a model's n-grams: a hash table, which is made once, stored beside the model, and mapped into memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from fflm.arrays import INDEX, WEIGHTS, Divided, map_arrays, save_arrays, stored_checksum
from fflm.errors import FflmError
from fflm.models.ngram import kernels
from fflm.models.ngram.tables import Tables
from fflm.stored import REMEDY

ROOM = 1.5
"""Slots per n-gram."""


class IndexFigures(TypedDict):
    """What the file of an index says beside its entries: the checksum of the tables that it was made of, and its numbers."""

    tables: str
    words: int
    slots: int


def make_index(tables: Tables, words: int, room: float = ROOM) -> kernels.Index:
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
    parents = tables.parents(np.uint32)
    _, *arrays = tables
    for slots, size in table_sizes(len(tables.targets), words, room):
        index = kernels.Index(np.zeros(size, kernels.ENTRY), words, slots)
        if kernels.fill_index(parents, *arrays, index):
            break
    return index


def table_sizes(ngrams: int, words: int, room: float = ROOM) -> Iterator[tuple[int, int]]:
    """Yield numbers of slots and of entries with which to try to make an index, each larger than the one before.

    Parameters
    ----------
    ngrams
        The number of n-grams.
    words, room
        As for `make_index`.

    Raises
    ------
    FflmError
        If there are too many n-grams to be numbered by 32 bits.
    """
    slots, beyond = int(room * ngrams) + 1, 64
    while words + slots + beyond <= 2**32:
        yield slots, words + slots + beyond
        slots, beyond = slots + slots // 2, 2 * beyond
    raise FflmError(f"{ngrams:,} n-grams are too many to be scored: prune the model")


def save_index(folder: Path, index: kernels.Index, entries: npt.NDArray[np.uint8] | Divided | None = None) -> None:
    """Write an index to the folder of the model whose n-grams it contains.

    Parameters
    ----------
    folder
        The folder.
    index
        The index.
    entries
        Its entries as rows of bytes, if they must not be in memory as a whole.

    Raises
    ------
    FflmError
        If the file cannot be written.
    """
    if entries is None:
        entries = index.entries.view(np.uint8).reshape(len(index.entries), -1)
    save_arrays(
        folder / INDEX,
        {"entries": entries},
        {"tables": stored_checksum(folder / WEIGHTS), "words": index.words, "slots": index.slots},
    )


def map_index(folder: Path, tables: str, words: int, *, verify: bool = False) -> kernels.Index | None:
    """Map the index in the folder of a model into memory, and check that no search in it can leave the table.

    Parameters
    ----------
    folder
        The folder.
    tables
        The checksum in the file of the model's tables.
    words
        V + 1.
    verify
        Whether to read the whole file, and verify its checksum.

    Returns
    -------
    Index or None
        The index; None if there is none, as in the folders of early versions, or if it belongs to other tables.

    Raises
    ------
    FflmError
        If the file is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        return None
    mapped, about = map_arrays(path, (np.uint8,), IndexFigures, verify=verify)
    if about["tables"] != tables:
        return None
    stored = mapped.arrays.get("entries", np.empty(0, np.uint8))
    if stored.ndim != 2 or stored.shape[1] != kernels.ENTRY.itemsize or stored.dtype != np.uint8 or not stored.flags.aligned:
        raise FflmError(f"{path} is damaged (it has no entries): {REMEDY}")
    entries, slots = stored.reshape(-1).view(kernels.ENTRY), about["slots"]
    if about["words"] != words or slots < 1 or not words + slots < len(entries) <= 2**32 or entries[-1]["key"]:
        raise FflmError(f"{path} is damaged (its numbers do not fit the model): {REMEDY}")
    return kernels.Index(entries, words, slots)
