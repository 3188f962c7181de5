"""The settings of n-gram models."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

from msgspec import Meta

from fflm.arguments import Count
from fflm.errors import SettingsError
from fflm.models.description import LARGEST_ORDER
from fflm.processors import available_memory

ORDER = 5
"""Default order of a model."""

Order: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST_ORDER, description="Order: length of the longest n-grams.")]

Prune: TypeAlias = Annotated[
    tuple[Count, ...],
    Meta(
        description="Remove n-grams that occur at most this many times: a number for each order, 0 for single words; the last one"
        " is also for all longer n-grams. 0,0,1 removes n-grams of three and more words that occur once."
    ),
]

PruneEntropy: TypeAlias = Annotated[
    float,
    Meta(
        ge=0,
        lt=1,
        description="Remove each n-gram without which the perplexity of the model rises by less than this ratio, such as 1e-8.",
    ),
]

MEMORY = "50%"
"""Default memory for the estimation of a model."""

Memory: TypeAlias = Annotated[
    str,
    Meta(
        description="Memory for n-grams while they are counted and written, such as 2G, or a share of what is free. Beyond it,"
        " they are on disk only. The model does not depend on it.",
    ),
]

Stages: TypeAlias = Annotated[
    Callable[[str, float], None] | None,
    Meta(description="Function that is called with what is done to the n-grams, and the share of it that is complete."),
]


def memory_bytes(memory: str, processes: int = 1) -> int:
    """Return the memory of one process in bytes; a share of what is free is for all processes together.

    Parameters
    ----------
    memory
        As `Memory` describes it.
    processes
        The number of processes.

    Raises
    ------
    FflmError
        If ``memory`` is neither a size nor a share.
    """
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?([KMGT]|%)", memory):
        raise SettingsError(f"`memory` is {memory!r}: give a size such as 500M or 2G, or a share such as 50%")
    number, unit = float(memory[:-1]), memory[-1]
    if unit == "%":
        return int(number / 100 * available_memory() / processes)
    return int(number * 1024 ** (1 + "KMGT".index(unit)))


def largest_pruned(prune: Sequence[int], order: int) -> list[int]:
    """Return the largest count of the n-grams that are removed, for each order.

    The numbers ascend, so that an n-gram is never kept without those that it begins and ends with, which occur at least as often.

    Raises
    ------
    FflmError
        If there are more numbers than orders, the first is not 0, or the numbers do not ascend.
    """
    given = list(prune) or [0]
    if len(given) > order:
        raise SettingsError(f"`prune` has {len(given)} numbers, but the model has the order {order}: give at most {order}")
    if given[0]:
        raise SettingsError(f"`prune` begins with {given[0]}: give 0 for single words, which are all kept")
    if given != sorted(given):
        raise SettingsError(
            f"`prune` is {', '.join(map(str, given))}: give numbers of which none is smaller than the one before it"
        )
    return given + [given[-1]] * (order - len(given))
