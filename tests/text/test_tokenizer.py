"""The tokenizer drops only white space, splits no grapheme in two, and its tokens join into readable text."""

import sys
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from fflm.errors import FflmError
from fflm.text import chinese
from fflm.text.tokenizer import LINE_END, Tokenizer

# Ordinary text is rare among random characters, so pieces that meet in awkward ways are mixed in.
PIECES = ["don't", "’", "'", "-", "--", "...", "3.14", ",", "``", "\n", " ", "\x1c", "\u3000", "猫", "カー", "か\u3099", "\u0301"]
PIECES += ["我来到北京", "𠀀〇", "\ufe00"]
PIECES += ["\u00ad", "\u200b", "\u200c", "\u200f", "\u2060", "\ufeff", "\u00a0", "\x0b", "\U0001f1e9", "3\u2060"]
PIECES += ["👩‍👩‍👧", "👍🏽", "🇩🇪", "1\ufe0f\u20e3", "\u200d", "\u0600", "한국어", "é", "İ", "ﬁ", "<unk>", "क्षि", "\U000e0067"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=20).map("".join)
TOKENIZERS = st.builds(
    Tokenizer,
    mode=st.sampled_from(["word", "char", "space", "chinese"]),
    lowercase=st.booleans(),
    normalization=st.sampled_from([None, "NFC", "NFD", "NFKC", "NFKD"]),
)


def is_invisible(character):
    """Return whether rule WB4 of Unicode Standard Annex 29 ignores an invisible character (U+200B separates words)."""
    prepended = regex.match(r"\p{GCB=Prepend}", character)
    return unicodedata.category(character) == "Cf" and character != "\u200b" and not prepended


def without_whitespace(text):
    """Return a text without white space, and without the invisible characters that follow it or begin the text."""
    kept = []
    blank = True
    for character in text:
        if character.isspace() or character == "\u200b":
            blank = True
        elif not (blank and is_invisible(character)):
            kept.append(character)
            blank = False
    return "".join(kept)


@given(TEXTS, TOKENIZERS)
def test_tokens_keep_all_but_whitespace(text, tokenizer):
    normal = tokenizer.normalize(text)
    tokens = tokenizer.tokens(text)
    if tokenizer.mode == "char":
        assert "".join(tokens) == regex.sub("\n", "", normal)
    elif tokenizer.mode == "space":
        assert tokens == [token for token in regex.split("[ \t\r\n]", normal) if token]
    else:
        assert "".join(tokens) == without_whitespace(normal)
        assert all(token and without_whitespace(token) == token for token in tokens)


@given(TEXTS, TOKENIZERS)
def test_split_keeps_every_newline(text, tokenizer):
    normal = tokenizer.normalize(text.replace("\r", ""))
    tokens = tokenizer.split(normal)
    assert tokens.count(LINE_END) == normal.count("\n")
    assert [token for token in tokens if token != LINE_END] == tokenizer.tokens(text.replace("\r", ""))


@given(TEXTS)
def test_word_mode_breaks_no_grapheme(text):
    boundaries, position = {0}, 0
    for token in Tokenizer().split(text):
        start = text.index(token, position)
        position = start + len(token)
        boundaries |= {start, position}
    for match in regex.finditer(r"\X", text):
        if not regex.search(r"[\s\x1c-\x1f\p{GCB=Prepend}]|^\p{Cf}", match[0]):  # and without marks that have no base
            assert not boundaries & set(range(match.start() + 1, match.end())), match[0]


@given(TEXTS)
def test_tokens_do_not_depend_on_text_beyond_whitespace(text):
    """No token depends on the text beyond white space, so a text may be cut there."""
    assert Tokenizer().tokens(text) == [token for piece in text.split() for token in Tokenizer().tokens(piece)]


