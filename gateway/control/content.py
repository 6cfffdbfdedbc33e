# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of the control socket that add to a call's conversation, or ask about it.

Each request names its call: ``{"command": "say", "call": "...", "text": "..."}``; the beginning of
an id is enough where it is the only one that begins so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from gateway.bridge.call_controller import OutOfBandWaiters
from gateway.call.call_record import CallRecord
from gateway.call.tools.commands import CallCommand, RequestOutOfBand, Respond, Say, Show, Tell
from gateway.control.server import Command, RefusedError
from gateway.tools.api import ImageError, checked

MAX_TEXT = 16_000
"""Characters put into a conversation at once; some 4,000 tokens."""

RESPONSE_SECONDS = 20.0
"""More than the call's own deadline for these."""


class HasRecord(Protocol):
    """A call in progress: all that is needed to find it."""

    record: CallRecord


T = TypeVar("T", bound="HasRecord")


def call_named(request: Mapping[str, Any], calls: Iterable[T]) -> T:
    """Return the call that ``request["call"]`` names.

    That is its id or the beginning of one, or a SIP Call-ID. Raises RefusedError when no call
    fits, or several do.
    """
    wanted = request.get("call")
    if not isinstance(wanted, str) or not wanted:
        raise RefusedError("call must be the id of a call, or its beginning: see gateway calls")
    there = list(calls)
    found = [one for one in there if one.record.call_id.startswith(wanted)]
    found = [one for one in found if one.record.call_id == wanted] or found
    found = found or [one for one in there if one.record.sip_call_id == wanted]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RefusedError(
            f"there is no call {wanted!r}: no call in progress has this id (see gateway calls)"
        )
    ids = ", ".join(sorted(one.record.call_id for one in found[:10]))
    raise RefusedError(f"{wanted!r} is {len(found)} calls: {ids}")


class TalkingCall(Protocol):
    """What these commands need of :class:`gateway.bridge.call_controller.CallController`."""

    record: CallRecord
    out_of_band: OutOfBandWaiters

    @property
    def conversing(self) -> bool:
        """Whether the call is up, with a session that talks."""

    def act(self, act: CallCommand) -> None:
        """Do this in the conversation."""


class ContentCommands:
    """Commands of the control socket that work on a conversation.

    Args:
        calls: those that are up now.
    """

    def __init__(self, calls: Callable[[], Iterable[TalkingCall]]) -> None:
        self._calls = calls
        self.commands: dict[str, Command] = {
            "say": lambda r: self._do(r, Say(_text(r, "text"))),
            "tell": self._tell,
            "show": self._show,
            "respond": lambda r: self._do(r, Respond(_text(r, "text"))),
            "ask": self._ask,
            "transcript": self._transcript,
        }

    def _tell(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        role = request.get("role", "system")
        if role not in ("system", "user"):
            raise RefusedError("role must be system or user")
        return self._do(request, Tell(_text(request, "text"), role, _flag(request, "respond")))

    def _show(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        image = request.get("image")
        if not isinstance(image, str):
            raise RefusedError("image must be a text: a data URI")
        try:
            uri = checked(image)
        except ImageError as error:
            raise RefusedError(str(error)) from None
        text = _text(request, "text") if request.get("text") else ""
        return self._do(request, Show(uri, text, _flag(request, "respond")))

    def _ask(self, request: Mapping[str, Any]) -> Awaitable[Mapping[str, Any]]:
        metadata = request.get("metadata") or {}
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) and len(value) <= 512 and len(name) <= 64
            for name, value in metadata.items()
        ):
            raise RefusedError("metadata must be texts by name, of at most 512 and 64 characters")
        instructions = _text(request, "text")
        call = self._up(request)
        key = call.out_of_band.key()
        answer = call.out_of_band.wait(key)
        call.act(RequestOutOfBand(key, instructions, metadata))
        return _answered(call, answer, key)

    def _transcript(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        call = call_named(request, self._calls())
        after = request.get("after", 0)
        if not isinstance(after, int) or after < 0:
            raise RefusedError("after must be a number of entries")
        told = call.record.transcript
        entries = [] if told is None else told.as_json()
        if not _flag(request, "unmasked"):
            entries = call.record.private.masked(entries)
        dropped = call.record.transcript_dropped
        return {
            "call": call.record.call_id,
            "dropped": dropped,
            "count": dropped + len(entries),
            "transcript": entries[max(0, after - dropped) :],
        }

    # ---- how

    def _do(self, request: Mapping[str, Any], act: CallCommand) -> Mapping[str, Any]:
        call = self._up(request)
        call.act(act)
        return {"call": call.record.call_id}

    def _up(self, request: Mapping[str, Any]) -> TalkingCall:
        call = call_named(request, self._calls())
        if not call.conversing:
            raise RefusedError(f"call {call.record.call_id}: nobody talks with the model now")
        return call


async def _answered(call: TalkingCall, answer: asyncio.Future[Any], key: str) -> Mapping[str, Any]:
    call_id = call.record.call_id
    try:
        async with asyncio.timeout(RESPONSE_SECONDS):
            done = await answer
    except TimeoutError:
        raise RefusedError(f"call {call_id}: no answer within {RESPONSE_SECONDS:g} s") from None
    if done.status != "completed":
        why = f": {done.text}" if done.text else ""
        raise RefusedError(f"call {call_id}: the response ended as {done.status}{why}")
    return {"call": call_id, "key": key, "text": done.text}


def _text(request: Mapping[str, Any], name: str) -> str:
    text = request.get(name)
    if not isinstance(text, str) or not text.strip():
        raise RefusedError(f"{name} must be a text that is not empty")
    if len(text) > MAX_TEXT:
        raise RefusedError(f"{name} has {len(text)} characters; {MAX_TEXT} are allowed")
    return text


def _flag(request: Mapping[str, Any], name: str) -> bool:
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise RefusedError(f"{name} must be true or false")
    return value
