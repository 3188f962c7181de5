"""The vocabulary: the words that a model knows, and their ids."""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypedDict

import regex
from msgspec import Meta

from fflm.arguments import Positive, Settings, check_ids
from fflm.errors import FflmError
from fflm.files import open_regular, write_text
from fflm.stored import REMEDY, read_whole
from fflm.text.reading import read_lines
from fflm.text.tokenizer import ASCII_BLANKS, LINE_END

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fflm.text.words import TextFigures, WordTable

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
SYMBOLS = frozenset({UNKNOWN, START, END})

_ESCAPED = regex.compile(r"\\u([0-9a-f]{4})")
_BLANK = regex.compile(r"[\s\x1c-\x1f]")
_WELL_FORMED = re.compile(r"(?:[^\s]++\t[0-9]{1,18}+\n)++")
_COUNT = regex.compile(r"[0-9]{1,18}")
_FEW = 32  # number of tokens that are looked up in a table one by one


MinCount: TypeAlias = Annotated[Positive, Meta(description="Words that occur less often are unknown, <unk>.")]
MaxSize: TypeAlias = Annotated[
    Annotated[int, Meta(ge=3)] | None,
    Meta(description="Size of the vocabulary, symbols included, at most: it keeps the most frequent words."),
]


@dataclass(frozen=True)
class VocabularyRule(Settings):
    """Which words a vocabulary holds.

    Raises
    ------
    FflmError
        If a number is out of range.
    """

    min_count: MinCount = 2
    max_size: MaxSize = 50_000
    words: Annotated[
        Path | None,
        Meta(description="File that gives the words of the vocabulary, one per line; for subwords, a tokenizer.json."),
    ] = None
    source: Annotated[
        Literal["train", "all"],
        Meta(description="Count words in the training text only, or in held-out text too (as Bengio et al. did)."),
    ] = "train"


class VocabularyAbout(TypedDict):
    """The description in a JSON file of the file of words beside it, from `Vocabulary.to_dict` for `Vocabulary.load`."""

    size: int
    ends: bool
    rule: str
    sha256: str


