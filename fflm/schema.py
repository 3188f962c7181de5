"""The JSON schema of a model's config.json, made of the settings' annotations: ``python -m fflm.schema`` prints it."""

import json
from typing import Any

import msgspec

from fflm.models.classifier.model import ClassifierFile
from fflm.models.description import LANGUAGE_MODELS

KINDS = (*LANGUAGE_MODELS.values(), ClassifierFile)


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
