"""Computations of the benchmark scripts: trigrams by deleted interpolation, mixture weights, exact gradients, large texts."""

import argparse
import dataclasses
import itertools
import math
import re
from collections import Counter
from contextlib import ExitStack

import all as all_benchmarks
import numpy as np
import pytest
import start_up
from bengio_table1 import MIXTURES, NETWORKS, PUBLISHED, Trigram, examples, expectation_maximization, figures, losses, mixed
from common import joined, median_interval, quartiles, ratios, shortfalls, show_verdict
from exact import exact_gradients, exact_updates
from gpu import CONTENDERS, LARGE, PARTS, STEPS, Comparison, is_failed, large, operations, run_tasks, tasks_of
from network import helps
from ngram import PIECE, pieces
from numba import njit
from numba.core import event
from recipe import course
from reference import PLAIN, adam_step, batch, network_gradients, network_losses
from scaling import exponent
from tokenizing import chunks, repeated
from training_step import bengio, default, judge

import fflm
from fflm.backend.cpu.backend import CpuBackend
from fflm.cli import main
from fflm.text.holdout import Count
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule
from fflm.training.optimizers import ADAM_BETA1, ADAM_BETA2
from fflm.training.settings import TrainingSettings

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


def test_variant_helps_if_better_by_margin_with_every_seed():
    assert helps([98.0, 99.0], [100.0, 101.0])
    assert not helps([98.0, 100.5], [100.0, 101.0])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a corpus in which each word depends on the previous two, and some words occur only in the last part."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(1)
    ids = [0, 1]
    for _ in range(2000):
        ids.append((ids[-1] + 2 * ids[-2] + generator.integers(3)) % 6)
    text = [WORDS[each] for each in ids] + WORDS * 20
    (folder / "text").write_text(" ".join(text), encoding="utf-8")
    settings, rule = TextSettings(Tokenizer("space"), line_ends=False), VocabularyRule(1, source="all")
    return tokenize(TextSource([folder / "text"], settings, rule, Count(300), Count(200)), folder / "ids")


def dictionary_losses(corpus, weights):
    """Return the losses of the trigram on the test part, from its formula with dictionaries."""
    ids, V = [corpus.vocabulary.start_id] * 2 + corpus.parts["train"].ids[:].tolist(), len(corpus.vocabulary)
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


def test_figures_separate_known_from_unknown_words(tmp_path):
    (tmp_path / "text").write_text("a b c a b c a b a b x y a b", encoding="utf-8")
    settings = TextSettings(Tokenizer("space"), line_ends=False)
    corpus = tokenize(TextSource([tmp_path / "text"], settings, VocabularyRule(1), Count(2), Count(4)), tmp_path / "ids")
    found = figures(np.array([3.0, 3.0, 1.0, 1.0]), corpus, "test")  # of x, y, a and b
    assert found["perplexity_known"] == pytest.approx(math.exp(1))
    assert found["perplexity"] == pytest.approx(math.exp(2))


def test_trigram_equals_formula(corpus):
    model = Trigram(corpus)
    model.weights = np.random.default_rng(2).dirichlet(np.ones(4), len(model.weights))  # the weights differ between bins
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


def test_expectation_maximization_finds_most_likely_weight():
    generator = np.random.default_rng(3)
    first, second = generator.exponential(1, 500), generator.exponential(1.2, 500)
    weight, other = expectation_maximization(np.exp(-np.stack([first, second], axis=1)))
    grid = np.linspace(0.001, 0.999, 999)
    goals = [mixed(first, second, each).sum() - math.log(each) - math.log(1 - each) for each in grid]
    assert weight == pytest.approx(grid[np.argmin(goals)], abs=2e-3)
    assert weight + other == pytest.approx(1)


def test_expectation_maximization_without_words_gives_equal_weights():
    np.testing.assert_array_equal(expectation_maximization(np.empty((0, 4))), np.full(4, 1 / 4))


