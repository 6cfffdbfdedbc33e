# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stranger sends must not take more than its length of time to read.

Each parser is given hostile input and the same input doubled: by processor time of this thread,
best of several, so that a busy machine does not matter. Twice the input may take three times as
long; where a parser is quadratic it takes four times, and eight where it is cubic.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from starlette.requests import Request

from gateway.api.access import Logins, OwnCookie
from gateway.api.backend import recognized
from gateway.call.conversation import playback
from gateway.call.rules import guardrails
from gateway.realtime.events import ServerError
from gateway.realtime.parse import BadEvent, parse_event
from gateway.realtime.session_object import field_of
from gateway.sip import source_policy
from gateway.sip.messages import replies as info
from gateway.sip.messages.headers import (
    asserted,
    body_of,
    display_name_of,
    diverted,
    has_unreadable_number,
    headers_of,
    invite_of,
    name_addr_of,
    number_of,
    parameter_of,
    split_list,
    uri_of,
    user_of,
    without_unreadable,
)
from gateway.sip.messages.replies import method_of, response_to_unparsed
from gateway.sip.messages.sdp import offered_codecs, parse, sdp_text
from gateway.sip.messages.validation import (
    is_call_id,
    message_flaw,
    multipart_flaw,
    reduced_requests,
    reduced_response,
    with_user_and_host,
    without_bad_via,
)
from gateway.text import PrivateDigits, printable, unicode_of, words_of

SIZE = 3_000
FLOOR_S = 0.0005
"""Below this the clock decides, not the parser."""
ROUNDS = 4

