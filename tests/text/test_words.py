"""A vocabulary that is mapped from arrays is the one of the text file; damaged arrays are refused, or found by `verify`."""

import contextlib
import itertools
import mmap
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fflm.arrays import map_arrays, save_arrays
from fflm.errors import FflmError
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.text.vocabulary import Vocabulary, table_path

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1, max_size=9)
TYPES = (np.uint8, np.uint32, np.int64)


def save(vocabulary, path):
    vocabulary.save(path)
    vocabulary.save_table(path)
    return vocabulary.to_dict()


@pytest.fixture
def stored(tmp_path):
    """Return a vocabulary of words of one to five digits, the path of its file, and its description."""
    vocabulary = Vocabulary.from_counts({str(3**power): power + 1 for power in range(11)} | {LINE_END: 5}, ends=True)
    path = tmp_path / "vocabulary.tsv"
    return vocabulary, path, save(vocabulary, path)


@given(words=st.dictionaries(WORDS, st.integers(1, 10**18 - 1), min_size=1), others=st.lists(WORDS), ends=st.booleans())
def test_mapped_vocabulary_equals_that_of_text(tmp_path_factory, words, others, ends):
    path = tmp_path_factory.mktemp("words") / "vocabulary.tsv"
    vocabulary = Vocabulary.from_counts({**words, "word": 1, "\x1c": 2, " ": 1}, ends=ends)
    about = save(vocabulary, path)
    for verify in (False, True):
        mapped = Vocabulary.load(path, about, verify=verify)
        tokens = [*vocabulary.words, *others, "\ud800", "<s>", LINE_END]
        assert [mapped.id(token) for token in tokens] == vocabulary.encode(tokens).tolist()
        assert [token in mapped for token in tokens] == [token in vocabulary for token in tokens]
        assert len(mapped) == len(vocabulary)
        assert mapped.lines == vocabulary.lines
        assert "words" not in vars(mapped) or verify  # so far the arrays were enough
        many = (tokens * 20)[: len(vocabulary) - 1]
        np.testing.assert_array_equal(mapped.encode(many), vocabulary.encode(many))
        if not verify:
            np.testing.assert_array_equal(mapped._table.ids(tokens), [mapped._table.get(token, -1) for token in tokens])
        np.testing.assert_array_equal(mapped.encode(tokens), vocabulary.encode(tokens))
        np.testing.assert_array_equal(mapped.encode(["word"]), vocabulary.encode(["word"]))
        assert (mapped.words, mapped.counts, mapped._ids) == (vocabulary.words, vocabulary.counts, vocabulary._ids)


def test_vocabulary_is_mapped_and_pickled(stored):
    vocabulary, path, about = stored
    mapped = Vocabulary.load(path, about)
    base = mapped._table._text
    while not isinstance(base, mmap.mmap):
        base = base.base
    assert pickle.loads(pickle.dumps(mapped)).encode(["9", "10"]).tolist() == [vocabulary.id("9"), 0]


def test_many_short_texts_are_looked_up_in_a_dictionary(tmp_path):
    vocabulary = Vocabulary.from_counts({str(number): 1 for number in range(300)}, ends=False)
    mapped = Vocabulary.load(tmp_path / "v", save(vocabulary, tmp_path / "v"))
    for number in range(300):
        assert "_ids" not in vars(mapped)
        assert mapped.encode([str(number)]).tolist() == [vocabulary.id(str(number))] != [0]
    mapped.encode(["0"])
    assert "_ids" in vars(mapped)  # as many words were looked up as there are


def test_many_tokens_are_looked_up_in_the_table(tmp_path):
    """Among them are words in the same bucket, a word that begins another, symbols, and an end."""
    words = [str(number) for number in range(2000)]
    vocabulary = Vocabulary.from_counts(dict.fromkeys(words, 1) | {LINE_END: 3}, ends=True)
    mapped = Vocabulary.load(tmp_path / "v", save(vocabulary, tmp_path / "v"))
    assert np.diff(mapped._table._buckets.astype(np.int64)).max() > 2
    tokens = [*words[::2], *(f"{number}x" for number in range(500)), "", LINE_END, "<unk>", "</s>", "\ud800"]
    np.testing.assert_array_equal(mapped.encode(tokens), vocabulary.encode(tokens))
    assert "_ids" not in vars(mapped)


def test_arrays_of_other_words_are_ignored(stored):
    _, path, _ = stored
    other = Vocabulary(["<unk>", "</s>", "b"], [3, 2, 1], ends=True, rule="words")
    other.save(path)
    assert Vocabulary.load(path, other.to_dict()).words == other.words
    table_path(path).unlink()
    assert Vocabulary.load(path, other.to_dict()).words == other.words


