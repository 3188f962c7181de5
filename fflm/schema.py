"""The JSON schema of a model's config.json, made of the settings' annotations: ``python -m fflm.schema`` prints it."""

import json
from typing import Any, Literal, NotRequired, Required, TypedDict

import msgspec

from fflm.classify.settings import TextInput
from fflm.network.config import NetworkConfig
from fflm.text.corpus import TextSettings
from fflm.training.settings import TrainingSettings


class VocabularyFile(TypedDict):
    """What config.json says of vocabulary.tsv."""

    size: int
    ends: bool
    rule: str
    sha256: str


class CorpusReference(TypedDict):
    """The corpus of a model: its folder, relative to the model's and, if it lies elsewhere, absolute; and what it held."""

    path: str
    absolute: NotRequired[str]
    fingerprint: str
    parts: NotRequired[dict[str, dict[str, int]]]


class Common(TypedDict, total=False):
    """What all kinds of models have."""

    format: Required[Literal["fflm model"]]
    version: Required[Literal[1]]
    vocabulary: Required[VocabularyFile]
    versions: Required[dict[str, str]]
    created: str


class Trained(Common, total=False):
    """What a training run adds."""

    network: Required[NetworkConfig]
    training: TrainingSettings
    threads: int
    device: Literal["cpu", "cuda"]


class NetworkFile(Trained, total=False):
    """A neural language model."""

    text: Required[TextSettings]
    corpus: CorpusReference
    precision: Literal["fp32", "mixed"]
    vectors: int


class Ngram(TypedDict):
    """The n-grams of a model."""

    order: int
    counts: list[int]
    discounts: list[list[float]]
    notes: list[str]


class NgramFile(Common, total=False):
    """An n-gram model."""

    kind: Required[Literal["ngram"]]
    ngram: Required[Ngram]
    text: Required[TextSettings]
    corpus: CorpusReference


class MixtureFile(Common, total=False):
    """A mixture of models."""

    kind: Required[Literal["mixture"]]
    mixture: Required[dict[Literal["components"], list[dict[str, int | str]]]]
    text: Required[TextSettings]
    corpus: CorpusReference


class ClassifierFile(Trained, total=False):
    """A text classifier."""

    kind: Required[Literal["classifier"]]
    labels: Required[list[str]]
    shares: Required[list[float] | None]
    input: Required[TextInput]
    scale: Required[dict[Literal["mean", "deviation"], list[float]] | None]
    texts: dict[str, dict[str, int]]
    counts: list[int]


KINDS = (NetworkFile, NgramFile, MixtureFile, ClassifierFile)


def config_schema() -> dict[str, Any]:
    """Return the schema."""
    kinds, definitions = msgspec.json.schema_components(KINDS)
    for each in definitions.values():
        each["description"] = each["description"].split("\n")[0]
        each["required"] = sorted(each.get("required", ()))  # msgspec takes these from sets
        each["properties"] = dict(sorted(each["properties"].items()))
    title = "config.json of a model of fflm"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "oneOf": list(kinds), "$defs": definitions}


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=2))
