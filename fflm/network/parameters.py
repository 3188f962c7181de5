"""A network's parameters, and everything that has their shape: gradients, moments of the optimizer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from fflm.backend.protocol import Array
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig

REMEDY = "restore them from a copy, or train again"

EMBEDDING_SCALE = 0.1
"""Standard deviation of an embedding's numbers at the start of training."""


RECTIFIERS = "relu", "leaky_relu", "elu", "softplus"
"""Activations that pass about half of their inputs on."""

BAND_SHRINKAGE = 4
"""Each band of an adaptive softmax reads so many times fewer numbers than the one before (Grave et al. 2017, section 4.3)."""


@dataclass(frozen=True)
class Band:
    """The arrays of a frequency band of N words, which reads H_band numbers, a projection of the hidden outputs.

    Attributes
    ----------
    projection
        (H_band, H).
    weight, bias
        (N, H_band), (N,).
    """

    projection: Array
    weight: Array
    bias: Array


@dataclass(frozen=True, repr=False)
class Parameters:
    """The arrays of a network; V words, n context words, m embedding size, H hidden outputs (Bengio's letters in brackets).

    Attributes
    ----------
    embeddings
        (V + 1, m) [C]; the last row is the padding ``<s>``. None of a network that reads numbers.
    hidden_weights, hidden_biases
        Of each hidden layer (outputs, inputs) [H] and (outputs,) [d].
    projection
        (m, H) where the configuration says so, else None.
    output_weight
        (V, H) [U, with W beside it where there are direct connections]; None where it is tied to the embeddings.
    output_bias
        (V,) [b], or a number a class. Of an adaptive softmax, the weight and bias of the first words and the bands.
    bands
        Of an adaptive softmax, else none.
    """

    embeddings: Array
    hidden_weights: tuple[Array, ...]
    hidden_biases: tuple[Array, ...]
    projection: Array | None
    output_weight: Array | None
    output_bias: Array
    bands: tuple[Band, ...] = ()

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in self.items())
        return f"Parameters({self.count:,} numbers: {shapes})"

    @property
    def borders(self) -> npt.NDArray[np.int64]:
        """First word of each band, and V."""
        return np.cumsum([len(self.output_bias) - len(self.bands), *(len(band.bias) for band in self.bands)])

    @property
    def words(self) -> int:
        """Words that can be predicted [V], or classes."""
        return int(self.borders[-1])

    @property
    def dtype(self) -> type[np.floating]:
        """Of all arrays."""
        number: type[np.floating] = self.output_bias.dtype.type
        return number

    @property
    def softmax_weight(self) -> Array:
        """The softmax's weights (V, H): its own, or the embeddings of the words that it distinguishes, which come first."""
        return self.embeddings[: len(self.output_bias)] if self.output_weight is None else self.output_weight

    @property
    def layer_weights(self) -> tuple[Array, ...]:
        """Of each layer, the output layer's last (outputs, inputs)."""
        return *self.hidden_weights, self.softmax_weight

    @property
    def layer_biases(self) -> tuple[Array, ...]:
        """Of each layer, the output layer's last (outputs,)."""
        return *self.hidden_biases, self.output_bias

    def items(self) -> Iterator[tuple[str, Array]]:
        """Yield every array with its name, in an order that never changes."""
        if self.embeddings is not None:
            yield "embeddings", self.embeddings
        for index, (weight, bias) in enumerate(zip(self.hidden_weights, self.hidden_biases, strict=True)):
            yield f"hidden.{index}.weight", weight
            yield f"hidden.{index}.bias", bias
        if self.projection is not None:
            yield "projection", self.projection
        if self.output_weight is not None:
            yield "output.weight", self.output_weight
        yield "output.bias", self.output_bias
        for index, band in enumerate(self.bands):
            yield f"band.{index}.projection", band.projection
            yield f"band.{index}.weight", band.weight
            yield f"band.{index}.bias", band.bias

    def __iter__(self) -> Iterator[Array]:
        return (array for _, array in self.items())

    def mapped(self, function: Callable[[Array], Array]) -> Self:
        """Return the parameters with a function applied to every array, such as a backend's `upload`."""
        bands = (Band(*map(function, (band.projection, band.weight, band.bias))) for band in self.bands)
        return type(self)(
            None if self.embeddings is None else function(self.embeddings),
            tuple(map(function, self.hidden_weights)),
            tuple(map(function, self.hidden_biases)),
            None if self.projection is None else function(self.projection),
            None if self.output_weight is None else function(self.output_weight),
            function(self.output_bias),
            tuple(bands),
        )

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(array.size for array in self)

    @classmethod
    def from_arrays(cls, config: NetworkConfig, arrays: Mapping[str, Array], source: str = "the weights") -> Self:
        """Assemble parameters from named arrays of a file, checking every shape, type and number; more arrays do not matter.

        Raises
        ------
        FflmError
            If an array is missing or has another shape than the configuration asks for, if they are of several types, or if a
            number is not finite; ``source`` is what the message is about.
        """
        wanted = shapes(config)
        for name, shape in wanted.items():
            if name not in arrays:
                raise FflmError(f"{source} are not this network's: they lack {name!r}; {REMEDY}")
            if arrays[name].shape != shape:
                raise FflmError(
                    f"{source} are not this network's: {name!r} has the shape {arrays[name].shape}, not {shape}; {REMEDY}"
                )
        if len(types := {str(arrays[name].dtype) for name in wanted}) > 1:
            raise FflmError(f"{source} are damaged: they are of several types, {' and '.join(sorted(types))}; {REMEDY}")
        for name in wanted:
            if not is_finite(arrays[name]):
                raise FflmError(f"{source} are damaged: {name!r} has a number that is not finite; {REMEDY}")
        return cls._assemble(config, arrays)

    @classmethod
    def _assemble(cls, config: NetworkConfig, arrays: Mapping[str, Array]) -> Self:
        layers = range(len(config.hidden))
        return cls(
            arrays.get("embeddings"),
            tuple(arrays[f"hidden.{index}.weight"] for index in layers),
            tuple(arrays[f"hidden.{index}.bias"] for index in layers),
            arrays["projection"] if config.projected else None,
            None if config.tied else arrays["output.weight"],
            arrays["output.bias"],
            tuple(
                Band(*(arrays[f"band.{index}.{part}"] for part in ("projection", "weight", "bias")))
                for index in range(len(config.softmaxes) - 1)
            ),
        )

    def start_from(self, counts: Array) -> None:
        """Set the softmax's biases by how often each word, or class, occurs (V,), so that only contexts remain to be learned."""
        frequencies = (counts + 1.0) / (counts + 1.0).sum()
        first, *bands = np.split(frequencies, self.borders[:-1])
        self.output_bias[:] = np.log(np.concatenate([first, [band.sum() for band in bands]]))
        for band, own in zip(self.bands, bands, strict=True):
            band.bias[:] = np.log(own / own.sum())

    def take_embeddings(self, embeddings: Array) -> int:
        """Start from given embeddings (V + 1, m), but where a row is NaN; return how many rows were given."""
        rows = ~np.isnan(embeddings).any(axis=1)
        self.embeddings[rows] = embeddings[rows]
        return int(rows.sum())

    @classmethod
    def zeros(cls, config: NetworkConfig, dtype: np.dtype | type = np.float32) -> Self:
        """Return parameters that are all zero."""
        return cls._assemble(config, {name: np.zeros(shape, dtype) for name, shape in shapes(config).items()})

    @classmethod
    def random(
        cls, config: NetworkConfig, seed: int, dtype: np.dtype | type = np.float32, *, random_biases: bool = False
    ) -> Self:
        """Return the parameters that training starts from.

        Weights of hidden layers are uniform with the variance 1 / fan-in, which keeps the size of activations and gradients from
        layer to layer (LeCun et al. 1998, "Efficient BackProp", section 4.6), twice that before a rectifier (He et al. 2015).
        Embeddings have the standard deviation `EMBEDDING_SCALE`, and the softmax's own weights that times what their fan-in
        asks for: rare words hardly move from where they start, and a large random vector would be noise to all that see
        it. Biases are zero, or with ``random_biases`` those of hidden layers are uniform with the variance 1 / (3 fan-in), as in
        PyTorch's linear layers. The weights are the same either way.
        """
        generator = np.random.default_rng(seed)
        arrays: dict[str, Array] = {}
        for name, shape in shapes(config).items():
            if len(shape) == 1:
                arrays[name] = np.zeros(shape, dtype)
                continue
            deviation = EMBEDDING_SCALE if name == "embeddings" else shape[1] ** -0.5
            if name == "output.weight" or (name.startswith("band") and name.endswith("weight")):
                deviation *= EMBEDDING_SCALE
            elif name.startswith("hidden") and config.activations[int(name.split(".")[1])] in RECTIFIERS:
                deviation *= 2**0.5
            bound = 3**0.5 * deviation
            arrays[name] = generator.uniform(-bound, bound, shape).astype(dtype)
        if random_biases:
            for index, size in enumerate(config.hidden):
                bound = arrays[f"hidden.{index}.weight"].shape[1] ** -0.5
                arrays[f"hidden.{index}.bias"] = generator.uniform(-bound, bound, size).astype(dtype)
        return cls._assemble(config, arrays)


def is_finite(array: npt.NDArray[np.floating]) -> bool:
    """Return whether all numbers are finite; unlike ``np.isfinite``, this takes no memory."""
    return not array.size or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a network, in the order of `Parameters.items`."""
    result: dict[str, tuple[int, ...]] = {}
    if config.input != "numbers":
        result["embeddings"] = (config.vocabulary + 1, config.embedding)
    inputs = config.inputs
    for index, size in enumerate(config.hidden):
        result[f"hidden.{index}.weight"] = (size, inputs)
        result[f"hidden.{index}.bias"] = (size,)
        inputs = size
    if config.projected:
        result["projection"] = (config.embedding, config.hidden_width)
    first, *bands = config.softmaxes
    if not config.tied:
        result["output.weight"] = (first, config.hidden_width)
    result["output.bias"] = (first,)
    for index, size in enumerate(bands):
        width = max(1, config.hidden_width // BAND_SHRINKAGE ** (index + 1))
        result[f"band.{index}.projection"] = (width, config.hidden_width)
        result[f"band.{index}.weight"] = (size, width)
        result[f"band.{index}.bias"] = (size,)
    return result
