# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON Schema of a function's arguments: made of a Python signature, and checked against."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from gateway.text import json_of
from gateway.tools.functions import Call, ToolError

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError as SchemaMismatch

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names of functions that the realtime API accepts."""

MAX_ARGUMENTS = 64 * 1024
"""Characters; a model that writes more than its own output limit allows is no model."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ValueError where this is no JSON Schema of a function's parameters."""
    from jsonschema import Draft202012Validator, SchemaError

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
    from jsonschema import Draft202012Validator
    from referencing import Registry

    if len(arguments) > MAX_ARGUMENTS:
        raise ToolError(f"arguments: {len(arguments)} characters are too many")
    try:
        given = json_of(arguments.strip() or "{}")
    except (ValueError, RecursionError):
        raise ToolError("arguments: must be one JSON object") from None
    if not isinstance(given, dict):
        raise ToolError("arguments: must be one JSON object")
    try:
        # An empty registry: a schema may refer to itself, and to nothing on the network.
        found = list(Draft202012Validator(schema, registry=Registry()).iter_errors(given))
    except Exception as error:  # a reference that leads nowhere, a pattern that is none
        raise ToolError(f"the schema of this function is not usable: {error}") from None
    if found:
        first = sorted(found, key=lambda error: [str(part) for part in error.absolute_path])[:5]
        raise ToolError("; ".join(_words(error) for error in first))
    return given


def _words(error: SchemaMismatch) -> str:
    from jsonschema.exceptions import best_match

    deeper = best_match(error.context) if error.context else None
    error = deeper or error
    where = ".".join(map(str, error.absolute_path)) or "arguments"
    return f"{where}: {error.message[:200]}"


_ARGUMENT = re.compile(r"^(\s+)(\w+)(?:\s*\([^)]*\))?\s*:\s*(.*)$")


class SignatureError(Exception):
    """A function cannot be a tool; the text says why."""


class Signature:
    """Parameters of a function: ``parameters`` is its JSON Schema.

    Raises SignatureError for a parameter without a type, or with one that has no schema.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.summary, told = described(inspect.getdoc(function) or "")
        self.call_name: str | None = None
        """The parameter that gets the :class:`gateway.tools.functions.Call`."""
        self._model = self._model_of(function, told)
        try:
            schema = self._model.model_json_schema()
        except PydanticUserError as error:
            raise SignatureError(str(error).splitlines()[0]) from None
        self.parameters: dict[str, Any] = _untitled(schema)
        self.parameters.setdefault("properties", {})

    def values(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments in the types of the signature. Raises ToolError, with what is wrong."""
        try:
            given = self._model.model_validate(arguments)
        except ValidationError as error:
            told = [
                f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}"
                for one in error.errors(include_url=False, include_input=False)
            ]
            raise ToolError("; ".join(told[:5])) from None
        return {name: getattr(given, name) for name in type(given).model_fields}

    def _model_of(
        self, function: Callable[..., object], told: Mapping[str, str]
    ) -> type[BaseModel]:
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception as error:
            raise SignatureError(f"its types cannot be read: {error}") from None
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise SignatureError(f"*{name}: a tool has named parameters only")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise SignatureError(f"{name}: is taken by position only, a tool gives names")
            if name not in hints:
                raise SignatureError(f"{name}: has no type")
            if hints[name] is Call:
                self.call_name = name
                continue
            default = ... if parameter.default is parameter.empty else parameter.default
            annotation = hints[name]
            if name in told:
                annotation = typing.Annotated[annotation, _Described(told[name])]
            fields[name] = (annotation, default)
        try:
            return create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
        except (PydanticUserError, NameError, TypeError) as error:
            raise SignatureError(str(error).splitlines()[0]) from None


class _Described:
    """Adds a description where the type itself brings none."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core)
        if "$ref" not in schema:
            schema.setdefault("description", self._text)
        return schema


def described(doc: str) -> tuple[str, dict[str, str]]:
    """The words before ``Args:`` on one line for each paragraph, and those of each argument."""
    head, _, rest = re.sub(r"\n(Returns|Raises|Yields):\n.*", "", doc, flags=re.DOTALL).partition(
        "\nArgs:\n"
    )
    told: dict[str, str] = {}
    last, indent = "", 0
    for line in rest.splitlines():
        found = _ARGUMENT.match(line)
        if found and (not last or len(found[1]) <= indent):
            last, indent = found[2], len(found[1])
            told[last] = found[3].strip()
        elif last and line.strip():
            told[last] = f"{told[last]} {line.strip()}".strip()
    paragraphs = (" ".join(part.split()) for part in head.split("\n\n"))
    return "\n".join(part for part in paragraphs if part), told


def _untitled(value: Any, *, names: bool = False) -> Any:
    """Without the titles that pydantic makes of names; ``names``: the keys are properties."""
    if isinstance(value, dict):
        return {
            key: _untitled(inner, names=key in ("properties", "$defs") and not names)
            for key, inner in value.items()
            if names or key != "title" or not isinstance(inner, str)
        }
    if isinstance(value, list):
        return [_untitled(inner) for inner in value]
    return value
