"""The parameters of a network. Gradients and the moments of an optimizer have the same structure."""

import dataclasses
import math
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
"""Standard deviation of the initial embeddings."""

RECTIFIERS = "relu", "leaky_relu", "elu", "softplus"
"""Activation functions that are near 0 for about half of all inputs, and nearly linear for the others."""

BAND_SHRINKAGE = 4
"""Factor by which the input of each band of an adaptive softmax is smaller than that of the band before it.

Source: Grave et al. 2017, section 4.3.
"""

DRAWN = 2**20
"""Random numbers that are drawn at a time. They are float64, and must not take more memory than the weights."""


@dataclass(frozen=True)
class Band:
    """The parameters of a frequency band of N words in an adaptive softmax, whose input has H_band numbers.

    Attributes
    ----------
    projection
        The weights of the linear projection of the hidden outputs, (H_band, H).
    weight, bias
        The weights (N, H_band) and the biases (N,) of the softmax over the words of the band.
    """

    projection: Array
    weight: Array
    bias: Array


@dataclass(frozen=True, repr=False)
class Parameters:
    """The parameters of a network, as arrays of one dtype.

    V is the vocabulary size (or the number of output units), m the embedding dimension, and H the number of hidden outputs.
    Bengio's letters for the arrays are in brackets.

    Attributes
    ----------
    embeddings
        The embeddings [C], (V + 1, m); the last row is that of the padding ``<s>``. None if the input is numbers.
    word_weights
        The factors of the embeddings in averages, (V + 1,); None if all are 1.
    hidden_weights, hidden_biases
        The weights [H], (outputs, inputs), and the biases [d], (outputs,), of each hidden layer.
    projection
        The projection of the hidden outputs to a tied output layer, (m, H); None if there is none (`NetworkConfig.projected`).
    output_weight
        The weights of the output layer, (V, H): [U], and to the right [W] if there are direct connections. None if they are tied
        to the embeddings. In an adaptive softmax, those of the first softmax.
    output_bias
        The biases of the output layer [b], (V,). In an adaptive softmax, those of the first softmax.
    bands
        The parameters of the bands of an adaptive softmax; empty for other output layers.
    affixes
        The vectors of the affixes of words, (A, m), which exist only in training (`fflm.training.affix_vectors`). Otherwise None.
    """

    embeddings: Array
    word_weights: Array | None
    hidden_weights: tuple[Array, ...]
    hidden_biases: tuple[Array, ...]
    projection: Array | None
    output_weight: Array | None
    output_bias: Array
    bands: tuple[Band, ...] = ()
    affixes: Array | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in self.items())
        return f"Parameters({self.count:,} numbers: {shapes})"

    @property
    def borders(self) -> npt.NDArray[np.int64]:
        """The id of the first word of each band, and V."""
        return np.cumsum([len(self.output_bias) - len(self.bands), *(len(band.bias) for band in self.bands)])

    @property
    def words(self) -> int:
        """Number of words that can be predicted, or of output units: V."""
        return int(self.borders[-1])

    @property
    def dtype(self) -> type[np.floating]:
        """The scalar type of all arrays, such as ``numpy.float32``."""
        number: type[np.floating] = self.output_bias.dtype.type
        return number

    @property
    def softmax_weight(self) -> Array:
        """The weights of the output layer, (V, H): its own, or if it is tied, the embeddings without that of the padding."""
        return self.embeddings[: len(self.output_bias)] if self.output_weight is None else self.output_weight

    @property
    def layer_weights(self) -> tuple[Array, ...]:
        """The weights of all layers, (outputs, inputs) each; the last are those of the output layer."""
        return *self.hidden_weights, self.softmax_weight

    @property
    def layer_biases(self) -> tuple[Array, ...]:
        """The biases of all layers, (outputs,) each; the last are those of the output layer."""
        return *self.hidden_biases, self.output_bias

    def items(self) -> Iterator[tuple[str, Array]]:
        """Yield the name and the array of each parameter, in a fixed order."""
        if self.embeddings is not None:
            yield "embeddings", self.embeddings
        if self.word_weights is not None:
            yield "word_weights", self.word_weights
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
        if self.affixes is not None:
            yield "affixes", self.affixes

    def __iter__(self) -> Iterator[Array]:
        return (array for _, array in self.items())

    def mapped(self, function: Callable[[Array], Array]) -> Self:
        """Return new parameters: the results of a function, such as `Backend.upload`, for each array."""
        bands = (Band(*map(function, (band.projection, band.weight, band.bias))) for band in self.bands)
        return type(self)(
            None if self.embeddings is None else function(self.embeddings),
            None if self.word_weights is None else function(self.word_weights),
            tuple(map(function, self.hidden_weights)),
            tuple(map(function, self.hidden_biases)),
            None if self.projection is None else function(self.projection),
            None if self.output_weight is None else function(self.output_weight),
            function(self.output_bias),
            tuple(bands),
            None if self.affixes is None else function(self.affixes),
        )

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(array.size for array in self)

    @classmethod
    def from_arrays(
        cls,
        config: NetworkConfig,
        arrays: Mapping[str, Array],
        source: str = "the weights",
        *,
        verify: bool = True,
        affixes: int = 0,
    ) -> Self:
        """Return parameters that consist of arrays from a file, after checking their shapes, dtypes and numbers.

        Parameters
        ----------
        config
            The configuration of the network.
        arrays
            NumPy arrays by their names, as `items` yields them. Additional arrays are ignored.
        source
            What error messages call the file.
        verify
            Whether to check the numbers, for which all of them are read.
        affixes
            Number of affixes that have vectors.

        Raises
        ------
        FflmError
            If an array is missing, or does not have the shape that the configuration requires; if the arrays have several
            dtypes; or if a number is not finite.
        """
        wanted = shapes(config, affixes)
        for name, shape in wanted.items():
            if name not in arrays:
                raise FflmError(f"{source} are not this network's: they lack {name!r}; {REMEDY}")
            if arrays[name].shape != shape:
                raise FflmError(
                    f"{source} are not this network's: {name!r} has the shape {arrays[name].shape}, not {shape}; {REMEDY}"
                )
        if len(types := {str(arrays[name].dtype) for name in wanted}) > 1:
            raise FflmError(f"{source} are damaged: they are of several types, {' and '.join(sorted(types))}; {REMEDY}")
        parameters = cls.assemble(config, arrays)
        if verify:
            parameters.check_finite(source)
        return parameters

    def check_finite(self, source: str = "the weights") -> None:
        """Raise an FflmError if a number is not finite; ``source`` is what the message calls the file."""
        for name, array in self.items():
            if not is_finite(array):
                raise FflmError(f"{source} are damaged: {name!r} has a number that is not finite; {REMEDY}")

    @classmethod
    def assemble(cls, config: NetworkConfig, arrays: Mapping[str, Array]) -> Self:
        """Return parameters that consist of these arrays, without checks."""
        layers = range(len(config.hidden))
        return cls(
            arrays.get("embeddings"),
            arrays["word_weights"] if config.word_weights else None,
            tuple(arrays[f"hidden.{index}.weight"] for index in layers),
            tuple(arrays[f"hidden.{index}.bias"] for index in layers),
            arrays["projection"] if config.projected else None,
            None if config.tied else arrays["output.weight"],
            arrays["output.bias"],
            tuple(
                Band(*(arrays[f"band.{index}.{part}"] for part in ("projection", "weight", "bias")))
                for index in range(len(config.softmaxes) - 1)
            ),
            arrays.get("affixes"),
        )

    def start_from(self, counts: Array, words: slice = slice(None)) -> None:
        """Set the biases of the softmax so that the network begins with the unigram distribution.

        ``counts`` (V,) says how often each word, or class, occurs in the training data. ``words`` are those of these parameters,
        as for `random`.
        """
        frequencies = ((counts + 1.0) / (counts + 1.0).sum())[words]
        first, *bands = np.split(frequencies, self.borders[:-1])
        self.output_bias[:] = np.log(np.concatenate([first, [band.sum() for band in bands]]))
        for band, own in zip(self.bands, bands, strict=True):
            band.bias[:] = np.log(own / own.sum())

    def take_embeddings(self, embeddings: Array) -> int:
        """Replace embeddings by the rows of ``embeddings`` (V + 1, m) that contain no NaN; return the number of these rows."""
        rows = ~np.isnan(embeddings).any(axis=1)
        self.embeddings[rows] = embeddings[rows]
        return int(rows.sum())

    def extended(self, shifts: Array) -> Self:
        """Return a copy for a vocabulary with N more words, which are predicted where ``<unk>`` was, but with other biases.

        Until now, the additional words were ``<unk>`` in training, so that each of them gets a copy of its vectors.

        Parameters
        ----------
        shifts
            (N + 1,): what is added to the bias of ``<unk>`` for ``<unk>`` itself and for each of the additional words. If these
            are the logarithms of shares that add up to 1, they share its probability.
        """
        assert not self.bands
        copies = np.zeros(len(shifts) - 1, np.int64)  # the id of <unk>
        outputs = np.concatenate([np.arange(self.words), copies])
        bias = self.output_bias[outputs]
        bias[[0, *range(self.words, len(bias))]] += shifts.astype(bias.dtype)
        return dataclasses.replace(
            self.mapped(np.copy),
            embeddings=self.embeddings[np.append(outputs, self.words)],
            word_weights=None if self.word_weights is None else self.word_weights[np.append(outputs, self.words)],
            output_weight=None if self.output_weight is None else self.output_weight[outputs],
            output_bias=bias,
        )

    @classmethod
    def zeros(cls, config: NetworkConfig, dtype: np.dtype | type = np.float32) -> Self:
        """Return parameters that are all zero."""
        return cls.assemble(config, {name: np.zeros(shape, dtype) for name, shape in shapes(config).items()})

    def zeros_like(self) -> Self:
        """Return parameters with the same shapes and dtype that are all zero, as NumPy arrays."""
        return self.mapped(lambda array: np.zeros(array.shape, array.dtype))

    @classmethod
    def random(
        cls,
        config: NetworkConfig,
        seed: int,
        dtype: np.dtype | type = np.float32,
        *,
        random_biases: bool = False,
        words: slice = slice(None),
    ) -> Self:
        """Return random initial parameters.

        The weights of hidden layers are uniform with the variance 1 / fan-in, which keeps the size of activations and gradients
        from layer to layer (LeCun et al. 1998, "Efficient BackProp", section 4.6), or 2 / fan-in before a rectifier (He et al.
        2015). Embeddings have the standard deviation `EMBEDDING_SCALE`, and weights of the output layer have that times
        fan-in^(-1/2). Both are small because the vectors of rare words change little during training, and large random vectors
        would add noise to all predictions. Biases are 0, and the weights of words in averages are 1.

        Parameters
        ----------
        config
            The configuration of the network.
        seed
            Random seed.
        dtype
            The dtype of the arrays.
        random_biases
            Whether the biases of hidden layers are random, too: uniform with the variance 1 / (3 fan-in), as those of PyTorch's
            linear layers. The weights do not depend on this.
        words
            The words whose rows of the output layer are returned; by default all. The numbers do not depend on this.
        """
        generator = np.random.default_rng(seed)
        arrays: dict[str, Array] = {}
        for name, shape in shapes(config).items():
            if len(shape) == 1:
                rows = len(range(*words.indices(shape[0]))) if name == "output.bias" else shape[0]
                arrays[name] = np.full(rows, float(name == "word_weights"), dtype)
                continue
            deviation = EMBEDDING_SCALE if name == "embeddings" else shape[1] ** -0.5
            if name == "output.weight" or (name.startswith("band") and name.endswith("weight")):
                deviation *= EMBEDDING_SCALE
            elif name.startswith("hidden") and config.activations[int(name.split(".")[1])] in RECTIFIERS:
                deviation *= 2**0.5
            bound = 3**0.5 * deviation
            arrays[name] = _uniform(generator, bound, shape, dtype, words if name == "output.weight" else slice(None))
        if random_biases:
            for index, size in enumerate(config.hidden):
                bound = arrays[f"hidden.{index}.weight"].shape[1] ** -0.5
                arrays[f"hidden.{index}.bias"] = generator.uniform(-bound, bound, size).astype(dtype)
        return cls.assemble(config, arrays)


