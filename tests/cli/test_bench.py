"""`fflm bench` times all operations, and refuses to time operations with wrong results."""

import importlib.metadata
import json
import os
import re

import numpy as np
import pytest
from command import fflm

from fflm.backend.cpu import blas
from fflm.backend.cpu.backend import CpuBackend
from fflm.bench import ROUNDS, Size, measure
from fflm.errors import FflmError

SIZE = Size(vocabulary=70, embedding=3, window=2, hidden=5, batch=8)
OPERATIONS = [
    "gather",
    "dropout",
    "affine",
    "softmax losses",
    "softmax gradients",
    "affine backward",
    "scatter-add",
    "clip",
    "adamw",
    "log-probabilities",
    "training step",
]


def test_measure_times_all_operations_on_all_devices():
    timings = list(measure([SIZE], {"one": CpuBackend(), "other": CpuBackend()}, seconds=1e-4))
    assert [(timing.operation, timing.device) for timing in timings] == [
        (name, device) for name in OPERATIONS for device in ("one", "other")
    ]
    assert all(timing.seconds > 0 and timing.tokens_per_second == SIZE.batch / timing.seconds for timing in timings)
    step = timings[-1]
    assert step.products == 6 * 8 * 5 * (2 * 3 + 70)
    assert step.gflops == step.products / step.seconds / 1e9
    assert timings[0].gflops is None


@pytest.mark.parametrize("operation", ["gather", "affine", "output_gradients", "clip_factor"])
def test_measure_refuses_devices_with_different_results(operation):
    class Wrong(CpuBackend):
        """A backend with one operation that gives a wrong result."""

    def wrong(self, *arguments, **numbers):
        getattr(CpuBackend, operation)(self, *arguments, **numbers)
        result = [argument for argument in arguments if isinstance(argument, np.ndarray)][-1]  # of these operations
        result.reshape(-1)[0] += 1

    setattr(Wrong, operation, wrong)
    with pytest.raises(FflmError, match=r"one and other do not agree on .*; nothing was timed"):
        list(measure([SIZE], {"one": CpuBackend(), "other": Wrong()}, seconds=1e-4))


@pytest.mark.slow
def test_bench_command_output(tmp_path):
    options = ["--vocabulary", "50,60", "--hidden", "4", "--batch-size", "8", "--threads", "1", "--seconds", "0"]
    result = fflm("bench", *options, folder=tmp_path)
    assert re.fullmatch(r"devices: cpu \(1 thread\)(; no GPU: .+|, cuda \(.+\))\n", result.stderr)
    lines = result.stdout.splitlines()
    assert lines[0] == "vocabulary 50, hidden 4, batch 8"
    assert [line[2:20].rstrip() for line in lines[2 : 2 + len(OPERATIONS)]] == OPERATIONS
    assert len(lines) == 2 * (2 + len(OPERATIONS))
    found = json.loads(fflm("bench", *options, "--json", "-q", "--device", "cpu", "-o", "bench.svg", folder=tmp_path).stdout)
    assert (tmp_path / "bench.svg").stat().st_size > 1000
    assert found["devices"] == {"cpu": "cpu (1 thread)"}
    assert len(found["timings"]) == 2 * len(OPERATIONS)
    assert np.isclose(found["timings"][0]["tokens_per_second"], 8 / found["timings"][0]["seconds"])
    for timing in found["timings"]:
        assert len(timing["rounds"]) == ROUNDS
        assert timing["fastest"] == min(timing["rounds"])
        assert timing["slowest"] == max(timing["rounds"])
        assert timing["seconds"] == sorted(timing["rounds"])[ROUNDS // 2]
        assert timing["calls_per_round"] >= 1
    assert found["machine"]["threads"] == 1
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert found["machine"]["processor"]
    assert found["machine"]["blas"] == blas.description()
    for name in ("numba", "llvmlite", "numpy", "scipy", "fflm"):
        assert found["versions"][name] == importlib.metadata.version(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "0"], "sizes are positive numbers"),
        (["--vocabulary", "10,-1"], "sizes are positive numbers"),
        (["--threads", "100000"], "give --threads"),
        (["-o", "bench.gif"], "choose a name that ends in .png, .svg or .pdf"),
        (["-o", "old.png"], "old.png exists: choose another file, or replace it with"),
    ],
)
def test_bench_refuses_invalid_options(options, message, tmp_path):
    (tmp_path / "old.png").write_text("old")
    result = fflm("bench", *options, folder=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "old.png").read_text() == "old"
