"""Prefixes that extend each other, compared with texts that are read as a whole."""

import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import MODES

from fflm.text.prefixes import PrefixReader
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import UNKNOWN, Vocabulary

TOKENIZERS = [
    Tokenizer("word"),
    Tokenizer("space"),
    Tokenizer("char"),
    Tokenizer("word", lowercase=True, normalization="NFKC"),
]


def check(reader, text):
    """Check that a prefix is read as a whole text is."""
    found = reader.read(text)
    tokens = reader.settings.tokens(reader.settings.tokenizer.normalize(text))
    assert (found.text, found.tokens) == (text, tokens)
    assert found.ids.dtype == np.int32
    np.testing.assert_array_equal(found.ids, reader.vocabulary.encode(tokens))
    unknown = [token for token in tokens if token not in reader.vocabulary and token not in (UNKNOWN, "\n")]
    assert found.unknown == list(dict.fromkeys(unknown))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=repr)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25)
@example([(0, "a b"), (1, "\n b"), (9, "a \nb"), (0, " c\n"), (3, " \n\n b"), (0, " b"), (9, "a")])
@given(st.lists(st.tuples(st.integers(0, 9), st.text("ab \n\r\t.'Σ\u0301\xa01,", max_size=9)), max_size=8))
def test_prefix_after_others_equals_whole_text(mode, tokenizer, steps):
    """Each prefix takes some characters off the one before, and adds others."""
    read = TextSettings(tokenizer, MODES[mode].mode, MODES[mode].line_ends)
    reader = PrefixReader(read, Vocabulary.from_words(["a", "b", "ab", ".", " "], {}, ends=read.ends))
    text = ""
    for taken, added in steps:
        text = text[: len(text) - taken] + added
        check(reader, text)


def test_words_before_the_last_blank_are_read_once():
    reader = PrefixReader(TextSettings(Tokenizer("space"), mode="sentence"), Vocabulary.from_words(["a"], {}, ends=True))
    first = reader.read("a zebra a")
    assert reader.read("a zebra ab").tokens[0] is first.tokens[0]
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._known.text == ""
    check(copy, "a zebra a")
