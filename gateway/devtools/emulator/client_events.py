# SPDX-License-Identifier: GPL-2.0-or-later
"""The client events of the GA protocol, as the models they are checked with.

``input_audio_buffer.append`` is not among them: it comes fifty times a second and call, and is
taken on a path of its own (:meth:`gateway.devtools.emulator.session.Session`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from gateway.devtools.emulator.objects import Json
from gateway.devtools.emulator.settings import ResponseParameters


class Actions(Protocol):
    """What client events do to a session. Each may raise ``ProtocolError``."""

    def update(self, session: object) -> None: ...
    def commit(self) -> None: ...
    def clear(self) -> None: ...
    def create_item(self, data: object, after: str | None) -> None: ...
    def retrieve_item(self, item_id: str) -> None: ...
    def truncate_item(self, item_id: str, content_index: int, audio_end_ms: int) -> None: ...
    def delete_item(self, item_id: str) -> None: ...
    def create_response(self, parameters: ResponseParameters) -> None: ...
    def cancel_response(self, response_id: str | None) -> None: ...


class ClientEvent(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(extra="forbid")
    event_id: Annotated[str | None, Field(max_length=512)] = None

    def apply(self, session: Actions) -> None:
        """Do what the event asks for."""
        raise NotImplementedError


class _Update(ClientEvent):
    type: Literal["session.update"]
    session: dict[str, Any]

    def apply(self, session: Actions) -> None:
        session.update(self.session)


class _Commit(ClientEvent):
    type: Literal["input_audio_buffer.commit"]

    def apply(self, session: Actions) -> None:
        session.commit()


class _Clear(ClientEvent):
    type: Literal["input_audio_buffer.clear"]

    def apply(self, session: Actions) -> None:
        session.clear()


class _CreateItem(ClientEvent):
    type: Literal["conversation.item.create"]
    item: Json
    previous_item_id: str | None = None

    def apply(self, session: Actions) -> None:
        session.create_item(self.item, self.previous_item_id)


class _RetrieveItem(ClientEvent):
    type: Literal["conversation.item.retrieve"]
    item_id: str

    def apply(self, session: Actions) -> None:
        session.retrieve_item(self.item_id)


class _TruncateItem(ClientEvent):
    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)

    def apply(self, session: Actions) -> None:
        session.truncate_item(self.item_id, self.content_index, self.audio_end_ms)


class _DeleteItem(ClientEvent):
    type: Literal["conversation.item.delete"]
    item_id: str

    def apply(self, session: Actions) -> None:
        session.delete_item(self.item_id)


class _CreateResponse(ClientEvent):
    type: Literal["response.create"]
    response: ResponseParameters = ResponseParameters()

    def apply(self, session: Actions) -> None:
        session.create_response(self.response)


class _CancelResponse(ClientEvent):
    type: Literal["response.cancel"]
    response_id: str | None = None

    def apply(self, session: Actions) -> None:
        session.cancel_response(self.response_id)


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": _Update,
    "input_audio_buffer.commit": _Commit,
    "input_audio_buffer.clear": _Clear,
    "conversation.item.create": _CreateItem,
    "conversation.item.retrieve": _RetrieveItem,
    "conversation.item.truncate": _TruncateItem,
    "conversation.item.delete": _DeleteItem,
    "response.create": _CreateResponse,
    "response.cancel": _CancelResponse,
}
