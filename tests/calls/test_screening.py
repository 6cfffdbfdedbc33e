# SPDX-License-Identifier: GPL-2.0-or-later
"""The seam between pjsip and pjsua: what Python is shown of a message, and what its word does.

Whatever it says that is no decision, or raises, keeps the message out.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import support

SCREENED = Path(support.__file__).with_name("screened.py")
FAILING = (
    *("raise", "exit", "none", "true", "short", "code-99", "code-big", "header-int"),
    *("header-line", "reason-line", "surrogate", "second-raise"),
)
FEW_KIB = 3000


class Endpoint:
    """The process, and a socket to talk with it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SCREENED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.udp, self.tcp = self.line()["ports"]
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(10)
        self.number = 0
        self.failing = 0
        self.asked: set[bytes] = set()
        """Requests of the endpoint's: one that we are slow to answer comes again."""

    def line(self) -> dict[str, Any]:
        """The next line that it prints which is no log line."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            found: dict[str, Any] = json.loads(text)
            if "event" not in found:
                return found
        raise AssertionError(f"ended with status {self.process.wait(10)}")

    def request(self, user: str, method: str = "OPTIONS", more: str = "", body: str = "") -> bytes:
        self.number += 1
        host, port = self.socket.getsockname()
        return (
            f"{method} sip:{user}@127.0.0.1:{self.udp} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{self.number};rport\r\n"
            f"From: <sip:a@127.0.0.1>;tag=a{self.number}\r\nTo: <sip:b@127.0.0.1>\r\n"
            f"Call-ID: {self.number}@screening\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n"
            f"{more}Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, ("127.0.0.1", self.udp))

    def answer(self) -> str:
        """The answer to the last request; whatever is not for it is an error."""
        while (data := self.socket.recv(65536)) in self.asked:
            pass
        text = data.decode()
        assert f"\r\nCall-ID: {self.number}@screening\r\n" in text, text
        return text

    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    def close(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.close()
        last = self.line()
        assert self.process.wait(20) == 0
        self.socket.close()
        return last


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    last = made.close()
    assert last["failures"] == made.failing
    assert last["outside"] == ["no message is being decided on"]


def test_a_request_is_shown_as_pjsip_has_parsed_it(endpoint: Endpoint) -> None:
    more = "X-Two: 1\r\nx-two: 2\r\n"
    data = endpoint.request("ask", "MESSAGE", more + "s: hello\r\nc: text/plain\r\n", "the body")
    endpoint.send(data)
    seen = endpoint.line()
    host, port = endpoint.socket.getsockname()
    assert seen["seen"] == [host, port, "udp", "127.0.0.1", "MESSAGE", 0, False]
    assert seen["message"].encode() == data
    assert seen["body"] == "the body"
    (via,) = seen["headers"]["Via"]
    assert via.startswith(f"SIP/2.0/UDP {host}:{port};")
    assert seen["headers"]["x-two"] == ["1", "2"]
    assert seen["headers"]["s"] == ["hello"]
    endpoint.answer()  # pjsua's own


def test_tcp_is_told(endpoint: Endpoint) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.tcp), 10) as connection:
        connection.sendall(endpoint.request("ask").replace(b"/UDP", b"/TCP"))
        assert endpoint.line()["seen"][2:4] == ["tcp", "127.0.0.1"]
        assert connection.recv(65536).startswith(b"SIP/2.0 200 ")


@pytest.mark.parametrize(
    ("user", "status"),
    [
        ("reply-403", "403 Forbidden"),
        ("reply-499-Not-this-one", "499 Not this one"),
        ("second", "404 Not Found"),
        ("anybody", "200 OK"),
    ],
)
def test_what_is_decided_is_done(endpoint: Endpoint, user: str, status: str) -> None:
    endpoint.send(endpoint.request(user))
    answer = endpoint.answer()
    assert answer.startswith(f"SIP/2.0 {status}\r\n")
    added = re.findall(r"\r\n(X-\w+: \S+)", answer)
    assert added == (["X-One: 1", "X-Two: 2"] if user.startswith("reply") else [])


@pytest.mark.parametrize("user", FAILING)
def test_what_is_no_decision_is_500(endpoint: Endpoint, user: str) -> None:
    endpoint.failing += 1
    endpoint.send(endpoint.request(user))
    answer = endpoint.answer()
    assert answer.startswith("SIP/2.0 500 ")
    assert "X-" not in answer


@pytest.mark.parametrize("method", ["ACK", "OPTIONS"])
def test_what_is_dropped_has_no_answer(endpoint: Endpoint, method: str) -> None:
    user = "raise" if method == "ACK" else "drop"
    endpoint.failing += user == "raise"
    endpoint.send(endpoint.request(user, method))
    endpoint.send(endpoint.request("anybody"))
    assert endpoint.answer().startswith("SIP/2.0 200 ")


def _respond(endpoint: Endpoint, status: str) -> None:
    request, source = endpoint.socket.recvfrom(65536)
    while request in endpoint.asked:
        request, source = endpoint.socket.recvfrom(65536)
    endpoint.asked.add(request)
    fields = [
        line
        for line in request.decode().split("\r\n")
        if line.startswith(("Via", "From", "To", "Call-ID", "CSeq"))
    ]
    lines = [f"SIP/2.0 {status}", *fields, "Content-Length: 0", "", ""]
    endpoint.socket.sendto("\r\n".join(lines).encode(), source)


@pytest.mark.parametrize(
    ("status", "told"), [("200 OK", 200), ("404 No", 404), ("491 Request Pending", 503)]
)
def test_a_response_is_screened_and_may_be_taken_for_another(
    endpoint: Endpoint, status: str, told: int
) -> None:
    assert endpoint.process.stdin is not None
    host, port = endpoint.socket.getsockname()
    endpoint.process.stdin.write(f"sip:peer@{host}:{port}\n")
    endpoint.process.stdin.flush()
    _respond(endpoint, status)
    assert endpoint.line() == {"response": int(status[:3]), "method": "OPTIONS"}
    assert endpoint.line() == {"options": [7, told]}


def test_options_to_an_address_that_is_none(endpoint: Endpoint) -> None:
    assert endpoint.process.stdin is not None
    endpoint.process.stdin.write("no address\n")
    endpoint.process.stdin.flush()
    token, status = endpoint.line()["options"]
    assert token == 7
    assert status != 0


def test_thousands_of_refusals_leave_nothing_behind(endpoint: Endpoint) -> None:
    for turn in range(2):
        for number in range(1500):
            user = FAILING[number % 11] if number % 2 else "reply-403"
            endpoint.failing += number % 2
            endpoint.send(endpoint.request(user))
            endpoint.answer()
        if turn == 0:
            before = endpoint.resident_kib()
    assert endpoint.resident_kib() < before + FEW_KIB
