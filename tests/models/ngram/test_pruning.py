"""Pruned n-gram models: a reference in float64 dictionaries, KenLM's reading of them, and the command."""

import json
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from command import STORIES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ngram import FLOAT32_ERROR, Reference, all_contexts, random_texts, vocabulary_of
from tiny import MODES

import fflm
from fflm.cli import main
from fflm.errors import FflmError
from fflm.models.ngram.arpa import read_arpa, write_arpa
from fflm.models.ngram.estimate import estimate
from fflm.models.ngram.model import NgramModel


class PrunedReference(Reference):
    """A pruned model, directly from the definitions; contexts and n-grams are tuples of ids, the oldest first."""

    def __init__(self, ids, V, order, text, prune):
        super().__init__(ids, V, order, text)
        self.occurrences = Counter()
        history = [1 if text.mode == "stream" and text.line_ends else V]
        for id_ in ids:
            window = tuple([*history, id_][-order:])
            self.occurrences.update(window[i:] for i in range(len(window)))
            history = [V] if text.mode == "sentence" and id_ == 1 else [*history, id_]
        limits = list(prune) + [prune[-1]] * order
        self.kept = {gram for gram, count in self.occurrences.items() if len(gram) == 1 or count > limits[len(gram) - 1]}
        self.kept |= {(word,) for word in range(V)}
        self.explicit = {gram: self.interpolated(gram[:-1], gram[-1]) for gram in sorted(self.kept, key=len)}

    def interpolated(self, context, word):
        """Return p(word | context) of interpolated Kneser-Ney smoothing, where removed n-grams lose their whole count."""
        k = len(context) + 1
        lower = self.interpolated(context[1:], word) if context else 1 / self.V
        seen = {other: self.counts[k][(*context, other)] for other in range(self.V)}
        total = sum(seen.values())
        if not total:
            return lower
        discounts = {w: self.discounts[k][min(a, 3)] if (*context, w) in self.kept else a for w, a in seen.items()}
        return (seen[word] - discounts[word] + sum(discounts.values()) * lower) / total

    def distribution(self, context, kept):
        """Return the distribution of a back-off model that has the n-grams in ``kept``, normalized, as a list."""
        own = {gram[-1]: self.explicit[gram] for gram in kept if gram[:-1] == context}
        if not context:
            return [own[word] for word in range(self.V)]
        lower = self.distribution(context[1:], kept)
        if not own:
            return lower
        free, lower_free = 1 - sum(own.values()), 1 - sum(lower[word] for word in own)
        if lower_free < 1e-12:
            return [own[word] for word in range(self.V)]
        return [own.get(word, free / lower_free * lower[word]) for word in range(self.V)]

    def changes(self):
        """Return the relative entropy of the model without each n-gram to the model with it, weighted by the context."""
        total = sum(count for gram, count in self.occurrences.items() if len(gram) == 1)
        frequencies = Counter()
        for gram, count in self.occurrences.items():
            frequencies[gram[:-1]] += count
        found = {}
        for gram in self.kept:
            if len(gram) > 1:
                before, after = (self.distribution(gram[:-1], kept) for kept in (self.kept, self.kept - {gram}))
                entropy = sum(p * math.log(p / q) for p, q in zip(before, after, strict=True) if p > 0)
                found[gram] = frequencies[gram[:-1]] / total * entropy
        return found

    def prune_entropy(self, threshold):
        """Remove n-grams whose change of the perplexity is below the threshold, but not the beginnings of others."""
        changes = self.changes()
        kept = {gram for gram in self.kept if len(gram) == 1 or math.exp(changes[gram]) - 1 >= threshold}
        for gram in sorted(kept, key=len, reverse=True):
            kept |= {gram[:k] for k in range(2, len(gram)) if gram[:k] in self.kept}
        self.kept = kept


