"""Tokenizing texts equals a direct computation in every mode, and corpora are written completely or not at all."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fflm import workers
from fflm.errors import FflmError
from fflm.text import tokenize as module
from fflm.text.corpus import Corpus
from fflm.text.holdout import Count, Share
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.text.vocabulary import Vocabulary, VocabularyRule

ALL_WORDS = VocabularyRule(min_count=1)
STREAM, FLAT, SENTENCES = TextSettings(), TextSettings(line_ends=False), TextSettings(mode="sentence")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat\n\nthe dog <s> </s> ran\na cat and the dog\n", encoding="utf-8")
    return path


def tokens_of(corpus, part="train"):
    return corpus.vocabulary.decode(corpus.parts[part].ids[:])


def test_tokenize_in_each_mode(text, tmp_path):
    flat = ["the", "cat", "sat", "the", "dog", "<unk>", "<unk>", "ran", "a", "cat", "and", "the", "dog"]
    settings = {
        name: TextSettings(Tokenizer("space"), mode, ends)
        for name, mode, ends in [("f", "stream", False), ("l", "stream", True), ("s", "sentence", True)]
    }
    made = {name: tokenize(TextSource([text], setting, ALL_WORDS, None), tmp_path / name) for name, setting in settings.items()}
    assert tokens_of(made["f"]) == flat
    assert tokens_of(made["l"]) == [*flat[:3], "\n", "\n", *flat[3:8], "\n", *flat[8:], "\n"]
    assert tokens_of(made["s"]) == [*flat[:3], "\n", *flat[3:8], "\n", *flat[8:], "\n"]
    part = made["l"].parts["train"]
    assert (part.tokens, part.unknown, part.ends, part.characters) == (17, 2, 4, len(text.read_text()))
    assert made["l"].vocabulary.counts[:3] == [2, 4, 3]
    assert part.ids.dtype == np.uint16
    assert not part.ids[:].flags.writeable


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "don't", "猫", ".", "</s>"]), max_size=5).map(" ".join), min_size=4, max_size=12
    ),
    how=st.sampled_from([STREAM, FLAT, SENTENCES, TextSettings(Tokenizer("char", lowercase=True))]),
    valid=st.none() | st.integers(1, 3).map(Count) | st.sampled_from([0.1, 0.3]).map(Share),
    test=st.none() | st.sampled_from([1, 2, 7]).map(Count),  # the last sentence has 7 tokens
    source=st.sampled_from(["train", "all"]),
)
def test_tokenize_equals_direct_computation(tmp_path_factory, lines, how, valid, test, source):
    folder = tmp_path_factory.mktemp("corpus")
    content = "".join(f"{line}\n" for line in [*lines, "a b c a b", "a b c d e f"])
    (folder / "text").write_text(content, encoding="utf-8")
    tokens = how.tokens(how.tokenizer.normalize(content))

    def boundary(position):
        while how is SENTENCES and tokens[position - 1] != LINE_END:
            position += 1
        return position

    sizes = [size.tokens if isinstance(size, Count) else round(size.value * len(tokens)) if size else 0 for size in (valid, test)]
    starts = [0, boundary(len(tokens) - sum(sizes)), boundary(len(tokens) - sizes[1]), len(tokens)]
    wanted = {"train": (0, starts[1]), "valid": (starts[1], starts[2]), "test": (starts[2], starts[3])}
    wanted = {name: span for name, span in wanted.items() if name == "train" or {"valid": valid, "test": test}[name]}
    if any(set(tokens[slice(*span)]) <= {LINE_END} for span in wanted.values()):
        with pytest.raises(FflmError, match=r"hold out more|no words in train"):
            tokenize(TextSource([folder / "text"], how, ALL_WORDS, valid, test), folder / "out")
        return
    corpus = tokenize(TextSource([folder / "text"], how, VocabularyRule(1, source=source), valid, test), folder / "out")
    counted = tokens if source == "all" else tokens[slice(*wanted["train"])]
    expected = Vocabulary.from_counts(Counter(counted), ends=how.ends)
    assert (corpus.vocabulary.words, corpus.vocabulary.counts) == (expected.words, expected.counts)
    assert list(corpus.parts) == list(wanted)
    for name, (start, stop) in wanted.items():
        ids = expected.encode(tokens[start:stop])
        assert corpus.parts[name].ids[:].tolist() == ids.tolist()
        assert corpus.parts[name].unknown == np.count_nonzero(ids == 0)
        assert corpus.parts[name].ends == (np.count_nonzero(ids == 1) if how.ends else 0)
    assert sum(part.characters for part in corpus.parts.values()) == len(how.tokenizer.normalize(content))
    corpus.verify()


@pytest.mark.slow
def test_tokenize_with_worker_processes_gives_same_corpus(tmp_path, monkeypatch):
    """A text of many chunks and blocks gives the same corpus with one process and with two."""
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "sat", "猫", "well-known", ",", "\n", "\n\n"])
    path = tmp_path / "text"
    path.write_text(" ".join(words[rng.integers(len(words), size=1_200_000)]), encoding="utf-8")
    seen = []
    one = tokenize(TextSource([path], SENTENCES, ALL_WORDS, Share(0.01)), tmp_path / "one", processes=1, progress=seen.append)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    monkeypatch.setattr(workers, "SERIAL_SECONDS", -1)
    monkeypatch.setattr(workers, "PATIENCE", 60)
    two = tokenize(TextSource([path], SENTENCES, ALL_WORDS, Share(0.01)), tmp_path / "two", processes=2)
    assert one.fingerprint == two.fingerprint
    assert len(seen) > 16
    assert sum(seen) == sum(part.characters for part in one.parts.values()) == len(path.read_text("utf-8")) + 1
    expected = SENTENCES.encode_text(path.read_text("utf-8") + "\n", one.vocabulary)
    assert np.array_equal(np.concatenate([part.ids[:] for part in one.parts.values()]), expected)
    two.verify()


SCRIPT_THAT_WAITS = """
import sys, time
from pathlib import Path
from fflm import workers
from fflm.text import tokenize as module

