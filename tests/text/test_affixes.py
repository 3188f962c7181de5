"""Affixes of words: the beginnings and ends that they have in common."""

import itertools

import numpy as np
import pytest

from fflm.text.affixes import COMMON, MOST, affixes_of
from fflm.text.vocabulary import Vocabulary


@pytest.fixture(autouse=True)
def three_words_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an affix be what three words have in common, so that tests need few words."""
    monkeypatch.setattr("fflm.text.affixes.COMMON", 3)


def vocabulary(*words: str, ends: bool = True) -> Vocabulary:
    words = ("<unk>", "</s>", *words) if ends else ("<unk>", *words)
    return Vocabulary(words, [1] * len(words), ends=ends, rule="all")


def named(of: Vocabulary) -> list[set[frozenset[str]]]:
    """Return, for each word and the padding, of each of its affixes the words that have it."""
    affixes, words = affixes_of(of), [*of.words, "<s>"]
    owners: dict[int, set[str]] = {}
    for word, row in zip(words, affixes.tolist(), strict=True):
        own = [number for number in row if number >= 0]
        assert row == own + [-1] * (len(row) - len(own))
        assert len(set(own)) == len(own)
        for number in own:
            owners.setdefault(number, set()).add(word)
    assert sorted(owners) == list(range(len(owners)))
    return [{frozenset(owners[number]) for number in row if number >= 0} for row in affixes.tolist()]


def test_words_with_the_same_beginning_or_end_have_an_affix_in_common():
    walked, walks, walker, talked, talks, called = words = ("walked", "walks", "walker", "Talked", "talks", "called")
    own = dict(zip(("<unk>", "</s>", *words, "<s>"), named(vocabulary(*words)), strict=True))
    walk, alked, ed = {walked, walks, walker}, {walked, talked}, {walked, talked, called}
    assert own[walked] == {frozenset(walk), frozenset(ed)}  # wa, wal and walk are three affixes; ked and lked are of two words
    assert frozenset(alked) not in own[walked]
    assert own[called] == {frozenset(ed)}
    assert own[walks] == {frozenset(walk)}
    assert own[talks] == own["<unk>"] == own["</s>"] == own["<s>"] == set()


def test_number_of_words_that_have_an_affix_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fflm.text.affixes.COMMON", COMMON)
    words = [f"walk{i}{i}" for i in range(COMMON)]
    assert affixes_of(vocabulary(*words)).max() == 3  # wa, wal, walk and the shape
    assert affixes_of(vocabulary(*words[1:])).size == 0


def test_an_affix_is_shorter_than_the_word():
    assert affixes_of(vocabulary("port", "portal", "porter")).max() == 1  # po and por, but not port
    assert affixes_of(vocabulary("port", "portal", "porter", "ports")).max() == 2


def test_words_that_differ_in_case_have_the_word_in_common():
    own = named(vocabulary("the", "The", "THE", "then", "of", "Of", "``"))
    assert own[2:8] == [{frozenset({"the", "The", "THE"})}] * 3 + [set()] + [{frozenset({"of", "Of"})}] * 2


def test_words_have_their_shape_in_common_unless_it_is_that_of_most_words():
    words = (
        "Ann",
        "Ben",
        "Zoe",
        "x-y",
        "ab-c",
        "p-qr",
        "U.S.",
        "B.B.C.",
        "U.N.",
        "7",
        "19",
        "1,000",
        "2,5",
        "30,000",
        "a",
        "b",
        "c",
    )
    own = named(vocabulary(*words))[2:-1]
    expected = [{frozenset(words[low : low + 3])} for low in (0, 3) for _ in range(3)]
    expected += [set(), set(), set(), set(), set(), *[{frozenset(words[11:14])}] * 3, set(), set(), set()]
    assert own == expected  # B.B.C. is of another shape than U.S. and U.N., and 7 and 19 are only two of theirs


def test_of_a_large_vocabulary_the_most_common_affixes_count():
    """There are 27,000 beginnings of three characters, each of three words, and all other affixes are of more words."""
    letters = [chr(ord("a") + i) for i in range(26)] + list("0123")
    words = [f"{a}{b}{c}{d}" for a, b, c in itertools.product(letters, repeat=3) for d in "xyz"]
    affixes = affixes_of(vocabulary(*words))
    assert affixes.max() == MOST - 1
    used = np.bincount(affixes[affixes >= 0])
    assert len(used) == MOST
    assert (np.diff(used) <= 0).all()
    assert used[-1] == 3


def test_short_words_and_punctuation_have_no_beginnings_and_ends():
    assert affixes_of(vocabulary("the", "thy", "tho", "--aa", "-,ab", ",-ac", "-aad-", ends=False)).shape == (9, 0)


def test_numbers_and_other_scripts_have_affixes():
    assert affixes_of(vocabulary("1945", "1946", "1947", "19,000")).max() == 2  # 19, 194, and the shape of three of them
    russian = (
        "\u043f\u0435\u0440\u0435\u0432\u043e\u0434",
        "\u043f\u0435\u0440\u0435\u0445\u043e\u0434",
        "\u043f\u0435\u0440\u0435\u0441\u043a\u0430\u0437",
    )
    assert affixes_of(vocabulary(*russian)).max() == 2
    assert affixes_of(vocabulary("\u4e2d", "\u56fd", "\u4e2d\u56fd", "\u5317\u4eac")).size == 0
