"""Fast scores equal the unnormalized scores of the reference, in all modes and for any part of a text."""

import itertools
import json

import numpy as np
import pytest
import reference
from click.testing import CliRunner
from tiny import MODES, tiny_model

from fflm.cli import main
from fflm.errors import FflmError
from fflm.instructions import LANES
from fflm.models.neural import fast
from fflm.models.neural.fast import FastScorer, make_fast_scorer, make_tables
from fflm.models.neural.kernels import score_after
from fflm.models.neural.model import NeuralModel, save_config
from fflm.models.scoring import score_files, score_hypotheses
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.training.checkpoints import save_weights

QUANTIZATION_ERROR = 4e-3
"""Tolerance in nats of sums over about ten differences of products of size 1, each rounded to 2^-15 of the largest."""

INTEGER_ERROR = 0.01
"""Tolerance of scores that are computed in integers from averages of many words, in standard deviations of the scores: each of
the words is rounded to 2^-15 of the largest possible sum of all."""

SHAPES = {
    "plain": {},
    "one word, relu": {"window": 1, "activation": "relu"},
    "another slope": {"activation": "leaky_relu", "negative_slope": 0.3},
    "tied": {"tied": True},
    "tied as it is": {"tied": True, "embedding": 6},
    "averages": {"averages": (2, 3)},
    "average of one": {"averages": (1, 4), "activation": "sigmoid", "word_weights": True},
    "averages, relu": {"averages": (2, 3), "activation": "relu", "word_weights": True},
    "direct": {"averages": (2, 3), "activation": "relu", "tied": True, "direct": True},
    "direct, average of too many words": {"averages": (150,), "activation": "relu", "tied": True, "direct": True},
    "average of too many words for sums of 16 bits": {"averages": (150,), "activation": "relu"},
}


def model_of(shape, text):
    """Return a small network of a shape with random weights."""
    twin = tiny_model(text)
    fields = {"averages": (), "window": 3, "embedding": 4, "hidden": (6,), "activation": "tanh", "tied": False, **shape}
    config = NetworkConfig(len(twin.vocabulary), **fields)
    parameters = Parameters.random(config, 3)
    generator = np.random.default_rng(3)
    for array in parameters:
        array[...] = generator.normal(0, 0.7, array.shape)
    return NeuralModel(config, parameters, twin.vocabulary, text)


def expected_losses(model, ids):
    """Return the negative unnormalized score of each word by the reference, (N,)."""
    case = {**reference.PLAIN, **model.config.to_dict()}
    arrays = {name: array.astype(np.float64) for name, array in model.parameters.items()}
    contexts, targets = model.windows(ids).batch(np.arange(len(ids)))
    hidden = reference.forward(arrays, contexts, case, 0, 0, training=False)[2]
    return -(hidden * reference.softmax_weight(arrays)[targets]).sum(1) - arrays["output.bias"][targets]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHAPES)
def test_fast_scores_equal_reference(name, mode, threads):
    model = model_of(SHAPES[name], MODES[mode])
    ids = np.random.default_rng(0).integers(0, len(model.vocabulary), 70, np.int32)  # line ends, whose id is 1, are among them
    expected = expected_losses(model, ids)
    scorer = FastScorer(model)
    error = QUANTIZATION_ERROR * (1 + model.config.direct)  # the numbers of direct connections have a bit less, for the bias
    np.testing.assert_allclose(scorer.losses_of_text(ids), expected, rtol=0, atol=error)
    for cut in (1, 5, 23, 69, 70):  # score the words from `cut` on, with enough context
        before = max(0, cut - model.window)
        found = scorer.losses_of_text(ids[before:], cut - before)
        np.testing.assert_allclose(found, expected[cut:], rtol=0, atol=error)
    assert len(scorer.losses_of_text(ids[:0])) == 0


def test_running_sums_of_averages_do_not_drift():
    model = model_of({"averages": (5, 40)}, MODES["sentence"])
    ids = np.random.default_rng(0).integers(1, len(model.vocabulary), 20_000, np.int32)
    np.testing.assert_allclose(
        FastScorer(model).losses_of_text(ids), expected_losses(model, ids), rtol=0, atol=2 * QUANTIZATION_ERROR
    )


def test_fast_scores_of_relu_equal_reference_beyond_one_piece_of_lanes_and_of_text():
    model = model_of({"averages": (5, 40), "activation": "relu", "hidden": (LANES + 7,)}, MODES["sentence"])
    ids = np.random.default_rng(0).integers(0, len(model.vocabulary), 20_000, np.int32)
    scorer, expected = FastScorer(model), expected_losses(model, ids)
    assert scorer._tables.integers
    tolerance = INTEGER_ERROR * expected.std()
    np.testing.assert_allclose(scorer.losses_of_text(ids), expected, rtol=0, atol=tolerance)
    borders = np.array([0, 300, 300, 900])
    texts = [ids[low:high] for low, high in itertools.pairwise(borders)]
    for text in texts:
        np.testing.assert_allclose(scorer.losses_of_text(text), expected_losses(model, text), rtol=0, atol=tolerance)
    sums = [scorer.losses_of_text(text).sum(dtype=np.float64) for text in texts]
    np.testing.assert_allclose(scorer.losses_of_lines(ids[:900], borders), sums, rtol=1e-6)


