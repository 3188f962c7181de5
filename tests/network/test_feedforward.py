"""The whole network is compared with the reference: losses, gradients, predictions, and batches in parts."""

import json
from typing import Any

import numpy as np
import pytest
import reference
from devices import backend_under_test, device, mixed, precision, tile
from reference import CASES
from tolerances import NETWORK, PRODUCT, SOFTMAX, assert_close

from fflm.backend.protocol import StepNumbers
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.output import Objective
from fflm.network.parameters import Parameters

SEED, STEP = 5 * 2**32 + 1, 2**33 + 7
BACKEND = backend_under_test()
WORDS = 2 * tile() + 50  # three tiles, the last of which is not full


def prepare(name: str, dtype: np.dtype) -> tuple:
    """Return a case with several tiles of words, its network, parameters, contexts, targets, and the parameters in float64."""
    case = {**CASES[name], "vocabulary": WORDS}
    config = NetworkConfig(**{field: value for field, value in case.items() if field not in reference.OBJECTIVE})
    arrays, contexts, targets = reference.batch(case)
    contexts, targets = (each.astype(dtype) if each.dtype.kind == "f" else each for each in (contexts, targets))
    arrays = {key: array.astype(dtype) for key, array in arrays.items()}
    exact = {key: array.astype(np.float64) for key, array in arrays.items()}
    return case, Network(config, BACKEND), Parameters.from_arrays(config, arrays), contexts, targets, exact


def compute_gradients(
    case: dict, network: Network, parameters: Parameters, contexts: np.ndarray, targets: np.ndarray
) -> tuple[Parameters, np.ndarray]:
    """Return gradients and losses, computed into arrays that held NaN."""
    dtype = parameters.dtype
    gradients, losses = Parameters.zeros(network.config, dtype), np.full(len(targets), np.nan, dtype)
    for array in gradients:
        array[...] = np.nan
    noise = reference.noise(case).astype(dtype) if case["noise"] else None
    teacher = None
    if case["teacher"]:
        logs = reference.teachers(len(targets), WORDS).astype(dtype)
        teacher = lambda rows: ((case["teacher"] / 2, np.ascontiguousarray(each[rows])) for each in logs)  # noqa: E731
    objective = Objective(case["smoothing"], case["penalty"], noise, teacher=teacher, adversarial=case["adversarial"])
    numbers = network.backend.place(StepNumbers(STEP))
    network.gradients(parameters, contexts, targets, gradients, losses, objective=objective, seed=SEED, numbers=numbers)
    return gradients, losses


@pytest.mark.parametrize("name", CASES)
def test_network_gradients_and_training_losses(name: str, dtype: np.dtype, threads: int) -> None:
    case, network, parameters, contexts, targets, exact = prepare(name, dtype)
    before = {key: array.copy() for key, array in parameters.items()}
    gradients, losses = compute_gradients(case, network, parameters, contexts, targets)
    expected = reference.network_gradients(exact, contexts, targets, case, SEED, STEP)
    assert [key for key, _ in gradients.items()] == list(reference.shapes(case))
    for key, gradient in gradients.items():
        assert_close(gradient, expected[key], NETWORK[dtype])
    expected_losses = reference.network_losses(exact, contexts, targets, case, SEED, STEP, training=True)
    assert_close(losses, expected_losses, SOFTMAX[dtype])
    assert all(np.array_equal(array, before[key]) for key, array in parameters.items())


@pytest.mark.parametrize("name", CASES)
def test_network_losses_and_predictions(name: str, dtype: np.dtype, threads: int) -> None:
    if mixed and name not in ("everything", "bands", "tied as it is", "mean", "one number"):
        pytest.skip("evaluation uses full precision, so --precision fp32 tests the same kernels")
    case, network, parameters, contexts, targets, exact = prepare(name, dtype)
    losses = np.full(len(targets), np.nan, dtype)
    network.losses(parameters, contexts, targets, losses)
    assert_close(losses, reference.network_losses(exact, contexts, targets, case), SOFTMAX[dtype])
    if case["output"] != "softmax":
        outputs = network.predict(parameters, contexts)
        assert outputs.dtype == dtype
        assert_close(outputs, reference.network_outputs(exact, contexts, case), SOFTMAX[dtype])
        return
    rows, many = np.random.default_rng(2).permuted(np.tile(np.indices(targets.shape)[0], 2)), np.tile(targets, 2)
    losses = np.full(len(many), np.nan, dtype)
    network.losses(parameters, contexts, many, losses, rows=rows.astype(np.int32))
    assert_close(losses, reference.network_losses(exact, contexts[rows], many, case), SOFTMAX[dtype])
    logs = network.log_probabilities(parameters, contexts)
    assert logs.dtype == dtype
    assert_close(logs, reference.network_log_probabilities(exact, contexts, case), SOFTMAX[dtype])
    assert_close(np.exp(logs.astype(np.float64)).sum(1), np.ones(len(targets)), SOFTMAX[dtype])
    assert_close(network.predict(parameters, contexts), np.exp(logs), SOFTMAX[dtype])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 4, 12])
