"""Text classifiers: reading labeled text, features, metrics, training, prediction, and the commands."""

import csv
import gzip
import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command import fflm as command
from command import snapshot
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support, zero_one_loss

import fflm
from fflm import FflmError, TextClassifier
from fflm.arrays import CHECKPOINT, CONFIG, WEIGHTS, load_arrays
from fflm.cli import _as_commands, main
from fflm.errors import FflmWarning
from fflm.files import LOCK
from fflm.models.classifier.features import SHORT, Reader, Texts, count_words, number_texts, read_lexicon
from fflm.models.classifier.metrics import Report
from fflm.models.classifier.reading import read_labeled
from fflm.models.classifier.settings import TextInput
from fflm.models.classifier.train import ClassifierSession, start_session
from fflm.models.creation import model_path
from fflm.text.holdout import Count, Share
from fflm.text.tokenizer import Tokenizer
from fflm.training.events import Evaluation, Event, Step
from fflm.training.examples import Scale
from fflm.training.session import Session


def run(*arguments: object, status: int = 0, **options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the current folder, and check its exit status."""
    result = command(*arguments, folder=Path(), **options)
    assert result.returncode == status, result.stderr
    return result


def random_reviews(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return labels and texts; in each text one word determines the label, and the others are random."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        good = bool(generator.integers(2))
        words = generator.choice(["the", "film", "plot", "was", "and", "it", "music"], generator.integers(2, 9)).tolist()
        words.insert(
            int(generator.integers(len(words) + 1)), str(generator.choice(["lovely", "great"] if good else ["dull", "awful"]))
        )
        rows.append(("good" if good else "bad", " ".join(words)))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{label}\t{text}\n" for label, text in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reviews")
    write_tsv(folder / "train.tsv", random_reviews(600))
    write_tsv(folder / "new.tsv", random_reviews(200, seed=1))
    return folder


# Reading labeled text.


ROWS = [("1", "one, two"), ("zwei", 'say "hello"'), ("1", "你好 world"), ("x", "")]


def test_all_formats_give_same_labels_and_texts(tmp_path: Path) -> None:
    write_tsv(tmp_path / "a.tsv", ROWS)
    (tmp_path / "a.ft").write_text("".join(f"__label__{label} {text}\n" for label, text in ROWS))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "body", "class"), *((row, text, label) for row, (label, text) in enumerate(ROWS))])
    expected = [label for label, _ in ROWS], [text for _, text in ROWS]
    for name, options in (("a.tsv", {}), ("a.ft", {}), ("a.csv", {"text_column": "body", "label_column": "class"})):
        found = read_labeled([tmp_path / name], **options)
        assert (found.labels, found.texts) == expected


def test_newlines_in_csv_field_become_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('label,text\na,"one\ntwo\n\nthree"\nb,four\n')
    found = read_labeled([tmp_path / "a.csv"])
    assert found.texts == ["one two three", "four"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'label,text\n"good\n film",x\n"  good\tfilm ",y\n"good\r\n\u2028\u00a0film\v",z\n'),
        ("a.tsv", " good \u3000 film\tx\ngood\x0bfilm\u00a0\ty\n\x0cgood\u2028film\tz\n"),
        ("a.ft", "__label__good\u00a0film x\n __label__good\u2028film\ty\n__label__good\u3000film \u00a0z\n"),
    ],
)
def test_white_space_in_labels_is_normalized(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    found = read_labeled([tmp_path / name])
    assert found.labels == ["good film"] * 3
    assert [text.strip() for text in found.texts] == ["x", "y", "z"]


def test_format_is_detected_for_each_file_of_folder(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("1.csv", "2.csv"):
        (folder / name).write_text("text,label\none,a\n")
    (folder / "3.txt").write_text("__label__b two\n__label__c\tthree\n")
    write_tsv(folder / "4.tsv", [("d", "four")])
    found = read_labeled([folder])
    assert list(zip(found.labels, found.texts, strict=True)) == [("a", "one")] * 2 + [("b", "two"), ("c", "three"), ("d", "four")]
    (folder / "4.tsv").write_text("d\tfour\nfive\n")
    with pytest.raises(FflmError, match=r"4\.tsv, line 2 has no tab"):
        read_labeled([folder])


def test_long_line_is_read_as_one_text(tmp_path: Path) -> None:
    text = "word " * 200_000 + "end"
    write_tsv(tmp_path / "a.tsv", [("a", text), ("b", "short")])
    assert read_labeled([tmp_path / "a.tsv"]).texts == [text, "short"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a\tx\nno tab\n", {}, "line 2 has no tab: write a label, a tab, a text"),
        ("\tx\n", {}, "line 1 has an empty label"),
        ("\u3000\x0b\tx\n", {}, "line 1 has an empty label"),
        ('label,text\n"\n",x\n', {"format": "csv"}, "line 3 has an empty label"),
        ("__label__\u00a0 x\n", {}, "line 1 has an empty label"),
        ("\n\n", {}, "there is no labeled text in"),
        ("", {}, "there is no labeled text in"),
        ("__label__a x\ny\n", {}, "line 2 does not begin with __label__"),
        ("__label__a __label__b x\n", {}, "line 1 has several labels"),
        (
            "a\tx\n",
            {"text_column": "body"},
            "the format tab, without named columns: leave out their names, or give `format='csv'`",
        ),
        ("label,body\na,x\n", {"format": "csv"}, "no column 'text', but label, body: name one with `text_column`"),
        ("label;text\na;x\n", {"format": "csv"}, "only the column 'label;text': separate its columns by commas"),
        ("label,text\na\n", {"format": "csv"}, "line 2 has too few columns"),
        ('label,text\na,"x\n', {"format": "csv"}, "is not CSV"),
        ("a\tx\n", {"format": "xml"}, "`format` must be one of auto, csv, fasttext, tab, not 'xml'"),
        ("label,text\na,x,y\n", {"format": "csv"}, "line 2 has too many columns: quote a text that holds commas"),
        ("label,text,text\na,x,y\n", {"format": "csv"}, "several columns 'text'"),
    ],
)
def test_invalid_labeled_text_is_refused(tmp_path: Path, content: str, options: dict, message: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(FflmError, match=message) as caught:
        read_labeled([tmp_path / "a.txt"], **options)
    assert "\n" not in str(caught.value)


# The inputs of the network.


words = st.lists(st.sampled_from(["a", "b", "c", "d", "x1", "北", "."]), max_size=6).map(" ".join)


@given(
    texts=st.lists(words, min_size=1, max_size=8),
    new=st.lists(words, max_size=8),
    mode=st.sampled_from(["word", "char"]),
    length=st.sampled_from([None, 1, 3]),
)
def test_words_and_bigrams_equal_naive_count(texts: list[str], new: list[str], mode: str, length: int | None) -> None:
    tokenizer = Tokenizer(mode)
    counts = Counter(token for text in texts for token in tokenizer.tokens(text))
    pairs = Counter(
        f"{left} {right}"
        for text in texts
        for left, right in zip(tokenizer.tokens(text), tokenizer.tokens(text)[1:], strict=False)
    )
    counts.update({pair: count for pair, count in pairs.items() if count > 1})
    if not counts:
        return
    input = TextInput(bigrams=True, tokenizer=tokenizer, length=length)
    vocabulary = count_words(input, number_texts(tokenizer, texts), 1, None)
    assert dict(zip(vocabulary.words[1:], vocabulary.counts[1:], strict=True)) == counts
    reader = Reader(input, vocabulary)
    ids, starts = reader.encode([*texts, *new])
    assert all(map(np.array_equal, reader.encode_numbered(number_texts(tokenizer, [*texts, *new])), (ids, starts)))
    reader._seen = SHORT + 1  # from now on, kernels read text
    assert all(map(np.array_equal, reader.encode([*texts, *new]), (ids, starts)))
    rows = reader.rows(ids, starts[:-1], starts[1:])
    for row, text in enumerate([*texts, *new]):
        tokens, expected = tokenizer.tokens(text)[:length], []
        for place, token in enumerate(tokens):
            expected.append(vocabulary.id(token))
            if place + 1 < len(tokens) and f"{token} {tokens[place + 1]}" in vocabulary:
                expected.append(vocabulary.id(f"{token} {tokens[place + 1]}"))
        assert ids[starts[row] : starts[row + 1]].tolist() == expected
        assert rows[row][: len(expected)].tolist() == expected


SPACE = Tokenizer("space")
TEXTS = ["no no film .", "the film the end of the film", "", "good bad good words nobody knows"]
LEXICON = {"positive": ["good", "great"], "negative": ["bad", "unseen"]}


def input_rows(input: TextInput, texts: list[str] = TEXTS) -> tuple[np.ndarray, Reader]:
    vocabulary = count_words(input, number_texts(input.tokenizer, TEXTS), 1, None)
    reader = Reader(input, vocabulary)
    examples = Texts(reader, *reader.encode(texts), np.zeros(len(texts), np.int32))
    return examples.batch(np.arange(len(texts)))[0], reader


def test_pooled_texts_are_padded() -> None:
    rows, reader = input_rows(TextInput("mean"))
    for row, text in zip(rows, TEXTS, strict=True):
        ids = reader.vocabulary.encode(text.split()).tolist()
        assert row.tolist() == ids + [-1] * (7 - len(ids))
    assert input_rows(TextInput("max", length=2))[0].shape == (4, 2)


def test_window_is_truncated_and_padded() -> None:
    rows, reader = input_rows(TextInput("window", length=5))
    padding = reader.vocabulary.start_id
    for row, text in zip(rows, TEXTS, strict=True):
        ids = reader.vocabulary.encode(text.split()[:5]).tolist()
        assert row.tolist() == ids + [padding] * (5 - len(ids))


def test_window_is_padded_with_zeros(data: Path, tmp_path: Path) -> None:
    """The network reads zeros in places without a word, and has no embedding for them that is trained."""
    rows, reader = input_rows(TextInput("window", length=5, padding="zeros"))
    for row, text in zip(rows, TEXTS, strict=True):
        ids = reader.vocabulary.encode(text.split()[:5]).tolist()
        assert row.tolist() == ids + [-1] * (5 - len(ids))
    options = {"input": "window", "length": 4, "embedding": 3, "epochs": 2, "padding": "zeros", "weight_decay": 0.0}
    model = fflm.train_classifier(data / "train.tsv", tmp_path / "m", **options)
    start = start_session([data / "train.tsv"], tmp_path / "start", **options)
    assert np.array_equal(model.parameters.embeddings[-1], start.trainer.parameters.embeddings[-1])
    assert not np.array_equal(model.parameters.embeddings[1], start.trainer.parameters.embeddings[1])
    weights = [array.astype(np.float64) for array in (model.parameters.embeddings, *model.parameters.layer_weights)]
    words = model.reader.vocabulary.encode(["great", "film"])
    scores = weights[1] @ np.concatenate([*weights[0][words], np.zeros(6)]) + model.parameters.output_bias
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(model.predict_proba(["great film"])[0], expected, rtol=1e-5)
    assert TextClassifier.load(tmp_path / "m").reader.input.padding == "zeros"


def test_features_equal_values_computed_by_hand() -> None:
    input = TextInput("features", counts=2, lexicon=LEXICON, present=("no", "Film"), log_length=True)
    texts = [*TEXTS, "unseen new great"]
    rows, reader = input_rows(input, texts)
    assert reader.vocabulary.words[1:3] == ["film", "the"]
    assert reader.width == 7
    expected = [
        [1, 0, 0, 0, 1, 0, np.log(5)],
        [2, 3, 0, 0, 0, 0, np.log(8)],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 2, 1, 0, 0, np.log(7)],
        [0, 0, 1, 1, 0, 0, np.log(4)],
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    examples = Texts(reader, *reader.encode(texts), np.zeros(5, np.int32))
    reader.scale = Scale.of(rows for rows, _ in examples.in_order(2))
    scaled, _ = examples.batch(np.arange(5))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(0), np.asarray(expected).std(0) > 0, atol=1e-5)


@pytest.mark.parametrize("log_length", [False, True])
def test_word_count_is_feature(log_length: bool) -> None:
    input = TextInput("features", lexicon=LEXICON, word_count=True, log_length=log_length)
    rows, _ = input_rows(input)
    assert input.names == ["positive", "negative", "number of words", *(["log length"] if log_length else [])]
    lengths = np.array([4, 7, 0, 6])
    np.testing.assert_array_equal(rows[:, 2], lengths)
    if log_length:
        np.testing.assert_allclose(rows[:, 3], np.log1p(lengths), rtol=1e-6)


def test_words_of_segmented_chinese_are_features(tmp_path: Path) -> None:
    """With the tokenizer ``space``, words of several characters are found; without spaces in the texts there is a warning."""
    rows = [("正", "我 喜欢 这 部 电影"), ("负", "我 讨厌 这 部 电影"), ("正", "很 喜欢"), ("负", "讨厌 极了")] * 6
    write_tsv(tmp_path / "a.tsv", rows)
    (tmp_path / "positive.txt").write_text("喜欢\n精彩\n")
    options = {"input": "features", "tokenizer": "space", "present": ("讨厌",), "lexicons": tmp_path / "positive.txt", "valid": 0}
    classifier = fflm.train_classifier(tmp_path / "a.tsv", tmp_path / "m", word_count=True, **options)
    assert classifier.reader.input.names == ["positive", "has 讨厌", "number of words"]
    assert classifier.predict(["我 喜欢", "我 讨厌"]) == ["正", "负"]
    write_tsv(tmp_path / "b.tsv", [(label, text.replace(" ", "")) for label, text in rows])
    with pytest.warns(
        FflmWarning, match="always 0 there: positive, has 讨厌; check .*, and that texts have spaces between words$"
    ):
        fflm.train_classifier(tmp_path / "b.tsv", tmp_path / "n", word_count=True, **options)
    with pytest.raises(FflmError, match=r"'喜欢' is not a word as the tokenizer splits them: .* `tokenizer='space'`"):
        fflm.train_classifier(tmp_path / "b.tsv", tmp_path / "o", **options | {"tokenizer": "word"})


def test_read_lexicon_formats(tmp_path: Path) -> None:
    (tmp_path / "feelings.tsv").write_text("good\tpositive\nbad\tnegative\n\ngreat\tpositive\n")
    (tmp_path / "colours.txt").write_bytes("red\r\nblue\n\u2028dark\u2028red\u2028\n".encode())
    found = read_lexicon([tmp_path / "feelings.tsv", tmp_path / "colours.txt"])
    assert found == {"positive": ["good", "great"], "negative": ["bad"], "colours": ["red", "blue", "\u2028dark\u2028red\u2028"]}
    (tmp_path / "numbers.txt.gz").write_bytes(gzip.compress("\ufeff10\u00a0000\r\na\u2028b\n".encode(), mtime=0))
    assert read_lexicon([tmp_path / "numbers.txt.gz"]) == {"numbers": ["10\u00a0000", "a\u2028b"]}
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(FflmError, match="has no words"):
        read_lexicon([tmp_path / "empty.txt"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"input": "features", "present": ("喜欢",)},
            "give single words as features, or texts with spaces between words, and `tok",
        ),
        ({"padding": "zeros"}, "only windows of words have padding, the input is mean"),
        ({"padding": "none"}, "`padding` must be one of trained, zeros, not 'none'"),
        ({"input": "tagging"}, "give `tokenizer='space'`"),
        ({"input": "tagging", "tokenizer": SPACE, "length": 4}, "give an odd `length`, not 4"),
        ({"input": "tagging", "tokenizer": SPACE, "bigrams": True}, "leave out `bigrams`"),
        ({"input": "features", "word_count": True, "bigrams": True}, "mean and max, the input is features: leave out `bigrams`"),
        ({"input": "tagging", "tokenizer": SPACE, "word_count": True}, "give `input='features'`"),
        ({"input": "sum"}, "`input` must be one of features, max, mean, tagging, window, not 'sum'"),
        ({"input": "features"}, "give `counts`, `lexicons`"),
        ({"counts": 5}, "give `input='features'`"),
        ({"input": "window", "bigrams": True}, "bigrams are for the inputs mean and max"),
        ({"length": 0}, "`length` must be an integer from 1 to 1,000,000 or None, not 0"),
        ({"length": 10**20}, "from 1 to 1,000,000"),
        ({"input": "features", "present": ("",)}, "'' is not a word as the tokenizer splits them"),
        ({"input": "features", "lexicon": {"a": ["two words"]}}, "'two words' is not a word"),
    ],
)
def test_invalid_text_input_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(FflmError, match=message):
        TextInput(**fields)


# Metrics.


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_report_equals_scikit_learn_metrics(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    report = Report.of(("a", "b", "c", "d"), np.eye(4)[predicted] * 0.7 + 0.1, truth)
    assert np.array_equal(report.confusion, confusion_matrix(truth, predicted, labels=range(4)))
    columns = precision_recall_fscore_support(truth, predicted, labels=range(4), zero_division=0)
    for ours, theirs in zip((report.precision, report.recall, report.f1, report.support), columns, strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert report.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert report.micro_f1 == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert report.zero_one_loss == report.to_dict()["zero_one_loss"] == pytest.approx(zero_one_loss(truth, predicted))
    assert report.loss == pytest.approx(-np.log(np.where(truth == predicted, 0.8, 0.1)).mean())


# Training.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input": "max", "hidden": (8,)},
        {"input": "window", "length": 12, "hidden": (32,)},
        {"bigrams": True, "optimizer": "adamw", "rate": 0.01},
        {"input": "features", "counts": 20},
        {
            "input": "features",
            "present": ("lovely", "great", "dull", "awful"),
            "log_length": True,
            "optimizer": "sgd",
            "rate": 0.5,
        },
        {"tokenizer": "char", "input": "window", "length": 60, "hidden": (64,), "rate": 0.1},
    ],
    ids=str,
)
def test_every_input_learns_to_separate_classes(data: Path, tmp_path: Path, options: dict) -> None:
    classifier = fflm.train_classifier(data / "train.tsv", tmp_path / "m", **options)
    new = read_labeled([data / "new.tsv"])
    report, mistakes = classifier.evaluate(new.texts, new.labels)
    assert report.accuracy >= (0.85 if options.get("input") == "window" else 0.99)
    assert len(mistakes) == report.examples - np.trace(report.confusion)
    assert classifier.about["figures"]["valid"]["examples"] == 60
    chances = classifier.predict_proba(new.texts)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    assert classifier.predict(new.texts) == [classifier.labels[place] for place in chances.argmax(1)]
    again = TextClassifier.load(tmp_path / "m")
    assert np.array_equal(again.predict_proba(new.texts), chances)


def test_mistakes_are_sorted_by_confidence(data: Path, tmp_path: Path) -> None:
    classifier = fflm.train_classifier(data / "train.tsv", tmp_path / "m")
    _, mistakes = classifier.evaluate(["great great great", "dull", "lovely film"], ["bad", "bad", "bad"])
    assert [mistake.text for mistake in mistakes] == ["great great great", "lovely film"]
    assert mistakes[0].probability >= mistakes[1].probability
    assert (mistakes[0].predicted, mistakes[0].truth) == ("good", "bad")
    with pytest.raises(FflmError, match="does not know the label 'ugly', only bad, good"):
        classifier.evaluate(["x"], ["ugly"])


@pytest.mark.parametrize("tokenizer", ["word", "char"])
def test_predict_and_eval_print_one_line_per_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str) -> None:
    """White space in labels and texts breaks neither the table of `predict` nor the list of mistakes of `eval`."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(b"label,text\n" + b'"good\nfilm",great\n"bad\tfilm",dull\n' * 30)
    classifier = fflm.train_classifier("t.csv", "c", tokenizer=tokenizer, rate=0.5, epochs=20)
    assert classifier.labels == ("bad film", "good film")
    texts = ["great", "", "  ", "\u2028", "dull\u2028x\u0085y\x0bz\x0cd\x1ce", "\tdull\tdull", "dull " * 60_000, "great"]
    Path("in").write_bytes("\r\n".join(texts).encode())
    invoke = CliRunner().invoke
    lines = invoke(main, ["classify", "predict", "-m", "c", "--top", "2", "in"]).stdout.split("\n")[:-1]
    assert [len(line.split("\t")) for line in lines] == [4] * len(texts)
    assert [line.split("\t")[0] for line in lines] == classifier.predict(texts)
    assert (lines[0], lines[4]) != (lines[1], lines[5])
    assert [line[:4] for line in (lines[0], lines[5], lines[7])] == ["good", "bad ", "good"]
    rows = [json.loads(line) for line in invoke(main, ["classify", "predict", "-m", "c", "--json", "in"]).stdout.split("\n")[:-1]]
    assert [row["label"] for row in rows] == classifier.predict(texts)

    Path("wrong.csv").write_bytes('label,text\n"bad\nfilm","great\n\n\tgreat\u2028great"\n'.encode())
    shown = invoke(main, ["classify", "eval", "-m", "c", "wrong.csv"]).stdout
    assert shown.splitlines()[-1].endswith("good film, true class bad film: great great great")
    _, mistakes = classifier.evaluate(["great\r\ngreat"], ["bad\n film"])
    assert [mistake.truth for mistake in mistakes] == ["bad film"]


@pytest.mark.parametrize("input", ["mean", "max", "window", "features"])
def test_classifier_accepts_texts_without_words(tmp_path: Path, input: str) -> None:
    write_tsv(tmp_path / "a.tsv", [("a", ""), ("b", "x"), ("a", ""), ("b", "y x"), ("a", "")])
    classifier = fflm.train_classifier(
        tmp_path / "a.tsv", tmp_path / "m", valid=None, batch_size=1, input=input, counts=5 if input == "features" else 0
    )
    assert classifier.predict(["", "x"]) == ["a", "b"]


def test_held_out_texts_are_stratified_by_class(tmp_path: Path) -> None:
    rows = [(label, f"{label} {number}") for label, count in (("a", 300), ("b", 100), ("c", 20)) for number in range(count)]
    run_ = start_session([write_tsv(tmp_path / "a.tsv", rows)], tmp_path / "m", valid=Share(0.1), test=Count(105))
    counts = {name: part.counts(3).tolist() for name, part in run_.data.examples.items()}
    assert sum(map(np.array, counts.values())).tolist() == [300, 100, 20]
    assert np.abs(np.array(counts["valid"]) - [30, 10, 2]).max() <= 1
    assert np.abs(np.array(counts["test"]) - [75, 25, 5]).max() <= 1
    decoded = [
        " ".join(run_.data.reader.vocabulary.decode(part.ids[part.starts[row] : part.starts[row + 1]]))
        for name, part in run_.data.examples.items()
        for row in range(len(part))
        if name == "train"
    ]
    assert len(set(decoded)) == len(decoded)


def test_balanced_training_predicts_rare_class(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def rows(count: int, share: float) -> list[tuple[str, str]]:
        found = []
        for _ in range(count):
            rare = generator.uniform() < share
            words = generator.choice(["x", "y"], 3, p=[0.65, 0.35] if rare else [0.35, 0.65])  # so that the classes overlap
            found.append(("rare" if rare else "usual", " ".join(words)))
        return found

    write_tsv(tmp_path / "a.tsv", rows(4000, 0.05))
    new = rows(2000, 0.5)
    figures = {}
    for balanced in (False, True):
        classifier = fflm.train_classifier(tmp_path / "a.tsv", tmp_path / f"{balanced}", balanced=balanced)
        report, _ = classifier.evaluate([text for _, text in new], [label for label, _ in new])
        figures[balanced] = report.macro_f1
        chances = classifier.predict_proba(["x x x", "y y y"])[:, 0]
        odds = (0.65 / 0.35) ** 3 * (1 if balanced else 0.05 / 0.95)
        assert chances[0] == pytest.approx(odds / (1 + odds), abs=0.1)
    assert figures[True] > 0.7 > 0.5 > figures[False]


def test_resumed_classifier_training_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    for options in ({}, {"optimizer": "adamw", "rate": 0.01, "hidden": (8,), "dropout": 0.2}):
        whole = start_session([data / "train.tsv"], tmp_path / "whole", overwrite=True, epochs=4, **options)
        for _ in whole.events():
            pass
        broken = start_session([data / "train.tsv"], tmp_path / "broken", overwrite=True, epochs=4, **options)
        stops = iter((3, 40, 2, 60))
        finished = False
        while not finished:
            left, finished = next(stops, 10**6), True
            for event in broken.events():
                left -= isinstance(event, Step)
                if not left:
                    broken.save()
                    finished = False
                    break
            broken = ClassifierSession.resume(tmp_path / "broken")
        for name in (WEIGHTS, CHECKPOINT):
            left, right = (load_arrays(tmp_path / folder / name)[0] for folder in ("whole", "broken"))
            assert left.keys() == right.keys()
            assert all(np.array_equal(array, right[key]) for key, array in left.items())
        assert broken.figures == whole.figures


def test_classifier_training_interrupted_in_python_resumes_with_same_result(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(session: Session, event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    whole = fflm.train_classifier(data / "train.tsv", tmp_path / "whole", epochs=2)
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved: `fflm\.resume\('.*m'\)` resumes training"):
        fflm.train_classifier(data / "train.tsv", tmp_path / "m", epochs=2, callback=interrupt)
    with pytest.warns(FflmWarning, match="m is hardly trained, it was saved before its first evaluation"):
        fflm.load(tmp_path / "m")
    message = f"`fflm.resume('{tmp_path / 'm'}')` resumes it"
    assert _as_commands(message) == f"`fflm classify train --resume {tmp_path / 'm'}` resumes it"
    resumed = fflm.resume(tmp_path / "m", verbose=True)
    assert re.search(
        r"^epoch 2/2, .*; valid: loss .*, accuracy .*, macro f1 .* examples/s$", capsys.readouterr().out, re.MULTILINE
    )
    assert isinstance(resumed, TextClassifier)
    assert resumed.about["figures"] == whole.about["figures"]
    for name, array in whole.parameters.items():
        assert np.array_equal(dict(resumed.parameters.items())[name], array)


def test_finished_classifier_training_resumes_for_more_epochs(data: Path, tmp_path: Path) -> None:
    run_ = start_session([data / "train.tsv"], tmp_path / "m", epochs=2, patience=0)
    for _ in run_.events():
        pass
    again = ClassifierSession.resume(tmp_path / "m", epochs=3)
    assert [event.epoch for event in again.events() if isinstance(event, Evaluation)] == [3]
    with pytest.raises(FflmError, match="3 epochs are done already"):
        ClassifierSession.resume(tmp_path / "m", epochs=2)


def test_pretrained_vectors_initialize_embeddings_and_can_be_frozen(data: Path, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("3 2\ngreat 1 0\ndull 0 1\nelsewhere 5 5\n")
    classifier = fflm.train_classifier(data / "train.tsv", tmp_path / "m", vectors=tmp_path / "v.txt", frozen=True)
    embeddings, vocabulary = classifier.parameters.embeddings, classifier.reader.vocabulary
    assert embeddings.shape == (len(vocabulary) + 1, 2)
    assert embeddings[vocabulary.id("great")].tolist() == [1, 0]
    assert embeddings[vocabulary.id("dull")].tolist() == [0, 1]
    free = fflm.train_classifier(data / "train.tsv", tmp_path / "m2", vectors=tmp_path / "v.txt")
    assert free.parameters.embeddings[vocabulary.id("great")].tolist() != [1, 0]

    text = tmp_path / "text.txt"
    text.write_text("the film was great\nthe plot was dull\n" * 60)
    model = fflm.train(text, tmp_path / "lm", embedding=6, hidden=(8,), window=2, epochs=1)
    run_ = start_session([data / "train.tsv"], tmp_path / "m3", vectors=tmp_path / "lm")
    for word in ("film", "great"):
        row = run_.trainer.parameters.embeddings[run_.data.reader.vocabulary.id(word)]
        assert np.array_equal(row, model.parameters.embeddings[model.vocabulary.id(word)])


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", "x"), ("a", "y")], {"valid": None}, "all texts have the label 'a'"),
        ([("a", "x"), ("b", "y")], {}, "there are 2 texts, 0 of them cannot be held out for valid"),
        ([("a", "x"), ("b", "y")], {"valid": Count(5)}, "5 of them cannot be held out for valid"),
        ([("a", "x"), ("b", "y")], {"valid": None, "frozen": True}, "only embeddings that are given can be frozen"),
        ([("a", "x"), ("b", "y")], {"valid": None, "colour": "red"}, "unknown setting 'colour'"),
        ([("a", ""), ("b", "")], {"valid": None}, "the texts have no words"),
        ([("a", "x"), ("b", "y")], {"valid": None, "epochs": 1.5}, "`epochs` must be an integer from 1 to 1,000,000, not 1.5"),
        (
            [("a", "x"), ("b", "y")],
            {"valid": None, "input": "features", "counts": 1, "vectors": Path("v")},
            "features have no embeddings",
        ),
        ([("a", "x"), ("b", "y")], {"valid": None, "loss": "nce"}, "unknown setting 'loss'"),
        ([("a", "x"), ("b", "y")], {"valid": None, "rate": -1.0}, "`rate` must be a number above 0, not -1.0"),
    ],
)
def test_invalid_classifier_training_is_refused(tmp_path: Path, rows: list, options: dict, message: str) -> None:
    write_tsv(tmp_path / "a.tsv", rows)
    with pytest.raises(FflmError, match=message):
        start_session([tmp_path / "a.tsv"], tmp_path / "m", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tsv"]


def test_only_text_of_class_is_not_held_out(tmp_path: Path) -> None:
    rows = [("a", f"x{number}") for number in range(9)] + [("b", "y")]
    for seed in range(1, 9):
        run_ = start_session([write_tsv(tmp_path / "a.tsv", rows)], tmp_path / f"m{seed}", valid=Share(0.5), seed=seed)
        assert run_.data.examples["train"].counts(2)[1] == 1


def test_validation_label_missing_from_training_is_refused(data: Path, tmp_path: Path) -> None:
    valid = write_tsv(tmp_path / "v.tsv", [("ugly", "x")])
    with pytest.raises(FflmError, match="the label 'ugly' is in the valid text, but not in that for training"):
        start_session([data / "train.tsv"], tmp_path / "m", valid=(valid,))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "vocabulary.tsv"])
def test_damaged_files_of_classifier_are_refused(data: Path, tmp_path: Path, name: str) -> None:
    fflm.train_classifier(data / "train.tsv", tmp_path / "m", epochs=1)
    content = (tmp_path / "m" / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", content.replace(b"a", b"b")):
        (tmp_path / "m" / name).write_bytes(damaged)
        with pytest.raises(FflmError):
            TextClassifier.load(tmp_path / "m", verify=True)


def test_default_path_of_classifier() -> None:
    assert model_path(None, (Path("x/reviews.tsv.gz"),), "classifier") == Path("reviews.classifier")
    assert model_path(None, (Path("-"),), "classifier") == Path("stdin.classifier")


# The commands.


@pytest.mark.slow
def test_classify_commands_train_eval_predict_info_and_plot(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained = run("classify", "train", data / "train.tsv", "--test", "10%")
    assert "train: 480 texts" in trained.stderr
    assert "classes: bad, good" in trained.stderr
    assert trained.stdout.startswith("classifier train.classifier, from epoch")
    assert "test  accuracy 100.00%, macro F1 1.0000" in trained.stdout

    evaluated = run("classify", "eval", data / "new.tsv")
    assert "accuracy 100.00%" in evaluated.stdout
    assert "confusion matrix: rows are true classes" in evaluated.stdout
    assert "\n0-1 loss 0.0000, the share of wrong predictions\n" in evaluated.stdout
    figures = json.loads(run("classify", "eval", data / "new.tsv", "--json").stdout)
    assert figures["examples"] == 200
    assert sum(map(sum, figures["confusion"])) == 200

    predicted = run("classify", "predict", "--top", "2", input="great film\n\ndull\n").stdout.splitlines()
    assert len(predicted) == 3
    assert predicted[0].split("\t")[0] == "good"
    assert predicted[2].split("\t")[::2] == ["bad", "good"]
    lines = run("classify", "predict", "--json", input="great film\ndull").stdout.splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["good", "bad"]

    shown = run("info", "train.classifier").stdout
    assert "classifier train.classifier, started" in shown
    assert "classes, texts of the training set" in shown
    assert json.loads(run("info", "train.classifier", "--json").stdout)["labels"] == ["bad", "good"]
    assert run("plot", "train.classifier", "-o", "c.png").stdout == "c.png\n"
    assert (tmp_path / "c.png").stat().st_size > 10_000
    again = run("classify", "train", "--resume", "train.classifier", "--json")
    assert json.loads(again.stdout)["test"]["accuracy"] == 1


def test_language_models_and_classifiers_are_distinguished(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fflm.train_classifier(data / "train.tsv", epochs=1)
    assert "there is no model in this folder" in run("generate", status=1).stderr
    assert "is a text classifier, not a language model" in run("next", "-m", "train.classifier", status=1).stderr
    (tmp_path / "t.txt").write_text("one two three four\n" * 50)
    fflm.train("t.txt", epochs=1, window=2, hidden=(4,), embedding=4)
    assert "t.model is not a text classifier" in run("classify", "predict", "-m", "t.model", status=1).stderr
    assert run("classify", "predict", input="great").stdout
    assert "plot them separately" in run("plot", "t.model", "train.classifier", status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give labeled text to train on, or --resume a classifier"),
        (("missing.tsv",), "cannot read missing.tsv"),
        (("{data}", "--counts", "5"), "give --input features"),
        (("{data}", "--resume", "x", "--rate", "1"), "leave out INPUTS, --rate"),
        (("{data}", "--valid", "5000"), "5000 of them cannot be held out for valid"),
        (("{data}", "--valid", ""), "--valid must be a path, not ''"),
        (("{data}", "--vectors", "v", "--embedding", "5"), "leave out --embedding"),
        (("--resume", "nowhere"), "train one with `fflm classify train`"),
        (("{data}", "--vectors", "nowhere"), "cannot read nowhere"),
        (("{data}", "--tokenizer", "subword"), "'subword' is not one of 'word', 'char', 'space', 'chinese'"),
    ],
)
def test_classify_train_refuses_invalid_arguments(data: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    filled = [argument.format(data=data / "train.tsv") for argument in arguments]
    result = command("classify", "train", *filled, folder=tmp_path)
    assert result.returncode > 0
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_existing_classifier_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    start_session([data / "train.tsv"], tmp_path / "m", epochs=1)
    before = (tmp_path / "m" / CHECKPOINT).stat().st_mtime_ns
    with pytest.raises(FflmError, match=r"exists: `fflm\.resume"):
        start_session([data / "train.tsv"], tmp_path / "m")
    assert (tmp_path / "m" / CHECKPOINT).stat().st_mtime_ns == before


def test_old_classifier_is_kept_until_new_one_has_weights(data: Path, tmp_path: Path) -> None:
    start_session([data / "train.tsv"], tmp_path / "m", epochs=1).finish()
    before = snapshot(tmp_path / "m")
    run_ = start_session([data / "train.tsv"], tmp_path / "m", overwrite=True, epochs=2)
    next(run_.events())
    assert {name: content for name, content in snapshot(tmp_path / "m").items() if name != LOCK} == before
    run_.finish()
    assert TextClassifier.load(tmp_path / "m").about["training"]["epochs"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_second_training_in_same_folder_is_refused(data: Path, tmp_path: Path) -> None:
    first = start_session([data / "train.tsv"], tmp_path / "m", epochs=1).events()
    next(first)
    for second in (
        lambda: start_session([data / "train.tsv"], tmp_path / "m", overwrite=True),
        lambda: ClassifierSession.resume(tmp_path / "m"),
    ):
        with pytest.raises(FflmError, match="is already training in"):
            second()
    for _ in first:
        pass
    for _ in ClassifierSession.resume(tmp_path / "m", epochs=2).events():
        pass
