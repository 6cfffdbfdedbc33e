# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers that use ids again, leave them out, or tell of a beginning or an end twice, or of the end
first: each rule holds, each function runs once, and nobody waits for what is over."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import (
    ApprovalRule,
    CallPlan,
    ContentPlan,
    DisclosurePlan,
    FallbackStep,
    FunctionPlan,
    GuardrailPlan,
    HoldWaitPlan,
    InterruptionPlan,
    LimitsPlan,
    MachineDetectionPlan,
    ServerPlan,
    SilencePlan,
    ToolsPlan,
    UserIdlePlan,
)
from gateway.call.tools.commands import CollectPlan, DispositionPlan, HoldPlan
from gateway.realtime.events import (
    AgentTranscriptDelta,
    InputCommitted,
    InputTranscribed,
    ItemDeleted,
    OtherEvent,
    ResponseDone,
    SpeechStarted,
    SpeechStopped,
)
from tests.support.call_scene import (
    ACK,
    Scene,
    audio,
    audio_done,
    closed,
    created,
    done,
    error,
    key,
    said,
)

PLAN = CallPlan("r", Codec.PCMU, silence=SilencePlan(6.0), limits=LimitsPlan(rtp_timeout=0))
FUNCTIONS = replace(PLAN, tools=ToolsPlan(functions={"f": FunctionPlan()}))
BOMB, CAKE = "A bomb is ", "A cake is "


def guarded(speaker: str, **more: Any) -> CallPlan:
    rule = GuardrailPlan(speaker, re.compile("bomb", re.I), replacement="No bomb.", name="g")
    return replace(PLAN, content=ContentPlan(guardrails=(rule,)), **more)


def transcribed(item: str, words: str) -> inputs.ServerEventReceived:
    return said(InputTranscribed(item, words))


ORDERS = {
    "cwad": "as it should be",
    "ccwad": "created twice",
    "cwacd": "created twice, late",
    "cwadd": "done twice",
    "wadc": "done first",
    "dcwa": "done before created",
    "cdwa": "done before the audio",
    "wacd": "audio first",
    "wad": "never created",
    "Cwad": "without an id at first",
    "CWAD": "without any id",
    "cWAd": "audio without ids",
    "cwaD": "done without an id",
}
"""Events of one response; in capitals those without ids."""

AGAIN = {"cwad", "ccwad", "cwacd", "cwadd", "CWAD", "cWAd", "cwaD"}
"""With these orders each response can be told from the one before, though it has the same id."""


def respond(
    scene: Scene, order: str, words: str = CAKE, *, of: str = "r1", asked: Any = None
) -> list[str]:
    """One response of 200 ms; returns what was done."""
    seen: list[str] = []
    for event in order:
        response = of if event.islower() else ""
        item = f"item-{of}" if event.islower() else ""
        happens = {
            "c": [created(response, asked)],
            "w": [said(AgentTranscriptDelta(response, item, 0, words))],
            "a": [audio(response, item, 200), audio_done(response, item)],
            "d": [done(response)],
        }
        seen += scene.do(*happens[event.lower()])
    return seen + scene.listen(300)


def name_of(turn: int, order: str) -> str:
    """The id of the response to this turn."""
    return "r" if order in AGAIN else f"r{turn}"


def replaced(scene: Scene) -> None:
    """The server says what was requested in place of an answer, and it is heard."""
    heard, name = scene.heard_ms, f"phrase-{len(scene.requests)}"
    respond(scene, "cwad", "No bomb.", of=name, asked=scene.requests[-1])
    assert scene.heard_ms - heard == 200


in_each_order = pytest.mark.parametrize("order", ORDERS, ids=ORDERS.values())
whole = [order for order in ORDERS if order not in ("dcwa", "cdwa")]
in_each_whole_order = pytest.mark.parametrize("order", whole, ids=[ORDERS[one] for one in whole])
"""Where its end comes before all of its sound, a response is asked for again."""


@in_each_whole_order
def test_an_answer_is_heard_once_and_over_when_it_is(order: str) -> None:
    scene = Scene(PLAN).up()
    for turn in range(3):
        heard = scene.heard_ms
        scene.do(said(InputCommitted(f"u{turn}")))
        respond(scene, order, of=name_of(turn, order))
        assert scene.heard_ms - heard == 200
    scene.at(scene.now + 20.0)
    assert "silence_detected" not in scene.events
    assert scene.requests == []
    assert scene.record.ending is None


