"""Encoding of PTX: each instruction of a kernel becomes a row of the table that `ptx_interpreter` executes."""

import re
from typing import Any

import numpy as np
import ptx_interpreter as interpreter
from ptx_interpreter import KINDS, RELATIONS, ROUNDINGS, UNORDERED, WIDTH, PtxError
from ptx_reader import SPECIAL, Instruction, Source

TYPES = {
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f32": np.dtype(np.float32),
}

FLOATS = {
    "mov": interpreter.COPY,
    "selp": interpreter.SELECT,
    "add": interpreter.F_ADD,
    "sub": interpreter.F_SUBTRACT,
    "mul": interpreter.F_MULTIPLY,
    "div": interpreter.F_DIVIDE,
    "fma": interpreter.FMA,
    "fma.rm": interpreter.FMA_DOWN,
    "add.rz": interpreter.ADD_TO_ZERO,
    "neg": interpreter.F_NEGATE,
    "abs": interpreter.F_ABS,
    "min": interpreter.F_MINIMUM,
    "max": interpreter.F_MAXIMUM,
    "copysign": interpreter.COPYSIGN,
    "ex2": interpreter.EX2,
    "lg2": interpreter.LG2,
    "sqrt": interpreter.SQRT,
    "rsqrt": interpreter.RSQRT,
    "rcp": interpreter.RCP,
    "tanh": interpreter.TANH,
}
"""Operations on floats by the names of instructions, with the modifiers that change the meaning."""

INTEGERS = {
    "mov": interpreter.COPY,
    "cvta": interpreter.COPY,
    "selp": interpreter.SELECT,
    "add": interpreter.ADD,
    "sub": interpreter.SUBTRACT,
    "mul": interpreter.MULTIPLY,
    "mul.wide": interpreter.MULTIPLY_WIDE,
    "mul.hi": interpreter.MULTIPLY_HIGH,
    "mad": interpreter.MULTIPLY_ADD,
    "mad.wide": interpreter.MULTIPLY_ADD_WIDE,
    "and": interpreter.AND,
    "or": interpreter.OR,
    "xor": interpreter.XOR,
    "not": interpreter.NOT,
    "neg": interpreter.NEGATE,
    "shl": interpreter.SHIFT_LEFT,
    "shr": interpreter.SHIFT_RIGHT,
    "min": interpreter.MINIMUM,
    "max": interpreter.MAXIMUM,
    "div": interpreter.DIVIDE,
    "rem": interpreter.REMAINDER,
}
"""Operations on integers and bits by the names of instructions, with their modifiers."""


def bits_of(value: Any) -> int:
    """Return the content of a register for a number: integers have 64 bits, floats are in the lower half."""
    if isinstance(value, np.floating):
        return int(np.float32(value).view(np.uint32))
    return (int(value) + 2**63) % 2**64 - 2**63


