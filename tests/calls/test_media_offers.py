"""RTP profiles, keys and ``m=`` lines of every kind, wherever a description may stand.

What an account does not take is refused with 488, and what is odd but can be understood is
answered; whatever it is, that call alone is concerned.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from callee import CalledCall, CalledPhone
from dialog import DialogCall, dialog_call
from rtp_end import RtpEnd
from sip_phone import Message
from site_under_test import Site, site

from gateway.control.client import ask

ROUTES = """
[[route]]
name = "anybody"
[route.greeting]
say = "Hello."
"""
OPEN = '[access]\nunknown = "allow"\ncalls_per_second = 0\nconcurrent_calls = 0\n'
KEY = "A" * 40
CRYPTO = f"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{KEY}"
PRINT = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32)
PROFILES = {
    "RTP/AVP": "plain",
    "RTP/AVPF": "plain",
    "RTP/SAVP": "sdes",
    "RTP/SAVPF": "sdes",
    "UDP/TLS/RTP/SAVP": "dtls",
    "UDP/TLS/RTP/SAVPF": "dtls",
    "RTP/XYZ": "",
    "UDP/BFCP": "",
}
KEYS = {
    "no keys": ((), frozenset()),
    "crypto": ((CRYPTO,), {"sdes"}),
    "two crypto": ((CRYPTO, CRYPTO.replace(":1", ":2").replace("_80", "_32")), {"sdes"}),
    "bad crypto": (("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:short", "a=crypto:"), frozenset()),
    "print": ((PRINT, "a=setup:actpass"), {"dtls"}),
    "two prints": ((PRINT.replace("AB", "CD"), PRINT, "a=setup:active"), {"dtls"}),
    "bad print": (("a=fingerprint:sha-256 AB:CD", "a=setup:actpass"), frozenset()),
    "both": ((CRYPTO, PRINT, "a=setup:actpass"), {"sdes", "dtls"}),
}
RELEVANT = {
    "plain": ("no keys", "both"),
    "sdes": ("no keys", "crypto", "two crypto", "bad crypto", "print"),
    "dtls": ("no keys", "print", "two prints", "bad print", "both"),
    "": ("both",),
}
TABLE = [(profile, keys) for profile, kind in PROFILES.items() for keys in RELEVANT[kind]]
SETTINGS = [
    ("off", ("sdes",)),
    ("optional", ("sdes",)),
    ("optional", ("dtls",)),
    ("optional", ("sdes", "dtls")),
    ("required", ("sdes",)),
    ("required", ("dtls",)),
    ("required", ("dtls", "sdes")),
]


def taken(profile: str, keys: Iterable[str], srtp: str, keying: tuple[str, ...]) -> bool:
    """Whether an offer is to be answered."""
    kind = PROFILES[profile]
    if not kind:
        return False
    if kind == "plain":
        return srtp != "required"
    usable = set(keys) & set(keying)
    return srtp != "off" and bool(usable if kind == "sdes" else usable & {"dtls"})


def description(port: int, profile: str, lines: Iterable[str] = ()) -> str:
    """An offer, or an answer."""
    return (
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=audio {port} {profile} 0 101\r\na=rtpmap:101 telephone-event/8000\r\n"
        + "".join(f"{line}\r\n" for line in lines)
    )


class RawCall(DialogCall):
    """A call whose description is a text."""

    body: str = ""
    told: str = ""
    """What it is about, for a failed test."""

    def invite(self) -> None:
        self._to, self._target = f"<{self.uri}>", self.uri
        more = ["Content-Type: application/sdp"] if self.body else []
        self.phone.send(self._request("INVITE", self._branch, 1, [*self.headers, *more], self.body))

    def _take(self, body: str) -> None:
        """No RTP: signalling is what is looked at."""

    async def ends(self) -> None:
        """Hang up, unless the gateway has."""
        if not self.byes:
            self.bye()
            await self.until(
                lambda c: c.byes or any(m.code and m.method == "BYE" for m in c.messages),
                what=f"the end of {self.told}",
            )


def raw_call(phone: Any, body: str) -> RawCall:
    """A call that is not sent yet."""
    made = dialog_call(phone, "1")
    call = RawCall(phone, "1", made.codecs, (), made.rtp, sdp=made.sdp)
    phone.calls.pop(made.call_id)
    phone.calls[call.call_id] = call
    call.body = body
    return call


async def final(call: RawCall) -> Message:
    """Place it, and wait for the final response."""
    call.invite()
    await call.until(lambda c: c.final is not None, what="a final response")
    assert call.final is not None
    return call.final


def settings_of(srtp: str, keying: tuple[str, ...], trunk: bool) -> str:
    keys = f'srtp = "{srtp}"\nsrtp_keying = {json.dumps(list(keying))}\n'
    return OPEN + (
        f'[[trunk]]\nname = "provider"\npeers = ["127.0.0.1"]\n{keys}'
        if trunk
        else f"[media]\n{keys}"
    )


async def gather(*coroutines: Any) -> None:
    """Some at a time: each call is a session of its own."""
    for start in range(0, len(coroutines), 8):
        await asyncio.gather(*coroutines[start : start + 8])


@pytest.mark.parametrize(
    ("srtp", "keying", "trunk"),
    [(*one, False) for one in SETTINGS] + [(*one, True) for one in SETTINGS[1::3]],
)
async def test_profiles(
    runner: object, own_folder: Path, srtp: str, keying: tuple[str, ...], trunk: bool
) -> None:
    more = settings_of(srtp, keying, trunk)
    async with site(own_folder, more=more, routes=ROUTES) as gateway:

        async def offered(profile: str, keys: str) -> None:
            lines, usable = KEYS[keys]
            call = raw_call(gateway.phone, description(40000, profile, lines))
            code = (await final(call)).code
            wanted = 200 if taken(profile, usable, srtp, keying) else 488
            assert code == wanted, (profile, keys)
            if code == 200:
                assert call.final is not None
                assert f" {profile} 0" in call.final.body
                await call.ends()
            summary = await gateway.gateway.wait("call.summary", sip_call_id=call.call_id)
            if code != 200:
                assert call.final is not None
                assert "reason" in call.final.headers
                assert summary["ending"]["why"] == "srtp_mismatch", summary["ending"]
            await gateway.phone.forget(call)

        await gather(*(offered(*row) for row in TABLE))
        if not trunk:
            await offered_inside(gateway, srtp, keying)
            await answered_in_ack(gateway)
        assert (await gateway.phone.options()).code == 200


async def offered_inside(gateway: Site, srtp: str, keying: tuple[str, ...]) -> None:
    """Re-INVITE: 488 leaves the call as it was."""
    first = next(row for row in TABLE if taken(row[0], KEYS[row[1]][1], srtp, keying))
    call = raw_call(gateway.phone, description(40000, first[0], KEYS[first[1]][0]))
    assert (await final(call)).code == 200
    for profile, keys in TABLE:
        lines, usable = KEYS[keys]
        answer = await call.ask("INVITE", body=description(40000, profile, lines))
        if not taken(profile, usable, srtp, keying):
            assert answer.code == 488, (profile, keys, answer.start)
        assert answer.code in (200, 488), (profile, keys, answer.start)
        if call.byes:  # keys that do not fit those before may end the call
            await gateway.phone.forget(call)
            call = raw_call(gateway.phone, description(40000, first[0], KEYS[first[1]][0]))
            assert (await final(call)).code == 200
    await call.ends()
    await gateway.phone.forget(call)


async def answered_in_ack(gateway: Site) -> None:
    """A delayed offer's answer: the call goes on, or ends by our BYE."""

    async def one(profile: str, keys: str) -> None:
        call = raw_call(gateway.phone, "")
        call.acknowledge = False
        assert (await final(call)).code == 200
        body = description(40000, profile, KEYS[keys][0])
        call.told = f"an ACK with {profile}, {keys}"
        call.phone.send(call._inside("ACK", 1, (), body))
        await call.ends()
        await gateway.gateway.wait("call.summary", sip_call_id=call.call_id)
        await gateway.phone.forget(call)

    await gather(*(one(*row) for row in TABLE))


