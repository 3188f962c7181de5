"""Compilation of kernels with Numba, and the cache on disk that stores the compiled kernels.

Numba's own cache raises an error where no folder is writable, and does not recover once one of its files is damaged. It also does
not notice a change in a file from which a kernel calls functions. The cache of this module compiles a kernel again whatever the
problem with its file is, and the name of the cache's folder contains a hash of all source files of kernels.
"""

import gc
import hashlib
import logging
import os
import pickle
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from fflm.environment import check_environment

check_environment()  # before Numba is imported

# isort: split
import numba
import numpy as np
from numba import _dynfunc, from_dtype, njit, typeof, types
from numba.core import config
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment, lookup_environment
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.core.target_extension import CPU, jit_registry
from numba.np.numpy_support import map_layout

from fflm.clock import exclude_time
from fflm.signals import raise_if_interrupted

config.reload_config()  # if Numba was imported before fflm, it has not read the variables that fflm sets

_log = logging.getLogger("fflm.compiling")
_logged: set[str] = set()  # messages that this process has logged
_write_failures: list[str] = []  # messages about kernels that could not be written to the cache

_PYCACHE = Path(__file__).parent / "__pycache__"

_DIGEST_SIZE = hashlib.sha256().digest_size  # bytes


class _LinkedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a function that only compiled functions call. It is linked into theirs, and optimized and emitted there."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _LinkedCompiler(Compiler):  # type: ignore[misc]
    """A compiler that makes a `_LinkedLibrary`, and no machine code."""

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        super().__init__(typing, target, _LinkedLibrary(target.codegen(), "linked"), *rest)
        self.state.targetctx.get_executable = _no_executable


def _no_executable(library: Any, description: Any, environment: Any) -> Any:
    """Return what stands for the machine code of a function that has none."""
    name = description.qualname.rpartition(".")[2]
    return _dynfunc.make_function(description.lookup_module(), name, "", 0, environment, (library,))


inner = partial(njit, pipeline_class=_LinkedCompiler, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""A decorator for functions that only compiled functions call; they compile faster than with `njit`."""


class _KernelCompiler(Compiler):  # type: ignore[misc]
    """A compiler that takes less time than Numba's: it links Numba's own functions, and no garbage is collected meanwhile."""

    def compile_extra(self, function: Callable[..., Any]) -> Any:
        collects, decorator = gc.isenabled(), jit_registry[CPU]
        gc.disable()
        jit_registry.update({CPU: _link})  # it refuses to be changed item by item
        try:
            return super().compile_extra(function)
        finally:
            jit_registry.update({CPU: decorator})
            if collects:
                gc.enable()


def _link(**options: Any) -> Any:
    """Return the decorator that Numba compiles its own functions with, such as `numpy.empty`, when a kernel calls them."""
    return inner(**{name: value for name, value in options.items() if name not in ("nopython", *inner.keywords)})


def compiled(name: str | None = None, **options: Any) -> Any:
    """Return a decorator that compiles a function with Numba and caches it on disk; compiled, it releases the GIL.

    Parameters
    ----------
    name
        The name of the function in the cache; by default its Python name.
    options
        The options of `numba.njit`. Division by zero is not checked.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, pipeline_class=_KernelCompiler, **options)(
            function
        )
        dispatcher._cache = KernelCache(function, name, _reduce, _rebuild)
        return dispatcher

    return decorate


def _reduce(result: Any) -> Any:
    """Return the content of Numba's compile result as a value that can be pickled."""
    if result.library.has_dynamic_globals:
        raise ValueError(f"{result.fndesc.qualname} contains an address of this process, so it cannot be cached on disk")
    *fields, environments = result._reduce()
    return *fields, [(each.env_name, each.globals["__name__"], each.consts) for each in environments]


def _rebuild(target_context: Any, content: Any) -> Any:
    """Return Numba's compile result, given what `_reduce` returned."""
    *fields, environments = content
    rtsys.initialize(target_context)  # not all of the context, which takes Numba long and which it prepares to compile
    return CompileResult._rebuild(target_context, *fields, [_environment(*each) for each in environments])


def _environment(name: str, module: str, constants: list[Any]) -> Any:
    """Return Numba's environment of a function that a kernel calls: its name, the name of its module, and its constants.

    Numba itself would import the module, but machine code uses only the constants.
    """
    if found := lookup_environment(name):
        return found
    environment = Environment({"__name__": module})
    environment.consts[:] = constants
    environment.env_name = name
    Environment._memo[name] = environment
    return environment


