"""Tokens out of text, and readable text out of tokens."""

import itertools
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

ASCII_BLANKS = " \t\r\n"
"""What separates the words of text that is tokenised already: as in SRILM and KenLM's `lmplz`, no other white space does."""

# Scripts written without spaces, and pictographs, are not letters of a word.
_APART = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Extended_Pictographic}"
_EXTEND = r"\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}"
# Invisible characters: soft hyphen, joiners, marks of direction, byte-order mark. Rule WB4 of Unicode Standard Annex 29 lets
# them belong to the character before them, whatever that is. (Format characters that prepend, Arabic number signs, are visible.)
_FORMAT = r"[\p{Cf}--[\p{GCB=Prepend}\u200b]]"
_LETTER = rf"[[\p{{L}}\p{{N}}\p{{GCB=Prepend}}]--[{_APART}]]"
_INNER = rf"[[\p{{L}}\p{{N}}\p{{GCB=Prepend}}{_EXTEND}]--[{_APART}]]"
_IGNORED = rf"[{_EXTEND}{_FORMAT}]"
_REST = rf"[{_INNER}{_FORMAT}]"  # of a word
_REST = rf"[{_INNER}{_FORMAT}]"  # of a word
# What str.isspace() accepts beyond \s is named, so that every mode agrees on what white space is; U+200B separates words, too.
_BLANK = r"\s\x1c-\x1f\u200b"

_WORD_TOKENS = regex.compile(
    r"[A-Za-z]++(?=[ \n,.])"  # most tokens of an English text, without a look at Unicode's tables
    r"|[.,!?;:](?=[ \n])"
    r"|\n"
    rf"|{_LETTER}{_REST}*+(?:(?:['’‐‑-]|(?<=\d{_FORMAT}*)[.,:](?={_FORMAT}*\d)){_FORMAT}*+{_INNER}{_REST}*+)*+"
    rf"|[\p{{Katakana}}ーｰ][\p{{Katakana}}ーｰ{_IGNORED}]*+"
    rf"|(?:\.{{2,}}|-{{2,}}|…+|—+|``|''){_IGNORED}*+"
    rf"|\p{{RI}}{{2}}{_IGNORED}*+"  # flags: \X counts them from the first of a run for each, which takes quadratic time
    rf"|(?=[^{_BLANK}{_FORMAT}])\X{_IGNORED}*+",  # never begins with a prepended mark, a letter here, which would take in blanks
    regex.V1,
)
GRAPHEMES = regex.compile(rf"\p{{RI}}{{2}}[{_EXTEND}]*+|\X", regex.V1)
"""Matches a grapheme cluster of Unicode Standard Annex 29."""

_MANY_MARKS = regex.compile(r"[\p{M}\uff9e\uff9f]{64,}")

