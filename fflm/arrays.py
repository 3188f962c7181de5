"""Named arrays on disk: safetensors files, with a JSON value and a checksum in their metadata."""

import hashlib
import json
import math
import mmap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors

from fflm.arguments import show
from fflm.errors import FflmError
from fflm.files import check_regular, open_regular, os_errors_as_fflm_error, replacing
from fflm.stored import REMEDY, from_json

CONFIG, WEIGHTS, LOG, CHECKPOINT = "config.json", "model.safetensors", "log.jsonl", "checkpoint.safetensors"
"""Names of files in the folder of a model."""

EXAMPLES = "examples.safetensors"
"""Name of the file in the folder of a classifier that contains its texts as ids."""

INDEX = "index.safetensors"
"""Name of the file in the folder of an n-gram model that contains its index."""

ALIGNMENT = 64
"""Arrays whose size is a multiple of this number of bytes, that of a cache line, begin in a file at a multiple of it."""

_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}
"""The types of arrays by their names in safetensors files."""

_NAMES = {dtype: name for name, dtype in _TYPES.items()}

MEANING = ("kind", "bits", "network", "text", "vocabulary", "ngram", "mixture", "labels", "shares", "input", "scale")
"""The keys of config.json on which the interpretation of the weights depends."""


def meaning(about: Mapping[str, Any], *, training: bool = False) -> str:
    """Return a hash of the parts of a config.json on which the interpretation of the weights depends.

    The hash is stored with the weights, so that a config.json that was changed or belongs to other weights is detected. It does
    not depend on the paths of a mixture's components.

    Parameters
    ----------
    about
        The content of config.json.
    training
        Whether to include the settings of training, for a checkpoint, except for the number of epochs, which may be changed.

    Returns
    -------
    str
        SHA-256 in hexadecimal digits.
    """
    own = {name: about[name] for name in MEANING if name in about}
    if "mixture" in own:
        own["mixture"] = [{**component, "path": None} for component in own["mixture"]["components"]]
    if training:
        own["training"] = {**about["training"], "epochs": None}
        own |= {"threads": about["threads"], "precision": about.get("precision")}
        if "teacher" in about:
            own["teacher"] = {**about["teacher"], "path": None}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


class Divided(Protocol):
    """An array of which several processes have a part each. It is saved without being in the memory of one as a whole."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def crc32(self, checksum: int) -> int:
        """Return the CRC-32 of the whole array, which continues a checksum."""

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the rows of the whole array, some at a time."""


Arrays: TypeAlias = Mapping[str, npt.NDArray[Any] | Divided]
"""Arrays by name."""


def save_arrays(path: Path, arrays: Arrays, about: Any, config: str = "") -> None:
    """Write named arrays and a JSON value atomically to a safetensors file.

    Parameters
    ----------
    path
        The file.
    arrays
        The arrays by name. If some are divided, all other processes that have a part must call `give_parts`.
    about
        The JSON value, which may contain infinite numbers.
    config
        The `meaning` of the config.json beside the file, if there is one.

    Raises
    ------
    FflmError
        If the file cannot be written.
    """
    header = json.dumps(about)
    metadata = {"fflm": header, "crc32": str(_crc32(arrays, header + config))}
    metadata |= {"config": config} if config else {}
    with replacing(path, follow=False) as temporary, temporary.open("wb") as file:
        for part in _safetensors(arrays, metadata):
            file.write(part)


def give_parts(arrays: Arrays) -> None:
    """Do the part of this process while another one calls `save_arrays` for the same arrays, of which some may be divided."""
    divided = {name: array for name, array in arrays.items() if not isinstance(array, np.ndarray)}
    _crc32(divided, "")
    for _ in _safetensors(divided, {}):
        pass


