"""Atomic writes of files and folders: their content is written under a temporary name, synced to disk, and then renamed.

A process locks the folders in which it writes for a longer time. What a killed process leaves behind is cleaned up by the next
process that works in the same place.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO, Any, Literal, Self, overload

from fflm.errors import FflmError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file in a locked folder."""

COMPRESSIONS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "lzma",
    ".zst": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}
"""The modules that compress files, by the suffix of the file's name."""


def split_compression(name: str | Path) -> tuple[Path, str]:
    """Return the name of a file without the suffix of its compression, and that suffix: ``a.csv``, ``.gz`` for ``a.csv.gz``."""
    path = Path(name)
    return (path.with_suffix(""), path.suffix) if path.suffix in COMPRESSIONS else (path, "")


@contextlib.contextmanager
def os_errors_as_fflm_error(action: str) -> Iterator[None]:
    """Raise operating-system errors inside the block, such as a full disk or a missing folder, as an FflmError of one line.

    Parameters
    ----------
    action
        The action of the block, for the message "cannot ...", such as ``"write stories.model"``.

    Raises
    ------
    FflmError
        In place of an OSError, or of the ValueError that Python raises for invalid file names.
    """
    try:
        yield
    except OSError as error:
        raise FflmError(f"cannot {action}: {error.strerror or error}") from error
    except ValueError as error:
        if not (isinstance(error, UnicodeEncodeError) or "embedded null" in str(error)):
            raise
        raise FflmError(f"cannot {action}: no file can have such a name ({error})") from error


