# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said and what is heard, byte for byte, whoever talks and whoever is silent."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from tests.support import figures
from tests.support.forked import Forked
from tests.support.harness import PATIENT, TRUSTED, GatewayStack
from tests.support.listening import (
    MOST_OF_IT,
    Spoken,
    all_arrives,
    assert_continuous,
    is_silence,
    missing_frames,
    noise,
    share_heard,
)
from tests.support.rtp_end import FRAME, Sender
from tests.support.sip_phone import PhoneCall

SECONDS = 10
MONOLOGUE_SECONDS = 60
LEAD_IN = 50 * FRAME
"""What is said before bytes are compared: a receiver fades the very first frame in."""

WORLD = {"log_level": "info", "more": PATIENT}


async def caller_talks(
    world: GatewayStack, call: PhoneCall, seed: int
) -> tuple[SessionRecord, int]:
    """Say known bytes until all have come, in order; returns the session that heard them, and the
    ms of anything else that came between, with which a busy machine's lateness is filled."""
    session = await world.session_of(call)
    said = noise(seed, SECONDS)
    call.rtp.say(b"\x55" * LEAD_IN + said)
    await call.rtp.quiet()
    await all_arrives(session, said, 30)
    received = bytes(session.received)
    first, last = received.find(said[:FRAME]), received.find(said[-FRAME:])
    return session, (last + FRAME - first - len(said)) // 8


async def agent_heard(world: GatewayStack, call: PhoneCall, seconds: int) -> Spoken:
    """Wait until the one answer was heard to its end; asserts every byte and every packet."""
    session = await world.session_of(call)
    rtp = call.rtp
    await rtp.until(lambda: any(not is_silence(p) for p in rtp.packets))
    (audio,) = session.sent_items.values()
    first = next(n for n, packet in enumerate(rtp.packets) if not is_silence(packet))
    await rtp.until(lambda: len(rtp.packets) > first + seconds * 50 + 5, seconds + 60)
    spoken = Spoken(bytes(audio))
    heard = spoken.packets_of(rtp.packets)
    assert spoken.heard_ms(rtp.packets) == seconds * 1000
    assert b"".join(packet.payload for packet in heard) == audio
    assert_continuous(heard)
    return spoken


async def ended(world: GatewayStack, call: PhoneCall, between_ms: int = 0) -> dict[str, object]:
    """Hang up; asserts that RTP never stopped on the way and that nothing was lost, and what stood
    between the caller's words was counted."""
    await call.hang_up()
    assert_continuous(call.rtp.packets)
    record = await world.record(call)
    assert record["dropped_uplink_frames"] == record["dropped_append_frames"] == 0
    assert record["refused_playout_frames"] == 0
    assert between_ms <= record["uplink"]["standing_in_ms"]
    return record


async def both_talk(world: GatewayStack, call: PhoneCall, seed: int) -> str:
    (_session, between_ms), _ = await asyncio.gather(
        caller_talks(world, call, seed), agent_heard(world, call, SECONDS)
    )
    record = await ended(world, call, between_ms)
    assert record["underruns"] == 0
    return f"all of {SECONDS} s both ways, {between_ms} ms of silence between"


async def only_caller_talks(world: GatewayStack, call: PhoneCall) -> None:
    session, between_ms = await caller_talks(world, call, 3)
    assert not session.sent_items
    await ended(world, call, between_ms)
    assert all(is_silence(packet) for packet in call.rtp.packets)


async def nobody_talks(world: GatewayStack, call: PhoneCall) -> None:
    session = await world.session_of(call)
    await call.rtp.heard_bytes(SECONDS * 8000)
    await session.wait_until(lambda s: s.received_total >= SECONDS * 7000, 30)
    await ended(world, call)
    assert all(is_silence(packet) for packet in call.rtp.packets)
    gaps = [(b.at - a.at) * 1000 for a, b in pairwise(call.rtp.packets)]
    figures.show("time between RTP packets", figures.spread(gaps, "ms"))


@pytest.fixture(scope="module")
def monologue(runner: asyncio.Runner, shared_world: GatewayStack) -> asyncio.Task[None]:
    """A minute of speech in one burst, listened to while the other tests run."""

    async def listen(call: PhoneCall) -> None:
        await agent_heard(shared_world, call, MONOLOGUE_SECONDS)
        record = await ended(shared_world, call)
        assert record["underruns"] == 0

    async def begin() -> asyncio.Task[None]:
        answer = {"kind": "pattern", "seconds": MONOLOGUE_SECONDS, "burst": True}
        shared_world.behave(vad="off", answer=answer)
        call = await shared_world.dial("greeted")
        shared_world.lasting.append(call)
        return asyncio.create_task(listen(call))

    return runner.run(begin())


