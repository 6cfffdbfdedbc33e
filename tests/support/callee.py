# SPDX-License-Identifier: GPL-2.0-or-later
"""A telephone that is called: on one UDP socket, it does what the called user's name says.

``answer`` rings and answers, ``wide`` does so in G.722, ``opus`` in Opus; ``busy-486`` or any other
name that ends in a code refuses with it; ``ring`` rings until it is cancelled; ``race`` answers
when it is cancelled; ``early`` sends audio before it answers, when told to
(:meth:`CalledCall.answer`); ``silent`` never says anything.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from tests.interop.lab import ports
from tests.support.rtp_end import EVENT_PAYLOAD, RtpEnd, frame_of
from tests.support.sip_phone import CODECS, Message, _parsed, rtpmap


@dataclass(eq=False)
class CalledCall:
    """One call that came in."""

    phone: CalledPhone
    invite: Message
    rtp: RtpEnd
    tag: str = field(default_factory=lambda: f"{random.getrandbits(32):x}")
    messages: list[Message] = field(default_factory=list)
    over: bool = False
    _sequence: int = 0
    _pulse: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def user(self) -> str:
        """Who was called."""
        return self.invite.start.split(" ")[1].partition(":")[2].partition("@")[0]

    @property
    def call_id(self) -> str:
        """Its Call-ID."""
        return self.invite.headers["call-id"]

    async def until(self, condition: Callable[[CalledCall], Any], within_s: float = 30.0) -> None:
        """Wait for a condition on what has come."""
        try:
            async with asyncio.timeout(within_s):
                while not condition(self):
                    self._pulse.clear()
                    await self._pulse.wait()
        except TimeoutError:
            raise AssertionError(f"not met by {[m.start for m in self.messages]}") from None

    def requests(self, method: str) -> list[Message]:
        """Requests of this method that came."""
        return [m for m in self.messages if m.start.startswith(f"{method} ")]

    async def hung_up(self) -> Message:
        """Wait for BYE."""
        await self.until(lambda call: call.requests("BYE"))
        return self.requests("BYE")[0]

    def respond(self, code: int, *, sdp: bool = False) -> None:
        """A response to the INVITE."""
        self.phone.answer(self.invite, code, self, self._sdp() if sdp else "")
        if sdp:
            self.hear()

    def hear(self) -> None:
        """Begin to send and receive audio."""
        host = re.search(r"^c=IN IP4 (\S+)", self.invite.body, re.M)
        media = re.search(r"^m=audio (\d+) RTP/AVP ([\d ]+)", self.invite.body, re.M)
        assert host
        assert media
        offered = [int(number) for number in media[2].split()]
        if self.rtp.payload_type not in offered:  # else it is the one that we answered
            self.rtp.payload_type = offered[0]
        events = re.search(r"^a=rtpmap:(\d+) telephone-event/8000", self.invite.body, re.M)
        self.rtp.event_payload = EVENT_PAYLOAD if events is None else int(events[1])
        self.rtp.connect(host[1], int(media[1]))

    def bye(self) -> None:
        """Hang up."""
        self._request("BYE")
        self.over = True

    def refer(self, to: str) -> None:
        """Send the gateway's call somewhere else."""
        host, port = self.phone.address
        self._request("REFER", f"Refer-To: <{to}>", f"Contact: <sip:callee@{host}:{port}>")

    def info(self, content_type: str, body: str) -> None:
        """Send an INFO."""
        self._request("INFO", f"Content-Type: {content_type}", body=body)

    def _request(self, method: str, *headers: str, body: str = "") -> None:
        self._sequence += 1
        host, port = self.phone.address
        contact = re.search(r"<([^>]+)>", self.invite.headers["contact"])
        assert contact
        lines = [
            f"{method} {contact[1]} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{random.getrandbits(48):x}",
            "Max-Forwards: 70",
            f"From: {self.invite.headers['to']};tag={self.tag}",
            f"To: {self.invite.headers['from']}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {self._sequence} {method}",
            *headers,
            f"Content-Length: {len(body)}",
        ]
        self.phone.send(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def receive(self, message: Message) -> None:
        """A message of this call; the INVITE again, which a busy machine answers late, is none."""
        invite = self.invite
        if (message.start, message.headers["cseq"]) == (invite.start, invite.headers["cseq"]):
            return
        repeated = any(m.headers.get("cseq") == message.headers.get("cseq") for m in self.messages)
        self.messages.append(message)
        if message.start.startswith("CANCEL "):
            self.phone.answer(message, 200, self)
            if self.user == "race":
                self.respond(200, sdp=True)
            elif not repeated:
                self.respond(487)
                self.over = True
        elif message.start.startswith("BYE "):
            self.phone.answer(message, 200, self)
            self.over = True
        elif not message.code and message.method != "ACK":
            self.phone.answer(message, 200, self)
        self._pulse.set()

    def _sdp(self) -> str:
        payload = self.rtp.payload_type
        lines = [
            "v=0",
            "o=- 2 2 IN IP4 127.0.0.1",
            "s=-",
            "c=IN IP4 127.0.0.1",
            "t=0 0",
            f"m=audio {self.rtp.port} RTP/AVP {payload} {EVENT_PAYLOAD}",
            *(
                f"a=rtpmap:{payload} {rtpmap(name)}"
                for name, one in CODECS.items()
                if one[0] == payload
            ),
            f"a=rtpmap:{EVENT_PAYLOAD} telephone-event/8000",
            f"a=fmtp:{EVENT_PAYLOAD} 0-16",
            "a=sendrecv",
        ]
        return "\r\n".join(lines) + "\r\n"


class CalledPhone(asyncio.DatagramProtocol):
    """The telephone: one address, any number of calls."""

    def __init__(self) -> None:
        self.calls: list[CalledCall] = []
        self._transport: asyncio.DatagramTransport | None = None
        self._peer: tuple[str, int] = ("127.0.0.1", 9)
        self._pulse = asyncio.Event()

    async def start(self, port: int = 0) -> CalledPhone:
        """Bind this port, or a free one."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", port))
        return self

    async def stop(self) -> None:
        """Give up the ports."""
        for call in self.calls:
            await call.rtp.close()
        if self._transport is not None:
            self._transport.close()

    @property
    def address(self) -> tuple[str, int]:
        """Our own host and port."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
        return host, port

    def uri(self, user: str) -> str:
        """Whom to call."""
        host, port = self.address
        return f"sip:{user}@{host}:{port}"

    async def called(self, count: int = 1, within_s: float = 30.0) -> CalledCall:
        """Wait for the ``count``-th call."""
        async with asyncio.timeout(within_s):
            while len(self.calls) < count:
                self._pulse.clear()
                await self._pulse.wait()
        return self.calls[count - 1]

    def send(self, data: bytes) -> None:
        """Send to whoever called."""
        assert self._transport is not None
        self._transport.sendto(data, self._peer)

    def answer(self, request: Message, code: int, call: CalledCall, sdp: str = "") -> None:
        """Respond to a request."""
        host, port = self.address
        names = ("Via", "From", "Call-ID", "CSeq")
        lines = [f"{name}: {request.headers[name.lower()]}" for name in names]
        to = request.headers["to"]
        lines.append(f"To: {to}" if ";tag=" in to or code == 100 else f"To: {to};tag={call.tag}")
        lines.append(f"Contact: <sip:callee@{host}:{port}>")
        if sdp:
            lines.append("Content-Type: application/sdp")
        head = "\r\n".join([f"SIP/2.0 {code} As asked", *lines, f"Content-Length: {len(sdp)}"])
        self.send((head + "\r\n\r\n" + sdp).encode())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._peer = addr
        message = _parsed(data)
        call_id = message.headers.get("call-id", "")
        call = next((one for one in self.calls if one.call_id == call_id), None)
        if call is not None:
            call.rtp.read_what_waits()
            call.receive(message)
        elif message.start.startswith("INVITE "):
            call = CalledCall(self, message, RtpEnd(0, b"\xff"))
            self.calls.append(call)
            self._begin(call)
            self._pulse.set()

    def _begin(self, call: CalledCall) -> None:
        refusal = re.search(r"(\d{3})$", call.user)
        if call.user == "silent":
            return
        self.answer(call.invite, 100, call)
        if refusal:
            call.respond(int(refusal[1]))
        elif call.user == "early":
            call.respond(183, sdp=True)
        else:
            call.respond(180)
            if call.user in ("wide", "opus"):
                name = "G722" if call.user == "wide" else "opus"
                call.rtp.payload_type, silence = CODECS[name]
                call.rtp._silence = frame_of(silence)
            if call.user in ("answer", "wide", "opus"):
                call.respond(200, sdp=True)


def free_port() -> int:
    """A port for a telephone whose address has to be known beforehand."""
    return ports.free_port("127.0.0.1")
