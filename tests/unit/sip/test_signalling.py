# SPDX-License-Identifier: GPL-2.0-or-later
"""SIP messages kept for black boxes, within bounds and without secrets; what decides on them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.audio import Codec
from gateway.sip import Listen, Security, SipSettings, Trunk, signalling
from gateway.sip.messages.sdp import SdpRejection
from gateway.sip.signalling import (
    PASS,
    Decision,
    MessageLog,
    Negotiation,
    ReceivedMessage,
    SipMessage,
    _Handler,
)

INVITE = b"""INVITE sip:100@gw SIP/2.0\r
Call-ID: a\r
Proxy-Authorization: Digest username="bob", realm="pbx",\r
 nonce="n0nce", response="0123456789abcdef0123456789abcdef"\r
authorization : Basic Ym9iOmh1bnRlcjI=\r
Content-Type: application/sdp\r
\r
v=0\r
m=audio 4000 RTP/SAVP 0\r
a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewkyMjA7|2^20\r
a=key-mgmt:mikey AQAFgM0X\r
k=clear:hunter2\r
"""


INFO = b"INFO sip:100@gw SIP/2.0\nContent-Type: application/dtmf-relay\n\nSignal=7\nDuration=160\n"


def text_of(data: bytes, **options: Any) -> str:
    return SipMessage(0.0, False, "192.0.2.1:5060", "udp", data).text(**options)


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_no_secret_of_sip_is_kept(end: bytes) -> None:
    text = text_of(INVITE.replace(b"\r\n", end))
    for secret in ("0123456789abcdef", "n0nce", "Ym9i", "WVNf", "AQAF", "hunter2"):
        assert secret not in text
    assert 'Proxy-Authorization: Digest ***, username="bob", realm="pbx"\n' in text
    assert "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:***\n" in text
    assert text.startswith("INVITE sip:100@gw SIP/2.0\nCall-ID: a\n")
    assert "m=audio 4000 RTP/SAVP 0\n" in text


def test_keys_in_an_info_are_left_out_where_keys_are_masked() -> None:
    assert "Signal=7" in text_of(INFO)
    assert text_of(INFO, with_body=False).endswith("\n\n(22 characters left out)")
    assert "m=audio" in text_of(INVITE, with_body=False)


def add(log: MessageLog, call_id: str, data: bytes = b"x", method: str = "INVITE") -> None:
    log.add(call_id, method, "2001:db8::1", 5060, "udp", data, sent=False)


def test_messages_are_bounded_by_call_and_altogether(monkeypatch: pytest.MonkeyPatch) -> None:
    log, told = MessageLog(), list[bool]()
    log.on_wanted = told.append
    add(log, "a")
    assert log.take("a", last=True) == ([], 0), "nobody wants them"
    log.wanted = True
    assert told == [True], "at once: the next message that is sent may be a call's first"
    add(log, "registrar", method="REGISTER")
    assert log.take("registrar", last=True) == ([], 0)
    monkeypatch.setattr(signalling, "MAX_CALL_BYTES", 10)
    monkeypatch.setattr(signalling, "MAX_LOG_BYTES", 25)
    for call_id in ("a", "b", "c"):
        for _ in range(3):
            add(log, call_id, bytes(5))
    assert log.take("a", last=True) == ([], 0), "the one that was quiet the longest makes way"
    messages, lost = log.take("c", last=True)
    assert ([one.peer for one in messages], lost) == (["[2001:db8::1]:5060"] * 2, 1)
    assert len(log.take("b", last=True)[0]) == 2


def test_a_flood_takes_no_message_of_a_call_that_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signalling, "MAX_CALL_BYTES", 10)
    monkeypatch.setattr(signalling, "MAX_LOG_BYTES", 25)
    log = MessageLog()
    log.wanted = True
    add(log, "a", bytes(4))
    assert len(log.take("a")[0]) == 1
    add(log, "a", bytes(5), "OPTIONS")
    for number in range(1000):
        add(log, f"flood {number}", bytes(9))
    assert len(log.take("a")[0]) == 1
    assert sum(len(log.take(f"flood {n}", last=True)[0]) for n in range(1000)) == 2
    for call_id in ("a", "b", "c"):
        log.take(call_id)
    for call_id in ("a", "b", "c"):
        add(log, call_id, bytes(9))
    assert [len(log.take(one, last=True)[0]) for one in ("a", "b", "c")] == [1, 1, 0], (
        "all together"
    )
    assert log.take("c", last=True) == ([], 0), "and nothing is left behind"


# ---- decisions


def fields(call_id: str = "a") -> tuple[Any, ...]:
    message = b"INVITE sip:1@h SIP/2.0\r\n\r\n"
    return ("192.0.2.1", 5060, "udp", "192.0.2.2", 1, "INVITE", 0, message, b"", False, call_id)


def handler(decide: Any, log: MessageLog) -> _Handler:
    def ignored(*_given: Any) -> None: ...

    return _Handler(decide, decide, decide, ignored, ignored, log)


def test_a_message_that_is_taken_in_place_of_another_is_not_kept_beside_it() -> None:
    log = MessageLog()
    log.wanted = True
    asked: list[str] = []

    def decide(received: ReceivedMessage) -> Decision:
        asked.append(received.call_id)
        if len(asked) == 1:
            made.on_message(*fields())
        return PASS

    made = handler(decide, log)
    assert made.on_message(*fields()) == PASS
    assert asked == ["a", "a"]
    assert len(log.take("a")[0]) == 1
    made.on_message(*fields())
    assert len(log.take("a")[0]) == 1, "the next one is"


def test_a_decision_that_raises_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes to the C++ side, which refuses what it was about."""
    now = [100.0]
    monkeypatch.setattr(signalling, "time", SimpleNamespace(monotonic=lambda: now[0]))
    log = MessageLog()
    log.wanted = True

    def decide(_received: object) -> Decision:
        raise ZeroDivisionError

    made = handler(decide, log)
    with capture_logs() as logs:
        for _ in range(3):
            for ask in (made.on_message, made.on_request):
                with pytest.raises(ZeroDivisionError):
                    ask(*fields())
        with pytest.raises(ZeroDivisionError):
            made.on_unread("192.0.2.1", 5060, "udp", 400, b"x")
        assert len(logs) == 1
        now[0] += signalling.FAILED_SECONDS
        with pytest.raises(ZeroDivisionError):
            made.on_message(*fields())
    assert len(logs) == 2
    assert len(log.take("a")[0]) == 4, "each was kept all the same"


