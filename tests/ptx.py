"""An executor of PTX: it runs what a kernel was compiled to, without a GPU, and raises `PtxError` where the kernel is at fault.

`Ptx` reads the text of a kernel and translates each instruction into a line of the table of `ptx_machine`, which executes it.
An instruction that it does not know is an error. `Memory` is the memory of the GPU.

Faults that are noticed: addresses that are misaligned or out of bounds; words of shared memory that two threads use between two
barriers, one of them writing (a race); words of global memory that two blocks use, or two threads of a block between two
barriers, one of them writing; barriers that only some threads of a block reach; instructions of a warp that only some of its
threads reach; grids without blocks or with too many. Memory that was never written reads as NaN. How long anything takes is not
known.

Source: PTX ISA 9.0, sections 9.7.1 to 9.7.14; the instructions are those that the project's kernels have been compiled to.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ptx_machine as machine
from ptx_machine import BLOCKS, ERRORS, KINDS, RELATIONS, ROUNDINGS, UNORDERED, WIDTH

TYPES = {
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f32": np.dtype(np.float32),
}  # fmt: skip

GRID = 65535
"""Blocks of a grid's second and third dimension, at most."""

GAP = 256
"""Bytes between arrays, at least: who leaves one meets nothing."""

SPECIAL = ("%tid.x", "%laneid", "%ctaid.x", "%ctaid.y", "%ctaid.z")
"""Registers that differ between threads, as `ptx_machine.run_blocks` expects them."""

SIZES = ("%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z")
"""Registers that have the same number in every thread of a launch."""


class PtxError(Exception):
    """The kernel did what it must not, or what this executor does not know."""


@dataclass
class Instruction:
    """One statement: ``@guard name operands``; the guard may be negated."""

    text: str
    guard: str | None
    negated: bool
    name: str
    operands: list[str]

    @property
    def parts(self) -> list[str]:
        """The name's parts: ``["ld", "global", "f32"]``."""
        return self.name.split(".")


