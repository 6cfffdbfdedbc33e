# SPDX-License-Identifier: GPL-2.0-or-later
"""Timeline of a call: its record and recording, read into turns, interruptions, digits and delays.

``as_text`` and ``picture`` show it; ``black_box`` reads it from a black box.
"""

from __future__ import annotations

import contextlib
import json
import wave
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.text import json_of, printable_in


class RecordError(Exception):
    """A file that is no call record; the message names file, key and mistake."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Times(_Part):
    """Milestones, ms since the INVITE; None for what did not happen."""

    ringing: float | None = None
    session: float | None = None
    answered: float | None = None
    confirmed: float | None = None
    first_audio: float | None = None
    end: float | None = None


class Interruption(_Part):
    """One interruption of playout; ``action`` is ``truncate``, ``delete`` or ``none``."""

    at_ms: float
    trigger: str
    item_id: str = ""
    played_ms: int = 0
    received_ms: int = 0
    action: str = "none"
    flushed_ms: int = 0


class DigitRun(_Part):
    """Digits that became an item of the conversation."""

    at_ms: float
    digits: str
    ended_by: str = ""


class Spread(_Part):
    """Minimum, mean and maximum of a measurement."""

    min: float
    mean: float
    max: float


class Direction(_Part):
    """One direction of the call's RTP."""

    packets: int = 0
    lost: int = 0
    lost_percent: float = 0.0
    late: int = 0
    jitter_ms: Spread | None = None
    mos: Spread | None = None


class Quality(_Part):
    """``rx`` is what the caller sent, ``tx`` what they received, if their side told."""

    rx: Direction | None = None
    tx: Direction | None = None
    rtt_ms: Spread | None = None


class Cost(_Part):
    """Cost of a call; ``total`` is None when something has no price."""

    currency: str = ""
    total: float | None = None
    priced: float = 0.0
    model: str = ""
    responses: int = 0
    session_seconds: float = 0.0
    """Of a Live session, which is billed by its length."""
    unpriced: list[str] = Field(default_factory=list)


class Said(_Part):
    """A transcribed utterance; ``item_id`` is that of the answer or turn."""

    at_ms: float = 0.0
    who: str = ""
    text: str = ""
    item_id: str = ""


class EndingFacts(_Part):
    """Who ended the call, and why."""

    by: str
    why: str
    sip_code: int | None = None
    reason: str = ""
    detail: str = ""


class Entry(BaseModel):
    """One event of the timeline; fields of its own are in ``extra``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    t_ms: float
    event: str

    @property
    def extra(self) -> dict[str, Any]:
        """Fields of this kind of event."""
        return self.model_extra or {}

    def text(self, key: str) -> str:
        """A field as text, empty when it is not there."""
        value = self.extra.get(key)
        return "" if value is None else str(value)


class Record(_Part):
    """The record of one call, as far as the timeline uses it."""

    call_id: str
    sip_call_id: str = ""
    session_id: str | None = None
    route: str | None = None
    caller: str = Field(default="", alias="from")
    called: str = Field(default="", alias="to")
    codec: str | None = None
    direction: str = "inbound"
    started_at: datetime | None = None
    times_ms: Times = Times()
    talk_ms: float | None = None
    interruptions: list[Interruption] = Field(default_factory=list)
    digits: list[DigitRun] = Field(default_factory=list)
    underruns: int = 0
    underrun_ms: int = 0
    dropped_uplink_frames: int = 0
    quality: Quality = Quality()
    cost: Cost = Cost()
    ending: EndingFacts | None = None
    transcript: list[Said] = Field(default_factory=list)
    timeline: list[Entry] = Field(default_factory=list)

    @property
    def end_ms(self) -> float:
        """Time of the last event or of the end, whichever is later (ms)."""
        last = max((entry.t_ms for entry in self.timeline), default=0.0)
        return max(last, self.times_ms.end or 0.0)

    @property
    def length_ms(self) -> float:
        """Time of the call's end (ms); the last words of a Live session come later."""
        return self.end_ms if self.times_ms.end is None else self.times_ms.end


