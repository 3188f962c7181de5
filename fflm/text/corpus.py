"""A corpus: a tokenized text on disk, as ids with their vocabulary, in parts for training, validation and test."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

import msgspec
from msgspec import Meta

from fflm.arguments import PathLike, to_path
from fflm.errors import FflmError
from fflm.files import restore
from fflm.stored import from_json, read_whole
from fflm.text.ids import Ids
from fflm.text.settings import TextSettings
from fflm.text.vocabulary import Vocabulary, VocabularyAbout

FORMAT, VERSION = "fflm corpus", 1
ABOUT = "corpus.json"
REMEDY = "tokenise again"
PARTS = ("train", "valid", "test")
FILES = (ABOUT, "vocabulary.tsv", *(f"{name}.npy" for name in PARTS))
"""Of a corpus's folder."""


@dataclass(frozen=True)
class Part:
    """One part of a corpus.

    Parameters
    ----------
    ids
        (N,) in [0, V), in their file: ``ids[low:high]`` is an array, uint16 or uint32.
    tokens
        N, ends included.
    unknown
        How many of them are ``<unk>``.
    ends
        How many of them are ``</s>``.
    characters
        Characters of the normalised text, newlines included. Where two parts share a chunk of the text (at most
        262,144 characters), its characters are shared in proportion to the tokens.
    sha256
        Of the bytes of the ids, in hexadecimal digits.
    """

    ids: Ids = field(repr=False)
    tokens: int
    unknown: int
    ends: int
    characters: int
    sha256: str = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers that a perplexity on this part must be read with."""
        return {"tokens": self.tokens, "unknown": self.unknown, "ends": self.ends, "characters": self.characters}


@dataclass(frozen=True, repr=False)
class Corpus:
    """A tokenised text on disk.

    Parameters
    ----------
    path
        Its folder.
    settings
        How the text became ids.
    vocabulary
        The words of the ids.
    parts
        ``"train"`` and, where held out, ``"valid"`` and ``"test"``.
    """

    path: Path
    settings: TextSettings
    vocabulary: Vocabulary
    parts: Mapping[str, Part]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {part.tokens:,} tokens" for name, part in self.parts.items())
        return f"Corpus({str(self.path)!r}: {parts}; vocabulary {len(self.vocabulary):,})"

    @classmethod
    def open(cls, path: PathLike) -> "Corpus":
        """Open a folder that ``tokenize`` wrote, without reading the ids.

        Raises
        ------
        FflmError
            If the folder is no corpus, of a later version, or damaged.
        """
        path = to_path("path", path)
        restore(path)
        if not (path / ABOUT).is_file():
            raise FflmError(f"{path} is no tokenised corpus: make one with `fflm tokenize`")
        content, source = read_whole(path / ABOUT, REMEDY), str(path / ABOUT)
        if from_json(content, _Head, source, REMEDY)["version"] != VERSION:
            raise FflmError(f"{path} is of another version of fflm: update fflm, or tokenise again")
        about = from_json(content, _About, source, REMEDY)
        if about.get("sha256") not in (None, checksum(about)):
            raise FflmError(f"{path / ABOUT} is damaged (wrong sha256, what it says has changed): {REMEDY}")
        settings = msgspec.convert(about["settings"], TextSettings)
        vocabulary = Vocabulary.load(path / "vocabulary.tsv", about["vocabulary"])
        if "train" not in about["parts"] or vocabulary.ends != settings.ends:
            raise FflmError(f"{path} is damaged (its files do not fit together): {REMEDY}")
        parts = {}
        for name in PARTS:
            if part := about["parts"].get(name):
                counts = {key: part[key] for key in ("tokens", "unknown", "ends", "sha256")}
                ids = Ids(path / f"{name}.npy", len(vocabulary), vocabulary.end_id, **counts)
                parts[name] = Part(ids, characters=part["characters"], **counts)
        return cls(path, settings, vocabulary, parts)

    def moved(self, path: Path) -> "Corpus":
        """Return this corpus after its folder was renamed, with the same ids, verified or not."""
        for name, part in self.parts.items():
            part.ids.path = path / f"{name}.npy"
        return replace(self, path=path)

    @property
    def fingerprint(self) -> str:
        """A sha256 that tells corpora apart: of the settings, the words and the ids of every part."""
        parts = {name: part.sha256 for name, part in self.parts.items()}
        content = [self.settings.to_dict(), self.vocabulary.words, parts]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def conditions(self) -> dict[str, Any]:
        """What perplexities mean nothing without: vocabulary, its rule, the policy on ends, and the counts of every part."""
        return {
            "vocabulary": len(self.vocabulary),
            "rule": self.vocabulary.rule,
            "policy": self.settings.policy,
            "parts": {name: part.counts for name, part in self.parts.items()},
        }

    def verify(self) -> None:
        """Make sure now, and not only when ids are first used, that all of them are those that were written.

        Raises
        ------
        FflmError
            If they are not.
        """
        for part in self.parts.values():
            part.ids.verify()


Amount: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Head(TypedDict):
    """What every version of corpus.json has."""

    format: Literal["fflm corpus"]
    version: int


class _PartAbout(TypedDict):
    """What corpus.json says of a part."""

    tokens: Annotated[int, Meta(ge=1, le=2**48)]
    unknown: Amount
    ends: Amount
    characters: Amount
    sha256: str


class _About(_Head):
    """What corpus.json says; without a sha256 of all the rest of it, it is an older one."""

    settings: TextSettings
    vocabulary: VocabularyAbout
    parts: dict[Literal["train", "valid", "test"], _PartAbout]
    sha256: NotRequired[str]


def checksum(about: Mapping[str, Any]) -> str:
    """Return a sha256 of all that corpus.json says, but for itself."""
    content = {name: value for name, value in about.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
