# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of the load phones: as much SIP (RFC 3261) over UDP as an honest caller needs.

Requests are retransmitted (timers A and E), every response and every crossing of BYE, CANCEL and
200 is accounted for, so that a call ends with one word that says what became of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

T1_NS = 500_000_000
GIVE_UP_NS = 32_000_000_000
"""64 T1: a request without an answer has failed (timers B and F)."""

_CRLF = "\r\n"


@dataclass(eq=False)
class SipCall:
    """An outgoing call. Times are CLOCK_MONOTONIC in ns.

    ``outcome`` is empty while the call lives, then one of ``hung_up`` (by us), ``ended`` (BYE from
    the gateway), ``cancelled``, ``crossed`` (answered in spite of the CANCEL, then hung up),
    ``refused_CODE``, ``silent_METHOD`` (no answer to our request).
    """

    send: Callable[[bytes], None]
    target: tuple[str, int]
    own: str
    user: str
    rtp_port: int
    payload_type: str = "0"
    call_id: str = field(default_factory=lambda: f"{random.getrandbits(64):x}@phone")
    tag: str = field(default_factory=lambda: f"{random.getrandbits(32):x}")
    branch: str = field(default_factory=lambda: f"z9hG4bK{random.getrandbits(48):x}")
    outcome: str = ""
    invited_at: int = 0
    answered_at: int = 0
    media: tuple[str, int] | None = None
    retry_after: str = ""
    provisional: bool = False
    cancelled: bool = False
    _to: str = ""
    _pending: str = ""
    _request: bytes = b""
    _asked_at: int = 0
    _wait: int = 0
    again_at: int = 1 << 62
    """When :meth:`on_time` is due."""

    @property
    def up(self) -> bool:
        """Answered and not over."""
        return self.answered_at > 0 and not self.outcome

    def invite(self, now: int) -> None:
        """Call."""
        lines = [
            "v=0",
            "o=- 1 1 IN IP4 127.0.0.1",
            "s=-",
            "c=IN IP4 127.0.0.1",
            "t=0 0",
            f"m=audio {self.rtp_port} RTP/AVP {self.payload_type} 101",
            f"a=rtpmap:{self.payload_type} {'G722' if self.payload_type == '9' else 'PCMU'}/8000",
            "a=rtpmap:101 telephone-event/8000",
            "a=ptime:20",
        ]
        self.invited_at = now
        self._ask("INVITE", self._message("INVITE", 1, self.branch, _CRLF.join(lines) + _CRLF), now)

    def hang_up(self, now: int) -> None:
        """BYE, or CANCEL where there is no answer yet."""
        if self.outcome or self._pending in ("BYE", "CANCEL"):
            return
        if self.answered_at:
            self._ask("BYE", self._message("BYE", 2, _branch()), now)
        elif self.provisional:
            self.cancelled = True
            self._ask("CANCEL", self._message("CANCEL", 1, self.branch), now)
        else:
            self.cancelled = True  # not allowed before a provisional response: it follows then

    def on_time(self, now: int) -> None:
        """Retransmit what has no answer yet, or give up."""
        if not self._pending:
            self.again_at = 1 << 62
        elif now - self._asked_at > GIVE_UP_NS:
            self._over(f"silent_{self._pending}")
        else:
            self.send(self._request)
            self._wait = min(2 * self._wait, 8 * T1_NS)
            self.again_at = now + self._wait

    def receive(self, text: str, at: int) -> None:
        """A message of this call."""
        head, _, body = text.partition("\r\n\r\n")
        start, *lines = head.split(_CRLF)
        if not start.startswith("SIP/2.0 "):
            self._on_request(start, lines)
            return
        code = int(start.split(" ")[1])
        method = next(_of("cseq", lines)).split()[-1]
        if method == "INVITE":
            self._on_invite_response(code, lines, body, at)
        elif method == "BYE" and code >= 200:
            self._over("crossed" if self.cancelled else "remote_hangup")
        elif method == "CANCEL" and code >= 200 and self._pending == "CANCEL":
            self._pending = ""

    def _on_request(self, start: str, lines: list[str]) -> None:
        if start.startswith("ACK "):
            return
        kept = [
            line
            for line in lines
            if line.partition(":")[0].lower() in ("via", "from", "to", "call-id", "cseq")
        ]
        self.send(_CRLF.join(["SIP/2.0 200 OK", *kept, "Content-Length: 0", "", ""]).encode())
        if start.startswith("BYE "):
            self._over("ended")

    def _on_invite_response(self, code: int, lines: list[str], body: str, at: int) -> None:
        if code < 200:
            if self._pending == "INVITE":
                self._pending = ""
            self.provisional = True
            if self.cancelled and not self._pending:
                self._ask("CANCEL", self._message("CANCEL", 1, self.branch), at)
            return
        self._to = next(_of("to", lines))
        self.send(self._message("ACK", 1, self.branch if code >= 300 else _branch()))
        if self.answered_at or self.outcome:
            return  # a retransmission
        if self._pending in ("INVITE", "CANCEL"):
            self._pending = ""
        if code >= 300:
            self.retry_after = next(_of("retry-after", lines), "")
            self._over("cancelled" if code == 487 and self.cancelled else f"refused_{code}")
            return
        self.answered_at = at
        found = re.search(r"^m=audio (\d+)", body, re.M)
        self.media = (self.target[0], int(found[1])) if found else None
        if self.cancelled:
            self.hang_up(at)

    def _ask(self, method: str, request: bytes, now: int) -> None:
        self._pending, self._request, self._asked_at = method, request, now
        self._wait = T1_NS
        self.again_at = now + self._wait
        self.send(request)

    def _over(self, outcome: str) -> None:
        self._pending = ""
        self.outcome = self.outcome or outcome

    def _message(self, method: str, sequence: int, branch: str, body: str = "") -> bytes:
        host, port = self.target
        uri = f"sip:{self.user}@{host}:{port}"
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.own};branch={branch};rport",
            "Max-Forwards: 70",
            f"From: <sip:measured@{self.own}>;tag={self.tag}",
            f"To: {self._to or f'<{uri}>'}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {sequence} {method}",
            f"Contact: <sip:measured@{self.own}>",
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        return (_CRLF.join(lines) + "\r\n\r\n" + body).encode()


def call_id_of(text: str) -> str:
    """The Call-ID of a message, empty where there is none."""
    found = re.search(r"^call-id:[ \t]*(\S+)", text, re.I | re.M)
    return found[1] if found else ""


def _of(name: str, lines: list[str]) -> Iterator[str]:
    return (line.partition(":")[2].strip() for line in lines if line.lower().startswith(f"{name}:"))


def _branch() -> str:
    return f"z9hG4bK{random.getrandbits(48):x}"