async def test_every_row_at_the_same_time(
    world: GatewayStack, monologue: asyncio.Task[None]
) -> None:
    """Model silent and caller talking; both; nobody; the model bursting: four lines at once."""
    # Each next second is sent at once: a machine that stands still makes no hole.
    answer = {"kind": "pattern", "seconds": SECONDS, "seed": 5, "speed": 1000}
    world.behave(vad="off", answer=answer, chunk_ms=1000)
    lines = [await world.dial("greeted", codecs=(codec,)) for codec in ("PCMU", "PCMA")]
    # Nothing is asked of this model, so no response is due, and nothing covers for one.
    lines.append(await world.dial("plain"))
    before, at = world.gateway.cpu_seconds(), time.monotonic()
    pcmu, pcma, _ = await asyncio.gather(
        both_talk(world, lines[0], 1),
        both_talk(world, lines[1], 2),
        only_caller_talks(world, lines[2]),
    )
    used, took = world.gateway.cpu_seconds() - before, time.monotonic() - at
    figures.show("PCMU unchanged", pcmu)
    figures.show("PCMA unchanged", pcma)
    figures.show("CPU at four calls", f"{used / took / 4:.2%} of a core for each")
    assert not monologue.done()
    await nobody_talks(world, await world.dial("plain", codecs=("PCMA",)))


async def test_an_answer_that_stalls_is_heard_whole(world: GatewayStack) -> None:
    """Silence is played meanwhile, and counted."""
    answer = {"kind": "pattern", "seconds": 2, "stall_at_ms": 1000, "stall_s": 1.5}
    world.behave(vad="off", answer=answer)
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 30)
    (audio,) = session.sent_items.values()
    spoken = Spoken(bytes(audio))
    await call.rtp.until(lambda: len(spoken.packets_of(call.rtp.packets)) >= 100)
    record = await ended(world, call)
    assert spoken.heard_ms(call.rtp.packets) == 2000
    assert int(str(record["underruns"])) >= 1
    at = [number for number, one in enumerate(call.rtp.packets) if not is_silence(one)]
    silent_ms = sum(map(is_silence, call.rtp.packets[at[0] : at[-1]])) * 20
    assert 0 < int(str(record["underrun_ms"])) <= silent_ms


async def test_audio_of_an_odd_length_is_filled_up(world: GatewayStack) -> None:
    """An answer need not be a whole number of frames; its end is heard, then silence."""
    world.behave(
        vad="off", chunk_ms=33, answer={"kind": "pattern", "seconds": 0.7077, "burst": True}
    )
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 30)
    (audio,) = session.sent_items.values()
    whole = bytes(audio) + b"\xff" * (-len(audio) % FRAME)
    await call.rtp.until(lambda: whole in call.rtp.heard)
    await ended(world, call)


async def test_a_log_that_nobody_reads_holds_no_call_up(own_folder: Path) -> None:
    """Its pipe is full: calls are answered, interrupted and ended all the same."""
    world = GatewayStack(own_folder)
    await world.start()
    world.gateway.read_log(False)
    for number in range(4):
        answer = {"kind": "pattern", "seconds": 5, "burst": True, "seed": number}
        world.behave(vad="scripted", answer=answer, speech={"at_ms": [300], "length_ms": 60_000})
        call = world.phone.call("greeted")
        call.invite()
        await call.answered()
        session = world.emulator.sessions[-1]
        # On a busy machine the caller may speak before anything was heard: then it is deleted.
        await session.wait_until(lambda s: bool(s.truncations or s.deletions), 20)
        await call.hang_up()
        cuts = [(cut.item_id, cut.requested_ms) for cut in session.truncations]
        ((item_id, heard_ms),) = cuts or [(item_id, 0) for item_id in session.deletions]
        spoken = Spoken(bytes(session.sent_items[item_id]))
        assert spoken.heard_ms(call.rtp.packets) == heard_ms
    world.gateway.read_log(True)
    await world.idle()
    await world.stop()