class Vocabulary:
    """Words and their ids: ``<unk>`` is 0, ``</s>`` is 1 if ends are predicted, then come the words by decreasing count.

    ``<s>`` occurs in contexts only. Its id is V, the length of the vocabulary, so that the output layer has exactly V rows. A
    token of the text that is spelled like one of the three symbols is an unknown word. In lists of tokens the end of a line is
    `LINE_END`; its name ``</s>`` is for display only.

    Parameters
    ----------
    words
        The word of each id, (V,), ``<unk>`` first, then ``</s>`` if ``ends``.
    counts
        The number of occurrences of each word in the text that was counted, (V,).
    ends
        Whether ends (of lines or sentences) are predicted.
    rule
        A phrase that says how the words were chosen.

    Raises
    ------
    FflmError
        If the words do not begin with the symbols, are not distinct, or are not as many as the counts.
    """

    _table: "WordTable | None" = None  # of a vocabulary that was loaded from such a file
    _looked_up = 0  # number of tokens, approximately if several threads look them up
    _sha256: str | None = None  # of the words and counts of such a vocabulary

    def __init__(self, words: Sequence[str], counts: Sequence[int], *, ends: bool, rule: str) -> None:
        symbols = _symbols(ends)
        self.words = list(words)
        self.counts = list(counts)
        self.ends = ends
        self.rule = rule
        self._ids = dict(zip(self.words[len(symbols) :], itertools.count(len(symbols)), strict=False))
        distinct = len(self._ids) == len(self.words) - len(symbols) and not SYMBOLS & self._ids.keys()
        if self.words[: len(symbols)] != symbols or len(self.counts) != len(self.words) or not distinct:
            raise FflmError(f"a vocabulary has {' '.join(symbols)}, then distinct words, and a count of each")
        if ends:
            self._ids[LINE_END] = 1

    @classmethod
    def _of_table(cls, table: "WordTable", description: VocabularyAbout) -> "Vocabulary":
        """Return the vocabulary of a table, which makes lists and a dictionary of its words when they are needed."""
        vocabulary = cls.__new__(cls)
        vocabulary._table, vocabulary._sha256 = table, description["sha256"]
        vocabulary.ends, vocabulary.rule = description["ends"], description["rule"]
        return vocabulary

    @cached_property
    def words(self) -> list[str]:
        """The word of each id, (V,)."""
        assert self._table is not None
        return self._table.words

    @cached_property
    def counts(self) -> list[int]:
        """The count of each word, (V,)."""
        assert self._table is not None
        return self._table.counts

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The ids of the words, and of `LINE_END`, but not of the symbols."""
        try:
            return Vocabulary(self.words, self.counts, ends=self.ends, rule=self.rule)._ids
        except FflmError as error:
            assert self._table is not None
            raise FflmError(f"{self._table.path} is damaged ({error}): {REMEDY}") from error

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        *,
        ends: bool,
        min_count: int = 1,
        max_size: int | None = None,
        source: str = "train",
    ) -> "Vocabulary":
        """Keep the most frequent words.

        Parameters
        ----------
        counts
            The number of occurrences of each token; that of `LINE_END` is for the ends.
        ends
            Whether ends are predicted.
        min_count
            Words that occur less often are left out.
        max_size
            The largest V, symbols included, at least 3, or None.
        source
            The name of the text that was counted, such as ``"train"``, for the rule.

        Raises
        ------
        FflmError
            If no word is left.
        """
        frequent = _by_count((word for word, count in counts.items() if count >= min_count and _is_word(word)), counts)
        if not frequent:
            most = max((count for word, count in counts.items() if _is_word(word)), default=0)
            if not most:
                raise FflmError(f"there are no words in {source}, only line ends or symbols such as {UNKNOWN}: give other text")
            reason = f"no word is seen {min_count} times in {source}, the most frequent one {most} times"
            raise FflmError(f"{reason}: lower the minimum count (`min_count`), or give more text")
        rule = f"words seen at least {min_count} times in {source}" if min_count > 1 else f"words in {source}"
        if max_size is not None and len(frequent) + 1 + ends > max_size:
            frequent = frequent[: max_size - 1 - ends]
            rule = f"the most frequent {rule}, {max_size} with the symbols"
        return cls._from_kept(frequent, counts, ends, rule)

    @classmethod
    def from_words(
        cls, words: Iterable[str], counts: Mapping[str, int], *, ends: bool, source: str = "train", kind: str = "given words"
    ) -> "Vocabulary":
        """Keep the given words, even those that do not occur; repetitions and symbols among them are ignored.

        Parameters
        ----------
        words
            The words to keep.
        counts, ends, source
            As in ``from_counts``.
        kind
            What the words are, for the rule.

        Raises
        ------
        FflmError
            If no words are given.
        """
        kept = [word for word in dict.fromkeys(words) if _is_word(word)]
        if not kept:
            raise FflmError("the given vocabulary has no words: write one word per line")
        return cls._from_kept(_by_count(kept, counts), counts, ends, f"{len(kept)} {kind}, counted in {source}")

    def recounted(self, counts: Mapping[str, int], added: Sequence[str] = (), rule: str = "") -> "Vocabulary":
        """Return a vocabulary in which all words keep their ids, and the words ``added`` follow, with the counts of another text.

        Parameters
        ----------
        counts
            The number of occurrences of each token of the text, as in ``from_counts``.
        added
            Words that this vocabulary does not contain.
        rule
            A phrase that says how they were chosen.
        """
        symbols = 1 + self.ends
        words = [*self.words, *added]
        known = [counts.get(word, 0) for word in words[symbols:]]
        ends = [counts.get(LINE_END, 0)] if self.ends else []
        unknown = sum(counts.values()) - sum(known) - sum(ends)
        given = f"{len(self):,} words of another model"
        return Vocabulary(words, [unknown, *ends, *known], ends=self.ends, rule=f"{given}, and {rule}" if rule else given)

    def extended(self, counts: Mapping[str, int], rule: VocabularyRule, source: str = "train") -> "Vocabulary":
        """Add the most frequent words of another text that this vocabulary does not contain; see `recounted`.

        Parameters
        ----------
        counts, source
            As in ``from_counts``.
        rule
            Which words are added: ``min_count`` and ``max_size``, which is the largest V of the result.
        """
        new = {word: count for word, count in counts.items() if word not in self and _is_word(word)}
        frequent = _by_count((word for word, count in new.items() if count >= rule.min_count), new)
        if rule.max_size is not None:
            frequent = frequent[: max(0, rule.max_size - len(self))]
        if not frequent:
            return self.recounted(counts)
        added = "1 word" if len(frequent) == 1 else f"{len(frequent):,} words"
        return self.recounted(counts, frequent, f"{added} seen at least {rule.min_count} times in {source}")

    @classmethod
    def _from_kept(cls, kept: Sequence[str], counts: Mapping[str, int], ends: bool, rule: str) -> "Vocabulary":
        """Make a vocabulary of the kept words, in their order, and the symbols; all other tokens are counted as unknown."""
        kept_counts = [counts.get(word, 0) for word in kept]
        end_count = counts.get(LINE_END, 0) if ends else 0
        unknown = sum(counts.values()) - sum(kept_counts) - end_count
        symbols, symbol_counts = ([UNKNOWN, END], [unknown, end_count]) if ends else ([UNKNOWN], [unknown])
        return cls([*symbols, *kept], symbol_counts + kept_counts, ends=ends, rule=rule)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} words, ends={self.ends}; {self.rule})"

    def __len__(self) -> int:
        return len(self.words) if self._table is None else len(self._table)

    def __contains__(self, word: str) -> bool:
        return self.id(word) > 0

    def has_words_of(self, other: "Vocabulary") -> bool:
        """Return whether another vocabulary has the same words with the same ids; those of equal files are not read."""
        return (self._sha256 is not None and self._sha256 == other._sha256) or self.words == other.words

    @property
    def unknown_id(self) -> int:
        """The id of ``<unk>``: 0."""
        return 0

    @property
    def end_id(self) -> int | None:
        """The id of ``</s>``: 1, or None if ends are not predicted."""
        return 1 if self.ends else None

    @property
    def start_id(self) -> int:
        """The id of ``<s>``: V."""
        return len(self)

    @property
    def lines(self) -> str:
        """The words without the symbols, with newlines between them."""
        symbols = 1 + self.ends
        return "\n".join(self.words[symbols:]) if self._table is None else self._table.lines(symbols)

    def id(self, word: str) -> int:
        """Return the id of a word, which is that of ``<unk>`` if the vocabulary does not contain the word."""
        if self._table is None or "_ids" in vars(self):
            return self._ids.get(word, 0)
        if word == LINE_END:
            return int(self.ends)
        id_ = self._table.get(word, 0)
        return id_ if id_ > self.ends else 0

    def encode(self, tokens: Sequence[str]) -> "npt.NDArray[np.int32]":
        """Return the ids of tokens, (N,), int32; those that the vocabulary does not contain are ``<unk>``."""
        import numpy as np  # here, because help texts, which need the defaults of settings, appear sooner without it

        if self._table is not None and "_ids" not in vars(self):
            self._looked_up += len(tokens)
            if self._looked_up < len(self):  # a dictionary is faster, but to make it takes as long as so many look-ups
                if len(tokens) < _FEW:
                    return np.fromiter(map(self.id, tokens), np.int32, len(tokens))
                ids = self._table.ids(tokens)
                ids[ids <= self.ends] = 0
                ids[[token == LINE_END for token in tokens]] = self.ends
                return ids
        return np.fromiter(map(self._ids.get, tokens, itertools.repeat(0)), np.int32, len(tokens))

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ids in [0, V]: `LINE_END` for an end, and the names ``<unk>`` and ``<s>``.

        Raises
        ------
        FflmError
            If an id is out of range, or is not an integer.
        """
        names = [*self.words, START]
        if self.ends:
            names[1] = LINE_END
        given = list(ids) if isinstance(ids, Iterable) and not hasattr(ids, "__array__") else ids
        return [names[id_] for id_ in check_ids("ids", given, len(names)).tolist()]

    def save(self, path: Path) -> None:
        r"""Write a line ``word<TAB>count`` for each id; white space and backslashes in words are written as ``\uXXXX``."""
        write_text(path, self._content)

    def save_table(self, path: Path) -> None:
        """Write the words as arrays beside the file of words at ``path``, so that ``load`` need not read them."""
        from fflm.text.words import WordTable  # here, because it imports safetensors, which takes longer than reading settings

        figures: TextFigures = {"sha256": self.to_dict()["sha256"], "bytes": len(self._content.encode())}
        WordTable.make(self.words, self.counts, table_path(path)).save(figures)

    def to_dict(self) -> VocabularyAbout:
        """Return the description that ``load`` needs beside the file of words, with the checksum of that file."""
        sha256 = hashlib.sha256(self._content.encode()).hexdigest()
        return {"size": len(self), "ends": self.ends, "rule": self.rule, "sha256": sha256}

    @cached_property
    def _content(self) -> str:
        """The content of the file of words."""
        words = escape("\n".join(self.words)).split(escape("\n"))  # all at once, because most have nothing to escape
        if len(words) != len(self):  # a word has a newline
            words = list(map(escape, self.words))
        return "".join(f"{word}\t{count}\n" for word, count in zip(words, self.counts, strict=True))

    @classmethod
    def load(cls, path: Path, description: VocabularyAbout, *, verify: bool = False) -> "Vocabulary":
        """Read a file that ``save`` wrote, or map the arrays that ``save_table`` wrote beside it.

        Parameters
        ----------
        path
            The file of words.
        description
            The result of ``to_dict``.
        verify
            Whether to read the words, and to compare the arrays with them. Otherwise, if there are arrays that were made of a
            file with the checksum in ``description``, only their header and the size of this file are checked.

        Raises
        ------
        FflmError
            If a file cannot be read or is damaged.
        """
        from fflm.text.words import WordTable  # as in `save_table`

        mapped = _map_table(path, description)
        if mapped is not None and not verify:
            return mapped
        content = read_whole(path)
        try:
            words, counts = _parse(content.decode("utf-8"))
            if len(words) != description["size"]:
                raise ValueError(f"{len(words)} words instead of {description['size']}")
            vocabulary = cls(words, counts, ends=bool(description["ends"]), rule=str(description["rule"]))
            if hashlib.sha256(content).hexdigest() != description["sha256"]:
                raise ValueError("wrong sha256, its words or their order have changed")
        except (ValueError, KeyError, TypeError, FflmError) as error:
            raise FflmError(f"{path} is damaged ({error}): {REMEDY}") from error
        if mapped is not None and mapped._table != WordTable.make(words, counts, table_path(path)):
            raise FflmError(f"{table_path(path)} is damaged (it does not have the words of {path.name}): {REMEDY}")
        return vocabulary


