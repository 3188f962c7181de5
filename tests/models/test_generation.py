"""Generation is compared with probabilities computed by hand, and with the enumeration of all continuations."""

import itertools
import json
import math
import subprocess
import warnings

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny import MODES, Bigrams, tiny_model

from fflm.cli import main
from fflm.errors import FflmError
from fflm.models import generation
from fflm.models.generation import (
    _ending,
    _nucleus,
    _place,
    beam_search,
    next_words,
    probabilities,
    read_prefix,
    render,
    sample,
    top_indices,
)
from fflm.models.neural.model import save_config
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.training.checkpoints import save_weights

DRAWS = 4000
FREQUENCY = 0.03  # four standard deviations of a frequency near 0.5 among 4000


@pytest.fixture(params=MODES)
def model(request):
    return tiny_model(MODES[request.param])


def padding(model):
    """Return the id that pads contexts at the beginning of a text in the mode of the model."""
    return 1 if model.text.mode == "stream" and model.text.line_ends else len(model.vocabulary)


def context_by_hand(model, ids):
    """Return the context (1, window) after ids, from the definition of the modes."""
    if model.text.mode == "sentence" and 1 in ids:
        ids = ids[len(ids) - ids[::-1].index(1) :]
    padded = [padding(model)] * model.window + list(ids)
    return np.array([padded[-model.window :]], np.int32)


def distribution_by_hand(model, ids, temperature=1.0, top_k=None, top_p=None, unknown=False):
    p = np.exp(model.log_probabilities(context_by_hand(model, ids))[0].astype(np.float64))
    if not unknown:
        p[0] = 0
    p = (p / p.sum()) ** (1 / temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda word: -p[word])[: top_k or len(p)]
    if top_p:
        total = sum(p[word] for word in order)
        while sum(p[word] for word in order[:-1]) >= top_p * total:
            order.pop()
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return kept / kept.sum()


def log_probability_by_hand(model, prefix, ids):
    before = list(prefix)
    total = 0.0
    for id_ in ids:
        total += float(model.log_probabilities(context_by_hand(model, before))[0, id_])
        before.append(id_)
    return total


@pytest.mark.parametrize("text", ["", "the", "the cat sat on", "cat .\nthe dog", "the cat\n"])
def test_probabilities_equal_model_and_sum_to_one(model, text):
    prefix = read_prefix(model, text)
    found = probabilities(model, prefix)
    assert found.dtype == np.float64
    assert abs(found.sum() - 1) < 1e-12
    np.testing.assert_allclose(found, np.exp(model.log_probabilities(context_by_hand(model, prefix.ids.tolist()))[0]), rtol=1e-5)
    words = next_words(model, prefix, len(model.vocabulary) + 5)
    assert {word for word, _ in words} == set(model.vocabulary.words)
    assert [p for _, p in words] == sorted(found, reverse=True)
    assert next_words(model, prefix, 2) == words[:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "unknown": True},
        {"top_k": 3},
        {"top_p": 0.6},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.8},
    ],
    ids=str,
)
def test_samples_follow_transformed_distribution(model, options):
    prefix = read_prefix(model, "the cat")
    drawn = sample(model, prefix, samples=DRAWS, length=1, seed=3, **options)
    frequencies = np.bincount([each.ids[0] for each in drawn], minlength=len(model.vocabulary)) / DRAWS
    expected = distribution_by_hand(model, prefix.ids.tolist(), **options)
    assert np.abs(frequencies - expected).max() < FREQUENCY
    assert not frequencies[expected == 0].any()


def test_samples_of_several_words_follow_model():
    model = tiny_model(MODES["sentence"], ("a", "b"))
    drawn = sample(model, read_prefix(model, "a"), samples=DRAWS, length=3, seed=5)
    for sequence in itertools.product(range(1, 4), repeat=2):
        before, expected = [2 if model.vocabulary.words[2] == "a" else 3], 1.0
        for id_ in sequence:
            expected *= distribution_by_hand(model, before)[id_]
            before.append(id_)
        if sequence[0] != 1:  # the end of a sentence ends the sample
            assert abs(np.mean([each.ids[:2] == list(sequence) for each in drawn]) - expected) < FREQUENCY


def test_sample_does_not_depend_on_number_of_samples(model):
    prefix = read_prefix(model, "the")
    many = sample(model, prefix, samples=40, length=12, seed=7)
    assert sample(model, prefix, samples=40, length=12, seed=7) == many
    for count in (1, 17):
        for alone, each in zip(sample(model, prefix, samples=count, length=12, seed=7), many, strict=False):
            assert (alone.ids, alone.ended) == (each.ids, each.ended)
            assert math.isclose(alone.log_probability, each.log_probability, rel_tol=1e-6)  # sums may be in another order
    assert sample(model, prefix, samples=40, length=12, seed=8) != many
    assert len({tuple(each.ids) for each in many}) > 20
    assert sample(model, prefix, samples=20) != sample(model, prefix, samples=20)


