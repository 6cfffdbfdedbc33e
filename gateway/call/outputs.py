# SPDX-License-Identifier: GPL-2.0-or-later
"""Outputs of the call's state machine, as values; the bridge executes them in order.

Where nothing else is said, an output is about the caller's leg and the active session.
"""

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
    """Connect to the realtime server and configure the session; it replaces the active one, which
    is closed, unless it is a ``standby``.

    :class:`gateway.call.inputs.SessionReady` or ``SessionFailed`` comes back; of a standby session
    ``StandbyReady`` or ``StandbyFailed``.
    """

    server: int = 0
    """0 is the route's own server; the servers of its fallback steps are counted from 1."""
    standby: bool = False
    """A second session, to take over later (:class:`PromoteStandby`)."""
    seed: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    """Items of the conversation so far, for a session that is told of them at its start (Live);
    others get them as :class:`Send` when they are up."""


@dataclass(frozen=True, slots=True)
class PromoteStandby:
    """Make the standby session the active one, and close the one that was active; nothing without
    a standby session."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Send 200 OK to the INVITE of an inbound call."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Send the final response ``code`` (300 to 699) to the INVITE of a call that is not answered,
    with these headers."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HangUp:
    """Send BYE to the caller, or CANCEL while a placed call rings, with these headers."""

    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Close the WebSockets of the active and the standby session (1000, with this reason), or stop
    opening them."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a client event to the active session; dropped while none is up."""

    command: ClientCommand
    seed: bool = False
    """It tells a new session of the conversation so far; the transcript has it already, and does
    not note it again."""


@dataclass(frozen=True, slots=True)
class StartMedia:
    """Start sending the caller's audio to the session, from now on (what came before is dropped),
    and with ``playout`` the model's to the caller."""

    playout: bool = True
    """False: what is queued waits for another ``StartMedia``."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Pause playout, and keep the caller's audio from the session, while ``held``: the caller has
    us on hold, or an action (hold, transfer) keeps caller and model apart."""

    held: bool
    silent: bool
    """The session gets silence in place of the caller's audio; False: it gets nothing."""


@dataclass(frozen=True, slots=True)
class Mute:
    """Send silence to the session in place of the caller's audio while ``muted``, as an operator
    has asked; the caller hears the model all the same."""

    muted: bool


@dataclass(frozen=True, slots=True)
class Withhold:
    """Send silence to the session in place of the caller's audio while ``withheld``. On release it
    first gets the last seconds that were withheld, at once, then live audio."""

    withheld: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause playout while ``paused``: the caller hears silence, and the queue keeps its frames.

    :class:`Hold` and a missing :class:`StartMedia` pause it, too; it goes on when none does.
    """

    paused: bool


@dataclass(frozen=True, slots=True)
class Dial:
    """Send the INVITE of the outbound call; where limits forbid it,
    :class:`gateway.call.inputs.LegEnded` with 403 comes back."""


@dataclass(frozen=True, slots=True)
class PlaySound:
    """Play a sound (:mod:`gateway.audio.sounds`) in a loop to the caller; it replaces one that
    plays."""

    name: str
    """"" only stops what plays."""
    b_leg: bool = False
    """To the B-leg in place of the caller; nothing without one."""


@dataclass(frozen=True, slots=True)
class Refer:
    """Send REFER (RFC 3515) to the caller's side: it is to call ``target`` in our place.

    :class:`gateway.call.inputs.ReferProgress` comes back; with 403 and ``by_us`` where our own
    limits forbid the target.
    """

    target: str = ""
    """URI; "" with ``replaces``."""
    replaces: bool = False
    """It is to take over our call with the B-leg (Replaces, RFC 3891)."""
    by_pattern: bool = False
    """The target was named by model or application, and matches a pattern of the dialplan; False:
    the dialplan names it."""


@dataclass(frozen=True, slots=True)
class DialBLeg:
    """Send the INVITE of a B-leg for the caller, once the limits permit it.

    ``BLegRinging``, ``BLegAnswered`` or ``BLegEnded`` of :mod:`gateway.call.inputs` come back.
    """

    uri: str
    trunk: str = ""
    """Name of the trunk to dial through; "" for the one that the URI belongs to."""
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
    """Queue whole frames (20 ms) for the B-leg, in the session's codec; an empty ``audio`` stops
    what plays and drops what is queued. Only for a B-leg that is ``briefed``."""

    audio: bytes


@dataclass(frozen=True, slots=True)
class HangUpBLeg:
    """Send CANCEL to the B-leg, BYE if it has answered; one that is not dialed yet is given up."""


@dataclass(frozen=True, slots=True)
class BridgeLegs:
    """Join the audio of caller and B-leg; nothing without a B-leg."""

    listen: bool
    """The session goes on hearing both."""
    original_db: float | None = None
    """For an interpreted call: each leg also keeps audio of its own, and hears the other's voice
    at this level (dB, 0 for full volume). None: each hears only the other."""


@dataclass(frozen=True, slots=True)
class Interpret:
    """Open the two sessions that interpret between the joined legs; with both objects empty, close
    them. :class:`gateway.call.inputs.InterpreterUp` or ``InterpreterLost`` comes back for each."""

    to_caller: Mapping[str, Any] = field(default_factory=dict)
    """Session object of the one that hears the B-leg and speaks to the caller."""
    to_callee: Mapping[str, Any] = field(default_factory=dict)
    """Session object of the one that hears the caller and speaks to the B-leg."""


@dataclass(frozen=True, slots=True)
class OpenInterpreter:
    """Open the session that interprets for ``listener`` (caller or callee) again: it was lost."""

    listener: str


@dataclass(frozen=True, slots=True)
class InterpreterSend:
    """Send a client event to the session that interprets for ``listener`` (caller or callee)."""

    listener: str
    command: ClientCommand


@dataclass(frozen=True, slots=True)
class InterpreterPlay:
    """Queue audio of an interpreting session for ``listener`` (caller or callee)."""

    listener: str
    audio: bytes
    more: bool
    """More audio of this part is to come, so that an empty queue is an underrun."""


@dataclass(frozen=True, slots=True)
class HearFully:
    """Play the other party's own voice to ``listener`` (caller or callee) at full volume: the
    session that interpreted for them is lost for good."""

    listener: str


@dataclass(frozen=True, slots=True)
class SendDtmf:
    """Send one DTMF digit to the caller's side."""

    digit: str
    how: str = "auto"
    """rfc4733, info (RFC 6086), or auto: as RTP event where the SDP has them, else INFO."""
    b_leg: bool = False
    """To the B-leg in place of the caller; nothing without one."""


