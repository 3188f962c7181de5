"""The subset of a network for some words has the gradients of a smaller network."""

import numpy as np
import pytest
import reference
from tolerances import NETWORK, SOFTMAX, assert_close

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import StepNumbers
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.kernels import number_words
from fflm.network.output import Objective
from fflm.network.parameters import Parameters
from fflm.network.subset import Subset, frame, put, take

SEED, STEP = 3, 11


@pytest.mark.parametrize("name", ["tanh", "tied, direct", "averages", "everything", "adversarial, tied", "noise", "noise, tied"])
def test_subset_gradients_equal_those_of_smaller_network(name, dtype, threads):
    case = reference.CASES[name]
    arrays, contexts, targets = reference.batch(case)
    arrays = {key: array.astype(dtype) for key, array in arrays.items()}
    config = NetworkConfig(**{field: value for field, value in case.items() if field not in reference.OBJECTIVE})
    whole, network = Parameters.from_arrays(config, arrays), Network(config, CpuBackend())
    words = np.union1d(targets, [1, 4]).astype(np.int32)
    assert len(words) < case["vocabulary"]
    subset = Subset(config, contexts, targets, words)
    part = take(network.backend, whole, Parameters.zeros(config, dtype), subset.places)
    gradients = frame(Parameters.zeros(config, dtype), Parameters.zeros(config, dtype), subset.places)
    for array in gradients:
        array[...] = np.nan
    offsets = np.linspace(-1, 1, len(words)).astype(dtype)
    smaller = {**case, "vocabulary": len(words)}
    noise = reference.noise(smaller).astype(dtype) if case["noise"] else None
    objective = Objective(case["smoothing"], case["penalty"], noise, offsets, adversarial=case["adversarial"])
    losses = np.empty(len(targets), dtype)
    numbers = network.backend.place(StepNumbers(STEP))
    network.gradients(part, subset.contexts, subset.targets, gradients, losses, objective=objective, seed=SEED, numbers=numbers)

    exact = {key: array.astype(np.float64) for key, array in arrays.items()}
    # The embeddings of the reference are those of the words in the softmax, then all others, the padding among them.
    places = np.concatenate([words, np.setdiff1d(np.arange(case["vocabulary"] + 1), words)])
    of_words = [key for key in ("embeddings", "word_weights") if key in exact]
    exact |= {key: exact[key][places] for key in of_words}
    exact["output.bias"] = exact["output.bias"][words] + offsets
    if "output.weight" in exact:
        exact["output.weight"] = exact["output.weight"][words]
    number = np.argsort(places)
    expected = reference.network_gradients(exact, number[contexts], np.searchsorted(words, targets), smaller, SEED, STEP)
    expected |= {key: expected[key][number][subset.inputs] for key in of_words}
    for key, gradient in gradients.items():
        assert_close(gradient, expected[key], NETWORK[dtype])

    for array in part:
        array += 1
    before = {key: array.copy() for key, array in whole.items()}
    put(network.backend, part, whole, subset.places)
    rows_of = dict.fromkeys(("embeddings", "word_weights"), subset.inputs) | dict.fromkeys(
        ("output.bias", "output.weight"), words
    )
    for key, rows in rows_of.items():
        if key in before:
            others = np.setdiff1d(np.arange(len(before[key])), rows)
            now = dict(whole.items())[key]
            assert_close(now[rows], before[key][rows].astype(np.float64) + 1, SOFTMAX[dtype])
            assert np.array_equal(now[others], before[key][others])


@pytest.mark.parametrize("name", ["tied, direct", "averages", "weighted averages", "noise", "noise, tied"])
def test_subset_with_more_rows_has_same_gradients(name):
    case = reference.CASES[name]
    arrays, contexts, targets = reference.batch(case)
    config = NetworkConfig(**{field: value for field, value in case.items() if field not in reference.OBJECTIVE})
    whole, network, words = Parameters.from_arrays(config, arrays), Network(config, CpuBackend()), np.unique(targets)
    noise = np.arange(len(words), dtype=float) if case["noise"] else None
    objective = Objective(0.0, case["penalty"], noise, np.linspace(-1, 1, len(words)))
    found = []
    for more in (0, 1):
        subset = Subset(config, contexts, targets, words.astype(np.int32), lambda rows, more=more: rows + more)
        assert len(subset.places["output.bias"]) == len(words) + more
        part = take(network.backend, whole, Parameters.zeros(config, float), subset.places)
        gradients, losses = (
            frame(Parameters.zeros(config, float), Parameters.zeros(config, float), subset.places),
            np.zeros(len(targets)),
        )
        own = objective.padded(len(words) + more)
        network.gradients(part, subset.contexts, subset.targets, gradients, losses, objective=own)
        found.append({"losses": losses, **dict(gradients.items())})
    for key, expected in found[0].items():
        np.testing.assert_allclose(found[1][key][: len(expected)], expected, rtol=1e-9, atol=1e-12)
        assert not found[1][key][len(expected) :].any()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("tied", [False, True])
def test_words_of_batch_are_numbered_in_ascending_order_after_those_of_softmax(size: int, tied: bool) -> None:
    generator = np.random.default_rng(size)
    for count in (0, 1, 40):
        words = generator.integers(-1, size, count, np.int32)
        first = np.unique(generator.integers(0, size, 7, np.int32)) if tied else np.empty(0, np.int32)
        found, numbers = number_words(words, size, first)
        others = sorted({*words.tolist()} - {-1, *first.tolist()})
        assert found.tolist() == [*first.tolist(), *others]
        assert [-1 if number < 0 else found[number] for number in numbers] == words.tolist()


@pytest.mark.parametrize(("words", "first"), [([-2], []), ([64], []), ([0], [64]), ([0], [-1])])
def test_word_outside_of_vocabulary_has_no_number(words: list[int], first: list[int]) -> None:
    with pytest.raises(IndexError, match="not in the vocabulary"):
        number_words(np.array(words, np.int32), 64, np.array(first, np.int32))
