"""Arrays on disk: the weights of a model, and the checkpoint from which a run goes on.

Both are safetensors files, read without executing anything, with a JSON value in their header.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fflm.errors import FflmError
from fflm.files import clear_errors, replacing
from fflm.network.parameters import Parameters
from fflm.training.loop import State, Trainer, state_from_dict

CONFIG, WEIGHTS, LOG, CHECKPOINT = "config.json", "model.safetensors", "log.jsonl", "checkpoint.safetensors"
"""Files of a model's folder."""

DeviceName = Literal["cpu", "cuda"]


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
    with replacing(path, follow=False) as temporary:
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


def save_checkpoint(path: Path, trainer: Trainer, corpus: str, device: DeviceName = "cpu") -> None:
    """Write everything that `load_checkpoint` needs to go on with a run.

    Parameters
    ----------
    path
        The file.
    trainer
        Between two events of its run.
    corpus
        Fingerprint of the data.
    device
        What trains.
    """
    download = trainer.network.backend.download
    arrays = {f"parameters.{name}": download(array) for name, array in trainer.parameters.items()}
    for index, moment in enumerate(trainer.optimizer.moments):
        arrays |= {f"moment{index}.{name}": download(array) for name, array in moment.items()}
    if trainer.deferred:
        arrays |= {f"done.{name}": rows for name, rows in trainer.deferred.done.items()}
    about = {
        "state": dataclasses.asdict(trainer.state),
        "corpus": corpus,
        "epochs": trainer.settings.epochs,
        "device": device,
    }
    save_arrays(path, arrays, about)


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` wrote.

    It is the truth about what may change when a run goes on, because that must change together with the state; config.json only
    reports it.

    Attributes
    ----------
    path
        The file.
    arrays
        Parameters and moments.
    state
        Where the run stands.
    corpus
        Fingerprint of the data.
    epochs
        How many there are to be.
    device
        What trains. This and ``epochs`` are None in files of early versions.
    """

    path: Path
    arrays: Mapping[str, npt.NDArray[Any]]
    state: State
    corpus: str
    epochs: int | None
    device: DeviceName | None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint.

        Raises
        ------
        FflmError
            If the file is missing, damaged, or no checkpoint.
        """
        arrays, about = load_arrays(path)
        try:
            state = state_from_dict(about["state"])
            return cls(path, arrays, state, about["corpus"], about.get("epochs"), about.get("device"))
        except (KeyError, TypeError, AttributeError) as error:
            raise FflmError(f"{path} is no checkpoint: train again") from error

    def restore(self, trainer: Trainer, corpus: str) -> None:
        """Bring a trainer to the state that was saved; ``corpus`` is the fingerprint of its data.

        Raises
        ------
        FflmError
            If the checkpoint belongs to other data, or its arrays do not fit.
        """
        if self.corpus != corpus:
            raise FflmError(f"{self.path} was trained on other data: resume with that, or train anew with `overwrite=True`")
        backend, parts = trainer.network.backend, {"parameters": trainer.parameters}
        parts |= {f"moment{index}": moment for index, moment in enumerate(trainer.optimizer.moments)}
        for part, target in parts.items():
            named = {name.removeprefix(f"{part}."): array for name, array in self.arrays.items() if name.startswith(f"{part}.")}
            for array, saved in zip(target, Parameters.from_arrays(trainer.network.config, named), strict=True):
                backend.copy(backend.upload(saved).reshape(len(saved), -1), array.reshape(len(saved), -1))
        if trainer.deferred:
            if missing := [name for name in trainer.deferred.done if f"done.{name}" not in self.arrays]:
                raise FflmError(f"{self.path} is damaged: it lacks the steps of {', '.join(missing)}; train again")
            trainer.deferred.restore({name: self.arrays[f"done.{name}"] for name in trainer.deferred.done})
        trainer.state = self.state


def load_checkpoint(path: Path, trainer: Trainer, corpus: str) -> None:
    """Bring a trainer to the state that was saved, as `Checkpoint` does."""
    Checkpoint.load(path).restore(trainer, corpus)
