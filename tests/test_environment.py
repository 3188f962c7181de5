"""Environment variables of Numba with which no kernel can run are refused in one line, from Python and by commands."""

import pytest
from command import fflm as command

import fflm
from fflm.environment import check_environment
from fflm.errors import FflmError

THREADS = "the environment variable NUMBA_NUM_THREADS is {!r}: set it to a number of threads from 1 to 4,096, or unset it"
COMPILED = "kernels must be compiled: unset the environment variable NUMBA_DISABLE_JIT"


@pytest.mark.parametrize("value", ["0", "-1", "abc", "", "1.5", "4097", "9" * 5000, "\u0663"])
def test_number_of_threads_is_refused(monkeypatch, value):
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    with pytest.raises(FflmError) as refused:
        check_environment()
    assert str(refused.value) == THREADS.format(value[:20])


@pytest.mark.parametrize(
    ("name", "value", "message"), [("NUMBA_NUM_THREADS", "0", THREADS.format("0")), ("NUMBA_DISABLE_JIT", "1", COMPILED)]
)
def test_commands_and_functions_refuse_in_one_line(monkeypatch, tmp_path, name, value, message):
    monkeypatch.setenv(name, value)
    result = command("train", "text.txt", folder=tmp_path)
    assert (result.returncode, result.stderr) == (1, f"error: {message}\n")
    assert command("train", "--help", folder=tmp_path).returncode == 0
    with pytest.raises(FflmError, match=message):
        _ = fflm.train


def test_usual_values_are_accepted(monkeypatch):
    for name, value in {"NUMBA_NUM_THREADS": "4096", "NUMBA_DISABLE_JIT": "0"}.items():
        monkeypatch.setenv(name, value)
        check_environment()
    for name in ("NUMBA_NUM_THREADS", "NUMBA_DISABLE_JIT"):
        monkeypatch.delenv(name, raising=False)
    check_environment()