class Encoder:
    """The table of instructions of a kernel, and the numbers of its registers.

    Attributes
    ----------
    registers
        The number of each register by name; constants, addresses and parameters have registers, too.
    constants
        The initial contents of registers, by number.
    table
        The rows of all instructions (instructions x `WIDTH`,), and then registers of instructions that have many.
    special
        The numbers of the `SPECIAL` registers.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.registers: dict[str, int] = {}
        self.constants: dict[int, int] = {}
        self._lists: list[int] = []
        lines = [number for instruction in source.instructions for number in self._line(instruction)]
        self.table = np.array(lines + self._lists)
        self.special = np.array([self._register(name) for name in SPECIAL])

    def _register(self, operand: str) -> int:
        """Return the number of the register of an operand, which may be a constant, an address or a parameter."""
        if operand not in self.registers:
            self.registers[operand] = number = len(self.registers)
            if operand in self._source.places:
                self.constants[number] = self._source.places[operand]
            elif operand[:2] in ("0f", "0F"):
                self.constants[number] = int(operand[2:], 16)
            elif re.match(r"-?\d", operand):
                self.constants[number] = bits_of(int(operand.removesuffix("U"), 0))
            elif not {operand, operand.rstrip("0123456789")} & self._source.declared:
                raise PtxError(f"unknown register {operand}")
        return self.registers[operand]

    def _registers(self, operand: str) -> list[int]:
        """Return the numbers of the registers of a vector."""
        return [self._register(each.strip()) for each in operand.strip("{}").split(",")]

    def _address(self, operand: str) -> tuple[int, int]:
        """Return the register and the offset of an address."""
        base, _, offset = operand.strip("[] ").partition("+")
        return self._register(base.strip()), int(offset or 0)

    def _line(self, instruction: Instruction) -> list[int]:
        """Return the row of an instruction in the table."""
        guard = self._register(instruction.guard) if instruction.guard else -1
        operation, kind, columns = self._operation(instruction)
        line = [operation, guard, int(instruction.negated), kind, *columns]
        return line + [0] * (WIDTH - len(line))

    def _operation(self, instruction: Instruction) -> tuple[int, int, list[int]]:
        """Return the operation of an instruction, the kind of its numbers, and its operands."""
        parts, operands = instruction.parts, instruction.operands
        name, last = parts[0], parts[-1]
        kind = KINDS.index(last.replace("b", "u")) if last.replace("b", "u") in KINDS else -1
        unknown = PtxError(f"unknown instruction {instruction.text}")
        if name == "bra":
            return interpreter.BRANCH, 0, [self._source.labels[operands[0]]]
        if name in ("bar", "barrier"):
            return interpreter.BARRIER, 0, []
        if name in ("ret", "exit"):
            return interpreter.END, 0, []
        if name in ("ld", "st", "atom", "red"):
            return self._memory(parts, operands, kind, unknown)
        if instruction.name == "cp.async.cg.shared.global" and len(operands) == 4 and operands[2] == "16":
            return (
                interpreter.COPY_ASYNC,
                0,
                [*self._address(operands[0]), *self._address(operands[1]), self._register(operands[3])],
            )
        if instruction.name == "cp.async.commit_group":
            return interpreter.COMMIT_COPIES, 0, []
        if instruction.name == "cp.async.wait_group":
            return interpreter.WAIT_FOR_COPIES, 0, [int(operands[0])]
        if instruction.name == "fence.proxy.async.shared::cta":
            return interpreter.PUBLISH, 0, []
        if name == "wgmma":
            return self._group(instruction, unknown)
        if name == "shfl" and parts[1:3] == ["sync", "bfly"]:
            target, _, valid = operands[0].partition("|")
            return interpreter.EXCHANGE, kind, [self._register(each) for each in (target, valid or "_", *operands[1:])]
        if instruction.name == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32":
            return interpreter.MMA, kind, [register for operand in operands for register in self._registers(operand)]
        if instruction.name == "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32":
            return interpreter.MMA_TF32, kind, [register for operand in operands for register in self._registers(operand)]
        if instruction.name == "cvt.rna.tf32.f32":
            return interpreter.TO_TF32, 0, [*map(self._register, operands)]
        if re.fullmatch(r"ldmatrix\.sync\.aligned\.m8n8\.x4(\.trans)?\.shared\.b16", instruction.name):
            return interpreter.LDMATRIX, kind, [*self._registers(operands[0]), *self._address(operands[1]), int("trans" in parts)]
        if name == "bfi":
            return interpreter.INSERT_BITS, kind, [*map(self._register, operands[:3]), int(operands[3]), int(operands[4])]
        if name == "mov" and "{" in operands[0] + operands[1]:
            kind = KINDS.index(f"u{int(last[1:]) // 2}")
            operation = interpreter.SPLIT if operands[0][0] == "{" else interpreter.JOIN
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
                return interpreter.F_COMPARE if last == "f32" else interpreter.COMPARE, kind, [*columns, number]
        modes = {part for part in parts[1:-1] if part not in ("approx", "ftz", "full", "rn", "to", "global", "lo", "uni")}
        operations = FLOATS if last == "f32" else INTEGERS
        key = ".".join([name, *sorted(modes)])
        if last == "pred" and name in ("not", "and", "or", "xor", "mov"):
            if any(operand.isdigit() and operand != "0" for operand in operands):  # all bits of a predicate are equal
                raise unknown
            return INTEGERS[name], 0, columns
        sizes = {"wide": ("16", "32"), "hi": ("32",)}  # of factors, in bits
        if kind < 0 or key not in operations or any(last[1:] not in sizes[each] for each in modes & set(sizes)):
            raise unknown
        return operations[key], kind, columns

    def _group(self, instruction: Instruction, unknown: PtxError) -> tuple[int, int, list[int]]:
        """Return the operation of an instruction of a group of four warps, and its operands."""
        plain = {
            "wgmma.fence.sync.aligned": interpreter.GROUP_FENCE,
            "wgmma.commit_group.sync.aligned": interpreter.GROUP_COMMIT,
            "wgmma.wait_group.sync.aligned": interpreter.GROUP_WAIT,
        }
        operands = instruction.operands
        if instruction.name in plain and len(operands) == (instruction.name == "wgmma.wait_group.sync.aligned"):
            return plain[instruction.name], 0, [int(each) for each in operands]
        shape = re.fullmatch(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.f16\.f16", instruction.name)
        if shape is None or operands[4:6] != ["1", "1"]:
            raise unknown
        start = len(self._source.instructions) * WIDTH + len(self._lists)
        self._lists += (registers := self._registers(operands[0]))
        if len(registers) != int(shape[1]) // 2:
            raise unknown
        transposed = [int(each) for each in operands[6:8]]
        descriptors = [self._register(each) for each in operands[1:3]]
        return interpreter.GROUP_MMA, 0, [start, int(shape[1]), *descriptors, *transposed, self._register(operands[3])]

    def _memory(self, parts: list[str], operands: list[str], kind: int, unknown: PtxError) -> tuple[int, int, list[int]]:
        if parts[:2] == ["ld", "param"]:
            return interpreter.COPY, kind, [self._register(operands[0]), self._register(operands[1].strip("[] "))]
        if parts[1] not in ("global", "shared") or kind < 0:
            raise unknown
        shared = int(parts[1] == "shared")
        if parts[0] in ("ld", "st"):
            target, source = operands if parts[0] == "ld" else operands[::-1]
            registers = self._registers(target)
            operation = interpreter.LOAD if parts[0] == "ld" else interpreter.STORE
            return operation, kind, [*self._address(source), len(registers), shared, *registers]
        if "add" not in parts or shared or parts[-1] not in ("u32", "s32", "u64", "f32"):
            raise unknown
        result = self._register(operands[0]) if parts[0] == "atom" and operands[0] != "_" else -1
        return interpreter.ATOMIC_ADD, kind, [*self._address(operands[-2]), 1, 0, self._register(operands[-1]), result]

    def _conversion(self, parts: list[str], columns: list[int], unknown: PtxError) -> tuple[int, int, list[int]]:
        to, of = parts[-2:]
        if set(parts[1:-2]) - {"rn", "ftz", "sat", *ROUNDINGS} or (to == "f16x2" and parts[1:-2] != ["rn"]):
            raise unknown  # the interpreter would round in another way
        rounding = ROUNDINGS.index(next((part for part in parts if part in ROUNDINGS), ""))
        if (to, of) == ("f16x2", "f32"):
            return interpreter.HALVES, 0, columns
        if (to, of) == ("f32", "f16"):
            return interpreter.F_FROM_HALF, 0, columns
        if to not in KINDS or of not in KINDS:
            raise unknown
        if to == of == "f32":
            return interpreter.F_ROUND, 0, [*columns, rounding, int("sat" in parts)]
        if of == "f32":
            return interpreter.F_TO_INTEGER, KINDS.index(to), [*columns, rounding]
        if to == "f32":
            return interpreter.F_FROM_INTEGER, KINDS.index(of), columns
        if "sat" in parts:
            raise unknown
        return interpreter.WIDEN, KINDS.index(min(of, to, key=lambda kind: TYPES[kind].itemsize)), columns