class KernelCache(_Cache):  # type: ignore[misc]
    """The cache of one function: a file for each combination of argument types, processor and settings of Numba.

    A file contains the SHA-256 digest of a pickle made by Numba, followed by that pickle. If a file is missing, damaged or not
    readable, the function is compiled again. If a file cannot be written, a warning is logged and the function is used uncached.

    Parameters
    ----------
    function
        The Python function.
    name
        The name of the function in the cache; by default its Python name. Functions that differ only by the compiled functions in
        their closures need different names.
    reduce
        Returns the part of a compile result that is pickled.
    rebuild
        Returns the compile result, given a target context and what `reduce` returned.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None,
        reduce: Callable[[Any], Any],
        rebuild: Callable[[Any, Any], Any],
    ) -> None:
        self._name = f"{function.__module__.removeprefix('fflm.')}.{name or function.__qualname__.rpartition('.')[2]}"
        self._function = function
        self._started = time.perf_counter()
        self._reduce = reduce
        self._rebuild = rebuild

    @property
    def cache_path(self) -> str:
        """The folder that is searched first."""
        return str(cache_folders()[0])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the cached result for a signature, or None, after logging a message, if the function must be compiled."""
        file = self._file(sig, target_context.codegen())
        for folder in cache_folders():
            try:
                content = (folder / file).read_bytes()
                if hashlib.sha256(content[_DIGEST_SIZE:]).digest() != content[:_DIGEST_SIZE]:
                    continue
                return self._rebuild(target_context, pickle.loads(content[_DIGEST_SIZE:]))
            except Exception:
                continue
        _log_once(logging.INFO, "compiling kernels (on first use) ...")
        self._started = time.perf_counter()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compile result to the first folder that is writable."""
        exclude_time(time.perf_counter() - self._started)
        raise_if_interrupted()
        content = dumps(self._reduce(data))
        file = self._file(sig, data.codegen)
        for folder in cache_folders():
            try:
                _write(folder, file, hashlib.sha256(content).digest() + content)
                return
            except OSError as error:
                reason = f"{folder}: {error.strerror}"
        _write_failures.append(
            f"compiled kernels cannot be cached ({reason}), so they are compiled again in every process: "
            "set the environment variable NUMBA_CACHE_DIR to a writable folder"
        )
        _log_once(logging.WARNING, _write_failures[0])

    def _file(self, sig: Any, codegen: Any) -> str:
        """Return the name of the cache file for a signature and a target."""
        contents = [cell.cell_contents for cell in self._function.__closure__ or ()]
        cells = [content for content in contents if not hasattr(content, "py_func")]
        called = [content.py_func for content in contents if hasattr(content, "py_func")]  # their pickles differ each time
        code = [function.__code__.co_code for function in (self._function, *called)]
        settings = bool(config.BOUNDSCHECK), int(config.OPT)  # settings of Numba that change the compiled code
        key = (str(sig), codegen.magic_tuple(), settings, code, dumps(cells) if cells else b"")
        return f"{self._name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.nbc"

    def enable(self) -> None:
        """Do nothing: the cache is always enabled."""

    def disable(self) -> None:
        """Do nothing: the cache is always enabled."""

    def flush(self) -> None:
        """Do nothing: a damaged file is replaced when it is read."""


def _write(folder: Path, file: str, content: bytes) -> None:
    """Write a file atomically into a folder, which is created if it does not exist."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        if folder.parent == _PYCACHE:  # the other caches there belong to earlier versions of the sources
            for other in set(_PYCACHE.glob("fflm-*")) - {folder}:
                shutil.rmtree(other, ignore_errors=True)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).replace(folder / file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cache_folders() -> list[Path]:
    """Return the folders that are searched for compiled kernels, in order; new ones are written to the first that is writable.

    If the environment variable NUMBA_CACHE_DIR is set, it names the only folder. By default, the folders are ``__pycache__`` in
    the installed package, so that a container image can be built with compiled kernels and used read-only, and the user's cache
    folder.
    """
    name = f"fflm-{source_hash()}"
    if chosen := os.environ.get("NUMBA_CACHE_DIR") or config.CACHE_DIR:
        return [Path(chosen, name)]
    from platformdirs import user_cache_path

    return [_PYCACHE / name, user_cache_path("fflm", appauthor=False) / name]


@cache
def source_hash() -> str:
    """Return a hash of all source files of kernels and of the versions of Python and Numba: 16 hexadecimal digits."""
    package = Path(__file__).parent
    shared = Path(__file__), package / "instructions.py", package / "packing.py"
    sources = sorted({*shared, *package.glob("backend/**/*.py"), *package.glob("**/*kernels.py")})
    digest = hashlib.sha256(f"{platform.python_version()} {numba.__version__}".encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def cache_failure() -> str:
    """Return a message that says why a kernel compiled by this process could not be cached; empty if all were cached."""
    return _write_failures[0] if _write_failures else ""


if hasattr(os, "register_at_fork"):  # a child forked while another thread compiles would otherwise wait for the lock forever
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def type_of(value: Any) -> Any:
    """Return Numba's type of a value. For an array, Numba's own function imports `numpy.ma`, which takes 10 ms."""
    if isinstance(value, tuple):
        return types.BaseTuple.from_types([type_of(each) for each in value], type(value))
    if isinstance(value, np.ndarray):
        return types.Array(from_dtype(value.dtype), value.ndim, map_layout(value), readonly=not value.flags.writeable)
    return typeof(value)


def direct(function: Any, *examples: Any) -> Callable[..., Any]:
    """Return a compiled function for arguments that have the same types as examples.

    It takes fractions of a microsecond to call, because it does not look at the types of its arguments, of which Numba recognizes
    some only after microseconds.

    Parameters
    ----------
    function
        What a decorator of `compiled` returned.
    examples
        One of each argument.
    """
    entry: Callable[..., Any] = function.compile(tuple(map(type_of, examples)))
    return entry


def _log_once(level: int, message: str) -> None:
    """Log a message unless this process has already logged it."""
    if message not in _logged:
        _logged.add(message)
        _log.log(level, message)
