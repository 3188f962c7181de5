"""The tokenizer: it splits text into tokens, and joins tokens into readable text."""

import itertools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import regex
from msgspec import UNSET, Meta, UnsetType

from fflm.arguments import Settings
from fflm.errors import FflmError
from fflm.text.chinese import cut_words
from fflm.text.subwords import Subwords, find

LINE_END = "\n"
"""The token that stands for the end of a line; no other token contains a newline."""

Mode = Literal["word", "char", "space", "subword", "chinese"]
Normalization = Literal["NFC", "NFD", "NFKC", "NFKD"]

ASCII_BLANKS = " \t\r\n"
"""The only characters that separate the words of text that is tokenized already, as in SRILM and KenLM's `lmplz`."""

# Characters of scripts written without spaces, and pictographs, are tokens of their own, not letters of a word.
_APART = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Extended_Pictographic}"
_EXTEND = r"\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}"
# Invisible characters: soft hyphen, joiners, marks of direction, byte-order mark. By rule WB4 of Unicode Standard Annex 29 they
# belong to the character before them, whatever that is. (Arabic number signs, which are Format characters that prepend, are
# visible.)
_FORMAT = r"[\p{Cf}--[\p{GCB=Prepend}\u200b]]"
_LETTER = rf"[[\p{{L}}\p{{N}}\p{{GCB=Prepend}}]--[{_APART}]]"
_INNER = rf"[[\p{{L}}\p{{N}}\p{{GCB=Prepend}}{_EXTEND}]--[{_APART}]]"
_IGNORED = rf"[{_EXTEND}{_FORMAT}]"
_REST = rf"[{_INNER}{_FORMAT}]"  # of a word, after its first letter
# The characters that str.isspace() accepts beyond \s are named, so that white space is the same in all modes; U+200B separates
# words, too.
_BLANK = r"\s\x1c-\x1f\u200b"

_WORD_TOKENS = regex.compile(
    r"[A-Za-z]++(?=[ \n,.])"  # most tokens of an English text, matched without Unicode's tables
    r"|[.,!?;:](?=[ \n])"
    r"|\n"
    rf"|{_LETTER}{_REST}*+(?:(?:['’‐‑-]|(?<=\d{_FORMAT}*)[.,:](?={_FORMAT}*\d)){_FORMAT}*+{_INNER}{_REST}*+)*+"
    rf"|[\p{{Katakana}}ーｰ][\p{{Katakana}}ーｰ{_IGNORED}]*+"
    rf"|(?:\.{{2,}}|-{{2,}}|…+|—+|``|''){_IGNORED}*+"
    rf"|\p{{RI}}{{2}}{_IGNORED}*+"  # flags; \X would count them from the start of the run each time, which takes quadratic time
    # The rest: it does not begin with a prepended mark, which is a letter here, and which \X would join to white space.
    rf"|(?=[^{_BLANK}{_FORMAT}])\X{_IGNORED}*+",
    regex.V1,
)
# Han characters without marks such as variation selectors, which would be cut off. jieba takes quadratic time for a long run.
_HAN = regex.compile(rf"((?:\p{{Han}}(?!{_IGNORED})){{1,500}}+)", regex.V1)
GRAPHEMES = regex.compile(rf"\p{{RI}}{{2}}[{_EXTEND}]*+|\X", regex.V1)
"""Matches a grapheme cluster of Unicode Standard Annex 29."""

_MANY_MARKS = regex.compile(r"[\p{M}\uff9e\uff9f]{64,}")

# Spelling and spacing of tokens in running text. Penn Treebank, Brown and WikiText spell some tokens in their own ways.
_SPELLING = {"``": '"', "''": '"', "`": "'", "@-@": "-", "@,@": ",", "@.@": "."}
_JOINING = frozenset({"@-@", "@,@", "@.@", "/"})
_OPENING = frozenset("([{“‘«¿¡$£€#") | {"``", "`"}
_CLOSING = regex.compile(r"[.,!?;:%)\]}…”’»।॥،؛؟]+|''|n['’]t|['’](?:s|m|d|re|ve|ll)", regex.V1 | regex.IGNORECASE)
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\u3000-\u303f\uff00-\uffef]"
_STARTS_CJK = regex.compile(_CJK, regex.V1)
_ENDS_CJK = regex.compile(
    rf"(?r){_CJK}{_IGNORED}*", regex.V1
)  # matched from the end, because forwards it would take quadratic time
_ENDS_INVISIBLY = regex.compile(rf"(?r){_FORMAT}+\Z", regex.V1)
_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]", regex.V1)


