# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo with a Realtime session: its configuration files, and the checks of what was heard.

The emulator's event log has a hash for each 20 ms frame that it sent; they are looked up in the
recording at the caller's end.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from gateway.audio import BYTES_PER_MS, FRAME_BYTES, FRAME_MS, Codec
from gateway.devtools.scripted_caller import CallReport, Outcome, Script, load_script
from gateway.devtools.timeline import Record, story_of

GREETING = "Good morning, reception. How can I help?"
LONG_ANSWER = (
    "Yes, we do. There is a double room with a view of the lake, at one hundred and twenty a "
    "night, breakfast included. Then there is a family room on the first floor, with a balcony "
    "and a small kitchen. And under the roof there is a quiet single room, over the garden."
)
SECOND_ANSWER = "Gladly, the room with the view. Please key in your phone extension, then hash."
DIGITS = "42"

EMULATOR = f"""\
# gateway emulator --script emulator.toml --record events
# No model is behind it: the second and the third answer are written here, the others follow the
# emulator's rules (say the greeting that is asked for, read digits back, say goodbye on 0).

# One delta for each 20 ms, so that the event log tells of every frame what was in it.
chunk_ms = 20

[[answers]]
kind = "conversation"

[[answers]]
kind = "say"
text = {json.dumps(LONG_ANSWER)}

[[answers]]
kind = "say"
text = {json.dumps(SECOND_ANSWER)}

[[answers]]
kind = "conversation"
"""

GATEWAY = """\
# gateway run -c gateway.toml

[sip]
listen = ["udp:127.0.0.1:0"]           # any free port; the log says which
rtp_ports = [22000, 23999]
max_calls = 4

[realtime]
url = {url}                            # the emulator of this demo
model = "gpt-realtime-2.1"

[dialplan]
folder = "dialplans"

[records]
folder = "../records"

[log]
format = "json"
"""

DIALPLAN = f"""\
[[route]]
name = "reception"
to = "^100$"

[route.session]
instructions = "You are the receptionist of a small hotel. Answer in one or two short sentences."
audio.output.voice = "marin"

[route.greeting]
say = {json.dumps(GREETING)}
"""

CALL = f"""\
# gateway test-call sip:100@127.0.0.1:PORT --script caller.toml --record-both call.wav

max_seconds = 90

[[step]]
do = "wait_answer"
within = 10

[[step]]
do = "wait_speech"
note = "listens to the greeting"
within = 10

[[step]]
do = "wait_silence"
note = "waits for its end"
ms = 800
within = 15

[[step]]
do = "say"
note = "asks for a room"
text = "Hello. Do you have a room for two nights, from Friday?"

[[step]]
do = "wait_speech"
note = "waits for the answer"
within = 10

[[step]]
do = "wait"
note = "listens to it for four seconds"
seconds = 4.0

[[step]]
do = "say"
note = "interrupts"
text = "Thank you. I take the first one."

[[step]]
do = "wait_silence"
note = "hears that the agent has stopped"
ms = 300
within = 5

[[step]]
do = "wait_speech"
note = "waits for the next answer"
within = 10

[[step]]
do = "wait_silence"
note = "listens to it to its end"
ms = 900
within = 20

[[step]]
do = "digits"
note = "presses {DIGITS}#"
keys = "{DIGITS}#"

[[step]]
do = "wait_speech"
note = "waits for the digits to be read back"
within = 10

[[step]]
do = "wait_silence"
note = "listens to that"
ms = 900
within = 15

[[step]]
do = "digits"
note = "presses 0#, to be told goodbye"
keys = "0#"

"""


CALLER = f"""\
{CALL}
[[step]]
do = "expect_end"
note = "hears the goodbye, and that the agent hangs up"
code = 200
within = 20
"""

Log = TypeVar("Log")


@dataclass(frozen=True)
class Scenario(Generic[Log]):
    """One kind of demo: the files of its three processes, and its checks."""

    emulator: str
    gateway: str
    dialplan: str
    caller: str
    path: str
    """Path of the emulator's URL."""
    read_events: Callable[[Path], Log]
    """Reads the emulator's event log. Raises OSError, ValueError."""
    judge: Callable[[Evidence[Log]], list[Check]]


