"""The n-gram model: a reference in float64 dictionaries, its distributions, small texts, and the commands."""

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command import PERPLEXITY, STORIES
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODES, tiny_model

import fflm
from fflm.arrays import WEIGHTS
from fflm.cli import main
from fflm.errors import FflmError
from fflm.models.load import load_language_model as load
from fflm.models.neural.model import save_config
from fflm.models.ngram.estimate import estimate, estimate_discounts
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.train import train
from fflm.models.scoring import score
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.text.vocabulary import Vocabulary
from fflm.training.checkpoints import save_weights

FLOAT32_ERROR = 2e-6  # absolute error of logarithms down to -15, and of sums of a few of them

SMALL_TEXT = "the cat sat .\nthe dog sat on the cat .\n\nthe cat ran .\na dog sat .\nthe dog ran on\n"


class Reference:
    """Modified Kneser-Ney smoothing in dictionaries, directly from the definition, with recursive probabilities."""

    def __init__(self, ids, V, order, text):
        start, end, sentence = V, 1, text.mode == "sentence"
        self.V, self.order = V, order
        counts = [Counter() for _ in range(order + 1)]
        fronts = [defaultdict(set) for _ in range(order + 1)]
        history = [end if text.mode == "stream" and text.line_ends else start]
        for id_ in ids:
            window = tuple([*history, id_][-order:])
            counts[len(window)][window] += 1
            for k in range(1, len(window)):
                fronts[k][window[-k:]].add(window[-k - 1])
            history = [start] if sentence and id_ == end else [*history, id_]
        # The longest n-grams, and those at the start of a history, keep their counts; the others have continuation counts.
        self.counts = [Counter({gram: len(words) for gram, words in fronts[k].items()}) + counts[k] for k in range(order + 1)]
        self.discounts = [None]
        for k in range(1, order + 1):
            n = [sum(count == wanted for count in self.counts[k].values()) for wanted in range(5)]
            self.discounts.append([0.0, *self.estimate(*n[1:])])

    @staticmethod
    def estimate(n1, n2, n3, n4):
        """Return the three discounts from the counts of counts."""
        if n1 and n2 and n3:
            y = n1 / (n1 + 2 * n2)
            found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if 0 < found[0] <= 1 and 0 < found[1] <= 2 and 0 < found[2] <= 3:
                return found
        return [n1 / (n1 + 2 * n2)] * 3 if n1 and n2 else [0.5, 1, 1.5]

    def probability(self, context, word):
        """Return p(word | context) for a context of any length."""
        if V_start := [i for i, id_ in enumerate(context) if id_ == self.V]:
            context = context[V_start[-1] :]
        context = context[max(0, len(context) - self.order + 1) :]
        return self._probability(tuple(context), word)

    def _probability(self, context, word):
        k = len(context) + 1
        lower = self._probability(context[1:], word) if context else 1 / self.V
        seen = [self.counts[k][(*context, other)] for other in range(self.V)]
        if not sum(seen):
            return lower
        discounts = self.discounts[k]
        free = sum(discounts[min(count, 3)] for count in seen)
        return (seen[word] - discounts[min(seen[word], 3)] + free * lower) / sum(seen)


def vocabulary_of(words, ends):
    return Vocabulary.from_words(words, {}, ends=ends)


def model_of(ids, text, order, words="abcd"):
    """Return an n-gram model estimated from ids."""
    vocabulary = vocabulary_of(words, text.ends)
    ids = np.array(ids, np.uint16)
    tables, details = estimate(ids, vocabulary, text, order)
    return NgramModel(tables, vocabulary, text, {"ngram": {"order": order, **details}, "figures": {}})


def all_contexts(model):
    """Return the contexts of the model's window, at most 700 of them."""
    count = len(model.vocabulary) + 1
    contexts = list(itertools.islice(itertools.product(range(count), repeat=model.window), 700))
    return np.array(contexts, np.int32).reshape(len(contexts), model.window)


@st.composite
def random_texts(draw):
    """Draw text settings, an order, and ids of one to four words, some of which are frequent."""
    text = draw(st.sampled_from(list(MODES.values())))
    words = draw(st.integers(1, 4))
    top = words + text.ends
    ids = draw(st.lists(st.integers(0, top) | st.integers(max(0, top - 1), top), min_size=1, max_size=120))
    if text.mode == "sentence":  # sentences are not empty
        ids = [id_ for id_, before in zip(ids, [1, *ids], strict=False) if not id_ == before == 1] or [0]
    return text, draw(st.integers(1, 5)), ids, "abcd"[:words]


# The model.


@given(random_texts())
@settings(max_examples=60)
def test_probabilities_equal_definition_of_kneser_ney(drawn):
    text, order, ids, words = drawn
    model = model_of(ids, text, order, words)
    V = len(model.vocabulary)
    reference = Reference(ids, V, order, text)
    assert model.about["ngram"]["discounts"] == [pytest.approx(discounts[1:]) for discounts in reference.discounts[1:]]
    assert model.about["ngram"]["counts"] == [len(counts) for counts in reference.counts[1:]]
    contexts = model.windows(np.array(ids)).contexts(np.arange(len(ids) + 1))[-25:]
    expected = [[math.log(reference.probability(context.tolist(), word)) for word in range(V)] for context in contexts]
    np.testing.assert_allclose(model.log_probabilities(contexts), expected, rtol=0, atol=FLOAT32_ERROR)


