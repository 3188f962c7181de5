"""A Numba kernel that numbers the words of a batch."""

import numpy as np

from fflm.compiling import compiled
from fflm.instructions import ones, trailing_zeros

_ONE, _SIX, _LOW = np.uint64(1), np.uint64(6), np.uint64(63)


@compiled()
def number_words(words, size, first):
    """Give numbers to the distinct words of a batch, so that arrays with one row per word need only the rows of these.

    words  (N,), in, int32, ids below ``size``, or -1 in places without a word
    first  (R,), in, int32, words in ascending order that have the numbers 0 to R - 1, whether they are in ``words`` or not

    Returns the word of each number, (E,), int32, and the number of each of ``words``, (N,), int32, or -1. The numbers after those
    of ``first`` are in ascending order of the words.

    Raises an IndexError if an id is out of range.
    """
    # A bit for each word that has a number after those of `first`. The numbers of words are written to a table where there are
    # words only, so that the system provides little memory for a large vocabulary.
    marks = np.zeros(size // 64 + 1, np.uint64)
    for i in range(len(words)):
        if not -1 <= words[i] < size:
            raise IndexError("a word is not in the vocabulary")
        if words[i] >= 0:
            word = np.uint64(words[i])
            marks[word >> _SIX] |= _ONE << (word & _LOW)
    for i in range(len(first)):
        if not 0 <= first[i] < size:
            raise IndexError("a word is not in the vocabulary")
        word = np.uint64(first[i])
        marks[word >> _SIX] &= ~(_ONE << (word & _LOW))
    count = len(first)
    for k in range(len(marks)):
        count += ones(marks[k])
    distinct, table, numbers = np.empty(count, np.int32), np.empty(size, np.int32), np.empty(len(words), np.int32)
    for i in range(len(first)):
        distinct[i] = first[i]
    place = len(first)
    for k in range(len(marks)):
        mark = marks[k]
        while mark:
            distinct[place] = 64 * k + trailing_zeros(mark)
            mark &= mark - _ONE
            place += 1
    for i in range(count):
        table[distinct[i]] = i
    for i in range(len(words)):
        numbers[i] = table[words[i]] if words[i] >= 0 else -1
    return distinct, numbers
