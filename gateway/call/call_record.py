# SPDX-License-Identifier: GPL-2.0-or-later
"""Record of one call: fields of its file and its summary log line, the entries of its lists, and
its timeline.

In an entry, ``at_ms`` is when it began, in ms since the INVITE. Who makes one fills it in as it
goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from math import ceil
from typing import Any, Protocol, TypeVar

from gateway.call.outputs import LogEvent
from gateway.ending import Ending
from gateway.realtime.session_object import Refused
from gateway.text import PrivateDigits, has_words

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
    do neither, or the item is of a session before it)."""
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
    """A value of :class:`gateway.ending.Outcome`; empty or ``ringing`` while it goes on."""
    sip_code: int = 0
    """Status of the response or NOTIFY that told the outcome; 0 without one."""
    briefing: str = ""
    """accepted, declined, hung_up, no_key or skipped; empty without a briefing, and where the call
    ended during it."""
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
    """``call_id`` of the function call, unique in the telephone call
    (:class:`gateway.call.conversation.responses.CallIds`)."""


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
    """human, key, timeout or transfer; empty: the call ended."""
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


MAX_TIMELINE = 20_000
"""Entries kept of one call; a talkative hour has some thousands. What exceeds it is counted."""

MAX_TEXT = 16_000
"""Characters of a text of the timeline, and of a log line of it: what servers say has no end."""

MAX_TOOL_USES = 1000
"""Tool calls kept of one call; what exceeds it is counted."""


@dataclass(slots=True)
class Times:
    """Milestones of a call, ms since the INVITE; None for what did not happen.

    Of a placed call, ``ringing``, ``answered`` and ``confirmed`` are the callee's 18x and 200.
    """

    ringing: float | None = None
    """Our 180 or 183; none of a call that is answered at once."""
    session: float | None = None
    """The first session was ready."""
    answered: float | None = None
    """Our 200."""
    confirmed: float | None = None
    """Its ACK."""
    first_audio: float | None = None
    """The first frame of the model was handed to RTP."""
    end: float | None = None
    """The caller's leg was over; with post-call analysis, when the end was decided."""


@dataclass(slots=True)
class ContentRecord:
    """Lists of guardrail decisions, out-of-band responses, context trims, detected machines, bad
    lines and waits in a queue, oldest first."""

    guardrails: list[GuardrailDecision] = field(default_factory=list)
    out_of_band: list[OutOfBandResponse] = field(default_factory=list)
    context_trims: list[ContextTrim] = field(default_factory=list)
    machine_detection: list[MachineDetected] = field(default_factory=list)
    """At most one of each kind."""
    bad_line: list[BadLine] = field(default_factory=list)
    hold_waits: list[HoldWaitRecord] = field(default_factory=list)


@dataclass(slots=True)
class LegRecord:
    """The caller's leg: its source, and what was negotiated for it."""

    source: str = ""
    """Address that the INVITE came from."""
    trunk: str = ""
    number_trust: str = ""
    """How far the number in From counts, as ``route.caller_history.trust`` has it: asserted, trunk
    or any; "" where it is withheld, none, or by P-Asserted-Identity somebody else's."""
    transport: str = ""
    """Of the signalling: udp, tcp or tls."""
    security: str = ""
    """Of the media: rtp, or srtp with its keying and crypto suite."""
    codec: str = ""
    bye_undelivered: str = ""
    """Why our BYE was not delivered; empty: it was."""


@dataclass(slots=True)
class MediaRecord:
    """Audio that was lost or late in either direction; frames are of 20 ms."""

    underruns: int = 0
    """How often playout was empty in the middle of a response."""
    underrun_ms: int = 0
    """Silence played meanwhile (ms)."""
    dropped_uplink_frames: int = 0
    """Of the caller's audio: they came faster than real time, or were not taken in time."""
    uplink: dict[str, int] = field(default_factory=dict)
    """What became of the caller's RTP packets, as :class:`gateway.sip.rtp.UplinkCounts` says."""
    dropped_append_frames: int = 0
    """Of the caller's audio: the WebSocket to the session did not take them in time."""
    refused_playout_frames: int = 0
    """Of the model's audio: they did not fit the playout queue."""
    late_audio_ms: int = 0
    """Model audio (ms) that came after its response was interrupted, and was dropped."""
    live_audio: dict[str, int] = field(default_factory=dict)
    """Of Live sessions, see :meth:`gateway.realtime.live_session.LiveSession.audio_counts`."""
    rtp: dict[str, float] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    """Both directions, as :class:`gateway.sip.rtp.CallQuality` has them; updated during the
    call."""