class Stage:
    """Paths of the demo's files below ``folder``."""

    def __init__(self, folder: Path, scenario: Scenario[Any]) -> None:
        self.folder = folder
        self.scenario = scenario
        self.config = folder / "config"
        self.emulator_script = self.config / "emulator.toml"
        self.gateway_config = self.config / "gateway.toml"
        self.caller_script = self.config / "caller.toml"
        self.events = folder / "events"
        self.records = folder / "records"
        self.record = folder / "record.json"
        self.report = folder / "report.json"
        self.recording = folder / "call.wav"
        self.heard = folder / "heard.alaw"
        self.picture = folder / "timeline.png"
        self.text = folder / "timeline.txt"
        self.checks = folder / "checks.json"

    def prepare(self) -> Script:
        """Write the configuration files but the gateway's, and delete those of an earlier demo.

        Returns the caller's script. Raises OSError.
        """
        dialplans = self.config / "dialplans"
        for folder in (dialplans, self.events, self.records):
            folder.mkdir(parents=True, exist_ok=True)
        written = (self.record, self.report, self.recording, self.heard, self.picture, self.text)
        sessions, calls = self.events.glob("*_emulator_*"), self.records.glob("*.json*")
        for old in (*written, self.checks, *sessions, *calls):
            old.unlink(missing_ok=True)
        self.emulator_script.write_text(self.scenario.emulator, "utf-8")
        (dialplans / "10-reception.toml").write_text(self.scenario.dialplan, "utf-8")
        self.caller_script.write_text(self.scenario.caller, "utf-8")
        return load_script(self.caller_script)

    def point_at(self, url: str) -> None:
        """Write the gateway's configuration for the emulator at ``url``. Raises OSError."""
        server = urlsplit(url)._replace(path=self.scenario.path).geturl()
        text = self.scenario.gateway.format(url=json.dumps(server))
        self.gateway_config.write_text(text, "utf-8")


GREETING_WITHIN_MS = 3000
"""After the answer; the emulator takes tens of ms, a busy machine some more."""


PHONE_BUFFER_MS = 500
"""Of the very end, what may still be in the scripted caller's jitter buffer when the BYE comes: as
much as it has room for, on a machine so busy that packets come in bursts."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name says what is expected, ``found`` what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Evidence(Generic[Log]):
    """The call's report, record, event log and recording, which the checks read."""

    report: CallReport
    record: Record
    events: Log
    heard_audio: HeardAudio
    """The recording at the caller's end."""
    exits: dict[str, int | None]
    """Exit status of each process."""


def judge(evidence: Evidence[EventLog]) -> list[Check]:
    """Return the checks of a demo with a Realtime session, failed ones too."""
    return [
        *caller_checks(evidence),
        *_greeting(evidence),
        *_interruption(evidence),
        digits_check(evidence),
        *_ending(evidence),
        *process_checks(evidence.exits, evidence.events.errors),
    ]


def caller_checks(evidence: Evidence[Any]) -> Iterator[Check]:
    """Yield whether the caller went through its script."""
    report = evidence.report
    done = f"{sum(step.done for step in report.steps)} steps done"
    found = done if report.outcome is Outcome.COMPLETED else report.message
    yield Check("the caller went through its script", report.outcome is Outcome.COMPLETED, found)


def _greeting(evidence: Evidence[EventLog]) -> Iterator[Check]:
    report, story = evidence.report, story_of(evidence.record)
    name = "the greeting was heard, whole"
    if not report.heard or report.answered_ms is None or not story.agent:
        yield Check(name, False, "nothing was heard")
        return
    begins = report.heard[0].from_ms + (report.media_ms or 0.0) - report.answered_ms
    item = evidence.events.items.get(story.agent[0].item_id)
    if item is None:
        yield Check(name, False, "the emulator sent no such item")
        return
    heard = heard_of(item, evidence.heard_audio)
    whole = item.ms - PHONE_BUFFER_MS <= heard.most_ms <= item.ms
    passed = begins <= GREETING_WITHIN_MS and whole
    found = f"{heard} of {item.ms:,} ms, {begins:,.0f} ms after the answer"
    yield Check(name, passed, found)


