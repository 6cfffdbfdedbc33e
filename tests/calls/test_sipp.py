# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripted signalling by SIPp: what comes, in which order, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import GatewayStack
from tests.support.sipp_run import need_sipp, sipp

pytestmark = need_sipp

WORLD = {
    "log_level": "info",
    "routes": """
[[route]]
name = "hasty"
to = "^hasty$"
[route.realtime]
connect_timeout = 0.5
""",
}

GOODBYE = {"kind": "pattern", "seconds": 0.5, "burst": True, "end_call": True}

RUNS: dict[str, tuple[str, dict[str, Any], str]] = {
    "call": ("greeted", {"answer": {"kind": "pattern", "seconds": 5}}, "remote_hangup"),
    "farewell": ("greeted", {"vad": "off", "answer": GOODBYE}, "agent_hangup"),
    "no-route": ("nowhere", {}, "no_route"),
    "no-codec": ("plain", {}, "no_common_codec"),
    "no-session": ("hasty", {"updated": "never"}, "session_unreachable"),
    "cancel": ("plain", {"updated": "never"}, "cancelled"),
}


@pytest.mark.parametrize("scenario", RUNS)
async def test_scenario(world: GatewayStack, tmp_path: Path, scenario: str) -> None:
    user, script, why = RUNS[scenario]
    world.behave(**script)
    before = len(world.gateway.all("call.summary"))
    result = await sipp(scenario, world.gateway.sip, user, tmp_path, calls=4, at_a_time=2)
    assert (result.successful, result.failed) == (4, 0), result.unexpected
    await world.gateway.wait("call.summary", count=before + 4)
    endings = [line["ending"]["why"] for line in world.gateway.all("call.summary")[before:]]
    assert endings == [why] * 4


async def test_options(world: GatewayStack, tmp_path: Path) -> None:
    result = await sipp("options", world.gateway.sip, "", tmp_path, calls=5)
    assert (result.successful, result.failed) == (5, 0), result.unexpected