def read_record(file: Path) -> Record:
    """Read a record. Raises RecordError."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecordError(f"{file}: cannot be read: {reason}") from None
    if file.suffix == ".jsonl":
        raise RecordError(
            f"{file}: neither a record nor a black box; gateway events reads event logs, and the"
            " record is the .json beside it in records.folder"
        )
    try:
        with contextlib.suppress(ValueError):
            text = json.dumps(printable_in(json_of(text)))
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        lead = f"{file}: {where}: " if where else f"{file}: "
        raise RecordError(f"{lead}{first['msg']}") from None


LIVE_TURN = "turn_"
"""Begin of the names that the gateway gives to a caller's turns in a Live session."""

HOLE_MS = 200
"""Silence inside an answer up to which it counts as one: audio that came late."""

REPLY_WITHIN_MS = 15_000
"""A pause longer than this before an answer is no delay of the answer, but a pause."""


CALLERS_TURN = "the caller's turn"
"""What an answer to speech comes after."""


@dataclass(slots=True)
class AgentTurn:
    """One answer as the caller heard it; ms since the INVITE."""

    item_id: str
    from_ms: float
    to_ms: float
    text: str = ""
    interruption: Interruption | None = None
    after_ms: float | None = None
    """Delay since ``after``, None when nothing of the caller came before."""
    after: str = ""
    session: int = 0
    """How many sessions had ended when it began; another may use the item's id again."""

    @property
    def played_ms(self) -> float:
        """How much of it was heard (ms)."""
        stop = self.interruption
        return self.to_ms - self.from_ms if stop is None else stop.played_ms

    @property
    def received_ms(self) -> float:
        """How much of it the session sent (ms)."""
        stop = self.interruption
        return self.to_ms - self.from_ms if stop is None else stop.received_ms

    def heard_text(self) -> tuple[str, str]:
        """Return the words heard and those not, split in proportion to the time heard."""
        stop = self.interruption
        if stop is None or stop.received_ms <= 0:
            return self.text, ""
        at = round(len(self.text) * stop.played_ms / stop.received_ms)
        space = self.text.rfind(" ", 0, at + 1)
        at = space + 1 if space >= 0 else 0
        return self.text[:at], self.text[at:]


@dataclass(slots=True)
class CallerTurn:
    """The caller speaking, as the session's turn detection said it."""

    from_ms: float
    to_ms: float
    open: bool = False
    """The call ended before the turn did."""
    text: str = ""


@dataclass(slots=True)
class Story:
    """Turns, keys and other events of a call, each list in order of time."""

    record: Record
    agent: list[AgentTurn] = field(default_factory=list)
    caller: list[CallerTurn] = field(default_factory=list)
    keys: list[tuple[float, str]] = field(default_factory=list)
    """Single keys, ms and digit."""
    interpreted: list[Said] = field(default_factory=list)
    """Words of both parties, and what they heard of each other's, from an interpreter on."""
    notes: list[Entry] = field(default_factory=list)
    """Tools, errors, truncations and whatever else has no lane of its own."""

    @property
    def delays(self) -> list[float]:
        """How long each answer to a caller's turn took to begin (ms)."""
        return [turn.after_ms for turn in self.agent if turn.after_ms is not None]


PARTIES = ("caller", "callee", "to_caller", "to_callee")
"""Who speaks in an interpreted call; ``to_``: what the interpreter says to them."""

_LANES = frozenset(
    (
        *("invite", "ringing", "session_up", "answered", "confirmed", "end"),
        *(
            "agent_speech_started",
            "agent_speech_stopped",
            "agent_transcript",
            "response",
            "interruption",
        ),
        *("caller_speech_started", "caller_speech_stopped", "caller_transcript"),
        *("dtmf", "dtmf_collected"),
    )
)
"""Events that the lanes, the record's lists or the head of the timeline show."""

_SESSION_ENDS = ("session_lost", "session_released", "handed_over")


