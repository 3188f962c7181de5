"""Windows of context are compared with a naive loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fflm.text import windows
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows


def naive_context(ids, position, window, padding, sentence_end):
    context = []
    for source in range(position - 1, position - 1 - window, -1):
        if source < 0 or (sentence_end is not None and ids[source] == sentence_end):
            break
        context.insert(0, ids[source])
    return [padding] * (window - len(context)) + context


@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    window=st.integers(1, 6),
    sentence=st.booleans(),
    dtype=st.sampled_from([np.uint16, np.uint32, np.int32]),
    block=st.sampled_from([1, 4, 10, 1000]),
)
def test_windows_equal_naive_loop(ids, window, sentence, dtype, block):
    end = 1 if sentence else None
    examples = Windows(np.array(ids, dtype), window, padding=7, sentence_end=end)
    positions = np.random.default_rng(0).permutation(len(examples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "BLOCK", block)
        contexts, targets = examples.batch(positions)
        after = examples.contexts(np.array([len(ids)]))
    assert contexts.dtype == targets.dtype == np.int32
    assert targets.tolist() == [ids[position] for position in positions]
    assert contexts.tolist() == [naive_context(ids, position, window, 7, end) for position in positions]
    assert after.tolist() == [naive_context(ids, len(ids), window, 7, end)]


@pytest.mark.parametrize(
    ("mode", "line_ends", "contexts"),
    [
        ("sentence", True, [["<s>"] * 2, ["<s>", "a"], ["a", "b"], ["<s>"] * 2, ["<s>", "c"]]),
        ("stream", True, [["\n"] * 2, ["\n", "a"], ["a", "b"], ["b", "\n"], ["\n", "\n"], ["\n", "c"]]),
        ("stream", False, [["<s>"] * 2, ["<s>", "a"], ["a", "b"]]),
    ],
)
def test_padding_in_each_mode(mode, line_ends, contexts):
    settings = TextSettings(Tokenizer(), mode, line_ends)
    vocabulary = Vocabulary.from_counts({"a": 3, "b": 2, "c": 1}, ends=settings.ends)
    examples = Windows.of(settings.encode_text("a b\n\nc\n", vocabulary), vocabulary, settings, 2)
    found = examples.contexts(np.arange(len(examples)))
    assert [vocabulary.decode(context) for context in found] == contexts
