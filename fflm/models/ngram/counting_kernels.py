"""Numba kernels that count n-grams: sorting the positions of a text by context, merging sorted n-grams, and adjusted counts.

An n-gram of the highest order n, or a shorter one at the start of the text or of a sentence, is a row (n + 1,) of uint32: the
words of its context, the newest first, V + 1 for each word that there is not; its last word; and how often it occurs. Rows are
sorted by these numbers. Shapes: N tokens of a text, P predicted positions, L rows, R runs, V words of the vocabulary.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.compiling import compiled, inner

KNOWN = 5
"""Counts from this one on are tallied together."""


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


@compiled()
def collect(text, lengths, places, absent, first, rows):
    """Write the distinct n-grams at sorted positions (P,), from number ``first`` on, until rows (L, n + 1) are full.

    text, lengths, absent are as for `sort_by_column`. Returns the number of the first position that was not used, and the number
    of rows.
    """
    count, longest = 0, rows.shape[1] - 2
    for i in range(first, len(places)):
        place = np.int64(places[i])
        length = lengths[place]
        same = count > 0 and rows[count - 1, longest] == text[place]
        for k in range(longest):
            if not same:
                break
            word = text[place - k - 1] if k < length else absent
            same = rows[count - 1, k] == word
        if same:
            rows[count - 1, longest + 1] += np.uint32(1)
            continue
        if count == len(rows):
            return i, count
        for k in range(longest):
            rows[count, k] = text[place - k - 1] if k < length else absent
        rows[count, longest], rows[count, longest + 1] = text[place], 1
        count += 1
    return len(places), count


@inner()
def _less(rows, at, a, b):
    """Return whether the next row of run a comes before that of run b."""
    for k in range(rows.shape[2] - 1):
        one, other = rows[a, at[a], k], rows[b, at[b], k]
        if one != other:
            return one < other
    return False


@inner()
def _sift(rows, at, heap, size, place):
    """Move the run at a place of a binary heap of runs down to where it belongs."""
    run = heap[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _less(rows, at, heap[child + 1], heap[child]):
            child += 1
        if not _less(rows, at, heap[child], run):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = run


@compiled()
def make_heap(rows, at, heap):
    """Order runs (R,), of which each has a next row, as a heap: rows (R, L, n + 1), at (R,) the number of each one's next row."""
    for place in range(len(heap) // 2 - 1, -1, -1):
        _sift(rows, at, heap, len(heap), place)


@compiled()
def merge(rows, at, filled, heap, size, count, merged):
    """Merge sorted runs, until a run has no rows left in memory, or the result is full; rows of the same n-gram become one.

    rows    (R, L, n + 1)  in, rows of each run
    at      (R,)           in and out, the number of each run's next row
    filled  (R,)           in, the number of rows of each run
    heap    (R,)           in and out, the runs that have rows, ``size`` of them, as a heap except for the first
    merged  (K, n + 1)     in and out, the result, of which ``count`` rows are there

    Returns the number of rows of the result. The first run of the heap has no rows left, unless the result is full.
    """
    width = rows.shape[2]
    while True:
        _sift(rows, at, heap, size, 0)
        run = heap[0]
        row = rows[run, at[run]]
        same = count > 0
        for k in range(width - 1):
            if not same:
                break
            same = merged[count - 1, k] == row[k]
        if same:
            merged[count - 1, width - 1] += row[width - 1]
        else:
            if count == len(merged):
                return count
            for k in range(width):
                merged[count, k] = row[k]
            count += 1
        at[run] += 1
        if at[run] == filled[run]:
            return count


class Levels(NamedTuple):
    """The contexts and n-grams that `add_rows` has completed, for each number of context words from 0 to n - 1.

    Attributes
    ----------
    words
        (n, C), uint32: the oldest word of each context.
    children, starts
        (n, C), uint32: how many contexts one word longer, and how many n-grams of contexts of this length, there are up to each
        context, with its own.
    targets, counts, occurrences
        (n, G), uint32: the last word, the adjusted count, and the number of occurrences of each n-gram. Without pruning, nothing
        needs the last ones, and G is 0.
    used
        (3, n), int64: how many are there of ``words``, of ``children``, and of ``targets``.
    """

    words: npt.NDArray[np.uint32]
    children: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.uint32]
    targets: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]
    occurrences: npt.NDArray[np.uint32]
    used: npt.NDArray[np.int64]


