"""The neural cache: its kernel and its losses, compared with naive computations in float64, and mixtures with it."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_mixture import TEXT, save_tiny
from tiny import MODES, Bigrams, tiny_model
from tolerances import NEURAL_CACHE, assert_close

import fflm
from fflm.arrays import CONFIG
from fflm.cli import main
from fflm.errors import FflmError
from fflm.models.mixture import cache as cache_module
from fflm.models.mixture.cache import THETAS, NeuralCache, UnigramCache
from fflm.models.mixture.kernels import KEYS, QUERIES, find_contexts, sum_weights
from fflm.models.mixture.model import interpolate_losses
from fflm.models.mixture.train import estimate_weights, mix
from fflm.models.scoring import score, score_chunks
from fflm.text.windows import Windows


def unit_vectors(generator, *shape):
    """Return random vectors of length 1, float64."""
    vectors = generator.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("theta", [2, 100])
@pytest.mark.parametrize("queries", [1, QUERIES, 2 * QUERIES + 7])
@pytest.mark.parametrize("window", [0, 5, 2 * KEYS + 9])
def test_sums_of_weights_equal_naive_computation(theta, queries, window):
    generator = np.random.default_rng(queries + window)
    last = np.arange(queries) + 3 * KEYS
    first = last - window
    keys, words = unit_vectors(generator, int(last[-1]) + 1, 19), generator.integers(0, 3, int(last[-1]) + 1).astype(np.int32)
    values, targets = unit_vectors(generator, queries, 19), generator.integers(0, 3, queries).astype(np.int32)
    keys[::2] = -values[0]  # the opposite of a query, so that its smallest weights are exp(-2 theta)
    places = np.arange(len(keys)) - 3 * KEYS
    ages = np.arange(queries)[:, None] - places
    weights = np.exp(theta * (values @ keys.T - 1) - 0.01 * ages)
    seen = (np.arange(len(keys)) >= first[:, None]) & (np.arange(len(keys)) < last[:, None])
    of_target = seen & (words == targets[:, None])
    arrays = (theta * values).astype(np.float32), keys.astype(np.float32), words, places.astype(np.int32), first, last, targets
    for shares in (1, 3):
        tiles = np.empty((shares, QUERIES, KEYS), np.float32)
        found, totals = np.full((2, queries), np.nan)
        sum_weights(*arrays, float(theta), np.float32(0.01), tiles, found, totals, shares)
        np.testing.assert_allclose(totals, (weights * seen).sum(axis=1), rtol=NEURAL_CACHE * theta)
        np.testing.assert_allclose(found, (weights * of_target).sum(axis=1), rtol=NEURAL_CACHE * theta)


def naive_distribution(model, size, theta, ids, place):
    """Return the distribution of a neural cache after the first ``place`` words of a text, in float64, word by word."""
    V = len(model.vocabulary)
    windows = Windows.of(ids, model.vocabulary, model.text, model.window)
    contexts = windows.contexts(np.arange(place + 1))
    parameters = model.parameters.mapped(lambda array: array.astype(np.float64))
    inputs = parameters.embeddings[contexts].reshape(place + 1, -1)
    hidden = np.tanh(inputs @ parameters.hidden_weights[0].T + parameters.hidden_biases[0])
    weights = np.full(V, math.exp(-theta) / V)
    for i in range(max(0, place - size), place):
        ends = model.text.mode == "sentence" and 1 in ids[i:place]  # another sentence
        if not ends and not (model.vocabulary.ends and ids[i] == 1):
            cosine = hidden[i] @ hidden[place] / np.linalg.norm(hidden[i]) / np.linalg.norm(hidden[place])
            weights[ids[i]] += math.exp(theta * (cosine - 1)) * math.exp(-4 * (place - i) / size)
    return weights / weights.sum()


@pytest.fixture(params=MODES)
def model(request):
    return tiny_model(MODES[request.param])


@pytest.mark.parametrize(("size", "theta"), [(1, 1.0), (9, 20.0), (100, 100.0)])
def test_neural_cache_equals_naive_computation(model, size, theta, monkeypatch):
    cache = NeuralCache(size, theta, model)
    ids = np.random.default_rng(size).integers(0, len(model.vocabulary), 60).astype(np.int32)
    places = np.arange(len(ids))
    expected = np.log([naive_distribution(model, size, theta, ids, place) for place in places])
    losses = -expected[places, ids]
    close = {"rtol": 0, "atol": 10 * NEURAL_CACHE * theta}
    windows = cache.windows(ids)
    found = cache.log_probabilities(windows.contexts(places))
    np.testing.assert_allclose(found, expected, **close)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(cache.losses(*windows.batch(places)), losses, **close)
    losses = np.minimum(losses, 75)  # the kernel rounds up weights below 1e-38 of the largest
    np.testing.assert_allclose(np.minimum(cache.losses_of_text(ids), 75), losses, **close)
    np.testing.assert_allclose(np.minimum(cache.losses_of_text(ids, 23), 75), losses[23:], **close)
    np.testing.assert_allclose(np.minimum(cache.losses_of_text(ids[:1]), 75), losses[:1], **close)  # shorter than a context
    for piece in (1, 7):
        monkeypatch.setattr(cache_module, "_PIECE", piece)
        several = cache.losses_of_texts([ids, ids[:0], ids[:17]])
        assert list(map(len, several)) == [60, 0, 17]
        np.testing.assert_allclose(np.minimum(np.concatenate(several), 75), np.append(losses, losses[:17]), **close)


def test_neural_cache_knows_nothing_at_the_beginning(model):
    cache = NeuralCache(5, 30.0, model)
    empty = cache.log_probabilities(cache.windows(np.empty(0, np.int32)).contexts(np.array([0])))
    np.testing.assert_array_equal(empty, UnigramCache(5, model.vocabulary, model.text).log_probabilities(empty_context(model, 5)))
    assert len(cache.losses_of_text(np.empty(0, np.int32))) == 0
    assert cache.losses_of_texts([]) == []


def test_keys_of_a_growing_text_are_computed_once(model, monkeypatch):
    """As text grows, each next word needs one more key; the distributions are those of a cache that has kept none."""
    cache, computed = NeuralCache(12, 9.0, model), []
    keys = cache._keys
    monkeypatch.setattr(cache, "_keys", lambda contexts: computed.append(len(contexts)) or keys(contexts))
    ids = np.random.default_rng(1).integers(0, len(model.vocabulary), 60).astype(np.int32)
    contexts = cache.windows(ids).contexts(np.arange(30, 60))
    expected = [NeuralCache(12, 9.0, model).log_probabilities(context[None]) for context in contexts]
    found = [cache.log_probabilities(context[None]) for context in contexts]
    assert_close(np.concatenate(found), np.concatenate(expected), 10 * NEURAL_CACHE * cache.theta)
    assert len(computed) <= 30
    assert set(computed[1:]) == {1}
    monkeypatch.setattr(cache_module, "_PIECE", 20)  # of keys that are kept
    cache = NeuralCache(12, 9.0, model)
    found = [cache.log_probabilities(contexts[place : place + 2]) for place in range(0, 30, 2)]
    assert_close(np.concatenate(found), np.concatenate(expected), 10 * NEURAL_CACHE * cache.theta)
    assert len(cache._own.known.keys) == 26
    monkeypatch.setattr(model, "softmax_inputs", lambda contexts: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        cache.log_probabilities(contexts[:1])
    monkeypatch.undo()
    assert_close(cache.log_probabilities(contexts[:1]), expected[0], 10 * NEURAL_CACHE * cache.theta)


def test_each_context_has_one_place_whatever_the_order():
    """Texts repeat, jump back and have words that do not count; equal contexts are found again, others get new places."""
    generator, width, size = np.random.default_rng(3), 2, 5
    slots, known = np.zeros(64, np.int32), np.empty((32, width), np.int32)  # full enough that contexts share slots
    text, numbers, count = generator.integers(0, 5, 200).astype(np.int32), {}, 0
    for first in [*range(60), *range(30, 0, -1), *generator.integers(0, 190, 60).tolist()]:
        contexts = np.stack([text[first : first + width + size], text[first // 2 : first // 2 + width + size]])
        places = np.full((2, size + 1), -9, np.int32)
        count = find_contexts(contexts, size, 4, 3, slots, known, count, places)
        for row, found in zip(contexts.tolist(), places.tolist(), strict=True):
            for place, number in enumerate(found):
                if place < size and row[place + width] in (3, 4):
                    assert number == -1
                else:
                    assert number == numbers.setdefault(tuple(row[place : place + width]), len(numbers))
        assert count == len(numbers)
        assert list(map(tuple, known[:count].tolist())) == list(numbers)


def empty_context(model, size):
    """Return the context of ``size`` words at the beginning of a text, (1, size)."""
    return np.full((1, size), model.context_limits[0], np.int32)


def test_neural_cache_without_similarity_equals_unigram_cache(model):
    ids = np.random.default_rng(1).integers(0, len(model.vocabulary), 40).astype(np.int32)
    unigram = UnigramCache(9, model.vocabulary, model.text)
    np.testing.assert_allclose(NeuralCache(9, 1e-9, model).losses_of_text(ids), unigram.losses_of_text(ids), atol=1e-6)


def test_neural_cache_refuses_invalid_numbers(model):
    for size, theta, reason in ((0, 1.0, "`size` must be .* from 1"), (1, 0.0, "`theta` must be"), (1, 101.0, "up to 100")):
        with pytest.raises(FflmError, match=reason):
            NeuralCache(size, theta, model)


# Mixtures.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with two networks, a text, and a mixture with both caches."""
    folder = tmp_path_factory.mktemp("neural_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_tiny(Path("one.model"))
        save_tiny(Path("two.model"), seed=2)
        Path("held.txt").write_text(TEXT)
        mix(["one.model", "two.model"], cache=4, neural_cache=40, tune=["held.txt"]).save("m.mix")
    return folder


@pytest.fixture
def mixture(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return fflm.load("m.mix")


def test_tuning_chooses_best_theta_on_held_out_text(mixture):
    *models, unigram, cache = mixture.components.values()
    assert (type(unigram), type(cache), cache.size, cache.network) == (UnigramCache, NeuralCache, 40, models[0])
    assert cache.theta in THETAS
    ids = mixture.text.encode_text(TEXT, mixture.vocabulary)
    others = [each.losses_of_text(ids) for each in (*models, unigram)]
    best = {}
    for theta in THETAS:
        losses = np.stack([*others, NeuralCache(40, theta, models[0]).losses_of_text(ids)])
        best[theta] = interpolate_losses(losses, estimate_weights(losses)).mean()
    assert cache.theta == min(best, key=best.get)
    assert mixture.tuning["loss"] == pytest.approx(best[cache.theta])
    tuned = [each["name"] for each in mixture.tuning["components"]]
    assert tuned == ["one.model", "two.model", "cache of 4 words", f"neural cache of 40 words, theta {cache.theta:g}"]
    assert mixture.tuning["components"][3]["loss"] == pytest.approx(score(cache, TEXT).loss)


def test_scores_of_mixture_with_neural_cache_agree(mixture):
    expected = score(mixture, TEXT).loss_sum
    chunks = score_chunks(mixture, TEXT.encode().splitlines(keepends=True))
    assert chunks.loss_sum == pytest.approx(expected)
    ids = mixture.text.encode_text(TEXT, mixture.vocabulary)
    assert mixture.losses(*mixture.windows(ids).batch(np.arange(len(ids)))).sum() == pytest.approx(expected)
    assert pickle.loads(pickle.dumps(mixture)).score(TEXT).loss_sum == pytest.approx(expected)


def test_mixture_with_neural_cache_predicts_and_generates(mixture):
    words = dict(mixture.next_words("the cat sat", top=100))
    assert sum(words.values()) == pytest.approx(1)
    ids = mixture.vocabulary.encode(["the", "cat", "sat", "on"])
    assert -math.log(words["on"]) == pytest.approx(mixture.losses_of_text(ids)[-1])
    assert mixture.generate("the cat", length=4, seed=1)[0].startswith("the cat ")


def test_damaged_neural_cache_is_refused(mixture):
    path = Path("m.mix", CONFIG)
    content = path.read_text()
    about = json.loads(content)
    *others, cache = about["mixture"]["components"]
    for wrong in ({"neural_cache": 5}, {**cache, "theta": 0}, {**cache, "neural_cache": 0}, {**cache, "cache": 5}):
        about["mixture"]["components"] = [*others, wrong]
        path.write_text(json.dumps(about))
        with pytest.raises(FflmError, match="is damaged"):
            fflm.load("m.mix")
    path.write_text(content)


def test_neural_cache_without_network_is_refused(mixture):
    with pytest.raises(FflmError, match=r"needs .* a network"):
        cache_module.network_of([Bigrams(mixture.text, ("the",), {})])


def test_mix_command_adds_neural_cache(mixture):
    line = ["mix", "one.model", "--neural-cache", "5", "--tune", "held.txt", "-o", "new.mix", "--json"]
    result = CliRunner().invoke(main, line, prog_name="fflm")
    assert result.exit_code == 0, result.stderr
    first, second = json.loads(result.stdout)["components"]
    assert (first["name"], second["name"][:22]) == ("one.model", "neural cache of 5 word")
