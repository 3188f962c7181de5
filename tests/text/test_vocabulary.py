"""The vocabulary: the order of its words, its symbols and its file."""

import bz2
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fflm.errors import FflmError
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import END, START, UNKNOWN, Vocabulary, VocabularyRule, read_words

COUNTS = {"b": 5, "a": 5, "猫": 7, "rare": 1, LINE_END: 4, UNKNOWN: 2, START: 3, END: 6}
WORDS = st.text(min_size=1).filter(lambda word: word != LINE_END)


def test_vocabulary_order_counts_and_symbols():
    vocabulary = Vocabulary.from_counts(COUNTS, ends=True, min_count=2)
    assert vocabulary.words == [UNKNOWN, END, "猫", "a", "b"]
    assert vocabulary.counts == [1 + 2 + 3 + 6, 4, 7, 5, 5]
    assert (len(vocabulary), vocabulary.unknown_id, vocabulary.end_id, vocabulary.start_id) == (5, 0, 1, 5)
    assert vocabulary.rule == "words seen at least 2 times in train"


def test_words_spelled_like_symbols_are_unknown():
    vocabulary = Vocabulary.from_counts(COUNTS, ends=True)
    tokens = ["a", END, START, UNKNOWN, LINE_END, "absent"]
    assert vocabulary.encode(tokens).tolist() == [vocabulary.id("a"), 0, 0, 0, 1, 0]
    assert [token in vocabulary for token in tokens] == [True, False, False, False, True, False]
    assert vocabulary.decode([0, 1, 2, len(vocabulary)]) == [UNKNOWN, LINE_END, "猫", START]


def test_vocabulary_without_line_ends():
    vocabulary = Vocabulary.from_counts({"a": 2, "b": 1}, ends=False)
    assert vocabulary.words == [UNKNOWN, "a", "b"]
    assert vocabulary.end_id is None
    assert vocabulary.decode(vocabulary.encode(["b", "a"])) == ["b", "a"]


def test_max_size_includes_symbols():
    vocabulary = Vocabulary.from_counts(COUNTS, ends=True, max_size=4)
    assert vocabulary.words == [UNKNOWN, END, "猫", "a"]
    assert vocabulary.counts[0] == 5 + 1 + 2 + 3 + 6
    assert "4" in vocabulary.rule


def test_read_words_and_from_words(tmp_path):
    path = tmp_path / "words"
    path.write_bytes("\ufeffb\t12\r\n\nabsent\nb\n<s>\n</s>\n<unk>\n\\u0020\nC:\\uncle\n".encode())
    words = read_words(path)
    assert words == ["b", "absent", "b", START, END, UNKNOWN, " ", "C:\\uncle"]
    vocabulary = Vocabulary.from_words(words, COUNTS, ends=True)
    assert vocabulary.words == [UNKNOWN, END, "b", " ", "C:\\uncle", "absent"]
    assert vocabulary.counts == [sum(COUNTS.values()) - 5 - 4, 4, 5, 0, 0, 0]


def test_word_list_may_hold_other_white_space_and_escapes(tmp_path):
    path = tmp_path / "words"
    path.write_text(" 10\u00a0000 \t3\n\u3000\n\x0b\na\u2028b\n\\ud800\n\\u0041\n\\u00a0\n", encoding="utf-8")
    words = ["10\u00a0000", "\u3000", "\x0b", "a\u2028b", "\\ud800", "\\u0041", "\u00a0"]
    assert read_words(path) == words
    vocabulary = Vocabulary.from_words(words, {}, ends=True)
    vocabulary.save(tmp_path / "vocabulary.tsv")
    assert Vocabulary.load(tmp_path / "vocabulary.tsv", vocabulary.to_dict()).words == vocabulary.words
    path.write_bytes(bz2.compress(b"packed\n"))
    assert read_words(path) == ["packed"]