class Callee(CalledCall):
    """Answers with a text."""

    body: str = ""

    def _sdp(self) -> str:
        return self.body

    def hear(self) -> None:
        """No RTP."""


class Callees(CalledPhone):
    """Each call gets the next answer."""

    def __init__(self, bodies: list[str]) -> None:
        super().__init__()
        self.bodies = bodies

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if data.startswith(b"INVITE ") and self.bodies:
            call_id = re.search(rb"Call-ID: *(\S+)", data)
            known = call_id and any(c.call_id == call_id[1].decode() for c in self.calls)
            if not known:
                from sip_phone import _parsed

                self._peer = addr
                call = Callee(self, _parsed(data), RtpEnd(0, b"\xff"))
                call.body = self.bodies.pop(0)
                self.calls.append(call)
                call.respond(200, sdp=True)
                self._pulse.set()
                return
        super().datagram_received(data, addr)


@pytest.mark.parametrize(("srtp", "keying"), [SETTINGS[0], SETTINGS[3], SETTINGS[5]])
async def test_answers_to_calls_of_ours(
    runner: object, own_folder: Path, srtp: str, keying: tuple[str, ...]
) -> None:
    more = settings_of(srtp, keying, trunk=False)
    more += "[outbound]\nenabled = true\nmax_concurrent = 40\nper_minute = 1000\n"
    rows = list(itertools.product(PROFILES, ("no keys", "crypto", "bad crypto", "two prints")))
    rows = rows[:: 1 if srtp == "optional" else 3]
    bodies = [description(40000, profile, KEYS[keys][0]) for profile, keys in rows]
    phone = await Callees([*bodies, "v=0\r\n", "v=0\r\nm=audio 1 RTP/AVP 0\r\n"]).start()
    try:
        async with site(own_folder, more=more, routes=ROUTES) as gateway:
            path = own_folder / "control"
            for number in range(len(bodies) + 2):
                answer = await asyncio.to_thread(
                    ask, path, "dial", to=phone.uri("answer"), route="anybody", trunk=""
                )
                call = await phone.called(number + 1)
                await call.until(lambda c: c.requests("ACK") or c.requests("BYE"))
                if not call.over:
                    call._sequence = 1
                    call.bye()
                await gateway.gateway.wait("call.summary", call=str(answer["call"]))
            assert (await gateway.phone.options()).code == 200
    finally:
        await phone.stop()
