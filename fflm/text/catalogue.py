"""Well-known public corpora and the project's own: what they are, and how to get them whole and verified."""

import fnmatch
import shutil
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fflm.errors import FflmError, did_you_mean
from fflm.files import clear_errors, locked_folder, put_folder

# `identity`, because the bytes on the wire are then those that Content-Length counts and progress reports.
_HEADERS = {"User-Agent": "fflm", "Accept-Encoding": "identity"}
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
            with clear_errors(f"read {bundled() / self.bundled}"):
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
    with clear_errors(f"read {path}"):
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
    with clear_errors(f"write {target}"):
        part.mkdir(parents=True, exist_ok=True)
        with locked_folder(part, "downloading to"):
            temporary = part / "new"
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                if entry.bundled:
                    shutil.copyfile(bundled() / entry.bundled, temporary / entry.bundled)
                before = 0
                for download in entry.downloads:
                    _fetch(download, temporary, _Count(progress, before, download.size))
                    before += download.size
                put_folder(temporary, target, check)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return sorted(target.iterdir())


def _entry(name: str, table: dict[str, Any]) -> Entry:
    downloads = [Download(**{**each, "urls": tuple(each["urls"])}) for each in table.pop("downloads", [])]
    return Entry(name, **table, downloads=tuple(downloads))


class _Count:
    """What pooch takes for a progress bar: counts the bytes of one download and passes the count on."""

    total = 0  # set by pooch, which then expects it to be displayed

    def __init__(self, progress: Callable[[int], object], before: int, size: int) -> None:
        self.progress, self.before, self.size = progress, before, size

    def reset(self) -> None:
        self.done = 0

    def update(self, count: int) -> None:
        self.done = min(self.done + count, self.size)  # pooch rounds the last chunk up
        self.progress(self.before + self.done)

    def close(self) -> None:
        pass


def _fetch(download: Download, folder: Path, count: _Count) -> None:
    """Put the files of one download into ``folder``, from the first address that delivers it intact."""
    path = folder / (download.file or "archive")
    problems = []
    for url in download.urls:
        count.reset()
        problem = _receive(url, download.sha256, path, count)
        if not problem:
            break
        problems.append(problem)
    else:
        raise FflmError(f"download failed: {'; '.join(problems)}; check the network and try again")
    if download.unpack:
        _unpack(path, download, folder)
        path.unlink()


def _receive(url: str, sha256: str, path: Path, count: _Count) -> str:
    """Download ``url`` to ``path``; return what was wrong with it, empty if nothing was."""
    import pooch
    from requests import exceptions

    host = urlsplit(url).netloc
    try:
        pooch.HTTPDownloader(progressbar=count, chunk_size=_CHUNK, headers=_HEADERS)(url, str(path), None)
    except exceptions.HTTPError as error:
        return f"{host} answered: {str(error).partition(' for url')[0]}"
    except exceptions.ChunkedEncodingError:
        return f"the transfer from {host} broke off"
    except exceptions.Timeout:
        return f"{host} did not answer in time"
    except exceptions.RequestException:
        return f"no connection to {host}"
    received = pooch.file_hash(str(path))
    return "" if received == sha256 else f"{host} sent a file with the wrong checksum, sha256 {received}"


def _unpack(path: Path, download: Download, folder: Path) -> None:
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


def _untagged(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Keep the words of ``word/tag`` pairs: a sentence a line, a blank line after each text."""
    for line in lines:
        words = [pair.rpartition(b"/")[0] for pair in line.split()]
        if words:
            yield b" ".join(words) + b"\n"
    yield b"\n"
