"""Held-out parts: which tokens of a text are for validation and test."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from fflm.arguments import Texts, plain, to_texts
from fflm.errors import FflmError
from fflm.given import Text


@dataclass(frozen=True)
class Share:
    """The size of a held-out part as a share of the tokens, in (0, 1)."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < 1:
            raise FflmError(f"cannot hold out {self.value:.0%} of the text: give a share such as 5%")


@dataclass(frozen=True)
class Count:
    """The size of a held-out part as a number of tokens, at least 1."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise FflmError(f"cannot hold out {self.tokens} tokens: give at least 1")


HeldOut: TypeAlias = Share | Count | float | Texts
"""A part for validation or test, in the forms that `parse_held_out` accepts."""

Valid: TypeAlias = Annotated[
    HeldOut | None,
    Meta(
        description="Validation text: files or folders, or the amount to cut off the end of the text: a share (5%), a number of "
        "tokens (200000), or 0 for none."
    ),
]
Test: TypeAlias = Annotated[HeldOut | None, Meta(description="Test text, in the same forms.")]


def parse_held_out(name: str, given: HeldOut | None) -> Share | Count | tuple[Path | Text, ...] | None:
    """Parse what a caller gave for a held-out part: a size to cut off the end of the text, or files of its own.

    Parameters
    ----------
    name
        The name of the argument, for error messages.
    given
        ``0.05`` or ``"5%"`` is a share; ``200000`` or ``"200000"`` is a number of tokens; any other string, or several of them,
        are paths; a text in memory may stand for each; ``0``, None or an empty list means no such part.

    Returns
    -------
    Share, Count, tuple of Path or Text, or None
        None means that there is no such part.

    Raises
    ------
    FflmError
        If the share or the number is out of range, or the value has none of these forms.
    """
    value: Any = plain(given)
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    if value is None or isinstance(value, Share | Count):
        return value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value.removesuffix("%"))
            value = number / 100 if value.endswith("%") else int(value) if value.isdecimal() else number
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value == 0:
            return None
        return Share(value) if isinstance(value, float) else Count(value)
    return to_texts(name, value)