def compare(model, reference, ids):
    """Compare the numbers of n-grams and the distributions in contexts of the text."""
    orders = Counter(len(gram) for gram in reference.kept)
    assert model.about["ngram"]["counts"][1:] == [orders[k] for k in range(2, reference.order + 1)]
    contexts = model.windows(np.array(ids)).contexts(np.arange(len(ids) + 1))[-25:]
    expected = []
    for context in contexts.tolist():
        starts = [i for i, id_ in enumerate(context) if id_ == reference.V]
        context = tuple(context[starts[-1] if starts else 0 :])
        expected.append(np.log(reference.distribution(context[max(0, len(context) - reference.order + 1) :], reference.kept)))
    found = model.log_probabilities(contexts)
    # A back-off weight is the logarithm of a difference of sums of float32 numbers, whose rounding errors are absolute.
    np.testing.assert_allclose(np.exp(found.astype(np.float64)), np.exp(expected), rtol=0, atol=FLOAT32_ERROR)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    distributions = model.log_probabilities(all_contexts(model)).astype(np.float64)
    np.testing.assert_allclose(np.exp(distributions).sum(axis=1), 1, atol=FLOAT32_ERROR)


def pruned(ids, text, order, words, **pruning):
    vocabulary = vocabulary_of(words, text.ends)
    tables, details = estimate(np.array(ids, np.uint16), vocabulary, text, order, **pruning)
    return NgramModel(tables, vocabulary, text, {"ngram": {"order": order, **details}, "figures": {}})


@given(random_texts(), st.lists(st.integers(0, 4), max_size=3))
@settings(max_examples=60)
def test_model_pruned_by_count_equals_definition(drawn, limits):
    text, order, ids, words = drawn
    prune = (0, *sorted(limits))[:order]
    model = pruned(ids, text, order, words, prune=prune)
    compare(model, PrunedReference(ids, len(model.vocabulary), order, text, prune), ids)


@given(random_texts(), st.lists(st.integers(0, 2), max_size=2), st.floats(0, 1))
@settings(max_examples=60)
def test_model_pruned_by_entropy_equals_definition(drawn, limits, share):
    text, order, ids, words = drawn
    prune = (0, *sorted(limits))[:order]
    reference = PrunedReference(ids, len(vocabulary_of(words, text.ends)), order, text, prune)
    ratios = sorted(math.expm1(change) for change in reference.changes().values() if change > 1e-6) or [1e-3]
    # No n-gram is so near to the threshold that rounding matters.
    gaps = [(low, high) for low, high in pairwise([*ratios, 2 * ratios[-1]]) if high > low * 1.001]
    threshold = math.sqrt(math.prod(gaps[min(int(share * len(gaps)), len(gaps) - 1)]))
    reference.prune_entropy(threshold)
    model = pruned(ids, text, order, words, prune=prune, prune_entropy=threshold)
    compare(model, reference, ids)


def long_text(words, tokens):
    """Return ids of a text whose words depend on the word before, as settings, words and ids."""
    generator = np.random.default_rng(1)
    ids = np.minimum(generator.zipf(1.3, tokens), words) + 1
    ids[1::3] = ids[::3][: len(ids[1::3])] % words + 2
    return MODES["line ends"], [f"w{i}" for i in range(words)], ids


@pytest.mark.parametrize("pruning", [{"prune": (0, 0, 1)}, {"prune_entropy": 1e-6}, {"prune": (0, 1), "prune_entropy": 1e-5}])
def test_pruned_model_of_longer_text(pruning):
    """The tables are large enough that several threads prune them."""
    text, words, ids = long_text(500, 30_000)
    whole, smaller = pruned(ids, text, 3, words), pruned(ids, text, 3, words, **pruning)
    assert sum(smaller.about["ngram"]["counts"]) < sum(whole.about["ngram"]["counts"])
    places = np.arange(0, 30_000, 100)
    contexts, targets = smaller.windows(ids).batch(places)
    distributions = smaller.log_probabilities(contexts).astype(np.float64)
    np.testing.assert_allclose(np.exp(distributions).sum(axis=1), 1, atol=FLOAT32_ERROR)
    assert whole.losses(contexts, targets).mean() < smaller.losses(contexts, targets).mean()
    assert smaller.about["ngram"]["discounts"] == whole.about["ngram"]["discounts"]


