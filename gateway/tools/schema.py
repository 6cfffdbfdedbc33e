# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON Schema of a function's parameters: made from a Python signature; arguments checked by it."""

from __future__ import annotations

import inspect
import json
import re
import threading
import typing
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from gateway.text import json_of, mistakes_of
from gateway.tools import Call, ToolError

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError as SchemaMismatch

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names of functions that the realtime API accepts."""

MAX_ARGUMENTS = 64 * 1024
"""Characters of arguments, more than a model's own limit of output."""


MAX_SCHEMA = 32 * 1024
"""Bytes of a schema as JSON, one of an MCP server's included."""

MAX_STEPS = 5_000
"""Keywords that may be evaluated for one set of arguments: schemas may refer to themselves, so that
the number doubles each time."""

_STEPS_OF_REF = 20
"""Steps that a reference counts: it is looked up in the whole schema."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check the JSON Schema of a function's parameters: 2020-12, of type "object", of
    ``MAX_SCHEMA`` bytes at most, not nested too deeply.

    Raises ValueError, whose text goes on after the name of the schema ("is too large: …").
    """
    from jsonschema import Draft202012Validator, SchemaError

    try:
        size = len(json.dumps(schema))
        if size > MAX_SCHEMA:
            raise ValueError(f"is too large: {size} bytes, of {MAX_SCHEMA} at most")
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path))
        raise ValueError(f"is no JSON Schema: {where}: {error.message}"[:MAX_WORDS]) from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if schema.get("type") != "object":
        raise ValueError('must be a JSON Schema of type "object"')


MAX_WORDS = 500
"""Characters of an error about a schema."""


