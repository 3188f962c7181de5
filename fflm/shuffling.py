"""Shuffling of the examples of an epoch, in bounded memory."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 22
"""Number of positions that are shuffled at a time, 32 MiB."""


def shuffled(count: int, batch_size: int, seed: int, epoch: int, start_batch: int = 0) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the positions of an epoch in random order.

    The order depends only on ``seed`` and ``epoch``. Positions are shuffled within blocks of ``BLOCK``, and the blocks are
    shuffled, so that memory does not grow with the length of the text. Batches may contain positions of several blocks.

    Parameters
    ----------
    count
        Number of positions.
    batch_size
        Number of positions in a batch; the last batch of an epoch may be smaller.
    seed, epoch
        Random seed, and number of the epoch; not negative.
    start_batch
        Number of batches to skip; the remaining batches are the same as without skipping.

    Yields
    ------
    numpy.ndarray
        The positions of a batch, (batch_size,), int64.
    """
    skip = start_batch * batch_size
    rest = np.empty(0, np.int64)
    for block in _generator(seed, epoch, 0).permutation(-(-count // BLOCK)):
        first = int(block) * BLOCK
        length = min(BLOCK, count - first)
        if skip >= length:
            skip -= length
            continue
        order = first + _generator(seed, epoch, 1 + int(block)).permutation(length)
        rest = np.concatenate((rest, order[skip:]))
        skip = 0
        whole = len(rest) - len(rest) % batch_size
        for start in range(0, whole, batch_size):
            yield rest[start : start + batch_size]
        rest = rest[whole:]
    if len(rest):
        yield rest


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Return a random generator of an epoch: stream 0 shuffles the blocks, stream 1 + b the positions in block b."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, stream))))
