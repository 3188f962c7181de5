"""Labeled text: a label and a text a line, in one of three formats; and tagged text, a word and its tag a line."""

import csv
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from msgspec import Meta

from fflm.arguments import Encoding, Errors, checked
from fflm.errors import FflmError
from fflm.files import split_compression
from fflm.given import Text
from fflm.text.reading import LONGEST, each_file, read_chunks, source_name, whole_lines
from fflm.text.tokenizer import ASCII_BLANKS

Format: TypeAlias = Annotated[
    Literal["auto", "tab", "csv", "fasttext"],
    Meta(description="Format: tab (label, tab, text per line), csv (named columns), fasttext (__label__), or auto to detect it."),
]
TextColumn: TypeAlias = Annotated[str, Meta(description="CSV column that holds the texts.")]
LabelColumn: TypeAlias = Annotated[str, Meta(description="CSV column that holds the labels.")]

PREFIX = "__label__"
"""What fastText's labels begin with."""


@dataclass(frozen=True)
class Labeled:
    """Texts, none of which has a line end, and the label of each, in which single spaces are the only white space.

    Of tagged text, a text is a sentence, a space between its words, and its label is the tags of the words, a space between them.
    """

    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Iterable[int]) -> Self:
        """Return those of some rows."""
        texts, labels = zip(*((self.texts[row], self.labels[row]) for row in rows), strict=True)
        return type(self)(list(texts), list(labels))


@checked
def read_labeled(
    sources: Sequence[str | Path | Text],
    format: Format = "auto",
    *,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    encoding: Encoding = "utf-8",
    errors: Errors = "strict",
) -> Labeled:
    """Read labeled texts.

    Parameters
    ----------
    sources
        Files, compressed or not, folders, ``"-"``, or texts in memory.
    format
        ``tab``: a line is a label, a tab, a text. ``csv``: comma-separated values, whose first line names the columns.
        ``fasttext``: a line is ``__label__`` with a label, a space, a text. ``auto``: csv for files that end so, fasttext for
        those whose first line begins with ``__label__``, tab for others.
    text_column, label_column
        Of csv.
    encoding, errors
        As `fflm.text.reading.read_chunks` takes them.

    Raises
    ------
    FflmError
        If a file cannot be read, a line is not as the format says, or there is none, or if columns are named and the format is
        not csv.
    """
    texts: list[str] = []
    labels: list[str] = []
    for path in chain.from_iterable(map(each_file, sources)):
        name = source_name(path)
        lines: Iterator[str] = (line + "\n" for line in read_texts([path], encoding, errors))
        first = next(lines, "")
        found = _guess(name, first) if format == "auto" else format
        lines = chain([first], lines)
        columns = text_column, label_column
        if found != "csv" and columns != ("text", "label"):
            raise FflmError(
                f"{name} is in the format {found}, without named columns: leave out their names, or give `format='csv'`"
            )
        pairs = _read_csv(lines, name, *columns) if found == "csv" else _read_lines(lines, name, found)
        for label, text in pairs:
            labels.append(label)
            texts.append(single_line(text))
    if not texts:
        raise FflmError(f"there is no labeled text in {', '.join(map(str, sources))}: give lines with a label, a tab and a text")
    return Labeled(texts, labels)


@checked
def read_tagged(sources: Sequence[str | Path | Text], *, encoding: Encoding = "utf-8", errors: Errors = "strict") -> Labeled:
    """Read sentences whose words are tagged.

    Parameters
    ----------
    sources
        Files, compressed or not, folders, ``"-"``, or texts in memory. A line is a word, a tab and its tag, or the ten columns of
        CoNLL-U, of which FORM and UPOS are read (https://universaldependencies.org/format.html). A blank line ends a sentence.
        Lines that begin with ``#`` and have no tab are comments.
    encoding, errors
        As `fflm.text.reading.read_chunks` takes them.

    Raises
    ------
    FflmError
        If a file cannot be read, a line is not as above, or there is none.
    """
    found = Labeled([], [])
    for path in chain.from_iterable(map(each_file, sources)):
        name = source_name(path)
        words: list[str] = []
        tags: list[str] = []
        for number, line in enumerate(chain(read_texts([path], encoding, errors), [""]), 1):
            if line.strip():
                for word, tag in _tagged_word(line, f"{name}, line {number}"):
                    words.append(word)
                    tags.append(tag)
            elif words:
                found.texts.append(" ".join(words))
                found.labels.append(" ".join(tags))
                words, tags = [], []
    if not found.texts:
        raise FflmError(f"there are no tagged words in {', '.join(map(str, sources))}: give lines with a word, a tab and its tag")
    return found


