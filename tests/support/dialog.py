# SPDX-License-Identifier: GPL-2.0-or-later
"""A telephone that goes on talking SIP inside its call: offers, answers, refreshes, PRACK.

:class:`DialogCall` says what its SDP is, word for word, sends any request inside the dialog, and
answers what the gateway asks of it in the way that the test has set.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.harness import GatewayStack
from tests.support.listening import Spoken, assert_continuous
from tests.support.rtp_end import EVENT_PAYLOAD, RtpEnd, frame_of
from tests.support.sip_phone import CODECS, Message, Phone, PhoneCall, rtpmap

PAYLOADS = {name: number for name, (number, _silence) in CODECS.items()}


@dataclass
class Sdp:
    """What a session description of ours says (RFC 4566, 3264)."""

    codecs: tuple[str, ...] = ("PCMU", "PCMA")
    direction: str = "sendrecv"
    address: str = "127.0.0.1"
    port: int | None = None
    """None is the port of the call's own RTP end."""
    ptime: int | None = 20
    comfort_noise: bool = False
    version: int = 1
    profile: str = "RTP/AVP"
    security: tuple[str, ...] = ()
    """Lines about keys, and others."""
    events: tuple[int, ...] = (8000,)
    """Clocks of telephone-event, the first one's number being that of our keys."""

    def text(self, own_port: int) -> str:
        """As it goes into a body."""
        numbers = [str(PAYLOADS[name]) for name in self.codecs]
        events = [str(EVENT_PAYLOAD + number) for number in range(len(self.events))]
        lines = [
            "v=0",
            f"o=- 1 {self.version} IN IP4 127.0.0.1",
            "s=-",
            f"c=IN IP4 {self.address}",
            "t=0 0",
            "m=audio {} {} {}".format(
                own_port if self.port is None else self.port,
                self.profile,
                " ".join([*numbers, *(["13"] if self.comfort_noise else []), *events]),
            ),
            *(f"a=rtpmap:{PAYLOADS[name]} {rtpmap(name)}" for name in self.codecs),
            *(
                f"a=rtpmap:{number} telephone-event/{clock}\r\na=fmtp:{number} 0-16"
                for number, clock in zip(events, self.events, strict=True)
            ),
            *([f"a=ptime:{self.ptime}"] if self.ptime else []),
            f"a={self.direction}",
            *self.security,
        ]
        return "\r\n".join(lines) + "\r\n"


Answerer = Callable[["DialogCall", Message], bool]
"""Answers a request of the gateway's by itself; False leaves it to the usual 200."""


