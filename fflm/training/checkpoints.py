"""Arrays on disk: the weights of a model, and the checkpoint from which a run goes on.

Both are safetensors files, read without executing anything, with a JSON value in their header.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fflm.arguments import Positive
from fflm.errors import FflmError
from fflm.files import check_regular, clear_errors, replacing
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters, shapes
from fflm.stored import REMEDY, from_json
from fflm.training.loop import State, Trainer, state_from_dict

CONFIG, WEIGHTS, LOG, CHECKPOINT = "config.json", "model.safetensors", "log.jsonl", "checkpoint.safetensors"
EXAMPLES = "examples.safetensors"
"""Files of a model's folder; the last one holds the texts of a classifier, as ids."""

DeviceName = Literal["cpu", "cuda"]

MEANING = ("kind", "network", "text", "vocabulary", "ngram", "mixture", "labels", "shares", "input", "scale")
"""What in a config.json gives the weights their meaning."""


class _Header(TypedDict):
    """What stands with the arrays of a checkpoint."""

    state: State
    corpus: str
    epochs: NotRequired[Positive]
    device: NotRequired[DeviceName]


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


def save_weights(path: Path, parameters: Parameters, figures: Mapping[str, Any], config: str = "") -> None:
    """Write the weights of a model's folder, with the figures that they reached, whole or not at all."""
    save_arrays(path / WEIGHTS, dict(parameters.items()), figures, config)


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
        If the file is missing, unreadable, truncated, changed, has other types, or is no such file at all; or if config.json was
        changed.
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


def check_shapes(path: Path, config: NetworkConfig) -> None:
    """Compare a checkpoint's parameters with a network, of which nothing that is made may be larger than the file.

    Raises
    ------
    FflmError
        If the file is no checkpoint of such a network.
    """
    with _opened(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, shape in shapes(config).items():
        if found.get(f"parameters.{name}") != shape:
            raise FflmError(f"{path} is not of the network that {CONFIG} describes (its {name} differs): {REMEDY}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever is wrong with it, or with what the block finds there, becomes one line."""
    check_regular(path)
    with clear_errors(f"read {path}"):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                yield file
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise FflmError(f"{path} is damaged or no fflm file ({error}): {REMEDY}") from error


def _crc32(arrays: Mapping[str, npt.NDArray[Any]], header: str) -> int:
    """Return a checksum of all that a file holds."""
    checksum = zlib.crc32(header.encode())
    for name in sorted(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), checksum))
    return checksum


def save_checkpoint(path: Path, trainer: Trainer, corpus: str, device: DeviceName = "cpu", config: str = "") -> None:
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
    config
        The `meaning` of the run's config.json, training included.
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
    save_arrays(path, arrays, about, config)


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
    def load(cls, path: Path, config: str = "") -> Self:
        """Read a checkpoint; ``config`` is the `meaning` of the config.json beside it, training included.

        Raises
        ------
        FflmError
            If the file is missing, damaged, or no checkpoint; or if config.json was changed.
        """
        arrays, about = load_arrays(path, of=_Header, config=config)
        return cls(path, arrays, state_from_dict(about["state"]), about["corpus"], about.get("epochs"), about.get("device"))

    def restore(self, trainer: Trainer, corpus: str) -> None:
        """Bring a trainer to the state that was saved; ``corpus`` is the fingerprint of its data.

        Raises
        ------
        FflmError
            If the checkpoint belongs to other data, or its arrays do not fit.
        """
        if self.state.batch >= trainer.batches:
            raise FflmError(f"{self.path} is damaged (there is no batch {self.state.batch} in an epoch): {REMEDY}")
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


def load_checkpoint(path: Path, trainer: Trainer, corpus: str, config: str = "") -> None:
    """Bring a trainer to the state that was saved, as `Checkpoint` does."""
    Checkpoint.load(path, config).restore(trainer, corpus)
