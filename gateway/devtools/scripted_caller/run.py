# SPDX-License-Identifier: GPL-2.0-or-later
"""The telephone of the scripted caller: places calls, writes recordings, makes the report.

One process has one pjsip endpoint, once: a test that needs another runs this in a subprocess.
A call can go on after its steps with a talk that nobody has scripted (:class:`TalkingCall`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import ipaddress
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gateway.audio import FRAME_BYTES, G711, PCM_FRAME_BYTES, Codec
from gateway.devtools.scripted_caller import (
    SPEECH_DBFS,
    CallReport,
    Dialling,
    Interrupt,
    Outcome,
    Play,
    RunReport,
    Say,
    Script,
    Span,
)
from gateway.devtools.scripted_caller.call import EndedError, ScriptedCall
from gateway.devtools.scripted_caller.sound import (
    Clip,
    Hearing,
    level_dbfs,
    read_clip,
    spoken_clip,
    write_sound,
)
from gateway.sip import JitterBuffer, Listen, SipSettings, Trunk
from gateway.sip.agent import AgentError, UserAgent
from gateway.sip.leg import Leg, RejectedInvite

TURN_MS, TURN_SECONDS = 200, 60.0
"""Sound that is a turn of the other side, and the longest one."""

Talk = Callable[["TalkingCall"], Awaitable[None]]
"""A conversation, by turns of sound (``turn``, ``speak``) or by audio (``audio``, ``queue``)."""


class TalkingCall(ScriptedCall):
    """A scripted call that a conversation follows, driven by ``talk``."""

    def __init__(self, talk: Talk, *args: Any) -> None:
        super().__init__(*args)
        self._talk = talk
        self._given = 0
        self._by_audio = False

    async def converse(self) -> None:
        """Run ``talk`` until it returns or the other side hangs up."""
        try:
            await self._talk(self)
        except EndedError:
            if self.lost:
                raise

    async def turn(self, within: float, pause_ms: int) -> Span | None:
        """Listen until the other side has spoken and paused; None when it says nothing within."""
        heard = self.hearing.speech(SPEECH_DBFS)
        began = self.tape.now_ms
        try:
            await self.until(lambda: heard.ms >= TURN_MS, within)
        except TimeoutError:
            return None
        with contextlib.suppress(TimeoutError):  # it goes on and on
            await self.until(lambda: self.hearing.quiet_for(pause_ms, SPEECH_DBFS), TURN_SECONDS)
        return Span(from_ms=began, to_ms=self.tape.now_ms)

    async def speak(self, clip: Clip) -> None:
        """Play a clip to its end, as a step of the report."""
        self.progress(f"says: {clip.name}")
        with self.noted(f'say "{clip.name}"'):
            await self.play(clip)

    async def audio(self) -> bytes:
        """Wait for audio; return all heard since the last call, in the codec of the tape."""
        self._by_audio = True
        await self.until(lambda: len(self.tape.heard_track) > self._given, TURN_SECONDS)
        taken = bytes(self.tape.heard_track[self._given :])
        self._given += len(taken)
        return taken

    def queue(self, frames: bytes) -> None:
        """Queue whole frames for playout, in the codec of the tape."""
        if not self.tape.playout.put(frames):
            self.queued_frames += len(frames) // FRAME_BYTES

    def flush(self) -> None:
        self.queued_frames -= self.tape.playout.flush()

    async def said(self) -> None:
        await self.until(lambda: not len(self.tape.playout), TURN_SECONDS)

    def spans(self) -> dict[str, list[Span]]:
        """Return spans of sounds in the recording; those said by audio are found by their level."""
        found = super().spans()
        if self._by_audio:
            pcm = self.tape.codec.to_linear(bytes(self.tape.said_track))
            said = Hearing()
            frames = range(0, len(pcm), PCM_FRAME_BYTES)
            said.add([level_dbfs(pcm[at : at + PCM_FRAME_BYTES]) for at in frames])
            found["spoken"] = said.spans()
        return found


Progress = Callable[[int, str], None]
"""Told the number of a call (from 1) and what happens to it."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Options of ``gateway test-call`` beside the script.

    ``codecs`` are offered in this order. ``local`` is host and port to call from. With ``repeat``
    above 1 recordings get the call's number before their ending.
    """

    codecs: tuple[Codec, ...] = (Codec.PCMU, Codec.PCMA)
    local: tuple[str, int] | None = None
    user: str = "caller"
    record: Path | None = None
    """What is heard."""
    record_both: Path | None = None
    """Stereo: the caller on the left, what is heard on the right."""
    repeat: int = 1
    parallel: int = 1
    pjsip_log_level: int = 0


async def place_calls(
    uri: str, script: Script, options: CallOptions, on_progress: Progress
) -> RunReport:
    """Place ``options.repeat`` calls, ``options.parallel`` at a time; wait until all have ended.

    SIGINT and SIGTERM hang up every call; those not yet begun are left out.

    Raises ValueError for an address that is none, SoundError for a sound that cannot be played or
    written, PhoneError when the local address cannot be had, or nothing listens at the other.
    """
    settings = PhoneSettings(
        local=options.local, user=options.user, pjsip_log_level=options.pjsip_log_level
    )
    phone = Phone(settings, host_of(uri))
    if nowhere := await asyncio.to_thread(nobody_listens, uri):
        raise PhoneError(f"nothing listens on udp:{nowhere}")
    clips = await asyncio.to_thread(prepare, script)
    waiting = collections.deque(range(1, options.repeat + 1))
    reports: dict[int, CallReport] = {}

    async def work() -> None:
        # The first call is made even after a signal: its report says that it was interrupted.
        while waiting and not (phone.interrupted and reports):
            number = waiting.popleft()
            on_call = functools.partial(on_progress, number)
            call = await phone.call(uri, script, clips, list(options.codecs), on_call)
            assert call.report is not None
            reports[number] = call.report
            _write(call, options, number)

    async with phone:
        if options.parallel > phone.capacity:
            on_progress(0, f"this pjsua2 carries {phone.capacity} calls at a time, no more")
        workers = min(options.parallel, options.repeat, phone.capacity)
        with taking_signals(phone.interrupt):
            await asyncio.gather(*(work() for _ in range(workers)))
    calls = [reports[number] for number in sorted(reports)]
    return RunReport(
        calls=calls,
        completed=sum(call.outcome is Outcome.COMPLETED for call in calls),
        exit_code=next((call.exit_code for call in calls if call.exit_code), 0),
    )


def prepare(script: Script) -> dict[int, Clip]:
    """Load or synthesise each sound of a script, by the number of its step. Raises SoundError."""
    clips: dict[int, Clip] = {}
    for number, step in enumerate(script.steps, start=1):
        if isinstance(step, Play | Interrupt) and step.file is not None:
            clips[number] = read_clip(step.file)
        elif isinstance(step, Say | Interrupt):
            clips[number] = spoken_clip(step.text, step.voice)
    return clips


def _write(call: ScriptedCall, options: CallOptions, number: int) -> None:
    tape = call.tape
    said, heard = bytes(tape.said_track), bytes(tape.heard_track)
    if options.record is not None:
        write_sound(_numbered(options.record, options, number), tape.codec, [heard])
    if options.record_both is not None:
        write_sound(_numbered(options.record_both, options, number), tape.codec, [said, heard])


def _numbered(file: Path, options: CallOptions, number: int) -> Path:
    return file if options.repeat == 1 else file.with_stem(f"{file.stem}-{number}")


@contextlib.contextmanager
def taking_signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM call ``interrupt`` meanwhile."""
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread may take signals; elsewhere whoever started us ends us.
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, interrupt)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


