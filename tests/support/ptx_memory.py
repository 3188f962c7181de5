"""The memory of a GPU, as the PTX interpreter uses it."""

import numpy as np
from ptx_interpreter import BLOCKS, PtxError

GAP = 256
"""Bytes between two arrays, at least, so that an access beyond the end of one does not meet the next."""


def unwritten(size: int) -> np.ndarray:
    """Return so many bytes that nothing was written to: NaN for floats of any size, and huge integers."""
    return np.full(-(-size // 2), 0x7FFF, np.uint16).view(np.uint8)[:size]


class Memory:
    """A GPU's memory; what was not written is NaN, or a huge integer.

    Attributes
    ----------
    bytes
        All of it, and some that waits to be taken.
    known
        Which bytes may be used.
    notes
        Who has written and read each word last: which block of which launch, in which turn (barriers, thread).
    launch
        The number of the present launch, a multiple of `BLOCKS`.
    """

    def __init__(self) -> None:
        self.bytes, self.known = np.zeros(GAP, np.uint8), np.zeros(GAP, bool)
        self.notes = tuple(np.zeros(GAP // 4, np.int64) for _ in range(4))  # writer, reader, writer's turn, reader's turn
        self.launch = 0
        self._end = GAP

    def take(self, size: int) -> int:
        """Return where so many bytes begin, apart from all others."""
        address, self._end = self._end, self._end - (-(size + GAP) // GAP) * GAP
        if self._end > len(self.bytes):
            more = max(self._end, 2 * len(self.bytes)) - len(self.bytes)
            self.bytes, self.known = (np.concatenate([array, np.zeros(more, array.dtype)]) for array in (self.bytes, self.known))
            self.notes = tuple(np.concatenate([array, np.zeros(more // 4, np.int64)]) for array in self.notes)
        self.lend(address, size, size)
        return address

    def begin_launch(self) -> None:
        """Let a launch begin: what it does meets nothing that was done before."""
        self.launch += BLOCKS

    def lend(self, address: int, size: int, taken: int) -> None:
        """Let so many of the bytes that begin there be used, and the others of those taken not; they are unwritten."""
        self.known[address : address + size] = True
        self.known[address + size : address + taken] = False
        self.bytes[address : address + taken] = unwritten(taken)

    def write(self, address: int, data: np.ndarray) -> None:
        """Copy bytes to where they may be."""
        self._check(address, len(data))
        self.bytes[address : address + len(data)] = data

    def read(self, address: int, size: int) -> np.ndarray:
        """Return bytes."""
        self._check(address, size)
        return self.bytes[address : address + size].copy()

    def _check(self, address: int, size: int) -> None:
        if address + size > len(self.known) or not self.known[address : address + size].all():
            raise PtxError("out of bounds: a copy")
