# SPDX-License-Identifier: GPL-2.0-or-later
"""Events held against the official client's types, with unknown fields forbidden."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from openai.types import live
from openai.types.realtime import RealtimeClientEvent
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

_EVENTS: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)
_LIVE_CLIENT: TypeAdapter[Any] = TypeAdapter(live.ClientEvent)
_LIVE_SERVER: TypeAdapter[Any] = TypeAdapter(live.ServerEvent)
_BACKEND: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def check_client_event(body: Mapping[str, Any]) -> None:
    """Assert that the official types know this event with each of its fields."""
    _check(_EVENTS, _without_references(body))


def check_live_client_event(body: Mapping[str, Any]) -> None:
    """Assert that the official types of Live sessions know this client event, field by field."""
    _check(_LIVE_CLIENT, body)


def check_live_server_event(body: Mapping[str, Any]) -> None:
    """Assert that the official types know this event of a Live server, and the backend's in it."""
    _check(_LIVE_SERVER, body)
    if body["type"] == "response.event":
        _check(_BACKEND, body["event"])


def _check(events: TypeAdapter[Any], body: Mapping[str, Any]) -> None:
    unknown = sorted(_unknown(events.validate_python(body)))
    assert not unknown, f"{body['type']}: the official types have no {', '.join(unknown)}"


def _without_references(body: Mapping[str, Any]) -> dict[str, Any]:
    """The guide to responses outside of the conversation has items by reference; the types do not
    know them."""
    response = body.get("response")
    if not isinstance(response, Mapping) or not response.get("input"):
        return dict(body)
    kept = [
        item
        for item in response["input"]
        if item["type"] != "item_reference" or item.keys() != {"type", "id"}
    ]
    return {**body, "response": {**response, "input": kept}}


def _unknown(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, BaseModel):
        for name in value.model_extra or {}:
            yield f"{path}{name}"
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _unknown(one, path)


class AnyKeys(dict[str, Any]):
    """A sample of an object whose keys are the client's own."""


def samples(annotation: Any) -> list[Any]:
    """Values of one of the official types: each alternative of each field comes once."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return samples(inner[0])
    if origin in (typing.Union, types.UnionType):
        return [value for one in inner if one is not type(None) for value in samples(one)]
    if origin is typing.Literal:
        return list(inner)
    if origin is list:
        return [[value] for value in samples(inner[0])]
    if origin is dict or annotation is object:
        return [AnyKeys()]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {name: samples(one.annotation) for name, one in annotation.model_fields.items()}
        whole = {name: values[0] for name, values in fields.items()}
        others = [{**whole, name: one} for name, values in fields.items() for one in values[1:]]
        return [whole, *others]
    return [{bool: True, int: 8000, float: 1.0}.get(annotation, "x")]


def with_unknown_keys(sample: Any) -> Iterator[tuple[str, Any]]:
    """``sample`` with an unknown key in one of its objects, each in turn, and where."""
    for number, (path, _) in enumerate(_objects(sample, "")):
        changed = copy.deepcopy(sample)
        list(_objects(changed, ""))[number][1]["nobody_knows_this"] = 1
        yield path, changed


def _objects(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, AnyKeys):
        return
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            yield from _objects(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _objects(inner, f"{path}[{number}]")
