"""Numba kernels that look up n-grams in a trie with quantized numbers, which takes much less memory than the hash table.

Nothing that is read from a trie is used as an index before it is limited, and all loops end, so that damaged files lead nowhere.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.backend.cpu.rows import clear
from fflm.compiling import inner
from fflm.instructions import count_ones, prefetch, trailing_zeros, word_at

WORD = np.dtype([("log_p", np.float32), ("back_off", np.float32), ("children", np.uint32)])
"""A single word in a `Trie`."""

LEVEL = np.dtype([(name, np.uint64) for name in ("count", "width", "first", "first_child", "first_block")])
"""The place of the n-grams of one length in a `Trie`."""

CODE_BITS = 8
"""The number of bits of a code, the number of a bin."""

BINS = 2**CODE_BITS
"""The number of bins of log-probabilities, and of back-off weights, of n-grams of one length."""

BLOCK = 64
"""The number of n-grams in a block of `Trie.children`."""

LARGE_BLOCK = 32 * (BLOCK + 2)
"""The smallest number of bits of a block that has room for the numbers of 32 bits of which `Trie` speaks."""

_ONE, _SEVEN, _EIGHT = np.uint64(1), np.uint64(7), np.uint64(8)
_CODE_BITS, _CODE = np.uint64(CODE_BITS), np.uint64(BINS - 1)
_BLOCK_BITS, _IN_BLOCK, _LARGE_BLOCK = np.uint64(BLOCK.bit_length() - 1), np.uint64(BLOCK - 1), np.uint64(LARGE_BLOCK)
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio
_NONE = np.uint64(2**64 - 1)


class Trie(NamedTuple):
    """The n-grams of a model in a trie with quantized numbers, in which a text is looked up backwards.

    The children of an n-gram have one more word, before its first. N-grams of one length are numbered in the order of their
    parents, and those of one parent in the order of their keys, so that the children of an n-gram are a range of numbers. The key
    of a word is its id times an odd number, modulo 2^b, which can be undone: keys are as irregular as hash values, so that
    interpolation finds one among N in about log log N steps.

    Where ranges begin takes some 3 bits per n-gram of fewer than the most words (Pibiri and Venturini 2017, "Efficient data
    structures for massive n-gram datasets", use Elias-Fano codes for it): each of these n-grams is a bit 1, and each of its
    children a bit 0 after it. So the number of the first child is the number of bits 0 before. For every 64 n-grams, a block,
    this number is stored. A block of `LARGE_BLOCK` bits or more, because an n-gram in it has many children, has at its
    beginning, from the next byte on, the numbers of the first children of its n-grams and of the n-gram after them, with 32
    bits each, instead of these bits.

    Attributes
    ----------
    words
        (V + 2,) `WORD`: log p and the back-off weight of each word and ``<s>``, nats, and the number of its first child. The last
        one only has this number.
    ngrams
        (N,) uint8: the other n-grams as numbers of equally many bits, those of each length in words of 64 bits, little-endian:
        from the lowest bit on, the key of the first word, the code of the log-probability, and, except in the longest n-grams,
        that of the back-off weight. A code is the number of a bin (Federico and Bertoldi 2006, "How many bits are needed to store
        probabilities for phrase-based translation?"); 0 is that of entries that are no n-grams, or no contexts.
    children
        (C,) uint8: the bits described above, in words of 64 bits, too.
    blocks
        (B,) uint32: the number of the first child of each block, and of the n-gram after the last block, for each length.
    levels
        (n + 1,) `LEVEL`: for n-grams of k + 1 words, their count; the bits of each; the first bit in ``ngrams``; and the first
        bit in ``children`` and the first number in ``blocks``. Of single words only the count is used.
    bins
        (2, n + 1, `BINS`) float32: for n-grams of k + 1 words, the log-probabilities and the back-off weights of the codes, nats.
    key_bits
        b, such that 2^b is more than V.
    """

    words: npt.NDArray[np.void]
    ngrams: npt.NDArray[np.uint8]
    children: npt.NDArray[np.uint8]
    blocks: npt.NDArray[np.uint32]
    levels: npt.NDArray[np.void]
    bins: npt.NDArray[np.float32]
    key_bits: int


@inner()
def word_key(word, bits):
    """Return the key of a word."""
    return (np.uint64(word) * ((FACTOR >> (np.uint64(64) - bits)) | _ONE)) & ((_ONE << bits) - _ONE)


@inner()
def _nth_one(word, n):
    """Return the place of the bit 1 of a uint64 above n others, from the lowest bit on; 63 if it has fewer."""
    place = np.uint64(0)
    for step in range(6):
        half = np.uint64(32) >> np.uint64(step)
        count = count_ones(word & ((_ONE << half) - _ONE))
        if n >= count:
            n -= count
            word >>= half
            place += half
    return place


@inner()
def _block_bit(blocks, level, number):
    """Return the first bit of the block of an n-gram in ``Trie.children``."""
    return level.first_child + np.uint64(blocks[level.first_block + (number >> _BLOCK_BITS)]) + (number & ~_IN_BLOCK)


@inner()
def _children_of(children, blocks, level, count, number):
    """Return the range of the numbers of the children of an n-gram: first, and last exclusive.

    level is that of the n-gram, of which ``number`` is one, and ``count`` the number of n-grams of one more word.
    """
    block, n = level.first_block + (number >> _BLOCK_BITS), number & _IN_BLOCK
    base = min(np.uint64(blocks[block]), count)
    begin = level.first_child + base + (number & ~_IN_BLOCK)
    if np.uint64(blocks[block + _ONE]) - base + _IN_BLOCK + _ONE >= _LARGE_BLOCK:
        pair = word_at(children, ((begin + _SEVEN) >> np.uint64(3)) + np.uint64(4) * n)
        return min(pair & np.uint64(2**32 - 1), count), min(pair >> np.uint64(32), count)
    place, last = begin >> np.uint64(3), np.uint64(len(children)) - _EIGHT
    bits = (word_at(children, place) >> (begin & _SEVEN)) << (begin & _SEVEN)
    ones = count_ones(bits)
    while ones <= n and place + _EIGHT <= last:
        n, place = n - ones, place + _EIGHT
        bits = word_at(children, place)
        ones = count_ones(bits)
    found = _nth_one(bits, n)
    low = base + (place << np.uint64(3)) + found - begin - (number & _IN_BLOCK)
    bits, high = (bits >> found) >> _ONE, low
    if not bits:
        high += np.uint64(63) - found
        place += _EIGHT
        bits = word_at(children, min(place, last))
        while not bits and place < last:
            high, place = high + np.uint64(64), place + _EIGHT
            bits = word_at(children, min(place, last))
    if bits:
        high += trailing_zeros(bits)
    return min(low, count), min(high, count)


@inner()
def _ngram_at(ngrams, level, number):
    """Return the numbers of an n-gram, and of others in the bits above; there are 57 bits at least."""
    bit = level.first + number * level.width
    return word_at(ngrams, bit >> np.uint64(3)) >> (bit & _SEVEN)


@inner()
def _guess(low, high, key, bits):
    """Return the number that an n-gram with a key probably has, of those from low to high, exclusive."""
    return low + ((key * (high - low)) >> bits)


@inner()
def _search(ngrams, level, bits, low, high, key):
    """Return the number of the n-gram with a key, of those from low to high, exclusive, and its codes; if none has it, _NONE."""
    size, place, mask = high - low, _guess(low, high, key, bits), (_ONE << bits) - _ONE
    while low < high:
        found = _ngram_at(ngrams, level, place)
        own = found & mask
        if own == key:
            return place, found >> bits
        if own < key:
            low = place + _ONE
            place = min(low + (((key - own) * size) >> bits), high - _ONE)
        else:
            high = place
            step = (((own - key) * size) >> bits) + _ONE
            place = high - step if step <= high - low else low
    return _NONE, _NONE


def walk_trie(ngrams, word, context, back_offs):
    """Do what `fflm.models.ngram.kernels.ngrams_of` does, in a `Trie`."""
    words, numbers, children, blocks, levels, bins, key_bits = ngrams
    bits, count = np.uint64(key_bits), np.uint64(len(words) - 1)
    number = min(np.uint64(word), count - _ONE)  # a state may be of another model, and have its words
    log_p, back_offs[0] = words[number].log_p, words[number].back_off
    low, high = np.uint64(words[number].children), np.uint64(words[number + _ONE].children)
    length, longest = 0 if np.isnan(log_p) else 1, 1 if back_offs[0] != 0 or not np.signbit(back_offs[0]) else 0
    for k in range(1, len(context) + 1):
        number = _NONE
        if np.uint64(context[k - 1]) < count:
            number, codes = _search(numbers, levels[k], bits, low, high, word_key(context[k - 1], bits))
        if number == _NONE:
            for rest in range(k, len(context) + 1):
                back_offs[rest] = 0
            break
        own = bins[0, k, codes & _CODE]
        if not np.isnan(own):
            log_p, length = own, k + 1
        if k + 1 < len(levels):
            back_offs[k] = bins[1, k, (codes >> _CODE_BITS) & _CODE]
            low, high = _children_of(children, blocks, levels[k], levels[k + 1].count, number)
            if back_offs[k] != 0 or not np.signbit(back_offs[k]):
                longest = k + 1
        else:
            back_offs[k] = 0
    return log_p, length, longest


def look_up_in_trie(ngrams, window, words, active, found, ends, log_p, back_offs):
    """Do what `fflm.models.ngram.kernels._look_up` does, in a `Trie`; ``found`` has the first child, and ``ends`` the last."""
    own_words, numbers, children, blocks, levels, bins, key_bits = ngrams
    bits, many = np.uint64(key_bits), len(active)
    for a in range(many):
        i = active[a]
        word = np.uint64(words[i])
        log_p[i], back_offs[1, i] = own_words[word].log_p, own_words[word].back_off
        low, high = np.uint64(own_words[word].children), np.uint64(own_words[word + _ONE].children)
        found[i], ends[i] = low, high
        if window:
            _prefetch(numbers, levels[1], bits, low, high, words[i - _ONE])
    for k in range(1, window + 1):
        before, after = back_offs[k % 2], back_offs[(k + 1) % 2]
        for i in range(1, len(words)):
            log_p[i] += before[i - 1]
        clear(after[: len(words)])
        alive, distance, level = 0, np.uint64(k), levels[k]
        for a in range(many):
            i = active[a]
            key = word_key(words[i - distance], bits)
            number, codes = _search(numbers, level, bits, np.uint64(found[i]), np.uint64(ends[i]), key)
            if number == _NONE:
                continue
            own = bins[0, k, codes & _CODE]
            if not np.isnan(own):
                log_p[i] = own
            if k < window:
                after[i] = bins[1, k, (codes >> _CODE_BITS) & _CODE]
                found[i] = number
                prefetch(children, _block_bit(blocks, level, number) >> np.uint64(3))
                active[alive] = i
                alive += 1
        many = 0
        for a in range(alive):  # none if k is the window
            i = active[a]
            low, high = _children_of(children, blocks, level, levels[k + 1].count, np.uint64(found[i]))
            if low < high:
                found[i], ends[i] = low, high
                _prefetch(numbers, levels[k + 1], bits, low, high, words[i - distance - _ONE])
                active[many] = i
                many += 1


@inner()
def _prefetch(ngrams, level, bits, low, high, word):
    """Prefetch where the search for a word begins, among the n-grams from low to high, exclusive."""
    prefetch(ngrams, (level.first + level.width * _guess(low, high, word_key(word, bits), bits)) >> np.uint64(3))