def _safetensors(arrays: Arrays, metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the parts of a safetensors file.

    The library aligns arrays to 8 bytes only. Here those of whole cache lines come first, so that the rows of a mapped table do
    not straddle lines.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    sizes = {name: math.prod(array.shape) * array.dtype.itemsize for name, array in arrays.items()}
    ordered = sorted(arrays.items(), key=lambda item: (sizes[item[0]] % ALIGNMENT > 0, -item[1].dtype.itemsize, item[0]))
    end = 0
    for name, array in ordered:
        begin, end = end, end + sizes[name]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": (begin, end)}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-(8 + len(content)) % ALIGNMENT)
    yield len(content).to_bytes(8, "little")
    yield content
    for _, array in ordered:
        for rows in [array] if isinstance(array, np.ndarray) else array:
            yield np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


class MappedArrays(NamedTuple):
    """Arrays of a file that are mapped into memory.

    Pages are read when they are needed, and processes that map the same file share them. A page that is written to is copied, and
    the file stays as it is.

    Attributes
    ----------
    path
        The file.
    arrays
        The arrays by name.
    metadata
        The strings in the header of the file.
    """

    path: Path
    arrays: dict[str, npt.NDArray[Any]]
    metadata: dict[str, str]

    @property
    def checksum(self) -> str:
        """The checksum that the file states, of its arrays and its JSON value."""
        return self.metadata["crc32"]

    def verify(self) -> None:
        """Read all arrays, and raise an FflmError if they or the header do not have the checksum."""
        expected = _crc32(self.arrays, self.metadata["fflm"] + self.metadata.get("config", ""))
        if self.checksum != str(expected):
            raise FflmError(f"{self.path} is damaged or not an fflm file (wrong checksum): {REMEDY}")


def load_arrays(
    path: Path, types: Sequence[type[np.generic]] = (np.float32, np.float64), of: Any = Any, config: str = ""
) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    """Read a file that `save_arrays` wrote.

    Parameters
    ----------
    path, types, of, config
        As for `map_arrays`.

    Returns
    -------
    arrays : dict
        The arrays by name, in memory.
    about
        The JSON value.

    Raises
    ------
    FflmError
        As `map_arrays`.
    """
    mapped, about = map_arrays(path, types, of, config)
    return {name: array.copy() for name, array in mapped.arrays.items()}, about


def map_arrays(
    path: Path,
    types: Sequence[type[np.generic]] = (np.float32, np.float64),
    of: Any = Any,
    config: str = "",
    *,
    verify: bool = True,
) -> tuple[MappedArrays, Any]:
    """Map a file that `save_arrays` wrote into memory.

    Parameters
    ----------
    path
        The file.
    types
        The dtypes that the arrays may have.
    of
        Type of the JSON value, as for `fflm.arguments.convert`; its numbers may be infinite.
    config
        The `meaning` of the config.json beside the file. It is compared with the one in the file; files of early versions have
        none.
    verify
        Whether to verify the checksum, for which all arrays are read. Otherwise only the header is read and checked.

    Returns
    -------
    mapped : MappedArrays
        The arrays.
    about
        The JSON value.

    Raises
    ------
    FflmError
        If the file is missing, unreadable, truncated, changed, has other dtypes, or is not such a file; or if config.json was
        changed.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        mapped = MappedArrays(path, _map(path), metadata)
        about_text, stored = metadata["fflm"], metadata.get("config", "")
        if "crc32" not in metadata:
            raise ValueError("it has no checksum")
    if verify:
        mapped.verify()
    about = from_json(about_text, of, str(path), infinite=True)
    if stored and config and stored != config:
        raise FflmError(f"{path.parent / CONFIG} was changed after {path.name} was written: {REMEDY}")
    for name, array in mapped.arrays.items():
        if array.dtype not in types:
            expected = " or ".join(type_.__name__ for type_ in types)
            raise FflmError(f"{path} is damaged: {show(name)} has the type {array.dtype}, not {expected}")
    return mapped, about


def _map(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Map the arrays of a safetensors file, whose header is valid, into memory.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the file was changed in the meantime, or has an array of a type that fflm does not use.
    """
    with open_regular(path) as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    first = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:first])
    return {
        name: np.ndarray(tuple(about["shape"]), _TYPES[about["dtype"]], content, first + about["data_offsets"][0])
        for name, about in header.items()
        if name != "__metadata__"
    }


def stored_checksum(path: Path) -> str:
    """Return the checksum that a file states, of its arrays and its JSON value, without reading the arrays.

    Raises
    ------
    FflmError
        If the file is missing, or is not such a file.
    """
    with _opened(path) as file:
        checksum: str = (file.metadata() or {})["crc32"]
        return checksum


def stored_header(path: Path) -> str:
    """Return what the header of a file says: its checksum and JSON value, the names, types and shapes of its arrays.

    Raises
    ------
    FflmError
        If the file is missing, or is not such a file.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        arrays = [(name, each.get_dtype(), each.get_shape()) for name, each in slices.items()]
        return json.dumps([arrays, file.metadata()], sort_keys=True)


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays in a file by name, without reading the arrays.

    Raises
    ------
    FflmError
        If the file is missing, or is not a safetensors file.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file inside the block; errors in it, or of the block that reads it, are raised as an FflmError."""
    check_regular(path)
    with os_errors_as_fflm_error(f"read {path}"):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                yield file
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise FflmError(f"{path} is damaged or not an fflm file ({error}): {REMEDY}") from error


def _crc32(arrays: Arrays, header: str) -> int:
    """Return the CRC-32 of the header and of the names and bytes of the arrays."""
    checksum = zlib.crc32(header.encode())
    for name in sorted(arrays):
        array, checksum = arrays[name], zlib.crc32(name.encode(), checksum)
        if isinstance(array, np.ndarray):
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        else:
            checksum = array.crc32(checksum)
    return checksum