@dataclass(frozen=True)
class Tokenizer(Settings):
    """The rule that splits text into tokens.

    Raises
    ------
    FflmError
        If the mode or the normalization form does not exist; and, when text is split, if the subwords are not known.

    Notes
    -----
    In mode ``"word"`` tokens are words with inner apostrophes and hyphens, numbers, and every other grapheme by itself (so each
    Han character and each punctuation mark is a token; ``...``, ``--`` and quotes such as double backticks stay whole). In mode
    ``"char"`` tokens are grapheme clusters, spaces included. Mode ``"space"`` is for text that is tokenized already: it is split
    at `ASCII_BLANKS` and nowhere else, so that a no-break space is part of a word. In mode ``"subword"`` tokens are those of a
    `fflm.text.subwords.Subwords`, which must be known when the tokenizer is made, and are spelled as in its file. Mode
    ``"chinese"`` is mode ``"word"`` with words in place of Han characters.

    Only white space is lost (in the modes ``"char"`` and ``"subword"``, only line ends): the tokens joined are the normalized
    text without it, unless a tokenizer.json that someone else made changes the text.
    Graphemes, which are emoji sequences and letters with their marks, are never broken (Unicode Standard Annex 29,
    https://www.unicode.org/reports/tr29/).

    In mode ``"word"``, invisible Format characters (soft hyphen, joiners, marks of direction, a byte-order mark inside a text)
    are not words and do not break words. By the annex's rule WB4 they belong to the character before them: to a word, which
    keeps them, or to white space, with which they are lost, as they are at the beginning of a line. The zero width space U+200B,
    which marks the ends of words in scripts without spaces, is white space.
    """

    mode: Annotated[
        Mode,
        Meta(
            description="Split text into words and punctuation, into characters, only at spaces, tabs and line ends, into "
            "subwords, so that no word is unknown, or into words and Chinese words."
        ),
    ] = "word"
    lowercase: Annotated[bool, Meta(description="Convert the text to lower case.")] = False
    normalization: Annotated[
        Normalization | None, Meta(description="Unicode normalization form, applied before lower-casing.")
    ] = None
    subwords: Annotated[
        str | UnsetType, Meta(description="The SHA-256 of the tokenizer.json of subwords, which is in the same folder.")
    ] = UNSET

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not a field, so that it is not stored in JSON; but it is pickled, because another process has not read the file.
        object.__setattr__(self, "_subwords", find(self.subwords) if self.subwords is not UNSET else None)

    @property
    def cuts_at_blanks(self) -> bool:
        """Whether no token depends on text beyond a space, so that the pieces between spaces can be tokenized by themselves."""
        return self.mode not in ("char", "subword")

    def normalize(self, text: str) -> str:
        """Return the text in the normalization form, in lower case if the tokenizer is set to that."""
        if self.normalization is not None:
            form: Literal["NFD", "NFKD"] = "NFKD" if "K" in self.normalization else "NFD"
            text = _MANY_MARKS.sub(lambda match: _ordered(match[0], form), text)
            text = unicodedata.normalize(self.normalization, text)
        return text.lower() if self.lowercase else text

    def split(self, text: str) -> list[str]:
        """Split normalized text into tokens, with `LINE_END` for each newline."""
        if self.mode == "word":
            return cast(list[str], _WORD_TOKENS.findall(text))
        if self.mode == "char":
            return cast(list[str], GRAPHEMES.findall(text))
        if self.mode == "subword":
            first, *others = text.split("\n")
            split = self.known_subwords().split
            return [*split(first), *(token for line in others for token in (LINE_END, *split(line)))]
        if self.mode == "chinese":
            return [word for piece in _HAN.split(text) for word in _words(piece)]
        pieces = text.replace("\n", f" {LINE_END} ").replace("\t", " ").replace("\r", " ").split(" ")  # of `ASCII_BLANKS`
        return list(filter(None, pieces))

    def is_blank(self, character: str) -> bool:
        """Return whether a character separates tokens, and so is lost."""
        if self.mode == "space":
            return character in ASCII_BLANKS
        return self.mode in ("word", "chinese") and (character.isspace() or character == "\u200b")

    def tokens(self, text: str) -> list[str]:
        """Normalize and split text; newlines are white space."""
        return [token for token in self.split(self.normalize(text)) if token != LINE_END]

    def detokenize(self, tokens: Iterable[str]) -> str:
        """Join tokens into text that reads naturally in English, Chinese and Japanese.

        Parameters
        ----------
        tokens
            Tokens of this tokenizer. `LINE_END` becomes a newline. Within a line, straight quotes are opening and closing by
            turns.
        """
        if self.mode == "char":
            return "".join(tokens)
        if self.mode == "subword":
            lines = (list(line) for ends, line in itertools.groupby(tokens, LINE_END.__eq__))
            return "".join("".join(line) if line[0] == LINE_END else self.known_subwords().join(line) for line in lines)
        text: list[str] = []
        before = LINE_END
        glued = True  # whether the next token follows the previous one without a space
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
            if not (glued or closes or token in _JOINING or _adjoin(before, token)):
                text.append(" ")
            text.append(shown)
            before, glued = bare, opens or token == LINE_END or token in _JOINING
        return "".join(text)

    def readable(self, token: str) -> str:
        """Return a token as text, for people to read: a subword may be spelled in another way (`Subwords.readable`)."""
        return self.known_subwords().readable(token) if self.mode == "subword" else token

    def known_subwords(self) -> Subwords:
        """Return the subwords.

        Raises
        ------
        FflmError
            If they are not known.
        """
        known: Subwords | None = vars(self)["_subwords"]
        if known is None:
            raise FflmError("a tokenizer of subwords must be trained first: use that of a model (`model.text.tokenizer`)")
        return known


def _words(text: str) -> list[str]:
    """Split a text into words and punctuation, or, if it is a run of Han characters, into Chinese words."""
    return cut_words(text) if _HAN.match(text) else _WORD_TOKENS.findall(text)


def _adjoin(left: str, right: str) -> bool:
    """Return whether two tokens are joined because one is Chinese or Japanese; it is not joined to a word of another script."""
    left_cjk, right_cjk = _ENDS_CJK.match(left) is not None, _STARTS_CJK.match(right) is not None
    if left_cjk == right_cjk:
        return left_cjk
    return _LETTER_OR_MARK.match(left[-1:]) is None or _LETTER_OR_MARK.match(right) is None


def _ordered(marks: str, form: Literal["NFD", "NFKD"]) -> str:
    """Decompose a run of marks and put it in canonical order, for which `unicodedata.normalize` takes quadratic time."""
    decomposed = "".join(unicodedata.normalize(form, mark) for mark in marks)
    runs = itertools.groupby(decomposed, lambda mark: unicodedata.combining(mark) == 0)
    return "".join("".join(run if starters else sorted(run, key=unicodedata.combining)) for starters, run in runs)
