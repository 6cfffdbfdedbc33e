# SPDX-License-Identifier: GPL-2.0-or-later
"""SIP messages kept for black boxes, within bounds and without secrets; what decides on them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.sip import signalling
from gateway.sip.signalling import MessageLog, SipMessage

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