def table_path(path: Path) -> Path:
    """Return the path of the arrays beside a file of words."""
    return path.with_suffix(".safetensors")


def _map_table(path: Path, description: VocabularyAbout) -> Vocabulary | None:
    """Return the vocabulary whose arrays are beside a file of words; None if there are none, or they are of another file.

    Raises
    ------
    FflmError
        If a file cannot be read or is damaged.
    """
    from fflm.text.words import WordTable  # as in `Vocabulary.save_table`

    if not table_path(path).exists():
        return None
    table, figures = WordTable.map(table_path(path))
    if figures["sha256"] != description["sha256"]:
        return None
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != figures["bytes"]:
        raise FflmError(f"{path} is damaged (it has {size:,} bytes instead of {figures['bytes']:,}): {REMEDY}")
    symbols = _symbols(description["ends"])
    if len(table) != description["size"] or len(table) < len(symbols) or [*map(table.word, range(len(symbols)))] != symbols:
        raise FflmError(f"{table_path(path)} is damaged (it does not fit the vocabulary): {REMEDY}")
    return Vocabulary._of_table(table, description)


def read_words(path: Path) -> list[str]:
    r"""Read the words of a vocabulary that a user gives: UTF-8, one word per line; anything after a tab is ignored.

    Blank lines are skipped; ``\uXXXX`` is read as in the files that ``Vocabulary.save`` writes.

    Raises
    ------
    FflmError
        If the file cannot be read, is not UTF-8, has no words, or has subwords.
    """
    lines = read_lines(path)
    with contextlib.suppress(ValueError, RecursionError):
        if any(line.startswith("{") for line in lines[:1]) and "model" in json.loads("\n".join(lines)):
            raise FflmError(f"{path} has subwords, not one word per line: add `tokenizer='subword'` to use them")
    words = [unescape(line.split("\t")[0].strip(ASCII_BLANKS)) for line in lines]
    words = [word for word in words if word]
    if not words:
        raise FflmError(f"{path} has no words: write one word per line")
    return words


