"""The number of processors that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_processors(root: Path = Path("/")) -> int:
    """Return the number of processors that this process may use: its CPU affinity, limited by the quotas of control groups.

    Parameters
    ----------
    root
        The folder that contains ``proc`` and ``sys``, where Linux describes control groups.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quota of each control group of this process that has one, in processors.

    The quotas of a group's parents apply, too. In a container, the container's own group is the topmost one that is visible, and
    the path in ``proc`` may be that on the host, which does not exist in the container. Sources:
    https://docs.kernel.org/admin-guide/cgroup-v2.html and, for version 1, https://docs.kernel.org/scheduler/sched-bwc.html.
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
    """Return the content of a file, or an empty string if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
