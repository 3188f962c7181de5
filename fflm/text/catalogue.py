"""Well-known public corpora and the project's own: what they are, and how to get them whole and verified."""

import contextlib
import fnmatch
import shutil
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fflm.errors import FflmError, did_you_mean
from fflm.files import locked_folder, os_errors_as_fflm_error, put_folder

_CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class Download:
    """One file of a corpus, as it lies on a server.

    Attributes
    ----------
    urls
        Addresses of the same bytes, in the order in which they are tried.
    sha256
        Checksum of the downloaded file, 64 hexadecimal digits.
    size
        Bytes of the downloaded file.
    file
        Name under which the download itself is kept; empty if it is a zip archive.
    unpack
        For a zip archive: name of each file to write -> pattern (as in `fnmatch`) of the archive's members
        that it joins, in the order of their names. No name in the archive ever becomes a path.
    tagged
        Whether the members hold ``word/tag`` pairs, of which only the words are kept.
    """

    urls: tuple[str, ...]
    sha256: str
    size: int
    file: str = ""
    unpack: Mapping[str, str] = field(default_factory=dict)
    tagged: bool = False


@dataclass(frozen=True)
class Entry:
    """One corpus of the catalogue.

    Attributes
    ----------
    name
        What the user calls it, and the folder it is put in.
    title, licence
        What it is, and on which terms its text may be used.
    split
        The convention by which published figures divide it into train, valid and test.
    train
        The command that trains on it, ``{folder}`` standing for its folder.
    downloads
        Where it comes from.
    bundled
        Or the text in the folder `bundled` that it is; then there are no downloads.
    """

    name: str
    title: str
    licence: str
    split: str
    train: str
    downloads: tuple[Download, ...] = ()
    bundled: str = ""

    @property
    def size(self) -> int:
        """Bytes to download, or of the bundled text.

        Raises
        ------
        FflmError
            If the bundled text is missing.
        """
        if self.bundled:
            with os_errors_as_fflm_error(f"read {bundled() / self.bundled}"):
                return (bundled() / self.bundled).stat().st_size
        return sum(download.size for download in self.downloads)


def bundled() -> Path:
    """Return the folder of the catalogue and the bundled texts: in the package, or beside a checkout's."""
    package = Path(__file__).parents[1]
    installed = package / "corpora"
    return installed if installed.is_dir() else package.parent / "corpora"


def entries() -> dict[str, Entry]:
    """Read the catalogue: name -> entry, in the order of the file.

    Raises
    ------
    FflmError
        If the catalogue is missing.
    """
    path = bundled() / "catalogue.toml"
    with os_errors_as_fflm_error(f"read {path}"):
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: _entry(name, table) for name, table in tables.items()}


def find(name: str) -> Entry:
    """Return the entry called ``name``.

    Raises
    ------
    FflmError
        If there is none.
    """
    known = entries()
    if name not in known:
        raise FflmError(f"no corpus is called {name!r}{did_you_mean(name, known)}: choose one of {', '.join(known)}")
    return known[name]


def fetch(entry: Entry, folder: Path, progress: Callable[[int], object] = lambda done: None) -> list[Path]:
    """Put a corpus into the new folder ``folder / entry.name``: download, verify, unpack; or copy.

    All of it happens in a folder beside the target, which is locked meanwhile and removed at the end. What a killed process
    has left there is removed by the next.

    Parameters
    ----------
    entry
        What to fetch.
    folder
        Where to put it; made if it does not exist.
    progress
        Called often with the number of bytes received so far, of ``entry.size``.

    Returns
    -------
    list of Path
        The corpus's files, sorted by name.

    Raises
    ------
    FflmError
        If the target exists, another process is fetching it, no address delivers the file with its checksum, or it cannot be
        written.
    """
    target, part = folder / entry.name, folder / f".{entry.name}.part"

    def check() -> None:
        if target.exists():
            raise FflmError(f"{target} exists already: use it, remove it, or choose another folder")

    check()
    with os_errors_as_fflm_error(f"write {target}"):
        part.mkdir(parents=True, exist_ok=True)
        try:
            with locked_folder(part, "downloading to"):
                temporary = part / "new"
                try:
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir()
                    if entry.bundled:
                        shutil.copyfile(bundled() / entry.bundled, temporary / entry.bundled)
                    before = 0
                    for download in entry.downloads:
                        _fetch(download, temporary, progress, before)
                        before += download.size
                    put_folder(temporary, target, check)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError):  # it is gone, or another process is at work there
                part.rmdir()
    return sorted(target.iterdir())


def _entry(name: str, table: dict[str, Any]) -> Entry:
    downloads = [Download(**{**each, "urls": tuple(each["urls"])}) for each in table.pop("downloads", [])]
    return Entry(name, **table, downloads=tuple(downloads))


def _fetch(source: Download, folder: Path, progress: Callable[[int], object], before: int) -> None:
    """Put the files of one download into ``folder``, from the first address that delivers it intact."""
    from fflm.text.downloading import download

    path = folder / (source.file or "archive")
    problems = []
    for url in source.urls:
        try:
            download(url, path, source.size, source.sha256, lambda received: progress(before + received))
            break
        except FflmError as error:
            problems.append(str(error))
    else:
        raise FflmError(f"download failed: {'; '.join(problems)}; check the network and try again")
    if source.unpack:
        _unpack(path, source, folder)
        path.unlink()


def _unpack(path: Path, download: Download, folder: Path) -> None:
    """Write the files of an archive, whose checksum is right: what it holds, and how much, is as good as the catalogue."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name, pattern in download.unpack.items():
                members = fnmatch.filter(sorted(archive.namelist()), pattern)
                if not members:
                    raise FflmError(f"nothing in the archive of {download.urls[0]} is called {pattern}")
                with (folder / name).open("wb") as file:
                    for member in members:
                        with archive.open(member) as source:
                            if download.tagged:
                                file.writelines(_untagged(source))
                            else:
                                shutil.copyfileobj(source, file, _CHUNK)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # the latter two: compression, encryption
        raise FflmError(f"the archive of {download.urls[0]} cannot be unpacked: {error}") from error


def _untagged(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Keep the words of ``word/tag`` pairs: a sentence a line, a blank line after each text."""
    for line in lines:
        words = [pair.rpartition(b"/")[0] for pair in line.split()]
        if words:
            yield b" ".join(words) + b"\n"
    yield b"\n"
