"""A corpus: a tokenized text on disk, as ids with their vocabulary, in parts for training, validation and test."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from fflm.arguments import PathLike, to_path
from fflm.errors import FflmError
from fflm.files import restore
from fflm.stored import from_json, read_whole
from fflm.text.ids import Ids
from fflm.text.settings import TextSettings
from fflm.text.subwords import FILE as SUBWORDS
from fflm.text.vocabulary import Vocabulary, VocabularyAbout

FORMAT, VERSION = "fflm corpus", 1
ABOUT = "corpus.json"
REMEDY = "tokenize the text again"
PARTS = ("train", "valid", "test")
FILES = (ABOUT, "vocabulary.tsv", SUBWORDS, *(f"{name}.npy" for name in PARTS))
"""Names of the files in the folder of a corpus."""


@dataclass(frozen=True)
class Part:
    """One part of a corpus.

    Parameters
    ----------
    ids
        The ids of the tokens, (N,), in [0, V). They stay in their file: ``ids[low:high]`` is an array, uint16 or uint32.
    tokens
        The number of tokens N, ends included.
    unknown
        The number of tokens that are ``<unk>``.
    ends
        The number of tokens that are ``</s>``.
    characters
        The number of characters of the normalized text, newlines included. Where two parts share a chunk of the text (at most
        262,144 characters), its characters are divided in proportion to the tokens.
    bytes, words
        The number of bytes and of words, as for `fflm.text.extent.Extent`, divided likewise; 0 in a corpus of an early version.
    sha256
        The checksum of the bytes of the ids, 64 hexadecimal digits.
    """

    ids: Ids = field(repr=False)
    tokens: int
    unknown: int
    ends: int
    characters: int
    bytes: int
    words: int
    sha256: str = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """The counts that belong to the evaluation conditions of this part."""
        counts = {"tokens": self.tokens, "unknown": self.unknown, "ends": self.ends, "characters": self.characters}
        return {**counts, "bytes": self.bytes, "words": self.words} if self.bytes else counts


@dataclass(frozen=True, repr=False)
class Corpus:
    """A tokenized text on disk.

    Parameters
    ----------
    path
        The folder of the corpus.
    settings
        How the text became ids.
    vocabulary
        The words that the ids stand for.
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
            If the folder is not a corpus, is of another version, or is damaged.
        """
        path = to_path("path", path)
        restore(path)
        if not (path / ABOUT).is_file():
            raise FflmError(f"{path} is not a tokenized corpus: tokenize the text first")
        content, source = read_whole(path / ABOUT, REMEDY), str(path / ABOUT)
        if from_json(content, _Head, source, REMEDY)["version"] != VERSION:
            raise FflmError(f"{path} is of another version of fflm: update fflm, or {REMEDY}")
        about = from_json(content, _About, source, REMEDY)
        if about.get("sha256") not in (None, checksum(about)):
            raise FflmError(f"{path / ABOUT} is damaged (wrong sha256, its content has changed): {REMEDY}")
        settings = TextSettings.load(path, about["settings"])
        vocabulary = Vocabulary.load(path / "vocabulary.tsv", about["vocabulary"])
        if "train" not in about["parts"] or vocabulary.ends != settings.ends:
            raise FflmError(f"{path} is damaged (its files do not fit together): {REMEDY}")
        parts = {}
        for name in PARTS:
            if part := about["parts"].get(name):
                counts = {key: part[key] for key in ("tokens", "unknown", "ends", "sha256")}
                ids = Ids(path / f"{name}.npy", len(vocabulary), vocabulary.end_id, **counts)
                sizes = {key: part.get(key, 0) for key in ("characters", "bytes", "words")}
                parts[name] = Part(ids, **sizes, **counts)
        return cls(path, settings, vocabulary, parts)

    def moved(self, path: Path) -> "Corpus":
        """Return this corpus under the path to which its folder was renamed. Ids that were verified are not verified again."""
        for name, part in self.parts.items():
            part.ids.path = path / f"{name}.npy"
        return replace(self, path=path)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the settings, the words and the ids of every part, which differs between corpora."""
        parts = {name: part.sha256 for name, part in self.parts.items()}
        content = [self.settings.to_dict(), self.vocabulary.words, parts]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def conditions(self) -> dict[str, Any]:
        """The evaluation conditions: size and rule of the vocabulary, the policy on ends, and the counts of every part."""
        return {
            "vocabulary": len(self.vocabulary),
            "rule": self.vocabulary.rule,
            "policy": self.settings.policy,
            "parts": {name: part.counts for name, part in self.parts.items()},
        }

    def verify(self) -> None:
        """Verify the ids of all parts now, and not only when they are first used.

        Raises
        ------
        FflmError
            If the ids are not those that were written.
        """
        for part in self.parts.values():
            part.ids.verify()


Amount: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Head(TypedDict):
    """The fields that corpus.json has in every version."""

    format: Literal["fflm corpus"]
    version: int


class _PartAbout(TypedDict):
    """The description of a part in corpus.json."""

    tokens: Annotated[int, Meta(ge=1, le=2**48)]
    unknown: Amount
    ends: Amount
    characters: Amount
    bytes: NotRequired[Amount]
    words: NotRequired[Amount]
    sha256: str


class _About(_Head):
    """The content of corpus.json; older files have no sha256 of the other fields."""

    settings: TextSettings
    vocabulary: VocabularyAbout
    parts: dict[Literal["train", "valid", "test"], _PartAbout]
    sha256: NotRequired[str]


def checksum(about: Mapping[str, Any]) -> str:
    """Return the sha256 of all fields of corpus.json except ``sha256`` itself."""
    content = {name: value for name, value in about.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
