# SPDX-License-Identifier: GPL-2.0-or-later
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

from gateway.api.client import ask
from tests.support.callee import CalledCall, CalledPhone
from tests.support.dialog import DialogCall, dialog_call
from tests.support.rtp_end import NOBODY, RtpEnd
from tests.support.sip_phone import Message
from tests.support.site_under_test import Site, site

ROUTES = """
[[route]]
name = "anybody"
[route.greeting]
say = "Hello."
"""
OPEN = '[access]\nunknown_sources = "allow"\ncalls_per_second = 0\nmax_concurrent_calls = 0\n'
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
    "no setup": ((PRINT,), frozenset()),
    "held": ((PRINT, "a=setup:holdconn"), frozenset()),
    "both": ((CRYPTO, PRINT, "a=setup:actpass"), {"sdes", "dtls"}),
}
RELEVANT = {
    "plain": ("no keys", "both"),
    "sdes": ("no keys", "crypto", "two crypto", "bad crypto", "print"),
    "dtls": ("no keys", "print", "two prints", "bad print", "no setup", "held", "both"),
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
    keys = f'srtp = "{srtp}"\nsrtp_keying = {json.dumps(list(keying))}\nsdes_without_tls = true\n'
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
            call = raw_call(gateway.phone, description(NOBODY, profile, lines))
            code = (await final(call)).code
            wanted = 200 if taken(profile, usable, srtp, keying) else 488
            assert code == wanted, (profile, keys)
            assert call.final is not None
            if code == 200:
                assert f" {profile} 0" in call.final.body
                await call.ends()
                await gateway.gateway.wait("call.summary", sip_call_id=call.call_id)
            else:
                assert "reason" in call.final.headers
            await gateway.phone.forget(call)

        await gather(*(offered(*row) for row in TABLE))

        def refused() -> list[str]:
            ended = [line["ending"] for line in gateway.gateway.all("call.summary")]
            return [one["why"] for one in ended if one["sip_code"] == 488]

        # Of many refusals by one rule some are counted only.
        await gateway.gateway.until(lambda: len(refused()) >= 3)
        assert set(refused()) == {"srtp_mismatch"}
        if not trunk:
            await offered_inside(gateway, srtp, keying)
            await answered_in_ack(gateway)
        assert (await gateway.phone.options()).code == 200


async def offered_inside(gateway: Site, srtp: str, keying: tuple[str, ...]) -> None:
    """Re-INVITE: 488 leaves the call as it was."""
    first = next(row for row in TABLE if taken(row[0], KEYS[row[1]][1], srtp, keying))
    call = raw_call(gateway.phone, description(NOBODY, first[0], KEYS[first[1]][0]))
    assert (await final(call)).code == 200
    for profile, keys in TABLE:
        lines, usable = KEYS[keys]
        answer = await call.ask("INVITE", body=description(NOBODY, profile, lines))
        if not taken(profile, usable, srtp, keying):
            assert answer.code == 488, (profile, keys, answer.start)
        assert answer.code in (200, 488), (profile, keys, answer.start)
        assert answer.code == 200 or "reason" in answer.headers, (profile, keys)
        if call.byes:  # keys that do not fit those before may end the call
            await gateway.phone.forget(call)
            call = raw_call(gateway.phone, description(NOBODY, first[0], KEYS[first[1]][0]))
            assert (await final(call)).code == 200
    await call.ends()
    await gateway.phone.forget(call)


async def answered_in_ack(gateway: Site) -> None:
    """A delayed offer's answer: the call goes on, or ends by our BYE."""

    async def one(profile: str, keys: str) -> None:
        call = raw_call(gateway.phone, "")
        call.acknowledge = False
        assert (await final(call)).code == 200
        body = description(NOBODY, profile, KEYS[keys][0])
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
                from tests.support.sip_phone import _parsed

                self._peer = addr
                call = Callee(self, _parsed(data), RtpEnd(0, b"\xff"))
                call.body = self.bodies.pop(0)
                self.calls.append(call)
                call.respond(200, sdp=True)
                self._pulse.set()
                return
        super().datagram_received(data, addr)


@pytest.fixture(scope="module")
def place(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterable[Site]:
    """One gateway for all that its defaults are enough for."""
    opened = site(tmp_path_factory.mktemp("site"), more=OPEN, routes=ROUTES)
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))


