"""Weights and checkpoints of a training run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict

import numpy.typing as npt

from fflm.arguments import Positive
from fflm.arrays import CONFIG, WEIGHTS, array_shapes, load_arrays, save_arrays
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters, shapes
from fflm.stored import REMEDY
from fflm.training.state import State, state_from_dict
from fflm.training.trainer import Trainer

DeviceName = Literal["cpu", "cuda"]


class _Header(TypedDict):
    """What stands with the arrays of a checkpoint."""

    state: State
    corpus: str
    epochs: NotRequired[Positive]
    device: NotRequired[DeviceName]


def save_weights(path: Path, parameters: Parameters, figures: Mapping[str, Any], config: str = "") -> None:
    """Write the weights of a model's folder, with the figures that they reached, whole or not at all."""
    save_arrays(path / WEIGHTS, dict(parameters.items()), figures, config)


def check_shapes(path: Path, config: NetworkConfig) -> None:
    """Compare a checkpoint's parameters with a network, of which nothing that is made may be larger than the file.

    Raises
    ------
    FflmError
        If the file is no checkpoint of such a network.
    """
    found = array_shapes(path)
    for name, shape in shapes(config).items():
        if found.get(f"parameters.{name}") != shape:
            raise FflmError(f"{path} is not of the network that {CONFIG} describes (its {name} differs): {REMEDY}")


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