def sync(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to disk, so that it survives a power failure."""
    if fcntl is None and path.is_dir():  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK if fcntl else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


@overload
def open_regular(path: Path) -> BufferedReader: ...
@overload
def open_regular(path: Path, mode: Literal["ab"]) -> BufferedWriter: ...
def open_regular(path: Path, mode: Literal["rb", "ab"] = "rb") -> BufferedReader | BufferedWriter:
    """Open a regular file in a folder that is not trusted; opening a FIFO or a device could block or have side effects.

    Raises
    ------
    FflmError
        If the path is a FIFO, a device, a socket or a folder, or cannot be opened; for writing, also if it is a symbolic link,
        which might lead to a file outside the folder.
    """
    extra = getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_NOFOLLOW", 0) if mode == "ab" else 0)
    with os_errors_as_fflm_error(f"{'read' if mode == 'rb' else 'write'} {path}"):
        if mode == "ab" and path.is_symlink():
            raise FflmError(f"{path} is a symbolic link: replace it with the file itself")
        file = open(path, mode, opener=lambda name, flags: os.open(name, flags | extra, 0o666))  # noqa: SIM115
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file  # type: ignore[return-value]
        file.close()
    raise FflmError(f"{path} is not a regular file: restore it from a copy")


def check_regular(path: Path) -> None:
    """Raise an FflmError if a path is not a regular file, before a library opens it by name; see `open_regular`."""
    open_regular(path).close()


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool = True, follow: bool = True) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, which is synced and renamed to ``path`` when the block succeeds.

    If the process is killed or the power fails at any moment, there is either the old file or the new one.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether to replace an existing file.
    follow
        Whether to follow ``path`` where the user has chosen it: the target of a link is replaced rather than the link, a file
        keeps its permissions, and a device, a pipe or ``/dev/stdout`` is written to. If false, whatever is at ``path`` is
        replaced by a file, because links in the folder of a model are not trusted.

    Raises
    ------
    FflmError
        If the file cannot be written (no permission, no space left, no such folder, or a folder at ``path``), or if
        ``overwrite`` is false and the file existed before the block or exists after it.
    """
    check_file(path, overwrite)
    through = follow and _is_stream(path)
    place = _follow_link(path) if follow else path
    with (
        os_errors_as_fflm_error(f"write {path}"),
        _temporary_folder(Path(tempfile.gettempdir(), f"fflm-{path.name}") if through else place) as temporary,
    ):
        temporary.touch()
        yield temporary
        if through:
            with temporary.open("rb") as source, _open_stream(path) as target:
                shutil.copyfileobj(source, target)
            return
        if follow:
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(place, temporary)
        sync(temporary)
        if overwrite:
            temporary.replace(place)
        else:
            _rename_new(temporary, place)
        sync(place.parent)


def check_file(path: Path, overwrite: bool) -> None:
    """Raise an FflmError if a file cannot be written because there is a folder, or a file and ``overwrite`` is false."""
    with os_errors_as_fflm_error(f"write {path}"):
        if path.is_dir():
            raise FflmError(f"{path} is a folder: name a file")
        if path.exists() and not overwrite and not _is_stream(path):
            raise FflmError(f"{path} exists: choose another file, or replace it with `overwrite=True`")


def _is_stream(path: Path) -> bool:
    """Return whether a path must be written to rather than replaced: a device, a pipe, a socket, or an open file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return _own_descriptor(path) is not None or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _open_stream(path: Path) -> IO[bytes]:
    """Open a stream (see `_is_stream`). The descriptor of an open file is duplicated, because opening would truncate it."""
    descriptor = _own_descriptor(path)
    return path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")


def _own_descriptor(path: Path) -> int | None:
    """Return the file descriptor that a path such as ``/dev/stdout`` or ``/dev/fd/1`` refers to, or None; links are followed."""
    folders = {"/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(40):  # Linux follows at most 40 links
        folder = os.path.realpath(path.parent)
        if folder in folders and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def _follow_link(path: Path) -> Path:
    """Return the target of a link; any other path is returned unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file to a path at which there must not be a file."""
    with contextlib.suppress(OSError):  # unlike a rename, a hard link never replaces a file, but some file systems have no links
        os.link(temporary, path)
        return
    check_file(path, overwrite=False)
    temporary.replace(path)


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)


@contextlib.contextmanager
def _temporary_folder(place: Path) -> Iterator[Path]:
    """Yield a path at which to create the file or folder that will be moved to ``place``.

    The path is in a folder with a temporary name beside ``place``, which is removed at the end of the block. This process keeps
    the folder locked until then, so that an unlocked folder can be recognized as the leftover of a killed process. Leftovers for
    the same place are removed first.
    """
    for leftover in _leftovers(place.parent, place.name):
        _remove(leftover)
    process = os.getpid()
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
            descriptor = _try_lock(folder, wait=True)
            if descriptor is not None:
                stack.callback(os.close, descriptor)
            if folder.exists():  # otherwise another process removed it as a leftover before it was locked
                break
        try:
            yield folder / "new"
        finally:
            if os.getpid() == process:  # a process that was forked inside the block must not remove the folder
                _remove(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed processes in a folder, and those beside it that were to become the folder."""
    place = folder.resolve()
    for leftover in itertools.chain(_leftovers(place, None), _leftovers(place.parent, place.name)):
        _remove(leftover)


def restore(path: Path) -> None:
    """Restore a folder that is missing because a process was killed between the two renames that replace a folder.

    This is called before a folder is read or replaced. It has no effect where folders are exchanged in a single step.
    """
    with contextlib.suppress(OSError):  # without permission to write, the folder stays missing
        if not path.exists():
            place = _follow_link(path)
            for leftover in _leftovers(place.parent, place.name):
                _restore_leftover(leftover)


def restore_all(parent: Path) -> None:
    """Restore all missing folders in a parent folder, as `restore` does."""
    with contextlib.suppress(OSError):
        for leftover in _leftovers(parent, None):
            _restore_leftover(leftover)


def _leftovers(folder: Path, name: str | None) -> Iterator[Path]:
    """Yield the leftovers of killed processes in a folder, each locked while it is processed; none if locks are not supported.

    Parameters
    ----------
    folder
        The folder to search.
    name
        The name of the file or folder that was to be written; None for all.
    """
    paths: list[Path] = []
    with contextlib.suppress(OSError):
        paths += folder.iterdir()
    for path in paths:
        found = _TEMPORARY.fullmatch(path.name)
        if found and name in (None, found["name"]) and (descriptor := _try_lock(path)) is not None:
            try:
                yield path
            finally:
                os.close(descriptor)


def _try_lock(path: Path, wait: bool = False) -> int | None:
    """Lock a file or folder, and return the file descriptor that holds the lock, or None if it is locked or does not exist."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if _is_at(descriptor, path):
            return descriptor
    os.close(descriptor)
    return None


def _remove(temporary: Path) -> None:
    """Remove a temporary folder after restoring the folder that it was to replace, if that is missing."""
    with contextlib.suppress(OSError):
        _restore_leftover(temporary)
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:  # early versions of fflm wrote temporary files without a folder around them
            temporary.unlink()


def _restore_leftover(temporary: Path) -> None:
    """Move a folder back if it was moved into a temporary folder to be replaced, and nothing has taken its place."""
    found = _TEMPORARY.fullmatch(temporary.name)
    assert found
    old, place = temporary / "old", temporary.with_name(found["name"])
    if old.exists() and (temporary / "new").exists() and not os.path.lexists(place):
        old.rename(place)
        sync(place.parent)


class NewFolder:
    """A new folder under a temporary name, which is renamed when it is published, or removed when it is discarded.

    It is discarded if its ``with`` block raises an exception, when the object is garbage-collected, and at exit. An existing
    folder at ``path`` is locked from the start, remains unchanged until the new folder is published, and is replaced in a single
    step.

    Parameters
    ----------
    path
        The path of the folder when it is published. If this is a link to a folder, the target of the link is replaced. Missing
        parent folders are created.
    check
        A function that raises an FflmError if what is at ``path`` must not be replaced. It is called at the start and again
        before the folder is published, because another process may have created or changed a folder there.
    doing
        As for `locked_folder`.

    Attributes
    ----------
    path
        The path of the folder when it is published.
    folder
        The current path of the folder.
    replaces
        Whether there was a folder at ``path`` at the start.

    Raises
    ------
    FflmError
        If ``check`` raises it, an existing folder is locked, or the folder cannot be written (no permission, no space left).
        What was at ``path`` is unchanged.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None, doing: str = "training in") -> None:
        self.path = path
        self._check, self._doing = check, doing
        self._place = _follow_link(path)
        self._lock: FolderLock | None = None
        self._held = contextlib.ExitStack()
        restore(path)
        check()
        self._discard = weakref.finalize(self, self._held.close)
        try:
            with os_errors_as_fflm_error(f"write {path}"):
                if not path.parent.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._lock_place()
                self.replaces = self._lock is not None
                self.folder = self._held.enter_context(_temporary_folder(self._place))
                self.folder.mkdir()
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, *about: object) -> None:
        if type_:
            self.discard()

    @property
    def published(self) -> bool:
        """Whether the folder has been published."""
        return self.folder == self.path

    def publish(self) -> None:
        """Sync the folder to disk, rename it to ``path``, and remove the folder that it replaces.

        Raises
        ------
        FflmError
            If ``check`` raises it, the folder at ``path`` was moved or replaced, or the folder cannot be renamed.
        """
        with os_errors_as_fflm_error(f"write {self.path}"):
            try:
                self._lock_place()
                put_folder(self.folder, self._place, self._check)
            except FflmError as error:
                raise FflmError(f"the result was discarded, because {self.path} has changed in the meantime: {error}") from error
        self.folder = self.path
        self.discard()

    def discard(self) -> None:
        """Remove the temporary folder, and release the lock."""
        self._discard()

    def _lock_place(self) -> None:
        """Lock the folder that will be replaced, if there is one, or check that it is still locked."""
        if not self._place.exists():
            return
        if self._lock:
            self._lock.check()
        else:
            self._lock = self._held.enter_context(locked_folder(self._place, self._doing))


