"""The number of words of a text is that of `str.split`, however long the text is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fflm.text import extent
from fflm.text.extent import as_bytes, count_words, extent_of


@pytest.mark.parametrize(
    "blanks", [" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f", "\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"]
)
@given(data=st.data())
def test_count_words_equals_split(blanks, data):
    text = data.draw(st.text(alphabet=st.sampled_from(f"ab猫\u200b\u3001{blanks}")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extent, "_SHORT", 0 if text else 1)
        assert count_words(as_bytes(text)) == len(text.split())
        only_ascii = text.encode("ascii", "ignore") or b"a"
        assert count_words(only_ascii) == len(only_ascii.decode().split())


def test_extent_counts_characters_of_normalized_text_and_bytes_and_words_of_the_text_itself():
    assert extent_of(as_bytes("Ä b\n"), len("A\u0308 b\n")) == (5, 5, 2)
    assert extent_of(as_bytes("a\ud800"), 1) == (1, 4, 1)
