"""An executor of PTX: runs what a kernel was compiled to, without a GPU, and watches over it.

All threads of a launch are lanes of NumPy arrays. They go on together from barrier to barrier, those that are farthest behind
first. Noticed, as `PtxError`: addresses out of bounds or misaligned, numbers of shared memory that two threads use between
barriers, one of them writing (a race), words of global memory that two blocks use, or two threads between barriers, one of them
writing, barriers that only some threads of a block reach, what a warp does together that only some of its threads reach, and
grids without blocks or with too many. What was never written reads as NaN. Not known: how long anything takes.

Source: PTX ISA 9.0, sections 9.7.1 to 9.7.14; the instructions are those that the project's kernels have been compiled to.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TYPES = {
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64), "pred": np.dtype(bool),
}  # fmt: skip
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""How a register is kept, by its bytes."""

WARP = 32
"""Threads of a warp."""

LANES = 8192
"""Threads that run together, about."""

GRID = 65535
"""Blocks of a grid's second and third dimension, at most."""

GAP = 256
"""Bytes between arrays, at least: who leaves one meets nothing."""

BLOCKS = 2**32
"""No launch has more blocks; the last numbers stand for several that read a word, and for any that add to it."""

SEVERAL, ADDED = BLOCKS - 2, BLOCKS - 1

THREADS = 2**12
"""No block has more threads; the last number stands for several that read a word."""