def check_own(folder: Path, own: Collection[str]) -> None:
    """Check that a folder, which will be replaced, contains no files of the user.

    Parameters
    ----------
    folder
        The folder, which need not exist.
    own
        The files and folders that may be replaced, as paths relative to the folder, with ``/``. Hidden files may be, too.

    Raises
    ------
    FflmError
        If the folder contains anything else.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(folders + files):
            found = Path(parent, name)
            if not name.startswith(".") and found.relative_to(folder).as_posix() not in own:
                raise FflmError(f"{found} would be lost if {folder} were replaced: move it elsewhere, or choose another folder")


@contextlib.contextmanager
def replacing_folder(path: Path, check: Callable[[], None] = lambda: None, doing: str = "training in") -> Iterator[Path]:
    """Yield a new folder that is renamed to ``path`` when the block succeeds, and removed otherwise; see `NewFolder`."""
    with NewFolder(path, check, doing) as new, os_errors_as_fflm_error(f"write {path}"):
        yield new.folder
        new.publish()


def put_folder(folder: Path, path: Path, check: Callable[[], None]) -> None:
    """Sync a folder and rename it to ``path``; a folder there is moved to the new one's old path, or to ``old`` beside it.

    ``check`` is called immediately before the rename, and raises an FflmError if what is at ``path`` must not be replaced.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))
    replaced = path.exists()
    check()
    if not replaced:
        try:
            folder.rename(path)  # fails if a file, or a folder with files, was created there in the meantime
        except OSError:
            check()
            raise
    elif not _exchange(folder, path):
        path.replace(
            folder.with_name("old")
        )  # if the process is killed before the next step, `_restore_leftover` undoes this one
        folder.replace(path)
    sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in a single step, and return whether this succeeded: only Linux can, and not on all file systems."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0)


