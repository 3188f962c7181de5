"""The cache of compiled functions: they are found again, replaced when damaged, and not stored in unwritable folders."""

import functools
import gc
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
from numba.core.errors import TypingError
from numba.core.target_extension import CPU, jit_registry
from tiny import MODES, tiny_model

import fflm as package
from fflm import compiling
from fflm.cli import main
from fflm.compiling import compiled, source_hash
from fflm.models.neural.model import save_config
from fflm.training.checkpoints import save_weights

SOURCES = Path(package.__file__).parent


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """Use an empty cache, and return its folder."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_logged", set())
    monkeypatch.setattr(compiling, "_write_failures", [])
    return tmp_path / f"fflm-{source_hash()}"


@pytest.fixture
def numba_setting(monkeypatch):
    """Return a function that sets an environment variable of Numba until the test ends."""

    def choose(name, value):
        monkeypatch.setenv(name, value)
        numba.config.reload_config()

    yield choose
    monkeypatch.undo()
    numba.config.reload_config()


def double(x):
    return 2 * x


def count_hits(function=double, argument=3, **options):
    """Call a newly decorated function; return how often it was loaded from the cache, 0 or 1."""
    dispatcher = compiled(**options)(function)
    assert dispatcher(argument) == function(argument)
    return sum(dispatcher.stats.cache_hits.values())


def test_compiled_function_is_loaded_from_cache(cache_folder):
    assert [count_hits() for _ in range(2)] == [0, 1]
    assert [count_hits(argument=1.5) for _ in range(2)] == [0, 1]
    assert [count_hits(name="other") for _ in range(2)] == [0, 1]
    assert len(list(cache_folder.iterdir())) == 3


def test_cached_function_does_not_import_the_modules_of_functions_that_it_calls(tmp_path):
    """In the third process, a new function calls one whose environment is from the cache; the fourth loads both functions."""
    (tmp_path / "kernels.py").write_text("""
import sys
import numpy as np
from fflm.compiling import compiled
@compiled()
def first(n):
    return np.arange(n).reshape(2, -1).sum()
@compiled()
def second(n):
    return np.arange(n).reshape(2, -1).max()
functions = [globals()[name] for name in sys.argv[1:]]
print([int(each(6)) for each in functions], "numba.np.arrayobj" in sys.modules)
for each in functions:
    try:
        each(5)
    except ValueError as error:
        print(error)
""")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*names):
        command = [sys.executable, tmp_path / "kernels.py", *names]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return result.stdout.splitlines()

    message = "total size of new array must be unchanged"
    assert run("first") == ["[15] True", message]
    assert run("first") == ["[15] False", message]
    assert run("first", "second") == ["[15, 5] True", message, message]
    assert run("first", "second") == ["[15, 5] False", message, message]


def element_at(values, place):
    return values[place]


def test_cache_separates_functions_with_bounds_checks(cache_folder, numba_setting):
    values = np.arange(6.0)
    for checked in (1, 0):  # each form is loaded from the cache, never the other one
        numba_setting("NUMBA_BOUNDSCHECK", str(checked))
        for hits in (0, 1):
            dispatcher = compiled()(element_at)
            assert dispatcher(values[:3], 2) == 2
            assert sum(dispatcher.stats.cache_hits.values()) == hits
            if checked:
                with pytest.raises(IndexError):
                    dispatcher(values[:3], 4)
            else:
                assert dispatcher(values[:3], 4) == 4
    assert len(list(cache_folder.iterdir())) == 2


def test_cache_separates_optimization_levels(cache_folder, numba_setting):
    assert count_hits() == 0
    numba_setting("NUMBA_OPT", "1")
    assert count_hits() == 0


def test_settings_of_fflm_count_if_numba_was_imported_before():
    """Otherwise the first kernel of a process would be looked up with other settings than it was stored with."""
    program = "import numba, fflm.compiling; print(int(numba.config.OPT))"
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_OPT"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "2\n"


@pytest.mark.parametrize("damage", ["empty", "short", "long", "changed", "a folder"])
def test_damaged_cache_file_is_replaced(cache_folder, damage):
    count_hits()
    (path,) = cache_folder.iterdir()
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
    assert list(cache_folder.iterdir()) == [path]


def test_unwritable_cache_folder_compiles_each_time_with_warning(tmp_path, monkeypatch, cache_folder, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "fflm"):
        assert [count_hits() for _ in range(3)] == [0, 0, 0]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]  # each is logged once
    assert "NUMBA_CACHE_DIR" in caplog.records[1].getMessage()
    assert compiling.cache_failure() == caplog.records[1].getMessage()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_full_disk_compiles_each_time_with_warning(cache_folder):
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
    assert list(cache_folder.iterdir()) == []


def test_cache_of_read_only_installation_is_used_first(tmp_path, monkeypatch, cache_folder):
    """Functions compiled when an image was built are found there; others are stored in the user's folder."""
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


