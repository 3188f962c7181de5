"""Files and folders that are whole or absent: everything is written under a temporary name, then renamed.

A folder in which a process writes for longer is locked by it.
"""

import contextlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO, Any, Literal, overload

from fflm.errors import FflmError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file in a locked folder."""

COMPRESSIONS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "lzma",
    ".zst": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}
"""The modules that compress files of such names."""


@contextlib.contextmanager
def clear_errors(action: str) -> Iterator[None]:
    """Turn an operating-system error inside the block into one line: no permission, disk full, no such folder, no such name.

    Parameters
    ----------
    action
        What was attempted, for the message, such as ``"write stories.model"``.

    Raises
    ------
    FflmError
        In place of any OSError, and of what Python raises for names that no file can have.
    """
    try:
        yield
    except OSError as error:
        raise FflmError(f"cannot {action}: {error.strerror or error}") from error
    except ValueError as error:
        if not (isinstance(error, UnicodeEncodeError) or "embedded null" in str(error)):
            raise
        raise FflmError(f"cannot {action}: no file can have such a name ({error})") from error


@overload
def open_regular(path: Path) -> BufferedReader: ...
@overload
def open_regular(path: Path, mode: Literal["ab"]) -> BufferedWriter: ...
def open_regular(path: Path, mode: Literal["rb", "ab"] = "rb") -> BufferedReader | BufferedWriter:
    """Open a file in a folder that may be a stranger's: one that is no regular file is refused, and never waited for.

    Raises
    ------
    FflmError
        If it is a FIFO, a device, a socket or a folder, or cannot be opened.
    """
    with clear_errors(f"{'read' if mode == 'rb' else 'write'} {path}"):
        file = open(path, mode, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666))  # noqa: SIM115
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file  # type: ignore[return-value]
        file.close()
    raise FflmError(f"{path} is no regular file: restore it from a copy")


def check_regular(path: Path) -> None:
    """Raise an FflmError as `open_regular` does: for what a library is to open by its name."""
    open_regular(path).close()


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block succeeds, else remove it.

    The file's content reaches the disk before the rename, so that a kill or a power cut at any moment leaves
    either the old file or the new one.

    Raises
    ------
    FflmError
        If the file cannot be written (no permission, no space left, no such folder), or if it exists, perhaps only since the
        block began, and ``overwrite`` is false.
    """
    check_file(path, overwrite)
    with clear_errors(f"write {path}"):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            if overwrite:
                temporary.replace(path)
            else:
                _add_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_file(path: Path, overwrite: bool) -> None:
    """Raise an FflmError if a file exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise FflmError(f"{path} exists: choose another file, or replace it with `overwrite=True`")


def _add_file(temporary: Path, path: Path) -> None:
    """Give a file a name that no other file has."""
    with contextlib.suppress(OSError):  # unlike a rename, a link never replaces a file, but not every file system has links
        os.link(temporary, path)
        return
    check_file(path, overwrite=False)
    temporary.replace(path)


@contextlib.contextmanager
def replacing_folder(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block succeeds, and else is removed.

    Parameters
    ----------
    path
        The folder.
    check
        Raises an FflmError if there must not be a new folder at ``path``, because of what is there already. It is called twice,
        before the block and after it, for another process may have made or changed the folder meanwhile.

    Raises
    ------
    FflmError
        If ``check`` says so, if a folder that is to be replaced is locked, or if the folder cannot be written (no permission, no
        space left). What was at ``path`` is then as it was.
    """
    check()
    with (
        clear_errors(f"write {path}"),
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as name,
    ):
        folder = Path(name, "new")
        folder.mkdir()
        yield folder
        try:
            put_folder(folder, path, check)
        except FflmError as error:
            raise FflmError(f"the result was discarded, because {path} has changed in the meantime: {error}") from error


def put_folder(folder: Path, path: Path, check: Callable[[], None]) -> None:
    """Move a folder to its place, as `replacing_folder` does; what was there is left where it was, or beside that as ``old``."""
    replaced = path.exists()
    check()
    if not replaced:
        try:
            folder.rename(path)  # fails if a folder, or a file, has come into being since it was looked for
        except OSError:
            check()
            raise
        return
    with locked_folder(path):
        if _exchange(folder, path):
            return
        old = folder.with_name("old")
        try:
            path.replace(old)
            folder.replace(path)
        except BaseException:  # an interruption, too, must not lose both
            if old.exists() and not path.exists():
                old.replace(path)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders exchange their names in a single step, and return whether that was possible: Linux can, not everywhere."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0)