@in_each_order
def test_the_caller_interrupts_and_hears_no_more_of_it(order: str) -> None:
    scene = Scene(PLAN).up()
    for turn in range(3):
        name = name_of(turn, order)
        before, _, after = order.lower().partition("a")
        respond(scene, order[: len(before)], of=name)
        scene.do(audio(name, f"item-{name}", 200))
        scene.listen(60)
        assert "flush" in scene.do(said(SpeechStarted(f"u{turn}", 0)))
        late = scene.do(audio(name, f"item-{name}", 200))
        assert not [one for one in late if one.startswith("play")]
        scene.do(said(SpeechStopped(f"u{turn}", 900)), said(InputCommitted(f"u{turn}")))
        respond(scene, after, of=name)


@in_each_order
def test_forbidden_words_are_not_heard(order: str) -> None:
    scene = Scene(guarded("agent")).up()
    for turn in range(3):
        heard = scene.heard_ms
        respond(scene, order, BOMB, of=name_of(turn, order))
        assert scene.heard_ms == heard
        replaced(scene)
    assert len(scene.record.content.guardrails) == 3
    heard = scene.heard_ms
    respond(scene, order, of=name_of(3, order))
    assert scene.heard_ms == heard + 200


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "no ids"])
@in_each_whole_order
def test_each_turn_of_the_caller_is_judged_by_its_own_words(order: str, ids: bool) -> None:
    scene = Scene(guarded("caller")).up()
    for turn, asked in enumerate([BOMB, CAKE, BOMB, CAKE]):
        item, heard = f"u{turn}" if ids else "", scene.heard_ms
        scene.do(said(SpeechStarted(item, 0)), said(SpeechStopped(item, 500)))
        scene.do(said(InputCommitted(item)), transcribed(item, asked), transcribed(item, asked))
        respond(scene, order, of=name_of(turn, order))
        if asked == CAKE:
            assert scene.heard_ms == heard + 200
        elif order[0] in "cC":  # what nobody announces answers nothing
            assert scene.heard_ms == heard
        if asked == BOMB:
            replaced(scene)
    assert len(scene.record.content.guardrails) == 2


@in_each_whole_order
def test_an_answer_to_words_that_are_known_late_is_stopped(order: str) -> None:
    scene = Scene(guarded("caller")).up()
    scene.do(said(SpeechStarted("u", 0)), said(SpeechStopped("u", 500)), said(InputCommitted("u")))
    before, _, after = order.partition("a" if "a" in order else "A")
    respond(scene, before, of="r1")
    response, item = ("", "") if "A" in order else ("r1", "item-r1")
    scene.do(audio(response, item, 2000))
    assert "flush" in scene.do(transcribed("u", BOMB))
    assert "play" not in " ".join(scene.do(audio(response, item, 200)))
    respond(scene, after, of="r1")
    replaced(scene)


@in_each_whole_order
def test_the_disclosure_is_protected(order: str) -> None:
    turns = InterruptionPlan(by_gateway=True)
    scene = Scene(replace(PLAN, disclosure=DisclosurePlan("Recorded."), interruptions=turns)).up()
    before, _, _ = order.partition("a" if "a" in order else "A")
    respond(scene, before, of="r1", asked=scene.requests[-1])
    scene.do(audio("" if "A" in order else "r1", "" if "A" in order else "item-r1", 200))
    scene.listen(60)
    flushed = "flush" in scene.do(said(SpeechStarted("u", 0)))
    assert flushed is (order[0] not in "cC"), "what nobody announces is not known to be it"


def test_ids_of_the_session_before_mean_nothing_in_another() -> None:
    plan = guarded("agent", server=ServerPlan(fallback=(FallbackStep("reconnect", 8.0),)))
    scene = Scene(plan)
    scene.do(inputs.SessionReady("sess_1"), ACK)
    for session in range(2):
        scene.do(said(InputCommitted("u1")), transcribed("u1", f"Number {session}?"))
        respond(scene, "cwad", BOMB)
        assert scene.heard_ms == 200 * session
        replaced(scene)
        scene.do(closed(1006), inputs.SessionReady("sess_2"))
    told = [one["text"] for one in scene.record.as_json()["transcript"] if one["who"] == "caller"]
    assert told == ["Number 0?", "Number 1?"]


