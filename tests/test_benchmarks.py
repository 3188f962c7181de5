"""What the benchmarks compute themselves: the trigram by deleted interpolation, weights of mixtures, large texts."""

import math
from collections import Counter

import numpy as np
import pytest
from bengio_table1 import MIXTURES, NETWORKS, PUBLISHED, Trigram, examples, expectation_maximisation, losses, mixed
from ngram import PIECE, pieces
from tokenizing import chunks, repeated

from fflm.lm.setup import text_settings
from fflm.text.corpus import Count, tokenize

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a text in which a word depends on the two before; some words occur only in its last part."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(1)
    ids = [0, 1]
    for _ in range(2000):
        ids.append((ids[-1] + 2 * ids[-2] + generator.integers(3)) % 6)
    text = [WORDS[each] for each in ids] + WORDS * 20
    (folder / "text").write_text(" ".join(text), encoding="utf-8")
    settings, rule = text_settings({"tokenizer": "space", "line_ends": False, "min_count": 1, "source": "all"})
    return tokenize([folder / "text"], folder / "ids", settings, rule, Count(300), Count(200))


def dictionary_losses(corpus, weights):
    """Return the trigram's losses on the test text, by the formula and with dictionaries."""
    ids, V = [corpus.vocabulary.start_id] * 2 + corpus.parts["train"].ids.tolist(), len(corpus.vocabulary)
    grams, contexts = Counter(), Counter()
    for place in range(2, len(ids)):
        for length in range(3):
            contexts[tuple(ids[place - length : place])] += 1
            grams[tuple(ids[place - length : place + 1])] += 1
    result = []
    for context, target in zip(*examples(corpus, "test", 2), strict=True):
        estimates = [1 / V]
        for length in range(3):
            shorter = tuple(context.tolist()[2 - length :])
            seen = contexts[shorter]
            estimates.append(grams[(*shorter, int(target))] / seen if seen else estimates[-1])
        number = math.ceil(-math.log((1 + seen) / (len(ids) - 2)))
        result.append(-math.log(sum(a * p for a, p in zip(weights[number], estimates, strict=True))))
    return result


def test_trigram_is_the_formula(corpus):
    model = Trigram(corpus)
    model.weights = np.random.default_rng(2).dirichlet(np.ones(4), len(model.weights))  # no two bins alike
    np.testing.assert_allclose(losses(model, corpus)["test"], dictionary_losses(corpus, model.weights), rtol=1e-12)


def test_trigram_sums_to_one_after_any_context(corpus):
    model, V = Trigram(corpus), len(corpus.vocabulary)
    for context in np.ndindex(V + 1, V + 1):
        total = np.exp(-model.losses(np.tile(context, (V, 1)), np.arange(V))).sum()
        assert total == pytest.approx(1, abs=1e-12)


def test_trigram_learns_its_weights(corpus):
    model = Trigram(corpus)
    valid = losses(model, corpus)["valid"].mean()
    model.weights = np.full_like(model.weights, 1 / 4)
    assert valid < losses(model, corpus)["valid"].mean() - 0.1


def test_expectation_maximisation_finds_the_likeliest_weight():
    generator = np.random.default_rng(3)
    first, second = generator.exponential(1, 500), generator.exponential(1.2, 500)
    weight, other = expectation_maximisation(np.exp(-np.stack([first, second], axis=1)))
    grid = np.linspace(0.001, 0.999, 999)
    goals = [mixed(first, second, each).sum() - math.log(each) - math.log(1 - each) for each in grid]
    assert weight == pytest.approx(grid[np.argmin(goals)], abs=2e-3)
    assert weight + other == pytest.approx(1)


def test_expectation_maximisation_needs_no_words():
    np.testing.assert_array_equal(expectation_maximisation(np.empty((0, 4))), np.full(4, 1 / 4))


def test_every_network_has_a_row_and_a_mixture():
    assert set(MIXTURES.values()) == set(NETWORKS)
    assert {*MIXTURES, *NETWORKS, "trigram", "KN3", "KN4", "KN5"} == set(PUBLISHED)


def test_a_large_text_is_pieces_of_another():
    source = np.arange(100_000)
    steps = np.diff(pieces(source, 1_500_000).astype(int))
    assert np.mean(steps == 1) == pytest.approx(1 - 1 / PIECE, abs=0.01)
    assert len(np.unique(steps)) > 100_000


def test_a_repeated_text_has_new_words():
    text = "The cat sat .\nThe dog sat , too .\n"
    assert list(repeated(text, 2)) == [text, "The dbu sat .\nThe eph sat , upp .\n"]


def test_a_text_is_cut_at_line_ends(monkeypatch):
    monkeypatch.setattr("tokenizing.CHUNK", 6)
    assert list(chunks("ab\ncd\nefghi\n")) == ["ab\ncd\n", "efghi\n"]