# How tokens stand in running text. Tokens of Penn Treebank, Brown and WikiText have a spelling of their own.
_SPELLING = {"``": '"', "''": '"', "`": "'", "@-@": "-", "@,@": ",", "@.@": "."}
_JOINING = frozenset({"@-@", "@,@", "@.@", "/"})
_OPENING = frozenset("([{“‘«¿¡$£€#") | {"``", "`"}
_CLOSING = regex.compile(r"[.,!?;:%)\]}…”’»।॥،؛؟]+|''|n['’]t|['’](?:s|m|d|re|ve|ll)", regex.V1 | regex.IGNORECASE)
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\u3000-\u303f\uff00-\uffef]"
_STARTS_CJK = regex.compile(_CJK, regex.V1)
_ENDS_CJK = regex.compile(rf"(?r){_CJK}{_IGNORED}*", regex.V1)  # from the end: forwards it would take quadratic time
_ENDS_INVISIBLY = regex.compile(rf"(?r){_FORMAT}+\Z", regex.V1)
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
    ``"char"``: grapheme clusters, spaces included. ``"space"``: text that is tokenised already, split at `ASCII_BLANKS` and
    nowhere else, so that a no-break space is part of a word.

    Nothing but white space is lost (in mode ``"char"``, nothing but line ends): the tokens joined are the normalised
    text without it. Graphemes, which are emoji sequences and letters with their marks, are never broken (Unicode
    Standard Annex 29, https://www.unicode.org/reports/tr29/).

    In mode ``"word"``, invisible Format characters (soft hyphen, joiners, marks of direction, a byte-order mark inside a text)
    neither are words nor break them. By the annex's rule WB4 they belong to the character before them: to a word, which keeps
    them, or to white space, with which they are lost, as at the beginning of a line. The zero width space U+200B, which marks
    where words end in scripts without spaces, is white space.
    """

    mode: Annotated[
        Mode, Meta(description="Split text into words and punctuation, into characters, or only at spaces, tabs and line ends.")
    ] = "word"
    lowercase: Annotated[bool, Meta(description="Lower-case the text.")] = False
    normalization: Annotated[
        Normalization | None, Meta(description="Unicode normalization form, applied before lower-casing.")
    ] = None

    def normalize(self, text: str) -> str:
        """Return the text in the normalization form, lower-cased if the tokenizer says so."""
        if self.normalization is not None:
            form: Literal["NFD", "NFKD"] = "NFKD" if "K" in self.normalization else "NFD"
            text = _MANY_MARKS.sub(lambda match: _ordered(match[0], form), text)
            text = unicodedata.normalize(self.normalization, text)
        return text.lower() if self.lowercase else text

    def split(self, text: str) -> list[str]:
        """Split normalised text into tokens, with ``LINE_END`` for each newline."""
        if self.mode == "word":
            return cast(list[str], _WORD_TOKENS.findall(text))
        if self.mode == "char":
            return cast(list[str], GRAPHEMES.findall(text))
        pieces = text.replace("\n", f" {LINE_END} ").replace("\t", " ").replace("\r", " ").split(" ")  # of `ASCII_BLANKS`
        return list(filter(None, pieces))

    def is_blank(self, character: str) -> bool:
        """Whether a character separates tokens and is lost."""
        if self.mode == "space":
            return character in ASCII_BLANKS
        return self.mode == "word" and (character.isspace() or character == "\u200b")

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
            bare = token if token.isascii() else _ENDS_INVISIBLY.sub("", token)
            opens = bare in _OPENING
            closes = _CLOSING.fullmatch(bare) is not None
            if token == LINE_END:
                closes = True
                is_open = dict.fromkeys(is_open, False)
            elif bare in is_open:
                possessive = bare == "'" and not is_open[bare] and before[-1:] in {"s", "S"}
                closes = is_open[bare] or possessive
                opens = not closes
                is_open[bare] = opens
            if not (glued or closes or token in _JOINING or _touching(before, token)):
                text.append(" ")
            text.append(shown)
            before, glued = bare, opens or token == LINE_END or token in _JOINING
        return "".join(text)


def _touching(left: str, right: str) -> bool:
    """Whether two tokens stand together because one is Chinese or Japanese, as all do but it and a foreign word."""
    left_cjk, right_cjk = _ENDS_CJK.match(left) is not None, _STARTS_CJK.match(right) is not None
    if left_cjk == right_cjk:
        return left_cjk
    return _LETTER_OR_MARK.match(left[-1:]) is None or _LETTER_OR_MARK.match(right) is None


def _ordered(marks: str, form: Literal["NFD", "NFKD"]) -> str:
    """Return a run of marks decomposed and in canonical order, for which `unicodedata.normalize` takes quadratic time."""
    decomposed = "".join(unicodedata.normalize(form, mark) for mark in marks)
    runs = itertools.groupby(decomposed, lambda mark: unicodedata.combining(mark) == 0)
    return "".join("".join(run if starters else sorted(run, key=unicodedata.combining)) for starters, run in runs)
