# SPDX-License-Identifier: GPL-2.0-or-later
"""What a Live session keeps, and what ends it: clips, questions, its close, a server that is
frozen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.realtime import live_session, live_voice
from gateway.realtime.connection import Endpoint
from gateway.realtime.events import (
    AppendText,
    CancelResponse,
    ContinueWork,
    CreateResponse,
    PlayClip,
)
from gateway.realtime.live_session import LiveSession
from gateway.realtime.session_object import live_object
from gateway.realtime.setup import open_session
from tests.support import idle_clock
from tests.support.listening import noise
from tests.support.scripted_realtime import KEY, WAIT, Heard, Peer, Script, serving

CLIP = "session.output_audio.fixture.play"
BACKEND = {"delegation": {"type": "responses", "responses": {"model": "gpt-5"}}}


@asynccontextmanager
async def live(script: Script, **route: Any) -> AsyncIterator[tuple[LiveSession, Heard]]:
    async def started(peer: Peer) -> None:
        start = await peer.receive("session.start")
        await peer.send("session.started", session={"id": "sess_1", **start["session"]})
        await script(peer)

    async with serving(started) as server:
        heard = Heard()
        session = await open_session(
            Endpoint(server.url.replace("/realtime", "/live/sessions"), "gpt-live-1.1", KEY),
            live_object(route, "PCMU", []),
            timeout=WAIT,
            on_event=heard.on_event,
            on_closed=heard.on_closed,
        )
        assert isinstance(session, LiveSession)
        try:
            yield session, heard
        finally:
            await session.close()
            assert heard.closed


async def ends(peer: Peer) -> None:
    await peer.receive("session.close")
    await peer.send("session.closed", reason="close_requested", usage={"seconds": 7})
    await peer.until_closed()


def commands(peer: Peer) -> list[str]:
    names = [one["type"] for one in peer.received]
    return [name for name in names if name not in ("session.input_audio.append", "session.start")]


# ---- clips


async def test_a_rejected_clip_holds_nothing() -> None:
    told = asyncio.Event()

    async def script(peer: Peer) -> None:
        clip = await peer.receive(CLIP)
        await peer.error("forbidden", "no fixtures", client_event_id=clip["event_id"])
        await peer.receive("session.thinking.append")
        told.set()
        await ends(peer)

    async with live(script) as (session, _):
        session.send(CreateResponse(None, "Hello.", b"\0\0"))
        session.send(AppendText("thinking", "The caller is at home."))
        async with asyncio.timeout(WAIT):
            await told.wait()
        assert session._voice.clip_words == ""


async def test_what_comes_after_a_second_clip_waits_for_its_end() -> None:
    seen: list[list[str]] = []
    ready, came = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive(CLIP)
        await peer.send("session.output_audio.fixture.played")
        await peer.receive(CLIP)
        for _ in range(10):  # 0.2 s of audio, which is sent meanwhile
            await peer.receive("session.input_audio.append")
        seen.append(commands(peer))
        ready.set()
        await peer.send("session.output_audio.fixture.played")
        await peer.receive("session.thinking.append")
        came.set()
        await ends(peer)

    async with live(script) as (session, _):
        session.send(PlayClip(b"\0\0"))
        session.send(CreateResponse(None, "Good day.", b"\0\0"))
        session.send(AppendText("thinking", "The caller is at home."))
        async with asyncio.timeout(WAIT):
            await ready.wait()
            assert session._voice.clip_words == "Good day."
            await came.wait()
    assert seen == [[CLIP, CLIP]]


# ---- out-of-band questions


def question(text: str) -> CreateResponse:
    return CreateResponse(
        {"conversation": "none", "output_modalities": ["text"], "metadata": {"k": text}}
    )


async def test_after_a_rejected_question_the_next_one_is_asked() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive("response.item.create")
        refused = await peer.receive("response.create")
        await peer.error("invalid_value", "no", client_event_id=refused["event_id"])
        await peer.receive("response.item.create")
        await peer.receive("response.create")
        asked.set()
        await ends(peer)

    async with live(script, **BACKEND) as (session, _):
        session.send(question("first"))
        session.send(question("second"))
        async with asyncio.timeout(WAIT):
            await asked.wait()


async def test_after_a_question_that_nobody_waits_for_the_next_one_is_asked() -> None:
    seen: list[list[str]] = []

    async def script(peer: Peer) -> None:
        await peer.receive("response.create")
        for _ in range(10):  # 0.2 s of audio, which is sent meanwhile
            await peer.receive("session.input_audio.append")
        seen.append(commands(peer))
        given_up.set()
        await peer.receive("response.create")
        asked.set()
        await ends(peer)

    given_up, asked = asyncio.Event(), asyncio.Event()
    async with live(script, **BACKEND) as (session, _):
        first, second, third = map(question, ("first", "second", "third"))
        for one in (first, second, third):
            session.send(one)
        async with asyncio.timeout(WAIT):
            await given_up.wait()
            session.send(CancelResponse("", second))
            session.send(CancelResponse("", first))
            await asked.wait()
        assert session._backend is not None
        assert session._backend._asked is third
    assert seen == [["response.item.create", "response.create"]]


async def test_a_question_behind_a_backend_that_hangs_is_asked_in_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else need happen for it."""
    monkeypatch.setattr(live_voice, "STUCK_SECONDS", 0.3)
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive("response.create")  # which it never answers
        await peer.receive("response.item.create")
        await peer.receive("response.create")
        asked.set()
        await ends(peer)

    async with live(script, **BACKEND) as (session, _):
        session.send(ContinueWork())
        session.send(question("first"))
        assert session._backend is not None
        assert session._backend._asked is None
        async with asyncio.timeout(WAIT):
            await asked.wait()


