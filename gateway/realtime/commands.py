# SPDX-License-Identifier: GPL-2.0-or-later
"""Client events that the gateway sends, as types (GA names).

``input_audio_buffer.append`` is not among them: audio has its own path, fifty times a second
and call (:meth:`gateway.realtime.session.Session.append`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


UNNAMED = "unnamed_"
"""Begins our own names of responses that the server gave no id."""


@dataclass(frozen=True, slots=True)
class UpdateSession:
    """``session.update``; ``session`` is the GA session object, only what shall change.

    GA wants ``session.type`` in every update, so it is put in where it is missing.
    """

    session: Json

    def body(self) -> dict[str, Any]:
        """The event as JSON object, without its ``event_id``."""
        return {"type": "session.update", "session": {"type": "realtime", **self.session}}


@dataclass(frozen=True, slots=True)
class CreateItem:
    """``conversation.item.create``: append ``item`` to the conversation, or put it after another
    one (``previous_item_id``; ``root`` for the beginning)."""

    item: Json
    after: str = ""

    def body(self) -> dict[str, Any]:
        """The event as JSON object, without its ``event_id``."""
        after = {"previous_item_id": self.after} if self.after else {}
        return {"type": "conversation.item.create", **after, "item": dict(self.item)}


@dataclass(frozen=True, slots=True)
class CreateResponse:
    """``response.create``; ``response`` overrides session settings for this response only."""

    response: Json | None = None

    def body(self) -> dict[str, Any]:
        """The event as JSON object, without its ``event_id``."""
        event: dict[str, Any] = {"type": "response.create"}
        if self.response is not None:
            event["response"] = dict(self.response)
        return event


@dataclass(frozen=True, slots=True)
class CancelResponse:
    """``response.cancel`` for one response; the one that runs, where it has no id."""

    response_id: str

    def body(self) -> dict[str, Any]:
        """The event as JSON object, without its ``event_id``."""
        if self.response_id.startswith(UNNAMED):
            return {"type": "response.cancel"}
        return {"type": "response.cancel", "response_id": self.response_id}


@dataclass(frozen=True, slots=True)
class TruncateItem:
    """``conversation.item.truncate``: the caller heard ``audio_end_ms`` ms of this part."""

    item_id: str
    content_index: int
    audio_end_ms: int

    def body(self) -> dict[str, Any]:
        """The event as JSON object, without its ``event_id``."""
        return {
            "type": "conversation.item.truncate",
            "item_id": self.item_id,
            "content_index": self.content_index,
            "audio_end_ms": self.audio_end_ms,
        }


@dataclass(frozen=True, slots=True)
class DeleteItem:
    """``conversation.item.delete``: the caller heard nothing of this item."""

    item_id: str

    def body(self) -> dict[str, Any]:
        """The event as JSON object, without its ``event_id``."""
        return {"type": "conversation.item.delete", "item_id": self.item_id}


ClientCommand = (
    UpdateSession | CreateItem | CreateResponse | CancelResponse | TruncateItem | DeleteItem
)