def test_every_network_has_published_row_and_mixture():
    assert set(MIXTURES.values()) == set(NETWORKS)
    assert {*MIXTURES, *NETWORKS, "trigram", "KN3", "KN4", "KN5"} == set(PUBLISHED)


def test_large_text_is_made_of_pieces_of_another():
    source = np.arange(100_000)
    steps = np.diff(pieces(source, 1_500_000).astype(int))
    assert np.mean(steps == 1) == pytest.approx(1 - 1 / PIECE, abs=0.01)
    assert len(np.unique(steps)) > 100_000


@pytest.mark.parametrize("size", [bengio(7, 3, 5, 13), default(9)], ids=str)
def test_exact_gradients_equal_reference_network(size):
    config = dataclasses.replace(size.without_dropout().config, embedding=3, hidden=(5,))
    case = {**PLAIN, **config.to_dict()}
    weights, contexts, targets = batch(case)
    expected = network_gradients(weights, contexts, targets, case)
    loss, found = exact_gradients(config, weights, contexts, targets)
    assert loss == pytest.approx(network_losses(weights, contexts, targets, case).mean(), rel=1e-12)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-12, err_msg=name)


def test_exact_updates_decay_and_clip():
    generator = np.random.default_rng(4)
    weights = {"matrix": generator.normal(size=(2, 3)), "bias": generator.normal(size=3)}
    gradients = {"matrix": np.full((2, 3), 3.0), "bias": np.full(3, 4.0)}
    settings = TrainingSettings()
    found = exact_updates(settings, weights, gradients, 2)
    norm = math.sqrt(6 * 3**2 + 3 * 4**2)
    for name, decay in (("matrix", settings.weight_decay), ("bias", 0.0)):
        weight, first, second = weights[name], 0.0, 0.0
        for number in (1, 2):
            weight, first, second = adam_step(
                weight,
                gradients[name],
                first,
                second,
                scale=settings.clip / norm,
                l2=0.0,
                shrink=settings.rate * decay,
                rate=settings.rate,
                beta1=ADAM_BETA1,
                beta2=ADAM_BETA2,
                epsilon=settings.epsilon,
                step=number,
            )
        np.testing.assert_allclose(found[name], weight, rtol=1e-12)


def test_exponent_of_power_law():
    assert exponent([2, 8, 64], [3 * 2**0.7, 3 * 8**0.7, 3 * 64**0.7]) == pytest.approx(0.7)
    assert exponent([1, 2], [5, 2.5]) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("ratios", "noise", "memory", "missed", "undecided"),
    [
        ([2.1, 2.5, 1.7], 0.05, [1.1, 2.0], 0, 0),
        ([1.9, 2.5, 1.7], 0.05, [1.1, 2.0], 1, 0),  # the median is too low
        ([1.9, 2.5, 1.7], 0.2, [1.1, 2.0], 0, 1),
        ([2.1, 2.5, 1.4], 0.05, [1.1, 2.0], 1, 0),  # one case is too low
        ([2.1, 2.5, 1.4], 0.15, [1.1, 2.0], 0, 2),  # the median is open, too
        ([2.1, 2.5, 1.7], 0.05, [1.1, 1.0], 1, 0),
    ],
)
def test_judge_compares_with_faster_eager_step(ratios, noise, memory, missed, undecided):
    steps = []
    for threads, ratio in enumerate(ratios, 1):
        medians = {"torch": 1.3 * ratio, "torch, fused Adam": ratio, "torch, compiled": ratio + 0.5, "jax": 0.5}
        for contender, median in medians.items():
            figures = {"median": median, "from": median - noise, "to": median + noise}
            steps.append({"size": "a", "threads": threads, "contender": contender, "time_relative_to_fflm": figures})
    needed = {"fflm": 1.0, "torch": memory[0], "torch, compiled": memory[1], "jax": 0.1}
    verdict = judge(steps, [{"size": "a", "contender": name, "bytes": 100 * each} for name, each in needed.items()])
    assert (len(verdict["missed"]), len(verdict["undecided"])) == (missed, undecided)
    assert verdict["passed"] is (False if missed else None if undecided else True)


