"""The tokenizer loses nothing, breaks no grapheme, and its tokens join into readable text."""

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from fflm.errors import FflmError
from fflm.text.tokenizer import LINE_END, Tokenizer

# Ordinary text is rare among random characters, so pieces that meet in awkward ways are mixed in.
PIECES = ["don't", "’", "'", "-", "--", "...", "3.14", ",", "``", "\n", " ", "\x1c", "\u3000", "猫", "カー", "か\u3099", "\u0301"]
PIECES += ["👩‍👩‍👧", "👍🏽", "🇩🇪", "1\ufe0f\u20e3", "\u200d", "\u0600", "한국어", "é", "İ", "ﬁ", "<unk>", "क्षि", "\U000e0067"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=20).map("".join)
TOKENIZERS = st.builds(
    Tokenizer,
    mode=st.sampled_from(["word", "char", "space"]),
    lowercase=st.booleans(),
    normalization=st.sampled_from([None, "NFC", "NFD", "NFKC", "NFKD"]),
)


def without_whitespace(text):
    return "".join(character for character in text if not character.isspace())


@given(TEXTS, TOKENIZERS)
def test_only_whitespace_is_lost(text, tokenizer):
    normal = tokenizer.normalize(text)
    tokens = tokenizer.tokens(text)
    if tokenizer.mode == "char":
        assert "".join(tokens) == regex.sub("\n", "", normal)
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
        if not regex.search(r"[\s\x1c-\x1f\p{GCB=Prepend}]", match[0]):
            assert not boundaries & set(range(match.start() + 1, match.end())), match[0]


@given(TEXTS)
def test_whitespace_separates(text):
    """No token depends on what stands beyond whitespace, so text may be cut there."""
    assert Tokenizer().tokens(text) == [token for piece in text.split() for token in Tokenizer().tokens(piece)]


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
    ],
)
def test_words(text, tokens):
    assert Tokenizer().tokens(text) == tokens.split("|")


def test_characters_and_spaces():
    assert Tokenizer("char").tokens("e\u0301 猫\n👍🏽") == ["e\u0301", " ", "猫", "👍🏽"]
    assert Tokenizer("space").split("a @-@ b\n\n<unk> ") == ["a", "@-@", "b", "\n", "\n", "<unk>"]


def test_normalization_and_case():
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
    ],
)
def test_detokenize_restores(text):
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
def test_detokenize_tokenised_text(tokens, text):
    assert Tokenizer("space").detokenize(tokens.split()) == text


@given(TEXTS)
def test_detokenize_characters_is_exact(text):
    assert Tokenizer("char").detokenize(Tokenizer("char").split(text)) == text


@given(TEXTS)
def test_detokenize_only_adds_spaces(text):
    tokenizer = Tokenizer()
    text = regex.sub("``|''|`", "", text)  # these are spelled as quotes
    assert without_whitespace(tokenizer.detokenize(tokenizer.split(text))) == without_whitespace(text)


@pytest.mark.parametrize("wrong", [{"mode": "words"}, {"normalization": "nfc"}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(FflmError, match="must be one of"):
        Tokenizer(**wrong)
