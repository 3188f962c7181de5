"""Numbering of long texts gives the same tokens as the tokenizer, in every mode and for any chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer import PIECES, TEXTS, TOKENIZERS

from fflm.text import numbering
from fflm.text.numbering import Numbering
from fflm.text.pieces import as_bytes
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END, Tokenizer

# These are repeated words, pieces with other white space, the symbols, and surrogates, which UTF-8 cannot encode.
WORDS = ["the", "The", "cat", "cat,", "</s>", "<s>", "\t", "\r", "\x85", "\u2028", "\0", "\ud800", " ", " ", "\n"]
LONG_TEXTS = st.lists(st.sampled_from(PIECES + WORDS) | st.text(max_size=4), max_size=40).map("".join) | TEXTS
CHUNKS = st.lists(LONG_TEXTS, min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def use_kernels(monkeypatch):
    """Let the numbering use its kernels for short texts, too."""
    monkeypatch.setattr(numbering, "_SHORT", -1)


def tokens_of(numbered, numbers):
    types = numbered.types()
    return [types[number] for number in numbers]


@given(
    CHUNKS,
    st.builds(TextSettings, TOKENIZERS, st.sampled_from(["stream", "sentence"]), st.booleans()),
    st.sampled_from([None, 0, 5, 1 << 20]),
)
def test_numbering_gives_same_tokens_as_settings(chunks, settings, limit):
    numbered = Numbering(settings, limit)
    for chunk in chunks:
        start, numbers, characters = numbered.number(as_bytes(chunk))
        normalized = settings.tokenizer.normalize(chunk)
        assert tokens_of(numbered, numbers) == settings.tokens(normalized)
        assert (numbers.dtype, characters) == (np.int32, len(normalized))
        assert start == 0 or len(numbered) - len(numbered.types(start)) == start
    types = numbered.types()
    assert types[0] == LINE_END
    assert len(set(types)) == len(types) == len(numbered)


@pytest.mark.parametrize("mode", ["space", "word"])
@pytest.mark.parametrize("remembered", [1000, 1 << 24], ids=["forgetting", "remembering"])
def test_numbering_with_many_distinct_pieces(mode, remembered, monkeypatch):
    """Tables grow, later chunks reuse the pieces of earlier ones, and the tables are emptied when they reach their limit."""
    monkeypatch.setattr(numbering, "MAX_BYTES", remembered)
    generator = np.random.default_rng(1)
    tokenizer, numbered = Tokenizer(mode), Numbering(TextSettings(Tokenizer(mode)))
    distinct = set()
    for most in (10, 1_000, 30_000, 3_000_000, 30_000):
        chunk = " ".join(f"{number:x}.{number % 7}" for number in generator.integers(most, size=5000))
        distinct |= set(chunk.split())
        _, numbers, _ = numbered.number(chunk.encode())
        assert tokens_of(numbered, numbers) == tokenizer.split(chunk)
    known = numbered._pieces.known
    assert known == len(distinct) if remembered > 1000 else known < 5000


def test_short_text_is_numbered_without_kernel(monkeypatch):
    monkeypatch.setattr(numbering, "_SHORT", 20)
    tokenizer, numbered = Tokenizer(), Numbering(TextSettings())
    for count in range(4):
        _, numbers, _ = numbered.number(b"the cat sat\n")
        assert tokens_of(numbered, numbers) == tokenizer.split("the cat sat\n")
        assert (numbered._pieces is None) == (count == 0)
    assert numbered._pieces.known == 3
