# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls in progress as others watch them: both sides listened to, levels, timeline and words."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.calls.test_api import API, TOKENS, Client
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.listening import is_silence, noise

WORLD = {"more": API + PATIENT}


def bearer(role: str) -> dict[str, str]:
    """The header field with the token of a role."""
    return {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}


async def test_an_operator_listens_in_and_disturbs_nobody(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 30, "burst": True}])
    call = await world.dial("greeted")
    (name,) = world.gateway.ids_of(call.call_id)
    await call.rtp.until(lambda: any(not is_silence(p) for p in call.rtp.packets))
    address = world.gateway.all("api.listening")[-1]["address"]
    url = f"ws://{address}/api/v1/calls/{name}/audio"
    for role, status in (("", 401), ("readonly", 403)):
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers=bearer(role), proxy=None)
        assert refused.value.response.status_code == status
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{url}x".replace(name, "nobody"), additional_headers=bearer("operator"))
    async with Client(world, "readonly") as http, connect(
        url, additional_headers=bearer("operator"), proxy=None
    ) as socket:  # fmt: skip
        told = json.loads(await socket.recv())
        assert told == {"codec": "PCMU", "rate": 8000, "frame_ms": 20}
        sound, lost = bytearray(), 0

        async def listen() -> None:
            nonlocal lost
            async for message in socket:
                assert isinstance(message, bytes)
                lost = int.from_bytes(message[:4], "big")
                sound.extend(message[4:])

        # At once: what is not read in time is dropped.
        listening = asyncio.create_task(listen())
        call.rtp.read_what_waits()  # what was sent before anybody listened
        said, before = noise(3, 20.0), len(call.rtp.packets)
        call.rtp.say(said)

        async def both_are_loud() -> bool:
            caller, agent = (await http.get("/api/v1/levels")).json()["levels"][name]
            return (caller or -90) > -10 and (agent or -90) > -40

        await eventually(both_are_loud, "the levels of both")

        def is_heard() -> bool:
            """Whether 0.2 s of each side have come as they were, once."""
            told = b"".join(one.payload for one in call.rtp.packets[before:])
            return all(
                any(
                    sound[side::2].count(words[at : at + 1600]) == 1
                    for at in range(0, len(words) - 1599, 1600)
                )
                for side, words in enumerate((said, told))
            )

        await eventually(is_heard, "both sides")
        await call.hang_up()
        await listening
        assert socket.close_code == 1000
        # A process that stands still for a second drops what it cannot hand on.
        assert lost == 0 or world.gateway.all("gateway.loop_stalled")
    done = await world.gateway.wait("api.audit", action="listened", call=name)
    assert (done["who"], done["result"][-2:]) == ("operator-one", " s")
    summary = await world.summary(call)
    assert (summary["underruns"], summary["dropped_append_frames"]) == (0, 0)


async def test_a_call_is_watched_as_it_goes_on(world: GatewayStack) -> None:
    call = await world.dial("greeted")
    (name,) = world.gateway.ids_of(call.call_id)
    path, asked = f"/api/v1/calls/{name}/progress", len(world.gateway.all("api.audit"))
    async with Client(world, "operator") as http:
        first = (await http.get(path)).json()["call"]
        assert first["timeline"][0]["event"] == "invite"
        assert first["state"] == "talking"
        marks = list(first["timeline"])

        async def greeted() -> bool:
            params = {"place": first["place"], "spoken": first["spoken"]}
            first.update((await http.get(path, params=params)).json()["call"])
            marks.extend(first["timeline"])
            return any(one["text"] == "Hello." for one in first["transcript"])

        await eventually(greeted, "the greeting's words")
        await world.summary_at_end(call)
        record = await world.record(call)
        assert marks == record["timeline"][: len(marks)]
        assert (await http.get(path)).status_code == 404
    lines = [line for line in world.gateway.all("api.audit")[asked:] if line["action"] == "read"]
    assert len(lines) == 1, "who watches a call is logged once"
    async with Client(world, "readonly") as http:
        assert (await http.get(path)).status_code == 403
