"""Files that are whole or absent: everything is written under a temporary name, then renamed."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from fflm.errors import FflmError

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block succeeds, else remove it.

    The file's content reaches the disk before the rename, so that a kill or a power cut at any moment leaves
    either the old file or the new one.

    Raises
    ------
    FflmError
        If the file cannot be written (no permission, no space left, no such folder).
    """
    with clear_errors(f"write {path}"):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block succeeds, and else is removed.

    Raises
    ------
    FflmError
        If the folder cannot be written (no permission, no space left, no such folder).
    """
    with (
        clear_errors(f"write {path}"),
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as name,
    ):
        folder = Path(name, "new")
        folder.mkdir()
        yield folder
        if path.exists():
            path.replace(Path(name, "old"))
        folder.replace(path)


@contextlib.contextmanager
def writing_text(path: Path) -> Iterator[IO[str]]:
    """Yield a file for text in UTF-8, compressed if its name ends in .gz, .bz2, .xz or .zst, which appears whole or not at all.

    Raises
    ------
    FflmError
        If it cannot be written.
    """
    try:
        open_text = import_module(COMPRESSIONS[path.suffix]).open if path.suffix in COMPRESSIONS else open
    except ImportError as error:
        raise FflmError(f"cannot write {path}: this Python lacks a module that compresses so; choose another ending") from error
    with replacing(path) as temporary, open_text(temporary, "wt", encoding="utf-8", newline="\n") as file:
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


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    FflmError
        If the file is missing, unreadable or not JSON.
    """
    with clear_errors(f"read {path}"):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise FflmError(f"{path} is damaged: not valid JSON ({error})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
