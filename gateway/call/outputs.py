# SPDX-License-Identifier: GPL-2.0-or-later
"""Outputs of the call's state machine, as values; the bridge executes them in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.realtime.events import ClientCommand


@dataclass(frozen=True, slots=True)
class Ring:
    """Send 180 Ringing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Send 183 Session Progress with SDP: early media begins (RFC 3960)."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Connect to the realtime server and configure the session."""

    server: int = 0
    """0 is the route's own server; others are counted from 1."""
    standby: bool = False
    """A standby session, to take over later (:class:`PromoteStandby`)."""
    seed: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    """Items of the conversation so far, for a session that is told of them at its start."""


@dataclass(frozen=True, slots=True)
class PromoteStandby:
    """Make the standby session the active one; close the other."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Send 200 OK to the INVITE."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Send the final response ``code`` (300 to 699) to the INVITE, with these headers."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HangUp:
    """Send BYE, or CANCEL while the placed call rings, with these headers."""

    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Close the WebSocket of the session with this code and reason, or stop opening it."""

    code: int = 1000
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a client event to the active session."""

    command: ClientCommand
    seed: bool = False
    """It seeds a new session with the conversation."""


@dataclass(frozen=True, slots=True)
class StartMedia:
    """Start sending the caller's audio to the session, and with ``playout`` the model's to the
    caller."""

    playout: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """Stop playout and the caller's audio while ``held``: the caller has us on hold, or an action
    keeps the two apart.

    With ``silent`` the session gets silence in place of the caller's audio, else nothing.
    """

    held: bool
    silent: bool


@dataclass(frozen=True, slots=True)
class Mute:
    """Send silence to the session in place of the caller's audio while ``muted``."""

    muted: bool


@dataclass(frozen=True, slots=True)
class Withhold:
    """Send silence to the session in place of the caller's audio while ``withheld``; afterwards
    first the last seconds of that audio."""

    withheld: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause playout while ``paused``: the caller hears silence, and the queue keeps its frames."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Dial:
    """Send the INVITE of the outbound call."""


@dataclass(frozen=True, slots=True)
class PlaySound:
    """Play a sound (:mod:`gateway.audio.sounds`) in a loop to the caller, or the B-leg; "" stops
    it."""

    name: str
    b_leg: bool = False


@dataclass(frozen=True, slots=True)
class Refer:
    """Send REFER (RFC 3515): ask the caller's side to call ``target`` in our place.

    With ``replaces``, ``target`` is empty: the caller's side is to take over our call with the
    B-leg (Replaces, RFC 3891).
    """

    target: str = ""
    replaces: bool = False
    by_pattern: bool = False
    """The target matches a pattern of the dialplan; False: the dialplan names it."""


@dataclass(frozen=True, slots=True)
class DialBLeg:
    """Place a B-leg for the caller."""

    uri: str
    trunk: str = ""
    caller_id: str = ""
    """User of From; "" for the trunk's."""
    by_pattern: bool = False
    """As in :class:`Refer`."""
    briefed: bool = False
    """It gets audio of its own before it is joined: :class:`PlayBriefing`."""
    interpreted: bool = False
    """It keeps audio of its own when it is joined: :class:`Interpret`."""


@dataclass(frozen=True, slots=True)
class PlayBriefing:
    """Queue whole frames for the B-leg, in the codec of the call; an empty ``audio`` drops what is
    queued."""

    audio: bytes


@dataclass(frozen=True, slots=True)
class HangUpBLeg:
    """Send CANCEL or BYE to the B-leg."""

    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BridgeLegs:
    """Join caller and B-leg; with ``listen`` the session hears both.

    With ``original_db`` each leg keeps audio of its own, and hears the other's voice at that level
    (dB).
    """

    listen: bool
    original_db: float | None = None


@dataclass(frozen=True, slots=True)
class Interpret:
    """Open the sessions that interpret between the joined legs; with both objects empty, close
    them."""

    to_caller: Mapping[str, Any] = field(default_factory=dict)
    """The session object of the one that the caller hears."""
    to_callee: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenInterpreter:
    """Open the lost session that interprets for ``listener``, caller or callee, again."""

    listener: str


