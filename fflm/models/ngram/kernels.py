"""Numba kernels of n-gram models: sorting the positions of a text by context, interpolation, and lookup.

`fflm.models.ngram.model.Tables` describes the layout of the tables. Shapes: N tokens of the text, P predicted positions, M
contexts, G n-grams, B predictions, n context words, V words of the vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from fflm.backend.cpu.launching import kernel, share
from fflm.compiling import compiled
from fflm.text.kernels import encode_lines

ONE = np.uint64(1)
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd and irregular: 2^64 over the golden ratio

LOOKUP_COST = 500
"""Cost of a search for a word, in numbers processed, the unit of `fflm.backend.cpu.launching.shares_of`."""


@compiled()
def context_lengths(text, start, longest):
    """Return the number of context words at each position: ``longest``, or fewer after the most recent start symbol.

    text (N,) ids, the first one a padding symbol; start: id of the start symbol -> (N,) uint8.
    """
    lengths = np.empty(len(text), np.uint8)
    available = 0
    for place in range(len(text)):
        lengths[place] = min(available, longest)
        available = 1 if text[place] == start else available + 1
    return lengths


@compiled()
def sort_by_column(text, lengths, distance, absent, places, keys, result):
    """Sort positions by the word ``distance`` positions before, in one stable pass of a radix sort.

    text      (N,)  in, ids
    lengths   (N,)  in, number of context words at each position
    absent          in, the key of words outside the context, larger than all ids
    places    (P,)  in, the positions
    keys      (P,)  scratch
    result    (P,)  out, the sorted positions
    """
    ends = np.zeros(absent + 2, np.int64)
    for i in range(len(places)):
        place = places[i]
        key = text[place - distance] if lengths[place] >= distance else absent
        keys[i] = key
        ends[key + 1] += 1
    for key in range(absent + 1):
        ends[key + 1] += ends[key]
    for i in range(len(places)):
        key = keys[i]
        result[ends[key]] = places[i]
        ends[key] += 1


@kernel()
def shared_words(text, lengths, places, shared, threads):
    """Count the most recent context words that each sorted position shares with the previous one: places (P,) -> shared (P,)."""
    for t in prange(threads):
        first, last = share(len(places), threads, t)
        for i in range(first, last):
            count = 0
            if i > 0:
                a, b = np.int64(places[i - 1]), np.int64(places[i])
                most = min(lengths[a], lengths[b])
                while count < most and text[a - count - 1] == text[b - count - 1]:
                    count += 1
            shared[i] = count


@njit
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
    for t in prange(threads):
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


@njit
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
def entropy_changes(parents, back_offs, starts, targets, log_probabilities, frequencies, changes, threads):
    """Compute the relative entropy that the removal of each n-gram of two or more words causes: (M,) contexts, (G,) n-grams.

    `fflm.models.ngram.pruning.prune_by_entropy` gives the formula.

    frequencies  (M,)  in, float64, the relative frequency of each context
    changes      (G,)  out, float64, nats; those of single words are not set
    """
    for t in prange(threads):
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
def normalize_back_offs(parents, back_offs, starts, targets, log_probabilities, low, high, threads):
    """Set the back-off weights of the contexts from low to high, exclusive, all of one length, so that probabilities sum to 1.

    Those of shorter contexts must be set. A weight stays if the words without an n-gram have no more probability than rounding.
    """
    for t in prange(threads):
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
def find_contexts(children, words, contexts, found, threads):
    """Look up contexts (B, k), oldest word first -> found (B,) int64, the index of each context, or -1 if it does not exist."""
    for t in prange(threads):
        first, last = share(len(contexts), threads, t)
        for i in range(first, last):
            node = np.int64(0)
            for k in range(contexts.shape[1] - 1, -1, -1):
                node = find(words, children[node], children[node + 1], contexts[i, k])
                if node < 0:
                    break
            found[i] = node


class Index(NamedTuple):
    """The n-grams of a model, with hash tables with open addressing that find n-grams and contexts.

    Attributes
    ----------
    children, words, back_offs, starts, targets, log_probabilities
        Those of `fflm.models.ngram.model.Tables`.
    context_slots, gram_slots
        (S,) uint32: the slots of the contexts and of the n-grams, except for the root's: their numbers + 1, and 0 in free slots.
    """

    children: npt.NDArray[np.uint32]
    words: npt.NDArray[np.uint32]
    back_offs: npt.NDArray[np.float32]
    starts: npt.NDArray[np.uint32]
    targets: npt.NDArray[np.uint32]
    log_probabilities: npt.NDArray[np.float32]
    context_slots: npt.NDArray[np.uint32]
    gram_slots: npt.NDArray[np.uint32]


@compiled()
def index_words(borders, words, first):
    """Return the slots (S,) of the words (N,) from ``first`` on, for `look_up`.

    Node i has the words ``borders[i]`` to ``borders[i + 1]``, exclusive.
    """
    size = np.int64(8)
    while size < 2 * (len(words) - first):
        size *= 2
    slots, last = np.zeros(size, np.uint32), np.uint64(size - 1)
    for node in range(len(borders) - 1):
        for i in range(max(borders[node], first), borders[node + 1]):
            slot = slot_of(node, words[i], last)
            while slots[slot]:
                slot = (slot + ONE) & last
            slots[slot] = i + 1
    return slots


@njit
def slot_of(node, word, last):
    """Return the first of the slots 0 to ``last`` in which to look for a word of a node."""
    key = (np.uint64(node) * FACTOR + np.uint64(word)) * FACTOR
    return (key ^ (key >> np.uint64(32))) & last


@njit
def look_up(slots, borders, words, node, word):
    """Return the index of a word among the words borders[node] to borders[node + 1], or -1 if it is not there."""
    last = np.uint64(len(slots) - 1)
    slot = slot_of(node, word, last)
    while slots[slot]:
        i = np.int64(slots[slot]) - 1
        if words[i] == word and borders[node] <= i < borders[node + 1]:
            return i
        slot = (slot + ONE) & last
    return np.int64(-1)


@njit
def context_nodes(slots, children, words, context, nodes):
    """Fill ``nodes`` with the contexts of 0, 1, ... words of a context (n,), newest word first; return the longest's length."""
    nodes[0] = 0
    for k in range(len(context)):
        node = look_up(slots, children, words, nodes[k], context[k])
        if node < 0:
            return k
        nodes[k + 1] = node
    return len(context)


