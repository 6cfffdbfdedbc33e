# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller that can be transferred: takes or refuses REFER, and tells by NOTIFY what came of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.support.harness import GatewayStack
from tests.support.rtp_end import RtpEnd
from tests.support.sip_phone import CODECS, Message, Phone, PhoneCall, _answer


@dataclass(eq=False)
class ReferredCall(PhoneCall):
    """Answers REFER with ``refer_code``; 0 leaves it without an answer."""

    refer_code: int = 202
    referred: list[Message] = field(default_factory=list)
    """REFER requests that came, without repeats."""

    @property
    def refer_to(self) -> str:
        """Where the last REFER wants it to call."""
        return self.referred[-1].headers["refer-to"]

    def receive(self, message: Message) -> None:
        """A message for this call."""
        if not message.start.startswith("REFER "):
            super().receive(message)
            return
        self.messages.append(message)
        seen = {one.headers["cseq"] for one in self.referred}
        if message.headers["cseq"] not in seen:
            self.referred.append(message)
        if self.refer_code:
            self.phone.send(_answer(message, self.refer_code))
        self._pulse.set()

    async def asked(self) -> str:
        """Wait for a REFER; returns where it wants us to call."""
        await self.until(lambda _call: self.referred, what="REFER")
        return self.refer_to

    def notify(self, line: str, *, last: bool = False, event_id: str = "") -> None:
        """Say what the call that we were asked for is at: ``180 Ringing``.

        Args:
            event_id: CSeq number of the REFER that it is about; "" leaves the id out.
        """
        self._sequence += 1
        state = "terminated;reason=noresource" if last else "active;expires=60"
        headers = [
            f"Event: refer;id={event_id}" if event_id else "Event: refer",
            f"Subscription-State: {state}",
            "Content-Type: message/sipfrag;version=2.0",
        ]
        branch = f"z9hG4bK{random.getrandbits(48):x}"
        body = f"SIP/2.0 {line}\r\n"
        self.phone.send(self._request("NOTIFY", branch, self._sequence, headers, body))

    def info(self, content_type: str, body: str) -> None:
        """Send an INFO."""
        self._sequence += 1
        branch = f"z9hG4bK{random.getrandbits(48):x}"
        headers = [f"Content-Type: {content_type}"] if content_type else []
        self.phone.send(self._request("INFO", branch, self._sequence, headers, body))

    def answers_to(self, method: str) -> list[int]:
        """Codes of the responses to requests of this method, in order."""
        return [m.code for m in self.messages if m.code and m.method == method]


async def dial(
    world: GatewayStack,
    user: str,
    refer_code: int = 202,
    codecs: tuple[str, ...] = ("PCMU", "PCMA"),
) -> ReferredCall:
    """Place such a call, and wait until it is up on both sides."""
    phone: Phone = world.phone
    payload_type, silence = CODECS[codecs[0]]
    rtp = RtpEnd(payload_type, silence)
    call = ReferredCall(phone, user, codecs, (), rtp, refer_code=refer_code)
    phone.calls[call.call_id] = call
    call.invite()
    await call.answered()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    return call
