"""Predictions after a few contexts equal those of the network's operations, for every shape."""

import itertools

import numpy as np
import pytest
from tiny import MODES, WORDS, tiny_model
from tolerances import SINGLE_SOFTMAX, assert_close

from fflm.backend.cpu.kernels import FEW_ROWS
from fflm.models.neural.few import FewContexts
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters

SHAPES = {
    "one layer": {},
    "projected": {"tied": True},
    "tied without projection": {"tied": True, "hidden": (5, 3), "embedding": 3},
    "averages": {"averages": (2, 4), "activation": "relu"},
    "direct": {"direct": True, "hidden": (6, 5)},
    "residual": {"residual": True, "hidden": (6, 6, 6), "activation": "elu", "direct": True},
    "no hidden layer": {"hidden": (), "direct": True, "residual": True},
}


def model_of(mode="sentence", words=WORDS, **shape):
    """Return a network of a shape with random weights."""
    model = tiny_model(MODES[mode], words)
    settings = {"window": 3, "embedding": 4, "hidden": (6,), "activation": "tanh", "tied": False}
    model.config = NetworkConfig(len(model.vocabulary), **{**settings, **shape})
    model.parameters = Parameters.random(model.config, 1, random_biases=True)
    for array in model.parameters:
        array *= 3
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_after_few_contexts_equal_those_of_the_network(shape):
    model = model_of(words=[f"w{number}" for number in range(600)], **SHAPES[shape])  # more than one tile of the output layer
    generator = np.random.default_rng(1)
    contexts = generator.integers(0, len(model.vocabulary) + 1, (FEW_ROWS, model.window), np.int32)
    targets = generator.integers(0, len(model.vocabulary), FEW_ROWS, np.int32)
    expected = model.network.log_probabilities(model.parameters, contexts)
    for count in (1, 2, 7, FEW_ROWS):
        assert_close(model.log_probabilities(contexts[:count]), expected[:count], SINGLE_SOFTMAX)
        found = model.losses(contexts[:count], targets[:count])
        assert_close(found, -expected[np.arange(count), targets[:count]], SINGLE_SOFTMAX)
    assert isinstance(model._few(count), FewContexts)


@pytest.mark.parametrize("mode", MODES)
def test_losses_of_lines_equal_those_of_texts(mode):
    model = model_of(mode)
    ids, borders = model._encoder.encode(["the cat sat .\ndog dog", "", "cat"])
    expected = []
    for low, high in itertools.pairwise(borders):
        contexts, targets = model.windows(ids[low:high]).batch(np.arange(high - low))
        logs = model.network.log_probabilities(model.parameters, contexts)
        expected.extend(-logs[np.arange(len(targets)), targets])
    assert_close(model.line_losses(ids, borders), np.array(expected), SINGLE_SOFTMAX)


def test_few_contexts_are_left_to_the_network_where_they_are_many_or_the_softmax_has_bands():
    model = model_of()
    assert model._few(0) is model._few(FEW_ROWS + 1) is None
    assert model_of(bands=(4,))._few(1) is None
