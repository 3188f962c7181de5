"""How kernels are compiled, and the cache on disk that keeps them: Numba's, made safe for installations that it is not made for.

Numba's own cache fails where no folder can be written, and for good once one of its files is damaged; it also doesn't notice a
change in a file that a kernel's helpers come from. Here every problem with a cached file means that the kernel is compiled again,
and the name of the folder contains a hash of all sources that kernels are made of.
"""

import hashlib
import logging
import os
import pickle
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from fflm.clock import stand_still

_log = logging.getLogger("fflm.compiling")
_said: set[str] = set()
_not_kept: list[str] = []  # messages on kernels that could not be written

_IN_TREE = Path(__file__).parent / "__pycache__"

_DIGEST = hashlib.sha256().digest_size


def compiled(name: str | None = None, **options: Any) -> Any:
    """Return a decorator for a function that Numba compiles without the interpreter's lock, and that is cached on disk.

    Parameters
    ----------
    name
        The function's name in the cache, if it differs from its own.
    options
        As `numba.njit` takes them. Division by zero is not checked.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
        dispatcher._cache = KernelCache(function, name, _reduce, _rebuild)
        return dispatcher

    return decorate


def _reduce(result: Any) -> Any:
    if result.library.has_dynamic_globals:
        raise ValueError(f"{result.fndesc.qualname} holds an address of this process: it cannot be kept on disk")
    return result._reduce()


def _rebuild(target_context: Any, fields: Any) -> Any:
    return CompileResult._rebuild(target_context, *fields)


class KernelCache(_Cache):  # type: ignore[misc]
    """The cache of one function: a file for each combination of argument types, processor and settings of Numba.

    A file is the SHA-256 of its content and the content, a pickle as Numba makes it. A file that is missing, damaged or cannot be
    read makes the function be compiled; a file that cannot be written is done without.

    Parameters
    ----------
    function
        The Python function.
    name
        Its name in the cache; by default its own. Functions that differ only by the compiled functions in their closures need
        different names.
    reduce
        Returns what is to be pickled of a compilation's result.
    rebuild
        Returns the result again, from a target context and what `reduce` has returned.
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
        """The first folder that is searched."""
        return str(cache_folders()[0])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the result for a signature, or None if it must be compiled, after saying so."""
        target_context.refresh()
        file = self._file(sig, target_context.codegen())
        for folder in cache_folders():
            try:
                content = (folder / file).read_bytes()
                if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
                    continue
                return self._rebuild(target_context, pickle.loads(content[_DIGEST:]))
            except Exception:
                continue
        _say(logging.INFO, "compiling the kernels, once for this machine ...")
        self._started = time.perf_counter()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a result that was compiled, in the first folder that can be written."""
        stand_still(time.perf_counter() - self._started)
        content = dumps(self._reduce(data))
        file = self._file(sig, data.codegen)
        for folder in cache_folders():
            try:
                _write(folder, file, hashlib.sha256(content).digest() + content)
                return
            except OSError as error:
                reason = f"{folder}: {error.strerror}"
        _not_kept.append(
            f"compiled kernels cannot be kept ({reason}), so every start compiles them again: "
            "set the environment variable NUMBA_CACHE_DIR to a folder that can be written"
        )
        _say(logging.WARNING, _not_kept[0])

    def _file(self, sig: Any, codegen: Any) -> str:
        """Return the name of the file for a signature and what it is compiled for."""
        cells = [cell.cell_contents for cell in self._function.__closure__ or ()]
        cells = [cell for cell in cells if not hasattr(cell, "py_func")]  # the pickle of a compiled function differs each time
        settings = bool(config.BOUNDSCHECK), int(config.OPT)  # of Numba, which the same sources are compiled with
        key = (str(sig), codegen.magic_tuple(), settings, self._function.__code__.co_code, dumps(cells) if cells else b"")
        return f"{self._name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.nbc"

    def enable(self) -> None:
        """Do nothing: the cache is always enabled."""

    def disable(self) -> None:
        """Do nothing: the cache is always enabled."""

    def flush(self) -> None:
        """Forget nothing: files are replaced when they are found to be damaged."""


def _write(folder: Path, file: str, content: bytes) -> None:
    """Write a file, whole or not at all, into a folder that is made if it doesn't exist."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        if folder.parent == _IN_TREE:  # which holds one state of the sources; those before are of no use any more
            for other in set(_IN_TREE.glob("fflm-*")) - {folder}:
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
    """Return the folders that are searched for compiled kernels, in this order; they are kept in the first that can be written.

    That is the environment variable NUMBA_CACHE_DIR, if it is set; else the installation itself, so that an image can be built
    with its kernels compiled and be used read-only, and the user's folder for caches.
    """
    name = f"fflm-{source_hash()}"
    if chosen := os.environ.get("NUMBA_CACHE_DIR") or config.CACHE_DIR:
        return [Path(chosen, name)]
    from platformdirs import user_cache_path

    return [_IN_TREE / name, user_cache_path("fflm", appauthor=False) / name]


@cache
def source_hash() -> str:
    """Return a hash of all sources that kernels are compiled from, and of the versions of what compiles them."""
    package = Path(__file__).parent
    sources = sorted({Path(__file__), *package.glob("backend/**/*.py"), *package.glob("**/*kernels.py")})
    digest = hashlib.sha256(f"{platform.python_version()} {numba.__version__}".encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def why_not_kept() -> str:
    """Return a message that says why a kernel that this process has compiled could not be kept; nothing if all were."""
    return _not_kept[0] if _not_kept else ""


if hasattr(os, "register_at_fork"):  # a process forked while another thread compiles could never compile anything itself
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def _say(level: int, message: str) -> None:
    """Log a message, once for a process and kind."""
    if message not in _said:
        _said.add(message)
        _log.log(level, message)
