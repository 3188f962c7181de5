"""The settings of a filter."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from fflm.arguments import Settings
from fflm.errors import FflmError, SettingsError
from fflm.files import split_compression

FormatName = Literal["jsonl", "parquet", "text"]

_SUFFIXES: dict[str, FormatName] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
}


def format_name(name: str) -> FormatName:
    """Return the format of a file by its name.

    Raises
    ------
    FflmError
        If the name does not say it.
    """
    found = _SUFFIXES.get(split_compression(name)[0].suffix.lower())
    if found is None:
        raise FflmError(f"the name {name} does not say the format of the file: give `format`, one of jsonl, parquet and text")
    return found


Perplexity = Annotated[float, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class Selection(Settings):
    """The conditions on the scores of a document under which it is kept. A document without words meets none.

    Raises
    ------
    FflmError
        If a number is out of range, or both ``keep`` and ``max_perplexity`` are given.
    """

    max_perplexity: Annotated[Perplexity | None, Meta(description="Keep documents with at most this perplexity per token.")] = (
        None
    )
    min_perplexity: Annotated[
        Perplexity | None, Meta(description="Keep documents with at least this perplexity, which repetitive ones do not have.")
    ] = None
    max_oov: Annotated[
        Share | None,
        Meta(description="Keep documents with at most this share of tokens that are not in the vocabulary."),
    ] = None
    keep: Annotated[
        Share | None,
        Meta(description="Keep this share of the documents that meet the other conditions, those with the lowest perplexity."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None and self.max_perplexity is not None:
            raise SettingsError("`keep` and `max_perplexity` both limit the perplexity: give one of them")

    @property
    def selects(self) -> bool:
        """Whether there is any condition."""
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True)
class FilterSettings(Settings):
    """How a collection is filtered.

    Raises
    ------
    FflmError
        If a setting is not valid.
    """

    selection: Annotated[Selection, Meta(description="The conditions under which a document is kept.")] = dataclasses.field(
        default_factory=Selection
    )
    field: Annotated[str, Meta(description="Name of the field, or column, with the text.")] = "text"
    format: Annotated[
        Literal["auto", "jsonl", "parquet", "text"],
        Meta(description="Format of the files: JSON lines, Parquet, or a document per line; auto goes by their names."),
    ] = "auto"
    scores: Annotated[
        Literal["record", "beside", "none"],
        Meta(description="Add the scores to each record, write them beside each file, or leave them out."),
    ] = "record"
    fast: Annotated[
        bool,
        Meta(description="Score without normalizing the softmax, like `fflm score --fast`."),
    ] = False

    def format_of(self, name: str) -> FormatName:
        """Return the name of the format of a file."""
        return format_name(name) if self.format == "auto" else self.format

    def in_record(self, name: str) -> bool:
        """Return whether the records of a file get their scores; those of plain text have no fields."""
        return self.scores == "record" and self.format_of(name) != "text"

    def beside(self, name: str) -> bool:
        """Return whether the scores of a file are written beside it."""
        return self.scores == "beside" or (self.scores == "record" and self.format_of(name) == "text")
