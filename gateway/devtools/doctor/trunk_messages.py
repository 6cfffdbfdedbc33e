# SPDX-License-Identifier: GPL-2.0-or-later
"""SIP messages of a test call, taken from the library's log without digests and keys."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.addresses import bracketed, host_of
from gateway.sip.messages.headers import (
    body_of,
    first_of,
    headers_of,
    parameter_of,
    split_list,
    start_line_of,
)
from gateway.sip.messages.sdp import MediaLine, parse
from gateway.sip.messages.sdp_lines import DIRECTIONS, EVENTS, address_in
from gateway.sip.trunks import LINE_PARAMETER

MAX_PACKETS = 5000
"""SIP messages that are kept, of all calls together; a call has about ten."""

_MESSAGE = re.compile(
    r"\b(TX|RX) \d+ bytes .*? (?:to|from) (\S+) (\S+):\r?\n(.*)\r?\n--end msg--", re.DOTALL
)
_DIGEST = re.compile(
    r"^((?:proxy-)?(?:authorization|authenticate)|www-authenticate)([ \t]*:)(.*)$", re.I | re.M
)
_SHOWN = re.compile(r'\b(username|realm|uri|algorithm|qop)=("[^"]*"|[^\s,]+)', re.I)
_CRYPTO = re.compile(r"inline:\S+")
_OTHER_KEYS = re.compile(r"^(a=(?:ice-pwd|key-mgmt):).*$", re.I | re.M)


@dataclass(frozen=True, slots=True)
class Packet:
    """A SIP message as it was on the wire, without digests and keys."""

    at: float
    """Seconds since the doctor began."""
    sent: bool
    transport: str
    """udp, tcp or tls."""
    peer: str
    """``address:port`` that it went to or came from."""
    text: str

    @property
    def start(self) -> str:
        """The request or status line."""
        return start_line_of(self.text)

    @property
    def headers(self) -> Mapping[str, tuple[str, ...]]:
        """Header fields by lower-case full name."""
        return headers_of(self.text)

    def header(self, name: str) -> str:
        """The first value of a header field, or ""."""
        return first_of(self.headers, name)

    @property
    def body(self) -> str:
        return body_of(self.text)

    @property
    def status(self) -> int:
        """Status code of a response; 0 for a request."""
        found = re.match(r"SIP/2\.0 (\d{3})", self.start)
        return int(found[1]) if found is not None else 0

    @property
    def method(self) -> str:
        """Method of the CSeq header: of a request, or of a response's request."""
        return self.header("cseq").partition(" ")[2].strip().upper()

    @property
    def number(self) -> int:
        found = re.match(r"\d{1,9}", self.header("cseq"))
        return int(found[0]) if found is not None else -1

    def shown(self, *, whole: bool = True) -> str:
        """Return time, direction and peer, and the ``whole`` message or its first line."""
        way = "sent to" if self.sent else "received from"
        head = f"{self.at:.3f} s, {way} {self.transport}:{self.peer}"
        return f"{head}\n{self.text.rstrip()}" if whole else f"{head}: {self.start}"


class Trace:
    """Takes the library's log, on any thread; keeps the SIP messages in it."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self.packets: list[Packet] = []
        self._began = time.monotonic()
        self._secrets = [one for one in secrets if one]

    def line(self, text: str) -> None:
        found = _MESSAGE.search(text)
        if found is None or len(self.packets) >= MAX_PACKETS:
            return
        way, transport, peer, message = found.groups()
        at = time.monotonic() - self._began
        kept = redacted(message, self._secrets)
        self.packets.append(Packet(at, way == "TX", transport.lower()[:3], peer, kept))

    def of(self, call_ids: set[str]) -> tuple[Packet, ...]:
        return tuple(one for one in self.packets if one.header("call-id") in call_ids)

    def registrations(self, line: str) -> tuple[Packet, ...]:
        """Return REGISTERs whose Contact has a trunk's ``line`` parameter, and the responses."""
        mark = f"{LINE_PARAMETER}={line}"
        own = [one for one in self.packets if one.sent and mark in one.header("contact")]
        ids = {one.header("call-id") for one in own if one.method == "REGISTER"}
        return self.of(ids)