def parse_arguments(schema: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    """Parse the model's arguments (JSON text, "" is {}), and check them by a function's schema;
    return the object.

    Neither schema nor arguments are trusted: patterns are RE2's, references to other documents lead
    nowhere, and evaluation ends after ``MAX_STEPS``. Raises ToolError for more than
    ``MAX_ARGUMENTS`` characters, no JSON object, an unusable schema, or with up to five mistakes,
    each with its path.
    """
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
        validator = _validator()(schema, registry=Registry())
        _steps.left = MAX_STEPS
        found = list(islice(validator.iter_errors(given), MAX_ERRORS))
    except Exception as error:  # a reference that leads nowhere, a pattern that is none
        said = str(error)[:MAX_WORDS]
        raise ToolError(f"the schema of this function is not usable: {said}") from None
    if found:
        first = sorted(found, key=lambda error: [str(part) for part in error.absolute_path])[:5]
        raise ToolError("; ".join(_error_text(error) for error in first))
    return given


MAX_ERRORS = 100


class _Steps(threading.local):
    """Steps that are left for the arguments that a thread checks now."""

    left = 0

    def take(self, count: int = 1) -> None:
        """Count steps. Raises ValueError when none are left."""
        self.left -= count
        if self.left < 0:
            raise ValueError("it takes too long to check")


_steps = _Steps()


@cache
def _validator() -> Any:
    """Return a validator class of JSON Schema 2020-12, made once, whose keywords count their steps
    and whose patterns are RE2's; ``unevaluatedProperties`` and ``unevaluatedItems`` are not
    checked."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    known = Draft202012Validator.VALIDATORS

    def counted(check: Any, steps: int) -> Any:
        def run(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            _steps.take(steps + (len(value) if isinstance(value, list) else 0))
            yield from check(validator, value, instance, schema) or ()

        return run

    def pattern(validator: Any, value: Any, instance: Any, _schema: Any) -> Any:
        if validator.is_type(instance, "string") and not _found(value, instance):
            yield ValidationError(f"{instance!r} does not match {value!r}")

    def pattern_properties(validator: Any, value: Any, instance: Any, _schema: Any) -> Any:
        for one, inner in value.items() if validator.is_type(instance, "object") else ():
            for key, given in instance.items():
                _steps.take()
                if _found(one, key):
                    yield from validator.descend(given, inner, path=key, schema_path=one)

    def additional_properties(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if not validator.is_type(instance, "object"):
            return
        patterns = schema.get("patternProperties", ())
        more = [
            key
            for key in instance
            if key not in schema.get("properties", ()) and not any(_found(p, key) for p in patterns)
        ]
        if value is False and more:
            were = "was" if len(more) == 1 else "were"
            names = ", ".join(map(repr, more))
            yield ValidationError(
                f"Additional properties are not allowed ({names} {were} unexpected)"
            )
        elif validator.is_type(value, "object"):
            for key in more:
                yield from validator.descend(instance[key], value, path=key)

    def unique_items(validator: Any, value: Any, instance: Any, _schema: Any) -> Any:
        if value and validator.is_type(instance, "array"):
            texts = {json.dumps(item, sort_keys=True) for item in instance}
            if len(texts) < len(instance):
                yield ValidationError(f"{instance!r} has non-unique elements")

    own = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
        "uniqueItems": unique_items,
    }
    # What was evaluated is looked for in all of the schema, as often as it refers to itself.
    left_out = ("unevaluatedProperties", "unevaluatedItems")
    checks = {name: check for name, check in (known | own).items() if name not in left_out}
    refs = ("$ref", "$dynamicRef")
    limited = {
        name: counted(check, _STEPS_OF_REF if name in refs else 1) for name, check in checks.items()
    }
    return validators.create(
        Draft202012Validator.META_SCHEMA, limited, type_checker=Draft202012Validator.TYPE_CHECKER
    )


def _found(pattern: str, text: str) -> bool:
    """Whether a pattern matches anywhere; True for one that RE2 does not know."""
    compiled = _compiled(pattern)
    return compiled is None or compiled.search(text) is not None


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> Any:
    """Return a pattern compiled by RE2, from a cache; None if RE2 does not know it."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


def _error_text(error: SchemaMismatch) -> str:
    """Return path and message of a failed check: of ``anyOf`` and such, of the most relevant
    mistake behind it. Without a path it is "arguments"."""
    from jsonschema.exceptions import best_match

    deeper = best_match(error.context) if error.context else None
    error = deeper or error
    where = ".".join(map(str, error.absolute_path)) or "arguments"
    return f"{where}: {error.message[:200]}"


_ARGUMENT = re.compile(r"^(\s+)(\w+)(?:\s*\([^)]*\))?\s*:\s*(.*)$")


class SignatureError(Exception):
    """A function cannot be a tool; the text says why."""


class Signature:
    """Parameters of a Python function, as the JSON Schema :attr:`parameters`, described by the
    ``Args:`` of its docstring.

    A parameter of type :class:`Call` is not among them. Raises SignatureError for a parameter
    without a type, or with one that has no schema, for one by position only, and for ``*args`` and
    ``**kwargs``.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.summary, told = docstring_parts(inspect.getdoc(function) or "")
        self.call_name: str | None = None
        """Name of the parameter that gets the :class:`gateway.tools.Call`."""
        self._model = self._model_of(function, told)
        try:
            schema = self._model.model_json_schema()
        except PydanticUserError as error:
            raise SignatureError(str(error).splitlines()[0]) from None
        self.parameters: dict[str, Any] = _untitled(schema)
        self.parameters.setdefault("properties", {})

    def values(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments converted to the types of the signature, with the defaults of those left
        out. Raises ToolError with up to five mistakes, also for an argument that is none of its
        parameters."""
        try:
            given = self._model.model_validate(arguments)
        except ValidationError as error:
            raise ToolError(mistakes_of(error)) from None
        return {name: getattr(given, name) for name in type(given).model_fields}

    def _model_of(
        self, function: Callable[..., object], told: Mapping[str, str]
    ) -> type[BaseModel]:
        """Return a pydantic model of a function's parameters, described by ``told``; set
        :attr:`call_name`. Raises SignatureError."""
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
    """Annotation that describes a parameter whose type has no description of its own."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core)
        if "$ref" not in schema:
            schema.setdefault("description", self._text)
        return schema


def docstring_parts(doc: str) -> tuple[str, dict[str, str]]:
    """Return a docstring's text before ``Args:``, each paragraph on a line, and its arguments'."""
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
    """Return a schema without the titles that pydantic makes from names.

    With ``names``, the keys of ``value`` are names of properties, and stay.
    """
    if isinstance(value, dict):
        return {
            key: _untitled(inner, names=key in ("properties", "$defs") and not names)
            for key, inner in value.items()
            if names or key != "title" or not isinstance(inner, str)
        }
    if isinstance(value, list):
        return [_untitled(inner) for inner in value]
    return value