ANSWER_SECONDS = 0.15
"""How long the other machine has to say that nothing listens (ICMP port unreachable)."""

_UDP_TARGET = re.compile(r"sip:(?:[^@]*@)?(\[[^\]]+\]|[^:;?>]+)(?::(\d+))?", re.IGNORECASE)


def nobody_listens(uri: str) -> str:
    """Return ``host:port`` where ICMP says that no program listens there on UDP; else "".

    What goes out is a keep-alive (RFC 5626 section 3.5.1), which no SIP element takes for a call.
    """
    target = _UDP_TARGET.match(uri)
    if target is None or re.search(r";transport=(?!udp)", uri, re.IGNORECASE):
        return ""
    host, port = target[1].strip("[]"), int(target[2] or 5060)
    try:
        family, kind, number, _name, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, number) as probe:
            probe.settimeout(ANSWER_SECONDS)
            probe.connect(address)
            probe.send(b"\r\n\r\n")
            probe.recv(1)
    except ConnectionRefusedError:
        return f"{target[1]}:{port}"
    except OSError:
        return ""
    return ""


RTP_PORTS = (30000, 39998)
"""Beside the gateway's default range, so that both run on one machine."""

JITTER_BUFFER = JitterBuffer(
    init=60, min_prefetch=60, max_prefetch=200, maximum=500, catch_up=False
)
"""What is heard comes 60 ms late, so that a late packet on a busy machine is no hole in it."""

