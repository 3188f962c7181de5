"""The index of a model's n-grams: a hash table, which is made once, stored beside the model, and mapped into memory."""

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from fflm.arrays import INDEX, WEIGHTS, Divided, MappedArrays, map_arrays, save_arrays, stored_checksum
from fflm.errors import FflmError
from fflm.models.ngram import kernels
from fflm.models.ngram.tables import ROUNDING, Tables
from fflm.network.parameters import is_finite
from fflm.stored import REMEDY


class IndexFigures(TypedDict):
    """What the file of an index says beside its entries: the checksum of the tables that it was made of, and its numbers."""

    tables: str
    words: int
    slots: int


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
        index = exact_index(np.zeros(words + slots + beyond, kernels.ENTRY), words, slots)
        if kernels.fill_index(parents, *arrays, index):
            return index
        slots, beyond = slots + slots // 2, 2 * beyond


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
    entries = _entries(mapped, "entries")
    slots = about["slots"]
    if about["words"] != words or slots < 1 or not words + slots < len(entries) <= 2**32 or entries[-1]["key"]:
        raise FflmError(f"{path} is damaged (its numbers do not fit the model): {REMEDY}")
    return exact_index(entries, words, slots)


def exact_index(entries: npt.NDArray[np.void], words: int, slots: int) -> kernels.Index:
    """Return an index that is not quantized."""
    return kernels.Index(entries, words, slots, np.empty((0, kernels.CODES), np.uint16), np.empty((2, 0, 0), np.float32), 0, 0, 0)


def _entries(mapped: MappedArrays, name: str) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Return the entries (S,) in the file of an index."""
    entries = mapped.arrays.get(name, np.empty(0, np.uint8))
    if entries.ndim != 2 or entries.shape[1] != kernels.ENTRY.itemsize or entries.dtype != np.uint8 or not entries.flags.aligned:
        raise FflmError(f"{mapped.path} is damaged (it has no entries): {REMEDY}")
    return entries.reshape(-1).view(kernels.ENTRY)


# The quantized index.

QUANTIZED_TYPES = (np.uint8, np.uint16, np.float32)
"""The types of the arrays of a quantized index."""

_BEYOND = 256  # slots after those in which a search may begin


def quantize_index(tables: Tables, words: int, order: int, room: float = 1.4) -> kernels.Index:
    """Return a quantized index of the n-grams of a model.

    The log-probabilities of n-grams of one length, and their back-off weights, are each replaced by one of 255 means: those of
    equally many values each, in their order. Those of single words stay as they are.

    Parameters
    ----------
    tables
        The n-grams.
    words
        V + 1.
    order
        The length of the longest n-grams.
    room
        The number of slots per n-gram of two words or more; there will be more, if these are too few.

    Raises
    ------
    FflmError
        If there are too many n-grams to be numbered by 32 bits.
    """
    index = make_index(tables, words)
    lengths, log_p, back_offs = kernels.lengths_of(index), index.entries["log_p"], index.entries["back_off"]
    bins = np.zeros((2, order, kernels.BINS), np.float32)
    bins[0, :, 0], bins[1, :, 0] = kernels.NO_NGRAM, kernels.NO_CONTEXT
    codes = np.zeros((2, len(lengths)), np.uint16)
    for length in range(2, order + 1):
        own = lengths == length
        for kind, values, exists in (
            (0, log_p, ~np.isnan(log_p)),
            (1, back_offs, (back_offs != 0) | ~np.signbit(back_offs)),
        ):
            places = np.flatnonzero(own & exists)
            bins[kind, length - 1, 1:], codes[kind, places] = _quantize(values[places])
    slots = int(room * np.count_nonzero(lengths[words:])) + 1
    while True:
        if words + slots + _BEYOND > 2**32:
            raise FflmError(f"{len(tables.targets):,} n-grams are too many to be scored: prune the model")
        quantized = _quantized(index.entries[:words], np.zeros((slots + _BEYOND, kernels.CODES), np.uint16), bins)
        if kernels.fill_codes(index, codes[0] | codes[1] << 8, quantized):
            return quantized
        slots += slots // 8 + 1


def _quantize(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
    """Return the means (255,) of the bins of values (N,), in ascending order, and the number of each value's bin, from 1 on."""
    bins = kernels.BINS - 1
    distinct = np.unique(values)
    if len(distinct) > bins:
        borders = np.linspace(0, len(values), bins + 1).astype(np.int64)
        totals = np.add.reduceat(np.sort(values), borders[:-1], dtype=np.float64)
        distinct = np.unique((totals / np.diff(borders)).astype(np.float32))
    nearest = np.searchsorted((distinct[1:] + distinct[:-1]) / 2, values).astype(np.uint16)
    return np.pad(distinct, (0, bins - len(distinct))), nearest + np.uint16(1)


def _quantized(entries: npt.NDArray[np.void], codes: npt.NDArray[np.uint16], bins: npt.NDArray[np.float32]) -> kernels.Index:
    """Return a quantized index, given the entries of single words, slots, and bins."""
    words, slots = len(entries), len(codes) - _BEYOND
    word_bits = words.bit_length()
    width = max(32, (words + len(codes)).bit_length() + word_bits)
    shift = width - 32 + (2**32 // slots).bit_length()  # so that 2^shift is more than the number of products of a slot
    return kernels.Index(entries, words, slots, codes, bins, word_bits, width, shift)


def quantized_arrays(index: kernels.Index) -> dict[str, npt.NDArray[Any]]:
    """Return a quantized index as the arrays of a file."""
    words = np.ascontiguousarray(index.entries).view(np.uint8).reshape(index.words, -1)
    return {"words": words, "codes": index.codes, "bins": index.bins}


def mapped_index(mapped: MappedArrays, words: int, order: int) -> kernels.Index:
    """Return the quantized index in a file, after checking that no search in it can leave its arrays.

    Parameters
    ----------
    mapped
        The file.
    words
        V + 1.
    order
        The length of the longest n-grams.

    Raises
    ------
    FflmError
        If the file is damaged.
    """
    entries = _entries(mapped, "words")
    codes, bins = (mapped.arrays.get(name, np.empty(0, np.uint8)) for name in ("codes", "bins"))
    fits = (
        len(entries) == words,
        codes.ndim == 2 and codes.shape[1] == kernels.CODES and codes.dtype == np.uint16,
        _BEYOND < len(codes) <= 2**32 - words,
        bins.shape == (2, order, kernels.BINS) and bins.dtype == np.float32,
        codes.flags.aligned and bins.flags.aligned,
    )
    if not all(fits) or codes[-1, :2].any() or not _are_values(entries[:-1]["log_p"], entries["back_off"], bins):
        raise FflmError(f"{mapped.path} is damaged (its arrays do not fit the model): {REMEDY}")
    return _quantized(entries, codes, bins)


def _are_values(log_p: npt.NDArray[Any], back_offs: npt.NDArray[Any], bins: npt.NDArray[np.float32]) -> bool:
    """Return whether these are numbers of a model: log_p (V,) and back_offs (V + 1,) of single words, and bins."""
    limits = [*(is_finite(array) for array in (log_p, back_offs, bins[:, :, 1:])), log_p.max(initial=0) <= ROUNDING]
    free = np.isnan(bins[0, :, 0]).all() and (bins[1, :, 0] == 0).all() and np.signbit(bins[1, :, 0]).all()
    return all(limits) and bool(free) and bool(bins[0, :, 1:].max() <= ROUNDING)
