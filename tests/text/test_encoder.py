"""The encoder of chunks and of lines, against the rules that every text is read by."""

import itertools
import pickle
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fflm.text import encoder as encoder_module
from fflm.text.encoder import Encoder, with_newlines
from fflm.text.extent import as_bytes
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.text.vocabulary import Vocabulary

READ = {
    "sentences": TextSettings(mode="sentence"),
    "sentences, split at spaces": TextSettings(Tokenizer("space"), mode="sentence"),
    "line ends": TextSettings(Tokenizer("space")),
    "line ends, words": TextSettings(),
    "no ends": TextSettings(line_ends=False),
    "normalized": TextSettings(Tokenizer(lowercase=True, normalization="NFKC"), mode="sentence"),
    "normalized, split at spaces": TextSettings(Tokenizer("space", lowercase=True, normalization="NFKD")),
    "characters": TextSettings(Tokenizer("char"), mode="sentence"),
    "characters with line ends": TextSettings(Tokenizer("char")),
}
WORDS = ["the", "cat", "don't", "straße", "Οδυσσεύς", "οδυσσευς", "a", ".", "café", "中", "caterpillar", "\u00a0x", " ", "é"]
PIECES = [
    *WORDS,
    *" \t\n\r\f\v",
    "\r\n",
    "  ",
    "\x1c",
    "\x85",
    "\u2028",
    "\u200b",
    "\u00ad",
    "\ufeff",
    "\u0301",
    "\u00a8",
    "\ufdfa",
    "ΟΔΟΣ",
    "Cat",
    "\ud800",
    "\x00",
    "\xff",
    "中文",
    "👩‍👩‍👧",
    "<unk>",
    "</s>",
    "<s>",
    "ﬁ",
    "caterpillars",
    "3.5",
    "--",
    "'",
    "zebra",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


def vocabulary_of(settings):
    words = sorted({token for word in WORDS for token in settings.tokenizer.tokens(word)})
    return Vocabulary.from_words(words, {LINE_END: 1} if settings.ends else {}, ends=settings.ends)


def encoder_of(read, vocabulary):
    """Return an encoder that uses kernels from the first text on."""
    encoder = Encoder(read, vocabulary)
    encoder._seen = encoder_module.SHORT
    return encoder


ENCODERS = {name: encoder_of(read, vocabulary_of(read)) for name, read in READ.items()}


def expected_ids(line, read, vocabulary):
    """Return the ids of a line, as `fflm.models.scoring.score` reads it; of a blank one the end of a sentence."""
    line = line.replace("\r\n", "\n").replace("\r", "\n")
    ids = read.encode_text(line if line.endswith("\n") or not line else f"{line}\n", vocabulary).tolist()
    return ids or [1] * read.ends


@pytest.mark.parametrize("name", READ)
@settings(max_examples=70)
@example(lines=["", " ", "\n", "the\n", "the\n ", "\n\nthe\n\n\ncat", "the\r\ncat\r\r", "\ufdfa" * 9])
@example(lines=["the\tcat\u00a0x", "ΟΔΟΣ ΟΔΟΣ", "a \u0301 \u00a8b", "caterpillar caterpillars caterpillar"])
@given(lines=st.lists(TEXTS, max_size=5))
def test_encoded_lines_equal_encoded_texts(name, lines):
    read, vocabulary = READ[name], ENCODERS[name].vocabulary
    for encoder in (ENCODERS[name], Encoder(read, vocabulary)):  # the latter does not use kernels
        ids, borders = encoder.encode(lines)
        found = [ids[low:high].tolist() for low, high in itertools.pairwise(borders)]
        assert found == [expected_ids(line, read, vocabulary) for line in lines]
        assert (ids.dtype, borders.dtype) == (np.int32, np.int64)


CHUNKS = st.lists(TEXTS | st.lists(st.sampled_from(PIECES)).map(" ".join), max_size=4)


@pytest.mark.parametrize("name", READ)
@settings(max_examples=70)
@example(chunks=["", " ", "\n", "the", "the cat\n", "\n\nthe \n", "Cat, the straße"])
@given(chunks=CHUNKS)
def test_encoded_chunks_equal_encoded_texts(name, chunks):
    read, encoder = READ[name], ENCODERS[name]
    direct = Encoder(read, encoder.vocabulary)  # it does not use kernels for so little text
    for chunk in map(with_newlines, chunks):
        ids, extent = encoder.encode_chunk(as_bytes(chunk))
        assert ids.tolist() == read.encode_text(chunk, encoder.vocabulary).tolist()
        assert direct.encode_chunk(as_bytes(chunk))[0].tolist() == ids.tolist()
        expected = len(read.tokenizer.normalize(chunk)), len(as_bytes(chunk)), len(chunk.split())
        assert (ids.dtype, extent) == (np.int32, expected)


def test_words_of_eight_bytes_have_different_keys():
    """A key that were the same for all of them would make look-ups slow, but not wrong."""
    words = [f"{number:08}" for number in range(3000)]
    encoder = encoder_of(READ["sentences, split at spaces"], Vocabulary.from_words(words, {LINE_END: 1}, ends=True))
    encoder.encode([" ".join(words)])
    keys = encoder._pieces._slots[:, 0]
    assert len(set(keys[keys > 0].tolist())) == len(words)


@pytest.mark.parametrize("name", ["sentences", "sentences, split at spaces"])
def test_words_of_the_vocabulary_are_added_after_some_additions(name, monkeypatch):
    monkeypatch.setattr(encoder_module, "ADDITIONS", 3)
    encoder, known = encoder_of(READ[name], vocabulary_of(READ[name])), []
    for word in [*WORDS, "zebra", "yak"][:8]:
        assert encoder.encode([word])[0].tolist() == expected_ids(word, encoder.settings, encoder.vocabulary)
        known.append(encoder._pieces.known)
    assert known[:3] == [1, 2, 3]
    assert known[7] > len(encoder.vocabulary) - 2


@pytest.mark.parametrize("name", ["sentences", "line ends", "sentences, split at spaces"])
def test_long_lines_are_encoded_across_blocks(name):
    generator = np.random.default_rng(1)
    words = [*WORDS, *("x" * length for length in (6, 7, 8, 9, 15, 16, 17, 24, 25)), "\n", "\0"]
    read = READ[name]
    known = sorted({token for word in words for token in read.tokenizer.tokens(word) if token != LINE_END})
    encoder = encoder_of(read, Vocabulary.from_words(known, {LINE_END: 1}, ends=True))
    lines = [" " * int(generator.integers(70)) + " ".join(generator.choice(words, 3000)), *["cat"] * 200]
    for some in (lines, [line.replace("\0", "the") for line in lines]):  # with a line that has the separator, and without one
        ids, borders = encoder.encode(some)
        found = [ids[low:high].tolist() for low, high in itertools.pairwise(borders)]
        assert found == [expected_ids(line, read, encoder.vocabulary) for line in some]


def test_encoder_forgets_pieces_at_its_limit(monkeypatch):
    monkeypatch.setattr(encoder_module, "MAX_BYTES", 200)
    encoder = encoder_of(READ["sentences"], vocabulary_of(READ["sentences"]))
    for number in range(300):
        line = f"the cat{number} sat, don't {'x' * (number % 40)}"
        ids, _ = encoder.encode([line])
        assert ids.tolist() == expected_ids(line, encoder.settings, encoder.vocabulary)
        assert encoder._pieces.size < 500


def test_threads_have_separate_tables():
    encoder = encoder_of(READ["sentences"], vocabulary_of(READ["sentences"]))
    texts = [[f"the cat {number}-{thread} don't" for number in range(100)] for thread in range(8)]
    results = [None] * 8

    def encode(thread):
        results[thread] = [encoder.encode([line])[0].tolist() for line in texts[thread]]

    threads = [threading.Thread(target=encode, args=(thread,)) for thread in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    expected = [[expected_ids(line, encoder.settings, encoder.vocabulary) for line in lines] for lines in texts]
    assert results == expected


def test_encoder_is_pickled_without_tables():
    encoder = encoder_of(READ["sentences"], vocabulary_of(READ["sentences"]))
    encoder.encode(["the cat"])
    again = pickle.loads(pickle.dumps(encoder))
    assert again.encode(["the cat"])[0].tolist() == encoder.encode(["the cat"])[0].tolist()