class Ptx:
    """A module with one kernel.

    Parameters
    ----------
    source
        What ``numba.cuda.compile(..., abi="numba", output="ptx")`` returns.
    """

    def __init__(self, source: str) -> None:
        source = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
        entry = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{(.*)\}", source, re.DOTALL)
        if entry is None:
            raise PtxError("no kernel found")
        self.name: str = entry[1]
        self.parameters: list[tuple[str, str]] = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)", entry[2])
        self.places: dict[str, int] = {}
        self.shared_bytes = 0
        for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", source):
            start = -(-self.shared_bytes // int(align)) * int(align)
            start += int(align) * (start // int(align) % 2 == 0)  # so that nobody has a better alignment by chance
            self.places[name], self.shared_bytes = start, start + int(size)
        self.registers: dict[str, int] = {}
        self.constants: dict[int, int] = {}
        self._declared = {"_", *SPECIAL, *SIZES, *(name for _, name in self.parameters)}
        self.labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        for statement in _statements(entry[4]):
            self._read(statement)
        table = np.array([self._line(instruction) for instruction in self.instructions])
        self._code = table.reshape(-1)
        self._special = np.array([self._register(name) for name in SPECIAL])

    def _read(self, statement: str) -> None:
        while label := re.match(r"([\w$]+):\s*", statement):
            self.labels[label[1]] = len(self.instructions)
            statement = statement[label.end() :]
        if statement.startswith(".reg"):
            self._declared |= {name.partition("<")[0].strip() for name in statement.split(None, 2)[2].split(",")}
        elif statement and not statement.startswith("."):
            guard, name, operands = re.fullmatch(r"(?:@(!?[\w%]+)\s+)?(\S+)\s*(.*)", statement, re.DOTALL).groups()
            split = re.split(r",\s*(?![^{[]*[}\]])", operands.strip()) if operands.strip() else []
            self.instructions.append(
                Instruction(statement, guard and guard.lstrip("!"), bool(guard) and guard[0] == "!", name, split)
            )

    def launch(self, grid: tuple[int, ...], block: int, arguments: list[Any]) -> None:
        """Run the kernel: arguments are NumPy arrays, which it changes, and NumPy scalars, as its signature has them."""
        memory, words = Memory(), []
        places: dict[int, tuple[int, np.ndarray]] = {}  # slices of an array share its memory
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
        self.run(memory, grid, block, [dtype.type(word) for dtype, word in zip(self.types, words, strict=True)])
        for address, root in places.values():
            root.reshape(-1).view(np.uint8)[:] = memory.read(address, root.nbytes)

    @property
    def types(self) -> list[np.dtype]:
        """Of the parameters: an array has several."""
        return [TYPES[kind] for kind, _ in self.parameters]

    def run(self, memory: "Memory", grid: tuple[int, ...], block: int, values: Sequence[Any]) -> None:
        """Run the kernel: values are NumPy's scalars, of the parameters' `types`."""
        named = {name: value for (_, name), value in zip(self.parameters, values, strict=True)}
        grid = (*grid, *(1,) * (3 - len(grid)))
        blocks = math.prod(grid)
        if not blocks or max(grid[1:]) > GRID:
            raise PtxError(f"a grid of {grid}")
        memory.begin_launch()
        template = np.zeros(len(self.registers), np.int64)
        template[list(self.constants)] = list(self.constants.values())
        given = {name: _bits(value) for name, value in named.items()}
        given |= dict(zip(SIZES, (block, 1, 1, *grid), strict=True))
        for name, value in given.items():
            if name in self.registers:
                template[self.registers[name]] = value
        error, place = machine.run_blocks(
            self._code,
            template,
            self._special,
            grid,
            block,
            memory.bytes,
            memory.known,
            memory.notes,
            memory.launch,
            self.shared_bytes,
        )
        if error:
            raise PtxError(f"{ERRORS[error]}: {self.instructions[place].text}")

    def _register(self, operand: str) -> int:
        """Return the number of a register, also of one that holds a constant, an address or a parameter."""
        if operand not in self.registers:
            self.registers[operand] = number = len(self.registers)
            if operand in self.places:
                self.constants[number] = self.places[operand]
            elif operand[:2] in ("0f", "0F"):
                self.constants[number] = int(operand[2:], 16)
            elif re.match(r"-?\d", operand):
                self.constants[number] = _bits(int(operand.removesuffix("U"), 0))
            elif not {operand, operand.rstrip("0123456789")} & self._declared:
                raise PtxError(f"unknown register {operand}")
        return self.registers[operand]

    def _registers(self, operand: str) -> list[int]:
        """Return the numbers of a vector's registers."""
        return [self._register(each.strip()) for each in operand.strip("{}").split(",")]

    def _address(self, operand: str) -> tuple[int, int]:
        """Return the register of an address, and what is added to it."""
        base, _, offset = operand.strip("[] ").partition("+")
        return self._register(base.strip()), int(offset or 0)

    def _line(self, instruction: Instruction) -> list[int]:
        """Return an instruction's line of the machine's table."""
        guard = self._register(instruction.guard) if instruction.guard else -1
        operation, kind, columns = self._operation(instruction)
        line = [operation, guard, int(instruction.negated), kind, *columns]
        return line + [0] * (WIDTH - len(line))

    def _operation(self, instruction: Instruction) -> tuple[int, int, list[int]]:
        """Return what an instruction does, the kind of its numbers, and its columns."""
        parts, operands = instruction.parts, instruction.operands
        name, last = parts[0], parts[-1]
        kind = KINDS.index(last.replace("b", "u")) if last.replace("b", "u") in KINDS else -1
        unknown = PtxError(f"unknown instruction {instruction.text}")
        if name == "bra":
            return machine.BRANCH, 0, [self.labels[operands[0]]]
        if name in ("bar", "barrier"):
            return machine.BARRIER, 0, []
        if name in ("ret", "exit"):
            return machine.END, 0, []
        if name in ("ld", "st", "atom", "red"):
            return self._memory(parts, operands, kind, unknown)
        if name == "shfl" and parts[1:3] == ["sync", "bfly"]:
            target, _, valid = operands[0].partition("|")
            return machine.EXCHANGE, kind, [self._register(each) for each in (target, valid or "_", *operands[1:])]
        if instruction.name == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32":
            return machine.MMA, kind, [register for operand in operands for register in self._registers(operand)]
        if re.fullmatch(r"ldmatrix\.sync\.aligned\.m8n8\.x4(\.trans)?\.shared\.b16", instruction.name):
            return machine.LDMATRIX, kind, [*self._registers(operands[0]), *self._address(operands[1]), int("trans" in parts)]
        if name == "bfi":
            return machine.INSERT_BITS, kind, [*map(self._register, operands[:3]), int(operands[3]), int(operands[4])]
        if name == "mov" and "{" in operands[0] + operands[1]:
            kind = KINDS.index(f"u{int(last[1:]) // 2}")
            operation = machine.SPLIT if operands[0][0] == "{" else machine.JOIN
            columns = [register for operand in operands for register in self._registers(operand)]
            if len(columns) != 3:
                raise unknown
            return operation, kind, columns
        if name not in {"cvt", "setp", *(key.partition(".")[0] for key in FLOATS | INTEGERS)}:
            raise unknown
        columns = [*map(self._register, operands)]
        if name == "cvt":
            return self._conversion(parts, columns, unknown)
        if name == "setp" and len([part for part in parts if part != "ftz"]) == 3:
            relation = parts[1].removesuffix("u") if last == "f32" else parts[1]
            if relation in RELATIONS and kind >= 0:
                number = RELATIONS.index(relation) + UNORDERED * (relation != parts[1])
                return machine.F_COMPARE if last == "f32" else machine.COMPARE, kind, [*columns, number]
        modes = {part for part in parts[1:-1] if part not in ("approx", "ftz", "full", "rn", "to", "global", "lo", "uni")}
        operations = FLOATS if last == "f32" else INTEGERS
        key = ".".join([name, *sorted(modes)])
        if last == "pred" and name in ("not", "and", "or", "xor", "mov"):
            if any(operand.isdigit() and operand != "0" for operand in operands):  # all bits of a predicate are equal
                raise unknown
            return INTEGERS[name], 0, columns
        if kind < 0 or key not in operations or (modes & {"wide", "hi"} and last[1:] != "32"):
            raise unknown
        return operations[key], kind, columns

    def _memory(self, parts: list[str], operands: list[str], kind: int, unknown: PtxError) -> tuple[int, int, list[int]]:
        if parts[:2] == ["ld", "param"]:
            return machine.COPY, kind, [self._register(operands[0]), self._register(operands[1].strip("[] "))]
        if parts[1] not in ("global", "shared") or kind < 0:
            raise unknown
        shared = int(parts[1] == "shared")
        if parts[0] in ("ld", "st"):
            target, source = operands if parts[0] == "ld" else operands[::-1]
            registers = self._registers(target)
            operation = machine.LOAD if parts[0] == "ld" else machine.STORE
            return operation, kind, [*self._address(source), len(registers), shared, *registers]
        if "add" not in parts or shared or parts[-1] not in ("u32", "s32", "u64", "f32"):
            raise unknown
        result = self._register(operands[0]) if parts[0] == "atom" and operands[0] != "_" else -1
        return machine.ATOMIC_ADD, kind, [*self._address(operands[-2]), 1, 0, self._register(operands[-1]), result]

    def _conversion(self, parts: list[str], columns: list[int], unknown: PtxError) -> tuple[int, int, list[int]]:
        to, of = parts[-2:]
        rounding = ROUNDINGS.index(next((part for part in parts if part in ROUNDINGS), ""))
        if (to, of) == ("f16x2", "f32"):
            return machine.HALVES, 0, columns
        if (to, of) == ("f32", "f16"):
            return machine.F_FROM_HALF, 0, columns
        if to not in KINDS or of not in KINDS:
            raise unknown
        if to == of == "f32":
            return machine.F_ROUND, 0, [*columns, rounding, int("sat" in parts)]
        if of == "f32":
            return machine.F_TO_INTEGER, KINDS.index(to), [*columns, rounding]
        if to == "f32":
            return machine.F_FROM_INTEGER, KINDS.index(of), columns
        if "sat" in parts:
            raise unknown
        return machine.WIDEN, KINDS.index(min(of, to, key=lambda kind: TYPES[kind].itemsize)), columns


FLOATS = {
    "mov": machine.COPY, "selp": machine.SELECT, "add": machine.F_ADD, "sub": machine.F_SUBTRACT, "mul": machine.F_MULTIPLY,
    "div": machine.F_DIVIDE, "fma": machine.FMA, "fma.rm": machine.FMA_DOWN, "add.rz": machine.ADD_TO_ZERO,
    "neg": machine.F_NEGATE, "abs": machine.F_ABS, "min": machine.F_MINIMUM, "max": machine.F_MAXIMUM,
    "copysign": machine.COPYSIGN, "ex2": machine.EX2, "lg2": machine.LG2, "sqrt": machine.SQRT, "rsqrt": machine.RSQRT,
    "rcp": machine.RCP, "tanh": machine.TANH,
}  # fmt: skip
"""What is done with floats, by the instruction's name and what changes its meaning."""

INTEGERS = {
    "mov": machine.COPY, "cvta": machine.COPY, "selp": machine.SELECT, "add": machine.ADD, "sub": machine.SUBTRACT,
    "mul": machine.MULTIPLY, "mul.wide": machine.MULTIPLY_WIDE, "mul.hi": machine.MULTIPLY_HIGH, "mad": machine.MULTIPLY_ADD,
    "mad.wide": machine.MULTIPLY_ADD_WIDE, "and": machine.AND, "or": machine.OR, "xor": machine.XOR, "not": machine.NOT,
    "neg": machine.NEGATE, "shl": machine.SHIFT_LEFT, "shr": machine.SHIFT_RIGHT, "min": machine.MINIMUM, "max": machine.MAXIMUM,
    "div": machine.DIVIDE, "rem": machine.REMAINDER,
}  # fmt: skip
"""What is done with integers and bits."""


def _bits(value: Any) -> int:
    """Return what a register holds for a number: integers of 64 bits, floats in the lower half."""
    if isinstance(value, np.floating):
        return int(np.float32(value).view(np.uint32))
    return (int(value) + 2**63) % 2**64 - 2**63


def unwritten(size: int) -> np.ndarray:
    """Return so many bytes that nothing was written to: NaN for floats of any size, and huge integers."""
    return np.full(-(-size // 2), 0x7FFF, np.uint16).view(np.uint8)[:size]


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    if not array.flags.c_contiguous:
        raise PtxError("arrays must be slices of contiguous ones")
    return array


def _start(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


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


def _statements(body: str) -> Iterator[str]:
    """Split at semicolons; blocks of inline PTX lose their braces, those of vectors stay."""
    for piece in body.split(";"):
        yield re.sub(r"^\s*[{}\s]*", "", piece).strip()