@contextlib.contextmanager
def reading_folder(path: Path) -> Iterator[None]:
    """Detect that another process replaced a folder while the block read it, so that its files may not belong together.

    Raises
    ------
    FflmError
        If the folder was replaced, whether or not the block raised an FflmError.
    """
    restore(path)
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
    """Return the device and inode numbers of a file or folder, which a rename does not change; None if it does not exist."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str = "training in", *, wait: bool = False) -> Iterator["FolderLock"]:
    """Lock a folder inside the block, so that no other process or thread can lock it.

    The lock is advisory: `flock` on a file in the folder, which is removed at the end. It does not prevent other processes from
    reading. The lock remains on the folder when the folder is renamed, and ends with the process even if it is killed; a lock
    file that such a process leaves behind has no effect. A forked process does not hold the lock. If the operating system or the
    file system does not support such locks, nothing is locked.

    Parameters
    ----------
    folder
        The folder.
    doing
        What the process does in the folder, such as ``training in``, for the error of another one: "another process is training
        in FOLDER".
    wait
        Whether to wait while the folder is locked, instead of raising an error.

    Yields
    ------
    FolderLock
        The lock, which can check that the folder is still at its path.

    Raises
    ------
    FflmError
        If the folder is locked, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with os_errors_as_fflm_error(f"write {folder}"):
            while (directory := _lock(folder, doing, stack, wait)) is None:
                stack.close()
        yield FolderLock(folder, directory)


@dataclass
class FolderLock:
    """A lock on a folder, made by `locked_folder`.

    Attributes
    ----------
    folder
        The path of the folder; code that renames the folder must update it.
    descriptor
        File descriptor of the folder; -1 if the operating system has no locks.
    """

    folder: Path
    descriptor: int

    def check(self) -> None:
        """Raise an FflmError if the folder was moved, replaced or removed, so that the lock no longer applies to its path."""
        if self.descriptor >= 0 and not _is_at(self.descriptor, self.folder):
            raise FflmError(f"{self.folder} was moved, replaced or removed by another process: nothing more is written there")


