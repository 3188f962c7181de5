"""The trie of a quantized model's n-grams: how it is made, stored, and mapped into memory."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fflm.arrays import MappedArrays
from fflm.errors import FflmError
from fflm.models.ngram import kernels
from fflm.models.ngram.index import make_index
from fflm.models.ngram.tables import ROUNDING, Tables
from fflm.models.ngram.trie_kernels import BINS, BLOCK, CODE_BITS, LARGE_BLOCK, LEVEL, WORD, Trie, word_key
from fflm.network.parameters import is_finite
from fflm.stored import REMEDY

TRIE_TYPES = (np.uint8, np.uint16, np.uint32, np.float32)
"""The types of the arrays in the file of a trie, and of those of an earlier layout, to say so."""

_WIDE, _AFTER_CHILDREN = 8, LARGE_BLOCK // 8  # bytes at the ends of `ngrams` and `children`, so that no read leaves them


def make_trie(tables: Tables, words: int, order: int) -> Trie:
    """Return the n-grams of a model in a trie.

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

    Raises
    ------
    FflmError
        If there are too many n-grams to be numbered by 32 bits.
    """
    index = make_index(tables, words)
    entries, lengths = index.entries, kernels.lengths_of(index)
    counts = np.bincount(lengths, minlength=order + 1)[1:].astype(np.uint32)
    trie = _empty(counts)
    trie.bins[0, :, 0], trie.bins[1, :, 0] = kernels.NO_NGRAM, kernels.NO_CONTEXT
    for name in ("log_p", "back_off"):
        trie.words[name][:-1] = entries[name][:words]
    key_bits = np.uint64(trie.key_bits)
    numbers = np.arange(len(entries), dtype=np.uint32)  # in the trie, of entries of shorter n-grams
    for k in range(1, order):
        own = np.flatnonzero(lengths == k + 1)
        parents = numbers[entries["key"][own] >> np.uint64(32)].astype(np.uint64)
        keys = word_key.py_func((entries["key"][own] & np.uint64(2**32 - 1)) - np.uint64(1), key_bits)
        sorting = np.argsort((parents << key_bits) | keys)
        own, parents, keys = own[sorting], parents[sorting], keys[sorting]
        numbers[own] = np.arange(len(own), dtype=np.uint32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(parents.astype(np.int64), minlength=int(counts[k - 1])))])
        if k == 1:
            trie.words["children"] = starts
        else:
            _write_children(trie, k - 1, starts)
        log_p, back_offs = entries["log_p"][own], entries["back_off"][own]
        codes = _codes(log_p, ~np.isnan(log_p), trie.bins[0, k])
        if k < order - 1:
            codes |= _codes(back_offs, (back_offs != 0) | ~np.signbit(back_offs), trie.bins[1, k]) << np.uint64(CODE_BITS)
        _write_bits(trie.ngrams, trie.levels[k], keys | codes << key_bits)
    return trie


def _codes(
    values: npt.NDArray[np.float32], exist: npt.NDArray[np.bool_], bins: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint64]:
    """Return the codes (N,) of those values (N,) that exist, 0 for the others, after setting their bins (`BINS`,)."""
    codes = np.zeros(len(values), np.uint64)
    bins[1:], codes[exist] = _quantize(values[exist])
    return codes


def _quantize(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return the means (255,) of the bins of values (N,), in ascending order, and the number of each value's bin, from 1 on."""
    bins = BINS - 1
    distinct = np.unique(values)
    if len(distinct) > bins:
        borders = np.linspace(0, len(values), bins + 1).astype(np.int64)
        totals = np.add.reduceat(np.sort(values), borders[:-1], dtype=np.float64)
        distinct = np.unique((totals / np.diff(borders)).astype(np.float32))
    return np.pad(distinct, (0, bins - len(distinct))), np.searchsorted((distinct[1:] + distinct[:-1]) / 2, values) + 1


