"""Scores equal sums of log-probabilities by hand, in all modes and for any chunks of a text."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from processes import in_processes
from tiny import MODES, Bigrams, exact_log_probabilities, tiny_model

from fflm.cli import main
from fflm.cli.report import describe_policy
from fflm.errors import FflmError
from fflm.models.neural.fast import FastScorer
from fflm.models.neural.model import save_config
from fflm.models.ngram.train import train as train_ngram
from fflm.models.scoring import score, score_chunks, score_files, score_hypotheses, scored_lines, sentences, with_feature
from fflm.text.extent import as_bytes
from fflm.text.reading import read_chunks
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.training.checkpoints import save_weights

MODELS = {name: tiny_model(text) for name, text in MODES.items()}
TEXT = "the cat sat on the zebra .\n\nthe dog\n. the yak\n"
CLOSE = {"rel_tol": 1e-6, "abs_tol": 1e-6}


@pytest.fixture(params=MODES)
def model(request):
    return MODELS[request.param]


def losses_by_hand(model, text):
    """Return the id and -log p of each token of a text of words and newlines, from one exact prediction at a time."""
    start, end = len(model.vocabulary), 1
    stream = model.text.mode == "stream"
    found, context = [], [end if stream and model.text.line_ends else start] * model.window
    for line in text.split("\n")[:-1]:
        words = line.split()
        ids = [model.vocabulary.id(word) for word in words]
        if model.text.ends and (stream or words):
            ids.append(end)
        for id_ in ids:
            log_p = exact_log_probabilities(model, np.array([context[-model.window :]]))[0, id_]
            found.append((id_, -float(log_p)))
            context.append(id_)
        if not stream:
            context = [start] * model.window
    return found


def test_score_equals_sum_over_words(model):
    expected = losses_by_hand(model, TEXT)
    result = score(model, TEXT)
    known = [loss for id_, loss in expected if id_ != 0]
    assert result.tokens == len(expected)
    assert result.unknown == 2
    assert result.ends == {"sentence": 3, "line ends": 4, "no ends": 0}[next(name for name in MODES if MODELS[name] is model)]
    assert result.characters == len(TEXT)
    whole = sum(loss for _, loss in expected)
    assert math.isclose(result.log_probability, -whole, **CLOSE)
    assert math.isclose(result.log10_probability, -whole / math.log(10), **CLOSE)
    assert math.isclose(result.loss, whole / len(expected), **CLOSE)
    assert math.isclose(result.perplexity, math.exp(whole / len(expected)), **CLOSE)
    assert math.isclose(result.perplexity_known, math.exp(sum(known) / len(known)), **CLOSE)
    assert math.isclose(result.bits_per_character, whole / math.log(2) / len(TEXT), **CLOSE)
    assert math.isclose(result.oov_rate, 2 / len(expected), **CLOSE)
    assert (result.vocabulary, result.rule) == (len(model.vocabulary), "words in train")
    assert score(model, TEXT.removesuffix("\n")) == result
    assert model.score(TEXT) == result


@given(
    st.sampled_from(list(MODES)),
    st.lists(st.lists(st.sampled_from(["the", "cat", "sat", ".", "zebra"]), max_size=6), min_size=1, max_size=12),
    st.data(),
)
def test_score_does_not_depend_on_chunks(mode, lines, data):
    """Chunks end at line ends, or within a line before a token, as those of `read_chunks` do."""
    model = MODELS[mode]
    text = "".join(" ".join(line) + "\n" for line in [["the"], *lines])
    places = [index + 1 for index, character in enumerate(text[:-1]) if character == "\n" or (character == " " and index)]
    cuts = sorted(data.draw(st.sets(st.sampled_from(places))) if places else [])
    chunks = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces = list(scored_lines(model, chunks))
    expected = losses_by_hand(model, text)
    assert [id_ for line in pieces for id_ in line.ids] == [id_ for id_, _ in expected]
    np.testing.assert_allclose(
        np.concatenate([line.losses for line in pieces]), [loss for _, loss in expected], rtol=1e-6, atol=3e-6
    )
    assert "".join(line.text for line in pieces) == text
    together = score_chunks(model, map(as_bytes, chunks))
    found = list(sentences(pieces))
    assert [line for line, _ in found] == text.split("\n")[:-1]
    assert sum(each.tokens for _, each in found) == together.tokens == len(expected)
    assert math.isclose(sum(each.loss_sum for _, each in found), together.loss_sum, **CLOSE)
    whole = sum((line.score for line in pieces[1:]), pieces[0].score)
    assert math.isclose(together.unknown_loss_sum, whole.unknown_loss_sum, **CLOSE)
    assert replace(together, loss_sum=whole.loss_sum, unknown_loss_sum=whole.unknown_loss_sum) == whole


@pytest.mark.parametrize("size", [2, 3])
def test_score_of_chunks_is_the_same_in_several_processes(size):
    model = MODELS["line ends"]
    chunks = [f"{word} cat\n".encode() * count for count, word in enumerate(("the", "odd", "a", "the", "sat", "on", "cat"), 1)]
    expected = score_chunks(model, chunks)
    assert in_processes(size, lambda communicator: score_chunks(model, chunks, communicator)) == [expected] * size


ODD_LINES = ["the cat", "", "   ", "\u2028", "the\u2028cat\u0085sat\x0bon\x0cthe\x1cdog", "\tthe\tcat", "", ". the"]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""], ids=repr)
@pytest.mark.parametrize("how", [*MODES, "characters", "spaces"])
def test_sentences_gives_one_row_per_line(how, end, tmp_path):
    text = MODES.get(how) or TextSettings(Tokenizer("char" if how == "characters" else "space"), "sentence")
    own = tiny_model(text)
    content = (end or "\n").join(ODD_LINES) + end
    (tmp_path / "text").write_bytes(content.encode())
    size = 48 if how == "spaces" else 8  # a line is cut at spaces, or anywhere if it has none
    pieces = list(scored_lines(own, read_chunks([tmp_path / "text"], size=size)))
    rows = list(sentences(pieces))
    assert [line for line, _ in rows] == ODD_LINES
    together = score_files(own, [tmp_path / "text"])
    assert sum(each.tokens for _, each in rows) == together.tokens
    at_once = score(own, content)
    assert at_once.loss_sum == pytest.approx(together.loss_sum)
    assert replace(at_once, loss_sum=0, unknown_loss_sum=0) == replace(together, loss_sum=0, unknown_loss_sum=0)
    blank = rows[1][1]
    if how == "line ends":
        assert (blank.tokens, blank.ends) == (1, 1)
    else:
        assert (blank.tokens, str(blank.log_probability), blank.to_dict()["perplexity"]) == (0, "0.0", None)
    assert [line.number for line in pieces if line.text.endswith("\n")] == list(range(1, len(ODD_LINES) + 1))
    plain = list(score_hypotheses(own, read_chunks([tmp_path / "text"], size=8)))
    assert [each.fields for each in plain] == [[line] for line in ODD_LINES]


def test_line_split_over_chunks_is_scored_once(model):
    text = "the cat sat on the dog . " * 500 + "\n"
    pieces = list(scored_lines(model, [text[:5000], text[5000:]]))
    assert len(pieces) == 2
    [(whole, together)] = sentences(pieces)
    assert whole == text.removesuffix("\n")
    expected = losses_by_hand(model, text)
    assert together.tokens == len(expected)
    assert math.isclose(together.loss_sum, sum(loss for _, loss in expected), rel_tol=1e-6)


@pytest.mark.parametrize("text", ["", "\n", " \n\t\n"])
def test_text_without_words_is_refused(text):
    model = MODELS["sentence"]
    with pytest.raises(FflmError, match="no words"):
        score(model, text)


def test_perplexity_of_known_words_is_nan_without_known_words():
    result = score(MODELS["no ends"], "yak zebra")
    assert result.unknown == result.tokens == 2
    assert math.isnan(result.perplexity_known)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["perplexity_known"] is None
    assert math.isclose(values["perplexity"], result.perplexity)


def test_adding_scores_of_different_models_is_refused():
    with pytest.raises(ValueError, match="cannot be added"):
        score(MODELS["sentence"], "the cat") + score(MODELS["no ends"], "the cat")


def test_unknown_number_of_bytes_makes_that_of_the_sum_unknown():
    known = score(MODELS["sentence"], "the cat")
    old = replace(known, bytes=0, words=0)  # as of a corpus that an early version tokenized
    for total in (known + old, old + known):
        assert (total.tokens, total.bytes, total.words) == (2 * known.tokens, 0, 0)
        assert math.isnan(total.bits_per_byte)
        assert math.isnan(total.word_perplexity)
    assert (known + known).bits_per_byte == known.bits_per_byte


HYPOTHESES = ["the cat sat .", "", "dog zebra the the the the", "the", "  "]


@pytest.mark.parametrize("newline", ["", "\n"])
def test_hypotheses_are_scored_independently(model, newline):
    text = "\n".join(HYPOTHESES[:-1]) + newline
    found = list(score_hypotheses(model, [text[:9], text[9:]]))
    assert [each.fields for each in found] == [[line] for line in HYPOTHESES[:-1]]
    for each, line in zip(found, HYPOTHESES, strict=False):
        if line:
            expected = losses_by_hand(model, line + "\n")
        elif model.text.ends:  # an empty hypothesis is a sentence without words
            context = np.array([[len(model.vocabulary) if model.text.mode == "sentence" else 1] * model.window], np.int32)
            expected = [(1, -float(model.log_probabilities(context)[0, 1]))]
        else:
            expected = []
        assert each.score.tokens == len(expected)
        assert math.isclose(each.score.loss_sum, sum(loss for _, loss in expected), **CLOSE)


def test_hypotheses_in_blocks_equal_those_scored_alone(model):
    lines = [f"the {'cat ' * (index % 7)}sat" for index in range(700)]
    found = list(score_hypotheses(model, (line + "\n" for line in lines)))
    assert len(found) == 700
    for index in (0, 255, 256, 511, 512, 699):
        [alone] = score_hypotheses(model, [lines[index]])
        assert alone.fields == found[index].fields
        assert math.isclose(alone.score.loss_sum, found[index].score.loss_sum, **CLOSE)


@pytest.mark.parametrize("scorer", [MODELS["sentence"], FastScorer(MODELS["sentence"])], ids=["exact", "fast"])
@pytest.mark.parametrize(
    ("ids", "borders", "message"),
    [
        ([2, 3, 8], [0, 2, 3], "`ids` must be ids from 0 to 7, not 8"),
        ([2, -1], [0, 2], "`ids` must be ids from 0 to 7, not -1"),
        ([2, 3], [0, 1], "`borders` must rise from 0 to 2, the number of ids"),
        ([2, 3], [1, 2], "`borders` must rise from 0 to 2, the number of ids"),
        ([2, 3], [0, 3, 2], "`borders` must rise from 0 to 2, the number of ids"),
        ([2, 3], [0.0, 2.0], "`borders` must be an array of integers of 64 bits, one for each line and one more"),
        ([], [], "`borders` must be an array of integers of 64 bits, one for each line and one more"),
    ],
)
def test_losses_of_lines_refuse_other_ids_and_borders(scorer, ids, borders, message):
    with pytest.raises(FflmError) as caught:
        scorer.losses_of_lines(np.array(ids, np.int32), np.array(borders))
    assert str(caught.value) == message


def test_losses_of_repeated_contexts_equal_log_probabilities(model, monkeypatch):
    """The losses are the same for any number of contexts at once."""
    monkeypatch.setattr("fflm.models.neural.model.ROWS", 3)
    generator = np.random.default_rng(0)
    few = generator.integers(0, len(model.vocabulary), (8, model.window), np.int32)
    contexts, targets = few[generator.integers(0, 8, 60)], generator.integers(0, len(model.vocabulary), 60, np.int32)
    expected = -exact_log_probabilities(model, contexts)[np.arange(60), targets]
    np.testing.assert_allclose(model.losses(contexts, targets), expected, rtol=1e-6, atol=3e-6)
    assert model.losses(contexts[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 ||| the cat ||| LM0= -1.5 WP0= 3 ||| -7", "0 ||| the cat ||| LM0= -1.5 WP0= 3 fflm= {} ||| -7"),
        ("0 ||| the cat ||| ||| -7 ||| 0-0 1-1", "0 ||| the cat ||| fflm= {} ||| -7 ||| 0-0 1-1"),
        ("12|||the cat", "12 ||| the cat ||| fflm= {}"),
        ("0 |||  the cat  ||| a= 1", "0 ||| the cat ||| a= 1 fflm= {}"),
        ("0\u00a0||| the cat", "0\u00a0 ||| the cat ||| fflm= {}"),
    ],
)
def test_moses_list_gets_score_as_feature(line, expected):
    model = MODELS["sentence"]
    [each] = score_hypotheses(model, [line], moses=True)
    assert math.isclose(each.score.log_probability, score(model, "the cat").log_probability, **CLOSE)
    assert with_feature(each.fields, "fflm", 2.5) == expected.format("2.500000")


def test_moses_list_keeps_empty_lines_and_refuses_invalid_ones():
    model = MODELS["sentence"]
    kept = list(score_hypotheses(model, ["0 ||| the\n\n1 ||| cat\n"], moses=True))
    assert [with_feature(each.fields, "f", 1) != "" for each in kept] == [True, False, True]
    with pytest.raises(FflmError, match="line 2"):
        list(score_hypotheses(model, ["0 ||| the\nthe cat\n"], moses=True))


# The command line.


@pytest.fixture(scope="module", params=MODES)
def saved_model(request, tmp_path_factory):
    """Save a model; return its folder and the model."""
    path = tmp_path_factory.mktemp("models") / "tiny.model"
    path.mkdir()
    model = tiny_model(MODES[request.param])
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})
    return path, model


def run(path, *arguments, **options):
    return CliRunner().invoke(main, ["score", "-m", str(path), *arguments], **options)


def json_lines(result):
    assert result.exit_code == 0
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_score_command_of_files_equals_standard_input(saved_model, tmp_path):
    path, model = saved_model
    (tmp_path / "a").write_text(TEXT[:28])
    (tmp_path / "b").write_text(TEXT[28:])
    [summary] = json_lines(run(path, "--json", str(tmp_path / "a"), str(tmp_path / "b")))
    [standard] = json_lines(run(path, "--json", input=TEXT))
    assert summary["tokens"] == standard["tokens"]
    assert math.isclose(summary["perplexity"], standard["perplexity"], rel_tol=1e-6)
    assert math.isclose(summary["perplexity"], math.exp(np.mean([loss for _, loss in losses_by_hand(model, TEXT)])), rel_tol=1e-5)
    assert math.isclose(model.perplexity(tmp_path / "a", tmp_path / "b").perplexity, summary["perplexity"], rel_tol=1e-6)
    text = run(path, "--log-base", "10", input=TEXT).stdout
    for piece in (
        f"{standard['perplexity']:,.4f}",
        f"{standard['perplexity_known']:,.4f}",
        f"{standard['log10_probability']:,.4f} (base 10",
    ):
        assert piece in text
    assert model.vocabulary.rule in text
    heading, conditions = describe_policy(standard["policy"])
    assert f"\n{heading:20}{conditions}\n" in text


def test_scores_by_word_and_sentence_sum_to_total(saved_model):
    path, _ = saved_model
    *words, summary = json_lines(run(path, "--by", "word", "--json", input=TEXT))
    *lines, same = json_lines(run(path, "--by", "sentence", "--json", input=TEXT))
    assert summary == same
    for scores in (words, lines):
        assert math.isclose(sum(each["log_probability"] for each in scores), summary["log_probability"], rel_tol=1e-6)
        assert math.isclose(sum(each["log10_probability"] for each in scores), summary["log10_probability"], rel_tol=1e-6)
    assert [each["word"] for each in words if each["unknown"]] == ["zebra", "yak"]
    assert sum(each["word"] == "</s>" for each in words) == summary["ends"]
    assert [(each["line"], each["text"]) for each in lines] == list(enumerate(TEXT.split("\n")[:-1], 1))
    assert {each["type"] for each in words if each["unknown"]} == {"unknown"}
    assert all((each["word"] == "</s>") == (each["type"] == "end") for each in words)
    for number, line in enumerate(TEXT.split("\n")[:-1], 1):
        own = [each for each in words if each["line"] == number]
        assert [each["position"] for each in own] == list(range(1, len(own) + 1))
        assert [each["word"] for each in own if each["type"] != "end"] == line.split()
    shown = run(path, "--by", "word", input=TEXT).stdout.splitlines()
    assert [float(line.split()[0]) for line in shown[: len(words)]] == [round(each["log_probability"], 4) for each in words]
    assert shown[5].endswith("zebra (OOV)")
    tens = run(path, "--by", "sentence", "--log-base", "10", input=TEXT).stdout.splitlines()
    assert float(tens[1].split()[0]) == round(lines[0]["log10_probability"], 4)
    assert [float(line.split()[0]) for line in tens[1:5]] == [
        pytest.approx(each["log10_probability"], abs=6e-5) for each in lines
    ]
    assert [line.split()[3] for line in tens[1:5]] == [f"{each['perplexity']:.2f}" if each["tokens"] else "-" for each in lines]


def test_blank_lines_have_rows_in_scores_by_sentence(tmp_path):
    model = tiny_model(MODES["sentence"])
    save_config(tmp_path, model.config, model.text, model.vocabulary, {})
    save_weights(tmp_path, model.parameters, {})
    result = run(tmp_path, "--by", "sentence", "--json", input=" \n\n")
    assert [(row["line"], row["tokens"]) for row in map(json.loads, result.stdout.splitlines())] == [(1, 0), (2, 0)]
    assert (result.exit_code, result.stderr.count("error: the text contains no words")) == (1, 1)


def test_word_positions_continue_across_chunks(saved_model, tmp_path):
    path, _ = saved_model
    (tmp_path / "long").write_text("\n" + f"{'x' * 90} " * 3000 + "\nthe\n")  # longer than a chunk
    *words, _ = json_lines(run(path, "--by", "word", "--json", str(tmp_path / "long")))
    positions = [each["position"] for each in words if each["line"] == 2 and each["type"] == "unknown"]
    assert positions == list(range(1, 3001))
    assert [each["word"] for each in words if each["line"] == 3 and each["type"] == "word"] == ["the"]


def test_score_normalizes_line_ends_as_files(model):
    assert model.score("the cat\r\nsat\r.\r\n") == model.score("the cat\nsat\n.\n")
    characters = tiny_model(TextSettings(Tokenizer("char")), ("a", " ", "b"))
    assert score(characters, "a b\r\nab") == score(characters, "a b\nab\n")


def test_score_command_rescores_nbest_lists(saved_model):
    path, _ = saved_model
    text = "0 ||| the cat ||| f= 1 ||| -2\n0 ||| the dog ||| f= 2 ||| -3"
    plain = run(path, "--nbest", "plain", "--log-base", "10", input="the cat\nthe dog").stdout.splitlines()
    moses = run(path, "--nbest", "moses", "--log-base", "10", input=text).stdout.splitlines()
    values = json_lines(run(path, "--nbest", "moses", "--json", input=text))
    assert [line.split("\t")[1] for line in plain] == ["the cat", "the dog"]
    assert moses == [
        line.replace(" |||", f" fflm= {score.split()[0]} |||", 3).replace(f" fflm= {score.split()[0]} |||", " |||", 2)
        for line, score in zip(text.split("\n"), plain, strict=True)
    ]
    assert [f"{each['log10_probability']:.6f}" for each in values] == [line.split("\t")[0] for line in plain]
    assert [each["id"] for each in values] == ["0", "0"]


def test_score_command_reports_invalid_input_in_one_line(saved_model, tmp_path):
    path, _ = saved_model
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(b"a\0b")
    for arguments in (["empty"], ["binary"], ["missing"], ["empty", "--nbest", "moses", "--by", "word"]):
        result = run(path, str(tmp_path / arguments[0]), *arguments[1:])
        assert result.exit_code in (1, 2)
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("saved_model", ["line ends"], indirect=True)  # the process is the same for all
def test_installed_score_command_reads_pipe(saved_model):
    path, _ = saved_model
    command = ["fflm", "score", "--json"]
    result = subprocess.run(command, cwd=path.parent, input=TEXT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {**json_lines(run(path, "--json", input=TEXT))[0], "model": path.name}


def test_score_of_character_model():
    model = tiny_model(TextSettings(Tokenizer("char")), ("a", " ", "b"))
    result = score(model, "a b\nab\n")
    assert (result.tokens, result.ends, result.characters) == (7, 2, 7)
    assert math.isclose(result.bits_per_character, math.log2(result.perplexity), rel_tol=1e-9)


LINES = [
    "",
    "the cat sat .",
    "The cat\tsat on\u00a0the zebra",
    "  ",
    "dog\ncat",
    "\u2028the dog",
    "sat on the" * 9,
    "the cat sat .",
]


@pytest.mark.parametrize("mode", MODES)
def test_scores_of_lines_are_those_of_texts(mode):
    network = tiny_model(MODES[mode])
    scorers = [network, FastScorer(network), Bigrams(MODES[mode], ["the", "cat", "sat"], {})]
    for scorer in scorers:
        expected = [score(scorer, line).log_probability for line in LINES if line.strip()]
        found = scorer.scores(LINES)
        assert found.dtype == np.float64
        assert found[[bool(line.strip()) for line in LINES]].tolist() == pytest.approx(expected, rel=1e-5)
        assert [float(scorer.scores([line])[0]) for line in LINES] == pytest.approx(found.tolist(), rel=1e-6, abs=1e-6)
        assert (found[0] != 0) == scorer.text.ends  # an empty line is an empty sentence
        assert scorer.scores(()).shape == (0,)


def test_scores_of_an_ngram_model_are_those_of_texts(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the dog .\n\nthe dog sat .\nthe cat\n" * 5)
    for mode in ("stream", "sentence"):
        model = train_ngram([tmp_path / "text.txt"], order=3, mode=mode, overwrite=True, path=tmp_path / mode)
        expected = [model.score(line).log_probability for line in LINES if line.strip()]
        assert model.scores([line for line in LINES if line.strip()]).tolist() == pytest.approx(expected, rel=1e-6)


def test_scores_of_many_threads_are_those_of_one():
    scorer = FastScorer(tiny_model())
    lines = [f"the cat {number} sat on{number % 7} the dog ." for number in range(2000)]
    expected = scorer.scores(lines).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda line: float(scorer.scores([line])[0]), lines)) == expected


@pytest.mark.parametrize("lines", ["the cat", ["the", 3], 3, [b"the"]])
def test_scores_are_of_lists_of_strings(lines):
    with pytest.raises(FflmError, match="`lines` must be a list of strings"):
        tiny_model().scores(lines)


@pytest.mark.parametrize("saved_model", ["line ends"], indirect=True)  # the process is the same for all
def test_process_answers_each_line_before_it_reads_the_next(saved_model):
    path, model = saved_model
    command = [sys.executable, "-m", "fflm", "score", "-m", str(path), "--follow", "-q"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in ("the cat sat", "", "the 中文 zebra"):
            print(line, file=process.stdin, flush=True)  # and the answer comes before the next line
            assert float(process.stdout.readline()) == pytest.approx(float(model.scores([line])[0]), abs=1e-5)


def test_the_command_answers_line_by_line(saved_model):
    path, model = saved_model
    lines = json_lines(run(path, "--follow", "--json", input="the cat\nthe dog"))
    expected = model.scores(["the cat", "the dog"])
    assert [line["log_probability"] for line in lines] == pytest.approx(expected.tolist(), rel=1e-6)
    tens = run(path, "--follow", "--log-base", "10", input="the cat\n").stdout
    assert float(tens) == pytest.approx(expected[0] / math.log(10), abs=1e-5)
    assert "leave out INPUTS" in run(path, "--follow", "--by", "word", input="").stderr
    marked = "\ufeffthe cat\r\nthe dog"
    for encoding in ("utf-8", "utf-16-le"):
        options = ("--follow", "--json", "--encoding", encoding)
        assert json_lines(run(path, *options, input=marked.encode(encoding))) == lines


@pytest.mark.parametrize("saved_model", ["line ends"], indirect=True)
@pytest.mark.parametrize(
    ("encoding", "content", "message"),
    [
        ("utf-8", b"the \xff\n", "standard input is not utf-8 at byte 4"),
        ("utf-8", b"t\0h\0e\0\n\0", "standard input holds NUL bytes, so it is not utf-8 text"),
        ("utf-16", b"t\0h\0e\0\n\0", "standard input has no byte-order mark, so give the order in which it is written"),
        ("rot13", b"the\n", "there is no encoding 'rot13'"),
        ("base64", b"the\n", "there is no encoding 'base64'"),
    ],
)
def test_the_command_refuses_input_of_another_encoding_line_by_line(saved_model, encoding, content, message):
    refused = run(saved_model[0], "--follow", "-q", "--encoding", encoding, input=content)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"error: {message}")
    assert refused.stderr.count("\n") == 1
