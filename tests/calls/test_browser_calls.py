# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls whose telephone is a page: its WebSocket spoken by a test, beside SIP calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.api.call_audio import BURST_FRAMES, MAX_FRAMES
from tests.calls.test_api import API, TOKENS, Client, metric
from tests.calls.test_transfer_blind import outputs_of
from tests.support.callee import CalledPhone, free_port
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.listening import (
    MOST_OF_IT,
    Spoken,
    all_arrives,
    missing_frames,
    noise,
    share_heard,
)
from tests.support.rtp_end import EVENT_PAYLOAD, FRAME, Packet

PORT = free_port()
SILENCE = b"\xff" * FRAME
LIMIT = 3
WORLD = {
    "more": API.replace("[api]\n", f"[api]\nbrowser_calls = {LIMIT}\n")
    + '[access]\nunknown_sources = "allow"\n[outbound]\nmax_calls_per_minute = 60\n'
    + '[recording]\nfolder = "recordings"\nformat = "wav"\n'
    + PATIENT,
    "routes": f"""
[[route]]
name = "quick"
to = "^quick$"
limits.rtp_timeout = 1
[[route]]
name = "recorded"
to = "^recorded$"
greeting.say = "Hello."
recording.mode = "always"
[[route]]
name = "office"
to = "^office$"
greeting.say = "Hello."
transfer_call.sound = "silence"
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "blind"
[[route.transfer]]
name = "far"
to = "tel:+4930123456"
""",
}


class Page:
    """A page in a call: a microphone with a clock of its own, an ear, and what it is told."""

    def __init__(self, world: GatewayStack, socket: ClientConnection) -> None:
        self.world = world
        self.socket = socket
        self.call_id = ""
        self.packets: list[Packet] = []
        self.told: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        self._pulse = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                if isinstance(message, str):
                    self.told.append(json.loads(message))
                else:
                    for start in range(0, len(message), FRAME):
                        frame, number = message[start : start + FRAME], len(self.packets)
                        self.packets.append(
                            Packet(time.time(), number, number * FRAME, 0, False, frame)
                        )
                self._pulse.set()
        except ConnectionClosed:
            pass
        self.closed = self.socket.close_code or 1006, self.socket.close_reason or ""
        self._pulse.set()

    async def until(self, condition: Callable[[], Any], within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                self._pulse.clear()
                await self._pulse.wait()

    async def message(self, kind: str) -> dict[str, Any]:
        """The first message of this type, once it is there."""
        await self.until(lambda: self.closed or any(one["type"] == kind for one in self.told))
        found = [one for one in self.told if one["type"] == kind]
        assert found, (self.told, self.closed)
        return found[0]

    async def answered(self) -> Page:
        self.call_id = (await self.message("trying"))["call"]
        await self.message("answered")
        await self.world.gateway.wait("call.confirmed", call=self.call_id)
        return self

    async def say(self, audio: bytes, each_s: float = 0.02) -> None:
        """Send frames by the clock of this test."""
        for start in range(0, len(audio), FRAME):
            await self.socket.send(audio[start : start + FRAME].ljust(FRAME, b"\xff"))
            await asyncio.sleep(each_s)

    async def tell(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def ended(self) -> dict[str, Any]:
        """What it is told of the end, once the WebSocket is closed too."""
        await self.until(lambda: self.closed)
        return await self.message("ended")

    @property
    def heard(self) -> bytes:
        return b"".join(packet.payload for packet in self.packets)


@asynccontextmanager
async def page(
    world: GatewayStack, to: str = "plain", role: str = "operator", **headers: str
) -> AsyncIterator[Any]:
    """A page that calls, and has left at the end."""
    address = world.gateway.all("api.listening")[-1]["address"]
    fields = {"Authorization": f"Bearer {TOKENS[role]}", **headers} if role else headers
    uri = f"ws://{address}/api/v1/browser-call?to={to}&from=%2B4930555"
    async with connect(uri, additional_headers=fields, proxy=None) as socket:
        yield Page(world, socket)


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The telephone of a colleague."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


async def test_a_page_is_a_caller_like_any_other(world: GatewayStack) -> None:
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 1.5, "seed": 3})
    async with page(world, "greeted") as one:
        await one.answered()
        session = await world.session_of(one)
        said = noise(1, 1.0)
        await one.say(said)
        await all_arrives(session, said, 30)
        await session.wait_until(lambda s: s.sent("response.done") != [], 30)
        (item,) = session.sent_items.values()
        await one.until(lambda: item[-FRAME:] in one.heard)
        assert Spoken(bytes(item)).heard_ms(one.packets) == 1500
        await one.tell(type="ping", id=7)
        assert await one.message("pong") == {"type": "pong", "id": 7}
        await one.tell(type="hangup")
        ended = await one.ended()
        assert ended["code"] == 200
        assert one.closed == (1000, "call_over")
    record = await world.record(one)
    assert (record["ending"]["by"], record["ending"]["why"]) == ("caller", "remote_hangup")
    assert (record["transport"], record["codec"]) == ("browser", "PCMU")
    assert record["from"] == "sip:+4930555@browser.invalid"
    assert "a page in a browser, token operator-one; api.browser_calls (gateway.toml" in str(
        record["explanation"][0]
    )
    assert record["uplink"]["packets"] == 50
    line = await world.gateway.wait("api.audit", action="browser_call", call=one.call_id)
    assert (line["who"], line["to"], line["result"]) == ("operator-one", "greeted", "ok")


