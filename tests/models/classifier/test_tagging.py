"""Classifiers that tag words: reading tagged text, windows around words, training, prediction, and the commands."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fflm
from fflm import FflmError, TextClassifier
from fflm.cli import main
from fflm.models.classifier.features import Reader, Texts, count_words, number_texts
from fflm.models.classifier.reading import read_tagged
from fflm.models.classifier.settings import TAGGING, TextInput
from fflm.models.classifier.train import ClassifierSession, start_session
from fflm.text.tokenizer import Tokenizer
from fflm.training.events import Step

SPACE = Tokenizer("space")
NOUNS, VERBS = ("dog", "cat", "light", "walk"), ("sees", "hears", "light", "walk")


def random_sentences(count: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Return sentences of words and of tags, in which some words are nouns after a determiner, and verbs elsewhere."""
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        phrase = [("the", "DET"), (str(generator.choice(NOUNS)), "NOUN")]
        pairs = [*phrase, (str(generator.choice(VERBS)), "VERB"), ("the", "DET"), (str(generator.choice(NOUNS)), "NOUN")]
        words, tags = zip(*[*pairs, (".", "PUNCT")][0 if generator.integers(2) else 2 :], strict=True)
        result.append((list(words), list(tags)))
    return result


def write_tags(path: Path, sentences: list[tuple[list[str], list[str]]]) -> Path:
    path.write_text("\n".join("".join(f"{word}\t{tag}\n" for word, tag in zip(*pairs, strict=True)) for pairs in sentences))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tags")
    write_tags(folder / "train.tsv", random_sentences(300))
    write_tags(folder / "new.tsv", random_sentences(40, seed=1))
    return folder


CONLLU = """\
# sent_id = 1
# text = I can't.
1\tI\tI\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2-3\tcan't\t_\t_\t_\t_\t_\t_\t_\t_
2\tca\tcan\tAUX\tMD\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\t_
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_

1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
"""


