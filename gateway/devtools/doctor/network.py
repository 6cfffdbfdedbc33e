# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of ports and realtime servers; SRV and NAPTR records of SIP domains.

The gateway itself does not follow these records (RFC 3263). The system's resolver gives addresses
only, so its first name server is asked in the protocol's own form (RFC 1035 section 4).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from gateway.addresses import is_loopback
from gateway.api.client import NoAnswerError, RefusedError, ask, sockets_at
from gateway.config import Config
from gateway.config.operations import split_address
from gateway.config.sections import RealtimeServerSettings, RealtimeSettings, on_loopback
from gateway.config.sip import ListenAddress
from gateway.devtools.doctor import Finding, bad, ok, warn
from gateway.dialplan import Dialplan, call_settings
from gateway.realtime.connection import Endpoint
from gateway.realtime.dialects import DIALECTS
from gateway.realtime.errors import ERROR_CODES, SetupFailed
from gateway.realtime.setup import open_session

CONNECT_SECONDS = 5.0
"""For name, TCP and TLS together; a call that waits longer for its session is refused anyway."""

MAX_SERVERS = 20
"""Servers that are tried; a dialplan with more is told so."""

SESSION_SECONDS = 8.0

CERTIFICATE_DAYS = 14


_ACCOUNT = (
    "insufficient_quota", "account_deactivated", "billing_hard_limit_reached",
    "rate_limit_exceeded", "http 429",
)  # fmt: skip
"""What a server says of an account, once it knows whose the key is."""

_Server = RealtimeSettings | RealtimeServerSettings


def check_network(config: Config, dialplan: Dialplan) -> Iterator[Finding]:
    """Check each realtime server and each port of the configuration."""
    yield from servers(config, dialplan)
    yield from listening_ports(config)
    yield rtp_ports(config)


def source_address(
    listen: Sequence[ListenAddress], transport: str, remote: str
) -> tuple[str, int] | None:
    """Return the address to ask ``remote`` from, as calls come from it, and port 0.

    A trunk that knows us by address answers no other. None where the gateway listens on all
    addresses of the machine, or on none from which ``remote`` can be reached.
    """
    hosts = [
        one.host
        for one in listen
        if one.transport == transport
        and (":" in one.host) == (":" in remote)
        and is_loopback(one.host) == is_loopback(remote)
    ]
    if not hosts or any(ipaddress.ip_address(host).is_unspecified for host in hosts):
        return None
    with socket.socket(
        socket.AF_INET6 if ":" in remote else socket.AF_INET, socket.SOCK_DGRAM
    ) as one:
        try:
            one.bind((hosts[0], 0))
        except OSError:
            return None
    return hosts[0], 0


# ---- the realtime side


def servers(config: Config, dialplan: Dialplan) -> list[Finding]:
    """Open and close one session at each realtime server that is configured."""
    used: list[_Server] = [config.realtime, *config.realtime_server]
    used += [call_settings(config, route).realtime for route in dialplan.routes if route.enabled]
    urls = {(one.url, one.model): one for one in reversed(used)}
    asked = list(reversed(urls.values()))

    async def all_of_them() -> list[Finding]:
        return list(await asyncio.gather(*map(_check_server, asked[:MAX_SERVERS])))

    found = asyncio.run(all_of_them())
    if len(urls) > MAX_SERVERS:
        fact = f"only {MAX_SERVERS} of {len(urls)} servers were tried"
        found.append(warn("realtime", fact, "try the others by hand"))
    return found


async def _check_server(settings: _Server) -> Finding:
    """Connect to a realtime server and open one session; return the finding."""
    url = settings.url
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme in ("wss", "https")
    port = parts.port or (443 if secure else 80)
    shown = f"{parts.scheme}://{parts.netloc}"
    began = time.monotonic()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            context = ssl.create_default_context(cafile=settings.ca) if secure else None
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except TimeoutError:
        advice = f"does a firewall drop it?{_proxy()}"
        return bad("realtime", f"{shown}: no answer within {CONNECT_SECONDS:.0f} s", advice)
    except socket.gaierror as error:
        advice = f"is the name right, and DNS working?{_proxy()}"
        return bad("realtime", f"{shown}: {error.strerror}", advice)
    except ssl.SSLCertVerificationError as error:
        advice = (
            "is this the right server, the clock right, ca-certificates installed? "
            f"{_section(settings)}.ca names a CA of your own"
        )
        return bad("realtime", f"{shown}: {error.verify_message}", advice)
    except (OSError, ssl.SSLError) as error:
        if secure and not isinstance(error, ConnectionRefusedError):
            said = error.strerror or str(error) or "connection closed"
            fact = f"{shown}: no TLS there ({said})"
            return bad(
                "realtime", fact, f"a server without TLS has ws:// in {_section(settings)}.url"
            )
        fact = f"{shown}: {error.strerror or error}"
        if on_loopback(url):
            advice = "`gateway emulator` listens there; until then calls get 503"
            return warn("realtime", fact, advice)
        return bad("realtime", fact, "is the address right? Until then calls get 503")
    ms = (time.monotonic() - began) * 1000
    try:
        reached = _reached_finding(shown, ms, writer.get_extra_info("ssl_object"))
        if not secure:  # a server logs a connection without a request as an error
            writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await reader.read(1024)
    finally:
        writer.close()
    refused = await _session_failure(settings, shown)
    if refused is None:
        return replace(reached, fact=f"{reached.fact}, opens a session of {settings.model}")
    return refused