def test_temperature_zero_gives_most_probable_words(model):
    prefix = read_prefix(model, "the dog")
    [found] = sample(model, prefix, length=8, temperature=0, stop_at_end=False)
    before = prefix.ids.tolist()
    for id_ in found.ids:
        assert id_ == distribution_by_hand(model, before).argmax()
        before.append(id_)
    assert [found] == sample(model, prefix, length=8, top_k=1, stop_at_end=False, seed=2)
    [tiny] = sample(model, prefix, length=8, temperature=1e-308, stop_at_end=False, seed=2)
    assert tiny == found


@pytest.mark.parametrize("stop", [True, False])
def test_log_probability_of_continuation_equals_model(model, stop):
    prefix = read_prefix(model, "cat sat")
    for each in [
        *sample(model, prefix, samples=20, length=15, seed=1, temperature=1.7, stop_at_end=stop),
        *beam_search(model, prefix, beams=4, length=15, stop_at_end=stop),
    ]:
        assert math.isclose(
            each.log_probability, log_probability_by_hand(model, prefix.ids.tolist(), each.ids), rel_tol=1e-5, abs_tol=1e-5
        )
        assert each.ended or len(each.ids) == 15
        assert 0 not in each.ids
        if not stop:
            assert not each.ended


def test_unknown_words_are_generated_only_when_allowed(model):
    prefix = read_prefix(model, "")
    assert any(0 in each.ids for each in sample(model, prefix, samples=50, length=10, unknown=True, seed=1))
    model.parameters.output_bias[0] = 50
    assert all(0 not in each.ids for each in sample(model, prefix, samples=50, length=10, seed=1))
    assert all(0 not in each.ids for each in beam_search(model, prefix, length=10))
    assert beam_search(model, prefix, length=3, unknown=True)[0].ids == [0, 0, 0]


def test_generation_stops_at_sentence_end_by_default(model):
    drawn = sample(model, read_prefix(model, "the"), samples=30, length=40, seed=1)
    if model.text.mode == "sentence":
        assert all(each.ids.count(1) == each.ended for each in drawn)
        assert any(each.ended for each in drawn)
    else:
        assert all(len(each.ids) == 40 and not each.ended for each in drawn)


@pytest.mark.parametrize("normalize", [False, True])
def test_wide_beam_search_equals_enumeration(model, normalize):
    model = tiny_model(model.text, ("a", "b", "."))
    prefix = read_prefix(model, "a b")
    stop = 1 if model.vocabulary.ends else model.vocabulary.id(".")
    expected = {}
    for ids in itertools.product(range(1, len(model.vocabulary)), repeat=3):
        cut = ids[: ids.index(stop) + 1] if stop in ids else ids
        expected[cut] = log_probability_by_hand(model, prefix.ids.tolist(), cut)
    found = beam_search(model, prefix, beams=1000, length=3, normalize=normalize, stop_at_end=True)
    order = sorted(expected, key=lambda ids: -expected[ids] / (len(ids) if normalize else 1))
    assert [tuple(each.ids) for each in found] == order
    np.testing.assert_allclose([each.log_probability for each in found], [expected[ids] for ids in order], rtol=1e-6)
    assert [each.ended for each in found] == [ids[-1] == stop for ids in order]


