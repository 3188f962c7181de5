"""Predictions after a few contexts equal the reference, and lines have the same scores alone and together."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from tiny import MODES, WORDS, tiny_model
from tolerances import SINGLE_SOFTMAX, assert_close

from fflm.backend.cpu import launching
from fflm.backend.cpu.kernels import FEW_ROWS
from fflm.models.neural import few
from fflm.models.neural.few import FewContexts
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters

SHAPES = {
    "one layer": {},
    "projected": {"tied": True},
    "tied without projection": {"tied": True, "hidden": (5, 3), "embedding": 3},
    "averages": {"averages": (2, 4), "activation": "relu"},
    "weighted averages": {"averages": (2, 11), "word_weights": True},
    "direct": {"direct": True, "hidden": (6, 5)},
    "residual": {"residual": True, "hidden": (6, 6, 6), "activation": "elu", "direct": True},
    "no hidden layer": {"hidden": (), "direct": True, "residual": True},
    "layers of several panels": {"hidden": (70, 17), "embedding": 18, "tied": True},
}


def model_of(mode="sentence", words=WORDS, **shape):
    """Return a network of a shape with random weights."""
    model = tiny_model(MODES[mode], words)
    settings = {"window": 3, "embedding": 4, "hidden": (6,), "activation": "tanh", "tied": False}
    model.config = NetworkConfig(len(model.vocabulary), **{**settings, **shape})
    model.parameters = Parameters.random(model.config, 1, random_biases=True)
    for array in model.parameters:
        array *= 3
    if model.parameters.word_weights is not None:
        model.parameters.word_weights[:] = np.linspace(-1, 2, len(model.parameters.word_weights))
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_after_few_contexts_equal_the_reference(shape):
    model = model_of(words=[f"w{number}" for number in range(600)], **SHAPES[shape])  # more than one tile of the output layer
    generator = np.random.default_rng(1)
    contexts = generator.integers(0, len(model.vocabulary) + 1, (FEW_ROWS, model.window), np.int32)
    targets = generator.integers(0, len(model.vocabulary), FEW_ROWS, np.int32)
    parameters = {name: array.astype(np.float64) for name, array in model.parameters.items()}
    case = {**reference.PLAIN, **model.config.to_dict()}
    expected = reference.network_log_probabilities(parameters, contexts, case)
    inputs = reference.forward(parameters, contexts, case, 0, 0, training=False)[2]
    for count in (1, 2, 3, 4, 5, 6, 7, FEW_ROWS):
        assert_close(model.log_probabilities(contexts[:count]), expected[:count], SINGLE_SOFTMAX)
        found = model.losses(contexts[:count], targets[:count])
        assert_close(found, -expected[np.arange(count), targets[:count]], SINGLE_SOFTMAX)
        assert_close(model.softmax_inputs(contexts[:count]), inputs[:count], SINGLE_SOFTMAX)
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


def test_score_of_a_line_is_the_same_alone_in_a_list_and_in_threads(monkeypatch):
    model = model_of(words=[f"w{number}" for number in range(600)], hidden=(70,), embedding=18, tied=True)
    words = np.random.default_rng(1).integers(0, 650, 2000)
    borders = np.sort(np.random.default_rng(2).integers(0, len(words), 150))
    lines = [" ".join(f"w{number}" for number in line) for line in np.split(words, borders)]
    expected = model.scores(lines).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda line: float(model.scores([line])[0]), lines)) == expected
    monkeypatch.setattr(few, "_PIECE", 70)
    monkeypatch.setattr(launching, "_threads_unusable", True)  # all shares are computed on this thread
    for shares in (1, 3):
        monkeypatch.setattr(few, "shares_of", lambda work, shares=shares: shares)
        assert model.scores(lines).tolist() == expected


def test_few_contexts_are_left_to_the_network_where_they_are_many_or_the_softmax_has_bands():
    model = model_of()
    assert model._few(0) is model._few(FEW_ROWS + 1) is None
    assert model_of(bands=(4,))._few(1) is None