# ---- the close


async def test_a_second_close_leaves_the_first_its_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive("session.close")
        pong = await peer.ws.ping()
        await pong  # both closes have begun, and neither has ended the connection
        await peer.send("session.closed", reason="close_requested", usage={"seconds": 7})
        await peer.until_closed()

    async with live(script) as (session, heard):
        await asyncio.gather(session.close(), session.close("again"))
        assert session.ended is not None
        assert session.ended.seconds == 7
        assert heard.closed[0].by_us


async def test_a_cancelled_close_ends_the_session() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive("session.close")
        asked.set()
        await peer.until_closed()

    async with live(script) as (session, heard):
        closing = asyncio.ensure_future(session.close())
        async with asyncio.timeout(WAIT):
            await asked.wait()
        closing.cancel()
        await heard.end()
        before = session.counters.audio_dropped
        for _ in range(3):
            session.append(noise(5, 0.4)[:160])
        assert session.counters.audio_dropped == before + 3
        assert not session._pacer._frames


@pytest.mark.parametrize("talks", [False, True])
def test_a_frozen_server_is_left_once_the_caller_speaks(
    talks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers pings, and sends nothing; ``talks``: it goes on with its track, and is not
    frozen."""
    monkeypatch.setattr(live_session, "FROZEN_SECONDS", 0.3)
    monkeypatch.setattr(live_session, "CLOSED_SECONDS", 0.1)

    async def script(peer: Peer) -> None:
        track = json.dumps({"type": "session.output_audio.delta", "delta": "////////"})
        closed = asyncio.ensure_future(peer.until_closed())
        while not (await asyncio.wait((closed,), timeout=0.05))[0]:
            if talks:
                await peer.ws.send(track)

    async def scenario() -> None:
        async with live(script) as (session, heard):
            voice = noise(3, 1.0)
            for start in range(0, len(voice), 160):
                session.append(voice[start : start + 160])
                await asyncio.sleep(0.02)
            if not talks:
                await heard.end()
            assert len(heard.closed) == (not talks)

    with capture_logs() as logs:
        idle_clock.run(scenario())
    assert [one["event"] for one in logs].count("session.frozen") == (not talks)
