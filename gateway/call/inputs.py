"""What can happen to a call, as values. :class:`gateway.call.machine.CallMachine` takes them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.audio.g711 import Codec
from gateway.call.plan import CallPlan
from gateway.call.tools.commands import CallCommand
from gateway.realtime.commands import ClientCommand
from gateway.realtime.errors import Verdict
from gateway.realtime.events import ServerError, ServerEvent


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was fetched for the call is there, or will not be (``failure`` says why).

    ``plan`` takes the place of the machine's: the same with the texts that the data are in. It
    comes before the session is up, and once.
    """

    plan: CallPlan
    ms: int
    failure: str = ""


@dataclass(frozen=True, slots=True)
class SessionReady:
    """``session.updated`` came: the model is ready."""

    session_id: str
    seconds_left: float | None = None
    """Until the server ends it, where it tells."""


@dataclass(frozen=True, slots=True)
class StandbyReady:
    """A session that may take the place of the one that has the caller; fields as above."""

    session_id: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class StandbyFailed:
    """It could not be had, or is lost before it had the caller."""

    detail: str


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """No session could be had; the connection is closed."""

    verdict: Verdict
    detail: str
    retry_after: float | None = None
    """Seconds that the server wants to be left alone, where it says so."""


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The WebSocket of a session that was up is closed."""

    code: int
    reason: str
    by_us: bool


@dataclass(frozen=True, slots=True)
class ServerEventReceived:
    """An event of the running session, errors excepted.

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
    """RTP flows (again), in this law."""

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
    """The caller pressed a key (RFC 4733, INFO, or heard in the audio)."""

    digit: str
    in_band: bool = False
    """Heard in the audio."""


@dataclass(frozen=True, slots=True)
class SoundHeard:
    """One second of the caller's sound: see :class:`gateway.audio.tone_analysis.Second`."""

    sounding: float
    held: float
    change: float


@dataclass(frozen=True, slots=True)
class BeepHeard:
    """One tone, alone, has just ended on the caller's side."""

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
    """The party that the caller is to be joined with rings."""

    code: int


@dataclass(frozen=True, slots=True)
class BLegAnswered:
    """It has answered, and media is up."""


@dataclass(frozen=True, slots=True)
class BLegEnded:
    """It is gone, or was never to be had; fields as in :class:`LegEnded`."""

    code: int
    phrase: str
    method: str
    local: bool


@dataclass(frozen=True, slots=True)
class BLegDigit:
    """It pressed a key."""

    digit: str


@dataclass(frozen=True, slots=True)
class BudgetThreshold:
    """The money of this call, or what it shares with others, is nearly spent or spent."""

    spent: bool
    """False: this is the warning."""
    detail: str
    """Which budget, for people: ``call: 0.52 of 0.50``."""


@dataclass(frozen=True, slots=True)
class CallerReplaced:
    """Somebody else has taken the caller's place (REFER to us, or Replaces); the call goes on."""

    uri: str


@dataclass(frozen=True, slots=True)
class ToolDone:
    """A tool outside of the gateway's heart has its result, as the text for the model."""

    call_id: str
    output: str


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A function outside wants something done in the call."""

    command: CallCommand


@dataclass(frozen=True, slots=True)
class ContentChecked:
    """Answer to :class:`gateway.call.outputs.CheckContent`."""

    key: str
    allow: bool | None
    """None: no answer, or none that is understood."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ApprovalResult:
    """Answer to :class:`gateway.call.outputs.RequestApproval`."""

    key: str
    approve: bool
    reason: str = ""
    """For the model, of a no."""


@dataclass(frozen=True, slots=True)
class RtpStats:
    """RTP packets received on the leg so far."""

    packets: int
    expected: bool = True
    """False while the peer's description says that it sends none (``recvonly``)."""


@dataclass(frozen=True, slots=True)
class LegEnded:
    """The SIP dialog is over; fields as in :class:`gateway.sip.types.LegEnd`."""

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
    """The gateway stops; the call has to end now."""


@dataclass(frozen=True, slots=True)
class HangupRequested:
    """Somebody at the gateway wants the call to end now."""


@dataclass(frozen=True, slots=True)
class InternalError:
    """A defect of ours in carrying out this call's outputs; the call cannot go on."""

    detail: str


Input = (
    Prepared
    | SessionReady
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
    | BeepHeard
    | BLegAnswered
    | BLegEnded
    | BLegDigit
    | BudgetThreshold
    | ToolDone
    | ToolRequest
    | ApprovalResult
    | ContentChecked
    | CallerReplaced
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