@dataclass(frozen=True, slots=True)
class RunTool:
    """Run a tool function of the route (or ``schedule_callback``) outside the machine; its result
    comes back as :class:`gateway.call.inputs.ToolDone`."""

    call_id: str
    """``call_id`` of the function call, unique in the telephone call
    (:class:`gateway.call.conversation.responses.CallIds`)."""
    name: str
    arguments: str
    """The model's, as JSON text."""


@dataclass(frozen=True, slots=True)
class RequestApproval:
    """Ask the HTTP service of an approval rule whether a tool call may run;
    :class:`gateway.call.inputs.ApprovalResult` comes back."""

    key: str
    """``call_id`` of the tool call, or item id of an ``mcp_approval_request``; unique as that of
    ``RunTool`` is."""
    name: str
    arguments: str
    """The model's, as JSON text."""
    rule: int
    """Index of the approval rule in :attr:`gateway.call.plan.ToolsPlan.approvals`."""


@dataclass(frozen=True, slots=True)
class CheckContent:
    """Ask the HTTP service of a guardrail whether these words are allowed;
    :class:`gateway.call.inputs.ContentChecked` comes back."""

    key: str
    """Chosen by who asks; it comes back with the answer."""
    rule: int
    """Index of the guardrail in :attr:`gateway.call.plan.ContentPlan.guardrails`."""
    who: str
    """Whose words: agent or caller."""
    text: str


@dataclass(frozen=True, slots=True)
class OutOfBandDone:
    """Report the end of an out-of-band response to the application that waits for one of this
    ``key``; nothing where none does (a rule of ours requested it)."""

    key: str
    status: str
    """That of ``response.done``, or refused, late or cancelled."""
    text: str
    """The response's words; of one that failed the server's message, or why it was refused."""


@dataclass(slots=True)
class Play:
    """Queue whole frames (20 ms) in the session's codec for playout to the caller.

    :class:`gateway.call.inputs.PlayoutRefused` comes back where they do not fit. Not frozen:
    creating a frozen dataclass is slower, and there is one for each audio delta.
    """

    audio: bytes
    more: bool
    """More audio of this part is to come, so that an empty queue is an underrun."""


@dataclass(frozen=True, slots=True)
class StartRecording:
    """Start recording both sides of the call into a file."""

    b_leg: bool = False
    """The briefing of the B-leg instead, into a file of its own."""


@dataclass(frozen=True, slots=True)
class StopRecording:
    """Stop the recording of the call, and complete its file."""

    discard: bool = False
    """Delete the file instead, also of a recording that was stopped before; and the briefings'."""
    b_leg: bool = False
    """Stop that of the briefing instead."""


@dataclass(frozen=True, slots=True)
class SilenceRecording:
    """Record silence in place of both sides while ``silent`` (a pause of the recording), so that
    times in the file stay those of the call."""

    silent: bool


@dataclass(frozen=True, slots=True)
class Conceal:
    """Give session and recording silence in place of the caller's audio while ``concealed``, since
    sensitive digits are entered; DTMF in that audio is detected all the same."""

    concealed: bool


@dataclass(frozen=True, slots=True)
class StoreDigits:
    """Send sensitive digits to the route's service (``collect_digits.url``), if they are valid;
    :class:`gateway.call.inputs.DigitsStored` comes back with its answer, or what is wrong."""

    kind: str
    """One of :data:`gateway.call.tools.definitions.KINDS`."""
    digits: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write a line to the log, named ``call.`` and ``event``; the timeline has it already."""

    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Finished:
    """Store the record and release the call: leg and session are over, and no output follows."""


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
