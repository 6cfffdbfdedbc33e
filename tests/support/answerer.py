# SPDX-License-Identifier: GPL-2.0-or-later
"""A telephone that is called: a bare SIP server on UDP whose every response the test writes."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from tests.support.sip_phone import Message, _parsed


class Answerer(asyncio.DatagramProtocol):
    """Requests wait in ``requests``, responses to ours in ``responses``."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self._seen: set[tuple[str | None, ...]] = set()
        """Requests that came, by what is the same when one is sent again."""
        self._peer: tuple[str, int] = ("", 0)
        self._pulse = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None
        self._host: str = ""
        self.port = 0

    async def start(self) -> None:
        """Bind a free port."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", 0))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._host, self.port = self._transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if not data.strip():
            return  # a keep-alive (RFC 5626 section 3.5.1)
        message = _parsed(data)
        if message.code:
            return
        self._peer = (str(addr[0]), int(addr[1]))
        same = tuple(map(message.headers.get, ("via", "call-id", "cseq", "to")))
        # One that is sent again, because we answered late, may come when the first is taken.
        if message.method == "ACK" or same not in self._seen:
            self._seen.add(same)
            self.requests.append(message)
            self._pulse.set()
        if message.method in ("BYE", "CANCEL", "PRACK", "UPDATE"):
            self.reply(message, 200)

    async def next(self, method: str, tag: str = "", within_s: float = 30.0) -> Message:
        """The next request of this method, to this tag of ours; each is given once."""
        async with asyncio.timeout(within_s):
            while True:
                for message in self.requests:
                    same = not tag or f"tag={tag}" in message.headers["to"]
                    if message.method == method and same:
                        self.requests.remove(message)
                        return message
                self._pulse.clear()
                await self._pulse.wait()

    def reply(
        self,
        request: Message,
        code: int,
        *headers: str,
        tag: str = "",
        rtp: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        """Answer; with an ``rtp`` port there is a description in it, which names ``host``."""
        to = request.headers["to"]
        if tag and "tag=" not in to:
            to += f";tag={tag}"
        body = ""
        if rtp:
            body = (
                f"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\n"
                f"m=audio {rtp} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=sendrecv\r\n"
            )
        lines = [
            f"SIP/2.0 {code} As told",
            *(f"{name}: {request.headers[name.lower()]}" for name in ("Via", "From")),
            f"To: {to}",
            *(f"{name}: {request.headers[name.lower()]}" for name in ("Call-ID", "CSeq")),
            f"Contact: <sip:{tag or 'callee'}@{self._host}:{self.port}>",
            *headers,
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        assert self._transport is not None
        self._transport.sendto(("\r\n".join(lines) + "\r\n\r\n" + body).encode(), self._peer)

    def stop(self) -> None:
        """Give up the port."""
        if self._transport is not None:
            self._transport.close()


def interval_of(message: Message) -> int:
    """Its Session-Expires, 0 for none."""
    found = re.match(r"\d+", message.headers.get("session-expires", ""))
    return int(found[0]) if found else 0