def test_list_of_words_is_not_a_tokenizer_of_subwords(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{\n  "version": "1.0",\n  "model": {"vocab": {"a": 0}}\n}\n')
    with pytest.raises(FflmError, match="has subwords, not one word per line: add `tokenizer='subword'`"):
        read_words(path)
    for words in (["{", "model"], ["{}"], ["{", "[]", "}"]):
        path.write_text("\n".join(words))
        assert read_words(path) == words


@pytest.mark.parametrize("content", [b"", b"\n \n\t5\n", b"\xff\n"])
def test_invalid_word_list_is_refused(tmp_path, content):
    path = tmp_path / "words"
    path.write_bytes(content)
    with pytest.raises(FflmError, match="words"):
        read_words(path)


def test_vocabulary_without_words_is_refused():
    with pytest.raises(FflmError, match="lower the minimum count"):
        Vocabulary.from_counts(COUNTS, ends=True, min_count=8)
    with pytest.raises(FflmError, match="no words"):
        Vocabulary.from_words([END], COUNTS, ends=True)


@given(words=st.dictionaries(WORDS, st.integers(1, 10**12), min_size=1), ends=st.booleans())
def test_vocabulary_file_round_trip(tmp_path_factory, words, ends):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.tsv"
    words |= {"word": 1, "\x1c": 2, "\t": 3, "\\u0020": 4, " ": 5}
    vocabulary = Vocabulary.from_counts(words, ends=ends)
    vocabulary.save(path)
    again = Vocabulary.load(path, vocabulary.to_dict())
    assert vars(again) == {name: value for name, value in vars(vocabulary).items() if name != "_content"}
    lines = path.read_text("utf-8").split("\n")
    assert len(lines) == len(vocabulary) + 1
    assert not any(character.isspace() for line in lines for character in line.replace("\t", "", 1))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<unk>\t1\n</s>\t1\na\t1\n",
        "<unk>\t1\n</s>\t1\na\t1\na\t1\n",
        "<unk>\t1\n</s>\t1\na\t1\n<s>\t1\n",
        "<unk>\t1\na\t1\n</s>\t1\nb\t1\n",
        "<unk>\t1\n</s>\t1\na\t1\nb\n",
        "<unk>\t1\n</s>\t1\na\t1\nb\tmany\n",
        "<unk>\t1\n</s>\t1\na\t1\nb\t-1\n",
        "<unk>\t1\n</s>\t1\na\t1\n\\x\t1\n",
        "<unk>\t1\n</s>\t1\na\t1\n b\t1\n",
    ],
)
def test_damaged_vocabulary_file_is_refused(tmp_path, content):
    path = tmp_path / "vocabulary.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FflmError, match="damaged"):
        Vocabulary.load(path, {"size": 4, "ends": True, "rule": "words", "sha256": hashlib.sha256(content.encode()).hexdigest()})


def test_swapped_words_are_detected(tmp_path):
    vocabulary = Vocabulary.from_counts({"a": 5, "b": 5}, ends=True)
    vocabulary.save(tmp_path / "vocabulary.tsv")
    about = vocabulary.to_dict()
    assert Vocabulary.load(tmp_path / "vocabulary.tsv", about).words == vocabulary.words
    Vocabulary(["<unk>", "</s>", "b", "a"], vocabulary.counts, ends=True, rule="").save(tmp_path / "vocabulary.tsv")
    with pytest.raises(FflmError, match="order have changed"):
        Vocabulary.load(tmp_path / "vocabulary.tsv", about)


def test_incomplete_vocabulary_description_is_refused(tmp_path):
    vocabulary = Vocabulary.from_counts(COUNTS, ends=True)
    vocabulary.save(tmp_path / "vocabulary.tsv")
    with pytest.raises(FflmError, match="damaged"):
        Vocabulary.load(tmp_path / "vocabulary.tsv", {"size": len(vocabulary)})


@pytest.mark.parametrize("wrong", [{"min_count": 0}, {"max_size": 2}])
def test_vocabulary_rule_refuses_value_out_of_range(wrong):
    with pytest.raises(FflmError, match="at least"):
        VocabularyRule(**wrong)
