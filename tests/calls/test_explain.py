# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway explain`` for each way in which a call is refused, or ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from click.testing import CliRunner

from gateway.cli.main import main
from tests.support.harness import GatewayStack, closed_port, eventually
from tests.support.sip_phone import Phone, PhoneCall

WORLD = {
    "listen": ("udp:127.0.0.1:0", "tcp:127.0.0.1:0"),
    "routes": f"""
[[route]]
name = "short"
to = "^short$"
greeting.say = "Hello."
limits.max_call_duration = 0.5
[[route]]
name = "idle"
to = "^idle$"
fallback = []
[route.idle]
timeout = 0.3
max_prompts = 1
[[route]]
name = "deaf"
to = "^deaf$"
fallback = []
limits.rtp_timeout = 0.5
[[route]]
name = "down"
to = "^down$"
fallback = []
realtime.url = "ws://127.0.0.1:{closed_port()}"
[[route]]
name = "rescued"
to = "^rescued$"
realtime.url = "ws://127.0.0.1:{closed_port()}"
[[route.fallback]]
action = "busy"
[[route]]
name = "polite"
to = "^polite$"
greeting.say = "Hello."
[route.end_call]
enabled = true
[[route]]
name = "thrifty"
to = "^thrifty$"
greeting.say = "Hello."
budget.per_call = 0.000001
""",
    "more": """
[control]
socket = "gateway.sock"
[access]
unknown_sources = "reject"
ban_after = 3
[[trunk]]
name = "test"
peers = ["127.0.0.1"]
[[trunk]]
name = "secure"
peers = ["127.0.0.3"]
srtp = "required"
srtp_keying = ["dtls"]
[[trunk]]
name = "slow"
peers = ["127.0.0.4"]
calls_per_second = 0.001
max_concurrent_calls = 0
[[trunk]]
name = "one"
peers = ["127.0.0.5"]
max_concurrent_calls = 1
[[trunk]]
name = "stream"
peers = ["127.0.0.6"]
transport = "tcp"
[[trunk]]
name = "known"
peers = ["127.0.0.7"]
inbound_auth = { username = "known", password = "a-password-77" }
""",
}
End = Callable[[GatewayStack], Awaitable[PhoneCall]]


async def explained(world: GatewayStack, name: str) -> str:
    """What ``gateway explain`` prints, or its error."""
    run = partial(CliRunner().invoke, main, ["explain", name, "-c", str(world.gateway.config)])
    return (await asyncio.to_thread(run)).output


def refused(user: str, *codecs: str) -> End:
    """A call that is not taken."""

    async def run(world: GatewayStack) -> PhoneCall:
        call = world.phone.call(user, codecs or ("PCMU", "PCMA"))
        call.invite()
        await call.refused()
        return call

    return run


def hung_up(user: str, **more: bool) -> End:
    """A call that the gateway ends."""

    async def run(world: GatewayStack) -> PhoneCall:
        world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 0.3, **more}])
        call = await world.dial(user)
        await call.hung_up(20)
        return call

    return run


async def caller(world: GatewayStack) -> PhoneCall:
    """A call that its caller ends."""
    call = await world.dial("greeted")
    await call.hang_up()
    return call


async def given_up(world: GatewayStack) -> PhoneCall:
    """A call whose caller gives up while it rings."""
    world.behave(updated_delay_ms=20_000)
    call = world.phone.call("plain")
    call.invite()
    await call.until(lambda one: 180 in one.responses)
    call.cancel()
    await call.refused()
    return call


ENDS: list[tuple[End, list[str]]] = [
    (caller, ["route greeted takes it (10-routes.toml:", "session sess_", "remote_hangup by"]),
    (given_up, ["route plain takes it (10-routes.toml:", "cancelled by caller, SIP 487"]),
    (refused("nobody"), ["not plain: to wants '^plain$'", "no_route by gateway, SIP 404"]),
    (refused("plain", "GSM"), ["trunk test", "488", "by trunk test: codecs (default)"]),
    (refused("down"), ["session_unreachable", "503", "ended by route down: fallback (10-routes"]),
    (refused("rescued"), ["busy", "ended by route rescued: fallback (10-routes.toml:"]),
    (hung_up("short"), ["max_duration", "by route short: limits.max_call_duration (10-routes.t"]),
    (hung_up("idle"), ["idle by gateway", "ended by route idle: idle.timeout (10-routes.toml:"]),
    (hung_up("deaf"), ["rtp_timeout", "ended by route deaf: limits.rtp_timeout (10-routes.toml:"]),
    (hung_up("polite", end_call=True), ["agent_hangup by model", "by route polite: end_call (10"]),
    (hung_up("thrifty"), ["budget", "ended by route thrifty: budget.per_call (10-routes.toml:"]),
]


@pytest.mark.parametrize(("end", "lines"), ENDS)
async def test_a_call_with_a_record(world: GatewayStack, end: End, lines: list[str]) -> None:
    """The setting has file and line, and the record has what the log has."""
    call = await end(world)
    summary = await world.summary(call)
    told: list[str] = []

    async def there() -> bool:
        told[:] = [await explained(world, call.call_id)]
        return "there is no call" not in told[0] and "in progress" not in told[0]

    await eventually(there, "the end of its row")
    assert "from 127.0.0.1:" in told[0]
    for line in lines:
        assert line in told[0]
    record = await world.record(call)
    assert record["explanation"] == summary["explanation"]
    assert all(f"  {one}" in told[0] for one in record["explanation"])


BELOW = [
    ("127.0.0.2", 1, 403, 'access.unknown_sources = "reject" (gateway.toml:'),
    ("127.0.0.8", 4, 0, "no answer; access.ban_after (gateway.toml:"),
    ("127.0.0.4", 11, 503, "trunk slow: calls_per_second = 0.001 (gateway.toml:"),
    ("127.0.0.6", 1, 403, 'trunk stream: transport = "tcp" (gateway.toml:'),
    ("127.0.0.7", 1, 401, "digest: wrong"),
]


@pytest.mark.parametrize(("host", "times", "code", "rule"), BELOW)
async def test_an_invite_without_a_record(
    world: GatewayStack, host: str, times: int, code: int, rule: str
) -> None:
    phone = Phone(world.gateway.sip)
    await phone.start(host)
    more: tuple[str, ...] = ()
    if "digest" in rule:
        fields = 'username="known", realm="sip-realtime-gateway", nonce="n", uri="sip:x"'
        more = (f'Authorization: Digest {fields}, response="{"0" * 32}"',)
    try:
        for _ in range(times):
            call = phone.call("nobody", headers=more)
            call.invite()
            await world.phone.options()
        told: list[str] = []

        async def there() -> bool:
            told[:] = [await explained(world, call.call_id)]
            return "there is no call" not in told[0]

        await eventually(there, "an explanation")
        assert f"from {host}:" in told[0]
        assert rule in told[0]
        assert (f"SIP {code};" in told[0]) == bool(code)
    finally:
        await phone.stop()


async def test_srtp_that_a_trunk_requires(world: GatewayStack) -> None:
    phone = Phone(world.gateway.sip)
    await phone.start("127.0.0.3")
    try:
        call = phone.call("plain")
        call.invite()
        await call.refused()
        await world.summary(call)
        told: list[str] = []

        async def there() -> bool:
            told[:] = [await explained(world, call.call_id)]
            return "there is no call" not in told[0]

        await eventually(there, "its row")
        assert "trunk secure, refused before any route, 488" in told[0]
        assert "by trunk secure: srtp (gateway.toml:" in told[0]
    finally:
        await phone.stop()