def _interruption(evidence: Evidence[EventLog]) -> Iterator[Check]:
    cuts = [cut for cut in evidence.record.interruptions if cut.action != "none"]
    told = [f"{cut.trigger}: {cut.action} at {cut.played_ms:,} ms" for cut in cuts]
    one = len(cuts) == 1 and (cuts[0].trigger, cuts[0].action) == ("speech", "truncate")
    yield Check("speech interrupted the answer, once", one, ", ".join(told) or "no interruption")
    if not one:
        return
    cut = cuts[0]
    confirmed = evidence.events.truncated.get(cut.item_id)
    found = "not confirmed" if confirmed is None else f"truncated at {confirmed:,} ms"
    yield Check("the server truncated it there", confirmed == cut.played_ms, found)
    item = evidence.events.items.get(cut.item_id)
    name = "what was truncated is what the caller had heard"
    if item is None:
        yield Check(name, False, "the emulator sent no such item")
        return
    heard = heard_of(item, evidence.heard_audio)
    found = f"heard {heard}, counted {cut.played_ms:,} ms, sent {item.ms:,} ms"
    yield Check(name, heard.agrees(cut.played_ms) and cut.played_ms < item.ms, found)


def digits_check(evidence: Evidence[Any]) -> Check:
    """Whether :data:`DIGITS` were collected, and the model was told them."""
    runs = [run.digits for run in evidence.record.digits]
    told = any(DIGITS in text.replace(" ", "") for text in evidence.events.said)
    found = f"collected {' '.join(runs) or 'none'}, {'' if told else 'not '}told to the model"
    return Check(f"the digits {DIGITS} arrived", runs[:1] == [DIGITS] and told, found)


def hangup_check(name: str, evidence: Evidence[Any]) -> Check:
    """Whether the record says that the model hung up."""
    ending = evidence.record.ending
    found = "no ending" if ending is None else f"{ending.by}, {ending.why}"
    return Check(name, found == "model, agent_hangup", found)


def _ending(evidence: Evidence[EventLog]) -> Iterator[Check]:
    end = evidence.report.end
    yield hangup_check("the model ended the call with a goodbye", evidence)
    heard_it = end is not None and (end.by, end.method) == ("callee", "BYE")
    story = story_of(evidence.record)
    item = evidence.events.items.get(story.agent[-1].item_id) if story.agent else None
    name = "the goodbye was heard to its end, then came the BYE"
    if item is None or end is None:
        yield Check(name, False, "no goodbye")
        return
    heard = heard_of(item, evidence.heard_audio)
    found = f"{heard} of {item.ms:,} ms, then {end.method or end.reason} by {end.by}"
    yield Check(name, heard_it and heard.most_ms >= item.ms - PHONE_BUFFER_MS, found)


def process_checks(exits: Mapping[str, int | None], errors: Sequence[str]) -> Iterator[Check]:
    """Yield whether every process ended with status 0, and the server sent no error."""
    found = ", ".join(f"{name} {status}" for name, status in exits.items())
    passed = all(status == 0 for status in exits.values())
    yield Check("every process ended with status 0", passed, found)
    yield Check("the server sent no error", not errors, ", ".join(errors) or "none")


_AGREE = 5
"""Frames in a row's order that make a place in the recording credible: a tenth of a second."""

SILENT_FRAME = hashlib.sha256(Codec.PCMA.silence * FRAME_BYTES).hexdigest()[:16]


@dataclass(slots=True)
class Item:
    """An answer as the emulator sent it: a hash for each 20 ms, ``""`` for a shorter rest."""

    item_id: str
    frames: list[str] = field(default_factory=list)
    bytes: int = 0

    @property
    def ms(self) -> int:
        """Length of the audio in whole ms, as the protocol counts."""
        return self.bytes // BYTES_PER_MS


