# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands sent in a session: their ids, and changes that make a server accept them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

import structlog

from gateway.realtime.events import (
    ClientCommand,
    CreateResponse,
    ResponseCreated,
    ServerError,
    UpdateSession,
)
from gateway.realtime.session_object import (
    Refused,
    changes_something,
    dotted,
    field_of,
    voice_of,
    without,
)

REQUEST_KEY = "gateway_request"
"""Key in the metadata of a response: the ``event_id`` of the request for it."""

MAX_METADATA = 16
"""Pairs that the protocol has room for."""

_REMEMBERED_COMMANDS = 256
"""Commands that an error may still refer to; servers answer at once or never."""
_REMEMBERED_REFUSALS = 64


class SentCommands:
    """The last commands of one session, by their ``event_id``.

    Args:
        refused: settings that the server did not take at set-up.
        session_id: for the log.
    """

    def __init__(self, refused: Iterable[Refused], session_id: str) -> None:
        self.refused = list(refused)
        """Settings that the server did not take; the first 64 are kept."""
        self.voice_locked = False
        """Whether the server has spoken, after which the voice cannot be changed."""
        self._log = structlog.get_logger("gateway.realtime.session").bind(session=session_id)
        self._by_id: dict[str, ClientCommand] = {}
        self._last = 0
        self._sent_again: deque[str | None] = deque(maxlen=_REMEMBERED_COMMANDS)
        """Updates that were sent again without a field."""
        self._marks = True
        """Requests for responses name themselves in their metadata."""

    def next_id(self) -> str:
        """Return the ``event_id`` of the next command."""
        self._last += 1
        return f"gw_{self._last}"

    def remember(self, event_id: str, command: ClientCommand) -> None:
        """Keep a command that was sent; the oldest goes."""
        self._by_id[event_id] = command
        if len(self._by_id) > _REMEMBERED_COMMANDS:
            del self._by_id[next(iter(self._by_id))]

    def command_of(self, event_id: str | None) -> ClientCommand | None:
        """Return the command sent with ``event_id``, if it is one of the last 256."""
        return self._by_id.get(event_id) if event_id is not None else None

    def asked_by(self, event: ResponseCreated) -> ClientCommand | None:
        """Return our request for this response; None if the server began it, or does not say."""
        event_id = event.metadata.get(REQUEST_KEY)
        return self.command_of(event_id) if isinstance(event_id, str) else None

    def body_of(self, command: ClientCommand, event_id: str) -> dict[str, Any]:
        """Return the command's JSON, which names a request for a response in its metadata."""
        body = command.body()
        if self._marks and isinstance(command, CreateResponse):
            response = dict(body.get("response") or {})
            metadata = dict(response.get("metadata") or {})
            if len(metadata) < MAX_METADATA:
                response["metadata"] = {**metadata, REQUEST_KEY: event_id}
                body["response"] = response
        return body

    def without_locked_voice(
        self, command: ClientCommand, effective: dict[str, Any]
    ) -> ClientCommand:
        """Return the command without a change of voice that the server would refuse."""
        if not self.voice_locked or not isinstance(command, UpdateSession):
            return command
        asked, in_force = voice_of(command.session), voice_of(effective)
        if asked is None or asked == in_force:
            return command
        self._log.warning("session.voice_locked", asked=asked, voice=in_force)
        return UpdateSession(without(command.session, ("audio", "output", "voice")))

    def unmarked(self, error: ServerError) -> CreateResponse | None:
        """Return the request to send again, unmarked, where the server takes no metadata."""
        command = self.command_of(error.client_event_id)
        if not self._marks or not isinstance(command, CreateResponse):
            return None
        if field_of(error, {"metadata": {REQUEST_KEY: ""}}) is None:
            return None
        self._marks = False
        if "metadata" in (command.response or {}):
            return None  # it has some of its own, and whoever asked has to do without
        self._log.info("session.requests_unmarked", code=error.code, detail=error.message)
        return command

    def without_refused_field(self, error: ServerError) -> UpdateSession | None:
        """Return the update to send again, without the one field for which it was refused.

        Once for each update, and each is smaller than the one before: so this ends.
        """
        command = self.command_of(error.client_event_id)
        if not isinstance(command, UpdateSession) or error.client_event_id in self._sent_again:
            return None
        path = field_of(error, command.session)
        if path is None:
            return None
        self._sent_again.append(error.client_event_id)
        field = dotted(path)
        if len(self.refused) < _REMEMBERED_REFUSALS:
            code = error.code or error.type or "error"
            self.refused.append(Refused(field, code, " ".join(error.message.split())))
        rest = without(command.session, path)
        again = changes_something(rest)
        self._log.warning(
            "session.setting_rejected",
            field=field,
            code=error.code,
            detail=error.message,
            what="the rest is sent again" if again else "nothing is left of the update",
        )
        return UpdateSession(rest) if again else None


def encode_command(body: dict[str, Any], event_id: str) -> bytes:
    """Return a command as it goes on the wire: one JSON object with its ``event_id``."""
    return json.dumps({**body, "event_id": event_id}, separators=(",", ":")).encode()