@dataclass(frozen=True, slots=True)
class InterpreterSend:
    """Send a client event to the session that interprets for ``listener``."""

    listener: str
    command: ClientCommand


@dataclass(frozen=True, slots=True)
class InterpreterPlay:
    """Queue audio for ``listener``. ``more``: more audio of this content part is to come."""

    listener: str
    audio: bytes
    more: bool


@dataclass(frozen=True, slots=True)
class HearFully:
    """Let ``listener``, caller or callee, hear the other's own voice at full volume."""

    listener: str


@dataclass(frozen=True, slots=True)
class SendDtmf:
    """Send one DTMF digit, to the caller or the B-leg; ``how``: auto, rfc4733 or info."""

    digit: str
    how: str = "auto"
    b_leg: bool = False


@dataclass(frozen=True, slots=True)
class RunTool:
    """Run a tool function; its result comes back as :class:`gateway.call.inputs.ToolDone`."""

    call_id: str
    name: str
    arguments: str
    """The model's, as JSON text."""


@dataclass(frozen=True, slots=True)
class RequestApproval:
    """Ask the HTTP service of an approval rule about a tool call;
    :class:`gateway.call.inputs.ApprovalResult` comes back."""

    key: str
    name: str
    arguments: str
    """The model's, as JSON text."""
    rule: int
    """Index of the approval rule that asks."""


@dataclass(frozen=True, slots=True)
class CheckContent:
    """Ask the HTTP service of a guardrail whether these words may be said;
    :class:`gateway.call.inputs.ContentChecked` comes back."""

    key: str
    rule: int
    """Index of the guardrail that asks."""
    who: str
    """agent or caller."""
    text: str


@dataclass(frozen=True, slots=True)
class OutOfBandDone:
    """Result of an out-of-band response, for who requested it."""

    key: str
    status: str
    text: str


@dataclass(slots=True)
class Play:
    """Queue whole frames in the codec of the call. ``more``: more audio of this part is to come.

    Not frozen, for the sake of time: there is one for each audio delta.
    """

    audio: bytes
    more: bool


@dataclass(frozen=True, slots=True)
class StartRecording:
    """Record both sides of the call from now on, or of the briefing of the B-leg (``b_leg``)."""

    b_leg: bool = False


@dataclass(frozen=True, slots=True)
class StopRecording:
    """Complete the file of the recording, or with ``discard`` delete it."""

    discard: bool = False
    b_leg: bool = False


@dataclass(frozen=True, slots=True)
class SilenceRecording:
    """Record silence in place of both sides while ``silent``; the time goes on."""

    silent: bool


@dataclass(frozen=True, slots=True)
class Conceal:
    """Give session and recording silence in place of the caller's audio while ``concealed``, since
    sensitive digits are entered. DTMF in it is detected all the same."""

    concealed: bool


@dataclass(frozen=True, slots=True)
class StoreDigits:
    """Check sensitive digits and send them to the route's service;
    :class:`gateway.call.inputs.DigitsStored` comes back."""

    kind: str
    digits: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write a line to the log (``call.`` and ``event``); the call's timeline has it already."""

    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Finished:
    """The call is over on both sides and its record complete; no output follows."""


Output = (
    Ring
    | Progress
    | OpenSession
    | PromoteStandby
    | Answer
    | Reject
    | HangUp
    | CloseSession
    | Send
    | StartMedia
    | Hold
    | Mute
    | Withhold
    | Pause
    | Dial
    | PlaySound
    | Refer
    | DialBLeg
    | PlayBriefing
    | HangUpBLeg
    | BridgeLegs
    | Interpret
    | OpenInterpreter
    | InterpreterSend
    | InterpreterPlay
    | HearFully
    | SendDtmf
    | RunTool
    | RequestApproval
    | CheckContent
    | OutOfBandDone
    | Play
    | StartRecording
    | StopRecording
    | SilenceRecording
    | Conceal
    | StoreDigits
    | LogEvent
    | Finished
)