def story_of(record: Record) -> Story:
    """Return the turns, keys and other events of a record."""
    story = Story(record)
    end = record.length_ms
    # Words of a Live session come seconds later, in another turn or after the call: the transcript
    # has them all, with the moment of their turn.
    late = [one for one in record.transcript if one.item_id.startswith(LIVE_TURN)]
    ends = [entry.t_ms for entry in record.timeline if entry.event in _SESSION_ENDS]

    def key_of(item: str, at_ms: float) -> tuple[int, str]:
        """Return what names an item in all sessions of the call."""
        return bisect_right(ends, at_ms), item

    said = {
        key_of(one.item_id, one.at_ms): one.text for one in record.transcript if one.who == "agent"
    }
    spoken = [entry for entry in record.timeline if entry.event == "agent_transcript"]
    said |= {key_of(one.text("item_id"), one.t_ms): one.text("text") for one in spoken}
    started = {
        key_of(entry.text("item_id"), entry.t_ms)
        for entry in record.timeline
        if entry.event == "agent_speech_started"
    }
    speaking: AgentTurn | None = None
    listening: CallerTurn | None = None
    for entry in record.timeline:
        match entry.event:
            case "agent_speech_started":
                if speaking is not None:
                    speaking.to_ms = entry.t_ms
                item = entry.text("item_id")
                if (again := _continued(story, item, entry.t_ms)) is not None:
                    speaking = again
                    continue
                key = key_of(item, entry.t_ms)
                speaking = AgentTurn(item, entry.t_ms, end, said.get(key, ""), session=key[0])
                speaking.after_ms, speaking.after = _delay(story, listening, entry.t_ms)
                story.agent.append(speaking)
            case "agent_transcript" if (
                speaking is not None and key_of(entry.text("item_id"), entry.t_ms) not in started
            ):
                # Another answer that followed without a pause.
                speaking.text = f"{speaking.text} {entry.text('text')}".strip()
            case "agent_speech_stopped":
                if speaking is not None:
                    speaking.to_ms = entry.t_ms
                speaking = None
            case "caller_speech_started":
                listening = CallerTurn(entry.t_ms, end, open=True)
                story.caller.append(listening)
            case "caller_speech_stopped":
                if listening is not None:
                    listening.to_ms, listening.open = entry.t_ms, False
                listening = None
            case "caller_transcript":
                if story.caller and not late:
                    story.caller[-1].text = entry.text("text")
            case "dtmf":
                story.keys.append((entry.t_ms, entry.text("digit")))
            case event if event not in _LANES:
                story.notes.append(entry)
    for one in late:
        turns = [turn for turn in story.caller if turn.from_ms <= one.at_ms]
        if turns:
            turns[-1].text = one.text
    _attach_interruptions(story)
    ups = [entry.t_ms for entry in record.timeline if entry.event == "interpreter_up"]
    if ups:
        story.interpreted = [
            one for one in record.transcript if one.at_ms >= ups[0] and one.who in PARTIES
        ]
    return story


def _continued(story: Story, item: str, at_ms: float) -> AgentTurn | None:
    """Return the last answer, where ``item`` continues it after a gap of at most ``HOLE_MS``."""
    last = story.agent[-1] if story.agent else None
    if last is None or last.item_id != item or at_ms - last.to_ms > HOLE_MS:
        return None
    return last


def _delay(story: Story, listening: CallerTurn | None, at_ms: float) -> tuple[float | None, str]:
    """Return the delay (ms) of an answer that begins at ``at_ms``, and what it follows."""
    if listening is not None:
        return None, ""
    moments = [(turn.to_ms, CALLERS_TURN) for turn in story.caller if not turn.open]
    moments += [
        (run.at_ms, f"the digits {run.digits}") for run in story.record.digits if run.at_ms <= at_ms
    ]
    earlier = max((turn.to_ms for turn in story.agent), default=-1.0)
    since, what = max(moments, default=(-1.0, ""))
    # An answer in two parts has its delay once.
    if since < 0 or at_ms - since > REPLY_WITHIN_MS or since < earlier < at_ms:
        return None, ""
    return at_ms - since, what