@pytest.mark.parametrize("shape", [{}, {"activation": "tanh"}, {"tied": True, "direct": True}], ids=str)
@pytest.mark.parametrize("dtype", [np.int16, np.int8])
def test_errors_of_rounding_do_not_add_up_over_padding(shape, dtype):
    """The first word of a line is as exact as its bias and the word's own numbers: the padding is not rounded."""
    model = model_of({"averages": (100,), "activation": "relu", **shape}, MODES["sentence"])
    words = np.arange(2, len(model.vocabulary), dtype=np.int32)
    ids, first = np.stack([words, np.ones_like(words)], axis=1).reshape(-1), np.arange(0, 2 * len(words), 2)  # 1 ends a line
    scorer, expected = FastScorer(model), expected_losses(model, ids)[first]
    scorer._tables = make_tables(model, dtype)
    tolerance = 1e-3 if dtype is np.int16 else 0.05
    np.testing.assert_allclose(scorer.losses_of_text(ids)[first], expected, rtol=0, atol=tolerance * expected.std())


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_fast_score_of_word_equals_score_in_text(activation):
    model = model_of({"averages": (2, 3), "activation": activation}, MODES["sentence"])
    scorer = FastScorer(model)
    ids = np.array([5, 3, 1, 4, 2, 6, 3, 7, 2, 1], np.int32)
    state, found = np.full(model.window, model.vocabulary.start_id, np.int32), []
    for word in ids:
        found.append(score_after(state, word, state, scorer.packed))
    np.testing.assert_array_equal(found, scorer.losses_of_text(ids))


def test_normalizers_equal_those_of_checked_words(monkeypatch):
    monkeypatch.setattr(fast, "NORMALIZER_INTERVAL", 7)
    model = model_of({}, MODES["line ends"])
    ids = np.random.default_rng(0).integers(0, len(model.vocabulary), 50, np.int32)
    scorer = FastScorer(model)
    scorer.losses_of_text(ids)
    scorer.losses_of_text(ids, 20)
    whole = model.losses_of_text(ids) - expected_losses(model, ids)
    logs = np.concatenate([whole[::7], whole[26::7]])
    found = scorer.normalizers
    assert found.contexts == len(logs)
    expected = [logs.mean(), np.abs(logs).mean(), np.abs(logs).max()]
    np.testing.assert_allclose([found.mean, found.mean_absolute, found.worst], expected, rtol=0, atol=QUANTIZATION_ERROR)
    assert found.worst > 0.5  # so the normalizers are not trivial


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden": (6, 6)},
        {"hidden": ()},
        {"direct": True, "activation": "relu"},
        {"direct": True, "tied": True},
        {"residual": True},
        {"bands": (3,)},
    ],
    ids=str,
)
def test_fast_scorer_refuses_other_network_shapes(shape):
    with pytest.raises(FflmError, match="one hidden layer"):
        FastScorer(model_of(shape, MODES["sentence"]))


def test_fast_scorer_refuses_other_models():
    with pytest.raises(FflmError, match="only a network"):
        make_fast_scorer(object())


@pytest.fixture
def folder(tmp_path):
    model = model_of({}, MODES["sentence"])
    (tmp_path / "m.model").mkdir()
    save_config(tmp_path / "m.model", model.config, model.text, model.vocabulary, {"training": {"self_normalise": 0.1}})
    save_weights(tmp_path / "m.model", model.parameters, {})
    (tmp_path / "text.txt").write_text("the cat sat on the zebra .\n\nthe dog\n" * 20)
    return tmp_path


def test_score_fast_command(folder):
    def run(*options):
        result = CliRunner().invoke(main, ["score", "-m", str(folder / "m.model"), "--fast", *options])
        assert result.exit_code == 0, result.output
        return result.output

    path = str(folder / "text.txt")
    found = json.loads(run(path, "--json"))
    scorer = FastScorer(NeuralModel.load(folder / "m.model"))
    expected = score_files(scorer, [path])
    assert found["perplexity"] == pytest.approx(expected.perplexity)
    assert found["normalizers"] == pytest.approx(scorer.normalizers.to_dict())
    with_them = score_files(NeuralModel.load(folder / "m.model"), [path]).perplexity
    assert found["perplexity_normalized"] == pytest.approx(with_them, rel=0.1)  # the estimate is from one context in twenty
    assert abs(found["perplexity"] / with_them - 1) > 0.2
    assert f"perplexity about {found['perplexity_normalized']:.1f}" in run(path)
    by_word = run(path, "--by", "word").splitlines()
    assert len([line for line in by_word if line.endswith("</s>")]) == 40

    hypotheses = folder / "list.txt"
    hypotheses.write_text("the cat\n\nthe dog sat\n")
    logs = [float(line.split("\t")[0]) for line in run("--nbest", "plain", str(hypotheses)).splitlines()]
    alone = [each.score.log_probability for each in score_hypotheses(scorer, ["the cat\n\nthe dog sat\n"])]
    np.testing.assert_allclose(logs, alone, atol=1e-5)


def test_score_fast_warns_without_self_normalization(folder):
    about = folder / "m.model" / "config.json"
    command = ["score", "-m", str(folder / "m.model"), "--fast", str(folder / "text.txt")]
    assert "warning" not in CliRunner().invoke(main, command).stderr
    about.write_text(about.read_text().replace('"self_normalise": 0.1', '"self_normalise": 0.0'))
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0
    assert "trained without --self-normalise" in result.stderr


def test_score_fast_refuses_mixture(folder):
    path, mixed, text = (str(folder / name) for name in ("m.model", "m.mix", "text.txt"))
    made = CliRunner().invoke(main, ["mix", path, "--cache", "20", "--tune", text, "-o", mixed])
    assert made.exit_code == 0, made.output
    refused = CliRunner().invoke(main, ["score", "-m", mixed, "--fast", text])
    assert refused.exit_code == 1
    assert "only a network can score fast" in refused.output
