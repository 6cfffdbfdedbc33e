# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers to requests that no parser takes."""

from __future__ import annotations

import pytest

from gateway.sip.messages.replies import method_of, response_to_unparsed

REQUEST = (
    b"INVITE sip:1@h SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bK1\r\n"
    b'v: SIP/2.0/UDP 192.0.2.2\r\nFrom: <<<\xff;tag=1\r\nTo: ""unknown"" <sip:1@h>\r\n'
    b"Call-ID: 1\r\nCSeq: 1 INVITE\r\n\r\nv=0"
)


def test_made_of_what_can_be_read() -> None:
    lines = response_to_unparsed(REQUEST, 400, "192.0.2.9", 5070).split(b"\r\n")
    assert lines[0] == b"SIP/2.0 400 Bad Request"
    via = b"SIP/2.0/UDP 192.0.2.1;rport=5070;branch=z9hG4bK1;received=192.0.2.9"
    assert lines[1:3] == [b"Via: " + via, b"Via: SIP/2.0/UDP 192.0.2.2"]
    assert lines[3] == b"From: <<<\xff;tag=1"
    assert lines[4].startswith(b'To: ""unknown"" <sip:1@h>;tag=')
    assert lines[5:7] == [b"Call-ID: 1", b"CSeq: 1 INVITE"]
    assert lines[7:] == [b"Content-Length: 0", b"", b""]


@pytest.mark.parametrize("name", [b"To", b"From", b"CSeq", b"Call-ID"])
def test_a_field_that_is_missing(name: bytes) -> None:
    """Its sender finds the transaction by the branch in Via (RFC 3261 section 17.1.3)."""
    data = REQUEST.replace(b"\r\n" + name + b":", b"\r\nX:")
    answer = response_to_unparsed(data, 400, "192.0.2.9", 5070)
    assert answer.startswith(b"SIP/2.0 400 ")
    assert b"\r\n" + name + b":" not in answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\nVia: 1\r\n\r\n",
        b"SIP/2.0 200 OK\r\n\r\n",
        REQUEST.replace(b"INVITE", b"ACK"),
        REQUEST.replace(b"CSeq", b"X").replace(b"Call-ID", b"Y"),
        REQUEST.replace(b"Call-ID: 1\r\n", b"Call-ID: 1\r\nCall-ID: 2\r\n"),
        REQUEST.replace(b"Via", b"X").replace(b"v:", b"x:"),
        REQUEST.replace(b"v: ", b"v: " + b"a" * 2000),
        REQUEST.replace(b"v: S", b"v: a\r\n" * 20 + b"v: S"),
    ],
)
def test_nothing_to_answer(data: bytes) -> None:
    assert response_to_unparsed(data, 400, "192.0.2.9", 5070) == b""


def test_method() -> None:
    assert method_of(REQUEST) == "INVITE"
    assert method_of(b"\xff \xff SIP/2.0") == ""
