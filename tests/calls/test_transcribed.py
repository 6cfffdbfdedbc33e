# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls whose session only transcribes: how they begin and end, and what they cost."""

from __future__ import annotations

import asyncio
import json
import wave
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.audio import Codec
from gateway.bridge.replay import read_lines, replay
from gateway.cli import main
from gateway.devtools.emulator.session_log import SessionRecord
from tests.calls.test_api import API, Client
from tests.calls.test_webhooks import hooks
from tests.support.black_boxes import written
from tests.support.callee import CalledPhone, free_port
from tests.support.harness import GatewayStack, eventually
from tests.support.http_service import HttpService, http_service
from tests.support.made_sounds import g711, tone
from tests.support.official_types import check_client_event
from tests.support.referred import dial
from tests.support.sip_phone import PhoneCall

PORT = free_port()


def _route(name: str, more: str = "") -> str:
    return f"""
[[route]]
name = "{name}"
to = "^{name}$"
records = {{ events = true, black_box = "always" }}
[route.transcription]
enabled = true
end_phrases = ["that is all"]
[route.session.audio.input.transcription]
model = "gpt-transcribe"
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[route.escape]
key = "0"
phrases = ["a human"]
to = ["anna"]
{more}
"""


MORE = API + '[access]\nunknown_sources = "allow"\n[outbound]\nmax_calls_per_minute = 60\n'
ROUTES = (
    _route("notes")
    + _route("short", "[route.limits]\nmax_call_duration = 4\n")
    + _route("spent", "[route.budget]\nper_call = 0.0000001\n")
    + _route("told", '[route.answer]\nmode = "immediate"\nsound = "WAV"\nplay_to_end = true\n')
)
CONSENT = g711(tone(700, 600), Codec.PCMU)


