"""What a function returns, as text for the model: bounded, and saying so where it was cut."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import PydanticSerializationError, to_json


def text_of(value: Any) -> str:
    """A result as text: texts as they are, anything else as JSON. Raises ValueError."""
    if isinstance(value, str):
        return value
    try:
        return to_json(value).decode()
    except PydanticSerializationError as error:
        raise ValueError(str(error)) from None


def error_text(message: str, **more: object) -> str:
    """A failure, as the model is told of it."""
    return json.dumps({"error": message, **more}, ensure_ascii=False)


def bounded(text: str, limit: int) -> str:
    """At most ``limit`` characters, and a note behind them where more were there."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: only the first {limit} of {len(text)} characters are shown]"
