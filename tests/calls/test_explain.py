# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway explain`` for each way in which a call is refused, or ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from click.testing import CliRunner

from gateway.api.client import RefusedError, ask
from gateway.cli import main
from tests.support.harness import AT_NOON, GatewayStack, closed_port, eventually
from tests.support.referred import dial
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
[[route]]
name = "daily"
to = "^daily$"
greeting.say = "Hello."
budget.per_day = 0.000001
[[route]]
name = "moved"
to = "^moved$"
greeting.say = "Hello."
[[route.transfer]]
name = "desk"
to = "sip:1@pbx.example"
[[route.transfer]]
name = "night desk"  # where the call goes
to = "sip:2@pbx.example"
""",
    "more": AT_NOON
    + """
[control]
socket = "gateway.sock"
[shared]
max_calls = 3
timeout_ms = 5000
[outbound]
enabled = true
allowed_prefixes = ["1"]
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


async def transferred(world: GatewayStack) -> PhoneCall:
    """A call that the model hands on to the second of two destinations."""
    tool = {"name": "transfer_call", "arguments": '{"destination": "night desk"}'}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}])
    call = await dial(world, "moved")
    await call.asked()
    call.notify("200 OK", last=True)
    return call


async def spent(world: GatewayStack) -> PhoneCall:
    """A call that finds the day's budget of its route spent."""
    await world.summary(await hung_up("daily")(world))
    return await refused("daily")(world)


async def crowded(world: GatewayStack) -> PhoneCall:
    """A call beside as many as all processes together may have."""
    up = [await world.dial() for _ in range(3)]
    call = await refused("plain")(world)
    for one in up:
        await one.hang_up()
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
    (transferred, ["transferred by model", "by route moved: transfer night desk (10-routes.toml:"]),
    (spent, ["SIP 480", "refused by route daily: budget.per_day (10-routes.toml:"]),
    (crowded, ["SIP 503", "refused by shared.max_calls = 3 (gateway.toml:"]),
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
    if end is transferred:
        file = world.folder / "routes" / "10-routes.toml"
        lines_of = file.read_text().splitlines()
        number = next(n for n, line in enumerate(lines_of) if "# where the call goes" in line)
        assert f"night desk (10-routes.toml:{number})" in told[0], "its table begins a line above"


async def test_a_cap_of_a_trunk(world: GatewayStack) -> None:
    phone = Phone(world.gateway.sip)
    await phone.start("127.0.0.5")
    try:
        calls = [phone.call("plain"), phone.call("plain")]
        calls[0].invite()
        await calls[0].answered()
        calls[1].invite()
        await calls[1].refused()
        told: list[str] = []

        async def there() -> bool:
            told[:] = [await explained(world, calls[1].call_id)]
            return "there is no call" not in told[0]

        await eventually(there, "an explanation")
        assert "SIP 486; trunk one: max_concurrent_calls = 1 (gateway.toml:" in told[0]
        await calls[0].hang_up()
    finally:
        await phone.stop()


async def test_a_call_that_is_not_placed(world: GatewayStack) -> None:
    socket = world.gateway.config.parent / "gateway.sock"
    with pytest.raises(RefusedError, match="allowed_prefixes"):
        await asyncio.to_thread(ask, socket, "dial", to="sip:2@pbx.example", route="plain")
    summary = await world.gateway.wait("call.summary", direction="outbound")
    by = "refused by outbound.allowed_prefixes has no beginning of '2' (gateway.toml:"
    assert summary["explanation"][-1].startswith(by)


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