def test_repeated_text_has_new_words():
    text = "The cat sat .\nThe dog sat , too .\n"
    assert list(repeated(text, 2)) == [text, "The dbu sat .\nThe eph sat , upp .\n"]


def test_chunks_end_at_line_ends(monkeypatch):
    monkeypatch.setattr("tokenizing.CHUNK", 6)
    assert list(chunks("ab\ncd\nefghi\n")) == ["ab\ncd\n", "efghi\n"]


def test_stopwatch_assigns_compile_time_to_innermost_event(monkeypatch):
    monkeypatch.setattr(start_up, "perf_counter", itertools.count().__next__)  # a clock that advances by one at each reading
    stopwatch = start_up.Stopwatch()
    with ExitStack() as listening:
        for kind in ("numba:compile", "numba:run_pass", "numba:llvm_lock"):
            listening.enter_context(event.install_listener(kind, stopwatch))
        with event.trigger_event("numba:compile", {"dispatcher": njit(exponent)}):
            with event.trigger_event("numba:run_pass", {"name": "nopython_type_inference [parfor]"}):
                pass
            with (
                event.trigger_event("numba:run_pass", {"name": "native_parfor_lowering [f]"}),
                event.trigger_event("numba:llvm_lock"),
            ):
                pass
    assert stopwatch.parts == {"cache, calls": 1, "other passes": 3, "types": 1, "parallel loops": 2, "LLVM": 1}
    assert stopwatch.kernels == {"exponent": 7}


def test_paths_of_commands_include_groups_and_subcommands():
    assert {(), ("train",), ("ngram",), ("ngram", "train")} <= set(start_up.paths(main))


def test_course_has_perplexity_of_each_evaluation(tmp_path):
    (tmp_path / "text").write_text("a b c d e f g h\n" * 100, encoding="utf-8")
    fflm.train(tmp_path / "text", tmp_path / "model", epochs=2, embedding=4, hidden=4, window=2)
    first, second = course(tmp_path / "model")
    assert 0 < first["minutes"] < second["minutes"]
    assert first["perplexity"] > second["perplexity"] > 1


def test_operations_are_compared_with_float64(monkeypatch):
    assert operations(CpuBackend())["wrong"] == []
    monkeypatch.setattr(CpuBackend, "gather", lambda self, embeddings, contexts, blocks, inputs: inputs.fill(1))
    comparison = Comparison(CpuBackend())
    comparison.embeddings(rows=7, words=50, size=3)
    assert comparison.off["gather"] > 0.1 > comparison.off["scatter-add"]


def test_large_softmax_is_computed_in_chunks_and_compared_with_float64(monkeypatch):
    monkeypatch.setattr("gpu.CHUNK", 4)
    assert large(CpuBackend(), "fp32", words=50, size=3, rows=9)["wrong"] == []
    generator = np.random.default_rng(0)
    monkeypatch.setattr(CpuBackend, "output_gradients", lambda *arrays: [each.fill(generator.normal()) for each in arrays[-4:]])
    assert len(large(CpuBackend(), "fp32", words=50, size=3, rows=9)["wrong"]) == 5


def test_results_of_gpu_benchmark_are_kept_as_they_are_made(tmp_path, capsys):
    def fail():
        raise ValueError("out of memory")

    done = run_tasks(iter([("first", lambda: {"seconds": 1}), ("second", fail)]), tmp_path, math.inf)
    assert done == {"first": {"seconds": 1}, "second": {"error": "ValueError: out of memory"}}
    assert [name for name, result in done.items() if is_failed(result)] == ["second"]
    assert is_failed({"off": {"losses": 1.0}, "wrong": ["losses"]})
    assert is_failed({"passed": False, "failed": []})
    assert not is_failed({"off": {}, "wrong": []})
    assert not is_failed([{"operation": "affine"}])
    again = [("first", fail), ("second", lambda: {"seconds": 2})]
    assert run_tasks(iter(again), tmp_path, math.inf) == {"first": {"seconds": 1}, "second": {"seconds": 2}}
    assert run_tasks(iter([("third", fail)]), tmp_path, -1.0) == {"first": {"seconds": 1}, "second": {"seconds": 2}}
    assert "stopped after -1 minutes, before third" in capsys.readouterr().out


