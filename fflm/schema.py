"""The JSON schema of a model's config.json, generated from the types in the code: ``python -m fflm.schema`` prints it."""

import json
from typing import Any

import msgspec

from fflm.models.classifier.model import ClassifierFile
from fflm.models.description import LANGUAGE_MODELS

KINDS = (*LANGUAGE_MODELS.values(), ClassifierFile)
"""The types of config.json of all kinds of models."""


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of config.json of all kinds of models."""
    kinds, definitions = msgspec.json.schema_components(KINDS)
    for each in definitions.values():
        each["description"] = each["description"].split("\n")[0]
        each["required"] = sorted(each.get("required", ()))  # msgspec generates them in an arbitrary order
        each["properties"] = dict(sorted(each["properties"].items()))
    title = "config.json of an fflm model"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "oneOf": list(kinds), "$defs": definitions}


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=2))
