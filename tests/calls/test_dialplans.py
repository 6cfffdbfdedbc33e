# SPDX-License-Identifier: GPL-2.0-or-later
"""Each example dialplan, driven by a call."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

import gateway as package
from gateway.api.client import ask
from gateway.audio import Codec
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import PCMU, synthesise
from tests.support.forked import Forked
from tests.support.harness import PATIENT, GatewayStack, rtp_range, wishes
from tests.support.listening import is_silence, share_heard
from tests.support.rtp_end import EVENTS
from tests.support.sip_phone import PhoneCall

DIALPLANS = Path(package.__file__).parents[1] / "dialplans"

WORLD = {
    "more": PATIENT + '[control]\nsocket = "control"\n',
    "dialplans": DIALPLANS,
}


def settings_of(session: SessionRecord) -> dict[str, Any]:
    """The session object as the server was asked for it."""
    (update,) = session.seen("session.update")
    settings: dict[str, Any] = update.body["session"]
    return settings


async def greeted(world: GatewayStack, call: PhoneCall, said: str) -> SessionRecord:
    """The session of a call, once the caller hears its greeting."""
    session = await world.session_of(call)
    await call.rtp.until(lambda: any(not is_silence(packet) for packet in call.rtp.packets))
    create = session.seen("response.create")[0].body
    assert said in create["response"]["instructions"]
    return session


async def said(session: SessionRecord, nth: int) -> str:
    """The transcript of the agent's ``nth`` message (from 1)."""
    type_ = "response.output_audio_transcript.done"
    await session.wait_until(lambda s: len(s.sent(type_)) >= nth, 30)
    return str(session.sent(type_)[nth - 1].body["transcript"])


async def test_customers(world: GatewayStack) -> None:
    """Nobody is there to ask about the caller: the texts have what they say for that."""
    call = await world.dial("500")
    session = await greeted(world, call, ", dear customer. What can I do for you?")
    settings = settings_of(session)
    assert '"not known"' in settings["instructions"]
    assert "they have 0 open orders" in settings["instructions"]
    assert settings["audio"]["input"]["transcription"]["language"] == "en"
    assert settings["audio"]["input"]["turn_detection"]["eagerness"] == "low"
    (create,) = wishes(session)
    assert create is not None
    assert create["metadata"] == {"language": "en"}
    assert not session.errors
    await world.summary_at_end(call)
    (line,) = world.gateway.all("call.data_failed", call=call.call_id)
    assert "cannot be reached" in line["detail"]