def redacted(message: str, secrets: Sequence[str] = ()) -> str:
    """Return a SIP message without digests, nonces, SRTP keys and ``secrets``."""
    message = message.replace("\r\n", "\n")

    def digest(found: re.Match[str]) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in _SHOWN.findall(found[3]))
        return f"{found[1]}{found[2]} Digest {shown} (rest removed)"

    message = _DIGEST.sub(digest, message)
    message = _CRYPTO.sub("inline:(removed)", message)
    message = _OTHER_KEYS.sub(r"\1(removed)", message)
    for secret in secrets:
        message = message.replace(secret, "(removed)")
    return message


def shown(*packets: Packet | None, whole: bool = True) -> tuple[str, ...]:
    return tuple(one.shown(whole=whole) for one in packets if one is not None)


def has_credentials(packet: Packet) -> bool:
    return bool(packet.header("authorization") or packet.header("proxy-authorization"))


def realm_of(packet: Packet) -> str:
    field = packet.header("www-authenticate") or packet.header("proxy-authenticate")
    found = re.search(r'realm="([^"]*)"', field)
    return found[1] if found is not None else ""


def phrase_of(packet: Packet) -> str:
    return packet.start.partition(" ")[2].partition(" ")[2].strip()


def via_of(packet: Packet) -> str:
    return next(iter(split_list(packet.header("via"))), "")


def host_port_of(via: str) -> str:
    """Return ``host:port`` of a Via header, or ""."""
    found = re.match(r"SIP\s*/\s*2\.0\s*/\s*\w+\s+([^;\s]+)", via)
    return found[1] if found is not None else ""


def seen_by(answer: Packet) -> str:
    """Return ``address:port`` by ``received`` and ``rport`` of a Via (RFC 3581); or ""."""
    via = via_of(answer)
    parameters = via.partition(";")[2]
    host = parameter_of(parameters, "received") or host_of(host_port_of(via))
    port = parameter_of(parameters, "rport") or host_port_of(via).rpartition(":")[2]
    return f"{bracketed(host)}:{port}" if host else ""


@dataclass(frozen=True, slots=True)
class Audio:
    """The audio stream of an SDP."""

    address: str
    media: MediaLine
    direction: str = "sendrecv"
    """As its side sees it (RFC 4566 section 6)."""

    @property
    def where(self) -> str:
        """``address:port``."""
        return f"{bracketed(self.address)}:{self.media.port}"

    @property
    def codecs(self) -> str:
        names = self.media.names
        static = {"0": "PCMU/8000", "8": "PCMA/8000", "9": "G722/8000", "18": "G729/8000"}
        static["3"] = "GSM/8000"
        return ", ".join(names.get(one, static.get(one, one)) for one in self.media.formats)

    @property
    def events(self) -> str:
        """Payload type of telephone-event at 8 kHz (RFC 4733); empty for none."""
        wanted = f"{EVENTS.upper()}/8000"
        return next((number for number, name in self.media.names.items() if name == wanted), "")

    @property
    def keyed(self) -> str:
        """RTP profile and SRTP keying, as ``RTP/SAVP with crypto``."""
        how = [name for name in ("crypto", "fingerprint") if self.media.attributes(name)]
        return f"{self.media.profile}{' with ' if how else ''}{' and '.join(how)}"


def audio_of(packet: Packet | None) -> Audio | None:
    """Return the audio stream of the SDP in a message; None where there is none."""
    if packet is None or "m=" not in packet.body:
        return None
    description = parse(packet.body.replace("\n", "\r\n"))
    media = next((one for one in description.media if one.kind == "audio"), None)
    if media is None:
        return None
    named = [
        line[2:] for line in (*media.lines, *description.head) if line[2:] in DIRECTIONS
    ]  # that of the line counts before that of the session
    direction = next(iter(named), "sendrecv")
    return Audio(media.address or address_in(description.head) or "", media, direction)
