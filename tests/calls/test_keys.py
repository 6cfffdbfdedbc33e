# SPDX-License-Identifier: GPL-2.0-or-later
"""DTMF by INFO and in the audio (in-band), and keys that the model presses."""

from __future__ import annotations

import asyncio
import json
import struct
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from gateway.audio import Codec
from tests.calls.test_transfer_blind import outputs_of
from tests.support.dialog import answered, dialog_call
from tests.support.harness import GatewayStack
from tests.support.referred import ReferredCall, dial
from tests.support.rtp_end import EVENT_PAYLOAD, EVENTS, Sender
from tests.support.sip_phone import PhoneCall

WORLD = {
    "routes": """
[[route]]
name = "listening"
to = "^listening$"
[route.dtmf]
inband = true

[[route]]
name = "pressing"
to = "^pressing$"
[route.greeting]
say = "Hello."
[route.send_dtmf]
enabled = true

[[route]]
name = "informing"
to = "^informing$"
[route.greeting]
say = "Hello."
[route.send_dtmf]
enabled = true
mode = "info"
"""
}


async def test_keys_without_end(world: GatewayStack) -> None:
    """Hundreds a second: as many are taken as somebody could press, and lines stay few."""
    world.behave(answer="silent")
    call = await answered(dialog_call(world.phone, "plain"))
    await world.gateway.wait("call.confirmed", call=call.call_id)
    sender = Sender(call.rtp)
    for number in range(600):
        event = struct.pack("!BBH", number % 10, 0x8A, 800)
        sender.put(event, EVENT_PAYLOAD, samples=1600)
        if number % 10 == 9:
            await asyncio.sleep(0.005)
    line = await world.gateway.wait("sip.keys_dropped", call=call.call_id)
    assert line["most_per_second"] == 20
    for _ in range(30):
        await call.ask("REFER", "Refer-To: <sip:a@127.0.0.1>")
    summary = await world.summary_at_end(call)
    took = len(world.gateway.all("call.dtmf", call=call.call_id))
    assert 40 <= took < 300
    assert sum(len(run["digits"]) for run in summary["digits"]) == took
    assert len(world.gateway.all("sip.refer_declined", call=call.call_id)) <= 12


async def digits_of(world: GatewayStack, call: ReferredCall) -> list[str]:
    """What the keys became."""
    summary = await world.summary_at_end(call)
    return [run["digits"] for run in summary["digits"]]


async def test_keys_by_info(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = await dial(world, "plain")
    for content_type, body in [
        ("application/dtmf-relay", "Signal=4\r\nDuration=160\r\n"),
        ("application/dtmf-relay", "Signal= *\r\nDuration= 250\r\n"),
        ("application/dtmf-relay", "Signal=11\r\nDuration=160\r\n"),
        ("application/dtmf", "2"),
        ("Application/DTMF", "\r\n10\r\n"),
        ("application/dtmf", "#"),
    ]:
        before = len(call.answers_to("INFO"))
        call.info(content_type, body)
        await call.until(partial(_more_answers, before), what="answer")
    assert call.answers_to("INFO") == [200] * 6
    assert await digits_of(world, call) == ["4*", "2*"]


def _more_answers(before: int, call: ReferredCall) -> bool:
    return len(call.answers_to("INFO")) > before


async def test_other_info(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = await dial(world, "plain")
    for content_type, body, code in [
        ("", "", 200),
        ("application/dtmf", "x", 400),
        ("application/dtmf-relay", "Duration=160\r\n", 400),
        ("text/plain", "hello", 415),
    ]:
        before = len(call.answers_to("INFO"))
        call.info(content_type, body)
        await call.until(partial(_more_answers, before), what="answer")
        assert call.answers_to("INFO")[-1] == code, content_type
    assert await digits_of(world, call) == []


async def test_keys_in_the_audio(world: GatewayStack) -> None:
    world.behave(answer="silent", vad="off")
    call = await dial(world, "listening")
    time = np.arange(800) / 8000
    audio = b""
    for low, high in [(770, 1336), (941, 1477)]:  # 5 #
        samples = 0.2 * (np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time))
        pcm = (samples * 32767).astype("<i2").tobytes()
        audio += Codec.PCMU.from_linear(pcm) + b"\xff" * 800
    session = await world.session_of(call)
    around = b"\xff" * 8 * 240
    Sender(call.rtp).burst(around + audio + around)  # no tone has a hole where the machine is late
    await session.wait_until(lambda s: s.seen("conversation.item.create") != [], 20)
    assert await digits_of(world, call) == ["5"]


def presses(keys: str) -> list[dict[str, Any]]:
    """The model says something, presses these keys, and says something about it."""
    tool = {"name": "send_dtmf", "arguments": json.dumps({"digits": keys})}
    first = {"kind": "pattern", "seconds": 0.4, "burst": True, "tools": [tool]}
    return [first, {"kind": "pattern", "seconds": 0.4, "seed": 5}, {"kind": "silent"}]


def events_of(call: PhoneCall) -> list[tuple[str, int]]:
    """Keys by RFC 4733, and when each began, by the clock of the stream (1/8000 s)."""
    found: dict[int, str] = {}
    for packet in call.rtp.packets:
        if packet.payload_type == EVENT_PAYLOAD:
            event, _end, _duration = struct.unpack("!BBH", packet.payload[:4])
            found.setdefault(packet.timestamp, EVENTS[event])
    return [(key, at) for at, key in found.items()]


async def test_the_model_presses_keys(world: GatewayStack) -> None:
    world.behave(vad="off", answers=presses("12#Ww9"))
    call = await dial(world, "pressing")
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert outputs_of(session) == [{"status": "sent", "digits": "12#9"}]
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    keys = events_of(call)
    assert "".join(key for key, _at in keys) == "12#9"
    starts = [at for _key, at in keys]
    gaps = [after - before for before, after in pairwise(starts)]
    # 200 ms of each key, 40 ms of silence behind it, and the pauses where they were asked for.
    assert min(gaps) >= 0.24 * 8000
    assert gaps[2] > 1.7 * 8000
    # What was said before was heard before.
    first = next(iter(session.sent_items.values()))
    at = next(i for i, p in enumerate(call.rtp.packets) if p.payload_type == EVENT_PAYLOAD)
    spoken = b"".join(p.payload for p in call.rtp.packets[:at])
    assert bytes(first) in spoken
    await world.summary_at_end(call)


async def test_the_model_presses_keys_by_info(world: GatewayStack) -> None:
    world.behave(vad="off", answers=presses("5*"))
    call = await dial(world, "informing")
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    await call.until(lambda c: sum(m.start.startswith("INFO ") for m in c.messages) == 2)
    asked = [m for m in call.messages if m.start.startswith("INFO ")]
    assert [m.headers["content-type"] for m in asked] == ["application/dtmf-relay"] * 2
    assert [m.body.split()[0] for m in asked] == ["Signal=5", "Signal=*"]
    assert not events_of(call)
    await world.summary_at_end(call)


async def test_keys_that_there_are_not(world: GatewayStack) -> None:
    world.behave(vad="off", answers=presses("12x"))
    call = await dial(world, "pressing")
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert outputs_of(session)[0]["error"].startswith("digits: 'x' is no key")
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    await world.summary_at_end(call)
