"""Tokens out of text, and readable text out of tokens."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import regex
from msgspec import Meta

from fflm.arguments import Settings

LINE_END = "\n"
"""The token that stands for the end of a line; no other token contains a newline."""

Mode = Literal["word", "char", "space"]
Normalization = Literal["NFC", "NFD", "NFKC", "NFKD"]

# Scripts written without spaces, and pictographs, are not letters of a word. What str.isspace() accepts beyond \s is
# named, so that every mode agrees on what whitespace is.
_APART = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Extended_Pictographic}"
_EXTEND = r"\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}"
_LETTER = rf"[[\p{{L}}\p{{N}}\p{{GCB=Prepend}}]--[{_APART}]]"
_INNER = rf"[[\p{{L}}\p{{N}}\p{{GCB=Prepend}}{_EXTEND}]--[{_APART}]]"
_BLANK = r"\s\x1c-\x1f"

_WORD_TOKENS = regex.compile(
    r"[A-Za-z]++(?=[ \n,.])"  # most words of an English text, without a look at Unicode's tables
    r"|\n"
    rf"|{_LETTER}{_INNER}*+(?:['’‐‑-]{_INNER}++|(?<=\d)[.,:](?=\d){_INNER}++)*+"
    rf"|[\p{{Katakana}}ーｰ][\p{{Katakana}}ーｰ{_EXTEND}]*+"
    rf"|(?:\.{{2,}}|-{{2,}}|…+|—+|``|'')[{_EXTEND}]*+"
    rf"|(?=[^{_BLANK}])\X",  # never begins with a prepended mark, a letter here, which would take in whitespace
    regex.V1,
)
_GRAPHEMES = regex.compile(r"\X", regex.V1)

# How tokens stand in running text. Tokens of Penn Treebank, Brown and WikiText have a spelling of their own.
_SPELLING = {"``": '"', "''": '"', "`": "'", "@-@": "-", "@,@": ",", "@.@": "."}
_JOINING = frozenset({"@-@", "@,@", "@.@", "/"})
_OPENING = frozenset("([{“‘«¿¡$£€#") | {"``", "`"}
_CLOSING = regex.compile(r"[.,!?;:%)\]}…”’»।॥،؛؟]+|''|n['’]t|['’](?:s|m|d|re|ve|ll)", regex.V1 | regex.IGNORECASE)
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\u3000-\u303f\uff00-\uffef]"
_STARTS_CJK = regex.compile(_CJK, regex.V1)
_ENDS_CJK = regex.compile(rf"{_CJK}[{_EXTEND}]*\Z", regex.V1)
_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]", regex.V1)


@dataclass(frozen=True)
class Tokenizer(Settings):
    """The rule that splits text into tokens.

    Raises
    ------
    FflmError
        If the mode or the normalization form does not exist.

    Notes
    -----
    Mode ``"word"``: words with inner apostrophes and hyphens, numbers, every other grapheme by itself (so each Han
    character and each punctuation mark is a token; ``...``, ``--`` and quotes such as double backticks stay whole).
    ``"char"``: grapheme clusters, spaces included. ``"space"``: text that is tokenised already, split at whitespace.

    Nothing but whitespace is lost (in mode ``"char"``, nothing but line ends): the tokens joined are the normalised
    text without it. Graphemes, which are emoji sequences and letters with their marks, are never broken (Unicode
    Standard Annex 29, https://www.unicode.org/reports/tr29/).
    """

    mode: Annotated[Mode, Meta(description="Split text into words and punctuation, into characters, or only at white space.")] = (
        "word"
    )
    lowercase: Annotated[bool, Meta(description="Lower-case the text.")] = False
    normalization: Annotated[
        Normalization | None, Meta(description="Unicode normalization form, applied before lower-casing.")
    ] = None

    def normalize(self, text: str) -> str:
        """Return the text in the normalization form, lower-cased if the tokenizer says so."""
        if self.normalization is not None:
            text = unicodedata.normalize(self.normalization, text)
        return text.lower() if self.lowercase else text

    def split(self, text: str) -> list[str]:
        """Split normalised text into tokens, with ``LINE_END`` for each newline."""
        if self.mode == "word":
            return cast(list[str], _WORD_TOKENS.findall(text))
        if self.mode == "char":
            return cast(list[str], _GRAPHEMES.findall(text))
        tokens: list[str] = []
        for line in text.split("\n"):
            tokens += line.split()
            tokens.append(LINE_END)
        return tokens[:-1]

    def tokens(self, text: str) -> list[str]:
        """Normalise and split text; newlines are whitespace."""
        return [token for token in self.split(self.normalize(text)) if token != LINE_END]

    def detokenize(self, tokens: Iterable[str]) -> str:
        """Join tokens into text that reads naturally in English, Chinese and Japanese.

        Parameters
        ----------
        tokens
            Tokens of this tokenizer; ``LINE_END`` becomes a newline. Straight quotes open and close in turn within a
            line.
        """
        if self.mode == "char":
            return "".join(tokens)
        text: list[str] = []
        before = LINE_END
        glued = True  # nothing stands between the token before and the next one
        is_open = {'"': False, "'": False}
        for token in tokens:
            shown = _SPELLING.get(token, token)
            opens = token in _OPENING
            closes = _CLOSING.fullmatch(token) is not None
            if token == LINE_END:
                closes = True
                is_open = dict.fromkeys(is_open, False)
            elif token in is_open:
                possessive = token == "'" and not is_open[token] and before[-1:] in {"s", "S"}
                closes = is_open[token] or possessive
                opens = not closes
                is_open[token] = opens
            if not (glued or closes or token in _JOINING or _touching(before, token)):
                text.append(" ")
            text.append(shown)
            before, glued = token, opens or token == LINE_END or token in _JOINING
        return "".join(text)


def _touching(left: str, right: str) -> bool:
    """Whether two tokens stand together because one is Chinese or Japanese, as all do but it and a foreign word."""
    left_cjk, right_cjk = _ENDS_CJK.search(left) is not None, _STARTS_CJK.match(right) is not None
    if left_cjk == right_cjk:
        return left_cjk
    return _LETTER_OR_MARK.match(left[-1:]) is None or _LETTER_OR_MARK.match(right) is None
