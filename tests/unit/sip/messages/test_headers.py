# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of SIP messages, on messages as they come and as they should not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sip.messages.headers import (
    display_name_of,
    headers_of,
    name_addr_of,
    reason_of,
    request_uri_of,
    split_list,
    uri_of,
    user_of,
)

INVITE = (
    "INVITE sip:100@192.0.2.1:5060;transport=udp SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1;rport\r\n"
    "v: SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK2\r\n"
    'From : "Smith \\"Al\\" <x>" <sip:alice@192.0.2.9>;tag=1\r\n'
    "t: <sip:100@192.0.2.1>\r\n"
    "Call-ID: abc@192.0.2.9\r\n"
    "CSeq: 1 INVITE\r\n"
    "Subject: a long\r\n"
    "\t subject\r\n"
    "this line is no field\r\n"
    "X-Account: 7: seven\r\n"
    "X-Empty:\r\n"
    "Content-Length: 0\r\n"
    "\r\n"
)


def test_header_fields_by_full_name_in_order() -> None:
    headers = headers_of(INVITE)
    assert headers["via"] == (
        "SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1;rport",
        "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK2",
    )
    assert headers["to"] == ("<sip:100@192.0.2.1>",)
    assert headers["call-id"] == ("abc@192.0.2.9",)
    assert headers["subject"] == ("a long subject",)
    assert headers["from"] == ('"Smith \\"Al\\" <x>" <sip:alice@192.0.2.9>;tag=1',)
    # A line that is no field hides nothing behind it.
    assert headers["x-account"] == ("7: seven",)
    assert headers["x-empty"] == ("",)
    assert headers["content-length"] == ("0",)


def test_a_body_adds_no_header() -> None:
    message = "INVITE sip:1@h SIP/2.0\r\nA: 1\r\n\r\nX-Evil: 1\r\n\r\nX-Evil: 2\r\n"
    assert set(headers_of(message)) == {"accept-contact"}


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_line_ends(end: str) -> None:
    message = INVITE.replace("\r\n", end)
    assert headers_of(message) == headers_of(INVITE)
    assert request_uri_of(message) == "sip:100@192.0.2.1:5060;transport=udp"


@pytest.mark.parametrize(
    ("message", "uri"),
    [
        (INVITE, "sip:100@192.0.2.1:5060;transport=udp"),
        ("SIP/2.0 200 OK\r\n\r\n", ""),
        ("SIP/2.0 486 Busy Here\r\n\r\n", ""),
        ("", ""),
        ("INVITE\r\n", ""),
    ],
)
def test_request_uri(message: str, uri: str) -> None:
    assert request_uri_of(message) == uri


@pytest.mark.parametrize(
    ("field", "uri", "name"),
    [
        ("<sip:100@h>", "sip:100@h", ""),
        ("sip:100@h;tag=1", "sip:100@h", ""),
        ("Alice <sip:a@h;transport=tcp>;tag=1", "sip:a@h;transport=tcp", "Alice"),
        ("Alice Smith<sip:a@h>", "sip:a@h", "Alice Smith"),
        ('"Alice" <sip:a@h>', "sip:a@h", "Alice"),
        ('"" <sip:a@h>', "sip:a@h", ""),
        ('"Bob <sip:evil@x>" <sip:a@h>;tag=2', "sip:a@h", "Bob <sip:evil@x>"),
        ('"Al \\"the\\" Great" <sip:a@h>', "sip:a@h", 'Al "the" Great'),
        ('"Müller, Zoë" <sip:a@h>', "sip:a@h", "Müller, Zoë"),
        ("", "", ""),
    ],
)
def test_name_and_address(field: str, uri: str, name: str) -> None:
    assert uri_of(field) == uri
    assert display_name_of(field) == name


@pytest.mark.parametrize(
    ("uri", "user"),
    [
        ("sip:100@192.0.2.1", "100"),
        ("sips:100@192.0.2.1:5061;transport=tls", "100"),
        ("SIP:+4930123@h", "+4930123"),
        ("sip:%2B4930123@h", "+4930123"),
        ("sip:*21%23@h", "*21#"),
        ("sip:alice:secret@h", "alice"),
        ("sip:+4930123;phone-context=example.com@h;user=phone", "+4930123"),
        ("sip:+15551234;npdi;rn=+15550000@h", "+15551234"),
        ("sip:j%40example.com@h", "j@example.com"),
        ("sip:192.0.2.1", ""),
        ("sip:[2001:db8::1]:5060", ""),
        ("sip:100@[2001:db8::1]:5060", "100"),
        ("tel:+49-30-123", "+49-30-123"),
        ("tel:123;phone-context=+49", "123"),
        ("sip:@h", ""),
        ("sip:a%00b@h", "a\ufffdb"),
        ("sip:a\0b\udce4@h", "a\ufffdb\ufffd"),
        ("http://100@h", ""),
        ("", ""),
    ],
)
def test_user(uri: str, user: str) -> None:
    assert user_of(uri) == user


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('Reason: Q.850;cause=16;text="Normal"', 'Q.850;cause=16;text="Normal"'),
        ("Reason: SIP;cause=200\r\nReason: Q.850;cause=26", "SIP;cause=200, Q.850;cause=26"),
        ("Subject: none", ""),
    ],
)
def test_reason(line: str, reason: str) -> None:
    assert reason_of(headers_of(f"BYE sip:1@h SIP/2.0\r\n{line}\r\n\r\n")) == reason


_TEXT = st.lists(
    st.sampled_from([*'abm=:;<>@"\\ \t\r\n09%/[]', "audio ", "a=rtpmap:", "%2", "\r\n\r\n"])
).map("".join)


@given(_TEXT)
def test_nothing_that_comes_raises(text: str) -> None:
    for message in (text, INVITE + text, "INVITE sip:1@h SIP/2.0\r\n\r\nm=audio 1 x " + text):
        names = headers_of(message)
        assert all(name == name.lower().strip() for name in names)
        assert request_uri_of(message) in message
    assert isinstance(uri_of(text), str)
    assert isinstance(user_of("sip:" + text), str)
    assert isinstance(display_name_of(text), str)


def test_addresses_are_split_where_they_end() -> None:
    field = '"a, \\"<b" <sip:c@d;x=1,2>;p=3, sip:e@f;q=1 , <sip:g>'
    assert [name_addr_of(one).uri for one in split_list(field)] == [
        "sip:c@d;x=1,2",
        "sip:e@f",
        "sip:g",
    ]
