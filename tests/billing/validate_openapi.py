"""Reads a list of OpenAPI documents, or of schemas with instances, and prints of each whether it is valid."""

import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator


def say(validator, value):
    errors = list(validator(value))
    for error in errors:
        print(error.message[:300], file=sys.stderr)
    print("invalid" if errors else "valid")


def without_external(value):
    """Without references to other documents, which cannot be fetched, and to anchors, which the validator cannot find."""
    if isinstance(value, list):
        return [without_external(each) for each in value]
    if isinstance(value, dict):
        to = value.get("$ref")
        if isinstance(to, str) and not to.startswith("#/"):
            return {}
        return {key: without_external(each) for key, each in value.items()}
    return value


for document in json.load(sys.stdin):
    if "schema" in document:
        Draft202012Validator.check_schema(document["schema"])
        for instance in document["instances"]:
            say(Draft202012Validator(document["schema"]).iter_errors, instance)
    else:
        kind = OpenAPIV30SpecValidator if document["openapi"].startswith("3.0") else OpenAPIV31SpecValidator
        say(lambda it, kind=kind: kind(it).iter_errors(), without_external(document))