_TARGET = re.compile(r"sips?:(?:[^@\s]+@)?(\[[^\]]+\]|[^:;?\s]+)(?::\d+)?(?:[;?]\S*)?$", re.I)

PhoneError = AgentError


@dataclass(frozen=True, slots=True)
class PhoneSettings:
    """``local`` is host and port to call from, port 0 for any; None suits the first target."""

    local: tuple[str, int] | None = None
    user: str = "caller"
    pjsip_log_level: int = 0
    trunks: tuple[Trunk, ...] = ()
    """Whose credentials calls may have."""


def host_of(uri: str) -> str:
    """Return the host of a SIP URI, without brackets. Raises ValueError for anything else."""
    match = _TARGET.match(uri)
    if match is None:
        raise ValueError(f"{uri!r} is no SIP address; write sip:100@127.0.0.1:5060")
    return match[1].strip("[]")


def local_for(host: str) -> tuple[str, int]:
    """Return the address to call ``host`` from: loopback for loopback, else all interfaces."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ("127.0.0.1" if host == "localhost" else "0.0.0.0", 0)
    if address.version == 6:
        return ("::1" if address.is_loopback else "::", 0)
    return ("127.0.0.1" if address.is_loopback else "0.0.0.0", 0)


class Phone:
    """Places scripted calls; use as an asynchronous context manager.

    Entering raises :data:`PhoneError` when the address cannot be bound.
    """

    def __init__(self, settings: PhoneSettings, host: str = "127.0.0.1") -> None:
        local_host, port = settings.local or local_for(host)
        self._calls: set[ScriptedCall] = set()
        self._agent = UserAgent(
            SipSettings(
                listen=(Listen("udp", local_host, port),),
                rtp_ports=RTP_PORTS,
                max_calls=100,
                user_agent="gateway call",
                user=settings.user,
                trunks=settings.trunks,
                jitter_buffer=JITTER_BUFFER,
                log_level=settings.pjsip_log_level,
            ),
            on_invite=_busy,
            on_refused=_ignore,
            on_caller_audio=self._collect,
        )
        self.interrupted = False

    @property
    def capacity(self) -> int:
        """Calls that this build of pjsua2 carries at a time."""
        return self._agent.capacity

    async def __aenter__(self) -> Self:
        await self._agent.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._agent.stop()

    async def call(
        self,
        uri: str,
        script: Script,
        clips: dict[int, Clip],
        codecs: list[Codec],
        on_progress: Callable[[str], None],
        dialling: Dialling | None = None,
        talk: Talk | None = None,
    ) -> ScriptedCall:
        """Place one call and follow the script to the end of it; both codecs are offered.

        Those of ``codecs`` come first, in their order. ``talk`` comes after the script's steps.
        """
        offered = [*codecs, *(codec for codec in G711 if codec not in codecs)]
        told = (uri, script, clips, on_progress, dialling)
        call = ScriptedCall(*told) if talk is None else TalkingCall(talk, *told)
        how = call.dialling
        self._calls.add(call)
        try:
            if self.interrupted:
                call.interrupt()
            await call.run(
                lambda: self._agent.dial(
                    *(uri, call, call.tape.audio, offered, how.trunk),
                    caller_id=how.caller_id,
                    headers=how.headers,
                ),
                offered[0],
            )
        finally:
            self._calls.discard(call)
        return call

    def interrupt(self) -> None:
        """Hang up every call now; their reports say so. Event loop only."""
        self.interrupted = True
        for call in self._calls:
            call.interrupt()

    def _collect(self, _ready: list[int]) -> None:
        for call in tuple(self._calls):
            call.on_audio()


def _busy(leg: Leg) -> None:
    leg.refuse(486)


def _ignore(_refused: RejectedInvite) -> None:
    """Somebody called the caller; nothing to do."""