def _proxy() -> str:
    """Return the advice on a proxy that the environment names; empty without one."""
    names = [name for name in os.environ if name.lower() in ("https_proxy", "all_proxy")]
    return f" {names[0]} is not used: the gateway connects by itself" if names else ""


def _section(settings: _Server) -> str:
    name = getattr(settings, "name", "")
    return f"realtime_server[{name}]" if name else "realtime"


async def _session_failure(settings: _Server, shown: str) -> Finding | None:
    """Open a session as a call would; return why it failed, None where it did not."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        endpoint = Endpoint(
            url=settings.url,
            model=settings.model,
            api_key=settings.api_key or "",
            api_key_header=settings.api_key_header,
            headers={name: text.get_secret_value() for name, text in settings.headers.items()},
            dialect=DIALECTS[settings.dialect],
            audio=settings.audio,
            ca="" if settings.ca is None else str(settings.ca),
        )
        session = await open_session(
            endpoint,
            endpoint.least_session(),
            timeout=SESSION_SECONDS,
            on_event=lambda _event: None,
            on_closed=lambda _closed: None,
        )
    except SetupFailed as failure:
        code = failure.verdict.code
        fact = f"{shown}: no session: {failure.verdict.meaning} ({code}: {failure.detail})"
        section = _section(settings)
        advice = f"is {section}.url a realtime server's?"
        if code in ("http 401", "http 403", "invalid_api_key"):
            advice = f'is {section}.api_key right? With Azure: api_key_header = "api-key"'
        elif "model" in f"{code} {failure.detail}" or code == "http 404":
            advice = f"are {section}.model and the path of {section}.url right?"
        elif 'dialect = "beta"' in failure.detail:  # it answered in Beta's fields
            advice = f'{section}.dialect = "beta"'
        elif code == "beta_api_shape_disabled":
            advice = f'{section}.dialect = "ga"'
        elif code in _ACCOUNT:
            advice = "the key is right; its account's limits and billing are the provider's to show"
        elif code in ERROR_CODES:
            advice = f"is {section}.dialect this server's? See docs/configuration.md, Servers"
        return bad("realtime", fact.replace(": )", ")"), advice)
    finally:
        structlog.reset_defaults()
    await session.close("doctor")
    return None


def _reached_finding(shown: str, ms: float, tls: ssl.SSLObject | None) -> Finding:
    """Return the finding for a server that was reached: its TLS version and certificate."""
    fact = f"{shown} reached in {ms:.0f} ms"
    if tls is None:
        return ok("realtime", fact)
    certificate = tls.getpeercert() or {}
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"])) if certificate else time.time()
    days = (ends - time.time()) / 86400
    fact += f", {tls.version()}, certificate for {days:.0f} more days"
    if days < CERTIFICATE_DAYS:
        return warn("realtime", fact, "its operator has to renew it")
    return ok("realtime", fact)


# ---- the telephone side


def listening_ports(config: Config) -> Iterator[Finding]:
    """Bind each SIP listener, and the API's, of each worker for a moment."""
    for worker in range(config.workers.count):
        own = config.for_worker(worker)
        ports = [("sip port", address) for address in own.sip.listen]
        if own.api.listen is not None:
            host, port = split_address(own.api.listen)
            ports.append(("api port", ListenAddress("tcp", host, int(port))))
        for subject, address in ports:
            if address.port == 0:
                yield ok(subject, f"{address}: any free one")
                continue
            number = _bind(address)
            who = f" (worker {worker})" if config.workers.count > 1 else ""
            if number == errno.EADDRINUSE and _gateway_runs(config):
                yield ok(subject, f"{address}{who} is in use by the running gateway")
            else:
                yield _port_finding(subject, f"{address}{who}", number)


def _gateway_runs(config: Config) -> bool:
    """Whether a gateway answers on the control socket of this configuration."""
    if config.control.socket is None:
        return False
    for path in sockets_at(config.control.socket):
        with suppress(NoAnswerError, RefusedError):
            ask(path, "status")
            return True
    return False