def test_narrow_beam_search_keeps_best_prefixes(model):
    prefix = read_prefix(model, "the")
    [only] = beam_search(model, prefix, beams=1, length=6, stop_at_end=False)
    [greedy] = sample(model, prefix, length=6, temperature=0, stop_at_end=False)
    assert only.ids == greedy.ids
    found = beam_search(model, prefix, beams=3, length=2, stop_at_end=False)
    firsts = sorted(range(1, len(model.vocabulary)), key=lambda id_: -log_probability_by_hand(model, prefix.ids.tolist(), [id_]))
    pairs = itertools.product(firsts[:3], range(1, len(model.vocabulary)))
    expected = sorted(pairs, key=lambda ids: -log_probability_by_hand(model, prefix.ids.tolist(), ids))[:3]
    assert [tuple(each.ids) for each in found] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("said", ' "go!"'), ('said "', 'go!"'), ("we", " go!"), ("“ said", " “ go。” ’")],
)
def test_sentence_without_line_ends_stops_after_closing_quote(text, expected):
    words = ["said", "we", "go", "!", "“", "”", "’", "。", '"', "end"]
    table = {"said": {'"': 0.9}, '"': {"go": 0.9}, "we": {"go": 0.9}, "go": {"!": 0.9}, "!": {'"': 0.9}}
    if "“" in text:
        table = {"said": {"“": 0.9}, "“": {"go": 0.9}, "go": {"。": 0.9}, "。": {"”": 0.9}, "”": {"’": 0.9}, "’": {"”": 0.9}}
    model = Bigrams(TextSettings(Tokenizer("space"), line_ends=False), words, table)
    prefix = read_prefix(model, text)
    [greedy] = sample(model, prefix, temperature=0, stop_at_end=True)
    [beam] = beam_search(model, prefix, beams=1, stop_at_end=True)
    assert greedy == beam
    assert greedy.ended
    assert model.vocabulary.decode(greedy.ids) == expected.replace('"', ' " ').replace("!", " !").replace("。", " 。 ").split()
    assert math.isclose(greedy.log_probability, -model.losses(*windows_after(model, prefix, greedy)).sum())
    [short] = sample(model, prefix, temperature=0, stop_at_end=True, length=len(greedy.ids) - greedy.ids.count(greedy.ids[-1]))
    assert len(short.ids) < len(greedy.ids)


def windows_after(model, prefix, continuation):
    ids = np.append(prefix.ids, continuation.ids).astype(np.int32)
    return ids[len(prefix.ids) - 1 : -1, None], ids[len(prefix.ids) :]


@pytest.mark.parametrize(
    ("text", "prefix", "tokens", "expected"),
    [
        (MODES["line ends"], "The cat", ["sat", "."], "The cat sat."),
        (MODES["line ends"], "The cat ", ["sat", "."], "The cat sat."),
        (MODES["line ends"], "The  CAT", [",", "said", LINE_END, "the"], "The  CAT, said\nthe"),
        (MODES["line ends"], "the cat.\n", ["the", "dog"], "the cat.\nthe dog"),
        (MODES["no ends"], "the cat.\n", ["the", "dog"], "the cat.\nthe dog"),
        (MODES["line ends"], "", ["the", "dog"], "the dog"),
        (MODES["line ends"], 'he said "the cat', ['"', "and", '"', "dog"], 'he said "the cat" and "dog'),
        (MODES["line ends"], 'he said, "', ["the", "dog", '"'], 'he said, "the dog"'),
        (MODES["line ends"], "don't", ["go"], "don't go"),
        (MODES["line ends"], "明月", ["光", "，", "疑"], "明月光，疑"),
        (MODES["line ends"], "明月，", ["the", "cat"], "明月，the cat"),
        (TextSettings(Tokenizer("char")), "the c", ["a", "t", " ", "s"], "the cat s"),
        (TextSettings(Tokenizer("char")), "the ", [" ", "s"], "the  s"),
        (TextSettings(Tokenizer("space")), "the cat", ["@-@", "like", "dog"], "the cat-like dog"),
        (TextSettings(Tokenizer("space")), "the 10\u00a0", ["dog"], "the 10\u00a0 dog"),
        (TextSettings(Tokenizer("space")), "the\t", ["10\u00a0000"], "the\t10\u00a0000"),
        (MODES["line ends"], "the\u00a0", ["dog"], "the\u00a0dog"),
        (MODES["line ends"], "the\u200f", ["dog"], "the\u200f dog"),
        (TextSettings(Tokenizer(lowercase=True)), "The Zebra", ["sat"], "The Zebra sat"),
    ],
)
def test_render_joins_prefix_and_continuation(text, prefix, tokens, expected):
    model = tiny_model(text, ("the", "cat", *(token for token in tokens if token != LINE_END)))
    start = read_prefix(model, prefix)
    ids = model.vocabulary.encode(tokens).tolist()
    assert 0 not in ids
    [continuation] = sample(model, start, length=1, seed=1)
    assert render(model, start, type(continuation)(ids, 0.0, False)) == expected
    if model.vocabulary.ends:
        assert render(model, start, type(continuation)([*ids, 1], 0.0, True)) == expected
        assert render(model, start, type(continuation)([*ids, 1], 0.0, False)) == expected + "\n"