@given(TEXTS, TEXTS)
def test_invisible_characters_do_not_move_boundaries(left, right):
    """A word joiner does not change the tokens after it, unless a boundary depends on graphemes."""
    left, right = (
        regex.sub(r"[\p{M}\p{Cf}\p{GCB=Prepend}\p{RI}\p{Extended_Pictographic}]|``|''|[.…—-]{2,}", "a", each)
        for each in (left, right)
    )
    left = left.rstrip(".…—-`'")  # runs of punctuation end at a word joiner
    tokens = [token.replace("\u2060", "") for token in Tokenizer().tokens(f"{left}\u2060{right}")]
    assert tokens == Tokenizer().tokens(left + right)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's O’Neil's well-known cat.", "It's|O’Neil's|well-known|cat|."),
        ("50% of $1,234.56, or 3.14 at 10:30...", "50|%|of|$|1,234.56|,|or|3.14|at|10:30|..."),
        ("\"Oh--no!\" ``yes''…", "\"|Oh|--|no|!|\"|``|yes|''|…"),
        ("'No', the dogs' tails-", "'|No|'|,|the|dogs|'|tails|-"),
        ("我用Python写，第3天……好", "我|用|Python|写|，|第|3|天|……|好"),
        ("東京タワーへ か\u3099", "東|京|タワー|へ|か\u3099"),
        ("안녕하세요, 세계", "안녕하세요|,|세계"),
        ("👩‍👩‍👧‍👦👍🏽🇩🇪🇫🇷 #️⃣", "👩‍👩‍👧‍👦|👍🏽|🇩🇪|🇫🇷|#️⃣"),
        ("x.5 é.5 v1.2.3 1.x", "x|.|5|é|.|5|v1.2.3|1|.|x"),
        ("\u0600 12 \u0600\u0301 !", "\u0600|12|\u0600\u0301|!"),
        ("naïve cafe\u0301s x²", "naïve|cafe\u0301s|x²"),
        ("a\nb", "a|b"),
        ("co\u00adoperate wi\u2060fi don\u00ad't", "co\u00adoperate|wi\u2060fi|don\u00ad't"),
        ("שלום\u200f עולם\u200f.", "שלום\u200f|עולם\u200f|."),
        ("\ufeffthe \ufeffcat \u200f \u200dsat\n\ufeff\u200eon", "the|cat|sat|on"),
        ("می\u200cخواهم क्\u200dष", "می\u200cخواهم|क्\u200dष"),
        ("3\u2060.\u206014 dogs' \u2060", "3\u2060.\u206014|dogs|'"),
        ("猫\u2060犬 “\u200fa”\u200f!", "猫\u2060|犬|“\u200f|a|”\u200f|!"),
        ("ไทย\u200bไทย", "ไทย|ไทย"),
        ("🇩🇪🇫🇷🇨 \u0600🇩🇪", "🇩🇪|🇫🇷|🇨|\u0600|🇩🇪"),
    ],
)
def test_word_mode_examples(text, tokens):
    assert Tokenizer().tokens(text) == tokens.split("|")


def test_char_and_space_mode_examples():
    assert Tokenizer("char").tokens("e\u0301 猫\n👍🏽") == ["e\u0301", " ", "猫", "👍🏽"]
    assert Tokenizer("char").tokens("🇩🇪🇫🇷\u0301🇨co\u00ado") == ["🇩🇪", "🇫🇷\u0301", "🇨", "c", "o", "\u00ad", "o"]
    assert Tokenizer("space").split("a @-@ b\n\n<unk> ") == ["a", "@-@", "b", "\n", "\n", "<unk>"]


def test_space_mode_splits_only_at_ascii_blanks():
    words = ["10\u00a0000", "a\u3000b", "c\u2028d", "e\x0bf", "\x0c", "g\x1ch", "\x85", "\ufeff"]
    assert Tokenizer("space").split(" ".join(words) + "\tx\r\ny") == [*words, "x", "\n", "y"]


def test_char_mode_splits_into_unicode_graphemes():
    text = "🇩🇪🇫🇷\u0301🇨e\u0301\u0600🇩🇪👩\u200d👧\r\n각क्षि\u00ad"
    assert Tokenizer("char").split(text) == regex.findall(r"\X", text)


