# SPDX-License-Identifier: GPL-2.0-or-later
"""One call on a virtual clock: the machine, a caller's ear, and what the bridge would do.

Carries outputs out as the bridge does (a full queue is answered at once) and writes
each down in a few words, so that a test reads as a table of what happened and what was done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from gateway.audio import FRAME_BYTES, FRAME_MS, Codec
from gateway.bridge.black_box import RecordedMachine
from gateway.call import inputs, outputs
from gateway.call.call_record import CallRecord, LegRecord
from gateway.call.machine import CallMachine, MachineInput, State
from gateway.call.plan import CallPlan
from gateway.realtime.errors import Kind, Verdict
from gateway.realtime.events import (
    AudioDelta,
    AudioDone,
    CancelResponse,
    ClientCommand,
    CreateItem,
    CreateResponse,
    DeleteItem,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
    SpeechStarted,
    TruncateItem,
)
from tests.support.official_types import check_client_event

UP = inputs.SessionReady("sess_1")
ACK = inputs.Confirmed()
TICK = inputs.Tick()
SHUT_DOWN = inputs.ShutDown()
FAULT = inputs.InternalError("ValueError: defect")
BYE = inputs.LegEnded(200, "OK", "BYE", "Q.850;cause=16", False)
CANCEL = inputs.LegEnded(487, "Request Terminated", "CANCEL", "SIP;cause=200", False)
OUR_END = inputs.LegEnded(200, "OK", "", "", True)
LOST = inputs.LegEnded(408, "Request Timeout", "", "", False)
REFUSED = inputs.SessionFailed(Verdict(Kind.FATAL, "invalid_api_key", "no", True), "says so")
UNREACHABLE = inputs.SessionFailed(Verdict(Kind.RETRYABLE, "timeout", "late", True), "after 5 s")


def closed(code: int, reason: str = "") -> inputs.SessionClosed:
    """The WebSocket closed, not by us."""
    return inputs.SessionClosed(code, reason)


def said(event: ServerEvent) -> inputs.ServerEventReceived:
    """An event of the session."""
    return inputs.ServerEventReceived(event)


def created(response: str, command: CreateResponse | None = None) -> inputs.ServerEventReceived:
    """``response.created``, of a server that says that ``command`` asked for it."""
    metadata = (command.response or {}).get("metadata") if command is not None else None
    return inputs.ServerEventReceived(ResponseCreated(response, metadata or {}), command)


def done(
    response: str, status: str = "completed", calls: Sequence[tuple[str, ...]] = ()
) -> inputs.ServerEventReceived:
    """``response.done`` with function calls (name, call_id, and arguments if there are any)."""
    output: list[dict[str, Any]] = [{"type": "message", "role": "assistant"}]
    output += [
        {
            "type": "function_call",
            "name": name,
            "call_id": call_id,
            "arguments": "".join(more) or "{}",
        }
        for name, call_id, *more in calls
    ]
    return said(ResponseDone(response, status, None, None, None, tuple(output), None))


def failed(response: str) -> inputs.ServerEventReceived:
    """``response.done`` of a response that the server could not make."""
    return said(
        ResponseDone(response, "failed", None, "rate_limit_exceeded", "Too many.", (), None)
    )


def audio(response: str, item: str, ms: int, part: int = 0) -> inputs.ServerEventReceived:
    """A delta of ``ms`` milliseconds."""
    return said(AudioDelta(response, item, part, b"\x42" * (ms * 8)))


def audio_done(response: str, item: str, part: int = 0) -> inputs.ServerEventReceived:
    """``response.output_audio.done``."""
    return said(AudioDone(response, item, part))


SPEECH = said(SpeechStarted("item_user", 1000))


def key(digit: str) -> inputs.DigitPressed:
    """A key."""
    return inputs.DigitPressed(digit)


def error(
    code: str | None, command: ClientCommand | None = None, message: str = ""
) -> inputs.ServerErrorReceived:
    """An ``error`` event that answers ``command``."""
    return inputs.ServerErrorReceived(ServerError(code, message), command)


scenes: list[Scene] = []
"""Those of the test that runs: see the fixture that replays them."""


class Scene:
    """A call and its surroundings. ``seen`` has everything that was done, in a few words each."""

    def __init__(self, plan: CallPlan | None = None, max_frames: int = 100_000) -> None:
        self.plan = plan or CallPlan("route", Codec.PCMU)
        self.record = CallRecord("call-1", leg=LegRecord(codec=self.plan.codec.value))
        self.now = 0.0
        self.sent: list[ClientCommand] = []
        self.notes: list[outputs.LogEvent] = []
        self.seen: list[str] = []
        self.asked: list[str] = []
        """Keys of the questions to the service of an approval rule."""
        self.queue = 0
        """Frames in the playout queue."""
        self.heard_ms = 0
        self._max_frames = max_frames
        self._playing = False
        self._paused = False
        self._inbox: deque[MachineInput] = deque()
        self.black_box: list[str] = []
        """Lines of every step, for a replay."""
        self.machine: CallMachine = RecordedMachine(
            self.plan, self.record, self.now, self, self.black_box.append
        )
        scenes.append(self)
        self._execute(self.machine.start(self.now))

    def at(self, seconds: float, *happenings: MachineInput) -> list[str]:
        """Let the time come, with the ticks due by then, then feed; returns what was done."""
        before, ticks = len(self.seen), 0
        while self.machine.deadline is not None and self.machine.deadline <= seconds:
            ticks = 0 if self.machine.deadline > self.now else ticks + 1
            assert ticks < 20, "a deadline that has come stays: the process would do nothing else"
            self.now = max(self.now, self.machine.deadline)
            self._feed(TICK)
        self.now = max(self.now, seconds)
        for happening in happenings:
            self._feed(happening)
        return self.seen[before:]

    def do(self, *happenings: MachineInput) -> list[str]:
        """Feed now; returns what was done."""
        return self.at(self.now, *happenings)

    def listen(self, ms: int) -> list[str]:
        """The media clock goes on for so long."""
        before = len(self.seen)
        for _ in range(ms // FRAME_MS):
            self.at(self.now + FRAME_MS / 1000)
            if self.queue and not self._paused:
                self.queue -= 1
                self.heard_ms += FRAME_MS
                if not self._playing:
                    self._playing = True
                    self._feed(inputs.PlayoutStarted())
            elif self._playing and not self.queue:
                self._playing = False
                self._feed(inputs.PlayoutDrained())
        return self.seen[before:]

    def flush(self) -> int:
        """As the playout queue: stop, and return the frames that were not played."""
        self.seen.append("flush")
        unplayed, self.queue, self._playing = self.queue, 0, False
        return unplayed

    def up(self) -> Scene:
        """Session and leg are up, nothing said yet."""
        self.do(UP, ACK)
        return self

    @property
    def state(self) -> State:
        """Where the call is."""
        return self.machine.state

    @property
    def events(self) -> list[str]:
        """Names of all notes."""
        return [note.event for note in self.notes]

    @property
    def requests(self) -> list[CreateResponse]:
        """All ``response.create`` sent."""
        return [command for command in self.sent if isinstance(command, CreateResponse)]

    @property
    def ending(self) -> tuple[str, str, int]:
        """Who, why, SIP code."""
        ending = self.record.ending
        assert ending is not None
        return ending.by.value, ending.why.value, ending.sip_code

    def _feed(self, happening: MachineInput) -> None:
        self._inbox.append(happening)
        while self._inbox:
            self._execute(self.machine.handle(self._inbox.popleft(), self.now))

    def _execute(self, todo: list[outputs.Output]) -> None:
        for output in todo:
            words = _words(output)
            if words:
                self.seen.append(words)
            match output:
                case outputs.LogEvent():
                    self.notes.append(output)
                case outputs.Send():
                    check_client_event(output.command.body())
                    self.sent.append(output.command)
                case outputs.Play():
                    frames, rest = divmod(len(output.audio), FRAME_BYTES)
                    assert rest == 0
                    if self.queue + frames > self._max_frames:
                        self._inbox.appendleft(inputs.PlayoutRefused(frames))
                    else:
                        self.queue += frames
                case outputs.Pause(paused):
                    self._paused = paused
                case outputs.RequestApproval(key):
                    self.asked.append(key)


def _words(output: outputs.Output) -> str:
    match output:
        case outputs.Ring():
            return "180"
        case outputs.OpenSession(endpoint, spare):
            return "open spare" if spare else f"open {endpoint or ''}".rstrip()
        case outputs.PromoteStandby():
            return "take over"
        case outputs.Answer():
            return "200"
        case outputs.Reject(code, headers):
            after = headers.get("Retry-After")
            return f"{code} {_cause(headers)}" + (f" retry {after}" if after else "")
        case outputs.HangUp(headers):
            return f"bye {_cause(headers)}"
        case outputs.CloseSession(reason):
            return f"close 1000 {reason}"
        case outputs.Send(command):
            return _command_words(command)
        case outputs.StartMedia():
            return "media"
        case outputs.Mute(muted):
            return "mute" if muted else "unmute"
        case outputs.Withhold(withheld):
            return "withhold" if withheld else "hear"
        case outputs.Hold(held):
            return "hold" if held else "resume"
        case outputs.Pause(paused):
            return "pause" if paused else "go on"
        case outputs.Dial():
            return "dial"
        case outputs.PlaySound(name, second):
            return " ".join(filter(None, ("sound", name, "second" if second else "")))
        case outputs.PlayBriefing(audio):
            return f"brief {len(audio) // 8}"
        case outputs.StartRecording(True):
            return "record second"
        case outputs.StopRecording(_, True):
            return "stop recording second"
        case outputs.Refer(target, replaces):
            return "refer to the second" if replaces else f"refer {target}"
        case outputs.DialBLeg(uri, trunk):
            return f"second {uri} {trunk}".rstrip()
        case outputs.HangUpBLeg():
            return "hang up second"
        case outputs.BridgeLegs(listen):
            return "join, listening" if listen else "join"
        case outputs.Interpret(to_caller):
            return "interpret" if to_caller else "interpret no more"
        case outputs.OpenInterpreter(listener):
            return f"open {listener}"
        case outputs.InterpreterSend(listener, command):
            return f"{_command_words(command)} for {listener}"
        case outputs.InterpreterPlay(listener, audio, more):
            return f"play {len(audio)} {listener}" + ("" if more else ", the last")
        case outputs.HearFully(listener):
            return f"hear fully {listener}"
        case outputs.SendDtmf(digit, how, second):
            return f"press {digit} {'second' if second else how}"
        case outputs.RunTool(call_id, name, arguments):
            return f"run {name} {call_id} {arguments}"
        case outputs.RequestApproval(_key, name, _arguments, rule):
            return f"ask {name} {rule}"
        case outputs.Play(audio):
            return f"play {len(audio) // 8}" if audio else ""
        case outputs.Finished():
            return "finished"
    return ""


def _command_words(command: ClientCommand) -> str:
    match command:
        case CreateResponse(None):
            return "create"
        case CreateResponse(response):
            return f"create {sorted(response or {})}"
        case CreateItem(item):
            if item["type"] == "function_call_output":
                return f"output {item['call_id']}"
            if item["type"] == "mcp_approval_response":
                return f"approve {item['approval_request_id']} {item['approve']}"
            if item["type"] == "function_call":
                return "function_call"
            return f"item {item['content'][0]['text']}"
        case CancelResponse(response_id):
            return f"cancel {response_id}"
        case TruncateItem(item_id, part, end_ms):
            return f"truncate {item_id}/{part} {end_ms}"
        case DeleteItem(item_id):
            return f"delete {item_id}"
    return str(command.body()["type"])


def _cause(headers: Any) -> str:
    return str(headers["Reason"]).partition("cause=")[2].partition(";")[0]