def _attach_interruptions(story: Story) -> None:
    for cut in story.record.interruptions:
        begun = [
            turn
            for turn in story.agent
            if turn.item_id == cut.item_id and turn.from_ms <= cut.at_ms + 1
        ]
        for turn in begun:
            if turn.session == begun[-1].session:
                turn.interruption = cut
                turn.to_ms = min(turn.to_ms, max(cut.at_ms, turn.from_ms))


BIN_MS = 10
"""Resolution of levels and waveforms."""

LOUD_DBFS = -45.0
"""Above this a bin has sound in it."""

_GAP_MS = 300
"""A pause shorter than this is inside a sentence."""


class SoundFileError(Exception):
    """A recording that cannot be used; the message names the file."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's delay from the caller's last sound to the agent's first, both as heard."""

    turn: AgentTurn
    from_ms: float
    to_ms: float

    @property
    def delay_ms(self) -> float:
        return self.to_ms - self.from_ms


@dataclass(frozen=True, slots=True)
class Sound:
    """Peaks of both channels, 0 to 1 for each ``BIN_MS``; the first lies at ``at_ms``."""

    caller: NDArray[np.float32]
    agent: NDArray[np.float32]
    at_ms: float

    def times_s(self) -> NDArray[np.float64]:
        """The moment of each bin, s since the INVITE."""
        at: NDArray[np.float64] = (self.at_ms + np.arange(len(self.caller)) * BIN_MS) / 1000
        return at

    def spans(self, peaks: NDArray[np.float32]) -> list[tuple[float, float]]:
        """Return begin and end of each stretch of sound of a channel (ms since the INVITE)."""
        loud = np.flatnonzero(peaks > 10 ** (LOUD_DBFS / 20))
        found: list[list[float]] = []
        for index in loud:
            at = self.at_ms + float(index) * BIN_MS
            if found and at - found[-1][1] < _GAP_MS:
                found[-1][1] = at + BIN_MS
            else:
                found.append([at, at + BIN_MS])
        return [(first, last) for first, last in found]


def read_sound(file: Path, at_ms: float) -> Sound:
    """Read a stereo WAV, caller left; its first sample lies at ``at_ms`` of the record.

    Raises SoundFileError.
    """
    try:
        with wave.open(str(file), "rb") as source:
            if source.getnchannels() != 2 or source.getsampwidth() != 2:
                raise SoundFileError(f"{file}: not a stereo WAV of 16 bit")
            rate = source.getframerate()
            samples = np.frombuffer(source.readframes(source.getnframes()), dtype="<i2")
    except (OSError, EOFError, wave.Error) as error:
        raise SoundFileError(f"{file}: cannot be read: {error}") from None
    both = np.abs(samples.reshape(-1, 2).astype(np.float32)) / 32768
    size = max(rate * BIN_MS // 1000, 1)
    whole = both[: len(both) // size * size].reshape(-1, size, 2).max(axis=1)
    return Sound(whole[:, 0], whole[:, 1], at_ms)


def replies(story: Story, sound: Sound) -> list[Reply]:
    """Return the delay of each answer to speech, measured in the recording."""
    callers, agents = sound.spans(sound.caller), sound.spans(sound.agent)
    found: list[Reply] = []
    for turn in story.agent:
        if turn.after != CALLERS_TURN:
            continue
        # What is heard comes a little after what the gateway played, never before.
        begins = next((first for first, _ in agents if first >= turn.from_ms - BIN_MS), None)
        if begins is None or begins - turn.from_ms > 2000:
            continue
        ends = max((last for _, last in callers if last <= begins), default=None)
        if ends is not None and begins - ends <= REPLY_WITHIN_MS:
            found.append(Reply(turn, ends, begins))
    return found


def began_speaking(sound: Sound, cut_ms: float) -> float | None:
    """Return when the caller's sound began that interrupted playout at ``cut_ms``; None if none."""
    for first, last in sound.spans(sound.caller):
        if first <= cut_ms <= last + _GAP_MS:
            return first
    return None
