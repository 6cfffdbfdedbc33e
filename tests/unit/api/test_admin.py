# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams of events: who gets which, how they begin and end, and that a place is given back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request

from gateway.api import backend
from gateway.api.admin import KEEP_ALIVE_SECONDS, _EventStream, _stream
from gateway.api.backend import POSITION, EventFeed
from gateway.api.connections import HOP, LOCAL
from gateway.api.siblings import Siblings
from tests.support import idle_clock


def request(*, alone: bool = False, local: bool = False) -> Request:
    headers = [(HOP.encode(), b"1")] if alone else []
    more = {LOCAL: "root"} if local else {}
    return Request({"type": "http", "method": "GET", "headers": headers, **more})


def feed() -> EventFeed:
    made = EventFeed("boot")
    made.add({"type": "a"})
    return made


def test_a_follower_is_told_that_the_gateway_is_there_while_nothing_happens() -> None:
    async def main() -> None:
        made, clock = feed(), asyncio.get_running_loop().time
        told = _stream(made, Siblings(()), request(), "")
        assert await anext(told) == ": the gateway's events\n\n"
        began = clock()
        assert await anext(told) == ": still here\n\n"
        assert clock() - began == pytest.approx(KEEP_ALIVE_SECONDS)
        coming = asyncio.ensure_future(anext(told))
        await asyncio.sleep(0)
        made.add({"type": "b", "half": "\ud800 ü"})
        number, kind, data, *_end = (await coming).split("\n")
        assert (number, kind) == ("id: boot.2", "event: b")
        assert json.loads(data.removeprefix("data: ")) == {"type": "b", "half": "\ufffd ü"}

    idle_clock.run(main())


@pytest.mark.parametrize("local", [False, True])
def test_a_stream_ends_with_the_server_that_it_came_by(local: bool) -> None:
    async def main() -> None:
        made = feed()
        told = _stream(made, Siblings(()), request(local=local), "boot.0")
        await anext(told)
        made.ending[not local].set()
        assert (await anext(told)).startswith("id: boot.1\n")
        coming = asyncio.ensure_future(anext(told, "over"))
        await asyncio.sleep(0)
        made.ending[local].set()
        assert await coming == "over"
        assert len(asyncio.all_tasks()) == 1, "nothing waits any more"

    idle_clock.run(main())


async def test_another_worker_is_told_the_position_first() -> None:
    told = _stream(feed(), Siblings(()), request(alone=True), "boot.0")
    assert (await anext(told)).startswith(":")
    assert (await anext(told)).startswith(f"id: boot.0\nevent: {POSITION}\n")
    assert (await anext(told)).startswith("id: boot.1\n")
    await told.aclose()  # type: ignore[attr-defined]


async def test_places_of_followers_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MAX_FOLLOWERS", 1)
    made = feed()
    sent: list[Any] = []
    began, leave = asyncio.Event(), asyncio.Event()

    async def receive() -> Any:
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        began.set()

    def stream() -> Any:
        asked = request()
        return _EventStream(made, Siblings(()), asked, "")(asked.scope, receive, send)

    first = asyncio.create_task(stream())
    await began.wait()
    assert sent[0]["status"] == 200
    sent.clear()
    await stream()
    assert sent[0]["status"] == 429
    assert made.followers == 1
    leave.set()
    await first
    assert made.followers == 0