RECONNECT = replace(PLAN, server=ServerPlan(fallback=(FallbackStep("reconnect", 8.0),)))
CALLS = replace(
    RECONNECT,
    tools=ToolsPlan(
        functions={"f": FunctionPlan()},
        collect_digits=CollectPlan(True, timeout=5.0, max_digits=8),
        hold=HoldPlan(True),
    ),
)
NOTICE = replace(
    RECONNECT,
    interruptions=InterruptionPlan(
        by_gateway=True, uninterruptible_patterns=(re.compile("recorded"),)
    ),
)
MACHINES = MachineDetectionPlan(
    {"voicemail": "log"}, voicemail_patterns=(re.compile("leave a message"),)
)
WAITS = HoldWaitPlan(True, transcribed=True)
REQUEST = {"type": "mcp_approval_request", "id": "m1", "server_label": "crm", "name": "get"}
TOO_LONG = "Audio content of 200ms is already shorter than 300ms"


def with_approval(tool: str) -> CallPlan:
    rule = ApprovalRule(tool, "ask_http", timeout=10.0)
    return replace(CALLS, tools=replace(CALLS.tools, approvals=(rule,)))


def speaks(item: str) -> inputs.ServerEventReceived:
    return said(SpeechStarted(item, 0))


def say(scene: Scene, of: str, words: str, ms: int) -> None:
    scene.do(created(f"r{of}"), said(AgentTranscriptDelta(f"r{of}", f"i{of}", 0, words)))
    scene.do(audio(f"r{of}", f"i{of}", ms))


def is_cut(scene: Scene, of: str) -> None:
    say(scene, of, "One, two, three.", 1000)
    scene.listen(300)
    scene.do(speaks(f"u{of}"), done(f"r{of}", "cancelled"), said(SpeechStopped(f"u{of}", 900)))


def is_heard(scene: Scene, of: str) -> None:
    say(scene, of, "Four, five, six.", 1000)
    scene.do(audio_done(f"r{of}", f"i{of}"), done(f"r{of}"))
    scene.listen(3000)


def is_said(scene: Scene, of: str) -> None:
    say(scene, of, "One, two, three.", 1000)
    scene.listen(300)


def is_cut_by_a_key(scene: Scene, of: str) -> None:
    is_said(scene, of)
    scene.do(closed(1006), key("5"))


def is_cut_with_what_still_plays(scene: Scene, of: str) -> None:
    say(scene, of, "Four, five, six.", 1000)
    scene.listen(200)
    scene.do(speaks(f"u{of}"))


def tells_of_the_recording(scene: Scene, of: str) -> None:
    say(scene, of, "This is recorded.", 1000)
    scene.listen(300)


def tells_something_else(scene: Scene, of: str) -> None:
    scene.listen(1000)
    say(scene, of, "It rains.", 1000)
    scene.listen(300)
    scene.do(speaks(f"u{of}"))


def tells_something_else_at_once(scene: Scene, of: str) -> None:
    say(scene, of, "It rains.", 200)
    scene.do(speaks(f"u{of}"), said(SpeechStopped(f"u{of}", 900)))
    scene.listen(1200)
    scene.do(audio(f"r{of}", f"i{of}", 1000))
    scene.listen(300)
    scene.do(speaks(f"v{of}"))


def has_no_sound(scene: Scene, of: str) -> None:
    scene.do(created(f"r{of}"), done(f"r{of}"))


def is_cut_and_too_long(scene: Scene, of: str) -> None:
    is_cut(scene, of)
    scene.do(error("invalid_value", scene.sent[-1], TOO_LONG))


def asks_for_approval(scene: Scene, of: str) -> None:
    scene.do(said(OtherEvent("response.output_item.done", {"item": REQUEST | {"id": f"m{of}"}})))


def is_a_turn(scene: Scene, of: str) -> None:
    scene.do(speaks(f"u{of}"))
    scene.at(scene.now + 1.0, said(SpeechStopped(f"u{of}", 1000)), transcribed(f"u{of}", "Hello."))


def asks_for_a_message(scene: Scene, of: str) -> None:
    scene.do(speaks(f"u{of}"))
    scene.at(scene.now + 1.0, said(SpeechStopped(f"u{of}", 1000)))
    scene.do(transcribed(f"u{of}", "Do you want to leave a message?"))


def speaks_as_long_again(scene: Scene, of: str) -> None:
    for item in (f"u{of}", f"v{of}"):
        scene.do(speaks(item))
        scene.at(scene.now + 1.0, said(SpeechStopped(item, 1000)))


