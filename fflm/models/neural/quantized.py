"""Networks whose weights have 8 bits, and a scale for each row of a matrix."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import Device, PathLike, checked, to_path
from fflm.arrays import WEIGHTS, save_arrays
from fflm.errors import FflmError
from fflm.models.base import TrainedNetwork
from fflm.models.folder import read_config, save_description
from fflm.models.neural.fast import SMALL_LIMIT, is_self_normalized, make_tables, stored_arrays, stored_tables
from fflm.models.neural.model import NeuralModel, read_network
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters, is_finite, parameter_count, shapes
from fflm.stored import REMEDY
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary

TYPES = (np.int8, np.int16, np.int32, np.float32)
"""The types of the arrays of a quantized network."""

_SCALE, _FAST = ".scale", "fast."


class QuantizedNetwork(NeuralModel):
    """A network whose weights have 8 bits, which predicts like any other; its ``parameters`` are computed when they are needed.

    Parameters
    ----------
    config, vocabulary, text, about, device, source
        As the attributes of `NeuralModel`.
    arrays
        Of each matrix (R, C) of `Parameters`, the integers, int8, and under its name and ``.scale`` the value of the integer 1 in
        each row (R,), float32; the biases, float32; and under ``fast.`` the arrays of the tables of fast scoring, if it has them.

    Raises
    ------
    FflmError
        If the arrays are not those of such a network.
    """

    def __init__(
        self,
        config: NetworkConfig,
        arrays: Mapping[str, npt.NDArray[Any]],
        vocabulary: Vocabulary,
        text: TextSettings,
        about: dict[str, Any],
        device: Device = "cpu",
        source: str = TrainedNetwork.source,
    ) -> None:
        self.source = source
        self.config, self.vocabulary, self.text, self.about, self.device = config, vocabulary, text, about, device
        self.arrays = arrays
        for name, shape in shapes(config).items():
            wanted: dict[str, tuple[Any, Any]] = {name: (shape, np.float32)}
            if len(shape) == 2:
                wanted = {name: (shape, np.int8), name + _SCALE: (shape[:1], np.float32)}
            for own, expected in wanted.items():
                if own not in arrays or (arrays[own].shape, arrays[own].dtype) != expected:
                    raise FflmError(f"{source} are not this network's: {own!r} does not fit it; {REMEDY}")
        if self.fast_arrays:
            stored_tables(self)

    @cached_property
    def parameters(self) -> Parameters:  # type: ignore[override]
        """The weights, as float32."""
        restored = {name: self.arrays[name] for name in shapes(self.config)}
        for name, array in restored.items():
            if array.ndim == 2:
                with np.errstate(invalid="ignore", over="ignore"):  # `finite_parameters` refuses such numbers
                    restored[name] = array * self.arrays[name + _SCALE][:, None]
        return Parameters.from_arrays(self.config, restored, verify=False)

    @property
    def fast_arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays of the tables of fast scoring; none if they have to be made."""
        return {name.removeprefix(_FAST): array for name, array in self.arrays.items() if name.startswith(_FAST)}

    def _details(self) -> list[str]:
        return [f"window {self.config.window}", f"{parameter_count(self.config):,} parameters", "quantized"]

    @classmethod
    def of(cls, model: NeuralModel, *, tables: bool = False) -> Self:
        """Return a network with the rounded weights of another, and with the tables of fast scoring, if they are asked for.

        Raises
        ------
        FflmError
            If the other network is quantized already, or if it has no tables, because it does not normalize itself.
        """
        if isinstance(model, QuantizedNetwork):
            raise FflmError("the network is quantized already: use it as it is, or give the original")
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, array in model.parameters.items():
            arrays[name] = array.astype(np.float32, copy=False)
            if array.ndim == 2:
                scales = np.maximum(np.abs(array).max(axis=1), np.finfo(np.float32).tiny).astype(np.float32) / SMALL_LIMIT
                arrays[name + _SCALE] = scales
                arrays[name] = np.rint(array / scales[:, None]).astype(np.int8)
        if tables and not is_self_normalized(model):
            raise FflmError("the network has no tables: only one that was trained with `self_normalise` can score fast")
        if tables:
            arrays |= {_FAST + name: array for name, array in stored_arrays(make_tables(model, np.int8)).items()}
        return cls(model.config, arrays, model.vocabulary, model.text, {**model.about, "bits": 8}, model.device)

    def save(self, path: Path) -> None:
        """Write the model to an existing folder; ``about["figures"]`` are stored with the weights.

        Raises
        ------
        FflmError
            If a file cannot be written.
        """
        about = {name: value for name, value in self.about.items() if name != "figures"}
        config = save_description(path, {"network": self.config.to_dict()}, self.text, self.vocabulary, about)
        save_arrays(path / WEIGHTS, self.arrays, self.about.get("figures", {}), config)

    @classmethod
    @checked
    def load(cls, path: PathLike, device: Device = "cpu", *, verify: bool = False) -> Self:
        """Load a model's folder, to predict on a device; ``verify`` is as for `fflm.load`.

        Raises
        ------
        FflmError
            If the folder is not a quantized network, or is of a later version, incomplete or damaged.
        """
        path = to_path("path", path)
        config, arrays, vocabulary, text, about = read_network(path, read_config(path, "network"), TYPES, verify=verify)
        model = cls(config, arrays, vocabulary, text, about, device, f"the weights in {path / WEIGHTS}")
        for name, array in arrays.items():
            if verify and array.dtype == np.float32 and not is_finite(array):
                raise FflmError(f"{model.source} are damaged: {name!r} has a number that is not finite; {REMEDY}")
        return model
