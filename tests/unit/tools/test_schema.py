# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON Schema of parameters: made from a signature; arguments are checked by it in bounded time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.tools import ToolError
from gateway.tools.schema import MAX_SCHEMA, check_schema, parse_arguments


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
