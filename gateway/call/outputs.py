"""Decisions of a call, as values; the bridge executes them in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.realtime.commands import ClientCommand


@dataclass(frozen=True, slots=True)
class Ring:
    """180 Ringing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """183 Session Progress with our description: from now on the caller hears us."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Connect to the realtime server and configure the session."""

    server: int = 0
    """0 is the route's own server; others are counted from 1."""
    standby: bool = False
    """Beside the one that has the caller, to take its place (:class:`PromoteStandby`)."""


@dataclass(frozen=True, slots=True)
class PromoteStandby:
    """The spare session has the caller from now on; the other one is closed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """200 OK."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A final response other than 200."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HangUp:
    """BYE."""

    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Close the WebSocket, or stop opening it."""

    code: int = 1000
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """A client event."""

    command: ClientCommand
    seed: bool = False
    """It tells a session that takes over what another one knew."""


@dataclass(frozen=True, slots=True)
class StartMedia:
    """From now on caller audio goes to the session, and ``playout`` to the caller."""

    playout: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """Playout stands still while ``held``. What the caller's side sends then (music, as a rule) is
    not for the session: it gets silence in its place (``silent``), or nothing."""

    held: bool
    silent: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Playout stands still where it is while ``paused``; the caller hears silence."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Dial:
    """Place the call that this is about; its plan says where to."""


@dataclass(frozen=True, slots=True)
class PlaySound:
    """Let the caller hear this, over and over (:mod:`gateway.audio.sounds`); "" ends it."""

    name: str


@dataclass(frozen=True, slots=True)
class Refer:
    """Ask the caller's side to call ``target`` in our place (REFER, RFC 3515).

    With ``replaces``, ``target`` is empty: it is to take over our call with the second leg
    (RFC 3891).
    """

    target: str = ""
    replaces: bool = False
    by_pattern: bool = False
    """A pattern of the dialplan fits the target; otherwise the dialplan names it itself."""


@dataclass(frozen=True, slots=True)
class DialBLeg:
    """Call somebody for the caller."""

    uri: str
    trunk: str = ""
    by_pattern: bool = False
    """As of :class:`Refer`."""


@dataclass(frozen=True, slots=True)
class HangUpBLeg:
    """CANCEL or BYE for the second leg."""

    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BridgeLegs:
    """Caller and second leg hear each other; the session listens to both, or to nothing."""

    listen: bool


@dataclass(frozen=True, slots=True)
class SendDtmf:
    """Send one key, to the caller or to the second leg; ``how``: auto, rfc4733 or info."""

    digit: str
    how: str = "auto"
    b_leg: bool = False


@dataclass(frozen=True, slots=True)
class RunTool:
    """A function that lives outside: its result comes back as ``ToolDone``."""

    call_id: str
    name: str
    arguments: str
    """The model's, as JSON text."""


@dataclass(frozen=True, slots=True)
class RequestApproval:
    """Ask the operator's application about the use of a tool: ``ApprovalResult`` comes back."""

    key: str
    name: str
    arguments: str
    """The model's, as JSON text."""
    rule: int
    """Which of the plan's approvals asks."""


@dataclass(frozen=True, slots=True)
class CheckContent:
    """Ask over HTTP whether these words may be said: ``ContentChecked`` comes back."""

    key: str
    rule: int
    """Which of the plan's guards asks."""
    who: str
    """agent or caller."""
    text: str


@dataclass(frozen=True, slots=True)
class OutOfBandDone:
    """A response beside the conversation has ended; whoever waits for it is told."""

    key: str
    status: str
    text: str


@dataclass(frozen=True, slots=True)
class Play:
    """Whole frames of G.711 audio, behind what is queued. ``more``: this part goes on."""

    audio: bytes
    more: bool


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Something worth a line in the log and in the call's timeline."""

    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Finished:
    """The call is over on both sides, its record complete; nothing comes after this."""


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
    | Pause
    | Dial
    | PlaySound
    | Refer
    | DialBLeg
    | HangUpBLeg
    | BridgeLegs
    | SendDtmf
    | RunTool
    | RequestApproval
    | CheckContent
    | OutOfBandDone
    | Play
    | LogEvent
    | Finished
)
