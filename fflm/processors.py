"""The number of processors, and the memory, that this process may use."""

import math
import os
import re
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


def available_memory(root: Path = Path("/")) -> int:
    """Return the number of bytes of memory that this process can use without swapping: what is free, limited by control groups.

    Where the system does not say what is free, this is half of all memory.

    Parameters
    ----------
    root
        As for `usable_processors`.
    """
    found = re.search(r"^MemAvailable: +(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    if found:
        free = 1024 * int(found[1])
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 1 << 30
    return max(0, min([free, *_unused(root)]))


def _unused(root: Path) -> Iterator[int]:
    """Yield the bytes that are left to each control group of this process whose memory is limited.

    Cached pages of files count as used, so that this may be too few.
    """
    for folder, version in _groups(root, "memory"):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
        limit, used = (_read(folder / name) for name in names)
        if limit.isdecimal() and used.isdecimal():
            yield int(limit) - int(used)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quota of each control group of this process that has one, in processors."""
    for folder, version in _groups(root, "cpu"):
        if version == 1:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        else:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folder of each control group of this process that may limit a resource, and the version, 1 or 2.

    The limits of a group's parents apply, too. In a container, the container's own group is the topmost one that is visible, and
    the path in ``proc`` may be that on the host, which does not exist in the container. Sources:
    https://docs.kernel.org/admin-guide/cgroup-v2.html and, for version 1, https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, 1 if controllers else 2
            if folder == top:
                break


def _read(path: Path) -> str:
    """Return the content of a file, or an empty string if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
