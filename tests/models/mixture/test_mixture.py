"""Mixtures: weights compared with a general optimizer, the cache with a naive computation, folders, and the command."""

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command import SMALL, STORIES
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from tiny import MODES, WORDS, Bigrams, exact_log_probabilities, tiny_model

import fflm
from fflm.arrays import CONFIG, WEIGHTS
from fflm.backend.cpu.kernels import TILE
from fflm.cli import main
from fflm.errors import FflmError
from fflm.models.mixture import train as mixture_train
from fflm.models.mixture.cache import UnigramCache
from fflm.models.mixture.kernels import add_exponentials
from fflm.models.mixture.model import ComponentScorer, Mixture, interpolate_losses
from fflm.models.mixture.train import GAP, combine, estimate_weights, mix
from fflm.models.neural.model import NeuralModel, save_config
from fflm.models.scoring import score
from fflm.text.windows import Windows
from fflm.training.checkpoints import save_weights

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
SINGLE = {"rtol": 2e-6, "atol": 2e-6}  # networks have numbers of 32 bits
TEXT = "the cat sat on the zebra .\n\nthe dog\n. the yak\n" * 3

seeds = st.integers(0, 2**32 - 1)


# Weights.


def random_losses(seed, components, words=200):
    """Return losses (components, words), where some components are much better than others."""
    generator = np.random.default_rng(seed)
    return -np.log(generator.dirichlet(np.ones(20), (components, words))[..., 0]) + generator.exponential(1, (components, 1))


@given(seeds, st.integers(1, 5))
def test_estimated_weights_are_optimal(seed, components):
    losses = random_losses(seed, components)
    weights = estimate_weights(losses)
    assert weights.min() >= 0
    assert math.isclose(weights.sum(), 1, rel_tol=1e-12)
    found = interpolate_losses(losses, weights).mean()
    others = np.random.default_rng(seed).dirichlet(np.ones(components), 200)
    assert all(found <= interpolate_losses(losses, other).mean() + 2 * GAP for other in [*others, *np.eye(components)])


@given(seeds)
def test_two_weights_equal_line_search(seed):
    losses = random_losses(seed, 2)
    result = minimize_scalar(
        lambda x: interpolate_losses(losses, np.array([x, 1 - x])).mean(),
        bounds=(0, 1),
        method="bounded",
        options={"xatol": 1e-7},
    )
    assert math.isclose(interpolate_losses(losses, estimate_weights(losses)).mean(), result.fun, rel_tol=0, abs_tol=1e-7)


def test_weights_with_infinite_losses():
    losses = np.array([[0.5, np.inf, 1.0, np.inf], [np.inf, 2.0, np.inf, np.inf]])
    np.testing.assert_allclose(estimate_weights(losses), [2 / 3, 1 / 3], **CLOSE)
    np.testing.assert_allclose(estimate_weights(losses[:, 3:]), [0.5, 0.5], **CLOSE)
    np.testing.assert_allclose(estimate_weights(losses + 1000), [2 / 3, 1 / 3], **CLOSE)


def test_weights_of_similar_components_converge_in_few_steps(monkeypatch):
    ratios = np.random.default_rng(0).lognormal(0, 0.1, 500)  # ratios of the probabilities of words by two components
    ratios /= ratios.mean()  # so that the best weight of the second one is just 0
    losses = np.stack([np.ones(500), 1 - np.log(ratios)])
    steps, real = [], mixture_train._gains
    monkeypatch.setattr(mixture_train, "_gains", lambda *given: steps.append(1) or real(*given))
    assert interpolate_losses(losses, estimate_weights(losses)).mean() == pytest.approx(1, abs=GAP)
    assert len(steps) < 200  # it would be 300,000 steps without extrapolation


# The cache.


def cache_by_hand(model, size, context):
    """Return the distribution of the cache after a context, computed word by word."""
    V = len(model.vocabulary)
    weights = dict.fromkeys(range(V), 1 / V)
    for distance, id_ in enumerate(reversed(context), 1):
        if id_ != V and not (model.vocabulary.ends and id_ == 1):
            weights[id_] += math.exp(-4 * distance / size)
    return [weights[id_] / sum(weights.values()) for id_ in range(V)]