def test_cache_folders_of_installation_and_user(monkeypatch):
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
def test_source_hash_changes_with_kernel_sources(tmp_path, monkeypatch, name):
    shutil.copytree(SOURCES, tmp_path / "fflm", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "fflm" / "compiling.py"))
    before = source_hash.__wrapped__()
    assert before == source_hash()
    with (tmp_path / "fflm" / name).open("a") as file:
        file.write("# changed\n")
    assert source_hash.__wrapped__() != before


def test_compiling_is_logged_only_when_cache_is_empty(cache_folder, caplog):
    with caplog.at_level(logging.INFO, "fflm"):
        count_hits()
        count_hits(argument=1.5)
    assert [record.getMessage() for record in caplog.records] == ["compiling kernels (on first use) ..."]
    compiling._logged.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "fflm"):
        count_hits()
    assert not caplog.records


@pytest.mark.slow
def test_commands_report_compiling_unless_quiet(tmp_path):
    """A command that only uses a model reports that it compiles kernels, too, but not with ``-q``."""
    model, path = tiny_model(MODES["line ends"]), tmp_path / "a.model"
    path.mkdir()
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})
    run = functools.partial(fflm, "next", "-m", "a.model", "--top", "1", folder=tmp_path)
    assert run().returncode == 0  # now the cache that all tests share has these kernels; it takes long to compile all anew
    (cache,) = compiling.cache_folders()
    shutil.copytree(cache, tmp_path / "cache" / cache.name, copy_function=os.link)

    def forget(*names):
        for name in names:
            found = list((tmp_path / "cache").glob(f"*/{name}-*"))
            assert found, name
            for file in found:
                file.unlink()

    run = functools.partial(run, environment={"NUMBA_CACHE_DIR": str(tmp_path / "cache")})
    forget("models.neural.exact_kernels.few_log_probabilities")
    assert run().stderr == "compiling kernels (on first use) ...\n"
    assert run().stderr == ""
    forget("models.neural.exact_kernels.few_log_probabilities")
    assert run("-q").stderr == ""


@pytest.mark.parametrize("cause", [EOFError(), EOFError("Ran out of input")])
def test_end_of_file_is_reported_as_error(monkeypatch, capsys, cause):
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
def test_warm_up_compiles_all_kernels_that_models_use(tmp_path):
    """A new process warms up, then uses all models; no kernel is compiled for other types than before."""
    program = f"""
import json, pathlib, sys
import fflm, test_threads
from click.testing import CliRunner
from fflm.cli import main
from numba.core.dispatcher import Dispatcher
from fflm.backend.cpu.launching import Kernel
from fflm.warmup import warm_up

folder = pathlib.Path({str(tmp_path)!r})
list(warm_up())
def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("fflm.")]
    values = [value for module in modules for value in list(vars(module).values())]
    forms = [value.run if isinstance(value, Kernel) else value for value in values if isinstance(value, Kernel | Dispatcher)]
    return {{f"{{form.py_func.__name__}}{{signature}}" for form in forms for signature in form.signatures}}
before = compiled()
for function in test_threads.operations(folder).values():
    function("The cat sat on the wall.")
for optimizer in ("sgd", "adagrad", "rmsprop", "adam", "adamw"):
    fflm.train(folder / "corpus", folder / "a.model", overwrite=True, optimizer=optimizer, **test_threads.SETTINGS)
(folder / "small.ngram").mkdir()
fflm.train_ngram(folder / "corpus", folder / "a.ngram").quantize().save(folder / "small.ngram")
small = fflm.load(folder / "small.ngram")
small.score("The cat sat.")
small.scores(["The cat sat."])
small.next_words("The cat")
score = ["score", "-m", str(folder / "a.model"), "--by", "word"]
assert CliRunner().invoke(main, score, input="The cat sat.").exit_code == 0
print(json.dumps(sorted(compiled() - before)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent / "backend")])}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_failed_compilation_leaves_numba_and_garbage_collection_as_they_were(cache_folder):
    decorator = jit_registry[CPU]

    @compiled()
    def wrong(number):
        return np.empty(number).nothing

    with pytest.raises(TypingError):
        wrong(1)
    assert gc.isenabled()
    assert jit_registry[CPU] is decorator