@given(
    st.sampled_from([Tokenizer("word"), Tokenizer("space"), Tokenizer("char")]),
    st.lists(st.sampled_from(["a", "s", '"', "'", "'\u200d", "``", "明", ".", "(", "@-@", LINE_END]), max_size=12),
    st.integers(0, 12),
)
def test_spacing_of_continuation_is_that_in_the_whole_text(tokenizer, tokens, place):
    before = tokens[:place]
    ending = _ending(tokenizer, before)
    whole = tokenizer.detokenize(tokens).removeprefix(tokenizer.detokenize(before))
    assert tokenizer.detokenize(ending + tokens[place:]).removeprefix(tokenizer.detokenize(ending)) == whole


def test_unknown_words_of_prefix_give_warning():
    model = tiny_model(TextSettings(Tokenizer("space", lowercase=True)))
    prefix = read_prefix(model, "The Zebra sat </s> <unk> zebra Yak \n")
    assert prefix.unknown == ["zebra", "</s>", "yak"]
    assert prefix.ids.tolist()[-1] == 1
    with pytest.warns(UserWarning, match="zebra"):
        assert model.generate("The Zebra", seed=1)[0].startswith("The Zebra")
    with pytest.warns(UserWarning, match="zebra"):
        model.next_words("zebra")


def test_generate_and_next_words_of_model(model):
    with warnings.catch_warnings(action="error"):
        texts = model.generate("the cat", samples=3, length=5, seed=1)
    assert len(texts) == 3
    assert all(text.startswith("the cat") for text in texts)
    assert model.generate("the cat", samples=3, length=5, seed=1) == texts
    assert model.generate("the cat", greedy=True) == model.generate("the cat", temperature=0)
    assert len(model.generate("the", samples=2, beams=4, length=5)) == 2
    assert abs(sum(p for _, p in model.next_words("the", top=100)) - 1) < 1e-6


def test_model_that_predicts_nan_is_refused():
    """Such are the weights in a damaged file whose checksum was not verified."""
    model = tiny_model()
    for array in model.parameters:
        array[...] = np.finfo(array.dtype).max
    with np.errstate(all="ignore"):
        for use in (
            lambda: model.next_words("the"),
            lambda: model.generate("the"),
            lambda: model.generate("the", greedy=True),
            lambda: model.generate("the", top_k=2, top_p=0.5),
            lambda: model.generate("the", beams=2),
            lambda: model.score("the cat"),
        ):
            with pytest.raises(FflmError, match=r"^the model predicts NaN, .*: restore it"):
                use()


@given(
    st.lists(st.sampled_from([0.0, 1.0, -math.inf, 2.5]) | st.floats(-10, 10), min_size=1), st.integers(1, 30), st.integers(1, 4)
)
def test_largest_equals_stable_sort(values, count, block):
    expected = sorted(range(len(values)), key=lambda index: -values[index])[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_BLOCK", block)
        assert top_indices(np.array(values), count).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 1000])
def test_place_inverts_cumulative_distribution(size, dtype):
    generator = np.random.default_rng(size)
    for _ in range(20):
        weights = (generator.random(size) ** 8 * (generator.random(size) < 0.3)).astype(dtype)
        weights[generator.integers(size)] = 1
        cumulative = weights.cumsum(dtype=np.float64)
        for share in (0.0, *generator.random(20), 1 - 2.0**-53):
            place = _place(weights, share)
            assert weights[place] > 0
            below = cumulative[place - 1] if place else 0.0
            assert below - 1e-5 <= share * cumulative[-1] <= cumulative[place] + 1e-5


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("spread", [0, 1, 5])
def test_nucleus_is_smallest_set_with_probability_top_p(spread, top_p):
    weights = np.exp(np.random.default_rng(1).normal(0, spread, 1000))
    found = _nucleus(weights, top_p)
    np.testing.assert_array_equal(found, top_indices(weights, len(found)))
    assert weights[found].sum() >= top_p * weights.sum() * (1 - 1e-12)
    assert weights[found[:-1]].sum() < top_p * weights.sum()


# The command line.


@pytest.fixture
def folder(tmp_path):
    """Make a folder with a saved model, whose kernels are compiled so that no command reports compiling."""
    model = tiny_model(MODES["line ends"])
    model.next_words("the")
    path = tmp_path / "tiny.model"
    path.mkdir()
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})
    return tmp_path


def run(folder, *arguments, **options):
    return CliRunner().invoke(main, [arguments[0], "--model", str(folder / "tiny.model"), *arguments[1:]], **options)


