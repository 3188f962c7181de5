"""Named arrays on disk: safetensors files, with a JSON value and a checksum in their metadata."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fflm.arguments import show
from fflm.errors import FflmError
from fflm.files import check_regular, os_errors_as_fflm_error, replacing
from fflm.stored import REMEDY, from_json

CONFIG, WEIGHTS, LOG, CHECKPOINT = "config.json", "model.safetensors", "log.jsonl", "checkpoint.safetensors"
"""Names of files in the folder of a model."""

EXAMPLES = "examples.safetensors"
"""Name of the file in the folder of a classifier that contains its texts as ids."""

MEANING = ("kind", "network", "text", "vocabulary", "ngram", "mixture", "labels", "shares", "input", "scale")
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
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Any, config: str = "") -> None:
    """Write named arrays and a JSON value atomically to a safetensors file.

    Parameters
    ----------
    path
        The file.
    arrays
        The arrays by name.
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
    with replacing(path, follow=False) as temporary:
        try:
            metadata = {"fflm": header, "crc32": str(_crc32(arrays, header + config))}
            metadata |= {"config": config} if config else {}
            safetensors.numpy.save_file(dict(arrays), temporary, metadata=metadata)
        except safetensors.SafetensorError as error:  # a full disk, for example
            raise OSError(str(error)) from error


def load_arrays(
    path: Path, types: Sequence[type[np.generic]] = (np.float32, np.float64), of: Any = Any, config: str = ""
) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    """Read a file that `save_arrays` wrote.

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

    Returns
    -------
    arrays : dict
        The arrays by name.
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
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        stored = metadata.get("config", "")
        if metadata["crc32"] != str(_crc32(arrays, metadata["fflm"] + stored)):
            raise ValueError("wrong checksum")
    about = from_json(metadata["fflm"], of, str(path), infinite=True)
    if stored and config and stored != config:
        raise FflmError(f"{path.parent / CONFIG} was changed after {path.name} was written: {REMEDY}")
    for name, array in arrays.items():
        if array.dtype not in types:
            expected = " or ".join(type_.__name__ for type_ in types)
            raise FflmError(f"{path} is damaged: {show(name)} has the type {array.dtype}, not {expected}")
    return arrays, about


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


def _crc32(arrays: Mapping[str, npt.NDArray[Any]], header: str) -> int:
    """Return the CRC-32 of the header and of the names and bytes of the arrays."""
    checksum = zlib.crc32(header.encode())
    for name in sorted(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), checksum))
    return checksum
