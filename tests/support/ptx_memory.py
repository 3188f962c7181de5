"""The memory of a GPU, as the PTX interpreter uses it."""

import numpy as np
from ptx_interpreter import BLOCKS, PtxError

GAP = 256
"""Least number of bytes between two arrays, so that an access beyond the end of one does not reach the next."""


def unwritten(size: int) -> np.ndarray:
    """Return bytes that stand for uninitialized memory: NaN as floats of any size, huge as integers."""
    return np.full(-(-size // 2), 0x7FFF, np.uint16).view(np.uint8)[:size]


class Memory:
    """The memory of a GPU; uninitialized memory is NaN, or huge integers.

    Attributes
    ----------
    bytes
        All memory, of which a part is not allocated yet.
    known
        Whether each byte may be accessed.
    notes
        The last writer and reader of each word: the block and launch, and the turn (barriers, thread).
    launch
        The number of the current launch, a multiple of `BLOCKS`.
    """

    def __init__(self) -> None:
        self.bytes, self.known = np.zeros(GAP, np.uint8), np.zeros(GAP, bool)
        self.notes = tuple(np.zeros(GAP // 4, np.int64) for _ in range(4))  # writer, reader, writer's turn, reader's turn
        self.launch = 0
        self._end = GAP

    def take(self, size: int) -> int:
        """Allocate a number of bytes; return the address."""
        address, self._end = self._end, self._end - (-(size + GAP) // GAP) * GAP
        if self._end > len(self.bytes):
            more = max(self._end, 2 * len(self.bytes)) - len(self.bytes)
            self.bytes, self.known = (np.concatenate([array, np.zeros(more, array.dtype)]) for array in (self.bytes, self.known))
            self.notes = tuple(np.concatenate([array, np.zeros(more // 4, np.int64)]) for array in self.notes)
        self.lend(address, size, size)
        return address

    def begin_launch(self) -> None:
        """Begin a launch, whose accesses cannot race with earlier ones."""
        self.launch += BLOCKS

    def lend(self, address: int, size: int, taken: int) -> None:
        """Make ``size`` of ``taken`` bytes at an address accessible, and the others not; all become uninitialized."""
        self.known[address : address + size] = True
        self.known[address + size : address + taken] = False
        self.bytes[address : address + taken] = unwritten(taken)

    def write(self, address: int, data: np.ndarray) -> None:
        """Copy bytes to an address."""
        self._check(address, len(data))
        self.bytes[address : address + len(data)] = data

    def read(self, address: int, size: int) -> np.ndarray:
        """Return a copy of the bytes at an address."""
        self._check(address, size)
        return self.bytes[address : address + size].copy()

    def _check(self, address: int, size: int) -> None:
        if address + size > len(self.known) or not self.known[address : address + size].all():
            raise PtxError("out of bounds: a copy")
