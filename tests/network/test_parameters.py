"""The parameters of a network: their number, random values, initial biases, and checks."""

import numpy as np
import pytest

from fflm.backend.cpu.backend import CpuBackend
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

BENGIO = NetworkConfig(vocabulary=17_964, window=4, averages=(), embedding=30, hidden=(100,), direct=True, tied=False)


def test_parameter_count_equals_formula_of_bengio() -> None:
    """Section 2 of the paper counts |V| (1 + n m + h) + h (1 + (n - 1) m) for n - 1 context words; `<s>` adds m more here."""
    expected = 17_964 * (1 + 5 * 30 + 100) + 100 * (1 + 4 * 30)
    assert Parameters.zeros(BENGIO).count == expected + 30


def test_missing_or_misshapen_parameters_are_refused() -> None:
    config = NetworkConfig(10, 2, 3, (5, 4), tied=True)
    arrays = dict(Parameters.zeros(config).items())
    for name, array in arrays.items():
        with pytest.raises(FflmError, match=rf"lack '{name}'"):
            Parameters.from_arrays(config, {key: other for key, other in arrays.items() if key != name})
        with pytest.raises(FflmError, match=rf"'{name}' has the shape \(1,.*not \({array.shape[0]},"):
            Parameters.from_arrays(config, {**arrays, name: array[None]})


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("tied", [False, True])
def test_random_parameters_have_expected_variances(activation: str, tied: bool, dtype: np.dtype) -> None:
    config = NetworkConfig(2000, 4, 50, (300, 200), activation, averages=(), direct=True, tied=tied)
    parameters = dict(Parameters.random(config, 1, dtype).items())
    gain = 2 if activation == "relu" else 1
    variances = {
        "embeddings": 0.1**2,
        "hidden.0.weight": gain / (4 * 50),
        "hidden.1.weight": gain / 300,
        "projection": 1 / (200 + 4 * 50),
        "output.weight": 0.1**2 / (200 + 4 * 50),
    }
    for name, array in parameters.items():
        assert array.dtype == dtype
        if name.endswith("bias"):
            assert not array.any()
            continue
        deviation = variances[name] ** 0.5
        assert abs(array.mean()) < 5 * deviation / array.size**0.5
        assert abs(array.std() / deviation - 1) < 0.02
        assert 0.99 < np.abs(array).max() / (3**0.5 * deviation) < 1 + 1e-6
    again, other = (Parameters.random(config, seed, dtype) for seed in (1, 2))
    assert all(np.array_equal(array, parameters[name]) for name, array in again.items())
    assert not np.array_equal(other.embeddings, again.embeddings)


@pytest.mark.parametrize("bands", [(), (3, 5)])
def test_start_from_sets_biases_to_word_frequencies(bands: tuple[int, ...]) -> None:
    config = NetworkConfig(8, 2, 3, tied=False, averages=(), bands=bands)
    parameters, counts = Parameters.zeros(config, np.float64), np.array([50, 30, 0, 10, 5, 3, 1, 1])
    parameters.start_from(counts)
    logs = Network(config, CpuBackend()).log_probabilities(parameters, np.zeros((1, 2), np.int32))
    np.testing.assert_allclose(np.exp(logs[0]), (counts + 1) / (counts + 1).sum())
