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
    # Row 0 is for the words of `first`, and row 1 for the others: a bit for each word that has a number, and the number of the
    # first of 64 words. They take less memory than an array with a number for each word of the vocabulary.
    marks = np.zeros((2, size // 64 + 1), np.uint64)
    below = np.empty((2, size // 64 + 1), np.int32)
    for i in range(len(first)):
        if not 0 <= first[i] < size:
            raise IndexError("a word is not in the vocabulary")
        word = np.uint64(first[i])
        marks[0, word >> _SIX] |= _ONE << (word & _LOW)
    for i in range(len(words)):
        if not -1 <= words[i] < size:
            raise IndexError("a word is not in the vocabulary")
        if words[i] >= 0:
            word = np.uint64(words[i])
            marks[1, word >> _SIX] |= _ONE << (word & _LOW)
    own, count = 0, len(first)
    for k in range(marks.shape[1]):
        marks[1, k] &= ~marks[0, k]
        below[0, k], below[1, k] = own, count
        own += ones(marks[0, k])
        count += ones(marks[1, k])
    distinct, numbers = np.empty(count, np.int32), np.empty(len(words), np.int32)
    for i in range(len(first)):
        distinct[i] = first[i]
    place = len(first)
    for k in range(marks.shape[1]):
        mark = marks[1, k]
        while mark:
            distinct[place] = 64 * k + trailing_zeros(mark)
            mark &= mark - _ONE
            place += 1
    for i in range(len(words)):
        numbers[i] = -1
        if words[i] >= 0:
            word = np.uint64(words[i])
            block, bit = word >> _SIX, _ONE << (word & _LOW)
            row = 1 if marks[1, block] & bit else 0
            numbers[i] = below[row, block] + ones(marks[row, block] & (bit - _ONE))
    return distinct, numbers