Array = Any


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
        self.bytes = {"shared": 0, "local": 0}
        for space, align, name, size in re.findall(r"\.(shared|local)\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", source):
            start = -(-self.bytes[space] // int(align)) * int(align)
            start += int(align) * (start // int(align) % 2 == 0)  # so that nobody has a better alignment by chance
            self.places[name], self.bytes[space] = start, start + int(size)
        self.registers: dict[str, np.dtype] = {}
        self.labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        for statement in _statements(entry[4]):
            self._read(statement)
        self._actions = [_action(instruction) for instruction in self.instructions]

    def _read(self, statement: str) -> None:
        while label := re.match(r"([\w$]+):\s*", statement):
            self.labels[label[1]] = len(self.instructions)
            statement = statement[label.end() :]
        if statement.startswith(".reg"):
            _, kind, names = statement.split(None, 2)
            for name in names.replace(" ", "").split(","):
                stem, _, count = name.rstrip(">").partition("<")
                for each in [f"{stem}{i}" for i in range(int(count))] if count else [stem]:
                    self.registers[each] = TYPES[kind[1:]]
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
            address = places[id(root)][0] + _address(argument) - _address(root)
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
        for first in range(0, blocks, max(1, LANES // block)):
            numbers = np.arange(first, min(blocks, first + max(1, LANES // block)))
            with np.errstate(all="ignore"):
                Run(self, memory, named, grid, block, numbers).go()


def unwritten(size: int) -> np.ndarray:
    """Return so many bytes that nothing was written to: NaN for floats of any size, and huge integers."""
    return np.resize(np.array([0xFF, 0x7F], np.uint8), size)


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    if not array.flags.c_contiguous:
        raise PtxError("arrays must be slices of contiguous ones")
    return array


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


class Memory:
    """A GPU's memory; what was not written is NaN, or a huge integer.

    Attributes
    ----------
    bytes
        All of it.
    known
        Which bytes may be used.
    """

    def __init__(self) -> None:
        self.bytes, self.known = np.zeros(GAP, np.uint8), np.zeros(GAP, bool)
        # Who has written and read each word last: which block of which launch, which thread of it after how many barriers.
        self._writer, self._reader, self._writer_turn, self._reader_turn = (np.zeros(GAP // 4, np.int64) for _ in range(4))
        self._launch = 0

    def take(self, size: int) -> int:
        """Return where so many bytes begin, apart from all others."""
        address, more = len(self.bytes), -(-(size + GAP) // GAP) * GAP
        self.bytes, self.known = (np.concatenate([array, np.zeros(more, array.dtype)]) for array in (self.bytes, self.known))
        self._writer, self._reader, self._writer_turn, self._reader_turn = (
            np.concatenate([array, np.zeros(more // 4, np.int64)])
            for array in (self._writer, self._reader, self._writer_turn, self._reader_turn)
        )
        self.lend(address, size, size)
        return address

    def begin_launch(self) -> None:
        """Let a launch begin: what it does meets nothing that was done before."""
        self._launch += BLOCKS

    def watch(self, words: np.ndarray, blocks: np.ndarray, turns: np.ndarray, access: str) -> None:
        """Take note of blocks that "read" or "write" words, or add to them ("atomic"), each thread in its turn: barriers, thread.

        Raises
        ------
        PtxError
            If two threads of a launch use the same word without a barrier between them and one of them writes it, but for those
            that only add to it. Also if a word is added to and otherwise used in one launch, be it by one thread.
        """
        own = np.broadcast_to(self._launch + (ADDED if access == "atomic" else blocks), len(words))
        race = self._meets(words, self._writer, self._writer_turn, own, turns)
        if access == "read":
            self._note(words, self._reader, self._reader_turn, own, turns)
        else:
            race |= self._meets(words, self._reader, self._reader_turn, own, turns)
            self._writer[words], self._writer_turn[words] = own, turns
            race |= self._meets(words, self._writer, self._writer_turn, own, turns)
        if race.any():
            raise PtxError("a race in global memory")

    def _meets(self, words: np.ndarray, user: np.ndarray, turn: np.ndarray, own: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return whether each word was used by others of this launch: other blocks, or other threads since the last barrier."""
        used, before = user[words], turn[words]
        others = (before != turns) & (before // THREADS == turns // THREADS) & (own != self._launch + ADDED)
        return (used >= self._launch) & ((used != own) | others)

    def _note(self, words: np.ndarray, user: np.ndarray, turn: np.ndarray, own: np.ndarray, turns: np.ndarray) -> None:
        """Take note of who uses words, and where these are several."""
        other_blocks = (user[words] >= self._launch) & (user[words] != own)
        others = self._meets(words, user, turn, own, turns)
        user[words], turn[words] = own, turns
        other_blocks |= user[words] != own
        others |= turn[words] != turns
        user[words[other_blocks]] = self._launch + SEVERAL
        turn[words[others]] = turns[others] // THREADS * THREADS + THREADS - 1

    def lend(self, address: int, size: int, taken: int) -> None:
        """Let so many of the bytes that begin there be used, and the others of those taken not; they are unwritten."""
        self.known[address : address + taken] = np.arange(taken) < size
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


class Run:
    """Some blocks of a launch on their way through a kernel.

    Attributes
    ----------
    lanes
        Their threads; block b's are those from ``b * block`` on.
    active
        Which lanes execute the present instruction (lanes,); `whole` says that it is all of them.
    """

    def __init__(
        self, ptx: Ptx, memory: Memory, parameters: dict[str, Any], grid: tuple[int, ...], block: int, numbers: np.ndarray
    ) -> None:
        self.ptx, self.memory, self.parameters = ptx, memory, parameters
        self.block, self.lanes = block, block * len(numbers)
        thread, own = np.tile(np.arange(block), len(numbers)), np.repeat(numbers, block)
        self.thread, self.own_block, self.block_number = thread, np.repeat(np.arange(len(numbers)), block), own
        self.turn = thread.copy()  # and, in units of THREADS, how many barriers the block has passed
        special = {"%tid.x": thread, "%laneid": thread % 32, "%ntid.x": block}
        special |= {"%tid.y": 0, "%tid.z": 0, "%ntid.y": 1, "%ntid.z": 1}
        for axis, divisor, size in zip("xyz", (1, grid[0], grid[0] * grid[1]), grid, strict=True):
            special |= {f"%ctaid.{axis}": own // divisor % size, f"%nctaid.{axis}": size}
        self.special = {name: np.broadcast_to(np.uint32(value), self.lanes) for name, value in special.items()}
        self.registers: dict[str, np.ndarray] = {
            name: np.zeros(self.lanes, bool if dtype.kind == "b" else RAW[dtype.itemsize])
            for name, dtype in ptx.registers.items()
        }
        words = 2 * -(-ptx.bytes["shared"] // 8)
        self.shared = np.tile(unwritten(4 * words), (len(numbers), 1))
        self.local = np.tile(unwritten(-(-ptx.bytes["local"] // 16) * 16), (self.lanes, 1))
        # Who has written and read each word of shared memory since the last barrier: -1 nobody, -2 several.
        self.writer, self.reader = (np.full((len(numbers), words), -1, np.int32) for _ in range(2))
        self.active, self.whole = np.ones(self.lanes, bool), True

    def go(self) -> None:
        """Run to the end."""
        instructions, actions, labels = self.ptx.instructions, self.ptx._actions, self.ptx.labels
        at = np.zeros(self.lanes, np.int64)
        waiting, done = np.zeros(self.lanes, bool), np.zeros(self.lanes, bool)
        while not done.all():
            running = ~(waiting | done)
            if not running.any():
                self._pass_barrier(at, done)
                waiting[:] = False
                continue
            place = int(at[running].min())
            group = running & (at == place)
            others = at[running & ~group]
            limit = int(others.min()) if len(others) else len(instructions)
            while place < limit:
                instruction = instructions[place]
                self.active = group
                if instruction.guard:
                    chosen = self.registers[instruction.guard]
                    self.active = group & (~chosen if instruction.negated else chosen)
                self.whole = bool(self.active.all())
                kind = instruction.parts[0]
                place += 1
                if kind == "bra":
                    goal = labels[instruction.operands[0]]
                    if not (group & ~self.active).any():
                        place = goal
                        if goal < limit:
                            continue
                    elif self.active.any():
                        at[group] = place
                        at[self.active] = goal
                        break
                elif kind in ("bar", "barrier"):
                    waiting |= self.active
                    at[group] = place
                    break
                elif kind in ("ret", "exit"):
                    done |= self.active
                    at[group] = place
                    break
                elif self.whole or self.active.any():
                    try:
                        actions[place - 1](self)
                    except PtxError as error:
                        raise PtxError(f"{error}: {instruction.text}") from None
            else:
                at[group] = place

    def _pass_barrier(self, at: np.ndarray, done: np.ndarray) -> None:
        at, done = at.reshape(-1, self.block), done.reshape(-1, self.block)
        if (done.any(1) & ~done.all(1)).any() or (~done.all(1) & (at != at[:, :1]).any(1)).any():
            raise PtxError("a barrier that only some threads of a block reach")
        self.writer[...] = self.reader[...] = -1
        self.turn += THREADS

    def check_warps(self) -> None:
        """Demand that of each warp all threads are active, or none."""
        active = self.active.reshape(-1, WARP)
        if (active.any(1) != active.all(1)).any():
            raise PtxError("only some threads of a warp")

    # Operands

    def value(self, operand: str, kind: str) -> Array:
        """Return an operand as numbers of a type, one for all lanes or one each."""
        dtype = TYPES[kind]
        if operand in self.registers:
            register = self.registers[operand]
            if register.dtype == dtype:
                return register
            if register.itemsize == dtype.itemsize:
                return register.view(dtype)
            return register.astype(RAW[dtype.itemsize]).view(dtype)
        if operand in self.special:
            return self.special[operand]
        if operand in self.ptx.places:
            return dtype.type(self.ptx.places[operand])
        if operand[:2] in ("0f", "0F"):
            return np.uint32(int(operand[2:], 16)).view(np.float32)
        if operand[:2] in ("0d", "0D"):
            return np.uint64(int(operand[2:], 16)).view(np.float64)
        number = int(operand.removesuffix("U"), 0)
        if dtype.kind == "b":
            return np.bool_(number)
        return np.array(number % 2 ** (8 * dtype.itemsize), RAW[dtype.itemsize]).view(dtype)[()]

    def put(self, operand: str, values: Array) -> None:
        """Set a register of the active lanes."""
        register = self.registers[operand]
        values = np.asarray(values)
        if values.dtype != register.dtype:
            if values.itemsize != register.itemsize:  # cvt and ld extend by the sign
                wide = np.dtype(f"{'i' if values.dtype.kind == 'i' else 'u'}{register.itemsize}")
                values = values.astype(wide)
            values = values.view(register.dtype) if register.dtype != bool else values.astype(bool)
        if self.whole:
            self.registers[operand] = np.broadcast_to(values, self.lanes).copy() if values.shape != (self.lanes,) else values
        else:
            self.registers[operand] = np.where(self.active, values, register)

    # Memory

    def places(self, operand: str, space: str, size: int, access: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the memory as bytes, and the active lanes' addresses in it, after checking them for ``size`` bytes.

        ``access`` is "read", "write" or "atomic".
        """
        base, _, offset = operand.strip("[] ").partition("+")
        address = np.broadcast_to(self.value(base.strip(), "s64"), self.lanes)[self.active] + int(offset or 0)
        if (address % size).any():
            raise PtxError("misaligned")
        lanes = np.flatnonzero(self.active)
        if space == "global":
            known = self.memory.known
            if ((address < 0) | (address + size > len(known))).any() or not (known[address] & known[address + size - 1]).all():
                raise PtxError("out of bounds")
            for word in range(0, size, 4):
                self.memory.watch((address + word) // 4, self.block_number[lanes], self.turn[lanes], access)
            return self.memory.bytes, address
        memory, rows = (self.shared, self.own_block) if space == "shared" else (self.local, np.arange(self.lanes))
        width = memory.shape[1]
        if ((address < 0) | (address + size > self.ptx.bytes[space])).any():
            raise PtxError(f"out of bounds of {space} memory")
        if space == "shared":
            for word in range(0, size, 4):
                self._watch(rows[lanes], (address + word) // 4, self.thread[lanes], access == "write")
        return memory.reshape(-1), address + rows[lanes] * width

    def _watch(self, blocks: np.ndarray, words: np.ndarray, threads: np.ndarray, write: bool) -> None:
        written = self.writer[blocks, words]
        race = (written != -1) & (written != threads)
        if write:
            read = self.reader[blocks, words]
            race |= (read != -1) & (read != threads)
            self.writer[blocks, words] = threads
            race |= self.writer[blocks, words] != threads  # two of these lanes write the same word
        else:
            before = self.reader[blocks, words]
            self.reader[blocks, words] = threads
            several = (self.reader[blocks, words] != threads) | ((before != -1) & (before != threads))
            self.reader[blocks[several], words[several]] = -2
        if race.any():
            raise PtxError("a race in shared memory")


def _statements(body: str) -> Iterator[str]:
    """Split at semicolons; blocks of inline PTX lose their braces, those of vectors stay."""
    for piece in body.split(";"):
        yield re.sub(r"^\s*[{}\s]*", "", piece).strip()


# What each instruction does: a function of the run.


def _action(instruction: Instruction) -> Callable[[Run], None] | None:
    parts, operands = instruction.parts, instruction.operands
    kind = parts[0]
    if kind in ("bra", "bar", "barrier", "ret", "exit"):
        return None
    for names, make in _MAKERS.items():
        if kind in names:
            return make(parts, operands)
    raise PtxError(f"unknown instruction {instruction.text}")


def _vector(operand: str) -> list[str]:
    return [each.strip() for each in operand.strip("{}").split(",")]


def _space(parts: list[str]) -> str:
    return next((space for space in parts if space in ("shared", "local")), "global")


def _load(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    kind, (target, source) = parts[-1], operands
    if parts[1] == "param":
        return lambda run: run.put(target, TYPES[kind].type(run.parameters[source.strip("[] ")]))
    targets, size, space = _vector(target), TYPES[kind].itemsize, _space(parts)

    def load(run: Run) -> None:
        memory, address = run.places(source, space, size * len(targets), access="read")
        view = memory.view(RAW[size])
        for number, each in enumerate(targets):
            values = np.zeros(run.lanes, RAW[size])
            values[run.active] = view[address // size + number]
            run.put(each, values.view(TYPES[kind]))

    return load


def _store(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    kind, (target, source) = parts[-1], operands
    sources, size, space = _vector(source), TYPES[kind].itemsize, _space(parts)

    def store(run: Run) -> None:
        memory, address = run.places(target, space, size * len(sources), access="write")
        view = memory.view(TYPES[kind])
        for number, each in enumerate(sources):
            values = np.broadcast_to(run.value(each, kind), run.lanes)
            view[address // size + number] = values[run.active]

    return store


def _atomic(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    kind, size = parts[-1], TYPES[parts[-1]].itemsize
    if "add" not in parts or "global" not in parts:
        raise PtxError(f"unknown atomic {'.'.join(parts)}")
    target = operands[-2]

    def add(run: Run) -> None:
        memory, address = run.places(target, "global", size, access="atomic")
        view = memory.view(TYPES[kind])
        if parts[0] == "atom" and operands[0] != "_":  # nobody may use what it was before: the order is not known
            run.put(operands[0], np.full(run.lanes, 0xFF, TYPES[kind]))
        np.add.at(view, address // size, np.broadcast_to(run.value(operands[-1], kind), run.lanes)[run.active])

    return add


def _convert(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    if parts[-2] == "f16x2":
        return _round_pair(parts, operands)
    to, of = TYPES[parts[-2]], parts[-1]
    rounding = next((part for part in parts if part in ("rni", "rzi", "rmi", "rpi")), None)

    def convert(run: Run) -> None:
        values = np.asarray(run.value(operands[1], of))
        if rounding:
            values = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](values)
        if "sat" in parts:
            values = np.where(values != values, 0, np.clip(values, 0, 1))
        if to.kind in "iu" and values.dtype.kind == "f":  # out of range: the nearest; NaN: 0
            bounds = np.iinfo(to)
            values = np.where(values != values, 0, values.astype(np.float64))
            inside = np.where((values >= bounds.min) & (values < float(bounds.max)), values, 0).astype(to)
            values = np.where(values < bounds.min, bounds.min, np.where(values >= float(bounds.max), bounds.max, inside))
        run.put(operands[0], values.astype(to))

    return convert


def _round_pair(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``cvt`` of two numbers to halves; the first goes into the upper bits."""

    def act(run: Run) -> None:
        numbers = np.zeros((run.lanes, 2), np.float16)
        for place, operand in enumerate(operands[:0:-1]):
            numbers[:, place] = run.value(operand, "f32")
        run.put(operands[0], numbers.view(np.uint32)[:, 0])

    return act


def _move(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``mov``, also of one register to several smaller ones or back."""
    target, source = operands
    kind, small = parts[-1], f"b{int(parts[-1][1:]) // 2}" if parts[-1] in ("b32", "b64") else ""
    if target[0] != "{" and source[0] != "{":
        return lambda run: run.put(target, run.value(source, kind))

    def act(run: Run) -> None:
        if target[0] == "{":
            whole = np.broadcast_to(run.value(source, kind), run.lanes)
            for number, each in enumerate(_vector(target)):
                if each != "_":
                    run.put(each, (whole >> whole.dtype.type(number * 8 * TYPES[small].itemsize)).astype(TYPES[small]))
        else:
            pieces = [np.broadcast_to(run.value(each, small), run.lanes) for each in _vector(source)]
            run.put(target, np.stack(pieces, 1).view(TYPES[kind])[:, 0])

    return act


def _exchange(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``shfl.sync.bfly`` in a whole warp: a lane gets the number of the one whose number differs in these bits."""
    if parts[1:3] != ["sync", "bfly"]:
        raise PtxError(f"unknown exchange {'.'.join(parts)}")
    target, _, valid = operands[0].partition("|")

    def act(run: Run) -> None:
        run.check_warps()
        values, bits, clamp, lanes = (np.broadcast_to(run.value(operand, "u32"), run.lanes) for operand in operands[1:])
        if (clamp[run.active] != WARP - 1).any() or (lanes[run.active] != 2**WARP - 1).any():
            raise PtxError("unknown: parts of a warp")
        run.put(target, values[np.arange(run.lanes) ^ (bits % WARP)])
        if valid:
            run.put(valid, np.ones(run.lanes, bool))

    return act


def _insert_bits(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``bfi``: the low bits of one number in place of those of another from a position on; position and count are constants."""
    kind, position, count = parts[-1], int(operands[3]), int(operands[4])
    mask = ((1 << count) - 1) << position

    def act(run: Run) -> None:
        x, y = (np.asarray(run.value(operand, kind)) for operand in operands[1:3])
        run.put(
            operands[0], ((x << x.dtype.type(position)) & x.dtype.type(mask)) | (y & y.dtype.type(~mask % 2 ** (8 * y.itemsize)))
        )

    return act


_GROUP, _MEMBER = np.arange(WARP) // 4, np.arange(WARP) % 4
_CORNERS = ((0, 0), (8, 0), (0, 8), (8, 8))
"""Where the parts of a fragment with 8 x 8 elements each begin: row, column."""


def _multiply_matrices(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``mma.m16n8k16`` of halves, added to float32. In which order it adds is not known."""
    if parts != ["mma", "sync", "aligned", "m16n8k16", "row", "col", "f32", "f16", "f16", "f32"]:
        raise PtxError(f"unknown product {'.'.join(parts)}")
    results, lefts, rights, added = map(_vector, operands)

    def act(run: Run) -> None:
        run.check_warps()
        warps = run.lanes // WARP

        def pairs(operand: str) -> np.ndarray:
            return np.broadcast_to(run.value(operand, "b32"), run.lanes).copy().view(np.float16).reshape(warps, WARP, 2)

        left, right = np.zeros((warps, 16, 16), np.float32), np.zeros((warps, 16, 8), np.float32)
        for operand, (row, column) in zip(lefts, _CORNERS, strict=True):
            for q in range(2):
                left[:, row + _GROUP, column + 2 * _MEMBER + q] = pairs(operand)[:, :, q]
        for operand, row in zip(rights, (0, 8), strict=True):
            for q in range(2):
                right[:, row + 2 * _MEMBER + q, _GROUP] = pairs(operand)[:, :, q]
        product = left @ right
        sums = []
        for number, operand in enumerate(added):
            own = product[:, 8 * (number // 2) + _GROUP, 2 * _MEMBER + number % 2].reshape(-1)
            sums.append(own + run.value(operand, "f32"))
        for target, each in zip(results, sums, strict=True):
            run.put(target, each)

    return act


def _load_matrices(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``ldmatrix``: four matrices of 8 x 8 halves; lane l has the address of row l % 8 of matrix l // 8."""
    if parts[:4] != ["ldmatrix", "sync", "aligned", "m8n8"] or "x4" not in parts or "shared" not in parts:
        raise PtxError(f"unknown load {'.'.join(parts)}")

    def act(run: Run) -> None:
        run.check_warps()
        memory, address = run.places(operands[1], "shared", 16, access="read")
        matrices = memory.view(np.uint16)[address[:, None] // 2 + np.arange(8)].reshape(-1, 4, 8, 8)
        if "trans" in parts:
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, 4, WARP)
        for number, target in enumerate(_vector(operands[0])):
            values = np.zeros(run.lanes, np.uint32)
            values[run.active] = pairs[:, number].reshape(-1)
            run.put(target, values)

    return act


def _compare(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    relation, kind = parts[1], parts[-1]
    unordered = relation.endswith("u") and relation not in ("u",) and kind[0] == "f"
    relation = relation[:-1] if unordered else relation
    compare = {
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
        "nan": lambda x, y: (x != x) | (y != y), "num": lambda x, y: (x == x) & (y == y),
    }[relation]  # fmt: skip

    def act(run: Run) -> None:
        x, y = (run.value(operand, kind) for operand in operands[1:3])
        result = compare(x, y)
        if kind[0] == "f" and relation == "ne":
            result &= (x == x) & (y == y)
        if unordered:
            result = result | (x != x) | (y != y)
        run.put(operands[0], np.broadcast_to(result, run.lanes))

    return act


def _select(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    kind = parts[-1]
    return lambda run: run.put(
        operands[0], np.where(run.value(operands[3], "pred"), run.value(operands[1], kind), run.value(operands[2], kind))
    )


def _multiply(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``mul`` and ``mad``: with ``wide`` the result has twice the bits, with ``hi`` it is the upper half of that."""
    kind = parts[-1]
    wide = kind[0] + str(2 * int(kind[1:]))

    def act(run: Run) -> None:
        x, y = (np.asarray(run.value(operand, kind)) for operand in operands[1:3])
        if "wide" in parts or "hi" in parts:
            if TYPES[kind].itemsize == 8:
                raise PtxError("unknown: 128 bits")
            product = x.astype(TYPES[wide]) * y.astype(TYPES[wide])
            if "hi" in parts:
                product = (product >> TYPES[wide].type(8 * TYPES[kind].itemsize)).astype(TYPES[kind])
        else:
            product = x * y
        if parts[0] == "mad":
            product = product + run.value(operands[3], wide if "wide" in parts else kind)
        run.put(operands[0], product)

    return act


def _fma(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``fma``, rounded once, which double precision does but in rare ties; towards minus infinity for ``rm``."""

    def act(run: Run) -> None:
        x, y, z = (np.asarray(run.value(operand, "f32")).astype(np.float64) for operand in operands[1:])
        exact = x * y + z
        result = exact.astype(np.float32)
        if "rm" in parts:
            result = np.where(result > exact, np.nextafter(result, np.float32(-np.inf)), result)
        run.put(operands[0], result)

    return act


def _add_float(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """``add.rz``, towards zero."""

    def act(run: Run) -> None:
        x, y = (np.asarray(run.value(operand, "f32")).astype(np.float64) for operand in operands[1:])
        result = (x + y).astype(np.float32)
        run.put(operands[0], np.where(np.abs(result) > np.abs(x + y), np.nextafter(result, np.float32(0)), result))

    return act


def _shift(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    kind = parts[-1]
    bits = 8 * TYPES[kind].itemsize

    def act(run: Run) -> None:
        values, by = np.asarray(run.value(operands[1], kind)), np.asarray(run.value(operands[2], "u32"))
        inside = np.minimum(by, bits - 1).astype(values.dtype)
        if parts[0] == "shl":
            result = np.where(by < bits, values << inside, 0)
        else:
            result = values >> inside if kind[0] == "s" else np.where(by < bits, values >> inside, 0)
        run.put(operands[0], result.astype(values.dtype))

    return act


def _divide(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    """Of integers: towards zero, as in C."""
    kind = parts[-1]

    def act(run: Run) -> None:
        x, y = (np.asarray(run.value(operand, kind)) for operand in operands[1:])
        if kind[0] == "f":
            run.put(operands[0], x / y)
            return
        y = np.where(y == 0, y.dtype.type(1), y)
        quotient = np.where((x < 0) != (y < 0), -(np.abs(x) // np.abs(y)), np.abs(x) // np.abs(y)).astype(x.dtype)
        run.put(operands[0], quotient if parts[0] == "div" else x - quotient * y)

    return act


_SIMPLE: dict[str, Callable[..., Array]] = {
    "cvta": lambda x: x, "not": np.invert, "neg": np.negative, "abs": np.abs,
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "max": np.fmax, "min": np.fmin, "copysign": lambda x, y: np.copysign(y, x),
    "ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x, "tanh": np.tanh,
}  # fmt: skip


def _plain(parts: list[str], operands: list[str]) -> Callable[[Run], None]:
    if parts[0] == "add" and "rz" in parts:
        return _add_float(parts, operands)
    kind, function = parts[-1], _SIMPLE[parts[0]]
    return lambda run: run.put(operands[0], function(*(run.value(operand, kind) for operand in operands[1:])))


_MAKERS: dict[tuple[str, ...], Callable[[list[str], list[str]], Callable[[Run], None]]] = {
    ("ld",): _load,
    ("st",): _store,
    ("atom", "red"): _atomic,
    ("cvt",): _convert,
    ("mov",): _move,
    ("bfi",): _insert_bits,
    ("shfl",): _exchange,
    ("mma",): _multiply_matrices,
    ("ldmatrix",): _load_matrices,
    ("setp",): _compare,
    ("selp",): _select,
    ("mul", "mad"): _multiply,
    ("fma",): _fma,
    ("shl", "shr"): _shift,
    ("div", "rem"): _divide,
    tuple(_SIMPLE): _plain,
}
