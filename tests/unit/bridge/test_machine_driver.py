# SPDX-License-Identifier: GPL-2.0-or-later
"""One input after the other, outputs in between, deadlines."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway.audio import Codec
from gateway.bridge.machine_driver import MachineDriver, ToolCalls
from gateway.call import inputs, outputs
from gateway.call.machine import CallMachine
from gateway.call.plan import GuardrailPlan
from gateway.call.session_lifecycle import State
from gateway.realtime.events import AudioDelta
from gateway.tools import ToolRunner
from tests.support.call_fakes import Fed, settle

ONE, TWO = inputs.DigitPressed("1"), inputs.DigitPressed("2")


class Machine:
    """Answers each input with the outputs that are written down for it."""

    def __init__(self, **told: Any) -> None:
        self.told = told
        self.seen: list[inputs.Input] = []
        self.deadline: float | None = None
        self.state = State.TALKING
        self.frames: bytes | None = None
        self.queued: list[bytes] = []
        self.refused = 0

    def start(self, _now: float) -> list[outputs.Output]:
        """The first outputs."""
        return [outputs.Ring()]

    def more_audio(self, _delta: AudioDelta) -> bytes | None:
        """What is written down."""
        return self.frames

    def put(self, frames: bytes) -> int:
        """Queue frames, or refuse them."""
        self.queued.append(frames)
        return self.refused

    def handle(self, input: inputs.Input, _at: float) -> list[outputs.Output]:
        """What is written down."""
        self.seen.append(input)
        found: list[outputs.Output] = self.told.get(type(input).__name__, [])
        return found


def driver_of(
    machine: Machine, faults: list[Exception], codec: Codec = Codec.PCMU
) -> MachineDriver:
    return MachineDriver(cast(CallMachine, machine), faults.append, machine.put, codec)


async def test_audio_that_nobody_would_hear_is_known_in_each_codec() -> None:
    for codec in Codec:
        machine = Machine()
        driver = driver_of(machine, [], codec)
        for sample, silent in ((0, True), (20, True), (-8000, False)):
            pcm = sample.to_bytes(2, "little", signed=True) * 160
            delta = AudioDelta("r", "i", 0, pcm if codec.wide else codec.from_linear(pcm))
            driver.feed_audio(delta)
            assert delta.silent is silent, (codec, sample)


async def test_an_input_from_an_output_waits_until_all_outputs_are_done() -> None:
    machine, done = Machine(DigitPressed=[outputs.Ring(), outputs.Answer()]), list[Any]()
    driver = driver_of(machine, [])

    def ring(_output: outputs.Ring) -> None:
        if not machine.seen:
            return  # the start
        done.append(("ring", len(machine.seen)))
        if len(machine.seen) == 1:
            driver.feed(TWO)

    driver.executors = {
        outputs.Ring: ring,
        outputs.Answer: lambda _output: done.append(("answer", len(machine.seen))),
    }
    driver.start()
    driver.feed(ONE)
    assert machine.seen == [ONE, TWO]
    assert done == [("ring", 1), ("answer", 1), ("ring", 2), ("answer", 2)]


async def test_what_is_fed_first_is_handled_before_what_waits() -> None:
    machine = Machine(DigitPressed=[outputs.Play(b"", more=False)])
    driver = driver_of(machine, [])

    def play(_output: outputs.Play) -> None:
        if machine.seen == [ONE]:
            driver.feed(TWO)
            driver.feed_first(inputs.PlayoutRefused(3))

    driver.executors = {outputs.Ring: lambda _output: None, outputs.Play: play}
    driver.start()
    driver.feed(ONE)
    assert machine.seen == [ONE, inputs.PlayoutRefused(3), TWO]


async def test_a_deadline_is_a_tick_and_one_that_moved_is_not() -> None:
    machine = Machine()
    driver = driver_of(machine, [])
    driver.executors = {outputs.Ring: lambda _output: None}
    loop = asyncio.get_running_loop()
    machine.deadline = loop.time() + 60
    driver.start()
    machine.deadline = loop.time()
    driver.feed(ONE)
    machine.deadline = None
    await settle()
    assert machine.seen == [ONE, inputs.Tick()]


async def test_a_deadline_that_the_start_sets_is_a_tick_without_another_input() -> None:
    machine = Machine()
    driver = driver_of(machine, [])
    driver.executors = {outputs.Ring: lambda _output: None}
    machine.deadline = asyncio.get_running_loop().time()
    driver.start()
    machine.deadline = None
    await settle()
    assert machine.seen == [inputs.Tick()]


async def test_a_call_that_is_over_takes_no_input() -> None:
    machine = Machine()
    driver = driver_of(machine, [])
    driver.executors = {outputs.Ring: lambda _output: None}
    machine.deadline = asyncio.get_running_loop().time()
    driver.start()
    driver.stop()
    driver.feed(ONE)
    await settle()
    assert machine.seen == []
    assert not driver.may_end_call()


async def test_audio_is_an_input_only_where_the_machine_has_to_decide() -> None:
    machine, delta = Machine(DigitPressed=[outputs.Answer()]), AudioDelta("r", "i", 0, b"x" * 160)
    driver = driver_of(machine, [])
    driver.executors = {
        outputs.Ring: lambda _output: None,
        outputs.Answer: lambda _output: driver.feed_audio(delta),
    }
    driver.start()
    driver.feed_audio(delta)
    received = inputs.ServerEventReceived(delta)
    assert machine.seen == [received]
    machine.frames = delta.audio
    driver.feed_audio(delta)
    assert (machine.seen, machine.queued) == ([received], [delta.audio])
    driver.feed(ONE)  # audio that comes meanwhile waits for its turn
    assert machine.seen == [received, ONE, received]
    machine.refused = 1
    driver.feed_audio(delta)
    assert machine.seen[3:] == [inputs.PlayoutRefused(1)]
    driver.stop()
    driver.feed_audio(delta)
    assert len(machine.queued) == 2


async def test_a_defect_is_told_and_the_next_input_is_handled() -> None:
    machine, faults = Machine(DigitPressed=[outputs.Answer()]), list[Exception]()
    driver = driver_of(machine, faults)
    driver.executors = {outputs.Ring: lambda _output: None}  # nothing answers
    driver.start()
    driver.feed(ONE)
    assert [type(error) for error in faults] == [KeyError]
    driver.feed(inputs.Confirmed())
    assert machine.seen == [ONE, inputs.Confirmed()]


class Runner:
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def run(self, *given: Any) -> None:
        """A function."""
        self.asked.append(given)

    ask = check = run


def test_a_function_is_asked_with_its_call_and_its_result_is_fed() -> None:
    fed, runner = Fed(), Runner()
    fed.record.route, fed.record.from_uri = "desk", "sip:a@x"
    calls = ToolCalls(fed.host, cast(ToolRunner, runner), (), lambda: {"from": "+49"})
    calls.executors[outputs.RunTool](outputs.RunTool("c1", "book", '{"n": 1}'))
    ((call, done),) = runner.asked
    assert (call.name, call.arguments, call.call, call.route) == (
        *("book", '{"n": 1}'),
        *("call-1", "desk"),
    )
    assert (call.caller, dict(call.variables)) == ("sip:a@x", {"from": "+49"})
    done("booked")
    assert fed.take() == [inputs.ToolDone("c1", "booked")]


def test_an_approval_and_a_content_check() -> None:
    fed, runner = Fed(), Runner()
    rule = GuardrailPlan("blue")
    calls = ToolCalls(fed.host, cast(ToolRunner, runner), (rule,), dict)
    calls.executors[outputs.RequestApproval](outputs.RequestApproval("k", "pay", "{}", 2))
    calls.executors[outputs.CheckContent](outputs.CheckContent("k2", 0, "agent", "words"))
    (question, approve), (asked_rule, _call, allow) = runner.asked
    assert (question.rule, asked_rule) == (2, rule)
    approve(True, "fine")
    allow(None, "late")
    assert fed.take() == [
        inputs.ApprovalResult("k", True, "fine"),
        inputs.ContentChecked("k2", None, "late"),
    ]


def test_without_a_runner_everything_is_answered_at_once() -> None:
    fed = Fed()
    calls = ToolCalls(fed.host, None, (), dict)
    calls.executors[outputs.RunTool](outputs.RunTool("c1", "book", "{}"))
    calls.executors[outputs.RequestApproval](outputs.RequestApproval("k", "pay", "{}", 0))
    calls.executors[outputs.CheckContent](outputs.CheckContent("k2", 0, "agent", "words"))
    done, approval, checked = fed.take()
    assert isinstance(done, inputs.ToolDone)
    assert "error" in done.output
    assert approval == inputs.ApprovalResult("k", False, "nobody can be asked")
    assert checked == inputs.ContentChecked("k2", None, "nobody can be asked")