def test_tagged_text_is_read_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(CONLLU)
    (tmp_path / "b.tsv").write_bytes(b"# a comment\r\nI\tPRON\r\nca\tAUX\n n't \tPART \n\n \n\nGo\tVERB")
    for name in ("a.conllu", "b.tsv"):
        found = read_tagged([tmp_path / name])
        assert (found.texts, found.labels) == (["I ca n't", "Go"], ["PRON AUX PART", "VERB"])
    (tmp_path / "c.tsv").write_text("#\tSYM\n1\u00a0000\tNUM\n")
    assert read_tagged([tmp_path / "c.tsv"]).texts == ["# 1\u00a0000"]
    assert len(read_tagged([tmp_path])) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tX\nb\n", "line 2 has 1 columns: write a word, a tab and its tag, or the ten columns of CoNLL-U"),
        ("a\tX\tY\n", "line 1 has 3 columns"),
        ("a b\tX\n", "line 1 must have one word, a tab and one tag, without spaces"),
        ("\tX\n", "line 1 must have one word"),
        ("a\tX\n\nb\t\n", "line 3 must have one word, a tab and one tag"),
        ("a\tX Y\n", "line 1 must have one word, a tab and one tag"),
        ("# nothing\n\n", "there are no tagged words in"),
    ],
)
def test_invalid_tagged_text_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(FflmError, match=message) as caught:
        read_tagged([tmp_path / "a.tsv"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padding", ["trained", "zeros"])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_windows_around_words_end_at_sentences(length: int, padding: str) -> None:
    sentences = ["a b c", "", "d", "b a"]
    input = TextInput("tagging", tokenizer=SPACE, length=length, padding=padding)
    vocabulary = count_words(input, number_texts(SPACE, sentences), 1, None)
    reader = Reader(input, vocabulary)
    ids, starts = reader.encode(sentences)
    texts = Texts(reader, ids, starts, np.arange(6, dtype=np.int32))
    rows, labels = texts.batch(np.array([5, 0, 1, 2, 3, 4]))
    assert labels.tolist() == [5, 0, 1, 2, 3, 4]
    beyond = vocabulary.start_id if padding == "trained" else -1
    expected = []
    for sentence in sentences:
        words = [beyond] * (length // 2) + vocabulary.encode(sentence.split()).tolist() + [beyond] * (length // 2)
        expected += [words[place : place + length] for place in range(len(sentence.split()))]
    assert rows.tolist() == [expected[5], *expected[:5]]


@pytest.mark.parametrize("options", [{}, {"padding": "zeros"}, {"length": 3, "hidden": (), "lowercase": True}], ids=str)
def test_tagger_learns_tags_that_depend_on_context(data: Path, tmp_path: Path, options: dict) -> None:
    tagger = fflm.train_classifier(data / "train.tsv", tmp_path / "m", input="tagging", epochs=5, **options)
    new = read_tagged([data / "new.tsv"])
    assert tagger.predict(new.texts) == new.labels
    report, mistakes = tagger.evaluate(new.texts, new.labels)
    assert (report.examples, report.accuracy, report.zero_one_loss, mistakes) == (
        sum(map(len, map(str.split, new.texts))),
        1,
        0,
        [],
    )
    assert tagger.predict_proba(["the light .", "", "light"]).shape == (4, 4)
    assert tagger.predict(["", "the light"]) == ["", "DET NOUN"]
    again = TextClassifier.load(tmp_path / "m")
    assert np.array_equal(again.predict_proba(new.texts), tagger.predict_proba(new.texts))
    sizes = tagger.about["texts"]
    assert (sizes["train"]["sentences"], sizes["valid"]["sentences"]) == (270, 30)
    assert sizes["train"]["texts"] == sizes["train"]["words"]
    for name, default in TAGGING.items():
        if name not in options and name in ("hidden", "length"):
            assert default == (tagger.config.hidden if name == "hidden" else tagger.config.window)


def test_mistake_of_tagger_shows_word_in_its_sentence(data: Path, tmp_path: Path) -> None:
    tagger = fflm.train_classifier(data / "train.tsv", tmp_path / "m", input="tagging", epochs=5)
    _, mistakes = tagger.evaluate(["the dog .", "the light ."], ["DET NOUN PUNCT", "DET VERB PUNCT"])
    assert [(each.text, each.predicted, each.truth) for each in mistakes] == [("the [light] .", "NOUN", "VERB")]
    with pytest.raises(FflmError, match="sentence 2 has 2 words and 1 tags: give each word one tag"):
        tagger.evaluate(["the dog", "the light"], ["DET NOUN", "DET"])
    with pytest.raises(FflmError, match="does not know the label 'X'"):
        tagger.evaluate(["the"], ["X"])


def test_resumed_training_of_tagger_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    whole = fflm.train_classifier(data / "train.tsv", tmp_path / "whole", input="tagging", epochs=2)
    broken = start_session([data / "train.tsv"], tmp_path / "m", input="tagging", epochs=2)
    for event in broken.events():
        if isinstance(event, Step) and event.step == 7:
            broken.save()
            break
    for _ in ClassifierSession.resume(tmp_path / "m").events():
        pass
    for name, array in TextClassifier.load(tmp_path / "m").parameters.items():
        assert np.array_equal(dict(whole.parameters.items())[name], array)


def test_every_tag_stays_in_training_text(tmp_path: Path) -> None:
    sentences = [*random_sentences(9), (["oh"], ["INTJ"])]
    for seed in range(1, 9):
        run = start_session(
            [write_tags(tmp_path / "a.tsv", sentences)],
            tmp_path / f"m{seed}",
            input="tagging",
            valid="30%",
            test="20%",
            seed=seed,
        )
        assert run.data.examples["train"].counts(len(run.data.labels)).min() > 0
        assert {name: part["sentences"] for name, part in run.data.sizes.items()} == {"train": 5, "valid": 3, "test": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "leave out `format='csv'`"),
        ({"tokenizer": "word"}, "give `tokenizer='space'`"),
        ({"valid": 500}, "there are 300 sentences, 500 of them cannot be held out for valid"),
        ({"vectors": "nowhere"}, "nowhere"),
    ],
)
def test_invalid_training_of_tagger_is_refused(data: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(FflmError, match=message):
        start_session([data / "train.tsv"], tmp_path / "m", input="tagging", **options)
    assert not list(tmp_path.iterdir())


def test_word_that_normalization_splits_is_refused(tmp_path: Path) -> None:
    write_tags(tmp_path / "a.tsv", [(["1\u00a0000", "x"], ["NUM", "X"])] * 4)
    with pytest.raises(FflmError, match="sentence 1 has 3 words and 2 tags"):
        start_session([tmp_path / "a.tsv"], tmp_path / "m", input="tagging", normalization="NFKC", valid=0)


def test_commands_train_predict_and_evaluate_tags(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke = CliRunner().invoke
    result = invoke(main, ["classify", "train", str(data / "train.tsv"), "--input", "tagging", "--epochs", "5"])
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^train: 270 sentences, [\d,]+ words$", result.stderr, re.MULTILINE)
    assert " words/s\n" in result.stderr
    assert re.search(r"nats per word, over \d+ words$", result.stdout)
    assert TextClassifier.load(tmp_path / "train.classifier").config.hidden == TAGGING["hidden"]

    tagged = invoke(main, ["classify", "predict", "-q"], input="the light walk the cat .\n\nwalk the dog")
    lines = "the/DET light/NOUN walk/VERB the/DET cat/NOUN ./PUNCT / / walk/VERB the/DET dog/NOUN /".replace("/", "\t").split(" ")
    assert tagged.stdout.split("\n")[:-1] == [line.strip() for line in lines]
    pairs = invoke(main, ["classify", "predict", "-q", "--top", "2"], input="the").stdout
    assert re.fullmatch(r"the\tDET\t[01]\.\d{4}\t[A-Z]+\t0\.\d{4}\n\n", pairs)
    (line,) = invoke(main, ["classify", "predict", "-q", "--json"], input="the light").stdout.splitlines()
    about = json.loads(line)
    assert (about["words"], about["tags"], len(about["probabilities"])) == (["the", "light"], ["DET", "NOUN"], 2)

    Path("tagged.tsv").write_text(tagged.stdout)
    assert "0-1 loss 0.0000, the share of wrong predictions" in invoke(main, ["classify", "eval", "-q", "tagged.tsv"]).stdout
    assert json.loads(invoke(main, ["classify", "eval", "-q", "tagged.tsv", "--json"]).stdout)["zero_one_loss"] == 0
    assert "classes, words of the training set" in invoke(main, ["info", "train.classifier"]).stdout
    refused = invoke(main, ["classify", "eval", "-q", "tagged.tsv", "--format", "csv"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "leave out --format csv" in refused.stderr
    refused = invoke(main, ["classify", "train", "tagged.tsv", "--input", "tagging", "--length", "4"])
    assert "give an odd --length, not 4" in refused.stderr