async def test_keys_of_a_page_are_keys(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    async with page(world) as one:
        await one.answered()
        for key in "42#":
            await one.tell(type="dtmf", digit=key)
        session = await world.session_of(one)
        await session.wait_until(lambda s: s.seen("conversation.item.create") != [], 30)
        assert "4 2" in str(session.seen("conversation.item.create")[0].body)
        async with Client(world, "operator") as http:
            await http.post(f"/api/v1/calls/{one.call_id}/dtmf", json={"digits": "9"})
            assert (await one.message("dtmf"))["digit"] == "9"
            await http.post(f"/api/v1/calls/{one.call_id}/hangup")
        await one.ended()
    assert (await world.summary(one))["ending"]["why"] == "operator"


async def test_a_page_interrupts(world: GatewayStack) -> None:
    """What the server is told was heard is what the page got, to the millisecond."""
    answer = {"kind": "pattern", "seconds": 20, "speed": 4.0}
    world.behave(vad="scripted", answer=answer, speech={"at_ms": [1500], "length_ms": 60_000})
    async with page(world, "greeted") as one:
        await one.answered()
        session = await world.session_of(one)
        await session.wait_until(lambda s: s.sent("conversation.item.truncated") != [], 20)
        (cut,) = session.truncations
        count = len(one.packets)
        await one.until(lambda: len(one.packets) > count + 20)
        assert set(one.heard[-10 * FRAME :]) == {0xFF}
        spoken = Spoken(bytes(session.sent_items[cut.item_id]))
        assert spoken.heard_ms(one.packets) == cut.requested_ms < cut.item_ms
    assert (await world.summary(one))["ending"]["why"] == "remote_hangup"


async def test_bursts_and_gaps_lose_nothing_and_are_counted(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    async with page(world) as one:
        await one.answered()
        session = await world.session_of(one)
        said = noise(5, 2.0)
        await one.say(said[: 25 * FRAME])
        await session.wait_until(lambda s: s.received.endswith(SILENCE * 20), 30)
        for start in range(25 * FRAME, len(said), MAX_FRAMES * FRAME):  # at once
            await one.socket.send(said[start : start + MAX_FRAMES * FRAME])
        await all_arrives(session, said, 30)
    record = await world.record(one)
    uplink = record["uplink"]
    assert uplink["packets"] == 100
    assert uplink["standing_in_ms"] >= uplink["overtaken_ms"] > 300
    assert uplink["dropped_ms"] == 0


@pytest.mark.parametrize(
    ("sent", "closed"),
    [
        (b"", (1003, "no_frames")),
        (b"\xff" * 159, (1003, "no_frames")),
        (SILENCE * (MAX_FRAMES + 1), (1009, "too_large")),
        (b"\xff" * 1_000_000, (1009, "too_large")),
        ([SILENCE * MAX_FRAMES] * 40, (1008, "too_fast")),
        (["{}"], (1003, "not_understood")),
        (["[" * 200], (1003, "not_understood")),
        (['{"type": "dtmf", "digit": "55"}'], (1003, "not_understood")),
        (['{"type": "dtmf", "digit": ""}'], (1003, "not_understood")),
        (['{"type": "ping", "id": "a"}'], (1003, "not_understood")),
        (["x" * 300], (1009, "too_large")),
        (['{"type": "ping", "id": 1}'] * 100, (1008, "too_fast")),
    ],
    ids=range(12),
)
async def test_what_a_page_may_not_send_ends_its_call_only(
    world: GatewayStack, sent: Any, closed: tuple[int, str]
) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    other = await world.dial()
    async with page(world) as one:
        await one.answered()
        for message in sent if isinstance(sent, list) else [sent]:
            await one.socket.send(message)
        await one.until(lambda: one.closed)
        assert one.closed == closed
    assert (await world.summary(one))["ending"]["why"] == "remote_hangup"
    said = noise(9, 0.2)
    other.rtp.say(said)
    session = await world.session_of(other)
    await all_arrives(session, said, 30)
    await world.summary_at_end(other)
    async with Client(world) as http:

        async def counted() -> bool:
            return await metric(http, "gateway_browser_calls_total", closed=closed[1]) >= 1

        await eventually(counted, "a count")


def test_the_burst_that_is_sent_is_more_than_may_come() -> None:
    assert 40 * MAX_FRAMES > BURST_FRAMES + 100


@pytest.mark.parametrize(
    ("role", "headers", "to", "status"),
    [
        ("", {}, "plain", 401),
        ("readonly", {}, "plain", 403),
        ("operator", {"Origin": "https://elsewhere.example"}, "plain", 403),
        ("operator", {}, "a%20b", 403),
        ("operator", {}, "", 403),
    ],
)
async def test_who_may_not_call(
    world: GatewayStack, role: str, headers: dict[str, str], to: str, status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with page(world, to, role, **headers):
            pass
    assert refused.value.response.status_code == status


async def test_no_more_calls_than_are_allowed(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    async with page(world) as a, page(world) as b, page(world) as c:
        for one in (a, b, c):
            await one.answered()
        async with page(world) as refused:
            await refused.until(lambda: refused.closed)
            assert refused.closed == (1013, "too_many")
        async with Client(world, "operator") as http:
            told = (await http.get("/api/v1/browser-call")).json()
            assert (told["limit"], told["active"]) == (LIMIT, LIMIT)
            assert {"number": "greeted", "route": "greeted"} in told["numbers"]
    for one in (a, b, c):
        await world.summary(one)
    async with Client(world) as http:

        async def nobody() -> bool:
            return bool((await http.get("/api/v1/browser-call")).json()["active"] == 0)

        await eventually(nobody, "all places free")


async def test_a_number_of_no_route(world: GatewayStack) -> None:
    async with page(world, "nowhere") as one:
        one.call_id = (await one.message("trying"))["call"]
        ended = await one.ended()
    assert (ended["code"], one.closed) == (404, (1000, "call_over"))
    assert (await world.summary(one))["ending"]["why"] == "no_route"


async def test_a_page_that_falls_silent_is_hung_up(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    async with page(world, "quick") as one:
        await one.answered()
        await one.say(SILENCE * 5)
        await one.ended()
    assert (await world.summary(one))["ending"]["why"] == "rtp_timeout"


async def test_held_it_hears_music(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    async with page(world) as one, Client(world, "operator") as http:
        await one.answered()
        await one.until(lambda: len(one.packets) > 10)
        assert set(one.heard) == {0xFF}
        await http.post(f"/api/v1/calls/{one.call_id}/hold")
        await one.until(lambda: len(set(one.heard[-20 * FRAME :])) > 10)
        await http.post(f"/api/v1/calls/{one.call_id}/unhold")
        await one.until(lambda: set(one.heard[-20 * FRAME :]) == {0xFF})


async def test_a_transfer_joins_it_with_the_colleague(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """A page follows no REFER, whatever mode the destination has."""
    tool = {"name": "transfer_call", "arguments": '{"destination": "anna"}'}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    async with page(world, "office") as one:
        await one.answered()
        there = await callee.called()
        await world.gateway.wait("call.bridged", call=one.call_id)
        for attempt in range(4):  # a stall of this machine costs a jitter buffer a part
            said, answer = noise(20 + attempt, 1.0), noise(30 + attempt, 1.0)
            there.rtp.say(answer)
            await one.say(said + SILENCE * 20)
            await there.rtp.quiet()
            came = len(one.packets) + 30
            await one.until(lambda came=came: len(one.packets) > came)
            shares = (
                share_heard(said[4800:], there.rtp.heard),
                share_heard(answer[4800:], one.heard),
            )
            if min(shares) > MOST_OF_IT:
                break
        else:
            raise AssertionError(f"they do not hear each other: {shares}")
        await one.tell(type="dtmf", digit="5")
        await there.rtp.until(
            lambda: any(p.payload_type == EVENT_PAYLOAD for p in there.rtp.packets)
        )
        await one.tell(type="hangup")
        await one.ended()
        await there.hung_up()
    async with page(world) as next_one:  # has the port that the last one had
        await next_one.answered()
        await next_one.until(lambda: len(next_one.packets) > 20)
        assert set(next_one.heard) == {0xFF}
    record = await world.record(one)
    (attempt_made,) = record["transfers"]
    assert (attempt_made["outcome"], attempt_made["mode"]) == ("answered", "bridge")
    assert record["ending"]["why"] == "remote_hangup"


async def test_the_gateway_ends_while_a_page_is_in_a_call(own_folder: Path) -> None:
    own = GatewayStack(own_folder, more=str(WORLD["more"]))
    await own.start()
    own.behave(vad="off", answers=[{"kind": "silent"}])
    status = None
    try:
        async with page(own) as one:
            await one.answered()
            status = await own.gateway.stop()
            assert (await one.ended())["code"] == 200
            assert one.closed == (1000, "call_over")
        assert (await own.summary(one))["ending"]["why"] == "shutdown"
    finally:
        await own.stop(status)


async def test_a_transfer_that_needs_refer_is_refused(world: GatewayStack) -> None:
    tool = {"name": "transfer_call", "arguments": '{"destination": "far"}'}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    async with page(world, "office") as one:
        await one.answered()
        session = await world.session_of(one)
        await session.wait_until(lambda s: outputs_of(s) != [], 30)
        (output,) = outputs_of(session)
        assert "refused" in str(output)


async def test_its_recording_has_what_it_said_and_what_it_heard(
    world: GatewayStack, tmp_path: Path
) -> None:
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 1.0, "seed": 4})
    async with page(world, "recorded") as one:
        await one.answered()
        session = await world.session_of(one)
        said = noise(6, 1.0)
        await one.say(said)
        await session.wait_until(lambda s: s.sent("response.done") != [], 30)
        (item,) = session.sent_items.values()
        await one.until(lambda: item[-FRAME:] in one.heard)
        await one.say(SILENCE * 20)
        await one.tell(type="hangup")
        await one.ended()
    record = await world.record(one)
    path = world.folder / "recordings" / record["recording"]["file"]
    audio = path.read_bytes()[58:]
    left, right = audio[::2], audio[1::2]
    assert not missing_frames(said, left)
    assert bytes(item) in right
    # What it heard stands in the file as it came: a frame here is a frame there.
    offset = right.index(item[:FRAME]) - one.heard.index(item[:FRAME])
    overlap = len(item) + 10 * FRAME
    at = one.heard.index(item[:FRAME])
    assert right[at + offset :][:overlap] == one.heard[at:][:overlap]
