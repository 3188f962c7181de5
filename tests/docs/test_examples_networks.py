"""The examples on whole networks: iris, vanishing gradients, activations, identities, and the sliding window."""

import random
import re

import activations
import augmentation
import identities
import iris
import numpy as np
import pytest
import sliding_window
import vanishing_gradients

from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters


@pytest.mark.slow
@pytest.mark.parametrize("random_state", [1, 5])
def test_iris_network_classifies_six_flowers(random_state):
    features, classes, test_features, test_classes = iris.split()
    assert np.bincount(classes).tolist() == [0, 40, 40, 40]
    assert np.bincount(test_classes).tolist() == [0, 10, 10, 10]
    np.testing.assert_array_equal(iris.FLOWERS, test_features[[0, 1, 10, 11, 20, 21]])
    model = iris.train(features, classes, random_state)
    assert [array.shape for array in model.parameters_] == [(6, 4), (6,), (3, 6), (3,)]
    assert model.predict(iris.FLOWERS).tolist() == [1, 1, 2, 2, 3, 3]
    assert (model.predict_proba(iris.FLOWERS)[np.arange(6), [0, 0, 1, 1, 2, 2]] > 0.99).all()
    assert model.score(features, classes) >= 0.975
    assert np.trace(iris.confusion(test_classes, model.predict(test_features))) >= 29


def test_confusion_matrix_rows_are_true_classes():
    found = iris.confusion(np.array([1, 1, 2, 3, 3, 3]), np.array([1, 3, 2, 2, 2, 3]))
    assert found.tolist() == [[1, 0, 1], [0, 1, 0], [0, 2, 1]]


@pytest.mark.slow
def test_iris_output(capsys):
    iris.main()
    printed = capsys.readouterr().out
    assert "4-6-3 network: W (6, 4), U (3, 6), 51 parameters" in printed
    assert "test accuracy = 30 / 30 = 1.000" in printed
    assert [line.split()[-2:] for line in printed.splitlines()[-6:]] == [
        [number, name] for number, name in (("1", "setosa"), ("2", "versicolor"), ("3", "virginica")) for _ in range(2)
    ]


