# SPDX-License-Identifier: GPL-2.0-or-later
"""Toll fraud: destinations that may not be called, and passwords of trunks that are not shown."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from tests.calls.test_moved import _more_answers, refer, told
from tests.calls.test_transfer_blind import outputs_of
from tests.support.callee import CalledCall, CalledPhone, free_port
from tests.support.harness import GatewayStack
from tests.support.referred import ReferredCall, dial
from tests.support.sip_phone import Message, _parsed

PORT, ELSEWHERE = free_port(), free_port()
AT = f"127.0.0.1:{PORT}"


def _transfer(mode: str) -> str:
    return f"""
[[route.transfer]]
name = "number {mode}"
to = "sip:{{number}}@{AT}"
allowed_numbers = "[+0-9*#]+"
mode = "{mode}"
ring_timeout = 30
"""


def _route(mode: str) -> str:
    head = f'[[route]]\nname = "{mode}"\nto = "^{mode}$"\ngreeting.say = "Hello."\n'
    return head + _transfer(mode)


WORLD = {
    "routes": """
[[route]]
name = "follows"
to = "^follows$"
allowed_refer_to = 'sips?:.*@127\\.0\\.0\\.[12](:[0-9]+)?(;.*)?'

[[route]]
name = "office"
to = "^office$"
greeting.say = "Hello."
[route.schedule_callback]
enabled = true
allowed_numbers = ".*"
trunk = "carrier"
[[route.transfer]]
name = "hotline"
to = "tel:+499001234567"
[[route.transfer]]
name = "mobile"
to = "tel:+49-170-1234567"
"""
    + "".join(_route(mode) for mode in ("blind", "bridge", "attended")),
    "more": """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
