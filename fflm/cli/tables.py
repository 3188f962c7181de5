"""Plain-text tables, which fit the width of a terminal, and have no limit in a file or a pipe."""

import io
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

MIN_WIDTH = 12
"""Minimum width of a column of text or of a heading on a narrow terminal, in cells."""


def printable(text: str) -> str:
    """Return a text with control characters, such as those of terminal escape sequences, escaped as in JSON."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def stdout_width() -> int | None:
    """Return the width of the terminal in cells; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    alignment: str, headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, indent: str = ""
) -> list[str]:
    """Return a table as lines.

    Parameters
    ----------
    alignment
        For each column ``l`` for text, aligned to the left, or ``r`` for numbers, aligned to the right.
    headings
        The heading of each column.
    rows
        The cells of each row.
    width
        Maximum width of a line in cells; None for no limit. If necessary, headings and then texts are wrapped, but not numbers.
    indent
        A prefix of every line.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings, rows = list(map(printable, headings)), [list(map(printable, row)) for row in rows]
    limit = None if width is None else width - len(indent)
    bodies = [max((cell_len(row[place]) for row in rows), default=0) for place in range(len(headings))]
    gap, least = 2, bodies
    if limit is not None and sum(map(max, bodies, map(cell_len, headings))) + gap * (len(headings) - 1) > limit:
        gap = 1
        broken = [_broken(heading, max(body, MIN_WIDTH)) for heading, body in zip(headings, bodies, strict=True)]
        heads = [max(map(cell_len, pieces), default=0) for pieces in broken]
        height = max(map(len, broken))
        headings = ["\n".join([""] * (height - len(pieces)) + pieces) for pieces in broken]
        least = [
            max(head, body if align == "r" else min(body, MIN_WIDTH))
            for head, body, align in zip(heads, bodies, alignment, strict=True)
        ]
        limit = max(limit, sum(least) + gap * (len(headings) - 1))
    layout = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="")
    for align, heading, minimum in zip(alignment, headings, least, strict=True):
        number = align == "r"
        justify: Literal["left", "right"] = "right" if number else "left"
        layout.add_column(Text(heading), justify=justify, min_width=minimum, no_wrap=number, vertical="top", overflow="fold")
    for row in rows:
        layout.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=limit or sys.maxsize, color_system=None)
    with console.capture() as capture:
        console.print(layout)
    return [f"{indent}{line}".rstrip() for line in capture.get().splitlines()]


def _broken(heading: str, width: int) -> list[str]:
    """Return the words of a heading, broken into pieces of at most ``width`` cells."""
    from rich.cells import chop_cells

    return [piece for word in heading.replace("/", "/ ").split() for piece in chop_cells(word, width)]


@dataclass(frozen=True)
class Column:
    """A column of a `LiveTable`.

    Attributes
    ----------
    heading
        The heading of the column.
    width
        Minimum width in cells.
    left
        Whether the cells are aligned to the left.
    optional
        Whether the column may be left out on a narrow terminal.
    """

    heading: str
    width: int = 0
    left: bool = False
    optional: bool = False

    def align(self, cell: str) -> str:
        """Return a cell, padded to the width of the column."""
        cell, width = printable(cell), max(self.width, len(self.heading))
        return cell.ljust(width) if self.left else cell.rjust(width)


class LiveTable:
    """A table whose rows are printed one by one, so that its columns have fixed widths.

    Parameters
    ----------
    columns
        The columns from left to right.
    width
        Maximum width of a line in cells; None for no limit. Optional columns that do not fit are left out, the last one first.
    """

    def __init__(self, columns: Sequence[Column], width: int | None) -> None:
        self._columns = columns
        self._shown = list(range(len(columns)))
        for place in reversed(range(len(columns))):
            if width is not None and columns[place].optional and len(self._line([""] * len(columns))) > width:
                self._shown.remove(place)

    @property
    def head(self) -> str:
        """The line of the headings."""
        return self.row([column.heading for column in self._columns])

    def row(self, cells: Sequence[str]) -> str:
        """Return a row as a line."""
        return self._line(cells).rstrip()

    def _line(self, cells: Sequence[str]) -> str:
        return " ".join(self._columns[place].align(cells[place]) for place in self._shown)
