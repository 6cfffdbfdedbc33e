# SPDX-License-Identifier: GPL-2.0-or-later
"""Loss, jitter and round trip, made by the telephone, are what the call's record says of them."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.support.figures import show
from tests.support.harness import PATIENT, GatewayStack
from tests.support.rtcp_end import ReportingEnd
from tests.support.sip_phone import CODECS, PhoneCall

SECONDS = 7
"""pjmedia sends its first sender report after some five."""


WORLD = {
    "more": PATIENT,
    "routes": """
[[route]]
name = "watched"
to = "^watched$"
[route.line]
enabled = true
after = 2
""",
}


async def _call(world: GatewayStack, **network: object) -> PhoneCall:
    call = world.phone.call("watched")
    await call.rtp.close()
    payload_type, silence = CODECS["PCMU"]
    call.rtp = ReportingEnd(payload_type, silence)
    for name, value in network.items():
        setattr(call.rtp, name, value)
    call.invite()
    await call.answered()
    return call


async def test_loss_jitter_and_round_trip_as_they_were_made(world: GatewayStack) -> None:
    every_tenth = itertools.cycle([False] * 9 + [True]).__next__
    good, lossy, shaky = await asyncio.gather(
        _call(world),
        _call(world, loss=every_tenth, reported_loss=0.05, network_ms=120.0),
        _call(world, delay_ms=(0.0, 16.0), reported_jitter_ms=24.0, network_ms=40.0),
    )
    for call in (good, lossy, shaky):
        assert isinstance(call.rtp, ReportingEnd)
        rtp = call.rtp
        await rtp.until(lambda rtp=rtp: rtp.reports_sent > 3, 20)  # type: ignore[misc]
    await good.rtp.heard_bytes(SECONDS * 8000)
    # The gateway looks once a second; what it has not seen yet it does not tell.
    await asyncio.gather(*(_seen(call, 60) for call in (good, lossy, shaky)))
    sessions = [await world.session_of(call) for call in (good, lossy, shaky)]
    for call in (good, lossy, shaky):
        await call.hang_up()
    records = [await world.record(call) for call in (good, lossy, shaky)]
    best, lost, shaken = (record["quality"] for record in records)
    assert [(await world.summary(call))["quality"] for call in (good, lossy, shaky)] == [
        best,
        lost,
        shaken,
    ]

    # Good: nothing lost, both directions near the best that G.711 can be. Where the machine stands
    # still, the round trip of that report is as long, and its second as bad.
    assert best["rx"]["lost"] == best["tx"]["lost"] == 0
    assert best["rx"]["mos"]["max"] > 4.0
    assert best["tx"]["mos"]["max"] > 4.0

    # Lossy: a tenth of what the caller sent; a twentieth of what they heard, as they report.
    dropped = lossy.rtp.lost
    assert dropped - 10 <= lost["rx"]["lost"] <= dropped
    assert lost["rx"]["reordered"] == 0
    assert lost["rx"]["lost_percent"] == pytest.approx(10, abs=2)
    assert lost["rx"]["mos"]["mean"] < 3.6
    assert lost["rx"]["mos"]["max"] > 2.9
    assert lost["tx"]["lost_percent"] == pytest.approx(5, abs=2)
    # The first report may come before there was anything to lose.
    assert lost["tx"]["mos"]["min"] < 4.1
    assert lost["tx"]["mos"]["max"] > 3.5
    assert lost["rtt_ms"]["min"] >= 110

    # Shaky: the jitter with which packets left, and what the caller reports of theirs.
    assert isinstance(shaky.rtp, ReportingEnd)
    assert isinstance(good.rtp, ReportingEnd)
    made = shaky.rtp.jitter_ms
    assert made > 8
    # What the gateway's thread adds by reading late, it adds to the good call, too: no more than
    # the sum of what was made there and what was seen (the triangle inequality).
    added = good.rtp.jitter_ms + best["rx"]["jitter_ms"]["mean"]
    assert shaken["rx"]["jitter_ms"]["mean"] == pytest.approx(made, abs=5 + added)
    assert shaken["tx"]["jitter_ms"]["max"] == pytest.approx(24, abs=0.5)
    assert 35 <= shaken["rtt_ms"]["min"] < lost["rtt_ms"]["min"]

    # Only the lossy call's model is told, once, and no response is asked of it.
    told = [one.seen("conversation.item.create") for one in sessions]
    assert [len(items) for items in told] == [0, 1, 0]
    assert "you hear the caller with gaps" in str(told[1][0].body)
    assert not sessions[1].seen("response.create")
    assert [len(record["bad_line"]) for record in records] == [0, 1, 0]
    (bad,) = records[1]["bad_line"]
    assert (bad["side"], bad["told"]) == ("from_caller", True)

    (file,) = world.records_folder.glob(f"*_{(await world.summary(lossy))['call']}.json")
    shown = CliRunner().invoke(main, ["timeline", str(file)]).output
    assert "MOS" in shown
    assert f"{lost['rx']['lost_percent']:g} % lost" in " ".join(shown.split())
    show(
        "quality",
        f"10 % loss made: {lost['rx']['lost_percent']} % told, MOS {lost['rx']['mos']['mean']}; "
        f"jitter made {made:.1f} ms: {shaken['rx']['jitter_ms']['mean']} ms told; "
        f"round trip made 120 ms: {lost['rtt_ms']['mean']} ms told",
    )


async def _seen(call: PhoneCall, packets: int) -> None:
    """Wait until so many packets more have come: a second and some."""
    had = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) >= had + packets)
