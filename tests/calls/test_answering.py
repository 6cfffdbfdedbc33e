# SPDX-License-Identifier: GPL-2.0-or-later
"""``[route.answer]``: early media, and calls that are answered before the model is there."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.audio import Codec
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import Spoken, assert_continuous, is_silence, noise, speech
from tests.support.rtp_end import FRAME

SECONDS = 1.2
PROMPT = noise(70, SECONDS)
SHORT_ANSWER: dict[str, Any] = {"kind": "pattern", "seconds": 3, "burst": True}

ROUTES = """
[[route]]
name = "early"
to = "^early$"
answer = {{ mode = "early_media", sound = "{wav}" }}
[route.greeting]
say = "Hello."

[[route]]
name = "tone"
to = "^tone$"
answer = {{ mode = "early_media" }}

[[route]]
name = "at-once"
to = "^at-once$"
answer = {{ mode = "immediate", sound = "{wav}" }}
[route.greeting]
say = "Hello."

[[route]]
name = "hurried"
to = "^hurried$"
fallback = []
answer = {{ mode = "immediate", sound = "{wav}" }}
[route.realtime]
url = "{{url}}"
connect_timeout = 1.5

[[route]]
name = "announced"
to = "^announced$"
answer = {{ mode = "immediate", sound = "{wav}", play_to_end = true }}
[route.greeting]
say = "Hello."
"""


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    """A world whose routes play a file of known bytes."""
    folder = tmp_path_factory.mktemp("world")
    wav = folder / "prompt.wav"
    samples = np.frombuffer(Codec.PCMU.to_linear(PROMPT), np.int16)
    with wave.open(str(wav), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    made = GatewayStack(folder / "own", routes=ROUTES.format(wav=Path(wav)))
    runner.run(made.start())
    yield made
    runner.run(made.stop())


def prompt_heard(call: DialogCall) -> int:
    """Frames of the prompt, from its beginning, that were heard first of all."""
    heard = speech(call.rtp.packets)
    for frames in range(len(PROMPT) // FRAME, 0, -1):
        if heard.startswith(PROMPT[: frames * FRAME]):
            return frames
    return 0


async def agent_heard(world: GatewayStack, call: DialogCall) -> None:
    """Asserts that the greeting was heard from its beginning."""
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    (audio,) = session.sent_items.values()
    spoken = Spoken(bytes(audio))
    await call.rtp.until(lambda: len(spoken.packets_of(call.rtp.packets)) >= 50)
    assert spoken.heard_ms(call.rtp.packets) >= 1000


def assert_continuous_but_for_the_ack(call: DialogCall) -> None:
    """No packet is missing; between the 200 and its ACK silence need not be sent."""
    packets = call.rtp.packets
    jumps = [
        number
        for number, (before, after) in enumerate(pairwise(packets), 1)
        if after.timestamp != (before.timestamp + FRAME) & 0xFFFFFFFF
    ]
    assert len(jumps) <= 1
    (acknowledged,) = jumps or [len(packets) - 1]
    assert_continuous(packets[:acknowledged])
    assert_continuous(packets[acknowledged:])
    before, after = packets[acknowledged - 1 : acknowledged + 1]
    assert after.sequence == (before.sequence + 1) & 0xFFFF


async def test_a_prompt_before_the_answer(world: GatewayStack) -> None:
    """183 with a description, the prompt from its beginning, then 200 when the model is there."""
    for _ in range(2):
        world.behave(vad="off", answer=SHORT_ANSWER, updated="never")
        call = dialog_call(world.phone, "early")
        call.invite()
        await call.until(lambda c: 183 in c.responses, what="183")
        progress = next(m for m in call.messages if m.code == 183)
        assert "m=audio" in progress.body
        call._take(progress.body)
        await call.rtp.until(lambda: prompt_heard(call) >= 30)  # noqa: B023
        await world.updated()
        await call.answered()
        assert list(dict.fromkeys(call.responses)) == [100, 183, 200]
        await agent_heard(world, call)
        times = (await world.summary_at_end(call))["times_ms"]
        assert times["ringing"] < times["session"] <= times["answered"] < times["confirmed"]
        assert_continuous_but_for_the_ack(call)


async def test_ringback_before_the_answer(world: GatewayStack) -> None:
    world.behave(vad="off", updated="never")
    call = dialog_call(world.phone, "tone")
    call.invite()
    await call.until(lambda c: 183 in c.responses, what="183")
    call._take(next(m for m in call.messages if m.code == 183).body)
    await call.rtp.until(lambda: sum(not is_silence(p) for p in call.rtp.packets) > 10)
    assert call.final is None
    await world.updated()
    await call.answered()
    await world.summary_at_end(call)


async def test_reliable_early_media(world: GatewayStack) -> None:
    """Whoever requires 100rel gets the description in a 183 that is acknowledged (RFC 3262)."""
    world.behave(vad="off", answer=SHORT_ANSWER, updated="never")
    call = dialog_call(world.phone, "early", "Require: 100rel")
    call.invite()
    await call.until(lambda c: 183 in c.responses, what="183")
    progress = next(m for m in call.messages if m.code == 183)
    assert "100rel" in progress.headers["require"]
    await call.rtp.until(lambda: prompt_heard(call) >= 15)
    await world.updated()
    await call.answered()
    assert call.responses.count(200) == 1
    await agent_heard(world, call)
    await world.summary_at_end(call)


async def test_cancelled_while_the_prompt_plays(world: GatewayStack) -> None:
    world.behave(updated="never")
    call = dialog_call(world.phone, "early")
    call.invite()
    await call.until(lambda c: 183 in c.responses, what="183")
    await call.rtp.until(lambda: len(call.rtp.packets) > 10)
    call.cancel()
    assert (await call.refused()).code == 487
    assert (await world.summary(call))["ending"]["why"] == "cancelled"
    await eventually(lambda: not world.emulator.live, "the session closed")


async def test_answered_at_once(world: GatewayStack) -> None:
    world.behave(vad="off", answer=SHORT_ANSWER, updated="never")
    call = await answered(dialog_call(world.phone, "at-once"))
    # A 200 that is acknowledged late is sent again.
    assert list(dict.fromkeys(call.responses)) == [100, 200]
    await world.gateway.wait("call.confirmed", call=call.call_id)
    assert not world.gateway.all("call.session_up", call=call.call_id)
    await call.rtp.until(lambda: prompt_heard(call) >= 30)
    await world.updated()
    await agent_heard(world, call)
    times = (await world.summary_at_end(call))["times_ms"]
    assert times["answered"] < times["confirmed"] < times["session"]
    assert_continuous(call.rtp.packets)


async def test_an_announcement_is_heard_to_its_end(world: GatewayStack) -> None:
    """The model is there long before; its first word comes after the announcement's last."""
    world.behave(vad="off", answer=SHORT_ANSWER)
    call = await answered(dialog_call(world.phone, "announced"))
    await agent_heard(world, call)
    assert prompt_heard(call) == len(PROMPT) // FRAME
    await world.summary_at_end(call)
    assert_continuous(call.rtp.packets)


async def test_answered_at_once_and_no_model(world: GatewayStack) -> None:
    """The line that is up is hung up, with the cause that the 503 would have had."""
    world.behave(updated="never")
    call = await answered(dialog_call(world.phone, "hurried"))
    bye = await call.hung_up()
    assert bye.headers["reason"].startswith("Q.850;cause=41")
    ending = (await world.summary(call))["ending"]
    assert (ending["why"], ending["sip_code"]) == ("session_unreachable", 200)


async def test_hung_up_before_the_model_is_there(world: GatewayStack) -> None:
    world.behave(updated="never")
    call = await answered(dialog_call(world.phone, "at-once"))
    await world.summary_at_end(call)
    await eventually(lambda: not world.emulator.live, "the session closed")
