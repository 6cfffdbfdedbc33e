# SPDX-License-Identifier: GPL-2.0-or-later
"""Barge-in: how much of an answer the caller had heard, and what the server is told of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import FORMATS, synthesise
from tests.support import figures
from tests.support.harness import TRUSTED, GatewayStack
from tests.support.listening import Spoken, assert_continuous, is_silence
from tests.support.rtp_end import FRAME, Packet
from tests.support.sip_phone import PhoneCall

WORLD = {
    "routes": """
[[route]]
name = "deaf"
to = "^deaf$"
[route.greeting]
say = "Hello."
[route.session.audio.input.turn_detection]
type = "server_vad"
interrupt_response = false
"""
}

AT_A_TIME = 4
EACH = 30
"""Interruptions of one call; four calls make 120."""


def cut_in_many_places(seed: int) -> dict[str, Any]:
    """Answers sent at once, just ahead of playout, and in between, each with audio of its own."""
    ways: list[dict[str, Any]] = [{"burst": True}, {"speed": 1.1}, {"speed": 4.0}]
    answers = [
        {"kind": "pattern", "seconds": 6, "seed": number, **ways[number % len(ways)]}
        for number in range(EACH + 1)
    ]
    speech = {"min_ms": 30, "max_ms": 1100, "count": EACH, "length_ms": 40, "seed": seed}
    return {"vad": "scripted", "answers": answers, "speech": speech}


def heard_of(session: SessionRecord, packets: Sequence[Packet], item_id: str) -> int:
    """Up to which ms an item was heard, by the bytes that came; nothing of it is left out."""
    return Spoken(bytes(session.sent_items[item_id])).heard_ms(packets)


def starts_received(world: GatewayStack, call: PhoneCall, record: dict[str, Any]) -> list[float]:
    """When the gateway received each ``speech_started``, Unix seconds.

    The record has these times on the gateway's own clock. The log line that was written with the
    least delay says where that clock lies.
    """
    after_ms = [
        entry["t_ms"] for entry in record["timeline"] if entry["event"] == "caller_speech_started"
    ]
    lines = world.gateway.all("call.caller_speech_started", call=call.call_id)
    logged = [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]
    began = min(at - ms / 1000 for at, ms in zip(logged, after_ms, strict=True))
    return [began + ms / 1000 for ms in after_ms]


async def interrupted_often(
    world: GatewayStack, call: PhoneCall
) -> tuple[list[int], list[int], list[int]]:
    """One call; for each interruption: what the server was told less what was heard (ms), packets
    of the answer that left after ``speech_started`` was received, and what was heard (ms).
    """
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.truncations) + len(s.deletions) >= EACH, 100)
    cut_last = session.truncations[-1].item_id
    await session.wait_until(lambda s: list(s.sent_items)[-1] != cut_last, 30)
    await call.hang_up()
    assert_continuous(call.rtp.packets)
    assert not session.errors
    told = {cut.item_id: cut.requested_ms for cut in session.truncations}
    told |= dict.fromkeys(session.deletions, 0)
    record = await world.record(call)
    starts = starts_received(world, call, record)
    differences, late, heard = [], [], []
    assert len(record["interruptions"]) == len(starts) == len(told) == EACH
    for interruption, start in zip(record["interruptions"], starts, strict=True):
        item_id = interruption["item_id"]
        assert interruption["played_ms"] == told[item_id]
        spoken = Spoken(bytes(session.sent_items[item_id]))
        heard.append(spoken.heard_ms(call.rtp.packets))
        differences.append(told[item_id] - heard[-1])
        late.append(sum(p.at > start for p in spoken.packets_of(call.rtp.packets)))
    return differences, late, heard


async def test_many_interruptions_at_random_moments(world: GatewayStack) -> None:
    """What the server is told is what the phone heard, to the millisecond."""
    calls = []
    for seed in range(AT_A_TIME):
        world.behave(**cut_in_many_places(seed))
        codec = ("PCMU", "PCMA")[seed % 2]
        calls.append(await world.dial("greeted", codecs=(codec,)))
    results = await asyncio.gather(*(interrupted_often(world, call) for call in calls))
    differences = [ms for result in results for ms in result[0]]
    late = [count for result in results for count in result[1]]
    heard = [ms for result in results for ms in result[2]]
    figures.show(
        f"truncation against what was heard, {len(differences)} interruptions",
        ", ".join(f"{ms} ms: {n}" for ms, n in sorted(Counter(differences).items())),
    )
    figures.show(
        "RTP packets of speech after speech_started",
        ", ".join(f"{count}: {n} times" for count, n in sorted(Counter(late).items())),
    )
    assert len(set(heard)) > 20, "moments that differ"
    # How many leave while the event waits for the loop is a figure: each was counted as heard.
    assert set(differences) == {0}


async def silence_again(call: PhoneCall) -> None:
    """Wait until the agent was heard, and then nothing for 200 ms."""
    await call.rtp.until(
        lambda: (
            any(not is_silence(p) for p in call.rtp.packets)
            and all(is_silence(p) for p in call.rtp.packets[-10:])
        )
    )


async def spoken_into(
    world: GatewayStack, answer: dict[str, Any]
) -> tuple[PhoneCall, SessionRecord]:
    """A call whose caller speaks once the agent is heard, and for as long as the call lasts."""
    world.behave(vad="off", answer=answer)
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await call.rtp.until(lambda: sum(not is_silence(p) for p in call.rtp.packets) > 20)
    world.emulator.live[session.id].session.pretend_speech(60_000)
    await session.wait_until(lambda s: s.sent("conversation.item.truncated") != [], 20)
    return call, session


async def test_while_the_answer_is_still_coming(world: GatewayStack) -> None:
    """The server cancels by itself: no response.cancel, and nothing more is heard."""
    call, session = await spoken_into(world, {"kind": "pattern", "seconds": 20, "speed": 4.0})
    (done,) = session.sent("response.done")
    assert done.body["response"]["status"] == "cancelled"
    call.rtp.read_what_waits()
    count = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > count + 25)
    assert all(is_silence(packet) for packet in call.rtp.packets[count + 2 :])
    (cut,) = session.truncations
    await world.summary_at_end(call)
    assert cut.requested_ms == heard_of(session, call.rtp.packets, cut.item_id)
    assert cut.requested_ms < cut.item_ms
    assert not session.seen("response.cancel")


async def test_after_the_answer_is_done(world: GatewayStack) -> None:
    """The common case: all audio came at once, the caller hears it for a while yet."""
    call, session = await spoken_into(world, {"kind": "pattern", "seconds": 20, "burst": True})
    (done,) = session.sent("response.done")
    assert done.body["response"]["status"] == "completed"
    (cut,) = session.truncations
    await world.summary_at_end(call)
    assert cut.item_ms == 20_000
    assert cut.requested_ms == heard_of(session, call.rtp.packets, cut.item_id)
    assert not session.seen("response.cancel")
    assert not session.errors


async def test_while_the_answer_stalls(world: GatewayStack) -> None:
    """Silence that is played for want of audio counts as nothing heard."""
    answer = {"kind": "pattern", "seconds": 5, "stall_at_ms": 600, "stall_s": 30}
    answer["burst"] = True  # a busy machine does not stall before
    world.behave(vad="off", answer=answer)
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await silence_again(call)
    world.emulator.live[session.id].session.pretend_speech(60_000)
    await session.wait_until(lambda s: s.truncations != [], 20)
    summary = await world.summary_at_end(call)
    (cut,) = session.truncations
    assert cut.requested_ms == heard_of(session, call.rtp.packets, cut.item_id) == 600
    assert summary["underruns"] == 1


@pytest.mark.parametrize("codec", ["PCMU", "PCMA"])
async def test_a_real_voice_interrupts(world: GatewayStack, codec: str) -> None:
    """No script: the caller speaks, the server's voice activity detection finds it."""
    world.behave(answers=[{"kind": "pattern", "seconds": 30, "burst": True}, {"kind": "silent"}])
    call = await world.dial("greeted", codecs=(codec,))
    session = await world.session_of(call)
    await call.rtp.heard_bytes(8000)
    law = FORMATS[f"audio/{codec.lower()}"]
    call.rtp.say(law.encode(*synthesise("Stop please, I have a question.", "cedar", 1.0)))
    await session.wait_until(lambda s: s.sent("conversation.item.truncated") != [], 20)
    await world.summary_at_end(call)
    (cut,) = session.truncations
    assert cut.requested_ms == heard_of(session, call.rtp.packets, cut.item_id)
    assert 0 < cut.requested_ms < 30_000


