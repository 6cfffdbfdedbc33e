# SPDX-License-Identifier: GPL-2.0-or-later
"""Test calls through trunks: a user agent of the doctor's own, with the trunk's own settings.

It registers where no gateway of this machine does, calls an echo or test number, sends a tone and
keys, and keeps every SIP message. What that means is judged in :mod:`.trunk_findings`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.audio import FRAME_BYTES, FRAME_MS, G711, SAMPLE_RATE, Codec
from gateway.devtools.doctor.trunk_messages import Packet, Trace
from gateway.devtools.scripted_caller import (
    AnyStep,
    Digits,
    HangUp,
    Listen,
    Play,
    Script,
    Wait,
    WaitAnswer,
)
from gateway.devtools.scripted_caller.call import ScriptedCall
from gateway.devtools.scripted_caller.run import JITTER_BUFFER
from gateway.devtools.scripted_caller.sound import Clip
from gateway.sip import Listen as ListenOn
from gateway.sip import Security, SipSettings, Trunk
from gateway.sip.agent import AgentError, UserAgent
from gateway.sip.leg import Leg, LegEnd
from gateway.sip.rtp import RtpQuality

ANSWER_SECONDS = 20.0
SILENT_SECONDS = 6.0
"""For any response at all to an INVITE, which has been sent four times by then."""
SOURCE_SECONDS = (1.0, 3.0)
"""After the answer: when it is looked where RTP comes from."""
REGISTER_SECONDS = 6.0
"""For the registrar's answer to a REGISTER with its challenge."""

TONE_HZ = 1400
"""None of DTMF, of a milliwatt line (1004, 1020) or of a fax; 28 periods are 20 ms."""
TONE_MS = 1000
KEYS = "1590"
"""Of all four rows and three columns; # would end Asterisk's Echo()."""

_LEVEL = 0.25
_QUIET = (32768 * 10 ** (-45 / 20)) ** 2
"""Mean square of samples below which a frame is silence: -45 dBFS."""
_MOSTLY = 0.7
"""Part of a frame's power at one frequency that makes a tone of it."""


@dataclass(frozen=True, slots=True)
class Sound:
    """How much of each sound was heard of the other side (ms)."""

    before_ms: int = 0
    """Any sound before our tone: an announcement, or a milliwatt line."""
    tone_ms: int = 0
    """Our own tone, come back."""
    other_ms: int = 0
    """Any sound but our tone."""
    sent_ms: int = 0
    """Length of the tone that was sent."""
    delay_ms: int | None = None
    """From the tone's beginning to its return."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One test call: its messages, RTP and end. Moments are seconds since the INVITE."""

    trunk: Trunk
    uri: str
    packets: tuple[Packet, ...] = ()
    end: LegEnd | None = None
    answered: float | None = None
    ended: float | None = None
    security: str = ""
    codec: Codec | None = None
    quality: RtpQuality | None = None
    sound: Sound = field(default_factory=Sound)
    rtp_source: str = ""
    """``address:port`` that RTP came from, whatever the answer's SDP says."""
    keys_sent: str = ""
    keys_heard: str = ""
    changed: str = ""
    """What is different from the configuration: ``srtp = "required"``; empty for nothing."""

    @property
    def code(self) -> int:
        """Status of the final response to the INVITE: 200 once answered, 0 for none."""
        if self.answered is not None:
            return 200
        refused = any(one.method == "INVITE" and one.status >= 300 for one in self.packets)
        return self.end.code if self.end is not None and refused else 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Registration and test calls of one trunk, which findings are judged from."""

    trunk: Trunk
    settings: SipSettings
    registered: str | None = None
    """State of the registration that was tried; None where none was."""
    registration: tuple[Packet, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    own_port: tuple[int, int] | None = None
    """The configured port and the one that was used in its place, as the first is taken."""
    failed: str = ""
    """Why nothing could be tried."""
    stall_ms: int = 0
    """Longest time that this machine let the doctor wait: packets seem late meanwhile."""


class _Call(ScriptedCall):
    """A scripted call that notes where RTP comes from."""

    rtp_source = ""
    ask_source: Callable[[], None] = staticmethod(lambda: None)

    def on_confirmed(self) -> None:
        """Ask for the source of RTP soon after the answer, by when it is the final one."""
        super().on_confirmed()
        for seconds in SOURCE_SECONDS:
            asyncio.get_running_loop().call_later(seconds, self.ask_source)

    def note_source(self, source: str) -> None:
        """Note where RTP comes from now; "" for nowhere."""
        self.rtp_source = source or self.rtp_source


def tone() -> Clip:
    """Return the tone that is sent: a second, at -15 dBFS."""
    times = np.arange(SAMPLE_RATE * TONE_MS // 1000) / SAMPLE_RATE
    samples = np.rint(_LEVEL * 32767 * np.sin(2 * np.pi * TONE_HZ * times))
    return Clip("tone", samples.astype("<i2").tobytes(), None)


def heard_in(track: bytes, codec: Codec, began_ms: int | None) -> Sound:
    """Tell our tone and other sounds apart in what was heard.

    Args:
        track: all that was heard, in ``codec``.
        began_ms: when our tone began; None where none was sent.
    """
    pcm = np.frombuffer(codec.to_linear(track), "<i2").astype(np.float64)
    frames: NDArray[np.float64] = pcm[: len(pcm) // FRAME_BYTES * FRAME_BYTES]
    frames = frames.reshape(-1, FRAME_BYTES)
    power = np.mean(frames**2, axis=1)
    times = np.arange(FRAME_BYTES) / SAMPLE_RATE
    at_tone = np.abs(frames @ np.exp(-2j * np.pi * TONE_HZ * times)) ** 2 * 2 / FRAME_BYTES**2
    loud = power > _QUIET
    ours = loud & (at_tone > _MOSTLY * power)
    first = len(frames) if began_ms is None else began_ms // FRAME_MS
    returned = np.flatnonzero(ours)
    delay = None
    if began_ms is not None and len(returned) and returned[0] >= first:
        delay = int(returned[0]) * FRAME_MS - began_ms
    return Sound(
        before_ms=int(np.count_nonzero(loud[:first])) * FRAME_MS,
        tone_ms=int(np.count_nonzero(ours)) * FRAME_MS,
        other_ms=int(np.count_nonzero(loud & ~ours)) * FRAME_MS,
        sent_ms=0 if began_ms is None else TONE_MS,
        delay_ms=delay,
    )


def variants_of(trunk: Trunk) -> list[tuple[str, Trunk]]:
    """Return variants of the trunk, each with its changed keys, to call by after a 488.

    They differ in codecs or SRTP.
    """
    keying = trunk.security.keying
    asked: list[tuple[str, Trunk]] = []
    codecs = tuple(dict.fromkeys((*trunk.codecs, *G711)))
    if codecs != trunk.codecs:
        names = ", ".join(f'"{one.value}"' for one in codecs)
        asked.append((f"codecs = [{names}]", replace(trunk, codecs=codecs)))
    for srtp in ("required", "off"):
        if srtp != trunk.security.srtp:
            changed = replace(trunk, security=Security(srtp, keying))
            asked.append((f'srtp = "{srtp}"', changed))
    if "dtls" not in keying:
        changed = replace(trunk, security=Security("required", ("dtls",)))
        asked.append(('srtp = "required", srtp_keying = ["dtls"]', changed))
    return [
        (text, replace(one, name=f"{trunk.name}~{index}", registers=False))
        for index, (text, one) in enumerate(asked)
    ]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A trunk to examine; ``uri`` is called, where it is not empty."""

    trunk: Trunk
    uri: str = ""
    register: bool = False


