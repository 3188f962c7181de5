"""Kernels that run without a GPU: `PtxKernel` reads the PTX of a compiled kernel, and the interpreter executes it.

`ptx_reader` parses the text, `ptx_encoder` makes a table of its instructions, `ptx_interpreter` executes the table, and
`ptx_memory` is the memory of the GPU. An instruction that the encoder does not know is an error.

The following faults are detected: addresses that are misaligned or out of bounds; words of shared memory that two threads use
between two barriers, one of them writing (a race); words of global memory that two blocks use, or two threads of a block between
two barriers, one of them writing; barriers that only some threads of a block reach; instructions of a warp that only some of its
threads reach; grids without blocks or with too many. Memory that was never written reads as NaN. Times are not measured.

Source: PTX ISA 9.0, sections 9.7.1 to 9.7.14; the instructions are those that the project's kernels have been compiled to.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ptx_encoder import TYPES, Encoder, bits_of
from ptx_interpreter import ERRORS, PtxError, run_blocks
from ptx_memory import Memory
from ptx_reader import SIZES, read

GRID = 65535
"""Limit of the blocks along the second and third dimension of a grid."""


class PtxKernel:
    """A kernel that is executed by the interpreter.

    Parameters
    ----------
    text
        PTX with one kernel, as returned by ``numba.cuda.compile(..., abi="numba", output="ptx")``.

    Raises
    ------
    PtxError
        If there is no kernel in the text, or an instruction that the encoder does not know.
    """

    def __init__(self, text: str) -> None:
        self._source = read(text)
        self._encoder = Encoder(self._source)

    def launch(self, grid: tuple[int, ...], block: int, arguments: list[Any], shared_bytes: int = 0) -> None:
        """Run the kernel on NumPy arrays, which it changes, and NumPy scalars, in the order of its signature.

        ``shared_bytes`` is the size of dynamic shared memory.
        """
        memory, words = Memory(), []
        places: dict[int, tuple[int, np.ndarray]] = {}  # slices of an array share memory
        for argument in arguments:
            if not isinstance(argument, np.ndarray):
                words.append(argument)
                continue
            root = _root(argument)
            if id(root) not in places:
                places[id(root)] = memory.take(root.nbytes), root
                memory.write(places[id(root)][0], root.reshape(-1).view(np.uint8))
            address = places[id(root)][0] + _start(argument) - _start(root)
            words += [0, 0, argument.size, argument.itemsize, address, *argument.shape, *argument.strides]
        self.run(memory, grid, block, [dtype.type(word) for dtype, word in zip(self.types, words, strict=True)], shared_bytes)
        for address, root in places.values():
            root.reshape(-1).view(np.uint8)[:] = memory.read(address, root.nbytes)

    @property
    def types(self) -> list[np.dtype]:
        """The dtypes of the parameters; an array has several parameters."""
        return [TYPES[kind] for kind, _ in self._source.parameters]

    def run(self, memory: Memory, grid: tuple[int, ...], block: int, values: Sequence[Any], shared_bytes: int = 0) -> None:
        """Run the kernel on the values of its parameters, NumPy scalars of the dtypes `types`."""
        named = {name: value for (_, name), value in zip(self._source.parameters, values, strict=True)}
        grid = (*grid, *(1,) * (3 - len(grid)))
        blocks = math.prod(grid)
        if not blocks or max(grid[1:]) > GRID:
            raise PtxError(f"a grid of {grid}")
        memory.begin_launch()
        encoder, source = self._encoder, self._source
        template = np.zeros(len(encoder.registers), np.int64)
        template[list(encoder.constants)] = list(encoder.constants.values())
        given = {name: bits_of(value) for name, value in named.items()}
        given |= dict(zip(SIZES, (block, 1, 1, *grid, shared_bytes), strict=True))
        for name, value in given.items():
            if name in encoder.registers:
                template[encoder.registers[name]] = value
        error, place = run_blocks(
            encoder.table,
            template,
            encoder.special,
            grid,
            block,
            memory.bytes,
            memory.known,
            memory.notes,
            memory.launch,
            source.shared_bytes + shared_bytes,
        )
        if error:
            raise PtxError(f"{ERRORS[error]}: {source.instructions[place].text}")


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    if not array.flags.c_contiguous:
        raise PtxError("arrays must be slices of contiguous ones")
    return array


def _start(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