def test_generate_command_writes_text_to_stdout_and_unknown_words_to_stderr(folder):
    arguments = ["generate", "--prefix", "The zebra", "--seed", "1", "--length", "10"]
    result = run(folder, *arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("The zebra")
    assert result.stderr == "not in the vocabulary, read as <unk>: The zebra\n"
    quiet = run(folder, *arguments, "-q")
    assert (quiet.stdout, quiet.stderr) == (result.stdout, "")
    answer = json.loads(run(folder, *arguments, "--json").stdout)
    assert answer["continuations"][0]["text"] + "\n" == result.stdout
    assert (answer["prefix"], answer["unknown"], answer["seed"]) == ("The zebra", ["The", "zebra"], 1)


def test_generate_command_reports_random_seed(folder):
    first = json.loads(run(folder, "generate", "--json", "-n", "3").stdout)
    again = json.loads(run(folder, "generate", "--json", "-n", "3", "--seed", str(first["seed"])).stdout)
    assert len(first["continuations"]) == 3
    assert again == first
    assert json.loads(run(folder, "generate", "--json").stdout) != first


@pytest.mark.parametrize("source", ["file", "standard input"])
def test_final_newline_of_prefix_file_is_ignored(folder, source):
    expected = run(folder, "generate", "--prefix", "the cat\nthe", "--greedy").stdout
    assert expected.startswith("the cat\nthe ")
    for content in ("the cat\nthe", "the cat\nthe\n", "the cat\r\nthe\r\n"):
        (folder / "prefix").write_bytes(content.encode())
        file = "-" if source == "standard input" else str(folder / "prefix")
        result = run(folder, "generate", "--prefix-file", file, "--greedy", input=content.encode())
        assert result.stdout == expected


def test_generate_command_with_beam_search(folder):
    answer = json.loads(run(folder, "generate", "--beams", "4", "-n", "2", "--stop-at-end", "--normalize", "--json").stdout)
    scores = [each["log_probability"] / len(each["tokens"]) for each in answer["continuations"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert answer["seed"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prefix", "a", "--prefix-file", "-"],
        ["--greedy", "--beams", "2"],
        ["--greedy", "--seed", "1"],
        ["--beams", "2", "--temperature", "2"],
        ["--beams", "2", "-n", "3"],
        ["--normalize"],
        ["--top-p", "0"],
        ["--top-k", "0"],
        ["--length", "-1"],
        ["--temperature", "-1"],
        ["--prefix", "\udce9"],
        ["--greedy", "-n", "2"],
    ],
    ids=" ".join,
)
def test_generate_command_refuses_invalid_options(folder, arguments):
    result = run(folder, "generate", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_next_command_prints_distribution(folder):
    answer = json.loads(run(folder, "next", "--prefix", "the cat", "--top", "100", "--json").stdout)
    assert abs(sum(each["probability"] for each in answer["words"]) - 1) < 1e-6
    assert {each["word"] for each in answer["words"]} >= {"<unk>", "</s>", "the"}
    assert answer["others"] == 0
    few = run(folder, "next", "--prefix", "the cat", "--top", "3").stdout.splitlines()
    assert [line.split()[1] for line in few[:3]] == [each["word"] for each in answer["words"][:3]]
    assert few[3].endswith("others)")
    assert abs(sum(float(line.split()[0]) for line in few) - 1) < 1e-5


def test_next_command_quotes_white_space(tmp_path):
    model = tiny_model(TextSettings(Tokenizer("char")), (" ", "a"))
    path = tmp_path / "tiny.model"
    path.mkdir()
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})
    words = {line[12:] for line in run(tmp_path, "next").stdout.splitlines()}
    assert words == {"' '", "a", "<unk>", "</s>"}


def test_installed_generate_command_uses_latest_model(folder):
    command = ["fflm", "generate", "--prefix", "the cat", "--seed", "3"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert result.stdout == run(folder, *command[1:]).stdout
    assert result.stderr == "model: tiny.model\n"
    lost = subprocess.run(command, cwd=folder / "tiny.model", capture_output=True, text=True, check=False)
    assert lost.returncode == 1
    assert lost.stdout == ""
    assert lost.stderr.startswith("error: there is no model in this folder")


def test_next_words_follow_each_line(folder):
    alone = [json.loads(run(folder, "next", "--prefix", each, "--top", "3", "--json").stdout) for each in ("the cat", "")]
    answers = run(folder, "next", "--follow", "--top", "3", "--json", input="the cat\n\n").stdout.splitlines()
    assert list(map(json.loads, answers)) == alone
    [line] = run(folder, "next", "--follow", "--top", "3", input="the cat\n").stdout.splitlines()
    fields = line.split("\t")
    assert fields[::2] == [each["word"] for each in alone[0]["words"]]
    assert list(map(float, fields[1::2])) == pytest.approx([each["probability"] for each in alone[0]["words"]], abs=1e-6)
    assert "leave out --prefix" in run(folder, "next", "--follow", "--prefix", "the").stderr