def test_text_of_other_size_is_refused(stored):
    _, path, about = stored
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FflmError, match=r"vocabulary\.tsv is damaged \(it has 8. bytes instead of 8.\): restore it"):
        Vocabulary.load(path, about)
    path.unlink()
    with pytest.raises(FflmError, match=r"cannot read .*vocabulary\.tsv"):
        Vocabulary.load(path, about)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("starts", lambda array: array[:-1]),
        ("starts", lambda array: array + np.uint32(1)),
        ("counts", lambda array: array[:0]),
        ("counts", lambda array: array.astype(np.uint32)),
        ("buckets", lambda array: array[1:]),
        ("buckets", lambda array: array[:0]),
        ("members", lambda array: array[1:]),
        ("text", lambda array: array[:-1]),
        ("text", lambda array: array[None]),
        ("text", lambda array: np.concatenate([array[1:6], array[:1], array[6:]])),  # another symbol than <unk>
    ],
)
def test_arrays_that_do_not_fit_are_refused(stored, name, change):
    _, path, about = stored
    mapped, figures = map_arrays(table_path(path), TYPES)
    save_arrays(table_path(path), {**mapped.arrays, name: change(mapped.arrays[name])}, figures)
    with pytest.raises(FflmError, match=r"vocabulary\.safetensors is damaged"):
        Vocabulary.load(path, about)


def test_truncated_arrays_are_refused(stored):
    _, path, about = stored
    table_path(path).write_bytes(table_path(path).read_bytes()[:-1])
    with pytest.raises(FflmError, match=r"vocabulary\.safetensors is damaged"):
        Vocabulary.load(path, about)


def test_words_that_are_not_distinct_are_refused_when_they_are_needed(stored):
    _, path, about = stored
    mapped, figures = map_arrays(table_path(path), TYPES)
    text = mapped.arrays["text"].tobytes().replace(b"\n9\n", b"\n3\n")
    save_arrays(table_path(path), {**mapped.arrays, "text": np.frombuffer(text, np.uint8)}, figures)
    with pytest.raises(FflmError, match=r"vocabulary\.safetensors is damaged \(.* distinct words.*\): restore it"):
        Vocabulary.load(path, about).encode(["9"] * 13)


def test_damaged_arrays_are_used_or_refused_and_found_by_verify(stored):
    vocabulary, path, about = stored
    content = table_path(path).read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(1)
    for place in generator.integers(first, len(content), 200).tolist():
        changed = bytearray(content)
        changed[place : place + 4] = generator.bytes(len(content[place : place + 4]))
        table_path(path).write_bytes(changed)
        with contextlib.suppress(FflmError):
            mapped = Vocabulary.load(path, about)
            assert all(0 <= mapped.id(word) < len(mapped) for word in ["9", "10", "59049", "", "<unk>"])
            assert len(mapped.words) == len(mapped.counts) == len(vocabulary)
            mapped.decode(mapped.encode(["9"] * 9))
            found = mapped._table.ids(["9", "10", "59049", "", "<unk>"])
            assert all(-1 <= id_ < len(mapped) for id_ in found)
        if changed != content:
            with pytest.raises(FflmError, match=r"vocabulary\.safetensors is damaged"):
                Vocabulary.load(path, about, verify=True)


def test_lines_of_damaged_vocabulary_are_refused(stored):
    from fflm.text.encoder import Encoder  # here, because it imports Numba

    _, path, about = stored
    content = table_path(path).read_bytes()
    table_path(path).write_bytes(content.replace(b"2187\n", b"2\n87\n"))
    encoder = Encoder(TextSettings(Tokenizer("space"), "sentence"), Vocabulary.load(path, about))
    with pytest.raises(FflmError, match=r"vocabulary\.safetensors is damaged"):
        encoder.encode([" ".join(map(str, range(20)))])


@pytest.mark.parametrize("word", ["a b", "a"])
def test_lines_are_encoded_with_words_of_mapped_vocabulary(tmp_path, word):
    from fflm.text.encoder import Encoder  # here, because it imports Numba

    words = ["<unk>", "</s>", "b", word, "c"]
    vocabulary = Vocabulary(words, [1] * 5, ends=True, rule="words")
    about = save(vocabulary, tmp_path / "vocabulary.tsv")
    settings = TextSettings(Tokenizer("space"), "sentence")
    ids, borders = Encoder(settings, Vocabulary.load(tmp_path / "vocabulary.tsv", about)).encode(["a b c d", "<unk>", "</s>"])
    expected = [settings.encode_text(line, vocabulary).tolist() for line in ("a b c d\n", "<unk>\n", "</s>\n")]
    assert [ids[low:high].tolist() for low, high in itertools.pairwise(borders)] == expected
