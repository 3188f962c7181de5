"""Parsing of PTX: the text of a kernel becomes parameters, places in shared memory, labels and instructions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ptx_interpreter import PtxError

SPECIAL = ("%tid.x", "%laneid", "%ctaid.x", "%ctaid.y", "%ctaid.z")
"""Registers that differ between threads, in the order in which `ptx_interpreter.run_blocks` expects them."""

SIZES = ("%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%dynamic_smem_size")
"""Registers that hold the same number in every thread of a launch."""


@dataclass
class Instruction:
    """An instruction ``@guard name operands``; the guard may be negated."""

    text: str
    guard: str | None
    negated: bool
    name: str
    operands: list[str]

    @property
    def parts(self) -> list[str]:
        """The parts of the name, such as ``["ld", "global", "f32"]``."""
        return self.name.split(".")


@dataclass
class Source:
    """A parsed kernel.

    Attributes
    ----------
    name
        The name of the kernel.
    parameters
        Type and name of each parameter.
    places
        The offset of each array in shared memory, by name.
    shared_bytes
        The size of shared memory in bytes.
    declared
        The names of registers, without the numbers at their end, and of parameters.
    labels
        The number of the instruction that follows each label.
    instructions
        The instructions in order.
    """

    name: str
    parameters: list[tuple[str, str]]
    places: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    declared: set[str] = field(default_factory=lambda: {"_", *SPECIAL, *SIZES})
    labels: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)


def read(text: str) -> Source:
    """Parse a text with one kernel.

    Raises
    ------
    PtxError
        If the text has no kernel.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    entry = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{(.*)\}", text, re.DOTALL)
    if entry is None:
        raise PtxError("no kernel found")
    source = Source(entry[1], re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)", entry[2]))
    for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text):
        start = -(-source.shared_bytes // int(align)) * int(align)
        start += int(align) * (start // int(align) % 2 == 0)  # no array has a larger alignment by chance
        source.places[name], source.shared_bytes = start, start + int(size)
    for align, name in re.findall(r"\.extern\s+\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[\]", text):  # given by the launch
        source.places[name] = source.shared_bytes = -(-source.shared_bytes // int(align)) * int(align)
    source.declared |= {name for _, name in source.parameters}
    for statement in _statements(entry[4]):
        _add_statement(source, statement)
    return source


def _add_statement(source: Source, statement: str) -> None:
    while label := re.match(r"([\w$]+):\s*", statement):
        source.labels[label[1]] = len(source.instructions)
        statement = statement[label.end() :]
    if statement.startswith(".reg"):
        source.declared |= {name.partition("<")[0].strip() for name in statement.split(None, 2)[2].split(",")}
    elif statement and not statement.startswith("."):
        guard, name, operands = re.fullmatch(r"(?:@(!?[\w%]+)\s+)?(\S+)\s*(.*)", statement, re.DOTALL).groups()
        split = re.split(r",\s*(?![^{[]*[}\]])", operands.strip()) if operands.strip() else []
        negated = bool(guard) and guard[0] == "!"
        source.instructions.append(Instruction(statement, guard and guard.lstrip("!"), negated, name, split))


def _statements(body: str) -> Iterator[str]:
    """Split a body at semicolons; braces of blocks of inline PTX are removed, braces of vectors are kept."""
    for piece in body.split(";"):
        yield re.sub(r"^\s*[{}\s]*", "", piece).strip()