def test_gradient_norms_equal_chain_rule():
    depth, total = 4, np.zeros(4)
    config = NetworkConfig.feedforward(64, (64,) * depth, 10, activation="sigmoid")
    parameters, generator = Parameters.random(config, 0, np.float64), np.random.default_rng(0)
    for _ in range(20):
        h, target = [generator.normal(size=(1, 64))[0]], generator.integers(10, size=1, dtype=np.int32)[0]
        for W in parameters.hidden_weights:
            h.append(1 / (1 + np.exp(-W @ h[-1])))
        p = np.exp(parameters.output_weight @ h[-1])
        d_h = parameters.output_weight.T @ (p / p.sum() - np.eye(10)[target])
        for layer in reversed(range(depth)):
            d_z = h[layer + 1] * (1 - h[layer + 1]) * d_h
            total[layer] += d_z @ d_z
            d_h = parameters.hidden_weights[layer].T @ d_z
    np.testing.assert_allclose(vanishing_gradients.gradient_norms("sigmoid", depth), np.sqrt(total / 20), rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_vanish_only_with_sigmoid(seed):
    norms = {
        (activation, residual): vanishing_gradients.gradient_norms(activation, 20, residual=residual, seed=seed)
        for activation in ("sigmoid", "tanh", "relu")
        for residual in (False, True)
    }
    factors = {each: vanishing_gradients.per_layer(found) for each, found in norms.items()}
    assert 0.22 < factors["sigmoid", False] < 0.25
    assert norms["sigmoid", False][0] / norms["sigmoid", False][-1] < 4.0**-19
    assert 0.88 < factors["tanh", False] < 0.97
    assert 0.96 < factors["relu", False] < 1.04
    for activation in ("sigmoid", "tanh", "relu"):
        assert 1.05 < factors[activation, True] < 1.15


def test_per_layer_factor_is_geometric_mean():
    assert vanishing_gradients.per_layer(np.array([1.0, 50.0, 8.0])) == pytest.approx(8**-0.5)


def test_vanishing_gradients_output(capsys, tmp_path):
    vanishing_gradients.main(["--plot", str(tmp_path / "norms.png")])
    rows = [line.rsplit(maxsplit=4) for line in capsys.readouterr().out.splitlines()[-7:]]
    deepest = {name.strip(): float(ratio) for name, *_, ratio in rows}
    networks = ("sigmoid", "tanh", "ReLU")
    assert [*deepest] == [*networks, *(f"{name}, residual" for name in networks), "4^-(layers - 1)"]
    assert deepest["4^-(layers - 1)"] == 3.6e-12
    assert deepest["sigmoid"] < 3.6e-12
    assert min(deepest["sigmoid, residual"], deepest["tanh, residual"], deepest["ReLU, residual"]) > 1
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


VALUES = {  # f and f' at -2, -1, 0, 1, 2
    "sigmoid": ([0.1192, 0.2689, 0.5, 0.7311, 0.8808], [0.1050, 0.1966, 0.25, 0.1966, 0.1050]),
    "tanh": ([-0.9640, -0.7616, 0.0, 0.7616, 0.9640], [0.0707, 0.4200, 1.0, 0.4200, 0.0707]),
    "relu": ([0.0, 0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 1.0, 1.0]),
    "leaky_relu": ([-0.02, -0.01, 0.0, 1.0, 2.0], [0.01, 0.01, 0.01, 1.0, 1.0]),
    "elu": ([-0.8647, -0.6321, 0.0, 1.0, 2.0], [0.1353, 0.3679, 1.0, 1.0, 1.0]),
    "softplus": ([0.1269, 0.3133, 0.6931, 1.3133, 2.1269], [0.1192, 0.2689, 0.5, 0.7311, 0.8808]),
}


@pytest.mark.parametrize("name", VALUES)
def test_activation_values_and_derivatives(name):
    np.testing.assert_allclose(activations.activation(name, np.arange(-2.0, 3.0)), VALUES[name], atol=5e-5)


def test_activations_output(capsys, tmp_path):
    activations.main(["--plot", str(tmp_path / "activations.png")])
    printed = capsys.readouterr().out
    assert "   sigmoid    0.1192    0.2689    0.5000    0.7311    0.8808\n" in printed
    assert "   sigmoid    0.1050    0.1966    0.2500    0.1966    0.1050\n" in printed
    assert all(float(line.split()[-1]) < 1e-9 for line in printed.splitlines()[-6:])
    assert (tmp_path / "activations.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seed", range(3))
def test_sigmoid_equals_softmax_of_two_classes(seed):
    sigmoid, softmax = identities.sigmoid_as_softmax(seed).values()
    for one, other, shape in zip(sigmoid, softmax, [(5,), (3,)], strict=True):
        assert one.shape == shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_bias_equals_weight_of_constant_input(seed):
    bias, weight = identities.bias_as_weight(seed).values()
    for one, other, shape in zip(bias, weight, [(5, 3), (3, 5)], strict=True):
        assert one.shape == shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_linear_layers_collapse_to_one_and_relu_layers_do_not(seed):
    three, one, relu = identities.collapse(seed).values()
    np.testing.assert_allclose(three, one, rtol=0, atol=1e-12)
    assert np.abs(relu - one).max() > 0.1


def test_identities_output(capsys):
    identities.main()
    numbers = [re.findall(r"-?\d+\.\d*", line) for line in capsys.readouterr().out.splitlines()]
    for first, count in ((1, 8), (6, 6), (11, 2)):  # the number of the first of two equal lines, and how many numbers it has
        assert numbers[first] == numbers[first + 1]
        assert len(numbers[first]) == count
    assert numbers[12] != numbers[13]  # the layers with ReLU differ


@pytest.fixture(scope="module")
def model():
    return sliding_window.train()


@pytest.mark.slow
def test_sliding_window_contexts_and_targets(model):
    contexts, targets = sliding_window.read(model, "The dog stood still.")
    words = [*model.vocabulary.words, "<s>"]
    assert [([words[word] for word in context], words[target]) for context, target in zip(contexts, targets, strict=True)] == [
        (["<s>", "<s>", "<s>"], "The"),
        (["<s>", "<s>", "The"], "dog"),
        (["<s>", "The", "dog"], "stood"),
        (["The", "dog", "stood"], "still"),
        (["dog", "stood", "still"], "."),
        (["stood", "still", "."], "</s>"),
    ]


@pytest.mark.slow
def test_sliding_window_stages_equal_library_probabilities(model):
    contexts, targets = sliding_window.read(model, sliding_window.SENTENCE)
    stages = [sliding_window.stages(sliding_window.in_float64(model), context) for context in contexts]
    assert {name: array.shape for name, array in stages[0].items()} == {"e": (48,), "h": (32,), "z": (1501,), "p": (1501,)}
    p = np.array([stage["p"] for stage in stages])
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.log(p), model.log_probabilities(contexts), atol=1e-4)  # the model computes in float32
    own = sliding_window.perplexity(p[np.arange(12), targets])
    assert own == pytest.approx(model.score(sliding_window.SENTENCE).perplexity, rel=1e-5)
    assert 5 < own < 50