@pytest.fixture(scope="module")
def receiver() -> Iterator[HttpService]:
    """Who is told of calls."""
    with http_service() as service:
        yield service


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory, receiver: HttpService
) -> Iterator[GatewayStack]:
    """A world whose callers hear at first that they are transcribed."""
    folder = tmp_path_factory.mktemp("world")
    with wave.open(str(folder / "consent.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(Codec.PCMU.to_linear(CONSENT))
    routes = ROUTES.replace("WAV", str(folder / "consent.wav"))
    more = MORE + hooks(receiver.url, ["call.answered", "call.ended"])
    made = GatewayStack(folder / "own", more=more, routes=routes)
    runner.run(made.start())
    yield made
    runner.run(made.stop())


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The human."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


def valid(session: SessionRecord) -> None:
    """Every event of this session is one that the official types know; nothing asks for speech."""
    for seen in session.client_events:
        check_client_event(seen.body)
        assert seen.type == "session.update"
    assert not session.errors


async def says(world: GatewayStack, call: PhoneCall, session: SessionRecord) -> None:
    """The caller says the next of the transcripts."""
    await session.wait_until(lambda s: s.received_total > 1600, 20)
    world.emulator.live[session.id].session.pretend_speech(100)


@pytest.mark.parametrize(
    ("route", "words", "why"),
    [
        ("notes", "Fine, that is all.", "agent_hangup"),
        ("short", "Hello.", "max_duration"),
        ("spent", "Hello.", "budget"),
        ("notes", "Hello.", "remote_hangup"),
    ],
)
async def test_how_it_ends(world: GatewayStack, route: str, words: str, why: str) -> None:
    world.behave(vad="off", transcripts=[words])
    call = await world.dial(route)
    session = await world.session_of(call)
    await says(world, call, session)
    await world.gateway.wait("call.caller_transcript", call=call.call_id)
    if why == "remote_hangup":
        await call.hang_up()
    else:
        await call.until(lambda one: one.byes)
    record = await world.record(call)
    assert record["ending"]["why"] == why
    assert [(one["who"], one["text"]) for one in record["transcript"]] == [("caller", words)]
    assert record["cost"]["transcription"]["turns"] == 1
    assert float(record["cost"]["total"]) > 0
    valid(session)


@pytest.mark.parametrize("by", ["key", "word"])
async def test_a_human_takes_it(world: GatewayStack, callee: CalledPhone, by: str) -> None:
    world.behave(vad="off", transcripts=["Give me a human, please."])
    call = await dial(world, "notes")
    session = await world.session_of(call)
    if by == "key":
        call.rtp.press("0")
    else:
        await says(world, call, session)
    await callee.called()
    await world.gateway.wait("call.bridged", call=call.call_id)
    await call.hang_up()
    record = await world.record(call)
    assert [one["outcome"] for one in record["transfers"]] == ["answered"]
    valid(session)


async def test_it_is_told_logged_and_replayed(world: GatewayStack, receiver: HttpService) -> None:
    """Webhooks, the event log and the black box of a call that is only transcribed."""
    world.behave(vad="off", transcripts=["Two boxes, please."])
    call = await world.dial("notes")
    session = await world.session_of(call)
    await says(world, call, session)
    line = await world.gateway.wait("call.caller_transcript", call=call.call_id)
    await call.hang_up()
    record = await world.record(call)

    def told() -> dict[str, Any]:
        mine = (one.json for one in receiver.asked if one.json["data"]["call_id"] == line["call"])
        return {one["type"]: one["data"] for one in mine}

    await eventually(lambda: len(told()) == 2, "both events")
    assert told()["call.answered"]["route"] == "notes"
    assert told()["call.ended"]["why"] == "remote_hangup"
    log = world.records_folder / record["event_log"]["file"]
    await eventually(lambda: '"over":true' in log.read_text(), "the end of the event log")
    shown = CliRunner().invoke(main, ["events", str(log)]).output
    assert "Two boxes, please." in shown
    lines = [json.loads(one) for one in log.read_text().splitlines()]
    sessions = [one["event"]["session"] for one in lines if "session" in one.get("event", {})]
    assert {one["type"] for one in sessions} == {"transcription"}
    box = world.records_folder / record["black_box"]
    await eventually(lambda: "outputs.Finished" in written(box), "its end")
    assert list(replay(read_lines(box)).differences) == []


async def test_a_lost_session_is_replaced(world: GatewayStack) -> None:
    """The second one goes on where the first has ended; a local sound is heard at the start."""
    world.behave(vad="off", transcripts=["Hello."])
    call = await world.dial("told")
    first = await world.session_of(call)
    await call.rtp.until(lambda: CONSENT in call.rtp.heard)
    await says(world, call, first)
    await world.gateway.wait("call.caller_transcript", call=call.call_id)
    count = len(world.emulator.sessions)
    world.emulator.live[first.id].close(1011, drop=True)
    await eventually(lambda: len(world.emulator.sessions) > count, "a second session")
    second = world.emulator.sessions[-1]
    await says(world, call, second)
    await world.gateway.wait("call.caller_transcript", call=call.call_id, count=2)
    await call.hang_up()
    record = await world.record(call)
    assert [one["text"] for one in record["transcript"]] == ["Hello.", "Hello."]
    assert len(record["failovers"]) == 1
    valid(first)
    valid(second)


async def test_an_operator_reads_it_and_cannot_have_it_speak(world: GatewayStack) -> None:
    """Commands for a model that speaks are refused; the words are in the API, during and after."""
    world.behave(vad="off", transcripts=["Hello."])
    call = await world.dial("notes")
    session = await world.session_of(call)
    await says(world, call, session)
    line = await world.gateway.wait("call.caller_transcript", call=call.call_id)
    path = f"/api/v1/calls/{line['call']}"
    async with Client(world, "operator") as http:
        for what in ("say", "messages", "responses"):
            refused = await http.post(f"{path}/{what}", json={"text": "Good morning."})
            assert refused.status_code == 409
            assert "only transcribes" in refused.json()["error"]["message"]
        live = (await http.get(f"{path}/transcript")).json()
        await call.hang_up()
        await world.record(call)
        async with asyncio.timeout(20):  # it is in the database a little later
            ended = None
            while ended is None:
                await asyncio.sleep(0.05)
                ended = (await http.get(path)).json()["record"]
        exported = await http.get("/api/v1/calls/export", params={"format": "jsonl"})
    assert [(one["who"], one["text"]) for one in live["transcript"]] == [("caller", "Hello.")]
    assert [(one["who"], one["text"]) for one in ended["transcript"]] == [("caller", "Hello.")]
    assert line["call"] in exported.text
    valid(session)