async def test_an_answer_too_long_for_the_queue_is_said(own_folder: Path) -> None:
    """What does not fit is an error in the log, the beginning is heard, the call goes on."""
    world = GatewayStack(own_folder, realtime="max_playout_seconds = 2", more=TRUSTED)
    await world.start()
    world.gateway.tolerated.add("call.playout_overflow")
    answers = [{"kind": "pattern", "seconds": seconds, "burst": True} for seconds in (5, 1)]
    world.behave(vad="off", answers=answers)
    call = await world.dial("greeted", acknowledge=False)
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 30)
    overflow = await world.gateway.wait("call.playout_overflow", call=call.call_id)
    assert overflow["level"] == "error"
    call.ack()
    (audio,) = session.sent_items.values()
    spoken = Spoken(bytes(audio))
    await call.rtp.until(
        lambda: (
            len(spoken.packets_of(call.rtp.packets)) >= 100
            and all(is_silence(packet) for packet in call.rtp.packets[-10:])
        )
    )
    assert spoken.heard_ms(call.rtp.packets) == 2000
    call.rtp.press("1#")
    await session.wait_until(lambda s: len(s.sent_items) == 2, 30)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 30)
    again = bytes(list(session.sent_items.values())[1])
    await call.rtp.until(lambda: again in call.rtp.heard)
    summary = await world.summary_at_end(call)
    assert summary["refused_playout_frames"] > 0
    await world.idle()
    await world.stop()


async def test_what_the_network_does_to_packets_has_a_place_in_the_record(
    world: GatewayStack,
) -> None:
    """Lost, overtaken, doubled: the rest is in its place, and a caller who stops is silence in real
    time."""
    call = await world.dial("plain")
    session = await world.session_of(call)
    await call.rtp.heard_bytes(1600)
    sender = Sender(call.rtp)
    at = time.monotonic()
    sender.burst(b"\x55" * 10 * FRAME)
    said = noise(77, 0.4)
    frames = [said[at : at + FRAME] for at in range(0, len(said), FRAME)]
    for place in (*range(7), 8, 9, 11, 10, 12, 12, *range(13, 20)):
        first = (sender.sequence, sender.timestamp)
        sender.sequence = (sender.sequence + place) & 0xFFFF
        sender.timestamp = (sender.timestamp + place * FRAME) & 0xFFFFFFFF
        sender.put(frames[place], 0)
        sender.sequence, sender.timestamp = first
    arrived = said.replace(frames[7], b"\xff" * FRAME)
    await session.wait_until(lambda s: arrived in bytes(s.received), 30)
    before = bytes(session.received).index(arrived) + len(arrived)
    await session.wait_until(lambda s: s.received_total >= before + 8000, 30)
    assert time.monotonic() - at > 0.9
    assert bytes(session.received)[-8000:] == b"\xff" * 8000
    uplink = (await world.summary_at_end(call))["uplink"]
    assert {name: uplink[name] for name in ("lost", "late", "reordered", "duplicates")} == {
        "lost": 1, "late": 0, "reordered": 1, "duplicates": 1,
    }  # fmt: skip
    assert uplink["standing_in_ms"] >= 1000
    assert uplink["dropped_ms"] == 0


@pytest.mark.parametrize("codec", ["PCMU", "PCMA"])
async def test_gateway_call_plays_and_records_the_same_bytes(
    world: GatewayStack, tmp_path: Path, codec: str
) -> None:
    """The scripted caller, which is pjsip like the gateway, against the telephone's result."""
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 2, "first_delay_ms": 500})
    ending = "ulaw" if codec == "PCMU" else "alaw"
    played, heard = tmp_path / f"played.{ending}", tmp_path / f"heard.{ending}"
    said = noise(7, 2)
    played.write_bytes(b"\x55" * LEAD_IN + said)
    host, port = world.gateway.sip
    process = await Forked.command(
        *("test-call", f"sip:greeted@{host}:{port}", "--codec", codec),
        *("--play", played, "--record", heard, "--seconds", "4.5"),
    )
    _out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    session = world.emulator.sessions[-1]
    assert not missing_frames(said, bytes(session.received))
    (audio,) = session.sent_items.values()
    assert share_heard(bytes(audio), heard.read_bytes()) > MOST_OF_IT


async def test_a_minute_in_one_burst_is_heard_to_its_end(
    world: GatewayStack, monologue: asyncio.Task[None]
) -> None:
    """All of it, in order, without a gap, whatever the other calls did meanwhile."""
    await monologue
    world.lasting.clear()
