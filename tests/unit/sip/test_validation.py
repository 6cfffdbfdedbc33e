# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept from pjsip, and what is not; and what a request without a call gets."""

from __future__ import annotations

import pytest

from gateway.sip.messages.headers import headers_of, name_addr_of, split_list
from gateway.sip.messages.replies import (
    Reply,
    known_method,
    reply_in_dialog,
    reply_outside_dialog,
    reply_to_required,
)
from gateway.sip.messages.validation import message_flaw, multipart_flaw, without_bad_via

GOOD = """INVITE sip:100@192.0.2.1 SIP/2.0
Via: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1;rport
Max-Forwards: 70
From: "A, \\"B\\" <C>" <sip:200@example.net>;tag=1
To: <sip:100@192.0.2.1>
Call-ID: 1@example.net
CSeq: 1 INVITE
Contact: <sip:200@[2001:db8::9]:5070;transport=tcp>;q=0.5, "x, y" <sips:b@host.example>
Record-Route: <sip:p1.example.net;lr>, <sip:[::1]:5080;lr;ftag=a,b>
Content-Length: 0

"""


def flaw(message: str) -> str:
    found = message_flaw(message.split("\n", 1)[0], headers_of(message))
    return "" if found is None else f"{found.code} {found.what}"


def test_an_ordinary_message_has_none() -> None:
    assert flaw(GOOD) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Contact: <sip:200@[2001:db8::9]:5070;transport=tcp>;q=0.5, ", "Contact: "),
        ("Contact: ", "m: "),
        ("<sip:100@192.0.2.1>\n", "sip:100@192.0.2.1\n"),
        ("To: <sip:100@192.0.2.1>", "To: <tel:+493012345>"),
        ("INVITE sip:100@192.0.2.1", "INVITE tel:+493012345"),
        ("INVITE sip:100@192.0.2.1 SIP/2.0", "SIP/2.0 200 OK"),
        ("CSeq: 1 INVITE", "CSeq: 1    INVITE  "),
        ("<sip:p1.example.net;lr>", "<sip:user:pass@p1.example.net;lr?X=y>"),
        ("Max-Forwards: 70", "Refer-To: <tel:+4930>"),
        ("Max-Forwards: 70", "Contact: *"),
        ("sip:p1.example.net;lr", "sip:p_1.example.net.:5060;lr"),
    ],
)
def test_what_is_allowed(old: str, new: str) -> None:
    assert old in GOOD
    assert flaw(GOOD.replace(old, new)) == ""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("<sip:p1.example.net;lr>", "<127.0.0.1:5060;lr>", "400 no URI in record-route"),
        ("<sip:p1.example.net;lr>", "<tel:+49;lr>", "400 URI scheme in record-route"),
        ("<sip:p1.example.net;lr>", "<sip:;lr>", "400 host in record-route"),
        ("<sip:p1.example.net;lr>", "<sip:host:99999;lr>", "400 host in record-route"),
        ("Record-Route: ", "Route: <urn:x:y>, ", "400 URI scheme in route"),
        ("<sips:b@host.example>", "<mailto:b@host.example>", "400 URI scheme in contact"),
        ("<sips:b@host.example>", "", "400 no URI in contact"),
        ("To: <sip:100@192.0.2.1>", "To: isbn:2983792873", "416 URI scheme in to"),
        ("To: <sip:100@192.0.2.1>", "To: <>", "400 no URI in to"),
        ("To: <sip:100@192.0.2.1>", "To: <sip:100@192.0.2.1>;tag=", "400 empty tag in to"),
        (";tag=1", ";tag", "400 empty tag in from"),
        (
            "INVITE sip:100@192.0.2.1",
            "INVITE soap.beep://192.0.2.1",
            "416 scheme of the Request-URI",
        ),
        ("CSeq: 1", "CSeq: 2147483648", "400 CSeq number"),
        ("CSeq: 1", "CSeq: -1", "400 CSeq number"),
        ("CSeq: 1 INVITE", "CSeq: 1 INVITES", "400 CSeq of another method"),
        ("CSeq: 1 INVITE", "CSeq: 1 BYE", "400 CSeq of another method"),
        ("CSeq: 1", "CSeq: 1 INVITE\nCSeq: 2", "400 more than one cseq"),
        ("Max-Forwards", "X: y\n" * 130 + "Max-Forwards", "400 more than 128 header fields"),
    ],
)
def test_what_is_kept_from_pjsip(old: str, new: str, found: str) -> None:
    assert old in GOOD
    assert flaw(GOOD.replace(old, new)) == found


def test_addresses_are_split_where_they_end() -> None:
    field = '"a, \\"<b" <sip:c@d;x=1,2>;p=3, sip:e@f;q=1 , <sip:g>'
    assert [name_addr_of(one).uri for one in split_list(field)] == [
        "sip:c@d;x=1,2",
        "sip:e@f",
        "sip:g",
    ]


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


@pytest.mark.parametrize(
    ("content_type", "good"),
    [
        ("multipart/mixed;boundary=x", True),
        ('Multipart/Mixed; charset=utf-8; boundary="x"', True),
        ("multipart/mixed;boundary=y", False),
        ("multipart/mixed", False),
        ("multipart/mixed;boundary=", False),
        ("application/sdp", True),
    ],
)
def test_a_multipart_body_has_its_parts(content_type: str, good: bool) -> None:
    body = "--x\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--x--\r\n"
    assert (multipart_flaw({"content-type": (content_type,)}, body) is None) is good


def test_made_up_methods_share_a_name() -> None:
    assert {known_method("X1"), known_method("X2")} == {"unknown"}
    assert known_method("BYE") == "BYE"


@pytest.mark.parametrize(
    ("sent_by", "told", "kept"),
    [
        ("192.0.2.1:5060", ";received=192.0.2.7;rport=5070", True),
        ("192.0.2.1", ";rport;received=192.0.2.7:5060", True),
        ("[2001:db8::1]:5060", ";received=2001:db8::2;rport=", True),
        ("[2001:db8::1]", ";received=[2001:db8::2]:5060", True),
        ("192.0.2.1", ";received=2001:db8::1", False),
        ("192.0.2.1", ";received=::ffff:192.0.2.1", False),
        ("192.0.2.1", ";received=[192.0.2.1", False),
        ("192.0.2.1", ";received=nobody.example", False),
        ("192.0.2.1", ";received", False),
        ("192.0.2.1", ";\r\n Received =\r\n 2001:db8::1", False),
        ("[2001:db8::1]", ";received=[2001:db8::2", False),
        ("[2001:db8::1]", ";received=fe80::1%a", False),
        ("192.0.2.1", ";rport=65536", False),
        ("192.0.2.1", ";rport=-1", False),
    ],
)
def test_addresses_that_a_response_says_are_ours(sent_by: str, told: str, kept: bool) -> None:
    """What is none is left out of the first Via; all else stays."""
    via = f"Via: SIP/2.0/UDP {sent_by};branch=z9"
    more = ";x=y, SIP/2.0/UDP b\r\nTo: <sip:a>;tag=b"
    body = "\r\n\r\nVia: x;received=y"
    response = f"SIP/2.0 200 OK\r\n{via}{told}{more}{body}"
    wanted = "" if kept else f"SIP/2.0 200 OK\r\n{via}{more}{body}"
    assert without_bad_via(response.encode()) == wanted.encode()
    assert without_bad_via(response.replace("SIP/2.0 200 OK", "BYE sip:a SIP/2.0").encode()) == b""