country = "DE"
allowed_prefixes = ["+49", "+44"]
denied_prefixes = ["0900"]
max_calls_per_minute = 1000
max_concurrent_calls = 20
[callbacks]
[[trunk]]
name = "carrier"
peers = ["127.0.0.1"]
username = "us"
password = "a-secret-of-the-trunk"
""",
}


class Challenger(CalledPhone):
    """Asks everybody for a password, once."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self._host = host
        self.challenges: tuple[str, ...] = ('Digest realm="anybody", nonce="n1", algorithm=MD5',)
        self.invites: list[Message] = []

    async def start(self, port: int = 0) -> Challenger:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, (self._host, port))
        return self

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if data.startswith(b"INVITE "):
            invite = _parsed(data)
            # One that we were slow to answer comes again.
            if invite.headers["via"] not in [one.headers["via"] for one in self.invites]:
                self.invites.append(invite)
        super().datagram_received(data, addr)

    def _begin(self, call: CalledCall) -> None:
        to = f"{call.invite.headers['to']};tag={call.tag}"
        names = ("Via", "From", "Call-ID", "CSeq")
        lines = [f"{name}: {call.invite.headers[name.lower()]}" for name in names]
        asked = [f"Proxy-Authenticate: {challenge}" for challenge in self.challenges]
        head = ["SIP/2.0 407 Who", *lines, f"To: {to}", *asked, "Content-Length: 0"]
        self.send(("\r\n".join(head) + "\r\n\r\n").encode())


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """Where calls may go."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


@pytest.fixture
def challengers(runner: asyncio.Runner) -> Iterator[tuple[Challenger, Challenger]]:
    """The trunk, and somebody else."""
    phones = (
        runner.run(Challenger("127.0.0.1").start()),
        runner.run(Challenger("127.0.0.2").start()),
    )
    yield phones
    for phone in phones:
        runner.run(phone.stop())


NUMBERS = ("09001234567", "+499001234567", "0049900123456", "+4909001234567", "*31#0900123")
NOT_AT_HOME = ("+88216123456", "0018765551234", "112", "+491801234567")


def _asks(number: str) -> list[dict[str, Any]]:
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": number})}
    return [{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}]


@pytest.mark.parametrize("mode", ["blind", "bridge", "attended"])
@pytest.mark.parametrize("number", [*NUMBERS, *NOT_AT_HOME])
async def test_no_transfer_there(
    world: GatewayStack, callee: CalledPhone, number: str, mode: str
) -> None:
    world.behave(vad="off", answers=_asks(number))
    call = await dial(world, mode)
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    (output,) = outputs_of(session)
    assert (output["status"], output["sip_code"]) == ("forbidden", 403)
    assert not call.referred
    assert not callee.calls
    await world.summary_at_end(call)


async def test_a_denied_number_that_the_dialplan_names(world: GatewayStack) -> None:
    world.behave(vad="off", answers=_asks("hotline"))
    call = await dial(world, "office")
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert outputs_of(session)[0]["status"] == "forbidden"
    assert not call.referred
    await world.summary_at_end(call)


async def test_a_tel_uri_goes_to_the_trunk(world: GatewayStack) -> None:
    """PBXs refuse a REFER to a tel URI."""
    world.behave(vad="off", answers=_asks("mobile"))
    call = await dial(world, "office")
    assert await call.asked() == "sip:+491701234567@127.0.0.1;user=phone"
    call.notify("200 OK", last=True)
    await call.hung_up()
    await world.summary(call)


async def test_what_may_be_called_is(world: GatewayStack, callee: CalledPhone) -> None:
    world.behave(vad="off", answers=_asks("+442079460000"))
    call = await dial(world, "blind")
    assert await call.asked() == f"sip:+442079460000@{AT}"
    call.notify("200 OK", last=True)
    await call.hung_up()
    await world.summary(call)


@pytest.mark.parametrize(
    "to",
    [
        "?Route=%3Csip:127.0.0.2%3Blr%3E",
        "?P-Asserted-Identity=%3Csip:boss@pbx%3E",
        "?Contact=%3Csip:x@127.0.0.2%3E",
        "?Record-Route=%3Csip:127.0.0.2%3E",
        "?From=%3Csip:boss@pbx%3E",
        "?body=v%3D0",
        "?Proxy-Authorization=x",
        "?Replaces=a%3Bto-tag%3D1%3Bfrom-tag%3D2&Route=%3Csip:127.0.0.2%3Blr%3E",
        "?Replaces=a%0D%0ARoute:%20%3Csip:127.0.0.2%3E%3Bto-tag%3D1%3Bfrom-tag%3D2",
        "?Replaces=a",
        "?Require=100rel",
        ";maddr=127.0.0.2",
        ";MADDR=127.0.0.2",
        ";m%61ddr=127.0.0.2",
        ";lr",
        ";method=BYE",
        ";transport=udp;maddr=127.0.0.2",
    ],
)
async def test_what_a_refer_brings_along(world: GatewayStack, callee: CalledPhone, to: str) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    refer(call, callee.uri("answer") + to)
    await call.until(partial(_more_answers, 0))
    assert call.answers_to("REFER") == [603]
    assert not callee.calls
    await world.summary_at_end(call)


@pytest.mark.parametrize(
    "field",
    [
        "{uri};maddr=127.0.0.2",
        '"<sip:answer@127.0.0.1>" <sip:x@127.0.0.3>',
        "<sip:x@127.0.0.3>, <{uri}>",
        "<{uri}>, <sip:x@127.0.0.3>",
        "<{uri}",
    ],
)
async def test_an_address_that_can_be_read_in_two_ways(
    world: GatewayStack, callee: CalledPhone, field: str
) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    _refer_field(call, field.format(uri=callee.uri("answer")))
    await call.until(partial(_more_answers, 0))
    assert call.answers_to("REFER")[0] >= 400
    assert not callee.calls
    await world.summary_at_end(call)


def _refer_field(call: ReferredCall, field: str) -> None:
    call._sequence += 1
    branch = f"z9hG4bK{os.urandom(6).hex()}"
    call.phone.send(call._request("REFER", branch, call._sequence, [f"Refer-To: {field}"]))


async def test_a_call_that_replaces_another_is_followed(
    world: GatewayStack, callee: CalledPhone
) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    refer(call, callee.uri("busy-486") + "?Replaces=a%40b%3Bto-tag%3D1%3Bfrom-tag%3D2")
    there = await callee.called()
    assert there.invite.headers["replaces"] == "a@b;to-tag=1;from-tag=2"
    await call.until(lambda c: any("486" in line for line in told(c)))
    await world.summary_at_end(call)


@pytest.mark.parametrize("number", ["0900123", "+88216123456", "%30900123", "112"])
async def test_a_refer_to_a_number_that_is_closed(
    world: GatewayStack, callee: CalledPhone, number: str
) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    refer(call, callee.uri(number) + ";user=phone")
    await call.until(partial(_more_answers, 0))
    assert call.answers_to("REFER") == [603]
    assert not callee.calls
    await world.summary_at_end(call)


async def test_the_password_is_for_the_trunk_only(
    world: GatewayStack, challengers: tuple[Challenger, Challenger]
) -> None:
    ours, foreign = challengers
    world.behave(vad="off", answer="silent")
    for there, count in ((foreign, 1), (ours, 2)):
        call = await dial(world, "follows")
        refer(call, there.uri("x"))
        await call.until(lambda c: len(told(c)) > 1, what="an outcome")
        assert len(there.invites) == count
        digests = [m.headers["proxy-authorization"] for m in there.invites[1:]]
        assert ['username="us"' in digest for digest in digests] == [True] * (count - 1)
        await world.summary_at_end(call)
    assert world.gateway.all("trunk.foreign_challenge", source="127.0.0.2")


BEARER = 'Bearer authz_server="https://example.net/authorize", realm="anybody"'
MD5 = 'Digest realm="anybody", nonce="n1", algorithm=MD5'
SHA256 = 'Digest realm="anybody", nonce="n2", algorithm=SHA-256, qop="auth"'


@pytest.mark.parametrize(
    ("challenges", "algorithm"),
    [
        ((BEARER, MD5), "MD5"),
        ((MD5, BEARER), "MD5"),
        ((BEARER, SHA256), "SHA-256"),
        (("Basic realm=x", "X-Own", BEARER, SHA256), "SHA-256"),
        ((BEARER + ",\r\n scope=x", MD5), "MD5"),
        ((SHA256.replace("n2", "n1"), BEARER, MD5), "SHA-256"),
        ((MD5, SHA256.replace("n2", "n1")), "MD5"),
    ],
    ids=str,
)
async def test_a_digest_challenge_among_others(
    world: GatewayStack,
    challengers: tuple[Challenger, Challenger],
    challenges: tuple[str, ...],
    algorithm: str,
) -> None:
    """RFC 8898 has Bearer beside Digest, RFC 8760 several algorithms: the first that fits."""
    ours, _foreign = challengers
    ours.challenges = challenges
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    refer(call, ours.uri("x"))
    await call.until(lambda c: len(told(c)) > 1, what="an outcome")
    credentials = ours.invites[1].headers["proxy-authorization"]
    assert credentials.startswith("Digest ")
    assert f"algorithm={algorithm}" in credentials.replace('"', "")
    await world.summary_at_end(call)


@pytest.mark.parametrize("number", ["+499001234567", "0049900123456", "+88216123456", "112", "1"])
async def test_from_is_nobodys_word(world: GatewayStack, number: str) -> None:
    """The caller's own number is called back only where calls may go."""
    at = datetime.now(UTC) + timedelta(hours=1)
    tool = {"name": "schedule_callback", "arguments": json.dumps({"at": at.isoformat()})}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    call = world.phone.call("office")
    call.caller = number
    call.invite()
    await call.answered()
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.seen("response.create")) == 2, 20)
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    assert f"{number} may not be called" in items[0]["output"]
    assert not world.gateway.all("callback.scheduled")
    await world.summary_at_end(call)