def _lock(folder: Path, doing: str, stack: contextlib.ExitStack, wait: bool) -> int | None:
    """Lock a folder until the stack is closed, and return its descriptor; None if another process has replaced the folder.

    If the operating system has no locks, the descriptor is -1.
    """
    if fcntl is None:
        return -1
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, directory)
    file = _open_lock(LOCK, directory)
    stack.callback(os.close, file)
    own = f"{os.getpid()} on {os.uname().nodename}"
    if not _flock(file, wait):
        holder = os.pread(file, 300, 0).decode(errors="replace")
        who = f"another process ({holder}) is" if holder and holder.isprintable() else "another process is"
        if holder == own:
            who = "this process is already"
        raise FflmError(f"{who} {doing} {folder}: wait for it to end, or choose another folder")
    stack.callback(_unlock, file, LOCK, directory, os.getpid())
    # The previous holder of the lock may have removed the file, or replaced the folder, after this process had opened it.
    if not (_is_at(file, LOCK, directory) and _is_at(directory, folder)):
        return None
    with contextlib.suppress(OSError):  # on a full disk, the lock file stays empty, and the error of another process says less
        os.ftruncate(file, 0)
        os.pwrite(file, own.encode(), 0)
    return directory


def lock_file(path: Path, stack: contextlib.ExitStack) -> bool:
    """Make and lock a file, until the stack is closed, which removes it, or the process ends; return whether it was free.

    Where there are no locks, files are always free.
    """
    if fcntl is None:
        return True
    while True:
        with os_errors_as_fflm_error(f"write {path}"):
            file = _open_lock(path)
        if not _flock(file, wait=False):
            os.close(file)
            return False
        if _is_at(file, path):
            stack.callback(os.close, file)
            stack.callback(_unlock, file, path, None, os.getpid())
            return True
        os.close(file)  # the previous holder of the lock has removed the file after this process had opened it


@contextlib.contextmanager
def watched_folder(folder: Path) -> Iterator[FolderLock]:
    """Yield a `FolderLock` that locks nothing, and only checks that the folder is still at its path.

    Raises
    ------
    FflmError
        If the folder does not exist.
    """
    with contextlib.ExitStack() as stack:
        directory = -1
        if fcntl is not None:
            with os_errors_as_fflm_error(f"read {folder}"):
                directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, directory)
        yield FolderLock(folder, directory)


def _open_lock(path: str | Path, directory: int | None = None) -> int:
    """Open a lock file, which is created if there is none, and return its descriptor; ``directory`` is as for `_is_at`.

    The folder is not trusted: a lock file that is a link must not be followed, and one that is a FIFO must not block.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=directory)


def _flock(file: int, wait: bool) -> bool:
    """Lock an open file; return whether no other process holds the lock. Where there are no locks, none does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # no locks on this file system
        pass
    return True


def _unlock(file: int, path: str | Path, directory: int | None, process: int) -> None:
    """Remove a lock file, so that other processes can lock a new one even if a forked process keeps this one open.

    Nothing is removed if there is another file at its path, or if this is not the process that has locked it, but a fork of it.
    """
    with contextlib.suppress(OSError):  # the folder may have been removed
        if process == os.getpid() and _is_at(file, path, directory):
            os.unlink(path, dir_fd=directory)


def _is_at(descriptor: int, path: str | Path, directory: int | None = None) -> bool:
    """Return whether a path, relative to the open ``directory`` if given, refers to an open file or folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, dir_fd=directory))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def writing_text(path: Path, *, overwrite: bool = True) -> Iterator[IO[str]]:
    """Yield a text file in UTF-8 that is written atomically, compressed if its name ends in .gz, .bz2, .xz or .zst.

    Raises
    ------
    FflmError
        If the file cannot be written, or exists and ``overwrite`` is false.
    """
    try:
        open_text = import_module(COMPRESSIONS[path.suffix]).open if path.suffix in COMPRESSIONS else open
    except ImportError as error:
        raise FflmError(f"cannot write {path}: this Python cannot compress {path.suffix} files; choose another suffix") from error
    with replacing(path, overwrite=overwrite) as temporary, open_text(temporary, "wt", encoding="utf-8", newline="\n") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    r"""Write a text file atomically, in UTF-8.

    Unpaired surrogates, which stand for bytes of file names that are not UTF-8, are written as ``\uXXXX``, as in JSON.
    """
    with replacing(path, follow=False) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a value atomically as an indented JSON file."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
