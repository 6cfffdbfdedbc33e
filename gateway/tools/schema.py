# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments of a function call against the JSON Schema that the model was given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry

from gateway.text import json_of
from gateway.tools.api import ToolError

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names of functions that the realtime API accepts."""

MAX_ARGUMENTS = 64 * 1024
"""Characters; a model that writes more than its own output limit allows is no model."""

_NOWHERE: Registry[Any] = Registry()
"""A schema may refer to itself, and to nothing on the network."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ValueError where this is no JSON Schema of a function's parameters."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path))
        raise ValueError(f"is no JSON Schema: {where}: {error.message}") from None
    if schema.get("type") != "object":
        raise ValueError('must be a JSON Schema of type "object"')


def parsed(schema: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    """The model's arguments (JSON text) as an object that the schema allows.

    Raises ToolError with up to five mistakes, each with where it is.
    """
    if len(arguments) > MAX_ARGUMENTS:
        raise ToolError(f"arguments: {len(arguments)} characters are too many")
    try:
        given = json_of(arguments.strip() or "{}")
    except (ValueError, RecursionError):
        raise ToolError("arguments: must be one JSON object") from None
    if not isinstance(given, dict):
        raise ToolError("arguments: must be one JSON object")
    try:
        found = list(Draft202012Validator(schema, registry=_NOWHERE).iter_errors(given))
    except Exception as error:  # a reference that leads nowhere, a pattern that is none
        raise ToolError(f"the schema of this function is not usable: {error}") from None
    if found:
        first = sorted(found, key=lambda error: [str(part) for part in error.absolute_path])[:5]
        raise ToolError("; ".join(_words(error) for error in first))
    return given


def _words(error: ValidationError) -> str:
    deeper = best_match(error.context) if error.context else None
    error = deeper or error
    where = ".".join(map(str, error.absolute_path)) or "arguments"
    return f"{where}: {error.message[:200]}"
