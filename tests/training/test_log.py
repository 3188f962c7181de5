"""The log of training: events are appended, read, and truncated to a checkpoint."""

from pathlib import Path

import pytest

from fflm.errors import FflmError
from fflm.training.log import append_log, read_log, truncate_log


def test_truncate_log_removes_later_events(tmp_path):
    path = tmp_path / "log.jsonl"
    append_log(path, "start", words=3)
    length = append_log(path, "rolled back", loss=0.5)
    append_log(path, "rolled back", loss=0.25)
    assert length == len(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    truncate_log(path, length)
    assert read_log(path, {}) == [{"event": "start", "words": 3}, {"event": "rolled back", "loss": 0.5}]


def test_truncate_log_does_not_lengthen_file(tmp_path):
    path = tmp_path / "log.jsonl"
    truncate_log(path, 100)
    assert path.read_bytes() == b""


def test_read_log_ignores_only_incomplete_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start"}\n{"event": "eval')
    assert read_log(path, {}) == [{"event": "start"}]
    path.write_text('{"event": "start"}\n' + "[" * 100_000)
    assert read_log(path, {}) == [{"event": "start"}]
    path.write_bytes(b'{"event": "st\xff\n{"event": "evaluation"}\n')
    with pytest.raises(FflmError, match="line 1, is damaged"):
        read_log(path, {})


def test_read_log_without_file_is_refused(tmp_path: Path):
    with pytest.raises(FflmError, match="No such file"):
        read_log(tmp_path / "log.jsonl", {})
