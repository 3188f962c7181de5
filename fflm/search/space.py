"""The space of a search: ranges and choices of settings."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fflm.errors import FflmError
from fflm.models.creation import pop_fields
from fflm.models.neural.train import OPTIONS
from fflm.network.config import NetworkConfig
from fflm.training.settings import TrainingSettings

SamplerName = Literal["bayesian", "random", "grid"]

LOGARITHMIC = ("rate", "weight_decay", "decay")
"""Settings whose ranges are searched on a logarithmic scale, unless they begin at 0."""

DIGITS = 3
"""Significant digits of the numbers that are tried, so that a table can show them whole."""


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, both included: whole ones if both are.

    Raises
    ------
    FflmError
        If there are none.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise FflmError(f"the range {self.low}..{self.high} is empty: let the first number be the smaller one")


@dataclass(frozen=True)
class Choices:
    """Some values.

    Raises
    ------
    FflmError
        If there are less than two different ones.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(set(self.values)) < max(2, len(self.values)):
            raise FflmError(f"nothing to choose from in {'|'.join(map(show, self.values))}: give several values, each once")


Space: TypeAlias = Mapping[str, Range | Choices]
"""What is searched: fields of `NetworkConfig` and `TrainingSettings`."""

DEFAULT_SPACE: Space = {
    "rate": Range(5e-4, 1e-2),
    "dropout": Range(0.0, 0.6),
    "embedding_dropout": Range(0.0, 0.4),
    "weight_decay": Range(0.01, 1.0),
}
"""What is searched if nobody says."""


def searchable() -> tuple[str, ...]:
    """Return the names of all settings that can be searched."""
    names = [field.name for of in (NetworkConfig, TrainingSettings) for field in dataclasses.fields(of)]
    return tuple(name for name in names if name in OPTIONS and name != "frozen")  # no embeddings are given, so none can be frozen


def logarithmic(name: str, part: Range) -> bool:
    """Return whether a range is searched on a logarithmic scale."""
    return name in LOGARITHMIC and part.low > 0


def show(value: Any) -> str:
    """Return a setting's value as it is written on the command line, such as ``512,256`` for sizes of layers."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "0"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def check_space(space: Space, sampler: SamplerName, config: NetworkConfig, settings: TrainingSettings) -> None:
    """Raise an FflmError if something cannot be searched, or has values that the setting cannot have."""
    for name, part in space.items():
        if name not in searchable():
            raise FflmError(f"cannot search {name!r}: choose from {', '.join(searchable())}")
        if sampler == "grid" and isinstance(part, Range):
            raise FflmError(f"a grid needs choices: write {name} as {part.low}|{part.high}, with more between them")
    for values in extreme_values(space):
        with_values(config, settings, values)


def extreme_values(space: Space) -> list[dict[str, Any]]:
    """Return all choices, and the ends of all ranges, each as the value of one setting."""
    return [
        {name: value}
        for name, part in space.items()
        for value in (part.values if isinstance(part, Choices) else (part.low, part.high))
    ]


def with_values(
    config: NetworkConfig, settings: TrainingSettings, values: Mapping[str, Any]
) -> tuple[NetworkConfig, TrainingSettings]:
    """Return settings with some values in place of their own."""
    fields = dict(values)
    return dataclasses.replace(config, **pop_fields(fields, NetworkConfig)), dataclasses.replace(
        settings, **pop_fields(fields, TrainingSettings)
    )


def part_from_dict(name: str, fields: Mapping[str, Any]) -> Range | Choices:
    """Return a part of a space from what ``dataclasses.asdict`` and JSON made of it."""
    if "values" in fields:
        return Choices(tuple(tuple(value) if isinstance(value, list) else value for value in fields["values"]))
    if not {"low", "high"} <= fields.keys():
        raise FflmError(f"{name} has neither a range nor choices")
    return Range(fields["low"], fields["high"])


def count_values(part: Range | Choices) -> float:
    """Return how many values there are."""
    if isinstance(part, Choices):
        return len(part.values)
    return part.high - part.low + 1 if isinstance(part.low, int) and isinstance(part.high, int) else math.inf


def rounded(value: Any, part: Range | Choices) -> Any:
    """Return a number of a range with a few digits, still in the range; anything else as it is."""
    if not isinstance(value, float) or isinstance(part, Choices):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), part.low), part.high)