@njit
def loss_after(slots, starts, targets, log_probabilities, back_offs, nodes, longest, word):
    """Look up a word after contexts of 0 to ``longest`` words: return -log p, and the length of the n-gram that was found."""
    gram, length = np.int64(word), longest
    while length > 0:
        found = look_up(slots, starts, targets, nodes[length], word)
        if found >= 0:
            gram = found
            break
        length -= 1
    total = log_probabilities[gram]
    for k in range(length + 1, longest + 1):
        total += back_offs[nodes[k]]
    return -total, length + 1


@kernel()
def ngram_losses(index, contexts, wanted, losses, threads):
    """Compute -log p(wanted | context) from an `Index`: contexts (B, n), wanted (B,) -> losses (B,), nats."""
    children, words, back_offs, starts, targets, log_probabilities, context_slots, gram_slots = index
    for t in prange(threads):
        first, last = share(len(wanted), threads, t)
        nodes = np.empty(contexts.shape[1] + 1, np.int64)
        for i in range(first, last):
            longest = context_nodes(context_slots, children, words, contexts[i, ::-1], nodes)
            losses[i], _ = loss_after(gram_slots, starts, targets, log_probabilities, back_offs, nodes, longest, wanted[i])


class LineTables(NamedTuple):
    """What the kernels that score lines and words read.

    Attributes
    ----------
    lookup
        The n-grams.
    padding, end
        The word that fills contexts before a line and, if ``end`` is a word and not -1, up to the last one before.
    order
        The length of the longest n-grams.
    start
        log p of the word V, ``<s>``, which the tables do not predict; nats.
    """

    lookup: Index
    padding: int
    end: int
    order: int
    start: float