def test_entropy_prunes_more_n_grams_at_the_same_perplexity_than_counts():
    """Of two models of about the same size, the one that was pruned by entropy has the lower perplexity."""
    text, words, ids = long_text(300, 30_000)
    by_count, by_entropy = pruned(ids, text, 3, words, prune=(0, 0, 1)), pruned(ids, text, 3, words, prune_entropy=1.4e-5)
    assert sum(by_entropy.about["ngram"]["counts"]) < sum(by_count.about["ngram"]["counts"])
    losses = [model.losses(*model.windows(ids).batch(np.arange(30_000))).mean() for model in (by_count, by_entropy)]
    assert losses[1] < losses[0]


def test_kenlm_reads_pruned_models(tmp_path):
    """Entropy removes n-grams with which kept ones end, so that KenLM has to add them."""
    kenlm = pytest.importorskip("kenlm")
    text, words, ids = MODES["sentence"], *long_text(50, 3000)[1:]
    ids[ids % 7 == 0] = 1
    ids = ids[~((ids == 1) & (np.roll(ids, 1) == 1))]
    model = pruned(ids, text, 4, words, prune_entropy=1e-5)
    write_arpa(model, tmp_path / "pruned.arpa")
    theirs = kenlm.Model(str(tmp_path / "pruned.arpa"))
    lines = [" ".join(words[i - 2] for i in part if i > 1) for part in np.array_split(ids, 200)]
    np.testing.assert_allclose(model.scores(lines), [theirs.score(line) * math.log(10) for line in lines], rtol=1e-5, atol=1e-4)
    back = read_arpa(tmp_path / "pruned.arpa", mode="sentence")
    np.testing.assert_allclose(back.scores(lines), model.scores(lines), rtol=1e-5)


@pytest.mark.parametrize(
    ("prune", "reason"),
    [
        ((1,), "`prune` begins with 1: give 0 for single words"),
        ((0, 2, 1), "`prune` is 0, 2, 1: give numbers of which none is smaller than the one before it"),
        ((0, 0, 1, 1), "`prune` has 4 numbers, but the model has the order 3: give at most 3"),
        ((0, -1), "`prune`"),
        ((0, 10**20), "`prune`.* from 0 to 9,007,199,254,740,992"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(prune, reason, tmp_path):
    (tmp_path / "text.txt").write_text(STORIES)
    with pytest.raises(FflmError, match=reason):
        fflm.train_ngram(tmp_path / "text.txt", tmp_path / "model", order=3, prune=prune)
    assert not (tmp_path / "model").exists()


def test_pruning_on_the_command_line(tmp_path):
    runner, sizes = CliRunner(), []
    (tmp_path / "text.txt").write_text(STORIES)
    for options in ([], ["--prune", "0,0,1"], ["--prune-entropy", "1e-3"]):
        arguments = ["ngram", "train", f"{tmp_path}/text.txt", "-o", f"{tmp_path}/model", "--order", "3", "--overwrite", "--json"]
        result = json.loads(runner.invoke(main, [*arguments, *options], catch_exceptions=False).stdout)
        sizes.append(result["counts"])
        model = fflm.load(tmp_path / "model")
        assert model.score("The cat sat on the mat.").perplexity > 1
    assert sizes[0][:2] == sizes[1][:2]
    assert sizes[1][2] < sizes[0][2] / 2
    assert sizes[2][1] < sizes[0][1]
    assert sizes[2][2] < sizes[0][2]
    text = runner.invoke(main, ["info", "-m", str(tmp_path / "model")], catch_exceptions=False).stdout
    assert "pruned: n-grams without which the perplexity rises by less than 0.001 of it" in text
