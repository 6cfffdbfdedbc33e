# SPDX-License-Identifier: GPL-2.0-or-later
"""SRV and NAPTR records of a SIP domain (RFC 3263), which the gateway itself does not follow.

The system's resolver gives addresses only, so its first name server is asked in the protocol's own
form (RFC 1035 section 4).
"""

from __future__ import annotations

import re
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS = 1.5
"""For one answer of the name server."""

_SRV, _NAPTR = 33, 35
_HEADER = struct.Struct("!HHHHHH")
_SERVICES = {"_sip._udp": "udp", "_sip._tcp": "tcp", "_sips._tcp": "tls"}


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """Where a domain takes SIP."""

    priority: int
    weight: int
    transport: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.transport}:{self.host}:{self.port}"


def server() -> tuple[str, int] | None:
    """The first name server of this machine."""
    try:
        text = Path("/etc/resolv.conf").read_text()
    except OSError:
        return None
    found = re.search(r"^nameserver\s+(\S+)", text, re.MULTILINE)
    return (found[1].partition("%")[0], 53) if found is not None else None


def services(domain: str, where: tuple[str, int] | None = None) -> list[Service]:
    """The services that a domain names, the first to try first; waits.

    Empty where there is no answer, or one that cannot be read.

    Args:
        where: the name server; None for this machine's.
    """
    where = where or server()
    if where is None:
        return []
    try:
        return _services(domain, where)
    except (OSError, IndexError, struct.error, UnicodeError):
        return []


def _services(domain: str, where: tuple[str, int]) -> list[Service]:
    names = dict(_named(domain, where)) or {f"{one}.{domain}": t for one, t in _SERVICES.items()}
    found = [
        Service(priority, weight, transport, host, port)
        for name, transport in names.items()
        for priority, weight, port, host in _srv(name, where)
        if host
    ]
    return sorted(found, key=lambda one: (one.priority, -one.weight))


def _named(domain: str, where: tuple[str, int]) -> Iterator[tuple[str, str]]:
    """Names of SRV records and their transports, by NAPTR."""
    transports = {"SIP+D2U": "udp", "SIP+D2T": "tcp", "SIPS+D2T": "tls"}
    for message, at in _ask(domain, _NAPTR, where):
        at += 4
        texts = []
        for _field in ("flags", "service", "regexp"):
            size = message[at]
            texts.append(message[at + 1 : at + 1 + size].decode("ascii", "replace").upper())
            at += 1 + size
        transport = transports.get(texts[1])
        if texts[0] == "S" and transport is not None:
            yield _name(message, at)[0], transport


def _srv(name: str, where: tuple[str, int]) -> Iterator[tuple[int, int, int, str]]:
    for message, at in _ask(name, _SRV, where):
        priority, weight, port = struct.unpack_from("!HHH", message, at)
        yield priority, weight, port, _name(message, at + 6)[0]


def _ask(name: str, kind: int, where: tuple[str, int]) -> list[tuple[bytes, int]]:
    """Answers of one type: the message, and where in it each record's data begins."""
    number = secrets.randbits(16)
    labels = [label.encode("idna") for label in name.rstrip(".").split(".")]
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    query = _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + question + struct.pack("!HH", kind, 1)
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.settimeout(SECONDS)
        own.connect(where)
        own.send(query)
        message = own.recv(4096)
    return _records(message, number, kind)


def _records(message: bytes, number: int, kind: int) -> list[tuple[bytes, int]]:
    got, flags, questions, answers, _authorities, _more = _HEADER.unpack_from(message)
    if got != number or flags & 0xF or not flags & 0x8000:
        return []
    at, found = _HEADER.size, []
    for _question in range(questions):
        at = _name(message, at)[1] + 4
    for _answer in range(answers):
        at = _name(message, at)[1]
        type_, _class, _ttl, length = struct.unpack_from("!HHIH", message, at)
        at += 10
        if type_ == kind:
            found.append((message, at))
        at += length
    return found


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name (RFC 1035 section 4.1.4), and where what follows it begins."""
    labels: list[str] = []
    after = -1
    for _step in range(128):  # pointers may make a circle
        size = message[at]
        if size & 0xC0 == 0xC0:
            after = at + 2 if after < 0 else after
            at = (size & 0x3F) << 8 | message[at + 1]
            continue
        if not size:
            return ".".join(labels), at + 1 if after < 0 else after
        labels.append(message[at + 1 : at + 1 + size].decode("ascii", "replace"))
        at += 1 + size
    raise IndexError("a name without an end")