@dataclass(slots=True)
class ActionsRecord:
    """Lists of what was done in a call, oldest first."""

    interruptions: list[Interruption] = field(default_factory=list)
    digits: list[DigitRun] = field(default_factory=list)
    transfers: list[TransferAttempt] = field(default_factory=list)
    b_legs: list[BLeg] = field(default_factory=list)
    tools: list[ToolUse] = field(default_factory=list)
    tools_dropped: int = 0
    """Tool calls beyond ``MAX_TOOL_USES``."""

    def add_tool_use(self, use: ToolUse) -> None:
        """Append a tool call to :attr:`tools`; who made the entry fills it in as it goes on. Above
        ``MAX_TOOL_USES`` only count it (:attr:`tools_dropped`)."""
        if len(self.tools) >= MAX_TOOL_USES:
            self.tools_dropped += 1
        else:
            self.tools.append(use)


@dataclass(slots=True)
class SessionRecord:
    """Realtime sessions of a call: id, hand-overs, failovers, files."""

    session_id: str = ""
    """Id of the latest session, as the server gave it."""
    failovers: list[FailoverRecord] = field(default_factory=list)
    """Sessions that were lost, and what replaced them."""
    handovers: int = 0
    """Hand-overs to a standby session before the server ended one."""
    settings_refused: list[Refused] = field(default_factory=list)
    """Settings that a session's server did not take, each once."""
    event_log: dict[str, Any] = field(default_factory=dict)
    """The file of the session's events, and how many are not in it, where they are written."""
    black_box: str = ""
    """Name of its file, where one was kept."""


@dataclass(slots=True)
class RecordingRecord:
    """Recording of a call: state, consent and file."""

    state: str = ""
    """asking, recording, paused, stopped, deleted, refused or unanswered."""
    consent: str = ""
    """announced, given, refused or unanswered; empty where nobody was asked."""
    started_by: str = ""
    """route, tool, operator or application."""
    began_ms: float | None = None
    """Its first frame."""
    file: str = ""
    format: str = ""
    encryption: str = ""
    """age, or empty."""
    seconds: float = 0.0
    silenced_seconds: float = 0.0
    """Of which nothing is kept: pauses, and digits that were entered as sensitive ones."""
    dropped_frames: int = 0
    """Frames of 20 ms in whose place there is silence, since nobody could write them."""
    shifted_ms: int = 0
    """Of the caller's sound, left out or filled with silence to follow the clock of playout."""


class SpokenTranscript(Protocol):
    """What is needed here of :class:`gateway.call.conversation.transcript.Transcript` (a Protocol,
    so that this module need not import it)."""

    def as_json(self) -> list[dict[str, Any]]:
        """Return all entries, oldest first: the words of each side, function calls and results,
        each with ``who`` and ``text``; words of the agent that were cut also with ``heard``.
        Nothing in them is masked."""


_HOLDS = {"held": True, "holding": True, "resumed": False, "hold_ended": False}
"""Marks that begin or end a hold."""