@given(st.sampled_from(list(MODES)), st.integers(1, 12), st.lists(st.integers(0, 7), max_size=20))
def test_cache_equals_naive_computation(mode, size, ids):
    model = tiny_model(MODES[mode])
    cache = UnigramCache(size, model.vocabulary, model.text)
    windows = Windows.of(np.minimum(ids, len(model.vocabulary) - 1), model.vocabulary, model.text, size)
    contexts = windows.contexts(np.arange(len(ids) + 1))
    found = cache.log_probabilities(contexts)
    np.testing.assert_allclose(np.exp(found), [cache_by_hand(model, size, context) for context in contexts.tolist()], **CLOSE)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, **CLOSE)
    for word in range(len(model.vocabulary)):
        np.testing.assert_allclose(cache.losses(contexts, np.full(len(contexts), word, np.int32)), -found[:, word], **CLOSE)


def test_cache_prefers_recent_words_and_forgets_old_ones():
    model = tiny_model(MODES["no ends"])
    cache = UnigramCache(3, model.vocabulary, model.text)
    ids = model.vocabulary.encode(["dog", "the", "cat", "sat"])
    distribution = np.exp(cache.log_probabilities(Windows.of(ids, model.vocabulary, model.text, 3).contexts(np.array([4]))))[0]
    the, cat, dog, sat, on = (distribution[model.vocabulary.id(word)] for word in ("the", "cat", "dog", "sat", "on"))
    assert sat > cat > the > dog == on


# Mixtures.


def small_mixture(text):
    """Return a mixture of components with windows of 2, 4, 1 and 6 words."""
    first, second = tiny_model(text, window=2), tiny_model(text, window=4, seed=2)
    third = Bigrams(text, WORDS, {"the": {"cat": 0.5, "dog": 0.4}})
    third.vocabulary = first.vocabulary
    components = {"a": first, "b": second, "c": third, "cache": UnigramCache(6, first.vocabulary, text)}
    return Mixture(components, [0.4, 0.3, 0.2, 0.1])


@pytest.fixture(params=MODES)
def mixture(request):
    return small_mixture(MODES[request.param])


def exact_probabilities(mixture, ids):
    """Return p(word | context) of every word at every place of a text (N,), from networks in double precision: (N, V)."""
    result = np.zeros((len(ids), len(mixture.vocabulary)))
    for weight, component in zip(mixture.weights, mixture.components.values(), strict=True):
        contexts = Windows.of(ids, mixture.vocabulary, mixture.text, component.window).contexts(np.arange(len(ids)))
        if isinstance(component, NeuralModel):
            result += weight * np.exp(exact_log_probabilities(component, contexts))
        else:
            result += weight * np.exp(component.log_probabilities(contexts))
    return result


def test_mixture_equals_weighted_sum_of_probabilities(mixture):
    ids = mixture.text.encode_text(TEXT, mixture.vocabulary)
    windows = mixture.windows(ids)
    assert windows.window == 6
    found, expected = mixture.log_probabilities(windows.contexts(np.arange(len(ids)))), exact_probabilities(mixture, ids)
    np.testing.assert_allclose(np.exp(found), expected, **SINGLE)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, **SINGLE)
    probabilities = mixture.probabilities(windows.contexts(np.arange(len(ids))))
    np.testing.assert_allclose(probabilities, expected, **SINGLE)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-14)
    losses = mixture.losses(*windows.batch(np.arange(len(ids))))
    np.testing.assert_allclose(losses, -np.log(expected[np.arange(len(ids)), ids]), **SINGLE)


def test_losses_of_lines_equal_weighted_sums_of_probabilities(mixture):
    lines = ["the cat sat on the zebra .", "", "the dog\nthe yak the the the the the", "."]
    ids, borders = mixture._encoder.encode(lines)
    expected = [
        exact_probabilities(mixture, ids[low:high])[np.arange(high - low), ids[low:high]] for low, high in pairwise(borders)
    ]
    expected = [-np.log(own) for own in expected]
    np.testing.assert_allclose(mixture.line_losses(ids, borders), np.concatenate(expected), **SINGLE)
    np.testing.assert_allclose(mixture.scores(lines), [-own.sum() for own in expected], **SINGLE)