_VIDEO = "m=video 0 RTP/AVP 34\r\n"
_IMAGE = "m=image 4000 udptl t38\r\n"


@pytest.mark.parametrize(
    ("before", "behind", "goes_on"),
    [
        ("", _VIDEO, True),
        ("", _IMAGE + _VIDEO, True),
        ("", "m=audio 5004 RTP/AVP 0\r\n", True),
        (_VIDEO, "", None),
        (_IMAGE, "", None),
    ],
    ids=["video behind", "two behind", "audio behind", "video first", "image first"],
)
async def test_answers_to_delayed_offers_with_other_media_lines(
    runner: object, place: Site, before: str, behind: str, goes_on: bool | None
) -> None:
    """RFC 3264 section 6 has as many lines in an answer as in the offer, in its order.

    More lines behind change nothing; where others come first, the call may end, by our BYE.
    """
    call = raw_call(place.phone, "")
    call.acknowledge = False
    offer = await final(call)
    assert re.findall(r"^m=(\w+)", offer.body, re.M) == ["audio"]
    head, line, rest = description(NOBODY, "RTP/AVP").partition("m=audio")
    body = head + before + line + rest + behind
    call.told = f"an ACK with {body!r}"
    call.phone.send(call._inside("ACK", 1, (), body))
    await call.ends()
    summary = await place.gateway.wait("call.summary", sip_call_id=call.call_id)
    assert not goes_on or summary["ending"]["why"] == "remote_hangup"
    await place.phone.forget(call)


@pytest.mark.parametrize(("srtp", "keying"), [SETTINGS[0], SETTINGS[3], SETTINGS[5]])
async def test_answers_to_calls_of_ours(
    runner: object, own_folder: Path, srtp: str, keying: tuple[str, ...]
) -> None:
    more = settings_of(srtp, keying, trunk=False)
    more += '[outbound]\nenabled = true\nallowed_prefixes = ["answer"]\n'
    more += "max_concurrent_calls = 40\nmax_calls_per_minute = 1000\n"
    rows = list(itertools.product(PROFILES, ("no keys", "crypto", "bad crypto", "two prints")))
    rows = rows[:: 1 if srtp == "optional" else 3]
    bodies = [description(NOBODY, profile, KEYS[keys][0]) for profile, keys in rows]
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


@pytest.mark.parametrize("keys", ["no keys", "bad crypto", "bad print"])
@pytest.mark.parametrize("profile", ["RTP/SAVP", "RTP/SAVPF", "UDP/TLS/RTP/SAVP"])
async def test_an_answer_in_srtp_that_nobody_can_decrypt(
    runner: object, srtp_offered: tuple[Site, Callees], profile: str, keys: str
) -> None:
    """A secure profile without a key is no plain RTP: ACK, BYE, and the outcome is told."""
    gateway, phone = srtp_offered
    phone.bodies.append(description(NOBODY, profile, KEYS[keys][0]))
    count = len(phone.calls)
    path = gateway.folder / "control"
    placed = await asyncio.to_thread(
        ask, path, "dial", to=phone.uri("answer"), route="anybody", trunk=""
    )
    call = await phone.called(count + 1)
    await call.until(lambda c: c.requests("ACK"))
    bye = await call.hung_up()
    assert "reason" in bye.headers
    summary = await gateway.gateway.wait("call.summary", call=str(placed["call"]))
    assert (summary["ending"]["why"], summary["ending"]["sip_code"]) == ("call_failed", 488)
    assert not summary["security"]