@contextlib.contextmanager
def reading_folder(path: Path) -> Iterator[None]:
    """Make sure that the files that a block reads belong together, though another process may replace their folder.

    Raises
    ------
    FflmError
        If the folder was replaced while the block read, whether or not that led to an error.
    """
    before = _identity(path)
    cause = None
    try:
        yield
    except FflmError as error:
        if _identity(path) == before:
            raise
        cause = error
    if _identity(path) != before:
        raise FflmError(f"{path} was replaced while it was read: try again") from cause


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file or folder from any other, whatever its name; None if it does not exist."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str = "training in") -> Iterator[Callable[[], None]]:
    """Lock a folder inside the block: any other process or thread that tries to lock it is refused.

    The lock is advisory: `flock` on a file in the folder, which is removed afterwards. Nobody is kept from reading. The lock
    stays with the folder when that is renamed, and ends with the process, even one that is killed: a file that such a process
    leaves behind locks nothing. A forked process has no part in it. Where the system or the file system has no such locks,
    nobody is kept out.

    Parameters
    ----------
    folder
        The folder.
    doing
        What the error says that the other process is doing, such as ``training in`` the folder.

    Yields
    ------
    callable
        Raises an FflmError if the folder is not at its path any more, because somebody has moved, replaced or removed it: another
        one there is not locked.

    Raises
    ------
    FflmError
        If the folder is locked, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with clear_errors(f"write {folder}"):
            while (directory := _lock(folder, doing, stack)) is None:
                stack.close()

        def check() -> None:
            if directory >= 0 and not _is_at(directory, folder):
                raise FflmError(f"{folder} was moved, replaced or removed by somebody else: nothing more is written there")

        yield check


def _lock(folder: Path, doing: str, stack: contextlib.ExitStack) -> int | None:
    """Lock a folder until the stack is closed, and return its descriptor; None if it is no longer the one that is there.

    Where the system has no locks, the descriptor is -1.
    """
    if fcntl is None:
        return -1
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, directory)
    # Whoever gave us the folder must not have us write elsewhere, or wait for a pipe.
    file = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=directory)
    stack.callback(os.close, file)
    own = f"{os.getpid()} on {os.uname().nodename}"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(file, 300, 0).decode(errors="replace")
        who = f"another process ({holder}) is" if holder and holder.isprintable() else "another process is"
        if holder == own:
            who = "this process is already"
        raise FflmError(f"{who} {doing} {folder}: wait for it to end, or choose another folder") from error
    except OSError:  # no locks on this file system
        pass
    stack.callback(_unlock, directory, file, os.getpid())
    # Who held the lock before us may have removed the file, or replaced the folder, after we had opened it.
    if not (_is_at(file, LOCK, directory) and _is_at(directory, folder)):
        return None
    with contextlib.suppress(OSError):  # on a full disk nobody is told who we are
        os.ftruncate(file, 0)
        os.pwrite(file, own.encode(), 0)
    return directory


def _unlock(directory: int, file: int, process: int) -> None:
    """Remove the locked file: others then lock another one, even if a forked process keeps this one open."""
    if process != os.getpid():  # forked inside the block, and the lock is the parent's
        return
    with contextlib.suppress(OSError):  # the folder may be gone
        if _is_at(file, LOCK, directory):
            os.unlink(LOCK, dir_fd=directory)


def _is_at(descriptor: int, path: str | Path, directory: int | None = None) -> bool:
    """Return whether an open file or folder is what a path leads to."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, dir_fd=directory))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def writing_text(path: Path, *, overwrite: bool = True) -> Iterator[IO[str]]:
    """Yield a file for text in UTF-8, compressed if its name ends in .gz, .bz2, .xz or .zst, which appears whole or not at all.

    Raises
    ------
    FflmError
        If it cannot be written, or exists and ``overwrite`` is false.
    """
    try:
        open_text = import_module(COMPRESSIONS[path.suffix]).open if path.suffix in COMPRESSIONS else open
    except ImportError as error:
        raise FflmError(f"cannot write {path}: this Python lacks a module that compresses so; choose another ending") from error
    with replacing(path, overwrite=overwrite) as temporary, open_text(temporary, "wt", encoding="utf-8", newline="\n") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    r"""Write ``text`` as UTF-8, whole or not at all.

    Surrogates that are not paired, which stand for the bytes of file names that are not UTF-8, become ``\uXXXX``, as in JSON.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