def says_the_same_again(scene: Scene, of: str) -> None:
    scene.do(*[transcribed(f"{item}{of}", "Please hold the line.") for item in "uv"])


def is_deleted(scene: Scene, of: str) -> None:
    scene.do(said(ItemDeleted(f"u{of}")))


def calls(scene: Scene, of: str, name: str = "f", given: str = "{}") -> None:
    scene.do(created(f"r{of}"), done(f"r{of}", calls=[(name, f"c{of}", given)]))


def has_a_function_run(scene: Scene, of: str) -> None:
    calls(scene, of)
    run = next(one for one in reversed(scene.seen) if one.startswith("run f "))
    scene.do(inputs.ToolDone(run.split()[2], "done"))


def has_one_run_before_the_first_is_done(scene: Scene, of: str) -> None:
    has_a_function_run(scene, of)
    scene.do(inputs.ToolDone("c1", "the first"))


def wants_digits(scene: Scene, of: str) -> None:
    calls(scene, of, "collect_digits")


def has_one_run_before_the_digits_come(scene: Scene, of: str) -> None:
    has_a_function_run(scene, of)
    scene.do(*map(key, "12#"))


def holds(scene: Scene, of: str) -> None:
    calls(scene, of, "hold", '{"seconds": 9}')


def has_one_run_on_hold(scene: Scene, of: str) -> None:
    has_a_function_run(scene, of)
    scene.at(scene.now + 60.0)


def is_decided(scene: Scene) -> None:
    """The service says yes to what it was asked last, then to what it was asked first."""
    for asked in reversed(scene.asked):
        scene.do(inputs.ApprovalResult(asked, True))


def calls_and_is_decided(scene: Scene, of: str) -> None:
    calls(scene, of)
    is_decided(scene)


def asks_and_is_decided(scene: Scene, of: str) -> None:
    asks_for_approval(scene, of)
    is_decided(scene)


@pytest.mark.parametrize(
    ("plan", "first", "then"),
    [
        (RECONNECT, is_cut, is_heard),
        (RECONNECT, is_cut_by_a_key, is_heard),
        (RECONNECT, is_said, is_cut_with_what_still_plays),
        (NOTICE, tells_of_the_recording, tells_something_else),
        (NOTICE, tells_of_the_recording, tells_something_else_at_once),
        (RECONNECT, is_heard, has_no_sound),
        (RECONNECT, is_cut_and_too_long, is_cut_and_too_long),
        (RECONNECT, asks_for_approval, asks_for_approval),
        (replace(RECONNECT, machine_detection=MACHINES), is_a_turn, asks_for_a_message),
        (replace(RECONNECT, hold_wait=WAITS), speaks_as_long_again, says_the_same_again),
        (RECONNECT, is_a_turn, is_deleted),
        (CALLS, has_a_function_run, has_a_function_run),
        (CALLS, calls, has_one_run_before_the_first_is_done),
        (CALLS, wants_digits, has_one_run_before_the_digits_come),
        (CALLS, holds, has_one_run_on_hold),
        (with_approval("f"), calls, calls_and_is_decided),
        (with_approval("crm_get"), asks_for_approval, asks_and_is_decided),
    ],
)
def test_another_session_does_the_same_with_the_ids_of_the_one_before_as_with_others(
    plan: CallPlan, first: Callable[[Scene, str], None], then: Callable[[Scene, str], None]
) -> None:
    told = []
    for ids in "12":
        scene = Scene(plan).up()
        first(scene, "1")
        scene.do(closed(1006), inputs.SessionReady("sess_2"))
        before = len(scene.seen), scene.heard_ms
        then(scene, ids)
        scene.listen(1000)
        seen = [
            re.sub(r"(?<![^\W_])([cimruv])2", r"\g<1>1", one) for one in scene.seen[before[0] :]
        ]
        words = [
            (one["who"], re.sub("2$", "1", one["text"]), one.get("heard"))
            for one in scene.record.as_json()["transcript"]
        ]
        told.append((seen, scene.heard_ms - before[1], words, scene.events))
    assert told[0] == told[1]