@given(random_texts())
@settings(max_examples=60)
def test_ngram_distributions_sum_to_one(drawn):
    text, order, ids, words = drawn
    model = model_of(ids, text, order, words)
    distributions = model.log_probabilities(all_contexts(model))
    assert np.isfinite(distributions).all()
    np.testing.assert_allclose(np.exp(distributions.astype(np.float64)).sum(axis=1), 1, atol=FLOAT32_ERROR)


@given(random_texts())
@settings(max_examples=30)
def test_ngram_losses_equal_log_probabilities(drawn):
    text, order, ids, words = drawn
    model = model_of(ids, text, order, words)
    contexts = all_contexts(model)
    targets = np.arange(len(contexts), dtype=np.int32) % len(model.vocabulary)
    expected = -model.log_probabilities(contexts)[np.arange(len(contexts)), targets]
    assert np.array_equal(model.losses(contexts, targets), expected)


def test_estimated_discounts_of_longer_text():
    generator = np.random.default_rng(1)
    ids = np.minimum(generator.zipf(1.4, 6000), 500) + 1
    ids[generator.random(6000) < 0.1] = 1
    text = MODES["line ends"]
    words = [f"w{i}" for i in range(500)]
    model = model_of(ids, text, 3, words)
    assert model.notes == []
    reference = Reference(ids.tolist(), len(model.vocabulary), 3, text)
    places = np.arange(0, 6000, 400)
    contexts, targets = model.windows(ids).batch(places)
    expected = [-math.log(reference.probability(c.tolist(), int(w))) for c, w in zip(contexts, targets, strict=True)]
    np.testing.assert_allclose(model.losses(contexts, targets), expected, rtol=0, atol=FLOAT32_ERROR)


def test_same_text_gives_same_tables():
    ids = np.random.default_rng(2).integers(0, 6, 500)
    first, second = (model_of(ids, MODES["line ends"], 4).tables.arrays() for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


# Texts from which no discounts can be estimated.


@pytest.mark.parametrize(
    ("seen", "expected", "note"),
    [
        ([100, 50, 30, 20], [0.5, 1.1, 1.6666667], ""),
        ([10, 5, 0, 0], [0.5] * 3, "order 2: .* 10, 5, 0, 0 n-grams .* used the single discount 0.500"),
        ([10, 1, 9, 0], [0.8333333] * 3, "used the single discount"),  # the second discount would be negative
        ([0, 5, 5, 5], [0.5, 1, 1.5], "order 2: .* used 0.5, 1, 1.5"),
        ([5, 0, 5, 5], [0.5, 1, 1.5], "used 0.5, 1, 1.5"),
    ],
)
def test_estimate_discounts_with_fallbacks(seen, expected, note):
    found, said = estimate_discounts(seen, 2)
    assert found == pytest.approx(expected)
    assert re.search(note, said)
    assert bool(said) == bool(note)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("content", "tokenizer"),
    [
        ("word", "word"),
        ("a " * 500, "word"),
        ("to be or not to be " * 9, "char"),
        ("N V " * 50 + "N N V", "word"),
        ("x\ny\n" * 40, "word"),
    ],
)
def test_small_texts_use_default_discounts_with_note(content, tokenizer, mode, order, tmp_path):
    (tmp_path / "text").write_text(content)
    options = {"mode": MODES[mode].mode, "line_ends": MODES[mode].line_ends, "tokenizer": tokenizer, "min_count": 1}
    model = train([tmp_path / "text"], tmp_path / "model", order, valid=None, **options)
    assert model.notes
    assert 1 <= score(model, content).perplexity < 20
    assert math.isfinite(score(model, "something else").perplexity)
    total = sum(probability for _, probability in model.next_words("", top=len(model.vocabulary)))
    assert total == pytest.approx(1)


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


# Folders and the commands.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with a text and a network."""
    path = tmp_path_factory.mktemp("ngram")
    write(path / "text.txt", STORIES)
    network = tiny_model()
    (path / "tiny.model").mkdir()
    save_config(path / "tiny.model", network.config, network.text, network.vocabulary, {})
    save_weights(path / "tiny.model", network.parameters, {})
    return path