def _tagged_word(line: str, place: str) -> list[tuple[str, str]]:
    """Return the word of a line and its tag; nothing for a comment, and for CoNLL-U's ranges of words and empty nodes."""
    columns = line.strip("\r\n").split("\t")
    if len(columns) == 1 and line.startswith("#"):
        return []
    if len(columns) == 10:
        if not columns[0].isdigit():
            return []
        columns = [columns[1], columns[3]]
    if len(columns) != 2:
        raise FflmError(f"{place} has {len(columns)} columns: write a word, a tab and its tag, or the ten columns of CoNLL-U")
    word, tag = (column.strip(ASCII_BLANKS) for column in columns)
    if len(word.split(" ")) > 1 or len(tag.split()) != 1 or not word:
        raise FflmError(f"{place} must have one word, a tab and one tag, without spaces")
    return [(word, tag)]


def read_texts(sources: Sequence[str | Path | Text], encoding: str, errors: Literal["strict", "replace"]) -> Iterator[str]:
    """Return texts without labels, one a line."""
    return whole_lines(read_chunks(sources, encoding, errors))


def single_line(text: str) -> str:
    """Return a text that has line ends with single spaces in place of all its white space; others as they are."""
    return single_spaced(text) if "\n" in text or "\r" in text else text


def single_spaced(text: str) -> str:
    """Return a text with single spaces in place of all its white space, as labels are, so that they are columns of tables."""
    return " ".join(text.split())


def _guess(source: str, first: str) -> Format:
    if split_compression(source)[0].suffix == ".csv":
        return "csv"
    return "fasttext" if first.startswith(PREFIX) else "tab"


def _read_lines(lines: Iterable[str], source: str, format: Format) -> Iterator[tuple[str, str]]:
    """Yield labels and texts; blank lines are skipped."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label, separator, text = line.strip("\n").partition("\t")
        if format == "fasttext":
            label, text = [*re.split(r"\s+", line.lstrip(string.whitespace), maxsplit=1, flags=re.ASCII), ""][:2]
            if not label.startswith(PREFIX):
                raise FflmError(f"{source}, line {number} does not begin with {PREFIX}: fix it, or give another `format`")
            if text.startswith(PREFIX):
                raise FflmError(f"{source}, line {number} has several labels: give each text one")
            label, text = label.removeprefix(PREFIX), text.strip("\n")
        elif not separator:
            raise FflmError(f"{source}, line {number} has no tab: write a label, a tab, a text, or give another `format`")
        yield _label(label, f"{source}, line {number}"), text


def _read_csv(lines: Iterable[str], source: str, text_column: str, label_column: str) -> Iterator[tuple[str, str]]:
    """Yield labels and texts of the columns of these names."""
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))  # of the process: it is never lowered, because threads share it
    reader = csv.DictReader(lines, strict=True)
    try:
        names = list(reader.fieldnames or ())
        for option, column in (("text_column", text_column), ("label_column", label_column)):
            if column not in names and len(names) == 1:
                raise FflmError(f"{source} has only the column {names[0]!r}: separate its columns by commas")
            if column not in names:
                known = ", ".join(single_spaced(name)[:60] for name in names[:20])
                raise FflmError(f"{source} has no column {column!r}, but {known}: name one with `{option}`")
            if names.count(column) > 1:
                raise FflmError(f"{source} has several columns {column!r}: give them names of their own")
        for row in reader:
            if None in row:
                raise FflmError(f"{source}, line {reader.line_num} has too many columns: quote a text that holds commas")
            if row[label_column] is None or row[text_column] is None:
                raise FflmError(f"{source}, line {reader.line_num} has too few columns: fix it")
            yield _label(row[label_column], f"{source}, line {reader.line_num}"), row[text_column]
    except csv.Error as error:
        raise FflmError(f"{source}, line {reader.line_num + 1} is not CSV ({error}): fix it, or give another `format`") from error


def _label(label: str, place: str) -> str:
    if label := single_spaced(label):
        return label
    raise FflmError(f"{place} has an empty label: name its class")
