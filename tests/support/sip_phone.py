# SPDX-License-Identifier: GPL-2.0-or-later
"""A test's own telephone: just enough SIP (RFC 3261) on one UDP socket to place calls by hand.

It is written for looking at the wire: every message is kept, nothing is retransmitted unless the
test says so, and a request can be sent half, twice or broken.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast

from tests.support.rtp_end import EVENT_PAYLOAD, OPUS_PAYLOAD, RtpEnd

CODECS = {
    "PCMU": (0, b"\xff"),
    "PCMA": (8, b"\xd5"),
    "G722": (9, b"\xfa"),
    "GSM": (3, b"\xd5"),
    "opus": (OPUS_PAYLOAD, b"\xf8\xff\xfe"),
}


def rtpmap(name: str) -> str:
    """Encoding, clock and channels of a codec."""
    return "opus/48000/2" if name == "opus" else f"{name}/8000"


@dataclass(frozen=True, slots=True)
class Message:
    """A SIP message that came; ``headers`` by lower-case name, the first value of each."""

    at: float
    start: str
    headers: dict[str, str]
    body: str
    text: str = ""
    """All of it, as it came."""

    @property
    def code(self) -> int:
        """Status code, 0 for a request."""
        return int(self.start.split(" ")[1]) if self.start.startswith("SIP/2.0 ") else 0

    @property
    def method(self) -> str:
        """The method of a request, or of the request that a response answers."""
        return self.headers.get("cseq", "").partition(" ")[2] or "?"


@dataclass(eq=False)
class PhoneCall:
    """One outgoing call, from INVITE to the end."""

    phone: Phone
    user: str
    codecs: tuple[str, ...]
    headers: tuple[str, ...]
    rtp: RtpEnd
    acknowledge: bool = True
    """False: the ACK of a 200 is left to :meth:`ack`."""
    call_id: str = field(default_factory=lambda: f"{random.getrandbits(64):x}@test")
    messages: list[Message] = field(default_factory=list)
    """All that came for this call, in order."""
    invited_at: float = 0.0
    answered_at: float = 0.0
    _tag: str = field(default_factory=lambda: f"{random.getrandbits(32):x}")
    _branch: str = field(default_factory=lambda: f"z9hG4bK{random.getrandbits(48):x}")
    _to: str = ""
    _target: str = ""
    _sequence: int = 1
    _pulse: asyncio.Event = field(default_factory=asyncio.Event)
    _invite: bytes = b""
    caller: str = "tester"
    """The user of From."""
    display: str = ""
    """The display name in From."""

    # ---- what the test does

    def invite(self) -> None:
        """Send INVITE; the same bytes again when it has been sent already."""
        if not self._invite:
            self._to = f"<{self.uri}>"
            self._target = self.uri
            sdp = self._sdp(self.codecs) if self.codecs else ""
            more = ["Content-Type: application/sdp"] if sdp else []
            self._invite = self._request("INVITE", self._branch, 1, [*self.headers, *more], sdp)
            self.invited_at = time.monotonic()
        self.phone.send(self._invite)

    def cancel(self) -> None:
        """Send CANCEL."""
        self.phone.send(self._request("CANCEL", self._branch, 1))

    def ack(self, codecs: tuple[str, ...] = ()) -> None:
        """ACK the 200; with ``codecs`` it answers the offer that the 200 made."""
        sdp = self._sdp(codecs) if codecs else ""
        headers = ["Content-Type: application/sdp"] if sdp else []
        self.phone.send(self._request("ACK", _new_branch(), 1, headers, sdp))

    def bye(self, *headers: str) -> None:
        """Send BYE."""
        self._sequence += 1
        self.phone.send(self._request("BYE", _new_branch(), self._sequence, headers))

    async def until(
        self, condition: Callable[[Self], Any], within_s: float = 30.0, what: str = ""
    ) -> None:
        """Wait for a condition on what has come, looked at after each message."""
        try:
            async with asyncio.timeout(within_s):
                while not condition(self):
                    self._pulse.clear()
                    await self._pulse.wait()
        except TimeoutError:
            seen = [message.start for message in self.messages]
            raise AssertionError(f"{what or 'condition'} not met by {seen}") from None

    async def answered(self, within_s: float = 30.0) -> PhoneCall:
        """Wait for the 200."""
        await self.until(lambda call: call.final is not None, within_s, "final response")
        assert self.final is not None
        assert self.final.code == 200, self.final.start
        return self

    async def refused(self, within_s: float = 30.0) -> Message:
        """Wait for the refusal; returns it."""
        await self.until(lambda call: call.final is not None, within_s, "final response")
        assert self.final is not None
        assert self.final.code >= 300, self.final.start
        return self.final

    async def hung_up(self, within_s: float = 30.0) -> Message:
        """Wait for the other side's BYE; returns it."""
        await self.until(lambda call: call.byes, within_s, "BYE from the gateway")
        return self.byes[0]

    async def hang_up(self, *headers: str) -> None:
        """BYE, and its 200."""
        self.bye(*headers)
        await self.until(
            lambda call: any(m.code and m.method == "BYE" for m in call.messages), what="200 of BYE"
        )
        answer = next(m for m in self.messages if m.code and m.method == "BYE")
        assert answer.code == 200, answer.start

    # ---- what came

    @property
    def uri(self) -> str:
        """Whom it calls."""
        host, port = self.phone.gateway
        return f"sip:{self.user}@{host}:{port}"

    @property
    def responses(self) -> list[int]:
        """Codes of the responses to the INVITE, in order."""
        return [m.code for m in self.messages if m.code and m.method == "INVITE"]

    @property
    def final(self) -> Message | None:
        """The final response to the INVITE."""
        found = (m for m in self.messages if m.code >= 200 and m.method == "INVITE")
        return next(found, None)

    @property
    def byes(self) -> list[Message]:
        """BYE requests that came (retransmissions included)."""
        return [m for m in self.messages if m.start.startswith("BYE ")]

    # ---- the wire

    def receive(self, message: Message) -> None:
        """A message for this call."""
        self.messages.append(message)
        if message.code:
            self._on_response(message)
        elif message.method != "ACK":
            self.phone.send(_answer(message, 200))
        self._pulse.set()

    def _on_response(self, message: Message) -> None:
        if message.method != "INVITE" or message.code < 200:
            return
        self._to = message.headers["to"]
        if message.code >= 300:
            self.phone.send(self._request("ACK", self._branch, 1))
            return
        if not self.answered_at:
            self.answered_at = time.monotonic()
        found = re.search(r"<([^>]+)>", message.headers.get("contact", ""))
        if found:
            self._target = found[1]
        if self.acknowledge:
            self.ack()
        host = re.search(r"^c=IN IP4 (\S+)", message.body, re.M)
        media = re.search(r"^m=audio (\d+) \S+ (\d+)", message.body, re.M)
        if host and media:
            self.rtp.payload_type = int(media[2])
            self.rtp.connect(host[1], int(media[1]))

    def _request(
        self,
        method: str,
        branch: str,
        sequence: int,
        headers: tuple[str, ...] | list[str] = (),
        body: str = "",
    ) -> bytes:
        host, port = self.phone.address
        in_dialog = method in ("ACK", "BYE") and branch != self._branch
        lines = [
            f"{method} {self._target if in_dialog else self.uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch={branch};rport",
            "Max-Forwards: 70",
            f'From: "{self.display}" <sip:{self.caller}@{host}:{port}>;tag={self._tag}'
            if self.display
            else f"From: <sip:{self.caller}@{host}:{port}>;tag={self._tag}",
            f"To: {self._to if method != 'CANCEL' else f'<{self.uri}>'}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {sequence} {method}",
            f"Contact: <sip:tester@{host}:{port}>",
            *headers,
            f"Content-Length: {len(body)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    def _sdp(self, codecs: tuple[str, ...]) -> str:
        numbers = [str(CODECS[name][0]) for name in codecs]
        maps = [f"a=rtpmap:{CODECS[name][0]} {rtpmap(name)}" for name in codecs]
        lines = [
            "v=0",
            "o=- 1 1 IN IP4 127.0.0.1",
            "s=-",
            "c=IN IP4 127.0.0.1",
            "t=0 0",
            f"m=audio {self.rtp.port} RTP/AVP {' '.join(numbers)} {EVENT_PAYLOAD}",
            *maps,
            f"a=rtpmap:{EVENT_PAYLOAD} telephone-event/8000",
            f"a=fmtp:{EVENT_PAYLOAD} 0-16",
            "a=ptime:20",
            "a=sendrecv",
        ]
        return "\r\n".join(lines) + "\r\n"


class Phone(asyncio.DatagramProtocol):
    """The telephone: one address, any number of calls."""

    def __init__(self, gateway: tuple[str, int]) -> None:
        self.gateway = gateway
        self.calls: dict[str, PhoneCall] = {}
        self.strays: list[Message] = []
        """What belonged to no call."""
        self.deaf = False
        """True: nothing that comes is seen or answered."""
        self._transport: asyncio.DatagramTransport | None = None
        self._pulse = asyncio.Event()

    async def start(self, host: str = "127.0.0.1") -> None:
        """Bind a free port."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, (host, 0))

    async def stop(self) -> None:
        """Give up the port and every call's."""
        for call in self.calls.values():
            await call.rtp.close()
        self.calls.clear()
        if self._transport is not None:
            self._transport.close()

    @property
    def address(self) -> tuple[str, int]:
        """Our own host and port."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
        return host, port

    def call(
        self,
        user: str,
        codecs: tuple[str, ...] = ("PCMU", "PCMA"),
        headers: tuple[str, ...] = (),
        *,
        acknowledge: bool = True,
    ) -> PhoneCall:
        """A call that is not sent yet. Without ``codecs`` its INVITE has no offer."""
        payload_type, silence = CODECS[codecs[0] if codecs else "PCMU"]
        call = PhoneCall(
            self, user, codecs, headers, RtpEnd(payload_type, silence), acknowledge=acknowledge
        )
        self.calls[call.call_id] = call
        return call

    async def forget(self, call: PhoneCall) -> None:
        """Give up the ports of a call that is over; a late BYE is still answered."""
        await call.rtp.close()
        self.calls.pop(call.call_id, None)

    async def options(self) -> Message:
        """Ask the gateway for its OPTIONS; returns the answer."""
        host, port = self.address
        branch = _new_branch()
        lines = [
            f"OPTIONS sip:{self.gateway[0]}:{self.gateway[1]} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch={branch};rport",
            f"From: <sip:probe@{host}>;tag=1",
            f"To: <sip:gateway@{host}>",
            f"Call-ID: {branch}@test",
            "CSeq: 1 OPTIONS",
            "Max-Forwards: 70",
            "Content-Length: 0",
        ]
        self.strays.clear()
        request = ("\r\n".join(lines) + "\r\n\r\n").encode()
        for _ in range(20):
            self.send(request)
            try:
                return await self.stray("SIP/2.0 ", 0.5, branch)
            except TimeoutError:
                continue  # it may have been one datagram too many
        raise AssertionError("no answer to OPTIONS")

    async def stray(self, start: str, within_s: float, call_id: str) -> Message:
        """Wait for a message outside all calls whose first line and Call-ID begin like this."""
        async with asyncio.timeout(within_s):
            while True:
                for message in self.strays:
                    same = message.headers.get("call-id", "").startswith(call_id)
                    if same and message.start.startswith(start):
                        return message
                self._pulse.clear()
                await self._pulse.wait()

    def send(self, data: bytes) -> None:
        """Send bytes to the gateway, whatever they are."""
        assert self._transport is not None
        self._transport.sendto(data, self.gateway)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if self.deaf:
            return
        message = _parsed(data)
        call = self.calls.get(message.headers.get("call-id", ""))
        if call is not None:
            call.rtp.read_what_waits()  # what came before this message counts when it does
            call.receive(message)
            return
        self.strays.append(message)
        if 200 <= message.code < 300 and message.method == "INVITE":
            # Somebody took what we sent for a call: take it, and end it.
            self.send(_follow_up(message, "ACK"))
            self.send(_follow_up(message, "BYE"))
        elif message.code >= 300 and message.method == "INVITE":
            self.send(_follow_up(message, "ACK"))
        elif not message.code and message.method not in ("ACK", "?"):
            self.send(_answer(message, 200))
        self._pulse.set()


def _parsed(data: bytes) -> Message:
    text = data.decode("utf-8", "replace")
    head, _, body = text.partition("\r\n\r\n")
    start, *lines = head.split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return Message(time.monotonic(), start, headers, body, text)


def _answer(request: Message, code: int) -> bytes:
    names = ("Via", "From", "To", "Call-ID", "CSeq")
    lines = [f"{name}: {request.headers[name.lower()]}" for name in names]
    return ("\r\n".join([f"SIP/2.0 {code} OK", *lines, "Content-Length: 0"]) + "\r\n\r\n").encode()


def _follow_up(response: Message, method: str) -> bytes:
    """ACK or BYE for the answer to an INVITE that is nobody's."""
    found = re.search(r"<([^>]+)>", response.headers.get("contact", ""))
    to = re.search(r"<([^>]+)>", response.headers["to"])
    target = found[1] if found else to[1] if to else "sip:gateway@127.0.0.1"
    number = int(response.headers["cseq"].split(" ")[0]) + (method == "BYE")
    via = response.headers["via"]
    if response.code < 300:
        via = re.sub(r"branch=[^;]+", f"branch={_new_branch()}", via)
    lines = [
        f"{method} {target} SIP/2.0",
        f"Via: {via}",
        "Max-Forwards: 70",
        *(f"{name}: {response.headers[name.lower()]}" for name in ("From", "To", "Call-ID")),
        f"CSeq: {number} {method}",
        "Content-Length: 0",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _new_branch() -> str:
    return f"z9hG4bK{random.getrandbits(48):x}"
