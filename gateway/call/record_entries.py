# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of the lists in a call's record: interruptions, transfers, tool calls and others.

``at_ms`` is when each began, in ms since the INVITE. Who makes an entry fills it in as it goes on;
the record that holds them is :class:`gateway.call.call_record.CallRecord`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

MAX_KEPT = 500
"""Entries in one list of a call's record."""

T = TypeVar("T")


def append_capped(entries: list[T], entry: T) -> None:
    """Append an entry to a list of the record; where the list has ``MAX_KEPT`` entries already,
    drop the new one, and do not count it."""
    if len(entries) < MAX_KEPT:
        entries.append(entry)


@dataclass(slots=True)
class ResponseTime:
    """How long the caller waited for one response (``ms``), and where the time went. All values in
    ms."""

    at_ms: float
    ms: float
    """From the caller's last loud packet to the first frame played, both at the gateway."""
    network: float
    """Round trips to the caller (RTCP) and to the server (WebSocket ping) together."""
    endpointing: float
    """From the last loud packet to ``speech_stopped``, without the round trip to the server."""
    model: float
    """From ``speech_stopped`` to the first audio delta."""
    playout: float
    """From the first audio delta to its first frame handed to RTP."""


@dataclass(slots=True)
class Interruption:
    """One item of a response whose playout was stopped before its end."""

    at_ms: float
    trigger: str
    """speech, digit, guard, machine, hold_wait, silence, escape, application or overflow."""
    item_id: str
    played_ms: int
    """Of the item, handed to RTP before the cut."""
    received_ms: int
    """Of the item, received from the server before the cut."""
    flushed_ms: int
    """Received and not played."""
    action: str
    """What the server was told of the item: truncate, delete (nothing was heard), or none (it can
    do neither)."""
    after_ms: float | None = None
    """From the caller's first loud packet to the cut; None where no speech was the trigger."""


@dataclass(slots=True)
class DigitRun:
    """DTMF digits that the caller pressed one after another, and that were sent to the model as one
    message; with ``ended_by`` call_end they were not."""

    at_ms: float
    digits: str
    """Without the terminator, unless that was pressed alone."""
    ended_by: str
    """terminator, timeout, full or call_end."""


@dataclass(slots=True)
class TransferAttempt:
    """One transfer of the caller, and its outcome."""

    at_ms: float
    destination: str
    """Name of the destination in the route."""
    to: str
    """URI that was called."""
    mode: str
    """blind, attended or bridge."""
    outcome: str = ""
    """A value of :class:`gateway.ending.Outcome`; empty while it goes on."""
    sip_code: int = 0
    """Status of the response or NOTIFY that told the outcome; 0 without one."""
    briefing: str = ""
    """accepted, declined, hung_up, no_key or skipped; empty without a briefing."""
    ms: float = 0.0
    """From its begin to its outcome; 0 while it goes on."""


@dataclass(slots=True)
class BLeg:
    """A B-leg: a call that the gateway places for a transfer. Times in ms since the INVITE."""

    to_uri: str
    parent_id: str
    """``call_id`` of the call that it was dialled for."""
    recording: str = ""
    """File of its recorded briefing; empty without one."""
    sip_call_id: str = ""
    trunk: str = ""
    codec: str = ""
    dialled_ms: float | None = None
    """None for what did not happen, as in the two below."""
    answered_ms: float | None = None
    ended_ms: float | None = None
    sip_code: int = 0
    """Final response to its INVITE; 0 without one."""
    rtp: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class ToolUse:
    """One tool call of the model, without its arguments and result."""

    at_ms: float
    name: str
    outcome: str = ""
    """done, failed, late (no result in time) or refused; begun: an action or digits, whose outcome
    is another entry; empty: the call ended before."""
    ms: float = 0.0
    """How long the function ran."""
    approval: str = ""
    """Who approved it, or "refused: " and who refused it; empty: nobody was asked."""
    id: str = ""
    """``call_id`` of the function call."""


@dataclass(slots=True)
class FailoverRecord:
    """A session that was lost or could not be set up, and the fallback steps that were taken.

    The times are ms from the loss; None for what did not happen.
    """

    at_ms: float
    why: str
    """A value of :class:`gateway.ending.EndReason`, such as ``session_lost``."""
    detail: str
    steps: list[str] = field(default_factory=list)
    """Actions of the steps (:attr:`gateway.call.plan.FallbackStep.action`), in order."""
    outcome: str = ""
    """recovered (another session is up), transferred, escaped (the caller asked for a human) or
    given up; empty while it goes on."""
    sound_after_ms: float | None = None
    """Until the caller heard the sound of a step."""
    session_after_ms: float | None = None
    """Until another session was ready."""
    heard_after_ms: float | None = None
    """Until they heard the agent again; None where its queued words bridged the gap."""


@dataclass(slots=True)
class GuardrailDecision:
    """Words that a guardrail has objected to, and what was done about them."""

    at_ms: float
    rule: str
    """Name of the guardrail."""
    who: str
    """Whose words: agent or caller."""
    item_id: str
    """Item that has the words."""
    by: str
    """What decided: words (a pattern), http (the service) or timeout (it did not answer)."""
    action: str
    """replace, end or transfer."""
    reason: str = ""
    """As the service gave it."""
    heard_ms: int = 0
    """Ms of the stopped response that the caller had heard; as a rule, the words before these."""


@dataclass(slots=True)
class OutOfBandResponse:
    """An out-of-band response (``conversation: "none"``), which the caller did not hear."""

    at_ms: float
    key: str
    """Name under which its result was reported."""
    purpose: str
    """application, briefing, old turns, or the name of a post-call prompt."""
    status: str = ""
    """completed, failed, cancelled, incomplete, refused or late; empty: the call ended before."""
    text: str = ""
    ms: float = 0.0
    """From the request to its end."""


@dataclass(slots=True)
class ContextTrim:
    """Old turns that context trimming has deleted from the session at one time."""

    at_ms: float
    how: str
    """delete or summarize."""
    items: int
    """Number of items deleted."""
    turns: int
    """Turns of the caller among them."""


@dataclass(slots=True)
class MachineDetected:
    """Hold music, a voicemail or a bot that was detected on the caller's side."""

    at_ms: float
    kind: str
    """music, voicemail or bot."""
    action: str
    """log, leave_message, hangup or transfer."""
    why: str
    """The evidence: ``a first turn of 9.2 s``."""
    beep: str = ""
    """Of a message that was left: the beep before it, or why there was none."""


@dataclass(slots=True)
class HoldWaitRecord:
    """One wait of the agent in a queue of the other side (hold and wait)."""

    at_ms: float
    why: str
    """What began it: music, an announcement, or repeated words."""
    ms: float = 0.0
    """How long it took; 0 where the call ended before."""
    ended: str = ""
    """human, key or timeout; empty: the call ended."""
    announcements: int = 0
    """Number of announcements heard meanwhile."""
    keys: str = ""
    """DTMF digits that the route's ``keys`` have sent."""


@dataclass(slots=True)
class BadLine:
    """A stretch in which the quality of the line was beyond a limit of the route."""

    at_ms: float
    side: str
    """from_caller or to_caller."""
    what: str
    """The evidence: ``12 % lost``."""
    told: bool = False
    """The model was told of it."""
    recovered_ms: float | None = None
    """When it was good again (ms since the INVITE); None: not in this call."""
