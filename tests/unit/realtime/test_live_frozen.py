# SPDX-License-Identifier: GPL-2.0-or-later
"""A Live server that answers pings and sends nothing more."""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from gateway.realtime import live_session
from gateway.realtime.endpoint import Endpoint
from gateway.realtime.session_object import live_object
from gateway.realtime.setup import open_session
from tests.support.listening import noise
from tests.support.scripted_realtime import KEY, WAIT, Heard, Peer, serving


@pytest.mark.parametrize("talks", [False, True])
async def test_a_frozen_server_is_left_once_the_caller_speaks(
    talks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``talks``: it goes on with its track, and is not frozen."""
    monkeypatch.setattr(live_session, "FROZEN_SECONDS", 0.3)
    monkeypatch.setattr(live_session, "CLOSED_SECONDS", 0.1)

    async def script(peer: Peer) -> None:
        start = await peer.receive("session.start")
        await peer.send("session.started", session={"id": "sess_1", **start["session"]})
        track = json.dumps({"type": "session.output_audio.delta", "delta": "////////"})
        closed = asyncio.ensure_future(peer.until_closed())
        while not (await asyncio.wait((closed,), timeout=0.05))[0]:
            if talks:
                await peer.ws.send(track)

    async with serving(script) as server:
        heard = Heard()
        url = server.url.replace("/realtime", "/live/sessions")
        session = await open_session(
            Endpoint(url, "gpt-live-1.1", KEY),
            live_object({}, "PCMU", []),
            timeout=WAIT,
            on_event=heard.on_event,
            on_closed=heard.on_closed,
        )
        with capture_logs() as logs:
            voice = noise(3, 1.0)
            for start in range(0, len(voice), 160):
                session.append(voice[start : start + 160])
                await asyncio.sleep(0.02)
            if not talks:
                await heard.end()
        assert len(heard.closed) == (not talks)
        assert [one["event"] for one in logs].count("session.frozen") == (not talks)
        await session.close()
