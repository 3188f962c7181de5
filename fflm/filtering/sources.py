"""The files of a collection, and where the filtered files go: local paths, and URLs that fsspec opens, such as ``s3://...``."""

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fflm.errors import FflmError, install
from fflm.files import os_errors_as_fflm_error, sync
from fflm.text.reading import files

GLOB = "*?["


@dataclass(frozen=True)
class Source:
    """A file of a collection.

    Attributes
    ----------
    name
        Its path or URL.
    target
        Its path below the output folder: relative to the folder that was given, or its name.
    """

    name: str
    target: str

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file to read its bytes, which are not decompressed.

        Raises
        ------
        FflmError
            If it cannot be read.
        """
        if is_url(self.name):
            system, path = file_system(self.name)
            with _remote_errors(f"read {self.name}"):
                remote = system.open(path, "rb")
            with remote:
                yield remote
            return
        with os_errors_as_fflm_error(f"read {self.name}"):
            file = Path(self.name).open("rb")  # noqa: SIM115
        with file:
            yield file

    def version(self) -> list[str]:
        """Return what changes when the file is replaced by another: its size, and its time or checksum."""
        if is_url(self.name):
            system, path = file_system(self.name)
            with _remote_errors(f"read {self.name}"):
                info = system.info(path)
            marks = (info.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "last_modified", "created"))
            return [str(info.get("size")), str(next((mark for mark in marks if mark is not None), ""))]
        with os_errors_as_fflm_error(f"read {self.name}"):
            about = Path(self.name).stat()
        return [str(about.st_size), str(about.st_mtime_ns)]


def is_url(name: str) -> bool:
    """Return whether a name is a URL rather than a local path."""
    return "://" in name


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Return the files of inputs: files, folders with the files below them, and URLs of these, which may have wildcards.

    Raises
    ------
    FflmError
        If an input cannot be read, a folder has no files, or a file is not a regular file.
    """
    if not inputs or "" in inputs:
        raise FflmError("there is no path or URL of documents: give at least one, and no empty one")
    return [source for name in inputs for source in (_remote_sources(name) if is_url(name) else _local_sources(Path(name)))]


def _local_sources(path: Path) -> Iterator[Source]:
    with os_errors_as_fflm_error(f"read {path}"):
        folder = path if path.is_dir() else path.parent
        if not path.is_dir() and (str(path) == "-" or not stat.S_ISREG(path.stat().st_mode)):
            raise FflmError(f"{path} is not a file that can be read again when a filter is resumed: write its content to a file")
    for file in files(path):
        yield Source(str(file), file.relative_to(folder).as_posix())


def _remote_sources(url: str) -> Iterator[Source]:
    system, path = file_system(url)
    with _remote_errors(f"read {url}"):
        if any(mark in path for mark in GLOB):
            folder = path[: min(path.find(mark) for mark in GLOB if mark in path)].rpartition("/")[0]
            paths = sorted(system.glob(path))
        elif system.isdir(path):
            folder, paths = path.rstrip("/"), sorted(system.find(path))
        else:
            folder, paths = path.rpartition("/")[0], [path]
            system.info(path)
    relative = {each: each.removeprefix(folder).lstrip("/") for each in paths}
    visible = {each: name for each, name in relative.items() if not any(part.startswith(".") for part in name.split("/"))}
    if not visible:
        raise FflmError(f"there are no files at {url}: give a URL of files")
    for each, name in visible.items():
        yield Source(system.unstrip_protocol(each), name)


def publish(part: Path, output: str, target: str) -> None:
    """Move a complete file to its path below the output folder or URL, where it appears as a whole.

    Raises
    ------
    FflmError
        If it cannot be written there.
    """
    if is_url(output):
        url = f"{output.rstrip('/')}/{target}"
        system, path = file_system(url)
        with _remote_errors(f"write {url}"):
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            system.put_file(str(part), path)
        part.unlink()
        return
    place = Path(output, target)
    with os_errors_as_fflm_error(f"write {place}"):
        if not place.parent.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)
        sync(place.parent)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise FflmError(f"{url} is a URL, which needs fsspec: {install('filter')}") from error
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package such as s3fs is missing, or the protocol is unknown
        raise FflmError(f"cannot use {url}: {error}") from error
    return system, str(path)


@contextmanager
def _remote_errors(action: str) -> Iterator[None]:
    """Raise errors of a file system's library as an FflmError of one line."""
    try:
        yield
    except FflmError:
        raise
    except Exception as error:  # each library has errors of its own
        raise FflmError(f"cannot {action}: {' '.join(str(error).split()) or type(error).__name__}") from error
