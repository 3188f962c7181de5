"""The number of words of a text is that of `str.split`, however long the text is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fflm.text import extent
from fflm.text.extent import Extent, count_words


@pytest.mark.parametrize(
    "blanks", [" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f", "\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"]
)
@given(data=st.data())
def test_count_words_equals_split(blanks, data):
    text = data.draw(st.text(alphabet=st.sampled_from(f"ab猫\u200b\u3001{blanks}")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extent, "_SHORT", 0 if text else 1)
        assert count_words(text) == len(text.split())
        ascii_text = text.encode("ascii", "ignore").decode() or "a"
        assert count_words(ascii_text) == len(ascii_text.split())


def test_extent_counts_characters_of_normalized_text_and_bytes_and_words_of_the_text_itself():
    assert Extent.of("Ä b\n", "A\u0308 b\n") == (5, 5, 2)
    assert Extent.of("a\ud800", "a") == (1, 4, 1)
