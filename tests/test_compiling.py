"""Compiled functions on disk: found again, made anew when a file is damaged, done without where nothing can be written."""

import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numba
import numpy as np
import pytest
from command import installed_fflm as fflm
from tiny import MODES, tiny_model

import fflm as package
from fflm import compiling
from fflm.cli import main
from fflm.compiling import compiled, source_hash
from fflm.models.neural.model import save_config
from fflm.training.checkpoints import save_weights

SOURCES = Path(package.__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Use an empty cache, as a new process does."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_logged", set())
    monkeypatch.setattr(compiling, "_write_failures", [])
    return tmp_path / f"fflm-{source_hash()}"


@pytest.fixture
def numba_setting(monkeypatch):
    """Return a function that sets one of Numba's variables, for as long as the test takes."""

    def choose(name, value):
        monkeypatch.setenv(name, value)
        numba.config.reload_config()

    yield choose
    monkeypatch.undo()
    numba.config.reload_config()


def double(x):
    return 2 * x


def count_hits(function=double, argument=3, **options):
    """Call a function as in a new process; return whether it was found in the cache."""
    dispatcher = compiled(**options)(function)
    assert dispatcher(argument) == function(argument)
    return sum(dispatcher.stats.cache_hits.values())


def test_what_was_compiled_is_found(folder):
    assert [count_hits() for _ in range(2)] == [0, 1]
    assert [count_hits(argument=1.5) for _ in range(2)] == [0, 1]
    assert [count_hits(name="other") for _ in range(2)] == [0, 1]
    assert len(list(folder.iterdir())) == 3


def at(values, place):
    return values[place]


def test_kernels_that_check_bounds_are_others(folder, numba_setting):
    values = np.arange(6.0)
    for checked in (1, 0):  # found again, but never in place of each other
        numba_setting("NUMBA_BOUNDSCHECK", str(checked))
        for hits in (0, 1):
            dispatcher = compiled()(at)
            assert dispatcher(values[:3], 2) == 2
            assert sum(dispatcher.stats.cache_hits.values()) == hits
            if checked:
                with pytest.raises(IndexError):
                    dispatcher(values[:3], 4)
            else:
                assert dispatcher(values[:3], 4) == 4
    assert len(list(folder.iterdir())) == 2


def test_kernels_that_are_optimised_otherwise_are_others(folder, numba_setting):
    assert count_hits() == 0
    numba_setting("NUMBA_OPT", "1")
    assert count_hits() == 0


@pytest.mark.parametrize("damage", ["empty", "short", "long", "changed", "a folder"])
def test_a_damaged_file_is_made_anew(folder, damage):
    count_hits()
    (path,) = folder.iterdir()
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "short": content[:middle],
        "long": content + b"\0",
        "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    if damage in damaged:
        path.write_bytes(damaged[damage])
    else:
        path.unlink()
        path.mkdir()
    assert count_hits() == 0
    if damage in damaged:
        assert count_hits() == 1
    assert list(folder.iterdir()) == [path]


def test_where_nothing_can_be_written_functions_are_compiled_each_time(tmp_path, monkeypatch, folder, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "fflm"):
        assert [count_hits() for _ in range(3)] == [0, 0, 0]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]  # once each
    assert "NUMBA_CACHE_DIR" in caplog.records[1].getMessage()
    assert compiling.cache_failure() == caplog.records[1].getMessage()


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit")
def test_no_room_is_like_no_folder(folder):
    program = """
import resource
from test_compiling import count_hits
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
print(count_hits(), count_hits())
"""
    run = {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, "capture_output": True, "text": True, "check": True}
    result = subprocess.run([sys.executable, "-B", "-c", program], **run)
    assert result.stdout == "0 0\n"
    assert "File too large" in result.stderr
    assert list(folder.iterdir()) == []


