# SPDX-License-Identifier: GPL-2.0-or-later
"""Hundreds of short calls in a row through one process: none fails, nothing grows."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import figures
from tests.support.harness import WATCHED, GatewayStack, eventually
from tests.support.sipp_run import need_sipp, sipp

pytestmark = [need_sipp, pytest.mark.slow]

CALLS = 390
FIRST = 270
"""After these everything has grown that grows to a level: SIP keeps transactions for 32 s."""
RATE = 8
PAUSE_MS = 100
"""From ACK to BYE: four at a time never come faster than the library frees its sockets."""

MOST_BLOCKS = 6000
"""Of Python's objects over the last 120 calls, 50 for each; what a call holds is far more."""

MOST_LEFT_KIB = 360
"""Of malloc's memory, 3 KiB for each. A message of SIP that is not freed has 8."""

KNOWN_S, KNOWN_KIB = 32, 10
"""So long SIP knows a call that has ended (RFC 3261 timers H and J), and what that takes."""


FEW = 6
"""Sockets that come with the first calls, and stay."""

RECORD_WRITERS = 8
"""Threads of the loop's pool, which come when two records are written at once, and stay."""


async def watched(world: GatewayStack, idle: int) -> dict[str, Any]:
    """What the process holds while no call is up; ``idle`` is how many sockets that should be."""
    await eventually(lambda: not world.emulator.live, "all sessions closed")
    # RTP ports are held for a while after their calls.
    await eventually(lambda: world.gateway.resources()["sockets"] <= idle + FEW, "sockets closed")
    line = await world.holds()
    told = {name: line[name] for name in ("tasks", "objects", "used_kib", "blocks")}
    since = (datetime.now(UTC) - timedelta(seconds=KNOWN_S)).isoformat()
    known = sum(one["timestamp"] > since for one in world.gateway.all("call.summary"))
    return {**world.gateway.resources(), **told, "known": known}


async def test_many_short_calls(own_folder: Path) -> None:
    world = GatewayStack(own_folder, log_level="info", entry=WATCHED, keep_sessions=20)
    await world.start()
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 0.1, "burst": True})
    at_a_time = min(4, world.gateway.max_calls)
    idle = world.gateway.resources()["sockets"]
    used = world.gateway.cpu_seconds()

    async def run(calls: int) -> None:
        result = await sipp(
            "call", world.gateway.sip, "greeted", own_folder,
            calls=calls, at_a_time=at_a_time, rate=RATE, pause_ms=PAUSE_MS, within_s=100,
        )  # fmt: skip
        assert (result.successful, result.failed) == (calls, 0), result.unexpected

    await run(FIRST)
    before = await watched(world, idle)
    await run(CALLS - FIRST)
    await world.gateway.wait("call.summary", count=CALLS)
    after = await watched(world, idle)
    used = world.gateway.cpu_seconds() - used

    assert world.emulator.total_sessions == CALLS
    # A wait for one of several events begins anew now and then, and its tasks end a turn later.
    more = Counter(after["tasks"]) - Counter([*before["tasks"], "event"])
    assert not more, more
    assert after["threads"] <= before["threads"] + RECORD_WRITERS
    # The last call may still be named by a loop that waits for the next one.
    left = {name: count for name, count in after["objects"].items() if name != "Task"}
    assert all(count <= at_a_time for count in left.values()), left
    assert after["blocks"] - before["blocks"] < MOST_BLOCKS
    # A machine that is busier the first time than the second knows more of them in the end.
    most = MOST_LEFT_KIB + KNOWN_KIB * max(0, after["known"] - before["known"])
    assert after["used_kib"] - before["used_kib"] < most

    records = [json.loads(file.read_text()) for file in world.records_folder.glob("*.json")]
    assert len(records) == CALLS
    assert {record["ending"]["why"] for record in records} == {"remote_hangup"}
    heard = sum(record["times_ms"]["first_audio"] is not None for record in records)
    assert heard, "a call this short may be over before its first audio, but not each of them"
    talked = [record["times_ms"]["answered"] for record in records]
    figures.show(
        f"{CALLS} short calls, {at_a_time} at a time",
        f"none failed, {heard} with audio; set-up in the gateway {figures.spread(talked, 'ms')}; "
        f"{used / CALLS * 1000:.1f} ms of CPU a call",
    )
    figures.show(
        f"before and after the last {CALLS - FIRST} of them",
        ", ".join(
            f"{name} {before[name]} → {after[name]}"
            for name in ("rss_kib", "used_kib", "threads", "fds")
        )
        + f", tasks {len(before['tasks'])} → {len(after['tasks'])}",
    )
    await world.idle()
    await world.stop()
