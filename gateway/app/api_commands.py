# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of the API for live calls: place, transfer and end them, steer their conversations.

Each request names its call: ``{"call": "...", "text": "..."}``; a part of an id is enough
where it is the only one that begins so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import structlog

from gateway.api.backend import Command, NoCallError
from gateway.api.client import RefusedError
from gateway.app.outbound_calls import OutboundCalls
from gateway.bridge.call_controller import CallController, OutOfBandWaiters
from gateway.bridge.legs import DialRefusedError
from gateway.call import inputs
from gateway.call.call_record import CallRecord
from gateway.call.rules.recording import ACTIONS as RECORDING_ACTIONS
from gateway.call.rules.recording import refusal_of
from gateway.call.tools.commands import (
    CallCommand,
    Interrupt,
    MuteCaller,
    OperatorHold,
    OperatorTransfer,
    PressKeys,
    RecordCall,
    RequestOutOfBand,
    RequestResponse,
    Say,
    SendImage,
    SendMessage,
    SetDisposition,
)
from gateway.call.tools.definitions import ToolCallError, transfer_target
from gateway.call.transfer import TAKE_OVER_SECONDS
from gateway.ending import EndReason, Outcome
from gateway.log import level_now, set_level
from gateway.measures import BoundedDict
from gateway.tools import MAX_DISPOSITION, ImageError, checked_data_uri

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

    That is its id, its beginning or end, or a SIP Call-ID, in this order. Raises NoCallError where
    no call fits, and RefusedError where several do or none is named.
    """
    wanted = request.get("call")
    if not isinstance(wanted, str) or not wanted:
        raise RefusedError("call must be the id of a call, or a part of it: see gateway calls")
    found = calls_named(wanted, calls)
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoCallError(
            f"there is no call {wanted!r}: no call in progress has this id (see gateway calls)"
        )
    ids = ", ".join(sorted(one.record.call_id for one in found[:10]))
    raise RefusedError(f"{wanted!r} is {len(found)} calls: {ids}")


def calls_named(name: str, calls: Iterable[T]) -> list[T]:
    """Return the calls whose id is ``name``, else begins so, else ends so, else those whose SIP
    Call-ID it is (percent-encoded, too)."""
    there = list(calls)
    for fits in (str.__eq__, str.startswith, str.endswith):
        if found := [one for one in there if fits(one.record.call_id, name)]:
            return found
    return [one for one in there if one.record.sip_call_id in (name, unquote(name))]


class TalkingCall(Protocol):
    """Part of :class:`gateway.bridge.call_controller.CallController` that these commands use."""

    record: CallRecord
    out_of_band: OutOfBandWaiters

    @property
    def conversing(self) -> bool:
        """Whether the call is up, with a session that talks."""

    def act(self, act: CallCommand) -> None:
        """Feed a command to the call's conversation."""