async def test_reception(world: GatewayStack) -> None:
    """Greets, answers, says goodbye and hangs up."""
    world.behave(chunk_ms=1000)  # where the machine is late, there is no hole in a goodbye
    call = await world.dial("100")
    session = await greeted(world, call, "Good morning, reception.")
    settings = settings_of(session)
    assert settings["audio"]["output"]["voice"] == "marin"
    assert settings["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    assert settings["audio"]["output"]["format"] == {"type": "audio/pcmu"}
    assert "receptionist of a small hotel" in settings["instructions"]
    assert [tool["name"] for tool in settings["tools"]] == ["end_call"]
    assert await said(session, 1) == "Good morning, reception. How can I help?"
    call.rtp.press("0#")
    assert "Goodbye" in await said(session, 2)
    await call.hung_up()
    record = await world.record(call)
    assert (record["route"], record["ending"]["why"]) == ("reception", "agent_hangup")
    goodbye = bytes(list(session.sent_items.values())[-1])
    call.rtp.read_what_waits()
    assert goodbye[: len(goodbye) // 160 * 160] in call.rtp.heard


async def test_keypad(world: GatewayStack) -> None:
    """A caller who knows the menu types on; the digits become the route's own words."""
    call = await world.dial("200")
    session = await greeted(world, call, "Welcome. For opening hours press one")
    assert settings_of(session)["audio"]["output"]["voice"] == "cedar"
    call.rtp.press("2#")
    assert await said(session, 2) == "You pressed 2."
    (item,) = session.seen("conversation.item.create")
    assert item.body["item"]["content"][0]["text"] == "I pressed 2 on the keypad."
    summary = await world.summary_at_end(call)
    assert [one["trigger"] for one in summary["interruptions"]] == ["digit"]
    assert [run["digits"] for run in summary["digits"]] == ["2"]


def open_now() -> bool:
    """Whether the shop of the example is open."""
    now = datetime.now(ZoneInfo("Europe/Berlin"))
    minutes = now.hour * 60 + now.minute
    if now.weekday() < 5:
        return 9 * 60 <= minutes < 18 * 60
    return now.weekday() == 5 and 10 * 60 <= minutes < 14 * 60


async def test_shop_by_the_hour(world: GatewayStack) -> None:
    before = open_now()
    call = await world.dial("300")
    after = open_now()
    session = await world.session_of(call)
    await session.wait_until(lambda s: bool(s.seen("response.create")), 20)
    create = session.seen("response.create")[0].body["response"]["instructions"]
    summary = await world.summary_at_end(call)
    if before == after:  # else the shop opened or closed while we dialled
        assert summary["route"] == ("shop-open" if before else "shop-closed")
        wanted = "good day" if before else "Say that the shop is closed"
        assert wanted in create


async def test_urgent_calls_get_through_always(world: GatewayStack) -> None:
    """A header field decides, and what it names is told to the model."""
    call = await world.dial("300", headers=("X-Priority: urgent;ticket=77",))
    session = await greeted(world, call, "Bicycle shop, emergency line.")
    call.rtp.press("1#")
    await session.wait_until(lambda s: s.seen("conversation.item.create") != [], 30)
    (item,) = session.seen("conversation.item.create")
    assert item.body["item"]["content"][0]["text"] == "The caller of ticket 77 pressed 1."
    assert (await world.summary_at_end(call))["route"] == "shop-urgent"


async def test_echo(world: GatewayStack) -> None:
    """What the caller says is played back to them."""
    call = await world.dial("4007")
    session = await greeted(world, call, "This is the echo test.")
    settings = settings_of(session)
    assert settings["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 400
    assert not settings.get("tools")
    await session.wait_until(lambda s: s.sent("response.done") != [], 30)
    greeting = bytes(next(iter(session.sent_items.values())))
    await call.rtp.until(lambda: greeting[-1600:-160] in call.rtp.heard)
    words = PCMU.encode(*synthesise("One two three four five six seven.", "cedar", 1.0))
    call.rtp.say(words)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 30)
    middle = words[len(words) // 2 :][:4000]
    await call.rtp.until(lambda: middle in call.rtp.heard)
    assert (await world.summary_at_end(call))["route"] == "echo"


async def test_an_echo_opens_no_session(world: GatewayStack) -> None:
    """What the caller says comes back, byte for byte, and so do keys."""
    before = len(world.emulator.sessions)
    call = await world.dial("9901")
    words = PCMU.encode(*synthesise("One two three four five six seven.", "cedar", 1.0))
    call.rtp.say(words)
    await call.rtp.until(lambda: share_heard(words, call.rtp.heard) > 0.9)
    call.rtp.press("7")

    def key() -> bool:
        pressed = [p for p in call.rtp.packets if p.payload_type == call.rtp.event_payload]
        return any(p.payload[0] == EVENTS.index("7") for p in pressed)

    await call.rtp.until(key)
    summary = await world.summary_at_end(call)
    assert (summary["route"], summary["ending"]["why"]) == ("test-echo", "remote_hangup")
    assert summary["codec"] == "PCMU"
    assert len(world.emulator.sessions) == before


async def test_a_milliwatt_line_is_0_dbm0(world: GatewayStack) -> None:
    call = await world.dial("9902")
    await call.rtp.until(lambda: len(call.rtp.packets) > 60)
    packets = call.rtp.packets[10:60]
    heard = Codec.PCMU.to_linear(b"".join(packet.payload for packet in packets))
    samples = np.frombuffer(heard, "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert abs(np.argmax(spectrum) - 1004) <= 1  # 50 packets are a second: 1 Hz a line
    dbm0 = 3.17 + 20 * np.log10(np.sqrt(2 * np.mean(samples**2)) / 32635)
    assert abs(dbm0) < 0.2
    await world.summary_at_end(call)


async def test_a_line_that_is_hung_up_by_an_operator(world: GatewayStack) -> None:
    call = await world.dial("9902")
    await call.rtp.until(lambda: len(call.rtp.packets) > 5)
    control = world.folder / "control"
    await asyncio.to_thread(ask, control, "hangup", call=call.call_id)
    await call.hung_up()
    line = await world.gateway.wait("call.summary", call=call.call_id)
    assert line["ending"]["why"] == "operator"


async def test_numbers_that_speak(world: GatewayStack) -> None:
    """Keys and caller id are read back; the time that the caller waited is told."""
    call = await world.dial("9904")
    session = await world.session_of(call)
    assert "It is tester, with" in settings_of(session)["instructions"]
    await world.summary_at_end(call)
    call = await world.dial("9905")
    session = await greeted(world, call, "Say something.")
    call.rtp.press("5")
    await session.wait_until(lambda s: bool(s.seen("conversation.item.create")), 20)
    (item,) = session.seen("conversation.item.create")
    assert re.search(
        r"I waited (\d+|unknown) milliseconds", item.body["item"]["content"][0]["text"]
    )
    await world.summary_at_end(call)


async def test_the_doctor_of_another_site_calls_the_echo(
    world: GatewayStack, tmp_path: Path
) -> None:
    """From a port of its own, as one gateway has its port already."""
    host, port = world.gateway.sip
    (tmp_path / "dialplans").mkdir()
    (tmp_path / "gateway.toml").write_text(
        f"""
        [sip]
        listen = ["udp:{host}:{port}"]
        rtp_ports = [{", ".join(map(str, rtp_range()))}]
        [realtime]
        url = "ws://127.0.0.1:9"
        [outbound]
        enabled = true
        allowed_prefixes = ["99"]
        [[trunk]]
        name = "other"
        peers = ["{host}:{port}"]
        test_number = "9901"
        """
    )
    process = await Forked.command(
        *("doctor", "--trunk", "other", "--json", "--seconds", "3"),
        *("-c", tmp_path / "gateway.toml"),
    )
    output, _ = await process.communicate()
    found = {one["code"]: one for one in json.loads(output)}
    assert {one["verdict"] for one in found.values()} == {"ok"}, found
    assert process.returncode == 0
    assert f"port {port} is in use" in found["own_port"]["fact"]
    assert "audio goes both ways" in found["audio"]["fact"]
    assert "1590" in found["dtmf"]["fact"]