@dataclass(slots=True)
class CallRecord:
    """Everything that is kept of one call, filled in as it goes on. Times are ms since the
    INVITE."""

    call_id: str
    """The gateway's own id of the call."""
    sip_call_id: str = ""
    """The Call-ID of its caller's leg, which need not be unique."""
    route: str = ""
    from_uri: str = ""
    to_uri: str = ""
    from_name: str = ""
    """The display name in From, on one line; whatever the caller's side has put there."""
    undecided: bool = False
    """It waits for an application to accept or refuse it."""
    direction: str = "inbound"
    started_at: str = ""
    leg: LegRecord = field(default_factory=LegRecord)
    session: SessionRecord = field(default_factory=SessionRecord)
    times: Times = field(default_factory=Times)
    actions: ActionsRecord = field(default_factory=ActionsRecord)
    media: MediaRecord = field(default_factory=MediaRecord)
    content: ContentRecord = field(default_factory=ContentRecord)
    recording: RecordingRecord | None = None
    """None where no recording was wanted."""
    response_times: list[ResponseTime] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    """As :class:`gateway.billing.Account` has it; updated during the call."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Metadata of its route."""
    transcript: SpokenTranscript | None = None
    transcript_dropped: int = 0
    """Entries of the transcript that were removed, as it had too many."""
    ending: Ending | None = None
    """None until the call is finished."""
    parent_id: str = ""
    """The call in which this one was asked for, as a callback; its ``call_id``."""
    trace_id: str = ""
    """W3C Trace Context; empty: no trace."""
    disclosure: str = ""
    """Text of the disclosure at its start: that the caller speaks with an AI."""
    disposition: str = ""
    """Result of the call as named by route, model, function or application."""
    variant: str = ""
    """``canary`` or ``control`` on a route with a canary; ``synthetic``: the gateway's own."""
    explanation: list[str] = field(default_factory=list)
    """Why it was accepted or refused: rule, setting and route, with file and line."""
    on_mark: Callable[[str, Mapping[str, Any]], None] | None = field(default=None, repr=False)
    """Called with event and fields of each entry of the timeline."""
    private: PrivateDigits = field(default_factory=PrivateDigits, repr=False)
    """Digits and other private text that :meth:`summary` and :meth:`as_json` mask."""
    timeline_dropped: int = 0
    """Entries of the timeline beyond ``MAX_TIMELINE``."""
    _marks: bytearray = field(default_factory=bytearray, repr=False)
    _mark_count: int = 0
    _held: bool = False

    def mark(self, t_ms: float, event: str, **fields: Any) -> None:
        """Append an entry to the timeline, ``t_ms`` after the INVITE, call :attr:`on_mark`, and
        note whether the event begins or ends a hold (for :attr:`state`).

        Above ``MAX_TIMELINE`` entries it is not kept, only counted; :attr:`on_mark` is called all
        the same.
        """
        self._held = _HOLDS.get(event, self._held)
        if self.on_mark is not None:
            self.on_mark(event, fields)
        if self._mark_count >= MAX_TIMELINE:
            self.timeline_dropped += 1
            return
        # Kept as the text that it becomes: a third of what objects take, call after call for hours.
        entry = {"t_ms": round(t_ms, 1), "event": event, **fields}
        self._marks += json.dumps(entry, separators=(",", ":"), default=str).encode() + b"\n"
        self._mark_count += 1

    @property
    def timeline(self) -> list[dict[str, Any]]:
        """All timeline entries so far, oldest first: ``t_ms``, ``event`` and its fields. Parsed
        anew at each access; changes to the list change no record."""
        return self.timeline_since(0)[0]

    def timeline_since(self, place: int) -> tuple[list[dict[str, Any]], int]:
        """Return the timeline entries from ``place`` on, and the place for the next call of this.

        Args:
            place: 0 for all entries, or the place that an earlier call of this method has returned.
        """
        return [json.loads(one) for one in self._marks[place:].splitlines()], len(self._marks)

    @property
    def talk_ms(self) -> float:
        """Time (ms) from the ACK to the end; 0 while the call goes on, and without an ACK."""
        if self.times.confirmed is None or self.times.end is None:
            return 0.0
        return round(self.times.end - self.times.confirmed, 1)

    @property
    def response_ms(self) -> dict[str, float]:
        """How long the caller waited for responses: ``count`` of the waits that were measured; if
        there are any, also median ``p50`` and 95th percentile ``p95`` (nearest rank), in ms."""
        times = sorted(one.ms for one in self.response_times)
        parts = (("p50", 0.5), ("p95", 0.95)) if times else ()
        return {"count": len(times), **{k: times[ceil(p * len(times)) - 1] for k, p in parts}}

    def as_live_json(self, now: datetime) -> dict[str, Any]:
        """Return the fields of a live call, for API and console: those that records of live and
        ended calls share, with ``state``, ``age_seconds`` (since :attr:`started_at`), state of the
        recording ("" before anything was asked or recorded), and line quality. Nothing in them is
        masked.

        Args:
            now: time of day, with a time zone.
        """
        age = now - datetime.fromisoformat(self.started_at)
        return {
            **self._common_fields(),
            "state": self.state,
            "age_seconds": round(age.total_seconds(), 1),
            "recording": "" if self.recording is None else self.recording.state,
            "quality": dict(self.media.quality),
        }

    def _common_fields(self) -> dict[str, Any]:
        """Return the fields that the records of live and of ended calls share."""
        return {
            "call_id": self.call_id,
            "parent_id": self.parent_id,
            "sip_call_id": self.sip_call_id,
            "route": self.route,
            "from": self.from_uri,
            "from_name": self.from_name,
            "to": self.to_uri,
            "direction": self.direction,
            **asdict(self.leg),
            "cost": dict(self.cost),
            "disposition": self.disposition,
            "variant": self.variant,
            "explanation": list(self.explanation),
        }

    @property
    def state(self) -> str:
        """State of the call: ``ended``; ``incoming`` (an application has not accepted it); before
        the answer ``ringing``, or ``placing`` for an outbound call; ``transferring`` while the
        latest transfer has no outcome; ``held`` (by the caller, or with our hold music); else
        ``talking``. The first that applies."""
        if self.ending is not None:
            return "ended"
        if self.undecided:
            return "incoming"
        if self.times.answered is None:
            return "ringing" if self.direction == "inbound" else "placing"
        if self.actions.transfers and self.actions.transfers[-1].outcome in ("", "ringing"):
            return "transferring"
        return "held" if self._held else "talking"

    def summary(self) -> dict[str, Any]:
        """Return the record without transcript, timeline and single response times, private digits
        masked, also of a call that goes on: for the summary log line, and for the API."""
        return dict(self.private.masked(self._summary()))

    def _summary(self) -> dict[str, Any]:
        """Return what :meth:`summary` does, nothing masked."""
        return {
            **self._common_fields(),
            "started_at": self.started_at,
            "times_ms": {k: v and round(v, 1) for k, v in asdict(self.times).items()},
            "talk_ms": self.talk_ms,
            "response_ms": self.response_ms,
            **asdict(self.session),
            **asdict(self.actions),
            **asdict(self.media),
            **asdict(self.content),
            "recording": None if self.recording is None else asdict(self.recording),
            "metadata": dict(self.metadata),
            "trace_id": self.trace_id,
            "disclosure": self._disclosed(),
            "ending": None if self.ending is None else self.ending.as_json(),
        }

    def _disclosed(self) -> dict[str, Any] | None:
        """Return the ``words`` of the disclosure, and ``heard``: whether one entry of the agent has
        all of them in order, in the part that the caller heard. None without a disclosure."""
        if not self.disclosure:
            return None
        entries = [] if self.transcript is None else self.transcript.as_json()
        said = any(
            has_words(entry.get("heard", entry["text"]), self.disclosure)
            for entry in entries
            if entry["who"] == "agent"
        )
        return {"words": self.disclosure, "heard": said}

    def as_json(self) -> dict[str, Any]:
        """Return the whole record as JSON object, with transcript, timeline and response times,
        private digits masked."""
        whole = {
            **self._summary(),
            "response_times": [asdict(one) for one in self.response_times],
            "transcript": [] if self.transcript is None else self.transcript.as_json(),
            "transcript_dropped": self.transcript_dropped,
            "timeline": self.timeline,
            "timeline_dropped": self.timeline_dropped,
        }
        return dict(self.private.masked(whole))


class CallTimeline:
    """Writes the timeline of a call's record, from times of the machine's clock.

    Args:
        started: time of the INVITE (s).
    """

    def __init__(self, record: CallRecord, started: float) -> None:
        self.record = record
        self._started = started

    def ms(self, now: float) -> float:
        """Return ``now`` (s) as ms since the INVITE."""
        return (now - self._started) * 1000

    def mark(self, now: float, event: str, **fields: Any) -> None:
        """Append an entry to the timeline at ``now`` (s), without a log line; texts are kept
        whole. For the rest see :meth:`CallRecord.mark`."""
        self.record.mark(self.ms(now), event, **fields)

    def note(self, now: float, event: str, level: str = "debug", **fields: Any) -> LogEvent:
        """Append an entry to the timeline at ``now`` (s), and return the output that logs it as
        ``call.`` and ``event``.

        Args:
            level: of the log line: debug, info, warning or error.
            fields: of entry and line; texts are cut to ``MAX_TEXT`` characters.
        """
        fields = {
            name: value[:MAX_TEXT] if isinstance(value, str) else value
            for name, value in fields.items()
        }
        self.record.mark(self.ms(now), event, **fields)
        return LogEvent(event, fields, level)
