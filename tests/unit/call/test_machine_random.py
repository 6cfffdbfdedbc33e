# SPDX-License-Identifier: GPL-2.0-or-later
"""Any inputs in any order at any times: a call ends once, properly, and never raises."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audio import FRAME_BYTES, Codec
from gateway.call import inputs, outputs
from gateway.call.call_record import CallRecord
from gateway.call.conversation.out_of_band import KEY
from gateway.call.machine import CallMachine, State
from gateway.call.plan import (
    ApprovalRule,
    BudgetPlan,
    CallPlan,
    DtmfPlan,
    EscapePlan,
    FallbackStep,
    FunctionPlan,
    InterruptionPlan,
    LimitsPlan,
    MachineDetectionPlan,
    ServerPlan,
    ToolsPlan,
    UserIdlePlan,
)
from gateway.call.tools.commands import (
    BriefingPlan,
    CallCommand,
    CollectPlan,
    Destination,
    EndCall,
    HoldPlan,
    InterpreterPlan,
    LanguagePlan,
    OperatorHold,
    OperatorTransfer,
    PressKeys,
    RecordCall,
    RecordingPlan,
    RequestOutOfBand,
    Say,
    SendDtmfPlan,
    SendMessage,
    TransferPlan,
    TransferTo,
)
from gateway.realtime.errors import ERROR_CODES
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    AudioDelta,
    AudioDone,
    CancelResponse,
    ClientCommand,
    CreateItem,
    CreateResponse,
    DeleteItem,
    InputCommitted,
    InputTranscribed,
    ItemTruncated,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
    SpeechStarted,
    SpeechStopped,
    TruncateItem,
)
from tests.support.call_scene import BYE, CANCEL, FAULT, LOST, OUR_END, REFUSED, UNREACHABLE

RESPONSES = st.sampled_from(["r1", "r2", "r3"])
ITEMS = st.sampled_from(["i1", "i2", "i3"])
CALLS = st.lists(
    st.sampled_from(
        [
            {"type": "function_call", "name": "end_call", "call_id": "c1"},
            {"type": "function_call", "name": "lookup", "call_id": "c2"},
            {"type": "function_call", "name": "send_dtmf", "arguments": '{"digits": "1W2"}'},
            {"type": "function_call", "name": "hold", "arguments": '{"seconds": 9}'},
            *(
                {
                    "type": "function_call",
                    "name": "transfer_call",
                    "call_id": "c3",
                    "arguments": json.dumps({"destination": mode}),
                }
                for mode in ("blind", "attended", "bridge", "briefed")
            ),
            {"type": "function_call"},
            {"type": "function_call", "name": "collect_digits", "call_id": "c4"},
            {"type": "function_call", "name": "set_language", "arguments": '{"language": "de"}'},
            {"type": "mcp_approval_request", "id": "m1", "server_label": "s", "name": "look_up"},
            {"type": "mcp_call", "id": "m2", "server_label": "s", "name": "look_up"},
            {"type": "message"},
            {},
        ]
    ),
    max_size=3,
).map(tuple)
EVENTS: st.SearchStrategy[ServerEvent] = st.one_of(
    st.builds(
        AudioDelta,
        RESPONSES,
        ITEMS,
        st.integers(0, 1),
        st.integers(0, 4000).map(lambda n: bytes(n)),
    ),
    st.builds(AudioDone, RESPONSES, ITEMS, st.integers(0, 1)),
    st.builds(ResponseCreated, RESPONSES, st.sampled_from([{}, {KEY: "briefing-1"}])),
    st.builds(
        ResponseDone,
        RESPONSES,
        st.sampled_from(["completed", "completed", "cancelled", "failed", "incomplete", "new"]),
        st.none(),
        st.none(),
        st.none(),
        CALLS,
        st.none(),
    ),
    st.just(SpeechStarted("u", 1)),
    st.sampled_from([2, 2000]).map(lambda at: SpeechStopped("u", at)),
    st.just(InputCommitted("u")),
    st.builds(AgentTranscriptDelta, RESPONSES, ITEMS, st.just(0), st.just("word ")),
    st.just(AgentTranscript("r1", "i1", 0, "x")),
    st.sampled_from(["x", "a human please", "yes"]).map(lambda words: InputTranscribed("u", words)),
    st.just(ItemTruncated("i1", 0, 5)),
    st.just(OtherEvent("new", {})),
    st.just(OtherEvent("response.mcp_call.completed", {"item_id": "m2"})),
    st.just(OtherEvent("mcp_list_tools.failed", {})),
    st.just(OtherEvent("response.output_item.done", {"item": {"type": "mcp_list_tools"}})),
)
COMMANDS: st.SearchStrategy[ClientCommand | None] = st.sampled_from(
    [
        None,
        CreateResponse(),
        CreateItem({"type": "message"}),
        CancelResponse("r1"),
        TruncateItem("i1", 0, 300),
        DeleteItem("i1"),
    ]
)
ERRORS = st.builds(
    inputs.ServerErrorReceived,
    st.builds(
        ServerError,
        st.sampled_from([*ERROR_CODES, None, "new"]),
        st.sampled_from(["", "Audio content of 100ms is already shorter than 300ms"]),
    ),
    COMMANDS,
)
CODES = st.sampled_from([1000, 1001, 1006, 1011, 4000])
SESSION = st.one_of(
    st.sampled_from([None, 9.0, 3600.0]).map(lambda left: inputs.SessionReady("sess", left)),
    st.sampled_from([inputs.StandbyReady("spare", 30.0), inputs.StandbyFailed("no")]),
    EVENTS.map(inputs.ServerEventReceived),
    EVENTS.map(inputs.ServerEventReceived),
    EVENTS.map(inputs.ServerEventReceived),
    ERRORS,
)
LEG = st.one_of(
    st.just(inputs.Confirmed()),
    st.sampled_from("0123456789*#ABCD").map(inputs.DigitPressed),
    st.integers(0, 9).map(inputs.RtpStats),
    st.just(inputs.CallerSounds()),
    st.sampled_from(list(Codec)).map(inputs.MediaUp),
    st.booleans().map(inputs.HoldChanged),
    st.sampled_from([inputs.BeepHeard(1000, 400), inputs.SoundHeard(1.0, 0.9, 0.2)]),
)
ACTS: list[CallCommand] = [
    Say("x"),
    SendMessage("x"),
    TransferTo("blind", "x"),
    EndCall(""),
    OperatorTransfer("bridge"),
    OperatorHold(True),
    OperatorHold(False),
    PressKeys("1w2"),
    RecordCall("start"),
    RequestOutOfBand("query-1", "x"),
]
STATUS = st.sampled_from([100, 180, 200, 404, 486, 603])
TRANSFERS = st.one_of(
    st.builds(inputs.ReferProgress, STATUS, st.just(""), st.booleans()),
    st.just(inputs.BLegRinging(180)),
    st.just(inputs.BLegAnswered()),
    st.builds(inputs.BLegEnded, STATUS, st.just(""), st.sampled_from(["", "BYE"]), st.booleans()),
    st.builds(inputs.BLegDigit, st.sampled_from("12")),
    st.just(inputs.ToolDone("c2", "{}")),
    st.builds(inputs.ApprovalResult, st.sampled_from(["c2", "m1"]), st.booleans()),
    st.builds(inputs.ToolRequest, st.sampled_from(ACTS)),
    st.builds(inputs.BudgetThreshold, st.sampled_from([False, False, True]), st.just("call")),
    st.builds(inputs.InterpreterUp, st.sampled_from(["caller", "callee"]), st.just("sess")),
    st.builds(inputs.InterpreterLost, st.sampled_from(["caller", "callee"]), st.just("late")),
    st.just(inputs.RemoteRinging(180)),
)
PLAYOUT = st.one_of(
    st.just(inputs.PlayoutStarted()),
    st.just(inputs.PlayoutDrained()),
    st.integers(0, 300).map(inputs.PlayoutRefused),
    st.just(inputs.Tick()),
)
ENDS = st.one_of(
    st.builds(inputs.SessionClosed, CODES, st.just("")),
    st.sampled_from([REFUSED, UNREACHABLE, BYE, CANCEL, LOST, OUR_END]),
    st.just(inputs.ShutDown()),
    st.just(FAULT),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.02, 0.5, 3.0, 12.0, 40.0]),
        st.integers(0, 29).flatmap(
            lambda n: (
                ENDS
                if n == 0
                else PLAYOUT
                if n < 6
                else LEG
                if n < 10
                else TRANSFERS
                if n < 15
                else SESSION
            )
        ),
    ),
    max_size=60,
)
BY = ("allow", "deny", "ask_caller", "ask_http")
FALLBACK_STEPS = st.sampled_from(
    [
        FallbackStep("reconnect", 5.0, "chime"),
        FallbackStep("server", 5.0, server=1),
        FallbackStep("announcement", 2.0, "/sorry.wav"),
        FallbackStep("transfer", transfer_to="blind"),
        FallbackStep("busy"),
        FallbackStep("redirect", transfer_to="sip:x@pbx"),
        FallbackStep("hangup"),
    ]
)
DESTINATIONS = (
    *(Destination(mode, f"sip:{mode}@pbx", mode) for mode in ("blind", "attended", "bridge")),
    Destination("briefed", "sip:b@pbx", "bridge", briefing=BriefingPlan()),
)
PLANS = st.builds(
    CallPlan,
    route=st.just("r"),
    codec=st.sampled_from(list(Codec)),
    greeting=st.sampled_from([None, {"instructions": "Hello"}]),
    dtmf=st.builds(
        DtmfPlan,
        enabled=st.booleans(),
        finish_on_key=st.sampled_from(["", "#"]),
        max_digits=st.integers(1, 4),
        interrupt=st.booleans(),
    ),
    limits=st.builds(
        LimitsPlan,
        rtp_timeout=st.sampled_from([0.0, 30.0]),
        max_call_duration=st.sampled_from([60.0, 3600.0]),
    ),
    tools=st.builds(
        ToolsPlan,
        transfer=st.one_of(
            st.just(TransferPlan()),
            st.builds(
                TransferPlan,
                destinations=st.just(DESTINATIONS),
                listen=st.booleans(),
                interpreter=st.sampled_from(
                    [None, InterpreterPlan("bridge", {"instructions": "a"}, {"instructions": "b"})]
                ),
            ),
        ),
        send_dtmf=st.builds(SendDtmfPlan, st.booleans()),
        hold=st.builds(HoldPlan, st.booleans()),
        functions=st.sampled_from(
            [
                {},
                {"lookup": FunctionPlan()},
                {
                    "lookup": FunctionPlan(
                        timeout=9.0, filler_delay=2.0, filler_text="Wait.", approval=True
                    )
                },
                {"lookup": FunctionPlan(filler_delay=2.0, filler_sound="chime")},
            ]
        ),
        approvals=st.sampled_from([(), *((ApprovalRule("*look*", by, {}, 9.0),) for by in BY)]),
        collect_digits=st.builds(CollectPlan, st.booleans()),
        language=st.sampled_from(
            [LanguagePlan(), LanguagePlan({"de": "German"}, {"de": {"instructions": "x"}})]
        ),
    ),
    interruptions=st.sampled_from(
        [
            InterruptionPlan(),
            InterruptionPlan("adaptive", by_gateway=True, transcribed=True),
            InterruptionPlan("adaptive", by_gateway=True, uninterruptible_greeting=True),
            InterruptionPlan("disabled", by_gateway=True),
        ]
    ),
    idle=st.sampled_from([UserIdlePlan(), UserIdlePlan(4.0, max_prompts=1)]),
    escape=st.sampled_from(
        [
            EscapePlan(),
            EscapePlan("0", (("human",),), ("bridge", "blind")),
            EscapePlan("0", (), ("briefed",)),
        ]
    ),
    budget=st.sampled_from([BudgetPlan(), BudgetPlan(transfer_to="bridge")]),
    recording=st.builds(
        RecordingPlan,
        mode=st.sampled_from(["off", "on_demand", "always"]),
        consent=st.sampled_from(["none", "announce", "ask"]),
        prompt=st.just("May we?"),
        yes_phrases=st.just((("yes",),)),
    ),
    machine_detection=st.sampled_from(
        [
            MachineDetectionPlan(),
            MachineDetectionPlan(
                {"music": "leave_message", "voicemail": "log"}, {"music": "Bye."}, 4.0, 2.0
            ),
            MachineDetectionPlan(
                {"voicemail": "hangup", "bot": "hangup"}, {}, bot_equal_turns=4, bot_repeats=2
            ),
            MachineDetectionPlan(
                {"voicemail": "leave_message"}, {"voicemail": "Hi."}, 4.0, 2.0, beep_timeout=5.0
            ),
        ]
    ),
    server=st.builds(
        ServerPlan,
        interrupts=st.booleans(),
        fallback=st.lists(FALLBACK_STEPS, max_size=3).map(tuple),
        truncate_margin_ms=st.sampled_from([0, 85]),
    ),
)


class _Watch:
    """Feeds a machine and holds it to the rules that every call obeys."""

    def __init__(self, plan: CallPlan, *, long_way: bool = False) -> None:
        self.record = CallRecord("c")
        self.long_way = long_way
        """No audio delta takes the short way of one that follows on another."""
        self.todo: list[list[outputs.Output]] = []
        self.flushes = 0
        self.machine = CallMachine(plan, self.record, 0.0, self)
        self.now = 0.0
        self.released = 0
        """Refusals and hang-ups."""
        self.finished = 0
        self.session_closed = False
        self.answered = False
        self.second = False
        """Somebody was called for the caller, and is still there."""
        self.leg_ended_first = False
        self.faults_at_end = 0
        self.in_flight: CreateResponse | None = None
        self._take(self.machine.start(0.0))

    def flush(self) -> int:
        """Some frames come back, as many as ever."""
        self.flushes += 1
        return self.flushes * 37 % 301

    def feed(self, happening: inputs.Input) -> None:
        state, flushes = self.machine.state, self.flushes
        if isinstance(happening, inputs.BLegEnded):
            self.second = False
        if isinstance(happening, inputs.LegEnded) and state not in (State.ENDING, State.FINISHED):
            self.leg_ended_first = True
        if isinstance(happening, inputs.InternalError) and state is State.ENDING:
            self.faults_at_end += 1
        if isinstance(happening, inputs.ServerEventReceived) and isinstance(
            happening.event, ResponseCreated
        ):
            self.in_flight = None
        if isinstance(happening, inputs.ServerErrorReceived):
            # Errors that answer the request in flight name it, as a server's do.
            command = happening.command
            if isinstance(command, CreateResponse) and self.in_flight is not None:
                happening = inputs.ServerErrorReceived(happening.error, self.in_flight)
                self.in_flight = None
            elif happening.error.code == "conversation_already_has_active_response":
                self.in_flight = None
        if isinstance(happening, inputs.Tick) and self.machine.deadline is not None:
            self.in_flight = None if self.now >= self.machine.deadline else self.in_flight
        todo = self._handle(happening)
        if state is State.BRIDGED and self.record.ending is None:
            closed = [one.reason for one in todo if isinstance(one, outputs.CloseSession)]
            assert not set(closed) & {"agent_hangup", "budget"}, "the two talk without a model"
        self.todo.append(todo)
        if self.flushes > flushes:
            assert not any(isinstance(output, outputs.Play) for output in todo), "it was flushed"
        if state is State.FINISHED:
            assert todo == []
        self._take(todo)

    def _handle(self, happening: inputs.Input) -> list[outputs.Output]:
        """As the driver does it, or every input the long way."""
        event = happening.event if isinstance(happening, inputs.ServerEventReceived) else None
        if isinstance(event, AudioDelta) and not self.long_way:
            frames = self.machine.more_audio(event)
            if frames is not None:
                return [outputs.Play(frames, more=True)] if frames else []
        return self.machine.handle(happening, self.now)

    def advance(self, seconds: float) -> None:
        """Let time pass, with a tick at each deadline; each of them makes progress."""
        until = self.now + seconds
        for _ in range(1000):
            deadline = self.machine.deadline
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.feed(inputs.Tick())
            following = self.machine.deadline
            assert following is None or following > self.now
        else:
            raise AssertionError("deadlines without end")
        self.now = until

    def _take(self, todo: list[outputs.Output]) -> None:
        for output in todo:
            assert self.finished == 0, "something after the end"
            match output:
                case outputs.Answer():
                    assert not self.answered
                    assert self.released == 0
                    self.answered = True
                case outputs.Reject():
                    assert not self.answered
                    self.released += 1
                case outputs.HangUp():
                    assert self.answered or self.faults_at_end
                    self.released += 1
                case outputs.CloseSession():
                    self.session_closed = True
                case outputs.StartMedia():
                    assert self.answered
                    assert self.released == 0
                case outputs.DialBLeg():
                    assert not self.second
                    self.second = True
                case outputs.HangUpBLeg():
                    self.second = False
                case outputs.BridgeLegs() | outputs.Refer(replaces=True):
                    assert self.second
                case outputs.Play(audio):
                    assert len(audio) % FRAME_BYTES == 0
                case outputs.Send(command):
                    assert not self.session_closed
                    json.dumps(command.body())
                    beside = KEY in command.body().get("response", {}).get("metadata", {})
                    if isinstance(command, CreateResponse) and not beside:
                        assert self.in_flight is None
                        self.in_flight = command
                    if isinstance(command, TruncateItem):
                        assert command.audio_end_ms >= 0
                case outputs.Finished():
                    assert self.session_closed
                    assert self.record.ending is not None
                    assert not self.second, "nobody is left on the line"
                    self.finished += 1


@settings(max_examples=600)
@given(PLANS, st.integers(0, 3), STEPS)
def test_any_call(plan: CallPlan, up: int, steps: list[tuple[float, inputs.Input]]) -> None:
    watch = _Watch(plan)
    for beginning in (inputs.SessionReady("sess"), inputs.Confirmed())[:up]:
        watch.feed(beginning)
    for wait, happening in steps:
        watch.advance(wait)
        watch.feed(happening)
    # Whatever happened, it can be ended, and ends by itself if the leg stays silent.
    watch.feed(inputs.ShutDown())
    watch.advance(100.0)
    assert watch.machine.state is State.FINISHED
    assert watch.finished == 1
    assert watch.machine.deadline is None
    assert watch.released == (0 if watch.leg_ended_first else 1) + watch.faults_at_end
    ending = watch.record.ending
    assert ending is not None
    if ending.sip_code == 200:
        assert watch.answered
    json.dumps(watch.record.as_json())


@settings(max_examples=200)
@given(PLANS, STEPS, st.integers(1, 3))
def test_audio_that_follows_on_audio_does_what_any_audio_does(
    plan: CallPlan, steps: list[tuple[float, inputs.Input]], times: int
) -> None:
    ways = _Watch(plan), _Watch(plan, long_way=True)
    for watch in ways:
        for beginning in (inputs.SessionReady("sess"), inputs.Confirmed()):
            watch.feed(beginning)
        for wait, happening in steps:
            watch.advance(wait)
            event = getattr(happening, "event", None)
            for _ in range(times if isinstance(event, AudioDelta) else 1):
                watch.feed(happening)
    assert ways[0].todo == ways[1].todo
    assert ways[0].record.as_json() == ways[1].record.as_json()


class _Player:
    """A playout queue of frames, played at random moments."""

    def __init__(self, size: int) -> None:
        self.frames: deque[bytes] = deque()
        self.size = size
        self.played = 0
        self.playing = False

    def put(self, audio: bytes) -> int:
        count = len(audio) // FRAME_BYTES
        if len(self.frames) + count > self.size:
            return count
        self.frames.extend(audio[i : i + FRAME_BYTES] for i in range(0, len(audio), FRAME_BYTES))
        return 0

    def flush(self) -> int:
        unplayed = len(self.frames)
        self.frames.clear()
        self.playing = False
        return unplayed


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("delta"), st.integers(1, 3000)),
            st.tuples(st.just("play"), st.integers(1, 40)),
            st.tuples(st.sampled_from(["done", "speech", "digit", "next"]), st.just(0)),
        ),
        max_size=40,
    ),
    st.sampled_from([30, 100_000]),
)
def test_what_the_server_is_told_is_what_was_played(
    steps: list[tuple[str, int]], size: int
) -> None:
    """Many interruptions at any moment: truncated at what was handed to RTP, deleted if nothing."""
    plan = CallPlan("r", Codec.PCMU, dtmf=DtmfPlan(inter_digit_timeout=1000.0))
    player, inbox = _Player(size), deque[inputs.Input]()
    machine = CallMachine(plan, CallRecord("c"), 0.0, player)
    owner: dict[int, str] = {}
    received: dict[str, int] = {}
    heard: dict[str, int] = {}
    told: dict[str, Any] = {}
    cut: set[int] = set()
    answer, running = 0, False

    def feed(happening: inputs.Input) -> None:
        inbox.append(happening)
        while inbox:
            for output in machine.handle(inbox.popleft(), 1.0):
                match output:
                    case outputs.Play(audio):
                        assert not cut & set(audio)
                        refused = player.put(audio)
                        if refused:
                            inbox.appendleft(inputs.PlayoutRefused(refused))
                    case outputs.Send(TruncateItem(item, 0, end_ms)):
                        assert item not in told
                        told[item] = end_ms
                        assert end_ms == heard.get(item, 0) // 8
                        assert end_ms <= received[item] // 8
                    case outputs.Send(DeleteItem(item)):
                        assert item not in told
                        told[item] = None
                        assert heard.get(item, 0) == 0

    def play(count: int) -> None:
        for _ in range(count):
            if player.frames:
                frame = player.frames.popleft()
                number = frame[0]
                real = len(frame.rstrip(b"\xff"))
                assert set(frame[:real]) == {number}
                heard[owner[number]] = heard.get(owner[number], 0) + real
                if not player.playing:
                    player.playing = True
                    feed(inputs.PlayoutStarted())
            elif player.playing:
                player.playing = False
                feed(inputs.PlayoutDrained())

    def begin() -> None:
        nonlocal answer, running
        answer, running = answer + 1, True
        owner[answer] = f"i{answer}"
        feed(inputs.ServerEventReceived(ResponseCreated(f"r{answer}", {})))

    def end(status: str) -> None:
        nonlocal running
        if running:
            running = False
            event = ResponseDone(f"r{answer}", status, None, None, None, (), None)
            feed(inputs.ServerEventReceived(event))

    feed(inputs.SessionReady("s"))
    feed(inputs.Confirmed())
    begin()
    for step, count in steps:
        if step == "delta" and running:
            item = owner[answer]
            received[item] = received.get(item, 0) + count
            delta = AudioDelta(f"r{answer}", item, 0, bytes([answer]) * count)
            feed(inputs.ServerEventReceived(delta))
        elif step == "play":
            play(count)
        elif step == "done":
            end("completed")
        elif step == "speech":
            feed(inputs.ServerEventReceived(SpeechStarted("u", 0)))
            cut |= {answer} if running else set()
        elif step == "digit":
            feed(inputs.DigitPressed("1"))
            cut |= {answer} if running else set()
        elif step == "next":
            end("completed")
            begin()
    end("completed")
    play(10_000)
    play(2)
    for item, bytes_received in received.items():
        # What was not told was heard, and nothing but what was told was missed.
        if item not in told:
            assert heard.get(item, 0) == bytes_received
        elif told[item] is not None:
            assert told[item] == heard[item] // 8
        else:
            assert heard.get(item, 0) == 0
