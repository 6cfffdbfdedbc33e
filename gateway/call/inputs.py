# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs of the call's state machine, as values (:class:`gateway.call.machine.CallMachine`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.audio.codecs import Codec
from gateway.call.tools.commands import CallCommand
from gateway.realtime.errors import Verdict
from gateway.realtime.events import ClientCommand, ServerError, ServerEvent
from gateway.realtime.session_object import REALTIME, Capabilities


@dataclass(frozen=True, slots=True)
class SessionReady:
    """``session.updated`` or ``session.started`` came: the model is ready."""

    session_id: str
    seconds_left: float | None = None
    """Until the server ends it, where it tells."""
    capabilities: Capabilities = REALTIME


@dataclass(frozen=True, slots=True)
class StandbyReady:
    """A standby session is ready; fields as above."""

    session_id: str
    seconds_left: float | None = None
    capabilities: Capabilities = REALTIME


@dataclass(frozen=True, slots=True)
class StandbyFailed:
    """The standby session failed, or was lost before it took over."""

    detail: str


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """A session could not be set up; the connection is closed."""

    verdict: Verdict
    detail: str
    retry_after: float | None = None
    """Retry-After (s), where the server sent one."""


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The WebSocket of a session that was up is closed."""

    code: int
    reason: str
    by_us: bool


@dataclass(slots=True)
class ServerEventReceived:
    """An event of the running session, errors excepted. Not frozen, for the sake of time.

    ``command`` is the request of ours that a ``response.created`` answers, where the server says
    which (``response.metadata``); None for a response that it began by itself, and for one of a
    server that does not return the metadata of a request.
    """

    event: ServerEvent
    command: ClientCommand | None = None


@dataclass(frozen=True, slots=True)
class ServerErrorReceived:
    """An ``error`` event of the running session; ``command`` is what it answers, if known."""

    error: ServerError
    command: ClientCommand | None = None


@dataclass(frozen=True, slots=True)
class MediaUp:
    """RTP flows (again), with this codec."""

    codec: Codec


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The ACK of our 200 came, or that of the callee's 200 was sent."""


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """The caller put us on hold (``sendonly``, ``inactive`` or 0.0.0.0, RFC 3264 section 8.4), or
    took us back."""

    held: bool


@dataclass(frozen=True, slots=True)
class DigitPressed:
    """The caller sent a DTMF digit (RFC 4733, INFO, or in-band)."""

    digit: str
    in_band: bool = False
    """Detected in the audio."""


@dataclass(frozen=True, slots=True)
class SoundHeard:
    """One second of the caller's sound: see :class:`gateway.audio.tone_detection.SecondOfAudio`."""

    sounding: float
    held: float
    change: float


@dataclass(frozen=True, slots=True)
class CallerSounds:
    """A second of the caller's audio was loud: a voice, music or noise."""

    faint: bool = False
    """It was not, but rose and fell as a soft voice does."""


@dataclass(frozen=True, slots=True)
class LineQuality:
    """Quality of one direction lately, told about once a second; MOS as estimated, 1 to 4.5."""

    side: str
    """from_caller or to_caller."""
    loss_percent: float
    jitter_ms: float
    mos: float


@dataclass(frozen=True, slots=True)
class CallerLevel:
    """Level of the louder half of a second of the caller's audio, dBFS."""

    dbfs: float


@dataclass(frozen=True, slots=True)
class CallerHeard:
    """When the caller's side was last loud. Comes before the server's word that they speak, or
    have stopped."""

    since: float | None
    """First loud packet of this stretch, at the gateway (s); None: none was loud yet."""
    until: float | None
    """The last one."""
    leg_ms: float = 0.0
    """Round trip to the caller's side by RTCP (ms); 0 where it does not tell."""
    server_ms: float = 0.0
    """Round trip to the realtime server by WebSocket ping (ms); 0 before the first pong."""


@dataclass(frozen=True, slots=True)
class BeepHeard:
    """A single tone has just ended in the caller's audio."""

    hz: float
    ms: int


@dataclass(frozen=True, slots=True)
class RemoteRinging:
    """A provisional response to the call that we place (RFC 3261 section 21.1)."""

    code: int