def test_long_runs_are_tokenized_in_linear_time():
    """A chunk may be one long run of any characters, for which quadratic time would be minutes."""
    runs = [
        "🇩🇪",
        "\u0301",
        "\u200d",
        "\u2060",
        "\u0301\u0323",
        "👩\u200d",
        "'",
        "-",
        "1.",
        "1\u2060.",
        "\u0600",
        "\u1100",
        "カ",
        "\uff9e",
        "a'",
    ]
    for run in runs:
        text = "a" + run * (100_000 // len(run)) + "a"
        tokenizer = Tokenizer(normalization="NFKC")
        tokens = tokenizer.split(tokenizer.normalize(text))
        assert "".join(tokens) == tokenizer.normalize(text)
        tokenizer.detokenize(tokens)
    assert len(Tokenizer("char").split("🇩🇪" * 50_000)) == 50_000


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_long_runs_of_marks_are_normalized_correctly(form):
    text = "a" + "\u0301\u0323\u0345\u0344\u0f73\u3099\uff9e\u0903" * 20 + "b"
    assert Tokenizer(normalization=form).normalize(text) == unicodedata.normalize(form, text)


def test_normalization_and_lowercase():
    assert Tokenizer(lowercase=True, normalization="NFKC").tokens("ＡB ﬁN") == ["ab", "fin"]
    assert Tokenizer(normalization="NFC").tokens("e\u0301") == [unicodedata.normalize("NFC", "e\u0301")]


@pytest.mark.parametrize(
    "text",
    [
        '"Where are you going?" asked the fox. "Home," said the hen.',
        "It's 50% of $1,234.56 (or 3.14), isn't it?",
        "'I am here,' he said; the dogs' tails [all three] wagged…",
        "“Quoted,” said O’Neil: ‘twice’ and/or more.",
        "她说：“你好！”然后——走了……第3天，我喜欢 Python。",
        "東京タワーへ行きました。「はい」",
        'A line.\n"Another" line.\n\nThe "last.',
        'An "open quote.\nThe "next" line.',
        "안녕하세요, 세계!",
        "“\u200fשלום\u200f”\u200f.\u200f",
        "猫\u2060犬",
    ],
)
def test_detokenize_restores_text(text):
    tokenizer = Tokenizer()
    assert tokenizer.detokenize(tokenizer.split(text)) == text


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("He did n't say `` hello '' to ' em , I 'm sure .", "He didn't say \"hello\" to 'em, I'm sure."),
        ("a role @-@ playing game , 1 @,@ 234 @.@ 5 %", "a role-playing game, 1,234.5%"),
        ("the character 猫 means <unk>", "the character 猫 means <unk>"),
        ("", ""),
    ],
)
def test_detokenize_joins_treebank_and_wikitext_tokens(tokens, text):
    assert Tokenizer("space").detokenize(tokens.split()) == text


@given(TEXTS)
def test_detokenize_characters_is_exact(text):
    assert Tokenizer("char").detokenize(Tokenizer("char").split(text)) == text


@given(TEXTS)
def test_detokenize_only_adds_spaces(text):
    tokenizer = Tokenizer()
    text = regex.sub("``|''|`", "", text)  # these are written as quotation marks
    assert without_whitespace(tokenizer.detokenize(tokenizer.split(text))) == without_whitespace(text)


@pytest.mark.parametrize("wrong", [{"mode": "words"}, {"normalization": "nfc"}])
def test_tokenizer_refuses_invalid_settings(wrong):
    with pytest.raises(FflmError, match="must be one of"):
        Tokenizer(**wrong)


def test_chinese_words_replace_han_characters_only():
    tokenizer = Tokenizer("chinese")
    text = "我来到北京清华大学，在3.5万人中。\n猫\ufe00 is a cat"
    tokens = ["我", "来到", "北京", "清华大学", "，", "在", "3.5", "万人", "中", "。", "\n", "猫\ufe00", "is", "a", "cat"]
    assert tokenizer.split(text) == tokens
    assert tokenizer.detokenize(tokens[:5]) == "我来到北京清华大学，"


def test_long_runs_of_chinese_are_cut_in_time():
    assert "".join(Tokenizer("chinese").split("龘" * 50_000)) == "龘" * 50_000  # quadratic time would be minutes


def test_missing_segmenter_of_chinese_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr(chinese, "_cutter", chinese._cutter.__wrapped__)
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(FflmError, match=r"^words of Chinese text need the library jieba: install it with `pip install .*chinese"):
        Tokenizer("chinese").split("猫")
