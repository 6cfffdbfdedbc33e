# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs of the call's state machine, as values (:class:`gateway.call.machine.CallMachine`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.audio import Codec
from gateway.call.tools.commands import CallCommand
from gateway.realtime.errors import Verdict
from gateway.realtime.events import ClientCommand, ServerError, ServerEvent
from gateway.realtime.session_object import REALTIME, Capabilities


@dataclass(frozen=True, slots=True)
class SessionReady:
    """``session.updated`` (Realtime) or ``session.started`` (Live) came: the session may be used,
    and the model is ready."""

    session_id: str
    """As the server gave it."""
    seconds_left: float | None = None
    """Until the server ends the session (s); None where it does not tell."""
    capabilities: Capabilities = REALTIME
    """What this session can do, by its kind and server."""


@dataclass(frozen=True, slots=True)
class StandbyReady:
    """A standby session is ready to take over; fields as in :class:`SessionReady`."""

    session_id: str
    seconds_left: float | None = None
    capabilities: Capabilities = REALTIME


@dataclass(frozen=True, slots=True)
class StandbyFailed:
    """A standby session could not be set up, or was lost before it took over."""

    detail: str


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """A session that was to become the active one could not be set up; its connection is closed."""

    verdict: Verdict
    """Whether another attempt may succeed (:mod:`gateway.realtime.errors`)."""
    detail: str
    retry_after: float | None = None
    """Retry-After (s), where the server sent one."""


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The WebSocket of the active session is closed, with this code and reason (RFC 6455)."""

    code: int
    reason: str


@dataclass(slots=True)
class ServerEventReceived:
    """An event of the active session, ``error`` excepted. Not frozen: creating a frozen dataclass
    is slower, and there are many.

    ``command`` is the request of ours that a ``response.created`` answers, where the server says
    which (``response.metadata``); None for a response that it began by itself, and for one of a
    server that does not return the metadata of a request.
    """

    event: ServerEvent
    command: ClientCommand | None = None


@dataclass(frozen=True, slots=True)
class ServerErrorReceived:
    """An ``error`` event of the active session. ``command`` is the one that it answers; None where
    the server does not say."""

    error: ServerError
    command: ClientCommand | None = None


@dataclass(frozen=True, slots=True)
class MediaUp:
    """Media of the caller's leg is negotiated (first SDP answer or a re-INVITE), with this
    codec."""

    codec: Codec


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The ACK of our 200 came; for a call that we place, the callee's 200."""


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """The caller put us on hold (``sendonly``, ``inactive`` or 0.0.0.0, RFC 3264 section 8.4), or
    resumed the call."""

    held: bool
    """True: on hold; False: resumed."""


@dataclass(frozen=True, slots=True)
class DigitPressed:
    """A DTMF digit of the caller: RFC 4733, SIP INFO, or detected in the audio (``in_band``)."""

    digit: str
    in_band: bool = False
    """Detected in the audio; such a key may come a second time as an event."""


@dataclass(frozen=True, slots=True)
class SoundHeard:
    """Analysis of one second of the caller's audio, as
    :class:`gateway.audio.tone_detection.SecondOfAudio` has it; all values 0 to 1."""

    sounding: float
    """The part of it that is not silent."""
    held: float
    """The part that is standing tones, as music has them."""
    change: float
    """Difference from the tones of the second before."""


@dataclass(frozen=True, slots=True)
class CallerSounds:
    """One second of the caller's audio was loud (voice, music or noise), or :attr:`faint`. Not sent
    while the caller has us on hold."""

    faint: bool = False
    """True: it was not loud, but rose and fell as a soft voice does."""


@dataclass(frozen=True, slots=True)
class LineQuality:
    """Quality of one direction of RTP, about once a second; MOS as estimated, 1 to 4.5."""

    side: str
    """from_caller or to_caller."""
    loss_percent: float
    jitter_ms: float
    mos: float


@dataclass(frozen=True, slots=True)
class CallerLevel:
    """Level (dBFS) of one second of the caller's audio: of the louder half of its frames."""

    dbfs: float


@dataclass(frozen=True, slots=True)
class CallerHeard:
    """When the caller's audio was last loud; comes before ``speech_started`` and
    ``speech_stopped``."""

    since: float | None
    """First loud packet of this stretch, at the gateway (s); None: none was loud yet."""
    until: float | None
    """Last loud packet (s); None: none was loud yet."""
    leg_ms: float = 0.0
    """Round trip to the caller's side by RTCP (ms); 0 where it does not tell."""
    server_ms: float = 0.0
    """Round trip to the realtime server by WebSocket ping (ms); 0 before the first pong."""


@dataclass(frozen=True, slots=True)
class BeepHeard:
    """A single tone has ended in the caller's audio: perhaps the beep of a voicemail."""

    hz: float
    ms: int
    """How long it was."""


@dataclass(frozen=True, slots=True)
class RemoteRinging:
    """The callee's side sent a provisional response of 180 or more (RFC 3261 section 21.1) to a
    call that we place."""

    code: int
    """180 to 199."""


@dataclass(frozen=True, slots=True)
class ReferProgress:
    """Progress of our REFER: the response to it, then each NOTIFY (RFC 3515).

    A first code below 300 means that the REFER was accepted: 100 stands for its 202. ``final``:
    nothing follows. ``by_us``: a limit of ours kept us from sending it (403).
    """

    code: int
    phrase: str
    final: bool
    by_us: bool = False


@dataclass(frozen=True, slots=True)
class BLegRinging:
    """The B-leg's callee sent a provisional response with this code."""

    code: int


