"""The search space: the settings to search over, with ranges or choices of values."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fflm.errors import FflmError, SettingsError
from fflm.models.classifier import train as classifier_train
from fflm.models.creation import pop_fields
from fflm.models.neural import train as neural_train
from fflm.network.config import NetworkConfig
from fflm.training.settings import TrainingSettings

SamplerName = Literal["bayesian", "random", "grid"]
Kind = Literal["network", "classifier"]

OPTIONS = {"network": neural_train.OPTIONS, "classifier": classifier_train.OPTIONS}
"""The settings of each kind of model."""

LOGARITHMIC = ("rate", "weight_decay", "decay")
"""Settings whose ranges are searched on a logarithmic scale, unless a range starts at 0."""

POOLED = {"mean", "max"}
"""The inputs that read texts in the same form; a window cuts texts, and features are computed from them."""

CHOICES = 1000
"""Largest number of values of a setting to choose from."""

DIGITS = 3
"""Number of significant digits of the values that are tried, so that tables can show the exact values."""


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, inclusive; only integers if both ends are integers.

    Raises
    ------
    FflmError
        If ``low`` is not less than ``high``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SettingsError(f"the range {self.low}..{self.high} is empty: give the smaller number first")


@dataclass(frozen=True)
class Choices:
    """A set of values to choose from.

    Raises
    ------
    FflmError
        If there are fewer than two or more than `CHOICES` values, or a value is repeated.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.values) > CHOICES:
            raise SettingsError(f"{len(self.values):,} choices are too many: give at most {CHOICES:,}, or a range")
        if len(set(self.values)) < max(2, len(self.values)):
            raise SettingsError(f"{'|'.join(map(show, self.values))} is not a choice: give several different values")


Space: TypeAlias = Mapping[str, Range | Choices]
"""The values to search over, by the name of the setting: a field of `NetworkConfig` or `TrainingSettings`."""

DEFAULT_SPACE: Space = {
    "rate": Range(5e-4, 1e-2),
    "dropout": Range(0.0, 0.6),
    "embedding_dropout": Range(0.0, 0.4),
    "weight_decay": Range(0.01, 1.0),
}
"""The default search space of language models."""

CLASSIFIER_SPACE: Space = {
    "rate": Range(5e-3, 0.5),
    "embedding_dropout": Range(0.0, 0.6),
    "weight_decay": Range(1e-7, 1e-3),
    "hidden": Choices(((), (50,), (200,))),
}
"""The default search space of classifiers, whose default optimizer is AdaGrad."""


def searchable(kind: Kind = "network") -> tuple[str, ...]:
    """Return the names of all settings that can be searched over, for a kind of model."""
    names = [field.name for of in (NetworkConfig, TrainingSettings) for field in dataclasses.fields(of)]
    return tuple(name for name in names if name in OPTIONS[kind] and name != "frozen")  # a search has no embeddings to freeze


def logarithmic(name: str, part: Range) -> bool:
    """Return whether a range is searched on a logarithmic scale."""
    return name in LOGARITHMIC and part.low > 0


def show(value: Any) -> str:
    """Return the value of a setting as text, such as ``512,256`` for the sizes of layers or ``yes`` for True."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "0"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def check_space(
    space: Space, sampler: SamplerName, config: NetworkConfig, settings: TrainingSettings, kind: Kind = "network"
) -> None:
    """Raise an FflmError if a setting cannot be searched over, or cannot have one of its values, or the sampler needs choices.

    There must be at least one setting.
    """
    if not space:
        raise SettingsError("the search space is empty: give a range or choices of at least one setting")
    for name, part in space.items():
        if name not in searchable(kind):
            raise SettingsError(f"cannot search over {name!r}: choose from {', '.join(searchable(kind))}")
        if sampler == "grid" and isinstance(part, Range):
            raise SettingsError(
                f"a grid needs choices rather than the range {part.low}..{part.high}: give several values of {name}"
            )
    inputs = space.get("input")
    if isinstance(inputs, Choices) and not {config.input, *inputs.values} <= POOLED:
        raise SettingsError(
            "all trials read the same texts, so only the inputs mean and max can be compared: give these as choices"
        )
    for values in extreme_values(space):
        with_values(config, settings, values)


def extreme_values(space: Space) -> list[dict[str, Any]]:
    """Return each choice and each end of a range, as a dict of one setting and its value."""
    return [
        {name: value}
        for name, part in space.items()
        for value in (part.values if isinstance(part, Choices) else (part.low, part.high))
    ]


def with_values(
    config: NetworkConfig, settings: TrainingSettings, values: Mapping[str, Any]
) -> tuple[NetworkConfig, TrainingSettings]:
    """Return the settings of network and training with some of their fields replaced by ``values``."""
    fields = dict(values)
    config = dataclasses.replace(config, **pop_fields(fields, NetworkConfig))
    return config, dataclasses.replace(settings, **pop_fields(fields, TrainingSettings))


def part_from_dict(name: str, fields: Mapping[str, Any]) -> Range | Choices:
    """Return the range or choices of a setting, given its ``dataclasses.asdict`` from a JSON file.

    Raises
    ------
    FflmError
        If the fields are neither those of a range nor those of choices.
    """
    if "values" in fields:
        return Choices(tuple(tuple(value) if isinstance(value, list) else value for value in fields["values"]))
    if not {"low", "high"} <= fields.keys():
        raise FflmError(f"{name} has neither a range nor choices")
    return Range(fields["low"], fields["high"])


def count_values(part: Range | Choices) -> float:
    """Return the number of values, which is infinite for a range of floats."""
    if isinstance(part, Choices):
        return len(part.values)
    return part.high - part.low + 1 if isinstance(part.low, int) and isinstance(part.high, int) else math.inf


def rounded(value: Any, part: Range | Choices) -> Any:
    """Return a float of a range, rounded to `DIGITS` significant digits and still in the range; other values are unchanged."""
    if not isinstance(value, float) or isinstance(part, Choices):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), part.low), part.high)
