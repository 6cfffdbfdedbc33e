# SPDX-License-Identifier: GPL-2.0-or-later
"""A key that reaches a human: with a model that talks, hangs, is lost or was never there."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support import figures
from tests.support.callee import CalledPhone, free_port
from tests.support.forked import Forked
from tests.support.harness import GatewayStack
from tests.support.referred import ReferredCall, dial

PORT, SERVER = free_port(), free_port()
# The server has an address of its own: elsewhere the system may have given its port to another.


def _route(name: str, more: str = "") -> str:
    return f"""
[[route]]
name = "{name}"
to = "^{name}$"
{more}
[route.greeting]
say = "Hello."
[[route.transfer]]
name = "queue"
to = "sip:busy-486@127.0.0.1:{PORT}"
mode = "bridge"
ring_timeout = 1.5
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[route.escape]
key = "0"
phrases = ["human", "real person"]
"""


# The words of callers are known where they are transcribed.
HEARD = '[route.session.audio.input.transcription]\nmodel = "gpt-transcribe"\n'


FAR = f'[route.realtime]\nurl = "ws://127.0.0.3:{SERVER}"\napi_key = ""\n'
AGAIN = '[[route.fallback]]\naction = "reconnect"\ntimeout = 60\nsound = "chime"\n'
WORLD = {
    "more": '[access]\nunknown_sources = "allow"\n[outbound]\nmax_calls_per_minute = 60\n',
    "routes": _route("office")
    + 'to = ["queue", "anna"]\n'
    + _route("heard", HEARD)
    + 'to = ["anna"]\n'
    + _route("nobody")
    + 'to = ["queue"]\n'
    + _route("far", FAR + AGAIN)
    + 'to = ["anna"]\n'
    + _route("away", FAR + AGAIN + '[route.answer]\nmode = "immediate"\nsound = "chime"\n')
    + 'to = ["anna"]\n',
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The telephone of everybody here."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


async def human_answers(world: GatewayStack, call: ReferredCall, callee: CalledPhone) -> float:
    """Press the key; returns the seconds until a human has answered and both are joined."""
    began = time.monotonic()
    call.rtp.press("0")
    await callee.called()
    await world.gateway.wait("call.bridged", call=call.call_id)
    return time.monotonic() - began


async def end(world: GatewayStack, call: ReferredCall, why: str = "remote_hangup") -> None:
    """Hang up; nothing is left."""
    await call.hang_up()
    assert (await world.summary(call))["ending"]["why"] == why


async def test_destinations_are_tried_in_order(world: GatewayStack, callee: CalledPhone) -> None:
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 20}])
    call = await dial(world, "office")
    await call.rtp.heard_bytes(16000)
    await human_answers(world, call, callee)
    await end(world, call)
    record = await world.record(call)
    assert [one["outcome"] for one in record["transfers"]] == ["busy", "answered"]
    assert record["interruptions"][0]["trigger"] == "escape"


async def test_nobody_there_brings_the_caller_back(
    world: GatewayStack, callee: CalledPhone
) -> None:
    back = {"kind": "pattern", "seconds": 0.4, "seed": 5}
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 0.4}, back])
    call = await dial(world, "nobody")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    call.rtp.press("0")
    await world.gateway.wait("call.escape_failed", call=call.call_id)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    assert len(callee.calls) == 1
    await end(world, call)


@pytest.mark.parametrize("way", ["word", "info"])
async def test_a_word_or_a_key_by_info(world: GatewayStack, callee: CalledPhone, way: str) -> None:
    transcripts = ["My dog's name is Person.", "I want a real person, please!"]
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 20}], transcripts=transcripts)
    call = await dial(world, "heard")
    session = await world.session_of(call)
    await call.rtp.heard_bytes(8000)
    if way == "info":
        call.info("application/dtmf-relay", "Signal=0\r\nDuration=100\r\n")
    else:
        world.emulator.live[session.id].session.pretend_speech(100)
        await world.gateway.wait("call.caller_transcript", call=call.call_id)
        assert not callee.calls
        world.emulator.live[session.id].session.pretend_speech(100)
    await world.gateway.wait("call.bridged", call=call.call_id)
    (line,) = world.gateway.all("call.escape", call=call.call_id)
    assert line["by"] == ("word" if way == "word" else "key")
    await end(world, call)


class Server:
    """A realtime server in a process of its own."""

    async def start(self) -> None:
        """Start it."""
        self.process = await Forked.command("emulator", "--listen", f"127.0.0.3:{SERVER}")
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.3", SERVER)
                except OSError:
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    return

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    async def stop(self) -> None:
        """End it, also where it is stopped."""
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        await self.process.wait()


@pytest.mark.parametrize("trouble", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "lost"])
async def test_the_model_is_not_needed(
    world: GatewayStack, callee: CalledPhone, trouble: signal.Signals
) -> None:
    server = Server()
    await server.start()
    try:
        call = await dial(world, "far")
        await call.rtp.heard_bytes(8000)
        server.send(trouble)
        if trouble is signal.SIGKILL:
            await world.gateway.wait("call.session_lost", call=call.call_id)
        seconds = await human_answers(world, call, callee)
        figures.show(f"a key past a server, {trouble.name}: a human answers", f"{seconds:.2f} s")
        await end(world, call)
    finally:
        await server.stop()


async def test_no_session_is_needed_either(world: GatewayStack, callee: CalledPhone) -> None:
    call = await dial(world, "away")
    await call.rtp.heard_bytes(8000)
    await human_answers(world, call, callee)  # long before a session is given up
    await end(world, call)