class Open(NamedTuple):
    """The contexts that contain the row that was read last, one of each length, to which more n-grams may be added.

    Attributes
    ----------
    context
        (n,), uint32: the words of the longest of them, the newest first.
    depth
        (1,), int64: how many these are.
    counts, occurrences
        (n, V), uint32: the adjusted count of each word after the context of each length but the longest, so far, and how often it
        occurs there. Without pruning, the latter is (n, 0).
    touched, sizes
        (n, V), uint32, and (n,), int64: the words whose count is not 0, and their number.
    totals
        (2, n), int64: the number of contexts, open ones included, and of n-grams that were completed, of each length.
    tallies
        (n, `KNOWN`), int64: the number of n-grams of each adjusted count, larger counts not included.
    """

    context: npt.NDArray[np.uint32]
    depth: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]
    occurrences: npt.NDArray[np.uint32]
    touched: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int64]
    totals: npt.NDArray[np.int64]
    tallies: npt.NDArray[np.int64]


@compiled()
def add_rows(rows, absent, opened, levels):
    """Add sorted rows (L, n + 1) to the contexts that are open, and complete those to which no later row belongs.

    The adjusted count of an n-gram of the highest order is the number of its occurrences. That of a shorter one is the number of
    distinct words that precede it, plus its occurrences at the start of the text or of a sentence, where no word does.
    """
    longest = rows.shape[1] - 2
    for i in range(len(rows)):
        row = rows[i]
        length = 0
        while length < longest and row[length] != absent:
            length += 1
        common, depth = 0, opened.depth[0]
        while common < min(depth, length) and opened.context[common] == row[common]:
            common += 1
        while depth > common:
            _close(depth, longest, opened, levels)
            depth -= 1
        while depth < length:
            levels.words[depth + 1, levels.used[0, depth + 1]] = row[depth]
            levels.used[0, depth + 1] += 1
            opened.totals[0, depth + 1] += 1
            opened.context[depth] = row[depth]
            depth += 1
        opened.depth[0] = depth
        word, count = row[longest], row[longest + 1]
        if length == longest > 0:
            _complete(length, word, count, count, opened, levels)
            _add(length - 1, word, np.uint32(1), count, opened)
        else:
            _add(length, word, count, count, opened)


@compiled()
def close_all(longest, opened, levels):
    """Complete all contexts but the empty one."""
    for depth in range(opened.depth[0], 0, -1):
        _close(depth, longest, opened, levels)
    opened.depth[0] = 0


@inner()
def _add(depth, word, count, occurrences, opened):
    """Add to the counts of a word after the open context of a length, which is not the longest."""
    counts = opened.counts[depth]
    if counts[word] == 0:
        opened.touched[depth, opened.sizes[depth]] = word
        opened.sizes[depth] += 1
    counts[word] += count
    if opened.occurrences.shape[1] > 0:
        opened.occurrences[depth, word] += occurrences


@inner()
def _complete(depth, word, count, occurrences, opened, levels):
    """Append an n-gram to those that are completed."""
    at = levels.used[2, depth]
    levels.targets[depth, at], levels.counts[depth, at] = word, count
    if levels.occurrences.shape[1] > 0:
        levels.occurrences[depth, at] = occurrences
    levels.used[2, depth] += 1
    opened.totals[1, depth] += 1
    if count < KNOWN:
        opened.tallies[depth, count] += 1


@inner()
def _close(depth, longest, opened, levels):
    """Complete the open context of a length, at least 1, and add its n-grams to the context that is one word shorter."""
    if depth < longest:
        words = opened.touched[depth, : opened.sizes[depth]]
        _sort(words)
        counts = opened.counts[depth]
        for word in words:
            occurrences = np.uint32(0)
            if opened.occurrences.shape[1] > 0:
                occurrences = opened.occurrences[depth, word]
                opened.occurrences[depth, word] = 0
            _complete(depth, word, counts[word], occurrences, opened, levels)
            _add(depth - 1, word, np.uint32(1), occurrences, opened)
            counts[word] = 0
        opened.sizes[depth] = 0
    at = levels.used[1, depth]
    levels.children[depth, at] = opened.totals[0, depth + 1] if depth < longest else 0
    levels.starts[depth, at] = opened.totals[1, depth]
    levels.used[1, depth] += 1


@inner()
def _sort(words):
    """Sort words in place; they are often few, or in ascending order already."""
    if len(words) > 64:
        words.sort()
        return
    for i in range(1, len(words)):
        word, at = words[i], i
        while at > 0 and words[at - 1] > word:
            words[at] = words[at - 1]
            at -= 1
        words[at] = word