@pytest.fixture(scope="module")
def srtp_offered(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterable[tuple[Site, Callees]]:
    """A gateway that offers SRTP with its calls, and whom it calls."""
    more = settings_of("optional", ("sdes", "dtls"), trunk=False)
    more += '[outbound]\nenabled = true\nallowed_prefixes = ["answer"]\n'
    more += "max_calls_per_minute = 1000\n"
    opened = site(tmp_path_factory.mktemp("srtp"), more=more, routes=ROUTES)
    phone = Callees([])
    runner.run(phone.start())
    yield runner.run(opened.__aenter__()), phone
    runner.run(opened.__aexit__(None, None, None))
    runner.run(phone.stop())


AUDIO = "m=audio {port} RTP/AVP 0 101\r\na=rtpmap:101 telephone-event/8000\r\n"
LINES = {
    "video before": ("m=video 5000 RTP/AVP 31\r\n", AUDIO),
    "video behind": (AUDIO, "m=video 5000 RTP/AVP 31\r\n"),
    "t.38 before": ("m=image 5000 udptl t38\r\na=T38FaxVersion:0\r\n", AUDIO),
    "t.38 behind": (AUDIO, "m=image 5000 UDPTL t38\r\n"),
    "bfcp and video": ("m=application 5000 UDP/BFCP *\r\n", AUDIO, "m=video 5002 RTP/AVP 96\r\n"),
    "disabled audio before": ("m=audio 0 RTP/AVP 0\r\n", AUDIO),
    "disabled video before": ("m=video 0 RTP/AVP 31\r\n", AUDIO),
    "disabled behind": (AUDIO, "m=video 0 RTP/AVP 31\r\n", "m=audio 0 RTP/AVP 8\r\n"),
    "two audio": (AUDIO, "m=audio 5004 RTP/AVP 8\r\n"),
    "audio of another codec before": ("m=audio 5004 RTP/AVP 9\r\n", AUDIO),
    "audio of another profile before": ("m=audio 5004 RTP/XYZ 0\r\n", AUDIO),
    "text and message": ("m=text 5000 RTP/AVP 98\r\na=rtpmap:98 t140/1000\r\n", AUDIO,
                         "m=message 5006 TCP/MSRP *\r\n"),
    "no such port before": ("m=audio 65536 RTP/AVP 0\r\n", AUDIO),
    "no such port behind": (AUDIO, "m=audio -1 RTP/AVP 8\r\n"),
    "a host name before": ("m=audio 5004 RTP/AVP 0\r\nc=IN IP4 pbx.example.net\r\n", AUDIO),
    "no formats": (AUDIO, "m=application 5008 TCP/X\r\n"),
}  # fmt: skip
ODD = {
    "empty s": ("s=-", "s="),
    "no s": ("s=-\r\n", ""),
    "no t": ("t=0 0\r\n", ""),
    "short o": ("o=- 1 1 IN IP4 127.0.0.1", "o=PBX"),
    "no o": ("o=- 1 1 IN IP4 127.0.0.1\r\n", ""),
    "lower case": ("c=IN IP4", "c=in ip4"),
    "bare LF": ("\r\n", "\n"),
    "unknown lines": ("t=0 0\r\n", "t=0 0\r\nX=1\r\n!garbage\r\ny=2\r\nb=AS:x\r\na=\r\n"),
    "trailing garbage": ("8000\r\na=x", "8000\r\na=x\r\n\r\n\0\0garbage"),
    "spaces": ("m=audio ", "m=audio  "),
    "events at 16 kHz": (
        "a=rtpmap:101 telephone-event/8000",
        "a=rtpmap:101 telephone-event/16000\r\na=rtpmap:101 telephone-event/8000",
    ),
    "events at 110": ("101", "110"),
    "payload without a name": ("RTP/AVP 0", "RTP/AVP 0 97"),
}


def body_of(port: int, lines: tuple[str, ...]) -> str:
    head = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    return head + "".join(lines).replace("{port}", str(port))


def kinds(lines: Iterable[str]) -> list[tuple[str, bool]]:
    """Kind of each ``m=`` line, and whether it has a port."""
    found = (line.split(" ") for text in lines for line in text.split("\r\n"))
    return [(words[0][2:], words[1] != "0") for words in found if words[0].startswith("m=")]


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
async def test_each_line_is_answered_in_its_place(
    runner: object, place: Site, lines: tuple[str, ...]
) -> None:
    call = raw_call(place.phone, "")
    call.body = body_of(call.rtp.port, lines)
    assert (await final(call)).code == 200
    assert call.final is not None
    asked, answered = kinds(lines), kinds([call.final.body])
    assert [kind for kind, _ in answered] == [kind for kind, _ in asked]
    assert [number for number, (_, up) in enumerate(answered) if up] == [lines.index(AUDIO)]
    match = re.search(r"^m=audio ([1-9]\d*) RTP/AVP (\d+)", call.final.body, re.M)
    assert match
    call.rtp.connect("127.0.0.1", int(match[1]))
    await call.rtp.until(lambda: len(call.rtp.packets) > 3)
    again = await call.ask("INVITE", body=body_of(call.rtp.port, lines))
    assert again.code == 200
    assert [kind for kind, _ in kinds([again.body])] == [kind for kind, _ in asked]
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 3)
    await call.ends()
    summary = await place.gateway.wait("call.summary", sip_call_id=call.call_id)
    assert summary["ending"]["why"] == "remote_hangup"
    await place.phone.forget(call)


