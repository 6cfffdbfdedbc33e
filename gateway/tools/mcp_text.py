"""What an MCP server answers to a call of a tool, as text for the model."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from gateway.tools.api import ToolError


def text_of(result: Any) -> str:
    """Texts of a ``CallToolResult``; of an image or a sound, that there is one.

    Raises ToolError where the result says that the tool failed.
    """
    parts = [_part(part) for part in result.content]
    text = "\n".join(part for part in parts if part)
    if result.is_error:
        raise ToolError(text or "the tool failed, and does not say why")
    if result.structured_content is not None and not text:
        return to_json(result.structured_content).decode()
    return text or "done"


def _part(part: Any) -> str:
    kind = part.type
    if kind == "text":
        return str(part.text)
    if kind == "resource":
        text = getattr(part.resource, "text", None)
        return str(text) if text is not None else f"[a file: {part.resource.uri}]"
    if kind == "resource_link":
        return f"[a link: {part.uri}]"
    return f"[{'an image' if kind == 'image' else 'a sound'}, which cannot be told in words]"
