# SPDX-License-Identifier: GPL-2.0-or-later
"""Items of a conversation as servers send them, made into what the protocol says that they are.

Whoever reads an item then need not ask of which type a field is: it is not there, or as it should
be. Fields that nothing here knows are left as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TEXTS = ("id", "type", "role", "status", "name", "call_id", "server_label", "approval_request_id")
"""Fields of an item that are texts."""


def item_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item of a conversation without fields of a type that the protocol does not have.

    Parts of its content are objects. Arguments that a server sends as an object become the text
    that they should have been; a call without ``call_id`` is answered by its own id.
    """
    item = {
        name: field
        for name, field in value.items()
        if name not in _TEXTS or (isinstance(field, str) and field)
    }
    if "content" in item:
        parts = item["content"]
        parts = parts if isinstance(parts, list) else []
        item["content"] = [_part_of(part) for part in parts if isinstance(part, Mapping)]
    if "arguments" in item and not isinstance(item["arguments"], str):
        item["arguments"] = json.dumps(item["arguments"]) if item["arguments"] else "{}"
    if item.get("type") == "function_call" and "id" in item:
        item.setdefault("call_id", item["id"])
    return item


def _part_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of an item's content, in which type and words are texts."""
    texts = ("type", "text", "transcript")
    return {
        name: field for name, field in part.items() if name not in texts or isinstance(field, str)
    }


def items_of(value: object) -> tuple[dict[str, Any], ...]:
    """Return the items of a list, without entries that are no objects."""
    found = value if isinstance(value, list) else []
    return tuple(item_of(item) for item in found if isinstance(item, Mapping))
