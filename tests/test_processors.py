"""The number of usable processors, from files of Linux control groups, and for worker processes of `tokenize`."""

import os

import pytest

from fflm import workers
from fflm.processors import usable_processors
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.vocabulary import VocabularyRule

GROUPS = {
    "no control groups": ({}, 8),
    "without a quota": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
    "a quota": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
    "a part of a processor": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
    "two and a half processors": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
    "a quota that is larger than the machine": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 8),
    "a quota of a group inside": (
        {
            "proc/self/cgroup": "0::/system.slice/job.service",
            "sys/fs/cgroup/system.slice/job.service/cpu.max": "300000 100000",
            "sys/fs/cgroup/system.slice/cpu.max": "max 100000",
        },
        3,
    ),
    "a quota of a group above": (
        {
            "proc/self/cgroup": "0::/system.slice/job.service",
            "sys/fs/cgroup/system.slice/job.service/cpu.max": "300000 100000",
            "sys/fs/cgroup/system.slice/cpu.max": "200000 100000",
        },
        2,
    ),
    "another one's quota": ({"proc/self/cgroup": "0::/ours", "sys/fs/cgroup/theirs/cpu.max": "100000 100000"}, 8),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n0::/job",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1 in a container, which shows the host's path": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/0123456789",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        3,
    ),
}


@pytest.mark.parametrize(("contents", "expected"), GROUPS.values(), ids=GROUPS)
def test_usable_processors_respects_cgroup_quotas(tmp_path, monkeypatch, contents, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, content in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert usable_processors(tmp_path) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to processors")
def test_tokenize_on_one_processor_starts_no_worker_processes(tmp_path, monkeypatch):
    class Workers:
        def __init__(self, *arguments):
            raise AssertionError(f"{arguments[0]} worker processes")

    monkeypatch.setattr(workers, "_Workers", Workers)
    monkeypatch.setattr(workers, "SERIAL_SECONDS", -1)
    (tmp_path / "text").write_text("the cat sat on the mat .\n" * 20_000)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_processors() == 1
        tokenize(TextSource([tmp_path / "text"], TextSettings(), VocabularyRule(), None), tmp_path / "ids")
    finally:
        os.sched_setaffinity(0, allowed)