@dataclass(frozen=True, slots=True)
class BLegAnswered:
    """The B-leg has answered (200), and its media is up."""


@dataclass(frozen=True, slots=True)
class BLegEnded:
    """The B-leg has ended, could not be set up, or was not permitted; fields as in
    :class:`LegEnded`."""

    code: int
    phrase: str
    method: str
    local: bool


@dataclass(frozen=True, slots=True)
class BLegDigit:
    """The callee on the B-leg pressed a DTMF digit."""

    digit: str


@dataclass(frozen=True, slots=True)
class BudgetThreshold:
    """A budget of this call, or one that it shares with others, is nearly spent (warning), or
    fully."""

    spent: bool
    """Fully; False: this is the warning."""
    detail: str
    """Which budget, for people: ``call: 0.52 of 0.50``."""


@dataclass(frozen=True, slots=True)
class CallerReplaced:
    """Another party took the caller's place, by a REFER that we followed or by Replaces (RFC
    3891)."""

    uri: str
    """Of the new party."""


@dataclass(frozen=True, slots=True)
class ToolDone:
    """A tool function (:class:`gateway.call.outputs.RunTool`) has returned ``output``, text for the
    model."""

    call_id: str
    """As ``RunTool`` has it."""
    output: str


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A tool function, an operator or an application gives the call a command."""

    command: CallCommand


@dataclass(frozen=True, slots=True)
class ContentChecked:
    """Answer of a guardrail's service to :class:`gateway.call.outputs.CheckContent`."""

    key: str
    """That of the question."""
    allow: bool | None
    """Whether the words may be said; None: no answer, or none that could be parsed."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ApprovalResult:
    """Answer of an approval's service to :class:`gateway.call.outputs.RequestApproval`."""

    key: str
    """That of the question."""
    approve: bool
    reason: str = ""
    """For the model, where it was refused."""


@dataclass(frozen=True, slots=True)
class DigitsStored:
    """Answer to :class:`gateway.call.outputs.StoreDigits`, for the model: ``status``, and token or
    ``reason``."""

    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RtpStats:
    """Number of RTP packets received on the caller's leg so far; once a second."""

    packets: int
    expected: bool = True
    """False while the peer's description says that it sends none (``recvonly``)."""


@dataclass(frozen=True, slots=True)
class LegEnded:
    """The SIP dialog of the caller's leg is over, whoever ended it; fields as in
    :class:`gateway.sip.leg.LegEnd`."""

    code: int
    """Last status: 200 after a BYE, 487 after a CANCEL, else the refusal; 0 where nobody was
    reached."""
    phrase: str
    """Reason phrase of that status."""
    method: str
    """BYE or CANCEL of the peer; "" where it sent neither."""
    reason_header: str
    """Reason header (RFC 3326) of that request; "" without one."""
    local: bool
    """The gateway has ended it."""


@dataclass(frozen=True, slots=True)
class PlayoutStarted:
    """The first frame of the model's audio after silence was handed to RTP: the caller begins to
    hear it."""


@dataclass(frozen=True, slots=True)
class PlayoutDrained:
    """The playout queue ran empty: its last frame was handed to RTP."""


@dataclass(frozen=True, slots=True)
class PlayoutRefused:
    """Answer to :class:`gateway.call.outputs.Play` whose last ``frames`` frames (20 ms) did not fit
    the queue."""

    frames: int


@dataclass(frozen=True, slots=True)
class Tick:
    """``CallMachine.deadline`` has come."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The gateway process stops, and ends the call now."""


@dataclass(frozen=True, slots=True)
class HangupRequested:
    """An operator (``gateway hangup``, API) or an application ends the call, without a goodbye."""


@dataclass(frozen=True, slots=True)
class InternalError:
    """An exception was raised in the gateway's own code while it handled this call, which is to
    end."""

    detail: str


@dataclass(frozen=True, slots=True)
class InterpreterEvent:
    """A server event of the session that interprets for ``listener``, caller or callee: who hears
    it; it hears the other."""

    listener: str
    event: ServerEvent


@dataclass(frozen=True, slots=True)
class InterpreterUp:
    """The session that interprets for ``listener``, caller or callee, is ready."""

    listener: str
    session_id: str


@dataclass(frozen=True, slots=True)
class InterpreterLost:
    """The session that interprets for ``listener`` could not be opened, or has ended, for the
    reason ``detail``."""

    listener: str
    detail: str


InterpreterInput = InterpreterUp | InterpreterLost | InterpreterEvent
"""What a session that interprets has done."""

TransferEvent = (
    ReferProgress | BLegRinging | BLegAnswered | BLegEnded | BLegDigit | InterpreterInput
)
"""What is passed to the current transfer."""

Input = (
    SessionReady
    | StandbyReady
    | StandbyFailed
    | SessionFailed
    | SessionClosed
    | ServerEventReceived
    | ServerErrorReceived
    | MediaUp
    | Confirmed
    | HoldChanged
    | DigitPressed
    | RemoteRinging
    | ReferProgress
    | BLegRinging
    | SoundHeard
    | CallerSounds
    | CallerHeard
    | LineQuality
    | CallerLevel
    | BeepHeard
    | BLegAnswered
    | BLegEnded
    | BLegDigit
    | BudgetThreshold
    | InterpreterUp
    | InterpreterLost
    | InterpreterEvent
    | ToolDone
    | ToolRequest
    | ApprovalResult
    | ContentChecked
    | CallerReplaced
    | DigitsStored
    | RtpStats
    | LegEnded
    | PlayoutStarted
    | PlayoutDrained
    | PlayoutRefused
    | Tick
    | ShutDown
    | HangupRequested
    | InternalError
)
