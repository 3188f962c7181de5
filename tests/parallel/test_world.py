"""How a program finds out that it was started in several processes, and how these end."""

import os
import sys
import types

import pytest
from command import fflm as fflm_command
from processes import ThreadCommunicator

from fflm.backend.devices import Compute
from fflm.cli import COMMANDS
from fflm.errors import FflmError
from fflm.parallel.communicator import SINGLE_PROCESS
from fflm.parallel.launch import launched_as
from fflm.parallel.world import end_all, separate, threads_per_process, world
from fflm.processors import usable_processors

LAUNCHED = {"PMI_RANK": "1", "PMI_SIZE": "4"}


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Let `world` find out anew, and restore what it changes."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("fflm.parallel.world._separated", [])
    world.cache_clear()
    yield
    world.cache_clear()


class Recorder(ThreadCommunicator):
    """A process whose calls of `abort` are recorded, and whose others arrive or not."""

    def __init__(self, rank, size, arrive):
        super().__init__(rank, size, None, None)
        self.arrive, self.aborted = arrive, []

    def abort(self, status):
        """Record the status."""
        self.aborted.append(status)

    def all_arrive(self, seconds):
        """Return whether the others arrive."""
        return self.arrive


def imitate_launch(monkeypatch, communicator):
    """Let `world` find the variables of a launcher, and return a communicator."""
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    imitated = types.SimpleNamespace(MpiCommunicator=lambda: communicator)
    monkeypatch.setitem(sys.modules, "fflm.parallel.mpi", imitated)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        (LAUNCHED, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script, which runs once
        ({"PMI_RANK": "x", "PMI_SIZE": "2"}, (0, 1)),
    ],
)
def test_launched_as_reads_variables_of_launchers(environment, expected):
    assert launched_as(environment) == expected


def test_world_is_single_process_without_launcher(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert world() is SINGLE_PROCESS
    assert threads_per_process(7) == 7


def test_several_processes_without_mpi4py_are_refused(monkeypatch, text):
    """No command trains the same model several times."""
    imitate_launch(monkeypatch, None)
    monkeypatch.delitem(sys.modules, "fflm.parallel.mpi")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(FflmError, match=r"^4 processes were started, but mpi4py cannot be used \(.*\): run `pip install"):
        world()
    monkeypatch.setenv("PMI_RANK", "0")
    result = fflm_command("train", text, folder=".")
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: 4 processes were started, but mpi4py cannot be used" in result.stderr


def test_processes_that_are_not_connected_are_refused(monkeypatch):
    imitate_launch(monkeypatch, Recorder(0, 1, True))
    with pytest.raises(FflmError, match="4 processes were started, but MPI connects 1 of them: use the launcher"):
        world()


@pytest.mark.parametrize(
    "command",
    [
        *([name] for name in COMMANDS if name not in ("train", "tune", "score", "tokenize")),
        ("ngram", "export", "x"),
        ("classify", "predict"),
    ],
)
def test_commands_that_use_one_process_are_refused_in_several(monkeypatch, tmp_path, command):
    result = fflm_command(*command, folder=tmp_path, environment={"PMI_RANK": "0", "PMI_SIZE": "2"})
    assert result.returncode == 1
    assert result.stderr == f"error: `fflm {command[0]}` uses one process, but 2 were started: start it without mpiexec or srun\n"


def test_only_first_process_prints(tmp_path):
    result = fflm_command("info", "x", folder=tmp_path, environment={"PMI_RANK": "1", "PMI_SIZE": "2"})
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")
    assert "Usage" in fflm_command("score", "--help", folder=tmp_path, environment={"PMI_RANK": "0", "PMI_SIZE": "2"}).stdout


def test_scores_of_words_in_several_processes_are_refused(monkeypatch, text):
    imitate_launch(monkeypatch, Recorder(0, 4, True))
    monkeypatch.setenv("PMI_RANK", "0")
    result = fflm_command("score", "-m", "text.ngram", text, "--by", "word", folder=".")
    assert result.returncode == 1
    assert "--fast, --follow, --nbest or --by uses one process, but 4 were started" in result.stderr


@pytest.mark.parametrize(("visible", "expected"), [(None, "2"), ("4,5,6,7", "6"), ("GPU-a", "GPU-a"), ("4,5", ""), ("", "")])
def test_each_process_of_a_host_sees_one_gpu(monkeypatch, visible, expected):
    communicator = Recorder(3, 4, True)
    communicator.local_rank = 2
    imitate_launch(monkeypatch, communicator)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    Compute.choose()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_separate_processes_are_single_and_end_together(monkeypatch):
    communicator = Recorder(1, 4, False)
    imitate_launch(monkeypatch, communicator)
    assert separate() is communicator
    assert world().size == 1
    assert threads_per_process(100) == min(100, max(1, usable_processors() // 4))
    end_all(1, "disk full")
    assert communicator.aborted == [1]


def test_end_all_ends_others_only_if_they_have_no_error(monkeypatch, capfd):
    for rank, arrive, printed in ((1, True, ""), (1, False, "error: process 1 of 4: disk full\n"), (0, False, "")):
        world.cache_clear()
        communicator = Recorder(rank, 4, arrive)
        imitate_launch(monkeypatch, communicator)
        assert world() is communicator
        end_all(3, "disk full")
        assert communicator.aborted == ([] if arrive else [3])
        assert capfd.readouterr().err == printed


def test_exception_that_nobody_handles_ends_all(monkeypatch, capfd):
    communicator = Recorder(1, 4, False)
    imitate_launch(monkeypatch, communicator)
    world()
    with monkeypatch.context() as muted:
        muted.setattr(sys, "stderr", None)
        sys.excepthook(ValueError, ValueError("a fault"), None)
    assert communicator.aborted == [1]
    assert capfd.readouterr().err == "ValueError: a fault\n"