class ContentCommands:
    """Commands that change or read the conversation of a call: say, hold, mute, DTMF, ask ...

    All but the transcript need a session that talks. Each returns the call's id.

    Args:
        calls: returns the calls in progress.
    """

    def __init__(self, calls: Callable[[], Iterable[TalkingCall]]) -> None:
        self._calls = calls
        self.commands: dict[str, Command] = {
            "say": lambda r: self._do(r, Say(_text(r, "text"))),
            "send_message": self._send_message,
            "send_image": self._send_image,
            "create_response": lambda r: self._do(r, RequestResponse(_text(r, "text"))),
            "cancel": lambda r: self._do(r, Interrupt()),
            "hold": lambda r: self._do(r, OperatorHold(r["held"])),
            "mute": lambda r: self._do(r, MuteCaller(r["muted"])),
            "dtmf": lambda r: self._do(r, PressKeys(r["digits"])),
            "query": self._query,
            "transcript": self._transcript,
        }

    def _send_message(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add a message (``role`` system or user) to a call; ``respond``: request a response."""
        role, respond = request.get("role", "system"), request.get("respond", False)
        return self._do(request, SendMessage(_text(request, "text"), role, respond))

    def _send_image(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add an image (data URI), with text if given; ``respond``: request a response.

        Raises RefusedError, also for an image that is none, or too large.
        """
        try:
            uri = checked_data_uri(request["image"])
        except ImageError as error:
            raise RefusedError(str(error)) from None
        text = _text(request, "text") if request.get("text") else ""
        return self._do(request, SendImage(uri, text, request.get("respond", False)))

    def _query(self, request: Mapping[str, Any]) -> Awaitable[Mapping[str, Any]]:
        """Request an out-of-band response; return the wait for it (``RESPONSE_SECONDS`` at most).

        Raises RefusedError at once where the call has no session that talks.
        """
        instructions = _text(request, "text")
        call = self._up(request)
        key = call.out_of_band.key()
        answer = call.out_of_band.wait(key)
        call.act(RequestOutOfBand(key, instructions, request.get("metadata") or {}))
        return _answered(call, answer, key)

    def _transcript(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a call's transcript from number ``after`` on.

        Masked by the record's patterns unless ``unmasked``. ``count``: entries so far, ``dropped``:
        of these the oldest that are not kept.
        """
        call = call_named(request, self._calls())
        after = request.get("after", 0)
        told = call.record.transcript
        entries = [] if told is None else told.as_json()
        if not request.get("unmasked"):
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
        """Feed a command to a call, and return its id; what becomes of it is not waited for.

        Raises RefusedError where the call has no session that talks, or rejects it at once.
        """
        call = self._up(request)
        _act(call, act)
        return {"call": call.record.call_id}

    def _up(self, request: Mapping[str, Any]) -> TalkingCall:
        """Return the call of a request. Raises RefusedError where it has no session that talks."""
        call = call_named(request, self._calls())
        if not call.conversing:
            raise RefusedError(f"call {call.record.call_id}: nobody talks with the model now")
        return call


def _act(call: TalkingCall, command: CallCommand) -> None:
    """Feed a command to a call. Raises RefusedError where the call rejects it at once."""
    before = len(_refusals(call.record))
    call.act(command)
    if refused := _refusals(call.record)[before:]:
        raise RefusedError(f"call {call.record.call_id}: {refused[0]}")


async def _answered(call: TalkingCall, answer: asyncio.Future[Any], key: str) -> Mapping[str, Any]:
    """Return the text of an out-of-band response. Raises RefusedError when it is late or not
    completed."""
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
    """Return a text of a request. Raises RefusedError where it is none, blank or too long."""
    text = request.get(name)
    if not isinstance(text, str) or not text.strip():
        raise RefusedError(f"{name} must be a text that is not empty")
    if len(text) > MAX_TEXT:
        raise RefusedError(f"{name} has {len(text)} characters; {MAX_TEXT} are allowed")
    return text


log = structlog.get_logger("gateway")


MAX_TRANSFERS = 64
"""Transfers whose outcome can still be asked for."""

BEGIN_SECONDS = 30.0
"""For what the model is saying to be heard, before a transfer begins."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A transfer that an operator requested; ``before`` counts those that had begun by then."""

    record: CallRecord
    destination: str
    before: int

    def outcome(self) -> Mapping[str, Any]:
        """Return ``over``, ``done`` (answered, or the call ended as transferred) and ``outcome``.

        By the first transfer to the destination since the request; without one, over if the call
        has ended.
        """
        ending = self.record.ending
        attempts = [
            one
            for one in self.record.actions.transfers[self.before :]
            if one.destination == self.destination
        ]
        if attempts:
            attempt = attempts[0]
            taken = ending is not None and ending.why is EndReason.TRANSFERRED
            over = ending is not None or attempt.outcome not in ("", Outcome.RINGING)
            done = attempt.outcome == Outcome.ANSWERED or taken
            words = str(attempt.outcome or "asked for")
            if attempt.sip_code:
                words += f", SIP {attempt.sip_code}"
            return {"over": over, "done": done, "outcome": words}
        if ending is not None:
            return {"over": True, "done": False, "outcome": f"the call ended: {ending.why.value}"}
        return {"over": False, "done": False, "outcome": "not begun"}


def _refusals(record: CallRecord) -> list[str]:
    """Return the reasons of the commands that a call has rejected so far, oldest first."""
    rejected = (mark for mark in record.timeline if mark["event"] == "command_rejected")
    return [str(mark.get("reason", "")) for mark in rejected]


@dataclass(slots=True)
class _Waiting:
    """A call without a session: its INVITE waits for a decision, or it is on a test line."""

    record: CallRecord


class OperatorCommands:
    """Commands of an operator that steer a call: hang up, transfer, recording, disposition ...

    Args:
        calls: those with a session, as they come and go.
        waiting: records of calls without: INVITEs that wait for a decision, and test lines.
        refuse_waiting: rejects or ends one of these by its id.
    """

    def __init__(
        self,
        calls: Iterable[CallController],
        waiting: Callable[[], Iterable[CallRecord]] = tuple,
        refuse_waiting: Callable[[str], object] = lambda _call_id: None,
    ) -> None:
        self._calls = calls
        self._waiting = waiting
        self._refuse_waiting = refuse_waiting
        self._transfers: BoundedDict[tuple[str, int], _Asked] = BoundedDict(MAX_TRANSFERS)
        self._numbers = count(1)
        self.commands = {
            "hangup": self._hang_up,
            "transfer": self._transfer,
            "transfer_outcome": self._outcome,
            "recording": self._record,
            "disposition": self._set_disposition,
            "black_box": self._keep_black_box,
        }
        """By name, for the API."""

    def knows(self, call: str) -> bool:
        """Whether a call in progress has this name, or a call of this id has a transfer whose
        outcome can be asked for."""
        asked = any(call == known for known, _number in self._transfers)
        return asked or bool(calls_named(call, self._all()))

    def _all(self) -> list[CallController | _Waiting]:
        """Return calls with a session, then those without."""
        return [*self._calls, *map(_Waiting, self._waiting())]

    def _hang_up(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Hang a call up; an INVITE that waits for a decision is rejected. Raises RefusedError."""
        found = call_named(request, self._all())
        call_id = found.record.call_id
        log.info("operator.hangup", call=call_id)
        if isinstance(found, _Waiting):
            self._refuse_waiting(call_id)
        else:
            found.feed(inputs.HangupRequested())
        return {"call": call_id}

    def _transfer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Begin to transfer a call to a destination of its route, the first if none is named.

        Returns the number to ask :meth:`_outcome` for, and ``seconds`` in which it is decided.
        Raises RefusedError where the call does not talk with the model, may not go there, or
        rejects it at once: another action is queued or under way.
        """
        controller = call_named(request, self._calls)
        call = controller.record.call_id
        if not controller.talking:
            raise RefusedError(f"{call} is not in conversation with the model")
        transfers = controller.plan.tools.transfer
        if not transfers.destinations:
            raise RefusedError(f"route {controller.record.route!r} has no [[route.transfer]]")
        destination = request.get("destination") or transfers.destinations[0].name
        briefing = str(request.get("briefing") or "")
        wanted = json.dumps({"destination": destination, "briefing": briefing})
        try:
            target = transfer_target(wanted, transfers)
        except ToolCallError as error:
            raise RefusedError(str(error)) from None
        log.info("operator.transfer", call=call, to=target.uri)
        record = controller.record
        asked = _Asked(record, target.destination.name, len(record.actions.transfers))
        _act(controller, OperatorTransfer(destination, briefing))
        number = next(self._numbers)
        self._transfers[call, number] = asked
        briefed = target.destination.briefing.timeout if target.destination.briefing else 0.0
        seconds = target.destination.ring_timeout + briefed + TAKE_OVER_SECONDS + BEGIN_SECONDS
        return {"call": call, "to": target.uri, "transfer": number, "seconds": seconds}

    def _record(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Start, stop, pause, resume or delete a recording; return its state.

        Raises RefusedError where the recording's state or the route does not allow it, or the call
        has no ACK yet.
        """
        controller = call_named(request, self._calls)
        record, action = controller.record, str(request.get("action"))
        if action not in RECORDING_ACTIONS:
            raise RefusedError(f"action must be one of {', '.join(RECORDING_ACTIONS)}")
        refused = refusal_of(record.recording, controller.plan.recording, action)
        if refused or record.times.confirmed is None:
            raise RefusedError(f"{record.call_id}: {refused or 'the call is not up'}")
        log.info("operator.recording", call=record.call_id, action=action)
        controller.feed(inputs.ToolRequest(RecordCall(action)))
        state = "" if record.recording is None else record.recording.state
        return {"call": record.call_id, "state": state}

    def _set_disposition(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set a call's disposition, in place of an earlier one. Raises RefusedError."""
        record = (controller := call_named(request, self._calls)).record
        text = _text(request, "disposition")
        if len(text) > MAX_DISPOSITION:
            raise RefusedError(f"disposition must have at most {MAX_DISPOSITION} characters")
        controller.feed(inputs.ToolRequest(SetDisposition(text, "operator")))
        return {"call": record.call_id, "disposition": record.disposition}

    def _keep_black_box(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a call's black box kept at its end. Raises RefusedError where none is written."""
        controller = call_named(request, self._calls)
        call_id = controller.record.call_id
        if not controller.keep_black_box():
            raise RefusedError(
                f"no black box of {call_id} is written: its route has records.black_box off"
            )
        log.info("operator.black_box", call=call_id)
        return {"call": call_id}

    def _outcome(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what became of a transfer, by call id and its number; kept for the last ones.

        Raises NoCallError for others.
        """
        asked = self._transfers.get((str(request.get("call")), request.get("transfer", -1)))
        if asked is None:
            raise NoCallError("there is no such transfer, or it is long over")
        return asked.outcome()


class DialCommands:
    """Commands that place calls, and return what became of them."""

    def __init__(self, outbound: OutboundCalls) -> None:
        self._outbound = outbound
        self.commands: dict[str, Command] = {"dial": self._dial, "call": self._outcome}

    async def _dial(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Place a call (``to``, ``route``, ``trunk``, ``caller_id``, ``variables``); return its id.

        It is not answered yet. Raises RefusedError with the rule that forbids it.
        """
        variables = request.get("variables") or {}
        texts = [request.get(key, "") for key in ("to", "route", "trunk", "caller_id")]
        try:
            record, _over = await self._outbound.place(
                texts[0], texts[1], texts[2], variables, texts[3]
            )
        except (DialRefusedError, ValueError) as error:
            raise RefusedError(str(error)) from None
        return {"call": record.call_id}

    def _outcome(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``over`` and the summary of a placed call. Raises NoCallError for one that is
        none of the last ones."""
        record = self._outbound.recent(str(request.get("call", "")))
        if record is None:
            raise NoCallError("there is no such call, or it is long over")
        return {"over": record.ending is not None, "summary": record.summary()}


class ProcessCommands:
    """Commands about the process, apart from its calls.

    Args:
        register: has a trunk register now; raises KeyError for one that there is not, and
            ValueError for one that does not register.
        explain_refused: explains why an INVITE of this SIP Call-ID got no further; "" for none.
    """

    def __init__(
        self,
        register: Callable[[str], None],
        explain_refused: Callable[[str], str] = lambda _sip_call_id: "",
    ) -> None:
        self._register = register
        self._explain_refused = explain_refused
        self.commands: dict[str, Command] = {
            "register": self._on_register,
            "log": self._log,
            "refused": self._refused,
        }

    def _refused(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return why an INVITE of this SIP Call-ID was refused. Raises NoCallError for none."""
        call = str(request["call"])
        told = self._explain_refused(call)
        if not told:
            raise NoCallError(f"no INVITE with the Call-ID {call!r} was refused lately")
        return {"call": call, "explanation": told}

    def _on_register(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a trunk register now, without waiting for the answer.

        Raises NoCallError for an unknown trunk, RefusedError for one that does not register.
        """
        name = str(request["trunk"])
        try:
            self._register(name)
        except KeyError:
            raise NoCallError(f"there is no trunk {name!r}") from None
        except ValueError as error:
            raise RefusedError(str(error)) from None
        return {"trunk": name}

    def _log(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set the log's level if one is given; return the level."""
        if (level := request.get("level")) is not None:
            set_level(level)
        return {"level": level_now()}
