# SPDX-License-Identifier: GPL-2.0-or-later
"""Function tools on the virtual clock: checked, run, waited for, and answered together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import CallPlan, FallbackStep, FunctionPlan, ToolsPlan
from gateway.call.tools.commands import (
    CallCommand,
    CollectPlan,
    Destination,
    EndCall,
    HoldPlan,
    LanguagePlan,
    PressKeys,
    Say,
    SendMessage,
    TransferPlan,
    TransferTo,
)
from gateway.realtime.events import AgentTranscript, CreateItem, CreateResponse, UpdateSession
from tests.support.call_scene import SPEECH, Scene, audio, audio_done, created, done, key, said


def _picky(arguments: str) -> str:
    return "" if "room" in arguments else "arguments: 'room' is a required property"


ROOM = '{"room": 1}'
PLAN = CallPlan(
    "route",
    Codec.PCMU,
    tools=ToolsPlan(
        functions={
            "price": FunctionPlan(check=_picky, timeout=5.0),
            "search": FunctionPlan(timeout=9.0, filler_delay=2.0, filler_text="One moment."),
            "book": FunctionPlan(timeout=9.0, filler_delay=2.0, filler_sound="chime"),
        },
        language=LanguagePlan({"de": "German"}, {"de": {"instructions": "Speak German."}}),
        collect_digits=CollectPlan(True, timeout=5.0, max_digits=8),
        hold=HoldPlan(True),
        transfer=TransferPlan((Destination("desk", "tel:1"),)),
    ),
)


def outputs_of(scene: Scene) -> dict[str, Any]:
    """What the model was told of each of its calls."""
    items = [one.item for one in scene.sent if isinstance(one, CreateItem)]
    return {
        one["call_id"]: json.loads(one["output"])
        for one in items
        if one["type"] == "function_call_output"
    }


def talking(plan: CallPlan = PLAN) -> Scene:
    """A call in which the model is making a response."""
    scene = Scene(plan).up()
    scene.at(1.0, created("r1"))
    return scene


def test_nothing_runs_before_the_response_is_complete() -> None:
    for status, ran in (("completed", True), ("cancelled", False), ("incomplete", False)):
        scene = talking()
        seen = scene.do(done("r1", status, [("price", "c1", '{"room": 1}')]))
        assert ("run price c1 " + '{"room": 1}' in seen) is ran


def test_results_of_one_response_go_together_and_then_one_response() -> None:
    scene = talking()
    calls = [("price", "c1", '{"room": 1}'), ("search", "c2"), ("price", "c3", "{}")]
    seen = scene.do(done("r1", calls=calls))
    assert seen == ['run price c1 {"room": 1}', "run search c2 {}"]
    assert scene.at(1.5, inputs.ToolDone("c2", "{}")) == []
    # c3 was refused at once; it waits for the others, as results of the same response.
    assert scene.at(1.8, inputs.ToolDone("c1", '{"euros": 80}')) == [
        "output c3",
        "output c2",
        "output c1",
        "create",
    ]
    assert "required property" in outputs_of(scene)["c3"]["error"]
    assert [one.outcome for one in scene.record.actions.tools] == ["done", "done", "refused"]


def test_a_bad_call_alone_is_answered_at_once() -> None:
    scene = talking()
    assert scene.do(done("r1", calls=[("price", "c1")])) == ["output c1", "create"]
    assert "required property" in outputs_of(scene)["c1"]["error"]
    assert "tool_refused" in scene.events


def test_a_late_function_is_answered_for_and_its_result_dropped() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("price", "c1", '{"room": 1}'), ("search", "c2")]))
    scene.at(2.0, inputs.ToolDone("c2", "{}"))
    assert scene.at(6.0)[-3:] == ["output c2", "output c1", "create"]
    assert outputs_of(scene)["c1"] == {"error": "no result within 5 s"}
    assert scene.do(inputs.ToolDone("c1", "{}")) == []


def test_the_model_talks_on_while_a_function_runs() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("price", "c1", '{"room": 1}')]))
    # The caller speaks, and the model answers, as if nothing ran.
    scene.at(2.0, SPEECH, created("r2"), audio("r2", "i2", 200))
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["output c1"], "one response at a time"
    assert scene.do(audio_done("r2", "i2"), done("r2")) == ["create"]


def test_words_for_a_caller_who_waits() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("search", "c1")]))
    assert scene.at(2.9) == []
    assert scene.at(3.1) == ["create ['instructions', 'tools']"]
    assert scene.requests[-1].response == {
        "instructions": "Say exactly: One moment.",
        "tools": [],
    }
    scene.do(created("r2"), audio("r2", "i2", 400), audio_done("r2", "i2"), done("r2"))
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["output c1", "create"]
    assert scene.at(8.0) == [], "they are told once"


def test_no_words_while_the_model_speaks_anyway() -> None:
    scene = talking()
    scene.do(audio("r1", "i1", 5000), audio_done("r1", "i1"), done("r1", calls=[("search", "c1")]))
    scene.listen(3000)
    assert "tool_slow" in scene.events
    assert scene.requests == []


def test_words_when_the_model_has_said_its_own_and_the_caller_waits_on() -> None:
    scene = talking()
    scene.do(audio("r1", "i1", 2500), audio_done("r1", "i1"), done("r1", calls=[("search", "c1")]))
    scene.listen(2600)
    assert scene.requests == []
    assert scene.at(4.9) == []
    assert scene.at(5.2) == ["create ['instructions', 'tools']"]
    assert scene.events.count("tool_slow") == 1


def test_a_sound_for_a_caller_who_waits_ends_with_the_result_or_the_model() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("book", "c1")]))
    assert scene.at(3.1) == ["sound chime"]
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["sound", "output c1", "create"]
    scene = talking()
    scene.do(done("r1", calls=[("book", "c1")]))
    scene.at(3.1, SPEECH, created("r2"))
    assert scene.do(audio("r2", "i2", 200)) == ["sound", "play 200"]
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["output c1"]


def test_an_action_takes_the_place_of_a_waiting_sound() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("book", "c1")]))
    scene.at(3.1, created("r2"), done("r2", calls=[("hold", "c2", '{"seconds": 9}')]))
    assert "sound chime" in scene.seen
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["output c1", "create"], "music goes on"


def test_a_waiting_sound_ends_with_the_result_while_an_operator_presses_keys() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("book", "c1")]))
    scene.at(3.1, inputs.ToolRequest(PressKeys("123")))
    assert scene.seen[-2:] == ["sound chime", "press 1 auto"]
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["sound", "output c1", "create"]


def test_nothing_more_runs_than_eight() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("search", f"c{n}") for n in range(9)]))
    assert sum(words.startswith("run ") for words in scene.seen) == 8
    for n in range(8):
        scene.do(inputs.ToolDone(f"c{n}", "{}"))
    assert "8 functions are running already" in outputs_of(scene)["c8"]["error"]


def test_another_language() -> None:
    scene = talking()
    seen = scene.do(done("r1", calls=[("set_language", "c1", '{"language": "German"}')]))
    assert seen == ["session.update", "output c1", "create"]
    assert UpdateSession({"instructions": "Speak German."}) in scene.sent
    assert outputs_of(scene)["c1"] == {"status": "done", "language": "German"}
    scene = talking()
    seen = scene.do(done("r1", calls=[("set_language", "c1", '{"language": "fr"}')]))
    assert seen == ["output c1", "create"]
    assert outputs_of(scene)["c1"]["error"] == "language 'fr' is not offered; there are: de"


def test_a_session_that_takes_over_is_told_of_the_language_and_of_results() -> None:
    scene = talking(
        replace(PLAN, server=replace(PLAN.server, fallback=(FallbackStep("reconnect", 10.0, ""),)))
    )
    calls = [("set_language", "c1", '{"language": "de"}'), ("search", "c2"), ("price", "c3", ROOM)]
    scene.do(done("r1", calls=calls))
    scene.do(inputs.ToolDone("c2", "{}"), inputs.SessionClosed(1011, "oops"))
    told = scene.do(inputs.SessionReady("sess_2"))
    assert told == ["session.update", "function_call", "function_call", "function_call"]
    assert scene.do(inputs.ToolDone("c3", "{}")) == [
        "output past_c1",
        "output past_c2",
        "output past_c3",
        "create",
    ]


def test_no_id_in_a_seed_is_longer_than_services_take() -> None:
    again = (FallbackStep("reconnect", 10.0, ""),)
    scene = talking(replace(PLAN, server=replace(PLAN.server, fallback=again)))
    given = "chatcmpl-tool-0123456789abcdef0123456789abcdef"
    scene.do(done("r1", calls=[("search", given)]))
    scene.do(inputs.ToolDone(given, "{}"), inputs.SessionClosed(1011, "oops"))
    scene.do(inputs.SessionReady("sess_2"))
    ids = [
        str(command.item["call_id"])
        for command in scene.sent
        if isinstance(command, CreateItem) and command.item["type"] == "function_call"
    ]
    assert ids == ["past_56789abcdef0123456789abcdef"]
    assert len(ids[0]) == 32


def test_calls_of_a_lost_session_are_told_apart_from_those_of_the_next_with_the_same_ids() -> None:
    """Their results come in any order; the next session knows its predecessors' calls as it was
    told of them."""
    again = (FallbackStep("reconnect", 10.0, ""),)
    scene = talking(replace(PLAN, server=replace(PLAN.server, fallback=again)))
    first = scene.do(done("r1", calls=[("search", "c1", '{"for": 1}')]))
    assert first == ['run search c1 {"for": 1}']
    tools = ["c1"]
    for number in (2, 3):
        scene.do(inputs.SessionClosed(1011, "oops"), inputs.SessionReady(f"sess_{number}"))
        calls = [("search", "c1", f'{{"for": {number}}}')]
        ran = scene.do(created("r1"), done("r1", calls=calls))
        tools.append(ran[0].split()[2])
        assert ran == [f'run search {tools[-1]} {{"for": {number}}}']
    assert len(set(tools)) == 3
    seeded = [dict(one.item) for one in scene.sent if isinstance(one, CreateItem)]
    seeded = [one for one in seeded if one["type"] == "function_call"][-2:]
    assert [one["arguments"] for one in seeded] == ['{"for": 1}', '{"for": 2}']
    ids = {"c1", *(str(one["call_id"]) for one in seeded)}
    assert len(ids) == 3, "the session has made a call of that id itself"
    scene.do(*(inputs.ToolDone(one, f'"{one}"') for one in (tools[1], tools[2], tools[0])))
    assert outputs_of(scene) == {
        "c1": tools[2],
        seeded[0]["call_id"]: tools[0],
        seeded[1]["call_id"]: tools[1],
    }
    scene.do(inputs.SessionClosed(1011, "oops"), inputs.SessionReady("sess_4"))
    items = [dict(one.item) for one in scene.sent if isinstance(one, CreateItem)][-6:]
    assert [one["type"] for one in items] == 3 * ["function_call"] + 3 * ["function_call_output"]
    assert len({one["call_id"] for one in items[:3]}) == 3
    results = {one["call_id"]: json.loads(one["output"]) for one in items[3:]}
    assert [results[one["call_id"]] for one in items[:3]] == tools


def test_an_application_answers_calls_of_a_lost_session_under_the_ids_that_it_saw() -> None:
    again = (FallbackStep("reconnect", 10.0, ""),)
    tools = replace(PLAN.tools, application=True)
    scene = talking(replace(PLAN, tools=tools, server=replace(PLAN.server, fallback=again)))
    for number in (2, 3):
        scene.do(created("r1"), done("r1", calls=[("theirs", f"c{number}"), ("search", "c9")]))
        scene.do(inputs.SessionClosed(1011, "oops"), inputs.SessionReady(f"sess_{number}"))
    items = [dict(one.item) for one in scene.sent if isinstance(one, CreateItem)][-4:]
    assert [one["call_id"] for one in items] == ["c2", "c9", "c3", "c9"]
    assert scene.do(inputs.ToolDone("s1_c9", "{}")) == ["output c9", "create"]


@pytest.mark.parametrize(
    ("wanted", "keys", "at", "result"),
    [
        ({"digits": 4}, "1234", 2.0, {"digits": "1234", "ended_by": "full"}),
        ({}, "12#", 2.0, {"digits": "12", "ended_by": "terminator"}),
        ({"terminator": "*"}, "1#*", 2.0, {"digits": "1#", "ended_by": "terminator"}),
        ({}, "12", 7.1, {"digits": "12", "ended_by": "timeout"}),
        ({"seconds": 2}, "12", 4.1, {"digits": "12", "ended_by": "timeout"}),
        ({}, "", 6.1, {"digits": "", "ended_by": "timeout"}),
    ],
)
def test_digits_that_the_model_asked_for(
    wanted: dict[str, Any], keys: str, at: float, result: dict[str, str]
) -> None:
    scene = talking()
    scene.do(done("r1", calls=[("collect_digits", "c1", json.dumps(wanted))]))
    seen = scene.at(2.0, *map(key, keys)) + scene.at(at)
    assert seen[-2:] == ["output c1", "create"]
    assert outputs_of(scene)["c1"] == result
    assert not [words for words in scene.seen if words.startswith("item ")], "no message of theirs"


def test_keys_are_messages_again_after_that() -> None:
    scene = talking()
    scene.do(done("r1", calls=[("collect_digits", "c1", '{"digits": 1}')]), key("7"))
    scene.at(9.0, key("5"), key("#"))
    assert "item The caller pressed 5 on the telephone keypad." in scene.seen


def test_time_for_digits_begins_when_the_question_was_heard() -> None:
    scene = talking()
    scene.do(audio("r1", "i1", 8000), audio_done("r1", "i1"))
    scene.do(done("r1", calls=[("collect_digits", "c1")]))
    scene.listen(9000)
    assert "output c1" not in scene.seen
    scene.at(scene.now + 6.0)
    assert outputs_of(scene)["c1"]["ended_by"] == "timeout"


def test_private_digits_are_in_no_record() -> None:
    scene = talking(
        CallPlan(
            "route", Codec.PCMU, tools=ToolsPlan(collect_digits=CollectPlan(True, private=True))
        )
    )
    scene.do(done("r1", calls=[("collect_digits", "c1", '{"digits": 4}')]))
    scene.do(*map(key, "7391"))
    assert outputs_of(scene)["c1"]["digits"] == "7391"
    assert "****" in json.dumps(scene.record.as_json())
    assert "7391" not in json.dumps(scene.record.as_json())
    assert not [one for one in scene.notes if one.fields.get("digit") in list("7391")]
    scene.do(
        created("r2"), said(AgentTranscript("r2", "i2", 0, "Is it 73 91, seven three nine one?"))
    )
    read_back = scene.record.as_json()["transcript"][-1]
    assert read_back["text"] == "Is it ****, ****?"


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (Say("Hello."), ["create ['instructions', 'tools']"]),
        (SendMessage("The caller is a guest."), ["item The caller is a guest."]),
        (TransferTo("desk", ""), ["refer tel:1"]),
        (EndCall(""), ["close 1000 application", "bye 16"]),
    ],
)
def test_what_a_function_does_to_its_call(act: CallCommand, seen: list[str]) -> None:
    scene = Scene(PLAN).up()
    did = scene.at(2.0, inputs.ToolRequest(act))
    assert did[: len(seen)] == seen or seen[0] in did


def test_a_function_that_ends_the_call_is_heard_out() -> None:
    scene = Scene(PLAN).up()
    scene.at(1.0, inputs.ToolRequest(EndCall("Goodbye.")))
    assert isinstance(scene.sent[-1], CreateResponse)
    scene.do(created("r1"), audio("r1", "i1", 600), audio_done("r1", "i1"), done("r1"))
    scene.listen(700)
    assert scene.heard_ms == 600
    scene.at(3.0, inputs.LegEnded(200, "OK", "", "", True))
    assert scene.ending == ("operator", "application", 200)


@pytest.mark.parametrize("spoke", [False, True])
def test_a_model_that_ends_the_call_as_well_takes_no_words_of_a_function(spoke: bool) -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), inputs.ToolRequest(EndCall("Goodbye.")))
    if spoke:
        scene.do(audio("r1", "i1", 200), audio_done("r1", "i1"))
    seen = scene.do(done("r1", calls=[("end_call", "c1")]))
    assert seen == ["output c1", "create ['instructions', 'tools']"]
    scene.do(created("r2"), audio("r2", "i2", 600), audio_done("r2", "i2"), done("r2"))
    scene.listen(900)
    assert scene.heard_ms == 600 + 200 * spoke
    scene.at(3.0, inputs.LegEnded(200, "OK", "", "", True))
    assert scene.ending == ("operator", "application", 200)