SHAPES: dict[str, Callable[[int], str]] = {
    "spaces": lambda n: "x," + " " * n + "y",
    "quotes": lambda n: '"' * n,
    "open quote": lambda n: '"' + "a" * n,
    "backslashes": lambda n: '"' + "\\" * n,
    "brackets": lambda n: "<" * n,
    "closing": lambda n: ">" * n,
    "addresses": lambda n: "<sip:a@b>," * (n // 10),
    "commas": lambda n: "," * n,
    "semicolons": lambda n: "<sip:a@b>" + "; " * (n // 2),
    "tags": lambda n: "<sip:a@b>" + ";tag" * (n // 4),
    "at": lambda n: "sip:" + "@" * n,
    "colons": lambda n: "sip:" + ":" * n,
    "dots": lambda n: "sip:a@" + "b." * (n // 2),
    "hyphens": lambda n: "sip:a@" + "-" * n,
    "percent": lambda n: "sip:" + "%41" * (n // 3) + "@b",
    "signal": lambda n: "Signal=" * (n // 7),
    "blank signal": lambda n: "Signal=5 " + " " * n + "x",
    "empty lines": lambda n: "\n" * n,
    "blank lines": lambda n: " \n" * (n // 2),
    "folds": lambda n: "A: b" + "\r\n " * (n // 3),
    "carriage returns": lambda n: "\r" * n,
    "fields": lambda n: "A: b\r\n" * (n // 6),
    "streams": lambda n: "m=audio 1 RTP/AVP 0\r\n" * (n // 21),
    "payloads": lambda n: "\r\n\r\nm=audio 1 RTP/AVP" + " 96" * (n // 3),
    "maps": lambda n: "\r\n\r\nm=audio 1 RTP/AVP 0\r\n" + "a=rtpmap:0 x\r\n" * (n // 14),
    "address lines": lambda n: "c=IN IP4 127.0.0.1\r\n" * (n // 20),
    "blank address": lambda n: "c=IN" + " " * n + "IP4",
    "rtcp digits": lambda n: "a=rtcp:" + "1" * n,
    "words": lambda n: "a-b'" * (n // 4),
    "escapes": lambda n: "\x1b[2J" * (n // 4),
    "surrogates": lambda n: "\udcff" * n,
    "milliseconds": lambda n: "Audio content of " + "1" * n,
    "nested": lambda n: "[" * n,
}


def _message(text: str) -> str:
    names = ("From", "To", "P-Asserted-Identity", "Diversion", "History-Info", "Contact", "CSeq")
    fields = "".join(f"{name}: {text}\r\n" for name in names)
    return f"INVITE sip:1@h SIP/2.0\r\n{fields}Call-ID: 1\r\n\r\n{text}"


def _flaws(text: str) -> None:
    names = ("from", "to", "contact", "route", "refer-to", "cseq", "call-id")
    for name in names:
        message_flaw(f"INVITE {text} SIP/2.0", {name: (text,)})
    multipart_flaw({"content-type": (f"multipart/mixed;boundary={text}",)}, text)


def _parse_event(text: str) -> None:
    for message in (text, f'{{"type": "error", "error": {{"message": {text!r}}}}}'):
        with contextlib.suppress(BadEvent):
            parse_event(message.encode("utf-8", "replace"))


def _http_request(text: str) -> None:
    fields = ("cookie", "origin", "host", "authorization")
    headers = [(name.encode(), text.encode("utf-8", "replace")) for name in fields]
    headers.append((b"cookie", f'gateway-80="{text}'.encode("utf-8", "replace")))
    scope = {"type": "http", "method": "GET", "server": ("h", 80), "headers": headers}
    seen = []

    async def app(scope: dict[str, Any], _receive: object, _send: object) -> None:
        seen.append(Request(scope).cookies)

    with contextlib.suppress(StopIteration):
        OwnCookie(app)(scope, None, None).send(None)
    assert seen == [{}]
    Logins().token_of(scope)
    recognized(f"Bearer {text}" if text.isascii() else "", ())


def _unread(text: str) -> None:
    for start in (text, f"BYE {text} SIP/2.0", f"SIP/2.0 603 {text}"):
        data = _message(text).replace("INVITE sip:1@h SIP/2.0", start).encode("utf-8", "replace")
        method_of(data)
        response_to_unparsed(data, 400, "192.0.2.1", 5060)
        reduced_requests(data, "192.0.2.1", 5060, "udp")
        reduced_response(data, "192.0.2.1", 5060)
        without_bad_via(data)
        with_user_and_host(data, "192.0.2.1", 5060)


def _masked(text: str) -> None:
    private = PrivateDigits(("numbers", "digits", "cards", "ibans", "emails"))
    private.add("4242917")
    private.masked({"text": text})


def _session_error(text: str) -> None:
    for error in (ServerError("x", "", None, text), ServerError("x", f"'a{text}' session{text}")):
        field_of(error, {"a": [{"b": 1}]})


def _digest(text: str) -> None:
    # Without the bound on a field's length, which would hide how it is read.
    with patch.object(source_policy, "MAX_FIELD", 10 * SIZE):
        for field in (f"Digest {text}", f'Digest a="{text}', f"Digest a{text}"):
            source_policy.digest_parameters(field)


PARSERS: dict[str, Callable[[str], object]] = {
    "name_addr_of": name_addr_of,
    "split_list": lambda text: list(split_list(text)),
    "parameter_of": lambda text: parameter_of(text, "tag"),
    "uri_of": uri_of,
    "user_of": user_of,
    "display_name_of": display_name_of,
    "headers_of": lambda text: headers_of(f"INVITE sip:1@h SIP/2.0\r\nA: {text}"),
    "body_of": body_of,
    "has_unreadable_number": lambda text: has_unreadable_number({"expires": (text,)}),
    "without_unreadable": lambda text: without_unreadable(
        f"INVITE sip:1@h SIP/2.0\r\n{text}\r\nMin-SE: {text}\r\n\r\n".encode("utf-8", "replace")
    ),
    "offered_codecs": offered_codecs,
    "asserted": lambda text: asserted({"p-asserted-identity": (text,)}),
    "diverted": lambda text: diverted({"diversion": (text,)}),
    "history": lambda text: diverted({"history-info": (text,)}),
    "invite_of": lambda text: invite_of(_message(text), "192.0.2.1:5060"),
    "message_flaw": _flaws,
    "parse": parse,
    "sdp_text": lambda text: sdp_text(parse(text)),
    "is_call_id": is_call_id,
    "info_digit": lambda text: info.info_digit(info.RELAY, text),
    "plain info_digit": lambda text: info.info_digit(info.PLAIN, text),
    "info_status": lambda text: info.info_status(text, text),
    "unicode_of": unicode_of,
    "printable": printable,
    "words_of": words_of,
    "parse_event": _parse_event,
    "digest": _digest,
    "HTTP request": _http_request,
    "unread": _unread,
    "masked": _masked,
    "sentences": lambda text: guardrails._SENTENCE.search(text),
    "shown number": number_of,
    "session errors": _session_error,
    "truncation": lambda text: playback._SHORTER.search(text),
}


def _seconds(parser: Callable[[str], object], text: str) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        parser(text)
        best = min(best, time.thread_time() - began)
    return best


@pytest.mark.parametrize("name", PARSERS)
def test_twice_the_input_takes_twice_the_time(name: str) -> None:
    parser = PARSERS[name]
    slow = {}
    for shape, make in SHAPES.items():
        for _ in range(3):  # what another process does to the cache is not the parser's
            once, twice = _seconds(parser, make(SIZE)), _seconds(parser, make(2 * SIZE))
            if twice <= 3 * once + FLOOR_S:
                break
        else:
            slow[shape] = (once, twice)
    assert not slow


def test_the_test_finds_a_quadratic_parser() -> None:
    import re

    quadratic = re.compile(r"^\s*Signal\s*=\s*(\S+)\s*$", re.IGNORECASE | re.MULTILINE)
    text, doubled = (SHAPES["empty lines"](size) for size in (SIZE, 2 * SIZE))
    assert any(  # another process can hide it once
        _seconds(quadratic.search, doubled) > 3 * _seconds(quadratic.search, text) + FLOOR_S
        for _ in range(3)
    )