def _uniform(generator: np.random.Generator, bound: float, shape: tuple[int, ...], dtype: np.dtype | type, rows: slice) -> Array:
    """Return some rows of a random matrix of this shape: numbers between -bound and bound, drawn for a few rows at a time."""
    first, end, _ = rows.indices(shape[0])
    array = np.empty((end - first, shape[1]), dtype)
    at_once = max(1, DRAWN // shape[1])
    for low in range(0, shape[0], at_once):
        drawn = generator.uniform(-bound, bound, (min(at_once, shape[0] - low), shape[1]))
        own = drawn[max(first - low, 0) : max(end - low, 0)]
        start = max(low - first, 0)
        array[start : start + len(own)] = own
    return array


def is_finite(array: npt.NDArray[np.floating]) -> bool:
    """Return whether all numbers of an array are finite, without the temporary array that ``np.isfinite(array)`` would need."""
    return not array.size or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def shapes(config: NetworkConfig, affixes: int = 0) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of a network by its name, in the order of `Parameters.items`.

    ``affixes`` is the number of affixes that have vectors, in training.
    """
    result: dict[str, tuple[int, ...]] = {}
    if config.input != "numbers":
        result["embeddings"] = (config.vocabulary + 1, config.embedding)
    if config.word_weights:
        result["word_weights"] = (config.vocabulary + 1,)
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
    if affixes:
        result["affixes"] = (affixes, config.embedding)
    return result


def parameter_count(config: NetworkConfig) -> int:
    """Return the number of parameters of a network."""
    return sum(map(math.prod, shapes(config).values()))
