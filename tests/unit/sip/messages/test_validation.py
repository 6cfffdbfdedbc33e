# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept from pjsip, and what is not."""

from __future__ import annotations

import pytest

from gateway.sip.messages.headers import headers_of
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
