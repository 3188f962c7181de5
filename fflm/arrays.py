"""Named arrays on disk: safetensors files, read without executing anything, with a JSON value and a checksum in their header."""

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

from fflm.errors import FflmError
from fflm.files import check_regular, os_errors_as_fflm_error, replacing
from fflm.stored import REMEDY, from_json

CONFIG, WEIGHTS, LOG, CHECKPOINT = "config.json", "model.safetensors", "log.jsonl", "checkpoint.safetensors"

EXAMPLES = "examples.safetensors"
"""Files of a model's folder; the last one holds the texts of a classifier, as ids."""

MEANING = ("kind", "network", "text", "vocabulary", "ngram", "mixture", "labels", "shares", "input", "scale")
"""What in a config.json gives the weights their meaning."""


def meaning(about: Mapping[str, Any], *, training: bool = False) -> str:
    """Return a sha256 of what in a config.json gives the weights their meaning, which they know it by.

    Where the models of a mixture lie does not matter.

    Parameters
    ----------
    about
        The content of config.json.
    training
        Whether what further training depends on belongs to it, too, but for the number of epochs, which may be changed.
    """
    own = {name: about[name] for name in MEANING if name in about}
    if "mixture" in own:
        own["mixture"] = [{**component, "path": None} for component in own["mixture"]["components"]]
    if training:
        own["training"] = {**about["training"], "epochs": None}
        own |= {"threads": about["threads"], "precision": about.get("precision")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Any, config: str = "") -> None:
    """Write named arrays and a JSON value, whole or not at all, with the `meaning` of the config.json beside them, if any.

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
        except safetensors.SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error


def load_arrays(
    path: Path, types: Sequence[type[np.generic]] = (np.float32, np.float64), of: Any = Any, config: str = ""
) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    """Read what `save_arrays` wrote.

    Parameters
    ----------
    path
        The file.
    types
        Of the arrays.
    of
        Type of the JSON value, as `fflm.arguments.convert` takes it; its numbers may be infinite.
    config
        The `meaning` of the config.json beside the file, which the arrays are to belong to. Files of early versions do not say.

    Raises
    ------
    FflmError
        If the file is missing, unreadable, truncated, changed, has other types, or is not such a file; or if config.json
        was changed.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        known = metadata.get("config", "")
        if metadata["crc32"] != str(_crc32(arrays, metadata["fflm"] + known)):
            raise ValueError("wrong checksum")
    about = from_json(metadata["fflm"], of, str(path), infinite=True)
    if known and config and known != config:
        raise FflmError(f"{path.parent / CONFIG} was changed after {path.name} was written: {REMEDY}")
    for name, array in arrays.items():
        if array.dtype not in types:
            raise FflmError(
                f"{path} is damaged: {name!r} holds {array.dtype}, not {' or '.join(type_.__name__ for type_ in types)}"
            )
    return arrays, about


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays in a file by their names, without reading the arrays.

    Raises
    ------
    FflmError
        If the file is missing, or is not a safetensors file.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever is wrong with it, or with what the block finds there, becomes one line."""
    check_regular(path)
    with os_errors_as_fflm_error(f"read {path}"):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                yield file
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise FflmError(f"{path} is damaged or not an fflm file ({error}): {REMEDY}") from error


def _crc32(arrays: Mapping[str, npt.NDArray[Any]], header: str) -> int:
    """Return a checksum of all that a file holds."""
    checksum = zlib.crc32(header.encode())
    for name in sorted(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), checksum))
    return checksum