def wait(characters):
    if multiprocessing.active_children():
        print("working", flush=True)
        time.sleep(1000)

if __name__ == "__main__":
    import multiprocessing
    workers.SERIAL_SECONDS, workers.PATIENCE = -1, 60
    text, out = map(Path, sys.argv[1:])
    module.tokenize(module.TextSource([text], valid=None), out, processes=2, progress=wait)
"""


def test_worker_processes_end_when_parent_is_killed(tmp_path):
    (tmp_path / "text").write_text("the cat sat on the mat .\n" * 100_000)
    program = [sys.executable, "-c", SCRIPT_THAT_WAITS, tmp_path / "text", tmp_path / "ids"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"working\n"
        process.kill()
        process.communicate(timeout=60)  # the pipe closes when the last process that inherited it has ended


def test_valid_part_from_file_and_test_part_by_size(text, tmp_path):
    (tmp_path / "valid").write_text("the bird sat", encoding="utf-8")
    corpus = tokenize(TextSource([text], STREAM, ALL_WORDS, [tmp_path / "valid"], Count(6)), tmp_path / "out")
    assert list(corpus.parts) == ["train", "valid", "test"]
    assert tokens_of(corpus, "valid") == ["the", "<unk>", "sat", "\n"]
    assert tokens_of(corpus, "test") == ["<unk>", "cat", "<unk>", "the", "dog", "\n"]
    everything = tokenize(TextSource([text], STREAM, VocabularyRule(1, source="all"), [tmp_path / "valid"]), tmp_path / "all")
    assert "bird" in everything.vocabulary
    assert everything.vocabulary.rule == "words in train and valid"


@pytest.mark.parametrize(("count", "held_out"), [(6, 6), (7, 6), (11, 6), (12, 12), (13, 12)])
def test_held_out_parts_start_at_sentence_boundary(text, tmp_path, count, held_out):
    corpus = tokenize(
        TextSource([text], TextSettings(Tokenizer("space"), "sentence"), ALL_WORDS, None, Count(count)), tmp_path / "out"
    )
    assert corpus.parts["test"].tokens == held_out


def test_vocabulary_from_word_list(text, tmp_path):
    (tmp_path / "words").write_text("CAT\nbird\n", encoding="utf-8")
    rule = VocabularyRule(words=tmp_path / "words")
    corpus = tokenize(TextSource([text], TextSettings(Tokenizer(lowercase=True), line_ends=False), rule, None), tmp_path / "out")
    assert corpus.vocabulary.words == ["<unk>", "cat", "bird"]
    assert corpus.parts["train"].ids[:4].tolist() == [0, 1, 0, 0]


def test_ids_are_uint32_when_vocabulary_exceeds_uint16(tmp_path):
    path = tmp_path / "text"
    for words, dtype in ((65_534, np.uint16), (65_535, np.uint32)):
        path.write_text(" ".join(map(str, range(words))), encoding="utf-8")
        rule = VocabularyRule(1, None)
        corpus = tokenize(
            TextSource([path], TextSettings(Tokenizer("space"), line_ends=False), rule, None), tmp_path / str(words)
        )
        assert len(corpus.vocabulary) == words + 1
        assert corpus.parts["train"].ids.dtype == dtype
        assert sorted(corpus.parts["train"].ids[:].tolist()) == list(range(1, words + 1))


def test_encode_text_ends_sentence_only_at_line_end(text, tmp_path):
    corpus = tokenize(TextSource([text], SENTENCES, ALL_WORDS, None), tmp_path / "out")
    assert corpus.vocabulary.decode(SENTENCES.encode_text("\n the dog\n\n\na cat", corpus.vocabulary)) == [
        "the",
        "dog",
        "\n",
        "a",
        "cat",
    ]
    assert corpus.vocabulary.decode(SENTENCES.encode_text("a cat\n", corpus.vocabulary)) == ["a", "cat", "\n"]


def test_text_settings_round_trip_through_json(text, tmp_path):
    how = TextSettings(Tokenizer("char", True, "NFKC"), "sentence")
    assert TextSettings.from_dict(json.loads(json.dumps(how.to_dict()))) == how
    assert tokenize(TextSource([text], how, ALL_WORDS, None), tmp_path / "out").settings == how
    for damaged in ([], {"tokenizer": {"modes": "word"}}, {**how.to_dict(), "mode": "paragraph"}, {"tokenizer": 5}):
        with pytest.raises(FflmError, match=r"unknown setting|expected|Invalid"):
            TextSettings.from_dict(damaged)


def test_fingerprint_differs_between_corpora(text, tmp_path):
    made = [
        tokenize(TextSource([text], STREAM, ALL_WORDS, None), tmp_path / "0"),
        tokenize(TextSource([text], STREAM, VocabularyRule(2), None), tmp_path / "1"),
        tokenize(TextSource([text], STREAM, ALL_WORDS, Count(2)), tmp_path / "2"),
        tokenize(TextSource([text], TextSettings(Tokenizer(lowercase=True)), ALL_WORDS, None), tmp_path / "3"),
    ]
    assert len({corpus.fingerprint for corpus in made}) == 4
    assert made[0].fingerprint == tokenize(TextSource([text], STREAM, ALL_WORDS, None), tmp_path / "again").fingerprint


@pytest.mark.parametrize(
    ("content", "valid", "message"),
    [
        ("", None, "no words in .*text: give a text that is not empty or blank"),
        (" \n \n", None, "no words in .*text: give a text that is not empty or blank"),
        ("one two three", Count(3), "take all 3 tokens"),
        ("one two three", Share(0.01), "hold out more"),
        ("one two three", Count(1000), "take all"),
    ],
)
def test_text_too_short_for_held_out_part_is_refused(tmp_path, content, valid, message):
    (tmp_path / "text").write_text(content, encoding="utf-8")
    with pytest.raises(FflmError, match=message):
        tokenize(TextSource([tmp_path / "text"], FLAT, ALL_WORDS, valid), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize(
    ("content", "rule", "message"),
    [
        ("\n" * 300, ALL_WORDS, "no words in .*text: give a text that is not empty or blank"),
        (" \t\n\u3000\n" * 30, VocabularyRule(5, 10), "no words in .*text: give a text that is not empty or blank"),
        ("\n" * 300, "words", "no words in .*text: give a text that is not empty or blank"),
        ("<unk> <s>\n" * 30, ALL_WORDS, "no words in train, only line ends or symbols such as <unk>"),
        ("a b\n" * 3, VocabularyRule(4), "no word is seen 4 times in train, the most frequent one 3 times: lower"),
        ("a b\n" * 3, "words", "none of the words in .*words is in train: give the words of this text"),
    ],
)
@pytest.mark.parametrize("mode", ["stream", "sentence"])
def test_text_without_known_words_is_refused(tmp_path, content, rule, message, mode):
    (tmp_path / "text").write_text(content, encoding="utf-8")
    (tmp_path / "words").write_text("cat\ndog\n")
    rule = VocabularyRule(words=tmp_path / "words") if rule == "words" else rule
    with pytest.raises(FflmError, match=message):
        tokenize(
            TextSource([tmp_path / "text"], TextSettings(Tokenizer("space" if "<" in content else "word"), mode), rule, None),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("valid", [Count(50), "files"])
def test_held_out_part_without_words_is_refused(tmp_path, valid):
    (tmp_path / "text").write_text("a b\n" * 100 + "\n" * 100)
    (tmp_path / "blank").write_text("\n" * 100)
    with pytest.raises(FflmError, match="the valid text has only line ends, no words: hold out more, or give another text"):
        tokenize(
            TextSource([tmp_path / "text"], STREAM, ALL_WORDS, [tmp_path / "blank"] if valid == "files" else valid),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_failed_tokenize_leaves_no_files_and_keeps_existing_folders(text, tmp_path):
    (tmp_path / "bad").write_bytes(b"good\n\xff")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FflmError, match="byte 5"):
        tokenize(TextSource([text, tmp_path / "bad"], STREAM, ALL_WORDS, None), tmp_path / "out")
    with pytest.raises(FflmError, match="cannot write"):
        tokenize(TextSource([text], STREAM, ALL_WORDS, None), text / "out")
    assert sorted(tmp_path.iterdir()) == before

    first = tokenize(TextSource([text], STREAM, ALL_WORDS, None), tmp_path / "out").fingerprint
    with pytest.raises(FflmError, match="exists"):
        tokenize(TextSource([text], FLAT, ALL_WORDS, None), tmp_path / "out")
    with pytest.raises(FflmError, match="byte 5"):
        tokenize(TextSource([tmp_path / "bad"], FLAT, ALL_WORDS, None), tmp_path / "out", overwrite=True)
    assert Corpus.open(tmp_path / "out").fingerprint == first
    assert tokenize(TextSource([text], FLAT, ALL_WORDS, None), tmp_path / "out", overwrite=True).settings == FLAT
    (tmp_path / "photos").mkdir()
    with pytest.raises(FflmError, match="not a tokenized corpus"):
        tokenize(TextSource([text], FLAT, ALL_WORDS, None), tmp_path / "photos", overwrite=True)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out", tmp_path / "photos"])