def test_batch_in_parts_gives_same_gradients(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cpu" and (rows != 4 or name not in ("everything", "bands", "tied as it is")):
        pytest.skip("a few cases are enough on a device on which each takes long")
    case, network, parameters, contexts, targets, _ = prepare(name, precision())
    assert network.rows_at_once(parameters, len(targets)) == len(targets)
    whole, whole_losses = compute_gradients(case, network, parameters, contexts, targets)
    monkeypatch.setattr(network.backend, "softmax_bytes", rows * network.config.classes * precision().itemsize)
    assert network.rows_at_once(parameters, len(targets)) <= rows
    gradients, losses = compute_gradients(case, network, parameters, contexts, targets)
    for (_, left), (_, right) in zip(gradients.items(), whole.items(), strict=True):
        assert_close(left, right, PRODUCT[left.dtype])
    assert_close(losses, whole_losses, PRODUCT[losses.dtype])


def test_batch_is_split_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case, network, parameters, contexts, targets, _ = prepare("everything", precision())
    whole, whole_losses = compute_gradients(case, network, parameters, contexts, targets)
    scatter_add, most = BACKEND.scatter_add, len(targets) // 3

    def small(
        words: np.ndarray, *arguments: Any
    ) -> None:  # this is the last operation of a step, when all gradients have been written
        if len(words) > most:
            raise MemoryError
        scatter_add(words, *arguments)

    monkeypatch.setattr(BACKEND, "scatter_add", small)
    gradients, losses = compute_gradients(case, network, parameters, contexts, targets)
    for (_, left), (_, right) in zip(gradients.items(), whole.items(), strict=True):
        assert_close(left, right, PRODUCT[left.dtype])
    assert_close(losses, whole_losses, PRODUCT[losses.dtype])
    assert network.rows_at_once(parameters, len(targets)) <= most
    most = 0
    with pytest.raises(MemoryError):
        compute_gradients(case, network, parameters, contexts, targets)
    assert network.rows_at_once(parameters, len(targets)) == len(targets)  # the next attempt starts with whole batches again


def test_rows_at_once_is_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKEND, "softmax_bytes", 1)
    config = NetworkConfig(10, 2, 3)
    assert Network(config, BACKEND).rows_at_once(Parameters.zeros(config), 5) == 1


def test_batch_is_split_into_parts_of_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKEND, "softmax_bytes", 10 * 4 * 10)
    config = NetworkConfig(10, 2, 3)
    parameters = Parameters.zeros(config)
    assert [Network(config, BACKEND).rows_at_once(parameters, batch) for batch in (1, 10, 11, 20, 21, 31)] == [1, 10, 6, 10, 7, 8]


def test_gradients_of_single_row(dtype: np.dtype, threads: int) -> None:
    case, network, parameters, contexts, targets, exact = prepare("everything", dtype)
    gradients, _ = compute_gradients(case, network, parameters, contexts[:1], targets[:1])
    expected = reference.network_gradients(exact, contexts[:1], targets[:1], case, SEED, STEP)
    for key, gradient in gradients.items():
        assert_close(gradient, expected[key], NETWORK[dtype])


@pytest.mark.parametrize("name", ["everything", "no hidden layer", "relu"])
def test_nan_parameter_reaches_losses_and_gradient_norm(name: str, dtype: np.dtype) -> None:
    case, network, parameters, contexts, targets, _ = prepare(name, dtype)
    for array in parameters:
        kept = array.copy()
        array[...] = np.nan
        gradients, losses = compute_gradients({**case, "smoothing": 0.0}, network, parameters, contexts, targets)
        assert np.isnan(losses).all()
        factor = np.zeros(1, dtype)
        network.backend.clip_factor(gradients, 1.0, factor)
        assert np.isnan(factor[0])
        array[...] = kept


def test_pooled_prediction_does_not_depend_on_padding() -> None:
    for name in ("mean", "max"):
        _, network, parameters, contexts, *_ = prepare(name, precision())
        wider = np.hstack([contexts, np.full((len(contexts), 3), -1, np.int32)])
        assert np.array_equal(network.predict(parameters, wider), network.predict(parameters, contexts))


@pytest.mark.parametrize("words", [1, 3])
def test_contexts_of_wrong_length_are_refused(words: int) -> None:
    network, parameters, contexts, *_ = prepare("tanh", np.dtype(np.float32))[1:]
    with pytest.raises(ValueError, match=rf"shape \(13, {words}\), but the network sees 2 words"):
        network.log_probabilities(parameters, np.resize(contexts, (13, words)))
    network, parameters, contexts, *_ = prepare("numbers", np.dtype(np.float32))[1:]
    with pytest.raises(ValueError, match=rf"shape \(13, {words}\), but the network sees 6 numbers"):
        network.predict(parameters, np.resize(contexts, (13, words)))


@pytest.mark.parametrize("name", CASES)
def test_parameter_names_and_shapes(name: str) -> None:
    case, network, parameters, *_ = prepare(name, np.dtype(np.float32))
    assert {key: array.shape for key, array in parameters.items()} == reference.shapes(case)
    assert [id(array) for array in parameters] == [id(array) for _, array in parameters.items()]
    assert parameters.count == sum(np.prod(shape) for shape in reference.shapes(case).values())
    assert np.shares_memory(parameters.softmax_weight, parameters.embeddings if case["tied"] else parameters.output_weight)
    width = network.config.embedding if case["tied"] else network.config.hidden_width
    assert parameters.softmax_weight.shape == (reference.softmaxes(case)[0], width)
    assert parameters.words == network.config.classes


@pytest.mark.parametrize("name", CASES)
def test_network_config_round_trip_through_json(name: str) -> None:
    config = prepare(name, np.dtype(np.float32))[1].config
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