def test_perplexity_is_inverse_geometric_mean():
    assert sliding_window.perplexity(np.array([1 / 2, 1 / 4])) == pytest.approx(8**0.5)
    assert sliding_window.perplexity(np.full(7, 1 / 10)) == pytest.approx(10)


def test_example_sentence_is_held_out():
    stories = sliding_window.STORIES.read_text(encoding="utf-8")
    assert stories.count(sliding_window.SENTENCE) == 1
    assert stories.index(sliding_window.SENTENCE) > 0.96 * len(stories)


@pytest.mark.slow
def test_sliding_window_output(model, capsys, monkeypatch):
    monkeypatch.setattr(sliding_window, "train", lambda: model)
    sliding_window.main()
    printed = capsys.readouterr().out
    assert "network: E (1502, 16), W (32, 48), b (32,), U (1501, 32), c (1501,); 75,133 parameters" in printed
    assert printed.count(" -> ") == 13
    (difference,) = (float(line.split()[-1]) for line in printed.splitlines() if "largest difference" in line)
    assert difference < 1e-12
    by_hand, library = (line.split()[-1] for line in printed.splitlines()[-3:-1])
    assert float(by_hand) == pytest.approx(float(library), rel=1e-5)


def test_word_dropout_leaves_some_words_out_and_keeps_their_order():
    words, generator = [f"w{number}" for number in range(1000)], random.Random(1)
    kept = augmentation.drop_words(words, generator)
    assert 750 < len(kept) < 850
    assert kept == [word for word in words if word in {*kept}]
    assert all(augmentation.drop_words(["word"], generator) == ["word"] for _ in range(50))  # a text is never empty


def test_swaps_change_the_order_of_neighbors_only():
    words, generator = [f"w{number}" for number in range(10)], random.Random(1)
    for _ in range(50):
        swapped = augmentation.swap_words(words, generator)
        assert sorted(swapped) == sorted(words)
        assert sum(abs(swapped.index(word) - place) for place, word in enumerate(words)) in (0, 4)  # twice the same, or two
    assert augmentation.swap_words(["word"], generator) == ["word"]


def test_augmented_texts_begin_with_the_texts_and_keep_their_labels():
    texts = [("speech", ["said", "the", "dog"]), ("telling", ["a", "dog", "sat"])]
    assert augmentation.augment(texts, "as they are", 1) == texts
    assert augmentation.augment(texts, "copies", 1) == texts * augmentation.COPIES
    for name in ("word dropout", "swaps"):
        augmented = augmentation.augment(texts, name, 1)
        assert augmented[:2] == texts
        assert [label for label, _ in augmented] == ["speech", "telling"] * augmentation.COPIES
        assert augmented[2:] != texts * (augmentation.COPIES - 1)


@pytest.mark.slow
def test_augmentation_changes_accuracy_of_small_classifier_little():
    found = augmentation.measure(50, 1)
    assert [*found] == [*augmentation.CHANGES]
    assert all(0.8 < each.mean() < 0.97 for each in found.values())
