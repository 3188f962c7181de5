"""Numba kernels of n-gram models: sorting the positions of a text by context, interpolation, and lookup.

`fflm.models.ngram.tables.Tables` describes the layout of the tables. Shapes: N tokens of the text, P predicted positions, M
contexts, G n-grams, B predictions, n context words, V words of the vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import overload

from fflm.backend.cpu.launching import kernel, share
from fflm.backend.cpu.rows import clear
from fflm.compiling import compiled, inner
from fflm.instructions import prefetch
from fflm.models.line_kernels import line_scorer
from fflm.models.ngram.trie_kernels import FACTOR, Trie, look_up_in_trie, walk_trie

ONE = np.uint64(1)

LOOKUP_COST = 500
"""Cost of a search for a word, in numbers processed, the unit of `fflm.backend.cpu.launching.shares_of`."""


@inner()
def find(words, low, high, word):
    """Return the index of a word in ``words[low:high]``, which is in ascending order, or -1 if it does not occur there."""
    low, high = np.int64(low), np.int64(high)
    end = high
    while low < high:
        middle = (low + high) >> 1
        if words[middle] < word:
            low = middle + 1
        else:
            high = middle
    return low if low < end and words[low] == word else -1


@kernel()
def interpolate(
    starts,
    words,
    counts,
    kept,
    parents,
    lower_starts,
    lower_words,
    lower_probabilities,
    discounts,
    probabilities,
    back_offs,
    threads,
    t,
):
    """Compute the probabilities of the n-grams of one order from those of the next lower order.

    p(w | c) = (a(cw) - D(a(cw))) / a(c) + g(c) p(w | c'), with g(c) = sum_w D(a(cw)) / a(c) and c' = c without its oldest word
    (Chen and Goodman 1999, equation 26, https://doi.org/10.1006/csla.1999.0128). The discount of an n-gram that is not kept is
    its whole count, as in KenLM.

    starts         (M + 1,)  in, the n-grams of context i are ``starts[i]`` to ``starts[i + 1]``
    words          (G,)      in, the last word of each n-gram, in ascending order within a context
    counts         (G,)      in, adjusted counts a
    kept           (G,)      in, whether the model will have each n-gram
    parents        (M,)      in, the index of each context's c' in the lower order
    lower_starts, lower_words, lower_probabilities: in, the same arrays of the lower order
    discounts      (4,)      in, D of the counts 0, 1, 2, and 3 or more
    probabilities  (G,)      out
    back_offs      (M,)      out, g
    """
    first, last = share(len(parents), threads, t)
    for context in range(first, last):
        total, mass = np.int64(0), 0.0
        for gram in range(starts[context], starts[context + 1]):
            total += counts[gram]
            mass += discounts[min(counts[gram], 3)] if kept[gram] else counts[gram]
        back_off = mass / total
        back_offs[context] = back_off
        low, high = np.int64(lower_starts[parents[context]]), lower_starts[parents[context] + 1]
        for gram in range(starts[context], starts[context + 1]):
            low = find(lower_words, low, high, words[gram])
            count = counts[gram]
            own = count - discounts[min(count, 3)] if kept[gram] else 0.0
            probabilities[gram] = own / total + back_off * lower_probabilities[low]


@inner()
def log_p_after(parents, back_offs, starts, targets, log_probabilities, node, word):
    """Return log p(word | context) for a context, given as its number."""
    total = 0.0
    while True:
        gram = find(targets, starts[node], starts[node + 1], word)
        if gram >= 0:
            return total + log_probabilities[gram]
        total += back_offs[node]
        node = parents[node]


@kernel()
def entropy_changes(parents, back_offs, starts, targets, log_probabilities, frequencies, changes, threads, t):
    """Compute the relative entropy that the removal of each n-gram of two or more words causes: (M,) contexts, (G,) n-grams.

    `fflm.models.ngram.pruning.prune_by_entropy` gives the formula.

    frequencies  (M,)  in, float64, the relative frequency of each context
    changes      (G,)  out, float64, nats; those of single words are not set
    """
    first, last = share(len(parents) - 1, threads, t)
    for node in range(first + 1, last + 1):
        rest, lower_rest = 1.0, 1.0
        for gram in range(starts[node], starts[node + 1]):
            lower = log_p_after(parents, back_offs, starts, targets, log_probabilities, parents[node], targets[gram])
            changes[gram] = lower
            rest -= math.exp(log_probabilities[gram])
            lower_rest -= math.exp(lower)
        rest, lower_rest = max(rest, 0.0), max(lower_rest, 0.0)
        for gram in range(starts[node], starts[node + 1]):
            log_p, lower = np.float64(log_probabilities[gram]), changes[gram]
            p = math.exp(log_p)
            back_off = math.log((rest + p) / (lower_rest + math.exp(lower)))
            change = p * (lower + back_off - log_p) + rest * (back_off - back_offs[node])
            changes[gram] = -frequencies[node] * change


@kernel()
def normalize_back_offs(parents, back_offs, starts, targets, log_probabilities, low, high, threads, t):
    """Set the back-off weights of the contexts from low to high, exclusive, all of one length, so that probabilities sum to 1.

    Those of shorter contexts must be set. A weight stays if the words without an n-gram have no more probability than rounding.
    """
    first, last = share(high - low, threads, t)
    for node in range(low + first, low + last):
        rest, lower_rest = 1.0, 1.0
        for gram in range(starts[node], starts[node + 1]):
            rest -= math.exp(log_probabilities[gram])
            lower_rest -= math.exp(
                log_p_after(parents, back_offs, starts, targets, log_probabilities, parents[node], targets[gram])
            )
        if rest > 0 and lower_rest > 1e-6:
            back_offs[node] = math.log(rest / lower_rest)


@compiled()
def ngrams_of_contexts(parents, children, words, starts, targets, ngrams):
    """Find the n-gram that consists of the same words as each context: (M,) contexts -> ngrams (M,), -1 if there is none.

    It belongs to the context without the newest word, which a context inherits from its parent, like the newest word itself.
    """
    shorter, newest = np.empty_like(ngrams), np.empty_like(words)
    ngrams[0] = -1
    for node in range(1, len(parents)):
        parent = parents[node]
        if parent == 0:
            shorter[node], newest[node] = 0, words[node]
        else:
            above = shorter[parent]
            shorter[node] = find(words, children[above], children[above + 1], words[node]) if above >= 0 else -1
            newest[node] = newest[parent]
        above = shorter[node]
        ngrams[node] = find(targets, starts[above], starts[above + 1], newest[node]) if above >= 0 else -1


@kernel()
def find_contexts(children, words, contexts, found, threads, t):
    """Look up contexts (B, k), oldest word first -> found (B,) int64, the index of each context, or -1 if it does not exist."""
    first, last = share(len(contexts), threads, t)
    for i in range(first, last):
        node = np.int64(0)
        for k in range(contexts.shape[1] - 1, -1, -1):
            node = find(words, children[node], children[node + 1], contexts[i, k])
            if node < 0:
                break
        found[i] = node


ENTRY = np.dtype([("key", np.uint64), ("log_p", np.float32), ("back_off", np.float32)])
"""An entry of an `Index`."""

_SIZE = np.uint64(ENTRY.itemsize)

NO_CONTEXT = np.float32(-0.0)
"""The back-off weight of n-grams that are not contexts. It has a sign, unlike a weight of 1 (`ngrams_of`)."""

NO_NGRAM = np.float32(np.nan)
"""The log-probability of entries that are not n-grams."""


class Index(NamedTuple):
    """The n-grams of a model in a hash table, in which a text is looked up backwards.

    An n-gram is found by its last word, then by the word before it, and so on: the entry of an n-gram and a word is that of the
    n-gram that also has this word, before its first. So one walk finds all n-grams that end at a place of a text, and the
    back-off weights of the contexts that end there.

    Attributes
    ----------
    entries
        (S,) `ENTRY`: those of single words come first, V + 1 with ``<s>``, in the order of their ids; then come the slots of a
        hash table with open addressing. The key is the number of the shorter n-gram's entry, times 2^32, plus the id of the word
        and 1; in free slots it is 0. Numbers in entries are never used as indices, and the last entry is free, so that a search
        in a damaged table ends, too.
    words
        V + 1.
    slots
        The number of slots in which a search may begin.
    """

    entries: npt.NDArray[np.void]
    words: int
    slots: int


@compiled()
def fill_index(parents, words, back_offs, starts, targets, log_probabilities, index):
    """Enter the n-grams and contexts of `Tables` into an `Index` with free slots; return whether there was room for all.

    parents (M,) is the number of each context without its oldest word. Of an n-gram whose end is not an n-gram, or whose
    beginning is not, because they were pruned, there are entries that are no n-grams.
    """
    entries = index.entries
    for word in range(index.words):
        entries[word].log_p, entries[word].back_off = NO_NGRAM, NO_CONTEXT
    for gram in range(starts[1]):
        entries[targets[gram]].log_p = log_probabilities[gram]
    path = np.empty(256, np.int64)  # more than the longest context
    for node in range(1, len(parents)):
        length, above = 0, np.int64(node)
        while above > 0:
            path[length] = words[above]
            length += 1
            above = np.int64(parents[above])
        entry = np.uint64(path[length - 1])
        for k in range(length - 2, -1, -1):
            entry = _insert(index, entry, path[k])
            if not entry:
                return False
        entries[entry].back_off = back_offs[node] + np.float32(0)  # -0 becomes 0
        for gram in range(starts[node], starts[node + 1]):
            entry = np.uint64(targets[gram])
            for k in range(length - 1, -1, -1):
                entry = _insert(index, entry, path[k])
                if not entry:
                    return False
            entries[entry].log_p = log_probabilities[gram]
    return True


@inner()
def _insert(index, entry, word):
    """Return the entry of an n-gram and a word, which is made if there is none; 0 if there is no room."""
    entries, key = index.entries, _key(entry, word)
    slot = _slot(index.words, index.slots, key)
    while entries[slot].key != key:
        if entries[slot].key == 0:
            if slot == len(entries) - 1:
                return np.uint64(0)
            entries[slot].key, entries[slot].log_p, entries[slot].back_off = key, NO_NGRAM, NO_CONTEXT
            break
        slot += ONE
    return slot


@inner()
def _key(entry, word):
    """Return the key of an n-gram, given by its entry, and a word."""
    return (np.uint64(entry) << np.uint64(32)) | (np.uint64(word) + ONE)


@inner()
def _slot(words, slots, key):
    """Return the entry at which the search for a key begins."""
    hashed = (key * FACTOR) >> np.uint64(32)
    return np.uint64(words) + ((hashed * np.uint64(slots)) >> np.uint64(32))


@inner()
def _find(entries, words, slots, entry, word):
    """Return the entry of an n-gram, given by its entry, and a word; 0, which is that of a single word, if there is none.

    It takes parts of an `Index`, because to take an array from a tuple counts a reference, which takes long.
    """
    key = _key(entry, word)
    slot = _slot(words, slots, key)
    while entries[slot].key != key:
        if entries[slot].key == 0:
            return np.uint64(0)
        slot += ONE
    return slot


@inner()
def _prefetch(entries, words, slots, entry, word):
    """Prefetch where the search for the entry of an n-gram, given by its entry, and a word begins."""
    prefetch(entries, _SIZE * _slot(words, slots, _key(entry, word)))


@compiled()
def lengths_of(index):
    """Return the number of words of each entry of an `Index` (S,), uint8; 0 in free slots."""
    lengths = np.zeros(len(index.entries), np.uint8)
    lengths[: index.words] = 1
    length, more = 1, True
    while more:
        more = False
        for entry in range(index.words, len(lengths)):
            key = index.entries[entry].key
            if key != 0 and lengths[entry] == 0 and lengths[key >> np.uint64(32)] == length:
                lengths[entry] = length + 1
                more = True
        length += 1
    return lengths


def ngrams_of(ngrams, word, context, back_offs):
    """Look up a word and the words before it, a context (n,), the newest first, in an `Index` or a `Trie`.

    Sets the weights of the contexts of 1 to n + 1 words that end with the word, (n + 1,), 0 where there is none. Returns the
    log-probability of the longest n-gram, its length (0 if the word is ``<s>``), and the length of the longest context.
    """


@overload(ngrams_of)
def _choose_walk(ngrams, word, context, back_offs):
    """Return the function for the type of ``ngrams``, so that Numba does not compile the other one."""
    return walk_trie if ngrams.instance_class is Trie else _walk_index


def _walk_index(ngrams, word, context, back_offs):
    """Do what `ngrams_of` does, in an `Index`."""
    entries, words, slots = ngrams.entries, ngrams.words, ngrams.slots
    entry = min(np.uint64(word), np.uint64(words - 1))  # a state may be of another model, and have its words
    log_p, length, longest = NO_NGRAM, 0, 0
    for k in range(len(context) + 1):
        if k > 0:
            entry = _find(entries, words, slots, entry, context[k - 1])
            if not entry:
                for rest in range(k, len(context) + 1):
                    back_offs[rest] = 0
                break
        own, back_offs[k] = entries[entry].log_p, entries[entry].back_off
        if not np.isnan(own):
            log_p, length = own, k + 1
        if back_offs[k] != 0 or not np.signbit(back_offs[k]):
            longest = k + 1
    return log_p, length, longest


@inner()
def log_p_of(log_p, length, back_offs, count):
    """Return the log-probability of a word, given what `ngrams_of` found of it, and of the ``count`` words before it.

    Every word has an n-gram of length 1, except for ``<s>`` and in a damaged index.
    """
    for k in range(max(length, 1), count + 1):
        log_p += back_offs[k - 1]
    return log_p


@kernel()
def ngram_log_probabilities(ngrams, contexts, wanted, results, threads, t):
    """Compute log p(word | context), nats, from an `Index` or `Trie`: contexts (B, n), wanted (B, W) words -> results (B, W)."""
    first, last = share(len(wanted), threads, t)
    count = contexts.shape[1]
    before, back_offs = np.zeros(count, np.float32), np.empty(count + 1, np.float32)
    for i in range(first, last):
        context = contexts[i, ::-1]
        if count > 0:
            ngrams_of(ngrams, context[0], context[1:], before)
        for k in range(wanted.shape[1]):
            log_p, length, _ = ngrams_of(ngrams, wanted[i, k], context, back_offs)
            results[i, k] = log_p_of(log_p, length, before, count)


class LineTables(NamedTuple):
    """What the kernels that score lines and words read.

    Attributes
    ----------
    ngrams
        The n-grams; of a quantized model, a `Trie`.
    words
        V + 1.
    padding, end
        The word that fills contexts before a line and, if ``end`` is a word and not -1, up to the last one before.
    order
        The length of the longest n-grams.
    start
        log p of the word V, ``<s>``, which the tables do not predict; nats.
    """

    ngrams: Index | Trie
    words: int
    padding: int
    end: int
    order: int
    start: float


_BATCH = 1024  # number of words and padding that are looked up together, so that the processor waits for memory once


@compiled()
def ngram_losses_of_lines(ids, borders, model):
    """Score lines as texts: ids (N,), where each begins (L + 1,), packed `LineTables` -> -log p of their words (N,), nats."""
    losses = np.empty(len(ids), np.float32)
    _score_pieces(ids, borders, False, model.content, losses)
    return losses


@kernel()
def ngram_losses_of_text(ids, start, model, losses, threads, t):
    """Score a text (N,) with packed `LineTables`: losses (N - start,), nats, of the words from ``start`` on."""
    low, high = share(len(ids) - start, threads, t)
    size = max(1, _BATCH // model.content.order - 2)  # of a piece that fits into a batch
    borders = np.empty((high - low + size - 1) // size + 1, np.int64)
    for piece in range(len(borders)):
        borders[piece] = start + min(low + piece * size, high)
    _score_pieces(ids, borders, True, model.content, losses[low:high])


@inner()
def _score_pieces(ids, borders, joined, tables, losses):
    """Score pieces of ids (N,): losses (M,), nats, of the M words from the first of the borders (P + 1,) to the last.

    ``joined`` is whether contexts cross borders.
    """
    window, pieces, room = tables.order - 1, len(borders) - 1, np.int64(_BATCH)
    for piece in range(pieces):
        room = max(room, 1 + (borders[piece + 1] - borders[piece] + 1) * (window + 1))
    words, places, active = np.empty(room, np.uint32), np.empty(room, np.uint32), np.empty(room, np.uint32)
    found, ends = np.empty(room, np.uint32), np.empty(room, np.uint32)
    log_p, back_offs = np.zeros(room, np.float32), np.zeros((2, room), np.float32)
    piece = 0
    while piece < pieces:
        words[0] = tables.padding  # before the padding of the first piece, because its look-ups go one word too far
        first, used, count, many = borders[piece] - borders[0], np.int64(1), np.int64(0), np.int64(0)  # literals have other types
        while piece < pieces and used + (borders[piece + 1] - borders[piece] + 1) * (window + 1) <= room:
            low, high = borders[piece], borders[piece + 1]
            begin = 0 if joined else low
            used, count, many = _lay_out(ids, begin, low, high, tables, words, used, places, count, active, many)
            piece += 1
        _look_up(tables.ngrams, window, words[:used], active[:many], found, ends, log_p, back_offs)
        for i in range(count):
            losses[first + i] = -log_p[places[i]]


@inner()
def _lay_out(ids, begin, low, high, tables, words, used, places, count, active, many):
    """Append the words ``low`` to ``high`` of ids (N,) to others, after the contexts of the first one and of those after ends.

    Contexts reach back to ``begin``, and padding is before. ``words`` has ``used`` words and padding, ``places`` the ``count``
    places of words, and ``active`` the ``many`` places at which n-grams are looked up: those of words, and of the one before the
    first, whose contexts matter. Returns the three numbers.
    """
    begins, window = True, tables.order - 1
    for i in range(low, high):
        if begins:
            length = 0
            while length < window and i - length > begin and ids[i - length - 1] != tables.end:
                length += 1
            for k in range(window, 0, -1):
                words[used] = min(ids[i - k], tables.words - 1) if k <= length else tables.padding
                used += 1
            if window:
                active[many] = used - 1
                many += 1
        words[used] = min(ids[i], tables.words - 1)
        places[count] = active[many] = used
        used, count, many = used + 1, count + 1, many + 1
        begins = ids[i] == tables.end
    return used, count, many


def _look_up(ngrams, window, words, active, found, ends, log_p, back_offs):
    """Set log_p at the active places (A,) of words (N,), looking up the n-grams of all places together, shorter ones first.

    found and ends (N,), uint32, and back_offs (2, N), whose numbers are finite, are scratch: the longest n-gram that was found at
    each place, and the weights of the contexts of k words that end there, in row k % 2.
    """


@overload(_look_up)
def _choose_look_up(ngrams, window, words, active, found, ends, log_p, back_offs):
    """Return the function for the type of ``ngrams``, so that Numba does not compile the other one."""
    return look_up_in_trie if ngrams.instance_class is Trie else _look_up_in_index


def _look_up_in_index(ngrams, window, words, active, found, ends, log_p, back_offs):
    """Do what `_look_up` does, in an `Index`."""
    entries, size, slots, many = ngrams.entries, ngrams.words, ngrams.slots, len(active)
    for a in range(many):
        i = active[a]
        entry = entries[words[i]]
        found[i], log_p[i], back_offs[1, i] = words[i], entry.log_p, entry.back_off
        if window:
            _prefetch(entries, size, slots, words[i], words[i - ONE])
    for k in range(1, window + 1):
        before, after = back_offs[k % 2], back_offs[(k + 1) % 2]
        for i in range(1, len(words)):
            log_p[i] += before[i - 1]
        clear(after[: len(words)])
        alive, distance = 0, np.uint64(k)
        for a in range(many):
            i = active[a]
            number = _find(entries, size, slots, found[i], words[i - distance])
            if not number:
                continue
            own, after[i] = entries[number].log_p, entries[number].back_off
            found[i] = number
            if not np.isnan(own):
                log_p[i] = own
            if k < window:
                _prefetch(entries, size, slots, number, words[i - distance - ONE])
            active[alive] = i
            alive += 1
        many = alive


ngram_score_lines = line_scorer("ngram_lines", ngram_losses_of_lines)


@compiled()
def ngram_score_after(state, word, after, model):
    """Return the loss of a word after a state, and the length of the n-gram that was found.

    state, after  (n + 1,)  in and out, int32, may be the same: a number of words, these, the newest first, and zeros. They are
                            those at the end of the text that a context of the model has, as in KenLM: all others don't matter.
    model                   in, `LineTables`, packed
    """
    tables = model.content
    length = min(np.int64(state[0]), tables.order - 1)
    context = state[1 : 1 + length]
    before, back_offs = np.empty(length, np.float32), np.empty(length + 1, np.float32)
    if length > 0:
        ngrams_of(tables.ngrams, context[0], context[1:], before)
    log_p, found, kept = ngrams_of(tables.ngrams, word, context, back_offs)
    if found == 0:
        log_p, found = np.float32(tables.start), 1
    loss = -log_p_of(log_p, found, before, length)
    kept = min(kept, len(state) - 1)
    for k in range(len(state) - 1, 1, -1):
        after[k] = state[k - 1] if k <= kept else 0
    if len(state) > 1:
        after[1] = word if kept else 0
    after[0] = kept
    return loss, found


@kernel()
def ngram_distributions(tables, contexts, results, threads, t):
    """Compute log p(word | context) of all words from `Tables`: contexts (B, n) -> results (B, V), nats."""
    children, words, back_offs, starts, targets, log_probabilities = tables
    first, last = share(len(contexts), threads, t)
    for i in range(first, last):
        row, node = results[i], np.int64(0)
        for word in range(len(row)):
            row[word] = log_probabilities[word]
        for k in range(contexts.shape[1] - 1, -1, -1):
            node = find(words, children[node], children[node + 1], contexts[i, k])
            if node < 0:
                break
            back_off = back_offs[node]
            for word in range(len(row)):
                row[word] += back_off
            for gram in range(starts[node], starts[node + 1]):
                row[targets[gram]] = log_probabilities[gram]
