# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever is called as attacker: answers, requests and floods that no telephone sends.

Each case is one call of ours; it ends with an outcome, and another call loses no frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.api.client import ask
from tests.support.callee import CalledCall, CalledPhone, free_port
from tests.support.dialog import DialogCall, answered, bystander, dialog_call, unharmed
from tests.support.harness import GatewayStack, eventually
from tests.support.rtp_end import Sender

PORT = free_port()


def _second_leg(name: str, more: str) -> str:
    return f"""
[[route]]
name = "{name}"
to = "^{name}$"
[[route.transfer]]
name = "anna"
to = "sip:attack@127.0.0.1:{PORT}"
mode = "bridge"
ring_timeout = 2
{more}
"""


WORLD = {
    "keep_sessions": 500,
    "routes": """
[[route]]
name = "outward"
to = "^nobody$"
"""
    + _second_leg(
        "warm", '[route.greeting]\nsay = "Hello."\n[route.transfer.briefing]\ntimeout = 2'
    )
    + _second_leg(
        "interpreted",
        '[route.interpreter]\nto = "anna"\n[route.interpreter.caller]\nlanguage = "English"\n'
        '[route.interpreter.callee]\nlanguage = "German"',
    ),
    "more": """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["attack"]
max_concurrent_calls = 90
max_calls_per_minute = 1000
ring_timeout = 2
early_media = true
[access]
unknown_sources = "allow"
[media]
packet_wait_ms = 500
""",
}

GOOD = "v=0\r\no=- 2 2 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
AUDIO = "m=audio {port} RTP/AVP 0\r\n"