@dataclass(frozen=True, slots=True)
class ReferProgress:
    """What the caller's side says of the REFER: its response, then each NOTIFY (RFC 3515).

    A first code below 300 means that the REFER was taken; ``final``: nothing comes after this.
    ``by_us``: a rule of ours did not let us ask.
    """

    code: int
    phrase: str
    final: bool
    by_us: bool = False


@dataclass(frozen=True, slots=True)
class BLegRinging:
    """The B-leg rings."""

    code: int


@dataclass(frozen=True, slots=True)
class BLegAnswered:
    """The B-leg has answered, and its media is up."""


@dataclass(frozen=True, slots=True)
class BLegEnded:
    """The B-leg has ended, or could not be set up; fields as in :class:`LegEnded`."""

    code: int
    phrase: str
    method: str
    local: bool


@dataclass(frozen=True, slots=True)
class BLegDigit:
    """The B-leg sent a DTMF digit."""

    digit: str


@dataclass(frozen=True, slots=True)
class BudgetThreshold:
    """A budget of this call, or one that it shares, is nearly or fully spent."""

    spent: bool
    """False: this is the warning."""
    detail: str
    """Which budget, for people: ``call: 0.52 of 0.50``."""


@dataclass(frozen=True, slots=True)
class CallerReplaced:
    """Another party took the caller's place (REFER to us, or Replaces, RFC 3891)."""

    uri: str


@dataclass(frozen=True, slots=True)
class ToolDone:
    """A tool function has returned, with text for the model."""

    call_id: str
    output: str


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A tool function or an operator gives the call a command."""

    command: CallCommand


@dataclass(frozen=True, slots=True)
class ContentChecked:
    """Answer to :class:`gateway.call.outputs.CheckContent`."""

    key: str
    allow: bool | None
    """None: no answer, or none that could be parsed."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ApprovalResult:
    """Answer to :class:`gateway.call.outputs.RequestApproval`."""

    key: str
    approve: bool
    reason: str = ""
    """For the model, where it was refused."""


@dataclass(frozen=True, slots=True)
class DigitsStored:
    """Answer to :class:`gateway.call.outputs.StoreDigits`, for the model."""

    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RtpStats:
    """RTP packets received on the leg so far."""

    packets: int
    expected: bool = True
    """False while the peer's description says that it sends none (``recvonly``)."""


@dataclass(frozen=True, slots=True)
class LegEnded:
    """The SIP dialog is over; fields as in :class:`gateway.sip.leg.LegEnd`."""

    code: int
    phrase: str
    method: str
    reason_header: str
    local: bool


@dataclass(frozen=True, slots=True)
class PlayoutStarted:
    """The first frame after silence was handed to RTP."""


@dataclass(frozen=True, slots=True)
class PlayoutDrained:
    """All that was queued has been handed to RTP."""


@dataclass(frozen=True, slots=True)
class PlayoutRefused:
    """Answer to :class:`gateway.call.outputs.Play` when the queue was full."""

    frames: int


@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline of the machine has come."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The gateway stops, and the call ends now."""


@dataclass(frozen=True, slots=True)
class HangupRequested:
    """An operator ends the call: ``gateway hangup``."""


@dataclass(frozen=True, slots=True)
class InternalError:
    """An exception in the gateway's own code; the call cannot continue."""

    detail: str


@dataclass(frozen=True, slots=True)
class InterpreterEvent:
    """An event of the session that interprets for ``listener``, caller or callee."""

    listener: str
    event: ServerEvent


@dataclass(frozen=True, slots=True)
class InterpreterUp:
    """A session that interprets is ready; ``listener``: caller or callee."""

    listener: str
    session_id: str


@dataclass(frozen=True, slots=True)
class InterpreterLost:
    """A session that interprets could not be opened, or has ended."""

    listener: str
    detail: str


InterpreterInput = InterpreterUp | InterpreterLost | InterpreterEvent
"""What a session that interprets has done."""

TransferEvent = (
    ReferProgress | BLegRinging | BLegAnswered | BLegEnded | BLegDigit | InterpreterInput
)
"""What becomes of a transfer."""

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
