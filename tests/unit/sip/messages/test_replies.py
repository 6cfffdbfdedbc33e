# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers to requests that pjsip does not answer, or cannot read."""

from __future__ import annotations

import pytest

from gateway.sip.messages.replies import (
    Reply,
    known_method,
    method_of,
    reply_in_dialog,
    reply_outside_dialog,
    reply_to_required,
    response_to_unparsed,
)

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


@pytest.mark.parametrize(
    ("method", "outside", "inside"),
    [
        ("INVITE", 0, 0),
        ("ACK", 0, 0),
        ("CANCEL", 0, 0),
        ("OPTIONS", 0, 200),
        ("BYE", 481, 0),
        ("INFO", 481, 0),
        ("UPDATE", 481, 0),
        ("PRACK", 481, 0),
        ("NOTIFY", 481, 481),
        ("REFER", 405, 0),
        ("MESSAGE", 405, 405),
        ("SUBSCRIBE", 405, 489),
        ("REGISTER", 405, 405),
        ("PUBLISH", 405, 405),
        ("invite", 501, 501),
        ("NEWMETHOD", 501, 501),
    ],
)
def test_replies(method: str, outside: int, inside: int) -> None:
    found = [reply_outside_dialog(method), reply_in_dialog(method, {"event": ("presence",)}, "")]
    assert [reply.code if reply else 0 for reply in found] == [outside, inside]


@pytest.mark.parametrize(
    ("method", "fields", "unsupported"),
    [
        ("INVITE", ("100rel, Timer",), ""),
        ("INVITE", ("",), ""),
        ("INVITE", ("timer, timetravel", "flight"), "timetravel, flight"),
        ("BYE", ("timetravel",), "timetravel"),
        ("ACK", ("timetravel",), ""),
        ("CANCEL", ("timetravel",), ""),
    ],
)
def test_required_extensions(method: str, fields: tuple[str, ...], unsupported: str) -> None:
    reply = reply_to_required(method, fields)
    expected = Reply(420, ("Unsupported", unsupported)) if unsupported else None
    assert reply == expected


@pytest.mark.parametrize(
    ("method", "headers", "body", "code"),
    [
        ("INVITE", {"content-type": ("application/sdp",)}, "v=0", 0),
        ("UPDATE", {"content-type": ("text/plain",)}, "x", 415),
        ("INVITE", {"content-type": ("text/plain",)}, "", 0),
        ("INVITE", {"content-type": ("multipart/mixed;boundary=b",)}, "x", 0),
        (
            "INVITE",
            {"content-type": ("text/x",), "content-disposition": ("icon; handling=optional",)},
            "x",
            0,
        ),
        ("INFO", {"info-package": ("foo",), "content-type": ("text/plain",)}, "x", 469),
        ("INFO", {"info-package": ("dtmf",), "content-type": ("application/dtmf-relay",)}, "x", 0),
    ],
)
def test_bodies_inside_dialogs(
    method: str, headers: dict[str, tuple[str, ...]], body: str, code: int
) -> None:
    reply = reply_in_dialog(method, headers, body)
    assert (reply.code if reply else 0) == code


def test_notify_of_a_transfer_is_for_the_library() -> None:
    assert reply_in_dialog("NOTIFY", {"event": ("Refer;id=1",)}, "") is None


def test_made_up_methods_share_a_name() -> None:
    assert {known_method("X1"), known_method("X2")} == {"unknown"}
    assert known_method("BYE") == "BYE"
