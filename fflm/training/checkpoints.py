"""Weights and checkpoints of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict

from fflm.arguments import Positive
from fflm.arrays import CONFIG, WEIGHTS, array_shapes, map_arrays, save_arrays
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters, shapes
from fflm.stored import REMEDY
from fflm.training.state import State, StateDict

DeviceName = Literal["cpu", "cuda"]


class _Header(TypedDict):
    """The JSON values that are stored with the arrays of a checkpoint."""

    state: State
    corpus: str
    epochs: NotRequired[Positive]
    device: NotRequired[DeviceName]


def save_weights(path: Path, parameters: Parameters, figures: Mapping[str, Any], config: str = "") -> None:
    """Write the weights to the folder of a model, completely or not at all.

    Parameters
    ----------
    path
        The folder.
    parameters
        The weights, as NumPy arrays.
    figures
        The figures that were measured with these weights, as JSON values, which are stored with them.
    config
        The `meaning` of the config.json in the folder.

    Raises
    ------
    FflmError
        If the file cannot be written.
    """
    save_arrays(path / WEIGHTS, dict(parameters.items()), figures, config)


def check_shapes(path: Path, config: NetworkConfig) -> None:
    """Check that the parameters in a checkpoint have the shapes that a network needs.

    This is done before the network is made, so that a wrong config.json cannot make it allocate more memory than the file has.

    Raises
    ------
    FflmError
        If the file is not a checkpoint of such a network.
    """
    found = array_shapes(path)
    for name, shape in shapes(config).items():
        if found.get(f"parameters.{name}") != shape:
            raise FflmError(f"{path} is not of the network that {CONFIG} describes (its {name} differs): {REMEDY}")


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a training run is resumed, as it is stored in a file.

    The number of epochs and the device are those of the checkpoint, because they must change together with the state, in one
    file. config.json only reports them.

    Attributes
    ----------
    state_dict
        The state of the trainer, from `fflm.training.trainer.Trainer.state_dict`.
    corpus
        Fingerprint of the training data.
    epochs
        Number of epochs to train for; None in files of early versions.
    device
        The device that trains; None in files of early versions.
    """

    state_dict: StateDict
    corpus: str
    epochs: int | None = None
    device: DeviceName | None = None

    def save(self, path: Path, config: str = "") -> None:
        """Write the file, completely or not at all.

        ``config`` is the `meaning` of the config.json in the same folder, including the training settings.

        Raises
        ------
        FflmError
            If the file cannot be written.
        """
        about = {"state": self.state_dict["state"], "corpus": self.corpus, "epochs": self.epochs, "device": self.device}
        save_arrays(path, self.state_dict["arrays"], {name: value for name, value in about.items() if value is not None}, config)

    @classmethod
    def load(cls, path: Path, config: str = "", *, arrays: bool = True) -> Self:
        """Read and verify a file; keep its arrays in memory, or only the rest.

        ``config`` is the `meaning` of the config.json in the same folder, including the training settings.

        Raises
        ------
        FflmError
            If the file is missing, damaged, or not a checkpoint; or if config.json was changed.
        """
        mapped, about = map_arrays(path, of=_Header, config=config)
        found = {name: array.copy() for name, array in mapped.arrays.items()} if arrays else {}
        return cls({"state": about["state"], "arrays": found}, about["corpus"], about.get("epochs"), about.get("device"))