@compiled()
def ngram_losses_of_lines(ids, borders, model):
    """Score lines as texts: ids (N,), where each begins (L + 1,), packed `LineTables` -> -log p of their words (N,), nats."""
    index, padding, end, order, _ = model.content
    children, words, back_offs, starts, targets, log_probabilities, context_slots, gram_slots = index
    context, nodes, losses = np.empty(order - 1, np.int32), np.empty(order, np.int64), np.empty(len(ids), np.float32)
    for line in range(len(borders) - 1):
        for k in range(order - 1):
            context[k] = padding
        for i in range(borders[line], borders[line + 1]):
            word = ids[i]
            longest = context_nodes(context_slots, children, words, context, nodes)
            losses[i], _ = loss_after(gram_slots, starts, targets, log_probabilities, back_offs, nodes, longest, word)
            for k in range(order - 2, 0, -1):
                context[k] = padding if word == end else context[k - 1]
            if order > 1:
                context[0] = padding if word == end else word
    return losses


@compiled()
def ngram_score_encoded(ids, borders, model):
    """Score lines as texts: ids (N,), where each begins (L + 1,), packed `LineTables` -> log p of lines (L,), nats."""
    losses, scores = ngram_losses_of_lines(ids, borders, model), np.zeros(len(borders) - 1)
    for line in range(len(scores)):
        for i in range(borders[line], borders[line + 1]):
            scores[line] -= losses[i]
    return scores


@compiled()
def ngram_score_lines(text, pieces, model):
    """Score lines: a text and pieces, as `encode_lines` takes them, and packed `LineTables`.

    Returns log p of lines (L,), nats, and whether all pieces are known; if not, the scores mean nothing.
    """
    ids, borders, known = encode_lines(text, pieces)
    return ngram_score_encoded(ids, borders if known else borders[:1], model), known


@compiled()
def ngram_score_after(state, word, after, model):
    """Return the loss of a word after a state, and the length of the n-gram that was found.

    state, after  (n + 1,)  in and out, int32, may be the same: a number of words, these, the newest first, and zeros. They are
                            those at the end of the text that a context of the model has, as in KenLM: all others don't matter.
    model                   in, `LineTables`, packed
    """
    children, words, back_offs, starts, targets, log_probabilities, context_slots, gram_slots = model.content.lookup
    nodes = np.empty(len(state), np.int64)
    length = state[0]
    longest = context_nodes(context_slots, children, words, state[1 : 1 + length], nodes)
    if word < starts[1]:
        loss, found = loss_after(gram_slots, starts, targets, log_probabilities, back_offs, nodes, longest, word)
    else:
        loss, found = back_offs.dtype.type(-model.content.start), 1
        for k in range(1, longest + 1):
            loss -= back_offs[nodes[k]]
    node, kept = look_up(context_slots, children, words, 0, word), 0
    while node >= 0:
        kept += 1
        if kept > length or kept == len(state) - 1:
            break
        node = look_up(context_slots, children, words, node, state[kept])
    for k in range(len(state) - 1, 1, -1):
        after[k] = state[k - 1] if k <= kept else 0
    if len(state) > 1:
        after[1] = word if kept else 0
    after[0] = kept
    return loss, found


@kernel()
def ngram_distributions(index, contexts, results, threads):
    """Compute log p(word | context) of all words from an `Index`: contexts (B, n) -> results (B, V), nats."""
    children, words, back_offs, starts, targets, log_probabilities, context_slots, _ = index
    for t in prange(threads):
        first, last = share(len(contexts), threads, t)
        nodes = np.empty(contexts.shape[1] + 1, np.int64)
        for i in range(first, last):
            results[i] = log_probabilities[: results.shape[1]]
            for k in range(1, context_nodes(context_slots, children, words, contexts[i, ::-1], nodes) + 1):
                node = nodes[k]
                results[i] += back_offs[node]
                for gram in range(starts[node], starts[node + 1]):
                    results[i, targets[gram]] = log_probabilities[gram]