def _parse(content: str) -> tuple[list[str], list[int]]:
    """Return the words and their counts in the content of a file of words.

    Raises
    ------
    ValueError
        If a line is not a word, a tab and a count.
    """
    if _WELL_FORMED.fullmatch(content):  # so that most files are checked by one match
        fields = content.split()
        words = list(map(unescape, fields[::2]))
        if all(escape(word) == escaped for word, escaped in zip(words, fields[::2], strict=True) if "\\" in escaped):
            return words, list(map(int, fields[1::2]))
    words, counts = [], []
    for number, line in enumerate(content.removesuffix("\n").split("\n"), 1):
        escaped, _, count = line.partition("\t")
        word = unescape(escaped)
        if escape(word) != escaped or not _COUNT.fullmatch(count):
            raise ValueError(f"line {number} is not a word, a tab and a count")
        words.append(word)
        counts.append(int(count))
    return words, counts


def _symbols(ends: bool) -> list[str]:
    """Return the names of the first ids."""
    return [UNKNOWN, END] if ends else [UNKNOWN]


def _is_word(token: str) -> bool:
    """Return whether a token is neither a symbol nor the line end."""
    return token not in SYMBOLS and token != LINE_END


def _by_count(words: Iterable[str], counts: Mapping[str, int]) -> list[str]:
    """Sort words by decreasing count, and words of the same count by their characters."""
    return sorted(sorted(words), key=lambda word: counts.get(word, 0), reverse=True)  # words of the same count keep their order


def escape(word: str) -> str:
    r"""Return a word with its white space and backslashes written as ``\uXXXX``."""
    if word.isalnum():
        return word
    for character in "\\ \n":  # the most frequent ones; backslashes first, because the escapes have them
        word = word.replace(character, _escaped(character))
    return str(_BLANK.sub(lambda match: _escaped(match[0]), word))


def _escaped(character: str) -> str:
    """Return the escape of a character."""
    return f"\\u{ord(character):04x}"


def unescape(word: str) -> str:
    """Return the word that `escape` was given; escapes that `escape` does not write are left as they are."""
    return str(_ESCAPED.sub(_unescaped, word)) if "\\" in word else word


def _unescaped(match: regex.Match[str]) -> str:
    """Return the character of an escape, or the escape itself if `escape` would not have written it."""
    character = chr(int(match[1], 16))
    return character if character == "\\" or _BLANK.match(character) else match[0]
