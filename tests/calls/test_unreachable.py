# SPDX-License-Identifier: GPL-2.0-or-later
"""Destinations that cannot be sent to: an outcome for who asked, and all other calls go on."""

from __future__ import annotations

import json
import re

import pytest

from gateway.api.client import RefusedError
from tests.calls.test_moved import refer, told
from tests.calls.test_outbound import place
from tests.calls.test_transfer_blind import outputs_of
from tests.support.harness import GatewayStack
from tests.support.referred import dial

UNREACHABLE = {
    "no_name": "sip:x@no-such-host.invalid",
    "no_route": "sip:x@240.0.0.1",
    "broadcast": "sip:x@255.255.255.255",
    "no_port": "sip:x@127.0.0.1:70000",
    "no_tls": "sip:x@127.0.0.1;transport=tls",
    "sips": "sips:x@127.0.0.1",
    "no_tcp": "sip:x@127.0.0.1:1;transport=tcp",
    "other_transport": "sip:x@127.0.0.1;transport=sctp",
    "other_family": "sip:x@[::1]:5060",
    "malformed": "sip:x@[::1",
    "no_host": "sip:x@",
    "long": "sip:" + "x" * 3000 + "@240.0.0.1",
}
"""None of these can be called from a gateway that listens on IPv4 UDP only."""


def _transfer(name: str, mode: str) -> str:
    return f"""
[[route.transfer]]
name = "{name} {mode}"
to = "{UNREACHABLE[name]}"
mode = "{mode}"
ring_timeout = 3
"""


MODES = ("bridge", "attended")

WORLD = {
    "routes": """
[[route]]
name = "outward"
to = "^nobody$"
[[route]]
name = "follows"
to = "^follows$"
allowed_refer_to = '.*'
[[route]]
name = "office"
to = "^office$"
[route.greeting]
say = "Hello."
"""
    + "".join(_transfer(name, mode) for name in UNREACHABLE for mode in MODES),
    "more": """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["x"]
max_calls_per_minute = 1000
max_concurrent_calls = 1
ring_timeout = 3
""",
}


async def test_an_address_that_is_too_long_is_refused(world: GatewayStack) -> None:
    with pytest.raises(RefusedError, match=r"body\.to: String should have at most 256"):
        await place(world, UNREACHABLE["long"])


@pytest.mark.parametrize("name", sorted(UNREACHABLE.keys() - {"long"}))
async def test_dialled(world: GatewayStack, name: str) -> None:
    call = await place(world, UNREACHABLE[name])
    summary = await world.gateway.wait("call.summary", call=call)
    assert summary["ending"]["why"] in ("call_failed", "no_answer"), summary["ending"]
    assert summary["times_ms"]["answered"] is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNREACHABLE)
async def test_transferred(world: GatewayStack, name: str, mode: str) -> None:
    """The model is told, and the caller is back with it."""
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": f"{name} {mode}"})}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    call = await dial(world, "office")
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    (output,) = outputs_of(session)
    assert output["status"] in ("failed", "no_answer"), output
    summary = await world.summary_at_end(call)
    assert [one["outcome"] for one in summary["transfers"]] == [output["status"]]


@pytest.mark.parametrize("name", UNREACHABLE)
async def test_followed(world: GatewayStack, name: str) -> None:
    """Whoever sent the REFER is told, keeps the call, and no place stays taken."""
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    refer(call, UNREACHABLE[name])
    await call.until(
        lambda c: (
            any(code >= 300 for code in c.answers_to("REFER"))
            or any(re.search(r"SIP/2.0 [3-6]", line) for line in told(c))
        ),
        what="an outcome",
    )
    await world.summary_at_end(call)


async def test_all_goes_on(world: GatewayStack) -> None:
    world.behave(vad="off", answer="silent")
    call = await world.dial("plain")
    await world.summary_at_end(call)
