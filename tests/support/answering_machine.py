# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end for tests of the caller: a SIP endpoint without sessions, run as a process.

    python answering_machine.py FOLDER

Prints its port, and what happens, one JSON object a line. The called user says what it does:

* ``answer``: answers, plays ``FOLDER/play.ulaw`` or ``play.alaw`` by the codec, and writes all it
  hears to ``heard.ulaw`` or ``heard.alaw`` at the end;
* ``echo``: answers and sends back what it hears;
* ``bye``: answers, and hangs up when it has heard half a second;
* ``ring``: rings until it is cancelled;
* three digits: refuses with that code.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import structlog

from gateway.audio import Codec
from gateway.devtools.scripted_caller.run import JITTER_BUFFER
from gateway.sip import Listen, SipSettings
from gateway.sip.agent import UserAgent
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import Leg, LegEnd
from gateway.sip.rtp import RtpQuality

RAW = {Codec.PCMU: "ulaw", Codec.PCMA: "alaw"}


def tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


class Machine:
    """Handler of one call."""

    def __init__(self, leg: Leg, folder: Path) -> None:
        self.leg = leg
        self.folder = folder
        self.heard = bytearray()
        self.does = leg.invite.to_user
        offered = leg.invite.offered or (Codec.PCMU,)
        leg.handler = self
        leg.audio = self.audio = CallAudio(offered[0], 10_000)
        if self.does.isdigit():
            leg.refuse(int(self.does))
            return
        leg.ring()
        if self.does != "ring":
            leg.answer()

    def on_ringing(self, code: int) -> None:
        raise AssertionError(code)

    def on_hold(self, held: bool) -> None:
        raise AssertionError(held)

    def on_media(self, codec: Codec) -> None:
        tell(event="media", codec=codec.value)
        if self.does == "answer":
            # The first packet's frame is faded in by the other side's loss concealment.
            sound = (self.folder / f"play.{RAW[codec]}").read_bytes()
            self.audio.playout.put(codec.silence * 1600 + sound)

    def on_confirmed(self) -> None:
        tell(event="confirmed")

    def on_digit(self, digit: str) -> None:
        tell(event="dtmf", digit=digit)

    def on_quality(self, quality: RtpQuality) -> None:
        pass

    def on_audio(self) -> None:
        came = self.audio.uplink.drain()
        self.heard += came
        if self.does == "echo":
            self.audio.playout.put(came)
        if self.does == "bye" and len(self.heard) >= 4000:
            self.leg.hang_up()

    def on_ended(self, end: LegEnd) -> None:
        self.on_audio()
        (self.folder / f"heard.{RAW[self.audio.codec]}").write_bytes(self.heard)
        tell(event="ended", code=end.code, method=end.method, local=end.local)


async def main(folder: Path) -> None:
    # Standard output is for events alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    loop = asyncio.get_running_loop()
    machines: list[Machine] = []

    def wake(_ready: list[int]) -> None:
        loop.call_soon_threadsafe(look)

    def look() -> None:
        for machine in machines:
            machine.on_audio()

    agent = UserAgent(
        SipSettings(
            listen=(Listen("udp", "127.0.0.1", 0),),
            rtp_ports=(26000, 29998),
            user="machine",
            jitter_buffer=JITTER_BUFFER,
        ),
        on_invite=lambda leg: machines.append(Machine(leg, folder)),
        on_refused=lambda refused: tell(event="refused", code=refused.code),
        on_caller_audio=wake,
    )
    await agent.start()
    tell(event="listening", port=int(agent.addresses[0].rpartition(":")[2]))
    await asyncio.to_thread(sys.stdin.read)
    await agent.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
