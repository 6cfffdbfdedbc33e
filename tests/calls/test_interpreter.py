# SPDX-License-Identifier: GPL-2.0-or-later
"""An interpreter between caller and callee: what each hears, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner

from gateway.audio import Codec
from gateway.cli import main
from gateway.devtools.emulator.session import Session
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import pattern
from tests.support.callee import CalledCall, CalledPhone, free_port
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.made_sounds import g711, tone
from tests.support.rtp_end import RtpEnd
from tests.support.sip_phone import PhoneCall

PORT = free_port()
SECONDS = 0.5


def _route(name: str, user: str, more: str = "") -> str:
    return f"""
[[route]]
name = "{name}"
to = "^{name}$"
records.events = true
[route.session]
instructions = "You place a call."
[route.session.audio.input.transcription]
model = "gpt-transcribe"
[[route.transfer]]
name = "colleague"
to = "sip:{user}@127.0.0.1:{PORT}"
mode = "bridge"
ring_timeout = {1.5 if user == "ring" else 30}
[route.interpreter]
to = "Colleague"
{more}
[route.interpreter.caller]
language = "English"
[route.interpreter.callee]
language = "German"
voice = "cedar"
"""


HUMAN = f"""
[[route.transfer]]
name = "queue"
to = "sip:busy-486@127.0.0.1:{PORT}"
mode = "bridge"
[[route.transfer]]
name = "human"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[route.escape]
key = "0"
to = ["queue", "human"]
"""
WORLD = {
    "more": PATIENT
    + '[access]\nunknown_sources = "allow"\n[outbound]\nmax_calls_per_minute = 60\n',
    "routes": _route("answered", "answer")
    + _route("loud", "answer", "original_db = 0")
    + _route("leaving", "answer")
    + HUMAN
    + _route("busy", "busy-486")
    + _route("ringing", "ring")
    + _route("announced", "answer")
    + '[route.greeting]\nsay = "I am calling your colleague."\n'
    + _route("spent", "answer")
    + "[route.budget]\nper_call = 0.000001\n",
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The telephone of everybody here."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


class Interpreted:
    """A call in which both parties are joined and both sessions interpret."""

    def __init__(self, world: GatewayStack, call: PhoneCall, other: CalledCall) -> None:
        self.world, self.call, self.other = world, call, other
        self.sessions: dict[str, SessionRecord] = {}

    async def up(self) -> Interpreted:
        """Wait for both sessions."""
        for listener in ("caller", "callee"):
            line = await self.world.gateway.wait(
                "call.interpreter_up", call=self.call.call_id, listener=listener
            )
            known = {one.id: one for one in self.world.emulator.sessions}
            self.sessions[listener] = known[line["session_id"]]
        return self

    def live(self, listener: str) -> Session:
        """The session that this party hears, while it is up."""
        return cast(Session, self.world.emulator.live[self.sessions[listener].id].session)

    def ear(self, listener: str) -> RtpEnd:
        """What this party hears."""
        return self.call.rtp if listener == "caller" else self.other.rtp


ANSWER = {"kind": "pattern", "seconds": SECONDS, "burst": True, "text": "Translated."}


async def dialled(
    world: GatewayStack,
    callee: CalledPhone,
    route: str,
    answer: dict[str, Any] = ANSWER,
) -> Interpreted:
    """Call a route whose callee answers; wait until both sessions are up."""
    words = ["Good morning.", "Guten Tag."]
    world.behave(vad="off", answers=[answer], transcripts=words)
    before = len(callee.calls)
    call = await world.dial(route)
    return await Interpreted(world, call, await callee.called(before + 1)).up()


def loudness(heard: bytes) -> float:
    """RMS of the loudest 200 ms of u-law audio."""
    samples = np.frombuffer(Codec.PCMU.to_linear(heard), np.int16).astype(float)
    windows = samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)
    return float(np.sqrt((windows**2).mean(axis=1)).max())


async def a_turn_is_translated(made: Interpreted, listener: str, speaker: str) -> None:
    """What the session says for ``listener`` is heard there as it is, and nowhere else."""
    ear, other = made.ear(listener), made.ear(speaker)
    before, other_before = len(ear.packets), len(other.packets)
    said = pattern(0, int(SECONDS * 8000))
    made.live(listener).pretend_speech(100)
    await ear.until(lambda: said[1600:-160] in ear.heard[before * 160 :])
    assert said[1600:1920] not in other.heard[other_before * 160 :]


async def the_voice_is_soft(made: Interpreted, listener: str, speaker: str, hz: int) -> None:
    """What ``speaker`` says is heard by one session as it is, and softly by ``listener``."""
    ear, session, other = made.ear(listener), made.sessions[listener], made.sessions[speaker]
    voice = g711(tone(hz, 1000), Codec.PCMU)
    begun, before, other_before = len(ear.packets), len(session.received), len(other.received)
    made.ear(speaker).say(voice)
    await session.wait_until(lambda s: len(s.received) - before >= 9600, 20)
    await ear.heard_bytes((begun + 70) * 160)
    assert loudness(bytes(session.received[before:])) > 0.9 * loudness(voice)
    down = 20 * np.log10(loudness(ear.heard[begun * 160 :]) / loudness(voice))
    assert down == pytest.approx(-18, abs=1.5)
    assert loudness(bytes(other.received[other_before:])) < 0.05 * loudness(voice)


async def test_each_hears_the_other_in_their_language(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """The translation at full volume in one ear only; the voice softly, and to one session only."""
    made = await dialled(world, callee, "answered")
    await a_turn_is_translated(made, "callee", "caller")
    await a_turn_is_translated(made, "caller", "callee")
    await the_voice_is_soft(made, "callee", "caller", 700)
    await the_voice_is_soft(made, "caller", "callee", 900)
    await made.call.hang_up()
    await made.other.hung_up()
    record = await world.record(made.call)
    assert record["ending"]["why"] == "remote_hangup"
    assert record["cost"]["responses"] == 2
    for listener in ("caller", "callee"):  # each of its sessions is told of as the call's
        await world.gateway.wait("session.closed", call=made.call.call_id, listener=listener)
    told = [(one["who"], one["text"]) for one in record["transcript"] if one["text"]]
    assert {"caller", "callee", "to_caller", "to_callee"} <= {who for who, _ in told}
    assert ("caller", "Good morning.") in told
    await eventually(lambda: not made.sessions["caller"].live, "no session")
    told_by = {one.id: f"to_{listener}" for listener, one in made.sessions.items()}
    log = world.records_folder / record["event_log"]["file"]
    await eventually(lambda: '"over":true' in log.read_text(), "the end of the event log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    created = [one for one in lines if one.get("event", {}).get("type") == "session.created"]
    named = {one["event"]["session"]["id"]: one.get("session", "") for one in created}
    assert told_by.items() <= named.items()
    own = await world.session_of(made.call)
    assert named[own.id] == ""
    ends = [one.get("session", "") for one in lines if one["dir"] == "close"]
    assert sorted(ends) == ["", "to_callee", "to_caller"]
    for name in told_by.values():  # what went up is in its own lines
        audio = [
            one
            for one in lines
            if one.get("session") == name
            and one.get("event", {}).get("type") == "input_audio_buffer.append"
        ]
        assert sum(one["event"]["audio"]["bytes"] for one in audio) > 8000
    shown = CliRunner().invoke(main, ["events", str(log)]).output
    assert "to_callee: “Good morning.”" in shown
    assert CliRunner().invoke(main, ["events", "--errors", str(log)]).output.startswith("nothing")
    update = made.sessions["callee"].seen("session.update")[0].body["session"]
    assert "English" in update["instructions"]
    assert "again in German" in update["instructions"]
    assert update["audio"]["output"]["voice"] == "cedar"
    assert update["audio"]["input"]["turn_detection"]["interrupt_response"] is False


async def test_the_callee_is_called_after_the_greeting(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """The caller hears all of it; it costs, too, and its session is closed when they are joined."""
    made = await dialled(world, callee, "announced")
    said = pattern(0, int(SECONDS * 8000))
    assert said[160:-160] in made.call.rtp.heard
    assert said[160:480] not in made.other.rtp.heard
    session = await world.session_of(made.call)
    await eventually(lambda: not session.live, "no session of the call's own")
    assert session.close_reason == "bridged"
    await world.summary_at_end(made.call)
    record = await world.record(made.call)
    assert record["cost"]["responses"] == 1


async def test_the_callee_hangs_up(world: GatewayStack, callee: CalledPhone) -> None:
    made = await dialled(world, callee, "loud")
    begun = len(made.call.rtp.packets)
    voice = g711(tone(900, 1000), Codec.PCMU)
    made.other.rtp.say(voice)
    await made.call.rtp.heard_bytes((begun + 70) * 160)
    heard = loudness(made.call.rtp.heard[begun * 160 :])
    assert heard == pytest.approx(loudness(voice), rel=0.1)
    made.other.bye()
    summary = await world.summary(made.call)
    assert summary["ending"]["why"] == "bridge_ended"
    for session in made.sessions.values():
        await eventually(lambda session=session: not session.live, "no session")
        assert (session.close_code, session.close_reason) == (1000, "over")


async def test_the_caller_leaves_for_a_human(world: GatewayStack, callee: CalledPhone) -> None:
    """By the key: the callee and both sessions go, and caller and human hear each other."""
    made = await dialled(world, callee, "leaving")
    made.call.rtp.press("0")
    await made.other.hung_up()
    human = await callee.called(3)
    await world.gateway.wait("call.bridged", call=made.call.call_id, count=2)
    for session in made.sessions.values():
        await eventually(lambda session=session: not session.live, "no session")
    for ear, mouth, hz in ((human.rtp, made.call.rtp, 700), (made.call.rtp, human.rtp, 900)):
        begun, voice = len(ear.packets), g711(tone(hz, 1000), Codec.PCMU)
        mouth.say(voice)
        await ear.heard_bytes((begun + 70) * 160)
        heard = loudness(ear.heard[begun * 160 :])
        assert heard == pytest.approx(loudness(voice), rel=0.1)
    await made.call.hang_up()
    await human.hung_up()
    record = await world.record(made.call)
    assert record["ending"]["why"] == "remote_hangup"
    outcomes = [(one["destination"], one["outcome"]) for one in record["transfers"]]
    assert outcomes == [("colleague", "answered"), ("queue", "busy"), ("human", "answered")]


@pytest.mark.parametrize("why", ["lost", "spent"])
async def test_without_an_interpreter_the_legs_stay(
    world: GatewayStack, callee: CalledPhone, why: str
) -> None:
    """A session is lost, or the money is spent: the listener hears the voice at full volume."""
    route = "spent" if why == "spent" else "answered"
    made = await dialled(world, callee, route, {"kind": "nothing"})
    if why == "spent":
        made.live("callee").pretend_speech(100)
        await world.gateway.wait("call.budget_exceeded", call=made.call.call_id)
        await eventually(lambda: not made.sessions["caller"].live, "no session")
    else:
        world.emulator.live[made.sessions["callee"].id].close(1011, drop=True)
        line = await world.gateway.wait("call.interpreter_lost", call=made.call.call_id)
        assert line["listener"] == "callee"
    ear = made.other.rtp
    begun, voice = len(ear.packets), g711(tone(700, 1000), Codec.PCMU)
    made.call.rtp.say(voice)
    await ear.heard_bytes((begun + 70) * 160)
    heard = loudness(ear.heard[begun * 160 :])
    assert heard == pytest.approx(loudness(voice), rel=0.1)
    assert made.sessions["caller"].live is (why == "lost")
    await world.summary_at_end(made.call)


@pytest.mark.parametrize(("route", "outcome"), [("busy", "busy"), ("ringing", "no_answer")])
async def test_nobody_answers(
    world: GatewayStack, callee: CalledPhone, route: str, outcome: str
) -> None:
    """The caller is back with the call's own session, which is told."""
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 0.4, "burst": True}])
    call = await world.dial(route)
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    assert callee.calls
    told = [one.body["item"] for one in session.seen("conversation.item.create")]
    assert outcome in str(told)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert [one["outcome"] for one in record["transfers"]] == [outcome]