class Attacker(CalledPhone):
    """Begins each call with its script."""

    script: Callable[[Attacker, CalledCall], None]
    served = 0
    """INVITEs that came, the same again included."""

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.served += data.startswith(b"INVITE ")
        super().datagram_received(data, addr)

    def _begin(self, call: CalledCall) -> None:
        type(self).script(self, call)

    def put(
        self,
        call: CalledCall,
        code: int,
        *headers: str,
        body: str = "",
        tag: str = "",
        kind: str = "application/sdp",
        contact: str = "",
    ) -> None:
        """Send a response to the INVITE, of any kind."""
        host, port = self.address
        body = body.replace("{port}", str(call.rtp.port))
        asked = call.messages[-1] if call.messages else call.invite
        if not asked.start.startswith("INVITE "):
            asked = call.invite
        lines = [
            f"SIP/2.0 {code} As attacked",
            *(f"{name}: {asked.headers[name.lower()]}" for name in ("Via", "From")),
            f"To: {asked.headers['to']};tag={tag or call.tag}",
            *(f"{name}: {asked.headers[name.lower()]}" for name in ("Call-ID", "CSeq")),
            contact or f"Contact: <sip:callee@{host}:{port}>",
            *headers,
            *([f"Content-Type: {kind}"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        self.send(("\r\n".join(lines) + "\r\n\r\n" + body).encode())


Script = Callable[[Attacker, CalledCall], None]
UP = GOOD + AUDIO


def answers(*headers: str, body: str = UP, **more: str) -> Script:
    """A 200 with these."""
    return lambda phone, call: phone.put(call, 200, *headers, body=body, **more)


def refuses(code: int, *headers: str, **more: str) -> Script:
    return lambda phone, call: phone.put(call, code, *headers, **more)


def progress_storm(phone: Attacker, call: CalledCall) -> None:
    for number in range(300):
        body = UP.replace("2 2", f"2 {number}") if number % 2 else ""
        phone.put(call, (180, 181, 182, 183, 199)[number % 5], body=body)
    phone.put(call, 200, body=UP)


def forked_answers(phone: Attacker, call: CalledCall) -> None:
    for number in range(20):
        tag = f"fork{number}" if number else call.tag
        phone.put(call, 183 if number % 2 else 200, body=UP, tag=tag)


def forked_progress(phone: Attacker, call: CalledCall) -> None:
    for number in range(200):
        phone.put(call, 183, body=UP, tag=f"fork{number}")
    phone.put(call, 486, tag="fork3")


def reliable_storm(phone: Attacker, call: CalledCall) -> None:
    for number in (1, 2**32 - 1, 0, 5, *range(2, 60)):
        body = UP if number % 3 else ""
        phone.put(call, 183, "Require: 100rel", f"RSeq: {number}", body=body)
    phone.put(call, 200, body=UP)


def answer_repeated(phone: Attacker, call: CalledCall) -> None:
    for number in range(100):
        phone.put(call, 200, body=UP.replace("2 2", f"2 {number}"))


def requests(*kinds: tuple[str, tuple[str, ...], str], count: int = 60) -> Script:
    """Requests within the dialog, behind the 200 without a pause: nobody waits for an answer."""

    def script(phone: Attacker, call: CalledCall) -> None:
        phone.put(call, 200, body=UP)
        for number in range(count):
            method, headers, body = kinds[number % len(kinds)]
            call._request(method, *headers, body=body.replace("{port}", str(call.rtp.port)))

    return script


def early_requests(*kinds: tuple[str, tuple[str, ...], str]) -> Script:
    def script(phone: Attacker, call: CalledCall) -> None:
        phone.put(call, 183, body=UP)
        for method, headers, body in kinds * 8:
            call._request(method, *headers, body=body)
        phone.put(call, 200, body=UP)

    return script


SDP = ("Content-Type: application/sdp",)
MULTIPART = "multipart/mixed;boundary="

CASES: dict[str, Script] = {
    "300 provisional answers": progress_storm,
    "20 answers of other dialogs": forked_answers,
    "200 early dialogs": forked_progress,
    "reliable ones out of order": reliable_storm,
    "100 times the answer, each another": answer_repeated,
    "no description": answers(body=""),
    "422 with all the time there is": refuses(422, "Min-SE: 4294967295"),
    "422 without Min-SE": refuses(422),
    "423": refuses(423, "Min-Expires: 4294967295"),
    "420 for nothing": refuses(420, "Unsupported: " + ", ".join(["timer"] * 500)),
    "421": refuses(421, "Require: 100rel, timer, precondition"),
    "491": refuses(491),
    "494": refuses(494, "Security-Server: digest;q=0.1"),
    "503 for ever": refuses(503, "Retry-After: 4294967295"),
    "699 with a long reason": refuses(699, f'Reason: SIP;cause=699;text="{"x" * 4000}"'),
    "a session of one second": answers("Session-Expires: 1;refresher=uac", "Require: timer"),
    "a session of no time": answers("Session-Expires: 0;refresher=uac", "Require: timer"),
    "a session of all time": answers("Session-Expires: 4294967295;refresher=uas"),
    "Contact: *": answers(contact="Contact: *"),
    "no Contact": answers(contact="X-None: 1"),
    "100 contacts": lambda phone, call: phone.put(
        call, 200, body=UP, contact="Contact: " + ", ".join([f"<{phone.uri('a')}>"] * 100)
    ),
    "a contact for telephones": answers(contact="Contact: <tel:+4930>"),
    "60 routes": answers(*["Record-Route: <sip:127.0.0.1:9;lr>"] * 60),
    "a route that is none": answers("Record-Route: <tel:1>, <sip:@@>, *"),
    "300 media lines": answers(body=GOOD + AUDIO + "m=video 9 RTP/AVP 31\r\n" * 300),
    "300 audio lines": answers(body=GOOD + AUDIO * 200),
    "1,000 attributes": answers(body=UP + "a=x:1\r\n" * 1000),
    "500 candidates": answers(
        body=UP + "".join(f"a=candidate:{n} 1 UDP {n} 127.0.0.1 9 typ host\r\n" for n in range(150))
    ),
    "400 rtpmaps": answers(body=UP + "".join(f"a=rtpmap:{n % 128} x/8000\r\n" for n in range(400))),
    "200 keys": answers(
        body=UP + "".join(f"a=crypto:{n} AES_CM_128_HMAC_SHA1_80 inline:x\r\n" for n in range(150))
    ),
    "ptime of a day": answers(body=UP + "a=ptime:86400000\r\na=maxptime:4294967295\r\n"),
    "a boundary that is empty": answers(kind=MULTIPART + '""', body="--\r\n\r\n--\r\n----\r\n"),
    "a boundary that never ends": answers(kind=MULTIPART + "x", body="--x\r\n" * 1200),
    "a boundary within itself": answers(
        kind=MULTIPART + "a", body="--a\r\nContent-Type: " + MULTIPART + "a\r\n\r\n--a--\r\n" + UP
    ),
    "a part that is a multipart without parts": answers(
        kind=MULTIPART + "a", body="--a\r\nContent-Type: " + MULTIPART + "b\r\n\r\n\r\n--a--\r\n"
    ),
    "re-INVITEs at once": requests(("INVITE", SDP, UP)),
    "re-INVITEs with other addresses": requests(
        ("INVITE", SDP, UP.replace("127.0.0.1", "127.0.0.77")),
        ("INVITE", SDP, UP.replace("127.0.0.1", "0.0.0.0")),
        ("INVITE", (), ""),
    ),
    "UPDATEs at once": requests(("UPDATE", SDP, UP), ("UPDATE", ("Session-Expires: 1",), "")),
    "Contact: * within the call": requests(
        ("UPDATE", ("Contact: *",), ""), ("INVITE", (*SDP, "Contact: *"), UP), count=6
    ),
    "requests of other kinds": requests(
        ("REFER", ("Refer-To: <sip:attack@127.0.0.1:9>", "Contact: *"), ""),
        ("SUBSCRIBE", ("Event: dialog", "Contact: *"), ""),
        ("NOTIFY", ("Event: refer", "Subscription-State: active"), ""),
        ("PUBLISH", (), ""),
        ("MESSAGE", ("Content-Type: text/plain",), "\x1b[2J" * 200),
        ("REGISTER", ("Contact: *", "Expires: 0"), ""),
        ("PRACK", ("RAck: 4294967295 4294967295 INVITE",), ""),
    ),
    "keys without end": requests(
        ("INFO", ("Content-Type: application/dtmf-relay",), "Signal=5\r\nDuration=100\r\n"),
        count=300,
    ),
    "offers before the answer": early_requests(
        ("UPDATE", SDP, UP), ("INVITE", SDP, UP), ("UPDATE", (*SDP, "Contact: *"), UP)
    ),
    "a BYE before the answer": early_requests(("BYE", (), "")),
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[Attacker]:
    """Whom we call."""
    phone = Attacker()
    runner.run(phone.start())
    yield phone
    runner.run(phone.stop())


@pytest.fixture(scope="module")
def beside(runner: asyncio.Runner, shared_world: GatewayStack) -> Iterator[DialogCall]:
    """A call that notices nothing of all this."""
    call = runner.run(bystander(shared_world))
    shared_world.lasting.append(call)
    yield call
    shared_world.lasting.remove(call)
    runner.run(unharmed(shared_world, call))


@pytest.mark.parametrize("script", CASES.values(), ids=CASES)
async def test_each_call_ends_with_an_outcome(
    world: GatewayStack, beside: DialogCall, callee: Attacker, script: Script
) -> None:
    world.behave(vad="off", answer="silent")
    type(callee).script = staticmethod(script)
    path = world.folder / "gateway.sock"
    placed = await asyncio.to_thread(
        ask, path, "dial", to=callee.uri("attack"), route="outward", trunk=""
    )
    there = await callee.called()
    assert (await world.phone.options()).code == 200

    def is_over() -> bool:
        said = any(there.requests(kind) for kind in ("ACK", "BYE", "CANCEL"))
        # Of an answer that no datagram holds, or that cannot be read, the call just ends.
        return said or world.gateway.all("call.summary", call=placed["call"]) != []

    await eventually(is_over, "the end", 60)
    assert (await world.phone.options()).code == 200
    if not world.gateway.all("call.summary", call=placed["call"]):
        there._sequence += 1000
        there.bye()
    summary = await world.gateway.wait("call.summary", call=placed["call"])
    assert summary["ending"]["why"] in ENDINGS, summary["ending"]
    assert callee.served < 15
    if script in UNREADABLE:
        await there.until(lambda c: c.requests("ACK") and c.requests("BYE"))
    assert not beside.byes


UNREADABLE = [CASES[name] for name in ("a contact for telephones", "a route that is none")]
"""Answers that cannot be read: they are acknowledged, and the call is ended."""


def keys(*digits: str, early: bool = False) -> Script:
    """Accepts and declines a briefing, by INFO, over and over."""
    relay = tuple(
        ("INFO", ("Content-Type: application/dtmf-relay",), f"Signal={digit}\r\nDuration=100\r\n")
        for digit in digits
    )
    return early_requests(*relay) if early else requests(*relay, count=40)


def early_media(phone: Attacker, call: CalledCall) -> None:
    """A flood of it, of keys too, before and behind the answer."""
    phone.put(call, 183, body=UP)
    call.hear()
    sender = Sender(call.rtp)
    for number in range(400):
        sender.put(bytes([number % 256]) * 160, 0)
        sender.put(bytes([1, 0x8A, 3, 32]), call.rtp.event_payload, samples=0)
    phone.put(call, 200, body=UP)


SECOND_LEGS: dict[str, Script] = {
    **{
        name: CASES[name]
        for name in (
            "300 provisional answers",
            "20 answers of other dialogs",
            "200 early dialogs",
            "reliable ones out of order",
            "100 times the answer, each another",
            "no description",
            "a contact for telephones",
            "re-INVITEs at once",
            "re-INVITEs with other addresses",
            "UPDATEs at once",
            "requests of other kinds",
            "offers before the answer",
            "a BYE before the answer",
        )
    },
    "keys before the answer": keys("1", "2", early=True),
    "keys of both kinds": keys("2", "1"),
    "a flood of early media": early_media,
}


@pytest.fixture
def second(runner: asyncio.Runner) -> Iterator[Attacker]:
    """Whom calls are handed to."""
    phone = Attacker()
    runner.run(phone.start(PORT))
    yield phone
    runner.run(phone.stop())


@pytest.mark.parametrize("way", ["warm", "interpreted"])
@pytest.mark.parametrize("script", SECOND_LEGS.values(), ids=SECOND_LEGS)
async def test_second_legs(
    world: GatewayStack, beside: DialogCall, second: Attacker, script: Script, way: str
) -> None:
    """Of a transfer with a briefing, and of an interpreter: the caller hangs up when they like."""
    tool = {"name": "transfer_call", "arguments": '{"destination": "anna", "briefing": "A bill."}'}
    first = {"kind": "nothing", "tools": [tool]} if way == "warm" else {"kind": "silent"}
    words = {"kind": "pattern", "seconds": 0.3}
    world.behave(vad="off", answers=[first, {"kind": "silent"}], out_of_band=words)
    type(second).script = staticmethod(script)
    call = await answered(dialog_call(world.phone, way))
    there = await second.called()
    await there.until(lambda c: c.requests("ACK") or c.requests("BYE") or c.requests("CANCEL"))
    assert (await world.phone.options()).code == 200
    assert second.served < 15
    call.bye()
    summary = await world.gateway.wait("call.summary", call=call.call_id)
    assert summary["ending"]["why"] in ("remote_hangup", "bridge_ended"), summary["ending"]
    assert not beside.byes


ENDINGS = ("remote_hangup", "call_failed", "no_answer", "busy", "leg_lost")