_NOT_ACCEPTABLE = (415, 488, 606)


def examine(
    settings: SipSettings, wanted: Sequence[Wanted], seconds: float, secrets: Sequence[str] = ()
) -> list[Evidence]:
    """Register and call through each trunk at the same time; returns what came of it, in order.

    Args:
        settings: of the gateway; its trunks are left out, and a free port is taken where its own
            is not.
        seconds: length of each call.
        secrets: values that must not be shown.
    """
    return asyncio.run(_examine(settings, wanted, seconds, secrets))


async def _examine(
    settings: SipSettings, wanted: Sequence[Wanted], seconds: float, secrets: Sequence[str]
) -> list[Evidence]:
    listen, own_port = _own_listen(settings, {one.trunk.transport for one in wanted})
    variants = {one.trunk.name: variants_of(one.trunk) if one.uri else [] for one in wanted}
    more = [trunk for found in variants.values() for _text, trunk in found]
    trunks = [replace(one.trunk, registers=one.register and not own_port) for one in wanted]
    used = replace(
        settings,
        listen=listen,
        trunks=(*(replace(one, options_interval=0.0) for one in (*trunks, *more)),),
        max_calls=max(16, 2 * len(wanted)),
        log_level=0,
        jitter_buffer=JITTER_BUFFER,  # one that skips nothing, to count only what comes late
    )
    trace = Trace(secrets)
    calls: set[_Call] = set()

    def collect(_ready: list[int]) -> None:
        for call in tuple(calls):
            call.on_audio()

    agent = UserAgent(
        used,
        on_invite=lambda leg: leg.refuse(486),
        on_refused=lambda _refused: None,
        on_caller_audio=collect,
        on_log=trace.line,
    )
    try:
        await agent.start()
    except AgentError as error:
        return [Evidence(one.trunk, used, failed=str(error)) for one in wanted]
    run = _Run(agent, trace, calls, seconds)
    watch = asyncio.create_task(run.watch_clock(), name="watch the clock")
    try:
        each = (run.examine(one, variants[one.trunk.name], used, own_port) for one in wanted)
        found = await asyncio.gather(*each)
    finally:
        watch.cancel()
        await agent.stop()
    lines = agent.trunks.lines
    return [
        replace(
            one,
            registration=trace.registrations(lines.get(one.trunk.name, "")),
            stall_ms=run.stall_ms,
        )
        for one in found
    ]


