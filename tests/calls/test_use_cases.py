# SPDX-License-Identifier: GPL-2.0-or-later
"""The services of ``dialplans/use_cases``, each called, with a model that uses its tools."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

import gateway as package
from tests.support.callee import CalledPhone, free_port
from tests.support.harness import GatewayStack
from tests.support.http_service import Answer, HttpService, http_service
from tests.support.official_types import check_client_event

FOLDER = Path(package.__file__).parents[1] / "dialplans" / "use_cases"
COLLEAGUE, PORT = "sip:colleague@127.0.0.1:5070", free_port()
WORLD: dict[str, Any] = {
    "dialplans": FOLDER / "routes",
    "more": f"""
[tools]
module = {json.dumps(str(FOLDER / "service_tools.py"))}
[outbound]
country = "DE"
allowed_prefixes = ["+49"]
""",
}
MONDAY = date.today() + timedelta(days=14 - date.today().weekday())
"""Not the next one: that may be today once midnight has passed."""


@pytest.fixture(scope="module", autouse=True)
def routes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The routes as they are, but for the address of the interpreter's colleague."""
    copied = tmp_path_factory.mktemp("use_cases") / "routes"
    shutil.copytree(FOLDER / "routes", copied)
    file = copied / "60-interpreter.toml"
    words = file.read_text()
    assert COLLEAGUE in words
    file.write_text(words.replace(COLLEAGUE, f"sip:colleague@127.0.0.1:{PORT}"))
    WORLD["dialplans"] = copied


@pytest.fixture(scope="module", autouse=True)
def text_model() -> Iterator[HttpService]:
    """The model that ``ask_expert`` asks."""
    with http_service() as service:
        os.environ["TEXT_MODEL_URL"] = service.url
        yield service
        del os.environ["TEXT_MODEL_URL"]


@pytest.mark.parametrize(
    ("number", "asked", "told", "disposition"),
    [
        (
            "610",
            [
                ("free_times", {"day": f"{MONDAY}"}),
                ("book_appointment", {"day": f"{MONDAY}", "at": "09:00", "name": "Ann"}),
                ("book_appointment", {"day": f"{MONDAY}", "at": "11:00", "name": "Ann"}),
            ],
            ['"10:30"', "Ann has an appointment on Monday", "11:00 is not free"],
            "booked",
        ),
        (
            "630",
            [
                ("note_answer", {"question": "sleep", "answer": "badly"}),
                ("note_answer", {"question": "pain", "answer": "none"}),
                ("note_answer", {"question": "medicine", "answer": "none"}),
            ],
            ["Ask next about pain", "Ask next about medicine", "the last question"],
            "completed",
        ),
        (
            "640",
            [
                ("check_code", {"code": "a7k-29"}),
                ("check_code", {"code": "A7K-92"}),
                ("place_order", {"code": "A7K-29", "pieces": 3}),
            ],
            [
                "A as in Alfa, 7, K as in Kilo, dash, 2, 9",
                "Read back what you heard: A as in Alfa, 7, K as in Kilo, dash, 9, 2",
                "3 of A7K-29, 13.50 euros",
            ],
            "ordered",
        ),
        ("650", [("ask_expert", {"question": "Why?"})], ["Because of the moon."], ""),
    ],
    ids=["appointments", "questionnaire", "orders", "hybrid"],
)
async def test_the_model_uses_its_tools(
    world: GatewayStack,
    text_model: HttpService,
    number: str,
    asked: list[tuple[str, dict[str, Any]]],
    told: list[str],
    disposition: str,
) -> None:
    """One function a response, each answered before the next."""
    reply = {"choices": [{"message": {"content": "Because of the moon."}}]}
    text_model.answers = [Answer(body=json.dumps(reply))]
    wanted = [
        {"kind": "nothing", "tools": [{"name": name, "arguments": json.dumps(given)}]}
        for name, given in asked
    ]
    spoken = {"kind": "pattern", "seconds": 0.4, "burst": True}
    first = [spoken] if number == "630" else []  # the disclosure is a response of its own
    world.behave(vad="off", answers=[*first, *wanted, spoken, {"kind": "silent"}])
    call = await world.dial(number)
    session = await world.session_of(call)
    responses = len(first) + len(asked) + 1
    await session.wait_until(lambda s: len(s.sent("response.done")) == responses, 30)
    outputs = [
        event.body["item"]["output"]
        for event in session.seen("conversation.item.create")
        if event.body["item"]["type"] == "function_call_output"
    ]
    assert len(outputs) == len(told)
    for output, words in zip(outputs, told, strict=True):
        assert words in output
    assert not session.errors
    await world.summary_at_end(call)
    record = await world.record(call)
    assert record["disposition"] == disposition


