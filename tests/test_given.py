"""Text in memory in place of files: the same corpora and models, and what is refused."""

from pathlib import Path

import pytest
from command import STORIES

import fflm
from fflm.errors import FflmError
from fflm.given import Text
from fflm.models.classifier.data import LabeledSource
from fflm.text.reading import read_chunks
from fflm.text.tokenize import TextSource, tokenize

TINY = {"embedding": 4, "hidden": (4,), "window": 2, "batch_size": 64}


@pytest.mark.parametrize("size", [3, 7, 1000])
@pytest.mark.parametrize(
    "text", ["a b\n\nc d e f g h\n", "a b\r\nc\rd\n\r\n e", "the last line", "\ufeffa b\n", "é😀 x\n" * 3, ""]
)
def test_text_in_memory_is_read_as_file(tmp_path, text, size):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    chunks = list(read_chunks([path], size=size))
    assert "".join(read_chunks([Text(text)], size=size)) == "".join(chunks)
    lines = text.splitlines(keepends=True)
    for given in (lines, [line.rstrip("\r\n") for line in lines]):
        assert "".join(read_chunks([Text(given)], size=size)) == "".join(chunks)
    assert list(read_chunks([path, Text(text), path], size=size)) == [*chunks, *read_chunks([Text(text)], size=size), *chunks]


def test_corpus_of_text_in_memory_is_that_of_file(text, tmp_path):
    lines = Path(text).read_text(encoding="utf-8").splitlines()
    held_out = ["the cat sat", "the dog ran"]
    Path("held-out.txt").write_text("\n".join(held_out), encoding="utf-8")
    expected = tokenize(TextSource([text], valid="held-out.txt", test="10%"), tmp_path / "file.ids").fingerprint
    for number, given in enumerate((lines, iter(lines), "\n".join(lines))):
        source = TextSource(Text(given), valid=Text(held_out), test="10%")
        assert tokenize(source, tmp_path / f"{number}.ids").fingerprint == expected


def test_training_on_text_in_memory_resumes(text):
    model = fflm.train(Text(STORIES), "memory.model", epochs=1, **TINY)
    file = fflm.train(text, "file.model", epochs=1, **TINY)
    assert model.about["figures"] == file.about["figures"]
    resumed, file = (fflm.resume(path, epochs=2) for path in ("memory.model", "file.model"))
    assert resumed.about["figures"] == file.about["figures"]
    assert fflm.train_ngram(Text(STORIES), "memory.ngram").about["figures"] == fflm.train_ngram(text).about["figures"]


def test_text_in_memory_is_scored_and_tuned_on_as_file(text):
    model = fflm.train_ngram(text, order=2)
    expected = model.perplexity(text)
    assert model.perplexity(Text(STORIES)) == expected
    assert model.perplexity(Text(STORIES), text).tokens == 2 * expected.tokens
    given = text, Text(STORIES), iter([Text(STORIES)])
    file, memory, generated = (fflm.mix("text.ngram", cache=9, tune=each) for each in given)
    assert file.weights.tolist() == memory.weights.tolist() == generated.weights.tolist()
    assert memory.tuning["source"] == "the text in memory"
    for nothing, message in (([], "`tune` is empty"), ("", "`tune` must be a path"), (["the cat sat", ""], "there is no file")):
        with pytest.raises(FflmError, match=message):
            fflm.mix("text.ngram", tune=nothing)


def test_labeled_text_in_memory_is_that_of_file(tmp_path):
    texts, labels = [f"text {number}\tof\na few lines" for number in range(40)], [f"a  {number % 2}" for number in range(40)]
    path = tmp_path / "labeled.tsv"
    path.write_text("".join(f"a {number % 2}\ttext {number}\tof a few lines\n" for number in range(40)), encoding="utf-8")
    given = LabeledSource(Text.labeled(texts, labels))
    assert given.read(1) == given.read(1) == LabeledSource(path).read(1)
    once = LabeledSource(Text.labeled(texts, iter(labels)))
    assert once.read(1) == given.read(1)
    with pytest.raises(FflmError, match="an iterator, which was read before"):
        once.read(1)
    tagged = Text("the\tX\ncat\tY\n\na\tX\n\n" * 10)
    assert len(LabeledSource(tagged, valid=0).read(1, tagged=True)["train"]) == 20


@pytest.mark.parametrize("lines", [3, None, b"text", {"a": 1}])
def test_text_refuses_what_is_not_text(lines):
    with pytest.raises(FflmError, match="`lines` must be a string or an iterable of strings"):
        Text(lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Text(["the cat", 3]), "line 2 of the text in memory must be a string, not of the type int"),
        (Text([]), "there are no words in the text in memory"),
        (Text("the \0 cat"), "NUL characters"),
        (Text(["the \ud800 cat"]), "unpaired surrogates"),
    ],
)
def test_training_refuses_bad_text_in_memory(tmp_path, given, message):
    with pytest.raises(FflmError, match=message):
        fflm.train_ngram(given, tmp_path / "m.ngram")
    assert not list(tmp_path.iterdir())


def test_refusals_say_what_to_do(tmp_path):
    with pytest.raises(FflmError, match="a text in memory has no name: give `path`"):
        fflm.train(Text("the cat"))
    once = Text(iter(["the cat sat"]))
    list(once.pieces(10))
    with pytest.raises(FflmError, match="came from an iterator, which was read before: give a list instead"):
        fflm.train_ngram(once, tmp_path / "m.ngram")
    for texts, labels, message in (
        (["a", "b"], ["x"], "`texts` and `labels` have different lengths"),
        (["a", "b"], [0, 1], "label 1 must be a string"),
        (["a", None], ["x", "y"], "text 2 must be a string"),
        (["a", "b"], ["x", " "], "the text in memory, line 2 has an empty label"),
    ):
        with pytest.raises(FflmError, match=message):
            fflm.train_classifier(Text.labeled(texts, labels), tmp_path / "m.classifier")
    with pytest.raises(FflmError, match="`paths` must be a path, not Text"):
        fflm.mix(Text("the cat"))
