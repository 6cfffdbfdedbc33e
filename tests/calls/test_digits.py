# SPDX-License-Identifier: GPL-2.0-or-later
"""DTMF by RFC 4733: each press counts once, none is lost; what becomes of the digits."""

from __future__ import annotations

import asyncio
import random

from tests.support import figures
from tests.support.harness import GatewayStack
from tests.support.listening import is_silence
from tests.support.rtp_end import EVENTS
from tests.support.sip_phone import PhoneCall

LOSS = 0.05
PER_CALL = 50

WORLD = {
    "routes": """
[[route]]
name = "many"
to = "^many$"
[route.dtmf]
finish_on_key = "#"
max_digits = 128
inter_digit_timeout = 30

[[route]]
name = "hasty"
to = "^hasty$"
[route.dtmf]
finish_on_key = ""
inter_digit_timeout = 2
text = "Keys: {digits}."

[[route]]
name = "four"
to = "^four$"
[route.dtmf]
max_digits = 4

[[route]]
name = "polite"
to = "^polite$"
[route.greeting]
say = "Hello."
[route.dtmf]
interrupt = false

[[route]]
name = "ignoring"
to = "^ignoring$"
[route.greeting]
say = "Hello."
[route.dtmf]
enabled = false
"""
}


async def texts_of(world: GatewayStack, call: PhoneCall, count: int) -> list[str]:
    """The words of the first ``count`` items that the keys became."""
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.seen("conversation.item.create")) >= count, 30)
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return [item["content"][0]["text"] for item in items]


async def lossy_call(world: GatewayStack, seed: int) -> tuple[int, int]:
    """Press keys while one packet in twenty is lost; how many arrived in their place, and lost."""
    chance = random.Random(seed)
    keys = [chance.choice(EVENTS.replace("#", "")) for _ in range(PER_CALL)]
    keys[10:14] = ["5", "5", "5", "5"]  # the same key again is the hard case
    call = await world.dial("many")
    call.rtp.loss = lambda: chance.random() < LOSS
    call.rtp.press("".join(keys), packets=4, pause=3)
    await call.rtp.quiet()
    call.rtp.loss = lambda: False
    call.rtp.press("#")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.seen("conversation.item.create") != [], 30)
    lost = call.rtp.lost
    record_line = await world.summary_at_end(call)
    (run,) = record_line["digits"]
    assert run["ended_by"] == "terminator"
    (item,) = session.seen("conversation.item.create")
    spelled = item.body["item"]["content"][0]["text"]
    assert " ".join(run["digits"]) in spelled
    assert run["digits"] == "".join(keys), "in order, each once"
    return sum(a == b for a, b in zip(run["digits"], keys, strict=True)), lost


async def test_no_digit_is_lost_with_its_packets(world: GatewayStack) -> None:
    world.behave(answer="silent")
    calls = await asyncio.gather(*(lossy_call(world, seed) for seed in range(4)))
    arrived, lost = (sum(column) for column in zip(*calls, strict=True))
    figures.show(
        "digits through 5 % packet loss",
        f"{arrived} of {4 * PER_CALL} in order ({lost} packets lost)",
    )
    assert lost > 20
    assert arrived == 4 * PER_CALL


async def test_a_pause_ends_an_entry(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = await world.dial("hasty")
    call.rtp.press("12#")
    assert await texts_of(world, call, 1) == ["Keys: 1 2 #."]
    call.rtp.press("3")
    assert await texts_of(world, call, 2) == ["Keys: 1 2 #.", "Keys: 3."]
    summary = await world.summary_at_end(call)
    assert [(run["digits"], run["ended_by"]) for run in summary["digits"]] == [
        ("12#", "timeout"),
        ("3", "timeout"),
    ]


async def test_the_terminator_ends_an_entry_and_is_no_part_of_it(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = await world.dial("plain")
    call.rtp.press("42#")
    assert await texts_of(world, call, 1) == ["The caller pressed 4 2 on the telephone keypad."]
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.seen("response.create") != [], 20)
    kinds = [event.type for event in session.client_events]
    assert kinds.index("conversation.item.create") < kinds.index("response.create")
    (item,) = session.seen("conversation.item.create")
    assert (item.body["item"]["type"], item.body["item"]["role"]) == ("message", "user")
    summary = await world.summary_at_end(call)
    assert [run["ended_by"] for run in summary["digits"]] == ["terminator"]


async def test_the_largest_number_of_keys_ends_an_entry(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = await world.dial("four")
    call.rtp.press("123456#")
    await texts_of(world, call, 2)
    summary = await world.summary_at_end(call)
    assert [(run["digits"], run["ended_by"]) for run in summary["digits"]] == [
        ("1234", "full"),
        ("56", "terminator"),
    ]


async def test_a_key_held_long_is_one_key(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = await world.dial("plain")
    call.rtp.press("9", packets=60)
    call.rtp.press("9#")
    await texts_of(world, call, 1)
    summary = await world.summary_at_end(call)
    assert [run["digits"] for run in summary["digits"]] == ["99"]


async def test_the_model_answers_what_was_pressed(world: GatewayStack) -> None:
    """The greeting is cut by the first key; the digits are read back."""
    greeting = {"kind": "pattern", "seconds": 20, "burst": True}
    answer = {"kind": "pattern", "seconds": 1, "seed": 9, "burst": True}
    world.behave(vad="off", answers=[greeting, answer])
    call = await world.dial("greeted")
    rtp = call.rtp
    await rtp.until(lambda: sum(not is_silence(p) for p in rtp.packets) > 30)
    rtp.press("1")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("conversation.item.truncated") != [], 20)
    rtp.press("2#")
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    heard = bytes(list(session.sent_items.values())[1])
    await rtp.until(lambda: heard in rtp.heard)
    summary = await world.summary_at_end(call)
    assert [run["digits"] for run in summary["digits"]] == ["12"]
    assert [one["trigger"] for one in summary["interruptions"]] == ["digit"]


async def test_a_key_interrupts_nothing_where_the_route_says_so(world: GatewayStack) -> None:
    greeting = {"kind": "pattern", "seconds": 2, "burst": True}
    world.behave(vad="off", answers=[greeting, {"kind": "silent"}])
    call = await world.dial("polite")
    rtp = call.rtp
    await rtp.until(lambda: sum(not is_silence(p) for p in rtp.packets) > 10)
    rtp.press("1#")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.seen("conversation.item.create") != [], 20)
    (audio,) = session.sent_items.values()
    await rtp.until(lambda: bytes(audio) in rtp.heard)
    await world.summary_at_end(call)
    assert not session.truncations


async def test_keys_are_only_logged_where_the_route_says_so(world: GatewayStack) -> None:
    greeting = {"kind": "pattern", "seconds": 1, "burst": True}
    world.behave(vad="off", answers=[greeting, {"kind": "silent"}])
    call = await world.dial("ignoring")
    call.rtp.press("12#")
    await world.gateway.wait("call.dtmf", call=call.call_id, digit="#")
    await call.rtp.quiet()
    session = await world.session_of(call)
    (audio,) = session.sent_items.values()
    await call.rtp.until(lambda: bytes(audio) in call.rtp.heard)
    summary = await world.summary_at_end(call)
    assert summary["digits"] == []
    assert not session.seen("conversation.item.create")