async def test_the_tutor_waits_for_a_learner(world: GatewayStack) -> None:
    world.behave(answers=[{"kind": "pattern", "seconds": 0.4, "burst": True}, {"kind": "silent"}])
    call = await world.dial("620")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 30)
    (update,) = session.seen("session.update")
    audio = update.body["session"]["audio"]
    assert audio["input"]["turn_detection"]["eagerness"] == "low"
    assert audio["output"]["speed"] == 0.85
    assert (await world.summary_at_end(call))["route"] == "tutor"


async def test_a_dictation_is_written_down_and_ends_by_a_phrase(world: GatewayStack) -> None:
    """Its session only transcribes: audio goes up, and nothing that would make it speak."""
    world.behave(vad="off", transcripts=["Dear Ann,", "see you. End of dictation!"])
    call = await world.dial("680")
    session = await world.session_of(call)
    (update,) = session.seen("session.update")
    check_client_event(update.body)
    assert update.body["session"] == {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcmu"},
                "transcription": {"model": "gpt-transcribe", "language": "en"},
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 500,
                },
            }
        },
    }
    assert session.path.endswith("/v1/realtime?intent=transcription")
    (created,) = session.sent("session.created")
    assert created.body["session"]["object"] == "realtime.transcription_session"
    call.rtp.press("5")
    await session.wait_until(lambda s: s.received_total > 16_000, 20)
    for turn in (1, 2):
        world.emulator.live[session.id].session.pretend_speech(100)
        await world.gateway.wait("call.caller_transcript", call=call.call_id, count=turn)
    await call.until(lambda one: one.byes)
    record = await world.record(call)
    assert record["ending"]["why"] == "agent_hangup"
    assert record["ending"]["detail"] == "the caller said: end of dictation"
    assert [(line["who"], line["text"]) for line in record["transcript"]] == [
        ("caller", "Dear Ann,"),
        ("caller", "see you. End of dictation!"),
    ]
    assert {event.type for event in session.client_events} == {"session.update"}
    assert not session.errors
    assert record["cost"]["transcription"]["turns"] == 2
    assert record["cost"]["responses"] == 0
    assert record["failovers"] == []


async def test_an_interpreter_between_caller_and_colleague(world: GatewayStack) -> None:
    """The greeting, the colleague's telephone, and a session for each ear."""
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 0.4, "burst": True}])
    phone = await CalledPhone().start(PORT)
    try:
        call = await world.dial("670")
        own = await world.session_of(call)
        colleague = await phone.called()
        assert colleague.user == "colleague"
        colleague.respond(200, sdp=True)
        for listener, language in (("caller", "English"), ("callee", "German")):
            line = await world.gateway.wait(
                "call.interpreter_up", call=call.call_id, listener=listener
            )
            (session,) = (one for one in world.emulator.sessions if one.id == line["session_id"])
            (update,) = session.seen("session.update")
            check_client_event(update.body)
            assert f"again in {language}" in update.body["session"]["instructions"]
        assert "I shall interpret for you" in str(own.seen("response.create")[0].body)
        await call.hang_up()
        await colleague.hung_up()
        record = await world.record(call)
    finally:
        await phone.stop()
    assert record["route"] == "interpreter"
    assert [one["outcome"] for one in record["transfers"]] == ["answered"]