def test_a_function_that_is_told_of_again_runs_once_and_is_answered_once() -> None:
    calls = [("f", "c1"), ("f", "c1"), ("f", "c2")]
    for result_first in (False, True):
        scene = Scene(FUNCTIONS).up()
        results = [inputs.ToolDone("c1", "{}"), inputs.ToolDone("c2", "{}")]
        again = [done("r1", calls=calls), created("r2"), done("r2", calls=calls[:1])]
        scene.do(created("r1"), done("r1", calls=calls))
        scene.do(*(results + again[:1] if result_first else again + results))
        told = [one for one in scene.seen if one.startswith(("run", "output"))]
        assert told == ["run f c1 {}", "run f c2 {}", "output c1", "output c2"]


def test_a_decision_about_a_use_is_asked_for_once() -> None:
    rule = ApprovalRule("collect_digits", "ask_caller", timeout=4.0)
    collect = CollectPlan(True, timeout=2.0)
    scene = Scene(replace(PLAN, tools=ToolsPlan(collect_digits=collect, approvals=(rule,)))).up()
    scene.do(created("r1"), done("r1", calls=[("collect_digits", "c1")] * 3))
    scene.do(done("r2", calls=[("collect_digits", "c1")]))
    scene.do(created("r3", scene.requests[-1]), audio("r3", "i3", 200), done("r3"))
    scene.listen(100)
    scene.do(key("1"), key("4"), key("#"))
    assert scene.seen.count("output c1") == 1
    assert len(scene.requests) == 2


def test_a_model_that_asks_without_end_is_refused() -> None:
    rule = ApprovalRule("*", "ask_caller", timeout=4.0)
    scene = Scene(replace(PLAN, tools=ToolsPlan(approvals=(rule,)))).up()
    for number in range(40):
        item = {"type": "mcp_approval_request", "id": f"m{number}", "name": "n"}
        scene.do(said(OtherEvent("conversation.item.done", {"item": item})))
    assert len([one for one in scene.seen if one.startswith("approve")]) == 32
    for _ in range(8):
        scene.do(key("2"))
    assert len({one for one in scene.seen if one.startswith("approve")}) == 40
    assert scene.machine._call.conversation.control.dtmf_consumer is None


def test_hundreds_of_calls_in_one_response_are_all_answered() -> None:
    values = DispositionPlan(values=("good",))
    scene = Scene(replace(PLAN, tools=ToolsPlan(disposition=values))).up()
    calls = [("set_disposition", f"c{number}", '{"disposition": "good"}') for number in range(200)]
    scene.do(created("r1"), done("r1", calls=calls))
    outputs = [one for one in scene.seen if one.startswith("output")]
    assert sorted(outputs) == sorted(f"output c{number}" for number in range(200))
    assert len(scene.record.actions.tools) == 32
    assert len(scene.requests) == 1


def item_done(response: str, *items: dict[str, str]) -> inputs.ServerEventReceived:
    return said(ResponseDone(response, "completed", None, None, None, items, None))


@pytest.mark.parametrize("kind", ["reasoning", "computer_call", "function_call_output", "mcp_call"])
def test_responses_that_say_nothing_are_said_to_and_end(kind: str) -> None:
    """Also those that have the server call tools, one after the other, without end."""
    scene, served = Scene(PLAN).up(), 0
    scene.do(said(InputCommitted("u1")), created("r0"), item_done("r0", {"type": kind}))
    while scene.state.name == "TALKING" and scene.now < 60.0:
        while served < len(scene.requests):
            served += 1
            scene.do(created(f"r{served}", scene.requests[served - 1]))
            scene.do(item_done(f"r{served}", {"type": kind, "id": f"m{served}"}))
        scene.at(scene.now + 0.5)
        if scene.now % 20 == 0:
            scene.do(said(InputCommitted(f"u{scene.now}")), created("again"))
            scene.do(item_done("again", {"type": kind, "id": f"m{scene.now}"}))
    assert "response_failures_exceeded" in scene.events
    assert len(scene.requests) < 25
    assert "sound chime" in scene.seen


def test_a_click_is_no_answer() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 1), done("r1"))
    assert "response_without_audio" in scene.events


def test_a_model_that_wants_to_end_and_says_no_goodbye_gets_the_end() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), done("r1", calls=[("end_call", "c1")]))
    (goodbye,) = scene.requests
    scene.do(created("r2", goodbye), done("r2", calls=[("end_call", "c2")]))
    assert scene.requests == [goodbye], "and is not asked for it without end"
    assert "bye 16" in scene.seen


