# SPDX-License-Identifier: GPL-2.0-or-later
"""A SIP endpoint of its own process that places one call over TCP, TLS or IPv6, with SRTP or not.

``python peer.py '{"listen": ["tls", "127.0.0.1", 0], "uri": "sip:..."}'`` prints one JSON object:
how the call went, as this side saw it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

from gateway.audio import Codec
from gateway.log import set_up_logging
from gateway.sip import Listen, Security, SipSettings, Tls
from gateway.sip.agent import AgentError, UserAgent
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import LegEnd
from gateway.sip.rtp import RtpQuality

UP_S = 30.0
SILENCE = {Codec.PCMU: 0xFF, Codec.PCMA: 0xD5}


class _Call:
    """Handler of the one leg."""

    def __init__(self) -> None:
        self.confirmed = asyncio.Event()
        self.over = asyncio.Event()
        self.heard = asyncio.Event()
        self.end: LegEnd | None = None
        self.codec: Codec | None = None
        self.audio: CallAudio | None = None
        self.sound = 0

    def on_ringing(self, code: int) -> None: ...
    def on_hold(self, held: bool) -> None: ...
    def on_digit(self, digit: str) -> None: ...
    def on_quality(self, quality: RtpQuality) -> None: ...

    def on_media(self, codec: Codec) -> None:
        self.codec = codec

    def on_confirmed(self) -> None:
        self.confirmed.set()

    def on_ended(self, end: LegEnd) -> None:
        self.end = end
        self.confirmed.set()
        self.heard.set()
        self.over.set()

    def listen(self) -> None:
        """Count what is no silence."""
        if self.audio is not None:
            drained = self.audio.uplink.drain()
            quiet = SILENCE[self.codec or Codec.PCMU]
            self.sound += len(drained) - drained.count(quiet)
            if self.sound >= 1600:
                self.heard.set()


async def main(order: dict[str, Any]) -> dict[str, Any]:
    """Place the call and say how it went."""
    loop = asyncio.get_running_loop()
    call = _Call()

    def wake(_ready: list[int]) -> None:
        loop.call_soon_threadsafe(call.listen)

    def on_audio() -> None:
        loop.call_soon_threadsafe(call.listen)

    agent = UserAgent(
        SipSettings(
            listen=(Listen(*order["listen"]),),
            rtp_ports=tuple(order["rtp_ports"]),
            user="peer",
            tls=Tls(**order.get("tls", {})),
            security=Security(order.get("srtp", "off"), tuple(order.get("keying", ("sdes",)))),
        ),
        on_invite=lambda leg: leg.refuse(486),
        on_refused=lambda _refused: None,
        on_caller_audio=wake,
    )
    await agent.start()
    codec = Codec(order.get("codec", "PCMU"))
    call.audio = CallAudio(codec, 50)
    leg = agent.dial(order["uri"], call, call.audio, [codec])
    heard = False
    try:
        async with asyncio.timeout(UP_S):
            await call.confirmed.wait()
            if call.end is None:
                await call.heard.wait()
                heard = call.end is None
    except TimeoutError:
        pass
    if "until" in order and heard:
        print("up", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        call.sound = 0
        call.heard.clear()
        async with asyncio.timeout(UP_S):
            await call.heard.wait()
    if call.end is None:
        leg.hang_up()
    try:
        async with asyncio.timeout(UP_S):
            await call.over.wait()
    except TimeoutError:
        pass
    security = leg.security
    await agent.stop()
    return {
        "heard": heard,
        "security": security,
        "codec": None if call.codec is None else call.codec.value,
        "end": None if call.end is None else asdict(call.end),
    }


if __name__ == "__main__":
    set_up_logging("json", "warning", None, ())
    try:
        print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
    except AgentError as error:
        print(json.dumps({"error": str(error)}))