@dataclass(slots=True)
class EventLog:
    """What the demo needs of a session's event log."""

    items: dict[str, Item] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    """Items that the emulator confirmed as truncated, and at which ms."""
    said: list[str] = field(default_factory=list)
    """Texts that the gateway sent as the caller's words: the digits."""
    errors: list[str] = field(default_factory=list)


def read_events(file: Path) -> EventLog:
    """Read a session's ``*.jsonl``. Raises OSError, ValueError."""
    log = EventLog()
    for line in file.read_text("utf-8").splitlines():
        event = json.loads(line)["event"]
        match event.get("type"):
            case "response.output_audio.delta":
                item = log.items.setdefault(event["item_id"], Item(event["item_id"]))
                whole = event["audio_bytes"] == FRAME_BYTES
                item.frames.append(event["audio_sha256"] if whole else "")
                item.bytes += event["audio_bytes"]
            case "conversation.item.truncated":
                log.truncated[event["item_id"]] = event["audio_end_ms"]
            case "conversation.item.create":
                log.said += _texts(event.get("item") or {})
            case "error":
                log.errors.append(str(event["error"].get("code")))
    return log


def _texts(item: Mapping[str, Any]) -> list[str]:
    parts: Iterable[Mapping[str, Any]] = item.get("content") or ()
    return [str(part["text"]) for part in parts if part.get("type") == "input_text"]


@dataclass(frozen=True, slots=True)
class Heard:
    """How much of an item was heard: at least and at most, since silent frames cannot be told."""

    least_ms: int
    most_ms: int
    matched: int
    """Frames found byte for byte; below ``least_ms`` only where the network lost some."""

    def agrees(self, played_ms: int) -> bool:
        """Whether the gateway's count is what was heard."""
        return self.least_ms <= played_ms <= self.most_ms

    def __str__(self) -> str:
        if self.least_ms == self.most_ms:
            return f"{self.least_ms:,} ms"
        return f"{self.least_ms:,} to {self.most_ms:,} ms (the end is silent)"


class HeardAudio:
    """A recording, indexed by the hash of the 20 ms that begin at each byte."""

    def __init__(self, heard: bytes) -> None:
        """Index A-law audio: half a second of work for a minute of it."""
        self.places: dict[str, list[int]] = {}
        for at in range(len(heard) - FRAME_BYTES + 1):
            digest = hashlib.sha256(heard[at : at + FRAME_BYTES]).hexdigest()[:16]
            if digest != SILENT_FRAME:
                self.places.setdefault(digest, []).append(at)


def heard_of(item: Item, heard_audio: HeardAudio) -> Heard:
    """Return how much of ``item`` is in the recording.

    Frames follow each other, so most of them agree on where the item begins; a loss on the way
    moves the rest by a jitter buffer's step, and a frame counts wherever some others agree with it.
    """
    found = [
        (at - number * FRAME_BYTES, number)
        for number, digest in enumerate(item.frames)
        for at in heard_audio.places.get(digest, ())
    ]
    votes = Counter(begin for begin, _ in found)
    numbers = {number for begin, number in found if votes[begin] >= min(_AGREE, len(item.frames))}
    if not numbers:
        return Heard(0, 0, 0)
    last = max(numbers)
    after = last + 1
    while after < len(item.frames) and item.frames[after] == SILENT_FRAME:
        after += 1
    # A rest shorter than a frame is filled up by the gateway: its bytes were heard, then silence.
    rest = after == len(item.frames) - 1 and not item.frames[after]
    most = item.ms if after >= len(item.frames) or rest else after * FRAME_MS
    return Heard((last + 1) * FRAME_MS, max(most, (last + 1) * FRAME_MS), len(numbers))


TURNS = """\
[route.session]
# So long that a machine that stands still for half a second does not end the caller's turn.
audio.input.turn_detection = { type = "server_vad", silence_duration_ms = 1000 }"""


REALTIME = Scenario(
    emulator=EMULATOR,
    gateway=GATEWAY,
    dialplan=DIALPLAN.replace("[route.session]", TURNS),
    caller=CALLER,
    path="/v1/realtime",
    read_events=read_events,
    judge=judge,
)