def test_an_installation_that_is_read_only_is_used_first(tmp_path, monkeypatch, folder):
    """What was compiled when an image was built is found; what was not goes to the user's folder."""
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    built, own = tmp_path / "installation", tmp_path / "user"
    monkeypatch.setattr(compiling, "cache_folders", lambda: [built])
    count_hits()
    monkeypatch.setattr(compiling, "cache_folders", lambda: [built, own])
    assert count_hits() == 1
    shutil.rmtree(built)
    built.touch()
    assert [count_hits() for _ in range(2)] == [0, 1]
    assert len(list(own.iterdir())) == 1


def test_folders_of_the_installation_and_of_the_user(monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    first, second = compiling.cache_folders()
    assert first == SOURCES / "__pycache__" / f"fflm-{source_hash()}"
    if sys.platform == "linux":
        assert second == Path("/somewhere/fflm", first.name)


@pytest.mark.parametrize(
    "name",
    [
        "backend/formulas.py",
        "backend/cpu/blas.py",
        "backend/cuda/mixed.py",
        "models/ngram/kernels.py",
        "text/kernels.py",
        "compiling.py",
    ],
)
def test_a_change_of_any_source_of_kernels_is_noticed(tmp_path, monkeypatch, name):
    shutil.copytree(SOURCES, tmp_path / "fflm", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "fflm" / "compiling.py"))
    before = source_hash.__wrapped__()
    assert before == source_hash()
    with (tmp_path / "fflm" / name).open("a") as file:
        file.write("# changed\n")
    assert source_hash.__wrapped__() != before


def test_only_what_is_compiled_now_is_announced(folder, caplog):
    with caplog.at_level(logging.INFO, "fflm"):
        count_hits()
        count_hits(argument=1.5)
    assert [record.getMessage() for record in caplog.records] == ["compiling the kernels (once per machine) ..."]
    compiling._logged.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "fflm"):
        count_hits()
    assert not caplog.records


@pytest.mark.slow
def test_commands_say_that_they_compile(tmp_path):
    """Commands that only use a model, too; and not where they are told to be quiet."""
    model, path = tiny_model(MODES["line ends"]), tmp_path / "a.model"
    path.mkdir()
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    run = functools.partial(fflm, "next", "-m", "a.model", "--top", "1", folder=tmp_path, environment=environment)
    assert run().stderr == "compiling the kernels (once per machine) ...\n"
    assert run().stderr == ""
    for file in (tmp_path / "cache").glob("*/backend.cpu.kernels.gather-*"):
        file.unlink()
    assert run("-q").stderr == ""


@pytest.mark.parametrize("cause", [EOFError(), EOFError("Ran out of input")])
def test_an_end_of_file_is_no_interruption(monkeypatch, capsys, cause):
    @click.command()
    def broken():
        raise cause

    monkeypatch.setattr(type(main), "get_command", lambda self, context, name: broken)
    with pytest.raises(SystemExit) as ended:
        main.main(["train"])
    assert ended.value.code == 1
    message = f"error: a file ended too early: {str(cause) or 'it is incomplete or damaged'}"
    assert capsys.readouterr().err.strip() == message


@pytest.mark.slow
def test_nothing_is_compiled_after_warming_up(tmp_path):
    """Kernels know for which types they were compiled; a new process warms up and then uses whatever there is."""
    program = f"""
import json, pathlib, sys
import fflm, test_threads
from fflm.backend.cpu.kernels import combine_losses
from fflm.backend.cpu.launching import KERNELS
from fflm.text.kernels import expand_pieces, grow_table, number_pieces
from fflm.warmup import warm_up

folder = pathlib.Path({str(tmp_path)!r})
list(warm_up())
def compiled():
    forms = [form for kernel in KERNELS for form in (kernel.sequential, kernel.parallel)]
    forms += [combine_losses, expand_pieces, grow_table, number_pieces]
    return {{f"{{form.py_func.__name__}}{{signature}}" for form in forms for signature in form.signatures}}
before = compiled()
for function in test_threads.operations(folder).values():
    function("The cat sat on the wall.")
for optimizer in ("sgd", "adagrad", "rmsprop", "adam", "adamw"):
    fflm.train(folder / "corpus", folder / "a.model", overwrite=True, optimizer=optimizer, **test_threads.RUN)
print(json.dumps(sorted(compiled() - before)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent / "backend")])}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
