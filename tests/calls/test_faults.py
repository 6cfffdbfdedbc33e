# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions in our own code, at every entry of a call's handling: that call ends, with a record,
and the only place there is takes the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import support
from tests.support.faulty_gateway import PLACES
from tests.support.harness import GatewayStack
from tests.support.sip_phone import PhoneCall

WORLD = {
    "entry": (str(Path(support.__file__).with_name("faulty_gateway.py")),),
    "max_calls": 1,
    "routes": """
[[route]]
name = "brief"
to = "^brief$"
[route.greeting]
say = "Hello."
[route.limits]
max_call_duration = 1.0
""",
}

AT_THE_END = {
    "close a session",
    "end",
    "finish",
    "hang up",
    "the legs' figures",
    "the sessions' figures",
    "wait closed",
    "input LegEnded",
}
"""What runs, or is told, only once somebody hangs up."""

UNHARMED = {"hang up", "wait closed"}
"""These do not run, or not before the call is over."""


def fault_of(world: GatewayStack, call: PhoneCall) -> bool:
    """Whether the log has a line of the defect."""
    return bool(world.gateway.all("call.internal_error", call=call.call_id))


@pytest.mark.parametrize("place", PLACES)
async def test_a_defect_ends_its_call_and_frees_its_place(world: GatewayStack, place: str) -> None:
    world.gateway.tolerated |= {"call.internal_error", "call.teardown_error", "sip.callback_failed"}
    fault = world.folder / "fault"
    fault.write_text(place)
    call = world.phone.call("brief" if place == "input Tick" else "greeted")
    call.invite()
    await call.until(lambda call: call.final is not None, what="a final response")
    assert call.final is not None
    if call.final.code == 200:
        if place in AT_THE_END:
            await call.hang_up()
        else:
            await call.hung_up()
    else:
        assert call.final.code in (500, 603)
    ending = (await world.summary(call))["ending"]
    if place not in UNHARMED:
        assert fault_of(world, call) or world.gateway.all("sip.callback_failed")
        assert ending["why"] == "internal_error" or (
            place in AT_THE_END and ending["why"] == "remote_hangup"
        )
    fault.unlink()
    after = await world.dial("greeted")
    await after.rtp.until(lambda: len(after.rtp.packets) > 10)
    await world.summary_at_end(after)
    assert not fault_of(world, after)
    assert (await world.record(call))["ending"] == ending
