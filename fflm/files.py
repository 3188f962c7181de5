"""Files and folders that are whole or absent, and on disk: everything is written under a temporary name, then renamed.

A folder in which a process writes for longer is locked by it. What a killed process leaves is put right by the next one.
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
"""The file in a locked folder."""

COMPRESSIONS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "lzma",
    ".zst": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}
"""The modules that compress files of such names."""


@contextlib.contextmanager
def os_errors_as_fflm_error(action: str) -> Iterator[None]:
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


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, reach the disk, so that not even a power cut takes them back."""
    if fcntl is None and path.is_dir():  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK if fcntl else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as of folders on some file systems
            raise
    finally:
        os.close(descriptor)


@overload
def open_regular(path: Path) -> BufferedReader: ...
@overload
def open_regular(path: Path, mode: Literal["ab"]) -> BufferedWriter: ...
def open_regular(path: Path, mode: Literal["rb", "ab"] = "rb") -> BufferedReader | BufferedWriter:
    """Open a file in a folder that may be a stranger's: one that is not a regular file is refused, and never waited for.

    Raises
    ------
    FflmError
        If it is a FIFO, a device, a socket or a folder, or cannot be opened; to write, also if it is a symbolic link, which
        might lead to a file outside of the folder.
    """
    own = getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_NOFOLLOW", 0) if mode == "ab" else 0)
    with os_errors_as_fflm_error(f"{'read' if mode == 'rb' else 'write'} {path}"):
        if mode == "ab" and path.is_symlink():
            raise FflmError(f"{path} is a symbolic link: replace it with the file itself")
        file = open(path, mode, opener=lambda name, flags: os.open(name, flags | own, 0o666))  # noqa: SIM115
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file  # type: ignore[return-value]
        file.close()
    raise FflmError(f"{path} is not a regular file: restore it from a copy")


def check_regular(path: Path) -> None:
    """Raise an FflmError as `open_regular` does: for what a library is to open by its name."""
    open_regular(path).close()


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool = True, follow: bool = True) -> Iterator[Path]:
    """Yield a temporary path for the content of ``path``, which is put there, whole and on disk, when the block succeeds.

    A kill or a power cut at any moment leaves either the old file or the new one.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether to replace a file that exists.
    follow
        Whether ``path`` is what a user has named: not a link is then replaced, but its target, and a device, a pipe or
        ``/dev/stdout`` is written to. If false, whatever is at ``path`` is replaced by a file: in the folder of a model, which
        may come from a stranger, nothing leads elsewhere.

    Raises
    ------
    FflmError
        If the file cannot be written (no permission, no space left, no such folder, or there is a folder), or if it exists,
        perhaps only since the block began, and ``overwrite`` is false.
    """
    check_file(path, overwrite)
    through = follow and _only_written_to(path)
    place = _resolved(path) if follow else path
    with (
        os_errors_as_fflm_error(f"write {path}"),
        _workplace(Path(tempfile.gettempdir(), f"fflm-{path.name}") if through else place) as temporary,
    ):
        temporary.touch()
        yield temporary
        if through:
            with temporary.open("rb") as source, _open_through(path) as target:
                shutil.copyfileobj(source, target)
            return
        sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        if overwrite:
            temporary.replace(place)
        else:
            _add_file(temporary, place)
        sync(place.parent)


def check_file(path: Path, overwrite: bool) -> None:
    """Raise an FflmError if a file cannot be written: there is a folder, or a file that may not be replaced."""
    with os_errors_as_fflm_error(f"write {path}"):
        if path.is_dir():
            raise FflmError(f"{path} is a folder: name a file")
        if path.exists() and not overwrite and not _only_written_to(path):
            raise FflmError(f"{path} exists: choose another file, or replace it with `overwrite=True`")


def _only_written_to(path: Path) -> bool:
    """Return whether what is at a path cannot be replaced by a file: a device, a pipe, or one of this process's open files."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return _open_file(path) is not None or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _open_through(path: Path) -> IO[bytes]:
    """Open what is only written to. One of this process's open files is not opened anew, which would empty it."""
    descriptor = _open_file(path)
    return path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")