def test_tasks_of_gpu_benchmark_have_plain_names_and_begin_with_what_matters(tmp_path):
    options = argparse.Namespace(parts=PARTS, sizes=STEPS, large=LARGE, contenders=CONTENDERS, brown=None, wikitext=None)
    names = [name for name, _ in tasks_of(options, tmp_path, {"fp32": None, "mixed": None})]
    assert len(names) == len(set(names)) > 2 * len(LARGE)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    assert names[:4] == ["operations-fp32", "operations-mixed", "step-50000x256x8192-fflm-mixed", "step-50000x256x8192-fflm-fp32"]
    options.parts, options.sizes, options.contenders = ["steps"], [(9, 8, 7)], ["fflm-fp32"]
    assert [name for name, _ in tasks_of(options, tmp_path, {"fp32": None})] == ["step-9x8x7-fflm-fp32"]


def test_interval_of_median_contains_the_true_one_and_narrows():
    generator = np.random.default_rng(1)
    widths = []
    for count in (11, 100, 2000):
        found = [median_interval(generator.exponential(size=count)) for _ in range(200)]
        assert sum(each.low <= math.log(2) <= each.high for each in found) >= 198
        widths.append(np.mean([each.high - each.low for each in found]))
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    assert (median_interval([1.0] * 10).low, median_interval([1.0] * 10).high) == (-math.inf, math.inf)
    assert f"{median_interval([0.1] * 11):.0%}" == "10% (10% to 10%)"
    rows = {
        "clear": quartiles([2.0] * 11),
        "near": quartiles([1.4, 1.6] * 6),
        "low": quartiles([1.0] * 11),
        "few": quartiles([2.0] * 3),
    }
    missed, undecided = shortfalls(rows, 1.5)
    assert [part.split(":")[0] for part in missed] == ["low"]
    assert undecided == [
        "near: 1.50 (1.40 to 1.60) instead of at least 1.5",
        "few: 2.00 (-inf to inf) instead of at least 1.5",
    ]
    slow = shortfalls(rows, most=1.5)
    assert [[part.split(":")[0] for part in parts] for parts in slow] == [["clear"], ["near", "few"]]
    assert slow[0] == ["clear: 2.00 (2.00 to 2.00) instead of at most 1.5"]
    assert joined([(missed, undecided), slow]) == (
        ["low: 1.00 (1.00 to 1.00) instead of at least 1.5", *slow[0]],
        undecided + slow[1],
    )
    assert ratios([1.0, 2.0] * 6, [2.0, 4.0] * 6)["median"] == 2
    assert [show_verdict([], []), show_verdict([], ["noise"]), show_verdict(["a"], ["noise"])] == [True, None, False]


def test_all_benchmarks_of_the_table_are_found_with_what_they_need(tmp_path, monkeypatch):
    found = {each.script: each for each in all_benchmarks.benchmarks()}
    claims = {path.name for path in all_benchmarks.HERE.glob("*.py") if path.read_text(encoding="utf-8").startswith('"""Claim')}
    assert claims - {"small.py"} <= set(found)
    monkeypatch.setattr(all_benchmarks, "is_installed", lambda package: False)
    assert found["ngram.py"].missing(tmp_path) == [str(tmp_path / "brown.txt"), str(tmp_path / "wikitext-2")]
    assert (found["inference.py"].missing(tmp_path), found["overlap.py"].missing(tmp_path)) == (["torch"], ["mpi"])
    assert found["training_step.py"].left_out() == ["the comparison with torch"]
    assert found["classify.py"].missing(tmp_path) == []
    assert found["classify.py"].command(tmp_path)[2:] == []
    (tmp_path / "brown.txt").touch()
    assert found["classify.py"].command(tmp_path)[2:] == [tmp_path / "brown.txt"]
    assert found["first_hour.py"].missing(tmp_path)[-1] == "GPU"