@pytest.mark.parametrize(("old", "new"), ODD.values(), ids=ODD)
async def test_odd_descriptions_are_understood(
    runner: object, place: Site, old: str, new: str
) -> None:
    call = raw_call(place.phone, "")
    good = description(call.rtp.port, "RTP/AVP", ["a=x"])
    assert old in good
    call.body = good.replace(old, new)
    assert (await final(call)).code == 200
    assert call.final is not None
    match = re.search(r"^m=audio ([1-9]\d*) RTP/AVP 0 (\d+)", call.final.body, re.M)
    assert match, call.final.body
    assert match[2] == ("110" if new == "110" else "101")
    assert f"a=rtpmap:{match[2]} telephone-event/8000" in call.final.body
    call.rtp.connect("127.0.0.1", int(match[1]))
    await call.rtp.until(lambda: len(call.rtp.packets) > 3)
    await call.ends()
    await place.gateway.wait("call.summary", sip_call_id=call.call_id)
    await place.phone.forget(call)


REFUSED = {
    "audio disabled": (("m=audio 0 RTP/AVP 0\r\n",), "no_audio"),
    "fax only": (("m=image 5000 udptl t38\r\n",), "no_audio"),
    "other codecs": (("m=audio 5000 RTP/AVP 9 18\r\n",), "no_common_codec"),
    "IPv6": ((AUDIO, "c=IN IP6 2001:db8::1\r\n"), "address_family"),
    "a host name": ((AUDIO, "c=IN IP4 pbx.example.net\r\n"), "bad_sdp"),
    "nine lines": ((AUDIO,) * 9, "bad_sdp"),
    "no such port": (("m=audio 70000 RTP/AVP 0\r\n",), "bad_sdp"),
    "nothing": ((), "bad_sdp"),
    "SRTP without keys": (("m=audio 5000 RTP/SAVP 0\r\n",), "srtp_mismatch"),
}


@pytest.mark.parametrize(("lines", "why"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_taken_says_why(
    runner: object, place: Site, lines: tuple[str, ...], why: str
) -> None:
    before = len(place.gateway.all("session.connecting"))
    call = raw_call(place.phone, "")
    call.body = body_of(call.rtp.port, lines)
    answer = await final(call)
    assert answer.code == 488
    assert answer.headers["reason"].startswith("Q.850;cause=")
    summary = await place.gateway.wait("call.summary", sip_call_id=call.call_id)
    assert (summary["ending"]["why"], summary["ending"]["sip_code"]) == (why, 488)
    assert summary["ending"]["detail"]
    assert len(place.gateway.all("session.connecting")) == before
    await place.phone.forget(call)