@pytest.mark.parametrize(
    ("listen", "local", "six"),
    [
        ("0.0.0.0", "192.0.2.1", False),
        ("::", "192.0.2.1", False),
        ("0.0.0.0", "2001:db8::1", True),
        ("::", "::", True),
        ("0.0.0.0", "::", False),
        ("::", "", True),
        ("::", "::ffff:192.0.2.1", False),
    ],
)
def test_which_family_a_calls_audio_has(listen: str, local: str, six: bool) -> None:
    settings = SipSettings(listen=(Listen("udp", listen, 5060),))
    assert Negotiation(settings).uses_ipv6(local) is six


SECURE = Trunk("s", security=Security("required"))


@pytest.mark.parametrize(
    ("media", "trunk", "why"),
    [
        ("m=audio 4000 RTP/AVP 0", None, None),
        ("m=audio 4000 RTP/AVP 8", None, None),
        ("m=audio 4000 RTP/AVP 8", Trunk("u", codecs=(Codec.PCMU,)), SdpRejection.CODEC),
        (
            "m=audio 4000 RTP/AVP 0",
            Trunk("s", security=Security("required")),
            SdpRejection.SRTP_REQUIRED,
        ),
        ("m=video 4000 RTP/AVP 31", None, SdpRejection.NO_AUDIO),
    ],
)
def test_an_offer_within_a_call_is_judged_by_its_trunk(
    media: str, trunk: Trunk | None, why: SdpRejection | None
) -> None:
    settings = SipSettings(listen=(Listen("udp", "0.0.0.0", 5060),))
    text = f"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n{media}\r\n"
    assert Negotiation(settings).rejection(text, trunk, "192.0.2.2") is why


def test_the_request_uri_as_it_stands() -> None:
    made = ReceivedMessage(*fields())
    assert (made.request_uri, made.reliable) == ("sip:1@h", False)
    assert replace(made, message=b"INVITE", transport="tcp").request_uri == ""
