"""Arrays on disk: the weights of a model, and the checkpoint from which a run goes on.

Both are safetensors files, read without executing anything, with a JSON value in their header.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fflm.errors import FflmError
from fflm.files import clear_errors, replacing
from fflm.network.parameters import Parameters
from fflm.training.loop import Trainer, state_from_dict

CONFIG, WEIGHTS, LOG, CHECKPOINT = "config.json", "model.safetensors", "log.jsonl", "checkpoint.safetensors"
"""Files of a model's folder."""


def save_weights(path: Path, parameters: Parameters, figures: Mapping[str, Any]) -> None:
    """Write the weights of a model's folder, with the figures that they reached, whole or not at all."""
    save_arrays(path / WEIGHTS, dict(parameters.items()), figures)


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Any) -> None:
    """Write named arrays and a JSON value, whole or not at all.

    Raises
    ------
    FflmError
        If the file cannot be written.
    """
    header = json.dumps(about)
    with replacing(path) as temporary:
        try:
            metadata = {"fflm": header, "crc32": str(_crc32(arrays, header))}
            safetensors.numpy.save_file(dict(arrays), temporary, metadata=metadata)
        except safetensors.SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error


def load_arrays(
    path: Path, types: Sequence[type[np.generic]] = (np.float32, np.float64)
) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    """Read what `save_arrays` wrote, arrays of certain types.

    Raises
    ------
    FflmError
        If the file is missing, unreadable, truncated, changed, has other types, or is no such file at all.
    """
    with clear_errors(f"read {path}"):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata["crc32"] != str(_crc32(arrays, metadata["fflm"])):
                raise ValueError("wrong checksum")
            about = json.loads(metadata["fflm"])
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
            raise FflmError(f"{path} is damaged or no fflm file ({error}): restore it from a copy, or train again") from error
    for name, array in arrays.items():
        if array.dtype not in types:
            raise FflmError(
                f"{path} is damaged: {name!r} holds {array.dtype}, not {' or '.join(type_.__name__ for type_ in types)}"
            )
    return arrays, about


def _crc32(arrays: Mapping[str, npt.NDArray[Any]], header: str) -> int:
    """Return a checksum of all that a file holds."""
    checksum = zlib.crc32(header.encode())
    for name in sorted(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), checksum))
    return checksum


def save_checkpoint(path: Path, trainer: Trainer, corpus: str) -> None:
    """Write everything that `load_checkpoint` needs to go on with a run.

    Parameters
    ----------
    path
        The file.
    trainer
        Between two events of its run.
    corpus
        Fingerprint of the data.
    """
    download = trainer.network.backend.download
    arrays = {f"parameters.{name}": download(array) for name, array in trainer.parameters.items()}
    for index, moment in enumerate(trainer.optimizer.moments):
        arrays |= {f"moment{index}.{name}": download(array) for name, array in moment.items()}
    if trainer.deferred:
        arrays |= {f"done.{name}": rows for name, rows in trainer.deferred.done.items()}
    save_arrays(path, arrays, {"state": dataclasses.asdict(trainer.state), "corpus": corpus})


def load_checkpoint(path: Path, trainer: Trainer, corpus: str) -> None:
    """Bring a trainer to the state that was saved.

    Raises
    ------
    FflmError
        If the file is damaged or belongs to other data.
    """
    arrays, about = load_arrays(path)
    if not isinstance(about, dict) or not isinstance(about.get("state"), dict):
        raise FflmError(f"{path} is no checkpoint: train again")
    if about.get("corpus") != corpus:
        raise FflmError(f"{path} was trained on other data: resume with that, or train anew with `overwrite=True`")
    backend, parts = trainer.network.backend, {"parameters": trainer.parameters}
    parts |= {f"moment{index}": moment for index, moment in enumerate(trainer.optimizer.moments)}
    for part, target in parts.items():
        named = {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}
        for array, saved in zip(target, Parameters.from_arrays(trainer.network.config, named), strict=True):
            backend.copy(backend.upload(saved).reshape(len(saved), -1), array.reshape(len(saved), -1))
    if trainer.deferred:
        if missing := [name for name in trainer.deferred.done if f"done.{name}" not in arrays]:
            raise FflmError(f"{path} is damaged: it lacks the steps of {', '.join(missing)}; train again")
        trainer.deferred.restore({name: arrays[f"done.{name}"] for name in trainer.deferred.done})
    trainer.state = state_from_dict(about["state"])
