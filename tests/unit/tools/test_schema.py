# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON Schema of parameters: made from a signature; arguments are checked by it in bounded time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.tools import Call, ToolError
from gateway.tools.schema import (
    MAX_ARGUMENTS,
    MAX_SCHEMA,
    Signature,
    SignatureError,
    check_schema,
    docstring_parts,
    parse_arguments,
)


def _chain(length: int) -> dict[str, Any]:
    twice = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(length)}
    return {"$defs": twice | {f"d{length}": {}}, "$ref": "#/$defs/d0"}


TOO_LONG = "it takes too long to check"
SCHEMAS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "a pattern that backtracks": (
        {"properties": {"a": {"pattern": "^(a+)+$"}}},
        {"a": "a" * 50 + "!"},
        "does not match",
    ),
    "a pattern of names": ({"patternProperties": {"^(a+)+$": {}}}, {"a" * 50 + "!": 1}, ""),
    "a pattern of names, and no others": (
        {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
        {"aaa": 1, "a" * 50 + "!": 1},
        "unexpected",
    ),
    "a pattern that RE2 does not know": (
        {"properties": {"a": {"pattern": "^(?!x)"}}},
        {"a": "x"},
        "",
    ),
    "references that double": (_chain(40), {}, TOO_LONG),
    "a reference to itself": ({"$ref": "#"}, {}, TOO_LONG),
    "a long enumeration of many": (
        {"properties": {"a": {"items": {"enum": [{"x": n} for n in range(1000)]}}}},
        {"a": list(range(1000))},
        TOO_LONG,
    ),
    "many that are to be unlike each other": (
        {"properties": {"a": {"uniqueItems": True}}},
        {"a": [[n] if n % 2 else {"x": n} for n in range(5000)]},
        "",
    ),
    "two that are alike": ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, 1]}, "non-uniq"),
    "others of a type": (
        {"additionalProperties": {"type": "integer"}},
        {"a": "x"},
        "a: 'x' is not",
    ),
}


@pytest.mark.parametrize(("schema", "given", "words"), SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_schema_is_checked_in_bounded_time(
    schema: dict[str, Any], given: Any, words: str
) -> None:
    schema = {"type": "object"} | schema
    check_schema(schema)
    if not words:
        assert parse_arguments(schema, json.dumps(given)) == given
        return
    with pytest.raises(ToolError) as caught:
        parse_arguments(schema, json.dumps(given))
    assert words in str(caught.value)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"description": "x" * MAX_SCHEMA}}}, "too large"),
        (_nested(900), "nested too deeply"),
        ({"properties": {"a": {"type": "x" * 9000}}}, "no JSON Schema"),
    ],
)
def test_a_schema_that_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check_schema({"type": "object"} | schema)
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("[]", "must be one JSON object"),
        ('{"a": 1', "must be one JSON object"),
        ("{}" + " " * MAX_ARGUMENTS, "characters are too many"),
        ('{"a": "x", "b": 1}', "a: 'x' is not of type 'integer'; b: 1 is not of type 'string'"),
    ],
)
def test_arguments_that_are_wrong(arguments: str, words: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    assert parse_arguments(schema, "") == {}
    with pytest.raises(ToolError, match=words):
        parse_arguments(schema, arguments)


def test_a_schema_is_one_of_an_object() -> None:
    with pytest.raises(ValueError, match='of type "object"'):
        check_schema({"type": "array"})


def test_what_a_docstring_says_of_a_function_and_its_arguments() -> None:
    doc = """Book a room,
and say so.

Ask first.

Args:
    room: Number of it,
        brass: as on the door.
    nights (int): How many: at most 9.

Returns:
    What was booked.
"""
    assert docstring_parts(doc) == (
        "Book a room, and say so.\nAsk first.",
        {"room": "Number of it, brass: as on the door.", "nights": "How many: at most 9."},
    )
    assert docstring_parts("") == ("", {})


def book(call: Call, room: int, title: str = "Mx", *, late: bool = False) -> None:
    """Book.

    Args:
        room: Its number.
    """


def test_a_signature_becomes_a_schema_and_takes_what_fits_it() -> None:
    """The call is no argument, and a parameter may be named as pydantic names its titles."""
    signature = Signature(book)
    assert (signature.summary, signature.call_name) == ("Book.", "call")
    assert signature.parameters == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "room": {"type": "integer", "description": "Its number."},
            "title": {"type": "string", "default": "Mx"},
            "late": {"type": "boolean", "default": False},
        },
        "required": ["room"],
    }
    assert signature.values({"room": 7, "late": True}) == {"room": 7, "title": "Mx", "late": True}
    for wrong in ({"room": "x"}, {}, {"room": 7, "call": 1}):
        with pytest.raises(ToolError):
            signature.values(wrong)


def any_number(*rooms: int) -> None: ...
def by_place(room: int, /) -> None: ...
def untyped(room) -> None: ...  # type: ignore[no-untyped-def]
def without_schema(room: Turnstile) -> None: ...


class Turnstile:
    """A type that has no schema."""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (any_number, "named parameters only"),
        (by_place, "by position only"),
        (untyped, "room: has no type"),
        (without_schema, "Turnstile"),
    ],
)
def test_a_function_that_can_be_no_tool(function: Callable[..., None], words: str) -> None:
    with pytest.raises(SignatureError, match=words):
        Signature(function)