def test_the_end_of_a_turn_is_no_pause_in_which_a_session_is_replaced() -> None:
    """The caller's question would be in the old session, and nobody would answer it."""
    plan = replace(PLAN, server=ServerPlan(fallback=(FallbackStep("reconnect", 8.0),)))
    scene = Scene(plan)
    scene.do(inputs.SessionReady("sess_1", 600.0), ACK)
    scene.at(541.0, said(SpeechStarted("u1", 0)), inputs.StandbyReady("sess_2", None))
    scene.do(said(SpeechStopped("u1", 900)), said(InputCommitted("u1")))
    assert "take over" not in scene.do(transcribed("u1", "What is open?"))
    assert "take over" in respond(scene, "cwad")


def test_what_came_too_late_for_that_is_answered_by_the_other() -> None:
    scene = Scene(PLAN)
    scene.do(inputs.SessionReady("sess_1", 600.0), ACK)
    scene.at(596.0, said(SpeechStarted("u1", 0)), inputs.StandbyReady("sess_2", None))
    scene.do(said(SpeechStopped("u1", 900)))
    assert scene.at(597.5)[-1] == "create"


def test_what_a_server_never_ends_fills_no_memory() -> None:
    scene = Scene(PLAN).up()
    for number in range(300):
        scene.do(audio(f"r{number}", f"i{number}", 20), said(SpeechStarted("u", 0)))
        scene.do(audio(f"r{number}", f"late-{number}", 20), audio("r0", f"more-{number}", 20))
        scene.do(audio("endless", f"e{number}", 20))
        scene.listen(20)
    playback = scene.machine._call.conversation.control.playback
    assert len(playback._tracker._parts) <= 256
    assert max(len(cut.unplayed_items) for cut in playback._interrupted) <= 64
    assert len(scene.record.actions.interruptions) <= 500


@pytest.mark.parametrize("doubled", [InputCommitted("a"), SpeechStopped("a", 2000)])
def test_what_is_told_again_of_a_turn_that_was_answered_is_not_of_the_next(doubled: Any) -> None:
    plan = replace(PLAN, silence=SilencePlan(), interruptions=InterruptionPlan(by_gateway=True))
    scene = Scene(plan).up()
    scene.at(1.0, said(SpeechStarted("a", 1000)), said(SpeechStopped("a", 2000)))
    scene.do(said(InputCommitted("a")))
    scene.do(created("r1", scene.requests[-1]), audio("r1", "i1", 500), audio_done("r1", "i1"))
    scene.do(done("r1"))
    scene.listen(600)
    scene.do(said(SpeechStarted("b", 4000)))
    assert scene.do(said(doubled)) == []
    assert scene.do(said(SpeechStopped("b", 6000)), said(InputCommitted("b"))) == ["create"]


def says_to_its_end(scene: Scene, item: str, seconds: float) -> None:
    """A turn of the caller, of a server that tells no ``speech_stopped``."""
    scene.do(said(SpeechStarted(item, None)))
    scene.at(scene.now + seconds, said(InputCommitted(item)))


def test_a_silent_caller_is_prompted_where_no_end_of_speech_is_told() -> None:
    scene = Scene(replace(PLAN, idle=UserIdlePlan(10.0))).up()
    says_to_its_end(scene, "a", 1.0)
    scene.do(created("r1"), audio("r1", "i1", 500), audio_done("r1", "i1"), done("r1"))
    scene.listen(600)
    scene.at(scene.now + 11.0)
    assert "idle_prompted" in scene.events


def test_a_human_ends_a_wait_in_a_queue_where_no_end_of_speech_is_told() -> None:
    scene = Scene(replace(PLAN, hold_wait=HoldWaitPlan(enabled=True))).up()
    for held in (0.9, 0.9, 0.9, 0.9, 0.0):
        scene.at(scene.now + 1.0, inputs.SoundHeard(1.0, held, 0.2))
    says_to_its_end(scene, "a", 1.5)
    scene.at(scene.now + 2.0)
    (wait,) = scene.record.content.hold_waits
    assert wait.ended == "human"


def test_a_long_first_turn_is_a_voicemail_where_no_end_of_speech_is_told() -> None:
    watch = MachineDetectionPlan({"voicemail": "log"})
    scene = Scene(replace(PLAN, machine_detection=watch)).up()
    says_to_its_end(scene, "a", 9.0)
    assert [one.kind for one in scene.record.content.machine_detection] == ["voicemail"]
