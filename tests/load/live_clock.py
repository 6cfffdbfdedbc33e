# SPDX-License-Identifier: GPL-2.0-or-later
"""How evenly a Live session is fed: ``python -m tests.load.live_clock``.

One call of some minutes, whose caller speaks, is silent, and sends nothing at times. Prints a
histogram of the gaps between pieces of audio as they come to the server, and how far all of it is
off the call's length. The server runs in this process: a gap in which this process itself stood
still is told apart.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from itertools import pairwise
from pathlib import Path

import click

from tests.load.__main__ import _prefer
from tests.support.harness import GatewayStack
from tests.support.listening import noise

ROUTE = """
[[route]]
name = "live"
to = "^live$"
fallback = []
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/live/sessions"
api_key = "{key}"
model = "gpt-live-1.1"
[route.live]
"""
EDGES = (0.01, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.2)
"""Bounds of the histogram (s)."""

LATE = 0.01
"""Seconds by which this process is late, from which a gap may be its own."""


async def _watch(late: list[float]) -> None:
    """Note when this process woke up late."""
    while True:
        due = time.monotonic() + 0.005
        await asyncio.sleep(0.005)
        if (now := time.monotonic()) - due > LATE:
            late.append(now)


async def measure(minutes: float, folder: Path) -> None:
    """Make the call, and print what came."""
    stack = GatewayStack(folder, routes=ROUTE, log_level="info")
    await stack.start()
    late: list[float] = []
    watch = asyncio.create_task(_watch(late))
    try:
        stack.behave(answers=[{"kind": "pattern", "seconds": 2}], live={"talks_on": True})
        call = await stack.dial("live")
        session = await stack.session_of(call)
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            call.rtp.say(noise(1, 2.0))
            await asyncio.sleep(4)
            call.rtp.sending = False
            await asyncio.sleep(2)
            call.rtp.sending = True
        await call.hang_up()
        await session.wait_until(lambda one: not one.live, 20)
        record = await stack.record(call)
    finally:
        watch.cancel()
        await stack.stop()
    started = session.sent("session.started")[0].at
    ended = session.seen("session.close")[0].at
    at = [when for when, _ in session.appends]
    gaps = [(after - before, after) for before, after in pairwise(at)]
    counts = Counter(bisect_right(EDGES, gap) for gap, _ in gaps)
    for number in range(len(EDGES) + 1):
        low = 0 if number == 0 else EDGES[number - 1]
        high = f"{1000 * EDGES[number]:4.0f}" if number < len(EDGES) else "   …"
        click.echo(f"  {1000 * low:4.0f} to {high} ms  {counts[number]:6}")
    long = [(gap, when) for gap, when in gaps if gap > 0.06]
    ours = [(gap, at) for gap, at in long if not any(at - gap <= one <= at + 0.02 for one in late)]
    longest = max(gap for gap, _ in gaps)
    click.echo(f"longest gap {1000 * longest:.0f} ms; {len(long)} above 60 ms,")
    click.echo(f"{len(ours)} of them while this process was in time ({len(late)} times it was not)")
    lasted, sent = ended - started, session.received_total / 8000
    click.echo(f"{sent:.2f} s of audio in {lasted:.2f} s: {100 * (sent / lasted - 1):+.3f} %")
    click.echo(f"counted by the gateway: {record['live_audio']}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(0.1, 15), default=10.0, show_default=True)
@click.option("--nice", type=click.IntRange(-20, 0), default=0, help="Priority; needs root.")
def main(minutes: float, nice: int) -> None:
    """Make one call on a Live session, and print how evenly audio came to its server."""
    _prefer(nice)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(minutes, Path(folder)))


if __name__ == "__main__":
    main()
