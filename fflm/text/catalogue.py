"""The catalogue of corpora, public ones and the project's own: what they are, and how to fetch and verify them."""

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
    """One file of a corpus on a server.

    Attributes
    ----------
    urls
        The addresses of the file, in the order in which they are tried.
    sha256
        The checksum of the downloaded file, 64 hexadecimal digits.
    size
        The number of bytes of the downloaded file.
    file
        The name under which the downloaded file is kept; empty if it is a zip archive.
    unpack
        For a zip archive: the name of each file to write -> a pattern (as in `fnmatch`) of the members of the archive that are
        joined in it, in the order of their names. Names in the archive are never used as paths.
    tagged
        Whether the members consist of ``word/tag`` pairs, of which only the words are kept.
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
        The name by which users ask for the corpus, and that of its folder.
    title, license
        A description of the corpus, and the license of its text.
    split
        The split into train, valid and test on which published figures are based.
    train
        The command that trains on the corpus, with ``{folder}`` in place of its folder.
    downloads
        The files to download.
    bundled
        The name of the corpus's text in the folder `bundled`, if there are no downloads.
    """

    name: str
    title: str
    license: str
    split: str
    train: str
    downloads: tuple[Download, ...] = ()
    bundled: str = ""

    @property
    def size(self) -> int:
        """The number of bytes to download, or of the bundled text.

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
    """Return the folder of the catalogue and the bundled texts: in the installed package, or beside the package in a checkout."""
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
    """Return the entry with a name.

    Raises
    ------
    FflmError
        If there is no such entry.
    """
    known = entries()
    if name not in known:
        raise FflmError(f"there is no corpus {name!r}{did_you_mean(name, known)}: choose one of {', '.join(known)}")
    return known[name]


def fetch(entry: Entry, folder: Path, progress: Callable[[int], object] = lambda done: None) -> list[Path]:
    """Download, verify and unpack a corpus, or copy a bundled one, into the new folder ``folder / entry.name``.

    The work is done in a folder beside the target, which is locked during the work and removed at the end. Files that a killed
    process has left there are removed by the next one.

    Parameters
    ----------
    entry
        The corpus to fetch.
    folder
        The folder in which the corpus's folder is made; it is created if it does not exist.
    progress
        Called repeatedly with the number of bytes received so far, out of ``entry.size``.

    Returns
    -------
    list of Path
        The files of the corpus, sorted by name.

    Raises
    ------
    FflmError
        If the target exists, another process is fetching it, no address delivers the file with its checksum, or the corpus
        cannot be written.
    """
    target, part = folder / entry.name, folder / f".{entry.name}.part"

    def check() -> None:
        """Raise an FflmError if the target exists."""
        if target.exists():
            raise FflmError(f"{target} already exists: use it, remove it, or choose another folder")

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
            with contextlib.suppress(OSError):  # it is gone, or another process is using it
                part.rmdir()
    return sorted(target.iterdir())


def _entry(name: str, table: dict[str, Any]) -> Entry:
    """Return an entry made of its table in the catalogue."""
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
    """Write the files of an archive. Its checksum was verified, so its content and its size can be trusted like the catalogue."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name, pattern in download.unpack.items():
                members = fnmatch.filter(sorted(archive.namelist()), pattern)
                if not members:
                    raise FflmError(f"the archive of {download.urls[0]} has no file {pattern}")
                with (folder / name).open("wb") as file:
                    for member in members:
                        with archive.open(member) as source:
                            if download.tagged:
                                file.writelines(_untagged(source))
                            else:
                                shutil.copyfileobj(source, file, _CHUNK)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:  # for unsupported compression or encryption: the last two
        raise FflmError(f"the archive of {download.urls[0]} cannot be unpacked: {error}") from error


def _untagged(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the words of ``word/tag`` pairs: one sentence per line, and a blank line at the end."""
    for line in lines:
        words = [pair.rpartition(b"/")[0] for pair in line.split()]
        if words:
            yield b" ".join(words) + b"\n"
    yield b"\n"
