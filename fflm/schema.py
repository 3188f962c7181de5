"""The JSON schema of a model's config.json, from the annotations of the settings that it holds."""

import inspect
from typing import Any

import msgspec

from fflm.classify.settings import TextInput
from fflm.lm.model import FORMAT, VERSION
from fflm.network.config import NetworkConfig
from fflm.text.corpus import TextSettings
from fflm.training.settings import TrainingSettings


def config_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the config.json of models of all kinds.

    Only ``format`` and ``version`` are required, because each kind has other parts: a network, ``network``; a mixture,
    ``mixture``; an n-gram model, ``ngram``; a text classifier, also ``labels`` and ``input``.
    """
    settings = {"network": NetworkConfig, "training": TrainingSettings, "text": TextSettings, "input": TextInput}
    references, definitions = msgspec.json.schema_components(settings.values(), ref_template="#/$defs/{name}")
    for definition in definitions.values():
        definition["description"] = inspect.cleandoc(definition.get("description", "")).partition("\n")[0]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.json of an fflm model",
        "type": "object",
        "required": ["format", "version"],
        "properties": {
            "format": {"const": FORMAT},
            "version": {"const": VERSION},
            "kind": {"enum": ["network", "ngram", "mixture", "classifier"], "default": "network"},
            **dict(zip(settings, references, strict=True)),
            "vocabulary": {
                "type": "object",
                "description": "Of vocabulary.tsv.",
                "required": ["size", "ends", "rule", "sha256"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "description": "Words, symbols included."},
                    "ends": {"type": "boolean", "description": "Whether </s> is predicted."},
                    "rule": {"type": "string", "description": "How the words were chosen."},
                    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                },
            },
            "threads": {"type": "integer", "minimum": 1, "description": "Shares that the work of training was cut into."},
            "device": {"enum": ["cpu", "cuda"]},
            "precision": {"enum": ["fp32", "mixed"]},
            "created": {"type": "string", "description": "When training began."},
            "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "$defs": definitions,
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema))  # tuples among the defaults become lists
    return plain