def test_mixture_with_weight_one_equals_component(mixture):
    alone = Mixture(mixture.components, [0, 1, 0, 0])
    expected = score(mixture.components["b"], TEXT)
    assert math.isclose(score(alone, TEXT).loss_sum, expected.loss_sum, rel_tol=1e-12)
    (word, probability), (expected_word, expected) = (each.next_words("the", top=1)[0] for each in (alone, alone.components["b"]))
    assert word == expected_word
    np.testing.assert_allclose(probability, expected, **SINGLE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("words", [1, TILE, 2 * TILE + 3])
def test_added_exponentials_equal_those_of_numpy(words, dtype):
    logs = np.random.default_rng(words).uniform(-79, 0, (3, words)).astype(dtype)
    logs[1, 0], logs[1, words // 2], logs[2, -1] = -np.inf, -744.0, -100.0
    totals = np.random.default_rng(1).uniform(0, 1e-30, logs.shape)
    expected = totals + 0.25 * np.exp(logs.astype(np.float64))
    add_exponentials(logs, 0.25, totals)
    np.testing.assert_allclose(totals, expected, rtol=SINGLE["rtol"] if dtype == np.float32 else 1e-14, atol=0)


class Given(Bigrams):
    """A model with the same log-probabilities after every context."""

    def __init__(self, text, logs):
        super().__init__(text, WORDS, {})
        self.logs = np.array(logs)

    def log_probabilities(self, contexts):
        """Return the same row for each context."""
        return np.repeat(self.logs[None], len(contexts), axis=0)


def test_mixture_has_logarithms_of_probabilities_that_are_no_floats(mixture):
    V = len(mixture.vocabulary)
    logs = np.full((2, V), -1.0)
    logs[:, :4] = [[-800, -2000, -np.inf, -720], [-1, -2000, -np.inf, -750]]
    components = {name: Given(mixture.text, own) for name, own in zip("ab", logs, strict=True)}
    for each in components.values():
        each.vocabulary = mixture.vocabulary
    small = Mixture(components, [0.5, 0.5])
    contexts = np.zeros((2, small.window), np.int32)
    expected = np.logaddexp(*logs) + math.log(0.5)
    np.testing.assert_allclose(small.log_probabilities(contexts), [expected, expected], rtol=1e-14)


def test_component_scorer_equals_scores_of_components(mixture):
    comparison = ComponentScorer(mixture)
    together = score(comparison, TEXT)
    assert together == score(mixture, TEXT)
    for component, alone in zip(mixture.components.values(), comparison.component_scores(together), strict=True):
        expected = score(component, TEXT)
        assert math.isclose(alone.loss_sum, expected.loss_sum, rel_tol=1e-12)
        assert math.isclose(alone.unknown_loss_sum, expected.unknown_loss_sum, rel_tol=1e-12)
        assert alone.to_dict().keys() == expected.to_dict().keys()
        assert (alone.tokens, alone.unknown, alone.characters) == (expected.tokens, expected.unknown, expected.characters)


def test_mixture_refuses_components_with_other_vocabulary_or_text():
    one = tiny_model()
    with pytest.raises(FflmError, match="b has another vocabulary than a"):
        Mixture({"a": one, "b": tiny_model(words=("the", "cow"))}, [0.5, 0.5])
    with pytest.raises(FflmError, match="b reads text in another way than a"):
        Mixture({"a": one, "b": tiny_model(MODES["line ends"])}, [0.5, 0.5])
    with pytest.raises(FflmError, match="from 1 to 1,000,000"):
        UnigramCache(0, one.vocabulary, one.text)
    for name in ("cache", "neural_cache"):
        with pytest.raises(FflmError, match=f"`{name}` must be an integer from 1 to 1,000,000"):
            combine(["a.model"], **{name: 10**9})


@pytest.mark.parametrize("weights", [[0.5], [0.2, 0.3, 0.5], [0.5, 0.6], [1.5, -0.5], [math.nan, 1]])
def test_mixture_refuses_invalid_weights(weights):
    with pytest.raises(FflmError, match="the weights of a mixture are at least 0 and sum to one"):
        Mixture({"a": tiny_model(), "b": tiny_model(seed=2)}, weights)
    with pytest.raises(FflmError, match="a mixture of 0 models: mix at least one"):
        Mixture({}, [])


# Folders.


def assert_same_score(actual, expected):
    """Check that the score of a component has the values of its score as a single model, up to rounding."""
    for name, value in expected.items():
        assert actual[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name


def save_tiny(path, **options):
    """Save a network with random weights."""
    model = tiny_model(**options)
    path.mkdir(exist_ok=True, parents=True)
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})
    return path


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Make a folder with two models and a text, and make it the current one."""
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("one.model"))
    save_tiny(Path("two.model"), seed=2)
    Path("held.txt").write_text(TEXT)
    return tmp_path


def test_mixture_with_weights_that_were_not_tuned_can_be_saved(models):
    components = combine(["one.model", "two.model"]).components
    Mixture(components, [0.3, 0.7]).save("given.mix")
    found = Mixture.load("given.mix")
    assert (found.weights.tolist(), found.figures) == ([0.3, 0.7], {})
    with pytest.raises(FflmError, match="were not tuned: tune them with"):
        print(found.tuning)
    for line in ("info given.mix", "score held.txt -m given.mix"):
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 0, result.stderr
    assert "weights that were not tuned\n" in result.stdout


def test_saved_mixture_loads_from_moved_folder(models, monkeypatch):
    made = mix(["one.model", "two.model"], cache=5, tune=["held.txt"])
    made.save(Path("mixtures/m.mix"))
    assert sorted(path.name for path in Path("mixtures/m.mix").iterdir()) == [
        CONFIG,
        WEIGHTS,
        "vocabulary.safetensors",
        "vocabulary.tsv",
    ]
    expected = score(made, TEXT)
    assert score(fflm.load("mixtures/m.mix"), TEXT) == expected
    shutil.move(models, models.with_name("moved"))
    elsewhere = models.with_name("elsewhere")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    back = fflm.load("../moved/mixtures/m.mix")
    assert score(back, TEXT) == expected
    assert list(back.components) == ["../moved/one.model", "../moved/two.model", "cache of 5 words"]
    for name in ("perplexity", "perplexity_known"):
        assert back.tuning[name] == pytest.approx(expected.to_dict()[name])
    assert [each["weight"] for each in back.tuning["components"]] == made.weights.tolist()


def test_tuned_mixture_has_lower_perplexity_than_components(models):
    made = mix(["one.model", "two.model"], cache=5, tune=["held.txt"])
    assert made.tuning["source"] == "held.txt"
    assert made.tuning["perplexity"] < min(each["perplexity"] for each in made.tuning["components"])
    for path, each in zip(("one.model", "two.model"), made.tuning["components"], strict=False):
        alone = score(fflm.load(path), TEXT).to_dict()
        assert_same_score(each, alone)


def test_mixture_of_mixture(models):
    mix(["one.model"], cache=5, tune=["held.txt"]).save(Path("one.mix"))
    outer = mix(["one.mix", "two.model"], tune=["held.txt"])
    outer.save(Path("two.mix"))
    assert score(fflm.load("two.mix"), TEXT) == score(outer, TEXT)


@pytest.mark.parametrize("seed", [3, None])
def test_changed_or_missing_component_is_refused(models, seed):
    mix(["one.model", "two.model"], tune=["held.txt"]).save(Path("m.mix"))
    shutil.rmtree("two.model")
    if seed:
        save_tiny(Path("two.model"), seed=seed)
    with pytest.raises(FflmError, match="two.model has changed.*tune again" if seed else "two.model.* is missing"):
        fflm.load("m.mix")


def test_weights_of_components_are_read_only_to_verify_them(models):
    mix(["one.model", "two.model"], tune=["held.txt"]).save("m.mix")
    with Path("two.model", WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    fflm.load("m.mix")
    with pytest.raises(FflmError, match=r"two\.model.*damaged.*wrong checksum"):
        fflm.load("m.mix", verify=True)


def test_damaged_mixture_is_refused(models):
    mix(["one.model"], cache=5, tune=["held.txt"]).save(Path("m.mix"))
    content = Path("m.mix", CONFIG).read_text()
    for old, new in (
        ('"cache": 5', '"cache": "x"'),
        ('"path"', '"place"'),
        ('{\n        "cache": 5\n      }', "7"),
        ('"cache"', '"k"'),
    ):
        assert old in content
        Path("m.mix", CONFIG).write_text(content.replace(old, new))
        with pytest.raises(FflmError, match="is damaged"):
            fflm.load("m.mix")
    Path("m.mix", CONFIG).write_text(content)
    Path("m.mix", WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(FflmError, match="damaged"):
        fflm.load("m.mix")


# The command.


@pytest.fixture(scope="module")
def trained_models(tmp_path_factory):
    """Train a network and an n-gram model on one text; mix them."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            ["train", "text.txt", *SMALL, "--epochs", "1", "--test", "10%", "-q"],
            ["ngram", "train", "text.model", "-o", "text.ngram", "--order", "3", "-q"],
            ["mix", "text.model", "text.ngram", "--cache", "50", "-o", "text.mix"],
        ):
            result = CliRunner().invoke(main, line, prog_name="fflm")
            assert result.exit_code == 0, result.stderr
    return folder, result.stdout