@pytest.fixture
def invoke(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda line, **extra: CliRunner().invoke(main, line.split(), prog_name="fflm", **extra)


@pytest.fixture
def trained_model(folder, invoke):
    if not Path("text.ngram").exists():
        assert invoke("ngram train text.txt -o text.ngram --order 3 --test 10% --arpa text.arpa -q").exit_code == 0
    return Path("text.ngram")


def test_ngram_train_reports_evaluation_conditions(invoke):
    result = invoke("ngram train text.txt -o own.ngram --order 3 --test 10%")
    assert result.exit_code == 0, result.output
    assert re.match(r"model own.ngram\norder .*\n    1 +\d+   0\.\d{4} \d\.\d{4} \d\.\d{4}\n", result.stdout)
    for name in ("valid", "test "):
        assert re.search(rf"^{name} {PERPLEXITY}$", result.stdout, re.MULTILINE)
    figures = json.loads(invoke("ngram train text.txt -o own.ngram --order 3 --json --overwrite").stdout)
    assert list(figures["valid"]) == list(fflm.load("own.ngram").score("the").to_dict())
    assert len(figures["counts"]) == len(figures["discounts"]) == 3
    assert figures["vocabulary"]["rule"].startswith("words seen")


def test_ngram_model_works_with_all_commands(trained_model, invoke):
    model = fflm.load("text.ngram")
    assert isinstance(model, NgramModel)
    assert model.window == 2
    assert invoke("generate -m text.ngram --prefix The --length 5 --seed 1").stdout.startswith("The ")
    assert invoke("generate -m text.ngram --beams 3 --length 5").exit_code == 0
    table = json.loads(invoke("next -m text.ngram --json --top 100000").stdout)["words"]
    assert sum(each["probability"] for each in table) == pytest.approx(1)
    scored = json.loads(invoke("score -m text.ngram --json text.txt").stdout)
    assert scored["perplexity"] == pytest.approx(model.perplexity("text.txt").perplexity)
    about = json.loads(invoke("info text.ngram --json").stdout)
    assert about["figures"]["test"]["perplexity"] == model.about["figures"]["test"]["perplexity"]
    assert re.search(r"^test  perplexity", invoke("info text.ngram").stdout, re.MULTILINE)


@pytest.mark.parametrize("line", ["neighbours the", "analogy the a an", "vectors", "plot", "train --resume"])
def test_network_commands_refuse_ngram_model(line, trained_model, invoke):
    result = invoke(f"{line} text.ngram" if line[0] in "pt" else f"{line} -m text.ngram")
    assert result.exit_code == 1
    assert re.fullmatch(r"error: only a network has word vectors.*\n|error: text.ngram is not a network.*\n", result.stderr)
    assert invoke("ngram export -m tiny.model -o tiny.arpa").exit_code == 1
    with pytest.raises(FflmError, match="is not an n-gram model"):
        NgramModel.load("tiny.model")


def test_ngram_train_on_corpus_or_model_uses_its_vocabulary(trained_model, invoke):
    first = fflm.load(trained_model)
    for source in ("text.ngram", "text.ngram/corpus"):
        result = invoke(f"ngram train {source} -o other.ngram --order 3 --overwrite -q")
        assert result.exit_code == 0, result.stderr
        other = fflm.load("other.ngram")
        assert all(np.array_equal(array, other.tables.arrays()[name]) for name, array in first.tables.arrays().items())
    assert "--mode" in invoke("ngram train text.ngram -o other.ngram --mode sentence --overwrite").stderr
    assert "corpus is in text.ngram" in invoke("ngram train text.ngram -o text.ngram --overwrite").stderr
    assert "without a corpus" in invoke("ngram train tiny.model -o other.ngram --overwrite").stderr


def test_ngram_export_and_import_commands(trained_model, invoke):
    assert invoke("ngram export -m text.ngram -o again.arpa --overwrite").exit_code == 0
    assert Path("again.arpa").read_bytes() == Path("text.arpa").read_bytes()
    assert "--overwrite" in invoke("ngram export -m text.ngram -o again.arpa").stderr
    result = invoke("ngram import again.arpa -o back.ngram --tokenizer word --mode stream --overwrite --json")
    assert result.exit_code == 0, result.stderr
    one, two = (json.loads(invoke(f"score -m {name} --json text.txt").stdout) for name in ("text.ngram", "back.ngram"))
    assert two["perplexity"] == pytest.approx(one["perplexity"], rel=1e-6)
    assert invoke("info back.ngram").exit_code == 0


def test_ngram_train_does_not_overwrite_existing_folder(trained_model, invoke):
    assert "--overwrite" in invoke("ngram train text.txt -o text.ngram").stderr
    Path("mine").mkdir(exist_ok=True)
    assert "is not a model" in invoke("ngram train text.txt -o mine --overwrite").stderr


def test_damaged_ngram_tables_are_refused(tmp_path):
    model = model_of([1, 2, 3, 1], MODES["line ends"], 2)
    model.save(tmp_path)
    assert NgramModel.load(tmp_path).tables.targets.tolist() == model.tables.targets.tolist()
    model.tables.children[-1] += 5
    model.save(tmp_path)
    with pytest.raises(FflmError, match="damaged"):
        NgramModel.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(FflmError, match="damaged"):
        load(tmp_path)


def test_character_ngram_model(tmp_path):
    text = TextSettings(Tokenizer(mode="char"), line_ends=False)
    (tmp_path / "text").write_text(SMALL_TEXT)
    model = train([tmp_path / "text"], tmp_path / "model", 4, valid=None, tokenizer="char", line_ends=False, min_count=1)
    assert model.text == text
    assert LINE_END not in model.vocabulary.words
    assert model.generate("the ", length=10, greedy=True)[0].startswith("the ")
