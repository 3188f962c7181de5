"""Numba kernels that make the `Index` of a model whose n-grams are on disk, a part of the table at a time.

The slots of the table belong to regions. An n-gram is entered into the first free slot from its own on; if there is none up to
the end of its region, it has to wait until all others of its length have been entered. So the table does not depend on how many
regions are filled at a time. Shapes: C contexts of one length, G n-grams of these contexts, S entries.
"""

import numpy as np

from fflm.compiling import compiled, inner
from fflm.models.ngram.kernels import NO_CONTEXT, _key, _slot, find

REGION = 1 << 18
"""Slots of a region."""


@compiled()
def make_keys(starts, targets, parents, words, lower_starts, lower_targets, lower_numbers, keys):
    """Compute the keys of n-grams: (C + 1,) where those of each context start, (G,) last words -> keys (G,), uint64.

    The entry of an n-gram is found from that of the n-gram without the first word. parents (C,) are the numbers of the contexts
    without their oldest words, which are in words (C,), and lower_numbers the entries of the n-grams without their first words.
    """
    for context in range(len(parents)):
        low, high = np.int64(lower_starts[parents[context]]), lower_starts[parents[context] + 1]
        for gram in range(starts[context], starts[context + 1]):
            low = find(lower_targets, low, high, targets[gram])
            keys[gram] = _key(lower_numbers[low], words[context])


@inner()
def _region_end(entries, words, slots, slot):
    """Return the end of the region of a slot; that of the last one is the last entry, which stays free."""
    region = (slot - words) // REGION
    return len(entries) - 1 if region == (slots - 1) // REGION else words + (region + 1) * REGION


@inner()
def _enter(entry, key, log_p):
    """Set a free entry."""
    entry.key, entry.log_p, entry.back_off = key, log_p, NO_CONTEXT


@compiled()
def enter(entries, words, slots, first, last, keys, log_probabilities, numbers, waiting):
    """Enter those of some n-grams (G,) whose slots are from ``first`` to ``last``, exclusive, and set their numbers (G,).

    Returns how many of them have to wait; ``waiting`` (G,) are their places among the others.
    """
    count = 0
    for gram in range(len(keys)):
        slot = np.int64(_slot(words, slots, keys[gram]))
        if not first <= slot < last:
            continue
        end = _region_end(entries, words, slots, slot)
        while slot < end and entries[slot].key != 0:
            slot += 1
        if slot == end:
            waiting[count] = gram
            count += 1
        else:
            _enter(entries[slot], keys[gram], log_probabilities[gram])
            numbers[gram] = slot
    return count


@compiled()
def enter_waiting(entries, words, slots, keys, log_probabilities, numbers):
    """Enter n-grams (G,) that had to wait, and set their numbers; return whether there was room for all."""
    for gram in range(len(keys)):
        slot = _region_end(entries, words, slots, np.int64(_slot(words, slots, keys[gram])))
        while slot < len(entries) - 1 and entries[slot].key != 0:
            slot += 1
        if slot >= len(entries) - 1:
            return False
        _enter(entries[slot], keys[gram], log_probabilities[gram])
        numbers[gram] = slot
    return True


@compiled()
def set_back_offs(entries, words, slots, first, last, parent_numbers, parents, oldest, back_offs, numbers):
    """Set the back-off weights of those contexts (C,) whose slots are from ``first`` to ``last``, and their numbers (C,).

    All contexts are n-grams in the table. parent_numbers are the entries of the contexts without the oldest words (C,).
    """
    for context in range(len(parents)):
        key = _key(parent_numbers[parents[context]], oldest[context])
        slot = np.int64(_slot(words, slots, key))
        if not first <= slot < last:
            continue
        while entries[slot].key != key:
            slot += 1
        entries[slot].back_off = back_offs[context] + np.float32(0)  # -0 becomes 0
        numbers[context] = slot