def _port_finding(subject: str, where: str, number: int) -> Finding:
    """Return the finding for the result of binding an address."""
    if number == 0:
        return ok(subject, f"{where} is free")
    if number == errno.EADDRINUSE:
        advice = "`ss -lptu` shows which program has it; the gateway does not start like this"
        return bad(subject, f"{where} is in use", advice)
    if number == errno.EADDRNOTAVAIL:
        advice = "`ip address` lists those of this machine; 0.0.0.0 takes all"
        return bad(subject, f"{where}: no address of this machine", advice)
    if number == errno.EACCES:
        advice = "a port below 1024 needs AmbientCapabilities=CAP_NET_BIND_SERVICE"
        return bad(subject, f"{where}: not allowed", advice)
    return bad(subject, f"{where}: {errno.errorcode.get(number, number)}", "see `man 2 bind`")


def rtp_ports(config: Config) -> Finding:
    """Bind every pair of ``sip.rtp_ports`` for a moment, and see who else may take them."""
    low, high = config.sip.rtp_ports
    host = config.sip.listen[0].host
    free = sum(
        _bind(ListenAddress("udp", host, port)) == 0
        and _bind(ListenAddress("udp", host, port + 1)) == 0
        for port in range(low, high, 2)
    )
    need = config.sip.max_calls * config.workers.count
    fact = f"{low}-{high}: {free} pairs free, {need} needed"
    if not free and _bind(ListenAddress("udp", host, 0)) != 0:
        return bad("rtp ports", f"{host} has no ports on this machine", "see sip.listen")
    if free < need:
        return bad("rtp ports", fact, "widen sip.rtp_ports, or see `ss -lnu` for who has them")
    taken = _ephemeral()
    if taken is not None and low <= taken[1] and taken[0] <= high and not _reserved(low, high):
        advice = f"reserve them: sysctl -w net.ipv4.ip_local_reserved_ports={low}-{high}"
        fact += f"; the kernel gives {taken[0]}-{taken[1]} to any program"
        return warn("rtp ports", fact, advice)
    return ok("rtp ports", fact)


def _bind(address: ListenAddress) -> int:
    """Bind an address for a moment; return 0, or the error number."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    kind = socket.SOCK_DGRAM if address.transport == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as probe:
        try:
            if kind == socket.SOCK_STREAM:  # as servers do: connections of before do not matter
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def _ephemeral() -> tuple[int, int] | None:
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(first), int(last)
    except (OSError, ValueError):
        return None


def _reserved(low: int, high: int) -> bool:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip()
    except OSError:
        return False
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if int(first) <= low and high <= int(last or first):
            return True
    return False


QUERY_SECONDS = 1.5
"""For one answer of the name server."""

_SRV, _NAPTR = 33, 35
_HEADER = struct.Struct("!HHHHHH")
_SERVICES = {"_sip._udp": "udp", "_sip._tcp": "tcp", "_sips._tcp": "tls"}


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """A SIP server of a domain, by an SRV record (RFC 2782)."""

    priority: int
    weight: int
    transport: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.transport}:{self.host}:{self.port}"


def name_server() -> tuple[str, int] | None:
    try:
        text = Path("/etc/resolv.conf").read_text()
    except OSError:
        return None
    found = re.search(r"^nameserver\s+(\S+)", text, re.MULTILINE)
    return (found[1].partition("%")[0], 53) if found is not None else None


def services(domain: str, where: tuple[str, int] | None = None) -> list[Service]:
    """Return the SIP servers of a domain by NAPTR and SRV (RFC 3263), in the order to try; blocks.

    Empty where there is no answer, or one that cannot be read.

    Args:
        where: the name server; None for this machine's.
    """
    where = where or name_server()
    if where is None:
        return []
    try:
        return _services(domain, where)
    except (OSError, IndexError, struct.error, UnicodeError):
        return []


def _services(domain: str, where: tuple[str, int]) -> list[Service]:
    names = dict(_naptr(domain, where)) or {f"{one}.{domain}": t for one, t in _SERVICES.items()}
    found = [
        Service(priority, weight, transport, host, port)
        for name, transport in names.items()
        for priority, weight, port, host in _srv(name, where)
        if host
    ]
    return sorted(found, key=lambda one: (one.priority, -one.weight))


def _naptr(domain: str, where: tuple[str, int]) -> Iterator[tuple[str, str]]:
    """Yield name and transport of each SRV record that the domain's NAPTR records name."""
    transports = {"SIP+D2U": "udp", "SIP+D2T": "tcp", "SIPS+D2T": "tls"}
    for message, at in _query(domain, _NAPTR, where):
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
    for message, at in _query(name, _SRV, where):
        priority, weight, port = struct.unpack_from("!HHH", message, at)
        yield priority, weight, port, _name(message, at + 6)[0]


def _query(name: str, kind: int, where: tuple[str, int]) -> list[tuple[bytes, int]]:
    """Query the name server for records of a type; return message and data offset of each."""
    number = secrets.randbits(16)
    labels = [label.encode("idna") for label in name.rstrip(".").split(".")]
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    query = _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + question + struct.pack("!HH", kind, 1)
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.settimeout(QUERY_SECONDS)
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
    """Read a domain name (RFC 1035 section 4.1.4); return it and the offset after it."""
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
