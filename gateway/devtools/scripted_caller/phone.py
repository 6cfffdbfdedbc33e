# SPDX-License-Identifier: GPL-2.0-or-later
"""The scripted caller's telephone: a SIP endpoint that places calls. One a process."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gateway.audio.g711 import Codec
from gateway.devtools.scripted_caller.call import ScriptedCall
from gateway.devtools.scripted_caller.script import Script
from gateway.devtools.scripted_caller.sound import Clip
from gateway.sip.agent import AgentError, UserAgent
from gateway.sip.leg import Leg
from gateway.sip.settings import JitterBuffer, Listen, SipSettings
from gateway.sip.types import Refused

ANSWER_SECONDS = 0.15
"""How long the other machine has to say that nothing listens (ICMP port unreachable)."""

_UDP_TARGET = re.compile(r"sip:(?:[^@]*@)?(\[[^\]]+\]|[^:;?>]+)(?::(\d+))?", re.IGNORECASE)


def nobody_listens(uri: str) -> str:
    """``host:port`` when that machine says that nothing listens there over UDP; else empty.

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
    rtp_ports: tuple[int, int] = RTP_PORTS
    pjsip_log_level: int = 0


def host_of(uri: str) -> str:
    """The host of a sip URI, without brackets. Raises ValueError when it is none."""
    match = _TARGET.match(uri)
    if match is None:
        raise ValueError(f"{uri!r} is no SIP address; write sip:100@127.0.0.1:5060")
    return match[1].strip("[]")


def local_for(host: str) -> tuple[str, int]:
    """Where to call ``host`` from: loopback for loopback, else all interfaces."""
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
                rtp_ports=settings.rtp_ports,
                max_calls=100,
                user_agent="gateway call",
                user=settings.user,
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

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self._agent.stop()

    async def call(
        self,
        uri: str,
        script: Script,
        clips: dict[int, Clip],
        codecs: list[Codec],
        on_progress: Callable[[str], None],
    ) -> ScriptedCall:
        """Place one call and follow the script to the end of it; both laws are offered.

        Those of ``codecs`` come first, in their order.
        """
        offered = [*codecs, *(codec for codec in Codec if codec not in codecs)]
        call = ScriptedCall(uri, script, clips, on_progress)
        self._calls.add(call)
        try:
            if self.interrupted:
                call.interrupt()
            await call.run(
                lambda: self._agent.dial(uri, call, call.tape.audio, offered), offered[0]
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


def _ignore(_refused: Refused) -> None:
    """Somebody called the caller; nothing to do."""