def _own_listen(
    settings: SipSettings, transports: set[str]
) -> tuple[tuple[ListenOn, ...], tuple[int, int] | None]:
    """Return addresses to listen on: the gateway's, or free ports where those are in use.

    The second value has a port in use and the one taken in its place.
    """
    wanted = [one for one in settings.listen if one.transport in transports]
    used: list[ListenOn] = []
    taken: tuple[int, int] | None = None
    for one in wanted or settings.listen[:1]:
        kind = socket.SOCK_DGRAM if one.transport == "udp" else socket.SOCK_STREAM
        family = socket.AF_INET6 if ":" in one.host else socket.AF_INET
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:  # connections of before may linger
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((one.host, one.port))
                in_use = False
            except OSError:
                probe.bind((one.host, 0))
                in_use = True
            used.append(replace(one, port=int(probe.getsockname()[1])))
            if in_use:
                taken = one.port, used[-1].port
    return tuple(used), taken


class _Run:
    """The calls of one run of the doctor."""

    def __init__(self, agent: UserAgent, trace: Trace, calls: set[_Call], seconds: float) -> None:
        self._agent, self._trace, self._calls, self._seconds = agent, trace, calls, seconds
        self.stall_ms = 0

    async def watch_clock(self) -> None:
        """Measure in ``stall_ms`` how long this machine lets the process wait at most."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            late = int((time.monotonic() - began - 0.02) * 1000)
            self.stall_ms = max(self.stall_ms, late)

    async def examine(
        self,
        wanted: Wanted,
        variants: list[tuple[str, Trunk]],
        settings: SipSettings,
        own_port: tuple[int, int] | None,
    ) -> Evidence:
        state = None
        if wanted.register and wanted.trunk.registrar and own_port is None:
            state = await self._registered(wanted.trunk.name)
        attempts: list[Attempt] = []
        if wanted.uri:
            attempts.append(await self._call(wanted.trunk, wanted.trunk.name, wanted.uri))
            if attempts[0].code in _NOT_ACCEPTABLE:
                for text, variant in variants:
                    tried = await self._call(variant, variant.name, wanted.uri, text)
                    attempts.append(tried)
                    if tried.code not in _NOT_ACCEPTABLE:
                        break
        return Evidence(wanted.trunk, settings, state, (), tuple(attempts), own_port)

    async def _registered(self, name: str) -> str:
        """Wait for the registrar's answer; returns the state (``registered``, ``failed``, ...)."""
        deadline = time.monotonic() + REGISTER_SECONDS
        while True:
            found = next(one for one in self._agent.trunk_states() if one["name"] == name)
            if found["state"] != "trying" or time.monotonic() > deadline:
                return str(found["state"])
            await asyncio.sleep(0.05)

    async def _call(self, trunk: Trunk, name: str, uri: str, changed: str = "") -> Attempt:
        steps: list[AnyStep] = [WaitAnswer(within=ANSWER_SECONDS)]
        if changed:
            steps.append(HangUp())
        else:
            steps += [Wait(seconds=0.8), Play(file=Path("tone")), Wait(seconds=0.4)]
            steps += [Digits(keys=KEYS), Wait(seconds=0.6), Listen(seconds=self._seconds)]
        call = _Call(uri, Script(steps=tuple(steps)), {3: tone()}, lambda _text: None)

        def dial() -> Leg:
            codecs = list(trunk.codecs)
            leg = self._agent.dial(uri, call, call.tape.audio, codecs, name)
            call.ask_source = lambda: self._agent.ask_rtp_source(leg, call.note_source)
            return leg

        def give_up() -> None:
            if all(one.sent for one in self._trace.of({call.sip_call_id})):
                call.interrupt()

        self._calls.add(call)
        giving_up = asyncio.get_running_loop().call_later(SILENT_SECONDS, give_up)
        try:
            await call.run(dial, trunk.codecs[0])
        finally:
            giving_up.cancel()
            self._calls.discard(call)
        report, leg, tape = call.report, call.leg, call.tape
        assert report is not None
        assert leg is not None
        played = report.played[0] if report.played else None
        sound = heard_in(
            bytes(tape.heard_track), tape.codec, None if played is None else played.from_ms
        )

        def seconds(ms: float | None) -> float | None:
            return None if ms is None else ms / 1000

        return Attempt(
            trunk,
            uri,
            self._trace.of({call.sip_call_id}),
            call.end,
            seconds(report.answered_ms),
            seconds(report.ended_ms),
            leg.security,
            Codec(report.codec) if report.codec else None,
            call.quality,
            sound,
            call.rtp_source,
            report.digits_sent,
            report.digits_received,
            changed,
        )