def _open_file(path: Path) -> int | None:
    """Return the descriptor that a path such as ``/dev/stdout`` or ``/dev/fd/1`` stands for, directly or by way of links."""
    own = {"/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(40):  # as many links as Linux follows
        folder = os.path.realpath(path.parent)
        if folder in own and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def _resolved(path: Path) -> Path:
    """Return what a link leads to, and any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _add_file(temporary: Path, path: Path) -> None:
    """Give a file a name that no other file has."""
    with contextlib.suppress(OSError):  # unlike a rename, a link never replaces a file, but not every file system has links
        os.link(temporary, path)
        return
    check_file(path, overwrite=False)
    temporary.replace(path)


_WORKPLACE = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)


@contextlib.contextmanager
def _workplace(place: Path) -> Iterator[Path]:
    """Yield a path at which to make the file or folder that is to be at ``place``; afterwards what is left there is removed.

    It lies in a folder with a temporary name, on the same file system. This process holds that folder locked meanwhile: one that
    nobody has locked is what a killed process has left, and the next that makes something for the same place removes it.
    """
    for leftover in _leftovers(place.parent, place.name):
        _remove(leftover)
    process = os.getpid()
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
            descriptor = _lock_leftover(folder, wait=True)
            if descriptor is not None:
                stack.callback(os.close, descriptor)
            if folder.exists():  # nobody has taken it for a leftover before it was locked
                break
        try:
            yield folder / "new"
        finally:
            if os.getpid() == process:  # and not one that was forked inside the block
                _remove(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left of what they were making in a folder, and beside it, of the folder itself."""
    place = folder.resolve()
    for leftover in itertools.chain(_leftovers(place, None), _leftovers(place.parent, place.name)):
        _remove(leftover)


def restore(path: Path) -> None:
    """Bring back a folder that is not there because a process was killed between the two renames that replace it.

    Whoever reads or replaces folders calls this before looking at one. Where folders exchange their names, it has nothing to do.
    """
    with contextlib.suppress(OSError):  # whoever may only read finds no folder
        if not path.exists():
            place = _resolved(path)
            for leftover in _leftovers(place.parent, place.name):
                _bring_back(leftover)


def restore_all(parent: Path) -> None:
    """Do what `restore` does for all folders in another one."""
    with contextlib.suppress(OSError):
        for leftover in _leftovers(parent, None):
            _bring_back(leftover)


def _leftovers(folder: Path, name: str | None) -> Iterator[Path]:
    """Yield the workplaces that nobody has locked, each locked meanwhile; none where there are no locks."""
    paths: list[Path] = []
    with contextlib.suppress(OSError):
        paths += folder.iterdir()
    for path in paths:
        found = _WORKPLACE.fullmatch(path.name)
        if found and name in (None, found["name"]) and (descriptor := _lock_leftover(path)) is not None:
            try:
                yield path
            finally:
                os.close(descriptor)


def _lock_leftover(path: Path, wait: bool = False) -> int | None:
    """Lock a file or folder itself, and return the descriptor that holds the lock; None if that cannot be, or it is gone."""
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


def _remove(workplace: Path) -> None:
    """Remove a workplace, but not a folder that is to have its name back."""
    with contextlib.suppress(OSError):
        _bring_back(workplace)
        if workplace.is_dir():
            shutil.rmtree(workplace, ignore_errors=True)
        else:  # earlier versions made files without a folder around them
            workplace.unlink()


def _bring_back(workplace: Path) -> None:
    """Give a folder its name again if it was moved into a workplace to be replaced, and nothing has taken its place."""
    found = _WORKPLACE.fullmatch(workplace.name)
    assert found
    old, place = workplace / "old", workplace.with_name(found["name"])
    if old.exists() and (workplace / "new").exists() and not os.path.lexists(place):
        old.rename(place)
        sync(place.parent)


class NewFolder:
    """A folder that is being made under a temporary name, until it is published or discarded.

    It is discarded if its ``with`` block fails, when nobody has it any more, and at exit. A folder that it is to replace is
    locked from the beginning, stays as it is until then, and is replaced in a single step.

    Parameters
    ----------
    path
        Where it is to be; if that is a link to a folder, that folder is replaced.
    check
        Raises an FflmError if there must not be a new folder at ``path``, because of what is there already. It is called when
        the work begins and when it is done, for another process may have made or changed the folder meanwhile.
    doing
        As `locked_folder` takes it.

    Attributes
    ----------
    path
        Where it is to be.
    folder
        Where it is now.
    replaces
        Whether there was a folder when the work began.

    Raises
    ------
    FflmError
        If ``check`` says so, if a folder that is to be replaced is locked, or if the folder cannot be written (no permission, no
        space left). What was at ``path`` is then as it was.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None, doing: str = "training in") -> None:
        self.path = path
        self._check, self._doing = check, doing
        self._place = _resolved(path)
        self._lock: FolderLock | None = None
        self._held = contextlib.ExitStack()
        restore(path)
        check()
        self._discard = weakref.finalize(self, self._held.close)
        try:
            with os_errors_as_fflm_error(f"write {path}"):
                self._lock_place()
                self.replaces = self._lock is not None
                self.folder = self._held.enter_context(_workplace(self._place))
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
        """Whether it is where it is to be."""
        return self.folder == self.path

    def publish(self) -> None:
        """Put the folder in its place, whole and on disk, and remove the one that it replaces.

        Raises
        ------
        FflmError
            If that cannot be done, or ``check`` says so.
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
        """Remove what is under a temporary name, and release the lock."""
        self._discard()

    def _lock_place(self) -> None:
        """Lock the folder that is to be replaced, if there is one."""
        if not self._place.exists():
            return
        if self._lock:
            self._lock.check()
        else:
            self._lock = self._held.enter_context(locked_folder(self._place, self._doing))


def check_own(folder: Path, own: Collection[str]) -> None:
    """Make sure that nothing but what can be made anew goes with a folder that is to be replaced.

    Parameters
    ----------
    folder
        The folder, if there is one.
    own
        What may be in it, as paths in it with ``/``. Hidden files may be there, too.

    Raises
    ------
    FflmError
        If there is something else.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(folders + files):
            found = Path(parent, name)
            if not name.startswith(".") and found.relative_to(folder).as_posix() not in own:
                raise FflmError(f"{found} would be lost if {folder} were replaced: move it elsewhere, or choose another folder")


@contextlib.contextmanager
def replacing_folder(path: Path, check: Callable[[], None] = lambda: None, doing: str = "training in") -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path`` when the block succeeds, and else is removed: a `NewFolder`."""
    with NewFolder(path, check, doing) as new, os_errors_as_fflm_error(f"write {path}"):
        yield new.folder
        new.publish()


def put_folder(folder: Path, path: Path, check: Callable[[], None]) -> None:
    """Move a folder to its place, on disk; one that was there is left where the new one was, or beside that as ``old``."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))
    replaced = path.exists()
    check()
    if not replaced:
        try:
            folder.rename(path)  # fails if a folder, or a file, has come into being since it was looked for
        except OSError:
            check()
            raise
    elif not _exchange(folder, path):
        path.replace(folder.with_name("old"))  # whatever happens before the next step, `_bring_back` undoes it
        folder.replace(path)
    sync(path.parent)


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
    """Return what tells a file or folder from any other, whatever its name; None if it does not exist."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str = "training in") -> Iterator["FolderLock"]:
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
    FolderLock
        Tells whether the folder is still at its path.

    Raises
    ------
    FflmError
        If the folder is locked, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with os_errors_as_fflm_error(f"write {folder}"):
            while (directory := _lock(folder, doing, stack)) is None:
                stack.close()
        yield FolderLock(folder, directory)


@dataclass
class FolderLock:
    """A lock on a folder: from `locked_folder`.

    Attributes
    ----------
    folder
        Where the folder is; whoever renames it says so here.
    descriptor
        File descriptor of the folder; -1 where the system has no locks.
    """

    folder: Path
    descriptor: int

    def check(self) -> None:
        """Raise an FflmError if the folder is not at its path any more: somebody has moved, replaced or removed it.

        Another one that may be there is not locked.
        """
        if self.descriptor >= 0 and not _is_at(self.descriptor, self.folder):
            raise FflmError(f"{self.folder} was moved, replaced or removed by somebody else: nothing more is written there")


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
    with replacing(path, follow=False) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