async def test_heard_to_the_end_is_not_truncated(world: GatewayStack) -> None:
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 0.5, "burst": True})
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await silence_again(call)
    world.emulator.live[session.id].session.pretend_speech(60_000)
    await world.gateway.wait("call.caller_speech_started", call=call.call_id)
    await world.summary_at_end(call)
    assert not session.truncations
    assert not session.deletions


async def test_nothing_heard_yet_deletes_the_item(own_folder: Path) -> None:
    """The answer is there before the ACK, and the caller speaks before it plays."""
    world = GatewayStack(own_folder, more=TRUSTED)
    await world.start()
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 5, "burst": True})
    call = await world.dial("greeted", acknowledge=False)
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    world.emulator.live[session.id].session.pretend_speech(60_000)
    await session.wait_until(lambda s: s.deletions != [], 20)
    call.ack()
    await call.rtp.until(lambda: len(call.rtp.packets) > 25)
    await world.summary_at_end(call)
    assert session.deletions == list(session.sent_items)
    assert not session.truncations
    assert all(is_silence(packet) for packet in call.rtp.packets)
    await world.stop()


async def test_a_shorter_item_than_was_sent_is_answered_by_one_resend(world: GatewayStack) -> None:
    """A server that counts an item shorter says so; the truncation comes once more, at that."""
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 5, "burst": True})
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    conversation = world.emulator.live[session.id].session.conversation
    item_id = next(iter(session.sent_items))
    item = conversation._get(item_id, "")
    item.audio_bytes = 300 * 8
    await call.rtp.until(lambda: sum(not is_silence(p) for p in call.rtp.packets) > 30)
    world.emulator.live[session.id].session.pretend_speech(60_000)
    await session.wait_until(lambda s: s.sent("conversation.item.truncated") != [], 20)
    await world.summary_at_end(call)
    first, second = session.truncations
    assert first.requested_ms == heard_of(session, call.rtp.packets, item_id)
    assert not first.accepted
    assert (second.requested_ms, second.accepted) == (300, True)
    assert list(session.errors) == ["invalid_value"]