@pytest.fixture
def invoke(trained_models, monkeypatch):
    monkeypatch.chdir(trained_models[0])
    return lambda line, **extra: CliRunner().invoke(main, line.split(), prog_name="fflm", **extra)


def json_lines(result):
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


NUMBERS = r" +[\d.,]+ +[\d.,]+ +[\d.]+"


def test_mix_command_reports_tuning_on_validation_part(trained_models, invoke):
    [valid] = json_lines(invoke("score -m text.mix --part valid --json"))
    assert re.fullmatch(
        rf"model text.mix\n +weight +perplexity.*\n(text.model|text.ngram|cache of 50 words) +0\.\d+{NUMBERS}\n(.*\n){{2}}"
        rf"mixture +{NUMBERS}\ntuned on the validation part of text.model: perplexity {valid['perplexity']:.2f} over .* tokens, "
        r"OOV rate .*%, .* bits per character; vocabulary .*; line ends .*\n",
        trained_models[1],
    )
    assert valid["tuning"]["loss"] == pytest.approx(valid["loss"])
    [again] = json_lines(invoke("mix text.model text.ngram --cache 50 -o text.mix --overwrite --json"))
    assert again["model"] == "text.mix"
    assert again["components"] == valid["tuning"]["components"]


def test_score_command_reports_components_and_mixture(invoke):
    [summary] = json_lines(invoke("score -m text.mix --part test --json"))
    assert [each["name"] for each in summary["components"]] == ["text.model", "text.ngram", "cache of 50 words"]
    assert sum(each["weight"] for each in summary["components"]) == pytest.approx(1)
    for each in summary["components"][:2]:
        [alone] = json_lines(invoke(f"score -m {each['name']} --part test --json"))
        assert alone.pop("model") == each["name"]
        assert_same_score(each, alone)
    text = invoke("score -m text.mix --part test").stdout
    for each in summary["components"]:
        assert re.search(rf"{each['weight']:.4f} +{each['perplexity']:,.4f} ", text)
    for piece in (
        f"perplexity          {summary['perplexity']:,.4f}\n",
        "weights tuned on the validation part of text.model\n",
        summary["rule"],
        "predicted as </s>, contexts may cross lines",
    ):
        assert piece in text


