# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of the responses of one session, whatever its server makes of their ids.

Servers leave ids out, use one again for the next response, and say twice that a response begins or
ends, or that it begins after it has ended. Everything else sees a response under one name of its
own, from one beginning to one end. A repetition becomes an event that nothing acts on.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TypeVar

from gateway.call.conversation.control import ConversationControl
from gateway.realtime.events import (
    UNNAMED,
    AgentTranscript,
    AgentTranscriptDelta,
    AudioDelta,
    AudioDone,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
)

MAX_REMEMBERED = 64
"""Responses of which it is known that they are over; a repetition follows soon, or never."""


class ResponseNames:
    """Completes events about responses with the names that they have here."""

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._made = 0
        """Names of ours so far."""
        self._nameless = ""
        """The latest response that was created without an id, until it has one."""
        self._begun: OrderedDict[str, None] = OrderedDict()
        """Ids whose latest response was created."""
        self._over: OrderedDict[str, None] = OrderedDict()
        """Ids whose latest response is done."""
        self._ours: OrderedDict[str, str] = OrderedDict()
        """Our name of the latest response, by the id that an earlier one had, too."""

    def complete(self, event: ServerEvent) -> ServerEvent:
        """Return the event with the names that are valid here.

        An event without a response id belongs to the running response, one without an item id to
        an item of that response.
        """
        match event:
            case AudioDelta() | AudioDone() | AgentTranscriptDelta() | AgentTranscript():
                response_id = self._name_of(event.response_id)
                if response_id == event.response_id and event.item_id:
                    return event
                return replace(
                    event,
                    response_id=response_id,
                    item_id=event.item_id or f"item_of_{response_id}",
                )
            case ResponseCreated():
                return self._created(event)
            case ResponseDone():
                return self._done(event)
        return event

    def is_over(self, response_id: str) -> bool:
        """Return whether a response was done before it was created."""
        return response_id in self._over

    def forget(self) -> None:
        """Forget the ids of a session that another one replaces."""
        self._begun.clear()
        self._over.clear()
        self._ours.clear()

    def _created(self, event: ResponseCreated) -> ServerEvent:
        """Return the beginning of a response, or of another one with an id that was used before."""
        response_id = event.response_id
        if not response_id:
            self._nameless = self._new_name()
            return replace(event, response_id=self._nameless)
        begun, over = response_id in self._begun, response_id in self._over
        if begun and not over:
            return OtherEvent("response.created", {})
        _keep(self._begun, response_id, None)
        if not begun:
            return event
        self._over.pop(response_id)
        name = self._new_name()
        _keep(self._ours, response_id, name)
        return replace(event, response_id=name)

    def _done(self, event: ResponseDone) -> ServerEvent:
        """Return the end of a response under the name it has here; a second end of the same is
        ignored."""
        response_id = event.response_id
        if event.backend and response_id not in self._begun:
            return event  # of no response that is heard
        if response_id in self._over:
            return OtherEvent("response.done", {})
        name = self._name_of(response_id)
        known = (one for one, ours in self._ours.items() if ours == name)
        _keep(self._over, response_id or next(known, name), None)
        return event if name == response_id else replace(event, response_id=name)

    def _name_of(self, response_id: str) -> str:
        """Return the name of the response with this id; of the running one where it has none."""
        control, active = self._control, self._control.gate.active
        if not response_id:
            return active or UNNAMED
        name = self._ours.get(response_id, response_id)
        if active is None or active != self._nameless or response_id in self._begun:
            return name
        if not control.playback.was_cut(response_id):
            # A response that was created without an id has one after all.
            control.playback.rename(active, response_id)
            control.gate.rename(active, response_id)
            _keep(self._begun, response_id, None)
            self._nameless = ""
        return name

    def _new_name(self) -> str:
        self._made += 1
        return f"{UNNAMED}{self._made}"


_Value = TypeVar("_Value")


def _keep(known: OrderedDict[str, _Value], key: str, value: _Value) -> None:
    """Add an entry as the latest; the oldest goes where there are too many."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