@pytest.mark.parametrize("burst", [True, False])
async def test_a_digit_interrupts(world: GatewayStack, burst: bool) -> None:
    """The server knows nothing of it: response.cancel while it still speaks, and truncate."""
    answer = {"kind": "pattern", "seconds": 20, "burst": burst, "speed": 1.2}
    world.behave(vad="off", answers=[answer, {"kind": "silent"}])
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await call.rtp.until(lambda: sum(not is_silence(p) for p in call.rtp.packets) > 30)
    call.rtp.press("5")
    await session.wait_until(lambda s: s.sent("conversation.item.truncated") != [], 20)
    if not burst:
        await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    await world.summary_at_end(call)
    (cut,) = session.truncations
    assert cut.requested_ms == heard_of(session, call.rtp.packets, cut.item_id)
    assert len(session.seen("response.cancel")) == (0 if burst else 1)
    assert not session.errors
    (done,) = session.sent("response.done")
    assert done.body["response"]["status"] == ("completed" if burst else "cancelled")


async def test_late_audio_of_a_cut_answer_is_dropped(world: GatewayStack) -> None:
    """A server that goes on sending for a while is not heard."""
    call, session = await spoken_into(world, {"kind": "pattern", "seconds": 20, "speed": 1.2})
    delta = session.sent("response.output_audio.delta")[-1].body
    loud = b"\x01" * 8000
    connection = world.emulator.live[session.id]
    for item_id in (delta["item_id"], "item_late"):
        connection.emit({**delta, "item_id": item_id}, loud)
    count = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > count + 25)
    summary = await world.summary_at_end(call)
    assert loud[:FRAME] not in [packet.payload for packet in call.rtp.packets]
    assert summary["late_audio_ms"] == 2000
    assert len(session.truncations) == 1


async def test_speech_cuts_nothing_where_the_route_says_so(world: GatewayStack) -> None:
    """``interrupt_response = false``: the answer is heard to its end."""
    answers = [{"kind": "pattern", "seconds": 2, "burst": True}, {"kind": "silent"}]
    world.behave(vad="scripted", answers=answers, speech={"at_ms": [500], "length_ms": 200})
    call = await world.dial("deaf")
    session = await world.session_of(call)
    await silence_again(call)
    await world.summary_at_end(call)
    (item_id,) = session.sent_items
    assert session.sent("input_audio_buffer.speech_started")
    assert heard_of(session, call.rtp.packets, item_id) == 2000
    assert not session.truncations