def test_score_of_part_equals_figures_of_training(invoke):
    for name in ("text.model", "text.ngram"):
        figures = json.loads(invoke(f"info {name} --json").stdout)["figures"]
        for part in ("valid", "test"):
            [summary] = json_lines(invoke(f"score -m {name} --part {part} --json"))
            assert summary["perplexity"] == pytest.approx(figures[part]["perplexity"], rel=1e-5)
    [summary] = json_lines(invoke("score -m text.model --part train --json"))
    assert summary["tokens"] == json.loads(invoke("info text.model --json").stdout)["corpus"]["parts"]["train"]["tokens"]


def round_to_12_digits(value):
    """Return a JSON value with its numbers rounded to 12 digits."""
    if isinstance(value, dict):
        return {name: round_to_12_digits(each) for name, each in value.items()}
    if isinstance(value, list):
        return [round_to_12_digits(each) for each in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_score_command_of_mixture_by_word_sentence_and_nbest(invoke):
    text = "The cat sat.\nThe zebra ran.\n"
    [summary] = json_lines(invoke("score -m text.mix --json", input=text))
    for by in ("word", "sentence"):
        *each, last = json_lines(invoke(f"score -m text.mix --by {by} --json", input=text))
        assert round_to_12_digits(last) == round_to_12_digits(summary)  # one adds by lines, the other by chunks
        assert sum(one["log_probability"] for one in each) == pytest.approx(summary["log_probability"])
    hypotheses = json_lines(invoke("score -m text.mix --nbest plain --json", input=text))
    model = fflm.load("text.mix")
    assert [each["log_probability"] for each in hypotheses] == pytest.approx(
        [model.score(line).log_probability for line in text.splitlines()]
    )


def test_mixture_works_with_all_commands(trained_models, invoke):
    assert invoke("generate -m text.mix --prefix The --length 5 --seed 1").stdout.startswith("The ")
    assert invoke("generate -m text.mix --beams 3 --length 5").exit_code == 0
    table = json.loads(invoke("next -m text.mix --json --top 100000").stdout)["words"]
    assert sum(each["probability"] for each in table) == pytest.approx(1)
    assert json.loads(invoke("next --json --top 100000").stdout)["words"] == table  # because text.mix is the latest model
    about = json.loads(invoke("info text.mix --json").stdout)
    assert [each["name"] for each in about["figures"]["tuning"]["components"]] == [
        "text.model",
        "text.ngram",
        "cache of 50 words",
    ]
    shown = invoke("info text.mix").stdout
    assert re.search(rf"^text.ngram +0\.\d+{NUMBERS}$", shown, re.MULTILINE)
    assert re.search(
        r"^tuned on the validation part of text.model: perplexity .* bits per character; vocabulary .*", shown, re.MULTILINE
    )
    assert invoke("ngram train text.mix -o third.ngram --order 2 -q").exit_code == 0
    assert fflm.load("third.ngram").vocabulary.words == fflm.load("text.mix").vocabulary.words
    shutil.rmtree("third.ngram")


REFUSED = [
    ("mix text.model text.model -o new.mix", "text.model is given twice"),
    ("mix text.model missing -o new.mix", "missing is not a model"),
    ("mix text.model other.model -o new.mix", "other.model has another vocabulary than text.model"),
    ("mix -o new.mix", "Missing argument 'MODEL...'"),
    ("mix text.model text.ngram", "Missing option '-o' / '--output'"),
    ("mix text.model -o new.mix", "nothing to mix: give two models or more, --cache or --neural-cache"),
    ("mix text.model --cache 0 -o new.mix", "Invalid value for '--cache'"),
    ("mix text.model --cache 5 --tune missing -o new.mix", "cannot read missing"),
    ("mix text.model --cache 5 --tune empty.txt -o new.mix", "no words"),
    ("mix text.model --cache 5 --tune strange.txt -o new.mix", "no word of strange.txt is in the vocabulary"),
    ("mix text.model --cache 5 -o text.ngram", "text.ngram exists"),
    ("mix text.model --cache 5 -o text.ngram --tune missing", "text.ngram exists"),  # this is checked before the text is read
    ("mix text.model --cache 5 -o text.txt", "text.txt exists and is not a model"),
    ("mix text.model --cache 5 -o text.model --overwrite", "text.model is a part of the mixture"),
    ("score -m text.model --part test text.txt", "leave out INPUTS"),
    ("score -m text.model --part test --by word", "leave out INPUTS, --by"),
    ("score -m other.model --part test", "other.model is a model without a corpus"),
    ("mix other.model --cache 5 -o new.mix", "other.model is a model without a corpus"),
    ("score -m half.model --part test", "without a test part"),
    ("mix half.model --cache 5 -o new.mix", "without a validation part: .*--tune"),
    ("score -m lost.model --part test", "is missing: give a text"),
    ("score -m changed.model --part test", "has changed since changed.model was trained"),
]


@pytest.fixture
def incomplete_models(trained_models):
    """Add models whose corpus, validation part or vocabulary is missing or different."""
    folder, _ = trained_models
    if not (folder / "other.model").exists():
        save_tiny(folder / "other.model")
        (folder / "empty.txt").touch()
        (folder / "strange.txt").write_text("qqq zzz\nyyy\n")
        for name in ("half", "lost", "changed"):
            shutil.copytree(folder / "text.ngram", folder / f"{name}.model")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            line = ["ngram", "train", "text.txt", "-o", "half.model", "--overwrite", "--valid", "0", "-q"]
            assert CliRunner().invoke(main, line).exit_code == 0
        for name, old, new in (("lost", "text.model/corpus", "nowhere"), ("changed", '"fingerprint": "', '"fingerprint": "0')):
            path = folder / f"{name}.model" / CONFIG
            content = path.read_text()
            assert old in content
            path.write_text(content.replace(old, new))
    return folder


@pytest.mark.parametrize(("line", "reason"), REFUSED, ids=[line for line, _ in REFUSED])
def test_mix_and_score_refuse_invalid_arguments(incomplete_models, invoke, line, reason):
    before = sorted(path.name for path in incomplete_models.iterdir())
    result = invoke(line, input="The cat.\n")
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert re.fullmatch(rf"error: .*{reason}.*\n", result.stderr)
    assert sorted(path.name for path in incomplete_models.iterdir()) == before


@pytest.mark.parametrize(
    "line",
    [
        "neighbours the -m text.mix",
        "vectors -m text.mix",
        "plot text.mix",
        "train --resume text.mix",
        "ngram export -m text.mix -o text.arpa",
    ],
)
def test_network_and_ngram_commands_refuse_mixture(invoke, line):
    result = invoke(line)
    assert result.exit_code == 1
    assert re.fullmatch(r"error: (only .*|text.mix is not (a network|an n-gram model).*)\n", result.stderr)