def _write_bits(array: npt.NDArray[np.uint8], level: npt.NDArray[np.void], values: npt.NDArray[np.uint64]) -> None:
    """Write the numbers (N,) of the n-grams of a level, of which all bits are 0."""
    first = level["first"] + np.arange(len(values), dtype=np.uint64) * level["width"]
    place, shift = (first >> np.uint64(3)).astype(np.intp), first & np.uint64(7)
    for byte in range(0, int(level["width"]) + 7, 8):
        own = ((values << shift) >> np.uint64(byte)).astype(np.uint8)
        np.bitwise_or.at(array, place + byte // 8, own)


def _write_children(trie: Trie, k: int, starts: npt.NDArray[np.int64]) -> None:
    """Write where the children of n-grams of k + 1 words begin, and where those of the last one end (N + 1,)."""
    level, blocks = trie.levels[k], _block_count(len(starts) - 1)
    starts = np.pad(starts, (0, blocks * BLOCK + 1 - len(starts)), mode="edge")
    begins = starts[::BLOCK]
    trie.blocks[int(level["first_block"]) :][: blocks + 1] = begins
    ones = int(level["first_child"]) + starts + np.arange(len(starts))
    np.bitwise_or.at(trie.children, ones >> 3, (1 << (ones & 7)).astype(np.uint8))
    for block in np.flatnonzero(np.diff(begins) + BLOCK >= LARGE_BLOCK):
        own = starts[BLOCK * block :][: BLOCK + 1].astype("<u4").view(np.uint8)
        trie.children[int(ones[BLOCK * block] + 7) >> 3 :][: len(own)] = own


def _block_count(ngrams: int) -> int:
    """Return the number of blocks of a number of n-grams."""
    return -(-ngrams // BLOCK)


def _levels(counts: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.void], tuple[int, int, int]]:
    """Return the levels of a trie (n + 1,), and the lengths of `ngrams`, `children` and `blocks`."""
    levels = np.zeros(len(counts), LEVEL)
    bits = child_bits = blocks = 0
    for k, count in enumerate(map(int, counts)):
        level = levels[k]
        level["count"], level["first"], level["first_child"], level["first_block"] = count, bits, child_bits, blocks
        if k > 0:
            last = k == len(counts) - 1
            level["width"] = _key_bits(counts) + CODE_BITS * (1 if last else 2)
            bits += _words(count * int(level["width"]))
            if not last:
                child_bits += _words(BLOCK * _block_count(count) + int(counts[k + 1]) + 1)
                blocks += _block_count(count) + 1
    return levels, (bits // 8 + _WIDE, child_bits // 8 + _AFTER_CHILDREN, blocks)


def _words(bits: int) -> int:
    """Return the number of bits of whole words of 64 bits that have room for some bits."""
    return -(-bits // 64) * 64


def _empty(counts: npt.NDArray[np.uint32]) -> Trie:
    """Return a trie with room for n-grams, of which there are so many of each length (n + 1,)."""
    levels, (ngrams, children, blocks) = _levels(counts)
    return Trie(
        np.zeros(int(counts[0]) + 1, WORD),
        np.zeros(ngrams, np.uint8),
        np.zeros(children, np.uint8),
        np.zeros(blocks, np.uint32),
        levels,
        np.zeros((2, len(counts), BINS), np.float32),
        _key_bits(counts),
    )


def _key_bits(counts: npt.NDArray[np.uint32]) -> int:
    """Return the number of bits of a word."""
    return max(int(counts[0]) - 1, 1).bit_length()


def trie_arrays(trie: Trie) -> dict[str, npt.NDArray[Any]]:
    """Return a trie as the arrays of a file."""
    return {
        "words": np.ascontiguousarray(trie.words).view(np.uint8).reshape(len(trie.words), -1),
        "ngrams": trie.ngrams,
        "children": trie.children,
        "blocks": trie.blocks,
        "counts": trie.levels["count"].astype(np.uint32),
        "bins": trie.bins,
    }


def mapped_trie(mapped: MappedArrays, words: int, order: int) -> Trie:
    """Return the trie in a file, after checking that no search in it can leave its arrays.

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
        If the file is damaged, or has another layout.
    """
    if "codes" in mapped.arrays:
        raise FflmError(f"{mapped.path} was quantized by an earlier version: quantize the original again")
    none = np.empty(0)
    counts = mapped.arrays.get("counts", none)
    if counts.shape == (order,) and counts.dtype == np.uint32 and counts[0] == words:
        levels, (ngrams, children, blocks) = _levels(counts)
        wanted: dict[str, tuple[int, ...]] = {"words": (words + 1, WORD.itemsize), "ngrams": (ngrams,), "children": (children,)}
        wanted |= {"blocks": (blocks,), "bins": (2, order, BINS)}
        types = {"blocks": np.uint32, "bins": np.float32}
        own = [array for name in wanted if (array := mapped.arrays.get(name, none)).dtype == types.get(name, np.uint8)]
        if [array.shape for array in own] == list(wanted.values()) and all(array.flags.aligned for array in own):
            trie = Trie(own[0].reshape(-1).view(WORD), own[1], own[2], own[3], levels, own[4], _key_bits(counts))
            if _are_values(trie, int(counts[1]) if order > 1 else 0):
                return trie
    raise FflmError(f"{mapped.path} is damaged (its arrays do not fit the model): {REMEDY}")


def _are_values(trie: Trie, count: int) -> bool:
    """Return whether words and bins of a trie have numbers of a model, of which ``count`` n-grams have two words."""
    log_p, back_offs, starts, bins = *(trie.words[name] for name in ("log_p", "back_off", "children")), trie.bins
    limits = [
        *(is_finite(array) for array in (log_p[:-2], back_offs[:-1], bins[:, :, 1:])),
        log_p[:-2].max(initial=0) <= ROUNDING,
    ]
    free = np.isnan(bins[0, :, 0]).all() and (bins[1, :, 0] == 0).all() and np.signbit(bins[1, :, 0]).all()
    ascending = (starts[1:] >= starts[:-1]).all() and starts[-1] == count
    return all(limits) and bool(free) and bool(ascending) and bool(bins[0, :, 1:].max() <= ROUNDING)
