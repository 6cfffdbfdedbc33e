# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo with a Live session: what it is played with, and the judgement of what was heard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gateway.audio.g711 import BYTES_PER_MS, FRAME_BYTES, FRAME_MS
from gateway.devtools.demo_scenario import (
    CALLER,
    DIALPLAN,
    DIGITS,
    GATEWAY,
    GREETING_WITHIN_MS,
    LONG_ANSWER,
    PHONE_BUFFER_MS,
    SECOND_ANSWER,
    SILENT_FRAME,
    Check,
    Evidence,
    HeardAudio,
    Scenario,
    caller_checks,
    process_checks,
)

MODEL = "gpt-live-1.1"
RECORDS = 'folder = "../records"'

EMULATOR = f"""\
# gateway emulator --script emulator.toml --record events
# No model is behind it: both answers are written here, the rest follows the emulator's rules (say
# the greeting that is asked for, read digits back, say goodbye on 0).

[[answers]]
kind = "say"
text = {json.dumps(LONG_ANSWER)}

[[answers]]
kind = "say"
text = {json.dumps(SECOND_ANSWER)}

[[answers]]
# The backend's, when it is told that the call ends: the voice has said goodbye already.
kind = "nothing"

[live]
# One delta for each 20 ms, so that the event log tells of every frame what was in it.
chunk_ms = 20
# Seconds, in the service: here the transcripts come before the call is over.
transcript_lag_ms = 600
"""

BACKEND = """\
[route.live.delegation]
# The voice has no functions: it delegates, and this model calls them, end_call among them.
type = "responses"
acknowledgement_delay_ms = 5000
[route.live.delegation.responses]
model = "backend"
instructions = "End the call when the caller says goodbye."

[route.live]"""


@dataclass(slots=True)
class LiveLog:
    """What the demo needs of a Live session's event log."""

    frames: list[str] = field(default_factory=list)
    """A hash for each 20 ms of the model's track."""
    said: list[str] = field(default_factory=list)
    """Texts that the gateway let the model know."""
    errors: list[str] = field(default_factory=list)
    closed: str = ""
    """The reason of ``session.closed``."""
    up_ms: float = 0.0
    """The caller's audio, ms."""
    lasted_ms: float = 0.0
    """From ``session.started`` to ``session.close``, ms."""


def read_live_events(file: Path) -> LiveLog:
    """Read a session's ``*.jsonl``. Raises OSError, ValueError."""
    log, began = LiveLog(), 0.0
    for text in file.read_text("utf-8").splitlines():
        line = json.loads(text)
        event = line["event"]
        match event.get("type"):
            case "session.started":
                began = line["at"]
            case "session.input_audio.append":
                log.up_ms += event["audio_bytes"] / BYTES_PER_MS
            case "session.output_audio.delta":
                whole = event["audio_bytes"] == FRAME_BYTES
                log.frames.append(event["audio_sha256"] if whole else "")
            case "session.thinking.append":
                log.said.append(str(event.get("content")))
            case "session.closed":
                log.closed = str(event.get("reason"))
            case "session.close":
                log.lasted_ms = (line["at"] - began) * 1000
            case "error":
                log.errors.append(str(event["error"].get("code")))
    return log


def judge(evidence: Evidence[LiveLog]) -> list[Check]:
    """All checks, failed ones too."""
    return [
        *caller_checks(evidence),
        *_greeting(evidence),
        *track_checks(evidence.events, evidence.heard_audio),
        *_overlap(evidence),
        *_digits(evidence),
        *_ending(evidence),
        *process_checks(evidence.exits, evidence.events.errors),
    ]


def _greeting(evidence: Evidence[LiveLog]) -> Iterator[Check]:
    report = evidence.report
    name = "the greeting was heard"
    if not report.heard or report.answered_ms is None:
        yield Check(name, False, "nothing was heard")
        return
    begins = report.heard[0].from_ms + (report.media_ms or 0.0) - report.answered_ms
    yield Check(name, begins <= GREETING_WITHIN_MS, f"{begins:,.0f} ms after the answer")


def track_checks(log: LiveLog, heard: HeardAudio) -> Iterator[Check]:
    """Whether audio went unchanged down, and evenly up."""
    loud = [frame for frame in log.frames if frame and frame != SILENT_FRAME]
    found = [frame for frame in loud if frame in heard.places]
    lost_ms = (len(loud) - len(found)) * FRAME_MS
    words = f"{len(found):,} of {len(loud):,} frames, byte for byte"
    passed = bool(loud) and lost_ms <= PHONE_BUFFER_MS
    yield Check("what the model said was heard, goodbye and all", passed, words)
    off = log.up_ms - log.lasted_ms
    passed = log.lasted_ms > 0 and abs(off) <= max(100.0, log.lasted_ms / 1000)
    words = f"{log.up_ms:,.0f} ms of audio in {log.lasted_ms:,.0f} ms"
    yield Check("the model was sent a second of audio each second", passed, words)


def _overlap(evidence: Evidence[LiveLog]) -> Iterator[Check]:
    cuts = [cut for cut in evidence.record.interruptions if cut.action != "none" or cut.flushed_ms]
    spoke_over = [span for span in evidence.report.heard if span.to_ms - span.from_ms > 0]
    found = f"{len(spoke_over)} stretches of speech, {len(cuts)} cut here"
    yield Check("the caller interrupted, and the model itself stopped", not cuts, found)


def _digits(evidence: Evidence[LiveLog]) -> Iterator[Check]:
    runs = [run.digits for run in evidence.record.digits]
    told = any(DIGITS in text.replace(" ", "") for text in evidence.events.said)
    found = f"collected {' '.join(runs) or 'none'}, {'' if told else 'not '}told to the model"
    yield Check(f"the digits {DIGITS} arrived", runs[:1] == [DIGITS] and told, found)


def _ending(evidence: Evidence[LiveLog]) -> Iterator[Check]:
    ending = evidence.record.ending
    found = "no ending" if ending is None else f"{ending.by}, {ending.why}"
    passed = ending is not None and (ending.by, ending.why) == ("model", "agent_hangup")
    yield Check("the model's backend ended the call after the goodbye", passed, found)
    closed = evidence.events.closed or "without session.closed"
    passed = evidence.events.closed == "close_requested"
    yield Check("the session was closed, and its end confirmed", passed, closed)


LIVE = Scenario(
    emulator=EMULATOR,
    gateway=GATEWAY.replace("gpt-realtime-2.1", MODEL).replace(
        RECORDS, f"{RECORDS}\nevents = true"
    ),
    dialplan=DIALPLAN.replace("[route.session]", BACKEND),
    caller=CALLER,
    path="/v1/live/sessions",
    read_events=read_live_events,
    judge=judge,
)
