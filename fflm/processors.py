"""How many processors this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_processors(root: Path = Path("/")) -> int:
    """Return how many processors this process may keep busy: those it is bound to, or fewer if it or its container has a quota.

    Parameters
    ----------
    root
        Where Linux shows control groups, in ``proc`` and ``sys``.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield how many processors each control group of this process may use, if it has a quota.

    A group is limited by those above it, too. In a container, its own group is the uppermost that can be seen, and the path to it
    may be that of the host, which does not exist there. Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and, for
    version 1, https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if controllers:
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            else:
                quota, _, period = _read(folder / "cpu.max").partition(" ")
            if quota.isdecimal() and period.isdecimal():
                yield int(quota) / int(period)
            if folder == top:
                break


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