@dataclass(eq=False)
class DialogCall(PhoneCall):
    """A call whose description is ``sdp``, or whose INVITE brings none (``offer`` False)."""

    sdp: Sdp = field(default_factory=Sdp)
    offer: bool = True
    answerer: Answerer | None = None
    requests: list[Message] = field(default_factory=list)
    """What the gateway asked of us inside the dialog, ACKs included, in order."""
    prack: bool = True
    """Reliable provisional responses are acknowledged (RFC 3262)."""

    # ---- what the test does

    def invite(self) -> None:
        """Send INVITE; the same bytes again when it has been sent already."""
        if not self._invite:
            self._to = f"<{self.uri}>"
            self._target = self.uri
            body = self.sdp.text(self.rtp.port) if self.offer else ""
            more = ["Content-Type: application/sdp"] if body else []
            self._invite = self._request("INVITE", self._branch, 1, [*self.headers, *more], body)
            self.invited_at = time.monotonic()
        self.phone.send(self._invite)

    def ack(self, codecs: tuple[str, ...] = ()) -> None:
        """ACK the 200; it answers the offer that the 200 made, if ours made none."""
        if self.offer and not codecs:
            self.phone.send(self._inside("ACK", 1))
            return
        sdp = Sdp(codecs) if codecs else self.sdp
        self.phone.send(self._inside("ACK", 1, (), sdp.text(self.rtp.port)))

    async def ask(
        self, method: str, *headers: str, body: str = "", kind: str = "application/sdp"
    ) -> Message:
        """Send a request inside the dialog and wait for its final response.

        That of an INVITE is acknowledged.
        """
        number, _request = self.put(method, *headers, body=body, kind=kind)

        def finals() -> list[Message]:
            cseq = f"{number} {method}"
            return [m for m in self.messages if m.code >= 200 and m.headers["cseq"] == cseq]

        await self.until(lambda _call: finals(), what=f"an answer to {method}")
        return finals()[0]

    def put(
        self, method: str, *headers: str, body: str = "", kind: str = "application/sdp"
    ) -> tuple[int, bytes]:
        """Send a request inside the dialog; returns its number and its bytes."""
        self._sequence += 1
        request = self._inside(method, self._sequence, headers, body, kind)
        self.phone.send(request)
        return self._sequence, request

    async def renegotiate(self, method: str = "INVITE", **changes: object) -> Message:
        """Change the description, and offer it; the answer has to be 200."""
        for name, value in changes.items():
            assert hasattr(self.sdp, name), name
            setattr(self.sdp, name, value)
        self.sdp.version += 1
        answer = await self.ask(method, body=self.sdp.text(self.rtp.port))
        assert answer.code == 200, answer.start
        self._take(answer.body)
        return answer

    # ---- the wire

    def receive(self, message: Message) -> None:
        """A message for this call."""
        self.messages.append(message)
        if not message.code:
            self.requests.append(message)
            if message.method != "ACK" and not (self.answerer and self.answerer(self, message)):
                self.respond(message)
        elif message.method == "INVITE" and message.headers["cseq"] == "1 INVITE":
            if "100rel" in message.headers.get("require", "") and self.prack:
                self._acknowledge_progress(message)
            elif message.code >= 200:
                self._on_first_final(message)
        elif message.method == "INVITE" and message.code >= 200:
            number = int(message.headers["cseq"].split(" ")[0])
            if message.code < 300:
                if self.acknowledge:
                    self.phone.send(self._inside("ACK", number))
            else:
                branch = re.search(r"branch=([^;]+)", message.headers["via"])
                assert branch is not None
                self.phone.send(self._inside("ACK", number, branch=branch[1]))
        self._pulse.set()

    def respond(self, request: Message, code: int = 200, *headers: str) -> None:
        """Answer a request of the gateway's; an offer in it is answered with our description."""
        names = ("Via", "From", "To", "Call-ID", "CSeq")
        host, port = self.phone.address
        offered = request.body.startswith("v=0")
        with_body = code == 200 and (offered or request.method == "INVITE")
        body = self.sdp.text(self.rtp.port) if with_body else ""
        lines = [
            f"SIP/2.0 {code} As told",
            *(f"{name}: {request.headers[name.lower()]}" for name in names),
            f"Contact: <sip:tester@{host}:{port}>",
            *headers,
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        self.phone.send(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _on_first_final(self, message: Message) -> None:
        self._to = message.headers["to"]
        if message.code >= 300:
            self.phone.send(self._request("ACK", self._branch, 1))
            return
        self.answered_at = self.answered_at or time.monotonic()
        found = re.search(r"<([^>]+)>", message.headers.get("contact", ""))
        self._target = found[1] if found else self._target
        if self.acknowledge:
            self.ack()
        self._take(message.body)

    def _acknowledge_progress(self, message: Message) -> None:
        self._to = message.headers["to"]
        found = re.search(r"<([^>]+)>", message.headers.get("contact", ""))
        self._target = found[1] if found else self._target
        self._take(message.body)
        self.put("PRACK", f"RAck: {message.headers['rseq']} {message.headers['cseq']}")

    def _take(self, body: str) -> None:
        """Send RTP to where this description says."""
        host = re.search(r"^c=IN IP4 (\S+)", body, re.M)
        media = re.search(r"^m=audio (\d+) \S+ (\d+)", body, re.M)
        if host and media and int(media[1]):
            self.rtp.payload_type = int(media[2])
            self.rtp._silence = next(
                frame_of(silence) for number, silence in CODECS.values() if number == int(media[2])
            )
            self.rtp.connect(host[1], int(media[1]))

    def _inside(
        self,
        method: str,
        number: int,
        headers: tuple[str, ...] = (),
        body: str = "",
        kind: str = "application/sdp",
        branch: str = "",
    ) -> bytes:
        host, port = self.phone.address
        self._count += 1
        branch = branch or f"{self._branch}.{self._count}"
        lines = [
            f"{method} {self._target} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch={branch};rport",
            "Max-Forwards: 70",
            f"From: <sip:tester@{host}:{port}>;tag={self._tag}",
            f"To: {self._to}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {number} {method}",
            f"Contact: <sip:tester@{host}:{port}>",
            *headers,
            *([f"Content-Type: {kind}"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    _count: int = 0


def dialog_call(
    phone: Phone, user: str, *headers: str, offer: bool = True, **sdp: object
) -> DialogCall:
    """A call of this kind, not sent yet; ``sdp`` are fields of :class:`Sdp`."""
    description = Sdp(**sdp)  # type: ignore[arg-type]
    number, silence = CODECS[description.codecs[0]]
    call = DialogCall(
        phone,
        user,
        description.codecs,
        headers,
        RtpEnd(number, silence),
        sdp=description,
        offer=offer,
    )
    phone.calls[call.call_id] = call
    return call


async def answered(call: DialogCall) -> DialogCall:
    """Place it, and wait for the 200."""
    call.invite()
    await call.answered()
    await asyncio.sleep(0)
    return call


async def bystander(world: GatewayStack) -> DialogCall:
    """A call in progress that must not notice what comes for others."""
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 200, "burst": True})
    call = await answered(dialog_call(world.phone, "greeted"))
    await call.rtp.heard_bytes(4000)
    return call


async def unharmed(world: GatewayStack, call: DialogCall) -> None:
    """Asserts that the bystander heard every frame, goes on hearing, and hangs up."""
    session = await world.session_of(call)
    (audio,) = session.sent_items.values()
    spoken, heard = Spoken(bytes(audio)), len(call.rtp.packets)
    await call.rtp.until(lambda: len(spoken.packets_of(call.rtp.packets[heard:])) > 25)
    await world.summary_at_end(call)
    assert_continuous(call.rtp.packets)
    assert spoken.heard_ms(call.rtp.packets) > 25 * 20
